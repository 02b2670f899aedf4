//! Sparkplug B: what edge nodes and devices publish becomes JSON that a contract can read.
//!
//! Promise: a value never gets another metric's name or type. What cannot be told for certain is a
//! dead letter that names the alias, and the node is asked for a rebirth where that is allowed. One
//! gap is the protocol's: data does not say which birth it belongs to, so that aliases of a node that
//! was born anew while the gateway was away are those of before, until the rebirth that is asked for.
//! Invariants:
//! - a birth certificate is acknowledged only after what it declares is on the disk, so that data
//!   is understood after any restart;
//! - what is remembered and what is being read are bounded in bytes ([`nodes::Bounds`]), of a node, of a sender and in all;
//! - a birth that is refused leaves nothing of the birth before it;
//! - decoding changes nothing; [`Sparkplug::apply`] does, once the event is on its way to the disk.
//!
//! Not here: what the JSON means (`contract`), who is asked for a rebirth and how (`sources`).

mod declared;
mod json;
mod nodes;
mod notes;
mod output;
pub mod proto;
mod saver;
mod value;
mod weight;

use crate::clock;
use crate::journal::{Bell, Journal, JournalError};
use crate::memory::{Budget, Permit};
use crate::telemetry::{Counter, Limiter};
use declared::Declared;
use nodes::{Bounds, Forgotten, Node, NodeKey, Nodes};
use notes::{Last, Stale};
use output::Output;
use parking_lot::{Mutex, MutexGuard};
use prost::Message;
use proto::{Metric, MetricValue, Payload};
use saver::Saver;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// A topic, of which the names of node and device are remembered; as those of `sources::mqtt`.
const TOPIC_BYTES_MAX: usize = 1024;
/// Nodes of one source that wait to be asked for a rebirth: a minute's work, and 1 MB.
const ASKS_MAX: usize = 1000;
/// The part whose notes these are.
const PART: &str = "sparkplug";

/// The state of every edge node.
#[derive(Debug)]
pub struct Sparkplug {
    nodes: Arc<Mutex<Nodes>>,
    saver: Saver,
    /// One message is read at a time, and this is for what it takes meanwhile.
    reading: Mutex<Permit>,
    /// Nodes to ask for a rebirth, by source; only sources that may ask are here.
    asks: Mutex<HashMap<String, VecDeque<Ask>>>,
    warnings: Limiter,
    /// What it counts.
    pub stats: Stats,
}

/// What is counted of Sparkplug.
#[derive(Debug, Default)]
pub struct Stats {
    /// Messages whose number does not follow the one before: some were lost on the way here.
    pub gaps: Counter,
    /// Messages that could not be understood.
    pub refused: Counter,
    /// Rebirths that were asked for.
    pub asked: Counter,
    /// How often what a node declared was forgotten for lack of room.
    pub forgotten: Counter,
}

/// A command that asks an edge node for a rebirth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Topic of the command.
    pub topic: String,
    /// Payload of the command.
    pub payload: Vec<u8>,
}

/// Where a message belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place<'a> {
    group: &'a str,
    kind: Kind,
    node: &'a str,
    device: Option<&'a str>,
}

impl Place<'_> {
    /// The type of the message, as topics name it.
    fn message_type(&self) -> &'static str {
        match (self.kind, self.device.is_some()) {
            (Kind::Birth, false) => "NBIRTH",
            (Kind::Birth, true) => "DBIRTH",
            (Kind::Death, false) => "NDEATH",
            (Kind::Death, true) => "DDEATH",
            (Kind::Data, false) => "NDATA",
            (Kind::Data, true) => "DDATA",
            (Kind::Command, false) => "NCMD",
            (Kind::Command, true) => "DCMD",
        }
    }
}

/// The kind of a message of a node or a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Birth,
    Death,
    Data,
    Command,
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.device {
            None => write!(f, "node {}/{}", self.group, self.node),
            Some(device) => write!(f, "device {}/{}/{device}", self.group, self.node),
        }
    }
}

/// Why a message is not understood.
#[derive(Debug)]
struct Trouble {
    reason: String,
    wants_rebirth: bool,
}

impl Trouble {
    /// A birth certificate would mend it.
    fn unborn(reason: String) -> Self {
        Self { reason, wants_rebirth: true }
    }

