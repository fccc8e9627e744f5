//! The body of an archive, which goes on after a cut.
//!
//! It goes on where it was, if the upstream gives parts, and else from its beginning, of which nothing is handed out twice.
//! That it is still the same archive is checked by its hash, as always.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use futures::{StreamExt as _, TryStreamExt as _};
use gf_fetch::{Body, Client, Part};

/// How often one body is gone on with.
const MAX_CUTS: u32 = 6;

/// What is waited before the first time; twice as long each time after.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// A body under way.
struct Reading {
    client: Arc<Client>,
    url: String,
    body: Body,
    /// Bytes that were handed out.
    received: u64,
    /// Bytes that come again, since the upstream began anew.
    again: u64,
    cuts: u32,
}

/// The body behind a URL; `None` when the upstream says that there is none.
pub(super) async fn open(client: &Arc<Client>, url: &str) -> Result<Option<Body>, String> {
    let Some(body) = client.get(url).await? else { return Ok(None) };
    let client = Arc::clone(client);
    let reading = Reading { client, url: url.to_owned(), body, received: 0, again: 0, cuts: 0 };
    Ok(Some(futures::stream::try_unfold(reading, Reading::next).boxed()))
}

impl Reading {
    async fn next(mut self) -> Result<Option<(Bytes, Self)>, String> {
        loop {
            match self.body.try_next().await {
                Ok(None) => return Ok(None),
                Ok(Some(mut piece)) => {
                    let known = piece.len().min(usize::try_from(self.again).unwrap_or(usize::MAX));
                    piece.advance(known);
                    self.again -= known as u64;
                    if !piece.is_empty() {
                        self.received += piece.len() as u64;
                        return Ok(Some((piece, self)));
                    }
                }
                Err(failed) => self.go_on(failed).await?,
            }
        }
    }

    /// Asks for the rest.
    async fn go_on(&mut self, mut failed: String) -> Result<(), String> {
        while self.cuts < MAX_CUTS {
            tokio::time::sleep(FIRST_PAUSE * (1 << self.cuts)).await;
            self.cuts += 1;
            match self.client.get_from(&self.url, self.received).await {
                Ok(Some(Part { body, offset })) => {
                    self.body = body;
                    self.again = self.received.saturating_sub(offset);
                    return Ok(());
                }
                Ok(None) => return Err("it had this, and has it no more".to_owned()),
                Err(reason) => failed = reason,
            }
        }
        Err(failed)
    }
}
