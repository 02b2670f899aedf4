//! The worker: the one owner of every step of a command.
//!
//! Promise: each step is stored before what it reports or causes: the row before its receipts and before the record for
//! the device, the record before the message is acknowledged where no row reports it.
//! Invariant: a step that is dropped half-way is done again at the next start, with the same ids and bytes.

use super::board::Board;
use super::inbox::{Inbox, POSITIONS};
use super::message::{Arrival, Confirmation, Now};
use super::outlet::Outlet;
use super::subscription::{Handover, RECEIVE_MAXIMUM};
use crate::clock;
use crate::contract::Tree;
use crate::event::Timestamp;
use crate::journal::Notes;
use crate::local::{Enough, EventRef, Feed, Local};
use crate::runtime::spawn_blocking;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Pause before a failed write of the state is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Longest wait until receipts that are in the journal are noted as such.
const TIDY_AFTER: Duration = Duration::from_secs(1);
/// Longest pause between two looks at the clock: it may be set, or become trusted.
const LOOK_AFTER: Duration = Duration::from_secs(5);
/// Largest number of open commands that are listed.
const LISTED_MAX: usize = 1000;
/// Longest text of a confirmation that a receipt keeps, in characters.
const TEXT_MAX: usize = 500;

pub(super) struct Worker {
    pub(super) inbox: Inbox,
    pub(super) outlet: Outlet,
    pub(super) local: Arc<Local>,
    pub(super) notes: Notes,
    pub(super) board: Arc<Board>,
    pub(super) arrivals: mpsc::Receiver<Handover>,
}

/// What one step has to take in.
#[derive(Default)]
struct Input {
    arrivals: Vec<Arrival>,
    stored: Vec<oneshot::Sender<()>>,
    confirmations: Vec<Confirmation>,
}

impl Worker {
    /// Works until the journal is closed; the owner drops it at the shutdown.
    pub(super) async fn run(self) {
        let Self { mut inbox, outlet, local, notes, board, mut arrivals } = self;
        let mut feed = None;
        if inbox.awaits_confirmation() {
            let Some(positions) = read_positions(&notes).await else { return };
            feed = Some(local.feed_from(|lane| positions.get(lane).copied()));
        }
        let mut input = Input::default();
        loop {
            let opened = feed.get_or_insert_with(|| local.feed_from(|_| None));
            let positions = encode_positions(opened);
            let Some((stepped, handovers)) = step(inbox, std::mem::take(&mut input), positions).await else { return };
            inbox = stepped;
            let outgoing = inbox.outgoing();
            if outlet.hand_in(&outgoing).await.is_err() {
                return;
            }
            inbox.handed_in();
            // The receiver is gone if its connection was lost.
            for handover in handovers {
                let _ = handover.send(());
            }
            if !inbox.awaits_confirmation() {
                feed = None;
            }
            show(&inbox, &board);
            let wait = wait_of(&inbox);
            tokio::select! {
                received = receive(&mut arrivals, &mut input) => if !received { return },
                is_open = ready(&mut feed) => {
                    if !is_open {
                        return;
                    }
                    feed.iter_mut().for_each(|feed| look(feed, &mut input));
                }
                () = tokio::time::sleep(wait) => {}
            }
        }
    }
}

/// Takes the input in and stores every change. Returns `None` if the runtime is shutting down.
async fn step(mut inbox: Inbox, input: Input, positions: Option<Vec<u8>>) -> Option<(Inbox, Vec<oneshot::Sender<()>>)> {
    let Input { arrivals, stored, confirmations } = input;
    let (mut arrivals, mut confirmations) = (VecDeque::from(arrivals), confirmations);
    loop {
        let positions = positions.clone();
        let work = spawn_blocking(move || {
            let now = now();
            confirmations.drain(..).for_each(|confirmation| inbox.confirm(&confirmation, now));
            let mut taken = Ok(());
            while taken.is_ok()
                && let Some(arrival) = arrivals.front()
            {
                taken = inbox.take(arrival, now);
                if taken.is_ok() {
                    arrivals.pop_front();
                }
            }
            inbox.advance(now);
            let stored = taken.and_then(|()| inbox.commit(positions));
            (inbox, arrivals, confirmations, stored)
        });
        let result;
        (inbox, arrivals, confirmations, result) = work.await.ok()?;
        match result {
            Ok(()) => return Some((inbox, stored)),
            Err(error) => {
                tracing::error!(%error, "could not store commands, will retry; check the disk");
                tokio::time::sleep(RETRY_AFTER).await;
            }
        }
    }
}

