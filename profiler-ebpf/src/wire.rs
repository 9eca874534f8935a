//! Requests as they come over sockets, where there is no tracer, or none that tells of them.
//!
//! Only where a greenlet reads the head of a request of HTTP/1.1 its first line and four
//! headers are looked at: what they say is its label until it reads from that socket again
//! after it wrote there, or closes it. The scheme is that of servers with one greenlet a
//! connection; other threads and greenlets have none.
//!
//! A head begins with the first bytes that come over a socket, and with the first ones after
//! an answer: everything else is a body, which may look like one. Where a receipt has more in
//! it than the request (`Content-Length`), or the client waits for `100 Continue`, or the head
//! came in pieces, which bytes belong to whom is not known: then the label ends with the
//! first answer, and what comes over that socket later has none.

use core::{ffi::c_void, ptr};

use aya_ebpf::{
    bindings::pt_regs,
    helpers::generated::{bpf_ktime_get_ns, bpf_loop, bpf_task_pt_regs},
    programs::BtfTracePointContext,
};
use profiler_common::{
    address::Addr,
    fault::Fault,
    label::{ABOUT_SW8, ABOUT_TRACEPARENT, ABOUT_UNSURE, KIND_INHERITED, Label, Source, TEXT_WORDS, Text},
    limits::WIRE_BYTES,
    memory::Memory as _,
    record::{ARMED, CONFIG_WIRE, Greenlet, SOCKET_FLAGS, SOCKET_UNSURE, SOCKET_WRITTEN, TargetConfig},
};

use crate::{
    label,
    maps::{self, count},
    memory::UserMemory,
    slot::Slot,
};

/// <https://github.com/torvalds/linux/blob/v6.12/include/linux/socket.h>
const MSG_PEEK: u32 = 2;
/// A request's first line is at least `GET / HTTP/1.1`.
const SHORTEST: u32 = 14;
/// OpenSSL receives the head of a record by itself, which is as short as `GET /`.
const RECORD_HEAD: i32 = 5;
/// `TCP_FIN_WAIT1`, `TCP_CLOSE`, `TCP_LAST_ACK`: this side closed, or the connection broke.
/// <https://github.com/torvalds/linux/blob/v6.12/include/net/tcp_states.h>
const CLOSED: [i32; 3] = [4, 7, 9];

/// Where the scan of a head is.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Scan {
    /// `IN_*`.
    state: u32,
    /// Characters of a header's name.
    at: u32,
    /// Which names it can still be: `NAME_*`.
    alive: u32,
    /// Bytes to be looked at.
    bytes: u32,
    /// Fields of `sw8` before the one that is read.
    fields: u32,
    /// Bytes up to the head's end.
    head: u32,
    /// `Content-Length`.
    length: u64,
    /// Not 0: the client waits to be asked for the body (`Expect`).
    expects: u64,
}

const NAME_SW8: u32 = 1;
const NAME_TRACEPARENT: u32 = 2;
const NAME_LENGTH: u32 = 4;
const NAME_EXPECT: u32 = 8;

const IN_METHOD: u32 = 0;
const IN_TARGET: u32 = 1;
const IN_PATH: u32 = 2;
const IN_QUERY: u32 = 3;
const IN_VERSION: u32 = 4;
/// From here on it is the head of a request.
const IN_LINE: u32 = 5;
const IN_NAME: u32 = 6;
const IN_SW8: u32 = 7;
const IN_TRACEPARENT: u32 = 8;
const IN_LENGTH: u32 = 9;
const OVER: u32 = 10;
/// It is no request.
const OTHER: u32 = 11;
/// No body is as long.
const MOST_LENGTH: u64 = 1 << 53;

/// What follows the target.
const HTTP_1: u64 = u64::from_le_bytes(*b"HTTP/1.\0");
const HTTP_1_LENGTH: u32 = 7;

/// `sw8:` and `traceparent:`, the first character in the lowest byte.
const SW8: u64 = u64::from_le_bytes(*b"sw8:\0\0\0\0");
const TRACEPARENT: [u64; 2] = [u64::from_le_bytes(*b"tracepar"), u64::from_le_bytes(*b"ent:\0\0\0\0")];
/// `content-length:` and `expect:`.
const LENGTH: [u64; 2] = [u64::from_le_bytes(*b"content-"), u64::from_le_bytes(*b"length:\0")];
const EXPECT: u64 = u64::from_le_bytes(*b"expect:\0");

