//! The labels of waits against the book of the switches.

use std::collections::{BTreeMap, HashMap, HashSet};

use anyhow::{Context as _, Result, bail, ensure};

use super::{Evidence, People, Verdict, asked};
use crate::label::{Interval, Label, Source};
use crate::profile::Profile;
use crate::works::{Context, Switch, Truth, Work};

/// Switches at either end that one of both need not have: where the recording begins or
/// ends between a switch and its line in the book.
const EDGE: usize = 4;

/// A switch as the intervals tell it.
#[derive(Clone, Copy, Debug)]
struct Seen {
    ns: u64,
    leaver: u64,
    enterer: u64,
}

/// What a wait should be labelled with.
enum Expected<'a> {
    None,
    /// No span; perhaps what the wire says of the request that is worked on, or was until now.
    Wire(&'a Work),
    Label {
        truth: &'a Truth,
        /// What the request's book says of it.
        names: Names<'a>,
        inherited: bool,
        /// Whether it must be there: around a request's begin and end it may.
        required: bool,
    },
}

impl Expected<'_> {
    const fn is_required(&self) -> bool {
        matches!(self, Self::Label { required: true, .. })
    }
}

/// What a label is called; null where the book does not tell.
#[derive(Clone, Copy, Default)]
struct Names<'a> {
    trace_id: Option<&'a str>,
    endpoint: Option<&'a str>,
    operation: Option<&'a str>,
}

/// Judges each wait that began inside of the recording; returns how many switches had to be
/// without a label, by greenscope's name for the reason.
pub(super) fn judge<'a>(
    evidence: &Evidence<'a>,
    people: &People<'a>,
    verdict: &mut Verdict,
) -> Result<BTreeMap<&'static str, u64>> {
    let profile = evidence.profile;
    let intervals = profile.intervals.as_ref().context("no intervals: record with --intervals")?;
    for fault in ["INTERVALS_FULL", "RING_FULL_SWITCH", "RING_FULL_END", "GREENLETS_FULL", "OUT_OF_STEP"] {
        ensure!(!profile.totals.faults.contains_key(fault), "{fault}: {:?}", profile.totals.faults);
    }
    let (seen, waits) = sequence(profile, intervals)?;
    let pairs = matched(&seen, evidence.switches)?;
    same_greenlets(&pairs)?;
    let mut rightly = BTreeMap::new();
    let (mut unmatched, mut begin_ns) = (0, 0);
    for (seen, switch) in pairs {
        let truth = own_truth(switch);
        let expected = expected(evidence, people, seen, switch, &truth);
        let wait = waits.get(&(seen.leaver, seen.ns));
        // What has its label from the wire is no blank, nor is a child's last switch, by the time of
        // which its book has ended.
        let is_given = match expected {
            Expected::Wire(_) => wait.is_some_and(|wait| wait.label.source == Some(Source::Wire)),
            _ if switch.state == Context::Dead => {
                let child = people.child(switch.leaver, begin_ns);
                let request = child.and_then(|child| people.request_of(child));
                request.is_some_and(|request| !request.is_answered(seen.ns))
            }
            _ => false,
        };
        begin_ns = seen.ns;
        if !expected.is_required()
            && !is_given
            && let Some(reason) = switch.reason()
        {
            let reason = match (people.source, &expected, switch.state) {
                (Source::Wire, ..) => "NO_REQUEST",
                // The book is written when its greenlet is dead; greenscope looked before.
                (Source::Agent, Expected::Wire(_), Context::Dead) => "NO_SPAN",
                (Source::Otel, Expected::Wire(_), Context::Dead) => "NOT_SET",
                _ => reason,
            };
            *rightly.entry(reason).or_default() += 1;
        }
        match (wait, switch.state) {
            (None, Context::Dead) => {}
            (Some(wait), Context::Dead) => bail!("a dead greenlet waits: {wait:?}, {switch:?}"),
            (None, _) => unmatched += 1,
            (Some(wait), _) => count(evidence, people, &wait.label, &expected, switch, verdict),
        }
    }
    ensure!(unmatched <= EDGE, "{unmatched} switches without the wait that they begin");
    Ok(rightly)
}

