//! `forebay odoo`: what the account can read, and setting Odoo up to hint at changes.

use super::{DEFAULT_CONFIG, finished, json, show};
use crate::config::Config;
use crate::odoo::Client;
use crate::sources::odoo;
use anyhow::{Context, anyhow, bail};
use clap::{Args, Subcommand};
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Ask each Odoo what the account can and cannot read of what the contracts want
    Check(Check),
    /// Automations in Odoo that hint at changes, so that they are read at once
    Webhook(Webhook),
}

#[derive(Debug, Args)]
pub(super) struct Check {
    /// Configuration file
    #[arg(long, default_value = DEFAULT_CONFIG)]
    config: PathBuf,
    /// Only the source of this name
    #[arg(long)]
    source: Option<String>,
    /// As JSON; errors stay text on standard error, with exit code 1
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("what").required(true)))]
pub(super) struct Webhook {
    /// Configuration file
    #[arg(long, default_value = DEFAULT_CONFIG)]
    config: PathBuf,
    /// The source, where there are several
    #[arg(long)]
    source: Option<String>,
    /// Set the automations up, in place of earlier ones
    #[arg(long, group = "what")]
    install: bool,
    /// Take the automations away
    #[arg(long, group = "what")]
    remove: bool,
    /// Print what an administrator does by hand
    #[arg(long, group = "what")]
    print: bool,
    /// File with an administrator's API key, which is used once and not kept; by default it is asked for
    #[arg(long)]
    admin_key: Option<PathBuf>,
    /// Login of that administrator; needed over /jsonrpc, as with Odoo 14 to 18
    #[arg(long)]
    admin_user: Option<String>,
}

pub(super) fn run(command: &Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Check(check) => run_check(check),
        Command::Webhook(webhook) => run_webhook(webhook),
    }
}

fn load(file: &std::path::Path) -> anyhow::Result<Config> {
    Config::load(file).map_err(|problems| {
        problems.iter().for_each(|problem| eprintln!("{problem}"));
        anyhow!("{} is refused", file.display())
    })
}

fn chosen<'a>(config: &'a Config, wanted: Option<&str>) -> anyhow::Result<Vec<&'a odoo::Config>> {
    let found: Vec<_> = config.odoos.iter().filter(|one| wanted.is_none_or(|name| one.name == name)).collect();
    if found.is_empty() {
        let names: Vec<_> = config.odoos.iter().map(|one| one.name.as_str()).collect();
        match wanted {
            Some(name) => bail!("there is no [[source.odoo]] \"{name}\"; there are: {}", names.join(", ")),
            None => bail!("{} has no [[source.odoo]]", config.file.display()),
        }
    }
    Ok(found)
}

fn run_check(check: &Check) -> anyhow::Result<ExitCode> {
    let config = load(&check.config)?;
    let mut out = std::io::stdout().lock();
    let mut answers = Vec::new();
    let mut is_good = true;
    for source in chosen(&config, check.source.as_deref())? {
        let found = finished(odoo::check(source, &config.contracts))?;
        is_good &= found.as_ref().is_ok_and(|(_, findings)| findings.iter().all(|finding| finding.problem.is_none()));
        if check.json {
            answers.push(match found {
                Ok((session, findings)) => serde_json::json!({
                    "source": source.name, "version": session.version_text, "administrator": session.is_administrator,
                    "contracts": findings,
                }),
                Err(error) => serde_json::json!({"source": source.name, "problem": error.to_string()}),
            });
            continue;
        }
        match found {
            Err(error) => writeln!(out, "{}: {error}", source.name)?,
            Ok((session, findings)) => {
                writeln!(out, "{}: Odoo {}, database {}", source.name, session.version_text, source.database)?;
                write!(out, "{}", shown(&findings, std::io::stdout().is_terminal()))?;
            }
        }
    }
    if check.json {
        writeln!(out, "{}", json(&answers)?)?;
    }
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn shown(findings: &[odoo::Finding], is_coloured: bool) -> String {
    let rows: Vec<_> = findings
        .iter()
        .map(|finding| {
            let mut words = Vec::new();
            words.extend(finding.problem.clone());
            if !finding.missing.is_empty() {
                words.push(format!("not there, or not for this account: {}", finding.missing.join(", ")));
            }
            if !finding.not_stored.is_empty() {
                words.push(format!("not stored, so not read: {}", finding.not_stored.join(", ")));
            }
            if finding.may_write {
                words.push("the account may also write it, which is not needed".into());
            }
            let can = if finding.problem.is_some() { "no" } else { "yes" };
            vec![finding.stream.clone(), finding.model.clone(), can.to_owned(), words.join("; ")]
        })
        .collect();
    show::table(&["STREAM", "MODEL", "READABLE", "REMARK"], &[], &rows, is_coloured)
}

fn run_webhook(webhook: &Webhook) -> anyhow::Result<ExitCode> {
    let config = load(&webhook.config)?;
    let sources = chosen(&config, webhook.source.as_deref())?;
    let [source] = sources[..] else { bail!("there are several [[source.odoo]]; name one with --source") };
    let plans = odoo::plans(source, &config.contracts, &config.surroundings.gateway).map_err(anyhow::Error::msg)?;
    if webhook.print {
        write!(std::io::stdout(), "{}", odoo::steps(&plans))?;
        return Ok(ExitCode::SUCCESS);
    }
    // The key goes through a file that only this process reads, and that is gone at its end.
    let asked;
    let key_file = match &webhook.admin_key {
        Some(file) => file.clone(),
        None => {
            asked = AskedKey::new()?;
            asked.file.clone()
        }
    };
    let client = Client::new(crate::odoo::Config {
        url: source.url.clone(),
        database: source.database.clone(),
        key_file,
        user: webhook.admin_user.clone(),
        tls: source.tls.clone(),
    })
    .map_err(anyhow::Error::msg)?;
    if webhook.install {
        let count = finished(odoo::install(&client, &plans))?
            .context("the automations cannot be set up; it takes an administrator's key")?;
        writeln!(std::io::stdout(), "{count} automations are set up; the key was used once and is not kept")?;
    } else {
        let count = finished(odoo::remove(&client, &plans))?
            .context("the automations cannot be removed; it takes an administrator's key")?;
        writeln!(std::io::stdout(), "{count} automations are removed; the key was used once and is not kept")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A key that was typed, in a file of its own for as long as the value lives.
struct AskedKey {
    file: PathBuf,
}

impl AskedKey {
    fn new() -> anyhow::Result<Self> {
        use std::os::unix::fs::OpenOptionsExt;
        let key = super::read_secret("API key of an administrator: ")?;
        let file = std::env::temp_dir().join(format!("forebay-{}", uuid::Uuid::new_v4().simple()));
        let mut open = std::fs::File::options();
        open.write(true).create_new(true).mode(0o600).open(&file)?.write_all(key.as_bytes())?;
        Ok(Self { file })
    }
}

impl Drop for AskedKey {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.file) {
            eprintln!("forebay: {} holds the key and cannot be removed: {error}", self.file.display());
        }
    }
}
