//! What a content-addressed derivation gave: realisations (Nix up to 2.34) and entries of the build trace (from 2.35).
//!
//! Both are small JSON documents that a client puts into a cache and gets back. Written with sorted keys and without
//! white space, as Nix does; fields that are unknown are ignored.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::hash::{Hash, HashAlgorithm, HashError};
use crate::signature::{Signature, SignatureError, Signatures};
use crate::store_path::{StorePath, StorePathError};

/// The name of an output of a derivation: `out`, `dev`, … With the rules of store path names, since it becomes part of
/// one.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OutputName(Arc<str>);

/// An output of a derivation, which is named by its hash: `sha256:<64 hex>!<output>`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct DerivationOutput {
    /// The hash of the derivation, with its inputs replaced by theirs.
    pub derivation: Hash,
    /// Which output.
    pub output: OutputName,
}

/// What an output became, as in `realisations/<id>.doi`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Realisation {
    /// The output.
    pub id: DerivationOutput,
    /// Its path.
    pub path: StorePath,
    /// Signatures over [`Realisation::fingerprint`].
    pub signatures: Signatures,
    /// What the outputs that this one was built from became.
    pub dependencies: BTreeMap<DerivationOutput, StorePath>,
}

/// An output of a resolved derivation, which is named by its path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BuildTraceKey {
    /// The derivation.
    pub derivation: StorePath,
    /// Which output.
    pub output: OutputName,
}

/// What an output became, as in `build-trace-v2/<derivation>/<output>.doi`. Its key is not in the document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildTrace {
    /// The path of the output.
    pub path: StorePath,
    /// Signatures over [`BuildTrace::fingerprint`].
    pub signatures: Signatures,
}

