//! The HTTP source at its bounds: rates, room, time and memory.

use super::{BATCH, JSON, STRUCTURED, detail, order, prepare, source, start};
use crate::common::broker::{Collector, Mosquitto};
use crate::common::gateway::{accepted, scratch_folder, sum};
use crate::common::http::{Client, post};
use crate::common::leak;
use crate::common::pki::Pki;
use crate::common::random::Random;
use forebay::sources::http::put_token;
use std::collections::BTreeSet;
use std::io::Write;
use std::time::{Duration, Instant};

#[test]
fn who_is_over_its_rate_is_told_when_to_come_again_and_nobody_else_is_slowed() {
    let (mut gateway, address) = prepare("http-rate", "", "tokens = \"tokens\"\nevents_per_second_max = 5\n");
    let tokens = ["fast", "slow"]
        .map(|name| format!("Bearer {}", put_token(&gateway.folder.join("tokens"), name).expect("written")));
    gateway.run();
    let mut client = Client::dial(address);
    let batch = |from: usize| {
        let events: Vec<_> = (from..from + 15).map(|id| order(&id.to_string(), "1")).collect();
        format!("[{}]", events.join(","))
    };
    let fast = [("authorization", tokens[0].as_str()), BATCH];
    assert_eq!(client.post("/events/fast", &fast, batch(0).as_bytes()).status, 202, "a batch is not cut");
    let answer = client.post("/events/fast", &fast, batch(15).as_bytes());
    let told = Instant::now();
    let wait: u64 = answer.header("retry-after").expect("when to come again").parse().expect("seconds");
    assert!(answer.status == 429 && (1..=2).contains(&wait), "{answer:?}");
    assert!(detail(&answer).contains("5 events per second"));
    let slow = [("authorization", tokens[1].as_str()), STRUCTURED];
    assert_eq!(client.post("/events/slow", &slow, order("1", "1").as_bytes()).status, 202);
    std::thread::sleep((told + Duration::from_millis(wait * 1000 + 50)).saturating_duration_since(Instant::now()));
    assert_eq!(client.post("/events/fast", &fast, batch(15).as_bytes()).status, 202);
    let status = gateway.status();
    assert_eq!(accepted(&status), 31, "{status:#}");
}

#[test]
fn a_disk_without_room_is_507_and_nothing_is_said_to_be_taken() {
    // All but a megabyte of the disk is to stay free: there is no room already.
    let disk = rustix::fs::statvfs(crate::common::scratch()).expect("a file system");
    let reserve = format!("{}MB", disk.f_blocks * disk.f_frsize / 1_000_000 - 1);
    let more = format!("disk_reserve = \"{reserve}\"\n");
    let (mut gateway, address) = start("http-disk", &more, "answer_wait_max = \"300ms\"\n");
    let mut client = Client::dial(address);
    let mut answers = Vec::new();
    for id in 0..3 {
        let answer = client.post("/events/erp", &[STRUCTURED], order(&id.to_string(), "1").as_bytes());
        assert_eq!(answer.status, 507, "{answer:?}");
        assert!(answer.header("retry-after").is_some_and(|wait| wait.parse::<u64>().is_ok()), "{answer:?}");
        answers.push(detail(&answer));
    }
    assert!(answers[0].contains("may still be taken: repeat it with the same ids"), "{answers:?}");
    for answer in &answers[1..] {
        assert!(answer.contains("disk_reserve") && answer.contains("nothing of this request was taken"), "{answer}");
    }
    assert_eq!(accepted(&gateway.status()), 0);
    // There is room again: what was repeated is there once.
    gateway.stop();
    let config = std::fs::read_to_string(gateway.config()).expect("read");
    std::fs::write(gateway.config(), config.replace(&reserve, "1MB")).expect("written");
    gateway.run();
    let mut client = Client::dial(address);
    for id in [0, 0, 1] {
        assert_eq!(client.post("/events/erp", &[STRUCTURED], order(&id.to_string(), "1").as_bytes()).status, 202);
    }
    let status = gateway.status();
    assert_eq!((accepted(&status), &status["repeats"]["duplicates"]), (2, &1.into()), "{status:#}");
}

