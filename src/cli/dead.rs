//! `forebay dead`: events that are held but cannot be delivered as they are.

use super::journal::moment;
use super::{At, ask, ask_with, counted, print, show};
use crate::admin::Letter;
use crate::admin::dead::{Decided, Edit, LetterFilter};
use crate::event::Timestamp;
use crate::ingest::dead::Stage;
use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, Subcommand)]
pub(super) enum Dead {
    /// The newest dead letters
    List {
        #[command(flatten)]
        at: At,
        /// How many at most
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=10_000))]
        limit: u64,
    },
    /// One dead letter, with its payload
    Show {
        /// Number of the letter
        id: u64,
        #[command(flatten)]
        at: At,
    },
    /// Send letters once more: to central as they were, or through their contract where they came in
    Requeue(Choice),
    /// Give letters up
    Discard(Choice),
    /// Take a letter in with another payload
    Edit(EditOf),
}

/// Which letters.
#[derive(Debug, Args)]
pub(super) struct Choice {
    /// Numbers of letters
    ids: Vec<u64>,
    /// Every letter
    #[arg(long)]
    all: bool,
    /// Letters of this stream
    #[arg(long)]
    stream: Option<String>,
    /// Letters whose reason has this in it
    #[arg(long)]
    reason: Option<String>,
    /// Letters that this destination has refused
    #[arg(long)]
    destination: Option<String>,
    /// Letters that came about on the way in, or at central
    #[arg(long, value_parser = stage)]
    stage: Option<Stage>,
    /// Letters written since then: a time such as 2026-11-23T08:00:00Z, or how long ago, such as 2h
    #[arg(long, value_parser = moment)]
    since: Option<Timestamp>,
    /// Letters written before then
    #[arg(long, value_parser = moment)]
    until: Option<Timestamp>,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    at: At,
}

#[derive(Debug, Args)]
pub(super) struct EditOf {
    /// Number of the letter
    id: u64,
    /// File with the payload; the input, if it is "-"
    #[arg(long, conflicts_with = "set")]
    payload_file: Option<PathBuf>,
    /// Change one value of the payload: a JSON pointer and JSON, such as /state="idle"
    #[arg(long)]
    set: Vec<String>,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    at: At,
}

fn stage(text: &str) -> Result<Stage, String> {
    match text {
        "intake" => Ok(Stage::Intake),
        "central" => Ok(Stage::Central),
        _ => Err("expected \"intake\" or \"central\"".into()),
    }
}

pub(super) fn run(command: Dead) -> anyhow::Result<ExitCode> {
    match command {
        Dead::List { at, limit } => {
            let letters: Vec<Letter> = ask(&at, &format!("/dead?limit={limit}"))?;
            print(&at, &letters, |letters, is_coloured| show::letters(letters, is_coloured))
        }
        Dead::Show { id, at } => {
            let letter: Letter = ask(&at, &format!("/dead/{id}"))?;
            print(&at, &letter, show::letter)
        }
        Dead::Requeue(choice) => decide(choice, "requeue", "requeued"),
        Dead::Discard(choice) => decide(choice, "discard", "discarded"),
        Dead::Edit(edit) => edit_one(&edit),
    }
}

fn decide(choice: Choice, word: &str, done: &str) -> anyhow::Result<ExitCode> {
    let Choice { ids, all, stream, reason, destination, stage, since, until, dry_run, at } = choice;
    let which =
        LetterFilter { ids: ids.into_iter().collect(), all, stream, reason, destination, stage, since, until, dry_run };
    let decided: Decided = ask_with(&at, &format!("/dead/{word}"), &which)?;
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

fn edit_one(edit: &EditOf) -> anyhow::Result<ExitCode> {
    let payload = match &edit.payload_file {
        Some(file) if file.as_os_str() == "-" => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text)?;
            text
        }
        Some(file) => std::fs::read_to_string(file).with_context(|| file.display().to_string())?,
        None if edit.set.is_empty() => bail!("what is to be changed? give --set /pointer=value, or --payload-file"),
        None => changed(&ask(&edit.at, &format!("/dead/{}", edit.id))?, &edit.set)?,
    };
    let body = Edit { payload, dry_run: edit.dry_run };
    let decided: Decided = ask_with(&edit.at, &format!("/dead/{}/edit", edit.id), &body)?;
    print(&edit.at, &decided, |decided, _| {
        let how = if decided.dry_run { "would be taken" } else { "is taken in" };
        format!("letter {} {how} with the new payload", edit.id)
    })
}

/// The payload of a letter with some values changed.
fn changed(letter: &Letter, changes: &[String]) -> anyhow::Result<String> {
    let text = letter.payload_text.as_deref().context("the payload is no text; give a whole one by --payload-file")?;
    let mut value: serde_json::Value =
        serde_json::from_str(text).context("the payload is no JSON; give a whole one by --payload-file")?;
    for change in changes {
        let (pointer, new) = change.split_once('=').with_context(|| {
            format!("\"{change}\" changes nothing; expected /pointer=value, such as /state=\"idle\"")
        })?;
        // What is no JSON is meant as text: quotes are easily lost in a shell.
        let new = serde_json::from_str(new).unwrap_or_else(|_| serde_json::Value::String(new.to_owned()));
        let (parent, name) = pointer
            .rsplit_once('/')
            .with_context(|| format!("\"{pointer}\" is no JSON pointer; expected one such as /state"))?;
        let name = name.replace("~1", "/").replace("~0", "~");
        match value.pointer_mut(parent) {
            Some(serde_json::Value::Object(members)) => drop(members.insert(name, new)),
            Some(serde_json::Value::Array(items)) => {
                let place = name.parse::<usize>().ok().and_then(|index| items.get_mut(index));
                *place.with_context(|| format!("\"{pointer}\" names no item that is there"))? = new;
            }
            _ => bail!("\"{pointer}\" leads nowhere in the payload"),
        }
    }
    Ok(value.to_string())
}
