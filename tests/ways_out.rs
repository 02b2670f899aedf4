//! Ways out of a plant: WebSocket over TLS, proxies with a login, IPv6, server names, client ids that central gives.

use crate::common::broker::{Collector, Mosquitto, check_arrivals, missing};
use crate::common::centre::Centre;
use crate::common::client::{Client, Hello, publish};
use crate::common::devices::Devices;
use crate::common::gateway::{CONTRACT, Gateway, payload, scratch_folder, sum};
use crate::common::pki::Pki;
use crate::common::plant::PlantBroker;
use crate::common::random::Random;
use crate::common::real_proxy::{Kind, PASSWORD, RealProxy};
use crate::common::{await_port, free_address};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(60);
/// Nothing listens there in these tests, and proxies let nobody connect to it.
const FORBIDDEN: u16 = 9;

/// The problem of the first link of a lane.
fn link_error(status: &serde_json::Value) -> String {
    status["links"][0]["reason"].as_str().unwrap_or_default().to_owned()
}

/// Events that devices publish while `kill` kills one thing after the other; all arrive at the broker.
fn deliver_through_kills(way: &str, gateway: &mut Gateway, collector: &Collector, kills: &mut [&mut dyn FnMut()]) {
    let mut random = Random::seeded();
    let devices = Devices::start(gateway.address, 10, 5, Duration::from_millis(1));
    for round in 0..2 * kills.len() {
        let before = collector.count();
        let start = Instant::now();
        while collector.count() < before + 20 {
            assert!(start.elapsed() < LONG, "{way}: nothing arrives in round {round}: {}", gateway.log());
            std::thread::sleep(Duration::from_millis(2));
        }
        std::thread::sleep(Duration::from_millis(random.below(100)));
        kills[round % kills.len()]();
        if round % 3 == 2 {
            gateway.kill();
            gateway.run();
        }
    }
    let acknowledged = devices.stop();
    let status = gateway.await_status("the backlog drains", LONG, |status| sum(status, "queued") == 0);
    assert_eq!(status["dead"]["total"], 0, "{way}: nothing is a dead letter");
    // Acknowledged events may be on the way to the collector; those that came twice say nothing of the others.
    let start = Instant::now();
    while !missing(&collector.arrived(), &acknowledged).is_empty() && start.elapsed() < LONG {
        std::thread::sleep(Duration::from_millis(50));
    }
    check_arrivals(&collector.arrived(), &acknowledged);
    assert!(!gateway.log().contains(PASSWORD), "the log has the password");
}

fn every_event_arrives(kind: Option<Kind>, is_websocket: bool) {
    let folder = scratch_folder("ways");
    let pki = Pki::write(folder.path());
    let mut broker = Mosquitto::start(folder.path(), &pki);
    let collector = Collector::start(broker.plain, "test/plant/machine.state/#");
    let url = match is_websocket {
        true => format!("wss://localhost:{}/mqtt", broker.websocket.port()),
        false => format!("mqtts://localhost:{}", broker.tls.port()),
    };
    let way = format!("{url} through {kind:?}");
    let mut proxy = kind.map(|kind| RealProxy::start(kind, folder.path(), FORBIDDEN));
    let line = proxy.as_ref().map(|proxy| proxy.line(folder.path())).unwrap_or_default();
    let mut gateway = Gateway::start("ways", &(Mosquitto::destination_at(&pki, &url) + &line));
    let mut kill_broker = || {
        broker.kill();
        broker.run();
    };
    let mut kill_proxy = || {
        if let Some(proxy) = &mut proxy {
            proxy.kill();
            proxy.run();
        }
    };
    deliver_through_kills(&way, &mut gateway, &collector, &mut [&mut kill_broker, &mut kill_proxy]);
}

#[test]
fn every_event_arrives_over_websockets_through_kills() {
    every_event_arrives(None, true);
}

#[test]
fn every_event_arrives_through_squid_and_kills_of_it() {
    every_event_arrives(Some(Kind::Squid), true);
    every_event_arrives(Some(Kind::Squid), false);
}

