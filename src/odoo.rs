//! The Odoo client: one method for calls over JSON-2 (Odoo 19 and later) and over `/jsonrpc` (14 to 18, and where a proxy
//! blocks JSON-2).
//!
//! Promise: a call returns its result or an error that says what to do; an error contains no traceback and no secret.
//! Invariants:
//! - arguments are passed by name, so that both protocols behave alike. Over `/jsonrpc` a domain is passed by position:
//!   its name differs between versions;
//! - at most two calls are in progress at once, and the client repeats none;
//! - after a `Retry-After` the client sends nothing until the pause is over.
//!
//! Not here: which records are read, and why (`sources`, `watch`).

mod account;
mod error;
mod http;
mod repair;

pub use account::Account;
pub use error::{Class, OdooError, RETRY_AFTER_MAX, Refusal};
pub use repair::impossible;

use crate::clock;
use crate::event::Timestamp;
use crate::secret::Secret;
use crate::tls::{ClientFiles, TlsError};
use error::{Page, from_body};
use http::{Address, Server};
use hyper::header::{self, HeaderName};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

/// The settings for connecting to an Odoo.
#[derive(Clone, Debug)]
pub struct Config {
    /// `https://host`, or `http://host:8069` without TLS.
    pub url: String,
    pub database: String,
    /// File that holds the API key.
    pub key_file: PathBuf,
    /// Login of the account; needed over `/jsonrpc` only.
    pub user: Option<String>,
    pub tls: ClientFiles,
}

/// Calls in progress at once: Odoo has few workers, and its users need them.
const CALLS_AT_ONCE: usize = 2;
/// The oldest version that supports API keys.
const VERSION_MIN: u32 = 14;
/// From this version on `has_group` is called on the record of a user; before, it concerned the caller only.
const VERSION_HAS_GROUP_ON_RECORD: u32 = 18;

/// Age at which the client logs in again. Odoo may have been upgraded, or the account may have got or lost rights.
const SESSION_AGE_MAX: Duration = Duration::from_secs(600);

/// The protocol of calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// JSON-2: one path per method; 19 and later.
    Json2,
    /// JSON-RPC: one path for all methods; every version, deprecated from 19 on.
    JsonRpc,
}

/// A method of a model, called on the records `ids` if given.
struct Call<'a> {
    model: &'a str,
    method: &'a str,
    ids: Option<&'a [i64]>,
    arguments: Map<String, Value>,
}

/// Version and protocol of an Odoo, and the gateway's account in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Major version: 14, …, 19.
    pub version: u32,
    /// The version as text, such as `19.0`.
    pub version_text: String,
    /// The protocol of calls.
    pub protocol: Protocol,
    /// User id of the account.
    pub user_id: i64,
    /// Whether the account may change settings: more than a gateway needs.
    pub is_administrator: bool,
    /// Seconds that the clock of the server is ahead of that of this machine; `None` without a `Date` header.
    pub clock_offset: Option<i64>,
}

/// The result of a call, with the server's clock.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The value that the method returned.
    pub value: Value,
    /// Date of the answer by the server's clock, in whole seconds; `None` without a `Date` header.
    pub server_time: Option<Timestamp>,
    /// Duration of the call, including the network.
    pub took: Duration,
}

/// A client of one Odoo database.
pub struct Client {
    config: Config,
    server: Server,
    /// The key, as read at the start of the session.
    key: Mutex<Zeroizing<String>>,
    /// The session and the time of its login; `None` before the first call and after a refused login.
    session: Mutex<Option<(Session, Instant)>>,
    probing: tokio::sync::Mutex<()>,
    calls: Semaphore,
    /// The end of the pause that the server has asked for, if it is not over.
    hold: Mutex<Option<Instant>>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Client({}, {})", self.config.url, self.config.database)
    }
}

/// Checks a URL. Returns `true` if calls travel unencrypted over a network; the error says what is wrong with the URL.
pub fn check_url(url: &str) -> Result<bool, String> {
    Address::parse(url).map(|address| !address.is_tls && !address.is_local())
}

impl Client {
    /// Creates a client; it connects at its first call.
    pub fn new(config: Config) -> Result<Self, String> {
        let address = Address::parse(&config.url)?;
        let server = Server::new(address, &config.tls).map_err(|error: TlsError| error.to_string())?;
        Ok(Self {
            config,
            server,
            key: Mutex::default(),
            session: Mutex::new(None),
            probing: tokio::sync::Mutex::new(()),
            calls: Semaphore::new(CALLS_AT_ONCE),
            hold: Mutex::new(None),
        })
    }

