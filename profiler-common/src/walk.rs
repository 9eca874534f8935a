//! The one unwinder: a chain of interpreter frames, step by step.
//!
//! From CPython 3.11 on the frames that a thread (or a greenlet) owns lie next to
//! each other in its data stack chunks, so one copy of up to 4 KiB, the *window*,
//! holds about thirty of them; a frame elsewhere (a generator's, a C-stack shim) costs
//! one more copy. A copy costs about the same for 8 bytes as for 4 KiB.
//!
//! A window never begins before the page that its frame begins in, so that all of it is
//! mapped; a chunk begins on a page. What else lies in a window does not matter: only
//! frames that the chain leads to are looked at. So the chunks' bounds need not be known.
//!
//! [`Walk::step`] is one iteration: the kernel runs it inside `bpf_loop`, user
//! space in a plain loop.

use crate::{
    address::Addr,
    code::{self, Codes, TextLayout},
    fault::Fault,
    layout::PythonLayout,
    limits::{MAX_FRAMES, MAX_TEXT_STACKS, WINDOW_SLACK_WORDS, WINDOW_WORDS},
    memory::Memory,
};

const WINDOW_BYTES: u64 = (WINDOW_WORDS * 8) as u64;
const SMALL_WORDS: usize = 128;
const SMALL_BYTES: u64 = (SMALL_WORDS * 8) as u64;
/// Words copied for a frame outside the window: the frame's head on every version.
const ODD_WORDS: usize = 11;
/// The size of a page, or a part of it.
const PAGE: u64 = 4_096;
/// [`RawFrame::owner`] of a frame in a thread's data stack.
/// <https://github.com/python/cpython/blob/v3.13.0/Include/internal/pycore_frame.h> (`enum _frameowner`)
pub(crate) const OWNED_BY_THREAD: u8 = 0;
/// The hash of a string that was not asked for it yet: -1.
/// <https://github.com/python/cpython/blob/v3.12.1/Include/cpython/unicodeobject.h#L108>
const NO_HASH: u64 = u64::MAX;

/// Where the words of [`code_check`] begin in a code object: its size.
const CODE_CHECK_AT: u16 = 16;
/// Room for the words of an object: in the kernel it is no part of the stack, which
/// holds 512 bytes for a whole chain of calls.
pub const SCRATCH_WORDS: usize = 16;

/// A frame as it lies in memory.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RawFrame {
    pub(crate) code: Addr,
    previous: Addr,
    instr: u64,
    pub(crate) owner: u8,
}

/// A Python frame of a stack: which code, and where in it.
#[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Frame {
    /// The code object; or, with [`code::BY_TEXT`], what stands for its text.
    pub code: Addr,
    /// Bytes from the code's first instruction to the current one; -1 before the first.
    pub instr: i32,
    /// [`code_check`] of the code object when the stack was taken, 0 before it is read.
    pub check: u32,
}

/// The identity of a stack: two hashes with nothing in common but their input.
#[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct StackKey {
    /// The first.
    pub id: u64,
    /// The second, which makes it sure.
    pub check: u64,
}

impl StackKey {
    /// The key of a stack before its first frame.
    ///
    /// The owner (target and greenlet type) is part of it: a hub's idle time and a
    /// greenlet's wait in the same frames are different stacks. The type is what the target's
    /// memory says, anything: no type makes one target's key another's, for it would have to
    /// change both halves alike.
    #[inline(always)]
    #[must_use]
    pub const fn empty(target: u64, greenlet_type: Addr) -> Self {
        let id = greenlet_type.0 ^ (target << 48);
        let check = greenlet_type.0.rotate_left(17) ^ target.wrapping_mul(0xd6e8_feb8_6659_fd93);
        Self { id: id.wrapping_mul(0x9e37_79b9_7f4a_7c15), check: check.wrapping_add(0x2545_f491_4f6c_dd1d) }
    }

    /// Adds a frame.
    #[inline(always)]
    pub const fn add(&mut self, code: Addr, instr: i32) {
        let word = code.0.wrapping_mul(0xff51_afd7_ed55_8ccd) ^ (instr as u32 as u64);
        self.id = (self.id.rotate_left(5) ^ word).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        self.check = (self.check.rotate_left(23).wrapping_add(word)).wrapping_mul(0x9fb2_1c65_1e98_df25);
    }

    /// Whether no stack was taken.
    #[inline(always)]
    #[must_use]
    pub const fn is_none(self) -> bool {
        self.id == 0 && self.check == 0
    }
}

