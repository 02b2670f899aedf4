//! What happens to a gateway: devices, disks, lines, operators and power.

use super::centre::Mood;
use super::fault_disk::{Fault, FaultDisk, Unsynced};
use super::world::{Ending, Event, EventKey, KINDS, Random, World};
use crate::journal::{ReadOnlyJournal, Start};
use std::collections::BTreeSet;
use std::time::Duration;

/// Machines that publish.
const MACHINES: [&str; 3] = ["a", "b", "c"];
/// Names of destinations; some begin with each other.
const DESTINATIONS: [&str; 4] = ["central", "central-old", "mes", "mes-2"];
/// Where a disk may fail.
const FAULTS_AT: [&str; 5] = ["", "critical", "standard", "bulk", "state.redb"];
/// Rounds in which everything must be delivered at the end.
const DRAIN_ROUNDS: usize = 4000;

impl World {
    /// Lets `actions` happen, then heals everything and has the rest delivered.
    pub async fn run(&mut self, actions: u64) -> Result<(), String> {
        self.start();
        for _ in 0..actions {
            self.actions += 1;
            self.may_cut_within(300);
            self.act().await?;
            self.trace_lanes();
            self.come_back().await?;
            let news = self.acknowledge();
            self.check_news(&news)?;
        }
        self.drain().await
    }

    /// Has the power go at one of the next operations of the disk, one time in so many.
    fn may_cut_within(&mut self, one_in: u64) {
        let Some(cuts) = &mut self.cuts else { return };
        if !cuts.chance(one_in) {
            return;
        }
        let (operation, unsynced) = (1 + cuts.below(60), unsynced(cuts));
        self.disk.cut_at(operation, unsynced);
        self.note(format_args!("the power will go at operation {operation}: {unsynced:?}"));
    }

    /// Starts the gateway again where the power has gone in the middle of an action, or of a start.
    async fn come_back(&mut self) -> Result<(), String> {
        if !self.disk.is_off() {
            return Ok(());
        }
        let mut news = Vec::new();
        while self.disk.is_off() {
            // Whoever had a receipt by then was acknowledged.
            news.extend(self.acknowledge());
            self.note(format_args!("the power has gone"));
            self.end(Ending::PowerCut(Unsynced::Dropped)).await;
            self.begin();
        }
        self.check_news(&news)?;
        self.check()
    }

    async fn act(&mut self) -> Result<(), String> {
        match self.random.below(1000) {
            0..380 => self.publish(),
            380..470 => self.repeat(),
            470..720 => self.step(),
            720..860 => {
                let millis = 1 + self.random.below(400);
                self.advance(Duration::from_millis(millis)).await;
            }
            860..870 => {
                let seconds = 1 + self.random.below(7200);
                self.note(format_args!("{seconds} s pass"));
                self.advance(Duration::from_secs(seconds)).await;
            }
            870..905 => self.change_centre(),
            905..915 => self.fail_disk(),
            915..940 => self.heal_disk(),
            940..955 => self.move_contract().await,
            955..970 => self.change_destinations().await,
            970..974 => self.change_lanes().await?,
            974..979 => self.restart(Ending::Clean).await?,
            979..985 => self.restart(Ending::Killed).await?,
            985..991 => {
                let unsynced = unsynced(&mut self.random);
                self.restart(Ending::PowerCut(unsynced)).await?;
            }
            991..992 => self.restore().await?,
            _ => self.check()?,
        }
        if self.running.is_none() && self.random.chance(4) {
            self.begin();
        }
        Ok(())
    }

    fn publish(&mut self) {
        let mut number = self.next_number;
        if number > 1 && self.random.chance(4) {
            // A counter of another stream or machine has the same value, and the same payload.
            number = 1 + self.random.below(number - 1);
        } else {
            self.next_number += 1;
        }
        let key = EventKey {
            kind: (*self.random.pick(&KINDS)).to_owned(),
            machine: (*self.random.pick(&MACHINES)).to_owned(),
            number,
        };
        let event = || Event { payload: payload(number), is_acknowledged: false, owed: None, places: BTreeSet::new() };
        self.events.entry(key.clone()).or_insert_with(event);
        let is_taken = self.hand_in(&key);
        self.note(format_args!("publish {} {} {number}: {is_taken}", key.kind, key.machine));
    }

    fn repeat(&mut self) {
        if self.events.is_empty() {
            return;
        }
        // Mostly what came last: what waits for its acknowledgement.
        let count = self.events.len() as u64;
        let keys: Vec<EventKey> = match (&self.running, self.random.chance(2)) {
            (Some(running), true) if !running.pending.is_empty() => {
                running.pending.iter().map(|(key, ..)| key.clone()).collect()
            }
            _ => self.events.keys().skip(self.random.below(count) as usize).take(1).cloned().collect(),
        };
        let key = self.random.pick(&keys).clone();
        let is_taken = self.hand_in(&key);
        self.note(format_args!("repeat {} {} {}: {is_taken}", key.kind, key.machine, key.number));
    }

