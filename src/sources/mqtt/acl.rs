//! Access rules: the topics that a client may publish and subscribe to.
//!
//! Promise: no client writes or reads outside its topics, and only a proven name owns topics: a client id and the
//! user name of an anonymous client are claims and grant nothing.
//!
//! By default a proven name may publish the topics that the contracts assign to it, and subscribe to its own keys and
//! commands. Rules allow more; a right that any rule grants is granted. A rule without `who` applies to everybody,
//! including anonymous clients; a rule with it, and a filter with `{user}`, only to proven names.

use crate::contract::Sender;
use crate::ingest::{Publishing, Route};
use crate::mqtt::Filter;
use crate::sources::identity::Identity;
use serde::Deserialize;
use std::fmt;

/// A rule of a listener. A right that any matching rule grants is granted.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// The proven names that it applies to, with `*` for any characters. Without it the rule applies
    /// to everybody, including anonymous clients.
    pub who: Option<String>,
    /// Topic filters to publish to; `{user}` stands for a level that is the proven name.
    #[serde(default)]
    pub publish: Vec<String>,
    /// Topic filters to subscribe to, with `{user}` likewise.
    #[serde(default)]
    pub subscribe: Vec<String>,
}

/// The level of a rule's filter that stands for the proven name.
const USER: &str = "{user}";

impl Rule {
    /// Checks the filters. The error is the key and what is wrong.
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

    /// Returns whether the rule applies to this proven name, or to anonymous clients for `None`.
    pub fn is_for(&self, proven: Option<&str>) -> bool {
        match (&self.who, proven) {
            (None, _) => true,
            (Some(pattern), Some(name)) => fits(pattern, name),
            (Some(_), None) => false,
        }
    }

    /// Returns its filters for a client, first those for publishing. Filters with `{user}` are left
    /// out without a proven name.
    pub fn filters(&self, proven: Option<&str>) -> (Vec<Filter>, Vec<Filter>) {
        let expanded = |list: &[String]| list.iter().filter_map(|filter| expand(filter, proven)).collect();
        (expanded(&self.publish), expanded(&self.subscribe))
    }
}

/// The rights of one client.
#[derive(Clone, Debug)]
pub(super) struct Rights {
    identity: Identity,
    /// Whether everything is allowed: for an anonymous client on loopback while there are no rules.
    is_everything: bool,
    has_defaults: bool,
    publish: Vec<Filter>,
    subscribe: Vec<Filter>,
}

/// The reason why a client may publish to a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Permission {
    /// A rule allows it, or the client may do everything.
    Rule,
    /// The topic belongs to the client's proven name.
    Name,
}

/// The reason why a client may not publish to a topic.
#[derive(Debug)]
pub(super) struct Denied<'r> {
    publishing: Publishing<'r>,
    proven: Option<&'r str>,
}

impl Rights {
    /// Returns the rights of a client under these rules. `own` are the filters that a proven name
    /// may subscribe to by default.
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

    /// Returns rights that allow everything.
    pub(super) fn everything(identity: &Identity) -> Self {
        Self { is_everything: true, ..Self::new(&[], identity, false, &[]) }
    }

    /// Returns the sender of the client's events.
    pub(super) fn sender<'a>(&'a self, client: &'a str) -> Sender<'a> {
        self.identity.sender(client)
    }

    /// Checks whether the client may publish to the topic of a route.
    pub(super) fn may_publish<'r>(&'r self, route: &'r Route) -> Result<Permission, Denied<'r>> {
        if self.is_everything || self.publish.iter().any(|filter| filter.matches(route.topic())) {
            return Ok(Permission::Rule);
        }
        let proven = self.identity.proven();
        let publishing = route.publishing();
        let is_own = |name: &str| match publishing {
            Publishing::By { name: publisher, .. } => publisher == name,
            // The event becomes a dead letter that names its sender.
            Publishing::Unmatched => route.topic().split('/').any(|level| level == name),
            Publishing::ByNobody { .. } => false,
        };
        if self.has_defaults && proven.is_some_and(is_own) {
            return Ok(Permission::Name);
        }
        Err(Denied { publishing, proven })
    }

    /// Returns whether the client may subscribe to a filter. The rights have to cover all of it; a part would surprise.
    pub(super) fn may_subscribe(&self, filter: &str) -> bool {
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

/// Returns a rule's filter for a client; `None` if it needs a proven name and there is none.
fn expand(filter: &str, proven: Option<&str>) -> Option<Filter> {
    let level = |level| if level == USER { proven } else { Some(level) };
    let levels: Option<Vec<&str>> = filter.split('/').map(level).collect();
    // A proven name has no slash and no wildcard: it stands for exactly one level.
    Filter::parse(&levels?.join("/"))
}

/// Returns whether a name matches a pattern with `*` for any characters.
fn fits(pattern: &str, name: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(name) = name.strip_prefix(head) else { return false };
    // The shortest match of `*` first, then every longer one.
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
