//! The payload of an event: one JSON object for a group of points, or for a single point.

use super::change_detector::{ChangeDetector, EdgeChange, PointState, Reason};
use super::reading::{Moment, Reading};
use super::table::{Device, Group, Point};
use super::value::Value;
use crate::contract::push_json_string;
use crate::event::Timestamp;

/// Writes a JSON object member by member.
#[derive(Default)]
struct JsonObject(Vec<u8>);

impl JsonObject {
    fn key(&mut self, name: &str) -> &mut Vec<u8> {
        self.0.push(if self.0.is_empty() { b'{' } else { b',' });
        push_json_string(&mut self.0, name);
        self.0.push(b':');
        &mut self.0
    }

    fn text(&mut self, name: &str, text: &str) {
        push_json_string(self.key(name), text);
    }

    fn time(&mut self, name: &str, at: Timestamp) {
        let out = self.key(name);
        out.push(b'"');
        at.write_rfc3339(out);
        out.push(b'"');
    }

    fn number(&mut self, name: &str, number: impl std::fmt::Display) {
        self.key(name).extend_from_slice(number.to_string().as_bytes());
    }

    fn value(&mut self, name: &str, value: &Value) {
        match value {
            Value::Text(text) => self.text(name, text),
            // Numbers are finite, as JSON requires.
            other => self.number(name, other),
        }
    }

    /// Writes an object as a member, unless it is empty.
    fn inner(&mut self, name: &str, inner: JsonObject) {
        if !inner.0.is_empty() {
            self.key(name).extend_from_slice(&inner.end());
        }
    }

    fn list(&mut self, name: &str, items: &[Vec<u8>]) {
        if !items.is_empty() {
            let out = self.key(name);
            out.push(b'[');
            out.extend_from_slice(&items.join(&b','));
            out.push(b']');
        }
    }

    fn end(mut self) -> Vec<u8> {
        if self.0.is_empty() {
            self.0.push(b'{');
        }
        self.0.push(b'}');
        self.0
    }
}

/// The payload of an event. Its time is that of the last answer, or `now` while the device is silent.
pub(crate) fn payload(
    device: &Device,
    group: &Group,
    detector: &ChangeDetector,
    reason: Reason,
    now: Moment,
) -> Vec<u8> {
    let quality = detector.quality(group, now.instant);
    let mut out = JsonObject::default();
    let answered = detector.last_answer.filter(|_| detector.silence.is_none());
    out.time("ts", answered.unwrap_or(now.wall));
    out.text("reason", reason.name());
    out.text("quality", quality.name());
    if let Some(why) = &detector.silence {
        out.text("why", why);
        if let Some(last_answer) = detector.last_answer {
            out.time("last_heard", last_answer);
        }
    }
    let is_answering = detector.silence.is_none();
    match &detector.points[..] {
        [only] if detector.is_single => single(&mut out, &device.points[only.point], only, is_answering),
        states => grouped(&mut out, device, states, is_answering, reason),
    }
    out.end()
}

fn single(out: &mut JsonObject, point: &Point, state: &PointState, is_answering: bool) {
    match &state.current {
        Some(Reading::Good(value)) => out.value(if is_answering { "value" } else { "last" }, value),
        Some(Reading::Bad { reason, raw }) if is_answering => out.inner("bad", bad(reason, raw)),
        Some(Reading::Absent) if is_answering => out.number("absent", true),
        _ => {}
    }
    if let Some(unit) = &point.unit {
        out.text("unit", unit);
    }
    out.inner("count", count(point, state));
    let edges: Vec<_> = state.edges.iter().map(|change| edge(point, change)).collect();
    out.list("edges", &edges);
    if state.edges_cut > 0 {
        out.number("edges_cut", state.edges_cut);
    }
}

fn grouped(out: &mut JsonObject, device: &Device, states: &[PointState], is_answering: bool, reason: Reason) {
    let (mut values, mut counts, mut bad_values, mut units) =
        (JsonObject::default(), JsonObject::default(), JsonObject::default(), JsonObject::default());
    let (mut changed, mut edges, mut absent) = (Vec::new(), Vec::new(), Vec::new());
    for state in states {
        let point = &device.points[state.point];
        let name = || {
            let mut name = Vec::new();
            push_json_string(&mut name, &point.name);
            name
        };
        if reason == Reason::Change && state.has_changed(point, is_answering) {
            changed.push(name());
        }
        match &state.current {
            Some(Reading::Good(value)) => values.value(&point.name, value),
            Some(Reading::Absent) => absent.push(name()),
            Some(Reading::Bad { reason, raw }) => bad_values.inner(&point.name, bad(reason, raw)),
            None => {}
        }
        counts.inner(&point.name, count(point, state));
        edges.extend(state.edges.iter().map(|change| edge(point, change)));
        if let (Reason::Start, Some(unit)) = (reason, &point.unit) {
            units.text(&point.name, unit);
        }
    }
    out.list("changed", &changed);
    // Values of a silent device are no current values.
    out.inner(if is_answering { "values" } else { "last" }, values);
    out.inner("counts", counts);
    out.list("edges", &edges);
    let cut: u64 = states.iter().map(|state| state.edges_cut).sum();
    if cut > 0 {
        out.number("edges_cut", cut);
    }
    if is_answering {
        out.list("absent", &absent);
        out.inner("bad", bad_values);
    }
    out.inner("units", units);
}