    fn wrong(reason: String) -> Self {
        Self { reason, wants_rebirth: false }
    }
}

/// A message as far as it is understood.
#[derive(Debug)]
pub struct Decoded {
    /// JSON, or why there is none, starting with the field.
    pub json: Result<Vec<u8>, String>,
    /// What becomes of the node's state once the event is taken.
    pub change: Option<Change>,
}

/// What a message changes.
#[derive(Debug)]
pub struct Change {
    key: NodeKey,
    device: Option<String>,
    what: What,
    seq: Option<u8>,
    wants_rebirth: bool,
}

#[derive(Debug)]
enum What {
    NodeBirth {
        declared: Declared,
        bd_seq: Option<u64>,
    },
    DeviceBirth(Declared),
    NodeDeath {
        bd_seq: Option<u64>,
    },
    DeviceDeath,
    /// A birth that is refused, and why.
    RefusedBirth(String),
    Data,
}

impl Sparkplug {
    /// Reads what earlier births have declared. What it takes is a part of the memory budget.
    pub fn open(journal: &Journal, budget: &Arc<Budget>) -> Result<Self, JournalError> {
        let notes = journal.notes(PART);
        let mut nodes = Nodes::new(Permit::empty(budget));
        let (mut last, mut unread) = (Last::default(), Vec::new());
        notes.each("", |name, note| {
            if !nodes.restore(&mut last, name, note) {
                unread.push((name.to_owned(), None));
            }
        })?;
        if !unread.is_empty() {
            let (count, allowed) = (unread.len(), nodes.bounds().all);
            tracing::warn!(
                count,
                allowed,
                "Sparkplug notes are of another version or are more than the memory for them allows; they are removed, and their nodes asked for a rebirth"
            );
            if let Err(error) = notes.write(unread) {
                tracing::warn!(%error, "could not remove Sparkplug notes; the next start will try again");
            }
        }
        let mut reading = Permit::empty(budget);
        reserve(&mut reading, nodes.bounds());
        let nodes = Arc::new(Mutex::new(nodes));
        Ok(Self {
            saver: Saver::start(notes, Arc::clone(&nodes)),
            nodes,
            reading: Mutex::new(reading),
            asks: Mutex::default(),
            warnings: Limiter::new(Duration::from_secs(60)),
            stats: Stats::default(),
        })
    }

