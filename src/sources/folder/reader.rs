//! The task of a folder source: claims complete files one after the other, and hands their rows in.

use super::cells::Layout;
use super::config::{Config, Repeats};
use super::place::{Fate, Place, Report};
use super::progress::{Current, Progress};
use super::rows::{Row, RowError, Rows};
use crate::clock;
use crate::contract::{ID_BYTES_MAX, Sender, SourceKind};
use crate::event::Timestamp;
use crate::ingest::{EventMetadata, Ingest, JournalError, Notes, Producer, Route, Submission};
use crate::runtime;
use crate::shutdown::Shutdown;
use crate::sources::{Refusal, Stats};
use parking_lot::Mutex;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Rows, and bytes of rows, that are handed in between two notes of the progress.
const BATCH_ROWS: usize = 500;
const BATCH_BYTES: usize = 1 << 20;
/// How long the source waits for receipts at shutdown.
const DRAIN_WAIT_MAX: Duration = Duration::from_secs(5);
/// Time after which a folder that does not respond is a problem.
const HANG: Duration = Duration::from_secs(30);
/// Pause after the folder or the journal has failed.
const RETRY_PAUSE: Duration = Duration::from_secs(10);

/// Why reading stops for now.
enum Stop {
    /// The gateway shuts down, or the journal is closed.
    Shutdown,
    /// The folder cannot be read or changed; the message says what to do.
    Folder(String),
}

/// Why a file goes to `failed`.
struct Wrong(String);

/// A source that reads one folder.
pub(crate) struct Reader {
    config: Config,
    place: Arc<Mutex<Place>>,
    progress: Progress,
    ingest: Arc<Ingest>,
    producer: Producer,
    stats: Arc<Stats>,
    failed: u64,
}

impl Reader {
    /// Creates a source; it looks at the folder once it runs.
    pub(crate) fn new(config: Config, ingest: Arc<Ingest>, notes: Notes, stats: Arc<Stats>) -> Result<Self, String> {
        Ok(Self {
            place: Arc::new(Mutex::new(Place::new(config.clone())?)),
            progress: Progress::new(notes, &config.name),
            producer: Producer::new(Arc::clone(&ingest)),
            ingest,
            stats,
            config,
            failed: 0,
        })
    }

    /// Reads files until the shutdown.
    pub(crate) async fn run(mut self, mut shutdown: Shutdown) {
        let mut is_prepared = false;
        loop {
            let pause = match self.pass(&mut is_prepared, &mut shutdown).await {
                Ok(true) => continue,
                Ok(false) => {
                    self.stats.set_problem(None);
                    self.config.poll.0
                }
                Err(Stop::Shutdown) => break,
                Err(Stop::Folder(problem)) => {
                    // A claimed file is read on before others.
                    is_prepared = false;
                    self.note_problem(problem);
                    RETRY_PAUSE
                }
            };
            tokio::select! {
                biased;
                () = shutdown.begun() => break,
                () = tokio::time::sleep(pause) => {}
            }
        }
        self.stats.set_problem(Some("the gateway is shutting down".into()));
    }

    /// Reads the next complete file. Returns whether there was one.
    async fn pass(&mut self, is_prepared: &mut bool, shutdown: &mut Shutdown) -> Result<bool, Stop> {
        let name = if *is_prepared {
            let next = self.on_disk(shutdown, |place, _| place.next_complete()).await?;
            let Some(name) = next else { return Ok(false) };
            let claimed = name.clone();
            self.on_disk(shutdown, move |place, _| place.claim(&claimed)).await?;
            name
        } else {
            let claimed = self.on_disk(shutdown, |place, progress| {
                place.prepare()?;
                let claimed = place.claimed()?;
                match &claimed {
                    Some(name) => place.remove_marker(name)?,
                    // A file that was moved on before its progress was forgotten.
                    None => progress.clear().map_err(stored)?,
                }
                Ok(claimed)
            });
            let claimed = claimed.await?;
            *is_prepared = true;
            let Some(name) = claimed else { return Ok(true) };
            name
        };
        self.read(name, shutdown).await?;
        Ok(true)
    }

