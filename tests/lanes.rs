//! Lanes: what a full one gives up, what it costs the others, and how each is sent.

use crate::common::centre::Centre;
use crate::common::client::{Client, Hello};
use crate::common::free_address;
use crate::common::gateway::{Gateway, accepted, sum};
use crate::common::random::Random;
use rumqttc::v5::mqttbytes::v5::PubAckReason;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(30);

/// A contract of a stream of its own for `plant/{line}/{machine}/{kind}`.
pub fn contract(kind: &str, lane: &str, more: &str) -> String {
    format!(
        r#"
name = "machine.{kind}"
version = "1.0.0"
owner = "tests"
lane = "{lane}"
match = {{ source = "mqtt", topic = "plant/{{line}}/{{machine}}/{kind}" }}
key = "{{machine}}"
id = "/msg_id"
{more}
"#
    )
}

pub fn prepare(name: &str, rest: &str, contracts: &[(&str, String)]) -> Gateway {
    let gateway = Gateway::prepare(name, rest);
    for (file, text) in contracts {
        std::fs::write(gateway.folder.join(format!("contracts/{file}.toml")), text).expect("written");
    }
    gateway
}

pub fn event(number: u64, note: &str) -> String {
    format!(r#"{{"msg_id":"{number}","seq":{number},"note":"{note}"}}"#)
}

/// Publishes events with these numbers, and waits for each PUBACK.
pub fn publish(client: &mut Client, kind: &str, numbers: std::ops::Range<u64>, note_bytes: usize) {
    for number in numbers {
        let id = (number % 65_535 + 1) as u16;
        let payload = event(number, &Random::with_seed(number).text(note_bytes));
        client.publish(true, id, &format!("plant/line1/m01/{kind}"), payload.as_bytes());
    }
}

pub fn numbers(centre: &Centre) -> Vec<u64> {
    centre.events().iter().map(|event| event["data"]["seq"].as_u64().expect("a number")).collect()
}

/// Everything that the ledger says is even, and the sum of one of its columns.
pub fn ledger(gateway: &Gateway, column: &str) -> u64 {
    let output = gateway.command(&["status", "--ledger", "--json", "CONFIG"]);
    let balances: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let mut total = 0;
    for balance in balances.as_array().into_iter().flatten() {
        assert_eq!(balance["difference"], 0, "{balances:#}");
        for row in balance["rows"].as_array().into_iter().flatten() {
            let count = |name: &str| row[name].as_u64().expect("a number");
            let parts = ["delivered", "queued", "dead", "expired", "shed", "discarded", "set_aside"];
            assert_eq!(count("owed"), parts.iter().map(|part| count(part)).sum::<u64>(), "{row:#}");
            if !row["stream"].as_str().is_some_and(|stream| stream.starts_with("gateway.")) {
                total += count(column);
            }
        }
    }
    total
}

#[test]
fn a_full_bulk_lane_gives_up_the_oldest_counts_them_and_says_so() {
    // Nobody listens there yet.
    let address = free_address();
    let rest = format!(
        "\n[[destination]]\nname = \"central\"\nurl = \"mqtt://{address}\"\n[lane.bulk]\nbudget = \"8MiB\"\nlinger = \"0s\"\n"
    );
    let mut gateway = prepare("shed", &rest, &[("trace", contract("trace", "bulk", ""))]);
    gateway.run();
    let (mut client, _) = Client::connect(gateway.address, &Hello::default());
    publish(&mut client, "trace", 1..401, 40_000);
    let shed = ledger(&gateway, "shed");
    assert!(shed > 50, "{shed} of 400 are given up");
    let status = gateway.status();
    let bulk = status["lanes"].as_array().into_iter().flatten().find(|lane| lane["name"] == "bulk").expect("the lane");
    assert!(bulk["bytes"].as_u64().expect("a number") <= 9 << 20, "{bulk:#}");
    // A kill in between: what is given up stays given up, and is announced once it was.
    gateway.kill();
    gateway.run();
    let centre = Centre::at(&address.to_string(), |_| PubAckReason::Success);
    gateway.await_status("nothing is queued", PATIENCE, |status| sum(status, "queued") == 0);
    centre.await_that("the losses are announced", PATIENCE, |centre| {
        let told: u64 = centre.own("loss").iter().map(|event| event["data"]["count"].as_u64().unwrap_or(0)).sum();
        told >= shed
    });
    let mut lost = Vec::new();
    let mut ids = Vec::new();
    for event in centre.own("loss") {
        let data = &event["data"];
        assert_eq!((data["cause"].as_str(), data["lane"].as_str()), (Some("shed"), Some("bulk")), "{event:#}");
        assert_eq!(data["destination"], "central");
        if ids.contains(&event["id"]) {
            continue;
        }
        ids.push(event["id"].clone());
        for stream in data["streams"].as_array().into_iter().flatten() {
            assert_eq!(stream["stream"], "machine.trace.v1");
            lost.extend(stream["first"].as_u64().expect("first")..=stream["last"].as_u64().expect("last"));
        }
    }
    let arrived: Vec<u64> = centre
        .events()
        .iter()
        .map(|event| event["sequence"].as_str().expect("text").parse().expect("a number"))
        .collect();
    lost.retain(|sequence| !arrived.contains(sequence));
    assert_eq!(lost.len() as u64, shed, "what is missing is what was announced");
    let mut all: Vec<u64> = lost.iter().chain(&arrived).copied().collect();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all, (1..=400).collect::<Vec<_>>());
    assert_eq!(ledger(&gateway, "delivered"), 400 - shed);
    let audit = String::from_utf8_lossy(&gateway.command(&["audit", "CONFIG"]).stdout).into_owned();
    assert!(audit.contains("loss") && audit.contains("shed"), "{audit}");
}

