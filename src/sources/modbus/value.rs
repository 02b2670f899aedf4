//! Values: decoding of registers to values, and encoding of values to registers.
//!
//! Promise: [`Encoding::decode`] returns a value of the declared type or the reason why there is none.
//! [`Encoding::encode`] is its inverse where one exists.

mod absent;
mod encoding;
mod kind;
mod order;
mod text;

pub use absent::{Absent, Notation};
pub use encoding::{Encoding, SCALE_EXPONENT_MAX};
pub use kind::{Table, Type, Value};
pub use order::Order;
pub use text::TextFormat;
