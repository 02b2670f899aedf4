//! Files that programs drop into a folder: every format, wrong files, rows that break their contract, and every row
//! once through kills.

use crate::common::centre::Centre;
use crate::common::gateway::Gateway;
use crate::common::random::Random;
use rumqttc::v5::mqttbytes::v5::PubAckReason;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

const CONTRACT: &str = r#"
name = "order.progress"
version = "1.0.0"
owner = "tests"
lane = "standard"
match = { source = "folder", name = "press", topic = "{file}" }
key = "{/order}"
time = "/ended"
schema = "progress.json"
[columns]
order = "Auftrag"
good = { column = "Gutmenge", type = "number" }
ended = { column = "Ende", type = "time", format = "%d.%m.%Y %H:%M", zone = "Europe/Berlin" }
state = { column = "Zustand", values = { F = "finished", L = "running" } }
"#;

const SCHEMA: &str =
    r#"{"type":"object","required":["order","good"],"properties":{"good":{"type":"number","minimum":0}}}"#;

/// A gateway that reads `in` under its folder. `settings` follow those of the source.
fn prepare(name: &str, centre: &Centre, settings: &str, contract: &str) -> (Gateway, PathBuf) {
    let source = format!("\n[[source.folder]]\nname = \"press\"\npath = \"in\"\npoll = \"1s\"\n{settings}\n");
    let gateway = Gateway::prepare(name, &format!("{source}{}", centre.destination("central")));
    std::fs::write(gateway.folder.join("contracts/progress.toml"), contract).expect("written");
    std::fs::write(gateway.folder.join("contracts/progress.json"), SCHEMA).expect("written");
    let folder = gateway.folder.join("in");
    std::fs::create_dir(&folder).expect("folder");
    (gateway, folder)
}

/// Writes a file in the way that programs are asked to: under another name, then renamed.
fn drop_file(folder: &Path, name: &str, content: &[u8]) {
    let unfinished = folder.join(format!("{name}.tmp"));
    std::fs::write(&unfinished, content).expect("written");
    std::fs::rename(unfinished, folder.join(name)).expect("renamed");
}

