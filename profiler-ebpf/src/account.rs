//! The books: greenlets' identities and times, stacks' waits, the longest runs.

use aya_ebpf::{
    EbpfContext as _,
    helpers::generated::{bpf_get_attach_cookie, bpf_ktime_get_ns},
    programs::ProbeContext,
};
use profiler_common::{
    address::Addr,
    fault::Fault,
    limits::TOP_RUNS,
    memory::Memory as _,
    record::{
        End, EndRecord, GREENLET_BORN, GREENLET_RUNNING, Greenlet, GreenletKey, Kind, RecordHead, Run,
        Totals, VERSION,
    },
    walk::StackKey,
};

use crate::{
    emit,
    maps::{self, count},
    memory::UserMemory,
    slot::Slot,
};

/// Where a type's address lies in an object (`PyObject.ob_type`).
/// <https://github.com/python/cpython/blob/v3.13.0/Include/object.h>
const OB_TYPE: u16 = 8;

/// What is known of a greenlet when it is first seen.
pub struct FirstSight {
    /// Its key.
    pub key: GreenletKey,
    /// Its `PyGreenlet`.
    pub object: Addr,
    /// Its thread.
    pub thread: u64,
    /// Now.
    pub now_ns: u64,
    /// Since when it runs or waits.
    pub since_ns: u64,
    /// `GREENLET_*`.
    pub flags: u32,
}

/// Gives a greenlet its identity.
#[inline(never)]
pub fn meet(sight: &FirstSight, totals: &mut Totals) -> Option<&'static mut Greenlet> {
    // A type that can't be read leaves the greenlet without a type name.
    let type_object = UserMemory.pointer(sight.object.at(OB_TYPE)).unwrap_or(Addr::NULL);
    totals.greenlets += 1;
    if sight.flags & GREENLET_BORN != 0 {
        totals.births += 1;
    }
    let none = StackKey { id: 0, check: 0 };
    let greenlet = Greenlet {
        id: sight.key.target << 40 | totals.greenlets,
        object: sight.object,
        type_object,
        thread: sight.thread,
        seen_ns: sight.now_ns,
        since_ns: sight.since_ns,
        running_ns: 0,
        waiting_ns: 0,
        switches_in: 0,
        stack: none,
        begun_stack: none,
        begun_ns: 0,
        flags: sight.flags,
        sent: 0,
    };
    if !maps::insert_greenlet(&sight.key, &greenlet) {
        count(totals, Fault::GreenletsFull);
        return None;
    }
    maps::greenlet(&sight.key)
}

/// Counts a wait that is over for its stack.
#[inline(always)]
pub fn waited(stack: &StackKey, ns: u64, totals: &mut Totals) {
    if stack.is_none() {
        return;
    }
    match maps::stack(stack) {
        Some(known) => {
            known.ns += ns;
            known.count += 1;
        }
        None => count(totals, Fault::StacksFull),
    }
}

/// Keeps a run if it is one of the longest.
#[inline(always)]
pub fn ran(run: &Run, totals: &mut Totals) {
    if run.ns > totals.shortest_run_ns {
        keep_run(run, totals);
    }
}

#[inline(never)]
fn keep_run(run: &Run, totals: &mut Totals) -> u32 {
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

/// Ends a greenlet's identity and sends what was kept of it.
///
/// `greenlet.since_ns` must be the end, and the last run or wait be added.
#[inline(never)]
pub fn end(
    key: &GreenletKey,
    greenlet: &Greenlet,
    how: u32,
    record: &mut EndRecord,
    totals: &mut Totals,
) -> u32 {
    totals.ends += 1;
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
    if !emit::send(record, size_of::<EndRecord>() as u64, false) {
        count(totals, Fault::RingFullEnd);
        totals.unlisted += 1;
        totals.unlisted_running_ns += greenlet.running_ns;
        totals.unlisted_waiting_ns += greenlet.waiting_ns;
        totals.unlisted_switches_in += greenlet.switches_in;
    }
    maps::remove_greenlet(key);
    0
}

/// A greenlet's object is freed: if it still has an identity, it never finished.
#[inline(always)]
pub fn on_freed(ctx: &ProbeContext, this: Addr) {
    // SAFETY: the context is this program's.
    let target = unsafe { bpf_get_attach_cookie(ctx.as_ptr()) };
    if maps::config(target).is_none() {
        return;
    }
    let key = GreenletKey { target, pimpl: this };
    let Some(greenlet) = maps::greenlet(&key) else {
        return;
    };
    let Some(totals) = maps::totals(target) else {
        return;
    };
    let Some(slot) = maps::slot_or_create() else {
        count(totals, Fault::NoTaskStorage);
        return;
    };
    // SAFETY: takes no argument.
    let now = unsafe { bpf_ktime_get_ns() };
    ended(&key, greenlet, now, End::Freed, slot, totals);
}

/// Closes the books of a greenlet that ends at `now` without a last switch.
#[inline(always)]
pub fn ended(
    key: &GreenletKey,
    greenlet: &mut Greenlet,
    now: u64,
    how: End,
    slot: &mut Slot,
    totals: &mut Totals,
) {
    let ns = now.saturating_sub(greenlet.since_ns);
    if greenlet.flags & GREENLET_RUNNING != 0 {
        greenlet.running_ns += ns;
    } else if how != End::Replaced {
        // When a replaced one ended is not known: its last wait is left out.
        greenlet.waiting_ns += ns;
        waited(&greenlet.stack, ns, totals);
    }
    greenlet.since_ns = now;
    let _sent = end(key, greenlet, how as u32, &mut slot.end, totals);
}
