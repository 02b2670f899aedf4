//! Hints for settings that do not match their type: what to write instead.
//!
//! Invariant: a message names no type of Rust.

use std::fmt::Write;

/// Example values of required settings, by the last part of their key.
const EXAMPLES: [(&str, &str); 13] = [
    ("environment", "\"test\""),
    ("site", "\"plant-01\""),
    ("name", "\"central\""),
    ("listen", "\"0.0.0.0:8883\""),
    ("url", "\"mqtts://central.example.com:8883\""),
    ("topics", "[\"plant/#\"]"),
    ("database", "\"plant\""),
    ("key_file", "\"odoo.key\""),
    ("path", "\"/srv/drop\""),
    ("format", "\"csv\""),
    ("owner", "\"production engineering\""),
    ("version", "\"1.0.0\""),
    ("unit", "[{ name = \"press-4\", unit = 1, device = \"machine-plc\" }]"),
];

/// Tables that a text or a truth value often stands for, by the last part of their key.
const TABLES: [(&str, &str); 4] = [
    (
        "tls",
        "{ ca = \"ca.pem\" } for a connection, with cert and key if the server wants a client certificate; { cert = \"gateway.pem\", key = \"gateway.key\" } for a listener",
    ),
    ("proxy", "{ url = \"http://proxy:3128\" }"),
    ("budget", "{ day = \"50MB\" }"),
    ("batch", "{ bytes = \"64KiB\" }"),
];

/// Least similarity of two names that one is suggested for the other.
const SIMILAR: f64 = 0.8;

/// Returns the example of a required setting.
pub(super) fn example(name: &str) -> Option<&'static str> {
    EXAMPLES.iter().find(|(known, _)| *known == name).map(|(_, example)| *example)
}

/// Adds a hint to the message about a value. `written` is the value in the file.
pub(super) fn explain(key: &str, message: &str, written: &str) -> String {
    let last = key.rsplit('.').next().unwrap_or(key);
    let mut out = without_type_name(message);
    if message.starts_with("invalid type: map, expected a sequence") {
        let _ = write!(out, "; write [[{key}]] with two brackets: there may be several");
    } else if message.contains("expected a sequence") {
        let one = if written.starts_with('"') { written } else { "\"…\"" };
        let _ = write!(out, "; write a list: {last} = [{one}]");
    } else if message.starts_with("invalid type") && message.contains("expected struct") {
        let table = TABLES.iter().find(|(known, _)| *known == last).map_or("{ … }", |(_, table)| *table);
        let _ = write!(out, "; write a table: {last} = {table}");
    } else if let Some(name) = between(message, "missing field `") {
        if let Some(example) = example(name) {
            let _ = write!(out, "; for example: {name} = {example}");
        }
    } else if let Some(near) = nearest(message) {
        let _ = write!(out, "; did you mean \"{near}\"?");
    }
    out
}

/// Replaces `struct ClientFiles` by words.
fn without_type_name(message: &str) -> String {
    for word in ["struct ", "enum ", "newtype struct ", "tuple struct "] {
        if let Some((start, rest)) = message.split_once(&format!("expected {word}")) {
            let end = rest.find(|letter: char| !letter.is_alphanumeric() && letter != '_').unwrap_or(rest.len());
            return format!("{start}expected a table{}", &rest[end..]);
        }
    }
    message.to_owned()
}

fn between<'m>(message: &'m str, start: &str) -> Option<&'m str> {
    message.split_once(start)?.1.split('`').next()
}

/// Returns the allowed name that is most like the unknown one.
fn nearest(message: &str) -> Option<&str> {
    let unknown = between(message, "unknown field `").or_else(|| between(message, "unknown variant `"))?;
    let allowed = message.split_once("expected")?.1.split('`').skip(1).step_by(2);
    let unknown = unknown.to_lowercase();
    // Names of types in other languages.
    let short = unknown.replace("uint", "u").replace("int", "i").replace("float", "f");
    let like = |name: &str| strsim::jaro_winkler(&unknown, name).max(strsim::jaro_winkler(&short, name));
    let rated = allowed.map(|name| (like(name), name));
    let (likeness, name) = rated.max_by(|one, other| one.0.total_cmp(&other.0))?;
    (likeness >= SIMILAR).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_says_what_to_write_and_names_no_type() {
        for (key, message, written, wanted) in [
            ("source.mqtt", "invalid type: map, expected a sequence", "", "write [[source.mqtt]]"),
            (
                "source.mqtt[0].acl[0].publish",
                "invalid type: string \"a/#\", expected a sequence",
                "\"a/#\"",
                "publish = [\"a/#\"]",
            ),
            (
                "destination[0].tls",
                "invalid type: boolean `true`, expected struct ClientFiles",
                "true",
                "expected a table; write a table: tls = { ca = ",
            ),
            ("", "missing field `environment`", "", "for example: environment = \"test\""),
            (
                "source.mqtt[0]",
                "unknown field `lisen`, expected one of `name`, `listen`",
                "",
                "did you mean \"listen\"?",
            ),
            ("point[0].type", "unknown variant `uint32`, expected one of `u16`, `u32`", "", "did you mean \"u32\"?"),
        ] {
            let said = explain(key, message, written);
            assert!(said.contains(wanted) && !said.contains("struct"), "{said}");
        }
        for message in ["unknown field `unknown_key`, expected one of `name`, `mask_key`", "is no address"] {
            assert_eq!(explain("a", message, ""), message);
        }
    }
}