/// What the socket of an event did to the current greenlet's label.
#[inline(always)]
fn subject() -> Option<(&'static TargetConfig, &'static mut Slot, &'static mut Greenlet)> {
    let slot = maps::slot()?;
    if slot.clock.version == 0 || slot.busy != 0 {
        return None;
    }
    let config = maps::config(slot.target)?;
    if config.flags & CONFIG_WIRE == 0 || config.started_ns == ARMED {
        return None;
    }
    let greenlet = label::current(config, slot)?;
    Some((config, slot, greenlet))
}

/// The socket of an event, as a number: the verifier calculates with no pointer, and takes
/// what comes from a map for none.
#[inline(always)]
fn socket(ctx: &BtfTracePointContext, slot: &mut Slot) -> u64 {
    let socket: u64 = ctx.arg(0);
    // SAFETY: the slot's own. Volatile, so that it does go there.
    unsafe { ptr::write_volatile(&raw mut slot.socket, socket) };
    // SAFETY: as above.
    unsafe { ptr::read_volatile(&raw const slot.socket) }
}

/// `sock_recv_length`: bytes were received, or not.
///
/// # Kernel
///
/// 6.3.
#[inline(always)]
pub fn on_received(ctx: &BtfTracePointContext) {
    let Some((_, slot, greenlet)) = subject() else {
        return;
    };
    let socket = socket(ctx, slot);
    let status: i32 = ctx.arg(1);
    let flags: u32 = ctx.arg(2);
    if flags & MSG_PEEK != 0 {
        return;
    }
    let bytes = if status > 0 { status as u64 } else { 0 };
    if greenlet.socket & !SOCKET_FLAGS == socket {
        let before = greenlet.socket;
        let body = greenlet.body_bytes;
        greenlet.body_bytes = body.saturating_sub(bytes);
        if before & SOCKET_WRITTEN != 0 {
            if !greenlet.given.is_none() {
                end(slot, greenlet);
            }
            // It asks before there is something.
            greenlet.socket = if bytes == 0 { before } else { before & !SOCKET_WRITTEN };
        }
        if bytes > body && body != 0 {
            // The next one came with the rest of the body.
            unsure(slot, greenlet);
        }
        if before & SOCKET_WRITTEN == 0 || before & SOCKET_UNSURE != 0 || body != 0 {
            return;
        }
    } else if !greenlet.given.is_none()
        && greenlet.given.kind & KIND_INHERITED == 0
        && greenlet.socket & SOCKET_WRITTEN == 0
    {
        // It works on a request of its own: what it asks others for is none.
        return;
    } else if greenlet.given.is_none() && bytes != 0 {
        greenlet.socket = socket;
        greenlet.body_bytes = 0;
    }
    if status < RECORD_HEAD {
        return;
    }
    slot.enter();
    let _read = read(slot, greenlet, socket, status as u32);
    slot.leave();
}

/// `sock_send_length`: bytes were sent, or not.
#[inline(always)]
pub fn on_sent(ctx: &BtfTracePointContext) {
    let Some((_, slot, greenlet)) = subject() else {
        return;
    };
    let socket = socket(ctx, slot);
    let status: i32 = ctx.arg(1);
    if status > 0 && greenlet.socket & !SOCKET_FLAGS == socket {
        let before = greenlet.socket;
        if before & SOCKET_UNSURE != 0 && !greenlet.given.is_none() {
            end(slot, greenlet);
        }
        greenlet.socket = before | SOCKET_WRITTEN;
    }
}

/// `inet_sock_set_state`: a connection's state changes.
#[inline(always)]
pub fn on_state(ctx: &BtfTracePointContext) {
    let state: i32 = ctx.arg(2);
    if !CLOSED.contains(&state) {
        return;
    }
    let Some((_, slot, greenlet)) = subject() else {
        return;
    };
    let socket = socket(ctx, slot);
    if greenlet.socket & !SOCKET_FLAGS == socket {
        end(slot, greenlet);
    }
}

/// The greenlet's request is over.
#[inline(always)]
fn end(slot: &mut Slot, greenlet: &mut Greenlet) {
    // SAFETY: takes no argument.
    let now = unsafe { bpf_ktime_get_ns() };
    let _given = label::give(slot, greenlet, &Label::NONE, now);
    greenlet.socket = 0;
}

