//! The Modbus bus as a source: its checks against device tables and contracts, and its life.

use super::{Bus, Config};
use crate::contract::{Contracts, Sender, SourceKind};
use crate::setting::Findings;
use crate::shutdown::Shutdown;
use crate::sources::source::{Claim, PerRun, Services, Settings, Source, SourceError, SourceFuture};
use crate::tls::NamedFile;
use std::sync::Arc;

impl Settings for Config {
    fn name(&self) -> &str {
        &self.name
    }

    fn files(&mut self) -> Vec<NamedFile<'_>> {
        vec![NamedFile::Plain("devices", &mut self.devices), NamedFile::Client("tls", &mut self.tls)]
    }

    fn claims(&self) -> Vec<Claim> {
        let is_shareable = !self.url.starts_with("rtu:");
        let why = match is_shareable {
            true => "many devices serve one connection at a time; list their units under one source",
            false => "a serial port has one owner",
        };
        let taken = format!("\"{}\" is taken by a source above; {why}", self.url);
        vec![Claim { key: "url", what: self.url.clone(), taken, is_shareable }]
    }

    fn check(&mut self, found: &mut Findings<'_>) {
        self.load_tables(found);
    }

    /// Warns about register groups whose events match no contract.
    fn check_contracts(&self, contracts: &Contracts, found: &mut Findings<'_>) {
        let Some(ready) = &self.ready else { return };
        let topics = self.units.iter().zip(&ready.devices).flat_map(|(unit, device)| {
            device.groups.iter().map(move |group| (format!("{}/{}", unit.name, group.name), unit, device))
        });
        let mut unmatched = topics.filter(|(topic, unit, device)| {
            let is_lost = |topic: &str| {
                let sender = Sender { client: &unit.name, ..Sender::default() };
                contracts.find(SourceKind::Modbus, &self.name, topic, sender).is_none()
            };
            // Single points may have their own contracts.
            is_lost(topic) && device.points.iter().all(|point| is_lost(&format!("{topic}/{}", point.name)))
        });
        if let Some((topic, ..)) = unmatched.next() {
            let more = match unmatched.count() {
                0 => String::new(),
                more => format!(", nor {more} more groups"),
            };
            found.warning("", format!("no contract matches \"{topic}\"{more}: the events become dead letters"));
        }
    }
}

impl Config {
    pub(crate) fn open(&self, services: Services) -> Result<Arc<dyn Source>, SourceError> {
        let config = self.clone();
        let ready = self.ready.clone().ok_or("the device tables are not loaded")?;
        let make = move || {
            Ok(Bus::new(config.clone(), ready.clone(), Arc::clone(&services.ingest), Arc::clone(&services.stats)))
        };
        let first = make()?;
        Ok(Arc::new(Modbus { address: first.address(), runs: PerRun::new(first, make) }))
    }
}

struct Modbus {
    address: String,
    runs: PerRun<Bus>,
}

impl Source for Modbus {
    fn run(&self, shutdown: Shutdown) -> Result<SourceFuture, SourceError> {
        Ok(Box::pin(self.runs.take()?.run(shutdown)))
    }

    fn address(&self) -> String {
        self.address.clone()
    }
}