#[test]
fn a_full_bulk_lane_takes_no_byte_and_no_acknowledgement_from_critical() {
    let rest = format!(
        "\n[[destination]]\nname = \"central\"\nurl = \"mqtt://{}\"\n[lane.bulk]\nbudget = \"8MiB\"\nlinger = \"0s\"\nfull = \"stop-acknowledging\"\n",
        free_address()
    );
    let mut gateway = prepare("full", &rest, &[("trace", contract("trace", "bulk", ""))]);
    gateway.run();
    let mut flood = Client::dial(gateway.address);
    flood.send(&Hello { client: "flood", ..Hello::default() }.bytes());
    assert_eq!(flood.receive().expect("a CONNACK")[0], 0x20);
    let feeder = std::thread::spawn({
        let mut stream = flood.stream.try_clone().expect("cloned");
        move || {
            use std::io::Write;
            for number in 1..600u64 {
                let payload = event(number, &Random::with_seed(number).text(40_000));
                let id = (number % 65_535 + 1) as u16;
                let bytes =
                    crate::common::client::publish(true, 1, id, "plant/line1/m01/trace", &[], payload.as_bytes());
                if stream.write_all(&bytes).is_err() {
                    return;
                }
            }
        }
    });
    gateway.await_status("the bulk lane is full", PATIENCE, |status| {
        status["problems"].to_string().contains("lane bulk: the budget of 8.39 MB is used up")
    });
    let (mut client, _) = Client::connect(gateway.address, &Hello { client: "calm", ..Hello::default() });
    let start = Instant::now();
    for number in 1..200u16 {
        client.publish(
            true,
            number,
            "plant/line1/m02/state",
            crate::common::gateway::payload(2, number.into()).as_bytes(),
        );
    }
    assert!(start.elapsed() < Duration::from_secs(5), "200 acknowledgements took {:?}", start.elapsed());
    assert_eq!(ledger(&gateway, "shed"), 0, "nothing is given up");
    gateway.kill();
    drop(flood);
    feeder.join().expect("the feeder ends");
}

