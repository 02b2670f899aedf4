//! The MQTT listener as a source: its checks against the environment and the contracts, and its life.

use super::{Config, Devices, Listener, ListenerState, Parts, Registry, Rule, Users};
use crate::contract::{Contract, Contracts, SourceKind};
use crate::mqtt::Filter;
use crate::setting::Findings;
use crate::shutdown::Shutdown;
use crate::sources::source::{Change, Claim, Services, Settings, Source, SourceError, SourceFuture};
use crate::tls::{self, NamedFile};
use std::any::Any;
use std::net::SocketAddr;
use std::sync::Arc;

impl Settings for Config {
    fn name(&self) -> &str {
        &self.name
    }

    fn files(&mut self) -> Vec<NamedFile<'_>> {
        let passwords = self.passwords.as_mut().map(|file| NamedFile::Secret("passwords", file));
        let tls = self.tls.as_mut().map(|files| NamedFile::Server("tls", files));
        passwords.into_iter().chain(tls).collect()
    }

    fn claims(&self) -> Vec<Claim> {
        Claim::port("listen", self.listen, "a source above").into_iter().collect()
    }

    fn check(&mut self, found: &mut Findings<'_>) {
        found.note(self.check_values());
        for (rule, acl) in self.acl.iter().enumerate() {
            found.note(acl.check().map_err(|(part, message)| (format!("acl[{rule}].{part}"), message)));
        }
        let is_exposed = !self.listen.ip().is_loopback() && found.is_production();
        if is_exposed && self.anonymous == Some(true) {
            found.problem(
                "anonymous",
                "true off loopback is not allowed in environment \"production\"; set passwords or tls.client_ca",
            );
        }
        if self.lets_in_nobody() {
            let message = format!(
                "{} is not loopback and nobody could log in; set passwords, tls.client_ca, or anonymous = true",
                self.listen
            );
            found.problem("listen", message);
        }
        if let Some(Err(error)) = self.tls.as_ref().map(tls::server) {
            found.problem("tls", error.to_string());
        }
        if let Some(Err(error)) = self.passwords.as_deref().map(Users::load) {
            found.problem("passwords", error.to_string());
        }
        if is_exposed && self.tls.is_none() && self.passwords.is_some() {
            let message = format!(
                "are sent in plain text to {}: without TLS anyone on the network can read them; set tls",
                self.listen
            );
            found.warning("passwords", message);
        }
    }

    /// Warns about rights that are allowed but probably not intended.
    fn check_contracts(&self, contracts: &Contracts, found: &mut Findings<'_>) {
        if self.anonymous == Some(true)
            && !self.listen.ip().is_loopback()
            && !self.acl.iter().any(|rule| rule.who.is_none())
        {
            found.warning(
                "anonymous",
                "anonymous clients have no rights except on loopback: no rule applies to them; add [[source.mqtt.acl]] without \"who\"",
            );
        }
        if !self.proves_names() {
            return;
        }
        if !self.default_rights && self.acl.is_empty() {
            found.warning("default_rights", "false without acl: no client may publish or subscribe anywhere");
        }
        let of_source = || contracts.iter().filter(|one| one.source() == SourceKind::Mqtt && one.is_for(&self.name));
        if self.default_rights {
            for contract in of_source().filter(|one| one.publisher().is_none() && !has_rule(&self.acl, one)) {
                let message = format!(
                    "nobody may publish \"{}\", which contract \"{}\" accepts: its key \"{}\" is not exactly one level of the topic; give the contract a publisher, such as publisher = \"{{machine}}\", or add a rule",
                    contract.filter(),
                    contract.stream(),
                    contract.publication.key
                );
                found.warning("acl", message);
            }
        }
        if !found.is_production() || self.listen.ip().is_loopback() {
            return;
        }
        for (number, rule) in self.acl.iter().enumerate() {
            let forged = of_source().find(|one| one.publisher().is_some() && is_open(rule, one));
            if let Some(contract) = forged {
                let message = format!(
                    "lets every client publish the events of every other in stream \"{}\"; use {{user}} as a level, or set who",
                    contract.stream()
                );
                found.warning(&format!("acl[{number}].publish"), message);
            }
        }
    }
}

impl Config {
    pub(crate) fn open(
        &self,
        services: Services,
        registry: Arc<Registry>,
        devices: Arc<Devices>,
    ) -> Result<Arc<dyn Source>, SourceError> {
        let Services { stats, ingest, local, budget, .. } = services;
        let parts = Parts { ingest, local, registry, devices, budget };
        Ok(Arc::new(Listener::open(self.clone(), parts, stats)?))
    }
}

/// Whether any rule allows a client to publish a topic of this contract.
fn has_rule(rules: &[Rule], contract: &Contract) -> bool {
    rules.iter().flat_map(|rule| &rule.publish).any(|filter| overlaps(filter, contract))
}

/// Whether a rule allows every client to publish topics of this contract under any name.
fn is_open(rule: &Rule, contract: &Contract) -> bool {
    let is_for_all = rule.who.as_deref().is_none_or(|who| who == "*");
    is_for_all && rule.publish.iter().any(|filter| !filter.contains("{user}") && overlaps(filter, contract))
}

fn overlaps(filter: &str, contract: &Contract) -> bool {
    Filter::parse(&filter.replace("{user}", "+")).is_some_and(|filter| contract.overlaps(&filter))
}

impl Source for Listener {
    fn run(&self, shutdown: Shutdown) -> Result<SourceFuture, SourceError> {
        Ok(Box::pin(self.listen(shutdown)))
    }

    fn address(&self) -> String {
        self.port().map(|address| address.to_string()).unwrap_or_default()
    }

    fn port(&self) -> Option<SocketAddr> {
        self.listener.address().ok()
    }

    /// Connections stay, except those of clients that the new settings would refuse.
    fn prepare(&self, settings: &dyn Settings) -> Result<Option<Change>, SourceError> {
        let settings: &dyn Any = settings;
        let Some(config) = settings.downcast_ref::<Config>() else { return Ok(None) };
        let state = ListenerState::new(config.clone(), &self.parts, &self.stats, &self.kept)?;
        Ok(Some(Box::new(self.listener.prepare(state, config.listen)?)))
    }

    /// Checks the rights of all connected clients.
    fn check_again(&self) {
        self.listener.announce();
    }
}
