//! What every [`BlobStore`] must do, as one suite: each implementation's tests call [`check`].

#![expect(clippy::unwrap_used, reason = "a suite of tests, which fails by panicking")]

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use gf_blobstore::{
    Accept, BlobHasher, BlobRead, BlobStore, ByteRange, Encoding, EntryKey, EntryTable, ErrorKind, HashedBlob, Named,
    NewBlob, OwnerId, StoreError,
};
use gf_digest::{Digest, DigestFunction, InstanceName};

const THEIRS: OwnerId = OwnerId(2);

/// Bytes that do not compress and differ by seed.
#[must_use]
pub fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(bytes + 8);
    while out.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(bytes);
    out
}

/// Bytes that compress well and differ by seed.
#[must_use]
pub fn text(seed: u64, bytes: usize) -> Vec<u8> {
    format!("line {seed} of a file that says the same over and over\n").into_bytes().repeat(bytes / 40 + 1)[..bytes]
        .to_vec()
}

fn new_blob(function: DigestFunction, bytes: &[u8]) -> NewBlob {
    NewBlob { digest: Digest::of(function, bytes), bytes: Bytes::copy_from_slice(bytes), encoding: Encoding::Identity }
}

fn zstd(bytes: &[u8]) -> Bytes {
    zstd::bulk::compress(bytes, 3).unwrap().into()
}

