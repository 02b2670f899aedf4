//! Decides about dead letters: requeue, discard, edit.
//!
//! Promise: each batch of decisions is durable and audited before the next.

use super::selection::{StoredLetter, bad_request, not_found, select};
use crate::admin::request::{ApiError, ApiResult, CommandRequest, json, read_json, try_blocking};
use crate::api::{DeadLetterState, DeadLetterStatus, LetterDecision, LetterEdit, LetterFilter, LetterStage};
use crate::clock;
use crate::event::Timestamp;
use hyper::body::Incoming;

/// Most letters in one audit entry.
const LETTERS_AUDITED: usize = 50;
/// Most refusals that a response lists; the others are only counted.
const REFUSALS_SHOWN: usize = 100;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::admin) enum LetterAction {
    Requeue,
    Discard,
}

impl LetterAction {
    /// Returns the name in the audit.
    fn name(self) -> &'static str {
        match self {
            Self::Requeue => "dead requeue",
            Self::Discard => "dead discard",
        }
    }
}

impl LetterDecision {
    fn refuse(&mut self, id: u64, reason: String) {
        self.refused_count += 1;
        if self.refused.len() < REFUSALS_SHOWN {
            self.refused.push((id, reason));
        }
    }
}

fn fate(state: DeadLetterState, attempts: u32) -> DeadLetterStatus {
    DeadLetterStatus { state, at: Timestamp::from(clock::wall()), attempts, ..DeadLetterStatus::default() }
}

/// Saves new statuses of letters together with their audit entries.
async fn save(
    request: &CommandRequest,
    letters: Vec<(StoredLetter, DeadLetterStatus)>,
    action: &'static str,
) -> Result<(), ApiError> {
    if letters.is_empty() {
        return Ok(());
    }
    let request = request.clone();
    let written = try_blocking(move || {
        let list: Vec<_> = letters.iter().map(|(found, fate)| (found.number, &found.letter, fate.clone())).collect();
        request.handles.fates.put_audited(&list, |changed| {
            let what: Vec<_> = letters
                .iter()
                .filter(|(found, _)| changed.contains(&found.number))
                .map(|(found, _)| serde_json::json!({"letter": found.number, "stream": found.letter.stream, "event": found.letter.event_id, "written": found.recorded.to_string()}))
                .collect();
            // Chunks bound the size of an entry.
            what.chunks(LETTERS_AUDITED).map(|part| request.audit_note(action, &part)).collect()
        })
    });
    written.await.map(|_| ())
}

/// Returns why the status of a letter is final; `None` if it is not.
fn final_reason(request: &CommandRequest, number: u64) -> Option<String> {
    let fate = request.handles.fates.of(number);
    fate.state.is_final().then(|| format!("it is {} already, since {}", fate.state.name(), fate.at))
}

/// Applies an action to one letter. Returns its new status, or why it is refused.
async fn decide(
    request: &CommandRequest,
    action: LetterAction,
    found: &StoredLetter,
    is_dry_run: bool,
) -> Result<DeadLetterStatus, String> {
    if let Some(reason) = final_reason(request, found.number) {
        return Err(reason);
    }
    let attempts = request.handles.fates.of(found.number).attempts;
    let letter = &found.letter;
    match (action, letter.stage) {
        (LetterAction::Discard, _) => Ok(fate(DeadLetterState::Discarded, attempts)),
        (LetterAction::Requeue, LetterStage::Intake) => {
            request.handles.take_in(found, &letter.payload, is_dry_run).await?;
            Ok(fate(DeadLetterState::TakenIn, attempts + 1))
        }
        (LetterAction::Requeue, LetterStage::Central) => {
            let destination = letter.destination.to_string();
            if !request.handles.view.load().links.iter().any(|link| link.destination == destination) {
                return Err(format!("its destination \"{destination}\" is not in the configuration any more"));
            }
            Ok(DeadLetterStatus { destination, ..fate(DeadLetterState::Requeued, attempts) })
        }
    }
}

/// Applies the action to all selected letters in batches: each batch is durable and audited before the next.
pub(in crate::admin) async fn decide_all(request: CommandRequest, body: Incoming, action: LetterAction) -> ApiResult {
    let filter: LetterFilter = read_json(body).await?;
    let (request, filter) = (&request, &filter);
    if filter.is_empty() {
        let text = "which letters? give numbers, --stream, --reason, --destination, --since or --until, or --all";
        return Err(bad_request(text.into()));
    }
    let dead = request.handles.journal.dead();
    let mut range = match (filter.ids.first(), filter.ids.last()) {
        (Some(first), Some(last)) => (*first).max(1)..last.saturating_add(1).min(dead.end()),
        _ => dead.first()..dead.end(),
    };
    let mut decided = LetterDecision { dry_run: filter.dry_run, ..LetterDecision::default() };
    let mut missing = filter.ids.clone();
    while range.start < range.end {
        let (letters, next) = select(&request.handles, filter, range.clone()).await?;
        range.start = next;
        let mut done = Vec::new();
        for found in letters {
            decided.matched += 1;
            missing.remove(&found.number);
            match decide(request, action, &found, filter.dry_run).await {
                Ok(fate) => {
                    decided.done += 1;
                    done.push((found, fate));
                }
                Err(reason) => decided.refuse(found.number, reason),
            }
        }
        if !filter.dry_run {
            save(request, done, action.name()).await?;
        }
    }
    // Letters outlive their destination and stream: an unknown name is an error only if no letter has it.
    if decided.matched == 0 {
        let destination = filter.destination.as_deref().and_then(|name| request.handles.unknown_destination(name));
        let unknown = destination.or_else(|| request.handles.unknown_stream(filter.stream.as_deref()?));
        if let Some(text) = unknown {
            return Err(bad_request(format!("no letter matches: {text}")));
        }
    }
    for number in missing {
        decided.refuse(number, "there is no such letter, or it does not match the other conditions".into());
    }
    Ok(json(decided))
}

pub(in crate::admin) async fn edit(request: CommandRequest, id: u64, body: Incoming) -> ApiResult {
    let edit: LetterEdit = read_json(body).await?;
    let filter = LetterFilter { ids: [id].into(), ..LetterFilter::default() };
    let range = id..id.saturating_add(1).min(request.handles.journal.dead().end());
    let Some(found) = select(&request.handles, &filter, range).await?.0.pop() else {
        return Err(not_found(id));
    };
    if let Some(reason) = final_reason(&request, id) {
        return Err(bad_request(format!("dead letter {id}: {reason}")));
    }
    let payload = edit.payload.as_bytes();
    let attempts = request.handles.fates.of(id).attempts + 1;
    let (outcome, state) = match found.letter.stage {
        LetterStage::Intake => (request.handles.take_in(&found, payload, edit.dry_run).await, DeadLetterState::TakenIn),
        // The refused event stays unchanged and is discarded in favour of the new one.
        LetterStage::Central => {
            (request.handles.send_edited(&found, payload, edit.dry_run).await, DeadLetterState::Discarded)
        }
    };
    outcome.map_err(|reason| bad_request(format!("dead letter {id}: {reason}")))?;
    if !edit.dry_run {
        save(&request, vec![(found, fate(state, attempts))], "dead edit").await?;
    }
    Ok(json(LetterDecision { matched: 1, done: 1, dry_run: edit.dry_run, ..LetterDecision::default() }))
}
