//! Who may publish and subscribe where.
//!
//! Promise: nobody writes or reads outside the topics that are theirs. Without rules a topic is
//! somebody's if one of its levels is their user name or client id.

use crate::local::Filter;
use serde::Deserialize;

/// A rule of a listener. What any rule that fits allows is allowed.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Whom it is for: a user name, with `*` for any characters. Without it, everybody.
    #[serde(default = "anybody")]
    pub who: String,
    /// Where they may publish: topic filters, in which `{user}` and `{client}` stand for levels.
    #[serde(default)]
    pub publish: Vec<String>,
    /// What they may subscribe to: likewise.
    #[serde(default)]
    pub subscribe: Vec<String>,
}

fn anybody() -> String {
    "*".into()
}

impl Rule {
    /// Checks the filters: the key, and what is wrong.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        for (key, filters) in [("publish", &self.publish), ("subscribe", &self.subscribe)] {
            for filter in filters {
                let is_good = Filter::parse(filter).is_some()
                    && filter.split('/').all(|level| !level.contains(['{', '}']) || is_placeholder(level));
                if !is_good {
                    return Err((
                        key,
                        format!(
                            "\"{filter}\" is no topic filter; levels are words, \"+\", \"{{user}}\", \"{{client}}\", or \"#\" at the end"
                        ),
                    ));
                }
            }
        }
        Ok(())
    }
}

fn is_placeholder(level: &str) -> bool {
    matches!(level, "{user}" | "{client}")
}

/// What one connection may do.
#[derive(Debug, Default)]
pub struct Rights {
    user: String,
    client: String,
    may: May,
}

#[derive(Debug, Default)]
enum May {
    /// Everything: somebody without a name on loopback.
    Everything,
    /// Where a level is the user name or the client id.
    #[default]
    OwnLevel,
    /// What rules say: where to publish, what to subscribe to.
    Rules(Vec<Filter>, Vec<Filter>),
}

impl Rights {
    /// The rights of a user, or of somebody without a name, under these rules.
    pub fn new(rules: &[Rule], user: &str, client: &str, is_trusted: bool) -> Self {
        let may = if !rules.is_empty() {
            let fitting = || rules.iter().filter(|rule| fits(&rule.who, user));
            let expanded = |filters: &[String]| -> Vec<Filter> {
                filters.iter().filter_map(|filter| expand(filter, user, client)).collect()
            };
            May::Rules(
                fitting().flat_map(|rule| expanded(&rule.publish)).collect(),
                fitting().flat_map(|rule| expanded(&rule.subscribe)).collect(),
            )
        } else if is_trusted {
            May::Everything
        } else {
            May::OwnLevel
        };
        Self { user: user.to_owned(), client: client.to_owned(), may }
    }

    /// Whether they may publish to a topic.
    pub fn may_publish(&self, topic: &str) -> bool {
        match &self.may {
            May::Everything => true,
            May::OwnLevel => self.has_own_level(topic),
            May::Rules(publish, _) => publish.iter().any(|filter| filter.matches(topic)),
        }
    }

    /// Whether they may subscribe to a filter: all of it, since a part would surprise.
    pub fn may_subscribe(&self, filter: &str) -> bool {
        match &self.may {
            May::Everything => true,
            May::OwnLevel => self.has_own_level(filter),
            May::Rules(_, subscribe) => subscribe.iter().any(|allowed| allowed.covers(filter)),
        }
    }

    fn has_own_level(&self, topic: &str) -> bool {
        topic.split('/').any(|level| is_own(level, &self.user) || is_own(level, &self.client))
    }
}

/// A name that could stand for other levels than itself is nobody's.
fn is_own(level: &str, name: &str) -> bool {
    !name.is_empty() && !name.contains(['+', '#', '/']) && level == name
}

fn expand(filter: &str, user: &str, client: &str) -> Option<Filter> {
    let levels: Option<Vec<&str>> = filter
        .split('/')
        .map(|level| {
            let name = match level {
                "{user}" => user,
                "{client}" => client,
                _ => return Some(level),
            };
            is_own(name, name).then_some(name)
        })
        .collect();
    Filter::parse(&levels?.join("/"))
}

/// Whether a name fits a pattern with `*` for any characters.
fn fits(pattern: &str, name: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(name) = name.strip_prefix(head) else { return false };
    // The shortest match first: what is left is tried at every place.
    name.char_indices().map(|(at, _)| at).chain([name.len()]).any(|at| fits(rest, &name[at..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(who: &str, publish: &[&str], subscribe: &[&str]) -> Rule {
        let owned = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
        Rule { who: who.into(), publish: owned(publish), subscribe: owned(subscribe) }
    }

    #[test]
    fn by_default_a_level_is_ones_own_name() {
        let rights = Rights::new(&[], "press-4", "client-9", false);
        assert!(rights.may_publish("plant/line-1/press-4/state") && rights.may_publish("x/client-9"));
        assert!(!rights.may_publish("plant/line-1/press-5/state") && !rights.may_publish("press-44/x"));
        assert!(rights.may_subscribe("test/+/machine.state/v1/press-4") && !rights.may_subscribe("#"));
        for sly in ["+", "#", "a/b", ""] {
            assert!(!Rights::new(&[], "", sly, false).may_subscribe("+"), "{sly}");
            assert!(!Rights::new(&[], sly, "", false).may_subscribe("#"), "{sly}");
        }
        assert!(Rights::new(&[], "", "", true).may_publish("anything"));
    }

    #[test]
    fn rules_allow_what_they_say_and_no_more() {
        let rules = [
            rule("andon-*", &[], &["prod/plant/machine.state/#"]),
            rule("*", &["plant/+/{user}/#", "any/{client}"], &["cmd/{user}/+"]),
        ];
        let andon = Rights::new(&rules, "andon-7", "c", true);
        assert!(andon.may_subscribe("prod/plant/machine.state/v1/+") && !andon.may_subscribe("prod/plant/#"));
        assert!(andon.may_publish("plant/l1/andon-7/x") && !andon.may_publish("plant/l1/other/x"));
        assert!(andon.may_publish("any/c") && !andon.may_publish("elsewhere"));
        let press = Rights::new(&rules, "press", "#", true);
        assert!(press.may_subscribe("cmd/press/x") && !press.may_subscribe("prod/plant/machine.state/v1/+"));
        assert!(!press.may_publish("any/#") && !press.may_subscribe("cmd/press/#"));
        assert!(fits("a*b*", "aXXbYY") && fits("*", "") && !fits("a*b", "aXc"));
        assert!(rule("*", &["a/{other}"], &[]).check().is_err() && rules.iter().all(|rule| rule.check().is_ok()));
    }
}