    /// Name of the database.
    pub fn database(&self) -> &str {
        &self.config.database
    }

    /// Returns the session. If there is none, reads the key file and logs in.
    pub async fn session(&self) -> Result<Session, OdooError> {
        if let Some(known) = self.known() {
            return Ok(known);
        }
        let _one = self.probing.lock().await;
        if let Some(known) = self.known() {
            return Ok(known);
        }
        let key = read_key(&self.config.key_file).map_err(OdooError::Denied)?;
        *self.key.lock() = key;
        let (protocol, version, version_text) = self.probe().await?;
        if version < VERSION_MIN {
            return Err(OdooError::NotOdoo(format!(
                "Odoo {version_text} is too old; {VERSION_MIN} and later are supported"
            )));
        }
        let mut session =
            Session { version, version_text, protocol, user_id: 0, is_administrator: false, clock_offset: None };
        session.user_id = self.login(&session).await?;
        let own = [session.user_id];
        let ids = (version >= VERSION_HAS_GROUP_ON_RECORD).then_some(&own[..]);
        let arguments = Map::from_iter([("group_ext_id".to_owned(), json!("base.group_system"))]);
        let has_group = Call { model: "res.users", method: "has_group", ids, arguments };
        session.is_administrator = match self.send(&session, has_group).await {
            Ok(answer) => {
                let now = Timestamp::from(clock::wall());
                session.clock_offset = answer.server_time.map(|time| (time.0 - now.0) / 1_000_000);
                answer.value == Value::Bool(true)
            }
            // An account without the right to call `has_group` is no administrator.
            Err(OdooError::Refused { .. }) => false,
            Err(error) => return Err(error),
        };
        *self.session.lock() = Some((session.clone(), clock::instant()));
        Ok(session)
    }

    fn known(&self) -> Option<Session> {
        let known = self.session.lock();
        let (session, since) = known.as_ref()?;
        (clock::instant().duration_since(*since) < SESSION_AGE_MAX).then(|| session.clone())
    }

    /// Ends the session; the next call logs in again.
    pub fn forget(&self) {
        *self.session.lock() = None;
    }

    /// Calls a method of a model with named arguments, on the records `ids` if given.
    pub async fn call(
        &self,
        model: &str,
        method: &str,
        ids: Option<&[i64]>,
        arguments: Map<String, Value>,
    ) -> Result<Answer, OdooError> {
        let session = self.session().await?;
        let called = self.send(&session, Call { model, method, ids, arguments }).await;
        if let Err(OdooError::Denied(_) | OdooError::NotOdoo(_)) = &called {
            // Key, version or database may have changed by the next call.
            self.forget();
        }
        called
    }

    async fn send(&self, session: &Session, call: Call<'_>) -> Result<Answer, OdooError> {
        let Call { model, method, ids, arguments } = call;
        // The semaphore is never closed.
        let _turn = self.calls.acquire().await;
        let began = clock::instant();
        let call = format!("{model}/{method}");
        let answered = match session.protocol {
            Protocol::Json2 => self.json2(&call, ids, arguments).await,
            Protocol::JsonRpc => {
                let key = self.key();
                let mut arguments = arguments;
                let first = match ids {
                    Some(ids) => Some(json!(ids)),
                    // 14 to 16 call it `args` in some methods.
                    None => arguments.remove("domain"),
                };
                let first: Vec<Value> = first.into_iter().collect();
                let arguments = json!([self.config.database, session.user_id, *key, model, method, first, arguments]);
                self.jsonrpc("object", "execute_kw", arguments, &call).await
            }
        };
        let took = clock::instant().duration_since(began);
        answered.map(|answer| Answer { took, ..answer })
    }

    fn key(&self) -> Zeroizing<String> {
        self.key.lock().clone()
    }

    async fn json2(
        &self,
        call: &str,
        ids: Option<&[i64]>,
        mut arguments: Map<String, Value>,
    ) -> Result<Answer, OdooError> {
        if let Some(ids) = ids {
            arguments.insert("ids".into(), json!(ids));
        }
        let login = Zeroizing::new(format!("bearer {}", *self.key()));
        let headers = [
            (header::AUTHORIZATION, login.as_str()),
            (HeaderName::from_static("x-odoo-database"), self.config.database.as_str()),
            (header::CONTENT_TYPE, "application/json; charset=utf-8"),
        ];
        let body = Value::Object(arguments).to_string().into_bytes();
        let answer = self.exchange(&format!("/json/2/{call}"), &headers, Some(body)).await?;
        match repair::parse(&answer.body) {
            Ok(value) if answer.status.is_success() => {
                Ok(Answer { value, server_time: answer.server_time, took: Duration::ZERO })
            }
            Ok(body) if body.get("name").is_some() => Err(from_body(&body, call)),
            parsed => Err(self.page(&answer, parsed.err(), call)),
        }
    }

