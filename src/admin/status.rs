//! The status of the gateway: its figures, problems and notes.

use super::certificates::{check_certificates, check_revocations};
use super::clock;
use super::handles::{Configured, Handles, LinkHandle, SourceHandle, View};
use crate::api::{
    Backlog, Balance, BudgetStatus, DeadLetterCounts, DedupeStatus, LaneStatus, LinkStatus, MemoryUsage, Outlook,
    SourceStatus, SparkplugStatus, Status,
};
use crate::event::Timestamp;
use crate::forward::LinkState;
use crate::journal::{Condition, Lane};
use crate::ledger;
use crate::setting::{Bytes, grouped, rough};
use crate::telemetry::Histogram;

impl Handles {
    /// Returns the status. Computes the balances of the ledger.
    pub fn status(&self) -> Status {
        self.status_by(&ledger::balances(&self.journal, &self.fates))
    }

    /// Like [`Handles::status`], with balances that the caller already has.
    pub(super) fn status_by(&self, balances: &[Balance]) -> Status {
        let view = self.view.load_full();
        let dead = self.journal.dead().status();
        let mut status = Status {
            version: env!("CARGO_PKG_VERSION").into(),
            environment: self.surroundings.environment.clone(),
            site: self.surroundings.site.clone(),
            name: self.surroundings.gateway.clone(),
            uptime_seconds: crate::clock::instant().duration_since(self.started).as_secs(),
            configured: view.configured.as_ref().map(|configured| configured.at.to_string()),
            problems: Vec::new(),
            notes: Vec::new(),
            lanes: self.lane_statuses(),
            links: view.links.iter().map(LinkHandle::status).collect(),
            lines: super::lines::statuses(&view.links),
            sources: view.sources.iter().map(SourceHandle::status).collect(),
            dead: DeadLetterCounts {
                total: dead.accepted,
                held: self.held_letters(),
                unmatched: self.ingest.stats.unmatched.value(),
                violations: self.ingest.stats.violations.value(),
            },
            repeats: self.dedupe_status(),
            set_aside: self.journal.quarantined().iter().map(|file| file.display().to_string()).collect(),
            clock: clock::status(),
            outlooks: self.outlooks(&view),
            flash_bytes_per_day: self.survival.flash_bytes_per_day(),
            budgets: self.budget_statuses(&view),
            memory: self.budget.usage(),
            sparkplug: self.sparkplug_status(),
        };
        let mut problems = self.storage_problems(&status.lanes, dead.problem);
        problems.extend(self.part_problems(&status, &view, balances));
        let mut notes = notes(&status);
        check_certificates(&view.certificates, &mut problems, &mut notes);
        check_revocations(&view.revocations, &mut problems, &mut notes);
        problems.extend(status.clock.problem());
        notes.extend(self.further_notes(&status, &view));
        (status.problems, status.notes) = (problems, notes);
        status
    }

    /// Number of dead letters that wait for a decision.
    fn held_letters(&self) -> u64 {
        let dead = self.journal.dead();
        let first = dead.first().max(1);
        dead.end().saturating_sub(first).saturating_sub(self.fates.decided_from(first))
    }

    fn lane_statuses(&self) -> Vec<LaneStatus> {
        let of_lane = |lane: &std::sync::Arc<Lane>| {
            let mut status = lane.status();
            for to in &mut status.destinations {
                to.oldest = oldest(lane, to).map(|at| at.to_string());
            }
            if let (None, Condition::Full(why)) = (&status.problem, self.ingest.condition_of(lane)) {
                status.problem = Some(why);
            }
            status
        };
        self.journal.lanes().iter().map(of_lane).collect()
    }