    /// Reads a claimed file and moves it on.
    async fn read(&mut self, name: String, shutdown: &mut Shutdown) -> Result<(), Stop> {
        let read = timestamp(clock::wall());
        let mut report = Report { file: name.clone(), read, ..Report::default() };
        let fate = match self.rows_of(&name, &mut report, shutdown).await? {
            Ok(()) => Fate::Done,
            Err(Wrong(problem)) => {
                tracing::warn!(source = %self.config.name, file = %name, %problem, "a file cannot be read and is moved to failed");
                self.failed += 1;
                self.stats.refuse(Refusal::Content);
                self.stats.set_notes(vec![format!(
                    "{} files moved to failed since the start; the last one: {name}: {problem}",
                    self.failed
                )]);
                report.problem = Some(problem);
                Fate::Failed
            }
        };
        if fate == Fate::Done {
            tracing::info!(source = %self.config.name, file = %name, rows = report.rows, events = report.events, dead_letters = report.dead_letters, "a file is read");
        }
        self.on_disk(shutdown, move |place, progress| {
            place.finish(&name, fate, &report)?;
            progress.clear().map_err(stored)
        })
        .await
    }

    /// Hands the rows of a claimed file in.
    async fn rows_of(
        &mut self,
        name: &str,
        report: &mut Report,
        shutdown: &mut Shutdown,
    ) -> Result<Result<(), Wrong>, Stop> {
        let mut current = match self.begin(name, report, shutdown).await? {
            Ok(current) => current,
            Err(wrong) => return Ok(Err(wrong)),
        };
        while !current.is_read {
            let file = name.to_owned();
            let shape = self.on_disk(shutdown, move |place, _| place.shape(&file)).await?;
            if let Err(wrong) = self.hand_in(&mut current, report, shutdown).await? {
                return Ok(Err(wrong));
            }
            let (file, ended) = (name.to_owned(), current.clone());
            current.is_read = self
                .on_disk(shutdown, move |place, progress| {
                    let is_whole = place.shape(&file)? == shape;
                    if is_whole {
                        progress.finish(&ended).map_err(stored)?;
                    }
                    Ok(is_whole)
                })
                .await?;
            if !current.is_read {
                // A program writes on in the file that it opened before it was claimed.
                report.problem = Some(
                    "the file was written while it was read: its last row may have been incomplete; use complete = \"renamed\" or a longer settle".into(),
                );
            }
        }
        (report.rows, report.dead_letters) = (current.rows, current.dead_letters);
        report.events = current.rows - current.dead_letters.min(current.rows);
        Ok(Ok(()))
    }

    /// Where to begin in a claimed file. A file that was read before ends at once; a file of which no row may become an
    /// event is refused.
    async fn begin(
        &mut self,
        name: &str,
        report: &mut Report,
        shutdown: &mut Shutdown,
    ) -> Result<Result<Current, Wrong>, Stop> {
        let noted = self.on_disk(shutdown, |_, progress| progress.current().map_err(stored)).await?;
        if let Some(current) = noted.filter(|current| current.file == name) {
            report.content.clone_from(&current.content);
            return Ok(Ok(current));
        }
        let file = name.to_owned();
        let (content, shape, before) = self
            .on_disk(shutdown, move |place, progress| {
                let content = place.digest(&file)?;
                let before = progress.read_before(&content).map_err(stored)?;
                Ok((content, place.shape(&file)?, before))
            })
            .await?;
        report.content.clone_from(&content);
        if let Some(before) = before.filter(|_| self.config.repeats == Repeats::Skip) {
            let before = jiff::Timestamp::from_second(before).map(|time| time.to_string()).unwrap_or_default();
            report.problem = Some(format!(
                "a file with this content was read at {before}; no row is read again (repeats = \"skip\")"
            ));
            return Ok(Ok(Current { file: name.to_owned(), is_read: true, ..Current::default() }));
        }
        if let Err(wrong) = self.check_whole(name, shutdown).await? {
            return Ok(Err(wrong));
        }
        let id = match self.config.repeats {
            Repeats::Skip => content.clone(),
            Repeats::Accept => format!("{content}-{}", shape.modified_seconds()),
        };
        let current = Current { file: name.to_owned(), content, id, ..Current::default() };
        let noted = current.clone();
        self.on_disk(shutdown, move |_, progress| progress.note(&noted).map_err(stored)).await?;
        Ok(Ok(current))
    }

