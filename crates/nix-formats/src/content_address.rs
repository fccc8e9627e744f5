//! Content addresses: how a store path follows from what it holds.
//!
//! This computes names; whether an archive has the content that an address claims is for the caller to check, against
//! [`crate::NarHash`] where the method is [`FileMethod::Recursive`] and nothing refers to itself.

use std::collections::BTreeSet;
use std::fmt;

use thiserror::Error;

use crate::hash::{Hash, HashAlgorithm, HashError};
use crate::store_path::{StoreDir, StorePath, StorePathError, StorePathHash};

/// What a file system object was hashed as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FileMethod {
    /// The bytes of one file.
    Flat,
    /// The archive of the tree.
    Recursive,
    /// The git object of the tree.
    Git,
}

impl FileMethod {
    /// What stands before the hash.
    const fn prefix(self) -> &'static str {
        match self {
            Self::Flat => "",
            Self::Recursive => "r:",
            Self::Git => "git:",
        }
    }
}

/// The `CA` of a store path: `text:sha256:…`, `fixed:sha256:…`, `fixed:r:sha256:…` or `fixed:git:sha1:…`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub enum ContentAddress {
    /// A file written by the evaluator, such as a derivation; its SHA-256.
    Text(Hash),
    /// Anything else.
    Fixed(FileMethod, Hash),
}

/// Why text is not a content address, or why none leads to a path.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ContentAddressError {
    /// Neither `text:` nor `fixed:`.
    #[error("a content address begins with `text:` or `fixed:`")]
    Method,
    /// The hash is malformed.
    #[error("in the hash of a content address")]
    Hash(#[from] HashError),
    /// Text is always hashed with SHA-256.
    #[error("the content address of text must be of sha256")]
    TextAlgorithm,
    /// Only archives under SHA-256 and text may have references, and only archives may refer to themselves.
    #[error("a path of this content address cannot have these references")]
    References,
    /// The name is not one of a store path.
    #[error("in the name of a content-addressed path")]
    Name(#[from] StorePathError),
}

impl ContentAddress {
    /// Reads a content address.
    ///
    /// # Errors
    /// [`ContentAddressError`] says what is wrong.
    pub fn parse(text: &str) -> Result<Self, ContentAddressError> {
        if let Some(hash) = text.strip_prefix("text:") {
            let hash = Hash::parse(hash)?;
            return match hash.algorithm() {
                HashAlgorithm::Sha256 => Ok(Self::Text(hash)),
                _ => Err(ContentAddressError::TextAlgorithm),
            };
        }
        let rest = text.strip_prefix("fixed:").ok_or(ContentAddressError::Method)?;
        let (method, hash) = [FileMethod::Recursive, FileMethod::Git]
            .into_iter()
            .find_map(|method| Some((method, rest.strip_prefix(method.prefix())?)))
            .unwrap_or((FileMethod::Flat, rest));
        Ok(Self::Fixed(method, Hash::parse(hash)?))
    }

    /// The hash.
    #[must_use]
    pub const fn hash(&self) -> &Hash {
        match self {
            Self::Text(hash) | Self::Fixed(_, hash) => hash,
        }
    }

    /// The path that content of this address has under a name. `references` are the other paths that it refers to;
    /// `refers_to_itself` says whether its own path is in it.
    ///
    /// # Errors
    /// [`ContentAddressError`] when the name is none, or when such content cannot have these references.
    pub fn path(
        &self,
        store: &StoreDir,
        name: &str,
        references: &BTreeSet<StorePath>,
        refers_to_itself: bool,
    ) -> Result<StorePath, ContentAddressError> {
        let (kind, inner) = match self {
            Self::Text(hash) if !refers_to_itself => (with_references("text", store, references, false), *hash),
            Self::Fixed(FileMethod::Recursive, hash) if hash.algorithm() == HashAlgorithm::Sha256 => {
                (with_references("source", store, references, refers_to_itself), *hash)
            }
            Self::Fixed(method, hash) if references.is_empty() && !refers_to_itself => {
                let (prefix, algorithm) = (method.prefix(), hash.algorithm().name());
                let inner = format!("fixed:out:{prefix}{algorithm}:{}:", hash.base16());
                ("output:out".to_owned(), Hash::sha256(inner.as_bytes()))
            }
            Self::Text(_) | Self::Fixed(..) => return Err(ContentAddressError::References),
        };
        let full = format!("{kind}:sha256:{}:{store}:{name}", inner.base16());
        Ok(StorePath::new(fold(&Hash::sha256(full.as_bytes())), name)?)
    }

    /// Whether `path` with all its `references` (itself included, if it refers to itself) is named by this address.
    /// Such a path needs no signature, once its content was checked.
    #[must_use]
    pub fn names(&self, store: &StoreDir, path: &StorePath, references: &BTreeSet<StorePath>) -> bool {
        let mut others = references.clone();
        let refers_to_itself = others.remove(path);
        self.path(store, path.name(), &others, refers_to_itself).as_ref() == Ok(path)
    }
}

/// `kind:<full path>:…:self`.
fn with_references(kind: &str, store: &StoreDir, references: &BTreeSet<StorePath>, itself: bool) -> String {
    let mut text = kind.to_owned();
    for reference in references {
        text.push(':');
        text.push_str(&store.join(reference));
    }
    if itself {
        text.push_str(":self");
    }
    text
}

/// Folds a SHA-256 into the twenty bytes of a hash part.
fn fold(hash: &Hash) -> StorePathHash {
    let mut folded = [0; 20];
    for (at, byte) in hash.as_bytes().iter().enumerate() {
        folded[at % 20] ^= byte;
    }
    StorePathHash::new(folded)
}

impl fmt::Display for ContentAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(hash) => write!(f, "text:{hash}"),
            Self::Fixed(method, hash) => write!(f, "fixed:{}{hash}", method.prefix()),
        }
    }
}

