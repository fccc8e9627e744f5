//! Cases 53 to 55: the forms of output directories, and what is told of their nodes.

use std::collections::HashSet;

use gf_digest::{Digest, DigestFunction};
use gf_reapi::execution::command::OutputDirectoryFormat as Format;
use gf_reapi::execution::{ActionResult, Directory, OutputFile, Tree};
use prost::Message;
use tonic::Code;

use crate::blob::Blob;
use crate::cases::cases;
use crate::execution::{listing, output_directory};
use crate::finding::{Checked, Finding, ensure, require};
use crate::job::Job;
use crate::probe::Probe;

cases! {
    "53-tree-only" => format(Format::TreeOnly),
    "53-directory-only" => format(Format::DirectoryOnly),
    "53-tree-and-directory" => format(Format::TreeAndDirectory),
    "53-tree-sorted-topologically" => sorted_topologically(),
    "53-directories-canonical" => canonical(),
    "54-tree-deterministic" => deterministic(),
    "55-unknown-property" => unknown_property(),
    "55-unix-mode" => unix_mode(),
    "55-mtime" => mtime(),
}

/// Makes a directory with two equal folders, one of which holds a third time what they hold.
const MAKE: &str = "mkdir -p d/a/same d/b/same d/b/sub && for f in d/a/same/f d/b/same/f d/top; do echo 1 >$f; done";

const MADE: [&str; 8] = ["a/", "a/same/", "a/same/f", "b/", "b/same/", "b/same/f", "b/sub/", "top"];

async fn format(probe: &mut Probe<'_>, format: Format) -> Checked {
    let mut job = probe.job(MAKE)?.outputs(&["d"]);
    job.command.output_directory_format = format.into();
    let result = probe.succeed(&job).await?;
    let directory = output_directory(&result, "d")?.clone();
    let forms = (directory.tree_digest.is_some(), directory.root_directory_digest.is_some());
    // A server without the other forms goes on with trees.
    ensure!(forms.0 || (forms.1 && format == Format::DirectoryOnly), "no tree comes where {format:?} was asked for");
    ensure!(forms != (true, true) || format != Format::TreeOnly, "a root directory comes where a tree was asked for");
    let mut root_of_tree = None;
    if directory.tree_digest.is_some() {
        let (_, tree) = probe.output_tree(&job, &result, "d").await?;
        expect_made(&tree, job.function)?;
        root_of_tree = tree.root.map(|root| job.blob(&root).wire());
    }
    if let Some(root) = &directory.root_directory_digest {
        ensure!(root_of_tree.is_none_or(|of_tree| of_tree == *root), "the root directory is not that of the tree");
        let root = root.to_digest(job.function).map_err(|error| Finding::Fail(error.to_string()))?;
        expect_made(&fetch(probe, root).await?, job.function)?;
    }
    Ok(match forms {
        (true, true) => "a tree and a root directory",
        (true, false) => "a tree",
        _ => "a root directory",
    }
    .into())
}

fn expect_made(tree: &Tree, function: DigestFunction) -> Checked<()> {
    let paths = listing(tree, function)?;
    ensure!(paths == MADE, "the directory has {paths:?}, not {MADE:?}");
    Ok(())
}

/// The directories below a root, each of which must be in the store, as a tree.
async fn fetch(probe: &Probe<'_>, root: Digest) -> Checked<Tree> {
    let mut directories = Vec::new();
    let mut wanted = vec![root];
    while let Some(digest) = wanted.pop() {
        let bytes = probe.content(digest.function(), &digest.into()).await?;
        let directory = Directory::decode(bytes.as_slice()).map_err(|error| Finding::Fail(error.to_string()))?;
        let below = directory.directories.iter().filter_map(|node| node.digest.as_ref());
        let below: Result<Vec<_>, _> = below.map(|below| below.to_digest(digest.function())).collect();
        wanted.extend(below.map_err(|error| Finding::Fail(error.to_string()))?);
        directories.push(directory);
        ensure!(directories.len() < 100, "the directory is larger than what the action made");
    }
    let mut directories = directories.into_iter();
    Ok(Tree { root: directories.next(), children: directories.collect() })
}

