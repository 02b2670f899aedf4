//! Checks of lanes and of the dead-letter log.

use super::disk::{disk_bytes, disk_free};
use super::file::{Dead, File, Lane};
use crate::contract::{Contracts, Order};
use crate::forward::{COMMANDS, CONNECTIONS, CatchUp, Hours, Rate, Sending};
use crate::journal::{self, Full, LaneConfig};
use crate::setting::{Bytes, Findings, Span, check_word};
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Default budget of the dead-letter log: enough for the worst month of a plant.
const DEAD_BUDGET: u64 = 256 << 20;
/// By default the dead-letter log takes at most a sixteenth of the disk.
const DEAD_SHARE: u64 = 16;
/// Smallest budget of the dead-letter log.
const DEAD_BUDGET_MIN: u64 = 1 << 20;

impl Dead {
    /// Returns the lane settings of the log, for a disk of this size.
    pub(super) fn lane(&self, disk_bytes: Option<u64>) -> LaneConfig {
        LaneConfig::dead(self.budget(disk_bytes))
    }

    fn budget(&self, disk_bytes: Option<u64>) -> u64 {
        let own = disk_bytes.map_or(DEAD_BUDGET, |size| DEAD_BUDGET.min(size / DEAD_SHARE));
        self.budget.map_or(own.max(DEAD_BUDGET_MIN), |budget| budget.0)
    }
}

/// Built-in lanes: name, linger, budget, and the action when the budget is used up.
const LANES: [(&str, Duration, u64, Full); 3] = [
    ("critical", Duration::from_millis(2), 1 << 30, Full::StopAcknowledging),
    ("standard", Duration::from_millis(40), 4 << 30, Full::StopAcknowledging),
    ("bulk", Duration::from_millis(250), 8 << 30, Full::ShedOldest),
];
/// Rate of the bulk lane per second while other lanes have a backlog.
const BULK_YIELDING: Rate = Rate { events: Some(1000), bytes: None };
/// Smallest budget in which segments of a useful size can rotate.
const BUDGET_MIN: u64 = 8 << 20;
/// Longest linger: clients wait that long for an acknowledgement.
const LINGER_MAX: Duration = Duration::from_secs(10);
/// Bounds of a batch: gateway and receiver hold it in memory as a whole.
const BATCH_EVENTS_MAX: usize = 10_000;
const BATCH_BYTES: (u64, u64) = (4 << 10, 8 << 20);
/// Most connections that share a lane: each reads all of it.
const CONNECTIONS_MAX: i64 = 16;
/// Share of the remaining disk for lanes without a configured budget, in per cent.
const DEFAULT_SHARE: u64 = 80;

/// Warns about lanes that no contract uses.
pub(super) fn warn_of_unused(raw: &File, contracts: &Contracts, found: &mut Findings<'_>) {
    for name in raw.lane.keys().filter(|name| !LANES.iter().any(|lane| lane.0 == name.as_str())) {
        if !contracts.iter().any(|contract| contract.publication.lane == *name) {
            let message = "is an additional lane that no contract names; critical, standard and bulk always exist";
            found.warning(&format!("lane.{name}"), message);
        }
    }
}

/// Checks the lane settings. Returns the lanes, and how each is sent.
pub(super) fn check(raw: &File, found: &mut Findings<'_>) -> (Vec<LaneConfig>, BTreeMap<String, Sending>) {
    let holds: Vec<(String, u64)> =
        raw.destination.iter().filter_map(|to| Some((to.name.clone(), to.hold?.0))).collect();
    let lane = |name: &str, linger, budget, full| LaneConfig {
        name: name.to_owned(),
        budget,
        linger,
        full,
        holds: holds.clone(),
        is_retired: false,
    };
    let mut lanes: Vec<LaneConfig> =
        LANES.iter().map(|(name, linger, budget, full)| lane(name, *linger, *budget, *full)).collect();
    let mut sending: BTreeMap<String, Sending> =
        lanes.iter().map(|lane| (lane.name.clone(), Sending::default())).collect();
    if let Some(bulk) = sending.get_mut("bulk") {
        bulk.yielding = Some(BULK_YIELDING);
    }
    for (name, settings) in &raw.lane {
        let index = lanes.iter().position(|lane| lane.name == *name).unwrap_or_else(|| {
            lanes.push(lane(name, LANES[1].1, LANES[1].2, LANES[1].3));
            lanes.len() - 1
        });
        found.within(format!("lane.{name}"), |found| {
            check_name(name, found);
            check_storage(settings, &mut lanes[index], found);
            check_sending(settings, sending.entry(name.clone()).or_default(), found);
        });
    }
    if let Some(budget) = raw.dead.budget.filter(|budget| budget.0 < DEAD_BUDGET_MIN) {
        let message = format!("{budget} is too little; at least {} are needed", Bytes(DEAD_BUDGET_MIN));
        found.problem("dead.budget", message);
    }
    fit_to_disk(raw, &mut lanes, found);
    (lanes, sending)
}

