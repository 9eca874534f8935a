//! What happens at a switch.

use aya_ebpf::programs::ProbeContext;
use profiler_common::{
    address::Addr,
    fault::Fault,
    greenlet::{self, Head, Life},
    label::{KIND_HANDED, Label},
    limits::MAX_PARENTS,
    memory::Memory as _,
    record::{
        CONFIG_RUNS, CONFIG_STACKS, CONFIG_SWITCHES, End, GREENLET_AWAITS, GREENLET_BORN, GREENLET_FREED,
        GREENLET_MAIN, GREENLET_PASSES, GREENLET_RUNNING, GREENLET_UNTOLD, Greenlet, GreenletKey, Kind,
        RecordHead, SwitchRecord, TargetConfig, Totals, VERSION,
    },
    walk::{StackKey, Start, Walk},
};

use crate::{
    account, block, clock, emit, label, lent,
    log::log,
    maps::{self, count},
    memory::UserMemory,
    module, off,
    own::By,
    poll,
    slot::Slot,
    stack, thread,
};

/// Which probe was hit.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Via {
    /// `g_switchstack`: `this` is the target, the switch follows.
    Switchstack,
    /// `g_switch`: `this` is what was asked for; it may be current, unstarted or dead.
    Switch,
    /// `g_initialstub`: `this` is not started; the switch follows unless its `run`
    /// cannot be had.
    Initialstub,
}

/// What a hit works on.
struct Hit<'a> {
    config: &'a TargetConfig,
    slot: &'a mut Slot,
    totals: &'a mut Totals,
    now: u64,
}

/// Accounts a switch to `this`.
#[inline(always)]
pub fn on_switch(ctx: &ProbeContext, this: Addr, via: Via) {
    let Some(slot) = maps::slot().or_else(|| thread::first_hit(ctx)) else {
        maps::keep_normal_stack(ctx);
        return;
    };
    slot.enter();
    account_switch(ctx, slot, this, via);
    slot.leave();
}

#[inline(always)]
fn account_switch(ctx: &ProbeContext, slot: &mut Slot, this: Addr, via: Via) {
    let Some(config) = maps::config(slot.target) else {
        return;
    };
    if !module::owns(ctx, config, slot.target) {
        return;
    }
    let Some(totals) = maps::totals(slot.target) else {
        return;
    };
    let now = clock::now(config, slot, totals);
    if now < config.started_ns {
        return;
    }
    totals.hits += 1;
    if slot.epoch != config.epoch {
        // Only g_switch is called before greenlet has checked whose greenlet it is.
        if via == Via::Switch && thread::is_foreign(slot.target, this) {
            count(totals, Fault::WrongThread);
            return;
        }
        if !thread::learn(config, this, now, slot, totals) {
            totals.blind = 1;
            return;
        }
    }
    let Ok(current) = greenlet::current(&config.layout, &mut UserMemory, slot.thread_state) else {
        count(totals, Fault::ReadState);
        totals.blind = 1;
        return;
    };
    let mut hit = Hit { config, slot, totals, now };
    if current != hit.slot.current_object && !agree(&mut hit, current) {
        return;
    }
    if this == hit.slot.current {
        return;
    }
    hit.slot.to_key = GreenletKey { target: hit.slot.target, pimpl: this };
    let (known, enterer) = enterer(&mut hit, via);
    if enterer == Enterer::None {
        return;
    }
    if enterer == Enterer::Begun {
        begun(&mut hit);
    }
    leave(&mut hit, known, enterer != Enterer::Known);
}

/// What is known of the enterer, whose key is in the slot.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Enterer {
    /// No switch follows.
    None,
    /// It was seen before.
    Known,
    /// It starts now, or what it did before is unknown.
    Born,
    /// It waited before the recording began.
    Begun,
}

/// Finds out why greenlet's own current is not ours, and goes on from there.
#[inline(never)]
fn agree(hit: &mut Hit<'_>, current: Addr) -> bool {
    if hit.slot.undo.valid != 0 && hit.slot.undo.from_object == current {
        undo(hit);
        return true;
    }
    log!(
        "thread {}: out of step, believed {:x}, current is {:x}",
        believed = hit.slot.current_object.0,
        current = current.0
    );
    thread::resync(hit.config, hit.slot, hit.now, hit.totals)
}

