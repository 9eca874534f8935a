//! The CPU time of one process by stack: ticks tell the stacks, the threads' clocks how much.
//!
//! Ticks alone tell too much of what runs long, by a percent and more where CPUs are scarce: while
//! the kernel looks for the next thread it has stopped the clock of the one that leaves, and a tick
//! still meets that one.

use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::ebpf_tasks::{Symbols, sorted, symbols};
use crate::profile::{Frame, State, event::OnCpuSum};

/// What stands for the time of threads that no tick has met.
const UNSAMPLED: &str = "(unsampled)";

/// CPU time by stack.
#[derive(Debug, Default)]
pub(super) struct OnCpu {
    /// Of each thread since when it is watched, and how much of its time has a stack by now. None
    /// before the first look.
    given: Option<FxHashMap<u64, (u64, u64)>>,
    /// Ticks since then.
    ticks: FxHashMap<u64, FxHashMap<Arc<[Frame]>, u64>>,
    /// Time of threads that no tick has met.
    rest_ns: u64,
    /// Time that is not told yet.
    by_stack: FxHashMap<Symbols, u64>,
    /// What was less than a tick.
    less_ns: u64,
}

impl OnCpu {
    /// Whether it was looked at the clocks.
    pub(super) const fn has_begun(&self) -> bool {
        self.given.is_some()
    }

    /// A tick met a thread; none counts before the first look.
    pub(super) fn tick(&mut self, thread: u64, frames: &Arc<[Frame]>) {
        if self.given.is_some() {
            *self.ticks.entry(thread).or_default().entry(Arc::clone(frames)).or_default() += 1;
        }
    }

    /// All threads' time on CPUs by now. Those without a clock have a tick's time for each tick.
    pub(super) fn look(&mut self, sums: &[OnCpuSum], tick_ns: u64) {
        let Some(given) = &mut self.given else {
            let given = |sum: &OnCpuSum| (sum.thread, (sum.watched_ns, sum.ns));
            self.given = Some(sums.iter().map(given).collect());
            // To the nearest one.
            self.less_ns = tick_ns / 2;
            return;
        };
        self.rest_ns = 0;
        for OnCpuSum { thread, watched_ns, ns } in sums {
            let (since_ns, given_ns) = given.entry(*thread).or_insert((*watched_ns, 0));
            if since_ns != watched_ns {
                // Another thread has the number by now.
                (*since_ns, *given_ns) = (*watched_ns, 0);
            }
            let more_ns = ns.saturating_sub(*given_ns);
            if let Some(ticks) = self.ticks.remove(thread) {
                *given_ns += more_ns;
                share(&mut self.by_stack, &ticks, more_ns);
            } else {
                // It waits for the first tick.
                self.rest_ns += more_ns;
            }
        }
        for (_, ticks) in self.ticks.drain() {
            let count: u64 = ticks.values().sum();
            share(&mut self.by_stack, &ticks, count.saturating_mul(tick_ns));
        }
    }

    /// Nothing comes any more: what no tick has met is told as that.
    pub(super) fn end(&mut self) {
        let rest_ns = std::mem::take(&mut self.rest_ns);
        *self.by_stack.entry(vec![UNSAMPLED.to_owned()]).or_default() += rest_ns;
    }

    /// What is to be told, in ticks. What a stack has of one goes to the next stack, and to the next
    /// time: the sum is whole.
    pub(super) fn take(&mut self, tick_ns: u64) -> Vec<(Symbols, u64)> {
        let mut counts = sorted(std::mem::take(&mut self.by_stack));
        for (_, ns) in &mut counts {
            let all_ns = ns.saturating_add(self.less_ns);
            *ns = all_ns.checked_div(tick_ns).unwrap_or_default();
            self.less_ns = all_ns.checked_rem(tick_ns).unwrap_or_default();
        }
        counts.retain(|(_, count)| *count > 0);
        counts
    }
}

