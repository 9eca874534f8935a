//! The stack of a suspended greenlet, read while its process runs.

use profiler_common::{
    address::Addr,
    fault::Fault,
    layout::{GreenletLayout, Layout, PythonLayout},
    limits::{MAX_FRAMES, MAX_STEPS},
};

use crate::memory::Bytes;

/// Bytes read at once of a greenlet's frames: they lie next to each other.
pub(super) const WINDOW: u64 = 4_096;
/// More than a frame without its locals has in any version.
const FRAME: usize = 128;

/// A piece of memory that was read at once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) start: u64,
    pub(super) bytes: Vec<u8>,
}

impl Piece {
    /// The place of the frames of a suspended greenlet: below the top of its data
    /// stack, and within its chunk.
    pub(super) fn of_frames(chunk: u64, top: u64) -> Self {
        let start = chunk.max(top.saturating_sub(WINDOW));
        let len = if chunk == 0 { 0 } else { top.saturating_sub(start).min(WINDOW) };
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

/// The code object and instruction offset of each frame, leaf first.
///
/// `cut` tells whether the stack goes on beyond what was kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Stack {
    pub(super) frames: Vec<(Addr, u32)>,
    pub(super) cut: bool,
}

/// Follows the chain of a suspended greenlet's frames.
///
/// To be replaced by the shared unwinder (profiler-common's `walk`).
pub(super) fn walk(
    memory: &mut impl Bytes,
    layout: &Layout,
    first: Addr,
    window: &Piece,
) -> Result<Stack, Fault> {
    let python = &layout.python;
    let mut stack = Stack::default();
    let mut frame = first;
    for _ in 0..MAX_STEPS {
        if frame.is_null() {
            return Ok(stack);
        }
        let size = usize::from(python.frame_size).min(FRAME);
        let mut own = [0_u8; FRAME];
        let bytes = match window.at(frame, size) {
            Some(bytes) => bytes,
            None => {
                let out = own.get_mut(..size).ok_or(Fault::ReadFrame)?;
                memory.read_bytes(frame, out).map_err(|_| Fault::ReadFrame)?;
                out
            }
        };
        let Frame { code, instr, previous, owner } = Frame::of(bytes, python).ok_or(Fault::ReadFrame)?;
        if u16::from(owner) < python.owner_shim {
            if stack.frames.len() == MAX_FRAMES as usize {
                break;
            }
            let begin = code.at(python.code_instrs);
            let offset = i32::try_from(instr.wrapping_sub(begin.0).cast_signed());
            let offset = offset.map_err(|_| Fault::ReadFrame)?;
            stack.frames.push((code, offset.cast_unsigned()));
            if layout.greenlet.top_frame_only == 1 {
                return Ok(stack);
            }
        }
        frame = previous;
    }
    stack.cut = true;
    Ok(stack)
}

struct Frame {
    code: Addr,
    instr: u64,
    previous: Addr,
    owner: u8,
}

impl Frame {
    fn of(bytes: &[u8], layout: &PythonLayout) -> Option<Self> {
        let word = |offset: u16| {
            let bytes = bytes.get(usize::from(offset)..)?.first_chunk::<8>()?;
            Some(u64::from_le_bytes(*bytes))
        };
        Some(Self {
            code: Addr(word(layout.frame_code)?),
            instr: word(layout.frame_instr)?,
            previous: Addr(word(layout.frame_previous)?),
            owner: *bytes.get(usize::from(layout.frame_owner))?,
        })
    }
}
