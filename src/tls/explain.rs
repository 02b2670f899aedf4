//! Why a TLS connection to a server failed, in a sentence that says what to do.

use super::settings::ClientFiles;
use rustls::pki_types::{ServerName, UnixTime};
use rustls::{AlertDescription, CertificateError, Error, PeerIncompatible};
use std::io;

/// Whether TLS, and not the network, is the reason for an error.
pub fn is_fault(error: &io::Error) -> bool {
    tls_error(error).is_some()
}

fn tls_error(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

/// Explains an error of a TLS handshake, or of a connection that the server ended because of our certificate. Any other
/// error keeps its own words.
pub fn explain(error: &io::Error, files: &ClientFiles) -> String {
    let Some(tls) = tls_error(error) else {
        return match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => format!(
                "the server closed the connection during the TLS handshake ({error}); perhaps this port has no TLS, or something on the way forbids it"
            ),
            io::ErrorKind::TimedOut => {
                "the server did not complete the TLS handshake in time; perhaps this port has no TLS".into()
            }
            _ => error.to_string(),
        };
    };
    match tls {
        Error::InvalidCertificate(fault) => certificate(fault, files),
        Error::AlertReceived(alert) => refusal(*alert, files),
        Error::PeerIncompatible(fault) => incompatible(fault, files),
        Error::InvalidMessage(_) => {
            "the server answers without TLS; check the port in url, or whether the URL without TLS is meant".into()
        }
        Error::NoApplicationProtocol => {
            "the server chooses none of the protocols of tls.alpn; leave tls.alpn out, or name what it wants".into()
        }
        tls => tls.to_string(),
    }
}

/// The file of authorities, in words.
fn authorities(files: &ClientFiles) -> String {
    match &files.ca {
        Some(file) => format!("tls.ca ({})", file.display()),
        None => "the authorities of the system, because tls.ca is not set".into(),
    }
}

fn certificate(fault: &CertificateError, files: &ClientFiles) -> String {
    match fault {
        CertificateError::UnknownIssuer => format!(
            "the authority that issued the server's certificate is not in {}; put its certificate into the file of tls.ca. If an intermediate authority issued it, the server has to send the certificate of that authority too, or tls.ca has to contain it",
            authorities(files)
        ),
        CertificateError::ExpiredContext { time, not_after } => format!(
            "the server's certificate expired on {} (it is {} here); its owner has to renew it",
            day(*not_after),
            day(*time)
        ),
        CertificateError::Expired => "the server's certificate has expired; its owner has to renew it".into(),
        CertificateError::NotValidYetContext { time, not_before } => format!(
            "the server's certificate is valid from {} on, and it is {} here; check the clocks of both sides",
            day(*not_before),
            day(*time)
        ),
        CertificateError::NotValidYet => "the server's certificate is not valid yet; check the clocks of both sides".into(),
        CertificateError::NotValidForNameContext { expected, presented } => {
            let name = match expected {
                ServerName::IpAddress(address) => format!("{:?}", std::net::IpAddr::from(*address)),
                name => name.to_str().into_owned(),
            };
            let renew = format!("have a certificate issued with the alternative name {name}");
            match presented.is_empty() {
                true => format!(
                    "the server's certificate has no alternative name, and a common name does not count; {renew}"
                ),
                false => format!(
                    "the server's certificate is for {}, not for {name}; use one of its names in url, set tls.server_name to one, or {renew}",
                    presented.join(", ")
                ),
            }
        }
        CertificateError::NotValidForName => {
            "the server's certificate is for other names than the host in url; set tls.server_name to one of them".into()
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "the server shows a certificate that is not for servers; it needs the extended key usage serverAuth".into()
        }
        CertificateError::Revoked => "the server's certificate is revoked; its owner has to replace it".into(),
        CertificateError::BadSignature => format!(
            "the signature of the server's certificate does not fit: an authority of the same name with another key issued it; put the present one into {}",
            authorities(files)
        ),
        CertificateError::UnsupportedSignatureAlgorithmContext { .. }
        | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            "the server's certificate, or one of its authorities, has an outdated signature such as SHA-1; have it issued again with SHA-256".into()
        }
        CertificateError::BadEncoding => "the server's certificate is malformed; have it issued again".into(),
        // webpki has no other name for it.
        CertificateError::Other(other) if format!("{other:?}").contains("CaUsedAsEndEntity") => {
            "the server shows the certificate of an authority as its own, as `openssl req -x509` makes it (CA:TRUE); issue a server certificate from it, or make one with basicConstraints CA:FALSE, see the page on TLS".into()
        }
        CertificateError::Other(other) if format!("{other:?}").contains("UnsupportedCertVersion") => {
            "the server's certificate has X.509 version 1; have one of version 3 with alternative names issued".into()
        }
        fault => format!("the server's certificate is not accepted: {fault}"),
    }
}

/// What an alert of the server means for the gateway.
fn refusal(alert: AlertDescription, files: &ClientFiles) -> String {
    let own = files.cert.as_ref().map(|file| format!("tls.cert ({})", file.display()));
    match (alert, own) {
        (AlertDescription::CertificateRequired, _) => {
            "the server wants a client certificate; set tls.cert and tls.key".into()
        }
        (AlertDescription::HandshakeFailure, None) => {
            "the server refuses the TLS handshake; it perhaps wants a client certificate (tls.cert and tls.key), or ciphers that are outdated".into()
        }
        (AlertDescription::UnknownCA, Some(own)) => {
            format!("the server does not know the authority that issued {own}; its administrator has to trust that authority")
        }
        (AlertDescription::CertificateExpired, Some(own)) => {
            format!("the server says that {own} has expired; renew it, or have the server's clock set")
        }
        (AlertDescription::CertificateRevoked, Some(own)) => format!("the server says that {own} is revoked; have a new one issued"),
        (
            AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::AccessDenied
            | AlertDescription::DecryptError,
            Some(own),
        ) => format!("the server does not accept {own} ({alert:?}); it must be for clients (clientAuth) and be registered there"),
        (AlertDescription::ProtocolVersion, _) if !files.tls12 => {
            "the server has no TLS 1.3; set tls.tls12 = true to accept TLS 1.2".into()
        }
        (AlertDescription::ProtocolVersion, _) => "the server has neither TLS 1.2 nor 1.3; it is too old".into(),
        (AlertDescription::UnrecognisedName, _) => {
            "the server does not serve the host in url; set tls.server_name to the name that it expects".into()
        }
        (AlertDescription::NoApplicationProtocol, _) => {
            "the server chooses none of the protocols of tls.alpn; leave tls.alpn out, or name what it wants".into()
        }
        (alert, _) => format!("the server ends the TLS handshake ({alert:?}); its log says why"),
    }
}

fn incompatible(fault: &PeerIncompatible, files: &ClientFiles) -> String {
    match fault {
        PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig | PeerIncompatible::ServerDoesNotSupportTls12Or13
            if !files.tls12 =>
        {
            "the server has no TLS 1.3; set tls.tls12 = true to accept TLS 1.2".into()
        }
        fault => format!(
            "the server and the gateway have no TLS parameters in common ({fault:?}); its configuration is too old or too narrow"
        ),
    }
}

/// A day and minute in UTC.
fn day(time: UnixTime) -> String {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    match jiff::Timestamp::from_second(seconds) {
        Ok(time) => time.strftime("%Y-%m-%d %H:%M UTC").to_string(),
        Err(_) => format!("second {seconds} since 1970"),
    }
}
