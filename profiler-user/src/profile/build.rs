//! Merging: stacks that read the same are one, open waits stay apart.

use std::sync::Arc;

use rustc_hash::FxHashMap;

use profiler_common::queue;

use super::{Frame, Labelled, Queued, Sample, StackRow, State, queued};
use crate::timeline::lives::Open;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    frames: Arc<[Frame]>,
    state: State,
    pid: u32,
    greenlet: Option<u64>,
    open: Option<Open>,
    label: Labelled,
}

/// The line for time that no tick was seen for.
const UNSAMPLED: &str = "(unsampled)";

#[derive(Debug, Default)]
struct Row {
    ns: u64,
    count: u64,
    queued: Option<Queued>,
}

/// Waits that are over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waits {
    /// Time.
    pub ns: u64,
    /// How many.
    pub count: u64,
    /// Of the time, ready, as the kernel part counts it.
    pub queued: queue::Queued,
}

impl Waits {
    /// No more of anything than the others have.
    #[must_use]
    pub fn at_most(&self, others: &Self) -> Self {
        Self { ns: self.ns.min(others.ns), count: self.count.min(others.count), queued: self.queued }
    }

    /// What is left without the others, which are part of these.
    #[must_use]
    pub const fn without(&self, others: &Self) -> Self {
        Self {
            ns: self.ns.saturating_sub(others.ns),
            count: self.count.saturating_sub(others.count),
            queued: self.queued.since(&others.queued),
        }
    }
}

/// Collects time by stack.
#[derive(Debug, Default)]
pub struct Builder {
    rows: FxHashMap<Key, Row>,
}

impl Builder {
    /// Adds completed time.
    pub fn add(
        &mut self,
        frames: &Arc<[Frame]>,
        state: State,
        pid: u32,
        label: Labelled,
        ns: u64,
        count: u64,
    ) {
        let key = Key { frames: Arc::clone(frames), state, pid, greenlet: None, open: None, label };
        let _row = self.row(key, ns, count);
    }

    /// Adds completed waits of one label.
    pub fn add_waits(&mut self, frames: &Arc<[Frame]>, pid: u32, label: Labelled, waits: &Waits) {
        let key =
            Key { frames: Arc::clone(frames), state: State::Wait, pid, greenlet: None, open: None, label };
        let row = self.row(key, waits.ns, waits.count);
        row.queued.get_or_insert_default().add(queued(frames, waits.ns, &waits.queued));
    }

    /// Adds what a clock measured of `name`, of which `samples` were seen by ticks of
    /// `tick_ns` each: together exactly `ns`, if that is known.
    ///
    /// What no tick was seen for is a row of its own under the name. Ticks that say more
    /// than the clock are scaled down to it.
    pub fn add_sampled(&mut self, name: &str, pid: u32, samples: Vec<Sample>, tick_ns: u64, ns: Option<u64>) {
        let ticks: u64 = samples.iter().map(|sample| sample.count).sum();
        let sampled = ticks * tick_ns;
        let ns = ns.unwrap_or(sampled);
        let mut left = ns;
        let scaled = sampled.min(ns);
        for Sample { frames, label, count } in samples {
            let part = u128::from(count) * u128::from(scaled) / u128::from(ticks.max(1));
            let part = u64::try_from(part).unwrap_or(u64::MAX).min(left);
            left -= part;
            self.add(&frames, State::Cpu, pid, label, part, count);
        }
        if left > 0 {
            let frames: Arc<[Frame]> = Arc::new([Frame::label(name), Frame::label(UNSAMPLED)]);
            self.add(&frames, State::Cpu, pid, None, left, 0);
        }
    }

    /// Adds the part inside of a wait that began before or is not over, of the greenlet with
    /// that number.
    pub fn add_open(
        &mut self,
        frames: &Arc<[Frame]>,
        state: State,
        pid: u32,
        label: Labelled,
        ns: u64,
        (greenlet, open): (u64, Open),
    ) {
        let key =
            Key { frames: Arc::clone(frames), state, pid, greenlet: Some(greenlet), open: Some(open), label };
        self.row(key, ns, 1);
    }

