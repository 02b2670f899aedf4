//! Why a request has no answer, in words.

use crate::setting::Span;
use std::time::Duration;
use tokio_modbus::ExceptionCode;

/// Why a request has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The device answered with an exception.
    Refused {
        code: u8,
        /// The meaning of the exception.
        words: String,
    },
    /// No answer arrived within this timeout.
    NoAnswer(Duration),
    /// Bytes arrived within this timeout that are no answer, and this is what they are.
    NoFit(Duration, String),
    /// The answer did not fit the request, or the connection ended.
    Broken(String),
    /// No connection could be made.
    NoConnection(String),
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused { words, .. } => f.write_str(words),
            Self::NoAnswer(timeout) => write!(f, "no answer within {}", Span(*timeout)),
            Self::NoFit(timeout, what) => write!(f, "no answer within {}; {what}", Span(*timeout)),
            Self::Broken(why) | Self::NoConnection(why) => f.write_str(why),
        }
    }
}

impl Fault {
    pub(super) fn of(code: ExceptionCode) -> Self {
        let (code, meaning) = (u8::from(code), meaning(code));
        Self::Refused { code, words: format!("exception {code}: {meaning}") }
    }

    /// Whether the device is busy, so that an immediate repeat may succeed.
    pub fn is_busy(&self) -> bool {
        matches!(self, Self::Refused { code: 5 | 6, .. })
    }

    /// Whether the connection may still carry an answer, so that it cannot be used as if nothing had happened.
    pub fn is_unanswered(&self) -> bool {
        matches!(self, Self::NoAnswer(_) | Self::NoFit(..) | Self::Broken(_))
    }

    /// Whether the device itself did not answer; a Modbus gateway in front of it may have.
    pub fn is_absence(&self) -> bool {
        !matches!(self, Self::Refused { code, .. } if !matches!(code, 10 | 11))
    }
}

fn meaning(code: ExceptionCode) -> &'static str {
    match u8::from(code) {
        1 => "illegal function, the device does not serve this kind of request",
        2 => "illegal address, the device has no such register",
        3 => "illegal value, the device does not take this length or value",
        4 => "device failure, the device could not execute the request",
        5 => "acknowledge, the device needs longer",
        6 => "busy, the device executes another command",
        8 => "memory parity error in the device",
        10 => "gateway path unavailable, the gateway in front of the device is set up wrongly or overloaded",
        11 => "gateway target silent, the device behind the gateway does not answer",
        _ => "not an exception of the Modbus standard",
    }
}
