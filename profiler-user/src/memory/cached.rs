//! Blocks of memory kept for a while: for walks over a large heap.

use profiler_common::{address::Addr, fault::Fault, memory::Memory};
use rustc_hash::FxHashMap;

use super::{Bytes, Read, words};

/// Bytes in a block: a page, so that a block is readable as a whole or not at all.
const BLOCK: usize = 4_096;
/// Blocks kept (256 MiB); at the bound all are forgotten.
const MAX_BLOCKS: usize = 65_536;

/// A cache of blocks over another memory.
///
/// Blocks are as old as their first read, and of different ages: whoever follows
/// links in a running process must stand that, and [`Cached::clear`] to look again.
#[derive(Debug)]
pub struct Cached<M> {
    below: M,
    /// The block number of an address → the place in `blocks`.
    index: FxHashMap<u64, u32>,
    blocks: Vec<u8>,
    /// The block asked for last, which is asked for most often next.
    last: (u64, u32),
}

impl<M: Bytes> Cached<M> {
    /// An empty cache over `below`.
    #[must_use]
    pub fn new(below: M) -> Self {
        Self { below, index: FxHashMap::default(), blocks: Vec::new(), last: (u64::MAX, 0) }
    }

    /// Forgets every block.
    pub fn clear(&mut self) {
        self.index.clear();
        self.blocks.clear();
        self.last = (u64::MAX, 0);
    }

    /// The memory below, for what must not come from the cache.
    pub const fn below(&mut self) -> &mut M {
        &mut self.below
    }

    fn block(&mut self, number: u64) -> Result<&[u8], Fault> {
        let place = if self.last.0 == number {
            self.last.1
        } else if let Some(place) = self.index.get(&number) {
            *place
        } else {
            self.load(number)?
        };
        self.last = (number, place);
        let start = place as usize * BLOCK;
        self.blocks.get(start..start + BLOCK).ok_or(Fault::ReadState)
    }

    fn load(&mut self, number: u64) -> Result<u32, Fault> {
        if self.index.len() >= MAX_BLOCKS {
            self.clear();
        }
        let start = self.blocks.len();
        let place = u32::try_from(start / BLOCK).map_err(|_| Fault::ReadState)?;
        self.blocks.resize(start + BLOCK, 0);
        let read = match self.blocks.get_mut(start..) {
            Some(block) => self.below.read_bytes(Addr(number * BLOCK as u64), block),
            None => Err(Fault::ReadState),
        };
        if let Err(fault) = read {
            self.blocks.truncate(start);
            return Err(fault);
        }
        self.index.insert(number, place);
        Ok(place)
    }
}

impl<M: Bytes> Memory for Cached<M> {
    fn read<const N: usize>(&mut self, addr: Addr, out: &mut [u64; N]) -> Result<(), Fault> {
        words(self, addr, out)
    }
}

impl<M: Bytes> Bytes for Cached<M> {
    fn read_bytes(&mut self, addr: Addr, out: &mut [u8]) -> Result<(), Fault> {
        if !self.below.has_neighbours() {
            return self.below.read_bytes(addr, out);
        }
        let mut at = addr.0;
        let mut rest = out;
        while !rest.is_empty() {
            let within = (at % BLOCK as u64) as usize;
            let len = rest.len().min(BLOCK - within);
            let (head, tail) = rest.split_at_mut_checked(len).ok_or(Fault::ReadState)?;
            let block = self.block(at / BLOCK as u64)?;
            head.copy_from_slice(block.get(within..within + len).ok_or(Fault::ReadState)?);
            at = at.checked_add(len as u64).ok_or(Fault::ReadState)?;
            rest = tail;
        }
        Ok(())
    }

    fn read_many(&mut self, reads: &mut [Read<'_>]) {
        self.below.read_many(reads);
    }

    fn has_neighbours(&self) -> bool {
        self.below.has_neighbours()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each byte is the low byte of its address; below 64 KiB nothing is mapped.
    struct Pattern {
        reads: usize,
    }

    impl Memory for Pattern {
        fn read<const N: usize>(&mut self, addr: Addr, out: &mut [u64; N]) -> Result<(), Fault> {
            words(self, addr, out)
        }
    }

    impl Bytes for Pattern {
        fn read_bytes(&mut self, addr: Addr, out: &mut [u8]) -> Result<(), Fault> {
            self.reads += 1;
            if addr.0 < 65_536 {
                return Err(Fault::ReadState);
            }
            for (at, byte) in out.iter_mut().enumerate() {
                *byte = addr.0.wrapping_add(at as u64) as u8;
            }
            Ok(())
        }
    }

    #[test]
    fn a_read_across_blocks_is_put_together() {
        let mut cached = Cached::new(Pattern { reads: 0 });
        let mut out = vec![0; 10_000];
        cached.read_bytes(Addr(100_003), &mut out).unwrap();
        for (byte, at) in out.iter().zip(100_003_u64..) {
            assert_eq!(*byte, at as u8);
        }
        let reads = cached.below().reads;
        assert_eq!(reads, 3);
        cached.read_bytes(Addr(105_000), &mut [0; 64]).unwrap();
        assert_eq!(cached.below().reads, reads, "a known block was read again");
        cached.clear();
        cached.read_bytes(Addr(105_000), &mut [0; 64]).unwrap();
        assert_eq!(cached.below().reads, reads + 1);
    }

    #[test]
    fn what_is_not_mapped_stays_unread() {
        let mut cached = Cached::new(Pattern { reads: 0 });
        assert_eq!(cached.word(Addr(8)), Err(Fault::ReadState));
        assert!(cached.word(Addr(65_536)).is_ok());
        assert_eq!(cached.word(Addr(u64::MAX - 3)), Err(Fault::ReadState));
    }
}