    /// The forecasts. A lane whose byte budget is used up drains at no time that is known.
    pub(super) fn outlooks(&self, view: &View) -> Vec<Outlook> {
        let mut outlooks = self.survival.outlooks();
        for budget in self.budget_statuses(view) {
            for outlook in &mut outlooks {
                let is_stopped = budget.stopped.iter().any(|(lane, _)| *lane == outlook.lane);
                let drains = outlook.drains.iter_mut().filter(|drain| drain.destination == budget.destination);
                drains.filter(|drain| is_stopped && drain.queued > 0).for_each(|drain| drain.drained_in_seconds = None);
            }
        }
        outlooks
    }

    /// What the destinations in force have carried.
    pub(super) fn budget_statuses(&self, view: &View) -> Vec<BudgetStatus> {
        let lanes: Vec<String> = self.journal.lanes().iter().map(|lane| lane.name.clone()).collect();
        let statuses = self.meters.all().into_iter().map(|meter| meter.status(&lanes));
        statuses.filter(|budget| view.links.iter().any(|link| link.destination == budget.destination)).collect()
    }

    fn dedupe_status(&self) -> DedupeStatus {
        let (ids, ids_max, complete_since) = self.journal.window();
        let all = self.journal.lanes().iter();
        DedupeStatus {
            duplicates: all.clone().map(|lane| lane.stats.duplicates.value()).sum(),
            id_conflicts: all.map(|lane| lane.stats.id_conflicts.value()).sum(),
            ids,
            ids_max,
            complete_since: complete_since.map(|at| at.to_string()),
        }
    }

    fn sparkplug_status(&self) -> Option<SparkplugStatus> {
        self.ingest.sparkplug().map(|sparkplug| SparkplugStatus {
            nodes: sparkplug.node_count(),
            bytes: sparkplug.bytes(),
            forgotten: sparkplug.stats.forgotten.value(),
            gaps: sparkplug.stats.gaps.value(),
            refused: sparkplug.stats.refused.value(),
            rebirths_asked: sparkplug.stats.asked.value(),
        })
    }

    /// Returns the problems of lanes, disk and dead letters.
    fn storage_problems(&self, lanes: &[LaneStatus], dead_problem: Option<String>) -> Vec<String> {
        let of_lane = |lane: &LaneStatus| lane.problem.as_ref().map(|why| format!("lane {}: {why}", lane.name));
        let mut problems: Vec<_> = lanes.iter().filter_map(of_lane).collect();
        if let Ok(room) = self.journal.disk_room()
            && room.is_tight()
        {
            let (free, reserve) = (Bytes(room.free), Bytes(room.reserve));
            problems.push(format!(
                "disk: {free} are free, and disk_reserve is {reserve}: delivered events are deleted before their retention ends, then lanes with full = \"shed-oldest\" shed events"
            ));
        }
        let dead_problem = dead_problem.or_else(|| match self.ingest.condition_of(self.journal.dead()) {
            Condition::Full(why) => Some(why),
            _ => None,
        });
        problems.extend(dead_problem.map(|why| format!("dead letters: {why}")));
        problems
    }

    /// Returns the problems of configuration, parts, links, ledger, sources and monitoring.
    fn part_problems(&self, status: &Status, view: &View, balances: &[Balance]) -> Vec<String> {
        let mut problems: Vec<_> = view.configured.as_ref().and_then(Configured::problem).into_iter().collect();
        problems.extend(self.failures.problems());
        problems.extend(down_links(&status.links));
        problems.extend(other_connections(&view.links, |state| {
            let (since, reason) = (state.since?, state.reason.as_ref().filter(|_| !state.is_up)?);
            Some(format!("{reason} (since {since})"))
        }));
        for budget in &status.budgets {
            problems.extend(used_up(budget));
        }
        problems.extend(balances.iter().filter_map(Balance::imbalance).map(|text| format!("ledger: {text}")));
        problems.extend(status.set_aside.iter().map(|file| format!("damaged file set aside: {file}")));
        for source in &status.sources {
            problems.extend(source.problem.iter().map(|why| format!("source {}: {why}", source.name)));
        }
        problems.extend(self.commands.problems());
        problems.extend(self.monitoring.problem());
        problems
    }

