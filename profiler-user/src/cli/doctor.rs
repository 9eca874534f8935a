//! `greenscope doctor`: what this kernel and a process allow.

use clap::Args;
use profiler_common::limits::DEFAULT_GREENLETS;

use super::Failure;
use crate::{
    kernel::{Engine, Probe},
    target::{self, HowFound, Site, Sites},
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
    println!("pid      {pid}  {}", target.command.join(" "));
    println!("python   {}  layout: {}", target.python.version, target.python.source);
    let greenlet = target.greenlet()?;
    let version = greenlet.version.map_or_else(|| "of unknown version".to_owned(), |found| found.to_string());
    println!("greenlet {version}  {}", greenlet.file.path.display());
    println!("         layout: {}", greenlet.source);
    let Sites { switchstack, pair, freed, swap_callers: _ } = &greenlet.sites;
    for site in switchstack.iter().chain(pair).chain(freed) {
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
        match site.how_found {
            HowFound::Dynsym => ".dynsym",
            HowFound::Symtab => ".symtab",
        },
        if site.emulated { "emulated" } else { "single-stepped (about seven times dearer)" },
        if site.skipped_endbr { ", behind endbr64" } else { "" }
    )
}
