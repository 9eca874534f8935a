//! spans.py: what a reader should find at greenlets that hold spans in every form.

use std::collections::{BTreeSet, HashMap};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;
use serde_json::Value;

use crate::label::{Label, Source};
use crate::profile::{Open, Profile, Stack, State};
use crate::works::Truth;

/// Bytes of a text that greenscope keeps (docs/json-format.md).
const KEPT: usize = 112;
/// Waits of children that were made before the recording: nobody saw who made them.
const MADE_BEFORE: u64 = 4;
/// So many differences are shown.
const SHOWN: usize = 12;

/// What `ready` says.
#[derive(Debug, Deserialize)]
pub struct Spans {
    /// What tells of requests there.
    pub labels: Source,
    cases: Vec<Case>,
    births: Vec<Birth>,
}

/// A greenlet or a thread, and what it should be found with.
#[derive(Debug, Deserialize)]
struct Case {
    function: String,
    switches: bool,
    thread: bool,
    label: Option<Expected>,
    may_be_null: bool,
    inherited: bool,
}

/// Greenlets that are born while it runs.
#[derive(Debug, Deserialize)]
struct Birth {
    function: String,
    label: Option<Expected>,
    /// Another label each, that nobody else has.
    own: bool,
}

#[derive(Debug, Deserialize)]
struct Expected {
    #[serde(flatten)]
    truth: Truth,
    endpoint: Option<String>,
}

/// A label since when.
#[derive(Debug, Deserialize)]
struct Change {
    since_ns: u64,
    label: Expected,
}

impl Spans {
    /// What the program said when it was ready.
    ///
    /// # Errors
    ///
    /// When it is of another form.
    pub fn of(ready: &Value) -> Result<Self> {
        serde_json::from_value(ready.clone()).context("what spans.py said of itself")
    }

    /// Holds a recording against what should be found; `done` is what the program said at
    /// its end.
    ///
    /// # Errors
    ///
    /// Lists what differs.
    pub fn hold(&self, profile: &Profile, done: &Value) -> Result<()> {
        let mut wrong = Vec::new();
        let mut rows: HashMap<&str, Vec<&Stack>> = HashMap::new();
        let names: BTreeSet<&str> = (self.cases.iter().map(|case| case.function.as_str()))
            .chain(self.births.iter().map(|birth| birth.function.as_str()))
            .collect();
        for stack in &profile.stacks {
            let mut functions = stack.frames.iter().filter_map(|frame| frame.function.as_deref());
            if let Some(name) = functions.find(|name| names.contains(name)) {
                rows.entry(name).or_default().push(stack);
            }
        }
        let changes = done.pointer("/books/changes").cloned().context("no changes")?;
        let changes: Vec<Change> = serde_json::from_value(changes)?;
        for case in self.cases.iter().filter(|case| case.function != "changes") {
            let rows = rows.get(case.function.as_str()).map_or(&[][..], Vec::as_slice);
            wrong.extend(self.case(case, rows).err());
        }
        for birth in &self.births {
            let rows = rows.get(birth.function.as_str()).map_or(&[][..], Vec::as_slice);
            wrong.extend(self.birth(birth, rows).err());
        }
        let rows = rows.get("changes").map_or(&[][..], Vec::as_slice);
        wrong.extend(self.changing(profile, &changes, rows).err());
        if wrong.is_empty() {
            return Ok(());
        }
        let shown: Vec<String> = wrong.iter().take(SHOWN).map(|wrong| format!("\n  {wrong:#}")).collect();
        bail!("{} of {} cases differ{}", wrong.len(), self.cases.len() + self.births.len(), shown.concat());
    }

    fn case(&self, case: &Case, rows: &[&Stack]) -> Result<()> {
        let Case { function, switches, thread, label: expected, may_be_null, inherited } = case;
        // A thread that sleeps through the whole recording has no stack.
        ensure!(!rows.is_empty() || *thread && !switches, "{function} is in no stack");
        for row in rows {
            let label = &row.label;
            let right = match expected {
                None => label.source.is_none(),
                // A tick may come where a span of it begins or ends.
                Some(expected) if row.state == State::Cpu => {
                    label.source.is_none() || is_of_request(label, &expected.truth)
                }
                Some(_) if label.source.is_none() => *may_be_null || is_unfinished_sleep(row),
                Some(expected) => self.is(label, expected, *inherited),
            };
            let (state, open) = (row.state, row.open);
            ensure!(right, "{function} ({state:?}, {open:?}) has {label:?}, right is {expected:?}");
        }
        Ok(())
    }

