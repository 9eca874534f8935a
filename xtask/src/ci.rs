//! `ci`: everything that is checked before a change is taken.

use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};

use crate::{process, workspace};

/// Set to 1, `ci` also runs the tests in virtual machines.
const VM: &str = "GREENSCOPE_CI_VM";

/// The step that installs what is missing.
const DOCTOR: &str = "doctor";

/// Options of `ci`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Install nothing; what is missing is skipped by name.
    #[arg(long)]
    no_install: bool,
}

/// One step: a cargo command and whether it is one of ours.
type Step = (&'static str, Vec<&'static str>);

/// Run every step; all of them, so that one run names every failure.
///
/// # Errors
///
/// When a step cannot be started.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let Arguments { no_install } = *arguments;
    let vm = std::env::var_os(VM).is_some_and(|value| value == "1");
    let mut failed = Vec::new();
    for (name, words) in steps(no_install, vm) {
        println!("== {name}");
        if step(&words)? {
            continue;
        }
        if name == DOCTOR {
            // Each step says itself what it skips or fails for want of.
            println!("going on: the steps that need what is missing name it");
        } else {
            failed.push(name);
        }
    }
    if !vm {
        println!(
            "not run: cargo xtask vm, the slower tier (preemption in a virtual machine); \
                  {VM}=1 runs it"
        );
    }
    if failed.is_empty() {
        println!("ci: all green");
        return Ok(ExitCode::SUCCESS);
    }
    println!("ci: failed: {}", failed.join(", "));
    Ok(ExitCode::FAILURE)
}

fn steps(no_install: bool, vm: bool) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    if !no_install {
        steps.push((DOCTOR, vec!["xtask", "doctor", "--fix"]));
    }
    steps.push(("format", vec!["fmt", "--all", "--check"]));
    steps.push(("tidy", vec!["xtask", "tidy"]));
    steps.push(("clippy", vec!["xtask", "clippy"]));
    steps.push(("kernel part", vec!["xtask", "build-ebpf", "--check"]));
    steps.push(("kernel part that logs", vec!["xtask", "build-ebpf", "--log", "--check"]));
    let mut test = vec!["xtask", "test", "--strict"];
    if no_install {
        test.push("--no-install");
    }
    steps.push(("test", test));
    if vm {
        steps.push(("vm", vec!["xtask", "vm"]));
    }
    steps
}

/// Run one step; whether it went well.
fn step(words: &[&str]) -> Result<bool> {
    let mut command = match words {
        ["xtask", rest @ ..] => {
            // Ourselves, without another look by cargo at what to rebuild.
            let xtask = std::env::current_exe().context("cannot find our own program")?;
            let mut command = Command::new(xtask);
            command.args(rest);
            command
        }
        _ => {
            let mut command = process::cargo();
            command.args(words);
            command
        }
    };
    let status = command
        .current_dir(workspace::root())
        .status()
        .with_context(|| format!("cannot start `{}`", process::line(&command)))?;
    Ok(status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(no_install: bool, vm: bool) -> Vec<&'static str> {
        steps(no_install, vm).into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn the_slower_tier_runs_when_it_is_asked_for() {
        assert!(!names(false, false).contains(&"vm"));
        assert!(names(false, true).contains(&"vm"));
    }

    #[test]
    fn nothing_is_installed_when_told_so() {
        assert!(!names(true, false).contains(&DOCTOR));
        assert!(steps(true, false).iter().any(|(_, words)| words.contains(&"--no-install")));
    }
}
