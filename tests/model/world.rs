//! What the model's gateway is made of, and how it starts and ends.

use super::centre::{Centre, Shared, serve};
use super::fault_disk::{FaultDisk, Unsynced};
use super::{Summary, check::Ledger};
use crate::clock::{Clock, Entered};
use crate::contract::{Contracts, GatewayNames, Sender, SourceKind};
use crate::forward::{self, Forwarder, Pressure, Sending};
use crate::ingest::{Ingest, Producer, Submission, Submitted};
use crate::journal::{Config, Full, Journal, Lane, LaneConfig, OUTCOMES, Seal, Start, Stepped};
use crate::link::CredentialRotation;
use crate::memory::{Budget, LIMIT_DEFAULT};
use crate::secret::Secret;
use crate::shutdown::{self, Trigger};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Random numbers that follow from a seed (xorshift64*).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % end.max(1)
    }

    pub fn chance(&mut self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }

    pub fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len() as u64) as usize]
    }
}

/// What tells one event from every other: its stream, its machine (the key) and its number.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EventKey {
    pub kind: String,
    pub machine: String,
    pub number: u64,
}

impl EventKey {
    /// The event in an envelope that central gets.
    pub fn of_envelope(envelope: &[u8]) -> Option<Self> {
        let event: serde_json::Value = serde_json::from_slice(envelope).ok()?;
        let kind = event["type"].as_str()?.strip_prefix("n.m.")?.strip_suffix(".v1")?;
        Some(Self {
            kind: kind.to_owned(),
            machine: event["subject"].as_str()?.to_owned(),
            number: event["data"]["n"].as_u64()?,
        })
    }

    /// The number in a payload.
    pub fn number_in(payload: &[u8]) -> Option<u64> {
        let text = std::str::from_utf8(payload).ok()?;
        let (_, rest) = text.split_once("\"n\":")?;
        rest.split([',', '}']).next()?.parse().ok()
    }

    pub fn topic(&self) -> String {
        format!("p/{}/{}", self.machine, self.kind)
    }
}

/// An event that a device has sent at least once.
#[derive(Clone, Debug)]
pub struct Event {
    pub payload: Vec<u8>,
    pub is_acknowledged: bool,
    /// Destinations, with their incarnation, that were configured when it was first handed in: whichever copy is acknowledged,
    /// it is owed to them.
    pub owed: Option<BTreeSet<(String, u32)>>,
    /// Where it was found on disk: lane and offset.
    pub places: BTreeSet<(String, u64)>,
}

/// A stream of the configuration.
#[derive(Clone, Debug)]
pub struct Stream {
    pub kind: &'static str,
    pub lane: String,
    pub patch: u32,
}

/// A destination that is configured, or was and is still owed something.
#[derive(Clone, Debug)]
pub struct Destination {
    pub name: String,
    pub incarnation: u32,
    pub start: Start,
    pub is_configured: bool,
}

/// What an operator has written down.
#[derive(Clone, Debug)]
pub struct Plan {
    pub lanes: Vec<String>,
    pub streams: Vec<Stream>,
    pub destinations: Vec<Destination>,
    pub budget: u64,
}

/// A forwarder at work.
pub struct Link {
    pub stats: Arc<forward::Stats>,
    trigger: Trigger,
    task: JoinHandle<()>,
}

/// A gateway that runs.
pub struct Running {
    pub stepped: Stepped,
    pub ingest: Arc<Ingest>,
    pub links: BTreeMap<String, Vec<Link>>,
    pub producer: Producer,
    /// Handed in, and not acknowledged yet.
    pub pending: Vec<(EventKey, Submitted)>,
}

pub struct World {
    pub seed: u64,
    pub random: Random,
    /// Says when the power goes in the middle of an action, for the seeds that have that.
    pub cuts: Option<Random>,
    _entered: Entered,
    pub disk: FaultDisk,
    pub folder: tempfile::TempDir,
    pub plan: Plan,
    pub running: Option<Running>,
    pub centres: Arc<Mutex<BTreeMap<String, Shared>>>,
    pub events: BTreeMap<EventKey, Event>,
    pub next_number: u64,
    pub incarnations: u32,
    pub ledger: Ledger,
    pub actions: u64,
    pub acknowledged: u64,
    trace: u64,
    recent: VecDeque<String>,
    /// Whether one seed is replayed, and everything is printed.
    is_traced: bool,
    /// What [`World::trace_lanes`] printed last, by lane and destination.
    printed: BTreeMap<(String, String), String>,
}

