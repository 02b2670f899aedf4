//! What is wrong with a payload or a schema, in words.
//!
//! Promise: a message of a payload names the place and what the schema wants there, never a value of the payload.

use jsonschema::error::{TypeKind, ValidationErrorKind as Kind};
use jsonschema::{JsonType, ReferencingError, ValidationError};
use serde_json::Value;

/// How much of the name of a member, and of a whole place, a message shows.
const NAME_SHOWN: usize = 64;
const PLACE_SHOWN: usize = 1000;
/// How many choices of an `enum`, and how many branches of an `anyOf`, a message shows.
const CHOICES_SHOWN: usize = 10;
const BRANCHES_SHOWN: usize = 3;

/// The message for a payload.
pub(super) fn of_payload(error: &ValidationError<'_>) -> String {
    let place = place(error);
    format!("{}: {}", if place.is_empty() { "payload" } else { &place }, wanted(error))
}

/// The message for a schema. Its values are no secret.
pub(super) fn of_schema(error: &ValidationError<'_>) -> String {
    let place = place(error);
    let place = if place.is_empty() { "the whole" } else { &place };
    match (error.kind(), error.instance().as_ref()) {
        (Kind::Referencing(error), _) => reference(error),
        (Kind::Format { format }, value) if format == "regex" => {
            format!("{place}: {value} is no regular expression without look-around; names are matched with no other")
        }
        (Kind::Custom { message, .. }, _) => format!("{place}: {message}"),
        (_, Value::Array(_) | Value::Object(_)) => format!("{place}: {}", wanted(error)),
        (_, value) => format!("{place}: {value} {}", wanted(error)),
    }
}

/// What is wrong with a reference of a schema.
fn reference(error: &ReferencingError) -> String {
    match error {
        ReferencingError::Unretrievable { uri, .. } => {
            format!("$ref: \"{uri}\" is not in this file; put what it means under \"$defs\", with its \"$id\"")
        }
        ReferencingError::PointerToNowhere { pointer } => format!("$ref: \"#{pointer}\" leads nowhere in this file"),
        ReferencingError::NoSuchAnchor { anchor } => format!("$ref: \"#{anchor}\" leads nowhere in this file"),
        error => format!("$ref: {error}"),
    }
}

/// The JSON pointer to what is wrong. Devices choose the names of members: long ones are cut, and control characters
/// are replaced.
fn place(error: &ValidationError<'_>) -> String {
    let mut place = String::new();
    for name in error.instance_path().as_str().split('/').skip(1) {
        push_name(&mut place, name);
    }
    let member = match error.kind() {
        Kind::Required { property } => property.as_str(),
        Kind::AdditionalProperties { unexpected } | Kind::UnevaluatedProperties { unexpected } => {
            unexpected.first().map(String::as_str)
        }
        Kind::PropertyNames { error } => match error.instance().as_ref() {
            Value::String(name) => return member_of(place, name),
            _ => None,
        },
        _ => None,
    };
    match member {
        Some(name) => member_of(place, name),
        None => cut(place),
    }
}

fn member_of(mut place: String, name: &str) -> String {
    push_name(&mut place, &super::super::json::escaped(name));
    cut(place)
}

fn push_name(place: &mut String, name: &str) {
    place.push('/');
    place.extend(name.chars().take(NAME_SHOWN).map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }));
    if name.chars().nth(NAME_SHOWN).is_some() {
        place.push('…');
    }
}

fn cut(mut place: String) -> String {
    if let Some((end, _)) = place.char_indices().nth(PLACE_SHOWN) {
        place.truncate(end);
        place.push('…');
    }
    place
}

/// What the schema wants of the value.
fn wanted(error: &ValidationError<'_>) -> String {
    match error.kind() {
        Kind::Type { kind: TypeKind::Single(one) } => format!("is not of type {}", types([*one])),
        Kind::Type { kind: TypeKind::Multiple(some) } => format!("is not of type {}", types(some.iter())),
        Kind::Enum { options } => format!("is not one of {}", choices(options)),
        Kind::Constant { expected_value } => format!("is not {expected_value}"),
        Kind::Maximum { limit } => format!("is greater than {limit}"),
        Kind::ExclusiveMaximum { limit } => format!("is not less than {limit}"),
        Kind::Minimum { limit } => format!("is less than {limit}"),
        Kind::ExclusiveMinimum { limit } => format!("is not greater than {limit}"),
        Kind::MultipleOf { multiple_of } => format!("is no multiple of {multiple_of}"),
        Kind::MaxLength { limit } => format!("is longer than {}", counted(*limit, "character")),
        Kind::MinLength { limit } => format!("is shorter than {}", counted(*limit, "character")),
        Kind::MaxItems { limit } => format!("has more than {}", counted(*limit, "item")),
        Kind::MinItems { limit } => format!("has less than {}", counted(*limit, "item")),
        Kind::AdditionalItems { limit } => format!("has more than {}", counted(*limit as u64, "item")),
        Kind::MaxProperties { limit } => format!("has more than {}", counted(*limit, "member")),
        Kind::MinProperties { limit } => format!("has less than {}", counted(*limit, "member")),
        Kind::UniqueItems => "has equal items".into(),
        Kind::Contains if error.schema_path().as_str().ends_with("maxContains") => {
            "has more items of the kind in \"contains\" than \"maxContains\" allows".into()
        }
        Kind::Contains if error.schema_path().as_str().ends_with("minContains") => {
            "has less items of the kind in \"contains\" than \"minContains\" asks for".into()
        }
        Kind::Contains => "has no item of the kind in \"contains\"".into(),
        Kind::UnevaluatedItems { .. } => "has more items than the schema allows".into(),
        Kind::Required { .. } if error.schema_path().as_str().ends_with("/dependentRequired") => {
            "is missing, and a member is there that needs it (\"dependentRequired\")".into()
        }
        Kind::Required { .. } => "is missing".into(),
        Kind::FalseSchema | Kind::AdditionalProperties { .. } | Kind::UnevaluatedProperties { .. } => {
            "is not allowed".into()
        }
        Kind::PropertyNames { error } => format!("the name {}", wanted(error)),
        Kind::Format { format } => format!("is no \"{format}\""),
        Kind::Pattern { pattern } => format!("does not match \"{pattern}\""),
        Kind::AnyOf { context } => format!("matches no schema in \"anyOf\"{}", branches(context)),
        Kind::OneOfNotValid { context } => format!("matches no schema in \"oneOf\"{}", branches(context)),
        Kind::OneOfMultipleValid { .. } => "matches more than one schema in \"oneOf\"".into(),
        Kind::Not { .. } => "matches the schema in \"not\"".into(),
        Kind::Custom { message, .. } => message.clone(),
        // Kinds of keywords that only annotate in this draft, and of schemas that do not compile.
        kind => format!("does not satisfy \"{}\"", kind.keyword()),
    }
}

/// What the first branches want.
fn branches(context: &[Vec<ValidationError<'_>>]) -> String {
    let shown: Vec<_> = context.iter().filter_map(|branch| branch.first()).take(BRANCHES_SHOWN).map(wanted).collect();
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
