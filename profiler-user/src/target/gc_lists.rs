//! Every tracked object of an interpreter, by the lists of its garbage collector.
//!
//! The process runs meanwhile. Objects are born at the end of the youngest list and
//! move to older ones only; so once a list was walked whole, what it held is found, or
//! will be in the older ones. A walk that is torn shows it by a node whose back link
//! does not lead where the walk came from, or by not coming back to the list's head.
//! <https://github.com/python/cpython/blob/v3.13.0/Include/internal/pycore_gc.h>

use profiler_common::{address::Addr, memory::Memory as _};
use rustc_hash::FxHashSet;

use super::kinds::Kinds;
use crate::{
    memory::{Bytes, Cached},
    python::{field, objects::ObjectLayout},
};

/// Nodes followed in one pass.
const MAX_NODES: u64 = 20_000_000;
/// Passes over one list until one is clean.
const MAX_PASSES: u32 = 6;
/// How often a running collection is waited for, a millisecond each.
const MAX_WAITS: u32 = 250;
/// Generations besides the permanent one.
const GENERATIONS: u32 = 3;
/// The bits of a link that are flags of the collector.
const FLAGS: u64 = 3;

/// The greenlets that were found, and whether the walk came to its end.
pub(super) struct Walked {
    pub(super) greenlets: FxHashSet<u64>,
    pub(super) complete: bool,
}

/// Finds every greenlet object; of each list the union of all passes until a clean one.
pub(super) fn greenlets<M: Bytes>(
    memory: &mut Cached<M>,
    objects: &ObjectLayout,
    interp: Addr,
    greenlet_type: Addr,
    kinds: &mut Kinds,
) -> Walked {
    let generations = (0..GENERATIONS)
        .map(|number| field(interp, objects.interp_generations + number * objects.generation_size));
    let permanent = field(interp, objects.interp_permanent);
    let mut walked = Walked { greenlets: FxHashSet::default(), complete: true };
    for head in generations.chain([permanent]) {
        walked.complete &= (0..MAX_PASSES).any(|_| {
            memory.clear();
            let quiet = wait_for_collector(memory.below(), objects, interp);
            let whole = pass(memory, objects, head, greenlet_type, kinds, &mut walked.greenlets);
            quiet && whole && collecting(memory.below(), objects, interp) == Some(false)
        });
    }
    walked
}

/// Whether a collection runs; `None` if that can't be read.
fn collecting(memory: &mut impl Bytes, objects: &ObjectLayout, interp: Addr) -> Option<bool> {
    let mut flag = [0_u8; 4];
    memory.read_bytes(field(interp, objects.interp_collecting), &mut flag).ok()?;
    Some(flag != [0; 4])
}

/// Whether no collection runs by now.
fn wait_for_collector(memory: &mut impl Bytes, objects: &ObjectLayout, interp: Addr) -> bool {
    for _ in 0..MAX_WAITS {
        match collecting(memory, objects, interp) {
            Some(true) => {}
            Some(false) => return true,
            None => return false,
        }
        // No event tells the end of a collection in another process.
        let pause = rustix::event::Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
        let _: Result<usize, _> = rustix::event::poll(&mut [], Some(&pause));
    }
    false
}

/// One walk over a list; whether it came back to its head without a broken link.
fn pass<M: Bytes>(
    memory: &mut Cached<M>,
    objects: &ObjectLayout,
    head: Addr,
    greenlet_type: Addr,
    kinds: &mut Kinds,
    found: &mut FxHashSet<u64>,
) -> bool {
    let mut node = head.0;
    // Brent's way to notice a chain that came to bite its own tail.
    let (mut tortoise, mut power, mut lap) = (0, 1_u64, 0_u64);
    for _ in 0..MAX_NODES {
        let Ok(next) = memory.word(field(Addr(node), objects.gc_head_next)) else {
            return false;
        };
        let next = next & !FLAGS;
        if next == 0 || next == tortoise {
            return false;
        }
        // An object that was freed and made anew is the last of the youngest list:
        // following it would leave out what lies between.
        let back = memory.word(field(Addr(next), objects.gc_head_prev));
        if back.map(|back| back & !FLAGS) != Ok(node) {
            return false;
        }
        if next == head.0 {
            return true;
        }
        node = next;
        lap += 1;
        if lap == power {
            (tortoise, power, lap) = (node, power * 2, 0);
        }
        let object = field(Addr(node), objects.gc_head_size);
        let Ok(class) = memory.word(field(object, objects.object_type)) else {
            return false;
        };
        if kinds.is_greenlet(memory, objects, greenlet_type, class) {
            found.insert(object.0);
        }
    }
    false
}
