//! What a message takes in memory once it is decoded, told before it is: an empty metric has two bytes in a message and
//! some hundreds in memory, and so a small message may be the largest thing that the gateway holds.

use super::proto::{
    DataSet, Element, MetaData, Metric, Parameter, PropertySet, PropertySetList, PropertyValue, Row, Template,
};

/// As deep as `prost` follows.
const DEPTH_MAX: usize = 100;
/// A text or a list of bytes beside what it holds: what the allocator adds, and its place.
const TEXT_BYTES: usize = 24;
/// Places that the first item of a list takes: the list doubles from there on.
const FIRST_PLACES: usize = 4;
/// Fields of one message: the numbers of all are below.
const TAGS: usize = 24;
/// Of a byte in a list of numbers, in a list that doubles as it grows.
const PACKED_BYTES: usize = 2 * size_of::<u32>();

#[derive(Clone, Copy)]
enum Kind {
    Payload,
    Metric,
    MetaData,
    Set,
    Property,
    Sets,
    DataSet,
    Row,
    Element,
    Template,
    Parameter,
}

impl Kind {
    /// The message that a field holds, if it holds one.
    fn child(self, tag: u64) -> Option<Self> {
        Some(match (self, tag) {
            (Self::Payload | Self::Template, 2) => Self::Metric,
            (Self::Metric, 8) => Self::MetaData,
            (Self::Metric, 9) | (Self::Property, 9) | (Self::Sets, 1) => Self::Set,
            (Self::Metric, 17) => Self::DataSet,
            (Self::Metric, 18) => Self::Template,
            (Self::Set, 2) => Self::Property,
            (Self::Property, 10) => Self::Sets,
            (Self::DataSet, 4) => Self::Row,
            (Self::Row, 1) => Self::Element,
            (Self::Template, 3) => Self::Parameter,
            _ => return None,
        })
    }

    fn size(self) -> usize {
        match self {
            Self::Payload => 0,
            Self::Metric => size_of::<Metric>(),
            Self::MetaData => size_of::<MetaData>(),
            Self::Set => size_of::<PropertySet>(),
            Self::Property => size_of::<PropertyValue>(),
            Self::Sets => size_of::<PropertySetList>(),
            Self::DataSet => size_of::<DataSet>(),
            Self::Row => size_of::<Row>(),
            Self::Element => size_of::<Element>(),
            Self::Template => size_of::<Template>(),
            Self::Parameter => size_of::<Parameter>(),
        }
    }
}

/// Bytes that a message takes once it is decoded, at most; counting ends above `bytes_max`. `None` for one with a group,
/// which Sparkplug has nowhere. Of a message that is broken, what is in front of the break counts: no more is decoded.
pub(super) fn weigh(payload: &[u8], bytes_max: usize) -> Option<usize> {
    let mut weight = 0;
    weigh_in(Kind::Payload, payload, 0, &mut (&mut weight, bytes_max))?;
    Some(weight)
}

fn weigh_in(kind: Kind, mut rest: &[u8], depth: usize, scale: &mut (&mut usize, usize)) -> Option<()> {
    let mut counts = [0usize; TAGS];
    while let Some(key) = varint(&mut rest) {
        if *scale.0 > scale.1 || depth > DEPTH_MAX {
            return Some(());
        }
        match key & 7 {
            0 if varint(&mut rest).is_some() => *scale.0 += PACKED_BYTES,
            1 if rest.len() >= 8 => rest = &rest[8..],
            5 if rest.len() >= 4 => rest = &rest[4..],
            2 => {
                let Some(length) = varint(&mut rest) else { return Some(()) };
                // One that is cut off is decoded as far as it goes.
                let length = usize::try_from(length).unwrap_or(usize::MAX).min(rest.len());
                let (field, behind) = rest.split_at(length);
                rest = behind;
                let mut places = || match usize::try_from(key >> 3).ok().and_then(|tag| counts.get_mut(tag)) {
                    None => 0,
                    Some(count) => {
                        *count += 1;
                        if *count == 1 { FIRST_PLACES } else { 2 * usize::from(*count > FIRST_PLACES) }
                    }
                };
                match kind.child(key >> 3) {
                    Some(child) => {
                        *scale.0 += places() * child.size();
                        weigh_in(child, field, depth + 1, scale)?;
                    }
                    None if matches!(kind, Kind::DataSet) && key >> 3 == 3 => *scale.0 += length * PACKED_BYTES,
                    None => *scale.0 += places() * size_of::<String>() + TEXT_BYTES + length,
                }
            }
            3 | 4 => return None,
            _ => return Some(()),
        }
    }
    Some(())
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0u64;
    for shift in (0..70).step_by(7) {
        let (byte, behind) = rest.split_first()?;
        *rest = behind;
        number |= u64::from(byte & 0x7F).checked_shl(shift).unwrap_or(0);
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::sparkplug::proto::{MetricValue, Payload};
    use prost::Message;

    #[test]
    fn what_takes_far_more_memory_than_bytes_is_told_before_it_is_decoded() {
        let heavy = 1000 * size_of::<Metric>();
        assert!(weigh(&[0x12, 0].repeat(1000), usize::MAX) >= Some(heavy));
        let template = Template { metrics: vec![Metric::default(); 1000], ..Template::default() };
        let metric = Metric { value: Some(MetricValue::Template(template)), ..Metric::default() };
        let payload = Payload { metrics: vec![metric], ..Payload::default() }.encode_to_vec();
        assert!(weigh(&payload, usize::MAX) >= Some(heavy));
        // Counting ends soon above the bound; what is cut off counts as far as it goes; a group is told.
        assert!(weigh(&[0x12, 0].repeat(1_000_000), 100_000) < Some(200_000));
        assert!(weigh(&payload[..payload.len() - 1], usize::MAX) >= Some(heavy));
        assert_eq!(weigh(&[&[0x0B, 0x0C][..], &[0x12, 0].repeat(1000)].concat(), usize::MAX), None);
        assert_eq!(weigh(&[0xFF; 100], usize::MAX), Some(0));
    }

    /// What a decoded message takes is never more than what was told: places of a list double, and the first takes four.
    #[test]
    fn lists_of_one_item_inside_each_other_are_told_whole() {
        let mut held = 0;
        let mut metric = Metric::default();
        for _ in 0..10 {
            let template = Template { metrics: vec![metric], ..Template::default() };
            held += FIRST_PLACES * size_of::<Metric>() + size_of::<Template>();
            metric = Metric { value: Some(MetricValue::Template(template)), ..Metric::default() };
        }
        let payload = Payload { metrics: vec![metric], ..Payload::default() }.encode_to_vec();
        assert!(weigh(&payload, usize::MAX) >= Some(held), "{held}");
        let set = PropertySet { keys: vec![String::new(); 7], ..PropertySet::default() };
        let metric = Metric { properties: Some(set), ..Metric::default() };
        let payload = Payload { metrics: vec![metric], ..Payload::default() }.encode_to_vec();
        // Seven texts in a list of eight places.
        assert!(weigh(&payload, usize::MAX) >= Some(8 * size_of::<String>()));
    }
}
