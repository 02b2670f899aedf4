//! Device tables: the meaning of the registers of one type of device, for every unit of that type.
//!
//! Promise: a table that loads can be polled. A table that does not load is refused with all its problems at once, each
//! with file, line, point, the offending value and the allowed values.

mod check;
mod device;
mod file;
mod problem;

pub use device::{BITS_MAX, Deadband, Device, Edge, Group, Hole, POINTS_MAX, Point, REGISTERS_MAX, Report, Term};
