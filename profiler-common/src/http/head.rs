//! The head of a message, byte by byte.

use super::{
    ANSWERS, CHUNKED, EXPECTS, Event, FIRST, HOST, Heard, IS_HEAD, LENGTH, LINE, Reader, WANTS_HOST,
    reader::{HANDSHAKE, IN_PROXY, IN_PROXY_2, IN_RECORD, IN_START},
};
use crate::label::{ABOUT_SW8, ABOUT_TRACEPARENT, TEXT_WORDS, Text};

const IN_METHOD: u32 = 1;
const IN_TARGET: u32 = 2;
const IN_AUTHORITY: u32 = 3;
const IN_PATH: u32 = 4;
const IN_QUERY: u32 = 5;
const IN_VERSION: u32 = 6;
const IN_LINE_END: u32 = 7;
const IN_LINE: u32 = 8;
const IN_NAME: u32 = 9;
const IN_VALUE: u32 = 10;
const IN_SW8: u32 = 11;
const IN_TRACEPARENT: u32 = 12;
const IN_LENGTH: u32 = 13;
const IN_VALUE_END: u32 = 14;
const IN_END: u32 = 15;
const IN_STATUS: u32 = 16;
const IN_REASON: u32 = 17;

/// What follows the target, and what an answer begins with.
const HTTP_1: u64 = u64::from_le_bytes(*b"HTTP/1.\0");
const HTTP_1_LENGTH: u32 = 7;
/// Empty lines before a request are none of its (RFC 9112, 2.2): characters of them.
const MOST_EMPTY: u32 = 8;
/// Characters of a method.
const MOST_METHOD: u32 = 32;

/// The hash of a name: FNV-1a of its characters as small letters.
pub(super) const EMPTY: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0100_0000_01b3;

const fn hash_of(name: &[u8]) -> u64 {
    let mut hash = EMPTY;
    let mut rest = name;
    while let [byte, more @ ..] = rest {
        hash = more_hash(hash, *byte);
        rest = more;
    }
    hash
}

#[inline(always)]
const fn more_hash(hash: u64, byte: u8) -> u64 {
    (hash ^ byte.to_ascii_lowercase() as u64).wrapping_mul(PRIME)
}

const HEAD: u64 = hash_of(b"head");
const PROXY: u64 = hash_of(b"proxy");
const PRI: u64 = hash_of(b"pri");
const NAME_HOST: u64 = hash_of(b"host");
const NAME_SW8: u64 = hash_of(b"sw8");
const NAME_TRACEPARENT: u64 = hash_of(b"traceparent");
const NAME_LENGTH: u64 = hash_of(b"content-length");
const NAME_CODING: u64 = hash_of(b"transfer-encoding");
const NAME_EXPECT: u64 = hash_of(b"expect");

/// The characters of a token, in two words by their numbers.
/// <https://www.rfc-editor.org/rfc/rfc9110#section-5.6.2>
const TOKEN: [u64; 2] = {
    let mut words = [0; 2];
    let mut byte = 0;
    while byte < 128_u8 {
        if matches!(
            byte,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
        ) || byte.is_ascii_alphanumeric()
        {
            let [low, high] = &mut words;
            *(if byte < 64 { low } else { high }) |= 1 << (byte & 63);
        }
        byte += 1;
    }
    words
};

#[inline(always)]
fn is_token(byte: u8) -> bool {
    let [low, high] = TOKEN;
    byte < 128 && (if byte < 64 { low } else { high }) >> (byte & 63) & 1 != 0
}

/// No part of a line: a control character.
#[inline(always)]
fn is_control(byte: u8) -> bool {
    byte < b' ' && byte != b'\t' || byte == 0x7f
}

#[inline(always)]
pub(super) const fn is_value(state: u32) -> bool {
    state == IN_VALUE
}

/// Whether eight bytes are all a value's, and none is a control character: each byte's highest
/// bit tells.
#[inline(always)]
pub(super) const fn is_plain(state: u32, word: u64) -> bool {
    const ONES: u64 = u64::MAX / 0xff;
    const HIGHS: u64 = ONES << 7;
    let below_space = word.wrapping_sub(ONES * 0x20) & !word;
    let deleted = word ^ (ONES * 0x7f);
    let is_deleted = deleted.wrapping_sub(ONES) & !deleted;
    is_value(state) && (below_space | is_deleted) & HIGHS == 0
}

