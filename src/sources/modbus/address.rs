//! The address of a bus: a host and port, or a serial port.

use crate::tls::{self, ClientFiles};
use serde::Deserialize;
use std::fmt;
use std::path::PathBuf;

/// Address and transport of a bus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    Tcp(String),
    /// Modbus/TCP Security: Modbus/TCP within TLS.
    Tls(String),
    /// RTU frames over TCP, as serial device servers forward them.
    RtuOverTcp(String),
    /// RTU frames over a serial port.
    Serial(PathBuf),
}

const TCP_PORT: u16 = 502;
const TLS_PORT: u16 = 802;

impl Address {
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some((_, host)) = text.rsplit_once('@') {
            // The part before `@` may contain a password.
            return Err(format!(
                "\"…@{host}\" holds a login, which Modbus does not know; expected one such as \"tcp://10.0.0.5:502\""
            ));
        }
        let wrong = |why: &str| {
            format!(
                "\"{text}\" leads to no bus: {why}; expected one such as \"tcp://10.0.0.5:502\", \"tls://plc.example:802\", \"rtu-tcp://10.0.0.6:4001\" or \"rtu:/dev/ttyUSB0\""
            )
        };
        if let Some(path) = text.strip_prefix("rtu:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return match path.starts_with('/') && path.len() > 1 {
                true => Ok(Self::Serial(path.into())),
                false => Err(wrong("a serial port has a path that begins with \"/\"")),
            };
        }
        let (scheme, rest) = text.split_once("://").ok_or_else(|| wrong("it has no scheme"))?;
        let with_port = |default: Option<u16>| host_and_port(rest, default).map_err(|why| wrong(&why));
        match scheme {
            "tcp" => with_port(Some(TCP_PORT)).map(Self::Tcp),
            "tls" => with_port(Some(TLS_PORT)).map(Self::Tls),
            "rtu-tcp" => with_port(None).map(Self::RtuOverTcp),
            _ => Err(wrong(&format!("\"{scheme}\" is no scheme that is known"))),
        }
    }

    /// Whether answers have no transaction number: they do not say to which request they belong.
    pub fn is_anonymous(&self) -> bool {
        matches!(self, Self::Serial(_) | Self::RtuOverTcp(_))
    }

    /// Host and port; `None` for a serial port. The host has no brackets: the resolver takes the zone of an IPv6 address
    /// (`fe80::1%eth0`) without them only.
    pub fn place(&self) -> Option<(&str, u16)> {
        match self {
            Self::Tcp(at) | Self::Tls(at) | Self::RtuOverTcp(at) => {
                let (host, port) = at.rsplit_once(':')?;
                Some((host.trim_matches(['[', ']']), port.parse().ok()?))
            }
            Self::Serial(_) => None,
        }
    }

    /// The host that the server's certificate has to name.
    pub fn host(&self) -> &str {
        self.place().map_or("", |(host, _)| host)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(at) => write!(f, "tcp://{at}"),
            Self::Tls(at) => write!(f, "tls://{at}"),
            Self::RtuOverTcp(at) => write!(f, "rtu-tcp://{at}"),
            Self::Serial(path) => write!(f, "rtu:{}", path.display()),
        }
    }
}

fn host_and_port(text: &str, default: Option<u16>) -> Result<String, String> {
    let has_port = match text.strip_prefix('[') {
        Some(rest) => rest.contains("]:"),
        None => text.contains(':'),
    };
    let whole = match (has_port, default) {
        (true, _) => text.to_owned(),
        (false, Some(port)) => format!("{text}:{port}"),
        (false, None) => return Err("it has no port".into()),
    };
    let (host, port) = whole.rsplit_once(':').unwrap_or((&whole, ""));
    let is_bracketed = host.starts_with('[') && host.ends_with(']');
    if host.is_empty() || host.contains(['/', '@', ' ']) || (host.contains(':') && !is_bracketed) {
        return Err("it names no host".into());
    }
    match port.parse::<u16>() {
        Ok(1..) => Ok(whole),
        _ => Err(format!("\"{port}\" is no port")),
    }
}

/// Settings of a serial port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Serial {
    /// Bits per second.
    #[serde(default = "baud")]
    pub baud: u32,
    #[serde(default)]
    pub parity: Parity,
    /// 1 or 2; by default 1, or 2 without parity, as the Modbus standard requires.
    pub stop_bits: Option<u8>,
}

fn baud() -> u32 {
    19_200
}

impl Default for Serial {
    fn default() -> Self {
        Self { baud: baud(), parity: Parity::default(), stop_bits: None }
    }
}

/// Parity of a serial port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Parity {
    /// The default of the Modbus standard.
    #[default]
    Even,
    Odd,
    None,
}

impl Serial {
    /// Checks the values. The error is the key and the reason.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        if !(300..=4_000_000).contains(&self.baud) {
            return Err(("baud", format!("{} is out of bounds; 300 to 4000000 are allowed", self.baud)));
        }
        if let Some(bits) = self.stop_bits.filter(|bits| !(1..=2).contains(bits)) {
            return Err(("stop_bits", format!("{bits} is not allowed; 1 and 2 are")));
        }
        Ok(())
    }
}

/// Checks an address against the serial and TLS settings. The error is the key and the reason.
pub fn check(url: &str, serial: Option<&Serial>, files: &ClientFiles) -> Result<Address, (&'static str, String)> {
    let address = Address::parse(url).map_err(|message| ("url", message))?;
    let is_serial = matches!(address, Address::Serial(_));
    if let Some(serial) = serial {
        if !is_serial {
            return Err(("serial", format!("is set, but \"{url}\" is no serial port; remove it")));
        }
        serial.check().map_err(|(key, message)| ("serial", format!("{key}: {message}")))?;
    }
    match address {
        Address::Tls(_) => tls::client(files).map(|_| ()).map_err(|error| ("tls", error.to_string()))?,
        _ if files.is_set() => {
            return Err(("tls", format!("is set, but \"{url}\" speaks no TLS; use tls://, or remove tls")));
        }
        _ => {}
    }
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_hosts_or_serial_ports() {
        let check = |text: &str, wanted: &str| {
            assert_eq!(Address::parse(text).map(|address| address.to_string()).as_deref(), Ok(wanted), "{text}");
        };
        check("tcp://10.0.0.5", "tcp://10.0.0.5:502");
        check("tls://plc.example", "tls://plc.example:802");
        check("tcp://[fe80::1]:1502", "tcp://[fe80::1]:1502");
        check("rtu-tcp://10.0.0.6:4001", "rtu-tcp://10.0.0.6:4001");
        check("rtu:///dev/ttyUSB0", "rtu:/dev/ttyUSB0");
        check("rtu:/dev/ttyUSB0", "rtu:/dev/ttyUSB0");
        for wrong in
            ["10.0.0.5", "udp://a:1", "tcp://", "tcp://a:0", "tcp://a:x", "rtu-tcp://a", "rtu:ttyUSB0", "tcp://a b:1"]
        {
            let message = Address::parse(wrong).expect_err(wrong);
            assert!(message.contains("leads to no bus"), "{message}");
        }
    }
}
