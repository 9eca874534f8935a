//! Whose work was done: the tracer of a target, its labels, and their times.

use std::sync::Arc;

use profiler_common::{
    address::Addr,
    clock::OFF_KINDS,
    fault::Fault,
    label::{
        self, About, Blank, Chain, KIND_HANDED, KIND_INHERITED, Label, LabelConfig, PairKey, PairTotals,
    },
    memory::Memory as _,
    owner::off_of,
    queue,
    record::{Greenlet, Kind, LabelRecord, RecordHead, RequestRecord, Totals, VERSION},
    walk::StackKey,
};
use rustc_hash::{FxHashMap, FxHashSet};

use super::{finish::Closing, recorded::Recorded, stacks::Part, ticks::Samples};
use crate::{
    memory::Cached,
    profile::{
        self, Clocked, Frame, Labelled, Profile, Queued, RequestRow, Sample, TotalsRow, TracerRow, Waits,
    },
    target::{self, FoundGreenlet, GreenletState},
    timeline::lives::{Life, Open},
    trace::{self, Identity, OnWire, Request, Source, Tracer},
};

/// Pairs of stack and label kept of a target; what comes later has no label.
const MAX_PAIRS: usize = 4 << 20;
/// Requests that are under way at once, of which it is told how long they took.
const MOST_RECENT: usize = 100_000;

/// Greenlets that never switch whose labels are read: the recording goes on meanwhile.
const MAX_SUSPENDED: usize = 10_000;
/// Requests on the wire without one span, after which it is said that there are none.
const SPANLESS: u64 = 50;
/// Between two looks for a tracer that taught nothing, at most: 2^5 times the usual.
const MOST_IDLE: u32 = 5;

/// The labels of one target.
#[derive(Debug, Default)]
pub(super) struct Work {
    /// Labels are looked for.
    pub(super) wanted: bool,
    /// What tells of requests in the process.
    pub(super) tracer: Option<Tracer>,
    /// What the labels mean.
    pub(super) labels: trace::Labels,
    /// Time by stack and label, and (no stack) by label as the current greenlet.
    pub(super) pairs: FxHashMap<PairKey, PairTotals>,
    /// The requests that time was counted for, and from when to when: of those that began since
    /// it was asked for.
    pub(super) recent: Option<FxHashMap<Request, (u64, u64)>>,
    /// Times that there was no room for.
    dropped: u64,
    /// How many observations met a class without instances, when it was looked at last.
    unready: u64,
    /// It was looked for in this very process: what it was forked from may be called otherwise.
    pub(super) looked: bool,
    /// They grew in number the last time.
    growing: bool,
    /// Looks for the tracer in a row that taught nothing.
    idle: u32,
    /// Looks to leave out until the next one.
    left_out: u32,
    /// It was said that the tracer makes no spans.
    spanless: bool,
}

impl Work {
    /// That of a process that was forked from this one's.
    pub(super) fn forked(&self) -> Self {
        // Its tracer may call it something else.
        let tracer = self.tracer.clone().map(|tracer| Tracer { whole: false, ..tracer });
        Self { wanted: self.wanted, tracer, ..Self::default() }
    }

    /// Adds time that the kernel part counted.
    pub(super) fn add(&mut self, key: PairKey, more: &PairTotals) {
        if let Some(recent) = &mut self.recent
            && key.stack.is_none()
            && key.label.kind & KIND_INHERITED == 0
            && let request = self.labels.request_of(&key.label).id
            && (recent.len() < MOST_RECENT || recent.contains_key(&request))
        {
            let (first_ns, last_ns) = recent.entry(request).or_insert((more.first_ns, more.last_ns));
            *first_ns = more.first_ns.min(*first_ns);
            *last_ns = more.last_ns.max(*last_ns);
        }
        let full = self.pairs.len() >= MAX_PAIRS;
        match self.pairs.get_mut(&key) {
            Some(known) => merge(known, more),
            None if full => self.dropped += 1,
            None => {
                self.pairs.insert(key, *more);
            }
        }
    }

