//! `forebay modbus`: reads and scans devices, and creates device tables.
//!
//! Promise: these commands never write to a device, and pause at least [`PAUSE_MIN`] between two requests.

mod import;

use super::client::finished;
use super::table::table;
use crate::clock;
use crate::setting::{Document, Span};
use crate::sources::modbus::address::{self, Parity, Serial};
use crate::sources::modbus::blocks::{Blocks, Verdict};
use crate::sources::modbus::plan::plan;
use crate::sources::modbus::plausible;
use crate::sources::modbus::reading::{Reading, Registers, read};
use crate::sources::modbus::table::{Device, Point};
use crate::sources::modbus::transport::{Ask, Dial, Fault, Line};
use crate::sources::modbus::value::{Encoding, Order, Table, Type, Value};

use crate::telemetry::{shown, shown_json};
use crate::tls::ClientFiles;
use anyhow::{Context, anyhow, bail};
use clap::{Args, Subcommand};
use serde_json::json;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

#[derive(Debug, Subcommand)]
pub(super) enum Modbus {
    /// Create a device table from a vendor's register list: CSV, other text, or a spreadsheet
    Import(import::Import),
    /// Read a device once or repeatedly; never writes to it
    Read(ReadArgs),
    /// Find the devices on a bus, or the registers of a device; never writes to them
    Scan(Scan),
}

/// A bus and its connection settings.
#[derive(Debug, Args)]
struct Bus {
    /// URL of the bus: tcp://HOST, tls://HOST, rtu-tcp://HOST:PORT or rtu:/dev/ttyUSB0
    url: String,
    /// Response timeout of a device
    #[arg(long, value_parser = Span::parse, default_value = "1s")]
    timeout: Span,
    /// Pause between two requests; at least 20ms
    #[arg(long, value_parser = Span::parse, default_value = "100ms")]
    pause: Span,
    /// Pause between connecting and the first request, for devices that ignore what comes earlier
    #[arg(long, value_parser = Span::parse, default_value = "0s")]
    connect_pause: Span,
    /// Take each answer for that of the last request, for gateways with transaction numbers of their own
    #[arg(long)]
    ignore_transaction_numbers: bool,
    /// Bit rate of a serial port
    #[arg(long, default_value_t = 19_200)]
    baud: u32,
    /// Parity of a serial port: even, odd or none
    #[arg(long, value_parser = parse_name::<Parity>, default_value = "even")]
    parity: Parity,
    /// Stop bits of a serial port: 1 or 2
    #[arg(long)]
    stop_bits: Option<u8>,
    /// CA certificates that may sign the server's certificate
    #[arg(long)]
    ca: Option<PathBuf>,
    /// File with the client certificate (PEM)
    #[arg(long, requires = "key")]
    cert: Option<PathBuf>,
    /// Private key of the client certificate
    #[arg(long, requires = "cert")]
    key: Option<PathBuf>,
    /// Print JSON; errors stay text on standard error, with exit code 1
    #[arg(long)]
    json: bool,
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

#[derive(Debug, Args)]
pub(super) struct Scan {
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

/// Parses the name of an enum variant, as in device tables.
fn parse_name<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    use serde::de::{IntoDeserializer, value::Error};
    T::deserialize(IntoDeserializer::<Error>::into_deserializer(text)).map_err(|error| error.to_string())
}

/// Parses a number such as `3`, or a range such as `1-247`.
fn range<T: std::str::FromStr + PartialOrd + Copy>(text: &str) -> Result<(T, T), String> {
    let (from, to) = text.split_once('-').unwrap_or((text, text));
    match (from.trim().parse::<T>(), to.trim().parse::<T>()) {
        (Ok(from), Ok(to)) if from <= to => Ok((from, to)),
        _ => Err(format!("\"{text}\" is no range; expected one such as \"1-247\"")),
    }
}

/// Runs a `forebay modbus` command.
pub(super) fn run(command: Modbus) -> anyhow::Result<ExitCode> {
    match command {
        Modbus::Import(command) => import::run(command),
        Modbus::Read(command) => finished(run_read(&command))?,
        Modbus::Scan(command) => finished(run_scan(&command))?,
    }
}

/// Shortest pause between two requests, to spare the devices.
const PAUSE_MIN: Duration = Duration::from_millis(20);
/// Wait for a late response before the next request, in timeouts.
const LATE_TIMEOUTS: u32 = 5;

/// Requests over a connection that has not answered yet, before a point is without an answer.
const ATTEMPTS_MAX: u32 = 4;

/// Sends requests at a limited rate.
struct PacedClient {
    line: Line,
    pause: Duration,
    next: Instant,
}

impl PacedClient {
    fn new(bus: &Bus) -> anyhow::Result<Self> {
        let serial = Serial { baud: bus.baud, parity: bus.parity, stop_bits: bus.stop_bits };
        serial.check().map_err(|(key, message)| anyhow!("{key}: {message}"))?;
        let tls =
            ClientFiles { ca: bus.ca.clone(), cert: bus.cert.clone(), key: bus.key.clone(), ..ClientFiles::default() };
        let address = address::check(&bus.url, None, &tls).map_err(|(_, message)| anyhow!(message))?;
        let dial = Dial {
            serial,
            tls,
            connect_pause: bus.connect_pause.0,
            ignores_numbers: bus.ignore_transaction_numbers,
            ..Dial::new(address, bus.timeout.0.max(Duration::from_secs(2)))
        };
        let pause = bus.pause.0.max(PAUSE_MIN);
        eprintln!(
            "this command only reads, at most {:.0} requests per second; on a serial bus, first stop every other master, \
             including a gateway: two masters disturb each other",
            1.0 / pause.as_secs_f64()
        );
        let line = Line::new(dial, bus.timeout.0, bus.timeout.0 * LATE_TIMEOUTS);
        Ok(Self { line, pause, next: clock::instant() })
    }

