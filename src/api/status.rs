//! Status of the gateway.

use serde::{Deserialize, Serialize};

/// Status of the gateway, as `GET /status` returns it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    /// Environment, such as `test` or `production`.
    pub environment: String,
    pub site: String,
    pub name: String,
    /// Seconds since the process started.
    pub uptime_seconds: u64,
    /// Time at which this configuration came into force, RFC 3339.
    #[serde(default)]
    pub configured: Option<String>,
    /// Everything that needs a person.
    pub problems: Vec<String>,
    /// Information that is worth knowing but is no problem.
    #[serde(default)]
    pub notes: Vec<String>,
    pub lanes: Vec<LaneStatus>,
    /// Status of every link: one per lane and destination.
    pub links: Vec<LinkStatus>,
    /// Figures of the line to each destination; absent without a figure.
    #[serde(default)]
    pub lines: Vec<LineStatus>,
    pub sources: Vec<SourceStatus>,
    pub dead: DeadLetterCounts,
    /// Recognised repeats, and the reach of the dedupe window.
    pub repeats: DedupeStatus,
    /// Damaged files that were set aside (`.damaged`).
    pub set_aside: Vec<String>,
    /// Time, and whether it is trusted.
    #[serde(default)]
    pub clock: ClockStatus,
    /// Per lane: time until its budget is used up, and time to drain its backlog.
    #[serde(default)]
    pub outlooks: Vec<Outlook>,
    /// Bytes written to the disk per day, at the rate since the start; `None` in the first minute.
    #[serde(default)]
    pub flash_bytes_per_day: Option<u64>,
    /// Bytes on the line of each destination, and its budgets.
    #[serde(default)]
    pub budgets: Vec<BudgetStatus>,
    /// The memory limit, and the share that clients occupy.
    #[serde(default)]
    pub memory: MemoryUsage,
    /// Status of Sparkplug nodes, if a contract decodes them.
    #[serde(default)]
    pub sparkplug: Option<SparkplugStatus>,
}

/// The line to a destination, which all its links share.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LineStatus {
    pub destination: String,
    /// Rate that the line carries at least, in kbit/s, as acknowledgements show it.
    pub kbit_per_second: f64,
    /// Shortest time from sending to acknowledgement of late, in milliseconds.
    pub round_trip_ms: f64,
    /// Bytes that are written and not acknowledged.
    pub in_flight_bytes: u64,
    /// Time that the line needs for them.
    pub in_flight_seconds: f64,
}

/// Bytes on the line of a destination, in both directions, with an estimate of TCP and IP headers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BudgetStatus {
    pub destination: String,
    /// Whether the destination has a budget.
    pub is_limited: bool,
    pub day: PeriodUse,
    pub month: PeriodUse,
    /// Bytes since the process started.
    pub bytes: u64,
    /// Lanes that wait for a new day or month, with the reason.
    pub stopped: Vec<(String, String)>,
    /// Seconds until a budget is used up at the rate of the last ten minutes.
    pub used_up_in_seconds: Option<u64>,
}

/// Bytes of a day or month.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PeriodUse {
    /// Such as `2026-11-30` or `2026-11`, in the time zone of the system.
    pub name: String,
    pub bytes: u64,
    pub bytes_max: Option<u64>,
}