    fn nodes(&self) -> MutexGuard<'_, Nodes> {
        self.nodes.lock()
    }

    fn asks(&self) -> MutexGuard<'_, HashMap<String, VecDeque<Ask>>> {
        self.asks.lock()
    }

    /// How many edge nodes are known.
    pub fn node_count(&self) -> usize {
        self.nodes().len()
    }

    /// Bytes of memory that what is known of them takes.
    pub fn bytes(&self) -> usize {
        self.nodes().bytes()
    }

    /// Reads a message. Changes nothing, so that it may be read again when there was no room for it.
    pub fn decode(&self, source: &str, topic: &str, payload: &[u8]) -> Decoded {
        if let Some(host) = topic.strip_prefix("spBv1.0/STATE/").or_else(|| topic.strip_prefix("STATE/")) {
            let bytes_max = self.nodes().bounds().json;
            return Decoded { json: host_state(host, payload, bytes_max), change: None };
        }
        let mut reading = self.reading.lock();
        let place = match open(topic) {
            Ok(place) => place,
            Err(trouble) => return Decoded { json: Err(trouble.reason), change: None },
        };
        let key = NodeKey { source: source.to_owned(), group: place.group.to_owned(), node: place.node.to_owned() };
        let mut seq = None;
        // The lock is let go before the message is read.
        let bounds = self.nodes().bounds();
        reserve(&mut reading, bounds);
        let read = decode(payload, bounds.message).and_then(|message| {
            let has_number = (place.kind, place.device) != (Kind::Death, None);
            seq = message.seq.filter(|_| has_number).map(|seq| (seq & 0xFF) as u8);
            self.read(&key, &place, &message)
        });
        let (json, what, wants_rebirth) = match read {
            Ok((json, what)) => (Ok(json), what, false),
            Err(trouble) if place.kind == Kind::Birth => {
                (Err(trouble.reason.clone()), What::RefusedBirth(trouble.reason), false)
            }
            Err(trouble) => (Err(trouble.reason), What::Data, trouble.wants_rebirth),
        };
        let change = (place.kind != Kind::Command).then(|| Change {
            key,
            device: place.device.map(str::to_owned),
            what,
            seq,
            wants_rebirth,
        });
        Decoded { json, change }
    }

    fn read(&self, key: &NodeKey, place: &Place<'_>, message: &Payload) -> Result<(Vec<u8>, What), Trouble> {
        if message.uuid.as_deref() == Some("SPBV1.0_COMPRESSED") {
            return Err(Trouble::wrong("payload: is compressed, which is not supported".into()));
        }
        let nodes = self.nodes();
        // A birth certificate stands for itself.
        let node = if place.kind == Kind::Birth { None } else { nodes.find(key) };
        let declared = node.and_then(|node| node.declared(place.device));
        let metrics = json::resolve(&message.metrics, declared, place)?;
        let json = json::message(place, message, &metrics, nodes.bounds().json)?;
        let bd_seq = || {
            let metric = message.metrics.iter().find(|metric| metric.name.as_deref() == Some("bdSeq"))?;
            match metric.value {
                Some(MetricValue::Long(number)) => Some(number),
                Some(MetricValue::Int(number)) => Some(number.into()),
                _ => None,
            }
        };
        let born = || {
            let declared = Declared::born(&metrics).map_err(Trouble::wrong)?;
            match nodes.excess(key, place.device, &declared) {
                None => Ok(declared),
                Some(bytes) => Err(Trouble::wrong(format!(
                    "metrics: with this birth of {place} its node takes {bytes} bytes of memory; {} are allowed for a node, a hundred and twenty-eighth of the setting memory",
                    nodes.bounds().node
                ))),
            }
        };
        let what = match (place.kind, place.device) {
            (Kind::Birth, None) => What::NodeBirth { declared: born()?, bd_seq: bd_seq() },
            (Kind::Birth, Some(_)) => What::DeviceBirth(born()?),
            (Kind::Death, None) => What::NodeDeath { bd_seq: bd_seq() },
            (Kind::Death, Some(_)) => What::DeviceDeath,
            (Kind::Data | Kind::Command, _) => What::Data,
        };
        Ok((json, what))
    }

    /// Takes over what a message of a sender changes. Returns a number to give to [`Sparkplug::is_saved`]; the
    /// bell rings when what it stands for is on the disk. 0 where nothing has to be.
    pub fn apply(&self, change: Change, sender: &str, bell: impl FnOnce() -> Bell) -> u64 {
        let now = clock::instant();
        let Change { key, device, what, seq, wants_rebirth } = change;
        let is_birth_understood = matches!(what, What::NodeBirth { .. });
        // Numbers begin anew with the birth of a node, also with one that is refused.
        let begins_anew = is_birth_understood || matches!(what, What::RefusedBirth(_)) && device.is_none();
        if let What::RefusedBirth(reason) = &what {
            self.warn_of_refusal(&key, sender, reason);
        }
        let sender = format!("{}\0{sender}", key.source);
        let mut nodes = self.nodes();
        let (gap, saves, may_ask) = nodes.follow(&key, &sender, is_birth_understood, |node| {
            // The same number again is the same message again.
            let follows = |last: u8| seq.is_none_or(|seq| seq == last || seq == last.wrapping_add(1));
            let gap = node.seq.filter(|last| !begins_anew && !follows(*last)).map(|last| last.wrapping_add(1));
            node.seq = if begins_anew { seq } else { seq.or(node.seq) };
            let was_empty = node.is_empty();
            let (saves, is_unborn) = enter(node, what, device);
            // Notes of devices count only with one of their node.
            let saves = saves.map(|stale| stale.map(|stale| if was_empty { Stale::All } else { stale }));
            let wants_rebirth = wants_rebirth || is_unborn || gap.is_some();
            (gap, saves, wants_rebirth && self.has_room_to_ask(&key.source) && node.may_ask(now))
        });
        let forgotten = nodes.make_room(&key);
        // Before another message can find that there is nothing to wait for.
        forgotten.iter().for_each(|one| self.saver.forget(Arc::clone(&one.key)));
        let saved = saves.map_or(0, |stale| self.saver.save(Arc::new(key.clone()), stale, bell));
        drop(nodes);
        if let Some(expected) = gap {
            self.stats.gaps.add(1);
            if let Some(held_back) = self.warnings.allow(now) {
                tracing::warn!(
                    source = key.source,
                    group = key.group,
                    node = key.node,
                    expected,
                    seq,
                    held_back,
                    "Sparkplug messages were lost on their way to the gateway"
                );
            }
        }
        if may_ask {
            self.ask(&key);
        }
        for one in forgotten {
            self.forgot(one);
        }
        saved
    }

    fn forgot(&self, Forgotten { key, allowed, bound }: Forgotten) {
        self.stats.forgotten.add(1);
        if let Some(held_back) = self.warnings.allow(clock::instant()) {
            tracing::warn!(
                source = key.source,
                group = key.group,
                node = key.node,
                bound,
                allowed,
                held_back,
                "what births of a Sparkplug node declared is forgotten, since others need the memory; its aliases are unknown until it is born anew; see the setting memory"
            );
        }
    }

    fn warn_of_refusal(&self, key: &NodeKey, sender: &str, reason: &str) {
        if let Some(held_back) = self.warnings.allow(clock::instant()) {
            tracing::warn!(
                source = key.source,
                group = key.group,
                node = key.node,
                sender,
                reason,
                held_back,
                "a Sparkplug birth is refused and became a dead letter"
            );
        }
    }

    /// Whether what a number of [`Sparkplug::apply`] stands for is on the disk.
    pub fn is_saved(&self, number: u64) -> bool {
        self.saver.saved() >= number
    }

    /// Lets a source ask nodes for a rebirth.
    pub fn allow_asking(&self, source: &str) {
        self.asks().entry(source.to_owned()).or_default();
    }

    /// The next node of a source to ask for a rebirth.
    pub fn next_ask(&self, source: &str) -> Option<Ask> {
        let ask = self.asks().get_mut(source)?.pop_front()?;
        self.stats.asked.add(1);
        Some(ask)
    }

    /// Whether a source asks for rebirths, and not too many wait for that.
    fn has_room_to_ask(&self, source: &str) -> bool {
        self.asks().get(source).is_some_and(|asks| asks.len() < ASKS_MAX)
    }

    fn ask(&self, key: &NodeKey) {
        let rebirth = Metric {
            name: Some("Node Control/Rebirth".into()),
            datatype: Some(value::BOOLEAN),
            value: Some(MetricValue::Boolean(true)),
            ..Metric::default()
        };
        let millis = clock::wall().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_millis());
        let payload = Payload {
            timestamp: Some(u64::try_from(millis).unwrap_or(u64::MAX)),
            metrics: vec![rebirth],
            ..Payload::default()
        };
        let topic = format!("spBv1.0/{}/NCMD/{}", key.group, key.node);
        if let Some(asks) = self.asks().get_mut(&key.source)
            && asks.iter().all(|ask| ask.topic != topic)
        {
            asks.push_back(Ask { topic, payload: payload.encode_to_vec() });
        }
    }
}

