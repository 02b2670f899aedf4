//! The command line.
//!
//! Promise: every command prints its result on standard output, as text or with `--json` as data. Errors are text on
//! standard error. The exit code is 0 for success, 2 for invalid arguments, and 1 for any other failure.

mod as_service;
mod bundle;
mod cert;
mod check;
mod client;
mod commands;
mod config_file;
mod confirm;
mod connect;
mod contracts;
mod dead;
mod drains;
mod gateway;
mod init;
mod journal;
mod manual;
mod modbus;
mod new_files;
mod odoo;
mod probe;
mod replay;
mod rights;
mod run;
mod secrets;
mod settings;
mod show;
mod socket;
mod table;
mod top;

use crate::config;
use crate::demo;
use crate::setting::Span;
use crate::telemetry::{self, LogFormat, Logging};
use clap::{Args, CommandFactory, Parser, Subcommand};
use client::{At, finished};
use config_file::ConfigFile;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::LazyLock;

/// The end of the help: first steps, exit codes and environment.
const EXITS: &str = "First steps:
  forebay init --test                     a gateway and a central broker here, and a first event
  forebay init --site plant-01 --central mqtts://central.example.com --tls
  forebay check --connect                 everything that files cannot say
  forebay status, forebay top             what the gateway does

Exit codes: 0 success, 1 failure or a problem found, 2 invalid arguments.

Environment:
  FOREBAY_CONFIG  configuration file, if --config is not given
  FOREBAY_LOG     log levels of `run`, such as debug or forebay::link=trace
  NO_COLOR        no colours
  COLUMNS         width of tables, if it is not that of the terminal

Manual pages: forebay man, forebay man dead requeue. Pages in the package: /usr/share/doc/forebay.";

/// Version, commit and journal format: a downgrade compares the formats. Packages set the commit (`cross/build`).
static LONG_VERSION: LazyLock<String> = LazyLock::new(|| {
    let commit = option_env!("FOREBAY_COMMIT").unwrap_or("unknown");
    format!("{}\ncommit: {commit}\njournal format: {}", env!("CARGO_PKG_VERSION"), crate::journal::FORMAT)
});

#[derive(Debug, Parser)]
#[command(
    name = "forebay",
    version,
    long_version = LONG_VERSION.as_str(),
    about = "An edge gateway that holds a plant's events in front of the WAN and delivers every one of them.",
    max_term_width = 100,
    after_help = EXITS
)]
struct Cli {
    /// Show times in tables in UTC instead of local time
    #[arg(long, global = true)]
    utc: bool,
    // Before the command. The option is global, so that the command has the value.
    #[command(flatten)]
    _config: ConfigFile,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write the files of a new gateway: configuration, contracts, certificates, a first user
    Init(init::Init),
    /// Run the gateway in the foreground
    Run(Run),
    /// Check a configuration and its contracts without starting the gateway
    #[command(
        after_help = "Examples:\n  forebay check\n  forebay check --connect\n  forebay check --strict --json forebay.toml\n\n\
                            Exit code 0 if there is no problem, 1 if there is one; with --strict also for a warning."
    )]
    Check(check::CheckAll),
    /// Demonstrate the whole path: devices, gateway, a central broker, and a WAN outage
    Demo(Demo),
    /// Show the status of the running gateway
    #[command(
        after_help = "Examples:\n  forebay status --watch\n  forebay status --ledger\n  forebay status --json | jq .problems\n\n\
                            With --ledger, exit code 1 if an account does not balance."
    )]
    Status(gateway::StatusOf),
    /// Show a live screen of the running gateway: lanes, links, sources, devices, dead letters, exceptions
    Top(top::Top),
    /// Check that the running gateway is live and accepts events; exit code 1 if not
    Health(At),
    /// Collect support information about this gateway in one file, without secrets and payloads
    Bundle(bundle::BundleArgs),
    /// Make the running gateway reload its configuration, contracts, certificates and secrets
    Reload(At),
    /// List destinations, and drop one that was removed from the configuration
    #[command(subcommand)]
    Destination(gateway::DestinationCommand),
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
        /// Maximum number of entries to print
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=10_000))]
        limit: u64,
    },
    /// Manage dead letters: events that are kept but cannot be delivered as they are
    #[command(subcommand)]
    Dead(dead::Dead),
    /// Send settled events again, marked as a replay
    Replay(replay::ReplayCommand),
    /// Follow new events, and dead letters, as they arrive
    #[command(after_help = "Examples:\n  forebay tail\n  forebay tail --stream 'machine.*' --json")]
    Tail(gateway::Tail),
    /// List the devices that connected over MQTT, and the units and points that are polled over Modbus
    Devices(At),
    /// Export the events of the journal as JSON, from a running or a stopped gateway
    #[command(after_help = "Examples:\n  forebay export --since 2h --stream 'machine.*' --output events.jsonl\n  \
                            forebay export --journal /mnt/backup/gw-01 --key press-4")]
    Export(journal::ExportArgs),
    /// Verify the journal: every checksum, sequence and account
    Verify(journal::VerifyArgs),
    /// Copy the journal to a folder, with the gateway running or stopped
    #[command(after_help = "Example: forebay backup --output /mnt/backup/gw-01\n\nThe folder must not exist yet.")]
    Backup(journal::BackupArgs),
    /// Recover readable events from damaged journal files
    #[command(
        after_help = "Example: forebay salvage /var/lib/forebay/journal/critical/*.damaged --output saved.jsonl\n\n\
                            Exit code 1 if a file has no readable event."
    )]
    Salvage(journal::SalvageArgs),
    /// List open business exceptions: orders, work centers and machines that need attention
    Exceptions(At),
    /// List commands of central
    #[command(subcommand, name = "command")]
    OfCentral(commands::Commands),
    /// Check and set up Odoo sources
    #[command(subcommand)]
    Odoo(odoo::Command),
    /// Check contracts, and try messages on them
    #[command(subcommand)]
    Contracts(contracts::ContractsCommand),
    /// Create, renew and show certificates
    #[command(subcommand)]
    Cert(cert::Cert),
    /// Show the settings in force by the file, and the defaults
    #[command(subcommand)]
    Config(settings::Settings),
    /// Manage the users of an MQTT listener
    #[command(subcommand)]
    User(secrets::User),
    /// Manage the bearer tokens of an HTTP source
    #[command(subcommand)]
    Token(secrets::Token),
    /// Read and find Modbus devices, and create their tables
    #[command(subcommand)]
    Modbus(modbus::Modbus),
    /// Print the completions of the command line for a shell
    Completions(manual::Completions),
    /// Print a manual page, or write those of all commands into a folder
    Man(manual::Manual),
}

