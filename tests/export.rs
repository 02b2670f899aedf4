//! The journal as a whole: taken out, recounted, copied, and saved from a file that is broken.

use crate::common::broker::{Collector, Mosquitto};
use crate::common::client::{Client, Hello};
use crate::common::devices::Devices;
use crate::common::fault_disk::{FaultDisk, Unsynced};
use crate::common::gateway::{Gateway, accepted, payload, scratch_folder, sum};
use crate::common::pki::Pki;
use crate::common::program::said;
use crate::power_cut::{append, everything, open, publication};
use forebay::journal::disk::write_whole;
use forebay::journal::{Disk, RealDisk};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const COUNTS: &str = r#"
name = "machine.count"
version = "2.0.0"
owner = "tests"
lane = "standard"
match = { source = "mqtt", topic = "plant/{line}/{machine}/count" }
key = "{machine}"
id = "/msg_id"
"#;

#[track_caller]
fn good(output: Output) -> String {
    assert!(output.status.success(), "{}", said(&output));
    String::from_utf8(output.stdout).expect("text")
}

#[track_caller]
fn assert_refused(output: &Output, code: i32, words: &[&str]) {
    let text = said(output);
    assert_eq!(output.status.code(), Some(code), "{text}");
    for word in words {
        assert!(text.contains(word), "\"{word}\" is missing in: {text}");
    }
}

/// A gateway with two streams, to a broker that nobody runs unless told.
fn prepare(name: &str, destination: &str) -> Gateway {
    let gateway = Gateway::prepare(name, destination);
    std::fs::write(gateway.folder.join("contracts/count.toml"), COUNTS).expect("written");
    gateway
}

const NOWHERE: &str = "\n[[destination]]\nname = \"central\"\nurl = \"mqtt://127.0.0.1:1\"\n";

/// Publishes `numbers` on the topic of a machine, and awaits their acknowledgements.
fn publish(gateway: &Gateway, machine: &str, kind: &str, numbers: std::ops::Range<usize>) {
    let (mut client, _) = Client::connect(gateway.address, &Hello { client: machine, ..Hello::default() });
    for number in numbers {
        let body = match kind {
            "state" => payload(0, number),
            // Line ends between members are as good as spaces.
            _ => format!("{{\"msg_id\":\"c-{number}\",\r\n \"count\":{number}}}"),
        };
        client.publish(true, (number % 60_000 + 1) as u16, &format!("plant/line1/{machine}/{kind}"), body.as_bytes());
    }
}

