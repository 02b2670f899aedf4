//! Data types and properties of MQTT packets (MQTT 5, sections 1.5 and 2.2.2).
//!
//! Promise: any bytes are parsed or refused with a reason; nothing is copied.

use super::reason::{Fault, ReasonCode};

/// Parses a packet from front to end.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    /// Takes the next `length` bytes.
    pub fn take(&mut self, length: usize) -> Result<&'a [u8], Fault> {
        match self.0.split_at_checked(length) {
            Some((taken, rest)) => {
                self.0 = rest;
                Ok(taken)
            }
            None => Err(Fault::malformed("the packet ends too early")),
        }
    }

    pub fn u8(&mut self) -> Result<u8, Fault> {
        Ok(self.take(1)?[0])
    }

    /// Takes a two byte integer.
    pub fn u16(&mut self) -> Result<u16, Fault> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// Takes a four byte integer.
    pub fn u32(&mut self) -> Result<u32, Fault> {
        let bytes = self.take(4)?;
        Ok(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    /// Takes a UTF-8 encoded string.
    pub fn text(&mut self) -> Result<&'a str, Fault> {
        let bytes = self.bytes()?;
        match std::str::from_utf8(bytes) {
            Ok(text) if !bytes.contains(&0) => Ok(text),
            _ => Err(Fault::malformed("a string is not UTF-8, or contains U+0000")),
        }
    }

    pub fn bytes(&mut self) -> Result<&'a [u8], Fault> {
        let length = self.u16()?;
        self.take(length.into())
    }

    /// Takes a variable byte integer.
    pub fn varint(&mut self) -> Result<usize, Fault> {
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

    /// Takes a packet identifier, which is never 0.
    pub fn packet_id(&mut self) -> Result<u16, Fault> {
        match self.u16()? {
            0 => Err(Fault::protocol("the packet identifier is 0")),
            id => Ok(id),
        }
    }

    /// Checks that the packet ends here.
    pub fn end(&self) -> Result<(), Fault> {
        if self.0.is_empty() { Ok(()) } else { Err(Fault::malformed("the packet has bytes after its last field")) }
    }
}

/// The value of a property.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Property<'a> {
    /// A number of any width.
    Number(u32),
    Text(&'a str),
    Bytes(&'a [u8]),
    /// Name and value of a user property.
    Pair(&'a str, &'a str),
}

impl<'a> Property<'a> {
    /// Returns the number; 0 for anything else.
    pub(crate) fn number(self) -> u32 {
        if let Self::Number(number) = self { number } else { 0 }
    }

    /// Returns the string; empty for anything else.
    pub(crate) fn text(self) -> &'a str {
        if let Self::Text(text) = self { text } else { "" }
    }
}

/// Identifier of user properties, the only ones that each packet may have and that may repeat.
pub(crate) const USER: u8 = 0x26;

/// Parses the properties of a packet. Refuses all but user properties and those in `allowed`.
#[inline]
pub(crate) fn properties<'a>(
    rest: &mut Reader<'a>,
    allowed: &[u8],
    mut each: impl FnMut(u8, Property<'a>) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let length = rest.varint()?;
    let mut inner = Reader(rest.take(length)?);
    let mut seen = 0u64;
    while !inner.0.is_empty() {
        let id = inner.u8()?;
        if id != USER {
            if !allowed.contains(&id) {
                return Err(Fault::malformed("the packet may not have such a property"));
            }
            if seen & 1 << id != 0 {
                return Err(Fault::protocol("a property appears twice"));
            }
            seen |= 1 << id;
        }
        let value = value(&mut inner, id)?;
        each(id, value)?;
    }
    Ok(())
}

fn value<'a>(rest: &mut Reader<'a>, id: u8) -> Result<Property<'a>, Fault> {
    let value = match id {
        0x01 | 0x17 | 0x19 | 0x24 | 0x25 | 0x28 | 0x29 | 0x2A => Property::Number(rest.u8()?.into()),
        0x13 | 0x21 | 0x22 | 0x23 => Property::Number(rest.u16()?.into()),
        0x02 | 0x11 | 0x18 | 0x27 => Property::Number(rest.u32()?),
        0x0B => Property::Number(rest.varint()? as u32),
        0x03 | 0x08 | 0x12 | 0x15 | 0x1A | 0x1C | 0x1F => Property::Text(rest.text()?),
        0x09 | 0x16 => Property::Bytes(rest.bytes()?),
        USER => Property::Pair(rest.text()?, rest.text()?),
        _ => return Err(Fault::malformed("there is no such property")),
    };
    match (id, value) {
        (0x01 | 0x17 | 0x19, Property::Number(2..)) => Err(Fault::protocol("a property is neither 0 nor 1")),
        (0x23, Property::Number(0)) => {
            Err(Fault { code: ReasonCode::TopicAliasInvalid, text: "topic alias 0 is not allowed" })
        }
        (0x0B | 0x21 | 0x27, Property::Number(0)) => Err(Fault::protocol("a property is 0 that must not be 0")),
        _ => Ok(value),
    }
}

/// The properties of a PUBLISH that say something of the event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PublishProperties<'a> {
    /// Seconds after which the sender wants the message to be dropped (Message Expiry Interval).
    pub expiry: Option<u32>,
    pub response_topic: Option<&'a str>,
    pub correlation_data: Option<&'a [u8]>,
    pub user: Vec<(&'a str, &'a str)>,
}

impl<'a> PublishProperties<'a> {
    /// Reads the block of properties of a PUBLISH, without its length. Reads leniently: what follows a malformed property
    /// is left out.
    pub fn read(block: &'a [u8]) -> Self {
        let mut found = Self::default();
        let mut rest = Reader(block);
        while let Ok(id) = rest.u8()
            && let Ok(value) = value(&mut rest, id)
        {
            match (id, value) {
                (0x02, Property::Number(seconds)) => found.expiry = Some(seconds),
                (0x08, Property::Text(topic)) => found.response_topic = Some(topic),
                (0x09, Property::Bytes(data)) => found.correlation_data = Some(data),
                (_, Property::Pair(name, text)) => found.user.push((name, text)),
                _ => {}
            }
        }
        found
    }
}

/// Appends a UTF-8 encoded string.
pub(crate) fn push_text(out: &mut Vec<u8>, text: &[u8]) {
    // Keys, ids and sources are limited far below 64 KiB when they are accepted.
    debug_assert!(text.len() <= usize::from(u16::MAX));
    out.extend_from_slice(&(text.len() as u16).to_be_bytes());
    out.extend_from_slice(text);
}

/// Returns the number of bytes that [`push_varint`] appends.
pub(crate) fn varint_bytes(value: usize) -> usize {
    match value {
        0..=0x7F => 1,
        0x80..=0x3FFF => 2,
        0x4000..=0x1F_FFFF => 3,
        _ => 4,
    }
}

/// Appends a variable byte integer (MQTT 5, section 1.5.5).
pub(crate) fn push_varint(out: &mut Vec<u8>, value: usize) {
    let mut rest = value;
    loop {
        let byte = (rest & 0x7F) as u8;
        rest >>= 7;
        out.push(if rest > 0 { byte | 0x80 } else { byte });
        if rest == 0 {
            return;
        }
    }
}
