//! greenscope's build, checks and measurements: `cargo xtask COMMAND`.
//!
//! One file per command; what several commands need is in `workspace` (where
//! things lie), `process` (running other programs), `python` (interpreters and virtual
//! environments) and `measure` (what is measured, and how it is waited for).
#![forbid(unsafe_code)]

mod accuracy;
mod bench;
mod build_ebpf;
mod ci;
mod clippy;
mod codegen_layouts;
mod codegen_proto;
mod doctor;
mod measure;
mod oap;
mod process;
mod python;
mod run;
mod test;
mod tidy;
mod vm;
mod workspace;

use std::{ffi::OsString, process::ExitCode};

use clap::{Parser, Subcommand};

/// greenscope's build, checks and measurements.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Hold greenscope and other profilers against the truth, and write docs/accuracy.md.
    Accuracy(accuracy::Arguments),
    /// Measure what greenscope costs, and write docs/performance.md.
    Bench(bench::Arguments),
    /// Build the kernel part and record what it was built from and with.
    BuildEbpf(build_ebpf::Arguments),
    /// Everything that CI checks, in CI's order.
    Ci(ci::Arguments),
    /// Write the generated code anew: `layouts` from CPython's and greenlet's DWARF, `proto` from the .proto files.
    Codegen(Codegen),
    /// Lint every crate, the kernel part by its own toolchain.
    Clippy,
    /// Name what is missing on this machine, and the command that mends it.
    Doctor(doctor::Arguments),
    /// Run a real OAP of SkyWalking's, as the tests do (tests/oap).
    Oap(oap::Arguments),
    /// Build greenscope and run it: on a process, on a demo, or any command.
    Run(run::Arguments),
    /// Every test that this machine can run; what is skipped is named.
    Test(test::Arguments),
    /// Check the rules of the house (ARCHITECTURE.md, "Rooms").
    Tidy,
    /// Boot other kernels in qemu and compare greenscope with the truth there.
    Vm(vm::Args),
}

#[derive(clap::Args)]
struct Codegen {
    /// What to generate
    #[arg(value_enum)]
    what: Generated,
    /// Only compare with what is committed
    #[arg(long)]
    check: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Generated {
    Layouts,
    Proto,
}

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let outcome = match Arguments::parse_from(&arguments).command {
        Command::Accuracy(arguments) => accuracy::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::BuildEbpf(arguments) => build_ebpf::run(&arguments),
        Command::Ci(arguments) => ci::run(&arguments),
        Command::Clippy => clippy::run(),
        Command::Codegen(Codegen { what, check }) => {
            let generate = match what {
                Generated::Layouts => codegen_layouts::run,
                Generated::Proto => codegen_proto::run,
            };
            generate(check).map(|()| ExitCode::SUCCESS)
        }
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Oap(arguments) => oap::run(&arguments),
        Command::Run(run) => run::run(&run, run::is_escaped(&arguments)),
        Command::Test(arguments) => test::run(&arguments),
        Command::Tidy => tidy::run(),
        Command::Vm(args) => vm::run(args).map(|()| ExitCode::SUCCESS),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
