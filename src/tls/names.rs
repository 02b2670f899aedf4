//! The alternative names of a certificate's subject (RFC 5280, section 4.2.1.6).
//!
//! Promise: either all names of a certificate are valid, or none is used. `x509-parser` drops the whole list if its
//! encoding is broken, and keeps a name that is not UTF-8 as [`GeneralName::Invalid`]. A malformed name may be an
//! important one, such as the environment of the certificate.

use x509_parser::prelude::{GeneralName, X509Certificate};

/// Reason for rejecting bytes that are not a certificate.
pub(super) const NO_CERTIFICATE: &str = "is no certificate as X.509 wants it (DER, RFC 5280)";

/// A certificate has a malformed alternative name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "has a malformed alternative name (subjectAltName, DER and UTF-8 are allowed), and so none of its names counts"
)]
pub(super) struct MalformedName;

/// Returns the alternative names of a certificate; an empty list if it has none.
pub(super) fn alternative_names<'c, 'a>(
    certificate: &'c X509Certificate<'a>,
) -> Result<&'c [GeneralName<'a>], MalformedName> {
    let names = match certificate.subject_alternative_name() {
        Ok(found) => found.map_or(&[][..], |found| &found.value.general_names),
        Err(_) => return Err(MalformedName),
    };
    let is_malformed = names.iter().any(|name| matches!(name, GeneralName::Invalid(..)));
    if is_malformed { Err(MalformedName) } else { Ok(names) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rcgen::{CertificateParams, CustomExtension, KeyPair};
    use x509_parser::prelude::FromDer;

    const DNS: u8 = 0x82;
    const URI: u8 = 0x86;

    /// Encodes one name with a length in short form.
    fn name(tag: u8, text: &[u8]) -> Vec<u8> {
        [&[tag, u8::try_from(text.len()).expect("short")], text].concat()
    }

    /// Creates a certificate whose list of alternative names has this content.
    fn certificate(list: &[u8]) -> Vec<u8> {
        let mut params = CertificateParams::default();
        let names = CustomExtension::from_oid_content(&[2, 5, 29, 17], name(0x30, list));
        params.custom_extensions.push(names);
        params.self_signed(&KeyPair::generate().expect("key")).expect("certificate").der().to_vec()
    }

    fn read(der: &[u8]) -> Result<Vec<String>, MalformedName> {
        let (_, parsed) = X509Certificate::from_der(der).expect("reads");
        Ok(alternative_names(&parsed)?.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_malformed_name_hides_no_other_name_it_refuses_them_all() {
        let (press, umlaut) = (name(DNS, b"press-4"), name(URI, "urn:prüfstand".as_bytes()));
        let texts = ["DNSName(press-4)".to_owned(), "URI(urn:prüfstand)".to_owned()];
        assert_eq!(read(&certificate(&[press.clone(), umlaut].concat())), Ok(texts.into()), "UTF-8 is common");
        assert_eq!(read(&certificate(&[])), Ok(vec![]));
        for wrong in [
            name(DNS, &[0xff, 0xfe]),
            name(URI, b"urn:\xc3"),
            // Not a tag of a name.
            name(0x89, b"x"),
            name(0x16, b"press-5"),
            // Longer than the list.
            vec![DNS, 40, b'x'],
            vec![DNS],
        ] {
            for list in [[press.clone(), wrong.clone()].concat(), [wrong.clone(), press.clone()].concat()] {
                assert_eq!(read(&certificate(&list)), Err(MalformedName), "{list:02x?}");
            }
        }
    }

    proptest! {
        #[test]
        fn no_bytes_of_a_certificate_make_it_panic(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
            noise in prop::collection::vec(any::<u8>(), 0..400),
        ) {
            let mut der = certificate(&name(DNS, b"press-4"));
            for (at, byte) in changes {
                let at = at.index(der.len());
                der[at] = byte;
            }
            for bytes in [der, noise] {
                if let Ok((_, parsed)) = X509Certificate::from_der(&bytes) {
                    let _ = alternative_names(&parsed);
                }
            }
        }
    }
}