/// A copy of the part of the data stack that the walk is in.
#[derive(Clone, Debug)]
#[repr(C)]
pub struct Window {
    /// The address of the first word; the copy is valid if it is not 0.
    base: u64,
    /// How much of it is a copy.
    bytes: u64,
    /// Longer than what a masked index reaches, so that no field of a frame that
    /// begins inside lies outside.
    words: [u64; WINDOW_WORDS + WINDOW_SLACK_WORDS],
    /// A single frame outside the window.
    odd: [u64; WINDOW_SLACK_WORDS],
}

impl Default for Window {
    fn default() -> Self {
        Self {
            base: 0,
            bytes: 0,
            words: [0; WINDOW_WORDS + WINDOW_SLACK_WORDS],
            odd: [0; WINDOW_SLACK_WORDS],
        }
    }
}

impl Window {
    /// Forgets the copy: the memory may have changed.
    #[inline(always)]
    pub const fn clear(&mut self) {
        self.base = 0;
        self.bytes = WINDOW_BYTES;
    }

    /// Its room, for something else: the copy is gone.
    #[inline(always)]
    pub const fn room(&mut self) -> &mut [u64; WINDOW_WORDS + WINDOW_SLACK_WORDS] {
        self.clear();
        &mut self.words
    }

    /// What was made of it.
    #[inline(always)]
    #[must_use]
    pub const fn words(&mut self) -> &mut [u64; WINDOW_WORDS + WINDOW_SLACK_WORDS] {
        &mut self.words
    }

    /// Copies N words of something else, which [`Self::copied`] then gives.
    ///
    /// # Errors
    ///
    /// [`Fault::ReadState`] when they cannot be read.
    #[inline(always)]
    pub fn copy<const N: usize, M: Memory>(&mut self, at: Addr, memory: &mut M) -> Result<(), Fault> {
        self.base = 0;
        let words = self.words.first_chunk_mut::<N>().ok_or(Fault::ReadState)?;
        memory.read(at, words).map_err(|_| Fault::ReadState)
    }

    /// The word at `offset` of it.
    #[inline(always)]
    #[must_use]
    pub fn copied(&self, offset: u32) -> u64 {
        self.words.get((offset >> 3) as usize & (WINDOW_WORDS - 1)).copied().unwrap_or_default()
    }

    #[inline(always)]
    fn field(&self, word: u64, offset: u16) -> u64 {
        let index = (word as usize & (WINDOW_WORDS - 1)) + (offset as usize >> 3 & (WINDOW_SLACK_WORDS - 1));
        self.words.get(index).copied().unwrap_or_default()
    }

    #[inline(always)]
    fn odd_field(&self, offset: u16) -> u64 {
        let index = offset as usize >> 3 & (WINDOW_SLACK_WORDS - 1);
        self.odd.get(index).copied().unwrap_or_default()
    }

    /// The place and the bytes of what is copied for the frame at `at`: it and what lies
    /// below it, down to its page's begin.
    #[inline(always)]
    #[must_use]
    pub const fn place(at: u64, python: &PythonLayout) -> (u64, u64) {
        let end = at.wrapping_add(python.frame_size as u64);
        let page = at & !(PAGE - 1);
        let low = end.wrapping_sub(WINDOW_BYTES);
        // A frame that ends in the next page: that one is mapped as well.
        let base = if low > page { low } else { page };
        // Two sizes that the compiler and the verifier know; most stacks fit the small.
        (base, if end.wrapping_sub(base) <= SMALL_BYTES { SMALL_BYTES } else { WINDOW_BYTES })
    }

    #[inline(always)]
    pub(crate) fn fill<M: Memory>(
        &mut self,
        memory: &mut M,
        at: u64,
        python: &PythonLayout,
    ) -> Result<(), Fault> {
        let (base, bytes) = Self::place(at, python);
        self.base = 0;
        if bytes == SMALL_BYTES
            && let Some(window) = self.words.first_chunk_mut::<SMALL_WORDS>()
        {
            memory.read(Addr(base), window).map_err(|_| Fault::ReadFrame)?;
            self.bytes = SMALL_BYTES;
        } else if let Some(window) = self.words.first_chunk_mut::<WINDOW_WORDS>() {
            memory.read(Addr(base), window).map_err(|_| Fault::ReadFrame)?;
            self.bytes = WINDOW_BYTES;
        }
        self.base = base;
        Ok(())
    }

    /// Whether `at` lies in the page below the window: more of the same data stack, for
    /// C stacks and heaps lie elsewhere.
    #[inline(always)]
    const fn continues(&self, at: u64) -> bool {
        self.base != 0 && self.base.wrapping_sub(at) <= PAGE
    }

    #[inline(always)]
    fn covers(&self, frame: u64, python: &PythonLayout) -> bool {
        self.base != 0
            && frame.wrapping_sub(self.base) <= self.bytes.wrapping_sub(u64::from(python.frame_size))
    }

