//! Labels held against the books of traced.py: whose work it was, by Python's own API.
//!
//! Waits are held against the book of the switches, one to one; time and ticks in named
//! functions against the book of the requests. What does not fit is an error: a judge
//! that drops it proves nothing.

mod stacks;
mod switches;

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use anyhow::{Result, ensure};

use crate::label::{Label, Source};
use crate::profile::Profile;
use crate::works::{Kind, Switch, Truth, Work};

/// So many mistakes are described.
const SHOWN: usize = 6;
/// Reasons that are no state of a context: something was there and was not read.
const FAILED: [&str; 4] = ["UNREADABLE", "OWN_DICTIONARY", "UNREADY", "NO_REQUEST"];
/// A tick may come where a span just ends: it is over, and still the innermost one.
const ENDING: &str = "FINISHED";

/// What a recording said, and what is true.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// Of `record --format json --intervals`, of the service alone.
    pub profile: &'a Profile,
    /// The service's book of its requests.
    pub works: &'a [Work],
    /// The service's book of its switches.
    pub switches: &'a [Switch],
    /// Whether children should have their maker's label (no `--no-inherit`).
    pub inherits: bool,
    /// Whether heads came in pieces: then what the first one lacks is not known.
    pub pieces: bool,
}

/// Observations of one kind.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// A label, and the true one.
    pub right: u64,
    /// A label that is not true.
    pub wrong: u64,
    /// None, though there was one.
    pub blank: u64,
    /// None, and there was none.
    pub rightly_blank: u64,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// Of switches: what the leaver's wait is labelled with.
    pub switches: Counts,
    /// Of ticks and sleeps in functions that the books name.
    pub looks: Counts,
    /// The blank ones of these that are sleeps: why is not counted.
    pub asleep: u64,
    /// Right labels of which a name, or a trace that was in the first piece, is not known.
    pub nameless: u64,
    /// Blanks of children whose maker's label was not known when it made them.
    pub unhanded: u64,
    /// The blank ticks in functions of children.
    pub unhanded_ticks: u64,
    /// What greenscope counted as blank beyond the switches that should be, by its reasons;
    /// ticks outside of named functions are among them.
    pub reasons: BTreeMap<String, u64>,
    /// What is wrong with requests, endpoints and sums.
    pub wrong_sums: u64,
    /// The first mistakes.
    pub mistakes: Vec<String>,
}

impl Counts {
    /// Those with a label or with one that they should have.
    #[must_use]
    pub const fn labelled(&self) -> u64 {
        self.right + self.wrong + self.blank
    }
}

impl Verdict {
    /// Observations of both kinds.
    #[must_use]
    pub const fn all(&self) -> Counts {
        let (one, other) = (self.switches, self.looks);
        Counts {
            right: one.right + other.right,
            wrong: one.wrong + other.wrong,
            blank: one.blank + other.blank,
            rightly_blank: one.rightly_blank + other.rightly_blank,
        }
    }

    /// No label is wrong, less than one of a hundred is missing, each with its reason.
    ///
    /// # Errors
    ///
    /// Says what is not so.
    pub fn accept(&self) -> Result<()> {
        let all = self.all();
        ensure!(all.wrong == 0 && self.wrong_sums == 0, "{self}");
        ensure!(all.right > 0, "no label at all: {self}");
        ensure!(all.blank * 100 < all.labelled(), "{self}");
        self.explained()
    }

    /// What the labels are called is known of all but one of a hundred.
    ///
    /// # Errors
    ///
    /// When it is not.
    pub fn named(&self) -> Result<()> {
        ensure!(self.nameless * 100 <= self.all().right, "{self}");
        Ok(())
    }

