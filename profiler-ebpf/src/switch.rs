//! What happens at a switch.

use aya_ebpf::{
    EbpfContext as _,
    helpers::generated::{bpf_get_attach_cookie, bpf_ktime_get_ns},
    programs::ProbeContext,
};
use profiler_common::{
    address::Addr,
    fault::Fault,
    greenlet::{self, Head, Life},
    limits::MAX_PARENTS,
    memory::Memory as _,
    record::{
        CONFIG_STACKS, CONFIG_SWITCHES, End, GREENLET_BORN, GREENLET_MAIN, GREENLET_RUNNING, Greenlet,
        GreenletKey, Kind, RecordHead, Run, SwitchRecord, TargetConfig, Totals, VERSION,
    },
    walk::{StackKey, Start, Walk, running_start},
};

use crate::{
    account::{self, FirstSight},
    emit,
    maps::{self, count},
    memory::UserMemory,
    slot::Slot,
    stack::{self, About},
    thread,
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
    // SAFETY: takes no argument.
    let now = unsafe { bpf_ktime_get_ns() };
    // SAFETY: the context is this program's.
    let target = unsafe { bpf_get_attach_cookie(ctx.as_ptr()) };
    let Some(config) = maps::config(target) else {
        return;
    };
    let Some(totals) = maps::totals(target) else {
        return;
    };
    if now < config.started_ns {
        return;
    }
    totals.hits += 1;
    let Some(slot) = maps::slot_or_create() else {
        count(totals, Fault::NoTaskStorage);
        return;
    };
    if slot.epoch != config.epoch || slot.target != target {
        slot.epoch = 0;
        slot.target = target;
        if !thread::learn(config, this, now, slot, totals) {
            return;
        }
    }
    let Ok(current) = greenlet::current(&config.layout, &mut UserMemory, slot.thread_state) else {
        count(totals, Fault::ReadState);
        return;
    };
    let mut hit = Hit { config, slot, totals, now };
    if current != hit.slot.current_object && !agree(&mut hit, current) {
        return;
    }
    if this == hit.slot.current {
        return;
    }
    let Some((to_key, to, fresh)) = enterer(&mut hit, this, via) else {
        return;
    };
    leave(&mut hit, &to_key, to, fresh);
}

/// Finds out why greenlet's own current is not ours, and goes on from there.
#[inline(never)]
fn agree(hit: &mut Hit<'_>, current: Addr) -> bool {
    if hit.slot.undo.valid != 0 && hit.slot.undo.from_object == current {
        undo(hit);
        return true;
    }
    thread::resync(hit.config, hit.slot, hit.now, hit.totals)
}

/// The last switch was announced and did not happen (its target's `run` could not
/// be had, or the switch was refused): takes its accounting back.
#[inline(always)]
fn undo(hit: &mut Hit<'_>) {
    let Hit { config, slot, totals, now: _ } = hit;
    count(totals, Fault::SwitchUndone);
    totals.switches -= 1;
    let to_key = GreenletKey { target: slot.target, pimpl: slot.current };
    let undo = &mut slot.undo;
    undo.valid = 0;
    let mut to_id = 0;
    if let Some(to) = maps::greenlet(&to_key) {
        to_id = to.id;
        if undo.to_was_new != 0 {
            if to.flags & GREENLET_BORN != 0 {
                totals.births -= 1;
            }
            totals.greenlets -= 1;
            maps::remove_greenlet(&to_key);
        } else {
            to.switches_in -= 1;
            to.waiting_ns -= undo.wait_ns;
            to.since_ns = undo.to_since_ns;
            to.flags &= !GREENLET_RUNNING;
            if let Some(stack) = maps::stack(&undo.to_stack) {
                stack.ns -= undo.wait_ns;
                stack.count -= 1;
            }
        }
    }
    let from_key = GreenletKey { target: slot.target, pimpl: undo.from };
    let mut from_id = 0;
    if let Some(from) = maps::greenlet(&from_key) {
        from_id = from.id;
        from.running_ns -= undo.run_ns;
        from.since_ns = undo.from_since_ns;
        from.flags |= GREENLET_RUNNING;
    }
    let _forgotten = account::forget_run(undo.ended_ns, totals);
    slot.current = undo.from;
    slot.current_object = undo.from_object;
    if config.flags & CONFIG_SWITCHES != 0 {
        let none = StackKey { id: 0, check: 0 };
        send_switch(hit, Kind::Undone, from_id, to_id, none);
    }
}

