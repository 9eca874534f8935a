//! Runs other programs and turns their failures into one line.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

/// Runs `command` to its end and gives its standard output.
///
/// # Errors
///
/// When it cannot be started, or ends badly: with its last line of complaint.
pub(super) fn output(command: &mut Command) -> anyhow::Result<String> {
    let name = name_of(command);
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{name} cannot be started: install it"))?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        let last = complaint.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("no word");
        bail!("{name} failed ({}): {last}", output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether `program` is found in PATH.
pub(super) fn exists(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

fn name_of(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let name = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy();
    match command.get_args().next() {
        Some(first) => format!("`{name} {} ...`", first.to_string_lossy()),
        None => format!("`{name}`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_says_who_and_why_in_one_line() {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "echo first >&2; echo the reason >&2; exit 3"]);
        let error = output(&mut command).unwrap_err().to_string();
        assert_eq!(error, "`sh -c ...` failed (exit status: 3): the reason");
    }

    #[test]
    fn a_missing_program_says_so() {
        let error = output(&mut Command::new("no-such-program-here")).unwrap_err().to_string();
        assert_eq!(error, "`no-such-program-here` cannot be started: install it");
        assert!(!exists("no-such-program-here"));
        assert!(exists("sh"));
    }
}
