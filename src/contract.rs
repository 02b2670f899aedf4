//! Contracts: declared, versioned agreements on the content of the streams.
//!
//! Promise: an event accepted by [`Contract::read`] conforms to its contract; any other comes back with a reason that
//! names the field. A folder of contracts is either loaded completely or rejected completely, with every problem named.
//!
//! Not here: where events come from (`sources`), how rejected events are handled (`ingest`).

mod bad_json;
mod change;
mod check;
mod columns;
mod command;
mod compact;
mod edit;
mod file;
mod folder;
mod json;
mod nearest;
mod number;
pub mod odoo;
mod pattern;
mod properties;
mod publication;
mod render;
mod schema;
mod terms;

pub use change::incompatibilities;
pub use check::{Contract, ParsedEvent, Publisher, Violation};
pub use columns::{CellType, Column, Columns, NumberFormat};
pub use command::{CommandContract, CommandViolation, RECEIPTS};
pub use edit::with_change;
pub use folder::{Contracts, Sender, TopicMatch};
pub use json::{Pointer, Tree, on_one_line, push_json_string};
pub use publication::Publication;
pub use render::{Renderer, Rendering, STRUCTURED};
pub use terms::{
    Accepts, Classification, Decode, GatewayNames, ID_BYTES_MAX, KEY_BYTES_MAX, Mode, OnViolation, Order, SourceKind,
};
