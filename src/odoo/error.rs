//! Errors of Odoo calls, classified by what the caller should do.
//!
//! Promise: an error keeps only the name of Odoo's error and one line for a person. Tracebacks, keys and records are
//! dropped here.

use hyper::StatusCode;
use serde_json::Value;
use std::time::Duration;

/// Why a call failed. The variants follow what the caller should do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OdooError {
    /// No answer, no answer in time, or an incomplete answer: retry later.
    #[error("{0}")]
    Unreachable(String),
    /// Odoo or a proxy in front of it is busy or restarting, or transactions collided: retry later.
    #[error("{message}")]
    Busy {
        /// One line for a person.
        message: String,
        /// The pause that the server asks for (`Retry-After`), at most [`RETRY_AFTER_MAX`].
        pause: Option<Duration>,
    },
    /// Odoo has answered, and its answer cannot be read or is too large: an answer about fewer records may be readable.
    #[error("{0}")]
    Unreadable(String),
    /// The login or the key is not accepted: a person has to act.
    #[error("{0}")]
    Denied(String),
    /// The server at the URL is no Odoo, or has no such database: a person has to act.
    #[error("{0}")]
    NotOdoo(String),
    /// Odoo understood the call and refuses it permanently.
    #[error("{message}")]
    Refused {
        /// The reason, as far as the error reveals it.
        why: Refusal,
        /// Name of the error, such as `odoo.exceptions.AccessError`.
        name: String,
        /// One line for a person.
        message: String,
    },
}

/// Longest pause that a server may ask for; what asks for more is asked again after this time.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);

/// Why Odoo refuses a call permanently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The account lacks a right.
    Access,
    /// The model or method does not exist.
    UnknownModel,
    /// A field does not exist, or a value is not allowed in it.
    Value,
    /// The record does not exist.
    Missing,
    /// A business rule, or anything else.
    Other,
}

/// What the caller should do after an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The same call fails again until somebody changes something.
    Permanent,
    /// The same call may succeed later.
    Retry,
    /// The login is not accepted.
    Authentication,
}

impl OdooError {
    /// What the caller should do.
    pub fn class(&self) -> Class {
        match self {
            Self::Unreachable(_) | Self::Busy { .. } | Self::Unreadable(_) => Class::Retry,
            Self::Denied(_) => Class::Authentication,
            Self::NotOdoo(_) | Self::Refused { .. } => Class::Permanent,
        }
    }

    /// Whether the account lacks a right.
    pub fn is_access(&self) -> bool {
        matches!(self, Self::Refused { why: Refusal::Access, .. })
    }

    /// Whether a call about fewer records or fewer fields may succeed.
    pub fn may_be_partial(&self) -> bool {
        match self {
            Self::Unreadable(_) => true,
            Self::Refused { why, .. } => *why != Refusal::UnknownModel,
            _ => false,
        }
    }

    /// The pause that the server asks for.
    pub fn pause(&self) -> Option<Duration> {
        if let Self::Busy { pause, .. } = self { *pause } else { None }
    }

    pub(super) fn busy(message: String) -> Self {
        Self::Busy { message, pause: None }
    }
}

/// Length to which a message is cut.
const LINE_CHARS_MAX: usize = 200;

/// The first line of a message, shortened. Further lines of Odoo's messages list groups and records.
pub(super) fn line(text: &str) -> String {
    let first = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    match first.char_indices().nth(LINE_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &first[..end]),
        None => first.to_owned(),
    }
}

