//! Modbus against devices that nobody here wrote: pymodbus over TCP, TLS and serial lines.
//! `tests/foreign/setup` installs it.

mod commands;
mod events;
mod full;
mod lines;
mod lists;
mod plant;
mod quirks;
mod quirky;
mod serial;
mod styles;
mod writing;
