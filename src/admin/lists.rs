//! Requests that show the status, the ledger, the audit, devices and business exceptions.

use super::request::{ApiResult, CommandRequest, Query, blocking, json, refuse, try_blocking};
use super::streaming::{self, Items};
use crate::api::ListedDevice;
use crate::event::push_path_segment;
use crate::ledger;
use hyper::StatusCode;
use std::sync::Arc;

pub(super) async fn status(request: CommandRequest) -> ApiResult {
    blocking(move || request.handles.status()).await.map(json)
}

pub(super) async fn ledger(request: CommandRequest) -> ApiResult {
    let handles = Arc::clone(&request.handles);
    let balances = blocking(move || ledger::balances(&handles.journal, &handles.fates)).await?;
    let items = balances.into_iter().map(|balance| streaming::item(&balance));
    streaming::array(request.shutdown, "ledger", Box::new(items))
}

pub(super) async fn audit(request: CommandRequest, query: Query<'_>) -> ApiResult {
    let (handles, limit) = (Arc::clone(&request.handles), query.limit()?);
    let entries = try_blocking(move || handles.journal.audited(limit)).await?;
    streaming::array(request.shutdown, "audit", Box::new(entries.map(|entry| entry.map_err(streaming::text))))
}

pub(super) fn exceptions(request: CommandRequest) -> ApiResult {
    let none = "this gateway has no watch; add [watch] to the configuration to enable it";
    let board = request.handles.view.load().board.clone();
    let board = board.ok_or_else(|| refuse(StatusCode::NOT_FOUND, none))?;
    let items = board.exceptions().into_iter().map(|one| streaming::item(&one));
    streaming::array(request.shutdown, "exceptions", Box::new(items))
}

pub(super) fn commands(request: CommandRequest) -> ApiResult {
    let items = request.handles.commands.open().into_iter().map(|one| streaming::item(&one));
    streaming::array(request.shutdown, "commands", Box::new(items))
}

pub(super) fn devices(request: CommandRequest) -> ApiResult {
    let mut all: Items = Box::new(std::iter::empty());
    for source in &request.handles.view.load().sources {
        let units = source.stats.units.status(&source.name).into_iter();
        all = Box::new(all.chain(units.map(|unit| streaming::item(&ListedDevice::Modbus(unit)))));
        let Some(devices) = &source.devices else { continue };
        let (name, journal) = (source.name.clone(), Arc::clone(&request.handles.journal));
        let of_source = devices.all().into_iter().map(move |device| {
            let repeats = |client: &str| journal.repeats_of(&origin(&name, client));
            streaming::item(&ListedDevice::Mqtt(device.status(&name, &repeats)))
        });
        let refused = devices.refused(&source.name).into_iter();
        let refused = refused.map(|client| streaming::item(&ListedDevice::Refused(client)));
        all = Box::new(all.chain(of_source).chain(refused));
    }
    streaming::array(request.shutdown, "devices", all)
}

/// Returns `{source}/{device}` in the form of `Record::origin`.
fn origin(source: &str, device: &str) -> String {
    let mut origin = String::new();
    push_path_segment(&mut origin, source);
    origin.push('/');
    push_path_segment(&mut origin, device);
    origin
}
