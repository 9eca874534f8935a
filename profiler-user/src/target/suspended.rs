//! The stack of a suspended greenlet, read while its process runs.

use profiler_common::{
    address::Addr,
    fault::Fault,
    layout::{GreenletLayout, Layout, PythonLayout},
    limits::MAX_STEPS,
    memory::Memory,
    walk::{Frame, StackKey, Start, Step, Walk, Window},
};

use crate::memory::Bytes;

/// Bytes below the top of a data stack that are read beforehand: a page.
const BELOW: u64 = 4_096;

/// A piece of memory that was read at once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) start: u64,
    pub(super) bytes: Vec<u8>,
}

impl Piece {
    /// The place of the frames that a walk of a suspended greenlet asks for first: the
    /// upper end of its data stack.
    pub(super) fn of_frames(state: &State, python: &PythonLayout) -> Self {
        let State { current_frame, chunk, top, .. } = *state;
        if chunk == 0 {
            return Self::default();
        }
        // A generator's frame lies elsewhere; its caller's does not.
        let own = (chunk..top).contains(&current_frame);
        let leaf = if own { current_frame } else { top.saturating_sub(python.frame_size.into()) };
        let (base, bytes) = Window::place(leaf, python);
        let start = chunk.max(top.saturating_sub(BELOW) & !(BELOW - 1)).min(base);
        let len = base.saturating_add(bytes).saturating_sub(start).min(3 * BELOW);
        Self { start, bytes: vec![0; len as usize] }
    }

    fn at(&self, addr: Addr, len: usize) -> Option<&[u8]> {
        let from = usize::try_from(addr.0.checked_sub(self.start)?).ok()?;
        self.bytes.get(from..from.checked_add(len)?)
    }

    fn word(&self, offset: u16) -> Option<u64> {
        let bytes = self.bytes.get(usize::from(offset)..)?.first_chunk::<8>()?;
        Some(u64::from_le_bytes(*bytes))
    }
}

/// A greenlet's C++ object, as it was at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) user_self: u64,
    pub(super) main_self: u64,
    pub(super) stack_start: u64,
    pub(super) stack_stop: u64,
    pub(super) current_frame: u64,
    pub(super) chunk: u64,
    pub(super) top: u64,
    pub(super) main_greenlet: u64,
    pub(super) thread_state: u64,
}

impl State {
    pub(super) fn of(piece: &Piece, layout: &GreenletLayout) -> Option<Self> {
        Some(Self {
            user_self: piece.word(layout.self_object)?,
            main_self: piece.word(layout.main_self_object)?,
            stack_start: piece.word(layout.stack_start)?,
            stack_stop: piece.word(layout.stack_stop)?,
            current_frame: piece.word(layout.current_frame)?,
            chunk: piece.word(layout.chunk)?,
            top: piece.word(layout.top)?,
            main_greenlet: piece.word(layout.main_greenlet)?,
            thread_state: piece.word(layout.thread_state)?,
        })
    }

    /// A thread's main greenlet is the one whose C stack has no end.
    /// <https://github.com/python-greenlet/greenlet/blob/3.5.3/src/greenlet/TStackState.cpp>
    pub(super) const fn is_main(&self) -> bool {
        self.stack_stop == u64::MAX
    }

    /// Whether it stands at the same switch as in `other`.
    pub(super) fn same_switch(&self, other: &Self) -> bool {
        let head = |state: &Self| (state.current_frame, state.chunk, state.top, state.stack_start);
        head(self) == head(other)
    }
}

/// How many bytes of the C++ object [`State`] reaches.
pub(super) fn state_bytes(layout: &GreenletLayout) -> usize {
    let GreenletLayout {
        object_pimpl: _,
        self_object,
        main_self_object,
        stack_start,
        stack_stop,
        context: _,
        current_frame,
        chunk,
        top,
        main_greenlet,
        parent: _,
        thread_state,
        current_greenlet: _,
        top_frame_only: _,
    } = *layout;
    let fields = [
        self_object,
        main_self_object,
        stack_start,
        stack_stop,
        current_frame,
        chunk,
        top,
        main_greenlet,
        thread_state,
    ];
    usize::from(fields.into_iter().max().unwrap_or(0)) + 8
}

/// The frames of a stack, leaf first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Stack {
    pub(super) frames: Vec<Frame>,
    /// Whether it goes on beyond them.
    pub(super) cut: bool,
    /// Whether its chain ends as that of a running thread does from CPython 3.12 on.
    pub(super) rooted: bool,
}

/// Walks a suspended greenlet's frames, of which some were read already.
pub(super) fn walk(
    below: &mut impl Bytes,
    layout: &Layout,
    frame: Addr,
    piece: &Piece,
    window: &mut Window,
) -> Result<Stack, Fault> {
    let mut memory = Overlay { piece, below };
    let mut walk = Walk::default();
    let start = Start { frame, top_frame_only: layout.greenlet.top_frame_only != 0 };
    walk.begin(&start, StackKey::default());
    window.clear();
    let mut stack = Stack::default();
    for _ in 0..MAX_STEPS {
        match walk.step(&layout.python, window, &mut memory) {
            Step::Frame(frame) => stack.frames.push(frame),
            Step::Shim => {}
            Step::End => break,
        }
    }
    walk.close();
    stack.rooted = walk.rooted;
    match walk.fault {
        None => {}
        Some(Fault::StackTruncated) => stack.cut = true,
        Some(fault) => return Err(fault),
    }
    Ok(stack)
}

/// A piece that was read, over the memory that it was read from.
struct Overlay<'o, M> {
    piece: &'o Piece,
    below: &'o mut M,
}

impl<M: Bytes> Memory for Overlay<'_, M> {
    fn read<const N: usize>(&mut self, addr: Addr, out: &mut [u64; N]) -> Result<(), Fault> {
        match self.piece.at(addr, size_of::<[u64; N]>()) {
            Some(bytes) => {
                bytemuck::cast_slice_mut(out.as_mut_slice()).copy_from_slice(bytes);
                Ok(())
            }
            None => self.below.read(addr, out),
        }
    }
}
