//! `forebay replay`: sends settled events again.
//!
//! Invariant: the whole journal is sent only with `--all`.

use super::client::{At, ask, ask_with, post, print};
use super::journal::moment;
use super::show;
use super::table::{bar, time_left};
use crate::api::{Replay, ReplayFilter, ReplayRequest, ReplayState};
use crate::clock;
use crate::event::Timestamp;
use crate::setting::grouped;
use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  forebay replay --to central --since 2h --dry-run\n  \
                  forebay replay --to central --since 2026-11-23T08:00:00Z --until 2026-11-23T10:00:00Z --rate 500"
)]
pub(super) struct ReplayCommand {
    #[command(subcommand)]
    action: Option<ReplayAction>,
    #[command(flatten)]
    start: StartArgs,
}

#[derive(Debug, Subcommand)]
enum ReplayAction {
    /// List replays with their progress
    List(At),
    /// Pause a replay that is running
    Pause(ReplayId),
    /// Resume a replay that is paused
    Resume(ReplayId),
    /// Cancel a replay and forget it
    Cancel(ReplayId),
}

#[derive(Debug, Args)]
struct ReplayId {
    /// Number of the replay in the list
    id: u64,
    #[command(flatten)]
    at: At,
}

#[derive(Debug, Args)]
struct StartArgs {
    /// Name of the destination to send to
    #[arg(long)]
    to: Option<String>,
    /// Events recorded at or after this time, such as 2026-11-23T08:00:00Z, or an age such as 2h
    #[arg(long, value_parser = moment)]
    since: Option<Timestamp>,
    /// Events recorded before this time
    #[arg(long, value_parser = moment)]
    until: Option<Timestamp>,
    /// Only this stream; a `*` at the end matches any suffix; may be repeated
    #[arg(long)]
    stream: Vec<String>,
    /// Only the events of this key
    #[arg(long)]
    key: Option<String>,
    /// Send every settled event of the journal
    #[arg(long, conflicts_with_all = ["since", "until", "stream", "key"])]
    all: bool,
    /// Largest number of events per second
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    rate: Option<u64>,
    /// Only count the events that would be sent
    #[arg(long)]
    dry_run: bool,
    /// Do not wait for the end
    #[arg(long)]
    detach: bool,
    #[command(flatten)]
    at: At,
}

pub(super) fn run(command: ReplayCommand) -> anyhow::Result<ExitCode> {
    match command.action {
        Some(ReplayAction::List(at)) => {
            let replays: Vec<Replay> = ask(&at, "/replay")?;
            print(&at, &replays, |replays, is_coloured| show::replays(replays, is_coloured))
        }
        Some(ReplayAction::Pause(of)) => change(&of, "pause"),
        Some(ReplayAction::Resume(of)) => change(&of, "resume"),
        Some(ReplayAction::Cancel(of)) => change(&of, "cancel"),
        None => start(command.start),
    }
}

fn change(of: &ReplayId, word: &str) -> anyhow::Result<ExitCode> {
    let replay: Replay = post(&of.at, &format!("/replay/{}/{word}", of.id))?;
    print(&of.at, &replay, |replay, is_coloured| show::replays(std::slice::from_ref(replay), is_coloured))
}

fn start(args: StartArgs) -> anyhow::Result<ExitCode> {
    let StartArgs { to, since, until, stream, key, all, rate, dry_run, detach, at } = args;
    let destination = to.context("no destination; give --to with the name of one")?;
    if !all && !dry_run && since.is_none() && until.is_none() && stream.is_empty() && key.is_none() {
        bail!(
            "this would send the whole journal again; narrow it with --since, --until, --stream or --key, count it with --dry-run, or confirm it with --all"
        );
    }
    let filter = ReplayFilter { since, until, streams: stream, key };
    let replay: Replay = ask_with(&at, "/replay", &ReplayRequest { destination, filter, rate, dry_run })?;
    if dry_run {
        return print(&at, &replay, |replay, _| {
            format!("{} events would be sent to {}", grouped(replay.events), replay.destination)
        });
    }
    if !detach && !at.json && std::io::stdout().is_terminal() {
        return watch(&at, replay);
    }
    print(&at, &replay, |replay, _| {
        format!(
            "replay {} of {} events to {} has started; `forebay replay list` shows its progress",
            replay.id,
            grouped(replay.events),
            replay.destination
        )
    })
}

/// Shows the progress of a replay until it ends. An interrupt stops only the display.
fn watch(at: &At, mut replay: Replay) -> anyhow::Result<ExitCode> {
    const WIDTH: usize = 30;
    let (began, before): (Instant, u64) = (clock::instant(), replay.sent + replay.failed);
    println!(
        "replay {}; Ctrl-C stops this display only, `forebay replay pause {}` pauses the replay",
        replay.id, replay.id
    );
    loop {
        let done = replay.sent + replay.failed;
        let share = if replay.events == 0 { 1.0 } else { (done as f64 / replay.events as f64).min(1.0) };
        let bar = bar(share, WIDTH);
        let since = done.saturating_sub(before) as f64 / replay.events.saturating_sub(before).max(1) as f64;
        let is_running = replay.state == ReplayState::Running;
        let left = time_left(since, clock::instant().duration_since(began)).filter(|_| is_running);
        let left = left.map_or_else(String::new, |left| format!(", {left}"));
        let state = if replay.state == ReplayState::Running { "" } else { " " };
        let word = if state.is_empty() { "" } else { show::replay_state(replay.state) };
        print!(
            "\r\x1b[2K{bar} {:>3.0} %  {} of {}{left}{state}{word}",
            share * 100.0,
            grouped(done),
            grouped(replay.events)
        );
        std::io::stdout().flush()?;
        if matches!(replay.state, ReplayState::Done | ReplayState::Cancelled) {
            println!();
            if replay.failed > 0 {
                println!("{} of them were refused by {}", grouped(replay.failed), replay.destination);
            }
            let is_good = replay.state == ReplayState::Done && replay.failed == 0 && done >= replay.events;
            if replay.state == ReplayState::Done && done < replay.events {
                println!("{} of them were deleted from the journal meanwhile", grouped(replay.events - done));
            }
            return Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        std::thread::sleep(Duration::from_millis(500));
        replay = ask(at, &format!("/replay/{}", replay.id))?;
    }
}
