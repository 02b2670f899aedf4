//! Sparkplug B messages by the thousand, and a contract for them.

use forebay::ingest::sparkplug::proto::{Metric, MetricValue, Payload};
use prost::Message;
use std::path::Path;

/// A contract that decodes what comes to the gateway's own listener.
pub fn add_contract(folder: &Path) {
    let text = "name = \"sparkplug\"\nversion = \"1.0.0\"\nowner = \"tests\"\nlane = \"standard\"\ndecode = \"sparkplug-b\"\nmatch = { source = \"mqtt\", topic = \"spBv1.0/{group}/{type}/{node}/#\" }\nkey = \"{group}/{node}\"\n";
    std::fs::write(folder.join("contracts/sparkplug.toml"), text).expect("written");
}

/// A birth that declares `count` metrics whose names have `length` bytes; `stamp` makes the names others.
pub fn birth(count: usize, length: usize, stamp: usize) -> Vec<u8> {
    let metrics = (0..count).map(|number| {
        let mut name = format!("{number:x}/{stamp:x}/");
        name.extend(std::iter::repeat_n('n', length.saturating_sub(name.len())));
        let value = Some(MetricValue::Boolean(true));
        Metric { name: Some(name), alias: Some(number as u64), datatype: Some(11), value, ..Metric::default() }
    });
    Payload { seq: Some(0), metrics: metrics.collect(), ..Payload::default() }.encode_to_vec()
}
