//! A simulated device: publishes messages for the ready-made contracts, and some that break their contract.

use crate::clock;
use crate::contract::push_json_string;
use crate::event::Timestamp;
use crate::link::{
    Client, Config, ConnectAs, Conversation, CredentialRotation, End, Head, LinkError, LostSession, Output, Protocol,
    Session, Start, Target, Turn, push_publish,
};
use crate::shutdown::Shutdown;
use crate::tls::ClientFiles;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Interval;

/// One of this number of messages breaks its contract.
const NONSENSE_EVERY: u64 = 200;

/// Publishes until shutdown; reconnects when the connection is lost.
pub(super) async fn run_device(index: u32, of: u32, rate: u32, gateway: SocketAddr, mut stop: Shutdown) {
    let config = Config {
        urls: vec![format!("mqtt://{gateway}")],
        tls: ClientFiles::default(),
        // Half of the devices use MQTT 3.1.1.
        protocol: if index.is_multiple_of(2) { Protocol::V5 } else { Protocol::V3 },
        user: None,
        password_file: None,
        proxy: None,
        keep_alive: Duration::from_secs(30),
        answer_wait_max: Duration::from_secs(60),
    };
    let Ok(target) = Target::new(config) else { return };
    let mut tick = tokio::time::interval(Duration::from_secs_f64(f64::from(of) / f64::from(rate)));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let run = Timestamp::from(clock::wall()).0;
    let mut device = Device { index, run, count: 0, tick, is_due: false, in_flight: 0 };
    let connect_as = ConnectAs::client(format!("machine-{index:02}"));
    Client::new(Arc::new(target), connect_as, CredentialRotation::never()).run(&mut device, &mut stop).await;
}

struct Device {
    index: u32,
    run: i64,
    count: u64,
    tick: Interval,
    is_due: bool,
    in_flight: u64,
}

impl Conversation for Device {
    fn begin(&mut self, _session: &Session, _start: Start, _output: &mut Output) {
        self.in_flight = 0;
    }

    async fn fill(&mut self, session: &mut Session, output: &mut Output, may_send: bool) -> Result<Turn, End> {
        if may_send && std::mem::take(&mut self.is_due) {
            self.publish(session, output);
        }
        Ok(Turn { may_read: true, wake_in: Duration::MAX })
    }

    async fn ready(&mut self) {
        self.tick.tick().await;
        self.is_due = true;
    }

    fn is_waiting(&self) -> bool {
        self.in_flight > 0
    }

    fn drain_wait_max(&self) -> Duration {
        Duration::from_secs(2)
    }

    async fn receive(&mut self, session: &mut Session) -> Result<(), End> {
        while session.next_answer()?.is_some() {
            self.in_flight = self.in_flight.saturating_sub(1);
        }
        Ok(())
    }

    async fn lost(&mut self, _error: &LinkError, _lasted: Duration, _output: &Output) -> LostSession {
        LostSession { was_good: true, was_idle: false }
    }
}

impl Device {
    fn publish(&mut self, session: &Session, output: &mut Output) {
        self.count += 1;
        let id = (self.count % 65_535 + 1) as u16;
        let (kind, payload) = self.message();
        let topic = format!("plant/line-{}/machine-{:02}/{kind}", self.index / 5 + 1, self.index);
        let head = Head { content_type: Some("application/json"), ..Head::qos1(id) };
        push_publish(&mut output.bytes, session.protocol(), &head, topic.as_bytes(), &payload);
        self.in_flight += 1;
    }

    fn message(&self) -> (&'static str, Vec<u8>) {
        let n = self.count;
        // Differs in each run: the gateway must not take a second run for a repeat of the first.
        let msg_id = format!("\"{:x}-{n}\"", self.run);
        let ts = format!("\"{}\"", Timestamp::from(clock::wall()));
        let wave = (n as f64 / 50.0 + f64::from(self.index)).sin();
        if n.is_multiple_of(NONSENSE_EVERY) {
            return ("state", object(&[("msg_id", msg_id), ("ts", ts), ("state", "\"on strike\"".into())]));
        }
        match n % 20 {
            0 => {
                let state = ["running", "running", "idle", "setup", "fault"][(n / 20 % 5) as usize];
                ("state", object(&[("msg_id", msg_id), ("ts", ts), ("state", format!("\"{state}\""))]))
            }
            1 if n.is_multiple_of(3) => {
                let active = (n / 20).is_multiple_of(2).to_string();
                (
                    "alarm",
                    object(&[
                        ("msg_id", msg_id),
                        ("ts", ts),
                        ("alarm", "4711".into()),
                        ("active", active),
                        ("severity", "\"warning\"".into()),
                    ]),
                )
            }
            2 | 12 => {
                let piece = format!("\"P{}-{n}\"", self.index);
                let result = if n.is_multiple_of(7) { "\"fail\"" } else { "\"pass\"" };
                (
                    "quality",
                    object(&[
                        ("msg_id", msg_id),
                        ("ts", ts),
                        ("piece", piece),
                        ("result", result.into()),
                        ("value", format!("{:.3}", 10.0 + wave / 100.0)),
                    ]),
                )
            }
            n if n % 2 == 0 => {
                ("count", object(&[("msg_id", msg_id), ("ts", ts), ("good", "1".into()), ("scrap", "0".into())]))
            }
            _ => (
                "energy",
                object(&[
                    ("ts", ts),
                    ("energy_kwh", format!("{:.2}", self.count as f64 / 100.0)),
                    ("power_kw", format!("{:.2}", 7.5 + wave)),
                ]),
            ),
        }
    }
}

/// Encodes a flat JSON object; the values are already JSON.
fn object(members: &[(&str, String)]) -> Vec<u8> {
    let mut out = vec![b'{'];
    for (index, (name, value)) in members.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        push_json_string(&mut out, name);
        out.push(b':');
        out.extend_from_slice(value.as_bytes());
    }
    out.push(b'}');
    out
}