    #[inline(always)]
    pub(crate) fn inside(&self, frame: u64, python: &PythonLayout) -> RawFrame {
        let word = frame.wrapping_sub(self.base) >> 3;
        RawFrame {
            code: Addr(self.field(word, python.frame_code)),
            previous: Addr(self.field(word, python.frame_previous)),
            instr: self.field(word, python.frame_instr),
            owner: (self.field(word, python.frame_owner) >> ((python.frame_owner & 7) * 8)) as u8,
        }
    }

    #[inline(always)]
    fn outside<M: Memory>(
        &mut self,
        memory: &mut M,
        frame: Addr,
        python: &PythonLayout,
    ) -> Result<RawFrame, Fault> {
        let Some(odd) = self.odd.first_chunk_mut::<ODD_WORDS>() else {
            return Err(Fault::ReadFrame);
        };
        memory.read(frame, odd).map_err(|_| Fault::ReadFrame)?;
        Ok(RawFrame {
            code: Addr(self.odd_field(python.frame_code)),
            previous: Addr(self.odd_field(python.frame_previous)),
            instr: self.odd_field(python.frame_instr),
            owner: (self.odd_field(python.frame_owner) >> ((python.frame_owner & 7) * 8)) as u8,
        })
    }
}

/// Where a walk begins.
#[derive(Clone, Copy, Debug, Default)]
pub struct Start {
    /// The leaf frame; null for an empty stack.
    pub frame: Addr,
    /// Follow no `previous` (see [`crate::layout::GreenletLayout::top_frame_only`]).
    pub top_frame_only: bool,
}

/// A walk in progress.
#[derive(Clone, Copy, Debug, Default)]
pub struct Walk {
    frame: u64,
    /// Python frames seen so far.
    pub depth: u32,
    /// The key so far.
    pub key: StackKey,
    /// Why the walk ended before the root.
    pub fault: Option<Fault>,
    top_frame_only: bool,
    /// The last frame was a shim: at the end, that the chain led to the root of its
    /// thread (CPython 3.12 on).
    pub rooted: bool,
    /// What stands for the text in the window, if the last step left one there.
    pub text: u64,
    /// A code's text is in the key.
    pub by_text: bool,
    /// The next frame, if it is outside the window, is taken for one in the data stack.
    data_stack: bool,
}

/// What one step of a walk gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A Python frame, leaf first.
    Frame(Frame),
    /// A frame of the interpreter's own (a C-stack shim).
    Shim,
    /// The end: the root, or the fault in [`Walk::fault`].
    End,
}

impl Walk {
    /// Begins a walk from `start`, of a stack whose key begins as `key`.
    #[inline(always)]
    pub const fn begin(&mut self, start: &Start, key: StackKey) {
        self.frame = start.frame.0;
        self.depth = 0;
        self.key = key;
        self.fault = None;
        self.top_frame_only = start.top_frame_only;
        self.rooted = false;
        self.text = 0;
        self.by_text = false;
        self.data_stack = true;
    }

    /// The same where `window` is a copy of what lies around the leaf, made just now.
    #[inline(always)]
    pub fn begin_in(&mut self, start: &Start, key: StackKey, python: &PythonLayout, window: &Window) {
        self.begin(start, key);
        if window.covers(start.frame.0, python) {
            self.data_stack = window.inside(start.frame.0, python).owner != OWNED_BY_THREAD;
        }
    }

    /// The next frame, where no code object is freed.
    #[inline(always)]
    pub fn step<M: Memory>(&mut self, python: &PythonLayout, window: &mut Window, memory: &mut M) -> Step {
        self.step_among(python, None, false, window, memory)
    }

    /// The next frame. If its code's address was another's before, its text is left in the
    /// window; where the stack is being recorded (`telling`), also if it was not told yet.
    #[inline(always)]
    pub fn step_among<M: Memory>(
        &mut self,
        python: &PythonLayout,
        codes: Option<(&Codes, &TextLayout)>,
        telling: bool,
        window: &mut Window,
        memory: &mut M,
    ) -> Step {
        let at = self.frame;
        if at == 0 {
            return Step::End;
        }
        if self.depth >= MAX_FRAMES {
            return self.end(Fault::StackTruncated);
        }
        // A frame is a block of words; anything else is no frame.
        if at & 7 != 0 {
            return self.end(Fault::ReadFrame);
        }
        let raw = match self.raw(at, python, window, memory) {
            Ok(raw) => raw,
            Err(fault) => return self.end(fault),
        };
        self.frame = if self.top_frame_only { 0 } else { raw.previous.0 };
        self.rooted = u16::from(raw.owner) >= python.owner_shim;
        if self.rooted {
            return Step::Shim;
        }
        let first = raw.code.0.wrapping_add(u64::from(python.code_instrs));
        let instr = raw.instr.wrapping_sub(first) as i32;
        self.depth += 1;
        let mut code = raw.code;
        self.text = 0;
        if let Some((codes, texts)) = codes {
            let freed = codes.is_freed(code);
            if freed && codes.text_stacks >= MAX_TEXT_STACKS {
                code = Addr(code::TEXTS_FULL);
            } else if freed || telling && !codes.is_told(code) {
                // The copy of the data stack is gone, and is made again for the next frame.
                self.data_stack = true;
                self.text = code::text(texts, code, window.room(), memory);
            }
            if freed {
                self.by_text = true;
                if self.text != 0 {
                    code = Addr(self.text);
                }
            }
        }
        self.key.add(code, instr);
        Step::Frame(Frame { code, instr, check: 0 })
    }

