//! Case 31: contents inside action results.

use gf_reapi::execution::{ActionResult, GetActionResultRequest, OutputFile};

use crate::blob::Blob;
use crate::cases::action_cache::{get_request, new_action, output_file, update};
use crate::cases::cases;
use crate::finding::{Checked, Finding, ensure, succeeds};
use crate::probe::Probe;

cases! {
    "31-nothing-inlined-unasked" => nothing_inlined_unasked(),
    "31-inline-stdout-and-stderr" => inline_stdout_and_stderr(),
    "31-inline-output-files" => inline_output_files(),
    "31-inline-one-too-large" => inline_too_large(1, 5 << 20),
    "31-inline-together-too-large" => inline_too_large(4, 1_300_000),
    "31-inline-stdout-too-large" => inline_stdout_too_large(),
    "31-raw-stdout-kept" => raw_stdout_kept(),
}

/// A stored result with two output files, stdout and stderr, all by digest.
struct Stored {
    action: Blob,
    files: [Blob; 2],
    stdout: Blob,
    stderr: Blob,
}

impl Stored {
    async fn new(probe: &mut Probe<'_>) -> Checked<Self> {
        probe.require_action_cache_updates()?;
        let action = new_action(probe).await?;
        let blobs: [Blob; 4] = std::array::from_fn(|_| probe.blob(500));
        probe.upload_all(&blobs).await?;
        let [a, b, stdout, stderr] = blobs;
        let result = ActionResult {
            output_files: vec![output_file("a", a.digest), output_file("b", b.digest)],
            stdout_digest: Some(stdout.wire()),
            stderr_digest: Some(stderr.wire()),
            ..ActionResult::default()
        };
        succeeds("storing a result", update(probe, &action, result).await)?;
        Ok(Self { action, files: [a, b], stdout, stderr })
    }
}

async fn get(probe: &Probe<'_>, request: GetActionResultRequest) -> Checked<ActionResult> {
    Ok(succeeds("GetActionResult", probe.action_cache().get_action_result(request).await)?.into_inner())
}

fn file<'a>(result: &'a ActionResult, path: &str) -> Checked<&'a OutputFile> {
    let found = result.output_files.iter().find(|file| file.path == path);
    found.ok_or_else(|| Finding::Fail(format!("the result lacks the output file `{path}`")))
}

async fn nothing_inlined_unasked(probe: &mut Probe<'_>) -> Checked {
    let stored = Stored::new(probe).await?;
    let result = get(probe, get_request(probe, &stored.action)).await?;
    ensure!(result.stdout_raw.is_empty() && result.stderr_raw.is_empty(), "stdout or stderr is inlined");
    ensure!(result.output_files.iter().all(|file| file.contents.is_empty()), "an output file is inlined");
    ensure!(result.stdout_digest == Some(stored.stdout.wire()), "the digest of stdout is {:?}", result.stdout_digest);
    Ok("digests only".into())
}

async fn inline_stdout_and_stderr(probe: &mut Probe<'_>) -> Checked {
    let stored = Stored::new(probe).await?;
    let request =
        GetActionResultRequest { inline_stdout: true, inline_stderr: true, ..get_request(probe, &stored.action) };
    let result = get(probe, request).await?;
    let mut details = Vec::new();
    for (what, raw, digest, blob) in [
        ("stdout", &result.stdout_raw, &result.stdout_digest, &stored.stdout),
        ("stderr", &result.stderr_raw, &result.stderr_digest, &stored.stderr),
    ] {
        ensure!(raw.is_empty() || *raw == blob.bytes, "{what} is inlined with {} other bytes", raw.len());
        ensure!(!raw.is_empty() || *digest == Some(blob.wire()), "{what} is neither inlined nor named");
        details.push(format!("{what} {}", if raw.is_empty() { "not inlined" } else { "inlined" }));
    }
    ensure!(result.output_files.iter().all(|file| file.contents.is_empty()), "an output file is inlined unasked");
    Ok(details.join(", "))
}

