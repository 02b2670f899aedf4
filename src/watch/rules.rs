//! The rules: which conditions of orders, work orders, work centers and machines are exceptions.
//!
//! Invariant: the text of a condition contains nothing that changes with time alone, so an exception reports an update
//! only when the facts have changed.

use super::config::{Config, RuleSetting};
use crate::api::{ExceptionKind, Severity};
use crate::event::Timestamp;
use crate::sources::odoo::{Mirror, linked};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

const ORDER_KINDS: [ExceptionKind; 5] = [
    ExceptionKind::OrderNotReleased,
    ExceptionKind::OrderNotStarted,
    ExceptionKind::WaitingForMaterial,
    ExceptionKind::OrderLate,
    ExceptionKind::OrderNotClosed,
];
const MACHINE_KINDS: [ExceptionKind; 2] = [ExceptionKind::MachineWithoutOrder, ExceptionKind::OrderWithoutMachine];

/// A condition that makes an exception.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Condition {
    pub(super) kind: ExceptionKind,
    pub(super) severity: Severity,
    pub(super) source: String,
    pub(super) subject: String,
    pub(super) reference: String,
    pub(super) since: Timestamp,
    /// Whether the records contain the beginning. Otherwise `since` is the time of the first detection.
    pub(super) is_since_known: bool,
    pub(super) reason: String,
    pub(super) details: Value,
}

/// The identity of an open exception: kind, source and subject.
pub(super) type Key = (ExceptionKind, String, String);

impl Condition {
    pub(super) fn key(&self) -> Key {
        (self.kind, self.source.clone(), self.subject.clone())
    }
}

/// The last reported state of a machine.
#[derive(Clone, Debug)]
pub(super) struct Machine {
    pub(super) name: String,
    pub(super) work_center: String,
    pub(super) is_running: bool,
    pub(super) state: String,
    pub(super) since: Timestamp,
}

/// A record that the rules evaluate.
#[derive(Clone, Debug)]
struct FactRecord {
    source: String,
    id: i64,
    write_date: Timestamp,
    record: Map<String, Value>,
}

/// The input of the rules at one moment.
#[derive(Debug, Default)]
pub(super) struct Facts {
    /// Conditions of orders. Each order is evaluated by itself, so the thousands of records are not copied.
    orders: Vec<Condition>,
    work_orders: Vec<FactRecord>,
    work_centers: Vec<FactRecord>,
    stops: Vec<FactRecord>,
    /// Sources and models whose first load is complete.
    ready: BTreeSet<(String, String)>,
}

/// Selects the records to evaluate.
type RecordFilter = fn(&Map<String, Value>) -> bool;

impl Facts {
    /// Evaluates the orders, and copies the other records that the rules need.
    pub(super) fn gather(mirrors: &[Arc<Mirror>], now: Timestamp) -> Self {
        let mut facts = Self::default();
        let about = |mirror: &Mirror| (mirror.source().to_owned(), mirror.model().to_owned());
        facts.ready = mirrors.iter().map(|mirror| about(mirror)).collect();
        // Several contracts may each read a part of a model; all of them must be complete.
        mirrors.iter().filter(|mirror| !mirror.is_complete()).for_each(|mirror| {
            facts.ready.remove(&about(mirror));
        });
        for mirror in mirrors.iter().filter(|mirror| mirror.is_complete()) {
            let fact = |id, written: i64, record| FactRecord {
                source: mirror.source().to_owned(),
                id,
                write_date: Timestamp(written.saturating_mul(1_000_000)),
                record,
            };
            let (list, is_open): (&mut Vec<FactRecord>, RecordFilter) = match mirror.model() {
                "mrp.production" => {
                    mirror.each(|id, written, record| {
                        if is_unfinished(&record) {
                            check_order(&fact(id, written, record), now, &mut facts.orders);
                        }
                    });
                    continue;
                }
                "mrp.workorder" => (&mut facts.work_orders, is_running),
                "mrp.workcenter" => (&mut facts.work_centers, is_there),
                "mrp.workcenter.productivity" => (&mut facts.stops, is_timing),
                _ => continue,
            };
            mirror.each(|id, written, record| {
                if is_open(&record) {
                    list.push(fact(id, written, record));
                }
            });
        }
        facts
    }