    /// No more steps are taken ([`crate::limits::MAX_STEPS`]): a chain that goes on is cut.
    #[inline(always)]
    pub const fn close(&mut self) {
        if self.frame != 0 {
            let _end = self.end(Fault::StackTruncated);
        }
    }

    #[inline(always)]
    const fn end(&mut self, fault: Fault) -> Step {
        self.fault = Some(fault);
        self.frame = 0;
        Step::End
    }

    #[inline(always)]
    fn raw<M: Memory>(
        &mut self,
        at: u64,
        python: &PythonLayout,
        window: &mut Window,
        memory: &mut M,
    ) -> Result<RawFrame, Fault> {
        if window.covers(at, python) {
            return Ok(window.inside(at, python));
        }
        if self.data_stack || window.continues(at) {
            window.fill(memory, at, python)?;
            let raw = window.inside(at, python);
            // The caller of a thread's own frame is in the window, or elsewhere.
            self.data_stack = raw.owner != OWNED_BY_THREAD;
            return Ok(raw);
        }
        // A copy of its own leaves the window as it is: after a shim or a generator the
        // chain comes back to it.
        let raw = window.outside(memory, Addr(at), python)?;
        self.data_stack = raw.owner == OWNED_BY_THREAD;
        Ok(raw)
    }
}

/// What tells a code object from another at the same address; never 0.
///
/// Its size, first line and the addresses of its file name, names and line table, and
/// because these are reused as well, the hashes that its two name strings keep of their
/// text. A string computes its hash when it is first asked for: see [`code_is`].
/// `words` is scratch.
///
/// # Errors
///
/// [`Fault::CodeChanged`] when it cannot be read: it is gone.
#[inline(always)]
pub fn code_check<M: Memory>(
    python: &PythonLayout,
    code: Addr,
    memory: &mut M,
    words: &mut [u64; SCRATCH_WORDS],
) -> Result<u32, Fault> {
    check_before(python, code, memory, words, 0)
}

/// Whether `check` was taken of the code object that is at `code` now, before or after
/// its names' hashes were computed.
///
/// # Errors
///
/// [`Fault::CodeChanged`] when it cannot be read: it is gone.
pub fn code_is<M: Memory>(
    python: &PythonLayout,
    code: Addr,
    memory: &mut M,
    words: &mut [u64; SCRATCH_WORDS],
    check: u32,
) -> Result<bool, Fault> {
    for without in 0..4 {
        if check_before(python, code, memory, words, without)? == check {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The check value as it was before the hashes `without` were computed: bit 0 for the
/// name's, bit 1 for the qualified name's.
#[inline(always)]
fn check_before<M: Memory>(
    python: &PythonLayout,
    code: Addr,
    memory: &mut M,
    words: &mut [u64; SCRATCH_WORDS],
    without: u32,
) -> Result<u32, Fault> {
    memory.read(code.at(CODE_CHECK_AT), words).map_err(|_| Fault::CodeChanged)?;
    let at = |offset: u16| {
        let index = (offset.wrapping_sub(CODE_CHECK_AT) >> 3) as usize & (SCRATCH_WORDS - 1);
        words.get(index).copied().unwrap_or_default()
    };
    let line = at(python.code_firstlineno) >> ((python.code_firstlineno & 4) * 8) & 0xffff_ffff;
    let mut hash = line ^ at(CODE_CHECK_AT) << 32;
    for field in 0..4 {
        let word = at(python.code_filename.wrapping_add(field * 8));
        hash = (hash.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    // co_name and co_qualname follow co_filename.
    for field in 1..3 {
        let name = Addr(at(python.code_filename.wrapping_add(field * 8)));
        let mut word = memory.word(name.at(python.str_hash)).map_err(|_| Fault::CodeChanged)?;
        if without >> (field - 1) & 1 == 1 {
            word = NO_HASH;
        }
        hash = (hash.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    let folded = (hash >> 32) as u32;
    Ok(if folded == 0 { 1 } else { folded })
}
