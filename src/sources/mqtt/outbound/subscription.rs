//! A subscription of a client, and a publish in flight to it.

use super::super::shared_subscription::Group;
use crate::event::Timestamp;
use crate::local::JournalPosition;
use crate::mqtt::Protocol;
use crate::mqtt::connect::NEVER_EXPIRES;
use crate::mqtt::topic::{Filter, split_share};
use std::sync::Arc;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// The filter as the client wrote it, with `$share/` and the group.
    pub filter: String,
    /// The granted QoS: 0 or 1.
    pub qos: u8,
    /// The subscription identifier of its publishes, in MQTT 5.
    pub id: Option<u32>,
}

#[derive(Debug)]
pub(super) struct ActiveSubscription {
    /// Distinguishes it from all other subscriptions of the connection.
    pub serial: u32,
    pub subscription: Subscription,
    pub filter: Filter,
    /// The group of a shared subscription.
    pub group: Option<Arc<Group>>,
    /// Whether the client asked for its last values.
    pub is_told: bool,
}

/// Limits of a client's backlog.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub events: u64,
    /// Bytes of each lane's log, about.
    pub bytes: u64,
    pub age: Duration,
}

/// A publish that the client has not acknowledged.
#[derive(Clone, Debug)]
pub(super) struct InFlight {
    pub packet_id: u16,
    pub delivery: Delivery,
}

#[derive(Clone, Debug)]
pub(super) enum Delivery {
    /// An event of the client's own feed.
    Event(JournalPosition),
    /// An event of a group; another member gets it if this client does not acknowledge it.
    Shared(Arc<Group>, JournalPosition),
    /// A last value, for the subscription of this serial.
    Last(u32),
}

/// Protocol version and limits that the client set in CONNECT.
#[derive(Clone, Copy, Debug)]
pub struct ClientOptions {
    pub protocol: Protocol,
    /// Publishes in flight (Receive Maximum).
    pub receive_maximum: u16,
    /// The largest packet (Maximum Packet Size).
    pub packet_bytes_max: usize,
}

impl Subscription {
    /// Bytes that a subscription takes, about: its filter as written, as matched and as stored, and for a shared one
    /// its group with a feed.
    pub fn bytes(&self) -> usize {
        const EACH: usize = 512;
        const OF_GROUP: usize = 4096;
        let is_shared = self.filter.starts_with("$share/");
        EACH + 4 * self.filter.len() + if is_shared { OF_GROUP } else { 0 }
    }
}

impl Limits {
    /// Returns the time of the oldest event that is sent.
    pub fn oldest(&self, now: Timestamp) -> Timestamp {
        if self.age.as_secs() < u64::from(NEVER_EXPIRES) { now.before(self.age) } else { Timestamp(i64::MIN) }
    }
}

impl ActiveSubscription {
    pub(super) fn new(subscription: Subscription, group: Option<Arc<Group>>, serial: u32) -> Option<Self> {
        let filter = Filter::parse(split_share(&subscription.filter)?.1)?;
        Some(Self { serial, subscription, filter, group, is_told: false })
    }
}