    /// Reads the whole file once, so that a file that breaks off in the middle makes no events.
    async fn check_whole(&mut self, name: &str, shutdown: &mut Shutdown) -> Result<Result<(), Wrong>, Stop> {
        let route = self.route(name);
        if !route.has_contract() {
            let reason = format!(
                "no contract with match.source = \"folder\" matches \"{name}\", the topic of events of this file"
            );
            return Ok(Err(Wrong(reason)));
        }
        let (file, config, layout) = (name.to_owned(), self.config.clone(), self.layout(&route));
        let checked = self.on_disk(shutdown, move |place, _| {
            content_of(open(place, &file, &config, layout).and_then(|mut rows| {
                while rows.next()?.is_some() {}
                Ok(())
            }))
        });
        checked.await
    }

    /// Hands in the rows behind those of `current`, up to the end of the file.
    async fn hand_in(
        &mut self,
        current: &mut Current,
        report: &mut Report,
        shutdown: &mut Shutdown,
    ) -> Result<Result<(), Wrong>, Stop> {
        'contracts: loop {
            let route = self.route(&current.file);
            let (file, config, layout, skip) =
                (current.file.clone(), self.config.clone(), self.layout(&route), current.rows);
            let opened = self.on_disk(shutdown, move |place, _| {
                content_of(open(place, &file, &config, layout).and_then(|mut rows| {
                    for _ in 0..skip {
                        rows.next()?;
                    }
                    Ok(rows)
                }))
            });
            let mut rows = match opened.await? {
                Ok(rows) => rows,
                Err(wrong) => return Ok(Err(wrong)),
            };
            loop {
                let read = self.on_disk(shutdown, move |_, _| content_of(batch(rows)));
                let batch = match read.await? {
                    Ok((rest, batch)) => {
                        rows = rest;
                        batch
                    }
                    Err(wrong) => {
                        report.rows = current.rows;
                        return Ok(Err(wrong));
                    }
                };
                if batch.is_empty() {
                    return Ok(Ok(()));
                }
                if !self.ingest.is_current(&route) {
                    // The columns may be others now.
                    continue 'contracts;
                }
                current.dead_letters += self.deliver(&route, current, &batch, shutdown).await?;
                current.rows += batch.len() as u64;
                let noted = current.clone();
                self.on_disk(shutdown, move |_, progress| progress.note(&noted).map_err(stored)).await?;
            }
        }
    }

    /// Hands a batch in and waits for its receipts. Returns how many rows became dead letters.
    async fn deliver(
        &mut self,
        route: &Route,
        current: &Current,
        batch: &[Row],
        shutdown: &mut Shutdown,
    ) -> Result<u64, Stop> {
        let arrived = Timestamp::from(clock::wall());
        let ids: Vec<_> = batch.iter().map(|row| id(&current.file, row.line, &current.id)).collect();
        let submissions = batch.iter().zip(&ids).map(|(row, id)| Submission {
            metadata: EventMetadata {
                id: Some(id),
                content_type: Some("application/json"),
                ..EventMetadata::default()
            },
            refusal: row.refusal.as_deref(),
            ..Submission::new(route, &row.payload, arrived)
        });
        let submissions: Vec<_> = submissions.collect();
        self.stats.received.add(batch.len() as u64);
        let deliver = self.producer.deliver(&submissions);
        tokio::pin!(deliver);
        let accepted = tokio::select! {
            biased;
            accepted = &mut deliver => accepted,
            () = shutdown.begun() => {
                tokio::time::timeout(DRAIN_WAIT_MAX, deliver).await.map_err(|_| Stop::Shutdown)?
            }
        };
        let accepted = accepted.map_err(|_| Stop::Shutdown)?;
        Ok(accepted.iter().filter(|one| one.is_dead).count() as u64)
    }

    fn route(&mut self, file: &str) -> Arc<Route> {
        let sender = Sender { client: &self.config.name, ..Sender::default() };
        self.producer.route(SourceKind::Folder, &self.config.name, &topic(file), sender)
    }

    fn layout(&self, route: &Route) -> Layout {
        Layout::new(route.columns(), self.config.numbers())
    }

    /// Does blocking work on the folder and the progress. The folder may be on a share that hangs, so the shutdown does
    /// not wait for it.
    async fn on_disk<T: Send + 'static>(
        &self,
        shutdown: &mut Shutdown,
        work: impl FnOnce(&mut Place, &Progress) -> io::Result<T> + Send + 'static,
    ) -> Result<T, Stop> {
        let (place, progress) = (Arc::clone(&self.place), self.progress.clone());
        let mut work = runtime::spawn_blocking(move || work(&mut place.lock(), &progress));
        let done = loop {
            tokio::select! {
                biased;
                done = &mut work => break done,
                () = shutdown.begun() => {
                    break tokio::time::timeout(DRAIN_WAIT_MAX, work).await.map_err(|_| Stop::Shutdown)?;
                }
                () = tokio::time::sleep(HANG) => {
                    self.note_problem(format!("{}: does not respond; is the share mounted?", self.config.path.display()));
                }
            }
        };
        match done {
            Ok(done) => done.map_err(|error| Stop::Folder(self.describe(&error))),
            Err(panic) => Err(Stop::Folder(format!("reading the folder failed: {panic}"))),
        }
    }

    fn describe(&self, error: &io::Error) -> String {
        let path = self.config.path.display();
        match error.kind() {
            io::ErrorKind::ReadOnlyFilesystem => format!(
                "{path}: is read-only for the service; with systemd, add ReadWritePaths={path} to the unit: {error}"
            ),
            io::ErrorKind::PermissionDenied => {
                format!("{path}: the service may not read and move files there: {error}")
            }
            _ => format!("{path}: {error}"),
        }
    }

    fn note_problem(&self, problem: String) {
        self.stats.refuse(Refusal::Answer);
        if self.stats.problem().as_ref() != Some(&problem) {
            tracing::warn!(source = %self.config.name, %problem, "the folder cannot be read");
            self.stats.set_problem(Some(problem));
        }
    }
}

