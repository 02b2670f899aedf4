//! One connection to a bus: a request, its answer, or why there is none.
//!
//! Promise: what [`Line::ask`] returns answers that very request. Of a request without an answer the
//! connection does not survive, so that a late answer meets nobody; on a line whose answers carry no
//! number, [`Doubt`] says what else is needed before the device is believed again.
//! Invariants:
//! - one request at a time, each with its timeout; the pause between two is kept.

mod dial;
mod doubt;
mod serial;

pub use dial::Dial;
pub use doubt::{Doubt, Shape};

use super::value::Table;
use crate::clock;
use crate::setting::Span;
use std::time::{Duration, Instant};
use tokio_modbus::client::{Client, Context};
use tokio_modbus::slave::{Slave, SlaveContext};
use tokio_modbus::{ExceptionCode, Request, Response};

/// Why a request has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The device says no, in words.
    Refused {
        /// The number of the exception.
        code: u8,
        /// What it means.
        words: String,
    },
    /// Nothing came in time.
    NoAnswer(Duration),
    /// What came was no answer to this, or the connection ended.
    Broken(String),
    /// There is no connection.
    NoConnection(String),
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused { words, .. } => f.write_str(words),
            Self::NoAnswer(timeout) => write!(f, "no answer within {}", Span(*timeout)),
            Self::Broken(why) | Self::NoConnection(why) => f.write_str(why),
        }
    }
}

impl Fault {
    fn of(code: ExceptionCode) -> Self {
        let (code, words) = (u8::from(code), words(code));
        Self::Refused { code, words: format!("exception {code}: {words}") }
    }

    /// Whether it is worth asking again at once: the device is busy.
    pub fn is_busy(&self) -> bool {
        matches!(self, Self::Refused { code: 5 | 6, .. })
    }

    /// Whether the device did not speak, but something in front of it.
    pub fn is_absence(&self) -> bool {
        !matches!(self, Self::Refused { code, .. } if !matches!(code, 10 | 11))
    }
}

/// What an exception means.
fn words(code: ExceptionCode) -> &'static str {
    match u8::from(code) {
        1 => "illegal function, the device does not serve this kind of request",
        2 => "illegal address, the device has no such register",
        3 => "illegal value, the device does not take this length or value",
        4 => "device failure, the device could not do it",
        5 => "acknowledge, the device needs longer",
        6 => "busy, the device is at work on something else",
        8 => "memory parity error in the device",
        10 => "gateway path unavailable, the gateway in front of the device is set up wrongly or overloaded",
        11 => "gateway target silent, the device behind the gateway does not answer",
        _ => "no exception that the standard knows",
    }
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Bits or registers, from this address, so many.
    Read(Table, u16, u16),
    /// One bit.
    WriteCoil(u16, bool),
    /// Registers.
    Write(u16, Vec<u16>),
}

impl Ask {
    /// What an answer to it looks like.
    pub fn shape(&self) -> Shape {
        match self {
            Self::Read(table, _, count) => Shape {
                function: match table {
                    Table::Coil => 1,
                    Table::Discrete => 2,
                    Table::Holding => 3,
                    Table::Input => 4,
                },
                bytes: if table.is_bits() { count.div_ceil(8) } else { count * 2 },
            },
            Self::WriteCoil(..) => Shape { function: 5, bytes: 0 },
            Self::Write(_, registers) => Shape { function: if registers.len() == 1 { 6 } else { 16 }, bytes: 0 },
        }
    }

    fn request(&self) -> Request<'_> {
        match self {
            Self::Read(Table::Coil, address, count) => Request::ReadCoils(*address, *count),
            Self::Read(Table::Discrete, address, count) => Request::ReadDiscreteInputs(*address, *count),
            Self::Read(Table::Holding, address, count) => Request::ReadHoldingRegisters(*address, *count),
            Self::Read(Table::Input, address, count) => Request::ReadInputRegisters(*address, *count),
            Self::WriteCoil(address, on) => Request::WriteSingleCoil(*address, *on),
            Self::Write(address, registers) => match registers[..] {
                [only] => Request::WriteSingleRegister(*address, only),
                _ => Request::WriteMultipleRegisters(*address, registers.into()),
            },
        }
    }

    /// Takes an answer apart; the library has compared numbers and functions, not lengths.
    fn answer(&self, response: Response) -> Result<Vec<u16>, String> {
        match (self, response) {
            (Self::Read(_, _, count), Response::ReadCoils(bits) | Response::ReadDiscreteInputs(bits)) => {
                if bits.len() != usize::from(count.div_ceil(8)) * 8 {
                    return Err(format!("answered {} bits where {count} were asked for", bits.len()));
                }
                Ok(bits.iter().take(usize::from(*count)).map(|on| u16::from(*on)).collect())
            }
            (
                Self::Read(_, _, count),
                Response::ReadHoldingRegisters(registers) | Response::ReadInputRegisters(registers),
            ) => {
                if registers.len() != usize::from(*count) {
                    return Err(format!("answered {} registers where {count} were asked for", registers.len()));
                }
                Ok(registers)
            }
            (Self::WriteCoil(address, on), Response::WriteSingleCoil(at, is)) if (*address, *on) == (at, is) => {
                Ok(vec![])
            }
            (Self::Write(address, registers), Response::WriteSingleRegister(at, word))
                if *address == at && registers[..] == [word] =>
            {
                Ok(vec![])
            }
            (Self::Write(address, registers), Response::WriteMultipleRegisters(at, count))
                if *address == at && registers.len() == usize::from(count) =>
            {
                Ok(vec![])
            }
            _ => Err("answered something else than was asked for".into()),
        }
    }
}

/// A connection.
pub struct Line {
    context: Context,
    pause: Duration,
    last: Option<Instant>,
}

impl Line {
    /// A line over a connection; between an answer and the next request it waits for `pause`.
    fn new(context: Context, pause: Duration) -> Self {
        Self { context, pause, last: None }
    }

    /// Whether it has carried an answer before.
    pub fn is_used(&self) -> bool {
        self.last.is_some()
    }

    /// Asks a device. After any fault but a refusal the line must be dropped.
    pub async fn ask(&mut self, unit: u8, ask: &Ask, timeout: Duration) -> Result<Vec<u16>, Fault> {
        if let Some(last) = self.last {
            let rest = (last + self.pause).saturating_duration_since(clock::instant());
            if !rest.is_zero() {
                tokio::time::sleep(rest).await;
            }
        }
        self.context.set_slave(Slave(unit));
        let answer = tokio::time::timeout(timeout, self.context.call(ask.request())).await;
        self.last = Some(clock::instant());
        match answer {
            Err(_) => Err(Fault::NoAnswer(timeout)),
            Ok(Ok(Ok(response))) => ask.answer(response).map_err(Fault::Broken),
            Ok(Ok(Err(code))) => Err(Fault::of(code)),
            Ok(Err(tokio_modbus::Error::Protocol(_))) => {
                Err(Fault::Broken("answered to another request, or another unit answered".into()))
            }
            Ok(Err(tokio_modbus::Error::Transport(error))) => Err(Fault::Broken(broken(&error))),
        }
    }
}

/// What the library says of an end of the connection is whatever the last system call said.
fn broken(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::InvalidData => format!("answered what is no Modbus ({error})"),
        std::io::ErrorKind::ConnectionReset => "the connection was reset".into(),
        _ => "the connection ended".into(),
    }
}
