//! Commands about the journal as a whole: export, verify, backup, salvage.
//!
//! Promise: a running gateway answers over its socket; a journal that lies still is read under its
//! lock and not changed. What goes to a file is there whole or not at all.

mod sink;
mod wreck;

pub(super) use sink::Whole;
pub(super) use wreck::{SalvageArgs, salvage};

use super::show::table;
use super::{At, DEFAULT_CONFIG, finished, json, socket, socket_path};
use crate::admin::journal::{BackupRequest, ExportRequest};
use crate::clock;
use crate::config;
use crate::event::Timestamp;
use crate::journal::{
    Backup, BackupProgress, Export, History, JournalError, Progress, ReadOnlyJournal, Recount, Selection, StateRecount,
    Verification, VerifyProgress,
};
use crate::setting::{Bytes, Span, grouped as number};
use crate::telemetry::shown;
use anyhow::{Context, anyhow, bail};
use clap::{Args, ValueEnum};
use sink::{Bar, Sink};
use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

/// Which journal.
#[derive(Debug, Args)]
pub(super) struct Place {
    /// Configuration file, which names journal and socket
    #[arg(long, default_value = DEFAULT_CONFIG)]
    config: PathBuf,
    /// Socket of a running gateway
    #[arg(long, conflicts_with = "journal")]
    socket: Option<PathBuf>,
    /// Folder of a journal that no gateway runs on, such as a backup
    #[arg(long)]
    journal: Option<PathBuf>,
}

/// How exported events are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// One CloudEvent a line
    Lines,
    /// One CloudEvents batch: a JSON array
    Batch,
}

#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    #[command(flatten)]
    place: Place,
    /// Recorded at this time or later: RFC 3339, or how long ago, such as 2h
    #[arg(long, value_parser = moment)]
    since: Option<Timestamp>,
    /// Recorded before this time
    #[arg(long, value_parser = moment)]
    until: Option<Timestamp>,
    /// Only this stream; `*` at the end stands for any rest; may be repeated
    #[arg(long)]
    stream: Vec<String>,
    /// Only this key; may be repeated
    #[arg(long)]
    key: Vec<String>,
    /// How events are written
    #[arg(long, value_enum, default_value = "lines")]
    format: Format,
    /// Put each event into an object with its lane and offset
    #[arg(long)]
    with_offsets: bool,
    /// Write to this file, whole or not at all
    #[arg(long)]
    out: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct BackupArgs {
    #[command(flatten)]
    place: Place,
    /// A folder that is not there yet; a running gateway writes it as its own user
    #[arg(long)]
    to: PathBuf,
    /// As JSON; errors stay text on standard error, with exit code 1
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    #[command(flatten)]
    place: Place,
    /// As JSON; errors stay text on standard error, with exit code 1
    #[arg(long)]
    json: bool,
}

/// Reads a moment: RFC 3339, or a span of time before now.
pub(super) fn moment(text: &str) -> Result<Timestamp, String> {
    if let Some(at) = Timestamp::parse(text) {
        return Ok(at);
    }
    let span = Span::parse(text).map_err(|_| {
        format!("\"{text}\" is no time; expected RFC 3339 such as \"2026-11-23T08:00:00Z\", or how long ago, such as \"2h\" or \"7d\"")
    })?;
    Ok(Timestamp::from(clock::wall()).before(span.0))
}

/// A journal, and how it is reached.
enum Journal {
    /// Over the socket of its gateway.
    Running(PathBuf),
    /// By its files.
    Still(Box<ReadOnlyJournal>),
}

