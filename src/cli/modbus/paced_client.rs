//! Requests of commands to a bus, at a limited rate.

use crate::clock;
use crate::setting::Span;
use crate::sources::modbus::address::{self, Parity, Serial};
use crate::sources::modbus::transport::{Ask, Dial, Fault, Line};
use crate::tls::ClientFiles;
use anyhow::anyhow;
use clap::Args;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A bus and its connection settings.
#[derive(Debug, Args)]
pub(super) struct Bus {
    /// URL of the bus: tcp://HOST, tls://HOST, rtu-tcp://HOST:PORT or rtu:/dev/ttyUSB0
    pub(super) url: String,
    /// Response timeout of a device
    #[arg(long, value_parser = Span::parse, default_value = "1s")]
    pub(super) timeout: Span,
    /// Pause between two requests; at least 20ms
    #[arg(long, value_parser = Span::parse, default_value = "100ms")]
    pub(super) pause: Span,
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
    pub(super) json: bool,
}

/// Shortest pause between two requests, to spare the devices.
const PAUSE_MIN: Duration = Duration::from_millis(20);
/// Wait for a late response before the next request, in timeouts.
const LATE_TIMEOUTS: u32 = 5;

/// Requests over a connection that has not answered yet, and time, before a point is without an answer: devices are known
/// that ignore what they are asked in the first two seconds.
const ATTEMPTS_MIN: u32 = 4;
pub(super) const FIRST: Duration = Duration::from_secs(3);

/// Sends requests at a limited rate.
pub(super) struct PacedClient {
    line: Line,
    pause: Duration,
    next: Instant,
}

impl PacedClient {
    pub(super) fn new(bus: &Bus) -> anyhow::Result<Self> {
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

    pub(super) async fn ask(&mut self, unit: u8, ask: &Ask) -> Result<Vec<u16>, Fault> {
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
    pub(super) async fn ask_patiently(&mut self, unit: u8, ask: &Ask) -> Result<Vec<u16>, Fault> {
        let started = clock::instant();
        let mut attempts = 1;
        loop {
            let answer = self.ask(unit, ask).await;
            let is_over = attempts >= ATTEMPTS_MIN && clock::instant().saturating_duration_since(started) >= FIRST;
            if is_over || !self.line.is_connected() || !answer.as_ref().err().is_some_and(Fault::is_unanswered) {
                return answer;
            }
            attempts += 1;
        }
    }
}

/// Parses the name of an enum variant, as in device tables.
pub(super) fn parse_name<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    use serde::de::{IntoDeserializer, value::Error};
    T::deserialize(IntoDeserializer::<Error>::into_deserializer(text)).map_err(|error| error.to_string())
}
