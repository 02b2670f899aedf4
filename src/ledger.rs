//! The ledger: what became of every event, compared, published and announced.
//!
//! Promise: what enters a stream is told to central by number and digest, with the moment up to which it is
//! complete; what is given up is told too, once it is durable that it was. An imbalance is an error.
//! Invariants:
//! - events first, positions after: a crash repeats a report under the same id;
//! - a stream is reported only for a period in which something entered it, and never the ledger's own.
//!
//! Not here: the accounts themselves (`journal`), who looks at them (`admin`).

use crate::clock;
use crate::contract::{Publication, Surroundings};
use crate::event::Timestamp;
use crate::ingest::dead::fates::Fates;
use crate::journal::{Journal, JournalError, Loss, NotTaken, Notes, Outcome, OwnEvent};
use crate::local::{Enough, EventRef, Feed};
use crate::runtime::spawn_blocking;
use crate::shutdown::Shutdown;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

/// Stream of the reports.
const LEDGER: &str = "gateway.ledger";
/// Stream of the announcements.
const LOSS: &str = "gateway.loss";
/// Lane of both: they are small, and are wanted soon.
const LANE: &str = "standard";
/// Ages are looked at this often.
const AGES_EVERY: Duration = Duration::from_secs(1);
/// Losses ring when they come; those of an earlier start, and those that could not be read, are looked for this often.
const LOSSES_EVERY: Duration = Duration::from_secs(5);
/// Name of the note that says up to where streams are reported.
const FROM: &str = "from";

/// What the accounts of one stream with one destination say.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// The lane.
    pub lane: String,
    /// The destination.
    pub destination: String,
    /// Stream with its major version; `unmatched` where a damaged file hides whose events it held.
    pub stream: String,
    /// Events that it is owed.
    pub owed: u64,
    /// Acknowledged by central.
    pub delivered: u64,
    /// Still in the journal, and to be sent.
    pub queued: u64,
    /// Dead letters.
    pub dead: u64,
    /// Too old.
    pub expired: u64,
    /// Given up for want of room.
    pub shed: u64,
    /// Given up by a person.
    pub discarded: u64,
    /// In files that are damaged.
    pub set_aside: u64,
}

/// The ledger of one lane with one destination, compared with its cursor.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Balance {
    /// The rows, one for each stream.
    pub rows: Vec<Row>,
    /// Events that the accounts have too many (above 0) or too few; 0 when it balances.
    pub difference: i64,
}

impl Balance {
    /// Where it does not balance, and by how much.
    pub fn imbalance(&self) -> Option<String> {
        let (lane, to) = self.rows.first().map_or(("", ""), |row| (row.lane.as_str(), row.destination.as_str()));
        let difference = self.difference;
        (difference != 0).then(|| format!("lane {lane} for {to} does not balance, by {difference} events"))
    }
}

/// The accounts of every lane and destination.
pub fn balances(journal: &Journal, fates: &Fates) -> Vec<Balance> {
    let mut list = Vec::new();
    for lane in journal.lanes() {
        for destination in lane.destinations() {
            list.push(balance(lane, &destination, fates));
        }
    }
    list
}

