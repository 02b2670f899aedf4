//! What the command socket answers never stands in memory as a whole, however much there is and however slowly it is read.

use crate::common::client::{Client, Hello};
use crate::common::gateway::Gateway;
use crate::common::random::Random;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Dead letters, and bytes of each: together a hundred times what an answer may take.
const LETTERS: u16 = 400;
const BYTES: usize = 250_000;
/// Readers that ask for everything and read nothing.
const STALLED: usize = 6;
/// What all answers together may add to the memory of the gateway, in kB.
const MEMORY_KB_MAX: u64 = 40_000;

/// A line of `/proc/PID/status`, in kB.
fn memory(gateway: &Gateway, line: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.pid())).expect("it runs");
    let found = status.lines().find_map(|text| text.strip_prefix(line)).expect("such a line");
    found.split_whitespace().next().and_then(|word| word.parse().ok()).expect("a number")
}

/// 400 dead letters of 250 kB once made an answer of 400 MB, payloads and all: under the limit of the unit that ended the
/// gateway.
#[test]
fn a_list_of_dead_letters_is_without_payloads_and_takes_little_memory() {
    let gateway = Gateway::start("answers", "");
    let (mut client, _) = Client::connect(gateway.address, &Hello::default());
    for number in 1..=LETTERS {
        client.publish(true, number, "lost/topic", &Random::with_seed(number.into()).bytes(BYTES));
    }
    drop(client);
    // The peak from here on.
    std::fs::write(format!("/proc/{}/clear_refs", gateway.pid()), "5").expect("cleared");
    let before = memory(&gateway, "VmHWM:");
    let socket = gateway.folder.join("data/forebay.sock");
    let stalled: Vec<_> = (0..STALLED)
        .map(|_| {
            let mut stream = UnixStream::connect(&socket).expect("connects");
            stream.write_all(b"GET /dead?limit=10000 HTTP/1.1\r\nhost: x\r\n\r\n").expect("asked");
            stream
        })
        .collect();
    let output = gateway.command(&["dead", "list", "--json", "--limit", "10000", "CONFIG"]);
    let text = String::from_utf8_lossy(&output.stdout);
    let letters: Vec<serde_json::Value> = serde_json::from_str(&text).expect("JSON");
    assert_eq!(letters.len(), usize::from(LETTERS));
    for (letter, number) in letters.iter().zip(1..) {
        assert_eq!((&letter["id"], &letter["payload_bytes"]), (&number.into(), &BYTES.into()), "{letter}");
    }
    assert!(text.len() < 1_000_000, "{} bytes: there is no payload in it", text.len());
    let shown = gateway.command(&["dead", "show", "7", "--json", "CONFIG"]);
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).expect("JSON");
    assert!(shown["payload_base64"].as_str().is_some_and(|text| text.len() > BYTES), "one alone is shown whole");
    let newest = gateway.command(&["dead", "list", "--json", "--limit", "3", "CONFIG"]);
    let newest: Vec<serde_json::Value> = serde_json::from_slice(&newest.stdout).expect("JSON");
    assert_eq!(newest.iter().map(|letter| letter["id"].as_u64()).collect::<Vec<_>>(), [398, 399, 400].map(Some));
    let peak = memory(&gateway, "VmHWM:");
    assert!(peak < before + MEMORY_KB_MAX, "{before} kB before, {peak} kB at the peak");
    drop(stalled);
}

/// Each list comes as one JSON array, whatever is in it.
#[test]
fn every_list_is_whole_json_also_without_an_item() {
    let gateway = Gateway::start("lists", "");
    let said = |words: &[&str]| {
        let output = gateway.command(&[words, &["--json", "CONFIG"]].concat());
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        serde_json::from_str::<Vec<serde_json::Value>>(&text)
            .unwrap_or_else(|error| panic!("{words:?}: {error}: {text}"))
    };
    for words in [&["dead", "list"][..], &["audit"], &["devices"]] {
        assert_eq!(said(words), [] as [serde_json::Value; 0], "{words:?}");
    }
    let clients: Vec<_> = (0..300)
        .map(|number| {
            let name = format!("device-{number:03}");
            let mut client = Client::connect(gateway.address, &Hello { client: &name, ..Hello::default() }).0;
            client.publish(true, 1, &format!("lost/{number}"), b"x");
            client
        })
        .collect();
    let start = Instant::now();
    while said(&["dead", "list", "--limit", "1000"]).len() < 300 {
        assert!(start.elapsed() < Duration::from_secs(20), "300 letters");
        std::thread::sleep(Duration::from_millis(50));
    }
    let devices = said(&["devices"]);
    assert!(devices.len() == 300 && devices[299]["client"] == "device-299", "{:?}", devices.last());
    drop(clients);
    let discarded = gateway.command(&["dead", "discard", "--all", "CONFIG"]);
    assert!(discarded.status.success());
    let audit = said(&["audit"]);
    let named: usize = audit.iter().map(|entry| entry["detail"].as_array().map_or(0, Vec::len)).sum();
    assert_eq!(named, 300, "each letter is named once: {} entries", audit.len());
    assert!(audit.iter().all(|entry| entry["result"] == "done" && entry["action"] == "dead discard"), "{audit:?}");
    assert_eq!(said(&["audit", "--limit", "1"]).len(), 1);
}
