//! Device tables: the meaning of the registers of one type of device, for every unit of that type.
//!
//! Promise: a table that loads can be polled. A table that does not load is refused with all its problems at once, each
//! with file, line, point, the offending value and the allowed values.

mod check;

use super::plan::{BITS_MAX, REGISTERS_MAX};
use super::value::{Encoding, Order, Table, Type};
use crate::setting::{Document, Problem, Span};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq)]
pub struct Device {
    pub description: String,
    /// The groups, in the order of their names.
    pub groups: Vec<Group>,
    /// The points, in the order of the file.
    pub points: Vec<Point>,
    /// Addresses that must not be read.
    pub holes: Vec<Hole>,
    /// The most registers in one answer of the device.
    pub registers_max: u16,
    /// The most bits in one answer of the device.
    pub bits_max: u16,
    /// The longest gap of unused registers that is read to save a request.
    pub gap_max: u16,
}

impl Default for Device {
    fn default() -> Self {
        Self {
            description: String::new(),
            groups: vec![Group::default()],
            points: Vec::new(),
            holes: Vec::new(),
            registers_max: REGISTERS_MAX,
            bits_max: BITS_MAX,
            gap_max: gap_max(),
        }
    }
}

/// Points that are read and reported together.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// Name: the second level of the topic.
    pub name: String,
    pub interval: Duration,
    /// When an event is made.
    pub report: Report,
    /// Least time between two events.
    pub min: Duration,
    /// Time after which an event is made without a change; `None` for never.
    pub max: Option<Duration>,
    /// How long a device may be silent before its values become `bad` instead of `stale`.
    pub bad_after: Duration,
}

impl Default for Group {
    fn default() -> Self {
        Self {
            name: GROUP_DEFAULT.into(),
            interval: INTERVAL_DEFAULT,
            report: Report::Change,
            min: Duration::ZERO,
            max: None,
            bad_after: BAD_AFTER_DEFAULT,
        }
    }
}

/// When an event is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Report {
    /// When a value changes by more than its deadband.
    #[default]
    Change,
    Always,
}

/// A range of addresses that must not be read, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hole {
    /// The table of the addresses.
    pub table: Table,
    pub from: u16,
    pub to: u16,
}

/// By how much a number may differ from the last reported one without being a change.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Deadband {
    /// An amount, in the point's unit of measure.
    Absolute(f64),
    /// A share of the last reported value.
    Relative(f64),
}

/// Which changes of a bit are edges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Edge {
    Rising,
    Falling,
    Both,
}

/// One value of a device.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// Name, unique in the table.
    pub name: String,
    /// Index of the group in the list of the device.
    pub group: usize,
    /// The table that contains it.
    pub table: Table,
    /// First register or bit, from 0 as in the protocol.
    pub address: u16,
    /// Number of registers or bits.
    pub count: u16,
    pub encoding: Encoding,
    pub unit: Option<String>,
    pub deadband: Deadband,
    /// Rollover of a counter: the unscaled number at which it starts again at 0. `None` if the point is no counter.
    pub counter: Option<i128>,
    /// Which changes of a bit are edges.
    pub edge: Option<Edge>,
    /// Numbers in the register that mean "no value".
    pub absent: Vec<i128>,
}

impl Point {
    /// A point at holding register 0 in the first group, with default settings.
    pub fn plain(encoding: Encoding) -> Self {
        Self {
            name: "value".into(),
            group: 0,
            table: Table::Holding,
            address: 0,
            count: encoding.kind.registers().unwrap_or(1),
            encoding,
            unit: None,
            deadband: Deadband::Absolute(0.0),
            counter: None,
            edge: None,
            absent: Vec::new(),
        }
    }
}

/// The group of points that name no group.
const GROUP_DEFAULT: &str = "values";
const INTERVAL_DEFAULT: Duration = Duration::from_secs(5);
/// Replacing a network switch or a cable takes less.
const BAD_AFTER_DEFAULT: Duration = Duration::from_secs(30);
/// Most devices answer for small gaps between their registers; few answer for registers outside of their range.
fn gap_max() -> u16 {
    16
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    description: String,
    #[serde(default)]
    order: Order,
    #[serde(default)]
    first_address: FirstAddress,
    registers_max: Option<u16>,
    bits_max: Option<u16>,
    #[serde(default = "gap_max")]
    gap_max: u16,
    #[serde(default, rename = "hole")]
    holes: Vec<Hole>,
    #[serde(default, rename = "group")]
    groups: BTreeMap<String, FileGroup>,
    #[serde(default, rename = "point")]
    points: Vec<FilePoint>,
}

/// The vendor's number of the first register: some lists count from 1.
#[derive(Debug, Default, Deserialize)]
#[serde(try_from = "u16")]
struct FirstAddress(u16);

impl TryFrom<u16> for FirstAddress {
    type Error = String;
    fn try_from(first: u16) -> Result<Self, String> {
        if first <= 1 { Ok(Self(first)) } else { Err(format!("{first} is not allowed; 0 and 1 are")) }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileGroup {
    interval: Option<Span>,
    #[serde(default)]
    report: Report,
    min: Option<Span>,
    max: Option<Span>,
    bad_after: Option<Span>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FilePoint {
    name: String,
    group: Option<String>,
    #[serde(default)]
    table: Table,
    address: u16,
    r#type: Option<Type>,
    order: Option<Order>,
    length: Option<u16>,
    bit: Option<u8>,
    bits: Option<(u8, u8)>,
    #[serde(default = "one")]
    scale: f64,
    #[serde(default)]
    offset: f64,
    unit: Option<String>,
    #[serde(default)]
    values: BTreeMap<String, String>,
    deadband: Option<FileDeadband>,
    #[serde(default)]
    counter: FileCounter,
    edge: Option<Edge>,
    #[serde(default)]
    absent: Vec<i64>,
}

fn one() -> f64 {
    1.0
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum FileDeadband {
    Number(f64),
    Share(String),
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum FileCounter {
    Is(bool),
    RollsAt { rolls_at: i64 },
}

impl Default for FileCounter {
    fn default() -> Self {
        Self::Is(false)
    }
}

impl Device {
    /// Reads and checks a table.
    pub fn load(file: &Path) -> Result<Self, Vec<Problem>> {
        let document = Document::read(file).map_err(|problem| vec![problem])?;
        Self::read(&document)
    }

    /// Checks a table that was read before.
    pub fn read(document: &Document) -> Result<Self, Vec<Problem>> {
        match document.parse_all() {
            Ok(file) => check::check(file, document),
            Err(problems) => Err(problems.into_iter().map(|problem| check::with_name(document, problem)).collect()),
        }
    }

    /// A point by its name.
    pub fn point(&self, name: &str) -> Option<&Point> {
        self.points.iter().find(|point| point.name == name)
    }
}