fn edge(point: &Point, change: &EdgeChange) -> Vec<u8> {
    let mut out = JsonObject::default();
    out.text("point", &point.name);
    out.number("to", change.to);
    out.time("seen", change.at);
    out.time("after", change.after);
    out.end()
}

/// The step of a counter since the last event; empty if the counter did not move.
fn count(point: &Point, state: &PointState) -> JsonObject {
    let mut out = JsonObject::default();
    if point.counter.is_some() && state.counter.has_moved() {
        out.value("step", &state.step(point));
        for (name, count) in [("resets", state.counter.resets), ("withheld", state.counter.withheld)] {
            if count > 0 {
                out.number(name, count);
            }
        }
    }
    out
}

/// Why there is no value, and the raw registers.
fn bad(reason: &str, raw: &[u16]) -> JsonObject {
    let mut out = JsonObject::default();
    out.text("reason", reason);
    let numbers: Vec<Vec<u8>> = raw.iter().map(|register| register.to_string().into_bytes()).collect();
    out.list("raw", &numbers);
    out
}

#[cfg(test)]
mod tests {
    use super::super::reading::Registers;
    use super::super::table::Device;
    use super::*;
    use crate::clock;
    use crate::setting::Document;
    use serde_json::{Value as Json, json};
    use std::path::Path;

    const TABLE: &str = r#"
[group.g]
[[point]]
name = "power"
address = 0
scale = 0.1
unit = "kW"
[[point]]
name = "good"
address = 1
counter = true
[[point]]
name = "state"
address = 2
values = { 0 = "off", 1 = "running" }
[[point]]
name = "door"
address = 3
bit = 4
edge = "both"
"#;

    #[test]
    fn an_event_says_values_counts_edges_and_what_is_bad() {
        let device = Device::read(&Document::new(Path::new("t.toml"), TABLE.into())).expect("good");
        let (group, start) = (&device.groups[0], clock::instant());
        let mut detector = ChangeDetector::new(0..4);
        let mut read = |registers: [u16; 4], second: i64| -> Json {
            let at = Timestamp(second * 1_000_000);
            for (index, register) in registers.iter().enumerate() {
                let registers = Registers { address: index as u16, words: &[*register] };
                detector.take(&device, index, registers, Moment { wall: at, instant: start });
            }
            detector.complete(at);
            let reason = detector.due(&device, group, start).expect("due");
            let payload = payload(&device, group, &detector, reason, Moment { wall: at, instant: start });
            detector.mark_reported(group, start);
            serde_json::from_slice(&payload).expect("JSON")
        };
        assert_eq!(
            read([123, 10, 1, 0], 1),
            json!({"ts": "1970-01-01T00:00:01.000000Z", "reason": "start", "quality": "good",
                "values": {"power": 12.3, "good": 10, "state": "running", "door": false}, "units": {"power": "kW"}})
        );
        assert_eq!(
            read([123, 12, 9, 16], 2),
            json!({"ts": "1970-01-01T00:00:02.000000Z", "reason": "quality", "quality": "bad",
                "values": {"power": 12.3, "good": 12, "door": true}, "counts": {"good": {"step": 2}},
                "edges": [{"point": "door", "to": true, "seen": "1970-01-01T00:00:02.000000Z", "after": "1970-01-01T00:00:01.000000Z"}],
                "bad": {"state": {"reason": "9 is no value of the enumeration (0, 1)", "raw": [9]}}})
        );
        detector.mark_silent("no answer within 1s", start);
        let stale =
            payload(&device, group, &detector, Reason::Quality, Moment { wall: Timestamp(5_000_000), instant: start });
        assert_eq!(
            serde_json::from_slice::<Json>(&stale).expect("JSON"),
            json!({"ts": "1970-01-01T00:00:05.000000Z", "reason": "quality", "quality": "stale",
                "why": "no answer within 1s", "last_heard": "1970-01-01T00:00:02.000000Z",
                "last": {"power": 12.3, "good": 12, "door": true}})
        );
    }
}
