//! Clients that were refused before they had a session: a wrong password, a certificate, a protocol.
//!
//! Promise: at most [`ROWS_MAX`] rows of less than a kilobyte, of which one origin has at most [`ROWS_PER_ORIGIN_MAX`], so
//! that one attacker hides no other client. A client that logs in leaves the list.
//! Not here: the counts and events of refusals (`security`), which are complete.

use crate::api::RefusedClient;
use crate::clock;
use crate::contract::Sender;
use crate::event::{Timestamp, text};
use crate::origin::Origin;
use crate::telemetry::shown;
use parking_lot::Mutex;
use std::net::SocketAddr;

/// All devices of a hall that connect with an old password fit twice.
const ROWS_MAX: usize = 64;
const ROWS_PER_ORIGIN_MAX: usize = 8;
/// Bytes that are kept of a name that a peer chose.
const NAME_BYTES_MAX: usize = 128;
/// Bytes that are kept of the reason.
const WHY_BYTES_MAX: usize = 256;

#[derive(Debug)]
struct Row {
    origin: Origin,
    client: String,
    user: String,
    peer: SocketAddr,
    why: String,
    count: u64,
    at: Timestamp,
}

/// The newest refused clients of one listener.
#[derive(Debug, Default)]
pub(super) struct RefusedClients(Mutex<Vec<Row>>);

impl RefusedClients {
    /// Counts a refused client. An unknown one has an empty name.
    pub(super) fn note(&self, peer: SocketAddr, sender: Sender<'_>, why: &str) {
        let at = Timestamp::from(clock::wall());
        let origin = Origin::of(peer.ip());
        let (client, user) = (text::start(sender.client, NAME_BYTES_MAX), text::start(sender.user, NAME_BYTES_MAX));
        let why = text::start(why, WHY_BYTES_MAX);
        let mut rows = self.0.lock();
        let known = rows.iter_mut().find(|row| row.origin == origin && row.client == client);
        if let Some(row) = known {
            row.count += 1;
            (row.at, row.peer) = (at, peer);
            // The strings of an unchanged refusal are kept: a client may try again for days.
            for (kept, new) in [(&mut row.user, user), (&mut row.why, why)] {
                if kept != new {
                    new.clone_into(kept);
                }
            }
            return;
        }
        let of_origin = rows.iter().filter(|row| row.origin == origin).count();
        let oldest = |is_candidate: &dyn Fn(&Row) -> bool| {
            let candidates = rows.iter().enumerate().filter(|(_, row)| is_candidate(row));
            candidates.min_by_key(|(_, row)| row.at).map(|(index, _)| index)
        };
        let replaced = match () {
            () if of_origin >= ROWS_PER_ORIGIN_MAX => oldest(&|row| row.origin == origin),
            () if rows.len() >= ROWS_MAX => oldest(&|_| true),
            () => None,
        };
        if let Some(index) = replaced {
            rows.swap_remove(index);
        }
        let [client, user, why] = [client, user, why].map(str::to_owned);
        rows.push(Row { origin, client, user, peer, why, count: 1, at });
    }

    /// Removes a client that has logged in.
    pub(super) fn forget(&self, peer: SocketAddr, client: &str) {
        let mut rows = self.0.lock();
        if !rows.is_empty() {
            let (origin, client) = (Origin::of(peer.ip()), text::start(client, NAME_BYTES_MAX));
            rows.retain(|row| row.origin != origin || row.client != client);
        }
    }

    /// Returns the refused clients of listener `source`, the newest first.
    pub(super) fn list(&self, source: &str) -> Vec<RefusedClient> {
        let mut rows = self.0.lock();
        rows.sort_by_key(|row| std::cmp::Reverse(row.at));
        let refused = |row: &Row| RefusedClient {
            source: source.to_owned(),
            client: shown(&row.client).into_owned(),
            user: shown(&row.user).into_owned(),
            peer: row.peer.to_string(),
            why: shown(&row.why).into_owned(),
            count: row.count,
            at: row.at.to_string(),
        };
        rows.iter().map(refused).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sender(client: &str) -> Sender<'_> {
        Sender { client, user: "press", proven_by: None }
    }

    fn peer(host: u8, port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, host], port))
    }

    #[test]
    fn an_attacker_hides_no_other_client_and_takes_little_memory() {
        let refused = RefusedClients::default();
        refused.note(peer(1, 1), sender("press-1"), "user name or password is wrong");
        let long = "x".repeat(60_000);
        for number in 0..1000 {
            let client = format!("{number}{long}");
            refused.note(peer(66, number), Sender { client: &client, user: &long, proven_by: None }, &long);
        }
        let list = refused.list("shopfloor");
        assert_eq!(list.len(), 1 + ROWS_PER_ORIGIN_MAX);
        assert_eq!(list.last().map(|row| row.client.as_str()), Some("press-1"));
        assert!(list.iter().all(|row| row.client.len() + row.user.len() + row.why.len() <= 512));
        for host in 100..=255 {
            refused.note(peer(host, 1), sender("press-2"), "wrong");
        }
        assert_eq!(refused.list("shopfloor").len(), ROWS_MAX);
    }

    #[test]
    fn a_client_is_counted_until_it_logs_in() {
        let refused = RefusedClients::default();
        for port in 1..=3 {
            refused.note(peer(1, port), sender("press-1"), "user name or password is wrong");
        }
        refused.note(peer(1, 4), sender("press-2"), "no rights");
        let list = refused.list("shopfloor");
        let row = list.iter().find(|row| row.client == "press-1").expect("a row");
        assert_eq!((row.count, row.peer.as_str(), row.user.as_str()), (3, "10.0.0.1:3", "press"));
        refused.forget(peer(1, 5), "press-1");
        let list = refused.list("shopfloor");
        assert_eq!(list.iter().map(|row| row.client.as_str()).collect::<Vec<_>>(), ["press-2"]);
    }
}