pub fn surroundings() -> GatewayNames {
    GatewayNames { environment: "test".into(), site: "p".into(), gateway: "g".into(), namespace: "n".into() }
}

/// What a lane holds, and the cursor and the accounts of a destination in it.
pub fn describe_accounts(lane: &Lane, destination: &str) -> String {
    let (rows, queued) = lane.accounts(destination);
    let settled = lane.settled(destination).unwrap_or_default();
    let mut text = format!(
        "lane {} {}..{} to {destination}: cursor {} {:?}, {queued} queued",
        lane.name,
        lane.first(),
        lane.end(),
        settled.low,
        settled.ranges
    );
    for (stream, account, owed) in rows {
        let ended = OUTCOMES.map(|outcome| account.count(outcome));
        let _ = write!(text, "; {stream} from {}: owed {owed}, ended {ended:?}", account.from);
    }
    text
}

pub const KINDS: [&str; 3] = ["state", "good", "scrap"];
const BUDGET: u64 = 1 << 20;
/// How long a forwarder may take to stop: 5 s.
const STOP_ROUNDS: usize = 50;

impl World {
    pub fn new(seed: u64) -> Self {
        // 2026-12-01: later than the program was built.
        let clock = Clock::of_runtime(UNIX_EPOCH + Duration::from_secs(1_796_083_200));
        let entered = clock.enter();
        let centres: Arc<Mutex<BTreeMap<String, Shared>>> = Arc::default();
        let network = Arc::clone(&centres);
        crate::link::memory::begin(Box::new(move |address| {
            let name = address.split(':').next().unwrap_or_default();
            let centre = network.lock().expect("lock").get(name).cloned();
            let centre = centre.filter(|centre| centre.lock().expect("lock").is_up);
            let centre = centre.ok_or(std::io::ErrorKind::ConnectionRefused)?;
            let (ours, theirs) = tokio::io::duplex(64 << 10);
            tokio::spawn(serve(theirs, centre));
            Ok(ours)
        }));
        let lane = |name: &str| name.to_owned();
        let streams = KINDS.iter().zip(["critical", "standard", "critical"]);
        let plan = Plan {
            lanes: ["critical", "standard", "bulk"].map(lane).to_vec(),
            streams: streams.map(|(kind, name)| Stream { kind, lane: lane(name), patch: 0 }).collect(),
            destinations: Vec::new(),
            budget: BUDGET,
        };
        let mut world = Self {
            seed,
            random: Random::new(seed),
            cuts: (seed & super::WITHIN != 0).then(|| Random::new(seed ^ 0x5DEE_CE66)),
            _entered: entered,
            disk: FaultDisk::default(),
            folder: tempfile::tempdir().expect("a folder"),
            plan,
            running: None,
            centres,
            events: BTreeMap::new(),
            next_number: 1,
            incarnations: 0,
            ledger: Ledger::default(),
            actions: 0,
            acknowledged: 0,
            trace: seed,
            recent: VecDeque::new(),
            is_traced: super::is_replay(),
            printed: BTreeMap::new(),
        };
        world.add_destination("central", Start::Oldest);
        if world.random.chance(2) {
            world.add_destination("central-old", Start::Oldest);
        }
        world
    }

    /// Notes what happens: for the report of a violation, and to tell one run from another.
    pub fn note(&mut self, what: std::fmt::Arguments<'_>) {
        let what = what.to_string();
        for byte in what.bytes() {
            self.trace = (self.trace ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3);
        }
        if self.is_traced {
            println!("{:>6} {what}", self.actions);
        }
        if self.recent.len() >= 60 {
            self.recent.pop_front();
        }
        self.recent.push_back(format!("{:>6} {what}", self.actions));
    }

    /// Prints, where one seed is replayed, what has changed in the lanes and their accounts.
    pub fn trace_lanes(&mut self) {
        let Some(journal) = self.journal().filter(|_| self.is_traced).cloned() else { return };
        for lane in journal.lanes() {
            for name in lane.destinations() {
                let now = describe_accounts(lane, &name);
                let before = self.printed.insert((lane.name.clone(), name), now.clone());
                if before.as_ref() != Some(&now) {
                    println!("{:>6}     {now}", self.actions);
                }
            }
        }
    }

    pub fn summary(&self) -> Summary {
        Summary { actions: self.actions, acknowledged: self.acknowledged, trace: self.trace }
    }

    pub fn report(&self, violation: &str) -> String {
        let mut text = format!("seed {}: {violation}\n", self.seed);
        for line in &self.recent {
            let _ = writeln!(text, "{line}");
        }
        text
    }

