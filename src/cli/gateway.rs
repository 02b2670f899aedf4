//! Commands that show or change the running gateway.

use super::client::{At, ask, finished, post, print, request, socket_path};
use super::confirm::confirm_at_terminal;
use super::drains::Drains;
use super::table::counted;
use super::{show, socket};
use crate::api::{
    AuditEntry, Balance, ClockStatus, Exception, HealthCheck, ListedDevice, ReloadAnswer, Status, TailEvent,
};
use crate::event::push_path_segment;
use crate::setting::Span;
use crate::telemetry::{shown, shown_json, shows_colours};
use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use hyper::Method;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

#[derive(Debug, Args)]
pub(super) struct StatusOf {
    #[command(flatten)]
    at: At,
    /// Show the ledger: the fate of every event, by stream and destination
    #[arg(long)]
    ledger: bool,
    /// Show it again and again, every two seconds or at this interval
    #[arg(long, value_name = "INTERVAL", num_args = 0..=1, default_missing_value = "2s", value_parser = Span::parse)]
    watch: Option<Span>,
}

#[derive(Debug, Subcommand)]
pub(super) enum DestinationCommand {
    /// List the destinations: those of the configuration, and those whose events wait although they were removed
    List(At),
    /// Discard all undelivered events of a destination that was removed from the configuration
    Drop {
        /// Name of the destination in the configuration
        name: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        at: At,
    },
}

#[derive(Debug, Args)]
pub(super) struct Tail {
    #[command(flatten)]
    at: At,
    /// Only this stream; a `*` at the end matches any suffix
    #[arg(long)]
    stream: Option<String>,
}

pub(super) fn status(StatusOf { at, ledger, watch }: &StatusOf) -> anyhow::Result<ExitCode> {
    let Some(interval) = watch else { return status_once(at, *ledger) };
    let mut drains = Drains::default();
    loop {
        if std::io::stdout().is_terminal() && !at.json {
            // Cursor home, clear screen.
            write!(std::io::stdout(), "\x1b[H\x1b[2J")?;
        }
        if *ledger {
            status_once(at, true)?;
        } else {
            let status: Status = ask(at, "/status")?;
            let lines = drains.lines(&status);
            print(at, &status, |status, is_coloured| show::status(status, is_coloured) + "\n" + &lines.join("\n"))?;
        }
        std::thread::sleep(interval.0.max(WATCH_MIN));
    }
}

/// Shortest interval of `status --watch`: a status reads the accounts of all lanes.
const WATCH_MIN: Duration = Duration::from_millis(200);

fn status_once(at: &At, is_ledger: bool) -> anyhow::Result<ExitCode> {
    if !is_ledger {
        return print(at, &ask(at, "/status")?, show::status);
    }
    let balances: Vec<Balance> = ask(at, "/ledger")?;
    print(at, &balances, |balances, is_coloured| show::ledger(balances, is_coloured))?;
    let is_even = balances.iter().all(|balance| balance.difference == 0);
    Ok(if is_even { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Queries readiness, which includes liveness.
pub(super) fn health(at: &At) -> anyhow::Result<ExitCode> {
    let (is_good, text) = finished(socket::get_any(&socket_path(at)?, "/readyz"))??;
    let checks: Vec<HealthCheck> = text
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()
        .context("the gateway responds in another format")?;
    print(at, &checks, |checks, _| {
        let reasons = checks
            .iter()
            .filter_map(|check| Some(format!("{}: {}", shown(&check.check), shown(check.reason.as_deref()?))));
        let is_good = checks.iter().all(|check| check.good);
        let all = is_good.then(|| "live and accepting events".to_owned()).into_iter().chain(reasons);
        all.collect::<Vec<_>>().join("\n")
    })?;
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Requests a reload and prints its result.
pub(super) fn reload(at: &At) -> anyhow::Result<ExitCode> {
    let answer: ReloadAnswer = request(at, Method::POST, "/reload", Vec::new())?;
    print(at, &answer, |answer, _| match (&answer.problems[..], &answer.changes[..]) {
        ([], []) => "reloaded; nothing has changed".to_owned(),
        ([], changes) => format!("in force:\n{}", changes.join("\n")),
        (problems, _) => format!("{}\nrefused; the previous configuration stays in force", problems.join("\n")),
    })?;
    Ok(if answer.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

pub(super) fn destinations(command: &DestinationCommand) -> anyhow::Result<ExitCode> {
    match command {
        DestinationCommand::List(at) => {
            let status: Status = ask(at, "/status")?;
            print(at, &show::destination_list(&status), |list, is_coloured| show::destinations(list, is_coloured))
        }
        DestinationCommand::Drop { name, yes, at } => drop_destination(name, *yes, at),
    }
}

fn drop_destination(name: &str, is_confirmed: bool, at: &At) -> anyhow::Result<ExitCode> {
    confirm_at_terminal(
        &format!("discard all undelivered events of \"{name}\"? This cannot be undone."),
        is_confirmed,
    )?;
    let mut path = "/destination/".to_owned();
    push_path_segment(&mut path, name);
    let count: u64 = request(at, Method::DELETE, &path, Vec::new())?;
    print(at, &serde_json::json!({"destination": name, "discarded": count}), |_, _| {
        format!("destination \"{name}\" is dropped; {} discarded", counted(count as usize, "undelivered event"))
    })
}

pub(super) fn clock(at: &At, trust: bool) -> anyhow::Result<ExitCode> {
    let clock: ClockStatus = if trust { post(at, "/clock/trust")? } else { ask(at, "/clock")? };
    print(at, &clock, |clock, _| match clock.problem() {
        Some(problem) => problem,
        None => format!("clock: {}, trusted", clock.time),
    })
}

pub(super) fn audit(at: &At, limit: u64) -> anyhow::Result<ExitCode> {
    let entries: Vec<AuditEntry> = ask(at, &format!("/audit?limit={limit}"))?;
    print(at, &entries, |entries, is_coloured| show::audit(entries, is_coloured))
}

pub(super) fn devices(at: &At) -> anyhow::Result<ExitCode> {
    let devices: Vec<ListedDevice> = ask(at, "/devices")?;
    print(at, &devices, |devices, is_coloured| show::devices(devices, is_coloured))
}

pub(super) fn exceptions(at: &At) -> anyhow::Result<ExitCode> {
    let open: Vec<Exception> = ask(at, "/exceptions")?;
    print(at, &open, |open, is_coloured| show::exceptions(open, is_coloured))
}

/// Prints new events until the gateway ends.
pub(super) fn follow(tail: &Tail) -> anyhow::Result<ExitCode> {
    let socket = socket_path(&tail.at)?;
    let path = match &tail.stream {
        Some(stream) if stream.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-*".contains(&b)) => {
            format!("/tail?stream={stream}")
        }
        Some(stream) => {
            bail!("\"{stream}\" is no stream name; expected letters, digits, \".\", \"_\", \"-\", and \"*\" at the end")
        }
        None => "/tail".into(),
    };
    let is_terminal = shows_colours(&std::io::stdout());
    finished(socket::lines(&socket, &path, |line| {
        let mut out = std::io::stdout().lock();
        if tail.at.json {
            writeln!(out, "{}", shown_json(&String::from_utf8_lossy(line)))?;
        } else {
            let event: TailEvent = serde_json::from_slice(line)?;
            writeln!(out, "{}", show::tail_event(&event, is_terminal))?;
        }
        out.flush()?;
        Ok(())
    }))??;
    Ok(ExitCode::SUCCESS)
}
