//! Cases 27 to 29: blobs as lists of chunks, by the calls of 2.12 and by those of 2.13, and the chunking function.

use fastcdc::v2020::{FastCDC, Normalization};
use gf_digest::{Digest, DigestFunction::Sha256};
use gf_reapi::execution::chunking_function::Value as ChunkingFunction;
use gf_reapi::execution::{GetChunkMappingRequest, RegisterChunkMappingRequest, SpliceBlobRequest, SplitBlobRequest};
use gf_reapi::{Compressor, WireDigest};
use tonic::{Code, Status};

use crate::blob::Blob;
use crate::cases::cases;
use crate::finding::{Checked, Finding, describe, ensure, refused, require, succeeds};
use crate::probe::{Probe, collect};

use Calls::{V12, V13};

cases! {
    "27-split" => split(V12),
    "27-split-absent-blob" => split_absent_blob(V12),
    "27-split-small-blob" => split_small_blob(V12),
    "28-splice" => splice(V12),
    "28-splice-wrong-order" => splice_wrong_order(V12),
    "28-splice-wrong-size" => splice_wrong_size(V12),
    "28-splice-absent-chunk" => splice_absent_chunk(V12),
    "28-splice-without-digest" => splice_without_digest(V12),
    "28-splice-without-chunks" => splice_without_chunks(V12),
    "28-splice-existing-blob" => splice_existing_blob(V12),
    "28b-get-chunk-mapping" => split(V13),
    "28b-get-chunk-mapping-absent-blob" => split_absent_blob(V13),
    "28b-get-chunk-mapping-small-blob" => split_small_blob(V13),
    "28b-register-chunk-mapping" => splice(V13),
    "28b-register-chunk-mapping-wrong-order" => splice_wrong_order(V13),
    "28b-register-chunk-mapping-wrong-size" => splice_wrong_size(V13),
    "28b-register-chunk-mapping-absent-chunk" => splice_absent_chunk(V13),
    "28b-register-chunk-mapping-without-digest" => splice_without_digest(V13),
    "28b-register-chunk-mapping-without-chunks" => splice_without_chunks(V13),
    "28b-register-chunk-mapping-existing-blob" => splice_existing_blob(V13),
    "28b-register-chunk-mapping-in-parts" => register_in_parts(),
    "28b-register-chunk-mapping-no-message" => register_no_message(),
    "29-fastcdc-parameters" => fastcdc_parameters(),
    "29-fastcdc-boundaries" => fastcdc_boundaries(),
}

/// Which calls a case makes: those of 2.12, or those that replace them in 2.13.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Calls {
    V12,
    V13,
}

impl Calls {
    /// Skips the case where the server does not say that it has the calls.
    fn require(self, probe: &Probe<'_>, offered: bool, what: &str) -> Checked<()> {
        require!(offered, "the server does not say that it {what}");
        let version = probe.session.capabilities()?.high_api_version.clone().unwrap_or_default();
        let has_these = (version.major, version.minor) >= (2, 13) || self == V12;
        require!(has_these, "the server speaks up to {}.{}; the call is of 2.13", version.major, version.minor);
        Ok(())
    }

    fn require_split(self, probe: &Probe<'_>) -> Checked<()> {
        self.require(probe, probe.session.cache()?.split_blob_support, "splits blobs")
    }

    fn require_splice(self, probe: &Probe<'_>) -> Checked<()> {
        self.require(probe, probe.session.cache()?.splice_blob_support, "splices blobs")
    }

    /// The chunks of a blob and the function that cut them.
    async fn split(self, probe: &Probe<'_>, blob: Digest) -> Result<(Vec<WireDigest>, i32), Status> {
        let (instance_name, blob_digest, digest_function) =
            (probe.instance(), Some(blob.into()), blob.function().number());
        let chunking_function = ChunkingFunction::Unknown as i32;
        if self == V12 {
            let request = SplitBlobRequest { instance_name, blob_digest, digest_function, chunking_function };
            let response = probe.storage().split_blob(request).await?.into_inner();
            return Ok((response.chunk_digests, response.chunking_function));
        }
        let request = GetChunkMappingRequest { instance_name, blob_digest, digest_function, chunking_function };
        let stream = probe.storage().get_chunk_mapping(request).await?.into_inner();
        let responses = collect(stream, 10_000).await?;
        let function = responses.first().map_or(0, |first| first.chunking_function);
        Ok((responses.into_iter().flat_map(|response| response.chunk_digests).collect(), function))
    }

