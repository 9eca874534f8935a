//! The `greenscope` command.

use std::{process::ExitCode, time::Instant};

fn main() -> ExitCode {
    greenscope::cli::run(Instant::now())
}
