//! Taking a stack: its key at every switch, its frames when it is new.

use core::{
    ffi::c_void,
    mem::{offset_of, transmute},
    ptr,
};

use aya_ebpf::helpers::generated::bpf_loop;
use profiler_common::{
    address::Addr,
    fault::Fault,
    layout::PythonLayout,
    limits::{MAX_FRAMES, MAX_STEPS},
    record::{Kind, RecordHead, StackHead, StackRecord, Totals, VERSION},
    walk::{Frame, StackKey, Start, Step, Walk, Window, code_check},
};

use crate::{
    emit,
    maps::{self, count},
    memory::UserMemory,
    slot::Scratch,
};

/// What the iterations of a walk share.
///
/// The walk itself lies in the slot, not here on the stack: what is loaded from a
/// map the verifier takes as unknown, so that one look at the callback suffices. A
/// counter on the stack it would follow through every iteration.
struct Iteration<'a> {
    walk: &'a mut Walk,
    python: &'a PythonLayout,
    window: &'a mut Window,
    record: *mut StackRecord,
}

type Callback = unsafe extern "C" fn(u32, *mut c_void) -> i64;

unsafe extern "C" fn hash_frame(_index: u32, context: *mut c_void) -> i64 {
    // SAFETY: `iterate` passes its `Iteration`.
    let Iteration { walk, python, window, record: _ } = unsafe { &mut *context.cast::<Iteration<'_>>() };
    match walk.step(python, window, &mut UserMemory) {
        Step::Frame(_) | Step::Shim => 0,
        Step::End => 1,
    }
}

unsafe extern "C" fn record_frame(_index: u32, context: *mut c_void) -> i64 {
    // SAFETY: `iterate` passes its `Iteration`.
    let Iteration { walk, python, window, record } = unsafe { &mut *context.cast::<Iteration<'_>>() };
    let index = walk.depth;
    match walk.step(python, window, &mut UserMemory) {
        Step::Frame(frame) => {
            if index >= MAX_FRAMES {
                return 1;
            }
            // 0 is no check value: user space will not name this frame.
            let check = code_check(python, frame.code, &mut UserMemory).unwrap_or(0);
            let frames = (*record).cast::<u8>().wrapping_add(offset_of!(StackRecord, frames)).cast::<Frame>();
            // SAFETY: `index` is below the length of `frames`.
            unsafe { frames.add(index as usize).write(Frame { check, ..frame }) };
            0
        }
        Step::Shim => 0,
        Step::End => 1,
    }
}

#[inline(always)]
fn iterate(iteration: &mut Iteration<'_>, callback: Callback) {
    // SAFETY: the function's address must reach the helper as it is, for the
    // verifier follows it; an integer in between would lose it.
    let callback = unsafe { transmute::<Callback, *mut c_void>(callback) };
    // SAFETY: the helper calls `callback` with `iteration` while it is borrowed here.
    unsafe { bpf_loop(MAX_STEPS, callback, ptr::from_mut(iteration).cast(), 0) };
}

/// Walks from `start`; the result is in `scratch.walk`.
#[inline(always)]
pub fn walk(start: Start, key: StackKey, python: &PythonLayout, scratch: &mut Scratch) {
    let Scratch { walk, window } = scratch;
    window.clear();
    *walk = Walk::new(start, key);
    iterate(&mut Iteration { walk, python, window, record: ptr::null_mut() }, hash_frame);
}

/// What a new stack's record says besides its frames.
pub struct About {
    /// The attach cookie.
    pub target: u64,
    /// Now.
    pub time_ns: u64,
    /// The greenlet's type.
    pub type_object: Addr,
    /// The key before the first frame.
    pub empty: StackKey,
    /// The key that the first walk gave.
    pub key: StackKey,
    /// [`profiler_common::record::TargetConfig::sending`].
    pub sending: u32,
}

/// Makes the stack known and sends its frames if they were not sent yet.
///
/// Returns whether they are sent. Out of line: it happens once per stack.
#[inline(never)]
pub fn ensure_sent(
    about: &About,
    start: &Start,
    python: &PythonLayout,
    scratch: &mut Scratch,
    totals: &mut Totals,
) -> bool {
    let key = about.key;
    if maps::stack(&key).is_none() && !maps::insert_stack(&key, about.target) {
        count(totals, Fault::StacksFull);
        return false;
    }
    let Some(known) = maps::stack(&key) else {
        return false;
    };
    if known.sent == about.sending {
        return true;
    }
    let Some(record) = maps::stack_record() else {
        count(totals, Fault::NoTaskStorage);
        return false;
    };
    let record = record.as_ptr();
    let Scratch { walk, window } = scratch;
    window.clear();
    *walk = Walk::new(*start, about.empty);
    iterate(&mut Iteration { walk, python, window, record }, record_frame);
    if walk.key != key {
        count(totals, Fault::StackMoved);
        return false;
    }
    let depth = walk.depth;
    if depth > MAX_FRAMES {
        return false;
    }
    let head = StackHead {
        head: RecordHead {
            kind: Kind::Stack as u32,
            version: VERSION,
            target: about.target,
            time_ns: about.time_ns,
        },
        key,
        type_object: about.type_object,
        depth,
        fault: walk.fault.map_or(0, |fault| fault as u32 + 1),
    };
    // SAFETY: the record is this task's own.
    unsafe { (*record).head = head };
    let bytes = size_of::<StackHead>() as u64 + u64::from(depth) * size_of::<Frame>() as u64;
    if !emit::send(record, bytes, true) {
        count(totals, Fault::RingFullStack);
        return false;
    }
    known.sent = about.sending;
    true
}
