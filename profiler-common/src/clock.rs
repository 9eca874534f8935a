//! A thread's clock: where its time goes, kept at every context switch.

use crate::address::Addr;

/// Why a thread is off the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Off {
    /// It sleeps in a system call (or a page fault) that is none of the others.
    Blocked = 0,
    /// It sleeps in a system call that waits for any of many files: what an idle hub does.
    Polled = 1,
    /// It waits for its interpreter's GIL.
    Gil = 2,
    /// It could run and may not: it was preempted, was woken (or its group may use the CPU again)
    /// and waits for its turn, has just been made, or is stopped.
    Preempted = 3,
}

/// How many reasons there are, a power of two.
pub const OFF_KINDS: usize = 4;

/// [`Clock::state`]: on a CPU; below it are the numbers of [`Off`].
pub const ON_CPU: u32 = OFF_KINDS as u32;

/// A thread's clock. Written by the scheduler's tracepoint only, never while the thread
/// itself runs; times are ns since the thread is watched.
#[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Clock {
    /// Another one after each change; 0 while the thread is not watched.
    pub version: u64,
    /// Since when it is watched.
    pub watched_ns: u64,
    /// The last change; ahead of it by what the scheduler's sum was more than the time since
    /// the one before.
    pub since_ns: u64,
    /// On a CPU up to `since_ns`.
    pub on_cpu_ns: u64,
    /// Off the CPU up to `since_ns`, by [`Off`].
    pub off_ns: [u64; OFF_KINDS],
    /// What it is in since then: [`ON_CPU`] or an [`Off`].
    pub state: u32,
    /// Not 0 once `delay_ns` is known.
    pub delay_known: u32,
    /// The scheduler's own sum of its time on CPUs at the last change; 0 if not known.
    pub runtime_ns: u64,
    /// The scheduler's own sum of its time ready and on no CPU, when it left the CPU last.
    pub delay_ns: u64,
}

/// What the scheduler has counted of a thread; 0 what the kernel does not tell.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scheduled {
    /// On CPUs.
    pub runtime_ns: u64,
    /// Ready and on none, up to when it was last made ready.
    /// <https://github.com/torvalds/linux/blob/v6.12/kernel/sched/stats.h> (`sched_info_arrive`)
    pub delay_ns: u64,
    /// And since then, if it is about to come onto a CPU.
    pub queued_ns: u64,
}

impl Scheduled {
    /// Nothing but its time on CPUs.
    #[must_use]
    pub const fn ran(runtime_ns: u64) -> Self {
        Self { runtime_ns, delay_ns: 0, queued_ns: 0 }
    }
}

impl Clock {
    /// The clock of a thread that is watched from `now_ns` on, and then in `state`.
    #[inline(always)]
    #[must_use]
    pub const fn begin(now_ns: u64, state: u32) -> Self {
        Self {
            version: 1,
            watched_ns: now_ns,
            since_ns: now_ns,
            on_cpu_ns: 0,
            off_ns: [0; OFF_KINDS],
            state,
            delay_known: 0,
            runtime_ns: 0,
            delay_ns: 0,
        }
    }

    /// The thread leaves the CPU, and has had `had` by the scheduler's sums.
    /// Nothing before `started_ns` counts.
    ///
    /// The scheduler stops its own clock before it looks for another thread, which can
    /// take longer than the run did: that, and what the hypervisor took, is no time on
    /// the CPU but the first of the time off it. It starts it before it tells that the thread
    /// comes, mostly by a few microseconds, on a CPU that was idle by a hundred, and by more
    /// where the hypervisor took the CPU in between: that is taken from the time off that
    /// follows.
    #[inline(always)]
    pub fn leave(&mut self, now_ns: u64, started_ns: u64, had: Scheduled, why: Off) {
        let Scheduled { runtime_ns, delay_ns, queued_ns: _ } = had;
        let elapsed = self.elapsed(now_ns, started_ns);
        let ran = runtime_ns.wrapping_sub(self.runtime_ns);
        // Of a run that was not seen from its begin the sum is not known then. (It is 0 when
        // a thread is made, too.)
        let cut = self.since_ns < started_ns || self.runtime_ns == 0;
        // 0: the kernel does not tell.
        let ran = if runtime_ns == 0 || cut && ran > elapsed { elapsed } else { ran };
        self.on_cpu_ns += ran;
        if let Some(off) = self.off_ns.get_mut(why as usize & (OFF_KINDS - 1)) {
            *off += elapsed.saturating_sub(ran);
        }
        self.runtime_ns = runtime_ns;
        self.delay_ns = delay_ns;
        self.delay_known = 1;
        let ahead_ns = self.since_ns.saturating_sub(now_ns) + ran.saturating_sub(elapsed);
        self.turn(now_ns + ahead_ns, why as u32);
    }