    /// The sources and kinds that can be evaluated, because the models they need are loaded completely.
    pub(super) fn decidable(&self, has_machines: bool) -> BTreeSet<(String, ExceptionKind)> {
        let mut decidable = BTreeSet::new();
        for (source, model) in &self.ready {
            let kinds: &[ExceptionKind] = match model.as_str() {
                "mrp.production" => &ORDER_KINDS,
                "mrp.workorder" => &[ExceptionKind::WorkOrderOverTime],
                "mrp.workcenter" => &[ExceptionKind::WorkCenterBlocked],
                _ => continue,
            };
            decidable.extend(kinds.iter().map(|kind| (source.clone(), *kind)));
            if has_machines
                && model == "mrp.workorder"
                && self.ready.contains(&(source.clone(), "mrp.workcenter".to_owned()))
            {
                decidable.extend(MACHINE_KINDS.map(|kind| (source.clone(), kind)));
            }
        }
        decidable
    }
}

fn is_unfinished(record: &Map<String, Value>) -> bool {
    !matches!(text(record, "state"), Some("done" | "cancel") | None)
}

fn is_running(record: &Map<String, Value>) -> bool {
    text(record, "state") == Some("progress")
}

fn is_timing(record: &Map<String, Value>) -> bool {
    text(record, "date_end").is_none()
}

fn is_there(_: &Map<String, Value>) -> bool {
    true
}

fn text<'r>(record: &'r Map<String, Value>, field: &str) -> Option<&'r str> {
    record.get(field).and_then(Value::as_str)
}

fn time(record: &Map<String, Value>, field: &str) -> Option<Timestamp> {
    text(record, field).and_then(Timestamp::parse)
}

/// The display text of a field: its text, or the name of a linked record.
fn name(record: &Map<String, Value>, field: &str) -> String {
    let value = record.get(field).unwrap_or(&Value::Null);
    let name = value.get("name").unwrap_or(value);
    name.as_str().map_or_else(|| name.to_string(), str::to_owned)
}

/// Returns the conditions that hold now and have lasted for the duration of their rule.
pub(super) fn conditions(
    config: &Config,
    facts: &Facts,
    machines: &[Machine],
    now: Timestamp,
    first_seen: &mut HashMap<Key, Timestamp>,
) -> Vec<Condition> {
    let mut found = facts.orders.clone();
    check_work_orders(facts, now, &mut found);
    check_work_centers(facts, now, &mut found);
    check_machines(facts, machines, &mut found);
    let mut seen = HashMap::new();
    found.retain_mut(|condition| {
        let setting = config.rule.get(&condition.kind).copied().unwrap_or_default();
        let RuleSetting { after, severity, enabled } = setting;
        let (after_default, severity_default) = condition.kind.defaults();
        condition.severity = severity.unwrap_or(severity_default);
        if !condition.is_since_known {
            let key = condition.key();
            condition.since = first_seen.get(&key).copied().unwrap_or(now);
            seen.insert(key, condition.since);
        }
        enabled != Some(false) && now.since(condition.since) >= after.map_or(after_default, |span| span.0)
    });
    // A condition that no longer holds starts with a new time when it occurs again.
    *first_seen = seen;
    found
}

struct ConditionText<'a> {
    kind: ExceptionKind,
    since: Option<Timestamp>,
    reference: String,
    reason: String,
    fields: &'a [&'a str],
}

fn push(found: &mut Vec<Condition>, model: &str, fact: &FactRecord, text: ConditionText<'_>) {
    let details: Map<String, Value> =
        text.fields.iter().filter_map(|field| Some(((*field).to_owned(), fact.record.get(*field)?.clone()))).collect();
    found.push(Condition {
        kind: text.kind,
        severity: Severity::Info,
        source: fact.source.clone(),
        subject: format!("{model}/{}", fact.id),
        reference: text.reference,
        since: text.since.unwrap_or(Timestamp(0)),
        is_since_known: text.since.is_some(),
        reason: text.reason,
        details: Value::Object(details),
    });
}

