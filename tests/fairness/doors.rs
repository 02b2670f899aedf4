//! Doors that speak HTTP: the source, monitoring, the hook, the command socket. Silent, slow and greedy clients.

use crate::common::centre::Centre;
use crate::common::client::{Client as Device, Hello};
use crate::common::gateway::Gateway;
use crate::common::http::{Client, post};
use crate::common::random::Random;
use crate::common::{await_port, dial_from, free_address, resident_kilobytes};
use crate::odoo::Plant;
use crate::odoo::fake::Odoo;
use forebay::sources::http::put_token;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

const CONTRACT: &str = r#"
name = "program.count"
version = "1.0.0"
owner = "tests"
lane = "standard"
match = { source = "http", topic = "{program}" }
key = "{program}"
"#;
const EVENT: &[u8] = br#"{"count":1}"#;

/// A gateway with an HTTP source and tokens for these names.
fn with_programs<const N: usize>(name: &str, more: &str, names: [&str; N]) -> (Gateway, SocketAddr, [String; N]) {
    let mut gateway = Gateway::prepare(name, "");
    let address = free_address();
    std::fs::write(gateway.folder.join("contracts/count.toml"), CONTRACT).expect("written");
    let file = gateway.folder.join("tokens");
    let tokens = names.map(|name| format!("Bearer {}", put_token(&file, name).expect("written")));
    let config = std::fs::read_to_string(gateway.config()).expect("read");
    let source = format!("\n[[source.http]]\nname = \"programs\"\nlisten = \"{address}\"\ntokens = \"tokens\"\n{more}");
    std::fs::write(gateway.config(), config + &source).expect("written");
    gateway.run();
    (gateway, address, tokens)
}

/// Posts a small event on a connection of its own; how long that took.
fn post_small(address: SocketAddr, name: &str, token: &str) -> Duration {
    let start = Instant::now();
    let headers = [("authorization", token), ("content-type", "application/json")];
    let answer = Client::dial(address).post(&format!("/events/{name}"), &headers, EVENT);
    assert_eq!(answer.status, 202, "{answer:?}");
    start.elapsed()
}

/// Opens connections from one address that send these bytes, and no more.
fn open(count: usize, from: [u8; 4], to: SocketAddr, bytes: &[u8]) -> Vec<TcpStream> {
    let open = || {
        let mut stream = dial_from(from, to)?;
        stream.write_all(bytes)?;
        Ok::<_, std::io::Error>(stream)
    };
    (0..count).filter_map(|_| open().ok()).collect()
}

pub fn slow_bodies_of_one_token() -> Duration {
    let (_gateway, address, tokens) = with_programs("fair-bodies", "", ["slow", "quick", "large"]);
    let head = [("authorization", tokens[0].as_str()), ("content-type", "application/cloudevents-batch+json")];
    let whole = post("/events/slow", &head, &vec![b' '; 1_000_000]);
    let slow = open(20, [127, 0, 0, 2], address, &whole[..1000]);
    // Until their heads are read; there is nothing to see of that from outside.
    std::thread::sleep(Duration::from_millis(300));
    let small = post_small(address, "quick", &tokens[1]);
    let start = Instant::now();
    let head = [("authorization", tokens[2].as_str()), ("content-type", "application/cloudevents-batch+json")];
    let answer = Client::dial(address).post("/events/large", &head, &[&vec![b' '; 990_000][..], b"[]"].concat());
    assert!(answer.status < 500, "{answer:?}");
    drop(slow);
    small.max(start.elapsed())
}

fn metadata(bytes: &[u8]) -> Duration {
    let (_gateway, address, tokens) = with_programs("fair-silent", "", ["quick"]);
    let silent = open(1100, [127, 0, 0, 2], address, bytes);
    let other = post_small(address, "quick", &tokens[0]);
    // At the same address too, where the silent ones hold all the seats.
    let more = open(1000, [127, 0, 0, 1], address, bytes);
    let same = post_small(address, "quick", &tokens[0]);
    drop((silent, more));
    other.max(same)
}

pub fn silent_connections() -> Duration {
    metadata(b"")
}

pub fn half_heads() -> Duration {
    metadata(b"POST /events/quick HTTP/1.1\r\nhost: x\r\nauthorization: Bea")
}

pub fn slow_bodies_on_every_connection() -> Duration {
    let (_gateway, address, tokens) = with_programs("fair-seats", "connections_max = 50\n", ["slow", "quick"]);
    let headers = [("authorization", tokens[0].as_str()), ("content-type", "application/json")];
    let slow = open(60, [127, 0, 0, 2], address, &post("/events/slow", &headers, EVENT)[..150]);
    let waited = post_small(address, "quick", &tokens[1]);
    drop(slow);
    waited
}

pub fn wrong_tokens() -> Duration {
    let (_gateway, address, tokens) = with_programs("fair-tokens", "", ["quick"]);
    let mut told = None;
    for number in 0..40 {
        let token = format!("Bearer forebay_{number}");
        let mut client = Client::dial(address);
        let answer = client.post("/events/quick", &[("authorization", &token)], EVENT);
        if answer.status == 429 {
            assert!(answer.header("retry-after").is_some() && client.is_closed(), "{answer:?}");
            told = Some(number);
            break;
        }
        assert_eq!(answer.status, 401, "{answer:?}");
    }
    assert!(told.is_some_and(|number| (20..30).contains(&number)), "{told:?}");
    post_small(address, "quick", &tokens[0])
}

