//! Bytes that come in pieces and are kept in them: long ones as they are, short ones copied together.

use bytes::{Bytes, BytesMut};

/// A piece shorter than this costs less to copy than to keep.
const SHORT_BYTES: usize = 8 << 10;

/// Pieces one after another. What they take of memory beside their bytes is little, however short they come.
#[derive(Debug, Default)]
pub(crate) struct Gathering {
    pieces: Vec<Bytes>,
    /// Short ones that came last.
    short: BytesMut,
    bytes: usize,
}

impl Gathering {
    /// Takes the next piece.
    pub(crate) fn push(&mut self, piece: Bytes) {
        self.bytes += piece.len();
        if piece.len() < SHORT_BYTES {
            self.short.extend_from_slice(&piece);
        } else {
            self.end_short();
            self.pieces.push(piece);
        }
    }

    /// Bytes of all pieces.
    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many pieces are kept as they are.
    pub(crate) const fn kept(&self) -> usize {
        self.pieces.len()
    }

    /// Takes all pieces out, none of which is empty.
    pub(crate) fn take(&mut self) -> Vec<Bytes> {
        self.end_short();
        self.bytes = 0;
        std::mem::take(&mut self.pieces)
    }

    fn end_short(&mut self) {
        if !self.short.is_empty() {
            self.pieces.push(self.short.split().freeze());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_keep_their_order_and_short_ones_become_few() {
        let mut gathering = Gathering::default();
        let long = Bytes::from(vec![7; SHORT_BYTES]);
        let mut whole = Vec::new();
        for number in 0..3000_u32 {
            let piece = if number % 1000 == 500 { long.clone() } else { Bytes::from(number.to_le_bytes().to_vec()) };
            whole.extend_from_slice(&piece);
            gathering.push(piece);
        }
        gathering.push(Bytes::new());
        assert_eq!((gathering.bytes(), gathering.kept()), (whole.len(), 6));
        let pieces = gathering.take();
        assert_eq!(pieces.len(), 7);
        assert_eq!(pieces[1].as_ptr(), long.as_ptr(), "a long piece is not copied");
        assert!(pieces.concat() == whole);
        assert_eq!((gathering.bytes(), gathering.take().len()), (0, 0));
    }
}