/// Gives each stack its share of a thread's time.
fn share(by_stack: &mut FxHashMap<Symbols, u64>, ticks: &FxHashMap<Arc<[Frame]>, u64>, ns: u64) {
    let count: u64 = ticks.values().sum();
    for (frames, number) in ticks {
        let part = u128::from(ns) * u128::from(*number) / u128::from(count.max(1));
        *by_stack.entry(symbols(frames, State::Cpu)).or_default() += u64::try_from(part).unwrap_or(u64::MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn stack(name: &str) -> Arc<[Frame]> {
        Arc::new([Frame::label(name)])
    }

    fn told(on: &mut OnCpu) -> Vec<(String, u64)> {
        on.take(2 * MS).into_iter().map(|(stack, count)| (stack.concat(), count)).collect()
    }

    fn is(told: &[(String, u64)], wanted: &[(&str, u64)]) {
        let told: Vec<(&str, u64)> = told.iter().map(|(name, count)| (name.as_str(), *count)).collect();
        assert_eq!(told, wanted);
    }

    fn sums(sums: &[(u64, u64)]) -> Vec<OnCpuSum> {
        sums.iter().map(|(thread, ms)| OnCpuSum { thread: *thread, watched_ns: 0, ns: ms * MS }).collect()
    }

    #[test]
    fn the_clock_tells_how_much() {
        let mut on = OnCpu::default();
        on.tick(1, &stack("before"));
        on.look(&sums(&[(1, 500)]), 2 * MS);
        for _ in 0..45 {
            on.tick(1, &stack("a"));
        }
        for _ in 0..15 {
            on.tick(1, &stack("b"));
        }
        on.look(&sums(&[(1, 600)]), 2 * MS);
        // 60 ticks of 2 ms are more than the 100 ms that it had.
        is(&told(&mut on), &[("a", 38), ("b", 12)]);
        on.tick(1, &stack("a"));
        on.look(&sums(&[(1, 605)]), 2 * MS);
        is(&told(&mut on), &[("a", 3)]);
    }

    #[test]
    fn the_sum_of_many_stacks_is_whole() {
        let mut on = OnCpu::default();
        on.look(&sums(&[(1, 0)]), 2 * MS);
        let mut all = 0;
        for round in 1..=3 {
            for number in 0..1_000 {
                on.tick(1, &stack(&number.to_string()));
            }
            on.look(&sums(&[(1, round * 1_960)]), 2 * MS);
            all += told(&mut on).iter().map(|(_, count)| count).sum::<u64>();
        }
        assert_eq!(all, 3 * 980);
    }

    #[test]
    fn time_without_a_tick_waits_for_one_and_is_told_at_the_end() {
        let mut on = OnCpu::default();
        on.look(&[], 2 * MS);
        on.look(&sums(&[(1, 3), (2, 4)]), 2 * MS);
        is(&told(&mut on), &[]);
        on.tick(1, &stack("a"));
        on.look(&sums(&[(1, 4), (2, 4)]), 2 * MS);
        is(&told(&mut on), &[("a", 2)]);
        on.end();
        is(&told(&mut on), &[(UNSAMPLED, 2)]);
    }

    #[test]
    fn without_clocks_each_tick_counts() {
        let mut on = OnCpu::default();
        on.look(&[], 2 * MS);
        for _ in 0..7 {
            on.tick(1, &stack("a"));
        }
        on.look(&[], 2 * MS);
        is(&told(&mut on), &[("a", 7)]);
    }

    #[test]
    fn a_clock_that_was_ahead_is_waited_for() {
        let mut on = OnCpu::default();
        on.look(&sums(&[(1, 10)]), 2 * MS);
        for all_ms in [8, 12, 14] {
            on.tick(1, &stack("a"));
            on.look(&sums(&[(1, all_ms)]), 2 * MS);
        }
        is(&told(&mut on), &[("a", 2)]);
    }

    #[test]
    fn a_thread_with_anothers_number_begins_anew() {
        let mut on = OnCpu::default();
        on.look(&sums(&[(1, 100)]), 2 * MS);
        on.tick(1, &stack("a"));
        on.look(&[OnCpuSum { thread: 1, watched_ns: 7, ns: 4 * MS }], 2 * MS);
        is(&told(&mut on), &[("a", 2)]);
    }
}
