//! Sparkplug B, from bytes to events at central: births, deaths, aliases over restarts.

mod bounds;
mod floods;

use crate::common::broker::{Collector, Mosquitto};
use crate::common::client::{Client, Hello, publish};
use crate::common::fault_disk::{Fault, FaultDisk, Unsynced};
use crate::common::gateway::{Gateway, accepted, scratch_folder};
use crate::common::pki::Pki;
use crate::common::plant::PlantBroker;
use crate::power_cut::{config, open_with};
use forebay::contract::{Contracts, GatewayNames, Sender, SourceKind};
use forebay::event::Timestamp;
use forebay::ingest::sparkplug::Sparkplug;
use forebay::ingest::sparkplug::proto::{
    DataSet, Element, ElementValue, MetaData, Metric, MetricValue, Parameter, ParameterValue, Payload, PropertyKind,
    PropertySet, PropertyValue, Row, Template,
};
use forebay::ingest::{Ingest, Producer, Submission, Submitted};
use forebay::journal::{Journal, Waiter};
use forebay::memory::{Budget, LIMIT_DEFAULT};
use prost::Message;
use serde_json::{Value, json};
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(60);
const NOW: u64 = 1_764_000_000_000;

fn metric(name: &str, alias: u64, datatype: u32, value: MetricValue) -> Metric {
    Metric {
        name: (!name.is_empty()).then(|| name.to_owned()),
        alias: (alias > 0).then_some(alias),
        datatype: (datatype > 0).then_some(datatype),
        value: Some(value),
        ..Metric::default()
    }
}

fn message(seq: Option<u64>, metrics: Vec<Metric>) -> Vec<u8> {
    Payload { timestamp: Some(NOW), seq, metrics, ..Payload::default() }.encode_to_vec()
}

fn node_birth(bd_seq: u64) -> Vec<u8> {
    message(
        Some(0),
        vec![
            metric("bdSeq", 0, 4, MetricValue::Long(bd_seq)),
            metric("Node Control/Rebirth", 0, 11, MetricValue::Boolean(false)),
            metric("Supply/Voltage", 1, 10, MetricValue::Double(24.0)),
        ],
    )
}

fn device_birth(seq: u64) -> Vec<u8> {
    message(
        Some(seq),
        vec![metric("Temperature", 7, 9, MetricValue::Float(21.1)), metric("Count", 8, 1, MetricValue::Int(0xFF))],
    )
}

/// A decoder over a journal in memory.
struct Bench {
    sparkplug: Sparkplug,
    waiter: Waiter,
    _journal: Journal,
}

impl Bench {
    fn open(disk: &FaultDisk) -> Self {
        Self::open_within(disk, LIMIT_DEFAULT)
    }

    /// In a gateway that may take so many bytes of memory.
    fn open_within(disk: &FaultDisk, limit: u64) -> Self {
        let journal = open_with(disk, &config()).expect("opens");
        let sparkplug = Sparkplug::open(&journal, &Budget::new(limit)).expect("opens");
        sparkplug.allow_asking("plant");
        Self { sparkplug, waiter: Waiter::default(), _journal: journal }
    }

    /// Reads a message as ingest does.
    fn take(&self, topic: &str, payload: &[u8]) -> Result<Value, String> {
        self.take_from("edge", topic, payload)
    }