async fn sorted_topologically(probe: &mut Probe<'_>) -> Checked {
    let job = probe.job(MAKE)?.outputs(&["d"]);
    let result = probe.succeed(&job).await?;
    let (directory, tree) = probe.output_tree(&job, &result, "d").await?;
    expect_made(&tree, job.function)?;
    require!(directory.is_topologically_sorted, "the server does not say that its trees are sorted");
    let digest_of = |directory: &Directory| Blob::of(job.function, directory.encode_to_vec()).wire();
    let mut named = HashSet::new();
    for directory in tree.root.iter().chain(&tree.children) {
        if !named.is_empty() {
            let digest = digest_of(directory);
            ensure!(named.contains(digest.hash()), "a directory comes before those that name it");
        }
        named.extend(directory.directories.iter().flat_map(|node| &node.digest).map(|digest| digest.hash().to_owned()));
    }
    let distinct: HashSet<_> = tree.children.iter().map(|child| digest_of(child).hash().to_owned()).collect();
    ensure!(distinct.len() == tree.children.len(), "of {} directories some are equal", tree.children.len());
    let bytes =
        probe.content(job.function, directory.tree_digest.as_ref().unwrap_or(&digest_of(&<_>::default()))).await?;
    ensure!(bytes.first() == Some(&0x0a), "the root does not come first in the encoding");
    Ok(format!("{} directories, each once and after those that name it", tree.children.len()))
}

async fn canonical(probe: &mut Probe<'_>) -> Checked {
    let script = "mkdir d && cd d && for n in b a C 10 9 _ -x; do echo 1 >f$n; mkdir d$n; ln -s x l$n; done";
    let job = probe.job(script)?.outputs(&["d"]);
    let result = probe.succeed(&job).await?;
    let (_, tree) = probe.output_tree(&job, &result, "d").await?;
    let root = tree.root.unwrap_or_default();
    ensure!(root.files.len() == 7, "{} files, not 7", root.files.len());
    gf_reapi::check_directory(&root).map_err(|error| Finding::Fail(format!("an output directory: {error}")))?;
    Ok("sorted by bytes".into())
}

async fn deterministic(probe: &mut Probe<'_>) -> Checked {
    let made = |order: &str| format!("for n in {order}; do mkdir -p d/$n/s; echo $n >d/$n/f; ln -s f d/$n/l; done");
    let mut digests = Vec::new();
    for script in [made("a b c d"), format!("{}; touch d/a/f; sleep 0.01", made("d b a c"))] {
        let job: Job = probe.job(&script)?.outputs(&["d"]);
        let result = probe.succeed(&job).await?;
        let digest = output_directory(&result, "d")?.tree_digest.clone();
        digests.push(digest.ok_or_else(|| Finding::Fail("the output directory has no tree".into()))?);
    }
    ensure!(digests[0] == digests[1], "equal directories, made in another order, have two trees");
    Ok("one digest for equal directories".into())
}

async fn unknown_property(probe: &mut Probe<'_>) -> Checked {
    let mut job = probe.job("echo 1 >f")?.outputs(&["f"]);
    job.command.output_node_properties = vec!["gf-conformance-no-such-property".into()];
    let ended = probe.run(&job).await?;
    ended.expect_refused("a node property that nobody knows", &[Code::InvalidArgument])
}

/// The output file of an action that asks for a node property.
async fn output_with(probe: &mut Probe<'_>, property: &str, script: &str) -> Checked<OutputFile> {
    let mut job = probe.job(script)?.outputs(&["f"]);
    let execution = probe.session.capabilities()?.execution_capabilities.as_ref();
    let known = execution.is_some_and(|known| known.supported_node_properties.iter().any(|name| name == property));
    if !known {
        // What was never promised may be told or left out, but the action must not suffer.
        probe.succeed(&job).await.and_then(only_file)?;
        return Err(Finding::Skip(format!("the server does not advertise the node property {property}")));
    }
    job.command.output_node_properties = vec![property.into()];
    probe.succeed(&job).await.and_then(only_file)
}

fn only_file(result: ActionResult) -> Checked<OutputFile> {
    result.output_files.into_iter().next().ok_or_else(|| Finding::Fail("the result has no output file".into()))
}

async fn unix_mode(probe: &mut Probe<'_>) -> Checked {
    let file = output_with(probe, "unix_mode", "echo 1 >f; chmod 750 f").await?;
    let mode = file.node_properties.and_then(|properties| properties.unix_mode);
    ensure!(mode.is_some_and(|mode| mode & 0o777 == 0o750), "the mode 750 is told as {mode:?}");
    Ok("750".into())
}

async fn mtime(probe: &mut Probe<'_>) -> Checked {
    let file = output_with(probe, "mtime", "echo 1 >f; touch -d @1000000000 f").await?;
    let mtime = file.node_properties.and_then(|properties| properties.mtime);
    ensure!(
        mtime.as_ref().is_some_and(|time| time.seconds == 1_000_000_000),
        "the time 1000000000 is told as {mtime:?}"
    );
    Ok("1000000000".into())
}