    /// Adds what a greenlet that ended did since its label began.
    pub(super) fn ended(&mut self, greenlet: &Greenlet) {
        self.add_rest(greenlet, greenlet.running_ns, greenlet.off_ns, greenlet.since_ns);
    }

    /// Adds what a greenlet did since its label began, of which the kernel part tells only
    /// when the label changes.
    fn add_rest(&mut self, greenlet: &Greenlet, running_ns: u64, off_ns: [u64; OFF_KINDS], until_ns: u64) {
        if greenlet.label.is_none() {
            return;
        }
        let mut rest = PairTotals {
            ns: running_ns.wrapping_sub(greenlet.label_running_ns),
            count: 1,
            first_ns: greenlet.label_since_ns,
            last_ns: until_ns,
            off_ns,
            queued: queue::Queued::NONE,
        };
        for (ns, before) in rest.off_ns.iter_mut().zip(greenlet.label_off_ns) {
            *ns = ns.wrapping_sub(before);
        }
        let none = StackKey { id: 0, check: 0 };
        self.add(PairKey { stack: none, label: greenlet.label }, &rest);
    }
}

fn merge(known: &mut PairTotals, more: &PairTotals) {
    known.ns = known.ns.wrapping_add(more.ns);
    known.count = known.count.wrapping_add(more.count);
    known.first_ns = known.first_ns.min(more.first_ns);
    known.last_ns = known.last_ns.max(more.last_ns);
    known.queued.add(&more.queued);
    for (sum, ns) in known.off_ns.iter_mut().zip(more.off_ns) {
        *sum = sum.wrapping_add(ns);
    }
}

impl Recorded {
    /// What tells of requests in the process.
    pub(super) fn tracer_row(&self) -> Option<TracerRow> {
        let tracer = self.work.tracer.as_ref()?;
        let Identity { service, instance, profiler } = tracer.identity.clone();
        Some(TracerRow { source: tracer.source, service, instance, profiler })
    }

    /// Looks for the process's tracer, if there is something to be learned.
    pub(super) fn find_tracer(&mut self) {
        if !self.work.wanted
            || self.gone_ns.is_some()
            || self.work.tracer.as_ref().is_some_and(|tracer| tracer.whole)
        {
            return;
        }
        if self.work.left_out > 0 {
            self.work.left_out -= 1;
            return;
        }
        let knew = self.work.tracer.clone();
        self.look_for_tracer();
        self.work.looked = true;
        self.work.idle = if self.work.tracer == knew { self.work.idle + 1 } else { 0 };
        self.work.left_out = (1 << self.work.idle.min(MOST_IDLE)) - 1;
    }

    fn look_for_tracer(&mut self) {
        let mut memory = Cached::new(self.memory.clone());
        let target = &self.target;
        // What can't be read now may be the next time.
        let Ok(Some(tracer)) = trace::find(&mut memory, target, |memory| target::natives(memory, target))
        else {
            return;
        };
        if !target::same_image(target) || self.work.tracer.as_ref() == Some(&tracer) {
            return;
        }
        let config: LabelConfig = tracer.config;
        self.work.tracer = Some(tracer);
        self.change_config(|kept| {
            kept.label = config;
        });
    }

    /// Looks again when the kernel part met a class that had no instances.
    pub(super) fn notice_unready(&mut self, totals: &Totals) {
        let unready = totals.blank.get(Blank::Unready as usize).copied().unwrap_or_default();
        let growing = unready > self.work.unready;
        if growing {
            if !self.work.growing {
                // The first in a while is news.
                self.work.left_out = 0;
            }
            self.work.unready = unready;
            self.find_tracer();
        }
        self.work.growing = growing;
    }

    /// A request of the wire is over.
    pub(super) fn request_ended(&mut self, record: &RequestRecord) {
        self.work.labels.ended(record);
        if record.shared != 0
            && let Some(intervals) = &mut self.intervals
        {
            intervals.unlabel(record.shared, record.head.time_ns);
        }
    }

