//! The topic and the envelope of a command: a structured CloudEvent whose `data` says what to do.
//!
//! Invariant: parsing never panics, and its errors contain no value of the payload.

use crate::contract::{ID_BYTES_MAX, KEY_BYTES_MAX, Tree};
use crate::event::Timestamp;

/// Levels of the topic of a command, after `{environment}/{site}/command/{gateway}/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Address<'a> {
    pub(super) sender: &'a str,
    pub(super) contract: &'a str,
    pub(super) major: u64,
    pub(super) target: &'a str,
}

impl<'a> Address<'a> {
    /// Parses `{sender}/{contract}/v{major}/{target}`; the target may have several levels.
    pub(super) fn parse(levels: &'a str) -> Option<Self> {
        let mut parts = levels.splitn(4, '/');
        let (sender, contract, version, target) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let major = version.strip_prefix('v')?.parse().ok()?;
        let is_complete = !sender.is_empty() && !contract.is_empty() && !target.is_empty();
        (is_complete && target.len() <= KEY_BYTES_MAX).then_some(Self { sender, contract, major, target })
    }
}

/// `source` and `id` of a command: its idempotency key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CommandId {
    pub(super) source: String,
    pub(super) id: String,
}

/// A parsed command.
#[derive(Debug)]
pub(super) struct Envelope {
    pub(super) action: String,
    /// The arguments as JSON text, in which each name is unique.
    pub(super) with: String,
    pub(super) expires: Timestamp,
    pub(super) correlation: Option<String>,
    pub(super) causation: Option<String>,
    pub(super) is_dry_run: bool,
    /// Names of the members of `data` that this version does not know: to ignore a precondition would be wrong.
    pub(super) unknown: Vec<String>,
}

/// Reads the idempotency key of a command.
pub(super) fn identify(payload: &Tree<'_>) -> Result<CommandId, String> {
    if text(payload, "specversion") != Some("1.0") {
        return Err("specversion: expected a structured CloudEvent with \"specversion\": \"1.0\"".into());
    }
    let field = |name: &str, most: usize| match text(payload, name) {
        Some(value) if (1..=most).contains(&value.len()) => Ok(value.to_owned()),
        Some(_) => Err(format!("{name}: expected 1 to {most} bytes")),
        None => Err(format!("{name}: is missing")),
    };
    Ok(CommandId { source: field("source", KEY_BYTES_MAX)?, id: field("id", ID_BYTES_MAX)? })
}

/// Reads the rest of a command. `kind` is the CloudEvent type that its topic requires.
pub(super) fn parse(payload: &Tree<'_>, kind: &str, target: &str) -> Result<Envelope, String> {
    if text(payload, "type") != Some(kind) {
        return Err(format!("type: the topic requires \"{kind}\""));
    }
    if payload.member("subject").is_some() && text(payload, "subject") != Some(target) {
        return Err("subject: differs from the target in the topic".into());
    }
    let expires = text(payload, "expirytime").and_then(Timestamp::parse);
    let expires = expires.ok_or("expirytime: expected a time such as \"2026-12-01T06:00:00Z\"")?;
    let Some(Tree::Object(members)) = payload.member("data") else {
        return Err("data: expected an object".into());
    };
    let (mut action, mut with, mut is_dry_run, mut unknown) = (None, "{}".to_owned(), false, Vec::new());
    for (name, value) in members {
        match (&**name, value) {
            ("do", Tree::Text(text)) => action = Some(text.to_string()),
            ("do", _) => return Err("data/do: expected a string".into()),
            ("with", Tree::Object(_)) => {
                let mut bytes = Vec::new();
                value.write(&mut bytes);
                with = String::from_utf8(bytes).map_err(|_| "data/with: is no UTF-8")?;
            }
            ("with", _) => return Err("data/with: expected an object".into()),
            ("dry_run", Tree::Bool(flag)) => is_dry_run = *flag,
            ("dry_run", _) => return Err("data/dry_run: expected true or false".into()),
            (other, _) => unknown.push(other.chars().take(32).collect()),
        }
    }
    let optional = |name: &str| text(payload, name).filter(|id| id.len() <= ID_BYTES_MAX).map(str::to_owned);
    Ok(Envelope {
        action: action.ok_or("data/do: is missing")?,
        with,
        expires,
        correlation: optional("correlationid"),
        causation: optional("causationid"),
        is_dry_run,
        unknown,
    })
}

fn text<'t>(payload: &'t Tree<'_>, name: &str) -> Option<&'t str> {
    match payload.member(name) {
        Some(Tree::Text(text)) => Some(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_four_levels_of_which_the_last_may_be_a_path() {
        let found = Address::parse("planner/press.setpoint/v1/hall/press-4");
        let expected = Address { sender: "planner", contract: "press.setpoint", major: 1, target: "hall/press-4" };
        assert_eq!(found, Some(expected));
        for wrong in ["", "planner", "planner/c/v1", "planner/c/v1/", "planner/c/1/t", "planner//v1/t", "/c/v1/t"] {
            assert_eq!(Address::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn an_envelope_that_is_incomplete_says_what_is_missing() {
        const GOOD: &str = r#"{"specversion":"1.0","source":"/p","id":"1","type":"t","expirytime":"2026-12-01T06:00:00Z","data":{"do":"set","with":{"a":1,"a":2}}}"#;
        let parsed = |text: &str| -> Result<Envelope, String> {
            let tree = Tree::parse(text.as_bytes()).map_err(|error| error.to_string())?;
            identify(&tree)?;
            parse(&tree, "t", "press-4")
        };
        assert_eq!(parsed(GOOD).expect("good").with, r#"{"a":2}"#, "the device and the schema read the same");
        for (before, after, said) in [
            ("\"1.0\"", "1", "specversion"),
            ("\"id\":\"1\",", "", "id: is missing"),
            ("\"/p\"", "\"\"", "source: expected 1"),
            ("\"t\"", "\"u\"", "type: "),
            ("2026-12", "tomorrow", "expirytime: "),
            ("{\"do\":\"set\",", "{", "data/do: is missing"),
            ("\"with\":{\"a\":1,\"a\":2}", "\"with\":[]", "data/with: "),
            ("\"type\"", "\"subject\":\"press-5\",\"type\"", "subject: "),
        ] {
            let error = parsed(&GOOD.replace(before, after)).expect_err(after);
            assert!(error.starts_with(said), "{error}");
        }
        let conditional = parsed(&GOOD.replace("\"do\"", "\"if\":{},\"do\"")).expect("parsed");
        assert_eq!(conditional.unknown, ["if"]);
    }
}
