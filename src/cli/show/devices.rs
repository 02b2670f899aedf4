//! The list of devices: clients that have connected, and units that the gateway polls, with their points.

use super::super::table::{age, clock_offset, counted, peer_address, seconds, shortened, table, wrapped};
use crate::api::{DeviceStatus, ListedDevice, RefusedClient, UnitStatus};
use crate::setting::grouped as number;
use crate::telemetry::shown;

/// Points without a value that are shown; `--json` shows all.
const POINTS_SHOWN: usize = 50;
/// Clients whose last refusal is shown; `--json` shows all.
const REFUSED_SHOWN: usize = 10;
/// Characters of a reason in a table; `--json` shows all.
const REASON_SHOWN: usize = 80;

pub(in super::super) fn devices(devices: &[ListedDevice], is_coloured: bool) -> String {
    let (mut connected, mut polled, mut refused) = (Vec::new(), Vec::new(), Vec::new());
    for device in devices {
        match device {
            ListedDevice::Mqtt(client) => connected.push(client),
            ListedDevice::Modbus(unit) => polled.push(unit),
            ListedDevice::Refused(client) => refused.push(client),
        }
    }
    let mut parts = Vec::new();
    if !connected.is_empty() {
        parts.push(clients(&connected, is_coloured));
        parts.extend(refusals(&connected));
    }
    if !refused.is_empty() {
        parts.push(refused_clients(&refused, is_coloured));
    }
    if !polled.is_empty() {
        parts.push(units(&polled, is_coloured));
        parts.extend(points(&polled, is_coloured));
    }
    if parts.is_empty() {
        "no device has connected since the gateway started, and none is polled".into()
    } else {
        parts.join("\n")
    }
}

/// The last refusals, the newest first.
fn refusals(devices: &[&DeviceStatus]) -> Option<String> {
    let mut refused: Vec<_> =
        devices.iter().filter_map(|device| Some((device, device.last_refusal.as_ref()?))).collect();
    refused.sort_by(|(_, one), (_, other)| other.at.cmp(&one.at));
    let lines = refused.iter().take(REFUSED_SHOWN).map(|(device, last)| {
        let topic = if last.what.is_empty() { String::new() } else { format!(" \"{}\"", last.what) };
        let (times, ago) = (counted(device.refused as usize, "refusal"), age(&last.at));
        let client = sender(&device.client, &device.identity, &last.address);
        wrapped(&format!("{client}: {times}, the last one {ago} ago:{topic} {}", last.why)) + "\n"
    });
    let mut text: String = lines.collect();
    if refused.len() > REFUSED_SHOWN {
        text.push_str(&format!("and {}; --json lists all\n", counted(refused.len() - REFUSED_SHOWN, "more client")));
    }
    (!refused.is_empty()).then_some(text)
}

/// Formats a client with its user and address, as far as they are known.
fn sender(client: &str, user: &str, address: &str) -> String {
    let user = (!user.is_empty() && user != client).then(|| format!("user {}", shown(user)));
    let address = (!address.is_empty()).then(|| shown(address).into_owned());
    let more: Vec<_> = user.into_iter().chain(address).collect();
    if more.is_empty() { shown(client).into_owned() } else { format!("{} ({})", shown(client), more.join(", ")) }
}

/// The clients that were refused before they had a session, the newest first.
fn refused_clients(refused: &[&RefusedClient], is_coloured: bool) -> String {
    let or_dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
    let row = |one: &&RefusedClient| {
        vec![
            or_dash(&one.client),
            or_dash(&one.user),
            peer_address(&one.peer),
            number(one.count),
            age(&one.at),
            one.why.clone(),
        ]
    };
    let rows: Vec<_> = refused.iter().map(row).collect();
    table(&["REFUSED CLIENT", "USER", "ADDRESS", "TIMES", "LAST", "REASON"], &[3, 4], &rows, is_coloured)
}

fn units(units: &[&UnitStatus], is_coloured: bool) -> String {
    let rows: Vec<_> = units
        .iter()
        .map(|unit| {
            let has_value = |state: &str| matches!(state, "good" | "absent");
            let good = unit.points.iter().filter(|point| has_value(&point.state)).count();
            vec![
                unit.source.clone(),
                unit.unit.clone(),
                unit.number.to_string(),
                unit.state.clone(),
                seconds(&unit.since),
                unit.last_answer.as_deref().map_or_else(|| "-".into(), seconds),
                format!("{good} of {}", unit.points.len()),
                unit.reason.as_deref().map_or_else(String::new, |reason| shortened(reason, REASON_SHOWN)),
            ]
        })
        .collect();
    let head = ["SOURCE", "UNIT", "NO.", "STATE", "SINCE (ZONE)", "LAST ANSWER (ZONE)", "POINTS", "REASON"];
    table(&head, &[2], &rows, is_coloured)
}

/// The points of answering units that have no value.
fn points(units: &[&UnitStatus], is_coloured: bool) -> Option<String> {
    let bad: Vec<_> = units
        .iter()
        .flat_map(|unit| unit.points.iter().map(move |point| (unit, point)))
        .filter(|(_, point)| point.state == "bad")
        .collect();
    let rows: Vec<_> = bad
        .iter()
        .take(POINTS_SHOWN)
        .map(|(unit, point)| {
            let reason = point.reason.as_deref().map_or_else(String::new, |reason| shortened(reason, REASON_SHOWN));
            vec![
                format!("{}/{}/{}", unit.unit, point.group, point.name),
                point.state.clone(),
                seconds(&point.since),
                reason,
            ]
        })
        .collect();
    let mut text = table(&["POINT", "STATE", "SINCE (ZONE)", "REASON"], &[], &rows, is_coloured);
    if bad.len() > POINTS_SHOWN {
        let more = counted(bad.len() - POINTS_SHOWN, "more point");
        text.push_str(&format!("and {more}; --json lists all\n"));
    }
    (!rows.is_empty()).then_some(text)
}

fn clients(devices: &[&DeviceStatus], is_coloured: bool) -> String {
    let time = |text: &Option<String>| text.as_deref().and_then(|text| text.get(..19)).unwrap_or("-").replace('T', " ");
    let rows: Vec<_> = devices
        .iter()
        .map(|device| {
            vec![
                device.client.clone(),
                match (device.identity.as_str(), device.authtype) {
                    ("", _) => "-".into(),
                    (name, Some(_)) => name.to_owned(),
                    (name, None) => format!("({name})"),
                },
                peer_address(&device.peer),
                time(&device.connected_since),
                format!("{:.1}", device.rate),
                device.last_event.as_deref().map_or_else(|| "-".into(), age),
                number(device.received),
                number(device.refused),
                number(device.dead),
                number(device.duplicates),
                device.clock_offset.map_or_else(|| "-".into(), clock_offset),
            ]
        })
        .collect();
    let head = [
        "DEVICE",
        "IDENTITY",
        "ADDRESS",
        "CONNECTED SINCE",
        "PER SECOND",
        "LAST EVENT",
        "RECEIVED",
        "REFUSED",
        "DEAD",
        "REPEATS",
        "CLOCK",
    ];
    table(&head, &[4, 6, 7, 8, 9, 10], &rows, is_coloured)
}
