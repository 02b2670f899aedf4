//! The command line.
//!
//! Promise: every command says what happened in words, and with `--json` as data on standard output;
//! what keeps a command from answering is text on standard error. The exit code is 0 for success,
//! 2 for arguments that cannot be, and 1 for anything else.

mod attend;
mod bundle;
mod dead;
mod journal;
mod modbus;
mod odoo;
mod replay;
mod rights;
mod show;
mod socket;

use crate::admin::ReloadBy;
use crate::config::{self, Config};
use crate::demo;
use crate::gateway::Gateway;
use crate::service::Service;
use crate::setting::Span;
use crate::sources::http::put_token;
use crate::sources::mqtt::put_user;
use crate::telemetry::{self, LogFormat, Logging};
use anyhow::{Context, bail};
use clap::{Args, CommandFactory, Parser, Subcommand};
use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};
use zeroize::Zeroizing;

#[derive(Debug, Parser)]
#[command(
    name = "forebay",
    version,
    about = "An edge gateway that holds a plant's events in front of the WAN and delivers every one of them.",
    max_term_width = 100
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway
    Run(Run),
    /// Check a configuration and its contracts, and start nothing
    Check(CheckAll),
    /// See the whole path at work: devices, gateway, a central broker, and a WAN to cut
    Demo(Demo),
    /// How the running gateway stands
    Status(StatusOf),
    /// Whether the running gateway lives and takes events; exit code 1 if not
    Health(At),
    /// Collect what helps to understand this gateway, without secrets and payloads, in one file
    Bundle(bundle::BundleArgs),
    /// Have the running gateway read its configuration, contracts, certificates and secrets anew
    Reload(At),
    /// The destinations
    #[command(subcommand)]
    Destination(DestinationCommand),
    /// What the clock says, and whether the gateway believes it
    Clock {
        #[command(flatten)]
        at: At,
        /// Say that it is right, where the journal has seen a later time
        #[arg(long)]
        trust: bool,
    },
    /// What people and limits did to events and to the gateway: who, when, to what, and what came of it
    Audit {
        #[command(flatten)]
        at: At,
        /// How many entries at most
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=10_000))]
        limit: u64,
    },
    /// Events that are held but cannot be delivered as they are
    #[command(subcommand)]
    Dead(dead::Dead),
    /// Send settled events once more, marked as a replay
    Replay(replay::ReplayCommand),
    /// Events as they are taken
    Tail(Tail),
    /// Who has connected to the listeners, and how they behave
    Devices(At),
    /// Write the journal's events as JSON, of a running gateway or one that is stopped
    Export(journal::ExportArgs),
    /// Recount the journal: every checksum, number and account
    Verify(journal::VerifyArgs),
    /// Copy the journal into a folder, while the gateway runs or not
    Backup(journal::BackupArgs),
    /// Take out of damaged files of the journal what can still be read
    Salvage(journal::SalvageArgs),
    /// What the watch has open: orders, work centers and machines that are not as they should be
    Exceptions(At),
    /// The Odoos that are sources
    #[command(subcommand)]
    Odoo(odoo::Command),
    /// The contracts
    #[command(subcommand)]
    Contracts(ContractsCommand),
    /// The users of a listener
    #[command(subcommand)]
    User(User),
    /// The bearer tokens of an HTTP source
    #[command(subcommand)]
    Token(Token),
    /// Modbus devices: read them, find them, make their tables
    #[command(subcommand)]
    Modbus(modbus::Modbus),
}

#[derive(Debug, Args)]
struct Run {
    /// Configuration file
    #[arg(long, default_value = DEFAULT_CONFIG)]
    config: PathBuf,
    /// How log lines look; by default as [log] in the configuration says, else as fits where they go
    #[arg(long, value_enum)]
    log: Option<LogFormat>,
    /// Follow one event in so many on its way, in the log
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    log_sample: Option<u32>,
}

#[derive(Debug, Args)]
struct CheckAll {
    #[command(flatten)]
    check: Check,
    /// Say what each configured name may publish and subscribe to, and why
    #[arg(long)]
    rights: bool,
}

