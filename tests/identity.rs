//! Who may be whom: every way to a name against every place where a name counts, on the real program.

mod certificates;
mod rights;

use crate::common::client::{Client, Hello, publish, subscribe};
use crate::common::gateway::Gateway;
use crate::common::{await_port, free_address};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

/// Success, in PUBACK and CONNACK.
const OK: u8 = 0;
/// Bad User Name or Password.
const BAD_LOGIN: u8 = 0x86;
/// Not authorized.
const DENIED: u8 = 0x87;
/// Granted QoS 1, in SUBACK.
const GRANTED: u8 = 1;

/// The way to a name: what a client shows beside its client id.
#[derive(Clone)]
enum Way {
    Nothing,
    Claim(&'static str),
    Password(&'static str, &'static str),
    Certificate(Arc<rustls::ClientConfig>),
}

trait Line: Read + Write + Send {}
impl<T: Read + Write + Send> Line for T {}

/// A client of MQTT 5, over TLS or not.
struct Peer {
    line: Box<dyn Line>,
    input: Vec<u8>,
    packet_id: u16,
    /// Whether CONNACK said that a session is present.
    found_session: bool,
}

impl Peer {
    /// Connects; the answer is the reason code of CONNACK, or `None` where TLS already refuses.
    fn connect(to: SocketAddr, way: &Way, hello: &Hello<'_>) -> (Self, Option<u8>) {
        let stream = TcpStream::connect(to).expect("connected");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
        let line: Box<dyn Line> = match way {
            Way::Certificate(config) => {
                let name = "localhost".try_into().expect("a name");
                let tls = rustls::ClientConnection::new(Arc::clone(config), name).expect("a connection");
                Box::new(rustls::StreamOwned::new(tls, stream))
            }
            _ => Box::new(stream),
        };
        let mut peer = Self { line, input: Vec::new(), packet_id: 0, found_session: false };
        let login = match way {
            Way::Password(user, password) => Some((*user, *password)),
            Way::Claim(user) => Some((*user, "")),
            _ => hello.login,
        };
        let hello = Hello { login, ..hello.clone() };
        let code = match peer.line.write_all(&hello.bytes()) {
            Ok(()) => peer.receive().map(|connack| {
                peer.found_session = connack[1] & 1 == 1;
                connack[2]
            }),
            Err(_) => None,
        };
        (peer, code)
    }

    /// The next packet, first byte first, without its length; `None` if the other side has closed.
    fn receive(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Ok(Some(frame)) = forebay::mqtt::frame(&self.input, usize::MAX) {
                let mut packet = vec![frame.first];
                packet.extend_from_slice(frame.body);
                let length = frame.length;
                self.input.drain(..length);
                return Some(packet);
            }
            let mut buffer = [0; 4096];
            match self.line.read(&mut buffer) {
                Ok(0) | Err(_) => return None,
                Ok(read) => self.input.extend_from_slice(&buffer[..read]),
            }
        }
    }

    /// The reason code of the answer to a publish.
    fn publish(&mut self, topic: &str, payload: &[u8]) -> u8 {
        self.packet_id += 1;
        self.line.write_all(&publish(true, 1, self.packet_id, topic, &[], payload)).expect("sent");
        let answer = self.receive().expect("a PUBACK");
        assert_eq!(answer[0], 0x40, "{answer:?}");
        answer.get(3).copied().unwrap_or(OK)
    }

    /// The reason code of the answer to a subscription.
    fn subscribe(&mut self, filter: &str) -> u8 {
        self.packet_id += 1;
        self.line.write_all(&subscribe(true, self.packet_id, &[], &[(filter, 1 | 2 << 4)])).expect("sent");
        // Events of an earlier subscription may come before it.
        let mut answer = self.receive().expect("a SUBACK");
        while answer[0] >> 4 == 3 {
            answer = self.receive().expect("a SUBACK");
        }
        assert_eq!(answer[0], 0x90, "{answer:?}");
        answer[4]
    }
}

/// Adds lines to the configuration of a gateway.
fn configure(gateway: &Gateway, more: &str) {
    let config = std::fs::read_to_string(gateway.config()).expect("read");
    std::fs::write(gateway.config(), format!("{config}\n{more}")).expect("written");
}

/// Runs a command that has to succeed, and returns what it says.
fn said(gateway: &Gateway, arguments: &[&str]) -> String {
    let output = gateway.command(arguments);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// A password is changed because somebody else has learned it: the connection of whoever logged in with the old one
/// ends, whether the reload is asked for or the gateway finds the changed file.
#[test]
fn a_changed_password_ends_the_connections_that_logged_in_with_the_old_one() {
    let listen = free_address();
    let rest = format!(
        "\n[[source.mqtt]]\nname = \"named\"\nlisten = \"{listen}\"\npasswords = \"users\"\nacl = [{{ publish = [\"plant/#\"] }}]\n"
    );
    let mut gateway = Gateway::prepare("password", &rest);
    let users = gateway.folder.join("users");
    let put_user = forebay::sources::mqtt::put_user;
    put_user(&users, "press", b"the old one").expect("written");
    put_user(&users, "robot", b"stays").expect("written");
    gateway.run();
    await_port(listen);
    let hello = |client: &'static str, login| Hello { client, login: Some(login), ..Hello::default() };
    let (old, topic) = (("press", "the old one"), "plant/line1/press/state");
    let (mut thief, _) = Client::connect(listen, &hello("thief", old));
    let (mut robot, _) = Client::connect(listen, &hello("robot", ("robot", "stays")));
    thief.publish(true, 1, topic, crate::common::gateway::payload(1, 1).as_bytes());
    put_user(&users, "press", b"the new one").expect("written");
    said(&gateway, &["reload", "CONFIG"]);
    assert_eq!(thief.disconnect_code(), DENIED, "not authorized any more");
    robot.publish(true, 1, topic, crate::common::gateway::payload(2, 1).as_bytes());
    let (_, connack) = Client::connect(listen, &hello("thief", old));
    assert_eq!(connack[2], BAD_LOGIN, "the old password lets nobody in");
    let (_, connack) = Client::connect(listen, &hello("press", ("press", "the new one")));
    assert_eq!(connack[2], OK, "the new one does");
}