/// Status of Sparkplug nodes. All numbers but `nodes` and `bytes` count since the start.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SparkplugStatus {
    pub nodes: usize,
    /// Memory for the metrics that births declared, in bytes.
    #[serde(default)]
    pub bytes: usize,
    /// Nodes whose birth was evicted from memory.
    #[serde(default)]
    pub forgotten: u64,
    /// Gaps in message sequences: messages were lost before the gateway.
    pub gaps: u64,
    /// Undecodable messages, which became dead letters.
    pub refused: u64,
    /// Rebirth requests that the gateway sent.
    pub rebirths_asked: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LinkStatus {
    /// Lane that the link drains.
    pub lane: String,
    pub destination: String,
    /// Whether the link has a session.
    pub is_up: bool,
    /// Time of the last change of `is_up`, RFC 3339.
    pub since: Option<String>,
    /// Reason why the link is down.
    pub reason: Option<String>,
    /// Information about a link that is up.
    #[serde(default)]
    pub note: Option<String>,
    pub in_flight: usize,
    /// Publishes sent since the start, repeats included.
    pub sent: u64,
    /// Publishes that central acknowledged since the start.
    pub delivered: u64,
    /// Publishes acknowledged with "no matching subscribers", since the start.
    pub unheard: u64,
    /// Publishes that central refused temporarily, since the start.
    pub refused_for_now: u64,
    /// Events that later ones of their key may have overtaken, since the start.
    #[serde(default)]
    pub overtaken: u64,
    /// Reason for which central refused events for now within the last minute.
    #[serde(default)]
    pub refused: Option<String>,
    /// Median and 99th percentile from sending to acknowledgement, in milliseconds.
    pub answer_ms: (f64, f64),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SourceStatus {
    pub name: String,
    /// Kind of the source, such as MQTT or Modbus.
    pub kind: String,
    /// Address it listens on, or the server it reads.
    pub address: String,
    /// Reason why the source does not work.
    pub problem: Option<String>,
    pub connections: u64,
    /// Publishes that arrived since the start.
    pub received: u64,
    /// Events dropped for lack of room, from senders that expect no acknowledgement (QoS 0).
    pub dropped: u64,
    /// Redeliveries (DUP) without an event id that were recognised as repeats.
    pub redelivered: u64,
    /// Events that were not sent to subscribers that were too far behind.
    pub cut: u64,
    /// Connections refused, or closed because of a fault.
    pub refused: u64,
    /// Median and 99th percentile from arrival to acknowledgement, in milliseconds.
    pub ack_ms: (f64, f64),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DeadLetterCounts {
    /// All dead letters since the creation of the journal.
    pub total: u64,
    /// Dead letters that wait for a decision.
    #[serde(default)]
    pub held: u64,
    /// Dead letters since the start because no contract matched.
    pub unmatched: u64,
    /// Dead letters since the start because the event broke its contract.
    pub violations: u64,
}

/// State of the dedupe window.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DedupeStatus {
    /// Repeats recognised since the start.
    pub duplicates: u64,
    /// Events with a known id but another payload, since the start.
    pub id_conflicts: u64,
    pub ids: usize,
    /// Capacity of the window in ids.
    pub ids_max: usize,
    /// Start of the period that the window covers without gaps, RFC 3339; `None` while it was never full.
    pub complete_since: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LaneStatus {
    pub name: String,
    /// Events accepted since the journal was created.
    pub accepted: u64,
    /// Size of the log in bytes.
    pub bytes: u64,
    /// Largest size of the log in bytes.
    pub budget: u64,
    /// Number of segments of the log.
    pub segments: usize,
    /// Reason why the lane accepts nothing, if so.
    pub problem: Option<String>,
    /// Whether the lane is no longer configured: its events are still delivered, and it accepts no new ones.
    #[serde(default)]
    pub retired: bool,
    /// Backlog and account of each destination.
    pub destinations: Vec<Backlog>,
    /// Name and number of accepted events of each stream.
    pub streams: Vec<(String, u64)>,
}

/// Backlog and account of one destination in one lane.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Backlog {
    pub destination: String,
    pub queued: u64,
    pub delivered: u64,
    /// Events that central refused and that became dead letters.
    pub dead: u64,
    /// Events that reached the age limit of their contract.
    #[serde(default)]
    pub expired: u64,
    /// Events discarded to make room for newer ones.
    #[serde(default)]
    pub shed: u64,
    /// Events that an operator discarded.
    #[serde(default)]
    pub discarded: u64,
    pub set_aside: u64,
    /// Time when the oldest queued event was recorded, RFC 3339.
    pub oldest: Option<String>,
}

/// Time of the gateway, and whether it is trusted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockStatus {
    /// Time of the gateway, RFC 3339.
    pub time: String,
    /// Whether the gateway trusts this time.
    pub is_trusted: bool,
    /// Reason why the gateway does not trust it.
    pub doubt: Option<String>,
    /// The time that certificates are judged at, RFC 3339.
    pub certificates: String,
}

impl ClockStatus {
    /// Returns the problem and the remedy; `None` if the clock is trusted.
    pub fn problem(&self) -> Option<String> {
        let (why, time, certificates) = (self.doubt.as_deref()?, &self.time, &self.certificates);
        Some(format!(
            "clock: it shows {time}, which cannot be right: {why}. Events are marked untrusted, nothing expires by age, and certificates are checked as of {certificates}; set the clock, or confirm that it is right: `forebay clock --trust`"
        ))
    }
}

/// Forecast for a lane: how long its room lasts.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Outlook {
    pub lane: String,
    /// Accepted events per second over the last minute.
    pub events_per_second: f64,
    /// Growth of the log in bytes per second.
    pub bytes_per_second: f64,
    /// Bytes of the log with events that a destination has not settled.
    pub needed_bytes: u64,
    /// Seconds until budget or disk is used up if central accepts nothing more.
    pub full_in_seconds: Option<u64>,
    /// Behaviour of the lane when full.
    pub then: String,
    pub drains: Vec<Drain>,
}

/// Forecast for the backlog of one destination.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Drain {
    pub destination: String,
    pub queued: u64,
    /// Approximate size of the backlog in bytes.
    pub queued_bytes: u64,
    /// Settled events per second over the last minute.
    pub events_per_second: f64,
    /// Seconds until the backlog is empty at the present rates of link and sources.
    pub drained_in_seconds: Option<u64>,
}

/// Memory that clients occupy, and its limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryUsage {
    /// The memory limit of the gateway, in bytes.
    pub limit: u64,
    /// Bytes that all permits together may hold.
    pub permits_max: usize,
    /// Bytes that all permits hold.
    pub permits: usize,
    /// The most bytes that all permits have held since the start.
    pub permits_peak: usize,
    /// Number of permits that were refused since the start.
    pub refused: u64,
    /// Connections that were evicted before they had logged in, since the start.
    #[serde(default)]
    pub evicted: u64,
}
