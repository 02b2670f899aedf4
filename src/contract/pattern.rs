//! Topic patterns with captures, and templates that insert the captures.

use super::json::{Pointer, Tree};
use crate::mqtt::topic::{Filter, Level};
use std::borrow::Cow;
use std::fmt;

/// A topic filter whose levels may have names: `plant/{line}/+/{machine}/#`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pattern {
    filter: Filter,
    /// For each `+` of the filter its name, if it has one.
    wildcards: Vec<Option<String>>,
}

impl Pattern {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() || text.contains('\0') {
            return Err("a topic pattern has at least one level; \"#\" matches every topic".into());
        }
        let mut wildcards = Vec::new();
        let mut filter = Vec::new();
        let count = text.split('/').count();
        for (index, level) in text.split('/').enumerate() {
            let name = level.strip_prefix('{').and_then(|inner| inner.strip_suffix('}'));
            filter.push(match (level, name) {
                ("#", _) if index + 1 == count => "#",
                ("+", _) => {
                    wildcards.push(None);
                    "+"
                }
                (_, Some(name)) => {
                    check_name(name)?;
                    if wildcards.iter().flatten().any(|known| known == name) {
                        return Err(format!("\"{text}\" names \"{{{name}}}\" twice"));
                    }
                    wildcards.push(Some(name.to_owned()));
                    "+"
                }
                _ if level.contains(['#', '+', '{', '}']) => {
                    return Err(format!(
                        "\"{level}\" in \"{text}\" is no level; expected a word, \"+\", \"{{name}}\", or \"#\" at the end"
                    ));
                }
                (word, None) => word,
            });
        }
        let filter = Filter::parse(&filter.join("/")).ok_or("a topic pattern has at most 65,535 bytes")?;
        Ok(Self { filter, wildcards })
    }

    /// Returns the named levels of `topic`, in the order of [`Pattern::names`]; `None` if the pattern does not match.
    pub(super) fn captures<'t>(&self, topic: &'t str) -> Option<Vec<&'t str>> {
        let mut wildcards = self.wildcards.iter();
        let mut captures = Vec::new();
        let is_match = self.filter.captures(topic, |level| {
            if wildcards.next().is_some_and(Option::is_some) {
                captures.push(level);
            }
        });
        is_match.then_some(captures)
    }

    /// Names of the captured levels.
    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.wildcards.iter().flatten()
    }

    /// Topic filter of the pattern. With `bound`, the level named `bound.0` has the value `bound.1`.
    pub(super) fn filter(&self, bound: Option<(&str, &str)>) -> String {
        let mut wildcards = self.wildcards.iter();
        let levels = self.filter.levels().map(|level| match level {
            Level::Word(word) => word,
            Level::Any => match (wildcards.next(), bound) {
                (Some(Some(name)), Some((bound, value))) if name == bound => value,
                _ => "+",
            },
            Level::Rest => "#",
        });
        levels.collect::<Vec<_>>().join("/")
    }

    /// The pattern as a contract writes it, with the names of its levels.
    pub(super) fn text(&self) -> String {
        let mut wildcards = self.wildcards.iter();
        let levels = self.filter.levels().map(|level| match level {
            Level::Word(word) => word.to_owned(),
            Level::Any => match wildcards.next() {
                Some(Some(name)) => format!("{{{name}}}"),
                _ => "+".to_owned(),
            },
            Level::Rest => "#".to_owned(),
        });
        levels.collect::<Vec<_>>().join("/")
    }

    /// Sort key of the pattern: of two patterns that match a topic, the more specific one applies.
    pub(super) fn specificity(&self) -> Vec<u8> {
        self.filter
            .levels()
            .map(|level| match level {
                Level::Word(_) => 3,
                Level::Any => 2,
                Level::Rest => 0,
            })
            // A pattern without a trailing "#" is more specific.
            .chain([1])
            .collect()
    }

    /// The pattern as a filter, without its names.
    pub(super) fn unnamed(&self) -> &Filter {
        &self.filter
    }

    /// Whether the pattern matches a topic that `filter` matches, too.
    pub(super) fn overlaps(&self, filter: &Filter) -> bool {
        self.filter.overlaps(filter)
    }
}

fn check_name(name: &str) -> Result<(), String> {
    let is_word = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if is_word { Ok(()) } else { Err(format!("\"{{{name}}}\" is no name; letters, digits and \"_\" are allowed")) }
}

/// A text with placeholders: `{machine}` from the topic, `{/order}` from the payload.
#[derive(Clone, Debug)]
pub(super) struct Template {
    parts: Vec<TemplatePart>,
}

#[derive(Clone, Debug)]
enum TemplatePart {
    Text(String),
    Capture(usize),
    Payload(Pointer),
}

/// A placeholder without a value in the payload.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct MissingValue(pub String);