#[test]
fn every_event_arrives_through_tinyproxy_and_kills_of_it() {
    every_event_arrives(Some(Kind::Tinyproxy), true);
}

#[test]
fn every_event_arrives_through_a_socks_proxy_and_kills_of_it() {
    every_event_arrives(Some(Kind::Microsocks), true);
    every_event_arrives(Some(Kind::Microsocks), false);
}

/// What a link says of each way that cannot work.
#[test]
fn a_way_that_cannot_work_is_named_with_what_to_do() {
    let folder = scratch_folder("ways-wrong");
    let pki = Pki::write(folder.path());
    let broker = Mosquitto::start(folder.path(), &pki);
    let squid = RealProxy::start(Kind::Squid, folder.path(), broker.tls.port());
    let socks = RealProxy::start(Kind::Microsocks, folder.path(), FORBIDDEN);
    let wrong = folder.path().join("wrong.password");
    std::fs::write(&wrong, "wrong-sesame").expect("written");
    let wrong_login = |url: String| {
        format!("proxy = {{ url = \"{url}\", user = \"forebay\", password_file = \"{}\" }}\n", wrong.display())
    };
    let bare = |url: String| format!("proxy = {{ url = \"{url}\" }}\n");
    let websocket = format!("wss://localhost:{}/mqtt", broker.websocket.port());
    let tls = format!("mqtts://localhost:{}", broker.tls.port());
    let nobody = free_address();
    let unresolved = "mqtts://no-such-host.invalid".to_owned();
    for (url, line, said) in [
        (&websocket, wrong_login(squid.url()), "does not accept the login of \"forebay\""),
        (&websocket, bare(squid.url()), "set user and password_file of proxy"),
        (&tls, squid.line(folder.path()), "403 Forbidden: its rules forbid this host or port"),
        (&unresolved, squid.line(folder.path()), "cannot reach it"),
        (&websocket, wrong_login(socks.url()), "does not accept the login"),
        (&websocket, bare(socks.url()), "set user and password_file of proxy"),
        (&unresolved, socks.line(folder.path()), "does not resolve its name"),
        (&tls, bare(format!("http://{}", broker.plain)), "the proxy refuses"),
        // Squid waits for more of what it takes for HTTP.
        (&tls, bare(format!("socks5://{}", squid.address)), "it is no proxy of the kind that url names"),
        (&tls, bare(format!("http://{nobody}")), "does not answer"),
        (&tls.replace("mqtts", "wss"), String::new(), "WebSocket at localhost"),
    ] {
        let gateway = Gateway::start("ways-wrong", &(Mosquitto::destination_at(&pki, url) + &line));
        let status = gateway.await_status(&format!("{url} {line}"), LONG, |status| {
            let error = link_error(status);
            !error.is_empty() && error != "not connected yet"
        });
        let error = link_error(&status);
        assert!(error.contains(said), "{url} {line}: {error}");
        if line.contains("proxy") {
            assert!(error.contains("proxy"), "{error}");
        }
        assert!(!gateway.log().contains("sesame"), "{}", gateway.log());
    }
}

