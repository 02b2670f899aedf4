//! Notifications to the service manager (systemd) over `$NOTIFY_SOCKET`, and the watchdog.
//!
//! Promise: a notification never blocks; without a socket nothing is sent. The watchdog is fed only while the runtime
//! responds and every watched thread is alive.
//!
//! A thread that waits for the disk counts as alive, however long it waits: such a process cannot be killed, and a new one
//! could not lock the journal before the old one has ended. The wait is reported instead.

use crate::clock;
use parking_lot::Mutex;
use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::runtime::Handle;

/// Longest interval of status updates and watchdog notifications.
const NOTIFY_INTERVAL: Duration = Duration::from_secs(5);
/// Without a watchdog period: longest time of one operation of a thread, waits for the disk excluded.
const WORK_MAX: Duration = Duration::from_secs(60);
/// Longest status that systemd shows, in bytes.
const STATUS_BYTES_MAX: usize = 500;

/// The service manager, if there is one.
#[derive(Debug, Default)]
pub struct Service {
    socket: Option<UnixDatagram>,
    watchdog: Option<Duration>,
    status: Mutex<String>,
}

/// Reason why a part is not alive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unresponsive {
    /// A thread takes too long for one operation.
    Busy {
        /// Name of the part, for messages.
        part: String,
        /// Thread id (tid) of the operating system.
        thread: u32,
        /// Duration of the operation so far.
        since: Duration,
    },
    /// The thread has ended and cannot be restarted in this process.
    Dead {
        /// Name of the part, for messages.
        part: String,
    },
}

impl std::fmt::Display for Unresponsive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Busy { part, since, .. } => {
                write!(f, "{part} has not finished one operation for over {} s", since.as_secs().max(1))
            }
            Self::Dead { part } => write!(f, "{part} has died"),
        }
    }
}

/// Status and liveness of the process, as the watchdog thread reads them.
pub trait LivenessProbe: Send + 'static {
    /// Returns the status in one line.
    fn status(&self) -> String;
    /// Checks that all threads are alive; one operation may take `work_max`.
    fn check(&self, work_max: Duration) -> Result<(), Unresponsive>;
}

impl Service {
    /// Reads `$NOTIFY_SOCKET`, and `$WATCHDOG_USEC` if it is for this process. Logs a socket that cannot be used.
    pub fn from_environment() -> Self {
        let micros = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
        let is_for_another = micros("WATCHDOG_PID").is_some_and(|pid| pid != u64::from(std::process::id()));
        let watchdog = micros("WATCHDOG_USEC").filter(|micros| *micros > 0 && !is_for_another);
        let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else { return Self::default() };
        Self::new(&socket, watchdog.map(Duration::from_micros)).unwrap_or_else(|error| {
            tracing::warn!(socket = %socket.display(), %error, "could not connect to NOTIFY_SOCKET; the service manager gets no notifications");
            Self::default()
        })
    }

    /// Connects to a socket: a path, or an abstract name after `@`. `watchdog` is the period within which
    /// the manager expects a notification.
    pub fn new(socket: &OsStr, watchdog: Option<Duration>) -> std::io::Result<Self> {
        let address = match socket.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(socket)?,
        };
        let datagrams = UnixDatagram::unbound()?;
        datagrams.set_nonblocking(true)?;
        datagrams.connect_addr(&address)?;
        Ok(Self { socket: Some(datagrams), watchdog, status: Mutex::default() })
    }

    /// Reports that the listeners are open, or that a reload has ended.
    pub fn ready(&self) {
        self.notify("READY=1");
    }

    /// Reports that a reload begins; [`Service::ready`] ends it, whether it is in force or refused.
    pub fn reloading(&self) {
        self.notify(&format!("RELOADING=1\nMONOTONIC_USEC={}", clock::monotonic_micros()));
    }

    /// Reports that the shutdown begins.
    pub fn stopping(&self) {
        self.notify("STOPPING=1\nSTATUS=stopping: no new events; sending acknowledgements in flight");
    }

    fn notify(&self, lines: &str) {
        let Some(socket) = &self.socket else { return };
        if let Err(error) = socket.send(lines.as_bytes()) {
            // The queue of the manager is full, or it has ended: the next notification repeats the state.
            tracing::debug!(%error, "could not notify the service manager; will repeat");
        }
    }

    /// Sends the status if it has changed.
    pub fn notify_status(&self, status: String) {
        let mut last = self.status.lock();
        if *last != status {
            let starts = status.char_indices().map(|(start, letter)| start + letter.len_utf8());
            let end = starts.take_while(|end| *end <= STATUS_BYTES_MAX).last().unwrap_or(0);
            self.notify(&format!("STATUS={}", status[..end].replace('\n', " ")));
            *last = status;
        }
    }

    /// Starts the watchdog thread, which checks `what` and the runtime until the returned guard is dropped. Calls `died`
    /// once if a part is dead and only a restart of the process can bring it back.
    pub fn start_watchdog(
        self: &Arc<Self>,
        runtime: Handle,
        what: impl LivenessProbe,
        died: impl FnOnce(String) + Send + 'static,
    ) -> std::io::Result<WatchdogGuard> {
        let (stop, stopped) = channel();
        let watchdog = Watchdog {
            every: self.watchdog.map_or(NOTIFY_INTERVAL, |watchdog| (watchdog / 2).min(NOTIFY_INTERVAL)),
            work_max: self.watchdog.map_or(WORK_MAX, |watchdog| watchdog * 2),
            service: Arc::clone(self),
            runtime,
            stopped,
        };
        let thread = std::thread::Builder::new().name("watchdog".into()).spawn(move || watchdog.run(&what, died))?;
        Ok(WatchdogGuard { stop: Some(stop), thread: Some(thread) })
    }
}

