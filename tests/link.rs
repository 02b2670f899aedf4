//! The link, against a broker that answers as the test says.

use crate::common::client::{Client, Hello};
use crate::common::gateway::{Gateway, payload, sum};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What the broker does with a publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Do {
    Answer(u8),
    /// End the connection without an answer.
    Die,
    Nothing,
}

type Script = Box<dyn Fn(&serde_json::Value, usize) -> Do + Send + Sync>;

struct Scripted {
    address: SocketAddr,
    /// Sequence numbers as they came.
    seen: Arc<Mutex<Vec<u64>>>,
    is_over: Arc<AtomicBool>,
}

impl Scripted {
    /// `connack` are the properties of its CONNACK.
    fn start(connack: Vec<u8>, script: impl Fn(&serde_json::Value, usize) -> Do + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("port");
        let address = listener.local_addr().expect("address");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let is_over = Arc::new(AtomicBool::new(false));
        let (theirs, over) = (Arc::clone(&seen), Arc::clone(&is_over));
        let script: Arc<Script> = Arc::new(Box::new(script));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                let (seen, script, connack) = (Arc::clone(&theirs), Arc::clone(&script), connack.clone());
                std::thread::spawn(move || {
                    if let Ok(stream) = stream {
                        // However it ends.
                        let _ = serve(stream, &connack, &script, &seen);
                    }
                });
            }
        });
        Self { address, seen, is_over }
    }

    fn destination(&self) -> String {
        format!("\n[[destination]]\nname = \"central\"\nurl = \"mqtt://{}\"\n", self.address)
    }

    fn seen(&self) -> Vec<u64> {
        self.seen.lock().expect("lock").clone()
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
    }
}

fn serve(mut stream: TcpStream, connack: &[u8], script: &Script, seen: &Mutex<Vec<u64>>) -> std::io::Result<()> {
    let mut input = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = stream.read(&mut buffer)?;
        if read == 0 {
            return Ok(());
        }
        input.extend_from_slice(&buffer[..read]);
        let mut at = 0;
        while let Ok(Some(frame)) = forebay::mqtt::frame(&input[at..], usize::MAX) {
            match frame.first >> 4 {
                1 => {
                    let mut answer = vec![0x20, 3 + connack.len() as u8, 0, 0, connack.len() as u8];
                    answer.extend_from_slice(connack);
                    stream.write_all(&answer)?;
                }
                3 => {
                    let publish = forebay::mqtt::publish(frame.first, frame.body, true).expect("a publish");
                    let event: serde_json::Value = serde_json::from_slice(publish.payload).expect("an event");
                    let [high, low] = publish.packet_id.to_be_bytes();
                    let Some(sequence) = event["sequence"].as_str() else {
                        stream.write_all(&[0x40, 2, high, low])?;
                        at += frame.length;
                        continue;
                    };
                    let sequence: u64 = sequence.parse().expect("a number");
                    let before = {
                        let mut seen = seen.lock().expect("lock");
                        let before = seen.iter().filter(|known| **known == sequence).count();
                        seen.push(sequence);
                        before
                    };
                    match script(&event, before) {
                        Do::Answer(0) => stream.write_all(&[0x40, 2, high, low])?,
                        Do::Answer(code) => stream.write_all(&[0x40, 4, high, low, code, 0])?,
                        Do::Die => return Ok(()),
                        Do::Nothing => {}
                    }
                }
                12 => stream.write_all(&[0xD0, 0])?,
                14 => return Ok(()),
                _ => {}
            }
            at += frame.length;
        }
        input.drain(..at);
    }
}

/// Publishes `count` events and waits until none is queued.
fn run(name: &str, broker: &Scripted, rest: &str, count: u16) -> (Gateway, serde_json::Value) {
    let gateway = Gateway::start(name, &format!("{}{rest}", broker.destination()));
    let (mut client, _) = Client::connect(gateway.address, &Hello::default());
    for number in 1..=count {
        client.publish(true, number, "plant/line1/m01/state", payload(1, number.into()).as_bytes());
    }
    let status =
        gateway.await_status("nothing is queued", Duration::from_secs(40), |status| sum(status, "queued") == 0);
    (gateway, status)
}

fn number(event: &serde_json::Value) -> u64 {
    event["data"]["seq"].as_u64().expect("a number")
}

