//! Odoo as a source: its checks against the environment, and its life.

use super::captures::Captures;
use super::{Config, Mirrors};
use crate::odoo::check_url;
use crate::secret::Secret;
use crate::setting::Findings;
use crate::shutdown::Shutdown;
use crate::sources::source::{Claim, PerRun, Services, Settings, Source, SourceError, SourceFuture};
use crate::tls::{self, NamedFile};
use std::net::SocketAddr;
use std::sync::Arc;

impl Settings for Config {
    fn name(&self) -> &str {
        &self.name
    }

    fn files(&mut self) -> Vec<NamedFile<'_>> {
        let mut files =
            vec![NamedFile::Secret("key_file", &mut self.key_file), NamedFile::Client("tls", &mut self.tls)];
        if let Some(hook) = &mut self.hook {
            files.push(NamedFile::Secret("hook.token_file", &mut hook.token_file));
            files.extend(hook.tls.as_mut().map(|files| NamedFile::Server("hook.tls", files)));
        }
        files
    }

    fn claims(&self) -> Vec<Claim> {
        let hook = self.hook.as_ref();
        hook.and_then(|hook| Claim::port("hook.listen", hook.listen, "another source")).into_iter().collect()
    }

    fn check(&mut self, found: &mut Findings<'_>) {
        if let Err((key, message)) = self.check_values() {
            return found.problem(key, message);
        }
        if let Err(message) = self.client() {
            found.problem("tls", message);
        }
        if let Err(error) = Secret::read(&self.key_file) {
            found.problem("key_file", error.to_string());
        }
        if check_url(&self.url) == Ok(true) && found.is_production() {
            let message =
                format!("\"{}\" is without TLS: anyone on the network path can read the key; use https://", self.url);
            found.warning("url", message);
        }
        let Some(hook) = &self.hook else { return };
        if let Err(message) = hook.token() {
            found.problem("hook.token_file", message);
        }
        if let Some(Err(error)) = hook.tls.as_ref().map(tls::server) {
            found.problem("hook.tls", error.to_string());
        }
        if hook.is_exposed() && found.is_production() {
            found.problem(
                "hook.listen",
                "a token without TLS is not allowed off loopback in environment \"production\"; set hook.tls",
            );
        }
    }

    /// Contracts say which records are read.
    fn depends_on_contracts(&self) -> bool {
        true
    }
}

impl Config {
    pub(crate) fn open(&self, services: Services, mirrors: Mirrors) -> Result<Arc<dyn Source>, SourceError> {
        let (config, shown) = (self.clone(), mirrors.clone());
        let make = move || {
            let shared = (Arc::clone(&services.stats), Arc::clone(&services.budget));
            let ingest = Arc::clone(&services.ingest);
            let captures = Captures::new(config.clone(), &services.contracts, ingest, &services.notes, shared)?;
            shown.put(&config.name, captures.mirrors().to_vec());
            Ok(captures)
        };
        let first = make()?;
        let port = first.hook_address();
        let (name, address) = (self.name.clone(), self.url.clone());
        Ok(Arc::new(Odoo { name, address, port, mirrors, runs: PerRun::new(first, make) }))
    }
}

struct Odoo {
    name: String,
    address: String,
    port: Option<SocketAddr>,
    mirrors: Mirrors,
    runs: PerRun<Captures>,
}

impl Source for Odoo {
    fn run(&self, shutdown: Shutdown) -> Result<SourceFuture, SourceError> {
        Ok(Box::pin(self.runs.take()?.run(shutdown)))
    }

    fn address(&self) -> String {
        self.address.clone()
    }

    fn port(&self) -> Option<SocketAddr> {
        self.port
    }

    fn close(&self) {
        self.mirrors.remove(&self.name);
    }
}
