//! Lines in the time of a test: lanes send as much as their shares allow, and a queue carries it at a rate.

use super::*;

/// One simulated lane.
struct SimulatedLane {
    share: LineShare,
    event_bytes: u64,
    /// Time between two events; `None` for a lane that always has more.
    every: Option<f64>,
    next_at: f64,
    in_flight: u64,
    /// Time from the event to the broker.
    delays: Vec<f64>,
    carried: u64,
}

struct Simulation {
    line: Arc<Line>,
    start: Instant,
    now: f64,
    /// Bytes per second.
    rate: f64,
    one_way: f64,
    /// Time at which the line is idle again.
    idle_at: f64,
    lanes: Vec<SimulatedLane>,
    /// Time of the acknowledgement, lane, bytes, and when it was sent.
    acknowledgements: Vec<(f64, usize, u64, f64)>,
    longest_queue: f64,
    /// Largest estimate as a part of the rate.
    highest: f64,
}

const STEP: f64 = 0.005;

impl Simulation {
    fn new(rate: f64, one_way: f64, lanes: &[(usize, u64, Option<f64>)]) -> Self {
        let line = Arc::<Line>::default();
        let lane = |&(rank, event_bytes, every): &(usize, u64, Option<f64>)| SimulatedLane {
            share: line.share(rank),
            event_bytes,
            every,
            next_at: 0.0,
            in_flight: 0,
            delays: Vec::new(),
            carried: 0,
        };
        let lanes = lanes.iter().map(lane).collect();
        let start = Instant::now();
        let (idle_at, longest_queue, highest) = (0.0, 0.0, 0.0);
        Self {
            line,
            start,
            now: 0.0,
            rate,
            one_way,
            idle_at,
            lanes,
            acknowledgements: Vec::new(),
            longest_queue,
            highest,
        }
    }

    fn at(&self, seconds: f64) -> Instant {
        self.start + Duration::from_secs_f64(seconds)
    }

    fn run(&mut self, seconds: f64) {
        let end = self.now + seconds;
        while self.now < end {
            self.acknowledge();
            for index in 0..self.lanes.len() {
                self.send(index);
            }
            self.longest_queue = self.longest_queue.max(self.idle_at - self.now);
            let estimate = self.line.figures().rate.unwrap_or_default();
            self.highest = self.highest.max(estimate / self.rate);
            self.now += STEP;
        }
    }

    fn acknowledge(&mut self) {
        let (due, rest) = std::mem::take(&mut self.acknowledgements).into_iter().partition(|ack| ack.0 <= self.now);
        self.acknowledgements = rest;
        let due: Vec<(f64, usize, u64, f64)> = due;
        let mut answers = self.line.answers(self.at(self.now));
        for (_, lane, bytes, sent_at) in due {
            self.lanes[lane].in_flight -= bytes;
            self.lanes[lane].carried += bytes;
            answers.add(bytes as usize, self.at(sent_at));
        }
        self.line.record(&answers);
    }

    fn send(&mut self, index: usize) {
        let now = self.at(self.now);
        loop {
            let lane = &mut self.lanes[index];
            if lane.every.is_some() && lane.next_at > self.now {
                return;
            }
            let room = lane.share.room(lane.in_flight, now);
            if room < SEGMENT_BYTES.min(lane.event_bytes) && lane.in_flight > 0 {
                self.line.mark_full();
                return;
            }
            lane.in_flight += lane.event_bytes;
            self.idle_at = self.idle_at.max(self.now) + lane.event_bytes as f64 / self.rate;
            let arrives = self.idle_at + self.one_way;
            let since = if lane.every.is_some() { lane.next_at } else { self.now };
            lane.delays.push(arrives - since);
            lane.next_at += lane.every.unwrap_or_default();
            self.acknowledgements.push((arrives + self.one_way, index, lane.event_bytes, self.now));
        }
    }

    fn carried(&self) -> f64 {
        self.lanes.iter().map(|lane| lane.carried).sum::<u64>() as f64
    }
}

fn percentile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[((sorted.len() - 1) as f64 * part) as usize]
}

#[test]
fn a_full_line_is_used_is_not_overestimated_and_delays_no_critical_event() {
    for rate in [1200.0, 8000.0, 32_000.0] {
        for one_way in [0.025, 0.3, 0.6] {
            let mut line = Simulation::new(rate, one_way, &[(0, 500, Some(2.0)), (2, 600, None)]);
            line.run(20.0);
            let (before, start) = (line.carried(), line.now);
            line.run(100.0);
            let used = (line.carried() - before) / (line.rate * (line.now - start));
            let late = percentile(&line.lanes[0].delays, 0.95);
            let figures = line.line.figures();
            let what = format!("{rate} B/s, {one_way} s: {used:.3} used, critical p95 {late:.2} s, {figures:?}");
            println!("{what}, highest {:.3}, queue {:.2} s", line.highest, line.longest_queue);
            assert!(line.highest <= 1.001, "overestimated: {:.3}; {what}", line.highest);
            assert!(used >= 0.9, "{what}");
            assert!(late <= one_way + 2.0 + 3.0 * 1400.0 / rate, "{what}");
        }
    }
}

#[test]
fn a_fast_line_is_not_held_back_for_long() {
    let mut line = Simulation::new(10_000_000.0, 0.0005, &[(1, 600, None)]);
    line.run(0.1);
    let bound = line.line.state.lock().bound(line.at(line.now));
    assert!(bound > 600 * 1000, "{bound} bytes after 0.1 s: less than the window");
    let mut far = Simulation::new(1_000_000.0, 0.3, &[(1, 600, None)]);
    far.run(8.0);
    let bound = far.line.state.lock().bound(far.at(far.now));
    assert!(bound > 300_000, "{bound} bytes after 8 s at 600 ms");
}

#[test]
fn the_estimate_follows_a_line_that_becomes_slower() {
    let mut line = Simulation::new(32_000.0, 0.05, &[(1, 600, None)]);
    line.run(30.0);
    line.rate = 8000.0;
    line.run(40.0);
    let rate = line.line.figures().rate.unwrap_or_default();
    assert!((5000.0..=8100.0).contains(&rate), "{rate}");
}

#[test]
fn a_lower_lane_has_about_a_tenth_while_a_higher_one_never_ends() {
    let mut line = Simulation::new(32_000.0, 0.1, &[(1, 600, None), (2, 600, None)]);
    line.run(60.0);
    let part = line.lanes[1].carried as f64 / line.carried();
    assert!((0.05..=0.2).contains(&part), "{part:.3}");
}

#[test]
fn a_slow_broker_does_not_shrink_what_is_in_flight() {
    // It answers after three seconds; the network itself takes a millisecond.
    let mut line = Simulation::new(1_000_000.0, 1.5, &[(1, 600, None)]);
    line.line.record_connect(Duration::from_millis(1));
    line.run(60.0);
    let used = line.carried() / (line.rate * line.now);
    assert!(used > 0.2, "{used:.3}");
}
