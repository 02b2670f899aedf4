//! `forebay cert show`: certificates in words, and who accepts them.

use crate::cli::config_file::ConfigFile;
use crate::cli::table::coloured;
use crate::clock;
use crate::config::Config;
use crate::event::Timestamp;
use crate::setting::rough;
use crate::sources::SourceConfig;
use crate::telemetry::{shown, shown_json, shows_colours};
use crate::tls::{self, CertificateFacts, ServerFiles};
use clap::Args;
use serde::Serialize;
use std::fmt::Write as _;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, UNIX_EPOCH};

#[derive(Debug, Args)]
pub(in crate::cli) struct Show {
    /// Files of certificates, PEM
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Authorities that issue certificates [default: ca.pem in the folder of the certificate, if it exists]
    #[arg(long)]
    ca: Option<PathBuf>,
    /// Host name or address at which clients reach the server with this certificate
    #[arg(long)]
    host: Option<String>,
    #[command(flatten)]
    config: ConfigFile,
    /// Print JSON; errors stay text on standard error, with exit code 1
    #[arg(long)]
    json: bool,
}

/// One statement about a certificate.
#[derive(Debug, Serialize)]
struct Verdict {
    /// `ok`, `warning` or `fault`.
    mark: &'static str,
    text: String,
}

#[derive(Debug, Serialize)]
struct Shown {
    file: PathBuf,
    certificates: Vec<CertificateFacts>,
    verdicts: Vec<Verdict>,
}

/// Days before its end at which the expiry of a certificate is a warning, as in `forebay status`.
const SOON: i64 = 30 * 86_400;

/// Seconds until a time in seconds since 1970.
pub(super) fn time_left(until: i64) -> i64 {
    let now = clock::wall().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    until.saturating_sub(i64::try_from(now).unwrap_or(i64::MAX))
}

/// Describes an expiry: `expires 2027-12-31 (in 396 d)`.
pub(super) fn expiry(until: i64) -> String {
    let left = time_left(until);
    let span = rough(Duration::from_secs(left.unsigned_abs()));
    let day = day(until);
    if left < 0 { format!("expired {day} ({span} ago)") } else { format!("expires {day} (in {span})") }
}

fn day(seconds: i64) -> String {
    Timestamp(seconds.saturating_mul(1_000_000)).to_string().get(..10).unwrap_or_default().to_owned()
}

pub(super) fn run(args: &Show) -> anyhow::Result<ExitCode> {
    // A configuration that is faulty or missing only means fewer verdicts.
    let config = Config::load(&args.config).ok();
    let mut all = Vec::new();
    for file in &args.files {
        let certificates = CertificateFacts::read(file)?;
        let verdicts = verdicts(file, &certificates, args, config.as_ref());
        all.push(Shown { file: file.clone(), certificates, verdicts });
    }
    let is_good = all.iter().flat_map(|one| &one.verdicts).all(|verdict| verdict.mark != "fault");
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", shown_json(&serde_json::to_string_pretty(&all)?))?;
    } else {
        let is_coloured = shows_colours(&std::io::stdout());
        all.iter().try_for_each(|one| write!(out, "{}", text(one, is_coloured)))?;
    }
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn verdicts(file: &Path, all: &[CertificateFacts], args: &Show, config: Option<&Config>) -> Vec<Verdict> {
    let mut found = Vec::new();
    let Some(leaf) = all.first() else { return found };
    let mut add = |mark, text: String| found.push(Verdict { mark, text });
    match time_left(leaf.until) {
        left if left < 0 => add("fault", expiry(leaf.until)),
        left if left < SOON => add("warning", expiry(leaf.until)),
        _ if time_left(leaf.from) > 0 => add("fault", format!("valid from {} on only", day(leaf.from))),
        _ => add("ok", expiry(leaf.until)),
    }
    if leaf.is_authority {
        add("ok", "an authority: for tls.ca and tls.client_ca".into());
        return found;
    }
    let key = file.with_extension("key");
    if key.exists() {
        match tls::pair_fault(file, &key) {
            None => add("ok", format!("its key is {}", key.display())),
            Some(fault) => add("fault", fault),
        }
    }
    let neighbour = file.parent().unwrap_or(Path::new("")).join("ca.pem");
    let ca = args.ca.clone().or_else(|| neighbour.exists().then_some(neighbour));
    let is_for =
        |usage: &str| leaf.purposes.is_empty() || leaf.purposes.contains(&usage) || leaf.purposes.contains(&"any");
    if let Some(ca) = &ca {
        let trusted = ca.display();
        if is_for("serverAuth") {
            match tls::refusal_as_server(file, ca, args.host.as_deref()) {
                None if leaf.names.is_empty() => {
                    add("fault", "no client accepts it as a server: it has no alternative name".into())
                }
                None => add("ok", format!("clients that trust {trusted} accept it as a server")),
                Some(reason) => add("fault", format!("clients that trust {trusted} refuse it as a server: {reason}")),
            }
        }
        if is_for("clientAuth") {
            let listener = ServerFiles { client_ca: Some(ca.clone()), ..ServerFiles::default() };
            match tls::name_at_listener(file, &listener) {
                Ok(name) => add("ok", format!("a listener with client_ca = {trusted} accepts it as client \"{name}\"")),
                Err(reason) => add("fault", format!("a listener with client_ca = {trusted} refuses it: {reason}")),
            }
        }
    } else {
        add("warning", "its chain was not checked; name the authority with --ca".into());
    }
    if let Some(config) = config {
        found.extend(verdicts_of_config(file, leaf, config));
    }
    found
}

