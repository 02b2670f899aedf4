//! All metrics with name, unit and help text, and the Prometheus text format.
//!
//! Promise: names and label values come only from this file and the configuration. Their number is bounded by lanes,
//! destinations, sources, streams and files, and independent of devices, keys and events.

use super::Snapshot;
use std::fmt::Write;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// Only rises, from 0 at the start of the process or at the creation of the journal.
    Counter,
    Gauge,
    Histogram,
}

#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// Name of the metric; ends with the unit.
    pub name: &'static str,
    pub kind: MetricKind,
    pub help: &'static str,
}

macro_rules! families {
    ($($id:ident $kind:ident $name:literal $help:literal)*) => {
        $(
            #[doc = $help]
            pub const $id: Family = Family { name: $name, kind: MetricKind::$kind, help: $help };
        )*
        pub const FAMILIES: &[Family] = &[$($id),*];
    };
}

families! {
    BUILD Gauge "forebay_build_info" "Version and place of the running program; always 1."
    UPTIME Gauge "forebay_uptime_seconds" "Time since the start."
    HEALTHY Gauge "forebay_healthy" "Whether /healthz reports that the gateway is live: 1 or 0."
    READY Gauge "forebay_ready" "Whether /readyz reports that the gateway accepts events: 1 or 0."
    PROBLEMS Gauge "forebay_problems" "Problems that forebay status shows."
    PART_RESTARTS Counter "forebay_part_restarts_total" "Restarts of a part of the gateway after a failure."
    CONFIGURED Gauge "forebay_configuration_timestamp_seconds" "Time at which the configuration came into force, in seconds since 1970."
    REFUSED_CONFIGURATION Gauge "forebay_configuration_refused" "Whether a newer configuration is refused: 1 or 0."
    CLOCK_TRUSTED Gauge "forebay_clock_trusted" "Whether the clock is trusted: 1 or 0."
    CLOCK Gauge "forebay_clock_timestamp_seconds" "The time of the gateway, in seconds since 1970."
    CERTIFICATE_EXPIRY Gauge "forebay_certificate_expiry_timestamp_seconds" "Expiry of the first certificate in a file, in seconds since 1970."
    REVOCATION_EXPIRY Gauge "forebay_revocation_list_expiry_timestamp_seconds" "End of the first revocation list in a file (next update), in seconds since 1970."
    LANE_ACCEPTED Counter "forebay_lane_accepted_events_total" "Events that a lane has accepted since the journal was created."
    LANE_DUPLICATES Counter "forebay_lane_duplicate_events_total" "Repeats that were recognised, acknowledged and not stored again."
    LANE_CONFLICTS Counter "forebay_lane_id_conflicts_total" "Events with a known id but another payload, stored under a new id."
    LANE_COMMITS Histogram "forebay_lane_commit_duration_seconds" "Duration of a commit to the disk, fsync included."
    LANE_FAILED_COMMITS Counter "forebay_lane_failed_commits_total" "Commits that failed."
    LANE_BYTES Gauge "forebay_lane_disk_bytes" "Disk usage of the log of a lane."
    LANE_BUDGET Gauge "forebay_lane_budget_bytes" "Disk budget of the log of a lane."
    LANE_SEGMENTS Gauge "forebay_lane_segments" "Segment files of a lane."
    LANE_FULL Gauge "forebay_lane_full" "Whether a lane has no room, so that nothing is acknowledged: 1 or 0."
    LANE_FAILED Gauge "forebay_lane_failed" "Whether the disk of a lane fails, so that nothing is acknowledged: 1 or 0."
    LANE_LASTS Gauge "forebay_lane_time_to_full_seconds" "Time until the budget of a lane is used up if central accepts nothing more; absent if unknown."
    STREAM_ACCEPTED Counter "forebay_stream_accepted_events_total" "Events that a stream has accepted since the journal was created."
    BACKLOG_EVENTS Gauge "forebay_backlog_events" "Events that a destination has not settled."
    BACKLOG_BYTES Gauge "forebay_backlog_bytes" "Approximate size of these events in the log."
    BACKLOG_AGE Gauge "forebay_backlog_age_seconds" "Age of the oldest of these events; 0 if there is none."
    LEDGER Gauge "forebay_ledger_events" "Events by account since the journal was created; owed is the sum of all other accounts."
    LEDGER_IMBALANCE Gauge "forebay_ledger_imbalance_events" "Difference between the accounts and the cursor; any value but 0 is an error."
    LINK_UP Gauge "forebay_link_up" "Whether a link has a session with its destination: 1 or 0."
    LINK_IN_FLIGHT Gauge "forebay_link_in_flight_publishes" "Publishes that the destination has not answered yet."
    LINE_RATE Gauge "forebay_line_bytes_per_second" "Bytes per second that the line to a destination carries at least, as acknowledgements show it."
    LINE_ROUND_TRIP Gauge "forebay_line_round_trip_seconds" "Shortest time of late from sending a publish to its acknowledgement."
    LINE_IN_FLIGHT Gauge "forebay_line_in_flight_bytes" "Bytes that are written to the line and not acknowledged."
    LINK_WINDOW Gauge "forebay_link_window_publishes" "Largest number of publishes in flight: the setting window, or what the broker allows; 0 without a session."
    LINK_SENT Counter "forebay_link_publishes_total" "Publishes sent, repeats included; a publish may contain many events."
    LINK_REPEATED Counter "forebay_link_repeated_publishes_total" "Publishes sent again because their acknowledgement was lost with the session."
    LINK_DELIVERED Counter "forebay_link_delivered_events_total" "Events that the destination acknowledged."
    LINK_UNHEARD Counter "forebay_link_unheard_events_total" "Publishes acknowledged with no matching subscribers at the destination."
    LINK_REFUSED Counter "forebay_link_refused_publishes_total" "Publishes that the destination refused temporarily; they are sent again."
    LINK_OVERTAKEN Counter "forebay_link_overtaken_events_total" "Events that later ones of their key may have overtaken, because the destination refused them temporarily."
    LINK_DEAD Counter "forebay_link_dead_letters_total" "Events that became dead letters because the destination refused them."
    LINK_CONNECTS Counter "forebay_link_connects_total" "Sessions opened."
    LINK_FAILURES Counter "forebay_link_failures_total" "Lost sessions and failed attempts to open one."
    LINK_ANSWER Histogram "forebay_link_answer_duration_seconds" "Time from sending a publish to its acknowledgement."
    LINK_SETTLE Histogram "forebay_link_settle_duration_seconds" "Time from accepting an event to its acknowledgement by the destination; for a batch, of its oldest event."
    DESTINATION_BYTES Counter "forebay_destination_bytes_total" "Bytes on the line in both directions, with an estimate of TCP and IP headers."
    DESTINATION_USED Gauge "forebay_destination_period_bytes" "Bytes on the line in the present day or month."
    DESTINATION_BUDGET Gauge "forebay_destination_budget_bytes" "Budget of the day or month."
    SOURCE_UP Gauge "forebay_source_up" "Whether a source works: 1 or 0."
    SOURCE_CONNECTIONS Gauge "forebay_source_connections" "Open connections of a source."
    SOURCE_CONNECTS Counter "forebay_source_connects_total" "Connections that a source accepted or opened."
    SOURCE_RECEIVED Counter "forebay_source_received_total" "Publishes, requests or readings that arrived at a source."
    SOURCE_DROPPED Counter "forebay_source_dropped_events_total" "Events dropped for lack of room, from senders that expect no acknowledgement."
    SOURCE_REDELIVERED Counter "forebay_source_redelivered_events_total" "Redeliveries without an event id that were recognised as repeats."
    SOURCE_CUT Counter "forebay_source_cut_events_total" "Events not sent to subscribers that were too far behind."
    SOURCE_REFUSED Counter "forebay_source_refused_total" "Connections, requests or readings refused or failed, by reason."
    SOURCE_ACK Histogram "forebay_source_ack_duration_seconds" "Time from the arrival of an event to its acknowledgement, fsync included."
    SOURCE_ANSWERED Gauge "forebay_source_last_answer_timestamp_seconds" "Time of the last response of an Odoo server or a Modbus device, in seconds since 1970; 0 if none since the start."
    SECURITY Counter "forebay_security_events_total" "Refusals, disconnects and changes with security relevance since the start, by cause."
    AUDIT_HELD Gauge "forebay_audit_entries" "Entries in the audit."
    AUDIT_REMOVED Counter "forebay_audit_removed_entries_total" "Audit entries removed to make room for newer ones."
    UNMATCHED Counter "forebay_unmatched_events_total" "Events that became dead letters because no contract matched."
    VIOLATIONS Counter "forebay_contract_violations_total" "Events that became dead letters because they broke their contract."
    FLAGGED Counter "forebay_flagged_events_total" "Events that broke their contract and were delivered with a mark."
    DEAD_WRITTEN Counter "forebay_dead_letters_total" "Dead letters written since the journal was created."
    DEAD_HELD Gauge "forebay_dead_letters_held" "Dead letters in the journal, resolved ones included."
    DEDUPE_IDS Gauge "forebay_dedupe_window_ids" "Ids in the dedupe window."
    DEDUPE_IDS_MAX Gauge "forebay_dedupe_window_ids_limit" "Capacity of the dedupe window in ids."
    SPARKPLUG_NODES Gauge "forebay_sparkplug_nodes" "Known Sparkplug edge nodes."
    SPARKPLUG_BYTES Gauge "forebay_sparkplug_bytes" "Memory for metrics that Sparkplug births declared."
    SPARKPLUG_FORGOTTEN Counter "forebay_sparkplug_forgotten_nodes_total" "Sparkplug nodes whose birth was evicted from memory."
    SPARKPLUG_GAPS Counter "forebay_sparkplug_gaps_total" "Gaps in the sequence numbers of Sparkplug messages."
    SPARKPLUG_REFUSED Counter "forebay_sparkplug_refused_total" "Undecodable Sparkplug messages."
    SPARKPLUG_REBIRTHS Counter "forebay_sparkplug_rebirth_requests_total" "Rebirth requests sent to Sparkplug nodes."
    EXCEPTIONS Gauge "forebay_exceptions_open" "Open business exceptions."
    REPLAYS Gauge "forebay_replays_running" "Running replays."
    SET_ASIDE Gauge "forebay_set_aside_files" "Damaged files that were set aside."
    DISK_FREE Gauge "forebay_disk_free_bytes" "Free space on the file system of the journal."
    DISK_RESERVE Gauge "forebay_disk_reserve_bytes" "Space that the journal keeps free on its file system."
    DISK_SIZE Gauge "forebay_disk_size_bytes" "Size of the file system of the journal."
    DISK_WRITTEN Counter "forebay_disk_written_bytes_total" "Bytes that the process has written to disks since its start."
    MEMORY_LIMIT Gauge "forebay_memory_limit_bytes" "Memory limit of the gateway: the setting memory, or the limit of its control group."
    MEMORY_PERMITS Gauge "forebay_memory_permits_bytes" "Memory that clients occupy, as counted by their permits."
    MEMORY_PERMITS_MAX Gauge "forebay_memory_permits_limit_bytes" "Memory that clients may occupy."
    MEMORY_REFUSED Counter "forebay_memory_refused_permits_total" "Requests for a permit refused because the memory budget was used up."
    MEMORY Gauge "process_resident_memory_bytes" "Resident memory of the process."
    CPU Counter "process_cpu_seconds_total" "User and system CPU time of the process."
    FILES Gauge "process_open_fds" "Open files and sockets of the process."
    FILES_MAX Gauge "process_max_fds" "Limit of open files and sockets of the process."
    THREADS Gauge "process_threads" "Threads of the process."
    STARTED Gauge "process_start_time_seconds" "Start time of the process, in seconds since 1970."
}

