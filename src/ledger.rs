//! The ledger: compares the accounts of every event with the cursors, and publishes reports and losses.
//!
//! Promise: central receives, for each stream, counts and a digest of all accepted events, with the time up to which they
//! are complete. Losses are announced once their record is durable. An imbalance is reported as an error.
//! Invariants:
//! - a report is durable before its position: after a crash it is repeated under the same id;
//! - a report covers only streams with new events in the period, and never the stream of the ledger itself.
//!
//! Not here: the accounts (`journal`), their display (`admin`).

use crate::api::{Balance, StreamAccount};
use crate::clock;
use crate::contract::{GatewayNames, Publication};
use crate::event::Timestamp;
use crate::ingest::dead::fates::DeadLetterStatuses;
use crate::journal::{GatewayEvent, Journal, JournalError, Loss, Notes, Outcome, SubmitError};
use crate::local::{Enough, EventRef, Feed};
use crate::runtime::spawn_blocking;
use crate::shutdown::Shutdown;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

const LEDGER: &str = "gateway.ledger";
/// Stream of the loss announcements.
const LOSS: &str = "gateway.loss";
/// Lane of both streams: the events are small and should arrive soon.
const LANE: &str = "standard";
const EXPIRY_INTERVAL: Duration = Duration::from_secs(1);
/// Interval of checks for pending losses, such as those of an earlier start or after a read error. New losses
/// wake the ledger at once.
const LOSS_CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// Name of the note with the position up to which streams are reported.
const POSITION_NOTE: &str = "from";

/// Returns the balance of every lane and destination.
pub fn balances(journal: &Journal, fates: &DeadLetterStatuses) -> Vec<Balance> {
    let mut list = Vec::new();
    for lane in journal.lanes() {
        for destination in lane.destinations() {
            list.push(balance(lane, &destination, fates));
        }
    }
    list
}

fn balance(lane: &crate::journal::Lane, destination: &str, fates: &DeadLetterStatuses) -> Balance {
    let (accounts, unsettled) = lane.accounts(destination);
    let mut balance = Balance::default();
    let mut open: i64 = 0;
    for (stream, account, owed) in accounts {
        let settled = account.settled();
        open += owed as i64 - settled as i64;
        let count = |outcome| account.count(outcome);
        // The dead-letter status has later deliveries and discards of dead letters. After a crash the lane may have
        // delivered the event too: then it is no dead letter, and counts once.
        let mut resolved = fates.resolved(destination, &stream);
        resolved.delivered = resolved.delivered.min(count(Outcome::Dead));
        resolved.discarded = resolved.discarded.min(count(Outcome::Dead) - resolved.delivered);
        balance.rows.push(StreamAccount {
            lane: lane.name.clone(),
            destination: destination.to_owned(),
            stream,
            owed: owed.saturating_sub(count(Outcome::NotOwed)),
            delivered: count(Outcome::Delivered) + resolved.delivered,
            queued: owed.saturating_sub(settled),
            dead: count(Outcome::Dead).saturating_sub(resolved.delivered + resolved.discarded),
            expired: count(Outcome::Expired),
            shed: count(Outcome::Shed),
            discarded: count(Outcome::Discarded) + resolved.discarded,
            set_aside: count(Outcome::SetAside),
        });
    }
    balance.difference = open - unsettled as i64;
    balance
}

/// The events that a stream accepted in one report period.
struct Period {
    first: u64,
    last: u64,
    count: u64,
    from: Timestamp,
    to: Timestamp,
    digest: Sha256,
}

/// Publishes reports, announces losses, and expires events.
pub struct Ledger {
    journal: Arc<Journal>,
    fates: Arc<DeadLetterStatuses>,
    around: GatewayNames,
    every: Duration,
    notes: Notes,
    periods: BTreeMap<String, Period>,
    numbers: (u32, u32),
    line: Vec<u8>,
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ledger")
    }
}

impl Ledger {
    /// Opens the ledger, which publishes reports at the interval `every`. Blocks the thread.
    pub fn open(
        journal: Arc<Journal>,
        fates: Arc<DeadLetterStatuses>,
        around: GatewayNames,
        every: Duration,
    ) -> Result<Self, JournalError> {
        let publish = |stream| journal.publish(&Publication::own(stream, &around, LANE));
        let numbers = (publish(LEDGER)?, publish(LOSS)?);
        let notes = journal.notes("ledger");
        Ok(Self { journal, fates, around, every, notes, periods: BTreeMap::new(), numbers, line: Vec::new() })
    }

    /// Runs until the shutdown, which drops work in progress: the next start repeats it.
    pub async fn run(mut self, mut shutdown: Shutdown) {
        let journal = Arc::clone(&self.journal);
        // Expiry runs concurrently: the reports wait while their lane is full, and expiry may make the room.
        tokio::select! {
            () = shutdown.begun() => {}
            () = self.publish() => {}
            () = expire_by_age(&journal) => {}
        }
    }

