//! Name constraints: which names an authority may issue (RFC 5280, section 4.2.1.10).
//!
//! webpki checks DNS names against constraints on DNS names. A client's name may be of another kind, and in the RFC a
//! constraint on one kind does not restrict the others. Here it does: an authority with permitted names, none of which
//! is of the kind that identifies clients, may issue no client name.

use super::settings::NameKind;
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, GeneralName, GeneralSubtree, X509Certificate};

/// Whether the name constraints of an authority's certificate permit this name. Malformed constraints permit no name.
pub(super) fn permit(authority: &CertificateDer<'_>, kind: NameKind, name: &str) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(authority) else { return false };
    let Ok(constraints) = certificate.name_constraints() else { return false };
    let Some(constraints) = constraints.map(|found| found.value) else { return true };
    let permitted = constraints.permitted_subtrees.as_deref().unwrap_or_default();
    let excluded = constraints.excluded_subtrees.as_deref().unwrap_or_default();
    let is_within = |subtree: &GeneralSubtree<'_>| within(&subtree.base, kind, name).unwrap_or(false);
    // A name that cannot be compared with an excluded subtree counts as excluded.
    let is_excluded = |subtree: &GeneralSubtree<'_>| within(&subtree.base, kind, name).unwrap_or(true);
    (permitted.is_empty() || permitted.iter().any(is_within)) && !excluded.iter().any(is_excluded)
}

/// Whether an authority's certificate has name constraints, or cannot be read.
pub(super) fn are_in(authority: &CertificateDer<'_>) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(authority) else { return true };
    !matches!(certificate.name_constraints(), Ok(None))
}

/// Whether a name is within a subtree; `None` if they cannot be compared.
fn within(base: &GeneralName<'_>, kind: NameKind, name: &str) -> Option<bool> {
    match (base, kind) {
        // A common name is treated as a DNS name, as in certificates without alternative names.
        (GeneralName::DNSName(base), NameKind::Dns | NameKind::CommonName) => Some(is_domain_within(name, base)),
        (GeneralName::RFC822Name(base), NameKind::Email) => Some(is_mail_within(name, base)),
        (GeneralName::URI(base), NameKind::Uri) => host(name).map(|host| is_host_within(host, base)),
        (GeneralName::Invalid(..), _) => None,
        _ => Some(false),
    }
}

/// Whether a DNS name is the domain `base` or a name below it.
fn is_domain_within(name: &str, base: &str) -> bool {
    let (name, base) = (name.to_ascii_lowercase(), base.to_ascii_lowercase());
    let base = base.as_str();
    match base.strip_prefix('.') {
        _ if base.is_empty() => true,
        Some(_) => name.len() > base.len() && name.ends_with(base),
        None => name == base || name.strip_suffix(base).is_some_and(|rest| rest.ends_with('.')),
    }
}

/// Whether a host is the host `base`, or, if `base` begins with a dot, a host below it.
fn is_host_within(host: &str, base: &str) -> bool {
    if base.starts_with('.') { is_domain_within(host, base) } else { host.eq_ignore_ascii_case(base) }
}

/// Whether a mail address is the address `base`, or its host is the host `base` or, after a dot, below it.
fn is_mail_within(mail: &str, base: &str) -> bool {
    let Some((local, host)) = mail.rsplit_once('@') else { return false };
    match base.rsplit_once('@') {
        Some((base_local, base_host)) => local == base_local && host.eq_ignore_ascii_case(base_host),
        None => is_host_within(host, base),
    }
}

/// Returns the host of a URI; `None` for a URI without one, such as a URN.
fn host(uri: &str) -> Option<&str> {
    let (_, rest) = uri.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let host = host.split_once(':').map_or(host, |(host, _)| host);
    (!host.is_empty()).then_some(host)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, GeneralSubtree as Subtree, IsCa, KeyPair, NameConstraints};

    fn authority(permitted: Vec<Subtree>, excluded: Vec<Subtree>) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(vec![]).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.name_constraints = Some(NameConstraints { permitted_subtrees: permitted, excluded_subtrees: excluded });
        params.self_signed(&KeyPair::generate().expect("key")).expect("certificate").der().clone()
    }

    #[test]
    fn a_name_of_another_kind_than_the_authority_is_permitted_is_refused() {
        let dns = |text: &str| Subtree::DnsName(text.to_owned());
        let mail = |text: &str| Subtree::Rfc822Name(text.to_owned());
        let line = authority(vec![dns("line1.plant")], vec![]);
        for (kind, name, expected) in [
            (NameKind::Dns, "press-4.line1.plant", true),
            (NameKind::Dns, "LINE1.plant", true),
            (NameKind::Dns, "press-4", false),
            (NameKind::Dns, "xline1.plant", false),
            (NameKind::CommonName, "press-4", false),
            (NameKind::CommonName, "press-4.line1.plant", true),
            (NameKind::Uri, "urn:press-4", false),
            (NameKind::Uri, "https://line1.plant/x", false),
            (NameKind::Email, "press-4@line1.plant", false),
        ] {
            assert_eq!(permit(&line, kind, name), expected, "{kind:?} {name}");
        }
        let mails = authority(vec![mail("line1.plant"), mail(".line2.plant"), mail("x@line3.plant")], vec![]);
        for (name, expected) in [
            ("press-4@line1.plant", true),
            ("press-4@sub.line1.plant", false),
            ("press-4@sub.line2.plant", true),
            ("press-4@line2.plant", false),
            ("x@LINE3.plant", true),
            ("y@line3.plant", false),
            ("press-4", false),
        ] {
            assert_eq!(permit(&mails, NameKind::Email, name), expected, "{name}");
        }
        assert!(!permit(&mails, NameKind::Dns, "press-4"));
        let without = authority(vec![], vec![dns("office")]);
        assert!(permit(&without, NameKind::Dns, "press-4.plant") && !permit(&without, NameKind::Dns, "pc.office"));
        assert!(permit(&without, NameKind::Uri, "urn:press-4"), "only DNS names are excluded");
        assert!(!permit(&CertificateDer::from(vec![0x30, 3, 1]), NameKind::Dns, "x"), "what cannot be read");
    }

    #[test]
    fn a_uri_without_a_host_is_within_no_constraint() {
        for (uri, expected) in [
            ("https://press-4.plant/x", Some("press-4.plant")),
            ("https://u@press-4.plant:8443", Some("press-4.plant")),
            ("urn:press:4", None),
            ("https:///x", None),
        ] {
            assert_eq!(host(uri), expected, "{uri}");
        }
        assert!(is_host_within("a.plant", ".plant") && !is_host_within("a.plant", "plant"));
    }
}
