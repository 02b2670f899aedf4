//! The contracts of a folder: loaded together, found by the topic of an event.

use super::change::incompatibilities;
use super::check::Contract;
use super::command::{self, CommandContract};
use super::file;
use super::publication::Publication;
use super::terms::{GatewayNames, SourceKind};
use crate::event::AuthType;
use crate::setting::Problem;
use std::cmp::Reverse;
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[derive(Clone, Debug, Default)]
pub struct Contracts {
    list: Vec<Arc<Contract>>,
    commands: Vec<Arc<CommandContract>>,
}

/// The client that submits an event.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sender<'a> {
    /// `{client}`: the client as its source identifies it. The client id of an MQTT client is not authenticated.
    pub client: &'a str,
    /// `{user}`: the authenticated name, or the name that an anonymous client claims.
    pub user: &'a str,
    /// How `user` was authenticated; `None` if it was not.
    pub proven_by: Option<AuthType>,
}

/// Contract and captures that follow from a topic.
#[derive(Debug)]
pub struct TopicMatch {
    pub contract: Arc<Contract>,
    /// Client, user and topic, followed by the captures of the topic pattern.
    pub captures: Vec<String>,
}

impl Contracts {
    /// Loads every `*.toml` of a folder and its direct subfolders. `enable` names streams whose contracts are disabled in
    /// their files, such as `sales.*`. Each problem names file, line and key.
    pub fn load(
        folder: &Path,
        surroundings: &GatewayNames,
        lanes: &[String],
        has_mask_key: bool,
        enable: &[String],
    ) -> Result<(Self, Vec<Problem>), Vec<Problem>> {
        let unreadable = |error: std::io::Error| {
            vec![Problem {
                file: folder.to_owned(),
                line: 0,
                key: String::new(),
                message: format!("the folder of contracts cannot be read: {error}"),
            }]
        };
        let mut files = Vec::new();
        let mut warnings = Vec::new();
        for path in paths(folder).map_err(unreadable)? {
            let ending = path.extension().map(|extension| extension.to_string_lossy().to_ascii_lowercase());
            if path.extension().is_some_and(|extension| extension == "toml") {
                files.push(path);
            } else if ending.is_some_and(|ending| matches!(ending.as_str(), "toml" | "tml" | "yaml" | "yml")) {
                warnings.push(Problem {
                    file: path,
                    line: 0,
                    key: String::new(),
                    message: "is not read; the name of a contract ends in \".toml\"".into(),
                });
            }
        }
        files.sort();
        let mut problems = Vec::new();
        let mut list: Vec<Arc<Contract>> = Vec::new();
        let mut commands: Vec<Arc<CommandContract>> = Vec::new();
        for file in &files {
            match command::load(file, lanes) {
                Ok(None) => {}
                Ok(Some(contract)) => {
                    if contract.is_enabled || is_named(enable, &contract.name) {
                        commands.push(Arc::new(contract));
                    }
                    continue;
                }
                Err(problem) => {
                    problems.push(problem);
                    continue;
                }
            }
            match file::load(file, surroundings, lanes, has_mask_key, &mut warnings) {
                Ok(contract) if !contract.is_enabled && !is_named(enable, contract.stream()) => {}
                Ok(contract) => match list.iter().find_map(|other| conflict(other, &contract)) {
                    Some(message) => {
                        problems.push(Problem { file: file.clone(), line: 0, key: "match".into(), message })
                    }
                    None => list.push(Arc::new(contract)),
                },
                Err(problem) => problems.push(problem),
            }
        }
        problems.extend(command::conflicts(&commands, &list));
        if !problems.is_empty() {
            return Err(problems);
        }
        // The most specific pattern comes first, so a search stops at the first match.
        let width = |contract: &Contract| (contract.source_name.is_none(), Reverse(contract.pattern.specificity()));
        list.sort_by_key(|contract| width(contract));
        Ok((Self { list, commands }, warnings))
    }

