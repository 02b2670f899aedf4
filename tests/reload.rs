//! Another configuration, other certificates and other contracts come into force while the gateway runs.

use super::common::broker::{Collector, Mosquitto, check_arrivals};
use super::common::centre::Centre;
use super::common::client::{Client, Heard, Hello, answer, publish, subscribe};
use super::common::devices::Devices;
use super::common::gateway::{CONTRACT, Gateway, accepted, payload};
use super::common::pki::Pki;
use super::common::{await_port, free_address};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);
const STATE: &str = "plant/line1/press/state";

type Tls = rustls::StreamOwned<rustls::ClientConnection, TcpStream>;

/// A connection over TLS, with its handshake done.
fn dial(to: SocketAddr, config: &Arc<rustls::ClientConfig>) -> Option<Tls> {
    let name = "localhost".try_into().expect("a name");
    let session = rustls::ClientConnection::new(Arc::clone(config), name).expect("a session");
    let stream = TcpStream::connect(to).expect("connects");
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    let mut stream = rustls::StreamOwned::new(session, stream);
    stream.flush().ok()?;
    Some(stream)
}

/// The serial number of the certificate that a listener shows to whoever connects now.
fn serial_shown(to: SocketAddr, pki: &Pki) -> Option<Vec<u8>> {
    let stream = dial(to, &pki.client())?;
    let certificate = stream.conn.peer_certificates()?.first()?.clone();
    use x509_parser::prelude::FromDer;
    let (_, parsed) = x509_parser::prelude::X509Certificate::from_der(&certificate).ok()?;
    Some(parsed.raw_serial().to_vec())
}

/// A device over TLS that publishes until it is told to stop: what was acknowledged, and whether its one connection lasted.
fn device(
    to: SocketAddr,
    config: Arc<rustls::ClientConfig>,
    number: usize,
    over: Arc<AtomicBool>,
) -> std::thread::JoinHandle<(Vec<(usize, usize)>, bool)> {
    std::thread::spawn(move || {
        let client = format!("device-{number:02}");
        let mut stream = dial(to, &config).expect("lets in");
        stream.write_all(&Hello { is_v5: false, client: &client, ..Hello::default() }.bytes()).expect("written");
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).expect("CONNACK");
        assert_eq!(answer, [0x20, 2, 0, 0]);
        let topic = format!("plant/line1/m{number:02}/state");
        let mut acknowledged = Vec::new();
        for sequence in 0.. {
            if over.load(Ordering::Relaxed) {
                return (acknowledged, true);
            }
            let id = (sequence % 65_000 + 1) as u16;
            let sent = stream.write_all(&publish(false, 1, id, &topic, &[], payload(number, sequence).as_bytes()));
            if sent.and_then(|()| stream.read_exact(&mut answer)).is_err() {
                break;
            }
            assert_eq!(answer[..2], [0x40, 2]);
            acknowledged.push((number, sequence));
        }
        (acknowledged, false)
    })
}

fn hang_up(gateway: &Gateway) {
    std::process::Command::new("kill").args(["-HUP", &gateway.pid().to_string()]).status().expect("signalled");
}

/// Events of a stream at a centre.
fn of(centre: &Centre, stream: &str) -> Vec<serde_json::Value> {
    let part = format!("/{stream}/");
    let arrived = centre.arrived();
    arrived.iter().filter(|arrival| arrival.topic.contains(&part)).flat_map(|arrival| arrival.events.clone()).collect()
}

