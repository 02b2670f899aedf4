//! Who may change what at the command socket: whoever the kernel names, and nobody else. The same under the real unit
//! is `tests/package/unit`.

use crate::common::client::{Client, Hello};
use crate::common::gateway::Gateway;
use crate::common::need;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A user that no machine has.
const STRANGER: &str = "1234";

/// Every request that changes something, or takes events out.
const CHANGES: [(&str, &str, &str); 12] = [
    ("POST", "/dead/discard", r#"{"all":true}"#),
    ("POST", "/dead/requeue", r#"{"all":true}"#),
    ("POST", "/dead/1/edit", r#"{"payload":"{}"}"#),
    ("POST", "/replay", r#"{"destination":"central","filter":{}}"#),
    ("POST", "/replay/1/cancel", "null"),
    ("POST", "/clock/trust", "null"),
    ("POST", "/reload", ""),
    ("POST", "/journal/export", r#"{"selection":{},"with_offsets":false}"#),
    ("POST", "/journal/verify", ""),
    ("POST", "/journal/backup", r#"{"to":"/var/tmp/forebay-never"}"#),
    ("DELETE", "/destination/central", ""),
    ("POST", "/destination/central", ""),
];

fn allow(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("mode");
}

/// A gateway whose socket lies in a folder that everybody may enter.
fn prepared(name: &str) -> Gateway {
    let gateway = Gateway::prepare(name, "socket = \"open/forebay.sock\"\n");
    std::fs::create_dir(gateway.folder.join("open")).expect("folder");
    allow(&gateway.folder, 0o755);
    allow(&gateway.folder.join("open"), 0o755);
    gateway
}

/// Starts it, and returns its socket once it answers.
fn opened(gateway: &mut Gateway) -> PathBuf {
    gateway.run();
    gateway.status();
    gateway.folder.join("open/forebay.sock")
}

/// What the socket answers to a user: status and text.
fn asked_by(user: &str, socket: &Path, (method, path, body): (&str, &str, &str)) -> (String, String) {
    let output = Command::new("setpriv")
        .args(["--reuid", user, "--regid", user, "--clear-groups", "curl", "-s", "-m", "20", "-w", "\n%{http_code}"])
        .arg("--unix-socket")
        .arg(socket)
        .args(["-X", method, "-d", body, &format!("http://gateway{path}")])
        .output()
        .expect("setpriv and curl run");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (text, status) = text.rsplit_once('\n').unwrap_or(("", ""));
    (status.to_owned(), format!("{text}{}", String::from_utf8_lossy(&output.stderr)))
}

/// With a namespace of its own (systemd's `PrivateUsers=yes` makes one) the kernel calls everybody 65534, and the audit
/// said that nobody had discarded the dead letters.
#[test]
fn a_gateway_that_cannot_name_its_caller_changes_nothing_for_him() {
    if !need::root("a second user in a user namespace") {
        return;
    }
    let mut gateway = prepared("hidden");
    gateway.through = ["unshare", "--user", "--map-root-user"].map(str::to_owned).into();
    let socket = opened(&mut gateway);
    allow(&socket, 0o666);
    let (mut client, _) = Client::connect(gateway.address, &Hello::default());
    client.publish(true, 1, "lost/topic", b"x");

    for change in CHANGES {
        let (status, text) = asked_by(STRANGER, &socket, change);
        assert!(
            status == "403" && text.contains("65534") && text.contains("PrivateUsers"),
            "{change:?}: {status} {text}"
        );
    }
    let (status, text) = asked_by(STRANGER, &socket, ("GET", "/dead", ""));
    assert!(
        status == "200" && text.contains("\"state\":\"held\""),
        "looking is allowed, and nothing has changed: {text}"
    );
    let audit = || String::from_utf8(gateway.command(&["audit", "--json", "CONFIG"]).stdout).expect("text");
    assert_eq!(serde_json::from_str::<serde_json::Value>(&audit()).expect("JSON"), serde_json::json!([]));

    let (status, text) = asked_by("0", &socket, CHANGES[0]);
    assert_eq!(status, "200", "root has a name inside: {text}");
    let audit: serde_json::Value = serde_json::from_str(&audit()).expect("JSON");
    assert_eq!((&audit[0]["by"], &audit[0]["action"]), (&0.into(), &"dead discard".into()), "{audit}");
}

#[test]
fn a_change_is_audited_with_the_user_who_asked() {
    if !need::root("a second user") {
        return;
    }
    let mut gateway = prepared("named");
    let socket = opened(&mut gateway);
    let (status, text) = asked_by(STRANGER, &socket, CHANGES[0]);
    assert_eq!(status, "000", "the mode of the socket keeps him out: {text}");
    allow(&socket, 0o666);
    let (mut client, _) = Client::connect(gateway.address, &Hello::default());
    client.publish(true, 1, "lost/topic", b"x");
    let (status, text) = asked_by(STRANGER, &socket, CHANGES[0]);
    assert_eq!(status, "200", "{text}");
    let audit = gateway.command(&["audit", "--json", "CONFIG"]).stdout;
    let audit: serde_json::Value = serde_json::from_slice(&audit).expect("JSON");
    assert_eq!((&audit[0]["by"], &audit[0]["action"]), (&1234.into(), &"dead discard".into()), "{audit}");
}
