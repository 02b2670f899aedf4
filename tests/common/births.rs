//! Sparkplug B messages by the thousand, and a contract for them.

use forebay::ingest::sparkplug::proto::{Metric, MetricValue, Payload};
use prost::Message;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

/// A contract that decodes what comes to the gateway's own listener.
pub fn add_contract(folder: &Path) {
    let text = "name = \"sparkplug\"\nversion = \"1.0.0\"\nowner = \"tests\"\nlane = \"standard\"\ndecode = \"sparkplug-b\"\nmatch = { source = \"mqtt\", topic = \"spBv1.0/{group}/{type}/{node}/#\" }\nkey = \"{group}/{node}\"\n";
    std::fs::write(folder.join("contracts/sparkplug.toml"), text).expect("written");
}

/// A birth that declares `count` metrics whose names have `length` bytes; `stamp` makes the names others.
pub fn birth(count: usize, length: usize, stamp: usize) -> Vec<u8> {
    let metrics = (0..count).map(|number| {
        let mut name = format!("{number:x}/{stamp:x}/");
        name.push_str(&"n".repeat(length.saturating_sub(name.len())));
        let value = Some(MetricValue::Boolean(true));
        Metric { name: Some(name), alias: Some(number as u64), datatype: Some(11), value, ..Metric::default() }
    });
    Payload { seq: Some(0), metrics: metrics.collect(), ..Payload::default() }.encode_to_vec()
}

/// The same with stamp 0, made once: an attack that makes each of its messages anew has no time to send them.
pub fn birth_made_once(count: usize, length: usize) -> Arc<[u8]> {
    type Made = BTreeMap<(usize, usize), Arc<[u8]>>;
    static MADE: Mutex<Made> = Mutex::new(BTreeMap::new());
    let mut made = MADE.lock().expect("no test panics in it");
    Arc::clone(made.entry((count, length)).or_insert_with(|| birth(count, length, 0).into()))
}
