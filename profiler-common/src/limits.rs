//! Every bound of the capture, in one place, with its reason.

/// Frames kept of one stack; the root side beyond it is cut and counted.
///
/// A stack record (16 bytes a frame and its head) lies in task storage, whose
/// elements stay under 8 KiB: from Linux 7.0 on they come from `kmalloc_nolock`,
/// which serves no more.
/// <https://github.com/torvalds/linux/blob/v6.18/mm/slub.c> (`kmalloc_nolock_noprof`)
pub const MAX_FRAMES: u32 = 480;

/// Links of a frame chain followed for one stack, C-stack shims included.
pub const MAX_STEPS: u32 = 1024;

/// Words in the bulk window of a walk: 4 KiB, one copy for about thirty frames.
pub const WINDOW_WORDS: usize = 512;

/// Words behind the window that a masked index plus a field's offset may reach.
pub const WINDOW_SLACK_WORDS: usize = 16;

/// Words read of a `PyThreadState` at once: all that a switch needs on every version.
pub const THREAD_STATE_WORDS: usize = 11;

/// Words read of a `PyThreadState` where the GIL may not be held, down to the end of the data
/// stack: on CPython 3.12 and 3.13, whose thread states are 36 and 38 words long.
pub const OWN_STATE_WORDS: usize = 31;

/// The same on CPython 3.11, whose thread states are 45 words long.
pub const OLD_STATE_WORDS: usize = 40;

/// Thread states looked at for the one of the thread that a tick met, newest first; a tick
/// that finds none looks again after a while only ([`MIN_SEARCH_AGAIN_NS`]).
pub const MAX_TICK_THREADS: u32 = 1_024;

/// The same where a thread goes to sleep, under the lock of its CPU's queue: enough for one that
/// has just been made.
pub const MAX_SLEEP_THREADS: u32 = 32;

/// So long after it was not found a thread's own thread state is not looked for; twice as long
/// each time, up to [`MAX_SEARCH_DOUBLED`] times.
pub const MIN_SEARCH_AGAIN_NS: u64 = 1_000_000;

/// Up to half a second.
pub const MAX_SEARCH_DOUBLED: u32 = 9;

/// Links of a frame chain followed for the stack of a thread that goes to sleep, under the lock
/// of its CPU's queue with interrupts off. The root side beyond it is cut and counted.
pub const MAX_SLEEP_STEPS: u32 = 128;

/// Thread states of other interpreters than the main one that a tick looks at.
pub const MAX_OTHER_THREADS: u32 = 64;

/// Links of a `parent` chain followed.
pub const MAX_PARENTS: usize = 8;

/// The longest runs without a switch that are kept per target.
pub const TOP_RUNS: usize = 10;

/// Types of hubs known per target: gevent's own and what is derived from it.
pub const HUB_TYPES: usize = 4;

/// Greenlets that the kernel part is told of as hubs, or as waiting for tasks.
pub const MAX_IDLERS: usize = 8;

/// Ticks of the CPU clock a second, by default: a prime, so that it keeps no step with
/// what happens every so many milliseconds.
pub const DEFAULT_RATE: u32 = 97;

/// The most ticks a second.
pub const MAX_RATE: u32 = 9_999;

/// Processes recorded at once by one greenscope, children included.
pub const MAX_TARGETS: u32 = 256;

/// Instructions probed in every process at once: of a greenlet library three to five.
pub const MAX_PROBED: u32 = 256;

/// Greenlets alive at once over all targets that there is room for; more with a larger
/// `--max-greenlets`.
pub const DEFAULT_GREENLETS: u32 = 131_072;

/// Dead greenlets of a target listed one by one, by default (`--max-greenlets`); the
/// others are summed and counted.
pub const DEFAULT_LISTED: u32 = 100_000;

/// The most that `--max-greenlets` takes.
pub const MAX_LISTED: u32 = 16 << 20;

/// Intervals kept of a target with `--intervals` (about 50 MB); the timeline ends where
/// there is no more room.
pub const MAX_INTERVALS: usize = 1_000_000;

/// Times that a walk over a target's objects is tried again, should it be torn.
pub const MAX_ENUMERATIONS: u32 = 8;

/// Different stacks over all targets.
pub const MAX_STACKS: u32 = 65_536;

/// Words of the set of addresses at which a target's code objects were freed: with a thousand
/// of them two in a hundred other codes are taken for such as well.
pub const FREED_WORDS: usize = 1_024;

/// Stacks of a target whose keys have a code's text in them; in what comes later such a code is
/// unknown. Half of what there is room for.
pub const MAX_TEXT_STACKS: u64 = 32_768;

/// Times of a (stack, label) between two looks of user space, over all targets.
pub const MAX_PAIRS: u32 = 65_536;

/// Greenlets made inside of a request that were not switched to yet, over all targets.
pub const MAX_UNSTARTED: u32 = 65_536;

/// Requests remembered that made greenlets, over all targets: the newest.
pub const MAX_LENT: u32 = 16_384;

/// Bytes looked at of the head of a request.
pub const WIRE_BYTES: u32 = 4_096;

/// Times within one run at which its greenlet was seen with another label.
pub const MAX_PARTS: usize = 3;

/// Threads seen over all targets.
pub const MAX_THREADS: u32 = 8_192;

/// Bytes of the ring buffer: 4 MiB holds a burst of 20 000 dying greenlets.
pub const RING_BYTES: u32 = 4 << 20;

/// Unread bytes in the ring at which the reader is woken before its next turn.
pub const RING_WAKE_BYTES: u64 = 256 << 10;