/// Lets a node follow a message: what has to be on the disk before the message is acknowledged (`Some(None)` is what
/// earlier ones have changed), and whether a birth is missing.
fn enter(node: &mut Node, what: What, device: Option<String>) -> (Option<Option<Stale>>, bool) {
    let stale = device.as_deref().map_or(Stale::All, Stale::device);
    let device = device.unwrap_or_default();
    match what {
        What::NodeBirth { declared, bd_seq } => {
            // After the birth of a node each of its devices is born again.
            node.declare(declared);
            node.bd_seq = bd_seq;
            node.is_born();
            (Some(Some(stale)), false)
        }
        What::DeviceBirth(declared) => {
            let is_unborn = !node.is_alive();
            node.declare_device(device, declared);
            (Some(Some(stale)), is_unborn)
        }
        What::RefusedBirth(_) => {
            // Also where nothing is known: what was forgotten a moment ago may still be on the disk.
            node.refuse(matches!(stale, Stale::Devices(_)).then_some(&device));
            (Some(Some(stale)), false)
        }
        // A will of an earlier session may come after the birth of the next one.
        What::NodeDeath { bd_seq } if bd_seq.is_some() && node.bd_seq.is_some() && bd_seq != node.bd_seq => {
            (None, false)
        }
        What::NodeDeath { .. } => {
            let is_news = node.has_declared();
            node.declare(Declared::default());
            node.seq = None;
            (Some(is_news.then_some(stale)), false)
        }
        // A device that is dead is as one that was never heard of: names of devices may be many over the years.
        What::DeviceDeath => (node.remove_device(&device).then_some(Some(stale)), false),
        // Aliases from before the start may stand for other metrics by now.
        What::Data => (None, !node.is_alive() || !node.is_fresh),
    }
}

