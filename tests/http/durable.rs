//! What the HTTP source answered 202 is on the disk, and what is repeated is there once.

use super::{BATCH, JSON, STRUCTURED, order, source, start};
use crate::common::broker::{Arrived, Collector, Mosquitto, check_arrivals};
use crate::common::gateway::{Gateway, accepted, scratch_folder, sum};
use crate::common::http::{Answer, Client, post};
use crate::common::pki::Pki;
use crate::common::random::Random;
use crate::common::signal_pid;
use std::collections::BTreeSet;
use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Posts in every mode, each event again until it is acknowledged, while the gateway is killed.
#[test]
fn an_event_that_was_answered_202_survives_every_kill() {
    const POSTERS: usize = 9;
    let folder = scratch_folder("http-kills");
    let pki = Pki::write(folder.path());
    let broker = Mosquitto::start(folder.path(), &pki);
    let collector = Collector::start(broker.plain, "test/plant/order.released/#");
    let rest = broker.destination(&pki, broker.tls.port());
    let (mut gateway, address) = start("http-kills", &rest, "events_per_second_max = 100000\n");
    let mut random = Random::seeded();
    let (acknowledged, count, is_over) = (Mutex::new(Vec::new()), AtomicUsize::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for poster in 0..POSTERS {
            let (acknowledged, count, is_over) = (&acknowledged, &count, &is_over);
            scope.spawn(move || {
                let mut next = 0;
                while !is_over.load(Ordering::Relaxed) {
                    let Ok(mut client) = Client::try_dial(address) else {
                        std::thread::sleep(Duration::from_millis(3));
                        continue;
                    };
                    // Any error means that the gateway is gone for a moment.
                    while !is_over.load(Ordering::Relaxed) {
                        let Ok((answer, events)) = post_some(&mut client, poster, next) else { break };
                        if answer.status != 202 {
                            assert_eq!(answer.status, 503, "{answer:?}");
                            break;
                        }
                        assert_eq!(answer.json(), serde_json::json!({"events": events, "dead_letters": 0}));
                        let mut list = acknowledged.lock().expect("lock");
                        list.extend((next..next + events).map(|number| (poster, number)));
                        count.store(list.len(), Ordering::Relaxed);
                        next += events;
                    }
                }
            });
        }
        for round in 0..15 {
            let before = count.load(Ordering::Relaxed);
            let start = Instant::now();
            while count.load(Ordering::Relaxed) < before + 30 {
                assert!(start.elapsed() < Duration::from_secs(30), "nothing is acknowledged after kill {round}");
                std::thread::sleep(Duration::from_millis(1));
            }
            std::thread::sleep(Duration::from_millis(random.below(200)));
            gateway.kill();
            gateway.run();
        }
        is_over.store(true, Ordering::Relaxed);
    });
    let acknowledged = acknowledged.into_inner().expect("lock");
    assert!(acknowledged.len() > 450, "only {} were acknowledged", acknowledged.len());
    gateway.await_status("the backlog drains", Duration::from_secs(60), |status| sum(status, "queued") == 0);
    std::thread::sleep(Duration::from_millis(500));
    let arrived = collector.arrived();
    check_arrivals(&arrived, &acknowledged);
    // What was repeated after a kill is in the stream once: no number of it carries an earlier event.
    let distinct = |of: &dyn Fn(&serde_json::Value) -> String| -> usize {
        arrived.iter().map(Arrived::event).map(|event| of(&event)).collect::<BTreeSet<_>>().len()
    };
    let (numbers, events) =
        (distinct(&|event| event["sequence"].to_string()), distinct(&|event| event["id"].to_string()));
    assert_eq!(numbers, events, "an event has two numbers");
}