/// What comes over the greenlet's socket after the next answer may be anything.
#[inline(always)]
fn unsure(slot: &Slot, greenlet: &mut Greenlet) {
    greenlet.socket |= SOCKET_UNSURE;
    if let Some(totals) = maps::totals(slot.target) {
        count(totals, Fault::WireUnsure);
    }
}

/// Looks at what was received.
#[inline(never)]
fn read(slot: &mut Slot, greenlet: &mut Greenlet, socket: u64, bytes: u32) -> u32 {
    let Some((buffer, room)) = buffer() else {
        return 0;
    };
    let Ok(first) = UserMemory.word(buffer) else {
        return 0;
    };
    if !is_method(first) {
        // A record of TLS, or the preface of HTTP/2.
        if (first & 0xffff == 0x0316 || first == u64::from_le_bytes(*b"PRI * HT"))
            && let Some(totals) = maps::totals(slot.target)
        {
            count(totals, Fault::WireUnreadable);
        }
        return 0;
    }
    if bytes < SHORTEST {
        greenlet.socket = socket | SOCKET_UNSURE;
        if let Some(totals) = maps::totals(slot.target) {
            count(totals, Fault::WireCut);
        }
        return 0;
    }
    let received = bytes;
    let bytes = if bytes < room { bytes } else { room };
    let bytes = if bytes < WIRE_BYTES { bytes } else { WIRE_BYTES };
    if UserMemory.read_part(buffer, slot.scratch.window.room(), bytes).is_err() {
        return 0;
    }
    let about = &mut slot.label_record.about;
    clear(&mut about.trace);
    clear(&mut about.endpoint);
    clear(&mut about.operation);
    about.began_ms = 0;
    about.flags = 0;
    about.request = [0; 2];
    slot.scan = Scan { state: IN_METHOD, at: 0, alive: 0, bytes, fields: 0, head: 0, length: 0, expects: 0 };
    let callback = scan as Callback as *mut c_void;
    let mut head = Head { slot };
    // SAFETY: the helper calls `scan` with the head while it is borrowed here.
    unsafe { bpf_loop(WIRE_BYTES, callback, ptr::from_mut(&mut head).cast(), 0) };
    if slot.scan.state == OTHER {
        return 0;
    }
    if slot.scan.state != OVER {
        forget_cut(slot);
        if let Some(totals) = maps::totals(slot.target) {
            count(totals, Fault::WireCut);
        }
    }
    greenlet.body_bytes = 0;
    if slot.scan.state < IN_LINE {
        // Perhaps one, perhaps something else that begins so.
        greenlet.socket = socket | SOCKET_UNSURE;
        return 0;
    }
    let Scan { state, head, length, expects, .. } = slot.scan;
    let rest = u64::from(received.wrapping_sub(head));
    let is_sure = state == OVER && expects == 0 && rest <= length && length <= MOST_LENGTH;
    if !is_sure {
        slot.label_record.about.flags |= ABOUT_UNSURE;
    }
    // SAFETY: takes no argument.
    let now = unsafe { bpf_ktime_get_ns() };
    // What it did until now was for the request before, or none.
    let label =
        Label { id: [now, slot.thread], span: 0, kind: Source::Wire as u32, target: slot.target as u32 };
    let _given = label::give(slot, greenlet, &label, now);
    slot.label = label;
    greenlet.socket = socket;
    if is_sure {
        greenlet.body_bytes = length - rest;
    } else if state == OVER {
        unsure(slot, greenlet);
    } else {
        greenlet.socket |= SOCKET_UNSURE;
    }
    if !label::send(slot, now)
        && let Some(totals) = maps::totals(slot.target)
    {
        count(totals, Fault::RingFullLabel);
    }
    0
}

/// Of a head that is not over what was being read is not known: a part of an id is another id.
#[inline(always)]
fn forget_cut(slot: &mut Slot) {
    let Slot { scan, label_record, .. } = slot;
    let about = &mut label_record.about;
    match scan.state {
        // Before the other header, or in its place.
        IN_TRACEPARENT if about.flags & ABOUT_SW8 != 0 => {}
        IN_SW8 | IN_TRACEPARENT => {
            clear(&mut about.trace);
            about.flags &= ABOUT_UNSURE;
        }
        _ => {}
    }
}

#[inline(always)]
fn clear(text: &mut Text) {
    text.length = 0;
    text.width = 0;
}

