//! Every test that needs more than one module: one program, so that it is linked once.

#![allow(missing_docs, clippy::unwrap_used)]

mod common;
mod contracts;
mod fuzz;
mod golden;
mod journal;
mod link;
mod listener;
mod nothing_lost;
mod power_cut;
mod power_cut_real;
mod refusals;
mod tidy;