fn check_name(name: &str, found: &mut Findings<'_>) {
    if let Err(message) = check_word(name) {
        found.problem("", message);
    }
    if name == journal::DEAD {
        found.problem("", "\"dead\" is taken: the log of dead letters has that name, and is set up by [dead]");
    }
    if CONNECTIONS.contains(&name) || name == COMMANDS {
        found.problem("", format!("\"{name}\" is taken: each destination has a connection of that name"));
    }
    if name == journal::PUBLICATIONS || name.bytes().all(|byte| byte == b'.') {
        found.problem("", format!("\"{name}\" is no name for a lane: the journal has a folder of that name"));
    }
}

fn check_storage(settings: &Lane, lane: &mut LaneConfig, found: &mut Findings<'_>) {
    if let Some(budget) = settings.budget {
        if budget.0 < BUDGET_MIN {
            found.problem("budget", format!("{budget} is too little; at least {} are needed", Bytes(BUDGET_MIN)));
        }
        lane.budget = budget.0;
    }
    if let Some(linger) = settings.linger {
        if linger.0 > LINGER_MAX {
            found.problem("linger", format!("{linger} is too long; at most {} are allowed", Span(LINGER_MAX)));
        }
        lane.linger = linger.0;
    }
    lane.full = settings.full.unwrap_or(lane.full);
}

fn check_sending(settings: &Lane, sending: &mut Sending, found: &mut Findings<'_>) {
    sending.catch_up = settings.catch_up;
    sending.rate = settings.rate;
    sending.yielding = settings.yielding.or(sending.yielding);
    if let Some(dscp) = settings.dscp {
        sending.dscp = u8::try_from(dscp).ok().filter(|dscp| *dscp < 64);
        if sending.dscp.is_none() {
            found.problem("dscp", format!("{dscp} is not allowed; 0 to 63 are, such as 46 for expedited forwarding"));
        }
    }
    check_connections(settings, sending, found);
    for (part, rate) in [("rate", Some(settings.rate)), ("yielding", settings.yielding)] {
        if rate.is_some_and(|rate| rate.events == Some(0) || rate.bytes == Some(Bytes(0))) {
            found.problem(part, "0 would send nothing; leave it out for no ceiling, or set hours");
        }
    }
    if let Some(level) = &settings.backfill_topic {
        if level.is_empty() || level.contains(['+', '#', '\0']) || level.split('/').any(str::is_empty) {
            found.problem("backfill_topic", format!("\"{level}\" is no topic; expected levels such as \"backfill\""));
        }
        sending.backfill_topic = Some(level.clone());
    }
    if let Some(batch) = &settings.batch {
        if !(1..=BATCH_EVENTS_MAX).contains(&batch.events) {
            found.problem("batch.events", format!("{} is not allowed; 1 to {BATCH_EVENTS_MAX} are", batch.events));
        }
        if !(BATCH_BYTES.0..=BATCH_BYTES.1).contains(&batch.bytes.0) {
            let (least, most) = (Bytes(BATCH_BYTES.0), Bytes(BATCH_BYTES.1));
            found.problem("batch.bytes", format!("{} is not allowed; {least} to {most} are", batch.bytes));
        }
        if batch.age.0 > Duration::from_secs(3600) {
            found.problem("batch.age", format!("{} is too long; at most 1h is allowed", batch.age));
        }
        sending.batch = Some(batch.clone());
    }
    match (&settings.hours, &settings.time_zone) {
        (Some(hours), zone) => match Hours::parse(hours, zone.as_deref()) {
            Ok(hours) => sending.hours = Some(hours),
            Err(message) => found.problem(if message.contains("time zone") { "time_zone" } else { "hours" }, message),
        },
        (None, Some(zone)) => found.problem("time_zone", format!("\"{zone}\" is for hours, which are not set")),
        (None, None) => {}
    }
}

fn check_connections(settings: &Lane, sending: &mut Sending, found: &mut Findings<'_>) {
    let Some(connections) = settings.connections else { return };
    if !(1..=CONNECTIONS_MAX).contains(&connections) {
        found.problem("connections", format!("{connections} is not allowed; 1 to {CONNECTIONS_MAX} are"));
        return;
    }
    sending.connections = connections as u16;
    if connections > 1 && settings.batch.is_some() {
        let message = format!(
            "{connections} connections share the events of the lane by key, and a batch holds events of any key; remove batch or connections"
        );
        found.problem("connections", message);
    }
    if connections > 1 && settings.catch_up == CatchUp::LiveFirst {
        let message = format!("{connections} is only for catch_up = \"oldest-first\"; remove connections, or catch_up");
        found.problem("connections", message);
    }
}