    fn step(&mut self) {
        let Some(running) = &mut self.running else { return };
        let writer = self.random.below(running.stepped.writers() as u64) as usize;
        let is_good = running.stepped.step(writer);
        self.note(format_args!("step {writer}: {is_good}"));
    }

    fn change_centre(&mut self) {
        let names: Vec<String> = self.centres.lock().expect("lock").keys().cloned().collect();
        let name = self.random.pick(&names).clone();
        let (is_up, mood) = (
            !self.random.chance(3),
            *self.random.pick(&[Mood::Well, Mood::Well, Mood::Moody, Mood::Moody, Mood::Silent]),
        );
        {
            let all = self.centres.lock().expect("lock");
            let mut centre = all[&name].lock().expect("lock");
            (centre.is_up, centre.mood) = (is_up, mood);
        }
        self.note(format_args!("{name}: up {is_up}, {mood:?}"));
    }

    fn fail_disk(&mut self) {
        let fault = *self.random.pick(&[Fault::Sync, Fault::Full, Fault::NoFreeBytes]);
        let at = *self.random.pick(&FAULTS_AT);
        self.disk.fail_at(at, Some(fault));
        self.note(format_args!("the disk fails at \"{at}\": {fault:?}"));
    }

    fn heal_disk(&mut self) {
        self.disk.fail(None);
        self.note(format_args!("the disk works"));
    }

    /// Puts the plan in force, as a reload does; `false` if the disk did not take the contracts, and nothing has changed.
    async fn reload(&mut self) -> bool {
        let (contracts, config) = (self.contracts(), self.journal_config());
        let Some(running) = &self.running else { return true };
        if running.ingest.apply(contracts, Default::default()).is_err() {
            return false;
        }
        running.stepped.journal.change(&config);
        let configured: Vec<String> =
            self.plan.destinations.iter().filter(|to| to.is_configured).map(|to| to.name.clone()).collect();
        let gone: Vec<String> = running.links.keys().filter(|name| !configured.contains(name)).cloned().collect();
        for name in gone {
            self.stop_links(&name).await;
        }
        self.start_links();
        true
    }

    async fn move_contract(&mut self) {
        let lane = self.random.pick(&self.plan.lanes).clone();
        let index = self.random.below(self.plan.streams.len() as u64) as usize;
        let stream = &mut self.plan.streams[index];
        if stream.lane == lane {
            return;
        }
        stream.patch += 1;
        stream.lane.clone_from(&lane);
        let kind = stream.kind;
        self.note(format_args!("contract {kind} moves to lane {lane}"));
        self.reload().await;
    }

    async fn change_destinations(&mut self) {
        // A plan that is not in force could not be told from one that is.
        if self.running.is_none() {
            return;
        }
        let name = *self.random.pick(&DESTINATIONS);
        let known = self.plan.destinations.iter().position(|to| to.name == name);
        let configured = self.plan.destinations.iter().filter(|to| to.is_configured).count();
        let mut before = self.plan.destinations.clone();
        match known {
            None => {
                let start = *self.random.pick(&[Start::Oldest, Start::Now]);
                self.ledger.forget_destination(name);
                self.add_destination(name, start);
                self.note(format_args!("destination {name} is added, from {start:?}"));
            }
            Some(index) if self.plan.destinations[index].is_configured => {
                if configured < 2 {
                    return;
                }
                self.plan.destinations[index].is_configured = false;
                self.note(format_args!("destination {name} is removed"));
            }
            Some(index) if self.random.chance(3) => {
                self.plan.destinations[index].is_configured = true;
                self.note(format_args!("destination {name} is back"));
            }
            Some(index) => {
                self.look();
                let dropped = self.journal().map(|journal| journal.begin_drop(name));
                self.note(format_args!("destination {name} is dropped: {:?}", dropped.map(|dropped| dropped.is_ok())));
                // Where the disk failed it may be half dropped: nothing is claimed of it any more.
                self.plan.destinations.remove(index);
                before.remove(index);
                self.look();
            }
        }
        if !self.reload().await {
            self.note(format_args!("the reload is refused"));
            self.plan.destinations = before;
        }
    }

    /// Lanes change with a restart alone.
    async fn change_lanes(&mut self) -> Result<(), String> {
        match self.plan.lanes.iter().position(|lane| lane == "own") {
            None => self.plan.lanes.push("own".into()),
            Some(index) => {
                self.plan.lanes.remove(index);
                for stream in self.plan.streams.iter_mut().filter(|stream| stream.lane == "own") {
                    stream.lane = "standard".into();
                    stream.patch += 1;
                }
            }
        }
        let lanes = self.plan.lanes.join(", ");
        self.note(format_args!("lanes: {lanes}"));
        self.restart(Ending::Clean).await
    }

