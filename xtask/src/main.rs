//! greenscope's build, checks and measurements: `cargo xtask COMMAND`.
#![forbid(unsafe_code)]

use clap::Parser;

mod vm;

#[derive(Parser)]
#[command(name = "cargo xtask")]
enum Command {
    Vm(vm::Args),
}

fn main() -> anyhow::Result<()> {
    match Command::parse() {
        Command::Vm(args) => vm::run(args),
    }
}
