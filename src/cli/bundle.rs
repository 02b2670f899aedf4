//! `forebay bundle`: support information about a gateway in one archive.
//!
//! Promise: the bundle contains no secret and no payload. Key, password and token files are not read, values that may be
//! secret are masked, events and dead letters are not included. `missing.txt` lists everything that could not be read.

use super::client::{self, At, runtime, socket_path};
use super::journal::AtomicFile;
use super::socket;
use crate::clock;
use crate::config;
use crate::event::Timestamp;
use crate::secret;
use crate::setting::{Bytes, Document};
use anyhow::{Context, bail};
use clap::Args;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::UNIX_EPOCH;

#[derive(Debug, Args)]
pub(super) struct BundleArgs {
    #[command(flatten)]
    at: At,
    /// Output file: .tar.zst or .tar
    #[arg(long)]
    output: Option<PathBuf>,
}

/// Paths that are requested from the running gateway, with the name of each file.
const REQUESTS: [(&str, &str); 11] = [
    ("/status", "status.json"),
    ("/metrics", "metrics.txt"),
    ("/healthz", "healthz.jsonl"),
    ("/readyz", "readyz.jsonl"),
    ("/ledger", "ledger.json"),
    ("/clock", "clock.json"),
    ("/exceptions", "exceptions.json"),
    ("/devices", "devices.json"),
    ("/replay", "replays.json"),
    ("/audit?limit=1000", "audit.json"),
    ("/log", "log.txt"),
];
/// Largest contract, schema or table that is included.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Most journal files that are listed.
const LISTED_MAX: usize = 20_000;
/// Log lines taken from systemd's journal if the gateway does not respond.
const LINES: &str = "2000";
/// zstd level 3, its default: a bundle is made rarely.
const LEVEL: i32 = 3;

struct Bundle {
    tar: tar::Builder<Vec<u8>>,
    folder: String,
    at: u64,
    missing: String,
}

impl Bundle {
    fn put(&mut self, name: &str, content: &[u8]) -> anyhow::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(self.at);
        self.tar.append_data(&mut header, format!("{}/{name}", self.folder), content)?;
        Ok(())
    }

    fn note_missing(&mut self, name: &str, why: impl std::fmt::Display) {
        let _ = writeln!(self.missing, "{name}: {why}");
    }

    fn put_or_note(&mut self, name: &str, content: anyhow::Result<Vec<u8>>) -> anyhow::Result<()> {
        match content {
            Ok(content) => self.put(name, &content),
            Err(error) => {
                self.note_missing(name, format!("{error:#}"));
                Ok(())
            }
        }
    }
}

pub(super) fn run(args: &BundleArgs) -> anyhow::Result<ExitCode> {
    let now = clock::wall();
    let stamp: String = Timestamp::from(now).to_string().chars().filter(char::is_ascii_alphanumeric).take(15).collect();
    let folder = format!("forebay-bundle-{stamp}");
    let output = args.output.clone().unwrap_or_else(|| format!("{folder}.tar.zst").into());
    let is_packed = match output.extension().and_then(|ending| ending.to_str()) {
        Some("zst" | "tzst") => true,
        Some("tar") => false,
        _ => bail!("{}: a bundle is a .tar.zst or a .tar", output.display()),
    };
    let mut bundle = Bundle {
        tar: tar::Builder::new(Vec::new()),
        folder,
        at: now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        missing: String::new(),
    };
    bundle.put("versions.txt", versions().as_bytes())?;
    put_configuration(&mut bundle, &args.at.config)?;
    put_gateway(&mut bundle, &args.at)?;
    let journal = config::journal_of(&args.at.config);
    match &journal {
        Ok(folder) => {
            let listed = list_files(folder);
            bundle.put("journal-files.txt", listed.as_bytes())?;
        }
        Err(problem) => bundle.note_missing("journal-files.txt", problem),
    }
    bundle.put("machine.txt", machine(journal.as_deref().unwrap_or(Path::new("/"))).as_bytes())?;
    let missing = std::mem::take(&mut bundle.missing);
    bundle.put("missing.txt", if missing.is_empty() { b"nothing\n" } else { missing.as_bytes() })?;
    let bytes = bundle.tar.into_inner()?;
    let bytes = if is_packed { zstd::bulk::compress(&bytes, LEVEL)? } else { bytes };
    let mut file = AtomicFile::begin(&output)?;
    file.write(&bytes)?;
    file.finish()?;
    client::print(
        &args.at,
        &serde_json::json!({"file": output, "bytes": bytes.len(), "missing": missing.lines().collect::<Vec<_>>()}),
        |_, _| {
            let missing_lines = missing.lines().map(|line| format!("\n  missing: {}", crate::telemetry::shown(line)));
            format!(
                "{} ({}); it contains no secret and no payload{}",
                output.display(),
                Bytes(bytes.len() as u64),
                missing_lines.collect::<String>()
            )
        },
    )
}

/// Returns versions of program, kernel and system.
fn versions() -> String {
    let host = rustix::system::uname();
    let word = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
    let system = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    format!(
        "forebay {} for {} {}\nkernel {} {} {}\n\n{system}",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::ARCH,
        std::env::consts::OS,
        word(host.sysname()),
        word(host.release()),
        word(host.machine()),
    )
}

