//! A recorded snapshot of some of a process's memory, to be replayed without root.
//!
//! The file, all numbers little-endian:
//!
//! ```text
//! 8 bytes   "GSMEM001"
//! varint    number of notes;    each: varint length, key; varint length, value
//! varint    number of segments; each: varint distance from the end of the one before
//!           (the first from 0), varint length, bytes
//! 8 bytes   FNV-1a of everything before
//! ```
//!
//! A varint is LEB128. Segments are in ascending order and do not touch.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use profiler_common::{address::Addr, fault::Fault, memory::Memory};

use super::{Bytes, Read, words};

const MAGIC: &[u8; 8] = b"GSMEM001";
/// The largest file read, and the largest segment in it.
const MAX_BYTES: usize = 64 << 20;

/// Why a snapshot cannot be loaded or saved.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordedError {
    /// The file cannot be read or written.
    #[error("the snapshot {path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not a snapshot, or damaged.
    #[error("the snapshot is damaged: {0}")]
    Damaged(&'static str),
}

/// Some of a process's memory as it was, and notes on where to begin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recorded {
    /// Start → bytes; they neither touch nor overlap.
    segments: BTreeMap<u64, Vec<u8>>,
    /// Facts that belong to the snapshot: versions, addresses, expected answers.
    pub notes: BTreeMap<String, String>,
}

impl Recorded {
    /// Adds bytes; where some were recorded before, the first remain.
    pub fn add(&mut self, addr: Addr, bytes: &[u8]) {
        let Some(end) = addr.0.checked_add(bytes.len() as u64) else {
            return;
        };
        let mut start = addr.0;
        let mut merged = Vec::new();
        let before = self.segments.range(..=addr.0).next_back();
        if let Some((&first, known)) = before
            && first + known.len() as u64 >= addr.0
        {
            start = first;
            merged = self.segments.remove(&first).unwrap_or_default();
        }
        let filled = |merged: &Vec<u8>| start + merged.len() as u64;
        loop {
            let next = self.segments.range(start..=end).next().map(|(&next, _)| next);
            let until = next.unwrap_or(end).max(filled(&merged));
            let from = (filled(&merged).saturating_sub(addr.0)) as usize;
            let to = (until.min(end).saturating_sub(addr.0)) as usize;
            merged.extend_from_slice(bytes.get(from..to).unwrap_or_default());
            let Some(next) = next else { break };
            let known = self.segments.remove(&next).unwrap_or_default();
            let skip = filled(&merged).saturating_sub(next) as usize;
            merged.extend_from_slice(known.get(skip..).unwrap_or_default());
        }
        if !merged.is_empty() {
            self.segments.insert(start, merged);
        }
    }

    /// How many bytes of memory it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.segments.values().map(Vec::len).sum()
    }

    /// Whether it holds no memory.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// The snapshot as the bytes of its file.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let Self { segments, notes } = self;
        let mut out = MAGIC.to_vec();
        put_varint(&mut out, notes.len() as u64);
        for text in notes.iter().flat_map(|(key, value)| [key, value]) {
            put_varint(&mut out, text.len() as u64);
            out.extend_from_slice(text.as_bytes());
        }
        put_varint(&mut out, segments.len() as u64);
        let mut end = 0;
        for (&start, bytes) in segments {
            put_varint(&mut out, start.wrapping_sub(end));
            put_varint(&mut out, bytes.len() as u64);
            out.extend_from_slice(bytes);
            end = start.wrapping_add(bytes.len() as u64);
        }
        let sum = fnv(&out);
        out.extend_from_slice(&sum.to_le_bytes());
        out
    }

    /// The snapshot of such bytes.
    ///
    /// # Errors
    ///
    /// [`RecordedError::Damaged`].
    pub fn from_bytes(data: &[u8]) -> Result<Self, RecordedError> {
        let (body, sum) = data.split_last_chunk::<8>().ok_or(RecordedError::Damaged("it is too short"))?;
        if fnv(body) != u64::from_le_bytes(*sum) {
            return Err(RecordedError::Damaged("its checksum differs"));
        }
        let mut input =
            Input(body.strip_prefix(MAGIC).ok_or(RecordedError::Damaged("it has another magic"))?);
        let mut recorded = Self::default();
        for _ in 0..input.varint()? {
            let key = input.text()?;
            let value = input.text()?;
            recorded.notes.insert(key, value);
        }
        let mut end = 0_u64;
        for _ in 0..input.varint()? {
            let distance = input.varint()?;
            let start = end.checked_add(distance).ok_or(RecordedError::Damaged("an address overflows"))?;
            let len = input.varint()?;
            let bytes = input.take(len)?;
            end = start
                .checked_add(bytes.len() as u64)
                .ok_or(RecordedError::Damaged("an address overflows"))?;
            recorded.segments.insert(start, bytes.to_vec());
        }
        if !input.0.is_empty() {
            return Err(RecordedError::Damaged("it is too long"));
        }
        Ok(recorded)
    }

    /// Reads a snapshot's file.
    ///
    /// # Errors
    ///
    /// [`RecordedError`].
    pub fn load(path: &Path) -> Result<Self, RecordedError> {
        let io = |source| RecordedError::Io { path: path.to_owned(), source };
        if fs::metadata(path).map_err(io)?.len() > MAX_BYTES as u64 {
            return Err(RecordedError::Damaged("it is too long"));
        }
        Self::from_bytes(&fs::read(path).map_err(io)?)
    }

    /// Writes a snapshot's file.
    ///
    /// # Errors
    ///
    /// [`RecordedError::Io`].
    pub fn save(&self, path: &Path) -> Result<(), RecordedError> {
        fs::write(path, self.to_bytes()).map_err(|source| RecordedError::Io { path: path.to_owned(), source })
    }
}

