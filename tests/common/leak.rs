//! Whether a process keeps memory or files of what is over.

use super::gateway::Gateway;

/// One heap for all threads, which gives free memory back: what the process holds is then what it uses. With a heap for
/// each thread, which thread does what decides how much of each lies idle.
const ONE_HEAP: [(&str, &str); 3] =
    [("MALLOC_ARENA_MAX", "1"), ("MALLOC_TRIM_THRESHOLD_", "131072"), ("MALLOC_MMAP_THRESHOLD_", "131072")];
/// Rounds that are compared. What is bounded fills before: caches, tables, the holes of the heap.
const WINDOW: usize = 3;
/// Growth of the heap that a window may show: holes between blocks that stay and blocks that go.
const GROWTH_KB_MAX: u64 = 1024;
/// Rounds until the growth has to end.
const ROUNDS_MAX: usize = 24;

/// Prepares a gateway that is not started yet for [`await_no_growth`].
pub fn prepare(gateway: &mut Gateway) {
    gateway.environment.extend(ONE_HEAP.map(|(name, value)| (name.to_owned(), value.to_owned())));
}

/// Memory of the process itself, in kB, and its open files.
fn figures(gateway: &Gateway) -> (u64, usize) {
    let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.pid())).expect("status");
    let line = status.lines().find(|line| line.starts_with("RssAnon")).expect("memory of its own");
    let memory = line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number");
    (memory, std::fs::read_dir(format!("/proc/{}/fd", gateway.pid())).expect("files").count())
}

/// Repeats `round` until [`WINDOW`] rounds have left nothing behind. Fails if they still do after [`ROUNDS_MAX`]: a leak
/// is what grows with every round, however full everything is. It is found from [`GROWTH_KB_MAX`] a window.
pub fn await_no_growth(gateway: &Gateway, mut round: impl FnMut()) {
    let mut seen: Vec<(u64, usize)> = Vec::new();
    let has_settled = |seen: &[(u64, usize)]| {
        let (Some((memory, files)), Some(before)) = (seen.last(), seen.len().checked_sub(WINDOW + 1)) else {
            return false;
        };
        let (memory_before, files_before) = seen[before];
        // A round that was measured with connections still open says nothing.
        *memory <= memory_before + GROWTH_KB_MAX && files.abs_diff(files_before) <= 2
    };
    while !has_settled(&seen) {
        assert!(seen.len() < ROUNDS_MAX, "kB and open files grow with every round: {seen:?}");
        round();
        seen.push(figures(gateway));
    }
    println!("kB and open files behind each round: {seen:?}");
}
