//! Case 50: which program runs, with which arguments, in which environment.

use gf_reapi::execution::command::EnvironmentVariable;
use tonic::Code;

use crate::cases::cases;
use crate::finding::{Checked, ensure};
use crate::job::{Folder, Job};
use crate::probe::Probe;

cases! {
    "50-program-absolute" => program_absolute(),
    "50-program-in-the-working-directory" => program_in_the_working_directory(),
    "50-program-by-path" => program_by_path(),
    "50-program-not-there" => program_not_there(),
    "50-no-arguments" => no_arguments(),
    "50-arguments-as-they-are" => arguments_as_they_are(),
    "50-environment" => environment(),
}

fn with_program(mut job: Job, program: &str) -> Job {
    if let Some(first) = job.command.arguments.first_mut() {
        program.clone_into(first);
    }
    job
}

async fn program_absolute(probe: &mut Probe<'_>) -> Checked {
    let program = probe.session.config.program.clone();
    let job = probe.job("echo done")?;
    probe.expect_says(&job, "done").await?;
    Ok(program)
}

async fn program_in_the_working_directory(probe: &mut Probe<'_>) -> Checked {
    let shell = probe.session.config.program.clone();
    let tool = format!("#!{shell}\necho tool of $1\n");
    let folder = Folder::default().executable("w/bin/tool", &tool).executable("bin/tool", "#!/no/such/shell\n");
    for program in ["bin/tool", "./bin/tool"] {
        let mut job = probe.job("")?.inputs(&folder);
        job.command.arguments = vec![program.into(), "mine".into()];
        job.command.working_directory = "w".into();
        probe.expect_says(&job, "tool of mine").await?;
    }
    Ok("bin/tool and ./bin/tool".into())
}

async fn program_by_path(probe: &mut Probe<'_>) -> Checked {
    let program = probe.session.config.program.clone();
    let (folder, name) = program.rsplit_once('/').unwrap_or(("/bin", &program));
    let mut job = with_program(probe.job("echo done")?, name);
    for variable in job.command.environment_variables.iter_mut().filter(|variable| variable.name == "PATH") {
        variable.value = format!("/no/such/folder:{folder}");
    }
    probe.expect_says(&job, "done").await?;
    Ok(format!("`{name}` in {folder}"))
}

async fn program_not_there(probe: &mut Probe<'_>) -> Checked {
    let job = with_program(probe.job("echo never")?, "/no/such/program");
    let ended = probe.run(&job).await?;
    if ended.status.code() != Code::Ok {
        let allowed = &[Code::InvalidArgument, Code::FailedPrecondition, Code::NotFound];
        return ended.expect_refused("a program that is not there", allowed);
    }
    let code = ended.result()?.exit_code;
    ensure!(code != 0, "a program that is not there ended with 0");
    Ok(format!("exit code {code}"))
}

async fn no_arguments(probe: &mut Probe<'_>) -> Checked {
    let mut job = probe.job("")?;
    job.command.arguments.clear();
    probe.run(&job).await?.expect_refused("a command without arguments", &[Code::InvalidArgument])
}

async fn arguments_as_they_are(probe: &mut Probe<'_>) -> Checked {
    let mut job = probe.job("printf '<%s>' \"$@\"")?;
    let odd = ["", "two words", "\"'\\$HOME*", "line\nline", "größe"];
    job.command.arguments.push("name".into());
    job.command.arguments.extend(odd.map(String::from));
    let expected: String = odd.iter().map(|text| format!("<{text}>")).collect();
    probe.expect_says(&job, &expected).await?;
    Ok("nothing split, nothing expanded".into())
}

async fn environment(probe: &mut Probe<'_>) -> Checked {
    let mut job = probe.job("echo \"$EMPTY|$ODD|${UNSET-unset}|$PATH\"")?;
    let variable = |name: &str, value: &str| EnvironmentVariable { name: name.into(), value: value.into() };
    job.command.environment_variables = vec![
        variable("EMPTY", ""),
        variable("ODD", "a=b c"),
        variable("PATH", "/usr/bin:/bin"),
        variable("TAG", &probe.uuid()),
    ];
    probe.expect_says(&job, "|a=b c|unset|/usr/bin:/bin").await?;
    Ok("as given".into())
}
