//! Changes of a JSON text at a pointer.
//!
//! Promise: everything but the changed value stays byte for byte: numbers, the order of members, white space.

use super::bad_json::BadJson;
use super::json::{Pointer, Tree, push_json_string};
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

/// Why a text cannot be changed at a pointer.
#[derive(Debug, thiserror::Error)]
pub enum CannotChange {
    #[error(transparent)]
    Text(#[from] BadJson),
    #[error("\"{0}\" does not exist in the payload")]
    Missing(String),
    #[error("\"{0}\" names no existing item")]
    NoItem(String),
}

/// Replaces the value at a pointer, or adds a member to an object. `value` is JSON.
pub fn with_change(text: &str, pointer: &Pointer, value: &str) -> Result<String, CannotChange> {
    Tree::parse(text.as_bytes())?;
    let missing = || CannotChange::Missing(pointer.to_string());
    let (name, path) = pointer.steps().split_last().ok_or_else(missing)?;
    let mut place = text.trim_ascii();
    for step in path {
        place = child(place, step).ok_or_else(missing)?;
    }
    let replaced = |range: Range<usize>, with: &str| format!("{}{with}{}", &text[..range.start], &text[range.end..]);
    let range = |part: &str| {
        let start = part.as_ptr().addr() - text.as_ptr().addr();
        start..start + part.len()
    };
    match (place.as_bytes().first(), child(place, name)) {
        (_, Some(old)) => Ok(replaced(range(old), value)),
        (Some(b'['), None) => Err(CannotChange::NoItem(pointer.to_string())),
        (Some(b'{'), None) => {
            let is_empty = place[1..place.len() - 1].trim_ascii().is_empty();
            let mut added = Vec::new();
            push_json_string(&mut added, name);
            let added = format!("{}{}:{value}", if is_empty { "" } else { "," }, String::from_utf8_lossy(&added));
            let end = range(place).end - 1;
            Ok(replaced(end..end, &added))
        }
        _ => Err(missing()),
    }
}

/// The text of a member or item of a value; of repeated members the last one.
fn child<'t>(text: &'t str, step: &str) -> Option<&'t str> {
    match text.as_bytes().first()? {
        b'{' => {
            let mut reader = serde_json::Deserializer::from_str(text);
            let members = reader.deserialize_map(Members).ok()?;
            members.into_iter().rev().find(|(name, _)| name == step).map(|(_, value)| value.get())
        }
        b'[' => {
            let items: Vec<&RawValue> = serde_json::from_str(text).ok()?;
            items.get(step.parse::<usize>().ok()?).map(|item| item.get())
        }
        _ => None,
    }
}

/// Reads an object as names and texts of values.
struct Members;

impl<'de> Visitor<'de> for Members {
    type Value = Vec<(Cow<'de, str>, &'de RawValue)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            members.push((Cow::Owned(name), map.next_value()?));
        }
        Ok(members)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(text: &str, pointer: &str, value: &str) -> Result<String, String> {
        let pointer = Pointer::parse(pointer).expect("a pointer");
        with_change(text, &pointer, value).map_err(|error| error.to_string())
    }

    #[test]
    fn a_change_leaves_everything_else_as_it_is() {
        let text = "{ \"z\": 89490200001234567890, \"a\" : [1.10, {\"b/c\": 1E5}],\n \"n\": {} , \"a\" : [2.50,3]}";
        let with = |pointer, value| change(text, pointer, value).expect("changed");
        assert_eq!(with("/z", "1"), text.replace("89490200001234567890", "1"));
        assert_eq!(with("/a/1", "\"x\""), text.replace("2.50,3", "2.50,\"x\""), "the last of two members");
        assert_eq!(with("/n/new", "5"), text.replace("{}", "{\"new\":5}"));
        assert_eq!(with("/k~1l", "null"), text.replace("3]}", "3],\"k/l\":null}"));
        assert_eq!(change(" {\"a\":{\"b\":-0.0}} ", "/a/b", "7").as_deref(), Ok(" {\"a\":{\"b\":7}} "));
        assert_eq!(change("[1]", "/3", "7"), Err("\"/3\" names no existing item".into()));
        assert_eq!(change("{\"a\":5}", "/a/b", "7"), Err("\"/a/b\" does not exist in the payload".into()));
        assert!(change("{\"a\":5", "/a", "7").is_err_and(|error| error.contains("ends too early")));
    }
}
