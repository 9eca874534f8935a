//! The bytes that come and go over a connection: where a request begins on it, where its answer
//! ends.
//!
//! One byte at a time, so that a head may come in pieces of any size; what is only to be
//! counted (a body) is skipped in one step. Nothing is a request before the empty line that
//! ends its head has come and every line before it was one of a head (RFC 9112).

mod head;
mod reader;
#[cfg(test)]
mod tests;

pub use reader::{Event, Reader};

use crate::label::Text;

/// Bytes of a head that are read: cookies alone may have 8 KiB.
pub const MAX_HEAD: u32 = 16 << 10;

/// [`Reader::flags`]: it reads answers.
pub const ANSWERS: u32 = 1;
/// [`Reader::flags`]: nothing but what may stand before a head has come yet.
pub const FIRST: u32 = 1 << 1;
/// [`Reader::flags`]: the head's first line was whole.
pub const LINE: u32 = 1 << 2;
/// [`Reader::flags`]: of HTTP/1.1, which wants a `Host`.
pub const WANTS_HOST: u32 = 1 << 3;
/// [`Reader::flags`]: it was there.
pub const HOST: u32 = 1 << 4;
/// [`Reader::flags`]: the answer has no body.
pub const IS_HEAD: u32 = 1 << 5;
/// [`Reader::flags`]: the client waits to be asked for the body (`Expect`).
pub const EXPECTS: u32 = 1 << 6;
/// [`Reader::flags`]: the body comes in chunks.
pub const CHUNKED: u32 = 1 << 7;
/// [`Reader::flags`]: it has a `Content-Length`.
pub const LENGTH: u32 = 1 << 8;
/// [`Reader::flags`]: of TLS, the keys are about to be used.
pub const CIPHER: u32 = 1 << 9;
/// [`Reader::flags`]: of TLS, the handshake is over.
pub const SECURE: u32 = 1 << 10;
/// [`Reader::flags`]: of TLS, what comes next is a request, not more of the one before.
pub const TURN: u32 = 1 << 11;
/// What is of one head only.
const OF_HEAD: u32 = LINE | WANTS_HOST | HOST | IS_HEAD | EXPECTS | CHUNKED | LENGTH;

/// [`crate::record::RequestRecord::flags`]: the answer's end was seen.
pub const REQUEST_ANSWERED: u32 = 1;
/// [`crate::record::RequestRecord::flags`]: not all that its label got is all that was done for it.
pub const REQUEST_PARTLY: u32 = 2;

/// What is kept of a request's head.
#[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Heard {
    /// The header's value.
    pub trace: Text,
    /// Method and path.
    pub endpoint: Text,
    /// [`crate::label::ABOUT_SW8`] or [`crate::label::ABOUT_TRACEPARENT`].
    pub flags: u64,
}