/// Guard of the watchdog thread; drop stops it.
#[derive(Debug)]
pub struct WatchdogGuard {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for WatchdogGuard {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // The thread returns nothing.
            let _ = thread.join();
        }
    }
}

struct Watchdog {
    service: Arc<Service>,
    runtime: Handle,
    every: Duration,
    work_max: Duration,
    stopped: Receiver<()>,
}

impl Watchdog {
    fn run(self, what: &impl LivenessProbe, died: impl FnOnce(String)) {
        let mut died = Some(died);
        let mut complaint = String::new();
        let mut probe = self.probe();
        loop {
            if self.stopped.recv_timeout(self.every) != Err(RecvTimeoutError::Timeout) {
                return;
            }
            // The response to the last probe; a late one counts when it arrives.
            let answers = probe.try_recv().is_ok();
            if answers {
                probe = self.probe();
            }
            let found = match answers {
                true => what.check(self.work_max),
                false => Err(Unresponsive::Busy { part: "the runtime".into(), thread: 0, since: self.every }),
            };
            let (is_alive, word) = judge(found, is_waiting_for_disk);
            if word != complaint {
                match (word.is_empty(), is_alive) {
                    (true, _) => tracing::info!("all threads are alive again"),
                    (false, true) => tracing::error!("{word}"),
                    (false, false) => tracing::error!("{word}; not feeding the watchdog until this changes"),
                }
                complaint.clone_from(&word);
            }
            if is_alive {
                self.service.notify("WATCHDOG=1");
            }
            // Without a response of the runtime, the status could block on a lock that the runtime holds.
            match (word.is_empty(), answers) {
                (true, true) => self.service.notify_status(what.status()),
                _ => self.service.notify_status(word),
            }
            if answers
                && let Err(Unresponsive::Dead { part }) = what.check(self.work_max)
                && let Some(died) = died.take()
            {
                died(part);
            }
        }
    }

    /// Spawns a task that responds at once; its response proves that the runtime makes progress.
    fn probe(&self) -> Receiver<()> {
        let (answer, answered) = channel();
        self.runtime.spawn(async move {
            // An error means that the watchdog has stopped.
            let _ = answer.send(());
        });
        answered
    }
}

/// Returns whether the process counts as alive, and the message about it.
fn judge(found: Result<(), Unresponsive>, is_waiting_for_disk: impl Fn(u32) -> bool) -> (bool, String) {
    match found {
        Ok(()) => (true, String::new()),
        Err(Unresponsive::Busy { part, thread, .. }) if is_waiting_for_disk(thread) => (
            true,
            format!("{part} waits for the disk, which does not respond; it acknowledges nothing until the disk does"),
        ),
        Err(lifeless) => (false, lifeless.to_string()),
    }
}

