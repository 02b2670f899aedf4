//! What the gateway asks of the real Odoo while nothing happens there, and what it takes itself.

use super::{Real, state};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

/// Most calls and queries a second, the slow comparison of all records included.
const CALLS_MAX: f64 = 1.5;
const QUERIES_MAX: f64 = 6.0;
/// Memory, without the pages of the program's own file, of a gateway that knows 10,000 open orders, 20,000 work orders and 30,000 components.
const MEMORY_MAX: u64 = 60_000_000;

/// CPU that processes took so far, in seconds: a process of ours, and those of a name within Odoo's tree.
fn cpu(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks = |index: usize| fields.get(index).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
    // User and system time, in hundredths of a second on every Linux.
    (ticks(11) + ticks(12)) / 100.0
}

fn cpu_within(root: &Path, name: &str) -> f64 {
    let root = root.canonicalize().expect("Odoo's tree");
    let processes = std::fs::read_dir("/proc").expect("processes").flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| std::fs::read_link(format!("/proc/{pid}/root")).is_ok_and(|at| at == root))
        .filter(|pid| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name))
        .map(cpu)
        .sum()
}

/// Open orders beside those of the plant, with work orders and components, until the value is dropped.
struct Bulk<'a>(&'a Real);

impl<'a> Bulk<'a> {
    fn make(real: &'a Real, orders: usize) -> Self {
        // Through Odoo each order takes half a second; nobody here asks how it came to be.
        let like = "(select min(id) from mrp_production where state = 'confirmed' and origin like 'SEED%')";
        let copies = |table: &str, link: &str| {
            format!(
                "insert into {table} select r.* from mrp_production p, {table} o, lateral jsonb_populate_record(o, \
                 jsonb_build_object('id', nextval('{table}_id_seq'), '{link}', p.id)) r \
                 where p.name like 'BULK/%' and o.{link} = {like};"
            )
        };
        real.sql_now(&format!(
            "insert into mrp_production select r.* from generate_series(1, {orders}) n, mrp_production o, \
             lateral jsonb_populate_record(o, jsonb_build_object('id', nextval('mrp_production_id_seq'), 'name', 'BULK/' || n, \
             'date_deadline', null, 'reservation_state', 'assigned', 'date_start', now() + interval '30 days')) r where o.id = {like}; {} {} \
             analyze mrp_production; analyze mrp_workorder; analyze stock_move",
            copies("mrp_workorder", "production_id"),
            copies("stock_move", "raw_material_production_id"),
        ));
        Self(real)
    }
}

impl Drop for Bulk<'_> {
    fn drop(&mut self) {
        let of = "(select id from mrp_production where name like 'BULK/%')";
        self.0.sql_now(&format!(
            "delete from stock_move where raw_material_production_id in {of}; delete from mrp_workorder where production_id in {of}; \
             delete from mrp_production where name like 'BULK/%'"
        ));
    }
}

/// Waits until what earlier tests wrote is behind every window: a page is a call too.
fn wait_for_quiet(real: &Real) {
    let start = Instant::now();
    let is_busy = |model: &str| {
        let domain = json!([["write_date", ">", "-330S"]]);
        let count = real.call(&format!("{model}/search_count"), &json!({"domain": domain}));
        count.as_u64().is_some_and(|count| count > 150)
    };
    while ["stock.move", "mrp.workorder", "mrp.workcenter.productivity"].into_iter().any(is_busy) {
        assert!(start.elapsed() < Duration::from_secs(600), "somebody is at work in Odoo");
        std::thread::sleep(Duration::from_secs(5));
    }
}

/// Calls by model, and queries, in new lines of Odoo's log.
fn calls(log: &str) -> (BTreeMap<String, usize>, usize) {
    let (mut calls, mut queries) = (BTreeMap::new(), 0);
    for line in log.lines() {
        let Some((_, rest)) = line.split_once("\"POST /json/2/") else { continue };
        let Some((call, rest)) = rest.split_once(' ') else { continue };
        *calls.entry(call.to_owned()).or_default() += 1;
        // … HTTP/1.1" 200 - queries, seconds of them, other seconds.
        queries += rest.split(' ').nth(3).and_then(|count| count.parse::<usize>().ok()).unwrap_or(0);
    }
    (calls, queries)
}

#[test]
fn the_real_odoo_is_spared_while_nothing_happens() {
    let Some(real) = Real::start() else { return };
    let (orders, span) = if real.is_long { (10_000, Duration::from_secs(120)) } else { (0, Duration::from_secs(20)) };
    wait_for_quiet(&real);
    let _bulk = (orders > 0).then(|| Bulk::make(&real, orders));
    let mut plant = real.plant("odoo-spared", "", "");
    let config = std::fs::read_to_string(plant.gateway.config()).expect("read");
    std::fs::write(plant.gateway.config(), config.replace("every = \"2s\"", "every = \"30s\"")).expect("written");
    plant.gateway.as_the_unit_sets_it();
    let start = Instant::now();
    plant.gateway.run();
    plant.await_problem_for("", Duration::from_secs(300));
    let records = plant.gateway.log().lines().filter(|line| line.contains("first load is complete")).count();
    println!("first load with {orders} more open orders: {:?}, {records} contracts", start.elapsed());
    // The looks that a start makes are over.
    std::thread::sleep(Duration::from_secs(5));
    let root = state(real.version).join("root");
    let taken = || [cpu_within(&root, "odoo"), cpu_within(&root, "postgres"), cpu(plant.gateway.pid())];
    let (before, at) = (taken(), real.odoo_log().len());
    let start = Instant::now();
    std::thread::sleep(span);
    let log = real.odoo_log();
    let (after, took) = (taken(), start.elapsed().as_secs_f64());
    let (calls, queries) = calls(&log[at..]);
    let total: usize = calls.values().sum();
    let share = |index: usize| (after[index] - before[index]) / took * 100.0;
    let status = std::fs::read_to_string(format!("/proc/{}/status", plant.gateway.pid())).unwrap_or_default();
    let kilobytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number")
    };
    let (memory, all) = (kilobytes("RssAnon:") * 1024, kilobytes("VmRSS:") * 1024);
    let (calls_a_second, queries_a_second) = (total as f64 / took, queries as f64 / took);
    println!(
        "{calls_a_second:.2} calls and {queries_a_second:.1} queries a second; of a core: Odoo {:.2} %, PostgreSQL {:.2} %, \
         gateway {:.2} %; memory {memory}, with the program {all}; {calls:#?}",
        share(0),
        share(1),
        share(2),
    );
    assert!(total > 0, "nothing is read");
    assert!(calls_a_second <= CALLS_MAX && queries_a_second <= QUERIES_MAX, "more than {CALLS_MAX} and {QUERIES_MAX}");
    assert!(memory <= MEMORY_MAX, "{memory} bytes, of at most {MEMORY_MAX}");
}
