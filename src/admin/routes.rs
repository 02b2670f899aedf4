//! The paths of the command socket, and the handler of each.
//!
//! Promise: a request that changes something is refused unless the audit can name its user; each refusal is reported.

use super::caller::Caller;
use super::letters::{self, LetterAction};
use super::request::{ApiResult, CommandRequest, Query, json, refuse};
use super::{clock, journal, lists, monitoring, odoo, operations, replay, tail};
use crate::api::{VERSION, VERSION_HEADER};
use crate::contract::Sender;
use crate::http::{self, Reply};
use crate::security::{Cause, Report};
use hyper::body::Incoming;
use hyper::header::HeaderValue;
use hyper::{Method, Request, StatusCode};
use percent_encoding::percent_decode_str;
use std::sync::Arc;

pub(super) async fn answer(request: CommandRequest, http_request: Request<Incoming>) -> Reply {
    let (head, body) = http_request.into_parts();
    let mut path = Vec::new();
    for part in head.uri.path().split('/').skip(1) {
        path.push(percent_decode_str(part).decode_utf8_lossy());
    }
    let path: Vec<&str> = path.iter().map(AsRef::as_ref).collect();
    let query = Query(head.uri.query().unwrap_or_default());
    let result = match head.method {
        Method::GET | Method::HEAD => read(request, &path, query).await,
        Method::POST | Method::DELETE => checked_change(request, &head.method, &path, body).await,
        _ => None,
    };
    let mut reply = match result {
        Some(result) => result.unwrap_or_else(Into::into),
        None => http::text(StatusCode::NOT_FOUND, format!("{} {} is not answered here", head.method, head.uri.path())),
    };
    reply.headers_mut().insert(VERSION_HEADER, HeaderValue::from_static(VERSION));
    reply
}

/// Handles requests that only read; `None` if the path does not exist.
async fn read(request: CommandRequest, path: &[&str], query: Query<'_>) -> Option<ApiResult> {
    Some(match path {
        ["status"] => lists::status(request).await,
        ["dead"] => letters::list(request, query).await,
        ["dead", id] => letters::show(request, id.parse().ok()?).await,
        ["devices"] => lists::devices(request),
        ["replay"] => Ok(json(request.handles.replays.list())),
        ["replay", id] => replay::show(&request, id.parse().ok()?),
        ["ledger"] => lists::ledger(request).await,
        ["clock"] => Ok(json(clock::status())),
        ["audit"] => lists::audit(request, query).await,
        ["commands"] => lists::commands(request),
        ["exceptions"] => lists::exceptions(request),
        ["tail"] => tail::tail(request, query),
        ["log"] => Ok(http::text(StatusCode::OK, crate::telemetry::recent_lines().join("\n"))),
        [name @ ("metrics" | "healthz" | "readyz")] => monitoring::answer(request.handles, name).await,
        _ => return None,
    })
}

/// Handles requests that change something; `None` if the path does not exist. Includes export, which takes events out,
/// and verify, which sets damaged files aside.
async fn change(request: CommandRequest, method: &Method, path: &[&str], body: Incoming) -> Option<ApiResult> {
    Some(match (method.as_str(), path) {
        ("POST", ["dead", "requeue"]) => letters::decide_all(request, body, LetterAction::Requeue).await,
        ("POST", ["dead", "discard"]) => letters::decide_all(request, body, LetterAction::Discard).await,
        ("POST", ["dead", id, "edit"]) => letters::edit(request, id.parse().ok()?, body).await,
        ("POST", ["replay"]) => replay::begin(request, body).await,
        ("POST", ["replay", id, word]) => replay::set_state(request, id.parse().ok()?, (*word).to_owned()).await,
        ("POST", ["clock", "trust"]) => clock::trust(request).await,
        ("POST", ["reload"]) => operations::reload(request).await,
        ("POST", ["journal", "export"]) => journal::export(request, body).await,
        ("POST", ["journal", "verify"]) => journal::verify(request).await,
        ("POST", ["journal", "backup"]) => journal::backup(request, body).await,
        ("POST", ["odoo", "load"]) => odoo::load(request, body).await,
        ("POST", ["bundle"]) => operations::bundle(request).await,
        ("DELETE", ["destination", name]) => operations::drop_destination(request, (*name).to_owned()).await,
        _ => return None,
    })
}

/// Refuses a change whose user the audit cannot name, and reports each refused change.
async fn checked_change(request: CommandRequest, method: &Method, path: &[&str], body: Incoming) -> Option<ApiResult> {
    let (security, Caller(uid)) = (Arc::clone(&request.handles.security), request.caller);
    let result = match request.caller.unnamed() {
        Some(why) => Err(refuse(StatusCode::FORBIDDEN, why)),
        None => change(request, method, path, body).await?,
    };
    if let Err(refused) = &result {
        let user = uid.map_or_else(String::new, |uid| uid.to_string());
        let (what, reason) = (format!("{method} /{}", path.join("/")), refused.why.as_str());
        let (cause, source) = (Cause::Command, "command");
        let sender = Sender { user: &user, ..Sender::default() };
        security.report(&Report { cause, source, address: None, sender, what: &what, reason });
    }
    Some(result)
}
