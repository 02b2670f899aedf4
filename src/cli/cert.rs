//! `forebay cert`: certificates of a plant, from the authority to their renewal.
//!
//! Promise: a certificate that a command writes is accepted where the command says. Private keys have mode 0600; the
//! gateway's own belongs to the user of the service. No file is replaced without `--yes`.

mod show;

use super::config_file::ConfigFile;
use super::confirm::confirm;
use super::new_files::{Access, NewFile, Owner, write_all};
use crate::config;
use crate::setting::Span;
use crate::telemetry::shown;
use crate::tls::{self, AlternativeName, Authority, CertificateFacts, Purpose, Subject};
use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use std::io::Write;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Debug, Subcommand)]
pub(super) enum Cert {
    /// Create an authority: ca.pem for everybody, and ca.key, which issues certificates
    #[command(after_help = "Keep ca.key off the gateway: with it anybody can make a device.\n\n\
                            Example: forebay cert ca --name \"Plant 01 CA\"")]
    Ca {
        /// Name of the authority
        #[arg(long, default_value = "Forebay plant CA")]
        name: String,
        /// Days until it expires
        #[arg(long, default_value_t = 3650, value_parser = clap::value_parser!(u32).range(1..=36_500))]
        days: u32,
        #[command(flatten)]
        place: Place,
    },
    /// Issue the gateway's certificate: server for its devices, client of central
    #[command(after_help = "Example: forebay cert gateway --names gw-01.plant.example,10.0.0.21")]
    Gateway {
        #[command(flatten)]
        of: OfGateway,
        #[command(flatten)]
        issue: Issue,
    },
    /// Issue a certificate for a device; its name is the proven name at a listener
    #[command(after_help = "Example: forebay cert device press-4")]
    Device {
        /// Name of the device
        name: String,
        #[command(flatten)]
        issue: Issue,
    },
    /// Issue a certificate for a program that connects to the gateway or to central
    #[command(after_help = "Example: forebay cert client mes")]
    Client {
        /// Name of the program
        name: String,
        #[command(flatten)]
        issue: Issue,
    },
    /// Issue a certificate for a server, such as a central broker of your own
    #[command(after_help = "Example: forebay cert server central.example.com")]
    Server {
        /// Host name or address that clients connect to
        name: String,
        /// More host names and addresses, separated by commas
        #[arg(long, value_delimiter = ',')]
        names: Vec<String>,
        #[command(flatten)]
        issue: Issue,
    },
    /// Create a key and a signing request (CSR) of the gateway, for the authority of your company
    #[command(
        after_help = "The key stays here; send the .csr file. Put the answer next to the key as gateway.pem, then:\n\
                            forebay cert show gateway.pem"
    )]
    Request {
        #[command(flatten)]
        of: OfGateway,
        #[command(flatten)]
        place: Place,
    },
    /// Issue a certificate again, with the same names and key, and a new expiry
    #[command(after_help = "Example, for a timer: forebay cert renew gateway.pem --within 30d --yes && forebay reload")]
    Renew {
        /// Certificate to renew; its key is the file of that name that ends in .key
        file: PathBuf,
        /// Do nothing unless it expires within this time
        #[arg(long, value_parser = Span::parse)]
        within: Option<Span>,
        /// Create a new key as well
        #[arg(long)]
        new_key: bool,
        #[command(flatten)]
        issue: Issue,
    },
    /// Show certificates: names, expiry, environment, chain, and who accepts them; exit code 1 if somebody refuses
    #[command(after_help = "Example: forebay cert show gateway.pem --host gw-01")]
    Show(show::Show),
}

/// The folder of new files, and the permission to replace old ones.
#[derive(Debug, Args)]
pub(super) struct Place {
    /// Folder of the files [default: the folder of the configuration file]
    #[arg(long)]
    folder: Option<PathBuf>,
    #[command(flatten)]
    config: ConfigFile,
    /// Replace files that exist
    #[arg(long)]
    yes: bool,
}

impl Place {
    fn folder(&self) -> PathBuf {
        match (&self.folder, self.config.parent()) {
            (Some(folder), _) => folder.clone(),
            (None, Some(folder)) if self.config.is_file() => folder.to_owned(),
            _ => PathBuf::new(),
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder().join(name)
    }

    fn write(&self, files: &[NewFile]) -> anyhow::Result<()> {
        write_all(files, Owner::of_service(&self.config).as_ref(), self.yes)?;
        for file in files {
            let who = match file.access {
                Access::Public => "",
                Access::Own => "  (secret: mode 0600)",
                Access::Service => "  (secret: mode 0600, for the user of the gateway)",
            };
            writeln!(std::io::stdout(), "{}{who}", file.path.display())?;
        }
        Ok(())
    }
}

/// The authority that issues a certificate, and its lifetime.
#[derive(Debug, Args)]
pub(super) struct Issue {
    /// Certificate of the authority [default: ca.pem in the folder]
    #[arg(long)]
    ca: Option<PathBuf>,
    /// Key of the authority [default: ca.key in the folder]
    #[arg(long)]
    ca_key: Option<PathBuf>,
    /// Days until the certificate expires; never later than its authority
    #[arg(long, default_value_t = 397, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    days: u32,
    #[command(flatten)]
    place: Place,
}

impl Issue {
    fn ca(&self) -> PathBuf {
        self.ca.clone().unwrap_or_else(|| self.place.file("ca.pem"))
    }