    fn take_from(&self, sender: &str, topic: &str, payload: &[u8]) -> Result<Value, String> {
        let decoded = self.sparkplug.decode("plant", topic, payload);
        if let Some(change) = decoded.change {
            let number = self.sparkplug.apply(change, sender, || self.waiter.bell());
            let start = Instant::now();
            while !self.sparkplug.is_saved(number) {
                assert!(start.elapsed() < LONG, "it is never saved");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        decoded.json.map(|json| serde_json::from_slice(&json).expect("JSON"))
    }

    fn node(&self, kind: &str, payload: &[u8]) -> Result<Value, String> {
        self.take(&format!("spBv1.0/g/{kind}/n"), payload)
    }

    fn device(&self, kind: &str, payload: &[u8]) -> Result<Value, String> {
        self.take(&format!("spBv1.0/g/{kind}/n/d"), payload)
    }

    fn asked(&self) -> Option<String> {
        self.sparkplug.next_ask("plant").map(|ask| ask.topic)
    }
}

#[test]
fn a_message_is_one_object_with_names_types_and_values() {
    let bench = Bench::open(&FaultDisk::default());
    let birth = bench.node("NBIRTH", &node_birth(3)).expect("a birth");
    assert_eq!(
        birth,
        json!({"group":"g","node":"n","type":"NBIRTH","seq":0,"timestamp":NOW,"metrics":{
            "bdSeq":{"value":3,"type":"Int64"},
            "Node Control/Rebirth":{"value":false,"type":"Boolean"},
            "Supply/Voltage":{"value":24.0,"type":"Double"}}})
    );
    bench.device("DBIRTH", &device_birth(1)).expect("a birth");
    let mut temperature = metric("", 7, 0, MetricValue::Float(f32::NAN));
    temperature.timestamp = Some(NOW - 5);
    temperature.properties = Some(PropertySet {
        keys: vec!["Quality".into(), "unit".into()],
        values: vec![
            PropertyValue { r#type: Some(3), is_null: None, value: Some(PropertyKind::Int(192)) },
            PropertyValue { r#type: Some(12), is_null: None, value: Some(PropertyKind::Text("°C".into())) },
        ],
    });
    let mut count = metric("", 8, 0, MetricValue::Int(0x80));
    count.is_null = Some(true);
    let data = bench.device("DDATA", &message(Some(2), vec![temperature, count])).expect("data");
    assert_eq!(
        data,
        json!({"group":"g","node":"n","device":"d","type":"DDATA","seq":2,"timestamp":NOW,"metrics":{
            "Temperature":{"value":null,"nonfinite":"NaN","type":"Float","timestamp":NOW-5,"quality":192,
                "properties":{"Quality":192,"unit":"°C"}},
            "Count":{"value":null,"type":"Int8"}}})
    );
    assert_eq!(bench.asked(), None, "nothing is missing");
    // The word of a host application, in both versions.
    let state = bench.take("spBv1.0/STATE/scada", br#"{"online":true,"timestamp":1}"#).expect("a state");
    assert_eq!(state, json!({"type":"STATE","host":"scada","timestamp":1,"state":{"online":true,"timestamp":1}}));
    assert_eq!(bench.take("STATE/scada", b"ONLINE").expect("a state")["state"], "ONLINE");
}

#[test]
fn a_metric_that_comes_several_times_loses_no_value() {
    let bench = Bench::open(&FaultDisk::default());
    let stored = |value: u32| Metric { is_historical: Some(true), ..metric("Count", 0, 7, MetricValue::Int(value)) };
    let live = metric("Count", 0, 7, MetricValue::Int(3));
    let data = bench.device("DDATA", &message(Some(0), vec![stored(1), live, stored(2)])).expect("data");
    assert_eq!(data["metrics"], json!({"Count":{"value":3,"type":"UInt32"}}));
    assert_eq!(
        data["earlier"],
        json!([{"name":"Count","value":1,"type":"UInt32","historical":true},{"name":"Count","value":2,"type":"UInt32","historical":true}])
    );
}

#[test]
fn data_sets_templates_files_and_arrays_keep_what_they_hold() {
    let bench = Bench::open(&FaultDisk::default());
    let element = |value| Element { value: Some(value) };
    let set = DataSet {
        column_count: Some(2),
        columns: vec!["step".into(), "pressure".into()],
        types: vec![1, 10],
        rows: vec![
            Row { elements: vec![element(ElementValue::Int(0xFE)), element(ElementValue::Double(1.5))] },
            Row { elements: vec![element(ElementValue::Int(2)), Element { value: None }] },
        ],
    };
    let template = Template {
        template_ref: Some("motor".into()),
        version: Some("1".into()),
        is_definition: None,
        parameters: vec![Parameter {
            name: Some("pole pairs".into()),
            r#type: Some(1),
            value: Some(ParameterValue::Int(0xFF)),
        }],
        metrics: vec![metric("Speed", 0, 3, MetricValue::Int(u32::MAX))],
    };
    let mut file = metric("Recipe", 0, 18, MetricValue::Bytes(vec![1, 2, 3]));
    file.metadata = Some(MetaData { file_name: Some("a.bin".into()), size: Some(3), ..MetaData::default() });
    let data = bench
        .device(
            "DDATA",
            &message(
                Some(0),
                vec![
                    metric("Steps", 0, 16, MetricValue::DataSet(set.clone())),
                    metric("Motor", 0, 19, MetricValue::Template(template)),
                    file,
                    metric("Trace", 0, 22, MetricValue::Bytes(vec![0xFF, 1])),
                    metric("Serial", 0, 15, MetricValue::Text("7b4c".into())),
                    metric("Big", 0, 8, MetricValue::Long(u64::MAX)),
                ],
            ),
        )
        .expect("data");
    assert_eq!(
        data["metrics"],
        json!({
            "Steps":{"value":{"columns":["step","pressure"],"types":["Int8","Double"],"rows":[[-2,1.5],[2,null]]},"type":"DataSet"},
            "Motor":{"value":{"template":"motor","version":"1","parameters":{"pole pairs":-1},"metrics":{"Speed":{"value":-1,"type":"Int32"}}},"type":"Template"},
            "Recipe":{"value":"AQID","type":"File","metadata":{"file_name":"a.bin","size":3}},
            "Trace":{"value":[-1,1],"type":"Int8Array"},
            "Serial":{"value":"7b4c","type":"UUID"},
            "Big":{"value":u64::MAX,"type":"UInt64"}
        })
    );
    let broken = DataSet { types: vec![1], ..set };
    let refused = bench.device("DDATA", &message(Some(1), vec![metric("Steps", 0, 16, MetricValue::DataSet(broken))]));
    assert_eq!(refused, Err("metric \"Steps\": its value is no DataSet, as its type says".into()));
}

#[test]
fn what_cannot_be_told_for_certain_is_refused_with_the_alias_and_a_rebirth_is_asked_for() {
    let bench = Bench::open(&FaultDisk::default());
    let by_alias = |alias| message(Some(1), vec![metric("", alias, 0, MetricValue::Double(1.0))]);
    let refused = bench.node("NDATA", &by_alias(1)).expect_err("no birth");
    assert_eq!(refused, "alias 1: is unknown to node g/n: no birth certificate of it is known");
    assert_eq!(bench.asked().as_deref(), Some("spBv1.0/g/NCMD/n"));
    assert!(bench.node("NDATA", &by_alias(1)).is_err());
    assert_eq!(bench.asked(), None, "asked once within the pause");

    bench.node("NBIRTH", &node_birth(0)).expect("a birth");
    assert!(bench.node("NDATA", &by_alias(1)).is_ok());
    let refused = bench.node("NDATA", &by_alias(9)).expect_err("not in the birth");
    assert_eq!(refused, "alias 9: is unknown to node g/n: its birth certificate does not name it");
    assert_eq!(bench.asked().as_deref(), Some("spBv1.0/g/NCMD/n"), "after a birth it may be asked again");
    // Declared as Double: a value that is none may belong to a birth that was not heard.
    let odd = message(Some(2), vec![metric("", 1, 0, MetricValue::Text("on".into()))]);
    assert!(bench.node("NDATA", &odd).expect_err("no double").contains("its value is no Double"));
    // An integer alone does not say how it is signed.
    let bare = message(Some(3), vec![metric("Count", 0, 0, MetricValue::Int(0xFF))]);
    assert!(
        bench
            .device("DDATA", &bare)
            .expect_err("no type")
            .starts_with("metric \"Count\": its type is given neither here")
    );

    // After a death its aliases are worth nothing; a will of an earlier session is not the death.
    let death = |bd_seq| message(None, vec![metric("bdSeq", 0, 4, MetricValue::Long(bd_seq))]);
    bench.node("NBIRTH", &node_birth(5)).expect("a birth");
    bench.node("NDEATH", &death(4)).expect("an old will");
    assert!(bench.node("NDATA", &by_alias(1)).is_ok());
    let dead = bench.node("NDEATH", &death(5)).expect("a death");
    assert_eq!((dead["type"].as_str(), dead["metrics"]["bdSeq"]["value"].as_u64()), (Some("NDEATH"), Some(5)));
    assert!(bench.node("NDATA", &by_alias(1)).expect_err("dead").contains("its last certificate is one of death"));
    // Devices die with their node, and by themselves.
    bench.node("NBIRTH", &node_birth(6)).expect("a birth");
    let of_device = |seq| message(Some(seq), vec![metric("", 7, 0, MetricValue::Float(1.0))]);
    bench.device("DBIRTH", &device_birth(1)).expect("a birth");
    assert!(bench.device("DDATA", &of_device(2)).is_ok());
    bench.device("DDEATH", &message(Some(3), vec![])).expect("a death");
    assert!(bench.device("DDATA", &of_device(4)).is_err());
}

#[test]
fn lost_messages_are_counted_and_a_repeat_is_no_gap() {
    let bench = Bench::open(&FaultDisk::default());
    let gaps = || bench.sparkplug.stats.gaps.value();
    let data = |seq| message(Some(seq), vec![metric("Supply/Voltage", 0, 10, MetricValue::Double(1.0))]);
    bench.node("NBIRTH", &node_birth(0)).expect("a birth");
    for seq in 1..=300u64 {
        bench.node("NDATA", &data(seq % 256)).expect("data");
    }
    bench.node("NDATA", &data(300 % 256)).expect("a repeat");
    assert_eq!((gaps(), bench.asked()), (0, None));
    bench.node("NDATA", &data(302 % 256)).expect("data");
    assert_eq!((gaps(), bench.asked().as_deref()), (1, Some("spBv1.0/g/NCMD/n")));
    // A birth starts again at its own number.
    bench.node("NBIRTH", &node_birth(0)).expect("a birth");
    bench.node("NDATA", &data(1)).expect("data");
    assert_eq!(gaps(), 1);
}

#[test]
fn bad_messages_are_refused_with_a_reason() {
    let bench = Bench::open(&FaultDisk::default());
    let check = |topic: &str, payload: &[u8], reason: &str| {
        let refused = bench.take(topic, payload).expect_err(topic);
        assert!(refused.contains(reason), "{refused}");
    };
    check("plant/a", b"", "topic: is none of Sparkplug B");
    check("spBv1.0/g/NBIRTH/n/d", b"", "topic: is none of Sparkplug B");
    check("spBv1.0/g/DDATA/n", b"", "topic: is none of Sparkplug B");
    check("spBv1.0/g/NDATA/n", b"\xFF\xFF", "payload: is no Sparkplug B");
    check("spBv1.0/g/NDATA/n", &message(None, vec![Metric::default()]), "one has neither name nor alias");
    check(
        "spBv1.0/g/NDATA/n",
        &message(None, vec![metric("a", 0, 99, MetricValue::Int(1))]),
        "data type 99, which does not exist",
    );
    let twice = vec![metric("a", 5, 3, MetricValue::Int(1)), metric("b", 5, 3, MetricValue::Int(1))];
    check("spBv1.0/g/NBIRTH/n", &message(Some(0), twice), "alias 5: stands for two metrics");
    let compressed = |body: &[u8], name: &str| {
        let algorithm = metric("algorithm", 0, 12, MetricValue::Text(name.into()));
        let (uuid, body) = (Some("SPBV1.0_COMPRESSED".into()), Some(body.to_vec()));
        Payload { uuid, body, metrics: vec![algorithm], ..Payload::default() }.encode_to_vec()
    };
    check("spBv1.0/g/NDATA/n", &compressed(b"nonsense", "GZIP"), "is compressed, and the compressed bytes are damaged");
    check("spBv1.0/g/NDATA/n", &compressed(b"", "BROTLI"), "GZIP and DEFLATE are known");
    let bomb = deflated(&vec![0; 64 << 20]);
    check("spBv1.0/g/NDATA/n", &compressed(&bomb, "DEFLATE"), "when decompressed");
    let mut nested = Template { metrics: vec![], ..Template::default() };
    for _ in 0..20 {
        nested = Template { metrics: vec![metric("t", 0, 19, MetricValue::Template(nested))], ..Template::default() };
    }
    check(
        "spBv1.0/g/NDATA/n",
        &message(None, vec![metric("t", 0, 19, MetricValue::Template(nested))]),
        "nested deeper than 12",
    );
    // Short aliases of long names: what comes of them is bounded.
    let long = metric(&"x".repeat(1000), 1, 11, MetricValue::Boolean(true));
    bench.node("NBIRTH", &message(Some(0), vec![long])).expect("a birth");
    let many = (0..9000).map(|_| metric("", 1, 0, MetricValue::Boolean(true))).collect();
    check("spBv1.0/g/NDATA/n", &message(Some(1), many), "more than 8388608 bytes of JSON");
}

#[test]
fn what_births_declared_is_there_after_a_restart_and_damaged_notes_cost_no_more() {
    let disk = FaultDisk::default();
    let bench = Bench::open(&disk);
    bench.node("NBIRTH", &node_birth(3)).expect("a birth");
    bench.device("DBIRTH", &device_birth(1)).expect("a birth");
    drop(bench);
    let bench = Bench::open(&disk);
    let data = message(Some(40), vec![metric("", 7, 0, MetricValue::Float(1.5))]);
    let event = bench.device("DDATA", &data).expect("data");
    assert_eq!(event["metrics"], json!({"Temperature":{"value":1.5,"type":"Float"}}));
    assert_eq!(bench.asked().as_deref(), Some("spBv1.0/g/NCMD/n"), "the aliases may be of an earlier birth");
    assert_eq!(bench.sparkplug.stats.gaps.value(), 0, "what came while nobody listened is no gap");
    drop(bench);
    disk.damage("state.redb", |bytes| bytes.iter_mut().for_each(|byte| *byte ^= 0x55));
    let bench = Bench::open(&disk);
    assert!(
        bench.device("DDATA", &data).expect_err("the notes are gone").contains("no birth certificate of it is known")
    );
}

#[test]
fn what_is_saved_survives_a_power_cut_and_a_disk_that_fails_is_waited_for() {
    for unsynced in [Unsynced::Dropped, Unsynced::Kept] {
        let disk = FaultDisk::default();
        let bench = Bench::open(&disk);
        bench.node("NBIRTH", &node_birth(3)).expect("a birth");
        disk.cut(unsynced);
        let bench = Bench::open(&disk.restart());
        let data = message(Some(1), vec![metric("", 1, 0, MetricValue::Double(1.5))]);
        assert!(bench.node("NDATA", &data).is_ok());
    }
    let disk = FaultDisk::default();
    let bench = Bench::open(&disk);
    disk.fail(Some(Fault::Full));
    let decoded = bench.sparkplug.decode("plant", "spBv1.0/g/NBIRTH/n", &node_birth(3));
    let number = bench.sparkplug.apply(decoded.change.expect("a change"), "edge", || bench.waiter.bell());
    std::thread::sleep(Duration::from_millis(300));
    assert!(!bench.sparkplug.is_saved(number));
    disk.fail(None);
    let start = Instant::now();
    while !bench.sparkplug.is_saved(number) {
        assert!(start.elapsed() < LONG, "it is never saved");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The contract that stands ready in `config/contracts`, for the gateway's own listener or a broker.
fn with_contract(gateway: &Gateway, source: &str) {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("config/contracts");
    let contract = std::fs::read_to_string(folder.join("sparkplug.toml")).expect("the example");
    let contract = contract.replace("source = \"broker\"", &format!("source = \"{source}\""));
    std::fs::write(gateway.folder.join("contracts/sparkplug.toml"), contract).expect("written");
    std::fs::create_dir_all(gateway.folder.join("contracts/schemas")).expect("folder");
    std::fs::copy(folder.join("schemas/sparkplug.v1.json"), gateway.folder.join("contracts/schemas/sparkplug.v1.json"))
        .expect("copied");
}

/// A birth that was acknowledged is understood after kill -9: each round the aliases change places.
#[test]
fn an_acknowledged_birth_survives_kills() {
    let mut gateway = Gateway::prepare("sparkplug-kills", "");
    with_contract(&gateway, "mqtt");
    gateway.run();
    for round in 1..=12u64 {
        let (mut client, _) = Client::connect(gateway.address, &Hello { client: "edge", ..Hello::default() });
        let (left, right) = if round % 2 == 0 { (1, 2) } else { (2, 1) };
        let birth = message(
            Some(0),
            vec![metric("Left", left, 3, MetricValue::Int(0)), metric("Right", right, 3, MetricValue::Int(0))],
        );
        client.send(&publish(true, 1, 1, "spBv1.0/g/NBIRTH/n", &[], &birth));
        assert_eq!(client.receive(), Some(vec![0x40, 0, 1]));
        gateway.kill();
        gateway.run();
        let (mut client, _) = Client::connect(gateway.address, &Hello { client: "edge", ..Hello::default() });
        // Only the left one is 7.
        let data = message(Some(1), vec![metric("", left, 0, MetricValue::Int(7))]);
        client.send(&publish(true, 1, 1, "spBv1.0/g/NDATA/n", &[], &data));
        assert_eq!(client.receive(), Some(vec![0x40, 0, 1]));
        let status = gateway.status();
        assert_eq!((accepted(&status), status["dead"]["total"].as_u64()), (round * 2, Some(0)), "{status:#}");
    }
}

/// zlib, as Eclipse Tahu's DEFLATE.
fn deflated(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

fn gzipped(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

/// A user's SCADA host made a dead letter of each of its births and deaths, and edge nodes that compress were refused.
#[test]
fn the_whole_namespace_of_a_sparkplug_plant_is_taken() {
    take_namespace(false);
    take_namespace(true);
}

/// With the contract of nodes alone, or with that of hosts as well.
fn take_namespace(has_host_contract: bool) {
    let mut gateway = Gateway::prepare("sparkplug-namespace", "");
    with_contract(&gateway, "mqtt");
    let host = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("config/contracts/sparkplug-host.toml");
    let host = std::fs::read_to_string(host).expect("the example").replace("source = \"broker\"", "source = \"mqtt\"");
    if has_host_contract {
        std::fs::write(gateway.folder.join("contracts/host.toml"), host).expect("written");
    }
    gateway.run();
    let (mut client, _) = Client::connect(gateway.address, &Hello { client: "edge", ..Hello::default() });
    let mut watcher = Client::connect(gateway.address, &Hello { client: "watcher", ..Hello::default() }).0;
    watcher.send(&crate::common::client::subscribe(true, 1, &[], &[("test/plant/#", 0)]));
    watcher.receive().expect("a SUBACK");
    let birth = message(Some(0), vec![metric("Speed", 1, 3, MetricValue::Int(5))]);
    let compressed = |inner: &[u8], body: fn(&[u8]) -> Vec<u8>, name: Option<&str>| {
        let algorithm = name.map(|name| metric("algorithm", 0, 12, MetricValue::Text(name.into())));
        let (uuid, body) = (Some("SPBV1.0_COMPRESSED".into()), Some(body(inner)));
        Payload { uuid, body, metrics: algorithm.into_iter().collect(), ..Payload::default() }.encode_to_vec()
    };
    let data = |seq, value| message(Some(seq), vec![metric("", 1, 0, MetricValue::Int(value))]);
    let all = [
        ("spBv1.0/STATE/scada1", br#"{"online":true,"timestamp":1764428400000}"#.to_vec()),
        ("spBv1.0/g/NBIRTH/n", compressed(&birth, deflated, None)),
        ("spBv1.0/g/NDATA/n", compressed(&data(1, 6), gzipped, Some("GZIP"))),
        ("spBv1.0/g/NDATA/n", compressed(&data(2, 7), deflated, Some("DEFLATE"))),
        ("spBv1.0/STATE/scada1", br#"{"online":false,"timestamp":1764428400000}"#.to_vec()),
    ];
    let mut seen = Vec::new();
    for (number, (topic, payload)) in all.iter().enumerate() {
        client.send(&publish(true, 1, number as u16 + 1, topic, &[], payload));
        assert_eq!(client.receive().expect("a PUBACK").len(), 3);
        let delivery = crate::common::client::Delivery::read(true, &watcher.receive().expect("an event"));
        let event: Value = serde_json::from_slice(&delivery.payload).expect("JSON");
        assert_eq!(event["violation"], Value::Null, "{event:#}");
        let is_own = event["type"] == "com.example.sparkplug.host.v1";
        assert_eq!(is_own, has_host_contract && topic.contains("STATE"), "{event:#}");
        let value = if topic.contains("STATE") {
            &event["data"]["state"]["online"]
        } else {
            &event["data"]["metrics"]["Speed"]
        };
        seen.push(value.clone());
    }
    assert_eq!(seen[0], json!(true));
    assert_eq!(seen[4], json!(false));
    for (event, value) in seen[1..4].iter().zip([5, 6, 7]) {
        assert!(event.to_string().contains(&value.to_string()), "{event} has {value}");
    }
    assert_eq!(gateway.status()["dead"]["total"], 0);
}

#[test]
fn a_birth_is_acknowledged_only_once_what_it_declares_is_on_the_disk() {
    let gateway = Gateway::prepare("sparkplug-gated", "");
    with_contract(&gateway, "mqtt");
    let around = GatewayNames {
        environment: "test".into(),
        site: "plant".into(),
        gateway: "gw".into(),
        namespace: "com.example".into(),
    };
    let loaded = Contracts::load(
        &gateway.folder.join("contracts"),
        &around,
        &["critical".into(), "standard".into()],
        false,
        &[],
    );
    let (contracts, _) = loaded.expect("good contracts");
    let disk = FaultDisk::default();
    let journal = Arc::new(open_with(&disk, &config()).expect("opens"));
    let ingest = Ingest::new(Arc::clone(&journal), contracts, Default::default(), Budget::new(LIMIT_DEFAULT));
    let ingest = Arc::new(ingest.expect("a door"));
    let mut producer = Producer::new(Arc::clone(&ingest));
    let mut take = |bd_seq| {
        let route = ingest.route(
            SourceKind::Mqtt,
            "devices",
            "spBv1.0/g/NBIRTH/n",
            Sender { client: "edge", ..Sender::default() },
        );
        let now = Timestamp(1_764_000_000_000_000);
        producer.submit(&Submission::new(&route, &node_birth(bd_seq), now)).expect("room")
    };
    let await_receipt = |taken: &Submitted| {
        let start = Instant::now();
        while ingest.receipt(taken).is_none() {
            assert!(start.elapsed() < LONG, "there is never a receipt");
            std::thread::sleep(Duration::from_millis(2));
        }
    };
    await_receipt(&take(1));
    // The event gets to its log, and what it declares does not get to the notes.
    disk.fail_at("state.redb", Some(Fault::Full));
    let second = take(2);
    let start = Instant::now();
    while !journal.lanes().iter().any(|lane| lane.end() == 3) {
        assert!(start.elapsed() < LONG, "the event is not on the disk");
        std::thread::sleep(Duration::from_millis(2));
    }
    std::thread::sleep(Duration::from_millis(200));
    assert!(ingest.receipt(&second).is_none(), "acknowledged all the same");
    disk.fail(None);
    await_receipt(&second);
}

#[test]
fn from_an_edge_node_over_the_plant_s_broker_to_central_and_a_rebirth_asked_for() {
    let folder = scratch_folder("sparkplug-broker");
    let pki = Pki::write(folder.path());
    let central = Mosquitto::start(folder.path(), &pki);
    let collector = Collector::start(central.plain, "test/plant/sparkplug/#");
    let broker = PlantBroker::start(folder.path(), "");
    let source = format!(
        "\n[[source.broker]]\nname = \"plant\"\nurl = \"mqtt://{}\"\ntopics = [\"spBv1.0/#\"]\nrebirth = true\n{}",
        broker.plain,
        central.destination(&pki, central.tls.port())
    );
    let mut gateway = Gateway::prepare("sparkplug-broker", &source);
    with_contract(&gateway, "broker");
    gateway.run();
    let is_subscribed = |status: &Value| {
        let sources = status["sources"].as_array().into_iter().flatten();
        sources.clone().count() == 2 && sources.into_iter().all(|source| source["problem"].is_null())
    };
    gateway.await_status("it is subscribed", LONG, is_subscribed);
    let hello = Hello { is_v5: false, client: "edge", ..Hello::default() };
    let (mut edge, _) = Client::connect(broker.plain, &hello);
    edge.stream.set_read_timeout(Some(LONG)).expect("set");
    // The edge node listens to its commands.
    let filter = crate::common::client::text("spBv1.0/g/NCMD/n");
    edge.send(&crate::common::client::packet(0x82, &[&[0, 9][..], &filter, &[0]].concat()));
    assert_eq!(edge.receive().map(|packet| packet[0]), Some(0x90));
    let await_command = |edge: &mut Client| {
        let command = edge.receive().expect("a command");
        assert_eq!(command[0], 0x30);
        let read = Payload::decode(&command[3 + "spBv1.0/g/NCMD/n".len()..]).expect("Sparkplug");
        assert_eq!(read.metrics[0].name.as_deref(), Some("Node Control/Rebirth"));
        assert_eq!(read.metrics[0].value, Some(MetricValue::Boolean(true)));
    };
    // Data before any birth: kept as a dead letter, and the node is asked.
    let data = |value: f64, seq: u64| message(Some(seq), vec![metric("", 1, 0, MetricValue::Double(value))]);
    edge.send(&publish(false, 0, 0, "spBv1.0/g/NDATA/n", &[], &data(1.0, 9)));
    await_command(&mut edge);
    edge.send(&publish(false, 0, 0, "spBv1.0/g/NBIRTH/n", &[], &node_birth(1)));
    edge.send(&publish(false, 0, 0, "spBv1.0/g/NDATA/n", &[], &data(2.0, 1)));
    let events = collector.await_count(2, LONG);
    let letters = String::from_utf8_lossy(&gateway.command(&["dead", "list", "CONFIG"]).stdout).into_owned();
    assert!(letters.contains("alias 1: is unknown to node g/n: no birth certificate of it is known"), "{letters}");
    let event = events[1].event();
    assert_eq!((event["subject"].as_str(), event["type"].as_str()), (Some("g/n"), Some("com.example.sparkplug.v1")));
    assert_eq!(event["data"]["metrics"]["Supply/Voltage"]["value"], 2.0);
    assert_eq!(event["time"], "2025-11-24T16:00:00.000000Z");

    // A restart between birth and data: the name is known, and a fresh birth is asked for.
    gateway.kill();
    gateway.run();
    gateway.await_status("it is subscribed again", LONG, is_subscribed);
    edge.send(&publish(false, 0, 0, "spBv1.0/g/NDATA/n", &[], &data(3.0, 2)));
    // After a kill some events are delivered again, so that they cannot be counted.
    let await_voltage = |value: f64| {
        let start = Instant::now();
        while !collector.arrived().iter().any(|one| one.event()["data"]["metrics"]["Supply/Voltage"]["value"] == value)
        {
            assert!(start.elapsed() < LONG, "{value} does not arrive");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    await_voltage(3.0);
    await_command(&mut edge);
    edge.send(&publish(false, 0, 0, "spBv1.0/g/NBIRTH/n", &[], &node_birth(1)));
    edge.send(&publish(false, 0, 0, "spBv1.0/g/NDATA/n", &[], &data(4.0, 5)));
    await_voltage(4.0);
    let status = gateway.await_status("a gap is counted", LONG, |status| status["sparkplug"]["gaps"] == 1);
    assert_eq!(
        (&status["sparkplug"]["nodes"], &status["sparkplug"]["rebirths_asked"]),
        (&json!(1), &json!(2)),
        "{status:#}"
    );
    let text = String::from_utf8_lossy(&gateway.command(&["status", "CONFIG"]).stdout).into_owned();
    assert!(text.contains("sparkplug nodes 1"), "{text}");
}
