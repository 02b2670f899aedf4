//! `forebay dead`: lists, requeues, discards and edits dead letters.

use super::client::{At, ask, ask_with, print};
use super::confirm::confirm_at_terminal;
use super::journal::moment;
use super::show;
use super::table::counted;
use crate::api::{Letter, LetterDecision, LetterEdit, LetterFilter, LetterStage};
use crate::contract::{Pointer, with_change};
use crate::event::{Timestamp, push_path_segment};
use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;

/// Most letters in one answer of the gateway.
const PAGE: u64 = 10_000;

#[derive(Debug, Subcommand)]
pub(super) enum Dead {
    /// List the newest dead letters that wait for a decision
    List(ListArgs),
    /// Show one dead letter with its payload
    Show {
        /// Number of the dead letter
        id: u64,
        #[command(flatten)]
        at: At,
    },
    /// Process letters again: resend them to central unchanged, or pass them through their contract
    #[command(after_help = "Examples:\n  forebay dead requeue 17 18\n  \
                            forebay dead requeue --stream machine.state --since 2h --dry-run\n\n\
                            Exit code 1 if a letter was refused.")]
    Requeue(LetterArgs),
    /// Discard letters, which cannot be undone
    #[command(after_help = "Example: forebay dead discard --reason 'no contract matches' --dry-run")]
    Discard(LetterArgs),
    /// Process a letter again with another payload
    #[command(after_help = "Example: forebay dead edit 17 --set '/state=\"idle\"'")]
    Edit(EditArgs),
}

/// The letters of a list.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  forebay dead list --stream machine.state --since 2h\n  forebay dead list --by reason"
)]
pub(super) struct ListArgs {
    /// Maximum number of letters to print
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=PAGE))]
    limit: u64,
    /// Also letters that are delivered, taken in or discarded already
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    of: LetterProperties,
    /// Count the letters instead: by reason, stream or sender
    #[arg(long, value_enum)]
    by: Option<LetterGroup>,
    #[command(flatten)]
    at: At,
}

/// Properties by which letters are selected.
#[derive(Debug, Args)]
struct LetterProperties {
    /// Letters of this stream
    #[arg(long)]
    stream: Option<String>,
    /// Letters whose reason contains this text
    #[arg(long)]
    reason: Option<String>,
    /// Letters that this destination refused
    #[arg(long)]
    destination: Option<String>,
    /// Letters refused at intake, or by central: intake or central
    #[arg(long, value_parser = stage)]
    stage: Option<LetterStage>,
    /// Letters written at or after this time, such as 2026-11-23T08:00:00Z, or an age such as 2h
    #[arg(long, value_parser = moment)]
    since: Option<Timestamp>,
    /// Letters written before this time
    #[arg(long, value_parser = moment)]
    until: Option<Timestamp>,
}

/// The property by which letters are counted.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(super) enum LetterGroup {
    Reason,
    Stream,
    Sender,
}

/// Selects letters by number or property.
#[derive(Debug, Args)]
pub(super) struct LetterArgs {
    /// Numbers of the letters to select
    ids: Vec<u64>,
    /// Select every letter that waits
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    of: LetterProperties,
    /// Only report what would be done
    #[arg(long)]
    dry_run: bool,
    /// Do not ask before letters are discarded
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    at: At,
}

#[derive(Debug, Args)]
pub(super) struct EditArgs {
    /// Number of the dead letter
    id: u64,
    /// File with the payload; "-" for standard input
    #[arg(long, conflicts_with = "set")]
    payload_file: Option<PathBuf>,
    /// Change one value of the payload: a JSON pointer and JSON, such as /state="idle"
    #[arg(long)]
    set: Vec<String>,
    /// Only report what would be done
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    at: At,
}

fn stage(text: &str) -> Result<LetterStage, String> {
    match text {
        "intake" => Ok(LetterStage::Intake),
        "central" => Ok(LetterStage::Central),
        _ => Err("expected \"intake\" or \"central\"".into()),
    }
}

pub(super) fn run(command: Dead) -> anyhow::Result<ExitCode> {
    match command {
        Dead::List(args) => list(&args),
        Dead::Show { id, at } => {
            let letter: Letter = ask(&at, &format!("/dead/{id}"))?;
            print(&at, &letter, show::letter)
        }
        Dead::Requeue(choice) => decide(choice, "requeue", "requeued"),
        Dead::Discard(choice) => decide(choice, "discard", "discarded"),
        Dead::Edit(edit) => edit_one(&edit),
    }
}

