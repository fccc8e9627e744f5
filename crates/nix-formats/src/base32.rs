//! The base 32 of Nix: its own alphabet, and the last bits first.

use thiserror::Error;

/// No `e`, `o`, `t` or `u`, so that no hash spells a word that someone minds.
const ALPHABET: &[u8; 32] = b"0123456789abcdfghijklmnpqrsvwxyz";

/// The value of each digit, 0xff for every other byte.
const VALUES: [u8; 256] = {
    let mut table = [0xff; 256];
    let mut digit = 0;
    while digit < 32 {
        table[ALPHABET[digit as usize] as usize] = digit;
        digit += 1;
    }
    table
};

/// Why text is not the base 32 of so many bytes.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Base32Error {
    /// The text has the wrong length.
    #[error("the base-32 text has {actual} characters where {expected} are needed")]
    Length {
        /// Characters found.
        actual: usize,
        /// Characters needed.
        expected: usize,
    },
    /// A character outside the alphabet; it has no `e`, `o`, `t`, `u` and no capitals.
    #[error("the base-32 text has a character that is not in Nix's alphabet")]
    Character,
    /// The bits that are too many are not zero, so this is a second spelling of some other text.
    #[error("the base-32 text has bits beyond its last byte")]
    TrailingBits,
}

/// Characters that `bytes` bytes take.
#[must_use]
pub const fn encoded_base32_length(bytes: usize) -> usize {
    (bytes * 8).div_ceil(5)
}

/// Writes bytes in base 32.
#[must_use]
pub fn encode_base32(bytes: &[u8]) -> String {
    (0..encoded_base32_length(bytes.len())).rev().map(|digit| char::from(ALPHABET[digit_at(bytes, digit)])).collect()
}

/// The five bits at `digit * 5`, counted from the lowest bit of the first byte.
fn digit_at(bytes: &[u8], digit: usize) -> usize {
    let (byte, bit) = (digit * 5 / 8, digit * 5 % 8);
    let low = bytes.get(byte).copied().unwrap_or(0);
    let high = bytes.get(byte + 1).copied().unwrap_or(0);
    usize::from(u16::from_le_bytes([low, high]) >> bit & 31)
}

/// Reads base-32 text that must give exactly the bytes of `out`.
///
/// # Errors
/// [`Base32Error`] when the text is not the one spelling of some bytes of that length.
pub fn decode_base32(text: &str, out: &mut [u8]) -> Result<(), Base32Error> {
    let expected = encoded_base32_length(out.len());
    if text.len() != expected {
        return Err(Base32Error::Length { actual: text.len(), expected });
    }
    out.fill(0);
    for (digit, character) in text.bytes().rev().enumerate() {
        let value = VALUES[usize::from(character)];
        if value == 0xff {
            return Err(Base32Error::Character);
        }
        let (byte, bit) = (digit * 5 / 8, digit * 5 % 8);
        let [low, high] = (u16::from(value) << bit).to_le_bytes();
        out[byte] |= low;
        match out.get_mut(byte + 1) {
            Some(next) => *next |= high,
            None if high != 0 => return Err(Base32Error::TrailingBits),
            None => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_spelling_is_read() {
        // SHA-256 of "abc"; 52 characters carry 260 bits, so the first may only be 0 or 1.
        let good = "1b8m03r63zqhnjf7l5wnldhh7c134ap5vpj0850ymkq1iyzicy5s";
        let mut out = [0; 32];
        assert_eq!(decode_base32(good, &mut out), Ok(()));
        assert_eq!(encode_base32(&out), good);
        let first = |digit: &str| format!("{digit}{}", &good[1..]);
        assert_eq!(decode_base32(&first("2"), &mut out), Err(Base32Error::TrailingBits));
        assert_eq!(decode_base32(&first("e"), &mut out), Err(Base32Error::Character));
        assert_eq!(decode_base32(&first("B"), &mut out), Err(Base32Error::Character));
        assert_eq!(decode_base32(&good[1..], &mut out), Err(Base32Error::Length { actual: 51, expected: 52 }));
    }

    proptest::proptest! {
        #[test]
        fn bytes_round_trip(bytes: Vec<u8>) {
            let text = encode_base32(&bytes);
            let mut out = vec![0; bytes.len()];
            assert_eq!(decode_base32(&text, &mut out), Ok(()));
            assert_eq!(out, bytes);
        }

        #[test]
        fn what_is_read_is_written_alike(text in "[0-9a-z]{0,60}", length in 0..40_usize) {
            let mut out = vec![0; length];
            if decode_base32(&text, &mut out).is_ok() {
                assert_eq!(encode_base32(&out), text);
            }
        }
    }
}
