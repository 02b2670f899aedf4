//! The stored form of sessions: one row per part, so that a change writes only the rows that it changes.
//!
//! | row | content |
//! |---|---|
//! | `session/{key}` | the head: number, expiry, party, open QoS 2 exchanges, progress of the subscriptions |
//! | `sub/{number}/{filter}` | one subscription |
//! | `will/{number}` | the will that waits for its delay |
//! | `group/{hash}` | position of a shared subscription, as long as a persistent session has it |
//! | `exchanges` | offsets up to which the heads contain all exchanges |

use super::super::outbound::{Progress, Subscription};
use super::session::Key;
use crate::event::Attribute;
use crate::ingest::{Durable, JournalError, StoredLog, Submitted};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{BTreeSet, HashMap};
use std::fmt::Write;

/// Prefix of the names of session heads.
pub(super) const HEADS: &str = "session/";
/// Prefix of the names of subscription rows.
pub(super) const SUBSCRIPTIONS: &str = "sub/";
/// Prefix of the names of will rows.
pub(super) const WILLS: &str = "will/";
/// Name of the row with the offsets up to which the heads contain all exchanges.
pub(super) const EXCHANGES: &str = "exchanges";
/// Largest size of a head without its key and its party: 256 publishes in flight of 7 bytes each, the positions of
/// the lanes, and the overhead of a row.
const HEAD_BYTES: usize = 2 << 10;
/// Overhead of a row, about: measured on trees that are three quarters full.
const ROW_BYTES: usize = 48;
const FORMAT: u8 = 3;

/// The head of a session. The order of the fields is part of the stored format.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Head {
    format: u8,
    pub(super) number: u64,
    pub(super) expiry: u32,
    /// The party that the session is counted for.
    pub(super) share: String,
    /// Packet ids of open exchanges in their order, each as the difference to the one before.
    exchanges: Vec<u16>,
    pub(super) progress: Progress,
}

/// A subscription without its filter, which is in the name of the row.
#[derive(Debug, Serialize, Deserialize)]
struct Options {
    qos: u8,
    id: Option<u32>,
}

/// The state of a session in its head. It is in memory while the client is connected and until it is written.
#[derive(Clone, Debug, Default)]
pub(super) struct HeadContent {
    /// Open QoS 2 exchanges, with their place in the journal if they began since the start.
    pub(super) exchanges: HashMap<u16, Option<Submitted>>,
    pub(super) progress: Progress,
}

/// Identifies a shared subscription of a listener by a hash of 16 bytes, however long its filter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct GroupId([u8; 16]);

impl GroupId {
    /// Returns the group of a filter; `None` if the subscription is not shared.
    pub(super) fn of(source: &str, filter: &str) -> Option<Self> {
        filter.starts_with("$share/").then(|| {
            let hash = Sha256::new().chain_update(source).chain_update([0]).chain_update(filter).finalize();
            let mut id = [0; 16];
            id.copy_from_slice(&hash[..16]);
            Self(id)
        })
    }

    pub(super) fn row(self) -> String {
        self.0.iter().fold("group/".to_owned(), |mut name, byte| {
            // Writing to a string cannot fail.
            let _ = write!(name, "{byte:02x}");
            name
        })
    }
}

pub(super) fn head_row(key: &Key) -> String {
    format!("{HEADS}{}", key.as_str())
}

/// Returns the prefix of the subscription rows of a session.
pub(super) fn subscription_rows(number: u64) -> String {
    format!("{SUBSCRIPTIONS}{number:016x}/")
}

pub(super) fn will_row(number: u64) -> String {
    format!("{WILLS}{number:016x}")
}

/// Parses the name of a row: number and filter of a subscription, or the number of a will.
pub(super) fn parse_row<'a>(name: &'a str, kind: &str) -> Option<(u64, &'a str)> {
    let rest = name.strip_prefix(kind)?;
    let (number, filter) = rest.split_once('/').unwrap_or((rest, ""));
    Some((u64::from_str_radix(number, 16).ok()?, filter))
}

/// Bytes that a session without subscriptions counts for.
pub(super) fn head_bytes(key: &Key, share: &str) -> u64 {
    (HEAD_BYTES + key.as_str().len() + share.len()) as u64
}

/// Bytes that a subscription counts for.
pub(super) fn subscription_bytes(filter: &str) -> u64 {
    (SUBSCRIPTIONS.len() + 17 + filter.len() + ROW_BYTES) as u64
}

