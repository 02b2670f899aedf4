//! Hints for settings that do not match their type: what to write instead.
//!
//! Invariant: a message names no type of Rust.

use std::fmt::Write;

/// Example values of required settings, by the last part of their key.
const EXAMPLES: [(&str, &str); 16] = [
    ("environment", "\"test\""),
    ("site", "\"plant-01\""),
    ("name", "\"central\""),
    ("listen", "\"0.0.0.0:8883\""),
    ("url", "\"mqtts://central.example.com:8883\""),
    ("topics", "[\"plant/#\"]"),
    ("cert", "\"gateway.pem\""),
    ("key", "\"gateway.key\""),
    ("database", "\"plant\""),
    ("key_file", "\"odoo.key\""),
    ("token_file", "\"hook.token\""),
    ("path", "\"/srv/drop\""),
    ("format", "\"csv\""),
    ("owner", "\"production engineering\""),
    ("version", "\"1.0.0\""),
    ("unit", "[{ name = \"press-4\", unit = 1, device = \"machine-plc\" }]"),
];

/// Example values that differ from these, by a part of the key of their table.
const EXAMPLES_IN: [(&str, &str, &str); 3] = [
    ("proxy", "url", "\"http://proxy.example.com:3128\""),
    ("source.modbus", "url", "\"tcp://192.0.2.10:502\""),
    ("source.odoo", "url", "\"https://odoo.example.com\""),
];

/// Tables that a text or a truth value often stands for, by the last part of their key.
const TABLES: [(&str, &str); 3] = [
    (
        "tls",
        "{ ca = \"ca.pem\" } for a connection, with cert and key if the server wants a client certificate; { cert = \"gateway.pem\", key = \"gateway.key\" } for a listener",
    ),
    ("proxy", "{ url = \"http://proxy:3128\" }"),
    ("budget", "{ day = \"50MB\" }"),
];

/// Longest value that is repeated in a message.
const WRITTEN_BYTES_MAX: usize = 80;

/// Least similarity of two names that one is suggested for the other.
const SIMILAR: f64 = 0.8;

/// Returns the example of a required setting.
pub(super) fn example(name: &str) -> Option<&'static str> {
    EXAMPLES.iter().find(|(known, _)| *known == name).map(|(_, example)| *example)
}

/// Adds a hint to the message about a value. `written` is the value in the file.
pub(super) fn explain(key: &str, message: &str, written: &str) -> String {
    let last = key.rsplit('.').next().unwrap_or(key);
    let mut out = in_plain_words(message);
    // Types that take several forms explain what they expect, and not the value.
    if out.starts_with("expected ") && !written.is_empty() && written.len() <= WRITTEN_BYTES_MAX {
        out = format!("`{written}`: {out}");
    }
    if message.starts_with("invalid type: map, expected a sequence") {
        let _ = write!(out, "; write [[{key}]] with two brackets: there may be several");
    } else if message.contains("expected a sequence") {
        let one = if written.starts_with('"') { written } else { "\"…\"" };
        let _ = write!(out, "; write {last} = [{one}]");
    } else if message.starts_with("invalid type") && message.contains("expected struct") {
        let table = TABLES.iter().find(|(known, _)| *known == last).map_or("{ … }", |(_, table)| *table);
        let _ = write!(out, "; write a table: {last} = {table}");
    } else if let Some(name) = between(message, "missing field `") {
        let here = EXAMPLES_IN.iter().find(|(part, known, _)| *known == name && key.contains(part));
        if let Some(example) = here.map(|(.., example)| *example).or_else(|| example(name)) {
            let _ = write!(out, "; for example: {name} = {example}");
        }
    } else if let Some(near) = nearest(message) {
        let _ = write!(out, "; did you mean \"{near}\"?");
    }
    out
}

/// Replaces the words of the library: it names types of Rust, and calls a list a sequence and a table a map.
fn in_plain_words(message: &str) -> String {
    if let Some((length, expected)) =
        message.strip_prefix("invalid length ").and_then(|rest| rest.split_once(", expected "))
    {
        return format!("a list of {length} values, expected {}", expected_in_words(expected));
    }
    if let Some(rest) = message.strip_prefix("unknown variant ") {
        return format!("unknown value {rest}");
    }
    let Some((kind, rest)) = ["invalid type", "invalid value"]
        .iter()
        .find_map(|kind| Some((kind, message.strip_prefix(kind)?.strip_prefix(": ")?)))
    else {
        return message.to_owned();
    };
    match rest.rsplit_once(", expected ") {
        Some((found, expected)) => {
            format!("{kind}: {}, expected {}", found_in_words(found), expected_in_words(expected))
        }
        None => message.to_owned(),
    }
}

fn found_in_words(found: &str) -> &str {
    match found {
        "sequence" => "a list",
        "map" => "a table",
        _ => {
            let kinds = ["integer ", "floating point ", "boolean ", "string ", "character "];
            let value = kinds.iter().find_map(|kind| found.strip_prefix(kind)).unwrap_or(found);
            value.strip_suffix(" as i128").or_else(|| value.strip_suffix(" as u128")).unwrap_or(value)
        }
    }
}

fn expected_in_words(expected: &str) -> &str {
    match expected {
        "a string" | "string" | "str" | "path string" => "a text in quotes",
        "a sequence" | "sequence" => "a list",
        "a map" | "map" => "a table",
        "a tuple of size 2" => "a list of two values",
        "socket address" => "an address with its port in quotes, such as \"127.0.0.1:9110\"",
        "a boolean" | "bool" => "true or false",
        "u8" => "a whole number from 0 to 255",
        "u16" => "a whole number from 0 to 65535",
        "u32" | "u64" | "u128" | "usize" => "a whole number that is not negative",
        "i8" | "i16" | "i32" | "i64" | "i128" | "isize" => "a whole number",
        "f32" | "f64" => "a number",
        _ if expected.starts_with("a nonzero") => "a whole number above 0",
        _ if ["struct ", "enum ", "newtype struct ", "tuple struct "].iter().any(|word| expected.starts_with(word)) => {
            "a table"
        }
        _ => expected,
    }
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
            ("source.modbus[0]", "missing field `url`", "", "url = \"tcp://192.0.2.10:502\""),
            ("", "missing field `environment`", "", "for example: environment = \"test\""),
            (
                "source.mqtt[0]",
                "unknown field `lisen`, expected one of `name`, `listen`",
                "",
                "did you mean \"listen\"?",
            ),
            ("point[0].type", "unknown variant `uint32`, expected one of `u16`, `u32`", "", "did you mean \"u32\"?"),
            ("a.proxy", "invalid type: sequence, expected struct Proxy", "[]", "a table: proxy = { url ="),
            ("a", "unknown variant `x`, expected `y`", "", "unknown value `x`, expected `y`"),
            ("a", "invalid type: integer `9` as i128, expected usize", "", "`9`, expected a whole number that is not"),
            ("a", "invalid type: string \"a, expected b\", expected f64", "", "\"a, expected b\", expected a number"),
            ("a", "invalid type: sequence, expected path string", "", "a list, expected a text in quotes"),
        ] {
            let said = explain(key, message, written);
            assert!(
                said.contains(wanted) && !["struct", "sequence", "usize"].iter().any(|word| said.contains(word)),
                "{said}"
            );
        }
        for message in ["unknown field `unknown_key`, expected one of `name`, `mask_key`", "is no address"] {
            assert_eq!(explain("a", message, ""), message);
        }
    }
}