/// Who enters; `None` when no switch follows. The bool says that it is new here.
#[inline(always)]
fn enterer(
    hit: &mut Hit<'_>,
    this: Addr,
    via: Via,
) -> Option<(GreenletKey, Option<&'static mut Greenlet>, bool)> {
    let target = hit.slot.target;
    let key = GreenletKey { target, pimpl: this };
    if let Some(known) = maps::greenlet(&key)
        && via != Via::Initialstub
    {
        if known.thread != hit.slot.thread {
            count(hit.totals, Fault::WrongThread);
            return None;
        }
        return Some((key, Some(known), false));
    }
    let mut found = Addr::NULL;
    if !meet_enterer(hit, this, via, &mut found) {
        return None;
    }
    let key = GreenletKey { target, pimpl: found };
    // A dead greenlet's ancestor may well be known, and even current.
    if found == hit.slot.current {
        return None;
    }
    let known = maps::greenlet(&key);
    let fresh =
        known.as_ref().is_some_and(|greenlet| greenlet.switches_in == 0 && greenlet.seen_ns == hit.now);
    Some((key, known, fresh))
}

/// Looks at a greenlet that is not known: a birth, one that was there before us,
/// or a dead one that stands for its ancestor.
#[inline(never)]
fn meet_enterer(hit: &mut Hit<'_>, this: Addr, via: Via, found: &mut Addr) -> bool {
    let Hit { config, slot, totals, now } = hit;
    let now = *now;
    let layout = &config.layout;
    let mut at = this;
    let mut hops = 0;
    while hops < MAX_PARENTS {
        hops += 1;
        let Ok(head) = Head::read(layout, &mut UserMemory, at) else {
            count(totals, Fault::ReadState);
            return false;
        };
        if !thread::is_greenlet(config, &head) {
            count(totals, Fault::NotAGreenlet);
            return false;
        }
        let life = head.life(via != Via::Switch);
        let flags = match (life, via) {
            (Life::Unstarted, Via::Switch) => return false, // g_initialstub follows
            (Life::Dead, _) => {
                let up = UserMemory
                    .pointer(at.at(layout.greenlet.parent))
                    .and_then(|parent| greenlet::pimpl(layout, &mut UserMemory, parent));
                let Ok(up) = up else {
                    count(totals, Fault::DeadTarget);
                    return false;
                };
                at = up;
                let key = GreenletKey { target: slot.target, pimpl: at };
                if maps::greenlet(&key).is_some() {
                    *found = at;
                    return true;
                }
                continue;
            }
            (Life::Active, _) if head.is_main() => GREENLET_MAIN,
            (Life::Active, _) => 0,
            (Life::Starting | Life::Unstarted, _) => GREENLET_BORN,
        };
        let key = GreenletKey { target: slot.target, pimpl: at };
        if let Some(stale) = maps::greenlet(&key) {
            // Its end was not seen: its destructor has no probe.
            account::ended(&key, stale, now, End::Replaced, slot, totals);
        }
        let born = flags & GREENLET_BORN != 0;
        let sight = FirstSight {
            key,
            object: head.object,
            thread: slot.thread,
            now_ns: now,
            since_ns: if born { now } else { config.started_ns },
            flags,
        };
        if let Some(greenlet) = account::meet(&sight, totals)
            && !born
            && config.flags & CONFIG_STACKS != 0
        {
            begun(config, slot, &key, greenlet, now, totals);
        }
        *found = at;
        return true;
    }
    count(totals, Fault::DeadTarget);
    false
}

/// A wait that began before the recording ends: its stack is still in place.
#[inline(always)]
fn begun(
    config: &TargetConfig,
    slot: &mut Slot,
    greenlet_key: &GreenletKey,
    greenlet: &mut Greenlet,
    now: u64,
    totals: &mut Totals,
) {
    let Ok(start) = greenlet::suspended_start(&config.layout, &mut UserMemory, greenlet_key.pimpl) else {
        count(totals, Fault::ReadState);
        return;
    };
    let python = &config.layout.python;
    let empty = StackKey::empty(slot.target, greenlet.type_object);
    stack::walk(start, empty, python, &mut slot.scratch);
    let Walk { key, depth, fault, .. } = slot.scratch.walk;
    if let Some(fault) = fault {
        count(totals, fault);
    }
    if depth == 0 {
        count(totals, Fault::NoFrames);
        return;
    }
    let about = About {
        target: slot.target,
        time_ns: now,
        type_object: greenlet.type_object,
        empty,
        key,
        sending: config.sending,
    };
    let _sent = stack::ensure_sent(&about, &start, python, &mut slot.scratch, totals);
    greenlet.begun_stack = key;
}

