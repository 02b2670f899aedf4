//! What a publish of MQTT 5 says besides its payload: CloudEvents, message expiry, response topic, user properties.

use crate::common::centre::Centre;
use crate::common::client::{Client, Delivery, Hello, publish, subscribe, text};
use crate::common::gateway::{Gateway, accepted};
use serde_json::{Value, json};

const CLOUD: &str = r#"
name = "order"
version = "1.0.0"
owner = "tests"
lane = "critical"
match = { source = "mqtt", topic = "orders/{line}" }
"#;
const STRICT: &str = r#"
name = "strict"
version = "1.0.0"
owner = "tests"
lane = "critical"
match = { source = "mqtt", topic = "strict/{line}" }
[properties]
expiry = "refuse"
response = "refuse"
other = "refuse"
"#;
const KEEPS: &str = r#"
name = "keeps"
version = "1.0.0"
owner = "tests"
lane = "critical"
match = { source = "mqtt", topic = "keeps/{line}" }
[properties]
response = "keep"
user = ["lot", "shift"]
"#;

fn start(name: &str, rest: &str) -> Gateway {
    let mut gateway = Gateway::prepare(name, rest);
    for (file, contract) in [("order", CLOUD), ("strict", STRICT), ("keeps", KEEPS)] {
        std::fs::write(gateway.folder.join(format!("contracts/{file}.toml")), contract).expect("written");
    }
    gateway.run();
    gateway
}

fn watcher(gateway: &Gateway) -> Client {
    let (mut watcher, _) = Client::connect(gateway.address, &Hello { client: "watcher", ..Hello::default() });
    watcher.send(&subscribe(true, 1, &[], &[("test/plant/#", 0)]));
    watcher.receive().expect("a SUBACK");
    watcher
}

fn event(watcher: &mut Client) -> Value {
    let delivery = Delivery::read(true, &watcher.receive().expect("an event"));
    serde_json::from_slice(&delivery.payload).expect("JSON")
}

fn content_type(kind: &str) -> Vec<u8> {
    [&[0x03][..], &text(kind)].concat()
}

fn user(name: &str, value: &str) -> Vec<u8> {
    [&[0x26][..], &text(name), &text(value)].concat()
}

/// A publish with QoS 1 that is answered with success.
fn send(client: &mut Client, id: u16, topic: &str, properties: &[u8], payload: &[u8]) {
    client.send(&publish(true, 1, id, topic, properties, payload));
    let answer = client.receive().expect("a PUBACK");
    assert_eq!((answer[0], answer.len()), (0x40, 3), "{answer:?}");
}

fn reasons(gateway: &Gateway) -> Vec<String> {
    let output = gateway.command(&["dead", "list", "--json", "CONFIG"]);
    let mut letters: Vec<Value> = serde_json::from_slice(&output.stdout).expect("JSON");
    letters.sort_by_key(|letter| letter["id"].as_u64());
    letters.iter().map(|letter| letter["reason"].as_str().expect("a reason").to_owned()).collect()
}

const STRUCTURED: &str = "application/cloudevents+json";

#[test]
fn a_cloudevent_over_mqtt_is_understood_as_over_http() {
    let gateway = start("cloudevents", "");
    let mut watcher = watcher(&gateway);
    let (mut client, _) = Client::connect(gateway.address, &Hello { client: "erp", ..Hello::default() });
    let structured = r#"{"specversion":"1.0","id":"o-1","source":"/erp/7","type":"com.example.order","time":"2026-11-23T08:00:00Z","subject":"line/1","data":{"n":1.50}}"#;
    send(&mut client, 1, "orders/l1", &content_type(STRUCTURED), structured.as_bytes());
    let first = event(&mut watcher);
    assert_eq!(
        (&first["id"], &first["subject"], &first["time"], &first["data"]),
        (&json!("o-1"), &json!("line/1"), &json!("2026-11-23T08:00:00.000000Z"), &json!({"n": 1.5})),
        "{first:#}"
    );
    assert_eq!(first["source"], "/plant/gw/devices/erp/%2Ferp%2F7");
    let attributes = [("specversion", "1.0"), ("id", "o-2"), ("source", "/erp/7"), ("type", "t"), ("subject", "s")];
    let binary = attributes.iter().flat_map(|(name, value)| user(name, value)).collect::<Vec<_>>();
    let binary = [content_type("application/json"), binary].concat();
    send(&mut client, 2, "orders/l1", &binary, b"{\"n\":2}");
    let second = event(&mut watcher);
    assert_eq!((&second["id"], &second["subject"], &second["data"]), (&json!("o-2"), &json!("s"), &json!({"n": 2})));
    // A repeat of the same event is recognised by source and id, in either mode.
    send(&mut client, 3, "orders/l1", &content_type(STRUCTURED), structured.as_bytes());
    send(&mut client, 4, "orders/l1", &binary, b"{\"n\":2}");
    assert_eq!(accepted(&gateway.status()), 2);
    // What is none says why, and nothing is lost.
    for (id, properties, payload, reason) in [
        (5, content_type(STRUCTURED), "{\"specversion\":\"1.0\"}", "cloudevent: no CloudEvent: missing field `id`"),
        (6, content_type(STRUCTURED), &structured.replace("o-1", "o\\u0001"), "holds a control character (U+0001)"),
        (7, content_type(STRUCTURED), &structured.replace("line/1", ""), "subject: is 0 bytes long"),
        (8, user("specversion", "1.0"), "{}", "cloudevent: id: is missing"),
        (9, content_type("application/cloudevents-batch+json"), "[]", "is understood over MQTT"),
    ] {
        send(&mut client, id, "orders/l1", &properties, payload.as_bytes());
        let last = reasons(&gateway).pop().expect("a dead letter");
        assert!(last.contains(reason), "{last}");
    }
    assert_eq!(reasons(&gateway).len(), 5);
    // An ordinary JSON payload is what it was.
    send(&mut client, 10, "orders/l1", &content_type("application/json"), b"{\"specversion\":\"1.0\",\"id\":\"x\"}");
    assert_eq!(event(&mut watcher)["data"], json!({"specversion": "1.0", "id": "x"}));
}

