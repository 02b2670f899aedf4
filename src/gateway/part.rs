//! A part of the gateway that can be started, replaced and stopped without the others.
//!
//! Promise: a part that panics, ends by itself or is stuck is restarted, alone and with exponential back-off, and its
//! failure is reported in log and status. A part that cannot be aborted is reported until the process is restarted.

use super::services::Services;
use crate::admin::Failures;
use crate::backoff::{Backoff, Jitter};
use crate::clock;
use crate::shutdown::{self, Pulse, Shutdown, Trigger};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

/// The future that a part runs until its shutdown.
pub(super) type PartFuture = Pin<Box<dyn Future<Output = ()> + Send>>;
/// Creates the future of a part: at its start, and after each failure.
pub(super) type PartFactory = Box<dyn FnMut(Shutdown) -> anyhow::Result<PartFuture> + Send + Sync>;

/// Longest wait at shutdown for a part, such as a listener that sends the acknowledgements in flight.
const DRAIN_WAIT_MAX: Duration = Duration::from_secs(8);
/// A part that has not polled its shutdown signal for this long is stuck.
const STUCK_AFTER: Duration = Duration::from_secs(120);
/// Longest wait until the aborted task of a stuck part is dropped.
const DROP_WAIT_MAX: Duration = Duration::from_secs(10);
/// Pauses before a part is restarted.
const RESTART_PAUSES: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(60), Jitter::UpToDouble);
/// A part that ran for this long before it failed is restarted after the shortest pause.
const STABLE_AFTER: Duration = Duration::from_secs(300);

/// A part that can be started.
pub(super) struct PartSpec {
    /// Identifies the part in log, status and metrics.
    name: String,
    priority: Priority,
    make: PartFactory,
}

/// On which threads a part runs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Priority {
    Normal,
    Low,
}

impl PartSpec {
    /// A part of normal priority.
    pub(super) fn new(
        name: String,
        make: impl FnMut(Shutdown) -> anyhow::Result<PartFuture> + Send + Sync + 'static,
    ) -> Self {
        Self { name, priority: Priority::Normal, make: Box::new(make) }
    }

    pub(super) fn with_priority(self, priority: Priority) -> Self {
        Self { priority, ..self }
    }
}

/// A running part. The task that watches over it restarts it after a failure.
#[derive(Debug)]
pub(super) struct Part {
    name: String,
    trigger: Trigger,
    watchdog: JoinHandle<()>,
}

impl Part {
    /// Starts a part; the error is that of the first attempt.
    pub(super) fn start(spec: PartSpec, services: &Services) -> anyhow::Result<Self> {
        let on = match spec.priority {
            Priority::Normal => Handle::current(),
            Priority::Low => services.low_priority.handle(),
        };
        Self::start_on(on, spec, &services.handles.failures, STUCK_AFTER)
    }

    fn start_on(on: Handle, spec: PartSpec, failures: &Arc<Failures>, limit: Duration) -> anyhow::Result<Self> {
        let (trigger, shutdown) = shutdown::pair();
        let PartSpec { name, make, .. } = spec;
        let (shown, failures) = (name.clone(), Arc::clone(failures));
        let mut watchdog = Watchdog { on, name, make, shutdown, limit, failures };
        let first = watchdog.make()?;
        Ok(Self { name: shown, trigger, watchdog: tokio::spawn(watchdog.run(first)) })
    }

    /// Requests the shutdown without waiting for it.
    pub(super) fn begin_stop(&self) {
        self.trigger.begin();
    }

    /// Requests the shutdown and waits for the end, at most [`DRAIN_WAIT_MAX`]; `false` if the part has not ended by then.
    pub(super) async fn stop(self) -> bool {
        self.trigger.begin();
        let has_ended = tokio::time::timeout(DRAIN_WAIT_MAX, self.watchdog).await.is_ok();
        if !has_ended {
            tracing::warn!(part = %self.name, patience = ?DRAIN_WAIT_MAX, "the part did not end in time; the gateway stops without it");
        }
        has_ended
    }
}

/// Runs one part, notices its failures and restarts it.
struct Watchdog {
    /// Runtime of the part. The watchdog itself runs on another one and notices when this one makes no progress.
    on: Handle,
    name: String,
    make: PartFactory,
    shutdown: Shutdown,
    limit: Duration,
    failures: Arc<Failures>,
}

