//! The steps over greenlet's own objects.

use crate::{
    address::Addr,
    fault::Fault,
    label::{KIND_INHERITED, KIND_SOURCE, Source},
    layout::Layout,
    limits::MAX_PARENTS,
    memory::Memory,
    record,
    walk::{SCRATCH_WORDS, Start},
};

/// Words of a greenlet's head: everything up to `stack_stop` on every version.
pub const HEAD_WORDS: usize = 11;

/// `stack_stop` of a main greenlet: its C stack has no end.
/// <https://github.com/python-greenlet/greenlet/blob/3.5.3/src/greenlet/TStackState.cpp>
const MAIN_STACK_STOP: u64 = u64::MAX;

/// The life of a greenlet, as its C stack tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// Made, and never switched to.
    Unstarted,
    /// Being switched to for the first time (only inside that switch).
    Starting,
    /// Started and not finished: running or suspended.
    Active,
    /// Finished.
    Dead,
}

/// The head of a greenlet's C++ object (`greenlet::Greenlet`, at `pimpl`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// The vtable: proof of what the object is.
    pub vtable: Addr,
    /// The `PyGreenlet` that owns it.
    pub object: Addr,
    /// `stack_start`.
    pub stack_start: u64,
    /// `stack_stop`.
    pub stack_stop: u64,
}

impl Head {
    /// Reads the head of the object at `pimpl`; `words` is scratch.
    ///
    /// # Errors
    ///
    /// [`Fault::ReadState`] when it cannot be read.
    #[inline(always)]
    pub fn read<M: Memory>(
        layout: &Layout,
        memory: &mut M,
        pimpl: Addr,
        words: &mut [u64; SCRATCH_WORDS],
    ) -> Result<Self, Fault> {
        let Some(head) = words.first_chunk_mut::<HEAD_WORDS>() else {
            return Err(Fault::ReadState);
        };
        memory.read(pimpl, head)?;
        let at = |offset: u16| words.get(offset as usize >> 3 & 15).copied().unwrap_or_default();
        let greenlet = &layout.greenlet;
        let stack_stop = at(greenlet.stack_stop);
        let self_object =
            if stack_stop == MAIN_STACK_STOP { greenlet.main_self_object } else { greenlet.self_object };
        let object = if (self_object as usize) < HEAD_WORDS * 8 {
            Addr(at(self_object))
        } else {
            memory.pointer(pimpl.at(self_object))?
        };
        Ok(Self { vtable: Addr(at(0)), object, stack_start: at(greenlet.stack_start), stack_stop })
    }

    /// Whether it is a thread's main greenlet.
    #[inline(always)]
    #[must_use]
    pub const fn is_main(&self) -> bool {
        self.stack_stop == MAIN_STACK_STOP
    }

    /// Where in its life it is.
    ///
    /// [`Life::Starting`] and [`Life::Dead`] look the same; which one it is depends
    /// on whether the switch to it is its first.
    #[inline(always)]
    #[must_use]
    pub const fn life(&self, first_switch: bool) -> Life {
        if self.stack_stop == 0 {
            Life::Unstarted
        } else if self.stack_start != 0 {
            Life::Active
        } else if first_switch {
            Life::Starting
        } else {
            Life::Dead
        }
    }
}

/// The C++ object behind a `PyGreenlet`.
///
/// # Errors
///
/// [`Fault::ReadState`] when it cannot be read.
#[inline(always)]
pub fn pimpl<M: Memory>(layout: &Layout, memory: &mut M, object: Addr) -> Result<Addr, Fault> {
    memory.pointer(object.at(layout.greenlet.object_pimpl))
}

/// The `ThreadState` (greenlet's own) of the thread that `pimpl` belongs to.
///
/// A greenlet that is not started yet has no main greenlet: its parents are followed.
///
/// # Errors
///
/// [`Fault::ReadState`] when the chain is broken or longer than [`MAX_PARENTS`].
#[inline(always)]
pub fn thread_state<M: Memory>(
    layout: &Layout,
    memory: &mut M,
    pimpl_: Addr,
    head: &Head,
) -> Result<Addr, Fault> {
    let greenlet = &layout.greenlet;
    let mut at = pimpl_;
    let mut is_main = head.is_main();
    let mut hops = 0;
    while !is_main && hops < MAX_PARENTS {
        hops += 1;
        let main = memory.pointer(at.at(greenlet.main_greenlet))?;
        let up = if main.is_null() { memory.pointer(at.at(greenlet.parent))? } else { main };
        if up.is_null() {
            return Err(Fault::ReadState);
        }
        at = pimpl(layout, memory, up)?;
        is_main = memory.word(at.at(greenlet.stack_stop))? == MAIN_STACK_STOP;
    }
    if !is_main {
        return Err(Fault::ReadState);
    }
    let state = memory.pointer(at.at(greenlet.thread_state))?;
    if state.is_null() { Err(Fault::ReadState) } else { Ok(state) }
}

/// The current `PyGreenlet` of a thread.
///
/// # Errors
///
/// [`Fault::ReadState`] when it cannot be read.
#[inline(always)]
pub fn current<M: Memory>(layout: &Layout, memory: &mut M, thread_state: Addr) -> Result<Addr, Fault> {
    memory.pointer(thread_state.at(layout.greenlet.current_greenlet))
}

/// Where the walk of a suspended greenlet begins.
///
/// # Errors
///
/// [`Fault::ReadState`] when it cannot be read.
#[inline(always)]
pub fn suspended_start<M: Memory>(layout: &Layout, memory: &mut M, pimpl: Addr) -> Result<Start, Fault> {
    let greenlet = &layout.greenlet;
    Ok(Start {
        frame: memory.pointer(pimpl.at(greenlet.current_frame))?,
        top_frame_only: greenlet.top_frame_only != 0,
    })
}

impl record::Greenlet {
    /// Suspended, and another greenlet answered the request that it read: how much of the wait
    /// was the request's nobody knows.
    #[inline(always)]
    #[must_use]
    pub const fn was_answered_for(&self) -> bool {
        let own = self.label.kind & (KIND_SOURCE | KIND_INHERITED) == Source::Wire as u32;
        own && self.given.is_none() && self.shared_ns > self.since_ns
    }
}
