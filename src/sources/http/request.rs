//! One request, from its head to its answer.
//!
//! Promise: 202 is the answer only with a receipt for every event of the request. Every other answer says why, and
//! whether the client should retry.

use super::cloudevents::{self, ContentCoding, ContentMode, ParsedEvent};
use super::context::{Refused, ServerContext};
use super::refusal::{NO_MEMORY, Refusal, reason_of, with_body};
use super::request_memory::{MemoryShare, REQUEST_BYTES};
use crate::clock;
use crate::contract::SourceKind;
use crate::event::Timestamp;
use crate::http::{self, ConnectionSlot, Phase, Reply};
use crate::inflate;
use crate::ingest::{Accepted, Closed, Condition, EventMetadata, Producer, Publishing, Route, Submission};
use crate::memory::Permit;
use crate::origin::{Origin, Party};
use crate::runtime::spawn_blocking;
use crate::sources::identity::{Identity, Presented, check_name};
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{self, HeaderMap};
use hyper::{Method, Request, StatusCode};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::timeout_at;

/// `Retry-After` if the end of the cause is unknown: a full disk seldom has room again within a second.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// The peer of a connection, with the connection's slot and memory.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) address: SocketAddr,
    pub(super) certificate: Option<Presented>,
    /// The slot of the connection.
    pub(super) slot: ConnectionSlot<Origin>,
    /// Covers the memory of the connection.
    pub(super) permit: Permit,
}

fn accepted(events: &[Accepted]) -> Reply {
    let dead_letters = events.iter().filter(|event| event.is_dead).count();
    let text = format!(r#"{{"events":{},"dead_letters":{dead_letters}}}"#, events.len());
    with_body(StatusCode::ACCEPTED, "application/json", text)
}

pub(super) async fn answer(shared: &ServerContext, peer: &Peer, request: Request<Incoming>) -> Reply {
    let arrived = clock::instant();
    peer.slot.enter(Phase::Reading);
    let mut refused = Refused::default();
    let outcome = take(shared, peer, request, arrived, &mut refused).await;
    peer.slot.enter(Phase::Waiting);
    match outcome {
        Ok(events) => {
            let took = clock::instant().duration_since(arrived);
            shared.stats.ack.record(took, events.len() as u64);
            accepted(&events)
        }
        Err(refusal) => {
            // A client may have put a token in place of its name: do not log it.
            if shared.tokens.as_ref().is_some_and(|tokens| tokens.name(refused.client.as_bytes()).is_some()) {
                refused.client.clear();
            }
            refused.status = Some(refusal.status);
            shared.refuse(peer.address, &refused, reason_of(&refusal), refusal.title);
            refusal.into_response()
        }
    }
}

async fn take(
    shared: &ServerContext,
    peer: &Peer,
    request: Request<Incoming>,
    arrived: Instant,
    refused: &mut Refused,
) -> Result<Vec<Accepted>, Refusal> {
    let (head, body) = request.into_parts();
    let Some(written) = head.uri.path().strip_prefix("/events/").filter(|rest| !rest.is_empty() && !rest.contains('/'))
    else {
        let detail = "this path does not exist; events are accepted by POST /events/{source}".to_owned();
        return Err(Refusal::new(StatusCode::NOT_FOUND, "no such path", detail));
    };
    if head.method != Method::POST {
        let detail = format!("{} is not supported here; events are accepted by POST", head.method);
        let refusal = Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "no such method", detail);
        return Err(refusal.with(header::ALLOW, "POST"));
    }
    let source = source(written);
    refused.client = source.as_ref().ok().cloned().unwrap_or_default();
    let caller = identify(shared, peer, &head.headers, arrived)?;
    refused.user = caller.name().to_owned();
    refused.proven_by = caller.sender("").proven_by;
    if caller.proven().is_some() {
        peer.permit.leave();
    }
    let source = source?;
    if let Some(name) = caller.proven()
        && name != source
    {
        let detail = format!("\"{name}\" may post to /events/{name} only");
        return Err(Refusal::new(StatusCode::FORBIDDEN, "a caller posts for another source", detail));
    }
    if caller.proven().is_none() && shared.tokens.as_ref().is_some_and(|tokens| tokens.has(&source)) {
        let detail = format!("\"{source}\" has a token; only its holder may post for it");
        return Err(Refusal::new(StatusCode::FORBIDDEN, "an anonymous caller posts for a name with a token", detail));
    }
    let party = Party::of(caller.proven(), peer.address.ip());
    let payer = caller.proven().map_or_else(|| peer.address.ip().to_string(), str::to_owned);
    shared.rates.check(&payer, arrived).map_err(|wait| {
        let detail = format!("at most {} events per second are accepted", shared.config.events_per_second_max);
        Refusal::new(StatusCode::TOO_MANY_REQUESTS, "a caller is over its rate", detail).retry_after(wait)
    })?;
    shared.rates.charge(&payer, 1, arrived);
    let mode = ContentMode::of(&head.headers)?;
    let coding = ContentCoding::of(&head.headers)?;
    let (_room, body) = read(shared, (&payer, &party), (mode, coding), body).await?;
    peer.slot.enter(Phase::Answering);
    let events = cloudevents::events(mode, &head.headers, &body, shared.config.payload_max.0)?;
    shared.rates.charge(&payer, events.len().saturating_sub(1) as u64, arrived);
    shared.stats.received.add(events.len() as u64);
    hand_in(shared, &source, &caller, &events).await
}