/// Hands the order that the contracts promise to the lanes, and refuses `live-first` for those in which it is kept for
/// keys.
pub(super) fn check_order(sending: &mut BTreeMap<String, Sending>, contracts: &Contracts, found: &mut Findings<'_>) {
    for (name, sending) in sending.iter_mut() {
        let mut orders = BTreeMap::new();
        for contract in contracts.iter().filter(|one| one.publication.lane == *name) {
            // Of several versions, the strictest counts.
            let known = orders.entry(contract.publication.stream.clone()).or_insert(contract.order);
            *known = (*known).max(contract.order);
        }
        sending.orders = Arc::new(orders);
    }
    for (name, _) in sending.iter().filter(|(_, sending)| sending.catch_up == CatchUp::LiveFirst) {
        let ordered = contracts.iter().find(|one| one.publication.lane == *name && one.order != Order::None);
        if let Some(contract) = ordered {
            found.problem(
                &format!("lane.{name}.catch_up"),
                format!(
                    "\"live-first\" reorders the events of a key, but contract \"{}\" promises their order ({}); set order = \"none\" there, or give it another lane",
                    contract.stream(),
                    contract.file.display()
                ),
            );
        }
    }
}

/// Warns if other files on the disk leave less free space than the budgets and `disk_reserve` need.
pub(super) fn warn_of_space(raw: &File, lanes: &[LaneConfig], found: &mut Findings<'_>) {
    let Some(free) = disk_free(&raw.data_dir) else { return };
    let journal = raw.data_dir.join("journal");
    let own = if journal.exists() { folder_bytes(&journal) } else { Some(0) };
    let Some(own) = own else { return };
    let budgets: u64 = lanes.iter().map(|lane| lane.budget).sum();
    if free.saturating_add(own) < budgets.saturating_add(raw.disk_reserve.0) {
        found.warning(
            "data_dir",
            format!(
                "the file system of {} has {} free, and the journal takes {}: less than disk_reserve ({}) and the budgets of the lanes ({}); once free space falls to disk_reserve, delivered events are deleted before their retention ends",
                raw.data_dir.display(),
                Bytes(free),
                Bytes(own),
                raw.disk_reserve,
                Bytes(budgets)
            ),
        );
    }
}

/// Returns the disk usage of a folder in bytes; `None` if this process may not read all of it.
fn folder_bytes(folder: &Path) -> Option<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder).ok()? {
        let found = entry.ok()?;
        bytes += match found.metadata() {
            Ok(metadata) if metadata.is_dir() => folder_bytes(&found.path())?,
            // A file that was just deleted takes nothing.
            metadata => metadata.map_or(0, |metadata| metadata.blocks() * 512),
        };
    }
    Some(bytes)
}

/// Checks that configured budgets fit the disk, and shrinks the default budgets to the rest.
fn fit_to_disk(raw: &File, lanes: &mut [LaneConfig], found: &mut Findings<'_>) {
    let Some(size) = disk_bytes(&raw.data_dir) else { return };
    let room = size.saturating_sub(raw.disk_reserve.0).saturating_sub(raw.dead.budget(Some(size)));
    let is_configured = |lane: &LaneConfig| raw.lane.get(&lane.name).is_some_and(|settings| settings.budget.is_some());
    let configured: u64 = lanes.iter().filter(|lane| is_configured(lane)).map(|lane| lane.budget).sum();
    if configured > room {
        for lane in lanes.iter().filter(|lane| is_configured(lane)) {
            found.problem(
                &format!("lane.{}.budget", lane.name),
                format!(
                    "{} cannot fit: the file system of {} has {} in all, of which disk_reserve and dead letters leave {}, and the configured budgets need {}",
                    Bytes(lane.budget),
                    raw.data_dir.display(),
                    Bytes(size),
                    Bytes(room),
                    Bytes(configured)
                ),
            );
        }
        return;
    }
    let wanted: u64 = lanes.iter().filter(|lane| !is_configured(lane)).map(|lane| lane.budget).sum();
    let left = (room - configured) / 100 * DEFAULT_SHARE;
    if wanted > left {
        for lane in
            lanes.iter_mut().filter(|lane| raw.lane.get(&lane.name).is_none_or(|settings| settings.budget.is_none()))
        {
            let share = lane.budget as f64 / wanted as f64;
            lane.budget = ((left as f64 * share) as u64).max(BUDGET_MIN);
        }
    }
}
