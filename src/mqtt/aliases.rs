//! Topic aliases (MQTT 5, section 3.3.2.3.4): a topic that a connection has carried before is sent as a number.
//!
//! Invariants: an alias belongs to one connection; it is recorded only once the packet that introduces it is written.

use std::collections::HashMap;

/// Largest number of aliases of a connection. Together with `TOPIC_BYTES_MAX` it bounds their memory to 64 KiB.
const ALIASES_MAX: u16 = 256;
/// Longest topic that gets an alias, in bytes.
const TOPIC_BYTES_MAX: usize = 256;
/// Shortest topic for which a number of three bytes and an empty topic are worth it, in bytes.
const TOPIC_BYTES_MIN: usize = 4;
/// One in so many topics without an alias takes the place of an earlier one, so that topics in turn do not drive each
/// other out, and new topics get an alias nevertheless.
const REPLACE_EVERY: u32 = 16;

/// The aliases of the topics that a connection has carried.
#[derive(Debug, Default)]
pub(crate) struct TopicAliases {
    known: HashMap<Vec<u8>, u16>,
    /// The topic of each alias, from 1 on.
    topics: Vec<Vec<u8>>,
    misses: u32,
    next_replaced: usize,
}

/// How a topic is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Alias {
    /// Without an alias.
    None,
    /// The topic and the alias that it has from now on.
    New(u16),
    /// The alias alone.
    Known(u16),
}

impl Alias {
    /// The number in the packet.
    pub(crate) fn number(self) -> Option<u16> {
        match self {
            Self::None => None,
            Self::New(number) | Self::Known(number) => Some(number),
        }
    }
}

impl TopicAliases {
    /// Chooses how a topic is sent to a broker that takes `alias_max` aliases (Topic Alias Maximum).
    pub(crate) fn choose(&mut self, topic: &[u8], alias_max: u16) -> Alias {
        let alias_max = alias_max.min(ALIASES_MAX);
        if alias_max == 0 || !(TOPIC_BYTES_MIN..=TOPIC_BYTES_MAX).contains(&topic.len()) {
            return Alias::None;
        }
        if let Some(number) = self.known.get(topic) {
            return Alias::Known(*number);
        }
        if self.topics.len() < usize::from(alias_max) {
            return Alias::New(self.topics.len() as u16 + 1);
        }
        self.misses = self.misses.wrapping_add(1);
        if !self.misses.is_multiple_of(REPLACE_EVERY) {
            return Alias::None;
        }
        self.next_replaced = (self.next_replaced + 1) % self.topics.len();
        Alias::New(self.next_replaced as u16 + 1)
    }

    /// Records that a packet with this topic is written.
    pub(crate) fn record(&mut self, topic: &[u8], alias: Alias) {
        let Alias::New(number) = alias else { return };
        let index = usize::from(number) - 1;
        if index == self.topics.len() {
            self.topics.push(topic.to_vec());
        } else if let Some(place) = self.topics.get_mut(index) {
            self.known.remove(place);
            *place = topic.to_vec();
        } else {
            return;
        }
        self.known.insert(topic.to_vec(), number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// A broker that resolves aliases sees every topic as it was, whatever packets are not written.
        #[test]
        fn a_broker_resolves_every_alias(
            picks in proptest::collection::vec((0usize..40, any::<bool>()), 1..2000),
            alias_max in 0u16..30,
        ) {
            let mut aliases = TopicAliases::default();
            let mut broker: HashMap<u16, Vec<u8>> = HashMap::new();
            for (pick, is_written) in picks {
                let topic = format!("plant/line/{pick}").into_bytes();
                let alias = aliases.choose(&topic, alias_max);
                if !is_written {
                    continue;
                }
                let seen = match alias {
                    Alias::None => topic.clone(),
                    Alias::New(number) => {
                        prop_assert!((1..=alias_max).contains(&number));
                        broker.insert(number, topic.clone());
                        topic.clone()
                    }
                    Alias::Known(number) => broker.get(&number).cloned().unwrap_or_default(),
                };
                prop_assert_eq!(seen, topic.clone());
                aliases.record(&topic, alias);
            }
        }
    }

    #[test]
    fn topics_in_turn_do_not_drive_each_other_out() {
        let mut aliases = TopicAliases::default();
        let mut known = 0;
        for round in 0..1000 {
            let topic = format!("plant/line/{}", round % 20).into_bytes();
            let alias = aliases.choose(&topic, 10);
            known += usize::from(matches!(alias, Alias::Known(_)));
            aliases.record(&topic, alias);
        }
        assert!(known > 350, "{known} of 1,000, with half as many aliases as topics");
    }
}
