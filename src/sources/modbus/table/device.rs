//! A device table as it is polled: groups, points, holes and limits.

use super::super::counter::CounterRule;
use super::super::value::{Absent, Encoding, Table};
use serde::Deserialize;
use std::time::Duration;

/// The most registers in one answer, by the Modbus standard.
pub const REGISTERS_MAX: u16 = 125;
/// The most bits in one answer, by the Modbus standard.
pub const BITS_MAX: u16 = 2000;
/// Points of a device: four times as many as some thirty requests of the largest size can read.
pub const POINTS_MAX: usize = 10_000;

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
    /// The number that the table gives to the first register: 0 or 1.
    pub first_address: u16,
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
            first_address: 0,
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
    /// What the counter can do; `None` if the point is no counter.
    pub counter: Option<CounterRule>,
    /// Which changes of a bit are edges.
    pub edge: Option<Edge>,
    /// Contents of the registers that mean "no value".
    pub absent: Vec<Absent>,
    /// The point whose value is the exponent of ten of this one's scale: an index in the list of the device.
    pub scale_from: Option<usize>,
    /// Points whose values are added to this one.
    pub terms: Vec<Term>,
}

/// A point that is a part of another one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Term {
    /// Index in the list of the device.
    pub point: usize,
    pub factor: f64,
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
            scale_from: None,
            terms: Vec::new(),
        }
    }

    /// The points that are needed for its value.
    pub fn needs(&self) -> impl Iterator<Item = usize> + '_ {
        self.scale_from.into_iter().chain(self.terms.iter().map(|term| term.point))
    }

    /// The address behind it.
    pub fn end(&self) -> u32 {
        u32::from(self.address) + u32::from(self.count)
    }
}

impl Device {
    /// A point by its name.
    pub fn point(&self, name: &str) -> Option<&Point> {
        self.points.iter().find(|point| point.name == name)
    }

    /// Registers in words, as the table numbers them: `holding 3`, or `holding 3 to 4`. `end` is behind the last one.
    pub fn place(&self, table: Table, from: u32, end: u32) -> String {
        let (table, first) = (table.name(), u32::from(self.first_address));
        match end.saturating_sub(from) {
            0 | 1 => format!("{table} {}", from + first),
            _ => format!("{table} {} to {}", from + first, end + first - 1),
        }
    }

    /// The first address, and the one behind the last, that one request has to read for the value of a point: its own, and
    /// those of the points that it needs.
    pub fn extent(&self, index: usize) -> (u32, u32) {
        let point = &self.points[index];
        let own = (u32::from(point.address), point.end());
        let needed = point.needs().map(|index| &self.points[index]);
        needed.fold(own, |(from, end), point| (from.min(u32::from(point.address)), end.max(point.end())))
    }
}

/// The group of points that name no group.
pub(super) const GROUP_DEFAULT: &str = "values";
pub(super) const INTERVAL_DEFAULT: Duration = Duration::from_secs(5);
/// Replacing a network switch or a cable takes less.
pub(super) const BAD_AFTER_DEFAULT: Duration = Duration::from_secs(30);
/// Most devices answer for small gaps between their registers; few answer for registers outside of their range.
pub(super) fn gap_max() -> u16 {
    16
}
