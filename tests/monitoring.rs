//! Metrics, health and what goes with them, of the real program.

use crate::common::centre::Centre;
use crate::common::client::{Client, Hello, publish};
use crate::common::free_address;
use crate::common::gateway::{Gateway, payload, sum};
use crate::common::need::Need;
use crate::common::pki::Pki;
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);

/// Status code and body of an answer, if there is one.
fn try_get(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

fn await_answer(address: SocketAddr, path: &str, wanted: impl Fn(u16, &str) -> bool) -> String {
    let start = Instant::now();
    loop {
        let answer = try_get(address, path);
        if let Some((code, body)) = &answer
            && wanted(*code, body)
        {
            return body.clone();
        }
        assert!(start.elapsed() < PATIENCE, "{path}: {answer:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A gateway with metrics, and a centre.
fn observed(name: &str, more: &str) -> (Gateway, SocketAddr, Centre) {
    let (address, centre) = (free_address(), Centre::start());
    let rest = format!("{more}\n[monitoring]\nlisten = \"{address}\"\n{}", centre.destination("central"));
    (Gateway::start(name, &rest), address, centre)
}

fn promtool(arguments: &[&str], input: &str) -> Option<String> {
    let started = Command::new("promtool")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    if !Need::Promtool.is_met(started.is_ok(), "promtool is not installed (Debian: prometheus)") {
        return None;
    }
    let mut child = started.expect("promtool starts");
    child.stdin.take().expect("input").write_all(input.as_bytes()).expect("written");
    let output = child.wait_with_output().expect("ends");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success(), "promtool {arguments:?}: {said}");
    Some(said)
}

/// The value of a series that is written like this.
fn value(page: &str, series: &str) -> f64 {
    let line = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("there is no {series}: {page}")).parse().expect("a number")
}

fn monitoring() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/config/monitoring"))
}

/// Names of metrics in a query, without the endings of histograms.
fn names(query: &str) -> BTreeSet<String> {
    let words = query.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let is_metric = |word: &&str| word.starts_with("forebay_") || word.starts_with("process_");
    words.filter(is_metric).map(|word| word.trim_end_matches("_bucket").to_owned()).collect()
}

/// Every query of the dashboard, with its variables filled in.
fn queries() -> Vec<String> {
    let text = std::fs::read_to_string(monitoring().join("grafana-dashboard.json")).expect("dashboard");
    let dashboard: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().expect("targets"));
    let expression = |target: &serde_json::Value| target["expr"].as_str().expect("expr").to_owned();
    targets.map(|target| expression(target).replace("$__rate_interval", "5m").replace("$instance", ".*")).collect()
}

