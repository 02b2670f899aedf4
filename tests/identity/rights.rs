//! What a name may do: topics, sessions, wills, contracts, events, dead letters, HTTP.

use super::{DENIED, GRANTED, OK, Peer, Way, configure, said};
use crate::common::centre::Centre;
use crate::common::client::{Client, Delivery, Hello, Will, subscribe};
use crate::common::gateway::Gateway;
use crate::common::http;
use crate::common::pki::Pki;
use crate::common::{await_port, free_address};
use forebay::sources::http::put_token;
use forebay::sources::mqtt::put_user;
use serde_json::Value;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(30);

/// A contract whose key no level of the topic forms alone: rules say who publishes.
const SHIFT: &str = r#"
name = "line.shift"
version = "1.0.0"
owner = "tests"
match = { source = "mqtt", topic = "plant/{line}/{machine}/shift" }
key = "{line}-{machine}"
"#;

/// A contract whose key is in the payload, and that says whose it is.
const QUALITY: &str = r#"
name = "quality.result"
version = "1.0.0"
owner = "tests"
match = { source = "mqtt", topic = "plant/{line}/{station}/quality" }
key = "{/piece}"
device = "{station}"
publisher = "{station}"
"#;

/// A contract for every proven name, which is the key.
const NOTE: &str = r##"
name = "shift.note"
version = "1.0.0"
owner = "tests"
match = { source = "mqtt", topic = "notes/#" }
key = "{user}"
"##;

/// A contract for whoever has its proven name as client id too.
const SELF: &str = r#"
name = "self.report"
version = "1.0.0"
owner = "tests"
match = { source = "mqtt", topic = "self" }
"#;

/// A contract for programs, of which one alone may publish.
const ORDER: &str = r#"
name = "order.released"
version = "1.0.0"
owner = "tests"
match = { source = "http", topic = "{program}/{planner}" }
key = "{/order}"
publisher = "{planner}"
"#;

/// A plant with a listener for each way to a name.
struct Plant {
    gateway: Gateway,
    named: SocketAddr,
    secure: SocketAddr,
    open: SocketAddr,
    programs: SocketAddr,
    certificate: Way,
    token: String,
}

impl Plant {
    fn start(name: &str) -> Self {
        Self::start_with(name, "")
    }

    /// With more in the configuration.
    fn start_with(name: &str, rest: &str) -> Self {
        let mut gateway = Gateway::prepare(name, rest);
        for (file, text) in [("shift", SHIFT), ("quality", QUALITY), ("note", NOTE), ("self", SELF), ("order", ORDER)] {
            std::fs::write(gateway.folder.join(format!("contracts/{file}.toml")), text).expect("written");
        }
        let pki = Pki::write(&gateway.folder);
        let users = gateway.folder.join("users");
        for user in ["press-4", "lowuser"] {
            put_user(&users, user, b"long enough").expect("written");
        }
        let token = put_token(&gateway.folder.join("tokens"), "erp").expect("written");
        let (named, secure, open, programs) = (free_address(), free_address(), free_address(), free_address());
        configure(
            &gateway,
            &format!(
                r##"
[[source.mqtt]]
name = "named"
listen = "{named}"
passwords = "users"
[[source.mqtt]]
name = "secure"
listen = "{secure}"
tls = {{ cert = "server.pem", key = "server.key", client_ca = "ca.pem" }}
[[source.mqtt]]
name = "open"
listen = "{open}"
anonymous = true
[[source.mqtt.acl]]
who = "admin"
publish = ["#"]
subscribe = ["#"]
[[source.mqtt.acl]]
who = "*"
publish = ["any/#"]
[[source.mqtt.acl]]
publish = ["forms/+/x", "own/{{user}}"]
subscribe = ["test/plant/machine.state/v1/board", "own/{{user}}"]
[[source.http]]
name = "programs"
listen = "{programs}"
tokens = "tokens"
"##
            ),
        );
        gateway.run();
        [named, secure, open, programs].into_iter().for_each(await_port);
        Self { gateway, named, secure, open, programs, certificate: Way::Certificate(pki.client()), token }
    }

