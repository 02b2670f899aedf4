//! Connecting to a bus, and discarding late answers on a serial line.

use super::connection::Connection;
use super::serial::Port;
use super::wire::Framing;
use crate::sources::modbus::address::{Address, Serial};
use crate::sources::socket::tune;
use crate::tls::{self, ClientFiles};
use rustls::pki_types::ServerName;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// A frame has ended when the line has been silent for this long, even behind a slow serial device server.
const SILENCE: Duration = Duration::from_millis(20);

/// The settings for connecting to a bus.
#[derive(Clone, Debug, PartialEq)]
pub struct Dial {
    pub address: Address,
    /// Settings of a serial port.
    pub serial: Serial,
    pub tls: ClientFiles,
    pub timeout: Duration,
    /// Pause between an answer and the next request; `None` for the default of the address.
    pub pause: Option<Duration>,
    /// Pause between connecting and the first request.
    pub connect_pause: Duration,
    /// Whether the adapter of a serial line echoes; `None` if that is to be recognised.
    pub echo: Option<bool>,
    /// Whether a gateway answers with transaction numbers of its own, so that they say nothing.
    pub ignores_numbers: bool,
}

impl Dial {
    /// Settings for an address, with the default of each.
    pub fn new(address: Address, timeout: Duration) -> Self {
        Self {
            address,
            serial: Serial::default(),
            tls: ClientFiles::default(),
            timeout,
            pause: None,
            connect_pause: Duration::ZERO,
            echo: None,
            ignores_numbers: false,
        }
    }

    /// Whether answers do not say to which request they belong.
    pub fn is_anonymous(&self) -> bool {
        self.address.is_anonymous() || self.ignores_numbers
    }

    /// Connects. On a serial line, discards late answers that arrive within `late`.
    pub async fn connect(&self, late: Duration) -> Result<Connection, String> {
        let connecting = tokio::time::timeout(self.timeout, self.open());
        let opened = connecting.await.unwrap_or_else(|_| Err("took too long".into()));
        let opened = opened.map_err(|why| format!("no connection to {}: {why}", self.address))?;
        let pause = self.pause.unwrap_or_else(|| self.frame_gap());
        let tcp = Framing::Tcp { ignores_numbers: self.ignores_numbers };
        let rtu = Framing::Rtu { echo: self.echo };
        Ok(match opened {
            Opened::Tcp(stream) => Connection::new(stream, tcp, pause),
            Opened::Tls(stream) => Connection::new(*stream, tcp, pause),
            Opened::RtuOverTcp(mut stream) => {
                drain(&mut stream, late).await;
                Connection::new(stream, rtu, pause)
            }
            Opened::Serial(mut stream) => {
                drain(&mut stream, late).await;
                Connection::new(stream, rtu, pause)
            }
        })
    }

    async fn open(&self) -> Result<Opened, String> {
        let message = |error: std::io::Error| error.to_string();
        match &self.address {
            Address::Tcp(_) => self.stream().await.map(Opened::Tcp),
            Address::RtuOverTcp(_) => self.stream().await.map(Opened::RtuOverTcp),
            Address::Tls(_) => {
                let config = tls::client(&self.tls).map_err(|error| error.to_string())?;
                let name = self.tls.server_name.clone().unwrap_or_else(|| self.address.host().to_owned());
                let name = ServerName::try_from(name).map_err(|error| error.to_string())?;
                let stream = self.stream().await?;
                let stream = TlsConnector::from(config).connect(name, stream).await;
                let stream = stream.map_err(|error| format!("TLS: {}", tls::explain(&error, &self.tls)))?;
                Ok(Opened::Tls(Box::new(stream)))
            }
            Address::Serial(path) => Port::open(path, &self.serial).map(Opened::Serial).map_err(message),
        }
    }

    async fn stream(&self) -> Result<TcpStream, String> {
        let place = self.address.place().ok_or("it is no address of a host")?;
        let stream = TcpStream::connect(place).await.map_err(|error| error.to_string())?;
        tune(&stream, self.timeout.max(Duration::from_secs(1)));
        Ok(stream)
    }

    /// The gap between frames on a serial line: 3.5 character times, at least 1.75 ms, as the Modbus standard requires.
    fn frame_gap(&self) -> Duration {
        match self.address {
            Address::Serial(_) => Duration::from_secs_f64(3.5 * 11.0 / f64::from(self.serial.baud.max(300)))
                .max(Duration::from_micros(1750)),
            _ => Duration::ZERO,
        }
    }
}

enum Opened {
    Tcp(TcpStream),
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
    RtuOverTcp(TcpStream),
    Serial(Port),
}

/// Reads and discards the bytes that arrive within `late`, and the rest of a frame that has begun.
async fn drain<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, late: Duration) {
    let mut scrap = [0; 512];
    let mut wait = late;
    // A line that is never silent carries garbage; the next request will fail.
    for _ in 0..64 {
        match tokio::time::timeout(wait, stream.read(&mut scrap)).await {
            Ok(Ok(1..)) => wait = SILENCE,
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_with_a_zone_is_resolved() {
        let address = Address::parse("tcp://[fe80::1%lo]").expect("an address");
        let found = tokio::net::lookup_host(address.place().expect("a host")).await.expect("resolved");
        let of_link: Vec<_> = found.map(|address| (address.ip().to_string(), address.port())).collect();
        assert_eq!(of_link[0], ("fe80::1".to_owned(), 502));
        let address = Address::parse("rtu-tcp://plc-1.plant:1502").expect("an address");
        assert_eq!(address.place(), Some(("plc-1.plant", 1502)));
    }
}
