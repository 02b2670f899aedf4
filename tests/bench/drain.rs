//! The drain of a backlog, what others notice of it, and what quiet times cost.

use crate::CONNECTIONS;
use crate::common::client::{Client, Hello};
use crate::common::pki::Pki;
use crate::common::proxy::{Cut, Proxy};
use crate::load::Load;
use crate::measure::{Process, Times, median};
use crate::peers::{Bridge, Gateway, Peer};
use crate::sink::Sink;
use std::path::Path;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(180);
/// Without the linger of bulk, which would make the filling take minutes; the last batch, which does not fill, waits little.
const BATCHES: &str = "[lane.bulk]\nlinger = \"0s\"\nbatch = { events = 500, age = \"20ms\" }\n";

/// How fast a backlog leaves: one publish an event, in batches, and from the bridge.
pub fn drain(rounds: usize, events: usize, folder: &Path, pki: &Pki) {
    let mut rates = [vec![], vec![], vec![]];
    for round in 0..rounds {
        for (index, rates) in rates.iter_mut().enumerate() {
            let sink = Sink::start(pki, CONNECTIONS);
            let proxy = Proxy::start(sink.address());
            let place = folder.join(format!("drain-{round}-{index}"));
            let peer: Box<dyn Peer> = match index {
                0 => Box::new(Gateway::start(&place, proxy.address(), pki, "critical")),
                1 => Box::new(Gateway::start_in(&place, proxy.address(), pki, "bulk", "", BATCHES)),
                _ => Box::new(Bridge::start_keeping(&place, proxy.address(), pki)),
            };
            sink.await_link();
            proxy.cut(Cut::Refuse);
            let load = Load::prepare(CONNECTIONS, events, 500 + round as u64);
            std::thread::sleep(Duration::from_millis(500));
            load.run(peer.address(), 20);
            // The bridge overtakes itself with so many in flight: of its events all count, in any order.
            let is_bridge = index == 2;
            let count = || if is_bridge { sink.count_all() } else { sink.count() };
            let before = count();
            proxy.restore();
            let start = Instant::now();
            while count() == before {
                assert!(start.elapsed() < PATIENCE, "nothing arrives from peer {index}");
                std::thread::sleep(Duration::from_micros(200));
            }
            let first = Instant::now();
            while count() < events as u64 {
                assert!(start.elapsed() < PATIENCE, "{} of {events} events of peer {index} arrived", count());
                std::thread::sleep(Duration::from_micros(500));
            }
            rates.push((events as u64 - before) as f64 / first.elapsed().as_secs_f64());
            if !is_bridge {
                sink.check_order();
            }
        }
    }
    let [plain, batched, bridge] = rates.each_mut().map(|rates| median(rates));
    println!("\ndrain of a backlog of {events} events, from its first arrival to its last");
    println!("  one publish an event {plain:.0} a second, in batches {batched:.0}, the bridge {bridge:.0}");
    println!("  ratio {:.2} and {:.2} (floors 1.5 and 3)", plain / bridge, batched / bridge);
}

