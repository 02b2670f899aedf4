//! Names of models and fields that differ between versions of Odoo.
//!
//! Promise: events use the first name in every version, so that central need not know the version.

use serde::Deserialize;
use serde_json::Value;

/// The names of a model or a field, as a contract writes them: `date_start`, `date_start|date_planned_start`,
/// `sale_line_id?`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub struct Names {
    /// At least one.
    names: Vec<String>,
    /// Whether a version or an installation without it is expected (`?`).
    pub is_optional: bool,
}

impl From<String> for Names {
    fn from(text: String) -> Self {
        let (names, is_optional) = match text.strip_suffix('?') {
            Some(names) => (names, true),
            None => (text.as_str(), false),
        };
        Self { names: names.split('|').map(|name| name.trim().to_owned()).collect(), is_optional }
    }
}

impl Names {
    /// The name in events.
    pub fn first(&self) -> &str {
        self.names.first().map(String::as_str).unwrap_or_default()
    }

    /// All names, the one of events first.
    pub fn all(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }

    /// The name that this Odoo has. Of several it is the last one: up to Odoo 16, `date_start` is the actual start where
    /// there is a `date_planned_start`.
    pub fn resolve(&self, has: impl Fn(&str) -> bool) -> Option<&str> {
        self.names.iter().rev().map(String::as_str).find(|name| has(name))
    }
}

/// The fields that the conditions of a domain name, with all their alternatives.
pub fn fields_of_domain(domain: &[Value]) -> impl Iterator<Item = Names> {
    domain.iter().filter_map(|term| Some(Names::from(term.get(0)?.as_str()?.to_owned())))
}

/// A domain with the names that this Odoo has. A condition on an optional field that it lacks is left out.
pub fn resolve_domain(domain: &[Value], has: impl Fn(&str) -> bool) -> Vec<Value> {
    let resolve = |term: &Value| {
        // An operator such as "|" stands alone.
        let Some(text) = term.get(0).and_then(Value::as_str) else { return Some(term.clone()) };
        let names = Names::from(text.to_owned());
        // A path such as `product_id.active` is read as it is.
        let is_there = |name: &str| has(name.split('.').next().unwrap_or(name));
        let name = match names.resolve(is_there) {
            Some(name) => name,
            None if names.is_optional => return None,
            None => names.first(),
        };
        let mut term = term.clone();
        term[0] = name.into();
        Some(term)
    };
    domain.iter().filter_map(resolve).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn names(text: &str) -> Names {
        Names::from(text.to_owned())
    }

    #[test]
    fn events_use_the_first_name_and_the_last_one_that_odoo_has_is_read() {
        let start = names("date_start|date_planned_start");
        assert_eq!(start.first(), "date_start");
        assert_eq!(start.resolve(|name| name == "date_start"), Some("date_start"));
        assert_eq!(
            start.resolve(|_| true),
            Some("date_planned_start"),
            "14 to 16 have both, and the first is the actual start"
        );
        assert_eq!(start.resolve(|_| false), None);
        assert!(!start.is_optional);
        let optional = names("a | b?");
        assert!(optional.is_optional);
        assert_eq!(optional.all().collect::<Vec<_>>(), ["a", "b"]);
    }

    #[test]
    fn a_domain_is_written_for_the_fields_that_odoo_has() {
        let domain =
            json!(["|", ["state", "=", "done"], ["qty|quantity_done", ">", 0], ["gone?", "=", 1], ["missing", "=", 2]]);
        let domain = domain.as_array().expect("a list");
        let found = resolve_domain(domain, |name| ["state", "quantity_done"].contains(&name));
        assert_eq!(json!(found), json!(["|", ["state", "=", "done"], ["quantity_done", ">", 0], ["missing", "=", 2]]));
        let fields: Vec<String> =
            fields_of_domain(domain).flat_map(|names| names.all().map(str::to_owned).collect::<Vec<_>>()).collect();
        assert_eq!(fields, ["state", "qty", "quantity_done", "gone", "missing"]);
    }
}
