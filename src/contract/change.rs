//! What a new version of a contract would break for those who read its events.

use super::Publication;
use serde_json::Value;
use std::collections::BTreeSet;

/// What stands against taking `next` while `current` is in force, in words for its author; empty if nothing does.
pub fn objections(current: &Publication, next: &Publication) -> Vec<String> {
    // Where a gateway is does not belong to its contracts.
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
        found.extend(breaking_changes(current, &next).into_iter().map(|broken| would_break(&broken, current)));
        return found;
    }
    breaking_changes(current, &next).into_iter().map(|broken| would_break(&broken, current)).collect()
}

fn would_break(broken: &str, current: &Publication) -> String {
    format!("{broken}; consumers of version {} would break: give it a new major version", current.version)
}

/// What `next` takes away from the consumers of `current`, each named by its place in the schema.
/// Empty if `next` has a new major version: that is a new stream.
fn breaking_changes(current: &Publication, next: &Publication) -> Vec<String> {
    if current.stream_id() != next.stream_id() {
        return Vec::new();
    }
    let mut broken = Vec::new();
    if current.key != next.key {
        broken.push(format!(
            "key changes from \"{}\" to \"{}\", and with it what order is kept for",
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
            broken.push("keep drops fields that were delivered so far".into());
        }
        broken.extend(before.difference(&after).map(|field| format!("{field}: is no longer kept")));
    }
    broken.extend(
        next.mask.iter().filter(|field| !current.mask.contains(field)).map(|field| format!("{field}: becomes masked")),
    );
    match (&current.schema, &next.schema) {
        (Some(before), Some(after)) => compare(before, after, "", &mut broken),
        (Some(_), None) => broken.push("the schema is gone".into()),
        (None, _) => {}
    }
    broken
}

fn compare(before: &Value, after: &Value, place: &str, broken: &mut Vec<String>) {
    let named = |place: &str| if place.is_empty() { "payload".to_owned() } else { place.to_owned() };
    let (types_before, types_after) = (types(before), types(after));
    if let (Some(was), Some(is)) = (&types_before, &types_after)
        && !is.is_subset(was)
    {
        broken.push(format!("{}: changes its type", named(place)));
    }
    if types_before.is_some() && types_after.is_none() {
        broken.push(format!("{}: loses its type", named(place)));
    }
    let words = |schema: &Value| schema.get("enum").and_then(Value::as_array).cloned();
    if let (Some(was), Some(is)) = (words(before), words(after)) {
        let gone: Vec<_> = was.iter().filter(|word| !is.contains(word)).map(ToString::to_string).collect();
        if !gone.is_empty() {
            broken.push(format!("{}: no longer allows {}", named(place), gone.join(", ")));
        }
    }
    let required = |schema: &Value| -> BTreeSet<String> {
        let list = schema.get("required").and_then(Value::as_array);
        list.into_iter().flatten().filter_map(|name| name.as_str().map(str::to_owned)).collect()
    };
    for name in required(before).difference(&required(after)) {
        broken.push(format!("{place}/{name}: is no longer required"));
    }
    if let Some(was) = before.get("properties").and_then(Value::as_object) {
        let is = after.get("properties").and_then(Value::as_object);
        for (name, schema) in was {
            match is.and_then(|properties| properties.get(name)) {
                Some(now) => compare(schema, now, &format!("{place}/{name}"), broken),
                None => broken.push(format!("{place}/{name}: is removed")),
            }
        }
    }
    if let (Some(was), Some(is)) = (before.get("items"), after.get("items")) {
        compare(was, is, &format!("{place}/*"), broken);
    }
}

fn types(schema: &Value) -> Option<BTreeSet<String>> {
    let set: BTreeSet<String> = match schema.get("type")? {
        Value::String(one) => [one.clone()].into(),
        Value::Array(many) => many.iter().filter_map(|one| one.as_str().map(str::to_owned)).collect(),
        _ => return None,
    };
    // Every integer is a number, so that narrowing to integers breaks nobody.
    let mut set = set;
    if set.contains("number") {
        set.insert("integer".into());
    }
    Some(set)
}
