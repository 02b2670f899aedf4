//! Security events: each kind of refusal reaches central as an event of `gateway.security`, once a period and origin, and is
//! counted by cause.

use crate::common::centre::Centre;
use crate::common::client::{Client, Hello, Will, subscribe};
use crate::common::gateway::{Gateway, scratch_folder};
use crate::common::http;
use crate::common::pki::Pki;
use crate::common::{await_port, free_address};
use forebay::sources::mqtt::put_user;
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(30);
const LISTENER: &str = "session_expiry_max = \"1h\"\nsessions_max = 1";

/// A gateway with one listener of each kind, and its centre.
struct Plant {
    gateway: Gateway,
    centre: Centre,
    named: SocketAddr,
    secure: SocketAddr,
    posts: SocketAddr,
    users: PathBuf,
    /// The bearer token of `erp`.
    token: String,
    _folder: tempfile::TempDir,
}

impl Plant {
    fn start() -> Self {
        let (folder, centre) = (scratch_folder("security"), Centre::start());
        let pki = Pki::write(folder.path());
        let (users, tokens) = (folder.path().join("users"), folder.path().join("tokens"));
        put_user(&users, "press-4", b"right").expect("written");
        put_user(&users, "press-5", b"right").expect("written");
        let token = forebay::sources::http::put_token(&tokens, "erp").expect("written");
        let [named, secure, posts] = [free_address(), free_address(), free_address()];
        let rest = format!(
            "{}\n[[source.mqtt]]\nname = \"named\"\nlisten = \"{named}\"\npasswords = \"{}\"\n{LISTENER}\n\
             acl = [{{ publish = [\"plant/line1/{{user}}/state\"], subscribe = [\"test/plant/board\"] }}]\n\
             [[source.mqtt]]\nname = \"secure\"\nlisten = \"{secure}\"\ntls = {{ cert = \"{}\", key = \"{}\", client_ca = \"{}\" }}\n\
             [[source.http]]\nname = \"posts\"\nlisten = \"{posts}\"\ntokens = \"{}\"\n",
            centre.destination("central"),
            users.display(),
            pki.server_cert.display(),
            pki.server_key.display(),
            pki.ca.display(),
            tokens.display()
        );
        let gateway = Gateway::start("security", &rest);
        [named, secure, posts].into_iter().for_each(await_port);
        Self { gateway, centre, named, secure, posts, users, token, _folder: folder }
    }

