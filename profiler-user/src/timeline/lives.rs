//! From the kernel's books to each greenlet's life inside the recording.

use std::cmp::Reverse;

use profiler_common::{
    address::Addr,
    clock::{Clock, OFF_KINDS, charge},
    label::{Label, Lent},
    record::{
        EndRecord, GREENLET_BORN, GREENLET_FIRST, GREENLET_MAIN, GREENLET_PASSES, GREENLET_PLACE,
        GREENLET_RUNNING, Greenlet, Thread,
    },
    walk::StackKey,
};
use rustc_hash::FxHashMap;

/// The recording's bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// When every probe was in place.
    pub started_ns: u64,
    /// When the accounting was ended.
    pub ended_ns: u64,
}

/// Which ends of a wait lie outside the recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Open {
    /// It began before.
    Begin,
    /// It was not over.
    End,
    /// Both.
    Both,
}

/// The part inside of a wait that is not wholly inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenWait {
    /// Where.
    pub stack: StackKey,
    /// How long inside.
    pub ns: u64,
    /// Which ends are open.
    pub open: Open,
    /// Whose work it was.
    pub label: Label,
}

/// What a greenlet did inside the recording.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Life {
    /// The kernel's identity.
    pub id: u64,
    /// The C++ object's address, unique among those alive.
    pub pimpl: Addr,
    /// The `PyGreenlet`.
    pub object: Addr,
    /// Its type.
    pub type_object: Addr,
    /// The kernel's thread key.
    pub thread: u64,
    /// A thread's main greenlet.
    pub main: bool,
    /// Its birth was seen.
    pub born: bool,
    /// It was current when its thread was first seen.
    pub first: bool,
    /// It passed control on from one greenlet to another.
    pub passes: bool,
    /// Its number among those of its thread whose sleeps are apart; 0 for none.
    pub place: u32,
    /// The stack that it was left with last.
    pub left: StackKey,
    /// Its end was not seen.
    pub alive: bool,
    /// When it ended, or was seen to have, if that was seen.
    pub ended_ns: Option<u64>,
    /// It was current at the end.
    pub running: bool,
    /// Switches into it.
    pub switches_in: u64,
    /// Current on its thread.
    pub running_ns: u64,
    /// Of this, its thread was off the CPU: by [`profiler_common::clock::Off`].
    pub off_ns: [u64; OFF_KINDS],
    /// Suspended.
    pub waiting_ns: u64,
    /// When it was first seen, for an order that means something.
    pub seen_ns: u64,
    /// Its waits that are not wholly inside.
    pub open_waits: Vec<OpenWait>,
    /// Whose work it was when it last stopped.
    pub label: Label,
}

/// How long the thread's first greenlet had run before the thread's first switch.
///
/// `existed` says that the thread was there at the start: no switch happened since,
/// so the greenlet that was current at the first one was so all the time.
#[must_use]
pub fn head_start_ns(thread: &Thread, existed: bool, bounds: Bounds) -> u64 {
    let watched_ns = thread.clock.watched_ns.max(bounds.started_ns);
    if existed {
        thread.seen_ns.saturating_sub(bounds.started_ns)
    } else {
        thread.seen_ns.saturating_sub(watched_ns)
    }
}

/// What a thread's greenlets did not get yet of its time off the CPU: the one that is
/// current at the end did it.
#[must_use]
pub fn uncharged_ns(thread: &Thread, clock: &Clock) -> [u64; OFF_KINDS] {
    let mut off_ns = clock.off_ns;
    for (ns, charged) in off_ns.iter_mut().zip(thread.charged_ns) {
        *ns = ns.wrapping_sub(charged);
    }
    off_ns
}

/// Gives the lives of each thread what [`uncharged_ns`] says of it: to the one that is current at
/// the end, but no more than it ran. The rest was taken from those that ran before it in the same
/// stretch, and known when the thread left the CPU: the one that ran most has it.
pub fn spread(lives: &mut [Life], uncharged_ns: impl Fn(u64) -> Option<[u64; OFF_KINDS]>) {
    let mut by_thread: FxHashMap<u64, Vec<&mut Life>> = FxHashMap::default();
    for life in lives {
        by_thread.entry(life.thread).or_default().push(life);
    }
    for (thread, mut own) in by_thread {
        let Some(off_ns) = uncharged_ns(thread).filter(|_| own.iter().any(|life| life.running)) else {
            continue;
        };
        own.sort_by_key(|life| (!life.running, Reverse(life.running_ns)));
        let mut charged = [0; OFF_KINDS];
        for life in own {
            let room = life.running_ns.saturating_sub(life.off_ns.iter().sum());
            let gained = charge(&off_ns, &mut charged, room);
            for (ns, more) in life.off_ns.iter_mut().zip(gained) {
                *ns += more;
            }
        }
    }
}