impl fmt::Debug for ContentAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixed_paths_are_those_of_nix() {
        let rows = include_str!("../tests/golden/fixed-paths.txt");
        let hashes = include_str!("../tests/golden/hashes.txt");
        let store = StoreDir::default();
        let mut count = 0;
        for row in rows.lines().filter(|row| !row.starts_with('#')) {
            let fields: Vec<&str> = row.split(' ').collect();
            let [method, algorithm, path] = fields[..] else { panic!("{row}") };
            let line = hashes.lines().find(|line| line.starts_with(algorithm)).unwrap();
            let base16 = line.split(' ').nth(1).unwrap();
            let prefix = if method == "recursive" { "r:" } else { "" };
            let address = ContentAddress::parse(&format!("fixed:{prefix}{algorithm}:{base16}")).unwrap();
            let path = store.parse(path).unwrap();
            assert_eq!(address.path(&store, path.name(), &BTreeSet::new(), false), Ok(path.clone()), "{row}");
            assert!(address.names(&store, &path, &BTreeSet::new()));
            count += 1;
        }
        assert_eq!(count, 8);
    }

    #[test]
    fn references_only_where_nix_has_them() {
        let store = StoreDir::default();
        let path = StorePath::parse("al7c1858nfm9rhsfa673drahrdhrxygc-single").unwrap();
        let some = BTreeSet::from([path]);
        let sha256 = Hash::sha256(b"");
        let sha1 = Hash::new(HashAlgorithm::Sha1, &[0; 20]).unwrap();
        let refused = Err(ContentAddressError::References);
        assert_eq!(ContentAddress::Text(sha256).path(&store, "a", &BTreeSet::new(), true), refused);
        assert!(ContentAddress::Text(sha256).path(&store, "a", &some, false).is_ok());
        assert!(ContentAddress::Fixed(FileMethod::Recursive, sha256).path(&store, "a", &some, true).is_ok());
        for (method, hash) in [(FileMethod::Flat, sha256), (FileMethod::Recursive, sha1), (FileMethod::Git, sha1)] {
            assert_eq!(ContentAddress::Fixed(method, hash).path(&store, "a", &some, false), refused);
        }
    }

    #[test]
    fn other_text_is_refused() {
        let sha1 = "sha1:89mdw2scmz2v4lbgim10j9ilg28myay2";
        for good in [format!("fixed:{sha1}"), format!("fixed:r:{sha1}"), format!("fixed:git:{sha1}")] {
            assert_eq!(ContentAddress::parse(&good).unwrap().to_string(), good);
        }
        assert_eq!(ContentAddress::parse(&format!("text:{sha1}")), Err(ContentAddressError::TextAlgorithm));
        assert_eq!(ContentAddress::parse(sha1), Err(ContentAddressError::Method));
        assert!(ContentAddress::parse(&format!("fixed:x:{sha1}")).is_err());
    }
}