#[test]
fn a_refusal_for_ever_makes_a_dead_letter_and_blocks_nobody() {
    let broker = Scripted::start(vec![], |event, _| if number(event) == 5 { Do::Answer(0x99) } else { Do::Answer(0) });
    let (gateway, status) = run("forever", &broker, "", 20);
    assert_eq!((sum(&status, "delivered"), sum(&status, "dead")), (19, 1));
    assert_eq!(broker.seen(), (1..=20).collect::<Vec<_>>(), "each once, in order");
    let letters = gateway.command(&["dead", "list", "--json", "CONFIG"]);
    let letters: serde_json::Value = serde_json::from_slice(&letters.stdout).expect("JSON");
    let letter = &letters[0];
    assert_eq!((letter["stage"].as_str(), letter["sequence"].as_u64()), (Some("central"), Some(5)));
    assert!(letter["reason"].as_str().is_some_and(|reason| reason.contains("0x99 payload format invalid")), "{letter}");
    assert_eq!(letter["event_id"], "01-00000005");
}

#[test]
fn a_refusal_for_now_is_tried_again_in_order() {
    let broker =
        Scripted::start(
            vec![],
            |event, before| if number(event) == 5 && before < 3 { Do::Answer(0x97) } else { Do::Answer(0) },
        );
    let (_gateway, status) = run("fornow", &broker, "", 20);
    assert_eq!((sum(&status, "delivered"), sum(&status, "dead")), (20, 0));
    let mut first = Vec::new();
    for sequence in broker.seen() {
        if !first.contains(&sequence) {
            first.push(sequence);
        }
    }
    assert_eq!(first, (1..=20).collect::<Vec<_>>(), "first deliveries are in order");
    assert_eq!(broker.seen().iter().filter(|sequence| **sequence == 5).count(), 4);
}

#[test]
fn an_event_that_kills_the_connection_becomes_a_dead_letter() {
    let broker = Scripted::start(vec![], |event, _| if number(event) == 7 { Do::Die } else { Do::Answer(0) });
    let (gateway, status) = run("poison", &broker, "", 20);
    assert_eq!((sum(&status, "delivered"), sum(&status, "dead")), (19, 1));
    let letters = String::from_utf8_lossy(&gateway.command(&["dead", "list", "CONFIG"]).stdout).into_owned();
    assert!(letters.contains("ends the connection whenever it is sent this event"), "{letters}");
}

#[test]
fn the_window_and_the_packet_size_of_the_broker_are_kept() {
    // Receive Maximum 3, Maximum Packet Size 600; nothing is answered until three are in flight.
    let broker = Scripted::start(vec![0x21, 0, 3, 0x27, 0, 0, 0x02, 0x58], |_, _| Do::Answer(0));
    let gateway = Gateway::start("limits", &broker.destination());
    let (mut client, _) = Client::connect(gateway.address, &Hello::default());
    for id in 1..=10u16 {
        let note = if id == 4 { "x".repeat(400) } else { String::new() };
        let payload = format!(r#"{{"msg_id":"01-{id:08}","seq":{id},"note":"{note}"}}"#);
        client.publish(true, id, "plant/line1/m01/state", payload.as_bytes());
    }
    let status =
        gateway.await_status("nothing is queued", Duration::from_secs(20), |status| sum(status, "queued") == 0);
    assert_eq!((sum(&status, "delivered"), sum(&status, "dead")), (9, 1));
    assert!(!broker.seen().contains(&4), "the one that is too large is never sent");
    let letters = String::from_utf8_lossy(&gateway.command(&["dead", "list", "CONFIG"]).stdout).into_owned();
    assert!(letters.contains("the broker takes 600 at most"), "{letters}");
}

#[test]
fn a_broker_that_lives_but_never_acknowledges_is_left() {
    let broker = Scripted::start(vec![], |_, before| if before == 0 { Do::Nothing } else { Do::Answer(0) });
    let (_gateway, status) = run("stuck", &broker, "answer_wait_max = \"1s\"\n", 3);
    assert_eq!(sum(&status, "delivered"), 3);
}

#[test]
fn without_a_subscriber_an_event_is_settled_and_counted_or_held() {
    let broker = Scripted::start(vec![], |_, _| Do::Answer(0x10));
    let (_gateway, status) = run("unheard", &broker, "", 3);
    assert_eq!(sum(&status, "delivered"), 3);
    let unheard: u64 =
        status["links"].as_array().into_iter().flatten().map(|link| link["unheard"].as_u64().unwrap_or(0)).sum();
    assert_eq!(unheard, 3);

    let broker = Scripted::start(vec![], |_, before| Do::Answer(if before < 2 { 0x10 } else { 0 }));
    let (_gateway, status) = run("held", &broker, "require_subscriber = true\n", 3);
    assert_eq!(sum(&status, "delivered"), 3);
    assert!(broker.seen().len() > 5, "{:?}", broker.seen());
}
