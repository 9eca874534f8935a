//! The stack of a thread that sleeps, read while its process runs.

use profiler_common::{
    address::Addr,
    fault::Fault,
    layout::{ABSENT, GreenletLayout, Layout},
    record::TargetConfig,
    running::{CodeSize, Own, is_own, own_leaf},
    walk::{Frame, Window},
};

use super::{
    Target,
    suspended::{self, Piece},
};
use crate::{memory::Bytes, python::field};

/// Threads followed.
const MAX_THREADS: usize = 8_192;

/// A thread that sleeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asleep {
    /// Its thread state.
    pub tstate: Addr,
    /// Its frames, leaf first.
    pub frames: Vec<Frame>,
}

/// The frames of the thread with that id in the target's own pid namespace;
/// none if it runs no Python or they are in any doubt. That it sleeps all the while is the
/// caller's to know.
///
/// # Errors
///
/// When they can't be read.
pub fn sleeping_stack(
    memory: &mut impl Bytes,
    target: &Target,
    config: &TargetConfig,
    own_tid: u32,
) -> Result<Option<Asleep>, Fault> {
    let first = walk(memory, target, config, own_tid)?;
    Ok(first.filter(|first| {
        walk(memory, target, config, own_tid).is_ok_and(|second| second.as_ref() == Some(first))
    }))
}

/// The kernel part does the same when a thread goes to sleep.
fn walk(
    memory: &mut impl Bytes,
    target: &Target,
    config: &TargetConfig,
    own_tid: u32,
) -> Result<Option<Asleep>, Fault> {
    let (python, objects) = (&config.layout.python, &target.python.objects);
    let mut tstate = memory.pointer(config.threads)?;
    for _ in 0..MAX_THREADS {
        if tstate.is_null() {
            return Ok(None);
        }
        if memory.word(tstate.at(python.tstate_native_id))? == u64::from(own_tid) {
            break;
        }
        tstate = memory.pointer(field(tstate, objects.tstate_next))?;
    }
    let mut window = Window::default();
    if !is_own(config, tstate, Own { id: own_tid.into(), leader_base: 0 }, &mut window, memory) {
        return Ok(None);
    }
    let leaf = own_leaf(config, &mut window, &mut CodeSize::default(), memory)?;
    let Some(leaf) = leaf.filter(|leaf| !leaf.is_null()) else {
        return Ok(None);
    };
    let layout = Layout { python: *python, greenlet: GreenletLayout::default() };
    let stack = suspended::walk(memory, &layout, leaf, &Piece::default(), &mut Window::default())?;
    let whole = !stack.cut && (stack.rooted || python.tstate_status == ABSENT);
    Ok(whole.then_some(Asleep { tstate, frames: stack.frames }))
}
