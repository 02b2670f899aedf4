//! One connection to a bus: sends a request and returns its answer or a fault.
//!
//! Promise: [`Connection::ask`] returns the answer to that very request. After a request without an answer the caller
//! closes the connection, so no later request can receive a late answer. Serial frames have no transaction number;
//! there [`LateAnswers`] decides when answers of the device can be trusted again.
//! Invariant: one request at a time, each with its timeout, with the configured pause between two.

mod dial;
mod late_answers;
mod serial;

pub use dial::Dial;
pub use late_answers::{LateAnswers, ResponseShape};

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
    /// The device answered with an exception.
    Refused {
        code: u8,
        /// The meaning of the exception.
        words: String,
    },
    /// No answer arrived within this timeout.
    NoAnswer(Duration),
    /// The answer did not fit the request, or the connection ended.
    Broken(String),
    /// No connection could be made.
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
        let (code, meaning) = (u8::from(code), meaning(code));
        Self::Refused { code, words: format!("exception {code}: {meaning}") }
    }

    /// Whether the device is busy, so that an immediate repeat may succeed.
    pub fn is_busy(&self) -> bool {
        matches!(self, Self::Refused { code: 5 | 6, .. })
    }

    /// Whether the device itself did not answer; a Modbus gateway in front of it may have.
    pub fn is_absence(&self) -> bool {
        !matches!(self, Self::Refused { code, .. } if !matches!(code, 10 | 11))
    }
}

fn meaning(code: ExceptionCode) -> &'static str {
    match u8::from(code) {
        1 => "illegal function, the device does not serve this kind of request",
        2 => "illegal address, the device has no such register",
        3 => "illegal value, the device does not take this length or value",
        4 => "device failure, the device could not execute the request",
        5 => "acknowledge, the device needs longer",
        6 => "busy, the device executes another command",
        8 => "memory parity error in the device",
        10 => "gateway path unavailable, the gateway in front of the device is set up wrongly or overloaded",
        11 => "gateway target silent, the device behind the gateway does not answer",
        _ => "not an exception of the Modbus standard",
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Reads bits or registers: table, first address, number.
    Read(Table, u16, u16),
    /// Writes one bit: address, value.
    WriteCoil(u16, bool),
    /// Writes registers: first address, values.
    Write(u16, Vec<u16>),
}

impl Ask {
    /// Function code and length of the answer.
    pub fn response_shape(&self) -> ResponseShape {
        match self {
            Self::Read(table, _, count) => ResponseShape {
                function: match table {
                    Table::Coil => 1,
                    Table::Discrete => 2,
                    Table::Holding => 3,
                    Table::Input => 4,
                },
                bytes: if table.is_bits() { count.div_ceil(8) } else { count * 2 },
            },
            Self::WriteCoil(..) => ResponseShape { function: 5, bytes: 0 },
            Self::Write(_, registers) => {
                ResponseShape { function: if registers.len() == 1 { 6 } else { 16 }, bytes: 0 }
            }
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

    /// Checks an answer and returns its registers. The library has compared transaction number and function, not lengths.
    fn answer(&self, response: Response) -> Result<Vec<u16>, String> {
        match (self, response) {
            (Self::Read(_, _, count), Response::ReadCoils(bits) | Response::ReadDiscreteInputs(bits)) => {
                if bits.len() != usize::from(count.div_ceil(8)) * 8 {
                    return Err(format!("answered {} bits to a request for {count}", bits.len()));
                }
                Ok(bits.iter().take(usize::from(*count)).map(|on| u16::from(*on)).collect())
            }
            (
                Self::Read(_, _, count),
                Response::ReadHoldingRegisters(registers) | Response::ReadInputRegisters(registers),
            ) => {
                if registers.len() != usize::from(*count) {
                    return Err(format!("answered {} registers to a request for {count}", registers.len()));
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
            _ => Err("the answer does not fit the request".into()),
        }
    }
}

/// A connection to a bus.
pub struct Connection {
    context: Context,
    pause: Duration,
    last: Option<Instant>,
}

impl Connection {
    /// A connection that waits for `pause` between an answer and the next request.
    fn new(context: Context, pause: Duration) -> Self {
        Self { context, pause, last: None }
    }

    /// Whether a request was sent over it before.
    pub fn is_used(&self) -> bool {
        self.last.is_some()
    }

    /// Sends a request and waits for the answer. The caller must drop the connection
    /// after any fault except [`Fault::Refused`].
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
                Err(Fault::Broken("the answer belongs to another request or another unit".into()))
            }
            Ok(Err(tokio_modbus::Error::Transport(error))) => Err(Fault::Broken(broken(&error))),
        }
    }
}

/// The reason for a broken connection. The library passes on the error of whichever system call failed last.
fn broken(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::InvalidData => format!("the answer is not valid Modbus ({error})"),
        std::io::ErrorKind::ConnectionReset => "the connection was reset".into(),
        _ => "the connection ended".into(),
    }
}
