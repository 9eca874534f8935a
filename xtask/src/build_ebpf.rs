//! `build-ebpf`: the kernel part's object, and the record of what made it.
//!
//! The object is committed, so that building greenscope needs stable Rust only.
//! The record beside it says from which sources and by which toolchain it was
//! built; `--check` fails when the sources moved on, and when the toolchain on
//! record gives other bytes.

mod object_file;
mod record;
mod stack;
pub(crate) mod toolchain;

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result, bail};

use self::{
    record::{Record, hash},
    toolchain::Toolchain,
};
use crate::{process, workspace};

/// Options of `build-ebpf`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// One that logs, to target/ebpf/greenscope-log.bpf.o, and the greenscope that prints it.
    #[arg(long)]
    log: bool,
    /// Fail when the committed object is not what the sources give; with `--log`, when they
    /// don't give one that logs.
    #[arg(long)]
    check: bool,
}

/// Where the committed object lies.
fn object_path() -> PathBuf {
    workspace::root().join(record::OBJECT)
}

/// Build, or check what is committed.
///
/// # Errors
///
/// When the toolchain is incomplete, the build fails, the object cannot work in
/// a kernel, or `--check` finds a difference.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let Arguments { log, check } = *arguments;
    if log {
        return self::log(check);
    }
    if check {
        return self::check();
    }
    let toolchain = toolchain::find()?.complete()?;
    let built = build(&toolchain, false)?;
    let stack = stack::inspect(&built)?;
    let record = Record::new(&built, &toolchain)?;
    write(&object_path(), &built)?;
    write(&record::path(), record.text().as_bytes())?;
    println!("{}: {} bytes, sha256 {}\nbuilt by {toolchain}", record::OBJECT, built.len(), record.object);
    println!("deepest stack: {} bytes, {}", stack.bytes, stack.path.join(" > "));
    Ok(ExitCode::SUCCESS)
}

/// Compare what is committed with the sources and, where it can be, a rebuild.
fn check() -> Result<ExitCode> {
    let record = Record::read()?;
    let committed = fs::read(object_path())
        .with_context(|| format!("cannot read {}: run cargo xtask build-ebpf", record::OBJECT))?;
    if hash(&committed) != record.object {
        bail!(
            "{} is not the object on record: its hash differs from {}; run cargo xtask build-ebpf",
            record::OBJECT,
            record::RECORD
        );
    }
    let sources = record::sources_hash()?;
    if sources != record.sources {
        bail!(
            "the kernel part's sources (profiler-ebpf, profiler-common, Cargo.lock, build flags) \
             moved on since {} was built; run cargo xtask build-ebpf and commit the result",
            record::OBJECT
        );
    }
    object_file::inspect(&committed)?;
    stack::inspect(&committed)?;
    println!("{}: of these sources", record::OBJECT);
    let toolchain = match toolchain::find()?.into_complete() {
        Ok(toolchain) => toolchain,
        Err(missing) => {
            println!("skipped: rebuild of the object: {missing}");
            return Ok(ExitCode::SUCCESS);
        }
    };
    if let Some(difference) = record.other_toolchain(&toolchain) {
        println!("skipped: rebuild of the object: {difference}");
        return Ok(ExitCode::SUCCESS);
    }
    let built = build(&toolchain, false)?;
    if built != committed {
        let path = workspace::target().join("ebpf").join("rebuilt.bpf.o");
        write(&path, &built)?;
        bail!(
            "a rebuild of {} by the toolchain on record gives other bytes ({} beside {}, kept as {}); \
             run cargo xtask build-ebpf and commit the result",
            record::OBJECT,
            built.len(),
            committed.len(),
            path.display()
        );
    }
    println!("{}: a rebuild gives the same bytes", record::OBJECT);
    Ok(ExitCode::SUCCESS)
}

/// Build what logs, or with `check` say why it can't be built here.
fn log(check: bool) -> Result<ExitCode> {
    match toolchain::find()?.into_complete() {
        Err(missing) if check => println!("skipped: build of an object that logs: {missing}"),
        _ => println!("{}: prints what the kernel part logs", build_log()?.display()),
    }
    Ok(ExitCode::SUCCESS)
}

/// Build an object that logs, and the greenscope that holds it and prints its lines.
///
/// In a folder of its own, so that nobody takes it for the product.
///
/// # Errors
///
/// When the toolchain is incomplete or a build fails.
pub(crate) fn build_log() -> Result<PathBuf> {
    let built = build(&toolchain::find()?.complete()?, true)?;
    let object = workspace::target().join("ebpf").join("greenscope-log.bpf.o");
    write(&object, &built)?;
    let folder = workspace::target().join("kernel-log");
    let mut cargo = process::cargo();
    cargo.args(["build", "--locked", "--package", "profiler-user", "--features", "kernel-log"]);
    cargo.arg("--target-dir").arg(&folder).env("GREENSCOPE_LOG_OBJECT", &object);
    process::run(&mut cargo)?;
    Ok(folder.join("debug").join("greenscope"))
}

/// Compile, take out the debug sections, and look whether a kernel can take it.
fn build(toolchain: &Toolchain, log: bool) -> Result<Vec<u8>> {
    let mut command = toolchain.cargo("build");
    if log {
        command.args(["--features", "log"]);
    }
    process::run(&mut command)?;
    let path = toolchain::output();
    let linked = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let stripped = object_file::strip(&linked)?;
    object_file::inspect(&stripped)?;
    Ok(stripped)
}

/// Write a whole file or none.
fn write(path: &std::path::Path, bytes: &[u8]) -> Result<()> {
    let beside = path.with_extension("tmp");
    fs::write(&beside, bytes).with_context(|| format!("cannot write {}", beside.display()))?;
    fs::rename(&beside, path).with_context(|| format!("cannot write {}", path.display()))
}