/// Why text is not a realisation, an entry of the build trace, or the name of one.
#[derive(Debug, Error)]
pub enum RealisationError {
    /// Over [`Realisation::MAX_BYTES`].
    #[error("the realisation has {0} bytes; at most {max} are allowed", max = Realisation::MAX_BYTES)]
    TooLong(usize),
    /// Not JSON, or not of this shape.
    #[error("the realisation is not the JSON that it should be")]
    Json(#[from] serde_json::Error),
    /// Not `sha256:<hex>!<output>`.
    #[error("the id of a realisation is `sha256:<64 hexadecimal digits>!<output>`")]
    Id,
    /// The hash in an id is malformed.
    #[error("in the hash of a realisation's id")]
    Hash(#[from] HashError),
    /// The name of the output, or a path, is malformed.
    #[error("in a path or the name of an output")]
    Name(#[from] StorePathError),
    /// The derivation is none.
    #[error("the build trace is kept for derivations; their names end in `.drv`")]
    NotDerivation,
    /// A signature is malformed, or there are too many.
    #[error("in a signature of the realisation")]
    Signature(#[from] SignatureError),
}

impl OutputName {
    /// Checks and takes a name.
    ///
    /// # Errors
    /// [`StorePathError`] when it breaks a rule of names.
    pub fn new(name: &str) -> Result<Self, StorePathError> {
        crate::store_path::check_name(name)?;
        Ok(Self(name.into()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl DerivationOutput {
    /// Reads `sha256:<64 hex>!<output>`, which must not be percent-encoded any more.
    ///
    /// # Errors
    /// [`RealisationError`] says what is wrong.
    pub fn parse(id: &str) -> Result<Self, RealisationError> {
        let (hash, output) = id.split_once('!').ok_or(RealisationError::Id)?;
        let base16 = hash.strip_prefix("sha256:").ok_or(RealisationError::Id)?;
        Ok(Self { derivation: Hash::parse_base16(HashAlgorithm::Sha256, base16)?, output: OutputName::new(output)? })
    }
}

/// Both documents as they are on the wire. Fields are in the order of their names.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RealisationJson {
    #[serde(default)]
    dependent_realisations: BTreeMap<String, String>,
    id: String,
    out_path: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    signatures: Option<Vec<SignatureJson>>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct BuildTraceJson {
    out_path: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    signatures: Option<Vec<SignatureJson>>,
}

/// What [`BuildTrace::fingerprint`] is made of.
#[derive(Serialize)]
struct BuildTraceFingerprint<'a> {
    key: BuildTraceKeyJson<'a>,
    value: BuildTraceJson,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct BuildTraceKeyJson<'a> {
    drv_path: &'a str,
    output_name: &'a str,
}

/// A signature as older Nix writes it, or as newer.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum SignatureJson {
    Text(String),
    #[serde(rename_all = "camelCase")]
    Parts {
        key_name: String,
        sig: String,
    },
}

impl Realisation {
    /// The longest document accepted, in bytes, of either generation.
    pub const MAX_BYTES: usize = 1 << 20;

    /// Reads a document.
    ///
    /// # Errors
    /// [`RealisationError`] says what is wrong.
    pub fn parse(json: &[u8]) -> Result<Self, RealisationError> {
        let wire: RealisationJson = read(json)?;
        let mut dependencies = BTreeMap::new();
        for (id, path) in &wire.dependent_realisations {
            dependencies.insert(DerivationOutput::parse(id)?, StorePath::parse(path)?);
        }
        Ok(Self {
            id: DerivationOutput::parse(&wire.id)?,
            path: StorePath::parse(&wire.out_path)?,
            signatures: signatures(wire.signatures)?,
            dependencies,
        })
    }

    /// Writes the document as Nix does.
    #[must_use]
    pub fn format(&self) -> String {
        let text = |signature: &Signature| SignatureJson::Text(signature.to_string());
        write(&self.wire(Some(self.signatures.iter().map(text).collect())))
    }

    /// What signatures cover: the document without them.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        write(&self.wire(None))
    }

    fn wire(&self, signatures: Option<Vec<SignatureJson>>) -> RealisationJson {
        RealisationJson {
            dependent_realisations: self
                .dependencies
                .iter()
                .map(|(id, path)| (id.to_string(), path.to_string()))
                .collect(),
            id: self.id.to_string(),
            out_path: self.path.to_string(),
            signatures,
        }
    }
}

impl BuildTraceKey {
    /// Takes the two parts of the URL, percent-decoded and without `.doi`.
    ///
    /// # Errors
    /// [`RealisationError`] when the first does not name a derivation or the second is not the name of an output.
    pub fn parse(derivation: &str, output: &str) -> Result<Self, RealisationError> {
        let derivation = StorePath::parse(derivation)?;
        if !derivation.is_derivation() {
            return Err(RealisationError::NotDerivation);
        }
        Ok(Self { derivation, output: OutputName::new(output)? })
    }
}

impl BuildTrace {
    /// Reads a document, with signatures in either form.
    ///
    /// # Errors
    /// [`RealisationError`] says what is wrong.
    pub fn parse(json: &[u8]) -> Result<Self, RealisationError> {
        let wire: BuildTraceJson = read(json)?;
        Ok(Self { path: StorePath::parse(&wire.out_path)?, signatures: signatures(wire.signatures)? })
    }

    /// Writes the document as Nix does, with signatures in two parts.
    #[must_use]
    pub fn format(&self) -> String {
        let parts = |signature: &Signature| SignatureJson::Parts {
            key_name: signature.key_name().to_owned(),
            sig: signature.base64().to_owned(),
        };
        write(&BuildTraceJson {
            out_path: self.path.to_string(),
            signatures: Some(self.signatures.iter().map(parts).collect()),
        })
    }

    /// What signatures cover: key and value, without the signatures.
    #[must_use]
    pub fn fingerprint(&self, key: &BuildTraceKey) -> String {
        write(&BuildTraceFingerprint {
            key: BuildTraceKeyJson { drv_path: key.derivation.as_str(), output_name: key.output.as_str() },
            value: BuildTraceJson { out_path: self.path.to_string(), signatures: None },
        })
    }
}

fn read<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T, RealisationError> {
    if json.len() > Realisation::MAX_BYTES {
        return Err(RealisationError::TooLong(json.len()));
    }
    Ok(serde_json::from_slice(json)?)
}

/// Structs of text cannot fail to be written.
fn write(wire: &impl Serialize) -> String {
    serde_json::to_string(wire).unwrap_or_default()
}

fn signatures(wire: Option<Vec<SignatureJson>>) -> Result<Signatures, SignatureError> {
    let mut signatures = Signatures::default();
    for signature in wire.unwrap_or_default() {
        let text = match signature {
            SignatureJson::Text(text) => text,
            SignatureJson::Parts { key_name, sig } => format!("{key_name}:{sig}"),
        };
        signatures.insert(Signature::parse(&text)?)?;
    }
    Ok(signatures)
}

/// By the text, as the keys of a JSON object are.
impl Ord for DerivationOutput {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.derivation.as_bytes(), &self.output).cmp(&(other.derivation.as_bytes(), &other.output))
    }
}

impl PartialOrd for DerivationOutput {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for OutputName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for OutputName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for DerivationOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}!{}", self.derivation.base16(), self.output)
    }
}

impl fmt::Debug for DerivationOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{PublicKey, SecretKey};

