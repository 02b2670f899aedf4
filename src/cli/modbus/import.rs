//! `forebay modbus import`: makes a device table from a register list.
//!
//! Promise: exit code 0 means that every line with an address is in the table, and that nothing which changes values was
//! left open.

use crate::sources::modbus::import::{
    DecimalMark, Imported, Meaning, Numbering, Options, Refusal, ScaleMeaning, SizeUnit, TextUnit, import,
};
use crate::telemetry::shown;
use anyhow::{Context, anyhow, bail};
use clap::Args;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Debug, Args)]
pub(in super::super) struct Import {
    /// The list: CSV or other text with columns, in any usual encoding, or a spreadsheet (xlsx, ods, xls)
    file: PathBuf,
    /// Output file; default: standard output
    #[arg(long)]
    output: Option<PathBuf>,
    /// Numbering of addresses in the list
    #[arg(long, value_enum, default_value = "auto")]
    numbering: Numbering,
    /// Whether factors larger than 1 multiply or divide
    #[arg(long, value_enum)]
    scale: Option<ScaleMeaning>,
    /// What the sizes of values count
    #[arg(long, value_enum)]
    size: Option<SizeUnit>,
    /// What the lengths of texts count
    #[arg(long, value_enum)]
    text_length: Option<TextUnit>,
    /// The decimal mark, where numbers such as 1,000 leave it open
    #[arg(long, value_enum)]
    decimal: Option<DecimalMark>,
    /// The device to import, from a list of several
    #[arg(long)]
    device: Option<String>,
    /// Meaning of a column, by its head or its number from 1, such as "Div.=divisor" or 3=address; "X=ignore" leaves it out
    #[arg(long = "column", value_name = "HEAD=MEANING", value_parser = column)]
    columns: Vec<(String, Meaning)>,
    /// Type for a name that the list uses, such as "Zahl=u32"
    #[arg(long = "type", value_name = "NAME=TYPE", value_parser = named)]
    types: Vec<(String, String)>,
    /// Sheet of a spreadsheet
    #[arg(long)]
    sheet: Option<String>,
    /// Print how each line was understood instead of the table
    #[arg(long, conflicts_with = "output")]
    explain: bool,
}

fn named(text: &str) -> Result<(String, String), String> {
    let wrong = || format!("\"{text}\" has no \"=\"; expected one such as \"Zahl=u32\"");
    text.rsplit_once('=').map(|(name, value)| (name.to_owned(), value.to_owned())).ok_or_else(wrong)
}

fn column(text: &str) -> Result<(String, Meaning), String> {
    let (head, meaning) = named(text)?;
    Meaning::parse(&meaning).map(|meaning| (head, meaning))
}

pub(in super::super) fn run(command: Import) -> anyhow::Result<ExitCode> {
    let file = &command.file;
    let bytes = std::fs::read(file).with_context(|| format!("{} cannot be read", file.display()))?;
    let title = file.file_stem().unwrap_or_default().to_string_lossy();
    let options = Options {
        numbering: command.numbering,
        scale: command.scale,
        size: command.size,
        text_length: command.text_length,
        decimal: command.decimal,
        device: command.device.clone(),
        columns: command.columns.clone(),
        types: command.types.clone(),
        sheet: command.sheet.clone(),
    };
    let imported = match import(&bytes, &title, &options) {
        Ok(imported) => imported,
        Err(Refusal::NoList(why)) => bail!("{} is no register list: {why}", file.display()),
        Err(Refusal::Open { report, questions }) => {
            report_lines(file, &report);
            for question in &questions {
                eprintln!("open: {}", shown(question));
            }
            bail!("{} leaves {} open, so no table is made", file.display(), counted(questions.len(), "question"));
        }
    };
    match &command.output {
        _ if command.explain => explain(&imported)?,
        None => std::io::stdout().write_all(imported.table.as_bytes())?,
        Some(output) => write_new(output, &imported.table)?,
    }
    report_lines(file, &imported.report);
    for (line, why) in &imported.skipped {
        eprintln!("{}:{line}: left out: {}", file.display(), shown(why));
    }
    eprintln!("{}; check types, scales and groups against the manual", counted(imported.points, "point"));
    if let Some(output) = &command.output {
        eprintln!("and against the device: forebay modbus read URL --device {} --check", output.display());
    }
    Ok(if imported.skipped.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn counted(count: usize, what: &str) -> String {
    super::super::table::counted(count, what)
}

fn report_lines(file: &Path, report: &[String]) {
    for line in report {
        eprintln!("{}: {}", file.display(), shown(line));
    }
}

fn explain(imported: &Imported) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    for (line, what) in &imported.lines {
        writeln!(out, "line {line}: {}", shown(what))?;
    }
    Ok(out.flush()?)
}

/// Writes a file that does not exist yet.
fn write_new(file: &Path, text: &str) -> anyhow::Result<()> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.is_dir());
    if let Some(folder) = folder {
        bail!(
            "{} cannot be created: there is no folder {}; make it with: mkdir -p {}",
            file.display(),
            folder.display(),
            folder.display()
        );
    }
    let mut made = std::fs::File::options().write(true).create_new(true).open(file);
    let made = made.as_mut().map_err(|error| anyhow!("{} cannot be created: {error}", file.display()))?;
    Ok(made.write_all(text.as_bytes())?)
}