/// Aborts its task on drop.
struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Watchdog {
    fn make(&mut self) -> anyhow::Result<(PartFuture, Arc<Pulse>)> {
        let (shutdown, pulse) = self.shutdown.with_pulse(self.limit);
        Ok(((self.make)(shutdown)?, pulse))
    }

    async fn run(mut self, first: (PartFuture, Arc<Pulse>)) {
        let mut next = Some(first);
        let mut pauses = RESTART_PAUSES;
        while let Some((work, pulse)) = next.take() {
            let began = clock::instant();
            let Some(why) = self.watch(work, &pulse).await else { return };
            if clock::instant().duration_since(began) >= STABLE_AFTER {
                pauses.reset();
            }
            tracing::error!(part = %self.name, "the part {why}; it will be restarted");
            self.failures.note(&self.name, why);
            while next.is_none() {
                let pause = pauses.next();
                tokio::select! {
                    () = self.shutdown.begun() => return,
                    () = tokio::time::sleep(pause) => {}
                }
                match self.make() {
                    Ok(made) => next = Some(made),
                    Err(error) => {
                        tracing::error!(part = %self.name, error = %format!("{error:#}"), "could not restart the part; will retry");
                        self.failures.note(&self.name, format!("cannot be restarted: {error:#}"));
                    }
                }
            }
            self.failures.restarted(&self.name);
        }
    }

    /// Runs the part to its end. Returns `None` after a shutdown, else the kind of failure.
    async fn watch(&mut self, work: PartFuture, pulse: &Pulse) -> Option<String> {
        let mut task = AbortOnDrop(self.on.spawn(work));
        let ended = tokio::select! {
            ended = &mut task.0 => Some(ended),
            () = pulse.stopped() => None,
        };
        let is_stopping = self.shutdown.has_begun();
        match ended {
            Some(Ok(())) if is_stopping => None,
            Some(Ok(())) => Some("ended by itself".into()),
            // The runtime ends: the gateway could not start, and says why.
            Some(Err(error)) if is_stopping && error.is_cancelled() => None,
            Some(Err(error)) => {
                let why =
                    error.try_into_panic().map_or_else(|_| "was cancelled".into(), |panic| describe_panic(&*panic));
                if is_stopping {
                    tracing::error!(part = %self.name, "the part {why} during its shutdown");
                    return None;
                }
                Some(why)
            }
            None => {
                task.0.abort();
                let silence = pulse.silence().as_secs();
                self.failures.note(&self.name, format!("is stuck for {silence} s"));
                if tokio::time::timeout(DROP_WAIT_MAX, &mut task.0).await.is_err() {
                    let why = format!("is stuck for {silence} s and cannot be aborted; restart the gateway");
                    tracing::error!(part = %self.name, "the part {why}");
                    self.failures.mark_hung(&self.name, why);
                    // The blocked thread may still return.
                    let _ = (&mut task.0).await;
                    self.failures.mark_recovered(&self.name);
                }
                (!self.shutdown.has_begun()).then(|| format!("was stuck for {silence} s"))
            }
        }
    }
}

/// Describes a panic with its message.
fn describe_panic(panic: &(dyn std::any::Any + Send)) -> String {
    let message = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let message = message.or_else(|| panic.downcast_ref::<String>().cloned());
    format!("panicked ({})", message.unwrap_or_else(|| "without a message".into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;
    use std::sync::atomic::{AtomicU32, Ordering};
    use tokio::sync::mpsc;

    const LIMIT: Duration = Duration::from_millis(300);

    /// A part that runs `fail` while it returns a future, then waits for its shutdown. Sends the number
    /// of each attempt that waits.
    fn part(
        name: &str,
        failures: &Arc<Failures>,
        fail: impl Fn(u32) -> Option<PartFuture> + Send + Sync + 'static,
    ) -> (Part, mpsc::UnboundedReceiver<u32>) {
        let (said, heard) = mpsc::unbounded_channel();
        let attempt = AtomicU32::new(0);
        let make: PartFactory = Box::new(move |mut shutdown| {
            let attempt = attempt.fetch_add(1, Ordering::Relaxed);
            let said = said.clone();
            Ok(fail(attempt).unwrap_or_else(|| {
                Box::pin(async move {
                    let _ = said.send(attempt);
                    shutdown.begun().await;
                })
            }))
        });
        (Part::start_on(Handle::current(), PartSpec::new(name.into(), make), failures, LIMIT).expect("starts"), heard)
    }

    #[tokio::test]
    async fn a_part_that_panics_is_started_anew_alone() {
        let failures = Arc::new(Failures::default());
        let (other, mut other_said) = part("source b", &failures, |_| None);
        let panics =
            |attempt| (attempt < 2).then(|| Box::pin(async { assert_eq!(1 + 1, 3, "a bad byte") }) as PartFuture);
        let (failing, mut said) = part("source a", &failures, panics);
        assert_eq!(said.recv().await, Some(2));
        assert_eq!(other_said.recv().await, Some(0));
        assert!(other_said.try_recv().is_err(), "the other part works on");
        let problems = failures.problems();
        assert!(problems.len() == 1 && problems[0].contains("source a panicked ("), "{problems:?}");
        assert_eq!(failures.all()["source a"].restarts, 2);
        assert!(failing.stop().await && other.stop().await);
    }

    #[tokio::test]
    async fn a_part_that_is_stuck_is_started_anew_and_one_that_waits_is_not() {
        let failures = Arc::new(Failures::default());
        let stuck = |attempt| (attempt == 0).then(|| Box::pin(std::future::pending()) as PartFuture);
        let (failing, mut said) = part("link central/critical", &failures, stuck);
        let (waiting, mut waiting_said) = part("link central/bulk", &failures, |_| None);
        assert_eq!(said.recv().await, Some(1));
        tokio::time::sleep(LIMIT * 3).await;
        assert_eq!(waiting_said.recv().await, Some(0));
        assert!(waiting_said.try_recv().is_err() && said.try_recv().is_err());
        assert!(failures.problems()[0].contains("was stuck"), "{:?}", failures.problems());
        assert!(failures.hung_part().is_none());
        assert!(failing.stop().await && waiting.stop().await);
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
            }) as PartFuture)
        };
        let (failing, mut said) = part("source c", &failures, blocks);
        while failures.hung_part().is_none() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        release.send(()).expect("blocked");
        assert_eq!(said.recv().await, Some(1));
        assert!(failures.hung_part().is_none());
        assert!(failing.stop().await);
    }

    #[tokio::test]
    async fn a_part_that_cannot_start_says_so_at_once() {
        let failures = Arc::new(Failures::default());
        let make: PartFactory = Box::new(|_| anyhow::bail!("the port is taken"));
        let spec = PartSpec::new("source d".into(), make);
        let error = Part::start_on(Handle::current(), spec, &failures, LIMIT).expect_err("does not start");
        assert!(error.to_string().contains("taken"));
    }
}