/// The greenlet that we believe current is freed, which a current one never is: takes
/// the last switch back if greenlet's own current tells that it did not happen.
#[inline(never)]
pub fn reconsider(config: &TargetConfig, slot: &mut Slot, totals: &mut Totals, now: u64) -> u32 {
    let current = greenlet::current(&config.layout, &mut UserMemory, slot.thread_state);
    if slot.undo.valid != 0 && current == Ok(slot.undo.from_object) {
        undo(&mut Hit { config, slot, totals, now });
    }
    0
}

/// The last switch was announced and did not happen (its target's `run` could not
/// be had, or the switch was refused): takes its accounting back.
#[inline(always)]
fn undo(hit: &mut Hit<'_>) {
    let Hit { config, slot, totals, now: _ } = hit;
    log!(
        "thread {}: switch undone, from {:x} to {:x}",
        from = slot.undo.from_object.0,
        to = slot.current_object.0
    );
    count(totals, Fault::SwitchUndone);
    totals.switches -= 1;
    let to_key = GreenletKey { target: slot.target, pimpl: slot.current };
    let undo = &mut slot.undo;
    undo.valid = 0;
    let mut to_id = 0;
    if let Some(to) = maps::greenlet(&to_key) {
        to_id = to.id;
        if to.flags & GREENLET_BORN != 0 {
            totals.births -= 1;
        }
        totals.greenlets -= 1;
        let _was_known = maps::remove_greenlet(&to_key);
    }
    let from_key = GreenletKey { target: slot.target, pimpl: undo.from };
    let mut from_id = 0;
    if let Some(from) = maps::greenlet(&from_key) {
        from_id = from.id;
        from.running_ns -= undo.run_ns;
        for (sum, ns) in from.off_ns.iter_mut().zip(undo.off_ns) {
            *sum = sum.wrapping_sub(ns);
        }
        from.since_ns = undo.from_since_ns;
        from.flags |= GREENLET_RUNNING;
    }
    clock::give_back(&undo.off_ns, &mut slot.charged);
    // The run goes on, and is told when it ends.
    slot.block.ns = 0;
    let _forgotten = account::forget_run(undo.ended_ns, totals);
    slot.current = undo.from;
    slot.current_object = undo.from_object;
    if config.flags & CONFIG_SWITCHES != 0 {
        let none = StackKey { id: 0, check: 0 };
        send_switch(hit, Kind::Undone, from_id, to_id, none);
    }
}

/// Who enters: what was asked for, unless that is dead. With the entry of most that are
/// known, for a second lookup would cost as much as a read of the target's memory.
#[inline(always)]
fn enterer(hit: &mut Hit<'_>, via: Via) -> (Option<&'static mut Greenlet>, Enterer) {
    if via != Via::Initialstub
        && let Some(known) = maps::greenlet(&hit.slot.to_key)
        && known.flags & GREENLET_FREED == 0
    {
        if known.thread != hit.slot.thread {
            count(hit.totals, Fault::WrongThread);
            return (None, Enterer::None);
        }
        return (Some(known), Enterer::Known);
    }
    (None, meet_enterer(hit, via))
}

