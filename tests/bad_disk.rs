//! A disk that is full, that cannot be written, that fails; and a clock that jumps, or that nobody has set: nothing
//! is acknowledged that is not on the disk, and all goes on by itself when the cause is gone.

use crate::common::centre::Centre;
use crate::common::client::{Client, Heard, Hello, publish};
use crate::common::gateway::{Gateway, accepted, payload, scratch_folder, sum};
use crate::common::need;
use crate::common::random::Random;
use crate::lanes::{contract, ledger, numbers};
use crate::power_cut_real::Card;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(30);
const TOPIC: &str = "plant/line1/m01/state";

/// What makes calls of the C library fail, and shifts the time of day, as files say.
const FAULTS: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

static long number(const char *variable) {
    const char *name = getenv(variable);
    FILE *file = name ? fopen(name, "r") : NULL;
    long value = 0;
    if (file) {
        if (fscanf(file, "%ld", &value) != 1) value = 0;
        fclose(file);
    }
    return value;
}
#define FAILS(variable) long fault = number(variable); if (fault) { errno = (int)fault; return -1; }

ssize_t pwrite64(int f, const void *b, size_t n, off_t o) {
    FAILS("FAULT_WRITE");
    static ssize_t (*real)(int, const void *, size_t, off_t);
    if (!real) real = dlsym(RTLD_NEXT, "pwrite64");
    return real(f, b, n, o);
}
ssize_t pwrite(int f, const void *b, size_t n, off_t o) { return pwrite64(f, b, n, o); }
int fdatasync(int f) {
    FAILS("FAULT_SYNC");
    static int (*real)(int);
    if (!real) real = dlsym(RTLD_NEXT, "fdatasync");
    return real(f);
}
int fsync(int f) {
    FAILS("FAULT_SYNC");
    static int (*real)(int);
    if (!real) real = dlsym(RTLD_NEXT, "fsync");
    return real(f);
}
int clock_gettime(clockid_t c, struct timespec *t) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int answer = real(c, t);
    if (c == CLOCK_REALTIME && answer == 0) t->tv_sec += number("FAULT_CLOCK");
    return answer;
}
"#;

struct Faulty {
    gateway: Gateway,
    centre: Centre,
    folder: PathBuf,
}

impl Faulty {
    /// A gateway that is not started yet.
    fn prepare(name: &str, more: &str) -> Self {
        let centre = Centre::start();
        let mut gateway = Gateway::prepare(name, &format!("{more}{}", centre.destination("central")));
        let folder = gateway.folder.clone();
        std::fs::write(folder.join("faults.c"), FAULTS).expect("written");
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o", "faults.so", "faults.c", "-ldl"])
            .current_dir(&folder)
            .status()
            .expect("cc");
        assert!(built.success());
        gateway.environment.push(("LD_PRELOAD".into(), folder.join("faults.so").to_string_lossy().into_owned()));
        for name in ["FAULT_WRITE", "FAULT_SYNC", "FAULT_CLOCK"] {
            gateway.environment.push((name.into(), folder.join(name).to_string_lossy().into_owned()));
        }
        Self { gateway, centre, folder }
    }

    fn set(&self, fault: &str, value: i64) {
        let file = self.folder.join(fault);
        std::fs::write(file.with_extension("new"), value.to_string()).expect("written");
        std::fs::rename(file.with_extension("new"), file).expect("renamed");
    }
}

fn send(client: &mut Client, number: u16) {
    client.send(&publish(true, 1, number, TOPIC, &[], payload(1, number.into()).as_bytes()));
}

fn no_answer(client: &mut Client) {
    assert_eq!(client.hear(Duration::from_millis(700)), Heard::Nothing, "nothing is acknowledged");
}

fn answered(client: &mut Client, number: u16) {
    match client.hear(PATIENCE) {
        Heard::Packet(packet) => {
            assert_eq!((packet[0], u16::from_be_bytes([packet[1], packet[2]])), (0x40, number), "{packet:?}");
        }
        other => panic!("no PUBACK of {number}: {other:?}"),
    }
}

