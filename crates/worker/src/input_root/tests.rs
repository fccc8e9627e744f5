//! Trees against a model: what is seen through the layers is what the tree says, whatever the base was.

use std::collections::{BTreeMap, HashMap};

use gf_digest::DigestFunction;
use gf_reapi::execution::{Directory, DirectoryNode, FileNode, SymlinkNode};
use proptest::prelude::*;
use prost::Message;
use tempfile::TempDir;

use super::*;
use crate::outputs::{Node, View};

/// What stands at a path. Folders are there by what is in them, or by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaf {
    File(u8),
    Program(u8),
    Link(u8),
    Folder,
}

type Model = BTreeMap<String, Leaf>;

fn leaf() -> impl Strategy<Value = Leaf> {
    prop_oneof![
        (0..3_u8).prop_map(Leaf::File),
        (0..3_u8).prop_map(Leaf::Program),
        (0..3_u8).prop_map(Leaf::Link),
        Just(Leaf::Folder)
    ]
}

/// Paths of few names, so that files meet folders of the same name.
fn model() -> impl Strategy<Value = Model> {
    let path = prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..4);
    let entries = prop::collection::vec((path, leaf()), 0..12);
    entries.prop_map(|entries| {
        let mut model = Model::new();
        for (path, leaf) in entries {
            let whole = path.join("/");
            let parents: Vec<String> = (1..path.len()).map(|length| path[..length].join("/")).collect();
            let is_blocked = parents.iter().any(|parent| model.get(parent).is_some_and(|leaf| *leaf != Leaf::Folder));
            if !is_blocked && !model.contains_key(&whole) {
                model.extend(parents.into_iter().map(|parent| (parent, Leaf::Folder)));
                model.insert(whole, leaf);
            }
        }
        model
    })
}

fn content(number: u8, is_executable: bool) -> Content {
    Content { digest: Digest::of(DigestFunction::Sha256, &[number]), is_executable }
}

/// The tree of a model, from the messages that a client would send.
fn tree(model: &Model) -> Tree {
    let mut folders = HashMap::new();
    let root_digest = folder(model, "", &mut folders);
    Tree::new(root_digest, folders).unwrap()
}

fn folder(model: &Model, at: &str, folders: &mut HashMap<Digest, Arc<Folder>>) -> Digest {
    let mut directory = Directory::default();
    for (path, leaf) in model {
        let Some(name) = path.strip_prefix(at).filter(|name| !name.contains('/')) else { continue };
        let name = name.to_owned();
        match leaf {
            Leaf::Folder => {
                let digest = Some(folder(model, &format!("{path}/"), folders).into());
                directory.directories.push(DirectoryNode { name, digest });
            }
            Leaf::Link(number) => {
                directory.symlinks.push(SymlinkNode { name, target: number.to_string(), node_properties: None });
            }
            Leaf::File(number) | Leaf::Program(number) => {
                let is_executable = matches!(leaf, Leaf::Program(_));
                let digest = Some(content(*number, is_executable).digest.into());
                directory.files.push(FileNode { name, digest, is_executable, node_properties: None });
            }
        }
    }
    let bytes = bytes::Bytes::from(directory.encode_to_vec());
    let digest = Digest::of(DigestFunction::Sha256, &bytes);
    folders.insert(digest, Arc::new(Folder::parse(digest, &bytes).unwrap()));
    digest
}

/// What is seen.
fn seen(view: &View, at: &str, model: &mut Model) {
    for name in view.names().unwrap() {
        let Some(node) = view.child(&name).unwrap() else { continue };
        let path = format!("{at}{}", name.to_str().unwrap());
        let leaf = match node {
            Node::Special => panic!("{path} is special"),
            Node::Link(link, _) => Leaf::Link(fs::read_link(link).unwrap().to_str().unwrap().parse().unwrap()),
            Node::File(file, found) => {
                let number = fs::read(&file).unwrap()[0];
                match std::os::unix::fs::PermissionsExt::mode(&found.permissions()) & 0o777 {
                    0o444 => Leaf::File(number),
                    0o555 => Leaf::Program(number),
                    mode => panic!("{path} has mode {mode:o}"),
                }
            }
            Node::Folder(below, _) => {
                seen(&below, &format!("{path}/"), model);
                Leaf::Folder
            }
        };
        model.insert(path, leaf);
    }
}

