//! Status of each device, for the diagnosis of clients that misbehave.

use super::refused_clients::RefusedClients;
use super::registry::Key;
use crate::api::{DeviceRefusal, DeviceStatus, RefusedClient};
use crate::clock;
use crate::contract::Sender;
use crate::event::{AuthType, Timestamp, text};
use crate::ingest::Submitted;
use crate::memory::{Budget, Permit};
use crate::sources::identity::Identity;
use crate::telemetry::{Counter, Gauge, shown};
use parking_lot::{Mutex, MutexGuard};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Instant;

/// Number of devices that are kept; beyond it, the one that is disconnected and silent for longest is removed.
const DEVICES_MAX: usize = 20_000;
/// Bytes of a device: its counters, names of at most 256 bytes each, and its last refusal.
const DEVICE_BYTES: usize = 1280;
/// Bytes that are kept of a refused topic.
const REFUSED_BYTES_MAX: usize = 128;
/// Bytes that are kept of the cause.
const WHY_BYTES_MAX: usize = 256;
/// Marks a clock offset that is not known yet.
const UNSEEN: i64 = i64::MIN;

/// The counters of one client since the start of the gateway.
#[derive(Debug)]
pub struct Device {
    pub client: String,
    who: Mutex<LastSeen>,
    pub received: Counter,
    /// Events that became dead letters on the way in.
    pub dead: Counter,
    /// Redeliveries that were recognised and not stored again.
    pub redelivered: Counter,
    /// Publishes, subscriptions and connections that were refused.
    pub refused: Counter,
    last_refusal: Mutex<Option<LastRefusal>>,
    /// Microseconds since 1970.
    last_event: Gauge,
    /// Microseconds that its clock is ahead, by the newest event with a time of its own.
    clock_offset: AtomicI64,
    /// Covers its bytes; `None` for a device that is not kept after its connection.
    _permit: Option<Permit>,
}

/// Identity and address of the newest connection.
#[derive(Clone, Debug)]
pub(super) struct LastSeen {
    pub(super) identity: String,
    proven_by: Option<AuthType>,
    pub(super) peer: SocketAddr,
    version: &'static str,
    /// The moment of its connection, on both clocks.
    connected: Option<(Instant, Timestamp)>,
    /// Publishes that had arrived when it connected.
    received_before: u64,
}

#[derive(Clone, Debug)]
struct LastRefusal {
    at: Timestamp,
    address: IpAddr,
    what: String,
    why: String,
}

/// The devices of one listener.
#[derive(Debug)]
pub struct Devices {
    budget: Arc<Budget>,
    /// Clients with the same client id and different proven names are different devices.
    all: Mutex<HashMap<Key, Arc<Device>>>,
    refused: RefusedClients,
}

impl Devices {
    pub fn new(budget: Arc<Budget>) -> Self {
        Self { budget, all: Mutex::default(), refused: RefusedClients::default() }
    }

    /// Returns the device of a client that connects now.
    pub(super) fn connected(
        &self,
        key: &Key,
        identity: &Identity,
        peer: SocketAddr,
        version: &'static str,
    ) -> Arc<Device> {
        self.refused.forget(peer, key.client());
        let now = (clock::instant(), Timestamp::from(clock::wall()));
        let mut all = self.all.lock();
        let known = all.get(key).cloned();
        let device = known.unwrap_or_else(|| {
            let mut permit = self.budget.permit(DEVICE_BYTES).ok();
            if all.len() >= DEVICES_MAX || permit.is_none() {
                // The one that has been silent for longest is removed.
                let gone = all.iter().filter(|(_, device)| device.who().connected.is_none());
                if let Some(oldest) =
                    gone.min_by_key(|(_, device)| device.last_event.value()).map(|(key, _)| key.clone())
                {
                    all.remove(&oldest);
                }
                permit = permit.or_else(|| self.budget.permit(DEVICE_BYTES).ok());
            }
            let is_remembered = permit.is_some();
            let device = Arc::new(Device::new(key.client(), peer, version, permit));
            if is_remembered {
                all.insert(key.clone(), Arc::clone(&device));
            }
            device
        });
        let received_before = device.received.value();
        let mut who = device.who();
        // The string of an unchanged name is kept, so that reconnects do not allocate.
        let known = std::mem::take(&mut who.identity);
        *who = LastSeen {
            identity: if known == identity.name() { known } else { identity.name().to_owned() },
            proven_by: identity.sender(key.client()).proven_by,
            peer,
            version,
            connected: Some(now),
            received_before,
        };
        drop(who);
        device
    }

