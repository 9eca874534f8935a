//! `greenscope record`.

use std::{
    io::{self, IsTerminal as _},
    os::{fd::AsFd as _, unix::net::UnixStream},
    path::PathBuf,
    time::{Duration, Instant, SystemTime},
};

use clap::{Args, ValueEnum};
use profiler_common::limits::{DEFAULT_LISTED, DEFAULT_RATE, MAX_LISTED, MAX_RATE, MAX_TARGETS};

use super::{Failure, output::Output, serving, signals};
use crate::{
    export::{
        self, Exporter,
        folded::Folded,
        json::Json,
        oap::serve::{Serving, Status},
        svg::Svg,
    },
    profile::{Filter, Profile, event::Feed},
    session::{self, Labels, Options, Progress, Sites},
    target::{self, Target, TargetError},
    trace::Source,
    view::{progress::Line, summary},
};

/// How often a process without greenlet is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The process to record, with its children; may be given several times
    #[arg(long = "pid", value_name = "PID", required = true, value_parser = clap::value_parser!(u32).range(1..))]
    pids: Vec<u32>,
    /// Leave the processes' children out; nor do other processes with the same greenlet library hit the probes
    #[arg(long)]
    no_children: bool,
    /// How long to record: 500ms, 10s, 2m [default: until Ctrl-C or the target's end]
    #[arg(long, value_parser = duration)]
    duration: Option<Duration>,
    /// What to write
    #[arg(long, value_enum, default_value_t = Format::Svg)]
    format: Format,
    /// Which stacks [default: wall, with the idle ones in json]
    #[arg(long, value_enum)]
    view: Option<View>,
    /// Where to write it, - for standard output [default: greenscope-PID-TIME.svg, standard output for folded and json]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Which of greenlet's functions to probe
    #[arg(long, value_enum, default_value_t = Probe::Switchstack)]
    probe: Probe,
    /// Wait until the process loads greenlet
    #[arg(long)]
    wait_greenlet: bool,
    /// Dead greenlets listed one by one, each process's; more are summed and counted
    #[arg(long, value_name = "N", default_value_t = DEFAULT_LISTED, value_parser = clap::value_parser!(u32).range(..=i64::from(MAX_LISTED)))]
    max_greenlets: u32,
    /// Add every greenlet's intervals to the json
    #[arg(long)]
    intervals: bool,
    /// Ticks of the CPU clock a second, each a stack on the CPU; 0 for none [default: 97, with --oap 499]
    #[arg(long, value_name = "HZ", value_parser = clap::value_parser!(u32).range(..=i64::from(MAX_RATE)))]
    rate: Option<u32>,
    /// A run without a switch that is reported as a block; 0ms for none
    #[arg(long, value_name = "TIME", default_value = "100ms", value_parser = threshold)]
    block_threshold: Duration,
    /// Say every block on standard error when it ends
    #[arg(long)]
    warn_blocks: bool,
    /// Only the stacks, blocks and requests of that trace, or (SkyWalking) that segment
    #[arg(long, value_name = "ID", conflicts_with = "no_labels")]
    trace: Option<String>,
    /// Only those of requests to endpoints like that: * is any text, ? any character
    #[arg(long, value_name = "PATTERN", conflicts_with = "no_labels")]
    endpoint: Option<String>,
    /// Don't look whose work anything is
    #[arg(long)]
    no_labels: bool,
    /// Don't look at sockets: neither for requests nor for when something came
    #[arg(long)]
    no_wire: bool,
    /// Don't give greenlets the label of the one that made them
    #[arg(long)]
    no_inherit: bool,
    #[command(flatten)]
    serving: serving::Arguments,
    /// Take no stacks, only times
    #[arg(long, hide = true)]
    accounting_only: bool,
    /// Record nothing: set a probe that does nothing in g_switchstack's place
    #[arg(long, hide = true, conflicts_with = "probe")]
    empty_probe: bool,
    /// Leave out what a hit costs: counting it makes the first second dearer
    #[arg(long, hide = true)]
    no_hit_cost: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A flame graph
    Svg,
    /// Folded stacks and ns, for other tools
    Folded,
    /// Everything (docs/json-format.md)
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum View {
    /// Everything but idle hubs, by state
    Wall,
    /// What was on the CPU
    Cpu,
    /// Where greenlets waited
    Wait,
    /// Where calls that did not yield blocked a thread
    Blocked,
}

