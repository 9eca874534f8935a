//! Labelled stacks, requests and endpoints against the book of the requests.

use std::collections::{BTreeMap, HashMap};

use anyhow::Result;

use super::{Evidence, Owner, People, Verdict, asked};
use crate::label::{Label, Source};
use crate::profile::{Stack, State};
use crate::works::{Call, Doing, Kind, Work};

/// Between two ticks of a processor's clock, by the default rate. Into a time fits one for
/// each period of it and one more; and one of another processor, where a call may end.
const TICK_NS: u64 = 1_000_000_000 / 97;
const TICKS_MORE: u64 = 2;
/// Off the CPU a thread's time is counted by the scheduler's clock, which leads by this much
/// at most; after a `CAME_UNSEEN` by a tick of it (docs/faults.md).
const LEAD_NS: u64 = 1_000_000;
const UNSEEN_NS: u64 = 10_000_000;
/// The time of all calls of a function agrees within one fiftieth, ...
const SHARE: u64 = 50;
/// ... and what lies between a call's line in the book and its wait, or its sleep.
const CALL_NS: u64 = 200_000;

/// A request from the wire lasts until the next head is read, a little after its answer.
const NEXT_HEAD_NS: u64 = 100_000_000;

/// The functions that answer, and those of the greenlets that they make.
const VIEWS: [(&str, &str, Kind); 13] = [
    ("slow", "/slow", Kind::Request),
    ("chatty", "/chatty", Kind::Request),
    ("busy", "/busy", Kind::Request),
    ("mixed", "/mixed", Kind::Request),
    ("spawning", "/spawn", Kind::Request),
    ("orphan", "/orphan", Kind::Request),
    ("timeout", "/timeout", Kind::Request),
    ("fail", "/fail", Kind::Request),
    ("killed", "/killed", Kind::Request),
    ("ignored", IGNORED, Kind::Request),
    ("spawned_early", "/spawn", Kind::Child),
    ("spawned_late", "/spawn", Kind::Child),
    (OUTLIVES, "/orphan", Kind::Child),
];
/// It goes on when its request is answered: between its calls nobody tells on which side of that.
const OUTLIVES: &str = "outlives";
/// What the tracers are told not to trace.
const IGNORED: &str = "/static-ignored";

/// Whose time it is: that of a request, or of what it made.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
struct Whose<'a> {
    key: Option<&'a str>,
    /// Of requests without a trace, which are told apart by it only.
    endpoint: &'a str,
    inherited: bool,
}

/// Calls of one function.
#[derive(Clone, Copy, Debug, Default)]
struct Booked {
    calls: u64,
    wall_ns: u64,
    cpu_ns: u64,
}

/// What was seen in one function.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    /// Waiting, from switch to switch.
    wait_ns: u64,
    /// Blocked, or without the GIL.
    off_ns: u64,
    /// On the CPU, by ticks.
    cpu_ns: u64,
}

impl Booked {
    fn add(&mut self, more: Self) {
        self.calls += more.calls;
        self.wall_ns += more.wall_ns;
        self.cpu_ns += more.cpu_ns;
    }
}

impl Seen {
    fn add(&mut self, stack: &Stack) {
        match stack.state {
            State::Cpu | State::Switching => self.cpu_ns += stack.ns,
            State::Wait => self.wait_ns += stack.ns,
            State::Blocked | State::Gil | State::Preempted | State::Idle => self.off_ns += stack.ns,
        }
    }
}

/// The books by function.
struct Functions<'a> {
    /// Of each request; `None` for calls that should have no label.
    by_whose: HashMap<(Option<Whose<'a>>, &'a str), Booked>,
    /// Of all.
    all: BTreeMap<&'a str, (Doing, Booked)>,
    /// Works that were not over when the books were closed: their last call is not booked,
    /// and is one that others like them have called.
    unfinished: Vec<Whose<'a>>,
    /// How long these ran inside of the recording.
    unbooked_ns: u64,
}