impl Memory for Recorded {
    fn read<const N: usize>(&mut self, addr: Addr, out: &mut [u64; N]) -> Result<(), Fault> {
        words(self, addr, out)
    }
}

impl Bytes for Recorded {
    fn read_bytes(&mut self, addr: Addr, out: &mut [u8]) -> Result<(), Fault> {
        let (start, bytes) = self.segments.range(..=addr.0).next_back().ok_or(Fault::ReadState)?;
        let from = usize::try_from(addr.0 - start).map_err(|_| Fault::ReadState)?;
        let to = from.checked_add(out.len()).ok_or(Fault::ReadState)?;
        out.copy_from_slice(bytes.get(from..to).ok_or(Fault::ReadState)?);
        Ok(())
    }

    fn has_neighbours(&self) -> bool {
        false
    }
}

/// A memory that keeps what is read through it.
#[derive(Debug)]
pub struct Recorder<M> {
    below: M,
    /// What was read so far.
    pub recorded: Recorded,
}

impl<M: Bytes> Recorder<M> {
    /// Records what is read from `below`.
    #[must_use]
    pub fn new(below: M) -> Self {
        Self { below, recorded: Recorded::default() }
    }
}

impl<M: Bytes> Memory for Recorder<M> {
    fn read<const N: usize>(&mut self, addr: Addr, out: &mut [u64; N]) -> Result<(), Fault> {
        words(self, addr, out)
    }
}

impl<M: Bytes> Bytes for Recorder<M> {
    fn read_bytes(&mut self, addr: Addr, out: &mut [u8]) -> Result<(), Fault> {
        self.below.read_bytes(addr, out)?;
        self.recorded.add(addr, out);
        Ok(())
    }

    fn read_many(&mut self, reads: &mut [Read<'_>]) {
        self.below.read_many(reads);
        for read in reads.iter().filter(|read| read.done) {
            self.recorded.add(read.addr, read.out);
        }
    }

    fn has_neighbours(&self) -> bool {
        false
    }
}

struct Input<'b>(&'b [u8]);

impl<'b> Input<'b> {
    fn take(&mut self, len: u64) -> Result<&'b [u8], RecordedError> {
        let split = usize::try_from(len).ok().and_then(|len| self.0.split_at_checked(len));
        let (head, tail) = split.ok_or(RecordedError::Damaged("it ends early"))?;
        self.0 = tail;
        Ok(head)
    }

    fn varint(&mut self) -> Result<u64, RecordedError> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first().ok_or(RecordedError::Damaged("it ends early"))?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(RecordedError::Damaged("a number is too long"))
    }

    fn text(&mut self) -> Result<String, RecordedError> {
        let len = self.varint()?;
        String::from_utf8(self.take(len)?.to_vec()).map_err(|_| RecordedError::Damaged("a note is not text"))
    }
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// FNV-1a, 64 bits: against damage, not against malice.
fn fnv(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn whatever_was_added_is_read_back(
            pieces in prop::collection::vec((0_u64..300, 1_usize..40), 0..40)
        ) {
            // The byte at an address is a function of the address: order cannot matter.
            let mut recorded = Recorded::default();
            let mut known = std::collections::BTreeSet::new();
            for (start, len) in &pieces {
                let bytes: Vec<u8> = (*start..).take(*len).map(|at| at as u8 ^ 0x5a).collect();
                recorded.add(Addr(*start), &bytes);
                known.extend((*start..).take(*len));
            }
            prop_assert_eq!(recorded.len(), known.len());
            let mut again = Recorded::from_bytes(&recorded.to_bytes()).unwrap();
            prop_assert_eq!(&again, &recorded);
            for at in 0..350 {
                let mut byte = [0];
                let read = again.read_bytes(Addr(at), &mut byte).is_ok();
                prop_assert_eq!(read, known.contains(&at));
                prop_assert!(!read || byte[0] == at as u8 ^ 0x5a);
            }
            for (start, len) in pieces {
                prop_assert_eq!(again.read_bytes(Addr(start), &mut vec![0; len]), Ok(()));
            }
        }

        #[test]
        fn damaged_files_are_refused(at in 0_usize..60, with in 1_u8..) {
            let mut recorded = Recorded::default();
            recorded.notes.insert("python".to_owned(), "3.13.0".to_owned());
            recorded.add(Addr(0x7f00_0000_0000), b"some bytes of memory");
            let mut bytes = recorded.to_bytes();
            let at = at % bytes.len();
            bytes[at] ^= with;
            prop_assert!(Recorded::from_bytes(&bytes).is_err());
        }

        #[test]
        fn foreign_bytes_do_no_harm(mut bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            drop(Recorded::from_bytes(&bytes));
            let mut framed = MAGIC.to_vec();
            framed.append(&mut bytes);
            let sum = fnv(&framed);
            framed.extend_from_slice(&sum.to_le_bytes());
            drop(Recorded::from_bytes(&framed));
        }
    }

    #[test]
    fn a_recorder_keeps_what_was_asked_for() {
        let mut below = Recorded::default();
        below.add(Addr(4096), &[7; 64]);
        let mut recorder = Recorder::new(below);
        assert!(recorder.word(Addr(4104)).is_ok());
        assert!(recorder.word(Addr(9000)).is_err());
        assert_eq!(recorder.recorded.len(), 8);
    }
}
