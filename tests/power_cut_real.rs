//! The power goes under the real program on a real ext4, as root: every call on the file system
//! fails from that moment, and what was not synced is gone.

use crate::common::broker::{Collector, Mosquitto, check_arrivals_but, missing};
use crate::common::devices::Devices;
use crate::common::gateway::{Gateway, scratch_folder, sum};
use crate::common::need;
use crate::common::pki::Pki;
use crate::common::random::Random;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// An ext4 of its own, whose power can be cut.
///
/// One loop device for all its life: a second one over the same image would have a cache of its
/// own, and what the first still writes when it goes would land in a file system already in use.
pub struct Card {
    device: String,
    pub mount: PathBuf,
}

impl Card {
    pub fn make(folder: &Path) -> Self {
        let image = folder.join("card.img").to_string_lossy().into_owned();
        let mount = folder.join("card");
        std::fs::create_dir(&mount).expect("folder");
        run("truncate", &["-s", "256M", &image]);
        run("mkfs.ext4", &["-q", "-F", &image]);
        let output = Command::new("losetup").args(["--find", "--show", &image]).output().expect("losetup");
        assert!(output.status.success(), "losetup: {}", String::from_utf8_lossy(&output.stderr));
        let card = Self { device: String::from_utf8_lossy(&output.stdout).trim().to_owned(), mount };
        card.insert();
        card
    }

    /// Has a gateway that is not started yet keep its journal here.
    pub fn hold_data_of(&self, gateway: &Gateway) {
        let config = std::fs::read_to_string(gateway.config()).expect("read");
        let data = format!("data_dir = \"{}\"", self.mount.join("data").display());
        std::fs::write(gateway.config(), config.replace("data_dir = \"data\"", &data)).expect("written");
    }

    fn insert(&self) {
        run("mount", &[&self.device, &self.mount.to_string_lossy()]);
    }

