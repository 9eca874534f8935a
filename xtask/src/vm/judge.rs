//! Reads what a test machine left behind, prints it, and counts what is wrong.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::Context as _;
use serde::Deserialize;
use serde_json::Value;

use super::verdict::{
    self, Report, Truth,
    clocks::{self, Scheduled},
};

/// Involuntary context switches below which a run has shown nothing.
const MIN_INVOLUNTARY: u64 = 300;
/// Wrong things shown before the rest is only counted.
const SHOWN: usize = 10;
/// More than this the verifier refuses (`BPF_COMPLEXITY_LIMIT_INSNS`).
const VERIFIER_LIMIT: u64 = 1_000_000;

/// What drive.py saw around a phase.
#[derive(Deserialize)]
struct Facts {
    error: Option<String>,
    greenscopes: Vec<Ended>,
    /// Involuntary context switches by pid.
    #[serde(default)]
    involuntary: BTreeMap<String, u64>,
    /// What the scheduler counted of each.
    #[serde(default)]
    scheduled: Scheduled,
    preempted: Option<Places>,
    /// Greenlet switches by pid, counted by the kernel.
    counted: Option<BTreeMap<String, u64>>,
    start_ms: Option<u64>,
    /// Instructions that the verifier walked through, by program, the largest first.
    #[serde(default)]
    verified: Vec<u64>,
    canary: Option<Canary>,
}

/// How often a program with per-CPU scratch ran, and found its scratch changed.
#[derive(Deserialize)]
struct Canary {
    runs: u64,
    overwritten: u64,
}

/// A greenscope that drive.py ran.
#[derive(Deserialize)]
struct Ended {
    exit: i32,
    name: Option<String>,
    out: Option<String>,
    log: Option<String>,
}

/// Where the targets were when they were scheduled away.
#[derive(Deserialize)]
#[serde(untagged)]
enum Places {
    Counted { involuntary: u64, in_uprobe: u64, in_bpf_program: u64, dropped: u64 },
    Not { error: String },
}

/// Judges a recording phase; gives the number of things wrong.
pub(super) fn recording(
    name: &str,
    folder: &Path,
    programs_are_preempted: bool,
    allowed_faults: &[String],
) -> anyhow::Result<usize> {
    let facts: Facts = read(&folder.join("facts.json"))?;
    if let Some(error) = &facts.error {
        println!("  {name}: {error}");
        show_logs(folder, &facts)?;
        return Ok(1);
    }
    let mut truths: Vec<Truth> = Vec::new();
    for number in 0..facts.involuntary.len() {
        truths.push(read(&folder.join(format!("truth-{number}.json")))?);
    }
    let mut wrong = Vec::new();
    preemption(name, &facts, programs_are_preempted, &mut wrong);
    if let Some(counted) = &facts.counted {
        own_books(counted, &truths, &mut wrong);
    }
    if let Some(Canary { runs, overwritten }) = facts.canary {
        println!("    a program with per-CPU scratch: {overwritten} of {runs} runs overwritten");
        if overwritten == 0 && programs_are_preempted {
            wrong.push("even a wrong program passes here: this run proves nothing".to_owned());
        }
    }
    if let Some(start_ms) = facts.start_ms {
        println!("    recording after {start_ms} ms");
    }
    for (number, ended) in facts.greenscopes.iter().enumerate() {
        if ended.exit != 0 {
            wrong.push(format!("greenscope {number} ended with {}", ended.exit));
            continue;
        }
        let out = ended.out.as_deref().unwrap_or_default();
        let report: Report = read(&folder.join(out))?;
        let verdict = verdict::compare(&report, &truths, allowed_faults);
        println!("    greenscope {number}: {verdict}");
        let clocks = clocks::compare(&report, &truths, &facts.scheduled);
        println!("    greenscope {number}: {clocks}");
        let both = verdict.wrong.into_iter().chain(clocks.wrong);
        wrong.extend(both.map(|line| format!("greenscope {number}: {line}")));
    }
    for line in wrong.iter().take(SHOWN) {
        println!("    wrong: {line}");
    }
    if wrong.len() > SHOWN {
        println!("    wrong: and {} more", wrong.len() - SHOWN);
    }
    if facts.greenscopes.iter().any(|ended| ended.exit != 0) {
        show_logs(folder, &facts)?;
    }
    Ok(wrong.len())
}