impl Template {
    /// Parses a template; `names` are the available captures.
    pub(super) fn parse(text: &str, names: &[String]) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(open) = rest.find('{') {
            if open > 0 {
                parts.push(TemplatePart::Text(rest[..open].to_owned()));
            }
            let Some(length) = rest[open..].find('}') else {
                return Err(format!("\"{text}\" has a \"{{\" without \"}}\""));
            };
            let name = &rest[open + 1..open + length];
            parts.push(if name.starts_with('/') {
                TemplatePart::Payload(Pointer::parse(name)?)
            } else if let Some(index) = names.iter().position(|known| known == name) {
                TemplatePart::Capture(index)
            } else {
                let known: Vec<_> = names.iter().map(|name| format!("\"{{{name}}}\"")).collect();
                return Err(format!(
                    "\"{text}\" uses the unknown \"{{{name}}}\"; there are {} and JSON pointers such as \"{{/order}}\"",
                    known.join(", ")
                ));
            });
            rest = &rest[open + length + 1..];
        }
        if rest.contains('}') {
            return Err(format!("\"{text}\" has a \"}}\" without \"{{\""));
        }
        if !rest.is_empty() {
            parts.push(TemplatePart::Text(rest.to_owned()));
        }
        Ok(Self { parts })
    }

    /// Index of the capture, if the template consists of a single one.
    pub(super) fn sole_capture(&self) -> Option<usize> {
        match self.parts[..] {
            [TemplatePart::Capture(index)] => Some(index),
            _ => None,
        }
    }

    /// Whether the template contains placeholders for payload values.
    pub(super) fn needs_payload(&self) -> bool {
        self.parts.iter().any(|part| matches!(part, TemplatePart::Payload(_)))
    }

    pub(super) fn fill<'a, S: AsRef<str>>(
        &self,
        captures: &'a [S],
        payload: Option<&Tree<'_>>,
    ) -> Result<Cow<'a, str>, MissingValue> {
        if let [TemplatePart::Capture(index)] = self.parts[..] {
            return Ok(Cow::Borrowed(captures[index].as_ref()));
        }
        let mut out = String::new();
        for part in &self.parts {
            match part {
                TemplatePart::Text(text) => out.push_str(text),
                TemplatePart::Capture(index) => out.push_str(captures[*index].as_ref()),
                TemplatePart::Payload(pointer) => match payload.and_then(|tree| tree.at(pointer)?.scalar()) {
                    Some(text) => out.push_str(&text),
                    None => return Err(MissingValue(pointer.to_string())),
                },
            }
        }
        Ok(Cow::Owned(out))
    }
}

impl fmt::Display for MissingValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: is missing, or is neither text nor number", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn captures(pattern: &str, topic: &str) -> Option<Vec<String>> {
        let pattern = Pattern::parse(pattern).expect("valid pattern");
        pattern.captures(topic).map(|found| found.into_iter().map(str::to_owned).collect())
    }

    #[test]
    fn patterns_match_as_mqtt_filters_do() {
        assert_eq!(captures("plant/{line}/{machine}/state", "plant/l1/m7/state"), Some(vec!["l1".into(), "m7".into()]));
        assert_eq!(captures("plant/+/{machine}/#", "plant/l1/m7"), Some(vec!["m7".into()]));
        assert_eq!(captures("plant/+/{machine}/#", "plant/l1/m7/a/b"), Some(vec!["m7".into()]));
        assert_eq!(captures("plant/{line}", "plant/l1/m7"), None);
        assert_eq!(captures("plant/{line}/x", "plant/l1"), None);
        assert_eq!(captures("#", "a//b"), Some(vec![]));
        assert_eq!(captures("#", "$SYS/x"), None);
        assert_eq!(captures("$SYS/#", "$SYS/x"), Some(vec![]));
        for wrong in ["", "a/#/b", "a/b#", "{a}/{a}", "{a b}", "a{b}"] {
            assert!(Pattern::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_narrower_pattern_counts() {
        let narrow = |text: &str| Pattern::parse(text).expect("valid pattern").specificity();
        assert!(narrow("plant/a/state") > narrow("plant/{x}/state"));
        assert!(narrow("plant/{x}") > narrow("plant/#"));
        assert!(narrow("plant/#") > narrow("#"));
        let overlaps = |a: &str, b: &str| {
            Pattern::parse(a).expect("valid pattern").overlaps(&Pattern::parse(b).expect("valid pattern").filter)
        };
        assert!(overlaps("a/+/c", "a/b/+") && overlaps("#", "x/y") && overlaps("a/#", "a"));
        assert!(!overlaps("a/b", "a/c") && !overlaps("a/+", "a/b/c"));
    }

    #[test]
    fn templates_fill_from_topic_and_payload() {
        let names = ["line".to_owned(), "machine".to_owned()];
        let payload = Tree::parse(br#"{"order":12,"deep":{"x":"y"}}"#).expect("valid JSON");
        let fill = |text: &str| {
            Template::parse(text, &names)
                .and_then(|t| t.fill(&["l1", "m7"], Some(&payload)).map(Cow::into_owned).map_err(|e| e.0))
        };
        assert_eq!(fill("{machine}").as_deref(), Ok("m7"));
        assert_eq!(fill("{line}-{/order}-{/deep/x}").as_deref(), Ok("l1-12-y"));
        assert_eq!(fill("{/gone}"), Err("/gone".into()));
        for wrong in ["{cell}", "{machine", "machine}"] {
            assert!(Template::parse(wrong, &names).is_err(), "{wrong}");
        }
    }
}
