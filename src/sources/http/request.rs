//! One request, from its head to its answer.
//!
//! Promise: 202 is made of receipts, one for every event of the request; every other answer says
//! why, and whether to come again.

use super::cloudevents::{self, Given, Shape};
use super::room::Held;
use super::{Asked, Shared};
use crate::clock;
use crate::contract::SourceKind;
use crate::event::Timestamp;
use crate::http::{self, Phase, Reply, Seat};
use crate::ingest::{Beside, Publishing, Route, Taken};
use crate::journal::{Condition, NotTaken, Receipt, Waiter};
use crate::memory::Permit;
use crate::origin::{Origin, Party};
use crate::sources;
use crate::sources::identity::{Identity, Presented, check_name};
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, StatusCode};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::timeout_at;

/// When to come again where nobody can know: a disk that is full seldom has room within a second.
const COME_AGAIN: Duration = Duration::from_secs(5);
/// What a request takes beside its body.
pub(super) const REQUEST_BYTES: u64 = 4 << 10;

/// Who is at the other end of a connection.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) address: SocketAddr,
    /// Whom the client's certificate names.
    pub(super) certificate: Option<Presented>,
    /// Its place among the connections.
    pub(super) seat: Seat<Origin>,
    /// Covers the connection.
    pub(super) permit: Permit,
}

/// An answer that takes nothing in.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    /// What is logged: never anything that the client sent.
    title: &'static str,
    /// What the client is told.
    detail: String,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, title: &'static str, detail: String) -> Self {
        Self { status, title, detail, headers: Vec::new() }
    }

    pub(super) fn with(mut self, name: HeaderName, value: &'static str) -> Self {
        self.headers.push((name, HeaderValue::from_static(value)));
        self
    }

    fn after(mut self, wait: Duration) -> Self {
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        self.headers.push((header::RETRY_AFTER, HeaderValue::from(seconds.max(1))));
        self
    }

    /// Problem details, as RFC 9457 writes them.
    fn into_response(self) -> Reply {
        let text = serde_json::json!({"status": self.status.as_u16(), "title": self.title, "detail": self.detail});
        let mut response = with_body(self.status, "application/problem+json", text.to_string());
        response.headers_mut().extend(self.headers);
        response
    }
}

/// What a request came to.
struct Accepted {
    receipts: Vec<Receipt>,
    dead_letters: usize,
}

impl Accepted {
    fn into_response(self) -> Reply {
        let text = format!(r#"{{"events":{},"dead_letters":{}}}"#, self.receipts.len(), self.dead_letters);
        with_body(StatusCode::ACCEPTED, "application/json", text)
    }
}

fn with_body(status: StatusCode, media_type: &'static str, mut text: String) -> Reply {
    text.push('\n');
    http::reply(status, media_type, text)
}

const NO_MEMORY: &str = "there is no memory for a request";

/// What a refusal counts as.
fn reason_of(refusal: &Refusal) -> sources::Refusal {
    match refusal.status {
        _ if refusal.title == NO_MEMORY => sources::Refusal::Memory,
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => sources::Refusal::Access,
        StatusCode::PAYLOAD_TOO_LARGE | StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
            sources::Refusal::Limit
        }
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::REQUEST_TIMEOUT => {
            sources::Refusal::Protocol
        }
        _ => sources::Refusal::Content,
    }
}

/// Answers one request.
pub(super) async fn answer(shared: &Shared, peer: &Peer, request: Request<Incoming>) -> Reply {
    let arrived = clock::instant();
    peer.seat.enter(Phase::Reading);
    let mut asked = Asked::default();
    let outcome = take(shared, peer, request, arrived, &mut asked).await;
    peer.seat.enter(Phase::Waiting);
    match outcome {
        Ok(accepted) => {
            let took = clock::instant().duration_since(arrived);
            shared.stats.ack.record(took, accepted.receipts.len() as u64);
            accepted.into_response()
        }
        Err(refusal) => {
            // Somebody may write a token where the name belongs: that is for nobody to read.
            if shared.tokens.as_ref().is_some_and(|tokens| tokens.name(asked.client.as_bytes()).is_some()) {
                asked.client.clear();
            }
            asked.status = Some(refusal.status);
            shared.refuse(peer.address, &asked, reason_of(&refusal), refusal.title);
            refusal.into_response()
        }
    }
}

