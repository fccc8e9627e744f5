//! Reading. The store's pieces go out as they are: only the few bytes in front of each are made here.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use futures::stream;
use gf_blobstore::{Accept, BlobRead, ByteRange, StoreError};
use gf_reapi::bytestream::ReadRequest;
use gf_reapi::{Compressor, ResourceName};
use gf_tenancy::CasRead;
use prost::encoding::encode_varint;
use tonic::Status;

use super::super::status::IntoStatus;
use super::super::{Caller, Edge, grpc};
use super::parse;

/// The tag of `ReadResponse.data`: field 10, bytes.
const DATA_TAG: u8 = 10 << 3 | 2;

/// The longest piece in one message. Clients gather a message before they hand it on: at this length they do so in
/// their cache, and from memory that the allocator has at hand.
const MAX_PIECE_BYTES: usize = 64 << 10;

/// Up to here, copying a piece behind its header is cheaper than another frame.
const COPIED_BYTES: usize = 8 * 1024;

pub(in super::super) async fn read(
    edge: Arc<Edge>,
    caller: Caller,
    request: ReadRequest,
) -> Result<grpc::Frames, Status> {
    let ResourceName::Read { instance, compressor, digest } = parse(&caller, &request.resource_name)? else {
        return Err(Status::invalid_argument("this resource name is for writing"));
    };
    let grant = edge.authorize_name::<CasRead>(&caller, &instance)?;
    let range = range(&request, compressor)?;
    let accept = match compressor {
        Compressor::Identity => Accept::Identity,
        Compressor::Zstd => Accept::Zstd,
    };
    let opened = edge.content.read(&grant, digest, range, accept).await;
    match &opened {
        Ok(_) => edge.state.metrics.cas_lookup(1, 0),
        Err(StoreError::NotFound(_)) => edge.state.metrics.cas_lookup(0, 1),
        Err(_) => {}
    }
    let blob = opened.map_err(IntoStatus::into_status)?;
    let reading = Reading { blob, rest: Bytes::new(), behind_header: None, edge };
    Ok(Box::pin(stream::try_unfold(reading, async |mut reading| Ok(reading.next().await?.map(|part| (part, reading))))))
}

fn range(request: &ReadRequest, compressor: Compressor) -> Result<ByteRange, Status> {
    let Ok(offset) = u64::try_from(request.read_offset) else {
        return Err(Status::out_of_range(format!("read_offset {} is negative", request.read_offset)));
    };
    let limit = match u64::try_from(request.read_limit) {
        Ok(0) => None,
        Ok(_) if compressor != Compressor::Identity => {
            return Err(Status::invalid_argument("read_limit must be 0 when reading compressed bytes"));
        }
        Ok(limit) => Some(limit),
        Err(_) => return Err(Status::invalid_argument(format!("read_limit {} is negative", request.read_limit))),
    };
    Ok(ByteRange { offset, limit })
}

struct Reading {
    blob: BlobRead,
    /// What is left of a piece of the store that is longer than one message.
    rest: Bytes,
    /// A piece whose header is out already.
    behind_header: Option<Bytes>,
    edge: Arc<Edge>,
}

impl Reading {
    async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        if let Some(piece) = self.behind_header.take() {
            return Ok(Some(piece));
        }
        if self.rest.is_empty() {
            let Some(piece) = self.blob.next().await.map_err(IntoStatus::into_status)? else { return Ok(None) };
            self.rest = piece;
        }
        let piece = self.rest.split_to(self.rest.len().min(MAX_PIECE_BYTES));
        self.edge.state.metrics.bytes_out(piece.len() as u64);
        let mut header = header(piece.len(), if piece.len() <= COPIED_BYTES { piece.len() } else { 0 });
        if piece.len() <= COPIED_BYTES {
            header.extend_from_slice(&piece);
        } else {
            self.behind_header = Some(piece);
        }
        Ok(Some(header.freeze()))
    }
}

/// What stands in front of the bytes of a `ReadResponse`: the gRPC header, the tag and the length.
fn header(data_bytes: usize, room: usize) -> BytesMut {
    let length = prost::length_delimiter_len(data_bytes);
    let mut header = BytesMut::with_capacity(16 + room);
    grpc::put_header(&mut header, 1 + length + data_bytes);
    header.put_u8(DATA_TAG);
    encode_varint(data_bytes as u64, &mut header);
    header
}

#[cfg(test)]
mod tests {
    use gf_reapi::bytestream::ReadResponse;

    use super::*;

    #[test]
    fn the_header_is_the_generated_one() {
        for size in [1, 127, 128, 16_383, 16_384, 1 << 20] {
            let data = Bytes::from(vec![7; size]);
            let mut ours = header(size, 0);
            ours.extend_from_slice(&data);
            assert_eq!(ours.freeze(), grpc::encode(&ReadResponse { data }), "{size}");
        }
    }
}
