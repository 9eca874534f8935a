//! One direction of a connection.

use super::{
    ANSWERS, CHUNKED, CIPHER, FIRST, Heard, IS_HEAD, LENGTH, MAX_HEAD, OF_HEAD, SECURE, TURN,
    head::{self, EMPTY},
};

/// What a byte was the last of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Event {
    /// Of nothing.
    None = 0,
    /// A head, which is proved: [`Reader::body`] or [`Reader::no_body`] is to be called.
    Head = 1,
    /// A message with a body.
    Over = 2,
    /// What is a request and can't be read: over TLS or HTTP/2.
    Unread = 3,
    /// It is none of these: nothing more is looked at.
    Other = 4,
}

/// Where the reading of one direction is.
#[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Reader {
    /// `IN_*`.
    pub(super) state: u32,
    /// Characters of what is read.
    pub(super) at: u32,
    /// Bytes of the head.
    pub(super) head: u32,
    /// `ANSWERS` and the others.
    pub flags: u32,
    /// Bytes of which only the number counts.
    pub skip: u64,
    /// `Content-Length`, or that of a chunk, a record or a frame.
    pub(super) length: u64,
    /// Of a method's or a header's name.
    pub(super) hash: u64,
    /// Of an answer.
    pub status: u32,
    /// Fields of `sw8` before the one that is read; the kind of a record or a frame.
    pub(super) fields: u32,
}

pub(super) const IN_START: u32 = 0;
/// Of a head: see [`head`].
pub(super) const HEADS: u32 = 32;
const IN_BODY: u32 = 32;
const IN_CHUNK_SIZE: u32 = 33;
const IN_CHUNK_REST: u32 = 34;
const IN_CHUNK_BEGIN: u32 = 35;
const IN_CHUNK: u32 = 36;
const IN_CHUNK_END: u32 = 37;
const IN_CHUNK_LINE: u32 = 38;
const IN_TRAILER: u32 = 39;
const IN_TRAILER_END: u32 = 40;
/// The body ends with the connection.
const IN_REST: u32 = 41;
pub(super) const IN_PROXY: u32 = 42;
pub(super) const IN_PROXY_2: u32 = 43;
const IN_PROXY_2_REST: u32 = 44;
pub(super) const IN_RECORD: u32 = 45;
const IN_RECORD_REST: u32 = 46;
pub(super) const IN_PREFACE: u32 = 47;
const IN_FRAME: u32 = 48;
const IN_FRAME_REST: u32 = 49;
const IN_OTHER: u32 = 50;

/// No body, chunk or header is as long.
const MOST_LENGTH: u64 = 1 << 53;
/// The longest line of version 1.
/// <https://github.com/haproxy/haproxy/blob/v3.0.0/doc/proxy-protocol.txt>
const PROXY_BYTES: u32 = 107;
/// Its second version begins with `\r\n\r\n\0\r\nQUIT\n`.
const PROXY_2: [u64; 2] = [u64::from_le_bytes(*b"\r\n\r\n\0\r\nQ"), u64::from_le_bytes(*b"UIT\n\0\0\0\0")];
/// Before the addresses.
const PROXY_2_HEAD: u32 = 16;
const PROXY_2_SIGNATURE: u32 = 12;
/// `PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n` after its method.
/// <https://www.rfc-editor.org/rfc/rfc9113#section-3.4>
const PREFACE_REST: u64 = 20;
/// A frame's head, and the kind that begins a request.
/// <https://www.rfc-editor.org/rfc/rfc9113#section-4.1>
const FRAME_HEAD: u32 = 9;
const FRAME_HEADERS: u32 = 1;
/// A record's head, and its kinds.
/// <https://www.rfc-editor.org/rfc/rfc8446#section-5.1>
const RECORD_HEAD: u32 = 5;
const CHANGE_CIPHER: u32 = 20;
pub(super) const HANDSHAKE: u32 = 22;
const APPLICATION: u32 = 23;

impl Reader {
    /// The requests of a connection of which nothing came yet.
    #[inline(always)]
    #[must_use]
    pub const fn requests() -> Self {
        Self {
            state: IN_START,
            at: 0,
            head: 0,
            flags: FIRST,
            skip: 0,
            length: 0,
            hash: EMPTY,
            status: 0,
            fields: 0,
        }
    }

    /// Its answers.
    #[inline(always)]
    #[must_use]
    pub const fn answers() -> Self {
        Self { flags: ANSWERS, ..Self::requests() }
    }