async fn take(
    shared: &Shared,
    peer: &Peer,
    request: Request<Incoming>,
    arrived: Instant,
    asked: &mut Asked,
) -> Result<Accepted, Refusal> {
    let (head, body) = request.into_parts();
    let Some(written) = head.uri.path().strip_prefix("/events/").filter(|rest| !rest.is_empty() && !rest.contains('/'))
    else {
        let detail = "there is nothing here; events are taken by POST /events/{source}".to_owned();
        return Err(Refusal::new(StatusCode::NOT_FOUND, "no such path", detail));
    };
    if head.method != Method::POST {
        let detail = format!("{} is not understood here; events are taken by POST", head.method);
        let refusal = Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "no such method", detail);
        return Err(refusal.with(header::ALLOW, "POST"));
    }
    let source = source(written);
    asked.client = source.as_ref().ok().cloned().unwrap_or_default();
    let caller = identify(shared, peer, &head.headers, arrived)?;
    asked.user = caller.name().to_owned();
    asked.proven_by = caller.sender("").proven_by;
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
        let detail = format!("\"{source}\" has a token, so that only its holder posts for it");
        return Err(Refusal::new(StatusCode::FORBIDDEN, "an anonymous caller posts for a name with a token", detail));
    }
    let party = Party::of(caller.proven(), peer.address.ip());
    let payer = caller.proven().map_or_else(|| peer.address.ip().to_string(), str::to_owned);
    shared.rates.check(&payer, arrived).map_err(|wait| {
        let detail = format!("at most {} events a second are taken", shared.config.events_per_second_max);
        Refusal::new(StatusCode::TOO_MANY_REQUESTS, "a caller is over its rate", detail).after(wait)
    })?;
    shared.rates.charge(&payer, 1, arrived);
    let shape = Shape::of(&head.headers)?;
    let (_room, body) = read(shared, (&payer, &party), shape, body).await?;
    peer.seat.enter(Phase::Answering);
    let events = cloudevents::events(shape, &head.headers, &body, shared.config.payload_max.0)?;
    shared.rates.charge(&payer, events.len().saturating_sub(1) as u64, arrived);
    shared.stats.received.add(events.len() as u64);
    hand_in(shared, &source, &caller, &events).await
}

fn identify(shared: &Shared, peer: &Peer, headers: &HeaderMap, now: Instant) -> Result<Identity, Refusal> {
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
                    slow_down(shared, peer, now)?;
                    denied("a token is wrong", "the token is not known here, or is no bearer token")
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
            None if shared.config.lets_in_anonymous() => Ok(Identity::Anonymous { claimed: String::new() }),
            None => denied("a caller shows no token", "a bearer token or a client certificate is needed"),
        },
    }
}

/// Notes a wrong token of an address. Over its rate it is told when to come again, and has to connect anew for each;
/// right tokens of the same address pass.
fn slow_down(shared: &Shared, peer: &Peer, now: Instant) -> Result<(), Refusal> {
    let origin = Origin::of(peer.address.ip());
    shared.wrong_tokens.check(&origin, now).map_err(|wait| {
        let detail = format!("too many wrong tokens came from {origin}");
        let refusal = Refusal::new(StatusCode::TOO_MANY_REQUESTS, "an address shows too many wrong tokens", detail);
        refusal.after(wait).with(header::CONNECTION, "close")
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

/// Reads a body within its bounds. What comes with it is its share of the memory for requests.
async fn read<'s>(
    shared: &'s Shared,
    (payer, party): (&str, &Party),
    shape: Shape,
    body: Incoming,
) -> Result<((Held<'s>, Permit), Bytes), Refusal> {
    let bytes_max = match shape {
        Shape::Plain | Shape::Binary => shared.config.payload_max.0,
        Shape::Structured | Shape::Batch => shared.config.body_max.0,
    };
    let too_large = || {
        let detail = format!("the body is too large; at most {bytes_max} bytes are taken in this mode");
        Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "a body is too large", detail)
    };
    let expected = body.size_hint().upper().unwrap_or(bytes_max);
    if expected > bytes_max {
        return Err(too_large());
    }
    let share = expected + REQUEST_BYTES;
    let busy = || {
        let detail =
            "too many requests are in hand, of this caller or of all; nothing of this one was taken".to_owned();
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "too many requests are in hand", detail).after(COME_AGAIN)
    };
    let room = tokio::time::timeout(shared.config.answer_wait_max.0, shared.room.take(payer, share)).await;
    let room = room.map_err(|_| busy())?;
    // The body, and what is made of it.
    let bytes = usize::try_from(expected.saturating_mul(2) + REQUEST_BYTES).unwrap_or(usize::MAX);
    let memory = shared.budget.permit_of(party, bytes).map_err(|error| {
        let detail = format!("{error}; nothing of this request was taken");
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, NO_MEMORY, detail).after(COME_AGAIN)
    })?;
    let limit = usize::try_from(bytes_max).unwrap_or(usize::MAX);
    let wait = shared.config.request_wait_max;
    match tokio::time::timeout(wait.0, http::read(body, limit)).await {
        Ok(Ok(body)) => Ok(((room, memory), body)),
        Ok(Err(unread)) if http::is_too_large(&unread) => Err(too_large()),
        Ok(Err(_)) => {
            let detail = "the body ended before its end".to_owned();
            Err(Refusal::new(StatusCode::BAD_REQUEST, "a body ended early", detail))
        }
        Err(_) => {
            let detail = format!("the body took longer than {wait}");
            Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, "a body came too slowly", detail)
                .with(header::CONNECTION, "close"))
        }
    }
}