/// Reads to the end.
///
/// # Errors
/// The store's.
pub async fn read_all(mut read: BlobRead) -> Result<Vec<u8>, StoreError> {
    let mut bytes = Vec::new();
    while let Some(piece) = read.next().await? {
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

/// Stores one blob by [`BlobStore::write_batch`].
///
/// # Errors
/// The store's.
pub async fn put(store: &dyn BlobStore, owner: OwnerId, blob: NewBlob) -> Result<(), StoreError> {
    store.write_batch(owner, vec![blob]).await.pop().unwrap()
}

/// Runs the whole suite.
pub async fn check(store: Arc<dyn BlobStore>) {
    check_as(OwnerId(1), store).await;
}

/// The same in the name of somebody who has nothing in the store yet.
pub async fn check_as(ours: OwnerId, store: Arc<dyn BlobStore>) {
    let store = store.as_ref();
    for function in DigestFunction::ALL {
        what_is_written_reads_back(store, ours, function).await;
        uploads_read_back_in_every_form(store, ours, function).await;
        what_was_hashed_reads_back(store, ours, function).await;
        nameless_uploads_get_their_digest(store, ours, function).await;
    }
    the_empty_blob_is_always_here(store).await;
    wrong_bytes_are_refused_and_leave_nothing(store, ours).await;
    ranges_cut_exactly(store, ours).await;
    owners_do_not_see_each_other(store, ours).await;
    entries_are_replaced_and_removed(store, ours).await;
    chunks_make_up_the_blob(store, ours).await;
    promises_are_made_of_what_is_here(store, ours).await;
}

async fn what_is_written_reads_back(store: &dyn BlobStore, ours: OwnerId, function: DigestFunction) {
    let blobs: Vec<Vec<u8>> = [1, 100, 4096, 70_000].iter().map(|size| noise(*size as u64, *size)).collect();
    let batch = blobs.iter().map(|bytes| new_blob(function, bytes)).collect();
    assert!(store.write_batch(ours, batch).await.iter().all(Result::is_ok));
    let digests: Vec<Digest> = blobs.iter().map(|bytes| Digest::of(function, bytes)).collect();
    assert_eq!(store.find_missing(ours, &digests).await.unwrap(), []);
    for (result, bytes) in store.read_batch(ours, &digests, Accept::Identity).await.into_iter().zip(&blobs) {
        assert_eq!(result.unwrap(), (Bytes::copy_from_slice(bytes), Encoding::Identity));
    }
    for (result, bytes) in store.read_batch(ours, &digests, Accept::Zstd).await.into_iter().zip(&blobs) {
        let (frame, encoding) = result.unwrap();
        assert_eq!(encoding, Encoding::Zstd);
        assert_eq!(zstd::decode_all(&*frame).unwrap(), *bytes);
    }
    let absent = Digest::of(function, b"never stored");
    assert_eq!(store.find_missing(ours, &[absent, digests[0], absent]).await.unwrap(), [absent]);
    let found = store.size_of(ours, function, *digests[2].hash()).await.unwrap();
    assert_eq!(found, Some(digests[2]));
    assert_eq!(store.size_of(ours, function, *absent.hash()).await.unwrap(), None);
}

async fn uploads_read_back_in_every_form(store: &dyn BlobStore, ours: OwnerId, function: DigestFunction) {
    for (bytes, encoding) in [
        (noise(11, 300_000), Encoding::Identity),
        (noise(12, 5_000_000), Encoding::Identity),
        (text(13, 300_000), Encoding::Zstd),
        (text(14, 5_000_000), Encoding::Zstd),
        (noise(15, 5_000_000), Encoding::Zstd),
    ] {
        let digest = Digest::of(function, &bytes);
        let wire = if encoding == Encoding::Zstd { zstd(&bytes) } else { Bytes::copy_from_slice(&bytes) };
        let mut upload = store.upload(ours, digest, encoding).await.unwrap();
        assert!(!upload.already_present());
        for piece in wire.chunks(100_001) {
            upload.write(Bytes::copy_from_slice(piece)).await.unwrap();
        }
        assert_eq!(upload.received_bytes(), wire.len() as u64);
        upload.finish().await.unwrap();
        for accept in [Accept::Identity, Accept::Zstd, Accept::Any] {
            let read = store.read(ours, digest, ByteRange::ALL, accept).await.unwrap();
            let encoding = read.encoding();
            let read = read_all(read).await.unwrap();
            let plain = if encoding == Encoding::Zstd { zstd::decode_all(&*read).unwrap() } else { read };
            assert!(plain == bytes, "{digest} by {accept:?}");
        }
        let again = store.upload(ours, digest, encoding).await.unwrap();
        assert!(again.already_present());
    }
}

async fn is_readable(store: &dyn BlobStore, ours: OwnerId, digest: Digest, bytes: &[u8]) {
    assert_eq!(store.find_missing(ours, &[digest]).await.unwrap(), []);
    for accept in [Accept::Identity, Accept::Zstd] {
        let read = store.read(ours, digest, ByteRange::ALL, accept).await.unwrap();
        let read = read_all(read).await.unwrap();
        let plain = if accept == Accept::Zstd { zstd::decode_all(&*read).unwrap() } else { read };
        assert!(plain == bytes, "{digest} by {accept:?}");
    }
}

async fn what_was_hashed_reads_back(store: &dyn BlobStore, ours: OwnerId, function: DigestFunction) {
    let cut = |bytes: &[u8], piece: usize| {
        let mut hashing = BlobHasher::new(function);
        bytes.chunks(piece).for_each(|piece| hashing.update(Bytes::copy_from_slice(piece)));
        hashing.finish()
    };
    let blobs = [(1, 1), (100, 7), (70_000, 100), (300_000, 9_999), (3_000_000, 70_000), (0, 1)]
        .map(|(size, piece)| (noise(61 + size as u64, size), piece));
    let mut batch: Vec<HashedBlob> = blobs.iter().map(|(bytes, piece)| cut(bytes, *piece)).collect();
    // One that comes twice is no error.
    batch.push(HashedBlob::of(function, Bytes::copy_from_slice(&blobs[1].0)));
    let digests: Vec<Digest> = batch.iter().map(HashedBlob::digest).collect();
    let written = store.write_hashed(ours, batch.clone()).await;
    assert!(written.len() == digests.len() && written.iter().all(Result::is_ok));
    for (digest, (bytes, _)) in digests.iter().zip(&blobs) {
        assert_eq!(*digest, Digest::of(function, bytes));
        is_readable(store, ours, *digest, bytes).await;
        assert_eq!(store.find_missing(THEIRS, &[*digest]).await.unwrap().is_empty(), bytes.is_empty());
    }
    assert!(store.write_hashed(THEIRS, batch).await.iter().all(Result::is_ok));
    assert_eq!(store.find_missing(THEIRS, &digests).await.unwrap(), []);
}

async fn nameless_uploads_get_their_digest(store: &dyn BlobStore, ours: OwnerId, function: DigestFunction) {
    for size in [0, 1, 500_000, 5_000_000] {
        let bytes = noise(71 + size as u64, size);
        let upload = async |owner| {
            let mut upload = store.upload_nameless(owner, function).await.unwrap();
            for piece in bytes.chunks(100_001) {
                upload.write(Bytes::copy_from_slice(piece)).await.unwrap();
            }
            upload.finish().await.unwrap()
        };
        let (digest, is_new) = (Digest::of(function, &bytes), size > 0);
        assert_eq!(upload(ours).await, Named { digest, is_new });
        is_readable(store, ours, digest, &bytes).await;
        assert_eq!(store.find_missing(THEIRS, &[digest]).await.unwrap().is_empty(), !is_new);
        // What is here stays, whoever brings it.
        assert_eq!(upload(ours).await, Named { digest, is_new: false });
        assert_eq!(upload(THEIRS).await, Named { digest, is_new });
        assert_eq!(store.find_missing(THEIRS, &[digest]).await.unwrap(), []);
        is_readable(store, ours, digest, &bytes).await;
        // One that is given up leaves nothing.
        let other = noise(81 + size as u64, size + 3);
        let mut given_up = store.upload_nameless(ours, function).await.unwrap();
        given_up.write(Bytes::copy_from_slice(&other)).await.unwrap();
        drop(given_up);
        let digest = Digest::of(function, &other);
        assert_eq!(store.find_missing(ours, &[digest]).await.unwrap(), [digest]);
    }
}

async fn the_empty_blob_is_always_here(store: &dyn BlobStore) {
    for function in DigestFunction::ALL {
        let empty = Digest::empty(function);
        assert_eq!(store.find_missing(THEIRS, &[empty]).await.unwrap(), []);
        let read = store.read(THEIRS, empty, ByteRange::ALL, Accept::Identity).await.unwrap();
        assert!(read_all(read).await.unwrap().is_empty());
        put(store, THEIRS, new_blob(function, b"")).await.unwrap();
        let not_empty = Digest::new(function, [7; 32], 0);
        assert_eq!(store.find_missing(THEIRS, &[not_empty]).await.unwrap(), [not_empty]);
    }
}

async fn wrong_bytes_are_refused_and_leave_nothing(store: &dyn BlobStore, ours: OwnerId) {
    let right = Digest::of(DigestFunction::Sha256, b"right");
    let wrong = |bytes: &'static [u8], encoding| NewBlob { digest: right, bytes: bytes.into(), encoding };
    for (blob, what) in [
        (wrong(b"wrong", Encoding::Identity), "other bytes"),
        (wrong(b"righ", Encoding::Identity), "too few"),
        (wrong(b"right!", Encoding::Identity), "too many"),
        (wrong(b"right", Encoding::Zstd), "not zstd"),
        (NewBlob { digest: right, bytes: zstd(b"wrong"), encoding: Encoding::Zstd }, "other bytes in zstd"),
        (NewBlob { digest: right, bytes: zstd(&[0; 1 << 20]), encoding: Encoding::Zstd }, "a bomb"),
    ] {
        let mut upload = store.upload(ours, right, blob.encoding).await.unwrap();
        let streamed = match upload.write(blob.bytes.clone()).await {
            Ok(()) => upload.finish().await,
            error => error,
        };
        assert_eq!(streamed.unwrap_err().kind(), ErrorKind::Invalid, "{what}, streamed");
        assert_eq!(put(store, ours, blob).await.unwrap_err().kind(), ErrorKind::Invalid, "{what}");
        assert_eq!(store.find_missing(ours, &[right]).await.unwrap(), [right], "{what}");
    }
    let large = noise(21, 3_000_000);
    let lie = Digest::new(DigestFunction::Sha256, [9; 32], large.len() as u64);
    let mut upload = store.upload(ours, lie, Encoding::Identity).await.unwrap();
    upload.write(large.into()).await.unwrap();
    assert_eq!(upload.finish().await.unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(store.find_missing(ours, &[lie]).await.unwrap(), [lie]);
}

async fn ranges_cut_exactly(store: &dyn BlobStore, ours: OwnerId) {
    for size in [1000_u64, 3_000_000] {
        let bytes = noise(31 + size, usize::try_from(size).unwrap());
        let digest = Digest::of(DigestFunction::Sha256, &bytes);
        let mut upload = store.upload(ours, digest, Encoding::Identity).await.unwrap();
        upload.write(bytes.clone().into()).await.unwrap();
        upload.finish().await.unwrap();
        for (offset, limit) in [
            (0, None),
            (0, Some(0)),
            (0, Some(1)),
            (size, None),
            (size - 1, Some(10)),
            (size / 3, Some(size / 2)),
            (size / 2, None),
        ] {
            let range = ByteRange { offset, limit };
            let from = usize::try_from(offset).unwrap();
            let to = usize::try_from(limit.map_or(size, |limit| (offset + limit).min(size))).unwrap();
            let read = store.read(ours, digest, range, Accept::Identity).await.unwrap();
            assert!(read_all(read).await.unwrap() == bytes[from..to], "{range:?}");
            let read = store.read(ours, digest, range, Accept::Zstd).await.unwrap();
            assert!(zstd::decode_all(&*read_all(read).await.unwrap()).unwrap() == bytes[from..to], "{range:?}");
        }
        let beyond = store.read(ours, digest, ByteRange { offset: size + 1, limit: None }, Accept::Identity).await;
        assert_eq!(beyond.err().map(|error| error.kind()), Some(ErrorKind::OutOfRange));
    }
}

async fn owners_do_not_see_each_other(store: &dyn BlobStore, ours: OwnerId) {
    for size in [500, 2_000_000] {
        let bytes = noise(41 + size as u64, size);
        let blob = new_blob(DigestFunction::Sha256, &bytes);
        let digest = blob.digest;
        put(store, ours, blob.clone()).await.unwrap();
        assert_eq!(store.find_missing(THEIRS, &[digest]).await.unwrap(), [digest]);
        assert_eq!(store.size_of(THEIRS, digest.function(), *digest.hash()).await.unwrap(), None);
        let read = store.read(THEIRS, digest, ByteRange::ALL, Accept::Identity).await;
        assert_eq!(read.err().map(|error| error.kind()), Some(ErrorKind::NotFound));
        let split = store.split(THEIRS, digest).await;
        assert_eq!(split.unwrap_err().kind(), ErrorKind::NotFound);
        assert!(!store.upload(THEIRS, digest, Encoding::Identity).await.unwrap().already_present());

        put(store, THEIRS, blob).await.unwrap();
        assert_eq!(store.find_missing(THEIRS, &[digest]).await.unwrap(), []);
        let read = store.read(THEIRS, digest, ByteRange::ALL, Accept::Identity).await.unwrap();
        assert!(read_all(read).await.unwrap() == bytes);
    }
}

async fn entries_are_replaced_and_removed(store: &dyn BlobStore, ours: OwnerId) {
    let key = |owner, instance: &str| EntryKey {
        table: EntryTable::ActionResult,
        owner,
        instance: InstanceName::new(instance).unwrap(),
        digest: Digest::of(DigestFunction::Sha256, b"action"),
    };
    let our_key = key(ours, "");
    assert_eq!(store.get_entry(&our_key).await.unwrap(), None);
    store.put_entry(&our_key, Bytes::from_static(b"one")).await.unwrap();
    store.put_entry(&our_key, Bytes::from_static(b"two")).await.unwrap();
    assert_eq!(store.get_entry(&our_key).await.unwrap().unwrap(), "two");
    assert_eq!(store.get_entry(&key(ours, "other")).await.unwrap(), None);
    assert_eq!(store.get_entry(&key(THEIRS, "")).await.unwrap(), None);
    assert!(store.remove_entry(&our_key).await.unwrap());
    assert!(!store.remove_entry(&our_key).await.unwrap());
    assert_eq!(store.get_entry(&our_key).await.unwrap(), None);
}

async fn chunks_make_up_the_blob(store: &dyn BlobStore, ours: OwnerId) {
    let bytes = noise(51, 6_000_000);
    let blob = new_blob(DigestFunction::Sha256, &bytes);
    let digest = blob.digest;
    put(store, ours, blob).await.unwrap();
    let chunks = store.split(ours, digest).await.unwrap();
    assert!(chunks.len() > 2);
    let mut joined = Vec::new();
    for chunk in &chunks {
        let read = store.read(ours, *chunk, ByteRange::ALL, Accept::Identity).await.unwrap();
        let part = read_all(read).await.unwrap();
        assert_eq!(Digest::of(DigestFunction::Sha256, &part), *chunk);
        joined.extend_from_slice(&part);
    }
    assert!(joined == bytes);
    assert_eq!(store.find_missing(ours, &chunks).await.unwrap(), []);
    assert_eq!(store.find_missing(THEIRS, &chunks).await.unwrap().len(), chunks.len());

    // The same parts in another order are another blob.
    let turned: Vec<Digest> = chunks.iter().rev().copied().collect();
    let mut whole = Vec::new();
    for chunk in &turned {
        let read = store.read(ours, *chunk, ByteRange::ALL, Accept::Identity).await.unwrap();
        whole.extend_from_slice(&read_all(read).await.unwrap());
    }
    let other = Digest::of(DigestFunction::Sha256, &whole);
    assert_eq!(store.splice(ours, other, &chunks).await.unwrap_err().kind(), ErrorKind::Invalid);
    let missing = Digest::new(DigestFunction::Sha256, [3; 32], 0);
    let with_missing: Vec<Digest> = turned.iter().copied().chain([missing]).collect();
    assert!(store.splice(ours, other, &with_missing).await.is_err());
    store.splice(ours, other, &turned).await.unwrap();
    let read = store.read(ours, other, ByteRange { offset: 1_000_000, limit: Some(3_000_000) }, Accept::Identity).await;
    assert!(read_all(read.unwrap()).await.unwrap() == whole[1_000_000..4_000_000]);
    store.splice(ours, other, &turned).await.unwrap();

    // A blob spliced of spliced ones, again and again, stays readable.
    let (mut digest, mut bytes) = (other, whole);
    for round in 0..6_u64 {
        let tail = noise(600 + round, 1000);
        let tail_digest = Digest::of(DigestFunction::Sha256, &tail);
        put(store, ours, new_blob(DigestFunction::Sha256, &tail)).await.unwrap();
        bytes.extend_from_slice(&tail);
        let longer = Digest::of(DigestFunction::Sha256, &bytes);
        store.splice(ours, longer, &[digest, tail_digest]).await.unwrap();
        assert_eq!(store.find_missing(ours, &[longer, longer]).await.unwrap(), []);
        digest = longer;
    }
    let read = store.read(ours, digest, ByteRange::ALL, Accept::Identity).await.unwrap();
    assert!(read_all(read).await.unwrap() == bytes);

    let small = new_blob(DigestFunction::Sha256, b"too small to split");
    let small_digest = small.digest;
    put(store, ours, small).await.unwrap();
    assert_eq!(store.split(ours, small_digest).await.unwrap_err().kind(), ErrorKind::NotFound);
}

async fn promises_are_made_of_what_is_here(store: &dyn BlobStore, ours: OwnerId) {
    let here = new_blob(DigestFunction::Sha256, b"promised");
    let absent = Digest::of(DigestFunction::Blake3, b"nobody brought it");
    put(store, ours, here.clone()).await.unwrap();
    let until = SystemTime::now() + Duration::from_secs(90 * 86_400);
    let asked = [absent, here.digest, Digest::empty(DigestFunction::Sha256), here.digest, absent];
    assert_eq!(store.keep_until(ours, &asked, until).await.unwrap(), [absent]);
    // Neither an owner who never brought it, nor a moment that has passed, is an error.
    assert_eq!(store.keep_until(THEIRS, &asked, until).await.unwrap(), [absent, here.digest]);
    assert_eq!(store.keep_until(ours, &asked, SystemTime::UNIX_EPOCH).await.unwrap(), [absent]);
    store.make_durable().await.unwrap();
    store.let_go(ours, &asked).await.unwrap();
    store.let_go(THEIRS, &asked).await.unwrap();
    assert_eq!(store.find_missing(ours, &asked).await.unwrap(), [absent]);
}
