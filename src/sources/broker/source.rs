//! The plant broker as a source: its checks against the environment, and its life.

use super::{Config, Subscriber};
use crate::link::{Address, Proxy};
use crate::secret::Secret;
use crate::setting::Findings;
use crate::shutdown::Shutdown;
use crate::sources::source::{Claim, PerRun, Services, Settings, Source, SourceError, SourceFuture};
use crate::tls::{self, NamedFile};
use std::sync::Arc;

impl Settings for Config {
    fn name(&self) -> &str {
        &self.name
    }

    fn files(&mut self) -> Vec<NamedFile<'_>> {
        let password = self.password_file.as_mut().map(|file| NamedFile::Secret("password_file", file));
        let proxy = self.proxy.as_mut().and_then(Proxy::file);
        password.into_iter().chain(proxy).chain([NamedFile::Client("tls", &mut self.tls)]).collect()
    }

    fn claims(&self) -> Vec<Claim> {
        let claim = |client: &String| Claim {
            key: "client_id",
            what: format!(
                "client {client} of {}",
                Address::parse(&self.url).map_or(self.url.clone(), |at| at.canonical())
            ),
            taken: format!(
                "\"{client}\" is taken by a source above at the same broker; each would disconnect the other"
            ),
            is_shareable: false,
        };
        self.client_id.iter().map(claim).collect()
    }

    fn check(&mut self, found: &mut Findings<'_>) {
        found.note(self.check_values());
        if let Some((filter, other)) = self.overlap() {
            let message =
                format!("\"{filter}\" and \"{other}\" overlap: the broker may send messages that match both twice");
            found.warning("topics", message);
        }
        match Address::parse(&self.url) {
            Err(message) => found.problem("url", message),
            Ok(address) if address.is_tls => {
                if let Err(error) = tls::client(&self.tls) {
                    found.problem("tls", error.to_string());
                }
            }
            // A warning only: the operator often cannot change the plant broker.
            Ok(address) if found.is_production() && !address.is_local() => {
                let message = format!(
                    "\"{}\" is without TLS: anyone on the network path can read everything, including the password",
                    self.url
                );
                found.warning("url", message);
            }
            Ok(_) => {}
        }
        if let Some(proxy) = &self.proxy {
            proxy.check(found);
        }
        if self.user.is_some() != self.password_file.is_some() {
            found.problem("user", "user and password_file go together; one of them is missing");
        }
        if let Some(Err(error)) = self.password_file.as_deref().map(Secret::read) {
            found.problem("password_file", error.to_string());
        }
    }
}

impl Config {
    pub(crate) fn open(&self, services: Services) -> Result<Arc<dyn Source>, SourceError> {
        let config = self.clone();
        let make = move || {
            let Services { stats, ingest, notes, client, .. } = services.clone();
            Ok(Subscriber::new(config.clone(), client, ingest, notes, stats)?)
        };
        let first = make()?;
        Ok(Arc::new(Broker { address: first.address(), runs: PerRun::new(first, make) }))
    }
}

struct Broker {
    address: String,
    runs: PerRun<Subscriber>,
}

impl Source for Broker {
    fn run(&self, shutdown: Shutdown) -> Result<SourceFuture, SourceError> {
        Ok(Box::pin(self.runs.take()?.run(shutdown)))
    }

    fn address(&self) -> String {
        self.address.clone()
    }
}