/// The switches of the service's thread in order, and its waits by greenlet and begin.
#[expect(clippy::type_complexity, reason = "two lists that are made of one")]
fn sequence<'a>(
    profile: &Profile,
    intervals: &'a [Interval],
) -> Result<(Vec<Seen>, HashMap<(u64, u64), &'a Interval>)> {
    let [target] = profile.targets.as_slice() else { bail!("not one target: {:?}", profile.targets) };
    // gevent's hub is in the main thread; its workers' threads have main greenlets only.
    let of_thread: HashSet<u64> = profile
        .greenlets
        .iter()
        .filter(|greenlet| greenlet.tid == Some(target.pid))
        .filter_map(|greenlet| greenlet.id.as_u64())
        .collect();
    ensure!(profile.totals.greenlets_unlisted == 0, "unlisted greenlets: record with --max-greenlets");
    let started_ns = profile.started_monotonic_ns;
    let own = || intervals.iter().filter(|interval| of_thread.contains(&interval.greenlet));
    let mut runs: Vec<&Interval> = own().filter(|interval| !interval.is_wait).collect();
    runs.sort_by_key(|run| run.begin_ns);
    let mut seen = Vec::with_capacity(runs.len());
    for (run, next) in runs.iter().zip(runs.iter().skip(1)) {
        ensure!(run.end_ns == next.begin_ns, "nobody runs, or two: {run:?}, {next:?}");
        let ns = started_ns + run.end_ns;
        seen.push(Seen { ns, leaver: run.greenlet, enterer: next.greenlet });
    }
    let waits = own()
        .filter(|interval| interval.is_wait && !interval.open.is_some_and(crate::profile::Open::at_begin));
    let waits = waits.map(|wait| ((wait.greenlet, started_ns + wait.begin_ns), wait)).collect();
    Ok((seen, waits))
}

/// Each switch beside its line in the book.
///
/// The book's line is written after the switch, by the one that goes on, before it can
/// switch itself; both have the same clock. So between a switch and the next one lies
/// exactly one line, however late it is.
fn matched<'a>(seen: &[Seen], book: &'a [Switch]) -> Result<Vec<(Seen, &'a Switch)>> {
    let (Some(first), Some(last)) = (seen.first(), seen.last()) else { bail!("no switch was seen") };
    ensure!(book.is_sorted_by_key(|switch| switch.ns), "the book of the switches is not in order");
    let begin = book.partition_point(|switch| switch.ns <= first.ns);
    let end = book.partition_point(|switch| switch.ns <= last.ns);
    let inside = book.get(begin..).unwrap_or_default();
    let mut pairs = Vec::with_capacity(seen.len());
    for (number, switch) in seen.iter().enumerate() {
        let next_ns = seen.get(number + 1).map_or(u64::MAX, |next| next.ns);
        match inside.get(number) {
            Some(line) if switch.ns < line.ns && line.ns < next_ns => pairs.push((*switch, line)),
            // The last lines may lie behind the end of the service's book.
            None if number + EDGE >= seen.len() => {}
            other => {
                bail!("switch {number} of {}, {switch:?}, has no line of its own: {other:?}", seen.len())
            }
        }
    }
    let lines = end.saturating_sub(begin);
    ensure!(lines.abs_diff(seen.len()) <= EDGE, "{} switches, {lines} lines in the book", seen.len());
    Ok(pairs)
}

/// A greenlet of greenscope's is at one address, and an address is one greenlet's at a time.
fn same_greenlets(pairs: &[(Seen, &Switch)]) -> Result<()> {
    let mut address_of: HashMap<u64, u64> = HashMap::new();
    let mut holder: HashMap<u64, u64> = HashMap::new();
    for (seen, switch) in pairs {
        for (id, address) in [(seen.leaver, switch.leaver), (seen.enterer, switch.enterer)] {
            let known = address_of.insert(id, address);
            ensure!(known.is_none_or(|known| known == address), "greenlet {id} is two: {seen:?}, {switch:?}");
            let before = holder.insert(address, id);
            ensure!(
                before == Some(id) || known.is_none(),
                "{address:#x} is two greenlets at a time: {seen:?}"
            );
        }
    }
    Ok(())
}

/// The ids that Python's own API told of the leaver's context.
fn own_truth(switch: &Switch) -> Truth {
    let Switch { segment_id, trace_id, span_id, .. } = switch.clone();
    Truth { trace_id, segment_id, span_id, operation: None }
}

fn expected<'a>(
    evidence: &Evidence<'a>,
    people: &People<'a>,
    seen: Seen,
    switch: &Switch,
    own: &'a Truth,
) -> Expected<'a> {
    // The moment of the switch, by the book's clock.
    let (ns, address) = (seen.ns, switch.leaver);
    if switch.is_live() {
        let names = names(people, own);
        return Expected::Label { truth: own, names, inherited: false, required: true };
    }
    if let Some(child) = people.child(address, ns) {
        let known = people.source == Source::Wire || !child.truth.is_none();
        if !evidence.inherits {
            return Expected::None;
        }
        let Some(request) = people.request_of(child).filter(|request| !request.is_answered(ns)) else {
            // It outlives its request.
            return Expected::None;
        };
        if !known {
            return Expected::Wire(request);
        }
        let names = match people.source {
            Source::Wire => Names { endpoint: Some(&child.endpoint), ..Names::default() },
            Source::Agent | Source::Otel => names(people, &child.truth),
        };
        // What the maker does after its answer is seen by nobody: the label may end between.
        let required = request.end_ns.is_none_or(|end_ns| ns <= end_ns);
        return Expected::Label { truth: &child.truth, names, inherited: true, required };
    }
    match people.request(address, ns) {
        Some(request) if people.source == Source::Wire => Expected::Label {
            truth: &request.truth,
            names: Names { endpoint: Some(&request.endpoint), ..Names::default() },
            inherited: false,
            required: request.arrived_ns.is_some_and(|arrived_ns| arrived_ns < ns)
                && request.answered_ns.is_none_or(|answered_ns| ns <= answered_ns),
        },
        Some(request) if request.arrived_ns.is_some_and(|arrived_ns| arrived_ns < ns) => {
            Expected::Wire(request)
        }
        _ => Expected::None,
    }
}

