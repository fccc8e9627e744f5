//! The canonical form of a directory, which is also what makes it safe to lay out on a disk.

use thiserror::Error;

use crate::execution::Directory;

/// Why a directory is not in canonical form.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DirectoryError {
    /// A name that would lead elsewhere, or nowhere.
    #[error(
        "{0:?} cannot be the name of an entry: it must not be empty, `.`, `..`, longer than 255 bytes, or hold `/` or NUL"
    )]
    Name(String),
    /// One of the lists is not sorted.
    #[error("{1:?} does not come after {0:?}: entries must be sorted by name")]
    Order(String, String),
    /// The same name in two of the lists.
    #[error("{0:?} is the name of two entries")]
    Duplicate(String),
    /// A link that leads nowhere.
    #[error("the symbolic link {0:?} has no target, one with NUL in it, or one of more than 4095 bytes")]
    Target(String),
}

/// The longest name that Linux file systems take, in bytes.
const MAX_NAME_BYTES: usize = 255;

/// The longest target that Linux takes, in bytes.
const MAX_TARGET_BYTES: usize = 4095;

/// Checks names, their order, and that each occurs once. Digests are not looked at.
///
/// # Errors
/// [`DirectoryError`] for the first thing that is wrong.
pub fn check_directory(directory: &Directory) -> Result<(), DirectoryError> {
    let files: Vec<&str> = directory.files.iter().map(|node| node.name.as_str()).collect();
    let directories: Vec<&str> = directory.directories.iter().map(|node| node.name.as_str()).collect();
    let symlinks: Vec<&str> = directory.symlinks.iter().map(|node| node.name.as_str()).collect();
    for list in [&files, &directories, &symlinks] {
        check_list(list)?;
    }
    for link in &directory.symlinks {
        if link.target.is_empty() || link.target.len() > MAX_TARGET_BYTES || link.target.contains('\0') {
            return Err(DirectoryError::Target(link.name.clone()));
        }
    }
    for (one, other) in [(&files, &directories), (&files, &symlinks), (&directories, &symlinks)] {
        if let Some(name) = first_common(one, other) {
            return Err(DirectoryError::Duplicate(name.to_owned()));
        }
    }
    Ok(())
}

fn check_list(names: &[&str]) -> Result<(), DirectoryError> {
    if let Some(name) = names.iter().find(|name| !is_name(name)) {
        return Err(DirectoryError::Name((*name).to_owned()));
    }
    for pair in names.windows(2) {
        let [before, after] = pair else { continue };
        if before == after {
            return Err(DirectoryError::Duplicate((*before).to_owned()));
        }
        if before > after {
            return Err(DirectoryError::Order((*before).to_owned(), (*after).to_owned()));
        }
    }
    Ok(())
}

fn is_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && name.len() <= MAX_NAME_BYTES && !name.contains(['/', '\0'])
}

/// Both lists are sorted.
fn first_common<'a>(one: &[&'a str], other: &[&'a str]) -> Option<&'a str> {
    let (shorter, longer) = if one.len() < other.len() { (one, other) } else { (other, one) };
    shorter.iter().copied().find(|name| longer.binary_search(name).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::execution::{DirectoryNode, FileNode, SymlinkNode};

    fn directory(files: &[&str], directories: &[&str], symlinks: &[(&str, &str)]) -> Directory {
        Directory {
            files: files.iter().map(|name| FileNode { name: (*name).to_owned(), ..FileNode::default() }).collect(),
            directories: directories
                .iter()
                .map(|name| DirectoryNode { name: (*name).to_owned(), digest: None })
                .collect(),
            symlinks: symlinks
                .iter()
                .map(|(name, target)| SymlinkNode {
                    name: (*name).to_owned(),
                    target: (*target).to_owned(),
                    node_properties: None,
                })
                .collect(),
            node_properties: None,
        }
    }

    #[test]
    fn what_is_canonical() {
        let check = |files: &[&str], directories: &[&str], symlinks: &[(&str, &str)]| {
            check_directory(&directory(files, directories, symlinks))
        };
        assert_eq!(check(&[], &[], &[]), Ok(()));
        assert_eq!(check(&["a", "b"], &["A", "c"], &[("d", "../x")]), Ok(()));
        for name in ["", ".", "..", "a/b", "a\0", &"x".repeat(256)] {
            let refused = Err(DirectoryError::Name(name.to_owned()));
            assert_eq!(check(&[name], &[], &[]), refused);
            assert_eq!(check(&[], &[name], &[]), refused);
            assert_eq!(check(&[], &[], &[(name, "t")]), refused);
        }
        assert_eq!(check(&["b", "a"], &[], &[]), Err(DirectoryError::Order("b".to_owned(), "a".to_owned())));
        let twice = Err(DirectoryError::Duplicate("a".to_owned()));
        assert_eq!(check(&["a", "a"], &[], &[]), twice);
        assert_eq!(check(&["a"], &["a"], &[]), twice);
        assert_eq!(check(&["a"], &[], &[("a", "t")]), twice);
        assert_eq!(check(&[], &["a", "b"], &[("a", "t")]), twice);
        for target in ["", "a\0b", &"x".repeat(4096)] {
            assert_eq!(check(&[], &[], &[("l", target)]), Err(DirectoryError::Target("l".to_owned())));
        }
    }
}
