//! Archives: up, down, in parts, compressed, and cut off.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use gf_nix_formats::Hash;

use super::NixServer;
use super::path::TestPath;
use crate::server::{Door, noise};

#[tokio::test]
async fn an_archive_comes_back_as_it_was_put() {
    let server = NixServer::start(Door::Open).await;
    let files = [("a", noise(1, 300_000)), ("b", Vec::new()), ("c", b"text".to_vec())];
    for path in [TestPath::file("file", b""), TestPath::file("hello", b"hello"), TestPath::folder("folder", &files)] {
        assert_eq!(server.call("HEAD", &path.archive_url(), &[], b"").await.status, 404);
        server.push(&path).await;
        let length = path.archive.len().to_string();
        let tag = format!("\"{}\"", path.nar_hash().base32());
        for verb in ["GET", "HEAD"] {
            let answer = server.call(verb, &path.archive_url(), &[], b"").await;
            assert_eq!((answer.status, answer.header("content-length")), (200, Some(length.as_str())), "{verb}");
            assert_eq!(answer.header("etag"), Some(tag.as_str()));
            assert_eq!(answer.header("accept-ranges"), Some("bytes"));
            assert_eq!(answer.header("content-type"), Some("application/x-nix-nar"));
            assert_eq!(answer.header("content-encoding"), None);
            assert_eq!(answer.body, if verb == "GET" { &path.archive[..] } else { b"" });
        }
        let attic = server.get(&format!("/nix/main/nar/{}.nar", path.hash())).await;
        assert_eq!(attic.body, path.archive, "by the path, as Attic does");
    }
}

#[tokio::test]
async fn an_uploaded_archive_need_not_be_sent_again() {
    let server = NixServer::start(Door::Open).await;
    let path = TestPath::file("again", b"again");
    assert_eq!(server.put(&path.archive_url(), &path.archive).await.status, 200);
    // No narinfo names it yet.
    assert_eq!(server.call("HEAD", &path.archive_url(), &[], b"").await.status, 200);
    assert_eq!(server.get(&path.archive_url()).await.status, 404);
    assert_eq!(server.put(&path.archive_url(), &path.archive).await.status, 200);
    let asked = [("Expect", "100-continue")];
    assert_eq!(server.call("PUT", &path.archive_url(), &asked, &path.archive).await.status, 200);
}

#[tokio::test]
async fn parts_and_tags() {
    let server = NixServer::start(Door::Open).await;
    let path = TestPath::file("parts", &noise(2, 500_000));
    server.push(&path).await;
    let (size, url) = (path.archive.len(), path.archive_url());
    let tag = format!("\"{}\"", path.nar_hash().base32());
    let check = async |headers: &[(&str, &str)], status, range: Option<String>, body: &[u8]| {
        let answer = server.call("GET", &url, headers, b"").await;
        assert_eq!((answer.status, answer.header("content-range")), (status, range.as_deref()), "{headers:?}");
        if status != 416 {
            assert_eq!(answer.body, body, "{headers:?}");
        }
    };
    let all = &path.archive[..];
    check(&[("Range", "bytes=0-0")], 206, Some(format!("bytes 0-0/{size}")), &all[..1]).await;
    check(&[("Range", "bytes=100-299999")], 206, Some(format!("bytes 100-299999/{size}")), &all[100..300_000]).await;
    check(&[("Range", "bytes=400000-")], 206, Some(format!("bytes 400000-{}/{size}", size - 1)), &all[400_000..]).await;
    check(&[("Range", "bytes=-7")], 206, Some(format!("bytes {}-{}/{size}", size - 7, size - 1)), &all[size - 7..])
        .await;
    check(&[("Range", &format!("bytes={size}-"))], 416, Some(format!("bytes */{size}")), b"").await;
    check(&[("Range", "bytes=0-1,5-6")], 200, None, all).await;
    check(&[("Range", "bytes=0-9"), ("If-Range", &tag)], 206, Some(format!("bytes 0-9/{size}")), &all[..10]).await;
    check(&[("Range", "bytes=0-9"), ("If-Range", "\"other\"")], 200, None, all).await;
    check(&[("If-None-Match", &tag)], 304, None, b"").await;
    check(&[("If-None-Match", "\"other\"")], 200, None, all).await;
    let head = server.call("HEAD", &url, &[("Range", "bytes=0-9")], b"").await;
    assert_eq!((head.status, head.header("content-length")), (200, Some(size.to_string().as_str())));
}

