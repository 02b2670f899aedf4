//! Commands that read the files of a journal while a gateway writes them: each ends with a result or a reason.
//!
//! `FOREBAY_TRIES` is the number of commands (`tests/run --long`: 2,000).

use crate::common::client::Client;
use crate::common::gateway::{Gateway, payload};
use crate::common::program::said;
use crate::common::random::Random;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// All files below a folder that have readable names.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let (folders, mut found): (Vec<_>, Vec<_>) = entries.map(|entry| entry.path()).partition(|path| path.is_dir());
    folders.iter().for_each(|folder| found.extend(files(folder)));
    found.retain(|file| !file.to_string_lossy().ends_with(".sock"));
    found.sort();
    found
}

/// A panic of the database once ended `salvage`, 17 times of 80.
#[test]
fn salvage_verify_and_export_of_a_journal_in_use_never_panic() {
    let tries: usize = std::env::var("FOREBAY_TRIES").map_or(60, |text| text.parse().expect("a number"));
    let gateway = Gateway::start("live-journal", "");
    let (address, stop) = (gateway.address, Arc::new(AtomicBool::new(false)));
    let stopped = Arc::clone(&stop);
    let publisher = std::thread::spawn(move || {
        let (mut client, _) = Client::connect(address, &Default::default());
        let mut count = 0;
        while !stopped.load(Ordering::Relaxed) {
            count += 1;
            let id = (count % 60_000) as u16 + 1;
            client.publish(true, id, "plant/line1/m01/state", payload(1, count).as_bytes());
        }
        count
    });
    let (journal, output) = (gateway.folder.join("data/journal"), gateway.folder.join("out.jsonl"));
    let (shown, written) = (journal.display().to_string(), output.display().to_string());
    let mut random = Random::seeded();
    let (mut succeeded, mut refused) = (0, 0);
    for number in 0..tries {
        let of_journal = files(&journal);
        let file = of_journal[random.below(of_journal.len() as u64) as usize].display().to_string();
        // Output files are not replaced.
        let _ = std::fs::remove_file(&output);
        let arguments: &[&str] = match number % 5 {
            0 => &["salvage", &file],
            1 => &["verify", "--journal", &shown],
            2 => &["export", "--journal", &shown, "--output", &written],
            3 => &["verify", "CONFIG"],
            _ => &["export", "--output", &written, "CONFIG"],
        };
        let ran = gateway.command(arguments);
        let text = said(&ran);
        assert!(matches!(ran.status.code(), Some(0 | 1)), "try {number}: {arguments:?}: {:?}: {text}", ran.status);
        assert!(!text.contains("panicked") && !text.contains("RUST_BACKTRACE"), "try {number}: {arguments:?}: {text}");
        assert!(ran.status.success() || !text.trim().is_empty(), "try {number}: {arguments:?} gives no reason");
        *if ran.status.success() { &mut succeeded } else { &mut refused } += 1;
    }
    stop.store(true, Ordering::Relaxed);
    let published = publisher.join().expect("publishes");
    println!("{tries} commands beside {published} events: {succeeded} succeeded, {refused} gave a reason");
    assert!(succeeded >= tries / 5, "{succeeded} of {tries}");
}