    /// `nix copy --to file://… --file F` of content-addressed derivations that were built with `secret-key-files`.
    const GOLDEN: [&str; 3] = [
        include_str!("../tests/golden/realisations/2.8.json"),
        include_str!("../tests/golden/realisations/2.8-dependent.json"),
        include_str!("../tests/golden/realisations/2.34.json"),
    ];

    #[test]
    fn realisations_of_nix_round_trip_and_verify() {
        let keys = [PublicKey::parse(include_str!("../tests/golden/public-key")).unwrap()];
        for text in GOLDEN {
            let mut realisation = Realisation::parse(text.as_bytes()).unwrap();
            assert_eq!(realisation.format(), text);
            assert!(
                realisation.signatures.verified_by(realisation.fingerprint().as_bytes(), &keys).is_some(),
                "{text}"
            );
            realisation.id.output = OutputName::new("dev").unwrap();
            assert!(realisation.signatures.verified_by(realisation.fingerprint().as_bytes(), &keys).is_none());
        }
        assert_eq!(Realisation::parse(GOLDEN[1].as_bytes()).unwrap().dependencies.len(), 1);
    }

    #[test]
    fn build_traces_have_the_documented_form() {
        // After the manual of Nix 2.35, "Build Trace Entry"; no such Nix could be run for this.
        let path = "3padashkkjy49rbrzb7g4syrlfwwfzr1-ca2";
        let key = BuildTraceKey::parse("12k84yxqv8smyiz1ggbxkw2aairk8633-ca2.drv", "out").unwrap();
        let secret = SecretKey::parse(include_str!("../tests/golden/secret-key")).unwrap();
        let mut trace = BuildTrace::parse(format!(r#"{{"outPath":"{path}"}}"#).as_bytes()).unwrap();
        let expected = format!(
            r#"{{"key":{{"drvPath":"12k84yxqv8smyiz1ggbxkw2aairk8633-ca2.drv","outputName":"out"}},"value":{{"outPath":"{path}"}}}}"#
        );
        assert_eq!(trace.fingerprint(&key), expected);
        let signature = secret.sign(expected.as_bytes());
        let old = format!(r#"{{"outPath":"{path}","signatures":["{signature}"]}}"#);
        trace.signatures.insert(signature.clone()).unwrap();
        assert_eq!(BuildTrace::parse(old.as_bytes()).unwrap(), trace);
        let new =
            format!(r#"{{"outPath":"{path}","signatures":[{{"keyName":"golden-1","sig":"{}"}}]}}"#, signature.base64());
        assert_eq!(trace.format(), new);
        assert_eq!(BuildTrace::parse(new.as_bytes()).unwrap(), trace);
    }

    #[test]
    fn other_documents_are_refused() {
        let good = GOLDEN[0];
        for (from, to) in [
            ("sha256:", "sha1:"),
            ("!out", ""),
            ("!out", "!a/b"),
            ("golden-1:", "golden-1"),
            ("\"outPath\"", "\"outPaths\""),
            ("-sca", "/sca"),
        ] {
            assert!(good.contains(from));
            assert!(Realisation::parse(good.replace(from, to).as_bytes()).is_err(), "{from} {to}");
        }
        assert!(matches!(Realisation::parse(&vec![b' '; (1 << 20) + 1]), Err(RealisationError::TooLong(_))));
        assert!(BuildTraceKey::parse("12k84yxqv8smyiz1ggbxkw2aairk8633-ca2", "out").is_err());
        assert!(BuildTraceKey::parse("12k84yxqv8smyiz1ggbxkw2aairk8633-ca2.drv", "../out").is_err());
    }

    proptest::proptest! {
        #[test]
        fn damaged_documents_are_refused_or_round_trip(which in 0..3_usize, at: proptest::sample::Index, byte: u8) {
            let mut bytes = GOLDEN[which].as_bytes().to_vec();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = BuildTrace::parse(&bytes);
            if let Ok(realisation) = Realisation::parse(&bytes) {
                assert_eq!(Realisation::parse(realisation.format().as_bytes()).unwrap(), realisation);
            }
        }
    }
}
