//! The `/metrics` page: a snapshot of the counters of all parts.

use super::{Handles, LinkHandle, SourceHandle, View, oldest};
use crate::api::{Balance, Drain, LaneStatus, ReplayState, StreamAccount};
use crate::clock;
use crate::event::Timestamp;
use crate::journal::{Condition, Lane};
use crate::ledger;
use crate::security::Cause;
use crate::sources::Refusal;
use crate::telemetry::metrics::*;
use crate::telemetry::{Counter, Histogram};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

/// Returns 1 for true and 0 for false.
fn flag(is_set: bool) -> f64 {
    if is_set { 1.0 } else { 0.0 }
}

fn seconds(moment: Timestamp) -> f64 {
    moment.0 as f64 / 1e6
}

impl Handles {
    /// Returns the page in the Prometheus text format. Reads from the disk.
    pub fn metrics(&self) -> String {
        let mut page = Page::default();
        let view = self.view.load_full();
        let balances = ledger::balances(&self.journal, &self.fates);
        self.put_gateway(&mut page, &view, &balances);
        self.put_lanes(&mut page);
        self.put_backlogs(&mut page);
        put_ledger(&mut page, &balances);
        put_links(&mut page, &view.links);
        put_sources(&mut page, &view.sources);
        self.put_security(&mut page);
        self.put_intake(&mut page);
        self.put_exceptions(&mut page, &view);
        self.put_disk(&mut page);
        self.put_budget(&mut page);
        put_process(&mut page);
        page.finish()
    }