/// Bytes that a will of `stored` bytes counts for.
pub(crate) fn will_bytes(stored: usize) -> u64 {
    if stored == 0 { 0 } else { (WILLS.len() + 16 + stored + ROW_BYTES) as u64 }
}

/// Returns name and value of a subscription row.
pub(super) fn subscription(number: u64, subscription: &Subscription) -> (String, Vec<u8>) {
    let name = format!("{}{}", subscription_rows(number), subscription.filter);
    let options = Options { qos: subscription.qos, id: subscription.id };
    (name, postcard::to_stdvec(&options).unwrap_or_default())
}

/// Reads the row of a subscription.
pub(super) fn read_subscription(name: &str, value: &[u8]) -> Option<Subscription> {
    let (_, filter) = parse_row(name, SUBSCRIPTIONS)?;
    let options: Options = postcard::from_bytes(value).ok()?;
    Some(Subscription { filter: filter.to_owned(), qos: options.qos, id: options.id })
}

impl HeadContent {
    /// Returns the head with the exchanges that are on the disk up to `durable`, and whether these are all.
    pub(super) fn head(&self, number: u64, expiry: u32, share: &str, durable: &[Durable]) -> (Head, bool) {
        let on_disk = |taken: &Option<Submitted>| taken.is_none_or(|taken| taken.is_durable(durable));
        let ids: BTreeSet<u16> = self.exchanges.iter().filter(|(_, taken)| on_disk(taken)).map(|(id, _)| *id).collect();
        let is_all = ids.len() == self.exchanges.len();
        let mut before = 0;
        let exchanges = ids.into_iter().map(|id| id - std::mem::replace(&mut before, id)).collect();
        let progress = self.progress.clone();
        (Head { format: FORMAT, number, expiry, share: share.to_owned(), exchanges, progress }, is_all)
    }
}

impl Head {
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        postcard::from_bytes(bytes).ok().filter(|head: &Self| head.format == FORMAT)
    }

    pub(super) fn content(self) -> HeadContent {
        let mut before = 0_u16;
        let ids = self.exchanges.into_iter().map(|distance| {
            before = before.wrapping_add(distance);
            (before, None)
        });
        HeadContent { exchanges: ids.collect(), progress: self.progress }
    }
}

/// Reads the records of a log from `from` on and reports each exchange: session number and packet id.
pub(super) fn follow_exchanges(
    log: &StoredLog,
    from: Option<u64>,
    mut found: impl FnMut(u64, u16),
) -> Result<(), JournalError> {
    log.each(from.unwrap_or(log.end()), |record| {
        let exchange = record.attribute(|attribute| match attribute {
            Attribute::Exchange { session, packet_id } => Some((*session, *packet_id)),
            _ => None,
        });
        if let Some((session, packet_id)) = exchange {
            found(session, packet_id);
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_says_its_exchanges_in_few_bytes() {
        let exchanges = (0..1024_u16).map(|index| (index * 64 + 1, None)).collect();
        let content = HeadContent { exchanges, progress: Progress::default() };
        let (head, is_all) = content.head(7, 60, "n:press", &[]);
        let bytes = postcard::to_stdvec(&head).expect("encodes");
        assert!(is_all && bytes.len() < 1100, "{}", bytes.len());
        let read = Head::read(&bytes).expect("reads");
        assert_eq!((read.number, read.expiry), (7, 60));
        assert_eq!(read.content().exchanges, content.exchanges);
        assert!(Head::read(&[9; 40]).is_none() && Head::read(&[]).is_none());
    }

    #[test]
    fn a_row_says_whose_subscription_it_is() {
        for filter in ["a/b", "#", "$share/g/x/+", "/", "\u{10FFFF}/ä"] {
            let wanted = Subscription { filter: filter.into(), qos: 1, id: Some(9) };
            let (name, value) = subscription(u64::MAX, &wanted);
            assert_eq!(parse_row(&name, SUBSCRIPTIONS), Some((u64::MAX, filter)));
            assert_eq!(read_subscription(&name, &value), Some(wanted));
            assert!(name.starts_with(&subscription_rows(u64::MAX)));
        }
        assert_eq!(parse_row(&will_row(3), WILLS), Some((3, "")));
        assert_eq!(parse_row("will/none", WILLS), None);
        assert_eq!(GroupId::of("s", "a/b"), None);
        assert_ne!(GroupId::of("s", "$share/g/a"), GroupId::of("t", "$share/g/a"));
    }
}
