//! Which digest function a message means.

use gf_digest::DigestFunction;
use thiserror::Error;

/// The client named a digest function that is not served here. The caller's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("digest function number {0} is not supported; supported are SHA256 (1) and BLAKE3 (9)")]
pub struct UnsupportedDigestFunction(pub i32);

/// Reads the `digest_function` field of a message.
///
/// A client may leave it unset (0) for the older functions, which are then told apart by the length of their
/// hashes. Of those only SHA-256 is served, so unset means SHA-256, and a hash of another length is refused when it
/// is parsed. BLAKE3 must always be named.
///
/// # Errors
/// [`UnsupportedDigestFunction`] for every other number.
pub const fn digest_function(number: i32) -> Result<DigestFunction, UnsupportedDigestFunction> {
    match number {
        0 => Ok(DigestFunction::Sha256),
        _ => match DigestFunction::from_number(number) {
            Some(function) => Ok(function),
            None => Err(UnsupportedDigestFunction(number)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::execution::digest_function::Value;

    #[test]
    fn unset_means_sha256_and_others_are_named() {
        assert_eq!(digest_function(Value::Unknown as i32), Ok(DigestFunction::Sha256));
        assert_eq!(digest_function(Value::Sha256 as i32), Ok(DigestFunction::Sha256));
        assert_eq!(digest_function(Value::Blake3 as i32), Ok(DigestFunction::Blake3));
        for unsupported in [Value::Sha1 as i32, Value::Md5 as i32, Value::Sha256tree as i32, -1, 4711] {
            assert_eq!(digest_function(unsupported), Err(UnsupportedDigestFunction(unsupported)));
        }
    }
}