#[test]
fn what_is_too_old_for_its_contract_expires_is_counted_and_announced() {
    let address = free_address();
    let rest = format!("\n[[destination]]\nname = \"central\"\nurl = \"mqtt://{address}\"\n");
    let contracts = [
        ("count", contract("count", "standard", "retention = { unsettled = \"2s\" }")),
        ("event", contract("event", "standard", "")),
    ];
    let mut gateway = prepare("expiry", &rest, &contracts);
    gateway.run();
    let (mut client, _) = Client::connect(gateway.address, &Hello::default());
    publish(&mut client, "count", 1..21, 10);
    publish(&mut client, "event", 21..31, 10);
    gateway.await_status("they expire", PATIENCE, |status| sum(status, "expired") == 20);
    publish(&mut client, "count", 31..36, 10);
    let centre = Centre::at(&address.to_string(), |_| PubAckReason::Success);
    gateway.await_status("nothing is queued", PATIENCE, |status| sum(status, "queued") == 0);
    let told = |centre: &Centre| -> u64 {
        centre.own("loss").iter().map(|event| event["data"]["count"].as_u64().expect("a count")).sum()
    };
    centre.await_that("the loss is announced", PATIENCE, |centre| told(centre) == 20);
    assert_eq!(numbers(&centre), (21..36).collect::<Vec<_>>(), "what may wait, and what is young");
    let loss = &centre.own("loss")[0]["data"];
    assert_eq!(loss["cause"], "expired", "{loss:#}");
    assert_eq!(loss["streams"][0]["stream"], "machine.count.v1");
    assert_eq!((ledger(&gateway, "expired"), ledger(&gateway, "delivered")), (20, 15));
}

/// The ledger puts its reports into the standard lane. While it waits there for room, nothing expired once, and so
/// the room never came.
#[test]
fn what_expires_makes_room_though_the_ledger_waits_for_it() {
    let rest = format!(
        "ledger_period = \"300ms\"\n\n[[destination]]\nname = \"central\"\nurl = \"mqtt://{}\"\n[lane.standard]\nbudget = \"8MiB\"\nlinger = \"0s\"\n",
        free_address()
    );
    let limits = "retention = { unsettled = \"6s\", settled = \"0s\" }";
    let mut gateway = prepare("room", &rest, &[("count", contract("count", "standard", limits))]);
    gateway.run();
    let (mut client, _) = Client::connect(gateway.address, &Hello::default());
    let mut writer = client.stream.try_clone().expect("cloned");
    let feeder = std::thread::spawn(move || {
        use std::io::Write;
        for number in 1..=400u64 {
            let payload = event(number, &Random::with_seed(number).text(40_000));
            let id = number as u16;
            let topic = "plant/line1/m01/count";
            let bytes = crate::common::client::publish(true, 1, id, topic, &[], payload.as_bytes());
            writer.write_all(&bytes).expect("sent");
        }
    });
    gateway.await_status("the lane is full", PATIENCE, |status| {
        status["problems"].to_string().contains("lane standard: the budget of 8.39 MB is used up")
    });
    client.stream.set_read_timeout(Some(PATIENCE)).expect("set");
    for number in 1..=400u16 {
        let answer = client.receive().expect("a PUBACK");
        assert_eq!((answer[0], u16::from_be_bytes([answer[1], answer[2]])), (0x40, number));
    }
    feeder.join().expect("all is sent");
    assert!(ledger(&gateway, "expired") > 100);
    // SIGTERM does not wait for what has no room.
    let start = Instant::now();
    gateway.stop();
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
}

#[test]
fn live_first_sends_what_comes_now_and_marks_the_backlog() {
    let address = free_address();
    let rest = format!(
        "\n[[destination]]\nname = \"central\"\nurl = \"mqtt://{address}\"\nwindow = 20\n[lane.bulk]\nlinger = \"0s\"\ncatch_up = \"live-first\"\nbackfill_topic = \"late\"\nrate = {{ events = 200 }}\n"
    );
    let mut gateway = prepare("live", &rest, &[("trace", contract("trace", "bulk", "order = \"none\""))]);
    gateway.run();
    let (mut client, _) = Client::connect(gateway.address, &Hello::default());
    publish(&mut client, "trace", 1..501, 10);
    let centre = Centre::at(&address.to_string(), |_| PubAckReason::Success);
    centre.await_that("the backlog begins to drain", PATIENCE, |centre| centre.events().len() > 20);
    publish(&mut client, "trace", 501..521, 10);
    centre.await_that("what is new is there", PATIENCE, |centre| numbers(centre).contains(&520));
    let before = numbers(&centre);
    assert!(before.len() < 400, "the backlog of 500 is not through yet: {}", before.len());
    gateway.kill();
    gateway.run();
    gateway.await_status("nothing is queued", PATIENCE, |status| sum(status, "queued") == 0);
    for arrival in centre.arrived().iter().filter(|arrival| !arrival.topic.contains("/gateway.")) {
        let number = arrival.events[0]["data"]["seq"].as_u64().expect("a number");
        assert_eq!(arrival.is_marked("backfill"), arrival.topic.starts_with("late/test/"), "{arrival:?}");
        assert!(arrival.is_marked("backfill") || number > 480, "{number} is backlog");
    }
    let mut found = numbers(&centre);
    found.sort_unstable();
    found.dedup();
    assert_eq!(found, (1..521).collect::<Vec<_>>());
    assert_eq!(ledger(&gateway, "delivered"), 520);
}

