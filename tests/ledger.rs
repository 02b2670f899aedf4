//! The ledger: numbers and digests that central can check, and accounts that balance through kills.

use crate::common::centre::Centre;
use crate::common::client::{Client, Hello};
use crate::common::devices::Devices;
use crate::common::gateway::{Gateway, sum};
use crate::lanes::{contract, ledger, prepare, publish};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(30);

/// What the reports say must be what arrived: first, last, count, digest, and no gap between two of them.
fn check_reports(centre: &Centre) {
    let mut ids: BTreeMap<(String, u64), String> = BTreeMap::new();
    for event in centre.arrived().iter().flat_map(|arrival| arrival.events.clone()) {
        let Some(sequence) = event["sequence"].as_str().and_then(|text| text.parse().ok()) else { continue };
        let stream = event["type"].as_str().expect("a type").trim_start_matches("com.example.").to_owned();
        ids.insert((stream, sequence), event["id"].as_str().expect("an id").to_owned());
    }
    let mut reached: BTreeMap<String, u64> = BTreeMap::new();
    let mut reports: Vec<serde_json::Value> = centre.own("ledger").iter().map(|event| event["data"].clone()).collect();
    reports.sort_by_key(|data| (data["stream"].to_string(), data["first"].as_u64()));
    reports.dedup_by_key(|data| (data["stream"].to_string(), data["first"].as_u64(), data["last"].as_u64()));
    for data in &reports {
        let stream = data["stream"].as_str().expect("a stream").to_owned();
        let number = |name: &str| data[name].as_u64().expect("a number");
        let (first, last) = (number("first"), number("last"));
        assert_eq!(number("count"), last - first + 1, "{data:#}");
        let mut digest = Sha256::new();
        for sequence in first..=last {
            let id = ids.get(&(stream.clone(), sequence)).unwrap_or_else(|| panic!("{stream} {sequence} is missing"));
            digest.update(id.as_bytes());
            digest.update(b"\n");
        }
        let digest: String = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(data["digest"].as_str(), Some(digest.as_str()), "{data:#}");
        assert_eq!(data["watermark"]["sequence"].as_u64(), Some(last));
        let before = reached.insert(stream, last).unwrap_or(0);
        assert!(first <= before + 1, "a gap before {data:#}");
    }
}

#[test]
fn the_ledger_tells_central_what_is_complete() {
    let centre = Centre::start();
    let rest = format!("ledger_period = \"500ms\"\n{}", centre.destination("central"));
    let contracts = [("trace", contract("trace", "bulk", "")), ("count", contract("count", "standard", ""))];
    let mut gateway = prepare("reports", &rest, &contracts);
    gateway.run();
    let (mut client, _) = Client::connect(gateway.address, &Hello::default());
    for round in 0..5u64 {
        publish(&mut client, "trace", round * 40 + 1..round * 40 + 41, 10);
        publish(&mut client, "count", 1000 + round * 20..1000 + round * 20 + 20, 10);
        std::thread::sleep(Duration::from_millis(250));
        if round == 2 {
            gateway.kill();
            gateway.run();
            (client, _) = Client::connect(gateway.address, &Hello::default());
        }
    }
    centre.await_that("everything is reported", PATIENCE, |centre| {
        let reports = centre.own("ledger");
        let reached = |stream: &str| {
            let of_stream = reports.iter().filter(|event| event["data"]["stream"] == stream);
            of_stream.filter_map(|event| event["data"]["last"].as_u64()).max().unwrap_or(0)
        };
        reached("machine.trace.v1") == 200 && reached("machine.count.v1") == 100
    });
    check_reports(&centre);
    let report = centre.own("ledger").pop().expect("a report");
    assert!(report["data"]["accounts"][0]["owed"].as_u64().is_some_and(|owed| owed > 0), "{report:#}");
    assert!(centre.own("ledger").iter().all(|event| event["data"]["stream"] != "gateway.ledger.v1"));
    gateway.await_status("nothing is queued", PATIENCE, |status| sum(status, "queued") == 0);
    assert_eq!(ledger(&gateway, "delivered"), 300);
}

#[test]
fn the_accounts_balance_through_kills_refusals_and_a_second_destination() {
    let refusing = Centre::answering(|arrival| {
        use rumqttc::v5::mqttbytes::v5::PubAckReason::{NotAuthorized, QuotaExceeded, Success};
        match arrival.events[0]["data"]["seq"].as_u64() {
            Some(number) if number % 50 == 7 => NotAuthorized,
            Some(number) if number % 90 == 3 && arrival.events[0]["id"].to_string().len() % 2 == 0 => QuotaExceeded,
            _ => Success,
        }
    });
    let picky = Centre::start();
    let rest = format!("{}{}streams = [\"other.*\"]\n", refusing.destination("central"), picky.destination("picky"));
    let mut gateway = Gateway::start("accounts", &rest);
    let devices = Devices::start(gateway.address, 10, 5, Duration::from_millis(1));
    for _ in 0..5 {
        std::thread::sleep(Duration::from_millis(400));
        gateway.kill();
        gateway.run();
        ledger(&gateway, "owed");
    }
    let sent = devices.stop().len() as u64;
    gateway.await_status("nothing is queued", PATIENCE, |status| sum(status, "queued") == 0);
    let (owed, delivered, dead) = (ledger(&gateway, "owed"), ledger(&gateway, "delivered"), ledger(&gateway, "dead"));
    assert_eq!(owed, delivered + dead);
    assert!(owed >= sent && dead > 0, "{owed} of {sent}, {dead} dead");
    assert!(picky.events().is_empty(), "nothing of what it does not take");
}

/// Nothing that the gateway does makes its books uneven; so what would be is said to it here.
#[test]
fn an_imbalance_is_a_failing_health_check_and_a_problem() {
    let gateway = prepare(
        "uneven",
        "\n[[destination]]\nname = \"central\"\nurl = \"mqtt://127.0.0.1:1\"\n",
        &[("count", contract("count", "standard", ""))],
    );
    let config = forebay::config::Config::load(&gateway.config()).expect("good");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let running = runtime.block_on(forebay::gateway::Gateway::start(config)).expect("starts");
    let (mut client, _) = Client::connect(gateway.address, &Hello::default());
    publish(&mut client, "count", 1..6, 10);
    let said = |arguments: &[&str]| {
        let output = gateway.command(&[arguments, &["CONFIG"]].concat());
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (is_good, text) = said(&["health"]);
    assert!(is_good, "{text}");
    let lane = running.handles().journal.lane("standard").expect("the lane");
    // An event that there never was.
    lane.settle("central", &[(lane.end() + 100, 1, forebay::journal::Outcome::Delivered)]);
    let words = "lane standard for central does not balance, by";
    let (is_good, text) = said(&["health"]);
    assert!(!is_good && text.contains(words), "{text}");
    let (_, text) = said(&["status"]);
    assert!(text.contains(words), "{text}");
    let (is_good, text) = said(&["status", "--ledger"]);
    assert!(!is_good && text.contains(words), "{text}");
    runtime.block_on(running.stop());
}
