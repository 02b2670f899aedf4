//! Every test that needs more than one module: one program, so that it is linked once.

#![allow(missing_docs, clippy::unwrap_used)]

mod broker_source;
mod common;
mod conformance;
mod contracts;
mod demo;
mod foreign;
mod fuzz;
mod golden;
mod http;
mod journal;
mod link;
mod listener;
mod nothing_lost;
mod odoo;
mod operator;
mod power_cut;
mod power_cut_real;
mod refusals;
mod sessions;
mod sparkplug;
mod tidy;
