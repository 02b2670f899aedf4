//! `forebay check --connect`: what a commissioning person asks, against real brokers and real mistakes.

use crate::common::broker::{Collector, Mosquitto};
use crate::common::gateway::{Gateway, program_for_everybody};
use crate::common::pki::Pki;
use crate::common::program::{assert_has, said};
use crate::common::real_proxy::{Kind, RealProxy};
use crate::common::{free_address, need};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

#[test]
fn every_step_to_central_is_shown_and_a_message_comes_back() {
    let mut gateway = Gateway::prepare("connect", "");
    let pki = Pki::write(&gateway.folder);
    let broker = Mosquitto::start(&gateway.folder, &pki);
    let collector = Collector::start(broker.plain, "test/#");
    let destination = broker.destination(&pki, broker.tls.port());
    let config = gateway.config();
    let text = std::fs::read_to_string(&config).expect("a file");
    std::fs::write(&config, format!("{text}{destination}")).expect("written");
    let output = gateway.command(&["check", "--connect", "CONFIG"]);
    let text = said(&output);
    assert!(output.status.success(), "{text}");
    assert_has(
        &text,
        &[
            "✓ the clock shows",
            "is durable after",
            "its port answers in",
            "TLS (TLSv1_3)",
            "accepts the login",
            "the gateway may publish",
            "came back in",
            "is free for the listener",
        ],
    );
    assert!(!text.contains('✗'), "{text}");
    let arrived = collector.await_count(1, std::time::Duration::from_secs(10));
    assert!(arrived[0].topic.contains("/gateway.check/v1/"), "{}", arrived[0].topic);
    // With the gateway running, the listener is open, and the check disturbs no session.
    gateway.run();
    let output = gateway.command(&["check", "--connect", "--json", "CONFIG"]);
    let json: serde_json::Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", said(&output)));
    assert_eq!(json["good"], true, "{json}");
    let found = json["connect"].as_array().expect("a list");
    assert!(found.iter().all(|finding| finding["mark"] != "fault"), "{json}");
    assert!(found.iter().any(|finding| finding["part"] == "destination central"), "{json}");
}

/// Each mistake names its step; the steps before it are good.
#[test]
fn a_wrong_name_port_certificate_login_or_right_is_named() {
    let gateway = Gateway::prepare("connect", "");
    let pki = Pki::write(&gateway.folder);
    let broker = Mosquitto::start(&gateway.folder, &pki);
    let base = std::fs::read_to_string(gateway.config()).expect("a file");
    let refused = |destination: &str, words: &[&str]| {
        std::fs::write(gateway.config(), format!("{base}{destination}")).expect("written");
        let output = gateway.command(&["check", "--connect", "CONFIG"]);
        let text = said(&output);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert_has(&text, words);
    };
    let at = |url: &str, rest: &str| format!("\n[[destination]]\nname = \"central\"\nurl = \"{url}\"\n{rest}\n");
    refused(&at("mqtt://no.such.host.invalid", ""), &["✗ no.such.host.invalid:1883 cannot be resolved"]);
    let closed = free_address();
    refused(&at(&format!("mqtt://{closed}"), ""), &["cannot be reached", "refused"]);
    // A port without TLS, another authority, and no client certificate.
    let plain = format!("mqtts://localhost:{}", broker.plain.port());
    refused(&at(&plain, &format!("tls = {{ ca = \"{}\" }}", pki.ca.display())), &["✓ localhost", "✗ TLS"]);
    let url = format!("mqtts://localhost:{}", broker.tls.port());
    let other = Command::new(env!("CARGO_BIN_EXE_forebay"))
        .args(["cert", "ca", "--name", "Other CA", "--folder"])
        .arg(gateway.folder.join("other"))
        .output()
        .expect("runs");
    assert!(other.status.success(), "{}", said(&other));
    refused(&at(&url, "tls = { ca = \"other/ca.pem\" }"), &["✗ TLS: ", "is not in tls.ca"]);
    refused(
        &at(&url, &format!("tls = {{ ca = \"{}\" }}", pki.ca.display())),
        &["✓ TLS", "✗ login", "client certificate"],
    );
}

