//! The proxy between the gateway and a broker: HTTP with CONNECT, or SOCKS5.
//!
//! Invariant: the proxy resolves the name of the broker, because a plant behind a proxy often resolves no outside names.

use super::address::{authority, host_and_port, refuse_login};
use crate::http::{self, TunnelError};
use crate::secret::Secret;
use crate::setting::Findings;
use crate::tls::NamedFile;
use serde::Deserialize;
use std::path::PathBuf;
use tokio::net::TcpStream;
use tokio_socks::Error as SocksError;
use tokio_socks::tcp::Socks5Stream;

/// The settings of a proxy.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proxy {
    /// `http://host:port` for CONNECT, or `socks5://host:port`.
    pub url: String,
    pub user: Option<String>,
    /// File that holds the password.
    pub password_file: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProxyKind {
    Http,
    Socks5,
}

/// Where a proxy is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ProxyAddress {
    pub(super) kind: ProxyKind,
    pub(super) host: String,
    pub(super) port: u16,
}

impl std::fmt::Display for ProxyAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&authority(&self.host, self.port))
    }
}

const EXPECTED: &str = "expected \"http://host:3128\" or \"socks5://host:1080\"";
/// Longest user name and password of SOCKS5 (RFC 1929), in bytes.
const SOCKS_LOGIN_BYTES_MAX: usize = 255;
/// Longest host name of SOCKS5 (RFC 1928), in bytes.
const SOCKS_HOST_BYTES_MAX: usize = 255;

impl ProxyAddress {
    pub(super) fn parse(url: &str) -> Result<Self, String> {
        refuse_login(url, "user and password_file of proxy", EXPECTED)?;
        let wrong = |why: &str| format!("\"{url}\" is not a proxy URL: {why}; {EXPECTED}");
        let (scheme, rest) = url.split_once("://").ok_or_else(|| wrong("it has no scheme"))?;
        let (kind, port) = match scheme.to_ascii_lowercase().as_str() {
            "http" => (ProxyKind::Http, 3128),
            "socks5" => (ProxyKind::Socks5, 1080),
            "socks5h" => return Err(wrong("write socks5; the proxy resolves names in any case")),
            "https" => {
                return Err(wrong(
                    "TLS to the proxy itself is not supported; the link has TLS of its own inside the tunnel",
                ));
            }
            _ => return Err(wrong(&format!("\"{scheme}\" is no scheme of a proxy"))),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = host_and_port(rest, port).map_err(|why| wrong(&why))?;
        Ok(Self { kind, host, port })
    }
}

impl Proxy {
    /// Returns host and port.
    pub(crate) fn place(&self) -> Result<(String, u16), String> {
        ProxyAddress::parse(&self.url).map(|address| (address.host, address.port))
    }

    /// The file that the settings name, with its key in the part.
    pub fn file(&mut self) -> Option<NamedFile<'_>> {
        self.password_file.as_mut().map(|file| NamedFile::Secret("proxy.password_file", file))
    }

    /// Checks the settings, and reads the password.
    pub fn check(&self, found: &mut Findings<'_>) {
        let address = match ProxyAddress::parse(&self.url) {
            Ok(address) => address,
            Err(message) => return found.problem("proxy.url", message),
        };
        match (&self.user, &self.password_file) {
            (None, None) => {}
            (Some(user), Some(file)) => {
                if let Err(message) = check_login(user, address.kind) {
                    found.problem("proxy.user", message);
                } else if address.kind == ProxyKind::Http && user.contains(':') {
                    found.problem(
                        "proxy.user",
                        format!("\"{user}\" contains \":\", which the login of HTTP cannot carry"),
                    );
                }
                match Secret::read(file) {
                    Err(error) => found.problem("proxy.password_file", error.to_string()),
                    Ok(secret) => {
                        let password = secret.line().ok_or("is not UTF-8".to_owned());
                        let checked = password.and_then(|password| check_login(password, address.kind));
                        if checked.is_err() {
                            // The password is not repeated.
                            let message = format!("{}: {PASSWORD_ALLOWED}", file.display());
                            found.problem("proxy.password_file", message);
                        }
                    }
                }
            }
            _ => found.problem("proxy.user", "user and password_file go together; one of them is missing"),
        }
    }
}

const PASSWORD_ALLOWED: &str =
    "the password is not usable: one line of UTF-8 without control characters is allowed, for SOCKS5 of 1 to 255 bytes";

