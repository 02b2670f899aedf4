//! The client of Odoo: JSON-2 for 19 and later, `/jsonrpc` for 14 to 18 and where JSON-2 is not let through, behind one call.
//!
//! Promise: a call comes back with its result or with an error that says what to do; an error holds
//! no traceback and no secret.
//! Invariants:
//! - arguments go by name only, so that both protocols mean the same;
//! - at most two calls are with Odoo at once, and nothing here repeats one.
//!
//! Not here: what is read and why (`sources`, `watch`).

mod error;
mod http;

pub use error::{Class, OdooError, Refusal};

use crate::clock;
use crate::event::Timestamp;
use crate::secret::Secret;
use crate::tls::{ClientFiles, TlsError};
use error::{from_body, from_page};
use http::{Address, Server};
use hyper::header::{self, HeaderName};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

/// How to reach an Odoo.
#[derive(Clone, Debug)]
pub struct Config {
    /// `https://host`, or `http://host:8069` without TLS.
    pub url: String,
    /// Name of the database.
    pub database: String,
    /// File that holds the API key.
    pub key_file: PathBuf,
    /// Login of the account; needed over `/jsonrpc` only.
    pub user: Option<String>,
    /// Certificates.
    pub tls: ClientFiles,
}

/// Calls that may be with Odoo at once: it has few workers, and people wait for them.
const CALLS_AT_ONCE: usize = 2;
/// The oldest version that keys work with.
const VERSION_MIN: u32 = 14;
/// From this version on an account is asked about as a record; before, it could ask about itself only.
const VERSION_ASKED_AS_RECORD: u32 = 18;

/// How calls are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// One path for each method; 19 and later.
    Json2,
    /// One path for all; every version, deprecated from 19 on.
    JsonRpc,
}

/// What an Odoo said of itself and of the account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Major version: 14, …, 19.
    pub version: u32,
    /// The version as it is written, such as `19.0`.
    pub version_text: String,
    /// What it speaks.
    pub protocol: Protocol,
    /// Number of the account.
    pub user_id: i64,
    /// Whether the account may change settings: more than a gateway needs.
    pub is_administrator: bool,
}

/// A result, and the server's clock when it was given.
#[derive(Clone, Debug)]
pub struct Answer {
    /// What the method returned.
    pub value: Value,
    /// The server's clock in whole seconds, if it said so.
    pub server_time: Option<Timestamp>,
    /// How long the server took, its network included.
    pub took: Duration,
}

/// An Odoo that can be called.
pub struct Client {
    config: Config,
    server: Server,
    /// The key, as it was when the session began.
    key: Mutex<Zeroizing<String>>,
    /// What is known of the server; `None` before the first call and after a refused login.
    session: Mutex<Option<Session>>,
    probing: tokio::sync::Mutex<()>,
    calls: Semaphore,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Client({}, {})", self.config.url, self.config.database)
    }
}

/// Whether a URL leads to an Odoo: what is wrong with it if not. `true` if what is said there is readable on the way.
pub fn check_url(url: &str) -> Result<bool, String> {
    Address::parse(url).map(|address| !address.is_tls && !address.is_local())
}

