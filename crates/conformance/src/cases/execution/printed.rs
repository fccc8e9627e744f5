//! Cases 60 and 61: what actions print and make, to the byte, and the digests that name it.

use gf_digest::DigestFunction;
use tonic::Code;

use crate::cases::cases;
use crate::finding::{Checked, Finding, ensure, require};
use crate::job::Folder;
use crate::probe::Probe;

use DigestFunction::{Blake3, Sha256};

cases! {
    "60-stdout-beyond-a-message" => stdout_beyond_a_message(),
    "60-stdout-binary" => stdout_binary(),
    "60-stdout-and-stderr-apart" => apart(),
    "60-stdout-empty" => nothing_printed(),
    "60-output-binary" => output_binary(),
    "61-result-by-the-function-of-the-action" => by_function(),
    "61-functions-mixed" => mixed(),
}

async fn stdout_beyond_a_message(probe: &mut Probe<'_>) -> Checked {
    const BYTES: usize = 5 << 20;
    let job = probe.job(&format!("head -c {BYTES} /dev/zero | tr '\\0' x"))?;
    let result = probe.succeed(&job).await?;
    ensure!(result.stdout_raw.is_empty(), "{} bytes of stdout are inlined", result.stdout_raw.len());
    let bytes = probe.stream(job.function, &result.stdout_raw, result.stdout_digest.as_ref()).await?;
    ensure!(bytes.len() == BYTES && bytes.iter().all(|byte| *byte == b'x'), "{} other bytes", bytes.len());
    Ok("5 MiB by digest".into())
}

async fn stdout_binary(probe: &mut Probe<'_>) -> Checked {
    let job = probe.job(r"printf 'a\000b\377\376\r\n\n'; printf 'c\000d\200' >&2")?;
    let result = probe.succeed(&job).await?;
    let stdout = probe.stream(job.function, &result.stdout_raw, result.stdout_digest.as_ref()).await?;
    ensure!(stdout == b"a\0b\xff\xfe\r\n\n", "stdout is {stdout:?}");
    let stderr = probe.stream(job.function, &result.stderr_raw, result.stderr_digest.as_ref()).await?;
    ensure!(stderr == b"c\0d\x80", "stderr is {stderr:?}");
    Ok("every byte".into())
}

async fn apart(probe: &mut Probe<'_>) -> Checked {
    let job = probe.job("for n in 1 2 3; do echo out$n; echo err$n >&2; done")?;
    let result = probe.succeed(&job).await?;
    let stdout = probe.stream(job.function, &result.stdout_raw, result.stdout_digest.as_ref()).await?;
    ensure!(stdout == b"out1\nout2\nout3\n", "stdout is `{}`", String::from_utf8_lossy(&stdout));
    let stderr = probe.stream(job.function, &result.stderr_raw, result.stderr_digest.as_ref()).await?;
    ensure!(stderr == b"err1\nerr2\nerr3\n", "stderr is `{}`", String::from_utf8_lossy(&stderr));
    Ok("each in its order".into())
}

async fn nothing_printed(probe: &mut Probe<'_>) -> Checked {
    let job = probe.job("read line && exit 3; : >f")?.outputs(&["f"]);
    let result = probe.succeed(&job).await?;
    ensure!(probe.stdout(&job, &result).await?.is_empty(), "something was printed");
    ensure!(probe.output(&job, &result, "f").await?.is_empty(), "an empty file has content");
    Ok("an empty file, nothing printed, and nothing to read on standard input".into())
}

async fn output_binary(probe: &mut Probe<'_>) -> Checked {
    let blob = probe.blob(300_000);
    let folder = Folder::default().file("in", &blob.bytes);
    let job = probe.job("cat in in >out")?.inputs(&folder).outputs(&["out"]);
    let result = probe.succeed(&job).await?;
    let bytes = probe.output(&job, &result, "out").await?;
    ensure!(bytes == [&blob.bytes[..], &blob.bytes].concat(), "the output is {} other bytes", bytes.len());
    Ok("600,000 bytes as they are".into())
}

/// The executing server's digest functions, of those that the suite has.
fn functions(probe: &Probe<'_>) -> Vec<DigestFunction> {
    [Sha256, Blake3].into_iter().filter(|function| probe.require_function_of_execution(*function).is_ok()).collect()
}

async fn by_function(probe: &mut Probe<'_>) -> Checked {
    probe.require_execution()?;
    let functions = functions(probe);
    require!(!functions.is_empty(), "the server executes by other digest functions only");
    for function in &functions {
        let folder = Folder::default().file("d/in", probe.uuid());
        let job = probe.job("cat d/in >out; mkdir o; cp d/in o/f; cat d/in")?.by(*function);
        let job = job.inputs(&folder).outputs(&["o", "out"]);
        let result = probe.succeed(&job).await?;
        // Each of these reads checks the content against its digest.
        let content = probe.output(&job, &result, "out").await?;
        ensure!(content.len() == 36, "{function}: the output is `{}`", String::from_utf8_lossy(&content));
        let (_, tree) = probe.output_tree(&job, &result, "o").await?;
        ensure!(crate::execution::listing(&tree, *function)? == ["f"], "{function}: another output directory");
        probe.stdout(&job, &result).await?;
    }
    Ok(functions.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
}

async fn mixed(probe: &mut Probe<'_>) -> Checked {
    probe.require_function_of_execution(Blake3)?;
    let other = probe.job("echo executed")?;
    let mut job = other.clone().by(Blake3);
    probe.upload_job(&other).await?;
    // The action is one of BLAKE3, and names a command that is in the store by SHA-256.
    job.action.command_digest = Some(other.command_blob().wire());
    job.action.input_root_digest = Some(job.input_root.wire());
    let action = job.blob(&job.action);
    probe.upload_by(Blake3, &[action.clone(), job.input_root.clone()]).await?;
    let ended = probe.execute_action(&action).await?;
    if ended.status.code() == Code::Ok {
        return Err(Finding::Fail("an action of BLAKE3 runs a command that is named by SHA-256".into()));
    }
    ended.expect_refused("an action with digests of two functions", &[Code::FailedPrecondition, Code::InvalidArgument])
}
