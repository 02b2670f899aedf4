//! `forebay init`: the files of a new gateway, from a few answers.
//!
//! Promise: certificates, contracts and users that exist are kept. The configuration is replaced only with `--yes` or after
//! a question, and the old one stays as `forebay.toml.old`. The result passes `forebay check`.

use super::confirm::confirm;
use super::new_files::{Access, NewFile, Owner, write_all};
use crate::config::Config;
use crate::demo;
use crate::setting::check_word;
use crate::sources::mqtt::{Users, put_user};
use crate::telemetry::{self, LogFormat, Logging, shown};
use crate::tls::{self, AlternativeName, Authority, Purpose, Subject};
use anyhow::{Context, bail};
use clap::Args;
use std::fmt::Write as _;
use std::io::{BufRead, IsTerminal, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use zeroize::Zeroizing;

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    forebay init --test                       everything on this machine, and a first event that arrives\n  \
    forebay init --yes --site plant-01 --central mqtts://central.example.com --tls\n\n\
    Without --yes, the command asks for what is missing.")]
pub(super) struct Init {
    /// Name of the plant
    #[arg(long)]
    site: Option<String>,
    /// Name of the gateway, unique in its plant [default: the host name]
    #[arg(long)]
    name: Option<String>,
    /// Environment, such as test or production
    #[arg(long)]
    environment: Option<String>,
    /// URL of the central broker, such as mqtts://central.example.com:8883
    #[arg(long, value_name = "URL", conflicts_with = "test")]
    central: Option<String>,
    /// File with the authority that issued central's certificate [default: the authorities of the system]
    #[arg(long, value_name = "FILE", conflicts_with = "test")]
    central_ca: Option<PathBuf>,
    /// Let devices connect with TLS, and make certificates
    #[arg(long)]
    tls: bool,
    /// Address at which devices connect [default: 0.0.0.0:8883 with TLS, else 127.0.0.1:1883]
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// Name of the first device
    #[arg(long)]
    device: Option<String>,
    /// Folder of the configuration [default: /etc/forebay for root if the package is installed, else this folder]
    #[arg(long)]
    folder: Option<PathBuf>,
    /// Ask nothing: use defaults, and replace a configuration that exists
    #[arg(long)]
    yes: bool,
    /// Use a central broker on this machine, start it and the gateway, and show the first event
    #[arg(long)]
    test: bool,
}

/// The answers of a person, or the defaults.
struct Answers {
    site: String,
    name: String,
    environment: String,
    central: Option<String>,
    device: String,
    is_tls: bool,
    listen: SocketAddr,
}

/// Folder of the package's configuration.
const OF_PACKAGE: &str = "/etc/forebay";
/// Contracts for devices; the others of the package need sources that `init` does not set up.
const CONTRACTS: [&str; 5] = ["machine-state", "machine-count", "machine-alarm", "quality-result", "energy-meter"];

pub(super) fn run(args: &Init) -> anyhow::Result<ExitCode> {
    let is_package = rustix::process::geteuid().is_root() && Path::new(OF_PACKAGE).is_dir();
    let folder = match &args.folder {
        Some(folder) => folder.clone(),
        None if is_package && !args.test => OF_PACKAGE.into(),
        None => PathBuf::new(),
    };
    let answers = ask_all(args)?;
    for (what, word) in [
        ("site", &answers.site),
        ("name", &answers.name),
        ("environment", &answers.environment),
        ("device", &answers.device),
    ] {
        check_word(word).map_err(|message| anyhow::anyhow!("--{what}: {message}"))?;
    }
    let file = folder.join("forebay.toml");
    if file.exists() {
        confirm(&format!("{} exists; replace it, and keep it as forebay.toml.old?", file.display()), args.yes)?;
    }
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let data = if folder == Path::new(OF_PACKAGE) { "/var/lib/forebay" } else { "data" };
    let port = if args.test { Some(demo::free_port()?) } else { None };
    let text = configuration(&answers, args, data, port);
    let owner = service(&folder, data)?;
    let mut made = make_certificates(&answers, args, &folder, owner.as_ref())?;
    made.extend(make_contracts(&folder)?);
    made.extend(make_user(&answers.device, &folder, owner.as_ref())?);
    if file.exists() {
        std::fs::rename(&file, folder.join("forebay.toml.old"))?;
    }
    write_all(&[NewFile::new(file.clone(), &text, Access::Public)], None, true)?;
    made.push(file.clone());
    let mut out = std::io::stdout().lock();
    for path in &made {
        writeln!(out, "written: {}", shown(&path.display().to_string()))?;
    }
    drop(out);
    if let Err(problems) = Config::load(&file) {
        let lines: Vec<_> = problems.iter().map(ToString::to_string).collect();
        bail!("the new configuration has problems:\n{}", lines.join("\n"));
    }
    if let Some(port) = port {
        return run_test(&answers, &folder, port);
    }
    print_next(&answers, &folder, &file)?;
    Ok(ExitCode::SUCCESS)
}

fn ask_all(args: &Init) -> anyhow::Result<Answers> {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let may_ask = !args.yes && !args.test && std::io::stdin().is_terminal();
    if !args.yes && !args.test && !may_ask {
        bail!(
            "there is no terminal to ask questions; give --yes, and --site, --name, --environment, --central and --tls as needed"
        );
    }
    let answer = |given: &Option<String>, question: &str, default: &str| -> anyhow::Result<String> {
        match given {
            Some(given) => Ok(given.clone()),
            None if may_ask => ask(question, default),
            None => Ok(default.to_owned()),
        }
    };
    let site = answer(&args.site, "Name of the plant", "plant-01")?;
    let name = answer(&args.name, "Name of this gateway", &host)?;
    let environment = answer(&args.environment, "Environment (test, production)", "test")?;
    let central = answer(&args.central, "URL of the central broker (empty: later)", "")?;
    let device = answer(&args.device, "Name of the first device", "press-1")?;
    let is_tls = args.tls
        || may_ask && ["y", "yes"].contains(&ask("Devices connect with TLS (yes, no)", "yes")?.to_lowercase().as_str());
    let central = (!central.is_empty()).then_some(central);
    Ok(Answers { site, name, environment, central, device, is_tls, listen: listen(args, is_tls) })
}

/// The address for devices. A test must not fail because another program has the usual port.
fn listen(args: &Init, is_tls: bool) -> SocketAddr {
    let (ip, port) = if is_tls { ([0, 0, 0, 0], 8883) } else { ([127, 0, 0, 1], 1883) };
    let usual = args.listen.unwrap_or_else(|| SocketAddr::from((ip, port)));
    let is_taken = args.test && args.listen.is_none() && TcpListener::bind(usual).is_err();
    let free = || TcpListener::bind(SocketAddr::from((ip, 0))).and_then(|listener| listener.local_addr());
    if is_taken { free().unwrap_or(usual) } else { usual }
}

fn ask(question: &str, default: &str) -> anyhow::Result<String> {
    let mut out = std::io::stderr().lock();
    write!(out, "{question} [{default}]: ")?;
    out.flush()?;
    let mut line = String::new();
    if std::io::stdin().lock().read_line(&mut line)? == 0 {
        bail!("nothing was written");
    }
    let answer = line.trim();
    Ok(if answer.is_empty() { default } else { answer }.to_owned())
}

fn is_tls_url(url: &str) -> bool {
    url.starts_with("mqtts://") || url.starts_with("wss://")
}

/// A text in TOML.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn configuration(answers: &Answers, args: &Init, data: &str, test_port: Option<u16>) -> String {
    let Answers { site, name, environment, is_tls, .. } = answers;
    let mut text = format!(
        "# Written by `forebay init`. Every key that is left out has a default; config/README.md lists them all.\n\
         environment = \"{environment}\"\nsite = \"{site}\"\nname = \"{name}\"\ndata_dir = \"{data}\"\n\n\
         # Who connects: a device with a certificate or a password. It publishes to topics that contain its name.\n\
         [[source.mqtt]]\nname = \"shopfloor\"\npasswords = \"passwords\"      # forebay user add --file passwords NAME\n"
    );
    let _ = writeln!(text, "listen = \"{}\"", answers.listen);
    text.push_str(match is_tls {
        true => "tls = { cert = \"gateway.pem\", key = \"gateway.key\", client_ca = \"ca.pem\" }\n",
        false => "# Without TLS, only programs on this machine should connect.\n",
    });
    let url = test_port.map(|port| format!("mqtts://127.0.0.1:{port}")).or_else(|| answers.central.clone());
    let Some(url) = url else {
        text.push_str("\n# The central broker. Until it is set, events stay on this disk.\n# [[destination]]\n# name = \"central\"\n# url = \"mqtts://central.example.com:8883\"\n");
        return text;
    };
    let _ = write!(text, "\n[[destination]]\nname = \"central\"\nurl = {}\n", quoted(&url));
    let mut files = Vec::new();
    if args.test {
        files.push("ca = \"ca.pem\"");
    } else if args.central_ca.is_some() {
        files.push("ca = \"central-ca.pem\"");
    }
    if *is_tls {
        files.push("cert = \"gateway.pem\"");
        files.push("key = \"gateway.key\"");
    }
    if is_tls_url(&url) && !files.is_empty() {
        let _ = writeln!(text, "tls = {{ {} }}", files.join(", "));
    }
    text
}

