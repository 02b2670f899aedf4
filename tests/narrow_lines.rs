//! Narrow lines side by side: rates, delays and loss, with all lanes in use. `FOREBAY_LINE_SECONDS` is the time of the load,
//! 60 in the long run; `FOREBAY_LINE_CASE` chooses one line by its number.

use crate::common::broker::Collector;
use crate::common::client::{Client, Hello, publish};
use crate::common::gateway::{Gateway, SMALL_BUDGETS, scratch_folder};
use crate::common::line::{LineSpec, SlowLine};
use crate::common::proxy::Proxy;
use crate::common::random::Random;
use crate::common::{await_port, end};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// One line with its load.
#[derive(Clone, Copy, Debug)]
struct Case {
    spec: LineSpec,
    /// Whether a proxy in front of the line takes whatever it gets.
    is_buffered: bool,
}

/// When each id arrived, and how often.
type Arrivals = Arc<Mutex<BTreeMap<String, (Instant, u32)>>>;

struct Plant {
    line: SlowLine,
    gateway: Gateway,
    arrivals: Arrivals,
    /// Events that arrived in batches.
    batched: Arc<AtomicUsize>,
    _collector: Collector,
    broker: Child,
    _proxy: Option<Proxy>,
    _folder: tempfile::TempDir,
}

const BULK_IN_BATCHES: (&str, &str) = ("[lane.bulk]", "batch = { events = 500, bytes = \"256KiB\", age = \"5s\" }");

impl Plant {
    /// `settings` are further lines of tables, by the header of each.
    fn start(number: u8, case: Case, settings: &[(&str, &str)]) -> Option<Self> {
        let folder = scratch_folder("narrow");
        let line = SlowLine::start(folder.path(), number, case.spec)?;
        let config = folder.path().join("mosquitto.conf");
        std::fs::write(&config, "listener 1883 0.0.0.0\nallow_anonymous true\nlog_type error\n").expect("written");
        let inside = line.inside();
        let broker = Command::new(&inside[0])
            .args(&inside[1..])
            .args(["mosquitto", "-c"])
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("mosquitto starts; apt-get install mosquitto");
        let watched = SocketAddr::from((line.fast, 1883));
        await_port(watched);
        let arrivals = Arrivals::default();
        let batched = Arc::<AtomicUsize>::default();
        let (theirs, in_batches) = (Arc::clone(&arrivals), Arc::clone(&batched));
        let collector = Collector::each(watched, "test/plant/#", move |found| {
            let now = Instant::now();
            for arrived in found {
                let event: serde_json::Value = serde_json::from_slice(&arrived.payload).expect("JSON");
                in_batches.fetch_add(event.as_array().map_or(0, Vec::len), Ordering::Relaxed);
                let events = event.as_array().cloned().unwrap_or_else(|| vec![event]);
                // The gateway's own events have other ids.
                let is_of_load = |id: &&str| ["state-", "report-", "sample-"].iter().any(|kind| id.starts_with(kind));
                for id in events.iter().filter_map(|event| event["id"].as_str()).filter(is_of_load) {
                    theirs.lock().expect("lock").entry(id.to_owned()).or_insert((now, 0)).1 += 1;
                }
            }
        });
        let far = SocketAddr::from((line.far, 1883));
        let proxy = case.is_buffered.then(|| Proxy::start(far));
        let to = proxy.as_ref().map_or(far, Proxy::address);
        let destination = format!("\n[[destination]]\nname = \"central\"\nurl = \"mqtt://{to}\"\n");
        let mut gateway = Gateway::prepare(&format!("narrow{number}"), &format!("{destination}{SMALL_BUDGETS}"));
        for (name, lane) in [("report", "standard"), ("sample", "bulk")] {
            let contract = format!(
                "name = \"machine.{name}\"\nversion = \"1.0.0\"\nowner = \"tests\"\nlane = \"{lane}\"\nkey = \"{{machine}}\"\nid = \"/msg_id\"\nmatch = {{ source = \"mqtt\", topic = \"plant/{{line}}/{{machine}}/{name}\" }}\n"
            );
            std::fs::write(gateway.folder.join(format!("contracts/{name}.toml")), contract).expect("written");
        }
        let mut text = std::fs::read_to_string(gateway.config()).expect("read");
        for (table, lines) in settings {
            assert!(text.contains(table), "{text}");
            text = text.replace(table, &format!("{table}\n{lines}"));
        }
        std::fs::write(gateway.config(), text).expect("written");
        gateway.run();
        gateway.await_status("every link is up", Duration::from_secs(60), |status| {
            status["links"].as_array().is_some_and(|links| links.iter().all(|link| link["is_up"] == true))
        });
        Some(Self { line, gateway, arrivals, batched, _collector: collector, broker, _proxy: proxy, _folder: folder })
    }