/// Mosquitto with a list of rights: the login works, and the gateway may publish nothing.
#[test]
fn a_broker_that_lets_the_gateway_in_and_allows_it_nothing_is_found_before_the_first_event() {
    let gateway = Gateway::prepare("connect", "");
    let port = free_address().port();
    let (config, rights) = (gateway.folder.join("mosquitto.conf"), gateway.folder.join("rights"));
    std::fs::write(&rights, "topic read $SYS/#\n").expect("written");
    std::fs::set_permissions(&rights, std::fs::Permissions::from_mode(0o644)).expect("mode");
    std::fs::write(
        &config,
        format!("user root\nallow_anonymous true\nacl_file {}\nlistener {port} 127.0.0.1\n", rights.display()),
    )
    .expect("written");
    let mut broker = Command::new("mosquitto")
        .arg("-c")
        .arg(&config)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("mosquitto");
    crate::common::await_port(([127, 0, 0, 1], port).into());
    let text = std::fs::read_to_string(gateway.config()).expect("a file");
    let destination = format!("\n[[destination]]\nname = \"central\"\nurl = \"mqtt://127.0.0.1:{port}\"\n");
    std::fs::write(gateway.config(), text + &destination).expect("written");
    let output = gateway.command(&["check", "--connect", "CONFIG"]);
    crate::common::end(&mut broker);
    assert_eq!(output.status.code(), Some(1));
    assert_has(
        &said(&output),
        &["✓ 127.0.0.1", "accepts the login", "✗ the broker refuses a publish", "gateway.check"],
    );
}

/// `check` said "good" to root of a key that the service could not read; the service then did not start.
#[test]
fn root_is_told_what_the_user_of_the_service_may_not_read() {
    if !need::root("checks as another user") {
        return;
    }
    let gateway = Gateway::prepare("service", "");
    let program = program_for_everybody(&gateway.folder);
    let pki = Pki::write(&gateway.folder);
    let data = gateway.folder.join("data");
    std::fs::create_dir_all(&data).expect("folder");
    std::os::unix::fs::chown(&data, Some(65_534), Some(65_534)).expect("owner");
    std::fs::set_permissions(&pki.client_key, std::fs::Permissions::from_mode(0o600)).expect("mode");
    let tls = format!(
        "tls = {{ ca = \"{}\", cert = \"{}\", key = \"{}\" }}",
        pki.ca.display(),
        pki.client_cert.display(),
        pki.client_key.display()
    );
    let text = std::fs::read_to_string(gateway.config()).expect("a file");
    let destination = format!("\n[[destination]]\nname = \"central\"\nurl = \"mqtts://localhost:1\"\n{tls}\n");
    std::fs::write(gateway.config(), text + &destination).expect("written");
    let check = || Command::new(&program).arg("check").arg(gateway.config()).output().expect("runs");
    let output = check();
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert_has(&said(&output), &["destination[0].tls", "cannot be read", "as user nobody, who runs the service"]);
    std::os::unix::fs::chown(&pki.client_key, Some(65_534), Some(65_534)).expect("owner");
    let output = check();
    assert!(output.status.success(), "{}", said(&output));
}

/// A device over Modbus TCP: unit 3 answers, unit 4 does not have the register, and no other unit is there.
fn modbus_device() -> std::net::SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let serve = |mut stream: std::net::TcpStream| {
        let mut request = [0; 12];
        while stream.read_exact(&mut request).is_ok() {
            let [_, _, _, _, _, _, unit, function, _, _, _, count] = request;
            let answer = match unit {
                3 => [&[unit, function, 2 * count][..], &vec![0; 2 * usize::from(count)]].concat(),
                4 => vec![unit, function | 0x80, 2],
                _ => continue,
            };
            let frame = [&request[..4], &(answer.len() as u16).to_be_bytes(), &answer].concat();
            stream.write_all(&frame).expect("answers");
        }
    };
    std::thread::spawn(move || listener.incoming().flatten().for_each(serve));
    address
}

