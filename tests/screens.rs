//! Screens at 80 and 120 columns with names as long as plants have them: nothing wraps.
//!
//! The commands are those of the program; what the gateway answers is recorded in `tests/screens/*.json`. The
//! screens stand beside it, for people who change a table. `FOREBAY_WRITE_GOLDEN=1` writes those that are missing.
//! Those of `top` are compared in `src/cli/top.rs`.

use crate::common::gateway::scratch_folder;
use crate::common::program::{PROGRAM, said};
use forebay::event::Timestamp;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/screens").join(name)
}

/// An answer of the gateway. Ages are of three days and some hours, whenever the test runs.
fn recorded(name: &str) -> String {
    let text = std::fs::read_to_string(golden(name)).expect("stays in the repository");
    let ago = SystemTime::now() - Duration::from_secs(3 * 86_400 + 8 * 3600 + 1800);
    text.replace("@ago", &Timestamp::from(ago).to_string()).replace("@recorded", "2026-11-30T18:22:10.123456Z")
}

/// Answers one request of a command.
fn answer(stream: UnixStream) {
    let mut lines = BufReader::new(&stream).lines().map(|line| line.expect("a request"));
    let path = lines.next().expect("a request line").split(' ').nth(1).expect("a path").to_owned();
    lines.take_while(|line| !line.is_empty()).for_each(drop);
    let name = match path.split('?').next().expect("a path") {
        "/status" => "status.json",
        "/devices" => "devices.json",
        "/dead" => "letters.json",
        "/ledger" => "ledger.json",
        path => panic!("{path} is not recorded"),
    };
    let body = recorded(name);
    write!(&stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
        .expect("answers");
}

/// A gateway that gives the recorded answers.
fn gateway(socket: &Path) {
    let listener = UnixListener::bind(socket).expect("a socket");
    std::thread::spawn(move || listener.incoming().for_each(|stream| answer(stream.expect("a connection"))));
}

#[test]
fn no_line_of_a_screen_is_wider_than_the_terminal() {
    let folder = scratch_folder("screens");
    let socket = folder.path().join("forebay.sock");
    gateway(&socket);
    let mut different = Vec::new();
    for (name, command) in [
        ("status", &["status"][..]),
        ("ledger", &["status", "--ledger"]),
        ("devices", &["devices"]),
        ("dead-list", &["dead", "list"]),
        ("dead-by-reason", &["dead", "list", "--by", "reason"]),
    ] {
        for columns in [80, 120] {
            let output = Command::new(PROGRAM)
                .args(command)
                .arg("--socket")
                .arg(&socket)
                .env("COLUMNS", columns.to_string())
                .env("TZ", "CET-1")
                .arg("--utc")
                .output()
                .expect("runs");
            let text = said(&output);
            assert!(output.stderr.is_empty(), "{command:?}: {text}");
            for line in text.lines() {
                let width = line.chars().count();
                assert!(width <= columns, "{command:?}: {width} of {columns}: {line}\n{text}");
            }
            let file = golden(&format!("{name}-{columns}.txt"));
            if !file.exists() && std::env::var_os("FOREBAY_WRITE_GOLDEN").is_some() {
                std::fs::write(&file, &text).expect("written");
            }
            if std::fs::read_to_string(&file).unwrap_or_default() != text {
                different.push(format!("{} is now:\n{text}", file.display()));
            }
        }
    }
    assert!(different.is_empty(), "{}", different.join("\n"));
}

#[test]
fn tables_show_local_time_unless_they_are_asked_for_utc() {
    let folder = scratch_folder("zones");
    let socket = folder.path().join("forebay.sock");
    gateway(&socket);
    let list = |zone: &str, before: &[&str]| {
        let command = [before, &["dead", "list", "--socket"]].concat();
        let output = Command::new(PROGRAM).args(command).arg(&socket).env("TZ", zone).output().expect("runs");
        said(&output)
    };
    for (zone, before, head, time) in [
        ("CET-1", &[][..], "RECORDED (local)", "2026-11-30 19:22:10"),
        ("CET-1", &["--utc"], "RECORDED (UTC)", "2026-11-30 18:22:10"),
        ("UTC", &[], "RECORDED (UTC)", "2026-11-30 18:22:10"),
    ] {
        let text = list(zone, before);
        assert!(text.contains(head) && text.contains(time), "{zone} {before:?}: {text}");
    }
}

/// Processor time of a process so far, in clock ticks of 10 ms.
fn ticks(process: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{process}/stat")).expect("it lives");
    let fields: Vec<&str> = text.rsplit(')').next().expect("fields").split_whitespace().collect();
    // User and system time are fields 14 and 15; the name, which may have blanks, is field 2.
    fields[11..13].iter().map(|field| field.parse::<u64>().expect("a number")).sum()
}

#[test]
fn top_on_a_terminal_takes_less_than_2_percent_of_a_core() {
    let folder = scratch_folder("top");
    let socket = folder.path().join("forebay.sock");
    gateway(&socket);
    let command = format!("stty cols 120 rows 40; exec {PROGRAM} top --socket {}", socket.display());
    let mut terminal = Command::new("script")
        .args(["-qec", &command, "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("script of bsdutils");
    let mut screen = terminal.stdout.take().expect("a pipe");
    let mut keys = terminal.stdin.take().expect("a pipe");
    // The terminal answers no question; the first output shows that the screen is drawn.
    let mut shown = [0; 4096];
    while !String::from_utf8_lossy(&shown).contains("lanes") {
        assert!(screen.read(&mut shown).expect("output") > 0, "it ended: {}", String::from_utf8_lossy(&shown));
    }
    let reader = std::thread::spawn(move || std::io::copy(&mut screen, &mut std::io::sink()));
    keys.write_all(b"4").expect("the page of devices");
    let children = format!("/proc/{0}/task/{0}/children", terminal.id());
    let process = std::fs::read_to_string(children).expect("children").trim().to_owned();
    let (before, began) = (ticks(&process), Instant::now());
    std::thread::sleep(Duration::from_secs(10));
    let (used, took) = (ticks(&process) - before, began.elapsed());
    keys.write_all(b"q").expect("quits");
    assert!(terminal.wait().expect("ends").success());
    reader.join().expect("reads").expect("reads");
    let share = used as f64 / 100.0 / took.as_secs_f64();
    println!("{:.2} % of a core, with 50 devices", share * 100.0);
    assert!(share < 0.02, "{:.1} % of a core", share * 100.0);
}
