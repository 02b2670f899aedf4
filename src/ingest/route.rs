//! Routes: where the events of a topic of a client belong.

use super::shares::{Pace, PartyId};
use crate::contract::{Columns, Contract};
use crate::event::{Attribute, AuthType, push_path_segment};
use crate::secret::Secret;
use std::sync::Arc;

#[derive(Clone, Copy, Debug)]
pub(super) struct StreamTarget {
    pub(super) publication: u32,
    pub(super) lane: usize,
}

/// Contract and origin for a topic of a client; valid until the contracts change.
#[derive(Debug)]
pub struct Route {
    pub(super) target: Option<Target>,
    /// The nearest contract, in words, if no contract matches.
    pub(super) nearest: Option<String>,
    pub(super) source: String,
    /// `{source}/{device}`.
    pub(super) origin: String,
    pub(super) topic: String,
    pub(super) client: String,
    pub(super) user: String,
    pub(super) proven_by: Option<AuthType>,
    /// Whether an access rule of the source allows the sender this topic, or the sender may do everything.
    pub(super) is_by_rule: bool,
    /// Whether the sender's authenticated name differs from the device's.
    pub(super) is_for_another: bool,
    pub(super) party: PartyId,
    pub(super) pace: Option<Arc<Pace>>,
    pub(super) generation: u64,
}

/// Publisher that a topic requires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Publishing<'r> {
    /// No contract matches the topic.
    Unmatched,
    /// The contract of this stream requires an authenticated name.
    By { stream: &'r str, name: &'r str },
    /// The contract of this stream requires no name.
    ByNobody { stream: &'r str },
}

#[derive(Debug)]
pub(super) struct Target {
    pub(super) contract: Arc<Contract>,
    pub(super) captures: Vec<String>,
    pub(super) placed: StreamTarget,
    pub(super) mask_key: Arc<Secret>,
}

impl Route {
    /// The nearest contract as the end of a sentence; empty if there is none.
    pub(super) fn hint(&self) -> String {
        self.nearest.as_ref().map_or_else(String::new, |nearest| format!("; {nearest}"))
    }

    /// Name of the sender, for people.
    pub(super) fn sender(&self) -> &str {
        [&self.user, &self.client].into_iter().find(|name| !name.is_empty()).unwrap_or(&self.source)
    }

    /// Columns of the contract, for rows of files.
    pub fn columns(&self) -> Option<&Columns> {
        self.target.as_ref()?.contract.columns.as_ref()
    }

    /// Whether a contract matches the topic.
    pub fn has_contract(&self) -> bool {
        self.target.is_some()
    }

    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// `{source}/{device}`, as stored with the events of this route.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Publisher that the topic requires.
    pub fn publishing(&self) -> Publishing<'_> {
        let Some(target) = &self.target else { return Publishing::Unmatched };
        let stream = target.contract.stream();
        match target.contract.publisher_in(&target.captures) {
            Some(name) => Publishing::By { stream, name },
            None => Publishing::ByNobody { stream },
        }
    }

    /// Whether the contract sets `publisher` and requires another name here.
    pub fn requires_other_publisher(&self, name: &str) -> bool {
        self.target.as_ref().is_some_and(|target| {
            let is_written = target.contract.publisher().is_some_and(|publisher| publisher.is_written);
            is_written && target.contract.publisher_in(&target.captures) != Some(name)
        })
    }

    /// Records that an access rule allows the sender this topic.
    pub fn allowed_by_rule(mut self) -> Self {
        self.is_by_rule = true;
        self
    }

    pub(super) fn auth(&self) -> Option<Attribute<'_>> {
        let kind = self.proven_by.filter(|_| self.is_for_another)?;
        Some(Attribute::Auth { kind, name: &self.user })
    }

    /// Limits the rate of the sender.
    pub fn with_pace(mut self, pace: Option<&Arc<Pace>>) -> Self {
        self.pace = pace.cloned();
        self
    }

    /// Whether the sender has a rate limit. Its source then keeps events that must wait.
    pub fn is_paced(&self) -> bool {
        self.pace.is_some()
    }

    pub(super) fn is_over_pace(&self) -> bool {
        self.pace.as_ref().is_some_and(|pace| !pace.wait(self.party).is_zero())
    }

    /// Approximate size in memory, in bytes.
    pub fn bytes(&self) -> usize {
        let words =
            [&self.source, &self.origin, &self.topic, &self.client, &self.user].into_iter().chain(&self.nearest);
        let captures = self.target.iter().flat_map(|target| &target.captures).map(|capture| capture.len() + 24);
        size_of::<Self>() + words.map(String::len).sum::<usize>() + captures.sum::<usize>()
    }

    /// Appends `part` to the device of the origin, to distinguish the parts of a device.
    pub fn with_part(mut self, part: &str) -> Self {
        self.origin.push('/');
        push_path_segment(&mut self.origin, part);
        self
    }
}