/// The life of a greenlet whose end was not seen.
#[must_use]
pub fn alive(
    pimpl: Addr,
    greenlet: &Greenlet,
    lent: &FxHashMap<u64, Lent>,
    head_start_ns: u64,
    bounds: Bounds,
) -> Life {
    let mut life = life(pimpl, greenlet, head_start_ns);
    life.alive = true;
    let ns = bounds.ended_ns.saturating_sub(greenlet.since_ns);
    if greenlet.flags & GREENLET_RUNNING != 0 {
        life.running = true;
        life.running_ns += ns;
    } else {
        life.waiting_ns += ns;
        // A greenlet that is known but was never switched into was the current one
        // when we came, and its wait began inside.
        let stack = greenlet.stack;
        let label = if greenlet.was_answered_for() { Label::NONE } else { greenlet.label };
        let own_ns = over_ns(greenlet, lent).map_or(ns, |over_ns| over_ns.saturating_sub(greenlet.since_ns));
        let own_ns = own_ns.min(ns);
        if own_ns < ns {
            life.open_waits.push(OpenWait { stack, ns: ns - own_ns, open: Open::End, label: Label::NONE });
        }
        if own_ns > 0 || ns == 0 {
            life.open_waits.push(OpenWait { stack, ns: own_ns, open: Open::End, label });
        }
    }
    life
}

/// When the request ended whose label a greenlet has from its maker, if it did.
fn over_ns(greenlet: &Greenlet, lent: &FxHashMap<u64, Lent>) -> Option<u64> {
    if !greenlet.given.is_inherited() || greenlet.label.is_none() {
        return None;
    }
    match lent.get(&greenlet.label.request()) {
        Some(lent) => lent.until_ns(),
        // Pushed out by later ones.
        None => greenlet.label.is_inherited().then_some(0),
    }
}

/// The life of a greenlet whose end was seen.
#[must_use]
pub fn ended(record: &EndRecord, head_start_ns: u64) -> Life {
    let mut life = life(record.pimpl, &record.greenlet, head_start_ns);
    // When a replaced one ended is not known, only that it did.
    life.alive = false;
    life.ended_ns = Some(record.greenlet.since_ns);
    life
}

fn life(pimpl: Addr, greenlet: &Greenlet, head_start_ns: u64) -> Life {
    let first = greenlet.flags & GREENLET_FIRST != 0;
    let mut open_waits = Vec::new();
    if greenlet.begun_ns > 0 {
        let wait = OpenWait {
            stack: greenlet.begun_stack,
            ns: greenlet.begun_ns,
            open: Open::Begin,
            label: greenlet.begun_label,
        };
        open_waits.push(wait);
    }
    Life {
        id: greenlet.id,
        pimpl,
        object: greenlet.object,
        type_object: greenlet.type_object,
        thread: greenlet.thread,
        main: greenlet.flags & GREENLET_MAIN != 0,
        born: greenlet.flags & GREENLET_BORN != 0,
        first,
        passes: greenlet.flags & GREENLET_PASSES != 0,
        place: greenlet.flags >> GREENLET_PLACE & 0xff,
        left: greenlet.stack,
        alive: false,
        ended_ns: None,
        running: false,
        switches_in: greenlet.switches_in,
        running_ns: greenlet.running_ns + if first { head_start_ns } else { 0 },
        off_ns: greenlet.off_ns,
        waiting_ns: greenlet.waiting_ns,
        seen_ns: greenlet.seen_ns,
        open_waits,
        label: greenlet.label,
    }
}

#[cfg(test)]
mod tests {
    use profiler_common::{
        label::{KIND_INHERITED, Source},
        record::{EndRecord, RecordHead},
    };

    use super::*;

    const NONE: StackKey = StackKey { id: 0, check: 0 };
    const BOUNDS: Bounds = Bounds { started_ns: 100, ended_ns: 1_000 };

    fn greenlet(flags: u32) -> Greenlet {
        Greenlet {
            id: 1,
            object: Addr(16),
            type_object: Addr(32),
            thread: 7,
            seen_ns: 200,
            since_ns: 900,
            running_ns: 300,
            waiting_ns: 400,
            switches_in: 3,
            stack: StackKey { id: 5, check: 6 },
            begun_stack: NONE,
            begun_ns: 0,
            flags,
            sent: 1,
            off_ns: [0; OFF_KINDS],
            begun_label: Label::NONE,
            label: Label::NONE,
            given: Label::NONE,
            label_running_ns: 0,
            label_off_ns: [0; OFF_KINDS],
            label_since_ns: 0,
            connection: 0,
            reading: 0,
            alone: 0,
            shared_ns: 0,
            lent: 0,
            awaits: 0,
        }
    }

