//! A part of the gateway that is started, replaced and stopped alone.
//!
//! Promise: a part that panics, ends by itself or is stuck is started anew, alone and with growing pauses,
//! and what happened is told; a part that cannot even be ended is told of until the process is restarted.

use crate::admin::Failures;
use crate::clock;
use crate::link::jitter;
use crate::shutdown::{self, Pulse, Shutdown, Trigger};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

/// What a part does until its shutdown.
pub(super) type Work = Pin<Box<dyn Future<Output = ()> + Send>>;
/// Makes a part's work ready: at its start, and anew after it failed.
pub(super) type Make = Box<dyn FnMut(Shutdown) -> anyhow::Result<Work> + Send>;

/// A part that has not come back to its shutdown for so long is stuck.
const STUCK_AFTER: Duration = Duration::from_secs(120);
/// How long a part that is stuck may take to be dropped.
const DROP_WAIT_MAX: Duration = Duration::from_secs(10);
/// Pauses before a part is started anew.
const RESTART_PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));
/// A part that has worked so long since its last failure starts anew without a long pause.
const WELL_AFTER: Duration = Duration::from_secs(300);

/// A part that runs.
#[derive(Debug)]
pub(super) struct Part {
    trigger: Trigger,
    keeper: JoinHandle<()>,
}

impl Part {
    /// Starts a part; the error is that of the first attempt. `name` is what people know it by.
    pub fn start(name: String, failures: &Arc<Failures>, make: Make) -> anyhow::Result<Self> {
        Self::start_on(Handle::current(), name, failures, make)
    }

    /// The same on another runtime's threads, as `Background` has them.
    pub fn start_on(on: Handle, name: String, failures: &Arc<Failures>, make: Make) -> anyhow::Result<Self> {
        Self::start_within(on, name, failures, make, STUCK_AFTER)
    }

    fn start_within(
        on: Handle,
        name: String,
        failures: &Arc<Failures>,
        make: Make,
        limit: Duration,
    ) -> anyhow::Result<Self> {
        let (trigger, shutdown) = shutdown::pair();
        let mut keeper = Keeper { on, name, make, shutdown, limit, failures: Arc::clone(failures) };
        let first = keeper.make()?;
        Ok(Self { trigger, keeper: tokio::spawn(keeper.keep(first)) })
    }

    /// Begins its end.
    pub fn begin_stop(&self) {
        self.trigger.begin();
    }

    /// Waits until it has ended; `false` if it does not in time, and is left behind.
    pub async fn ended(self, patience: Duration) -> bool {
        self.trigger.begin();
        tokio::time::timeout(patience, self.keeper).await.is_ok()
    }
}

/// Watches over one part.
struct Keeper {
    /// Where the part works. The keeper itself is not there: it sees when that does not go on.
    on: Handle,
    name: String,
    make: Make,
    shutdown: Shutdown,
    limit: Duration,
    failures: Arc<Failures>,
}

/// Ends a task that nobody awaits any more.
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Keeper {
    fn make(&mut self) -> anyhow::Result<(Work, Arc<Pulse>)> {
        let (shutdown, pulse) = self.shutdown.with_pulse(self.limit);
        Ok(((self.make)(shutdown)?, pulse))
    }

    async fn keep(mut self, first: (Work, Arc<Pulse>)) {
        let mut next = Some(first);
        let mut pause = RESTART_PAUSE.0;
        while let Some((work, pulse)) = next.take() {
            let began = clock::instant();
            let Some(why) = self.watch(work, &pulse).await else { return };
            if clock::instant().duration_since(began) >= WELL_AFTER {
                pause = RESTART_PAUSE.0;
            }
            tracing::error!(part = %self.name, "the part {why}, and is started anew");
            self.failures.note(&self.name, why);
            while next.is_none() {
                tokio::select! {
                    () = self.shutdown.begun() => return,
                    () = tokio::time::sleep(jitter(pause, pause * 2)) => {}
                }
                pause = (pause * 2).min(RESTART_PAUSE.1);
                match self.make() {
                    Ok(made) => next = Some(made),
                    Err(error) => {
                        tracing::error!(part = %self.name, error = %format!("{error:#}"), "the part cannot be started anew, will retry");
                        self.failures.note(&self.name, format!("does not start: {error:#}"));
                    }
                }
            }
            self.failures.restarted(&self.name);
        }
    }

    /// Returns when the part has ended: `None` as it should, else what happened.
    async fn watch(&mut self, work: Work, pulse: &Pulse) -> Option<String> {
        let mut task = Task(self.on.spawn(work));
        let ended = tokio::select! {
            ended = &mut task.0 => Some(ended),
            () = pulse.stopped() => None,
        };
        let is_stopping = self.shutdown.has_begun();
        match ended {
            Some(Ok(())) if is_stopping => None,
            Some(Ok(())) => Some("ended by itself".into()),
            Some(Err(error)) => {
                let why = error.try_into_panic().map_or_else(|_| "was cancelled".into(), |panic| panicked(&*panic));
                if is_stopping {
                    tracing::error!(part = %self.name, "the part {why} while it was stopped");
                    return None;
                }
                Some(why)
            }
            None => {
                task.0.abort();
                let silence = pulse.silence().as_secs();
                self.failures.note(&self.name, format!("is stuck for {silence} s"));
                if tokio::time::timeout(DROP_WAIT_MAX, &mut task.0).await.is_err() {
                    let why = format!("is stuck for {silence} s and cannot be ended; the gateway has to be restarted");
                    tracing::error!(part = %self.name, "the part {why}");
                    self.failures.mark_hung(&self.name, why);
                    // It may come to itself.
                    let _ = (&mut task.0).await;
                    self.failures.mark_recovered(&self.name);
                }
                (!self.shutdown.has_begun()).then(|| format!("was stuck for {silence} s"))
            }
        }
    }
}

