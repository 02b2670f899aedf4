//! Checks of the parts against each other: names, ports, client ids, serial lines, feedback loops, and what the watch
//! needs of the others.
//!
//! Not here: the checks of one part by itself, which the part owns.

use super::file::File;
use crate::contract::{Contracts, GatewayNames, SourceKind};
use crate::forward::{self, Sending};
use crate::journal::LaneConfig;
use crate::link::Address;
use crate::mqtt::Filter;
use crate::setting::{Findings, Problem, check_word};
use crate::sources::{SourceConfig, broker};
use crate::tls;
use crate::watch;
use std::collections::{BTreeMap, BTreeSet};

/// Checks every source, and the sources against each other and the destinations.
pub(super) fn check_sources(raw: &mut File, found: &mut Findings<'_>) {
    let (mut names, mut claimed) = (Vec::new(), Vec::new());
    for (key, source) in &mut raw.source.0 {
        found.within(key.as_str(), |found| {
            let settings = source.settings_mut();
            let name = settings.name().to_owned();
            if let Err(message) = check_word(&name) {
                found.problem("name", message);
            }
            if names.contains(&name) {
                found.problem("name", format!("\"{name}\" is taken by another source; names are unique"));
            }
            names.push(name);
            for claim in settings.claims() {
                match claimed.contains(&claim.what) {
                    true if claim.is_shareable => found.warning(claim.key, claim.taken),
                    true => found.problem(claim.key, claim.taken),
                    false => {}
                }
                claimed.push(claim.what);
            }
            settings.check(found);
        });
    }
    for (key, source) in &raw.source.0 {
        let SourceConfig::Broker(broker) = source else { continue };
        let Some(filter) = feeds_itself(raw, broker) else { continue };
        let message = format!(
            "\"{filter}\" matches what the gateway itself publishes there ({}/{}/…), so every event would return as a new one; subscribe to narrower topics",
            raw.environment, raw.site
        );
        found.within(key.as_str(), |found| found.problem("topics", message));
    }
}

/// Returns the filter of a source that would receive events which a destination publishes at the same broker.
fn feeds_itself<'a>(raw: &File, source: &'a broker::Config) -> Option<&'a String> {
    let address = Address::parse(&source.url).ok()?;
    let leads_there = |to: &forward::Config| {
        to.url.0.iter().any(|url| Address::parse(url).is_ok_and(|other| other.is_same_broker(&address)))
    };
    if !raw.destination.iter().any(leads_there) {
        return None;
    }
    let own = Filter::parse(&format!("{}/{}/#", raw.environment, raw.site))?;
    source.topics.iter().find(|filter| Filter::parse(filter).is_some_and(|filter| own.overlaps(&filter)))
}

/// Checks every destination, and their names, brokers and client ids against each other.
pub(super) fn check_destinations(
    raw: &File,
    (lanes, sending): (&[LaneConfig], &BTreeMap<String, Sending>),
    names: &GatewayNames,
    found: &mut Findings<'_>,
) {
    let lanes: Vec<String> = lanes.iter().map(|lane| lane.name.clone()).collect();
    let of_lane = |lane: &String| -> Vec<String> {
        let connections = sending.get(lane).into_iter().flat_map(Sending::connections);
        connections.map(|connection| connection.name(lane)).collect()
    };
    let connections: Vec<String> =
        lanes.iter().flat_map(of_lane).chain(forward::CONNECTIONS.map(str::to_owned)).collect();
    for (index, destination) in raw.destination.iter().enumerate() {
        found.within(format!("destination[{index}]"), |found| {
            let name = &destination.name;
            if let Err(message) = check_word(name) {
                found.problem("name", message);
            }
            if raw.destination[..index].iter().any(|other| other.name == *name) {
                found.problem("name", format!("\"{name}\" is taken by a destination above; names are unique"));
            }
            destination.check(found);
            let own = destination.commands.then(|| forward::COMMANDS.to_owned());
            let with_commands: Vec<String> = connections.iter().cloned().chain(own).collect();
            found.note(destination.client_ids().check(&with_commands));
            if let Some(budget) = &destination.budget {
                budget.check(&lanes, found);
            }
            for other in &raw.destination[..index] {
                check_two(other, destination, (names, &connections), found);
            }
        });
    }
}