/// Publishes some 200 events a second to a lane of its own topic until `is_over`; times from sending to arrival.
/// They count from the first arrival on: a link that comes back after an outage takes its time.
fn live(gateway: &Gateway, sink: &Sink, topic: &str, device: u32, is_over: impl Fn(usize) -> bool) -> Times {
    let name = format!("live-{device}");
    let (mut client, _) = Client::connect(gateway.address(), &Hello { client: &name, ..Hello::default() });
    let mut sent = Vec::new();
    while !is_over(sent.len()) {
        let sequence = sent.len();
        let payload = format!(
            r#"{{"msg_id":"{device:02}-{sequence:08}","ts":1790000000,"state":"idle","temperature":1.5,"pressure":2.5,"count":{sequence},"order":"WH/MO/00001","trace":"x"}}"#
        );
        sent.push(sink.clock().elapsed().as_nanos() as u64);
        client.publish(
            true,
            (sequence % 65_000 + 1) as u16,
            &format!("{topic}/line1/m{device}/state"),
            payload.as_bytes(),
        );
        std::thread::sleep(Duration::from_millis(5));
        while sequence == 0 && sink.count_of(device as usize..device as usize + 1) == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    std::thread::sleep(Duration::from_millis(500));
    let arrived = sink.arrivals_of(device);
    assert!(arrived.len() >= sent.len(), "{} of {} live events arrived", arrived.len(), sent.len());
    let counted = arrived.iter().filter(|(sequence, _)| *sequence > 0);
    Times::new(counted.map(|(sequence, at)| (*at as f64 - sent[*sequence as usize] as f64) / 1e6).collect())
}

/// Both lanes at once: critical, standard.
fn lives(gateway: &Gateway, sink: &Sink, devices: (u32, u32), is_over: impl Fn(usize) -> bool + Sync) -> [Times; 2] {
    std::thread::scope(|scope| {
        let standard = scope.spawn(|| live(gateway, sink, "count", devices.1, &is_over));
        [live(gateway, sink, "live", devices.0, &is_over), standard.join().expect("it lives")]
    })
}

/// What critical and standard events notice of a bulk backlog that drains beside them.
pub fn metadata(rounds: usize, events: usize, folder: &Path, pki: &Pki) {
    let (mut calm, mut draining) = ([vec![], vec![]], [vec![], vec![]]);
    let mut seconds = Vec::new();
    for round in 0..rounds {
        let sink = Sink::start(pki, 99);
        let proxy = Proxy::start(sink.address());
        let gateway = Gateway::start_in(
            &folder.join(format!("beside-{round}")),
            proxy.address(),
            pki,
            "bulk",
            "",
            "[lane.bulk]\nlinger = \"0s\"\n",
        );
        sink.await_link();
        let before = lives(&gateway, &sink, (90, 92), |sent| sent >= 600);
        proxy.cut(Cut::Refuse);
        std::thread::sleep(Duration::from_millis(300));
        Load::prepare(CONNECTIONS, events, 900 + round as u64).run(gateway.address(), 20);
        let count = sink.count();
        proxy.restore();
        let start = Instant::now();
        while sink.count() == count {
            assert!(start.elapsed() < PATIENCE, "nothing arrives");
            std::thread::sleep(Duration::from_millis(1));
        }
        let is_drained = || sink.count_of(0..CONNECTIONS) >= events as u64;
        let during = lives(&gateway, &sink, (91, 93), |sent| sent >= 600 || is_drained());
        while !is_drained() {
            assert!(start.elapsed() < PATIENCE, "bulk does not finish");
            std::thread::sleep(Duration::from_millis(1));
        }
        seconds.push(start.elapsed().as_secs_f64());
        sink.check_order();
        for lane in 0..2 {
            calm[lane].push(before[lane].quantile(0.99));
            draining[lane].push(during[lane].quantile(0.99));
        }
    }
    println!(
        "\nbeside a bulk backlog of {events} events that drains in {:.1} s: p99 from device to central",
        median(&mut seconds)
    );
    for (lane, floor) in [(0, "critical, floor 2"), (1, "standard, keeps moving")] {
        let (calm, draining) = (median(&mut calm[lane]), median(&mut draining[lane]));
        println!(
            "  {calm:.2} ms without a backlog, {draining:.2} ms while it drains: {:.2} times ({floor})",
            draining / calm
        );
    }
}

/// What the standard lane costs at 1,000 events a second, and at one.
pub fn quiet(seconds: u64, folder: &Path, pki: &Pki) {
    println!("\nstandard lane, quiet times");
    for rate in [1000, 1] {
        let sink = Sink::start(pki, CONNECTIONS);
        let gateway = Gateway::start(&folder.join(format!("quiet-{rate}")), sink.address(), pki, "standard");
        sink.await_link();
        // The first seconds make files and reserve numbers: they are no quiet time.
        let warm_up = 3 * rate as usize;
        let events = (rate * seconds) as usize;
        let load = Load::prepare(if rate == 1 { 1 } else { CONNECTIONS }, warm_up + events, 3 + rate);
        let before = std::thread::scope(|scope| {
            scope.spawn(|| load.run_at(gateway.address(), rate as f64, &sink.clock()));
            while sink.count() < warm_up as u64 {
                std::thread::sleep(Duration::from_millis(5));
            }
            Process::read(gateway.pid())
        });
        sink.await_events((warm_up + events) as u64, Duration::from_secs(20));
        let after = Process::read(gateway.pid());
        println!(
            "  {rate} a second: {:.1} % of a core, {:.0} bytes written an event",
            (after.cpu - before.cpu) / seconds as f64 * 100.0,
            (after.written - before.written) as f64 / events as f64
        );
    }
}

/// A start with 10 GB behind it, after SIGKILL: with a warm cache, and with a cold one.
pub fn backlog(folder: &Path, pki: &Pki) {
    const BYTES: u64 = 10_000_000_000;
    const PAYLOAD: usize = 200_000;
    let place = folder.join("backlog");
    let rest = "[lane.bulk]\nbudget = \"14GB\"\nlinger = \"5ms\"\n";
    let start = |address| Gateway::start_in(&place, address, pki, "bulk", "", rest);
    let nobody = crate::common::free_address();
    let gateway = start(nobody);
    let (mut client, _) = Client::connect(gateway.address(), &Hello { client: "filler", ..Hello::default() });
    let mut random = 1u64;
    let mut number = 0u32;
    let mut written = 0;
    println!("\nfilling the journal with 10 GB");
    while written < BYTES {
        for _ in 0..20 {
            let noise: String = (0..PAYLOAD)
                .map(|_| {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    char::from(
                        b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"[(random & 63) as usize],
                    )
                })
                .collect();
            let payload = format!(
                r#"{{"msg_id":"00-{number:08}","ts":1790000000,"state":"idle","temperature":1.5,"pressure":2.5,"count":1,"order":"WH/MO/00001","trace":"{noise}"}}"#
            );
            let id = (number % 60_000 + 1) as u16;
            client.send(&crate::common::client::publish(true, 1, id, "plant/line1/m00/state", &[], payload.as_bytes()));
            number += 1;
        }
        for _ in 0..20 {
            client.receive().expect("a PUBACK");
        }
        // 150 kB of noise takes pages of the next power of two.
        written += 20 * (256 << 10);
    }
    let rss = Process::read(gateway.pid()).rss_peak_mb;
    println!("  {number} events; RSS at most {rss:.1} MB while they came (floor 64)");
    let mut gateway = Some(gateway);
    for (how, is_cold) in [("warm", false), ("warm", false), ("warm", false), ("cold", true)] {
        if let Some(gateway) = gateway.take() {
            gateway.kill();
        }
        if is_cold {
            // As root; otherwise the figure is another warm one.
            let _ = std::process::Command::new("sync").status();
            let _ = std::fs::write("/proc/sys/vm/drop_caches", "3");
        }
        let began = Instant::now();
        let started = start(nobody);
        let ready = began.elapsed();
        let rss = Process::read(started.pid()).rss_peak_mb;
        println!(
            "  {how} cache: ready {:.2} s after the start that follows a SIGKILL (floor for the warm one 1), RSS {rss:.1} MB",
            ready.as_secs_f64()
        );
        gateway = Some(started);
    }
    if let Some(gateway) = gateway.take() {
        gateway.kill();
    }
    let sink = Sink::start(pki, 1);
    let gateway = start(sink.address());
    let began = Instant::now();
    sink.await_events(u64::from(number), PATIENCE);
    let rss = Process::read(gateway.pid()).rss_peak_mb;
    let elapsed = began.elapsed().as_secs_f64();
    sink.check_order();
    println!(
        "  drained in {elapsed:.0} s, {:.0} MB a second: RSS at most {rss:.1} MB (floor 64), nothing lost or reordered",
        number as f64 * PAYLOAD as f64 / elapsed / 1e6
    );
}
