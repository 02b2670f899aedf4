//! An event on its way to central, whatever it was read from: live events, backlog, replay or dead letters.

use super::pace::Sending;
use crate::contract::Rendering;
use crate::event::{Record, Timestamp};
use crate::journal::Published;
use std::sync::Arc;

#[derive(Debug)]
pub(super) struct Outgoing<'a> {
    /// Offset in the log that it was read from.
    pub offset: u64,
    pub record: Record<'a>,
    pub published: &'a Arc<Published>,
    pub sequence: u64,
    /// When the gateway accepted it.
    pub recorded: Timestamp,
    pub mark: Option<Mark<'a>>,
}

/// Tells central that a publish is no live event: with a user property, and with a topic level if one is configured or if
/// the protocol has no properties. The payload does not change.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark<'a> {
    pub property: &'static str,
    pub topic_level: Option<&'a str>,
}

impl<'a> Mark<'a> {
    pub(super) fn backfill(sending: &'a Sending) -> Self {
        Self { property: "backfill", topic_level: sending.backfill_topic.as_deref() }
    }

    pub(super) fn apply(&self, out: &mut Rendering, is_v5: bool) {
        if is_v5 {
            out.properties.push((self.property.into(), "true".to_owned()));
        }
        if let Some(level) = self.topic_level.or((!is_v5).then_some(self.property)) {
            out.topic.splice(0..0, level.bytes().chain([b'/']));
        }
    }
}
