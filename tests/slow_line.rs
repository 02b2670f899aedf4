//! A slow line is not a dead one, and a dead one is left in time.

use crate::common::broker::{Collector, Mosquitto};
use crate::common::client::{Client, Hello};
use crate::common::gateway::{Gateway, scratch_folder, sum};
use crate::common::pki::Pki;
use crate::common::proxy::{Cut, Proxy};
use std::time::{Duration, Instant};

struct Plant {
    _broker: Mosquitto,
    collector: Collector,
    proxy: Proxy,
    gateway: Gateway,
    _folder: tempfile::TempDir,
}

impl Plant {
    /// `more` are lines of the destination.
    fn start(name: &str, more: &str) -> Self {
        let folder = scratch_folder(name);
        let pki = Pki::write(folder.path());
        let broker = Mosquitto::start(folder.path(), &pki);
        let collector = Collector::start(broker.plain, "test/plant/machine.state/#");
        let proxy = Proxy::start(broker.tls);
        let gateway = Gateway::start(name, &format!("{}{more}", broker.destination(&pki, proxy.address().port())));
        let plant = Self { _broker: broker, collector, proxy, gateway, _folder: folder };
        plant.gateway.await_status("every link is up", Duration::from_secs(20), |status| down(status) == 0);
        plant
    }

    fn publish(&self, id: u16, bytes: usize) {
        let (mut client, _) = Client::connect(self.gateway.address, &Hello::default());
        let note = "x".repeat(bytes);
        let payload = format!(r#"{{"msg_id":"01-{id:08}","seq":{id},"note":"{note}"}}"#);
        client.publish(true, id, "plant/line1/m01/state", payload.as_bytes());
    }

    fn await_delivered(&self, patience: Duration) {
        self.gateway.await_status("everything is delivered", patience, |status| sum(status, "queued") == 0);
    }
}

fn down(status: &serde_json::Value) -> usize {
    let links = status["links"].as_array().map(Vec::as_slice).unwrap_or_default();
    links.iter().filter(|link| link["is_up"] == false).count()
}

/// The session takes no silence for death while the line carries: 200 kB over 8 KiB/s take 25 s, in which nothing else
/// passes. A proxy that has taken them all at once hides how far they are.
#[test]
fn an_event_that_takes_long_arrives_on_the_first_attempt() {
    let plant = Plant::start("large", "");
    plant.publish(1, 600);
    plant.await_delivered(Duration::from_secs(20));
    let (connections, carried) = (plant.proxy.connections(), plant.proxy.carried());
    plant.proxy.slow_down(8 << 10);
    let start = Instant::now();
    plant.publish(2, 200_000);
    plant.await_delivered(Duration::from_secs(60));
    println!("200 kB in {:.1} s", start.elapsed().as_secs_f64());
    assert!(start.elapsed() > Duration::from_secs(20), "the line was not slow");
    assert_eq!(plant.proxy.connections(), connections, "{}", plant.gateway.log());
    let carried = plant.proxy.carried() - carried;
    assert!(carried < 210_000, "{carried} bytes for one event of 200 kB");
    assert_eq!(plant.collector.arrived().len(), 2);
}

#[test]
fn a_line_that_is_cut_is_left_within_fifteen_seconds() {
    let plant = Plant::start("cut", "");
    plant.publish(1, 600);
    plant.await_delivered(Duration::from_secs(20));
    plant.proxy.cut(Cut::Silent);
    plant.publish(2, 600);
    let start = Instant::now();
    plant.gateway.await_status("the link is left", Duration::from_secs(25), |status| down(status) > 0);
    let seconds = start.elapsed().as_secs_f64();
    println!("left after {seconds:.1} s");
    assert!((10.0..18.0).contains(&seconds), "left after {seconds:.1} s");
    plant.proxy.restore();
    plant.await_delivered(Duration::from_secs(30));
}