pub(super) fn judge(evidence: &Evidence<'_>, people: &People<'_>, verdict: &mut Verdict) -> Result<()> {
    if evidence.pieces {
        // Heads of which the trace is not known are told apart by nothing.
        return Ok(());
    }
    let functions = Functions::of(evidence, people);
    let mut seen: HashMap<(Option<Whose<'_>>, &str), Seen> = HashMap::new();
    for stack in &evidence.profile.stacks {
        let named = stack.frames.iter().rev().filter_map(|frame| frame.function.as_deref());
        let function = named.clone().find(|name| functions.all.contains_key(name));
        let view = named.clone().find_map(|name| VIEWS.iter().find(|(view, ..)| *view == name));
        if people.source != Source::Wire && stack.label.source == Some(Source::Wire) {
            // No span of the tracer's, and a request all the same.
            let endpoint = stack.label.endpoint.as_deref().and_then(|seen| asked(Source::Wire, seen));
            let right = match (function, view) {
                (Some(function), _) => {
                    seen.entry((None, function)).or_default().add(stack);
                    evidence.works.iter().any(|work| {
                        Some(work.endpoint.as_str()) == endpoint
                            && work.functions.iter().any(|call| call.function == function)
                    })
                }
                (None, Some((_, path, _))) => endpoint == Some(*path),
                (None, None) => continue,
            };
            count(stack, Some(right), false, verdict);
            continue;
        }
        let whose = whose(people, &stack.label);
        let right = match (function, view) {
            (Some(function), _) => {
                seen.entry((whose, function)).or_default().add(stack);
                functions.are_called(whose, function)
            }
            (None, Some((OUTLIVES, ..))) if stack.label.source.is_none() => Some(true),
            (None, Some((_, endpoint, kind))) => is_of_view(evidence, people, &stack.label, endpoint, *kind),
            (None, None) => continue,
        };
        let is_childs = view.is_some_and(|(.., kind)| *kind == Kind::Child);
        count(stack, right, is_childs, verdict);
    }
    let unseen = evidence.profile.totals.faults.contains_key("CAME_UNSEEN");
    let lead_ns = if unseen { UNSEEN_NS } else { LEAD_NS };
    for ((whose, function), seen) in &seen {
        functions.hold(*whose, function, *seen, lead_ns, verdict);
    }
    functions.hold_sums(&seen, verdict);
    requests(evidence, people, verdict);
    Ok(())
}

/// Whether the stack's label is right; `None` where it lacks and should be there.
fn count(stack: &Stack, right: Option<bool>, is_childs: bool, verdict: &mut Verdict) {
    // Waits were counted at their switches.
    let count = if stack.state == State::Wait { 0 } else { stack.count };
    let is_blank = stack.label.source.is_none();
    match right {
        None => {
            verdict.looks.blank += count;
            if stack.state != State::Cpu {
                verdict.asleep += count;
            } else if is_childs {
                verdict.unhanded_ticks += count;
            }
        }
        Some(true) if is_blank => verdict.looks.rightly_blank += count,
        Some(true) => verdict.looks.right += count,
        Some(false) => {
            verdict.looks.wrong += stack.count.max(1);
            let names: Vec<String> = stack.frames.iter().rev().take(4).map(ToString::to_string).collect();
            verdict
                .wrong(|| format!("wrong: {:?} has {:?} at {}", stack.label, stack.state, names.join(" < ")));
        }
    }
}

/// A stack that names only the view: whether its label is of a request that asked for it.
fn is_of_view(
    evidence: &Evidence<'_>,
    people: &People<'_>,
    label: &Label,
    endpoint: &str,
    kind: Kind,
) -> Option<bool> {
    if label.source.is_none() {
        let none = people.source != Source::Wire && endpoint == IGNORED;
        return if none || kind == Kind::Child && !evidence.inherits { Some(true) } else { None };
    }
    let asked_for = match people.key_of(label) {
        Some(key) => people.owners.get(key).map(|Owner { work, .. }| work.endpoint.as_str()),
        None => label.endpoint.as_deref().and_then(|seen| asked(people.source, seen)),
    };
    Some(asked_for == Some(endpoint))
}

/// Whose time a label says that it is.
fn whose<'a>(people: &People<'_>, label: &'a Label) -> Option<Whose<'a>> {
    label.source?;
    let key = people.key_of(label);
    let endpoint = label.endpoint.as_deref().and_then(|seen| asked(people.source, seen));
    let endpoint = if key.is_some() { "" } else { endpoint.unwrap_or_default() };
    Some(Whose { key, endpoint, inherited: label.is_inherited() })
}

impl<'a> Functions<'a> {
    fn of(evidence: &Evidence<'a>, people: &People<'a>) -> Self {
        let mut functions =
            Self { by_whose: HashMap::new(), all: BTreeMap::new(), unfinished: Vec::new(), unbooked_ns: 0 };
        let started_ns = evidence.profile.started_monotonic_ns;
        let ended_ns = started_ns + evidence.profile.duration_ns;
        for work in evidence.works {
            let inside = |call: &&Call| call.end_ns > started_ns && call.begin_ns < ended_ns;
            for call in work.functions.iter().filter(inside) {
                let whose = owner_at(evidence, people, work, call.begin_ns);
                let booked = Booked {
                    calls: 1,
                    // What a greenlet does that outlives its request may go on.
                    wall_ns: call
                        .end_ns
                        .min(ended_ns)
                        .saturating_sub(call.begin_ns.max(started_ns))
                        .saturating_sub(call.delayed_ns),
                    cpu_ns: call.cpu_ns.unwrap_or(0),
                };
                functions.by_whose.entry((whose, &call.function)).or_default().add(booked);
                functions.all.entry(&call.function).or_insert((call.state, Booked::default())).1.add(booked);
            }
            if work.end_ns.is_none() {
                functions.unfinished.extend(owner_at(evidence, people, work, u64::MAX));
                functions.unbooked_ns += ended_ns.saturating_sub(work.begin_ns.unwrap_or(ended_ns));
            }
        }
        functions
    }

    /// Whether who has the label called the function; `None` if nobody has it and it should
    /// have one.
    fn are_called(&self, whose: Option<Whose<'_>>, function: &str) -> Option<bool> {
        let is_called = self.by_whose.contains_key(&(whose, function));
        match whose {
            Some(whose) => {
                let same = |(other, name): &(Option<Whose<'_>>, &str)| {
                    *name == function && other.is_some_and(|other| other.inherited == whose.inherited)
                };
                let may_be_called = || self.unfinished.contains(&whose) && self.by_whose.keys().any(same);
                Some(is_called || may_be_called())
            }
            None if is_called => Some(true),
            None => None,
        }
    }

    /// No more time than the calls took.
    fn hold(
        &self,
        whose: Option<Whose<'_>>,
        function: &str,
        seen: Seen,
        lead_ns: u64,
        verdict: &mut Verdict,
    ) {
        // What lacks a label is nobody's; what is not called was counted as wrong.
        let (Some(_), Some(booked)) = (whose, self.by_whose.get(&(whose, function))) else {
            return;
        };
        let Booked { calls, wall_ns, cpu_ns: _ } = *booked;
        if seen.wait_ns > wall_ns
            || seen.off_ns > wall_ns + calls * lead_ns
            || seen.cpu_ns > wall_ns + calls * TICKS_MORE * TICK_NS
        {
            verdict.wrong_sums += 1;
            verdict.wrong(|| format!("too much: {seen:?} of {booked:?} in {function} of {whose:?}"));
        }
    }

    /// Over all requests as much as they booked.
    fn hold_sums(&self, seen: &HashMap<(Option<Whose<'_>>, &str), Seen>, verdict: &mut Verdict) {
        let mut cpu = (0, 0);
        for (function, (doing, booked)) in &self.all {
            let of_function = seen.iter().filter(|((_, name), _)| name == function);
            let (exact_ns, cpu_ns) = of_function.fold((0, 0), |(exact, cpu), (_, seen)| {
                (exact + seen.wait_ns + seen.off_ns, cpu + seen.cpu_ns)
            });
            let Booked { calls, wall_ns, cpu_ns: booked_cpu_ns } = *booked;
            if *doing == Doing::Cpu {
                cpu = (cpu.0 + cpu_ns, cpu.1 + booked_cpu_ns);
                continue;
            }
            let near_ns = wall_ns / SHARE + calls * CALL_NS;
            if exact_ns + near_ns < wall_ns || exact_ns > wall_ns + near_ns + self.unbooked_ns {
                verdict.wrong_sums += 1;
                verdict.wrong(|| format!("{function}: {exact_ns} ns seen, {booked:?} booked"));
            }
        }
        let (seen_ns, booked_ns) = cpu;
        // Ticks are samples: their number spreads by its root.
        let spread = 5 * (booked_ns * TICK_NS).isqrt() + booked_ns / SHARE;
        if seen_ns.abs_diff(booked_ns) > spread {
            verdict.wrong_sums += 1;
            verdict.wrong(|| format!("{seen_ns} ns on the CPU seen, {booked_ns} booked"));
        }
    }
}

/// Whose time that is of a work at that moment, by the labels that it should have; `None`
/// for nobody's.
fn owner_at<'a>(evidence: &Evidence<'a>, people: &People<'a>, work: &'a Work, ns: u64) -> Option<Whose<'a>> {
    let (truth, is_span) = work.at(ns);
    let is_over = people.request_of(work).is_some_and(|request| request.is_answered(ns));
    if !is_span && is_over {
        return None;
    }
    let inherited = work.kind == Kind::Child && !is_span;
    let key = people.key(truth);
    if inherited && !evidence.inherits || key.is_none() && people.source != Source::Wire {
        return None;
    }
    let endpoint = if key.is_some() { "" } else { work.endpoint.as_str() };
    Some(Whose { key, endpoint, inherited })
}

