//! Case 26: GetTree.

use std::collections::HashSet;

use gf_digest::{Digest, DigestFunction::Sha256};
use gf_reapi::execution::{Directory, DirectoryNode, FileNode, GetTreeRequest, GetTreeResponse};
use tonic::{Code, Status};

use crate::blob::Blob;
use crate::cases::cases;
use crate::finding::{CALLER_AT_FAULT, Checked, Finding, describe, ensure, refused, succeeds};
use crate::probe::{Probe, collect};

cases! {
    "26-tree-whole" => tree_whole(),
    "26-tree-root-missing" => tree_root_missing(),
    "26-tree-child-missing" => tree_child_missing(),
    "26-tree-page-size" => tree_page_size(),
    "26-tree-page-token" => tree_page_token(),
    "26-tree-page-token-unknown" => tree_page_token_unknown(),
    "26-tree-many-paths" => tree_many_paths(),
    "26-tree-large" => tree_large(),
    "26-tree-of-no-directory" => tree_of_no_directory(),
}

/// No case makes a tree that needs more pages.
const MAX_PAGES: usize = 20_000;

async fn get_tree(
    probe: &Probe<'_>,
    root: Digest,
    page_size: i32,
    page_token: &str,
) -> Result<Vec<GetTreeResponse>, Status> {
    let request = GetTreeRequest {
        instance_name: probe.instance(),
        root_digest: Some(root.into()),
        page_size,
        page_token: page_token.to_owned(),
        digest_function: Sha256.number(),
    };
    collect(probe.storage().get_tree(request).await?.into_inner(), MAX_PAGES).await
}

/// The directories of some pages, by the digests of their encodings.
fn digests(pages: &[GetTreeResponse]) -> HashSet<Digest> {
    pages.iter().flat_map(|page| &page.directories).map(|directory| Blob::message(directory).digest).collect()
}

fn count(pages: &[GetTreeResponse]) -> usize {
    pages.iter().map(|page| page.directories.len()).sum()
}

/// A directory with one file of a name that nobody used and the given subdirectories.
fn directory(probe: &mut Probe<'_>, children: &[(String, &Blob)]) -> Blob {
    let name = probe.uuid();
    let digest = Some(Digest::empty(Sha256).into());
    let files = vec![FileNode { name, digest, is_executable: false, node_properties: None }];
    let nodes = children.iter().map(|(name, child)| DirectoryNode { name: name.clone(), digest: Some(child.wire()) });
    Blob::message(&Directory { files, directories: nodes.collect(), symlinks: Vec::new(), node_properties: None })
}

/// Three levels with `width` directories in the middle one and as many in the last; the root comes last.
fn three_levels(probe: &mut Probe<'_>, width: usize) -> Vec<Blob> {
    let leaves: Vec<Blob> = (0..width).map(|_| directory(probe, &[])).collect();
    let middle: Vec<Blob> = leaves.iter().map(|leaf| directory(probe, &[("leaf".into(), leaf)])).collect();
    let children: Vec<_> = middle.iter().enumerate().map(|(n, child)| (format!("{n:05}"), child)).collect();
    let root = directory(probe, &children);
    leaves.into_iter().chain(middle.clone()).chain([root]).collect()
}

fn root(directories: &[Blob]) -> Digest {
    directories.last().map_or_else(|| Digest::empty(Sha256), |blob| blob.digest)
}

fn all(directories: &[Blob]) -> HashSet<Digest> {
    directories.iter().map(|blob| blob.digest).collect()
}

async fn tree_whole(probe: &mut Probe<'_>) -> Checked {
    let tree = three_levels(probe, 10);
    probe.upload_all(&tree).await?;
    let pages = succeeds("GetTree", get_tree(probe, root(&tree), 0, "").await)?;
    ensure!(digests(&pages) == all(&tree), "of {} directories {} came", tree.len(), digests(&pages).len());
    ensure!(pages.last().is_some_and(|page| page.next_page_token.is_empty()), "the last page has a token");
    Ok(format!("{} directories in {} pages", count(&pages), pages.len()))
}

async fn tree_root_missing(probe: &mut Probe<'_>) -> Checked {
    let absent = directory(probe, &[]);
    refused("a tree whose root is absent", get_tree(probe, absent.digest, 0, "").await, &[Code::NotFound])
}

async fn tree_child_missing(probe: &mut Probe<'_>) -> Checked {
    let mut tree = three_levels(probe, 3);
    // The first leaf and the second directory of the middle level, which takes its own leaf with it.
    tree.remove(4);
    tree.remove(0);
    probe.upload_all(&tree).await?;
    let pages = succeeds("GetTree with directories missing", get_tree(probe, root(&tree), 0, "").await)?;
    let (came, present) = (digests(&pages), all(&tree));
    ensure!(came.is_subset(&present), "directories came that are not in the tree");
    // The leaf below the missing directory is present, but not reached.
    ensure!(
        came.len() == present.len() - 1,
        "{} directories came of the {} that are reached",
        came.len(),
        present.len() - 1
    );
    Ok(format!("the {} directories that are present", came.len()))
}

async fn tree_page_size(probe: &mut Probe<'_>) -> Checked {
    let tree = three_levels(probe, 10);
    probe.upload_all(&tree).await?;
    let pages = succeeds("GetTree with a page size of 4", get_tree(probe, root(&tree), 4, "").await)?;
    let largest = pages.iter().map(|page| page.directories.len()).max().unwrap_or_default();
    ensure!(largest <= 4, "a page has {largest} directories, where 4 were asked for");
    // A server may end the stream after a page, and expects the client to come back with the token.
    let mut came = digests(&pages);
    let mut calls = 1;
    let mut token = pages.last().map(|page| page.next_page_token.clone()).unwrap_or_default();
    while !token.is_empty() && calls < MAX_PAGES {
        let pages = succeeds("GetTree with a token", get_tree(probe, root(&tree), 4, &token).await)?;
        came.extend(digests(&pages));
        calls += 1;
        token = pages.last().map(|page| page.next_page_token.clone()).unwrap_or_default();
    }
    ensure!(came == all(&tree), "of {} directories {} came", tree.len(), came.len());
    Ok(format!("at most {largest} directories in a page, {calls} calls"))
}