/// Many events, quickly; returns how many the gateway has then.
fn fill(gateway: &Gateway, count: usize) -> u64 {
    let devices = Devices::start(gateway.address, 8, 50, Duration::ZERO);
    let start = Instant::now();
    while devices.count() < count {
        assert!(start.elapsed() < Duration::from_secs(60), "{} acknowledged", devices.count());
        std::thread::sleep(Duration::from_millis(5));
    }
    devices.stop().len() as u64
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

fn folder_content(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    fn walk(folder: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.file_name().is_some_and(|name| name != "LOCK") {
                found.insert(path.clone(), std::fs::read(&path).expect("read"));
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(folder, &mut found);
    found
}

#[test]
fn an_export_is_what_central_gets_whether_the_gateway_runs_or_not() {
    let folder = scratch_folder("export");
    let pki = Pki::write(folder.path());
    let central = Mosquitto::start(folder.path(), &pki);
    let mut gateway = prepare("export", &central.destination(&pki, central.tls.port()));
    let collector = Collector::start(central.plain, "test/plant/#");
    gateway.run();
    publish(&gateway, "m1", "state", 0..300);
    publish(&gateway, "m2", "count", 0..200);
    gateway.await_status("central has all", Duration::from_secs(30), |status| sum(status, "delivered") == 500);
    // Its status is no event.
    let events = |collector: &Collector| {
        let mut events: Vec<String> = collector
            .arrived()
            .iter()
            .filter(|one| !one.topic.contains("gateway."))
            .map(|one| String::from_utf8_lossy(&one.payload).replace(['\r', '\n'], " "))
            .collect();
        events.sort();
        events
    };
    let start = Instant::now();
    while events(&collector).len() < 500 {
        assert!(start.elapsed() < Duration::from_secs(10), "{} arrived", events(&collector).len());
        std::thread::sleep(Duration::from_millis(20));
    }
    let wanted = events(&collector);
    let sorted = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let output = gateway.command(&["export", "CONFIG"]);
    assert!(said(&output).contains("the gateway is running"), "{}", said(&output));
    let running = good(output);
    assert!(sorted(&running) == wanted, "byte for byte, but for line ends between members");
    // After a crash the files are read as they are, and stay so.
    gateway.kill();
    let journal = gateway.folder.join("data/journal");
    let before = folder_content(&journal);
    let output = gateway.command(&["export", "CONFIG"]);
    assert!(said(&output).contains("no gateway uses"), "{}", said(&output));
    assert!(good(output) == running, "the same from the files");
    let verified = gateway.command(&["verify", "CONFIG"]);
    assert!(said(&verified).contains("the journal balances"), "{}", said(&verified));
    assert_eq!(verified.status.code(), Some(0));
    assert!(folder_content(&journal) == before, "whoever looks changes nothing");

    let batch = gateway.folder.join("events.json");
    good(gateway.command(&["export", "CONFIG", "--format", "batch", "--out", &batch.display().to_string()]));
    let text = std::fs::read_to_string(&batch).expect("written");
    let events: Vec<Value> = serde_json::from_str(&text).expect("one JSON array");
    assert!(events == lines(&running), "the same events");
    assert_eq!(std::fs::metadata(&batch).expect("there").mode() & 0o777, 0o600, "events may be personal");
    assert!(!gateway.folder.join("events.json.partial").exists());
}

#[test]
fn an_export_holds_what_is_asked_for_and_nothing_else() {
    let mut gateway = prepare("select", NOWHERE);
    gateway.run();
    publish(&gateway, "m1", "state", 0..20);
    publish(&gateway, "m2", "count", 0..30);
    std::thread::sleep(Duration::from_millis(1100));
    publish(&gateway, "m3", "state", 20..30);
    let check = |gateway: &Gateway, arguments: &[&str], wanted: usize| {
        let mut all = vec!["export", "CONFIG"];
        all.extend(arguments);
        let mut found = lines(&good(gateway.command(&all)));
        // The gateway's own reports come when they will.
        found.retain(|event| !event["type"].as_str().is_some_and(|kind| kind.contains(".gateway.")));
        assert_eq!(found.len(), wanted, "{arguments:?}");
        found
    };
    let all = check(&gateway, &[], 60);
    let since = all.iter().map(|event| event["recordedtime"].as_str().expect("a time")).max().expect("some").to_owned();
    let newest = check(&gateway, &["--since", &since], 1);
    assert_eq!(newest[0]["recordedtime"], since.as_str());
    for is_running in [true, false] {
        if !is_running {
            gateway.stop();
        }
        check(&gateway, &["--until", &since], 59);
        check(&gateway, &["--since", "1h"], 60);
        check(&gateway, &["--until", "1h"], 0);
        check(&gateway, &["--stream", "machine.count"], 30);
        check(&gateway, &["--stream", "machine.count.v2", "--stream", "machine.state.v1"], 60);
        check(&gateway, &["--stream", "machine.*", "--key", "m3"], 10);
        check(&gateway, &["--key", "m1", "--key", "m2"], 50);
        let placed = check(&gateway, &["--with-offsets", "--key", "m2"], 30);
        assert_eq!((&placed[0]["lane"], &placed[0]["offset"]), (&"standard".into(), &1.into()));
        assert_eq!(placed[29]["event"]["data"]["count"], 29);
        assert_eq!(good(gateway.command(&["export", "CONFIG", "--format", "batch", "--key", "nobody"])), "[]\n");

        let refused = |arguments: &[&str], code: i32, words: &[&str]| {
            let mut all = vec!["export", "CONFIG"];
            all.extend(arguments);
            assert_refused(&gateway.command(&all), code, words);
        };
        refused(
            &["--stream", "machine.stat"],
            1,
            &["no stream \"machine.stat\"", "machine.count.v2, machine.state.v1"],
        );
        refused(&["--stream", "x*"], 1, &["no stream \"x*\"", "machine.state.v1"]);
        refused(&["--since", "yesterday"], 2, &["\"yesterday\" is no time", "2h"]);
        refused(&["--since", "1h", "--until", "2h"], 1, &["is not after --since"]);
        refused(&["--with-offsets", "--format", "batch"], 1, &["--with-offsets"]);
        refused(&["--out", "/nowhere/at/all"], 1, &["/nowhere/at/all"]);
    }
    assert_refused(&gateway.command(&["export", "--journal", "/var/tmp"]), 1, &["/var/tmp is no journal"]);
}

/// While a stopped journal is read, a gateway would change it under the reader.
#[test]
fn no_gateway_starts_while_its_journal_is_read() {
    let mut gateway = prepare("lock", NOWHERE);
    gateway.run();
    let count = fill(&gateway, 20_000);
    gateway.stop();
    // Nobody reads its output, so that it does not end.
    let mut export = Command::new(env!("CARGO_BIN_EXE_forebay"))
        .args(["export", "--config"])
        .arg(gateway.config())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("starts");
    let start = Instant::now();
    let holder = export.id().to_string();
    while std::fs::read_to_string(gateway.folder.join("data/journal/LOCK")).expect("there") != holder {
        assert!(start.elapsed() < Duration::from_secs(10), "the export never takes the lock");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_refused(&gateway.command(&["run", "CONFIG"]), 1, &["is in use by process", &holder]);
    let other = gateway.folder.join("data/journal");
    assert_refused(&gateway.command(&["verify", "--journal", &other.display().to_string()]), 1, &["in use"]);
    crate::common::kill(&mut export);
    gateway.run();
    assert_eq!(accepted(&gateway.status()), count);
}

/// Highest resident memory of a process so far, in bytes.
fn memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find(|line| line.starts_with("VmHWM")).expect("a line");
    line.split_whitespace().nth(1).and_then(|number| number.parse::<u64>().ok()).expect("a number") << 10
}

#[test]
fn export_recount_and_backup_take_little_memory_however_much_there_is() {
    let mut gateway = prepare("memory", NOWHERE);
    gateway.run();
    let count = fill(&gateway, 150_000);
    let before = memory(gateway.pid());
    let out = gateway.folder.join("events.jsonl").display().to_string();
    let start = Instant::now();
    good(gateway.command(&["export", "--out", &out, "CONFIG"]));
    let (bytes, took) = (std::fs::metadata(&out).expect("written").len(), start.elapsed());
    good(gateway.command(&["verify", "CONFIG"]));
    good(gateway.command(&["backup", "--to", &gateway.folder.join("copy").display().to_string(), "CONFIG"]));
    let grown = memory(gateway.pid()) - before;
    println!("{count} events, {bytes} bytes in {took:?}; the gateway's memory grew by {grown} bytes");
    assert!(bytes > 40 << 20, "{bytes} bytes are enough to show");
    assert!(grown < 16 << 20, "by {grown} bytes for {bytes}");
}

/// A file that is half there has its name already: whoever takes it up misses the rest.
#[test]
fn an_export_that_is_cut_short_leaves_the_old_file() {
    let mut gateway = prepare("cut", NOWHERE);
    gateway.run();
    fill(&gateway, 20_000);
    let to = gateway.folder.join("events.jsonl");
    // The export may be done before the gateway is gone, but not every time.
    let cut_short = (0..20).find_map(|_| {
        std::fs::write(&to, "the old one").expect("written");
        let output = export_while_the_gateway_is_killed(&mut gateway);
        if output.status.success() {
            gateway.run();
        }
        (!output.status.success()).then_some(output)
    });
    let output = cut_short.expect("one of twenty exports is cut short");
    assert!(said(&output).contains("ended meanwhile"), "{}", said(&output));
    assert_eq!(std::fs::read_to_string(&to).expect("read"), "the old one");
    assert!(!gateway.folder.join("events.jsonl.partial").exists(), "nothing is left behind");
}

fn export_while_the_gateway_is_killed(gateway: &mut Gateway) -> Output {
    let mut export = Command::new(env!("CARGO_BIN_EXE_forebay"))
        .args(["export", "--out", "events.jsonl", "--config"])
        .arg(gateway.config())
        .current_dir(&gateway.folder)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    let start = Instant::now();
    let partial = gateway.folder.join("events.jsonl.partial");
    while std::fs::metadata(&partial).map_or(0, |found| found.len()) == 0 && !matches!(export.try_wait(), Ok(Some(_))) {
        assert!(start.elapsed() < Duration::from_secs(10), "the export writes nothing");
    }
    crate::common::signal(&export, "STOP");
    gateway.kill();
    crate::common::signal(&export, "CONT");
    export.wait_with_output().expect("ends")
}

/// The segments of a lane, oldest first.
fn segments(gateway: &Gateway, lane: &str) -> Vec<PathBuf> {
    let folder = gateway.folder.join("data/journal").join(lane);
    let mut found: Vec<_> = std::fs::read_dir(folder)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.to_string_lossy().contains(".redb"))
        .collect();
    found.sort();
    found
}

/// A lane of some closed segments, and an active one.
fn filled(name: &str, rounds: usize) -> Gateway {
    let mut gateway = prepare(name, &format!("{NOWHERE}[lane.critical]\nbudget = \"8MiB\"\n"));
    gateway.run();
    let (mut client, _) = Client::connect(gateway.address, &Hello { client: "m1", ..Hello::default() });
    let mut random = 1u64;
    for number in 0..rounds {
        // Notes that do not repeat each other, so that segments fill; short ones are stored plain, long ones compressed.
        let note: String = (0..if number % 2 == 0 { 100 } else { 140 })
            .map(|_| {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                format!("{random:016x}")
            })
            .collect();
        let body = format!(r#"{{"msg_id":"00-{number:08}","seq":{number},"state":"idle","note":"{note}"}}"#);
        client.publish(true, (number % 60_000 + 1) as u16, "plant/line1/m1/state", body.as_bytes());
    }
    drop(client);
    gateway
}

#[test]
fn a_recount_names_a_changed_block_a_missing_file_and_a_wrong_cursor() {
    let mut gateway = filled("recount", 1200);
    let running: Value = serde_json::from_str(&good(gateway.command(&["verify", "--json", "CONFIG"]))).expect("JSON");
    assert_eq!(running["is_good"], true, "{running:#}");
    let lane = running["lanes"].as_array().expect("lanes").iter().find(|lane| lane["lane"] == "critical").expect("it");
    assert_eq!((&lane["events"], &lane["destinations"][0]["counted"]), (&1200.into(), &1200.into()), "{lane:#}");
    gateway.stop();
    good(gateway.command(&["verify", "CONFIG"]));
    let files = segments(&gateway, "critical");
    assert!(files.len() >= 3, "{files:?}");
    let place = find_block(&files[1]);
    let file = std::fs::File::options().read(true).write(true).open(&files[1]).expect("opens");
    let mut byte = [0];
    file.read_exact_at(&mut byte, place + 200).expect("read");
    file.write_all_at(&[byte[0] ^ 1], place + 200).expect("written");
    let before = folder_content(&gateway.folder.join("data/journal"));
    let name = files[1].file_name().expect("a name").to_string_lossy().into_owned();
    assert_refused(&gateway.command(&["verify", "CONFIG"]), 1, &[&name, "checksum", "does not balance"]);
    assert!(folder_content(&gateway.folder.join("data/journal")) == before, "it is not set aside by who only looks");
    // A file that holds nothing of what is wanted is not read: its damage does not show.
    let all = gateway.command(&["export", "CONFIG"]);
    assert!(all.status.success() && said(&all).contains("could not be read"), "an export says what it lacks");
    let oldest: Value =
        serde_json::from_slice(all.stdout.split(|byte| *byte == b'\n').next().expect("a line")).expect("JSON");
    let end = oldest["recordedtime"].as_str().expect("a time");
    for arguments in [["--stream", "machine.count"], ["--until", end]] {
        let output = gateway.command(&[&["export", "CONFIG"], &arguments[..]].concat());
        assert!(output.status.success() && !said(&output).contains("could not be read"), "{}", said(&output));
    }
    file.write_all_at(&byte, place + 200).expect("written");
    good(gateway.command(&["verify", "CONFIG"]));

    let aside = gateway.folder.join("aside.redb");
    std::fs::rename(&files[1], &aside).expect("moved");
    let output = gateway.command(&["verify", "--json", "CONFIG"]);
    assert_refused(&output, 1, &["are not there"]);
    let text = gateway.command(&["verify", "CONFIG"]);
    assert_refused(&text, 1, &["are not there", "its cursor says that 1200 events are queued, more than"]);
    std::fs::rename(&aside, &files[1]).expect("moved back");
    good(gateway.command(&["verify", "CONFIG"]));

    // Damage to `state.redb` is named too.
    let state = gateway.folder.join("data/journal/state.redb");
    let whole = std::fs::read(&state).expect("read");
    let damaged: Vec<u8> = whole
        .iter()
        .enumerate()
        .map(|(at, byte)| if at > 4096 && at % 4096 == 100 { byte ^ 1 } else { *byte })
        .collect();
    std::fs::write(&state, damaged).expect("written");
    assert_refused(&gateway.command(&["verify", "CONFIG"]), 1, &["state.redb", "checksum", "does not balance"]);
    std::fs::write(&state, whole).expect("written");
    let again: Value = serde_json::from_str(&good(gateway.command(&["verify", "--json", "CONFIG"]))).expect("JSON");
    for recount in [&running, &again] {
        assert!(recount["state"]["notes"].as_u64() > Some(0) && recount["state"]["fault"].is_null(), "{recount:#}");
    }
}

/// Where a block begins in a file: a large one, so that a byte behind is its own.
fn find_block(file: &Path) -> u64 {
    let bytes = std::fs::read(file).expect("read");
    let found = bytes
        .windows(4)
        .enumerate()
        .filter(|(_, four)| &four[..2] == b"FB" && four[2] >= 1 && four[2] < 9 && four[3] == 1);
    found.map(|(at, _)| at as u64).nth(2).expect("a block")
}

#[test]
fn a_recount_of_a_running_gateway_under_load_balances() {
    let folder = scratch_folder("recount-load");
    let pki = Pki::write(folder.path());
    let central = Mosquitto::start(folder.path(), &pki);
    let gateway = Gateway::start("recount-load", &central.destination(&pki, central.tls.port()));
    let _collector = Collector::start(central.plain, "test/plant/#");
    let devices = Devices::start(gateway.address, 8, 20, Duration::ZERO);
    for _ in 0..8 {
        let output = gateway.command(&["verify", "--json", "CONFIG"]);
        let recount: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", said(&output)));
        assert_eq!(recount["is_good"], true, "{recount:#}");
    }
    println!("{} events meanwhile", devices.stop().len());
}

#[test]
fn salvage_takes_every_whole_block_of_a_broken_file_and_names_the_rest() {
    let mut gateway = filled("salvage", 1200);
    let all = lines(&good(gateway.command(&["export", "--with-offsets", "--stream", "machine.state", "CONFIG"])));
    gateway.stop();
    let files = segments(&gateway, "critical");
    let first: u64 = files[1].file_stem().expect("a name").to_string_lossy().parse().expect("a number");
    let next: u64 = files[2].file_stem().expect("a name").to_string_lossy().parse().expect("a number");
    let wanted: Vec<_> =
        all.iter().filter(|line| (first..next).contains(&line["offset"].as_u64().expect("a number"))).collect();
    let out = gateway.folder.join("saved.jsonl");
    let salvage = |file: &Path| {
        let output = gateway.command(&[
            "salvage",
            &file.display().to_string(),
            "--json",
            "--with-offsets",
            "--out",
            &out.display().to_string(),
        ]);
        assert!(output.status.success(), "{}", said(&output));
        let found: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        (found[0].clone(), lines(&std::fs::read_to_string(&out).expect("written")))
    };
    let (found, saved) = salvage(&files[1]);
    assert!(found["broken"].is_null() && found["missing"].as_array().expect("a list").is_empty(), "{found:#}");
    assert!(saved.iter().collect::<Vec<_>>() == wanted, "as central would see them");

    // Its header is gone, as after the worst of disks; and three blocks are changed.
    let broken = files[1].with_extension("redb.damaged");
    std::fs::copy(&files[1], &broken).expect("copied");
    let file = std::fs::File::options().read(true).write(true).open(&broken).expect("opens");
    file.write_all_at(&[0xA5; 4096], 0).expect("written");
    let untouched = std::fs::read(&broken).expect("read");
    let (found, saved) = salvage(&broken);
    assert!(found["broken"].is_string(), "{found:#}");
    assert!(saved.iter().collect::<Vec<_>>() == wanted, "{} of {}: {found:#}", saved.len(), wanted.len());
    let places: Vec<u64> = untouched
        .windows(4)
        .enumerate()
        .filter(|(_, four)| &four[..2] == b"FB" && (1..9).contains(&four[2]) && four[3] <= 1)
        .map(|(at, _)| at as u64)
        .collect();
    assert!(places.len() > 8, "{} blocks", places.len());
    for place in places.iter().skip(1).step_by(3).take(3) {
        file.write_all_at(b"spoilt", place + 99).expect("written");
    }
    let (found, saved) = salvage(&broken);
    let missing: u64 = found["missing"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|range| range[1].as_u64().expect("a number") - range[0].as_u64().expect("a number"))
        .sum();
    assert!(missing > 0, "{found:#}");
    assert_eq!(saved.len() as u64 + missing, wanted.len() as u64, "every event is saved or named: {found:#}");
    let known: BTreeSet<String> = wanted.iter().map(ToString::to_string).collect();
    assert!(saved.iter().all(|line| known.contains(&line.to_string())), "nothing is made up");
    println!(
        "{} of {} events saved from a file without a header and with three spoilt blocks",
        saved.len(),
        wanted.len()
    );
    let after = std::fs::read(&broken).expect("read");
    assert_eq!(after.len(), untouched.len(), "the file is not changed");

    // Without the journal's publications, what the record has.
    let lonely = gateway.folder.join("lonely.redb");
    std::fs::copy(&broken, &lonely).expect("copied");
    let (found, saved) = salvage(&lonely);
    assert_eq!(found["unrendered"], saved.len(), "{found:#}");
    assert!(saved.iter().all(|line| line["data"]["msg_id"] == line["id"] && line["sequence"].is_u64()), "{}", saved[0]);
    let text = good(gateway.command(&["salvage", &lonely.display().to_string()]));
    assert!(text.contains("publication ") && text.contains("missing: offsets"), "{text}");
    assert_refused(&gateway.command(&["salvage", &gateway.config().display().to_string()]), 1, &["no readable events"]);
}

#[test]
fn a_backup_under_load_restores_every_event_and_gives_no_number_twice() {
    let folder = scratch_folder("backup");
    let pki = Pki::write(folder.path());
    let central = Mosquitto::start(folder.path(), &pki);
    let destination = central.destination(&pki, central.tls.port());
    let mut gateway = prepare("backup", &format!("{destination}[lane.critical]\nbudget = \"8MiB\"\n"));
    let collector = Collector::start(central.plain, "test/plant/machine.state/#");
    gateway.run();
    let devices = Devices::start(gateway.address, 10, 20, Duration::ZERO);
    let start = Instant::now();
    while devices.count() < 20_000 {
        assert!(start.elapsed() < Duration::from_secs(60), "{} acknowledged", devices.count());
        std::thread::sleep(Duration::from_millis(20));
    }
    let before = accepted(&gateway.status());
    let to = gateway.folder.join("copy");
    let taken = Instant::now();
    let made: Value = serde_json::from_str(&good(gateway.command(&[
        "backup",
        "--json",
        "--to",
        &to.display().to_string(),
        "CONFIG",
    ])))
    .expect("JSON");
    println!("a backup of {} bytes under load in {:?}", made["bytes"], taken.elapsed());
    assert_refused(
        &gateway.command(&["backup", "--to", &to.display().to_string(), "CONFIG"]),
        1,
        &["is there already"],
    );
    // A backup that nobody has run on is a journal that balances.
    let journal = to.display().to_string();
    let copy: Value =
        serde_json::from_str(&good(gateway.command(&["verify", "--json", "--journal", &journal]))).expect("JSON");
    let of_lane = |recount: &Value| {
        let lanes = recount["lanes"].as_array().expect("lanes").clone();
        lanes.into_iter().find(|lane| lane["lane"] == "critical").expect("the lane")
    };
    let held = of_lane(&copy)["streams"][0]["last"].as_u64().expect("a number");
    assert!(held >= before, "{held} events are in the backup, {before} were there before");

    // The gateway goes on, and then its disk dies.
    std::thread::sleep(Duration::from_secs(1));
    let acknowledged = devices.stop();
    gateway.await_status("central has all", Duration::from_secs(60), |status| sum(status, "queued") == 0);
    gateway.stop();
    let seen_before = collector.count();
    let data = gateway.folder.join("data/journal");
    std::fs::rename(&data, gateway.folder.join("lost")).expect("moved");
    std::fs::rename(&to, &data).expect("restored");
    gateway.run();
    let status = gateway.status();
    assert_eq!(status["lanes"][0]["accepted"], held, "{status:#}");
    assert_eq!(status["set_aside"].as_array().expect("a list").len(), 0, "{status:#}");
    gateway
        .await_status("what central had is sent again", Duration::from_secs(60), |status| sum(status, "queued") == 0);
    // Another device, so that nothing it says is a repeat.
    publish(&gateway, "m77", "state", 0..1000);
    assert_eq!(accepted(&gateway.status()), held + 1000);
    gateway.await_status("central has all", Duration::from_secs(60), |status| sum(status, "queued") == 0);
    good(gateway.command(&["verify", "CONFIG"]));
    let arrived = collector.arrived();
    let known: BTreeSet<&[u8]> = arrived[..seen_before].iter().map(|one| one.payload.as_slice()).collect();
    let (again, new): (Vec<_>, Vec<_>) =
        arrived[seen_before..].iter().partition(|one| known.contains(one.payload.as_slice()));
    assert_eq!(new.len(), 1000, "what comes again is the same to the last byte");
    println!("{} of {} events came again after the restore", again.len(), seen_before);
    // Each sequence has one identity, over both lives: no number is given twice.
    let mut sequences: BTreeMap<String, (String, String)> = BTreeMap::new();
    for event in arrived.iter().map(|one| one.event()) {
        let text = |name: &str| event[name].as_str().expect("text").to_owned();
        let identity = (text("source"), text("id"));
        let known = sequences.entry(text("sequence")).or_insert_with(|| identity.clone());
        assert_eq!(*known, identity, "sequence {} was given twice", text("sequence"));
    }
    let missing = crate::common::broker::missing(&arrived, &acknowledged);
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn a_backup_of_a_journal_that_lies_still_is_one_too_and_may_be_restored_twice() {
    let mut gateway = filled("backup-still", 900);
    publish(&gateway, "m2", "count", 0..50);
    // A crash: the newest file is not closed.
    gateway.kill();
    let journal = gateway.folder.join("data/journal");
    let before = folder_content(&journal);
    let to = gateway.folder.join("copy");
    let text = good(gateway.command(&["backup", "--to", &to.display().to_string(), "CONFIG"]));
    assert!(text.contains("critical"), "{text}");
    assert!(folder_content(&journal) == before, "whoever copies changes nothing");
    let export = |place: &[&str]| {
        let mut all = vec!["export"];
        all.extend(place);
        let mut found: Vec<String> = good(gateway.command(&all)).lines().map(str::to_owned).collect();
        found.sort();
        found
    };
    let held = export(&["CONFIG"]);
    assert!(export(&["--journal", &to.display().to_string()]) == held, "the same events");
    assert_eq!(held.len(), 950);

    let mut given = BTreeSet::new();
    for round in 0..2 {
        std::fs::rename(&journal, gateway.folder.join(format!("lost-{round}"))).expect("moved");
        copy_folder(&to, &journal);
        gateway.run();
        assert_eq!(accepted(&gateway.status()), 950);
        publish(&gateway, "m3", "state", round * 10..round * 10 + 10);
        gateway.stop();
        good(gateway.command(&["verify", "CONFIG"]));
        // What lies behind the copied end is not looked for in its file.
        let counts = good(gateway.command(&["export", "--stream", "machine.count", "CONFIG"]));
        assert_eq!(counts.lines().count(), 50);
        // A second start gives what follows, and does not widen the gap again.
        gateway.run();
        publish(&gateway, "m4", "state", round * 10..round * 10 + 10);
        let all = lines(&good(gateway.command(&["export", "CONFIG"])));
        assert_eq!(all.len(), 970);
        let new: Vec<u64> = all
            .iter()
            .filter(|event| event["subject"] == "m3" || event["subject"] == "m4")
            .map(|event| event["sequence"].as_str().expect("text").parse().expect("a number"))
            .collect();
        assert!(new.windows(2).all(|pair| pair[1] == pair[0] + 1), "{new:?}");
        for sequence in new {
            assert!(sequence > 900 && given.insert(sequence), "{sequence} was given twice");
        }
        assert_eq!(accepted(&gateway.status()), 970);
        gateway.stop();
    }
}

fn copy_folder(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().expect("cp");
    assert!(status.success());
}

#[test]
fn a_backup_that_cannot_be_made_leaves_nothing_and_one_that_can_has_every_file() {
    let mut gateway = filled("no-backup", 600);
    let to = gateway.folder.join("copy");
    let back_up = |gateway: &Gateway| gateway.command(&["backup", "--to", &to.display().to_string(), "CONFIG"]);
    for place in ["/proc/copy", "/nowhere/copy"] {
        assert_refused(&gateway.command(&["backup", "--to", place, "CONFIG"]), 1, &["could not back up to", place]);
    }
    let partial = gateway.folder.join("copy.partial");
    std::fs::create_dir(&partial).expect("made");
    assert_refused(&back_up(&gateway), 1, &["copy.partial", "remove it"]);
    std::fs::remove_dir(&partial).expect("removed");

    // The gateway keeps its reserve also from a backup.
    gateway.stop();
    let config = std::fs::read_to_string(gateway.config()).expect("read");
    let free = RealDisk.free_bytes(&gateway.folder).expect("known");
    std::fs::write(gateway.config(), format!("disk_reserve = {}\n{config}", free + (64 << 20))).expect("written");
    gateway.run();
    assert_refused(&back_up(&gateway), 1, &["copy.partial has", "stay free for the gateway"]);
    assert!(!to.exists() && !partial.exists(), "nothing is left");
    gateway.stop();
    std::fs::write(gateway.config(), &config).expect("written");

    // Running, with closed segments.
    gateway.run();
    assert!(segments(&gateway, "critical").len() > 2);
    let text = good(back_up(&gateway));
    assert!(text.contains("600 events"), "{text}");
    assert!(!partial.exists());
    let held = good(gateway.command(&["export", "CONFIG"]));
    assert!(good(gateway.command(&["export", "--journal", &to.display().to_string()])) == held, "the same events");
    good(gateway.command(&["verify", "--journal", &to.display().to_string()]));

    // A damaged file is not made part of a backup in silence.
    gateway.stop();
    let file =
        std::fs::File::options().write(true).open(segments(&gateway, "critical").last().expect("one")).expect("opens");
    file.write_all_at(&[0xA5; 4096], 0).expect("written");
    std::fs::remove_dir_all(&to).expect("removed");
    assert_refused(&back_up(&gateway), 1, &["is damaged", "start the gateway once"]);
    assert!(!to.exists() && !partial.exists(), "nothing is left");
}

/// Wherever the power goes in the first start on a restored journal, it gives no number that the old one gave.
#[test]
fn the_power_may_go_while_a_restored_journal_starts() {
    let now =
        u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_micros()).expect("fits");
    for cut in 0..60 {
        let mut disk = FaultDisk::default();
        let journal = open(&disk).expect("opens");
        let published = journal.publish(&publication()).expect("publishes");
        for number in 0..5 {
            assert!(append(journal.lane("critical").expect("the lane"), &disk, published, number));
        }
        journal.close(Duration::from_secs(5));
        let unused = r#"{"lanes":{"critical":{"offsets":[[6,99]],"sequences":[[1,6,99]]}}}"#;
        let backup = r#"{"format":1,"taken":"2026-11-23T08:00:00Z","version":"1"}"#;
        for (name, text) in [("unused.json", unused), ("backup.json", backup)] {
            write_whole(&disk, &Path::new("/journal").join(name), text.as_bytes()).expect("written");
        }
        if cut > 0 {
            let unsynced = [Unsynced::Dropped, Unsynced::Kept, Unsynced::Random(cut)][cut as usize % 3];
            disk.cut_at(cut, unsynced);
            if let Ok(journal) = open(&disk) {
                journal.close(Duration::ZERO);
            }
            if !disk.is_off() {
                disk.cut(unsynced);
            }
            disk = disk.restart();
        }
        for round in 1..3 {
            let journal = open(&disk).unwrap_or_else(|error| panic!("cut {cut}: {error}"));
            assert!(journal.quarantined().is_empty(), "cut {cut}: {:?}", journal.quarantined());
            let lane = journal.lane("critical").expect("the lane");
            assert!(append(lane, &disk, published, 9), "cut {cut}");
            let (offset, sequence, _) = *everything(lane, 1).last().expect("the new one");
            assert!(offset >= now && sequence >= now, "cut {cut}: offset {offset}, sequence {sequence}");
            let status = lane.status();
            assert_eq!((status.accepted, status.destinations[0].queued), (5 + round, 5 + round), "cut {cut}");
            journal.close(Duration::from_secs(5));
        }
    }
}
