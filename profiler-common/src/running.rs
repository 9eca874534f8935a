//! The leaf of a thread that runs, or sleeps in a call of its own: found by its thread state,
//! proved by the end of its data stack.

use crate::{
    address::Addr,
    fault::Fault,
    layout::{ABSENT, PythonLayout},
    limits::{OLD_STATE_WORDS, OWN_STATE_WORDS},
    memory::Memory,
    record::TargetConfig,
    walk::{OWNED_BY_THREAD, RawFrame, SCRATCH_WORDS, Window},
};

/// `PyThreadState.prev`, on every version.
/// <https://github.com/python/cpython/blob/v3.11.7/Include/cpython/pystate.h#L84>
const TSTATE_PREV: u32 = 0;

/// What tells a thread's own thread state from the others of its interpreter.
#[derive(Clone, Copy, Debug)]
pub struct Own {
    /// Its thread id in the target's own pid namespace: `native_thread_id`.
    pub id: u64,
    /// Of the thread that leads its process the end of its thread-local storage, which is its
    /// `pthread_self()`: `thread_id`. Else, or where it is not known, 0.
    ///
    /// Who forks in C (uWSGI, `mod_wsgi`) does not tell Python, and the child's thread state
    /// keeps its parent's native id; of the child's threads the leader only was there before.
    /// Its thread-local storage lies where it did.
    /// <https://github.com/bminor/glibc/blob/glibc-2.36/nptl/pthread_self.c>
    pub leader_base: u64,
}

impl Own {
    /// Whether a thread state with these is its own.
    #[inline(always)]
    #[must_use]
    pub const fn is(&self, native_id: u64, thread_id: u64) -> bool {
        native_id == self.id || self.leader_base != 0 && thread_id == self.leader_base
    }
}

/// Whether `tstate` is the thread state of that thread; then its words are copied into
/// `window`.
///
/// One that is remembered may have been freed, and its memory still say so. From CPython 3.12
/// on it is marked before. On 3.11 it must be linked into its interpreter's list: what leads to
/// it there does not any more once it is unlinked.
/// <https://github.com/python/cpython/blob/v3.12.1/Python/pystate.c> (`PyThreadState_Clear`)
/// <https://github.com/python/cpython/blob/v3.11.7/Python/pystate.c> (`tstate_delete_common`)
#[inline(always)]
pub fn is_own<M: Memory>(
    config: &TargetConfig,
    tstate: Addr,
    own: Own,
    window: &mut Window,
    memory: &mut M,
) -> bool {
    let python = &config.layout.python;
    let marked = python.tstate_status != ABSENT && config.tstate_cleared_bit != u32::MAX;
    // Not by what its fields reach to: the compiler would trust that at the copy's use, and the
    // verifier of Linux 6.1 forgets it on the way.
    let copied = if marked {
        window.copy::<OWN_STATE_WORDS, M>(tstate, memory)
    } else {
        window.copy::<OLD_STATE_WORDS, M>(tstate, memory)
    };
    if copied.is_err()
        || window.copied(python.tstate_interp.into()) != config.interpreter.0
        || !own
            .is(window.copied(python.tstate_native_id.into()), window.copied(python.tstate_thread_id.into()))
    {
        return false;
    }
    if marked {
        let status = window.copied(python.tstate_status.into()) >> ((python.tstate_status & 4) * 8);
        return status >> (config.tstate_cleared_bit & 31) & 1 == 0;
    }
    let link = match window.copied(TSTATE_PREV) {
        0 => config.threads,
        previous => Addr(previous.wrapping_add(config.tstate_next.into())),
    };
    memory.pointer(link) == Ok(tstate)
}

/// The leaf frame by the thread state whose words are in `window`, proved by the end of its
/// data stack; what lies around it is in `window` then. `None` if it is not what the thread
/// runs. Null if it runs no Python.
///
/// # Errors
///
/// [`Fault::ReadState`] when the C frame of CPython 3.11 and 3.12 cannot be read.
#[inline(always)]
pub fn own_leaf<M: Memory>(
    config: &TargetConfig,
    window: &mut Window,
    known: &mut CodeSize,
    memory: &mut M,
) -> Result<Option<Addr>, Fault> {
    let python = &config.layout.python;
    let mut leaf = Addr(window.copied(python.tstate_frame.into()));
    let stack = DataStack {
        top: window.copied(config.tstate_top),
        code_framesize: config.code_framesize,
        code_nlocalsplus: config.code_nlocalsplus,
        code_stacksize: config.code_stacksize,
    };
    if python.cframe_frame != ABSENT {
        leaf = memory.pointer(leaf.at(python.cframe_frame))?;
    }
    Ok((leaf_is_on_top(python, leaf, stack, window, known, memory) == Ok(true)).then_some(leaf))
}

/// Where the data stack of a thread ends, and where a frame's size is found.
#[derive(Clone, Copy, Debug)]
struct DataStack {
    /// `PyThreadState.datastack_top`: the end of the frame that was pushed last.
    top: u64,
    /// Where `PyCodeObject.co_framesize` lies (i32, words); `u32::MAX` before 3.12.
    code_framesize: u32,
    /// Where `PyCodeObject.co_nlocalsplus` lies (i32).
    code_nlocalsplus: u32,
    /// Where `PyCodeObject.co_stacksize` lies (i32).
    code_stacksize: u32,
}

