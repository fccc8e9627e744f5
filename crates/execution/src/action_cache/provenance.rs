//! Who wrote an action result: kept with the result, so that whoever doubts it can ask.
//!
//! ```text
//! bytes 0-7    when, in milliseconds since 1970, little-endian
//! three times  a byte n, then n bytes of text: the principal, the worker, the image
//! ```
//!
//! What always holds: nothing in it comes from the client but the name under which its credential is known, nor from the
//! worker but what it offered when it came. Deliberately absent: a database. A result that is written costs one record, and
//! what is said of it goes when it goes.

use std::borrow::Cow;

use bytes::{BufMut, Bytes, BytesMut};
use gf_digest::{Digest, DigestFunction};
use gf_tenancy::Principal;

/// Who wrote an action result, and how it came to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Provenance {
    /// When it was written, in milliseconds since 1970.
    pub written_ms: u64,
    /// Who wrote it, or had the action run: a principal as it shows itself.
    pub principal: String,
    /// The worker that ran the action here, by its name; empty when a client brought the result.
    pub worker: String,
    /// What that worker called its image; empty when it has no name for it.
    pub image: String,
}

/// The longest text of a field, in bytes; what is longer is cut, and told apart by its hash.
const MAX_TEXT_BYTES: usize = u8::MAX as usize;

/// How much of the hash of a text that is cut is kept with it, in hexadecimal digits.
const CUT_HASH_CHARS: usize = 32;

impl Provenance {
    /// Of a result that `principal` brings.
    pub(crate) fn brought_by(principal: &Principal, written_ms: u64) -> Self {
        Self { written_ms, principal: principal.to_string(), ..Self::default() }
    }

    /// Of a result of a run for `principal`.
    pub(super) fn run_for(principal: &Principal, origin: &RunOrigin, written_ms: u64) -> Self {
        let (worker, image) = (origin.worker.to_string(), origin.image.to_string());
        Self { worker, image, ..Self::brought_by(principal, written_ms) }
    }

    pub(super) fn encoded_len(&self) -> usize {
        self.texts().iter().fold(8, |length, text| length + 1 + text.len())
    }

    pub(super) fn encode(&self, into: &mut BytesMut) {
        into.put_u64_le(self.written_ms);
        for text in self.texts() {
            into.put_u8(u8::try_from(text.len()).unwrap_or_default());
            into.put_slice(text.as_bytes());
        }
    }

    /// `None` when these bytes are none.
    pub(super) fn decode(bytes: &Bytes) -> Option<Self> {
        let (when, mut rest) = bytes.split_first_chunk::<8>()?;
        let mut text = || {
            let (length, following) = rest.split_first()?;
            let (text, following) = following.split_at_checked(usize::from(*length))?;
            rest = following;
            Some(String::from_utf8_lossy(text).into_owned())
        };
        Some(Self { written_ms: u64::from_le_bytes(*when), principal: text()?, worker: text()?, image: text()? })
    }

    fn texts(&self) -> [Cow<'_, str>; 3] {
        [&self.principal, &self.worker, &self.image].map(|text| cut(text))
    }
}

/// Texts that begin alike do not become the same.
fn cut(text: &str) -> Cow<'_, str> {
    if text.len() <= MAX_TEXT_BYTES {
        return Cow::Borrowed(text);
    }
    let digest = Digest::of(DigestFunction::Blake3, text.as_bytes()).hash_hex();
    let mark = &digest.as_str()[..CUT_HASH_CHARS];
    let most = MAX_TEXT_BYTES - CUT_HASH_CHARS - 1;
    let end = (0..=most).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default();
    Cow::Owned(format!("{}~{mark}", &text[..end]))
}

/// Where an action was run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RunOrigin {
    /// The name of the worker.
    pub(crate) worker: std::sync::Arc<str>,
    /// What it calls its image.
    pub(crate) image: std::sync::Arc<str>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_and_come_back() {
        let check = |principal: &str, worker: &str, expected: &str| {
            let image = "debian:12".to_owned();
            let written = Provenance { written_ms: 7, principal: principal.into(), worker: worker.into(), image };
            let mut bytes = BytesMut::new();
            written.encode(&mut bytes);
            assert_eq!(bytes.len(), written.encoded_len());
            let read = Provenance::decode(&bytes.freeze()).unwrap();
            assert_eq!(read, Provenance { principal: expected.to_owned(), ..written });
            read.principal
        };
        let long = |end: &str| format!("{}{end}", "ä".repeat(200));
        check("", "", "");
        check("token:7", "host-3", "token:7");
        let [one, other] = ["a", "b"].map(|end| check(&long(end), "", &cut(&long(end))));
        assert!(one.starts_with(&"ä".repeat(111)) && one.len() <= MAX_TEXT_BYTES, "{one}");
        assert_ne!(one, other);
    }

    #[test]
    fn what_is_cut_off_is_none() {
        let mut bytes = BytesMut::new();
        Provenance::default().encode(&mut bytes);
        for length in 0..bytes.len() {
            assert_eq!(Provenance::decode(&Bytes::copy_from_slice(&bytes[..length])), None);
        }
    }
}
