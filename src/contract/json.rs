//! Zero-copy JSON tree: strings borrow from the payload, objects are short lists.
//!
//! `serde_json` parses, [`super::schema`] validates; this type is the interface between them. Compared with
//! `serde_json::Value` it saves an allocation for each key and string of every event.
//!
//! Invariant: a number is written as it was read, with all its digits.

use super::bad_json::BadJson;
use super::number::{JsonNumber, NumberTexts};
use serde::de::{Deserialize, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

/// A JSON value that borrows from its text.
#[derive(Clone, Debug, PartialEq)]
pub enum Tree<'a> {
    Null,
    Bool(bool),
    Number(JsonNumber<'a>),
    /// A string; owned only if it contains an escape.
    Text(Cow<'a, str>),
    Array(Vec<Tree<'a>>),
    /// An object, in the order of the text. Names are unique: of repeated names the last one counts.
    Object(Vec<(Cow<'a, str>, Tree<'a>)>),
}

impl<'a> Tree<'a> {
    /// Parses a complete JSON text. The error says where it is wrong, and contains none of its values.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BadJson> {
        let numbers = NumberTexts::new(bytes);
        let mut reader = serde_json::Deserializer::from_slice(bytes);
        let parsed = TreeSeed(&numbers).deserialize(&mut reader).and_then(|tree| reader.end().map(|()| tree));
        parsed.map_err(|error| BadJson::new(bytes, &error))
    }

    /// Returns the member of an object.
    pub fn member(&self, name: &str) -> Option<&Tree<'a>> {
        match self {
            Self::Object(members) => members.iter().find(|(key, _)| key == name).map(|(_, value)| value),
            _ => None,
        }
    }

    /// Returns the value at a pointer.
    pub fn at(&self, pointer: &Pointer) -> Option<&Tree<'a>> {
        pointer.0.iter().try_fold(self, |value, step| match value {
            Self::Array(items) => items.get(step.parse::<usize>().ok()?),
            _ => value.member(step),
        })
    }

    /// Returns a copy that contains only the values at the pointers.
    pub fn keep(&self, pointers: &[Pointer]) -> Tree<'a> {
        let mut kept = Tree::Object(Vec::new());
        for pointer in pointers {
            if let Some(value) = self.at(pointer) {
                kept.insert(&pointer.0, value.clone());
            }
        }
        kept
    }

    fn insert(&mut self, steps: &[String], value: Tree<'a>) {
        let Some((first, rest)) = steps.split_first() else {
            *self = value;
            return;
        };
        if !matches!(self, Self::Object(_)) {
            *self = Self::Object(Vec::new());
        }
        if let Self::Object(members) = self {
            let index = members.iter().position(|(key, _)| key == first).unwrap_or_else(|| {
                members.push((Cow::Owned(first.clone()), Tree::Object(Vec::new())));
                members.len() - 1
            });
            members[index].1.insert(rest, value);
        }
    }

    /// Replaces the value at a pointer, if there is one.
    pub fn replace(&mut self, pointer: &Pointer, with: impl FnOnce(&Tree<'a>) -> Tree<'a>) {
        let mut value = self;
        for step in &pointer.0 {
            let next = match value {
                Self::Array(items) => step.parse::<usize>().ok().and_then(|index| items.get_mut(index)),
                Self::Object(members) => members.iter_mut().find(|(key, _)| key == step).map(|(_, value)| value),
                _ => None,
            };
            match next {
                Some(next) => value = next,
                None => return,
            }
        }
        *value = with(value);
    }

    /// Returns a string, number or Boolean as text, for keys and ids.
    pub fn scalar(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Text(text) => Some(Cow::Borrowed(text)),
            Self::Number(number) => Some(number.text()),
            Self::Bool(true) => Some(Cow::Borrowed("true")),
            Self::Bool(false) => Some(Cow::Borrowed("false")),
            _ => None,
        }
    }

    /// Appends the value as JSON text.
    pub fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Null => out.extend_from_slice(b"null"),
            Self::Bool(true) => out.extend_from_slice(b"true"),
            Self::Bool(false) => out.extend_from_slice(b"false"),
            Self::Number(number) => out.extend_from_slice(number.text().as_bytes()),
            Self::Text(text) => push_json_string(out, text),
            Self::Array(items) => {
                out.push(b'[');
                for (index, item) in items.iter().enumerate() {
                    if index > 0 {
                        out.push(b',');
                    }
                    item.write(out);
                }
                out.push(b']');
            }
            Self::Object(members) => {
                out.push(b'{');
                for (index, (name, value)) in members.iter().enumerate() {
                    if index > 0 {
                        out.push(b',');
                    }
                    push_json_string(out, name);
                    out.push(b':');
                    value.write(out);
                }
                out.push(b'}');
            }
        }
    }
}

