//! The books: greenlets' identities and times, stacks' waits, the longest runs.

use aya_ebpf::{helpers::bpf_get_current_pid_tgid, programs::ProbeContext};
use profiler_common::{
    address::Addr,
    clock::OFF_KINDS,
    fault::Fault,
    label::Label,
    limits::TOP_RUNS,
    memory::Memory as _,
    queue::Queued,
    record::{
        ARMED, End, EndRecord, GREENLET_BORN, GREENLET_FREED, GREENLET_RUNNING, Greenlet, GreenletKey, Kind,
        RecordHead, Run, TargetConfig, Totals, VERSION,
    },
    walk::StackKey,
};

use crate::{
    clock, emit, label, lent,
    maps::{self, count},
    memory::UserMemory,
    module,
    slot::Slot,
    switch, thread,
};

/// Where a type's address lies in an object (`PyObject.ob_type`).
/// <https://github.com/python/cpython/blob/v3.13.0/Include/object.h>
const OB_TYPE: u16 = 8;

/// What is known of a greenlet when it is first seen, for [`meet`].
#[inline(always)]
pub fn sight(slot: &mut Slot, object: Addr, now_ns: u64, since_ns: u64, flags: u32) {
    let sight = &mut slot.sight;
    sight.object = object;
    sight.thread = slot.thread;
    sight.seen_ns = now_ns;
    sight.since_ns = since_ns;
    sight.flags = flags;
}

/// Gives the greenlet in `slot.sight` its identity, under the key `slot.to_key`.
#[inline(never)]
pub fn meet(slot: &mut Slot, totals: &mut Totals) -> Option<&'static mut Greenlet> {
    let Slot { sight, to_key: key, .. } = slot;
    // A type that can't be read leaves the greenlet without a type name.
    sight.type_object = UserMemory.pointer(sight.object.at(OB_TYPE)).unwrap_or(Addr::NULL);
    totals.identities += 1;
    let none = StackKey { id: 0, check: 0 };
    sight.id = key.target << 40 | totals.identities;
    sight.running_ns = 0;
    sight.waiting_ns = 0;
    sight.switches_in = 0;
    sight.stack = none;
    sight.begun_stack = none;
    sight.begun_ns = 0;
    sight.sent = 0;
    sight.off_ns = [0; OFF_KINDS];
    sight.label = Label::NONE;
    sight.begun_label = Label::NONE;
    sight.given = Label::NONE;
    sight.label_running_ns = 0;
    sight.label_off_ns = [0; OFF_KINDS];
    sight.label_since_ns = sight.since_ns;
    sight.connection = 0;
    sight.reading = 0;
    sight.alone = 0;
    sight.shared_ns = 0;
    sight.lent = 0;
    sight.awaits = 0;
    maps::take_unstarted(key, &mut sight.given);
    if sight.flags & GREENLET_BORN == 0 {
        // Its start was not seen: whose that is nobody knows.
        sight.given = Label::NONE;
    }
    // From its first instruction on.
    sight.label = sight.given;
    if !maps::insert_greenlet(key, sight) {
        count(totals, Fault::GreenletsFull);
        totals.blind = 1;
        return None;
    }
    totals.greenlets += 1;
    if sight.flags & GREENLET_BORN != 0 {
        totals.births += 1;
    }
    maps::greenlet(key)
}

/// Counts a wait that is over for its stack.
#[inline(always)]
pub fn waited(stack: &StackKey, target: u64, ns: u64, queued: &Queued, totals: &mut Totals) {
    if stack.is_none() {
        return;
    }
    match maps::stack(stack) {
        // Whatever a target has in its memory, it reaches no other's rows.
        Some(known) if known.target == target as u32 => {
            known.ns += ns;
            known.count += 1;
            known.queued.add(queued);
        }
        Some(_) | None => count(totals, Fault::StacksFull),
    }
}

/// Keeps a run in the place of the shortest of those that are kept.
#[inline(always)]
pub fn keep_run(run: &Run, totals: &mut Totals) {
    let _kept = account_keep_run(run, totals);
}

/// A global function, as [`label`]'s are.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn account_keep_run(run: *const Run, totals: *mut Totals) -> u32 {
    if run.is_null() || totals.is_null() {
        return 0;
    }
    // SAFETY: references of `keep_run`'s caller.
    let run = unsafe { &*run };
    // SAFETY: as above.
    let totals = unsafe { &mut *totals };
    let mut shortest = 0;
    let mut shortest_ns = u64::MAX;
    for index in 0..TOP_RUNS {
        if let Some(kept) = totals.runs.get(index)
            && kept.ns < shortest_ns
        {
            shortest = index;
            shortest_ns = kept.ns;
        }
    }
    if let Some(kept) = totals.runs.get_mut(shortest) {
        *kept = *run;
    }
    let mut bar = u64::MAX;
    for kept in &totals.runs {
        bar = bar.min(kept.ns);
    }
    totals.shortest_run_ns = bar;
    0
}

/// Forgets a run that did not end after all.
#[inline(never)]
pub fn forget_run(ended_ns: u64, totals: &mut Totals) -> u32 {
    for kept in &mut totals.runs {
        if kept.ended_ns == ended_ns {
            kept.ns = 0;
            totals.shortest_run_ns = 0;
        }
    }
    0
}

