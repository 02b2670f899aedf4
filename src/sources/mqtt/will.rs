//! Wills: what a client wants said if it dies.

use super::parts::{Reader, Value, properties};
use super::wire::{self, Fault};
use crate::clock;
use crate::event::Timestamp;
use crate::ingest::{Beside, Ingest, Route};
use crate::journal::{NotTaken, Waiter};
use crate::link::Protocol;
use crate::memory::Permit;
use std::sync::Arc;
use std::time::Duration;

/// A will as CONNECT says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spoken {
    /// Where it is published.
    pub topic: String,
    /// What it says.
    pub payload: Vec<u8>,
    /// Media type of the payload.
    pub content_type: Option<String>,
    /// W3C trace context.
    pub trace_parent: Option<String>,
    /// How long it waits for the client to come back.
    pub delay: Duration,
}

/// A will that has become part of a session.
#[derive(Debug)]
pub struct Will {
    /// Where it leads.
    pub route: Arc<Route>,
    /// What it says.
    pub spoken: Spoken,
    /// How long after the end of the connection it becomes an event.
    pub delay: Duration,
    /// Covers its bytes, however long it waits.
    pub permit: Permit,
}

impl Spoken {
    /// About how many bytes it takes in memory.
    pub fn bytes(&self) -> usize {
        let texts = [&self.content_type, &self.trace_parent].into_iter().flatten().map(String::len).sum::<usize>();
        size_of::<Will>() + self.topic.len() + self.payload.len() + texts
    }

    /// Reads a will of CONNECT.
    pub fn read(rest: &mut Reader<'_>, protocol: Protocol) -> Result<Self, Fault> {
        let (mut delay, mut content_type, mut trace_parent) = (Duration::ZERO, None, None);
        if protocol == Protocol::V5 {
            properties(rest, &[0x01, 0x02, 0x03, 0x08, 0x09, 0x18], |id, value| {
                match (id, value) {
                    (0x18, value) => delay = Duration::from_secs(value.number().into()),
                    (0x03, value) => content_type = Some(value.text().to_owned()),
                    (0x08, value) => wire::check_response_topic(value.text())?,
                    (_, Value::Pair(name, value)) if wire::is_trace_parent(name, value) => {
                        trace_parent = Some(value.to_owned());
                    }
                    _ => {}
                }
                Ok(())
            })?;
        }
        let topic = rest.text()?;
        wire::check_topic(topic)?;
        Ok(Self { topic: topic.to_owned(), payload: rest.bytes()?.to_vec(), content_type, trace_parent, delay })
    }
}

impl Will {
    /// Makes it an event; returns when it is on its way to the disk, or the journal is closed.
    pub async fn become_event(&self, ingest: &Ingest) {
        let mut waiter = Waiter::default();
        let spoken = &self.spoken;
        let beside = Beside {
            trace_parent: spoken.trace_parent.as_deref(),
            content_type: spoken.content_type.as_deref(),
            ..Beside::default()
        };
        loop {
            let now = Timestamp::from(clock::wall());
            match ingest.accept(&self.route, &spoken.payload, beside, now, &mut waiter) {
                Ok(_) | Err(NotTaken::Closed) => return,
                Err(NotTaken::NoRoom) => ingest.room(&self.route).await,
            }
        }
    }
}
