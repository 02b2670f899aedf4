//! The folder as a source: its checks against the environment, and its life.

use super::config::Config;
use super::reader::Reader;
use crate::contract::{Contracts, SourceKind};
use crate::setting::{Findings, access};
use crate::shutdown::Shutdown;
use crate::sources::source::{Claim, PerRun, Services, Settings, Source, SourceError, SourceFuture};
use crate::tls::NamedFile;
use std::path::PathBuf;
use std::sync::Arc;

impl Settings for Config {
    fn name(&self) -> &str {
        &self.name
    }

    fn files(&mut self) -> Vec<NamedFile<'_>> {
        Vec::new()
    }

    fn folders(&mut self) -> Vec<&mut PathBuf> {
        vec![&mut self.path]
    }

    fn claims(&self) -> Vec<Claim> {
        let claim = |pattern: String| Claim {
            key: "files",
            what: format!("files {pattern} in {}", self.path.display()),
            taken: format!("\"{pattern}\" in this folder is taken by a source above; each file is read once"),
            is_shareable: false,
        };
        self.pattern_texts().into_iter().map(claim).collect()
    }

    fn check(&mut self, found: &mut Findings<'_>) {
        found.note(self.check_values());
        // A warning only: a share may not be mounted yet.
        match std::fs::metadata(&self.path) {
            Err(error) => found.warning("path", format!("{}: cannot be read: {error}", self.path.display())),
            Ok(folder) if !folder.is_dir() => {
                found.problem("path", format!("{} is no folder", self.path.display()));
            }
            Ok(_) => {
                if let Err(message) = access::check_folder(&self.path) {
                    found.warning("path", message);
                }
            }
        }
    }

    /// Warns if no contract is for this source.
    fn check_contracts(&self, contracts: &Contracts, found: &mut Findings<'_>) {
        let is_for = contracts.iter().any(|one| one.source() == SourceKind::Folder && one.is_for(&self.name));
        if !is_for {
            let message = "no contract has match.source = \"folder\" for this source: every file fails";
            found.warning("", message);
        }
    }
}

impl Config {
    pub(crate) fn open(&self, services: Services) -> Result<Arc<dyn Source>, SourceError> {
        let config = self.clone();
        let make = move || {
            let Services { stats, ingest, notes, .. } = services.clone();
            Ok(Reader::new(config.clone(), ingest, notes, stats)?)
        };
        let first = make()?;
        Ok(Arc::new(Folder { address: self.path.display().to_string(), runs: PerRun::new(first, make) }))
    }
}

struct Folder {
    address: String,
    runs: PerRun<Reader>,
}

impl Source for Folder {
    fn run(&self, shutdown: Shutdown) -> Result<SourceFuture, SourceError> {
        Ok(Box::pin(self.runs.take()?.run(shutdown)))
    }

    fn address(&self) -> String {
        self.address.clone()
    }
}