fn no_sparkplug() -> Trouble {
    let reason =
        "topic: is none of Sparkplug B; expected spBv1.0/{group}/{type}/{node} with /{device} behind it for a device";
    Trouble::wrong(reason.into())
}

/// Where a topic belongs.
fn open(topic: &str) -> Result<Place<'_>, Trouble> {
    let levels: Vec<&str> = topic.split('/').collect();
    let (group, message_type, node, device) = match levels[..] {
        ["spBv1.0", group, message_type, node] => (group, message_type, node, None),
        ["spBv1.0", group, message_type, node, device] => (group, message_type, node, Some(device)),
        _ => return Err(no_sparkplug()),
    };
    let kind = match (message_type, device) {
        ("NBIRTH", None) | ("DBIRTH", Some(_)) => Kind::Birth,
        ("NDEATH", None) | ("DDEATH", Some(_)) => Kind::Death,
        ("NDATA", None) | ("DDATA", Some(_)) => Kind::Data,
        ("NCMD", None) | ("DCMD", Some(_)) => Kind::Command,
        _ => return Err(no_sparkplug()),
    };
    if topic.len() > TOPIC_BYTES_MAX {
        let length = topic.len();
        return Err(Trouble::wrong(format!(
            "topic: has {length} bytes; {TOPIC_BYTES_MAX} are allowed for Sparkplug B"
        )));
    }
    Ok(Place { group, kind, node, device })
}

/// Holds memory for one message while it is read, and for its JSON. Where there is no room for it, a message is read all
/// the same, since there is only one: the next tries again.
fn reserve(reading: &mut Permit, bounds: Bounds) {
    let bytes = bounds.message + bounds.json;
    if reading.bytes() != bytes {
        let _ = reading.resize(bytes);
    }
}

/// Decodes a payload that takes at most so many bytes of memory then.
fn decode(payload: &[u8], bytes_max: usize) -> Result<Payload, Trouble> {
    match weight::weigh(payload, bytes_max) {
        None => Err(Trouble::wrong("payload: is no Sparkplug B: it has a group".into())),
        Some(weight) if weight > bytes_max => Err(Trouble::wrong(format!(
            "payload: has {} bytes and takes more than {bytes_max} bytes of memory to read, which is all that is allowed (setting memory)",
            payload.len()
        ))),
        Some(_) => Payload::decode(payload)
            .map_err(|error| Trouble::wrong(format!("payload: is no Sparkplug B: {}", described(&error)))),
    }
}

/// What prost says of a payload, cut at where it might begin to quote.
fn described(error: &prost::DecodeError) -> String {
    error.to_string().chars().take(200).collect()
}

/// Host applications say on a topic of their own whether they live: JSON in version 3, a word before.
fn host_state(host: &str, payload: &[u8], bytes_max: usize) -> Result<Vec<u8>, String> {
    let too_long = || format!("payload: becomes more than {bytes_max} bytes of JSON");
    let mut out = Output::new(0, bytes_max);
    out.raw(r#"{"type":"STATE","host":"#);
    out.text(host);
    out.raw(",\"state\":");
    match serde_json::from_slice::<&serde_json::value::RawValue>(payload) {
        Ok(state) => out.raw(state.get()),
        // A byte that is no text becomes three, before it is written.
        Err(_) if payload.len() > bytes_max / 3 => return Err(too_long()),
        Err(_) => out.text(&String::from_utf8_lossy(payload)),
    }
    out.raw("}");
    out.whole().ok_or_else(too_long)
}