    /// Returns notes about removed destinations and lanes, memory, audit and sources.
    fn further_notes(&self, status: &Status, view: &View) -> Vec<String> {
        let mut notes = self.removed_with_backlog(&status.lanes, view);
        notes.extend(same_brokers(&view.links));
        notes.extend(other_connections(&view.links, |state| state.note.clone()));
        notes.extend(view.links.iter().filter_map(|link| link.is_bound_by_window(status)));
        notes.extend(tight_memory(status.memory));
        let audit = self.journal.audit_usage();
        if audit.removed > 0 {
            notes.push(format!(
                "audit: it is full with {} entries, and the {} oldest were deleted since the start; export it regularly: `forebay audit --limit 10000 --json`",
                grouped(audit.held),
                grouped(audit.removed)
            ));
        }
        notes.extend(view.links.iter().filter_map(|link| link.waits_for_hours(&status.lanes)));
        for source in &view.sources {
            notes.extend(source.stats.notes().iter().map(|note| format!("source {}: {note}", source.name)));
        }
        notes
    }

    /// Returns notes about removed destinations and lanes that still have undelivered events.
    fn removed_with_backlog(&self, lanes: &[LaneStatus], view: &View) -> Vec<String> {
        let is_configured = |name: &str| view.links.iter().any(|link| link.destination == name);
        let names = self.journal.destinations().into_iter().filter(|name| !is_configured(name));
        let note = |name: String| {
            let backlogs = lanes.iter().flat_map(|lane| &lane.destinations).filter(|to| to.destination == name);
            let owed: u64 = backlogs.map(|to| to.queued).sum();
            format!(
                "destination {name} is not in the configuration, and has {} undelivered events, which stay on the disk; `forebay destination drop {name}` discards them",
                grouped(owed)
            )
        };
        let retired = lanes.iter().filter(|lane| lane.retired).filter_map(|lane| {
            let owed = lane.destinations.iter().map(|to| to.queued).max().filter(|owed| *owed > 0)?;
            let name = &lane.name;
            Some(format!(
                "lane {name} is not in the configuration: it takes no new events, and its {} undelivered events are still sent",
                grouped(owed)
            ))
        });
        names.map(note).chain(retired).collect()
    }
}

/// Returns what `about` says of the connections besides those of the lanes, each once.
fn other_connections(links: &[LinkHandle], about: impl Fn(&LinkState) -> Option<String>) -> Vec<String> {
    let is_first = |index: usize| links[..index].iter().all(|other| other.destination != links[index].destination);
    let firsts = links.iter().enumerate().filter(|(index, _)| is_first(*index));
    let all =
        firsts.flat_map(|(_, link)| link.others.iter().map(move |(name, stats)| (&link.destination, name, stats)));
    all.filter_map(|(to, name, stats)| Some(format!("link {to}/{name}: {}", about(&stats.state())?))).collect()
}

/// Returns a note about each pair of destinations that are one broker.
fn same_brokers(links: &[LinkHandle]) -> Vec<String> {
    let mut found: Vec<(&str, &str)> = Vec::new();
    for (index, link) in links.iter().enumerate() {
        let Some(peer) = link.stats.state().peer else { continue };
        let others = links[..index].iter().filter(|other| other.destination != link.destination);
        for other in others.filter(|other| other.stats.state().peer.is_some_and(|theirs| theirs.is_same(&peer))) {
            let pair = (other.destination.as_str(), link.destination.as_str());
            if !found.contains(&pair) {
                found.push(pair);
            }
        }
    }
    let note = |(one, other): (&str, &str)| {
        format!(
            "destinations {one} and {other} are one broker (same address or certificate): it gets every event twice that both take; remove one of them, or give both different streams"
        )
    };
    found.into_iter().map(note).collect()
}

