//! Topic patterns with captures, and templates that insert the captures.

use super::json::{Pointer, Tree};
use std::borrow::Cow;
use std::fmt;

/// A topic filter whose levels may have names: `plant/{line}/+/{machine}/#`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    levels: Vec<Level>,
    names: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Level {
    Exactly(String),
    Any { captured: bool },
    Rest,
}

impl Pattern {
    /// Parses a pattern.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() || text.contains('\0') {
            return Err("a topic pattern has at least one level; \"#\" matches every topic".into());
        }
        let mut levels = Vec::new();
        let mut names: Vec<String> = Vec::new();
        let count = text.split('/').count();
        for (index, level) in text.split('/').enumerate() {
            levels.push(match level {
                "#" if index + 1 == count => Level::Rest,
                "+" => Level::Any { captured: false },
                _ => match level.strip_prefix('{').and_then(|inner| inner.strip_suffix('}')) {
                    Some(name) => {
                        check_name(name)?;
                        if names.iter().any(|known| known == name) {
                            return Err(format!("\"{text}\" names \"{{{name}}}\" twice"));
                        }
                        names.push(name.to_owned());
                        Level::Any { captured: true }
                    }
                    None if level.contains(['#', '+', '{', '}']) => {
                        return Err(format!(
                            "\"{level}\" in \"{text}\" is no level; expected a word, \"+\", \"{{name}}\", or \"#\" at the end"
                        ));
                    }
                    None => Level::Exactly(level.to_owned()),
                },
            });
        }
        Ok(Self { levels, names })
    }

    /// Returns the named levels of `topic`, in the order of [`Pattern::names`]; `None` if the pattern does not match.
    ///
    /// As in MQTT, a leading wildcard does not match a topic that starts with `$`.
    pub fn captures<'t>(&self, topic: &'t str) -> Option<Vec<&'t str>> {
        if topic.starts_with('$') && !matches!(self.levels.first(), Some(Level::Exactly(_))) {
            return None;
        }
        let mut captures = Vec::with_capacity(self.names.len());
        let mut parts = topic.split('/');
        for level in &self.levels {
            match level {
                Level::Rest => return Some(captures),
                Level::Exactly(word) => {
                    if parts.next()? != word {
                        return None;
                    }
                }
                Level::Any { captured } => {
                    let part = parts.next()?;
                    if *captured {
                        captures.push(part);
                    }
                }
            }
        }
        parts.next().is_none().then_some(captures)
    }

    /// Names of the captured levels.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Topic filter of the pattern. With `bound`, the level named `bound.0` has the value `bound.1`.
    pub fn filter(&self, bound: Option<(&str, &str)>) -> String {
        let mut names = self.names.iter();
        let levels = self.levels.iter().map(|level| match level {
            Level::Exactly(word) => word.as_str(),
            Level::Any { captured: false } => "+",
            Level::Any { captured: true } => match (names.next(), bound) {
                (Some(name), Some((bound, value))) if name == bound => value,
                _ => "+",
            },
            Level::Rest => "#",
        });
        levels.collect::<Vec<_>>().join("/")
    }

    /// Sort key of the pattern: of two patterns that match a topic, the more specific one applies.
    pub fn specificity(&self) -> Vec<u8> {
        self.levels
            .iter()
            .map(|level| match level {
                Level::Exactly(_) => 3,
                Level::Any { .. } => 2,
                Level::Rest => 0,
            })
            // A pattern without a trailing "#" is more specific.
            .chain([1])
            .collect()
    }

    /// Whether a topic exists that both patterns match.
    pub fn overlaps(&self, other: &Self) -> bool {
        let (mut a, mut b) = (self.levels.iter(), other.levels.iter());
        loop {
            match (a.next(), b.next()) {
                (Some(Level::Rest), _) | (_, Some(Level::Rest)) | (None, None) => return true,
                (Some(Level::Exactly(x)), Some(Level::Exactly(y))) if x != y => return false,
                (Some(_), Some(_)) => {}
                _ => return false,
            }
        }
    }
}

fn check_name(name: &str) -> Result<(), String> {
    let is_word = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if is_word { Ok(()) } else { Err(format!("\"{{{name}}}\" is no name; letters, digits and \"_\" are allowed")) }
}

/// A text with placeholders: `{machine}` from the topic, `{/order}` from the payload.
#[derive(Clone, Debug)]
pub struct Template {
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
pub struct MissingValue(pub String);

impl Template {
    /// Parses a template; `names` are the available captures.
    pub fn parse(text: &str, names: &[String]) -> Result<Self, String> {
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
    pub fn sole_capture(&self) -> Option<usize> {
        match self.parts[..] {
            [TemplatePart::Capture(index)] => Some(index),
            _ => None,
        }
    }

    /// Whether the template contains placeholders for payload values.
    pub fn needs_payload(&self) -> bool {
        self.parts.iter().any(|part| matches!(part, TemplatePart::Payload(_)))
    }

    /// Fills the placeholders.
    pub fn fill<'a, S: AsRef<str>>(
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
            Pattern::parse(a).expect("valid pattern").overlaps(&Pattern::parse(b).expect("valid pattern"))
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
