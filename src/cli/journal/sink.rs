//! Output of exported events, with a progress bar.
//!
//! Promise: a file gets its name only when it is complete and synced to the disk.

use crate::api::ExportProgress;
use crate::cli::table::{bar, time_left};
use crate::clock;
use crate::setting::{Bytes, grouped as number};
use crate::telemetry::{shown, shown_json};
use anyhow::Context;
use clap::ValueEnum;
use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Stdout, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Refresh interval of the progress bar.
const REFRESH_INTERVAL: Duration = Duration::from_millis(200);

/// Output format of exported events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum ExportFormat {
    /// One CloudEvent as JSON per line
    Lines,
    /// One CloudEvents batch: a JSON array
    Batch,
}

/// Standard output or an output file.
enum Out {
    Standard(BufWriter<Stdout>),
    File(AtomicFile),
}

/// A file that is written under a temporary name and renamed when it is complete.
pub(in crate::cli) struct AtomicFile {
    file: BufWriter<File>,
    partial: PathBuf,
    to: PathBuf,
    is_finished: bool,
}

impl AtomicFile {
    /// Creates the temporary file (`.partial`).
    pub(in crate::cli) fn begin(to: &Path) -> anyhow::Result<Self> {
        let mut partial = to.to_owned();
        partial.as_mut_os_string().push(".partial");
        // Mode 0600: events may contain personal data.
        let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&partial);
        let file = file.with_context(|| partial.display().to_string())?;
        Ok(Self { file: BufWriter::new(file), partial, to: to.to_owned(), is_finished: false })
    }

    pub(in crate::cli) fn write(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.file.write_all(bytes).with_context(|| self.partial.display().to_string())
    }

    /// Syncs the file and renames it.
    pub(in crate::cli) fn finish(mut self) -> anyhow::Result<()> {
        let named = || self.to.display().to_string();
        self.file.flush().with_context(named)?;
        self.file.get_ref().sync_all().with_context(named)?;
        std::fs::rename(&self.partial, &self.to).with_context(named)?;
        let folder = self.to.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
        File::open(folder).and_then(|folder| folder.sync_all()).with_context(named)?;
        self.is_finished = true;
        Ok(())
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if !self.is_finished {
            // On failure, the next attempt overwrites the incomplete file.
            let _ = std::fs::remove_file(&self.partial);
        }
    }
}

/// Writes exported events to the output.
pub(super) struct Sink {
    out: Out,
    format: ExportFormat,
    is_terminal: bool,
    events: u64,
    bytes: u64,
    bar: Bar,
}

impl Sink {
    pub(super) fn new(to: Option<&Path>, format: ExportFormat) -> anyhow::Result<Self> {
        let out = match to {
            Some(to) => Out::File(AtomicFile::begin(to)?),
            None => Out::Standard(BufWriter::new(io::stdout())),
        };
        let is_terminal = to.is_none() && io::stdout().is_terminal();
        // No progress bar between events on a terminal.
        let bar = if is_terminal { Bar::silent() } else { Bar::new() };
        Ok(Self { out, format, is_terminal, events: 0, bytes: 0, bar })
    }

    /// Writes one event, given as a JSON object without an end of line.
    pub(super) fn event(&mut self, line: &[u8]) -> anyhow::Result<()> {
        let before: &[u8] = match (self.format, self.events) {
            (ExportFormat::Lines, _) => b"",
            (ExportFormat::Batch, 0) => b"[",
            (ExportFormat::Batch, _) => b",\n",
        };
        self.events += 1;
        self.write(before)?;
        if self.is_terminal {
            let safe = shown_json(&String::from_utf8_lossy(line));
            self.write(safe.as_bytes())?;
        } else {
            self.write(line)?;
        }
        if self.format == ExportFormat::Lines { self.write(b"\n") } else { Ok(()) }
    }

    fn write(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.bytes += bytes.len() as u64;
        match &mut self.out {
            Out::Standard(out) => Ok(out.write_all(bytes)?),
            Out::File(file) => file.write(bytes),
        }
    }

    pub(super) fn show(&mut self, progress: &ExportProgress) {
        let (events, bytes) = (number(progress.events), Bytes(self.bytes));
        self.bar.show_with(progress.done, progress.total, || format!("{events} events, {bytes}"));
    }

    /// Writes the end of the output and syncs it.
    pub(in crate::cli) fn finish(mut self) -> anyhow::Result<()> {
        match (self.format, self.events) {
            (ExportFormat::Lines, _) => {}
            (ExportFormat::Batch, 0) => self.write(b"[]\n")?,
            (ExportFormat::Batch, _) => self.write(b"]\n")?,
        }
        self.bar.clear();
        match self.out {
            Out::Standard(mut out) => Ok(out.flush()?),
            Out::File(file) => file.finish(),
        }
    }
}

/// A progress bar on standard error, if that is a terminal.
pub(super) struct Bar {
    is_shown: bool,
    shown_at: Option<Instant>,
    began: Instant,
}

/// Width of a full bar in characters.
const BAR_WIDTH: usize = 30;

impl Bar {
    pub(super) fn new() -> Self {
        Self { is_shown: io::stderr().is_terminal(), ..Self::silent() }
    }

    fn silent() -> Self {
        Self { is_shown: false, shown_at: None, began: clock::instant() }
    }

    pub(super) fn show(&mut self, done: u64, total: u64, what: &str) {
        self.show_with(done, total, || what.to_owned());
    }

    fn show_with(&mut self, done: u64, total: u64, what: impl FnOnce() -> String) {
        let now = clock::instant();
        if !self.is_shown || self.shown_at.is_some_and(|at| now.duration_since(at) < REFRESH_INTERVAL) {
            return;
        }
        self.shown_at = Some(now);
        let share = done as f64 / total.max(1) as f64;
        let bar = bar(share, BAR_WIDTH);
        let left = time_left(share, now.duration_since(self.began)).map_or_else(String::new, |left| left + "  ");
        // Fails only if the terminal is gone.
        let _ = write!(io::stderr(), "\r{bar} {:>3.0} %  {left}{}\x1b[K", share * 100.0, shown(&what()));
    }

    pub(super) fn clear(&mut self) {
        if self.is_shown && self.shown_at.is_some() {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}