    fn authority(&self) -> anyhow::Result<Authority> {
        let (ca, key) = (self.ca(), self.ca_key.clone().unwrap_or_else(|| self.place.file("ca.key")));
        if !ca.exists() {
            bail!(
                "{} does not exist; create an authority with `forebay cert ca`, name one with --ca, or use `forebay cert request`",
                ca.display()
            );
        }
        Authority::load(&ca, &key).context("the authority cannot issue certificates")
    }
}

/// The names of the gateway.
#[derive(Debug, Args)]
pub(super) struct OfGateway {
    /// Name of the gateway [default: from the configuration, else the host name]
    #[arg(long)]
    name: Option<String>,
    /// Host names and addresses that devices connect to, separated by commas [default: the ones of this machine]
    #[arg(long, value_delimiter = ',')]
    names: Vec<String>,
    /// Bind the certificate to this environment [default: from the configuration, else none]
    #[arg(long)]
    environment: Option<String>,
}

impl OfGateway {
    fn subject(&self, config: &Path) -> Subject {
        let (environment, name) =
            config::names_of(config).map_or((None, None), |(first, second)| (Some(first), second));
        let mut subject = gateway_subject(self.name.as_deref().or(name.as_deref()), &self.names);
        subject.names.extend(self.environment.clone().or(environment).map(|name| AlternativeName::environment(&name)));
        subject
    }
}

/// The subject of a gateway. Without host names, the ones of this machine count.
pub(super) fn gateway_subject(name: Option<&str>, hosts: &[String]) -> Subject {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let name = name.map_or_else(|| host.clone(), str::to_owned);
    let mut hosts = hosts.to_vec();
    if hosts.is_empty() {
        hosts = vec![name.clone(), host, "localhost".into(), "127.0.0.1".into()];
        hosts.extend(own_address());
    }
    let mut names: Vec<AlternativeName> = Vec::new();
    for host in hosts.iter().map(|host| AlternativeName::host(host.trim())) {
        if !names.contains(&host) {
            names.push(host);
        }
    }
    Subject { name, names, purpose: Purpose::Both }
}

/// Returns the address from which this machine reaches other networks. No packet is sent.
fn own_address() -> Option<String> {
    let socket = UdpSocket::bind(("0.0.0.0", 0)).ok()?;
    // An address of the documentation (RFC 5737).
    socket.connect(("192.0.2.1", 9)).ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_unspecified() && !address.is_loopback()).then(|| address.to_string())
}

pub(super) fn run(command: Cert) -> anyhow::Result<ExitCode> {
    match command {
        Cert::Ca { name, days, place } => create_authority(&name, days, &place)?,
        Cert::Gateway { of, issue } => {
            let subject = of.subject(&issue.place.config);
            issue_certificate("gateway", &subject, &issue, Access::Service)?;
            print_names(&subject)?;
            say(&format!(
                "next: tls = {{ cert = \"gateway.pem\", key = \"gateway.key\", client_ca = \"{}\" }}",
                name_of(&issue.ca())
            ))?;
        }
        Cert::Device { name, issue } => {
            issue_certificate(&name, &client(&name)?, &issue, Access::Own)?;
            say(&format!(
                "next: move {name}.pem, {name}.key and {} to the device; it publishes to topics that contain \"{name}\", such as\n  mosquitto_pub -h GATEWAY -p 8883 --cafile {} --cert {name}.pem --key {name}.key -q 1 -i {name} -t plant/line-1/{name}/state -m '…'",
                name_of(&issue.ca()),
                name_of(&issue.ca()),
            ))?;
        }
        Cert::Client { name, issue } => {
            issue_certificate(&name, &client(&name)?, &issue, Access::Own)?;
            say(&format!("next: move {name}.pem, {name}.key and {} to the program \"{name}\"", name_of(&issue.ca())))?;
        }
        Cert::Server { name, names, issue } => {
            if name.is_empty() || name.contains('/') || name.starts_with('.') {
                bail!("\"{name}\" is no host name; expected one such as \"central.example.com\" or \"10.0.0.9\"");
            }
            let hosts = [name.clone()].into_iter().chain(names);
            let names = hosts.map(|host| AlternativeName::host(host.trim())).collect();
            let subject = Subject { name: name.clone(), names, purpose: Purpose::Server };
            issue_certificate(&name, &subject, &issue, Access::Own)?;
            print_names(&subject)?;
        }
        Cert::Request { of, place } => request(&of.subject(&place.config), &place)?,
        Cert::Renew { file, within, new_key, mut issue } => {
            // The authority is looked for next to the certificate.
            issue.place.folder.get_or_insert_with(|| file.parent().unwrap_or(Path::new("")).to_owned());
            return renew(&file, within, new_key, &issue);
        }
        Cert::Show(args) => return show::run(&args),
    }
    Ok(ExitCode::SUCCESS)
}