fn list(args: &ListArgs) -> anyhow::Result<ExitCode> {
    let limit = if args.by.is_some() { PAGE } else { args.limit };
    let mut path = format!("/dead?limit={limit}");
    let mut push = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            path.push_str(&format!("&{name}="));
            push_path_segment(&mut path, &value);
        }
    };
    push("state", (!args.all).then(|| "open".to_owned()));
    let LetterProperties { stream, reason, destination, stage, since, until } = &args.of;
    push("stream", stream.clone());
    push("reason", reason.clone());
    push("destination", destination.clone());
    let name = |stage: LetterStage| if stage == LetterStage::Intake { "intake" } else { "central" };
    push("stage", stage.map(|stage| name(stage).to_owned()));
    push("since", since.map(|time| time.to_string()));
    push("until", until.map(|time| time.to_string()));
    let Some(by) = args.by else {
        let letters: Vec<Letter> = ask(&args.at, &path)?;
        return print(&args.at, &letters, |letters, is_coloured| show::letters(letters, is_coloured));
    };
    let mut counts = Counts::default();
    let mut from = 1;
    loop {
        let letters: Vec<Letter> = ask(&args.at, &format!("{path}&from={from}"))?;
        counts.add(&letters, by);
        match letters.last() {
            Some(last) if letters.len() as u64 == PAGE => from = last.id + 1,
            _ => break,
        }
    }
    print(&args.at, &counts.by_frequency(), |counts, is_coloured| show::letter_counts(counts, is_coloured))
}

/// Letters, counted by what they have in common.
#[derive(Default)]
struct Counts(BTreeMap<String, show::LetterCount>);

impl Counts {
    fn add(&mut self, letters: &[Letter], by: LetterGroup) {
        for letter in letters {
            let what = match by {
                LetterGroup::Reason => &letter.reason,
                LetterGroup::Stream => &letter.stream,
                LetterGroup::Sender => &letter.origin,
            };
            let new = || show::LetterCount {
                what: what.clone(),
                count: 0,
                first: letter.id,
                last: letter.id,
                recorded: String::new(),
            };
            let known = self.0.entry(what.clone()).or_insert_with(new);
            known.count += 1;
            known.last = letter.id;
            known.recorded.clone_from(&letter.recorded);
        }
    }

    /// The most frequent first.
    fn by_frequency(self) -> Vec<show::LetterCount> {
        let mut counts: Vec<_> = self.0.into_values().collect();
        counts.sort_by_key(|one| std::cmp::Reverse(one.count));
        counts
    }
}

fn decide(choice: LetterArgs, word: &str, done: &str) -> anyhow::Result<ExitCode> {
    let LetterArgs { ids, all, of, dry_run, yes, at } = choice;
    let LetterProperties { stream, reason, destination, stage, since, until } = of;
    let filter =
        LetterFilter { ids: ids.into_iter().collect(), all, stream, reason, destination, stage, since, until, dry_run };
    if word == "discard" && !dry_run {
        confirm_at_terminal("discard these letters for ever? --dry-run counts them.", yes)?;
    }
    let decided: LetterDecision = ask_with(&at, &format!("/dead/{word}"), &filter)?;
    print(&at, &decided, |decided, _| {
        let would = if decided.dry_run { "would be " } else { "" };
        let mut text = format!("{} of {}: {would}{done}", decided.done, counted(decided.matched as usize, "letter"));
        for (id, reason) in &decided.refused {
            text.push_str(&format!("\nletter {id}: {}", crate::telemetry::shown(reason)));
        }
        let more = decided.refused_count.saturating_sub(decided.refused.len() as u64);
        if more > 0 {
            text.push_str(&format!("\nand {more} more"));
        }
        text
    })?;
    Ok(if decided.refused_count == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn edit_one(edit: &EditArgs) -> anyhow::Result<ExitCode> {
    let payload = match &edit.payload_file {
        Some(file) if file.as_os_str() == "-" => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text)?;
            text
        }
        Some(file) => std::fs::read_to_string(file).with_context(|| file.display().to_string())?,
        None if edit.set.is_empty() => bail!("no change; give --set /pointer=value, or --payload-file"),
        None => with_changes(&ask(&edit.at, &format!("/dead/{}", edit.id))?, &edit.set)?,
    };
    let body = LetterEdit { payload, dry_run: edit.dry_run };
    let decided: LetterDecision = ask_with(&edit.at, &format!("/dead/{}/edit", edit.id), &body)?;
    print(&edit.at, &decided, |decided, _| {
        let how = if decided.dry_run { "would be accepted" } else { "is accepted" };
        format!("letter {} {how} with the new payload", edit.id)
    })
}

/// Returns the payload of a letter with the changes of `--set`.
fn with_changes(letter: &Letter, changes: &[String]) -> anyhow::Result<String> {
    let text = letter.payload_text.as_deref().context("the payload is no text; replace it with --payload-file")?;
    let mut text = text.to_owned();
    for change in changes {
        let (pointer, new) = change
            .split_once('=')
            .with_context(|| format!("\"{change}\" is no change; expected /pointer=value, such as /state=\"idle\""))?;
        let pointer = Pointer::parse(pointer).map_err(anyhow::Error::msg)?;
        // A value that is no JSON is a text whose quotes the shell has removed.
        let is_json = serde_json::from_str::<&serde_json::value::RawValue>(new).is_ok();
        let new = if is_json { new.trim().to_owned() } else { serde_json::to_string(new)? };
        text = with_change(&text, &pointer, &new)
            .context("the payload cannot be changed; replace it with --payload-file")?;
    }
    Ok(text)
}