/// Ends the identity of the greenlet whose key is `slot.from_key`, and sends what was
/// kept of it.
///
/// `greenlet.since_ns` must be the end, and the last run or wait be added.
#[inline(never)]
pub fn end(greenlet: &Greenlet, how: u32, slot: &mut Slot, totals: &mut Totals) -> u32 {
    let Slot { end: record, from_key: key, .. } = slot;
    record.head = RecordHead {
        kind: Kind::End as u32,
        version: VERSION,
        target: key.target,
        time_ns: greenlet.since_ns,
    };
    record.greenlet = *greenlet;
    record.pimpl = key.pimpl;
    record.how = how;
    record.padding = 0;
    // Whoever removes it sends its end: its thread's exit and its destructor may meet.
    if !maps::remove_greenlet(key) {
        return 0;
    }
    // A thread that exits holds no GIL.
    maps::add(&mut totals.ends, 1);
    if greenlet.lent != 0 {
        lent::ended(key.target, greenlet.lent, greenlet.since_ns);
    }
    if !emit::send(record, size_of::<EndRecord>() as u64, false) {
        count(totals, Fault::RingFullEnd);
        maps::add(&mut totals.unlisted, 1);
        maps::add(&mut totals.unlisted_running_ns, greenlet.running_ns);
        maps::add(&mut totals.unlisted_waiting_ns, greenlet.waiting_ns);
        maps::add(&mut totals.unlisted_switches_in, greenlet.switches_in);
        for (sum, ns) in totals.unlisted_off_ns.iter_mut().zip(greenlet.off_ns) {
            maps::add(sum, ns);
        }
    }
    0
}

/// A greenlet's object is freed: if it still has an identity, it never finished.
#[inline(always)]
pub fn on_freed(ctx: &ProbeContext, this: Addr) {
    let target = thread::target(ctx);
    let Some(config) = maps::config(target) else {
        return;
    };
    let Some(totals) = maps::totals(target) else {
        return;
    };
    if config.started_ns == ARMED || !module::owns(ctx, config, target) {
        return;
    }
    totals.hits += 1;
    let key = GreenletKey { target, pimpl: this };
    maps::drop_unstarted(&key);
    if maps::greenlet(&key).is_none() {
        return;
    }
    let Some(slot) = maps::slot().or_else(|| thread::first_hit(ctx)) else {
        maps::keep_normal_stack(ctx);
        return;
    };
    slot.enter();
    free(config, slot, totals, &key);
    slot.leave();
}

#[inline(always)]
fn free(config: &TargetConfig, slot: &mut Slot, totals: &mut Totals, key: &GreenletKey) {
    let now = clock::now(config, slot, totals);
    let is_current = slot.epoch == config.epoch && slot.current == key.pimpl;
    if is_current {
        let _taken_back = switch::reconsider(config, slot, totals, now);
    }
    let Some(greenlet) = maps::greenlet(key) else {
        return;
    };
    if !is_current && greenlet.flags & GREENLET_RUNNING != 0 && greenlet.thread != bpf_get_current_pid_tgid()
    {
        // A thread that ends leaves its main greenlet to whoever makes the next call into Python.
        // It runs until its thread is gone, whose exit closes it, with that thread's clock.
        greenlet.flags |= GREENLET_FREED;
        return;
    }
    if is_current && greenlet.flags & GREENLET_RUNNING != 0 {
        let ran_ns = now.saturating_sub(greenlet.since_ns);
        clock::charge(slot, Some(greenlet), ran_ns);
    }
    slot.from_key = *key;
    ended(greenlet, now, End::Freed, slot, totals);
}

/// Closes the books of the greenlet whose key is `slot.from_key`, which ends at `now`
/// without a last switch.
#[inline(always)]
pub fn ended(greenlet: &mut Greenlet, now: u64, how: End, slot: &mut Slot, totals: &mut Totals) {
    // When a replaced one ended is not known: its last wait is left out, or its last run, if its
    // thread did not exit yet.
    let ns = if how == End::Replaced { 0 } else { now.saturating_sub(greenlet.since_ns) };
    if greenlet.flags & GREENLET_RUNNING != 0 {
        greenlet.running_ns += ns;
        // Whose the last run was nobody looked at. What was charged for it the callers have.
        greenlet.label_running_ns += ns;
        for (before, gained) in greenlet.label_off_ns.iter_mut().zip(slot.undo.off_ns) {
            *before = before.wrapping_add(gained);
        }
    } else if how != End::Replaced {
        greenlet.waiting_ns += ns;
        // It did not go on.
        waited(&greenlet.stack, slot.target, ns, &Queued::NONE, totals);
        slot.pair.queued = Queued::NONE;
        if !greenlet.label.is_none() && !greenlet.was_answered_for() {
            let pimpl = slot.from_key.pimpl;
            let part_ns = lent::of_wait(slot, greenlet, pimpl, ns, now);
            let until_ns = now - (ns - part_ns);
            if !label::add_wait(slot, &greenlet.stack, &greenlet.label, part_ns, until_ns) {
                count(totals, Fault::LabelsFull);
            }
        }
    }
    greenlet.since_ns = now;
    let _sent = end(greenlet, how as u32, slot, totals);
}