fn say(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    text.lines().try_for_each(|line| writeln!(out, "{}", shown(line)))?;
    Ok(())
}

fn name_of(file: &Path) -> String {
    file.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn create_authority(name: &str, days: u32, place: &Place) -> anyhow::Result<()> {
    let (certificate, key) = Authority::create(name, days)?;
    place.write(&[
        NewFile::new(place.file("ca.key"), &key, Access::Own),
        NewFile::new(place.file("ca.pem"), &certificate, Access::Public),
    ])?;
    say("next: forebay cert gateway, and forebay cert device NAME for each device; keep ca.key in a safe place")
}

/// The subject of a device or program.
fn client(name: &str) -> anyhow::Result<Subject> {
    if name.is_empty() || name.contains(['/', '+', '#', '*']) || name.starts_with(['.', '$']) {
        bail!(
            "\"{name}\" is no name for a device or a program; \"/\", \"+\", \"#\", \"*\", and \".\" or \"$\" at its start are not allowed"
        );
    }
    let names = vec![AlternativeName::Dns(name.to_owned())];
    Ok(Subject { name: name.to_owned(), names, purpose: Purpose::Client })
}

/// Issues a certificate with a new key, and writes both.
fn issue_certificate(file: &str, subject: &Subject, issue: &Issue, access: Access) -> anyhow::Result<()> {
    let authority = issue.authority()?;
    let key = tls::new_key()?;
    let certificate = authority.issue(subject, &key, issue.days)?;
    let place = &issue.place;
    place.write(&[
        NewFile::new(place.file(&format!("{file}.key")), &key, access),
        NewFile::new(place.file(&format!("{file}.pem")), &certificate, Access::Public),
    ])
}

fn print_names(subject: &Subject) -> anyhow::Result<()> {
    let names: Vec<String> = subject.names.iter().map(ToString::to_string).collect();
    say(&format!("names: {}; clients must connect to one of them (--names for others)", names.join(", ")))
}

fn request(subject: &Subject, place: &Place) -> anyhow::Result<()> {
    let key_file = place.file("gateway.key");
    let mut files = Vec::new();
    // A second request for a key that is in use needs no new key.
    let key = if key_file.exists() && !place.yes { tls::key_in(&key_file)? } else { tls::new_key()? };
    if !key_file.exists() || place.yes {
        files.push(NewFile::new(key_file, &key, Access::Service));
    }
    let text = tls::signing_request(subject, &key)?;
    files.push(NewFile::new(place.file("gateway.csr"), &text, Access::Public));
    if !place.yes && place.file("gateway.csr").exists() {
        // A request holds no secret and can be made again.
        std::fs::remove_file(place.file("gateway.csr"))?;
    }
    place.write(&files)?;
    print_names(subject)?;
    say(
        "next: send gateway.csr to the authority; it needs serverAuth and clientAuth. Put its answer next to the key as gateway.pem, then: forebay cert show gateway.pem",
    )
}

fn renew(file: &Path, within: Option<Span>, new_key: bool, issue: &Issue) -> anyhow::Result<ExitCode> {
    let until = CertificateFacts::read(file)?.first().map_or(0, |first| first.until);
    let left = show::time_left(until);
    if let Some(within) = within
        && left > i64::try_from(within.0.as_secs()).unwrap_or(i64::MAX)
    {
        say(&format!("{}: {}; not renewed", file.display(), show::expiry(until)))?;
        return Ok(ExitCode::SUCCESS);
    }
    let subject = Subject::of(file)?;
    if !tls::is_issued_by(file, &issue.ca())? {
        bail!(
            "{} was not issued by {}; name its authority with --ca and --ca-key, or have it renewed with `forebay cert request`",
            file.display(),
            issue.ca().display()
        );
    }
    let authority = issue.authority()?;
    let key_file = file.with_extension("key");
    let key = if new_key { tls::new_key()? } else { tls::key_in(&key_file)? };
    let certificate = authority.issue(&subject, &key, issue.days)?;
    confirm(&format!("replace {} ({})?", file.display(), show::expiry(until)), issue.place.yes)?;
    let mut files = vec![NewFile::new(file.to_owned(), &certificate, Access::Public)];
    if new_key {
        // The gateway refuses the pair until both files are new, and keeps the old one meanwhile.
        files.insert(0, NewFile::new(key_file, &key, Access::Service));
    }
    write_all(&files, Owner::of_service(&issue.place.config).as_ref(), true)?;
    let until = CertificateFacts::read(file)?.first().map_or(0, |first| first.until);
    say(&format!("{}: {}; a running gateway takes it within seconds", file.display(), show::expiry(until)))?;
    Ok(ExitCode::SUCCESS)
}
