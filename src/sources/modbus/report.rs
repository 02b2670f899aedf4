//! What an event says: one JSON object for a group of points, or for one of them.

use super::table::{Device, Group, Point};
use super::value::Value;
use super::watch::{Member, Reading, Reason, Seen, Watch};
use crate::contract::push_json_string;
use crate::event::Timestamp;
use std::time::Instant;

/// JSON in the making: members of one object after another.
#[derive(Default)]
struct Object(Vec<u8>);

impl Object {
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
            // Finite, so that it is JSON.
            other => self.number(name, other),
        }
    }

    /// A member that is there only if it says something.
    fn inner(&mut self, name: &str, inner: Object) {
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

/// The payload of an event. `now` is what the clock says, where nothing was read.
pub fn payload(device: &Device, group: &Group, watch: &Watch, reason: Reason, at: Instant, now: Timestamp) -> Vec<u8> {
    let quality = watch.quality(group, at);
    let mut out = Object::default();
    let heard = watch.heard.filter(|_| watch.silence.is_none());
    out.time("ts", heard.unwrap_or(now));
    out.text("reason", reason.name());
    out.text("quality", quality.name());
    if let Some(why) = &watch.silence {
        out.text("why", why);
        if let Some(heard) = watch.heard {
            out.time("last_heard", heard);
        }
    }
    match &watch.members[..] {
        [only] if watch.is_single => single(&mut out, &device.points[only.point], only, watch.silence.is_none()),
        members => grouped(&mut out, device, members, watch.silence.is_none(), reason),
    }
    out.end()
}

fn single(out: &mut Object, point: &Point, member: &Member, is_heard: bool) {
    match &member.now {
        Some(Reading::Good(value)) => out.value(if is_heard { "value" } else { "last" }, value),
        Some(Reading::Bad { reason, raw }) if is_heard => out.inner("bad", unfit(reason, raw)),
        _ => {}
    }
    if let Some(unit) = &point.unit {
        out.text("unit", unit);
    }
    out.inner("count", count(point, member));
    let edges: Vec<_> = member.edges.iter().map(|edge| seen(point, edge)).collect();
    out.list("edges", &edges);
    if member.edges_cut > 0 {
        out.number("edges_cut", member.edges_cut);
    }
}

fn grouped(out: &mut Object, device: &Device, members: &[Member], is_heard: bool, reason: Reason) {
    let (mut values, mut counts, mut bad, mut units) =
        (Object::default(), Object::default(), Object::default(), Object::default());
    let (mut changed, mut edges) = (Vec::new(), Vec::new());
    for member in members {
        let point = &device.points[member.point];
        if reason == Reason::Change && member.has_changed(point, is_heard) {
            let mut name = Vec::new();
            push_json_string(&mut name, &point.name);
            changed.push(name);
        }
        match &member.now {
            Some(Reading::Good(value)) => values.value(&point.name, value),
            Some(Reading::Bad { reason, raw }) => bad.inner(&point.name, unfit(reason, raw)),
            None => {}
        }
        counts.inner(&point.name, count(point, member));
        edges.extend(member.edges.iter().map(|edge| seen(point, edge)));
        if let (Reason::Start, Some(unit)) = (reason, &point.unit) {
            units.text(&point.name, unit);
        }
    }
    out.list("changed", &changed);
    // What was known last is no value of now.
    out.inner(if is_heard { "values" } else { "last" }, values);
    out.inner("counts", counts);
    out.list("edges", &edges);
    let cut: u64 = members.iter().map(|member| member.edges_cut).sum();
    if cut > 0 {
        out.number("edges_cut", cut);
    }
    if is_heard {
        out.inner("bad", bad);
    }
    out.inner("units", units);
}

fn seen(point: &Point, edge: &Seen) -> Vec<u8> {
    let mut out = Object::default();
    out.text("point", &point.name);
    out.number("to", edge.to);
    out.time("seen", edge.at);
    out.time("after", edge.after);
    out.end()
}

/// How far a counter has counted; empty where it has not.
fn count(point: &Point, member: &Member) -> Object {
    let mut out = Object::default();
    if point.counter.is_some() && (member.counted.step != 0 || member.counted.resets > 0) {
        out.value("step", &point.encoding.scaled_step(member.counted.step));
        if member.counted.resets > 0 {
            out.number("resets", member.counted.resets);
        }
    }
    out
}

/// Why there is no value, and the registers as they are.
fn unfit(reason: &str, raw: &[u16]) -> Object {
    let mut out = Object::default();
    out.text("reason", reason);
    let numbers: Vec<Vec<u8>> = raw.iter().map(|register| register.to_string().into_bytes()).collect();
    out.list("raw", &numbers);
    out
}

#[cfg(test)]
mod tests {
    use super::super::table::Device;
    use super::super::watch::Watch;
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
        let mut watch = Watch::new(0..4);
        let mut read = |registers: [u16; 4], second: i64| -> Json {
            let at = Timestamp(second * 1_000_000);
            for (index, register) in registers.iter().enumerate() {
                watch.take(&device, index, &[*register], at);
            }
            watch.complete(at);
            let reason = watch.due(&device, group, start).expect("due");
            let payload = payload(&device, group, &watch, reason, start, at);
            watch.told(group, start);
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
        watch.miss("no answer within 1s", start);
        let stale = payload(&device, group, &watch, Reason::Quality, start, Timestamp(5_000_000));
        assert_eq!(
            serde_json::from_slice::<Json>(&stale).expect("JSON"),
            json!({"ts": "1970-01-01T00:00:05.000000Z", "reason": "quality", "quality": "stale",
                "why": "no answer within 1s", "last_heard": "1970-01-01T00:00:02.000000Z",
                "last": {"power": 12.3, "good": 12, "door": true}})
        );
    }
}
