use super::*;
use crate::key::PublicKey;

/// Made by `nix copy --to 'file://…?compression=C&secret-key=…'`; 2.8.0 and 2.34.8 wrote the same bytes for all but the
/// two of `ca` (those are of 2.34.8). The paths: a tree and files added to the store, a derivation with references and
/// itself among them, fixed outputs under sha1 and sha512, texts, content-addressed outputs that refer to themselves.
const GOLDEN: [&str; 15] = [
    include_str!("../../tests/golden/narinfo/a-1.2-none.narinfo"),
    include_str!("../../tests/golden/narinfo/ca-none.narinfo"),
    include_str!("../../tests/golden/narinfo/ca2-none.narinfo"),
    include_str!("../../tests/golden/narinfo/flat.txt-none.narinfo"),
    include_str!("../../tests/golden/narinfo/fod-none.narinfo"),
    include_str!("../../tests/golden/narinfo/fodr-none.narinfo"),
    include_str!("../../tests/golden/narinfo/note.txt-none.narinfo"),
    include_str!("../../tests/golden/narinfo/note2.txt-none.narinfo"),
    include_str!("../../tests/golden/narinfo/self-none.narinfo"),
    include_str!("../../tests/golden/narinfo/self-xz.narinfo"),
    include_str!("../../tests/golden/narinfo/self-zstd.narinfo"),
    include_str!("../../tests/golden/narinfo/single-none.narinfo"),
    include_str!("../../tests/golden/narinfo/tree-1.0-none.narinfo"),
    include_str!("../../tests/golden/narinfo/tree-1.0-xz.narinfo"),
    include_str!("../../tests/golden/narinfo/tree-1.0-zstd.narinfo"),
];

const SELF: &str = GOLDEN[8];

fn parse(text: &str) -> Result<NarInfo, NarInfoError> {
    NarInfo::parse(&StoreDir::default(), text.as_bytes())
}

#[test]
fn narinfos_of_nix_round_trip_byte_for_byte() {
    for text in GOLDEN {
        assert_eq!(parse(text).unwrap().format(&StoreDir::default()), text);
    }
}

#[test]
fn signatures_of_nix_verify_and_ours_are_the_same() {
    let store = StoreDir::default();
    let secret = SecretKey::parse(include_str!("../../tests/golden/secret-key")).unwrap();
    let public = [PublicKey::parse(include_str!("../../tests/golden/public-key")).unwrap()];
    for text in GOLDEN {
        let mut info = parse(text).unwrap();
        assert!(info.signatures.verified_by(info.fingerprint(&store).as_bytes(), &public).is_some(), "{text}");
        let of_nix = std::mem::take(&mut info.signatures);
        assert!(info.signatures.verified_by(info.fingerprint(&store).as_bytes(), &public).is_none());
        info.sign(&store, &secret).unwrap();
        assert_eq!(info.signatures, of_nix);
        info.nar_size += 1;
        assert!(info.signatures.verified_by(info.fingerprint(&store).as_bytes(), &public).is_none());
    }
}

#[test]
fn content_addresses_of_nix_give_their_paths() {
    let store = StoreDir::default();
    let mut count = 0;
    for text in GOLDEN {
        let mut info = parse(text).unwrap();
        assert_eq!(info.is_content_addressed(&store), text.contains("\nCA: "), "{text}");
        count += usize::from(info.is_content_addressed(&store));
        info.store_path = StorePath::new(info.store_path.hash(), "other").unwrap();
        assert!(!info.is_content_addressed(&store));
    }
    assert_eq!(count, 11);
}

#[test]
fn fields_are_read() {
    let info = parse(SELF).unwrap();
    assert_eq!(info.store_path.name(), "self");
    assert_eq!(info.references.iter().map(StorePath::name).collect::<Vec<_>>(), ["note2.txt", "self", "a-1.2"]);
    assert_eq!((info.nar_size, info.file_size, info.compression), (272, Some(272), Compression::None));
    assert_eq!(info.deriver.unwrap().name(), "self.drv");
    let fingerprint = parse(GOLDEN[12]).unwrap().fingerprint(&StoreDir::default());
    let expected = "1;/nix/store/2s4rw9nqymidjbnrk72ccxyn6yxcjdf4-tree-1.0;\
                    sha256:0ds0gbqsfgm7ngqwhrm7xq30xs3ai9cmd1697s0v2mihl6xni3z0;2568;";
    assert_eq!(fingerprint, expected);
}

