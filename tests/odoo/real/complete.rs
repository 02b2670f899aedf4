//! Hundreds of orders live in parallel while the gateway is killed, Odoo restarts, and things go wrong in it (`disorder`): every
//! final state arrives, nothing is invented, nothing is told twice.
//!
//! FOREBAY_ODOO_ORDERS says how many orders.

use super::super::{Plant, events};
use super::disorder::Disorder;
use super::{INTERVAL, Real, run};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// The time within which all records are compared.
const RECONCILE: Duration = Duration::from_secs(20);

#[test]
fn the_real_odoo_is_captured_completely() {
    let Some(real) = Real::of_for_long(19) else { return };
    is_captured_completely(&real);
}

#[test]
fn the_real_odoo_14_is_captured_completely() {
    let Some(real) = Real::of_for_long(14) else { return };
    is_captured_completely(&real);
}

fn is_captured_completely(real: &Real) {
    let orders: usize = std::env::var("FOREBAY_ODOO_ORDERS").ok().and_then(|text| text.parse().ok()).unwrap_or(300);
    let seed = std::process::id();
    let mut disorder = Disorder::make(real, seed);
    let source = format!("deletions = \"10s\"\nreconcile = \"{}s\"\nlanguage = \"de_DE\"", RECONCILE.as_secs());
    let mut plant = real.plant("odoo-real", &format!("{}s", INTERVAL.as_secs()), &source);
    let newest = newest(real);
    plant.gateway.run();
    plant.await_problem("");
    let (changes, holes) = live(real, &mut plant, &mut disorder, orders);
    println!("{}", changes.last().expect("the end"));
    await_all(&plant, &changes);
    disorder.check(&plant);
    check_transitions(&plant, &changes, &holes);
    check_once(&plant);
    await_same(real, &plant, &newest);
    put_back(real, &plant, &disorder, &newest);
    check_once(&plant);
    let status = plant.gateway.status();
    println!("events {}, repeats {}", plant.collector.count(), status["repeats"]["duplicates"]);
    assert_eq!((&status["repeats"]["id_conflicts"], &status["dead"]["total"]), (&json!(0), &json!(0)), "{status:#}");
}

type Hole = (jiff::Timestamp, jiff::Timestamp);

fn simulation(real: &Real, orders: usize, seed: u32, changes: &Path) -> Command {
    let mut simulation = real.tool("simulate");
    simulation.args(["--orders", &orders.to_string(), "--parallel", "4", "--seed", &seed.to_string()]);
    simulation.stdout(std::fs::File::create(changes).expect("a file"));
    simulation
}

fn changes_in(file: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(file).expect("changes");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// Drives orders through their lives, with trouble; returns the changes, and when gateway or Odoo was not there.
fn live(real: &Real, plant: &mut Plant, disorder: &mut Disorder<'_>, orders: usize) -> (Vec<Value>, Vec<Hole>) {
    let seed = std::process::id();
    let pause = plant.gateway.folder.join("pause");
    let changes = plant.gateway.folder.join("changes.jsonl");
    let mut simulation = simulation(real, orders, seed, &changes);
    let mut simulation = simulation.arg("--pause").arg(&pause).spawn().expect("the simulation starts");
    let lines = || std::fs::read_to_string(&changes).map_or(0, |text| text.lines().count());
    let is_over = |simulation: &mut Child| matches!(simulation.try_wait(), Ok(Some(_)));
    // Some 45 lines an order: the trouble is spread over the first two thirds.
    let expected = orders * 30;
    let mut slow = None;
    let mut holes: Vec<Hole> = Vec::new();
    for trouble in 1..=8 {
        let start = Instant::now();
        while lines() < expected * trouble / 9 && !is_over(&mut simulation) {
            assert!(start.elapsed() < Duration::from_secs(1800), "the simulation is stuck");
            std::thread::sleep(Duration::from_millis(100));
        }
        disorder.happens(trouble);
        let began = jiff::Timestamp::now();
        match trouble {
            2 | 6 => {
                std::fs::write(&pause, "").expect("written");
                // Calls in hand end first: what became of one that is cut off, nobody would know.
                std::thread::sleep(Duration::from_secs(6));
                run(real.tool("up").arg("restart"));
                std::fs::remove_file(&pause).expect("removed");
            }
            4 => {
                let order = format!(
                    "begin; update mrp_production set origin = 'SLOW-{seed}', write_date = now() at time zone 'utc' \
                     where id = (select min(id) from mrp_production where state = 'draft' and origin like 'SEED%'); \
                     select pg_sleep(20); commit"
                );
                slow = Some(real.sql(&order));
            }
            _ => {
                plant.gateway.kill();
                plant.gateway.run();
            }
        }
        holes.push((began, jiff::Timestamp::now()));
    }
    assert!(simulation.wait().expect("it ends").success(), "the simulation could not drive every order");
    if let Some(mut slow) = slow {
        assert!(slow.wait().expect("it ends").success());
        plant.await_event("production.order", "the slow transaction", |event| {
            event["data"]["record"]["origin"] == format!("SLOW-{seed}").as_str()
        });
    }
    (changes_in(&changes), holes)
}

/// A backup is put back while the gateway runs: central has what the backup has, and nothing of what came after it.
fn put_back(real: &Real, plant: &Plant, disorder: &Disorder<'_>, newest: &HashMap<&str, i64>) {
    run(real.tool("up").arg("backup"));
    plant.await_problem("");
    let changes = plant.gateway.folder.join("later.jsonl");
    let status = simulation(real, 6, std::process::id() + 1_000_000, &changes).status().expect("it runs");
    assert!(status.success(), "the simulation could not drive every order");
    let (kept, returned) = (disorder.orders["sql"], disorder.orders["other"]);
    real.write("mrp.production", kept, &json!({"priority": "0"}));
    disorder.delete("other");
    await_all(plant, &changes_in(&changes));
    plant.await_event("production.order", "deleted", |event| super::super::is(event, returned, "deleted"));
    let start = Instant::now();
    run(real.tool("up").arg("restore"));
    plant.await_event("production.order", "rewound", |event| {
        event["data"]["id"] == kept && event["data"]["record"]["priority"] == "1" && event["data"]["rewound"] == true
    });
    plant.await_event("production.order", "visible", |event| super::super::is(event, returned, "visible"));
    await_same(real, plant, newest);
    println!("a backup that was put back is told after {:?}", start.elapsed());
}

/// The tables, with the columns that central has too.
const TABLES: [(&str, &str, &[&str]); 4] = [
    ("mrp.production", "mrp_production", &["name", "state", "priority", "origin"]),
    ("mrp.workorder", "mrp_workorder", &["name", "state"]),
    ("stock.move", "stock_move", &["state", "reference"]),
    ("stock.scrap", "stock_scrap", &["name", "state"]),
];

/// The newest record of each model.
fn newest(real: &Real) -> HashMap<&'static str, i64> {
    let of =
        |table: &str| real.rows(&format!("select coalesce(max(id), 0) from {table}"))[0][0].parse().expect("a number");
    TABLES.iter().map(|(model, table, _)| (*model, of(table))).collect()
}

