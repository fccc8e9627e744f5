use gf_blobstore::{Encoding, NewBlob};
use gf_digest::{DigestFunction, InstanceName};
use gf_reapi::execution::{Directory, DirectoryNode, FileNode};
use gf_tenancy::{Access, AccessConfig, Principal, TenantConfig, TenantName};
use gf_testkit::MemoryBlobStore;
use prost::Message;

use super::*;

fn grant() -> Authorized<CasRead> {
    let tenant =
        TenantConfig { name: TenantName::new("default").unwrap(), instances: vec![InstanceName::new("").unwrap()] };
    let access = Access::new(AccessConfig { tenants: vec![tenant], token: None, anonymous_read: true }).unwrap();
    access.authorize(Principal::Anonymous, &InstanceName::new("").unwrap()).unwrap()
}

struct Forest {
    store: MemoryBlobStore,
    grant: Authorized<CasRead>,
}

impl Forest {
    fn new() -> Self {
        Self { store: MemoryBlobStore::default(), grant: grant() }
    }

    async fn put(&self, bytes: Vec<u8>) -> Digest {
        let digest = Digest::of(DigestFunction::Sha256, &bytes);
        let blob = NewBlob { digest, bytes: bytes.into(), encoding: Encoding::Identity };
        self.store.write_batch(owner(&self.grant), vec![blob]).await.remove(0).unwrap();
        digest
    }

    /// A directory with a file of this name and these directories in it.
    async fn directory(&self, name: &str, children: &[Digest]) -> Digest {
        self.put(directory(name, children).encode_to_vec()).await
    }

    fn walk(&self, root: Digest, page_size: i32, token: &str) -> Result<TreeWalk, TreeError> {
        TreeWalk::new(Arc::new(self.store.clone()), &self.grant, root, page_size, token)
    }

    async fn pages(&self, root: Digest, page_size: i32, token: &str) -> Result<Vec<Page>, TreeError> {
        let mut walk = self.walk(root, page_size, token)?;
        let mut pages = Vec::new();
        while let Some(page) = walk.next_page().await? {
            pages.push(page);
        }
        Ok(pages)
    }
}

fn directory(name: &str, children: &[Digest]) -> Directory {
    let empty = Digest::empty(DigestFunction::Sha256);
    Directory {
        files: vec![FileNode { name: name.to_owned(), digest: Some(empty.into()), ..FileNode::default() }],
        directories: children
            .iter()
            .enumerate()
            .map(|(at, child)| DirectoryNode { name: at.to_string(), digest: Some(child.into()) })
            .collect(),
        ..Directory::default()
    }
}

fn names(pages: &[Page]) -> Vec<String> {
    let directories = pages.iter().flat_map(|page| &page.directories);
    directories.map(|bytes| Directory::decode(bytes.clone()).unwrap().files.remove(0).name).collect()
}

#[tokio::test]
async fn a_tree_of_2_to_the_30_paths_ends() {
    let forest = Forest::new();
    let mut top = forest.directory("leaf", &[]).await;
    for level in 0..30 {
        top = forest.directory(&level.to_string(), &[top, top]).await;
    }
    let pages = forest.pages(top, 0, "").await.unwrap();
    assert_eq!(names(&pages).len(), 31);
    assert_eq!(pages.len(), 1);
    assert_eq!(pages[0].next_page_token, None);
}

#[tokio::test]
async fn any_page_can_be_asked_for() {
    let forest = Forest::new();
    let mut leaves = Vec::new();
    for leaf in 0..5 {
        leaves.push(forest.directory(&format!("leaf{leaf}"), &[]).await);
    }
    let left = forest.directory("left", &leaves[..3]).await;
    let right = forest.directory("right", &leaves[2..]).await;
    let root = forest.directory("root", &[left, right]).await;
    let all = forest.pages(root, 3, "").await.unwrap();
    assert_eq!(names(&all), ["root", "left", "right", "leaf0", "leaf1", "leaf2", "leaf3", "leaf4"]);
    assert_eq!(all.iter().map(|page| page.directories.len()).collect::<Vec<_>>(), [3, 3, 2]);
    for (at, page) in all.iter().enumerate() {
        let Some(token) = &page.next_page_token else { continue };
        assert_eq!(forest.pages(root, 3, token).await.unwrap(), all[at + 1..]);
    }
    let token = all[0].next_page_token.as_deref().unwrap();
    assert!(matches!(forest.walk(left, 3, token), Err(TreeError::PageToken)));
    let beyond = forest.pages(root, 3, &page_token::write(root, 9)).await;
    assert!(matches!(beyond, Err(TreeError::PageToken)));
    assert!(matches!(forest.walk(root, -1, ""), Err(TreeError::PageSize(-1))));
}

#[tokio::test]
async fn only_the_root_must_be_there() {
    let forest = Forest::new();
    let missing = Digest::of(DigestFunction::Sha256, b"missing");
    let child = forest.directory("child", &[]).await;
    let root = forest.directory("root", &[missing, child]).await;
    assert_eq!(names(&forest.pages(root, 0, "").await.unwrap()), ["root", "child"]);
    assert!(matches!(forest.pages(missing, 0, "").await, Err(TreeError::RootMissing(_))));
    let empty = forest.pages(Digest::empty(DigestFunction::Sha256), 0, "").await.unwrap();
    assert_eq!(empty, [Page { directories: vec![Bytes::new()], next_page_token: None }]);
}

#[tokio::test]
async fn what_is_no_directory_is_refused() {
    let forest = Forest::new();
    let text = forest.put(b"this is text".to_vec()).await;
    assert!(matches!(forest.pages(text, 0, "").await, Err(TreeError::Malformed { .. })));
    forest.store.set_failing(true);
    let failed = forest.pages(text, 0, "").await.unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::Unavailable);
}

#[tokio::test]
async fn pages_stay_below_the_message_limit() {
    let forest = Forest::new();
    let mut children = Vec::new();
    for child in 0..5 {
        children.push(forest.directory(&format!("{child}{}", "x".repeat(1_500_000)), &[]).await);
    }
    let root = forest.directory("root", &children).await;
    let pages = forest.pages(root, 0, "").await.unwrap();
    assert_eq!(pages.iter().map(|page| page.directories.len()).collect::<Vec<_>>(), [3, 2, 1]);
    let large = forest.directory(&"x".repeat(4_000_000), &[]).await;
    let root = forest.directory("root", &[large]).await;
    assert!(matches!(forest.pages(root, 0, "").await, Err(TreeError::DirectoryTooLarge(_))));
}
