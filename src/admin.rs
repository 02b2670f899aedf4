//! The admin socket: HTTP over a Unix socket, for the command line; metrics and health over TCP, for monitoring.
//!
//! Promise: the mode of the socket file decides who may connect; a request that changes something is refused unless the
//! audit can name its user; every change is audited.
//!
//! Not here: the types that cross the socket (`api`).

mod caller;
pub(crate) mod certificates;
mod clock;
mod failures;
mod handles;
mod health;
mod journal;
mod letters;
mod lines;
mod lists;
mod metrics;
mod monitoring;
mod odoo;
mod operations;
mod reload;
mod replay;
mod request;
mod routes;
mod server;
mod socket;
mod status;
mod streaming;
mod tail;

pub use failures::{Failure, Failures};
pub use handles::{Configured, Handles, LinkHandle, MonitoringState, SourceHandle, View};
pub use health::Health;
pub use monitoring::monitor;
pub use reload::{ReloadBy, ReloadOrder, Reloaded, Reloading};
pub use server::serve;
pub use socket::listen;
