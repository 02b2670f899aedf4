//! A device table as it is written.

use super::super::value::{Notation, Order, Table, Type};
use super::device::{Edge, Hole, Report, gap_max};
use crate::setting::Span;
use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use std::collections::BTreeMap;
use std::fmt;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    #[serde(default)]
    pub(super) description: String,
    #[serde(default)]
    pub(super) order: Order,
    #[serde(default)]
    pub(super) first_address: FirstAddress,
    pub(super) registers_max: Option<u16>,
    pub(super) bits_max: Option<u16>,
    #[serde(default = "gap_max")]
    pub(super) gap_max: u16,
    #[serde(default, rename = "hole")]
    pub(super) holes: Vec<Hole>,
    #[serde(default, rename = "group")]
    pub(super) groups: BTreeMap<String, FileGroup>,
    #[serde(default, rename = "point")]
    pub(super) points: Vec<FilePoint>,
}

/// The vendor's number of the first register: some lists count from 1.
#[derive(Debug, Default, Deserialize)]
#[serde(try_from = "u16")]
pub(super) struct FirstAddress(pub(super) u16);

impl TryFrom<u16> for FirstAddress {
    type Error = String;
    fn try_from(first: u16) -> Result<Self, String> {
        if first <= 1 { Ok(Self(first)) } else { Err(format!("{first} is not allowed; 0 and 1 are")) }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileGroup {
    pub(super) interval: Option<Span>,
    #[serde(default)]
    pub(super) report: Report,
    pub(super) min: Option<Span>,
    pub(super) max: Option<Span>,
    pub(super) bad_after: Option<Span>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FilePoint {
    pub(super) name: String,
    pub(super) group: Option<String>,
    #[serde(default)]
    pub(super) table: Table,
    pub(super) address: u16,
    pub(super) r#type: Option<Type>,
    pub(super) order: Option<Order>,
    pub(super) length: Option<u16>,
    pub(super) bit: Option<u8>,
    pub(super) bits: Option<(u8, u8)>,
    #[serde(default = "one")]
    pub(super) scale: f64,
    #[serde(default)]
    pub(super) offset: f64,
    pub(super) unit: Option<String>,
    #[serde(default)]
    pub(super) values: BTreeMap<String, String>,
    pub(super) deadband: Option<FileDeadband>,
    #[serde(default)]
    pub(super) counter: FileCounter,
    pub(super) edge: Option<Edge>,
    #[serde(default)]
    pub(super) absent: Vec<Notation>,
    pub(super) encoding: Option<String>,
    pub(super) padding: Option<String>,
    pub(super) scale_from: Option<String>,
    #[serde(default)]
    pub(super) add: Vec<FileTerm>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileTerm {
    pub(super) point: String,
    #[serde(default = "one")]
    pub(super) factor: f64,
}

fn one() -> f64 {
    1.0
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a number, or a share in quotes such as \"1%\"")]
pub(super) enum FileDeadband {
    Number(f64),
    Share(String),
}

/// Whether the point is a counter, and what the counter can do.
#[derive(Debug, Default)]
pub(super) struct FileCounter(pub(super) Option<FileCounterRule>);

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileCounterRule {
    pub(super) rolls_at: Option<Notation>,
    pub(super) rate_max: Option<f64>,
}

impl<'de> Deserialize<'de> for FileCounter {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = FileCounter;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("true, or a table such as { rolls_at = 1000000, rate_max = 5 }")
            }
            fn visit_bool<E: de::Error>(self, is_counter: bool) -> Result<FileCounter, E> {
                Ok(FileCounter(is_counter.then(FileCounterRule::default)))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<FileCounter, A::Error> {
                FileCounterRule::deserialize(MapAccessDeserializer::new(map)).map(|rule| FileCounter(Some(rule)))
            }
        }
        deserializer.deserialize_any(Either)
    }
}
