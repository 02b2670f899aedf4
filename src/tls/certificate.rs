//! What a certificate says of its owner and its end; what it proves is for webpki.
//!
//! Promise: no bytes make this panic or read beyond their end; a certificate that is not written as X.509 wants it
//! (DER, RFC 5280) says nothing at all.

use jiff::civil;
use std::str;

/// What is read of a certificate.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Certificate<'a> {
    /// Its last second, counted from 1970.
    pub(super) not_after: i64,
    /// The first common name of its subject.
    pub(super) common_name: Option<&'a str>,
    /// Alternative names of its subject that are DNS names, URIs or mail addresses.
    pub(super) names: Vec<Name<'a>>,
}

/// An alternative name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Name<'a> {
    Mail(&'a str),
    Dns(&'a str),
    Uri(&'a str),
}

// Tags of DER (X.690) and of X.509.
const BOOLEAN: u8 = 0x01;
const OCTETS: u8 = 0x04;
const OID: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const VERSION: u8 = 0xa0;
const UNIQUE_IDS: [u8; 2] = [0x81, 0x82];
const EXTENSIONS: u8 = 0xa3;
/// NumericString, PrintableString, IA5String, UTF8String: what ASCII and UTF-8 can be read from.
const TEXTS: [u8; 4] = [0x12, 0x13, 0x16, 0x0c];
const MAIL_NAME: u8 = 0x81;
const DNS_NAME: u8 = 0x82;
const URI_NAME: u8 = 0x86;
/// Other names, X.400 addresses, directory names, EDI parties, IP addresses, registered ids.
const OTHER_NAMES: [u8; 6] = [0xa0, 0xa3, 0xa4, 0xa5, 0x87, 0x88];

/// 2.5.4.3
const COMMON_NAME: [u8; 3] = [0x55, 0x04, 0x03];
/// 2.5.29.17
const SUBJECT_ALTERNATIVE_NAMES: [u8; 3] = [0x55, 0x1d, 0x11];

impl<'a> Certificate<'a> {
    pub(super) fn read(der: &'a [u8]) -> Option<Self> {
        let mut whole = Der(der);
        let mut certificate = whole.inside(SEQUENCE)?;
        let mut signed = certificate.inside(SEQUENCE)?;
        if signed.tag() == Some(VERSION) {
            signed.any()?;
        }
        let _serial_number = signed.any()?;
        let _algorithm = signed.inside(SEQUENCE)?;
        let _issuer = signed.inside(SEQUENCE)?;
        let mut validity = signed.inside(SEQUENCE)?;
        let _not_before = validity.any()?;
        let (tag, written) = validity.any()?;
        let not_after = time(tag, written)?;
        let common_name = common_name(signed.inside(SEQUENCE)?)?;
        let _public_key = signed.inside(SEQUENCE)?;
        let mut names = None;
        while let Some(tag) = signed.tag() {
            if UNIQUE_IDS.contains(&tag) {
                signed.any()?;
                continue;
            }
            let mut list = signed.inside(EXTENSIONS)?.inside(SEQUENCE)?;
            while list.tag().is_some() {
                let mut extension = list.inside(SEQUENCE)?;
                let id = extension.inside(OID)?.0;
                if extension.tag() == Some(BOOLEAN) {
                    extension.any()?;
                }
                let mut value = extension.inside(OCTETS)?;
                if id == SUBJECT_ALTERNATIVE_NAMES && names.replace(alternatives(value.inside(SEQUENCE)?)?).is_some() {
                    return None;
                }
            }
        }
        Some(Self { not_after, common_name, names: names.unwrap_or_default() })
    }
}

/// The first common name of a subject, if it is a text; the outer `None` says that this is no subject.
fn common_name(mut subject: Der<'_>) -> Option<Option<&str>> {
    let mut found = None;
    while subject.tag().is_some() {
        let mut parts = subject.inside(SET)?;
        while parts.tag().is_some() {
            let mut part = parts.inside(SEQUENCE)?;
            let id = part.inside(OID)?.0;
            let (tag, value) = part.any()?;
            if id == COMMON_NAME && found.is_none() {
                found = Some(str::from_utf8(value).ok().filter(|_| TEXTS.contains(&tag)));
            }
        }
    }
    Some(found.flatten())
}

fn alternatives(mut list: Der<'_>) -> Option<Vec<Name<'_>>> {
    let mut names = Vec::new();
    while list.tag().is_some() {
        let (tag, value) = list.any()?;
        let name = match tag {
            MAIL_NAME => Name::Mail,
            DNS_NAME => Name::Dns,
            URI_NAME => Name::Uri,
            _ if OTHER_NAMES.contains(&tag) => continue,
            _ => return None,
        };
        // More than ASCII is common, though not allowed. What is no text is nobody's name.
        names.extend(str::from_utf8(value).ok().map(name));
    }
    Some(names)
}

/// Seconds since 1970 of a time as RFC 5280 (4.1.2.5) has it: `YYMMDDHHMMSSZ` until 2049, else `YYYYMMDDHHMMSSZ`.
fn time(tag: u8, written: &[u8]) -> Option<i64> {
    let digits = written.strip_suffix(b"Z")?;
    let (year, rest) = match (tag, digits.len()) {
        (UTC_TIME, 12) => (None, digits),
        (GENERALIZED_TIME, 14) => (Some(number(digits.get(..2)?)?), digits.get(2..)?),
        _ => return None,
    };
    let mut pairs = [0; 6];
    for (pair, written) in pairs.iter_mut().zip(rest.chunks(2)) {
        *pair = number(written)?;
    }
    let [in_century, month, day, hour, minute, second] = pairs;
    let century = year.unwrap_or(if in_century < 50 { 20 } else { 19 });
    let year = i16::from(century) * 100 + i16::from(in_century);
    let at = civil::DateTime::new(year, month, day, hour, minute, second, 0).ok()?;
    Some(at.duration_since(civil::date(1970, 1, 1).at(0, 0, 0, 0)).as_secs())
}

/// Two digits.
fn number(written: &[u8]) -> Option<i8> {
    let [tens @ b'0'..=b'9', ones @ b'0'..=b'9'] = *written else { return None };
    i8::try_from((tens - b'0') * 10 + (ones - b'0')).ok()
}

/// What is not yet read of some DER.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The next tag; `None` at the end.
    fn tag(&self) -> Option<u8> {
        self.0.first().copied()
    }

    /// The next value, which has to have this tag.
    fn inside(&mut self, tag: u8) -> Option<Self> {
        let (found, value) = self.any()?;
        (found == tag).then_some(Self(value))
    }

    /// The next value and its tag. Tags of several bytes and lengths above 2^24 are in no certificate.
    fn any(&mut self) -> Option<(u8, &'a [u8])> {
        let (tag, rest) = self.0.split_first()?;
        let (first, rest) = rest.split_first()?;
        let (length, rest) = match *first {
            short @ 0..=0x7f => (usize::from(short), rest),
            long @ 0x81..=0x83 => {
                let (bytes, rest) = rest.split_at_checked(usize::from(long & 0x7f))?;
                let length = bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
                // The shortest form is the only one.
                (Some(length).filter(|length| *length >= 0x80 && length >> (8 * (bytes.len() - 1)) > 0)?, rest)
            }
            _ => return None,
        };
        let (value, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        (tag & 0x1f != 0x1f).then_some((*tag, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};
    use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

    #[test]
    fn times_are_read_to_the_last_year() {
        for (tag, written, expected) in [
            (UTC_TIME, "700101000000Z", Some(0)),
            (UTC_TIME, "491231235959Z", Some(2_524_607_999)),
            (UTC_TIME, "500101000000Z", Some(-631_152_000)),
            (GENERALIZED_TIME, "20500101000000Z", Some(2_524_608_000)),
            // Never, says RFC 5280.
            (GENERALIZED_TIME, "99991231235959Z", Some(253_402_300_799)),
            (UTC_TIME, "20500101000000Z", None),
            (GENERALIZED_TIME, "20500101000000.5Z", None),
            (UTC_TIME, "7001010000Z", None),
            (UTC_TIME, "700101000000+0100", None),
            (UTC_TIME, "701301000000Z", None),
            (UTC_TIME, "7001010000+1Z", None),
            (OCTETS, "700101000000Z", None),
        ] {
            assert_eq!(time(tag, written.as_bytes()), expected, "{written}");
        }
    }

    #[test]
    fn lengths_have_one_form() {
        assert_eq!(Der(&[4, 1, 7, 9]).any(), Some((4, &[7][..])));
        for wrong in [
            &[4][..],
            &[4, 2, 7],
            &[4, 0x80],
            &[4, 0x81, 1, 7],
            &[4, 0x82, 0, 0x80],
            &[4, 0x84, 0, 0, 0, 1, 7],
            &[0x1f, 1, 7],
        ] {
            assert_eq!(Der(wrong).any(), None, "{wrong:?}");
        }
    }

    /// What is read, apart from the bytes.
    type Told = (i64, Option<String>, Vec<(char, String)>);

    fn read(der: &[u8]) -> Option<Told> {
        let read = Certificate::read(der)?;
        let names = read.names.iter().map(|name| match *name {
            Name::Mail(text) => ('m', text.to_owned()),
            Name::Dns(text) => ('d', text.to_owned()),
            Name::Uri(text) => ('u', text.to_owned()),
        });
        Some((read.not_after, read.common_name.map(str::to_owned), names.collect()))
    }

    /// What a library says of the same bytes.
    fn judge(der: &[u8]) -> Option<Told> {
        let (_, parsed) = X509Certificate::from_der(der).ok()?;
        let all = parsed.subject_alternative_name().ok().flatten();
        let names = all.iter().flat_map(|found| &found.value.general_names).filter_map(|name| match *name {
            GeneralName::RFC822Name(text) => Some(('m', text.to_owned())),
            GeneralName::DNSName(text) => Some(('d', text.to_owned())),
            GeneralName::URI(text) => Some(('u', text.to_owned())),
            _ => None,
        });
        let common_name = parsed.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
        Some((parsed.validity().not_after.timestamp(), common_name.map(str::to_owned), names.collect()))
    }

    fn made(common: Option<&str>, names: &[(u8, String)], year: i32) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "Plant");
        if let Some(name) = common {
            params.distinguished_name.push(DnType::CommonName, name);
        }
        params.not_after = rcgen::date_time_ymd(year, 2, 28);
        params.subject_alt_names = names
            .iter()
            .filter_map(|(kind, text)| {
                let text = text.as_str().try_into().ok()?;
                Some(match kind {
                    0 => SanType::Rfc822Name(text),
                    1 => SanType::DnsName(text),
                    2 => SanType::URI(text),
                    _ => SanType::IpAddress([127, 0, 0, 1].into()),
                })
            })
            .collect();
        let key = KeyPair::generate().expect("key");
        params.self_signed(&key).expect("certificate").der().to_vec()
    }

    /// The same certificate with one letter of its alternative names changed into other bytes.
    fn with_bytes(der: &[u8], letter: u8, bytes: [u8; 2]) -> Vec<u8> {
        let at = der.windows(2).position(|two| two == [letter, letter]).expect("it has the letter twice");
        [&der[..at], &bytes, &der[at + 2..]].concat()
    }

    #[test]
    fn names_beyond_ascii_are_read_and_what_is_no_text_hides_no_other_name() {
        let der = made(None, &[(2, "urn:prQQfstand".into()), (2, "forebay:environment:test".into())], 2030);
        let umlaut = with_bytes(&der, b'Q', "ü".as_bytes().try_into().expect("two bytes"));
        let names = |der: &[u8]| read(der).expect("reads").2;
        let environment = ('u', "forebay:environment:test".to_owned());
        assert_eq!(names(&umlaut), [('u', "urn:prüfstand".to_owned()), environment.clone()]);
        assert_eq!(read(&umlaut), judge(&umlaut));
        assert_eq!(names(&with_bytes(&der, b'Q', [0xff, 0xfe])), [environment]);
    }

    proptest! {
        #[test]
        fn it_reads_what_a_library_reads(
            common in proptest::option::of("\\PC{0,200}"),
            names in prop::collection::vec((0..4_u8, "[a-z:@.]{1,40}"), 0..5),
            year in 1950..9999,
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
        ) {
            let mut der = made(common.as_deref(), &names, year);
            prop_assert!(read(&der).is_some());
            prop_assert_eq!(read(&der), judge(&der));
            for (at, byte) in changes {
                let at = at.index(der.len());
                der[at] = byte;
            }
            // It may be the stricter of the two, and says nothing else; the library gives up all names for one of a
            // kind that is not read here.
            if let (Some(read), Some(judged)) = (read(&der), judge(&der)) {
                prop_assert_eq!(read.0, judged.0);
                prop_assert!(read.1.is_none() || read.1 == judged.1);
                prop_assert!(judged.2.is_empty() || read.2 == judged.2, "{:?} {:?}", read.2, judged.2);
            }
        }

        #[test]
        fn no_bytes_make_it_panic(der in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = Certificate::read(&der);
        }
    }
}