    /// Makes ready to cut the power: EXT4_IOC_SHUTDOWN with NOLOGFLUSH, so that nothing that was
    /// not synced reaches the disk. The returned process does it when its input closes.
    fn arm(&self) -> Child {
        let script = "import fcntl, os, struct, sys\n\
                      card = os.open(sys.argv[1], os.O_RDONLY)\n\
                      print('armed', flush=True)\n\
                      sys.stdin.read()\n\
                      fcntl.ioctl(card, 0x8004587D, struct.pack('I', 2))";
        let mut child = Command::new("python3")
            .args(["-c", script, &self.mount.to_string_lossy()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3");
        let mut line = [0; 6];
        child.stdout.as_mut().expect("a pipe").read_exact(&mut line).expect("armed");
        child
    }

    fn remove(&self) {
        let start = Instant::now();
        while !Command::new("umount").arg(&self.mount).output().is_ok_and(|output| output.status.success()) {
            assert!(start.elapsed() < Duration::from_secs(10), "the card cannot be removed");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Card {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.mount).output();
        let _ = Command::new("losetup").args(["-d", &self.device]).output();
    }
}

struct Plant {
    // Dropped in this order: the program before its disk.
    gateway: Gateway,
    card: Card,
    collector: Collector,
    _broker: Mosquitto,
    _folder: tempfile::TempDir,
}

impl Plant {
    fn start(name: &str) -> Self {
        let folder = scratch_folder(name);
        let pki = Pki::write(folder.path());
        let card = Card::make(folder.path());
        let broker = Mosquitto::start(folder.path(), &pki);
        let collector = Collector::start(broker.plain, "test/plant/machine.state/#");
        // The smallest budget: segments of half a megabyte, begun and removed many times a second.
        let rest = format!(
            "disk_reserve = \"1MB\"\n{}\n[lane.critical]\nbudget = \"8388608\"\n",
            broker.destination(&pki, broker.tls.port())
        );
        let gateway = Gateway::prepare(name, &rest);
        card.hold_data_of(&gateway);
        Self { gateway, card, collector, _broker: broker, _folder: folder }
    }

    /// Load, a cut after a while, and power again. Returns which acknowledgements and arrivals came while the
    /// power was going: the file system lets an fsync that is under way return success although
    /// it is shut down, where a real cut would have stopped the program too.
    fn cut_after(&mut self, devices: &Devices, wait: Duration) -> InDoubt {
        let before = devices.count();
        let start = Instant::now();
        while devices.count() < before + 20 {
            assert!(start.elapsed() < Duration::from_secs(20), "nothing is acknowledged: {}", self.gateway.log());
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut trigger = self.card.arm();
        std::thread::sleep(wait);
        let before = (devices.count(), self.collector.count());
        drop(trigger.stdin.take());
        assert!(trigger.wait().expect("python3").success(), "the power cannot be cut");
        self.gateway.kill();
        std::thread::sleep(Duration::from_millis(20));
        let in_doubt =
            InDoubt { acknowledgements: before.0..devices.count(), arrivals: before.1..self.collector.count() };
        self.card.remove();
        self.card.insert();
        in_doubt
    }
}

struct InDoubt {
    acknowledgements: Range<usize>,
    arrivals: Range<usize>,
}

#[test]
fn the_power_may_go_under_the_real_program() {
    if !need::root("cutting the power of a file system") {
        return;
    }
    let mut plant = Plant::start("card");
    plant.gateway.run();
    let devices = Devices::start(plant.gateway.address, 50, 20, Duration::ZERO);
    let (mut random, mut in_doubt) = (Random::seeded(), Vec::new());
    for _ in 0..20 {
        in_doubt.push(plant.cut_after(&devices, Duration::from_micros(random.below(300_000))));
        plant.gateway.run();
        let status = plant.gateway.status();
        assert_eq!(status["set_aside"].as_array().map(Vec::len), Some(0), "nothing is taken for damaged");
    }
    // A slow machine fills less of the lane between the cuts.
    let first_segment = || {
        let segments = std::fs::read_dir(plant.card.mount.join("data/journal/critical")).expect("segments");
        segments.map(|entry| entry.expect("entry").file_name()).min().expect("a segment")
    };
    let start = Instant::now();
    while first_segment() == "00000000000000000001.redb" {
        assert!(start.elapsed() < Duration::from_secs(60), "segments are begun, and removed once they are delivered");
        std::thread::sleep(Duration::from_millis(50));
    }
    let mut acknowledged = devices.stop();
    let (in_doubt, arrivals): (Vec<_>, Vec<_>) =
        in_doubt.into_iter().map(|one| (one.acknowledgements, one.arrivals)).unzip();
    let doubtful: usize = in_doubt.iter().map(Range::len).sum();
    assert!(doubtful < acknowledged.len() / 10, "{doubtful} of {} acknowledgements are in doubt", acknowledged.len());
    in_doubt.into_iter().rev().for_each(|range| drop(acknowledged.drain(range)));
    plant.gateway.await_status("the backlog drains", Duration::from_secs(60), |status| sum(status, "queued") == 0);
    std::thread::sleep(Duration::from_millis(300));
    check_arrivals_but(&plant.collector.arrived(), &arrivals, &acknowledged);
}

/// The test above can fail: where every fsync says yes and does nothing, events are lost.
#[test]
fn without_fsync_the_power_cut_is_noticed() {
    if !need::root("cutting the power of a file system") {
        return;
    }
    let mut plant = Plant::start("liar");
    let source = plant.gateway.folder.join("liar.c");
    let library = plant.gateway.folder.join("liar.so");
    std::fs::write(&source, "int fsync(int f) { return 0; }\nint fdatasync(int f) { return 0; }\n").expect("written");
    run("cc", &["-shared", "-fPIC", "-o", &library.to_string_lossy(), &source.to_string_lossy()]);
    plant.gateway.environment.push(("LD_PRELOAD".into(), library.to_string_lossy().into_owned()));
    plant.gateway.run();
    let devices = Devices::start(plant.gateway.address, 50, 20, Duration::ZERO);
    plant.cut_after(&devices, Duration::from_millis(500));
    plant.gateway.run();
    std::thread::sleep(Duration::from_millis(300));
    let acknowledged = devices.stop();
    plant.gateway.await_status("the backlog drains", Duration::from_secs(60), |status| sum(status, "queued") == 0);
    std::thread::sleep(Duration::from_millis(300));
    let lost = missing(&plant.collector.arrived(), &acknowledged);
    // What central had already received is safe there; at full load some is always on its way.
    println!("{} of {} acknowledged events were lost", lost.len(), acknowledged.len());
    let has_begun_anew =
        plant.collector.arrived().len() < acknowledged.len() || has_repeated_sequence(&plant.collector.arrived());
    assert!(!lost.is_empty() || has_begun_anew, "a disk that lies was not found out");
}

fn has_repeated_sequence(arrived: &[crate::common::broker::Arrived]) -> bool {
    let mut known = std::collections::HashMap::new();
    arrived.iter().map(|event| event.event()).any(|event| {
        let identity = (event["source"].to_string(), event["id"].to_string());
        let before = known.insert(event["sequence"].to_string(), identity.clone());
        before.is_some_and(|before| before != identity)
    })
}
