//! Commands of central systems to devices, machines and Odoo.
//!
//! Promise: a command of unknown fate is never repeated blindly; its adapter reads what is there before it acts again.

mod effect;

pub use effect::{Command, Outcome, Reason};