fn await_file(path: &Path, gateway: &Gateway) {
    let start = Instant::now();
    while !path.exists() {
        assert!(start.elapsed() < PATIENCE, "{} does not appear: {}", path.display(), gateway.log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn report(folder: &Path, place: &str, gateway: &Gateway) -> Value {
    let path = folder.join(format!("{place}.report.json"));
    await_file(&folder.join(place), gateway);
    serde_json::from_slice(&std::fs::read(path).expect("a report")).expect("JSON")
}

#[test]
fn a_file_of_a_spreadsheet_becomes_events_by_the_columns_of_the_contract() {
    let centre = Centre::start();
    let settings = "format = \"csv\"\ncomplete = \"renamed\"\nencoding = \"windows-1252\"\nseparator = \";\"\ndecimal = \",\"\nthousands = \".\"\nskip = 1";
    let (mut gateway, folder) = prepare("folder-csv", &centre, settings, CONTRACT);
    gateway.run();
    let text = "Bericht \u{84}Presse 4\u{93};;;;\r\nAuftrag;Gutmenge;Ende;Zustand;Größe\r\n\"A;\"\"1\"\"\";1.234,50;30.11.2026 06:30;F;x\r\nÄ2;7;01.07.2026 06:30;L;x;\r\n";
    let bytes: Vec<u8> = text.chars().map(|letter| letter as u32 as u8).collect();
    drop_file(&folder, "presse.csv", &bytes);
    centre.await_that("two events", PATIENCE, |centre| centre.events().len() == 2);
    let events = centre.events();
    assert_eq!(
        events[0]["data"],
        json!({"order": "A;\"1\"", "good": 1234.5, "ended": "2026-11-30T05:30:00Z", "state": "finished"})
    );
    assert_eq!(events[1]["data"]["order"], "Ä2");
    assert!(events[1]["time"].as_str().is_some_and(|time| time.starts_with("2026-07-01T04:30:00")), "{}", events[1]);
    let ids: Vec<_> = events.iter().map(|event| event["id"].as_str().expect("id").to_owned()).collect();
    assert!(ids[0].starts_with("presse.csv:3:") && ids[1].starts_with("presse.csv:4:"), "{ids:?}");
    let report = report(&folder, "done/presse.csv", &gateway);
    assert_eq!((&report["rows"], &report["events"], &report["dead_letters"]), (&json!(2), &json!(2), &json!(0)));
}

#[test]
fn rows_of_xml_and_lines_of_json_become_events() {
    let centre = Centre::start();
    let contract = CONTRACT
        .replace("\"Auftrag\"", "\"@nr\"")
        .replace("\"Gutmenge\"", "\"menge/gut\"")
        .replace("\"Ende\"", "\"ende\"")
        .replace("\"Zustand\"", "\"ende/@z\"");
    let (mut gateway, folder) =
        prepare("folder-xml", &centre, "format = \"xml\"\nrow = \"auftrag\"\ncomplete = \"renamed\"", &contract);
    let lines = "\n[[source.folder]]\nname = \"lines\"\npath = \"lines\"\npoll = \"1s\"\nformat = \"jsonl\"\ncomplete = \"renamed\"\n";
    let config = std::fs::read_to_string(gateway.config()).expect("read");
    std::fs::write(gateway.config(), config + lines).expect("written");
    let other = contract
        .split("[columns]")
        .next()
        .expect("text")
        .replace("\"press\"", "\"lines\"")
        .replace("order.progress", "order.line");
    std::fs::write(gateway.folder.join("contracts/lines.toml"), other).expect("written");
    std::fs::create_dir(gateway.folder.join("lines")).expect("folder");
    gateway.run();
    let xml = "<?xml version=\"1.0\" encoding=\"ISO-8859-1\"?>\n<p:liste xmlns:p=\"urn:x\">\n<p:auftrag nr=\"A&amp;\u{e4}\">\n <menge><gut>12</gut></menge><ende z=\"L\">01.07.2026 06:30</ende>\n</p:auftrag><auftrag nr=\"B\"><menge><gut><![CDATA[3]]></gut></menge></auftrag>\n</p:liste>";
    let bytes: Vec<u8> = xml.chars().map(|letter| letter as u32 as u8).collect();
    drop_file(&folder, "a.xml", &bytes);
    drop_file(&gateway.folder.join("lines"), "b.jsonl", b"\xEF\xBB\xBF{\"order\":\"C\",\"good\":1.10,\"ended\":\"2026-07-01T00:00:00Z\"}\r\n\r\n{\"order\":\"D\",\"good\":2,\"ended\":\"2026-07-01T00:00:00Z\"}");
    centre.await_that("four events", PATIENCE, |centre| centre.events().len() >= 3);
    await_file(&folder.join("done/a.xml"), &gateway);
    await_file(&gateway.folder.join("lines/done/b.jsonl"), &gateway);
    let data: BTreeMap<String, Value> = centre
        .events()
        .into_iter()
        .map(|event| (event["data"]["order"].as_str().expect("order").to_owned(), event["data"].clone()))
        .collect();
    assert_eq!(data["A&ä"], json!({"order": "A&ä", "good": 12, "ended": "2026-07-01T04:30:00Z", "state": "running"}));
    // Without its time the row breaks the contract.
    assert!(!data.contains_key("B"), "{data:?}");
    assert_eq!(data["C"]["good"].to_string(), "1.1");
    assert_eq!(data["D"]["good"], 2);
    let report = report(&folder, "done/a.xml", &gateway);
    assert_eq!((&report["rows"], &report["dead_letters"]), (&json!(2), &json!(1)));
}

#[test]
fn a_wrong_file_costs_itself_and_its_report_says_what_to_do() {
    let centre = Centre::start();
    let (mut gateway, folder) = prepare("folder-wrong", &centre, "format = \"csv\"\ncomplete = \"renamed\"", CONTRACT);
    gateway.run();
    let head = "Auftrag,Gutmenge,Ende,Zustand\n";
    let long = format!("{head}A,1,30.11.2026 06:30,\"{}", "x\n".repeat(1 << 20));
    for (name, content, parts) in [
        (
            "latin.csv",
            [head.as_bytes(), b"B,1,30.11.2026 06:30,F\nGr\xF6\xDFe,1,30.11.2026 06:30,F\n"].concat(),
            vec!["line 3", "F6", "windows-1252"],
        ),
        ("columns.csv", b"Auftrag,Menge\nA,1\n".to_vec(), vec!["no column", "\"Gutmenge\"", "\"Menge\""]),
        ("separator.csv", head.replace(',', ";").into_bytes(), vec!["is separator right?"]),
        ("utf16.csv", "A\0u\0".into(), vec!["zero byte", "utf-16le"]),
        ("twice.csv", b"Auftrag,Gutmenge,Ende,Zustand,Ende\n".to_vec(), vec!["\"Ende\" occurs twice"]),
        ("quote.csv", long.into_bytes(), vec!["longer than 1 MiB", "quotation mark"]),
    ] {
        drop_file(&folder, name, &content);
        let report = report(&folder, &format!("failed/{name}"), &gateway);
        let problem = report["problem"].as_str().expect("a problem");
        assert!(parts.iter().all(|part| problem.contains(part)), "{name}: {problem}");
        assert_eq!(report["events"], 0, "{name}");
    }
    drop_file(&folder, "good.csv", format!("{head}A,1,30.11.2026 06:30,F\n").as_bytes());
    await_file(&folder.join("done/good.csv"), &gateway);
    let data: Vec<_> = centre.events().iter().map(|event| event["data"]["order"].clone()).collect();
    assert_eq!(data, ["A"], "of wrong files no row is told");
    let status = gateway.status();
    assert!(status.to_string().contains("6 files moved to failed"), "{status}");
}

#[test]
fn a_row_that_breaks_its_contract_is_a_dead_letter_and_the_others_go_on() {
    let centre = Centre::start();
    let (mut gateway, folder) = prepare("folder-rows", &centre, "format = \"csv\"\ncomplete = \"renamed\"", CONTRACT);
    gateway.run();
    let rows = "Auftrag,Gutmenge,Ende,Zustand\nA,1,30.11.2026 06:30,F\nB,many,30.11.2026 06:30,F\nC,1\nD,-1,30.11.2026 06:30,F\nE,1,31.02.2026 06:30,F\nG,1,30.11.2026 06:30,X\nH,2,30.11.2026 06:30,\n";
    drop_file(&folder, "a.csv", rows.as_bytes());
    let report = report(&folder, "done/a.csv", &gateway);
    assert_eq!((&report["rows"], &report["events"], &report["dead_letters"]), (&json!(7), &json!(2), &json!(5)));
    centre.await_that("two events", PATIENCE, |centre| centre.events().len() == 2);
    let listed = gateway.command(&["dead", "list", "--json", "CONFIG"]);
    let listed = String::from_utf8(listed.stdout).expect("text");
    for part in [
        "/good: column \\\"Gutmenge\\\" is no number",
        "row: has 2 cells where there are 4 columns",
        "/good",
        "/ended: column \\\"Ende\\\" is no time",
        "/state: column \\\"Zustand\\\" is none of the values",
    ] {
        assert!(listed.contains(part), "\"{part}\" is missing in {listed}");
    }
}

#[test]
fn a_file_is_read_only_when_it_is_complete() {
    let centre = Centre::start();
    let (mut gateway, folder) = prepare("folder-settle", &centre, "format = \"csv\"\nsettle = \"3s\"", CONTRACT);
    let marked = "\n[[source.folder]]\nname = \"press2\"\npath = \"marked\"\npoll = \"1s\"\nformat = \"csv\"\ncomplete = \"marker\"\nmarker = \"{stem}.ok\"\n";
    let config = std::fs::read_to_string(gateway.config()).expect("read");
    std::fs::write(gateway.config(), config + marked).expect("written");
    let marked = gateway.folder.join("marked");
    std::fs::create_dir(&marked).expect("folder");
    std::fs::write(
        gateway.folder.join("contracts/marked.toml"),
        CONTRACT.replace("\"press\"", "\"press2\"").replace("order.progress", "order.marked"),
    )
    .expect("written");
    gateway.run();
    let row = |number: usize| format!("A{number},{number},30.11.2026 06:30,F\n");
    std::fs::write(marked.join("m.csv"), format!("Auftrag,Gutmenge,Ende,Zustand\n{}", row(100))).expect("written");
    // A program that writes with pauses: each is shorter than `settle`, all together are longer.
    let mut text = "Auftrag,Gutmenge,Ende,Zustand\n".to_owned();
    for number in 0..8 {
        text.push_str(&row(number));
        std::fs::write(folder.join("slow.csv"), &text).expect("written");
        std::thread::sleep(Duration::from_millis(900));
        assert!(!folder.join("done/slow.csv").exists(), "read while it is written");
    }
    let told = report(&folder, "done/slow.csv", &gateway);
    assert_eq!(told["rows"], 8);
    assert!(marked.join("m.csv").exists(), "read without its marker");
    std::fs::write(marked.join("m.ok"), "").expect("written");
    assert_eq!(report(&marked, "done/m.csv", &gateway)["rows"], 1);
    assert!(!marked.join("m.ok").exists(), "the marker is removed with its file");
    centre.await_that("nine events", PATIENCE, |centre| centre.events().len() == 9);
}

#[test]
fn a_folder_that_is_not_there_is_a_problem_until_it_is_mounted() {
    let centre = Centre::start();
    let (mut gateway, folder) = prepare("folder-gone", &centre, "format = \"csv\"\ncomplete = \"renamed\"", CONTRACT);
    std::fs::remove_dir(&folder).expect("removed");
    gateway.run();
    gateway.await_status("a problem", PATIENCE, |status| status.to_string().contains("No such file"));
    std::fs::create_dir(&folder).expect("folder");
    drop_file(&folder, "a.csv", b"Auftrag,Gutmenge,Ende,Zustand\nA,1,30.11.2026 06:30,F\n");
    await_file(&folder.join("done/a.csv"), &gateway);
}

/// Files of the test with many of them, and their rows. `FOREBAY_FOLDER_FILES` and `FOREBAY_FOLDER_ROWS` set others.
fn size(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn every_row_arrives_once_through_kills_doubled_and_renamed_files() {
    let (files, rows) = (size("FOREBAY_FOLDER_FILES", 30), size("FOREBAY_FOLDER_ROWS", 2000));
    let told = Arc::new(Mutex::new(Told { ids: vec![0; files * rows], rows, ..Told::default() }));
    let theirs = Arc::clone(&told);
    let centre = Centre::answering(move |arrival| {
        let mut told = theirs.lock().expect("lock");
        arrival.events.iter().for_each(|event| told.take(event));
        PubAckReason::Success
    });
    let (mut gateway, folder) = prepare("folder-kills", &centre, "format = \"csv\"\nsettle = \"1s\"", CONTRACT);
    gateway.run();
    let mut random = Random::seeded();
    let content = |file: usize| {
        let lines = (0..rows).map(|row| format!("F{file}R{row},{row},30.11.2026 06:30,F\n"));
        format!("Auftrag,Gutmenge,Ende,Zustand\n{}", lines.collect::<String>())
    };
    let mut most = 0;
    for file in 0..files {
        let text = content(file);
        let path = folder.join(format!("{file}.csv"));
        match random.below(4) {
            // In two halves.
            0 => {
                std::fs::write(&path, &text[..text.len() / 2]).expect("written");
                std::thread::sleep(Duration::from_millis(200));
                std::fs::write(&path, &text).expect("written");
            }
            // Renamed while it settles, so that it begins again.
            1 => {
                std::fs::write(folder.join("new.csv"), &text).expect("written");
                std::thread::sleep(Duration::from_millis(200));
                std::fs::rename(folder.join("new.csv"), &path).expect("renamed");
            }
            _ => drop_file(&folder, &format!("{file}.csv"), text.as_bytes()),
        }
        // A copy, now or when the file has been read.
        if random.below(5) == 0 {
            let copied = random.below(file as u64 + 1) as usize;
            drop_file(&folder, &format!("{copied} (copy {file}).csv"), content(copied).as_bytes());
        }
        if random.below(4) == 0 {
            most = most.max(peak_memory(gateway.pid()));
            gateway.kill();
            gateway.run();
        }
    }
    let is_empty = || {
        let left = |folder: PathBuf| {
            std::fs::read_dir(folder).expect("folder").flatten().filter(|one| one.path().is_file()).count()
        };
        left(folder.clone()) + left(folder.join(".forebay/press")) == 0
    };
    let start = Instant::now();
    let mut killed = Instant::now();
    while !is_empty() {
        let patience = Duration::from_secs(600 + (files * rows / 1000) as u64);
        assert!(start.elapsed() < patience, "{}", gateway.log());
        std::thread::sleep(Duration::from_millis(50));
        centre.forget();
        if killed.elapsed() > Duration::from_secs(2) && random.below(3) == 0 {
            killed = Instant::now();
            most = most.max(peak_memory(gateway.pid()));
            gateway.kill();
            gateway.run();
        }
    }
    centre.await_that("every row", Duration::from_secs(300), |centre| {
        centre.forget();
        told.lock().expect("lock").count == files * rows
    });
    let doubled = told.lock().expect("lock").doubled.clone();
    assert!(doubled.is_empty(), "rows are told twice: {doubled:?}");
    most = most.max(peak_memory(gateway.pid()));
    println!("{files} files of {rows} rows, at most {} MB", most / 1000);
    assert!(most < 200_000, "{most} kB of memory");
}

/// The rows that central has, each with a digest of the id that its event had first.
#[derive(Default)]
struct Told {
    /// By file and row; 0 for a row that has not come.
    ids: Vec<u64>,
    /// Rows of a file.
    rows: usize,
    /// Rows that have come.
    count: usize,
    /// Some of the rows that came with two ids.
    doubled: Vec<String>,
}

impl Told {
    fn take(&mut self, event: &serde_json::Value) {
        let Some(order) = event["data"]["order"].as_str() else { return };
        let place = order.strip_prefix('F').and_then(|order| order.split_once('R')).expect("an order of this test");
        let place = place.0.parse::<usize>().expect("file") * self.rows + place.1.parse::<usize>().expect("row");
        let mut digest = DefaultHasher::new();
        event["id"].as_str().expect("id").hash(&mut digest);
        let id = digest.finish().max(1);
        match std::mem::replace(&mut self.ids[place], id) {
            0 => self.count += 1,
            known if known != id && self.doubled.len() < 3 => self.doubled.push(order.to_owned()),
            _ => {}
        }
    }
}

/// Peak of the resident memory of a process, in kB.
fn peak_memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0");
    line.trim().trim_end_matches(" kB").parse().unwrap_or(0)
}