fn check_order(order: &FactRecord, now: Timestamp, found: &mut Vec<Condition>) {
    const FIELDS: [&str; 8] = [
        "origin",
        "state",
        "product_id",
        "product_qty",
        "date_start",
        "date_finished",
        "date_deadline",
        "reservation_state",
    ];
    let record = &order.record;
    let state = text(record, "state").unwrap_or_default();
    let start = time(record, "date_start");
    let mut add = |kind, since: Option<Timestamp>, reason: &str| {
        let reference = name(record, "name");
        let reason = format!("order {reference} {reason}");
        push(found, "mrp.production", order, ConditionText { kind, since, reference, reason, fields: &FIELDS });
    };
    if let Some(start) = start.filter(|start| *start < now) {
        match state {
            "draft" => add(ExceptionKind::OrderNotReleased, Some(start), "was to start and is not released"),
            "confirmed" => add(ExceptionKind::OrderNotStarted, Some(start), "was to start and has not"),
            _ => {}
        }
    }
    let waits = matches!(text(record, "reservation_state"), Some("confirmed" | "waiting"));
    if waits && matches!(state, "confirmed" | "progress") {
        add(ExceptionKind::WaitingForMaterial, None, "waits for components");
    }
    if let Some(deadline) = time(record, "date_deadline") {
        if deadline < now {
            add(ExceptionKind::OrderLate, Some(deadline), "is past its due date");
        } else if state != "draft" && time(record, "date_finished").is_some_and(|end| end > deadline) {
            add(ExceptionKind::OrderLate, None, "is planned to end after its due date");
        }
    }
    if state == "to_close" {
        add(ExceptionKind::OrderNotClosed, Some(order.write_date), "is done and not closed");
    }
}

fn check_work_orders(facts: &Facts, now: Timestamp, found: &mut Vec<Condition>) {
    // Time entries that still run; `duration` is the sum of the ended ones.
    let mut running: BTreeMap<(&str, i64), Vec<Timestamp>> = BTreeMap::new();
    for stop in &facts.stops {
        let work_order = stop.record.get("workorder_id").and_then(linked);
        if let (Some(work_order), Some(start)) = (work_order, time(&stop.record, "date_start")) {
            running.entry((&stop.source, work_order)).or_default().push(start);
        }
    }
    for work_order in &facts.work_orders {
        let number = |field: &str| work_order.record.get(field).and_then(Value::as_f64).unwrap_or(0.0);
        let open = running.get(&(work_order.source.as_str(), work_order.id)).map_or(&[][..], Vec::as_slice);
        let minutes: f64 = open.iter().map(|start| now.since(*start).as_secs_f64() / 60.0).sum();
        let expected = number("duration_expected");
        let left = expected - number("duration");
        if expected > 0.0 && minutes > left {
            // With one running time entry, the moment at which the time was used up can be computed to the second.
            let since = match open {
                [start] if left >= 0.0 => Some(start.plus(Duration::from_secs_f64((left * 60.0).round()))),
                _ => None,
            };
            let reference =
                format!("{} {}", name(&work_order.record, "production_id"), name(&work_order.record, "name"));
            let reason = format!("work order {reference} takes longer than {expected:.0} minutes");
            let fields = ["production_id", "workcenter_id", "duration_expected", "date_start"];
            let text =
                ConditionText { kind: ExceptionKind::WorkOrderOverTime, since, reference, reason, fields: &fields };
            push(found, "mrp.workorder", work_order, text);
        }
    }
}

/// Time in which the stop of a work center becomes known after its block: it is a record of another model.
const STOP_WAIT_MAX: Duration = Duration::from_secs(15);

fn check_work_centers(facts: &Facts, now: Timestamp, found: &mut Vec<Condition>) {
    for center in facts.work_centers.iter().filter(|one| text(&one.record, "working_state") == Some("blocked")) {
        let stop = facts.stops.iter().find(|stop| {
            stop.source == center.source
                && stop.record.get("workcenter_id").and_then(linked) == Some(center.id)
                && text(&stop.record, "loss_type") != Some("productive")
        });
        let has_stops = facts.ready.contains(&(center.source.clone(), "mrp.workcenter.productivity".into()));
        if stop.is_none() && has_stops && now >= center.write_date && now.since(center.write_date) < STOP_WAIT_MAX {
            continue;
        }
        let since = stop.and_then(|stop| time(&stop.record, "date_start"));
        let reference = reference_of(center);
        let why = stop.map(|stop| name(&stop.record, "loss_id")).filter(|why| why != "null");
        let reason = match why {
            Some(why) => format!("work center {reference} is blocked: {why}"),
            None => format!("work center {reference} is blocked"),
        };
        let fields = ["name", "code", "working_state"];
        push(
            found,
            "mrp.workcenter",
            center,
            ConditionText { kind: ExceptionKind::WorkCenterBlocked, since, reference, reason, fields: &fields },
        );
    }
}