#[test]
fn a_cloudevent_that_broke_its_envelope_can_be_edited_and_requeued() {
    let gateway = start("cloudevent-edit", "");
    let mut watcher = watcher(&gateway);
    let (mut client, _) = Client::connect(gateway.address, &Hello { client: "erp", ..Hello::default() });
    let broken = r#"{"specversion":"1.0","source":"erp","type":"t","data":{"n":1}}"#;
    let properties = [content_type(STRUCTURED), vec![0x02, 0, 0, 0, 60]].concat();
    send(&mut client, 1, "orders/l1", &properties, broken.as_bytes());
    let output = gateway.command(&["dead", "list", "--all", "--json", "CONFIG"]);
    let letters: Vec<Value> = serde_json::from_slice(&output.stdout).expect("JSON");
    let edited = gateway.command(&["dead", "edit", &letters[0]["id"].to_string(), "--set", "/id=o-9", "CONFIG"]);
    assert!(edited.status.success(), "{}", String::from_utf8_lossy(&edited.stderr));
    let found = event(&mut watcher);
    assert_eq!((&found["id"], &found["data"]), (&json!("o-9"), &json!({"n": 1})));
    assert!(found["expirytime"].is_string(), "its properties are kept with the letter: {found:#}");
    // The schema judges the data, not the envelope, also when the letter is handed in again.
    let broken = broken.replace("{\"n\":1}", "{\"msg_id\":\"7\",\"state\":\"idle\"}");
    send(&mut client, 2, "plant/line1/m01/state", &properties, broken.as_bytes());
    send(&mut client, 3, "strict/l1", &properties, broken.as_bytes());
    let output = gateway.command(&["dead", "list", "--all", "--json", "CONFIG"]);
    let mut letters: Vec<Value> = serde_json::from_slice(&output.stdout).expect("JSON");
    letters.sort_by_key(|letter| letter["id"].as_u64());
    let edit =
        |letter: &Value| gateway.command(&["dead", "edit", &letter["id"].to_string(), "--set", "/id=o-9", "CONFIG"]);
    let edited = edit(&letters[1]);
    assert!(edited.status.success(), "{}", String::from_utf8_lossy(&edited.stderr));
    assert_eq!(event(&mut watcher)["data"]["state"], "idle");
    let refused = edit(&letters[2]);
    let said = String::from_utf8_lossy(&refused.stdout).into_owned() + &String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("the publish has message expiry"), "{said}");
}

