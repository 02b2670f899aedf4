//! Many devices at once, and one that floods.

use crate::common::client::{Client, Hello, publish};
use crate::common::pki::Pki;
use crate::measure::{Process, Times, median};
use crate::peers::{Gateway, Peer};
use crate::sink::Sink;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const IDLE: usize = 5000;
const BUSY: usize = 500;
const THREADS: usize = 4;
/// Devices that publish a hundred times a second while another floods.
const CALM: usize = 10;

fn event(device: usize, sequence: usize) -> Vec<u8> {
    let payload = format!(
        r#"{{"msg_id":"{device:03}-{sequence:08}","ts":1790000000.5,"state":"running","temperature":1.5,"pressure":2.5,"count":7,"order":"WH/MO/00001","trace":"{:0>100}"}}"#,
        sequence * 7919
    );
    publish(
        false,
        1,
        (sequence % 65_535 + 1) as u16,
        &format!("plant/line1/m{device:03}/state"),
        &[],
        payload.as_bytes(),
    )
}

fn connect(to: SocketAddr, name: &str) -> Client {
    Client::connect(to, &Hello { is_v5: false, client: name, ..Hello::default() }).0
}

/// 5,000 idle and 500 busy connections: what memory they take.
pub fn crowd(seconds: u64, folder: &Path, pki: &Pki) {
    let sink = Sink::start(pki, 0);
    let more = "connects_per_second_max = 100000\n";
    let gateway = Gateway::start_with(&folder.join("crowd"), sink.address(), pki, "critical", more);
    sink.await_link();
    let idle: Vec<Client> = (0..IDLE).map(|index| connect(gateway.address(), &format!("idle-{index}"))).collect();
    let alone = Process::read(gateway.pid());
    let events = AtomicU64::new(0);
    let end = Instant::now() + Duration::from_secs(seconds);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (events, address) = (&events, gateway.address());
            scope.spawn(move || {
                let devices = (thread..BUSY).step_by(THREADS);
                let mut clients: Vec<_> =
                    devices.map(|device| (device, connect(address, &format!("busy-{device}")))).collect();
                for sequence in 0.. {
                    for (device, client) in &mut clients {
                        client.send(&event(*device, sequence));
                    }
                    for (_, client) in &mut clients {
                        assert_eq!(client.receive().expect("a PUBACK")[0], 0x40);
                    }
                    events.fetch_add(clients.len() as u64, Ordering::Relaxed);
                    if Instant::now() > end {
                        return;
                    }
                }
            });
        }
    });
    let after = Process::read(gateway.pid());
    println!(
        "\n{IDLE} idle and {BUSY} busy connections: RSS at most {:.1} MB (limit 100); {:.1} MB with the idle alone; {:.0} events a second",
        after.rss_peak_mb,
        alone.rss_mb,
        events.load(Ordering::Relaxed) as f64 / seconds as f64
    );
    drop(idle);
}

/// Times from publish to PUBACK of devices that publish now and then, in milliseconds.
fn calm(to: SocketAddr, seconds: u64, from: usize) -> Times {
    let times = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..CALM)
            .map(|device| {
                scope.spawn(move || {
                    let mut client = connect(to, &format!("calm-{device}"));
                    let mut times = Vec::new();
                    for sequence in 0..seconds as usize * 100 {
                        let start = Instant::now();
                        client.send(&event(device, from + sequence));
                        assert_eq!(client.receive().expect("a PUBACK")[0], 0x40);
                        times.push(start.elapsed().as_secs_f64() * 1e3);
                        std::thread::sleep(Duration::from_millis(10).saturating_sub(start.elapsed()));
                    }
                    times
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("a device lives")).collect()
    });
    Times::new(times)
}

/// Publishes as fast as the socket takes it, and reads what comes back.
fn flood(to: SocketAddr, is_over: &AtomicBool, count: &AtomicU64) {
    let client = connect(to, "flood");
    let mut reader = client.stream.try_clone().expect("a second handle");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = vec![0; 64 << 10];
            while let Ok(read) = reader.read(&mut buffer) {
                if read == 0 || is_over.load(Ordering::Relaxed) {
                    return;
                }
                count.fetch_add(read as u64 / 4, Ordering::Relaxed);
            }
        });
        let mut writer = client.stream.try_clone().expect("a third handle");
        let mut sequence = 0;
        while !is_over.load(Ordering::Relaxed) {
            let mut bytes = Vec::new();
            for _ in 0..200 {
                bytes.extend(event(999, sequence));
                sequence += 1;
            }
            if writer.write_all(&bytes).is_err() {
                return;
            }
        }
        let _ = writer.shutdown(std::net::Shutdown::Both);
    });
}

/// One device floods: what the others notice of it.
pub fn flooded(rounds: usize, seconds: u64, folder: &Path, pki: &Pki) {
    let (mut before, mut during, mut rates) = (vec![], vec![], vec![]);
    for round in 0..rounds {
        let sink = Sink::start(pki, 0);
        let gateway = Gateway::start(&folder.join(format!("flood-{round}")), sink.address(), pki, "critical");
        sink.await_link();
        before.push(calm(gateway.address(), seconds, 0).quantile(0.99));
        let (is_over, count) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| flood(gateway.address(), &is_over, &count));
            std::thread::sleep(Duration::from_millis(500));
            during.push(calm(gateway.address(), seconds, 1_000_000).quantile(0.99));
            is_over.store(true, Ordering::Relaxed);
        });
        rates.push(count.load(Ordering::Relaxed) as f64 / seconds as f64);
    }
    let (calm, flooded) = (median(&mut before), median(&mut during));
    println!(
        "\none device floods with {:.0} events a second: p99 to PUBACK of {CALM} others {flooded:.2} ms, without it {calm:.2} ms, ratio {:.2} (limit 2)",
        median(&mut rates),
        flooded / calm
    );
}
