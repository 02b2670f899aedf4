//! Whom a certificate names, and until when it does.

use super::{DENIED, OK, Peer, Way, configure, said};
use crate::common::authority::{Authority, Names};
use crate::common::client::Hello;
use crate::common::gateway::Gateway;
use crate::common::pki::Pki;
use crate::common::{await_port, free_address};
use forebay::sources::mqtt::put_user;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

const DAY: Duration = Duration::from_secs(86_400);
const YEAR: i64 = 365 * 86_400;
const PATIENCE: Duration = Duration::from_secs(15);

/// A gateway with a listener for each of these settings of TLS.
fn gateway(name: &str, authorities: &[&Authority], listeners: &[&str]) -> (Gateway, Vec<SocketAddr>) {
    let gateway = Gateway::prepare(name, "");
    Pki::write(&gateway.folder);
    let trusted: String = authorities.iter().map(|one| one.pem()).collect();
    std::fs::write(gateway.folder.join("devices-ca.pem"), trusted).expect("written");
    let mut addresses = Vec::new();
    for (index, more) in listeners.iter().enumerate() {
        let listen = free_address();
        let (tls, rest) = more.split_once('\n').unwrap_or((more, ""));
        configure(
            &gateway,
            &format!(
                "[[source.mqtt]]\nname = \"secure{index}\"\nlisten = \"{listen}\"\ntls = {{ cert = \"server.pem\", key = \"server.key\", client_ca = \"devices-ca.pem\"{tls} }}\n{rest}"
            ),
        );
        addresses.push(listen);
    }
    (gateway, addresses)
}

fn start(mut gateway: Gateway, addresses: &[SocketAddr]) -> Gateway {
    gateway.run();
    addresses.iter().copied().for_each(await_port);
    gateway
}

fn code(to: SocketAddr, config: &Arc<rustls::ClientConfig>) -> Option<u8> {
    Peer::connect(to, &Way::Certificate(Arc::clone(config)), &Hello { client: "any", ..Hello::default() }).1
}