/// Upper bounds of the buckets, as powers of two of a microsecond: 256 µs, 1 ms, 4 ms, 16 ms, 66 ms, 262 ms, 1 s,
/// 4 s, 34 s, 268 s and 36 min. The internal buckets of a histogram end at these bounds, so every count is exact.
const BUCKETS: [u32; 11] = [8, 10, 12, 14, 16, 18, 20, 22, 25, 28, 31];

/// Returns 1 for true and 0 for false.
pub fn flag(is_set: bool) -> f64 {
    if is_set { 1.0 } else { 0.0 }
}

/// A page of metrics in the text format of Prometheus.
#[derive(Debug, Default)]
pub struct Page(String);

/// The values of one metric.
#[derive(Debug)]
pub struct Rows<'p> {
    out: &'p mut String,
    family: Family,
}

/// Name and value of each label.
pub type Labels<'l> = &'l [(&'static str, &'l str)];

impl Page {
    /// Writes a metric with all its values. Call it once per metric.
    pub fn put(&mut self, family: Family, fill: impl FnOnce(&mut Rows<'_>)) {
        let kind = match family.kind {
            MetricKind::Counter => "counter",
            MetricKind::Gauge => "gauge",
            MetricKind::Histogram => "histogram",
        };
        let _ = writeln!(self.0, "# HELP {0} {1}\n# TYPE {0} {kind}", family.name, family.help);
        fill(&mut Rows { out: &mut self.0, family });
    }

    /// Writes a metric that has one value.
    pub fn one(&mut self, family: Family, value: f64) {
        self.put(family, |rows| rows.row(&[], value));
    }

    pub fn finish(self) -> String {
        self.0
    }
}

impl Rows<'_> {
    pub fn row(&mut self, labels: Labels<'_>, value: f64) {
        self.line("", labels, None, value);
    }

