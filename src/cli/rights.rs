//! `forebay check --rights`: the rights of every configured name to publish and subscribe, with reasons.

use crate::config::Config;
use crate::sources::SourceConfig;
use crate::sources::http::{self, Tokens};
use crate::sources::mqtt::{Grant, Grants, Users};
use crate::telemetry::shown;
use serde::Serialize;
use std::fmt::Write;

/// Placeholder for names that only certificates contain.
const ANY_NAME: &str = "{user}";

/// The rights of one name at one source.
#[derive(Debug, Serialize)]
pub(super) struct NameRights {
    source: String,
    /// The proven name; `{user}` for one that cannot be listed, empty for anonymous clients.
    name: String,
    /// Origin of the name: password file, token file or certificates.
    from: String,
    #[serde(flatten)]
    grants: Grants,
}

/// Lists every name that a configuration knows, with its rights.
pub(super) fn entries(config: &Config) -> Result<Vec<NameRights>, String> {
    let mut entries = Vec::new();
    for source in &config.sources {
        let SourceConfig::Mqtt(listener) = source else { continue };
        let mut add = |name: &str, from: String, grants: Grants| {
            entries.push(NameRights { source: listener.name.clone(), name: name.to_owned(), from, grants });
        };
        if let Some(file) = &listener.passwords {
            let users = Users::load(file).map_err(|error| error.to_string())?;
            for name in users.names() {
                let from = format!("user in {}", file.display());
                add(&name, from, listener.grants(Some(&name), &config.contracts));
            }
        }
        if let Some(tls) = listener.tls.as_ref().filter(|tls| tls.client_ca.is_some()) {
            let from = format!("{} in a certificate; only their authority knows the names", tls.identity.words());
            add(ANY_NAME, from, listener.grants(Some(ANY_NAME), &config.contracts));
            for (pattern, grants) in listener.grants_of_patterns() {
                add(&pattern, "certificates whose name matches, in addition to the above".into(), grants);
            }
        }
        if listener.accepts_anonymous() {
            add("", "anonymous clients".into(), listener.grants(None, &config.contracts));
        }
    }
    for source in &config.sources {
        let SourceConfig::Http(server) = source else { continue };
        let mut add = |name: &str, from: String| {
            let grants = Grants { publish: posts(server, name, config), subscribe: Vec::new() };
            entries.push(NameRights { source: server.name.clone(), name: name.to_owned(), from, grants });
        };
        if let Some(file) = &server.tokens {
            let tokens = Tokens::load(file).map_err(|error| error.to_string())?;
            for name in tokens.names() {
                add(name, format!("token in {}", file.display()));
            }
        }
        if let Some(tls) = server.tls.as_ref().filter(|tls| tls.client_ca.is_some()) {
            let words = tls.identity.words();
            add(ANY_NAME, format!("{words} in a certificate; only their authority knows the names"));
        }
        if server.accepts_anonymous() {
            add("", "anonymous callers".into());
        }
    }
    Ok(entries)
}

/// Returns the topics that a caller may post to.
fn posts(server: &http::Config, name: &str, config: &Config) -> Vec<Grant> {
    if name.is_empty() {
        return vec![Grant { filter: "+/#".into(), why: "anonymous, for every source".into() }];
    }
    let why = format!("POST /events/{name}: a caller posts for itself");
    let mut grants = vec![Grant { filter: format!("{name}/#"), why }];
    let contracts = config.contracts.iter();
    let written = contracts.filter(|one| one.source() == crate::contract::SourceKind::Http && one.is_for(&server.name));
    for contract in written.filter(|one| one.publisher().is_some_and(|publisher| publisher.is_written)) {
        if let (Some(filter), Some(publisher)) = (contract.filter_of_publisher(name), contract.publisher()) {
            let why = format!("limited by contract {}: publisher = \"{{{}}}\"", contract.stream(), publisher.name);
            grants.push(Grant { filter, why });
        }
    }
    grants
}

/// Formats the rights as text, grouped by source and name.
pub(super) fn text(entries: &[NameRights]) -> String {
    let mut out = String::new();
    let mut source = "";
    for entry in entries {
        if entry.source != source {
            source = &entry.source;
            let _ = writeln!(out, "source {}", shown(source));
        }
        let name = if entry.name.is_empty() { "(no name)" } else { &entry.name };
        let _ = writeln!(out, "  {}: {}", shown(name), shown(&entry.from));
        let mut list = |word: &str, grants: &[Grant]| {
            if grants.is_empty() {
                let _ = writeln!(out, "    {word:<10} nothing");
            }
            for grant in grants {
                let _ = writeln!(out, "    {word:<10} {}", shown(&grant.filter));
                let _ = writeln!(out, "               {}", shown(&grant.why));
            }
        };
        list("publish", &entry.grants.publish);
        list("subscribe", &entry.grants.subscribe);
    }
    if entries.is_empty() {
        out.push_str("no source lets anybody in\n");
    }
    out
}
