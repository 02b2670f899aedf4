//! Requests that concern the Odoo sources.

use super::request::{ApiResult, CommandRequest, json, read_json, refuse, try_blocking};
use crate::api::{OdooLoad, OdooLoadAnswer, OdooLoadRequest};
use crate::journal::DONE;
use crate::sources::odoo::Mirror;
use hyper::StatusCode;
use hyper::body::Incoming;
use std::sync::Arc;

/// Has captures load and report their records again.
pub(super) async fn load(request: CommandRequest, body: Incoming) -> ApiResult {
    let wanted: OdooLoadRequest = read_json(body).await?;
    let all = request.handles.mirrors.all();
    let is_wanted = |mirror: &&Arc<Mirror>| {
        wanted.source.as_ref().is_none_or(|source| source == mirror.source())
            && wanted.model.as_ref().is_none_or(|model| model == mirror.model())
    };
    let found: Vec<Arc<Mirror>> = all.iter().filter(is_wanted).cloned().collect();
    if found.is_empty() {
        let mut models: Vec<&str> = all.iter().map(|mirror| mirror.model()).collect();
        models.sort_unstable();
        models.dedup();
        let text = match models.is_empty() {
            true => "no contract reads from an Odoo".to_owned(),
            false => format!("no contract of that source reads that model; there are {}", models.join(", ")),
        };
        return Err(refuse(StatusCode::NOT_FOUND, text));
    }
    let load = |mirror: &Arc<Mirror>| OdooLoad {
        source: mirror.source().to_owned(),
        stream: mirror.stream().to_owned(),
        model: mirror.model().to_owned(),
        records: mirror.records() as u64,
    };
    let answer = OdooLoadAnswer { streams: found.iter().map(load).collect() };
    let audited = try_blocking(move || request.audit("odoo load", &wanted, DONE));
    audited.await?;
    found.iter().for_each(|mirror| mirror.request_load());
    Ok(json(answer))
}
