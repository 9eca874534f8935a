//! Taking a stack: its key at every switch, its frames when it is new.

use core::{ffi::c_void, mem::offset_of, ptr};

use aya_ebpf::helpers::generated::bpf_loop;
use profiler_common::{
    code::{BY_TEXT, Codes},
    fault::Fault,
    limits::{MAX_FRAMES, MAX_SLEEP_STEPS, MAX_STEPS},
    record::{CONFIG_CODES, Kind, StackHead, StackRecord, TargetConfig, Totals, VERSION},
    walk::{Frame, StackKey, Start, Step, Walk, code_check},
};

use crate::{
    code, emit,
    maps::{self, count},
    memory::{StagedMemory, UserMemory},
    own::By,
    slot::Scratch,
};

/// What the iterations of a walk share.
struct Iteration<'a> {
    config: &'a TargetConfig,
    codes: &'a mut Codes,
    scratch: &'a mut Scratch,
    record: *mut StackRecord,
}

type Callback = unsafe extern "C" fn(u32, *mut c_void) -> i64;

unsafe extern "C" fn hash_frame(_index: u32, context: *mut c_void) -> i64 {
    // SAFETY: `iterate` passes its `Iteration`.
    let Iteration { config, codes, scratch, record: _ } = unsafe { &mut *context.cast::<Iteration<'_>>() };
    let among = Some((&**codes, &config.texts));
    match scratch.walk.step_among(&config.layout.python, among, false, &mut scratch.window, &mut StagedMemory)
    {
        Step::Frame(_) | Step::Shim => 0,
        Step::End => 1,
    }
}

unsafe extern "C" fn record_frame(_index: u32, context: *mut c_void) -> i64 {
    // SAFETY: `iterate` passes its `Iteration`.
    let Iteration { config, codes, scratch, record } = unsafe { &mut *context.cast::<Iteration<'_>>() };
    let python = &config.layout.python;
    let index = scratch.walk.depth;
    let among = Some((&**codes, &config.texts));
    let telling = config.flags & CONFIG_CODES != 0;
    match scratch.walk.step_among(python, among, telling, &mut scratch.window, &mut UserMemory) {
        Step::Frame(frame) => {
            if index >= MAX_FRAMES {
                return 1;
            }
            // 0 is no check value: user space will not name this frame without its text.
            let mut check = 0;
            if frame.code.0 & BY_TEXT == 0 {
                check = code_check(python, frame.code, &mut UserMemory, &mut scratch.words).unwrap_or(0);
            }
            if scratch.walk.text != 0 {
                code::tell(scratch, codes, frame.code);
            }
            let frames = (*record).cast::<u8>().wrapping_add(offset_of!(StackRecord, frames)).cast::<Frame>();
            let place = frames.wrapping_add(index as usize);
            // SAFETY: `index` is below the length of `frames`, which are nobody else's now.
            unsafe { place.write(Frame { check, ..frame }) };
            0
        }
        Step::Shim => 0,
        Step::End => 1,
    }
}

#[inline(always)]
fn iterate(iteration: &mut Iteration<'_>, callback: Callback, by: By) {
    let steps = if by == By::Sleep { MAX_SLEEP_STEPS } else { MAX_STEPS };
    // A pointer all the way: the verifier follows the function's address to the helper,
    // and an integer in between would lose it.
    let callback = callback as *mut c_void;
    // SAFETY: the helper calls `callback` with `iteration` while it is borrowed here.
    unsafe { bpf_loop(steps, callback, ptr::from_mut(iteration).cast(), 0) };
    iteration.scratch.walk.close();
}

/// Walks from `start`; the result is in `scratch.walk`.
#[inline(always)]
pub fn walk(start: Start, key: StackKey, config: &TargetConfig, target: u64, scratch: &mut Scratch) {
    scratch.window.clear();
    scratch.start = start;
    scratch.walk.begin(&start, key);
    hash(config, target, scratch, By::Switch);
}

#[inline(always)]
fn hash(config: &TargetConfig, target: u64, scratch: &mut Scratch, by: By) {
    // A target's number is in range.
    if let Some(codes) = maps::codes(target) {
        iterate(&mut Iteration { config, codes, scratch, record: ptr::null_mut() }, hash_frame, by);
    }
}

/// The same where what lies around its leaf is in the window, copied just now.
#[inline(always)]
pub fn walk_on(
    start: Start,
    key: StackKey,
    config: &TargetConfig,
    target: u64,
    scratch: &mut Scratch,
    by: By,
) {
    scratch.start = start;
    scratch.walk.begin_in(&start, key, &config.layout.python, &scratch.window);
    hash(config, target, scratch, by);
}

/// Makes the stack just walked known, and sends its frames if they were not sent yet.
///
/// `scratch.about` says what goes into the record. Returns whether they are sent. Out
/// of line: it happens once per stack.
#[inline(never)]
pub fn ensure_sent(config: &TargetConfig, scratch: &mut Scratch, totals: &mut Totals, by: By) -> bool {
    let key = scratch.about.key;
    let sending = scratch.about.sending;
    let Some(codes) = maps::codes(scratch.about.target) else {
        return false;
    };
    if maps::stack(&key).is_none() {
        if !maps::insert_stack(&key, scratch.about.target) {
            count(totals, Fault::StacksFull);
            return false;
        }
        codes.text_stacks += u64::from(scratch.walk.by_text);
    }
    let Some(known) = maps::stack(&key) else {
        return false;
    };
    if known.target != scratch.about.target as u32 {
        // Another target's: it forged a key of it.
        count(totals, Fault::StacksFull);
        return false;
    }
    if known.sent == sending {
        return true;
    }
    let record = if by == By::Switch { maps::stack_record() } else { maps::sample_record() };
    let Some(record) = record else {
        count(totals, Fault::NoTaskStorage);
        return false;
    };
    let record = record.as_ptr();
    scratch.window.clear();
    scratch.about.texts_lost = 0;
    scratch.walk.begin(&scratch.start, scratch.about.empty);
    iterate(&mut Iteration { config, codes, scratch, record }, record_frame, by);
    let Walk { key: again, depth, fault, .. } = scratch.walk;
    if again != key {
        count(totals, Fault::StackMoved);
        return false;
    }
    if depth > MAX_FRAMES {
        return false;
    }
    // SAFETY: the record is this task's own, or this CPU's while interrupts are off.
    let head = unsafe { &mut (*record).head };
    head.head.kind = Kind::Stack as u32;
    head.head.version = VERSION;
    head.head.target = scratch.about.target;
    head.head.time_ns = scratch.about.time_ns;
    head.key = key;
    head.type_object = scratch.about.type_object;
    head.depth = depth;
    head.fault = fault.map_or(0, |fault| fault as u32 + 1);
    let bytes = size_of::<StackHead>() as u64 + u64::from(depth) * size_of::<Frame>() as u64;
    if !emit::send(record, bytes, true) {
        count(totals, Fault::RingFullStack);
        return false;
    }
    if scratch.about.texts_lost != 0 {
        // Its frames' names come with the next ones.
        count(totals, Fault::RingFullStack);
        return false;
    }
    known.sent = sending;
    true
}
