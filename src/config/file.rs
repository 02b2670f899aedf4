//! The configuration file as it is written, before any check.

use crate::forward::{self, Batch, BatchWhen, CatchUp, Rate};
use crate::journal::Full;
use crate::secret;
use crate::setting::{Bytes, Document, Problem, Span};
use crate::sources::SourceTables;
use crate::telemetry::Logging;
use crate::watch;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, IntoDeserializer, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub environment: String,
    pub site: String,
    pub name: Option<String>,
    #[serde(default = "namespace")]
    pub namespace: String,
    #[serde(default = "data_dir")]
    pub data_dir: PathBuf,
    #[serde(default = "contracts")]
    pub contracts: PathBuf,
    /// Streams whose contracts are used although their files disable them.
    #[serde(default)]
    pub enable: Vec<String>,
    pub socket: Option<PathBuf>,
    pub mask_key: Option<PathBuf>,
    #[serde(default)]
    pub sealed_certificates: bool,
    #[serde(default = "disk_reserve")]
    pub disk_reserve: Bytes,
    #[serde(default = "dedupe_memory")]
    pub dedupe_memory: Bytes,
    #[serde(default = "last_values")]
    pub last_values: Bytes,
    pub memory: Option<Bytes>,
    #[serde(default)]
    pub source: SourceTables,
    #[serde(default)]
    pub destination: Vec<forward::Config>,
    #[serde(default)]
    pub lane: BTreeMap<String, Lane>,
    #[serde(default)]
    pub dead: Dead,
    #[serde(default = "ledger_period")]
    pub ledger_period: Span,
    pub watch: Option<watch::Config>,
    pub monitoring: Option<Monitoring>,
    #[serde(default)]
    pub log: Logging,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Monitoring {
    #[serde(default = "monitoring_listen")]
    pub listen: SocketAddr,
    #[serde(default)]
    pub hosts: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Lane {
    pub budget: Option<Bytes>,
    pub linger: Option<Span>,
    pub full: Option<Full>,
    #[serde(default)]
    pub catch_up: CatchUp,
    pub backfill_topic: Option<String>,
    #[serde(default, deserialize_with = "batch")]
    pub batch: Option<Batch>,
    #[serde(default)]
    pub rate: Rate,
    pub yielding: Option<Rate>,
    pub connections: Option<i64>,
    pub dscp: Option<i64>,
    pub hours: Option<String>,
    pub time_zone: Option<String>,
}

/// Settings of the dead-letter log.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Dead {
    pub budget: Option<Bytes>,
    #[serde(default = "dead_retention")]
    pub retention: Span,
}

impl Default for Dead {
    fn default() -> Self {
        Self { budget: None, retention: dead_retention() }
    }
}

/// Reads the limits of batches: a table, or `"backlog"` for its defaults.
fn batch<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Batch>, D::Error> {
    struct TableOrWord;

    impl<'de> Visitor<'de> for TableOrWord {
        type Value = Batch;

        fn expecting(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            out.write_str("\"backlog\" or a table such as { events = 500, age = \"5s\" }")
        }

        fn visit_str<E: Error>(self, word: &str) -> Result<Batch, E> {
            let when = BatchWhen::deserialize(word.into_deserializer())?;
            Ok(Batch { when, ..Batch::default() })
        }

        fn visit_map<A: MapAccess<'de>>(self, table: A) -> Result<Batch, A::Error> {
            Batch::deserialize(MapAccessDeserializer::new(table))
        }
    }
    deserializer.deserialize_any(TableOrWord).map(Some)
}

fn dead_retention() -> Span {
    Span(Duration::from_secs(30 * 86_400))
}
fn monitoring_listen() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 9110))
}
fn namespace() -> String {
    "com.example".into()
}
fn data_dir() -> PathBuf {
    "/var/lib/forebay".into()
}
fn contracts() -> PathBuf {
    "contracts".into()
}
fn ledger_period() -> Span {
    Span(Duration::from_secs(300))
}
fn disk_reserve() -> Bytes {
    Bytes(64 << 20)
}
/// 8 MiB hold about 390,000 ids.
fn dedupe_memory() -> Bytes {
    Bytes(8 << 20)
}
/// 8 MiB hold the small events of about 15,000 keys.
fn last_values() -> Bytes {
    Bytes(8 << 20)
}

impl File {
    /// The path of the command socket.
    pub(super) fn socket_path(&self, resolve: &impl Fn(&Path) -> PathBuf) -> PathBuf {
        self.socket.as_deref().map_or_else(|| resolve(&self.data_dir).join("forebay.sock"), resolve)
    }
}

/// Returns a function that resolves paths relative to the configuration file, and names of credentials.
pub(super) fn path_resolver(file: &Path) -> impl Fn(&Path) -> PathBuf + use<> {
    let folder = file.parent().map_or_else(PathBuf::new, Path::to_owned);
    move |path: &Path| secret::place(&folder, path)
}

/// Returns the socket path of a configuration without checking the rest: the gateway may run with an
/// earlier, valid version of it.
pub fn socket_of(file: &Path) -> Result<PathBuf, Problem> {
    let document = Document::read(file)?;
    let resolve = path_resolver(file);
    match document.parse::<File>() {
        Ok(raw) => Ok(raw.socket_path(&resolve)),
        Err(problem) => {
            let named = document.value_without_parsing("socket").map(|socket| resolve(Path::new(&socket)));
            let default =
                || Some(resolve(Path::new(&document.value_without_parsing("data_dir")?)).join("forebay.sock"));
            named.or_else(default).ok_or(problem)
        }
    }
}

/// Returns environment and gateway name of a configuration without checking the rest.
pub fn names_of(file: &Path) -> Option<(String, Option<String>)> {
    let raw: File = Document::read(file).ok()?.parse().ok()?;
    Some((raw.environment, raw.name))
}

/// Returns the log settings of a configuration without checking the rest. Returns the default if they cannot be read;
/// loading the configuration reports that problem.
pub fn logging_of(file: &Path) -> Logging {
    let raw = Document::read(file).and_then(|document| document.parse::<File>());
    raw.map(|raw| raw.log).ok().filter(|log| log.check().is_ok()).unwrap_or_default()
}

/// Returns the journal folder of a configuration without checking the rest.
pub fn journal_of(file: &Path) -> Result<PathBuf, Problem> {
    let document = Document::read(file)?;
    let raw: File = document.parse()?;
    Ok(path_resolver(file)(&raw.data_dir).join("journal"))
}