#[test]
fn metrics_are_as_prometheus_wants_them_and_what_dashboard_and_alerts_ask_is_there() {
    let (gateway, address, centre) = observed("metrics", "");
    let (mut device, _) = Client::connect(gateway.address, &Hello::default());
    for sequence in 0..50 {
        device.publish(true, sequence + 1, "plant/a/m1/state", payload(1, usize::from(sequence)).as_bytes());
    }
    device.publish(true, 51, "plant/a/m1/state", payload(1, 0).as_bytes());
    device.publish(true, 52, "nowhere", b"x");
    gateway.await_status("delivered", PATIENCE, |status| sum(status, "delivered") >= 50 && sum(status, "queued") == 0);
    drop(centre);
    let page = await_answer(address, "/metrics", |code, body| {
        code == 200 && body.contains("forebay_link_up{lane=\"critical\",destination=\"central\"} 0")
    });
    assert_eq!(value(&page, "forebay_lane_accepted_events_total{lane=\"critical\"}"), 50.0);
    assert_eq!(value(&page, "forebay_lane_duplicate_events_total{lane=\"critical\"}"), 1.0);
    let link = "{lane=\"critical\",destination=\"central\"}";
    assert_eq!(value(&page, &format!("forebay_link_delivered_events_total{link}")), 50.0);
    assert_eq!(value(&page, &format!("forebay_link_settle_duration_seconds_count{link}")), 50.0);
    assert!(value(&page, &format!("forebay_link_settle_duration_seconds_sum{link}")) > 0.0);
    assert_eq!(value(&page, &format!("forebay_ledger_imbalance_events{link}")), 0.0);
    assert_eq!(value(&page, &format!("forebay_backlog_events{link}")), 0.0);
    assert!(value(&page, &format!("forebay_link_failures_total{link}")) >= 1.0);
    assert_eq!(value(&page, "forebay_unmatched_events_total"), 1.0);
    let source = "{source=\"devices\",kind=\"mqtt\"";
    assert_eq!(value(&page, &format!("forebay_source_ack_duration_seconds_bucket{source},le=\"+Inf\"}}")), 52.0);
    assert_eq!(value(&page, &format!("forebay_source_connections{source}}}")), 1.0);
    assert!(value(&page, "process_resident_memory_bytes") > 1e6 && value(&page, "process_open_fds") > 5.0);
    assert_eq!(value(&page, "forebay_healthy") + value(&page, "forebay_ready"), 2.0);

    // What devices send is in no label: the number of series is the plant's, not the traffic's.
    assert!(page.lines().count() < 700, "{}", page.lines().count());
    assert!(!page.contains("m1") && !page.contains("nowhere") && !page.contains("tester"), "{page}");

    let known: BTreeSet<String> =
        page.lines().filter_map(|line| Some(line.strip_prefix("# TYPE ")?.split(' ').next()?.to_owned())).collect();
    let alerts = std::fs::read_to_string(monitoring().join("forebay-alerts.yml")).expect("alerts");
    let expressions = alerts.lines().filter_map(|line| line.trim().strip_prefix("expr: "));
    let asked: BTreeSet<String> = queries().iter().map(String::as_str).chain(expressions).flat_map(names).collect();
    let unknown: Vec<_> = asked.difference(&known).collect();
    assert!(asked.len() > 40 && unknown.is_empty(), "{unknown:?}");

    let said = promtool(&["check", "metrics"], &page);
    assert!(said.is_none_or(|said| said.trim().is_empty()), "promtool has something to say");
    let same = gateway.command(&["health", "CONFIG"]);
    assert!(same.status.success(), "{same:?}");
}

#[test]
fn alerts_and_dashboard_are_sound() {
    let file = |name: &str| monitoring().join(name).display().to_string();
    if promtool(&["check", "rules", &file("forebay-alerts.yml")], "").is_none() {
        return;
    }
    promtool(&["test", "rules", &file("forebay-alerts.test.yml")], "");
    promtool(&["check", "config", &file("prometheus.yml")], "");
    let mut rules = String::from("groups:\n- name: dashboard\n  rules:\n");
    for (index, query) in queries().iter().enumerate() {
        rules.push_str(&format!("  - record: query{index}\n    expr: {}\n", serde_json::json!(query)));
    }
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("dashboard.yml");
    std::fs::write(&path, rules).expect("written");
    promtool(&["check", "rules", path.to_str().expect("text")], "");
}

#[test]
fn a_gateway_without_room_is_alive_and_not_ready_and_says_why() {
    let found = rustix::fs::statvfs(crate::common::scratch()).expect("file system");
    let (size, free) = (found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize);
    let (gateway, address, _centre) = observed("not-ready", &format!("disk_reserve = {}\n", free + (size - free) / 2));
    await_answer(address, "/readyz", |code, _| code == 200);
    let (mut device, _) = Client::connect(gateway.address, &Hello::default());
    device.send(&publish(true, 1, 1, "plant/a/m1/state", &[], payload(1, 1).as_bytes()));
    let body = await_answer(address, "/readyz", |code, _| code == 503);
    let lines: Vec<serde_json::Value> = body.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let bad: Vec<_> = lines.iter().filter(|line| line["good"] == false).collect();
    let lane = bad.iter().find(|line| line["check"] == "lane critical").unwrap_or_else(|| panic!("{body}"));
    assert!(lane["reason"].as_str().is_some_and(|why| why.contains("less than disk_reserve")), "{body}");
    let (code, body) = try_get(address, "/healthz").expect("an answer");
    assert!(code == 200 && body.contains("\"ledger\""), "{body}");
    let page = await_answer(address, "/metrics", |code, _| code == 200);
    assert_eq!(value(&page, "forebay_lane_full{lane=\"critical\"}"), 1.0);
    assert_eq!(value(&page, "forebay_ready"), 0.0);
    let health = gateway.command(&["health", "CONFIG"]);
    let said = String::from_utf8_lossy(&health.stdout);
    assert!(
        health.status.code() == Some(1) && said.contains("lane critical: ") && said.contains("disk_reserve"),
        "{said}"
    );
}

