//! Whose work it was: labels held against a service that knows, under load.
//!
//! greenscope reads those of SkyWalking's agent, of OpenTelemetry and of the wire; ddtrace's
//! profiler those of its own tracing, in a run of its own on the same service.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::Path,
    process::Command,
};

use ::tests::{
    judge::{Counts, Verdict},
    label::Source,
    place,
    recording::Recording,
    traced::{Ledger, Service},
};
use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::{
    python::{Environment, Python},
    workspace,
};

/// So many labelled observations are made of each of greenscope's workloads.
const OBSERVATIONS: u64 = 100_000;
/// More runs than this are no progress.
const MOST_RUNS: u32 = 30;
/// What ddtrace's time of a sample may differ from the books': in its favour.
const SLACK_NS: u64 = 20_000_000;

/// What tells of requests, by the name of its environment.
struct Kind {
    name: &'static str,
    source: Source,
    /// The file of its packages.
    requirements: &'static str,
    /// Of its environment, without the Python.
    environment: &'static str,
    headers: &'static str,
}

const KINDS: [Kind; 3] = [
    Kind {
        name: "SkyWalking's agent 1.2.0",
        source: Source::Agent,
        requirements: "tests/traced/agent-1.2.0.txt",
        environment: "agent-1.2.0-",
        headers: "sw8",
    },
    Kind {
        name: "OpenTelemetry 1.45.1",
        source: Source::Otel,
        requirements: "tests/traced/otel-1.45.1.txt",
        environment: "otel-1.45.1-",
        headers: "traceparent",
    },
    Kind {
        name: "no tracer, `sw8` and `traceparent` on the wire",
        source: Source::Wire,
        requirements: "tests/requirements.txt",
        environment: "",
        headers: "both-kinds",
    },
];

const DDTRACE: &str = "xtask/accuracy/traced_ddtrace.py";
const DDTRACE_REQUIREMENTS: &str = "xtask/accuracy/traced-ddtrace.txt";

/// A line of the table.
pub(super) struct Row {
    pub(super) workload: &'static str,
    pub(super) tool: &'static str,
    pub(super) runs: u32,
    pub(super) requests: u64,
    pub(super) counts: Counts,
    /// Blanks that should be labels, by the tool's own reason.
    pub(super) reasons: BTreeMap<String, u64>,
    /// greenscope's time by request and function, and its requests, that did not fit.
    pub(super) wrong_sums: u64,
}

