//! Parses the URL of a broker or of a proxy; an error names the fault and a valid example.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Host, port and transport of a broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Host name or IP address, without brackets.
    pub host: String,
    /// TCP port; by default 8883 with TLS and 1883 without, for WebSocket 443 and 80.
    pub port: u16,
    /// Whether the connection uses TLS.
    pub is_tls: bool,
    /// Path of the request that opens a WebSocket; `None` for MQTT directly over TCP or TLS.
    pub path: Option<String>,
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&authority(&self.host, self.port))
    }
}

/// Writes host and port, with an IPv6 address in brackets.
pub(crate) fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// The forms that a URL of a broker may have, for errors.
const EXPECTED: &str =
    "expected \"mqtts://host:8883\" or \"wss://host/mqtt\", or without TLS \"mqtt://host:1883\" or \"ws://host/mqtt\"";

impl Address {
    /// Parses `mqtts://host:port`, `mqtt://host:port`, `wss://host:port/path` or `ws://host:port/path`.
    pub fn parse(url: &str) -> Result<Self, String> {
        refuse_login(url, "user and password_file", EXPECTED)?;
        let wrong = |why: &str| format!("\"{url}\" is not a broker URL: {why}; {EXPECTED}");
        let (scheme, rest) = url.split_once("://").ok_or_else(|| wrong("it has no scheme"))?;
        let (is_tls, is_websocket, port) = match scheme.to_ascii_lowercase().as_str() {
            "mqtts" => (true, false, 8883),
            "mqtt" => (false, false, 1883),
            "wss" => (true, true, 443),
            "ws" => (false, true, 80),
            _ => return Err(wrong(&format!("\"{scheme}\" is no scheme of a broker"))),
        };
        let (place, path) = match rest.find(['/', '?', '#']) {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let (host, port) = host_and_port(place, port).map_err(|why| wrong(&why))?;
        if !is_websocket && !matches!(path, "" | "/") {
            return Err(wrong(&format!("MQTT over TCP has no path \"{path}\"; a WebSocket (wss://) has one")));
        }
        if path.contains('#') || path.bytes().any(|byte| !byte.is_ascii_graphic()) {
            return Err(wrong("a path has printable ASCII characters only, and no \"#\""));
        }
        let path = is_websocket.then(|| if path.starts_with('/') { path.to_owned() } else { format!("/{path}") });
        Ok(Self { host, port, is_tls, path })
    }

    /// Whether both are certainly one broker: the same port of the same host, however the host is written.
    pub fn is_same_broker(&self, other: &Self) -> bool {
        self.canonical() == other.canonical()
    }

    /// Host and port in the one form that all spellings have.
    pub fn canonical(&self) -> String {
        authority(&canonical(&self.host), self.port)
    }

    /// Whether the host is this machine.
    pub fn is_local(&self) -> bool {
        canonical(&self.host) == LOCAL
    }
}

/// Refuses a URL with a login. The text before the host may be a password: the error does not repeat it.
pub(super) fn refuse_login(url: &str, instead: &str, expected: &str) -> Result<(), String> {
    match url.rsplit_once('@') {
        Some((_, host)) => Err(format!("\"…@{host}\" contains a login; use {instead} instead; {expected}")),
        None => Ok(()),
    }
}

/// Splits `host:port`, `host` or `[address]:port`. The error says what is wrong.
pub(super) fn host_and_port(text: &str, default_port: u16) -> Result<(String, u16), String> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, rest) = rest.split_once(']').ok_or("the \"]\" behind the IPv6 address is missing")?;
            // The zone behind "%" names an interface; the address in front of it is checked.
            let bare = address.split('%').next().unwrap_or_default();
            bare.parse::<Ipv6Addr>().map_err(|_| format!("\"{address}\" is no IPv6 address"))?;
            let port = match rest {
                "" => None,
                rest => Some(rest.strip_prefix(':').ok_or_else(|| format!("\"{rest}\" is no port"))?),
            };
            (address, port)
        }
        None if text.matches(':').count() > 1 => {
            return Err("an IPv6 address stands in brackets, such as \"[2001:db8::1]\"".into());
        }
        None => {
            let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
            check_host(host)?;
            (host, port)
        }
    };
    let port = match port {
        None => default_port,
        Some(text) => match text.parse() {
            Ok(port) if port > 0 && text.bytes().all(|byte| byte.is_ascii_digit()) => port,
            _ => return Err(format!("\"{text}\" is no port; 1 to 65535 are")),
        },
    };
    Ok((host.to_owned(), port))
}

/// Checks a host name (RFC 1123, with "_", which local names have) or an IPv4 address.
fn check_host(host: &str) -> Result<(), String> {
    let is_label = |label: &str| {
        let is_good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        (1..=63).contains(&label.len()) && label.bytes().all(is_good)
    };
    if host.is_empty() {
        return Err("the host is missing".into());
    }
    let name = host.strip_suffix('.').unwrap_or(host);
    if name.len() > 253 || !name.split('.').all(is_label) {
        return Err(format!("\"{host}\" is no host name; letters, digits, \"-\" and \".\" are allowed"));
    }
    let is_number = name.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
    if is_number && name.parse::<Ipv4Addr>().is_err() {
        return Err(format!("\"{host}\" is no IPv4 address"));
    }
    Ok(())
}