#[test]
fn an_address_that_is_taken_stops_nothing_and_is_tried_again() {
    let other = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = other.local_addr().expect("address");
    let gateway = Gateway::start("taken", &format!("\n[monitoring]\nlisten = \"{address}\"\n"));
    let (mut device, _) = Client::connect(gateway.address, &Hello::default());
    let answer = device.publish(true, 1, "plant/a/m1/state", payload(1, 1).as_bytes());
    assert_eq!(answer.first(), Some(&0x40), "the event is acknowledged");
    let problems = |status: &serde_json::Value| status["problems"].to_string();
    let status = gateway.await_status("the problem", PATIENCE, |status| problems(status).contains("monitoring: "));
    assert!(problems(&status).contains(&address.to_string()), "{status:#}");
    // The command socket answers the same.
    assert!(gateway.command(&["health", "CONFIG"]).status.success());
    drop(other);
    await_answer(address, "/healthz", |code, _| code == 200);
    gateway.await_status("no problem", PATIENCE, |status| !problems(status).contains("monitoring: "));
    let (code, body) = try_get(address, "/status").expect("an answer");
    assert!(code == 404 && body.contains("/metrics"), "nothing else is to be had here: {body}");
}

#[test]
fn in_production_monitoring_stays_on_loopback() {
    let gateway = Gateway::prepare("exposed", "\n[monitoring]\nlisten = \"0.0.0.0:9110\"\n");
    let check = || String::from_utf8_lossy(&gateway.command(&["check", "CONFIG"]).stdout).into_owned();
    assert!(check().contains("warning: ") && check().contains("is not loopback"), "{}", check());
    let text = std::fs::read_to_string(gateway.config()).expect("read");
    std::fs::write(gateway.config(), text.replace("\"test\"", "\"production\"")).expect("written");
    let said = check();
    assert!(said.contains("monitoring.listen: 0.0.0.0:9110 is not loopback") && said.contains("must be"), "{said}");
}

#[test]
fn a_certificate_that_expires_soon_is_told_in_status_metrics_and_log() {
    let (address, folder) = (free_address(), crate::common::gateway::scratch_folder("expiry"));
    let later = jiff::Timestamp::now().checked_add(jiff::SignedDuration::from_hours(10 * 24)).expect("a day");
    let soon = later.to_zoned(jiff::tz::TimeZone::UTC).date();
    let day = rcgen::date_time_ymd(soon.year().into(), soon.month().unsigned_abs(), soon.day().unsigned_abs());
    let pki = Pki::write_with(folder.path(), |params| params.not_after = day);
    let mut gateway = Gateway::prepare("expiring", &format!("\n[monitoring]\nlisten = \"{address}\"\n"));
    let (cert, key) = (pki.server_cert.display(), pki.server_key.display());
    let text = std::fs::read_to_string(gateway.config()).expect("read");
    let tls = format!("tls = {{ cert = \"{cert}\", key = \"{key}\", client_ca = \"{}\" }}\n", pki.ca.display());
    let text = text.replace("name = \"devices\"\n", &format!("name = \"devices\"\n{tls}"));
    std::fs::write(gateway.config(), text).expect("written");
    gateway.run();
    let page = await_answer(address, "/metrics", |code, body| code == 200 && body.contains(",use=\"own\"}"));
    let expiry = value(&page, &format!("forebay_certificate_expiry_timestamp_seconds{{file=\"{cert}\",use=\"own\"}}"));
    assert_eq!(expiry, day.unix_timestamp() as f64);
    assert!(page.contains("use=\"authority of clients\"}"), "{page}");
    let status = gateway.status();
    let notes = status["notes"].to_string();
    assert!(notes.contains("server.pem (own) expires in 9d ") && !notes.contains("authority"), "{notes}");
    let start = Instant::now();
    while !gateway.log().contains("server.pem (own) expires in 9d ") {
        assert!(start.elapsed() < PATIENCE, "{}", gateway.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    // A new certificate in its place ends that at once.
    pki.renew_server(77);
    assert!(!gateway.status()["notes"].to_string().contains("expires"), "{:#}", gateway.status());
}
