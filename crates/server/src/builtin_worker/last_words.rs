//! What a worker says on its standard error: passed on as it comes, and why it ended kept for those who ask later.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::ChildStderr;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;
use std::time::Duration;

/// `gf` begins with this the one line that says why it ends.
const VERDICT: &str = "gf: ";
/// Of a longer line the rest counts as another one.
const MAX_LINE_BYTES: u64 = 4096;
/// From the end of a worker to that of its standard error, which what it started may hold open.
const LAST_WORDS_DEADLINE: Duration = Duration::from_secs(1);

/// A thread that listens.
pub(super) struct LastWords(Receiver<Option<String>>);

impl LastWords {
    /// Begins to listen.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(super) fn of(stderr: ChildStderr) -> io::Result<Self> {
        let (done, verdict) = sync_channel(1);
        thread::Builder::new().name("worker-words".to_owned()).spawn(move || {
            let _nobody_asks = done.send(pass_on(stderr, io::stderr()));
        })?;
        Ok(Self(verdict))
    }

    /// Why it ended, if it said so. To be asked after its end.
    pub(super) fn verdict(self) -> Option<String> {
        self.0.recv_timeout(LAST_WORDS_DEADLINE).ok().flatten()
    }
}

fn pass_on(from: impl Read, mut to: impl Write) -> Option<String> {
    let mut from = BufReader::new(from);
    let (mut line, mut verdict) = (Vec::new(), None);
    loop {
        line.clear();
        match from.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return verdict,
            Ok(_) => {}
        }
        // Nobody reads standard error any more: then there is nobody to tell.
        let _nobody_reads = to.write_all(&line);
        let text = String::from_utf8_lossy(&line);
        verdict = text.strip_prefix(VERDICT).map(|text| text.trim_end().to_owned()).or(verdict);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_passed_on_and_the_verdict_kept() {
        let said = format!("INFO up\n{}\ngf: it cannot be\nlast line without an end", "x".repeat(10_000));
        let mut passed_on = Vec::new();
        let verdict = pass_on(said.as_bytes(), &mut passed_on);
        assert_eq!(verdict.as_deref(), Some("it cannot be"));
        assert_eq!(passed_on, said.as_bytes());
        assert_eq!(pass_on(&b"INFO up\n"[..], io::sink()), None);
    }
}
