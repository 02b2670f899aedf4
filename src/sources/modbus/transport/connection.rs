//! One connection to a bus: sends a request and returns its answer or a fault.

use super::ask::Ask;
use super::fault::Fault;
use super::wire::{Exchange, Framing, Wire};
use crate::clock;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_modbus::client::{Client, Context, rtu, tcp};
use tokio_modbus::slave::{Slave, SlaveContext};

/// A connection to a bus.
pub struct Connection {
    context: Context,
    framing: Framing,
    exchange: Arc<Mutex<Exchange>>,
    pause: Duration,
    last: Option<Instant>,
}

impl Connection {
    /// A connection over a stream, which waits for `pause` between an answer and the next request.
    pub(super) fn new<S>(stream: S, framing: Framing, pause: Duration) -> Self
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + std::fmt::Debug + 'static,
    {
        let (wire, exchange) = Wire::new(stream, framing);
        // Each request sets its unit.
        let context = match framing {
            Framing::Tcp { .. } => tcp::attach_slave(wire, Slave(0)),
            Framing::Rtu { .. } => rtu::attach_slave(wire, Slave(0)),
        };
        Self { context, framing, exchange, pause, last: None }
    }

    /// Whether a request was sent over it before.
    pub fn is_used(&self) -> bool {
        self.last.is_some()
    }

    /// Whether the adapter was seen to echo.
    pub(super) fn echoes(&self) -> bool {
        self.exchange.lock().echoes()
    }

    /// Whether the rest of a frame may follow, which nothing can be read behind.
    pub(super) fn is_within_frame(&self) -> bool {
        self.exchange.lock().is_within_frame()
    }

    /// Sends a request and waits for the answer.
    pub async fn ask(&mut self, unit: u8, ask: &Ask, timeout: Duration) -> Result<Vec<u16>, Fault> {
        if let Some(last) = self.last {
            let rest = (last + self.pause).saturating_duration_since(clock::instant());
            if !rest.is_zero() {
                tokio::time::sleep(rest).await;
            }
        }
        self.context.set_slave(Slave(unit));
        self.exchange.lock().begin();
        let answer = tokio::time::timeout(timeout, self.context.call(ask.request())).await;
        self.last = Some(clock::instant());
        match answer {
            Err(_) => Err(match self.exchange.lock().remains() {
                None => Fault::NoAnswer(timeout),
                Some(what) => Fault::NoFit(timeout, what),
            }),
            Ok(Ok(Ok(response))) => ask.answer(response).map_err(Fault::Broken),
            Ok(Ok(Err(code))) => Err(Fault::of(code)),
            Ok(Err(tokio_modbus::Error::Protocol(_))) => Err(Fault::Broken(self.mismatch(unit))),
            Ok(Err(tokio_modbus::Error::Transport(error))) => Err(Fault::Broken(broken(&error))),
        }
    }

    /// Why an answer is not that to the request.
    fn mismatch(&self, unit: u8) -> String {
        match self.exchange.lock().other_unit(self.framing, unit) {
            Some(other) => format!(
                "unit {other} answered a request to unit {unit}; if the device answers as {other} whatever it is asked as, set its unit to {other}"
            ),
            None => "the answer belongs to another request".into(),
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
