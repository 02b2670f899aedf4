//! The HTTP source, as programs of every kind see it.

mod durable;
mod limits;

use crate::common::broker::{Collector, Mosquitto};
use crate::common::centre::Centre;
use crate::common::free_address;
use crate::common::gateway::{Gateway, accepted, scratch_folder, sum};
use crate::common::http::{Answer, Client, post};
use crate::common::pki::Pki;
use forebay::sources::http::put_token;
use std::io::Write;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// CloudEvents alone: id, time and key are theirs.
const ORDER: &str = r#"
name = "order.released"
version = "1.0.0"
owner = "tests"
lane = "critical"
match = { source = "http", topic = "{program}/com.example.order" }
"#;

/// Plain posts: id, time and key are in the payload.
const COUNT: &str = r#"
name = "program.count"
version = "1.0.0"
owner = "tests"
lane = "standard"
match = { source = "http", topic = "{program}" }
key = "{program}-{/machine}"
id = "/msg_id"
time = "/ts"
"#;

/// Anything else of a CloudEvent.
const RAW: &str = r#"
name = "program.raw"
version = "1.0.0"
owner = "tests"
lane = "critical"
match = { source = "http", topic = "{program}/com.example.raw" }
accepts = "bytes"
"#;

const STRUCTURED: (&str, &str) = ("content-type", "application/cloudevents+json");
const BATCH: (&str, &str) = ("content-type", "application/cloudevents-batch+json");
const JSON: (&str, &str) = ("content-type", "application/json");

/// A gateway with an HTTP source that is not yet running. `rest` goes into the configuration,
/// `more` into the source.
fn prepare(name: &str, rest: &str, more: &str) -> (Gateway, SocketAddr) {
    let gateway = Gateway::prepare(name, rest);
    let address = free_address();
    for (file, text) in [("order", ORDER), ("count", COUNT), ("raw", RAW)] {
        std::fs::write(gateway.folder.join(format!("contracts/{file}.toml")), text).expect("written");
    }
    let config = std::fs::read_to_string(gateway.config()).expect("read");
    let source = format!("\n[[source.http]]\nname = \"programs\"\nlisten = \"{address}\"\n{more}");
    std::fs::write(gateway.config(), config + &source).expect("written");
    (gateway, address)
}

fn start(name: &str, rest: &str, more: &str) -> (Gateway, SocketAddr) {
    let (mut gateway, address) = prepare(name, rest, more);
    gateway.run();
    (gateway, address)
}

fn order(id: &str, data: &str) -> String {
    format!(
        r#"{{"specversion":"1.0","id":"{id}","source":"erp","type":"com.example.order","subject":"line/1","time":"2026-11-23T08:00:00.5+01:00","ignored":7,"data":{data}}}"#
    )
}

/// The status of the HTTP source.
fn source(status: &serde_json::Value) -> &serde_json::Value {
    let sources = status["sources"].as_array().expect("sources");
    sources.iter().find(|source| source["kind"] == "http").expect("an HTTP source")
}

fn detail(answer: &Answer) -> String {
    assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{answer:?}");
    assert_eq!(answer.json()["status"], answer.status, "{answer:?}");
    answer.json()["detail"].as_str().expect("a reason").to_owned()
}

