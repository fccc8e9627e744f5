//! Where the streams of an HTTP/2 connection run.
//!
//! Most calls are answered from memory without waiting for anything. A task of its own for each costs more than that:
//! it is queued, another thread wakes up for it, and the answer goes back to the connection's thread. So a stream is
//! first polled where its connection runs, and becomes a task only if it has to wait.
//!
//! That is right while there are enough connections to keep all threads busy. A few connections must not be held to a
//! thread each, so their streams become tasks at once.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use hyper::rt::Executor;
use tokio_util::task::TaskTracker;

use super::stalls::reset_when_stalled;

/// Runs streams inside the group of the connections.
#[derive(Clone)]
pub(super) struct StreamExecutor {
    tasks: TaskTracker,
    /// Connections that are open now.
    connections: Arc<AtomicUsize>,
    threads: usize,
}

impl StreamExecutor {
    pub(super) fn new(tasks: TaskTracker) -> Self {
        let threads = tokio::runtime::Handle::current().metrics().num_workers();
        Self { tasks, connections: Arc::default(), threads }
    }

    /// Counts a connection until the guard is dropped.
    pub(super) fn connection(&self) -> OpenConnection {
        self.connections.fetch_add(1, Ordering::Relaxed);
        OpenConnection(Arc::clone(&self.connections))
    }
}

/// A connection that is open.
pub(super) struct OpenConnection(Arc<AtomicUsize>);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<F> Executor<F> for StreamExecutor
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, stream: F) {
        let stream = reset_when_stalled(stream);
        if self.connections.load(Ordering::Relaxed) < self.threads {
            self.tasks.spawn(stream);
            return;
        }
        let mut stream = Box::pin(stream);
        if poll_once(stream.as_mut()).is_pending() {
            // A wake-up that is lost here is made up for: a new task is polled at once.
            self.tasks.spawn(stream);
        }
    }
}

/// Polls without a waker. A panic ends the stream, as it would end its task, and not the connection.
fn poll_once<F: Future>(stream: Pin<&mut F>) -> Poll<()> {
    let poll = catch_unwind(AssertUnwindSafe(|| stream.poll(&mut Context::from_waker(Waker::noop()))));
    match poll {
        Ok(poll) => poll.map(drop),
        Err(_) => Poll::Ready(()),
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn what_need_not_wait_is_done_at_once_and_the_rest_goes_on() {
        let tasks = TaskTracker::new();
        let executor = StreamExecutor::new(tasks.clone());
        let (done, mut seen) = oneshot::channel();
        executor.execute(async move { done.send(()).unwrap() });
        assert!(seen.try_recv().is_err(), "one connection: a task of its own");
        seen.await.unwrap();

        let _busy = executor.connection();
        let (done, mut seen) = oneshot::channel();
        executor.execute(async move { done.send(()).unwrap() });
        assert_eq!(seen.try_recv(), Ok(()), "as many connections as threads: at once");

        let (go, wait) = oneshot::channel();
        let (done, seen) = oneshot::channel();
        executor.execute(async move { done.send(wait.await.unwrap()).unwrap() });
        go.send(7).unwrap();
        assert_eq!(seen.await, Ok(7));

        executor.execute(async { panic!("a handler fails") });
        tasks.close();
        tasks.wait().await;
    }
}
