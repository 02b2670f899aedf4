//! Deserializes parsed TOML, and explains a value that does not match its type.

use super::hints;
use serde::de::DeserializeOwned;
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

/// A value that does not match its type.
pub(super) struct Mismatch {
    /// Key of the value; empty for the whole file.
    pub(super) key: String,
    /// Byte range of the value in the text.
    pub(super) span: Option<Range<usize>>,
    /// The value and what is allowed.
    pub(super) message: String,
}

impl Mismatch {
    pub(super) fn new(key: String, error: &toml::de::Error) -> Self {
        Self { key, span: error.span(), message: error.message().to_owned() }
    }

    /// Explains `[[part]]` in place of `[part]`: toml maps the list items to the fields of the part, and refuses the first.
    fn explain_list(self, text: &str) -> Self {
        let is_item = self.span.as_ref().and_then(|span| text.get(span.start..)).is_some_and(|at| at.starts_with("[["));
        match self.key.rsplit_once('[') {
            Some((list, _)) if is_item && self.message.starts_with("invalid type: map") => {
                let message = format!("[[{list}]] begins an item of a list; expected [{list}], or a value");
                Self { key: list.to_owned(), message, ..self }
            }
            _ => self,
        }
    }

    /// Names the key or table that is there twice, and the line of the first one.
    pub(super) fn explain_repeat(self, text: &str) -> Self {
        let Some(start) = self.span.as_ref().map(|span| span.start).filter(|_| self.message == "duplicate key") else {
            return self;
        };
        let (before, after) = text.split_at_checked(start).unwrap_or((text, ""));
        let line = before.rsplit('\n').next().unwrap_or_default().to_owned() + after.lines().next().unwrap_or_default();
        let line = line.trim();
        let header = |line: &str| {
            let name = line.trim().strip_prefix('[')?.split(']').next()?.trim_start_matches('[');
            Some(name.split('.').map(str::trim).collect::<Vec<_>>().join("."))
        };
        let Some(name) = header(line) else {
            let key = line.split('=').next().unwrap_or_default().trim();
            return Self { message: format!("`{key}` is there twice in its table; remove one of them"), ..self };
        };
        let earlier = (1..).zip(before.lines()).filter(|(_, line)| header(line).as_ref() == Some(&name));
        let message = match earlier.last() {
            Some((first, opened)) if opened.trim().starts_with("[[") => {
                format!("[{name}] repeats [[{name}]] of line {first}; another item of the list begins with [[{name}]]")
            }
            Some((first, _)) => format!(
                "[{name}] is there already, in line {first}; move its settings there, or write [[{name}]] in both places if it is a list"
            ),
            None => format!("[{name}] is there twice; remove one of them"),
        };
        Self { message, ..self }
    }
}

/// Deserializes the parsed `text` into a `T`.
pub(super) fn deserialize<T: DeserializeOwned>(root: &Spanned<DeTable<'_>>, text: &str) -> Result<T, Mismatch> {
    let read = |root: &Spanned<DeTable<'_>>| {
        T::deserialize(toml::Deserializer::from(root.clone()))
            .map_err(|error| Mismatch::new(key_of(root, &error), &error))
    };
    if let Some(mismatch) = root.get_ref().iter().find_map(|(key, value)| find_unusable(key.get_ref(), value, text)) {
        return Err(mismatch);
    }
    read(root).map_err(|mismatch| {
        if !mismatch.message.starts_with("wanted ") {
            return mismatch.explain_list(text);
        }
        // The setting is an enum, and the value is no string. toml lists the allowed names only for an unknown name, so
        // the value is read again as a string.
        let mut named = root.clone();
        match find(named.get_mut(), &mismatch.key) {
            Some(value) => *value.get_mut() = DeValue::String(text.get(value.span()).unwrap_or_default().into()),
            None => return mismatch,
        }
        read(&named).err().unwrap_or(mismatch)
    })
}

/// Returns the first value that no setting can have. toml reports a date as a map, and omits a number
/// that is out of range.
fn find_unusable(key: &str, value: &Spanned<DeValue<'_>>, text: &str) -> Option<Mismatch> {
    let is_wide = |number: &toml::de::DeFloat<'_>| {
        let parsed: Result<f64, _> = number.as_str().parse();
        parsed.is_ok_and(f64::is_infinite) && !number.as_str().contains("inf")
    };
    let reason = match value.get_ref() {
        DeValue::Table(table) => {
            return table
                .iter()
                .find_map(|(name, value)| find_unusable(&format!("{key}.{}", name.get_ref()), value, text));
        }
        DeValue::Array(items) => {
            return (0..).zip(items.iter()).find_map(|(at, value)| find_unusable(&format!("{key}[{at}]"), value, text));
        }
        DeValue::Datetime(_) => "is a date or time, and no setting is one; put it in quotes if it is a text",
        DeValue::Integer(number) if i128::from_str_radix(number.as_str(), number.radix()).is_err() => {
            "is out of range; an integer has at most 64 bits"
        }
        DeValue::Float(number) if is_wide(number) => "is out of range; a number has at most 64 bits",
        _ => return None,
    };
    let written = text.get(value.span()).unwrap_or_default();
    Some(Mismatch { key: key.to_owned(), span: Some(value.span()), message: format!("`{written}` {reason}") })
}

