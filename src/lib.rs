//! Forebay, an edge gateway for the events of a plant.
//!
#![doc = include_str!("README.md")]
#![cfg_attr(not(test), warn(unreachable_pub))]
#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "unit tests take any moment as a beginning"))]

#[cfg(test)]
extern crate self as forebay;
/// A simulation of the whole gateway, with access to crate internals.
#[cfg(test)]
#[path = "../tests/model.rs"]
mod model;

pub mod cli;
pub mod demo;
pub mod gateway;

pub mod admin;
pub mod config;

pub mod command;
pub mod ledger;
pub mod survival;
pub mod timekeeper;
pub mod watch;

// The path of an event.
pub mod sources;

pub(crate) mod inflate;
pub mod ingest;

pub mod journal;

pub mod forward;

pub mod link;

pub mod local;
pub mod odoo;
pub mod security;

pub mod contract;
pub mod event;
pub mod mqtt;

pub mod api;
pub mod clock;
pub mod memory;
pub mod secret;
pub mod service;
pub mod setting;
pub mod shutdown;
pub mod telemetry;
pub mod tls;

mod backoff;
pub mod http;
mod origin;
mod rate;
mod runtime;