    pub fn add_destination(&mut self, name: &str, start: Start) {
        self.incarnations += 1;
        let incarnation = self.incarnations;
        let centre = Arc::new(Mutex::new(Centre::new(self.random.below(u64::MAX >> 34))));
        self.centres.lock().expect("lock").insert(name.to_owned(), centre);
        self.plan.destinations.push(Destination { name: name.to_owned(), incarnation, start, is_configured: true });
    }

    pub fn journal_config(&self) -> Config {
        let lane = |name: &String| LaneConfig {
            full: if name == "bulk" { Full::ShedOldest } else { Full::StopAcknowledging },
            ..LaneConfig::new(name, self.plan.budget, Duration::ZERO)
        };
        let configured = self.plan.destinations.iter().filter(|to| to.is_configured);
        Config {
            folder: PathBuf::from("/data/journal"),
            lanes: self.plan.lanes.iter().map(lane).collect(),
            dead: LaneConfig::dead(64 << 20),
            dead_retention: Duration::from_secs(86_400 * 365),
            dedupe_bytes: 1 << 20,
            reserve_bytes: 1 << 20,
            cache_bytes: 1 << 20,
            tail_bytes: 32 << 10,
            destinations: configured.map(|to| (to.name.clone(), to.start)).collect(),
        }
    }

    /// Writes the contracts that the plan has, and reads them as a gateway does.
    pub fn contracts(&self) -> Contracts {
        for stream in &self.plan.streams {
            let Stream { kind, lane, patch } = stream;
            let text = format!(
                "name = \"m.{kind}\"\nversion = \"1.0.{patch}\"\nowner = \"tests\"\nlane = \"{lane}\"\n\
                 match = {{ source = \"mqtt\", topic = \"p/{{machine}}/{kind}\" }}\nkey = \"{{machine}}\"\nid = \"/id\"\n\
                 retention = {{ settled = \"0s\" }}\n"
            );
            std::fs::write(self.folder.path().join(format!("{kind}.toml")), text).expect("written");
        }
        let loaded = Contracts::load(self.folder.path(), &surroundings(), &self.plan.lanes, false, &[]);
        loaded.unwrap_or_else(|problems| panic!("{problems:?}")).0
    }

    /// Starts the gateway; one that cannot start on a failing disk stays down.
    pub fn start(&mut self) {
        let seal = Seal { format: 1, environment: "test".into(), name: None };
        let opened = Stepped::open(&self.journal_config(), &seal, Arc::new(self.disk.clone()));
        let started = opened.map_err(|error| error.to_string()).and_then(|stepped| {
            let ingest = Ingest::new(
                Arc::clone(&stepped.journal),
                self.contracts(),
                Secret::default(),
                Budget::new(LIMIT_DEFAULT),
            );
            Ok((stepped, Arc::new(ingest.map_err(|error| error.to_string())?)))
        });
        match started {
            Ok((stepped, ingest)) => {
                let (links, pending) = Default::default();
                let producer = Producer::new(Arc::clone(&ingest));
                self.running = Some(Running { stepped, ingest, links, producer, pending });
                self.start_links();
                self.note(format_args!("started"));
            }
            Err(error) => self.note(format_args!("does not start: {error}")),
        }
    }

    /// Starts a forwarder for each lane of every configured destination that has none.
    pub fn start_links(&mut self) {
        let Some(running) = &mut self.running else { return };
        for to in self.plan.destinations.iter().filter(|to| to.is_configured) {
            if running.links.contains_key(&to.name) {
                continue;
            }
            let text = format!("name = \"{0}\"\nurl = \"mqtt://{0}:1883\"\nwindow = 20\n", to.name);
            let config: Arc<forward::Config> = Arc::new(toml::from_str(&text).expect("a destination"));
            let journal = &running.stepped.journal;
            // Some incarnations of a destination have one connection for each lane, others several.
            let more = if self.seed & super::SHARED != 0 { to.incarnation as u16 % 3 } else { 0 };
            let sending = Arc::new(Sending { connections: 1 + more, ..Sending::default() });
            let pressure = Pressure::new(journal.lanes(), |_| Some(&*sending), None);
            let (_changes, changed) = watch::channel(0);
            let mut links = Vec::new();
            for lane in journal.lanes() {
                let stats = Arc::new(forward::Stats::of(sending.connections));
                for connection in sending.connections() {
                    let place = forward::ForwarderSpec {
                        config: Arc::clone(&config),
                        sending: Arc::clone(&sending),
                        pressure: Arc::clone(&pressure),
                        client: format!("g-{}", connection.name(&lane.name)),
                        connection,
                        traffic: Arc::default(),
                        rotation: CredentialRotation::new(changed.clone()),
                    };
                    let forwarder = Forwarder::new(place, lane, journal.dead(), Arc::clone(&stats));
                    let (trigger, shutdown) = shutdown::pair();
                    let task = tokio::spawn(forwarder.expect("a forwarder").run(shutdown));
                    links.push(Link { stats: Arc::clone(&stats), trigger, task });
                }
            }
            running.links.insert(to.name.clone(), links);
        }
    }

