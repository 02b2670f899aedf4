//! Requests that show, requeue, discard and edit dead letters.
//!
//! Promise: a requeued event keeps its id. A letter that still breaks its contract is refused with the violation. Every
//! decision is audited; repeating it has no effect.

mod decision;
mod requeue;
mod selection;
mod show;

pub(super) use decision::{LetterAction, decide_all, edit};
pub(super) use show::{list, show};