#[test]
fn a_lane_that_is_full_is_507_until_central_takes_its_events() {
    let folder = scratch_folder("http-full");
    let pki = Pki::write(folder.path());
    let mut broker = Mosquitto::start(folder.path(), &pki);
    broker.kill();
    let rest = format!("{}\n[lane.critical]\nbudget = \"8MiB\"\n", broker.destination(&pki, broker.tls.port()));
    let (gateway, address) = start("http-full", &rest, "answer_wait_max = \"1s\"\n");
    let mut client = Client::dial(address);
    let mut random = Random::with_seed(1);
    let mut acknowledged = BTreeSet::new();
    let mut refused = BTreeSet::new();
    for number in 0.. {
        assert!(number < 200, "8 MiB hold no 38 MB");
        let id = format!("{number}");
        let answer =
            client.post("/events/erp", &[STRUCTURED], order(&id, &format!("\"{}\"", random.text(192_000))).as_bytes());
        match answer.status {
            202 => assert!(acknowledged.insert(id)),
            507 => assert!(refused.insert(id), "{answer:?}"),
            other => panic!("{other}: {answer:?}"),
        }
        if refused.len() >= 3 {
            break;
        }
    }
    // Another lane is not concerned.
    let count = br#"{"msg_id":"1","machine":"m1","ts":1764000000}"#;
    assert_eq!(client.post("/events/erp", &[JSON], count).status, 202);
    broker.run();
    let collector = Collector::start(broker.plain, "test/plant/#");
    let start = Instant::now();
    loop {
        let answer = client.try_post("/events/erp", &[STRUCTURED], order("last", "1").as_bytes());
        let answer = answer.unwrap_or_else(|_| {
            client = Client::dial(address);
            client.post("/events/erp", &[STRUCTURED], order("last", "1").as_bytes())
        });
        if answer.status == 202 {
            acknowledged.insert("last".into());
            break;
        }
        assert!(answer.status == 507 && start.elapsed() < Duration::from_secs(60), "{answer:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
    gateway.await_status("the backlog drains", Duration::from_secs(60), |status| sum(status, "queued") == 0);
    let start = Instant::now();
    loop {
        let orders = collector.arrived().into_iter().filter(|event| event.topic.contains("order.released"));
        let ids: BTreeSet<_> = orders.map(|event| event.event()["id"].as_str().expect("an id").to_owned()).collect();
        if acknowledged.is_subset(&ids) {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "{:?} are missing", acknowledged.difference(&ids));
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn slow_senders_are_cut_off() {
    let (gateway, address) = start("http-slow", "", "request_wait_max = \"500ms\"\nconnections_max = 4\n");
    let start = Instant::now();
    // One byte of a head now and then, for ever.
    let mut head = Client::dial(address);
    head.stream.write_all(b"POST /events/erp HTTP/1.1\r\nx: ").expect("sent");
    while head.stream.write_all(b"y").is_ok() && start.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(start.elapsed() < Duration::from_secs(10), "the head");
    // A body that never ends gets an answer, since there is somebody to answer.
    let start = Instant::now();
    let mut body = Client::dial(address);
    body.stream.write_all(b"POST /events/erp HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{").expect("sent");
    let answer = body.receive().expect("an answer");
    assert!(answer.status == 408 && detail(&answer).contains("500ms"), "{answer:?}");
    assert!(body.is_closed() && start.elapsed() < Duration::from_secs(10));
    // A connection that says nothing makes room.
    let mut silent = Client::dial(address);
    assert!(silent.is_closed());
    // At the limit of connections the next one waits, and is served when there is room.
    let idle: Vec<_> = (0..4)
        .map(|id| {
            let mut client = Client::dial(address);
            assert_eq!(client.post("/events/erp", &[STRUCTURED], order(&id.to_string(), "1").as_bytes()).status, 202);
            client
        })
        .collect();
    let mut waiting = Client::dial(address);
    assert_eq!(waiting.post("/events/erp", &[STRUCTURED], order("5", "1").as_bytes()).status, 202);
    drop(idle);
    gateway.await_status("they are gone", Duration::from_secs(10), |status| source(status)["connections"] == 0);
    assert_eq!(accepted(&gateway.status()), 5);
}

/// Answers that nobody reads fill the buffers of both sides, and then time runs.
#[test]
fn who_reads_no_answers_is_cut_off() {
    let (gateway, address) = start("http-unread", "", "events_per_second_max = 1\n");
    let mut client = Client::dial(address);
    client.stream.set_write_timeout(Some(Duration::from_secs(5))).expect("set");
    let requests = b"GET /events/erp HTTP/1.1\r\nhost: x\r\n\r\n".repeat(1000);
    let mut written = 0;
    while client.stream.write_all(&requests).is_ok() {
        written += requests.len();
        assert!(written < 1 << 30, "the gateway takes requests without end");
    }
    assert_eq!(source(&gateway.status())["connections"], 1, "it is still there, and stuck");
    gateway.await_status("it is gone", Duration::from_secs(60), |status| source(status)["connections"] == 0);
}

#[test]
fn bodies_in_hand_are_bounded_over_all_connections() {
    let more = "waiting_max = \"160KB\"\nbody_max = \"100KB\"\npayload_max = \"10KB\"\nanswer_wait_max = \"500ms\"\n";
    let (_gateway, address) = start("http-room", "", more);
    // Three may not be in hand at once; two of them do not come to an end.
    let mut first = Client::dial(address);
    let headers = [STRUCTURED, ("expect", "100-continue")];
    first.stream.write_all(&post("/events/erp", &headers, &[b' '; 90_000])[..200]).expect("sent");
    assert_eq!(first.receive().expect("its body is awaited").status, 100);
    let mut second = Client::dial(address);
    let answer = second.post("/events/erp", &[STRUCTURED], &[&vec![b' '; 80_000], order("1", "1").as_bytes()].concat());
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(answer.header("retry-after").is_some() && detail(&answer).contains("nothing of this one was taken"));
    // Its body was never read, so that the connection ends. A small one still finds room.
    assert!(second.is_closed());
    let mut second = Client::dial(address);
    let answer = second.post("/events/erp", &[STRUCTURED], order("1", "1").as_bytes());
    assert_eq!(answer.status, 202, "{answer:?}");
    drop(first);
    let answer = second.post("/events/erp", &[STRUCTURED], &[&vec![b' '; 80_000], order("2", "1").as_bytes()].concat());
    assert_eq!(answer.status, 202, "{answer:?}");
}

/// Malformed requests, slow senders and many connections leave nothing behind: a leak grows from round to round, what
/// buffers and the allocator keep does not. One arena is used: which of several a thread takes is chance, and moved the
/// figures by 8 MB.
#[test]
fn a_thousand_connections_leak_nothing() {
    let (mut gateway, address) = prepare("http-leak", "", "events_per_second_max = 1000000\n");
    leak::prepare(&mut gateway);
    gateway.run();
    let await_none = || {
        gateway.await_status("they are gone", Duration::from_secs(30), |status| source(status)["connections"] == 0);
    };
    let round = |count: usize| {
        for index in 0..count {
            let mut client = Client::dial(address);
            let bytes = match index % 6 {
                0 => vec![0xFF; 64],
                1 => b"POST /events/erp HTTP/1.1\r\nhos".to_vec(),
                2 => post("/events/erp", &[STRUCTURED], b"{\"id\":"),
                3 => post("/events/erp", &[JSON], b"nonsense")[..60].to_vec(),
                4 => post("/events/erp", &[STRUCTURED], order("1", "1").as_bytes()),
                _ => vec![],
            };
            // Some are gone before that.
            let _ = client.stream.write_all(&bytes);
        }
    };
    let all_at_once = || {
        let open: Vec<_> = (0..1000).map(|_| Client::dial(address)).collect();
        gateway.await_status("all are there", Duration::from_secs(30), |status| {
            source(status)["connections"].as_u64() >= Some(900)
        });
        drop(open);
        await_none();
    };
    // Three rounds are 6,000 connections: 170 bytes of each are found. Before them the most that is held at once is found.
    leak::await_no_growth(&gateway, || {
        round(1000);
        all_at_once();
    });
    let mut client = Client::dial(address);
    assert_eq!(client.post("/events/erp", &[STRUCTURED], order("2", "1").as_bytes()).status, 202);
}
