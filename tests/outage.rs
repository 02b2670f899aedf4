//! A long outage, kills in the middle and at the start of the drain: not a word is lost.

use crate::common::broker::{Collector, Mosquitto};
use crate::common::devices::Devices;
use crate::common::gateway::{Gateway, sum};
use crate::common::pki::Pki;
use crate::common::proxy::{Cut, Proxy};
use crate::lanes::ledger;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const DEVICES: usize = 40;

/// What arrived of each device: how many in a row from the first on, repeats, and whether one came too early.
#[derive(Default)]
struct Tally {
    next: BTreeMap<usize, usize>,
    repeats: u64,
    is_reordered: bool,
}

impl Tally {
    fn note(&mut self, payload: &[u8]) {
        let event: serde_json::Value = serde_json::from_slice(payload).expect("a CloudEvent");
        let Some((device, sequence)) = event["id"].as_str().and_then(|id| id.split_once('-')) else { return };
        let (Ok(device), Ok(sequence)) = (device.parse::<usize>(), sequence.parse::<usize>()) else { return };
        let next = self.next.entry(device).or_default();
        match sequence.cmp(next) {
            std::cmp::Ordering::Equal => *next += 1,
            std::cmp::Ordering::Less => self.repeats += 1,
            std::cmp::Ordering::Greater => self.is_reordered = true,
        }
    }

    fn count(&self) -> usize {
        self.next.values().sum()
    }
}

/// `FOREBAY_EVENTS` events; 2,000,000 with `tests/run --long`.
#[test]
fn a_long_outage_with_kills_loses_nothing() {
    let events: usize = std::env::var("FOREBAY_EVENTS").ok().and_then(|text| text.parse().ok()).unwrap_or(150_000);
    let folder = crate::common::gateway::scratch_folder("outage");
    let pki = Pki::write(folder.path());
    let broker = Mosquitto::start(folder.path(), &pki);
    let proxy = Proxy::start(broker.tls);
    let mut gateway = Gateway::start("outage", &broker.destination(&pki, proxy.address().port()));
    let tally = Arc::new(Mutex::new(Tally::default()));
    let theirs = Arc::clone(&tally);
    let collector = Collector::each(broker.plain, "test/plant/machine.state/#", move |found| {
        let mut tally = theirs.lock().expect("lock");
        found.iter().for_each(|one| tally.note(&one.payload));
    });
    let devices = Devices::start(gateway.address, DEVICES, 50, Duration::ZERO);
    std::thread::sleep(Duration::from_secs(1));
    proxy.cut(Cut::Refuse);
    let begun = Instant::now();
    let mut is_killed = false;
    while devices.count() < events {
        if !is_killed && devices.count() > events / 2 {
            gateway.kill();
            gateway.run();
            is_killed = true;
        }
        assert!(begun.elapsed() < Duration::from_secs(170), "{} of {events} events in time", devices.count());
        std::thread::sleep(Duration::from_millis(5));
    }
    let acknowledged = devices.stop();
    proxy.restore();
    std::thread::sleep(Duration::from_millis(600));
    gateway.kill();
    gateway.run();
    gateway.await_status("nothing is queued", Duration::from_secs(170), |status| sum(status, "queued") == 0);
    let start = Instant::now();
    while tally.lock().expect("lock").count() < acknowledged.len() {
        let count = tally.lock().expect("lock").count();
        assert!(start.elapsed() < Duration::from_secs(60), "{count} of {} arrived", acknowledged.len());
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(collector);
    let tally = tally.lock().expect("lock");
    assert!(!tally.is_reordered, "events of one device came in another order");
    let mut most: BTreeMap<usize, usize> = BTreeMap::new();
    for (device, sequence) in &acknowledged {
        let known = most.entry(*device).or_default();
        *known = (*known).max(*sequence);
    }
    for (device, sequence) in most {
        assert!(tally.next.get(&device).is_some_and(|next| *next > sequence), "device {device}: {sequence} is missing");
    }
    assert_eq!(ledger(&gateway, "owed"), ledger(&gateway, "delivered"));
    println!("{} events, {} repeats, in {:.0} s", acknowledged.len(), tally.repeats, begun.elapsed().as_secs_f64());
}