fn check_login(text: &str, kind: ProxyKind) -> Result<(), String> {
    if text.chars().any(char::is_control) {
        return Err("contains a control character".into());
    }
    if kind == ProxyKind::Socks5 && !(1..=SOCKS_LOGIN_BYTES_MAX).contains(&text.len()) {
        return Err(format!("has {} bytes; SOCKS5 allows 1 to {SOCKS_LOGIN_BYTES_MAX}", text.len()));
    }
    Ok(())
}

/// Asks the proxy at the other end of `stream` for a tunnel to `host` and `port`. The error says why there is none. Safe
/// to drop half-way.
pub(super) async fn tunnel(
    stream: TcpStream,
    kind: ProxyKind,
    (host, port): (&str, u16),
    login: Option<(&str, &str)>,
) -> Result<TcpStream, String> {
    match kind {
        ProxyKind::Http => {
            let tunnel = http::connect(stream, &authority(host, port), login).await;
            tunnel.map_err(|error| match (&error, login) {
                (TunnelError::Login(_), Some((user, _))) => format!(
                    "the proxy does not accept the login of \"{user}\" ({error}); it must offer Basic, and user and password_file of proxy must be right"
                ),
                (TunnelError::Login(_), None) => format!("the proxy refuses: {error}; set user and password_file of proxy"),
                _ => format!("the proxy refuses: {error}"),
            })
        }
        ProxyKind::Socks5 => {
            if host.len() > SOCKS_HOST_BYTES_MAX {
                return Err(format!("the host has {} bytes; SOCKS5 allows {SOCKS_HOST_BYTES_MAX}", host.len()));
            }
            let tunnel = match login {
                None => Socks5Stream::connect_with_socket(stream, (host, port)).await,
                Some((user, password)) => {
                    Socks5Stream::connect_with_password_and_socket(stream, (host, port), user, password).await
                }
            };
            tunnel.map(Socks5Stream::into_inner).map_err(|error| socks_reason(&error, login.is_some()))
        }
    }
}

fn socks_reason(error: &SocksError, has_login: bool) -> String {
    match error {
        SocksError::NoAcceptableAuthMethods if has_login => "the proxy accepts no login with user and password".into(),
        SocksError::NoAcceptableAuthMethods => "the proxy wants a login; set user and password_file of proxy".into(),
        SocksError::PasswordAuthFailure(_) => {
            "the proxy does not accept the login; user and password_file of proxy must be right".into()
        }
        SocksError::ConnectionNotAllowedByRuleset => {
            "the rules of the proxy forbid this host or port; its administrator can allow it".into()
        }
        SocksError::GeneralSocksServerFailure => {
            "the proxy cannot connect to the broker (general failure): perhaps it does not resolve its name".into()
        }
        SocksError::HostUnreachable => "the proxy cannot reach the broker, or does not resolve its name".into(),
        SocksError::NetworkUnreachable => "the proxy has no route to the broker".into(),
        SocksError::ConnectionRefused => "the broker refuses the connection of the proxy; check the port in url".into(),
        SocksError::InvalidResponseVersion => "it answers in another protocol: it is no SOCKS5 proxy".into(),
        error => format!("the proxy refuses: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_are_read_or_refused_with_an_example() {
        let check = |url: &str, kind, host: &str, port| {
            assert_eq!(ProxyAddress::parse(url), Ok(ProxyAddress { kind, host: host.into(), port }), "{url}");
        };
        check("http://proxy.plant:8080", ProxyKind::Http, "proxy.plant", 8080);
        check("http://proxy", ProxyKind::Http, "proxy", 3128);
        check("socks5://[2001:db8::1]:1081/", ProxyKind::Socks5, "2001:db8::1", 1081);
        check("socks5://10.0.0.1", ProxyKind::Socks5, "10.0.0.1", 1080);
        for (wrong, why) in [
            ("proxy:3128", "no scheme"),
            ("https://proxy", "not supported"),
            ("socks5h://proxy", "write socks5"),
            ("socks4://proxy", "no scheme of a proxy"),
            ("http://proxy:0", "is no port"),
            ("http://proxy/path", "is no host name"),
            ("http://", "host is missing"),
        ] {
            let error = ProxyAddress::parse(wrong).expect_err(wrong);
            assert!(error.contains(wrong) && error.contains(why) && error.contains("http://host:3128"), "{error}");
        }
        let error = ProxyAddress::parse("http://me:sesame@proxy:3128").expect_err("a login");
        assert!(error.contains("password_file of proxy") && !error.contains("sesame"), "{error}");
    }
}