async fn inline_output_files(probe: &mut Probe<'_>) -> Checked {
    let stored = Stored::new(probe).await?;
    let request = GetActionResultRequest {
        inline_output_files: vec!["b".into(), "no such file".into()],
        ..get_request(probe, &stored.action)
    };
    let result = get(probe, request).await?;
    ensure!(file(&result, "a")?.contents.is_empty(), "an output file is inlined that was not asked for");
    let (asked, blob) = (file(&result, "b")?, &stored.files[1]);
    ensure!(
        asked.contents.is_empty() || asked.contents == blob.bytes,
        "inlined with {} other bytes",
        asked.contents.len()
    );
    ensure!(asked.digest == Some(blob.wire()), "the digest of the inlined file is {:?}", asked.digest);
    ensure!(result.stdout_raw.is_empty(), "stdout is inlined unasked");
    Ok(if asked.contents.is_empty() { "not inlined" } else { "inlined" }.into())
}

async fn inline_too_large(probe: &mut Probe<'_>, count: usize, size: usize) -> Checked {
    probe.require_action_cache_updates()?;
    let action = new_action(probe).await?;
    let mut output_files = Vec::new();
    let mut blobs = Vec::new();
    for n in 0..count {
        let blob = probe.stored(size).await?;
        output_files.push(output_file(&format!("f{n}"), blob.digest));
        blobs.push(blob);
    }
    let inline_output_files = output_files.iter().map(|file| file.path.clone()).collect();
    let result = ActionResult { output_files, ..ActionResult::default() };
    succeeds("storing a result", update(probe, &action, result).await)?;
    // The client takes messages of 4 MiB, as every client does by default: an answer above that fails here.
    let request = GetActionResultRequest { inline_output_files, ..get_request(probe, &action) };
    let result = get(probe, request).await?;
    let mut inlined = 0;
    for (n, blob) in blobs.iter().enumerate() {
        let file = file(&result, &format!("f{n}"))?;
        ensure!(file.digest == Some(blob.wire()), "a file lost its digest");
        ensure!(file.contents.is_empty() || file.contents == blob.bytes, "a file is inlined with other bytes");
        inlined += usize::from(!file.contents.is_empty());
    }
    Ok(format!("{inlined} of {count} files of {size} bytes inlined"))
}

async fn inline_stdout_too_large(probe: &mut Probe<'_>) -> Checked {
    probe.require_action_cache_updates()?;
    let action = new_action(probe).await?;
    let stdout = probe.stored(5 << 20).await?;
    let result = ActionResult { stdout_digest: Some(stdout.wire()), ..ActionResult::default() };
    succeeds("storing a result", update(probe, &action, result).await)?;
    let request = GetActionResultRequest { inline_stdout: true, ..get_request(probe, &action) };
    let result = get(probe, request).await?;
    ensure!(result.stdout_raw.is_empty(), "{} bytes of stdout are inlined", result.stdout_raw.len());
    ensure!(result.stdout_digest == Some(stdout.wire()), "the digest of stdout is {:?}", result.stdout_digest);
    Ok("by digest only".into())
}

async fn raw_stdout_kept(probe: &mut Probe<'_>) -> Checked {
    probe.require_action_cache_updates()?;
    let action = new_action(probe).await?;
    let stdout = probe.blob(300);
    let result = ActionResult { stdout_raw: stdout.bytes.clone(), ..ActionResult::default() };
    succeeds("storing a result with raw stdout", update(probe, &action, result).await)?;
    let request = GetActionResultRequest { inline_stdout: true, ..get_request(probe, &action) };
    let result = get(probe, request).await?;
    if result.stdout_raw == stdout.bytes {
        return Ok("kept in the result".into());
    }
    ensure!(result.stdout_raw.is_empty(), "{} other bytes of stdout", result.stdout_raw.len());
    ensure!(result.stdout_digest == Some(stdout.wire()), "raw stdout is lost");
    probe.ensure_stored(&stdout).await?;
    Ok("moved to the store".into())
}
