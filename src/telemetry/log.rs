//! The log: output, format and level of lines.
//!
//! Promise: a log event is one line whatever devices send, or one journald entry with its fields. A suppressed event costs
//! one comparison.

use super::escape::{shown, shown_json};
use super::follow::{FOLLOW, follow_one_in};
use super::recent::Recent;
use std::borrow::Cow;
use std::io::IsTerminal;
use std::os::unix::fs::MetadataExt;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// Text; coloured on a terminal.
    Text,
    /// One JSON object per line.
    Json,
    /// Entries of systemd's journal with fields.
    Journald,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Logging {
    /// Format; default: journald if standard error is connected to systemd's journal, else text.
    pub format: Option<LogFormat>,
    /// Level, such as `debug` or `forebay::link=trace,info`. The variable `FOREBAY_LOG` overrides it.
    pub level: Option<String>,
    /// Traces one event in this many, whatever the level.
    pub sample: Option<u32>,
}

impl Logging {
    /// Checks the values. The error is the key and the message.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        if let Some(level) = &self.level
            && let Err(error) = level.parse::<Targets>()
        {
            let message = format!(
                "\"{level}\" is no level ({error}); expected one such as \"info\", \"debug\" or \"forebay::link=trace,info\""
            );
            return Err(("level", message));
        }
        if self.sample == Some(0) {
            return Err(("sample", "0 is not allowed; 1 follows every event, 1000 one in a thousand".into()));
        }
        Ok(())
    }

    /// Returns the filter: from `FOREBAY_LOG`, else from the settings, else `level`.
    fn targets(&self, level: tracing::Level) -> Targets {
        let by_environment = std::env::var("FOREBAY_LOG").ok();
        let parsed = |text: &String| text.parse::<Targets>().ok();
        let wanted = by_environment.as_ref().and_then(parsed).or_else(|| self.level.as_ref().and_then(parsed));
        let targets = wanted.unwrap_or_else(|| Targets::new().with_default(level));
        if self.sample.is_some() { targets.with_target(FOLLOW, tracing::Level::DEBUG) } else { targets }
    }
}

/// Whether colours are written to a stream: to terminals that know them, unless `NO_COLOR` is set (no-color.org).
pub(crate) fn shows_colours(stream: &impl IsTerminal) -> bool {
    let is_set = |name: &str, wanted: &dyn Fn(&std::ffi::OsStr) -> bool| {
        std::env::var_os(name).is_some_and(|value| wanted(&value))
    };
    stream.is_terminal() && !is_set("NO_COLOR", &|value| !value.is_empty()) && !is_set("TERM", &|value| value == "dumb")
}

/// Whether standard error is connected to systemd's journal: `JOURNAL_STREAM` contains its device and inode.
fn is_journal_stream() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let found = std::fs::metadata("/proc/self/fd/2");
    found.is_ok_and(|found| stream == format!("{}:{}", found.dev(), found.ino()))
}

/// Starts logging. `level` applies if neither `logging` nor the variable `FOREBAY_LOG` sets one.
pub fn start_logging(logging: &Logging, level: tracing::Level) {
    follow_one_in(logging.sample.unwrap_or(1));
    let own = if is_journal_stream() { LogFormat::Journald } else { LogFormat::Text };
    let format = logging.format.unwrap_or(own);
    let lines = tracing_subscriber::fmt::layer().with_writer(move || Lines(format));
    let text = || -> Box<dyn Layer<_> + Send + Sync> {
        let layer = tracing_subscriber::fmt::layer().with_writer(|| Lines(LogFormat::Text));
        layer.with_ansi(shows_colours(&std::io::stderr())).with_target(false).boxed()
    };
    let layer = match format {
        LogFormat::Text => text(),
        LogFormat::Json => lines.json().boxed(),
        LogFormat::Journald => match tracing_journald::layer() {
            Ok(layer) => {
                layer.with_field_prefix(Some("FOREBAY".into())).with_syslog_identifier("forebay".into()).boxed()
            }
            Err(error) => {
                eprintln!("forebay: could not connect to systemd's journal ({error}); logging as text");
                text()
            }
        },
    };
    // The support bundle needs the newest lines, whatever the output is.
    let recent = tracing_subscriber::fmt::layer().with_ansi(false).with_target(false).with_writer(|| Recent);
    let both = layer.and_then(recent).with_filter(logging.targets(level));
    // A second start (in tests) keeps the first one's settings.
    let _ = tracing_subscriber::registry().with(both).try_init();
}

/// Writes log lines to standard error. Device data (client ids, topics) can neither start another
/// line nor control the terminal.
#[derive(Clone, Copy, Debug)]
struct Lines(LogFormat);

impl std::io::Write for Lines {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        let text = text.strip_suffix('\n').unwrap_or(&text);
        let mut out = String::with_capacity(text.len() + 1);
        match self.0 {
            LogFormat::Json => out.push_str(&shown_json(text)),
            // The layer has escaped field values: the remaining escape sequences are its own colours.
            LogFormat::Text if shows_colours(&std::io::stderr()) => {
                out.extend(text.split_inclusive('\x1b').flat_map(|part| match part.strip_suffix('\x1b') {
                    Some(part) => [shown(part), Cow::Borrowed("\x1b")],
                    None => [shown(part), Cow::Borrowed("")],
                }));
            }
            LogFormat::Text | LogFormat::Journald => out.push_str(&shown(text)),
        }
        out.push('\n');
        std::io::stderr().write_all(out.as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}
