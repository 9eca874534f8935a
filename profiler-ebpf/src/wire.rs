//! Requests as they come over sockets, where there is no tracer, or none that tells of them.
//!
//! A request is one of its connection, whoever reads and writes there: it begins when its head
//! is proved and ends with its answer ([`profiler_common::http`]). Whose time is its is another
//! question. The head makes a label of the greenlet that read it only if that greenlet is known
//! to work for one connection at a time: it was made for this one, or has shown it by what it
//! did before. A main greenlet, one under which the thread polls, one that reads the next head
//! while another is unanswered, and one whose answers others send are none of these. The label
//! ends with the answer; what the greenlet runs until it waits again is still the request's.

use core::ffi::c_void;

use aya_ebpf::{helpers::bpf_get_current_pid_tgid, programs::BtfTracePointContext};
use profiler_common::{
    fault::Fault,
    http::{EXPECTS, Event, IS_HEAD, LINE, REQUEST_ANSWERED, REQUEST_PARTLY, TURN},
    label::{ABOUT_UNOWNED, KIND_ANSWERED},
    record::{
        ARMED, CONFIG_WIRE, GREENLET_BORN, GREENLET_MAIN, GREENLET_RECEIVED, GREENLET_SEVERAL, Greenlet,
        GreenletKey, Kind, RecordHead, RequestRecord, TargetConfig, VERSION,
    },
};

use crate::{
    clock::time,
    connection::{
        self, CLOSED, Connection, LOST, NEW, PENDING, PENDING_EARLY, PENDING_EXPECTS, PENDING_HEAD,
        PENDING_OWNED, PENDING_SENT, PENDING_SHARED, Pending, SERVED, UNIX, UNMATCHED,
    },
    emit,
    kernel::{self, Stream},
    label, lent,
    maps::{self, count},
    slot::Slot,
    socket,
};

/// <https://github.com/torvalds/linux/blob/v6.12/include/linux/socket.h>
const MSG_PEEK: u32 = 2;
/// <https://github.com/torvalds/linux/blob/v6.12/include/uapi/asm-generic/errno-base.h>
const EAGAIN: i32 = 11;
/// `TCP_FIN_WAIT1`, `TCP_CLOSE`, `TCP_LAST_ACK`: this side closed, or the connection broke.
/// <https://github.com/torvalds/linux/blob/v6.12/include/net/tcp_states.h>
const CLOSES: [i32; 3] = [4, 7, 9];
/// Messages that are read of what was received or sent at once.
const MESSAGES: u32 = 8;
/// A greenlet that takes connections from somewhere has shown that it takes one after the
/// other when it has answered so many; one that has read of a single one, when it has answered.
const ENOUGH_OF_SEVERAL: u64 = 4;
/// What an answer begins with.
const HTTP_1: u64 = u64::from_le_bytes(*b"HTTP/1.\0");
const HTTP_1_MASK: u64 = (1 << 56) - 1;
/// The status before another protocol.
const SWITCHING: u32 = 101;

/// Who receives or sends.
#[inline(always)]
fn subject() -> Option<(&'static TargetConfig, &'static mut Slot)> {
    let slot = maps::slot()?;
    if slot.clock.version == 0 || slot.busy != 0 {
        return None;
    }
    let config = maps::config(slot.target)?;
    if config.flags & CONFIG_WIRE == 0 || config.started_ns == ARMED {
        return None;
    }
    Some((config, slot))
}

/// Counts a fault of the slot's target.
#[inline(always)]
fn fault(slot: &Slot, fault: Fault) {
    if let Some(totals) = maps::totals(slot.target) {
        count(totals, fault);
    }
}

