//! The MQTT client ids of a destination. A broker disconnects a client when another one with its id connects, so that
//! each connection has an id of its own.

use crate::contract::GatewayNames;
use crate::link::check_client_id;
use serde::Deserialize;
use std::collections::BTreeMap;

/// Connections of a destination besides those of the lanes.
pub const CONNECTIONS: [&str; 2] = ["again", "status"];

/// The connection on which a destination sends commands, if it does.
pub const COMMANDS: &str = "commands";

/// What stands for the name of the connection in a client id.
const CONNECTION: &str = "{connection}";

/// The setting `client_id`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged, expecting = "expected a text with {connection} in it, or a table with an id for each connection")]
pub enum ClientIds {
    /// An id with `{connection}` in it.
    Pattern(String),
    /// An id for each connection, by name.
    Each(BTreeMap<String, String>),
}

/// The settings from which the client ids of a destination follow.
#[derive(Clone, Copy, Debug)]
pub struct ClientIdSettings<'a> {
    pub destination: &'a str,
    pub client_id: Option<&'a ClientIds>,
    pub prefix: Option<&'a str>,
}

impl ClientIdSettings<'_> {
    /// Returns the client id of a connection: a lane, `again` or `status`.
    pub fn of(&self, connection: &str, around: &GatewayNames) -> String {
        let GatewayNames { environment, site, gateway, .. } = around;
        let own = || format!("forebay-{environment}-{site}-{gateway}-{}-{connection}", self.destination);
        match (self.client_id, self.prefix) {
            (Some(ClientIds::Pattern(pattern)), _) => pattern.replace(CONNECTION, connection),
            // A lane that was removed and still has events is in no table.
            (Some(ClientIds::Each(ids)), _) => ids.get(connection).cloned().unwrap_or_else(own),
            (None, Some(prefix)) => format!("{prefix}-{connection}"),
            (None, None) => own(),
        }
    }

    /// Checks the settings of the client ids. `connections` are the lanes and [`CONNECTIONS`].
    pub fn check(&self, connections: &[String]) -> Result<(), (String, String)> {
        let refuse = |key: &str, message: String| Err((key.to_owned(), message));
        match (self.client_id, self.prefix) {
            (Some(_), Some(_)) => refuse(
                "client_id_prefix",
                "client_id and client_id_prefix exclude each other; remove one of them".into(),
            ),
            (None, None) => Ok(()),
            (None, Some(prefix)) => check_client_id(prefix).or_else(|message| refuse("client_id_prefix", message)),
            (Some(ClientIds::Pattern(pattern)), None) if !pattern.contains(CONNECTION) => refuse(
                "client_id",
                format!(
                    "\"{pattern}\" would be the id of {} connections, and each would disconnect the other; write \"{pattern}-{CONNECTION}\", or a table with an id for each of {}",
                    connections.len(),
                    connections.join(", ")
                ),
            ),
            (Some(ClientIds::Pattern(pattern)), None) => {
                check_client_id(pattern).or_else(|message| refuse("client_id", message))
            }
            (Some(ClientIds::Each(ids)), None) => check_each(ids, connections),
        }
    }
}

fn check_each(ids: &BTreeMap<String, String>, connections: &[String]) -> Result<(), (String, String)> {
    let all = connections.join(", ");
    for (connection, id) in ids {
        let key = format!("client_id.{connection}");
        if !connections.contains(connection) {
            return Err((key, format!("there is no connection \"{connection}\"; the connections are {all}")));
        }
        if let Some((other, _)) = ids.iter().find(|(other, same)| *other != connection && *same == id) {
            let message = format!("\"{id}\" is the id of \"{other}\" too; each would disconnect the other");
            return Err((key, message));
        }
        check_client_id(id).map_err(|message| (key, message))?;
    }
    match connections.iter().find(|connection| !ids.contains_key(*connection)) {
        Some(missing) => Err(("client_id".into(), format!("\"{missing}\" has no id; each of {all} needs one"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forward::Config;

    fn config(lines: &str) -> Config {
        toml::from_str(&format!("name = \"central\"\nurl = \"mqtt://a\"\n{lines}")).expect("parses")
    }

    #[test]
    fn each_connection_has_an_id_of_its_own_or_the_settings_are_refused() {
        let around = GatewayNames {
            environment: "test".into(),
            site: "plant".into(),
            gateway: "gw".into(),
            ..GatewayNames::default()
        };
        let connections = ["bulk", "again", "status"].map(str::to_owned);
        let id = |lines: &str| {
            let config = config(lines);
            assert_eq!(config.client_ids().check(&connections), Ok(()), "{lines}");
            config.client_ids().of("bulk", &around)
        };
        assert_eq!(id(""), "forebay-test-plant-gw-central-bulk");
        assert_eq!(id("client_id_prefix = \"acme\""), "acme-bulk");
        assert_eq!(id("client_id = \"acme/{connection}/1\""), "acme/bulk/1");
        assert_eq!(id("client_id = { bulk = \"t1\", again = \"t2\", status = \"t3\" }"), "t1");
        let long = "x".repeat(65_000);
        for (lines, why) in [
            ("client_id = \"acme\"", "would be the id of 3 connections"),
            ("client_id = \"\"", "would be the id of"),
            ("client_id = \"a\\u0000{connection}\"", "control character"),
            ("client_id_prefix = \"\"", "is no client id"),
            (&format!("client_id_prefix = \"{long}\""), "bytes"),
            ("client_id_prefix = \"a\"\nclient_id = \"{connection}\"", "exclude each other"),
            ("client_id = { bulk = \"t1\", again = \"t2\" }", "\"status\" has no id"),
            ("client_id = { bulk = \"t1\", again = \"t1\", status = \"t3\" }", "too; each would disconnect"),
            (
                "client_id = { bulks = \"t1\" }",
                "there is no connection \"bulks\"; the connections are bulk, again, status",
            ),
        ] {
            let (_, message) = config(lines).client_ids().check(&connections).expect_err(lines);
            assert!(message.contains(why), "{message}");
        }
    }
}