    /// Iterates over all enabled contracts, the most specific first.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Contract>> {
        self.list.iter()
    }

    /// The enabled contracts of commands.
    pub fn commands(&self) -> &[Arc<CommandContract>] {
        &self.commands
    }

    /// Checks the contracts against the publications `in_force`, oldest first: finds changes that break consumers, and
    /// versions that were used for other content.
    pub fn check_against(&self, in_force: &[Publication]) -> Vec<Problem> {
        let mut problems = Vec::new();
        for contract in &self.list {
            let next = &contract.publication;
            let current = in_force.iter().rev().find(|known| known.stream_id() == next.stream_id());
            let found = current.map(|current| incompatibilities(current, next)).unwrap_or_default();
            problems.extend(found.into_iter().map(|message| Problem {
                file: contract.file.clone(),
                line: 0,
                key: String::new(),
                message,
            }));
        }
        problems
    }

    /// Topic filters for the events of a key and the commands to the target of the same name, at
    /// central and on the gateway.
    pub fn filters_of_key(&self, name: &str) -> Vec<String> {
        let publications = || self.list.iter().map(|contract| &contract.publication);
        let events = publications().filter_map(|publication| publication.filter_of_key(name));
        let commands = publications().map(|publication| publication.filter_of_commands(name));
        let mut filters: Vec<_> = events.chain(commands).collect();
        filters.sort();
        filters.dedup();
        filters
    }

    /// Finds the contract for a topic of a source.
    pub fn find(&self, kind: SourceKind, source: &str, topic: &str, sender: Sender<'_>) -> Option<TopicMatch> {
        let fits = |contract: &&Arc<Contract>| {
            contract.source == kind && contract.source_name.as_deref().is_none_or(|name| name == source)
        };
        let matched = |contract: &Arc<Contract>, levels: &str| {
            let captures = contract.pattern.captures(levels)?;
            Some(TopicMatch {
                contract: Arc::clone(contract),
                captures: [sender.client, sender.user, topic].into_iter().chain(captures).map(str::to_owned).collect(),
            })
        };
        let found = self.list.iter().filter(fits).find_map(|contract| matched(contract, topic));
        found.or_else(|| {
            // A state of a Sparkplug host has a level less than messages of nodes: the host stands for the node.
            let host = topic.strip_prefix(HOST_STATES).filter(|host| !host.contains('/'))?;
            let levels = format!("{HOST_STATES}STATE/{host}");
            let mut decoders = self.list.iter().filter(fits).filter(|contract| contract.decode.is_some());
            decoders.find_map(|contract| matched(contract, &levels))
        })
    }
}

/// Whether one of the patterns, such as `sales.order` or `sales.*`, names a stream.
fn is_named(patterns: &[String], stream: &str) -> bool {
    let fits = |pattern: &String| match pattern.strip_suffix('*') {
        Some(start) => stream.starts_with(start),
        None => pattern == stream,
    };
    patterns.iter().any(fits)
}

/// Start of the topics on which Sparkplug 3 hosts tell whether they are online.
const HOST_STATES: &str = "spBv1.0/STATE/";

/// Lists the files of a folder of contracts and of its direct subfolders.
fn paths(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            for entry in std::fs::read_dir(&path)? {
                found.push(entry?.path());
            }
        } else {
            found.push(path);
        }
    }
    Ok(found)
}

/// Reason why two contracts cannot both be in use, and the remedy.
fn conflict(a: &Contract, b: &Contract) -> Option<String> {
    let other = a.file.display();
    if a.publication == b.publication && a.pattern.overlaps(b.pattern.unnamed()) {
        return Some(format!("duplicates {other}; remove one of the two"));
    }
    if a.publication.stream_id() == b.publication.stream_id() {
        let stream = a.publication.stream_id();
        return Some(format!(
            "declares stream \"{stream}\", as does {other}; give one of them another name, or remove it"
        ));
    }
    let same_source = a.source == b.source && a.source_name == b.source_name;
    (same_source && a.pattern.specificity() == b.pattern.specificity() && a.pattern.overlaps(b.pattern.unnamed()))
        .then(|| format!("matches some topics just as narrowly as {other}; make one of the patterns narrower"))
}