/// Returns the problems of links: one for each destination and reason, with the lanes, and since when.
fn down_links(links: &[LinkStatus]) -> Vec<String> {
    let mut causes: Vec<(&str, &str, Vec<&LinkStatus>)> = Vec::new();
    for link in links.iter().filter(|link| !link.is_up) {
        let reason = link.reason.as_deref().unwrap_or("not connected yet");
        match causes.iter_mut().find(|(to, why, _)| *to == link.destination && *why == reason) {
            Some((.., links)) => links.push(link),
            None => causes.push((&link.destination, reason, vec![link])),
        }
    }
    let problem = |(destination, reason, links): (&str, &str, Vec<&LinkStatus>)| {
        let lanes: Vec<&str> = links.iter().map(|link| link.lane.as_str()).collect();
        let since = links.iter().filter_map(|link| link.since.as_deref().and_then(Timestamp::parse)).min();
        let since = since.map_or_else(String::new, |since| {
            let span = rough(Timestamp::from(crate::clock::wall()).since(since));
            format!(" (down for {span}, since {})", since.to_string().get(..16).unwrap_or_default().replace('T', " "))
        });
        format!("link {destination}/{}: {reason}{since}", lanes.join(", "))
    };
    causes.into_iter().map(problem).collect()
}

/// Returns the problem of a destination whose lanes wait for a new day or month.
fn used_up(budget: &BudgetStatus) -> Option<String> {
    let (_, why) = budget.stopped.first()?;
    let lanes: Vec<&str> = budget.stopped.iter().map(|(lane, _)| lane.as_str()).collect();
    Some(format!(
        "destination {}: {why}: events of lane {} are kept until a new day or month begins, or budget is raised",
        budget.destination,
        lanes.join(", ")
    ))
}

/// Returns when the oldest event was recorded that a destination has not settled.
pub(super) fn oldest(lane: &Lane, to: &Backlog) -> Option<Timestamp> {
    let low = lane.settled(&to.destination).map_or(0, |settled| settled.low);
    if to.queued > 0 { lane.recorded_at(low) } else { None }
}

/// Returns notes about links, dead letters and damaged files.
fn notes(status: &Status) -> Vec<String> {
    let mut notes = Vec::new();
    if status.links.is_empty() {
        notes.push("no destination is configured: events are kept, and nothing leaves the gateway".to_owned());
    }
    if status.dead.held > 0 {
        notes.push(format!("dead letters: {}; see `forebay dead list`", grouped(status.dead.held)));
    }
    for link in &status.links {
        notes.extend(link.note.iter().map(|note| format!("link {}/{}: {note}", link.destination, link.lane)));
    }
    for link in &status.links {
        let refused = link.refused.as_ref().map(|why| {
            format!(
                "link {}/{}: central refuses events for now: {why}; they are tried again, and one publish per key is in flight until a minute passes without a refusal",
                link.destination, link.lane
            )
        });
        notes.extend(refused);
        if link.overtaken > 0 {
            notes.push(format!(
                "link {}/{}: {} events reached central behind later ones of their key, because central had refused them for now; see the events gateway.order, and order = \"strict\" in the contract",
                link.destination,
                link.lane,
                grouped(link.overtaken)
            ));
        }
    }
    for link in status.links.iter().filter(|link| link.unheard > 0) {
        let (unheard, to, lane) = (grouped(link.unheard), &link.destination, &link.lane);
        notes.push(format!("{unheard} events of lane {lane} were delivered to {to}, where nobody had subscribed"));
    }
    for lane in &status.lanes {
        for to in lane.destinations.iter().filter(|to| to.set_aside > 0) {
            let (count, name) = (grouped(to.set_aside), &to.destination);
            notes.push(format!("{count} events of lane {} for {name} were in files that are set aside", lane.name));
        }
    }
    notes
}

/// Returns a note when clients occupy nine tenths of their memory budget.
fn tight_memory(usage: MemoryUsage) -> Option<String> {
    let is_tight = usage.permits >= usage.permits_max / 10 * 9;
    is_tight.then(|| {
        format!(
            "memory: clients occupy {} of at most {}; the gateway refuses or slows further requests, see the setting memory ({})",
            Bytes(usage.permits as u64),
            Bytes(usage.permits_max as u64),
            Bytes(usage.limit)
        )
    })
}