    /// Makes a blob of chunks; answers with the digest that the server gives.
    async fn splice(
        self,
        probe: &Probe<'_>,
        blob: Option<WireDigest>,
        chunks: Vec<WireDigest>,
    ) -> Result<Option<WireDigest>, Status> {
        if self == V12 {
            let request = SpliceBlobRequest {
                instance_name: probe.instance(),
                blob_digest: blob,
                chunk_digests: chunks,
                digest_function: Sha256.number(),
                chunking_function: ChunkingFunction::Unknown as i32,
            };
            return Ok(probe.storage().splice_blob(request).await?.into_inner().blob_digest);
        }
        register(probe, vec![first_part(probe, blob, chunks)]).await
    }
}

fn first_part(probe: &Probe<'_>, blob: Option<WireDigest>, chunks: Vec<WireDigest>) -> RegisterChunkMappingRequest {
    RegisterChunkMappingRequest {
        instance_name: probe.instance(),
        blob_digest: blob,
        chunk_digests: chunks,
        digest_function: Sha256.number(),
        chunking_function: ChunkingFunction::Unknown as i32,
    }
}

async fn register(probe: &Probe<'_>, parts: Vec<RegisterChunkMappingRequest>) -> Result<Option<WireDigest>, Status> {
    let stream = tokio_stream::iter(parts);
    Ok(probe.storage().register_chunk_mapping(stream).await?.into_inner().blob_digest)
}

/// A size that any server that splits at all should split.
fn worth_splitting(probe: &Probe<'_>) -> Checked<usize> {
    let average = probe.session.cache()?.fast_cdc_2020_params.map_or(0, |params| params.avg_chunk_size_bytes);
    Ok(usize::try_from(average).unwrap_or_default().clamp(512 << 10, 1 << 20) * 12)
}

/// The chunks that the server gives for a new blob of random bytes, or a reason to skip.
async fn split_new_blob(probe: &mut Probe<'_>, calls: Calls) -> Checked<(Blob, Vec<Digest>, i32)> {
    let blob = probe.stored(worth_splitting(probe)?).await?;
    let (chunks, function) = match calls.split(probe, blob.digest).await {
        Err(status) if status.code() == Code::NotFound => {
            return Err(Finding::Skip(format!("the server did not split {}: {}", blob.bytes.len(), describe(&status))));
        }
        answer => succeeds("splitting", answer)?,
    };
    let mut digests = Vec::with_capacity(chunks.len());
    for chunk in &chunks {
        let digest = chunk.to_digest(Sha256);
        digests.push(digest.map_err(|error| Finding::Fail(format!("the chunk {chunk} is no digest: {error}")))?);
    }
    Ok((blob, digests, function))
}

async fn split(probe: &mut Probe<'_>, calls: Calls) -> Checked {
    calls.require_split(probe)?;
    let (blob, chunks, function) = split_new_blob(probe, calls).await?;
    let missing = probe.find_missing(Sha256, chunks.iter().map(WireDigest::from).collect()).await;
    let missing = succeeds("FindMissingBlobs of the chunks", missing)?;
    ensure!(missing.is_empty(), "{} of {} chunks are reported missing", missing.len(), chunks.len());
    let mut content = Vec::with_capacity(blob.bytes.len());
    for chunk in &chunks {
        let name = probe.read_name(*chunk, Compressor::Identity)?;
        content.extend(succeeds("reading a chunk", probe.read(&name, 0, 0).await)?);
    }
    ensure!(content == blob.bytes, "the chunks make up {} bytes that are not the blob", content.len());
    Ok(format!("{} chunks of {} bytes, function {function}", chunks.len(), blob.bytes.len()))
}

async fn split_absent_blob(probe: &mut Probe<'_>, calls: Calls) -> Checked {
    calls.require_split(probe)?;
    let absent = probe.blob(1 << 20);
    refused("splitting an absent blob", calls.split(probe, absent.digest).await, &[Code::NotFound])
}