/// Acknowledges, fails with `code`, says so, and goes on when that is over.
fn fails_and_recovers(name: &str, fault: &str, code: i64, words: &str) {
    let mut faulty = Faulty::prepare(name, "");
    faulty.gateway.run();
    let (mut client, _) = Client::connect(faulty.gateway.address, &Hello::default());
    for number in 1..=20 {
        client.publish(true, number, TOPIC, payload(1, number.into()).as_bytes());
    }
    faulty.set(fault, code);
    send(&mut client, 21);
    // The commit has failed by the time that the status says so: an answer would be here by now.
    let status = faulty
        .gateway
        .await_status("it says so", PATIENCE, |status| status["problems"].to_string().contains("lane critical"));
    no_answer(&mut client);
    assert!(status["problems"].to_string().contains(words), "{:#}", status["problems"]);
    faulty.set(fault, 0);
    answered(&mut client, 21);
    for number in 22..=40 {
        client.publish(true, number, TOPIC, payload(1, number.into()).as_bytes());
    }
    let status = faulty.gateway.await_status("all is delivered", PATIENCE, |status| sum(status, "queued") == 0);
    assert!(!status["problems"].to_string().contains("lane critical"), "{status:#}");
    faulty.gateway.kill();
    faulty.gateway.run();
    assert_eq!(accepted(&faulty.gateway.status()), 40);
    let mut found = numbers(&faulty.centre);
    found.sort_unstable();
    found.dedup();
    assert_eq!(found, (1..=40).collect::<Vec<_>>());
    ledger(&faulty.gateway, "owed");
}

#[test]
fn an_fsync_that_fails_acknowledges_nothing_and_a_new_file_goes_on() {
    fails_and_recovers("eio", "FAULT_SYNC", 5, "os error 5");
}

#[test]
fn a_disk_that_becomes_read_only_acknowledges_nothing_until_it_is_writable() {
    fails_and_recovers("erofs", "FAULT_WRITE", 30, "os error 30");
}

#[test]
fn a_full_file_system_acknowledges_nothing_until_there_is_room() {
    if !need::root("a file system of its own") {
        return;
    }
    let folder = scratch_folder("full-card");
    let card = Card::make(folder.path());
    let centre = Centre::start();
    let mut gateway =
        Gateway::prepare("full-card", &format!("disk_reserve = \"1MB\"\n{}", centre.destination("central")));
    card.hold_data_of(&gateway);
    gateway.run();
    let (mut client, _) = Client::connect(gateway.address, &Hello::default());
    client.publish(true, 1, TOPIC, payload(1, 1).as_bytes());
    // Somebody else fills the disk to the last block.
    let hog = card.mount.join("hog");
    let filled = Command::new("dd").arg("if=/dev/zero").arg(format!("of={}", hog.display())).arg("bs=1M").output();
    assert!(filled.is_ok_and(|output| !output.status.success()), "dd ends when the disk is full");
    let is_full = |status: &serde_json::Value| status["problems"].to_string().contains("disk_reserve");
    send(&mut client, 2);
    gateway.await_status("it says so", PATIENCE, is_full);
    no_answer(&mut client);
    // A start on a full disk works as well, and acknowledges as little.
    gateway.kill();
    gateway.run();
    let (mut client, _) = Client::connect(gateway.address, &Hello::default());
    send(&mut client, 3);
    gateway.await_status("it says so again", PATIENCE, is_full);
    no_answer(&mut client);
    std::fs::remove_file(&hog).expect("removed");
    answered(&mut client, 3);
    let status = gateway.await_status("all is delivered", PATIENCE, |status| sum(status, "queued") == 0);
    assert!(!status["problems"].to_string().contains("lane critical"), "{status:#}");
    assert!(numbers(&centre).contains(&3));
    gateway.stop();
}

