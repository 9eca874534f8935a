//! greenscope's build, checks and measurements: `cargo xtask COMMAND`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;

mod vm;

#[derive(Parser)]
#[command(name = "cargo xtask")]
enum Command {
    Vm(vm::Args),
}

fn main() -> ExitCode {
    let done = match Command::parse() {
        Command::Vm(args) => vm::run(args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
