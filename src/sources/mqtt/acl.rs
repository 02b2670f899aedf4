//! Who may publish and subscribe where.
//!
//! Promise: nobody writes or reads outside the topics that are theirs, and only a proven name makes a topic somebody's: a
//! client id and the user name of an anonymous client are claims, and grant nothing.
//!
//! By default a proven name publishes what the contracts say is its own, and subscribes to its own keys and commands.
//! Rules allow more, and whatever any of them allows is allowed. Without `who` a rule is for everybody, also for
//! anonymous clients; with it, and with `{user}` in a filter, only for proven names.

use crate::contract::Sender;
use crate::ingest::{Publishing, Route};
use crate::local::Filter;
use crate::sources::identity::Identity;
use serde::Deserialize;
use std::fmt;

/// A rule of a listener. What any rule that fits allows is allowed.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Whom it is for: proven names, with `*` for any characters. Without it, everybody, also anonymous clients.
    pub who: Option<String>,
    /// Where they may publish: topic filters, in which `{user}` stands for a level that is the proven name.
    #[serde(default)]
    pub publish: Vec<String>,
    /// What they may subscribe to: likewise.
    #[serde(default)]
    pub subscribe: Vec<String>,
}

/// The level of a rule's filter that stands for the proven name.
const USER: &str = "{user}";

impl Rule {
    /// Checks the filters: the key, and what is wrong.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        for (key, filters) in [("publish", &self.publish), ("subscribe", &self.subscribe)] {
            for filter in filters {
                if filter.split('/').any(|level| level == "{client}") {
                    return Err((
                        key,
                        format!(
                            "\"{filter}\" goes by the client id, which every client chooses for itself; \"{{user}}\" is the name that a client has proven"
                        ),
                    ));
                }
                let is_good = Filter::parse(filter).is_some()
                    && filter.split('/').all(|level| !level.contains(['{', '}']) || level == USER);
                if !is_good {
                    return Err((
                        key,
                        format!(
                            "\"{filter}\" is no topic filter; levels are words, \"+\", \"{{user}}\", or \"#\" at the end"
                        ),
                    ));
                }
            }
        }
        Ok(())
    }

    /// Whether it is for clients that proved this name; for anonymous clients where there is none.
    pub fn is_for(&self, proven: Option<&str>) -> bool {
        match (&self.who, proven) {
            (None, _) => true,
            (Some(pattern), Some(name)) => fits(pattern, name),
            (Some(_), None) => false,
        }
    }

    /// Its filters for a client, those for publishing first; without those that need a name where there is none.
    pub fn filters(&self, proven: Option<&str>) -> (Vec<Filter>, Vec<Filter>) {
        let expanded = |list: &[String]| list.iter().filter_map(|filter| expand(filter, proven)).collect();
        (expanded(&self.publish), expanded(&self.subscribe))
    }
}

/// What one client may do.
#[derive(Clone, Debug)]
pub struct Rights {
    identity: Identity,
    /// Whether the client may do everything: an anonymous client on loopback, where there are no rules.
    is_everything: bool,
    has_defaults: bool,
    publish: Vec<Filter>,
    subscribe: Vec<Filter>,
}

/// Why a client may publish to a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permission {
    /// A rule allows it, or the client may do everything.
    Rule,
    /// The topic belongs to the client's proven name.
    Name,
}

/// Why a client may not publish to a topic.
#[derive(Debug)]
pub struct Denied<'r> {
    publishing: Publishing<'r>,
    proven: Option<&'r str>,
}

impl Rights {
    /// The rights of a client under these rules. `own` are the filters that a proven name may subscribe to by default.
    pub(super) fn new(rules: &[Rule], identity: &Identity, has_defaults: bool, own: &[String]) -> Self {
        let proven = identity.proven();
        let (mut publish, mut subscribe) = (Vec::new(), Vec::new());
        for rule in rules.iter().filter(|rule| rule.is_for(proven)) {
            let (more, others) = rule.filters(proven);
            publish.extend(more);
            subscribe.extend(others);
        }
        let has_defaults = has_defaults && proven.is_some();
        if has_defaults {
            subscribe.extend(own.iter().filter_map(|filter| Filter::parse(filter)));
        }
        Self { identity: identity.clone(), is_everything: false, has_defaults, publish, subscribe }
    }

    /// The rights of a client that may do everything.
    pub(super) fn everything(identity: &Identity) -> Self {
        Self { is_everything: true, ..Self::new(&[], identity, false, &[]) }
    }

    /// The sender of what the client hands in.
    pub(super) fn sender<'a>(&'a self, client: &'a str) -> Sender<'a> {
        self.identity.sender(client)
    }