    async fn jsonrpc(&self, service: &str, method: &str, arguments: Value, call: &str) -> Result<Answer, OdooError> {
        let body = json!({
            "jsonrpc": "2.0", "id": 1, "method": "call",
            "params": {"service": service, "method": method, "args": arguments},
        });
        let headers = [(header::CONTENT_TYPE, "application/json")];
        let answer = self.exchange("/jsonrpc", &headers, Some(body.to_string().into_bytes())).await?;
        let mut body = repair::parse(&answer.body).map_err(|why| self.page(&answer, Some(why), call))?;
        let page = || self.page(&answer, None, call);
        if let Some(error) = body.get("error") {
            return Err(error.get("data").map_or_else(page, |data| from_body(data, call)));
        }
        let is_answer = answer.status.is_success() && body.get("jsonrpc").is_some();
        match body.get_mut("result") {
            Some(value) => Ok(Answer { value: value.take(), server_time: answer.server_time, took: Duration::ZERO }),
            // The answer of a method without a return value has no result.
            None if is_answer => {
                Ok(Answer { value: Value::Null, server_time: answer.server_time, took: Duration::ZERO })
            }
            None => Err(page()),
        }
    }

    /// Sends a request, unless the server has asked for a pause; notes the pause that it asks for.
    async fn exchange(
        &self,
        path: &str,
        headers: &[(HeaderName, &str)],
        body: Option<Vec<u8>>,
    ) -> Result<http::Answer, OdooError> {
        let remaining = self.hold.lock().and_then(|end| end.checked_duration_since(clock::instant()));
        if let Some(remaining) = remaining.filter(|remaining| !remaining.is_zero()) {
            let until = Timestamp::from(clock::wall() + remaining).to_string();
            return Err(OdooError::Busy {
                // Without the seconds that remain, the text is the same at each attempt.
                message: format!(
                    "the server asks for no call before {}Z (Retry-After)",
                    until.get(..16).unwrap_or(&until)
                ),
                pause: Some(remaining),
            });
        }
        let answer = self.server.exchange(path, headers, body).await?;
        if let Some(pause) = answer.pause {
            *self.hold.lock() = Some(clock::instant() + pause);
        }
        Ok(answer)
    }

    /// The error of an answer that is no result and no error of Odoo. `damage` says why it is no JSON.
    fn page(&self, answer: &http::Answer, damage: Option<String>, call: &str) -> OdooError {
        let page = Page {
            status: answer.status,
            is_html: answer.is_html,
            damage: damage.filter(|_| answer.is_json && !answer.is_html),
            location: answer.location.as_deref(),
            pause: answer.pause,
            database: &self.config.database,
            call,
        };
        page.error()
    }

    /// Returns protocol and version. Odoo 19 and later answers at `/json/version`; older versions, and newer ones whose
    /// proxy blocks that path, answer at `/jsonrpc`.
    async fn probe(&self) -> Result<(Protocol, u32, String), OdooError> {
        let answer = self.exchange("/json/version", &[], None).await?;
        let found = repair::parse(&answer.body).ok();
        let (protocol, info, text) = match found {
            Some(found) if answer.status.is_success() => {
                (Protocol::Json2, found["version_info"].clone(), found["version"].clone())
            }
            _ if answer.status.as_u16() == 404 => {
                let answer = self.jsonrpc("common", "version", json!([]), "version").await?.value;
                (Protocol::JsonRpc, answer["server_version_info"].clone(), answer["server_version"].clone())
            }
            _ => return Err(self.page(&answer, None, "version")),
        };
        // Odoo Online has versions such as `saas~18`.
        let major = match &info[0] {
            Value::Number(number) => number.as_u64().and_then(|number| u32::try_from(number).ok()),
            Value::String(word) => word.rsplit('~').next().and_then(|number| number.parse().ok()),
            _ => None,
        };
        match major {
            Some(major) => Ok((protocol, major, text.as_str().unwrap_or_default().to_owned())),
            None => Err(OdooError::NotOdoo("the server at url reports no Odoo version; check url".into())),
        }
    }

