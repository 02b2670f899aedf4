//! Commands that read a journal, while a gateway writes to it: they answer or refuse, and never panic.
//!
//! `FOREBAY_TRIES` is the number of commands (`tests/run --long`: 2,000).

use crate::common::devices::Devices;
use crate::common::gateway::{Gateway, SMALL_BUDGETS};
use crate::common::program::said;
use crate::common::random::Random;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// All files of a folder; those that vanish meanwhile are not in it.
fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        match path.is_dir() {
            true => files(&path, found),
            false => found.push(path),
        }
    }
}

#[test]
fn salvage_verify_and_export_of_a_journal_in_use_never_panic() {
    let destination = format!("\n[[destination]]\nname = \"central\"\nurl = \"mqtt://127.0.0.1:1\"\n{SMALL_BUDGETS}");
    let gateway = Gateway::start("in-use", &destination);
    let journal = gateway.folder.join("data/journal");
    let devices = Devices::start(gateway.address, 8, 20, Duration::ZERO);
    let (count, random) = (AtomicUsize::new(0), Mutex::new(Random::seeded()));
    let outcomes: Mutex<BTreeMap<(&str, i32), usize>> = Mutex::default();
    let tries = std::env::var("FOREBAY_TRIES").map_or(120, |text| text.parse().expect("a number"));
    let start = Instant::now();
    let work = |worker: usize| {
        let out = gateway.folder.join(format!("out-{worker}.jsonl")).display().to_string();
        loop {
            let number = count.fetch_add(1, Ordering::Relaxed);
            if number >= tries {
                return;
            }
            let pick = random.lock().expect("lock").below(1 << 30) as usize;
            let kind = ["salvage", "verify", "export"][number % 3];
            let in_use = journal.display().to_string();
            let output = match kind {
                "salvage" => {
                    let mut found = Vec::new();
                    files(&journal, &mut found);
                    if !pick.is_multiple_of(4) {
                        found.retain(|file| file.extension().is_some_and(|ending| ending == "redb"));
                    }
                    let mut file = found[pick % found.len()].clone();
                    // A copy that is taken while the file is written may be torn.
                    let copy = gateway.folder.join(format!("copy-{worker}.redb"));
                    if !pick.is_multiple_of(3) && std::fs::copy(&file, &copy).is_ok() {
                        file = copy;
                    }
                    let file = file.display().to_string();
                    gateway.command(&["salvage", &file, "--journal", &in_use, "--output", &out])
                }
                "verify" if pick.is_multiple_of(4) => gateway.command(&["verify", "--journal", &in_use]),
                "verify" => gateway.command(&["verify", "--json", "CONFIG"]),
                _ if pick.is_multiple_of(4) => gateway.command(&["export", "--journal", &in_use, "--output", &out]),
                _ => gateway.command(&["export", "--since", "1s", "--output", &out, "CONFIG"]),
            };
            let code =
                output.status.code().unwrap_or_else(|| panic!("{kind} was ended by a signal: {}", said(&output)));
            let text = said(&output);
            assert!((0..=1).contains(&code) && !text.contains("panicked"), "{kind} ended with {code}: {text}");
            assert!(code == 0 || text.len() > 20, "{kind} failed without a reason: {text}");
            *outcomes.lock().expect("lock").entry((kind, code)).or_default() += 1;
        }
    };
    std::thread::scope(|scope| {
        for worker in 0..2 {
            let work = &work;
            scope.spawn(move || work(worker));
        }
    });
    let outcomes = outcomes.into_inner().expect("lock");
    println!("{outcomes:?} in {:.0?}, {} events meanwhile", start.elapsed(), devices.stop().len());
    for kind in ["salvage", "verify", "export"] {
        for code in [0, 1] {
            assert!(outcomes.contains_key(&(kind, code)), "no {kind} ended with {code}: {outcomes:?}");
        }
    }
}
