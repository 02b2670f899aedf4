//! Parses the URL of a broker; an error names a valid example.

/// Host, port and transport of a broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Host name or IP address.
    pub host: String,
    /// TCP port; 8883 with TLS and 1883 without by default.
    pub port: u16,
    /// Whether the connection uses TLS.
    pub is_tls: bool,
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl Address {
    /// Parses `mqtts://host:port` or `mqtt://host:port`.
    pub fn parse(url: &str) -> Result<Self, String> {
        if let Some((_, host)) = url.rsplit_once('@') {
            // The text before the host may be a password: the error does not repeat it.
            return Err(format!(
                "\"…@{host}\" contains a login; use user and password_file instead; expected \"mqtts://host:8883\""
            ));
        }
        let wrong = || {
            format!(
                "\"{url}\" is not a broker URL; expected \"mqtts://host:8883\", or \"mqtt://host:1883\" without TLS"
            )
        };
        let (scheme, rest) = url.split_once("://").ok_or_else(wrong)?;
        let is_tls = match scheme {
            "mqtts" => true,
            "mqtt" => false,
            _ => return Err(wrong()),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = match rest.rsplit_once(':') {
            Some((host, port)) if !host.ends_with(':') && !port.contains(']') => {
                (host, port.parse().map_err(|_| wrong())?)
            }
            _ => (rest, if is_tls { 8883 } else { 1883 }),
        };
        let host = host.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(host);
        if host.is_empty() || host.contains(['/', '@', ' ']) {
            return Err(wrong());
        }
        Ok(Self { host: host.to_owned(), port, is_tls })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_or_refused_with_an_example() {
        let check = |url: &str, host: &str, port: u16, is_tls: bool| {
            assert_eq!(Address::parse(url), Ok(Address { host: host.into(), port, is_tls }), "{url}");
        };
        check("mqtts://central.example.com:8884", "central.example.com", 8884, true);
        check("mqtt://10.0.0.1", "10.0.0.1", 1883, false);
        check("mqtts://[::1]:8883/", "::1", 8883, true);
        check("mqtts://[::1]", "::1", 8883, true);
        for wrong in ["central:8883", "http://x", "mqtts://", "mqtts://a:b"] {
            let error = Address::parse(wrong).expect_err(wrong);
            assert!(error.contains(wrong) && error.contains("mqtts://host:8883"), "{error}");
        }
        let error = Address::parse("mqtts://user:sesame@host").expect_err("a login");
        assert!(error.contains("…@host") && error.contains("password_file") && !error.contains("sesame"), "{error}");
    }
}
