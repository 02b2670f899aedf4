//! The settings of a bus, with their checks.

use super::address::{self, Address, Serial};
use super::table::Device;
use super::transport::Dial;
use super::write::{WritablePoint, WriteRule};
use crate::setting::{Findings, Problem, Span, check_word};
use crate::tls::ClientFiles;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// The configuration of a bus.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of the source; part of every event's source.
    pub name: String,
    /// Address of the bus: `tcp://`, `tls://`, `rtu-tcp://` or `rtu:/dev/…`.
    pub url: String,
    /// Settings of the serial port.
    pub serial: Option<Serial>,
    #[serde(default)]
    pub tls: ClientFiles,
    /// Folder of the device tables.
    #[serde(default = "devices")]
    pub devices: PathBuf,
    /// How long a device may take to answer.
    #[serde(default = "timeout")]
    pub timeout: Span,
    /// Number of repeats of a request before the device counts as silent.
    #[serde(default = "retries")]
    pub retries: u8,
    /// Pause between an answer and the next request; by default 3.5 character times on a serial port, else none.
    pub pause: Option<Span>,
    /// Pause between connecting and the first request.
    #[serde(default = "connect_pause")]
    pub connect_pause: Span,
    /// Whether an RS-485 adapter echoes requests; by default that is recognised.
    pub echo: Option<bool>,
    /// Whether a gateway answers with transaction numbers of its own.
    #[serde(default)]
    pub ignore_transaction_numbers: bool,
    /// Pause before a silent device is asked again; it doubles each time.
    #[serde(default = "backoff")]
    pub backoff: Span,
    #[serde(default = "backoff_max")]
    pub backoff_max: Span,
    /// The devices on the bus.
    #[serde(default, rename = "unit")]
    pub units: Vec<Unit>,
    /// Rules for writes. Without a rule the source writes nothing.
    #[serde(default)]
    pub write: Vec<WriteRule>,
    /// What the check has loaded; `None` before it, and if it has found problems.
    #[serde(skip)]
    pub ready: Option<Ready>,
}

/// A device on a bus.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unit {
    /// Name: the first level of the topic, and the device in every event's source.
    pub name: String,
    /// Unit identifier on the bus.
    #[serde(default = "unit")]
    pub unit: u8,
    /// Name of the device table: a file in the folder, without `.toml`.
    pub device: String,
}

fn devices() -> PathBuf {
    "devices".into()
}
fn timeout() -> Span {
    Span(Duration::from_secs(1))
}
fn retries() -> u8 {
    1
}
fn connect_pause() -> Span {
    Span(Duration::ZERO)
}
fn backoff() -> Span {
    Span(Duration::from_secs(1))
}
fn backoff_max() -> Span {
    Span(Duration::from_secs(60))
}
/// The factory setting of most devices.
fn unit() -> u8 {
    1
}

/// Devices on one bus; a serial bus allows 247.
const UNITS_MAX: usize = 1024;

/// A checked configuration: the connection settings, device tables and write rules of a bus.
#[derive(Clone, Debug, PartialEq)]
pub struct Ready {
    pub dial: Dial,
    /// The device table of each unit.
    pub devices: Vec<Arc<Device>>,
    /// The points that may be written.
    pub writable: Vec<WritablePoint>,
}