/// What is known of a connection; `had` bytes were received by now if it is one that this
/// process never received from before, and `mode` is for those.
#[inline(always)]
fn connection(
    config: &TargetConfig,
    slot: &Slot,
    socket: *mut c_void,
    had: u64,
    mode: u32,
) -> Option<&'static mut Connection> {
    let known = maps::connection(socket);
    if let Some(known) = known
        && known.made_ns == config.made_ns
        && known.mode != NEW
    {
        return Some(known);
    }
    let address = socket as u64;
    let stream = kernel::stream(address);
    if stream == Stream::Other {
        return None;
    }
    // Of a Unix socket nobody tells what it had before.
    let is_unix = stream == Stream::Unix;
    let fresh = if is_unix { mode == SERVED } else { kernel::has_received(address, had) };
    let made = maps::connection_or_create(socket)?;
    let flags = if is_unix { UNIX } else { 0 };
    made.begin(slot.target, config.made_ns, time(), if fresh { mode } else { LOST }, flags);
    Some(made)
}

/// `sock_recv_length`: bytes were received, or not.
///
/// # Kernel
///
/// 6.3.
#[inline(always)]
pub fn on_received(ctx: &BtfTracePointContext) {
    let socket: *mut c_void = ctx.arg(0);
    let status: i32 = ctx.arg(1);
    let flags: u32 = ctx.arg(2);
    let peeks = flags & MSG_PEEK != 0;
    if status >= 0 && !peeks {
        socket::on_taken(socket);
    }
    let Some((config, slot)) = subject() else {
        return;
    };
    if status == -EAGAIN {
        socket::on_empty(config, slot, socket);
    }
    if peeks {
        return;
    }
    slot.enter();
    let bytes = if status > 0 { status as u64 } else { 0 };
    if let Some(connection) = connection(config, slot, socket, bytes, SERVED) {
        let _received = received(config, slot, connection, bytes);
    }
    slot.leave();
}

#[inline(never)]
fn received(config: &TargetConfig, slot: &mut Slot, connection: &mut Connection, bytes: u64) -> u32 {
    let waits = connection.first().is_some_and(|first| first.flags & PENDING_SENT != 0);
    if connection.mode == CLOSED || connection.mode == LOST && !waits {
        return 0;
    }
    let greenlet = label::current(config, slot);
    if let Some(greenlet) = greenlet {
        if greenlet.flags & GREENLET_RECEIVED == 0 {
            greenlet.flags |= GREENLET_RECEIVED;
            // It was made for that connection if that is the first thing that it does.
            if greenlet.flags & GREENLET_BORN != 0 && greenlet.switches_in == 1 {
                connection.own = greenlet.id;
            }
        }
        if bytes != 0 && greenlet.given.kind & KIND_ANSWERED != 0 {
            label::give(slot, greenlet, label::NO_REQUEST, time());
        }
    }
    if bytes == 0 {
        return 0;
    }
    // Where the end of an answer is not known it is over when the client says more.
    let unknown = connection.answers.gave_up() || connection.answers.ends_with_connection();
    if unknown && waits {
        let _finished = finish(slot.target, connection, 0);
        connection.answers.restart();
    }
    if connection.mode == LOST {
        return 0;
    }
    slot.cursor.begin(bytes);
    for _ in 0..MESSAGES {
        let Connection { requests, heard, .. } = connection;
        let event = connection::read(slot, requests, heard);
        if event == Event::Other as u32 {
            // Something else; or the head of a request, which is not told of.
            if connection.requests.flags & LINE != 0 {
                fault(slot, Fault::WireCut);
            }
            connection.mode = LOST;
        }
        if event == Event::Head as u32 {
            let _proved = proved(config, slot, connection);
            if connection.requests.body() as u32 == Event::Other as u32 {
                connection.mode = LOST;
            }
        }
        if slot.cursor.left == 0 || connection.mode == LOST {
            break;
        }
    }
    if slot.cursor.left != 0 && connection.mode != LOST {
        fault(slot, Fault::WireUnsure);
        connection.requests.give_up();
        connection.mode = LOST;
    }
    unread(slot);
    0
}

/// Counts the requests that were seen and can't be read. A socket is read without the GIL.
#[inline(always)]
fn unread(slot: &Slot) {
    if slot.cursor.unread != 0
        && let Some(totals) = maps::totals(slot.target)
        && let Some(counter) = totals.faults.get_mut(Fault::WireUnreadable as usize)
    {
        maps::add(counter, u64::from(slot.cursor.unread));
    }
}