    /// Counts a client that is refused before it has a session.
    pub(super) fn note_refused(&self, peer: SocketAddr, sender: Sender<'_>, why: &str) {
        self.refused.note(peer, sender, why);
    }

    /// Returns the clients that listener `source` refused and that have not logged in since.
    pub fn refused(&self, source: &str) -> Vec<RefusedClient> {
        self.refused.list(source)
    }

    /// Returns all devices, sorted by client id.
    pub fn all(&self) -> Vec<Arc<Device>> {
        let mut list: Vec<_> = {
            let all = self.all.lock();
            all.values().cloned().collect()
        };
        list.sort_by(|a, b| a.client.cmp(&b.client));
        list
    }
}

impl LastSeen {
    /// Returns the sender of events under this client id.
    pub(super) fn sender<'a>(&'a self, client: &'a str) -> Sender<'a> {
        Sender { client, user: &self.identity, proven_by: self.proven_by }
    }
}

impl Device {
    fn new(client: &str, peer: SocketAddr, version: &'static str, permit: Option<Permit>) -> Self {
        let who =
            LastSeen { identity: String::new(), proven_by: None, peer, version, connected: None, received_before: 0 };
        Self {
            client: client.to_owned(),
            who: Mutex::new(who),
            received: Counter::default(),
            dead: Counter::default(),
            redelivered: Counter::default(),
            refused: Counter::default(),
            last_refusal: Mutex::default(),
            last_event: Gauge::default(),
            clock_offset: AtomicI64::new(UNSEEN),
            _permit: permit,
        }
    }

    fn who(&self) -> MutexGuard<'_, LastSeen> {
        self.who.lock()
    }

    /// Returns identity and address of the newest connection.
    pub(super) fn last_seen(&self) -> LastSeen {
        self.who().clone()
    }

    /// Notes that it is disconnected.
    pub fn gone(&self) {
        self.who().connected = None;
    }

    /// Counts something that was refused. `what` is a topic or a filter.
    pub(super) fn note_refusal(&self, what: &str, why: &str) {
        self.refused.add(1);
        let (what, why) = (text::start(what, REFUSED_BYTES_MAX), text::start(why, WHY_BYTES_MAX));
        let (at, address) = (Timestamp::from(clock::wall()), self.who().peer.ip().to_canonical());
        let last = LastRefusal { at, address, what: what.to_owned(), why: why.to_owned() };
        *self.last_refusal.lock() = Some(last);
    }

    pub fn note_publish(&self, time: Timestamp) {
        self.received.add(1);
        self.last_event.set(time.0.max(0) as u64);
    }

    pub fn note_accepted(&self, taken: &Submitted) {
        if taken.is_dead() {
            self.dead.add(1);
        }
        if let Some(offset) = taken.clock_offset() {
            self.clock_offset.store(offset, Ordering::Relaxed);
        }
    }

    /// Returns the status. `duplicates` returns the number of repeats that the journal recognised of a client.
    pub fn status(&self, source: &str, duplicates: &impl Fn(&str) -> u64) -> DeviceStatus {
        let who = self.who().clone();
        let received = self.received.value();
        let rate = who.connected.map_or(0.0, |(since, _)| {
            let seconds = clock::instant().duration_since(since).as_secs_f64().max(1.0);
            received.saturating_sub(who.received_before) as f64 / seconds
        });
        let offset = self.clock_offset.load(Ordering::Relaxed);
        DeviceStatus {
            source: source.to_owned(),
            client: self.client.clone(),
            identity: who.identity,
            authtype: who.proven_by,
            peer: who.peer.to_string(),
            version: who.version.to_owned(),
            connected_since: who.connected.map(|(_, at)| at.to_string()),
            rate,
            received,
            last_event: (received > 0).then(|| Timestamp(self.last_event.value() as i64).to_string()),
            refused: self.refused.value(),
            last_refusal: self.last_refusal.lock().clone().map(|last| DeviceRefusal {
                at: last.at.to_string(),
                address: last.address.to_string(),
                what: shown(&last.what).into_owned(),
                why: shown(&last.why).into_owned(),
            }),
            dead: self.dead.value(),
            duplicates: self.redelivered.value() + duplicates(&self.client),
            clock_offset: (offset != UNSEEN).then(|| offset as f64 / 1e6),
        }
    }
}