/// A narinfo with one line replaced, or without it.
fn with(key: &str, line: &str) -> Result<NarInfo, NarInfoError> {
    let prefix = format!("{key}: ");
    let replace = |old: &str| if old.starts_with(&prefix) { line.to_owned() } else { format!("{old}\n") };
    let text: String = SELF.lines().map(replace).collect();
    assert_ne!(text, SELF, "{key}");
    parse(&text)
}

#[test]
fn what_nix_tolerates_is_read_as_nix_does() {
    assert_eq!(with("Compression", "").unwrap().compression, Compression::Bzip2);
    assert_eq!(with("Compression", "Compression: \n").unwrap().compression, Compression::Bzip2);
    assert_eq!(with("Deriver", "Deriver: unknown-deriver\n").unwrap().deriver, None);
    assert_eq!(with("Sig", "").unwrap().signatures.len(), 0);
    assert_eq!(with("FileSize", "Provenance: {\"a\": 1}\n").unwrap().file_size, None);
    assert_eq!(with("References", "").unwrap().references.len(), 0);
    let attic = with("Deriver", "System: x86_64-linux\n").unwrap();
    assert_eq!(attic.system.as_ref().map(SystemName::as_str), Some("x86_64-linux"));
    assert!(attic.format(&StoreDir::default()).contains("\nSystem: x86_64-linux\nSig: "));
}

#[test]
fn the_rest_is_refused() {
    use NarInfoError as E;
    assert_eq!(parse(SELF.trim_end()), Err(E::CutShort));
    assert_eq!(parse(""), Err(E::CutShort));
    assert_eq!(parse(&SELF.replace('\n', "\r\n")), Err(E::ControlCharacter(1)));
    assert_eq!(parse(&format!("{SELF}\n")), Err(E::Line(11)));
    assert_eq!(parse(&format!("{SELF}NarSize: 272\n")), Err(E::Duplicate("NarSize")));
    assert_eq!(parse(&"x".repeat(NarInfo::MAX_BYTES + 1)), Err(E::TooLong(NarInfo::MAX_BYTES + 1)));
    assert_eq!(with("References", "References:\n"), Err(E::Line(8)));
    assert_eq!(with("URL", "URL: \n"), Err(E::Missing("URL")));
    assert_eq!(with("URL", "URL: a b\n"), Err(E::Url));
    assert_eq!(NarUrl::new("nar/a.nar\nSig: a:b"), Err(E::Url));
    assert_eq!(SystemName::new("x86_64-linux\nCA: x"), Err(E::System));
    assert_eq!(with("Deriver", "System: a b\n"), Err(E::System));
    assert_eq!(with("Compression", "Compression: zip\n"), Err(E::Compression));
    assert_eq!(with("Deriver", "Deriver: \n"), Err(E::Empty("Deriver")));
    for bad in ["0", "-1", "+1", "01", "1 ", "99999999999999999999"] {
        assert_eq!(with("NarSize", &format!("NarSize: {bad}\n")), Err(E::Number("NarSize")), "{bad}");
    }
    for key in ["StorePath", "URL", "NarHash", "NarSize"] {
        assert!(matches!(with(key, ""), Err(E::Missing(missing)) if missing == key));
    }
    assert!(matches!(with("StorePath", "StorePath: /gnu/store/x\n"), Err(E::StorePath("StorePath", _))));
    assert!(matches!(with("References", "References: /nix/store/x\n"), Err(E::StorePath("References", _))));
    assert!(matches!(with("NarHash", "NarHash: sha1:89mdw2scmz2v4lbgim10j9ilg28myay2\n"), Err(E::Hash("NarHash", _))));
    assert!(matches!(with("Sig", "Sig: golden-1:AAAA\n"), Err(E::Signature(_))));
    assert!(matches!(parse(&format!("{SELF}CA: fixed:x\n")), Err(E::ContentAddress(_))));
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
        let _ = NarInfo::parse(&StoreDir::default(), &bytes);
    }

    /// What was read from a damaged narinfo is written so that it reads the same.
    #[test]
    fn damaged_narinfos_are_refused_or_round_trip(which in 0..GOLDEN.len(), at: proptest::sample::Index, byte in 9..127_u8) {
        let mut bytes = GOLDEN[which].as_bytes().to_vec();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(info) = NarInfo::parse(&StoreDir::default(), &bytes) {
            assert_eq!(parse(&info.format(&StoreDir::default())), Ok(info));
        }
    }
}
