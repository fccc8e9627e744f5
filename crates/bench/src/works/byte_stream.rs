use std::sync::Arc;

use anyhow::ensure;
use async_trait::async_trait;
use bazel_remote_apis::build::bazel::remote::execution::v2 as rex;
use bazel_remote_apis::google::bytestream as bs;

use super::cas::time;
use super::{Portion, Work};
use crate::connection::{Connection, Connections};
use crate::data::{Source, read_request, write_messages};
use crate::fixture::{Fixture, LARGE_BLOB_BYTES, check_present, check_stored};
use crate::load::{Length, Round, drive};

/// A fresh blob, ready to be written.
#[derive(Clone)]
pub(super) struct Writing {
    pub(super) digest: rex::Digest,
    pub(super) messages: Arc<[Arc<bs::WriteRequest>]>,
}

impl Writing {
    /// A fresh blob of so many bytes.
    pub(super) fn fresh(source: &mut Source, size: usize) -> Self {
        let blob = source.blob(size);
        Self { messages: write_messages(&blob), digest: blob.digest }
    }

    /// Writes it; all of it must be committed.
    pub(super) async fn send(self, connection: &Connection) -> anyhow::Result<u64> {
        let committed = connection.write(self.messages).await?.committed_size;
        ensure!(committed == self.digest.size_bytes, "{committed} of {} bytes were committed", self.digest.size_bytes);
        Ok(u64::try_from(committed)?)
    }
}

/// `ByteStream.Write` of fresh blobs of 16 MiB. Units are bytes.
pub(crate) struct ByteStreamWrite {
    streams: usize,
    usual_blobs: usize,
    blobs: Arc<[Writing]>,
}

impl ByteStreamWrite {
    /// As many streams at once, and so many blobs in a round.
    pub(crate) fn new(streams: usize, usual_blobs: usize) -> Self {
        Self { streams, usual_blobs, blobs: Arc::new([]) }
    }
}

#[async_trait]
impl Work for ByteStreamWrite {
    fn prepare(&mut self, _: &Fixture, portion: Portion) {
        let mut source = Source::fresh();
        let blobs = portion.of(self.usual_blobs);
        self.blobs = (0..blobs).map(|_| Writing::fresh(&mut source, LARGE_BLOB_BYTES)).collect();
    }

    async fn round(&self, connections: &Connections) -> anyhow::Result<Round> {
        let (blobs, connections) = (Arc::clone(&self.blobs), connections.clone());
        let length = Length::Calls(blobs.len());
        let call = move |caller, number: usize| {
            let (blob, connection) = (blobs[number].clone(), connections.of_caller(caller));
            async move { blob.send(&connection).await }
        };
        drive(self.streams, length, call).await
    }

    async fn verify(&self, product: &Connections) -> anyhow::Result<()> {
        let connection = product.of_caller(0);
        check_present(&connection, self.blobs.iter().map(|blob| blob.digest.clone()).collect()).await?;
        for blob in self.blobs.iter().step_by(8) {
            check_stored(&connection, &blob.digest).await?;
        }
        Ok(())
    }
}

/// `ByteStream.Read` of blobs of 16 MiB that were read before, 4 at once. Units are bytes.
#[derive(Default)]
pub(crate) struct ByteStreamRead {
    digests: Arc<[rex::Digest]>,
    portion: Option<Portion>,
}

#[async_trait]
impl Work for ByteStreamRead {
    fn prepare(&mut self, fixture: &Fixture, portion: Portion) {
        self.digests = fixture.large.iter().map(|blob| blob.digest.clone()).collect();
        self.portion = Some(portion);
    }

    async fn round(&self, connections: &Connections) -> anyhow::Result<Round> {
        let requests: Arc<[_]> = self.digests.iter().map(|digest| (read_request(digest), digest.size_bytes)).collect();
        let connections = connections.clone();
        let call = move |caller, number: usize| {
            let (request, size) = requests[number % requests.len()].clone();
            let connection = connections.of_caller(caller);
            async move { read(&connection, request, size).await }
        };
        drive(self.digests.len(), time(self.portion), call).await
    }

    async fn verify(&self, product: &Connections) -> anyhow::Result<()> {
        let connection = product.of_caller(0);
        for digest in self.digests.iter() {
            check_stored(&connection, digest).await?;
        }
        Ok(())
    }
}

/// Reads a blob and counts its bytes.
pub(super) async fn read(
    connection: &Connection,
    request: Arc<bs::ReadRequest>,
    size_bytes: i64,
) -> anyhow::Result<u64> {
    let mut pieces = connection.read(request).await?;
    let mut received = 0;
    while let Some(piece) = pieces.message().await? {
        received += u64::try_from(piece.data.len())?;
    }
    ensure!(i64::try_from(received)? == size_bytes, "{received} of {size_bytes} bytes came");
    Ok(received)
}