    /// Whether the client may publish where this route leads, and why.
    pub fn may_publish<'r>(&'r self, route: &'r Route) -> Result<Permission, Denied<'r>> {
        if self.is_everything || self.publish.iter().any(|filter| filter.matches(route.topic())) {
            return Ok(Permission::Rule);
        }
        let proven = self.identity.proven();
        let publishing = route.publishing();
        let is_own = |name: &str| match publishing {
            Publishing::By { name: publisher, .. } => publisher == name,
            // It becomes a dead letter, in which its sender stands.
            Publishing::Unmatched => route.topic().split('/').any(|level| level == name),
            Publishing::ByNobody { .. } => false,
        };
        if self.has_defaults && proven.is_some_and(is_own) {
            return Ok(Permission::Name);
        }
        Err(Denied { publishing, proven })
    }

    /// Whether they may subscribe to a filter: all of it, since a part would surprise.
    pub fn may_subscribe(&self, filter: &str) -> bool {
        self.is_everything || self.subscribe.iter().any(|allowed| allowed.covers(filter))
    }
}

impl fmt::Display for Denied<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.proven, self.publishing) {
            (None, _) => f.write_str("no rule (acl) lets anonymous clients publish there"),
            (Some(proven), Publishing::By { stream, name }) => write!(
                f,
                "by the contract of stream \"{stream}\" the topic is that of \"{name}\", the client has proven to be \"{proven}\", and no rule (acl) lets it publish there"
            ),
            (Some(proven), Publishing::ByNobody { stream }) => write!(
                f,
                "the contract of stream \"{stream}\" names no publisher, and no rule (acl) lets \"{proven}\" publish there"
            ),
            (Some(proven), Publishing::Unmatched) => write!(
                f,
                "no contract matches the topic, none of its levels is \"{proven}\", and no rule (acl) lets the client publish there"
            ),
        }
    }
}

/// A rule's filter for a client; `None` where it needs a proven name and there is none.
fn expand(filter: &str, proven: Option<&str>) -> Option<Filter> {
    let level = |level| if level == USER { proven } else { Some(level) };
    let levels: Option<Vec<&str>> = filter.split('/').map(level).collect();
    // A name has no slash and no wildcard: it stands for one level, and for itself.
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
    use crate::sources::identity::Proof;

    fn rule(who: Option<&str>, publish: &[&str], subscribe: &[&str]) -> Rule {
        let owned = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
        Rule { who: who.map(str::to_owned), publish: owned(publish), subscribe: owned(subscribe) }
    }

    fn proven(name: &str) -> Identity {
        Identity::Password { name: name.into(), proof: Proof::of(b""), chain: None }
    }

    fn publishes(rights: &Rights, topic: &str) -> bool {
        rights.publish.iter().any(|filter| filter.matches(topic))
    }

    #[test]
    fn rules_allow_what_they_say_and_no_more() {
        let rules = [
            rule(Some("andon-*"), &[], &["prod/plant/machine.state/#"]),
            rule(Some("*"), &["plant/+/{user}/#"], &["cmd/{user}/+"]),
            rule(None, &["any/#"], &["any/{user}"]),
        ];
        let andon = Rights::new(&rules, &proven("andon-7"), false, &[]);
        assert!(andon.may_subscribe("prod/plant/machine.state/v1/+") && !andon.may_subscribe("prod/plant/#"));
        assert!(publishes(&andon, "plant/l1/andon-7/x") && !publishes(&andon, "plant/l1/other/x"));
        assert!(publishes(&andon, "any/c") && !publishes(&andon, "elsewhere"));
        let press = Rights::new(&rules, &proven("press"), false, &[]);
        assert!(press.may_subscribe("cmd/press/x") && !press.may_subscribe("prod/plant/machine.state/v1/+"));
        assert!(press.may_subscribe("any/press") && !press.may_subscribe("any/other"));
        assert!(!press.may_subscribe("cmd/press/#"));
        // Whatever an anonymous client is called, only a rule for everybody is for it.
        for claimed in ["andon-7", "press", "", "*", "+", "#"] {
            let anonymous = Rights::new(&rules, &Identity::Anonymous { claimed: claimed.into() }, true, &["x".into()]);
            assert!(publishes(&anonymous, "any/c") && !publishes(&anonymous, "plant/l1/press/x"), "{claimed}");
            for filter in ["prod/plant/machine.state/#", "cmd/press/x", "any/press", "any/+", "x"] {
                assert!(!anonymous.may_subscribe(filter), "{claimed} {filter}");
            }
        }
        assert!(fits("a*b*", "aXXbYY") && fits("*", "") && !fits("a*b", "aXc"));
        assert!(rules.iter().all(|rule| rule.check().is_ok()));
        for wrong in ["a/{other}", "a/{client}", "a/x{user}"] {
            assert!(rule(None, &[wrong], &[]).check().is_err(), "{wrong}");
        }
    }
}