impl Config {
    /// Checks the values. The error is the key and the reason.
    fn check_values(&self) -> Result<Address, (String, String)> {
        let wrong = |key: &str, message: String| (key.to_owned(), message);
        let address = address::check(&self.url, self.serial.as_ref(), &self.tls).map_err(|(key, m)| wrong(key, m))?;
        let bounded = |key: &str, value: Span, least: Duration, most: Duration| {
            let message = || format!("{value} is out of bounds; {} to {} are allowed", Span(least), Span(most));
            if (least..=most).contains(&value.0) { Ok(()) } else { Err(wrong(key, message())) }
        };
        let millisecond = Duration::from_millis(1);
        bounded("timeout", self.timeout, millisecond * 10, Duration::from_secs(60))?;
        bounded("backoff", self.backoff, millisecond * 10, Duration::from_secs(3600))?;
        bounded("backoff_max", self.backoff_max, self.backoff.0, Duration::from_secs(3600))?;
        if let Some(pause) = self.pause {
            bounded("pause", pause, Duration::ZERO, Duration::from_secs(10))?;
        }
        bounded("connect_pause", self.connect_pause, Duration::ZERO, Duration::from_secs(60))?;
        let is_rtu = address.is_anonymous();
        if self.echo.is_some() && !is_rtu {
            let message = format!("is set, but \"{}\" is no serial line, so nothing echoes; remove it", self.url);
            return Err(wrong("echo", message));
        }
        if self.ignore_transaction_numbers && is_rtu {
            let message = format!("is set, but frames of \"{}\" have no transaction numbers; remove it", self.url);
            return Err(wrong("ignore_transaction_numbers", message));
        }
        if self.retries > 10 {
            return Err(wrong("retries", format!("{} are too many; 0 to 10 are allowed", self.retries)));
        }
        if self.units.is_empty() || self.units.len() > UNITS_MAX {
            return Err(wrong("unit", format!("there are {}; a bus has 1 to {UNITS_MAX}", self.units.len())));
        }
        for (index, unit) in self.units.iter().enumerate() {
            let key = |part: &str| format!("unit[{index}].{part}");
            for (part, word) in [("name", &unit.name), ("device", &unit.device)] {
                check_word(word).map_err(|message| (key(part), message))?;
            }
            if self.units[..index].iter().any(|other| other.name == unit.name) {
                return Err((key("name"), format!("\"{}\" is taken by another unit; names are unique", unit.name)));
            }
            if address.is_anonymous() && !(1..=247).contains(&unit.unit) {
                let message = format!("{} is no number on a serial bus; 1 to 247 are allowed", unit.unit);
                return Err((key("unit"), message));
            }
        }
        Ok(address)
    }

    /// Checks the settings, loads the device tables, and checks the settings against them. Problems of a
    /// device table name its file.
    pub(super) fn load_tables(&mut self, found: &mut Findings<'_>) {
        let address = match self.check_values() {
            Ok(address) => address,
            Err((key, message)) => return found.problem(&key, message),
        };
        let mut loaded: BTreeMap<&str, Option<Arc<Device>>> = BTreeMap::new();
        let mut devices = Vec::new();
        for (index, unit) in self.units.iter().enumerate() {
            let load = || self.load_table(&unit.device, &format!("unit[{index}].device"), found);
            devices.extend(loaded.entry(&unit.device).or_insert_with(load).clone());
        }
        if devices.len() < self.units.len() {
            return;
        }
        let mut writable = Vec::new();
        for (index, rule) in self.write.iter().enumerate() {
            let unit = self.units.iter().position(|unit| unit.name == rule.unit);
            match WritablePoint::new(rule, unit, &devices) {
                Ok(point) => writable.push(point),
                Err((key, message)) => found.problem(&format!("write[{index}].{key}"), message),
            }
        }
        let dial = Dial {
            serial: self.serial.unwrap_or_default(),
            tls: self.tls.clone(),
            pause: self.pause.map(|pause| pause.0),
            connect_pause: self.connect_pause.0,
            echo: self.echo,
            ignores_numbers: self.ignore_transaction_numbers,
            ..Dial::new(address, self.timeout.0.max(CONNECT_WAIT_MIN))
        };
        self.ready = (writable.len() == self.write.len()).then_some(Ready { dial, devices, writable });
    }

    fn load_table(&self, device: &str, key: &str, found: &mut Findings<'_>) -> Option<Arc<Device>> {
        let file = self.devices.join(format!("{device}.toml"));
        if !file.is_file() {
            found.problem(key, format!("\"{device}\" has no table: there is no {}", file.display()));
            return None;
        }
        let add = |problems: Vec<Problem>| problems.into_iter().for_each(|problem| found.add(problem));
        Device::load(&file).map(Arc::new).map_err(add).ok()
    }
}

/// Connecting and the TLS handshake take longer than an answer.
const CONNECT_WAIT_MIN: Duration = Duration::from_secs(2);