    /// Each blank that should be none was counted by greenscope, with a reason that fits.
    ///
    /// # Errors
    ///
    /// When more are missing than were counted.
    pub fn explained(&self) -> Result<()> {
        let counted = |of: &dyn Fn(&str) -> bool| -> u64 {
            self.reasons.iter().filter(|(reason, _)| of(reason)).map(|(_, count)| count).sum()
        };
        let own = self.switches.blank - self.unhanded;
        let failed = counted(&|reason| FAILED.contains(&reason));
        ensure!(own <= failed, "blanks without a reason: {self}");
        let ending = counted(&|reason| reason == ENDING);
        // A child without its maker's label has none in its ticks either.
        let childs = if self.unhanded > 0 { self.unhanded_ticks } else { 0 };
        let ticks = self.looks.blank - self.asleep - childs;
        ensure!(own + ticks <= failed + ending, "blanks without a reason: {self}");
        // A sleep lacks what the switches around it lack.
        ensure!(self.asleep == 0 || failed + ending > 0, "blanks without a reason: {self}");
        let others = counted(&|reason| !FAILED.contains(&reason));
        ensure!(self.unhanded + childs <= others, "children without a label and without a reason: {self}");
        Ok(())
    }

    /// The reasons of the blanks that should be labels.
    #[must_use]
    pub fn blank_by_reason(&self) -> BTreeMap<String, u64> {
        let mut reasons = self.reasons.clone();
        let (switches, looks) = (self.switches.blank > 0, self.looks.blank > 0);
        reasons.retain(|reason, _| {
            FAILED.contains(&reason.as_str()) && (switches || looks) || reason == ENDING && looks
        });
        if self.unhanded > 0 {
            reasons.insert("maker's not known".to_owned(), self.unhanded);
        }
        reasons
    }

    fn wrong(&mut self, what: impl FnOnce() -> String) {
        if self.mistakes.len() < SHOWN {
            self.mistakes.push(what());
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { switches, looks, asleep, nameless, unhanded, unhanded_ticks, .. } = self;
        let Self { reasons, wrong_sums, mistakes, .. } = self;
        for (name, counts) in [("switches", switches), ("ticks and sleeps", looks)] {
            let Counts { right, wrong, blank, rightly_blank } = counts;
            write!(to, "{name}: {right} right, {wrong} wrong, {blank} blank, {rightly_blank} rightly; ")?;
        }
        write!(to, "{nameless} without a name; {wrong_sums} sums wrong; ")?;
        write!(
            to,
            "{asleep} blank sleeps; {unhanded} blank children, {unhanded_ticks} blank ticks in such; "
        )?;
        write!(to, "blanks by reason {reasons:?}")?;
        for mistake in mistakes {
            write!(to, "\n  {mistake}")?;
        }
        Ok(())
    }
}

/// Holds a recording against the books of its service.
///
/// # Errors
///
/// When they do not fit together at all: a switch that only one of them has, a greenlet
/// that is two.
pub fn judge(evidence: &Evidence<'_>) -> Result<Verdict> {
    let mut verdict = Verdict::default();
    let people = People::of(evidence.works);
    let expected = switches::judge(evidence, &people, &mut verdict)?;
    stacks::judge(evidence, &people, &mut verdict)?;
    reasons(evidence, &expected, &mut verdict);
    Ok(verdict)
}

/// What greenscope counted of each reason, beyond the switches that should count there.
fn reasons(evidence: &Evidence<'_>, expected: &BTreeMap<&'static str, u64>, verdict: &mut Verdict) {
    let Some(looks) = &evidence.profile.totals.labels else {
        return;
    };
    for (reason, &count) in &looks.blank {
        let rightly = expected.get(reason.as_str()).copied().unwrap_or_default();
        if count > rightly {
            verdict.reasons.insert(reason.clone(), count - rightly);
        }
    }
}

/// Whose is whose, by the book of the requests.
struct People<'a> {
    source: Source,
    /// By what tells a request from others: its work, and what it asked for.
    owners: HashMap<&'a str, Owner<'a>>,
    /// By address: children, in the order of their begin.
    children: HashMap<u64, Vec<&'a Work>>,
    /// By address: requests, in the order in which they were waited for.
    requests: HashMap<u64, Vec<&'a Work>>,
    /// Requests by number.
    works: HashMap<u64, &'a Work>,
}

