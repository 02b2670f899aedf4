//! The broker's answers to publishes.

use super::error::LinkError;
use super::session::Session;
use crate::mqtt::client::{Rejection, Reply};

/// What the broker says about one publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Accepted,
    /// The broker accepted it, but its topic has no subscriber.
    NoSubscribers,
    Rejected(Rejection),
}

impl Session {
    /// Returns the next answer that has arrived, with the packet id of its publish. A DISCONNECT is an error.
    pub(crate) fn next_answer(&mut self) -> Result<Option<(u16, Verdict)>, LinkError> {
        while let Some(reply) = self.next_reply()? {
            match reply {
                Reply::PingResponse | Reply::Connected { .. } => {}
                Reply::Acknowledged(id) => return Ok(Some((id, Verdict::Accepted))),
                Reply::NoSubscribers(id) => return Ok(Some((id, Verdict::NoSubscribers))),
                Reply::Rejected(id, rejection) => return Ok(Some((id, Verdict::Rejected(rejection)))),
                Reply::ConnectRejected(reason) | Reply::Disconnected(reason) => return Err(LinkError::Ended(reason)),
            }
        }
        Ok(None)
    }
}