/// Makes an error from the object `{name, message, …}` of JSON-2 and `/jsonrpc`.
pub(super) fn from_body(body: &Value, call: &str) -> OdooError {
    let text = |field: &str| body.get(field).and_then(Value::as_str).unwrap_or_default();
    let (name, message) = (text("name"), line(text("message")));
    let last = name.rsplit('.').next().unwrap_or_default();
    let refused = |why, message| OdooError::Refused { why, name: name.to_owned(), message };
    match last {
        "Unauthorized" | "AccessDenied" => OdooError::Denied(format!(
            "Odoo refuses the login ({message}): the key is wrong, expired, or its user is inactive; make a new key for the account and put it into key_file"
        )),
        "OperationalError" if name.starts_with("psycopg2") && message.contains("does not exist") => {
            OdooError::NotOdoo(format!("there is no such database ({message}); set database to the right one"))
        }
        "LockError" | "ConcurrencyError" => {
            OdooError::busy(format!("{call}: conflict with another transaction ({last})"))
        }
        _ if name.starts_with("psycopg2") && TRANSIENT.contains(&last) => {
            OdooError::busy(format!("{call}: the database could not complete the call ({last}); will retry"))
        }
        "MemoryError" | "OSError" | "TimeoutError" | "ConnectionError" | "ServiceUnavailable" | "TooManyRequests" => {
            OdooError::busy(format!("{call}: Odoo could not complete the call ({last}: {message}); will retry"))
        }
        _ if name.starts_with("psycopg2") => {
            refused(Refusal::Value, format!("{call}: the database refuses a value or a column ({last}: {message})"))
        }
        "AccessError" => refused(
            Refusal::Access,
            format!(
                "{call}: the account lacks the right ({message}); give its group read access to this model, or to the one that the field leads to"
            ),
        ),
        // `/jsonrpc` reports a missing model only in the message.
        "NotFound" | "UserError" if last == "NotFound" || is_model_missing(&message) => {
            refused(Refusal::UnknownModel, format!("{call}: {message}; is the module installed that brings it?"))
        }
        "MissingError" => refused(Refusal::Missing, format!("{call}: {message}")),
        "ValueError" | "KeyError" if message.contains("field") || message.contains("Invalid") => {
            refused(Refusal::Value, format!("{call}: {message}; name fields and values that this version of Odoo has"))
        }
        _ => refused(Refusal::Other, format!("{call}: {last}: {message}")),
    }
}

fn is_model_missing(message: &str) -> bool {
    message.starts_with("Object ") && message.ends_with(" doesn't exist")
}

/// Errors of the database that pass by themselves: collisions, restarts, and a lack of connections, memory or disk.
/// Any other one concerns the values or columns of the call.
const TRANSIENT: [&str; 26] = [
    "AdminShutdown",
    "CannotConnectNow",
    "ConfigurationLimitExceeded",
    "ConnectionDoesNotExist",
    "ConnectionException",
    "ConnectionFailure",
    "CrashShutdown",
    "DeadlockDetected",
    "DiskFull",
    "IdleInTransactionSessionTimeout",
    "InFailedSqlTransaction",
    "InsufficientResources",
    "InterfaceError",
    "LockNotAvailable",
    "ObjectInUse",
    "OperationalError",
    "OutOfMemory",
    "PoolError",
    "QueryCanceled",
    "QueryCanceledError",
    "ReadOnlySqlTransaction",
    "SerializationFailure",
    "TooManyConnections",
    "TransactionResolutionUnknown",
    "TransactionRollback",
    "TransactionRollbackError",
];

/// An answer that is no result and no error of Odoo.
pub(super) struct Page<'a> {
    pub(super) status: StatusCode,
    /// Whether it is an HTML page.
    pub(super) is_html: bool,
    /// Why it cannot be read, if it is JSON by its type or by its first letter.
    pub(super) damage: Option<String>,
    /// Where it redirects to.
    pub(super) location: Option<&'a str>,
    /// The pause that it asks for.
    pub(super) pause: Option<Duration>,
    /// Name of the database that was asked for.
    pub(super) database: &'a str,
    /// Model and method.
    pub(super) call: &'a str,
}

impl Page<'_> {
    /// Makes an error from an answer that is no JSON, no complete JSON, or does not come from Odoo.
    pub(super) fn error(&self) -> OdooError {
        let (call, code) = (self.call, self.status.as_u16());
        match code {
            200..=299 if self.damage.is_some() => OdooError::Unreadable(format!(
                "{call}: the answer of Odoo cannot be read: {}",
                self.damage.as_deref().unwrap_or_default()
            )),
            429 => self.busy(format!("{call}: too many calls (429); will retry")),
            502..=504 => self.busy(format!(
                "{call}: a proxy answers {code}: the Odoo behind it is down, restarting or too slow; will retry"
            )),
            408 | 425 | 500..=599 => self
                .busy(format!("{call}: the server answers {code} without a reason; will retry, see the log of Odoo")),
            300..=399 => OdooError::NotOdoo(format!(
                "{call}: the server at url redirects ({code}) to {}; set url to the address that answers itself",
                self.location.map_or("nowhere".to_owned(), origin_of)
            )),
            401 | 403 => OdooError::Denied(format!(
                "the server at url answers {code} instead of Odoo; a proxy requires its own login, or url is wrong"
            )),
            404 if self.is_html => OdooError::NotOdoo(format!(
                "there is no database \"{}\" at url, or url leads to something else (404 with a page); check database and url",
                self.database
            )),
            _ if self.is_html => OdooError::NotOdoo(format!(
                "{call}: the answer is an HTML page instead of JSON, status {code}; url leads to another server, or a proxy answers; check url"
            )),
            _ => OdooError::NotOdoo(format!("{call}: the answer is not from Odoo, status {code}; check url")),
        }
    }

    fn busy(&self, message: String) -> OdooError {
        OdooError::Busy { message, pause: self.pause }
    }
}

