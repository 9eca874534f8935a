//! Pure: greenscope's exact times held against the books, each with its bound.

use std::fmt;

use super::{
    Workload,
    books::{Between, Books, Life, Role, State},
    greenscope::Profile,
};

/// Of a thread's CPU time, over all of its greenlets.
const THREAD: Bound = Bound::Relative(0.01);
/// Of the CPU time of a greenlet that burns.
const BURNS: Bound = Bound::Relative(0.02);
/// Of the recording, for a greenlet that sleeps.
const SLEEPS: Bound = Bound::OfRecording(0.001);

/// How far greenscope may be from the truth.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Bound {
    /// By this share of the truth.
    Relative(f64),
    /// By this share of the recording, however small the truth is.
    OfRecording(f64),
    /// Shown, not judged.
    None,
}

/// A figure of one recording; times in nanoseconds.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Figure {
    pub(super) what: String,
    pub(super) truth_ns: u64,
    /// `None` when greenscope did not measure it.
    pub(super) seen_ns: Option<u64>,
    pub(super) bound: Bound,
    recording_ns: u64,
}

/// Ordered from good to bad: of several rounds the worst counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Verdict {
    NotJudged,
    Inside,
    NotMeasured,
    Outside,
}

impl Figure {
    /// The distance from the truth, as a share of what the bound is of.
    pub(super) fn error(&self) -> Option<f64> {
        let (seen, truth) = (self.seen_ns? as f64, self.truth_ns as f64);
        let whole = match self.bound {
            Bound::Relative(_) | Bound::None => truth,
            Bound::OfRecording(_) => self.recording_ns as f64,
        };
        Some((seen - truth) / whole)
    }

    pub(super) fn verdict(&self) -> Verdict {
        let (Bound::Relative(bound) | Bound::OfRecording(bound)) = self.bound else {
            return Verdict::NotJudged;
        };
        match self.error() {
            None => Verdict::NotMeasured,
            Some(error) if error.abs() <= bound => Verdict::Inside,
            Some(_) => Verdict::Outside,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotJudged => "",
            Self::Inside => "inside",
            Self::NotMeasured => "not measured",
            Self::Outside => "**outside**",
        })
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Relative(share) => write!(f, "{:.0} %", share * 100.0),
            Self::OfRecording(share) => write!(f, "{:.1} % of a second per second", share * 100.0),
            Self::None => f.write_str("-"),
        }
    }
}

/// Everything that one recording is judged by.
pub(super) fn figures(
    workload: Workload,
    books: &Books,
    between: &Between,
    profile: &Profile,
) -> Vec<Figure> {
    let figure = |what: String, truth_ns, seen_ns, bound| Figure {
        what,
        truth_ns,
        seen_ns,
        bound,
        recording_ns: profile.duration_ns,
    };
    let scheduled = |tid: u32| between.threads.get(&tid).copied().unwrap_or_default();
    let mut figures = Vec::new();
    if workload == Workload::Threads {
        for life in &books.lives {
            let (name, thread) = (&life.name, profile.thread(life.tid));
            // Of a thread that only sleeps, a hundredth is less than its own start.
            let bound = if life.role == Role::Sleeps { Bound::None } else { THREAD };
            let (truth, seen) = (scheduled(life.tid), |get: fn(&_) -> Option<u64>| thread.and_then(get));
            figures.push(figure(
                format!("on CPU, thread `{name}`"),
                truth.cpu_ns,
                seen(|thread: &super::greenscope::Thread| thread.on_cpu_ns),
                bound,
            ));
        }
        figures.extend(gil_wait(books, between).map(|(life, truth_ns)| {
            let seen = profile.thread(life.tid).and_then(|thread| thread.gil_wait_ns);
            figure(format!("wait for the GIL, thread `{}`", life.name), truth_ns, seen, Bound::None)
        }));
        return figures;
    }
    let Some(tid) = books.tid() else { return figures };
    let (truth, thread) = (scheduled(tid), profile.thread(tid));
    let all = "on CPU, all greenlets of the thread".to_owned();
    figures.push(figure(all, truth.cpu_ns, profile.greenlets_on_cpu_ns(tid), THREAD));
    let own = "on CPU, the thread".to_owned();
    figures.push(figure(own, truth.cpu_ns, thread.and_then(|thread| thread.on_cpu_ns), THREAD));
    let preempted = thread.and_then(|thread| thread.preempted_ns);
    figures.push(figure("preempted, the thread".to_owned(), truth.delayed_ns, preempted, Bound::None));
    let on_cpu = |life: &Life| profile.greenlet(&life.name).and_then(|greenlet| greenlet.on_cpu_ns);
    for life in books.lives.iter().filter(|life| life.role != Role::Sleeps) {
        figures.push(figure(format!("on CPU, `{}`", life.name), life.on_cpu_ns(), on_cpu(life), BURNS));
    }
    for life in books.lives.iter().filter(|life| life.role == Role::Blocks) {
        let blocking = books.functions.iter().filter(|function| function.state == State::Blocked);
        let truth_ns = blocking.map(|function| function.wall_ns.saturating_sub(function.cpu_ns)).sum();
        let seen = profile.greenlet(&life.name).and_then(|greenlet| greenlet.blocked_ns);
        figures.push(figure(format!("blocked, `{}`", life.name), truth_ns, seen, Bound::None));
    }
    let sleepers = books.lives.iter().filter(|life| life.role == Role::Sleeps).map(|life| {
        let what = "on CPU, the worst of the sleepers".to_owned();
        figure(what, life.on_cpu_ns(), on_cpu(life), SLEEPS)
    });
    // One that was not measured is worse than any error.
    let off = |figure: &Figure| figure.seen_ns.map_or(u64::MAX, |seen| seen.abs_diff(figure.truth_ns));
    figures.extend(sleepers.max_by_key(off));
    figures
}