    #[test]
    fn nobody_is_off_the_cpu_for_longer_than_it_ran() {
        let life = |flags| alive(Addr(8), &greenlet(flags), &FxHashMap::default(), 0, BOUNDS);
        let mut lives = [life(0), life(GREENLET_RUNNING), life(0)];
        // The current one ran for 400 ns.
        let [first, _, other] = &mut lives;
        first.running_ns = 1_000;
        other.thread = 8;
        spread(&mut lives, |thread| Some(if thread == 7 { [300, 0, 0, 200] } else { [9; OFF_KINDS] }));
        assert_eq!(lives.map(|life| life.off_ns), [[0, 0, 0, 100], [300, 0, 0, 100], [0; OFF_KINDS]]);
    }

    #[test]
    fn the_last_run_is_closed_at_the_end() {
        let life = alive(Addr(8), &greenlet(GREENLET_RUNNING), &FxHashMap::default(), 0, BOUNDS);
        assert_eq!((life.running_ns, life.waiting_ns), (400, 400));
        assert!(life.open_waits.is_empty() && life.alive);
    }

    #[test]
    fn a_makers_label_ends_with_its_request() {
        let mut kept = greenlet(0);
        kept.label = Label { id: [1, 2], span: 0, kind: Source::Wire as u32 | KIND_INHERITED, target: 0 };
        kept.given = kept.label;
        let (since_ns, request) = (kept.since_ns, kept.label.request());
        let parts = |lent: Option<Lent>| {
            let lent: FxHashMap<u64, Lent> = lent.map(|lent| (request, lent)).into_iter().collect();
            let waits = alive(Addr(8), &kept, &lent, 0, BOUNDS).open_waits;
            waits.iter().map(|wait| (!wait.label.is_none(), wait.ns)).collect::<Vec<_>>()
        };
        let on = Lent { makers: 1, over_ns: 0, answered_ns: 0 };
        assert_eq!(parts(Some(on)), [(true, 100)]);
        assert_eq!(parts(Some(Lent { answered_ns: since_ns + 30, ..on })), [(false, 70), (true, 30)]);
        let over = Lent { makers: 0, over_ns: since_ns + 40, answered_ns: 0 };
        assert_eq!(parts(Some(over)), [(false, 60), (true, 40)]);
        // The earlier end is it.
        assert_eq!(parts(Some(Lent { answered_ns: since_ns + 30, ..over })), [(false, 70), (true, 30)]);
        assert_eq!(parts(Some(Lent { answered_ns: since_ns + 50, ..over })), [(false, 60), (true, 40)]);
        assert_eq!(parts(None), [(false, 100)]);
    }

    #[test]
    fn the_last_wait_counts_its_part_inside_and_is_marked() {
        let life = alive(Addr(8), &greenlet(0), &FxHashMap::default(), 0, BOUNDS);
        assert_eq!((life.running_ns, life.waiting_ns), (300, 500));
        let wait =
            OpenWait { stack: StackKey { id: 5, check: 6 }, ns: 100, open: Open::End, label: Label::NONE };
        assert_eq!(life.open_waits, [wait]);
    }

    #[test]
    fn a_wait_from_before_is_marked() {
        let mut kept = greenlet(GREENLET_RUNNING);
        kept.begun_ns = 70;
        kept.begun_stack = StackKey { id: 9, check: 9 };
        let life = alive(Addr(8), &kept, &FxHashMap::default(), 0, BOUNDS);
        let wait = OpenWait { stack: kept.begun_stack, ns: 70, open: Open::Begin, label: Label::NONE };
        assert_eq!(life.open_waits, [wait]);
    }

    #[test]
    fn only_the_first_greenlet_of_a_thread_gets_the_head_start() {
        assert_eq!(
            alive(Addr(8), &greenlet(GREENLET_RUNNING), &FxHashMap::default(), 50, BOUNDS).running_ns,
            400
        );
        assert_eq!(
            alive(Addr(8), &greenlet(GREENLET_RUNNING | GREENLET_FIRST), &FxHashMap::default(), 50, BOUNDS)
                .running_ns,
            450
        );
    }

    #[test]
    fn an_ended_greenlet_gets_nothing_after_its_end() {
        let record = EndRecord {
            head: RecordHead { kind: 2, version: 1, target: 0, time_ns: 900 },
            greenlet: greenlet(GREENLET_BORN),
            pimpl: Addr(8),
            how: 1,
            padding: 0,
        };
        let life = ended(&record, 0);
        assert_eq!((life.alive, life.running_ns, life.waiting_ns), (false, 300, 400));
    }
}