/// Whether a head begins so.
#[inline(always)]
fn is_method(first: u64) -> bool {
    let is = |method: &[u8; 8]| {
        let method = u64::from_le_bytes(*method);
        // As many bytes as it has, of which none is 0.
        let others = method.leading_zeros() & !7;
        first << others == method << others
    };
    is(b"GET \0\0\0\0")
        || is(b"POST \0\0\0")
        || is(b"PUT \0\0\0\0")
        || is(b"HEAD \0\0\0")
        || is(b"DELETE \0")
        || is(b"PATCH \0\0")
        || is(b"OPTIONS ")
}

/// What the steps of a scan share: the helper wants it on the stack.
struct Head<'a> {
    slot: &'a mut Slot,
}

type Callback = unsafe extern "C" fn(u32, *mut c_void) -> i64;

/// One byte of a head.
unsafe extern "C" fn scan(index: u32, context: *mut c_void) -> i64 {
    // SAFETY: `read` passes its `Head`.
    let Head { slot } = unsafe { &mut *context.cast::<Head<'_>>() };
    let Slot { scan, scratch, label_record, .. } = slot;
    if index >= scan.bytes {
        return 1;
    }
    let word = scratch.window.room().get(index as usize >> 3 & 511).copied().unwrap_or_default();
    let byte = word >> ((index & 7) * 8) & 0xff;
    let about = &mut label_record.about;
    match scan.state {
        IN_METHOD => {
            push(&mut about.endpoint, byte);
            if byte == b' '.into() {
                scan.state = IN_TARGET;
            }
        }
        IN_TARGET => {
            // Proxies get a whole address, which may have a password in it.
            scan.state = if byte == b'/'.into() || byte == b'*'.into() { IN_PATH } else { OTHER };
            push(&mut about.endpoint, byte);
        }
        IN_PATH if byte == b'?'.into() => scan.state = IN_QUERY,
        IN_PATH | IN_QUERY if byte == b' '.into() => scan.state = IN_VERSION,
        // No control character is part of a target.
        IN_PATH | IN_QUERY if byte < b' '.into() => scan.state = OTHER,
        IN_PATH => push(&mut about.endpoint, byte),
        IN_VERSION => {
            if HTTP_1 >> ((scan.at & 7) * 8) & 0xff != byte {
                scan.state = OTHER;
            }
            scan.at += 1;
            if scan.at == HTTP_1_LENGTH && scan.state == IN_VERSION {
                scan.state = IN_LINE;
            }
        }
        IN_NAME => name(scan, byte),
        IN_SW8 => {
            // 1-TRACE-SEGMENT-..., the trace as base64.
            if byte == b'-'.into() {
                scan.fields += 1;
                if scan.fields == 2 {
                    scan.state = IN_LINE;
                }
            } else if scan.fields == 1 {
                if about.flags & ABOUT_SW8 == 0 {
                    about.flags = ABOUT_SW8;
                    about.trace.length = 0;
                }
                push(&mut about.trace, byte);
            }
        }
        IN_TRACEPARENT if about.flags & ABOUT_SW8 == 0 && byte > b' '.into() => {
            about.flags |= ABOUT_TRACEPARENT;
            push(&mut about.trace, byte);
        }
        IN_LENGTH if byte >= b'0'.into() && byte <= b'9'.into() => {
            let more = scan.length.wrapping_mul(10).wrapping_add(byte - u64::from(b'0'));
            scan.length = if scan.length > MOST_LENGTH { scan.length } else { more };
        }
        _ => {}
    }
    if scan.state == OTHER {
        return 1;
    }
    if byte == b'\n'.into() && scan.state >= IN_LINE {
        if scan.state == OVER {
            scan.head = index + 1;
            return 1;
        }
        scan.state = IN_NAME;
        scan.at = 0;
        scan.alive = NAME_SW8 | NAME_TRACEPARENT | NAME_LENGTH | NAME_EXPECT;
        scan.fields = 0;
    }
    0
}

/// One byte where a header's name stands.
#[inline(always)]
fn name(scan: &mut Scan, byte: u64) {
    if scan.at == 0 && byte == b'\r'.into() {
        return;
    }
    if scan.at == 0 && byte == b'\n'.into() {
        scan.state = OVER;
        return;
    }
    let is_upper = byte >= b'A'.into() && byte <= b'Z'.into();
    let lower = if is_upper { byte | 0x20 } else { byte };
    let shift = (scan.at & 7) * 8;
    let mut look = |name: u32, [first, second]: [u64; 2], length: u32, state: u32| {
        let word = if scan.at < 8 { first } else { second };
        if word >> shift & 0xff != lower || scan.at >= length {
            scan.alive &= !name;
        }
        if scan.alive & name != 0 && scan.at + 1 == length {
            scan.state = state;
        }
    };
    look(NAME_SW8, [SW8, 0], 4, IN_SW8);
    look(NAME_TRACEPARENT, TRACEPARENT, 12, IN_TRACEPARENT);
    look(NAME_LENGTH, LENGTH, 15, IN_LENGTH);
    look(NAME_EXPECT, [EXPECT, 0], 7, IN_LINE);
    if scan.state == IN_LINE {
        scan.expects = 1;
    }
    scan.at += 1;
    if scan.alive == 0 {
        scan.state = IN_LINE;
    }
}

/// Adds a character; what has no room is counted only.
#[inline(always)]
fn push(text: &mut Text, byte: u64) {
    let at = text.length;
    text.length = at + 1;
    text.width = 1;
    let shift = (at & 7) * 8;
    if let Some(word) = text.words.get_mut(at as usize >> 3)
        && (at as usize) < TEXT_WORDS * 8
    {
        let kept = if shift == 0 { 0 } else { *word & ((1 << shift) - 1) };
        *word = kept | byte << shift;
    }
}

/// Where the bytes went that the current system call received, and how many had room there.
#[inline(always)]
fn buffer() -> Option<(Addr, u32)> {
    // SAFETY: the current task's registers at its entry into the kernel lie at the top of
    // its stack.
    let registers = unsafe { bpf_task_pt_regs(maps::current_task()) } as *const pt_regs;
    let (number, second) = call(registers);
    let second = Addr(second);
    match number {
        READ | RECVFROM => Some((second, u32::MAX)),
        READV => first_of(second),
        RECVMSG => first_of(UserMemory.pointer(second.at(MSGHDR_IOV)).ok()?),
        _ => None,
    }
}

/// The first buffer of a vector.
#[inline(always)]
fn first_of(vector: Addr) -> Option<(Addr, u32)> {
    let buffer = UserMemory.pointer(vector).ok()?;
    let room = UserMemory.word(vector.at(IOVEC_LENGTH)).ok()?;
    Some((buffer, if room < u64::from(WIRE_BYTES) { room as u32 } else { WIRE_BYTES }))
}

/// `struct iovec.iov_len`.
/// <https://github.com/torvalds/linux/blob/v6.12/include/uapi/linux/uio.h>
const IOVEC_LENGTH: u16 = 8;
/// `struct user_msghdr.msg_iov`.
/// <https://github.com/torvalds/linux/blob/v6.12/include/linux/socket.h>
const MSGHDR_IOV: u16 = 16;

/// <https://github.com/torvalds/linux/blob/v6.12/arch/x86/entry/syscalls/syscall_64.tbl>
#[cfg(bpf_target_arch = "x86_64")]
mod number {
    pub const READ: i64 = 0;
    pub const READV: i64 = 19;
    pub const RECVFROM: i64 = 45;
    pub const RECVMSG: i64 = 47;
}
/// <https://github.com/torvalds/linux/blob/v6.12/include/uapi/asm-generic/unistd.h>
#[cfg(bpf_target_arch = "aarch64")]
mod number {
    pub const READ: i64 = 63;
    pub const READV: i64 = 65;
    pub const RECVFROM: i64 = 207;
    pub const RECVMSG: i64 = 212;
}
use number::{READ, READV, RECVFROM, RECVMSG};

#[cfg(bpf_target_arch = "x86_64")]
#[inline(always)]
fn call(registers: *const pt_regs) -> (i64, u64) {
    // SAFETY: the kernel gave the pointer and checks what is loaded through it.
    let registers = unsafe { &*registers };
    (registers.orig_rax as i64, registers.rsi)
}

#[cfg(bpf_target_arch = "aarch64")]
#[inline(always)]
fn call(registers: *const pt_regs) -> (i64, u64) {
    // `struct pt_regs`: user_pt_regs (34 words), orig_x0, syscallno.
    // https://github.com/torvalds/linux/blob/v6.12/arch/arm64/include/asm/ptrace.h
    let words = registers.cast::<[u64; 36]>();
    // SAFETY: the kernel gave the pointer and checks what is loaded through it.
    let [_, second, .., number] = unsafe { &*words };
    (i64::from(*number as i32), *second)
}