/// Whether a thread of this process is in uninterruptible sleep (state D), as it is while the disk does not respond.
/// 0 means any thread of the runtime.
fn is_waiting_for_disk(thread: u32) -> bool {
    let waits = |folder: &std::path::Path| {
        // `42 (name of the thread) D …`
        let stat = std::fs::read_to_string(folder.join("stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('D'))
    };
    let tasks = std::path::Path::new("/proc/self/task");
    if thread != 0 {
        return waits(&tasks.join(thread.to_string()));
    }
    let is_of_runtime =
        |folder: &std::path::Path| std::fs::read_to_string(folder.join("comm")).is_ok_and(|name| name == "forebay\n");
    std::fs::read_dir(tasks).is_ok_and(|found| {
        found.flatten().map(|entry| entry.path()).any(|folder| is_of_runtime(&folder) && waits(&folder))
    })
}

/// Returns the thread id (tid) of the calling thread.
pub fn thread_number() -> u32 {
    // The link reads `4711/task/4712`.
    let link = std::fs::read_link("/proc/thread-self").ok();
    link.and_then(|link| link.file_name()?.to_str()?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    struct Fake {
        lives: Arc<AtomicBool>,
    }

    impl LivenessProbe for Fake {
        fn status(&self) -> String {
            "all is\nwell".into()
        }

        fn check(&self, _: Duration) -> Result<(), Unresponsive> {
            match self.lives.load(Ordering::Acquire) {
                true => Ok(()),
                false => Err(Unresponsive::Dead { part: "the writer of lane bulk".into() }),
            }
        }
    }

    fn manager() -> (UnixDatagram, Arc<Service>) {
        let name = format!("forebay-service-test-{}", uuid::Uuid::new_v4());
        let address = SocketAddr::from_abstract_name(&name).expect("a name");
        let manager = UnixDatagram::bind_addr(&address).expect("bound");
        manager.set_read_timeout(Some(Duration::from_secs(10))).expect("set");
        let service =
            Service::new(OsStr::new(&format!("@{name}")), Some(Duration::from_millis(40))).expect("connected");
        (manager, Arc::new(service))
    }

    fn next(manager: &UnixDatagram) -> String {
        let mut bytes = [0; 4096];
        let length = manager.recv(&mut bytes).expect("a message in time");
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    }

    #[test]
    fn notifications_have_the_form_of_sd_notify() {
        let (manager, service) = manager();
        service.ready();
        assert_eq!(next(&manager), "READY=1");
        service.reloading();
        let message = next(&manager);
        let micros = message.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").expect(&message);
        assert!(micros.parse::<u64>().expect("a number") > 0);
        service.stopping();
        assert!(next(&manager).starts_with("STOPPING=1\nSTATUS="));
    }

    #[test]
    fn without_a_manager_nothing_is_sent() {
        Service::default().ready();
        assert!(Service::new(OsStr::new("/nowhere/at/all"), None).is_err());
    }

    #[test]
    fn a_dead_part_starves_the_watchdog_and_is_said_once() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().expect("a runtime");
        let (manager, service) = manager();
        let lives = Arc::new(AtomicBool::new(true));
        let (died, death) = channel();
        let what = Fake { lives: Arc::clone(&lives) };
        let attendant = service.start_watchdog(runtime.handle().clone(), what, move |part| {
            died.send(part).expect("heard");
        });
        let messages: Vec<_> = (0..3).map(|_| next(&manager)).collect();
        assert_eq!(messages, ["WATCHDOG=1", "STATUS=all is well", "WATCHDOG=1"]);
        lives.store(false, Ordering::Release);
        while next(&manager) == "WATCHDOG=1" {}
        assert_eq!(death.recv_timeout(Duration::from_secs(5)).expect("told"), "the writer of lane bulk");
        manager.set_read_timeout(Some(Duration::from_millis(300))).expect("set");
        assert!(manager.recv(&mut [0; 64]).is_err(), "nothing feeds the watchdog");
        drop(attendant);
    }

    #[test]
    fn a_runtime_that_does_not_answer_starves_the_watchdog() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().expect("a runtime");
        let (release, held) = channel::<()>();
        let (manager, service) = manager();
        let what = Fake { lives: Arc::new(AtomicBool::new(true)) };
        let attendant = service.start_watchdog(runtime.handle().clone(), what, |_| {});
        assert_eq!(next(&manager), "WATCHDOG=1");
        runtime.spawn(async move { held.recv() });
        while !next(&manager).starts_with("STATUS=the runtime has not finished one operation") {}
        manager.set_read_timeout(Some(Duration::from_millis(300))).expect("set");
        assert!(manager.recv(&mut [0; 64]).is_err(), "nothing feeds the watchdog");
        manager.set_read_timeout(Some(Duration::from_secs(10))).expect("set");
        release.send(()).expect("held");
        assert_eq!(next(&manager), "WATCHDOG=1", "it is fed again");
        drop(attendant);
    }

    #[test]
    fn waiting_for_the_disk_is_not_death() {
        let busy = || Unresponsive::Busy { part: "the writer".into(), thread: 7, since: Duration::from_secs(61) };
        let (is_alive, word) = judge(Err(busy()), |thread| thread == 7);
        assert!(is_alive && word.contains("waits for the disk"), "{word}");
        let (is_alive, word) = judge(Err(busy()), |_| false);
        assert_eq!((is_alive, word.as_str()), (false, "the writer has not finished one operation for over 61 s"));
        assert!(thread_number() > 0 && !is_waiting_for_disk(thread_number()), "this thread runs");
    }
}
