//! The stack of a thread that sleeps, read while its process runs.

use profiler_common::{
    address::Addr,
    fault::Fault,
    layout::{ABSENT, GreenletLayout, Layout},
    limits::THREAD_STATE_WORDS,
    walk::{DataStack, Frame, SCRATCH_WORDS, Window, is_on_top, running_frame},
};

use super::{
    Target,
    suspended::{self, Piece},
};
use crate::{memory::Bytes, python::field};

/// Threads followed.
const MAX_THREADS: usize = 8_192;

/// The frames, leaf first, of the thread with that id in the target's own pid namespace;
/// none if it runs no Python or they are in any doubt. That it sleeps all the while is the
/// caller's to know.
///
/// # Errors
///
/// When they can't be read.
pub fn sleeping_stack(
    memory: &mut impl Bytes,
    target: &Target,
    own_tid: u32,
) -> Result<Option<Vec<Frame>>, Fault> {
    let first = walk(memory, target, own_tid)?;
    Ok(first.filter(|first| walk(memory, target, own_tid).is_ok_and(|second| second.as_ref() == Some(first))))
}

/// The kernel part does the same when a thread goes to sleep.
fn walk(memory: &mut impl Bytes, target: &Target, own_tid: u32) -> Result<Option<Vec<Frame>>, Fault> {
    let (python, objects) = (&target.python.layout, &target.python.objects);
    let mut tstate = memory.pointer(field(target.python.interp, objects.interp_threads))?;
    for _ in 0..MAX_THREADS {
        if tstate.is_null() {
            return Ok(None);
        }
        if memory.word(tstate.at(python.tstate_native_id))? == u64::from(own_tid) {
            break;
        }
        tstate = memory.pointer(field(tstate, objects.tstate_next))?;
    }
    let mut words = [0; SCRATCH_WORDS];
    let Some(head) = words.first_chunk_mut::<THREAD_STATE_WORDS>() else {
        return Ok(None);
    };
    memory.read(tstate, head)?;
    let leaf: Addr = running_frame(python, &words, memory)?;
    let data = DataStack {
        top: memory.word(field(tstate, objects.tstate_top))?,
        code_framesize: objects.code_framesize,
        code_nlocalsplus: objects.code_nlocalsplus,
        code_stacksize: objects.code_stacksize,
    };
    if leaf.is_null() || !is_on_top(python, leaf, data, memory)? {
        return Ok(None);
    }
    let layout = Layout { python: *python, greenlet: GreenletLayout::default() };
    let stack = suspended::walk(memory, &layout, leaf, &Piece::default(), &mut Window::default())?;
    let whole = !stack.cut && (stack.rooted || python.tstate_status == ABSENT);
    Ok(whole.then_some(stack.frames))
}