    /// The thread runs, and was not seen to come onto the CPU: how much of the time since
    /// it left it has been off, by the scheduler's sum; all of it where that is not known.
    ///
    /// Not every switch of a CPU is told: see ARCHITECTURE.md.
    #[inline(always)]
    #[must_use]
    pub fn off_unseen(&self, now_ns: u64, started_ns: u64, runtime_ns: u64) -> u64 {
        let elapsed = self.elapsed(now_ns, started_ns);
        let known = self.runtime_ns != 0 && runtime_ns != 0;
        elapsed.saturating_sub(if known { runtime_ns.wrapping_sub(self.runtime_ns) } else { 0 })
    }

    /// How much of the last `off_ns`, which the thread was off the CPU, it was ready to run: the
    /// end of a sleep, from when it was woken. A thread whose group has used up its share of the
    /// CPUs is ready, too.
    #[inline(always)]
    #[must_use]
    pub fn queued(&self, had: &Scheduled, off_ns: u64) -> u64 {
        let before = if self.delay_known == 0 { 0 } else { had.delay_ns.saturating_sub(self.delay_ns) };
        let queued = before.saturating_add(had.queued_ns);
        if queued < off_ns { queued } else { off_ns }
    }

    /// Adds `off_ns` off the CPU for that reason, but what of it the thread was ready to run.
    /// That is returned.
    #[inline(always)]
    fn add_off(&mut self, why: u32, off_ns: u64, had: &Scheduled) -> u64 {
        let queued = if why == Off::Preempted as u32 { 0 } else { self.queued(had, off_ns) };
        if let Some(off) = self.off_ns.get_mut(why as usize & (OFF_KINDS - 1)) {
            *off += off_ns - queued;
        }
        let [.., preempted] = &mut self.off_ns;
        *preempted += queued;
        queued
    }

    /// It was not seen to come, and leaves now: puts in order what was before. Returns how much
    /// of that it was ready to run and no more asleep.
    #[inline(always)]
    pub fn came_unseen(&mut self, now_ns: u64, started_ns: u64, had: Scheduled) -> u64 {
        let off_ns = self.off_unseen(now_ns, started_ns, had.runtime_ns);
        self.on_cpu_ns += self.elapsed(now_ns, started_ns) - off_ns;
        let queued = self.add_off(self.state, off_ns, &had);
        self.runtime_ns = had.runtime_ns;
        self.turn(now_ns, ON_CPU);
        queued
    }

    /// The thread comes onto a CPU, and has had `had` by the scheduler's sums. Returns how long
    /// it was ready to run and no more asleep.
    /// Nothing before `started_ns` counts.
    #[inline(always)]
    pub fn enter(&mut self, now_ns: u64, started_ns: u64, had: Scheduled) -> u64 {
        let mut ns = self.elapsed(now_ns, started_ns);
        let mut why = self.state;
        if why == ON_CPU {
            // It was not seen to leave; or it seemed to run when it was first watched, and
            // could.
            let off_ns = self.off_unseen(now_ns, started_ns, had.runtime_ns);
            self.on_cpu_ns += ns - off_ns;
            ns = off_ns;
            why = Off::Preempted as u32;
        }
        let queued = self.add_off(why, ns, &had);
        self.runtime_ns = had.runtime_ns;
        self.turn(now_ns, ON_CPU);
        queued
    }

    /// The clock as it stands at `now_ns`, in the state that it is in.
    #[inline(always)]
    #[must_use]
    pub fn at(mut self, now_ns: u64, started_ns: u64) -> Self {
        let state = self.state;
        if state == ON_CPU {
            self.on_cpu_ns += self.elapsed(now_ns, started_ns);
        } else {
            let had = Scheduled { runtime_ns: self.runtime_ns, delay_ns: self.delay_ns, queued_ns: 0 };
            let _queued = self.enter(now_ns, started_ns, had);
        }
        self.turn(now_ns, state);
        self
    }

