//! Problems of a device table, as people read them.

use crate::setting::{Document, Problem};

/// A key of a point, and the reason why its value is wrong.
pub(super) type Wrong = (&'static str, String);

/// A problem of a point; the message begins with the point's name.
pub(super) fn named(document: &Document, index: usize, name: &str, (key, message): &Wrong) -> Problem {
    let key = if key.is_empty() { format!("point[{index}]") } else { format!("point[{index}].{key}") };
    document.problem(key, format!("point \"{name}\": {message}"))
}

/// Adds the name of the point to a problem that the TOML parser found.
pub(super) fn with_name(document: &Document, problem: Problem) -> Problem {
    let place = problem.key.strip_prefix("point[").and_then(|rest| rest.split(']').next());
    let name = place.and_then(|index| document.value(&format!("point[{index}].name")));
    match name {
        Some(name) => Problem { message: format!("point {name}: {}", problem.message), ..problem },
        None => problem,
    }
}

pub(super) fn is_valid_name(name: &str) -> bool {
    let is_good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    !name.is_empty() && name.len() <= 64 && name.bytes().all(is_good)
}
