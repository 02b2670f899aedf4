//! Error messages for payloads and schemas.
//!
//! Promise: a message for a payload gives the location and what the schema requires there, never a value of the
//! payload.

use jsonschema::error::{TypeKind, ValidationErrorKind as ErrorKind};
use jsonschema::{JsonType, ReferencingError, ValidationError};
use serde_json::Value;

/// Maximum number of characters shown of a member name and of a whole pointer.
const NAME_SHOWN: usize = 64;
const POINTER_SHOWN: usize = 1000;
/// Maximum number of `enum` choices and `anyOf` branches shown.
const CHOICES_SHOWN: usize = 10;
const BRANCHES_SHOWN: usize = 3;

/// Returns the message for an invalid payload.
pub(super) fn of_payload(error: &ValidationError<'_>) -> String {
    let pointer = pointer(error);
    format!("{}: {}", if pointer.is_empty() { "payload" } else { &pointer }, requirement(error))
}

/// Returns the message for an invalid schema. The values of a schema are not secret.
pub(super) fn of_schema(error: &ValidationError<'_>) -> String {
    let pointer = pointer(error);
    let pointer = if pointer.is_empty() { "the whole" } else { &pointer };
    match (error.kind(), error.instance().as_ref()) {
        (ErrorKind::Referencing(error), _) => reference(error),
        (ErrorKind::Format { format }, value) if format == "regex" => {
            format!("{pointer}: {value} is no regular expression without look-around, as required for names")
        }
        (ErrorKind::Custom { message, .. }, _) => format!("{pointer}: {message}"),
        (_, Value::Array(_) | Value::Object(_)) => format!("{pointer}: {}", requirement(error)),
        (_, value) => format!("{pointer}: {value} {}", requirement(error)),
    }
}

/// Returns the message for a `$ref` that cannot be resolved.
fn reference(error: &ReferencingError) -> String {
    match error {
        ReferencingError::Unretrievable { uri, .. } => {
            format!("$ref: \"{uri}\" is not in this file; add that schema under \"$defs\", with its \"$id\"")
        }
        ReferencingError::PointerToNowhere { pointer } => {
            format!("$ref: \"#{pointer}\" points to nothing in this file")
        }
        ReferencingError::NoSuchAnchor { anchor } => format!("$ref: \"#{anchor}\" points to nothing in this file"),
        error => format!("$ref: {error}"),
    }
}

/// JSON pointer to the error. Devices choose member names: long ones are cut, and control characters are replaced.
fn pointer(error: &ValidationError<'_>) -> String {
    let mut pointer = String::new();
    for name in error.instance_path().as_str().split('/').skip(1) {
        push_name(&mut pointer, name);
    }
    let member = match error.kind() {
        ErrorKind::Required { property } => property.as_str(),
        ErrorKind::AdditionalProperties { unexpected } | ErrorKind::UnevaluatedProperties { unexpected } => {
            unexpected.first().map(String::as_str)
        }
        ErrorKind::PropertyNames { error } => match error.instance().as_ref() {
            Value::String(name) => return member_of(pointer, name),
            _ => None,
        },
        _ => None,
    };
    match member {
        Some(name) => member_of(pointer, name),
        None => cut(pointer),
    }
}

fn member_of(mut pointer: String, name: &str) -> String {
    push_name(&mut pointer, &super::super::json::escaped(name));
    cut(pointer)
}

fn push_name(pointer: &mut String, name: &str) {
    pointer.push('/');
    pointer.extend(name.chars().take(NAME_SHOWN).map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }));
    if name.chars().nth(NAME_SHOWN).is_some() {
        pointer.push('…');
    }
}

fn cut(mut pointer: String) -> String {
    if let Some((end, _)) = pointer.char_indices().nth(POINTER_SHOWN) {
        pointer.truncate(end);
        pointer.push('…');
    }
    pointer
}

