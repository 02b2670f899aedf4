//! The figures of the process, from `/proc/self`.

use crate::clock;
use crate::telemetry::metrics::*;
use std::time::UNIX_EPOCH;

/// Clock ticks per second (`USER_HZ`): 100 on every Linux.
const TICKS: f64 = 100.0;

pub(super) fn put_process(page: &mut Page) {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/self/{name}")).unwrap_or_default();
    let number = |text: &str, key: &str, index: usize| -> f64 {
        let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
        line.split_whitespace().nth(index).and_then(|word| word.parse().ok()).unwrap_or(0.0)
    };
    let (status, stat) = (read("status"), read("stat"));
    page.one(DISK_WRITTEN, number(&read("io"), "write_bytes:", 0));
    page.one(MEMORY, number(&status, "VmRSS:", 0) * 1024.0);
    // The fields follow the name in parentheses, which may contain any characters.
    let fields: Vec<f64> =
        stat.rsplit(") ").next().unwrap_or_default().split(' ').map(|word| word.parse().unwrap_or(0.0)).collect();
    let field = |number: usize| fields.get(number - 3).copied().unwrap_or(0.0);
    page.one(CPU, (field(14) + field(15)) / TICKS);
    page.one(FILES, std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count) as f64);
    page.one(FILES_MAX, number(&read("limits"), "Max open files", 0));
    page.one(THREADS, number(&status, "Threads:", 0));
    let age = clock::since_boot().as_secs_f64() - field(22) / TICKS;
    page.one(STARTED, clock::wall().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64() - age));
}