async fn tree_page_token(probe: &mut Probe<'_>) -> Checked {
    let tree = three_levels(probe, 10);
    probe.upload_all(&tree).await?;
    let pages = succeeds("GetTree", get_tree(probe, root(&tree), 3, "").await)?;
    let tokens: Vec<_> = pages.iter().map(|page| page.next_page_token.clone()).collect();
    if tokens.iter().all(String::is_empty) {
        ensure!(digests(&pages) == all(&tree), "of {} directories {} came", tree.len(), digests(&pages).len());
        return Err(Finding::Skip("the server sends the whole tree without a token".into()));
    }
    for (page, token) in tokens.iter().enumerate().filter(|(_, token)| !token.is_empty()) {
        let what = format!("going on after page {page}");
        let rest = succeeds(&what, get_tree(probe, root(&tree), 3, token).await)?;
        let mut came = digests(&pages[..=page]);
        came.extend(digests(&rest));
        let ends_early = rest.last().is_some_and(|page| !page.next_page_token.is_empty());
        ensure!(came == all(&tree) || ends_early, "{what}: {} of {} directories came", came.len(), tree.len());
        ensure!(count(&rest) < tree.len(), "{what}: the whole tree came again");
    }
    Ok(format!("went on from each of {} tokens", tokens.iter().filter(|token| !token.is_empty()).count()))
}

async fn tree_page_token_unknown(probe: &mut Probe<'_>) -> Checked {
    let tree = three_levels(probe, 3);
    probe.upload_all(&tree).await?;
    let answer = get_tree(probe, root(&tree), 3, "a token that no server gave").await;
    match answer {
        Ok(_) => Ok("ignored".into()),
        Err(status) if CALLER_AT_FAULT.contains(&status.code()) || status.code() == Code::NotFound => {
            Ok(describe(&status))
        }
        Err(status) => Err(Finding::Fail(format!("a page token that no server gave: {}", describe(&status)))),
    }
}

async fn tree_many_paths(probe: &mut Probe<'_>) -> Checked {
    // Thirty levels, each naming the next one twice: 31 directories on a billion paths.
    let mut levels = vec![directory(probe, &[])];
    for _ in 0..30 {
        if let Some(below) = levels.last().cloned() {
            let next = directory(probe, &[("a".into(), &below), ("b".into(), &below)]);
            levels.push(next);
        }
    }
    probe.upload_all(&levels).await?;
    let pages = succeeds("GetTree of 31 directories on 2^30 paths", get_tree(probe, root(&levels), 0, "").await)?;
    ensure!(digests(&pages) == all(&levels), "of 31 directories {} came", digests(&pages).len());
    Ok(format!("{} directories for 31 on 2^30 paths", count(&pages)))
}

async fn tree_large(probe: &mut Probe<'_>) -> Checked {
    // 3,000 directories of 2 KiB each: 6 MiB, more than one message holds.
    let mut tree: Vec<Blob> = Vec::new();
    for _ in 0..3000 {
        let names = (0..20).map(|_| probe.uuid());
        let digest = Some(Digest::empty(Sha256).into());
        let files =
            names.map(|name| FileNode { name, digest: digest.clone(), is_executable: true, node_properties: None });
        let mut files: Vec<_> = files.collect();
        files.sort_by(|a, b| a.name.cmp(&b.name));
        tree.push(Blob::message(&Directory { files, ..Directory::default() }));
    }
    let children: Vec<_> = tree.iter().enumerate().map(|(n, child)| (format!("{n:05}"), child)).collect();
    let root_directory = directory(probe, &children);
    tree.push(root_directory);
    probe.upload_all(&tree).await?;
    // The client takes messages of 4 MiB, as every client does by default.
    let mut pages = succeeds("GetTree of more than 4 MiB", get_tree(probe, root(&tree), 0, "").await)?;
    let mut calls = 1;
    while let Some(token) = pages.last().map(|page| page.next_page_token.clone()).filter(|token| !token.is_empty()) {
        pages.extend(succeeds("GetTree with a token", get_tree(probe, root(&tree), 0, &token).await)?);
        calls += 1;
        ensure!(calls < 1000, "the tree does not end after {calls} calls");
    }
    ensure!(digests(&pages) == all(&tree), "of {} directories {} came", tree.len(), digests(&pages).len());
    Ok(format!("{} directories in {} pages and {calls} calls", count(&pages), pages.len()))
}

async fn tree_of_no_directory(probe: &mut Probe<'_>) -> Checked {
    let blob = Blob::of(Sha256, [&b"\xff\xff\xff this is no directory "[..], probe.uuid().as_bytes()].concat());
    probe.upload(&blob).await?;
    match get_tree(probe, blob.digest, 0, "").await {
        Ok(pages) => {
            ensure!(count(&pages) == 0, "{} directories in a blob that is none", count(&pages));
            Ok("OK without directories".into())
        }
        Err(status) if CALLER_AT_FAULT.contains(&status.code()) || status.code() == Code::NotFound => {
            Ok(describe(&status))
        }
        Err(status) => Err(Finding::Fail(format!("a root that is no directory: {}", describe(&status)))),
    }
}