/// Describes the requirement that the value violates.
fn requirement(error: &ValidationError<'_>) -> String {
    match error.kind() {
        ErrorKind::Type { kind: TypeKind::Single(one) } => format!("is not of type {}", types([*one])),
        ErrorKind::Type { kind: TypeKind::Multiple(some) } => format!("is not of type {}", types(some.iter())),
        ErrorKind::Enum { options } => format!("is not one of {}", choices(options)),
        ErrorKind::Constant { expected_value } => format!("is not {expected_value}"),
        ErrorKind::Maximum { limit } => format!("is greater than {limit}"),
        ErrorKind::ExclusiveMaximum { limit } => format!("is not less than {limit}"),
        ErrorKind::Minimum { limit } => format!("is less than {limit}"),
        ErrorKind::ExclusiveMinimum { limit } => format!("is not greater than {limit}"),
        ErrorKind::MultipleOf { multiple_of } => format!("is no multiple of {multiple_of}"),
        ErrorKind::MaxLength { limit } => format!("is longer than {}", counted(*limit, "character")),
        ErrorKind::MinLength { limit } => format!("is shorter than {}", counted(*limit, "character")),
        ErrorKind::MaxItems { limit } => format!("has more than {}", counted(*limit, "item")),
        ErrorKind::MinItems { limit } => format!("has fewer than {}", counted(*limit, "item")),
        ErrorKind::AdditionalItems { limit } => format!("has more than {}", counted(*limit as u64, "item")),
        ErrorKind::MaxProperties { limit } => format!("has more than {}", counted(*limit, "member")),
        ErrorKind::MinProperties { limit } => format!("has fewer than {}", counted(*limit, "member")),
        ErrorKind::UniqueItems => "has equal items".into(),
        ErrorKind::Contains if error.schema_path().as_str().ends_with("maxContains") => {
            "has more items of the kind in \"contains\" than \"maxContains\" allows".into()
        }
        ErrorKind::Contains if error.schema_path().as_str().ends_with("minContains") => {
            "has fewer items of the kind in \"contains\" than \"minContains\" requires".into()
        }
        ErrorKind::Contains => "has no item of the kind in \"contains\"".into(),
        ErrorKind::UnevaluatedItems { .. } => "has more items than the schema allows".into(),
        ErrorKind::Required { .. } if error.schema_path().as_str().ends_with("/dependentRequired") => {
            "is missing, but required by a member that is present (\"dependentRequired\")".into()
        }
        ErrorKind::Required { .. } => "is missing".into(),
        ErrorKind::FalseSchema | ErrorKind::AdditionalProperties { .. } | ErrorKind::UnevaluatedProperties { .. } => {
            "is not allowed".into()
        }
        ErrorKind::PropertyNames { error } => format!("the name {}", requirement(error)),
        ErrorKind::Format { format } => format!("is no \"{format}\""),
        ErrorKind::Pattern { pattern } => format!("does not match \"{pattern}\""),
        ErrorKind::AnyOf { context } => format!("matches no schema in \"anyOf\"{}", branches(context)),
        ErrorKind::OneOfNotValid { context } => format!("matches no schema in \"oneOf\"{}", branches(context)),
        ErrorKind::OneOfMultipleValid { .. } => "matches more than one schema in \"oneOf\"".into(),
        ErrorKind::Not { .. } => "matches the schema in \"not\"".into(),
        ErrorKind::Custom { message, .. } => message.clone(),
        // Errors of annotation-only keywords and of schemas that do not compile.
        kind => format!("does not satisfy \"{}\"", kind.keyword()),
    }
}

/// Describes the requirements of the first branches.
fn branches(context: &[Vec<ValidationError<'_>>]) -> String {
    let shown: Vec<_> =
        context.iter().filter_map(|branch| branch.first()).take(BRANCHES_SHOWN).map(requirement).collect();
    let more = if context.len() > shown.len() { "; …" } else { "" };
    if shown.is_empty() { String::new() } else { format!(" ({}{more})", shown.join("; ")) }
}

fn types(types: impl IntoIterator<Item = JsonType>) -> String {
    types.into_iter().map(|one| format!("\"{one}\"")).collect::<Vec<_>>().join(" or ")
}

/// `1 item`, `2 items`.
fn counted(number: u64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

fn choices(options: &Value) -> String {
    let list = options.as_array().map_or(&[][..], Vec::as_slice);
    let shown: Vec<_> = list.iter().take(CHOICES_SHOWN).map(Value::to_string).collect();
    match list.len().saturating_sub(CHOICES_SHOWN) {
        0 => shown.join(", "),
        more => format!("{} or {more} more", shown.join(", ")),
    }
}