/// Creates the folder of the journal, and returns the user of the service.
fn service(folder: &Path, data: &str) -> anyhow::Result<Option<Owner>> {
    let data = folder.join(data);
    let is_new = !data.exists();
    std::fs::create_dir_all(&data).with_context(|| format!("cannot create {}", data.display()))?;
    let owner = if folder == Path::new(OF_PACKAGE) { Owner::of_service(&folder.join("forebay.toml")) } else { None };
    if let (Some(owner), true) = (&owner, is_new) {
        owner.take(&data)?;
    }
    Ok(owner)
}

/// Makes the certificates that are missing. Returns the new files.
fn make_certificates(
    answers: &Answers,
    args: &Init,
    folder: &Path,
    owner: Option<&Owner>,
) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    if let Some(ca) = &args.central_ca {
        let pem = std::fs::read_to_string(ca).with_context(|| ca.display().to_string())?;
        files.push(NewFile::new(folder.join("central-ca.pem"), &pem, Access::Public));
        write_all(&files, owner, true)?;
    }
    if !answers.is_tls && !args.test {
        return Ok(files.into_iter().map(|file| file.path).collect());
    }
    let (ca, ca_key) = (folder.join("ca.pem"), folder.join("ca.key"));
    if !ca.exists() {
        let (certificate, key) = Authority::create(&format!("{} CA", answers.site), 3650)?;
        write_all(
            &[NewFile::new(ca_key.clone(), &key, Access::Own), NewFile::new(ca.clone(), &certificate, Access::Public)],
            owner,
            false,
        )?;
        files.extend([NewFile::new(ca_key.clone(), "", Access::Own), NewFile::new(ca.clone(), "", Access::Public)]);
    }
    let mut wanted = Vec::new();
    if answers.is_tls {
        wanted.push(("gateway", gateway(answers), Access::Service));
        let names = vec![AlternativeName::Dns(answers.device.clone())];
        let device = Subject { name: answers.device.clone(), names, purpose: Purpose::Client };
        wanted.push((answers.device.as_str(), device, Access::Own));
    }
    if args.test {
        let names = ["127.0.0.1", "localhost"].map(AlternativeName::host).to_vec();
        wanted.push(("central", Subject { name: "central".into(), names, purpose: Purpose::Server }, Access::Own));
    }
    for (name, subject, access) in wanted {
        let (pem, key_file) = (folder.join(format!("{name}.pem")), folder.join(format!("{name}.key")));
        if pem.exists() && key_file.exists() {
            continue;
        }
        let authority = Authority::load(&ca, &ca_key).context("the authority cannot issue certificates")?;
        let key = tls::new_key()?;
        let certificate = authority.issue(&subject, &key, 397)?;
        let pair = [NewFile::new(key_file, &key, access), NewFile::new(pem, &certificate, Access::Public)];
        write_all(&pair, owner, false)?;
        files.extend(pair);
    }
    Ok(files.into_iter().map(|file| file.path).collect())
}