    /// Stops the forwarders of a destination, as a reload does that removes it.
    pub async fn stop_links(&mut self, name: &str) {
        let links = self.running.as_mut().and_then(|running| running.links.remove(name));
        for Link { trigger, task: handle, .. } in links.into_iter().flatten() {
            trigger.begin();
            // It may wait for a dead letter to be on disk, and for answers.
            for _ in 0..STOP_ROUNDS {
                if handle.is_finished() {
                    break;
                }
                if let Some(running) = &mut self.running {
                    let dead = running.stepped.writers() - 1;
                    running.stepped.step(dead);
                }
                self.advance(Duration::from_millis(100)).await;
            }
            // A gateway leaves a part behind that does not end in time.
            handle.abort();
            let _ = handle.await;
        }
    }

    /// The process ends. `how` is what becomes of the disk.
    pub async fn end(&mut self, how: Ending) {
        // The power may have gone before.
        let how = if self.disk.is_off() { Ending::PowerCut(Unsynced::Dropped) } else { how };
        let disk = match how {
            Ending::Clean => {
                let names: Vec<String> =
                    self.running.iter().flat_map(|running| running.links.keys().cloned()).collect();
                for name in names {
                    self.stop_links(&name).await;
                }
                if let Some(Running { stepped, ingest, .. }) = self.running.take() {
                    drop(ingest);
                    stepped.close();
                }
                self.disk.clone()
            }
            Ending::Killed => self.disk.kill(),
            Ending::PowerCut(unsynced) => {
                self.disk.cut(unsynced);
                self.disk.restart()
            }
        };
        if let Some(running) = self.running.take() {
            for link in running.links.into_values().flatten() {
                link.task.abort();
                let _ = link.task.await;
            }
            drop(running.ingest);
            running.stepped.close();
        }
        // It may have gone while the process ended.
        self.disk = if disk.is_off() { disk.restart() } else { disk };
    }

    pub fn journal(&self) -> Option<&Arc<Journal>> {
        self.running.as_ref().map(|running| &running.stepped.journal)
    }

    /// Lets time pass, and the tasks do what is due.
    pub async fn advance(&mut self, by: Duration) {
        tokio::time::advance(by).await;
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }

    /// Where an event leads under the contracts in force.
    pub fn hand_in(&mut self, key: &EventKey) -> bool {
        let Some(running) = &mut self.running else { return false };
        let route = running.ingest.route(
            SourceKind::Mqtt,
            "devices",
            &key.topic(),
            Sender { client: "tester", ..Sender::default() },
        );
        let payload = &self.events[key].payload;
        let now = crate::event::Timestamp::from(crate::clock::wall());
        let taken = running.producer.submit(&Submission::new(&route, payload, now));
        let Ok(taken) = taken else { return false };
        assert!(!taken.is_dead(), "every event has a contract");
        running.pending.push((key.clone(), taken));
        let configured = self.plan.destinations.iter().filter(|to| to.is_configured);
        let present = configured.map(|to| (to.name.clone(), to.incarnation));
        if let Some(event) = self.events.get_mut(key) {
            event.owed.get_or_insert_with(|| present.collect());
        }
        true
    }

    /// Takes the receipts that there are.
    pub fn acknowledge(&mut self) -> Vec<EventKey> {
        let Some(running) = &mut self.running else { return Vec::new() };
        let mut news = Vec::new();
        let ingest = &running.ingest;
        let events = &self.events;
        running.pending.retain(|(key, taken)| {
            if ingest.receipt(taken).is_none() {
                return true;
            }
            if events.contains_key(key) {
                news.push(key.clone());
            }
            false
        });
        self.acknowledged += news.len() as u64;
        news
    }
}

/// How a process ends.
#[derive(Clone, Copy, Debug)]
pub enum Ending {
    Clean,
    Killed,
    PowerCut(Unsynced),
}
