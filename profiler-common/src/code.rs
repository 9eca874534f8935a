//! Code objects that come and go: which addresses were freed, and what a code object shows.
//!
//! A stack's key is made of code addresses, and an address says nothing once its code object
//! was freed. A probe tells of each that is. From then on the frames of whatever lies there are
//! known by what they show, their *text*: the names, the first line and the table of lines. So
//! a rule that is compiled for each job is one stack whatever address it gets, and an address
//! that becomes another rule's is another stack from its first instruction on. No frame can
//! hold a code object that is freed: what was counted before is the former one's.

use crate::{
    address::Addr,
    limits::{FREED_WORDS, WINDOW_SLACK_WORDS, WINDOW_WORDS},
    memory::Memory,
};

/// Set in what stands for a code's address where its text does: no address has it.
pub const BY_TEXT: u64 = 1 << 63;
/// Stands for a text that could not be read, or is longer than there is room for.
pub const NO_TEXT: u64 = BY_TEXT;
/// Stands for every text once a target has more stacks with texts than
/// [`crate::limits::MAX_TEXT_STACKS`].
pub const TEXTS_FULL: u64 = BY_TEXT | 1;

/// Where an object's type lies.
/// <https://github.com/python/cpython/blob/v3.13.0/Include/object.h>
const TYPE_AT: u16 = 8;
/// Words read of a code object from there on: all that is wanted, on every version.
const CODE_WORDS: usize = 24;
/// Words of a string before its text: the same.
const STRING_WORDS: usize = 5;
/// Words of a bytes object before its content.
const BYTES_WORDS: usize = 4;

/// Words of a text's record before the texts.
pub const TEXT_HEAD_WORDS: usize = 16;
/// Words of a qualified name; a longer one is no text.
pub const NAME_WORDS: usize = 32;
/// Words of a file's name; a longer one is no text.
pub const FILE_WORDS: usize = 64;
/// Words of a table of lines. Of a longer one the rest is left out: what lies there has no line.
pub const LINES_WORDS: usize = 256;
/// Words of a text's record before the table of lines.
pub const TEXT_FIXED_WORDS: usize = TEXT_HEAD_WORDS + NAME_WORDS + FILE_WORDS;

/// The places in the head of a text's record, in words. Before them stands a
/// [`crate::record::RecordHead`].
pub mod place {
    /// What stands for the code, by whoever sends it: its address, or its text's hash with
    /// [`super::BY_TEXT`].
    pub const CODE: usize = 3;
    /// `co_firstlineno`, and above it `_co_firsttraceable`.
    pub const LINES: usize = 4;
    /// Of the qualified name: its bytes, and above them the bytes of a character.
    pub const NAME: usize = 5;
    /// The same of the file's name.
    pub const FILE: usize = 6;
    /// The bytes of the table of lines, of which the first are there.
    pub const TABLE: usize = 7;
    /// Scratch: the hash so far.
    pub(super) const HASH: usize = 8;
    /// Scratch: the word that is hashed next.
    pub(super) const AT: usize = 9;
    /// Scratch: the bytes from there on that are to be hashed.
    pub(super) const LEFT: usize = 10;
}

const _: () = assert!(TEXT_FIXED_WORDS + LINES_WORDS + 64 <= WINDOW_WORDS);

/// The room that a text is read into: a walk's window.
pub type Room = [u64; WINDOW_WORDS + WINDOW_SLACK_WORDS];

/// Where the texts lie in CPython's objects.
#[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct TextLayout {
    /// `PyCode_Type`.
    pub code_type: Addr,
    /// `PyCodeObject.co_firstlineno` (i32).
    pub code_firstlineno: u32,
    /// `PyCodeObject._co_firsttraceable` (i32).
    pub code_firsttraceable: u32,
    /// `PyCodeObject.co_filename`; `co_name`, `co_qualname`, `co_linetable` follow it.
    pub code_filename: u32,
    /// `PyASCIIObject.length`.
    pub str_length: u32,
    /// `PyASCIIObject.state`.
    pub str_state: u32,
    /// The lowest bit of `state.kind`.
    pub str_kind_bit: u32,
    /// How many bits `state.kind` has.
    pub str_kind_bits: u32,
    /// The bit `state.compact`.
    pub str_compact_bit: u32,
    /// The bit `state.ascii`.
    pub str_ascii_bit: u32,
    /// Where the text of an ASCII string begins.
    pub str_ascii_data: u32,
    /// Where other compact text begins.
    pub str_compact_data: u32,
    /// `PyVarObject.ob_size`.
    pub object_size: u32,
    /// `PyBytesObject.ob_sval`.
    pub bytes_data: u32,
    /// None.
    pub padding: u32,
}

