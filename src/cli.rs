//! The command line.
//!
//! Promise: every command prints its result on standard output, as text or with `--json` as data. Errors are text on
//! standard error. The exit code is 0 for success, 2 for invalid arguments, and 1 for any other failure.

mod bundle;
mod dead;
mod journal;
mod modbus;
mod odoo;
mod probe;
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
    /// Check a configuration and its contracts without starting the gateway
    Check(CheckAll),
    /// Demonstrate the whole path: devices, gateway, a central broker, and a WAN outage
    Demo(Demo),
    /// Show the status of the running gateway
    Status(StatusOf),
    /// Check that the running gateway is live and accepts events; exit code 1 if not
    Health(At),
    /// Collect support information about this gateway in one file, without secrets and payloads
    Bundle(bundle::BundleArgs),
    /// Make the running gateway reload its configuration, contracts, certificates and secrets
    Reload(At),
    /// Manage destinations
    #[command(subcommand)]
    Destination(DestinationCommand),
    /// Show the time of the gateway, and whether the gateway trusts it
    Clock {
        #[command(flatten)]
        at: At,
        /// Confirm that the time is right although the journal contains a later one
        #[arg(long)]
        trust: bool,
    },
    /// Show changes to events and gateway by users and limits: who, when, what, and the result
    Audit {
        #[command(flatten)]
        at: At,
        /// Maximum number of entries
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=10_000))]
        limit: u64,
    },
    /// Manage dead letters: events that are kept but cannot be delivered as they are
    #[command(subcommand)]
    Dead(dead::Dead),
    /// Send settled events again, marked as a replay
    Replay(replay::ReplayCommand),
    /// Follow new events
    Tail(Tail),
    /// List the devices that connected to the MQTT listeners
    Devices(At),
    /// Export the events of the journal as JSON, from a running or a stopped gateway
    Export(journal::ExportArgs),
    /// Verify the journal: every checksum, sequence and account
    Verify(journal::VerifyArgs),
    /// Copy the journal to a folder, with the gateway running or stopped
    Backup(journal::BackupArgs),
    /// Recover readable events from damaged journal files
    Salvage(journal::SalvageArgs),
    /// List open business exceptions: orders, work centers and machines that need attention
    Exceptions(At),
    /// Check and set up Odoo sources
    #[command(subcommand)]
    Odoo(odoo::Command),
    /// Check contracts
    #[command(subcommand)]
    Contracts(ContractsCommand),
    /// Manage the users of an MQTT listener
    #[command(subcommand)]
    User(User),
    /// Manage the bearer tokens of an HTTP source
    #[command(subcommand)]
    Token(Token),
    /// Read and find Modbus devices, and create their tables
    #[command(subcommand)]
    Modbus(modbus::Modbus),
}

#[derive(Debug, Args)]
struct Run {
    /// Configuration file
    #[arg(long, default_value = DEFAULT_CONFIG)]
    config: PathBuf,
    /// Format of log lines; default: [log] in the configuration, else chosen by the output
    #[arg(long, value_enum)]
    log: Option<LogFormat>,
    /// Log the path of every Nth event
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    log_sample: Option<u32>,
}

#[derive(Debug, Args)]
struct CheckAll {
    #[command(flatten)]
    check: Check,
    /// Show what each configured name may publish and subscribe to, and why
    #[arg(long)]
    rights: bool,
}