/// Whether a client of this certificate is let in, and has this name.
fn is_named(to: SocketAddr, config: &Arc<rustls::ClientConfig>, name: &str) -> bool {
    let way = Way::Certificate(Arc::clone(config));
    let (mut peer, code) = Peer::connect(to, &way, &Hello { client: "press-5", ..Hello::default() });
    code == Some(OK)
        && peer.publish(&format!("plant/l/{name}/state"), br#"{"msg_id":"1"}"#) == OK
        && peer.publish("plant/l/press-5/state", br#"{"msg_id":"1"}"#) == DENIED
}

/// The name came from whatever the certificate had first; a mail address or URI that nobody looks at named a device.
#[test]
fn a_certificate_names_its_client_by_the_kind_that_the_listener_asks_for() {
    let root = Authority::root("root");
    let kinds =
        ["", ", identity = \"dns\"", ", identity = \"uri\"", ", identity = \"email\"", ", identity = \"common-name\""];
    let (gateway, addresses) = gateway("kinds", &[&root], &kinds);
    let gateway = start(gateway, &addresses);
    let folder = &gateway.folder;
    let environment = "forebay:environment:test";
    let all = Names {
        common: Some("by-cn"),
        dns: &["by-dns", "second"],
        uri: &[environment, "urn:by-uri"],
        mail: &["by@mail"],
        ..Names::default()
    };
    let names = ["by-dns", "by-dns", "urn:by-uri", "by@mail", "by-cn"];
    let full = root.client(folder, 10, &all);
    for (address, name) in addresses.iter().zip(names) {
        assert!(is_named(*address, &full, name), "{name}");
    }
    // Whoever lacks the kind that is asked for has no name, whatever else the certificate says.
    let lacking = [
        Names { dns: &[], ..all.clone() },
        Names { dns: &[], ..all.clone() },
        Names { uri: &[environment], ..all.clone() },
        Names { mail: &[], ..all.clone() },
        Names { common: None, ..all.clone() },
    ];
    for ((address, names), kind) in addresses.iter().zip(&lacking).zip(kinds) {
        assert_eq!(code(*address, &root.client(folder, 11, names)), Some(DENIED), "{kind}");
    }
    let log = gateway.log();
    assert!(log.contains("has no DNS name (tls.identity ="), "{log}");
    let status = gateway.status();
    assert!(status["sources"].to_string().contains("refused"), "{status:#}");
}

/// Certificates without a usable name were all the user "", and took each other's sessions.
#[test]
fn a_certificate_without_a_usable_name_lets_nobody_in() {
    let root = Authority::root("root");
    let kinds =
        [", identity = \"dns\"", ", identity = \"uri\"", ", identity = \"common-name\"\npasswords = \"users\"\n"];
    let (gateway, addresses) = gateway("nameless", &[&root], &kinds);
    put_user(&gateway.folder.join("users"), "press", b"long enough").expect("written");
    let gateway = start(gateway, &addresses);
    let folder = &gateway.folder;
    let nobody = root.client(folder, 20, &Names::default());
    addresses.iter().for_each(|address| assert_eq!(code(*address, &nobody), Some(DENIED)));
    for name in ["*.plant", "*", " "] {
        let config = root.client(folder, 21, &Names { dns: &[name], ..Names::default() });
        assert_eq!(code(addresses[0], &config), Some(DENIED), "{name:?}");
    }
    for name in ["spiffe://plant/press-4", "urn:a+b", "urn:a#b", "$SYS", ""] {
        let config = root.client(folder, 22, &Names { uri: &[name], ..Names::default() });
        assert_eq!(code(addresses[1], &config), Some(DENIED), "{name:?}");
    }
    let long = "x".repeat(129);
    for name in ["", " ", "a ", "\t", "a\nb", "a\0b", "a/b", "+", "#", "*", "a\u{200b}", "\u{202e}x", &long] {
        let config = root.client(folder, 23, &Names { common: Some(name), ..Names::default() });
        assert_eq!(code(addresses[2], &config), Some(DENIED), "{name:?}");
    }
    // A user name with its password is a name, whatever the certificate says.
    let hello = Hello { client: "c", login: Some(("press", "long enough")), ..Hello::default() };
    assert_eq!(Peer::connect(addresses[2], &Way::Certificate(nobody), &hello).1, Some(OK));
    assert!(gateway.log().contains("names nobody"), "{}", gateway.log());
}

/// A reader that drops the names it cannot read takes the next one for the first, or forgets which environment the
/// certificate belongs to.
#[test]
fn a_certificate_with_a_malformed_name_lets_nobody_in() {
    let root = Authority::root("root");
    let kinds =
        ["", ", identity = \"uri\"", ", identity = \"email\"", ", identity = \"common-name\"", ", identity = \"dns\""];
    let (gateway, addresses) = gateway("malformed", &[&root], &kinds);
    let gateway = start(gateway, &addresses);
    let whole = Names { common: Some("cn"), dns: &["dns"], uri: &["urn:uri"], mail: &["a@mail"], ..Names::default() };
    let names = ["dns", "urn:uri", "a@mail", "cn", "dns"];
    let good = root.client(&gateway.folder, 30, &whole);
    let malformed = root.client(&gateway.folder, 31, &Names { has_malformed: true, ..whole });
    for (address, name) in addresses.iter().zip(names) {
        assert!(is_named(*address, &good, name), "{name}");
        assert_eq!(code(*address, &malformed), Some(DENIED), "{name}");
    }
    let log = gateway.log();
    assert!(log.contains("has a malformed alternative name (subjectAltName)"), "{log}");
}

/// A sub-authority that may name the machines of one line named any machine of the plant, by a URI, a mail address or a
/// common name, which the constraint on DNS names says nothing of.
#[test]
fn an_authority_names_only_what_it_is_permitted_in_every_kind() {
    let root = Authority::root("root");
    let kinds =
        [", identity = \"dns\"", ", identity = \"uri\"", ", identity = \"email\"", ", identity = \"common-name\""];
    let (gateway, addresses) = gateway("constrained", &[&root], &kinds);
    let gateway = start(gateway, &addresses);
    let folder = &gateway.folder;
    let (line, free) = (root.below("line 1", 2, &["line1.plant"]), root.below("any", 3, &[]));
    let names = Names { common: Some("press-4"), uri: &["urn:press-4"], mail: &["press-4@plant"], ..Names::default() };
    let inside = Names { dns: &["press-4.line1.plant"], ..names.clone() };
    let outside = Names { dns: &["press-4"], ..names.clone() };
    assert!(is_named(addresses[0], &line.client(folder, 30, &inside), "press-4.line1.plant"));
    assert_eq!(code(addresses[0], &line.client(folder, 31, &outside)), None, "not past TLS");
    for address in &addresses[1..] {
        for names in [&names, &inside] {
            assert_eq!(code(*address, &line.client(folder, 32, names)), Some(DENIED));
        }
    }
    assert!(is_named(addresses[0], &free.client(folder, 33, &outside), "press-4"));
    assert!(is_named(addresses[1], &free.client(folder, 34, &names), "urn:press-4"));
    assert!(is_named(addresses[2], &free.client(folder, 35, &names), "press-4@plant"));
    // A common name counts only from an authority that is trusted itself.
    assert_eq!(code(addresses[3], &free.client(folder, 36, &names)), Some(DENIED));
    assert!(is_named(addresses[3], &root.client(folder, 37, &names), "press-4"));
    let log = gateway.log();
    assert!(log.contains("name constraints") && log.contains("itself in tls.client_ca"), "{log}");
}

/// A list whose next update was due was used on without a word.
#[test]
fn a_revocation_list_that_has_ended_refuses_clients_and_is_never_silent() {
    let root = Authority::root("root");
    let other = Authority::root("other");
    let kinds = [", crl = \"ended.pem\"", ", crl = \"ended.pem\", crl_expiry = \"accept\"", ", crl = \"soon.pem\""];
    let (gateway, addresses) = gateway("ended", &[&root, &other], &kinds);
    let ended = root.list(1, &[41], 20 * DAY, -10 * 86_400);
    std::fs::write(gateway.folder.join("ended.pem"), &ended).expect("written");
    std::fs::write(gateway.folder.join("soon.pem"), root.list(1, &[41], DAY, 12)).expect("written");
    let (good, revoked) = (
        root.client(&gateway.folder, 40, &Names { dns: &["good"], ..Names::default() }),
        root.client(&gateway.folder, 41, &Names { dns: &["bad"], ..Names::default() }),
    );
    let unlisted = other.client(&gateway.folder, 40, &Names { dns: &["other"], ..Names::default() });
    let text = said(&gateway, &["check", "CONFIG"]);
    assert!(
        text.contains("warning") && text.contains("ended.pem ended at") && text.contains("soon.pem: until"),
        "{text}"
    );
    let gateway = start(gateway, &addresses);
    let way = Way::Certificate(Arc::clone(&good));
    let (mut peer, connack) = Peer::connect(addresses[2], &way, &Hello { client: "long", ..Hello::default() });
    assert_eq!(connack, Some(OK), "its list has not ended yet");
    assert_eq!(code(addresses[0], &good), None, "refused: nobody knows what was revoked since");
    assert_eq!(code(addresses[1], &good), Some(OK), "accepted, as the setting says");
    addresses.iter().for_each(|address| assert_eq!(code(*address, &revoked), None));
    addresses.iter().for_each(|address| assert_eq!(code(*address, &unlisted), Some(OK), "its authority has no list"));
    let status = gateway.status();
    let problems = status["problems"].to_string();
    assert!(
        problems.contains("clients of its authority are refused") && problems.contains("let in all the same"),
        "{problems}"
    );
    // It ends while a client is connected, and nobody does anything.
    let disconnect = peer.receive().expect("a DISCONNECT");
    assert_eq!((disconnect[0], disconnect[1]), (0xE0, DENIED));
    assert_eq!(code(addresses[2], &good), None, "not by the session that it resumes either");
    gateway.await_status("status says so", PATIENCE, |status| {
        status["problems"].to_string().contains("soon.pem ended at")
    });
    assert!(gateway.log().contains("revocation list"), "{}", gateway.log());
    // A newer one beside the old one is enough.
    std::fs::write(gateway.folder.join("soon.pem"), ended + &root.list(2, &[41], DAY, YEAR)).expect("written");
    said(&gateway, &["reload", "CONFIG"]);
    assert_eq!(code(addresses[2], &good), Some(OK));
    assert_eq!(code(addresses[2], &revoked), None);
}

/// The list of an authority says which authorities below it are revoked; only the client's own certificate was looked for.
#[test]
fn who_a_revoked_authority_has_named_is_refused_and_disconnected() {
    let root = Authority::root("root");
    let (line, direct) = (root.below("line 1", 2, &[]), root.below("line 2", 3, &[]));
    // The second authority is trusted itself, so that no path leads through the list of the first.
    let kinds = [", crl = \"list.pem\"", ", crl = \"list.pem\"\npasswords = \"users\"\n"];
    let (gateway, addresses) = gateway("issuers", &[&root, &direct], &kinds);
    put_user(&gateway.folder.join("users"), "press", b"long enough").expect("written");
    let list = gateway.folder.join("list.pem");
    std::fs::write(&list, root.list(1, &[99], 2 * DAY, YEAR)).expect("written");
    let folder = gateway.folder.clone();
    let client =
        |authority: &Authority, name: &str| authority.client(&folder, 50, &Names { dns: &[name], ..Names::default() });
    let clients = [client(&root, "a"), client(&line, "b"), client(&direct, "c")];
    let gateway = start(gateway, &addresses);
    let mut peers: Vec<Peer> = Vec::new();
    for (index, config) in clients.iter().enumerate() {
        let id = format!("client-{index}");
        let hello = Hello { client: &id, ..Hello::default() };
        let (peer, connack) = Peer::connect(addresses[0], &Way::Certificate(Arc::clone(config)), &hello);
        assert_eq!(connack, Some(OK));
        peers.push(peer);
    }
    // Who has logged in with a password beside the certificate is judged by both.
    let hello = Hello { client: "both", login: Some(("press", "long enough")), ..Hello::default() };
    let (mut both, connack) = Peer::connect(addresses[1], &Way::Certificate(Arc::clone(&clients[1])), &hello);
    assert_eq!(connack, Some(OK));
    std::fs::write(&list, root.list(2, &[2, 3], DAY, YEAR)).expect("written");
    said(&gateway, &["reload", "CONFIG"]);
    for peer in peers[1..].iter_mut().chain([&mut both]) {
        let disconnect = peer.receive().expect("a DISCONNECT");
        assert_eq!((disconnect[0], disconnect[1]), (0xE0, DENIED));
    }
    assert_eq!(peers[0].publish("plant/l/a/state", br#"{"msg_id":"1"}"#), OK, "of the authority on top");
    assert_eq!(code(addresses[0], &clients[0]), Some(OK));
    for config in &clients[1..] {
        assert_eq!(code(addresses[0], config), None);
    }
    let none = Peer::connect(addresses[1], &Way::Certificate(Arc::clone(&clients[1])), &hello).1;
    assert_eq!(none, None, "a password is no way around it");
}