    async fn restart(&mut self, how: Ending) -> Result<(), String> {
        self.look();
        self.note(format_args!("the process ends: {how:?}"));
        self.end(how).await;
        self.begin();
        self.check()
    }

    fn begin(&mut self) {
        self.ledger.forget();
        self.may_cut_within(8);
        self.start();
    }

    /// A backup of the stopped journal takes its place.
    async fn restore(&mut self) -> Result<(), String> {
        self.look();
        self.disk.fail(None);
        self.end(Ending::Clean).await;
        let (from, to) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        self.disk.write_to(from.path());
        let journal = from.path().join("data/journal");
        if journal.join("journal.toml").exists() {
            std::fs::create_dir(to.path().join("data")).expect("a folder");
            let shelf =
                ReadOnlyJournal::open(&journal).map_err(|error| format!("the journal cannot be read: {error}"))?;
            let copied = shelf.back_up(&to.path().join("data/journal"), &mut |_| std::ops::ControlFlow::Continue(()));
            copied.map_err(|error| format!("no backup: {error}"))?;
            self.disk = FaultDisk::read_from(to.path());
            self.note(format_args!("restored from a backup"));
        }
        self.begin();
        self.check()
    }

    /// Drops again what a failing disk let be dropped in part, as an operator does: it would hold lanes back for ever.
    fn drop_the_rest(&mut self) -> Result<(), String> {
        let Some(journal) = self.journal().cloned() else { return Ok(()) };
        let is_planned = |name: &String| self.plan.destinations.iter().any(|to| to.name == *name);
        let rest: Vec<String> = journal.destinations().into_iter().filter(|name| !is_planned(name)).collect();
        for name in rest {
            self.note(format_args!("destination {name} is dropped again"));
            journal.begin_drop(&name).map_err(|error| format!("{name} cannot be dropped on a good disk: {error}"))?;
        }
        Ok(())
    }

    /// Everything works again: what was acknowledged arrives.
    async fn drain(&mut self) -> Result<(), String> {
        self.note(format_args!("everything works"));
        self.disk.fail(None);
        self.cuts = None;
        self.disk.cut_at(u64::MAX / 2, Unsynced::Dropped);
        for centre in self.centres.lock().expect("lock").values() {
            let mut centre = centre.lock().expect("lock");
            (centre.is_up, centre.mood) = (true, Mood::Well);
        }
        if self.running.is_none() {
            self.begin();
        }
        if self.running.is_none() {
            return Err("the gateway does not start on a good disk".into());
        }
        // Nobody is left who holds a lane back and takes nothing.
        self.look();
        for to in self.plan.destinations.iter_mut() {
            to.is_configured = true;
        }
        if !self.reload().await {
            return Err("a reload is refused on a good disk".into());
        }
        self.drop_the_rest()?;
        for _ in 0..DRAIN_ROUNDS {
            let Some(running) = &mut self.running else { break };
            (0..running.stepped.writers()).for_each(|writer| {
                running.stepped.step(writer);
            });
            let journal = &running.stepped.journal;
            let is_queued = |lane: &crate::journal::Lane| lane.status().destinations.iter().any(|to| to.queued > 0);
            let is_over = running.pending.is_empty() && !journal.lanes().iter().any(|lane| is_queued(lane));
            let news = self.acknowledge();
            self.check_news(&news)?;
            if is_over {
                return self.check_to_the_end();
            }
            self.advance(Duration::from_millis(100)).await;
        }
        let Some(running) = &self.running else { return Err("the gateway is not there".into()) };
        let mut text = format!("not everything is delivered: {} are not acknowledged", running.pending.len());
        for (name, links) in &running.links {
            for (link, lane) in links.iter().zip(running.stepped.journal.lanes()) {
                let cursor = lane.settled(name).map(|settled| (settled.low, settled.ranges));
                text +=
                    &format!("; {name}/{}: {:?}, cursor {cursor:?} of {}", lane.name, link.stats.state(), lane.end());
            }
        }
        Err(text)
    }
}

/// What becomes of operations that were not synced.
fn unsynced(random: &mut Random) -> Unsynced {
    match random.below(3) {
        0 => Unsynced::Dropped,
        1 => Unsynced::Kept,
        _ => Unsynced::Random(1 + random.below(1 << 30)),
    }
}

/// A payload that follows from its number; one in four fills a lane quickly.
fn payload(number: u64) -> Vec<u8> {
    let mut random = Random::new(number);
    let length = if random.chance(4) { 8000 + random.below(20_000) } else { random.below(200) };
    let letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let pad: String = (0..length).map(|_| char::from(letters[random.below(64) as usize])).collect();
    format!("{{\"id\":\"{number}\",\"n\":{number},\"pad\":\"{pad}\"}}").into_bytes()
}
