//! How long a greenlet that its hub resumes had been ready: between two bounds.
//!
//! A busy hub resumes one greenlet after another. What its poll reports became ready after the
//! poll before looked for it, or it would have been reported then, and before anything was
//! resumed after this poll. What another greenlet makes ready (an event, a queue) became so after
//! the hub last slept: it does not while there is something to resume. That is all that can be
//! known without a look at the hub itself.

use crate::address::Addr;

/// How much earlier than it wakes a poll's timeout may have been due: a loop rounds up to whole
/// milliseconds, and the kernel waits for up to 50 us more (`timer_slack_ns`).
/// <https://github.com/torvalds/linux/blob/v6.12/init/init_task.c>
const ROUNDED_UP_NS: u64 = 1_100_000;

/// How much of a wait its greenlet was ready to go on, and its hub busy elsewhere.
#[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Queued {
    /// No less than this if a poll of the hub reported what it waited for.
    pub least_ns: u64,
    /// And then no more.
    pub most_ns: u64,
    /// No more than this whatever made it ready.
    pub any_most_ns: u64,
    /// No less than this if something came to the socket in which it found nothing before.
    pub socket_least_ns: u64,
    /// And then no more: the same where the socket told since when.
    pub socket_most_ns: u64,
}

impl Queued {
    /// It was not ready before it went on.
    pub const NONE: Self = Self::between(0, 0, 0);

    /// Between these bounds, of which a socket tells nothing more.
    #[inline(always)]
    #[must_use]
    pub const fn between(least_ns: u64, most_ns: u64, any_most_ns: u64) -> Self {
        Self { least_ns, most_ns, any_most_ns, socket_least_ns: least_ns, socket_most_ns: most_ns }
    }

    /// Whether they depend on what it was that made it ready.
    #[inline(always)]
    #[must_use]
    pub const fn is_of_poll(&self) -> bool {
        self.least_ns != 0 || self.most_ns != self.any_most_ns
    }

    /// No poll reported what made it ready.
    #[inline(always)]
    pub const fn by_anyone(&mut self) {
        *self = Self::between(0, self.any_most_ns, self.any_most_ns);
    }

    /// Something came to its socket `ns` before it went on.
    #[inline(always)]
    pub const fn since_ready(&mut self, ns: u64) {
        // Else it was not this that the hub's poll reported.
        if self.least_ns <= ns && ns <= self.most_ns {
            self.socket_least_ns = ns;
            self.socket_most_ns = ns;
        }
    }

    /// Adds another wait.
    #[inline(always)]
    pub const fn add(&mut self, more: &Self) {
        self.least_ns = self.least_ns.wrapping_add(more.least_ns);
        self.most_ns = self.most_ns.wrapping_add(more.most_ns);
        self.any_most_ns = self.any_most_ns.wrapping_add(more.any_most_ns);
        self.socket_least_ns = self.socket_least_ns.wrapping_add(more.socket_least_ns);
        self.socket_most_ns = self.socket_most_ns.wrapping_add(more.socket_most_ns);
    }

    /// Of a wait, without its last `ns`.
    #[inline(always)]
    #[must_use]
    pub const fn without(&self, ns: u64) -> Self {
        self.since(&Self::between(ns, ns, ns))
    }

    /// What came since it was `before`, which was read earlier.
    #[inline(always)]
    #[must_use]
    pub const fn since(&self, before: &Self) -> Self {
        Self {
            least_ns: self.least_ns.saturating_sub(before.least_ns),
            most_ns: self.most_ns.saturating_sub(before.most_ns),
            any_most_ns: self.any_most_ns.saturating_sub(before.any_most_ns),
            socket_least_ns: self.socket_least_ns.saturating_sub(before.socket_least_ns),
            socket_most_ns: self.socket_most_ns.saturating_sub(before.socket_most_ns),
        }
    }
}

/// The polls of a thread's hub.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Polls {
    /// The greenlet that polls, by its C++ object; null if none was seen to.
    pub poller: Addr,
    /// When its last poll began; 0 if polls are not seen, unless they sleep.
    began_ns: u64,
    /// When it last woke in one at the latest; 0 if it did not.
    woke_ns: u64,
    /// What the last poll reports became ready no earlier, if it did not sleep; 0 if that is not
    /// known.
    since_ns: u64,
    /// And no later: then something was resumed for the first time after it. 0 until then.
    by_ns: u64,
    /// So many events a poll takes at most.
    events: u32,
    /// So many greenlets the poller resumed since the last one began.
    resumed: u32,
    /// Not 0 once more than one greenlet of the thread polled.
    several: u32,
    /// Not 0 once the poller was seen in `epoll_wait` or its like.
    epoll: u32,
}