/// Scheme and host of a URL: its path and query may hold a secret.
fn origin_of(url: &str) -> String {
    match url.split_once("://") {
        Some((scheme, rest)) => {
            let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
            let host = host.rsplit('@').next().unwrap_or_default();
            line(&format!("{scheme}://{host}"))
        }
        None => "another path".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn errors_are_classified_by_name_and_keep_no_traceback() {
        let check = |name: &str, message: &str, class: Class| {
            let body =
                json!({"name": name, "message": message, "debug": "Traceback (most recent call last):\n  secret"});
            let error = from_body(&body, "mrp.production/search_read");
            assert_eq!(error.class(), class, "{name}: {error}");
            assert!(!error.to_string().contains("Traceback") && !error.to_string().contains('\n'), "{error}");
            error
        };
        check("werkzeug.exceptions.Unauthorized", "Invalid apikey", Class::Authentication);
        check("odoo.exceptions.AccessDenied", "Access Denied", Class::Authentication);
        check("psycopg2.errors.SerializationFailure", "could not serialize", Class::Retry);
        check("odoo.exceptions.LockError", "locked", Class::Retry);
        check("builtins.ValueError", "Invalid field 'x' on 'mrp.production'", Class::Permanent);
        check("werkzeug.exceptions.NotFound", "the model 'no.model' does not exist", Class::Permanent);
        let unknown = check("odoo.exceptions.UserError", "Object no.model doesn't exist", Class::Permanent);
        assert!(unknown.to_string().contains("is the module installed"), "{unknown}");
        check("psycopg2.OperationalError", "FATAL:  database \"x\" does not exist", Class::Permanent);
        let refused = check("odoo.exceptions.AccessError", "You are not allowed\n\ngroups", Class::Permanent);
        assert!(refused.is_access() && refused.to_string().contains("read access"), "{refused}");
        check("odoo.exceptions.UserError", &"long ".repeat(200), Class::Permanent);
    }

    #[test]
    fn a_fault_of_one_value_is_not_retried_for_ever_and_a_busy_database_is() {
        let of = |name: &str| from_body(&json!({"name": name, "message": "why"}), "m/search_read");
        for name in ["psycopg2.errors.DatetimeFieldOverflow", "psycopg2.errors.UndefinedColumn", "psycopg2.DataError"] {
            assert_eq!((of(name).class(), of(name).may_be_partial()), (Class::Permanent, true), "{name}");
        }
        for name in TRANSIENT {
            let error = of(&format!("psycopg2.errors.{name}"));
            assert_eq!((error.class(), error.may_be_partial()), (Class::Retry, false), "{name}");
        }
        for name in ["builtins.ValueError", "builtins.OverflowError", "builtins.ZeroDivisionError"] {
            assert!(of(name).may_be_partial(), "{name}");
        }
        assert_eq!(of("builtins.MemoryError").class(), Class::Retry);
    }

    fn page(code: u16) -> Page<'static> {
        Page {
            status: StatusCode::from_u16(code).expect("a status"),
            is_html: true,
            damage: None,
            location: None,
            pause: None,
            database: "plant",
            call: "m/search",
        }
    }

    #[test]
    fn pages_and_proxies_are_named_with_what_to_do() {
        let of = |code: u16, is_html| Page { is_html, ..page(code) }.error().to_string();
        assert!(of(502, true).contains("proxy answers 502"));
        assert!(of(404, true).contains("database \"plant\""));
        assert!(of(200, true).contains("HTML"));
        assert!(of(200, false).contains("check url"));
        let location = Some("https://me:sesame@odoo.example.com/web/login?token=sesame");
        let text = Page { location, ..page(301) }.error().to_string();
        assert!(text.contains("to https://odoo.example.com;") && !text.contains("sesame"), "{text}");
    }

    #[test]
    fn what_odoo_itself_answers_never_blames_the_address() {
        let damage = Some("EOF while parsing at line 1 column 7".to_owned());
        let error = Page { is_html: false, damage, ..page(200) }.error();
        assert!(matches!(error, OdooError::Unreadable(_)), "{error:?}");
        for code in [408, 429, 500, 502, 503, 504] {
            let error = Page { pause: Some(Duration::from_secs(60)), ..page(code) }.error();
            assert_eq!((error.class(), error.pause()), (Class::Retry, Some(Duration::from_secs(60))), "{code}");
            assert!(!error.to_string().contains("url"), "{error}");
        }
    }
}