/// Takes the leaver's stack and moves both greenlets' books on.
#[inline(always)]
fn leave(hit: &mut Hit<'_>, to_key: &GreenletKey, to: Option<&'static mut Greenlet>, fresh: bool) {
    let Hit { config, slot, totals, now } = hit;
    let now = *now;
    let from_key = GreenletKey { target: slot.target, pimpl: slot.current };
    let from = maps::greenlet(&from_key);
    let mut from_id = 0;
    let mut dead = false;
    let mut key = StackKey { id: 0, check: 0 };
    let mut from_since_ns = now;
    if let Some(from) = from {
        from_id = from.id;
        from_since_ns = from.since_ns;
        dead = take_stack(config, slot, from, now, totals, &mut key);
        let ns = now.saturating_sub(from.since_ns);
        from.running_ns += ns;
        from.since_ns = now;
        from.flags &= !GREENLET_RUNNING;
        account::ran(&Run { ns, ended_ns: now, greenlet: from_id, stack: key }, totals);
    }

    let undo = &mut slot.undo;
    undo.valid = u32::from(!dead);
    undo.to_was_new = u32::from(fresh);
    undo.from = slot.current;
    undo.from_object = slot.current_object;
    undo.from_since_ns = from_since_ns;
    undo.run_ns = now.saturating_sub(from_since_ns);
    undo.ended_ns = now;

    slot.current = to_key.pimpl;
    let mut to_id = 0;
    if let Some(to) = to {
        to_id = to.id;
        slot.current_object = to.object;
        let ns = now.saturating_sub(to.since_ns);
        undo.to_since_ns = to.since_ns;
        undo.wait_ns = ns;
        undo.to_stack = StackKey { id: 0, check: 0 };
        to.waiting_ns += ns;
        if !fresh {
            undo.to_stack = to.stack;
            account::waited(&to.stack, ns, totals);
        } else if to.flags & GREENLET_BORN == 0 {
            to.begun_ns = ns;
        }
        to.switches_in += 1;
        to.since_ns = now;
        to.flags |= GREENLET_RUNNING;
    } else {
        // Not in the map, which is full: only its identity on the thread is kept.
        slot.current_object =
            Head::read(&config.layout, &mut UserMemory, to_key.pimpl).map_or(Addr::NULL, |head| head.object);
    }
    totals.switches += 1;

    if config.flags & CONFIG_SWITCHES != 0 {
        send_switch(hit, Kind::Switch, from_id, to_id, key);
    }
    if dead && let Some(from) = maps::greenlet(&from_key) {
        let _ended = account::end(&from_key, from, End::Finished as u32, &mut hit.slot.end, hit.totals);
    }
}

/// Takes the leaver's stack into its entry; returns whether the leaver is dead.
#[inline(always)]
fn take_stack(
    config: &TargetConfig,
    slot: &mut Slot,
    from: &mut Greenlet,
    now: u64,
    totals: &mut Totals,
    taken: &mut StackKey,
) -> bool {
    if config.flags & CONFIG_STACKS == 0 {
        return is_dead(config, slot, from);
    }
    let previous = from.stack;
    from.stack = StackKey { id: 0, check: 0 };
    let Some(start) = leaver_start(config, slot) else {
        count(totals, Fault::ThreadState);
        return is_dead(config, slot, from);
    };
    if start.frame.is_null() {
        return is_dead(config, slot, from);
    }
    let python = &config.layout.python;
    let empty = StackKey::empty(slot.target, from.type_object);
    stack::walk(start, empty, python, &mut slot.scratch);
    let Walk { key, depth, fault, .. } = slot.scratch.walk;
    if let Some(fault) = fault {
        count(totals, fault);
    }
    if depth == 0 {
        return is_dead(config, slot, from);
    }
    if key != previous || from.sent != config.sending {
        let about = About {
            target: slot.target,
            time_ns: now,
            type_object: from.type_object,
            empty,
            key,
            sending: config.sending,
        };
        let sent = stack::ensure_sent(&about, &start, python, &mut slot.scratch, totals);
        from.sent = if sent { config.sending } else { 0 };
    }
    from.stack = key;
    *taken = key;
    false
}

#[inline(always)]
fn leaver_start(config: &TargetConfig, slot: &mut Slot) -> Option<Start> {
    if thread::read_tstate(config, slot).is_err() && !thread::find_tstate(config, slot) {
        return None;
    }
    running_start(&config.layout, &slot.tstate_words, &mut UserMemory).ok()
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
    };
    if !emit::send(&raw const hit.slot.switch, size_of::<SwitchRecord>() as u64, false) {
        count(hit.totals, Fault::RingFullSwitch);
    }
}
