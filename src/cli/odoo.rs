//! `forebay odoo`: checks the rights of the account, and installs automations that notify the gateway of changes.

use super::client::{At, ask_with, finished, json, print};
use super::config_file::ConfigFile;
use super::secrets::read_secret;
use super::table::table;
use crate::api::{OdooLoadAnswer, OdooLoadRequest};
use crate::config::Config;
use crate::odoo::Client;
use crate::setting::grouped;
use crate::sources::SourceConfig;
use crate::sources::odoo;
use crate::telemetry::shows_colours;
use anyhow::{Context, anyhow, bail};
use clap::{Args, Subcommand};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Check for each Odoo source whether the account can read the records of the contracts
    Check(Check),
    /// Load and report all records again, as after a restored backup of Odoo
    Load(Load),
    /// Print the rights that the account needs, as a file to import into Odoo
    Account(Account),
    /// Manage automations in Odoo that notify the gateway of changes
    Webhook(Webhook),
}

#[derive(Debug, Args)]
pub(super) struct Load {
    /// Report each record once more, as `loaded`; what was missed meanwhile is reported too
    #[arg(long, required = true)]
    again: bool,
    /// Only contracts of this model, such as mrp.production
    #[arg(long)]
    model: Option<String>,
    /// Only the source of this name
    #[arg(long)]
    source: Option<String>,
    #[command(flatten)]
    at: At,
}

#[derive(Debug, Args)]
pub(super) struct Account {
    /// Print the file to standard output, and what to do with it to standard error
    #[arg(long, required = true)]
    print: bool,
    #[command(flatten)]
    config: ConfigFile,
    /// Name of the source; required if there are several
    #[arg(long)]
    source: Option<String>,
    /// Major version of that Odoo
    #[arg(long, default_value_t = 19, value_parser = clap::value_parser!(u32).range(14..))]
    odoo: u32,
}

#[derive(Debug, Args)]
pub(super) struct Check {
    #[command(flatten)]
    config: ConfigFile,
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
    #[command(flatten)]
    config: ConfigFile,
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
        Command::Load(load) => run_load(load),
        Command::Account(account) => run_account(account),
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
        is_good &= found.as_ref().is_ok_and(|found| found.findings.iter().all(|finding| finding.problem.is_none()));
        if check.json {
            answers.push(match found {
                Ok(found) => serde_json::json!({
                    "source": source.name, "version": found.session.version_text,
                    "administrator": found.session.is_administrator, "language": found.account.language,
                    "companies": found.account.companies, "key_expires": found.account.key_expires.map(|at| at.to_string()),
                    "contracts": found.findings,
                }),
                Err(error) => serde_json::json!({"source": source.name, "problem": error.to_string()}),
            });
            continue;
        }
        match found {
            Err(error) => writeln!(out, "{}: {error}", source.name)?,
            Ok(found) => {
                writeln!(out, "{}", about(source, &found))?;
                write!(out, "{}", shown(&found.findings, shows_colours(&std::io::stdout())))?;
            }
        }
    }
    if check.json {
        writeln!(out, "{}", json(&answers)?)?;
    }
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Version, database, and what the account sees, in one line.
fn about(source: &odoo::Config, found: &odoo::Report) -> String {
    let mut words = format!("{}: Odoo {}, database {}", source.name, found.session.version_text, source.database);
    let companies: Vec<String> = found.account.companies.iter().map(ToString::to_string).collect();
    if !companies.is_empty() {
        words.push_str(&format!(", companies {}", companies.join(", ")));
    }
    if let Some(language) = source.language.as_ref().or(found.account.language.as_ref()) {
        words.push_str(&format!(", names in {language}"));
    }
    if let Some(at) = found.account.key_expires.map(|at| at.to_string()) {
        words.push_str(&format!(", the key expires on {}", at.get(..10).unwrap_or(&at)));
    }
    words
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
            words.extend(finding.remarks.iter().cloned());
            if finding.may_write {
                words.push("the account may also write this model, which is not needed".into());
            }
            let can = if finding.problem.is_some() { "no" } else { "yes" };
            vec![finding.stream.clone(), finding.model.clone(), can.to_owned(), words.join("; ")]
        })
        .collect();
    table(&["STREAM", "MODEL", "READABLE", "REMARK"], &[], &rows, is_coloured)
}

fn run_load(load: &Load) -> anyhow::Result<ExitCode> {
    let wanted = OdooLoadRequest { source: load.source.clone(), model: load.model.clone() };
    let answer: OdooLoadAnswer = ask_with(&load.at, "/odoo/load", &wanted)?;
    print(&load.at, &answer, |answer, is_coloured| {
        let rows = answer
            .streams
            .iter()
            .map(|one| vec![one.source.clone(), one.stream.clone(), one.model.clone(), grouped(one.records)]);
        let rows: Vec<_> = rows.collect();
        let shown = table(&["SOURCE", "STREAM", "MODEL", "RECORDS"], &[3], &rows, is_coloured);
        format!("{shown}\nthese are loaded again; `forebay status` shows the progress")
    })
}

fn run_account(account: &Account) -> anyhow::Result<ExitCode> {
    let config = load(&account.config)?;
    let sources = chosen(&config, account.source.as_deref())?;
    let [source] = sources[..] else { bail!("there are several [[source.odoo]]; name one with --source") };
    let rights = odoo::rights(source, &config.contracts, &config.surroundings.gateway, account.odoo);
    write!(std::io::stdout(), "{}", rights.csv)?;
    eprintln!(
        "In Odoo, as an administrator with developer mode on:\n\
         1. Settings > Users & Companies > Groups > Import records: this file. It makes the group \"{group}\".\n   \
            If Odoo does not find a model, its module is not installed: disable the contract, and print the file again.\n\
         2. Settings > Users & Companies > Users: an internal user for the gateway, with this group, the companies that\n   \
            it reads, and no other right.\n\
         3. Log in as this user; Preferences > Account Security > New API Key; save it as key_file.\n\
         4. forebay odoo check",
        group = rights.group
    );
    if !rights.left_out.is_empty() {
        eprintln!("Left out, because not every Odoo {} has them: {}", account.odoo, rights.left_out.join(", "));
    }
    if !rights.unknown_links.is_empty() {
        eprintln!(
            "Add the models that these links lead to, if events are to have the fields of linked records: {}",
            rights.unknown_links.join(", ")
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn run_webhook(webhook: &Webhook) -> anyhow::Result<ExitCode> {
    let config = load(&webhook.config)?;
    let sources = chosen(&config, webhook.source.as_deref())?;
    let [source] = sources[..] else { bail!("there are several [[source.odoo]]; name one with --source") };
    let plan = odoo::plan(source, &config.contracts, &config.surroundings.gateway).map_err(anyhow::Error::msg)?;
    if webhook.print {
        write!(std::io::stdout(), "{}", odoo::steps(&plan))?;
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
        let own = source.client().map_err(anyhow::Error::msg)?;
        let reader = finished(own.session())?.context("the gateway's own account could not log in")?.user_id;
        let count = finished(odoo::install(&client, &plan, reader))?
            .context("could not install the automations; the key of an administrator is needed")?;
        writeln!(std::io::stdout(), "{count} automations are installed; the key was used once and is not stored")?;
    } else {
        let count = finished(odoo::remove(&client, &plan))?
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