/// Compares a certificate with the gateway that a configuration describes.
fn verdicts_of_config(file: &Path, leaf: &CertificateFacts, config: &Config) -> Vec<Verdict> {
    let mut found = Vec::new();
    let mut add = |mark, text: String| found.push(Verdict { mark, text });
    let environment = &config.surroundings.environment;
    match leaf.environments.first() {
        Some(other) if !leaf.environments.contains(environment) => {
            add("fault", format!("it belongs to environment \"{other}\", and this gateway to \"{environment}\""));
        }
        Some(_) => add("ok", format!("it belongs to environment \"{environment}\"")),
        None => {}
    }
    let same = |other: &Path| std::fs::canonicalize(other).ok() == std::fs::canonicalize(file).ok();
    for source in &config.sources {
        let SourceConfig::Mqtt(listener) = source else { continue };
        let Some(files) = listener.tls.as_ref().filter(|files| files.client_ca.is_some() && !same(&files.cert)) else {
            continue;
        };
        match tls::name_at_listener(file, files) {
            Ok(name) => add("ok", format!("listener \"{}\" accepts it as client \"{name}\"", listener.name)),
            Err(reason) => add("warning", format!("listener \"{}\" refuses it as a client: {reason}", listener.name)),
        }
    }
    for destination in &config.destinations {
        if destination.tls.cert.as_deref().is_some_and(same) {
            let text = format!(
                "the gateway shows it to \"{}\"; central must trust its issuer, {}",
                destination.name, leaf.issuer
            );
            add("ok", text);
        }
    }
    found
}

fn text(one: &Shown, is_coloured: bool) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "{}", shown(&one.file.display().to_string()));
    for certificate in &one.certificates {
        let CertificateFacts { subject, issuer, serial, names, purposes, key, fingerprint, .. } = certificate;
        let kind = match (certificate.is_authority, certificate.is_self_signed) {
            (true, true) => "authority (root)",
            (true, false) => "authority (intermediate)",
            (false, true) => "self-signed",
            (false, false) => "certificate",
        };
        let purposes = if purposes.is_empty() { "any".to_owned() } else { purposes.join(", ") };
        let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        for (label, value) in [
            (kind, subject.as_str()),
            ("  issuer", issuer),
            ("  names", &names),
            ("  purpose", &purposes),
            ("  valid", &format!("{} to {}", day(certificate.from), day(certificate.until))),
            ("  key", key),
            ("  serial", serial),
            ("  SHA-256", fingerprint),
        ] {
            let _ = writeln!(out, "  {label:<12} {}", shown(value));
        }
    }
    for Verdict { mark, text } in &one.verdicts {
        let (sign, colour) = match *mark {
            "ok" => ("✓", "32"),
            "warning" => ("!", "33"),
            _ => ("✗", "31"),
        };
        let _ = writeln!(out, "  {} {}", coloured(sign, colour, is_coloured), shown(text));
    }
    out
}
