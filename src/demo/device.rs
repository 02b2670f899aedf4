//! A simulated device: publishes what the ready contracts expect, and now and then nonsense.

use super::object;
use crate::clock;
use crate::event::Timestamp;
use crate::link::{Answer, Config, Head, Output, Protocol, Session, Target, push_publish};
use crate::shutdown::Shutdown;
use crate::tls::ClientFiles;
use std::net::SocketAddr;
use std::time::Duration;

/// One message in so many breaks its contract.
const NONSENSE_EVERY: u64 = 200;

/// Lives until the shutdown: publishes, and reconnects when the gateway is gone.
pub(super) async fn live(index: u32, of: u32, rate: u32, gateway: SocketAddr, mut stop: Shutdown) {
    let config = Config {
        urls: vec![format!("mqtt://{gateway}")],
        tls: ClientFiles::default(),
        // Half of the plant is older.
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
                Device { index, run: Timestamp::from(run).0, count, session, output: Output::default(), open: 0 };
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
    open: u64,
}

impl Device {
    async fn publish_until(&mut self, stop: &mut Shutdown, every: Duration) {
        let mut beat = tokio::time::interval(every);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut is_ending = false;
        loop {
            let Ok(look_again) = self.session.watch(self.open > 0, &mut self.output) else { return };
            tokio::select! {
                () = stop.begun(), if !is_ending => is_ending = true,
                _ = beat.tick(), if !is_ending => self.publish(),
                moved = self.session.exchange(&mut self.output) => if moved.is_err() {
                    return;
                },
                () = tokio::time::sleep(look_again) => {}
            }
            loop {
                match self.session.answer() {
                    Ok(None) => break,
                    Ok(Some(Answer::Taken(_) | Answer::Unheard(_) | Answer::Refused(..))) => self.open -= 1,
                    Ok(Some(Answer::Goodbye(_))) | Err(_) => return,
                    Ok(Some(_)) => {}
                }
            }
            if is_ending && self.open == 0 {
                return;
            }
        }
    }

    fn publish(&mut self) {
        self.count += 1;
        let id = (self.count % 65_535 + 1) as u16;
        let (kind, payload) = self.message();
        let topic = format!("plant/line-{}/machine-{:02}/{kind}", self.index / 5 + 1, self.index);
        push_publish(
            &mut self.output.bytes,
            self.session.protocol(),
            &Head::qos1(id),
            topic.as_bytes(),
            "application/json",
            &[],
            &payload,
        );
        self.open += 1;
    }

    fn message(&self) -> (&'static str, Vec<u8>) {
        let n = self.count;
        // Different in each run, so that a second run is not taken for a repeat of the first.
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
