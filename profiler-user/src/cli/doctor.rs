//! `greenscope doctor`: what this kernel and a process allow.

use clap::Args;
use profiler_common::limits::DEFAULT_GREENLETS;

use super::{Failure, around::Around};
use crate::{
    export::oap::identity::{self, Facts, Given, Surroundings},
    kernel::{Engine, Parts, Probe},
    memory::{Cached, LiveProcess},
    profile::TracerRow,
    target::{self, HowFound, Site, Sites, Target},
    trace::{self, Identity, Source, Tracer},
};

/// How much of the verifier's log is shown.
const REASON_LINES: usize = 12;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Also say what is found in this process
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pid: Option<u32>,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let engine = Engine::load(
        DEFAULT_GREENLETS,
        &Parts {
            probes: &[Probe::Switchstack, Probe::Switch, Probe::Initialstub, Probe::Freed, Probe::Made],
            wire: false,
            ticks: false,
        },
    )
    .map_err(crate::session::SessionError::from);
    match &engine {
        Ok(engine) => match engine.clocks_refused() {
            None => {
                println!("kernel   every program is accepted");
                if !engine.tells_ready() {
                    println!("kernel   a sleep counts until its thread runs again: no CONFIG_SCHED_INFO,");
                    println!("         or no CONFIG_FAIR_GROUP_SCHED");
                }
            }
            Some(error) => {
                println!("kernel   no times on and off the CPU, and no children:");
                for line in tail(&error.to_string(), REASON_LINES) {
                    println!("         {line}");
                }
            }
        },
        Err(error) => {
            let text = error.to_string();
            println!("kernel   NO: {}", text.lines().next().unwrap_or_default());
        }
    }
    if let Some(pid) = arguments.pid {
        process(pid)?;
    }
    engine.map(drop).map_err(Failure::from)
}

/// The last lines: of the verifier's log they say why.
fn tail(text: &str, lines: usize) -> impl Iterator<Item = &str> {
    let all = text.lines().filter(|line| !line.trim().is_empty()).count();
    text.lines().filter(|line| !line.trim().is_empty()).skip(all.saturating_sub(lines))
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
    if let Some(site) = &greenlet.made {
        println!("site     {}", describe(site));
    }
    let found = find_tracer(&target);
    println!("requests {}", tracer(&found));
    println!("in OAP   {}", identity(&target, found.ok().flatten()));
    println!("threads  {}", target.threads.len());
    for warning in &target.warnings {
        println!("warning  {warning}");
    }
    Ok(())
}

/// What tells of requests in the process; the error is a text.
fn find_tracer(target: &Target) -> Result<Option<Tracer>, String> {
    let memory =
        LiveProcess::open(target.pid).map_err(|error| format!("its memory can't be read: {error}"))?;
    let mut memory = Cached::new(memory);
    trace::find(&mut memory, target, |memory| target::natives(memory, target))
        .map_err(|_| "its modules can't be read just now".to_owned())
}

/// Who the process is to that.
fn tracer(found: &Result<Option<Tracer>, String>) -> String {
    match found {
        Ok(Some(found)) => {
            let Identity { service, instance, profiler } = found.identity.clone();
            let name = match found.source {
                Source::Agent => "SkyWalking's agent",
                Source::Otel => "OpenTelemetry",
                Source::Wire => "the wire",
            };
            let or = |text: Option<String>| text.unwrap_or_else(|| "unknown".to_owned());
            let own = match profiler {
                Some(true) => ", its own profiler is on",
                Some(false) => ", its own profiler is off",
                None => "",
            };
            format!("by {name}: service {}, instance {}{own}", or(service), or(instance))
        }
        Ok(None) => "by their heads on the wire: no tracer in the process".to_owned(),
        Err(why) => why.clone(),
    }
}

/// What SkyWalking's OAP calls the process, and by which rule.
fn identity(target: &Target, tracer: Option<Tracer>) -> String {
    let tracer = tracer.map(|found| {
        let Identity { service, instance, profiler } = found.identity;
        TracerRow { source: found.source, service, instance, profiler }
    });
    let Surroundings { environment, cgroup, host, is_child } = Around::of(target.pid);
    let facts = Facts {
        pid: target.pid,
        is_child,
        command: &target.command,
        environment: &environment,
        cgroup: &cgroup,
        host: &host,
        tracer: tracer.as_ref(),
    };
    match identity::name(&facts, &Given::default()) {
        Ok(named) => format!(
            "service {} (by {}), instance {}, process {}",
            named.service, named.rule, named.instance, named.process
        ),
        Err(error) => error.to_string(),
    }
}

fn describe(site: &Site) -> String {
    format!(
        "{} at {:#x}, found by {}, {}{}",
        site.symbol,
        site.file_offset,
        match site.how_found {
            HowFound::Dynsym => ".dynsym",
            HowFound::Symtab => ".symtab",
            HowFound::Slot => "its type's slot",
            HowFound::Call => "a call of it",
        },
        if site.emulated { "emulated" } else { "single-stepped (about seven times dearer)" },
        if site.skipped_endbr { ", behind endbr64" } else { "" }
    )
}