    #[inline(always)]
    fn elapsed(&self, now_ns: u64, started_ns: u64) -> u64 {
        let since = if self.since_ns > started_ns { self.since_ns } else { started_ns };
        now_ns.saturating_sub(since)
    }

    #[inline(always)]
    const fn turn(&mut self, now_ns: u64, state: u32) {
        self.version += 1;
        if now_ns > self.since_ns {
            self.since_ns = now_ns;
        }
        self.state = state;
    }
}

/// Takes from what a clock has gained since `charged` the part of a greenlet that ran for
/// `ran_ns`: no more than that, for it can't have been off the CPU for longer. What is left
/// is the next one's: the time that the hypervisor took is known only when the thread leaves
/// the CPU, and may be of one that ran before.
#[inline(always)]
#[must_use]
pub fn charge(off_ns: &[u64; OFF_KINDS], charged: &mut [u64; OFF_KINDS], ran_ns: u64) -> [u64; OFF_KINDS] {
    let mut gained = *off_ns;
    let mut left = ran_ns;
    for (ns, charged) in gained.iter_mut().zip(charged) {
        let gain = ns.saturating_sub(*charged);
        *ns = if gain < left { gain } else { left };
        left -= *ns;
        *charged += *ns;
    }
    gained
}

/// Where an interpreter's GIL lies: `struct _gil_runtime_state`.
#[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Gil {
    /// Its begin.
    pub start: Addr,
    /// Its end.
    pub end: Addr,
}

impl Off {
    /// Why a thread sleeps that is in the system call `number` of x86-64, whose first
    /// argument is `first`; -1 for none (a page fault).
    ///
    /// <https://github.com/torvalds/linux/blob/v6.12/arch/x86/entry/syscalls/syscall_64.tbl>
    #[inline(always)]
    #[must_use]
    pub const fn of_x86_64_call(number: i64, first: u64, gil: Gil) -> Self {
        match number {
            // futex
            202 => Self::of_futex(first, gil),
            // poll, select, io_getevents, epoll_wait, pselect6, ppoll, epoll_pwait,
            // io_pgetevents, epoll_pwait2
            7 | 23 | 208 | 232 | 270 | 271 | 281 | 333 | 441 => Self::Polled,
            _ => Self::Blocked,
        }
    }

    /// The same of aarch64.
    ///
    /// <https://github.com/torvalds/linux/blob/v6.12/include/uapi/asm-generic/unistd.h>
    #[inline(always)]
    #[must_use]
    pub const fn of_aarch64_call(number: i64, first: u64, gil: Gil) -> Self {
        match number {
            98 => Self::of_futex(first, gil),
            // io_getevents, epoll_pwait, pselect6, ppoll, io_pgetevents, epoll_pwait2
            4 | 22 | 72 | 73 | 292 | 441 => Self::Polled,
            _ => Self::Blocked,
        }
    }