fn preemption(name: &str, facts: &Facts, programs_are_preempted: bool, wrong: &mut Vec<String>) {
    let involuntary: u64 = facts.involuntary.values().sum();
    println!("  {name}: {} processes, {involuntary} involuntary context switches", facts.involuntary.len());
    if involuntary < MIN_INVOLUNTARY {
        wrong.push(format!(
            "{involuntary} involuntary switches prove nothing, {MIN_INVOLUNTARY} are wanted: give it more --seconds"
        ));
    }
    match &facts.preempted {
        Some(Places::Counted { involuntary, in_uprobe, in_bpf_program, dropped }) => {
            println!(
                "    preempted {involuntary} times, {in_uprobe} of them inside a uprobe, {in_bpf_program} inside a BPF program ({dropped} not counted)"
            );
            if *in_bpf_program == 0 && programs_are_preempted && !facts.greenscopes.is_empty() {
                wrong.push("no program was ever preempted: this run proves nothing".to_owned());
            }
        }
        Some(Places::Not { error }) => {
            println!("    where they were preempted is unknown: {error}");
        }
        None => {}
    }
}

/// Compares the targets' own books with a count in the kernel that is not greenscope's.
fn own_books(counted: &BTreeMap<String, u64>, truths: &[Truth], wrong: &mut Vec<String>) {
    for truth in truths {
        let seen = counted.get(&truth.pid.to_string()).copied().unwrap_or(0);
        let line =
            format!("pid {}: {} switches by its own books, {seen} by the kernel", truth.pid, truth.switches);
        println!("    {line}");
        if seen != truth.switches {
            wrong.push(line);
        }
    }
}

/// Judges whether a kernel took the programs; gives the number of things wrong,
/// and prints every log where there are some.
pub(super) fn load(folder: &Path) -> anyhow::Result<usize> {
    let facts: Facts = read(&folder.join("facts.json"))?;
    let mut wrong = 0;
    for ended in &facts.greenscopes {
        let name = ended.name.as_deref().unwrap_or_default();
        println!("  greenscope {name}: exit {}", ended.exit);
        wrong += usize::from(ended.exit != 0);
    }
    if let Some(start_ms) = facts.start_ms {
        println!(
            "  recording after {start_ms} ms; verified instructions by program, of at most {VERIFIER_LIMIT}: {:?}",
            facts.verified
        );
    }
    if let Some(error) = &facts.error {
        println!("  {error}");
        wrong += 1;
    }
    if wrong == 0 {
        let report: Value = read(&folder.join("out-0.json"))?;
        let totals = report.get("totals").unwrap_or(&Value::Null);
        println!("  recorded: {totals}");
        if totals.get("switches").and_then(Value::as_u64).unwrap_or(0) == 0 {
            println!("  it loaded, but saw no switch of a target that makes many");
            wrong += 1;
        }
        // Without these greenscope goes on, and says so in its log.
        for part in ["cpu_samples", "unlisted_on_cpu_ns"] {
            if totals.get(part).is_none_or(Value::is_null) {
                println!("  it loaded in part: no {part}");
                wrong += 1;
            }
        }
    }
    if wrong > 0 {
        show_logs(folder, &facts)?;
    }
    Ok(wrong)
}

/// All that the greenscopes of a phase said: a verifier's log is long, and wanted.
fn show_logs(folder: &Path, facts: &Facts) -> anyhow::Result<()> {
    let named = facts.greenscopes.iter().filter_map(|ended| ended.log.clone());
    let numbered = (0..4).map(|number| format!("greenscope-{number}.log"));
    for log in named.chain(numbered).map(|name| folder.join(name)).filter(|path| path.is_file()) {
        println!("--- {}", log.file_name().unwrap_or_default().to_string_lossy());
        println!("{}", String::from_utf8_lossy(&fs::read(&log)?).trim_end());
    }
    Ok(())
}

fn read<T: for<'de> Deserialize<'de>>(path: &Path) -> anyhow::Result<T> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let text = fs::read(path).with_context(|| format!("the machine left no {name}: see its drive.log"))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is not as expected", path.display()))
}
