//! Every test that needs more than one module: one program, so that it is linked once.

#![allow(missing_docs, clippy::unwrap_used)]

mod bad_disk;
mod broker_source;
mod central;
mod clock;
mod common;
mod conformance;
mod contracts;
mod dead;
mod demo;
mod export;
mod foreign;
mod fuzz;
mod golden;
mod http;
mod journal;
mod lanes;
mod ledger;
mod link;
mod listener;
mod modbus;
mod nothing_lost;
mod odoo;
mod operator;
mod outage;
mod power_cut;
mod power_cut_real;
mod refusals;
mod reload;
mod replay;
mod seal;
mod service;
mod sessions;
mod sparkplug;
mod tidy;