/// Three machines on one bus: it once ended with "its port answers" and a hint at another command.
#[test]
fn each_machine_on_a_bus_is_read_once_and_left_alone_while_the_gateway_runs() {
    let mut gateway = Gateway::prepare("connect", "");
    let tables = gateway.folder.join("devices");
    std::fs::create_dir_all(&tables).expect("folder");
    let meter = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/config/devices/eastron-sdm630.toml"));
    std::fs::write(tables.join("meter.toml"), meter.expect("a table")).expect("written");
    let mut bus = format!(
        "\n[[source.modbus]]\nname = \"meters\"\nurl = \"tcp://{}\"\ntimeout = \"300ms\"\nretries = 0\n",
        modbus_device()
    );
    for (number, name) in [(3, "good"), (4, "other"), (9, "away")] {
        bus += &format!("[[source.modbus.unit]]\nname = \"{name}\"\nunit = {number}\ndevice = \"meter\"\n");
    }
    let text = std::fs::read_to_string(gateway.config()).expect("a file");
    std::fs::write(gateway.config(), text + &bus).expect("written");
    let check = |gateway: &Gateway| {
        let output = gateway.command(&["check", "--connect", "--json", "CONFIG"]);
        let json: serde_json::Value =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", said(&output)));
        let found = json["connect"].as_array().expect("a list").clone();
        found.into_iter().filter(|finding| finding["part"] == "source meters").collect::<Vec<_>>()
    };
    let found = check(&gateway);
    let of = |name: &str| {
        let is_one = |finding: &&serde_json::Value| finding["text"].as_str().expect("text").contains(name);
        found.iter().find(is_one).unwrap_or_else(|| panic!("{name}: {found:#?}"))
    };
    assert_eq!(of("unit 3 (good) answers: input 0 to")["mark"], "good");
    assert_eq!(of("unit 4 (other) answers, and refuses input 0")["mark"], "fault");
    assert_has(&of("unit 4 (other)").to_string(), &["exception 2", "device table", "meter"]);
    assert_eq!(of("unit 9 (away): no answer within 300ms")["mark"], "fault");
    gateway.run();
    let found = check(&gateway);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!(found[0]["mark"], "unknown");
    assert_has(&found[0].to_string(), &["the running gateway has this bus", "forebay devices"]);
}

#[test]
fn the_proxy_has_a_mark_of_its_own_and_the_clock_of_a_broker_is_not_known() {
    let gateway = Gateway::prepare("connect", "");
    let pki = Pki::write(&gateway.folder);
    let broker = Mosquitto::start(&gateway.folder, &pki);
    let base = std::fs::read_to_string(gateway.config()).expect("a file");
    let mut proxy = RealProxy::start(Kind::Microsocks, &gateway.folder, 1);
    let through = |port: u16, proxy: &RealProxy| {
        let destination = format!("\n[[destination]]\nname = \"central\"\nurl = \"mqtt://127.0.0.1:{port}\"\n");
        std::fs::write(gateway.config(), format!("{base}{destination}{}", proxy.line(&gateway.folder)))
            .expect("written");
        let output = gateway.command(&["check", "--connect", "CONFIG"]);
        (output.status.success(), said(&output))
    };
    let (is_good, text) = through(broker.plain.port(), &proxy);
    assert!(is_good, "{text}");
    let answers = format!("✓ proxy {} is 127.0.0.1, and its port answers", proxy.address);
    let opens =
        format!("✓ the proxy socks5://{} opens connections to 127.0.0.1:{}", proxy.address, broker.plain.port());
    assert_has(&text, &[&answers, &opens, "accepts the login through the proxy"]);
    assert_has(&text, &["? the clock of the broker cannot be known over MQTT"]);
    let (is_good, text) = through(free_address().port(), &proxy);
    assert!(!is_good, "{text}");
    assert_has(&text, &[&answers, "✗ proxy "]);
    proxy.kill();
    let (is_good, text) = through(broker.plain.port(), &proxy);
    assert!(!is_good, "{text}");
    assert_has(&text, &[&format!("✗ proxy {} cannot be reached", proxy.address)]);
}

/// Odoo names the time in each answer.
#[test]
fn the_clock_of_odoo_is_compared_with_that_of_the_gateway() {
    let odoo = crate::odoo::fake::Odoo::start();
    let plant = crate::odoo::Plant::prepare("connect-odoo", &odoo.url(), "500ms", "", "");
    let output = plant.gateway.command(&["check", "--connect", "CONFIG"]);
    assert_has(&said(&output), &["✓ its clock and that of this machine differ by less than 5 s"]);
    odoo.advance(3660);
    let output = plant.gateway.command(&["check", "--connect", "CONFIG"]);
    assert_has(&said(&output), &["! its clock is 1h ", " ahead of that of this machine"]);
}
