//! The reason codes of PUBACK that refuse a publish, and what a further attempt is worth.
//!
//! Promise: every code from 0x80 on is a rejection, also one that the standard does not know; below, it is an acceptance.

use super::reason::ReasonCode;

/// Reason for which the broker rejected a publish: code and its name in the specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// A further attempt would fail as well.
    Permanent(u8, &'static str),
    /// A later attempt may succeed.
    Temporary(u8, &'static str),
    /// The standard gives the code no meaning in a PUBACK: a few further attempts tell.
    Unclear(u8, &'static str),
}

/// The lowest reason code of an error (MQTT 5, section 2.4).
const ERROR_MIN: u8 = 0x80;

impl Rejection {
    /// No Matching Subscribers, which counts as a temporary rejection if `require_subscriber` is set.
    pub const NO_SUBSCRIBERS: Self =
        Self::Temporary(ReasonCode::NoMatchingSubscribers.value(), "no matching subscribers");

    /// Returns the rejection that a reason code of PUBACK stands for; `None` for an acceptance.
    pub(crate) fn of(code: u8) -> Option<Self> {
        if code < ERROR_MIN {
            return None;
        }
        Some(match code {
            0x87 => Self::Permanent(code, "not authorized"),
            0x90 => Self::Permanent(code, "topic name invalid"),
            0x95 => Self::Permanent(code, "packet too large"),
            0x99 => Self::Permanent(code, "payload format invalid"),
            0x80 => Self::Temporary(code, "unspecified error"),
            0x83 => Self::Temporary(code, "implementation specific error"),
            0x91 => Self::Temporary(code, "packet identifier in use"),
            0x97 => Self::Temporary(code, "quota exceeded"),
            // Codes of other packets that tell the load or the state of the broker, not something about the event.
            0x89 => Self::Temporary(code, "server busy"),
            0x8B => Self::Temporary(code, "server shutting down"),
            0x93 => Self::Temporary(code, "receive maximum exceeded"),
            0x96 => Self::Temporary(code, "message rate too high"),
            0x9F => Self::Temporary(code, "connection rate exceeded"),
            _ => Self::Unclear(code, "a code that has no meaning in a PUBACK"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_from_0x80_on_rejects_and_every_lower_one_accepts() {
        for code in 0..=u8::MAX {
            assert_eq!(Rejection::of(code).is_some(), code >= 0x80, "0x{code:02x}");
        }
        let unclear = (0x80..=u8::MAX).filter(|code| matches!(Rejection::of(*code), Some(Rejection::Unclear(..))));
        assert_eq!(unclear.count(), 128 - 13);
    }
}