fn gateway(answers: &Answers) -> Subject {
    let mut subject = super::cert::gateway_subject(Some(&answers.name), &[]);
    subject.names.push(AlternativeName::environment(&answers.environment));
    subject
}

/// Writes the contracts for devices, unless there is a folder of contracts. Returns the new files.
fn make_contracts(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let contracts = folder.join("contracts");
    if contracts.exists() {
        return Ok(Vec::new());
    }
    let is_wanted = |name: &str| CONTRACTS.iter().any(|wanted| name.contains(wanted));
    let files = demo::CONTRACTS.iter().filter(|(name, _)| is_wanted(name));
    let files: Vec<_> = files.map(|(name, text)| NewFile::new(contracts.join(name), text, Access::Public)).collect();
    write_all(&files, None, false)?;
    Ok(vec![contracts])
}

/// Adds the first user with a random password, which is also in a file of its own. Returns the new files.
fn make_user(device: &str, folder: &Path, owner: Option<&Owner>) -> anyhow::Result<Vec<PathBuf>> {
    let passwords = folder.join("passwords");
    if passwords.exists() && Users::load(&passwords)?.names().iter().any(|name| name == device) {
        return Ok(Vec::new());
    }
    let is_new = !passwords.exists();
    let password = Zeroizing::new(uuid::Uuid::new_v4().simple().to_string());
    put_user(&passwords, device, password.as_bytes())?;
    if let (Some(owner), true) = (owner, is_new) {
        owner.take(&passwords)?;
    }
    let own = NewFile::new(folder.join(format!("{device}.password")), &password, Access::Own);
    write_all(std::slice::from_ref(&own), owner, true)?;
    Ok(vec![passwords, own.path])
}

