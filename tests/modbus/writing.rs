//! Writing: off, unless a rule allows the point and the value.

use super::plant::{Devices, GROUPS, prepare};
use crate::common::gateway::scratch_folder;
use forebay::config::Config;
use forebay::contract::SourceKind;
use forebay::ingest::Ingest;
use forebay::journal::{Journal, RealDisk, Seal};
use forebay::memory::{Budget, LIMIT_DEFAULT};
use forebay::shutdown;
use forebay::sources::SourceConfig;
use forebay::sources::modbus::Bus;
use forebay::sources::modbus::value::Value;
use forebay::sources::modbus::write::{NotWritten, Writer};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

const TABLE: &str = r#"
[group.g]
interval = "50ms"
[[point]]
name = "setpoint"
address = 0
scale = 0.1
[[point]]
name = "wide"
address = 1
type = "f32"
order = "CDAB"
[[point]]
name = "locked"
address = 3
[[point]]
name = "lamp"
table = "coil"
address = 2
"#;

const RULES: &str = r#"
write = [
    { unit = "u", point = "setpoint", range = [0, 50] },
    { unit = "u", point = "wide", range = [-1000, 1000] },
    { unit = "u", point = "lamp" },
]
"#;

/// Runs `check` with the handle of a source that asks these devices.
fn with_writer(port: u16, rules: &str, check: impl AsyncFnOnce(Writer)) {
    let folder = scratch_folder("modbus-write");
    let source = format!(
        "[[source.modbus]]\nname = \"bus\"\nurl = \"tcp://127.0.0.1:{}\"\ntimeout = \"200ms\"\nunit = [{{ name = \"u\", unit = 1, device = \"t\" }}]\n{rules}\n",
        port
    );
    prepare(folder.path(), &source, &[("t", TABLE)], &[("groups", GROUPS)]);
    let config = Config::load(&folder.path().join("forebay.toml")).expect("good");
    let seal = Seal { format: 1, environment: "test".into(), name: None };
    let journal = Arc::new(Journal::open(&config.journal, &seal, Arc::new(RealDisk)).expect("opens"));
    let ingest = Arc::new(
        Ingest::new(Arc::clone(&journal), config.contracts, Default::default(), Budget::new(LIMIT_DEFAULT))
            .expect("serves"),
    );
    let Some(SourceConfig::Modbus(config)) = config.sources.into_iter().find(|one| one.kind() == SourceKind::Modbus)
    else {
        panic!("there is no bus")
    };
    let ready = config.ready.clone().expect("loaded");
    let source = Bus::new(config, ready, ingest, Arc::default());
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    runtime.block_on(async {
        let writer = source.writer();
        let (trigger, shutdown) = shutdown::pair();
        let task = tokio::spawn(source.run(shutdown));
        check(writer).await;
        trigger.begin();
        task.await.expect("it ends");
    });
    journal.close(Duration::from_secs(5));
}

fn devices() -> Devices {
    Devices::start("tcp", json!({"units": [1], "holding": [10, 0, 0, 7, 0], "coils": vec![0; 16]}))
}

#[test]
fn writing_is_off_without_a_rule() {
    let mut devices = devices();
    with_writer(devices.port(), "", async |writer| {
        assert_eq!(writer.write("u", "setpoint", &Value::Float(1.0)).await, Err(NotWritten::Off));
        while devices.tell("read 1 holding 0") == "unread" {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    assert_eq!(devices.tell("read 1 holding 0"), "10");
}

#[test]
fn a_rule_allows_its_point_within_its_range_and_nothing_else() {
    let mut devices = devices();
    with_writer(devices.port(), RULES, async |writer| {
        let write = async |point: &str, value: Value| writer.write("u", point, &value).await;
        assert_eq!(write("setpoint", Value::Float(23.5)).await, Ok(()));
        assert_eq!(write("wide", Value::Float(-12.5)).await, Ok(()));
        assert_eq!(write("lamp", Value::Bool(true)).await, Ok(()));
        let not_allowed = NotWritten::NotAllowed { unit: "u".into(), point: "locked".into() };
        assert_eq!(write("locked", Value::Int(1)).await, Err(not_allowed));
        for (point, value, why) in [
            ("setpoint", Value::Float(50.1), "50.1 is out of bounds; 0 to 50 are allowed"),
            ("setpoint", Value::Float(0.55), "no whole number"),
            ("setpoint", Value::Text("much".into()), "is no number"),
            ("lamp", Value::Int(1), "neither true nor false"),
        ] {
            let refused = write(point, value).await.expect_err(why).to_string();
            assert!(refused.contains(why), "{refused}");
        }
    });
    assert_eq!(devices.tell("read 1 holding 0"), "235");
    // -12.5 is 0xC1480000, the low word first.
    assert_eq!((devices.tell("read 1 holding 1"), devices.tell("read 1 holding 2")), ("0".into(), "49480".into()));
    assert_eq!(devices.tell("read 1 holding 3"), "7");
}

#[test]
fn a_write_without_an_answer_is_not_repeated_and_said_to_be_unknown() {
    let mut devices = devices();
    with_writer(devices.port(), RULES, async |writer| {
        let written = writer.write("u", "setpoint", &Value::Float(1.0)).await;
        assert_eq!(written, Ok(()));
        devices.tell("refuse 4");
        let refused = writer.write("u", "setpoint", &Value::Float(2.0)).await.expect_err("refused");
        assert!(matches!(&refused, NotWritten::Refused(why) if why.contains("device failure")), "{refused}");
        devices.tell("refuse 0");
        devices.tell("slow 0.5");
        let unknown = writer.write("u", "setpoint", &Value::Float(3.0)).await.expect_err("no answer");
        let is_fair = matches!(&unknown, NotWritten::Unknown(why) if why.contains("no answer within 200ms"));
        // Where a reading was silent before it, the device counts as gone.
        assert!(
            is_fair || matches!(&unknown, NotWritten::Refused(why) if why.contains("does not answer")),
            "{unknown}"
        );
    });
}