    /// Goes on with the next message.
    #[inline(always)]
    pub fn restart(&mut self) {
        self.state = IN_START;
        self.at = 0;
        self.head = 0;
        self.skip = 0;
        self.length = 0;
        self.hash = EMPTY;
        self.flags &= !OF_HEAD;
    }

    /// Nothing more is looked at.
    #[inline(always)]
    pub fn give_up(&mut self) {
        self.state = IN_OTHER;
        self.skip = 0;
    }

    /// Whether it is in the middle of a message.
    #[inline(always)]
    #[must_use]
    pub const fn is_within(&self) -> bool {
        self.state != IN_START && self.state != IN_OTHER
    }

    /// Nothing more is looked at, until [`Self::restart`].
    #[inline(always)]
    #[must_use]
    pub const fn gave_up(&self) -> bool {
        self.state == IN_OTHER
    }

    /// A message is about to begin.
    #[inline(always)]
    #[must_use]
    pub const fn is_between(&self) -> bool {
        self.state == IN_START
    }

    /// In a body that ends with the connection.
    #[inline(always)]
    #[must_use]
    pub const fn ends_with_connection(&self) -> bool {
        self.state == IN_REST
    }

    /// In a body of which nothing has come yet.
    #[inline(always)]
    #[must_use]
    pub const fn awaits_body(&self) -> bool {
        self.state == IN_BODY && self.skip == self.length
            || self.state == IN_CHUNK_SIZE && self.at == 0 && self.fields == 0
    }

    /// Of TLS.
    #[inline(always)]
    #[must_use]
    pub const fn is_secure(&self) -> bool {
        self.state == IN_RECORD || self.state == IN_RECORD_REST
    }

    /// After [`Event::Head`]: the body follows that the head told of.
    #[inline(always)]
    pub fn body(&mut self) -> Event {
        if self.flags & CHUNKED != 0 {
            self.state = IN_CHUNK_SIZE;
            self.at = 0;
            self.fields = 0;
            self.length = 0;
        } else if self.length > MOST_LENGTH {
            self.give_up();
            return Event::Other;
        } else if self.length != 0 {
            self.state = IN_BODY;
            self.skip = self.length;
        } else if self.flags & (ANSWERS | LENGTH) == ANSWERS {
            self.state = IN_REST;
        } else {
            return self.no_body();
        }
        Event::None
    }

    /// After [`Event::Head`]: no body follows.
    #[inline(always)]
    pub fn no_body(&mut self) -> Event {
        self.restart();
        Event::Over
    }

    /// So many of the bytes that are skipped have come.
    #[inline(always)]
    pub fn skipped(&mut self, bytes: u64) -> Event {
        self.skip = self.skip.saturating_sub(bytes);
        if self.skip != 0 {
            return Event::None;
        }
        match self.state {
            IN_BODY => return self.no_body(),
            IN_CHUNK => self.state = IN_CHUNK_END,
            IN_RECORD_REST => self.state = IN_RECORD,
            IN_PREFACE | IN_FRAME_REST => self.state = IN_FRAME,
            IN_PROXY_2_REST => self.restart(),
            _ => {}
        }
        self.at = 0;
        self.length = 0;
        Event::None
    }

    #[inline(always)]
    fn skip(&mut self, state: u32, bytes: u64) {
        self.state = state;
        self.skip = bytes;
        if bytes == 0 {
            let _nothing = self.skipped(0);
        }
    }

    /// The next byte, while there is nothing to be skipped.
    #[inline(always)]
    pub fn step(&mut self, byte: u8, heard: &mut Heard) -> Event {
        let event = if self.state < HEADS {
            self.head = self.head.wrapping_add(1);
            if self.head > MAX_HEAD { Event::Other } else { head::step(self, byte, heard) }
        } else {
            self.step_body(byte)
        };
        if event as u32 == Event::Other as u32 {
            self.give_up();
        }
        event
    }

    /// Takes eight bytes at once if they are within a value that nobody asks for; else none.
    #[inline(always)]
    pub fn plain(&mut self, word: u64) -> bool {
        if !head::is_plain(self.state, word) {
            return false;
        }
        self.head = self.head.wrapping_add(8);
        true
    }

    /// Whether such a word may come.
    #[inline(always)]
    #[must_use]
    pub const fn is_plain(&self) -> bool {
        head::is_value(self.state)
    }

