//! The `/metrics` page: a snapshot of the counters of all parts.

mod links;
mod process;

use super::handles::{Handles, View};
use super::lines;
use super::status::oldest;
use crate::api::{Balance, Drain, LaneStatus, ReplayState, StreamAccount};
use crate::clock;
use crate::event::Timestamp;
use crate::journal::{Condition, Lane};
use crate::ledger;
use crate::security::Cause;
use crate::telemetry::metrics::*;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

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
        links::put_links(&mut page, &view.links);
        links::put_sources(&mut page, &view.sources);
        self.put_security(&mut page);
        self.put_intake(&mut page);
        self.put_exceptions(&mut page, &view);
        self.put_disk(&mut page);
        self.put_budget(&mut page);
        process::put_process(&mut page);
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
        let view = self.view.load();
        let outlooks = self.outlooks(&view);
        links::put_lines(page, &lines::statuses(&view.links));
        links::put_budgets(page, &self.budget_statuses(&view));
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
                let (kind, severity) = (exception.kind.to_string(), exception.severity.to_string());
                *open.entry((kind, severity)).or_default() += 1;
            }
            for ((kind, severity), count) in open {
                rows.row(&[("kind", &kind), ("severity", &severity)], count as f64);
            }
        });
        let running = self.replays.list().iter().filter(|replay| replay.state == ReplayState::Running).count();
        page.one(REPLAYS, running as f64);
        page.one(SET_ASIDE, self.journal.quarantined().len() as f64);
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