/// Waits until central has of each record what the database has: those that were told, and all that are newer than `newest`.
fn await_same(real: &Real, plant: &Plant, newest: &HashMap<&str, i64>) {
    let start = Instant::now();
    loop {
        let mut wrong = Vec::new();
        let mut compared = 0;
        for (model, table, columns) in TABLES {
            let list: Vec<String> = columns.iter().map(|column| format!("coalesce({column}::text, '')")).collect();
            let rows = real.rows(&format!("select id, {} from {table}", list.join(", ")));
            let rows: HashMap<i64, Vec<String>> =
                rows.into_iter().map(|mut row| (row.remove(0).parse().expect("a number"), row)).collect();
            let told = told(plant, model);
            wrong.extend(
                rows.keys()
                    .filter(|id| **id > newest[model] && !told.contains_key(*id))
                    .map(|id| format!("{model} {id} is not there")),
            );
            for (id, events) in &told {
                let last = &events[events.len() - 1];
                compared += 1;
                let name = last["event"].as_str().unwrap_or_default();
                let text = |column: &str| last["record"][column].as_str().unwrap_or_default().to_owned();
                match rows.get(id) {
                    None if name != "deleted" => wrong.push(format!("{model} {id} is deleted, and central has {name}")),
                    Some(_) if name == "deleted" => {
                        wrong.push(format!("{model} {id} is there, and central has {name}"))
                    }
                    // It belongs to another contract.
                    Some(_) if last["reason"] == "contract" => {}
                    Some(row) => {
                        wrong.extend(
                            columns.iter().zip(row).filter(|(column, value)| text(column) != **value).map(
                                |(column, value)| format!("{model} {id}: {column} is {}, not {value}", text(column)),
                            ),
                        )
                    }
                    None => {}
                }
            }
        }
        if wrong.is_empty() {
            println!("{compared} records are at central as they are in the database, after {:?}", start.elapsed());
            return;
        }
        assert!(start.elapsed() < RECONCILE * 4, "{}: {:#?}", wrong.len(), &wrong[..wrong.len().min(10)]);
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// The streams that tell of a model.
fn streams(model: &str) -> &'static [&'static str] {
    match model {
        "mrp.production" => &["production.order"],
        "mrp.workorder" => &["work.order"],
        "mrp.workcenter.productivity" => &["work.center.time"],
        "stock.scrap" => &["scrap"],
        "stock.move" => &["component", "stock.move"],
        other => panic!("{other} is not captured"),
    }
}

/// What central was told of each record of a model, in order.
fn told(plant: &Plant, model: &str) -> HashMap<i64, Vec<Value>> {
    let arrived = plant.collector.arrived();
    let mut told: HashMap<i64, Vec<Value>> = HashMap::new();
    for event in streams(model).iter().flat_map(|stream| events(&arrived, stream)) {
        told.entry(event["data"]["id"].as_i64().expect("an id")).or_default().push(event["data"].clone());
    }
    told
}

/// Odoo's value as the gateway tells it.
fn same(told: &Value, said: &Value) -> bool {
    let told = told.get("id").unwrap_or(told);
    match (told, said) {
        (Value::Null, Value::Bool(false)) => true,
        (Value::String(told), Value::String(said)) if told.len() == 20 && said.len() == 19 => {
            told.replace('T', " ").trim_end_matches('Z') == said
        }
        (Value::Number(told), Value::Number(said)) => told.as_f64() == said.as_f64(),
        _ => told == said,
    }
}

/// The final state of every record, and every deletion of one that central had heard of.
fn await_all(plant: &Plant, changes: &[Value]) {
    let mut last: BTreeMap<(String, i64), &Value> = BTreeMap::new();
    for change in changes.iter().filter(|change| change["what"] != "end") {
        let model = change["model"].as_str().expect("a model").to_owned();
        last.insert((model, change["id"].as_i64().expect("an id")), change);
    }
    let start = Instant::now();
    loop {
        let mut wrong = Vec::new();
        let (mut deletions, mut unseen) = (0, 0);
        let mut told_of: HashMap<&str, HashMap<i64, Vec<Value>>> = HashMap::new();
        for ((model, id), change) in &last {
            let events = told_of.entry(model).or_insert_with(|| told(plant, model)).get(id);
            let newest = events.and_then(|events| events.last());
            if change["what"] == "unlink" {
                deletions += usize::from(newest.is_some());
                unseen += usize::from(newest.is_none());
                // A record that came and went between two polls was never there for anybody who polls.
                if newest.is_some_and(|newest| newest["event"] != "deleted") {
                    wrong.push(format!("{model} {id} was deleted: {newest:?}"));
                }
                continue;
            }
            let Some(newest) = newest else {
                wrong.push(format!("{model} {id} is not there: {change}"));
                continue;
            };
            let values = change["values"].as_object().expect("values");
            for (field, said) in values {
                let Some(now) = newest["record"].get(field) else { continue };
                if !same(now, said) {
                    wrong.push(format!("{model} {id}: {field} is {now}, not {said}"));
                }
            }
        }
        if wrong.is_empty() {
            println!(
                "{} records have their final state at central, {deletions} of them deleted; {unseen} came and went unseen",
                last.len() - unseen
            );
            return;
        }
        assert!(
            start.elapsed() < Duration::from_secs(90),
            "{} of {}: {:#?}",
            wrong.len(),
            last.len(),
            &wrong[..wrong.len().min(10)]
        );
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// Every state that stood for longer than an interval, while gateway and Odoo were there, was told.
fn check_transitions(plant: &Plant, changes: &[Value], holes: &[(jiff::Timestamp, jiff::Timestamp)]) {
    let at =
        |change: &Value| -> jiff::Timestamp { change["at"].as_str().and_then(|at| at.parse().ok()).expect("a time") };
    // Beside the interval, a poll takes its time on a busy machine.
    let margin = jiff::SignedDuration::from_secs(3);
    let long = jiff::SignedDuration::try_from(INTERVAL).expect("a span") + margin;
    let mut before: HashMap<(String, i64), &Value> = HashMap::new();
    let mut told_of: HashMap<String, HashMap<i64, Vec<Value>>> = HashMap::new();
    let (mut checked, mut missing) = (0, Vec::new());
    for change in changes.iter().filter(|change| change["what"] != "end") {
        let model = change["model"].as_str().expect("a model").to_owned();
        let id = change["id"].as_i64().expect("an id");
        let Some(earlier) = before.insert((model.clone(), id), change) else { continue };
        let (from, to) = (at(earlier), at(change));
        let is_disturbed = holes.iter().any(|(began, ended)| *began - margin < to && from < *ended + margin);
        let Some(state) = earlier["values"]["state"].as_str() else { continue };
        if to.duration_since(from) < long || is_disturbed {
            continue;
        }
        checked += 1;
        let told = told_of.entry(model.clone()).or_insert_with(|| told(plant, &model));
        if !told.get(&id).is_some_and(|events| events.iter().any(|event| event["state"] == state)) {
            missing.push(format!("{model} {id} was {state} from {from} to {to}"));
        }
    }
    println!("{checked} states stood for longer than an interval; {} of them were not told", missing.len());
    assert!(missing.is_empty(), "{missing:#?}");
}

/// What one event leaves, the next begins with: nothing is told twice, nothing in between is lost.
fn check_once(plant: &Plant) {
    let mut changes = 0;
    for model in ["mrp.production", "mrp.workorder", "stock.move", "stock.scrap", "mrp.workcenter.productivity"] {
        for (id, events) in told(plant, model) {
            let mut record = Value::Null;
            for event in events {
                for (field, change) in event["changed"].as_object().into_iter().flatten() {
                    changes += 1;
                    assert_eq!(change["from"], record[field], "{model} {id}: {field} of {event:#}");
                }
                record = event["record"].clone();
            }
        }
    }
    println!("{changes} changed values, each once");
}