    /// Every way to a proven name: the listener, what is shown, and the name.
    fn ways(&self) -> [(SocketAddr, Way, &'static str); 3] {
        [
            (self.named, Way::Password("press-4", "long enough"), "press-4"),
            (self.named, Way::Password("lowuser", "long enough"), "lowuser"),
            (self.secure, self.certificate.clone(), "gw-01"),
        ]
    }
}

fn state(id: usize) -> String {
    format!(r#"{{"msg_id":"{id}","state":"idle"}}"#)
}

/// The client id was a second name, and any level of the topic made it somebody's: whoever called itself like the
/// environment read everything, and whoever called itself like the site wrote for every machine.
#[test]
fn a_proven_name_has_its_own_topics_whatever_its_client_id() {
    let plant = Plant::start("who-topics");
    for (address, way, own) in plant.ways() {
        for client in [own, "press-5", "plant", "test", "line-1", "state", "machine.state", "v1", "any"] {
            let (mut peer, code) = Peer::connect(address, &way, &Hello { client, ..Hello::default() });
            assert_eq!(code, Some(OK), "{own} as {client}");
            let self_code = if client == own { OK } else { DENIED };
            for (topic, expected) in [
                (format!("plant/line-1/{own}/state"), OK),
                ("plant/line-1/press-5/state".into(), DENIED),
                (format!("plant/{own}/press-5/state"), DENIED),
                (format!("plant/line-1/{own}/shift"), DENIED),
                (format!("plant/{own}/press-5/shift"), DENIED),
                (format!("plant/line-1/{own}/quality"), OK),
                ("plant/line-1/press-5/quality".into(), DENIED),
                ("notes/line-1/press-5".into(), OK),
                ("self".into(), self_code),
                // What no contract matches becomes a dead letter with its sender.
                (format!("unknown/{own}/press-5"), OK),
                ("unknown/press-5/x".into(), DENIED),
                (format!("unknown/{own}x/y"), DENIED),
            ] {
                let payload = format!(r#"{{"msg_id":"{own}-{client}","piece":"p1","state":"idle"}}"#);
                assert_eq!(peer.publish(&topic, payload.as_bytes()), expected, "{own} as {client} to {topic}");
            }
            for (filter, expected) in [
                (format!("test/plant/machine.state/v1/{own}"), GRANTED),
                (format!("test/plant/+/+/{own}"), GRANTED),
                (format!("$share/board/test/plant/+/v1/{own}"), GRANTED),
                (format!("test/plant/command/gw/+/+/+/{own}"), GRANTED),
                (format!("test/plant/+/{own}/x"), DENIED),
                (format!("{own}/#"), DENIED),
                (format!("+/plant/+/+/{own}"), DENIED),
                ("test/plant/machine.state/v1/press-5".into(), DENIED),
                ("test/plant/machine.state/v1/+".into(), DENIED),
                ("test/plant/command/gw/+/+/+/press-5".into(), DENIED),
                ("test/#".into(), DENIED),
                ("#".into(), DENIED),
                ("$share/board/#".into(), DENIED),
                (format!("{client}/plant/#"), DENIED),
            ] {
                assert_eq!(peer.subscribe(&filter), expected, "{own} as {client} from {filter}");
            }
        }
        for (topic, expected) in [
            (format!("plant/line-1/{own}/state"), OK),
            ("plant/line-1/press-5/state".into(), DENIED),
            (format!("plant/{own}/press-5/state"), DENIED),
        ] {
            let will = Will { topic: &topic, payload: b"{}", ..Will::default() };
            let hello = Hello { client: "press-5", will: Some(will), ..Hello::default() };
            assert_eq!(Peer::connect(address, &way, &hello).1, Some(expected), "a will of {own} to {topic}");
        }
    }
    let log = plant.gateway.log();
    assert!(log.contains("no rule (acl) lets"), "the log says why: {log}");
    let shown = plant.gateway.command(&["devices", "CONFIG"]);
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    let is_told = shown.lines().any(|line| line.contains("18 refusals, the last one") && line.contains("rule (acl)"));
    assert!(is_told, "devices say what was refused and why: {shown}");
}

/// With rules and anonymous clients on one listener, a user name that nobody had checked had the rules of that name.
#[test]
fn a_claimed_name_has_no_rules() {
    let plant = Plant::start("who-claims");
    for way in [Way::Nothing, Way::Claim("admin"), Way::Claim("press-4"), Way::Claim("*"), Way::Claim("")] {
        for client in ["admin", "press-4", "board"] {
            let (mut peer, code) = Peer::connect(plant.open, &way, &Hello { client, ..Hello::default() });
            assert_eq!(code, Some(OK));
            for (topic, expected) in [
                ("forms/1/x", OK),
                ("any/x", DENIED),
                ("plant/line-1/press-4/state", DENIED),
                ("own/admin", DENIED),
                ("own/", DENIED),
                ("self", DENIED),
                ("notes/x", DENIED),
            ] {
                assert_eq!(peer.publish(topic, state(1).as_bytes()), expected, "{client} to {topic}");
            }
            for (filter, expected) in [
                ("test/plant/machine.state/v1/board", GRANTED),
                ("test/plant/machine.state/v1/press-4", DENIED),
                ("own/admin", DENIED),
                ("#", DENIED),
            ] {
                assert_eq!(peer.subscribe(filter), expected, "{client} from {filter}");
            }
        }
    }
}

/// Central saw the client id alone, which everybody chooses. The proven name travels where it says something else.
#[test]
fn the_proven_name_travels_with_the_event_where_it_is_not_the_device() {
    let plant = Plant::start("who-events");
    let (mut board, _) = Client::connect(plant.gateway.address, &Hello { client: "board", ..Hello::default() });
    board.send(&subscribe(true, 1, &[], &[("test/#", 1)]));
    board.receive().expect("a SUBACK");
    let mut next = || {
        let delivery = Delivery::read(true, &board.receive().expect("an event"));
        board.send(&crate::common::client::answer(0x40, delivery.id));
        serde_json::from_slice::<serde_json::Value>(&delivery.payload).expect("JSON")
    };
    for (index, (address, way, own)) in plant.ways().into_iter().enumerate() {
        let kind = if own == "gw-01" { "service_account" } else { "user" };
        for client in [own, "press-5"] {
            let (mut peer, _) = Peer::connect(address, &way, &Hello { client, ..Hello::default() });
            let payload = state(index * 10 + usize::from(client == own));
            assert_eq!(peer.publish(&format!("plant/line-1/{own}/state"), payload.as_bytes()), OK);
            let event = next();
            assert_eq!(event["subject"], own, "{event}");
            if client == own {
                assert!(event["authid"].is_null() && event["authtype"].is_null(), "{event}");
            } else {
                assert_eq!((&event["authid"], &event["authtype"]), (&own.into(), &kind.into()), "{event}");
            }
            // The contract says which device it is; the client id is in the event nowhere.
            assert_eq!(peer.publish(&format!("plant/line-1/{own}/quality"), br#"{"piece":"p"}"#), OK);
            let event = next();
            assert!(event["authid"].is_null() && !event.to_string().contains("press-5"), "{event}");
        }
    }
    let devices: serde_json::Value =
        serde_json::from_str(&said(&plant.gateway, &["devices", "--json", "CONFIG"])).expect("JSON");
    let of = |client: &str, source: &str| {
        let all = devices.as_array().expect("a list");
        all.iter().find(|one| one["client"] == client && one["source"] == source).expect("it is there").clone()
    };
    let seen = of("press-5", "secure");
    assert_eq!((&seen["identity"], &seen["authtype"]), (&"gw-01".into(), &"service_account".into()));
    assert!(of("board", "devices")["authtype"].is_null());
}

/// A name is level enough for a dead letter, and no way around the contract that comes later.
#[test]
fn a_dead_letter_names_its_sender_and_is_taken_in_for_its_own_name_alone() {
    let plant = Plant::start("who-letters");
    let way = Way::Password("lowuser", "long enough");
    let (mut peer, _) = Peer::connect(plant.named, &way, &Hello { client: "press-5", ..Hello::default() });
    assert_eq!(peer.publish("forms/lowuser/press-5/x", b"{}"), OK);
    assert_eq!(peer.publish("forms/line-1/lowuser/x", b"{}"), OK);
    let shown = said(&plant.gateway, &["dead", "show", "1", "CONFIG"]);
    assert!(shown.contains("lowuser (proven: user)"), "{shown}");
    let contract =
        SHIFT.replace("line.shift", "forms.x").replace("plant/{line}/{machine}/shift", "forms/{line}/{machine}/x");
    let contract = contract.replace("{line}-{machine}", "{machine}");
    std::fs::write(plant.gateway.folder.join("contracts/forms.toml"), contract).expect("written");
    said(&plant.gateway, &["reload", "CONFIG"]);
    let output = plant.gateway.command(&["dead", "requeue", "--all", "CONFIG"]);
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("\"press-5\"") && text.contains("\"lowuser\" published it"), "{text}");
    let status = plant.gateway.status();
    assert_eq!(crate::common::gateway::accepted(&status), 1, "the other one is taken in: {status:#}");
}

/// The same rules for programs that post over HTTP.
#[test]
fn a_token_posts_for_its_name_and_is_nobody_else() {
    let plant = Plant::start("who-http");
    let bearer = format!("Bearer {}", plant.token);
    let kind = |planner: &str| {
        format!(r#"{{"specversion":"1.0","id":"1","source":"s","type":"{planner}","data":{{"order":1}}}}"#)
    };
    for (path, body, expected) in [
        ("/events/erp", kind("erp"), 202),
        ("/events/erp", kind("mes"), 403),
        ("/events/mes", kind("mes"), 403),
        ("/events/mes", kind("erp"), 403),
    ] {
        let headers = [("authorization", bearer.as_str()), ("content-type", "application/cloudevents+json")];
        let answer = http::Client::dial(plant.programs).post(path, &headers, body.as_bytes());
        assert_eq!(answer.status, expected, "{path} {body}: {}", answer.body);
    }
    let status = plant.gateway.status();
    assert_eq!(crate::common::gateway::accepted(&status), 1, "{status:#}");
    // Who proves nothing is nobody who could have proven something.
    let config = std::fs::read_to_string(plant.gateway.config()).expect("read");
    let open = config.replace("tokens = \"tokens\"\n", "tokens = \"tokens\"\nanonymous = true\n");
    std::fs::write(plant.gateway.config(), open).expect("written");
    said(&plant.gateway, &["reload", "CONFIG"]);
    let headers = [("content-type", "application/cloudevents+json")];
    for (path, expected) in [("/events/erp", 403), ("/events/somebody", 202)] {
        let answer = http::Client::dial(plant.programs).post(path, &headers, kind("somebody").as_bytes());
        assert_eq!(answer.status, expected, "{path}: {}", answer.body);
    }
}

/// Nobody could say who may do what without reading rules, contracts and the source.
#[test]
fn check_says_what_each_name_may_do_and_why() {
    let plant = Plant::start("who-rights");
    let text = said(&plant.gateway, &["check", "--rights", "CONFIG"]);
    for words in [
        "source named",
        "  press-4: user in",
        "plant/+/press-4/state",
        "contract machine.state: {machine} alone is its key",
        "plant/+/press-4/quality",
        "contract quality.result: publisher = \"{station}\"",
        "test/plant/+/+/press-4",
        "DNS name in a certificate",
        "plant/+/{user}/state",
        "source open",
        "anonymous clients",
        "forms/+/x",
        "acl[2], for everybody",
        "  erp: token in",
        "POST /events/erp",
    ] {
        assert!(text.contains(words), "\"{words}\" is missing in:\n{text}");
    }
    assert!(!text.contains("plant/+/press-4/shift"), "rules alone say who publishes that: {text}");
    let wide = |line: &&str| line.chars().count() > 80 && !line.contains('/');
    assert_eq!(text.lines().find(wide), None, "it is readable in 80 columns");
    let all: serde_json::Value =
        serde_json::from_str(&said(&plant.gateway, &["check", "--rights", "--json", "CONFIG"])).expect("JSON");
    let lowuser = all.as_array().expect("a list").iter().find(|one| one["name"] == "lowuser").expect("it is there");
    assert!(lowuser["publish"].to_string().contains("plant/+/lowuser/state"), "{lowuser}");
    // A contract that no proven name may publish by default is named.
    let text = said(&plant.gateway, &["check", "CONFIG"]);
    assert!(text.contains("nobody may publish \"plant/+/+/shift\"") && text.contains("line.shift"), "{text}");
}

/// Two clients with one client id were one session: whoever called itself like another got its messages.
#[test]
fn a_session_is_found_by_the_name_that_began_it_alone() {
    let plant = Plant::start("who-sessions");
    let lasting =
        Hello { client: "board", is_clean: false, properties: vec![0x11, 0, 0, 0x0E, 0x10], ..Hello::default() };
    let mut ways: Vec<_> = plant.ways().into_iter().map(|(to, way, _)| (to, way)).collect();
    // Whoever proves nothing has one name more: none.
    ways.push((plant.open, Way::Nothing));
    let mut begun: Vec<usize> = Vec::new();
    for round in 0..2 {
        for (index, (to, way)) in ways.iter().enumerate() {
            let (peer, code) = Peer::connect(*to, way, &lasting);
            assert_eq!(code, Some(OK), "way {index}");
            assert_eq!(peer.found_session, begun.contains(&index), "way {index}, round {round}");
            begun.push(index);
        }
    }
    // Claims find what the claimed name has begun nowhere, and what they have begun is found by no proof.
    for claim in ["press-4", "lowuser", "gw-01"] {
        let hello = Hello { client: claim, ..lasting.clone() };
        let (peer, code) = Peer::connect(plant.open, &Way::Claim(claim), &hello);
        assert_eq!((code, peer.found_session), (Some(OK), false), "{claim}");
        drop(peer);
        for (to, way, name) in plant.ways() {
            let (peer, code) = Peer::connect(to, &way, &hello);
            assert_eq!((code, peer.found_session), (Some(OK), false), "{claim} as {name}");
        }
    }
}

/// Who reads that press-4 was refused has to know whether it was press-4.
#[test]
fn what_is_refused_is_told_with_the_proven_name_and_a_claim_is_told_as_a_claim() {
    let centre = Centre::start();
    let plant = Plant::start_with("who-refused", &centre.destination("central"));
    let ways = [
        (plant.named, Way::Password("press-4", "long enough"), "press-4", "user"),
        (plant.secure, plant.certificate.clone(), "gw-01", "service_account"),
        (plant.open, Way::Claim("press-4"), "press-4", ""),
        (plant.open, Way::Nothing, "", ""),
    ];
    let text = |data: &Value, name: &str| data[name].as_str().unwrap_or_default().to_owned();
    let told = |cause: &str, client: &str| {
        let start = Instant::now();
        loop {
            let events = centre.own("security").into_iter().map(|event| event["data"].clone());
            if let Some(data) = events.into_iter().find(|data| data["cause"] == cause && data["client"] == client) {
                return data;
            }
            assert!(start.elapsed() < PATIENCE, "no event of {cause} by {client}: {:#?}", centre.own("security"));
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    for (index, (to, way, user, authtype)) in ways.into_iter().enumerate() {
        // Those that prove nothing are one row of their address and cause: one of them for each cause.
        let causes: &[&str] = match index {
            2 => &["publish"],
            3 => &["will"],
            _ => &["publish", "will"],
        };
        let client = format!("client-{index}");
        let hello = Hello { client: &client, ..Hello::default() };
        for cause in causes {
            if *cause == "publish" {
                let (mut peer, code) = Peer::connect(to, &way, &hello);
                assert_eq!(code, Some(OK));
                assert_eq!(peer.publish("elsewhere/x", b"{}"), DENIED);
            } else {
                let will = Will { topic: "elsewhere/x", payload: b"{}", ..Will::default() };
                let (_, code) = Peer::connect(to, &way, &Hello { will: Some(will), ..hello.clone() });
                assert_eq!(code, Some(DENIED));
            }
            let data = told(cause, &client);
            assert_eq!((text(&data, "user").as_str(), text(&data, "authtype").as_str()), (user, authtype), "{data}");
        }
    }
    // A user name beside a certificate is ignored where the listener has no users: it is not in the audit either.
    let will = Will { topic: "elsewhere/x", payload: b"{}", ..Will::default() };
    let hello = Hello { client: "liar", login: Some(("press-4", "")), will: Some(will), ..Hello::default() };
    let (_, code) = Peer::connect(plant.secure, &plant.certificate, &hello);
    assert_eq!(code, Some(DENIED));
    assert_eq!(text(&told("will", "liar"), "user"), "gw-01");
    // A program with a token.
    let bearer = format!("Bearer {}", plant.token);
    let headers = [("authorization", bearer.as_str())];
    assert_eq!(http::Client::dial(plant.programs).post("/events/mes", &headers, b"{}").status, 403);
    let data = told("publish", "mes");
    assert_eq!((text(&data, "user"), text(&data, "authtype")), ("erp".into(), "api_key".into()));
}