/// Whose label it is.
#[derive(Clone, Copy)]
struct Owner<'a> {
    work: &'a Work,
    /// Its endpoint, as greenscope should call it.
    endpoint: Option<&'a str>,
    /// When it can be seen first and last; from the wire until the next head is read.
    begin_ns: u64,
    end_ns: u64,
}

impl<'a> People<'a> {
    fn of(works: &'a [Work]) -> Self {
        let source = works.first().map_or(Source::Wire, |work| work.labels);
        let mut people = Self {
            source,
            owners: HashMap::new(),
            children: HashMap::new(),
            requests: HashMap::new(),
            works: HashMap::new(),
        };
        for work in works {
            people.add(work);
        }
        for own in people.children.values_mut() {
            own.sort_by_key(|work| work.begin_ns);
        }
        for own in people.requests.values_mut() {
            own.sort_by_key(|work| work.waited_ns);
        }
        people
    }

    fn add(&mut self, work: &'a Work) {
        let key = self.key(&work.truth);
        if work.kind == Kind::Request {
            self.works.insert(work.serial, work);
        }
        if let (Some(key), Kind::Request) = (key, work.kind) {
            let endpoint = match self.source {
                Source::Agent | Source::Wire => Some(work.endpoint.as_str()),
                Source::Otel => work.truth.operation.as_deref(),
            };
            let begin_ns = work.waited_ns.min(work.begin_ns).unwrap_or(0);
            let end_ns = work.answered_ns.or(work.end_ns).unwrap_or(u64::MAX);
            self.owners.insert(key, Owner { work, endpoint, begin_ns, end_ns });
        }
        for span in &work.spans {
            let own = self.key(&span.truth);
            if let Some(own) = own.filter(|_| own != key) {
                let endpoint = span.truth.operation.as_deref();
                let end_ns = span.end_ns.unwrap_or(u64::MAX);
                self.owners.insert(own, Owner { work, endpoint, begin_ns: span.begin_ns, end_ns });
            }
        }
        if let Some(greenlet) = work.greenlet {
            let by = match work.kind {
                Kind::Request => &mut self.requests,
                Kind::Child => &mut self.children,
            };
            by.entry(greenlet).or_default().push(work);
        }
    }

    /// What tells the label of a request from another's.
    fn key(&self, truth: &'a Truth) -> Option<&'a str> {
        match self.source {
            Source::Agent => truth.segment_id.as_deref(),
            Source::Otel | Source::Wire => truth.trace_id.as_deref(),
        }
    }

    /// The same of a label.
    fn key_of<'b>(&self, label: &'b Label) -> Option<&'b str> {
        match self.source {
            Source::Agent => label.segment_id.as_deref(),
            Source::Otel | Source::Wire => label.trace_id.as_deref(),
        }
    }

    /// The child that runs in the greenlet at that address then.
    fn child(&self, greenlet: u64, ns: u64) -> Option<&'a Work> {
        let own = self.children.get(&greenlet)?;
        let next = own.partition_point(|work| work.begin_ns.is_some_and(|begin_ns| begin_ns <= ns));
        let work = own.get(next.checked_sub(1)?)?;
        work.end_ns.is_none_or(|end_ns| ns <= end_ns).then_some(*work)
    }

    /// The request that made a child.
    fn request_of(&self, child: &Work) -> Option<&'a Work> {
        self.works.get(&child.of?).copied()
    }

    /// The last request that the greenlet at that address began to wait for.
    fn request(&self, greenlet: u64, ns: u64) -> Option<&'a Work> {
        let own = self.requests.get(&greenlet)?;
        let next = own.partition_point(|work| work.waited_ns.is_some_and(|waited_ns| waited_ns <= ns));
        own.get(next.checked_sub(1)?).copied()
    }
}

/// From the wire an endpoint stands behind its method.
fn asked(source: Source, endpoint: &str) -> Option<&str> {
    match source {
        Source::Wire => endpoint.strip_prefix("GET "),
        Source::Agent | Source::Otel => Some(endpoint),
    }
}

#[cfg(test)]
mod tests;
