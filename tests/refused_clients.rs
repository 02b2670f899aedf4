//! A client that is not let in: a technician sees on one screen who it is, where it is, and why.

use crate::common::client::{Client, Hello};
use crate::common::gateway::Gateway;
use crate::common::program::{assert_has, said};
use crate::common::{await_port, free_address};
use forebay::sources::mqtt::put_user;
use std::io::Write;
use std::net::TcpStream;

/// It once stood in the log alone: a count of the listener, without a name.
#[test]
fn a_refused_login_is_listed_with_user_address_and_cause_until_it_succeeds() {
    let mut gateway = Gateway::prepare("refused-login", "");
    put_user(&gateway.folder.join("users"), "press-9", b"long enough").expect("written");
    let named = free_address();
    let text = std::fs::read_to_string(gateway.config()).expect("a file");
    let source = format!("\n[[source.mqtt]]\nname = \"named\"\nlisten = \"{named}\"\npasswords = \"users\"\n");
    std::fs::write(gateway.config(), text + &source).expect("written");
    gateway.run();
    await_port(named);
    for is_v5 in [true, false] {
        let wrong = Hello { is_v5, client: "robot-9", login: Some(("press-9", "guessed wrong")), ..Hello::default() };
        let mut stream = TcpStream::connect(named).expect("connects");
        stream.write_all(&wrong.bytes()).expect("sends");
        // Until the gateway closes the connection.
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    }
    let shown = said(&gateway.command(&["devices", "CONFIG"]));
    let line = shown.lines().find(|line| line.starts_with("robot-9 ")).unwrap_or_else(|| panic!("{shown}"));
    assert_has(line, &["press-9", "127.0.0.1", " 2 ", "user name or password is wrong"]);
    assert!(!shown.contains("guessed"), "{shown}");
    let listed = || -> Vec<serde_json::Value> {
        let output = gateway.command(&["devices", "--json", "CONFIG"]);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", said(&output)))
    };
    let refused = listed().into_iter().find(|one| one["kind"] == "refused").expect("a refused client");
    assert_eq!(
        (&refused["source"], &refused["client"], &refused["user"]),
        (&"named".into(), &"robot-9".into(), &"press-9".into())
    );
    assert_eq!(refused["count"], 2, "{refused}");
    let right = Hello { client: "robot-9", login: Some(("press-9", "long enough")), ..Hello::default() };
    let (mut client, _) = Client::connect(named, &right);
    assert!(listed().iter().all(|one| one["kind"] != "refused"), "{:#?}", listed());
    // A publish without a right: the list has user and address as well.
    client.publish(true, 1, "plant/line1/m01/state", b"{}");
    let shown = said(&gateway.command(&["devices", "CONFIG"]));
    assert_has(&shown, &["robot-9 (user press-9, 127.0.0.1): 1 refusal, the last one", "plant/line1/m01/state"]);
}