#[test]
fn a_source_subscribes_over_websockets_through_a_proxy() {
    let folder = scratch_folder("ways-source");
    let pki = Pki::write(folder.path());
    let websocket = free_address();
    let lines = format!(
        "listener {} 127.0.0.1\nprotocol websockets\ncertfile {}\nkeyfile {}\n",
        websocket.port(),
        pki.server_cert.display(),
        pki.server_key.display()
    );
    let mut broker = PlantBroker::start(folder.path(), &lines);
    await_port(websocket);
    let mut squid = RealProxy::start(Kind::Squid, folder.path(), FORBIDDEN);
    let centre = Centre::start();
    let source = format!(
        "\n[[source.broker]]\nname = \"plant\"\nurl = \"wss://localhost:{}/\"\ntopics = [\"plant/#\"]\nclient_id = \"given-by-it\"\n{}tls = {{ ca = \"{}\" }}\n{}",
        websocket.port(),
        squid.line(folder.path()),
        pki.ca.display(),
        centre.destination("central"),
    );
    let gateway = Gateway::prepare("ways-source", &source);
    let contract = CONTRACT.replace("source = \"mqtt\"", "source = \"broker\"");
    std::fs::write(gateway.folder.join("contracts/state.toml"), contract).expect("written");
    let mut gateway = gateway;
    gateway.run();
    let subscribed = |status: &serde_json::Value| {
        let sources = status["sources"].as_array().expect("sources");
        sources.iter().any(|source| source["kind"] == "broker" && source["problem"].is_null())
    };
    for round in 0..4 {
        gateway.await_status("it is subscribed", LONG, subscribed);
        let (mut client, _) =
            Client::connect(broker.plain, &Hello { is_v5: false, client: "publisher", ..Hello::default() });
        client.send(&publish(false, 1, 1, "plant/line1/m01/state", &[], payload(1, round).as_bytes()));
        centre.await_that("the event", LONG, |centre| centre.events().len() == round + 1);
        match round {
            0 => {
                squid.kill();
                squid.run();
            }
            1 => {
                broker.stop();
                broker.run();
            }
            _ => {
                gateway.kill();
                gateway.run();
            }
        }
    }
}

