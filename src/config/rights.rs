//! Warnings about rights to publish and subscribe that are allowed but probably not intended.

use super::File;
use crate::contract::{Contract, Contracts, SourceKind};
use crate::mqtt::Filter;
use crate::setting::{Document, Problem};
use crate::sources::mqtt;

/// Returns the warnings about the rights at each listener.
pub(super) fn doubts(raw: &File, document: &Document, contracts: &Contracts) -> Vec<Problem> {
    let mut found = Vec::new();
    for (index, source) in raw.source.mqtt.iter().enumerate() {
        let mut doubt = |part: &str, message: String| {
            found.push(document.problem(format!("source.mqtt[{index}].{part}"), message));
        };
        if source.anonymous == Some(true)
            && !source.listen.ip().is_loopback()
            && !source.acl.iter().any(|rule| rule.who.is_none())
        {
            doubt(
                "anonymous",
                "anonymous clients have no rights except on loopback: no rule applies to them; add [[source.mqtt.acl]] without \"who\"".into(),
            );
        }
        if !source.proves_names() {
            continue;
        }
        if !source.default_rights && source.acl.is_empty() {
            doubt("default_rights", "false without acl: no client may publish or subscribe anywhere".into());
        }
        let of_source = || contracts.iter().filter(|one| one.source() == SourceKind::Mqtt && one.is_for(&source.name));
        if source.default_rights {
            for contract in of_source().filter(|one| one.publisher().is_none() && !has_rule(&source.acl, one)) {
                doubt(
                    "acl",
                    format!(
                        "nobody may publish \"{}\", which contract \"{}\" accepts: its key \"{}\" is not exactly one level of the topic; give the contract a publisher, such as publisher = \"{{machine}}\", or add a rule",
                        contract.filter(),
                        contract.stream(),
                        contract.publication.key
                    ),
                );
            }
        }
        if raw.environment == "production" && !source.listen.ip().is_loopback() {
            for (number, rule) in source.acl.iter().enumerate() {
                let forged = of_source().find(|one| one.publisher().is_some() && is_open(rule, one));
                if let Some(contract) = forged {
                    doubt(
                        &format!("acl[{number}].publish"),
                        format!(
                            "lets every client publish the events of every other in stream \"{}\"; use {{user}} as a level, or set who",
                            contract.stream()
                        ),
                    );
                }
            }
        }
    }
    found
}

/// Whether any rule allows a client to publish a topic of this contract.
fn has_rule(rules: &[mqtt::Rule], contract: &Contract) -> bool {
    rules.iter().flat_map(|rule| &rule.publish).any(|filter| overlaps(filter, contract))
}

/// Whether a rule allows every client to publish topics of this contract under any name.
fn is_open(rule: &mqtt::Rule, contract: &Contract) -> bool {
    let is_for_all = rule.who.as_deref().is_none_or(|who| who == "*");
    is_for_all && rule.publish.iter().any(|filter| !filter.contains("{user}") && overlaps(filter, contract))
}

fn overlaps(filter: &str, contract: &Contract) -> bool {
    Filter::parse(&filter.replace("{user}", "+")).is_some_and(|filter| contract.overlaps(&filter))
}
