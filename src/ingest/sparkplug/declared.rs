//! What one birth certificate has declared, in as few bytes as it takes: all names in one text, and no table.

use super::json::Resolved;
use serde::{Deserialize, Serialize};

/// What is known of a metric beside its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) datatype: u32,
}

/// The metrics of a node or a device. The order of the fields is the stored format.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Declared {
    /// Whether its last certificate was one of birth that was understood.
    pub(super) is_alive: bool,
    /// Every name, in their order.
    names: Box<str>,
    /// Of each name where it ends in `names`, and its data type.
    metrics: Box<[(u32, u32)]>,
    /// Each alias in its order, and the place of its name in `metrics`.
    aliases: Box<[(u64, u32)]>,
}

impl Declared {
    /// What a birth certificate declares. The error says what is wrong with it.
    pub(super) fn born(resolved: &[Resolved<'_>]) -> Result<Self, String> {
        // Of a name that comes twice, the last one counts.
        let mut rows: Vec<&Resolved<'_>> = resolved.iter().rev().collect();
        rows.sort_by_key(|one| one.name);
        rows.dedup_by_key(|one| one.name);
        let mut names = String::with_capacity(rows.iter().map(|one| one.name.len()).sum());
        let metrics = rows.iter().map(|one| {
            names.push_str(one.name);
            // A message is far smaller than 4 GB.
            (u32::try_from(names.len()).unwrap_or(u32::MAX), one.datatype)
        });
        let metrics: Box<[_]> = metrics.collect();
        let mut aliases: Vec<(u64, u32)> = resolved
            .iter()
            .filter_map(|one| {
                let place = rows.binary_search_by_key(&one.name, |row| row.name).ok()?;
                Some((one.metric.alias?, place as u32))
            })
            .collect();
        aliases.sort_unstable();
        aliases.dedup();
        if let Some(twice) = aliases.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(format!("alias {}: stands for two metrics", twice[0].0));
        }
        Ok(Self { is_alive: true, names: names.into(), metrics, aliases: aliases.into() })
    }

    pub(super) fn by_alias(&self, alias: u64) -> Option<(&str, Known)> {
        let found = self.aliases.binary_search_by_key(&alias, |(alias, _)| *alias).ok()?;
        let place = self.aliases.get(found)?.1 as usize;
        Some((self.name(place)?, self.known(place)?))
    }

    pub(super) fn by_name(&self, name: &str) -> Option<Known> {
        let (mut from, mut to) = (0, self.metrics.len());
        while from < to {
            let middle = (from + to) / 2;
            match self.name(middle)?.cmp(name) {
                std::cmp::Ordering::Equal => return self.known(middle),
                std::cmp::Ordering::Less => from = middle + 1,
                std::cmp::Ordering::Greater => to = middle,
            }
        }
        None
    }

    /// Bytes that it takes in memory beside its own fields; its note takes no more.
    pub(super) fn bytes(&self) -> usize {
        self.names.len() + size_of_val(&*self.metrics) + size_of_val(&*self.aliases)
    }

    fn name(&self, place: usize) -> Option<&str> {
        let start = place.checked_sub(1).map_or(Some(0), |before| Some(self.metrics.get(before)?.0))?;
        self.names.get(start as usize..self.metrics.get(place)?.0 as usize)
    }

    fn known(&self, place: usize) -> Option<Known> {
        // Aliases and types belong to one birth: after a death they may be others.
        let (_, datatype) = self.metrics.get(place).filter(|_| self.is_alive)?;
        Some(Known { datatype: *datatype })
    }
}