/// Each request that was seen is one of the books, when it was worked on.
fn requests(evidence: &Evidence<'_>, people: &People<'_>, verdict: &mut Verdict) {
    let profile = evidence.profile;
    let looks = profile.totals.labels.as_ref();
    let unready = looks.and_then(|looks| looks.blank.get("UNREADY")).copied().unwrap_or_default();
    let mut bare = 0;
    for request in &profile.requests {
        let label = Label {
            trace_id: request.trace_id.clone(),
            segment_id: request.segment_id.clone(),
            ..Label::default()
        };
        if people.source != Source::Wire && request.source == Some(Source::Wire) {
            let asked = request.endpoint.as_deref().and_then(|seen| asked(Source::Wire, seen));
            // While a tracer's classes are not known there is what the head says, but for the trace.
            let is_bare = request.trace_id.is_none()
                && request.waiting_ns.is_none()
                && request.clock.on_cpu_ns.is_none()
                && bare < unready;
            if asked != Some(IGNORED) && is_bare {
                bare += 1;
            } else if asked != Some(IGNORED) {
                verdict.wrong_sums += 1;
                verdict.wrong(|| format!("a request without its spans: {request:?}"));
            }
            continue;
        }
        let Some(key) = people.key_of(&label) else { continue };
        let owner = people.owners.get(key);
        let fits = owner.is_some_and(|owner| {
            let inside_ns = owner.end_ns.saturating_sub(owner.begin_ns);
            let ended = request.begin_ns.zip(request.wall_ns).map(|(begin_ns, wall_ns)| begin_ns + wall_ns);
            let in_time = ended.is_none_or(|ended| {
                ended + profile.started_monotonic_ns <= owner.end_ns.saturating_add(NEXT_HEAD_NS)
            });
            let named = request.endpoint.as_deref().map(|seen| asked(people.source, seen));
            in_time
                && request.waiting_ns.is_none_or(|waiting_ns| waiting_ns <= inside_ns)
                && request.inherited.waiting_ns <= Some(children_ns(evidence, owner.work))
                && named.is_none_or(|named| named == owner.endpoint)
        });
        if !fits {
            verdict.wrong_sums += 1;
            let work = owner.map(|owner| owner.work);
            verdict.wrong(|| format!("no such request: {request:?}, but {work:?}"));
        }
    }
    endpoints(evidence, people, verdict);
}