fn identify(shared: &ServerContext, peer: &Peer, headers: &HeaderMap, now: Instant) -> Result<Identity, Refusal> {
    let denied = |title, detail: &str| {
        let refusal = Refusal::new(StatusCode::UNAUTHORIZED, title, detail.to_owned());
        Err(refusal.with(header::WWW_AUTHENTICATE, "Bearer"))
    };
    match (headers.get(header::AUTHORIZATION), &shared.tokens) {
        (Some(written), Some(tokens)) => {
            let written = written.as_bytes();
            let token = written.split_at_checked(7).filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer "));
            match token.and_then(|(_, token)| tokens.name(token.trim_ascii())) {
                Some(name) => Ok(Identity::Token { name: name.to_owned() }),
                None => {
                    limit_wrong_tokens(shared, peer, now)?;
                    denied("a token is wrong", "the token is unknown, or is no bearer token")
                }
            }
        }
        _ => match &peer.certificate {
            Some(presented) if !shared.is_trusted(presented) => denied(
                "a certificate is not trusted any more",
                "the revocation list of the certificate's authority has ended",
            ),
            Some(presented) => match presented.identity() {
                Ok(identity) => Ok(identity),
                Err(unnamed) => denied("a certificate names nobody", &unnamed.to_string()),
            },
            None if shared.config.accepts_anonymous() => Ok(Identity::Anonymous { claimed: String::new() }),
            None => denied("a caller shows no token", "a bearer token or a client certificate is needed"),
        },
    }
}

/// Counts a wrong token of an address. Over its rate limit the answer is 429 with `Retry-After`, and the connection is
/// closed. Valid tokens from the same address are not limited.
fn limit_wrong_tokens(shared: &ServerContext, peer: &Peer, now: Instant) -> Result<(), Refusal> {
    let origin = Origin::of(peer.address.ip());
    shared.wrong_tokens.check(&origin, now).map_err(|wait| {
        let detail = format!("too many wrong tokens came from {origin}");
        let refusal = Refusal::new(StatusCode::TOO_MANY_REQUESTS, "an address shows too many wrong tokens", detail);
        refusal.retry_after(wait).with(header::CONNECTION, "close")
    })?;
    shared.wrong_tokens.charge(&origin, 1, now);
    Ok(())
}

/// The `{source}` of a path.
fn source(written: &str) -> Result<String, Refusal> {
    let wrong = |detail| Refusal::new(StatusCode::BAD_REQUEST, "the path names no source", detail);
    let decoded = percent_encoding::percent_decode_str(written).decode_utf8();
    let decoded = decoded.map_err(|_| wrong("the source in the path is no UTF-8".to_owned()))?.into_owned();
    check_name(&decoded).map_err(|reason| wrong(format!("no source name: {reason}")))?;
    Ok(decoded)
}

