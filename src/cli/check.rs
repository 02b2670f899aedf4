//! `forebay check`: the configuration and its contracts, without starting the gateway.

use super::as_service;
use super::config_file::ConfigFile;
use super::connect::{self, Mark};
use super::rights;
use super::table::counted;
use crate::admin::certificates::check_revocations;
use crate::config::Config;
use crate::contract::{Contract, SourceKind};
use crate::event::Timestamp;
use crate::journal::publications_in;
use crate::setting::Problem;
use crate::sources::SourceConfig;
use crate::telemetry::{self, shows_colours};
use clap::Args;
use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Debug, Args)]
pub(super) struct CheckAll {
    #[command(flatten)]
    check: Check,
    /// Try destinations, sources, clock and disk as well; it publishes one message on gateway.check at each destination
    #[arg(long)]
    connect: bool,
    /// Show what each configured name may publish and subscribe to, and why
    #[arg(long)]
    rights: bool,
}

#[derive(Debug, Args)]
pub(super) struct Check {
    /// Configuration file; it comes before --config
    file: Option<PathBuf>,
    #[command(flatten)]
    config: ConfigFile,
    /// Fail if there are warnings, too
    #[arg(long)]
    strict: bool,
    /// Print JSON; errors stay text on standard error, with exit code 1
    #[arg(long)]
    json: bool,
}

impl Check {
    /// The configuration file: the argument, else the option.
    pub(super) fn file(&self) -> &Path {
        self.file.as_deref().unwrap_or(&self.config)
    }

    fn exit_code(&self, problems: &[Problem], warnings: &[Problem]) -> ExitCode {
        let is_good = problems.is_empty() && (warnings.is_empty() || !self.strict);
        if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

pub(super) fn check_config(args: &CheckAll) -> anyhow::Result<ExitCode> {
    let check = &args.check;
    let config = match Config::load(check.file()) {
        Ok(config) => config,
        Err(problems) => return report(check, &problems, &[], String::new),
    };
    if args.rights {
        return show_rights(&config, check.json);
    }
    let mut warnings = config.warnings.clone();
    let problems = problems(&config, check, &mut warnings);
    let found = if args.connect && problems.is_empty() { connect::check(&config)? } else { Vec::new() };
    let code = if check.json && args.connect {
        let all = serde_json::json!({
            "good": problems.is_empty() && connect::count(&found, Mark::Fault) == 0,
            "problems": as_json(&problems), "warnings": as_json(&warnings), "connect": found,
        });
        writeln!(std::io::stdout(), "{}", telemetry::shown_json(&all.to_string()))?;
        check.exit_code(&problems, &warnings)
    } else {
        let code = report(check, &problems, &warnings, || summary(&config, check))?;
        let text = connect::text(&found, shows_colours(&std::io::stdout()));
        write!(std::io::stdout(), "{text}")?;
        code
    };
    let (faults, doubts) = (connect::count(&found, Mark::Fault), connect::count(&found, Mark::Warning));
    let is_good = faults == 0 && (doubts == 0 || !check.strict);
    Ok(if is_good { code } else { ExitCode::FAILURE })
}

/// Compares the contracts with those in force, judges revocation lists, and asks as the user of the service.
fn problems(config: &Config, check: &Check, warnings: &mut Vec<Problem>) -> Vec<Problem> {
    let about =
        |key: &str, message: String| Problem { file: check.file().to_owned(), line: 0, key: key.into(), message };
    let mut problems = match publications_in(&config.journal.folder) {
        Ok(in_force) => config.contracts.check_against(&in_force),
        // A user may check a configuration although only the service can read the journal.
        Err(error) => {
            warnings.push(about("contracts", format!("not compared with the versions in force: {error}")));
            Vec::new()
        }
    };
    let (mut ended, mut ending) = (Vec::new(), Vec::new());
    check_revocations(&config.revocations, &mut ended, &mut ending);
    warnings.extend(ended.into_iter().chain(ending).map(|message| about("tls.crl", message)));
    match as_service::problems(check.file()) {
        None => {}
        Some(Ok(found)) => problems.extend(found),
        Some(Err(reason)) => {
            warnings.push(about(
                "",
                format!("not judged as the user of the service, who may read less than root: {reason}"),
            ));
        }
    }
    problems
}

fn summary(config: &Config, check: &Check) -> String {
    let contracts = counted(config.contracts.iter().count(), "contract");
    let mut text = format!("{}: good, with {contracts}", check.file().display());
    let has_source = |contract: &Contract| {
        let is_one =
            |source: &SourceConfig| source.kind() == contract.source() && contract.is_for(source.settings().name());
        contract.source() == SourceKind::Watch || config.sources.iter().any(is_one)
    };
    let idle: Vec<_> = config.contracts.iter().filter(|contract| !has_source(contract)).collect();
    if !idle.is_empty() {
        let kinds: BTreeSet<String> = idle.iter().map(|contract| contract.source().to_string()).collect();
        let kinds = kinds.into_iter().collect::<Vec<_>>().join(", ");
        text.push_str(&format!("; {} of them have no source here ({kinds})", idle.len()));
    }
    for list in &config.revocations {
        if let Ok(validity) = list.validity() {
            let end = Timestamp(validity.end.saturating_mul(1_000_000));
            text.push_str(&format!("\nrevocation list {}: until {end}", list.path.display()));
        }
    }
    text
}

fn show_rights(config: &Config, is_json: bool) -> anyhow::Result<ExitCode> {
    let entries = rights::entries(config).map_err(anyhow::Error::msg)?;
    let mut out = std::io::stdout().lock();
    if is_json {
        writeln!(out, "{}", telemetry::shown_json(&serde_json::to_string(&entries)?))?;
    } else {
        write!(out, "{}", rights::text(&entries))?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn report(
    check: &Check,
    problems: &[Problem],
    warnings: &[Problem],
    good: impl Fn() -> String,
) -> anyhow::Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    if check.json {
        let all = serde_json::json!({"good": problems.is_empty(), "problems": as_json(problems), "warnings": as_json(warnings)});
        writeln!(out, "{}", telemetry::shown_json(&all.to_string()))?;
    } else {
        for warning in warnings {
            writeln!(out, "warning: {}", telemetry::shown(&warning.to_string()))?;
        }
        for problem in problems {
            writeln!(out, "{}", telemetry::shown(&problem.to_string()))?;
        }
        match problems.len() {
            0 => writeln!(out, "{}", good())?,
            count => writeln!(out, "{}", counted(count, "problem"))?,
        }
    }
    Ok(check.exit_code(problems, warnings))
}

fn as_json(list: &[Problem]) -> Vec<serde_json::Value> {
    let problem = |problem: &Problem| serde_json::json!({"file": problem.file, "line": problem.line, "key": problem.key, "message": problem.message});
    list.iter().map(problem).collect()
}
