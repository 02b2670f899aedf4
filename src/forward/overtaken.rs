//! Announces the events that reached central after later ones of their key, because central had refused them for now.
//!
//! The announcement is the event `gateway.order`: for each stream the range of sequences in which the order of a key may
//! be broken, and how many events are concerned. What is not yet announced when the process dies stays in the log only:
//! the sequences of a key tell the same.

use super::key_order::OvertakenEvents;
use super::stats::Stats;
use crate::contract::{GatewayNames, Publication};
use crate::event::Id;
use crate::journal::{GatewayEvent, Journal};
use crate::runtime::spawn_blocking;
use crate::shutdown::Shutdown;
use std::sync::Arc;
use std::time::Duration;

const STREAM: &str = "gateway.order";
/// Lane of the stream: its events are few and small.
const LANE: &str = "standard";
/// Interval of the announcements: the overtaken events of this time are in one.
const COLLECT: Duration = Duration::from_secs(2);

/// The links of a destination: the lane and the figures of each.
#[derive(Clone, Debug)]
pub struct OrderSpec {
    pub journal: Arc<Journal>,
    pub around: GatewayNames,
    pub destination: String,
    pub links: Vec<(String, Arc<Stats>)>,
}

/// Announces the overtaken events of a destination until shutdown, and what is left then.
pub async fn run(spec: OrderSpec, mut shutdown: Shutdown) {
    while !shutdown.has_begun() {
        tokio::select! {
            () = shutdown.begun() => {}
            () = tokio::time::sleep(COLLECT) => {}
        }
        announce(&spec, &mut shutdown).await;
    }
}

async fn announce(spec: &OrderSpec, shutdown: &mut Shutdown) {
    for (lane, stats) in &spec.links {
        let events = stats.unannounced.take();
        if events.is_empty() {
            continue;
        }
        let is_announced = match shutdown.has_begun() {
            false => tokio::select! {
                () = shutdown.begun() => false,
                is_announced = announce_one(spec, lane, &events) => is_announced,
            },
            // The lane may be full: the shutdown does not wait for that.
            true => tokio::time::timeout(COLLECT, announce_one(spec, lane, &events)).await.unwrap_or(false),
        };
        if !is_announced {
            tracing::warn!(lane = %lane, destination = %spec.destination, ?events, "could not announce events that others of their key have overtaken");
        }
    }
}

async fn announce_one(spec: &OrderSpec, lane: &str, events: &[OvertakenEvents]) -> bool {
    let (journal, around) = (Arc::clone(&spec.journal), spec.around.clone());
    let published = spawn_blocking(move || journal.publish(&Publication::own(STREAM, &around, LANE))).await;
    let Ok(Ok(publication)) = published else { return false };
    let known = spec.journal.publications();
    let name = |stream: u32| known.iter().find(|one| one.stream == stream).map(|one| one.renderer.stream_id());
    let rows = |one: &OvertakenEvents| {
        let OvertakenEvents { stream, first, last, count } = *one;
        Some(serde_json::json!({ "stream": name(stream)?, "count": count, "first": first, "last": last }))
    };
    let data = serde_json::json!({
        "cause": "refused",
        "lane": lane,
        "destination": spec.destination,
        "streams": events.iter().filter_map(rows).collect::<Vec<_>>(),
        "count": events.iter().map(|one| one.count).sum::<u64>(),
    });
    let id = Id::mint().to_string();
    let event = GatewayEvent { lane: LANE, publication, id: &id, device: "order", gateway: &spec.around.gateway };
    spec.journal.append_gateway_event(event, &data).await.is_ok()
}