/// A request has come.
#[inline(never)]
fn proved(config: &TargetConfig, slot: &mut Slot, connection: &mut Connection) -> u32 {
    let now = time();
    let id = [now, bpf_get_current_pid_tgid()];
    let label = label::of_wire(slot, id);
    let matched = connection.flags & UNMATCHED == 0;
    let alone = matched && connection.came == connection.answered;
    let mut pending = 0;
    if connection.requests.flags & IS_HEAD != 0 {
        pending |= PENDING_HEAD;
    }
    if connection.requests.flags & EXPECTS != 0 {
        pending |= PENDING_EXPECTS;
    }
    let mut reader = 0;
    let mut owned = false;
    if let Some(greenlet) = label::current(config, slot) {
        reader = greenlet.id;
        owned = owns(greenlet, connection, now, alone);
        if owned {
            // What it did until now was for the request before, or none.
            label::give(slot, greenlet, id, now);
            pending |= PENDING_OWNED;
        } else if greenlet.given.is_wire() {
            label::give(slot, greenlet, label::NO_REQUEST, now);
        }
    }
    slot.label = label;
    if !owned {
        fault(slot, if alone { Fault::WireUnowned } else { Fault::WireUnsure });
    }
    if connection.came.wrapping_sub(connection.answered) as usize >= PENDING {
        connection.flags |= UNMATCHED;
        connection.answered = connection.came;
    } else if matched {
        if let Some(next) = connection.pending.get_mut(connection.came as usize & (PENDING - 1)) {
            *next = Pending { id, reader, pimpl: slot.current, flags: pending };
        }
        connection.came = connection.came.wrapping_add(1);
    }
    let about = &mut slot.label_record.about;
    about.trace = connection.heard.trace;
    about.endpoint = connection.heard.endpoint;
    about.operation.width = 0;
    about.operation.length = 0;
    about.began_ms = 0;
    about.request = [0; 2];
    about.flags = connection.heard.flags | if owned { 0 } else { ABOUT_UNOWNED };
    if !label::send(slot, now) {
        fault(slot, Fault::RingFullLabel);
    }
    0
}

/// Whether a request that this greenlet read is its own.
#[inline(always)]
fn owns(greenlet: &mut Greenlet, connection: &Connection, now: u64, alone: bool) -> bool {
    let same = greenlet.connection == connection.seen_ns;
    if !same && greenlet.connection != 0 {
        greenlet.flags |= GREENLET_SEVERAL;
    }
    greenlet.connection = connection.seen_ns;
    if greenlet.reading != 0 && !same && greenlet.shared_ns == 0 {
        // It reads for several.
        greenlet.shared_ns = now;
    }
    greenlet.reading = now;
    if greenlet.shared_ns != 0 || greenlet.flags & GREENLET_MAIN != 0 || !alone {
        return false;
    }
    let several = greenlet.flags & GREENLET_SEVERAL != 0;
    let enough = if several { ENOUGH_OF_SEVERAL } else { 1 };
    connection.own == greenlet.id || greenlet.alone >= enough
}

/// `sock_send_length`: bytes were sent, or not.
#[inline(always)]
pub fn on_sent(ctx: &BtfTracePointContext) {
    let Some((config, slot)) = subject() else {
        return;
    };
    let socket: *mut c_void = ctx.arg(0);
    let status: i32 = ctx.arg(1);
    if status == -EAGAIN {
        socket::on_full(config, slot);
    }
    if status <= 0 {
        return;
    }
    slot.enter();
    // Who sends before there was anything to receive serves nobody there.
    if let Some(connection) = connection(config, slot, socket, 0, CLOSED) {
        let _sent = sent(config, slot, connection, status as u64);
    }
    slot.leave();
}

