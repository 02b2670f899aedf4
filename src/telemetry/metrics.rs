//! The metrics: every name, with its unit and a sentence, and how they are written for Prometheus.
//!
//! Promise: names and labels come from here and the configuration alone, so that their number is bounded: by lanes,
//! destinations, sources, streams and files, never by devices, keys or events.

use super::Snapshot;
use std::fmt::Write;

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only rises, from 0 at the start or at the beginning of the journal.
    Counter,
    /// It rises and falls.
    Gauge,
    /// Durations in buckets.
    Histogram,
}

/// A metric with its labels.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// Its name; the unit is the end of it.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// One sentence.
    pub help: &'static str,
}

macro_rules! families {
    ($($id:ident $kind:ident $name:literal $help:literal)*) => {
        $(
            #[doc = $help]
            pub const $id: Family = Family { name: $name, kind: Kind::$kind, help: $help };
        )*
        /// All of them.
        pub const FAMILIES: &[Family] = &[$($id),*];
    };
}

families! {
    BUILD Gauge "forebay_build_info" "Which program runs where; always 1."
    UPTIME Gauge "forebay_uptime_seconds" "Time since the start."
    HEALTHY Gauge "forebay_healthy" "Whether /healthz says that the gateway lives: 1 or 0."
    READY Gauge "forebay_ready" "Whether /readyz says that the gateway takes events: 1 or 0."
    PROBLEMS Gauge "forebay_problems" "Problems that forebay status shows."
    PART_RESTARTS Counter "forebay_part_restarts_total" "How often a part of the gateway was started anew after a failure."
    CONFIGURED Gauge "forebay_configuration_timestamp_seconds" "Since when the configuration is in force, in seconds since 1970."
    REFUSED_CONFIGURATION Gauge "forebay_configuration_refused" "Whether a newer configuration is refused: 1 or 0."
    CLOCK_TRUSTED Gauge "forebay_clock_trusted" "Whether the time of day is believed: 1 or 0."
    CLOCK Gauge "forebay_clock_timestamp_seconds" "The time of day as the gateway has it, in seconds since 1970."
    CERTIFICATE_EXPIRY Gauge "forebay_certificate_expiry_timestamp_seconds" "When the first certificate in a file expires, in seconds since 1970."
    REVOCATION_EXPIRY Gauge "forebay_revocation_list_expiry_timestamp_seconds" "When the first revocation list in a file ends (next update), in seconds since 1970."
    LANE_ACCEPTED Counter "forebay_lane_accepted_events_total" "Events that a lane has taken since the journal was begun."
    LANE_DUPLICATES Counter "forebay_lane_duplicate_events_total" "Repeats that were recognised, acknowledged and not stored again."
    LANE_CONFLICTS Counter "forebay_lane_id_conflicts_total" "Events whose id another payload had taken, and that got another one."
    LANE_COMMITS Histogram "forebay_lane_commit_duration_seconds" "How long a commit to the disk takes, fsync included."
    LANE_FAILED_COMMITS Counter "forebay_lane_failed_commits_total" "Commits that failed."
    LANE_BYTES Gauge "forebay_lane_disk_bytes" "What the log of a lane takes on the disk."
    LANE_BUDGET Gauge "forebay_lane_budget_bytes" "What the log of a lane may take on the disk."
    LANE_SEGMENTS Gauge "forebay_lane_segments" "Files of the log of a lane."
    LANE_FULL Gauge "forebay_lane_full" "Whether a lane has no room, so that nothing is acknowledged: 1 or 0."
    LANE_FAILED Gauge "forebay_lane_failed" "Whether the disk of a lane fails, so that nothing is acknowledged: 1 or 0."
    LANE_LASTS Gauge "forebay_lane_time_to_full_seconds" "How long until the budget of a lane is used up if central takes nothing more; absent where that cannot be said."
    STREAM_ACCEPTED Counter "forebay_stream_accepted_events_total" "Events that a stream has taken since the journal was begun."
    BACKLOG_EVENTS Gauge "forebay_backlog_events" "Events that a destination is still to get."
    BACKLOG_BYTES Gauge "forebay_backlog_bytes" "About what these events take in the log."
    BACKLOG_AGE Gauge "forebay_backlog_age_seconds" "How long ago the oldest of these events was taken; 0 without one."
    LEDGER Gauge "forebay_ledger_events" "Events by what became of them, since the journal was begun; all accounts but owed add up to owed."
    LEDGER_IMBALANCE Gauge "forebay_ledger_imbalance_events" "Events that the accounts have too many or too few; anything but 0 is an error."
    LINK_UP Gauge "forebay_link_up" "Whether a link has a session with its destination: 1 or 0."
    LINK_IN_FLIGHT Gauge "forebay_link_in_flight_publishes" "Publishes that the destination has not answered yet."
    LINK_SENT Counter "forebay_link_publishes_total" "Publishes that were sent, repeats included; one publish may hold many events."
    LINK_REPEATED Counter "forebay_link_repeated_publishes_total" "Publishes whose answer was lost with the session, and that are sent again."
    LINK_DELIVERED Counter "forebay_link_delivered_events_total" "Events that the destination acknowledged."
    LINK_UNHEARD Counter "forebay_link_unheard_events_total" "Acknowledged publishes that nobody at the destination had subscribed to."
    LINK_REFUSED Counter "forebay_link_refused_publishes_total" "Publishes that the destination refused for now, and that are sent again."
    LINK_DEAD Counter "forebay_link_dead_letters_total" "Events that became dead letters on the way to the destination."
    LINK_CONNECTS Counter "forebay_link_connects_total" "Sessions that were opened."
    LINK_FAILURES Counter "forebay_link_failures_total" "Sessions that were lost and attempts to open one that failed."
    LINK_ANSWER Histogram "forebay_link_answer_duration_seconds" "From sending a publish to its acknowledgement."
    LINK_SETTLE Histogram "forebay_link_settle_duration_seconds" "From taking an event to its acknowledgement by the destination; of a batch, its oldest event."
    SOURCE_UP Gauge "forebay_source_up" "Whether nothing keeps a source from working: 1 or 0."
    SOURCE_CONNECTIONS Gauge "forebay_source_connections" "Open connections of a source."
    SOURCE_CONNECTS Counter "forebay_source_connects_total" "Connections that a source has accepted or made."
    SOURCE_RECEIVED Counter "forebay_source_received_total" "Publishes, requests or readings that arrived at a source."
    SOURCE_DROPPED Counter "forebay_source_dropped_events_total" "Events of senders that await no answer, for which there was no room."
    SOURCE_REDELIVERED Counter "forebay_source_redelivered_events_total" "Redeliveries that were recognised without an id."
    SOURCE_CUT Counter "forebay_source_cut_events_total" "Events that subscribers were not told, since they were too far behind."
    SOURCE_REFUSED Counter "forebay_source_refused_total" "Connections, requests or readings that were refused or failed, by reason."
    SOURCE_ACK Histogram "forebay_source_ack_duration_seconds" "From the arrival of an event to its acknowledgement, fsync included."
    SOURCE_ANSWERED Gauge "forebay_source_last_answer_timestamp_seconds" "When an Odoo or a Modbus device answered last, in seconds since 1970; 0 if never since the start."
    SECURITY Counter "forebay_security_events_total" "What was refused, cut off or changed since the start and matters to security, by cause."
    AUDIT_HELD Gauge "forebay_audit_entries" "Entries that the audit holds."
    AUDIT_REMOVED Counter "forebay_audit_removed_entries_total" "Oldest entries of the audit that were removed since newer ones needed their room."
    UNMATCHED Counter "forebay_unmatched_events_total" "Events that no contract matched, and that became dead letters."
    VIOLATIONS Counter "forebay_contract_violations_total" "Events that broke their contract, and became dead letters."
    FLAGGED Counter "forebay_flagged_events_total" "Events that broke their contract, and are delivered marked."
    DEAD_WRITTEN Counter "forebay_dead_letters_total" "Dead letters that were ever written."
    DEAD_HELD Gauge "forebay_dead_letters_held" "Dead letters that the journal holds, resolved ones included."
    DEDUPE_IDS Gauge "forebay_dedupe_window_ids" "Ids in the window in which repeats are recognised."
    DEDUPE_IDS_MAX Gauge "forebay_dedupe_window_ids_limit" "Ids that the window can hold."
    SPARKPLUG_NODES Gauge "forebay_sparkplug_nodes" "Sparkplug edge nodes that are known."
    SPARKPLUG_BYTES Gauge "forebay_sparkplug_bytes" "Bytes of memory that what births of Sparkplug nodes declared takes."
    SPARKPLUG_FORGOTTEN Counter "forebay_sparkplug_forgotten_nodes_total" "How often what births of a Sparkplug node declared was forgotten for lack of room."
    SPARKPLUG_GAPS Counter "forebay_sparkplug_gaps_total" "Gaps in the numbers of Sparkplug messages."
    SPARKPLUG_REFUSED Counter "forebay_sparkplug_refused_total" "Sparkplug messages that could not be understood."
    SPARKPLUG_REBIRTHS Counter "forebay_sparkplug_rebirth_requests_total" "Rebirths that nodes were asked for."
    EXCEPTIONS Gauge "forebay_exceptions_open" "Business exceptions that stand open."
    REPLAYS Gauge "forebay_replays_running" "Replays that go on."
    SET_ASIDE Gauge "forebay_set_aside_files" "Damaged files that are set aside."
    DISK_FREE Gauge "forebay_disk_free_bytes" "What is free on the file system of the journal."
    DISK_RESERVE Gauge "forebay_disk_reserve_bytes" "What the journal leaves free on its file system."
    DISK_SIZE Gauge "forebay_disk_size_bytes" "How large the file system of the journal is."
    DISK_WRITTEN Counter "forebay_disk_written_bytes_total" "What the process has written to disks since its start."
    MEMORY_LIMIT Gauge "forebay_memory_limit_bytes" "Memory that the gateway may take: the setting memory, or the limit of its control group."
    MEMORY_PERMITS Gauge "forebay_memory_permits_bytes" "Bytes that clients make the gateway hold, as their permits count them."
    MEMORY_PERMITS_MAX Gauge "forebay_memory_permits_limit_bytes" "Bytes that clients may make the gateway hold."
    MEMORY_REFUSED Counter "forebay_memory_refused_permits_total" "Requests for a permit that had no room in the memory budget."
    MEMORY Gauge "process_resident_memory_bytes" "Memory of the process."
    CPU Counter "process_cpu_seconds_total" "Time on processors, of the process and the kernel for it."
    FILES Gauge "process_open_fds" "Open files and sockets of the process."
    FILES_MAX Gauge "process_max_fds" "How many of these it may have."
    THREADS Gauge "process_threads" "Threads of the process."
    STARTED Gauge "process_start_time_seconds" "When the process was started, in seconds since 1970."
}

/// Upper bounds of the buckets, as powers of two of a microsecond: 256 µs, 1 ms, 4 ms, 16 ms, 66 ms, 262 ms, 1 s,
/// 4 s, 34 s, 268 s and 36 min. At these the steps of a histogram end, so that every bucket is exact.
const BUCKETS: [u32; 11] = [8, 10, 12, 14, 16, 18, 20, 22, 25, 28, 31];

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
    /// Writes a metric with all its values. Each is written once.
    pub fn put(&mut self, family: Family, fill: impl FnOnce(&mut Rows<'_>)) {
        let kind = match family.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let _ = writeln!(self.0, "# HELP {0} {1}\n# TYPE {0} {kind}", family.name, family.help);
        fill(&mut Rows { out: &mut self.0, family });
    }

    /// Writes a metric that has one value.
    pub fn one(&mut self, family: Family, value: f64) {
        self.put(family, |rows| rows.row(&[], value));
    }

    /// The page.
    pub fn finish(self) -> String {
        self.0
    }
}

impl Rows<'_> {
    /// Writes a value.
    pub fn row(&mut self, labels: Labels<'_>, value: f64) {
        self.line("", labels, None, value);
    }

    /// Writes a histogram.
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
