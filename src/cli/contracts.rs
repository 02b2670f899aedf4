//! `forebay contracts`: checks contracts, and tries a message on them without a gateway.
//!
//! Promise: `try` uses the same search, check and rendering as the gateway, and stores nothing.

use super::check::{Check, report};
use super::config_file::ConfigFile;
use crate::clock;
use crate::config::Config;
use crate::contract::{Contract, Renderer, Rendering, Sender, SourceKind, TopicMatch};
use crate::event::{Id, Record, Timestamp, push_path_segment};
use crate::journal::publications_in;
use crate::mqtt::Filter;
use crate::sources::SourceConfig;
use crate::telemetry::{shown, shown_json};
use anyhow::{Context, anyhow, bail};
use clap::{ArgGroup, Args, Subcommand};
use serde::Serialize;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, Subcommand)]
pub(super) enum ContractsCommand {
    /// Check the contracts, and compare them with the versions in force
    Check(Check),
    /// Try a message: which contract takes it, with which key, id and lane, and what central receives
    #[command(after_help = "Examples:\n  \
        forebay contracts try --topic plant/line-1/press-4/state --payload '{\"msg_id\":\"1\",\"state\":\"running\"}'\n  \
        mosquitto_sub -v -t '#' -W 60 > recorded.txt; forebay contracts try --recorded recorded.txt\n\n\
        Exit code 0 if a contract takes every message, 1 if not.")]
    Try(Try),
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("message").required(true).args(["topic", "recorded"])))]
pub(super) struct Try {
    /// Topic of the message
    #[arg(long)]
    topic: Option<String>,
    /// Payload of the message
    #[arg(long, requires = "topic", default_value = "{}", hide_default_value = true)]
    payload: String,
    /// File with the payload; "-" for standard input
    #[arg(long, requires = "topic", conflicts_with = "payload")]
    payload_file: Option<PathBuf>,
    /// File with one message a line, topic and payload separated by a blank, as `mosquitto_sub -v` prints them
    #[arg(long)]
    recorded: Option<PathBuf>,
    /// Name of the source that receives it, or a kind such as mqtt [default: every source of the configuration]
    #[arg(long)]
    source: Option<String>,
    /// Proven name of the sender: user, or name in its certificate
    #[arg(long)]
    user: Option<String>,
    /// Client id of the sender [default: its proven name]
    #[arg(long, default_value = "", hide_default_value = true)]
    client: String,
    #[command(flatten)]
    config: ConfigFile,
    /// Print JSON; errors stay text on standard error, with exit code 1
    #[arg(long)]
    json: bool,
}

/// The treatment that a message would get from the gateway.
#[derive(Debug, Default, Serialize)]
struct Outcome {
    topic: String,
    source: String,
    /// Stream with its major version; empty if no contract matches.
    stream: String,
    file: PathBuf,
    lane: String,
    key: String,
    /// Id of the event; `None` if the gateway creates one.
    id: Option<String>,
    time: Option<String>,
    central_topic: String,
    envelope: String,
    /// Reason for which the message is not accepted, as the dead letter says it.
    refusal: Option<String>,
    /// Circumstances that the person should know.
    notes: Vec<String>,
}

pub(super) fn run(command: &ContractsCommand) -> anyhow::Result<ExitCode> {
    match command {
        ContractsCommand::Check(check) => check_contracts(check),
        ContractsCommand::Try(args) => try_messages(args),
    }
}

fn check_contracts(check: &Check) -> anyhow::Result<ExitCode> {
    let config = match Config::load(check.file()) {
        Ok(config) => config,
        Err(problems) => return report(check, &problems, &[], String::new),
    };
    let in_force = publications_in(&config.journal.folder)
        .context("the versions in force cannot be read; run this as the user of the gateway")?;
    let problems = config.contracts.check_against(&in_force);
    let mut lines = Vec::new();
    for contract in config.contracts.iter() {
        let next = &contract.publication;
        // The newest publication of a stream is the one in force.
        let current = in_force.iter().rev().find(|known| known.stream_id() == next.stream_id());
        let word = match current {
            None => "new".to_owned(),
            Some(current) if current.version == next.version => "in force".to_owned(),
            Some(current) => format!("replaces {}", current.version),
        };
        lines.push(format!("{:<40} {:<10} {:<10} {word}", next.stream_id(), next.version, next.lane));
    }
    report(check, &problems, &config.warnings, || lines.join("\n"))
}