/// Frames looked at from the leaf for the first one in the data stack.
const MAX_GENERATORS: u32 = 8;

/// Whether the leaf of a running thread's chain is what it runs: the first of its frames
/// that lies in the data stack is the last one there, or its callee is, which is just
/// being made.
///
/// While the interpreter's loop is entered, the thread state leads for some instructions
/// to what an earlier call left on the C stack (CPython 3.11 and 3.12).
/// <https://github.com/python/cpython/blob/v3.12.1/Python/ceval.c#L676>
///
/// # Errors
///
/// [`Fault::ReadFrame`] when a frame cannot be read.
#[inline(always)]
fn is_on_top<M: Memory>(
    python: &PythonLayout,
    leaf: Addr,
    stack: DataStack,
    memory: &mut M,
) -> Result<bool, Fault> {
    let mut at = leaf.0;
    let mut hops = 0;
    while at != 0 && hops < MAX_GENERATORS {
        hops += 1;
        let frame = Addr(at);
        let owner = memory.word(frame.at(python.frame_owner & !7)).map_err(|_| Fault::ReadFrame)?;
        if (owner >> ((python.frame_owner & 7) * 8)) as u8 == OWNED_BY_THREAD {
            let end = frame_end(python, at, stack, memory)?;
            return Ok(end == stack.top || frame_end(python, end, stack, memory) == Ok(stack.top));
        }
        at = memory.pointer(frame.at(python.frame_previous)).map_err(|_| Fault::ReadFrame)?.0;
    }
    // No frame in the data stack: that is empty then, or its last one is too far up.
    Ok(at == 0)
}

/// A code object, and how many bytes a frame of it takes.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct CodeSize {
    /// Which.
    pub code: Addr,
    /// So many.
    pub bytes: u64,
}

/// [`is_on_top`], and what lies around the leaf is in `window`, which the walk begins in.
///
/// `known` is the code object that was on top before: most often it is again, and where
/// another one has its address, and so another size, its frame ends elsewhere.
///
/// # Errors
///
/// [`Fault::ReadFrame`] when a frame cannot be read.
#[inline(always)]
fn leaf_is_on_top<M: Memory>(
    python: &PythonLayout,
    leaf: Addr,
    stack: DataStack,
    window: &mut Window,
    known: &mut CodeSize,
    memory: &mut M,
) -> Result<bool, Fault> {
    window.clear();
    if leaf.is_null() {
        return Ok(true);
    }
    if leaf.0 & 7 != 0 {
        return Err(Fault::ReadFrame);
    }
    window.fill(memory, leaf.0, python)?;
    let RawFrame { code, owner, .. } = window.inside(leaf.0, python);
    if owner == OWNED_BY_THREAD {
        if code == known.code && leaf.0.wrapping_add(known.bytes) == stack.top {
            return Ok(true);
        }
        *known = CodeSize { code, bytes: frame_bytes(python, code, stack, memory)? };
    }
    is_on_top(python, leaf, stack, memory)
}

#[inline(always)]
fn frame_end<M: Memory>(
    python: &PythonLayout,
    frame: u64,
    stack: DataStack,
    memory: &mut M,
) -> Result<u64, Fault> {
    let code = memory.pointer(Addr(frame).at(python.frame_code)).map_err(|_| Fault::ReadFrame)?;
    Ok(frame.wrapping_add(frame_bytes(python, code, stack, memory)?))
}

#[inline(always)]
fn frame_bytes<M: Memory>(
    python: &PythonLayout,
    code: Addr,
    stack: DataStack,
    memory: &mut M,
) -> Result<u64, Fault> {
    if stack.code_framesize != u32::MAX {
        return Ok(number(code, stack.code_framesize, memory)? * 8);
    }
    // <https://github.com/python/cpython/blob/v3.11.7/Python/pystate.c> (`_PyThreadState_PushFrame`'s callers)
    let locals = number(code, stack.code_nlocalsplus, memory)?;
    let values = number(code, stack.code_stacksize, memory)?;
    Ok((locals + values) * 8 + u64::from(python.frame_size))
}

/// A field of 32 bits.
#[inline(always)]
fn number<M: Memory>(object: Addr, field: u32, memory: &mut M) -> Result<u64, Fault> {
    let field = u64::from(field);
    let word = memory.word(Addr(object.0.wrapping_add(field & !7))).map_err(|_| Fault::ReadFrame)?;
    Ok(word >> ((field & 4) * 8) & 0xffff_ffff)
}

/// The leaf frame of a running thread, from the first words of its `PyThreadState`.
///
/// # Errors
///
/// [`Fault::ReadState`] when the C frame of CPython 3.11 and 3.12 cannot be read.
#[inline(always)]
pub fn running_frame<M: Memory>(
    python: &PythonLayout,
    words: &[u64; SCRATCH_WORDS],
    memory: &mut M,
) -> Result<Addr, Fault> {
    let at = |offset: u16| words.get(offset as usize >> 3 & (SCRATCH_WORDS - 1)).copied().unwrap_or_default();
    let frame = Addr(at(python.tstate_frame));
    if python.cframe_frame == ABSENT { Ok(frame) } else { memory.pointer(frame.at(python.cframe_frame)) }
}
