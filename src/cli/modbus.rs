//! `forebay modbus`: reads and scans devices, and creates device tables.
//!
//! Promise: these commands never write to a device, and pause at least 20 ms between two requests.

mod import;
mod paced_client;
mod scan;

use super::client::finished;
use super::table::table;
use crate::clock;
use crate::setting::{Document, Span};
use crate::sources::modbus::blocks::{Blocks, Verdict};
use crate::sources::modbus::plan::plan;
use crate::sources::modbus::plausible;
use crate::sources::modbus::reading::{Reading, Registers, read};
use crate::sources::modbus::table::{Device, Point};
use crate::sources::modbus::transport::Ask;
use crate::sources::modbus::value::{Encoding, Order, Table, Type, Value};
use crate::telemetry::shown_json;
use crate::telemetry::shows_colours;
use anyhow::{Context, anyhow, bail};
use clap::{Args, Subcommand};
use paced_client::{Bus, PacedClient, parse_name};
use serde_json::json;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, Subcommand)]
pub(super) enum Modbus {
    /// Create a device table from a vendor's register list: CSV, other text, or a spreadsheet
    Import(import::Import),
    /// Read a device once or repeatedly; never writes to it
    Read(ReadArgs),
    /// Find the devices on a bus, or the registers of a device; never writes to them
    Scan(scan::Scan),
}

#[derive(Debug, Args)]
pub(super) struct ReadArgs {
    #[command(flatten)]
    bus: Bus,
    /// Unit number of the device on the bus
    #[arg(long, default_value_t = 1)]
    unit: u8,
    /// Device table; all its points are read
    #[arg(long, conflicts_with_all = ["table", "address", "count", "kind", "order"])]
    device: Option<PathBuf>,
    /// Table: coil, discrete, holding or input
    #[arg(long, value_parser = parse_name::<Table>, default_value = "holding")]
    table: Table,
    /// First register or bit, from 0
    #[arg(long, default_value_t = 0)]
    address: u16,
    /// Number of values to read
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=2000))]
    count: u16,
    /// Type of the values: u16, i16, u32, i32, u64, i64, f32, f64, bcd16, bcd32 or bcd64
    #[arg(long = "type", value_parser = parse_name::<Type>)]
    kind: Option<Type>,
    /// Order of bytes: ABCD, CDAB, BADC or DCBA
    #[arg(long, value_parser = parse_name::<Order>, default_value = "ABCD")]
    order: Order,
    /// Doubt values that are hardly ones of their unit, a hint at a wrong scale, type or order; needs --device
    #[arg(long, requires = "device")]
    check: bool,
    /// Repeat at this interval until interrupted
    #[arg(long, value_parser = Span::parse)]
    watch: Option<Span>,
}

/// Runs a `forebay modbus` command.
pub(super) fn run(command: Modbus) -> anyhow::Result<ExitCode> {
    match command {
        Modbus::Import(command) => import::run(command),
        Modbus::Read(command) => finished(run_read(&command))?,
        Modbus::Scan(command) => finished(scan::run(&command))?,
    }
}

/// Builds a device with consecutive points, for reading without a device table.
fn ad_hoc_device(command: &ReadArgs) -> anyhow::Result<Device> {
    let kind = command.kind.unwrap_or(if command.table.is_bits() { Type::Bool } else { Type::U16 });
    let is_fit = kind != Type::Text && (kind == Type::Bool) == command.table.is_bits();
    if !is_fit {
        bail!("this type does not fit the table \"{}\"; use a device table for texts and bits", command.table.name());
    }
    let count = if command.table.is_bits() { 1 } else { kind.registers().unwrap_or(1) };
    let point = |index: u16| {
        let address = u32::from(command.address) + u32::from(index) * u32::from(count);
        let address = u16::try_from(address).ok().filter(|at| u32::from(*at) + u32::from(count) <= 65_536);
        let address = address.context("the last address is 65535")?;
        let (name, table) = (format!("{}_{address}", command.table.name()), command.table);
        anyhow::Ok(Point { name, table, address, count, ..Point::plain(Encoding::of(kind, command.order)) })
    };
    Ok(Device { points: (0..command.count).map(point).collect::<anyhow::Result<_>>()?, ..Device::default() })
}