/// Checks a destination against an earlier one: whether both are one broker, and whether their clients have the same ids.
fn check_two(
    other: &forward::Config,
    destination: &forward::Config,
    (names, connections): (&GatewayNames, &[String]),
    found: &mut Findings<'_>,
) {
    let parsed = |to: &forward::Config| -> Vec<_> {
        to.url.0.iter().filter_map(|url| Some((url.clone(), Address::parse(url).ok()?))).collect()
    };
    let (ours, theirs) = (parsed(destination), parsed(other));
    let same = ours.iter().find(|(_, ours)| theirs.iter().any(|(_, theirs)| theirs.is_same_broker(ours)));
    if let Some((url, _)) = same {
        let message = format!(
            "\"{url}\" is a broker of destination \"{}\" too: it gets every event twice that both take; remove one of them, or give both different streams",
            other.name
        );
        found.warning("url", message);
    }
    let id = |to: &forward::Config, connection: &String| to.client_ids().of(connection, names);
    let shared = connections.iter().map(|connection| id(destination, connection));
    let shared = shared.into_iter().find(|ours| connections.iter().any(|connection| id(other, connection) == *ours));
    let Some(shared) = shared else { return };
    let key = if destination.client_id.is_some() { "client_id" } else { "client_id_prefix" };
    let message = format!("the client id \"{shared}\" is one of destination \"{}\" too", other.name);
    match same {
        Some(_) => found.problem(key, format!("{message}, at the same broker: each would disconnect the other")),
        None => found.warning(key, format!("{message}; if both lead to one broker, each disconnects the other")),
    }
}

/// Checks the watch, and whether the sources and contracts give it what it evaluates.
pub(super) fn check_watch(raw: &File, contracts: &Contracts, found: &mut Findings<'_>) {
    let Some(watch) = &raw.watch else { return };
    found.note(watch.check().map_err(|(part, message)| (format!("watch.{part}"), message)));
    if !raw.source.0.iter().any(|(_, source)| source.kind() == SourceKind::Odoo) {
        found.problem("watch", "there is nothing to watch; add a [[source.odoo]]");
    }
    // Refused contracts are already reported as their own problems.
    let declared = |stream: &str| contracts.iter().any(|contract| contract.stream() == stream);
    let lacking: Vec<_> = watch::STREAMS.into_iter().filter(|stream| !declared(stream)).collect();
    if !lacking.is_empty() && contracts.iter().next().is_some() {
        let message =
            format!("no contract declares {}; copy config/contracts/watch into contracts", lacking.join(", "));
        found.problem("watch", message);
    }
    let reads =
        |model: &str| contracts.iter().any(|one| one.odoo.as_ref().is_some_and(|odoo| odoo.model.first() == model));
    for (model, what) in
        [("mrp.production", "orders"), ("mrp.workorder", "work orders"), ("mrp.workcenter", "work centers")]
    {
        if !reads(model) {
            found.warning("watch", format!("no contract reads {model}: {what} are not watched"));
        }
    }
}

/// Checks who sends commands, and whether the environment allows their contracts.
pub(super) fn check_commands(raw: &File, contracts: &Contracts, found: &mut Findings<'_>) {
    let senders: Vec<usize> = (0..raw.destination.len()).filter(|index| raw.destination[*index].commands).collect();
    for index in senders.iter().skip(1) {
        let first = &raw.destination[senders[0]].name;
        let message = format!("destination \"{first}\" sends commands already; one destination may");
        found.problem(&format!("destination[{index}].commands"), message);
    }
    let is_production = found.is_production();
    for contract in contracts.commands().iter().filter(|contract| is_production && !contract.allow_commands) {
        let message = "a contract of commands in environment \"production\" needs allow_commands = true in its file";
        found.add(Problem {
            file: contract.file.clone(),
            line: 0,
            key: "allow_commands".into(),
            message: message.into(),
        });
    }
    match (senders.first(), contracts.commands().first()) {
        (Some(index), None) => {
            let message = "no contract of commands is enabled: every command is refused";
            found.warning(&format!("destination[{index}].commands"), message);
        }
        (None, Some(contract)) => {
            let message = format!(
                "contract {} is for commands, and no destination has commands = true: none can come",
                contract.name
            );
            found.warning("destination", message);
        }
        _ => {}
    }
}

