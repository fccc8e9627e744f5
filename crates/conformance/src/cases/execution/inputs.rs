//! Cases 49 and 52: symlinks, executable bits, and inputs that the command would change.

use gf_reapi::execution::symlink_absolute_path_strategy::Value as Strategy;
use tonic::Code;

use crate::blob::Blob;
use crate::cases::cases;
use crate::finding::{Checked, Finding, ensure};
use crate::job::Folder;
use crate::probe::Probe;

cases! {
    "49-symlink-dangling" => symlink("[ -L link ] && [ ! -e link ] && readlink link", "link", "nowhere"),
    "49-symlink-upwards" => symlink("cat d/link >/dev/null && readlink d/link", "d/link", "../top"),
    "49-symlink-above-the-root" => symlink("readlink link", "link", "../../outside"),
    "49-symlink-absolute" => symlink_absolute(),
    "49-output-symlink-upwards" => output_symlink_upwards(),
    "49-output-symlink-absolute" => output_symlink_absolute(),
    "52-executable-both-ways" => executable_both_ways(),
    "52-same-blob-at-many-paths" => many_paths(),
    "52-input-changed-by-the-action" => input_changed(),
}

async fn symlink(probe: &mut Probe<'_>, script: &str, path: &str, target: &str) -> Checked {
    let folder = Folder::default().file("top", "1").symlink(path, target);
    let job = probe.job(script)?.inputs(&folder);
    probe.expect_says(&job, target).await?;
    Ok(format!("`{target}` as it is"))
}

fn strategy(probe: &Probe<'_>) -> Checked<Strategy> {
    Ok(probe.session.cache()?.symlink_absolute_path_strategy())
}

async fn symlink_absolute(probe: &mut Probe<'_>) -> Checked {
    let folder = Folder::default().symlink("link", "/no/such/file");
    let job = probe.job("readlink link")?.inputs(&folder);
    let ended = probe.run(&job).await?;
    let stated = strategy(probe)?;
    if stated == Strategy::Disallowed || (stated == Strategy::Unknown && ended.status.code() != Code::Ok) {
        return ended.expect_refused("an absolute symlink", &[Code::InvalidArgument]);
    }
    let said = probe.stdout(&job, ended.result()?).await?;
    ensure!(said == "/no/such/file", "the symlink points to `{said}`");
    Ok(format!("taken, where the server says {stated:?}"))
}

async fn output_symlink_upwards(probe: &mut Probe<'_>) -> Checked {
    let job = probe.job("mkdir a; echo 1 >top; ln -s ../top a/link")?.outputs(&["a/link"]);
    let result = probe.succeed(&job).await?;
    let targets: Vec<_> = result.output_symlinks.iter().map(|link| link.target.as_str()).collect();
    ensure!(targets == ["../top"], "output symlinks point to {targets:?}");
    Ok("as it is".into())
}

async fn output_symlink_absolute(probe: &mut Probe<'_>) -> Checked {
    let job = probe.job("ln -s /no/such/file link; echo done")?.outputs(&["link"]);
    let ended = probe.run(&job).await?;
    let stated = strategy(probe)?;
    if stated == Strategy::Disallowed || (stated == Strategy::Unknown && ended.status.code() != Code::Ok) {
        return ended.expect_refused("an absolute symlink among outputs", &[Code::FailedPrecondition]);
    }
    let targets: Vec<_> = ended.result()?.output_symlinks.iter().map(|link| link.target.as_str()).collect();
    ensure!(targets == ["/no/such/file"], "output symlinks point to {targets:?}");
    Ok(format!("taken, where the server says {stated:?}"))
}

async fn executable_both_ways(probe: &mut Probe<'_>) -> Checked {
    let content = format!("#!/bin/sh\necho {}\n", probe.uuid());
    let folder = Folder::default().file("plain", &content).executable("program", &content);
    let job = probe.job("[ -x program ] && [ ! -x plain ] && ./program >/dev/null && echo both")?.inputs(&folder);
    probe.expect_says(&job, "both").await?;
    // The other way round, where a worker has the blob already.
    let folder = Folder::default().executable("plain", &content).file("program", &content);
    let job = probe.job("[ -x plain ] && [ ! -x program ] && echo both")?.inputs(&folder);
    probe.expect_says(&job, "both").await?;
    Ok("with one digest".into())
}

async fn many_paths(probe: &mut Probe<'_>) -> Checked {
    let content = probe.uuid();
    let paths = (0..100).map(|n| format!("d{}/f{n}", n % 7));
    let folder = paths.fold(Folder::default(), |folder, path| folder.file(&path, &content));
    let job = probe.job("cat d*/f* | wc -c")?.inputs(&folder);
    probe.expect_says(&job, "3600").await?;
    Ok("a hundred files of one digest".into())
}

async fn input_changed(probe: &mut Probe<'_>) -> Checked {
    let content = probe.uuid();
    let blob = Blob::of(gf_digest::DigestFunction::Sha256, content.clone().into_bytes());
    let folder = Folder::default().file("a", &content).file("b", &content).executable("x", &content);
    // Whoever may write to an input does; a worker may as well refuse it.
    let script = "for f in a b x; do chmod u+w $f; echo more >>$f; : >$f; done 2>/dev/null; echo tried";
    let changing = probe.job(script)?.inputs(&folder);
    probe.expect_says(&changing, "tried").await?;
    probe.ensure_stored(&blob).await?;
    let reading = probe.job("cat a; echo; cat b; echo; cat x")?.inputs(&folder);
    let said = probe.says(&reading).await?;
    let expected = [content.as_str(); 3].join("\n");
    if said != expected {
        return Err(Finding::Fail(format!("after an action wrote to its inputs, another reads `{said}`")));
    }
    Ok("blob and later actions are as before".into())
}
