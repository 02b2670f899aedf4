//! What the users of Odoo feel of hints: nothing, whatever the gateway does.

use super::{Hints, Real, hook};
use crate::common::free_address;
use crate::common::loss::Loss;
use serde_json::json;
use std::process::Command;
use std::time::Duration;

const SAVES: usize = 200;
/// By so much a save may take longer.
const LONGER_MAX: Duration = Duration::from_millis(50);

/// Durations of saves, in order.
struct Saves(Vec<Duration>);

impl Saves {
    /// Saves an order many times, and takes from Odoo's log how long each took in there.
    fn of(real: &Real, order: i64) -> Self {
        let at = real.odoo_log().len();
        for number in 0..SAVES {
            let day = 1 + number % 28;
            let values =
                json!({"priority": (number % 2).to_string(), "date_deadline": format!("2030-01-{day:02} 08:00:00")});
            real.write("mrp.production", order, &values);
        }
        let log = real.odoo_log();
        let saves = log[at..].lines().filter_map(|line| {
            let (_, rest) = line.split_once("\"POST /json/2/mrp.production/write HTTP/1.1\" 200 - ")?;
            // Queries, seconds of them, other seconds.
            let seconds: f64 = rest.split(' ').skip(1).take(2).filter_map(|part| part.parse::<f64>().ok()).sum();
            Some(Duration::from_secs_f64(seconds))
        });
        let mut saves: Vec<Duration> = saves.collect();
        assert_eq!(saves.len(), SAVES, "saves in the log of Odoo");
        saves.sort();
        Self(saves)
    }

    fn mean(&self) -> Duration {
        self.0.iter().sum::<Duration>() / SAVES as u32
    }

    fn share(&self, percent: usize) -> Duration {
        self.0[(self.0.len() * percent / 100).min(self.0.len() - 1)]
    }
}

impl std::fmt::Display for Saves {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (mean, p50, p95, max) = (self.mean(), self.share(50), self.share(95), self.share(100));
        write!(f, "mean {mean:?}, p50 {p50:?}, p95 {p95:?}, max {max:?}")
    }
}

#[test]
fn a_save_takes_no_longer_with_hints_whatever_the_gateway_does() {
    let Some(real) = Real::of_for_long(19) else { return };
    let order = real.order("P-VALVE", &json!({"origin": "FELT"}));
    let address = free_address();
    let mut plant = real.plant("odoo-felt", "60s", &hook(address));
    plant.gateway.run();
    plant.await_problem("");
    let without = Saves::of(&real, order);
    println!("without hints: {without}");
    let hints = Hints::install(&real, &plant);
    let signal = |name: &str| {
        let status = Command::new("kill").args([name, &plant.gateway.pid().to_string()]).status();
        assert!(status.expect("kill runs").success());
    };
    let mut found = vec![("hints", Saves::of(&real, order))];
    signal("-STOP");
    found.push(("the gateway hangs", Saves::of(&real, order)));
    signal("-CONT");
    if let Some(_loss) = Loss::of(100, address.port()) {
        found.push(("its host drops packets", Saves::of(&real, order)));
    }
    signal("-KILL");
    found.push(("the gateway is off", Saves::of(&real, order)));
    drop(hints);
    let again = Saves::of(&real, order);
    println!("without hints, afterwards: {again}");
    found.iter().for_each(|(what, saves)| println!("{what}: {saves}"));
    real.act("mrp.production", "unlink", order);
    for (what, saves) in &found {
        // The slowest ones show how busy the machine is.
        for (name, before, now) in [
            ("median", without.share(50).max(again.share(50)), saves.share(50)),
            ("mean", without.mean().max(again.mean()), saves.mean()),
        ] {
            assert!(now <= before + LONGER_MAX, "{what}: the {name} of saves is {now:?}, without hints {before:?}");
        }
    }
}
