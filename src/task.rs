//! Tasks: work that is handed to the runtime.
//!
//! Work goes there behind a pointer, and so has one type: the runtime compiles 2 kB of program for each further one.

use std::any::Any;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::runtime::Runtime;
use tokio::task::{JoinError, JoinHandle};

/// What a task does.
pub type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Work for a task.
pub fn boxed(work: impl Future<Output = ()> + Send + 'static) -> Work {
    Box::pin(work)
}

/// Begins a task on this runtime; it goes on without its handle.
pub fn spawn(work: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
    tokio::spawn(boxed(work))
}

/// Begins what may block, apart from the threads of this runtime; it goes on to its end in any case.
pub fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Apart<T> {
    let work: Box<dyn FnOnce() -> Done + Send> = Box::new(|| Box::new(work()));
    #[cfg(test)]
    if INLINE.get() {
        return Apart(Place::Here(Some(work())), PhantomData);
    }
    Apart(Place::Thread(tokio::task::spawn_blocking(work)), PhantomData)
}

#[cfg(test)]
thread_local! {
    static INLINE: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// From now on this thread does at once what it begins apart: a simulation has one thread.
#[cfg(test)]
pub fn run_inline() {
    INLINE.set(true);
}

#[derive(Debug)]
enum Place {
    Thread(JoinHandle<Done>),
    #[cfg(test)]
    Here(Option<Done>),
}

type Done = Box<dyn Any + Send>;

/// The end of work that is done apart; an error if it panicked, or the runtime ended before it began.
#[derive(Debug)]
#[must_use = "whoever does not await the end may drop it"]
pub struct Apart<T>(Place, PhantomData<fn() -> T>);

impl<T: 'static> Future for Apart<T> {
    type Output = Result<T, JoinError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let done = match &mut self.0 {
            Place::Thread(handle) => Pin::new(handle).poll(context),
            #[cfg(test)]
            Place::Here(done) => Poll::Ready(Ok(done.take().expect("polled once"))),
        };
        done.map_ok(|done| *done.downcast().expect("`apart` boxed what its work returned"))
    }
}

/// Runs work of a command to its end.
pub fn run<T>(runtime: &Runtime, work: impl Future<Output = T>) -> T {
    let mut done = None;
    let work: Pin<Box<dyn Future<Output = ()> + '_>> = Box::pin(async { done = Some(work.await) });
    runtime.block_on(work);
    done.expect("a runtime returns when the work is done")
}
