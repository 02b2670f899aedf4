//! The cost factors of a schema.

use super::budget::{Costs, DIVIDED_FAST};
use super::regex;
use serde_json::Value;

impl Costs {
    pub(super) fn of(schema: &Value) -> Self {
        let mut costs = Self::default();
        costs.add(schema);
        costs
    }

    fn add(&mut self, schema: &Value) {
        match schema {
            Value::Array(items) => items.iter().for_each(|item| self.add(item)),
            Value::Object(members) => {
                if let Some(patterns) = members.get("patternProperties").and_then(Value::as_object) {
                    self.name_patterns += patterns.keys().map(|pattern| regex::steps_per_byte(pattern)).sum::<u64>();
                }
                if let Some(format) = members.get("format").and_then(Value::as_str) {
                    self.has_format = true;
                    self.has_regex_format |= format == "regex";
                }
                if let Some(divisor) = members.get("multipleOf").and_then(Value::as_f64) {
                    self.divides |= divisor.fract() != 0.0;
                    self.divides_slowly |= divisor.fract() != 0.0 && !DIVIDED_FAST.contains(&divisor);
                }
                members.values().for_each(|member| self.add(member));
            }
            _ => {}
        }
    }
}