/// What a panic said.
fn panicked(panic: &(dyn std::any::Any + Send)) -> String {
    let said = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let said = said.or_else(|| panic.downcast_ref::<String>().cloned());
    format!("panicked ({})", said.unwrap_or_else(|| "without a word".into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;
    use std::sync::atomic::{AtomicU32, Ordering};
    use tokio::sync::mpsc;

    const LIMIT: Duration = Duration::from_millis(300);

    /// A part whose first attempts do what `fail` does, and that then waits for its shutdown; says so each time.
    fn part(
        name: &str,
        failures: &Arc<Failures>,
        fail: impl Fn(u32) -> Option<Work> + Send + 'static,
    ) -> (Part, mpsc::UnboundedReceiver<u32>) {
        let (said, heard) = mpsc::unbounded_channel();
        let attempt = AtomicU32::new(0);
        let make: Make = Box::new(move |mut shutdown| {
            let attempt = attempt.fetch_add(1, Ordering::Relaxed);
            let said = said.clone();
            Ok(fail(attempt).unwrap_or_else(|| {
                Box::pin(async move {
                    let _ = said.send(attempt);
                    shutdown.begun().await;
                })
            }))
        });
        (Part::start_within(Handle::current(), name.into(), failures, make, LIMIT).expect("starts"), heard)
    }

    #[tokio::test]
    async fn a_part_that_panics_is_started_anew_alone() {
        let failures = Arc::new(Failures::default());
        let (other, mut other_said) = part("source b", &failures, |_| None);
        let panics = |attempt| (attempt < 2).then(|| Box::pin(async { assert_eq!(1 + 1, 3, "a bad byte") }) as Work);
        let (failing, mut said) = part("source a", &failures, panics);
        assert_eq!(said.recv().await, Some(2));
        assert_eq!(other_said.recv().await, Some(0));
        assert!(other_said.try_recv().is_err(), "the other part works on");
        let problems = failures.problems();
        assert!(problems.len() == 1 && problems[0].contains("source a panicked ("), "{problems:?}");
        assert_eq!(failures.all()["source a"].restarts, 2);
        assert!(failing.ended(Duration::from_secs(5)).await && other.ended(Duration::from_secs(5)).await);
    }

    #[tokio::test]
    async fn a_part_that_is_stuck_is_started_anew_and_one_that_waits_is_not() {
        let failures = Arc::new(Failures::default());
        let stuck = |attempt| (attempt == 0).then(|| Box::pin(std::future::pending()) as Work);
        let (failing, mut said) = part("link central/critical", &failures, stuck);
        let (waiting, mut waiting_said) = part("link central/bulk", &failures, |_| None);
        assert_eq!(said.recv().await, Some(1));
        tokio::time::sleep(LIMIT * 3).await;
        assert_eq!(waiting_said.recv().await, Some(0));
        assert!(waiting_said.try_recv().is_err() && said.try_recv().is_err());
        assert!(failures.problems()[0].contains("was stuck"), "{:?}", failures.problems());
        assert!(failures.hung_part().is_none());
        assert!(failing.ended(Duration::from_secs(5)).await && waiting.ended(Duration::from_secs(5)).await);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_part_that_blocks_its_thread_is_told_of_and_comes_back_when_it_can() {
        let failures = Arc::new(Failures::default());
        let (release, released) = std::sync::mpsc::channel::<()>();
        let released = Mutex::new(Some(released));
        let blocks = move |_| {
            let released = released.lock().take()?;
            Some(Box::pin(async move {
                let _ = tokio::task::block_in_place(|| released.recv());
                std::future::pending::<()>().await;
            }) as Work)
        };
        let (failing, mut said) = part("source c", &failures, blocks);
        while failures.hung_part().is_none() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        release.send(()).expect("blocked");
        assert_eq!(said.recv().await, Some(1));
        assert!(failures.hung_part().is_none());
        assert!(failing.ended(Duration::from_secs(5)).await);
    }

    #[tokio::test]
    async fn a_part_that_cannot_start_says_so_at_once() {
        let failures = Arc::new(Failures::default());
        let make: Make = Box::new(|_| anyhow::bail!("the port is taken"));
        let error = Part::start("source d".into(), &failures, make).expect_err("does not start");
        assert!(error.to_string().contains("taken"));
    }
}