/// Returns a JSON text on one line, with its numbers as they are written; `None` if it is no JSON.
pub fn on_one_line(text: &[u8]) -> Option<Box<serde_json::value::RawValue>> {
    let mut out = Vec::with_capacity(text.len());
    Tree::parse(text).ok()?.write(&mut out);
    serde_json::value::RawValue::from_string(String::from_utf8(out).ok()?).ok()
}

/// Appends `text` as a JSON string, quotes included.
pub fn push_json_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    let mut clean_from = 0;
    for (index, byte) in text.bytes().enumerate() {
        if byte >= 0x20 && byte != b'"' && byte != b'\\' {
            continue;
        }
        out.extend_from_slice(&text.as_bytes()[clean_from..index]);
        clean_from = index + 1;
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            _ => out.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
        }
    }
    out.extend_from_slice(&text.as_bytes()[clean_from..]);
    out.push(b'"');
}

/// Escapes a member name for a JSON pointer.
pub(super) fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

/// Returns the member name of a JSON pointer step.
pub(super) fn unescaped(step: &str) -> String {
    step.replace("~1", "/").replace("~0", "~")
}

/// A JSON pointer (RFC 6901) such as `/order/number`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pointer(Vec<String>);

impl Pointer {
    /// Parses a pointer. Rejects the empty text, which points to the whole document.
    pub fn parse(text: &str) -> Result<Self, String> {
        let Some(path) = text.strip_prefix('/') else {
            return Err(format!("\"{text}\" is no JSON pointer; expected one such as \"/order/number\""));
        };
        Ok(Self(path.split('/').map(unescaped).collect()))
    }

    /// The member names and indexes on the way, unescaped.
    pub(super) fn steps(&self) -> &[String] {
        &self.0
    }

    /// Whether one pointer is equal to the other or a prefix of it.
    pub fn meets(&self, other: &Self) -> bool {
        self.0.iter().zip(&other.0).all(|(a, b)| a == b)
    }
}

impl fmt::Display for Pointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|step| write!(f, "/{}", escaped(step)))
    }
}

/// Reads a value of a text whose numbers are found in turn.
#[derive(Clone, Copy)]
struct TreeSeed<'s, 'a>(&'s NumberTexts<'a>);

impl<'de> DeserializeSeed<'de> for TreeSeed<'_, 'de> {
    type Value = Tree<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Tree<'de>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for TreeSeed<'_, 'de> {
    type Value = Tree<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }
    fn visit_unit<E>(self) -> Result<Tree<'de>, E> {
        Ok(Tree::Null)
    }
    fn visit_bool<E>(self, value: bool) -> Result<Tree<'de>, E> {
        Ok(Tree::Bool(value))
    }
    fn visit_i64<E>(self, value: i64) -> Result<Tree<'de>, E> {
        Ok(Tree::Number(value.into()))
    }
    fn visit_u64<E>(self, value: u64) -> Result<Tree<'de>, E> {
        Ok(Tree::Number(value.into()))
    }
    fn visit_f64<E>(self, value: f64) -> Result<Tree<'de>, E> {
        Ok(Tree::Number(JsonNumber::of_text(value, self.0.next_inexact())))
    }
    fn visit_str<E>(self, value: &str) -> Result<Tree<'de>, E> {
        Ok(Tree::Text(Cow::Owned(value.to_owned())))
    }
    fn visit_borrowed_str<E>(self, value: &'de str) -> Result<Tree<'de>, E> {
        Ok(Tree::Text(Cow::Borrowed(value)))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Tree<'de>, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(self)? {
            items.push(item);
        }
        Ok(Tree::Array(items))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tree<'de>, A::Error> {
        let mut members = Vec::new();
        while let Some(Name(name)) = map.next_key()? {
            if members.is_empty() {
                members.reserve(8);
            }
            members.push((name, map.next_value_seed(self)?));
        }
        keep_last_of_each_name(&mut members);
        Ok(Tree::Object(members))
    }
}