    /// The event of a cause that fits, once it has come.
    fn told(&self, cause: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let found = || {
            let events = self.centre.own("security");
            events.into_iter().find(|event| event["data"]["cause"] == cause && fits(&event["data"]))
        };
        let start = std::time::Instant::now();
        loop {
            if let Some(event) = found() {
                return event;
            }
            let all: Vec<_> = self.centre.own("security").iter().map(|event| event["data"].to_string()).collect();
            assert!(start.elapsed() < PATIENCE, "no event of {cause}: {all:#?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// How often the metrics say that there was a cause.
    fn count(&self, cause: &str) -> u64 {
        let socket = self.gateway.folder.join("data/forebay.sock");
        let mut stream = std::os::unix::net::UnixStream::connect(socket).expect("connects");
        stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").expect("asked");
        let mut page = String::new();
        stream.read_to_string(&mut page).expect("read");
        let series = format!("forebay_security_events_total{{cause=\"{cause}\"}} ");
        let found = page.lines().find_map(|line| line.strip_prefix(&series)).expect("such a series");
        found.parse().expect("a number")
    }
}

fn login(user: &'static str, password: &'static str, client: &'static str) -> Hello<'static> {
    Hello { client, login: Some((user, password)), ..Hello::default() }
}

#[test]
fn every_kind_of_refusal_is_an_event_with_who_from_where_and_why() {
    let plant = Plant::start();
    let local = |data: &Value| data["address"] == "127.0.0.1";

    // A few, since more of them from one address have to wait.
    for _ in 0..3 {
        let (_, connack) = Client::connect(plant.named, &login("press-4", "wrong", "press-4"));
        assert_eq!(connack[2], 0x86);
    }
    let event = plant.told("login", local);
    let data = &event["data"];
    assert_eq!(
        (&data["source"], &data["client"], &data["user"]),
        (&"named".into(), &"press-4".into(), &"press-4".into())
    );
    assert!(data["reason"].as_str().is_some_and(|why| why.contains("password is wrong")), "{data}");
    assert!(event["type"].as_str().is_some_and(|kind| kind.ends_with("gateway.security.v1")), "{event}");
    assert!(!event.to_string().contains("\"wrong\""), "the password is in no event: {event}");
    assert_eq!(plant.count("login"), 3);

    let mut press = Client::connect(plant.named, &login("press-4", "right", "press-4")).0;
    let refused = press.publish(true, 1, "plant/line1/press-5/state", b"{}");
    assert_eq!(refused[3], 0x87);
    let event = plant.told("publish", local);
    assert_eq!(
        (&event["data"]["user"], &event["data"]["what"]),
        (&"press-4".into(), &"plant/line1/press-5/state".into())
    );
    press.send(&subscribe(true, 2, &[], &[("test/#", 1)]));
    assert_eq!(press.receive().map(|packet| packet[0]), Some(0x90));
    assert_eq!(plant.told("subscribe", local)["data"]["what"], "test/#");

    let will = Will { topic: "plant/line1/press-4/state", payload: b"{}", ..Will::default() };
    let hello = Hello { will: Some(will), ..login("press-5", "right", "press-5") };
    assert_eq!(Client::connect(plant.named, &hello).1[2], 0x87);
    assert_eq!(plant.told("will", local)["data"]["what"], "plant/line1/press-4/state");

    let lasting = |user, client| Hello {
        is_clean: false,
        properties: vec![0x11, 0, 0, 0x0E, 0x10],
        ..login(user, "right", client)
    };
    let _first = Client::connect(plant.named, &lasting("press-4", "one")).0;
    assert_eq!(Client::connect(plant.named, &lasting("press-4", "two")).1[2], 0x97);
    assert_eq!(plant.told("session-quota", local)["data"]["client"], "two");

    let mut tls = TcpStream::connect(plant.secure).expect("connects");
    tls.write_all(b"\x10\x0c\x00\x04MQTT\x05\x02\x00\x00\x00\x00 no TLS at all").expect("sent");
    let _ = tls.read(&mut [0; 64]);
    assert_eq!(plant.told("tls", local)["data"]["source"], "secure");

    let mut http = http::Client::dial(plant.posts);
    assert_eq!(http.post("/events/erp", &[("authorization", "Bearer forebay_guess")], b"{}").status, 401);
    let event = plant.told("token", local);
    assert!(!event.to_string().contains("guess"), "{event}");

    // Rights that are narrowed: a subscription ends, and its client stays.
    let mut other = Client::connect(plant.named, &login("press-5", "right", "reader")).0;
    other.send(&subscribe(true, 3, &[], &[("test/plant/board", 1)]));
    assert_eq!(other.receive().map(|packet| packet[0]), Some(0x90));
    let config = std::fs::read_to_string(plant.gateway.config()).expect("read");
    let narrowed = config.replace("test/plant/board", "test/plant/other");
    assert_ne!(narrowed, config);
    std::fs::write(plant.gateway.config(), narrowed).expect("written");
    assert!(plant.gateway.command(&["reload", "CONFIG"]).status.success());
    let event = plant.told("cut", |data| data["user"] == "press-5");
    assert_eq!(event["data"]["what"], "test/plant/board");

    // Rights that are taken away: the one who is connected goes.
    let text = std::fs::read_to_string(&plant.users).expect("read");
    let kept: String =
        text.lines().filter(|line| !line.starts_with("press-4:")).flat_map(|line| [line, "\n"]).collect();
    std::fs::write(&plant.users, kept).expect("written");
    assert!(plant.gateway.command(&["reload", "CONFIG"]).status.success());
    plant.told("cut", |data| data["user"] == "press-4" && local(data));
    let data = plant.told("change", |data| data["what"] == "source named")["data"].clone();
    assert!(data["reason"].as_str().is_some_and(|why| why.contains("passwords")), "{data}");
}

#[test]
fn a_change_is_audited_with_who_how_and_what_came_of_it_and_a_refused_command_is_told() {
    let plant = Plant::start();
    let run = |words: &[&str]| plant.gateway.command(&[words, &["CONFIG"]].concat());
    let audit = || -> Vec<Value> {
        serde_json::from_slice(&run(&["audit", "--json", "--limit", "1000"]).stdout).expect("JSON")
    };
    let entry = |action: &str, result: &str| {
        let start = std::time::Instant::now();
        loop {
            let found = audit().into_iter().find(|entry| entry["action"] == action && entry["result"] == result);
            if let Some(found) = found {
                return found;
            }
            assert!(start.elapsed() < PATIENCE, "{action} {result}: {:#?}", audit());
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    let me = Value::from(rustix::process::geteuid().as_raw());
    let copy = plant.gateway.folder.join("copy");
    let copy = copy.to_str().expect("text");
    let bundle = plant.gateway.folder.join("bundle.tar");
    for words in [
        &["export", "--since", "1h"][..],
        &["verify"],
        &["backup", "--to", copy],
        &["bundle", "--output", bundle.to_str().expect("text")],
        &["clock", "--trust"],
        &["reload"],
    ] {
        let output = run(words);
        assert!(output.status.success(), "{words:?}: {output:?}");
    }
    for action in ["export", "verify", "backup"] {
        assert_eq!((&entry(action, "begun")["by"], &entry(action, "done")["by"]), (&me, &me), "{action}");
    }
    for action in ["bundle", "clock trusted"] {
        assert_eq!(entry(action, "done")["by"], me, "{action}");
    }
    let reload = entry("reload", "done");
    assert_eq!((&reload["by"], &reload["detail"]["how"]), (&me, &"command".into()));
    assert_eq!(entry("backup", "done")["detail"]["folder"], copy);

    // A file that is changed counts without a command, and by nobody's.
    let config = std::fs::read_to_string(plant.gateway.config()).expect("read");
    std::fs::write(plant.gateway.config(), config.replace("sessions_max = 1", "sessions_max = 2")).expect("written");
    let changed = entry_how(&audit, "files");
    assert!(changed["by"].is_null() && changed["detail"]["lines"].to_string().contains("sessions_max"), "{changed}");
    crate::common::signal_pid(plant.gateway.pid(), "HUP");
    assert_eq!(entry_how(&audit, "signal")["result"], "done");
    std::fs::write(plant.gateway.config(), config.replace("site = \"plant\"", "site = 7")).expect("written");
    assert!(!run(&["reload"]).status.success());
    let refused = entry("reload", "refused");
    assert!(refused["detail"]["lines"].to_string().contains("site"), "{refused}");
    plant.told("change", |data| data["reason"].as_str().is_some_and(|why| why.starts_with("refused: ")));
    std::fs::write(plant.gateway.config(), config).expect("written");

    assert!(!run(&["destination", "drop", "central"]).status.success());
    let told = plant.told("command", |data| data["what"] == "DELETE /destination/central");
    assert_eq!(told["data"]["user"], me.to_string());
}

/// The entry of a reload that came about in this way, once it is there.
fn entry_how(audit: &dyn Fn() -> Vec<Value>, how: &str) -> Value {
    let start = std::time::Instant::now();
    loop {
        let found = audit().into_iter().find(|entry| entry["action"] == "reload" && entry["detail"]["how"] == how);
        if let Some(found) = found {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "no reload by {how}: {:#?}", audit());
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_flood_of_wrong_logins_is_few_events_and_loses_no_count() {
    let plant = Plant::start();
    const ATTEMPTS: u64 = 400;
    for number in 0..ATTEMPTS {
        // No user name at all: refused without a hash.
        let client = format!("attacker-{number}");
        let (_, connack) = Client::connect(plant.named, &Hello { client: &client, ..Hello::default() });
        assert_eq!(connack[2], 0x87);
    }
    assert_eq!(plant.count("login"), ATTEMPTS);
    let first = plant.told("login", |_| true);
    assert!(first["data"]["count"].as_u64().is_some_and(|count| count > 1), "{first}");
    plant.gateway.await_status("the lanes stay small", PATIENCE, |status| {
        let taken = status["lanes"].as_array().into_iter().flatten();
        taken.map(|lane| lane["accepted"].as_u64().unwrap_or(0)).sum::<u64>() < 20
    });
    let mut gateway = plant.gateway;
    // What still waits is told when the gateway stops.
    gateway.stop();
    let export = gateway.command(&["export", "CONFIG"]);
    let text = String::from_utf8_lossy(&export.stdout);
    let events = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let counts: Vec<u64> = events
        .filter(|event| event["data"]["cause"] == "login")
        .map(|event| event["data"]["count"].as_u64().expect("a count"))
        .collect();
    assert_eq!(counts.iter().sum::<u64>(), ATTEMPTS, "{counts:?}: {text}");
    assert!(counts.len() <= 3, "one a minute, and one at the end: {counts:?}");
}

/// A line of the log that has all of these.
fn logged(gateway: &Gateway, parts: &[&str]) -> String {
    let log = gateway.log();
    let line = log.lines().find(|line| parts.iter().all(|part| line.contains(part)));
    line.unwrap_or_else(|| panic!("no line with {parts:?}: {log}")).to_owned()
}

#[test]
fn a_refusal_is_logged_with_who_it_was_and_what_it_wanted_and_without_a_secret() {
    let plant = Plant::start();
    assert_eq!(Client::connect(plant.named, &login("press-4", "wr0ng", "device-4")).1[2], 0x86);
    logged(&plant.gateway, &["client refused", "client=device-4", "user=press-4", "peer=127.0.0.1"]);
    let will = Will { topic: "plant/line1/press-4/state", payload: b"{}", ..Will::default() };
    let hello = Hello { will: Some(will), ..login("press-5", "right", "device-5") };
    assert_eq!(Client::connect(plant.named, &hello).1[2], 0x87);
    logged(&plant.gateway, &["client=device-5", "user=press-5", "topic=plant/line1/press-4/state"]);

    let token = format!("Bearer {}", plant.token);
    let post = |path: &str, token: &str| {
        let headers = [("authorization", token), ("content-type", "application/json")];
        http::Client::dial(plant.posts).post(path, &headers, b"{}").status
    };
    assert_eq!(post("/events/press-9", &token), 403);
    logged(&plant.gateway, &["request refused", "user=erp", "path=/events/press-9", "status=\"403\""]);
    let event = plant.told("publish", |data| data["source"] == "posts");
    let data = &event["data"];
    let told = (&data["client"], &data["user"], &data["what"]);
    assert_eq!(told, (&"press-9".into(), &"erp".into(), &"/events/press-9".into()));
    assert_eq!(post(&format!("/events/{}", plant.token), "Bearer forebay_n0ne"), 401);
    logged(&plant.gateway, &["request refused", "status=\"401\""]);
    let log = plant.gateway.log();
    for secret in ["wr0ng", "n0ne", &plant.token] {
        assert!(!log.contains(secret), "{secret} is in the log: {log}");
    }
    let event = plant.told("token", |data| data["source"] == "posts");
    assert!(!event.to_string().contains(&plant.token), "{event}");
}
