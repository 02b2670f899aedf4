//! Programs that post over HTTP, on a connection that they keep: each request is judged by the rights of its own time.

use super::authorities::Authorities;
use super::{Change, PATIENCE};
use crate::common::gateway::{Gateway, accepted};
use crate::common::http::post;
use crate::common::{await_port, free_address};
use forebay::sources::http::put_token;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

const CONTRACT: &str = r#"
name = "program.count"
version = "1.0.0"
owner = "tests"
lane = "critical"
match = { source = "http", topic = "{program}" }
key = "{program}"
"#;

/// One connection of the program `press`, with the proof that it began with.
struct Program {
    line: Box<dyn Line>,
    token: Option<String>,
}

trait Line: Read + Write {}
impl<T: Read + Write> Line for T {}

impl Program {
    fn dial(to: SocketAddr, authorities: Option<&Authorities>, token: Option<&str>) -> Self {
        let stream = TcpStream::connect(to).expect("connected");
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        let line: Box<dyn Line> = match authorities {
            None => Box::new(stream),
            Some(authorities) => {
                let name = "localhost".try_into().expect("a name");
                let tls = rustls::ClientConnection::new(authorities.client(), name).expect("a connection");
                Box::new(rustls::StreamOwned::new(tls, stream))
            }
        };
        Self { line, token: token.map(str::to_owned) }
    }

    /// The status of the answer; `None` where the connection ends without one.
    fn post(&mut self, number: usize) -> Option<u16> {
        let bearer = self.token.as_ref().map(|token| format!("Bearer {token}"));
        let headers: Vec<_> = bearer.iter().map(|bearer| ("authorization", bearer.as_str())).collect();
        let body = format!("{{\"n\":{number}}}");
        self.line.write_all(&post("/events/press", &headers, body.as_bytes())).ok()?;
        self.line.flush().ok()?;
        let mut answer = Vec::new();
        loop {
            let mut buffer = [0; 4096];
            match self.line.read(&mut buffer) {
                Ok(0) => return None,
                // A program that hears nothing for so long is neither let in nor refused.
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => panic!("no answer"),
                Err(_) => return None,
                Ok(read) => answer.extend_from_slice(&buffer[..read]),
            }
            let text = String::from_utf8_lossy(&answer);
            let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
            if let (Some((head, rest)), Some(length)) = (text.split_once("\r\n\r\n"), length)
                && rest.len() >= length
            {
                return head.split(' ').nth(1)?.parse().ok();
            }
        }
    }
}

fn count_after(change: Change) {
    let mut gateway = Gateway::prepare(&format!("programs-{change:?}"), "");
    std::fs::write(gateway.folder.join("contracts/count.toml"), CONTRACT).expect("written");
    let (address, tokens) = (free_address(), gateway.folder.join("tokens"));
    let authorities = change.is_of_certificates().then(|| Authorities::write(&gateway.folder));
    let token = put_token(&tokens, "press").expect("written");
    let token = authorities.is_none().then_some(token);
    let proof = authorities.as_ref().map_or("tokens = \"tokens\"".into(), Authorities::tls);
    let config = std::fs::read_to_string(gateway.config()).expect("read");
    let source = format!("\n[[source.http]]\nname = \"programs\"\nlisten = \"{address}\"\n{proof}\n");
    std::fs::write(gateway.config(), config + &source).expect("written");
    gateway.run();
    await_port(address);
    let dial = || Program::dial(address, authorities.as_ref(), token.as_deref());
    let mut kept = dial();
    assert_eq!(kept.post(1), Some(202), "{change:?}");
    match (change, &authorities) {
        (Change::UserRemoved, _) => std::fs::write(&tokens, "").expect("written"),
        (Change::PasswordChanged, _) => drop(put_token(&tokens, "press").expect("written")),
        (Change::CertificateRevoked, Some(authorities)) => authorities.revoke_leaf(),
        (Change::IssuerRevoked, Some(authorities)) => authorities.revoke_issuer(),
        (Change::ListExpired, Some(authorities)) => authorities.expire(),
        _ => unreachable!("no change of an HTTP source"),
    }
    let output = gateway.command(&["reload", "CONFIG"]);
    assert!(output.status.success(), "{change:?}: {}", String::from_utf8_lossy(&output.stderr));
    let is_refused = |answer: Option<u16>| matches!(answer, None | Some(401 | 403));
    let answer = kept.post(2);
    assert!(is_refused(answer), "{change:?}, the kept connection: {answer:?}");
    let answer = dial().post(3);
    assert!(is_refused(answer), "{change:?}, another connection: {answer:?}");
    assert_eq!(accepted(&gateway.status()), 1, "{change:?}: nothing more was taken");
    gateway.kill();
    gateway.run();
    await_port(address);
    let answer = dial().post(4);
    assert!(is_refused(answer), "{change:?}, after a restart: {answer:?}");
    assert_eq!(accepted(&gateway.status()), 1, "{change:?}: nothing more was taken");
}

macro_rules! rows {
    ($($name:ident: $change:ident;)*) => {$(
        #[test]
        fn $name() {
            count_after(Change::$change);
        }
    )*};
}

rows! {
    a_token_that_is_removed_posts_no_more: UserRemoved;
    a_token_that_is_replaced_posts_no_more: PasswordChanged;
    a_certificate_that_is_revoked_posts_no_more: CertificateRevoked;
    a_certificate_of_a_revoked_issuer_posts_no_more: IssuerRevoked;
    a_certificate_whose_list_has_expired_posts_no_more: ListExpired;
}