fn reference_of(center: &FactRecord) -> String {
    text(&center.record, "code").map_or_else(|| name(&center.record, "name"), str::to_owned)
}

fn check_machines(facts: &Facts, machines: &[Machine], found: &mut Vec<Condition>) {
    for machine in machines {
        let center = facts.work_centers.iter().find(|center| reference_of(center) == machine.work_center);
        let Some(center) = center else { continue };
        let mut in_progress = facts.work_orders.iter().filter(|work_order| {
            work_order.source == center.source
                && work_order.record.get("workcenter_id").and_then(linked) == Some(center.id)
        });
        let (name_of, code) = (&machine.name, &machine.work_center);
        let details = json!({"machine": machine.name, "work_center": code, "state": machine.state});
        let condition = |kind, subject: String, reference: String, since, is_since_known, reason| Condition {
            kind,
            severity: Severity::Info,
            source: center.source.clone(),
            subject,
            reference,
            since,
            is_since_known,
            reason,
            details: details.clone(),
        };
        match (machine.is_running, in_progress.next()) {
            (true, None) => found.push(condition(
                ExceptionKind::MachineWithoutOrder,
                format!("machine/{name_of}"),
                name_of.clone(),
                // The machine may have run with an order before: the time of the first detection counts.
                Timestamp(0),
                false,
                format!("machine {name_of} runs, and no work order is in progress at {code}"),
            )),
            (false, Some(first)) => {
                for work_order in std::iter::once(first).chain(in_progress) {
                    let began = time(&work_order.record, "date_start").unwrap_or(machine.since);
                    let reference = name(&work_order.record, "production_id");
                    let reason = format!(
                        "work order of {reference} is in progress at {code}, and machine {name_of} does not run"
                    );
                    let subject = format!("mrp.workorder/{}", work_order.id);
                    let since = machine.since.max(began);
                    found.push(condition(ExceptionKind::OrderWithoutMachine, subject, reference, since, true, reason));
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-11-25T12:00:00Z";

    fn fact(id: i64, record: Value) -> FactRecord {
        let record = record.as_object().cloned().expect("an object");
        let write_date = Timestamp::parse("2026-11-25T10:00:00Z").expect("a time");
        FactRecord { source: "erp".into(), id, write_date, record }
    }

    fn kinds(facts: &Facts, machines: &[Machine], config: &str) -> Vec<(ExceptionKind, String)> {
        let config: Config = toml::from_str(config).expect("a configuration");
        let now = Timestamp::parse(NOW).expect("a time");
        let mut first_seen = HashMap::new();
        let found = conditions(&config, facts, machines, now, &mut first_seen);
        found.into_iter().map(|condition| (condition.kind, condition.since.to_string())).collect()
    }

    fn of(record: Value, config: &str) -> Vec<(ExceptionKind, String)> {
        let mut facts = Facts::default();
        check_order(&fact(1, record), Timestamp::parse(NOW).expect("a time"), &mut facts.orders);
        kinds(&facts, &[], config)
    }

    #[test]
    fn orders_that_are_not_as_they_should_be_are_found() {
        let start = "2026-11-25T11:00:00Z";
        let at = |text: &str| text.replace('Z', ".000000Z");
        let draft = json!({"name": "MO/1", "state": "draft", "date_start": start});
        assert_eq!(of(draft.clone(), ""), [(ExceptionKind::OrderNotReleased, at(start))]);
        assert_eq!(of(draft.clone(), "rule.order-not-released.after = \"2h\""), [], "not yet");
        assert_eq!(of(draft, "rule.order-not-released.enabled = false"), []);
        let confirmed =
            json!({"name": "MO/1", "state": "confirmed", "date_start": start, "reservation_state": "waiting"});
        assert_eq!(
            of(confirmed, ""),
            [(ExceptionKind::OrderNotStarted, at(start)), (ExceptionKind::WaitingForMaterial, at(NOW))]
        );
        let late = json!({"name": "MO/1", "state": "progress", "date_deadline": start});
        assert_eq!(of(late, ""), [(ExceptionKind::OrderLate, at(start))]);
        let planned = json!({"name": "MO/1", "state": "progress", "date_deadline": "2026-11-26T11:00:00Z", "date_finished": "2026-11-27T11:00:00Z"});
        assert_eq!(of(planned, ""), [(ExceptionKind::OrderLate, at(NOW))]);
        let to_close = json!({"name": "MO/1", "state": "to_close"});
        assert_eq!(of(to_close, ""), [(ExceptionKind::OrderNotClosed, at("2026-11-25T10:00:00Z"))]);
        let future = json!({"name": "MO/1", "state": "draft", "date_start": "2026-11-26T11:00:00Z"});
        assert_eq!(of(future, ""), []);
    }

    #[test]
    fn work_orders_centers_and_machines_are_looked_at_together() {
        let work_order = json!({"name": "Cut", "production_id": {"id": 1, "name": "MO/1"}, "workcenter_id": {"id": 2, "name": "Sawing"},
            "state": "progress", "duration": 4.0, "duration_expected": 10.0, "date_start": "2026-11-25T11:00:00Z"});
        let timer = json!({"workorder_id": 7, "workcenter_id": {"id": 2, "name": "Sawing"}, "loss_type": "productive",
            "date_start": "2026-11-25T11:50:00Z", "date_end": null});
        let stop = json!({"workorder_id": null, "workcenter_id": {"id": 2, "name": "Sawing"}, "loss_type": "availability",
            "loss_id": {"id": 3, "name": "Equipment Failure"}, "date_start": "2026-11-25T11:30:00Z", "date_end": null});
        let center = json!({"name": "Sawing", "code": "SAW", "working_state": "blocked"});
        let facts = Facts {
            work_orders: vec![fact(7, work_order)],
            work_centers: vec![fact(2, center)],
            stops: vec![fact(1, timer), fact(2, stop)],
            ..Facts::default()
        };
        let machine = |is_running| Machine {
            name: "press-4".into(),
            work_center: "SAW".into(),
            is_running,
            state: "idle".into(),
            since: Timestamp::parse("2026-11-25T11:20:00Z").expect("a time"),
        };
        let expected = [
            // 4 of 10 minutes had ended, 10 more run: 4 over.
            (ExceptionKind::WorkOrderOverTime, "2026-11-25T11:56:00.000000Z".to_owned()),
            (ExceptionKind::WorkCenterBlocked, "2026-11-25T11:30:00.000000Z".to_owned()),
            (ExceptionKind::OrderWithoutMachine, "2026-11-25T11:20:00.000000Z".to_owned()),
        ];
        assert_eq!(kinds(&facts, &[machine(false)], ""), expected);
        assert_eq!(kinds(&facts, &[machine(true)], ""), expected[..2]);
        let idle = Facts { work_centers: facts.work_centers, ..Facts::default() };
        let config = "rule.machine-without-order.after = \"0s\"\nrule.work-center-blocked.enabled = false";
        assert_eq!(
            kinds(&idle, &[machine(true)], config),
            [(ExceptionKind::MachineWithoutOrder, "2026-11-25T12:00:00.000000Z".into())]
        );
        assert_eq!(
            kinds(&idle, &[machine(true)], "rule.work-center-blocked.enabled = false"),
            [],
            "not for ten minutes yet"
        );
    }

    #[test]
    fn a_block_waits_a_moment_for_its_reason() {
        let blocked = |at: &str, is_read: bool| {
            let center = json!({"name": "Sawing", "code": "SAW", "working_state": "blocked"});
            let center = FactRecord { write_date: Timestamp::parse(at).expect("a time"), ..fact(2, center) };
            let stops = (center.source.clone(), "mrp.workcenter.productivity".to_owned());
            let ready = if is_read { BTreeSet::from([stops]) } else { BTreeSet::new() };
            let facts = Facts { work_centers: vec![center], ready, ..Facts::default() };
            kinds(&facts, &[], "").len()
        };
        assert_eq!(blocked("2026-11-25T11:59:50Z", true), 0);
        assert_eq!(blocked("2026-11-25T11:59:45Z", true), 1, "Odoo has no stop of it");
        assert_eq!(blocked("2026-11-25T12:00:30Z", true), 1, "the clock of Odoo is ahead");
        assert_eq!(blocked("2026-11-25T11:59:50Z", false), 1, "stops are not read");
    }
}