    async fn publish(&mut self) {
        let mut feed = self.feed().await;
        let mut next_report = clock::instant() + self.every;
        let mut check = tokio::time::interval(LOSS_CHECK_INTERVAL);
        check.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let journal = Arc::clone(&self.journal);
        loop {
            tokio::select! {
                () = journal.lost() => self.announce().await,
                is_open = feed.ready() => {
                    if !is_open {
                        return;
                    }
                    feed.look(|passing| {
                        self.note(&passing);
                        Enough::No
                    });
                }
                _ = check.tick() => self.announce().await,
                () = tokio::time::sleep_until(next_report.into()) => {
                    let from = feed.positions().map(|(lane, next)| (lane.to_owned(), next)).collect();
                    self.report(from).await;
                    next_report = clock::instant() + self.every;
                }
            }
        }
    }

    /// Opens a feed that starts where the last reports ended.
    async fn feed(&self) -> Feed {
        let notes = self.notes.clone();
        let read = spawn_blocking(move || notes.read(POSITION_NOTE)).await;
        let noted = read.ok().and_then(Result::ok).flatten();
        let from: HashMap<String, u64> = noted.and_then(|bytes| postcard::from_bytes(&bytes).ok()).unwrap_or_default();
        Feed::new(&self.journal, |lane| from.get(&lane.name).copied())
    }

    fn note(&mut self, passing: &EventRef<'_>) {
        let stream = passing.published.renderer.stream_id();
        if passing.published.number == self.numbers.0 {
            return;
        }
        if !self.periods.contains_key(stream) {
            let period = Period {
                first: passing.sequence,
                last: passing.sequence,
                count: 0,
                from: passing.recorded,
                to: passing.recorded,
                digest: Sha256::new(),
            };
            self.periods.insert(stream.to_owned(), period);
        }
        let Some(period) = self.periods.get_mut(stream) else { return };
        period.last = passing.sequence;
        period.to = passing.recorded;
        period.count += 1;
        self.line.clear();
        passing.record.id.push_text(&mut self.line);
        self.line.push(b'\n');
        period.digest.update(&self.line);
    }

    /// Publishes a report for each stream with new events: counts, digest and accounts.
    async fn report(&mut self, from: HashMap<String, u64>) {
        let rows: Vec<StreamAccount> =
            balances(&self.journal, &self.fates).into_iter().flat_map(|balance| balance.rows).collect();
        for (stream, period) in std::mem::take(&mut self.periods) {
            let digest: String = period.digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
            let accounts: Vec<&StreamAccount> = rows.iter().filter(|row| row.stream == stream).collect();
            let data = serde_json::json!({
                "stream": stream,
                "from": period.from.to_string(),
                "to": period.to.to_string(),
                "first": period.first,
                "last": period.last,
                "count": period.count,
                "digest": digest,
                "watermark": { "time": period.to.to_string(), "sequence": period.last },
                "accounts": accounts,
            });
            let id = format!("ledger-{stream}-{}-{}", period.first, period.last);
            if self.append(self.numbers.0, &id, "ledger", &data).await.is_err() {
                return;
            }
        }
        let notes = self.notes.clone();
        let written =
            spawn_blocking(move || notes.write(vec![(POSITION_NOTE.into(), postcard::to_stdvec(&from).ok())]));
        if let Ok(Err(error)) = written.await {
            tracing::warn!(%error, "could not save the position of the ledger; a restart will repeat reports");
        }
    }

    async fn announce(&self) {
        let journal = Arc::clone(&self.journal);
        let waiting = match spawn_blocking(move || journal.losses()).await {
            Ok(Ok(waiting)) => waiting,
            Ok(Err(error)) => return tracing::warn!(%error, "could not read the pending losses; will retry"),
            Err(_) => return,
        };
        for loss in waiting {
            if self.announce_one(&loss).await.is_err() {
                return;
            }
            let journal = Arc::clone(&self.journal);
            let forgotten = spawn_blocking(move || journal.forget_loss(&loss)).await;
            if let Ok(Err(error)) = forgotten {
                return tracing::warn!(%error, "could not mark a loss as announced; it will be announced again under the same id");
            }
        }
    }

    async fn announce_one(&self, loss: &Loss) -> Result<(), SubmitError> {
        let data = serde_json::to_value(loss).unwrap_or_default();
        self.append(self.numbers.1, &format!("loss-{}", loss.name()), "loss", &data).await
    }

    /// Appends an event of the gateway itself to its stream.
    async fn append(
        &self,
        publication: u32,
        id: &str,
        device: &str,
        data: &serde_json::Value,
    ) -> Result<(), SubmitError> {
        let event = GatewayEvent { lane: LANE, publication, id, device, gateway: &self.around.gateway };
        self.journal.append_gateway_event(event, data).await
    }
}

/// Expires events regularly while the clock is trusted.
async fn expire_by_age(journal: &Arc<Journal>) {
    let mut expiry = tokio::time::interval(EXPIRY_INTERVAL);
    expiry.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        expiry.tick().await;
        if let Some(now) = clock::steady() {
            expire(journal, now.into()).await;
        }
    }
}

/// Expires events of all lanes.
async fn expire(journal: &Arc<Journal>, now: Timestamp) {
    for lane in journal.lanes() {
        let ours = Arc::clone(lane);
        match spawn_blocking(move || ours.expire(now)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(lane = %lane.name, %error, "could not expire events; will retry"),
            Err(_) => return,
        }
    }
}