#[inline(never)]
fn sent(config: &TargetConfig, slot: &mut Slot, connection: &mut Connection, bytes: u64) -> u32 {
    if connection.mode == CLOSED || connection.flags & UNMATCHED != 0 {
        return 0;
    }
    if connection.requests.is_secure() {
        connection.requests.flags |= TURN;
        return 0;
    }
    slot.cursor.begin(bytes);
    if connection.came == connection.answered
        && !connection.answers.is_within()
        && slot.cursor.peek().is_none_or(|first| first & HTTP_1_MASK != HTTP_1)
    {
        // No answer, and none is awaited.
        connection.answers.give_up();
        return 0;
    }
    let sender = label::current(config, slot).map_or(0, |greenlet| greenlet.id);
    if let Some(first) = connection.first() {
        let _begun = answering(slot, first, sender);
    } else if connection.answers.gave_up() {
        // Perhaps the answer of which nothing is known yet, or what comes after it.
        connection.answers.restart();
    }
    for _ in 0..MESSAGES {
        let Connection { answers, heard, .. } = connection;
        let mut event = connection::read(slot, answers, heard);
        if event == Event::Head as u32 {
            event = answer_head(connection);
        }
        if event == Event::Over as u32 {
            let _over = over(slot, connection, sender);
        }
        if slot.cursor.left == 0 || connection.answers.gave_up() {
            break;
        }
    }
    if slot.cursor.left != 0 {
        connection.answers.give_up();
    }
    if connection.answers.gave_up()
        || connection.flags & UNIX != 0 && connection.answers.ends_with_connection()
    {
        // Where it ends will not be seen: it ends early.
        if let Some(first) = connection.first() {
            first.flags |= PENDING_EARLY;
            let _early = answered(slot.target, first, sender);
        }
    }
    0
}

/// Bytes of an answer are sent.
#[inline(never)]
fn answering(slot: &mut Slot, first: &mut Pending, sender: u64) -> u32 {
    first.flags |= PENDING_SENT;
    if first.reader != sender && first.flags & PENDING_SHARED == 0 {
        first.flags |= PENDING_SHARED;
        let key = GreenletKey { target: slot.target, pimpl: first.pimpl };
        if let Some(reader) = maps::greenlet(&key)
            && reader.id == first.reader
        {
            // Others answer for it. Each a word of its own: it may run on another thread now.
            if reader.shared_ns == 0 {
                reader.shared_ns = time();
            }
            if reader.given.id == first.id {
                reader.given.kind = 0;
            }
        }
    }
    0
}

/// The head of an answer was sent: what follows.
#[inline(always)]
fn answer_head(connection: &mut Connection) -> u32 {
    let first = connection.first().map_or(0, |first| first.flags);
    let status = connection.answers.status;
    if status == SWITCHING {
        // Another protocol begins.
        connection.mode = CLOSED;
        return connection.answers.no_body() as u32;
    }
    if (100..200).contains(&status) {
        // There will be another one.
        connection.answers.restart();
        return Event::None as u32;
    }
    let event = if connection.answers.has_no_body(first & PENDING_HEAD != 0) {
        connection.answers.no_body()
    } else {
        connection.answers.body()
    };
    event as u32
}

/// An answer is complete.
#[inline(never)]
fn over(slot: &mut Slot, connection: &mut Connection, sender: u64) -> u32 {
    let Some(first) = connection.first() else {
        if connection.mode == LOST {
            if connection.came == 0 {
                // Of a request that began before the recording, or before it was known to be one.
                fault(slot, Fault::WireUnsure);
            }
            // From here on it is known where requests begin.
            connection.requests.restart();
            connection.mode = SERVED;
        }
        return 0;
    };
    let expects = first.flags & PENDING_EXPECTS != 0;
    let _answered = answered(slot.target, first, sender);
    let _finished = finish(slot.target, connection, REQUEST_ANSWERED);
    if expects && connection.requests.awaits_body() && connection.mode == SERVED {
        // Perhaps there is none any more.
        fault(slot, Fault::WireUnsure);
        connection.mode = LOST;
    }
    if connection.mode == LOST && connection.came == connection.answered && !expects {
        connection.requests.restart();
        connection.mode = SERVED;
    }
    0
}