/// How long the greenlets lived that a request made.
fn children_ns(evidence: &Evidence<'_>, request: &Work) -> u64 {
    let children = evidence.works.iter().filter(|work| work.of == Some(request.serial));
    let lived =
        children.map(|work| work.end_ns.unwrap_or(u64::MAX).saturating_sub(work.begin_ns.unwrap_or(0)));
    lived.fold(0, u64::saturating_add)
}

/// Of each endpoint as many requests as the books have, but for those without a label.
fn endpoints(evidence: &Evidence<'_>, people: &People<'_>, verdict: &mut Verdict) {
    let profile = evidence.profile;
    let mut booked: BTreeMap<&str, u64> = BTreeMap::new();
    for owner in people.owners.values().filter(|owner| owner.end_ns > profile.started_monotonic_ns) {
        *booked.entry(owner.endpoint.unwrap_or_default()).or_default() += 1;
    }
    let is_bare = |work: &&Work| work.kind == Kind::Request && people.key(&work.truth).is_none();
    for work in evidence.works.iter().filter(is_bare) {
        if people.source == Source::Wire && work.answered_ns > Some(profile.started_monotonic_ns) {
            *booked.entry(&work.endpoint).or_default() += 1;
        }
    }
    let unnamed = profile.endpoints.iter().filter(|row| row.endpoint.is_none());
    let mut missing = 0;
    for (endpoint, booked) in &booked {
        let same = |seen: &str| asked(people.source, seen) == Some(endpoint);
        let rows = profile.endpoints.iter().filter(|row| row.endpoint.as_deref().is_some_and(same));
        let seen: u64 = rows.map(|row| row.requests).sum();
        missing += booked.saturating_sub(seen);
        if seen > *booked {
            verdict.wrong_sums += 1;
            verdict.wrong(|| format!("{seen} requests of {endpoint} instead of {booked}"));
        }
    }
    let known: u64 = unnamed.map(|row| row.requests).sum::<u64>() + verdict.switches.blank;
    if missing > known + booked.values().sum::<u64>() / SHARE {
        verdict.wrong_sums += 1;
        verdict.wrong(|| format!("{missing} requests are missing of {booked:?}"));
    }
}