fn await_that(what: &str, wanted: impl Fn() -> bool) {
    let start = Instant::now();
    while !wanted() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Changes the text of the configuration.
fn edit(gateway: &Gateway, change: impl Fn(String) -> String) {
    let text = std::fs::read_to_string(gateway.config()).expect("read");
    std::fs::write(gateway.config(), change(text)).expect("written");
}

fn reload(gateway: &Gateway) -> (bool, String) {
    let output = gateway.command(&["reload", "CONFIG"]);
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn certificates_are_rotated_ten_times_on_both_sides_under_load_and_nothing_is_lost_or_dropped() {
    let folder = super::common::gateway::scratch_folder("rotation");
    let (inside, outside) = (folder.path().join("in"), folder.path().join("out"));
    std::fs::create_dir_all(&inside).expect("folder");
    std::fs::create_dir_all(&outside).expect("folder");
    let (devices_pki, central_pki) = (Pki::write(&inside), Pki::write(&outside));
    let central = Mosquitto::start(&outside, &central_pki);
    let collector = Collector::start(central.plain, "#");
    let listen = free_address();
    let rest = format!(
        "{}\n[[source.mqtt]]\nname = \"secure\"\nlisten = \"{listen}\"\ntls = {{ cert = \"{}\", key = \"{}\", client_ca = \"{}\" }}\nacl = [{{ publish = [\"plant/#\"] }}]\n",
        central.destination(&central_pki, central.tls.port()),
        devices_pki.server_cert.display(),
        devices_pki.server_key.display(),
        devices_pki.ca.display(),
    );
    let gateway = Gateway::start("rotation", &rest);
    await_port(listen);
    // A link that comes up behind the first rotation has the new certificate at once.
    gateway.await_status("every link is up", PATIENCE, |status| {
        status["links"]
            .as_array()
            .is_some_and(|links| links.len() == 3 && links.iter().all(|link| link["is_up"] == true))
    });
    let over = Arc::new(AtomicBool::new(false));
    let devices: Vec<_> =
        (0..4).map(|number| device(listen, devices_pki.client(), number, Arc::clone(&over))).collect();
    let renewed = |lane: &str| {
        let line = format!("lane={lane} ");
        gateway
            .log()
            .lines()
            .filter(|one| one.contains("new certificates and passwords") && one.contains(&line))
            .count()
    };
    for round in 1..=10u64 {
        let serial = 1000 + round;
        devices_pki.renew_server(serial);
        central_pki.renew_client(serial);
        central_pki.renew_server(serial);
        central.reload();
        // Three times nobody says a word: the files are watched.
        if round % 4 != 0 {
            hang_up(&gateway);
        }
        let wanted = serial.to_be_bytes()[6..].to_vec();
        await_that("the listener shows the new certificate", || {
            serial_shown(listen, &devices_pki).as_ref() == Some(&wanted)
        });
        for lane in ["critical", "standard", "bulk"] {
            await_that("the link has a session with the new certificate", || renewed(lane) as u64 >= round);
        }
    }
    over.store(true, Ordering::Relaxed);
    let mut acknowledged = Vec::new();
    for device in devices {
        let (theirs, has_lasted) = device.join().expect("a device lives");
        assert!(has_lasted, "no connection of a device is dropped");
        assert!(theirs.len() > 100, "under load: {}", theirs.len());
        acknowledged.extend(theirs);
    }
    let of_stream = |arrived: Vec<super::common::broker::Arrived>| -> Vec<_> {
        arrived.into_iter().filter(|one| one.topic.contains("/machine.state/")).collect()
    };
    await_that("everything arrives", || of_stream(collector.arrived()).len() >= acknowledged.len());
    check_arrivals(&of_stream(collector.arrived()), &acknowledged);
    let status = gateway.status();
    let is_quiet = |list: &serde_json::Value| list.as_array().is_some_and(|all| all.is_empty());
    assert!(is_quiet(&status["problems"]) && is_quiet(&status["notes"]), "{status:#}");
    let log = gateway.log();
    assert!(!log.contains("link down") && !log.contains("ERROR"), "no session was lost: {log}");
}

#[test]
fn a_broken_configuration_is_refused_and_the_one_before_runs_on() {
    let gateway = Gateway::start("broken", "");
    let (mut client, _) = Client::connect(gateway.address, &Hello::default());
    client.publish(true, 1, STATE, payload(1, 1).as_bytes());
    let good = std::fs::read_to_string(gateway.config()).expect("read");
    edit(&gateway, |text| text.replace("listen = \"127.0.0.1", "window = 3\nlisten = \"127.0.0.1"));
    let (is_good, said) = reload(&gateway);
    assert!(!is_good && said.contains("forebay.toml:") && said.contains("window"), "{said}");
    let status = gateway.status();
    let problem = status["problems"][0].as_str().expect("a problem");
    assert!(
        problem.contains("is refused") && problem.contains("stays in force") && problem.contains("window"),
        "{problem}"
    );
    client.publish(true, 2, STATE, payload(1, 2).as_bytes());
    // What cannot change while it runs.
    std::fs::write(gateway.config(), good.replace("site = \"plant\"", "site = \"other\"")).expect("written");
    let (is_good, said) = reload(&gateway);
    assert!(!is_good && said.contains("site: cannot change from \"plant\" to \"other\""), "{said}");
    // Not even TOML: the socket is found all the same.
    std::fs::write(gateway.config(), good.replace("[[source.mqtt]]", "[[source.mqtt")).expect("written");
    hang_up(&gateway);
    await_that("it is refused", || gateway.log().contains("the new configuration is refused"));
    assert!(!gateway.command(&["reload", "CONFIG"]).status.success());
    std::fs::write(gateway.config(), good).expect("written");
    let status = gateway.await_status("the good one is taken by itself", PATIENCE, |status| {
        status["problems"].as_array().is_some_and(Vec::is_empty)
    });
    assert_eq!(accepted(&status), 2);
    client.publish(true, 3, STATE, payload(1, 3).as_bytes());
}

#[test]
fn broken_contracts_and_certificates_are_refused_as_well() {
    let folder = super::common::gateway::scratch_folder("halves");
    let pki = Pki::write(folder.path());
    let listen = free_address();
    let rest = format!(
        "\n[[source.mqtt]]\nname = \"secure\"\nlisten = \"{listen}\"\ntls = {{ cert = \"{}\", key = \"{}\", client_ca = \"{}\" }}\n",
        pki.server_cert.display(),
        pki.server_key.display(),
        pki.ca.display(),
    );
    let gateway = Gateway::start("halves", &rest);
    await_port(listen);
    let key = std::fs::read(&pki.server_key).expect("read");
    // The key of another certificate: as between the two renames of a careless rotation.
    std::fs::copy(&pki.client_key, &pki.server_key).expect("copied");
    let (is_good, said) = reload(&gateway);
    assert!(!is_good && said.contains("server.key"), "{said}");
    assert!(serial_shown(listen, &pki).is_some(), "the old pair serves on");
    std::fs::write(&pki.server_key, key).expect("written");
    let contract = gateway.folder.join("contracts/state.toml");
    // A narrower schema under the same major version breaks consumers.
    std::fs::write(
        gateway.folder.join("contracts/state.json"),
        r#"{"type":"object","required":["msg_id","seq"],"properties":{"msg_id":{"type":"string"}}}"#,
    )
    .expect("written");
    std::fs::write(&contract, CONTRACT.replace("1.0.0", "1.1.0")).expect("written");
    let (is_good, said) = reload(&gateway);
    assert!(!is_good && said.contains("state"), "{said}");
    let (mut client, _) = Client::connect(gateway.address, &Hello::default());
    client.publish(true, 1, STATE, payload(1, 1).as_bytes());
    assert_eq!(accepted(&gateway.status()), 1, "the contract before is in force");
}

#[test]
fn sources_destinations_contracts_and_lanes_change_while_devices_publish() {
    let (first, second) = (Centre::start(), Centre::start());
    let gateway = Gateway::start("changes", &first.destination("first"));
    let devices = Devices::start(gateway.address, 4, 4, Duration::from_millis(2));
    let other = free_address();
    await_that("devices publish", || devices.count() > 100);
    edit(&gateway, |text| {
        format!(
            "{text}{}\n[[source.mqtt]]\nname = \"annex\"\nlisten = \"{other}\"\n[lane.bulk]\nbudget = \"64MB\"\n",
            second.destination("second")
        )
    });
    let counts = "name = \"machine.count\"\nversion = \"1.0.0\"\nowner = \"tests\"\nlane = \"standard\"\nmatch = { source = \"mqtt\", topic = \"plant/{line}/{machine}/count\" }\nkey = \"{machine}\"\n";
    std::fs::write(gateway.folder.join("contracts/count.toml"), counts).expect("written");
    let (is_good, said) = reload(&gateway);
    assert!(is_good, "{said}");
    for wanted in [
        "source.mqtt[annex].listen",
        "destination[second].name",
        "lane.bulk.budget: \"64MB\"",
        "contract machine.count.v1: 1.0.0",
    ] {
        assert!(said.contains(wanted), "{wanted}: {said}");
    }
    let (mut client, _) = Client::connect(other, &Hello::default());
    client.publish(true, 1, "plant/line1/press/count", br#"{"count":1}"#);
    second.await_that("the new destination has the new stream", PATIENCE, |centre| {
        !of(centre, "machine.count").is_empty()
    });
    // It goes again, and so do source and contract; devices do not notice.
    edit(&gateway, |text| {
        text.replace(&format!("\n[[source.mqtt]]\nname = \"annex\"\nlisten = \"{other}\"\n"), "\n")
            .replace(&second.destination("second"), "")
    });
    std::fs::remove_file(gateway.folder.join("contracts/count.toml")).expect("removed");
    let (is_good, said) = reload(&gateway);
    assert!(
        is_good
            && said.contains("destination[second].name: removed")
            && said.contains("contract machine.count.v1: removed"),
        "{said}"
    );
    assert!(matches!(client.hear(PATIENCE), Heard::Packet(packet) if packet[0] == 0xE0), "its source is gone");
    assert!(TcpStream::connect(other).is_err(), "the port is closed");
    let status = gateway.status();
    let note = status["notes"].to_string();
    assert!(note.contains("destination second is not in the configuration"), "{note}");
    let acknowledged = devices.stop();
    first.await_that("everything arrives", PATIENCE, |centre| of(centre, "machine.state").len() >= acknowledged.len());
    let mut arrived: Vec<String> = of(&first, "machine.state")
        .iter()
        .map(|event| event["data"]["msg_id"].as_str().expect("id").to_owned())
        .collect();
    arrived.sort();
    arrived.dedup();
    let mut wanted: Vec<String> =
        acknowledged.iter().map(|(device, sequence)| format!("{device:02}-{sequence:08}")).collect();
    wanted.sort();
    assert_eq!(arrived, wanted);
}

#[test]
fn a_listener_moves_to_another_port_and_its_connections_last() {
    let gateway = Gateway::start("moves", "");
    let (mut client, _) = Client::connect(gateway.address, &Hello::default());
    let other = free_address();
    edit(&gateway, |text| text.replace(&gateway.address.to_string(), &other.to_string()));
    let (is_good, said) = reload(&gateway);
    assert!(is_good && said.contains("source.mqtt[devices].listen"), "{said}");
    client.publish(true, 1, STATE, payload(1, 1).as_bytes());
    let (mut newcomer, _) = Client::connect(other, &Hello { client: "newcomer", ..Hello::default() });
    newcomer.publish(true, 1, STATE, payload(2, 1).as_bytes());
    assert!(TcpStream::connect(gateway.address).is_err(), "the old port is closed");
    // A port that is taken is refused, and nothing changes.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = taken.local_addr().expect("address");
    edit(&gateway, |text| text.replace(&other.to_string(), &address.to_string()));
    let (is_good, said) = reload(&gateway);
    assert!(!is_good && said.contains("another program has the port"), "{said}");
    newcomer.publish(true, 2, STATE, payload(2, 2).as_bytes());
    assert_eq!(accepted(&gateway.status()), 3);
}

/// One reload gives each of two listeners the port of the other, and a third port to a source with another name.
#[test]
fn listeners_exchange_their_ports_in_one_reload() {
    let (second, http) = (free_address(), free_address());
    let centre = Centre::start();
    let rest = format!(
        "\n[[source.mqtt]]\nname = \"second\"\nlisten = \"{second}\"\n\n[[source.http]]\nname = \"programs\"\nlisten = \"{http}\"\n{}",
        centre.destination("central")
    );
    let gateway = Gateway::start("exchange", &rest);
    await_port(second);
    let (mut before, _) = Client::connect(gateway.address, &Hello { client: "before", ..Hello::default() });
    let addresses = || -> Vec<(String, String)> {
        let status = gateway.status();
        let of = |source: &serde_json::Value, key: &str| source[key].as_str().unwrap_or_default().to_owned();
        let sources = status["sources"].as_array().expect("sources");
        sources.iter().map(|source| (of(source, "name"), of(source, "address"))).collect()
    };
    for round in 0..4 {
        edit(&gateway, |text| {
            let text = text.replace(&gateway.address.to_string(), "FIRST").replace(&second.to_string(), "SECOND");
            text.replace("FIRST", &second.to_string()).replace("SECOND", &gateway.address.to_string())
        });
        let (is_good, said) = reload(&gateway);
        assert!(is_good, "round {round}: {said}");
        let (first, other) = if round % 2 == 0 { (second, gateway.address) } else { (gateway.address, second) };
        let now = addresses();
        assert!(now.contains(&("devices".into(), first.to_string())), "{now:?}");
        assert!(now.contains(&("second".into(), other.to_string())), "{now:?}");
        for (address, client) in [(first, "one"), (other, "two")] {
            let (mut client, _) = Client::connect(address, &Hello { client, ..Hello::default() });
            client.publish(true, 1, STATE, payload(round, usize::from(address == first)).as_bytes());
        }
    }
    // A connection outlives the exchanges.
    before.publish(true, 1, STATE, payload(9, 9).as_bytes());
    // A listener of MQTT and one of HTTP, and a source under another name.
    edit(&gateway, |text| {
        let text = text.replace(&http.to_string(), "HTTP").replace(&second.to_string(), &http.to_string());
        text.replace("HTTP", &second.to_string()).replace("name = \"devices\"", "name = \"machines\"")
    });
    let (is_good, said) = reload(&gateway);
    assert!(is_good, "{said}");
    let now = addresses();
    for (name, address) in [("machines", gateway.address), ("second", http), ("programs", second)] {
        assert!(now.contains(&(name.to_owned(), address.to_string())), "{now:?}");
    }
    let (mut client, _) = Client::connect(gateway.address, &Hello { client: "after", ..Hello::default() });
    client.publish(true, 1, STATE, payload(8, 8).as_bytes());
}

#[test]
fn who_is_not_let_in_any_more_goes_and_everybody_else_stays() {
    let folder = super::common::gateway::scratch_folder("judged");
    let pki = Pki::write(folder.path());
    let (users, listen) = (folder.path().join("users"), free_address());
    for (name, password) in [("press", "a"), ("robot", "b")] {
        forebay::sources::mqtt::put_user(&users, name, password.as_bytes()).expect("written");
    }
    let rest = format!(
        "\n[[source.mqtt]]\nname = \"named\"\nlisten = \"{listen}\"\npasswords = \"{}\"\nacl = [{{ publish = [\"plant/#\"], subscribe = [\"test/#\"] }}]\n",
        users.display()
    );
    let gateway = Gateway::start("judged", &rest);
    await_port(listen);
    let hello = |user: &'static str, password: &'static str| Hello {
        client: user,
        login: Some((user, password)),
        ..Hello::default()
    };
    let (mut press, _) = Client::connect(listen, &hello("press", "a"));
    let (mut robot, _) = Client::connect(listen, &hello("robot", "b"));
    robot.send(&subscribe(true, 9, &[], &[("test/#", 1)]));
    assert_eq!(robot.receive().map(|packet| packet[0]), Some(0x90));
    press.publish(true, 1, STATE, payload(1, 1).as_bytes());
    let Heard::Packet(_) = robot.hear(PATIENCE) else { panic!("it is told") };
    robot.send(&answer(0x40, 1));
    // The press is taken out of the file; the robot may do other things from now on.
    let text = std::fs::read_to_string(&users).expect("read");
    let kept: String = text.lines().filter(|line| !line.starts_with("press:")).flat_map(|line| [line, "\n"]).collect();
    std::fs::write(&users, kept).expect("written");
    edit(&gateway, |text| {
        text.replace("publish = [\"plant/#\"], subscribe = [\"test/#\"]", "publish = [\"plant/line1/press/state\"]")
    });
    let (is_good, said) = reload(&gateway);
    assert!(is_good && said.contains("acl[0].subscribe: removed"), "{said}");
    assert_eq!(press.disconnect_code(), 0x87, "not authorized any more");
    robot.publish(true, 2, STATE, payload(2, 1).as_bytes());
    robot.send(&publish(true, 1, 3, "plant/line9/x/state", &[], payload(2, 2).as_bytes()));
    assert_eq!(robot.receive().map(|packet| (packet[0], packet[3])), Some((0x40, 0x87)), "its rights are the new ones");
    assert!(matches!(robot.hear(Duration::from_millis(300)), Heard::Nothing), "its subscription has ended");
    // A certificate that is revoked ends a connection as well.
    let secure = free_address();
    let list = folder.path().join("list.pem");
    edit(&gateway, |text| {
        format!(
            "{text}\n[[source.mqtt]]\nname = \"secure\"\nlisten = \"{secure}\"\ntls = {{ cert = \"{}\", key = \"{}\", client_ca = \"{}\" }}\n",
            pki.server_cert.display(),
            pki.server_key.display(),
            pki.ca.display()
        )
    });
    assert!(reload(&gateway).0);
    let with = |cert: &std::path::Path, key: &std::path::Path| {
        let files = forebay::tls::ClientFiles {
            ca: Some(pki.ca.clone()),
            cert: Some(cert.into()),
            key: Some(key.into()),
            ..Default::default()
        };
        forebay::tls::client(&files).expect("client TLS")
    };
    let connect = |config: &Arc<rustls::ClientConfig>, client: &str| {
        let mut stream = dial(secure, config).expect("lets in");
        stream.write_all(&Hello { client, ..Hello::default() }.bytes()).expect("written");
        let mut connack = [0; 2];
        stream.read_exact(&mut connack).expect("CONNACK");
        let mut rest = vec![0; connack[1] as usize];
        stream.read_exact(&mut rest).expect("CONNACK");
        assert_eq!((connack[0], rest[1]), (0x20, 0));
        stream
    };
    let mut good = connect(&with(&pki.client_cert, &pki.client_key), "good");
    let mut bad = connect(&with(&pki.revoked.0, &pki.revoked.1), "bad");
    std::fs::copy(&pki.crl, &list).expect("copied");
    edit(&gateway, |text| text.replace("client_ca =", &format!("crl = \"{}\", client_ca =", list.display())));
    let (is_good, said) = reload(&gateway);
    assert!(is_good, "{said}");
    let mut disconnect = [0; 3];
    bad.read_exact(&mut disconnect).expect("DISCONNECT");
    assert_eq!((disconnect[0], disconnect[2]), (0xE0, 0x87));
    good.write_all(&[0xC0, 0]).expect("written");
    let mut pong = [0; 2];
    good.read_exact(&mut pong).expect("PINGRESP");
    assert_eq!(pong, [0xD0, 0]);
}

#[test]
fn a_new_certificate_that_central_refuses_leaves_the_session_as_it_is() {
    let folder = super::common::gateway::scratch_folder("refused");
    let (other, ours) = (folder.path().join("other"), folder.path().join("ours"));
    std::fs::create_dir_all(&other).expect("folder");
    std::fs::create_dir_all(&ours).expect("folder");
    let (stranger, pki) = (Pki::write(&other), Pki::write(&ours));
    let central = Mosquitto::start(&ours, &pki);
    let collector = Collector::start(central.plain, "#");
    let gateway = Gateway::start("refused", &central.destination(&pki, central.tls.port()));
    let is_up = |status: &serde_json::Value| {
        status["links"].as_array().is_some_and(|all| all.iter().all(|link| link["is_up"] == true))
    };
    // A lane that connects only after the exchange has no session to keep.
    gateway.await_status("every lane is connected", PATIENCE, is_up);
    let (mut client, _) = Client::connect(gateway.address, &Hello::default());
    client.publish(true, 1, STATE, payload(1, 1).as_bytes());
    let own = [std::fs::read(&pki.client_cert).expect("read"), std::fs::read(&pki.client_key).expect("read")];
    std::fs::copy(&stranger.client_cert, &pki.client_cert).expect("copied");
    std::fs::copy(&stranger.client_key, &pki.client_key).expect("copied");
    hang_up(&gateway);
    gateway.await_status("status says so", PATIENCE, |status| {
        status["notes"].to_string().contains("continuing on the old session")
    });
    client.publish(true, 2, STATE, payload(1, 2).as_bytes());
    let of_stream = || collector.arrived().iter().filter(|one| one.topic.contains("/machine.state/")).count();
    await_that("events travel on", || of_stream() >= 2);
    assert!(is_up(&gateway.status()));
    std::fs::write(&pki.client_cert, &own[0]).expect("written");
    std::fs::write(&pki.client_key, &own[1]).expect("written");
    hang_up(&gateway);
    gateway.await_status("all is well", PATIENCE, |status| {
        is_up(status) && !status["notes"].to_string().contains("old session")
    });
}