    fn put_gateway(&self, page: &mut Page, view: &View, balances: &[Balance]) {
        let around = &self.surroundings;
        page.put(BUILD, |rows| {
            let labels = [
                ("version", env!("CARGO_PKG_VERSION")),
                ("environment", &around.environment),
                ("site", &around.site),
                ("name", &around.gateway),
            ];
            rows.row(&labels, 1.0);
        });
        page.one(UPTIME, clock::instant().duration_since(self.started).as_secs_f64());
        let health = self.health_by(balances);
        page.one(HEALTHY, flag(health.is_good()));
        page.one(READY, flag(self.readiness_by(health).is_good()));
        page.one(PROBLEMS, self.status_by(balances).problems.len() as f64);
        page.put(PART_RESTARTS, |rows| {
            for (part, failure) in self.failures.all() {
                rows.row(&[("part", &part)], failure.restarts as f64);
            }
        });
        page.one(CONFIGURED, view.configured.as_ref().map_or(0.0, |configured| seconds(configured.at)));
        let is_refused = view.configured.as_ref().is_some_and(|configured| configured.refused.is_some());
        page.one(REFUSED_CONFIGURATION, flag(is_refused));
        page.one(CLOCK_TRUSTED, flag(clock::is_trusted()));
        page.one(CLOCK, clock::wall().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64()));
        page.put(CERTIFICATE_EXPIRY, |rows| {
            for file in &view.certificates {
                if let Ok(expiry) = file.expiry() {
                    rows.row(&[("file", &file.path.to_string_lossy()), ("use", file.what)], expiry as f64);
                }
            }
        });
        page.put(REVOCATION_EXPIRY, |rows| {
            for file in &view.revocations {
                if let Ok(validity) = file.validity() {
                    rows.row(&[("file", &file.path.to_string_lossy())], validity.end as f64);
                }
            }
        });
    }

    fn put_lanes(&self, page: &mut Page) {
        let lanes: Vec<(&Arc<Lane>, LaneStatus)> =
            self.journal.lanes().iter().chain([self.journal.dead()]).map(|lane| (lane, lane.status())).collect();
        let mut each = |family, value: &dyn Fn(&Lane, &LaneStatus) -> f64| {
            page.put(family, |rows| {
                lanes.iter().for_each(|(lane, status)| rows.row(&[("lane", &lane.name)], value(lane, status)));
            });
        };
        each(LANE_ACCEPTED, &|_, status| status.accepted as f64);
        each(LANE_DUPLICATES, &|lane, _| lane.stats.duplicates.value() as f64);
        each(LANE_CONFLICTS, &|lane, _| lane.stats.id_conflicts.value() as f64);
        each(LANE_FAILED_COMMITS, &|lane, _| lane.stats.failed_commits.value() as f64);
        each(LANE_BYTES, &|_, status| status.bytes as f64);
        each(LANE_BUDGET, &|_, status| status.budget as f64);
        each(LANE_SEGMENTS, &|_, status| status.segments as f64);
        each(LANE_FULL, &|lane, _| flag(matches!(self.ingest.condition_of(lane), Condition::Full(_))));
        each(LANE_FAILED, &|lane, _| flag(matches!(lane.condition(), Condition::Failed(_))));
        page.put(LANE_COMMITS, |rows| {
            for (lane, _) in &lanes {
                rows.histogram(&[("lane", &lane.name)], &lane.stats.fsync.snapshot());
            }
        });
        page.put(STREAM_ACCEPTED, |rows| {
            for (lane, status) in &lanes {
                for (stream, accepted) in &status.streams {
                    rows.row(&[("lane", &lane.name), ("stream", stream)], *accepted as f64);
                }
            }
        });
    }

    fn put_backlogs(&self, page: &mut Page) {
        let outlooks = self.survival.outlooks();
        page.put(LANE_LASTS, |rows| {
            for outlook in &outlooks {
                if let Some(left) = outlook.full_in_seconds {
                    rows.row(&[("lane", &outlook.lane)], left as f64);
                }
            }
        });
        let mut each = |family, value: &dyn Fn(&Drain) -> f64| {
            page.put(family, |rows| {
                for outlook in &outlooks {
                    for drain in &outlook.drains {
                        rows.row(&[("lane", &outlook.lane), ("destination", &drain.destination)], value(drain));
                    }
                }
            });
        };
        each(BACKLOG_EVENTS, &|drain| drain.queued as f64);
        each(BACKLOG_BYTES, &|drain| drain.queued_bytes as f64);
        let now = Timestamp::from(clock::wall());
        page.put(BACKLOG_AGE, |rows| {
            for lane in self.journal.lanes() {
                for to in lane.status().destinations {
                    let age = oldest(lane, &to).map_or(0.0, |oldest| now.since(oldest).as_secs_f64());
                    rows.row(&[("lane", &lane.name), ("destination", &to.destination)], age);
                }
            }
        });
    }

    fn put_security(&self, page: &mut Page) {
        page.put(SECURITY, |rows| {
            for cause in Cause::ALL {
                rows.row(&[("cause", cause.name())], self.security.count(cause) as f64);
            }
        });
        let audit = self.journal.audit_usage();
        page.one(AUDIT_HELD, audit.held as f64);
        page.one(AUDIT_REMOVED, audit.removed as f64);
    }

    fn put_intake(&self, page: &mut Page) {
        page.one(UNMATCHED, self.ingest.stats.unmatched.value() as f64);
        page.one(VIOLATIONS, self.ingest.stats.violations.value() as f64);
        page.one(FLAGGED, self.ingest.stats.flagged.value() as f64);
        let dead = self.journal.dead();
        page.one(DEAD_WRITTEN, dead.status().accepted as f64);
        page.one(DEAD_HELD, dead.held_events() as f64);
        let (ids, ids_max, _) = self.journal.window();
        page.one(DEDUPE_IDS, ids as f64);
        page.one(DEDUPE_IDS_MAX, ids_max as f64);
        if let Some(sparkplug) = self.ingest.sparkplug() {
            page.one(SPARKPLUG_NODES, sparkplug.node_count() as f64);
            page.one(SPARKPLUG_BYTES, sparkplug.bytes() as f64);
            page.one(SPARKPLUG_FORGOTTEN, sparkplug.stats.forgotten.value() as f64);
            page.one(SPARKPLUG_GAPS, sparkplug.stats.gaps.value() as f64);
            page.one(SPARKPLUG_REFUSED, sparkplug.stats.refused.value() as f64);
            page.one(SPARKPLUG_REBIRTHS, sparkplug.stats.asked.value() as f64);
        }
    }

    fn put_exceptions(&self, page: &mut Page, view: &View) {
        page.put(EXCEPTIONS, |rows| {
            let mut open: BTreeMap<(String, String), u64> = BTreeMap::new();
            for exception in view.board.iter().flat_map(|board| board.exceptions()) {
                let word = |value: serde_json::Result<serde_json::Value>| {
                    value.ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
                };
                let kind = word(serde_json::to_value(exception.kind));
                let severity = word(serde_json::to_value(exception.severity));
                *open.entry((kind, severity)).or_default() += 1;
            }
            for ((kind, severity), count) in open {
                rows.row(&[("kind", &kind), ("severity", &severity)], count as f64);
            }
        });
        let running = self.replays.list().iter().filter(|replay| replay.state == ReplayState::Running).count();
        page.one(REPLAYS, running as f64);
        page.one(SET_ASIDE, self.journal.set_aside().len() as f64);
    }

    fn put_budget(&self, page: &mut Page) {
        let usage = self.budget.usage();
        page.one(MEMORY_LIMIT, usage.limit as f64);
        page.one(MEMORY_PERMITS, usage.permits as f64);
        page.one(MEMORY_PERMITS_MAX, usage.permits_max as f64);
        page.one(MEMORY_REFUSED, usage.refused as f64);
    }

    fn put_disk(&self, page: &mut Page) {
        if let Ok(room) = self.journal.disk_room() {
            page.one(DISK_FREE, room.free as f64);
            page.one(DISK_RESERVE, room.reserve as f64);
        }
        if let Ok(found) = rustix::fs::statvfs(self.journal.folder()) {
            page.one(DISK_SIZE, found.f_blocks.saturating_mul(found.f_frsize) as f64);
        }
    }
}

