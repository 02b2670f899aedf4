//! The outlet: how receipts and commands to devices enter the journal.
//!
//! Promise: when [`Outlet::hand_in`] returns, every record is durable. A record that a start hands in again has the same
//! id and bytes, and the journal recognises the repeat within its dedupe window.

use super::message::Outgoing;
use super::row::Request;
use crate::clock;
use crate::contract::{CommandContract, GatewayNames, Publication, RECEIPTS};
use crate::event::{Attribute, Content, Id, Record, Timestamp};
use crate::journal::{Journal, Lane, SubmitError, Ticket, Waiter};
use serde::Serialize;
use serde_json::value::RawValue;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// Lane of the receipts.
const LANE: &str = "critical";
/// How far back a repeat is recognised.
const DEDUPE: Duration = Duration::from_secs(86_400);

/// Where records of one publication go.
#[derive(Clone, Debug)]
struct Place {
    publication: u32,
    lane: Arc<Lane>,
}

#[derive(Debug)]
pub(super) struct Outlet {
    receipts: Place,
    /// By contract, major version and sender.
    to_devices: HashMap<(String, u64, String), Place>,
}

impl Outlet {
    /// Publishes the streams of receipts and commands. Blocks the thread.
    pub(super) fn open(
        journal: &Journal,
        around: &GatewayNames,
        contracts: &[Arc<CommandContract>],
    ) -> Result<Self, String> {
        let place = |publication: Publication| -> Result<Place, String> {
            let lane = journal.lane(&publication.lane);
            let lane = lane.ok_or_else(|| format!("there is no lane \"{}\" for commands", publication.lane))?;
            let number = journal.publish(&publication).map_err(|error| error.to_string())?;
            Ok(Place { publication: number, lane: Arc::clone(lane) })
        };
        let own = Publication { key: "{target}".into(), ..Publication::own(RECEIPTS, around, LANE) };
        let mut to_devices = HashMap::new();
        for contract in contracts {
            for sender in &contract.from {
                let key = (contract.name.clone(), contract.major(), sender.clone());
                to_devices.insert(key, place(contract.publication(sender, around))?);
            }
        }
        Ok(Self { receipts: place(own)?, to_devices })
    }

    /// Whether this journal has had commands before.
    pub(super) fn has_been_used(journal: &Journal) -> bool {
        journal.publications().iter().any(|known| known.publication.stream == RECEIPTS)
    }

    /// Hands records in, in order, and waits until all are durable.
    pub(super) async fn hand_in(&self, outgoing: &[Outgoing]) -> Result<(), SubmitError> {
        let mut waiter = Waiter::default();
        let mut tickets = Vec::with_capacity(outgoing.len());
        for record in outgoing {
            match record {
                Outgoing::Receipt { target, receipt } => {
                    let payload = receipt.payload.get().as_bytes();
                    let record = self.record(&self.receipts, (&receipt.id, target), receipt.time, payload);
                    tickets.push((&self.receipts.lane, submit(&self.receipts.lane, &record, &mut waiter).await?));
                }
                Outgoing::ToDevice { name, request, expires } => {
                    let key = (request.contract.clone(), request.major, request.sender.clone());
                    // A sender that the contract has lost: the command becomes unknown when its time is over.
                    let Some(place) = self.to_devices.get(&key) else { continue };
                    let payload = payload_of(name, request);
                    let mut record =
                        self.record(place, (name, &request.target), Timestamp::from(clock::wall()), &payload);
                    record.attributes.push(Attribute::Expires(*expires));
                    tickets.push((&place.lane, submit(&place.lane, &record, &mut waiter).await?));
                }
            }
        }
        for (lane, ticket) in tickets {
            // The rows acknowledge nothing by it: they only stop handing the record in.
            let _receipt = lane.await_receipt(ticket, &waiter).await?;
        }
        Ok(())
    }

    fn record<'r>(
        &self,
        place: &Place,
        (id, key): (&'r str, &'r str),
        time: Timestamp,
        payload: &'r [u8],
    ) -> Record<'r> {
        let trust = (!clock::is_trusted()).then_some(Attribute::ClockStatus("untrusted"));
        Record {
            publication: place.publication,
            id: Id::Text(id),
            time,
            origin: ORIGIN,
            key,
            content: Content::Json,
            attributes: trust.into_iter().collect(),
            payload,
        }
    }
}

/// Origin of the records: the part of the gateway that makes them.
const ORIGIN: &str = "gateway/commands";

/// Payload of a command to a device. It depends on the command alone.
#[derive(Serialize)]
struct ToDevice<'r> {
    /// Name of the command, which its confirmation repeats.
    command: &'r str,
    r#do: &'r str,
    with: &'r RawValue,
    sender: &'r str,
    source: &'r str,
    id: &'r str,
}

fn payload_of(name: &str, request: &Request) -> Vec<u8> {
    let payload = ToDevice {
        command: name,
        r#do: &request.action,
        with: &request.with,
        sender: &request.sender,
        source: &request.source,
        id: &request.id,
    };
    serde_json::to_vec(&payload).unwrap_or_default()
}

async fn submit(lane: &Lane, record: &Record<'_>, waiter: &mut Waiter) -> Result<Ticket, SubmitError> {
    loop {
        match lane.submit(record, Some(DEDUPE), waiter) {
            Err(SubmitError::NoRoom) => lane.room().await,
            submitted => return submitted,
        }
    }
}