/// Looks at a greenlet that is not known: a birth, one that was there before us,
/// or a dead one that stands for its ancestor.
#[inline(never)]
fn meet_enterer(hit: &mut Hit<'_>, via: Via) -> Enterer {
    let Hit { config, slot, totals, now } = hit;
    let now = *now;
    let layout = &config.layout;
    let mut hops = 0;
    while hops < MAX_PARENTS {
        hops += 1;
        let at = slot.to_key.pimpl;
        let Ok(head) = Head::read(layout, &mut UserMemory, at, &mut slot.scratch.words) else {
            count(totals, Fault::ReadState);
            return Enterer::None;
        };
        if !thread::is_greenlet(slot.target, &head) {
            count(totals, Fault::NotAGreenlet);
            return Enterer::None;
        }
        let flags = match (head.life(via != Via::Switch), via) {
            (Life::Unstarted, Via::Switch) => return Enterer::None, // g_initialstub follows
            (Life::Dead, _) => {
                let up = UserMemory
                    .pointer(at.at(layout.greenlet.parent))
                    .and_then(|parent| greenlet::pimpl(layout, &mut UserMemory, parent));
                let Ok(up) = up else {
                    count(totals, Fault::DeadTarget);
                    return Enterer::None;
                };
                slot.to_key.pimpl = up;
                if up == slot.current {
                    return Enterer::None;
                }
                if maps::greenlet(&slot.to_key).is_some() {
                    return Enterer::Known;
                }
                continue;
            }
            (Life::Active, _) if head.is_main() => GREENLET_MAIN,
            (Life::Active, _) => 0,
            (Life::Starting | Life::Unstarted, _) => GREENLET_BORN,
        };
        if let Some(stale) = maps::greenlet(&slot.to_key) {
            // Its end was not seen: its destructor has no probe.
            slot.from_key = slot.to_key;
            account::ended(stale, now, End::Replaced, slot, totals);
        }
        let born = flags & GREENLET_BORN != 0;
        // User space may end the recording just now.
        let since_ns = match config.started_ns {
            0 => now,
            _ if born || totals.blind != 0 => now,
            started_ns => started_ns,
        };
        account::sight(slot, head.object, now, since_ns, flags);
        // Without an entry (the map is full, and counted) its times are lost.
        let _entry = account::meet(slot, totals);
        return if since_ns == now { Enterer::Born } else { Enterer::Begun };
    }
    count(totals, Fault::DeadTarget);
    Enterer::None
}

/// A wait that began before the recording ends: its stack is still in place.
#[inline(never)]
fn begun(hit: &mut Hit<'_>) -> u32 {
    let Hit { config, slot, totals, now } = hit;
    if config.flags & CONFIG_STACKS == 0 {
        return 0;
    }
    let Some(greenlet) = maps::greenlet(&slot.to_key) else {
        return 0;
    };
    let Ok(start) = greenlet::suspended_start(&config.layout, &mut UserMemory, slot.to_key.pimpl) else {
        count(totals, Fault::ReadState);
        return 0;
    };
    let empty = StackKey::empty(slot.target, greenlet.type_object);
    stack::walk(start, empty, config, slot.target, &mut slot.scratch);
    let Walk { key, depth, fault, .. } = slot.scratch.walk;
    if let Some(fault) = fault {
        count(totals, fault);
    }
    if depth == 0 && fault.is_some() {
        return 0;
    }
    greenlet.begun_stack = key;
    if config.label.source != 0 {
        let context = UserMemory.pointer(slot.to_key.pimpl.at(config.layout.greenlet.context));
        let _blank = label::of_context(config, slot, context.unwrap_or(Addr(1)));
        greenlet.label = slot.label;
        greenlet.label_since_ns = config.started_ns;
        if !slot.label.is_none() && !label::tell(config, slot, &Label::NONE, *now) {
            greenlet.flags |= GREENLET_UNTOLD;
            count(totals, Fault::RingFullLabel);
        }
    }
    about(config, slot, *now, greenlet.type_object, empty);
    let _sent = stack::ensure_sent(config, &mut slot.scratch, totals, By::Switch);
    0
}

/// Says what goes into the record of the stack just walked, if it is new.
#[inline(always)]
pub fn about(config: &TargetConfig, slot: &mut Slot, now: u64, type_object: Addr, empty: StackKey) {
    let about = &mut slot.scratch.about;
    about.target = slot.target;
    about.time_ns = now;
    about.type_object = type_object;
    about.empty = empty;
    about.key = slot.scratch.walk.key;
    about.sending = config.sending;
}

