//! The store under a server that goes on serving: on a disk that is full, and while damage is looked for and mended.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use gf_digest::{Digest, DigestFunction};
use gf_reapi::WireDigest;
use gf_reapi::bytestream::WriteRequest;
use gf_reapi::bytestream::byte_stream_client::ByteStreamClient;
use gf_reapi::execution::BatchUpdateBlobsRequest;
use gf_reapi::execution::batch_update_blobs_request::Request as BlobRequest;
use gf_reapi::execution::content_addressable_storage_client::ContentAddressableStorageClient;
use tonic::Code;
use tonic::transport::Channel;

use crate::quotas::{ask, noise, put, send};
use crate::running::{DEADLINE, Server, text};

fn get(server: &Server, blob: &[u8]) -> u16 {
    let hash = Digest::of(DigestFunction::Sha256, blob).hash_hex();
    send(server, "GET", &format!("/cas/{}", hash.as_str()), b"").0
}

/// What clients of gRPC are told who write a blob: as a stream, in one message and in several, and in a batch.
fn codes_of_writing(server: &Server, blob: &[u8]) -> [Code; 3] {
    let digest = Digest::of(DigestFunction::Sha256, blob);
    let hash = digest.hash_hex();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let channel = Channel::from_shared(server.url.clone()).unwrap().connect().await.unwrap();
        let write = async |messages: usize| {
            let name = format!("uploads/0b4a5f0e-5a3c-4d3e-9d55-0a7a9f3f8a1{messages}/blobs/{}/{}", hash, blob.len());
            let piece = blob.len().div_ceil(messages);
            let message = |(number, data): (usize, &[u8])| WriteRequest {
                resource_name: name.clone(),
                write_offset: i64::try_from(number * piece).unwrap(),
                finish_write: number + 1 == messages,
                data: data.to_vec().into(),
            };
            let messages: Vec<_> = blob.chunks(piece).enumerate().map(message).collect();
            let written = ByteStreamClient::new(channel.clone()).write(futures::stream::iter(messages)).await;
            written.map_or_else(|status| status.code(), |_| Code::Ok)
        };
        let request = BlobRequest { digest: Some(WireDigest::from(digest)), data: blob.to_vec().into(), compressor: 0 };
        let request = BatchUpdateBlobsRequest { requests: vec![request], ..BatchUpdateBlobsRequest::default() };
        let batch = ContentAddressableStorageClient::new(channel.clone()).batch_update_blobs(request).await;
        let batch = batch.unwrap().into_inner().responses.remove(0).status;
        [write(1).await, write(3).await, Code::from(batch.map_or(0, |status| status.code))]
    })
}

/// A small file system in a file, mounted where a server keeps its data; gone when dropped.
struct SmallDisk {
    folder: PathBuf,
}

impl SmallDisk {
    /// `None` when this machine does not let us mount.
    fn mount(home: &Path) -> Option<Self> {
        let (image, folder) = (home.join("image"), home.join("data"));
        fs::File::create(&image).unwrap().set_len(48 << 20).unwrap();
        fs::create_dir(&folder).unwrap();
        let ran = |command: &mut Command| command.output().is_ok_and(|output| output.status.success());
        let made = ran(Command::new("mkfs.ext4").args(["-q", "-m", "0"]).arg(&image));
        (made && ran(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&folder))).then_some(Self { folder })
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // A thread that still has a file open must not keep the mount: the loop device goes with it.
        let _ = Command::new("umount").arg("--lazy").arg(&self.folder).output();
    }
}

#[test]
fn a_server_on_a_full_disk_refuses_writes_serves_reads_and_recovers() {
    let home = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(home.path()) else {
        return gf_testkit::skip("this user may not mount a small file system to fill");
    };
    let ballast = disk.folder.join("ballast");
    fs::write(&ballast, noise(0, 16 << 20)).unwrap();
    let mut server = Server::start(home.path(), &[]);
    let first = noise(1, 300_000);
    assert_eq!(put(&server, "", &first).0, 200);
    let refused = (2..200).map(|number| put(&server, "", &noise(number, 300_000))).find(|(status, _)| *status != 200);
    let (status, answer) = refused.expect("the disk never fills");
    assert_eq!(status, 507, "{answer}");
    assert_eq!(get(&server, &first), 200, "reads go on");
    let until = Instant::now() + DEADLINE;
    // Room for a little more may be left: what is written to find out fills it.
    for number in 1000.. {
        if server.get("/readyz").1.contains("writes are refused") {
            break;
        }
        for part in 0..20 {
            put(&server, "", &noise(20 * number + part, 4000));
        }
        assert!(Instant::now() < until, "{}", server.get("/readyz").1);
    }
    for length in [300_000, 2_000_000] {
        assert_eq!(codes_of_writing(&server, &noise(3000, length)), [Code::ResourceExhausted; 3], "{length} bytes");
    }
    assert_eq!(server.get("/readyz").0, 200, "a server that can be read is ready");
    let shown = text(&ask(&server, home.path(), &["status"]).stdout);
    assert!(shown.contains("FULL") && shown.contains("writes    refused"), "{shown}");

    fs::remove_file(&ballast).unwrap();
    let until = Instant::now() + DEADLINE;
    while put(&server, "", &noise(2000, 300_000)).0 != 200 || server.get("/readyz").1 != "ready\n" {
        assert!(Instant::now() < until, "there is room again, and it is not used");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(codes_of_writing(&server, &noise(3000, 300_000)), [Code::Ok; 3]);
    assert_eq!(get(&server, &first), 200);
    server.signal("-TERM");
    assert!(server.wait_for_end().success(), "it does not stop well");
}

/// The files of large blobs.
fn large_files(data: &Path) -> Vec<PathBuf> {
    let files = |folder: PathBuf| fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<PathBuf> = files(data.join("blobs/large")).flat_map(files).collect();
    found.sort();
    found
}

#[test]
fn damage_is_named_and_mended_while_the_server_goes_on() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(home.path(), &[]);
    let blobs: Vec<Vec<u8>> = (0..4).map(|number| noise(number, 2_000_000)).collect();
    for blob in &blobs {
        assert_eq!(put(&server, "", blob).0, 200);
    }
    let clean = ask(&server, home.path(), &["store", "verify", "--repair"]);
    assert_eq!(clean.status.code(), Some(0), "{}", text(&clean.stdout));

    let victim = &large_files(&home.path().join("data"))[2];
    let mut bytes = fs::read(victim).unwrap();
    bytes[1000] ^= 1;
    fs::write(victim, bytes).unwrap();
    let verified = ask(&server, home.path(), &["store", "verify", "--repair"]);
    assert_eq!(verified.status.code(), Some(3), "{}", text(&verified.stderr));
    let said = text(&verified.stdout);
    let hash = |blob: &[u8]| Digest::of(DigestFunction::Sha256, blob).hash_hex().as_str().to_owned();
    let lost: Vec<&Vec<u8>> = blobs.iter().filter(|blob| said.contains(&hash(blob))).collect();
    let [lost] = lost[..] else { panic!("not one is named in\n{said}") };
    assert!(said.contains("damaged   1"), "{said}");
    for blob in &blobs {
        assert_eq!(get(&server, blob), if blob == lost { 404 } else { 200 });
    }
    assert_eq!(put(&server, "", lost).0, 200);
    assert_eq!(get(&server, lost), 200, "it can come again");
    let clean = ask(&server, home.path(), &["store", "verify", "--repair"]);
    assert_eq!(clean.status.code(), Some(0), "{}", text(&clean.stdout));
}
