//! What greenlets have from their makers, and until when.
//!
//! A request's label is lent to the greenlets that are made inside of it, for as long as it
//! goes on: until the greenlet that made them works on something else, or ends. What they do
//! then is no request's.

use profiler_common::{
    address::Addr,
    fault::Fault,
    label::{Blank, KIND_ANSWERED, KIND_INHERITED, Label, Source},
    memory::Memory as _,
    record::{CONFIG_WIRE, Greenlet, LentKey, TargetConfig, Totals},
};

use crate::{
    label,
    maps::{self, count},
    memory::UserMemory,
    slot::Slot,
};

/// What its request or its maker gave a greenlet, as long as that request goes on.
#[inline(always)]
pub fn given(config: &TargetConfig, target: u64, greenlet: &Greenlet) -> Label {
    if !greenlet.given.is_inherited() {
        let wire = config.flags & CONFIG_WIRE != 0;
        return if wire { own_of(greenlet) } else { Label::NONE };
    }
    let key = LentKey { target, request: greenlet.given.request() };
    match maps::lent(&key) {
        Some(lent) if lent.until_ns().is_none() => greenlet.given,
        _ => Label::NONE,
    }
}

/// What a greenlet was given, whether it is answered or not.
#[inline(always)]
pub fn own_of(greenlet: &Greenlet) -> Label {
    if greenlet.given.is_none() {
        // Another thread took it back, of which only the kind tells.
        return Label::NONE;
    }
    Label { kind: greenlet.given.kind & !KIND_ANSWERED, ..greenlet.given }
}

/// A request from the wire that `reader` works on is answered: what it lent is over. By whoever
/// answers, who may be on another thread, without the GIL: it writes a word.
#[inline(always)]
pub fn answered(target: u64, reader: &Greenlet, id: [u64; 2], now: u64) {
    let label = Label { id, kind: Source::Wire as u32, ..Label::NONE };
    if reader.lent == label.request()
        && let Some(lent) = maps::lent(&LentKey { target, request: reader.lent })
        && lent.answered_ns == 0
    {
        lent.answered_ns = now;
    }
}

/// A greenlet that made others leaves: their request is over if it does not work on it any more.
/// Why it has no label of its own is `blank`.
#[inline(never)]
pub fn take_back(slot: &mut Slot, from: &mut Greenlet, blank: u32) -> u32 {
    if blank == 0 && slot.label.request() == from.lent
        || from.given.request() == from.lent
        || Blank::is_unknown(blank)
    {
        return 0;
    }
    over(slot, from, slot.undo.from_since_ns)
}

/// What a greenlet lent is over, since `over_ns`.
#[inline(always)]
pub fn over(slot: &Slot, greenlet: &mut Greenlet, over_ns: u64) -> u32 {
    ended(slot.target, greenlet.lent, over_ns);
    greenlet.lent = 0;
    0
}

/// A greenlet ended that lent `request`.
#[inline(always)]
pub fn ended(target: u64, request: u64, now: u64) {
    if let Some(lent) = maps::lent(&LentKey { target, request }) {
        // One less, without the GIL in a thread that exits.
        maps::add(&mut lent.makers, u64::MAX);
        lent.over_ns = lent.over_ns.max(now);
    }
}

/// What a greenlet has from its maker is over.
#[inline(always)]
pub fn outlived(target: u64, totals: &mut Totals, greenlet: &mut Greenlet) {
    let key = LentKey { target, request: greenlet.given.request() };
    greenlet.given = Label::NONE;
    if maps::lent(&key).is_some() {
        totals.outlived += 1;
    } else {
        // Pushed out: whether it goes on nobody knows.
        count(totals, Fault::LabelsFull);
    }
}

#[inline(always)]
pub fn inherit(slot: &Slot) -> bool {
    let mut label = slot.label;
    label.kind |= KIND_INHERITED;
    maps::insert_unstarted(&slot.to_key, &label)
}

/// The greenlet `current`, whose label is `slot.label`, made another: as long as it works on
/// that request the label is lent.
#[inline(always)]
pub fn lend(slot: &Slot, current: &mut Greenlet) -> bool {
    let request = slot.label.request();
    // What itself has it from its maker keeps nothing going.
    if current.lent == request || current.given.is_inherited() && current.given.request() == request {
        return true;
    }
    if current.lent != 0 {
        // The last moment in which it surely went on, as in `take_back`: it runs since then.
        let _over = over(slot, current, current.since_ns);
    }
    let key = LentKey { target: slot.target, request };
    match maps::lent(&key) {
        Some(lent) => {
            if lent.makers.cast_signed() > 0 {
                maps::add(&mut lent.makers, 1);
            } else {
                // Its last one is gone, or more: those of a row that was pushed out.
                lent.makers = 1;
            }
            lent.over_ns = 0;
        }
        None if maps::insert_lent(&key) => {}
        None => return false,
    }
    current.lent = request;
    true
}

/// How much of a wait of `ns` that ends at `now` was for the greenlet's label: what a maker
/// gave ends with its request, and so does what is copied from the maker's context.
#[inline(always)]
pub fn of_wait(slot: &mut Slot, greenlet: &Greenlet, pimpl: Addr, ns: u64, now: u64) -> u64 {
    slot.pair.ns = ns;
    if greenlet.given.is_inherited() {
        let _cut = cut(slot, greenlet, pimpl, now);
    }
    slot.pair.ns
}

/// [`of_wait`] of a greenlet with something from its maker.
#[inline(never)]
fn cut(slot: &mut Slot, greenlet: &Greenlet, pimpl: Addr, now: u64) -> u32 {
    let Some(config) = maps::config(slot.target) else {
        return 0;
    };
    let key = LentKey { target: slot.target, request: greenlet.label.request() };
    let inherited = greenlet.label.is_inherited();
    let until = maps::lent(&key).map(|lent| lent.until_ns());
    let over_ns = match until {
        Some(Some(over_ns)) => over_ns,
        // Pushed out, and counted when its greenlet leaves next.
        None if inherited => 0,
        Some(None) | None => return 0,
    };
    if !inherited && config.label.source != 0 {
        let context = UserMemory.pointer(pimpl.at(config.layout.greenlet.context));
        if label::request_of_context(config, slot, context.unwrap_or(Addr(1))) == key.request {
            return 0;
        }
    }
    let since_ns = now.wrapping_sub(slot.pair.ns);
    let part_ns = over_ns.saturating_sub(since_ns).min(slot.pair.ns);
    if until.is_some()
        && let Some(totals) = maps::totals(slot.target)
    {
        maps::add(&mut totals.outlived_ns, slot.pair.ns - part_ns);
    }
    slot.pair.ns = part_ns;
    0
}
