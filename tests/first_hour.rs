//! The first hour of a newcomer: `init`, where the configuration is found, `contracts try`, and mistakes that were silent.

use crate::common::gateway::{Gateway, scratch_folder};
use crate::common::program::{PROGRAM, assert_has, forebay, good, said};
use crate::common::{end, free_address};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// One command from an empty folder to an event at central, over TLS with client certificates on both sides.
#[test]
fn the_first_event_arrives_with_one_command_with_and_without_tls() {
    for arguments in [&["init", "--test"][..], &["init", "--test", "--tls"]] {
        let folder = scratch_folder("init");
        let text = good(folder.path(), arguments);
        assert_has(
            &text,
            &["the first event is at central", "test/plant-01/machine.state/v1/press-1", "\"state\":\"running\""],
        );
        // A second time: certificates, user and journal are those of the first.
        let key = std::fs::read(folder.path().join("ca.key")).expect("a key");
        let password = std::fs::read(folder.path().join("press-1.password")).expect("a password");
        let refused = said(&forebay(folder.path(), &["init", "--test"]));
        assert_has(&refused, &["forebay.toml exists", "--yes"]);
        let text = good(folder.path(), &[arguments, &["--yes"]].concat());
        assert_has(&text, &["the first event is at central"]);
        assert_eq!(std::fs::read(folder.path().join("ca.key")).expect("a key"), key);
        assert_eq!(std::fs::read(folder.path().join("press-1.password")).expect("a password"), password);
        assert!(folder.path().join("forebay.toml.old").is_file());
    }
}

#[test]
fn init_writes_a_configuration_that_is_good_and_secrets_that_nobody_else_reads() {
    let folder = scratch_folder("init");
    let folder = folder.path();
    good(folder, &["cert", "ca", "--folder", "central", "--name", "Central CA"]);
    let central = ["--central", "mqtts://central.example.com", "--central-ca", "central/ca.pem"];
    let names = ["--site", "plant-07", "--name", "gw-07", "--environment", "test", "--device", "robot-3"];
    let text = good(folder, &[&["init", "--yes", "--tls"], &central[..], &names].concat());
    assert_has(&text, &["forebay run -c", "robot-3.pem", "mosquitto_pub", "ca.key in a safe place"]);
    let text = good(folder, &["check", "--strict"]);
    assert_has(&text, &["good, with 5 contracts"]);
    let text = good(folder, &["cert", "show", "gateway.pem", "--host", "gw-07"]);
    assert_has(&text, &["environment \"test\"", "the gateway shows it to \"central\""]);
    for secret in ["ca.key", "gateway.key", "robot-3.key", "robot-3.password"] {
        let mode = std::fs::metadata(folder.join(secret)).expect("a file").mode();
        assert_eq!(mode & 0o7777, 0o600, "{secret}");
    }
    let rights = good(folder, &["check", "--rights"]);
    assert_has(&rights, &["robot-3: user in"]);
    let empty = scratch_folder("init");
    let text = said(&forebay(empty.path(), &["init"]));
    assert_has(&text, &["no terminal", "--yes", "--site"]);
    let text = said(&forebay(empty.path(), &["init", "--yes", "--site", "plant 07"]));
    assert_has(&text, &["--site", "\"plant 07\" is no name"]);
    assert_eq!(std::fs::read_dir(empty.path()).expect("a folder").count(), 0, "a refused answer writes nothing");
}

/// Every command once wanted `--config forebay.toml`.
#[test]
fn the_configuration_of_the_working_folder_or_the_environment_is_found() {
    let folder = scratch_folder("found");
    let folder = folder.path();
    good(folder, &["init", "--yes", "--name", "here"]);
    assert_has(&good(folder, &["check"]), &["forebay.toml: good"]);
    let other = folder.join("other");
    good(folder, &["init", "--yes", "--name", "there", "--folder", "other"]);
    let file = other.join("forebay.toml");
    let run = |arguments: &[&str]| {
        let mut command = Command::new(PROGRAM);
        said(&command.current_dir(folder).args(arguments).env("FOREBAY_CONFIG", &file).output().expect("runs"))
    };
    assert_has(&run(&["check"]), &["other/forebay.toml: good"]);
    let here = run(&["check", "-c", "forebay.toml"]);
    assert!(here.starts_with("forebay.toml: good") || here.contains("\nforebay.toml: good"), "{here}");
    assert_has(&run(&["check", "forebay.toml"]), &["forebay.toml: good"]);
    // Before the command it was once "an unexpected argument".
    for arguments in [&["-c", "forebay.toml", "check"][..], &["--config", "forebay.toml", "config", "show"]] {
        let here = run(arguments);
        assert!(here.contains("good") || here.contains("\"here\""), "{arguments:?}: {here}");
        assert!(!here.contains("\"there\"") && !here.contains("other/"), "{arguments:?}: {here}");
    }
}