/// Removes members whose name occurs again later. Their values would bypass the schema and `mask`.
fn keep_last_of_each_name(members: &mut Vec<(Cow<'_, str>, Tree<'_>)>) {
    // Up to this number of names, comparing all pairs is faster than hashing.
    const COMPARED_MAX: usize = 16;
    let mut is_last = Vec::new();
    if members.len() > COMPARED_MAX {
        let mut known = HashSet::with_capacity(members.len());
        is_last.extend(members.iter().rev().map(|(name, _)| known.insert(name.as_ref())));
        is_last.reverse();
    } else {
        let comes_again = |index: usize| members[index + 1..].iter().any(|(name, _)| *name == members[index].0);
        if !(0..members.len()).any(comes_again) {
            return;
        }
        is_last.extend((0..members.len()).map(|index| !comes_again(index)));
    }
    let mut is_last = is_last.into_iter();
    members.retain(|_| is_last.next().unwrap_or(true));
}

struct Name<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Name<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Name<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name")
            }
            fn visit_str<E>(self, value: &str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Owned(value.to_owned())))
            }
            fn visit_borrowed_str<E>(self, value: &'de str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Borrowed(value)))
            }
        }
        deserializer.deserialize_str(Reader)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tree(text: &str) -> Tree<'_> {
        Tree::parse(text.as_bytes()).expect("valid JSON")
    }

    proptest! {
        #[test]
        fn any_string_survives_being_written(text in ".*") {
            let mut out = Vec::new();
            push_json_string(&mut out, &text);
            prop_assert_eq!(serde_json::from_slice::<String>(&out).ok(), Some(text));
        }

        #[test]
        fn any_bytes_are_refused_or_read(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = Tree::parse(&bytes);
        }
    }

    #[test]
    fn pointers_lead_where_rfc_6901_says() {
        let document = tree(r#"{"a":{"b":[1,{"c/d":"x"}]},"~":2}"#);
        let at = |pointer: &str| {
            Pointer::parse(pointer).ok().and_then(|p| document.at(&p)?.scalar().map(|s| s.into_owned()))
        };
        assert_eq!(at("/a/b/0").as_deref(), Some("1"));
        assert_eq!(at("/a/b/1/c~1d").as_deref(), Some("x"));
        assert_eq!(at("/~0").as_deref(), Some("2"));
        assert_eq!(at("/a/x"), None);
        assert!(Pointer::parse("a").is_err());
    }

    #[test]
    fn what_is_not_kept_is_gone_and_what_is_masked_is_replaced() {
        let pointers: Vec<_> = ["/a/b", "/t", "/missing"].iter().filter_map(|p| Pointer::parse(p).ok()).collect();
        let mut kept = tree(r#"{"a":{"b":1,"secret":2},"t":"x","u":3}"#).keep(&pointers);
        kept.replace(&pointers[1], |_| Tree::Text("***".into()));
        let mut out = Vec::new();
        kept.write(&mut out);
        assert_eq!(String::from_utf8_lossy(&out), r#"{"a":{"b":1},"t":"***"}"#);
    }

    #[test]
    fn of_repeated_names_only_the_last_value_remains() {
        let many = (0..100).map(|index| format!("\"a{}\":{index}", index % 50)).collect::<Vec<_>>().join(",");
        for (text, kept) in [
            (r#"{"a":1,"b":2,"a":3}"#.to_owned(), r#"{"b":2,"a":3}"#.to_owned()),
            (r#"{"a":1,"\u0061":2}"#.into(), r#"{"a":2}"#.into()),
            (r#"{"a":{"x":1,"x":2},"a":{"y":1,"y":3}}"#.into(), r#"{"a":{"y":3}}"#.into()),
            (format!("{{{many}}}"), format!("{{{}}}", many.split_at(many.find("\"a0\":50").expect("is there")).1)),
        ] {
            let mut out = Vec::new();
            tree(&text).write(&mut out);
            assert_eq!(String::from_utf8_lossy(&out), kept);
        }
        let pointer = Pointer::parse("/secret").expect("a pointer");
        let mut masked = tree(r#"{"secret":"x","secret":"y"}"#);
        masked.replace(&pointer, |_| Tree::Text("***".into()));
        let mut out = Vec::new();
        masked.write(&mut out);
        assert_eq!(String::from_utf8_lossy(&out), r#"{"secret":"***"}"#);
    }

    #[test]
    fn deep_nesting_is_refused_rather_than_followed() {
        let deep = "[".repeat(100_000);
        assert!(Tree::parse(deep.as_bytes()).is_err());
    }
}