    async fn ask(&mut self, unit: u8, ask: &Ask) -> Result<Vec<u16>, Fault> {
        tokio::time::sleep(self.next.saturating_duration_since(clock::instant())).await;
        let answer = self.line.exchange(unit, ask).await;
        self.next = clock::instant() + self.pause;
        if self.line.dial().is_anonymous() && answer.as_ref().err().is_some_and(Fault::is_unanswered) {
            // A late answer could be taken for the next one.
            self.line.close();
        }
        answer
    }

    /// Asks again over a connection that has not answered yet: some devices ignore what comes first.
    async fn ask_patiently(&mut self, unit: u8, ask: &Ask) -> Result<Vec<u16>, Fault> {
        let mut answer = self.ask(unit, ask).await;
        for _ in 1..ATTEMPTS_MAX {
            if !self.line.is_connected() || !answer.as_ref().err().is_some_and(Fault::is_unanswered) {
                break;
            }
            answer = self.ask(unit, ask).await;
        }
        answer
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
    let is_terminal = std::io::stdout().is_terminal();
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

/// Requests without a response after which the scan of a device fails.
const SILENT_MAX: u32 = 3;

async fn run_scan(command: &Scan) -> anyhow::Result<ExitCode> {
    let mut client = PacedClient::new(&command.bus)?;
    let mut out = std::io::stdout();
    let mut found = 0;
    let mut print_hit = |unit: u8, address: Option<u16>, answer: &Result<Vec<u16>, Fault>| -> anyhow::Result<()> {
        let (raw, problem) = match answer {
            Ok(registers) => (registers.first().copied(), None),
            Err(fault) => (None, Some(fault.to_string())),
        };
        if command.bus.json {
            let line = json!({"unit": unit, "table": command.table.name(), "address": address, "raw": raw, "problem": problem});
            writeln!(out, "{line}")?;
        } else {
            let place = address.map_or_else(|| format!("unit {unit}"), |at| format!("{} {at}", command.table.name()));
            let what = match (raw, &problem) {
                (Some(raw), _) if address.is_some() => format!("{raw:#06x}  {raw}"),
                (_, Some(problem)) => format!("answers: {}", shown(problem)),
                _ => "answers".into(),
            };
            writeln!(out, "{place:<16} {what}")?;
        }
        Ok(out.flush()?)
    };
    if let Some((from, to)) = command.addresses {
        let (unit, last) = command.units;
        if unit != last {
            bail!("--addresses scans one device; select it with --units N");
        }
        let mut silent = 0;
        for address in from..=to {
            let answer = client.ask(unit, &Ask::Read(command.table, address, 1)).await;
            match &answer {
                Err(fault @ Fault::NoConnection(_)) => bail!("{fault}"),
                Err(fault) if fault.is_absence() => {
                    silent += 1;
                    if silent >= SILENT_MAX {
                        bail!("unit {unit} does not answer: {fault}");
                    }
                    continue;
                }
                // Exception code 2 (illegal data address): the device has no such register.
                Err(Fault::Refused { code: 2, .. }) => {}
                answer => {
                    found += 1;
                    print_hit(unit, Some(address), &answer.clone())?;
                }
            }
            silent = 0;
        }
    } else {
        for unit in command.units.0..=command.units.1 {
            let answer = client.ask(unit, &Ask::Read(command.table, 0, 1)).await;
            match &answer {
                Err(fault @ Fault::NoConnection(_)) => bail!("{fault}"),
                // An exception response proves that the device exists.
                Err(fault) if fault.is_absence() => {}
                answer => {
                    found += 1;
                    print_hit(unit, None, &answer.clone())?;
                }
            }
        }
    }
    eprintln!("{found} found");
    Ok(if found > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
