//! Room in memory for answers of one large message.
//!
//! Such an answer is made as a whole and goes out at the pace of its client. A client that asks for many at once and
//! reads slowly would have the server hold them all. So an answer needs room before it goes out, which its stream keeps
//! until all of it was handed out or the stream is reset. Who knows beforehand how large it is going to be asks before it
//! is made (batches of blobs); the others ask when it is made, wait with it for a minute at most, and let go of it then.
//!
//! Deliberately absent: answers that are made piece by piece, of which no more than a piece is at hand.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// Room is counted in these.
const UNIT_BYTES: usize = 1 << 10;
/// For one connection: a few of the largest answers, so that one that reads slowly still finds the next one ready.
const CONNECTION_BYTES: usize = 64 << 20;
/// For all connections.
const SERVER_BYTES: usize = 512 << 20;
/// Smaller answers need none: the number of streams bounds them.
const SMALL_ANSWER_BYTES: usize = 64 << 10;
/// How long to wait for earlier answers to be read.
const ROOM_TIMEOUT: Duration = Duration::from_secs(60);

tokio::task_local! {
    static PLACE: Place;
}

/// Others hold all the room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("too many large answers wait for their clients to read them: read on, or ask for less at once")]
pub(crate) struct NoRoom;

/// The room of the server.
#[derive(Clone, Debug)]
pub(super) struct ServerRoom(Arc<Semaphore>);

impl Default for ServerRoom {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(SERVER_BYTES / UNIT_BYTES)))
    }
}

/// The room of a connection, within that of the server.
#[derive(Clone, Debug)]
pub(super) struct ConnectionRoom {
    connection: Arc<Semaphore>,
    server: Arc<Semaphore>,
}

impl ConnectionRoom {
    pub(super) fn within(server: &ServerRoom) -> Self {
        let connection = Arc::new(Semaphore::new(CONNECTION_BYTES / UNIT_BYTES));
        Self { connection, server: Arc::clone(&server.0) }
    }

    async fn take(&self, units: u32) -> Option<[OwnedSemaphorePermit; 2]> {
        let connection = Arc::clone(&self.connection).acquire_many_owned(units).await.ok()?;
        let server = Arc::clone(&self.server).acquire_many_owned(units).await.ok()?;
        Some([connection, server])
    }

    /// Runs a call, which may take room with [`take_for_answer`]; what it takes is kept in `held`.
    pub(super) fn scope<F: Future>(&self, held: Held, call: F) -> tokio::task::futures::TaskLocalFuture<Place, F> {
        PLACE.scope(Place { room: self.clone(), held }, call)
    }
}

/// The room that an answer holds, until it is dropped.
#[derive(Clone, Debug, Default)]
pub(super) struct Held(Arc<Mutex<Vec<OwnedSemaphorePermit>>>);

impl Held {
    /// What is held of the connection's room, and as much of the server's.
    fn units(&self) -> usize {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.iter().map(OwnedSemaphorePermit::num_permits).sum::<usize>() / 2
    }
}

/// Where a call takes room, and where it keeps it.
#[derive(Clone, Debug)]
pub(super) struct Place {
    room: ConnectionRoom,
    held: Held,
}

/// Takes room for the answer of the call that runs now, which is going to have so many bytes: what the call has taken
/// before counts.
///
/// # Errors
/// [`NoRoom`], after a minute.
pub(crate) async fn take_for_answer(bytes: usize) -> Result<(), NoRoom> {
    // Who calls the router without a connection, as tests do, has no room to share.
    let Ok(place) = PLACE.try_with(Place::clone) else { return Ok(()) };
    if bytes <= SMALL_ANSWER_BYTES {
        return Ok(());
    }
    let units = bytes.div_ceil(UNIT_BYTES).saturating_sub(place.held.units());
    if units == 0 {
        return Ok(());
    }
    let units = u32::try_from(units).map_err(|_| NoRoom)?;
    let taken = timeout(ROOM_TIMEOUT, place.room.take(units)).await.ok().flatten().ok_or(NoRoom)?;
    place.held.0.lock().unwrap_or_else(PoisonError::into_inner).extend(taken);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_full_connection_waits_and_leaves_room_for_others() {
        let server = ServerRoom::default();
        let (busy, other) = (ConnectionRoom::within(&server), ConnectionRoom::within(&server));
        let take = async |room: &ConnectionRoom, bytes| {
            let held = Held::default();
            room.scope(held.clone(), take_for_answer(bytes)).await.map(|()| held)
        };
        let first = take(&busy, CONNECTION_BYTES).await.unwrap();
        assert_eq!(take(&busy, SMALL_ANSWER_BYTES + 1).await.unwrap_err(), NoRoom);
        assert!(take(&busy, SMALL_ANSWER_BYTES).await.is_ok(), "small answers need no room");
        assert!(take(&other, CONNECTION_BYTES).await.is_ok());
        drop(first);
        let both = async {
            take_for_answer(CONNECTION_BYTES / 2).await?;
            take_for_answer(CONNECTION_BYTES).await
        };
        assert_eq!(busy.scope(Held::default(), both).await, Ok(()), "what was taken before counts");
        assert!(take(&busy, CONNECTION_BYTES).await.is_ok());

        let connections = SERVER_BYTES / CONNECTION_BYTES;
        let mut all = Vec::new();
        for _ in 0..connections {
            all.push(take(&ConnectionRoom::within(&server), CONNECTION_BYTES).await.unwrap());
        }
        assert_eq!(take(&busy, SMALL_ANSWER_BYTES + 1).await.unwrap_err(), NoRoom, "the server is full");
        all.pop();
        assert!(take(&busy, SMALL_ANSWER_BYTES + 1).await.is_ok());
        assert_eq!(take_for_answer(SERVER_BYTES * 2).await, Ok(()), "no connection, no room to share");
    }
}
