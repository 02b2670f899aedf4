//! `forebay check --connect`: what files cannot say: names, ports, TLS, logins, rights, the disk.
//!
//! Promise: the checks use the settings and the connection code of the gateway. They change nothing but one message on
//! `gateway.check` at each destination, which is not retained, and a temporary file in the data folder.
//! Invariant: every step has a time limit.

mod broker;
mod bus;
mod finding;
mod machine;

pub(super) use finding::{Finding, Mark};

use super::client::finished;
use super::table::coloured;
use crate::config::Config;
use crate::forward;
use crate::mqtt::Protocol;
use crate::setting::rough;
use crate::sources::SourceConfig;
use crate::sources::odoo;
use crate::telemetry::shown;
use broker::Broker;
use finding::{Part, STEP_WAIT_MAX};
use std::fmt::Write;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream, UnixStream};

/// MQTT carries no time of day, and TLS 1.3 none either.
const CLOCK_OF_BROKER: &str = "the clock of the broker cannot be known over MQTT; compare `date -u` on both machines";
/// Largest difference to the clock of a peer that is no doubt about one of them. An HTTP date has whole seconds.
const CLOCK_DIFFERENCE_MAX: i64 = 5;

/// Checks every destination and source, the clock and the disk.
pub(super) fn check(config: &Config) -> anyhow::Result<Vec<Finding>> {
    finished(async {
        let mut found = Vec::new();
        machine::check_clock(&mut Part { name: "clock".into(), found: &mut found });
        machine::check_disk(config, &mut Part { name: "disk".into(), found: &mut found });
        for destination in &config.destinations {
            let mut part = Part { name: format!("destination {}", destination.name), found: &mut found };
            check_destination(config, destination, &mut part).await;
        }
        for source in &config.sources {
            let name = format!("source {}", source.settings().name());
            check_source(config, source, &mut Part { name, found: &mut found }).await;
        }
        found
    })
}

async fn check_destination(config: &Config, destination: &forward::Config, part: &mut Part<'_>) {
    let around = &config.surroundings;
    let topic = format!("{}/{}/gateway.check/v1/{}", around.environment, around.site, around.gateway);
    let client = destination.client_ids().of("check", around);
    for url in &destination.url.0 {
        let one = forward::Config { url: forward::Urls(vec![url.clone()]), ..destination.clone() };
        let target = match one.target() {
            Ok(target) => target,
            Err(error) => {
                part.fault(error);
                continue;
            }
        };
        let broker = Broker { url, tls: &destination.tls, proxy: destination.proxy.as_ref(), target };
        let connect_as = broker::connect_as(&client, destination.protocol);
        let Some(mut session) = broker.connect(&connect_as, part).await else { continue };
        let limits = session.limits();
        broker::round_trip(&mut session, &topic, part).await;
        session.close().await;
        part.unknown(CLOCK_OF_BROKER);
        if destination.protocol == Protocol::V5 {
            let wanted = largest_packet(config);
            match limits.packet_bytes_max {
                most if most < wanted => part.warning(format!(
                    "the broker takes packets up to {most} bytes, and events may have {wanted}: larger ones become dead letters; raise its limit, or lower payload_max"
                )),
                _ => part.good(format!("the broker takes the largest event ({wanted} bytes)")),
            }
            if !limits.has_retain {
                part.warning(
                    "the broker retains no messages: central does not see the status of a gateway that is down",
                );
            }
        }
    }
}

/// Bytes of the largest event of a listener, with its envelope.
fn largest_packet(config: &Config) -> usize {
    let payloads = config.sources.iter().filter_map(|source| match source {
        SourceConfig::Mqtt(listener) => usize::try_from(listener.payload_max.0).ok(),
        _ => None,
    });
    payloads.max().unwrap_or(256 << 10) + (4 << 10)
}