#[test]
fn a_message_is_tried_on_the_contracts_before_anything_runs() {
    let folder = scratch_folder("try");
    let folder = folder.path();
    good(folder, &["init", "--yes", "--name", "gw-01"]);
    let payload = r#"{"msg_id":"1","ts":"2026-11-23T08:00:00Z","state":"running"}"#;
    let attempt = |topic: &str, payload: &str, more: &[&str]| {
        forebay(folder, &[&["contracts", "try", "--topic", topic, "--payload", payload], more].concat())
    };
    let output = attempt("plant/line-1/press-1/state", payload, &["--user", "press-1"]);
    assert!(output.status.success());
    assert_has(
        &said(&output),
        &[
            "machine.state.v1",
            "lane        critical",
            "key         press-1",
            "id          1",
            "test/plant-01/machine.state/v1/press-1",
            "\"specversion\":\"1.0\"",
            "\"press-1\" may publish it",
            "/plant-01/gw-01/shopfloor/press-1",
        ],
    );
    assert_has(
        &said(&attempt("plant/line-1/press-1/state", payload, &["--user", "press-2"])),
        &["may NOT publish it", "[[source.mqtt.acl]]"],
    );
    for (topic, payload, words) in [
        (
            "plant/line-1/press-1/states",
            payload,
            &[
                "no contract matches it",
                "level 4 is \"states\", not \"state\" (nearest: machine.state, plant/{line}/{machine}/state)",
            ][..],
        ),
        ("plant/press-1/state", payload, &["the topic has 3 levels, not 4"]),
        (
            "plant/line-1/press-1/state",
            r#"{"msg_id":"1","ts":"2026-11-23T08:00:00Z","state":"asleep"}"#,
            &["/state", "dead letter"],
        ),
        ("plant/line-1/press-1/state", "on", &["payload: is no JSON"]),
    ] {
        let output = attempt(topic, payload, &[]);
        assert_eq!(output.status.code(), Some(1), "{topic} {payload}");
        assert_has(&said(&output), words);
    }
    let text = said(&attempt("plant/line-1/press-1/state", payload, &["--source", "broker"]));
    assert_has(&text, &["machine.state has this topic, but its match says source = \"mqtt\""]);
    std::fs::write(folder.join("recorded"), format!("plant/l/press-1/state {payload}\noffice/light on\n"))
        .expect("written");
    let output = forebay(folder, &["contracts", "try", "--recorded", "recorded"]);
    assert_has(&said(&output), &["✓ plant/l/press-1/state", "✗ office/light", "1 of 2 are accepted"]);
    let json = attempt("plant/line-1/press-1/state", payload, &["--json"]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert_eq!(json[0]["central_topic"], "test/plant-01/machine.state/v1/press-1");
}

/// The letter once said only that no contract matches a topic which stood, letter by letter, in a contract.
#[test]
fn the_dead_letter_of_a_mistyped_topic_names_the_nearest_contract() {
    let folder = scratch_folder("nearest");
    let folder = folder.path();
    let address = free_address();
    good(folder, &["init", "--yes", "--name", "gw-01"]);
    let file = folder.join("forebay.toml");
    let text = std::fs::read_to_string(&file).expect("a file");
    let text =
        text.replace("127.0.0.1:1883", &address.to_string()).replace("passwords = \"passwords\"", "anonymous = true");
    std::fs::File::create(&file).and_then(|mut file| file.write_all(text.as_bytes())).expect("written");
    let mut gateway = Command::new(PROGRAM)
        .current_dir(folder)
        .arg("run")
        .env_remove("FOREBAY_CONFIG")
        .stderr(Stdio::null())
        .spawn()
        .expect("starts");
    crate::common::await_port(address);
    let hello = crate::common::client::Hello { client: "press-1", ..Default::default() };
    let (mut client, _) = crate::common::client::Client::connect(address, &hello);
    client.publish(true, 1, "plant/line-1/press-1/stat", b"{}");
    let until = Instant::now() + Duration::from_secs(20);
    let mut letters = String::new();
    while Instant::now() < until && !letters.contains("no contract matches") {
        letters = said(&forebay(folder, &["dead", "list", "--json"]));
    }
    end(&mut gateway);
    assert_has(
        &letters,
        &["no contract matches it; level 4 is \\\"stat\\\", not \\\"state\\\" (nearest: machine.state"],
    );
}

#[test]
fn completions_and_manual_pages_come_from_the_program_itself() {
    let folder = scratch_folder("manual");
    let folder = folder.path();
    assert_has(&good(folder, &["completions", "bash"]), &["_forebay()", "requeue"]);
    assert_has(&good(folder, &["man", "dead", "requeue"]), &[".TH forebay-dead-requeue"]);
    good(folder, &["man", "--output", "pages"]);
    assert!(folder.join("pages/forebay-cert-show.1").is_file());
    assert_has(
        &good(folder, &["--help"]),
        &["First steps:", "forebay init", "Exit codes: 0", "FOREBAY_CONFIG", "NO_COLOR"],
    );
    for (command, words) in [
        ("check", &["--connect", "Exit code 0"][..]),
        ("status", &["--watch", "Examples:"]),
        ("export", &["--output", "Examples:"]),
        ("init", &["Examples:", "--test"]),
    ] {
        assert_has(&good(folder, &[command, "--help"]), words);
    }
    let text = said(&forebay(folder, &["man", "deaf"]));
    assert_has(&text, &["\"deaf\" is no command"]);
}

#[test]
fn users_and_tokens_are_listed_and_removed_without_an_editor() {
    let folder = scratch_folder("users");
    let folder = folder.path();
    good(folder, &["init", "--yes", "--name", "gw-01"]);
    assert_eq!(good(folder, &["user", "list"]), "press-1\n");
    let refused = said(&forebay(folder, &["user", "remove", "press-2"]));
    assert_has(&refused, &["there is no user \"press-2\"", "forebay user list"]);
    assert_has(&good(folder, &["user", "remove", "press-1", "--yes"]), &["press-1", "is removed"]);
    assert_eq!(good(folder, &["user", "list"]), "");
    assert_has(&good(folder, &["token", "add", "mes", "--file", "tokens"]), &["forebay_"]);
    assert_eq!(good(folder, &["token", "list", "--file", "tokens"]), "mes\n");
    good(folder, &["token", "remove", "mes", "--file", "tokens"]);
    assert_eq!(good(folder, &["token", "list", "--file", "tokens"]), "");
    let refused = said(&forebay(folder, &["token", "list"]));
    assert_has(&refused, &["no source of", "tokens", "--file"]);
}

/// It once sent 165,706 events at once, without a question.
#[test]
fn the_whole_journal_is_sent_again_only_on_purpose() {
    let folder = scratch_folder("replay");
    good(folder.path(), &["init", "--yes", "--name", "gw-01"]);
    let refused = said(&forebay(folder.path(), &["replay", "--to", "central"]));
    assert_has(&refused, &["the whole journal", "--since", "--dry-run", "--all"]);
    assert_has(&good(folder.path(), &["--version"]), &["commit:", "journal format: "]);
}

/// What `forebay check` answers to a configuration, in a folder with the contracts of `init`.
fn checked(configuration: &str) -> String {
    let folder = scratch_folder("answer");
    good(folder.path(), &["init", "--yes"]);
    std::fs::write(folder.path().join("forebay.toml"), configuration).expect("written");
    said(&forebay(folder.path(), &["check"]))
}

/// The commonest mistakes of a first configuration, with answers that once named a type of Rust or no line.
#[test]
fn the_answers_of_check_say_what_to_write_instead() {
    let base = "environment = \"test\"\nsite = \"a\"\nname = \"b\"\ndata_dir = \"data\"\n";
    let mqtt = "[[source.mqtt]]\nname = \"a\"\nlisten = \"127.0.0.1:1\"\n";
    let destination = "[[destination]]\nname = \"central\"\nurl = \"mqtts://a\"\n";
    for (configuration, words) in [
        (format!("{base}[source.mqtt]\nname = \"a\"\n"), &["forebay.toml:5", "write [[source.mqtt]]"][..]),
        (
            format!("{base}{destination}tls = true\n"),
            &["forebay.toml:8", "tls = { ca = ", "cert and key if the server wants"],
        ),
        (format!("{base}[lane.bulk]\nlinger = 250\n"), &["forebay.toml:6", "a time with its unit", "250ms"]),
        (format!("{base}{mqtt}[[source.mqtt.acl]]\npublish = \"plant/#\"\n"), &["publish = [\"plant/#\"]"]),
        (String::new(), &["environment = \"test\"", "site = \"plant-01\""]),
        (format!("{base}contracts = \"contract\"\n"), &["forebay.toml:5: contracts", "contract does not exist"]),
        (base.replace("\"data\"", "\"/proc/x\""), &["forebay.toml:4: data_dir", "/proc/x"]),
        (format!("{base}{}", mqtt.replace("listen", "lisen")), &["did you mean \"listen\"?"]),
        (
            format!("{base}[[source.broker]]\nname = \"plant\"\nurl = \"mqtt://a\"\ntopics = [\"plant/#\"]\n"),
            &["no contract has match.source = \"broker\"", "the contracts are for mqtt"],
        ),
        (
            format!("{base}[[source.http]]\nname = \"p\"\nlisten = \"127.0.0.1:1\"\n"),
            &["5 of them have no source here (mqtt)"],
        ),
    ] {
        let text = checked(&configuration);
        assert_has(&text, words);
        assert!(!text.contains("struct ") && !text.contains("ClientFiles"), "{text}");
    }
}

/// Every device refuses such a certificate, and `check` once called it good.
#[test]
fn a_listener_whose_certificate_has_no_alternative_name_is_warned_of() {
    let folder = scratch_folder("name");
    let folder = folder.path();
    good(folder, &["init", "--yes", "--tls"]);
    let made = Command::new("openssl")
        .current_dir(folder)
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=gw"])
        .args(["-keyout", "gateway.key", "-out", "gateway.pem"])
        .output()
        .expect("openssl");
    assert!(made.status.success(), "{}", said(&made));
    assert_has(&good(folder, &["check"]), &["tls.cert", "no DNS name or address", "forebay cert gateway"]);
    assert!(!forebay(folder, &["check", "--strict"]).status.success(), "a warning fails a strict check");
}

/// It once ended in a panic of the database, 17 times of 80.
#[test]
fn salvage_of_a_running_gateway_points_to_export() {
    let gateway = Gateway::start("salvage", "");
    let (mut client, _) = crate::common::client::Client::connect(gateway.address, &Default::default());
    client.publish(true, 1, "plant/line1/m01/state", crate::common::gateway::payload(1, 1).as_bytes());
    let lane = gateway.folder.join("data/journal/critical");
    let segment = std::fs::read_dir(lane).expect("the lane").next().expect("a segment").expect("an entry").path();
    for _ in 0..20 {
        let output = gateway.command(&["salvage", &segment.display().to_string()]);
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert_has(&said(&output), &["a running gateway writes this file", "forebay export"]);
    }
}

/// A message that is refused once appeared nowhere but in `dead list`.
#[test]
fn a_refused_message_appears_in_tail_with_topic_sender_and_reason() {
    let gateway = Gateway::start("tail", "");
    let mut tail = Command::new(PROGRAM)
        .args(["tail", "-c"])
        .arg(gateway.config())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("starts");
    let mut lines = BufReader::new(tail.stdout.take().expect("a pipe")).lines();
    let hello = crate::common::client::Hello { client: "press-9", ..Default::default() };
    let (mut client, _) = crate::common::client::Client::connect(gateway.address, &hello);
    // Until the command follows the log.
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = std::sync::Arc::clone(&stop);
    let publisher = std::thread::spawn(move || {
        for id in 1..u16::MAX {
            client.publish(true, id, "lost/topic", b"x");
            if stopped.load(std::sync::atomic::Ordering::Relaxed) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    let line = lines.next().expect("a line").expect("text");
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    end(&mut tail);
    publisher.join().expect("publishes");
    assert_has(&line, &["dead", "lost/topic", "press-9", "no contract matches it"]);
}

/// `status` counted letters that somebody had decided on, so that people stopped reading the note.
#[test]
fn dead_letters_that_are_decided_are_not_counted_and_are_listed_on_request_only() {
    let gateway = Gateway::start("held", "");
    let (mut client, _) = crate::common::client::Client::connect(gateway.address, &Default::default());
    for (id, topic) in ["lost/a", "lost/b", "plant/line1/m01/state"].into_iter().enumerate() {
        client.publish(true, id as u16 + 1, topic, b"no JSON");
    }
    let run = |arguments: &[&str]| said(&gateway.command(&[arguments, &["CONFIG"]].concat()));
    assert_has(&run(&["status"]), &["dead letters: 3; see `forebay dead list`"]);
    let by_reason = run(&["dead", "list", "--by", "reason"]);
    assert!(by_reason.contains("no contract matches it") && by_reason.contains("payload: is no JSON"), "{by_reason}");
    assert_has(&run(&["dead", "discard", "1"]), &["1 of 1"]);
    assert_has(&run(&["status"]), &["dead letters: 2; see"]);
    let listed = run(&["dead", "list"]);
    assert!(!listed.contains("lost/a") && listed.contains("lost/b"), "{listed}");
    assert_has(&run(&["dead", "list", "--all"]), &["lost/a", "discarded"]);
    let filtered = run(&["dead", "list", "--reason", "JSON"]);
    assert!(!filtered.contains("lost/b") && filtered.contains("plant/line1/m01/state"), "{filtered}");
    run(&["dead", "discard", "--all"]);
    assert!(!run(&["status"]).contains("dead letters: "), "{}", run(&["status"]));
}

/// The command reads 10,000 letters at a time, and once counted no more.
#[test]
fn letters_are_counted_by_their_reason_however_many_there_are() {
    const COUNT: u16 = 10_003;
    let gateway = Gateway::start("many-letters", "");
    let (mut client, _) = crate::common::client::Client::connect(gateway.address, &Default::default());
    for id in 1..=COUNT {
        client.send(&crate::common::client::publish(true, 1, id, "lost/a", &[], b"no JSON"));
    }
    let dead = |status: &serde_json::Value| status["dead"]["held"].as_u64() == Some(COUNT.into());
    gateway.await_status("all are dead letters", Duration::from_secs(60), dead);
    let counted = said(&gateway.command(&["dead", "list", "--by", "reason", "--json", "CONFIG"]));
    let counts: serde_json::Value = serde_json::from_str(&counted).expect("JSON");
    assert_eq!((counts.as_array().map(Vec::len), &counts[0]["count"]), (Some(1), &COUNT.into()), "{counts}");
}

#[test]
fn the_settings_are_shown_with_line_default_and_meaning() {
    let folder = scratch_folder("settings");
    let folder = folder.path();
    good(folder, &["init", "--yes", "--name", "gw-01"]);
    let text = good(folder, &["config", "show"]);
    let line = text.lines().find(|line| line.starts_with("name ")).unwrap_or_else(|| panic!("{text}"));
    assert_has(line, &["\"gw-01\"", "line 4", "name of the gateway"]);
    assert!(!text.contains("default"), "{text}");
    let text = good(folder, &["config", "show", "--all", "source.mqtt"]);
    assert_has(&text, &["source.mqtt[0].listen", "source.mqtt[0].topic_max", "1024", "default"]);
    assert!(!text.contains("ledger_period"), "{text}");
    let json: serde_json::Value = serde_json::from_str(&good(folder, &["config", "show", "--json"])).expect("JSON");
    assert_eq!((&json[0]["key"], &json[0]["line"]), (&"data_dir".into(), &5.into()));
}

/// The whole way of a technician, by the commands that `init` prints: to a broker that wants client certificates.
#[test]
fn four_commands_lead_to_an_event_at_a_broker_behind_mutual_tls() {
    let began = Instant::now();
    let folder = scratch_folder("commands");
    let folder = folder.path();
    // The administrator of central: a broker with an authority of its own.
    let central = folder.join("central");
    std::fs::create_dir(&central).expect("folder");
    good(&central, &["cert", "ca", "--folder", ".", "--name", "Central CA"]);
    good(&central, &["cert", "server", "localhost", "--folder", "."]);
    good(&central, &["cert", "client", "consumer", "--folder", "."]);
    let (port, listen) = (free_address().port(), free_address().to_string());
    // 1
    let url = format!("mqtts://localhost:{port}");
    let names = ["--site", "plant-07", "--name", "gw-07", "--device", "robot-3", "--listen", &listen];
    good(
        folder,
        &[&["init", "--yes", "--tls", "--central", &url, "--central-ca", "central/ca.pem"], &names[..]].concat(),
    );
    // The administrator trusts the authority of the plant.
    let trusted = ["ca.pem", "central/ca.pem"].map(|name| std::fs::read_to_string(folder.join(name)).expect("text"));
    std::fs::write(central.join("trusted.pem"), trusted.concat()).expect("written");
    let conf = format!(
        "user root\nlistener {port} 127.0.0.1\ncafile trusted.pem\ncertfile localhost.pem\nkeyfile localhost.key\nrequire_certificate true\nuse_identity_as_username true\n"
    );
    std::fs::write(central.join("mosquitto.conf"), conf).expect("written");
    let quiet = |program: &str| {
        let mut command = Command::new(program);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    let mut broker =
        quiet("mosquitto").current_dir(&central).args(["-c", "mosquitto.conf"]).spawn().expect("mosquitto");
    crate::common::await_port(([127, 0, 0, 1], port).into());
    // 2
    let text = good(folder, &["check", "--connect"]);
    assert_has(&text, &["TLS (TLSv1_3)", "accepts the login", "came back in"]);
    // 3
    let mut gateway =
        quiet(PROGRAM).current_dir(folder).arg("run").env_remove("FOREBAY_CONFIG").spawn().expect("starts");
    crate::common::await_port(listen.parse().expect("an address"));
    let subscriber = Command::new("mosquitto_sub")
        .current_dir(&central)
        .args([
            "-h",
            "localhost",
            "-p",
            &port.to_string(),
            "--cafile",
            "ca.pem",
            "--cert",
            "consumer.pem",
            "--key",
            "consumer.key",
        ])
        .args(["-t", "test/plant-07/machine.state/#", "-C", "1", "-W", "60", "-v"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("mosquitto_sub");
    // Until the subscription is there, no broker keeps an event for it: publish until it arrives.
    let publish = |number: u32| {
        let payload = format!("{{\"msg_id\":\"{number}\",\"ts\":\"2026-11-23T08:00:00Z\",\"state\":\"running\"}}");
        let port = listen.rsplit(':').next().expect("a port").to_owned();
        // 4
        let published = Command::new("mosquitto_pub")
            .current_dir(folder)
            .args([
                "-h",
                "localhost",
                "-p",
                &port,
                "--cafile",
                "ca.pem",
                "--cert",
                "robot-3.pem",
                "--key",
                "robot-3.key",
            ])
            .args(["-q", "1", "-i", "robot-3", "-t", "plant/line-1/robot-3/state", "-m", &payload])
            .output()
            .expect("mosquitto_pub");
        assert!(published.status.success(), "{}", said(&published));
    };
    let mut subscriber = subscriber;
    for number in 0.. {
        publish(number);
        std::thread::sleep(Duration::from_millis(200));
        if subscriber.try_wait().expect("waits").is_some() {
            break;
        }
    }
    let arrived = said(&subscriber.wait_with_output().expect("ends"));
    end(&mut gateway);
    end(&mut broker);
    assert_has(&arrived, &["test/plant-07/machine.state/v1/robot-3", "/plant-07/gw-07/shopfloor/robot-3"]);
    assert!(began.elapsed() < Duration::from_secs(120), "{:?}", began.elapsed());
}