#[derive(Debug, Args)]
struct Check {
    /// Configuration file
    #[arg(long, default_value = DEFAULT_CONFIG)]
    config: PathBuf,
    /// As JSON; errors stay text on standard error, with exit code 1
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Demo {
    /// Folder for everything the demo writes
    #[arg(long, default_value = "forebay-demo")]
    folder: PathBuf,
    /// Cut the WAN once for this long, after ten seconds
    #[arg(long, value_parser = Span::parse)]
    outage: Option<Span>,
    /// End after this long
    #[arg(long, value_parser = Span::parse)]
    run_for: Option<Span>,
    /// Events a second, over all devices
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
}

/// Which running gateway, and how to answer.
#[derive(Debug, Args)]
struct At {
    /// Its configuration file, which names the socket
    #[arg(long, default_value = DEFAULT_CONFIG)]
    config: PathBuf,
    /// Its socket
    #[arg(long)]
    socket: Option<PathBuf>,
    /// As JSON; errors stay text on standard error, with exit code 1
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct StatusOf {
    #[command(flatten)]
    at: At,
    /// What became of every event, by stream and destination
    #[arg(long)]
    ledger: bool,
}

#[derive(Debug, Subcommand)]
enum DestinationCommand {
    /// Give up everything that a destination is owed that the configuration does not name any more
    Drop {
        /// Its name
        name: String,
        #[command(flatten)]
        at: At,
    },
}

#[derive(Debug, Args)]
struct Tail {
    #[command(flatten)]
    at: At,
    /// Only this stream; `*` at the end stands for any rest
    #[arg(long)]
    stream: Option<String>,
}

#[derive(Debug, Subcommand)]
enum ContractsCommand {
    /// Check the contracts, and compare them with the versions in force
    Check(Check),
}

#[derive(Debug, Subcommand)]
enum User {
    /// Add a user, or give one a new password; it is read from the terminal or the first line of the input
    Add {
        /// Password file of the listener
        #[arg(long)]
        file: PathBuf,
        /// Name of the user
        name: String,
    },
}

#[derive(Debug, Subcommand)]
enum Token {
    /// Make a token for a name, in place of an earlier one, and print it; only its hash is kept
    Add {
        /// Token file of the source
        #[arg(long)]
        file: PathBuf,
        /// Name of who posts: the only {source} it may post as
        name: String,
    },
}

const DEFAULT_CONFIG: &str = "/etc/forebay/forebay.toml";

/// All commands and their arguments, for manual pages and completions.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs the program.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli.command) {
        Ok(code) => code,
        Err(error) => {
            // A reader that closes its end of a pipe wants no more, and no complaint.
            if is_broken_pipe(&error) {
                return ExitCode::SUCCESS;
            }
            eprintln!("forebay: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<std::io::Error>().is_some_and(|io| io.kind() == std::io::ErrorKind::BrokenPipe)
    })
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run(run) => {
            let mut logging = config::logging_of(&run.config);
            logging.format = run.log.or(logging.format);
            logging.sample = run.log_sample.or(logging.sample);
            telemetry::start_logging(&logging, tracing::Level::INFO);
            finished(serve(&run.config))?
        }
        Command::Check(asked) => check_config(&asked),
        Command::Demo(demo) => {
            let logging = Logging { format: Some(LogFormat::Text), ..Logging::default() };
            telemetry::start_logging(&logging, tracing::Level::ERROR);
            let plan = demo::Plan {
                folder: demo.folder,
                outage: demo.outage.map(|span| span.0),
                run_for: demo.run_for.map(|span| span.0),
                rate: demo.rate,
            };
            finished(demo::run(plan))?.map(|()| ExitCode::SUCCESS)
        }
        Command::Status(StatusOf { at, ledger: false }) => {
            let status: crate::admin::Status = ask(&at, "/status")?;
            print(&at, &status, show::status)
        }
        Command::Status(StatusOf { at, ledger: true }) => {
            let balances: Vec<crate::ledger::Balance> = ask(&at, "/ledger")?;
            print(&at, &balances, |balances, is_coloured| show::ledger(balances, is_coloured))?;
            let is_even = balances.iter().all(|balance| balance.difference == 0);
            Ok(if is_even { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Command::Health(at) => health(&at),
        Command::Bundle(args) => bundle::run(&args),
        Command::Reload(at) => reload(&at),
        Command::Destination(DestinationCommand::Drop { name, at }) => {
            let socket = socket_path(&at)?;
            let bytes = finished(socket::call(
                &socket,
                hyper::Method::DELETE,
                &format!("/destination/{}", segment(&name)),
                Vec::new(),
            ))??;
            let count: u64 = serde_json::from_slice(&bytes)?;
            print(&at, &serde_json::json!({"destination": name, "discarded": count}), |_, _| {
                format!("\"{name}\" is forgotten; {} that it was owed are discarded", counted(count as usize, "event"))
            })
        }
        Command::Clock { at, trust } => {
            let clock: crate::admin::time::ClockStatus =
                if trust { post(&at, "/clock/trust")? } else { ask(&at, "/clock")? };
            print(&at, &clock, |clock, _| match clock.problem() {
                Some(problem) => problem,
                None => format!("clock: {}, believed", clock.time),
            })
        }
        Command::Audit { at, limit } => {
            let entries: Vec<crate::journal::AuditEntry> = ask(&at, &format!("/audit?limit={limit}"))?;
            print(&at, &entries, |entries, is_coloured| show::audit(entries, is_coloured))
        }
        Command::Dead(command) => dead::run(command),
        Command::Replay(command) => replay::run(command),
        Command::Tail(tail) => follow(&tail),
        Command::Devices(at) => {
            let devices: Vec<crate::sources::mqtt::DeviceStatus> = ask(&at, "/devices")?;
            print(&at, &devices, |devices, is_coloured| show::devices(devices, is_coloured))
        }
        Command::Export(args) => journal::export(&args),
        Command::Verify(args) => journal::verify(&args),
        Command::Backup(args) => journal::backup(&args),
        Command::Salvage(args) => journal::salvage(&args),
        Command::Exceptions(at) => {
            let open: Vec<crate::watch::Exception> = ask(&at, "/exceptions")?;
            print(&at, &open, |open, is_coloured| show::exceptions(open, is_coloured))
        }
        Command::Odoo(command) => odoo::run(&command),
        Command::Contracts(ContractsCommand::Check(check)) => check_contracts(&check),
        Command::Modbus(command) => modbus::run(command),
        Command::User(User::Add { file, name }) => {
            let password = read_password(&name)?;
            put_user(&file, &name, password.as_bytes())?;
            writeln!(
                std::io::stdout(),
                "user \"{name}\" is in {}; a running gateway takes it at the next login",
                file.display()
            )?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Token(Token::Add { file, name }) => {
            println!("{}", put_token(&file, &name)?);
            eprintln!("this is the token of \"{name}\", shown once; its hash is in {}", file.display());
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Asks whether the gateway takes events, which it cannot without living.
fn health(at: &At) -> anyhow::Result<ExitCode> {
    let (is_good, text) = finished(socket::look(&socket_path(at)?, "/readyz"))??;
    let checks: Vec<crate::admin::Check> = text
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()
        .context("the gateway answers in another format")?;
    print(at, &checks, |checks, _| {
        let bad: Vec<String> = checks
            .iter()
            .filter_map(|check| {
                Some(format!("{}: {}", telemetry::shown(&check.check), telemetry::shown(check.reason.as_deref()?)))
            })
            .collect();
        if bad.is_empty() { "it lives, and takes events".to_owned() } else { bad.join("\n") }
    })?;
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Asks for a reload, and says what came of it.
fn reload(at: &At) -> anyhow::Result<ExitCode> {
    let socket = socket_path(at)?;
    let bytes = finished(socket::call(&socket, hyper::Method::POST, "/reload", Vec::new()))??;
    let answer: crate::admin::ReloadAnswer = serde_json::from_slice(&bytes)?;
    print(at, &answer, |answer, _| match (&answer.problems[..], &answer.changes[..]) {
        ([], []) => "read anew; nothing has changed".to_owned(),
        ([], changes) => format!("in force:\n{}", changes.join("\n")),
        (problems, _) => format!("{}\nrefused; the configuration before stays in force", problems.join("\n")),
    })?;
    Ok(if answer.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Two workers: a gateway's box has few cores, and the journal has threads of its own.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(8)
        .thread_name("forebay")
        .enable_all()
        .build()
        .context("cannot start the runtime")
}

/// What the work of a command comes to, on a runtime of its own.
fn finished<T>(work: impl Future<Output = T>) -> anyhow::Result<T> {
    Ok(runtime()?.block_on(work))
}

async fn serve(file: &Path) -> anyhow::Result<ExitCode> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let service = Arc::new(Service::from_environment());
    let config = match Config::load(file) {
        Ok(config) => config,
        Err(problems) => {
            problems.iter().for_each(|problem| eprintln!("{problem}"));
            service.notify_status(problems.first().map(ToString::to_string).unwrap_or_default());
            bail!("{} is refused: {}", file.display(), counted(problems.len(), "problem"));
        }
    };
    config.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    let gateway = match Gateway::start(config).await {
        Ok(gateway) => gateway,
        Err(error) => {
            service.notify_status(format!("{error:#}"));
            return Err(error);
        }
    };
    let addresses: Vec<_> = gateway.addresses.iter().map(ToString::to_string).collect();
    tracing::info!(version = env!("CARGO_PKG_VERSION"), listening = %addresses.join(", "), "ready");
    let (died, mut death) = tokio::sync::oneshot::channel();
    let attendant = service.start_watchdog(
        tokio::runtime::Handle::current(),
        attend::Stand(Arc::clone(gateway.handles())),
        // Nobody hears it any more: the gateway stops.
        move |part| drop(died.send(part)),
    )?;
    service.ready();
    let outcome = loop {
        tokio::select! {
            _ = terminate.recv() => break Ok(ExitCode::SUCCESS),
            _ = interrupt.recv() => break Ok(ExitCode::SUCCESS),
            Ok(part) = &mut death => break Err(anyhow::anyhow!("{part} has died; only a new start brings it back")),
            _ = hangup.recv() => {
                let (reloading, service) = (gateway.handles().reloading.clone(), Arc::clone(&service));
                tokio::spawn(async move {
                    service.reloading();
                    // What comes of it is told in log and status.
                    reloading.reload(ReloadBy::Signal).await;
                    service.ready();
                });
            }
        }
    };
    service.stopping();
    drop(attendant);
    tracing::info!("stopping: no new events, acknowledgements in flight are given");
    gateway.stop().await;
    tracing::info!("stopped; the journal is closed");
    outcome
}

fn counted(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

fn check_config(asked: &CheckAll) -> anyhow::Result<ExitCode> {
    let check = &asked.check;
    let config = match Config::load(&check.config) {
        Ok(config) => config,
        Err(problems) => return report(check, &problems, &[], String::new),
    };
    let mut warnings = config.warnings.clone();
    let problems = match crate::journal::publications_in(&config.journal.folder) {
        Ok(in_force) => config.contracts.check_against(&in_force),
        // Another user may check a configuration whose journal only the service reads.
        Err(error) => {
            warnings.push(crate::setting::Problem {
                file: check.config.clone(),
                line: 0,
                key: "contracts".into(),
                message: format!("not compared with the versions in force: {error}"),
            });
            Vec::new()
        }
    };
    if asked.rights {
        return show_rights(&config, check.json);
    }
    let (mut ended, mut ending) = (Vec::new(), Vec::new());
    crate::admin::certificates::check_revocations(&config.revocations, &mut ended, &mut ending);
    warnings.extend(ended.into_iter().chain(ending).map(|message| crate::setting::Problem {
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
                let end = crate::event::Timestamp(validity.end.saturating_mul(1_000_000));
                text.push_str(&format!("\nrevocation list {}: until {end}", list.path.display()));
            }
        }
        text
    })
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
    problems: &[crate::setting::Problem],
    warnings: &[crate::setting::Problem],
    good: impl Fn() -> String,
) -> anyhow::Result<ExitCode> {
    let as_json = |list: &[crate::setting::Problem]| -> Vec<_> {
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

fn check_contracts(check: &Check) -> anyhow::Result<ExitCode> {
    let config = match Config::load(&check.config) {
        Ok(config) => config,
        Err(problems) => return report(check, &problems, &[], String::new),
    };
    let in_force = crate::journal::publications_in(&config.journal.folder)
        .context("the versions in force cannot be read; ask as the user that the gateway runs as")?;
    let problems = config.contracts.check_against(&in_force);
    let mut lines = Vec::new();
    for contract in config.contracts.iter() {
        let next = &contract.publication;
        // The last of its stream that the journal took is the one in force.
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

fn socket_path(at: &At) -> anyhow::Result<PathBuf> {
    match &at.socket {
        Some(socket) => Ok(socket.clone()),
        None => Ok(config::socket_of(&at.config)?),
    }
}

/// A part of a path that people have given.
fn segment(text: &str) -> String {
    let mut out = String::new();
    crate::event::push_path_segment(&mut out, text);
    out
}

fn ask<T: serde::de::DeserializeOwned>(at: &At, path: &str) -> anyhow::Result<T> {
    let socket = socket_path(at)?;
    let bytes = finished(socket::get(&socket, path))??;
    serde_json::from_slice(&bytes).context("the gateway answers in another format; it may be of another version")
}

/// Asks with a body.
fn ask_with<T: serde::de::DeserializeOwned>(at: &At, path: &str, body: &impl serde::Serialize) -> anyhow::Result<T> {
    let body = serde_json::to_vec(body)?;
    let bytes = finished(socket::call(&socket_path(at)?, hyper::Method::POST, path, body))??;
    serde_json::from_slice(&bytes).context("the gateway answers in another format; it may be of another version")
}

/// Asks for a change that needs no body.
fn post<T: serde::de::DeserializeOwned>(at: &At, path: &str) -> anyhow::Result<T> {
    ask_with(at, path, &serde_json::Value::Null)
}

/// What `--json` prints.
fn json(value: &impl serde::Serialize) -> anyhow::Result<String> {
    Ok(telemetry::shown_json(&serde_json::to_string_pretty(value)?))
}

fn print<T: serde::Serialize>(at: &At, value: &T, show: impl Fn(&T, bool) -> String) -> anyhow::Result<ExitCode> {
    let text = if at.json { json(value)? } else { show(value, std::io::stdout().is_terminal()) };
    writeln!(std::io::stdout(), "{}", text.trim_end())?;
    Ok(ExitCode::SUCCESS)
}

fn follow(tail: &Tail) -> anyhow::Result<ExitCode> {
    let socket = socket_path(&tail.at)?;
    let path = match &tail.stream {
        Some(stream) if stream.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-*".contains(&b)) => {
            format!("/tail?stream={stream}")
        }
        Some(stream) => bail!("\"{stream}\" is no stream name"),
        None => "/tail".into(),
    };
    let is_terminal = std::io::stdout().is_terminal();
    finished(socket::lines(&socket, &path, |line| {
        let mut out = std::io::stdout().lock();
        if tail.at.json {
            writeln!(out, "{}", telemetry::shown_json(&String::from_utf8_lossy(line)))?;
        } else {
            let seen: crate::admin::TailEvent = serde_json::from_slice(line)?;
            writeln!(out, "{}", show::seen(&seen, is_terminal))?;
        }
        out.flush()?;
        Ok(())
    }))??;
    Ok(ExitCode::SUCCESS)
}

fn read_password(name: &str) -> anyhow::Result<Zeroizing<String>> {
    let password = read_secret(&format!("Password for \"{name}\": "))?;
    if password.len() < 8 {
        bail!("the password has {} characters; at least 8 are needed", password.chars().count());
    }
    Ok(password)
}

/// Reads a line from the terminal without showing it, or the first line of the input.
fn read_secret(prompt: &str) -> anyhow::Result<Zeroizing<String>> {
    let input = std::io::stdin();
    // Long enough for any password, so that no part of it stays behind where a growing buffer was.
    let mut line = Zeroizing::new(String::with_capacity(1024));
    if input.is_terminal() {
        eprint!("{prompt}");
        let hidden = hide_typing()?;
        let read = input.lock().read_line(&mut line);
        drop(hidden);
        eprintln!();
        read?;
    } else {
        input.lock().read_line(&mut line)?;
    }
    Ok(Zeroizing::new(line.trim_end_matches(['\r', '\n']).to_owned()))
}

/// Turns the echo of the terminal off as long as the value lives.
fn hide_typing() -> anyhow::Result<impl Drop> {
    use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
    struct Restore(rustix::termios::Termios);
    impl Drop for Restore {
        fn drop(&mut self) {
            // A terminal that is gone needs no echo.
            let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0);
        }
    }
    let before = tcgetattr(std::io::stdin())?;
    let mut quiet = before.clone();
    quiet.local_modes.remove(LocalModes::ECHO);
    tcsetattr(std::io::stdin(), OptionalActions::Now, &quiet)?;
    Ok(Restore(before))
}
