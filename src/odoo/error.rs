//! Errors of Odoo calls, classified by what the caller should do.
//!
//! Promise: an error keeps only the name of Odoo's error and one line for a person. Tracebacks, keys and records are
//! dropped here.

use hyper::StatusCode;
use serde_json::Value;

/// Why a call failed. The variants follow what the caller should do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OdooError {
    /// No answer, no answer in time, or an incomplete answer: retry later.
    #[error("{0}")]
    Unreachable(String),
    /// Odoo or a proxy in front of it is busy or restarting, or transactions collided: retry later.
    #[error("{0}")]
    Busy(String),
    /// Odoo refuses the login: a person has to act; slow retries do no harm.
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
            Self::Unreachable(_) | Self::Busy(_) => Class::Retry,
            Self::Denied(_) => Class::Authentication,
            Self::NotOdoo(_) | Self::Refused { .. } => Class::Permanent,
        }
    }

    /// Whether the account lacks a right.
    pub fn is_access(&self) -> bool {
        matches!(self, Self::Refused { why: Refusal::Access, .. })
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
            OdooError::Busy(format!("{call}: conflict with another transaction ({last})"))
        }
        _ if name.starts_with("psycopg2") => {
            OdooError::Busy(format!("{call}: the database could not complete the call ({last}); will retry"))
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

/// Makes an error from an answer that is no JSON or does not come from Odoo.
pub(super) fn from_page(status: StatusCode, is_page: bool, database: &str, call: &str) -> OdooError {
    match status.as_u16() {
        502..=504 => OdooError::Busy(format!(
            "{call}: a proxy answers {}: the Odoo behind it is down, restarting or too slow; will retry",
            status.as_u16()
        )),
        429 => OdooError::Busy(format!("{call}: too many calls (429); will retry")),
        401 | 403 => OdooError::Denied(format!(
            "the server at url answers {} instead of Odoo; a proxy requires its own login, or url is wrong",
            status.as_u16()
        )),
        404 if is_page => OdooError::NotOdoo(format!(
            "there is no database \"{database}\" at url, or url leads to something else (404 with a page); check database and url"
        )),
        _ if is_page => OdooError::NotOdoo(format!(
            "{call}: the answer is an HTML page instead of JSON, status {}; url leads to another server, or a proxy answers; check url",
            status.as_u16()
        )),
        _ => OdooError::NotOdoo(format!("{call}: the answer is not from Odoo, status {}; check url", status.as_u16())),
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
    fn pages_and_proxies_are_named_with_what_to_do() {
        let of = |code: u16, is_page| {
            from_page(StatusCode::from_u16(code).expect("a status"), is_page, "plant", "m/search").to_string()
        };
        assert!(of(502, true).contains("proxy answers 502"));
        assert!(of(404, true).contains("database \"plant\""));
        assert!(of(200, true).contains("HTML"));
        assert!(of(200, false).contains("check url"));
    }
}
