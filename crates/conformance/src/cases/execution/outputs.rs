//! Cases 46 and 47: outputs of all kinds, in the present form and in that of clients before 2.1.

use gf_reapi::execution::ActionResult;
use tonic::Code;

use crate::cases::cases;
use crate::execution::{listing, output_directory};
use crate::finding::{Checked, Finding, ensure};
use crate::job::Job;
use crate::probe::Probe;

cases! {
    "46-output-of-any-kind" => output_of_any_kind(),
    "46-output-absent" => output_absent(),
    "46-output-executable" => output_executable(),
    "46-output-directory-nested" => output_directory_nested(),
    "46-output-symlink-to-directory" => output_symlink_to_directory(),
    "46-outputs-of-both-forms" => both_forms(),
    "46-output-paths-unsorted" => odd_list(&["b", "a"]),
    "46-output-paths-duplicate" => odd_list(&["a", "a", "b"]),
    "46-output-path-above-the-root" => outside("../../../../etc/hostname"),
    "46-output-path-absolute" => outside("/etc/hostname"),
    "46-nothing-else-is-an-output" => nothing_else(),
    "47-output-files-and-directories" => files_and_directories(),
    "47-output-files-alone" => files_alone(),
    "47-output-file-is-a-directory" => wrong_kind(Kind::File),
    "47-output-directory-is-a-file" => wrong_kind(Kind::Directory),
    "47-output-symlinks" => old_symlinks(),
}

/// Every path that a result names, in order.
#[allow(deprecated, reason = "the fields are deprecated, and clients before 2.1 read them")]
fn named(result: &ActionResult) -> Vec<&str> {
    let files = result.output_files.iter().map(|file| file.path.as_str());
    let directories = result.output_directories.iter().map(|directory| directory.path.as_str());
    let links = [&result.output_symlinks, &result.output_file_symlinks, &result.output_directory_symlinks];
    let links = links.into_iter().flatten().map(|link| link.path.as_str());
    let mut paths: Vec<_> = files.chain(directories).chain(links).collect();
    paths.sort_unstable();
    paths.dedup();
    paths
}

fn expect_named(result: &ActionResult, expected: &[&str]) -> Checked<()> {
    ensure!(named(result) == expected, "the result names {:?}, not {expected:?}", named(result));
    Ok(())
}

async fn expect_content(
    probe: &Probe<'_>,
    job: &Job,
    result: &ActionResult,
    path: &str,
    expected: &[u8],
) -> Checked<()> {
    let content = probe.output(job, result, path).await?;
    ensure!(content == expected, "`{path}` holds `{}`", String::from_utf8_lossy(&content));
    Ok(())
}

async fn output_of_any_kind(probe: &mut Probe<'_>) -> Checked {
    let job = probe.job("echo 1 >file; mkdir dir; echo 2 >dir/inner; ln -s file link")?;
    let job = job.outputs(&["dir", "file", "link"]);
    let result = probe.succeed(&job).await?;
    expect_named(&result, &["dir", "file", "link"])?;
    expect_content(probe, &job, &result, "file", b"1\n").await?;
    output_directory(&result, "dir")?;
    let link = result.output_symlinks.iter().find(|link| link.path == "link");
    let link = link.ok_or_else(|| Finding::Fail("`link` is not among output_symlinks".into()))?;
    ensure!(link.target == "file", "the symlink points to `{}`", link.target);
    Ok("a file, a directory and a symlink".into())
}

async fn output_absent(probe: &mut Probe<'_>) -> Checked {
    let job = probe.job("echo 1 >there")?.outputs(&["absent", "no/such/folder/absent", "there"]);
    let result = probe.succeed(&job).await?;
    expect_named(&result, &["there"])?;
    Ok("what was not made is not named".into())
}

async fn output_executable(probe: &mut Probe<'_>) -> Checked {
    let job = probe.job("echo 1 >plain; echo 1 >program; chmod 755 program; chmod 644 plain")?;
    let result = probe.succeed(&job.outputs(&["plain", "program"])).await?;
    let mut bits: Vec<_> = result.output_files.iter().map(|file| (file.path.as_str(), file.is_executable)).collect();
    bits.sort_unstable();
    ensure!(bits == [("plain", false), ("program", true)], "executable: {bits:?}");
    Ok("told apart with the same content".into())
}

async fn output_directory_nested(probe: &mut Probe<'_>) -> Checked {
    let script = "mkdir -p d/a/b d/empty && echo 1 >d/f && echo 2 >d/a/b/x && chmod 755 d/a/b/x && ln -s ../f d/a/l";
    let job = probe.job(script)?.outputs(&["d"]);
    let result = probe.succeed(&job).await?;
    expect_named(&result, &["d"])?;
    let (_, tree) = probe.output_tree(&job, &result, "d").await?;
    let paths = listing(&tree, job.function)?;
    let expected = ["a/", "a/b/", "a/b/x*", "a/l -> ../f", "empty/", "f"];
    ensure!(paths == expected, "the tree has {paths:?}, not {expected:?}");
    Ok("files, folders, an empty one, a symlink, an executable".into())
}

async fn output_symlink_to_directory(probe: &mut Probe<'_>) -> Checked {
    let job = probe.job("mkdir d; echo 1 >d/f; ln -s d link; ln -s nowhere dangling")?;
    let result = probe.succeed(&job.outputs(&["dangling", "link"])).await?;
    let mut links: Vec<_> =
        result.output_symlinks.iter().map(|link| (link.path.as_str(), link.target.as_str())).collect();
    links.sort_unstable();
    ensure!(links == [("dangling", "nowhere"), ("link", "d")], "output_symlinks: {links:?}");
    ensure!(result.output_directories.is_empty(), "a symlink to a directory is delivered as a directory too");
    Ok("symlinks stay symlinks".into())
}

