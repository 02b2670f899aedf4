//! The metrics of links and sources.

use crate::admin::handles::{LinkHandle, SourceHandle};
use crate::api::{BudgetStatus, LineStatus};
use crate::sources::Refusal;
use crate::telemetry::metrics::*;
use crate::telemetry::{Counter, Histogram};

pub(super) fn put_links(page: &mut Page, links: &[LinkHandle]) {
    let mut each = |family, value: &dyn Fn(&LinkHandle) -> f64| {
        page.put(family, |rows| {
            for link in links {
                rows.row(&[("lane", &link.lane.name), ("destination", &link.destination)], value(link));
            }
        });
    };
    each(LINK_UP, &|link| flag(link.stats.state().is_up));
    each(LINK_IN_FLIGHT, &|link| link.stats.state().in_flight as f64);
    each(LINK_WINDOW, &|link| link.stats.state().window as f64);
    each(LINK_SENT, &|link| link.stats.sent.value() as f64);
    each(LINK_REPEATED, &|link| link.stats.repeated.value() as f64);
    each(LINK_DELIVERED, &|link| link.stats.delivered.value() as f64);
    each(LINK_UNHEARD, &|link| link.stats.unheard.value() as f64);
    each(LINK_REFUSED, &|link| link.stats.refused_for_now.value() as f64);
    each(LINK_OVERTAKEN, &|link| link.stats.overtaken.value() as f64);
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

pub(super) fn put_lines(page: &mut Page, lines: &[LineStatus]) {
    let mut each = |family, value: &dyn Fn(&LineStatus) -> f64| {
        page.put(family, |rows| {
            for line in lines {
                rows.row(&[("destination", &line.destination)], value(line));
            }
        });
    };
    each(LINE_RATE, &|line| line.kbit_per_second * 1000.0 / 8.0);
    each(LINE_ROUND_TRIP, &|line| line.round_trip_ms / 1000.0);
    each(LINE_IN_FLIGHT, &|line| line.in_flight_bytes as f64);
}

pub(super) fn put_budgets(page: &mut Page, budgets: &[BudgetStatus]) {
    page.put(DESTINATION_BYTES, |rows| {
        for budget in budgets {
            rows.row(&[("destination", &budget.destination)], budget.bytes as f64);
        }
    });
    let periods = |budget: &BudgetStatus| [("day", budget.day.clone()), ("month", budget.month.clone())];
    page.put(DESTINATION_USED, |rows| {
        for budget in budgets {
            for (name, period) in periods(budget) {
                rows.row(&[("destination", budget.destination.as_str()), ("period", name)], period.bytes as f64);
            }
        }
    });
    page.put(DESTINATION_BUDGET, |rows| {
        for budget in budgets {
            for (name, period) in periods(budget) {
                if let Some(max) = period.bytes_max {
                    rows.row(&[("destination", budget.destination.as_str()), ("period", name)], max as f64);
                }
            }
        }
    });
}

pub(super) fn put_sources(page: &mut Page, sources: &[SourceHandle]) {
    let kinds: Vec<String> = sources.iter().map(|source| source.kind.to_string()).collect();
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
