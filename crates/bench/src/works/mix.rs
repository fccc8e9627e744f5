use std::sync::Arc;

use anyhow::ensure;
use async_trait::async_trait;
use bazel_remote_apis::build::bazel::remote::execution::v2 as rex;
use bazel_remote_apis::google::bytestream as bs;
use tonic::Code;

use super::action_cache::{hit, update};
use super::byte_stream::{Writing, read};
use super::{CALLERS, Portion, Work};
use crate::connection::{Connection, Connections};
use crate::data::{Blob, Source, read_request};
use crate::fixture::{
    Action, Fixture, action, batch_request, check_present, check_stored, get_request, update_request, upload_batch,
};
use crate::floor::MISS_SIZE_BYTES;
use crate::load::{Length, Round, drive};

/// Blobs that a miss uploads.
const MISS_BLOBS: usize = 6;

/// What a build asks of a cache, in random order: of 100 pieces of work 60 are action hits, 30 are misses (ask, find
/// missing, upload 6 blobs of 256 bytes to 16 KiB, store the result), 5 write and 5 read a blob of 1 to 8 MiB. Units
/// are pieces of work.
#[derive(Default)]
pub(crate) struct Mix {
    pieces: Arc<[Piece]>,
}

enum Piece {
    Hit(Arc<rex::GetActionResultRequest>, Box<Action>),
    Miss(Box<Miss>),
    Write(Writing),
    Read(Arc<bs::ReadRequest>, i64),
}

struct Miss {
    get: Arc<rex::GetActionResultRequest>,
    find: Arc<rex::FindMissingBlobsRequest>,
    upload: Arc<rex::BatchUpdateBlobsRequest>,
    update: Arc<rex::UpdateActionResultRequest>,
    stored: Action,
}

#[async_trait]
impl Work for Mix {
    fn prepare(&mut self, fixture: &Fixture, portion: Portion) {
        let mut source = Source::fresh();
        let pieces = portion.of(4000);
        let mut pieces: Vec<Piece> = (0..pieces).map(|number| piece(&mut source, fixture, number % 100)).collect();
        source.shuffle(&mut pieces);
        self.pieces = pieces.into();
    }

    async fn round(&self, connections: &Connections) -> anyhow::Result<Round> {
        let (pieces, connections) = (Arc::clone(&self.pieces), connections.clone());
        let length = Length::Calls(pieces.len());
        let call = move |caller, number: usize| {
            let (pieces, connection) = (Arc::clone(&pieces), connections.of_caller(caller));
            async move { pieces[number].run(&connection).await }
        };
        drive(CALLERS, length, call).await
    }

    async fn verify(&self, product: &Connections) -> anyhow::Result<()> {
        let connection = product.of_caller(0);
        for piece in self.pieces.iter().step_by(7) {
            match piece {
                Piece::Miss(miss) => {
                    check_present(&connection, miss.find.blob_digests.clone()).await?;
                    hit(&connection, get_request(&miss.stored.digest), &miss.stored).await?;
                }
                Piece::Write(writing) => check_stored(&connection, &writing.digest).await?,
                Piece::Hit(..) | Piece::Read(..) => {}
            }
        }
        Ok(())
    }
}

fn piece(source: &mut Source, fixture: &Fixture, percent: usize) -> Piece {
    match percent {
        0..60 => {
            let action = &fixture.actions[source.below(fixture.actions.len())];
            Piece::Hit(get_request(&action.digest), Box::new(action.clone()))
        }
        60..90 => Piece::Miss(Box::new(miss(source))),
        90..95 => {
            let size = (1 << 20) + source.below(7 << 20);
            Piece::Write(Writing::fresh(source, size))
        }
        _ => {
            let digest = &fixture.medium[source.below(fixture.medium.len())].digest;
            Piece::Read(read_request(digest), digest.size_bytes)
        }
    }
}

fn miss(source: &mut Source) -> Miss {
    let blob = |source: &mut Source| {
        let size = 256 << source.below(7);
        source.blob(size)
    };
    let blobs: Vec<Blob> = (0..MISS_BLOBS).map(|_| blob(source)).collect();
    let mut stored = action(source, &blobs);
    // The floor knows a miss by its size; nothing else does.
    stored.digest.size_bytes = MISS_SIZE_BYTES;
    let blob_digests = blobs.iter().map(|blob| blob.digest.clone()).collect();
    Miss {
        get: get_request(&stored.digest),
        find: Arc::new(rex::FindMissingBlobsRequest { blob_digests, ..Default::default() }),
        upload: Arc::new(batch_request(&blobs)),
        update: Arc::new(update_request(&stored)),
        stored,
    }
}

impl Piece {
    async fn run(&self, connection: &Connection) -> anyhow::Result<u64> {
        match self {
            Self::Hit(request, expected) => {
                hit(connection, Arc::clone(request), expected).await?;
            }
            Self::Miss(miss) => miss.run(connection).await?,
            Self::Write(writing) => {
                writing.clone().send(connection).await?;
            }
            Self::Read(request, size_bytes) => {
                read(connection, Arc::clone(request), *size_bytes).await?;
            }
        }
        Ok(1)
    }
}

impl Miss {
    async fn run(&self, connection: &Connection) -> anyhow::Result<()> {
        let answer = connection.get_action_result(Arc::clone(&self.get)).await;
        ensure!(answer.is_err_and(|status| status.code() == Code::NotFound), "a fresh action is not a miss");
        let missing = connection.find_missing(Arc::clone(&self.find)).await?.missing_blob_digests.len();
        ensure!(missing == MISS_BLOBS, "{missing} of {MISS_BLOBS} fresh blobs are called missing");
        upload_batch(connection, Arc::clone(&self.upload)).await?;
        update(connection, Arc::clone(&self.update)).await?;
        Ok(())
    }
}
