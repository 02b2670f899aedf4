//! Forebay, an edge gateway for the events of a plant.
//!
#![doc = include_str!("README.md")]

#[cfg(test)]
extern crate self as forebay;
/// A simulation of the whole gateway, with access to crate internals.
#[cfg(test)]
#[path = "../tests/model.rs"]
mod model;

pub mod admin;
pub mod api;
mod backoff;
pub mod cli;
pub mod clock;
pub mod config;
pub mod contract;
pub mod demo;
pub mod event;
pub mod forward;
pub mod gateway;
pub mod http;
pub mod ingest;
pub mod journal;
pub mod ledger;
pub mod link;
pub mod local;
pub mod memory;
pub mod mqtt;
pub mod odoo;
mod origin;
mod rate;
mod runtime;
pub mod secret;
pub mod security;
pub mod service;
pub mod setting;
pub mod shutdown;
pub mod sources;
pub mod survival;
pub mod telemetry;
pub mod timekeeper;
pub mod tls;
pub mod watch;
