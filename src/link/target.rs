//! The brokers of a link, and how a session with one of them is opened.

use super::address::Address;
use super::config::Config;
use super::dial::{self, TlsConfig};
use super::error::LinkError;
use super::line::Line;
use super::peer::Peer;
use super::proxy::ProxyAddress;
use super::session::{ConnectAs, Session};
use super::stream::Stream;
use super::traffic::{MeteredStream, Traffic};
use crate::secret::Secret;
use crate::tls;
use parking_lot::Mutex;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// The brokers of one destination or source, to connect to any number of times.
#[derive(Debug)]
pub struct Target {
    config: Config,
    addresses: Vec<Address>,
    proxy: Option<ProxyAddress>,
    traffic: Arc<Traffic>,
    line: Arc<Line>,
    /// The TLS configuration from the last readable certificates.
    tls: Mutex<Option<TlsConfig>>,
}

/// Time limit for connecting to one broker if there is another one to try.
const BROKER_WAIT_MAX: Duration = Duration::from_secs(5);

impl Target {
    /// Checks the URLs; there must be at least one of a broker.
    pub fn new(config: Config) -> Result<Self, String> {
        let addresses = config.urls.iter().map(|url| Address::parse(url)).collect::<Result<Vec<_>, _>>()?;
        if addresses.is_empty() {
            return Err("no URL is given; expected \"mqtts://host:8883\"".into());
        }
        let proxy = config.proxy.as_ref().map(|proxy| ProxyAddress::parse(&proxy.url)).transpose()?;
        Ok(Self { config, addresses, proxy, traffic: Arc::default(), line: Arc::default(), tls: Mutex::default() })
    }

    /// Counts the bytes of all connections in `traffic`.
    pub(crate) fn counting(self, traffic: Arc<Traffic>) -> Self {
        Self { traffic, ..self }
    }

    /// Shares `line` with the other connections to these brokers.
    pub(crate) fn on(self, line: Arc<Line>) -> Self {
        Self { line, ..self }
    }

    /// Host and port of the first address, for logs.
    pub fn name(&self) -> String {
        self.addresses.first().map(ToString::to_string).unwrap_or_default()
    }

    /// Connects: DNS lookup, TCP, proxy, TLS, WebSocket, CONNECT. Reads certificates and passwords each time, so a rotation needs no
    /// restart; while the certificates cannot be read, it uses the previous ones. Safe to drop half-way.
    pub(crate) async fn connect(&self, connect_as: &ConnectAs) -> Result<Session, LinkError> {
        self.connect_before(connect_as, self.addresses.len()).await
    }

    /// Connects to the first of the addresses before index `index` that accepts the connection. Safe to drop half-way.
    pub(crate) async fn connect_before(&self, connect_as: &ConnectAs, index: usize) -> Result<Session, LinkError> {
        let addresses = &self.addresses[..index.min(self.addresses.len())];
        if let [address] = addresses {
            return self.open_at(address, 0, connect_as).await;
        }
        let mut errors = Vec::new();
        for (index, address) in addresses.iter().enumerate() {
            let attempt = self.open_at(address, index, connect_as);
            match tokio::time::timeout(BROKER_WAIT_MAX, attempt).await {
                Ok(Ok(session)) => return Ok(session),
                Ok(Err(error)) => errors.push(error.to_string()),
                Err(_) => errors.push(format!("{address} does not answer")),
            }
        }
        Err(LinkError::None(errors.join("; ")))
    }

    fn tls(&self) -> Result<TlsConfig, LinkError> {
        let mut cached = self.tls.lock();
        match (tls::client(&self.config.tls), &*cached) {
            (Ok(tls), _) => Ok(Arc::clone(cached.insert(tls))),
            (Err(error), Some(before)) => {
                tracing::warn!(broker = %self.name(), %error, "cannot use the certificates; continuing with the previous ones");
                Ok(Arc::clone(before))
            }
            (Err(error), None) => Err(error.into()),
        }
    }

    async fn open_at(&self, address: &Address, index: usize, connect_as: &ConnectAs) -> Result<Session, LinkError> {
        let tls = address.is_tls.then(|| self.tls()).transpose()?;
        let password = read_password(self.config.password_file.as_deref())?;
        #[cfg(test)]
        let in_memory = super::memory::connect(address);
        #[cfg(not(test))]
        let in_memory: Option<std::io::Result<Stream>> = None;
        let stream = match (in_memory, tls) {
            (Some(stream), _) => stream.map_err(LinkError::Broken)?,
            (None, None) => Stream::Plain(self.open_tcp(address).await?),
            (None, Some(config)) => {
                let tcp = self.open_tcp(address).await?;
                Stream::Tls(Box::new(dial::handshake(address, &self.config.tls, config, tcp).await?))
            }
        };
        let peer = Peer::of(&stream, self.proxy.is_some());
        let explained = |error| self.explained(error, address);
        let stream = dial::websocket(address, stream).await.map_err(explained)?;
        let mut session = Session::new(stream, (index, address), &self.config, Arc::clone(&self.line));
        let password = password.as_ref().and_then(Secret::line).unwrap_or_default();
        let login = self.config.user.as_deref().map(|user| (user, password));
        session.peer = peer;
        session.connect(connect_as, login).await.map_err(explained)?;
        Ok(session)
    }

    /// A server of TLS 1.3 refuses a client's certificate only after the handshake.
    fn explained(&self, error: LinkError, address: &Address) -> LinkError {
        match error {
            LinkError::Broken(error) if tls::is_fault(&error) => {
                LinkError::Handshake { host: address.host.clone(), reason: tls::explain(&error, &self.config.tls) }
            }
            error => error,
        }
    }

    /// Opens the TCP connection to a broker, through the proxy if there is one.
    async fn open_tcp(&self, address: &Address) -> Result<MeteredStream, LinkError> {
        let Some((proxy, settings)) = self.proxy.as_ref().zip(self.config.proxy.as_ref()) else {
            return Ok(MeteredStream::new(dial::connect(address, None).await?, &self.traffic));
        };
        let password = read_password(settings.password_file.as_deref())?;
        let password = password.as_ref().and_then(Secret::line).unwrap_or_default();
        let login = settings.user.as_deref().map(|user| (user, password));
        let stream = dial::connect(address, Some((proxy, login))).await?;
        Ok(MeteredStream::new(stream, &self.traffic))
    }
}

fn read_password(file: Option<&Path>) -> Result<Option<Secret>, LinkError> {
    Ok(file.map(Secret::read).transpose()?)
}
