//! The ledger: the accounts of every event.

use serde::{Deserialize, Serialize};

/// The accounts of one stream for one destination, in events. Ledger events contain it as well.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StreamAccount {
    pub lane: String,
    pub destination: String,
    /// Stream with its major version; `unmatched` for events of a damaged file whose stream is unknown.
    pub stream: String,
    /// Events accepted for the destination; the sum of the other accounts.
    pub owed: u64,
    /// Events that the destination acknowledged.
    pub delivered: u64,
    /// Events in the journal that are not settled yet.
    pub queued: u64,
    /// Events that are dead letters.
    pub dead: u64,
    /// Events deleted because of their age.
    pub expired: u64,
    /// Events shed for lack of room.
    pub shed: u64,
    /// Events discarded by an operator.
    pub discarded: u64,
    /// Events lost in damaged files.
    pub set_aside: u64,
}

/// The accounts of one lane for one destination, compared with its cursor.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Balance {
    pub rows: Vec<StreamAccount>,
    /// Excess (positive) or lack (negative) of events in the accounts; 0 if they balance.
    pub difference: i64,
}

impl Balance {
    /// Returns a description of the imbalance; `None` if the accounts balance.
    pub fn imbalance(&self) -> Option<String> {
        let (lane, to) = self.rows.first().map_or(("", ""), |row| (row.lane.as_str(), row.destination.as_str()));
        let difference = self.difference;
        (difference != 0).then(|| format!("lane {lane} for {to} does not balance, by {difference} events"))
    }
}
