use gf_digest::Digest;

/// The version of the form below; another one is refused.
const VERSION: &str = "1";

/// Characters of the root's hash in a token: enough to notice that it was taken from another tree.
const ROOT_CHARACTERS: usize = 16;

/// Where a page begins: the position of its first directory in the walk below `root`.
///
/// `1.<position>.<start of the root's hash>`. Nothing is kept on the server, so that any page can be asked for at any
/// time; the walk begins anew and passes over what came before.
pub(super) fn write(root: Digest, position: usize) -> String {
    format!("{VERSION}.{position}.{}", root_mark(&root))
}

/// The position in a token, if it belongs to this root.
pub(super) fn read(root: Digest, token: &str) -> Option<usize> {
    let mut parts = token.split('.');
    let (version, position, mark) = (parts.next()?, parts.next()?, parts.next()?);
    if version != VERSION || mark != root_mark(&root) || parts.next().is_some() {
        return None;
    }
    position.parse().ok()
}

fn root_mark(root: &Digest) -> String {
    let mut mark = root.hash_hex().to_string();
    mark.truncate(ROOT_CHARACTERS);
    mark
}

#[cfg(test)]
mod tests {
    use gf_digest::DigestFunction;

    use super::*;

    #[test]
    fn only_own_tokens_are_read() {
        let root = Digest::of(DigestFunction::Sha256, b"root");
        assert_eq!(read(root, &write(root, 17)), Some(17));
        let other = Digest::of(DigestFunction::Sha256, b"other");
        assert_eq!(read(other, &write(root, 17)), None);
        for wrong in ["", "1", "1.2", "2.0.4813494d137e1631", "1.-1.4813494d137e1631", "1.2.4813494d137e1631.x"] {
            assert_eq!(read(root, wrong), None, "{wrong}");
        }
    }
}