fn put_ledger(page: &mut Page, balances: &[Balance]) {
    page.put(LEDGER, |rows| {
        for balance in balances {
            let Some(first) = balance.rows.first() else { continue };
            type Account = (&'static str, fn(&StreamAccount) -> u64);
            let accounts: [Account; 8] = [
                ("owed", |row| row.owed),
                ("delivered", |row| row.delivered),
                ("queued", |row| row.queued),
                ("dead", |row| row.dead),
                ("expired", |row| row.expired),
                ("shed", |row| row.shed),
                ("discarded", |row| row.discarded),
                ("set_aside", |row| row.set_aside),
            ];
            for (account, count) in accounts {
                let labels = [("lane", first.lane.as_str()), ("destination", &first.destination), ("account", account)];
                rows.row(&labels, balance.rows.iter().map(count).sum::<u64>() as f64);
            }
        }
    });
    page.put(LEDGER_IMBALANCE, |rows| {
        for balance in balances {
            let Some(first) = balance.rows.first() else { continue };
            let labels = [("lane", first.lane.as_str()), ("destination", &first.destination)];
            rows.row(&labels, balance.difference as f64);
        }
    });
}

fn put_links(page: &mut Page, links: &[LinkHandle]) {
    let mut each = |family, value: &dyn Fn(&LinkHandle) -> f64| {
        page.put(family, |rows| {
            for link in links {
                rows.row(&[("lane", &link.lane.name), ("destination", &link.destination)], value(link));
            }
        });
    };
    each(LINK_UP, &|link| flag(link.stats.state().is_up));
    each(LINK_IN_FLIGHT, &|link| link.stats.state().in_flight as f64);
    each(LINK_SENT, &|link| link.stats.sent.value() as f64);
    each(LINK_REPEATED, &|link| link.stats.repeated.value() as f64);
    each(LINK_DELIVERED, &|link| link.stats.delivered.value() as f64);
    each(LINK_UNHEARD, &|link| link.stats.unheard.value() as f64);
    each(LINK_REFUSED, &|link| link.stats.refused_for_now.value() as f64);
    each(LINK_DEAD, &|link| link.stats.dead.value() as f64);
    each(LINK_CONNECTS, &|link| link.stats.connects.value() as f64);
    each(LINK_FAILURES, &|link| link.stats.failures.value() as f64);
    let mut histogram = |family, which: fn(&LinkHandle) -> &Histogram| {
        page.put(family, |rows| {
            for link in links {
                let labels = [("lane", link.lane.name.as_str()), ("destination", &link.destination)];
                rows.histogram(&labels, &which(link).snapshot());
            }
        });
    };
    histogram(LINK_ANSWER, |link| &link.stats.answer);
    histogram(LINK_SETTLE, |link| &link.stats.settle);
}

fn put_sources(page: &mut Page, sources: &[SourceHandle]) {
    let kinds: Vec<String> = sources.iter().map(|source| format!("{:?}", source.kind).to_lowercase()).collect();
    let all = || sources.iter().zip(&kinds);
    page.put(SOURCE_UP, |rows| {
        for (source, kind) in all() {
            rows.row(&[("source", &source.name), ("kind", kind)], flag(source.stats.problem().is_none()));
        }
    });
    page.put(SOURCE_CONNECTIONS, |rows| {
        for (source, kind) in all() {
            rows.row(&[("source", &source.name), ("kind", kind)], source.stats.connections.value() as f64);
        }
    });
    let mut each = |family, which: fn(&SourceHandle) -> &Counter| {
        page.put(family, |rows| {
            for (source, kind) in all() {
                rows.row(&[("source", &source.name), ("kind", kind)], which(source).value() as f64);
            }
        });
    };
    each(SOURCE_CONNECTS, |source| &source.stats.connects);
    each(SOURCE_RECEIVED, |source| &source.stats.received);
    each(SOURCE_DROPPED, |source| &source.stats.dropped);
    each(SOURCE_REDELIVERED, |source| &source.stats.redelivered);
    each(SOURCE_CUT, |source| &source.stats.cut);
    page.put(SOURCE_REFUSED, |rows| {
        for (source, kind) in all() {
            for reason in Refusal::ALL {
                let labels = [("source", source.name.as_str()), ("kind", kind), ("reason", reason.name())];
                rows.row(&labels, source.stats.refused_for(reason) as f64);
            }
        }
    });
    page.put(SOURCE_ACK, |rows| {
        for (source, kind) in all() {
            rows.histogram(&[("source", &source.name), ("kind", kind)], &source.stats.ack.snapshot());
        }
    });
    page.put(SOURCE_ANSWERED, |rows| {
        for (source, kind) in all().filter(|(_, kind)| ["modbus", "odoo"].contains(&kind.as_str())) {
            rows.row(&[("source", &source.name), ("kind", kind)], source.stats.answered.value() as f64);
        }
    });
}

/// Clock ticks per second (`USER_HZ`): 100 on every Linux.
const TICKS: f64 = 100.0;

/// Writes the figures of the process from `/proc/self`.
fn put_process(page: &mut Page) {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/self/{name}")).unwrap_or_default();
    let number = |text: &str, key: &str, index: usize| -> f64 {
        let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
        line.split_whitespace().nth(index).and_then(|word| word.parse().ok()).unwrap_or(0.0)
    };
    let (status, stat) = (read("status"), read("stat"));
    page.one(DISK_WRITTEN, number(&read("io"), "write_bytes:", 0));
    page.one(MEMORY, number(&status, "VmRSS:", 0) * 1024.0);
    // The fields follow the name in parentheses, which may contain any characters.
    let fields: Vec<f64> =
        stat.rsplit(") ").next().unwrap_or_default().split(' ').map(|word| word.parse().unwrap_or(0.0)).collect();
    let field = |number: usize| fields.get(number - 3).copied().unwrap_or(0.0);
    page.one(CPU, (field(14) + field(15)) / TICKS);
    page.one(FILES, std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count) as f64);
    page.one(FILES_MAX, number(&read("limits"), "Max open files", 0));
    page.one(THREADS, number(&status, "Threads:", 0));
    let age = clock::since_boot().as_secs_f64() - field(22) / TICKS;
    page.one(STARTED, clock::wall().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64() - age));
}