fn now() -> Now {
    Now { time: Timestamp::from(clock::wall()), is_trusted: clock::is_trusted() }
}

fn show(inbox: &Inbox, board: &Board) {
    let open = inbox.open_count();
    let is_waiting = open > 0 && !clock::is_trusted();
    let problem = is_waiting.then(|| format!("{open} wait because the clock is in doubt; check the clock"));
    board.show_inbox(problem, inbox.listed(LISTED_MAX));
}

/// How long nothing changes without an input.
fn wait_of(inbox: &Inbox) -> Duration {
    let change = inbox.next_change().map_or(LOOK_AFTER, |at| at.since(Timestamp::from(clock::wall())));
    let tidy = if inbox.is_changed() { TIDY_AFTER } else { LOOK_AFTER };
    change.min(tidy).min(LOOK_AFTER).max(Duration::from_millis(1))
}

/// Waits for messages; returns `false` if there will be none. Cancel-safe.
async fn receive(arrivals: &mut mpsc::Receiver<Handover>, input: &mut Input) -> bool {
    let mut received = Vec::new();
    arrivals.recv_many(&mut received, usize::from(RECEIVE_MAXIMUM)).await;
    let is_open = !received.is_empty();
    for (arrival, stored) in received {
        input.arrivals.push(arrival);
        input.stored.push(stored);
    }
    is_open
}

/// Waits for events while a confirmation is awaited.
async fn ready(feed: &mut Option<Feed>) -> bool {
    match feed {
        Some(feed) => feed.ready().await,
        None => std::future::pending().await,
    }
}

/// Collects the confirmations among the events that have been read.
fn look(feed: &mut Feed, input: &mut Input) {
    feed.look(|event| {
        input.confirmations.extend(confirmation(&event));
        Enough::No
    });
}

/// Reads a confirmation: `command` names the command, `result` is `done` or `failed`, `text` explains.
fn confirmation(event: &EventRef<'_>) -> Option<Confirmation> {
    let stream = &event.published.publication.stream;
    if stream.starts_with("command.") || stream.starts_with("gateway.") {
        return None;
    }
    let payload = Tree::parse(event.record.payload).ok()?;
    let text = |name: &str| match payload.member(name) {
        Some(Tree::Text(text)) => Some(&**text),
        _ => None,
    };
    let is_done = match text("result")? {
        "done" => true,
        "failed" => false,
        _ => return None,
    };
    Some(Confirmation {
        stream: stream.clone(),
        key: event.record.key.to_owned(),
        command: text("command")?.to_owned(),
        is_done,
        text: text("text").map(|text| text.chars().take(TEXT_MAX).collect()),
    })
}

async fn read_positions(notes: &Notes) -> Option<HashMap<String, u64>> {
    let notes = notes.clone();
    let read = spawn_blocking(move || notes.read(POSITIONS)).await.ok()?;
    let bytes = read.inspect_err(|error| tracing::error!(%error, "could not read where confirmations begin")).ok()?;
    Some(bytes.and_then(|bytes| postcard::from_bytes(&bytes).ok()).unwrap_or_default())
}

fn encode_positions(feed: &Feed) -> Option<Vec<u8>> {
    let positions: HashMap<&str, u64> = feed.positions().collect();
    postcard::to_stdvec(&positions).ok()
}