/// Where the events of a request lead. Neighbours mostly lead to the same place.
fn routes(shared: &Shared, source: &str, caller: &Identity, events: &[Given<'_>]) -> Vec<Arc<Route>> {
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
                if origin == source { route } else { route.beneath(origin) }
            }
        }));
    }
    routes
}

/// Hands the events in and waits for the receipt of each.
async fn hand_in(shared: &Shared, source: &str, caller: &Identity, events: &[Given<'_>]) -> Result<Accepted, Refusal> {
    let now = Timestamp::from(clock::wall());
    let deadline = tokio::time::Instant::from(clock::instant() + shared.config.answer_wait_max.0);
    let routes = routes(shared, source, caller, events);
    refuse_if_for_another(caller, &routes)?;
    // While a lane is known to take nothing, nothing is handed in: what is repeated later is not there twice.
    refuse_if_stuck(shared, &routes, "nothing of this request was taken")?;
    let mut waiter = Waiter::default();
    let mut taken: Vec<Taken> = Vec::with_capacity(events.len());
    for (event, route) in events.iter().zip(&routes) {
        let beside = Beside {
            trace_parent: event.trace_parent.as_deref(),
            content_type: event.content_type.as_deref(),
            id: event.id.as_deref(),
            time: event.time,
            key: event.subject.as_deref(),
            exchange: None,
        };
        taken.push(loop {
            match shared.ingest.accept(route, &event.payload, beside, now, &mut waiter) {
                Ok(taken) => break taken,
                Err(NotTaken::Closed) => return Err(closing()),
                Err(NotTaken::NoRoom) => {
                    if timeout_at(deadline, shared.ingest.room(route)).await.is_err() {
                        return Err(late(shared, &routes));
                    }
                }
            }
        });
    }
    let mut receipts = Vec::with_capacity(taken.len());
    loop {
        while let Some(next) = taken.get(receipts.len()) {
            match shared.ingest.receipt(next) {
                Some(receipt) => receipts.push(receipt),
                None => break,
            }
        }
        if receipts.len() == taken.len() {
            let dead_letters = taken.iter().filter(|taken| taken.is_dead()).count();
            return Ok(Accepted { receipts, dead_letters });
        }
        if shared.ingest.is_closed() {
            return Err(closing());
        }
        if timeout_at(deadline, waiter.woken()).await.is_err() {
            return Err(late(shared, &routes));
        }
    }
}

/// Refuses what a contract says is published by somebody else. That a caller posts for another source is refused before.
fn refuse_if_for_another(caller: &Identity, routes: &[Arc<Route>]) -> Result<(), Refusal> {
    let Some(name) = caller.proven() else { return Ok(()) };
    let Some(index) = routes.iter().position(|route| route.is_written_for_another(name)) else { return Ok(()) };
    let detail = match routes[index].publishing() {
        Publishing::By { stream, name: publisher } => format!(
            "event {index}: by the contract of stream \"{stream}\" it is published by \"{publisher}\", not by \"{name}\"; nothing of this request was taken"
        ),
        _ => format!("event {index}: it is published by somebody else than \"{name}\""),
    };
    Err(Refusal::new(StatusCode::FORBIDDEN, "a caller publishes for another", detail))
}

fn refuse_if_stuck(shared: &Shared, routes: &[Arc<Route>], outcome: &str) -> Result<(), Refusal> {
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
            // Why it fails names files, which are nobody's business here.
            Condition::Failed(_) => {
                let detail = format!("the gateway's disk fails; {outcome}");
                Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "the disk fails", detail)
            }
        };
        return Err(refusal.after(COME_AGAIN));
    }
    Ok(())
}

/// Events were handed in, and no receipt came in time. They may become durable later, so that the
/// caller has to repeat them with the same ids.
fn late(shared: &Shared, routes: &[Arc<Route>]) -> Refusal {
    const OUTCOME: &str = "events of this request may still be taken: repeat it with the same ids";
    refuse_if_stuck(shared, routes, OUTCOME).err().unwrap_or_else(|| {
        let wait = shared.config.answer_wait_max;
        let detail = format!("nothing was durable within {wait}; {OUTCOME}");
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "the disk is slow", detail).after(COME_AGAIN)
    })
}

fn closing() -> Refusal {
    let detail = "the gateway is shutting down; repeat the request with the same ids".to_owned();
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "the gateway is shutting down", detail).after(COME_AGAIN)
}
