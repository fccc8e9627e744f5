//! Lines to standard error that never hold a request up.
//!
//! Whoever started the server may have stopped reading its standard error; a write to the full pipe would then block
//! every task that has something to say. So a thread writes, lines wait in a bounded queue, and when that is full they
//! are dropped and counted.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

/// Lines that wait at most.
const QUEUE_LINES: usize = 4096;
/// How long the end of the program waits for the last lines.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(500);

enum Message {
    Line(Vec<u8>),
    /// Answered when everything before it is written.
    Flush(SyncSender<()>),
}

/// Makes writers that put lines into the queue.
#[derive(Clone)]
pub(super) struct QueueWriter {
    queue: SyncSender<Message>,
    dropped: Arc<AtomicU64>,
}

/// Writes what waits when it is dropped, unless nobody reads.
#[derive(Debug)]
#[must_use = "the last lines are lost without it"]
pub struct FlushOnDrop {
    queue: SyncSender<Message>,
}

/// Starts the thread that writes to `out`.
pub(super) fn start(out: impl Write + Send + 'static) -> io::Result<(QueueWriter, FlushOnDrop)> {
    let (queue, waiting) = sync_channel(QUEUE_LINES);
    let dropped = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&dropped);
    thread::Builder::new().name("gf-log".to_owned()).spawn(move || write_all(out, &waiting, &counted))?;
    Ok((QueueWriter { queue: queue.clone(), dropped }, FlushOnDrop { queue }))
}

fn write_all(mut out: impl Write, waiting: &Receiver<Message>, dropped: &AtomicU64) {
    while let Ok(message) = waiting.recv() {
        // Nobody reads standard error any more: then there is nobody to tell.
        match message {
            Message::Line(line) => {
                let _ = out.write_all(&line);
            }
            Message::Flush(done) => {
                let _ = out.flush();
                let _ = done.send(());
            }
        }
        let lost = dropped.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let _ = writeln!(out, "{lost} lines of the log were dropped: standard error was not read fast enough");
        }
    }
}

impl Drop for FlushOnDrop {
    fn drop(&mut self) {
        let (done, written) = sync_channel(1);
        if self.queue.try_send(Message::Flush(done)).is_ok() {
            let _ = written.recv_timeout(FLUSH_TIMEOUT);
        }
    }
}

impl Write for QueueWriter {
    /// Takes a whole line: that is how the formatter calls it.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match self.queue.try_send(Message::Line(line.to_vec())) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for QueueWriter {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Shares what is written, and blocks while the lock is held.
    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_stops_blocks_nobody() {
        let out = Shared::default();
        let (mut writer, flush) = start(out.clone()).unwrap();
        let stopped = out.0.lock().unwrap();
        for _ in 0..2 * QUEUE_LINES {
            writer.write_all(b"line\n").unwrap();
        }
        drop(stopped);
        drop(flush);
        let until = std::time::Instant::now() + Duration::from_secs(20);
        loop {
            let text = String::from_utf8(out.0.lock().unwrap().clone()).unwrap();
            let lines = text.lines().filter(|line| *line == "line").count();
            if text.contains("lines of the log were dropped") && lines >= QUEUE_LINES {
                assert!(lines <= QUEUE_LINES + 1, "{lines}");
                return;
            }
            assert!(std::time::Instant::now() < until, "{lines} lines");
        }
    }

    #[test]
    fn the_last_lines_are_written() {
        let out = Shared::default();
        let (mut writer, flush) = start(out.clone()).unwrap();
        writer.write_all(b"last\n").unwrap();
        drop(flush);
        assert_eq!(*out.0.lock().unwrap(), b"last\n");
    }
}