impl Polls {
    /// The greenlet `poller` begins to poll, by `epoll_wait` or its like, which takes so many
    /// `events` at most.
    #[inline(always)]
    pub fn begin(&mut self, poller: Addr, now_ns: u64, events: u32) {
        self.slept(poller, true);
        // Else nothing came of the last poll, and both are taken for one: it may also be the same
        // one, told twice.
        if self.woke_ns > self.began_ns {
            self.since_ns = self.woke_ns;
        } else if self.by_ns != 0 && self.resumed < self.events / 2 {
            self.since_ns = self.began_ns;
        }
        // Else it may have taken all that it takes, and what is reported next was ready before.
        // (Not every event resumes a greenlet.)
        self.began_ns = now_ns;
        self.by_ns = 0;
        self.events = events;
        self.resumed = 0;
    }

    /// The greenlet `poller` is one that polls.
    #[inline(always)]
    pub fn slept(&mut self, poller: Addr, by_epoll: bool) {
        if self.poller != poller {
            let several = u32::from(!self.poller.is_null()) | self.several;
            *self = Self { poller, several, ..Self::default() };
        }
        if by_epoll {
            self.epoll = 1;
        }
    }

    /// Whether a sleep of the greenlet `current` that waits for files is none of its loop's, but a
    /// callback's: a loop polls by one kind of call.
    #[inline(always)]
    #[must_use]
    pub fn is_a_callbacks(&self, current: Addr, by_epoll: bool) -> bool {
        self.epoll != 0 && !by_epoll && self.poller == current
    }

    /// A poll that slept since `slept_ns` wakes at `now_ns`.
    #[inline(always)]
    pub const fn wake(&mut self, slept_ns: u64, now_ns: u64) {
        let due_ns = now_ns.saturating_sub(ROUNDED_UP_NS);
        self.woke_ns = if due_ns > slept_ns { due_ns } else { slept_ns };
    }