/// Reads a body within its limits; also returns its share of the memory for requests.
async fn read<'s>(
    shared: &'s ServerContext,
    (payer, party): (&str, &Party),
    (mode, coding): (ContentMode, ContentCoding),
    body: Incoming,
) -> Result<((MemoryShare<'s>, Permit), Bytes), Refusal> {
    let bytes_max = match mode {
        ContentMode::Plain | ContentMode::Binary => shared.config.payload_max.0,
        ContentMode::Structured | ContentMode::Batch => shared.config.body_max.0,
    };
    let too_large = || {
        let detail = format!("the body is too large; at most {bytes_max} bytes are taken in this mode");
        Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "a body is too large", detail)
    };
    let expected = body.size_hint().upper().unwrap_or(bytes_max);
    if expected > bytes_max {
        return Err(too_large());
    }
    // A small compressed body may become a large one.
    let expected = if coding == ContentCoding::Gzip { bytes_max } else { expected };
    let share = expected + REQUEST_BYTES;
    let busy = || {
        let detail =
            "too many requests are in progress, of this caller or of all; nothing of this one was taken".to_owned();
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "too many requests are in progress", detail)
            .retry_after(RETRY_AFTER)
    };
    let taking = shared.request_memory.take(payer, share);
    let room = tokio::time::timeout(shared.config.answer_wait_max.0, taking).await;
    let room = room.map_err(|_| busy())?;
    // For the body and for the events made of it.
    let bytes = usize::try_from(expected.saturating_mul(2) + REQUEST_BYTES).unwrap_or(usize::MAX);
    let memory = shared.budget.permit_of(party, bytes).map_err(|error| {
        let detail = format!("{error}; nothing of this request was taken");
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, NO_MEMORY, detail).retry_after(RETRY_AFTER)
    })?;
    let limit = usize::try_from(bytes_max).unwrap_or(usize::MAX);
    let wait = shared.config.request_wait_max;
    match tokio::time::timeout(wait.0, http::read(body, limit)).await {
        Ok(Ok(body)) => Ok(((room, memory), decoded(coding, body, limit).await?)),
        Ok(Err(unread)) if http::is_too_large(&unread) => Err(too_large()),
        Ok(Err(_)) => {
            let detail = "the connection ended within the body".to_owned();
            Err(Refusal::new(StatusCode::BAD_REQUEST, "a body ended early", detail))
        }
        Err(_) => {
            let detail = format!("the body took longer than {wait}");
            Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, "a body came too slowly", detail)
                .with(header::CONNECTION, "close"))
        }
    }
}

/// Decompresses a body.
async fn decoded(coding: ContentCoding, body: Bytes, bytes_max: usize) -> Result<Bytes, Refusal> {
    if coding == ContentCoding::Identity {
        return Ok(body);
    }
    let inflated = spawn_blocking(move || inflate::gzip(&body, bytes_max)).await.map_err(|_| closing())?;
    inflated.map(Bytes::from).map_err(|error| {
        let status = match error {
            inflate::CannotInflate::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            inflate::CannotInflate::Damaged(_) => StatusCode::BAD_REQUEST,
        };
        Refusal::new(status, "a compressed body cannot be read", format!("the body is gzip, and {error}"))
    })
}

