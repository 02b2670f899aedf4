//! The settings of a broker source, with their checks.

use crate::link::{self, Protocol, Proxy, Target, check_client_id};
use crate::mqtt::Filter;
use crate::setting::Span;
use crate::tls::ClientFiles;
use serde::Deserialize;
use std::path::PathBuf;
use std::time::Duration;

/// The configuration of a broker source.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of the source; part of every event's source.
    pub name: String,
    /// URL as [`link::Address::parse`] reads it.
    pub url: String,
    /// The proxy through which the connection goes.
    pub proxy: Option<Proxy>,
    /// Topic filters to subscribe to.
    pub topics: Vec<String>,
    #[serde(default)]
    pub tls: ClientFiles,
    #[serde(default)]
    pub protocol: Protocol,
    /// User name at the broker.
    pub user: Option<String>,
    /// File that holds the password.
    pub password_file: Option<PathBuf>,
    /// Client id; by default one that is unique to gateway and source.
    pub client_id: Option<String>,
    /// QoS of the subscriptions: 1, or 0 for messages that may be lost.
    #[serde(default = "qos")]
    pub qos: u8,
    /// Group of a shared subscription: the broker sends each message to one gateway of the group.
    pub share: Option<String>,
    /// Whether the retained messages of a new subscription become events.
    #[serde(default)]
    pub retained: bool,
    /// Whether the gateway requests rebirths of Sparkplug nodes, which publishes to the broker.
    #[serde(default)]
    pub rebirth: bool,
    /// Keep-alive interval of the connection.
    #[serde(default = "keep_alive")]
    pub keep_alive: Span,
    /// How long the broker keeps messages while the gateway is not connected (MQTT 5).
    #[serde(default = "session_expiry")]
    pub session_expiry: Span,
    #[serde(default = "receive_maximum")]
    pub receive_maximum: u16,
}

fn qos() -> u8 {
    1
}
fn keep_alive() -> Span {
    Span(Duration::from_secs(30))
}
/// A gateway that was removed must not fill the plant's broker without end.
fn session_expiry() -> Span {
    Span(Duration::from_secs(7 * 86_400))
}
fn receive_maximum() -> u16 {
    256
}

/// A restart of the gateway takes less.
const SESSION_EXPIRY_MIN: Duration = Duration::from_secs(60);
/// Time limit for the SUBACK while the connection is alive.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(30);

impl Config {
    /// Checks the values. The error is the key and the reason.
    pub(super) fn check_values(&self) -> Result<(), (&'static str, String)> {
        if self.topics.is_empty() {
            return Err(("topics", "[] is no list of topic filters; expected one or more such as \"plant/#\"".into()));
        }
        for filter in &self.topics {
            check_filter(filter).map_err(|message| ("topics", message))?;
        }
        if self.qos > 1 {
            return Err((
                "qos",
                format!("{} is not allowed; 0 and 1 are. The broker delivers QoS 2 messages with QoS 1", self.qos),
            ));
        }
        if let Some(group) = &self.share
            && (group.is_empty() || group.contains(['/', '+', '#']))
        {
            return Err(("share", format!("\"{group}\" is no group; \"/\", \"+\" and \"#\" are not allowed in it")));
        }
        if let Some(client_id) = &self.client_id {
            check_client_id(client_id).map_err(|message| ("client_id", message))?;
        }
        if self.receive_maximum == 0 {
            return Err(("receive_maximum", "0 is not allowed; 1 to 65535 are".into()));
        }
        if self.session_expiry.0 < SESSION_EXPIRY_MIN {
            return Err((
                "session_expiry",
                format!(
                    "{} is too short: the broker would forget messages at each restart; at least {} are needed",
                    self.session_expiry,
                    Span(SESSION_EXPIRY_MIN)
                ),
            ));
        }
        let allowed = Duration::from_secs(5)..=Duration::from_secs(3600);
        if !allowed.contains(&self.keep_alive.0) {
            return Err(("keep_alive", format!("{} is out of bounds; 5s to 1h are allowed", self.keep_alive)));
        }
        Ok(())
    }

    /// Two topic filters that overlap: the broker may send two copies of a message that matches both.
    pub fn overlap(&self) -> Option<(&str, &str)> {
        let parsed: Vec<_> = self.topics.iter().filter_map(|text| Some((text, Filter::parse(text)?))).collect();
        parsed.iter().enumerate().find_map(|(index, (text, filter))| {
            let (other, _) = parsed[..index].iter().find(|(_, other)| other.overlaps(filter))?;
            Some((text.as_str(), other.as_str()))
        })
    }

    /// The connection settings; the error says what is wrong with the URL or the files.
    pub fn target(&self) -> Result<Target, String> {
        Target::new(link::Config {
            urls: vec![self.url.clone()],
            proxy: self.proxy.clone(),
            tls: self.tls.clone(),
            protocol: self.protocol,
            user: self.user.clone(),
            password_file: self.password_file.clone(),
            keep_alive: self.keep_alive.0,
            answer_wait_max: ANSWER_WAIT_MAX,
        })
    }
}

fn check_filter(filter: &str) -> Result<(), String> {
    let wrong = |why: &str| Err(format!("\"{filter}\" is no topic filter: {why}"));
    if filter.is_empty() || filter.len() > 1024 || filter.contains(['\0', '{', '}']) {
        return wrong("it has 1 to 1,024 bytes, without \"{\", \"}\" and zero bytes");
    }
    if filter.starts_with("$share/") {
        return wrong("set share to the name of the group instead");
    }
    if Filter::parse(filter).is_none() {
        return wrong("\"+\" stands alone in its level, and \"#\" alone in the last one");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_those_of_mqtt() {
        for good in ["#", "+", "a/+/b", "a/#", "/a", "$SYS/#", "spBv1.0/+/NDATA/#"] {
            assert_eq!(check_filter(good), Ok(()), "{good}");
        }
        for wrong in ["", "a/#/b", "a#", "a/b+", "$share/g/a", "plant/{line}", "a\0b"] {
            let message = check_filter(wrong).expect_err(wrong);
            assert!(message.contains("is no topic filter"), "{message}");
        }
    }
}
