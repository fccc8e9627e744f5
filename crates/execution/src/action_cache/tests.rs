mod removal;

use gf_blobstore::{Encoding, NewBlob};
use gf_digest::InstanceName;
use gf_reapi::execution::{Directory, DirectoryNode, FileNode, OutputDirectory, OutputFile, Tree};
use gf_tenancy::{Access, AccessConfig, InstancePermission, Principal, TenantConfig, TenantName};
use gf_testkit::MemoryBlobStore;

use super::*;

const FUNCTION: DigestFunction = DigestFunction::Sha256;

struct Setting {
    store: MemoryBlobStore,
    cache: ActionCache,
    access: Access,
}

impl Setting {
    fn new() -> Self {
        let tenant = |name: &str, instances: &[&str]| TenantConfig {
            name: TenantName::new(name).unwrap(),
            instances: instances.iter().map(|name| InstanceName::new(name).unwrap()).collect(),
        };
        let tenants = vec![tenant("default", &["", "other"]), tenant("org-acme", &["acme"])];
        let access = Access::new(AccessConfig { tenants, token: None, anonymous_read: true }).unwrap();
        let store = MemoryBlobStore::default();
        Self { cache: ActionCache::new(Arc::new(store.clone())), store, access }
    }

    fn grant<P: InstancePermission>(&self, instance: &str) -> Authorized<P> {
        self.access.authorize(Principal::Anonymous, &InstanceName::new(instance).unwrap()).unwrap()
    }

    async fn put(&self, bytes: impl Into<Bytes>) -> Digest {
        let bytes = bytes.into();
        let digest = Digest::of(FUNCTION, &bytes);
        let blob = NewBlob { digest, bytes, encoding: Encoding::Identity };
        let owner = owner(&self.grant::<ActionCacheWrite>(""));
        self.store.write_batch(owner, vec![blob]).await.remove(0).unwrap();
        digest
    }

    async fn update(&self, action: Digest, result: &ActionResult) -> Result<Bytes, ActionCacheError> {
        self.cache.update(&self.grant(""), action.into(), result.clone()).await
    }

    async fn get(&self, action: impl Into<ActionId>) -> Option<ActionResult> {
        self.get_inlined(action, Inlining::NONE).await
    }