fn compressed(compression: &str, bytes: &[u8]) -> Vec<u8> {
    use std::io::Read;
    let mut out = Vec::new();
    match compression {
        "xz" => liblzma::read::XzEncoder::new(bytes, 1).read_to_end(&mut out).unwrap(),
        "bzip2" => bzip2::read::BzEncoder::new(bytes, bzip2::Compression::fast()).read_to_end(&mut out).unwrap(),
        _ => zstd::stream::read::Encoder::new(bytes, 1).unwrap().read_to_end(&mut out).unwrap(),
    };
    out
}

fn decompressed(compression: &str, bytes: &[u8]) -> Vec<u8> {
    use std::io::Read;
    let mut out = Vec::new();
    match compression {
        "xz" => liblzma::read::XzDecoder::new(bytes).read_to_end(&mut out).unwrap(),
        "bzip2" => bzip2::read::BzDecoder::new(bytes).read_to_end(&mut out).unwrap(),
        _ => zstd::stream::read::Decoder::new(bytes).unwrap().read_to_end(&mut out).unwrap(),
    };
    out
}

#[tokio::test]
async fn a_compressed_archive_is_found_by_its_file_and_by_its_content() {
    let server = NixServer::start(Door::Open).await;
    for (compression, suffix) in [("xz", "xz"), ("zstd", "zst"), ("bzip2", "bz2")] {
        let path = TestPath::file(compression, &[noise(3, 100_000), vec![0; 3_000_000]].concat());
        let file = compressed(compression, &path.archive);
        let url = format!("nar/{}.nar.{suffix}", Hash::sha256(&file).base32());
        assert_eq!(server.put(&format!("/nix/main/{url}"), &file).await.status, 200);
        let narinfo = path.narinfo_of(&url, compression, &file);
        let put = server.put(&path.narinfo_url(), narinfo.as_bytes()).await;
        assert_eq!(put.status, 200, "{}", put.text());

        assert_eq!(server.call("HEAD", &format!("/nix/main/{url}"), &[], b"").await.status, 200);
        let remembered = server.get(&format!("/nix/main/{url}")).await;
        assert_eq!((remembered.status, decompressed(compression, &remembered.body)), (200, path.archive.clone()));
        let served = server.get(&path.narinfo_url()).await.text();
        assert!(served.contains("\nCompression: none\n"), "{served}");
        let served_url = served.lines().find_map(|line| line.strip_prefix("URL: ")).unwrap();
        assert_eq!(server.get(&format!("/nix/main/{served_url}")).await.body, path.archive);
    }
}

#[tokio::test]
async fn who_takes_zstd_gets_it() {
    let server = NixServer::start(Door::Open).await;
    let path = TestPath::folder("frames", &[("noise", noise(4, 100_000)), ("zeros", vec![0; 3_000_000])]);
    server.push(&path).await;
    let zstd = ("Accept-Encoding", "deflate, gzip, br, zstd");
    let answer = server.call("GET", &path.archive_url(), &[zstd], b"").await;
    assert_eq!((answer.status, answer.header("content-encoding")), (200, Some("zstd")));
    assert_eq!((answer.header("vary"), answer.header("accept-ranges")), (Some("accept-encoding"), None));
    assert_eq!(decompressed("zstd", &answer.body), path.archive);
    let part = server.call("GET", &path.archive_url(), &[zstd, ("Range", "bytes=8-15")], b"").await;
    assert_eq!((part.status, part.header("content-encoding"), &part.body[..]), (206, None, &path.archive[8..16]));
    let refused = server.call("GET", &path.archive_url(), &[("Accept-Encoding", "zstd;q=0")], b"").await;
    assert_eq!((refused.header("content-encoding"), &refused.body), (None, &path.archive));
}

#[tokio::test]
async fn an_archive_that_breaks_off_never_looks_whole() {
    let server = NixServer::start(Door::Open).await;
    let names: Vec<String> = (10..74).map(|number: u64| number.to_string()).collect();
    let files: Vec<_> = names.iter().map(|name| (name.as_str(), noise(name.parse().unwrap(), 1 << 20))).collect();
    let path = TestPath::folder("large", &files);
    server.push(&path).await;

    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(format!("GET {} HTTP/1.1\r\nHost: t\r\n\r\n", path.archive_url()).as_bytes()).await.unwrap();
    let mut head = [0; 15];
    stream.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 200 OK");
    server.store.set_failing(true);
    let mut rest = Vec::new();
    let _reset = stream.read_to_end(&mut rest).await;
    assert!(rest.len() < path.archive.len(), "the connection ends early");

    let unknown = server.get(&path.archive_url()).await;
    assert_eq!((unknown.status, unknown.header("retry-after")), (503, Some("5")));
    server.store.set_failing(false);
    assert_eq!(server.get(&path.archive_url()).await.body.len(), path.archive.len());
}