fn try_messages(args: &Try) -> anyhow::Result<ExitCode> {
    let config = Config::load(&args.config).map_err(|problems| {
        let lines: Vec<_> = problems.iter().map(ToString::to_string).collect();
        anyhow!("{}", lines.join("\n"))
    })?;
    let sources = sources(&config, args.source.as_deref())?;
    let mut out = std::io::stdout().lock();
    let outcomes = match &args.recorded {
        Some(file) => {
            let text = std::fs::read(file).with_context(|| file.display().to_string())?;
            let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
            lines.map(|line| recorded(&config, &sources, line, args)).collect()
        }
        None => vec![outcome(&config, &sources, args.topic.as_deref().unwrap_or_default(), &payload(args)?, args)],
    };
    if args.json {
        writeln!(out, "{}", shown_json(&serde_json::to_string_pretty(&outcomes)?))?;
    } else if args.recorded.is_some() {
        for outcome in &outcomes {
            writeln!(out, "{}", in_a_line(outcome))?;
        }
        let taken = outcomes.iter().filter(|outcome| outcome.refusal.is_none()).count();
        writeln!(out, "{taken} of {} are accepted", outcomes.len())?;
    } else {
        outcomes.iter().try_for_each(|outcome| write!(out, "{}", text(outcome)))?;
    }
    let is_good = outcomes.iter().all(|outcome| outcome.refusal.is_none());
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn payload(args: &Try) -> anyhow::Result<Vec<u8>> {
    match &args.payload_file {
        Some(file) if file.as_os_str() == "-" => {
            let mut bytes = Vec::new();
            std::io::stdin().read_to_end(&mut bytes)?;
            Ok(bytes)
        }
        Some(file) => std::fs::read(file).with_context(|| file.display().to_string()),
        None => Ok(args.payload.clone().into_bytes()),
    }
}

fn recorded(config: &Config, sources: &[(SourceKind, String)], line: &[u8], args: &Try) -> Outcome {
    let end = line.iter().position(|byte| *byte == b' ').unwrap_or(line.len());
    let topic = String::from_utf8_lossy(&line[..end]);
    outcome(config, sources, &topic, line.get(end + 1..).unwrap_or_default(), args)
}

/// Returns kind and name of the sources that may receive the message.
fn sources(config: &Config, wanted: Option<&str>) -> anyhow::Result<Vec<(SourceKind, String)>> {
    let all: Vec<_> = config.sources.iter().map(|one| (one.kind(), one.settings().name().to_owned())).collect();
    let kind: Option<SourceKind> = wanted.and_then(|word| serde_json::from_value(word.into()).ok());
    let found: Vec<_> = match wanted {
        None => all.clone(),
        Some(word) => all.iter().filter(|(of, name)| name == word || Some(*of) == kind).cloned().collect(),
    };
    match (found.is_empty(), kind, wanted) {
        (false, ..) => Ok(found),
        // A kind without a source in the configuration can be tried, too.
        (true, Some(kind), Some(word)) => Ok(vec![(kind, word.to_owned())]),
        (true, _, None) => Ok(vec![(SourceKind::Mqtt, "mqtt".into())]),
        (true, None, Some(word)) => {
            let names: Vec<_> = all.iter().map(|(_, name)| name.as_str()).collect();
            bail!("\"{word}\" is no source of {}; there are: {}", config.file.display(), names.join(", "))
        }
    }
}

fn outcome(config: &Config, sources: &[(SourceKind, String)], topic: &str, payload: &[u8], args: &Try) -> Outcome {
    let user = args.user.as_deref().unwrap_or_default();
    // A device usually has one name as its client id and as its user.
    let client = if args.client.is_empty() { user } else { &args.client };
    let sender = Sender { client, user, proven_by: None };
    let find = |(kind, name): &(SourceKind, String)| config.contracts.find(*kind, name, topic, sender);
    let found = sources.iter().find_map(|source| Some((source, find(source)?)));
    let mut outcome = Outcome { topic: topic.to_owned(), ..Outcome::default() };
    let Some(((_, source), TopicMatch { contract, captures })) = found else {
        let nearest = sources.iter().find_map(|(kind, name)| config.contracts.nearest(*kind, name, topic));
        let hint = nearest.map_or_else(String::new, |nearest| format!("; {nearest}"));
        outcome.source = sources.iter().map(|(_, name)| name.as_str()).collect::<Vec<_>>().join(", ");
        outcome.refusal = Some(format!("topic: no contract matches it{hint}"));
        return outcome;
    };
    outcome.source.clone_from(source);
    outcome.stream = contract.publication.stream_id();
    outcome.file.clone_from(&contract.file);
    outcome.lane.clone_from(&contract.publication.lane);
    outcome.notes.extend(note_on_rights(config, source, topic, args));
    if let (Some(name), None) = (contract.publisher_in(&captures), &args.user) {
        outcome
            .notes
            .push(format!("a sender with a proven name must be \"{name}\", unless a rule (acl) allows others"));
    }
    if contract.decode.is_some() {
        outcome.notes.push(
            "the contract decodes Sparkplug B, which needs the birth of the node: the payload was not tried".into(),
        );
        return outcome;
    }
    read(config, &contract, &captures, payload, &mut outcome);
    outcome
}

/// Checks the payload and renders the event.
fn read(config: &Config, contract: &Contract, captures: &[String], payload: &[u8], outcome: &mut Outcome) {
    let parsed = match contract.read(captures, payload, config.mask_key.bytes()) {
        Ok(parsed) => parsed,
        Err(violation) => {
            outcome.refusal = Some(violation.reason);
            return;
        }
    };
    let now = Timestamp::from(clock::wall());
    let mut origin = String::new();
    push_path_segment(&mut origin, &outcome.source);
    origin.push('/');
    push_path_segment(&mut origin, &contract.device(captures));
    let record = Record {
        publication: 0,
        id: match &parsed.id {
            Some(id) => Id::Text(id),
            None => Id::mint(),
        },
        time: parsed.time.unwrap_or(now),
        origin: &origin,
        key: &parsed.key,
        content: parsed.content,
        attributes: Vec::new(),
        payload: &parsed.payload,
    };
    let mut rendering = Rendering::default();
    Renderer::new(&contract.publication).render(&record, 1, now, &mut rendering);
    outcome.key = parsed.key.clone().into_owned();
    outcome.id = parsed.id.as_deref().map(str::to_owned);
    outcome.time = parsed.time.map(|time| time.to_string());
    outcome.central_topic = String::from_utf8_lossy(&rendering.topic).into_owned();
    outcome.envelope = String::from_utf8_lossy(&rendering.payload).into_owned();
    if let Some(violation) = &parsed.violation {
        outcome.notes.push(format!("it breaks its contract and is delivered with a mark: {violation}"));
    }
}

/// Tells whether the sender may publish to the topic, if the source is a listener.
fn note_on_rights(config: &Config, source: &str, topic: &str, args: &Try) -> Option<String> {
    let user = args.user.as_deref()?;
    let listener = config.sources.iter().find_map(|one| match one {
        SourceConfig::Mqtt(listener) if listener.name == source => Some(listener),
        _ => None,
    })?;
    let grants = listener.grants(Some(user), &config.contracts);
    let allowing =
        grants.publish.iter().find(|grant| Filter::parse(&grant.filter).is_some_and(|filter| filter.matches(topic)));
    Some(match allowing {
        Some(grant) => format!("\"{user}\" may publish it: {}", grant.why),
        None => format!(
            "\"{user}\" may NOT publish it; a rule would allow it: [[source.mqtt.acl]] with who = \"{user}\" and publish = [\"{topic}\"]"
        ),
    })
}

fn in_a_line(outcome: &Outcome) -> String {
    let topic = shown(&outcome.topic);
    match &outcome.refusal {
        None => format!("✓ {topic}: {}, key \"{}\"", outcome.stream, shown(&outcome.key)),
        Some(reason) => format!("✗ {topic}: {}", shown(reason)),
    }
}

fn text(outcome: &Outcome) -> String {
    let mut rows: Vec<(&str, String)> = vec![("source", outcome.source.clone())];
    if !outcome.stream.is_empty() {
        rows.push(("contract", format!("{} ({})", outcome.stream, outcome.file.display())));
        rows.push(("lane", outcome.lane.clone()));
    }
    match &outcome.refusal {
        Some(reason) => rows.push(("refused", format!("{reason}\nit would become a dead letter"))),
        None if outcome.envelope.is_empty() => {}
        None => {
            rows.push(("key", outcome.key.clone()));
            rows.push(("id", outcome.id.clone().unwrap_or_else(|| "created by the gateway".into())));
            rows.push(("time", outcome.time.clone().unwrap_or_else(|| "that of its arrival".into())));
            rows.push(("at central", outcome.central_topic.clone()));
            rows.push(("envelope", outcome.envelope.clone()));
        }
    }
    rows.extend(outcome.notes.iter().map(|note| ("note", note.clone())));
    let mut out = String::new();
    for (label, value) in rows {
        for (index, line) in value.lines().enumerate() {
            let label = if index == 0 { label } else { "" };
            out.push_str(&format!("{label:<11} {}\n", shown(line)));
        }
    }
    out
}