fn balance(lane: &crate::journal::Lane, destination: &str, fates: &Fates) -> Balance {
    let (accounts, unsettled) = lane.accounts(destination);
    let mut balance = Balance::default();
    let mut open: i64 = 0;
    for (stream, account, owed) in accounts {
        let settled = account.settled();
        open += owed as i64 - settled as i64;
        let count = |outcome| account.count(outcome);
        // What became of dead letters afterwards is noted with their fates. After a crash an event may have been
        // delivered by the lane as well: it is no dead letter then, and counts once.
        let mut resolved = fates.resolved(destination, &stream);
        resolved.delivered = resolved.delivered.min(count(Outcome::Dead));
        resolved.discarded = resolved.discarded.min(count(Outcome::Dead) - resolved.delivered);
        balance.rows.push(Row {
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

/// What entered a stream in a period.
struct Period {
    first: u64,
    last: u64,
    count: u64,
    from: Timestamp,
    to: Timestamp,
    digest: Sha256,
}

/// Publishes the ledger, announces losses, and lets events expire.
pub struct Ledger {
    journal: Arc<Journal>,
    fates: Arc<Fates>,
    around: Surroundings,
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
    /// A ledger that is published `every` so often. Blocks the thread.
    pub fn open(
        journal: Arc<Journal>,
        fates: Arc<Fates>,
        around: Surroundings,
        every: Duration,
    ) -> Result<Self, JournalError> {
        let publish = |stream| journal.publish(&Publication::own(stream, &around, LANE));
        let numbers = (publish(LEDGER)?, publish(LOSS)?);
        let notes = journal.notes("ledger");
        Ok(Self { journal, fates, around, every, notes, periods: BTreeMap::new(), numbers, line: Vec::new() })
    }

    /// Works until the shutdown, which waits for nothing here: what is cut short is done again at the next start.
    pub async fn run(mut self, mut shutdown: Shutdown) {
        let journal = Arc::clone(&self.journal);
        // Apart from the rest, which waits where its lane is full: what expires may be what makes room.
        tokio::select! {
            () = shutdown.begun() => {}
            () = self.work() => {}
            () = keep_ages(&journal) => {}
        }
    }

    async fn work(&mut self) {
        let mut feed = self.feed().await;
        let mut next_report = clock::instant() + self.every;
        let mut look = tokio::time::interval(LOSSES_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
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
                _ = look.tick() => self.announce().await,
                () = tokio::time::sleep_until(next_report.into()) => {
                    let from = feed.positions().map(|(lane, next)| (lane.to_owned(), next)).collect();
                    self.report(from).await;
                    next_report = clock::instant() + self.every;
                }
            }
        }
    }

    /// A feed from where the last reports ended.
    async fn feed(&self) -> Feed {
        let notes = self.notes.clone();
        let read = spawn_blocking(move || notes.read(FROM)).await;
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

    /// Publishes what entered each stream since the last time, and how its accounts stand.
    async fn report(&mut self, from: HashMap<String, u64>) {
        let rows: Vec<Row> =
            balances(&self.journal, &self.fates).into_iter().flat_map(|balance| balance.rows).collect();
        for (stream, period) in std::mem::take(&mut self.periods) {
            let digest: String = period.digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
            let accounts: Vec<&Row> = rows.iter().filter(|row| row.stream == stream).collect();
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
        let written = spawn_blocking(move || notes.write(vec![(FROM.into(), postcard::to_stdvec(&from).ok())]));
        if let Ok(Err(error)) = written.await {
            tracing::warn!(%error, "how far the ledger is published cannot be noted; a restart repeats reports");
        }
    }

    /// Announces the losses that wait.
    async fn announce(&self) {
        let journal = Arc::clone(&self.journal);
        let waiting = match spawn_blocking(move || journal.losses()).await {
            Ok(Ok(waiting)) => waiting,
            Ok(Err(error)) => return tracing::warn!(%error, "losses cannot be read, and are announced later"),
            Err(_) => return,
        };
        for loss in waiting {
            if self.tell(&loss).await.is_err() {
                return;
            }
            let journal = Arc::clone(&self.journal);
            let forgotten = spawn_blocking(move || journal.forget_loss(&loss)).await;
            if let Ok(Err(error)) = forgotten {
                return tracing::warn!(%error, "an announced loss cannot be ticked off, and will be announced again");
            }
        }
    }

    async fn tell(&self, loss: &Loss) -> Result<(), NotTaken> {
        let data = serde_json::to_value(loss).unwrap_or_default();
        self.append(self.numbers.1, &format!("loss-{}", loss.name()), "loss", &data).await
    }

    /// Takes an event of the gateway's own into its stream.
    async fn append(&self, publication: u32, id: &str, device: &str, data: &serde_json::Value) -> Result<(), NotTaken> {
        let event = OwnEvent { lane: LANE, publication, id, device, gateway: &self.around.gateway };
        self.journal.append_own(event, data).await
    }
}

/// Lets events expire while the clock can be believed.
async fn keep_ages(journal: &Arc<Journal>) {
    let mut ages = tokio::time::interval(AGES_EVERY);
    ages.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ages.tick().await;
        if let Some(now) = clock::steady() {
            expire(journal, now.into()).await;
        }
    }
}

/// Lets events expire, a part at a time.
async fn expire(journal: &Arc<Journal>, now: Timestamp) {
    for lane in journal.lanes() {
        let ours = Arc::clone(lane);
        match spawn_blocking(move || ours.expire(now)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(lane = %lane.name, %error, "ages cannot be looked at; nothing expires"),
            Err(_) => return,
        }
    }
}
