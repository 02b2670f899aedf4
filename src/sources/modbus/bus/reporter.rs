//! Reporters: which points of a group share an event, and where their events go.

use super::super::change_detector::ChangeDetector;
use super::super::table::Device;
use crate::contract::{Sender, SourceKind};
use crate::ingest::{Ingest, Route};

/// A change detector, with the topic and route of its events.
pub(super) struct Reporter {
    pub(super) detector: ChangeDetector,
    pub(super) topic: String,
    pub(super) route: Route,
}

/// Returns the reporters of a group of a unit: one for the group, and one for each point that has a contract of its own.
pub(super) fn reporters(ingest: &Ingest, source: &str, unit: &str, device: &Device, group: usize) -> Vec<Reporter> {
    let group_topic = format!("{unit}/{}", device.groups[group].name);
    let reporter = |detector: ChangeDetector, topic: String| {
        let route = ingest.route(SourceKind::Modbus, source, &topic, Sender { client: unit, ..Sender::default() });
        Reporter { detector, topic, route }
    };
    let (mut in_group, mut single) = (Vec::new(), Vec::new());
    for (index, point) in device.points.iter().enumerate().filter(|(_, point)| point.group == group) {
        let topic = format!("{group_topic}/{}", point.name);
        if ingest.has_separate_contract(SourceKind::Modbus, source, &topic, &group_topic) {
            single.push(reporter(ChangeDetector::single(index), topic));
        } else {
            in_group.push(index);
        }
    }
    let grouped = (!in_group.is_empty()).then(|| reporter(ChangeDetector::new(in_group), group_topic));
    grouped.into_iter().chain(single).collect()
}