impl From<View> for export::View {
    fn from(view: View) -> Self {
        match view {
            View::Wall => Self::Wall,
            View::Cpu => Self::Cpu,
            View::Wait => Self::Wait,
            View::Blocked => Self::Blocked,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Probe {
    /// g_switchstack: once for every real switch
    Switchstack,
    /// g_switch and g_initialstub; can't see a switch out of the lookup of `run`
    Pair,
}

pub(super) fn run(arguments: &Arguments, started: Instant) -> Result<(), Failure> {
    let pids = pids(arguments)?;
    let oap = arguments.serving.backend()?;
    let path = arguments.output.clone().unwrap_or_else(|| match arguments.format {
        Format::Svg => default_name(&pids).into(),
        Format::Folded | Format::Json => "-".into(),
    });
    let stop =
        signals::stop().map_err(|error| Failure::failed(format!("no signal can be caught: {error}")))?;
    let mut targets = Vec::with_capacity(pids.len());
    for pid in &pids {
        match look(*pid, arguments.wait_greenlet, &stop)? {
            Some(target) => targets.push(target),
            None => return Ok(()),
        }
    }
    // Before the recording, so that nothing is recorded in vain.
    let output = Output::open(&path)?;
    let ticks = !arguments.empty_probe && !arguments.accounting_only;
    let rate = arguments.rate.unwrap_or(if oap.is_some() { serving::RATE } else { DEFAULT_RATE });
    if oap.is_some() && arguments.no_labels {
        say!("greenscope: with --no-labels no trace tasks and no span events can be served to OAP");
    }
    if oap.is_some() && rate == 0 {
        say!("greenscope: with --rate 0 OAP's ON_CPU tasks stay empty, and its trace tasks show waits only");
    }
    let serving = oap.map(|backend| arguments.serving.begin(backend, rate)).transpose()?;
    let options = Options {
        duration: arguments.duration,
        sites: match arguments.probe {
            _ if arguments.empty_probe => Sites::Empty,
            Probe::Switchstack => Sites::Switchstack,
            Probe::Pair => Sites::Pair,
        },
        max_greenlets: arguments.max_greenlets,
        intervals: arguments.intervals,
        accounting_only: arguments.accounting_only,
        hit_cost: !arguments.no_hit_cost,
        block: (!arguments.block_threshold.is_zero() && !arguments.accounting_only)
            .then_some(arguments.block_threshold),
        rate: (rate > 0 && ticks).then_some(rate),
        children: !arguments.no_children,
        labels: if arguments.no_labels || arguments.empty_probe || arguments.accounting_only {
            Labels::None
        } else if arguments.no_wire {
            Labels::Tracers
        } else {
            Labels::All
        },
        inherit: !arguments.no_inherit,
    };
    let described = describe(&targets);
    let warning = |target: &Target| {
        let pid = target.pid;
        target
            .warnings
            .iter()
            .map(move |warning| format!("greenscope: pid {pid}: {warning}"))
            .collect::<Vec<_>>()
    };
    let warnings: Vec<String> = targets.iter().flat_map(warning).collect();
    let line = Line::new(io::stderr().is_terminal());
    let (serving, mut tap) = serving.unzip();
    let feed: &mut dyn Feed = match &mut tap {
        Some(tap) => tap,
        None => &mut (),
    };
    let recorded = session::record(targets, &options, started, stop.as_fd(), feed, &mut |progress| {
        if let Progress::Recording { children, follows } = progress {
            // Not before: a refusal is one line.
            for warning in &warnings {
                say!("{warning}");
            }
            say!("{described}{}", with_children(children, follows, arguments.no_children));
        } else if let Progress::NoClocks(error) = progress {
            say!(
                "greenscope: no times on and off the CPU and no children, the rest goes on (that takes Linux \
                 5.18 with BTF; `greenscope doctor` says more): {}",
                first_line(error)
            );
        } else if let Progress::NoTicks(error) = progress {
            say!("greenscope: no stacks on the CPU, the rest goes on: {}", first_line(error));
        } else if let Progress::NoWire(error) = progress {
            say!(
                "greenscope: no labels for processes without a tracer and no exact queue times, the \
                 rest goes on (Linux 6.3 or later has what it takes; --no-wire to be silent): {}",
                first_line(error)
            );
        } else if let Progress::NoAnswer(pid) = progress {
            say!(
                "greenscope: pid {pid}: its memory does not answer (pages of a userfaultfd or FUSE that nobody \
                 serves?): nothing is read of it from now on, what is counted goes on"
            );
        } else if let Progress::Spanless { pid, source } = progress {
            let name = if source == Source::Agent { "SkyWalking's agent" } else { "OpenTelemetry" };
            say!(
                "greenscope: pid {pid}: {name} is in the process and made no span of its requests so far \
                 (nothing instrumented, or none sampled; the agent 1.2.0 installs no plugin from Python \
                 3.12 on): their labels are from the wire"
            );
        } else if let Progress::Block { pid, name, length, frames, met } = progress
            && arguments.warn_blocks
        {
            say!("{}", summary::warning(pid, name, length, frames, met));
        }
        line.show(progress, serving.as_ref().map(Serving::status).as_ref());
    });
    line.clear();
    // Nothing more comes.
    drop(tap);
    let works = recorded.is_ok();
    let finish = |serving: Serving| {
        let status = serving::finish(serving, &stop);
        if works || status != Status::default() {
            say!("{status}");
        }
    };
    let mut profile = match recorded {
        Ok(profile) => profile,
        Err(error) => {
            // What was recorded for OAP by then is sent, or spooled.
            serving.map(finish);
            return Err(error.into());
        }
    };
    Filter { trace: arguments.trace.clone(), endpoint: arguments.endpoint.clone() }.apply(&mut profile);
    let written = write(&profile, arguments.format, arguments.view.map(Into::into), output);
    // OAP may be slow, or away: the profile does not wait for it.
    serving.map(finish);
    written?;
    say!("{}", summary::text(&profile).trim_end());
    if path.as_os_str() != "-" {
        say!("written to {}", path.display());
    }
    Ok(())
}

/// An error without the verifier's log.
fn first_line(error: &dyn std::error::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// The pids given, each once.
fn pids(arguments: &Arguments) -> Result<Vec<u32>, Failure> {
    let mut pids = Vec::new();
    for pid in &arguments.pids {
        if !pids.contains(pid) {
            pids.push(*pid);
        }
    }
    if pids.len() > MAX_TARGETS as usize {
        return Err(Failure::usage(format!(
            "{} processes are too many at once: name at most {MAX_TARGETS}",
            pids.len()
        )));
    }
    Ok(pids)
}

/// Looks at the process; `None` if the signal to stop came while waiting for greenlet.
fn look(pid: u32, wait_greenlet: bool, stop: &UnixStream) -> Result<Option<Target>, Failure> {
    let mut said = false;
    loop {
        let missing = match target::inspect(pid) {
            Ok(target) if target.greenlet.is_some() || !wait_greenlet => return Ok(Some(target)),
            Ok(target) => TargetError::NoGreenlet { pid, python: target.python.version },
            // An interpreter that is just starting has no greenlet yet either.
            Err(error @ TargetError::NotReady { .. }) => error,
            Err(error) => return Err(error.into()),
        };
        if !wait_greenlet {
            return Err(missing.into());
        }
        if !said {
            say!("waiting until pid {pid} loads greenlet (Ctrl-C ends)");
            said = true;
        }
        let stops = signals::comes(stop, LOOK_AGAIN);
        if stops.map_err(|error| Failure::failed(format!("waiting for pid {pid}: {error}")))? {
            return Ok(None);
        }
    }
}

fn describe(targets: &[Target]) -> String {
    let each: Vec<String> = targets
        .iter()
        .map(|target| {
            let greenlet = target.greenlet.as_ref().and_then(|greenlet| greenlet.version);
            let greenlet = match (&target.greenlet, greenlet) {
                (None, _) => ", no greenlets: by threads".to_owned(),
                (Some(_), Some(version)) => format!(", greenlet {version}"),
                (Some(_), None) => String::new(),
            };
            format!("pid {} (CPython {}{greenlet})", target.pid, target.python.version)
        })
        .collect();
    format!("recording {}", each.join(", "))
}

fn with_children(children: usize, follows: bool, unwanted: bool) -> String {
    match children {
        _ if unwanted => String::new(),
        _ if !follows => "; children are left out: that takes Linux 5.18 with BTF".to_owned(),
        0 => String::new(),
        1 => " and its child".to_owned(),
        _ => format!(" and {children} children"),
    }
}

fn write(
    profile: &Profile,
    format: Format,
    view: Option<export::View>,
    output: Output,
) -> Result<(), Failure> {
    let shown = view.unwrap_or(export::View::Wall);
    let exporter: &dyn Exporter = match format {
        Format::Svg => &Svg { view: shown },
        Format::Folded => &Folded { view: shown },
        Format::Json => &Json { view },
    };
    output.write(|out| exporter.export(profile, out))
}

fn default_name(pids: &[u32]) -> String {
    let pid = pids.first().copied().unwrap_or_default();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    format!("greenscope-{pid}-{}.svg", now.as_secs())
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: f64 =
        digits.parse().map_err(|_| format!("'{text}' is no duration: write it as 500ms, 10s or 2m"))?;
    let unit = match text.get(digits.len()..).unwrap_or_default() {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3_600.0,
        _ => return Err(format!("'{text}' has no unit: write it as 500ms, 10s or 2m")),
    };
    let seconds = number * unit;
    if seconds.is_finite() && (0.001..=604_800.0).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err(format!("'{text}' is out of range: 1ms to 168h"))
    }
}

/// As [`duration`], or nothing at all.
fn threshold(text: &str) -> Result<Duration, String> {
    if text == "0ms" { Ok(Duration::ZERO) } else { duration(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_humane() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(duration("1.5m"), Ok(Duration::from_secs(90)));
        for wrong in ["", "10", "s", "-1s", "0s", "1e9h", "10 s", "ten s", "nans", "infs"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