/// Takes the leaver's stack and moves both greenlets' books on.
#[inline(always)]
fn leave(hit: &mut Hit<'_>, known: Option<&'static mut Greenlet>, fresh: bool) {
    let slot = &mut *hit.slot;
    slot.from_key = GreenletKey { target: slot.target, pimpl: slot.current };
    // Entered from one that waited since, and goes on to another that waited: a hub does that.
    let passes = !fresh && slot.undo.from != slot.to_key.pimpl && slot.undo.valid == 0;
    slot.undo.from = slot.current;
    slot.undo.from_object = slot.current_object;
    slot.undo.from_since_ns = hit.now;
    slot.run.stack = StackKey { id: 0, check: 0 };
    slot.run.greenlet = 0;
    slot.whole = 0;
    let mut dead = false;
    if let Some(from) = maps::greenlet(&slot.from_key) {
        dead = take_stack(hit, from);
        // What the walk cost is the leaver's: the enterer did not ask for it.
        hit.now = clock::now(hit.config, hit.slot, hit.totals);
        let now = hit.now;
        let slot = &mut *hit.slot;
        let ns = now.saturating_sub(from.since_ns);
        slot.undo.from_since_ns = from.since_ns;
        from.running_ns += ns;
        clock::charge(slot, Some(from), ns);
        from.since_ns = now;
        from.flags &= !GREENLET_RUNNING;
        if passes {
            from.flags |= GREENLET_PASSES;
        }
        slot.run.ns = ns;
        let began_ns = slot.run.ended_ns;
        slot.run.ended_ns = now;
        slot.run.greenlet = from.id;
        let had = !from.label.is_none() || hit.slot.parts_count != 0;
        if had || from.lent != 0 || label::wanted(hit.config, &from.given) {
            label::at_leave(hit.config, hit.slot, hit.totals, from);
        } else {
            hit.slot.label = Label::NONE;
        }
        hit.slot.whole = u32::from(from.label_since_ns <= hit.slot.undo.from_since_ns);
        if ns >= hit.config.block_ns {
            let _block = block::begin(hit.config, hit.slot, from, began_ns);
        }
        let slot = &mut *hit.slot;
        if ns > hit.totals.shortest_run_ns && keeps_runs_of(hit.config, from) {
            account::keep_run(&slot.run, hit.totals);
        }
    } else {
        // Not in the map, which is full: nobody gets what the thread was off the CPU.
        clock::charge(slot, None, 0);
    }
    let Hit { config, slot, totals, now } = hit;
    let now = *now;
    let undo = &mut slot.undo;
    undo.valid = u64::from(fresh && !dead);
    undo.run_ns = now.saturating_sub(undo.from_since_ns);
    undo.ended_ns = now;
    slot.current = slot.to_key.pimpl;
    let mut to_id = 0;
    if let Some(to) = known.or_else(|| maps::greenlet(&slot.to_key)) {
        to_id = to.id;
        slot.current_object = to.object;
        // One that is born did not wait while the leaver's stack was walked.
        let born = fresh && to.flags & GREENLET_BORN != 0;
        let ns = if born { 0 } else { now.saturating_sub(to.since_ns) };
        to.waiting_ns += ns;
        // Not on the stack, which is scarce.
        slot.pair.queued = slot.polls.resume(slot.from_key.pimpl, now, ns);
        if to.flags & GREENLET_AWAITS != 0 || slot.pair.queued.is_of_poll() {
            let _queued = poll::resumed(config, slot, to, now, ns);
        }
        if slot.block.ns != 0 && !fresh {
            let _held = block::held_up(config, slot, to, ns);
        }
        if !fresh {
            account::waited(&to.stack, slot.target, ns, &slot.pair.queued, totals);
        } else if !born {
            to.begun_ns = ns;
        }
        if !to.label.is_none() && !born {
            if fresh {
                to.begun_label = to.label;
            } else if !to.was_answered_for() {
                let _counted = labelled_wait(config, slot, totals, to, ns);
            }
        }
        to.switches_in += 1;
        to.since_ns = now;
        to.flags |= GREENLET_RUNNING;
    } else {
        // Not in the map, which is full: only its identity on the thread is kept.
        slot.current_object =
            Head::read(&config.layout, &mut UserMemory, slot.current, &mut slot.scratch.words)
                .map_or(Addr::NULL, |head| head.object);
    }
    totals.switches += 1;

    if config.flags & CONFIG_SWITCHES != 0 {
        let (from, stack) = (hit.slot.run.greenlet, hit.slot.run.stack);
        send_switch(hit, Kind::Switch, from, to_id, stack);
    }
    if dead && let Some(from) = maps::greenlet(&hit.slot.from_key) {
        let _ended = account::end(from, End::Finished as u32, hit.slot, hit.totals);
    }
}