    /// Whether it is news that the tracer makes no spans: of requests that were seen on the wire
    /// none had one.
    pub(super) fn notice_spanless(&mut self, totals: &Totals) -> Option<Source> {
        let tracer = self.work.tracer.as_ref()?;
        let spanless =
            !may_have_spans(totals, self) && self.work.labels.wired() >= SPANLESS && !self.work.spanless;
        self.work.spanless |= spanless;
        spanless.then_some(tracer.source)
    }

    /// Finds the labels of the greenlets that were there at the begin and did not switch yet.
    ///
    /// What switches after this is told by the kernel part, and these are not asked for then.
    pub(super) fn label_suspended(&mut self) {
        if self.gone_ns.is_some() || self.config_label().source == 0 {
            return;
        }
        let suspended = |found: &&FoundGreenlet| found.state == GreenletState::Suspended;
        let found: Vec<Addr> =
            self.enumerated.iter().filter(suspended).map(|found| found.pimpl).take(MAX_SUSPENDED).collect();
        for pimpl in found {
            let label = self.label_of_suspended(pimpl);
            if !label.is_none() {
                self.enumerated_labels.insert(pimpl, label);
            }
        }
    }

    /// The label of a greenlet that is suspended, by its saved context.
    ///
    /// Read twice: the greenlet may go on meanwhile.
    fn label_of_suspended(&mut self, pimpl: Addr) -> Label {
        let context = self.target.greenlet.as_ref().map(|greenlet| greenlet.layout.context);
        context.map_or(Label::NONE, |context| self.label_at(pimpl, context))
    }

    /// The same of a thread, by its state, that does not run.
    pub(super) fn label_of_thread(&mut self, tstate: Addr) -> Label {
        self.label_at(tstate, self.target.python.layout.tstate_context)
    }

    /// The label of the context to which the pointer in a greenlet or a thread state leads.
    fn label_at(&mut self, object: Addr, context: u16) -> Label {
        let config = self.config_label();
        if config.source == 0 {
            return Label::NONE;
        }
        let mut chain = Chain::default();
        let Some(first) = self.look_at(object, context, &config, &mut chain) else {
            return Label::NONE;
        };
        let mut about = About::default();
        let mut described = chain.clone();
        described.begin_about(&mut about);
        label::run(&mut described, &config, &mut self.memory, &mut about);
        if self.look_at(object, context, &config, &mut chain) != Some(first) {
            return Label::NONE;
        }
        let head = RecordHead {
            kind: Kind::Label as u32,
            version: VERSION,
            target: self.cookie.into(),
            time_ns: super::monotonic_ns(),
        };
        self.work.labels.take(&LabelRecord { head, label: first, about });
        first
    }

    fn look_at(
        &mut self,
        object: Addr,
        context: u16,
        config: &LabelConfig,
        chain: &mut Chain,
    ) -> Option<Label> {
        let context = self.memory.pointer(object.at(context)).ok()?;
        chain.begin(context);
        label::run(chain, config, &mut self.memory, &mut About::default());
        (!chain.label.is_none()).then_some(Label { target: self.cookie, ..chain.label })
    }
}

/// A request's time, of its own greenlets and of those that they made.
#[derive(Default)]
struct Books {
    own: PairTotals,
    waiting_ns: u64,
    queued: Queued,
    inherited: PairTotals,
    inherited_waiting_ns: u64,
}

/// What [`Closing`] knows of labels.
#[derive(Default)]
pub(super) struct Sorted {
    /// The rows of the labels that were asked for.
    rows: FxHashMap<Label, u32>,
    /// The time of each stack that has a label.
    of_stack: FxHashMap<StackKey, Vec<(Label, Waits)>>,
    /// Waits with a label that began before the recording or were not over.
    open: Vec<(Label, u64, Open)>,
    /// The labels of those that are current at the end, when they last were suspended.
    running: Vec<Label>,
}