async fn split_small_blob(probe: &mut Probe<'_>, calls: Calls) -> Checked {
    calls.require_split(probe)?;
    let blob = probe.stored(100).await?;
    match calls.split(probe, blob.digest).await {
        Err(status) if status.code() == Code::NotFound => Ok(describe(&status)),
        answer => {
            let (chunks, _) = succeeds("splitting 100 bytes", answer)?;
            let size: i64 = chunks.iter().map(|chunk| chunk.size_bytes).sum();
            ensure!(size == 100, "the chunks of 100 bytes have {size}");
            Ok(format!("{} chunks", chunks.len()))
        }
    }
}

/// Three chunks that the server holds, and the blob that they make up, which it does not.
async fn chunks_of_new_blob(probe: &mut Probe<'_>) -> Checked<(Blob, Vec<Blob>)> {
    let chunks = vec![probe.blob(70_000), probe.blob(70_000), probe.blob(1234)];
    probe.upload_all(&chunks).await?;
    let content: Vec<u8> = chunks.iter().flat_map(|chunk| chunk.bytes.to_vec()).collect();
    Ok((Blob::of(Sha256, content), chunks))
}

fn wires(chunks: &[Blob]) -> Vec<WireDigest> {
    chunks.iter().map(Blob::wire).collect()
}

async fn splice(probe: &mut Probe<'_>, calls: Calls) -> Checked {
    calls.require_splice(probe)?;
    let (blob, chunks) = chunks_of_new_blob(probe).await?;
    let answer = calls.splice(probe, Some(blob.wire()), wires(&chunks)).await;
    let digest = succeeds("splicing", answer)?;
    ensure!(digest.as_ref() == Some(&blob.wire()), "the answer names {digest:?}");
    probe.ensure_stored(&blob).await?;
    Ok("the blob is there and reads back".into())
}

async fn splice_wrong_order(probe: &mut Probe<'_>, calls: Calls) -> Checked {
    calls.require_splice(probe)?;
    let (blob, mut chunks) = chunks_of_new_blob(probe).await?;
    chunks.swap(0, 1);
    let answer = calls.splice(probe, Some(blob.wire()), wires(&chunks)).await;
    let detail = refused("chunks in the wrong order", answer, &[Code::InvalidArgument])?;
    probe.ensure_absent(blob.digest).await?;
    Ok(detail)
}

async fn splice_wrong_size(probe: &mut Probe<'_>, calls: Calls) -> Checked {
    calls.require_splice(probe)?;
    let (blob, chunks) = chunks_of_new_blob(probe).await?;
    let answer = calls.splice(probe, Some(blob.wire()), wires(&chunks[..2])).await;
    let fewer = refused("a chunk too few", answer, &[Code::InvalidArgument])?;
    let answer = calls.splice(probe, Some(blob.wire_with_size(blob.size_bytes() - 1)), wires(&chunks)).await;
    let smaller = refused("a blob one byte smaller", answer, &[Code::InvalidArgument])?;
    probe.ensure_absent(blob.digest).await?;
    Ok(format!("{fewer}; {smaller}"))
}

async fn splice_absent_chunk(probe: &mut Probe<'_>, calls: Calls) -> Checked {
    calls.require_splice(probe)?;
    let (present, absent) = (probe.stored(50_000).await?, probe.blob(50_000));
    let blob = Blob::of(Sha256, [&present.bytes[..], &absent.bytes].concat());
    let answer = calls.splice(probe, Some(blob.wire()), wires(&[present, absent])).await;
    let detail = refused("a chunk that is absent", answer, &[Code::NotFound])?;
    probe.ensure_absent(blob.digest).await?;
    Ok(detail)
}

async fn splice_without_digest(probe: &mut Probe<'_>, calls: Calls) -> Checked {
    calls.require_splice(probe)?;
    let (_, chunks) = chunks_of_new_blob(probe).await?;
    refused("no blob digest", calls.splice(probe, None, wires(&chunks)).await, &[Code::InvalidArgument])
}

async fn splice_without_chunks(probe: &mut Probe<'_>, calls: Calls) -> Checked {
    calls.require_splice(probe)?;
    let blob = probe.blob(1000);
    let answer = calls.splice(probe, Some(blob.wire()), Vec::new()).await;
    let detail = refused("no chunks for 1000 bytes", answer, &[Code::InvalidArgument])?;
    probe.ensure_absent(blob.digest).await?;
    Ok(detail)
}