#[derive(Debug, Args)]
struct Check {
    /// Configuration file
    #[arg(long, default_value = DEFAULT_CONFIG)]
    config: PathBuf,
    /// Print JSON; errors stay text on standard error, with exit code 1
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Demo {
    /// Folder for all files of the demo
    #[arg(long, default_value = "forebay-demo")]
    folder: PathBuf,
    /// Cut the WAN once for this long, after ten seconds
    #[arg(long, value_parser = Span::parse)]
    outage: Option<Span>,
    /// Stop after this time
    #[arg(long, value_parser = Span::parse)]
    run_for: Option<Span>,
    /// Events per second, over all devices
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
}

/// The running gateway to connect to, and the output format.
#[derive(Debug, Args)]
struct At {
    /// Configuration file of the gateway, which names the socket
    #[arg(long, default_value = DEFAULT_CONFIG)]
    config: PathBuf,
    /// Command socket of the gateway
    #[arg(long)]
    socket: Option<PathBuf>,
    /// Print JSON; errors stay text on standard error, with exit code 1
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct StatusOf {
    #[command(flatten)]
    at: At,
    /// Show the ledger: the fate of every event, by stream and destination
    #[arg(long)]
    ledger: bool,
}

#[derive(Debug, Subcommand)]
enum DestinationCommand {
    /// Discard all undelivered events of a destination that was removed from the configuration
    Drop {
        /// Name of the destination
        name: String,
        #[command(flatten)]
        at: At,
    },
}

#[derive(Debug, Args)]
struct Tail {
    #[command(flatten)]
    at: At,
    /// Only this stream; a `*` at the end matches any suffix
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
    /// Add a user or set a new password, read from the terminal or the first line of standard input
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
    /// Create a token for a name, replacing an earlier one, and print it; only its hash is stored
    Add {
        /// Token file of the source
        #[arg(long)]
        file: PathBuf,
        /// Name of the caller: the only {source} for which it may post
        name: String,
    },
}

const DEFAULT_CONFIG: &str = "/etc/forebay/forebay.toml";

/// Returns all commands and arguments, for manual pages and completions.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs the program.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli.command) {
        Ok(code) => code,
        Err(error) => {
            // A closed pipe is no error: its reader has seen enough.
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
        Command::Check(args) => check_config(&args),
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
            let status: crate::api::Status = ask(&at, "/status")?;
            print(&at, &status, show::status)
        }
        Command::Status(StatusOf { at, ledger: true }) => {
            let balances: Vec<crate::api::Balance> = ask(&at, "/ledger")?;
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
                format!("destination \"{name}\" is dropped; {} discarded", counted(count as usize, "undelivered event"))
            })
        }
        Command::Clock { at, trust } => {
            let clock: crate::api::ClockStatus = if trust { post(&at, "/clock/trust")? } else { ask(&at, "/clock")? };
            print(&at, &clock, |clock, _| match clock.problem() {
                Some(problem) => problem,
                None => format!("clock: {}, trusted", clock.time),
            })
        }
        Command::Audit { at, limit } => {
            let entries: Vec<crate::api::AuditEntry> = ask(&at, &format!("/audit?limit={limit}"))?;
            print(&at, &entries, |entries, is_coloured| show::audit(entries, is_coloured))
        }
        Command::Dead(command) => dead::run(command),
        Command::Replay(command) => replay::run(command),
        Command::Tail(tail) => follow(&tail),
        Command::Devices(at) => {
            let devices: Vec<crate::api::DeviceStatus> = ask(&at, "/devices")?;
            print(&at, &devices, |devices, is_coloured| show::devices(devices, is_coloured))
        }
        Command::Export(args) => journal::export(&args),
        Command::Verify(args) => journal::verify(&args),
        Command::Backup(args) => journal::backup(&args),
        Command::Salvage(args) => journal::salvage(&args),
        Command::Exceptions(at) => {
            let open: Vec<crate::api::Exception> = ask(&at, "/exceptions")?;
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
                "user \"{name}\" is in {}; a running gateway uses it from the next login on",
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

/// Queries readiness, which includes liveness.
fn health(at: &At) -> anyhow::Result<ExitCode> {
    let (is_good, text) = finished(socket::get_any(&socket_path(at)?, "/readyz"))??;
    let checks: Vec<crate::api::HealthCheck> = text
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()
        .context("the gateway responds in another format")?;
    print(at, &checks, |checks, _| {
        let failed: Vec<String> = checks
            .iter()
            .filter_map(|check| {
                Some(format!("{}: {}", telemetry::shown(&check.check), telemetry::shown(check.reason.as_deref()?)))
            })
            .collect();
        if failed.is_empty() { "live and accepting events".to_owned() } else { failed.join("\n") }
    })?;
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Requests a reload and prints its result.
fn reload(at: &At) -> anyhow::Result<ExitCode> {
    let socket = socket_path(at)?;
    let bytes = finished(socket::call(&socket, hyper::Method::POST, "/reload", Vec::new()))??;
    let answer: crate::api::ReloadAnswer = serde_json::from_slice(&bytes)?;
    print(at, &answer, |answer, _| match (&answer.problems[..], &answer.changes[..]) {
        ([], []) => "reloaded; nothing has changed".to_owned(),
        ([], changes) => format!("in force:\n{}", changes.join("\n")),
        (problems, _) => format!("{}\nrefused; the previous configuration stays in force", problems.join("\n")),
    })?;
    Ok(if answer.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Two worker threads: gateway devices have few cores, and the journal has its own threads.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(8)
        .thread_name("forebay")
        .enable_all()
        .build()
        .context("cannot start the runtime")
}

/// Runs the future of a command to its end on a new runtime.
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
    let watchdog = service.start_watchdog(
        tokio::runtime::Handle::current(),
        probe::GatewayProbe(Arc::clone(gateway.handles())),
        // An error means that the gateway stops already.
        move |part| drop(died.send(part)),
    )?;
    service.ready();
    let outcome = loop {
        tokio::select! {
            _ = terminate.recv() => break Ok(ExitCode::SUCCESS),
            _ = interrupt.recv() => break Ok(ExitCode::SUCCESS),
            Ok(part) = &mut death => break Err(anyhow::anyhow!("{part} has died; the process ends, only a restart brings it back")),
            _ = hangup.recv() => {
                let (reloading, service) = (gateway.handles().reloading.clone(), Arc::clone(&service));
                tokio::spawn(async move {
                    service.reloading();
                    // The result is in log and status.
                    reloading.reload(ReloadBy::Signal).await;
                    service.ready();
                });
            }
        }
    };
    service.stopping();
    drop(watchdog);
    tracing::info!("stopping: no new events; sending acknowledgements in flight");
    gateway.stop().await;
    tracing::info!("stopped; the journal is closed");
    outcome
}

fn counted(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

fn check_config(args: &CheckAll) -> anyhow::Result<ExitCode> {
    let check = &args.check;
    let config = match Config::load(&check.config) {
        Ok(config) => config,
        Err(problems) => return report(check, &problems, &[], String::new),
    };
    let mut warnings = config.warnings.clone();
    let problems = match crate::journal::publications_in(&config.journal.folder) {
        Ok(in_force) => config.contracts.check_against(&in_force),
        // A user may check a configuration although only the service can read the journal.
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
    if args.rights {
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

fn socket_path(at: &At) -> anyhow::Result<PathBuf> {
    match &at.socket {
        Some(socket) => Ok(socket.clone()),
        None => Ok(config::socket_of(&at.config)?),
    }
}

/// Encodes an argument as a path segment.
fn segment(text: &str) -> String {
    let mut out = String::new();
    crate::event::push_path_segment(&mut out, text);
    out
}

fn ask<T: serde::de::DeserializeOwned>(at: &At, path: &str) -> anyhow::Result<T> {
    let socket = socket_path(at)?;
    let bytes = finished(socket::get(&socket, path))??;
    serde_json::from_slice(&bytes).context("the gateway responds in another format; it may have another version")
}

/// Sends a POST request with a JSON body and decodes the response.
fn ask_with<T: serde::de::DeserializeOwned>(at: &At, path: &str, body: &impl serde::Serialize) -> anyhow::Result<T> {
    let body = serde_json::to_vec(body)?;
    let bytes = finished(socket::call(&socket_path(at)?, hyper::Method::POST, path, body))??;
    serde_json::from_slice(&bytes).context("the gateway responds in another format; it may have another version")
}

/// Sends a POST request without arguments.
fn post<T: serde::de::DeserializeOwned>(at: &At, path: &str) -> anyhow::Result<T> {
    ask_with(at, path, &serde_json::Value::Null)
}

/// Formats a value as JSON that is safe to print.
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
        Some(stream) => {
            bail!("\"{stream}\" is no stream name; expected letters, digits, \".\", \"_\", \"-\", and \"*\" at the end")
        }
        None => "/tail".into(),
    };
    let is_terminal = std::io::stdout().is_terminal();
    finished(socket::lines(&socket, &path, |line| {
        let mut out = std::io::stdout().lock();
        if tail.at.json {
            writeln!(out, "{}", telemetry::shown_json(&String::from_utf8_lossy(line)))?;
        } else {
            let event: crate::api::TailEvent = serde_json::from_slice(line)?;
            writeln!(out, "{}", show::tail_event(&event, is_terminal))?;
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
    // Large enough for any password: a growing buffer would leave copies in freed memory.
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

/// Turns the terminal echo off until the returned value is dropped.
fn hide_typing() -> anyhow::Result<impl Drop> {
    use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
    struct Restore(rustix::termios::Termios);
    impl Drop for Restore {
        fn drop(&mut self) {
            // Fails only if the terminal is gone.
            let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0);
        }
    }
    let before = tcgetattr(std::io::stdin())?;
    let mut quiet = before.clone();
    quiet.local_modes.remove(LocalModes::ECHO);
    tcsetattr(std::io::stdin(), OptionalActions::Now, &quiet)?;
    Ok(Restore(before))
}
