//! `greenscope doctor`: what this kernel and a process allow.

use clap::Args;
use profiler_common::limits::DEFAULT_GREENLETS;

use super::Failure;
use crate::{
    kernel::{Engine, Probe},
    target::{self, Site},
};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Also say what is found in this process
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pid: Option<u32>,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let engine = Engine::load(
        DEFAULT_GREENLETS,
        &[Probe::Switchstack, Probe::Switch, Probe::Initialstub, Probe::Freed],
    )
    .map(drop)
    .map_err(crate::session::SessionError::from);
    match &engine {
        Ok(()) => println!("kernel   every program is accepted"),
        Err(error) => {
            let text = error.to_string();
            println!("kernel   NO: {}", text.lines().next().unwrap_or_default());
        }
    }
    if let Some(pid) = arguments.pid {
        process(pid)?;
    }
    engine.map_err(Failure::from)
}

fn process(pid: u32) -> Result<(), Failure> {
    let target = target::inspect(pid)?;
    println!("pid      {pid}  {}", target.command);
    println!("python   {}  layout: {}", target.python.version, target.python.layout_source);
    let Some(greenlet) = &target.greenlet else {
        return Err(target::TargetError::NoGreenlet { pid, python: target.python.version }.into());
    };
    println!("greenlet {}  {}", greenlet.version, greenlet.mapped_path.display());
    println!("         layout: {}", greenlet.layout_source);
    for site in greenlet.sites.switchstack.iter().chain(&greenlet.sites.switch) {
        println!("site     {}", describe(site));
    }
    for site in greenlet.sites.initialstub.iter().chain(&greenlet.sites.freed) {
        println!("site     {}", describe(site));
    }
    println!("threads  {}", target.threads.len());
    for warning in &target.warnings {
        println!("warning  {warning}");
    }
    Ok(())
}

fn describe(site: &Site) -> String {
    format!(
        "{} at {:#x}, found by {}, {}{}",
        site.symbol,
        site.file_offset,
        site.how_found,
        if site.emulated { "emulated" } else { "single-stepped (about seven times dearer)" },
        if site.skipped_endbr { ", behind endbr64" } else { "" }
    )
}