/// Separates wrong content, which costs the file, from errors of the disk, after which it is read again.
fn content_of<T>(read: Result<T, RowError>) -> io::Result<Result<T, Wrong>> {
    match read {
        Ok(read) => Ok(Ok(read)),
        Err(RowError::Content(message)) => Ok(Err(Wrong(message))),
        Err(RowError::Disk(error)) => Err(error),
    }
}

/// Opens the rows of a claimed file.
fn open(place: &Place, file: &str, config: &Config, layout: Layout) -> Result<Rows, RowError> {
    Rows::open(place.open(file).map_err(RowError::Disk)?, config, layout)
}

/// Reads the next rows; none at the end of the file.
fn batch(mut rows: Rows) -> Result<(Rows, Vec<Row>), RowError> {
    let (mut batch, mut bytes) = (Vec::new(), 0);
    while batch.len() < BATCH_ROWS && bytes < BATCH_BYTES {
        let Some(row) = rows.next()? else { break };
        bytes += row.payload.len();
        batch.push(row);
    }
    Ok((rows, batch))
}

/// The journal does not store the progress.
fn stored(error: JournalError) -> io::Error {
    io::Error::other(format!("the progress cannot be stored: {error}"))
}

/// The topic of the events of a file: its name, without characters that topics give a meaning.
fn topic(file: &str) -> String {
    file.replace(['+', '#', '/'], "_")
}

/// The id of a row. A long name is cut in front, where file names rarely differ.
fn id(file: &str, line: u64, content: &str) -> String {
    let place = format!(":{line}:{content}");
    let room = ID_BYTES_MAX - place.len();
    let cut = (0..=file.len()).find(|start| file.len() - start <= room && file.is_char_boundary(*start));
    format!("{}{place}", &file[cut.unwrap_or_default()..])
}

fn timestamp(time: std::time::SystemTime) -> String {
    jiff::Timestamp::try_from(time).map(|time| time.to_string()).unwrap_or_default()
}