    async fn get_inlined(&self, action: impl Into<ActionId>, inlining: Inlining) -> Option<ActionResult> {
        match self.cache.get(&self.grant(""), action.into(), &inlining).await {
            Ok(bytes) => Some(ActionResult::decode(bytes).unwrap()),
            Err(ActionCacheError::NotFound) => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// Stores a result, then takes each of `named` away by turns: the result must be shown only while all are there.
    async fn check_needs(&self, action: Digest, result: &ActionResult, named: &[Bytes]) {
        for bytes in named {
            let digest = Digest::of(FUNCTION, bytes);
            self.store.evict(digest);
            assert_eq!(self.get(action).await, None, "{digest} is missing");
            self.put(bytes.clone()).await;
            assert_eq!(self.get(action).await.as_ref(), Some(result), "all is there");
        }
    }
}

fn action(name: &str) -> Digest {
    Digest::of(FUNCTION, name.as_bytes())
}

fn file(path: &str, digest: Digest) -> OutputFile {
    OutputFile { path: path.to_owned(), digest: Some(digest.into()), ..OutputFile::default() }
}

fn directory(file: Digest, children: &[Digest]) -> Directory {
    Directory {
        files: vec![FileNode { name: "f".to_owned(), digest: Some(file.into()), ..FileNode::default() }],
        directories: children
            .iter()
            .map(|child| DirectoryNode { name: child.hash_hex().to_string(), digest: Some(child.into()) })
            .collect(),
        ..Directory::default()
    }
}

fn digest_of(bytes: &Bytes) -> Digest {
    Digest::of(FUNCTION, bytes)
}

#[tokio::test]
async fn files_and_streams_must_be_there() {
    let setting = Setting::new();
    let [output, stdout, stderr] = ["output", "stdout", "stderr"].map(Bytes::from_static_str);
    let result = ActionResult {
        output_files: vec![file("a", digest_of(&output)), file("empty", Digest::empty(FUNCTION))],
        stdout_digest: Some(digest_of(&stdout).into()),
        stderr_digest: Some(digest_of(&stderr).into()),
        exit_code: 3,
        ..ActionResult::default()
    };
    let returned = setting.update(action("a"), &result).await.unwrap();
    assert_eq!(ActionResult::decode(returned).unwrap(), result);
    assert_eq!(setting.get(action("a")).await, None, "nothing is uploaded");
    for bytes in [&output, &stdout, &stderr] {
        setting.put(bytes.clone()).await;
    }
    setting.check_needs(action("a"), &result, &[output, stdout, stderr]).await;
}

/// A tree that is uploaded before the result, and one that comes after it.
#[tokio::test]
async fn every_file_of_a_tree_must_be_there() {
    let [in_root, in_child] = ["in root", "in child"].map(Bytes::from_static_str);
    let tree = Bytes::from(
        Tree { root: Some(directory(digest_of(&in_root), &[])), children: vec![directory(digest_of(&in_child), &[])] }
            .encode_to_vec(),
    );
    let result = ActionResult {
        output_directories: vec![OutputDirectory {
            path: "d".to_owned(),
            tree_digest: Some(digest_of(&tree).into()),
            ..OutputDirectory::default()
        }],
        ..ActionResult::default()
    };
    let blobs = [tree, in_root, in_child];
    for tree_first in [true, false] {
        let setting = Setting::new();
        if !tree_first {
            setting.update(action("a"), &result).await.unwrap();
        }
        for bytes in &blobs {
            assert_eq!(setting.get(action("a")).await, None);
            setting.put(bytes.clone()).await;
        }
        if tree_first {
            setting.update(action("a"), &result).await.unwrap();
        }
        setting.check_needs(action("a"), &result, &blobs).await;
    }
}

#[tokio::test]
async fn everything_below_a_root_directory_must_be_there() {
    let setting = Setting::new();
    let [in_root, in_child] = ["in root", "in child"].map(Bytes::from_static_str);
    let child = Bytes::from(directory(digest_of(&in_child), &[]).encode_to_vec());
    let root = Bytes::from(directory(digest_of(&in_root), &[digest_of(&child)]).encode_to_vec());
    let result = ActionResult {
        output_directories: vec![OutputDirectory {
            root_directory_digest: Some(digest_of(&root).into()),
            ..OutputDirectory::default()
        }],
        ..ActionResult::default()
    };
    let blobs = [root, child, in_root, in_child];
    for bytes in &blobs {
        setting.put(bytes.clone()).await;
    }
    setting.update(action("a"), &result).await.unwrap();
    setting.check_needs(action("a"), &result, &blobs).await;
}

#[tokio::test]
async fn contents_are_inlined_only_on_request_and_only_if_they_fit() {
    let setting = Setting::new();
    let output = setting.put("output").await;
    let large = setting.put(vec![7; 5 << 20]).await;
    // A client that sends contents has them taken out, and stored.
    let sent = ActionResult {
        output_files: vec![file("a", output), file("large", large)],
        stdout_raw: Bytes::from_static(b"stdout"),
        ..ActionResult::default()
    };
    setting.update(action("a"), &sent).await.unwrap();
    let plain = setting.get(action("a")).await.unwrap();
    assert_eq!((plain.stdout_raw.len(), plain.output_files[0].contents.len()), (0, 0));
    assert_eq!(plain.stdout_digest, Some(Digest::of(FUNCTION, b"stdout").into()));

    let all = Inlining { stdout: true, stderr: true, output_files: vec!["a".to_owned(), "large".to_owned()] };
    let inlined = setting.get_inlined(action("a"), all).await.unwrap();
    assert_eq!(inlined.stdout_raw, "stdout");
    assert_eq!(inlined.output_files[0].contents, "output");
    assert!(inlined.output_files[1].contents.is_empty(), "it does not fit a message");

    let wrong = OutputFile { contents: Bytes::from_static(b"something else"), ..file("a", output) };
    let refused = setting.update(action("b"), &ActionResult { output_files: vec![wrong], ..sent }).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Invalid);
}

#[tokio::test]
async fn results_belong_to_instance_function_and_size() {
    let setting = Setting::new();
    let result = ActionResult { exit_code: 1, ..ActionResult::default() };
    setting.update(action("a"), &result).await.unwrap();
    assert!(setting.get(action("a")).await.is_some());
    for instance in ["other", "acme"] {
        let found = setting.cache.get(&setting.grant(instance), action("a").into(), &Inlining::NONE).await;
        assert!(matches!(found, Err(ActionCacheError::NotFound)), "{instance}");
    }
    let id = ActionId::from(action("a"));
    assert_eq!(setting.get(ActionId { function: DigestFunction::Blake3, ..id }).await, None);
    assert_eq!(setting.get(ActionId { size_bytes: Some(7), ..id }).await, None);
    assert_eq!(setting.get(ActionId { size_bytes: None, ..id }).await, Some(result));
}

#[tokio::test]
async fn malformed_results_are_refused() {
    let setting = Setting::new();
    let no_digest = OutputFile { path: "a".to_owned(), ..OutputFile::default() };
    let short = OutputFile { digest: Some(gf_reapi::WireDigest::from_text("abc", 3)), ..no_digest.clone() };
    let negative = OutputFile {
        digest: Some(gf_reapi::WireDigest::from_text(action("a").hash_hex().as_str(), -1)),
        ..no_digest.clone()
    };
    for wrong in [no_digest, short, negative] {
        let result = ActionResult { output_files: vec![wrong], ..ActionResult::default() };
        assert_eq!(setting.update(action("a"), &result).await.unwrap_err().kind(), ErrorKind::Invalid);
    }
    let text = setting.put("this is text").await;
    let no_tree = OutputDirectory { tree_digest: Some(text.into()), ..OutputDirectory::default() };
    let result = ActionResult { output_directories: vec![no_tree], ..ActionResult::default() };
    assert_eq!(setting.update(action("a"), &result).await.unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(setting.get(action("a")).await, None);
}

#[tokio::test]
async fn opaque_bytes_take_the_place_of_a_result() {
    let setting = Setting::new();
    let id = ActionId::from(action("a"));
    setting.update(action("a"), &ActionResult::default()).await.unwrap();
    setting.cache.put_opaque(&setting.grant(""), id, Bytes::from_static(b"opaque")).await.unwrap();
    assert_eq!(setting.get(id).await, None);
    let (size_bytes, mut read) = setting.cache.get_opaque(&setting.grant(""), id).await.unwrap();
    assert_eq!((size_bytes, read.next().await.unwrap()), (6, Some(Bytes::from_static(b"opaque"))));
    setting.store.evict(Digest::of(FUNCTION, b"opaque"));
    let evicted = setting.cache.get_opaque(&setting.grant(""), id).await;
    assert!(matches!(evicted, Err(ActionCacheError::NotFound)));
}

/// Arrays of blobs read better when every one is made the same way.
trait FromStaticStr {
    fn from_static_str(text: &'static str) -> Self;
}

impl FromStaticStr for Bytes {
    fn from_static_str(text: &'static str) -> Self {
        Self::from_static(text.as_bytes())
    }
}
