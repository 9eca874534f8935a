//! Whose the time of a run was, part by part, where the label changed within it.

use core::ptr;

use profiler_common::{
    clock::OFF_KINDS, label::Label, limits::MAX_PARTS, queue::Queued, record::Greenlet, walk::StackKey,
};

use crate::{maps, slot::Slot};

/// [`change`], [`part_take`]: there was no room for the time of a label.
pub const FULL: u32 = 2;
/// [`change`], [`part_take`]: some of it is nobody's, for the label changed.
pub const CHANGED: u32 = 1;
/// [`part_take`]: there is no such part, or it is not over.
const STOP: u32 = 4;

/// The label of `from` is `slot.label` now and was another before, or others were seen in
/// between: whoever is in `slot.parts` gets its time. The run ends with the last of them.
///
/// The slot is looked up again: a key of a map must lie in a map's value or on the stack, and
/// up to 6.2 or so the verifier takes what a global function is given for neither.
#[inline(never)]
pub fn change(from: &mut Greenlet) -> u32 {
    let Some(slot) = maps::slot() else {
        return 0;
    };
    // A switch that was undone has added the begin of this run already.
    let begun_ns = slot.undo.from_since_ns.max(from.label_since_ns);
    let running_ns = from.running_ns.saturating_sub(slot.run.ns).max(from.label_running_ns);
    let mut what = 0;
    // What is charged for this run went through `slot.undo`.
    for ((pair, sum), (gained, before)) in
        slot.pair.off_ns.iter_mut().zip(from.off_ns).zip(slot.undo.off_ns.iter().zip(from.label_off_ns))
    {
        *pair = sum.wrapping_sub(*gained).saturating_sub(before);
    }
    if !from.label.is_none() {
        slot.pair_key.label = from.label;
        slot.pair.ns = running_ns.saturating_sub(from.label_running_ns);
        slot.pair.first_ns = from.label_since_ns;
        slot.pair.last_ns = begun_ns;
        what |= add_run(slot);
    }
    for (before, (sum, gained)) in from.label_off_ns.iter_mut().zip(from.off_ns.iter().zip(slot.undo.off_ns))
    {
        *before = sum.wrapping_sub(gained);
    }
    from.label_running_ns = running_ns;
    from.label_since_ns = begun_ns;
    for number in 0..MAX_PARTS as u32 {
        let took = part_take(from, number);
        if took & STOP != 0 {
            break;
        }
        what |= took;
    }
    if let Some(slot) = maps::slot() {
        slot.parts_count = 0;
        from.label = slot.label;
    }
    what
}

/// Whoever is in that part of `slot.parts` gets its time.
///
/// A global function: the verifier looks at it once, and not for each part.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn part_take(from: *mut Greenlet, number: u32) -> u32 {
    let Some(slot) = maps::slot() else {
        return STOP;
    };
    if from.is_null() || u64::from(number) >= slot.parts_count {
        return STOP;
    }
    // SAFETY: a reference of `change`'s.
    let from = unsafe { &mut *from };
    let Some(part) = slot.parts.get(number as usize) else {
        return STOP;
    };
    if u64::from(number) + 1 == slot.parts_count && part.label.is(&slot.label) {
        // It goes on.
        return STOP;
    }
    let ns = part.until_ns.saturating_sub(from.label_since_ns);
    slot.pair.off_ns = profiler_common::clock::charge(&part.off_ns, &mut slot.part_off_ns, ns);
    for (before, off) in from.label_off_ns.iter_mut().zip(slot.pair.off_ns) {
        *before = before.wrapping_add(off);
    }
    slot.pair.ns = ns;
    slot.pair.first_ns = from.label_since_ns;
    slot.pair.last_ns = part.until_ns;
    slot.pair_key.label = part.label;
    from.label_since_ns += ns;
    from.label_running_ns += ns;
    let mut what = 0;
    if slot.pair_key.label.is(&Label::DISPUTED) {
        what |= CHANGED;
        if let Some(totals) = maps::totals(slot.target) {
            totals.changed_ns += ns;
        }
    }
    if !slot.pair_key.label.is_none() {
        what |= add_run(slot);
    }
    what
}

#[inline(always)]
fn add_run(slot: &mut Slot) -> u32 {
    slot.pair_key.stack = StackKey { id: 0, check: 0 };
    slot.pair.count = 1;
    slot.pair.queued = Queued::NONE;
    if maps::add_pair(&slot.pair_key, &slot.pair) { 0 } else { FULL }
}

/// What the current greenlet did since the last look, up to `now`, was for that label.
#[inline(always)]
pub fn push(slot: &mut Slot, label: &Label, now: u64) {
    if slot.parts_count == 0 {
        slot.part_off_ns = slot.charged.off_ns;
    }
    let off_ns = slot.clock.off_ns;
    push_part(slot, label, now, &off_ns);
}

/// The same at the end of a run, which is charged already.
#[inline(always)]
pub fn push_last(slot: &mut Slot, label: &Label, now: u64) {
    let off_ns = slot.charged.off_ns;
    if slot.parts_count == 0 {
        slot.part_off_ns = off_ns;
        for (ns, gained) in slot.part_off_ns.iter_mut().zip(slot.undo.off_ns) {
            *ns = ns.wrapping_sub(gained);
        }
    }
    push_part(slot, label, now, &off_ns);
}

#[inline(always)]
fn push_part(slot: &mut Slot, label: &Label, now: u64, off_ns: &[u64; OFF_KINDS]) {
    let mut number = slot.parts_count;
    let (mut same, mut nobodys) = (false, false);
    if number != 0
        && let Some(last) = slot.parts.get(number.wrapping_sub(1) as usize & 3)
    {
        // The spans of a request are one here.
        same = last.label.is(label)
            || last.label.kind == label.kind && last.label.request() == label.request() && !label.is_none();
        // Together they are nobody's.
        nobodys = !same && last.label.is_none() && label.is_none();
    }
    let full = !same && !nobodys && number >= MAX_PARTS as u64;
    if same || nobodys || full {
        number -= 1;
    } else {
        slot.parts_count = number + 1;
    }
    // The compiler knows that it is in range and drops the check, which the verifier of 6.1 wants.
    // SAFETY: a local.
    let number = unsafe { ptr::read_volatile(&raw const number) };
    if let Some(part) = slot.parts.get_mut(number as usize & 3) {
        // Without room the last one and this one are together nobody's: `changed_ns` has them.
        part.label = if full || nobodys { Label::DISPUTED } else { *label };
        part.until_ns = now;
        part.off_ns = *off_ns;
    }
}
