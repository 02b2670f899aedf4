//! The log of the real program: an event followed on its way, secrets that stay out of it, and systemd's journal.

use crate::common::centre::Centre;
use crate::common::client::{Client, Hello, publish};
use crate::common::free_address;
use crate::common::gateway::{Gateway, payload, sum};
use crate::common::http;
use crate::common::need;
use forebay::sources::http::put_token;
use forebay::sources::mqtt::put_user;
use std::process::Command;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);

fn deliver(gateway: &Gateway, count: usize) {
    let (mut device, _) = Client::connect(gateway.address, &Hello::default());
    for sequence in 0..count {
        device.publish(true, sequence as u16 + 1, "plant/a/m1/state", payload(1, sequence).as_bytes());
    }
    gateway.await_status("delivered", PATIENCE, |status| sum(status, "delivered") >= count as u64);
}

#[test]
fn an_event_can_be_followed_from_its_source_to_central() {
    let centre = Centre::start();
    let rest = format!("\n[log]\nformat = \"json\"\nsample = 1\n{}", centre.destination("central"));
    let mut gateway = Gateway::start("followed", &rest);
    deliver(&gateway, 3);
    gateway.stop();
    let lines: Vec<serde_json::Value> =
        gateway.log().lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect();
    let steps: Vec<&serde_json::Value> = lines.iter().filter(|line| line["span"]["id"] == "01-00000002").collect();
    let said: Vec<&str> = steps.iter().map(|line| line["fields"]["message"].as_str().expect("a message")).collect();
    assert_eq!(said.len(), 4, "{steps:?}");
    for (said, start) in said.iter().zip(["taken in", "on the disk", "sent to central", "settled"]) {
        assert!(said.starts_with(start), "{said}");
    }
    assert_eq!(steps[2]["fields"]["destination"], "central");
    assert_eq!(steps[3]["fields"]["outcome"], "Delivered");
    assert!(lines.iter().any(|line| line["level"] == "INFO"), "the rest is logged as ever");
    assert!(!lines.iter().any(|line| line["level"] == "DEBUG" && line["target"] != "forebay::event"), "{lines:?}");
}

#[test]
fn by_default_no_event_is_in_the_log_and_in_a_sample_some_are() {
    let count = |rest: &str, name: &str| {
        let centre = Centre::start();
        let mut gateway = Gateway::start(name, &format!("{rest}{}", centre.destination("central")));
        deliver(&gateway, 200);
        gateway.stop();
        gateway.log().lines().filter(|line| line.contains("settled")).count()
    };
    assert_eq!(count("\n", "unfollowed"), 0);
    let followed = count("\n[log]\nsample = 10\n", "sampled");
    assert!((5..50).contains(&followed), "{followed}");
}

