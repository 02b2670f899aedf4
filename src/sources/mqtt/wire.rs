//! MQTT on the wire, as far as it is the path of an event: frames, PUBLISH, PUBACK.
//!
//! Promise: any bytes are read, refused with a reason, or asked to continue; nothing is copied and
//! nothing is allocated. Everything but PUBLISH goes to `mqtt-protocol-core`, which is strict.

/// What a client did that ends its connection: the reason code of MQTT 5, and a sentence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Reason code of DISCONNECT or CONNACK.
    pub code: u8,
    /// What was wrong; never holds anything the client sent.
    pub text: &'static str,
}

impl Fault {
    /// Malformed Packet.
    pub const fn malformed(text: &'static str) -> Self {
        Self { code: 0x81, text }
    }

    /// Protocol Error.
    pub const fn protocol(text: &'static str) -> Self {
        Self { code: 0x82, text }
    }
}

/// One packet in a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The first byte: type and flags.
    pub first: u8,
    /// Everything behind the fixed header.
    pub body: &'a [u8],
    /// Bytes of the whole packet.
    pub length: usize,
}

/// Finds the packet at the start of `bytes`; `None` if there is not all of it yet. A packet above
/// `length_max` is refused before it is waited for.
pub fn frame(bytes: &[u8], length_max: usize) -> Result<Option<Frame<'_>>, Fault> {
    let Some(&first) = bytes.first() else { return Ok(None) };
    let mut remaining = 0usize;
    for place in 0..4 {
        let Some(&byte) = bytes.get(1 + place) else { return Ok(None) };
        remaining |= usize::from(byte & 0x7F) << (7 * place);
        if byte & 0x80 == 0 {
            let from = 2 + place;
            let length = from + remaining;
            if length > length_max {
                return Err(Fault { code: 0x95, text: "the packet is larger than the maximum packet size" });
            }
            return Ok(bytes.get(from..length).map(|body| Frame { first, body, length }));
        }
    }
    Err(Fault::malformed("the remaining length has more than four bytes"))
}

/// A PUBLISH that borrows from its packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Publish<'a> {
    /// Sent before, perhaps.
    pub dup: bool,
    /// 0 to 2.
    pub qos: u8,
    /// To be kept for later subscribers.
    pub retain: bool,
    /// Empty where an alias stands for it.
    pub topic: &'a str,
    /// 0 for QoS 0.
    pub packet_id: u16,
    /// Topic alias.
    pub alias: Option<u16>,
    /// Media type of the payload.
    pub content_type: Option<&'a str>,
    /// The user property `traceparent`.
    pub trace_parent: Option<&'a str>,
    /// What the device says.
    pub payload: &'a [u8],
}

/// Takes a PUBLISH apart (MQTT 3.1.1 and 5, section 3.3).
pub fn publish<'a>(first: u8, body: &'a [u8], is_v5: bool) -> Result<Publish<'a>, Fault> {
    let mut rest = Reader(body);
    let qos = (first >> 1) & 3;
    let dup = first & 8 != 0;
    if qos == 3 {
        return Err(Fault::malformed("QoS 3 does not exist"));
    }
    if dup && qos == 0 {
        return Err(Fault::malformed("a QoS 0 publish cannot be a duplicate"));
    }
    let topic = rest.text()?;
    if topic.bytes().any(|byte| matches!(byte, b'+' | b'#')) {
        return Err(Fault { code: 0x90, text: "the topic name holds a wildcard" });
    }
    let packet_id = if qos > 0 { rest.u16()? } else { 0 };
    if qos > 0 && packet_id == 0 {
        return Err(Fault::protocol("the packet identifier is 0"));
    }
    let mut found = Publish {
        dup,
        qos,
        retain: first & 1 != 0,
        topic,
        packet_id,
        alias: None,
        content_type: None,
        trace_parent: None,
        payload: &[],
    };
    if is_v5 {
        properties(&mut rest, &mut found)?;
    }
    if topic.is_empty() && found.alias.is_none() {
        return Err(if is_v5 {
            Fault::protocol("the topic name is empty and no alias stands for it")
        } else {
            Fault { code: 0x90, text: "the topic name is empty" }
        });
    }
    found.payload = rest.0;
    Ok(found)
}

fn properties<'a>(rest: &mut Reader<'a>, found: &mut Publish<'a>) -> Result<(), Fault> {
    let length = rest.varint()?;
    let mut properties = Reader(rest.take(length)?);
    let mut seen = 0u64;
    while !properties.0.is_empty() {
        let id = properties.u8()?;
        // All but user properties appear once at most.
        if id < 64 && id != 0x26 {
            if seen & 1 << id != 0 {
                return Err(Fault::protocol("a property appears twice"));
            }
            seen |= 1 << id;
        }
        match id {
            0x01 => {
                if properties.u8()? > 1 {
                    return Err(Fault::protocol("the payload format indicator is neither 0 nor 1"));
                }
            }
            0x02 => {
                properties.take(4)?;
            }
            0x03 => found.content_type = Some(properties.text()?),
            0x08 => {
                let topic = properties.text()?;
                if topic.is_empty() || topic.bytes().any(|byte| matches!(byte, b'+' | b'#')) {
                    return Err(Fault::protocol("the response topic is empty or holds a wildcard"));
                }
            }
            0x09 => {
                let length = properties.u16()?;
                properties.take(length.into())?;
            }
            0x23 => {
                let alias = properties.u16()?;
                if alias == 0 {
                    return Err(Fault { code: 0x94, text: "topic alias 0 is not allowed" });
                }
                found.alias = Some(alias);
            }
            0x26 => {
                let (name, value) = (properties.text()?, properties.text()?);
                // A trace context that is not one is of no use to anybody.
                if name == "traceparent" && value.len() <= 55 && value.is_ascii() {
                    found.trace_parent = Some(value);
                }
            }
            0x0B => return Err(Fault::protocol("a client cannot send a subscription identifier")),
            _ => return Err(Fault::malformed("PUBLISH has no such property")),
        }
    }
    Ok(())
}