/// What is known of a target's code objects by their addresses.
///
/// Sets of bits, of which an address has one: that another address has the same costs a
/// reading of a text, and nothing else.
#[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Codes {
    /// A code object was freed there.
    pub freed: [u64; FREED_WORDS],
    /// The text of what lies there first was sent.
    pub told: [u64; FREED_WORDS],
    /// Stacks with texts in their keys.
    pub text_stacks: u64,
    /// Code objects that were freed.
    pub deaths: u64,
}

impl Codes {
    /// The word and the bit of an address.
    #[inline(always)]
    const fn bit(code: Addr) -> (usize, u64) {
        let hash = code.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        (hash as usize & (FREED_WORDS - 1), 1 << (hash >> 26 & 63))
    }

    /// Whether a code object was freed there.
    #[inline(always)]
    #[must_use]
    pub fn is_freed(&self, code: Addr) -> bool {
        let (word, bit) = Self::bit(code);
        self.freed.get(word).is_some_and(|bits| bits & bit != 0)
    }

    /// The code object there is freed.
    #[inline(always)]
    pub fn free(&mut self, code: Addr) {
        let (word, bit) = Self::bit(code);
        if let Some(bits) = self.freed.get_mut(word) {
            *bits |= bit;
        }
        self.deaths = self.deaths.wrapping_add(1);
    }

    /// Whether the text of what lies there first was sent.
    #[inline(always)]
    #[must_use]
    pub fn is_told(&self, code: Addr) -> bool {
        let (word, bit) = Self::bit(code);
        self.told.get(word).is_some_and(|bits| bits & bit != 0)
    }

    /// It was.
    #[inline(always)]
    pub fn tell(&mut self, code: Addr) {
        let (word, bit) = Self::bit(code);
        if let Some(bits) = self.told.get_mut(word) {
            *bits |= bit;
        }
    }
}

/// Reads the text of a code object into `room`, as its record has it, and gives what stands
/// for it: a hash of all that is read, with [`BY_TEXT`]; or [`NO_TEXT`].
///
/// In steps that are functions of their own, for in the kernel the functions of a chain of calls
/// share 512 bytes of stack. What one leaves for the next lies in the room.
#[inline(always)]
pub fn text<M: Memory>(texts: &TextLayout, code: Addr, room: &mut Room, memory: &mut M) -> u64 {
    if read_code(texts, code, room, memory)
        && read_name(texts, room, memory)
        && read_file(texts, room, memory)
    {
        read_table(texts, room, memory)
    } else {
        NO_TEXT
    }
}

/// The parts of a room.
struct Parts<'r> {
    record: &'r mut [u64; TEXT_HEAD_WORDS],
    name: &'r mut [u64; NAME_WORDS],
    file: &'r mut [u64; FILE_WORDS],
    table: &'r mut [u64; LINES_WORDS],
    code: &'r mut [u64; 32],
    words: &'r mut [u64; 32],
}

#[inline(always)]
fn parts(room: &mut Room) -> Option<Parts<'_>> {
    let (record, rest) = room.split_first_chunk_mut()?;
    let (name, rest) = rest.split_first_chunk_mut()?;
    let (file, rest) = rest.split_first_chunk_mut()?;
    let (table, rest) = rest.split_first_chunk_mut()?;
    let (code, rest) = rest.split_first_chunk_mut()?;
    Some(Parts { record, name, file, table, code, words: rest.first_chunk_mut()? })
}

#[inline(never)]
fn read_code<M: Memory>(texts: &TextLayout, code: Addr, room: &mut Room, memory: &mut M) -> bool {
    let Some(Parts { record, code: words, .. }) = parts(room) else {
        return false;
    };
    let Some(begin) = words.first_chunk_mut::<CODE_WORDS>() else {
        return false;
    };
    if memory.read(code.at(TYPE_AT), begin).is_err() || part(words, 0) != texts.code_type.0 {
        return false;
    }
    let half = |offset: u32| of_code(words, offset) >> ((offset & 4) * 8) & 0xffff_ffff;
    record[place::LINES] = half(texts.code_firstlineno) | half(texts.code_firsttraceable) << 32;
    record[place::HASH] = mix(0, record[place::LINES]);
    true
}

#[inline(never)]
fn read_name<M: Memory>(texts: &TextLayout, room: &mut Room, memory: &mut M) -> bool {
    let Some(Parts { record, name, code, words, .. }) = parts(room) else {
        return false;
    };
    // `co_name` and `co_qualname` follow `co_filename`.
    let at = Addr(of_code(code, texts.code_filename.wrapping_add(16)));
    let bytes = string(texts, at, name, words, memory);
    record[place::NAME] = bytes;
    prepare(record, TEXT_HEAD_WORDS, bytes, bytes);
    bytes != NO_STRING && hashed(room, memory)
}