/// Adds the configuration without secrets, the positions of its problems, and the contracts and tables it names.
fn put_configuration(bundle: &mut Bundle, file: &Path) -> anyhow::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("")).to_owned();
    let is_place = |text: &str| {
        let is_name = |name: &str| name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
        match text.split_once(':') {
            Some(("env", name)) => is_name(name),
            Some(("credential", _)) => secret::place(&folder, Path::new(text)).exists(),
            _ => folder.join(text).is_file(),
        }
    };
    let document = match Document::read(file) {
        Ok(document) => document,
        Err(problem) => {
            bundle.note_missing("config/forebay.toml", problem);
            return Ok(());
        }
    };
    match document.shareable(&is_place) {
        Some(text) => bundle.put("config/forebay.toml", text.as_bytes())?,
        None => bundle.note_missing("config/forebay.toml", "it is no valid TOML, so secrets cannot be recognised"),
    }
    let text_of = |key: &str| document.value(key).and_then(|text| serde_json::from_str::<String>(&text).ok());
    let contracts = folder.join(text_of("contracts").unwrap_or_else(|| "contracts".into()));
    put_folder(bundle, "contracts", &contracts, 3)?;
    for index in 0.. {
        let Some(devices) = text_of(&format!("source.modbus[{index}].devices")) else { break };
        put_folder(bundle, &format!("devices-{index}"), &folder.join(devices), 2)?;
    }
    let found = match config::Config::load(file) {
        Ok(good) => good.warnings,
        Err(problems) => problems,
    };
    let lines: String = found
        .iter()
        .map(|problem| format!("{}: line {}: {}\n", problem.file.display(), problem.line, problem.key))
        .collect();
    // Without the messages: they quote values, which may be misplaced secrets.
    bundle.put("config/problems.txt", lines.as_bytes())
}

fn put_folder(bundle: &mut Bundle, name: &str, folder: &Path, depth: u32) -> anyhow::Result<()> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) => {
            bundle.note_missing(&format!("config/{name}"), format!("{}: {error}", folder.display()));
            return Ok(());
        }
    };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        let inside = format!("{name}/{}", path.file_name().unwrap_or_default().to_string_lossy());
        let is_wanted = path.extension().is_some_and(|ending| ending == "toml" || ending == "json");
        let Ok(found) = std::fs::metadata(&path) else { continue };
        if found.is_dir() && depth > 1 {
            put_folder(bundle, &inside, &path, depth - 1)?;
        } else if found.is_file() && is_wanted && found.len() <= FILE_BYTES_MAX {
            let content = std::fs::read(&path).with_context(|| path.display().to_string());
            bundle.put_or_note(&format!("config/{inside}"), content)?;
        }
    }
    Ok(())
}

/// Adds responses of the running gateway; without one, its log from systemd's journal.
fn put_gateway(bundle: &mut Bundle, at: &At) -> anyhow::Result<()> {
    let socket = socket_path(at);
    let runtime = runtime()?;
    if let Ok(socket) = &socket {
        // The gateway audits who creates a bundle. A gateway that is down cannot.
        let audited = runtime.block_on(socket::call(socket, hyper::Method::POST, "/bundle", b"null".to_vec()));
        audited.unwrap_or_else(|error| {
            bundle.note_missing("audit entry", format!("{error:#}"));
            Vec::new()
        });
    }
    for (path, name) in REQUESTS {
        let answer = match &socket {
            Ok(socket) => runtime.block_on(socket::get_any(socket, path)),
            Err(error) => Err(anyhow::anyhow!("{error:#}")),
        };
        match answer {
            Ok((is_good, text)) if is_good || name.ends_with(".jsonl") => bundle.put(name, text.as_bytes())?,
            Ok((_, text)) => bundle.note_missing(name, text),
            Err(error) => bundle.note_missing(name, format!("{error:#}")),
        }
    }
    if bundle.missing.contains("log.txt") {
        let asked =
            Command::new("journalctl").args(["-u", "forebay", "-n", LINES, "--no-pager", "-o", "short-iso"]).output();
        match asked {
            Ok(found) if found.status.success() => bundle.put("journalctl.txt", &found.stdout)?,
            Ok(found) => bundle.note_missing("journalctl.txt", String::from_utf8_lossy(&found.stderr)),
            Err(error) => bundle.note_missing("journalctl.txt", format!("journalctl: {error}")),
        }
    }
    Ok(())
}

/// Lists every journal file: size in bytes, modification time, name.
fn list_files(journal: &Path) -> String {
    let mut lines = Vec::new();
    let mut folders = vec![journal.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) => {
                lines.push(format!("{}: {error}", folder.display()));
                continue;
            }
        };
        for entry in entries.flatten().take(LISTED_MAX) {
            let path = entry.path();
            // Does not follow links.
            let Ok(found) = entry.metadata() else { continue };
            if found.is_dir() {
                folders.push(path);
            } else if lines.len() < LISTED_MAX {
                let changed = found.modified().map_or_else(|_| "-".into(), |at| Timestamp::from(at).to_string());
                lines.push(format!("{:>14} {changed} {}", found.len(), path.display()));
            }
        }
    }
    lines.join("\n") + "\n"
}

/// Returns memory, load and disk figures of the machine.
fn machine(near: &Path) -> String {
    let mut out = String::new();
    for (what, lines) in [("uptime", 1), ("loadavg", 1), ("meminfo", 6), ("pressure/io", 2), ("pressure/memory", 2)] {
        let text = std::fs::read_to_string(format!("/proc/{what}")).unwrap_or_default();
        let text: Vec<&str> = text.lines().take(lines).collect();
        let _ = writeln!(out, "{what}:\n{}\n", text.join("\n"));
    }
    let there = near.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/"));
    if let Ok(found) = rustix::fs::statvfs(there) {
        let bytes = |blocks: u64| Bytes(blocks.saturating_mul(found.f_frsize));
        let (all, free) = (bytes(found.f_blocks), bytes(found.f_bavail));
        let _ = writeln!(out, "disk of {}: {all}, {free} free, {} inodes free", there.display(), found.f_favail);
    }
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    let _ = writeln!(out, "processors: {processors}");
    out
}
