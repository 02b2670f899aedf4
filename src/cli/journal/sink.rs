//! Where exported events go, and how far that is.
//!
//! Promise: a file has its name only once it is whole and on the disk.

use super::Format;
use crate::clock;
use crate::journal::Progress;
use crate::setting::{Bytes, grouped as number};
use crate::telemetry::{shown, shown_json};
use anyhow::Context;
use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Stdout, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often the line that says how far it is changes.
const SHOWN_EVERY: Duration = Duration::from_millis(200);

/// Standard output, or a file in the making.
enum Out {
    Standard(BufWriter<Stdout>),
    File(Whole),
}

/// A file that gets its name when it is whole.
pub(in crate::cli) struct Whole {
    file: BufWriter<File>,
    partial: PathBuf,
    to: PathBuf,
    is_whole: bool,
}

impl Whole {
    /// Begins the file under another name.
    pub(in crate::cli) fn begin(to: &Path) -> anyhow::Result<Self> {
        let mut partial = to.to_owned();
        partial.as_mut_os_string().push(".partial");
        // Events may be personal.
        let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&partial);
        let file = file.with_context(|| partial.display().to_string())?;
        Ok(Self { file: BufWriter::new(file), partial, to: to.to_owned(), is_whole: false })
    }

    /// Appends to it.
    pub(in crate::cli) fn write(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.file.write_all(bytes).with_context(|| self.partial.display().to_string())
    }

    /// Gives it its name, once it is on the disk.
    pub(in crate::cli) fn finish(mut self) -> anyhow::Result<()> {
        let named = || self.to.display().to_string();
        self.file.flush().with_context(named)?;
        self.file.get_ref().sync_all().with_context(named)?;
        std::fs::rename(&self.partial, &self.to).with_context(named)?;
        let folder = self.to.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
        File::open(folder).and_then(|folder| folder.sync_all()).with_context(named)?;
        self.is_whole = true;
        Ok(())
    }
}

impl Drop for Whole {
    fn drop(&mut self) {
        if !self.is_whole {
            // What is not whole is of no use; the next try replaces what cannot be removed.
            let _ = std::fs::remove_file(&self.partial);
        }
    }
}

/// Takes events, one after the other.
pub(super) struct Sink {
    out: Out,
    format: Format,
    is_terminal: bool,
    events: u64,
    bytes: u64,
    bar: Bar,
}

impl Sink {
    pub(super) fn new(to: Option<&Path>, format: Format) -> anyhow::Result<Self> {
        let out = match to {
            Some(to) => Out::File(Whole::begin(to)?),
            None => Out::Standard(BufWriter::new(io::stdout())),
        };
        let is_terminal = to.is_none() && io::stdout().is_terminal();
        // Among the events on a terminal there is no place for it.
        let bar = if is_terminal { Bar::silent() } else { Bar::new() };
        Ok(Self { out, format, is_terminal, events: 0, bytes: 0, bar })
    }

    /// Writes one event, given as a JSON object without an end of line.
    pub(super) fn event(&mut self, line: &[u8]) -> anyhow::Result<()> {
        let before: &[u8] = match (self.format, self.events) {
            (Format::Lines, _) => b"",
            (Format::Batch, 0) => b"[",
            (Format::Batch, _) => b",\n",
        };
        self.events += 1;
        self.write(before)?;
        if self.is_terminal {
            let safe = shown_json(&String::from_utf8_lossy(line));
            self.write(safe.as_bytes())?;
        } else {
            self.write(line)?;
        }
        if self.format == Format::Lines { self.write(b"\n") } else { Ok(()) }
    }

    fn write(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.bytes += bytes.len() as u64;
        match &mut self.out {
            Out::Standard(out) => Ok(out.write_all(bytes)?),
            Out::File(file) => file.write(bytes),
        }
    }

    /// Says how far it is.
    pub(super) fn show(&mut self, progress: &Progress) {
        let (events, bytes) = (number(progress.events), Bytes(self.bytes));
        self.bar.show_with(progress.done, progress.total, || format!("{events} events, {bytes}"));
    }

    /// Ends what was written.
    pub(in crate::cli) fn finish(mut self) -> anyhow::Result<()> {
        match (self.format, self.events) {
            (Format::Lines, _) => {}
            (Format::Batch, 0) => self.write(b"[]\n")?,
            (Format::Batch, _) => self.write(b"]\n")?,
        }
        self.bar.clear();
        match self.out {
            Out::Standard(mut out) => Ok(out.flush()?),
            Out::File(file) => file.finish(),
        }
    }
}

/// A line on the terminal of standard error that says how far it is.
pub(super) struct Bar {
    is_shown: bool,
    shown_at: Option<Instant>,
}

/// Signs of a full bar.
const BAR_SIGNS: u64 = 30;

impl Bar {
    pub(super) fn new() -> Self {
        Self { is_shown: io::stderr().is_terminal(), shown_at: None }
    }

    fn silent() -> Self {
        Self { is_shown: false, shown_at: None }
    }

    pub(super) fn show(&mut self, done: u64, total: u64, what: &str) {
        self.show_with(done, total, || what.to_owned());
    }

    fn show_with(&mut self, done: u64, total: u64, what: impl FnOnce() -> String) {
        let now = clock::instant();
        if !self.is_shown || self.shown_at.is_some_and(|at| now.duration_since(at) < SHOWN_EVERY) {
            return;
        }
        self.shown_at = Some(now);
        let share = done as f64 / total.max(1) as f64;
        let full = (share * BAR_SIGNS as f64) as usize;
        let bar = format!("{}{}", "█".repeat(full), "░".repeat((BAR_SIGNS as usize).saturating_sub(full)));
        // A terminal that is gone misses nothing.
        let _ = write!(io::stderr(), "\r{bar} {:>3.0} %  {}\x1b[K", share * 100.0, shown(&what()));
    }

    /// Takes the line away.
    pub(super) fn clear(&mut self) {
        if self.is_shown && self.shown_at.is_some() {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}