#[inline(always)]
pub(super) fn step(reader: &mut Reader, byte: u8, heard: &mut Heard) -> Event {
    match reader.state {
        IN_START => return start(reader, byte, heard),
        IN_METHOD => return method(reader, byte, heard),
        IN_TARGET => {
            if byte == b'/' || byte == b'*' {
                reader.state = IN_PATH;
                push(&mut heard.endpoint, byte);
            } else if byte.is_ascii_alphabetic() {
                // Proxies get a whole address, which may have a password in it.
                reader.state = IN_AUTHORITY;
                reader.at = 0;
            } else {
                return Event::Other;
            }
        }
        IN_AUTHORITY => return authority(reader, byte, heard),
        IN_PATH if byte == b'?' => reader.state = IN_QUERY,
        IN_PATH | IN_QUERY if byte == b' ' => {
            reader.state = IN_VERSION;
            reader.at = 0;
        }
        IN_PATH | IN_QUERY if byte <= b' ' || byte == 0x7f => return Event::Other,
        IN_PATH => push(&mut heard.endpoint, byte),
        IN_QUERY => {}
        IN_VERSION => return version(reader, byte),
        IN_STATUS => return status(reader, byte),
        IN_REASON if byte == b'\r' => reader.state = IN_LINE,
        IN_REASON if is_control(byte) => return Event::Other,
        IN_REASON => {}
        IN_LINE_END if byte == b'\r' => reader.state = IN_LINE,
        IN_LINE | IN_VALUE_END if byte == b'\n' => {
            reader.flags |= LINE;
            reader.state = IN_NAME;
            reader.at = 0;
            reader.hash = EMPTY;
        }
        IN_NAME => return name(reader, byte, heard),
        IN_END if byte == b'\n' => {
            if reader.flags & (WANTS_HOST | HOST) == WANTS_HOST {
                return Event::Other;
            }
            return Event::Head;
        }
        IN_VALUE..=IN_LENGTH => return value(reader, byte, heard),
        _ => return Event::Other,
    }
    Event::None
}

#[inline(always)]
fn start(reader: &mut Reader, byte: u8, heard: &mut Heard) -> Event {
    if reader.flags & ANSWERS != 0 {
        reader.state = IN_VERSION;
        reader.at = 0;
        reader.status = 0;
        return version(reader, byte);
    }
    let first = reader.flags & FIRST != 0;
    if byte == b'\r' || byte == b'\n' {
        reader.at = reader.at.wrapping_add(1);
        return if reader.at > MOST_EMPTY { Event::Other } else { Event::None };
    }
    if first && byte == 0 && reader.at == 4 {
        reader.state = IN_PROXY_2;
        reader.at = 5;
        return Event::None;
    }
    if first && u32::from(byte) == HANDSHAKE && reader.at == 0 {
        reader.flags &= !FIRST;
        reader.state = IN_RECORD;
        reader.fields = HANDSHAKE;
        reader.at = 1;
        return Event::None;
    }
    clear(&mut heard.trace);
    clear(&mut heard.endpoint);
    heard.flags = 0;
    reader.state = IN_METHOD;
    reader.at = 0;
    method(reader, byte, heard)
}

#[inline(always)]
fn method(reader: &mut Reader, byte: u8, heard: &mut Heard) -> Event {
    if is_token(byte) {
        reader.at = reader.at.wrapping_add(1);
        reader.hash = more_hash(reader.hash, byte);
        push(&mut heard.endpoint, byte);
        return if reader.at > MOST_METHOD { Event::Other } else { Event::None };
    }
    if byte != b' ' || reader.at == 0 {
        return Event::Other;
    }
    push(&mut heard.endpoint, byte);
    reader.state = IN_TARGET;
    let first = reader.flags & FIRST != 0;
    reader.flags &= !FIRST;
    match reader.hash {
        HEAD => reader.flags |= IS_HEAD,
        PROXY if first => {
            // What comes after it is first again: TLS as well.
            reader.flags |= FIRST;
            reader.state = IN_PROXY;
        }
        PRI if first => reader.preface(),
        _ => {}
    }
    Event::None
}

#[inline(always)]
fn authority(reader: &mut Reader, byte: u8, heard: &mut Heard) -> Event {
    match byte {
        b'/' => {
            reader.at = reader.at.wrapping_add(1);
            if reader.at == 3 {
                push(&mut heard.endpoint, byte);
                reader.state = IN_PATH;
            }
        }
        b' ' | b'?' if reader.at == 2 => {
            push(&mut heard.endpoint, b'/');
            reader.at = 0;
            reader.state = if byte == b' ' { IN_VERSION } else { IN_QUERY };
        }
        _ if byte <= b' ' || byte == 0x7f => return Event::Other,
        _ => {}
    }
    Event::None
}