#[test]
fn ipv6_works_for_brokers_and_in_brackets_only() {
    let folder = scratch_folder("ways-ipv6");
    let port = free_address().port();
    let mut broker = Command::new("mosquitto")
        .args(["-c", "/dev/stdin"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("mosquitto");
    let config = format!("listener {port} ::1\nallow_anonymous true\nlog_type none\n");
    broker.stdin.take().expect("stdin").write_all(config.as_bytes()).expect("written");
    let destination = format!("\n[[destination]]\nname = \"central\"\nurl = \"mqtt://[::1]:{port}\"\n");
    let gateway = Gateway::start("ways-ipv6", &destination);
    gateway.await_status("the link is up", LONG, |status| status["links"][0]["is_up"] == true);
    crate::common::kill(&mut broker);
    let status = gateway.await_status("the link is down", LONG, |status| !link_error(status).is_empty());
    assert_eq!(status["links"][0]["is_up"], false);
    gateway
        .await_status("its address is readable", LONG, |status| link_error(status).contains(&format!("[::1]:{port}")));
    drop(folder);
}

/// The first bytes that a client of TLS sends.
fn client_hello(config: &str) -> (Option<String>, Vec<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("port");
    let address = listener.local_addr().expect("address");
    let config = config.replace("PORT", &address.port().to_string());
    let _gateway = Gateway::start("ways-hello", &config);
    let (mut stream, _) = listener.accept().expect("a connection");
    let mut acceptor = rustls::server::Acceptor::default();
    loop {
        let mut bytes = [0; 4096];
        let read = stream.read(&mut bytes).expect("read");
        assert!(read > 0, "the client went away");
        acceptor.read_tls(&mut &bytes[..read]).expect("TLS");
        if let Some(accepted) = acceptor.accept().expect("a client hello") {
            let hello = accepted.client_hello();
            let alpn = hello.alpn().map(|names| names.map(<[u8]>::to_vec).collect()).unwrap_or_default();
            return (hello.server_name().map(str::to_owned), alpn);
        }
    }
}

#[test]
fn the_server_name_and_the_protocol_that_a_front_end_chooses_by_are_sent() {
    let folder = scratch_folder("ways-hello");
    let pki = Pki::write(folder.path());
    let hello = |url: &str, more: &str| {
        let ca = pki.ca.display();
        client_hello(&format!(
            "\n[[destination]]\nname = \"central\"\nurl = \"{url}\"\ntls = {{ ca = \"{ca}\"{more} }}\n"
        ))
    };
    assert_eq!(hello("mqtts://localhost:PORT", ""), (Some("localhost".into()), vec![]));
    assert_eq!(hello("wss://localhost:PORT/mqtt", ""), (Some("localhost".into()), vec![]));
    assert_eq!(hello("mqtts://127.0.0.1:PORT", ""), (None, vec![]), "an address is no server name");
    assert_eq!(
        hello("mqtts://127.0.0.1:PORT", ", server_name = \"central.example.com\", alpn = [\"x-amzn-mqtt-ca\"]"),
        (Some("central.example.com".into()), vec![b"x-amzn-mqtt-ca".to_vec()])
    );
}

#[test]
fn connections_have_the_ids_that_central_gives() {
    let own = "forebay-test-plant-gw-central";
    let own: Vec<String> = ["bulk", "critical", "standard", "status"].map(|one| format!("{own}-{one}")).into();
    let prefixed: Vec<String> = ["bulk", "critical", "standard", "status"].map(|one| format!("acme-{one}")).into();
    let given = vec!["t1".to_owned(), "t2".to_owned(), "t3".to_owned(), "t5".to_owned()];
    let table =
        "client_id = { bulk = \"t1\", critical = \"t2\", standard = \"t3\", again = \"t4\", status = \"t5\" }\n";
    for (lines, wanted) in [
        ("", own),
        ("client_id_prefix = \"acme\"\n", prefixed.clone()),
        ("client_id = \"acme-{connection}\"\n", prefixed),
        (table, given),
    ] {
        let centre = Centre::start();
        let _gateway = Gateway::start("ways-ids", &(centre.destination("central") + lines));
        let sorted = |centre: &Centre| {
            let mut clients = centre.clients();
            clients.sort();
            clients
        };
        centre.await_that(lines, LONG, |centre| centre.clients().len() == 4);
        assert_eq!(sorted(&centre), wanted, "{lines}");
    }
}

/// Two destinations that lead to one broker by two addresses disconnect each other no more.
#[test]
fn two_destinations_at_one_broker_live_side_by_side() {
    let folder = scratch_folder("ways-twice");
    let second = free_address();
    let pki = Pki::write(folder.path());
    let (tls, websocket) = (free_address(), free_address());
    let lines = format!(
        "listener {} 127.0.0.1\n{}listener {} 127.0.0.1\nprotocol websockets\ncertfile {}\nkeyfile {}\n",
        second.port(),
        PlantBroker::tls_lines(&pki, tls.port()).replace("require_certificate true\n", ""),
        websocket.port(),
        pki.server_cert.display(),
        pki.server_key.display(),
    );
    let broker = PlantBroker::start(folder.path(), &lines);
    let destinations = format!(
        "\n[[destination]]\nname = \"one\"\nurl = \"mqtt://{}\"\n\n[[destination]]\nname = \"two\"\nurl = \"mqtt://localhost:{}\"\n",
        broker.plain,
        second.port()
    );
    let collector = Collector::start(broker.plain, "test/plant/machine.state/#");
    let gateway = Gateway::start("ways-twice", &destinations);
    gateway.await_status("all links are up", LONG, |status| {
        status["links"]
            .as_array()
            .is_some_and(|links| links.len() == 6 && links.iter().all(|link| link["is_up"] == true))
    });
    let devices = Devices::start(gateway.address, 2, 1, Duration::from_millis(1));
    collector.await_count(200, LONG);
    let acknowledged = devices.stop();
    gateway.await_status("the backlog drains", LONG, |status| sum(status, "queued") == 0);
    collector.await_count(2 * acknowledged.len(), LONG);
    let downs = gateway.log().matches("link down").count();
    assert!(downs == 0, "{downs} times down: {}", gateway.log());
    assert!(!gateway.log().contains("taken over"), "{}", gateway.log());
    // The status recognises one broker behind two names by its address or its certificate.
    let named = |urls: [String; 2]| {
        let ca = pki.ca.display();
        let tls = |url: &str| if url.contains("s://") { format!("tls = {{ ca = \"{ca}\" }}\n") } else { String::new() };
        let of = |name: &str, url: &str| format!("\n[[destination]]\nname = \"{name}\"\nurl = \"{url}\"\n{}", tls(url));
        let gateway = Gateway::start("ways-same", &(of("one", &urls[0]) + &of("two", &urls[1])));
        gateway.await_status("it is recognised", LONG, |status| {
            status["notes"].to_string().contains("destinations one and two are one broker")
        });
    };
    named([format!("mqtt://{}", broker.plain), format!("mqtt://localhost:{}", broker.plain.port())]);
    named([format!("mqtts://localhost:{}", tls.port()), format!("wss://127.0.0.1:{}/mqtt", websocket.port())]);
}

/// What `forebay check` says of lines of a destination.
fn check(lines: &str, folder: &Path) -> String {
    let config = format!(
        "environment = \"test\"\nsite = \"plant\"\nname = \"gw\"\ndata_dir = \"data\"\ncontracts = \"contracts\"\n{lines}"
    );
    std::fs::create_dir_all(folder.join("contracts")).expect("folder");
    std::fs::write(folder.join("forebay.toml"), config).expect("written");
    let said = Command::new(env!("CARGO_BIN_EXE_forebay"))
        .args(["check", "--config", "forebay.toml"])
        .current_dir(folder)
        .output()
        .expect("forebay check");
    String::from_utf8_lossy(&said.stdout).into_owned() + &String::from_utf8_lossy(&said.stderr)
}

#[test]
fn a_way_that_cannot_be_is_refused_with_file_and_line() {
    let folder = scratch_folder("ways-check");
    std::fs::write(folder.path().join("long"), "x".repeat(300)).expect("written");
    std::fs::write(folder.path().join("ok"), "sesame").expect("written");
    for (lines, line, said) in [
        ("url = \"wss://host:0/mqtt\"", 9, "\"0\" is no port; 1 to 65535 are"),
        ("url = \"mqtts://::1\"", 9, "in brackets"),
        ("url = \"mqtts://host/mqtt\"", 9, "a WebSocket (wss://) has one"),
        ("url = \"https://host/mqtt\"", 9, "\"https\" is no scheme of a broker"),
        ("url = \"mqtt://a\"\nproxy = { url = \"https://p\" }", 10, "TLS to the proxy itself is not supported"),
        ("url = \"mqtt://a\"\nproxy = { url = \"http://me:sesame@p\" }", 10, "contains a login"),
        ("url = \"mqtt://a\"\nproxy = { url = \"p:3128\" }", 10, "expected \"http://host:3128\""),
        ("url = \"mqtt://a\"\nproxy = \"http://p:3128\"", 10, "proxy"),
        ("url = \"mqtt://a\"\nproxy = { url = \"http://p\", user = \"a\" }", 10, "go together"),
        (
            "url = \"mqtt://a\"\nproxy = { url = \"http://p\", user = \"a:b\", password_file = \"ok\" }",
            10,
            "contains \":\"",
        ),
        (
            "url = \"mqtt://a\"\nproxy = { url = \"http://p\", user = \"a\", password_file = \"none\" }",
            10,
            "cannot be read",
        ),
        (
            "url = \"mqtt://a\"\nproxy = { url = \"socks5://p\", user = \"a\", password_file = \"long\" }",
            10,
            "1 to 255",
        ),
        ("url = \"mqtt://a\"\nclient_id = \"x\"", 10, "would be the id of 5 connections"),
        ("url = \"mqtt://a\"\nclient_id = 7", 10, "expected a text with {connection} in it"),
        ("url = \"mqtts://a\"\ntls = { alpn = [\"\"] }", 10, "alpn"),
    ] {
        let said_all = check(&format!("\n[[destination]]\nname = \"central\"\n{lines}\n"), folder.path());
        assert!(said_all.contains(said), "{lines}: {said_all}");
        assert!(said_all.contains(&format!("forebay.toml:{line}")), "{lines}: {said_all}");
        assert!(!said_all.contains("sesame"), "{said_all}");
    }
    let two = |a: &str, b: &str| {
        check(
            &format!("\n[[destination]]\nname = \"one\"\n{a}\n\n[[destination]]\nname = \"two\"\n{b}\n"),
            folder.path(),
        )
    };
    let said = two("url = \"mqtts://Central.example.com\"", "url = \"mqtts://central.example.com.:8883\"");
    assert!(said.contains("is a broker of destination \"one\" too") && said.contains("twice"), "{said}");
    let prefix = "client_id_prefix = \"acme\"";
    let said = two(&format!("url = \"mqtt://a\"\n{prefix}"), &format!("url = \"mqtt://b\"\n{prefix}"));
    assert!(said.contains("if both lead to one broker, each disconnects the other"), "{said}");
    let said = two(&format!("url = \"mqtt://a\"\n{prefix}"), &format!("url = \"mqtt://a:1883\"\n{prefix}"));
    assert!(said.contains("at the same broker: each would disconnect the other"), "{said}");
}

/// A certificate, its key, and the authority that the gateway trusts.
struct Shown {
    cert: String,
    key: String,
    ca: String,
}

/// A certificate as `openssl x509 -req` makes it without extensions.
fn version_one() -> Shown {
    let folder = scratch_folder("ways-openssl");
    let openssl = |line: &str| {
        let mut command = Command::new("openssl");
        let done = command.args(line.split(' ')).current_dir(folder.path()).output().expect("openssl");
        assert!(done.status.success(), "{line}: {}", String::from_utf8_lossy(&done.stderr));
    };
    openssl("req -x509 -newkey rsa:2048 -nodes -subj /CN=plant-authority -keyout ca.key -out ca.pem -days 30");
    openssl("req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout server.key -out server.csr");
    openssl("x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 30 -out server.pem");
    let read = |file: &str| std::fs::read_to_string(folder.path().join(file)).expect("written");
    Shown { cert: read("server.pem"), key: read("server.key"), ca: read("ca.pem") }
}

/// Certificates as plants have them, and what the gateway says of each.
fn shown_certificates() -> Vec<(&'static str, Shown, &'static [&'static str])> {
    use rcgen::{
        BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
        date_time_ymd,
    };
    let authority = |name: &str| {
        let mut params = CertificateParams::new(vec![]).expect("parameters");
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        (params, KeyPair::generate().expect("key"))
    };
    let (root, root_key) = authority("plant authority");
    let root = CertifiedIssuer::self_signed(root, root_key).expect("certificate");
    let (middle, middle_key) = authority("intermediate");
    let middle_cert = middle.signed_by(&middle_key, &root).expect("certificate");
    let middle = Issuer::new(middle, middle_key);
    let (twin, twin_key) = authority("plant authority");
    let twin = CertifiedIssuer::self_signed(twin, twin_key).expect("certificate");
    let leaf = |names: &[&str], change: &dyn Fn(&mut CertificateParams)| {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("parameters");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        change(&mut params);
        (params, KeyPair::generate().expect("key"))
    };
    let signed = |names: &[&str], change: &dyn Fn(&mut CertificateParams)| {
        let (params, key) = leaf(names, change);
        let cert = params.signed_by(&key, &root).expect("certificate").pem();
        Shown { cert, key: key.serialize_pem(), ca: root.pem() }
    };
    let own = {
        let (mut params, key) = leaf(&["localhost"], &|_| ());
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let cert = params.self_signed(&key).expect("certificate").pem();
        Shown { cert: cert.clone(), key: key.serialize_pem(), ca: cert }
    };
    let own_leaf = {
        let (params, key) = leaf(&["localhost"], &|params| params.is_ca = IsCa::ExplicitNoCa);
        let cert = params.self_signed(&key).expect("certificate").pem();
        Shown { cert: cert.clone(), key: key.serialize_pem(), ca: cert }
    };
    let below = {
        let (params, key) = leaf(&["localhost"], &|_| ());
        let cert = params.signed_by(&key, &middle).expect("certificate").pem();
        Shown { cert, key: key.serialize_pem(), ca: root.pem() }
    };
    let of_twin = {
        let (params, key) = leaf(&["localhost"], &|_| ());
        let cert = params.signed_by(&key, &twin).expect("certificate").pem();
        Shown { cert, key: key.serialize_pem(), ca: root.pem() }
    };
    let whole_chain = Shown { cert: below.cert.clone() + &middle_cert.pem(), key: below.key.clone(), ca: root.pem() };
    let system = Shown { ca: String::new(), ..signed(&["localhost"], &|_| ()) };
    vec![
        ("the right one", signed(&["localhost"], &|_| ()), &[]),
        ("a chain with its intermediate", whole_chain, &[]),
        ("of X.509 version 1", version_one(), &["X.509 version 1", "version 3"]),
        (
            "with a common name only",
            signed(&[], &|params| params.distinguished_name.push(rcgen::DnType::CommonName, "localhost")),
            &["has no alternative name, and a common name does not count"],
        ),
        ("self-signed and no authority", own_leaf, &[]),
        ("self-signed by openssl req -x509", own, &["certificate of an authority as its own", "CA:FALSE"]),
        ("without its intermediate", below, &["is not in tls.ca (", "intermediate authority"]),
        ("of an unknown authority", system, &["the authorities of the system, because tls.ca is not set"]),
        ("of a renewed authority", of_twin, &["tls.ca"]),
        (
            "for another name",
            signed(&["broker.plant.example"], &|_| ()),
            &["is for", "broker.plant.example", "not for localhost", "set tls.server_name"],
        ),
        (
            "expired",
            signed(&["localhost"], &|params| params.not_after = date_time_ymd(2021, 3, 4)),
            &["expired on 2021-03-04", "renew"],
        ),
        (
            "of the future",
            signed(&["localhost"], &|params| params.not_before = date_time_ymd(2101, 3, 4)),
            &["is valid from 2101-03-04", "clocks"],
        ),
        (
            "for clients",
            signed(&["localhost"], &|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]),
            &["serverAuth"],
        ),
    ]
}

/// Each kind of certificate that a broker may show, and what the status says of it.
#[test]
fn an_error_of_tls_is_a_sentence_that_says_what_to_do() {
    for (name, shown, said) in shown_certificates() {
        let folder = scratch_folder("ways-tls");
        let port = free_address().port();
        for (file, text) in [("server.pem", &shown.cert), ("server.key", &shown.key), ("ca.pem", &shown.ca)] {
            std::fs::write(folder.path().join(file), text).expect("written");
        }
        let place = folder.path().display();
        let lines = format!("listener {port} 127.0.0.1\ncertfile {place}/server.pem\nkeyfile {place}/server.key\n");
        let _broker = PlantBroker::start(folder.path(), &lines);
        let ca = if shown.ca.is_empty() { String::new() } else { format!("tls = {{ ca = \"{place}/ca.pem\" }}\n") };
        let destination = format!("\n[[destination]]\nname = \"central\"\nurl = \"mqtts://localhost:{port}\"\n{ca}");
        let gateway = Gateway::start("ways-tls", &destination);
        let is_known = |status: &serde_json::Value| {
            status["links"][0]["is_up"] == true || !matches!(link_error(status).as_str(), "" | "not connected yet")
        };
        let status = gateway.await_status(name, LONG, is_known);
        let error = link_error(&status);
        assert_eq!(error.is_empty(), said.is_empty(), "{name}: {error}");
        for part in said {
            assert!(error.contains(part), "{name}: {error}");
        }
        for word in ["UnknownIssuer", "OtherError", "invalid peer certificate"] {
            assert!(!error.contains(word), "{name}: {error}");
        }
    }
}

/// What the server of TLS says against the client, and servers that are none.
#[test]
fn a_server_that_refuses_tls_is_explained() {
    let folder = scratch_folder("ways-tls-client");
    let pki = Pki::write(folder.path());
    let other = scratch_folder("ways-tls-other");
    let stranger = Pki::write(other.path());
    let broker = Mosquitto::start(folder.path(), &pki);
    let old = free_address();
    let mut server = Command::new("openssl");
    server.args(["s_server", "-quiet", "-tls1_2", "-accept", &old.to_string(), "-cert"]).arg(&pki.server_cert);
    server.arg("-key").arg(&pki.server_key).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut server = server.spawn().expect("openssl");
    await_port(old);
    let ca = pki.ca.display();
    let pair =
        |pki: &Pki| format!(", cert = \"{}\", key = \"{}\"", pki.client_cert.display(), pki.client_key.display());
    let servers = format!(", cert = \"{}\", key = \"{}\"", pki.server_cert.display(), pki.server_key.display());
    for (port, more, said) in [
        (broker.tls.port(), String::new(), "the server wants a client certificate; set tls.cert and tls.key"),
        (broker.tls.port(), pair(&stranger), "does not know the authority that issued tls.cert"),
        (broker.tls.port(), servers, "it must be for clients (clientAuth)"),
        (broker.plain.port(), pair(&pki), "perhaps this port has no TLS"),
        (old.port(), pair(&pki), "the server has no TLS 1.3; set tls.tls12 = true"),
    ] {
        let destination = format!(
            "\n[[destination]]\nname = \"central\"\nurl = \"mqtts://localhost:{port}\"\ntls = {{ ca = \"{ca}\"{more} }}\n"
        );
        let gateway = Gateway::start("ways-tls-client", &destination);
        let status =
            gateway.await_status(said, LONG, |status| !matches!(link_error(status).as_str(), "" | "not connected yet"));
        assert!(link_error(&status).contains(said), "{said}: {}", link_error(&status));
    }
    crate::common::kill(&mut server);
}

/// The recipe of the page for the administrator, as it stands there.
#[test]
fn the_recipe_for_mosquitto_lets_a_gateway_in_and_nothing_else() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/config/central.md")).expect("the page");
    let recipe = page.split("### Mosquitto").nth(1).and_then(|rest| rest.split("\n### ").next()).expect("a recipe");
    let mut blocks = recipe.split("```conf\n").skip(1).filter_map(|rest| rest.split("```").next());
    let (broker, rights) = (blocks.next().expect("the broker"), blocks.next().expect("the rights"));
    let folder = scratch_folder("ways-recipe");
    let pki = Pki::write(folder.path());
    for (from, to) in [(&pki.server_cert, "central.pem"), (&pki.server_key, "central.key")] {
        std::fs::copy(from, folder.path().join(to)).expect("copied");
    }
    let rights = rights.replace("production/plant-01", "test/plant");
    std::fs::write(folder.path().join("central.acl"), rights + "\nuser somebody\ntopic read #\n").expect("written");
    let (tls, plain) = (free_address(), free_address());
    let broker = broker.replace("listener 8883", &format!("user root\nlistener {} 127.0.0.1", tls.port()));
    let broker = format!("{broker}log_type error\nlistener {} 127.0.0.1\n", plain.port());
    std::fs::write(
        folder.path().join("mosquitto.conf"),
        broker.replace("per_listener_settings false", "per_listener_settings false\nallow_anonymous true"),
    )
    .expect("written");
    let mut child = Command::new("mosquitto")
        .args(["-c", "mosquitto.conf"])
        .current_dir(folder.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("mosquitto");
    await_port(tls);
    let destination = Mosquitto::destination_at(&pki, &format!("mqtts://localhost:{}", tls.port()));
    let gateway = Gateway::start("ways-recipe", &destination.replace("require_subscriber = true\n", ""));
    gateway.await_status("all links are up", LONG, |status| {
        status["links"].as_array().is_some_and(|links| links.iter().all(|link| link["is_up"] == true))
    });
    let devices = Devices::start(gateway.address, 2, 1, Duration::from_millis(1));
    gateway.await_status("events are delivered", LONG, |status| sum(status, "delivered") > 100);
    devices.stop();
    let status = gateway.await_status("the backlog drains", LONG, |status| sum(status, "queued") == 0);
    assert_eq!(status["dead"]["total"], 0);
    // The same client may publish nowhere else.
    let refused = Command::new("mosquitto_pub")
        .args([
            "-h",
            "localhost",
            "-p",
            &tls.port().to_string(),
            "-V",
            "mqttv5",
            "-q",
            "1",
            "-t",
            "test/other/x",
            "-m",
            "x",
        ])
        .args(["--cafile", &pki.ca.display().to_string(), "--cert", &pki.client_cert.display().to_string()])
        .args(["--key", &pki.client_key.display().to_string()])
        .output()
        .expect("mosquitto_pub");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned() + &String::from_utf8_lossy(&refused.stdout);
    assert!(said.contains("Not authorized"), "{said}");
    crate::common::kill(&mut child);
}