/// Windows of a backlog from which on a full window is worth a note: less is sent within seconds.
const WINDOWS_QUEUED: u64 = 20;

/// Returns median and 99th percentile in milliseconds.
fn quantiles_ms(durations: &Histogram) -> (f64, f64) {
    let durations = durations.snapshot();
    (durations.quantile(0.5).as_secs_f64() * 1e3, durations.quantile(0.99).as_secs_f64() * 1e3)
}

impl LinkHandle {
    /// Returns a note if events wait for the sending hours of the lane.
    fn waits_for_hours(&self, lanes: &[LaneStatus]) -> Option<String> {
        let now = Timestamp::from(crate::clock::wall());
        let hours = self.hours.as_ref().filter(|hours| !hours.contains(now))?;
        let mut backlogs = lanes.iter().filter(|lane| lane.name == self.lane.name).flat_map(|lane| &lane.destinations);
        let backlog = backlogs.find(|to| to.destination == self.destination && to.queued > 0)?;
        let next = hours.next_start(now)?.strftime("%Y-%m-%d %H:%M %Z");
        let queued = grouped(backlog.queued);
        Some(format!(
            "lane {}: {queued} events for {} wait for the sending hours, which begin next at {next}",
            self.lane.name, self.destination
        ))
    }

    /// Returns a note if the broker allows fewer publishes in flight than the line and the backlog would need.
    fn is_bound_by_window(&self, status: &Status) -> Option<String> {
        let state = self.stats.state();
        let (window, lane) = (state.window, &self.lane.name);
        let is_full = state.is_up && state.is_window_of_broker && state.in_flight >= window;
        let outlook = status.outlooks.iter().find(|outlook| is_full && outlook.lane == *lane)?;
        let drain = outlook.drains.iter().find(|drain| drain.destination == self.destination)?;
        let (round_trip_ms, _) = quantiles_ms(&self.stats.answer);
        if drain.queued < WINDOWS_QUEUED * window as u64 || round_trip_ms <= 0.0 {
            return None;
        }
        Some(format!(
            "link {}/{lane}: the broker allows {window} publishes in flight (Receive Maximum), at {round_trip_ms:.0} ms to its answer {:.0} per second; {:.0} events per second arrive, and {} wait: raise the limit of the broker (Mosquitto: max_inflight_messages), or set batch = \"backlog\" or connections for the lane",
            self.destination,
            window as f64 * 1000.0 / round_trip_ms,
            outlook.events_per_second,
            grouped(drain.queued)
        ))
    }

    fn status(&self) -> LinkStatus {
        let state = self.stats.state();
        LinkStatus {
            lane: self.lane.name.clone(),
            destination: self.destination.clone(),
            is_up: state.is_up,
            since: state.since.map(|at| at.to_string()),
            reason: state.reason,
            note: state.note,
            in_flight: state.in_flight,
            sent: self.stats.sent.value(),
            delivered: self.stats.delivered.value(),
            unheard: self.stats.unheard.value(),
            refused_for_now: self.stats.refused_for_now.value(),
            overtaken: self.stats.overtaken.value(),
            refused: state.refused,
            answer_ms: quantiles_ms(&self.stats.answer),
        }
    }
}

impl SourceHandle {
    fn status(&self) -> SourceStatus {
        SourceStatus {
            name: self.name.clone(),
            kind: self.kind.to_string(),
            address: self.address.clone(),
            problem: self.stats.problem(),
            connections: self.stats.connections.value(),
            received: self.stats.received.value(),
            dropped: self.stats.dropped.value(),
            redelivered: self.stats.redelivered.value(),
            cut: self.stats.cut.value(),
            refused: self.stats.refused.value(),
            ack_ms: quantiles_ms(&self.stats.ack),
        }
    }
}