#[inline(always)]
fn version(reader: &mut Reader, byte: u8) -> Event {
    let at = reader.at;
    reader.at = at.wrapping_add(1);
    if at < HTTP_1_LENGTH {
        let same = HTTP_1 >> ((at & 7) * 8) & 0xff == u64::from(byte);
        return if same { Event::None } else { Event::Other };
    }
    if reader.flags & ANSWERS != 0 {
        if at == HTTP_1_LENGTH && byte.is_ascii_digit() {
            return Event::None;
        }
        reader.state = IN_STATUS;
        reader.at = 0;
        return if byte == b' ' { Event::None } else { Event::Other };
    }
    if !byte.is_ascii_digit() {
        return Event::Other;
    }
    if byte != b'0' {
        reader.flags |= WANTS_HOST;
    }
    reader.flags |= LINE;
    reader.state = IN_LINE_END;
    Event::None
}

#[inline(always)]
fn status(reader: &mut Reader, byte: u8) -> Event {
    if reader.at < 3 {
        reader.at = reader.at.wrapping_add(1);
        reader.status = reader.status.wrapping_mul(10).wrapping_add(u32::from(byte.wrapping_sub(b'0')));
        return if byte.is_ascii_digit() { Event::None } else { Event::Other };
    }
    reader.state = if byte == b'\r' { IN_LINE } else { IN_REASON };
    if byte == b'\r' || byte == b' ' { Event::None } else { Event::Other }
}

#[inline(always)]
fn name(reader: &mut Reader, byte: u8, heard: &mut Heard) -> Event {
    if is_token(byte) {
        reader.at = reader.at.wrapping_add(1);
        reader.hash = more_hash(reader.hash, byte);
        return Event::None;
    }
    if reader.at == 0 && byte == b'\r' {
        reader.state = IN_END;
        return Event::None;
    }
    if reader.at == 0 || byte != b':' {
        return Event::Other;
    }
    reader.state = IN_VALUE;
    reader.fields = 0;
    match reader.hash {
        NAME_HOST => reader.flags |= HOST,
        NAME_CODING => reader.flags |= CHUNKED,
        NAME_EXPECT => reader.flags |= EXPECTS,
        NAME_LENGTH => {
            reader.flags |= LENGTH;
            reader.length = 0;
            reader.state = IN_LENGTH;
        }
        NAME_SW8 => {
            heard.flags = ABOUT_SW8;
            clear(&mut heard.trace);
            reader.state = IN_SW8;
        }
        NAME_TRACEPARENT if heard.flags & ABOUT_SW8 == 0 => {
            heard.flags = ABOUT_TRACEPARENT;
            clear(&mut heard.trace);
            reader.state = IN_TRACEPARENT;
        }
        _ => {}
    }
    Event::None
}

#[inline(always)]
fn value(reader: &mut Reader, byte: u8, heard: &mut Heard) -> Event {
    if byte == b'\r' {
        reader.state = IN_VALUE_END;
        return Event::None;
    }
    if is_control(byte) {
        return Event::Other;
    }
    match reader.state {
        // 1-TRACE-SEGMENT-..., the trace as base64.
        IN_SW8 if byte == b'-' => {
            reader.fields = reader.fields.wrapping_add(1);
            if reader.fields == 2 {
                reader.state = IN_VALUE;
            }
        }
        IN_SW8 if reader.fields == 1 => push(&mut heard.trace, byte),
        IN_TRACEPARENT if byte > b' ' => push(&mut heard.trace, byte),
        IN_LENGTH => {
            let digit = byte.wrapping_sub(b'0');
            if byte.is_ascii_digit() {
                let more = reader.length.wrapping_mul(10).wrapping_add(digit.into());
                reader.length = if reader.length > u64::MAX / 16 { u64::MAX } else { more };
            } else if byte != b' ' && byte != b'\t' {
                return Event::Other;
            }
        }
        _ => {}
    }
    Event::None
}

#[inline(always)]
fn clear(text: &mut Text) {
    text.length = 0;
    text.width = 0;
}

/// Adds a character; what has no room is counted only.
#[inline(always)]
fn push(text: &mut Text, byte: u8) {
    let at = text.length;
    text.length = at.wrapping_add(1);
    text.width = 1;
    let shift = (at & 7) * 8;
    if let Some(word) = text.words.get_mut(at as usize >> 3)
        && (at as usize) < TEXT_WORDS * 8
    {
        let kept = if shift == 0 { 0 } else { *word & ((1 << shift) - 1) };
        *word = kept | u64::from(byte) << shift;
    }
}