/// What is left of a thread that does nothing but burn in Python.
fn gil_wait<'a>(books: &'a Books, between: &'a Between) -> impl Iterator<Item = (&'a Life, u64)> {
    books.lives.iter().filter(|life| life.name == "burner").filter_map(|life| {
        let thread = books.threads.iter().find(|thread| thread.tid == life.tid)?;
        let delayed_ns = between.threads.get(&life.tid)?.delayed_ns;
        Some((life, thread.wall_ns.saturating_sub(thread.cpu_ns + delayed_ns)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(truth_ns: u64, seen_ns: Option<u64>, bound: Bound) -> Figure {
        Figure { what: String::new(), truth_ns, seen_ns, bound, recording_ns: 10_000 }
    }

    #[test]
    fn a_bound_is_on_both_sides() {
        assert_eq!(figure(1000, Some(1010), THREAD).verdict(), Verdict::Inside);
        assert_eq!(figure(1000, Some(1011), THREAD).verdict(), Verdict::Outside);
        assert_eq!(figure(1000, Some(989), THREAD).verdict(), Verdict::Outside);
        assert_eq!(figure(1000, None, THREAD).verdict(), Verdict::NotMeasured);
        assert_eq!(figure(1000, Some(1), Bound::None).verdict(), Verdict::NotJudged);
        assert_eq!(figure(0, Some(10), SLEEPS).verdict(), Verdict::Inside);
        assert_eq!(figure(0, Some(11), SLEEPS).verdict(), Verdict::Outside);
        assert_eq!(figure(30, Some(20), SLEEPS).verdict(), Verdict::Inside);
        assert_eq!(figure(30, Some(19), SLEEPS).verdict(), Verdict::Outside);
    }

    #[test]
    fn the_worst_round_counts() {
        let rounds = [Verdict::Inside, Verdict::Outside, Verdict::NotMeasured];
        assert_eq!(rounds.into_iter().max(), Some(Verdict::Outside));
    }

    #[test]
    fn each_greenlet_stands_beside_its_line_in_the_books() {
        let books = r#"{"threads": [{"tid": 1, "wall_ns": 9000, "cpu_ns": 800}], "functions": [],
            "lives": [{"name": "burn", "role": "burns", "tid": 1, "cpu_ns": 700, "switch_ns": 0},
                      {"name": "one", "role": "sleeps", "tid": 1, "cpu_ns": 2, "switch_ns": 80},
                      {"name": "two", "role": "sleeps", "tid": 1, "cpu_ns": 1, "switch_ns": 38}]}"#;
        let profile = r#"{"duration_ns": 10000, "stacks": [], "threads": [{"tid": 1, "on_cpu_ns": 841}],
            "greenlets": [{"tid": 1, "name": "burn", "on_cpu_ns": 760}, {"tid": 1, "name": "one", "on_cpu_ns": 41},
                          {"tid": 1, "name": "two", "on_cpu_ns": 40}]}"#;
        let between = Between {
            threads: [(1, super::super::books::Scheduled { cpu_ns: 840, delayed_ns: 5 })].into(),
            steal_ms: 0,
        };
        let books = serde_json::from_str(books).unwrap();
        let profile = serde_json::from_str(profile).unwrap();
        let mut figures = figures(Workload::Shares, &books, &between, &profile);
        let verdicts: Vec<_> =
            figures.iter().map(|figure| (figure.what.as_str(), figure.verdict())).collect();
        assert_eq!(
            verdicts,
            [
                ("on CPU, all greenlets of the thread", Verdict::Inside),
                ("on CPU, the thread", Verdict::Inside),
                ("preempted, the thread", Verdict::NotJudged),
                ("on CPU, `burn`", Verdict::Outside),
                ("on CPU, the worst of the sleepers", Verdict::Outside),
            ]
        );
        // The first had more, and is nearer to its books.
        let worst = figures.pop().unwrap();
        assert_eq!((worst.truth_ns, worst.seen_ns), (20, Some(40)));
    }
}
