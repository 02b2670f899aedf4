//! Requests that change the gateway: reload it, drop a destination, audit a support bundle.

use super::reload::ReloadBy;
use super::request::{ApiResult, CommandRequest, json, refuse, try_blocking};
use crate::api::ReloadAnswer;
use crate::journal::DONE;
use hyper::StatusCode;

pub(super) async fn reload(request: CommandRequest) -> ApiResult {
    let stopping = || refuse(StatusCode::SERVICE_UNAVAILABLE, "the gateway is stopping");
    // Callers without a known uid were refused before.
    let by = request.caller.0.map_or(ReloadBy::Signal, ReloadBy::User);
    let answer = match request.handles.reloading.reload(by).await.ok_or_else(stopping)? {
        Ok(changes) => ReloadAnswer { changes, ..ReloadAnswer::default() },
        Err(problems) => {
            ReloadAnswer { problems: problems.iter().map(ToString::to_string).collect(), ..ReloadAnswer::default() }
        }
    };
    Ok(json(answer))
}

/// Discards the undelivered events of a destination that was removed from the configuration.
pub(super) async fn drop_destination(request: CommandRequest, name: String) -> ApiResult {
    let known = request.handles.journal.destinations();
    if !known.contains(&name) {
        let text = format!("there is no destination \"{name}\"; the journal knows {}", known.join(", "));
        return Err(refuse(StatusCode::NOT_FOUND, text));
    }
    if request.handles.view.load().links.iter().any(|link| link.destination == name) {
        let text = format!("\"{name}\" is in the configuration; remove it there first");
        return Err(refuse(StatusCode::CONFLICT, text));
    }
    let dropped = try_blocking(move || {
        let what = |count: Option<u64>| serde_json::json!({"destination": name, "discarded": count});
        request.audited("destination drop", &what(None), || {
            let count = request.handles.journal.drop_destination(&name)?;
            Ok((count, what(Some(count))))
        })
    });
    dropped.await.map(json)
}

/// Audits the creation of a support bundle.
pub(super) async fn bundle(request: CommandRequest) -> ApiResult {
    try_blocking(move || request.audit("bundle", &serde_json::Value::Null, DONE)).await.map(json)
}
