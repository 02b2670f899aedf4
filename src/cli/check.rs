//! `forebay check` and `forebay contracts check`: the configuration and its contracts, without starting the gateway.

use super::client::DEFAULT_CONFIG;
use super::rights;
use super::table::counted;
use crate::admin::certificates::check_revocations;
use crate::config::Config;
use crate::event::Timestamp;
use crate::journal::publications_in;
use crate::setting::Problem;
use crate::telemetry;
use anyhow::Context;
use clap::{Args, Subcommand};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, Args)]
pub(super) struct CheckAll {
    #[command(flatten)]
    check: Check,
    /// Show what each configured name may publish and subscribe to, and why
    #[arg(long)]
    rights: bool,
}

#[derive(Debug, Args)]
pub(super) struct Check {
    /// Path of the configuration file
    #[arg(long, default_value = DEFAULT_CONFIG)]
    config: PathBuf,
    /// Print JSON; errors stay text on standard error, with exit code 1
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum ContractsCommand {
    /// Check the contracts, and compare them with the versions in force
    Check(Check),
}

pub(super) fn check_config(args: &CheckAll) -> anyhow::Result<ExitCode> {
    let check = &args.check;
    let config = match Config::load(&check.config) {
        Ok(config) => config,
        Err(problems) => return report(check, &problems, &[], String::new),
    };
    let mut warnings = config.warnings.clone();
    let problems = match publications_in(&config.journal.folder) {
        Ok(in_force) => config.contracts.check_against(&in_force),
        // A user may check a configuration although only the service can read the journal.
        Err(error) => {
            warnings.push(Problem {
                file: check.config.clone(),
                line: 0,
                key: "contracts".into(),
                message: format!("not compared with the versions in force: {error}"),
            });
            Vec::new()
        }
    };
    if args.rights {
        return show_rights(&config, check.json);
    }
    let (mut ended, mut ending) = (Vec::new(), Vec::new());
    check_revocations(&config.revocations, &mut ended, &mut ending);
    warnings.extend(ended.into_iter().chain(ending).map(|message| Problem {
        file: check.config.clone(),
        line: 0,
        key: "tls.crl".into(),
        message,
    }));
    report(check, &problems, &warnings, || {
        let contracts = counted(config.contracts.iter().count(), "contract");
        let mut text = format!("{}: good, with {contracts}", check.config.display());
        for list in &config.revocations {
            if let Ok(validity) = list.validity() {
                let end = Timestamp(validity.end.saturating_mul(1_000_000));
                text.push_str(&format!("\nrevocation list {}: until {end}", list.path.display()));
            }
        }
        text
    })
}

pub(super) fn check_contracts(ContractsCommand::Check(check): &ContractsCommand) -> anyhow::Result<ExitCode> {
    let config = match Config::load(&check.config) {
        Ok(config) => config,
        Err(problems) => return report(check, &problems, &[], String::new),
    };
    let in_force = publications_in(&config.journal.folder)
        .context("the versions in force cannot be read; run this as the user of the gateway")?;
    let problems = config.contracts.check_against(&in_force);
    let mut lines = Vec::new();
    for contract in config.contracts.iter() {
        let next = &contract.publication;
        // The newest publication of a stream is the one in force.
        let current = in_force.iter().rev().find(|known| known.stream_id() == next.stream_id());
        let word = match current {
            None => "new".to_owned(),
            Some(current) if current.version == next.version => "in force".to_owned(),
            Some(current) => format!("replaces {}", current.version),
        };
        lines.push(format!("{:<40} {:<10} {:<10} {word}", next.stream_id(), next.version, next.lane));
    }
    report(check, &problems, &config.warnings, || lines.join("\n"))
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

fn report(
    check: &Check,
    problems: &[Problem],
    warnings: &[Problem],
    good: impl Fn() -> String,
) -> anyhow::Result<ExitCode> {
    let as_json = |list: &[Problem]| -> Vec<_> {
        list.iter()
            .map(|problem| serde_json::json!({"file": problem.file, "line": problem.line, "key": problem.key, "message": problem.message}))
            .collect()
    };
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
    Ok(if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