/// Returns the key of the value with the error's span; empty for the whole file.
fn key_of(root: &Spanned<DeTable<'_>>, error: &toml::de::Error) -> String {
    match error.span() {
        Some(span) if span != root.span() => {
            let is_of_list = LIST_ERRORS.iter().any(|start| error.message().starts_with(start));
            root.get_ref().iter().find_map(|(key, value)| key_at(key, value, &span, is_of_list)).unwrap_or_default()
        }
        _ => String::new(),
    }
}

/// How toml's messages about a list begin. A list that `[[part]]` begins has the span of its first item.
const LIST_ERRORS: [&str; 3] = ["invalid type: sequence", "invalid length", "wanted "];

/// Returns the key with this span, in or at `key`: an item before its list, unless the error is of the list.
fn key_at(
    key: &Spanned<DeString<'_>>,
    value: &Spanned<DeValue<'_>>,
    span: &Range<usize>,
    is_of_list: bool,
) -> Option<String> {
    let name = key.get_ref();
    if key.span() == *span {
        return Some(name.to_string());
    }
    let inner = place_in(value, span, is_of_list)?;
    Some(format!("{name}{inner}"))
}

/// Returns the place with this span, relative to the value; empty for the value itself.
fn place_in(value: &Spanned<DeValue<'_>>, span: &Range<usize>, is_of_list: bool) -> Option<String> {
    let is_here = value.span() == *span;
    match value.get_ref() {
        DeValue::Array(items) if !(is_here && is_of_list) => (0..)
            .zip(items.iter())
            .find_map(|(at, item)| Some(format!("[{at}]{}", place_in(item, span, is_of_list)?)))
            .or_else(|| is_here.then(String::new)),
        DeValue::Table(table) if !is_here => {
            table.iter().find_map(|(key, value)| Some(format!(".{}", key_at(key, value, span, is_of_list)?)))
        }
        _ => is_here.then(String::new),
    }
}

/// Returns the value of a key.
fn find<'t, 'a>(root: &'t mut DeTable<'a>, key: &str) -> Option<&'t mut Spanned<DeValue<'a>>> {
    let mut steps = key.split(['.', '[', ']']).filter(|step| !step.is_empty());
    let first = root.get_mut(steps.next()?)?;
    steps.try_fold(first, |value, step| match value.get_mut() {
        DeValue::Table(inside) => inside.get_mut(step),
        DeValue::Array(items) => items.get_mut(step.parse::<usize>().ok()?),
        _ => None,
    })
}

/// Removes a value from its table; returns `false` if it does not exist.
pub(super) fn remove(root: &mut DeTable<'_>, key: &str) -> bool {
    let Some((around, last)) = key.rsplit_once('.') else { return root.remove(key).is_some() };
    match find(root, around).map(Spanned::get_mut) {
        Some(DeValue::Table(table)) => table.remove(last).is_some(),
        _ => false,
    }
}

/// Fills in the example of a missing setting, so that what else is wrong shows as well. Returns `false` if nothing is
/// missing, or its example is no text.
pub(super) fn fill(root: &mut DeTable<'_>, (around, message): &(String, String), filled: &mut Vec<String>) -> bool {
    let missing = message.strip_prefix("missing field `").and_then(|rest| rest.split('`').next());
    let Some((name, example)) = missing.and_then(|name| Some((name, hints::example(name)?))) else { return false };
    let Some(text) = example.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) else { return false };
    let key = if around.is_empty() { name.to_owned() } else { format!("{around}.{name}") };
    let table = match around.is_empty() {
        true => root,
        false => match find(root, around).map(Spanned::get_mut) {
            Some(DeValue::Table(table)) => table,
            _ => return false,
        },
    };
    // A span of its own, beyond the text, by which an error in it is found.
    let span = usize::MAX - filled.len()..usize::MAX;
    let value = Spanned::new(span.clone(), DeValue::String(text.to_owned().into()));
    table.insert(Spanned::new(span, name.to_owned().into()), value);
    filled.push(key);
    true
}
