//! The nearest contract for a topic that no contract matches, and the difference.
//!
//! Invariant: the work is bounded: long topics and topics with many levels have no nearest contract.

use super::check::Contract;
use super::folder::Contracts;
use super::terms::SourceKind;
use crate::mqtt::topic::Level;
use std::fmt::Write;

/// Longest topic that is compared, in bytes, and its most levels: far above those of any plant.
const TOPIC_BYTES_MAX: usize = 256;
const LEVELS_MAX: usize = 16;

impl Contracts {
    /// Returns in words the contract that a sender of this topic probably meant. The words name topics and contracts
    /// only, no value of a payload.
    pub fn nearest(&self, kind: SourceKind, source: &str, topic: &str) -> Option<String> {
        if topic.len() > TOPIC_BYTES_MAX || topic.split('/').count() > LEVELS_MAX {
            return None;
        }
        let is_for = |contract: &Contract| contract.source() == kind && contract.is_for(source);
        let other_source = self.iter().find(|contract| contract.takes(topic) && !is_for(contract));
        if let Some(contract) = other_source {
            let wanted = match contract.is_for(source) {
                true => format!("source = \"{}\"", contract.source()),
                false => format!("name = \"{}\"", contract.source_name.as_deref().unwrap_or_default()),
            };
            let own = if contract.source() == kind { format!("\"{source}\"") } else { format!("\"{kind}\"") };
            return Some(format!(
                "{} has this topic, but its match says {wanted}, and the event came from {own}",
                contract.stream()
            ));
        }
        let compared = self.iter().filter(|contract| is_for(contract)).filter_map(|contract| {
            let (distance, difference) = compare(contract, topic)?;
            Some((distance, contract, difference))
        });
        let (_, contract, difference) = compared.min_by(|one, other| one.0.total_cmp(&other.0))?;
        Some(format!("{difference} (nearest: {}, {})", contract.stream(), contract.pattern.text()))
    }
}

/// Returns how far a topic is from the pattern of a contract, and the difference in words; `None` if they have little in
/// common.
fn compare(contract: &Contract, topic: &str) -> Option<(f64, String)> {
    let pattern: Vec<_> = contract.pattern.unnamed().levels().collect();
    let levels: Vec<_> = topic.split('/').collect();
    let has_rest = pattern.last() == Some(&Level::Rest);
    let fixed = pattern.len() - usize::from(has_rest);
    let mut words = String::new();
    let mut distance = 0.0;
    let mut equal = 0;
    for (index, (level, found)) in pattern.iter().zip(&levels).enumerate() {
        let Level::Word(word) = level else { continue };
        if word == found {
            equal += 1;
            continue;
        }
        distance += 1.0 - strsim::jaro_winkler(word, found) / 2.0;
        if words.is_empty() {
            let _ = write!(words, "level {} is \"{found}\", not \"{word}\"", index + 1);
        }
    }
    let is_shorter = levels.len() < fixed;
    if is_shorter || (levels.len() > fixed && !has_rest) {
        distance += levels.len().abs_diff(fixed) as f64;
        let separator = if words.is_empty() { "" } else { ", and " };
        let wanted = if has_rest { "at least " } else { "" };
        let _ = write!(words, "{separator}the topic has {} levels, not {wanted}{fixed}", levels.len());
    }
    // One level in common, or one that is nearly the same.
    (equal > 0 || distance < 0.75).then_some((distance, words))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::{GatewayNames, Sender};

    fn contracts() -> (tempfile::TempDir, Contracts) {
        let folder = tempfile::tempdir().expect("folder");
        for (name, source, topic) in [
            ("machine.state", "mqtt", "plant/{line}/{machine}/state"),
            ("machine.count", "mqtt", "plant/{line}/{machine}/count"),
            ("program.note", "http", "note/{program}"),
        ] {
            let text = format!(
                "name = \"{name}\"\nversion = \"1.0.0\"\nowner = \"tests\"\nmatch = {{ source = \"{source}\", topic = \"{topic}\" }}\n"
            );
            std::fs::write(folder.path().join(format!("{name}.toml")), text).expect("written");
        }
        let lanes = ["standard".to_owned()];
        let loaded = Contracts::load(folder.path(), &GatewayNames::default(), &lanes, false, &[]);
        (folder, loaded.expect("loads").0)
    }

    #[test]
    fn a_topic_that_no_contract_matches_names_the_nearest_contract_and_the_difference() {
        let (_folder, contracts) = contracts();
        let nearest = |kind, topic: &str| {
            assert!(contracts.find(kind, "a", topic, Sender::default()).is_none(), "{topic}");
            contracts.nearest(kind, "a", topic).unwrap_or_default()
        };
        for (kind, topic, wanted) in [
            (
                SourceKind::Mqtt,
                "plant/l/p/states",
                "level 4 is \"states\", not \"state\" (nearest: machine.state, plant/{line}/{machine}/state)",
            ),
            (SourceKind::Mqtt, "plant/p/count", "the topic has 3 levels, not 4"),
            (SourceKind::Mqtt, "Plant/l/p/count", "level 1 is \"Plant\", not \"plant\" (nearest: machine.count, "),
            (
                SourceKind::Broker,
                "plant/l/p/state",
                "machine.state has this topic, but its match says source = \"mqtt\", and the event came from \"broker\"",
            ),
            (SourceKind::Mqtt, "note/x", "program.note has this topic, but its match says source = \"http\""),
        ] {
            let said = nearest(kind, topic);
            assert!(said.contains(wanted), "{topic}: {said}");
        }
        assert_eq!(nearest(SourceKind::Mqtt, "office/7/temperature"), "");
        assert_eq!(nearest(SourceKind::Mqtt, &format!("plant/{}", "x/".repeat(40))), "");
    }
}
