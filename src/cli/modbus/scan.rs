//! `forebay modbus scan`: finds the devices on a bus, or the registers of a device.
//!
//! Promise: a device that answers anything is found, with what it says; a register is found only if it can be read.

use super::paced_client::{Bus, FIRST, PacedClient, parse_name};
use crate::clock;
use crate::sources::modbus::transport::{Ask, Fault};
use crate::sources::modbus::value::Table;
use crate::telemetry::shown;
use anyhow::bail;
use clap::Args;
use serde_json::json;
use std::io::Write;
use std::process::ExitCode;

#[derive(Debug, Args)]
pub(in super::super) struct Scan {
    #[command(flatten)]
    bus: Bus,
    /// Unit numbers to scan, such as 1-247
    #[arg(long, value_parser = range::<u8>, default_value = "1-247")]
    units: (u8, u8),
    /// Table to scan: coil, discrete, holding or input
    #[arg(long, value_parser = parse_name::<Table>, default_value = "holding")]
    table: Table,
    /// Addresses to scan in a single device (--units N-N); without it, the command scans for devices
    #[arg(long, value_parser = range::<u16>)]
    addresses: Option<(u16, u16)>,
}

/// Parses a number such as `3`, or a range such as `1-247`.
fn range<T: std::str::FromStr + PartialOrd + Copy>(text: &str) -> Result<(T, T), String> {
    let (from, to) = text.split_once('-').unwrap_or((text, text));
    match (from.trim().parse::<T>(), to.trim().parse::<T>()) {
        (Ok(from), Ok(to)) if from <= to => Ok((from, to)),
        _ => Err(format!("\"{text}\" is no range; expected one such as \"1-247\"")),
    }
}

/// Requests without a response after which the scan of a device fails.
const SILENT_MAX: u32 = 3;

/// Scans, and prints what is found.
pub(super) async fn run(command: &Scan) -> anyhow::Result<ExitCode> {
    let mut client = PacedClient::new(&command.bus)?;
    let found = match command.addresses {
        Some(addresses) => registers(&mut client, command, addresses).await?,
        None => units(&mut client, command).await?,
    };
    Ok(if found > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Finds the units that answer; returns how many.
async fn units(client: &mut PacedClient, command: &Scan) -> anyhow::Result<usize> {
    let started = clock::instant();
    let (mut found, mut without_table, mut ignored) = (0, 0, Vec::new());
    // What arrived and is no answer of the unit.
    let (mut odd, mut odd_count) = (None, 0);
    let mut open: Vec<u8> = (command.units.0..=command.units.1).rev().collect();
    while let Some(unit) = open.pop() {
        let answer = client.ask(unit, &Ask::Read(command.table, 0, 1)).await;
        match &answer {
            Err(fault @ Fault::NoConnection(_)) => bail!("{fault}"),
            Err(fault) if fault.is_absence() => {
                if matches!(fault, Fault::NoFit(..) | Fault::Broken(_)) {
                    odd = odd.or_else(|| Some(format!("unit {unit}: {fault}")));
                    odd_count += 1;
                }
                // It may have been asked too early.
                if found == 0 && clock::instant().saturating_duration_since(started) < FIRST + command.bus.timeout.0 {
                    ignored.push(unit);
                }
            }
            // An exception response proves that the device exists.
            answer => {
                found += 1;
                without_table += usize::from(is_other_function(answer));
                print(command, unit, None, answer)?;
                open.extend(std::mem::take(&mut ignored).into_iter().rev());
            }
        }
    }
    if let Some(odd) = odd {
        let more = if odd_count > 1 { format!("; likewise {} more units", odd_count - 1) } else { String::new() };
        eprintln!("no answer, but {}{more}", shown(&odd));
    }
    let other = match without_table {
        0 => String::new(),
        _ => format!(
            ", {without_table} of them without the table \"{0}\"; --table {1} asks for another one",
            command.table.name(),
            other(command.table)
        ),
    };
    eprintln!("{found} found{other}");
    Ok(found)
}

/// Finds the registers that can be read; returns how many.
async fn registers(client: &mut PacedClient, command: &Scan, (from, to): (u16, u16)) -> anyhow::Result<usize> {
    let (unit, last) = command.units;
    if unit != last {
        bail!("--addresses scans one device; select it with --units N");
    }
    let (mut found, mut refused, mut silent) = (0, 0, 0);
    for address in from..=to {
        let ask = Ask::Read(command.table, address, 1);
        let answer =
            if found + refused == 0 { client.ask_patiently(unit, &ask).await } else { client.ask(unit, &ask).await };
        match &answer {
            Ok(_) => {
                found += 1;
                print(command, unit, Some(address), &answer)?;
            }
            Err(fault @ Fault::NoConnection(_)) => bail!("{fault}"),
            Err(fault) if fault.is_absence() => {
                silent += 1;
                if silent >= SILENT_MAX {
                    bail!("unit {unit} does not answer: {fault}");
                }
                continue;
            }
            answer if is_other_function(answer) => bail!(
                "unit {unit} answers, but it does not serve the table \"{}\" ({}); try --table {}",
                command.table.name(),
                answer.as_ref().err().map_or_else(String::new, |fault| shown(&fault.to_string()).to_string()),
                other(command.table)
            ),
            // Exception code 2 (illegal data address): the device has no such register.
            Err(Fault::Refused { code: 2, .. }) => refused += 1,
            // There may be one, and it cannot be read.
            answer => {
                refused += 1;
                print(command, unit, Some(address), answer)?;
            }
        }
        silent = 0;
    }
    eprintln!("{found} found");
    Ok(found)
}

/// Whether the device does not serve this kind of request.
fn is_other_function(answer: &Result<Vec<u16>, Fault>) -> bool {
    matches!(answer, Err(Fault::Refused { code: 1, .. }))
}

/// A table to try where a device does not serve this one.
fn other(table: Table) -> &'static str {
    match table {
        Table::Holding => "input",
        Table::Input => "holding",
        Table::Coil => "discrete",
        Table::Discrete => "coil",
    }
}

fn print(command: &Scan, unit: u8, address: Option<u16>, answer: &Result<Vec<u16>, Fault>) -> anyhow::Result<()> {
    let (raw, problem) = match answer {
        Ok(registers) => (registers.first().copied(), None),
        Err(fault) => (None, Some(fault.to_string())),
    };
    let table = command.table.name();
    let mut out = std::io::stdout().lock();
    if command.bus.json {
        let serves = !is_other_function(answer);
        let line = json!({"unit": unit, "table": table, "serves_table": serves, "address": address, "raw": raw, "problem": problem});
        writeln!(out, "{line}")?;
        return Ok(out.flush()?);
    }
    let place = address.map_or_else(|| format!("unit {unit}"), |at| format!("{table} {at}"));
    let what = match (raw, &problem) {
        (Some(raw), _) if address.is_some() => format!("{raw:#06x}  {raw}"),
        (_, Some(_)) if is_other_function(answer) => format!("answers, but it does not serve the table \"{table}\""),
        (_, Some(problem)) if address.is_some() => format!("cannot be read: {}", shown(problem)),
        (_, Some(problem)) => format!("answers: {}", shown(problem)),
        _ => "answers".into(),
    };
    writeln!(out, "{place:<16} {what}")?;
    Ok(out.flush()?)
}