    fn client(&self, name: &str) -> Client {
        Client::connect(self.gateway.address, &Hello { is_v5: false, client: name, ..Hello::default() }).0
    }

    fn arrived(&self) -> usize {
        self.arrivals.lock().expect("lock").len()
    }
}

impl Drop for Plant {
    fn drop(&mut self) {
        self.gateway.kill();
        end(&mut self.broker);
    }
}

/// Hands in an event and waits for nothing.
fn hand_in(client: &mut Client, kind: &str, number: usize, text: &str) -> String {
    hand_in_of(client, "m01", kind, number, text)
}

/// The same for a machine, which is the key.
fn hand_in_of(client: &mut Client, machine: &str, kind: &str, number: usize, text: &str) -> String {
    let id = format!("{kind}-{number:06}");
    let payload = format!(r#"{{"msg_id":"{id}","seq":{number},"state":"running","note":"{text}"}}"#);
    let topic = format!("plant/line1/{machine}/{kind}");
    client.send(&publish(false, 1, (number % 65_000 + 1) as u16, &topic, &[], payload.as_bytes()));
    id
}

/// Time of the load.
fn load_seconds() -> f64 {
    std::env::var("FOREBAY_LINE_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(5.0)
}

/// Loads all lanes and waits until everything has arrived. Returns what happened, and what should not have.
fn load(number: u8, case: Case) -> Option<(String, Vec<String>)> {
    let Case { spec, .. } = case;
    let plant = Plant::start(number, case, &[BULK_IN_BATCHES])?;
    let seconds = load_seconds();
    let bytes_per_second = spec.kbit_per_second * 1000.0 / 8.0;
    let large = if spec.kbit_per_second < 20.0 { 8_000 } else { 64_000 };
    // A sample takes some 600 bytes in a batch.
    let samples = (seconds * 3.0 * bytes_per_second / 600.0) as usize;
    let mut random = Random::with_seed(u64::from(number));
    let (mut critical, mut standard, mut bulk) =
        (plant.client("state"), plant.client("report"), plant.client("sample"));
    let mut sent_at: BTreeMap<String, Instant> = BTreeMap::new();
    let (mut sent, mut expected, mut is_large_sent) = (0, 0, false);
    let start = Instant::now();
    // With loss, TCP itself carries a quarter of the fastest line.
    let patience = Duration::from_secs_f64(60.0 + seconds * if spec.loss_percent > 0 { 30.0 } else { 12.0 });
    loop {
        let elapsed = start.elapsed().as_secs_f64();
        let due = ((elapsed / seconds).min(1.0) * samples as f64) as usize;
        for number in sent..due {
            hand_in(&mut bulk, "sample", number, &random.text(300));
        }
        sent = sent.max(due);
        if !is_large_sent && elapsed > seconds / 4.0 {
            hand_in(&mut standard, "report", 0, &random.text(large));
            is_large_sent = true;
        }
        let everything = samples + 1 + sent_at.len();
        if elapsed > seconds && is_large_sent && plant.arrived() >= everything {
            expected = everything;
            break;
        }
        if start.elapsed() > patience {
            break;
        }
        if elapsed >= 2.0 * sent_at.len() as f64 {
            let id = hand_in(&mut critical, "state", sent_at.len(), "a fault that somebody must hear of");
            sent_at.insert(id, Instant::now());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let took = start.elapsed().as_secs_f64();
    Some(judge(&plant, case, (samples, expected, took), &sent_at))
}

fn judge(
    plant: &Plant,
    Case { spec, is_buffered }: Case,
    (samples, expected, took): (usize, usize, f64),
    sent_at: &BTreeMap<String, Instant>,
) -> (String, Vec<String>) {
    let arrivals = plant.arrivals.lock().expect("lock");
    let mut late: Vec<f64> = sent_at
        .iter()
        .map(|(id, sent)| arrivals.get(id).map_or(f64::INFINITY, |(at, _)| at.duration_since(*sent).as_secs_f64()))
        .collect();
    late.sort_by(f64::total_cmp);
    let p95 = late[((late.len() - 1) as f64 * 0.95) as usize];
    let delay = spec.delay.as_secs_f64();
    let with_loss = if spec.loss_percent > 0 { 3.0 * 2.0 * delay } else { 0.0 };
    let allowed = delay + 2.0 + spec.seconds(3.0 * 1400.0) + with_loss;
    // Two retransmissions in a row decide the percentile of a few events, and so does the large event on the slowest line,
    // which it takes for seven seconds. The long load judges these too.
    let is_decided_by_few = spec.loss_percent > 0 || spec.kbit_per_second < 10.0;
    let is_judged = !is_decided_by_few || late.len() >= 30;
    let repeated = arrivals.values().filter(|(_, count)| *count > 1).count();
    let log = plant.gateway.log();
    let downs: Vec<&str> = log.lines().filter(|line| line.contains("link down")).collect();
    let status = plant.gateway.status();
    let what = format!(
        "{:>5} kbit/s {:>3.0} ms {} % {}: critical p95 {p95:.2} s (allowed {allowed:.2}) of {}, {samples} samples in {took:.0} s, {repeated} repeated, {downs:?}, line {}",
        spec.kbit_per_second,
        delay * 1000.0,
        spec.loss_percent,
        if is_buffered { "buffered" } else { "" },
        late.len(),
        status["lines"][0],
    );
    let mut wrong = Vec::new();
    for (is_wrong, why) in [
        (!downs.is_empty(), "a link went down"),
        (expected == 0 || arrivals.len() < expected, "not everything arrived"),
        (repeated * 50 > arrivals.len(), "more than 2 % was sent again"),
        (p95 > allowed && is_judged, "critical events were late"),
        (
            status["lines"][0]["kbit_per_second"].as_f64().unwrap_or(0.0) > spec.kbit_per_second,
            "the rate is overestimated",
        ),
    ] {
        if is_wrong {
            wrong.push(format!("{why}: {what}"));
        }
    }
    (what, wrong)
}

/// All lines at once: they do not share a resource but this machine.
#[test]
fn narrow_lines_carry_all_lanes_without_a_reconnect() {
    let mut cases = Vec::new();
    for kbit_per_second in [9.6, 64.0, 256.0] {
        for delay_ms in [50, 600] {
            for loss_percent in [0, 3] {
                let spec = LineSpec { kbit_per_second, delay: Duration::from_millis(delay_ms), loss_percent };
                cases.push(Case { spec, is_buffered: false });
            }
        }
    }
    let behind = LineSpec { kbit_per_second: 64.0, delay: Duration::from_millis(300), loss_percent: 0 };
    cases.push(Case { spec: behind, is_buffered: true });
    let only = std::env::var("FOREBAY_LINE_CASE").ok().and_then(|text| text.parse::<usize>().ok());
    let chosen = |number: &usize| only.is_none_or(|only| only == *number);
    let outcomes = std::thread::scope(|scope| {
        let threads: Vec<_> = cases
            .iter()
            .enumerate()
            .filter(|(number, _)| chosen(number))
            .map(|(number, case)| scope.spawn(move || load(number as u8 + 1, *case)))
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("a case that ends")).collect::<Vec<_>>()
    });
    let mut wrong = Vec::new();
    for (what, faults) in outcomes.into_iter().flatten() {
        println!("{what}");
        wrong.extend(faults);
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn plain_small_events_use_the_line() {
    let spec = LineSpec { kbit_per_second: 64.0, delay: Duration::from_millis(50), loss_percent: 0 };
    let Some(plant) = Plant::start(20, Case { spec, is_buffered: false }, &[BULK_IN_BATCHES]) else { return };
    let seconds = load_seconds();
    let mut client = plant.client("report");
    let text = Random::with_seed(1).text(180);
    let count = ((seconds + 4.0) * 8000.0 / 500.0) as usize;
    for number in 0..count {
        hand_in(&mut client, "report", number, &text);
    }
    std::thread::sleep(Duration::from_secs(3));
    let (start, before, arrived) = (Instant::now(), plant.line.carried_up(), plant.arrived());
    std::thread::sleep(Duration::from_secs_f64(seconds));
    let bytes = (plant.line.carried_up() - before) as f64;
    let used = spec.seconds(bytes) / start.elapsed().as_secs_f64();
    let events = plant.arrived() - arrived;
    println!(
        "{:.1} % of the line used, {events} events, {:.0} bytes of packets each",
        used * 100.0,
        bytes / events as f64
    );
    assert!(events > 0 && used >= 0.85, "{:.1} % of the line used", used * 100.0);
}

#[test]
fn the_packets_of_a_lane_carry_its_mark() {
    let spec = LineSpec { kbit_per_second: 50_000.0, delay: Duration::from_millis(5), loss_percent: 0 };
    let lanes = [("[lane.critical]", "dscp = 46"), ("[lane.bulk]", "dscp = 8")];
    let Some(plant) = Plant::start(22, Case { spec, is_buffered: false }, &lanes) else { return };
    let mut client = plant.client("state");
    hand_in(&mut client, "state", 0, "");
    hand_in(&mut client, "sample", 0, "");
    let start = Instant::now();
    while !plant.line.marks().is_superset(&[0, 8, 46].into()) {
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", plant.line.marks());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(plant.line.marks(), [0, 8, 46].into(), "of the standard lane, bulk and critical");
}

/// A default Mosquitto takes 20 publishes in flight: 66 events per second at this round trip.
#[test]
fn a_backlog_behind_a_small_window_goes_in_batches_and_live_events_alone() {
    let spec = LineSpec { kbit_per_second: 50_000.0, delay: Duration::from_millis(150), loss_percent: 0 };
    let backlog = ("[lane.standard]", "batch = \"backlog\"");
    let Some(plant) = Plant::start(21, Case { spec, is_buffered: false }, &[backlog]) else { return };
    let mut client = plant.client("report");
    let text = Random::with_seed(1).text(180);
    let await_arrived = |count: usize| {
        let start = Instant::now();
        while plant.arrived() < count {
            assert!(start.elapsed() < Duration::from_secs(60), "{} of {count} arrived", plant.arrived());
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    for number in 0..5 {
        hand_in(&mut client, "report", number, &text);
        await_arrived(number + 1);
    }
    assert_eq!(plant.batched.load(Ordering::Relaxed), 0, "live events arrive alone");
    // The gateway measures the rate of the line while a first backlog grows. The load continues until that one is gone.
    let (start, mut count, mut lag_max) = (Instant::now(), 0, 0);
    loop {
        let due = (start.elapsed().as_secs_f64() * 1000.0) as usize;
        for number in count..due {
            hand_in(&mut client, "report", 5 + number, &text);
        }
        count = count.max(due);
        let lag = count + 5 - plant.arrived();
        lag_max = lag_max.max(lag);
        if count > 3000 && lag < 1000 {
            break;
        }
        assert!(count < 60_000, "{lag} of {count} are on their way: the backlog grows");
        std::thread::sleep(Duration::from_millis(5));
    }
    println!("the first backlog, {lag_max} events, was gone after {:.1} s", start.elapsed().as_secs_f64());
    await_arrived(count + 5);
    assert!(plant.batched.load(Ordering::Relaxed) > count / 3, "the backlog goes in batches");
    let batched = plant.batched.load(Ordering::Relaxed);
    hand_in(&mut client, "report", 5 + count, &text);
    await_arrived(count + 6);
    assert_eq!(plant.batched.load(Ordering::Relaxed), batched, "live events arrive alone again");
    let arrivals = plant.arrivals.lock().expect("lock");
    let times: Vec<Instant> = arrivals.values().map(|(at, _)| *at).collect();
    assert!(times.is_sorted(), "in order, by their numbers");
    assert!(arrivals.values().all(|(_, copies)| *copies == 1), "once");
}

/// Events per second of a backlog of the standard lane that a default Mosquitto takes at a round trip of 300 ms.
fn rate_with_connections(number: u8, connections: usize) -> Option<f64> {
    const MACHINES: usize = 64;
    let spec = LineSpec { kbit_per_second: 50_000.0, delay: Duration::from_millis(150), loss_percent: 0 };
    let lines = format!("connections = {connections}");
    let settings = [("[lane.standard]", lines.as_str())];
    let plant = Plant::start(number, Case { spec, is_buffered: false }, &settings)?;
    let mut client = plant.client("report");
    let text = Random::with_seed(1).text(180);
    let count = 500 * connections;
    for event in 0..count {
        hand_in_of(&mut client, &format!("m{:02}", event % MACHINES), "report", event, &text);
    }
    // The estimate of the line has grown by then.
    let start = Instant::now();
    let await_arrived = |wanted: usize| {
        while plant.arrived() < wanted {
            assert!(start.elapsed() < Duration::from_secs(90), "{} of {count} arrived", plant.arrived());
            std::thread::sleep(Duration::from_millis(5));
        }
        Instant::now()
    };
    let (from, until) = (count / 4, count * 3 / 4);
    let since = await_arrived(from);
    let seconds = (await_arrived(until) - since).as_secs_f64();
    await_arrived(count);
    let arrivals = plant.arrivals.lock().expect("lock");
    assert!(arrivals.values().all(|(_, copies)| *copies == 1), "once");
    let mut last: BTreeMap<usize, Instant> = BTreeMap::new();
    for (id, (at, _)) in arrivals.iter() {
        let event: usize = id.trim_start_matches("report-").parse().expect("a number");
        let before = last.insert(event % MACHINES, *at);
        assert!(before.is_none_or(|before| before <= *at), "{id} overtook an earlier event of its key");
    }
    Some((until - from) as f64 / seconds)
}

/// Four connections have four windows.
#[test]
fn four_connections_carry_a_lane_behind_a_small_window_almost_four_times_as_fast() {
    let Some(one) = rate_with_connections(24, 1) else { return };
    let Some(four) = rate_with_connections(25, 4) else { return };
    println!("{one:.0} events/s with one connection, {four:.0} with four: {:.2} times", four / one);
    assert!(four >= 3.5 * one, "{one:.0} events/s with one connection, {four:.0} with four");
}

/// Its pings and reports are all that an idle gateway sends; with a budget the pings are rare. Runs with the long load only.
#[test]
fn an_idle_destination_on_a_metered_line_takes_less_than_a_megabyte_a_day() {
    if load_seconds() < 60.0 {
        return;
    }
    let spec = LineSpec { kbit_per_second: 1000.0, delay: Duration::from_millis(20), loss_percent: 0 };
    let budget = ("[[destination]]", "budget = { day = \"50MB\" }");
    let Some(plant) = Plant::start(23, Case { spec, is_buffered: false }, &[budget]) else { return };
    // The gateway has sent its first reports by then.
    std::thread::sleep(Duration::from_secs(20));
    let (start, before) = (Instant::now(), plant.line.carried());
    std::thread::sleep(Duration::from_secs(660));
    let bytes = (plant.line.carried() - before) as f64;
    let a_day = bytes / start.elapsed().as_secs_f64() * 86_400.0;
    println!("{bytes} bytes of packets in eleven minutes, {:.2} MB a day", a_day / 1e6);
    assert!(a_day <= 1e6, "{:.2} MB a day", a_day / 1e6);
    assert!(bytes > 0.0, "nothing was sent: the line is not alive");
}
