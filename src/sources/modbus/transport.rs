//! The transport of a bus: connections, requests and answers.
//!
//! Promise: [`Line::exchange`] returns the answer to that very request. A late answer is never taken for a later one: over
//! TCP transaction numbers tell them apart. Frames of serial lines have none; there [`LateAnswers`] decides when answers of
//! the device can be trusted again.
//! Invariant: one request at a time, each with its timeout, with the configured pause between two.

mod ask;
mod connection;
mod dial;
mod fault;
mod late_answers;
mod line;
mod serial;
mod settling;
mod wire;

pub use ask::{Ask, ResponseShape};
pub use connection::Connection;
pub use dial::Dial;
pub use fault::Fault;
pub use late_answers::LateAnswers;
pub use line::Line;