#[test]
fn every_mode_of_cloudevents_and_plain_payloads_arrive_at_central() {
    let folder = scratch_folder("http-modes");
    let pki = Pki::write(folder.path());
    let broker = Mosquitto::start(folder.path(), &pki);
    let collector = Collector::start(broker.plain, "test/plant/#");
    let (gateway, address) = start("http-modes", &broker.destination(&pki, broker.tls.port()), "");
    let mut client = Client::dial(address);
    let mut taken = |path: &str, headers: &[(&str, &str)], body: &[u8], events: u64| {
        let answer = client.post(path, headers, body);
        assert_eq!(answer.status, 202, "{answer:?}");
        assert_eq!(answer.json(), serde_json::json!({"events": events, "dead_letters": 0}));
    };
    taken("/events/erp", &[STRUCTURED], order("s-1", r#"{"number": 1}"#).as_bytes(), 1);
    taken(
        "/events/erp",
        &[("Content-Type", "Application/CloudEvents+JSON; charset=UTF-8")],
        order("s-2", "[1]").as_bytes(),
        1,
    );
    let binary = [
        JSON,
        ("ce-specversion", "1.0"),
        ("ce-id", "b-1"),
        ("ce-source", "/erp/orders"),
        ("ce-type", "com.example.order"),
        ("ce-time", "2026-11-23T09:00:00Z"),
        ("ce-subject", "Linie%20%C3%BC"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ];
    taken("/events/erp", &binary, br#"{"number": 2}"#, 1);
    let batch = format!("[{}, {}, {}]", order("m-1", "1"), order("m-2", "null"), order("m-3", "\"x\""));
    taken("/events/erp", &[BATCH], batch.as_bytes(), 3);
    taken("/events/erp", &[BATCH], b"[]", 0);
    taken("/events/press%204", &[JSON], br#"{"msg_id": 9, "machine": "m7", "ts": 1764000000}"#, 1);
    // curl says so of whatever it is given.
    taken(
        "/events/erp",
        &[("content-type", "application/x-www-form-urlencoded")],
        br#"{"msg_id": 10, "machine": "m7", "ts": 1764000000}"#,
        1,
    );
    let raw = |id: &str, rest: &str| {
        format!(r#"{{"specversion":"1.0","id":"{id}","source":"erp","type":"com.example.raw",{rest}}}"#)
    };
    taken("/events/erp", &[STRUCTURED], raw("r-1", r#""data_base64":"AP8B""#).as_bytes(), 1);
    taken(
        "/events/erp",
        &[STRUCTURED],
        raw("r-2", r#""datacontenttype":"text/xml","data":"<a b=\"c\"/>""#).as_bytes(),
        1,
    );

    let gone = gateway.await_status("all is delivered", Duration::from_secs(20), |status| {
        accepted(status) == 10 && sum(status, "queued") == 0
    });
    assert_eq!((&gone["dead"]["total"], &source(&gone)["received"]), (&0.into(), &10.into()), "{gone:#}");
    let mut events: Vec<serde_json::Value> = Vec::new();
    let start = Instant::now();
    while events.len() < 10 {
        assert!(start.elapsed() < Duration::from_secs(10), "{events:#?}");
        std::thread::sleep(Duration::from_millis(10));
        let arrived = collector.arrived().into_iter().filter(|event| !event.topic.contains("gateway."));
        events = arrived.map(|event| event.event()).collect();
    }
    let event = |id: &str| events.iter().find(|event| event["id"] == id).unwrap_or_else(|| panic!("no {id}"));
    let s1 = event("s-1");
    assert_eq!(s1["source"], "/plant/gw/programs/erp", "the CloudEvent's source says the same as the path");
    assert_eq!((&s1["time"], &s1["subject"]), (&"2026-11-23T07:00:00.500000Z".into(), &"line/1".into()));
    assert_eq!((&s1["type"], &s1["data"]["number"]), (&"com.example.order.released.v1".into(), &1.into()));
    let b1 = event("b-1");
    assert_eq!(b1["source"], "/plant/gw/programs/erp/%2Ferp%2Forders");
    assert_eq!((&b1["subject"], &b1["data"]["number"]), (&"Linie ü".into(), &2.into()));
    assert!(b1["traceparent"].as_str().is_some_and(|text| text.starts_with("00-0af7")), "{b1}");
    assert_eq!((&event("m-2")["data"], &event("m-3")["data"]), (&serde_json::Value::Null, &"x".into()));
    let plain = event("9");
    assert_eq!((&plain["subject"], &plain["source"]), (&"press 4-m7".into(), &"/plant/gw/programs/press%204".into()));
    assert_eq!(plain["time"], "2025-11-24T16:00:00.000000Z");
    assert_eq!((&event("r-1")["data_base64"], &event("r-1")["subject"]), (&"AP8B".into(), &"erp".into()));
    assert_eq!(
        (&event("r-2")["datacontenttype"], &event("r-2")["data_base64"]),
        (&"text/xml".into(), &"PGEgYj0iYyIvPg==".into())
    );
}

#[test]
fn what_matches_no_contract_or_breaks_it_is_held_as_a_dead_letter_and_the_answer_says_so() {
    let (gateway, address) = start("http-dead", "", "");
    let mut client = Client::dial(address);
    let mut post = |path: &str, headers: &[(&str, &str)], body: &[u8]| {
        let answer = client.post(path, headers, body);
        assert_eq!(answer.status, 202, "{answer:?}");
        (answer.json()["events"].as_u64(), answer.json()["dead_letters"].as_u64())
    };
    assert_eq!(
        post("/events/erp", &[STRUCTURED], order("1", "1").replace("com.example", "other").as_bytes()),
        (Some(1), Some(1))
    );
    assert_eq!(post("/events/erp", &[JSON], br#"{"msg_id": 1}"#), (Some(1), Some(1)), "no machine, no key");
    assert_eq!(post("/events/erp", &[JSON], b"nonsense"), (Some(1), Some(1)));
    let batch = format!("[{}, {}]", order("1", "1"), order("2", "2").replace("com.example", "other"));
    assert_eq!(post("/events/erp", &[BATCH], batch.as_bytes()), (Some(2), Some(1)));
    let letters = gateway.command(&["dead", "list", "--json", "CONFIG"]);
    let letters: serde_json::Value = serde_json::from_slice(&letters.stdout).expect("JSON");
    let said: Vec<_> = letters
        .as_array()
        .into_iter()
        .flatten()
        .map(|letter| (letter["topic"].as_str(), letter["reason"].as_str()))
        .collect();
    assert_eq!(said[0].0, Some("erp/other.order"));
    assert!(said[0].1.is_some_and(|reason| reason.starts_with("topic: no contract matches it")), "{said:?}");
    assert_eq!(said[1].0, Some("erp"));
    assert!(said[1].1.is_some_and(|reason| reason.starts_with("/machine: is missing")), "{said:?}");
    assert_eq!(said.len(), 4);
}

/// What a CloudEvent says beside its data is not lost with its first refusal.
#[test]
fn a_dead_letter_is_taken_in_as_the_event_its_sender_made() {
    let centre = Centre::start();
    let (mut gateway, address) = prepare("http-letters", &centre.destination("central"), "");
    let strict = ORDER.to_owned() + "schema = \"order.json\"\n";
    let contracts = gateway.folder.join("contracts");
    std::fs::write(contracts.join("order.toml"), strict).expect("written");
    std::fs::write(contracts.join("order.json"), r#"{"required":["number"]}"#).expect("written");
    gateway.run();
    let mut client = Client::dial(address);
    let said = |data: &'static [u8], media: &'static str, id: &'static str, kind: &'static str| {
        let headers = [
            ("content-type", media),
            ("ce-specversion", "1.0"),
            ("ce-id", id),
            ("ce-source", "/erp/orders"),
            ("ce-type", kind),
            ("ce-time", "2026-11-23T09:00:00Z"),
            ("ce-subject", "WO/17"),
            ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ];
        (headers, data)
    };
    let mut post = |(headers, data): ([(&str, &str); 8], &[u8])| {
        let answer = client.post("/events/erp", &headers, data);
        assert_eq!((answer.status, answer.json()["dead_letters"].as_u64()), (202, Some(1)), "{answer:?}");
    };
    post(said(br#"{"numbr": 2}"#, "application/json", "b-1", "com.example.order"));
    post(said(b"<late/>", "text/xml", "b-2", "com.example.late"));
    // A contract for the second comes later.
    gateway.stop();
    let late = ORDER.replace("order.released", "order.late").replace("com.example.order", "com.example.late");
    std::fs::write(contracts.join("late.toml"), late + "accepts = \"bytes\"\n").expect("written");
    gateway.run();
    let output = gateway.command(&["dead", "edit", "1", "--set", "/number=2", "CONFIG"]);
    assert!(output.status.success(), "{output:?}");
    let output = gateway.command(&["dead", "requeue", "--all", "CONFIG"]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 of 2"), "{output:?}");
    // What the sender repeats of its own accord is known by now.
    let (headers, data) = said(b"<late/>", "text/xml", "b-2", "com.example.late");
    assert_eq!(Client::dial(address).post("/events/erp", &headers, data).status, 202);
    assert_eq!(gateway.status()["repeats"]["duplicates"], 1);
    centre.await_that("both arrive", Duration::from_secs(20), |centre| centre.events().len() >= 2);
    for event in centre.events() {
        assert!(event["id"] == "b-1" || event["id"] == "b-2", "{event:#}");
        assert_eq!(event["source"], "/plant/gw/programs/erp/%2Ferp%2Forders", "{event:#}");
        assert_eq!(event["subject"], "WO/17", "{event:#}");
        assert_eq!(event["time"], "2026-11-23T09:00:00.000000Z", "{event:#}");
        let media = if event["id"] == "b-1" { "application/json" } else { "text/xml" };
        assert_eq!(event["datacontenttype"], media, "{event:#}");
        assert_eq!(event["traceparent"], "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "{event:#}");
    }
}

#[test]
fn what_cannot_be_taken_gets_the_status_and_the_reason_that_fit() {
    let (gateway, address) = start("http-codes", "", "payload_max = \"1KB\"\nbody_max = \"100KB\"\n");
    let refused = Mutex::new(0);
    let check = |request: &[u8], status: u16, words: &[&str]| {
        let mut client = Client::dial(address);
        client.stream.write_all(request).expect("sent");
        let answer = client.receive().expect("an answer");
        assert_eq!(answer.status, status, "{answer:?}");
        let detail = detail(&answer);
        words.iter().for_each(|word| assert!(detail.contains(word), "\"{word}\" is missing in {detail}"));
        *refused.lock().expect("lock") += 1;
        answer
    };
    check(&post("/event/erp", &[], b"{}"), 404, &["POST /events/{source}"]);
    check(&post("/events/", &[], b"{}"), 404, &["POST /events/{source}"]);
    check(&post("/events/a/b", &[], b"{}"), 404, &[]);
    let answer = check(b"GET /events/erp HTTP/1.1\r\nhost: x\r\n\r\n", 405, &["GET", "POST"]);
    assert_eq!(answer.header("allow"), Some("POST"));
    for (path, word) in [
        ("/events/%23", "no source name"),
        ("/events/a%2Fb", "\"/\""),
        ("/events/%24SYS", "$"),
        ("/events/%FF", "UTF-8"),
        ("/events/%00", "control"),
    ] {
        check(&post(path, &[JSON], b"{}"), 400, &[word]);
    }
    check(&post("/events/erp", &[JSON], b""), 400, &["empty"]);
    // CloudEvents that are none.
    let structured = |body: &str, words: &[&str]| {
        check(&post("/events/erp", &[STRUCTURED], body.as_bytes()), 400, words);
    };
    structured("{", &["no CloudEvent", "EOF"]);
    structured("", &["no CloudEvent"]);
    structured(&order("", "1"), &["id: is 0 bytes long", "256"]);
    structured(&order(&"x".repeat(257), "1"), &["id: is 257 bytes long"]);
    structured(&order("1", "1").replace(r#""id":"1","#, ""), &["missing field `id`"]);
    structured(&order("1", "1").replace(r#""1.0""#, r#""0.3""#), &["specversion", "\"0.3\"", "\"1.0\""]);
    structured(&order("1", "1").replace("T08", "T99"), &["time", "RFC 3339"]);
    structured(&order("1", "1").replace("line/1", r"a\u0007b"), &["subject", "control character"]);
    structured(&order("1", r#"1,"data_base64":"AA==""#), &["only one of them"]);
    structured(&order("1", "1").replace(r#""data":1"#, r#""data_base64":"*""#), &["data_base64", "no base64"]);
    structured("[]", &["no CloudEvent"]);
    check(&post("/events/erp", &[("ce-id", "1"), ("ce-type", "x")], b"{}"), 400, &["ce-specversion: is missing"]);
    let ce = [("ce-specversion", "1.0"), ("ce-id", "%FF"), ("ce-source", "x"), ("ce-type", "y")];
    check(&post("/events/erp", &ce, b"{}"), 400, &["ce-id: is no UTF-8"]);
    let ce = [("ce-specversion", "1.0"), ("ce-id", "1"), ("ce-id", "2"), ("ce-source", "x"), ("ce-type", "y")];
    check(&post("/events/erp", &ce, b"{}"), 400, &["ce-id: is given twice"]);
    // One wrong event of a batch: none is taken, and the answer says which it is.
    let batch = format!("[{},{}]", order("1", "1"), order("2", "2").replace("specversion", "spec"));
    check(
        &post("/events/erp", &[BATCH], batch.as_bytes()),
        400,
        &["event 1: no CloudEvent: missing field `specversion`"],
    );
    check(&post("/events/erp", &[BATCH], order("1", "1").as_bytes()), 400, &["no batch"]);
    // Sizes: told before the body is sent, found while it comes, and of each payload in an envelope.
    let large = vec![b' '; 2000];
    check(b"POST /events/erp HTTP/1.1\r\nhost: x\r\ncontent-length: 2000000000\r\n\r\n", 413, &["1000 bytes"]);
    check(&post("/events/erp", &[JSON], &large), 413, &["1000 bytes"]);
    let mut chunked = b"POST /events/erp HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n7d0\r\n".to_vec();
    chunked.extend_from_slice(&large);
    chunked.extend_from_slice(b"\r\n0\r\n\r\n");
    check(&chunked, 413, &["1000 bytes"]);
    let long = format!("\"{}\"", "x".repeat(1000));
    check(&post("/events/erp", &[STRUCTURED], order("1", &long).as_bytes()), 413, &["1002 bytes", "1000"]);
    let batch = format!("[{},{}]", order("1", "1"), order("2", &long));
    check(&post("/events/erp", &[BATCH], batch.as_bytes()), 413, &["event 1: ", "1002 bytes"]);
    check(
        &post("/events/erp", &[BATCH], format!("[{}0]", "0,".repeat(1000)).as_bytes()),
        413,
        &["1001 events", "1000"],
    );
    // What is not understood.
    let answer = check(
        &post("/events/erp", &[("content-type", "application/cloudevents+avro")], b"x"),
        415,
        &["cloudevents+avro"],
    );
    assert!(answer.header("accept-post").is_some_and(|types| types.contains("application/cloudevents-batch+json")));
    let answer = check(&post("/events/erp", &[JSON, ("content-encoding", "br")], b"x"), 415, &["gzip"]);
    assert_eq!(answer.header("accept-encoding"), Some("gzip, identity"));
    check(&post("/events/erp", &[JSON, ("content-encoding", "gzip")], b"x"), 400, &["compressed bytes are damaged"]);
    check(
        &post("/events/erp", &[("content-type", "application/cloudevents+json; charset=latin1")], b"{}"),
        415,
        &["latin1"],
    );

    let status = gateway.status();
    assert_eq!(accepted(&status), 0, "nothing of all this was taken: {status:#}");
    assert_eq!((&status["dead"]["total"], &source(&status)["received"]), (&0.into(), &0.into()));
    assert_eq!(source(&status)["refused"], *refused.lock().expect("lock"));
    assert!(gateway.log().contains("request refused"), "some of them are logged");
    // Heads have a bound too, and what is no HTTP is no request.
    let answer = Client::dial(address).post("/events/erp", &[("x-long", &"x".repeat(20_000))], b"{}");
    assert_eq!(answer.status, 431, "{answer:?}");
    let mut client = Client::dial(address);
    client.stream.write_all(b"\x10\x10\x00\x04MQTT\x05\x02\x00\x00\x00\x00\x00").expect("sent");
    assert!(client.receive().map_or(true, |answer| answer.status == 400) && client.is_closed());
    // The source is none the worse for it, and a connection outlives a refusal.
    let mut client = Client::dial(address);
    assert_eq!(client.post("/events/erp", &[JSON], b"").status, 400);
    assert_eq!(client.post("/events/erp", &[STRUCTURED], order("1", "1").as_bytes()).status, 202);
}

fn gzipped(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

/// Senders such as Fluent Bit and Vector compress by default.
#[test]
fn a_gzip_body_is_taken_in_every_mode_and_never_beyond_the_limit() {
    let (gateway, address) = start("http-gzip", "", "payload_max = \"10KB\"\nbody_max = \"100KB\"\n");
    let mut client = Client::dial(address);
    let gzip = ("content-encoding", "gzip");
    let batch = format!("[{},{}]", order("b1", "1"), order("b2", "2"));
    let plain = r#"{"msg_id":"p1","machine":7,"ts":"2026-11-23T08:00:00Z"}"#;
    for (headers, body) in [(STRUCTURED, order("s1", "{}")), (BATCH, batch), (JSON, plain.to_owned())] {
        let answer = client.post("/events/erp", &[headers, gzip], &gzipped(body.as_bytes()));
        assert_eq!((answer.status, &answer.json()["dead_letters"]), (202, &0.into()), "{:?}", answer.json());
    }
    assert_eq!(accepted(&gateway.status()), 4);
    for (headers, bytes, status) in [(JSON, 10_001, 413), (STRUCTURED, 50 << 20, 413)] {
        let answer = Client::dial(address).post("/events/erp", &[headers, gzip], &gzipped(&vec![b' '; bytes]));
        assert_eq!(answer.status, status, "{:?}", answer.json());
        assert!(
            answer.json()["detail"].as_str().is_some_and(|text| text.contains("when decompressed")),
            "{:?}",
            answer.json()
        );
    }
    let cut = gzipped(order("c1", "{}").as_bytes());
    let answer = Client::dial(address).post("/events/erp", &[STRUCTURED, gzip], &cut[..cut.len() / 2]);
    assert_eq!(answer.status, 400, "{:?}", answer.json());
    let twice = gzipped(&gzipped(b"{}"));
    let answer = Client::dial(address).post("/events/erp", &[JSON, ("content-encoding", "gzip, gzip")], &twice);
    assert_eq!(answer.status, 415);
}

#[test]
fn only_who_may_is_let_in_and_only_for_itself() {
    let (mut gateway, address) = prepare("http-tokens", "", "tokens = \"tokens\"\n");
    let made =
        gateway.command(&["token", "add", "--file", gateway.folder.join("tokens").to_str().expect("text"), "erp"]);
    let erp = String::from_utf8(made.stdout).expect("text").trim().to_owned();
    assert!(erp.starts_with("forebay_") && erp.len() > 40, "{erp}");
    let mes = put_token(&gateway.folder.join("tokens"), "mes").expect("written");
    gateway.run();
    let mut client = Client::dial(address);
    let mut code = |path: &str, authorization: &str| {
        let headers = [("authorization", authorization), STRUCTURED];
        let headers = if authorization.is_empty() { &headers[1..] } else { &headers[..] };
        client.post(path, headers, order("1", "1").as_bytes())
    };
    assert_eq!(code("/events/erp", &format!("Bearer {erp}")).status, 202);
    assert_eq!(code("/events/mes", &format!("bearer {mes}")).status, 202);
    let answer = code("/events/mes", &format!("Bearer {erp}"));
    assert_eq!(answer.status, 403);
    assert!(detail(&answer).contains("\"erp\" may post to /events/erp only"));
    for authorization in
        ["", "Bearer", "Bearer ", "Bearer wrong", &format!("Basic {erp}"), &format!("Bearer {erp}x"), &erp]
    {
        let answer = code("/events/erp", authorization);
        assert_eq!((answer.status, answer.header("www-authenticate")), (401, Some("Bearer")), "{authorization}");
    }
    // A token that is replaced is worth nothing from the next start on.
    put_token(&gateway.folder.join("tokens"), "erp").expect("written");
    gateway.stop();
    gateway.run();
    let headers = [("authorization", format!("Bearer {erp}"))];
    let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    assert_eq!(Client::dial(address).post("/events/erp", &headers, b"{}").status, 401);
    let kept = std::fs::read_to_string(gateway.folder.join("tokens")).expect("read");
    for text in [gateway.log(), kept] {
        assert!(!text.contains(&erp) && !text.contains(&mes), "no token is written anywhere: {text}");
    }
}

/// A foreign client, with bearer tokens and with client certificates.
#[test]
fn curl_posts_over_tls_with_a_token_or_a_certificate() {
    let folder = scratch_folder("http-tls");
    let (pki, others) = (Pki::write(folder.path()), folder.path().join("others"));
    std::fs::create_dir(&others).expect("folder");
    let stranger = Pki::write(&others);
    let tls = format!(
        "tls = {{ cert = \"{}\", key = \"{}\", client_ca = \"{}\" }}\n",
        pki.server_cert.display(),
        pki.server_key.display(),
        pki.ca.display()
    );
    let (mut gateway, address) = prepare("http-tls", "", &format!("{tls}tokens = \"tokens\"\n"));
    let token = put_token(&gateway.folder.join("tokens"), "erp").expect("written");
    gateway.run();
    let curl = |path: &str, certificate: Option<&Pki>, more: &[&str]| {
        let mut command = Command::new("curl");
        command.args([
            "--silent",
            "--max-time",
            "20",
            "--output",
            "/dev/null",
            "--write-out",
            "%{http_code}",
            "--cacert",
        ]);
        command.arg(&pki.ca).args(["--json", r#"{"msg_id":"1","machine":"m1","ts":1764000000}"#]).args(more);
        if let Some(who) = certificate {
            command.arg("--cert").arg(&who.client_cert).arg("--key").arg(&who.client_key);
        }
        command.arg(format!("https://localhost:{}{path}", address.port()));
        let output = command.output().expect("curl starts; apt-get install curl");
        String::from_utf8(output.stdout).expect("text")
    };
    let bearer = format!("Authorization: Bearer {token}");
    assert_eq!(curl("/events/erp", None, &["-H", &bearer]), "202");
    assert_eq!(curl("/events/gw-01", Some(&pki), &[]), "202", "the certificate says gw-01");
    assert_eq!(curl("/events/erp", Some(&pki), &[]), "403");
    assert_eq!(curl("/events/erp", None, &[]), "401");
    assert_eq!(curl("/events/gw-01", Some(&stranger), &[]), "000", "a certificate of somebody else");
    assert_eq!(curl("/events/erp", None, &["-H", &bearer, "--tlsv1.2", "--tls-max", "1.2"]), "202");
    // Not TLS at all: an end, not a wait for ever.
    let mut plain = Client::dial(address);
    plain.stream.write_all(&post("/events/erp", &[], b"{}")).expect("sent");
    assert!(plain.receive().is_err());
    // The third is a repeat of the first.
    let status = gateway.status();
    assert_eq!((accepted(&status), &status["repeats"]["duplicates"]), (2, &1.into()), "{status:#}");
    assert!(gateway.log().contains("TLS handshake"), "{}", gateway.log());

    // Without tokens a certificate is asked for in the handshake.
    let config = std::fs::read_to_string(gateway.config()).expect("read");
    std::fs::write(gateway.config(), config.replace("tokens = \"tokens\"\n", "")).expect("written");
    gateway.stop();
    gateway.run();
    assert_eq!(curl("/events/erp", None, &["-H", &bearer]), "000");
    assert_eq!(curl("/events/gw-01", Some(&pki), &[]), "202");
}

#[test]
fn a_wrong_http_source_is_refused_with_file_line_key_value_and_what_is_allowed() {
    let check = |change: &dyn Fn(&str) -> String, words: &[&str]| {
        let (gateway, _) = prepare("http-check", "", "# more\n");
        let config = std::fs::read_to_string(gateway.config()).expect("read");
        std::fs::write(gateway.config(), change(&config)).expect("written");
        let output = gateway.command(&["check", "CONFIG"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(1), "{text}");
        words.iter().for_each(|word| assert!(text.contains(word), "\"{word}\" is missing in: {text}"));
    };
    let with = |line: &str, words: &[&str]| check(&|config: &str| config.replace("# more", line), words);
    with("payload_max = \"9MB\"", &["source.http[0].payload_max: 9.00 MB", "8.39 MB"]);
    with("body_max = \"0B\"", &["source.http[0].body_max", "1 byte"]);
    with("waiting_max = \"1MB\"", &["source.http[0].waiting_max: 1.00 MB", "no room for one request"]);
    with("connections_max = 0", &["source.http[0].connections_max: 0 is not allowed"]);
    with("events_per_second_max = 0", &["source.http[0].events_per_second_max: 0 is not allowed"]);
    with("request_wait_max = \"soon\"", &["source.http[0].request_wait_max", "\"soon\"", "250ms"]);
    with("token = \"x\"", &["unknown field `token`", "`tokens`"]);
    with("tokens = \"gone\"", &["source.http[0].tokens", "gone: cannot be read"]);
    with("anonymous = false", &["source.http[0].listen", "lets nobody in", "tls.client_ca"]);
    with("tls = { cert = \"gone.pem\", key = \"gone.key\" }", &["source.http[0].tls", "gone.pem: cannot be read"]);
    let open = |config: &str| {
        let (before, source) = config.split_once("[[source.http]]").expect("the source");
        format!("{before}[[source.http]]{}", source.replace("127.0.0.1", "0.0.0.0"))
    };
    check(&open, &["source.http[0].listen", "0.0.0.0", "lets nobody in", "anonymous = true"]);
    let production = |line: &'static str| {
        move |config: &str| open(config).replace("\"test\"", "\"production\"").replace("# more", line)
    };
    check(&production("anonymous = true"), &["source.http[0].anonymous", "production"]);
    check(
        &production("tokens = \"contracts/order.toml\""),
        &["source.http[0].tokens", "without TLS", "order.toml:2: expected \"name:sha256:hash\""],
    );
    check(
        &|config: &str| config.replace("\"programs\"", "\"devices\""),
        &["source.http[0].name", "\"devices\" is taken"],
    );
    let same = |config: &str| {
        let listen = config.lines().find(|line| line.starts_with("listen")).expect("a listener").to_owned();
        let (before, source) = config.split_once("[[source.http]]").expect("the source");
        let other = source.lines().find(|line| line.starts_with("listen")).expect("a listener").to_owned();
        format!("{before}[[source.http]]{}", source.replace(&other, &listen))
    };
    check(&same, &["source.http[0].listen", "is taken by another source"]);
}

#[test]
fn an_address_that_is_taken_is_named_with_its_source() {
    let (gateway, address) = prepare("http-port", "", "");
    let _taken = std::net::TcpListener::bind(address).expect("bound");
    let output = gateway.command(&["run", "CONFIG"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    for word in ["source \"programs\"", &address.to_string(), "another program has the port"] {
        assert!(text.contains(word), "\"{word}\" is missing in {text}");
    }
}
