//! What is known of a connection: its requests, and their answers.

use core::{ffi::c_void, ptr};

use aya_ebpf::helpers::generated::bpf_loop;
use profiler_common::{
    address::Addr,
    http::{Event, Heard, LINE, MAX_HEAD, Reader},
};

use crate::{
    buffers::{Cursor, Next},
    slot::Slot,
};

/// Requests of a connection that are not answered yet.
pub const PENDING: usize = 8;
/// Steps of a reading: more are a head of many small buffers, or many small chunks.
const STEPS: u32 = 2 * MAX_HEAD;

/// Nothing is known of it yet.
pub const NEW: u32 = 0;
/// Requests come over it.
pub const SERVED: u32 = 1;
/// It is not known where its next request begins: after an answer.
pub const LOST: u32 = 2;
/// No requests come over it (any more).
pub const CLOSED: u32 = 3;

/// [`Connection::flags`]: a Unix socket, whose close is not told.
pub const UNIX: u32 = 1;
/// [`Connection::flags`]: there were too many requests at once to tell whose an answer is.
pub const UNMATCHED: u32 = 2;

/// A request that is not answered yet.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Pending {
    /// [`profiler_common::label::Label::id`].
    pub id: [u64; 2],
    /// The greenlet that read it: its identity, 0 for none.
    pub reader: u64,
    /// And its address.
    pub pimpl: Addr,
    /// `PENDING_*`.
    pub flags: u64,
}

/// [`Pending::flags`]: the answer has no body.
pub const PENDING_HEAD: u64 = 1;
/// [`Pending::flags`]: the client waits to be asked for the body.
pub const PENDING_EXPECTS: u64 = 2;
/// [`Pending::flags`]: bytes were sent since.
pub const PENDING_SENT: u64 = 4;
/// [`Pending::flags`]: another greenlet sent some of them.
pub const PENDING_SHARED: u64 = 8;
/// [`Pending::flags`]: its label was its reader's.
pub const PENDING_OWNED: u64 = 16;
/// [`Pending::flags`]: its label ended before its answer, of which the end can't be seen.
pub const PENDING_EARLY: u64 = 32;

/// A connection. It lies in its socket's storage.
#[repr(C)]
pub struct Connection {
    /// [`profiler_common::record::TargetConfig::made_ns`] of the target that it is of.
    pub made_ns: u64,
    /// When it was first seen: there are no two.
    pub seen_ns: u64,
    /// The greenlet that was made for it, 0 for none.
    pub own: u64,
    /// `NEW`, `SERVED` or one of the others.
    pub mode: u32,
    /// `UNIX` and `UNMATCHED`.
    pub flags: u32,
    /// The target.
    pub target: u64,
    /// Requests that came, and that were answered.
    pub came: u32,
    /// The same.
    pub answered: u32,
    /// Those in between.
    pub pending: [Pending; PENDING],
    /// What comes.
    pub requests: Reader,
    /// What goes.
    pub answers: Reader,
    /// Of the head that is read.
    pub heard: Heard,
}

impl Connection {
    /// Begins anew.
    #[inline(always)]
    pub fn begin(&mut self, target: u64, made_ns: u64, seen_ns: u64, mode: u32, flags: u32) {
        self.target = target;
        self.made_ns = made_ns;
        self.seen_ns = seen_ns;
        self.own = 0;
        self.mode = mode;
        self.flags = flags;
        self.came = 0;
        self.answered = 0;
        self.requests = Reader::requests();
        self.answers = Reader::answers();
    }

    /// The request that is answered next.
    #[inline(always)]
    pub fn first(&mut self) -> Option<&mut Pending> {
        if self.came == self.answered {
            return None;
        }
        self.pending.get_mut(self.answered as usize & (PENDING - 1))
    }
}

/// What the steps of a reading share: the helper wants it on the stack.
struct Reading<'a> {
    slot: &'a mut Slot,
    reader: &'a mut Reader,
    heard: &'a mut Heard,
}

type Callback = unsafe extern "C" fn(u32, *mut c_void) -> i64;

/// One byte, or all that is to be skipped of a buffer.
unsafe extern "C" fn step(_index: u32, context: *mut c_void) -> i64 {
    // SAFETY: `read` passes its `Reading`.
    let Reading { slot, reader, heard } = unsafe { &mut *context.cast::<Reading<'_>>() };
    let Slot { cursor, scratch, .. } = &mut **slot;
    let Cursor { left, .. } = *cursor;
    if left == 0 {
        return 1;
    }
    if reader.is_plain()
        && let Some(word) = cursor.word(scratch.window.room())
        && reader.plain(word)
    {
        cursor.took_word();
        return 0;
    }
    let event = if reader.skip != 0 {
        let some = cursor.skip(reader.skip);
        reader.skipped(some)
    } else {
        match cursor.next(scratch.window.room()) {
            Next::Byte(byte) => reader.step(byte, heard),
            Next::None => {
                // Perhaps a request, which is not told of.
                reader.flags |= LINE;
                reader.give_up();
                Event::Other
            }
        }
    };
    let event = event as u32;
    if event == Event::Unread as u32 {
        cursor.unread = cursor.unread.wrapping_add(1);
        return 0;
    }
    cursor.event = event;
    i64::from(event != 0)
}

/// Reads on, up to the next event, which is in the slot's cursor; or to the end.
#[inline(always)]
pub fn read(slot: &mut Slot, reader: &mut Reader, heard: &mut Heard) -> u32 {
    connection_read(slot, reader, heard)
}

/// A global function: the verifier looks at it once, and not for each message.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn connection_read(slot: *mut Slot, reader: *mut Reader, heard: *mut Heard) -> u32 {
    if slot.is_null() || reader.is_null() || heard.is_null() {
        return 0;
    }
    // SAFETY: references of `read`'s caller.
    let slot = unsafe { &mut *slot };
    // SAFETY: as above.
    let reader = unsafe { &mut *reader };
    // SAFETY: as above.
    let heard = unsafe { &mut *heard };
    slot.cursor.event = 0;
    let callback = step as Callback as *mut c_void;
    let mut reading = Reading { slot, reader, heard };
    // SAFETY: the helper calls `step` with the reading while it is borrowed here.
    unsafe { bpf_loop(STEPS, callback, ptr::from_mut(&mut reading).cast(), 0) };
    let Reading { slot, reader, .. } = reading;
    if slot.cursor.event == 0 && slot.cursor.left != 0 {
        // There was no end to it.
        reader.give_up();
        return Event::Other as u32;
    }
    slot.cursor.event
}
