//! JSON Schema, draft 2020-12: compiles a schema once and validates payloads with it.
//!
//! Promise: the result is that of the specification, with `format` asserted (`idn-email` and `idn-hostname` only
//! annotate). No validation takes longer than a second or uses more than 1 MiB of stack, whatever the payload. Error
//! messages never contain a value of the payload.
//!
//! Not here: other files. A schema refers only to itself and its `$defs`, never to the network.
//!
//! The crate `jsonschema` validates. It has no resource limits, so this module adds them:
//! - The crate reads the payload only through [`node`], which charges every access to a [`budget`]. Once the budget is
//!   spent, the rest of the payload appears empty, the crate finishes soon, and the payload is rejected.
//! - The crate does not limit the cost of regular expressions. [`pattern`] therefore implements that keyword, with
//!   engines whose cost is known before they start ([`regex`]). The crate itself matches the names of
//!   `patternProperties`, with an engine without backtracking: schemas with look-around in these names are rejected at
//!   compile time.
//! - The crate's errors contain the offending value. Here they contain `null` instead, and [`message`] writes the text.

mod budget;
mod costs;
mod message;
mod node;
mod pattern;
mod regex;

use super::json::Tree;
use budget::{Budget, Costs};
use jsonschema::{Draft, PatternOptions, ValidationError, Validator};
use node::{Payload, PayloadNode};
use pattern::Pattern;
use serde_json::Value;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The `$schema` of draft 2020-12.
const DRAFT: &str = "https://json-schema.org/draft/2020-12/schema";

/// A compiled schema with the cost factors of its keywords.
#[derive(Debug)]
pub(super) struct Schema {
    validator: Validator<Payload>,
    costs: Costs,
}

impl Schema {
    /// Compiles a schema.
    ///
    /// # Errors
    /// The value is not a schema of draft 2020-12. The message starts with the JSON pointer to the error.
    pub(super) fn compile(schema: &Value) -> Result<Self, String> {
        check_draft(schema)?;
        let validator = jsonschema::options_for::<Payload>()
            .with_draft(Draft::Draft202012)
            .offline()
            .should_validate_formats(true)
            .with_format("regex", pattern::is_regex)
            .with_pattern_options(PatternOptions::regex())
            .with_keyword("pattern", |_, value, _| match Pattern::compile(value.as_str().unwrap_or_default()) {
                Ok(pattern) => Ok(Box::new(pattern)),
                Err(message) => Err(ValidationError::custom(message)),
            })
            .build(schema)
            .map_err(|error| message::of_schema(&error))?;
        Ok(Self { validator, costs: Costs::of(schema) })
    }

    /// Validates a payload.
    ///
    /// # Errors
    /// The first violation, after the JSON pointer to it.
    pub(super) fn check(&self, payload: &Tree<'_>) -> Result<(), String> {
        // The engine for regular expressions panics on some patterns (rust-lang/regex, issue 1344).
        let checked = catch_unwind(AssertUnwindSafe(|| {
            let budget = Budget::new(self.costs);
            let is_valid = self.validator.is_valid(PayloadNode::new(payload, &budget));
            match budget.exhausted() {
                Some(reason) => Err(format!("payload: {reason}")),
                None if is_valid => Ok(()),
                None => Err(self.explain(payload)),
            }
        }));
        checked.unwrap_or_else(|_| Err("payload: cannot be checked against its schema".into()))
    }

    /// Returns the message for an invalid payload.
    fn explain(&self, payload: &Tree<'_>) -> String {
        let budget = Budget::to_explain(self.costs);
        let found = self.validator.validate(PayloadNode::new(payload, &budget));
        match (budget.exhausted(), found) {
            (None, Err(error)) => message::of_payload(&error),
            _ => "payload: does not match its schema; finding the location takes too long".into(),
        }
    }
}

