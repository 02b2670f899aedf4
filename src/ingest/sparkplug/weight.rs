//! Estimates the memory of a decoded message before decoding. An empty metric has two bytes in a message and some
//! hundreds in memory, so a small message may become the largest object in the gateway.
//!
//! A list has room for four items once it has one, and doubles as it grows: its first item counts four times, and each
//! further one twice. While the largest list grows, it is in memory a second time, at half its size.

use super::proto::{Element, Metric, Parameter, PropertySet, PropertyValue, Row};

/// Recursion limit of `prost`.
const DEPTH_MAX: usize = 100;
/// Overhead of the allocator per block: its header, and rounding up to 16 bytes.
const BLOCK_BYTES: usize = 32;

#[derive(Clone, Copy)]
enum MessageType {
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

impl MessageType {
    /// Type of the message in a field, if the field is a message.
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

    /// Size of an item, if the field is a list.
    fn item(self, tag: u64) -> Option<usize> {
        Some(match (self, tag) {
            (Self::Payload | Self::Template, 2) => size_of::<Metric>(),
            (Self::Template, 3) => size_of::<Parameter>(),
            (Self::Set, 1) | (Self::DataSet, 2) => size_of::<String>(),
            (Self::Set, 2) => size_of::<PropertyValue>(),
            (Self::Sets, 1) => size_of::<PropertySet>(),
            (Self::DataSet, 3) => size_of::<u32>(),
            (Self::DataSet, 4) => size_of::<Row>(),
            (Self::Row, 1) => size_of::<Element>(),
            _ => return None,
        })
    }

