//! Screens at 80 and 120 columns with names as long as plants have them: nothing wraps.
//!
//! The commands are those of the program; what the gateway answers is recorded in `tests/golden/screens/*.json`. The
//! screens stand beside it, for people who change a table. `FOREBAY_WRITE_GOLDEN=1` writes those that are missing.
//! Those of `top` are compared in `src/cli/top.rs`.

use crate::common::gateway::scratch_folder;
use crate::common::program::{PROGRAM, said};
use forebay::event::Timestamp;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/screens").join(name)
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

#[test]
fn no_line_of_a_screen_is_wider_than_the_terminal() {
    let folder = scratch_folder("screens");
    let socket = folder.path().join("forebay.sock");
    let listener = UnixListener::bind(&socket).expect("a socket");
    std::thread::spawn(move || listener.incoming().for_each(|stream| answer(stream.expect("a connection"))));
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
    let listener = UnixListener::bind(&socket).expect("a socket");
    std::thread::spawn(move || listener.incoming().for_each(|stream| answer(stream.expect("a connection"))));
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
