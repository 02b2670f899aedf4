//! A Modbus bus: its port, and one request to each of its devices.
//!
//! Invariant: the check only reads, one request at a time, and leaves a bus alone that a running gateway has: a serial port
//! has one owner, and many devices serve one connection.

use super::broker;
use super::finding::{Part, STEP_WAIT_MAX};
use crate::clock;
use crate::sources::modbus::address::Address;
use crate::sources::modbus::plan::plan;
use crate::sources::modbus::table::Device;
use crate::sources::modbus::transport::{Ask, Fault, Line};
use crate::sources::modbus::{Config, Unit};
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};

/// Pause before each request: commands spare the devices.
const PAUSE_MIN: Duration = Duration::from_millis(20);
/// Pause between two connections, for devices that serve one.
const CONNECTION_PAUSE: Duration = Duration::from_millis(300);
/// Time for all devices: an operator waits for the command.
const BUS_WAIT_MAX: Duration = Duration::from_secs(60);
/// Wait for a late response before the next request, in timeouts.
const LATE_TIMEOUTS: u32 = 5;

pub(super) async fn check(bus: &Config, is_running: bool, part: &mut Part<'_>) {
    if is_running {
        return part.unknown("the running gateway has this bus; `forebay devices` shows what its devices answer");
    }
    let Some(ready) = &bus.ready else { return };
    match Address::parse(&bus.url) {
        Err(error) => return part.fault(error),
        Ok(address) => {
            if let Some(place) = address.place() {
                if broker::reach("", place, part).await.is_none() {
                    return;
                }
                sleep(CONNECTION_PAUSE).await;
            }
        }
    }
    let mut line = Line::new(ready.dial.clone(), bus.timeout.0, bus.timeout.0 * LATE_TIMEOUTS);
    let began: Instant = clock::instant();
    for (index, (unit, device)) in bus.units.iter().zip(&ready.devices).enumerate() {
        if clock::instant().duration_since(began) > BUS_WAIT_MAX {
            return part.unknown(format!("{} more devices were not tried", bus.units.len() - index));
        }
        sleep(bus.pause.map_or(PAUSE_MIN, |pause| pause.0.max(PAUSE_MIN))).await;
        if !check_unit(&mut line, (unit, device), u32::from(bus.retries), part).await {
            return;
        }
    }
}

/// Reads the first registers that the gateway would read. Returns `false` if there is no connection to the bus.
async fn check_unit(line: &mut Line, (unit, device): (&Unit, &Device), retries: u32, part: &mut Part<'_>) -> bool {
    let name = format!("unit {} ({})", unit.unit, unit.name);
    let Some(read) = (0..device.groups.len()).flat_map(|group| plan(device, group)).next() else {
        part.unknown(format!("{name} has no point that is read"));
        return true;
    };
    let what = format!("{} {} to {}", read.table.name(), read.address, read.end().saturating_sub(1));
    let ask = Ask::Read(read.table, read.address, read.count);
    let mut attempts = 0;
    let answer = loop {
        let answer = timeout(STEP_WAIT_MAX, line.exchange(unit.unit, &ask)).await;
        let answer = answer.unwrap_or(Err(Fault::NoAnswer(STEP_WAIT_MAX)));
        attempts += 1;
        match &answer {
            Err(fault) if attempts <= retries && fault.is_unanswered() => line.close(),
            _ => break answer,
        }
    };
    match answer {
        Ok(_) => part.good(format!("{name} answers: {what} can be read")),
        Err(Fault::NoConnection(why)) => {
            part.fault(format!("{why}; a serial port must belong to a group of the service's user, such as dialout"));
            return false;
        }
        Err(fault @ Fault::Refused { .. }) => part.fault(format!(
            "{name} answers, and refuses {what}: {fault}; compare the device table \"{}\" with its manual",
            unit.device
        )),
        Err(fault) => {
            line.close();
            part.fault(format!("{name}: {fault}; check its unit number, and `forebay modbus scan`"));
        }
    }
    true
}
