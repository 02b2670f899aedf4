//! The first event of a new configuration: the gateway with a central broker on this machine.
//!
//! Promise: the event travels the whole path, from a client of the listener to a publish at the broker.

use super::central;
use crate::clock;
use crate::config::Config;
use crate::event::Timestamp;
use crate::gateway::Gateway;
use crate::link::{
    Client, Config as LinkConfig, ConnectAs, Conversation, CredentialRotation, End, Head, LinkError, LostSession,
    Output, Protocol, Session, Start, Target, Turn, push_publish,
};
use crate::shutdown;
use crate::telemetry::shown;
use crate::tls::ClientFiles;
use anyhow::{Context, anyhow, bail};
use std::io::{IsTerminal, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::broadcast;

/// A configuration that `forebay init --test` has written.
#[derive(Debug)]
pub struct FirstEvent {
    /// Folder of the configuration, with `central.pem` and `central.key`.
    pub folder: PathBuf,
    pub central_port: u16,
    /// Name of the first device; its password is in `{device}.password`.
    pub device: String,
    /// The listener has TLS, and the device a certificate.
    pub is_tls: bool,
}

/// Longest wait for the first event. It takes less than a second.
const ARRIVAL_WAIT_MAX: Duration = Duration::from_secs(30);

/// Returns a free port for a central broker; the usual one if it is free.
pub fn free_port() -> std::io::Result<u16> {
    let bind = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    bind(central::PORT).or_else(|_| bind(0))?.local_addr().map(|address| address.port())
}

/// Starts broker and gateway, publishes an event and shows it at the broker. On a terminal, it then shows all events until
/// it is interrupted.
pub async fn show_first_event(test: &FirstEvent) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let central = central::start_at(&test.folder, test.central_port)
        .await
        .with_context(|| format!("cannot start the central broker on port {}", test.central_port))?;
    let mut arrivals = central.messages();
    let file = test.folder.join("forebay.toml");
    let config = Config::load(&file).map_err(|problems| {
        let lines: Vec<_> = problems.iter().map(ToString::to_string).collect();
        anyhow!("{}", lines.join("\n"))
    })?;
    let gateway = Gateway::start(config).await?;
    let listening = *gateway.addresses.first().context("the gateway has a listener")?;
    let (stop, stopping) = shutdown::pair();
    let device = publish(test, listening, stopping)?;
    let mut out = std::io::stdout();
    let topic = format!("plant/line-1/{}/state", test.device);
    writeln!(out, "\nthe gateway runs, and a central broker on port {}", central.address.port())?;
    writeln!(out, "{} published to {topic}", test.device)?;
    let arrived = tokio::time::timeout(ARRIVAL_WAIT_MAX, next(&mut arrivals)).await;
    let result = match arrived {
        Ok(Some((topic, payload))) => {
            writeln!(out, "the first event is at central:\n  {}\n  {}", shown(&topic), shown(&payload))?;
            if std::io::stdout().is_terminal() {
                writeln!(
                    out,
                    "\nPublish more from another terminal; each event at central appears here. Press Ctrl-C to stop."
                )?;
                tokio::select! {
                    _ = interrupt.recv() => {}
                    () = follow(&mut arrivals) => {}
                }
            }
            Ok(())
        }
        _ => Err(anyhow!(
            "no event reached central within {} s; see `forebay status -c {}`",
            ARRIVAL_WAIT_MAX.as_secs(),
            file.display()
        )),
    };
    stop.begin();
    device.await?;
    gateway.stop().await;
    writeln!(
        out,
        "\nagain: forebay init --test --yes; the same gateway without this broker: forebay run -c {}",
        file.display()
    )?;
    result
}

/// The next event at the broker that is no state of the gateway itself.
async fn next(arrivals: &mut broadcast::Receiver<central::Message>) -> Option<(String, String)> {
    loop {
        match arrivals.recv().await {
            Ok(message) if !message.topic.contains("/gateway.") => {
                return Some((message.topic.to_string(), String::from_utf8_lossy(&message.payload).into_owned()));
            }
            Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => return None,
        }
    }
}

async fn follow(arrivals: &mut broadcast::Receiver<central::Message>) {
    while let Some((topic, payload)) = next(arrivals).await {
        // A closed standard output ends the display.
        if writeln!(std::io::stdout(), "{} {}", shown(&topic), shown(&payload)).is_err() {
            return;
        }
    }
}

/// Connects the device and publishes its state once.
fn publish(
    test: &FirstEvent,
    listening: SocketAddr,
    stop: shutdown::Shutdown,
) -> anyhow::Result<tokio::task::JoinHandle<()>> {
    let file = |name: String| Some(test.folder.join(name));
    let device = &test.device;
    let scheme = if test.is_tls { "mqtts" } else { "mqtt" };
    let tls = match test.is_tls {
        true => ClientFiles {
            ca: file("ca.pem".into()),
            cert: file(format!("{device}.pem")),
            key: file(format!("{device}.key")),
            ..ClientFiles::default()
        },
        false => ClientFiles::default(),
    };
    let config = LinkConfig {
        urls: vec![format!("{scheme}://127.0.0.1:{}", listening.port())],
        tls,
        protocol: Protocol::V5,
        user: Some(device.clone()),
        password_file: file(format!("{device}.password")),
        proxy: None,
        keep_alive: Duration::from_secs(30),
        answer_wait_max: Duration::from_secs(30),
    };
    let target = match Target::new(config) {
        Ok(target) => Arc::new(target),
        Err(error) => bail!("the device cannot connect: {error}"),
    };
    let topic = format!("plant/line-1/{device}/state");
    let now = Timestamp::from(clock::wall());
    let payload = format!("{{\"msg_id\":\"{}\",\"ts\":\"{now}\",\"state\":\"running\"}}", now.0);
    let mut once = Once { topic, payload, is_published: false, is_answered: false };
    let connect_as = ConnectAs::client(device.clone());
    let mut stop = stop;
    Ok(tokio::spawn(async move {
        Client::new(target, connect_as, CredentialRotation::never()).run(&mut once, &mut stop).await;
    }))
}

/// A conversation of one publish.
struct Once {
    topic: String,
    payload: String,
    is_published: bool,
    is_answered: bool,
}

impl Conversation for Once {
    fn begin(&mut self, _session: &Session, _start: Start, _output: &mut Output) {
        self.is_published = self.is_answered;
    }

    async fn fill(&mut self, session: &mut Session, output: &mut Output, may_send: bool) -> Result<Turn, End> {
        if may_send && !self.is_published {
            let head = Head { content_type: Some("application/json"), ..Head::qos1(1) };
            push_publish(&mut output.bytes, session.protocol(), &head, self.topic.as_bytes(), self.payload.as_bytes());
            self.is_published = true;
        }
        Ok(Turn { may_read: true, wake_in: Duration::MAX })
    }

    async fn ready(&mut self) {
        std::future::pending::<()>().await;
    }

    fn is_waiting(&self) -> bool {
        self.is_published && !self.is_answered
    }

    fn drain_wait_max(&self) -> Duration {
        Duration::from_secs(2)
    }

    async fn receive(&mut self, session: &mut Session) -> Result<(), End> {
        while session.next_answer()?.is_some() {
            self.is_answered = true;
        }
        Ok(())
    }

    async fn lost(&mut self, _error: &LinkError, _lasted: Duration, _output: &Output) -> LostSession {
        LostSession { was_good: true, was_idle: false }
    }
}