/// A ceiling makes a backlog although the session lasts: what comes then is live all the same.
#[test]
fn live_first_takes_up_the_live_end_behind_a_ceiling_too() {
    let centre = Centre::start();
    let rest = format!(
        "{}window = 20\n[lane.bulk]\nlinger = \"0s\"\ncatch_up = \"live-first\"\nrate = {{ events = 50 }}\n",
        centre.destination("central")
    );
    let mut gateway = prepare("ceiling", &rest, &[("trace", contract("trace", "bulk", "order = \"none\""))]);
    gateway.run();
    let (mut client, _) = Client::connect(gateway.address, &Hello::default());
    publish(&mut client, "trace", 1..1001, 10);
    // It has to last a while.
    std::thread::sleep(Duration::from_secs(5));
    publish(&mut client, "trace", 1001..1021, 10);
    centre.await_that("what is new is there", Duration::from_secs(5), |centre| numbers(centre).contains(&1020));
    let before = numbers(&centre).len();
    assert!(before < 900, "the backlog of 1,000 is not through yet: {before}");
    let config = std::fs::read_to_string(gateway.config()).expect("read");
    std::fs::write(gateway.config(), config.replace("events = 50", "events = 5000")).expect("written");
    gateway.await_status("nothing is queued", PATIENCE, |status| sum(status, "queued") == 0);
    let mut found = numbers(&centre);
    found.sort_unstable();
    found.dedup();
    assert_eq!(found, (1..1021).collect::<Vec<_>>());
    assert!(centre.arrived().iter().any(|arrival| arrival.is_marked("backfill")));
    assert_eq!(ledger(&gateway, "delivered"), 1020);
    assert!(gateway.log().matches("link down").count() == 0, "{}", gateway.log());
}