    #[inline(always)]
    fn step_body(&mut self, byte: u8) -> Event {
        let is = |wanted: u8| byte == wanted;
        match self.state {
            IN_CHUNK_SIZE => return self.size(byte),
            IN_CHUNK_REST => {
                if is(b'\r') {
                    self.state = IN_CHUNK_BEGIN;
                }
            }
            IN_CHUNK_BEGIN if is(b'\n') => {
                self.at = 0;
                if self.length == 0 {
                    self.state = IN_TRAILER;
                } else {
                    self.fields = 1;
                    self.skip(IN_CHUNK, self.length);
                }
            }
            IN_CHUNK_END if is(b'\r') => self.state = IN_CHUNK_LINE,
            IN_CHUNK_LINE if is(b'\n') => {
                self.state = IN_CHUNK_SIZE;
                self.at = 0;
                self.length = 0;
            }
            IN_TRAILER if self.at == 0 && is(b'\r') => self.state = IN_TRAILER_END,
            IN_TRAILER => self.at = u32::from(!is(b'\n')),
            IN_TRAILER_END if is(b'\n') => return self.no_body(),
            IN_REST => {}
            IN_PROXY => {
                self.at = self.at.wrapping_add(1);
                if is(b'\n') {
                    self.restart();
                } else if self.at > PROXY_BYTES {
                    return Event::Other;
                }
            }
            IN_PROXY_2 => return self.proxy_2(byte),
            IN_RECORD => return self.record(byte),
            IN_FRAME => return self.frame(byte),
            _ => return Event::Other,
        }
        Event::None
    }

    #[inline(always)]
    fn size(&mut self, byte: u8) -> Event {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            b'A'..=b'F' => byte - b'A' + 10,
            b'\r' if self.at != 0 => {
                self.state = IN_CHUNK_BEGIN;
                return Event::None;
            }
            b';' | b' ' | b'\t' if self.at != 0 => {
                self.state = IN_CHUNK_REST;
                return Event::None;
            }
            _ => return Event::Other,
        };
        self.at = self.at.wrapping_add(1);
        self.length = self.length << 4 | u64::from(digit);
        if self.length > MOST_LENGTH { Event::Other } else { Event::None }
    }

    #[inline(always)]
    fn proxy_2(&mut self, byte: u8) -> Event {
        let [first, second] = PROXY_2;
        let word = if self.at < 8 { first } else { second };
        if self.at < PROXY_2_SIGNATURE {
            if word >> ((self.at & 7) * 8) & 0xff != u64::from(byte) {
                return Event::Other;
            }
        } else if self.at >= PROXY_2_HEAD - 2 {
            self.length = self.length << 8 | u64::from(byte);
        }
        self.at = self.at.wrapping_add(1);
        if self.at == PROXY_2_HEAD {
            self.skip(IN_PROXY_2_REST, self.length);
        }
        Event::None
    }

    #[inline(always)]
    fn record(&mut self, byte: u8) -> Event {
        match self.at {
            0 => self.fields = byte.into(),
            1 if byte != 3 => return Event::Other,
            1 | 2 => {}
            _ => self.length = self.length << 8 | u64::from(byte),
        }
        self.at = self.at.wrapping_add(1);
        if self.at < RECORD_HEAD {
            return Event::None;
        }
        self.skip(IN_RECORD_REST, self.length);
        match self.fields {
            CHANGE_CIPHER => self.flags |= CIPHER,
            // The last one of TLS 1.2.
            HANDSHAKE if self.flags & CIPHER != 0 => self.flags |= SECURE | TURN,
            HANDSHAKE => {}
            // The last one of TLS 1.3 is told as data.
            APPLICATION if self.flags & SECURE == 0 => self.flags |= SECURE | TURN,
            APPLICATION if self.flags & TURN != 0 => {
                self.flags &= !TURN;
                return Event::Unread;
            }
            APPLICATION => {}
            // An alert is the end.
            _ => {}
        }
        Event::None
    }

    #[inline(always)]
    fn frame(&mut self, byte: u8) -> Event {
        if self.at < 3 {
            self.length = self.length << 8 | u64::from(byte);
        } else if self.at == 3 {
            self.fields = byte.into();
        }
        self.at = self.at.wrapping_add(1);
        if self.at < FRAME_HEAD {
            return Event::None;
        }
        let headers = self.fields == FRAME_HEADERS;
        self.skip(IN_FRAME_REST, self.length);
        if headers { Event::Unread } else { Event::None }
    }

    /// HTTP/2 begins.
    #[inline(always)]
    pub(super) fn preface(&mut self) {
        self.skip(IN_PREFACE, PREFACE_REST);
    }

    /// Whether the answer has none, whatever its head says.
    #[inline(always)]
    #[must_use]
    pub const fn has_no_body(&self, to_head: bool) -> bool {
        to_head || self.flags & IS_HEAD != 0 || matches!(self.status, 100..=199 | 204 | 304)
    }
}
