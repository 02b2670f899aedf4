//! What a contract does with the MQTT 5 properties of a publish: message expiry, response topic and correlation data, user
//! properties.
//!
//! Promise: a property is kept as an attribute of the event, left out, or the publish is refused; nothing else.

use crate::event::{Attribute, Timestamp};
use crate::mqtt::properties::PublishProperties;
use serde::Deserialize;
use std::time::Duration;

/// The longest value of a user property that is kept, in bytes.
const VALUE_BYTES_MAX: usize = 1024;
/// Attributes that an event has of its own, or that CloudEvents reserve.
const RESERVED: [&str; 23] = [
    "specversion",
    "id",
    "source",
    "type",
    "subject",
    "time",
    "datacontenttype",
    "dataschema",
    "data",
    "recordedtime",
    "sequence",
    "traceparent",
    "originalid",
    "violation",
    "clockstatus",
    "authtype",
    "authid",
    "expirytime",
    "responsetopic",
    "correlationdata",
    "backfill",
    "replay",
    "tracestate",
];

/// What becomes of a property.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Treatment {
    /// It becomes an attribute of the event.
    Keep,
    Drop,
    /// The publish becomes a dead letter.
    Refuse,
}

/// The section `[properties]` of a contract.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Section {
    /// Message Expiry Interval: attribute `expirytime`.
    #[serde(default = "keep")]
    expiry: Treatment,
    /// Response Topic and Correlation Data: attributes `responsetopic` and `correlationdata`.
    #[serde(default = "drop_it")]
    response: Treatment,
    /// User properties that become attributes of the same name, in lower case.
    #[serde(default)]
    user: Vec<String>,
    /// User properties that `user` does not name.
    #[serde(default = "drop_it")]
    other: Treatment,
}

fn keep() -> Treatment {
    Treatment::Keep
}
fn drop_it() -> Treatment {
    Treatment::Drop
}

impl Default for Section {
    fn default() -> Self {
        Self { expiry: keep(), response: drop_it(), user: Vec::new(), other: drop_it() }
    }
}

impl Section {
    /// Checks the section. The error is the key and what is wrong with it.
    pub(super) fn check(&self) -> Result<(), (String, String)> {
        if self.other == Treatment::Keep {
            let message = "\"keep\" is not possible for properties that nobody names; list them in user";
            return Err(("other".into(), message.into()));
        }
        for (index, name) in self.user.iter().enumerate() {
            // Names of one letter are those of the compact envelope.
            let is_good = (2..=20).contains(&name.len())
                && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
            let message = if !is_good {
                format!("\"{name}\" is no attribute of CloudEvents; expected 2 to 20 of a-z and 0-9")
            } else if RESERVED.contains(&name.as_str()) {
                format!("\"{name}\" is an attribute that events have of their own; give the property another name")
            } else if self.user[..index].contains(name) {
                format!("\"{name}\" is listed twice")
            } else {
                continue;
            };
            return Err((format!("user[{index}]"), message));
        }
        Ok(())
    }

    /// The attributes that are kept of a publish that arrived at `arrived`. The error is the reason of a dead letter.
    pub(super) fn attributes<'p>(
        &'p self,
        found: &PublishProperties<'p>,
        arrived: Timestamp,
    ) -> Result<Vec<Attribute<'p>>, String> {
        let mut kept = Vec::new();
        if let Some(seconds) = found.expiry
            && is_kept(self.expiry, "message expiry")?
        {
            kept.push(Attribute::Expires(arrived.plus(Duration::from_secs(seconds.into()))));
        }
        let response = (found.response_topic, found.correlation_data);
        if response != (None, None) && is_kept(self.response, "response topic or correlation data")? {
            kept.extend(found.response_topic.filter(|topic| !topic.is_empty()).map(Attribute::ResponseTopic));
            kept.extend(found.correlation_data.filter(|data| !data.is_empty()).map(Attribute::CorrelationData));
        }
        for (name, value) in &found.user {
            let listed = self.user.iter().find(|listed| listed.eq_ignore_ascii_case(name));
            match listed {
                Some(_) if value.len() > VALUE_BYTES_MAX => {
                    let length = value.len();
                    return Err(format!(
                        "properties: a user property is {length} bytes long; {VALUE_BYTES_MAX} are allowed"
                    ));
                }
                // An attribute is not empty, and there is one of each name: the first.
                Some(name) => {
                    let is_known = |one: &Attribute<'_>| matches!(one, Attribute::UserProperty { name: known, .. } if known == name);
                    if !value.is_empty() && !kept.iter().any(is_known) {
                        kept.push(Attribute::UserProperty { name, value });
                    }
                }
                // The gateway reads these itself.
                None if RESERVED.contains(name) => {}
                None => drop(is_kept(self.other, "a user property that it does not list")?),
            }
        }
        Ok(kept)
    }
}

fn is_kept(treatment: Treatment, what: &str) -> Result<bool, String> {
    match treatment {
        Treatment::Keep => Ok(true),
        Treatment::Drop => Ok(false),
        Treatment::Refuse => Err(format!("properties: the publish has {what}, which the contract refuses")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(text: &str) -> Section {
        toml::from_str(text).expect("TOML")
    }

    #[test]
    fn each_property_is_kept_left_out_or_refused_as_the_contract_says() {
        let found = PublishProperties {
            expiry: Some(5),
            response_topic: Some("answers/m1"),
            correlation_data: Some(&[1, 2]),
            user: vec![("Lot", "L-7"), ("other", "x"), ("traceparent", "y"), ("lot", "L-8")],
        };
        let expires = Attribute::Expires(Timestamp(5_000_000));
        let lot = Attribute::UserProperty { name: "lot", value: "L-7" };
        let attributes = |text: &str| {
            let section = section(text);
            section.check().expect("good");
            section.attributes(&found, Timestamp(0)).map(|kept| format!("{kept:?}"))
        };
        let list = |all: &[Attribute<'_>]| Ok(format!("{all:?}"));
        assert_eq!(attributes(""), list(&[expires]));
        assert_eq!(attributes("expiry = \"drop\"\nuser = [\"lot\"]"), list(&[lot]));
        let all = [expires, Attribute::ResponseTopic("answers/m1"), Attribute::CorrelationData(&[1, 2])];
        assert_eq!(attributes("response = \"keep\""), list(&all));
        for (text, what) in [("expiry", "message expiry"), ("response", "response topic"), ("other", "does not list")] {
            let reason = attributes(&format!("{text} = \"refuse\"")).expect_err("refused");
            assert!(reason.starts_with("properties: ") && reason.contains(what), "{reason}");
        }
    }

    #[test]
    fn names_that_cannot_be_attributes_are_refused() {
        for (text, key) in [
            ("user = [\"Lot\"]", "user[0]"),
            ("user = [\"ab\", \"id\"]", "user[1]"),
            ("user = [\"ab\", \"ab\"]", "user[1]"),
            ("user = [\"k\"]", "user[0]"),
            ("user = [\"\"]", "user[0]"),
            ("other = \"keep\"", "other"),
        ] {
            assert_eq!(section(text).check().expect_err("refused").0, key, "{text}");
        }
    }
}