fn layout(dir: &TempDir) -> Layout {
    let trash = Trash::open(dir.path().join("trash")).unwrap();
    let blobs = LocalBlobs::open(dir.path().join("cache"), 1 << 30, None, &trash).unwrap();
    for (number, is_executable) in (0..3).flat_map(|number| [(number, false), (number, true)]) {
        blobs.put(content(number, is_executable), &[number]);
    }
    let (layout, wanted) = Layout::new(blobs.files(), Material::Links);
    drop(wanted);
    layout.is_unwanted.store(false, Ordering::Relaxed);
    layout
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn layers_show_the_tree_over_any_base(old in model(), new in model()) {
        let dir = tempfile::tempdir().unwrap();
        let layout = layout(&dir);
        let (old_tree, new_tree) = (tree(&old), tree(&new));
        let (base, above) = (dir.path().join("base"), dir.path().join("above"));
        layout.make(&old_tree, &old_tree.root, &base).unwrap();
        let (changes, cost) = difference(&old_tree, &new_tree, u64::MAX).unwrap();
        let top = layout.make_top(&above).unwrap();
        layout.apply(&new_tree, &changes, top.as_fd()).unwrap();

        let mut found = Model::new();
        seen(&View::of_layers(vec![above, base.clone()]), "", &mut found);
        prop_assert_eq!(&found, &new);
        let mut untouched = Model::new();
        seen(&View::of_layers(vec![base]), "", &mut untouched);
        prop_assert_eq!(&untouched, &old);
        if old == new {
            prop_assert_eq!(cost, 0);
        } else {
            prop_assert!(difference(&old_tree, &new_tree, cost - 1).is_none());
        }
    }
}

#[test]
fn folders_of_outputs_are_made_and_the_working_directory_must_be_there() {
    let model = Model::from(
        [("a", Leaf::Folder), ("a/f", Leaf::File(0)), ("l", Leaf::Link(0))].map(|(path, leaf)| (path.to_owned(), leaf)),
    );
    let tree = tree(&model);
    let path = |text: &str| InsidePath::parse("path", text).unwrap();
    let parents = |directory: &str, outputs: &[&str]| {
        let output_parents = outputs.iter().map(|text| path(text)).collect();
        let wanted = Wanted { root: tree.root_digest, working_directory: path(directory), output_parents };
        missing_parents(&tree, &wanted).map_err(|_| ())
    };
    assert_eq!(parents("", &["", "a"]), Ok(vec![]));
    assert_eq!(parents("a", &["a/b/c", "a/b/c", "x"]), Ok(vec![path("a/b/c"), path("x")]));
    assert_eq!(parents("", &["l/x", "a/f/x"]), Ok(vec![]), "what is in the way is the action's business");
    assert_eq!(parents("new", &["new/out"]), Ok(vec![path("new/out")]));
    assert_eq!(parents("new", &["newer"]), Err(()));
    assert_eq!(parents("a/f", &[]), Err(()));
    assert_eq!(parents("l", &[]), Err(()));
}

#[test]
fn a_file_that_has_too_many_names_is_copied() {
    let dir = tempfile::tempdir().unwrap();
    let full: layout::Link = |_, _, _, _| Err(rustix::io::Errno::MLINK);
    let layout = Layout { link: full, ..layout(&dir) };
    let model =
        Model::from([("f", Leaf::File(1)), ("p", Leaf::Program(2))].map(|(path, leaf)| (path.to_owned(), leaf)));
    let tree = tree(&model);
    let top = dir.path().join("top");
    layout.make(&tree, &tree.root, &top).unwrap();
    let mut found = Model::new();
    seen(&View::of_layers(vec![top.clone()]), "", &mut found);
    assert_eq!(found, model, "with the permissions of a link, which may not be written to either");
    let copied = fs::metadata(top.join("f")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::nlink(&copied), 1);
    assert_eq!(copied.modified().unwrap(), crate::local_blobs::file_time());
}

#[test]
fn many_folders_are_filled_and_nobody_goes_on_for_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let files = (0..200_u8).map(|number| (format!("d{}/e{number}/f", number % 7), Leaf::File(number % 3)));
    let mut model: Model = files.collect();
    for path in model.keys().cloned().collect::<Vec<_>>() {
        let ends = path.match_indices('/').map(|(at, _)| path[..at].to_owned());
        model.extend(ends.map(|folder| (folder, Leaf::Folder)));
    }
    let tree = tree(&model);
    let (top, unwanted) = (dir.path().join("top"), dir.path().join("unwanted"));
    let layout = layout(&dir);
    layout.is_unwanted.store(true, Ordering::Relaxed);
    assert!(layout.make(&tree, &tree.root, &unwanted).is_err());
    layout.is_unwanted.store(false, Ordering::Relaxed);
    layout.make(&tree, &tree.root, &top).unwrap();
    let mut found = Model::new();
    seen(&View::of_layers(vec![top]), "", &mut found);
    assert_eq!(found, model);
}