/// The table.
#[derive(Default)]
pub(super) struct Attribution {
    pub(super) rows: Vec<Row>,
    /// Why ddtrace is not in it.
    pub(super) missing: Option<String>,
    pub(super) packages: Vec<(&'static str, String)>,
}

impl Row {
    /// Whether no label is wrong and less than one of a hundred is missing.
    pub(super) const fn is_good(&self) -> bool {
        let Counts { wrong, blank, .. } = self.counts;
        wrong == 0 && self.wrong_sums == 0 && blank * 100 < self.counts.labelled()
    }
}

impl Attribution {
    /// Whether greenscope's lines are good.
    pub(super) fn is_good(&self) -> bool {
        self.rows.iter().filter(|row| row.tool == GREENSCOPE).all(Row::is_good)
    }
}

const GREENSCOPE: &str = "greenscope";

/// Measures all of it.
///
/// # Errors
///
/// When a service or greenscope does not do its part. ddtrace's failure is none.
pub(super) fn measure(python: &Python, seconds: u32) -> Result<Attribution> {
    let mut attribution = Attribution::default();
    for kind in &KINDS {
        let (interpreter, packages) = environment(kind.environment, kind.requirements, python)?;
        attribution.packages.push((kind.name, packages));
        attribution.rows.push(greenscope(kind, &interpreter, seconds)?);
    }
    match environment("accuracy-traced-ddtrace-", DDTRACE_REQUIREMENTS, python)
        .and_then(|(interpreter, packages)| Ok((ddtrace(&interpreter, seconds)?, packages)))
    {
        Ok((rows, packages)) => {
            attribution.rows.extend(rows);
            attribution.packages.push(("ddtrace's tracing", packages));
        }
        Err(error) => {
            let here = format!("{}/", workspace::root().display());
            attribution.missing = Some(format!("{error:#}").replace(&here, ""));
        }
    }
    Ok(attribution)
}

/// The interpreter of an environment, and its packages as pinned.
fn environment(name: &str, requirements: &str, python: &Python) -> Result<(place::Python, String)> {
    let file = workspace::root().join(requirements);
    let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let (major, minor, _) = python.version;
    let name = format!("{name}py{major}.{minor}");
    let environment = Environment::new(&name, python, &text);
    environment.make(python, &file)?;
    let pinned: Vec<&str> =
        text.lines().filter(|line| line.contains("==") && !line.starts_with('#')).collect();
    Ok((place::Python { name, exe: environment.python() }, pinned.join(", ")))
}

/// Runs of the whole mix and runs that switch most, until there is enough.
fn greenscope(kind: &Kind, python: &place::Python, seconds: u32) -> Result<Row> {
    let mut row = Row {
        workload: kind.name,
        tool: GREENSCOPE,
        runs: 0,
        requests: 0,
        counts: Counts::default(),
        reasons: BTreeMap::new(),
        wrong_sums: 0,
    };
    while row.counts.labelled() < OBSERVATIONS {
        if row.runs == MOST_RUNS {
            bail!("{}: {} observations in {MOST_RUNS} runs", kind.name, row.counts.labelled());
        }
        println!("labels, {}: {} of {OBSERVATIONS} observations", kind.name, row.counts.labelled());
        let mix = row.runs.is_multiple_of(3);
        let mut load = vec!["--headers", kind.headers];
        if !mix {
            load.extend(["--only", "/chatty,/slow,/killed,/timeout"]);
        }
        let (requests, verdict) = run(kind, python, seconds, &load)?;
        for mistake in &verdict.mistakes {
            println!("  {mistake}");
        }
        verdict.explained()?;
        let all = verdict.all();
        row.runs += 1;
        row.requests += requests;
        row.counts.right += all.right;
        row.counts.wrong += all.wrong;
        row.counts.blank += all.blank;
        row.counts.rightly_blank += all.rightly_blank;
        row.wrong_sums += verdict.wrong_sums;
        for (reason, count) in verdict.blank_by_reason() {
            *row.reasons.entry(reason).or_default() += count;
        }
    }
    Ok(row)
}

fn run(kind: &Kind, python: &place::Python, seconds: u32, load: &[&str]) -> Result<(u64, Verdict)> {
    let service = Service::start(python, kind.source)?;
    service.warm_up()?;
    let greenscope = Command::new(workspace::greenscope());
    let recording = Recording::start_by(greenscope, service.pid(), &["--intervals"])?;
    let requests = service.load(seconds, load)?;
    let profile = recording.stop()?;
    Ok((requests, service.finish()?.judge(&profile)?))
}

/// A sample of ddtrace's.
#[derive(Debug, Deserialize)]
struct Sample {
    /// Root first.
    functions: Vec<String>,
    /// The root span that it was given.
    request: Option<String>,
    ns: u64,
    cpu_ns: u64,
}

/// All of its samples, and those on a CPU.
fn ddtrace(python: &place::Python, seconds: u32) -> Result<[Row; 2]> {
    println!("labels, ddtrace");
    let samples = workspace::target().join("ddtrace-samples");
    let mut command = Command::new(&python.exe);
    command.arg("-B").arg(workspace::root().join(DDTRACE)).env("SAMPLES", &samples);
    // Its profiler hears of switches by greenlet's trace hook, of which there is one.
    let service = Service::start_by(&mut command, python, Source::Otel, false)?;
    let requests = service.load(seconds.max(10), &["--headers", "none"])?;
    let ledger = service.finish()?;
    let samples = read_samples(&samples)?;
    let row = |tool, counts| Row {
        workload: "ddtrace's own tracing",
        tool,
        runs: 1,
        requests,
        counts,
        reasons: BTreeMap::new(),
        wrong_sums: 0,
    };
    let (all, on_cpu) = judge(&samples, &ledger);
    if all.labelled() == 0 {
        bail!("it has no sample in a function of the books");
    }
    Ok([row("ddtrace", all), row("ddtrace, samples with CPU time", on_cpu)])
}

fn read_samples(path: &Path) -> Result<Vec<Sample>> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

/// Whether each sample's request was in the sample's function then; of all and of those on
/// a CPU.
fn judge(samples: &[Sample], ledger: &Ledger) -> (Counts, Counts) {
    let mut calls: HashMap<(&str, &str), Vec<(u64, u64)>> = HashMap::new();
    let mut names: Vec<&str> = Vec::new();
    for work in &ledger.works {
        // A child may have its maker's, or one of its own.
        let own = std::iter::once(&work.truth).chain(work.spans.iter().map(|span| &span.truth));
        let mut roots: Vec<&str> = own.filter_map(|truth| truth.trace_id.as_deref()).collect();
        roots.dedup();
        for call in &work.functions {
            names.push(&call.function);
            for root in &roots {
                calls.entry((root, &call.function)).or_default().push((call.begin_ns, call.end_ns));
            }
        }
    }
    names.sort_unstable();
    names.dedup();
    let (mut all, mut on_cpu) = (Counts::default(), Counts::default());
    for Sample { functions, request, ns, cpu_ns } in samples {
        let Some(function) = functions.iter().rev().find(|name| names.binary_search(&name.as_str()).is_ok())
        else {
            continue;
        };
        let is_in = |calls: &Vec<(u64, u64)>| {
            calls.iter().any(|(begin, end)| begin.saturating_sub(SLACK_NS) <= *ns && *ns <= end + SLACK_NS)
        };
        let count = |counts: &mut Counts| match request {
            None => counts.blank += 1,
            Some(request) if calls.get(&(request.as_str(), function.as_str())).is_some_and(is_in) => {
                counts.right += 1;
            }
            Some(_) => counts.wrong += 1,
        };
        count(&mut all);
        if *cpu_ns > 0 {
            count(&mut on_cpu);
        }
    }
    (all, on_cpu)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_right_while_its_request_is_in_the_function() {
        let works = r#"[{"labels": "otel", "kind": "request", "serial": 1, "of": null, "endpoint": "/slow",
            "trace_id": "17", "segment_id": null, "span_id": "18", "operation": null, "waited_ns": null,
            "arrived_ns": null, "begin_ns": 1, "end_ns": 2, "answered_ns": null, "greenlet": 1, "spans": [],
            "functions": [{"function": "doze", "state": "wait", "begin_ns": 1000000000,
                           "end_ns": 1100000000, "cpu_ns": null}]}]"#;
        let ledger = Ledger { works: serde_json::from_str(works).unwrap(), switches: Vec::new() };
        let sample = |function: &str, request: Option<&str>, ms: u64| Sample {
            functions: vec!["main".to_owned(), function.to_owned(), "switch".to_owned()],
            request: request.map(str::to_owned),
            ns: ms * 1_000_000,
            cpu_ns: 0,
        };
        let samples = [
            sample("doze", Some("17"), 1050),
            sample("doze", Some("17"), 1119),
            sample("doze", Some("17"), 1121),
            sample("doze", Some("16"), 1050),
            sample("doze", None, 1050),
            sample("other", Some("16"), 1050),
        ];
        let (all, on_cpu) = judge(&samples, &ledger);
        assert_eq!((all.right, all.wrong, all.blank), (2, 2, 1));
        assert_eq!(on_cpu, Counts::default());
    }

    #[test]
    fn one_wrong_label_or_one_blank_of_a_hundred_is_too_much() {
        let row = |right, wrong, blank, wrong_sums| Row {
            workload: "",
            tool: GREENSCOPE,
            runs: 1,
            requests: 1,
            counts: Counts { right, wrong, blank, rightly_blank: 0 },
            reasons: BTreeMap::new(),
            wrong_sums,
        };
        assert!(row(1000, 0, 9, 0).is_good());
        assert!(!row(990, 0, 10, 0).is_good());
        assert!(!row(100_000, 1, 0, 0).is_good());
        assert!(!row(100_000, 0, 0, 1).is_good());
        assert!(!row(0, 0, 0, 0).is_good());
    }
}
