//! Case 48: folders that are there before the command runs, and where it runs.

use tonic::Code;

use crate::cases::cases;
use crate::execution::listing;
use crate::finding::{Checked, ensure, require};
use crate::job::Folder;
use crate::probe::Probe;

cases! {
    "48-parents-of-outputs" => parents(),
    "48-output-directory-itself" => output_directory_itself(),
    "48-output-directory-empty" => whole_working_directory(Form::OutputDirectories),
    "48-output-path-empty" => whole_working_directory(Form::OutputPaths),
    "48-working-directory" => working_directory(),
    "48-working-directory-missing" => working_directory_missing("w"),
    "48-working-directory-above-the-root" => working_directory_missing("../.."),
    "48-input-root-is-writable" => writable(),
}

async fn parents(probe: &mut Probe<'_>) -> Checked {
    let job = probe.job("[ -d a/b ] && [ -d c ] && [ ! -e a/b/f ] && echo 1 >a/b/f && echo 2 >c/g && echo both")?;
    probe.expect_says(&job.outputs(&["a/b/f", "c/g"]), "both").await?;
    Ok("made, also where they are not in the input root".into())
}

async fn output_directory_itself(probe: &mut Probe<'_>) -> Checked {
    let job = probe.job("[ -d x ] && [ ! -e x/d ] && mkdir x/d && echo 1 >x/d/f && echo made")?.outputs(&["x/d"]);
    let result = probe.succeed(&job).await?;
    let (_, tree) = probe.output_tree(&job, &result, "x/d").await?;
    ensure!(listing(&tree, job.function)? == ["f"], "the tree has {:?}", listing(&tree, job.function)?);
    Ok("left to the command".into())
}

/// Which list the output is named in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    OutputPaths,
    OutputDirectories,
}

#[allow(deprecated, reason = "output_directories is deprecated, and the one list that is said to take an empty path")]
async fn whole_working_directory(probe: &mut Probe<'_>, form: Form) -> Checked {
    let folder = Folder::default().file("w/input", "1").file("elsewhere", "2");
    let mut job = probe.job("echo 3 >made; echo done")?.inputs(&folder);
    job.command.working_directory = "w".into();
    match form {
        Form::OutputPaths => job.command.output_paths = vec![String::new()],
        Form::OutputDirectories => job.command.output_directories = vec![String::new()],
    }
    let result = probe.succeed(&job).await?;
    let said = probe.stdout(&job, &result).await?;
    ensure!(said == "done", "the action printed `{said}`");
    let told = !result.output_directories.is_empty();
    require!(told || form == Form::OutputDirectories, "an empty output path is ignored, of which nothing is said");
    let (_, tree) = probe.output_tree(&job, &result, "").await?;
    let paths = listing(&tree, job.function)?;
    ensure!(paths == ["input", "made"], "the working directory has {paths:?}");
    Ok("the whole working directory".into())
}

async fn working_directory(probe: &mut Probe<'_>) -> Checked {
    let folder = Folder::default().file("deep/er/input", "in").file("top", "out");
    let mut job = probe.job("[ -f ../../top ] && cat input >sub/output && cat input")?.inputs(&folder);
    job = job.outputs(&["sub/output"]);
    job.command.working_directory = "deep/er".into();
    let result = probe.succeed(&job).await?;
    let said = probe.stdout(&job, &result).await?;
    ensure!(said == "in", "the action printed `{said}`");
    ensure!(probe.output(&job, &result, "sub/output").await? == b"in", "`sub/output` holds something else");
    Ok("inputs, outputs and their parents are relative to it".into())
}

async fn working_directory_missing(probe: &mut Probe<'_>, path: &str) -> Checked {
    let mut job = probe.job("echo done")?;
    job.command.working_directory = path.into();
    let ended = probe.run(&job).await?;
    let what = format!("the working directory `{path}`, which is not in the input root");
    ended.expect_refused(&what, &[Code::InvalidArgument, Code::FailedPrecondition])
}

async fn writable(probe: &mut Probe<'_>) -> Checked {
    let folder = Folder::default().file("d/f", "1");
    let job = probe.job("mkdir new && echo 2 >new/file && echo 3 >d/g && rm d/f && mkdir d/e && echo written")?;
    probe.expect_says(&job.inputs(&folder), "written").await?;
    Ok("files and folders can be made beside inputs, and inputs removed".into())
}