impl Closing<'_> {
    /// The row of a label, made when it is asked for first.
    pub(super) fn label(&mut self, label: &Label, profile: &mut Profile) -> Labelled {
        if label.is_none() {
            return None;
        }
        if let Some(known) = self.sorted.rows.get(label) {
            return Some(*known);
        }
        let number = u32::try_from(profile.labels.len()).ok()?;
        profile.labels.push(self.target.work.labels.called(label));
        self.sorted.rows.insert(*label, number);
        Some(number)
    }

    /// The label of an open wait.
    pub(super) fn open_label(
        &mut self,
        label: &Label,
        ns: u64,
        open: Open,
        profile: &mut Profile,
    ) -> Labelled {
        if !label.is_none() {
            self.sorted.open.push((*label, ns, open));
        }
        self.label(label, profile)
    }

    /// Closes the books of the labels that the greenlets have at the end, and sorts them.
    pub(super) fn close_labels(&mut self, lives: &[Life]) {
        let work = &mut self.target.work;
        let alive: FxHashMap<u64, &Life> = lives.iter().map(|life| (life.id, life)).collect();
        for (_, greenlet) in &self.kept.greenlets {
            // Of a run that is not over nobody knows whose it is.
            let running = alive.get(&greenlet.id).is_some_and(|life| life.running);
            if running && !greenlet.label.is_none() {
                self.sorted.running.push(greenlet.label);
            }
            let until_ns = if running { greenlet.since_ns } else { self.bounds.ended_ns };
            work.add_rest(greenlet, greenlet.running_ns, greenlet.off_ns, until_ns);
        }
        for (PairKey { stack, label }, totals) in &work.pairs {
            if !stack.is_none() {
                let of_stack = self.sorted.of_stack.entry(*stack).or_default();
                let label = Label { kind: label.kind & !KIND_HANDED, ..*label };
                let PairTotals { ns, count, queued, .. } = *totals;
                of_stack.push((label, Waits { ns, count, queued }));
            }
        }
        for pairs in self.sorted.of_stack.values_mut() {
            pairs.sort_unstable_by_key(|(label, waits)| (*label, waits.ns));
            pairs.dedup_by(|(label, waits), (kept, sum)| {
                let same = label == kept;
                if same {
                    sum.ns += waits.ns;
                    sum.count += waits.count;
                    sum.queued.add(&waits.queued);
                }
                same
            });
        }
        let dropped = work.dropped + work.labels.dropped();
        *self.faults.entry(Fault::LabelsFull).or_default() += dropped;
    }

    /// The parts of a stack's time, as one where some of it has a label: time that was split
    /// because a code became another can't be split by label, and which code it was matters less
    /// than whose work. The frames in which the parts differ are unknown then.
    pub(super) fn joined(&mut self, key: &StackKey, mut parts: Vec<Part>) -> Vec<Part> {
        if parts.len() < 2 || !self.sorted.of_stack.contains_key(key) {
            return parts;
        }
        let Some(mut whole) = parts.pop() else {
            return parts;
        };
        for part in parts {
            let same = part.frames.len() == whole.frames.len();
            let both = part.frames.iter().zip(whole.frames.iter());
            whole.frames = if same {
                both.map(|(a, b)| if a == b { a.clone() } else { Frame::UNKNOWN }).collect()
            } else {
                Arc::new([Frame::UNKNOWN])
            };
            whole.ns += part.ns;
            whole.count += part.count;
            // What was unknown before was counted then.
            if !part.frames.iter().any(Frame::is_unknown) {
                *self.faults.entry(Fault::CodeReused).or_default() += part.count;
            }
        }
        vec![whole]
    }

    /// A stack's completed time by label; the rest of it has none.
    pub(super) fn by_label(
        &mut self,
        key: &StackKey,
        mut rest: Waits,
        profile: &mut Profile,
    ) -> Vec<(Labelled, Waits)> {
        let pairs = self.sorted.of_stack.get(key).cloned().unwrap_or_default();
        let mut parts = Vec::with_capacity(pairs.len() + 1);
        for (label, pair) in pairs {
            // Not more than the stack has: the two are read one after the other.
            let part = pair.at_most(&rest);
            rest = rest.without(&part);
            parts.push((self.label(&label, profile), part));
        }
        if rest.ns > 0 || rest.count > 0 {
            parts.push((None, rest));
        }
        parts
    }

    /// Ticks with the rows of their labels.
    pub(super) fn labelled(&mut self, samples: Samples, profile: &mut Profile) -> Vec<Sample> {
        samples
            .into_iter()
            .map(|(frames, label, count)| Sample { frames, label: self.label(&label, profile), count })
            .collect()
    }

    /// The requests that were seen.
    pub(super) fn requests(&mut self, profile: &mut Profile) {
        let mut books: FxHashMap<Request, (Label, Books)> = FxHashMap::default();
        let labels = &self.target.work.labels;
        for (PairKey { stack, label }, totals) in &self.target.work.pairs {
            let of = labels.request_of(label);
            let (_, request) = books.entry(of.id).or_insert_with(|| (of, Books::default()));
            let inherited = label.kind & KIND_INHERITED != 0;
            if stack.is_none() {
                let sum = if inherited { &mut request.inherited } else { &mut request.own };
                if sum.count == 0 { *sum = *totals } else { merge(sum, totals) }
            } else if label.kind & KIND_HANDED == 0
                && let Some((frames, owner)) = self.target.stacks.frames(stack)
                && off_of(owner).is_none()
            {
                if inherited {
                    request.inherited_waiting_ns += totals.ns;
                } else {
                    request.waiting_ns += totals.ns;
                    let queued = profile::queued(&frames, totals.ns, &totals.queued);
                    request.queued.add(queued);
                }
            }
        }
        let mut begun: FxHashMap<Request, (bool, bool)> = FxHashMap::default();
        for (label, ns, open) in std::mem::take(&mut self.sorted.open) {
            let of = self.target.work.labels.request_of(&label);
            let (_, request) = books.entry(of.id).or_insert_with(|| (of, Books::default()));
            if label.kind & KIND_INHERITED == 0 {
                request.waiting_ns += ns;
                request.queued.most_ns += ns;
                let ends = begun.entry(of.id).or_default();
                ends.0 |= open != Open::End;
                ends.1 |= open != Open::Begin;
            } else {
                request.inherited_waiting_ns += ns;
            }
        }
        let on_wire: FxHashMap<Request, OnWire> =
            self.target.work.labels.on_wire().map(|(request, known)| (*request, known)).collect();
        let has_spans = has_spans(&self.totals, self.target);
        let may_have_spans = may_have_spans(&self.totals, self.target);
        // Beside a tracer that tells of some a request without an owner is perhaps one of these.
        let (with_row, without): (Vec<_>, Vec<_>) =
            on_wire.iter().partition(|(_, seen)| !has_spans || seen.owned);
        let mut paired: FxHashSet<Request> = FxHashSet::default();
        for (id, _) in &with_row {
            // Those of whose work nothing was seen are requests as well.
            let label = Label { id: **id, span: 0, kind: Source::Wire as u32, target: self.target.cookie };
            let of = self.target.work.labels.request_of(&label);
            paired.insert(of.id);
            books.entry(of.id).or_insert_with(|| (of, Books::default()));
        }
        // Of one trace there may have been several.
        let only_told = books.len().saturating_sub(paired.len());
        *self.faults.entry(Fault::WireUnpaired).or_default() +=
            without.len().saturating_sub(only_told) as u64;
        let pid = self.target.target.pid;
        // Whose work a thread did before its first switch is not known.
        let mut first_seen: FxHashSet<u64> =
            self.kept.threads.iter().map(|(_, thread)| thread.seen_ns).collect();
        first_seen.insert(self.bounds.started_ns);
        for label in std::mem::take(&mut self.sorted.running) {
            begun.entry(self.target.work.labels.request_of(&label).id).or_default().1 = true;
        }
        let mut rows: Vec<RequestRow> = books
            .into_values()
            .map(|(label, Books { own, waiting_ns, queued, inherited, inherited_waiting_ns })| {
                let called = self.target.work.labels.called(&label);
                let (begun, open) = begun.get(&label.id).copied().unwrap_or_default();
                let begun = begun || own.count > 0 && first_seen.contains(&own.first_ns);
                let several = self.target.work.labels.is_several(&label.id);
                let seen = on_wire.get(&label.id).copied();
                // Whose time it is is known of those that have an owner to their end.
                let worked = own.count > 0 || waiting_ns > 0;
                // One that had no span has its label all the time. Of any other the tracer knows more
                // than could be read: perhaps another trace.
                let is_unsure = may_have_spans
                    && seen.is_some_and(|seen| {
                        let known_ns = own.ns + waiting_ns;
                        seen.ended_ns.is_none_or(|ended_ns| known_ns < ended_ns.saturating_sub(seen.began_ns))
                    });
                let is_known = seen.is_none_or(|seen| seen.owned && !seen.partly && worked && !is_unsure);
                let hands_on = seen.is_none_or(|seen| seen.owned);
                let begin_ns = match seen {
                    Some(seen) => Some(seen.began_ns),
                    None => (own.count > 0 && !begun).then_some(own.first_ns),
                };
                let wall_ns = match seen {
                    Some(seen) => seen.ended_ns.map(|ended_ns| ended_ns.saturating_sub(seen.began_ns)),
                    None => (own.count > 0 && !begun && !open && !several)
                        .then(|| own.last_ns.saturating_sub(own.first_ns)),
                };
                RequestRow {
                    pid,
                    source: called.source,
                    trace_id: called.trace_id.filter(|_| !is_unsure),
                    segment_id: called.segment_id.filter(|_| !is_unsure),
                    endpoint: called.endpoint,
                    begin_ns: begin_ns.map(|begin_ns| begin_ns.saturating_sub(self.origin_ns)),
                    wall_ns,
                    clock: (self.has_clocks && is_known)
                        .then(|| Clocked::new(own.ns, own.off_ns, false))
                        .flatten(),
                    waiting_ns: is_known.then_some(waiting_ns),
                    queued: is_known.then_some(queued),
                    inherited_clock: (self.has_clocks && hands_on)
                        .then(|| Clocked::new(inherited.ns, inherited.off_ns, false))
                        .flatten(),
                    inherited_waiting_ns: hands_on.then_some(inherited_waiting_ns),
                }
            })
            .collect();
        rows.sort_by(|a, b| {
            let order = |row: &RequestRow| (row.begin_ns, row.segment_id.clone(), row.trace_id.clone());
            order(a).cmp(&order(b))
        });
        profile.requests.append(&mut rows);
    }
}

