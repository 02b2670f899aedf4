//! What an operator does by mistake, or on purpose: files named twice, terminals, pipes, passwords.

use crate::common::broker::Mosquitto;
use crate::common::client::{Client, Hello};
use crate::common::gateway::{Gateway, program_for_everybody, scratch_folder};
use crate::common::need;
use crate::common::pki::Pki;
use crate::common::program::{forebay, said};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Asserts that a command failed and said each of `words`.
#[track_caller]
fn assert_refused(output: &Output, words: &[&str]) {
    let text = said(output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    for word in words {
        assert!(text.contains(word), "\"{word}\" is missing in: {text}");
    }
}

/// A typing mistake in `socket` once cost a private key: the gateway removed whatever stood there.
#[test]
fn a_socket_never_replaces_a_file_that_is_no_socket() {
    let gateway = Gateway::prepare("socket", "socket = \"gw.key\"\n");
    let file = gateway.folder.join("gw.key");
    std::fs::write(&file, "a private key").expect("written");
    for command in ["check", "run"] {
        assert_refused(&gateway.command(&[command, "CONFIG"]), &["socket", "gw.key", "is no socket"]);
        assert_eq!(std::fs::read_to_string(&file).expect("it is still there"), "a private key");
    }
}

#[test]
fn a_socket_whose_path_is_too_long_is_refused_before_the_start() {
    let name = "s".repeat(120);
    let gateway = Gateway::prepare("long", &format!("socket = \"{name}\"\n"));
    assert_refused(
        &gateway.command(&["check", "CONFIG"]),
        &["forebay.toml:5: socket", &name, "bytes long", "at most 107"],
    );
}

#[test]
fn a_socket_that_another_gateway_answers_is_left_to_it() {
    let first = Gateway::start("first", "");
    let socket = first.folder.join("data/forebay.sock");
    let second = Gateway::prepare("other", &format!("socket = \"{}\"\n", socket.display()));
    assert_refused(&second.command(&["run", "CONFIG"]), &["another gateway answers"]);
    assert_eq!(first.status()["name"], "gw", "the first is still reached");
}

/// A start that failed once logged the reason, and "the part was cancelled while it was stopped" as a second error.
#[test]
fn a_port_that_is_taken_at_the_start_is_the_only_error() {
    let first = Gateway::start("port-first", "");
    let mut second = Gateway::prepare("port-second", "");
    let text = std::fs::read_to_string(second.config()).expect("read");
    let own = second.address.to_string();
    assert!(text.contains(&own), "{text}");
    std::fs::write(second.config(), text.replace(&own, &first.address.to_string())).expect("written");
    second.spawn();
    assert!(second.await_exit().is_some_and(|code| code != 0));
    let log = second.log();
    assert!(log.contains(&first.address.to_string()), "{log}");
    assert!(!log.contains("cancelled"), "{log}");
}

/// While descriptors are used up, folders seem empty: the configuration in force stays, and is not said to be refused.
#[test]
fn a_gateway_without_file_descriptors_keeps_its_configuration_and_reads_the_new_one_later() {
    if !need::root("limiting a running process") {
        return;
    }
    let gateway = Gateway::start("descriptors", "");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", gateway.pid())).expect("limits");
    let row = limits.lines().find_map(|line| line.strip_prefix("Max open files")).expect("a row of open files");
    let before = row.split_whitespace().next().expect("the soft limit").to_owned();
    let limit = |files: &str| {
        let limit = format!("--nofile={files}:");
        let pid = gateway.pid().to_string();
        let set = Command::new("prlimit").args(["--pid", &pid, &limit]).status().expect("prlimit");
        assert!(set.success());
    };
    let open = std::fs::read_dir(format!("/proc/{}/fd", gateway.pid())).expect("descriptors").count();
    limit(&open.to_string());
    let text = std::fs::read_to_string(gateway.config()).expect("read");
    std::fs::write(gateway.config(), format!("{text}\n[log]\nlevel = \"debug\"\n")).expect("written");
    // Three polls of the files.
    std::thread::sleep(Duration::from_secs(7));
    let log = gateway.log();
    assert!(!log.contains("refused") && !log.contains("reloaded"), "{log}");
    limit(&before);
    let start = Instant::now();
    while !gateway.log().contains("configuration reloaded and in force") {
        assert!(start.elapsed() < Duration::from_secs(20), "{}", gateway.log());
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The socket was once looked for twice below the folder of a configuration that is named relatively.
#[test]
fn a_relative_configuration_has_its_socket_beside_it() {
    let mut gateway = Gateway::prepare("relative", "");
    let inner = gateway.folder.join("conf");
    std::fs::create_dir(&inner).expect("folder");
    for name in ["contracts", "forebay.toml"] {
        std::fs::rename(gateway.folder.join(name), inner.join(name)).expect("moved");
    }
    let mut child = Command::new(env!("CARGO_BIN_EXE_forebay"))
        .current_dir(&gateway.folder)
        .args(["run", "--config", "conf/forebay.toml"])
        .stderr(Stdio::null())
        .spawn()
        .expect("starts");
    let start = Instant::now();
    let output = loop {
        let output = forebay(&gateway.folder, &["status", "--config", "conf/forebay.toml"]);
        // The listener is there a moment before the socket of the commands.
        if output.status.success() || start.elapsed() > Duration::from_secs(20) {
            break output;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    crate::common::end(&mut child);
    gateway.stop();
    assert!(output.status.success(), "{}", said(&output));
}

/// A newline in a topic once made a row of its own in `dead list`, and escapes reached the terminal.
#[test]
fn nothing_a_device_sends_acts_on_a_terminal_or_forges_a_line() {
    let nasty = "a\u{9b}31m\u{202e}b\nforged line";
    let gateway = Gateway::start("escapes", "");
    let hello = Hello { client: "cl\u{9b}\u{202e}ient", ..Hello::default() };
    let (mut client, _) = Client::connect(gateway.address, &hello);
    let mut tail = Command::new(env!("CARGO_BIN_EXE_forebay"))
        .args(["tail", "--config"])
        .arg(gateway.config())
        .stdout(Stdio::piped())
        .spawn()
        .expect("tail");
    let mut lines = BufReader::new(tail.stdout.take().expect("piped")).lines();
    std::thread::sleep(Duration::from_millis(500));
    client.publish(true, 1, &format!("lost/{nasty}"), format!("\u{1b}[2J{nasty}").as_bytes());
    client.publish(
        true,
        2,
        "plant/line1/m\u{9b}1/state",
        "{\"msg_id\":\"1\u{202e}\",\"state\":\"running\",\"note\":\"\u{9b}\u{2066}\"}".as_bytes(),
    );
    let seen = lines.next().expect("an event").expect("text");
    crate::common::kill(&mut tail);
    let is_plain = |text: &str| {
        !text.chars().any(|letter| {
            letter != '\n' && letter.is_control()
                || ('\u{202a}'..='\u{202e}').contains(&letter)
                || ('\u{2066}'..='\u{2069}').contains(&letter)
        })
    };
    assert!(is_plain(&seen) && seen.contains("\\u{9b}"), "{seen:?}");
    for command in [
        &["dead", "list", "CONFIG"][..],
        &["dead", "show", "1", "CONFIG"],
        &["status", "CONFIG"],
        &["dead", "list", "--json", "CONFIG"],
    ] {
        let text = said(&gateway.command(command));
        assert!(is_plain(&text), "{command:?}: {text:?}");
        if !command.contains(&"show") {
            assert!(!text.lines().any(|line| line.starts_with("forged")), "{command:?}: {text}");
        }
    }
    let letters: serde_json::Value =
        serde_json::from_slice(&gateway.command(&["dead", "list", "--json", "CONFIG"]).stdout).expect("JSON");
    assert_eq!(letters[0]["topic"], format!("lost/{nasty}"), "JSON says what it was");
    // A line of the log is one line as well.
    drop(client);
    let (mut bad, _) =
        Client::connect(gateway.address, &Hello { client: "x\u{9b}\u{202e}y\nforged", ..Hello::default() });
    bad.send(&[0xFF, 0xFF, 0xFF, 0xFF, 0xFF]);
    while bad.receive().is_some() {}
    let start = Instant::now();
    while !gateway.log().contains("forged") {
        assert!(start.elapsed() < Duration::from_secs(10), "the log does not name the client: {}", gateway.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    let log = gateway.log();
    assert!(is_plain(&log) && !log.lines().any(|line| line.starts_with("forged")), "{log:?}");
}

fn add_user(folder: &Path, file: &str, name: &str, password: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_forebay"))
        .current_dir(folder)
        .args(["user", "add", "--file", file, name])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("runs");
    writeln!(child.stdin.take().expect("piped"), "{password}").expect("written");
    child.wait_with_output().expect("ends")
}

#[test]
fn a_password_file_keeps_its_place_its_owner_and_its_mode() {
    let folder = scratch_folder("users");
    let at = |name: &str| folder.path().join(name);
    // A name without a folder once failed after the file was replaced.
    let output = add_user(folder.path(), "devices.passwd", "press", "long-enough");
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(std::fs::metadata(at("devices.passwd")).expect("made").mode() & 0o777, 0o640);

    std::fs::set_permissions(at("devices.passwd"), std::fs::Permissions::from_mode(0o604)).expect("set");
    let is_root = crate::common::need::is_root();
    if is_root {
        std::os::unix::fs::chown(at("devices.passwd"), Some(4321), Some(1234)).expect("given away");
    }
    std::os::unix::fs::symlink("devices.passwd", at("link")).expect("linked");
    std::fs::write(at("devices.tmp"), "somebody's").expect("written");
    let output = add_user(folder.path(), "link", "robot", "long-enough");
    assert!(output.status.success(), "{}", said(&output));
    assert!(std::fs::symlink_metadata(at("link")).expect("there").is_symlink(), "a link stays a link");
    let found = std::fs::metadata(at("devices.passwd")).expect("there");
    assert_eq!(found.mode() & 0o777, 0o604);
    assert!(!is_root || (found.uid(), found.gid()) == (4321, 1234));
    let text = std::fs::read_to_string(at("devices.passwd")).expect("read");
    assert!(text.contains("press:$argon2id$") && text.contains("robot:$argon2id$"), "{text}");
    assert_eq!(std::fs::read_to_string(at("devices.tmp")).expect("read"), "somebody's");
    assert_eq!(std::fs::read_dir(folder.path()).expect("read").count(), 3, "nothing is left behind");

    for content in ["-----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----\n", "press:plain\n"] {
        std::fs::write(at("gw.key"), content).expect("written");
        let output = add_user(folder.path(), "gw.key", "press", "long-enough");
        assert_refused(&output, &["gw.key:1", "argon2id"]);
        assert!(!said(&output).contains("MIIE"), "{}", said(&output));
        assert_eq!(std::fs::read_to_string(at("gw.key")).expect("read"), content);
    }
}

#[test]
fn a_new_user_needs_no_restart_and_a_broken_file_changes_nothing() {
    let mut gateway = Gateway::prepare("reload", "");
    let file = gateway.folder.join("devices.passwd");
    assert!(add_user(&gateway.folder, "devices.passwd", "press", "long-enough").status.success());
    let config = std::fs::read_to_string(gateway.config()).expect("read");
    std::fs::write(gateway.config(), format!("{config}passwords = \"devices.passwd\"\n")).expect("written");
    gateway.run();
    let can_log_in = |name: &str, password: &str| {
        let mut client = Client::dial(gateway.address);
        client.send(&Hello { client: name, login: Some((name, password)), ..Hello::default() }.bytes());
        client.receive().is_some_and(|answer| answer[2] == 0)
    };
    let await_login = |name: &str, password: &str, wanted: bool| {
        let start = Instant::now();
        while can_log_in(name, password) != wanted {
            assert!(start.elapsed() < Duration::from_secs(20), "{name}, {password}: not {wanted}");
            std::thread::sleep(Duration::from_millis(200));
        }
    };
    assert!(can_log_in("press", "long-enough") && !can_log_in("robot", "long-enough"));
    assert!(add_user(&gateway.folder, "devices.passwd", "robot", "long-enough").status.success());
    await_login("robot", "long-enough", true);
    // A new password counts too, and the old one, though it was right before, no longer.
    assert!(add_user(&gateway.folder, "devices.passwd", "press", "another-one").status.success());
    await_login("press", "another-one", true);
    assert!(!can_log_in("press", "long-enough"));
    std::fs::write(&file, "# broken\nrobot\n").expect("written");
    let start = Instant::now();
    while !gateway.log().contains("devices.passwd:2") {
        assert!(can_log_in("robot", "long-enough"), "the users before stay in force");
        assert!(start.elapsed() < Duration::from_secs(20), "{}", gateway.log());
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(can_log_in("robot", "long-enough"));
    // SIGHUP is what people send after a change; it once ended the gateway.
    let pid = gateway.pid().to_string();
    assert!(Command::new("kill").args(["-HUP", &pid]).status().expect("kill").success());
    while !gateway.log().contains("the new configuration is refused") {
        assert!(start.elapsed() < Duration::from_secs(40), "{}", gateway.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(can_log_in("robot", "long-enough"));
}

#[test]
fn contracts_are_not_called_new_where_the_journal_cannot_be_read() {
    use std::os::unix::process::CommandExt;
    let mut gateway = Gateway::start("unreadable", "");
    gateway.stop();
    // As another user; where the test is one that root obeys not, its own folder is closed to it.
    let is_root = crate::common::need::is_root();
    let journal = gateway.folder.join("data/journal");
    let closed = std::fs::Permissions::from_mode(if is_root { 0o700 } else { 0 });
    std::fs::set_permissions(&journal, closed).expect("set");
    std::fs::set_permissions(gateway.folder.join("data"), std::fs::Permissions::from_mode(0o755)).expect("set");
    let program = program_for_everybody(&gateway.folder);
    let ask = |arguments: &[&str]| {
        let mut command = Command::new(&program);
        command.args(arguments).arg("--config").arg(gateway.config());
        if is_root {
            command.uid(65534).gid(65534);
        }
        command.output().expect("runs")
    };
    for arguments in [&["contracts", "check"][..], &["check"]] {
        assert_refused(&ask(arguments), &["data_dir", "cannot write", "as the user"]);
    }
    std::fs::set_permissions(&journal, std::fs::Permissions::from_mode(0o700)).expect("set");
}

/// `run` once took a contract that `contracts check` refuses, and broke the consumers it was to protect.
#[test]
fn what_contracts_check_refuses_does_not_run() {
    let mut gateway = Gateway::start("gate", "");
    gateway.stop();
    let contract = gateway.folder.join("contracts/state.toml");
    let schema = gateway.folder.join("contracts/state.json");
    let (old_contract, old_schema) =
        (std::fs::read_to_string(&contract).expect("read"), std::fs::read_to_string(&schema).expect("read"));
    let narrower = old_schema.replace(r#","fault""#, "");
    for (version, schema_text, word) in [
        ("1.0.0", &narrower, "version 1.0.0 is in force with another content; raise it"),
        ("1.1.0", &narrower, "/state: no longer allows \"fault\""),
        ("1.0.0", &old_schema.replace("integer", "number"), "another content"),
    ] {
        std::fs::write(&contract, old_contract.replace("1.0.0", version)).expect("written");
        std::fs::write(&schema, schema_text).expect("written");
        for command in [&["contracts", "check", "CONFIG"][..], &["check", "CONFIG"], &["run", "CONFIG"]] {
            assert_refused(&gateway.command(command), &["contracts/state.toml", word]);
        }
    }
    // A version may rise and not fall.
    std::fs::write(&schema, &old_schema).expect("written");
    std::fs::write(&contract, old_contract.replace("1.0.0", "1.2.0")).expect("written");
    gateway.run();
    gateway.stop();
    std::fs::write(&contract, old_contract.replace("1.0.0", "1.1.9")).expect("written");
    assert_refused(&gateway.command(&["run", "CONFIG"]), &["version 1.2.0 is in force, and 1.1.9 is older"]);
    // Another site changes no contract.
    std::fs::write(&contract, old_contract.replace("1.0.0", "1.2.0")).expect("written");
    let config = std::fs::read_to_string(gateway.config()).expect("read");
    std::fs::write(gateway.config(), config.replace("site = \"plant\"", "site = \"plant-2\"")).expect("written");
    let output = gateway.command(&["check", "CONFIG"]);
    assert!(output.status.success(), "{}", said(&output));
}

#[test]
fn dead_letters_fit_the_screen_and_say_when() {
    let gateway = Gateway::start("letters", "");
    let (mut client, _) = Client::connect(gateway.address, &Hello::default());
    let topic = format!("lost/{}", "far/".repeat(40));
    client.publish(true, 1, &format!("{topic}x"), b"x");
    client.publish(true, 2, "plant/line1/m01/state", b"");
    let text = said(&gateway.command(&["dead", "list", "CONFIG"]));
    assert!(text.contains('…') && text.lines().all(|line| line.chars().count() < 220), "{text}");
    assert!(text.contains("payload: is empty"), "{text}");
    let whole = said(&gateway.command(&["dead", "show", "1", "CONFIG"]));
    assert!(whole.contains(&format!("{topic}x")), "nothing is cut there: {whole}");
    let output = gateway.command(&["dead", "list", "--limit", "0", "CONFIG"]);
    assert!(output.status.code() == Some(2) && said(&output).contains("1..=10000"), "{}", said(&output));
    let output = gateway.command(&["dead", "list", "--json", "--limit", "1", "CONFIG"]);
    let letters: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((letters.as_array().map(Vec::len), &letters[0]["id"]), (Some(1), &2.into()), "the newest: {letters}");
    for name in ["recorded", "time", "first_attempt", "last_attempt"] {
        let at = letters[0][name].as_str().unwrap_or_else(|| panic!("{name} is text: {letters}"));
        assert!(at.len() == 27 && at.ends_with('Z'), "{name}: {at}");
    }
}

#[test]
fn all_is_well_only_where_there_is_nothing_to_say() {
    let gateway = Gateway::start("notes", "");
    let text = said(&gateway.command(&["status", "CONFIG"]));
    assert!(text.contains("no destination is configured") && !text.contains("all is well"), "{text}");
    let (mut client, _) = Client::connect(gateway.address, &Hello::default());
    client.publish(true, 1, "lost/topic", b"x");
    let text = said(&gateway.command(&["status", "CONFIG"]));
    assert!(text.contains("dead letters: 1; see `forebay dead list`"), "{text}");
}

#[test]
fn tail_follows_a_stream_by_either_name_and_says_when_the_gateway_ends() {
    let mut gateway = Gateway::start("tail", "");
    let output = gateway.command(&["tail", "--stream", "machine.sate", "CONFIG"]);
    assert_refused(&output, &["there is no stream \"machine.sate\"; there are ", "machine.state.v1"]);
    let output = gateway.command(&["replay", "--to", "nobody", "--all", "CONFIG"]);
    assert_refused(&output, &["there is no destination \"nobody\"; none is configured"]);
    let mut tails: Vec<_> = ["machine.state", "machine.state.v1", "machine.*"]
        .map(|stream| {
            Command::new(env!("CARGO_BIN_EXE_forebay"))
                .args(["tail", "--stream", stream, "--config"])
                .arg(gateway.config())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("tail")
        })
        .into();
    std::thread::sleep(Duration::from_millis(1500));
    let (mut client, _) = Client::connect(gateway.address, &Hello::default());
    client.publish(true, 1, "plant/line1/m01/state", crate::common::gateway::payload(1, 1).as_bytes());
    for tail in &mut tails {
        let line = BufReader::new(tail.stdout.take().expect("piped")).lines().next().expect("a line").expect("text");
        assert!(line.contains("machine.state") && line.contains("01-00000001"), "{line}");
    }
    gateway.kill();
    for tail in tails {
        let output = tail.wait_with_output().expect("ends");
        assert_refused(&output, &["the gateway has ended"]);
    }
    assert_refused(&gateway.command(&["status", "CONFIG"]), &["no gateway answers", "has ended"]);
    let socket = gateway.folder.join("data/forebay.sock");
    std::fs::remove_file(&socket).expect("removed");
    assert_refused(&gateway.command(&["status", "CONFIG"]), &["no gateway answers", "no such socket"]);
    std::fs::write(&socket, "").expect("written");
    assert_refused(&gateway.command(&["status", "CONFIG"]), &["is no socket"]);
}

#[test]
fn a_demo_whose_reader_goes_away_ends_quietly() {
    let folder = scratch_folder("pipe");
    let mut child = Command::new(env!("CARGO_BIN_EXE_forebay"))
        .args(["demo", "--run-for", "60s", "--folder"])
        .arg(folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("demo");
    let mut out = BufReader::new(child.stdout.take().expect("piped"));
    let mut line = String::new();
    out.read_line(&mut line).expect("a line");
    drop(out);
    let start = Instant::now();
    let output = child.wait_with_output().expect("ends");
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    assert!(start.elapsed() < Duration::from_secs(40), "it does not go on for nobody");
    let output = Command::new(env!("CARGO_BIN_EXE_forebay")).args(["demo", "--rate", "0"]).output().expect("runs");
    assert!(output.status.code() == Some(2) && said(&output).contains("1..=100000"), "{}", said(&output));
}

/// Two gateways of one name took each other's sessions for ever, several times a second, without a word.
#[test]
fn two_gateways_of_one_name_say_so_and_step_back() {
    let folder = scratch_folder("twins");
    let pki = Pki::write(folder.path());
    let broker = Mosquitto::start(folder.path(), &pki);
    let destination = broker.destination(&pki, broker.tls.port());
    let twins = [Gateway::start("twin-a", &destination), Gateway::start("twin-b", &destination)];
    let start = Instant::now();
    let says = |gateway: &Gateway| gateway.log().contains("is there a second gateway of that name?");
    while !twins.iter().any(says) {
        assert!(start.elapsed() < Duration::from_secs(30), "{}", twins[0].log());
        std::thread::sleep(Duration::from_millis(100));
    }
    let takeovers = || twins.iter().map(|gateway| gateway.log().matches("link up").count()).sum::<usize>();
    std::thread::sleep(Duration::from_secs(6));
    let before = takeovers();
    std::thread::sleep(Duration::from_secs(6));
    // Three lanes; without stepping back some three a second for each.
    assert!(takeovers() - before < 20, "{} in six seconds", takeovers() - before);
}

#[test]
fn a_certificate_of_version_1_is_named_with_what_is_needed() {
    let mut gateway = Gateway::prepare("v1", "");
    let run = |arguments: &str| {
        let output =
            Command::new("openssl").args(arguments.split(' ')).current_dir(&gateway.folder).output().expect("openssl");
        assert!(output.status.success(), "{}", said(&output));
    };
    run("req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout gw.key -out gw.csr -subj /CN=gw");
    run("x509 -req -in gw.csr -signkey gw.key -out gw.pem -days 9");
    let config = std::fs::read_to_string(gateway.config()).expect("read");
    std::fs::write(
        gateway.config(),
        format!("{config}tls = {{ cert = \"gw.pem\", key = \"gw.key\", client_ca = \"gw.pem\" }}\n"),
    )
    .expect("written");
    assert_refused(&gateway.command(&["check", "CONFIG"]), &["source.mqtt[0].tls", "gw.pem", "must be of version 3"]);
    gateway.stop();
}

/// What the command socket answers to these bytes.
fn asked(socket: &Path, request: &[u8]) -> String {
    let mut stream = UnixStream::connect(socket).expect("connects");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
    // It may answer and close before it has read everything.
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn the_command_socket_has_a_word_for_what_it_does_not_understand() {
    let gateway = Gateway::start("socket-words", "");
    let socket = gateway.folder.join("data/forebay.sock");
    let bare = |line: &str, body: &str| {
        let length = body.len();
        let head = format!("{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n");
        asked(&socket, (head + body).as_bytes())
    };
    let large = "x".repeat(3 << 20);
    for (line, body, status, word) in [
        ("GET /nothing", "", "404", "GET /nothing is not answered here"),
        ("GET /dead/x", "", "404", "GET /dead/x is not answered here"),
        ("GET /dead/4", "", "404", "there is no dead letter 4"),
        ("GET /dead?limit=few", "", "400", "limit is \"few\"; expected a number"),
        ("GET /tail?stream=no%20such.v1", "", "404", "no such.v1"),
        ("PUT /status", "", "404", "PUT /status is not answered here"),
        ("POST /status", "", "404", "POST /status is not answered here"),
        ("POST /replay", "{\"destination\":", "400", "the body: EOF"),
        ("POST /replay", &large, "413", "too large"),
        ("DELETE /destination/no%2Fsuch", "", "404", "\"no/such\""),
    ] {
        let answer = bare(line, body);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")) && answer.contains(word), "{line}: {answer}");
    }
    assert!(bare("HEAD /status", "").starts_with("HTTP/1.1 200 "));
    assert!(asked(&socket, b"\x00\x16\x03nonsense\r\n\r\n").starts_with("HTTP/1.1 400 "));
    assert_eq!(gateway.status()["name"], "gw", "it answers as before");
}

/// Whoever follows events and has stopped reading would keep the gateway from its end.
#[test]
fn nobody_at_the_command_socket_holds_up_a_stop() {
    let mut gateway = Gateway::start("socket-stop", "");
    let socket = gateway.folder.join("data/forebay.sock");
    let held: Vec<_> = [
        "GET /tail HTTP/1.1\r\nhost: x\r\n\r\n",
        "GET /sta",
        "POST /replay HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{",
    ]
    .iter()
    .map(|part| {
        let mut stream = UnixStream::connect(&socket).expect("connects");
        stream.write_all(part.as_bytes()).expect("sent");
        stream
    })
    .collect();
    std::thread::sleep(Duration::from_millis(200));
    let began = Instant::now();
    gateway.stop();
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}: {}", began.elapsed(), gateway.log());
    assert!(!gateway.log().contains("left behind"), "{}", gateway.log());
    drop(held);
}