impl Place {
    fn open(&self) -> anyhow::Result<Journal> {
        if self.socket.is_some() {
            return Ok(Journal::Running(self.socket_path()?));
        }
        let folder = match &self.journal {
            Some(folder) => folder.clone(),
            None => config::journal_of(&self.config)?,
        };
        let is_refused = |error: &JournalError| matches!(error, JournalError::Io { error, .. } if error.kind() == std::io::ErrorKind::PermissionDenied);
        match ReadOnlyJournal::open(&folder) {
            Ok(shelf) => {
                eprintln!("no gateway runs on {}: reading its files; none starts meanwhile", folder.display());
                Ok(Journal::Still(Box::new(shelf)))
            }
            Err(error @ JournalError::InUse { .. }) if self.journal.is_some() => {
                Err(anyhow!(error).context("ask its gateway with --config or --socket"))
            }
            Err(JournalError::InUse { holder, .. }) => {
                let socket = self.socket_path()?;
                eprintln!("the gateway runs (process {holder}): asking it at {}", socket.display());
                Ok(Journal::Running(socket))
            }
            // Another user may ask a gateway whose files only the service reads.
            Err(error) if self.journal.is_none() && is_refused(&error) => {
                let socket = self.socket_path()?;
                match std::os::unix::net::UnixStream::connect(&socket) {
                    Ok(_) => Ok(Journal::Running(socket)),
                    Err(_) => Err(anyhow!(error).context("no gateway runs, and this user may not read its journal")),
                }
            }
            Err(JournalError::Io { error, .. }) if error.kind() == std::io::ErrorKind::NotFound => {
                bail!("{} is no journal: there is no journal.toml in it", folder.display())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn socket_path(&self) -> anyhow::Result<PathBuf> {
        socket_path(&At { config: self.config.clone(), socket: self.socket.clone(), json: false })
    }
}

fn histories(shelf: &ReadOnlyJournal) -> impl Iterator<Item = Arc<dyn History>> {
    shelf.lanes().iter().map(|lane| Arc::clone(lane) as Arc<dyn History>)
}

/// `forebay export`.
pub(super) fn export(args: &ExportArgs) -> anyhow::Result<ExitCode> {
    if args.with_offsets && args.format == Format::Batch {
        bail!("--with-offsets goes with --format lines: a batch holds plain CloudEvents");
    }
    let selection =
        Selection { since: args.since, until: args.until, streams: args.stream.clone(), keys: args.key.clone() };
    let journal = args.place.open()?;
    let mut sink = Sink::new(args.out.as_deref(), args.format)?;
    let mut last = Progress::default();
    match journal {
        Journal::Running(socket) => {
            let ask = ExportRequest { selection, with_offsets: args.with_offsets };
            finished(socket::work(&socket, "/journal/export", &ask, |line| {
                match line.strip_prefix(b"#") {
                    Some(progress) => last = serde_json::from_slice(progress)?,
                    None => sink.event(line)?,
                }
                sink.show(&last);
                Ok(())
            }))??;
        }
        Journal::Still(shelf) => {
            let publications: Vec<_> = shelf.publications().all().cloned().collect();
            let mut export = Export::new(histories(&shelf), &publications, selection, args.with_offsets)?;
            let mut out = Vec::new();
            loop {
                let more = export.step(&mut out)?;
                for line in out.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                    sink.event(line)?;
                }
                out.clear();
                sink.show(export.progress());
                if !more {
                    break;
                }
            }
            last = export.progress().clone();
        }
    }
    if !last.is_complete {
        bail!("the export is cut short: the gateway has ended meanwhile");
    }
    sink.finish()?;
    eprintln!("{} events", number(last.events));
    if last.unrendered > 0 {
        let count = number(last.unrendered);
        eprintln!("{count} more could not be written: their publication is lost");
    }
    if last.lost > 0 {
        let count = number(last.lost);
        eprintln!("{count} offsets could not be read: their files are damaged or set aside; see `forebay verify`");
    }
    Ok(ExitCode::SUCCESS)
}

/// `forebay verify`.
pub(super) fn verify(args: &VerifyArgs) -> anyhow::Result<ExitCode> {
    let mut bar = Bar::new();
    let recount = match args.place.open()? {
        Journal::Running(socket) => {
            let mut recount = None;
            let ask = serde_json::Value::Null;
            finished(socket::work(&socket, "/journal/verify", &ask, |line| {
                match line.strip_prefix(b"#") {
                    Some(counted) => {
                        let VerifyProgress { done, total } = serde_json::from_slice(counted)?;
                        bar.show(done, total, "counted");
                    }
                    None => recount = Some(serde_json::from_slice(line)?),
                }
                Ok(())
            }))??;
            recount.context("the count is cut short: the gateway has ended meanwhile")?
        }
        Journal::Still(shelf) => {
            let mut counting = Verification::new(histories(&shelf));
            while counting.step()? {
                let VerifyProgress { done, total } = counting.counted();
                bar.show(done, total, "counted");
            }
            let mut recount = counting.finish(shelf.recount_state());
            for damaged in &shelf.publications().damaged {
                recount.is_good = false;
                if let Some(lane) = recount.lanes.first_mut() {
                    lane.faults.push(damaged.clone());
                }
            }
            recount
        }
    };
    bar.clear();
    let text = if args.json { json(&recount)? } else { show_recount(&recount, std::io::stdout().is_terminal()) };
    writeln!(std::io::stdout(), "{}", text.trim_end())?;
    Ok(if recount.is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn show_recount(recount: &Recount, is_coloured: bool) -> String {
    let mut rows = Vec::new();
    let mut owed = Vec::new();
    let mut words = Vec::new();
    for lane in &recount.lanes {
        for stream in &lane.streams {
            rows.push(vec![
                lane.lane.clone(),
                stream.stream.clone(),
                number(stream.accepted),
                number(stream.events),
                number(stream.first),
                number(stream.last),
            ]);
        }
        for to in &lane.destinations {
            for stream in &to.streams {
                owed.push(vec![
                    lane.lane.clone(),
                    to.destination.clone(),
                    stream.stream.clone(),
                    number(stream.queued),
                    number(stream.settled),
                    number(stream.in_accounts),
                    number(stream.in_none),
                ]);
            }
        }
        words.extend(lane.notes.iter().map(|note| format!("· lane {}: {}", lane.lane, shown(note))));
        words.extend(lane.faults.iter().map(|fault| format!("! lane {}: {}", lane.lane, shown(fault))));
        if lane.faults_unnamed > 0 {
            words.push(format!("! lane {}: and {} more", lane.lane, number(lane.faults_unnamed)));
        }
    }
    let mut out = String::new();
    let head = ["LANE", "STREAM", "ACCEPTED", "THERE", "FIRST", "LAST"];
    out.push_str(&table(&head, &[2, 3, 4, 5], &rows, is_coloured));
    if !owed.is_empty() {
        let head = ["LANE", "DESTINATION", "STREAM", "QUEUED", "SETTLED", "IN ACCOUNTS", "IN NONE"];
        out.push('\n');
        out.push_str(&table(&head, &[3, 4, 5, 6], &owed, is_coloured));
    }
    let events = recount.lanes.iter().map(|lane| lane.events).sum();
    let blocks = recount.lanes.iter().map(|lane| lane.blocks).sum();
    out.push('\n');
    words.push(format!("{} events in {} blocks whose checksums fit", number(events), number(blocks)));
    let StateRecount { notes, bytes, fault } = &recount.state;
    words.push(match fault {
        None => {
            format!("{} notes of sessions, positions and the audit in state.redb ({})", number(*notes), Bytes(*bytes))
        }
        Some(fault) => format!("! state.redb: {}", shown(fault)),
    });
    words.push(if recount.is_good { "the journal balances".into() } else { "the journal does not balance".into() });
    out.push_str(&words.join("\n"));
    out
}

/// `forebay backup`.
pub(super) fn backup(args: &BackupArgs) -> anyhow::Result<ExitCode> {
    let to = std::path::absolute(&args.to).context("where --to is")?;
    let mut bar = Bar::new();
    let mut show = |copied: &BackupProgress| {
        bar.show(copied.done, copied.total, &format!("{} copied, now {}", Bytes(copied.done), copied.part));
    };
    let made: Backup = match args.place.open()? {
        Journal::Running(socket) => {
            let mut made = None;
            let ask = BackupRequest { to: to.clone() };
            let work = socket::work(&socket, "/journal/backup", &ask, |line| {
                match line.strip_prefix(b"#") {
                    Some(copied) => show(&serde_json::from_slice(copied)?),
                    None => made = Some(serde_json::from_slice(line)?),
                }
                Ok(())
            });
            finished(work)?.with_context(|| no_backup(&to))?;
            made.context("the backup is cut short: the gateway has ended meanwhile")?
        }
        Journal::Still(shelf) => {
            let mut tell = |copied: BackupProgress| {
                show(&copied);
                ControlFlow::Continue(())
            };
            shelf.back_up(&to, &mut tell).with_context(|| no_backup(&to))?
        }
    };
    bar.clear();
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", json(&made)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    for (lane, events, _) in &made.lanes {
        writeln!(out, "{:<12} {:>16} events since its journal was begun", shown(lane), number(*events))?;
    }
    for left in &made.left_out {
        writeln!(out, "not in it: {}", shown(left))?;
    }
    writeln!(out, "{} in {}, as of {}", Bytes(made.bytes), made.folder.display(), made.taken)?;
    Ok(ExitCode::SUCCESS)
}

fn no_backup(to: &Path) -> String {
    format!("no backup to {}", to.display())
}