/// Rejects other drafts: the crate would silently ignore some of their keywords.
fn check_draft(schema: &Value) -> Result<(), String> {
    match schema.get("$schema").and_then(Value::as_str) {
        Some(uri) if uri.trim_end_matches('#') != DRAFT && uri.contains("json-schema.org/draft") => {
            Err(format!("/$schema: \"{uri}\" is another draft; expected \"{DRAFT}\""))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn checked(schema: &Value, payload: &Value) -> Result<Result<(), String>, String> {
        let schema = Schema::compile(schema)?;
        let text = payload.to_string();
        Ok(schema.check(&Tree::parse(text.as_bytes()).expect("valid JSON")))
    }

    struct Test {
        payload: Value,
        is_valid: bool,
        name: String,
    }

    /// The official test suite of the draft. Each line of the file is a group of tests. The first line holds the other
    /// files to which the groups refer: they are put under `$defs`, the only place this module reads them from.
    fn official_tests() -> Vec<(Value, Vec<Test>)> {
        const LEFT_OUT: [(&str, &str); 14] = [
            ("vocabulary", "needs a meta-schema of one's own"),
            ("defs", "needs the meta-schema of the draft"),
            ("remote ref, containing refs itself", "so does this"),
            ("optional/format-assertion", "so does this"),
            ("optional/cross-draft", "needs an older draft"),
            ("optional/dependencies-compatibility", "a keyword of older drafts"),
            ("format", "formats only annotate there; here they assert, as in optional/format"),
            ("content", "contents only annotate, which no test can see fail"),
            ("optional/format/idn-email", "not asserted"),
            ("optional/format/idn-hostname", "not asserted"),
            ("validation of A-label (punycode) host names", "not decoded"),
            ("optional/bignum", "numbers beyond 64 bits are floating point"),
            ("base URI change - change folder in subschema", "a fragment"),
            ("optional/id", "refers to what is no schema there"),
        ];
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/json-schema-2020-12.jsonl");
        let groups = std::fs::read_to_string(file).expect("is in the repository");
        let mut groups = groups.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        let others = groups.next().expect("the other files")["others"].take();
        let mut found = Vec::new();
        for mut group in groups {
            let [file, name] = ["file", "group"].map(|key| group[key].as_str().expect("a name").to_owned());
            if LEFT_OUT.iter().any(|(left_out, _)| *left_out == file || *left_out == name) {
                continue;
            }
            let text = group["schema"].to_string();
            for (uri, other) in others.as_object().expect("files by their address") {
                let last = uri.rsplit('/').next().expect("a name");
                if text.contains(last) && !text.contains(&format!("\"$id\":\"{uri}\"")) {
                    let mut other = other.clone();
                    other["$id"] = uri.as_str().into();
                    group["schema"]["$defs"][uri] = other;
                }
            }
            let tests = group["tests"].as_array().expect("a list").iter().map(|test| Test {
                payload: test[0].clone(),
                is_valid: test[1].as_bool().expect("a claim"),
                name: format!("{file}, {name}, {}", test[2]),
            });
            let tests = tests.collect();
            found.push((group["schema"].take(), tests));
        }
        found
    }

    #[test]
    fn it_judges_as_the_official_tests_do() {
        let (mut judged, mut wrong) = (0, Vec::new());
        for (schema, tests) in official_tests() {
            for test in tests {
                judged += 1;
                let found = checked(&schema, &test.payload);
                if found.as_ref().map(Result::is_ok) != Ok(test.is_valid) {
                    wrong.push(format!("{}: {found:?}", test.name));
                }
            }
        }
        assert!(wrong.is_empty(), "{} of {judged} are judged wrongly:\n{}", wrong.len(), wrong.join("\n"));
        assert!(judged > 1700, "only {judged} were there");
    }

    #[test]
    fn a_message_names_the_place_and_what_is_allowed_but_no_value() {
        let schema = json!({
            "required": ["a"], "additionalProperties": false,
            "properties": {
                "a": { "type": ["string", "integer"], "maxLength": 3 },
                "b/c": { "items": { "minimum": 0.5 }, "uniqueItems": true },
                "d": { "enum": ["on", "off"] },
                "e": { "pattern": "^[A-Z]+$", "format": "date" },
                "f": { "anyOf": [{ "const": 1 }, { "multipleOf": 0.25 }] },
                "g": { "contains": { "type": "null" }, "minContains": 2 },
                "h": { "dependentRequired": { "x": ["y"] }, "unevaluatedProperties": { "type": "boolean" } },
                "i": { "propertyNames": { "maxLength": 2 } },
                "j": { "prefixItems": [true], "unevaluatedItems": false },
                "k": { "oneOf": [{ "minimum": 1 }, { "minimum": 2 }] },
                "l": { "not": { "type": "string" } },
            },
        });
        for (payload, says) in [
            (json!({}), "/a: is missing"),
            (json!({ "a": 1, "z": 1 }), "/z: is not allowed"),
            (json!({ "a": 1.5 }), "/a: is not of type \"integer\" or \"string\""),
            (json!({ "a": "secret" }), "/a: is longer than 3 characters"),
            (json!({ "a": 1, "b/c": [1, 0.4] }), "/b~1c/1: is less than 0.5"),
            (json!({ "a": 1, "b/c": [1, 1.0] }), "/b~1c: has equal items"),
            (json!({ "a": 1, "d": "standby" }), "/d: is not one of \"on\", \"off\""),
            (json!({ "a": 1, "e": "2026-11-23" }), "/e: does not match \"^[A-Z]+$\""),
            (json!({ "a": 1, "e": "SECRET" }), "/e: is no \"date\""),
            (json!({ "a": 1, "f": 0.3 }), "/f: matches no schema in \"anyOf\" (is not 1; is no multiple of 0.25)"),
            (
                json!({ "a": 1, "g": [null, 1] }),
                "/g: has fewer items of the kind in \"contains\" than \"minContains\" requires",
            ),
            (
                json!({ "a": 1, "h": { "x": true } }),
                "/h/y: is missing, but required by a member that is present (\"dependentRequired\")",
            ),
            (json!({ "a": 1, "h": { "z": 1 } }), "/h/z: is not allowed"),
            (json!({ "a": 1, "i": { "long": 1 } }), "/i/long: the name is longer than 2 characters"),
            (json!({ "a": 1, "j": [1, "secret"] }), "/j: has more items than the schema allows"),
            (json!({ "a": 1, "k": 3 }), "/k: matches more than one schema in \"oneOf\""),
            (json!({ "a": 1, "l": "secret" }), "/l: matches the schema in \"not\""),
            (json!([]), ""),
        ] {
            let found = checked(&schema, &payload).expect("compiles").err();
            assert_eq!(found.unwrap_or_default(), says, "{payload}");
        }
        // The device chooses member names, so messages cut and clean them.
        let long = json!({ "a": 1, (format!("\u{0}{}", "z".repeat(100_000))): 1 });
        let found = checked(&schema, &long).expect("compiles").expect_err("is not allowed");
        let place = found.strip_suffix(": is not allowed").expect("the message");
        assert!(place.starts_with("/\u{FFFD}zz") && place.ends_with('…') && place.len() < 100, "{place}");
        let whole = checked(&json!({ "type": "object" }), &json!(1)).expect("compiles");
        assert_eq!(whole.expect_err("is none"), "payload: is not of type \"object\"");
    }

    /// The official test suite contains invalid payloads. The test replaces all strings and numbers in them by values
    /// that do not occur in the schema.
    #[test]
    fn no_message_of_the_official_tests_holds_a_value() {
        fn with_secrets(value: &mut Value) {
            match value {
                Value::String(text) => *text = format!("s3cr3t{text}"),
                Value::Number(number) => {
                    let large = number.as_f64().unwrap_or_default() + 7_654_321.5;
                    *number = serde_json::Number::from_f64(large).expect("finite");
                }
                Value::Array(items) => items.iter_mut().for_each(with_secrets),
                Value::Object(members) => members.values_mut().for_each(with_secrets),
                _ => {}
            }
        }
        let mut refused = 0;
        for (group, tests) in official_tests() {
            let Ok(schema) = Schema::compile(&group) else { continue };
            for mut payload in tests.into_iter().map(|test| test.payload) {
                with_secrets(&mut payload);
                let text = payload.to_string();
                if let Err(message) = schema.check(&Tree::parse(text.as_bytes()).expect("valid JSON")) {
                    refused += 1;
                    assert!(!message.contains("s3cr3t") && !message.contains("54321.5"), "{group}, {text}: {message}");
                }
            }
        }
        assert!(refused > 500, "only {refused} were refused");
    }

    #[test]
    fn numbers_are_exact_where_floating_point_is_not() {
        for (keyword, limit, value, is_valid) in [
            ("multipleOf", "0.1", "0.3", true),
            ("multipleOf", "0.0001", "0.0075", true),
            ("multipleOf", "0.0001", "0.00751", false),
            ("multipleOf", "0.5", "1e308", true),
            ("multipleOf", "2", "9007199254740993", false),
            ("multipleOf", "5", "18446744073709551615", true),
            ("multipleOf", "1.5", "-4.5", true),
            ("multipleOf", "1e300", "5", false),
            ("maximum", "9007199254740992", "9007199254740993", false),
            ("maximum", "9007199254740992.0", "9007199254740993", false),
            ("exclusiveMaximum", "1.8446744073709552e19", "18446744073709551615", true),
            ("minimum", "0", "-0.0", true),
            ("const", "1.0", "1", true),
            ("const", "0", "-0.0", true),
            ("const", "9007199254740992.0", "9007199254740993", false),
            ("enum", "[18446744073709551615]", "1.8446744073709552e19", false),
            ("type", "\"integer\"", "1e300", true),
            ("type", "\"integer\"", "1.5", false),
            ("uniqueItems", "true", "[1, 1.0]", false),
            ("uniqueItems", "true", "[0, -0.0]", false),
            ("uniqueItems", "true", "[9007199254740993, 9007199254740992.0]", true),
            ("uniqueItems", "true", "[{\"a\":1,\"b\":2}, {\"b\":2.0,\"a\":1}]", false),
            ("uniqueItems", "true", "[[\"a\",\"b\"], [\"ab\"], [\"a\\\"b\"], {\"a\":\"b\"}, 1e-300, 1e-301]", true),
        ] {
            let schema = format!("{{\"{keyword}\":{limit}}}");
            let schema = Schema::compile(&serde_json::from_str(&schema).expect("JSON")).expect("compiles");
            let found = schema.check(&Tree::parse(value.as_bytes()).expect("JSON"));
            assert_eq!(found.is_ok(), is_valid, "{value} with {keyword} {limit}: {found:?}");
        }
    }

    #[test]
    fn a_mistake_in_a_schema_is_refused_with_its_place() {
        let types = "is not one of \"array\", \"boolean\", \"integer\", \"null\", \"number\", \"object\", \"string\"";
        for (schema, says) in [
            (json!(1), "the whole: 1 is not of type \"boolean\" or \"object\"".to_owned()),
            (
                json!({ "properties": { "a": { "type": "strng" } } }),
                format!("/properties/a/type: \"strng\" matches no schema in \"anyOf\" ({types}; "),
            ),
            (json!({ "allOf": [{ "minLength": -1 }] }), "/allOf/0/minLength: -1 is less than 0".into()),
            (json!({ "items": [{}] }), "/items: is not of type \"boolean\" or \"object\"".into()),
            (json!({ "anyOf": [] }), "/anyOf: has fewer than 1 item".into()),
            (json!({ "pattern": "(" }), "/pattern: \"(\" is no regular expression of JavaScript".into()),
            (
                json!({ "pattern": "(?:(?<=b)(a{1,500}){1,500}){1,500}" }),
                "/pattern: \"(?:(?<=b)(a{1,500}){1,500}){1,500}\" is too large for a pattern; shorten".into(),
            ),
            (
                json!({ "pattern": "((a{1,500}){1,500}){1,500}" }),
                "/pattern: \"((a{1,500}){1,500}){1,500}\" is too large for a pattern; shorten".into(),
            ),
            (json!({ "multipleOf": 0 }), "/multipleOf: 0 is not greater than 0".into()),
            (json!({ "required": "a" }), "/required: \"a\" is not of type \"array\"".into()),
            (
                json!({ "$ref": "other.json" }),
                "$ref: \"other.json\" is not in this file; add that schema under \"$defs\"".into(),
            ),
            (json!({ "$ref": "#/$defs/a" }), "$ref: \"#/$defs/a\" points to nothing in this file".into()),
            (json!({ "$ref": "#a" }), "$ref: \"#a\" points to nothing in this file".into()),
            (json!({ "$defs": { "unused": { "type": 1 } } }), "/$defs/unused/type: 1 matches no schema".into()),
            (json!({ "contains": {}, "minContains": -1 }), "/minContains: -1 is less than 0".into()),
            (
                json!({ "patternProperties": { "(": {} } }),
                "/patternProperties/(: \"(\" is no regular expression without look-around".into(),
            ),
            (
                json!({ "patternProperties": { "^(?!a)": {} } }),
                "/patternProperties/^(?!a): \"^(?!a)\" is no regular expression without look-around".into(),
            ),
            (json!({ "$anchor": "/a" }), "/$anchor: \"/a\" does not match \"^[A-Za-z_]".into()),
            (
                json!({ "$schema": "http://json-schema.org/draft-07/schema#" }),
                "/$schema: \"http://json-schema.org/draft-07/schema#\" is another draft; expected".into(),
            ),
        ] {
            let found = Schema::compile(&schema).expect_err("is refused");
            assert!(found.starts_with(&says), "{schema}: {found}");
        }
    }

    /// Returns a schema for each item of nested arrays, wrapped in `around` more schemas.
    fn nested_schema(around: usize) -> Value {
        let inner = json!({ "items": { "$ref": "#" } });
        (0..around).fold(inner, |inner, _| json!({ "allOf": [inner, { "maxItems": 9 }] }))
    }

    #[test]
    fn a_deep_payload_does_not_overflow_the_stack_of_a_thread() {
        let small = std::thread::Builder::new().stack_size(2 << 20);
        let checks = || {
            let check = |schema: &Value, payload: &str| {
                let schema = Schema::compile(schema).expect("compiles");
                schema.check(&Tree::parse(payload.as_bytes()).expect("as deep as is read"))
            };
            // The JSON parser allows 128 levels.
            let arrays = "[".repeat(127) + &"]".repeat(127);
            let objects = "{\"a\":".repeat(127) + "1" + &"}".repeat(127);
            let open = json!({ "properties": { "a": { "$ref": "#" } }, "unevaluatedProperties": false });
            assert_eq!(check(&open, &objects), Ok(()));
            assert_eq!(check(&nested_schema(0), &arrays), Ok(()));
            assert_eq!(check(&nested_schema(3), &arrays), Ok(()));
            let refused = Err("payload: is nested too deep for its schema".to_owned());
            assert_eq!(check(&nested_schema(50), &arrays), refused);
            // These schemas refer to themselves for the same value.
            for schema in [
                json!({ "$ref": "#" }),
                json!({ "anyOf": [{ "not": { "$ref": "#" } }] }),
                json!({ "$dynamicAnchor": "a", "if": { "$dynamicRef": "#a" } }),
            ] {
                let _ends = check(&schema, &arrays);
            }
        };
        std::thread::scope(|scope| {
            small.spawn_scoped(scope, checks).expect("a thread").join().expect("no overflow");
        });
    }

    #[test]
    fn look_ahead_at_the_start_means_what_it_means_elsewhere() {
        // The outer group has no effect on the match, but prevents the split.
        let patterns = [
            "^(?=a)b|c",
            "^(?!a|b)[a-c]+$",
            "^(?=.*\\d)(?=.*[A-Z])(?!.*[)(]).{3,}$",
            "^(?=a)(?!ab)",
            "^(?=[)|])x*",
            "^(?=(a|\\)|b))\\w+",
            "^(?=(a))\\1+$",
            "^(?!)a",
        ];
        for pattern in patterns {
            let whole = Schema::compile(&json!({ "pattern": format!("(?:{pattern})") })).expect("compiles");
            let split = Schema::compile(&json!({ "pattern": pattern })).expect("compiles");
            for text in ["", "a", "b", "c", "ab", "abc", "cab", "aa", "A1a", "A1(", "1Ab", ")", "|x", "c\nA1b", "ä"] {
                let text = json!(text).to_string();
                let judge = |schema: &Schema| schema.check(&Tree::parse(text.as_bytes()).expect("JSON")).is_ok();
                assert_eq!(judge(&split), judge(&whole), "{pattern} with {text}");
            }
        }
    }

    #[test]
    fn a_payload_that_takes_too_long_is_refused() {
        let many = |item: &str, count: usize| format!("[{}1]", format!("{item},").repeat(count));
        let nested =
            |levels| (0..levels).fold("{\"k\":\"a\"}".to_owned(), |next, _| format!("{{\"next\":{next},\"k\":\"a\"}}"));
        // `oneOf` tries both branches on each level of the payload.
        let either = json!({ "$ref": "#/$defs/n", "$defs": { "n": { "oneOf": [
            { "properties": { "k": { "const": "a" }, "next": { "$ref": "#/$defs/n" } } },
            { "properties": { "k": { "const": "b" }, "next": { "$ref": "#/$defs/n" } } },
        ] } } });
        let backtracking = json!({ "pattern": "^(?:a+(?!b))+c$" });
        let password = json!({ "pattern": "(?=.*\\d)(?=.*[A-Z]).{8,}" });
        let group_names = (0..100_000).map(|name| format!("(?<n{name}>)")).collect::<String>();
        let text = |length: usize| format!("\"{}\"", "a".repeat(length));
        let unique = (0..50_000).map(|index| index.to_string()).collect::<Vec<_>>().join(",");
        let names = (0..50_000).map(|index| format!("\"{index}\":1")).collect::<Vec<_>>().join(",");
        let patterns = (0..200).map(|index| (format!("^{index}x"), json!(false))).collect::<serde_json::Map<_, _>>();
        let ok = "";
        // Either a single pattern or the sum of all work exceeds the budget.
        let too_long = "payload: takes too long to be ";
        for (schema, payload, says) in [
            (backtracking.clone(), text(40), too_long),
            (json!({ "not": backtracking.clone() }), text(40), too_long),
            (json!({ "items": backtracking.clone() }), many(&text(12), 50_000), "/0: does not match"),
            (json!({ "items": { "not": backtracking } }), many(&text(12), 50_000), too_long),
            (password.clone(), text(1 << 20), too_long),
            (json!({ "items": password }), many(&text(100), 500), "/0: does not match"),
            (json!({ "pattern": "(?<=a)b" }), text(70_000), too_long),
            // Nested loops with a look-ahead that scans the text for each character.
            (json!({ "pattern": "^.*?(?=(?:a(?=.*b))*)x" }), text(2000), too_long),
            // Look-ahead at the start costs no more than a pattern without it.
            (json!({ "pattern": "^(?=a*$)(?!.*b)a{8,}$" }), text(4 << 20), ok),
            // The DFA of this pattern would have nearly one state per text.
            (json!({ "pattern": "a[ab]{40}c" }), text(1 << 20), too_long),
            (json!({ "items": { "pattern": "a[ab]{40}c" } }), many(&text(1000), 10), "/0: does not match"),
            (json!({ "pattern": "(a{1,500}){1,20}b" }), text(1 << 16), too_long),
            (json!({ "patternProperties": { "a[ab]{40}c": false } }), format!("{{{}:1}}", text(1 << 20)), too_long),
            (json!({ "items": { "pattern": "^\\p{L}{1,200}$" } }), many("\"Ångström\"", 500).replace(",1]", "]"), ok),
            (json!({ "pattern": "^[A-Za-z0-9+/]*={0,2}$" }), text(8 << 20), ok),
            (json!({ "allOf": vec![json!({ "format": "iri-reference" }); 10] }), text(8 << 20), too_long),
            (json!({ "format": "iri-reference" }), text(8 << 20), ok),
            (json!({ "format": "email" }), text(8 << 20), "payload: is no \"email\""),
            (json!({ "items": { "format": "regex" } }), many(&text(4000), 1000), too_long),
            (json!({ "allOf": vec![json!({ "pattern": "^a*$" }); 200] }), text(1 << 20), too_long),
            (json!({ "format": "regex" }), format!("\"{group_names}\""), "payload: is no \"regex\""),
            (json!({ "patternProperties": patterns }), format!("{{{names}}}"), too_long),
            (either.clone(), nested(10), ok),
            (either, nested(100), ok),
            (json!({ "uniqueItems": true }), format!("[{unique}]"), ok),
            (json!({ "allOf": vec![json!({ "uniqueItems": true }); 50] }), format!("[{unique}]"), too_long),
            (json!({ "items": { "multipleOf": 1e-7 } }), many("1.5e300", 200_000), too_long),
            (json!({ "items": { "multipleOf": 1e-100 } }), many("0.5", 200_000), too_long),
            (json!({ "items": { "multipleOf": 0.5 } }), many("0.5", 50_000), ok),
            // Each failing branch has an error per item.
            (
                json!({ "anyOf": [{ "items": { "type": "string" } }, { "type": "null" }] }),
                many("1", 200_000),
                "payload: matches no schema in \"anyOf\"",
            ),
        ] {
            let compiled = Schema::compile(&schema).expect("compiles");
            let found = compiled.check(&Tree::parse(payload.as_bytes()).expect("valid JSON"));
            let message = found.err().unwrap_or_default();
            assert!(
                message.starts_with(says) && message.is_empty() == says.is_empty(),
                "{:.200}: {message:?}",
                schema.to_string()
            );
        }
    }
}