/// A wait of `to` for `ns`, which has a label, is over; how much of it was queued is in the
/// slot's pair. Out of line: the stack is scarce.
#[inline(never)]
fn labelled_wait(config: &TargetConfig, slot: &mut Slot, totals: &mut Totals, to: &Greenlet, ns: u64) -> u32 {
    // All the time the leaver ran for the same request, which did not wait then.
    let same = slot.label.request() == to.label.request();
    let handed = same && slot.whole != 0 && slot.undo.from_since_ns == to.since_ns;
    slot.handed = if handed { KIND_HANDED } else { 0 };
    let pimpl = slot.to_key.pimpl;
    let part_ns = lent::of_wait(slot, to, pimpl, ns, to.since_ns + ns);
    // It was ready at the end of its wait.
    slot.pair.queued = slot.pair.queued.without(ns - part_ns);
    let until_ns = to.since_ns + part_ns;
    if !label::add_wait(slot, &to.stack, &to.label, part_ns, until_ns) {
        count(totals, Fault::LabelsFull);
    }
    if !handed && off::wants_told(config, &to.label, part_ns) {
        let _told = off::tell(slot, to.id, &to.label, until_ns, part_ns);
    }
    0
}

/// Whether this greenlet's runs are wanted: not a hub's.
#[inline(always)]
fn keeps_runs_of(config: &TargetConfig, greenlet: &Greenlet) -> bool {
    config.flags & CONFIG_RUNS != 0 && !block::idles(config, greenlet)
}

/// Takes the leaver's stack into its entry and the slot's run; returns whether the
/// leaver is dead.
#[inline(never)]
fn take_stack(hit: &mut Hit<'_>, from: &mut Greenlet) -> bool {
    let Hit { config, slot, totals, now } = hit;
    if config.flags & CONFIG_STACKS == 0 {
        return is_dead(config, slot, from);
    }
    let none = StackKey { id: 0, check: 0 };
    let Some(frame) = thread::leaf_frame(config, slot) else {
        from.stack = none;
        count(totals, thread::unproved(config));
        return is_dead(config, slot, from);
    };
    // In the slot, for the stack is scarce here.
    let empty = StackKey::empty(slot.target, from.type_object);
    slot.scratch.about.empty = empty;
    stack::walk(Start { frame, top_frame_only: false }, empty, config, slot.target, &mut slot.scratch);
    let known = slot.scratch.walk.key == from.stack && from.sent == config.sending;
    from.stack = none;
    if let Some(fault) = slot.scratch.walk.fault {
        count(totals, fault);
    }
    if slot.scratch.walk.depth == 0 {
        if is_dead(config, slot, from) {
            return true;
        }
        if slot.scratch.walk.fault.is_some() {
            return false;
        }
        // It runs no Python: its stack is the empty one.
    }
    from.stack = slot.scratch.walk.key;
    slot.run.stack = from.stack;
    if !known {
        let empty = slot.scratch.about.empty;
        about(config, slot, *now, from.type_object, empty);
        let sent = stack::ensure_sent(config, &mut slot.scratch, totals, By::Switch);
        from.sent = if sent { config.sending } else { 0 };
    }
    false
}

/// A greenlet without frames is finished if its C stack is gone.
#[inline(always)]
fn is_dead(config: &TargetConfig, slot: &Slot, from: &Greenlet) -> bool {
    if from.flags & GREENLET_MAIN != 0 {
        return false;
    }
    UserMemory
        .word(slot.current.at(config.layout.greenlet.stack_start))
        .is_ok_and(|stack_start| stack_start == 0)
}

#[inline(always)]
fn send_switch(hit: &mut Hit<'_>, kind: Kind, from: u64, to: u64, stack: StackKey) {
    hit.slot.switch = SwitchRecord {
        head: RecordHead { kind: kind as u32, version: VERSION, target: hit.slot.target, time_ns: hit.now },
        from,
        to,
        stack,
        label: hit.slot.label,
    };
    if !emit::send(&raw const hit.slot.switch, size_of::<SwitchRecord>() as u64, false) {
        count(hit.totals, Fault::RingFullSwitch);
    }
}
