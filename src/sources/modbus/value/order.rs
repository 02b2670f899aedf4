//! The order of bytes: how registers contain the bytes of a number, the most significant one called `A`.

use serde::Deserialize;

/// How registers contain the bytes `ABCD` of a number of 32 bits, or `ABCDEFGH` of one of 64 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Order {
    /// High word first, high byte first: the order of the Modbus standard.
    #[default]
    Abcd,
    /// Low word first, high byte first.
    Cdab,
    /// High word first, low byte first.
    Badc,
    /// Low word first, low byte first.
    Dcba,
    /// Any other order of 64 bits: for each byte as sent, how many bytes of the number are more significant.
    Eight([u8; 8]),
}

impl TryFrom<String> for Order {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || {
            format!(
                "\"{text}\" is no order; expected \"ABCD\", \"CDAB\" (low word first), \"BADC\" (low byte first), \"DCBA\" (both), or for 64 bits the eight letters A to H as they are sent, such as \"EFGHABCD\""
            )
        };
        match text.as_str() {
            "ABCD" | "ABCDEFGH" => return Ok(Self::Abcd),
            "CDAB" | "GHEFCDAB" => return Ok(Self::Cdab),
            "BADC" | "BADCFEHG" => return Ok(Self::Badc),
            "DCBA" | "HGFEDCBA" => return Ok(Self::Dcba),
            _ => {}
        }
        let letters: [u8; 8] = text.as_bytes().try_into().map_err(|_| wrong())?;
        let places = letters.map(|letter| letter.wrapping_sub(b'A'));
        let is_whole = (0..8).all(|place| places.contains(&place));
        if is_whole { Ok(Self::Eight(places)) } else { Err(wrong()) }
    }
}

impl Order {
    pub(super) fn has_low_word_first(self) -> bool {
        matches!(self, Self::Cdab | Self::Dcba)
    }

    pub(super) fn has_low_byte_first(self) -> bool {
        matches!(self, Self::Badc | Self::Dcba)
    }

    /// The bytes of a number in the order `ABCD`, from the registers as they were sent.
    pub(super) fn sorted(self, registers: &[u16]) -> Vec<u8> {
        if let (Self::Eight(places), 4) = (self, registers.len()) {
            let mut bytes = vec![0; 8];
            let sent = registers.iter().flat_map(|register| register.to_be_bytes());
            places.iter().zip(sent).for_each(|(place, byte)| bytes[usize::from(*place)] = byte);
            return bytes;
        }
        let pair = |register: &u16| match self.has_low_byte_first() {
            true => register.to_le_bytes(),
            false => register.to_be_bytes(),
        };
        match self.has_low_word_first() {
            true => registers.iter().rev().flat_map(pair).collect(),
            false => registers.iter().flat_map(pair).collect(),
        }
    }

    /// The registers that contain these bytes, which are in the order `ABCD`: the inverse of [`Order::sorted`].
    pub(super) fn registers(self, bytes: &[u8]) -> Vec<u16> {
        if let (Self::Eight(places), 8) = (self, bytes.len()) {
            let sent: Vec<u8> = places.iter().map(|place| bytes[usize::from(*place)]).collect();
            return sent.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect();
        }
        let register = |pair: &[u8]| match self.has_low_byte_first() {
            true => u16::from_le_bytes([pair[0], pair[1]]),
            false => u16::from_be_bytes([pair[0], pair[1]]),
        };
        let mut registers: Vec<u16> = bytes.chunks_exact(2).map(register).collect();
        if self.has_low_word_first() {
            registers.reverse();
        }
        registers
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn order(text: &str) -> Order {
        Order::try_from(text.to_owned()).expect(text)
    }

    #[test]
    fn an_order_is_the_letters_as_they_are_sent() {
        for text in ["ABCDEFGH", "GHEFCDAB", "BADCFEHG", "HGFEDCBA", "EFGHABCD", "CDABGHEF", "FEHGBADC"] {
            let sent: Vec<u16> = text.as_bytes().chunks(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect();
            assert_eq!(order(text).sorted(&sent), b"ABCDEFGH", "{text}");
        }
        assert_eq!((order("GHEFCDAB"), order("EFGHABCD") == Order::Abcd), (Order::Cdab, false));
        for wrong in ["", "ABDC", "abcd", "ABCDEFG", "ABCDEFGG", "ABCDEFGI", "12345678"] {
            let said = Order::try_from(wrong.to_owned()).expect_err(wrong);
            assert!(said.contains("\"EFGHABCD\""), "{said}");
        }
    }

    proptest! {
        #[test]
        fn registers_in_any_order_of_64_bits_come_back(number: u64, places in Just([0u8, 1, 2, 3, 4, 5, 6, 7]).prop_shuffle()) {
            let text: String = places.iter().map(|place| char::from(b'A' + place)).collect();
            let order = order(&text);
            let registers = order.registers(&number.to_be_bytes());
            prop_assert_eq!(order.sorted(&registers), number.to_be_bytes());
        }
    }
}
