//! Decoding of zstd that comes in pieces and may not be trusted.

use std::io;

use gf_blobstore::StoreError;
use gf_digest::Digest;
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

/// The largest window that a frame may ask for, as a power of two: 128 MiB, zstd's own default bound.
const WINDOW_LOG_MAX: u32 = 27;

const STEP_BYTES: usize = 128 * 1024;

/// Decodes frames one after the other, and stops as soon as more came out than the digest says.
pub(crate) struct BoundedDecoder {
    digest: Digest,
    decoder: Decoder<'static>,
    decoded_bytes: u64,
    in_frame: bool,
}

impl BoundedDecoder {
    pub(crate) fn new(digest: Digest) -> Result<Self, StoreError> {
        let begin = || {
            let mut decoder = Decoder::new()?;
            decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX))?;
            Ok(decoder)
        };
        let decoder = begin().map_err(|source: io::Error| undecodable(digest, &source))?;
        Ok(Self { digest, decoder, decoded_bytes: 0, in_frame: false })
    }

    /// Appends what `encoded` decodes to.
    pub(crate) fn decode(&mut self, encoded: &[u8], decoded: &mut Vec<u8>) -> Result<(), StoreError> {
        if encoded.is_empty() {
            return Ok(());
        }
        let mut step = vec![0; STEP_BYTES];
        let mut input = InBuffer::around(encoded);
        loop {
            let mut output = OutBuffer::around(step.as_mut_slice());
            let hint = self.decoder.run(&mut input, &mut output).map_err(|source| undecodable(self.digest, &source))?;
            let written = output.as_slice();
            let is_full = written.len() == STEP_BYTES;
            self.in_frame = hint != 0;
            self.decoded_bytes += written.len() as u64;
            if self.decoded_bytes > self.digest.size_bytes() {
                return Err(StoreError::SizeMismatch { digest: self.digest, received_bytes: self.decoded_bytes });
            }
            decoded.extend_from_slice(written);
            // A full step may have more behind it, unless it ended the frame: asking again would begin another one.
            if input.pos() == encoded.len() && !(is_full && self.in_frame) {
                return Ok(());
            }
        }
    }

    /// Checks that no frame was cut off.
    pub(crate) fn finish(self) -> Result<(), StoreError> {
        if self.in_frame {
            return Err(StoreError::Undecodable {
                digest: self.digest,
                reason: "the last frame is cut off".to_owned(),
            });
        }
        Ok(())
    }
}

fn undecodable(digest: Digest, source: &io::Error) -> StoreError {
    StoreError::Undecodable { digest, reason: source.to_string() }
}