    pub fn histogram(&mut self, labels: Labels<'_>, counted: &Snapshot) {
        for doublings in BUCKETS {
            let bound = ((1u64 << doublings) as f64 / 1e6).to_string();
            self.line("_bucket", labels, Some(&bound), counted.below(doublings) as f64);
        }
        self.line("_bucket", labels, Some("+Inf"), counted.count() as f64);
        self.line("_sum", labels, None, counted.sum().as_secs_f64());
        self.line("_count", labels, None, counted.count() as f64);
    }

    fn line(&mut self, ending: &str, labels: Labels<'_>, bound: Option<&str>, value: f64) {
        self.out.push_str(self.family.name);
        self.out.push_str(ending);
        let mut before = '{';
        for (name, value) in labels.iter().copied().chain(bound.map(|bound| ("le", bound))) {
            let _ = write!(self.out, "{before}{name}=\"");
            for letter in value.chars() {
                match letter {
                    '\\' => self.out.push_str("\\\\"),
                    '"' => self.out.push_str("\\\""),
                    '\n' => self.out.push_str("\\n"),
                    letter => self.out.push(letter),
                }
            }
            self.out.push('"');
            before = ',';
        }
        let _ = writeln!(self.out, "{} {value}", if before == ',' { "}" } else { "" });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Histogram;
    use std::time::Duration;

    #[test]
    fn a_page_reads_as_prometheus_wants_it() {
        let histogram = Histogram::default();
        histogram.record(Duration::from_micros(100), 2);
        histogram.record(Duration::from_millis(3), 1);
        histogram.record(Duration::from_secs(7200), 1);
        let mut page = Page::default();
        page.put(LANE_BYTES, |rows| rows.row(&[("lane", "a\"b\\c\n")], 12_345_678_901.0));
        page.put(LANE_COMMITS, |rows| rows.histogram(&[("lane", "bulk")], &histogram.snapshot()));
        let text = page.finish();
        assert!(text.contains("forebay_lane_disk_bytes{lane=\"a\\\"b\\\\c\\n\"} 12345678901\n"), "{text}");
        assert!(text.contains("_bucket{lane=\"bulk\",le=\"0.000256\"} 2\n"), "{text}");
        assert!(text.contains("_bucket{lane=\"bulk\",le=\"0.004096\"} 3\n"), "{text}");
        assert!(text.contains("_bucket{lane=\"bulk\",le=\"2147.483648\"} 3\n"), "{text}");
        assert!(text.contains("_bucket{lane=\"bulk\",le=\"+Inf\"} 4\n"), "{text}");
        assert!(text.contains("_sum{lane=\"bulk\"} 7200.0032\n"), "{text}");
    }
}