#[allow(deprecated, reason = "the fields are deprecated, and the case is about them")]
async fn both_forms(probe: &mut Probe<'_>) -> Checked {
    let mut job = probe.job("mkdir d; echo 1 >new; echo 2 >old; echo 3 >d/f")?.outputs(&["new"]);
    job.command.output_files = vec!["old".into()];
    job.command.output_directories = vec!["d".into()];
    let result = probe.succeed(&job).await?;
    expect_named(&result, &["new"])?;
    Ok("output_files and output_directories do not count beside output_paths".into())
}

async fn odd_list(probe: &mut Probe<'_>, paths: &[&str]) -> Checked {
    let job = probe.job("echo 1 >a; echo 2 >b")?.outputs(paths);
    let ended = probe.run(&job).await?;
    if ended.status.code() != Code::Ok {
        return ended.expect_refused(&format!("the output paths {paths:?}"), &[Code::InvalidArgument]);
    }
    let result = ended.result()?;
    expect_named(result, &["a", "b"])?;
    expect_content(probe, &job, result, "b", b"2\n").await?;
    Ok("accepted".into())
}

async fn outside(probe: &mut Probe<'_>, path: &str) -> Checked {
    let job = probe.job("echo done")?.outputs(&[path]);
    let ended = probe.run(&job).await?;
    if ended.status.code() != Code::Ok {
        let allowed = &[Code::InvalidArgument, Code::FailedPrecondition];
        return ended.expect_refused(&format!("the output path `{path}`"), allowed);
    }
    let result = ended.result()?;
    let said = probe.stdout(&job, result).await?;
    ensure!(said == "done", "the action printed `{said}`");
    expect_named(result, &[])?;
    Ok("executed, and nothing of the worker delivered".into())
}

async fn nothing_else(probe: &mut Probe<'_>) -> Checked {
    let job = probe.job("mkdir d; echo 1 >d/wanted; echo 2 >d/other; echo 3 >another")?.outputs(&["d/wanted"]);
    let result = probe.succeed(&job).await?;
    expect_named(&result, &["d/wanted"])?;
    Ok("only what was asked for".into())
}

#[allow(deprecated, reason = "the fields are deprecated, and the case is about them")]
async fn files_and_directories(probe: &mut Probe<'_>) -> Checked {
    let mut job = probe.job("echo 1 >out/sub/f && mkdir -p gen/d && echo 2 >gen/d/g && echo 3 >out/not-asked")?;
    job.command.output_files = vec!["out/absent".into(), "out/sub/f".into()];
    job.command.output_directories = vec!["gen/d".into()];
    let result = probe.succeed(&job).await?;
    expect_named(&result, &["gen/d", "out/sub/f"])?;
    expect_content(probe, &job, &result, "out/sub/f", b"1\n").await?;
    let (_, tree) = probe.output_tree(&job, &result, "gen/d").await?;
    ensure!(listing(&tree, job.function)? == ["g"], "the tree has {:?}", listing(&tree, job.function)?);
    Ok("a file and a directory".into())
}

#[allow(deprecated, reason = "the fields are deprecated, and the case is about them")]
async fn files_alone(probe: &mut Probe<'_>) -> Checked {
    // As Bazel 4 sends a genrule: the shell writes straight into folders that it does not make.
    let mut job = probe.job("echo 1 >bazel-out/bin/a/f && echo 2 >bazel-out/bin/b/g")?;
    job.command.output_files = vec!["bazel-out/bin/a/f".into(), "bazel-out/bin/b/g".into()];
    let result = probe.succeed(&job).await?;
    expect_named(&result, &["bazel-out/bin/a/f", "bazel-out/bin/b/g"])?;
    expect_content(probe, &job, &result, "bazel-out/bin/b/g", b"2\n").await?;
    Ok("the parents of output_files are there".into())
}

/// Which of the old lists names something of the other kind.
#[derive(Clone, Copy)]
enum Kind {
    File,
    Directory,
}

#[allow(deprecated, reason = "the fields are deprecated, and the case is about them")]
async fn wrong_kind(probe: &mut Probe<'_>, kind: Kind) -> Checked {
    let mut job = probe.job("mkdir d; echo 1 >f; echo 2 >d/g")?;
    match kind {
        Kind::File => job.command.output_files = vec!["d".into()],
        Kind::Directory => job.command.output_directories = vec!["f".into()],
    }
    let ended = probe.run(&job).await?;
    ended.expect_refused("an output of another kind than asked for", &[Code::FailedPrecondition])
}

#[allow(deprecated, reason = "the fields are deprecated, and the case is about them")]
async fn old_symlinks(probe: &mut Probe<'_>) -> Checked {
    let mut job = probe.job("mkdir d; echo 1 >f; echo 2 >d/g; ln -s f lf; ln -s d ld")?;
    job.command.output_files = vec!["lf".into()];
    job.command.output_directories = vec!["ld".into()];
    let result = probe.succeed(&job).await?;
    expect_named(&result, &["ld", "lf"])?;
    let old =
        |links: &[gf_reapi::execution::OutputSymlink]| links.iter().map(|link| link.path.clone()).collect::<Vec<_>>();
    let (files, directories) = (old(&result.output_file_symlinks), old(&result.output_directory_symlinks));
    // A server of 2.1 and later should fill the old fields, and need not.
    Ok(format!("output_file_symlinks {files:?}, output_directory_symlinks {directories:?}"))
}