/// One request of a poster, in the mode of its own; and how many events are in it.
fn post_some(client: &mut Client, poster: usize, next: usize) -> std::io::Result<(Answer, usize)> {
    let data = |number: usize| format!(r#"{{"msg_id":"{poster:02}-{number:08}"}}"#);
    let event = |number: usize| {
        order(&format!("{poster:02}-{number:08}"), &data(number)).replace("line/1", &format!("poster-{poster}"))
    };
    let path = format!("/events/program-{poster}");
    Ok(match poster % 3 {
        0 => (client.try_post(&path, &[STRUCTURED], event(next).as_bytes())?, 1),
        1 => {
            let (id, subject) = (format!("{poster:02}-{next:08}"), format!("poster-{poster}"));
            let headers = [
                JSON,
                ("ce-specversion", "1.0"),
                ("ce-id", &id),
                ("ce-source", "erp"),
                ("ce-type", "com.example.order"),
                ("ce-subject", &subject),
            ];
            (client.try_post(&path, &headers, data(next).as_bytes())?, 1)
        }
        _ => {
            let events: Vec<_> = (next..next + 5).map(event).collect();
            (client.try_post(&path, &[BATCH], format!("[{}]", events.join(",")).as_bytes())?, 5)
        }
    })
}

#[test]
fn a_repeat_is_recognised_across_a_restart_and_different_events_never_are() {
    let (mut gateway, address) = start("http-repeats", "", "");
    let of = |source: &str, id: &str, data: &str| order(id, data).replace("\"erp\"", &format!("\"{source}\""));
    let post = |body: &str| {
        let answer = Client::dial(address).post("/events/erp", &[STRUCTURED], body.as_bytes());
        assert_eq!(answer.status, 202, "{answer:?}");
    };
    post(&of("erp", "1", "1"));
    gateway.kill();
    gateway.run();
    post(&of("erp", "1", "1"));
    let figures = |gateway: &Gateway| {
        let status = gateway.status();
        (accepted(&status), status["repeats"]["duplicates"].as_u64(), status["repeats"]["id_conflicts"].as_u64())
    };
    assert_eq!(figures(&gateway), (1, Some(1), Some(0)));
    // The same id of another source is another event, with the same payload too.
    post(&of("/erp/orders", "1", "1"));
    post(&of("/erp/stock", "1", "1"));
    assert_eq!(figures(&gateway), (3, Some(1), Some(0)));
    // A counter that starts again: other facts under old ids are kept.
    post(&of("erp", "1", "2"));
    assert_eq!(figures(&gateway), (4, Some(1), Some(1)));
    // Plain posts under a contract with an id, in a batch and twice.
    let plain = br#"{"msg_id":"7","machine":"m","ts":1}"#;
    for _ in 0..2 {
        assert_eq!(Client::dial(address).post("/events/erp", &[JSON], plain).status, 202);
    }
    assert_eq!(figures(&gateway), (5, Some(2), Some(1)));
    let twice = format!("[{},{}]", order("9", "1"), order("9", "1"));
    assert_eq!(Client::dial(address).post("/events/erp", &[BATCH], twice.as_bytes()).status, 202);
    assert_eq!(figures(&gateway), (6, Some(3), Some(1)));
}

#[test]
fn requests_in_hand_get_their_answer_when_the_gateway_is_stopped() {
    let (mut gateway, address) = start("http-stop", "\n[lane.standard]\nlinger = \"4s\"\n", "");
    let count = |id: usize| format!(r#"{{"msg_id":"{id}","machine":"m","ts":1}}"#);
    let mut client = Client::dial(address);
    let mut idle = Client::dial(address);
    assert_eq!(client.post("/events/erp", &[JSON], count(1).as_bytes()).status, 202);
    // The lane has just committed, so that this one has to wait.
    client.stream.write_all(&post("/events/erp", &[JSON], count(2).as_bytes())).expect("sent");
    gateway.await_status("it is in hand", Duration::from_secs(2), |status| source(status)["received"] == 2);
    let start = Instant::now();
    signal_pid(gateway.pid(), "TERM");
    let answer = client.receive().expect("an answer");
    assert_eq!(answer.status, 202, "{answer:?}");
    assert!(start.elapsed() > Duration::from_millis(300), "it was in hand when the gateway was stopped");
    assert!(client.is_closed() && idle.is_closed());
    gateway.stop();
    gateway.run();
    assert_eq!(accepted(&gateway.status()), 2);
}