async fn run_read(command: &ReadArgs) -> anyhow::Result<ExitCode> {
    let device = match &command.device {
        None => ad_hoc_device(command)?,
        Some(file) => {
            let document = Document::read(file)?;
            Device::read(&document).map_err(|problems| {
                let lines: Vec<_> = problems.iter().map(ToString::to_string).collect();
                anyhow!("{}", lines.join("\n"))
            })?
        }
    };
    let reads = (0..device.groups.len()).flat_map(|group| plan(&device, group)).collect();
    let mut blocks = Blocks::new(reads);
    let mut client = PacedClient::new(&command.bus)?;
    loop {
        let started = clock::instant();
        let readings = read_points(&mut client, command.unit, &device, &mut blocks).await;
        show_points(&device, &readings, command)?;
        let Some(again) = command.watch else {
            let has_value = readings.iter().flatten().any(|(reading, _)| !reading.is_bad());
            return Ok(if has_value { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        };
        tokio::time::sleep((started + again.0).saturating_duration_since(clock::instant())).await;
    }
}

/// The reading of each point, with its registers.
type Readings = Vec<Option<(Reading, Vec<u16>)>>;

/// Reads all points. Requests that the device refuses are split, so that only the points that it does not have are bad.
async fn read_points(client: &mut PacedClient, unit: u8, device: &Device, blocks: &mut Blocks) -> Readings {
    let mut readings: Readings = vec![None; device.points.len()];
    let mut sweep = blocks.sweep(usize::MAX, clock::instant());
    while let Some(request) = sweep.next() {
        let ask = Ask::Read(request.table, request.address, request.count);
        let answer = client.ask_patiently(unit, &ask).await;
        let taken = match &answer {
            Err(fault) if fault.is_absence() => sweep.skip().map(|read| (read, Verdict::refused(fault))),
            answer => sweep.take(device, answer.as_ref().map(|_| ()), clock::instant()),
        };
        let Some((request, verdict)) = taken else { break };
        for index in &request.points {
            readings[*index] = match (&answer, &verdict) {
                (Ok(words), _) => {
                    let registers = Registers { address: request.address, words };
                    Some((read(device, *index, registers), registers.of(&device.points[*index]).to_vec()))
                }
                (Err(_), Verdict::Refused { fault, .. }) => {
                    Some((Reading::Bad { reason: fault.to_string(), raw: vec![] }, vec![]))
                }
                (Err(_), _) => None,
            };
        }
    }
    blocks.finish(device, sweep);
    readings
}

fn show_points(device: &Device, readings: &[Option<(Reading, Vec<u16>)>], command: &ReadArgs) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    let is_terminal = shows_colours(&std::io::stdout());
    let all = device.points.iter().zip(readings).filter_map(|(point, reading)| Some((point, reading.as_ref()?)));
    if command.bus.json {
        let list: Vec<_> = all
            .map(|(point, (reading, raw))| {
                let value = match reading {
                    Reading::Good(value) => json_of(value),
                    _ => serde_json::Value::Null,
                };
                let problem = problem(point, reading, command.check);
                json!({"name": point.name, "table": point.table.name(), "address": point.address, "raw": raw, "value": value, "unit": point.unit, "problem": problem})
            })
            .collect();
        writeln!(out, "{}", shown_json(&serde_json::to_string(&list)?))?;
        return Ok(out.flush()?);
    }
    let rows: Vec<Vec<String>> = all
        .map(|(point, (reading, raw))| {
            let hex: Vec<_> = raw.iter().map(|register| format!("{register:04x}")).collect();
            let value = match reading {
                Reading::Good(value) => value.to_string(),
                Reading::Absent => "(absent)".into(),
                Reading::Bad { .. } => "-".into(),
            };
            let problem = problem(point, reading, command.check).unwrap_or_default();
            let (unit, address) = (point.unit.clone().unwrap_or_default(), point.address.to_string());
            vec![point.name.clone(), point.table.name().into(), address, hex.join(" "), value, unit, problem]
        })
        .collect();
    if command.watch.is_some() && is_terminal {
        // Cursor home, clear screen.
        write!(out, "\x1b[H\x1b[J")?;
    }
    let head = ["POINT", "TABLE", "ADDRESS", "RAW", "VALUE", "UNIT", "PROBLEM"];
    writeln!(out, "{}", table(&head, &[2, 4], &rows, is_terminal).trim_end())?;
    Ok(out.flush()?)
}

/// Why a point has no value, or, with `check`, why its value is hardly one.
fn problem(point: &Point, reading: &Reading, check: bool) -> Option<String> {
    match reading {
        Reading::Bad { reason, .. } => Some(reason.clone()),
        Reading::Good(value) if check => plausible::doubt(value.number()?, point.unit.as_deref()),
        _ => None,
    }
}

fn json_of(value: &Value) -> serde_json::Value {
    match value {
        Value::Bool(on) => json!(on),
        Value::Int(whole) => match (i64::try_from(*whole), u64::try_from(*whole)) {
            (Ok(whole), _) => json!(whole),
            (_, Ok(whole)) => json!(whole),
            _ => json!(whole.to_string()),
        },
        Value::Float(number) => json!(number),
        Value::Text(text) => json!(text),
    }
}
