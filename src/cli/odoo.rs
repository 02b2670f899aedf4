//! `forebay odoo`: checks the rights of the account, and installs automations that notify the gateway of changes.

use super::client::{DEFAULT_CONFIG, finished, json};
use super::secrets::read_secret;
use super::table::table;
use crate::config::Config;
use crate::odoo::Client;
use crate::sources::SourceConfig;
use crate::sources::odoo;
use anyhow::{Context, anyhow, bail};
use clap::{Args, Subcommand};
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Check for each Odoo source whether the account can read the records of the contracts
    Check(Check),
    /// Manage automations in Odoo that notify the gateway of changes
    Webhook(Webhook),
}

#[derive(Debug, Args)]
pub(super) struct Check {
    /// Path of the configuration file
    #[arg(long, default_value = DEFAULT_CONFIG)]
    config: PathBuf,
    /// Only the source of this name
    #[arg(long)]
    source: Option<String>,
    /// Print JSON; errors stay text on standard error, with exit code 1
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("what").required(true)))]
pub(super) struct Webhook {
    /// Path of the configuration file
    #[arg(long, default_value = DEFAULT_CONFIG)]
    config: PathBuf,
    /// Name of the source; required if there are several
    #[arg(long)]
    source: Option<String>,
    /// Install the automations, replacing earlier ones
    #[arg(long, group = "what")]
    install: bool,
    /// Remove the automations from Odoo again
    #[arg(long, group = "what")]
    remove: bool,
    /// Print the steps for an administrator to do by hand
    #[arg(long, group = "what")]
    print: bool,
    /// File with an administrator's API key; by default the command prompts for it. It is used once and not stored
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

fn odoo_of(source: &SourceConfig) -> Option<&odoo::Config> {
    match source {
        SourceConfig::Odoo(config) => Some(config),
        _ => None,
    }
}

fn chosen<'a>(config: &'a Config, wanted: Option<&str>) -> anyhow::Result<Vec<&'a odoo::Config>> {
    let all: Vec<_> = config.sources.iter().filter_map(odoo_of).collect();
    let found: Vec<_> = all.iter().copied().filter(|one| wanted.is_none_or(|name| one.name == name)).collect();
    if found.is_empty() {
        let names: Vec<_> = all.iter().map(|one| one.name.as_str()).collect();
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
                words.push(format!("missing, or not visible to this account: {}", finding.missing.join(", ")));
            }
            if !finding.not_stored.is_empty() {
                words.push(format!("not stored, so not read: {}", finding.not_stored.join(", ")));
            }
            if finding.may_write {
                words.push("the account may also write this model, which is not needed".into());
            }
            let can = if finding.problem.is_some() { "no" } else { "yes" };
            vec![finding.stream.clone(), finding.model.clone(), can.to_owned(), words.join("; ")]
        })
        .collect();
    table(&["STREAM", "MODEL", "READABLE", "REMARK"], &[], &rows, is_coloured)
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
    // The client reads the key from a file: a temporary one with mode 0600, deleted at the end.
    let typed;
    let key_file = match &webhook.admin_key {
        Some(file) => file.clone(),
        None => {
            typed = TemporaryKey::new()?;
            typed.file.clone()
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
            .context("could not install the automations; the key of an administrator is needed")?;
        writeln!(std::io::stdout(), "{count} automations are installed; the key was used once and is not stored")?;
    } else {
        let count = finished(odoo::remove(&client, &plans))?
            .context("could not remove the automations; the key of an administrator is needed")?;
        writeln!(std::io::stdout(), "{count} automations are removed; the key was used once and is not stored")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A key typed at the prompt, in a temporary file that drop deletes.
struct TemporaryKey {
    file: PathBuf,
}

impl TemporaryKey {
    fn new() -> anyhow::Result<Self> {
        use std::os::unix::fs::OpenOptionsExt;
        let key = read_secret("API key of an administrator: ")?;
        let file = std::env::temp_dir().join(format!("forebay-{}", uuid::Uuid::new_v4().simple()));
        let mut open = std::fs::File::options();
        open.write(true).create_new(true).mode(0o600).open(&file)?.write_all(key.as_bytes())?;
        Ok(Self { file })
    }
}

impl Drop for TemporaryKey {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.file) {
            eprintln!(
                "forebay: could not delete {}, which contains the key: {error}; delete it by hand",
                self.file.display()
            );
        }
    }
}