    /// `pthread_cond_timedwait` and `pthread_mutex_lock` wait at a word of theirs.
    #[inline(always)]
    const fn of_futex(word: u64, gil: Gil) -> Self {
        if word >= gil.start.0 && word < gil.end.0 { Self::Gil } else { Self::Blocked }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    const WHY: [Off; OFF_KINDS] = [Off::Blocked, Off::Polled, Off::Gil, Off::Preempted];

    fn sum(clock: &Clock) -> u64 {
        clock.on_cpu_ns + clock.off_ns.iter().sum::<u64>()
    }

    proptest! {
        #[test]
        fn every_ns_since_the_start_is_in_one_place(
            started_ns in 0_u64..50,
            turns in prop::collection::vec((0_u64..20, 0_usize..OFF_KINDS), 0..40),
            on_cpu in any::<bool>(),
        ) {
            let mut now = 10;
            let mut clock = Clock::begin(now, if on_cpu { ON_CPU } else { Off::Polled as u32 });
            let mut expected = Vec::from([0_u64; OFF_KINDS + 1]);
            let mut at = if on_cpu { OFF_KINDS } else { Off::Polled as usize };
            for (ns, why) in turns {
                let before = now.max(started_ns);
                now += ns;
                expected[at] += now.saturating_sub(before);
                if at == OFF_KINDS {
                    clock.leave(now, started_ns, Scheduled::ran(0), WHY[why]);
                    at = why;
                } else {
                    let _queued = clock.enter(now, started_ns, Scheduled::ran(0));
                    at = OFF_KINDS;
                }
            }
            prop_assert_eq!(&clock.off_ns[..], &expected[..OFF_KINDS]);
            prop_assert_eq!(clock.on_cpu_ns, expected[OFF_KINDS]);
            let later = now + 7;
            let last = clock.at(later, started_ns);
            prop_assert_eq!(sum(&last), later.saturating_sub(started_ns.max(10)));
            prop_assert_eq!(last.state, clock.state);
        }
    }

    proptest! {
        #[test]
        fn the_schedulers_sum_is_kept_whatever_it_is(
            turns in prop::collection::vec((0_u64..300_000, 0_u64..300_000, 0_u64..500_000), 0..40),
        ) {
            let (mut now, mut runtime) = (1_000, 5_000);
            let mut clock = Clock::begin(now, Off::Polled as u32);
            for (off, on, ran) in turns {
                now += off;
                let _queued = clock.enter(now, 500, Scheduled::ran(runtime));
                now += on;
                runtime += ran;
                clock.leave(now, 500, Scheduled::ran(runtime), Off::Blocked);
            }
            prop_assert_eq!(clock.on_cpu_ns, runtime - 5_000);
            // What it had more than there was is taken from what follows.
            prop_assert_eq!(sum(&clock), clock.since_ns - 1_000);
            prop_assert_eq!(sum(&clock.at(clock.since_ns + 9, 500)), clock.since_ns + 9 - 1_000);
        }
    }

    #[test]
    fn what_seemed_to_run_and_comes_was_runnable() {
        let mut clock = Clock::begin(0, ON_CPU);
        let _queued = clock.enter(5, 0, Scheduled::ran(0));
        assert_eq!((clock.on_cpu_ns, clock.off_ns[Off::Preempted as usize]), (0, 5));
    }

    #[test]
    fn what_the_scheduler_did_not_count_is_off_the_cpu() {
        let mut clock = Clock::begin(0, Off::Polled as u32);
        let _queued = clock.enter(10, 0, Scheduled::ran(100));
        clock.leave(30, 0, Scheduled::ran(115), Off::Blocked);
        assert_eq!((clock.on_cpu_ns, clock.off_ns), (15, [5, 10, 0, 0]));
        // It came a little before it was seen to.
        let _queued = clock.enter(50, 0, Scheduled::ran(115));
        clock.leave(60, 0, Scheduled::ran(127), Off::Gil);
        let _queued = clock.enter(70, 0, Scheduled::ran(127));
        assert_eq!((clock.on_cpu_ns, clock.off_ns), (27, [25, 10, 8, 0]));
        // It was on the CPU before the recording began.
        let mut clock = Clock::begin(0, ON_CPU);
        clock.leave(30, 20, Scheduled::ran(1_000_000), Off::Blocked);
        assert_eq!((clock.on_cpu_ns, clock.off_ns), (10, [0; OFF_KINDS]));
        let mut clock = Clock::begin(0, Off::Preempted as u32);
        let _queued = clock.enter(10, 20, Scheduled::ran(100));
        clock.leave(30, 20, Scheduled::ran(115), Off::Blocked);
        assert_eq!((clock.on_cpu_ns, clock.off_ns), (10, [0; OFF_KINDS]));
        // It is new, and the scheduler had counted nothing yet.
        let mut clock = Clock::begin(0, Off::Preempted as u32);
        let _queued = clock.enter(10, 0, Scheduled::ran(0));
        clock.leave(30, 0, Scheduled::ran(15), Off::Blocked);
        assert_eq!((clock.on_cpu_ns, clock.off_ns), (15, [5, 0, 0, 10]));
    }

    proptest! {
        #[test]
        fn what_it_was_ready_is_no_sleep(
            turns in prop::collection::vec((0_u64..300, 0_u64..300, 0_u64..300, 0_usize..OFF_KINDS), 1..40),
        ) {
            let (mut now, mut delay) = (1_000, 77);
            let mut clock = Clock::begin(now, ON_CPU);
            let (mut asleep, mut ready, mut ran) = ([0; OFF_KINDS], 0, 0);
            for (on, sleeps, queued, why) in turns {
                now += on;
                ran += on;
                clock.leave(now, 0, Scheduled { runtime_ns: 0, delay_ns: delay, queued_ns: 0 }, WHY[why]);
                // It was moved to another CPU while it was queued.
                let before = queued / 3;
                now += sleeps + queued;
                asleep[why] += sleeps;
                ready += queued;
                delay += before;
                let had = Scheduled { runtime_ns: 0, delay_ns: delay, queued_ns: queued - before };
                let told = clock.enter(now, 0, had);
                prop_assert_eq!(told, if WHY[why] == Off::Preempted { 0 } else { queued });
                delay += queued - before;
            }
            asleep[Off::Preempted as usize] += ready;
            prop_assert_eq!(clock.off_ns, asleep);
            prop_assert_eq!(clock.on_cpu_ns, ran);
        }
    }

    #[test]
    fn it_was_ready_no_longer_than_it_was_off() {
        // How long it had been ready before is not known, and the recording began in between.
        let mut clock = Clock::begin(0, Off::Polled as u32);
        let had = Scheduled { runtime_ns: 0, delay_ns: 1_000, queued_ns: 70 };
        assert_eq!(clock.enter(100, 50, had), 50);
        assert_eq!(clock.off_ns, [0, 0, 0, 50]);
        // It came unseen: the sum tells when it leaves.
        clock.leave(110, 50, Scheduled { runtime_ns: 500, delay_ns: 1_000, queued_ns: 0 }, Off::Blocked);
        assert_eq!(
            clock.came_unseen(140, 50, Scheduled { runtime_ns: 510, delay_ns: 1_005, queued_ns: 0 }),
            5
        );
        assert_eq!((clock.on_cpu_ns, clock.off_ns), (20, [15, 0, 0, 55]));
    }

    #[test]
    fn what_was_not_seen_to_come_has_its_run_from_the_scheduler() {
        let mut clock = Clock::begin(0, Off::Polled as u32);
        let _queued = clock.enter(0, 0, Scheduled::ran(100));
        clock.leave(10, 0, Scheduled::ran(110), Off::Polled);
        assert_eq!(clock.off_unseen(40, 0, 115), 25);
        let _queued = clock.came_unseen(50, 0, Scheduled::ran(120));
        clock.leave(50, 0, Scheduled::ran(120), Off::Preempted);
        assert_eq!((clock.on_cpu_ns, clock.off_ns), (20, [0, 30, 0, 0]));
        // Where the scheduler does not tell, it was off.
        let _queued = clock.came_unseen(60, 0, Scheduled::ran(0));
        assert_eq!((clock.on_cpu_ns, clock.off_ns), (20, [0, 30, 0, 10]));
        // Nor seen to leave.
        let mut clock = Clock::begin(0, Off::Blocked as u32);
        let _queued = clock.enter(10, 0, Scheduled::ran(100));
        let _queued = clock.enter(50, 0, Scheduled::ran(115));
        assert_eq!((clock.on_cpu_ns, clock.off_ns), (15, [10, 0, 0, 25]));
    }

    #[test]
    fn a_greenlet_is_not_off_the_cpu_for_longer_than_it_ran() {
        let off_ns = [5, 0, 10, 300];
        let mut charged = [5, 0, 0, 0];
        assert_eq!(charge(&off_ns, &mut charged, 100), [0, 0, 10, 90]);
        assert_eq!(charge(&off_ns, &mut charged, 0), [0; OFF_KINDS]);
        assert_eq!(charge(&off_ns, &mut charged, 1000), [0, 0, 0, 210]);
        assert_eq!(charged, off_ns);
        // What was reckoned came out a little less.
        assert_eq!(charge(&[4, 0, 12, 300], &mut charged, 1000), [0, 0, 2, 0]);
    }

    #[test]
    fn a_futex_inside_the_gil_is_a_wait_for_it() {
        let gil = Gil { start: Addr(100), end: Addr(200) };
        assert_eq!(Off::of_x86_64_call(202, 132, gil), Off::Gil);
        assert_eq!(Off::of_x86_64_call(202, 200, gil), Off::Blocked);
        assert_eq!(Off::of_x86_64_call(-1, 132, gil), Off::Blocked);
        assert_eq!(Off::of_aarch64_call(98, 132, gil), Off::Gil);
    }
}
