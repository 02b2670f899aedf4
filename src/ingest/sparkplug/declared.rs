//! The metrics that a birth certificate declares, stored compactly: all names in one text, and no hash table.

use super::proto::Metric;
use serde::{Deserialize, Serialize};

/// A metric with its resolved name and type.
pub(super) struct ResolvedMetric<'a> {
    pub(super) metric: &'a Metric,
    pub(super) name: &'a str,
    pub(super) datatype: u32,
}

/// Declared properties of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MetricType {
    pub(super) datatype: u32,
}

/// Declared metrics of a node or a device. The order of the fields is the stored format.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Declared {
    /// Whether the last certificate was a valid birth.
    pub(super) is_alive: bool,
    /// All names in sorted order, concatenated.
    names: Box<str>,
    /// End of each name in `names`, and its data type.
    metrics: Box<[(u32, u32)]>,
    /// Sorted aliases, and the index of each in `metrics`.
    aliases: Box<[(u64, u32)]>,
}

impl Declared {
    /// Builds the declarations of a birth certificate. The error is the reason against it.
    pub(super) fn born(resolved: &[ResolvedMetric<'_>]) -> Result<Self, String> {
        // If a name occurs twice, the last one counts.
        let mut rows: Vec<&ResolvedMetric<'_>> = resolved.iter().rev().collect();
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
                let index = rows.binary_search_by_key(&one.name, |row| row.name).ok()?;
                Some((one.metric.alias?, index as u32))
            })
            .collect();
        aliases.sort_unstable();
        aliases.dedup();
        if let Some(twice) = aliases.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(format!("alias {}: stands for two metrics", twice[0].0));
        }
        Ok(Self { is_alive: true, names: names.into(), metrics, aliases: aliases.into() })
    }

    pub(super) fn by_alias(&self, alias: u64) -> Option<(&str, MetricType)> {
        let found = self.aliases.binary_search_by_key(&alias, |(alias, _)| *alias).ok()?;
        let index = self.aliases.get(found)?.1 as usize;
        Some((self.name(index)?, self.metric_type(index)?))
    }

    pub(super) fn by_name(&self, name: &str) -> Option<MetricType> {
        let (mut from, mut to) = (0, self.metrics.len());
        while from < to {
            let middle = (from + to) / 2;
            match self.name(middle)?.cmp(name) {
                std::cmp::Ordering::Equal => return self.metric_type(middle),
                std::cmp::Ordering::Less => from = middle + 1,
                std::cmp::Ordering::Greater => to = middle,
            }
        }
        None
    }

    /// Bytes of memory on the heap; the note takes no more.
    pub(super) fn bytes(&self) -> usize {
        self.names.len() + size_of_val(&*self.metrics) + size_of_val(&*self.aliases)
    }

    fn name(&self, index: usize) -> Option<&str> {
        let start = index.checked_sub(1).map_or(Some(0), |before| Some(self.metrics.get(before)?.0))?;
        self.names.get(start as usize..self.metrics.get(index)?.0 as usize)
    }

    fn metric_type(&self, index: usize) -> Option<MetricType> {
        // Aliases and types are valid for one birth: they may change after a death.
        let (_, datatype) = self.metrics.get(index).filter(|_| self.is_alive)?;
        Some(MetricType { datatype: *datatype })
    }
}