#[derive(Debug, Args)]
struct Run {
    #[command(flatten)]
    config: ConfigFile,
    /// Format of log lines; default: [log] in the configuration, else chosen by the output
    #[arg(long, value_enum)]
    log: Option<LogFormat>,
    /// Log the path of every Nth event
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    log_sample: Option<u32>,
}

#[derive(Debug, Args)]
struct Demo {
    /// Folder for all files of the demo
    #[arg(long, default_value = "forebay-demo")]
    folder: PathBuf,
    /// Cut the WAN once for this long, after ten seconds
    #[arg(long, value_parser = Span::parse)]
    outage: Option<Span>,
    /// Stop by itself after this time
    #[arg(long, value_parser = Span::parse)]
    run_for: Option<Span>,
    /// Events per second, over all devices
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
}

/// Returns all commands and arguments, for manual pages and completions.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs the program with the arguments of the process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    if cli.utc {
        table::use_utc();
    }
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
        Command::Init(args) => init::run(&args),
        Command::Run(args) => run_gateway(&args),
        Command::Check(args) => check::check_config(&args),
        Command::Demo(args) => run_demo(args),
        Command::Status(args) => gateway::status(&args),
        Command::Top(args) => top::run(&args),
        Command::Health(at) => gateway::health(&at),
        Command::Bundle(args) => bundle::run(&args),
        Command::Reload(at) => gateway::reload(&at),
        Command::Destination(command) => gateway::destinations(&command),
        Command::Clock { at, trust } => gateway::clock(&at, trust),
        Command::Audit { at, limit } => gateway::audit(&at, limit),
        Command::Dead(command) => dead::run(command),
        Command::Replay(command) => replay::run(command),
        Command::Tail(args) => gateway::follow(&args),
        Command::Devices(at) => gateway::devices(&at),
        Command::Export(args) => journal::export(&args),
        Command::Verify(args) => journal::verify(&args),
        Command::Backup(args) => journal::backup(&args),
        Command::Salvage(args) => journal::salvage(&args),
        Command::Exceptions(at) => gateway::exceptions(&at),
        Command::OfCentral(command) => commands::run(&command),
        Command::Odoo(command) => odoo::run(&command),
        Command::Contracts(command) => contracts::run(&command),
        Command::Modbus(command) => modbus::run(command),
        Command::Completions(args) => manual::completions(&args, Cli::command()),
        Command::Man(args) => manual::manual(&args, Cli::command()),
        Command::Cert(command) => cert::run(command),
        Command::Config(command) => settings::run(&command),
        Command::User(command) => secrets::run_user(&command),
        Command::Token(command) => secrets::run_token(&command),
    }
}

fn run_gateway(args: &Run) -> anyhow::Result<ExitCode> {
    let mut logging = config::logging_of(&args.config);
    logging.format = args.log.or(logging.format);
    logging.sample = args.log_sample.or(logging.sample);
    telemetry::start_logging(&logging, tracing::Level::INFO);
    finished(run::serve(&args.config))?
}

fn run_demo(args: Demo) -> anyhow::Result<ExitCode> {
    let logging = Logging { format: Some(LogFormat::Text), ..Logging::default() };
    telemetry::start_logging(&logging, tracing::Level::ERROR);
    let plan = demo::Plan {
        folder: args.folder,
        outage: args.outage.map(|span| span.0),
        run_for: args.run_for.map(|span| span.0),
        rate: args.rate,
    };
    finished(demo::run(plan))?.map(|()| ExitCode::SUCCESS)
}