#[test]
fn neither_payload_nor_secret_is_in_the_log_at_any_level() {
    const PAYLOAD: &str = "payload-48151623";
    const SECRETS: [&str; 5] = ["correct horse battery", "wrong horse", "tok-never-given", "central-pass-77", PAYLOAD];
    let (centre, web) = (Centre::start(), free_address());
    let destination = centre.destination("central");
    let rest = format!(
        "\n[[source.http]]\nname = \"web\"\nlisten = \"{web}\"\ntokens = \"tokens\"\n{destination}\nuser = \"gw\"\npassword_file = \"central.password\"\n"
    );
    let mut gateway = Gateway::prepare("masked", &rest);
    gateway.environment.push(("FOREBAY_LOG".into(), "trace".into()));
    let file = |name: &str| gateway.folder.join(name);
    put_user(&file("passwd"), "press", SECRETS[0].as_bytes()).expect("written");
    std::fs::write(file("central.password"), SECRETS[3]).expect("written");
    let token = put_token(&file("tokens"), "erp").expect("written");
    use std::os::unix::fs::PermissionsExt;
    for name in ["passwd", "central.password", "tokens"] {
        std::fs::set_permissions(file(name), std::fs::Permissions::from_mode(0o600)).expect("set");
    }
    let text = std::fs::read_to_string(gateway.config()).expect("read");
    let text = text.replace("name = \"devices\"\n", "name = \"devices\"\npasswords = \"passwd\"\n");
    std::fs::write(gateway.config(), text).expect("written");
    gateway.run();
    let wrong = Hello { login: Some(("press", SECRETS[1])), ..Hello::default() };
    let (_refused, answer) = Client::connect(gateway.address, &wrong);
    assert_ne!(answer.get(2), Some(&0), "the wrong password is refused");
    let right = Hello { login: Some(("press", SECRETS[0])), ..Hello::default() };
    let (mut device, _) = Client::connect(gateway.address, &right);
    let good = payload(1, 1).replace("some text", PAYLOAD);
    device.publish(true, 1, "plant/press/m1/state", good.as_bytes());
    device.publish(true, 2, "plant/press/m1/state", good.replace("running", PAYLOAD).as_bytes());
    device.publish(true, 3, "plant/press/m1/nowhere", PAYLOAD.as_bytes());
    device.send(&publish(true, 1, 4, "other/press", &[], PAYLOAD.as_bytes()));
    for token in [SECRETS[2], &token] {
        let bearer = format!("Bearer {token}");
        http::Client::dial(web).post(
            "/events/erp",
            &[("authorization", &bearer), ("content-type", "application/json")],
            PAYLOAD.as_bytes(),
        );
    }
    gateway.await_status("delivered", PATIENCE, |status| sum(status, "delivered") >= 1);
    gateway.stop();
    let log = gateway.log();
    assert!(log.contains("DEBUG") || log.contains("TRACE"), "{log}");
    for secret in SECRETS.into_iter().chain([token.as_str()]) {
        assert!(!log.contains(secret), "{secret} is in the log:\n{log}");
    }
}

/// Hears systemd's journal where the program looks for it, in a file system of its own.
const JOURNAL: &str = r#"
import os, socket, subprocess, sys
os.makedirs("/run/systemd/journal", exist_ok=True)
journal = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
journal.bind("/run/systemd/journal/socket")
stream = open(sys.argv[1] + "/stderr", "w")
found = os.fstat(stream.fileno())
environment = dict(os.environ, JOURNAL_STREAM=f"{found.st_dev}:{found.st_ino}")
child = subprocess.Popen(sys.argv[2:], stderr=stream, env=environment)
journal.settimeout(20)
try:
    while True:
        entry = journal.recv(65536)
        if b"MESSAGE" in entry and b"ready\n" in entry:
            sys.stdout.write(entry.decode(errors="replace"))
            break
finally:
    child.terminate()
    child.wait()
"#;

#[test]
fn where_standard_error_is_the_journal_entries_have_fields() {
    if !need::root("a file system of its own for the socket of systemd's journal") {
        return;
    }
    let gateway = Gateway::prepare("journald", "");
    let inside = r#"mount -t tmpfs none /run && exec python3 -c "$0" "$@""#;
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c", inside, JOURNAL])
        .arg(&gateway.folder)
        .arg(env!("CARGO_BIN_EXE_forebay"))
        .args(["run", "--config"])
        .arg(gateway.config())
        .output()
        .expect("unshare runs");
    let (entry, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    for wanted in [
        "PRIORITY\n\u{1}\0\0\0\0\0\0\u{0}5\n",
        "SYSLOG_IDENTIFIER",
        "FOREBAY_LISTENING",
        "FOREBAY_VERSION",
        &gateway.address.to_string(),
    ] {
        assert!(entry.contains(wanted), "{wanted}: {entry}{said}");
    }
    let stderr = std::fs::read_to_string(gateway.folder.join("stderr")).expect("read");
    assert_eq!(stderr, "", "nothing is written twice");
}