#[inline(never)]
fn read_file<M: Memory>(texts: &TextLayout, room: &mut Room, memory: &mut M) -> bool {
    let Some(Parts { record, file, code, words, .. }) = parts(room) else {
        return false;
    };
    let at = Addr(of_code(code, texts.code_filename));
    let bytes = string(texts, at, file, words, memory);
    record[place::FILE] = bytes;
    prepare(record, TEXT_HEAD_WORDS + NAME_WORDS, bytes, bytes);
    bytes != NO_STRING && hashed(room, memory)
}

/// The last step, which gives what stands for the text.
#[inline(never)]
fn read_table<M: Memory>(texts: &TextLayout, room: &mut Room, memory: &mut M) -> u64 {
    let Some(Parts { record, table, code, words, .. }) = parts(room) else {
        return NO_TEXT;
    };
    let at = of_code(code, texts.code_filename.wrapping_add(24));
    let Some(begin) = words.first_chunk_mut::<BYTES_WORDS>() else {
        return NO_TEXT;
    };
    if memory.read(Addr(at), begin).is_err() {
        return NO_TEXT;
    }
    let bytes = part(words, texts.object_size);
    record[place::TABLE] = bytes;
    let taken = bytes.min((LINES_WORDS * 8) as u64);
    if memory.read_part(Addr(at.wrapping_add(texts.bytes_data.into())), table, taken as u32).is_err() {
        return NO_TEXT;
    }
    prepare(record, TEXT_FIXED_WORDS, bytes, taken);
    hashed(room, memory);
    let hash = room.get(place::HASH).copied().unwrap_or_default();
    // What stands for no text has other low bits.
    hash ^ hash >> 32 | BY_TEXT | 2
}

/// Has the words of a text hashed next, which begin at `at`: what is said of them, and `bytes`
/// bytes.
#[inline(always)]
const fn prepare(record: &mut [u64; TEXT_HEAD_WORDS], at: usize, said: u64, bytes: u64) {
    record[place::HASH] = mix(record[place::HASH], said);
    record[place::AT] = at as u64;
    record[place::LEFT] = bytes & 0xffff_ffff;
}

#[inline(always)]
fn hashed<M: Memory>(room: &mut Room, memory: &mut M) -> bool {
    memory.hash_text(room);
    true
}

/// Hashes the next word of a text; false after the last one.
///
/// The words are whole, and what is beyond the text is anything.
#[inline(always)]
pub fn hash_word(room: &mut Room) -> bool {
    let Some(Parts { record, .. }) = parts(room) else {
        return false;
    };
    let [.., hash, at, left, _, _, _, _, _] = *record;
    const { assert!(place::LEFT == 10) };
    if left == 0 {
        return false;
    }
    let used = if left < 8 { left } else { 8 };
    record[place::AT] = at + 1;
    record[place::LEFT] = left - used;
    let word = room.get(at as usize & (WINDOW_WORDS - 1)).copied().unwrap_or_default();
    room[place::HASH] = mix(hash, word & u64::MAX >> ((64 - used * 8) & 63));
    true
}

/// The word at `offset` of what was read.
#[inline(always)]
fn part(words: &[u64; 32], offset: u32) -> u64 {
    words.get(offset as usize >> 3 & 31).copied().unwrap_or_default()
}

/// The same of a code object.
#[inline(always)]
fn of_code(words: &[u64; 32], offset: u32) -> u64 {
    part(words, offset.wrapping_sub(u32::from(TYPE_AT)))
}

/// No string has as many bytes.
const NO_STRING: u64 = u64::MAX;

/// Reads the text of a string; gives its bytes, and above them the bytes of a character; or
/// [`NO_STRING`].
#[inline(always)]
fn string<const N: usize, M: Memory>(
    texts: &TextLayout,
    at: Addr,
    out: &mut [u64; N],
    words: &mut [u64; 32],
    memory: &mut M,
) -> u64 {
    let Some(begin) = words.first_chunk_mut::<STRING_WORDS>() else {
        return NO_STRING;
    };
    if memory.read(at, begin).is_err() {
        return NO_STRING;
    }
    let length = part(words, texts.str_length);
    let state = (part(words, texts.str_state) >> ((texts.str_state & 4) * 8)) as u32;
    let width = u64::from(state >> (texts.str_kind_bit & 31) & ((1 << (texts.str_kind_bits & 31)) - 1));
    // Text that lies elsewhere is a legacy of 3.11, which no compiler makes.
    if state >> (texts.str_compact_bit & 31) & 1 == 0 || length > (N * 8) as u64 || width > 4 {
        return NO_STRING;
    }
    let ascii = state >> (texts.str_ascii_bit & 31) & 1 == 1;
    let data = if ascii { texts.str_ascii_data } else { texts.str_compact_data };
    let bytes = length * width;
    // Looks itself whether there is the room.
    match memory.read_part(Addr(at.0.wrapping_add(data.into())), out, bytes as u32) {
        Ok(()) => bytes | width << 32,
        Err(_) => NO_STRING,
    }
}

#[inline(always)]
const fn mix(hash: u64, word: u64) -> u64 {
    (hash.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}