#[test]
fn live_first_is_refused_where_a_contract_keeps_an_order() {
    let gateway =
        prepare("order", "[lane.bulk]\ncatch_up = \"live-first\"\n", &[("trace", contract("trace", "bulk", ""))]);
    let output = gateway.command(&["check", "CONFIG"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains("lane.bulk.catch_up") && text.contains("machine.trace") && text.contains("order = \"none\""),
        "{text}"
    );
}

#[test]
fn batches_hold_what_each_event_is_alone() {
    let centre = Centre::start();
    let plain = Centre::start();
    let rest = format!(
        "{}{}[lane.bulk]\nlinger = \"0s\"\nbatch = {{ events = 50, age = \"300ms\", compression = \"zstd\" }}\n",
        centre.destination("central"),
        plain.destination("old").replace("name = ", "protocol = \"5\"\nname = ")
    );
    let contracts = [("trace", contract("trace", "bulk", "")), ("other", contract("other", "bulk", ""))];
    let mut gateway = prepare("batch", &rest, &contracts);
    gateway.run();
    let (mut client, _) = Client::connect(gateway.address, &Hello::default());
    for number in 1..=330u64 {
        let kind = if number % 3 == 0 { "other" } else { "trace" };
        publish(&mut client, kind, number..number + 1, 10);
    }
    gateway.await_status("nothing is queued", PATIENCE, |status| sum(status, "queued") == 0);
    for arrival in centre.arrived().iter().filter(|arrival| !arrival.topic.contains("/gateway.")) {
        assert_eq!(arrival.content_type, "application/cloudevents-batch+json+zstd");
        assert!(arrival.events.len() <= 50);
        let types: Vec<_> = arrival.events.iter().map(|event| event["type"].clone()).collect();
        assert!(types.windows(2).all(|two| two[0] == two[1]), "one stream: {types:?}");
        let kind = if types[0].as_str().is_some_and(|name| name.contains("other")) { "other" } else { "trace" };
        assert_eq!(arrival.topic, format!("test/plant/machine.{kind}/v1"), "without the key");
    }
    assert!(centre.arrived().len() < 100, "{} publishes for 330 events", centre.arrived().len());
    let of = |remainder: bool| {
        numbers(&centre).into_iter().filter(|number| (number % 3 == 0) == remainder).collect::<Vec<_>>()
    };
    assert_eq!(of(true), (1..=330).filter(|number| number % 3 == 0).collect::<Vec<_>>(), "in order");
    assert_eq!(of(false), (1..=330).filter(|number| number % 3 != 0).collect::<Vec<_>>(), "in order");
    let one = &centre.events()[0];
    let members = ["specversion", "id", "source", "type", "time", "subject", "recordedtime", "sequence", "data"];
    assert!(members.iter().all(|member| !one[*member].is_null()), "{one:#}");
}

#[test]
fn a_batch_that_is_refused_is_halved_until_the_poison_is_alone() {
    let centre = Centre::answering(|arrival| {
        let is_poison = arrival.events.iter().any(|event| event["data"]["seq"] == 137);
        if is_poison { PubAckReason::PayloadFormatInvalid } else { PubAckReason::Success }
    });
    let rest = format!(
        "{}[lane.bulk]\nlinger = \"0s\"\nbatch = {{ events = 64, age = \"200ms\" }}\n",
        centre.destination("central")
    );
    let mut gateway = prepare("halves", &rest, &[("trace", contract("trace", "bulk", ""))]);
    gateway.run();
    let (mut client, _) = Client::connect(gateway.address, &Hello::default());
    publish(&mut client, "trace", 1..301, 10);
    gateway.await_status("nothing is queued", PATIENCE, |status| sum(status, "queued") == 0);
    assert_eq!((ledger(&gateway, "delivered"), ledger(&gateway, "dead")), (299, 1));
    let letters = String::from_utf8_lossy(&gateway.command(&["dead", "list", "--json", "CONFIG"]).stdout).into_owned();
    assert!(letters.contains("\"sequence\": 137"), "{letters}");
}

#[test]
fn a_dead_destination_holds_back_only_what_it_may() {
    let alive = Centre::start();
    let rest = format!(
        "{}\n[[destination]]\nname = \"dead\"\nurl = \"mqtt://{}\"\nhold = \"8MiB\"\n[lane.bulk]\nbudget = \"64MiB\"\nlinger = \"0s\"\nfull = \"stop-acknowledging\"\n",
        alive.destination("alive"),
        free_address()
    );
    let mut gateway =
        prepare("hold", &rest, &[("trace", contract("trace", "bulk", "retention = { settled = \"0s\" }"))]);
    gateway.run();
    let (mut client, _) = Client::connect(gateway.address, &Hello::default());
    publish(&mut client, "trace", 1..701, 40_000);
    gateway.await_status("the dead one gives up, and its events leave the disk", PATIENCE, |status| {
        let bulk =
            status["lanes"].as_array().into_iter().flatten().find(|lane| lane["name"] == "bulk").expect("the lane");
        bulk["bytes"].as_u64().is_some_and(|bytes| bytes < 16 << 20)
    });
    alive.await_that("the other one has everything", PATIENCE, |centre| centre.events().len() >= 700);
    assert_eq!(numbers(&alive), (1..701).collect::<Vec<_>>());
    let losses = alive.own("loss");
    assert!(losses.iter().all(|event| event["data"]["destination"] == "dead"), "{losses:#?}");
    let status = gateway.status();
    let to = |name: &str| {
        let bulk =
            status["lanes"].as_array().into_iter().flatten().find(|lane| lane["name"] == "bulk").expect("the lane");
        bulk["destinations"].as_array().into_iter().flatten().find(|to| to["destination"] == name).cloned().expect("it")
    };
    assert_eq!((to("alive")["delivered"].as_u64(), to("alive")["shed"].as_u64()), (Some(700), Some(0)));
    assert!(to("dead")["shed"].as_u64().is_some_and(|count| count > 100), "{:#}", to("dead"));
    ledger(&gateway, "shed");
}

#[test]
fn a_destination_that_is_gone_is_dropped_by_a_person_alone() {
    let alive = Centre::start();
    let gone = format!("\n[[destination]]\nname = \"gone\"\nurl = \"mqtt://{}\"\n", free_address());
    let mut gateway = prepare("drop", &format!("{}{gone}", alive.destination("alive")), &[]);
    gateway.run();
    let (mut client, _) = Client::connect(gateway.address, &Hello::default());
    for number in 1..=10u16 {
        client.publish(
            true,
            number,
            "plant/line1/m01/state",
            crate::common::gateway::payload(1, number.into()).as_bytes(),
        );
    }
    let said = |output: std::process::Output| {
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    };
    let text = said(gateway.command(&["destination", "drop", "gone", "CONFIG"]));
    assert!(text.contains("is in the configuration"), "{text}");
    gateway.stop();
    let config = std::fs::read_to_string(gateway.config()).expect("read");
    std::fs::write(gateway.config(), config.replace(gone.trim_start_matches('\n'), "")).expect("written");
    gateway.run();
    let status = gateway.status();
    assert!(status["notes"].to_string().contains("gone"), "{status:#}");
    let text = said(gateway.command(&["destination", "drop", "nobody", "CONFIG"]));
    assert!(text.contains("\"nobody\"") && text.contains("alive, gone"), "{text}");
    let text = said(gateway.command(&["destination", "drop", "gone", "CONFIG"]));
    // The gateway's own reports are among them.
    assert!(text.contains("undelivered events discarded"), "{text}");
    alive.await_that("it is told", PATIENCE, |centre| {
        let is_told = |loss: &serde_json::Value| {
            let streams = loss["data"]["streams"].as_array().into_iter().flatten();
            let mut of_machines = streams.filter(|stream| stream["stream"] == "machine.state.v1");
            loss["data"]["cause"] == "discarded" && of_machines.any(|stream| stream["count"] == 10)
        };
        centre.own("loss").iter().any(is_told)
    });
    gateway.kill();
    gateway.run();
    assert!(!gateway.status()["lanes"].to_string().contains("gone"), "it is forgotten for good");
    assert!(said(gateway.command(&["audit", "CONFIG"])).contains("destination drop"));
}

#[test]
fn a_destination_goes_to_its_next_broker_and_back_and_loses_nothing() {
    let first = free_address();
    let second = Centre::start();
    let rest =
        format!("\n[[destination]]\nname = \"central\"\nurl = [\"mqtt://{first}\", \"mqtt://{}\"]\n", second.address);
    let mut gateway = prepare("brokers", &rest, &[]);
    gateway.run();
    let (mut client, _) = Client::connect(gateway.address, &Hello::default());
    let state = |client: &mut Client, number: u16| {
        client.publish(
            true,
            number,
            "plant/line1/m01/state",
            crate::common::gateway::payload(1, number.into()).as_bytes(),
        );
    };
    (1..=100).for_each(|number| state(&mut client, number));
    second.await_that("the second one has them", PATIENCE, |centre| centre.events().len() >= 100);
    let first = Centre::at(&first.to_string(), |_| PubAckReason::Success);
    let start = Instant::now();
    let mut number = 101;
    while first.events().len() < 50 {
        state(&mut client, number);
        number += 1;
        std::thread::sleep(Duration::from_millis(20));
        assert!(start.elapsed() < PATIENCE, "it does not go back");
    }
    gateway.await_status("nothing is queued", PATIENCE, |status| sum(status, "queued") == 0);
    let mut all: Vec<_> = first.events().into_iter().chain(second.events()).map(|event| event["id"].clone()).collect();
    let count = all.len();
    all.sort_by_key(ToString::to_string);
    all.dedup();
    assert_eq!((all.len(), count), (usize::from(number) - 1, usize::from(number) - 1), "each once");
    assert_eq!(accepted(&gateway.status()), u64::from(number) - 1);
    // So does the status: the second one is not left with a birth that nobody takes back.
    let state = |centre: &Centre| centre.own("status").last().map(|event| event["data"]["state"].clone());
    first.await_that("its status is there", PATIENCE, |centre| state(centre) == Some("online".into()));
    assert_eq!(state(&second), Some("offline".into()));
}

/// An hour that is not now, in UTC.
pub fn other_hours() -> String {
    let now =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs() / 3600 % 24;
    format!("{:02}:00-{:02}:00", (now + 5) % 24, (now + 6) % 24)
}

#[test]
fn ceilings_and_hours_hold_back() {
    let centre = Centre::start();
    let hours = other_hours();
    let rest = format!(
        "{}[lane.bulk]\nlinger = \"0s\"\nrate = {{ events = 100 }}\n[lane.night]\nlinger = \"0s\"\nhours = \"{hours}\"\ntime_zone = \"UTC\"\n",
        centre.destination("central")
    );
    let contracts = [("trace", contract("trace", "bulk", "")), ("extract", contract("extract", "night", ""))];
    let mut gateway = prepare("pace", &rest, &contracts);
    gateway.run();
    let (mut client, _) = Client::connect(gateway.address, &Hello::default());
    publish(&mut client, "extract", 1001..1011, 10);
    let start = Instant::now();
    publish(&mut client, "trace", 1..301, 10);
    centre.await_that("they leave", PATIENCE, |centre| centre.events().len() >= 300);
    assert!(start.elapsed() > Duration::from_millis(2500), "300 events at 100 a second in {:?}", start.elapsed());
    assert!(numbers(&centre).iter().all(|number| *number < 1000), "the night has not come");
    let status = gateway.status();
    let night =
        status["lanes"].as_array().into_iter().flatten().find(|lane| lane["name"] == "night").expect("the lane");
    assert_eq!(night["destinations"][0]["queued"], 10);
    let note = status["notes"].as_array().into_iter().flatten().find(|note| note.to_string().contains("lane night"));
    let note = note.expect("a note on the lane that waits").to_string();
    assert!(note.contains("10 events for central wait for the sending hours, which begin next at 20"), "{note}");
}

#[test]
fn a_ceiling_in_bytes_holds_back() {
    let centre = Centre::start();
    let rest =
        format!("{}[lane.bulk]\nlinger = \"0s\"\nrate = {{ bytes = \"20KB\" }}\n", centre.destination("central"));
    let mut gateway = prepare("bytes", &rest, &[("trace", contract("trace", "bulk", ""))]);
    gateway.run();
    let (mut client, _) = Client::connect(gateway.address, &Hello::default());
    let start = Instant::now();
    publish(&mut client, "trace", 1..41, 1000);
    centre.await_that("they leave", PATIENCE, |centre| centre.events().len() >= 40);
    // More than 40 kB, of which a tenth of a second's worth may go at once.
    assert!(
        start.elapsed() > Duration::from_millis(1800),
        "40 events of 1 kB at 20 kB a second in {:?}",
        start.elapsed()
    );
}

#[test]
fn bulk_gives_way_while_another_lane_has_a_backlog() {
    let is_busy = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let asked = std::sync::Arc::clone(&is_busy);
    let centre = Centre::answering(move |arrival| {
        let is_critical = arrival.topic.contains("machine.state");
        let refuses = is_critical && asked.load(std::sync::atomic::Ordering::Relaxed);
        if refuses { PubAckReason::QuotaExceeded } else { PubAckReason::Success }
    });
    let rest = format!(
        "{}[lane.bulk]\nlinger = \"0s\"\nyielding = {{ events = 50 }}\n[lane.critical]\nlinger = \"0s\"\n",
        centre.destination("central")
    );
    let mut gateway = prepare("yield", &rest, &[("trace", contract("trace", "bulk", ""))]);
    gateway.run();
    let (mut client, _) = Client::connect(gateway.address, &Hello::default());
    for number in 1..=1500u16 {
        client.publish(
            true,
            number,
            "plant/line1/m01/state",
            crate::common::gateway::payload(1, number.into()).as_bytes(),
        );
    }
    let bulk = |centre: &Centre| {
        let of_bulk = |arrival: &crate::common::centre::Arrival| arrival.topic.contains("machine.trace");
        centre.arrived().iter().filter(|arrival| of_bulk(arrival)).count()
    };
    let start = Instant::now();
    publish(&mut client, "trace", 1..801, 10);
    std::thread::sleep(Duration::from_secs(2));
    let (sent, elapsed) = (bulk(&centre), start.elapsed().as_secs_f64());
    assert!(sent > 20, "it never stops: {sent}");
    assert!((sent as f64) < elapsed * 50.0 + 60.0, "{sent} in {elapsed:.1} s");
    is_busy.store(false, std::sync::atomic::Ordering::Relaxed);
    // What was refused for a while is tried again after up to a minute.
    gateway.await_status("nothing is queued", 3 * PATIENCE, |status| sum(status, "queued") == 0);
    assert_eq!(bulk(&centre), 800, "without the backlog it is through at once");
}

#[test]
fn the_status_says_how_long_the_disk_lasts_and_the_drain_takes() {
    let address = free_address();
    let rest = format!(
        "\n[[destination]]\nname = \"central\"\nurl = \"mqtt://{address}\"\n[lane.bulk]\nbudget = \"64MiB\"\nlinger = \"0s\"\nrate = {{ events = 100 }}\n"
    );
    let mut gateway = prepare("survival", &rest, &[("trace", contract("trace", "bulk", ""))]);
    gateway.run();
    let (mut client, _) = Client::connect(gateway.address, &Hello::default());
    let outlook = |gateway: &Gateway| {
        let status = gateway.status();
        status["outlooks"].as_array().into_iter().flatten().find(|lane| lane["lane"] == "bulk").cloned().expect("bulk")
    };
    for round in 0..12u64 {
        publish(&mut client, "trace", round * 50 + 1..round * 50 + 51, 4000);
        std::thread::sleep(Duration::from_millis(250));
    }
    let now = outlook(&gateway);
    let number = |value: &serde_json::Value| value.as_f64().unwrap_or_else(|| panic!("{value}: {now:#}"));
    assert_eq!(now["then"], "sheds the oldest");
    assert!((50.0..500.0).contains(&number(&now["events_per_second"])), "{now:#}");
    // What fills 64 MiB at this rate, within what a minute's mean can say.
    let expected = (67_108_864.0 - number(&now["needed_bytes"])) / number(&now["bytes_per_second"]);
    assert!((number(&now["full_in_seconds"]) / expected - 1.0).abs() < 0.1, "{expected}: {now:#}");
    assert_eq!(now["drains"][0]["queued"], 600);
    assert!(now["drains"][0]["drained_in_seconds"].is_null(), "nothing leaves: {now:#}");
    let _centre = Centre::at(&address.to_string(), |_| PubAckReason::Success);
    gateway.await_status("it says when it is through", PATIENCE, |status| {
        let bulk = status["outlooks"].as_array().into_iter().flatten().find(|lane| lane["lane"] == "bulk");
        bulk.is_some_and(|bulk| bulk["drains"][0]["queued"] == 0 && bulk["drains"][0]["drained_in_seconds"] == 0)
    });
    let text = String::from_utf8_lossy(&gateway.command(&["status", "CONFIG"]).stdout).into_owned();
    assert!(text.contains("FULL IN, WITHOUT WAN") && text.contains("sheds the oldest"), "{text}");
}

#[test]
fn a_wrong_lane_is_refused_with_what_is_allowed() {
    let check = |lane: &str, words: &[&str]| {
        let gateway = prepare("lane", &format!("[lane.bulk]\n{lane}\n"), &[]);
        let output = gateway.command(&["check", "CONFIG"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{lane}: {text}");
        for word in words {
            assert!(text.contains(word), "\"{word}\" is missing in: {text}");
        }
    };
    check("budget = \"900TB\"", &["lane.bulk.budget", "cannot fit", "in all"]);
    check("full = \"drop\"", &["lane.bulk.full", "shed-oldest"]);
    check("hours = \"2 to 4\"", &["lane.bulk.hours", "2 to 4", "02:00-04:00"]);
    check("hours = \"02:00-04:00\"\ntime_zone = \"Mars/Base\"", &["lane.bulk.time_zone", "Mars/Base", "Europe/Berlin"]);
    check("batch = { events = 0 }", &["lane.bulk.batch.events", "1 to 10000"]);
    check("batch = \"later\"", &["lane.bulk.batch", "later", "backlog"]);
    check("connections = 0", &["lane.bulk.connections", "0 is not allowed", "1 to 16"]);
    check("connections = 4\nbatch = \"backlog\"", &["lane.bulk.connections", "remove batch or connections"]);
    check("connections = 4\ncatch_up = \"live-first\"", &["lane.bulk.connections", "oldest-first"]);
    check("dscp = 64", &["lane.bulk.dscp", "64", "0 to 63"]);
    check("rate = { events = 0 }", &["lane.bulk.rate", "would send nothing"]);
    check("backfill_topic = \"a/#\"", &["lane.bulk.backfill_topic", "a/#"]);
}