    /// User id of the account that the key belongs to.
    async fn login(&self, session: &Session) -> Result<i64, OdooError> {
        let found = match (session.protocol, &self.config.user) {
            (Protocol::Json2, _) => {
                let answer = self.json2("res.users/context_get", None, Map::new()).await?;
                answer.value.get("uid").and_then(Value::as_i64)
            }
            (Protocol::JsonRpc, Some(user)) => {
                let arguments = json!([self.config.database, user, *self.key(), {}]);
                self.jsonrpc("common", "authenticate", arguments, "authenticate").await?.value.as_i64()
            }
            (Protocol::JsonRpc, None) => {
                return Err(OdooError::Denied(format!(
                    "Odoo {} is called over /jsonrpc, which also needs the login of the account; set user",
                    session.version_text
                )));
            }
        };
        found.ok_or_else(|| {
            OdooError::Denied(
                "Odoo refuses the login: user and key do not belong together; check user and key_file".into(),
            )
        })
    }
}

/// Reads an API key from a file with one line.
fn read_key(file: &Path) -> Result<Zeroizing<String>, String> {
    let read = Secret::read(file).map_err(|error| format!("key_file {error}"))?;
    let wrong = |what: &str| format!("key_file {} {what}", file.display());
    let text = read.text().map_err(|why| wrong(&format!("cannot be used: {why}")))?;
    // What a word processor or a web page adds at the ends is no part of the key.
    let key = text.trim_matches(|letter: char| letter.is_whitespace() || INVISIBLE.contains(&letter));
    if let Some((at, letter)) = key.char_indices().find(|(_, letter)| !letter.is_ascii_graphic()) {
        let place = format!("holds U+{:04X} as letter {}; ", u32::from(letter), key[..at].chars().count() + 1);
        return Err(wrong(&format!("{place}expected one line, the API key of the account, without spaces")));
    }
    if key.is_empty() {
        return Err(wrong("holds no key; expected one line, the API key of the account"));
    }
    Ok(Zeroizing::new(key.to_owned()))
}

/// Characters without a shape that come along when a key is copied: zero-width space and joiners, word joiner, byte
/// order mark, soft hyphen, direction marks.
const INVISIBLE: [char; 8] =
    ['\u{200b}', '\u{200c}', '\u{200d}', '\u{2060}', '\u{feff}', '\u{ad}', '\u{200e}', '\u{200f}'];

/// Parses a time in Odoo's format, such as `2026-11-23 03:18:40`, in UTC.
pub fn read_time(text: &str) -> Option<Timestamp> {
    let (date, time) = text.split_once(' ')?;
    Timestamp::parse(&format!("{date}T{time}Z"))
}

/// Formats a time in Odoo's format: UTC, whole seconds.
pub fn write_time(at: Timestamp) -> String {
    at.to_string().get(..19).unwrap_or_default().replace('T', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invisible_bytes_around_a_key_are_cut_off_and_those_within_are_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("odoo.key");
        let read = |bytes: &[u8]| {
            std::fs::write(&file, bytes).expect("written");
            read_key(&file).map(|key| key.to_string())
        };
        for text in ["0123abc", "\u{feff}0123abc\r\n", " 0123abc\u{a0}\u{200b}\n\n", "\u{ad}0123abc\u{200f}"] {
            assert_eq!(read(text.as_bytes()), Ok("0123abc".to_owned()), "{text:?}");
        }
        for (bytes, words) in [
            ("0123\u{200b}abc".as_bytes(), "U+200B as letter 5"),
            (b"0123 abc", "U+0020 as letter 5"),
            (b"0123\nabc", "U+000A as letter 5"),
            (b"\xff\xfe0\x001\x00", "UTF-16"),
            (b"0\x001\x002\x00", "U+0000"),
            (b"012\xe9", "UTF-8"),
            (b" \r\n", "holds no key"),
        ] {
            let error = read(bytes).expect_err("no key");
            assert!(error.contains(words) && error.contains("odoo.key") && !error.contains("0123"), "{error}");
        }
    }

    #[test]
    fn times_go_back_and_forth_in_whole_seconds() {
        let at = read_time("2026-11-23 03:18:40").expect("a time");
        assert_eq!(at.to_string(), "2026-11-23T03:18:40.000000Z");
        assert_eq!(write_time(at), "2026-11-23 03:18:40");
        assert_eq!(write_time(Timestamp(at.0 + 999_999)), "2026-11-23 03:18:40");
        assert_eq!(read_time("2026-11-23"), None);
    }
}
