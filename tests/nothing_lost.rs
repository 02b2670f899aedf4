//! Nothing that was acknowledged is lost: not by kill -9 of the gateway, not by the death of the
//! centre, not by a link that hangs, delays or breaks.

use crate::common::broker::{Collector, Mosquitto, check_arrivals};
use crate::common::devices::Devices;
use crate::common::gateway::{Gateway, scratch_folder, sum};
use crate::common::loss::Loss;
use crate::common::pki::Pki;
use crate::common::proxy::{Cut, Proxy};
use crate::common::random::Random;
use std::time::{Duration, Instant};

struct Plant {
    broker: Mosquitto,
    collector: Collector,
    proxy: Proxy,
    gateway: Gateway,
    _folder: tempfile::TempDir,
}

impl Plant {
    fn start(name: &str) -> Self {
        Self::start_with(name, "")
    }

    /// `more` are lines of the destination.
    fn start_with(name: &str, more: &str) -> Self {
        let folder = scratch_folder(name);
        let pki = Pki::write(folder.path());
        let broker = Mosquitto::start(folder.path(), &pki);
        let collector = Collector::start(broker.plain, "test/plant/machine.state/#");
        let proxy = Proxy::start(broker.tls);
        let gateway = Gateway::start(name, &format!("{}{more}", broker.destination(&pki, proxy.address().port())));
        Self { broker, collector, proxy, gateway, _folder: folder }
    }

    /// Lets everything arrive, and checks it.
    fn settle(self, devices: Devices) {
        let acknowledged = devices.stop();
        assert!(acknowledged.len() > 1000, "only {} were acknowledged; the load did not go on", acknowledged.len());
        let status = self
            .gateway
            .await_status("the backlog drains", Duration::from_secs(60), |status| sum(status, "queued") == 0);
        assert_eq!(status["lanes"][0]["destinations"][0]["dead"], 0, "nothing is a dead letter");
        std::thread::sleep(Duration::from_millis(300));
        check_arrivals(&self.collector.arrived(), &acknowledged);
    }
}

#[test]
fn an_acknowledged_event_survives_twenty_kills() {
    let mut random = Random::seeded();
    let mut plant = Plant::start("kills");
    let devices = Devices::start(plant.gateway.address, 50, 20, Duration::ZERO);
    for round in 0..20 {
        let before = devices.count();
        let start = Instant::now();
        while devices.count() < before + 50 {
            assert!(start.elapsed() < Duration::from_secs(20), "nothing is acknowledged after kill {round}");
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(random.below(250)));
        plant.gateway.kill();
        plant.gateway.run();
    }
    plant.settle(devices);
}

#[test]
fn the_death_of_the_centre_loses_nothing() {
    let mut random = Random::seeded();
    let mut plant = Plant::start("centre");
    let devices = Devices::start(plant.gateway.address, 20, 10, Duration::from_millis(1));
    for _ in 0..5 {
        std::thread::sleep(Duration::from_millis(200 + random.below(400)));
        plant.broker.kill();
        std::thread::sleep(Duration::from_millis(random.below(300)));
        plant.broker.run();
    }
    plant.settle(devices);
}

#[test]
fn a_link_that_accepts_and_never_answers_loses_nothing() {
    let mut plant = Plant::start("silent");
    let devices = Devices::start(plant.gateway.address, 20, 10, Duration::from_millis(1));
    std::thread::sleep(Duration::from_millis(500));
    plant.proxy.cut(Cut::Silent);
    plant.gateway.await_status("the silence is noticed", Duration::from_secs(30), |status| {
        status["links"].as_array().is_some_and(|links| links.iter().any(|link| link["is_up"] == false))
    });
    // And a kill while it is silent.
    plant.gateway.kill();
    plant.gateway.run();
    std::thread::sleep(Duration::from_millis(500));
    plant.proxy.restore();
    plant.settle(devices);
}

#[test]
fn a_link_with_delay_that_breaks_loses_nothing() {
    let mut random = Random::seeded();
    let plant = Plant::start("delay");
    plant.proxy.delay(Duration::from_millis(40));
    let devices = Devices::start(plant.gateway.address, 20, 10, Duration::from_millis(1));
    for _ in 0..8 {
        std::thread::sleep(Duration::from_millis(150 + random.below(400)));
        plant.proxy.cut(Cut::Refuse);
        std::thread::sleep(Duration::from_millis(random.below(150)));
        plant.proxy.restore();
    }
    plant.proxy.delay(Duration::ZERO);
    plant.settle(devices);
}

#[test]
fn a_link_of_mqtt_3_1_1_loses_nothing() {
    let mut random = Random::seeded();
    let mut plant = Plant::start_with("v3", "protocol = \"3.1.1\"\n");
    let devices = Devices::start(plant.gateway.address, 20, 10, Duration::from_millis(1));
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(200 + random.below(300)));
        plant.broker.kill();
        std::thread::sleep(Duration::from_millis(random.below(200)));
        plant.broker.run();
        plant.proxy.cut(Cut::Refuse);
        std::thread::sleep(Duration::from_millis(random.below(150)));
        plant.proxy.restore();
    }
    plant.settle(devices);
}

#[test]
fn a_link_that_drops_packets_loses_nothing() {
    let plant = Plant::start("loss");
    let Some(loss) = Loss::of(8, plant.proxy.address().port()) else { return };
    plant.proxy.delay(Duration::from_millis(10));
    let devices = Devices::start(plant.gateway.address, 20, 10, Duration::from_millis(1));
    std::thread::sleep(Duration::from_secs(4));
    // All of them for a while: nobody answers, not even to a SYN.
    drop(loss);
    let silence = Loss::of(100, plant.proxy.address().port());
    std::thread::sleep(Duration::from_secs(8));
    drop(silence);
    plant.proxy.delay(Duration::ZERO);
    plant.settle(devices);
}