/// Appends a PUBACK that says success; in both versions these are the shortest forms.
pub fn push_puback(out: &mut Vec<u8>, packet_id: u16) {
    let [high, low] = packet_id.to_be_bytes();
    out.extend_from_slice(&[0x40, 2, high, low]);
}

/// Appends a DISCONNECT of MQTT 5 with reason code and reason string.
pub fn push_disconnect(out: &mut Vec<u8>, fault: Fault) {
    let text = fault.text.as_bytes();
    // Texts are our own and short, so that each length fits one byte.
    debug_assert!(text.len() < 100);
    out.extend_from_slice(&[
        0xE0,
        (text.len() + 5) as u8,
        fault.code,
        (text.len() + 3) as u8,
        0x1F,
        0,
        text.len() as u8,
    ]);
    out.extend_from_slice(text);
}

#[derive(Clone, Copy)]
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Fault> {
        match self.0.split_at_checked(length) {
            Some((taken, rest)) => {
                self.0 = rest;
                Ok(taken)
            }
            None => Err(Fault::malformed("the packet ends too early")),
        }
    }

    fn u8(&mut self) -> Result<u8, Fault> {
        Ok(self.take(1)?[0])
    }

    fn u16(&mut self) -> Result<u16, Fault> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn text(&mut self) -> Result<&'a str, Fault> {
        let length = self.u16()?;
        let bytes = self.take(length.into())?;
        match std::str::from_utf8(bytes) {
            Ok(text) if !bytes.contains(&0) => Ok(text),
            _ => Err(Fault::malformed("a string is no UTF-8, or holds U+0000")),
        }
    }

    fn varint(&mut self) -> Result<usize, Fault> {
        let mut value = 0usize;
        for place in 0..4 {
            let byte = self.u8()?;
            value |= usize::from(byte & 0x7F) << (7 * place);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Fault::malformed("a variable byte integer has more than four bytes"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200), is_v5: bool) {
            if let Ok(Some(found)) = frame(&bytes, 1 << 20) {
                let _ = publish(found.first, found.body, is_v5);
            }
        }
    }

    fn packet(first: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![first, body.len() as u8];
        bytes.extend_from_slice(body);
        bytes
    }

    #[test]
    fn a_publish_is_taken_apart() {
        let bytes = packet(0x3B, b"\x00\x03a/b\x00\x07\x00hello");
        let found = frame(&bytes, 100).expect("fits").expect("whole");
        let publish = publish(found.first, found.body, true).expect("valid");
        assert_eq!((publish.topic, publish.packet_id, publish.payload), ("a/b", 7, &b"hello"[..]));
        assert!(publish.dup && publish.retain && publish.qos == 1);
    }

    #[test]
    fn a_frame_is_awaited_but_never_beyond_the_maximum() {
        let bytes = packet(0x30, &[0; 50]);
        assert_eq!(frame(&bytes[..20], 100), Ok(None));
        assert_eq!(frame(&bytes[..2], 51).map_err(|fault| fault.code), Err(0x95));
        assert!(frame(&[0x30, 0x80, 0x80, 0x80, 0x80, 1], 100).is_err());
    }

    #[test]
    fn what_the_specification_forbids_is_refused_with_its_code() {
        let code = |first: u8, body: &[u8]| publish(first, body, true).err().map(|fault| fault.code);
        assert_eq!(code(0x36, b"\x00\x01a\x00\x01\x00"), Some(0x81), "QoS 3");
        assert_eq!(code(0x38, b"\x00\x01a\x00"), Some(0x81), "DUP at QoS 0");
        assert_eq!(code(0x32, b"\x00\x01a\x00\x00\x00"), Some(0x82), "packet id 0");
        assert_eq!(code(0x30, b"\x00\x03a/#\x00"), Some(0x90), "wildcard");
        assert_eq!(code(0x30, b"\x00\x00\x00"), Some(0x82), "empty topic without alias");
        assert_eq!(code(0x30, b"\x00\x01a\x03\x23\x00\x00"), Some(0x94), "alias 0");
        assert_eq!(code(0x30, b"\x00\x01a\x06\x23\x00\x01\x23\x00\x01"), Some(0x82), "alias twice");
        assert_eq!(code(0x30, b"\x00\x01a\x02\x0B\x01"), Some(0x82), "subscription identifier");
        assert_eq!(code(0x30, b"\x00\x01\xff\x00"), Some(0x81), "no UTF-8");
    }

    #[test]
    fn a_disconnect_says_why() {
        let mut out = Vec::new();
        push_disconnect(&mut out, Fault::protocol("x"));
        assert_eq!(out, [0xE0, 6, 0x82, 4, 0x1F, 0, 1, b'x']);
    }
}
