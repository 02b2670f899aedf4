//! Commands about the whole journal: export, verify, backup, salvage.
//!
//! Promise: with a running gateway the commands use its socket. Without one they read the journal under its lock and do
//! not change it. An output file is complete or does not exist.

mod salvage;
mod sink;

pub(super) use salvage::{SalvageArgs, salvage};

use super::client::{At, finished, json, socket_path};
use super::config_file::ConfigFile;
use super::socket;
use super::table::table;
use crate::api::{
    Backup, BackupProgress, BackupRequest, ExportProgress, ExportRequest, Recount, Selection, StateRecount,
    VerifyProgress,
};
use crate::clock;
use crate::config;
use crate::event::Timestamp;
use crate::journal::{Export, JournalError, ReadOnlyJournal, Verification};
use crate::setting::{Bytes, Span, grouped as number};
use crate::telemetry::{shown, shows_colours};
use anyhow::{Context, anyhow, bail};
use clap::Args;
pub(super) use sink::AtomicFile;
use sink::{Bar, ExportFormat, Sink};
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The journal to read: its gateway or its folder.
#[derive(Debug, Args)]
pub(super) struct JournalArgs {
    #[command(flatten)]
    config: ConfigFile,
    /// Socket of a running gateway
    #[arg(long, conflicts_with = "journal")]
    socket: Option<PathBuf>,
    /// Folder of a journal that no gateway uses, such as a backup
    #[arg(long)]
    journal: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    #[command(flatten)]
    place: JournalArgs,
    /// Recorded at this time or later: RFC 3339, or an age such as 2h
    #[arg(long, value_parser = moment)]
    since: Option<Timestamp>,
    /// Only events recorded before this time
    #[arg(long, value_parser = moment)]
    until: Option<Timestamp>,
    /// Only this stream; a `*` at the end matches any suffix; may be repeated
    #[arg(long)]
    stream: Vec<String>,
    /// Only this key; may be repeated
    #[arg(long)]
    key: Vec<String>,
    /// Format in which events are written
    #[arg(long, value_enum, default_value = "lines")]
    format: ExportFormat,
    /// Wrap each event in an object with lane and offset
    #[arg(long)]
    with_offsets: bool,
    /// Write to this file; it appears only when it is complete
    #[arg(long, alias = "out")]
    output: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct BackupArgs {
    #[command(flatten)]
    place: JournalArgs,
    /// A folder that does not exist yet; a running gateway writes it as its own user
    #[arg(long = "output", alias = "to")]
    to: PathBuf,
    /// Print JSON; errors stay text on standard error, with exit code 1
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    #[command(flatten)]
    place: JournalArgs,
    /// Print JSON; errors stay text on standard error, with exit code 1
    #[arg(long)]
    json: bool,
}

/// Parses a point in time: RFC 3339, or an age.
pub(super) fn moment(text: &str) -> Result<Timestamp, String> {
    if let Some(at) = Timestamp::parse(text) {
        return Ok(at);
    }
    let span = Span::parse(text).map_err(|_| {
        format!("\"{text}\" is no time; expected RFC 3339 such as \"2026-11-23T08:00:00Z\", or an age such as \"2h\" or \"7d\"")
    })?;
    Ok(Timestamp::from(clock::wall()).before(span.0))
}

enum Journal {
    /// The command socket of its running gateway.
    Running(PathBuf),
    /// The files of a journal that no gateway uses.
    Offline(Box<ReadOnlyJournal>),
}

impl JournalArgs {
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
                eprintln!(
                    "no gateway uses {}: reading its files; no gateway can start on it meanwhile",
                    folder.display()
                );
                Ok(Journal::Offline(Box::new(shelf)))
            }
            Err(error @ JournalError::InUse { .. }) if self.journal.is_some() => {
                Err(anyhow!(error).context("use its gateway with --config or --socket"))
            }
            Err(JournalError::InUse { holder, .. }) => {
                let socket = self.socket_path()?;
                eprintln!("the gateway is running (process {holder}): using its socket {}", socket.display());
                Ok(Journal::Running(socket))
            }
            // A user may be allowed to use the socket although only the service can read the files.
            Err(error) if self.journal.is_none() && is_refused(&error) => {
                let socket = self.socket_path()?;
                match std::os::unix::net::UnixStream::connect(&socket) {
                    Ok(_) => Ok(Journal::Running(socket)),
                    Err(_) => {
                        Err(anyhow!(error).context("no gateway is running, and this user may not read the journal"))
                    }
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

/// Runs the command `forebay export`.
pub(super) fn export(args: &ExportArgs) -> anyhow::Result<ExitCode> {
    if args.with_offsets && args.format == ExportFormat::Batch {
        bail!("--with-offsets needs --format lines: a batch contains plain CloudEvents");
    }
    let selection =
        Selection { since: args.since, until: args.until, streams: args.stream.clone(), keys: args.key.clone() };
    let journal = args.place.open()?;
    let mut sink = Sink::new(args.output.as_deref(), args.format)?;
    let mut last = ExportProgress::default();
    match journal {
        Journal::Running(socket) => {
            let request = ExportRequest { selection, with_offsets: args.with_offsets };
            finished(socket::stream_operation(&socket, "/journal/export", &request, |line| {
                match line.strip_prefix(b"#") {
                    Some(progress) => last = serde_json::from_slice(progress)?,
                    None => sink.event(line)?,
                }
                sink.show(&last);
                Ok(())
            }))??;
        }
        Journal::Offline(shelf) => {
            let publications: Vec<_> = shelf.publications().all().cloned().collect();
            let mut export = Export::new(shelf.lanes().iter().cloned(), &publications, selection, args.with_offsets)?;
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
        bail!("the export is incomplete: the gateway has ended meanwhile");
    }
    sink.finish()?;
    eprintln!("{} events", number(last.events));
    if last.unrendered > 0 {
        let count = number(last.unrendered);
        eprintln!("{count} more could not be exported: their publication is lost");
    }
    if last.lost > 0 {
        let count = number(last.lost);
        eprintln!("{count} offsets could not be read: their files are damaged or set aside; see `forebay verify`");
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs the command `forebay verify`.
pub(super) fn verify(args: &VerifyArgs) -> anyhow::Result<ExitCode> {
    let mut bar = Bar::new();
    let recount = match args.place.open()? {
        Journal::Running(socket) => {
            let mut recount = None;
            let request = serde_json::Value::Null;
            finished(socket::stream_operation(&socket, "/journal/verify", &request, |line| {
                match line.strip_prefix(b"#") {
                    Some(counted) => {
                        let VerifyProgress { done, total } = serde_json::from_slice(counted)?;
                        bar.show(done, total, "counted");
                    }
                    None => recount = Some(serde_json::from_slice(line)?),
                }
                Ok(())
            }))??;
            recount.context("the verification is incomplete: the gateway has ended meanwhile")?
        }
        Journal::Offline(shelf) => {
            let mut counting = Verification::new(shelf.lanes().iter().cloned());
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
    let text = if args.json { json(&recount)? } else { show_recount(&recount, shows_colours(&std::io::stdout())) };
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
    words.push(format!("{} events in {} blocks with valid checksums", number(events), number(blocks)));
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

/// Runs the command `forebay backup`.
pub(super) fn backup(args: &BackupArgs) -> anyhow::Result<ExitCode> {
    let to = std::path::absolute(&args.to).context("--to")?;
    let mut bar = Bar::new();
    let mut show = |copied: &BackupProgress| {
        bar.show(copied.done, copied.total, &format!("{} copied, now {}", Bytes(copied.done), copied.part));
    };
    let made: Backup = match args.place.open()? {
        Journal::Running(socket) => {
            let mut made = None;
            let request = BackupRequest { to: to.clone() };
            let work = socket::stream_operation(&socket, "/journal/backup", &request, |line| {
                match line.strip_prefix(b"#") {
                    Some(copied) => show(&serde_json::from_slice(copied)?),
                    None => made = Some(serde_json::from_slice(line)?),
                }
                Ok(())
            });
            finished(work)?.with_context(|| backup_failed(&to))?;
            made.context("the backup is incomplete: the gateway has ended meanwhile")?
        }
        Journal::Offline(shelf) => {
            let mut report = |copied: BackupProgress| {
                show(&copied);
                ControlFlow::Continue(())
            };
            shelf.back_up(&to, &mut report).with_context(|| backup_failed(&to))?
        }
    };
    bar.clear();
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", json(&made)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    for (lane, events, _) in &made.lanes {
        writeln!(out, "{:<12} {:>16} events since the journal was created", shown(lane), number(*events))?;
    }
    for left in &made.left_out {
        writeln!(out, "not in the backup: {}", shown(left))?;
    }
    writeln!(out, "{} in {}, as of {}", Bytes(made.bytes), made.folder.display(), made.taken)?;
    Ok(ExitCode::SUCCESS)
}

fn backup_failed(to: &Path) -> String {
    format!("could not back up to {}", to.display())
}