async fn splice_existing_blob(probe: &mut Probe<'_>, calls: Calls) -> Checked {
    calls.require_splice(probe)?;
    let (blob, chunks) = chunks_of_new_blob(probe).await?;
    probe.upload(&blob).await?;
    let detail = match calls.splice(probe, Some(blob.wire()), wires(&chunks)).await {
        Err(status) if status.code() == Code::AlreadyExists => describe(&status),
        answer => {
            succeeds("splicing a blob that is present", answer)?;
            "OK".into()
        }
    };
    probe.ensure_stored(&blob).await?;
    Ok(detail)
}

async fn register_in_parts(probe: &mut Probe<'_>) -> Checked {
    V13.require_splice(probe)?;
    let (blob, chunks) = chunks_of_new_blob(probe).await?;
    let part = |chunks: &[Blob]| RegisterChunkMappingRequest { chunk_digests: wires(chunks), ..Default::default() };
    // Empty lists are legal anywhere, and what a later message says besides chunks does not count.
    let mut contradicting = part(&chunks[..1]);
    contradicting.instance_name = "some/other/instance".into();
    contradicting.blob_digest = Some(probe.blob(10).wire());
    contradicting.digest_function = 2;
    let parts = vec![
        first_part(probe, Some(blob.wire()), Vec::new()),
        contradicting,
        part(&[]),
        part(&chunks[1..2]),
        part(&chunks[2..]),
        part(&[]),
    ];
    let digest = succeeds("chunks in several messages", register(probe, parts).await)?;
    ensure!(digest.as_ref() == Some(&blob.wire()), "the answer names {digest:?}");
    probe.ensure_stored(&blob).await?;
    Ok("six messages, two of them empty".into())
}

async fn register_no_message(probe: &mut Probe<'_>) -> Checked {
    V13.require_splice(probe)?;
    refused("a stream without messages", register(probe, Vec::new()).await, &[Code::InvalidArgument])
}

async fn fastcdc_parameters(probe: &mut Probe<'_>) -> Checked {
    let params = probe.session.cache()?.fast_cdc_2020_params;
    let Some(params) = params else {
        return Err(Finding::Skip("the server states no FastCDC parameters".into()));
    };
    let average = params.avg_chunk_size_bytes;
    ensure!((1 << 10..=1 << 20).contains(&average), "the average of {average} bytes is not within 1 KiB and 1 MiB");
    Ok(format!("average {average}, seed {}", params.seed))
}

async fn fastcdc_boundaries(probe: &mut Probe<'_>) -> Checked {
    V12.require_split(probe)?;
    let params = probe.session.cache()?.fast_cdc_2020_params;
    let Some(params) = params else {
        return Err(Finding::Skip("the server states no FastCDC parameters".into()));
    };
    let (blob, chunks, function) = split_new_blob(probe, V12).await?;
    require!(
        function == ChunkingFunction::FastCdc2020 as i32,
        "the server cut by function {function}, which is not FastCDC"
    );
    let average = usize::try_from(params.avg_chunk_size_bytes).unwrap_or_default();
    ensure!((1 << 10..=1 << 20).contains(&average) && average % 8 == 0, "the average of {average} bytes is unusable");
    let (shortest, longest) = (average / 4, average * 4);
    let sizes: Vec<usize> = chunks.iter().filter_map(|chunk| usize::try_from(chunk.size_bytes()).ok()).collect();
    let (_, but_last) = sizes.split_last().map_or((&0, &[][..]), |split| split);
    for size in but_last {
        ensure!((shortest..=longest).contains(size), "a chunk of {size} bytes is not within {shortest} and {longest}");
    }
    let seed = u64::from(params.seed);
    let expected: Vec<usize> =
        FastCDC::with_level_and_seed(&blob.bytes, shortest, average, longest, Normalization::Level2, seed)
            .map(|chunk| chunk.length)
            .collect();
    ensure!(sizes == expected, "cut into {sizes:?}; FastCDC of 2020 cuts into {expected:?}");
    Ok(format!("{} chunks, cut where FastCDC of 2020 cuts", sizes.len()))
}
