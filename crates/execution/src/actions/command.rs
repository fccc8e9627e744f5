//! What a command may say.

use std::path::{Component, Path};

use gf_reapi::execution::Command;

use super::ActionError;

/// Output paths of one command.
const MAX_OUTPUTS: usize = 100_000;

/// The node properties that outputs are reported with on request, by name.
pub const NODE_PROPERTIES: [&str; 2] = ["mtime", "unix_mode"];

/// Refuses what no worker could run.
pub(super) fn check(command: &Command) -> Result<(), ActionError> {
    if command.arguments.first().is_none_or(String::is_empty) {
        return Err(ActionError::invalid("Command.arguments does not begin with a program"));
    }
    if command.arguments.iter().any(|argument| argument.contains('\0')) {
        return Err(ActionError::invalid("an argument of the command holds a NUL"));
    }
    for variable in &command.environment_variables {
        if variable.name.is_empty() || variable.name.contains(['=', '\0']) || variable.value.contains('\0') {
            let name = &variable.name;
            return Err(ActionError::Invalid(format!("{name:?} cannot be the name of an environment variable")));
        }
    }
    check_path("working_directory", &command.working_directory)?;
    for (field, paths) in outputs(command) {
        if paths.len() > MAX_OUTPUTS {
            return Err(ActionError::Invalid(format!("Command.{field} has more than {MAX_OUTPUTS} entries")));
        }
        paths.iter().try_for_each(|path| check_path(field, path))?;
    }
    match command.output_node_properties.iter().find(|name| !NODE_PROPERTIES.contains(&name.as_str())) {
        Some(name) => Err(ActionError::Invalid(format!(
            "the node property {name:?} is not known; outputs can be asked for {}",
            NODE_PROPERTIES.join(" and ")
        ))),
        None => Ok(()),
    }
}

/// The lists of outputs that count.
#[expect(deprecated, reason = "clients before REAPI 2.1 send these")]
fn outputs(command: &Command) -> Vec<(&'static str, &[String])> {
    if !command.output_paths.is_empty() {
        return vec![("output_paths", &command.output_paths)];
    }
    vec![("output_files", &command.output_files), ("output_directories", &command.output_directories)]
}

/// A path stays below where it starts. The empty one is that place itself.
fn check_path(field: &str, path: &str) -> Result<(), ActionError> {
    let stays = Path::new(path).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if !stays || path.starts_with('/') || path.contains('\0') {
        return Err(ActionError::Invalid(format!(
            "Command.{field}: {path:?} must be relative and must not leave its directory by `..`"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command() -> Command {
        Command { arguments: vec!["/bin/true".to_owned()], ..Command::default() }
    }

    fn refused(change: impl FnOnce(&mut Command)) -> String {
        let mut command = command();
        change(&mut command);
        check(&command).unwrap_err().to_string()
    }

    #[test]
    fn what_can_be_run() {
        assert!(check(&command()).is_ok());
        let outputs = ["", "a", "a/b.c", "./x"].map(str::to_owned).to_vec();
        let full = Command {
            output_paths: outputs,
            working_directory: "sub/dir".to_owned(),
            output_node_properties: vec!["mtime".to_owned()],
            ..command()
        };
        assert!(check(&full).is_ok());
    }

    #[test]
    fn what_cannot() {
        assert!(refused(|command| command.arguments.clear()).contains("program"));
        assert!(refused(|command| command.arguments.push("a\0".to_owned())).contains("NUL"));
        for path in ["/abs", "..", "a/../b", "../x", "a\0"] {
            assert!(refused(|command| command.output_paths = vec![path.to_owned()]).contains("output_paths"), "{path}");
            assert!(refused(|command| command.working_directory = path.to_owned()).contains("working_dir"), "{path}");
        }
        #[expect(deprecated, reason = "clients before REAPI 2.1 send these")]
        let old = refused(|command| command.output_files = vec!["../x".to_owned()]);
        assert!(old.contains("output_files"));
        assert!(refused(|command| command.output_node_properties = vec!["owner".to_owned()]).contains("owner"));
    }
}