impl Client {
    /// A client that has not called yet.
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
        })
    }

    /// Name of the database.
    pub fn database(&self) -> &str {
        &self.config.database
    }

    /// What the server and the account are. Asks when it is not known, and reads the key anew then.
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
                "Odoo {version_text} is too old; {VERSION_MIN} and later are understood"
            )));
        }
        let mut session = Session { version, version_text, protocol, user_id: 0, is_administrator: false };
        session.user_id = self.login(&session).await?;
        let own = [session.user_id];
        let ids = (version >= VERSION_ASKED_AS_RECORD).then_some(&own[..]);
        let arguments = Map::from_iter([("group_ext_id".to_owned(), json!("base.group_system"))]);
        session.is_administrator = match self.send(&session, "res.users", "has_group", ids, arguments).await {
            Ok(answer) => answer.value == Value::Bool(true),
            // An account that may not even ask is no administrator.
            Err(OdooError::Refused { .. }) => false,
            Err(error) => return Err(error),
        };
        *self.session.lock() = Some(session.clone());
        Ok(session)
    }

    fn known(&self) -> Option<Session> {
        self.session.lock().clone()
    }

    /// Forgets what is known of the server, so that the next call asks again.
    pub fn forget(&self) {
        *self.session.lock() = None;
    }

    /// Calls a method of a model: on records where there are `ids`, with arguments by name.
    pub async fn call(
        &self,
        model: &str,
        method: &str,
        ids: Option<&[i64]>,
        arguments: Map<String, Value>,
    ) -> Result<Answer, OdooError> {
        let session = self.session().await?;
        let called = self.send(&session, model, method, ids, arguments).await;
        if let Err(OdooError::Denied(_) | OdooError::NotOdoo(_)) = &called {
            // Another key, version or database may be there by the next call.
            self.forget();
        }
        called
    }

    async fn send(
        &self,
        session: &Session,
        model: &str,
        method: &str,
        ids: Option<&[i64]>,
        arguments: Map<String, Value>,
    ) -> Result<Answer, OdooError> {
        // The semaphore is never closed.
        let _turn = self.calls.acquire().await;
        let began = clock::instant();
        let call = format!("{model}/{method}");
        let answered = match session.protocol {
            Protocol::Json2 => self.json2(&call, ids, arguments).await,
            Protocol::JsonRpc => {
                let key = self.key();
                let on: Value = ids.map_or_else(|| json!([]), |ids| json!([ids]));
                let arguments = json!([self.config.database, session.user_id, *key, model, method, on, arguments]);
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
        let answer = self.server.exchange(&format!("/json/2/{call}"), &headers, Some(body)).await?;
        let value: Option<Value> = serde_json::from_slice(&answer.body).ok();
        match value {
            Some(value) if answer.status.is_success() => {
                Ok(Answer { value, server_time: answer.server_time, took: Duration::ZERO })
            }
            Some(body) if body.get("name").is_some() => Err(from_body(&body, call)),
            _ => Err(from_page(answer.status, answer.is_page, &self.config.database, call)),
        }
    }

    async fn jsonrpc(&self, service: &str, method: &str, arguments: Value, call: &str) -> Result<Answer, OdooError> {
        let body = json!({
            "jsonrpc": "2.0", "id": 1, "method": "call",
            "params": {"service": service, "method": method, "args": arguments},
        });
        let headers = [(header::CONTENT_TYPE, "application/json")];
        let answer = self.server.exchange("/jsonrpc", &headers, Some(body.to_string().into_bytes())).await?;
        let page = || from_page(answer.status, answer.is_page, &self.config.database, call);
        let mut body: Value = serde_json::from_slice(&answer.body).map_err(|_| page())?;
        if let Some(error) = body.get("error") {
            return Err(error.get("data").map_or_else(page, |data| from_body(data, call)));
        }
        let is_answer = answer.status.is_success() && body.get("jsonrpc").is_some();
        match body.get_mut("result") {
            Some(value) => Ok(Answer { value: value.take(), server_time: answer.server_time, took: Duration::ZERO }),
            // A method that returns nothing leaves the result out.
            None if is_answer => {
                Ok(Answer { value: Value::Null, server_time: answer.server_time, took: Duration::ZERO })
            }
            None => Err(page()),
        }
    }

    /// The version, and what is spoken where it was said: 19 and later say it at `/json/version`; older ones,
    /// and newer ones whose proxy lets that not through, at `/jsonrpc`.
    async fn probe(&self) -> Result<(Protocol, u32, String), OdooError> {
        let answer = self.server.exchange("/json/version", &[], None).await?;
        let found: Option<Value> = serde_json::from_slice(&answer.body).ok();
        let (protocol, info, text) = match found {
            Some(found) if answer.status.is_success() => {
                (Protocol::Json2, found["version_info"].clone(), found["version"].clone())
            }
            _ if answer.status.as_u16() == 404 => {
                let answer = self.jsonrpc("common", "version", json!([]), "version").await?.value;
                (Protocol::JsonRpc, answer["server_version_info"].clone(), answer["server_version"].clone())
            }
            _ => return Err(from_page(answer.status, answer.is_page, &self.config.database, "version")),
        };
        // Online says `saas~18`, whose number stands behind the sign.
        let major = match &info[0] {
            Value::Number(number) => number.as_u64().and_then(|number| u32::try_from(number).ok()),
            Value::String(word) => word.rsplit('~').next().and_then(|number| number.parse().ok()),
            _ => None,
        };
        match major {
            Some(major) => Ok((protocol, major, text.as_str().unwrap_or_default().to_owned())),
            None => Err(OdooError::NotOdoo("what answers at url says no version of Odoo; check url".into())),
        }
    }

    /// Number of the account that the key belongs to.
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
                    "Odoo {} is asked over /jsonrpc, which wants the login of the account too; set user",
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

/// Reads a key: one line.
fn read_key(file: &Path) -> Result<Zeroizing<String>, String> {
    let read = Secret::read(file).map_err(|error| format!("key_file {error}"))?;
    let key = read.line().unwrap_or_default().trim();
    if key.is_empty() || key.contains(|letter: char| letter.is_whitespace() || letter.is_control()) {
        return Err(format!("key_file {} holds no key; expected one line, the API key of the account", file.display()));
    }
    Ok(Zeroizing::new(key.to_owned()))
}

/// Reads a time as Odoo writes it, such as `2026-11-23 03:18:40`: UTC.
pub fn read_time(text: &str) -> Option<Timestamp> {
    let (date, time) = text.split_once(' ')?;
    Timestamp::parse(&format!("{date}T{time}Z"))
}

/// Writes a time as Odoo wants it: UTC, whole seconds.
pub fn write_time(at: Timestamp) -> String {
    at.to_string().get(..19).unwrap_or_default().replace('T', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_go_back_and_forth_in_whole_seconds() {
        let at = read_time("2026-11-23 03:18:40").expect("a time");
        assert_eq!(at.to_string(), "2026-11-23T03:18:40.000000Z");
        assert_eq!(write_time(at), "2026-11-23 03:18:40");
        assert_eq!(write_time(Timestamp(at.0 + 999_999)), "2026-11-23 03:18:40");
        assert_eq!(read_time("2026-11-23"), None);
    }
}
