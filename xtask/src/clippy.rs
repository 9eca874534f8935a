//! `clippy`: every crate on this machine, and the kernel part on its own target.

use std::process::ExitCode;

use anyhow::Result;

use crate::{build_ebpf::toolchain, process};

/// Lint; a warning is an error.
///
/// # Errors
///
/// When a lint fires.
pub(crate) fn run() -> Result<ExitCode> {
    let mut clippy = process::cargo();
    clippy.args(["clippy", "--workspace", "--exclude", "profiler-ebpf"]);
    clippy.args(["--all-targets", "--locked", "--", "-D", "warnings"]);
    process::run(&mut clippy)?;
    match toolchain::find()?.into_complete() {
        Ok(toolchain) if toolchain.has_clippy() => {
            // Without its lines for debugging, and with them.
            for features in ["", "log"] {
                let mut clippy = toolchain.cargo("clippy");
                clippy.args(["--features", features, "--", "-D", "warnings"]);
                process::run(&mut clippy)?;
            }
        }
        Ok(_) => println!("skipped: lints of the kernel part: its toolchain has no clippy"),
        Err(missing) => println!("skipped: lints of the kernel part: {missing}"),
    }
    Ok(ExitCode::SUCCESS)
}