fn print_next(answers: &Answers, folder: &Path, file: &Path) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    let device = &answers.device;
    let is_package = folder == Path::new(OF_PACKAGE);
    let option = if is_package { String::new() } else { format!(" -c {}", file.display()) };
    writeln!(out, "\nnext:\n  forebay check --connect{option}")?;
    match is_package {
        true => writeln!(out, "  systemctl restart forebay")?,
        false => writeln!(out, "  forebay run{option}")?,
    }
    let place = folder.join("");
    let place = place.display().to_string();
    let place = place.strip_prefix("./").unwrap_or(&place);
    let port = answers.listen.port();
    let how = match answers.is_tls {
        true => format!("-p {port} --cafile {place}ca.pem --cert {place}{device}.pem --key {place}{device}.key"),
        false => format!("-p {port} -u {device} -P \"$(cat {place}{device}.password)\""),
    };
    writeln!(
        out,
        "\na first event, when the gateway runs:\n  mosquitto_pub -h localhost {how} -q 1 -i {device} -t plant/line-1/{device}/state \\\n    -m \"{{\\\"msg_id\\\": \\\"1\\\", \\\"ts\\\": \\\"$(date -u +%FT%TZ)\\\", \\\"state\\\": \\\"running\\\"}}\""
    )?;
    if answers.is_tls {
        writeln!(
            out,
            "\nKeep {place}ca.key in a safe place, not on the gateway. Central must trust {place}ca.pem if it asks for a client certificate."
        )?;
    }
    Ok(())
}

fn run_test(answers: &Answers, folder: &Path, port: u16) -> anyhow::Result<ExitCode> {
    let logging = Logging { format: Some(LogFormat::Text), ..Logging::default() };
    telemetry::start_logging(&logging, tracing::Level::ERROR);
    let test = demo::FirstEvent {
        folder: folder.to_owned(),
        central_port: port,
        device: answers.device.clone(),
        is_tls: answers.is_tls,
    };
    super::client::finished(demo::show_first_event(&test))??;
    Ok(ExitCode::SUCCESS)
}
