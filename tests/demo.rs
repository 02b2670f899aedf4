//! The demo, as somebody sees it who tries Forebay for the first time.

use crate::common::end;
use crate::common::gateway::scratch_folder;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_forebay");

/// The number in front of some words of the balance.
fn figure(balance: &str, words: &str) -> u64 {
    let line = balance.lines().find(|line| line.contains(words)).unwrap_or_else(|| panic!("no {words}: {balance}"));
    line.split_whitespace().next().expect("a number").replace(',', "").parse().expect("a number")
}

/// What the balance must say.
fn check_balance(said: &str, folder: &Path) {
    let balance = &said[said.find("Balance of this journal").unwrap_or_else(|| panic!("no balance: {said}"))..];
    let accepted = figure(balance, "events accepted");
    assert!(accepted > 500, "{balance}");
    assert_eq!(
        accepted,
        figure(balance, " delivered") + figure(balance, " queued") + figure(balance, "dead letters of central")
    );
    assert_eq!(figure(balance, "missing: it balances"), 0);
    assert!(figure(balance, "publishes received by central") >= figure(balance, " delivered"), "{balance}");
    let mode = std::fs::metadata(folder.join("central.key")).expect("a key").mode();
    assert_eq!(mode & 0o7777, 0o600, "central.key");
    assert!(folder.join("data").is_dir() && balance.contains(&folder.display().to_string()), "{balance}");
}

/// The live lines: number accepted, number queued, and state of the link.
fn lines(said: &str) -> Vec<(u64, u64, String)> {
    said.split(['\n', '\r'])
        .filter_map(|line| {
            let words: Vec<&str> = line.trim_start_matches("\x1b[2K").split_whitespace().collect();
            let count = |word: &str| {
                let at = words.iter().position(|known| *known == word)?;
                words.get(at + 1)?.replace(',', "").parse::<u64>().ok()
            };
            Some((count("accepted")?, count("queued")?, words[words.len().checked_sub(2)?..].join(" ")))
        })
        .collect()
}

/// A program that does not outlive the test.
struct Owned(Child);

impl Owned {
    fn start(command: &mut Command) -> Self {
        Self(command.stdout(Stdio::piped()).spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }

    fn output(&mut self) -> ChildStdout {
        self.0.stdout.take().expect("piped, and not taken yet")
    }

    fn succeeds(&mut self) -> bool {
        self.0.wait().expect("it ends").success()
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            end(&mut self.0);
        }
    }
}

#[test]
fn an_outage_shows_and_the_balance_is_even() {
    let folder = scratch_folder("demo");
    let demo_folder = folder.path().join("demo");
    let mut demo = Owned::start(
        Command::new(PROGRAM)
            .args(["demo", "--outage", "3s", "--run-for", "17s", "--rate", "400", "--folder"])
            .arg(&demo_folder)
            .current_dir(folder.path())
            .stdin(Stdio::null()),
    );
    let mut output = BufReader::new(demo.output());
    let mut said = String::new();
    while !said.contains("Ctrl-C to stop") {
        assert!(output.read_line(&mut said).expect("a line") > 0, "the demo ended: {said}");
    }
    let line = said.lines().find(|line| line.contains("mosquitto_sub")).expect("the line is shown");
    let mut subscriber = Owned::start(Command::new("sh").args(["-c", &format!("exec {}", line.trim())]));
    let mut event = String::new();
    BufReader::new(subscriber.output()).read_line(&mut event).expect("a line; apt-get install mosquitto-clients");
    assert!(event.starts_with("demo/plant-01/"), "{event}");
    assert!(event.contains("\"specversion\":\"1.0\""), "{event}");
    // The other commands that its text names.
    let config = demo_folder.join("forebay.toml");
    for arguments in [&["status", "--json"][..], &["dead", "list", "--json"]] {
        let answer = Command::new(PROGRAM).args(arguments).arg("--config").arg(&config).output().expect("it runs");
        assert!(answer.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&answer.stderr));
        let said: serde_json::Value = serde_json::from_slice(&answer.stdout).expect("JSON");
        for source in said["sources"].as_array().into_iter().flatten().filter(|source| source["kind"] == "modbus") {
            assert!(
                source["received"].as_u64() > Some(0) && source["problem"].is_null(),
                "machines are asked: {source}"
            );
        }
    }
    output.read_to_string(&mut said).expect("text");
    assert!(demo.succeeds());

    let lines = lines(&said);
    let cut: Vec<_> = lines.iter().filter(|line| line.2 == "WAN CUT").collect();
    assert!(cut.len() >= 2, "the outage is on the screen: {said}");
    assert!(cut.iter().all(|line| line.0 > 0) && cut.last().is_some_and(|line| line.1 > 300), "a backlog: {said}");
    assert!(cut.windows(2).all(|two| two[1].0 > two[0].0), "the plant does not notice: {said}");
    assert!(lines.last().is_some_and(|line| line.1 < 300 && line.2 == "link up"), "it drains: {said}");
    check_balance(&said, &demo_folder);
    let others: Vec<_> = std::fs::read_dir(folder.path()).expect("read").flatten().map(|e| e.file_name()).collect();
    assert_eq!(others, ["demo"], "nothing outside its folder");
}

#[test]
fn a_key_cuts_the_wan_and_an_interrupt_ends_with_the_balance() {
    let folder = scratch_folder("demo-keys");
    let demo_folder = folder.path().join("demo");
    // `script` gives it a terminal, and passes on what is typed. The interrupt reaches the shell as well, which
    // goes on, and says on the screen how the demo ended: what `script` makes of that depends on its version.
    let mut demo = Owned::start(
        Command::new("script")
            .args([
                "-qfc",
                &format!(
                    "trap : INT; {PROGRAM} demo --rate 400 --folder {}; echo \"it ended with $?\"",
                    demo_folder.display()
                ),
                "/dev/null",
            ])
            .stdin(Stdio::piped()),
    );
    let mut keyboard = demo.0.stdin.take().expect("piped");
    let mut screen = demo.output();
    let mut said = Vec::new();
    let mut read_until = |what: &str, wanted: &dyn Fn(&str) -> bool| {
        let start = Instant::now();
        loop {
            let mut buffer = [0; 4096];
            let read = screen.read(&mut buffer).expect("read");
            said.extend_from_slice(&buffer[..read]);
            let text = String::from_utf8_lossy(&said);
            if wanted(&text) {
                return text.into_owned();
            }
            assert!(read > 0 && start.elapsed() < Duration::from_secs(30), "{what}: {text}");
        }
    };
    read_until("it runs", &|text| lines(text).iter().any(|line| line.0 > 400));
    keyboard.write_all(b"w").expect("typed");
    read_until("it is cut", &|text| lines(text).iter().any(|line| line.1 > 400 && line.2 == "WAN CUT"));
    keyboard.write_all(b"w").expect("typed");
    read_until("it is up again", &|text| lines(text).last().is_some_and(|line| line.1 < 200 && line.2 == "link up"));
    keyboard.write_all(b"\x03").expect("typed");
    let said = read_until("the balance", &|text| text.contains("it ended with"));
    assert!(said.contains("Start again to continue") && said.contains("it ended with 0"), "{said}");
    check_balance(&said, &demo_folder);
}
