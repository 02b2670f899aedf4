//! Explains a value that does not match its type.

use super::hints;
use super::reader::{Mismatch, read};
use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

impl Mismatch {
    /// Describes a file that is not TOML.
    pub(super) fn of_syntax(error: &toml::de::Error) -> Self {
        Self { key: String::new(), span: error.span(), message: error.message().to_owned() }
    }

    /// Explains `[[part]]` in place of `[part]`.
    fn explain_list(self, text: &str) -> Self {
        let is_headed =
            self.span.as_ref().and_then(|span| text.get(span.start..)).is_some_and(|at| at.starts_with("[["));
        if !is_headed || !self.message.starts_with("invalid type: sequence, expected struct") {
            return self;
        }
        let message = format!("[[{0}]] begins an item of a list; expected [{0}], or a value", self.key);
        Self { message, ..self }
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
    if let Some(mismatch) = root.get_ref().iter().find_map(|(key, value)| find_unusable(key.get_ref(), value, text)) {
        return Err(mismatch);
    }
    read(root, text).map_err(|mismatch| mismatch.explain_list(text))
}

/// Returns the first value that no setting can have: a date, or a number that is out of range.
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

/// Returns the value of a key.
pub(super) fn find<'t, 'a>(root: &'t mut DeTable<'a>, key: &str) -> Option<&'t mut Spanned<DeValue<'a>>> {
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
    let value = Spanned::new(0..0, DeValue::String(text.to_owned().into()));
    table.insert(Spanned::new(0..0, name.to_owned().into()), value);
    filled.push(key);
    true
}
