//! `forebay salvage`: recovers the readable events of a damaged file.

use super::sink::{AtomicFile, Bar};
use crate::cli::client::json;
use crate::cli::table::{seconds, table};
use crate::contract::on_one_line;
use crate::event::{Content, Record, Timestamp};
use crate::ingest::dead::DeadLetter;
use crate::journal::{Block, BlockReader, DEAD, JournalError, Publications, Salvage, Salvaged, push_line};
use crate::setting::{Bytes, grouped as number};
use crate::telemetry::{shown, shows_colours};
use anyhow::{Context, anyhow};
use base64::Engine;
use clap::Args;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

#[derive(Debug, Args)]
pub(crate) struct SalvageArgs {
    /// Segment files of a lane, damaged (`*.damaged`) or not
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Journal folder with the publications of the events; default: the journal that contains the file
    #[arg(long)]
    journal: Option<PathBuf>,
    /// Write the events to this file, one JSON object per line; it appears only when it is complete
    #[arg(long, alias = "out")]
    output: Option<PathBuf>,
    /// Wrap each event in an object with lane and offset
    #[arg(long)]
    with_offsets: bool,
    /// Print JSON; errors stay text on standard error, with exit code 1
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct FileReport {
    #[serde(flatten)]
    found: Salvaged,
    streams: Vec<Stream>,
    /// Events whose publication is missing; written in record form, not as CloudEvents.
    unrendered: u64,
    /// Publications that could not be read.
    publications_damaged: Vec<String>,
}

#[derive(Debug, Default, Serialize)]
struct Stream {
    stream: String,
    events: u64,
    first_sequence: u64,
    last_sequence: u64,
    /// Commit times of the first and the last event, RFC 3339.
    recorded: (String, String),
}

/// Recovers events with valid checksums from the files.
pub(crate) fn salvage(args: &SalvageArgs) -> anyhow::Result<ExitCode> {
    let mut out = args.output.as_deref().map(AtomicFile::begin).transpose()?;
    let mut reports = Vec::new();
    for file in &args.files {
        reports.push(salvage_file(args, file, out.as_mut())?);
    }
    if let Some(out) = out {
        out.finish()?;
    }
    let text = if args.json {
        json(&reports)?
    } else {
        reports.iter().map(|report| show(report, shows_colours(&std::io::stdout()))).collect::<Vec<_>>().join("\n")
    };
    writeln!(std::io::stdout(), "{}", text.trim_end())?;
    let is_empty = reports.iter().any(|report| report.found.events == 0);
    Ok(if is_empty { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn salvage_file(args: &SalvageArgs, file: &Path, mut out: Option<&mut AtomicFile>) -> anyhow::Result<FileReport> {
    let file = std::path::absolute(file).with_context(|| file.display().to_string())?;
    let folder = file.parent().unwrap_or(Path::new("/"));
    let lane = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let journal = args.journal.as_deref().or(folder.parent()).unwrap_or(Path::new("/"));
    let publications = Publications::load(journal);
    let mut bar = Bar::new();
    let salvage = Salvage::open(&file, |done, total| bar.show(done, total, &file.display().to_string()));
    let salvage = salvage.map_err(|error| match error {
        JournalError::InUse { .. } => anyhow!(error)
            .context("a running gateway writes this file; use `forebay export`, or stop the gateway first"),
        error => error.into(),
    })?;
    bar.clear();
    let mut report = FileReport {
        found: salvage.found.clone(),
        streams: Vec::new(),
        unrendered: 0,
        publications_damaged: publications.damaged.clone(),
    };
    let of_lane = SalvagedLane { lane: &lane, publications: &publications, with_offsets: args.with_offsets };
    let mut streams = BTreeMap::new();
    let mut lines = Vec::new();
    for block in salvage.blocks() {
        let block = block?;
        lines.clear();
        report.unrendered += of_lane.push_block(&block, &mut streams, &mut lines);
        if let Some(out) = out.as_deref_mut() {
            out.write(&lines)?;
        }
    }
    report.streams = streams.into_values().collect();
    Ok(report)
}

/// The lane of a salvaged file.
struct SalvagedLane<'a> {
    lane: &'a str,
    publications: &'a Publications,
    with_offsets: bool,
}

impl SalvagedLane<'_> {
    /// Appends the events of a block. Returns the number of events without publication.
    fn push_block(&self, block: &Arc<Block>, streams: &mut BTreeMap<String, Stream>, out: &mut Vec<u8>) -> u64 {
        let (lane, recorded) = (self.lane, block.header.recorded);
        let mut unrendered = 0;
        let mut walk = BlockReader::new(Arc::clone(block));
        while let Some(step) = walk.step_with(|number| self.publications.of(number)) {
            let numbered = step.numbered.filter(|_| lane != DEAD);
            let (name, sequence) = match (numbered, &*block.header.runs) {
                (Some((published, sequence)), _) => (published.renderer.stream_id().to_owned(), sequence),
                // With a single stream, sequences follow from the offsets of the block.
                (None, [run]) => (nameless(lane, &step.record), run.first + (step.offset - block.header.first)),
                (None, _) => (nameless(lane, &step.record), 0),
            };
            count(streams.entry(name.clone()).or_default(), name, sequence, recorded);
            match numbered {
                Some(numbered) => {
                    let place = self.with_offsets.then_some((lane, step.offset));
                    push_line(numbered, &step.record, recorded, place, out);
                }
                None => {
                    unrendered += u64::from(lane != DEAD);
                    self.push_plain((step.offset, sequence), recorded, &step.record, out);
                }
            }
        }
        unrendered
    }

    /// Appends an event in record form, or a dead letter.
    fn push_plain(&self, (offset, sequence): (u64, u64), recorded: Timestamp, record: &Record<'_>, out: &mut Vec<u8>) {
        let lane = self.lane;
        let base64 = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
        let mut line = serde_json::json!({
            "lane": lane,
            "offset": offset,
            "recorded": recorded.to_string(),
            "time": record.time.to_string(),
            "origin": record.origin,
            "key": record.key,
        });
        let mut data = None;
        let letter = if lane == DEAD { DeadLetter::read(record) } else { None };
        if let Some(letter) = letter {
            line["dead_letter"] = serde_json::to_value(&letter).unwrap_or_default();
            match std::str::from_utf8(&letter.payload) {
                Ok(text) => line["payload"] = text.into(),
                Err(_) => line["payload_base64"] = base64(&letter.payload).into(),
            }
        } else {
            line["id"] = record.id.to_string().into();
            line["publication"] = record.publication.into();
            if sequence > 0 {
                line["sequence"] = sequence.into();
            }
            line["attributes"] = serde_json::to_value(&record.attributes).unwrap_or_default();
            data = (record.content == Content::Json).then(|| on_one_line(record.payload)).flatten();
            if data.is_none() {
                line["data_base64"] = base64(record.payload).into();
            }
        }
        out.extend_from_slice(line.to_string().as_bytes());
        if let Some(data) = data {
            // As text: a number keeps all its digits.
            out.pop();
            out.extend_from_slice(b",\"data\":");
            out.extend_from_slice(data.get().as_bytes());
            out.push(b'}');
        }
        out.push(b'\n');
    }
}

fn nameless(lane: &str, record: &Record<'_>) -> String {
    if lane == DEAD { "dead letters".into() } else { format!("publication {}", record.publication) }
}

fn count(stream: &mut Stream, name: String, sequence: u64, recorded: Timestamp) {
    if stream.events == 0 {
        *stream = Stream {
            stream: name,
            events: 0,
            first_sequence: sequence,
            last_sequence: sequence,
            recorded: (recorded.to_string(), String::new()),
        };
    }
    stream.events += 1;
    stream.last_sequence = stream.last_sequence.max(sequence);
    stream.recorded.1 = recorded.to_string();
}

fn show(report: &FileReport, is_coloured: bool) -> String {
    let found = &report.found;
    let mut out = String::new();
    let how = match &found.broken {
        None => "read in order".to_owned(),
        Some(why) => format!("searched byte by byte, because {why}"),
    };
    let _ = writeln!(out, "{}  {}, {}", shown(&found.file.display().to_string()), Bytes(found.bytes), shown(&how));
    if found.events == 0 {
        let _ = writeln!(out, "no readable events");
        return out;
    }
    let rows: Vec<_> = report
        .streams
        .iter()
        .map(|stream| {
            vec![
                stream.stream.clone(),
                number(stream.events),
                number(stream.first_sequence),
                number(stream.last_sequence),
                seconds(&stream.recorded.0),
                seconds(&stream.recorded.1),
            ]
        })
        .collect();
    let head = ["STREAM", "EVENTS", "FIRST", "LAST", "FROM (ZONE)", "TO (ZONE)"];
    out.push_str(&table(&head, &[1, 2, 3], &rows, is_coloured));
    let end = found.end.map_or_else(|| "an unknown end".to_owned(), |end| number(end - 1));
    let _ = writeln!(
        out,
        "{} events in {} blocks; the file held offsets {} to {end}",
        number(found.events),
        number(found.blocks),
        number(found.first)
    );
    for (from, to) in &found.missing {
        let _ =
            writeln!(out, "missing: offsets {} to {} ({} events)", number(*from), number(to - 1), number(to - from));
    }
    if found.missing.is_empty() {
        let _ =
            writeln!(out, "nothing is missing{}", if found.end.is_some() { "" } else { " up to the last one found" });
    }
    if found.superseded > 0 {
        let _ = writeln!(out, "{} outdated copies of blocks were skipped", number(found.superseded));
    }
    for (destination, low) in &found.cursors {
        let _ =
            writeln!(out, "{} had settled every offset below {} at the last write", shown(destination), number(*low));
    }
    if report.unrendered > 0 {
        let count = number(report.unrendered);
        let _ = writeln!(
            out,
            "{count} events are written in record form because their publication is missing; give --journal with the folder that contains it"
        );
    }
    for damaged in &report.publications_damaged {
        let _ = writeln!(out, "could not read a publication: {}", shown(damaged));
    }
    out
}