fn scrape(address: SocketAddr, host: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("connected");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
    write!(stream, "GET /metrics HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n").expect("sent");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("read");
    (text.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a code"), text)
}

pub fn silent_connections_to_monitoring() -> Duration {
    let address = free_address();
    let _gateway = Gateway::start("fair-scrape", &format!("\n[monitoring]\nlisten = \"{address}\"\n"));
    await_port(address);
    let silent = open(40, [127, 0, 0, 2], address, b"GET /metrics HTTP/1.1\r\n");
    let start = Instant::now();
    assert_eq!(scrape(address, "127.0.0.1").0, 200);
    drop(silent);
    start.elapsed()
}

pub fn silent_connections_to_the_hook() -> Duration {
    let odoo = Odoo::start();
    let address = free_address();
    let hook = format!("hook = {{ listen = \"{address}\", token_file = \"hook.token\", url = \"http://{address}\" }}");
    let mut plant = Plant::prepare("fair-hook", &odoo.url(), "1h", &hook, "");
    std::fs::write(plant.gateway.folder.join("hook.token"), "0123456789abcdef01234567\n").expect("written");
    plant.gateway.run();
    await_port(address);
    let silent = open(100, [127, 0, 0, 2], address, b"");
    let start = Instant::now();
    assert_eq!(Client::dial(address).post("/odoo/hook/wrong", &[], b"{}").status, 404);
    drop(silent);
    start.elapsed()
}

/// A page in somebody's browser that gives its own name the gateway's address once read the plant's names and states.
#[test]
fn monitoring_answers_to_its_own_names_only() {
    let address = free_address();
    let rest = format!("\n[monitoring]\nlisten = \"{address}\"\nhosts = [\"gw-01.plant.example\"]\n");
    let _gateway = Gateway::start("fair-host", &rest);
    await_port(address);
    for host in ["127.0.0.1:9110", "localhost", "gw-01", "gw-01.plant.example:9110"] {
        assert_eq!(scrape(address, host).0, 200, "{host}");
    }
    for host in ["evil.example", "127.0.0.1.evil.example:80"] {
        let (code, text) = scrape(address, host);
        assert!(code == 421 && text.contains("hosts") && !text.contains("forebay_"), "{host}: {text}");
    }
}

fn socket(gateway: &Gateway) -> std::path::PathBuf {
    gateway.status();
    gateway.folder.join("data/forebay.sock")
}

pub fn silent_connections_to_the_command_socket() -> Duration {
    let gateway = Gateway::start("fair-socket", "");
    let path = socket(&gateway);
    let silent: Vec<_> = (0..300).filter_map(|_| UnixStream::connect(&path).ok()).collect();
    let start = Instant::now();
    gateway.status();
    drop(silent);
    start.elapsed()
}

pub fn readers_that_take_nothing() -> Duration {
    let gateway = Gateway::start("fair-readers", "");
    let (mut device, _) = Device::connect(gateway.address, &Hello::default());
    let noise = Random::with_seed(1).text(60_000);
    for id in 1..=40u16 {
        let payload = format!(r#"{{"msg_id":"{id}","note":"{noise}"}}"#);
        device.publish(true, id, "plant/a/m1/state", payload.as_bytes());
    }
    let path = socket(&gateway);
    let ask = |what: &str| {
        let mut stream = UnixStream::connect(&path).expect("connected");
        write!(stream, "POST /journal/{what} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", EXPORT.len())
            .and_then(|()| stream.write_all(EXPORT))
            .expect("sent");
        stream
    };
    let stuck = [ask("export"), ask("export")];
    let start = Instant::now();
    loop {
        let output = gateway.command(&["verify", "CONFIG"]);
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        if output.status.success() {
            break;
        }
        assert!(said.contains("are under way"), "{said}");
        assert!(start.elapsed() < Duration::from_secs(100), "they are never ended");
        std::thread::sleep(Duration::from_millis(500));
    }
    let waited = start.elapsed();
    assert!(waited > Duration::from_secs(1), "both were at it");
    drop(stuck);
    waited
}

const EXPORT: &[u8] = br#"{"selection":{"since":null,"until":null,"streams":[],"keys":[]},"with_offsets":false}"#;

/// Each `tail` that is closed once lived on until the next event, which on a quiet gateway may be days away.
#[test]
fn tails_that_are_closed_leave_nothing_behind() {
    let centre = Centre::start();
    let gateway = Gateway::start("fair-tails", &centre.destination("central"));
    let path = socket(&gateway);
    let round = |count: usize| {
        for _ in 0..count {
            let mut stream = UnixStream::connect(&path).expect("connected");
            stream.write_all(b"GET /tail HTTP/1.1\r\nhost: x\r\n\r\n").expect("sent");
            let mut head = [0; 12];
            stream.read_exact(&mut head).expect("an answer");
            assert_eq!(&head, b"HTTP/1.1 200");
        }
    };
    round(500);
    let before = resident_kilobytes(gateway.pid());
    round(3000);
    // The last of them end a moment after they are closed.
    let start = Instant::now();
    while resident_kilobytes(gateway.pid()) > before + 1500 && start.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(50));
    }
    let after = resident_kilobytes(gateway.pid());
    println!("{before} kB before, {after} kB after 3,000 tails");
    assert!(after <= before + 1500, "{before} kB before, {after} kB after");
}
