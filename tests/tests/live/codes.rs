//! Code objects that live as long as a job: rules that are compiled, run once and freed.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use tests::compare;
use tests::kind;
use tests::place::Python;
use tests::profile::{Frame, Profile, Stack, State};
use tests::recording::record;
use tests::runner::Cases;
use tests::target::Target;

pub(crate) fn cases(cases: &mut Cases) {
    for kind in ["jobs", "wire"] {
        cases.each(format!("codes_that_live_as_long_as_a_job_keep_their_names/{kind}"), move |python| {
            rules(python, kind)
        });
    }
    for tracer in ["otel-1.45.1-py3.11", "otel-1.45.1-py3.12", "otel-1.45.1-py3.13"] {
        cases.once(format!("codes_that_live_as_long_as_a_job_keep_their_names/spans/{tracer}"), move || {
            rules(&Python::find(tracer)?, "spans")
        });
    }
}

/// The rule that a stack is of, by the file that it was compiled as.
fn rule(stack: &Stack) -> Option<&str> {
    let file = |frame: &Frame| frame.file.as_deref().map(|file| file.starts_with("<rule_"));
    let frame = stack.frames.iter().find(|frame| file(frame) == Some(true))?;
    frame.file.as_deref()?.strip_prefix('<')?.strip_suffix('>')
}

fn rules(python: &Python, mode: &str) -> Result<()> {
    let target = Target::start(python, "rules.py", &[mode])?;
    let (profile, books) = record(target, &[])?;
    let mut seen: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    let (mut blank, mut without_label, mut strange) = (0, 0, None);
    for stack in profile.stacks.iter().filter(|stack| stack.state == State::Wait) {
        blank += if stack.frames.iter().any(Frame::is_blank) { stack.count } else { 0 };
        let Some(rule) = rule(stack) else {
            continue;
        };
        let sum = seen.entry(rule).or_default();
        *sum = (sum.0 + stack.count, sum.1 + stack.ns);
        match &stack.label.endpoint {
            Some(endpoint) if endpoint.ends_with(rule) => {}
            Some(_) => strange = Some(stack),
            None => without_label += stack.count,
        }
        // What a rule shows is its own, down to the line.
        let mut shown =
            stack.frames.iter().filter(|frame| frame.file.as_deref().is_some_and(|f| f.contains(rule)));
        if shown.any(|frame| frame.line != line(rule, frame)) {
            strange = Some(stack);
        }
    }
    let (mut truth, mut named, mut too_many) = (0, 0, 0);
    for (rule, time) in &books.times {
        let (count, _) = seen.get(rule.as_str()).copied().unwrap_or_default();
        truth += time.calls;
        // Another one's wait under its name would be one too many.
        named += count.min(time.calls);
        too_many += count.saturating_sub(time.calls);
    }
    kind::row("waits under their rules", truth, named);
    kind::row("waits under another's", 0, too_many);
    if mode != "jobs" {
        kind::row("waits with a label", truth, (named + too_many).saturating_sub(without_label));
    }
    println!("      {blank} blank");
    compare::switches(&profile, &books.book)?;
    ensure!(strange.is_none(), "another's: {strange:?}");
    for (rule, time) in &books.times {
        let (count, ns) = seen.get(rule.as_str()).copied().unwrap_or_default();
        ensure!(count <= time.calls && ns <= time.ns, "{rule}: {count} in {ns} ns, of {time:?}");
    }
    ensure!(books.times.len() == 40 && truth > 1_000, "{truth} waits of {} rules", books.times.len());
    ensure!(named * 100 >= truth * 99, "{named} of {truth} waits under their rules: {:?}", faults(&profile));
    ensure!(blank == 0 || !faults(&profile).is_empty(), "{blank} waits are blank, and nothing says so");
    if mode != "jobs" {
        ensure!(without_label * 100 <= truth, "{without_label} of {truth} waits without a label");
    }
    Ok(())
}

/// The line that waits in a frame of a rule, by its form.
fn line(rule: &str, frame: &Frame) -> Option<u32> {
    let number: u32 = rule.strip_prefix("rule_")?.parse().ok()?;
    Some(match (number % 4, frame.function.as_deref()) {
        (0, _) => 2,
        (1, Some("run")) => 5,
        (1, _) => 3,
        (2, _) => number + 3,
        _ => 1,
    })
}

fn faults(profile: &Profile) -> BTreeMap<&str, u64> {
    let of_codes = |name: &str| name.starts_with("CODE_") || name.starts_with("STACK");
    profile
        .totals
        .faults
        .iter()
        .filter(|(name, _)| of_codes(name))
        .map(|(name, count)| (name.as_str(), *count))
        .collect()
}
