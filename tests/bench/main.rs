//! Forebay and a Mosquitto bridge side by side, in one run, on one machine.
//!
//! `cargo bench` runs everything; `cargo bench -- --quick` one short round; `cargo bench -- full
//! steady outage drain beside quiet crowd flood modbus` only those parts, and `cargo bench -- backlog` a start with
//! 10 GB behind it, which is not among them. Figures are medians over rounds that alternate between the two.
//! `FOREBAY_BIN` names the program that is measured, such as the one of profile `dist`.

#![allow(clippy::disallowed_methods, reason = "a benchmark lives in real time")]

#[path = "../common/mod.rs"]
mod common;
mod crowd;
mod drain;
mod load;
mod measure;
mod modbus;
mod peers;
mod sink;

use load::Load;
use measure::{Process, median};
use peers::{Gateway, Peer};
use sink::Sink;
use std::time::{Duration, Instant};

const CONNECTIONS: usize = 50;
const IN_FLIGHT: usize = 20;

struct Plan {
    rounds: usize,
    events_forebay: usize,
    events_bridge: usize,
    steady_seconds: u64,
    outage_seconds: u64,
    parts: Vec<String>,
}

impl Plan {
    fn wants(&self, part: &str) -> bool {
        self.parts.is_empty() || self.parts.iter().any(|wanted| wanted == part)
    }
}

fn main() {
    let mut plan = Plan {
        rounds: 5,
        events_forebay: 600_000,
        events_bridge: 150_000,
        steady_seconds: 15,
        outage_seconds: 20,
        parts: vec![],
    };
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--quick" => {
                plan = Plan {
                    rounds: 1,
                    events_forebay: 300_000,
                    events_bridge: 60_000,
                    steady_seconds: 5,
                    outage_seconds: 6,
                    ..plan
                };
            }
            "--bench" => {}
            part => plan.parts.push(part.to_owned()),
        }
    }
    let folder =
        tempfile::Builder::new().prefix("forebay-bench-").tempdir_in(common::scratch()).expect("temporary folder");
    let pki = common::pki::Pki::write(folder.path());
    println!("program: {}", peers::program().display());
    println!(
        "disk: fdatasync of 4 KiB p50 {:.2} ms, p99 {:.2} ms",
        disk(folder.path(), 0.5),
        disk(folder.path(), 0.99)
    );
    if plan.wants("centre") {
        centre(&plan, &pki);
    }
    if plan.wants("full") {
        full(&plan, folder.path(), &pki);
    }
    if plan.wants("steady") {
        steady(&plan, folder.path(), &pki);
    }
    if plan.wants("outage") {
        outage(&plan, folder.path(), &pki);
    }
    if plan.wants("drain") {
        drain::drain(plan.rounds.min(3), plan.events_forebay, folder.path(), &pki);
    }
    if plan.wants("beside") {
        drain::metadata(plan.rounds.min(5), plan.events_forebay, folder.path(), &pki);
    }
    if plan.wants("quiet") {
        drain::quiet(plan.steady_seconds, folder.path(), &pki);
    }
    if plan.parts.iter().any(|part| part == "backlog") {
        drain::backlog(folder.path(), &pki);
    }
    if plan.wants("crowd") {
        crowd::crowd(plan.steady_seconds.min(5), folder.path(), &pki);
    }
    if plan.wants("flood") {
        crowd::flooded(plan.rounds.min(3), plan.steady_seconds.min(5), folder.path(), &pki);
    }
    if plan.wants("modbus") {
        modbus::polled(plan.steady_seconds * 8, folder.path());
    }
}

