//! Effective rights of the clients of a listener, each with its reason, as `forebay` prints them.

use super::acl::Rule;
use super::config::Config;
use crate::contract::{Contract, Contracts, SourceKind};
use serde::Serialize;

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Grant {
    /// The topic filter that it covers.
    pub filter: String,
    /// The rule or contract that grants it.
    pub why: String,
}

/// The rights of a name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Grants {
    pub publish: Vec<Grant>,
    pub subscribe: Vec<Grant>,
}

impl Grants {
    /// Adds the rights that a rule grants a proven name.
    fn add_rule(&mut self, number: usize, rule: &Rule, proven: Option<&str>) {
        let why = match &rule.who {
            Some(who) => format!("acl[{number}], who = \"{who}\""),
            None => format!("acl[{number}], for everybody"),
        };
        let (publish, subscribe) = rule.filters(proven);
        for (list, filters) in [(&mut self.publish, publish), (&mut self.subscribe, subscribe)] {
            list.extend(filters.iter().map(|filter| Grant { filter: filter.as_str().to_owned(), why: why.clone() }));
        }
    }

    fn publish(&mut self, filter: String, why: String) {
        self.publish.push(Grant { filter, why });
    }

    /// Adds the rights that the contracts grant a proven name.
    fn add_defaults(&mut self, contracts: &[&Contract], own: Vec<String>, name: &str) {
        for contract in contracts {
            let (Some(filter), Some(publisher)) = (contract.filter_of_publisher(name), contract.publisher()) else {
                continue;
            };
            let stream = contract.stream();
            let why = match publisher.name.as_str() {
                "client" => format!("contract {stream}: where the client id is the proven name"),
                "user" => format!("contract {stream}: for every proven name, which is the key"),
                place if publisher.is_written => format!("contract {stream}: publisher = \"{{{place}}}\""),
                place => format!("contract {stream}: {{{place}}} alone is its key"),
            };
            self.publish(filter, why);
        }
        let why = format!("no contract matches, a level is \"{name}\": a dead letter");
        self.publish("(any other topic)".into(), why);
        let why = format!("key or command target \"{name}\"");
        self.subscribe.extend(own.into_iter().map(|filter| Grant { filter, why: why.clone() }));
    }
}

impl Config {
    /// Returns the rights of a client with this proven name, or of an anonymous client.
    pub fn grants(&self, proven: Option<&str>, contracts: &Contracts) -> Grants {
        let mut grants = Grants::default();
        if let Some(name) = proven.filter(|_| self.default_rights) {
            let of_source: Vec<&Contract> = contracts
                .iter()
                .map(AsRef::as_ref)
                .filter(|one: &&Contract| one.source() == SourceKind::Mqtt && one.is_for(&self.name))
                .collect();
            grants.add_defaults(&of_source, contracts.filters_of_key(name), name);
        }
        for (number, rule) in self.acl.iter().enumerate().filter(|(_, rule)| rule.is_for(proven)) {
            grants.add_rule(number, rule, proven);
        }
        if proven.is_none() && self.acl.is_empty() {
            let why = "anonymous, from loopback only: there are no rules";
            let all = Grant { filter: "#".into(), why: why.into() };
            grants.publish.push(all.clone());
            grants.subscribe.push(all);
        }
        grants
    }

    /// Returns the rights of each pattern of `who` other than `*`.
    pub fn grants_of_patterns(&self) -> Vec<(String, Grants)> {
        let mut found: Vec<(String, Grants)> = Vec::new();
        for (number, rule) in self.acl.iter().enumerate() {
            let Some(who) = rule.who.as_deref().filter(|who| *who != "*") else { continue };
            let index = found.iter().position(|(known, _)| known == who).unwrap_or_else(|| {
                found.push((who.to_owned(), Grants::default()));
                found.len() - 1
            });
            found[index].1.add_rule(number, rule, Some("{user}"));
        }
        found
    }
}
