//! A simulated device: publishes messages for the ready-made contracts, and some that break their contract.

use crate::clock;
use crate::contract::push_json_string;
use crate::event::Timestamp;
use crate::link::{Config, Head, Output, Protocol, Reply, Session, Target, push_publish};
use crate::shutdown::Shutdown;
use crate::tls::ClientFiles;
use std::net::SocketAddr;
use std::time::Duration;

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
        keep_alive: Duration::from_secs(30),
        answer_wait_max: Duration::from_secs(60),
    };
    let Ok(target) = Target::new(config) else { return };
    let run = clock::wall();
    let client = format!("machine-{index:02}");
    let mut count = 0;
    while !stop.has_begun() {
        let connected = tokio::select! {
            () = stop.begun() => return,
            connected = target.connect(&client, None) => connected,
        };
        if let Ok(session) = connected {
            let mut device =
                Device { index, run: Timestamp::from(run).0, count, session, output: Output::default(), in_flight: 0 };
            device.publish_until(&mut stop, Duration::from_secs_f64(f64::from(of) / f64::from(rate))).await;
            count = device.count;
        } else {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

struct Device {
    index: u32,
    run: i64,
    count: u64,
    session: Session,
    output: Output,
    in_flight: u64,
}

impl Device {
    async fn publish_until(&mut self, stop: &mut Shutdown, every: Duration) {
        let mut tick = tokio::time::interval(every);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut is_ending = false;
        loop {
            let Ok(next_check) = self.session.check(self.in_flight > 0, &mut self.output) else { return };
            tokio::select! {
                () = stop.begun(), if !is_ending => is_ending = true,
                _ = tick.tick(), if !is_ending => self.publish(),
                result = self.session.exchange(&mut self.output) => if result.is_err() {
                    return;
                },
                () = tokio::time::sleep(next_check) => {}
            }
            loop {
                match self.session.next_reply() {
                    Ok(None) => break,
                    Ok(Some(Reply::Acknowledged(_) | Reply::NoSubscribers(_) | Reply::Rejected(..))) => {
                        self.in_flight -= 1
                    }
                    Ok(Some(Reply::Disconnected(_))) | Err(_) => return,
                    Ok(Some(_)) => {}
                }
            }
            if is_ending && self.in_flight == 0 {
                return;
            }
        }
    }

    fn publish(&mut self) {
        self.count += 1;
        let id = (self.count % 65_535 + 1) as u16;
        let (kind, payload) = self.message();
        let topic = format!("plant/line-{}/machine-{:02}/{kind}", self.index / 5 + 1, self.index);
        let head = Head { content_type: Some("application/json"), ..Head::qos1(id) };
        push_publish(&mut self.output.bytes, self.session.protocol(), &head, topic.as_bytes(), &payload);
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