/// The routes of the events. Consecutive events mostly share a route.
fn routes(shared: &ServerContext, source: &str, caller: &Identity, events: &[ParsedEvent<'_>]) -> Vec<Arc<Route>> {
    let mut routes: Vec<Arc<Route>> = Vec::with_capacity(events.len());
    let mut before = None;
    for event in events {
        if let (Some(last), Some(cloud)) = (routes.last(), before)
            && cloud == &event.cloud
        {
            routes.push(Arc::clone(last));
            continue;
        }
        before = Some(&event.cloud);
        let sender = caller.sender(source);
        let route = |topic: &str| shared.ingest.route(SourceKind::Http, &shared.config.name, topic, sender);
        routes.push(Arc::new(match &event.cloud {
            None => route(source),
            Some((kind, origin)) => {
                let route = route(&format!("{source}/{kind}"));
                // What differs by `source` and `id` in its CloudEvent differs by them at central too.
                if origin == source { route } else { route.with_part(origin) }
            }
        }));
    }
    routes
}

/// Hands the events in and waits for the receipt of each.
async fn hand_in(
    shared: &ServerContext,
    source: &str,
    caller: &Identity,
    events: &[ParsedEvent<'_>],
) -> Result<Vec<Accepted>, Refusal> {
    let now = Timestamp::from(clock::wall());
    let deadline = tokio::time::Instant::from(clock::instant() + shared.config.answer_wait_max.0);
    let routes = routes(shared, source, caller, events);
    refuse_if_for_another(caller, &routes)?;
    // Hand in nothing while a lane is known to accept nothing: the client's repeat then makes no duplicates.
    refuse_if_stuck(shared, &routes, "nothing of this request was taken")?;
    let mut producer = Producer::new(Arc::clone(&shared.ingest));
    let delivery = async {
        let mut submitted = Vec::with_capacity(events.len());
        for (event, route) in events.iter().zip(&routes) {
            submitted.push(producer.submit_when_room(&submission(event, route, now)).await?);
        }
        producer.receipts(&submitted).await
    };
    match timeout_at(deadline, delivery).await {
        Ok(delivered) => delivered.map_err(|Closed| closing()),
        Err(_) => Err(late(shared, &routes)),
    }
}

fn submission<'e>(event: &'e ParsedEvent<'_>, route: &'e Route, arrived: Timestamp) -> Submission<'e> {
    let metadata = EventMetadata {
        trace_parent: event.trace_parent.as_deref(),
        content_type: event.content_type.as_deref(),
        id: event.id.as_deref(),
        time: event.time,
        key: event.subject.as_deref(),
        ..EventMetadata::default()
    };
    Submission { metadata, ..Submission::new(route, &event.payload, arrived) }
}

/// Refuses events for which the contract names another publisher. Requests for another source were refused before.
fn refuse_if_for_another(caller: &Identity, routes: &[Arc<Route>]) -> Result<(), Refusal> {
    let Some(name) = caller.proven() else { return Ok(()) };
    let Some(index) = routes.iter().position(|route| route.requires_other_publisher(name)) else { return Ok(()) };
    let detail = match routes[index].publishing() {
        Publishing::By { stream, name: publisher } => format!(
            "event {index}: by the contract of stream \"{stream}\" it is published by \"{publisher}\", not by \"{name}\"; nothing of this request was taken"
        ),
        _ => format!("event {index}: it is published by somebody else than \"{name}\""),
    };
    Err(Refusal::new(StatusCode::FORBIDDEN, "a caller publishes for another", detail))
}

fn refuse_if_stuck(shared: &ServerContext, routes: &[Arc<Route>], outcome: &str) -> Result<(), Refusal> {
    let mut before: Option<&Arc<Route>> = None;
    for route in routes {
        if before.replace(route).is_some_and(|before| Arc::ptr_eq(before, route)) {
            continue;
        }
        let refusal = match shared.ingest.condition(route) {
            Condition::Good => continue,
            Condition::Full(why) => {
                let detail = format!("{why}; {outcome}");
                Refusal::new(StatusCode::INSUFFICIENT_STORAGE, "there is no room", detail)
            }
            // The reason of the failure names files, which the client must not see.
            Condition::Failed(_) => {
                let detail = format!("the gateway cannot write to its disk; {outcome}");
                Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "the disk fails", detail)
            }
        };
        return Err(refusal.retry_after(RETRY_AFTER));
    }
    Ok(())
}

/// The answer if receipts did not arrive in time. The events may become durable later, so the caller has to repeat
/// them with the same ids.
fn late(shared: &ServerContext, routes: &[Arc<Route>]) -> Refusal {
    const OUTCOME: &str = "events of this request may still be taken: repeat it with the same ids";
    refuse_if_stuck(shared, routes, OUTCOME).err().unwrap_or_else(|| {
        let wait = shared.config.answer_wait_max;
        let detail = format!("nothing was durable within {wait}; {OUTCOME}");
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "the disk is slow", detail).retry_after(RETRY_AFTER)
    })
}

fn closing() -> Refusal {
    let detail = "the gateway is shutting down; repeat the request with the same ids".to_owned();
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "the gateway is shutting down", detail).retry_after(RETRY_AFTER)
}
