//! Sources: where raw facts come in. Each acknowledges only with a receipt.

pub mod mqtt;