/// Quantile of fdatasync, in milliseconds, over 200 small writes.
fn disk(folder: &std::path::Path, quantile: f64) -> f64 {
    use std::io::Write;
    let mut file = std::fs::File::create(folder.join("disk")).expect("file");
    let mut times: Vec<f64> = (0..200)
        .map(|_| {
            file.write_all(&[7; 4096]).expect("written");
            let start = Instant::now();
            file.sync_data().expect("synced");
            start.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[(times.len() as f64 * quantile) as usize]
}

/// What the centre itself carries, so that it limits neither side.
fn centre(plan: &Plan, pki: &common::pki::Pki) {
    let mut rates = Vec::new();
    for _ in 0..plan.rounds {
        let sink = Sink::start(pki, 0);
        let load = Load::prepare(1, plan.events_forebay, 9);
        let start = Instant::now();
        load.flood_tls(sink.address(), pki, 1000);
        rates.push(plan.events_forebay as f64 / start.elapsed().as_secs_f64());
    }
    println!(
        "centre: the sink alone takes {:.0} publishes a second over TLS with client certificates",
        median(&mut rates)
    );
    let folder = tempfile::Builder::new().prefix("forebay-bench-").tempdir_in(common::scratch()).expect("folder");
    let broker = common::broker::Mosquitto::start(folder.path(), pki);
    let mut rates = Vec::new();
    for _ in 0..plan.rounds.min(3) {
        let load = Load::prepare(1, plan.events_bridge, 9);
        let start = Instant::now();
        load.flood_tls(broker.tls, pki, 1000);
        rates.push(plan.events_bridge as f64 / start.elapsed().as_secs_f64());
    }
    println!("        a Mosquitto as the centre takes {:.0}, and would limit the faster side", median(&mut rates));
}

#[derive(Default)]
struct Column {
    acks: Vec<f64>,
    end_to_end: Vec<f64>,
    cpu: Vec<f64>,
    rss: Vec<f64>,
    rss_idle: Vec<f64>,
    written: Vec<f64>,
    ack_p50: Vec<f64>,
    ack_p99: Vec<f64>,
}

fn full(plan: &Plan, folder: &std::path::Path, pki: &common::pki::Pki) {
    let mut columns = [Column::default(), Column::default()];
    for round in 0..plan.rounds {
        for (index, column) in columns.iter_mut().enumerate() {
            let sink = Sink::start(pki, CONNECTIONS);
            let place = folder.join(format!("full-{round}-{index}"));
            let peer: Box<dyn Peer> = if index == 0 {
                Box::new(Gateway::start(&place, sink.address(), pki, "critical"))
            } else {
                Box::new(peers::Bridge::start(&place, sink.address(), pki))
            };
            let events = if index == 0 { plan.events_forebay } else { plan.events_bridge };
            let load = Load::prepare(CONNECTIONS, events, round as u64 + 1);
            sink.await_link();
            std::thread::sleep(Duration::from_millis(300));
            let before = Process::read(peer.pid());
            column.rss_idle.push(before.rss_mb);
            let start = Instant::now();
            let acks = load.run(peer.address(), IN_FLIGHT);
            let acked_in = start.elapsed();
            sink.await_events(events as u64, Duration::from_secs(120));
            let delivered_in = start.elapsed();
            let after = Process::read(peer.pid());
            column.acks.push(events as f64 / acked_in.as_secs_f64());
            column.end_to_end.push(events as f64 / delivered_in.as_secs_f64());
            column.cpu.push((after.cpu - before.cpu) / events as f64 * 1e6);
            column.rss.push(after.rss_peak_mb);
            column.written.push((after.written - before.written) as f64 / events as f64);
            column.ack_p50.push(acks.quantile(0.5));
            column.ack_p99.push(acks.quantile(0.99));
            sink.check_order();
            drop(peer);
        }
    }
    let [forebay, bridge] = &mut columns;
    println!(
        "\nfull load: {CONNECTIONS} connections x {IN_FLIGHT} in flight, 256 B JSON of eight fields, contract with id, key and schema"
    );
    println!("{:<44} {:>12} {:>12} {:>8}", "", "Forebay", "bridge", "ratio");
    let row = |name: &str, a: &mut Vec<f64>, b: &mut Vec<f64>, digits: usize| {
        let (a, b) = (median(a), median(b));
        println!("{name:<44} {a:>12.digits$} {b:>12.digits$} {:>8.2}", a / b);
    };
    row("PUBACKs a second (Forebay: after fsync)", &mut forebay.acks, &mut bridge.acks, 0);
    row("end to end a second", &mut forebay.end_to_end, &mut bridge.end_to_end, 0);
    row("CPU seconds for a million events", &mut forebay.cpu, &mut bridge.cpu, 2);
    row("RSS at most, MB", &mut forebay.rss, &mut bridge.rss, 1);
    row("RSS idle, MB", &mut forebay.rss_idle, &mut bridge.rss_idle, 1);
    row("bytes written to disk an event", &mut forebay.written, &mut bridge.written, 0);
    row("publish to PUBACK p50, ms", &mut forebay.ack_p50, &mut bridge.ack_p50, 2);
    row("publish to PUBACK p99, ms", &mut forebay.ack_p99, &mut bridge.ack_p99, 2);
}

fn steady(plan: &Plan, folder: &std::path::Path, pki: &common::pki::Pki) {
    println!("\n1,000 events a second, critical lane");
    let (mut p50, mut p99, mut cpu, mut written, mut disk50, mut disk99) =
        (vec![], vec![], vec![], vec![], vec![], vec![]);
    for round in 0..plan.rounds.min(3) {
        let sink = Sink::start(pki, CONNECTIONS);
        let gateway = Gateway::start(&folder.join(format!("steady-{round}")), sink.address(), pki, "critical");
        let events = 1000 * plan.steady_seconds as usize;
        let load = Load::prepare(CONNECTIONS, events, 77 + round as u64);
        sink.await_link();
        let before = Process::read(gateway.pid());
        load.run_at(gateway.address(), 1000.0, &sink.clock());
        sink.await_events(events as u64, Duration::from_secs(20));
        let after = Process::read(gateway.pid());
        let latency = sink.latency(&load);
        p50.push(latency.quantile(0.5));
        p99.push(latency.quantile(0.99));
        cpu.push((after.cpu - before.cpu) / plan.steady_seconds as f64 * 100.0);
        written.push((after.written - before.written) as f64 / events as f64);
        disk50.push(disk(folder, 0.5));
        disk99.push(disk(folder, 0.99));
        sink.check_order();
    }
    let (d50, d99) = (median(&mut disk50), median(&mut disk99));
    println!(
        "  device to central p50 {:.2} ms (floor {:.2}), p99 {:.2} ms (floor {:.2})",
        median(&mut p50),
        2.0 + d50,
        median(&mut p99),
        10.0 + 2.0 * d99
    );
    println!(
        "  {:.1} % of a core, {:.0} bytes written an event; disk p50 {d50:.2} ms, p99 {d99:.2} ms",
        median(&mut cpu),
        median(&mut written)
    );
}

fn outage(plan: &Plan, folder: &std::path::Path, pki: &common::pki::Pki) {
    println!("\nafter an outage of {} s at 1,000 events a second", plan.outage_seconds);
    for (kind, how) in [(common::proxy::Cut::Refuse, "refusing"), (common::proxy::Cut::Silent, "silent")] {
        let (mut first, mut gone) = (vec![], vec![]);
        for round in 0..plan.rounds.min(3) {
            let sink = Sink::start(pki, CONNECTIONS);
            let proxy = common::proxy::Proxy::start(sink.address());
            let gateway =
                Gateway::start(&folder.join(format!("outage-{how}-{round}")), proxy.address(), pki, "critical");
            let events = 1000 * (plan.outage_seconds as usize + 4);
            let load = Load::prepare(CONNECTIONS, events, 99 + round as u64);
            sink.await_link();
            let (back, behind) = std::thread::scope(|scope| {
                scope.spawn(|| load.run_at(gateway.address(), 1000.0, &sink.clock()));
                std::thread::sleep(Duration::from_secs(1));
                // A silent link drops every packet, SYNs too; without the right to do that the proxy
                // keeps what it gets.
                let silence = (kind == common::proxy::Cut::Silent)
                    .then(|| common::loss::Loss::of(100, proxy.address().port()))
                    .flatten();
                if silence.is_none() {
                    proxy.cut(kind);
                }
                std::thread::sleep(Duration::from_secs(plan.outage_seconds));
                let before = sink.count();
                proxy.restore();
                drop(silence);
                let back = Instant::now();
                while sink.count() <= before {
                    std::thread::sleep(Duration::from_millis(1));
                    assert!(back.elapsed() < Duration::from_secs(30), "nothing arrives after the outage");
                }
                let first = back.elapsed();
                // The backlog is gone when all that was sent until a moment ago has arrived.
                while sink.count() + 100 < load.sent() {
                    std::thread::sleep(Duration::from_millis(1));
                    assert!(back.elapsed() < Duration::from_secs(60), "the backlog does not drain");
                }
                (first, back.elapsed())
            });
            first.push(back.as_secs_f64());
            gone.push(behind.as_secs_f64());
            sink.await_events(events as u64, Duration::from_secs(30));
            sink.check_order();
        }
        println!(
            "  {how} link: first arrival {:.2} s after its return, backlog gone {:.2} s after it, nothing reordered",
            median(&mut first),
            median(&mut gone)
        );
    }
}
