//! Compatibility of a new contract version for the consumers of its events.

use super::publication::Publication;
use serde_json::Value;
use std::collections::BTreeSet;

/// Returns the reasons against replacing `current` with `next`, as messages for the author of the contract.
pub fn incompatibilities(current: &Publication, next: &Publication) -> Vec<String> {
    // The names of environment, site and gateway are not part of a contract.
    let next = Publication { surroundings: current.surroundings.clone(), ..next.clone() };
    let numbers = |version: &str| -> Vec<u64> { version.split('.').filter_map(|number| number.parse().ok()).collect() };
    if current.stream_id() == next.stream_id() && numbers(&next.version) < numbers(&current.version) {
        return vec![format!(
            "version {} is in force, and {} is older; give it a higher version",
            current.version, next.version
        )];
    }
    if current.version == next.version && *current != next {
        let mut found = vec![format!("version {} is in force with another content; raise it", current.version)];
        found.extend(breaking_changes(current, &next).into_iter().map(|broken| incompatibility(&broken, current)));
        return found;
    }
    breaking_changes(current, &next).into_iter().map(|broken| incompatibility(&broken, current)).collect()
}

fn incompatibility(broken: &str, current: &Publication) -> String {
    format!("{broken}; consumers of version {} would break: give it a new major version", current.version)
}

/// Returns the changes that break consumers of `current`, each with its location in the schema. Empty if `next` has a
/// new major version, which makes it a new stream.
fn breaking_changes(current: &Publication, next: &Publication) -> Vec<String> {
    if current.stream_id() != next.stream_id() {
        return Vec::new();
    }
    let mut broken = Vec::new();
    if current.key != next.key {
        broken.push(format!(
            "key changes from \"{}\" to \"{}\", which changes the order of events",
            current.key, next.key
        ));
    }
    if current.topic != next.topic {
        broken.push(format!("topic changes from \"{}\" to \"{}\"", current.topic, next.topic));
    }
    if current.mode != next.mode {
        broken.push("mode changes".into());
    }
    let kept = |publication: &Publication| -> BTreeSet<String> { publication.keep.iter().cloned().collect() };
    if !next.keep.is_empty() {
        let (before, after) = (kept(current), kept(next));
        if before.is_empty() {
            broken.push(format!("keep drops fields that version {} delivers", current.version));
        }
        broken.extend(before.difference(&after).map(|field| format!("{field}: is no longer kept")));
    }
    broken.extend(
        next.mask.iter().filter(|field| !current.mask.contains(field)).map(|field| format!("{field}: becomes masked")),
    );
    match (&current.schema, &next.schema) {
        (Some(before), Some(after)) => compare(before, after, "", &mut broken),
        (Some(_), None) => broken.push("the schema is removed".into()),
        (None, _) => {}
    }
    broken
}

fn compare(before: &Value, after: &Value, location: &str, broken: &mut Vec<String>) {
    let named = |location: &str| if location.is_empty() { "payload".to_owned() } else { location.to_owned() };
    let (types_before, types_after) = (types(before), types(after));
    if let (Some(was), Some(is)) = (&types_before, &types_after)
        && !is.is_subset(was)
    {
        broken.push(format!("{}: changes its type", named(location)));
    }
    if types_before.is_some() && types_after.is_none() {
        broken.push(format!("{}: loses its type", named(location)));
    }
    let words = |schema: &Value| schema.get("enum").and_then(Value::as_array).cloned();
    if let (Some(was), Some(is)) = (words(before), words(after)) {
        let gone: Vec<_> = was.iter().filter(|word| !is.contains(word)).map(ToString::to_string).collect();
        if !gone.is_empty() {
            broken.push(format!("{}: no longer allows {}", named(location), gone.join(", ")));
        }
    }
    let required = |schema: &Value| -> BTreeSet<String> {
        let list = schema.get("required").and_then(Value::as_array);
        list.into_iter().flatten().filter_map(|name| name.as_str().map(str::to_owned)).collect()
    };
    for name in required(before).difference(&required(after)) {
        broken.push(format!("{location}/{name}: is no longer required"));
    }
    if let Some(was) = before.get("properties").and_then(Value::as_object) {
        let is = after.get("properties").and_then(Value::as_object);
        for (name, schema) in was {
            match is.and_then(|properties| properties.get(name)) {
                Some(now) => compare(schema, now, &format!("{location}/{name}"), broken),
                None => broken.push(format!("{location}/{name}: is removed")),
            }
        }
    }
    if let (Some(was), Some(is)) = (before.get("items"), after.get("items")) {
        compare(was, is, &format!("{location}/*"), broken);
    }
}

fn types(schema: &Value) -> Option<BTreeSet<String>> {
    let set: BTreeSet<String> = match schema.get("type")? {
        Value::String(one) => [one.clone()].into(),
        Value::Array(many) => many.iter().filter_map(|one| one.as_str().map(str::to_owned)).collect(),
        _ => return None,
    };
    // Every integer is a number: restricting a field to integers breaks no consumer.
    let mut set = set;
    if set.contains("number") {
        set.insert("integer".into());
    }
    Some(set)
}
