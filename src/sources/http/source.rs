//! The HTTP server as a source: its checks against the environment, and its life.

use super::config::Config;
use super::context::ServerContext;
use super::server::Server;
use super::tokens::Tokens;
use crate::setting::Findings;
use crate::shutdown::Shutdown;
use crate::sources::source::{Change, Claim, Services, Settings, Source, SourceError, SourceFuture};
use crate::tls::NamedFile;
use std::any::Any;
use std::net::SocketAddr;
use std::sync::Arc;

impl Settings for Config {
    fn name(&self) -> &str {
        &self.name
    }

    fn files(&mut self) -> Vec<NamedFile<'_>> {
        let tokens = self.tokens.as_mut().map(|file| NamedFile::Secret("tokens", file));
        let tls = self.tls.as_mut().map(|files| NamedFile::Server("tls", files));
        tokens.into_iter().chain(tls).collect()
    }

    fn claims(&self) -> Vec<Claim> {
        Claim::port("listen", self.listen, "another source").into_iter().collect()
    }

    fn check(&mut self, found: &mut Findings<'_>) {
        found.note(self.check_values());
        let is_exposed = !self.listen.ip().is_loopback() && found.is_production();
        if is_exposed && self.anonymous == Some(true) {
            found.problem(
                "anonymous",
                "true off loopback is not allowed in environment \"production\"; set tokens or tls.client_ca",
            );
        }
        if is_exposed && self.tokens.is_some() && self.tls.is_none() {
            found.problem(
                "tokens",
                "bearer tokens without TLS are not allowed off loopback in environment \"production\"; set tls",
            );
        }
        if self.lets_in_nobody() {
            let message = format!("{} lets nobody in; set tokens, tls.client_ca, or anonymous = true", self.listen);
            found.problem("listen", message);
        }
        if let Err(error) = self.server() {
            found.problem("tls", error.to_string());
        }
        if let Some(Err(error)) = self.tokens.as_deref().map(Tokens::load) {
            found.problem("tokens", error.to_string());
        }
    }
}

impl Config {
    pub(crate) fn open(&self, services: Services) -> Result<Arc<dyn Source>, SourceError> {
        let Services { stats, ingest, budget, .. } = services;
        Ok(Arc::new(Server::open(self.clone(), ingest, stats, budget)?))
    }
}

impl Source for Server {
    fn run(&self, shutdown: Shutdown) -> Result<SourceFuture, SourceError> {
        Ok(Box::pin(self.listen(shutdown)))
    }

    fn address(&self) -> String {
        self.port().map(|address| address.to_string()).unwrap_or_default()
    }

    fn port(&self) -> Option<SocketAddr> {
        self.listener.address().ok()
    }

    /// Requests in progress are answered; then their connections end.
    fn prepare(&self, settings: &dyn Settings) -> Result<Option<Change>, SourceError> {
        let settings: &dyn Any = settings;
        let Some(config) = settings.downcast_ref::<Config>() else { return Ok(None) };
        let context = ServerContext::new(config.clone(), &self.ingest, &self.stats, &self.budget)?;
        Ok(Some(Box::new(self.listener.prepare(context, config.listen)?)))
    }
}
