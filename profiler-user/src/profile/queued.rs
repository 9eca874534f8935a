//! How much of a wait its greenlet was ready, and its hub busy with others.

use profiler_common::queue;

use super::Frame;

/// How much of a wait its greenlet was ready, between two bounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Queued {
    /// No less.
    pub least_ns: u64,
    /// No more.
    pub most_ns: u64,
}

impl Queued {
    /// Adds another wait.
    pub const fn add(&mut self, more: Self) {
        self.least_ns += more.least_ns;
        self.most_ns += more.most_ns;
    }
}

/// What waits until something comes to a socket, which the socket itself tells of: the function that
/// the greenlet stopped in, and the end of its file's name. gevent's compiled part has no frames.
const RECEIVES: [(&str, &str); 11] = [
    // https://github.com/gevent/gevent/blob/26.9.0/src/gevent/_socket3.py
    ("socket.recv", "gevent/_socket3.py"),
    ("socket.recv_into", "gevent/_socket3.py"),
    ("socket.recvfrom", "gevent/_socket3.py"),
    ("socket.recvfrom_into", "gevent/_socket3.py"),
    ("socket.recvmsg", "gevent/_socket3.py"),
    ("socket.recvmsg_into", "gevent/_socket3.py"),
    // https://github.com/gevent/gevent/blob/26.9.0/src/gevent/_socketcommon.py
    ("SocketMixin.recv", "gevent/_socketcommon.py"),
    ("SocketMixin.recv_into", "gevent/_socketcommon.py"),
    ("SocketMixin.recvfrom", "gevent/_socketcommon.py"),
    ("SocketMixin.recvfrom_into", "gevent/_socketcommon.py"),
    // https://github.com/gevent/gevent/blob/26.9.0/src/gevent/ssl.py
    ("SSLSocket.read", "gevent/ssl.py"),
];

/// What waits for other events of the kernel that the hub's poll reports.
///
/// Everything else may be made ready by another greenlet (a queue, an event, a result), at any
/// time since the hub last slept.
const POLLED: [(&str, &str); 11] = [
    ("socket.accept", "gevent/_socket3.py"),
    ("socket.sendto", "gevent/_socket3.py"),
    ("socket.sendmsg", "gevent/_socket3.py"),
    ("SocketMixin._accept", "gevent/_socketcommon.py"),
    ("SocketMixin.connect", "gevent/_socketcommon.py"),
    ("SocketMixin._internal_connect", "gevent/_socketcommon.py"),
    ("SocketMixin.send", "gevent/_socketcommon.py"),
    ("SocketMixin.sendto", "gevent/_socketcommon.py"),
    ("_send", "gevent/_socketcommon.py"),
    ("SSLSocket.write", "gevent/ssl.py"),
    ("SSLSocket.do_handshake", "gevent/ssl.py"),
];

/// A sleep waits for the kernel's clock, but for one of no length, which goes on after what other
/// greenlets made ready.
const SLEEP: (&str, &str) = ("sleep", "gevent/hub.py");

/// What is known of waits of `ns` in that stack, root first, by what the kernel part counted.
#[must_use]
pub fn queued(frames: &[Frame], ns: u64, counted: &queue::Queued) -> Queued {
    let is = |(function, file): &(&str, &str)| {
        frames.last().is_some_and(|leaf| {
            leaf.function.as_deref() == Some(function)
                && leaf.file.as_deref().is_some_and(|name| name.ends_with(file))
        })
    };
    let (least_ns, most_ns) = if RECEIVES.iter().any(is) {
        (counted.socket_least_ns, counted.socket_most_ns)
    } else if POLLED.iter().any(is) {
        (counted.least_ns, counted.most_ns)
    } else if is(&SLEEP) {
        (counted.least_ns, counted.any_most_ns)
    } else {
        (0, counted.any_most_ns)
    };
    // The sums are read one after the other.
    Queued { least_ns: least_ns.min(ns), most_ns: most_ns.min(ns) }
}
