//! Writing to devices: off unless a rule allows the point, and only within the rule's range.
//!
//! Promise: [`Writer::write`] writes only points that a rule names and only values within its range. A write without
//! an answer is never repeated: the device may have executed it. The caller gets [`NotWritten::Unknown`].

use super::table::{Device, Point};
use super::transport::Ask;
use super::value::{Table, Value};
use serde::Deserialize;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// Writes that may wait for the bus.
const WAITING_MAX: usize = 16;

/// A point that may be written.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WriteRule {
    pub unit: String,
    pub point: String,
    /// Smallest and largest value, in the point's unit of measure; a bit needs no range.
    pub range: Option<(f64, f64)>,
}

/// A point that may be written, and its range.
#[derive(Clone, Debug, PartialEq)]
pub struct WritablePoint {
    unit: usize,
    unit_name: String,
    point: Point,
    range: Option<(f64, f64)>,
}

impl WritablePoint {
    /// Checks a rule against the device tables. `unit` is the index of its unit. The error is the key and the reason.
    pub fn new(rule: &WriteRule, unit: Option<usize>, devices: &[Arc<Device>]) -> Result<Self, (&'static str, String)> {
        let unit = unit.ok_or_else(|| ("unit", format!("\"{}\" is no unit of this source", rule.unit)))?;
        let point = devices.get(unit).and_then(|device| device.point(&rule.point));
        let point = point.ok_or_else(|| ("point", format!("\"{}\" is no point of \"{}\"", rule.point, rule.unit)))?;
        if !matches!(point.table, Table::Coil | Table::Holding) {
            return Err((
                "point",
                format!("\"{}\" is in the table \"{}\", which can only be read", rule.point, point.table.name()),
            ));
        }
        let is_bit = point.table == Table::Coil;
        let is_part = point.scale_from.is_some() || !point.terms.is_empty();
        if (point.encoding.is_read_only() && !is_bit) || is_part {
            let message = format!(
                "\"{}\" cannot be written: it is a text, a part of a register, or a number of several registers",
                rule.point
            );
            return Err(("point", message));
        }
        match rule.range {
            None if is_bit || !point.encoding.words.is_empty() => {}
            None => return Err(("range", "is missing: a number is written within its range only".into())),
            Some((least, most)) if least <= most => {}
            Some((least, most)) => return Err(("range", format!("[{least}, {most}] holds no number"))),
        }
        Ok(Self { unit, unit_name: rule.unit.clone(), point: point.clone(), range: rule.range })
    }

    fn request(&self, value: &Value) -> Result<Ask, NotWritten> {
        let unfit = |why: String| NotWritten::Unfit { point: self.point.name.clone(), why };
        if let Some((least, most)) = self.range {
            let number = value.number().ok_or_else(|| unfit(format!("\"{value}\" is no number")))?;
            if !(least..=most).contains(&number) {
                return Err(unfit(format!("{value} is out of bounds; {least} to {most} are allowed")));
            }
        }
        if self.point.table == Table::Coil {
            return match value {
                Value::Bool(on) => Ok(Ask::WriteCoil(self.point.address, *on)),
                other => Err(unfit(format!("\"{other}\" is neither true nor false"))),
            };
        }
        Ok(Ask::Write(self.point.address, self.point.encoding.encode(value).map_err(unfit)?))
    }
}

/// Why a value was not written, or why the outcome is unknown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotWritten {
    /// The source has no write rule.
    #[error("writing is off: the source has no write rule")]
    Off,
    /// No rule names the point.
    #[error("no write rule allows point \"{point}\" of unit \"{unit}\"")]
    NotAllowed { unit: String, point: String },
    /// The value does not fit the rule or the point.
    #[error("point \"{point}\": {why}")]
    Unfit {
        point: String,
        /// Why the value does not fit.
        why: String,
    },
    /// Too many writes wait for the bus; nothing was written. The caller may retry.
    #[error("{WAITING_MAX} writes wait for the bus already")]
    Busy,
    /// The device refused the write or was not reached; nothing was written.
    #[error("not written: {0}")]
    Refused(String),
    /// The device may have executed the write. The caller must read the point before a retry.
    #[error("it is not known whether it was written: {0}")]
    Unknown(String),
}

/// A write that waits for the bus.
#[derive(Debug)]
pub(super) struct QueuedWrite {
    pub(super) unit: usize,
    pub(super) ask: Ask,
    pub(super) answer: oneshot::Sender<Result<(), NotWritten>>,
}

/// The handle through which commands reach a bus.
#[derive(Clone, Debug)]
pub struct Writer {
    allowed: Arc<[WritablePoint]>,
    sender: mpsc::Sender<QueuedWrite>,
}

/// A handle, and the receiver of its writes.
pub(super) fn channel(allowed: Vec<WritablePoint>) -> (Writer, mpsc::Receiver<QueuedWrite>) {
    let (sender, receiver) = mpsc::channel(WAITING_MAX);
    (Writer { allowed: allowed.into(), sender }, receiver)
}

impl Writer {
    /// Writes a value to a point; returns when the device has confirmed it.
    pub async fn write(&self, unit: &str, point: &str, value: &Value) -> Result<(), NotWritten> {
        if self.allowed.is_empty() {
            return Err(NotWritten::Off);
        }
        let rule = self.allowed.iter().find(|rule| rule.unit_name == unit && rule.point.name == point);
        let rule = rule.ok_or_else(|| NotWritten::NotAllowed { unit: unit.to_owned(), point: point.to_owned() })?;
        let ask = rule.request(value)?;
        let (answer, answered) = oneshot::channel();
        match self.sender.try_send(QueuedWrite { unit: rule.unit, ask, answer }) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => return Err(NotWritten::Busy),
            Err(mpsc::error::TrySendError::Closed(_)) => {
                return Err(NotWritten::Refused("the source has stopped".into()));
            }
        }
        answered.await.unwrap_or_else(|_| Err(NotWritten::Unknown("the source has stopped".into())))
    }
}