/// Whether the tracer made spans: one was seen.
fn has_spans(totals: &Totals, target: &Recorded) -> bool {
    totals.labelled + target.ticks.labelled > 0
}

/// Whether it may have made some: one was seen, or of more than a few looks nothing is known.
fn may_have_spans(totals: &Totals, target: &Recorded) -> bool {
    let counts = |blanks: &[u64]| -> u64 {
        Blank::UNKNOWN.iter().filter_map(|blank| blanks.get(*blank as usize)).sum()
    };
    let unknown = counts(&totals.blank) + counts(&target.ticks.blank);
    has_spans(totals, target) || unknown * SPANLESS > target.work.labels.wired()
}

/// Adds what came of the looks for labels, if there was anything to look for.
pub(super) fn count_looks(kept: &Totals, target: &Recorded, totals: &mut TotalsRow) {
    if target.work.tracer.is_none() && target.work.labels.is_empty() {
        return;
    }
    let sum = totals.observations.get_or_insert_default();
    sum.own += kept.labelled + target.ticks.labelled;
    sum.given += kept.given + target.ticks.given;
    sum.changed += kept.changed;
    sum.changed_ns += kept.changed_ns;
    sum.outlived += kept.outlived;
    sum.outlived_ns += kept.outlived_ns;
    let mut at_switches = kept.blank;
    if target.work.tracer.is_none() {
        // The kernel part does not count those that it does not look at.
        if let Some(count) = at_switches.get_mut(Blank::NoRequest as usize) {
            *count = kept.switches.saturating_sub(kept.given);
        }
    }
    for (blank, (at_switches, at_ticks)) in
        Blank::ALL.into_iter().zip(at_switches.into_iter().zip(target.ticks.blank))
    {
        if at_switches + at_ticks > 0 {
            *sum.blank.entry(blank.name()).or_default() += at_switches + at_ticks;
        }
    }
}