/// What all names and addresses of this machine become.
const LOCAL: &str = "localhost";

/// A host in the one form that all its spellings have. Names are not looked up.
fn canonical(host: &str) -> String {
    let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    match name.parse::<IpAddr>().map(|address| address.to_canonical()) {
        Ok(address) if address.is_loopback() => LOCAL.into(),
        Ok(address) => address.to_string(),
        Err(_) if matches!(name.as_str(), "localhost" | "localhost.localdomain" | "ip6-localhost" | "ip6-loopback") => {
            LOCAL.into()
        }
        Err(_) => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(url: &str) -> Address {
        Address::parse(url).unwrap_or_else(|error| panic!("{url}: {error}"))
    }

    #[test]
    fn urls_are_read_or_refused_with_an_example() {
        let check = |url: &str, host: &str, port: u16, is_tls: bool, path: Option<&str>| {
            let wanted = Address { host: host.into(), port, is_tls, path: path.map(str::to_owned) };
            assert_eq!(Address::parse(url), Ok(wanted), "{url}");
        };
        check("mqtts://central.example.com:8884", "central.example.com", 8884, true, None);
        check("mqtt://10.0.0.1", "10.0.0.1", 1883, false, None);
        check("mqtts://[::1]:8883/", "::1", 8883, true, None);
        check("MQTTS://[fe80::1%eth0]", "fe80::1%eth0", 8883, true, None);
        check("mqtt://plant_broker", "plant_broker", 1883, false, None);
        check("wss://central.example.com/mqtt", "central.example.com", 443, true, Some("/mqtt"));
        check("wss://[2001:db8::7]:8443/a/b?tenant=7", "2001:db8::7", 8443, true, Some("/a/b?tenant=7"));
        check("wss://central?x=1", "central", 443, true, Some("/?x=1"));
        check("ws://10.0.0.1", "10.0.0.1", 80, false, Some("/"));
        for (wrong, why) in [
            ("central:8883", "no scheme"),
            ("http://x", "no scheme of a broker"),
            ("mqtts://", "host is missing"),
            ("mqtts://:8883", "host is missing"),
            ("mqtts://a:b", "\"b\" is no port"),
            ("mqtts://a:", "\"\" is no port"),
            ("mqtts://a:0", "\"0\" is no port"),
            ("mqtts://a:+80", "is no port"),
            ("mqtts://a:65536", "is no port"),
            ("mqtts://a b", "is no host name"),
            ("mqtts://a..b", "is no host name"),
            ("mqtts://256.1.1.1", "is no IPv4 address"),
            ("mqtts://10.0.1", "is no IPv4 address"),
            ("mqtts://::1", "in brackets"),
            ("mqtts://2001:db8::1:8883", "in brackets"),
            ("mqtts://[::1", "\"]\""),
            ("mqtts://[::g]", "is no IPv6 address"),
            ("mqtts://[::1]8883", "is no port"),
            ("mqtts://host/mqtt", "has no path"),
            ("mqtt://host?x", "has no path"),
            ("wss://host/a b", "printable"),
            ("wss://host/mqtt#x", "no \"#\""),
        ] {
            let error = Address::parse(wrong).expect_err(wrong);
            assert!(error.contains(wrong) && error.contains(why) && error.contains("mqtts://host:8883"), "{error}");
        }
        for url in ["mqtts://user:sesame@host", "wss://user:sesame/@host/mqtt"] {
            let error = Address::parse(url).expect_err("a login");
            assert!(
                error.contains("…@host") && error.contains("password_file") && !error.contains("sesame"),
                "{error}"
            );
        }
    }

    #[test]
    fn an_address_is_written_so_that_it_can_be_read_again() {
        for url in ["mqtts://[2001:db8::7]:8884", "mqtt://10.0.0.1:1883", "mqtt://[fe80::1%eth0]:1"] {
            assert_eq!(parsed(&format!("mqtts://{}", parsed(url))).to_string(), parsed(url).to_string());
        }
    }

    #[test]
    fn one_broker_is_recognised_in_each_spelling() {
        let one = [
            ["mqtts://central.example.com", "wss://CENTRAL.example.com.:8883/mqtt"],
            ["mqtt://127.0.0.1:1884", "mqtt://localhost:1884"],
            ["mqtt://localhost", "mqtt://[::1]:1883"],
            ["mqtt://127.0.0.1", "mqtt://127.0.1.1"],
            ["mqtt://10.0.0.7", "mqtt://[::ffff:10.0.0.7]"],
            ["mqtt://[2001:db8:0:0::7]", "mqtt://[2001:DB8::7]"],
        ];
        for [a, b] in one {
            assert!(parsed(a).is_same_broker(&parsed(b)), "{a} {b}");
        }
        for [a, b] in [["mqtt://localhost:1883", "mqtt://localhost:1884"], ["mqtt://a.example", "mqtt://b.example"]] {
            assert!(!parsed(a).is_same_broker(&parsed(b)), "{a} {b}");
        }
    }
}