    /// Adds what was inside of waits that began before, of greenlets that are not listed.
    pub fn add_unlisted(&mut self, frames: &Arc<[Frame]>, state: State, pid: u32, ns: u64, count: u64) {
        let key = Key {
            frames: Arc::clone(frames),
            state,
            pid,
            greenlet: None,
            open: Some(Open::Begin),
            label: None,
        };
        let _row = self.row(key, ns, count);
    }

    fn row(&mut self, key: Key, ns: u64, count: u64) -> &mut Row {
        let row = self.rows.entry(key).or_default();
        row.ns += ns;
        row.count += count;
        row
    }

    /// The rows, most time first; equal ones in an order of their own.
    #[must_use]
    pub fn finish(self) -> Vec<StackRow> {
        let mut rows: Vec<StackRow> =
            self.rows
                .into_iter()
                .map(|(Key { frames, state, pid, greenlet, open, label }, Row { ns, count, queued })| {
                    StackRow { frames, state, pid, ns, count, queued, greenlet, open, label }
                })
                .collect();
        rows.sort_by(|a, b| {
            let order = |row: &StackRow| (row.pid, row.state, row.greenlet, row.open, row.label);
            b.ns.cmp(&a.ns).then_with(|| order(a).cmp(&order(b))).then_with(|| a.frames.cmp(&b.frames))
        });
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(names: &[&str]) -> Arc<[Frame]> {
        names
            .iter()
            .map(|name| Frame { function: Some((*name).into()), file: Some("f.py".into()), line: Some(1) })
            .collect()
    }

    fn sample(name: &str, count: u64) -> Sample {
        Sample { frames: frames(&[name]), label: None, count }
    }

    #[test]
    fn time_is_kept_apart_by_label() {
        let mut builder = Builder::default();
        builder.add(&frames(&["a"]), State::Wait, 1, Some(0), 10, 1);
        builder.add(&frames(&["a"]), State::Wait, 1, Some(1), 20, 1);
        builder.add(&frames(&["a"]), State::Wait, 1, Some(1), 5, 1);
        let rows = builder.finish();
        assert_eq!(
            rows.iter().map(|row| (row.label, row.ns)).collect::<Vec<_>>(),
            [(Some(1), 25), (Some(0), 10)]
        );
    }

    #[test]
    fn stacks_that_read_the_same_are_one() {
        let mut builder = Builder::default();
        builder.add(&frames(&["a", "b"]), State::Wait, 1, None, 10, 1);
        builder.add(&frames(&["a", "b"]), State::Wait, 1, None, 20, 2);
        builder.add(&frames(&["a", "b"]), State::Wait, 2, None, 5, 1);
        let rows = builder.finish();
        assert_eq!(
            rows.iter().map(|row| (row.pid, row.ns, row.count)).collect::<Vec<_>>(),
            [(1, 30, 3), (2, 5, 1)]
        );
    }

    #[test]
    fn samples_and_the_rest_are_what_the_clock_says() {
        for ns in [0, 5, 30, 31, 100] {
            let mut builder = Builder::default();
            let samples = vec![sample("a", 2), sample("b", 1)];
            builder.add_sampled("one", 1, samples, 10, Some(ns));
            let rows = builder.finish();
            assert_eq!(rows.iter().map(|row| row.ns).sum::<u64>(), ns);
            assert!(rows.iter().all(|row| row.state == State::Cpu));
        }
        let mut builder = Builder::default();
        builder.add_sampled("one", 1, vec![sample("a", 2)], 10, None);
        assert_eq!(builder.finish()[0].ns, 20);
    }

    #[test]
    fn an_open_wait_is_no_part_of_the_completed_ones() {
        let mut builder = Builder::default();
        builder.add(&frames(&["a"]), State::Wait, 1, None, 10, 1);
        builder.add_open(&frames(&["a"]), State::Wait, 1, None, 7, (3, Open::End));
        let rows = builder.finish();
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[1].greenlet, Some(3));
    }
}