    /// Bytes of `count` more items of a field; `started` has a bit for each list with an item.
    fn items(self, tag: u64, count: usize, started: &mut u64) -> usize {
        let Some(item) = self.item(tag).filter(|_| count > 0) else { return 0 };
        let bit = 1 << tag;
        let first = if *started & bit == 0 { BLOCK_BYTES + 2 * item } else { 0 };
        *started |= bit;
        first + count * 2 * item
    }
}

/// Maximum number of bytes that a message takes once decoded; counting stops above `bytes_max`. `None` for a
/// message with a group, which Sparkplug never has. Of a malformed message, only the part before the error counts,
/// since no more is decoded.
pub(super) fn weigh(payload: &[u8], bytes_max: usize) -> Option<usize> {
    let mut weight = 0;
    weigh_in(MessageType::Payload, payload, 0, &mut (&mut weight, bytes_max))?;
    Some(weight)
}

fn weigh_in(kind: MessageType, mut rest: &[u8], depth: usize, total: &mut (&mut usize, usize)) -> Option<()> {
    let mut started = 0;
    while let Some(key) = varint(&mut rest) {
        if *total.0 > total.1 || depth > DEPTH_MAX {
            return Some(());
        }
        let tag = key >> 3;
        match key & 7 {
            0 if varint(&mut rest).is_some() => *total.0 += kind.items(tag, 1, &mut started),
            1 if rest.len() >= 8 => rest = &rest[8..],
            5 if rest.len() >= 4 => rest = &rest[4..],
            2 => {
                let Some(length) = varint(&mut rest) else { return Some(()) };
                // A truncated field counts up to its end.
                let length = usize::try_from(length).unwrap_or(usize::MAX).min(rest.len());
                let (field, behind) = rest.split_at(length);
                rest = behind;
                // Numbers may be packed in one field; each takes a byte at least.
                let is_packed = matches!((kind, tag), (MessageType::DataSet, 3));
                *total.0 += kind.items(tag, if is_packed { length } else { 1 }, &mut started);
                match kind.child(tag) {
                    Some(child) => weigh_in(child, field, depth + 1, total)?,
                    None if is_packed => {}
                    None => *total.0 += BLOCK_BYTES + length,
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
    use super::super::proto::{DataSet, MetricValue, Payload, PropertyKind, PropertySetList, Template};
    use super::*;
    use prost::Message;

    /// Bytes that the allocator takes for a block.
    fn block(bytes: usize) -> usize {
        if bytes == 0 { 0 } else { (bytes + 8).next_multiple_of(16).max(32) }
    }

    /// Bytes of a list and its items.
    fn list<T>(items: &Vec<T>, held: impl Fn(&T) -> usize) -> usize {
        block(items.capacity() * size_of::<T>()) + items.iter().map(held).sum::<usize>()
    }

    fn text(text: &String) -> usize {
        block(text.capacity())
    }

    fn texts<'t>(texts: impl IntoIterator<Item = &'t Option<String>>) -> usize {
        texts.into_iter().flatten().map(text).sum()
    }

    fn set(held: &PropertySet) -> usize {
        let value = |value: &PropertyValue| match &value.value {
            Some(PropertyKind::Set(inner)) => set(inner),
            Some(PropertyKind::Sets(inner)) => list(&inner.sets, set),
            Some(PropertyKind::Text(inner)) => text(inner),
            _ => 0,
        };
        list(&held.keys, text) + list(&held.values, value)
    }

    fn metric(held: &Metric) -> usize {
        let metadata = held.metadata.as_ref().map_or(0, |data| {
            texts([&data.content_type, &data.file_name, &data.file_type, &data.md5, &data.description])
        });
        let value = match &held.value {
            Some(MetricValue::Text(inner)) => text(inner),
            Some(MetricValue::Bytes(inner)) => list(inner, |_| 0),
            Some(MetricValue::DataSet(data)) => {
                let element = |element: &Element| match &element.value {
                    Some(super::super::proto::ElementValue::Text(inner)) => text(inner),
                    _ => 0,
                };
                let rows = list(&data.rows, |row| list(&row.elements, element));
                list(&data.columns, text) + list(&data.types, |_| 0) + rows
            }
            Some(MetricValue::Template(inner)) => {
                let parameter = |one: &Parameter| match &one.value {
                    Some(super::super::proto::ParameterValue::Text(inner)) => text(inner) + texts([&one.name]),
                    _ => texts([&one.name]),
                };
                let parameters = list(&inner.parameters, parameter);
                parameters + list(&inner.metrics, metric) + texts([&inner.version, &inner.template_ref])
            }
            _ => 0,
        };
        texts([&held.name]) + held.properties.as_ref().map_or(0, set) + metadata + value
    }

    /// Bytes of a decoded message, by the capacity of its lists and texts.
    fn held(payload: &Payload) -> usize {
        let body = payload.body.as_ref().map_or(0, |body| list(body, |_| 0));
        list(&payload.metrics, metric) + body + texts([&payload.uuid])
    }

    fn field(wire: &mut Vec<u8>, tag: u64, content: &[u8]) {
        prost::encoding::encode_varint(tag << 3 | 2, wire);
        prost::encoding::encode_varint(content.len() as u64, wire);
        wire.extend_from_slice(content);
    }

    /// A random message of fields that take memory.
    fn wire(kind: MessageType, depth: usize, chance: &mut impl FnMut(usize) -> usize) -> Vec<u8> {
        let tags: &[u64] = match kind {
            MessageType::Payload => &[2, 2, 4, 5],
            MessageType::Metric => &[1, 8, 9, 15, 16, 17, 18],
            MessageType::MetaData => &[2, 5, 6, 7, 8],
            MessageType::Set => &[1, 2],
            MessageType::Property => &[8, 9, 10],
            MessageType::DataSet => &[2, 3, 4],
            MessageType::Row | MessageType::Sets => &[1],
            MessageType::Element => &[6],
            MessageType::Template => &[1, 2, 3, 4],
            MessageType::Parameter => &[1, 8],
        };
        let mut wire = Vec::new();
        for _ in 0..chance(4) {
            let tag = tags[chance(tags.len())];
            for _ in 0..if kind.item(tag).is_some() { 1 + chance(6) } else { 1 } {
                match kind.child(tag) {
                    Some(child) if depth < 5 => field(&mut wire, tag, &self::wire(child, depth + 1, chance)),
                    Some(_) => field(&mut wire, tag, &[]),
                    None if matches!(kind, MessageType::DataSet) && tag == 3 && chance(2) == 0 => {
                        wire.extend([3 << 3, 1])
                    }
                    None => field(&mut wire, tag, &vec![b'a'; chance(40)]),
                }
            }
        }
        wire
    }

    #[test]
    fn a_message_takes_no_more_than_it_weighs() {
        let (mut state, mut metrics) = (0x2545_F491_4F6C_DD1Du64, 0);
        let mut chance = |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 33) as usize % below
        };
        for round in 0..1000 {
            let wire = wire(MessageType::Payload, 0, &mut chance);
            let payload = Payload::decode(&wire[..]).expect("a message");
            metrics += payload.metrics.len();
            let (held, weight) = (held(&payload), weigh(&wire, usize::MAX).expect("no group"));
            assert!(held <= weight, "round {round}: {held} bytes, weight {weight}: {payload:?}");
        }
        assert!(metrics > 1000, "{metrics}");
    }

    #[test]
    fn lists_inside_each_other_weigh_what_they_take() {
        // A row of one element, a set of one text, a template of one metric: each list has capacity for four.
        let row = Row { elements: vec![Element::default()] };
        let data_set = DataSet { rows: vec![row; 1000], types: vec![1], ..DataSet::default() };
        let inner = PropertySet { keys: vec!["a".into()], values: vec![PropertyValue::default()] };
        let sets = PropertyKind::Sets(PropertySetList { sets: vec![inner; 1000] });
        let values = vec![PropertyValue { value: Some(sets), ..PropertyValue::default() }];
        let template = Template { metrics: vec![Metric::default()], ..Template::default() };
        let in_template = Metric { value: Some(MetricValue::Template(template)), ..Metric::default() };
        let template = Template { metrics: vec![in_template; 1000], ..Template::default() };
        for metric in [
            Metric { value: Some(MetricValue::DataSet(data_set)), ..Metric::default() },
            Metric { properties: Some(PropertySet { keys: vec!["s".into()], values }), ..Metric::default() },
            Metric { value: Some(MetricValue::Template(template)), ..Metric::default() },
        ] {
            let wire = Payload { metrics: vec![metric], ..Payload::default() }.encode_to_vec();
            let payload = Payload::decode(&wire[..]).expect("a message");
            let (held, weight) = (held(&payload), weigh(&wire, usize::MAX).expect("no group"));
            assert!(held <= weight && weight <= 2 * held, "{held} bytes, weight {weight}");
        }
    }

    #[test]
    fn what_takes_far_more_memory_than_bytes_is_told_before_it_is_decoded() {
        let heavy = 1000 * size_of::<Metric>();
        assert!(weigh(&[0x12, 0].repeat(1000), usize::MAX) >= Some(heavy));
        let template = Template { metrics: vec![Metric::default(); 1000], ..Template::default() };
        let metric = Metric { value: Some(MetricValue::Template(template)), ..Metric::default() };
        let payload = Payload { metrics: vec![metric], ..Payload::default() }.encode_to_vec();
        assert!(weigh(&payload, usize::MAX) >= Some(heavy));
        // Counting stops soon above the bound; a truncated message counts up to its end; a group is detected.
        assert!(weigh(&[0x12, 0].repeat(1_000_000), 100_000) < Some(200_000));
        assert!(weigh(&payload[..payload.len() - 1], usize::MAX) >= Some(heavy));
        assert_eq!(weigh(&[&[0x0B, 0x0C][..], &[0x12, 0].repeat(1000)].concat(), usize::MAX), None);
        assert_eq!(weigh(&[0xFF; 100], usize::MAX), Some(0));
    }
}