    fn birth(&self, birth: &Birth, rows: &[&Stack]) -> Result<()> {
        let Birth { function, label: expected, own } = birth;
        let (mut labelled, mut blank) = (0, 0);
        // Before its first line a greenlet has what its maker had: where ticks may meet it.
        for row in rows.iter().filter(|row| row.state == State::Wait) {
            let label = &row.label;
            if label.source.is_none() {
                blank += row.count;
                continue;
            }
            labelled += row.count;
            let right = match expected {
                Some(expected) => self.is(label, expected, true),
                None => *own && !label.is_inherited() && label.source == Some(self.labels),
            };
            ensure!(right, "{function} has {label:?}, right is {expected:?}, or an own one: {own}");
        }
        let should = expected.is_some() || *own;
        ensure!(!should || blank <= MADE_BEFORE, "{function}: {blank} without a label");
        ensure!(!should || labelled > MADE_BEFORE, "{function}: {labelled} with a label");
        if *own {
            let each: BTreeSet<&Label> = rows
                .iter()
                .filter(|row| row.state == State::Wait && row.label.source.is_some())
                .map(|row| &row.label)
                .collect();
            ensure!(each.len() as u64 == labelled, "{function}: {} labels of {labelled}", each.len());
        }
        Ok(())
    }

    /// Each label is there while it is true, and only then.
    fn changing(&self, profile: &Profile, changes: &[Change], rows: &[&Stack]) -> Result<()> {
        let key = |trace: &Option<String>, segment: &Option<String>, span: &Option<String>| {
            (trace.clone(), segment.clone(), span.clone())
        };
        let mut until_ns = u64::MAX;
        let mut times = HashMap::new();
        for Change { since_ns, label } in changes.iter().rev() {
            let Truth { trace_id, segment_id, span_id, operation: _ } = &label.truth;
            times.insert(key(trace_id, segment_id, span_id), (*since_ns, until_ns));
            until_ns = *since_ns;
        }
        let of = |label: &Label| key(&label.trace_id, &label.segment_id, &label.span);
        for row in rows.iter().filter(|row| row.label.source.is_some()) {
            ensure!(times.contains_key(&of(&row.label)), "changes has {:?}, which it never had", row.label);
        }
        let intervals = profile.intervals.as_ref().context("no intervals: record with --intervals")?;
        let mut seen = 0;
        for wait in intervals.iter().filter(|wait| wait.is_wait && !wait.open.is_some_and(Open::at_begin)) {
            let Some((since_ns, until_ns)) = times.get(&of(&wait.label)) else { continue };
            let ns = wait.begin_ns + profile.started_monotonic_ns;
            ensure!(
                *since_ns <= ns && ns <= *until_ns,
                "changes had {:?} from {since_ns} to {until_ns}, not at {ns}",
                wait.label
            );
            seen += 1;
        }
        let waits =
            rows.iter().filter(|row| row.state == State::Wait && !row.open.is_some_and(Open::at_begin));
        let waits: u64 = waits.map(|row| row.count).sum();
        // Each wait has another label, and each of them is one that was true.
        ensure!(waits > 0 && seen == waits, "{seen} of {waits} waits of changes have their label");
        Ok(())
    }

    /// Whether the label is that one, as far as it is known.
    fn is(&self, label: &Label, expected: &Expected, inherited: bool) -> bool {
        let Truth { trace_id, segment_id, span_id, operation } = &expected.truth;
        // A part of an id is none.
        let trace_id = trace_id.as_ref().filter(|id| id.len() <= KEPT);
        let endpoint = expected.endpoint.as_deref().and_then(shown);
        label.source == Some(self.labels)
            && label.trace_id.as_ref() == trace_id
            && label.segment_id == *segment_id
            && (span_id.is_none() || label.span == *span_id)
            && label.operation == operation.as_deref().and_then(shown)
            // Not every version tells; and not of spans without an entry span.
            && (label.endpoint.is_none() || expected.endpoint.is_none() || label.endpoint == endpoint)
            && label.inherited == Some(inherited)
    }
}

/// Whether the label is that of the same request.
fn is_of_request(label: &Label, truth: &Truth) -> bool {
    label.segment_id == truth.segment_id
        && (label.trace_id == truth.trace_id || label.trace_id.is_none() && truth.segment_id.is_some())
}

/// The time of a sleep that the end of the recording cut has its stack and no label.
fn is_unfinished_sleep(row: &Stack) -> bool {
    row.state != State::Wait && row.count == 0
}

/// A text as greenscope shows it: cut where it is too long, and none where it is empty.
fn shown(text: &str) -> Option<String> {
    let width = match text.chars().map(u32::from).max()? {
        0..=0xff => 1,
        0x100..=0xffff => 2,
        _ => 4,
    };
    let kept = KEPT / width;
    let cut = if text.chars().count() > kept { "…" } else { "" };
    Some(text.chars().take(kept).collect::<String>() + cut)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_as_the_format_says() {
        assert_eq!(shown(""), None);
        assert_eq!(shown(&"n".repeat(112)), Some("n".repeat(112)));
        assert_eq!(shown(&"n".repeat(113)), Some("n".repeat(112) + "…"));
        assert_eq!(shown(&"ж".repeat(57)), Some("ж".repeat(56) + "…"));
        assert_eq!(shown(&"\u{1f40d}".repeat(29)), Some("\u{1f40d}".repeat(28) + "…"));
    }
}