#[test]
fn a_clock_that_jumps_or_was_never_set_loses_nothing_and_lets_nothing_expire() {
    let mut faulty = Faulty::prepare("clock", "");
    let count = contract("count", "standard", "retention = { unsettled = \"1h\" }");
    std::fs::write(faulty.folder.join("contracts/count.toml"), count).expect("written");
    // Nobody takes anything for now.
    let config = std::fs::read_to_string(faulty.gateway.config()).expect("read");
    let there = faulty.centre.address.to_string();
    std::fs::write(faulty.gateway.config(), config.replace(&there, "127.0.0.1:1")).expect("written");
    // In 1970, as a box without a clock is before it has asked somebody.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs() as i64;
    faulty.set("FAULT_CLOCK", 1000 - now);
    faulty.gateway.run();
    std::thread::sleep(Duration::from_millis(1200));
    let (mut client, _) = Client::connect(faulty.gateway.address, &Hello::default());
    let mut id = 0;
    let mut send_ten = |client: &mut Client| {
        for _ in 0..10 {
            id += 1;
            client.publish(true, id, "plant/line1/m01/count", payload(1, id.into()).as_bytes());
        }
    };
    send_ten(&mut client);
    for offset in [0, 86_400, -86_400, 0] {
        faulty.set("FAULT_CLOCK", offset);
        std::thread::sleep(Duration::from_millis(1200));
        send_ten(&mut client);
    }
    let status = faulty.gateway.status();
    // Beside the events of the plant there are those that tell of the settings.
    assert!(accepted(&status) >= 50 && sum(&status, "expired") == 0, "{status:#}");
    faulty.gateway.kill();
    std::fs::write(faulty.gateway.config(), config).expect("written");
    faulty.gateway.run();
    faulty.gateway.await_status("all is delivered", PATIENCE, |status| sum(status, "queued") == 0);
    assert_eq!(numbers(&faulty.centre), (1..=50).collect::<Vec<_>>(), "in order, whatever their times");
    let untrusted = faulty.centre.events().iter().filter(|event| event["clockstatus"] == "untrusted").count();
    assert_eq!(untrusted, 10, "those of 1970 are marked");
    ledger(&faulty.gateway, "owed");
}

/// Much of its own on a small card: what was delivered makes way, and nothing waits for it.
#[test]
fn a_card_full_of_what_was_delivered_takes_new_events_of_every_lane() {
    if !need::root("a file system of its own") {
        return;
    }
    let folder = scratch_folder("small-card");
    let card = Card::make(folder.path());
    // Others leave 30 MB of it, and 10 are to stay free.
    let free = || {
        let disk = rustix::fs::statvfs(&card.mount).expect("a file system");
        disk.f_bavail * disk.f_frsize
    };
    let hog = std::fs::File::create(card.mount.join("hog")).expect("created");
    rustix::fs::fallocate(&hog, rustix::fs::FallocateFlags::empty(), 0, free() - 30_000_000).expect("room");
    let centre = Centre::start();
    let rest = format!("disk_reserve = \"10MB\"\n{}", centre.destination("central"));
    let mut gateway = Gateway::prepare("small-card", &rest);
    card.hold_data_of(&gateway);
    let noise = "name = \"noise\"\nversion = \"1.0.0\"\nowner = \"tests\"\nlane = \"bulk\"\nkey = \"{machine}\"\naccepts = \"bytes\"\nmatch = { source = \"mqtt\", topic = \"noise/{machine}\" }\n";
    std::fs::write(gateway.folder.join("contracts/noise.toml"), noise).expect("written");
    gateway.run();
    let warned = gateway.command(&["check", "CONFIG"]);
    let said = String::from_utf8_lossy(&warned.stdout).into_owned() + &String::from_utf8_lossy(&warned.stderr);
    assert!(said.contains("delivered events are deleted before their retention ends"), "{said}");
    let (mut client, _) = Client::connect(gateway.address, &Hello::default());
    for part in 0..20u16 {
        let numbers = part * 20 + 1..=part * 20 + 20;
        for number in numbers.clone() {
            let noise = Random::with_seed(number.into()).bytes(100_000);
            client.send(&publish(true, 1, number, "noise/m1", &[], &noise));
        }
        numbers.for_each(|number| answered(&mut client, number));
        if part % 5 == 4 {
            client.publish(true, 1000 + part, TOPIC, payload(1, part.into()).as_bytes());
            // However slow this machine is: only 10 MB of the card are ever undelivered.
            gateway.await_status("all is delivered", PATIENCE, |status| sum(status, "queued") == 0);
        }
    }
    assert!(free() > 9_000_000, "disk_reserve is kept: {}", free());
    let status = gateway.await_status("all is delivered", PATIENCE, |status| sum(status, "queued") == 0);
    assert_eq!(accepted(&status), 404, "40 MB went over 20");
    assert!(status["problems"].to_string().contains("disk_reserve"), "{:#}", status["problems"]);
    assert!(!gateway.log().contains("the lane is full"), "{}", gateway.log());
    assert_eq!(sum(&status, "shed"), 0);
    ledger(&gateway, "owed");
    gateway.stop();
}
