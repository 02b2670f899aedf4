//! Clients at their worst against the real program under the memory limit of the packaged unit.
//!
//! Promise: whatever clients send, in whatever state, the process is never killed for memory; its memory stays within one
//! and a half times its permits; a device that is logged in gets its PUBACKs within a second, and one that is not gets in
//! within ten.
//!
//! Each row of the table is a test: a few seconds, or `FOREBAY_SIEGE_SECONDS` of it (`tests/run --long`: 60).

mod attacks;
mod logins;
mod siege;