/// The label of a request ends.
#[inline(never)]
fn answered(target: u64, first: &mut Pending, sender: u64) -> u32 {
    let key = GreenletKey { target, pimpl: first.pimpl };
    let Some(reader) = maps::greenlet(&key) else {
        return 0;
    };
    if reader.id != first.reader || first.reader == 0 {
        return 0;
    }
    let [began, _] = first.id;
    if reader.lent != 0 {
        lent::answered(target, reader, first.id, time());
    }
    if reader.given.id == first.id {
        if first.reader == sender {
            reader.given.kind |= KIND_ANSWERED;
        } else {
            reader.given.kind = 0;
        }
    }
    if reader.reading == began {
        reader.reading = 0;
        if first.reader == sender && first.flags & PENDING_SHARED == 0 {
            reader.alone += 1;
        }
    }
    0
}

/// The request that is answered next is over.
#[inline(never)]
fn finish(target: u64, connection: &mut Connection, flags: u32) -> u32 {
    let status = connection.answers.status;
    let Some(first) = connection.first() else {
        return 0;
    };
    let shared = first.flags & PENDING_SHARED != 0;
    let partly = shared || first.flags & PENDING_EARLY != 0;
    let record = RequestRecord {
        head: RecordHead { kind: Kind::Request as u32, version: VERSION, target, time_ns: time() },
        id: first.id,
        shared: if shared { first.reader } else { 0 },
        status: if flags & REQUEST_ANSWERED != 0 { status } else { 0 },
        flags: flags | if partly { REQUEST_PARTLY } else { 0 },
    };
    connection.answered = connection.answered.wrapping_add(1);
    if !emit::send(&raw const record, size_of::<RequestRecord>() as u64, false)
        && let Some(totals) = maps::totals(target)
    {
        count(totals, Fault::RingFullRequest);
    }
    0
}

/// `inet_sock_set_state`: a connection's state changes.
#[inline(always)]
pub fn on_state(ctx: &BtfTracePointContext) {
    let socket: *mut c_void = ctx.arg(0);
    let state: i32 = ctx.arg(2);
    if !CLOSES.contains(&state) {
        return;
    }
    let Some(connection) = maps::connection(socket) else {
        return;
    };
    if connection.mode == NEW || connection.mode == CLOSED {
        return;
    }
    let Some(config) = maps::config(connection.target) else {
        return;
    };
    if connection.made_ns != config.made_ns {
        return;
    }
    // Nobody's doing, if the other side broke it: that comes in any thread.
    let mut closer = 0;
    if let Some((own, slot)) = subject()
        && own.made_ns == config.made_ns
        && let Some(greenlet) = label::current(own, slot)
    {
        closer = greenlet.id;
    }
    let whole = connection.answers.ends_with_connection();
    for _ in 0..PENDING {
        let target = connection.target;
        let Some(first) = connection.first() else {
            break;
        };
        let _ended = answered(target, first, closer);
        let _finished = finish(target, connection, if whole { REQUEST_ANSWERED } else { 0 });
    }
    connection.mode = CLOSED;
}

/// The thread is about to sleep in a system call, in a greenlet.
///
/// Drivers poll for an answer while they work on a request; who has an event loop waits for
/// many files.
#[inline(always)]
pub fn on_sleep(slot: &mut Slot, greenlet: &mut Greenlet, call: i64, now: u64) {
    let looping = is_epoll(call);
    if looping && greenlet.shared_ns == 0 {
        greenlet.shared_ns = now;
    }
    if greenlet.given.is_wire() && looping || greenlet.given.kind & KIND_ANSWERED != 0 {
        label::give(slot, greenlet, label::NO_REQUEST, now);
    }
}

/// Whether the system call with that number waits for the files of an epoll.
#[inline(always)]
pub fn is_epoll(call: i64) -> bool {
    EPOLL.contains(&call)
}

/// `epoll_wait`, `epoll_pwait`, `epoll_pwait2`.
#[cfg(bpf_target_arch = "x86_64")]
const EPOLL: [i64; 3] = [232, 281, 441];
#[cfg(bpf_target_arch = "aarch64")]
const EPOLL: [i64; 3] = [22, 22, 441];