    /// The greenlet `leaver` switches to one that waited for `waited_ns`.
    #[inline(always)]
    #[must_use]
    pub fn resume(&mut self, leaver: Addr, now_ns: u64, waited_ns: u64) -> Queued {
        if self.poller.is_null() || self.several != 0 {
            return Queued::between(0, waited_ns, waited_ns);
        }
        if leaver != self.poller {
            // Not the hub: it went on as soon as it was asked to.
            return Queued::NONE;
        }
        self.resumed = self.resumed.wrapping_add(1);
        let since_ns = if self.woke_ns > self.began_ns { self.woke_ns } else { self.since_ns };
        if self.began_ns != 0 && self.by_ns == 0 {
            self.by_ns = now_ns;
        }
        let within = |ns: u64| if ns < waited_ns { ns } else { waited_ns };
        let after = |ns: u64| if ns == 0 { waited_ns } else { within(now_ns.saturating_sub(ns)) };
        let least_ns = if self.by_ns == 0 { 0 } else { within(now_ns.saturating_sub(self.by_ns)) };
        // Whatever made it ready, the hub would not have slept.
        Queued::between(least_ns, after(since_ns), after(self.woke_ns))
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    const HUB: Addr = Addr(8);

    fn queued(least_ns: u64, most_ns: u64, any_most_ns: u64) -> Queued {
        Queued::between(least_ns, most_ns, any_most_ns)
    }

    #[test]
    fn without_a_poller_nothing_is_known() {
        assert_eq!(Polls::default().resume(HUB, 100, 7), queued(0, 7, 7));
    }

    #[test]
    fn the_begin_of_a_wait_is_queued_as_far_as_it_reaches_back() {
        assert_eq!(queued(5, 20, 30).without(10), queued(0, 10, 20));
        assert_eq!(queued(5, 20, 30).without(0), queued(5, 20, 30));
    }

    #[test]
    fn a_socket_tells_within_the_bounds_only() {
        let mut of_poll = queued(5, 20, 30);
        of_poll.since_ready(4);
        of_poll.since_ready(21);
        assert_eq!(of_poll, queued(5, 20, 30));
        of_poll.since_ready(7);
        assert_eq!(of_poll, Queued { socket_least_ns: 7, socket_most_ns: 7, ..queued(5, 20, 30) });
        assert_eq!(of_poll.without(6), Queued { socket_least_ns: 1, socket_most_ns: 1, ..queued(0, 14, 24) });
    }

    #[test]
    fn what_is_thrown_into_may_be_queued_for_long() {
        let mut of_poll = queued(5, 20, 30);
        assert!(of_poll.is_of_poll());
        of_poll.by_anyone();
        assert_eq!(of_poll, queued(0, 30, 30));
        assert!(!of_poll.is_of_poll());
    }

    #[test]
    fn what_no_hub_resumes_was_not_queued() {
        let mut polls = Polls::default();
        polls.begin(HUB, 10, 64);
        assert_eq!(polls.resume(Addr(16), 100, 7), Queued::NONE);
    }

    /// What a loop does: it polls, then resumes what is ready.
    #[derive(Clone, Debug)]
    struct Turn {
        /// When the greenlets of this turn become ready, after the poll before.
        ready_ns: Vec<u64>,
        /// How long each of them runs.
        runs_ns: u64,
        /// The poll's probe is hit twice.
        twice: bool,
    }

    fn turns() -> impl Strategy<Value = Vec<Turn>> {
        let turn = (prop::collection::vec(0_u64..9_000_000, 0..5), 1_u64..4_000_000, any::<bool>())
            .prop_map(|(ready_ns, runs_ns, twice)| Turn { ready_ns, runs_ns, twice });
        prop::collection::vec(turn, 1..30)
    }

    proptest! {
        /// A loop whose polls report what became ready since the last one, a few at a time, and
        /// sleep when that is nothing: the truth lies between the bounds.
        #[test]
        fn the_truth_lies_between_the_bounds(
            turns in turns(), seen in any::<bool>(), takes in 1_u32..8,
        ) {
            let mut polls = Polls::default();
            if !seen {
                polls.slept(HUB, false);
            }
            let mut now = 1_000_000_u64;
            let mut looked = now;
            let mut waiting: Vec<(u64, u64)> = Vec::new();
            for turn in turns {
                waiting.extend(turn.ready_ns.iter().map(|after| (looked, looked + 1 + after)));
                if seen {
                    polls.begin(HUB, now, takes);
                    if turn.twice {
                        polls.begin(HUB, now + 1, takes);
                    }
                }
                now += 10;
                if let Some(first) = waiting.iter().map(|(_, ready)| *ready).min()
                    && first > now
                {
                    let slept = now;
                    now = first;
                    polls.wake(slept, now);
                }
                looked = now;
                now += 10;
                let (mut ready, mut left): (Vec<_>, Vec<_>) =
                    waiting.into_iter().partition(|(_, ready)| *ready <= looked);
                // A poll takes the oldest, and leaves the rest to the next.
                left.extend(ready.split_off(ready.len().min(takes as usize)));
                waiting = left;
                for (since, ready) in ready {
                    let queued = polls.resume(HUB, now, now - since);
                    let truth = now - ready;
                    prop_assert!(queued.least_ns <= truth, "{queued:?} {truth}");
                    prop_assert!(queued.most_ns >= truth, "{queued:?} {truth}");
                    prop_assert!(queued.any_most_ns >= queued.most_ns);
                    prop_assert!(queued.any_most_ns <= now - since);
                    now += turn.runs_ns;
                }
            }
        }
    }

    #[test]
    fn where_two_greenlets_poll_nothing_is_known() {
        let mut polls = Polls::default();
        polls.begin(HUB, 10, 64);
        polls.begin(Addr(16), 20, 64);
        assert_eq!(polls.resume(HUB, 100, 7), queued(0, 7, 7));
        assert_eq!(polls.resume(Addr(16), 100, 7), queued(0, 7, 7));
    }

    #[test]
    fn a_loop_polls_by_one_kind_of_call() {
        let mut polls = Polls::default();
        polls.slept(HUB, false);
        assert!(!polls.is_a_callbacks(HUB, false));
        polls.slept(HUB, true);
        assert!(polls.is_a_callbacks(HUB, false));
        assert!(!polls.is_a_callbacks(HUB, true));
        assert!(!polls.is_a_callbacks(Addr(16), false));
    }

    #[test]
    fn a_busy_hub_has_both_bounds() {
        let mut polls = Polls::default();
        polls.begin(HUB, 10, 64);
        let _first = polls.resume(HUB, 20, 5);
        polls.begin(HUB, 50, 64);
        assert_eq!(polls.resume(HUB, 55, 100), queued(0, 45, 100));
        assert_eq!(polls.resume(HUB, 85, 100), queued(30, 75, 100));
        assert_eq!(polls.resume(HUB, 85, 20), queued(20, 20, 20));
    }
}
