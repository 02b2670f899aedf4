//! Topic names and topic filters (MQTT 3.1.1 and 5, section 4.7).

use super::reason::{Fault, ReasonCode};

/// A valid topic filter. The default matches no topic that can be published.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Filter(String);

/// One level of a topic filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level<'a> {
    Word(&'a str),
    /// `+`
    Any,
    /// `#`
    Rest,
}

/// The share name of a filter of the form `$share/{name}/{filter}`, and the filter itself.
pub(crate) type Shared<'a> = (Option<&'a str>, &'a str);

/// Splits a filter into its share name, if any, and the filter itself; returns `None` if it is malformed.
pub(crate) fn split_share(text: &str) -> Option<Shared<'_>> {
    let Some(rest) = text.strip_prefix("$share") else { return Some((None, text)) };
    if !rest.is_empty() && !rest.starts_with('/') {
        return Some((None, text));
    }
    let (share, filter) = rest.strip_prefix('/')?.split_once('/')?;
    (!share.is_empty() && !share.contains(['+', '#'])).then_some((Some(share), filter))
}

impl Filter {
    /// Parses a filter; returns `None` if it is empty, longer than 65,535 bytes, contains U+0000
    /// or has a misplaced wildcard.
    pub fn parse(text: &str) -> Option<Self> {
        let mut levels = text.split('/').peekable();
        while let Some(level) = levels.next() {
            let is_good = match level {
                "#" => levels.peek().is_none(),
                "+" => true,
                _ => !level.contains(['+', '#']),
            };
            if !is_good {
                return None;
            }
        }
        (!text.is_empty() && !text.contains('\0') && text.len() <= usize::from(u16::MAX)).then(|| Self(text.to_owned()))
    }

    /// Returns the text of the filter.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Splits the filter at its slashes.
    pub fn levels(&self) -> impl Iterator<Item = Level<'_>> {
        self.0.split('/').map(|level| match level {
            "+" => Level::Any,
            "#" => Level::Rest,
            word => Level::Word(word),
        })
    }

    /// Whether a topic matches. A wildcard at the start matches no topic that begins with `$`.
    pub fn matches(&self, topic: &str) -> bool {
        self.captures(topic, |_| ())
    }

    /// Whether a topic matches. Calls `any` with the level of the topic that each `+` stands for, in their order.
    #[inline]
    pub fn captures<'t>(&self, topic: &'t str, mut any: impl FnMut(&'t str)) -> bool {
        if topic.starts_with('$') && self.0.starts_with(['+', '#']) {
            return false;
        }
        let mut names = topic.split('/');
        for level in self.levels() {
            match (level, names.next()) {
                (Level::Rest, _) => return true,
                (Level::Any, Some(name)) => any(name),
                (Level::Word(word), Some(name)) if word == name => {}
                _ => return false,
            }
        }
        names.next().is_none()
    }

    /// Whether a topic exists that both filters match.
    pub fn overlaps(&self, other: &Self) -> bool {
        let (mut ours, mut theirs) = (self.levels(), other.levels());
        loop {
            match (ours.next(), theirs.next()) {
                (Some(Level::Rest), _) | (_, Some(Level::Rest)) | (None, None) => return true,
                (Some(Level::Word(a)), Some(Level::Word(b))) if a != b => return false,
                (Some(_), Some(_)) => {}
                _ => return false,
            }
        }
    }

    /// Whether this filter matches every topic that `other` matches.
    pub fn covers(&self, other: &str) -> bool {
        if other.starts_with('$') && self.0.starts_with(['+', '#']) {
            return false;
        }
        let mut theirs = other.split('/');
        for level in self.0.split('/') {
            match (level, theirs.next()) {
                ("#", _) => return true,
                (_, Some("#")) => return false,
                ("+", Some(_)) => {}
                (word, Some(other)) if word == other => {}
                _ => return false,
            }
        }
        theirs.next().is_none()
    }
}

const WILDCARD: Fault = Fault { code: ReasonCode::TopicNameInvalid, text: "the topic name holds a wildcard" };

fn is_wildcard(byte: u8) -> bool {
    matches!(byte, b'+' | b'#')
}

/// Checks that a topic name has no wildcard.
#[inline]
pub(crate) fn check_wildcards(topic: &str) -> Result<(), Fault> {
    if topic.bytes().any(is_wildcard) { Err(WILDCARD) } else { Ok(()) }
}

/// Checks that a topic can be published to.
pub(crate) fn check_topic(topic: &str) -> Result<(), Fault> {
    check_wildcards(topic)?;
    if topic.is_empty() || topic.contains('\0') {
        return Err(Fault { code: ReasonCode::TopicNameInvalid, text: "the topic name is empty or holds U+0000" });
    }
    Ok(())
}

/// Checks that a response topic can be published to.
pub(crate) fn check_response_topic(topic: &str) -> Result<(), Fault> {
    if topic.is_empty() || topic.bytes().any(is_wildcard) {
        return Err(Fault::protocol("the response topic is empty or holds a wildcard"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn matches(filter: &str, topic: &str) -> bool {
        Filter::parse(filter).expect("a filter").matches(topic)
    }

    #[test]
    fn wildcards_match_as_the_specification_says() {
        for (filter, topic) in [
            ("sport/tennis/player1/#", "sport/tennis/player1"),
            ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon"),
            ("sport/#", "sport"),
            ("#", "a/b"),
            ("sport/tennis/+", "sport/tennis/player1"),
            ("sport/+", "sport/"),
            ("+/+", "/finance"),
            ("/+", "/finance"),
            ("$SYS/#", "$SYS/monitor/Clients"),
            ("$SYS/monitor/+", "$SYS/monitor/Clients"),
        ] {
            assert!(matches(filter, topic), "{filter} {topic}");
        }
        for (filter, topic) in [
            ("sport/tennis/+", "sport/tennis/player1/ranking"),
            ("sport/+", "sport"),
            ("+", "/finance"),
            ("#", "$SYS/monitor"),
            ("+/monitor/Clients", "$SYS/monitor/Clients"),
            ("a", "A"),
            ("/a", "a"),
        ] {
            assert!(!matches(filter, topic), "{filter} {topic}");
        }
        for bad in ["", "sport/tennis#", "sport/tennis/#/ranking", "sport+", "a\0b"] {
            assert_eq!(Filter::parse(bad), None, "{bad}");
        }
        assert_eq!(split_share("$share/g/a/#"), Some((Some("g"), "a/#")));
        assert_eq!(split_share("a/b"), Some((None, "a/b")));
        for bad in ["$share", "$share/", "$share/g", "$share//a", "$share/+/a"] {
            assert_eq!(split_share(bad), None, "{bad}");
        }
    }

    proptest! {
        /// A filter matches every topic of the filters that it covers.
        #[test]
        fn covering_means_matching_all(a in "([ab+]/){0,3}[ab+#]", b in "([ab+]/){0,3}[ab+#]", topic in "([ab]/){0,4}[ab]") {
            let (a, b) = (Filter::parse(&a).expect("a filter"), Filter::parse(&b).expect("a filter"));
            if a.covers(b.as_str()) && b.matches(&topic) {
                prop_assert!(a.matches(&topic));
            }
        }
    }
}