/// Whether the label is what the wire says of that request, or the tracer without a span.
fn is_of_wire(people: &People<'_>, label: &Label, request: &Work) -> bool {
    match label.source {
        Some(Source::Wire) => {
            label.endpoint.as_deref().and_then(|seen| asked(Source::Wire, seen)) == Some(&request.endpoint)
        }
        Some(_) => people.key_of(label).is_some() && people.key_of(label) == people.key(&request.truth),
        None => true,
    }
}

/// What the label of a tracer is called, by the work that has it.
fn names<'a>(people: &People<'a>, own: &Truth) -> Names<'a> {
    let key = |truth: &Truth| match people.source {
        Source::Agent => truth.segment_id.clone(),
        Source::Otel | Source::Wire => truth.trace_id.clone(),
    };
    let wanted = key(own);
    let Some(owner) = wanted.as_deref().and_then(|key| people.owners.get(key)) else {
        return Names::default();
    };
    let mut names = Names { endpoint: owner.endpoint, ..Names::default() };
    for truth in std::iter::once(&owner.work.truth).chain(owner.work.spans.iter().map(|span| &span.truth)) {
        if key(truth) == wanted {
            names.trace_id = truth.trace_id.as_deref();
            if truth.span_id == own.span_id {
                names.operation = truth.operation.as_deref();
            }
        }
    }
    names
}

fn count(
    evidence: &Evidence<'_>,
    people: &People<'_>,
    label: &Label,
    expected: &Expected<'_>,
    switch: &Switch,
    verdict: &mut Verdict,
) {
    let seen = label.source.is_some();
    match expected {
        Expected::None | Expected::Wire(_) if !seen => verdict.switches.rightly_blank += 1,
        Expected::Wire(request) if is_of_wire(people, label, request) => verdict.switches.right += 1,
        Expected::Label { required: true, inherited, .. } if !seen => {
            verdict.switches.blank += 1;
            verdict.unhanded += u64::from(*inherited);
            verdict.wrong(|| format!("blank: {switch:?}"));
        }
        Expected::Label { .. } if !seen => verdict.switches.rightly_blank += 1,
        Expected::Label { truth, names, inherited, required: _ }
            if is_same(people, label, truth, *inherited, evidence.pieces)
                && names_fit(people.source, label, names) =>
        {
            verdict.switches.right += 1;
            let traced = truth.trace_id.is_none() && names.trace_id.is_none() || label.trace_id.is_some();
            verdict.nameless += u64::from(!traced || label.endpoint.is_none());
        }
        Expected::None | Expected::Wire(_) | Expected::Label { .. } => {
            verdict.switches.wrong += 1;
            let truth = match expected {
                Expected::None => "none".to_owned(),
                Expected::Wire(request) => format!("none, or {}", request.endpoint),
                Expected::Label { truth, names, inherited, required: _ } => {
                    format!("{truth:?} of {:?}, inherited {inherited}", names.endpoint)
                }
            };
            verdict.wrong(|| format!("wrong: {label:?} instead of {truth} at {switch:?}"));
        }
    }
}

/// Whether the label's identity is the true one.
fn is_same(people: &People<'_>, label: &Label, truth: &Truth, inherited: bool, pieces: bool) -> bool {
    let identity = match people.source {
        Source::Agent => label.segment_id == truth.segment_id && label.span == truth.span_id,
        Source::Otel => label.trace_id == truth.trace_id && label.span == truth.span_id,
        Source::Wire => label.trace_id == truth.trace_id || pieces && label.trace_id.is_none(),
    };
    identity && label.source == Some(people.source) && label.inherited == Some(inherited)
}

/// Whether what it is called is true, or not known to one of both.
fn names_fit(source: Source, label: &Label, names: &Names<'_>) -> bool {
    let fits = |seen: Option<&str>, truth: Option<&str>| {
        seen.is_none_or(|seen| truth.is_none_or(|truth| seen == truth))
    };
    let endpoint = label.endpoint.as_deref();
    fits(endpoint.map(|seen| asked(source, seen).unwrap_or_default()), names.endpoint)
        && fits(label.trace_id.as_deref(), names.trace_id)
        && fits(label.operation.as_deref(), names.operation)
}
