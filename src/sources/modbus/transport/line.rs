//! A line to a bus: connects when something is to be asked, and replaces connections that are of no use.

use super::ask::Ask;
use super::connection::Connection;
use super::dial::Dial;
use super::fault::Fault;
use super::settling::Settling;
use crate::clock;
use std::time::{Duration, Instant};

/// A line to a bus.
pub struct Line {
    dial: Dial,
    timeout: Duration,
    /// How long late answers are waited for when a serial line is opened again.
    late: Duration,
    /// With the time of its last answer, or of its beginning.
    connection: Option<(Connection, Instant)>,
    settling: Settling,
    /// Whether a late answer may still come, which the next connection has to discard.
    is_late_expected: bool,
}

impl Line {
    /// A line that waits for each answer as long as `timeout`, and for late ones on a serial line as long as `late`.
    pub fn new(dial: Dial, timeout: Duration, late: Duration) -> Self {
        let settling = Settling::new(dial.connect_pause);
        Self { dial, timeout, late, connection: None, settling, is_late_expected: false }
    }

    /// The settings of its connections.
    pub fn dial(&self) -> &Dial {
        &self.dial
    }

    /// Whether there is a connection.
    pub fn is_connected(&self) -> bool {
        self.connection.is_some()
    }

    /// Whether there is a connection over which a request was sent before.
    pub fn is_used(&self) -> bool {
        self.connection.as_ref().is_some_and(|(connection, _)| connection.is_used())
    }

    /// Connects if there is no connection; returns whether a new one was made.
    pub async fn connect(&mut self) -> Result<bool, Fault> {
        if self.connection.is_some() {
            return Ok(false);
        }
        let late = if self.is_late_expected { self.late } else { Duration::ZERO };
        let connection = self.dial.connect(late).await.map_err(Fault::NoConnection)?;
        let opened = clock::instant();
        let pause = self.settling.connected();
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        self.connection = Some((connection, opened));
        self.is_late_expected = false;
        Ok(true)
    }

    /// Sends one request and receives its answer.
    pub async fn exchange(&mut self, unit: u8, ask: &Ask) -> Result<Vec<u16>, Fault> {
        self.connect().await?;
        let Some((connection, quiet_since)) = &mut self.connection else {
            return Err(Fault::NoConnection("not connected".into()));
        };
        let answer = connection.ask(unit, ask, self.timeout).await;
        if connection.echoes() && self.dial.echo.is_none() {
            tracing::info!(address = %self.dial.address, "the adapter echoes requests; the gateway leaves their copies out");
            self.dial.echo = Some(true);
        }
        let now = clock::instant();
        let is_over = match &answer {
            // A gateway in front of the unit answers for it.
            Ok(_) | Err(Fault::Refused { .. }) => {
                self.settling.answered(unit);
                *quiet_since = now;
                false
            }
            Err(Fault::Broken(_)) => {
                self.settling.ended();
                true
            }
            // A new connection discards late answers where nothing tells them apart.
            Err(_) => {
                let is_over = self.settling.is_over(unit, now.saturating_duration_since(*quiet_since));
                is_over || connection.is_within_frame() || (self.dial.is_anonymous() && self.settling.has_answered())
            }
        };
        if is_over {
            self.close();
        }
        self.is_late_expected |= answer.as_ref().err().is_some_and(Fault::is_unanswered);
        answer
    }

    pub fn close(&mut self) {
        self.connection = None;
    }
}