#[test]
fn expiry_response_topic_and_user_properties_are_kept_or_refused_by_contract() {
    let centre = Centre::start();
    let gateway = start("properties", &centre.destination("central"));
    let mut watcher = watcher(&gateway);
    let (mut client, _) = Client::connect(gateway.address, &Hello { client: "press", ..Hello::default() });
    let expiry = vec![0x02, 0, 0, 0, 60];
    let response = [&[0x08][..], &text("answers/press"), &[0x09, 0, 2, 1, 255]].concat();
    let all = [expiry.clone(), response.clone(), user("Lot", "L-7"), user("shift", "a\u{1}b"), user("x", "y")].concat();
    // By default the expiry is kept, and nothing else.
    send(&mut client, 1, "orders/l1", &all, b"{}");
    let plain = event(&mut watcher);
    let (time, expires) = (plain["time"].as_str().expect("a time"), plain["expirytime"].as_str().expect("an expiry"));
    let parsed = |text: &str| forebay::event::Timestamp::parse(text).expect("RFC 3339").0;
    assert_eq!(parsed(expires) - parsed(time), 60_000_000);
    for name in ["responsetopic", "correlationdata", "lot", "shift", "x"] {
        assert_eq!(plain[name], Value::Null, "{plain:#}");
    }
    send(&mut client, 2, "keeps/l1", &all, b"{}");
    let kept = event(&mut watcher);
    assert_eq!(
        (&kept["responsetopic"], &kept["correlationdata"], &kept["lot"], &kept["shift"], &kept["x"]),
        (&json!("answers/press"), &json!("Af8="), &json!("L-7"), &json!("a%01b"), &Value::Null),
        "{kept:#}"
    );
    for (id, properties, what) in
        [(3, expiry, "message expiry"), (4, response, "response topic"), (5, user("x", "y"), "does not list")]
    {
        send(&mut client, id, "strict/l1", &properties, b"{}");
        let last = reasons(&gateway).pop().expect("a dead letter");
        assert!(last.starts_with("properties: ") && last.contains(what), "{last}");
    }
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    send(&mut client, 6, "strict/l1", &user("traceparent", trace), b"{}");
    assert_eq!(event(&mut watcher)["traceparent"], trace);
    send(&mut client, 7, "strict/l1", &user("traceparent", "xx"), b"{}");
    assert_eq!(event(&mut watcher)["traceparent"], Value::Null, "what is no trace context is not passed on");
}

/// A user's topic had an empty level, and the SDKs of JavaScript and Python refused the event.
#[test]
fn a_subject_is_never_empty_and_holds_no_control_character() {
    let mut gateway = Gateway::prepare("subjects", "");
    let contract = "name = \"s\"\nversion = \"1.0.0\"\nowner = \"t\"\nlane = \"critical\"\nkey = \"{m}\"\nid = \"/id\"\nmatch = { source = \"mqtt\", topic = \"s/{m}/x\" }\n";
    std::fs::write(gateway.folder.join("contracts/s.toml"), contract).expect("written");
    gateway.run();
    let mut watcher = watcher(&gateway);
    let (mut client, _) = Client::connect(gateway.address, &Hello::default());
    for (number, (topic, id, subject, safe_id, levels)) in [
        ("s//x", "1", Value::Null, "1", "%_"),
        ("s/a\u{1}b/x", "2\\u0000", json!("a%01b"), "2%00", "a%01b"),
        ("s/\u{fffe}/x", "3\\ufdd0", json!("%EF%BF%BE"), "3%EF%B7%90", "%EF%BF%BE"),
        ("s/50%/x", "4%", json!("50%"), "4%", "50%25"),
    ]
    .into_iter()
    .enumerate()
    {
        send(&mut client, number as u16 + 1, topic, &[], format!("{{\"id\":\"{id}\"}}").as_bytes());
        let delivery = Delivery::read(true, &watcher.receive().expect("an event"));
        let found: Value = serde_json::from_slice(&delivery.payload).expect("JSON");
        assert_eq!((&found["subject"], &found["id"]), (&subject, &json!(safe_id)), "{topic:?}: {found:#}");
        assert_eq!(delivery.topic, format!("test/plant/s/v1/{levels}"));
        assert_eq!(found.as_object().expect("an object").contains_key("subject"), !subject.is_null());
    }
    assert_eq!(gateway.status()["dead"]["total"], 0);
}

/// Users of other software saw "parse error" for a NUL, a BOM or `nan` and could not find it.
#[test]
fn the_reason_of_a_dead_letter_names_line_column_and_cause() {
    let gateway = Gateway::start("reasons", "");
    let (mut client, _) = Client::connect(gateway.address, &Hello::default());
    let deep = format!("{}1{}", "[".repeat(200), "]".repeat(200));
    let cases: [(&[u8], &str); 6] = [
        (b"\xEF\xBB\xBF{\"v\":1}", "line 1 column 1: the text begins with a byte order mark"),
        (deep.as_bytes(), "line 1 column 128: it is nested more than 128 levels deep"),
        (b"{\"v\":1e400}", "a number is out of range"),
        (b"{\n \"a\": 1,\n \"b\": 2,\n \"c\": NaN,\n \"d\": 3\n}", "line 4 column 7: NaN is no number of JSON"),
        (b"{\"v\":1}\n\0", "line 2 column 1: a NUL character follows the end"),
        (b"{\"v\":1", "the text ends too early"),
    ];
    for (number, (payload, expected)) in cases.into_iter().enumerate() {
        send(&mut client, number as u16 + 1, "plant/line1/m01/state", &[], payload);
        let last = reasons(&gateway).pop().expect("a dead letter");
        assert!(last.starts_with("payload: is no JSON at line ") && last.contains(expected), "{last}");
    }
}