async fn check_source(config: &Config, source: &SourceConfig, part: &mut Part<'_>) {
    match source {
        SourceConfig::Mqtt(listener) => check_listener(listener.listen, part).await,
        SourceConfig::Http(server) => check_listener(server.listen, part).await,
        SourceConfig::Broker(broker) => {
            let target = match broker.target() {
                Ok(target) => target,
                Err(error) => return part.fault(error),
            };
            let around = &config.surroundings;
            let client = format!("forebay-{}-{}-{}-check", around.environment, around.site, around.gateway);
            let checked = Broker { url: &broker.url, tls: &broker.tls, proxy: broker.proxy.as_ref(), target };
            let connect_as = broker::connect_as(&client, broker.protocol);
            let Some(mut session) = checked.connect(&connect_as, part).await else { return };
            if broker.protocol == Protocol::V5 {
                broker::subscribe(&mut session, &broker.topics, part).await;
            }
            session.close().await;
        }
        SourceConfig::Odoo(source) => check_odoo(config, source, part).await,
        SourceConfig::Modbus(bus) => {
            let is_running = UnixStream::connect(&config.socket).await.is_ok();
            bus::check(bus, is_running, part).await;
        }
        SourceConfig::Folder(folder) => machine::check_folder(&folder.path, part),
    }
}

/// Checks that a listener can be opened, or is open already.
async fn check_listener(address: SocketAddr, part: &mut Part<'_>) {
    match TcpListener::bind(address).await {
        Ok(_) => part.good(format!("{address} is free for the listener")),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            let loopback = if address.is_ipv4() { "127.0.0.1" } else { "::1" };
            let to = if address.ip().is_unspecified() {
                format!("{loopback}:{}", address.port())
            } else {
                address.to_string()
            };
            match tokio::time::timeout(STEP_WAIT_MAX, TcpStream::connect(&to)).await {
                Ok(Ok(_)) => part.good(format!("{address} is open: a gateway, or another program, listens there")),
                _ => part.fault(format!("{address} is used by another program, and does not answer")),
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::AddrNotAvailable => {
            part.fault(format!("{address} is no address of this machine"));
        }
        Err(error) => part.fault(format!("{address} cannot be opened: {error}")),
    }
}

async fn check_odoo(config: &Config, source: &odoo::Config, part: &mut Part<'_>) {
    match tokio::time::timeout(STEP_WAIT_MAX * 3, odoo::check(source, &config.contracts)).await {
        Err(_) => part.fault(format!("{} does not answer in time", source.url)),
        Ok(Err(error)) => part.fault(error.to_string()),
        Ok(Ok(report)) => {
            part.good(format!("Odoo {} answers, and the key is valid", report.session.version_text));
            compare_clock(report.session.clock_offset, part);
            let faulty: Vec<_> = report.findings.iter().filter(|finding| finding.problem.is_some()).collect();
            match faulty.first() {
                None => part.good("the account may read what the contracts need"),
                Some(_) => part.fault(format!("{} contracts have problems; see `forebay odoo check`", faulty.len())),
            }
        }
    }
}

/// Compares the clock of a peer. `offset` is the time in seconds that it is ahead of this machine, if the peer has sent one.
fn compare_clock(offset: Option<i64>, part: &mut Part<'_>) {
    let Some(offset) = offset else {
        return part.unknown("its clock cannot be known: the answers have no Date header");
    };
    let by = rough(Duration::from_secs(offset.unsigned_abs()));
    let way = if offset < 0 { "behind" } else { "ahead of" };
    if offset.abs() < CLOCK_DIFFERENCE_MAX {
        part.good(format!("its clock and that of this machine differ by less than {CLOCK_DIFFERENCE_MAX} s"));
    } else {
        part.warning(format!("its clock is {by} {way} that of this machine; one of them is wrong"));
    }
}

/// Formats the findings, grouped by part.
pub(super) fn text(found: &[Finding], is_coloured: bool) -> String {
    let mut out = String::new();
    let mut part = "";
    for finding in found {
        if finding.part != part {
            part = &finding.part;
            let _ = writeln!(out, "{}", coloured(&shown(part), "1", is_coloured));
        }
        let (sign, colour) = match finding.mark {
            Mark::Good => ("✓", "32"),
            Mark::Unknown => ("?", "36"),
            Mark::Warning => ("!", "33"),
            Mark::Fault => ("✗", "31"),
        };
        let _ = writeln!(out, "  {} {}", coloured(sign, colour, is_coloured), shown(&finding.text));
    }
    out
}

/// Counts the findings with a mark.
pub(super) fn count(found: &[Finding], mark: Mark) -> usize {
    found.iter().filter(|finding| finding.mark == mark).count()
}