/// Checks that each entry of `enable` names a contract.
pub(super) fn check_enabled(raw: &File, contracts: &Contracts, found: &mut Findings<'_>) {
    // Without contracts their own problems are reported.
    if contracts.iter().next().is_none() {
        return;
    }
    for (index, pattern) in raw.enable.iter().enumerate() {
        let is_named =
            |stream: &str| pattern.strip_suffix('*').map_or(pattern == stream, |start| stream.starts_with(start));
        let is_command = contracts.commands().iter().any(|contract| is_named(&contract.name));
        if !is_command && !contracts.iter().any(|contract| is_named(contract.stream())) {
            let message = format!(
                "\"{pattern}\" is no stream of a contract in {}; expected one such as \"sales.order\", or \"sales.*\"",
                raw.contracts.display()
            );
            found.problem(&format!("enable[{index}]"), message);
        }
    }
}

/// Warns about parts that are missing, and about sources that do not fit the contracts.
pub(super) fn warn_of_gaps(raw: &File, contracts: &Contracts, found: &mut Findings<'_>) {
    if raw.source.0.is_empty() {
        found.warning("source", "there is none: nothing can come in");
    }
    if raw.destination.is_empty() {
        found.warning("destination", "there is none: events are kept, and nothing leaves the gateway");
    }
    if contracts.iter().next().is_none() {
        let message = format!("{} contains no contract: every event becomes a dead letter", raw.contracts.display());
        found.warning("contracts", message);
    }
    for (key, source) in &raw.source.0 {
        found.within(key.as_str(), |found| {
            source.settings().check_contracts(contracts, found);
            warn_of_no_contract(source, contracts, found);
            warn_of_no_name(source, found);
        });
    }
}

/// Warns of a source that no contract is for. The kinds with topics of their own making warn of each topic.
fn warn_of_no_contract(source: &SourceConfig, contracts: &Contracts, found: &mut Findings<'_>) {
    let (kind, name) = (source.kind(), source.settings().name().to_owned());
    let has_one = contracts.iter().any(|contract| contract.source() == kind && contract.is_for(&name));
    if has_one || !matches!(kind, SourceKind::Mqtt | SourceKind::Broker | SourceKind::Http) {
        return;
    }
    let others: BTreeSet<String> = contracts.iter().map(|contract| contract.source().to_string()).collect();
    let others = match others.is_empty() {
        true => String::new(),
        false => format!("; the contracts are for {}", others.into_iter().collect::<Vec<_>>().join(", ")),
    };
    let message = format!(
        "no contract has match.source = \"{kind}\" for \"{name}\": every event becomes a dead letter{others}. Copy one, and change its match"
    );
    found.warning("", message);
}

/// Warns of a listener whose certificate has no alternative name: no client accepts it.
fn warn_of_no_name(source: &SourceConfig, found: &mut Findings<'_>) {
    let files = match source {
        SourceConfig::Mqtt(listener) => listener.tls.as_ref(),
        SourceConfig::Http(server) => server.tls.as_ref(),
        _ => None,
    };
    let Some(files) = files else { return };
    // A file that cannot be read is a problem of its own.
    let Ok(certificates) = tls::CertificateFacts::read(&files.cert) else { return };
    let has_name = |name: &String| name.starts_with("DNS:") || name.starts_with("IP:");
    if certificates.first().is_some_and(|first| !first.names.iter().any(has_name)) {
        let message = format!(
            "{} has no DNS name or address (subjectAltName): no client accepts it; issue one with `forebay cert gateway`",
            files.cert.display()
        );
        found.warning("tls.cert", message);
    }
}
