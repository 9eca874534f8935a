//! Memory of a process: the live one, a cache over it, or a recorded snapshot.
//!
//! The only room that reads another process. What is read is never trusted; the
//! decoders above see it through [`Bytes`] and [`profiler_common::memory::Memory`].

mod cached;
mod live;
mod reader;
mod recorded;

pub use cached::Cached;
pub use live::LiveProcess;
pub use recorded::{Recorded, RecordedError, Recorder};

use profiler_common::{address::Addr, fault::Fault, memory::Memory};

/// One read of a batch.
#[derive(Debug)]
pub struct Read<'o> {
    /// Where to read.
    pub addr: Addr,
    /// What to fill.
    pub out: &'o mut [u8],
    /// Whether all of it was read; written by [`Bytes::read_many`].
    pub done: bool,
}

impl<'o> Read<'o> {
    /// A read that is still to be done.
    #[must_use]
    pub const fn new(addr: Addr, out: &'o mut [u8]) -> Self {
        Self { addr, out, done: false }
    }
}

/// Memory by the byte, and many places at once.
pub trait Bytes: Memory {
    /// Fills `out` from `addr`, or fails as a whole.
    ///
    /// # Errors
    ///
    /// [`Fault::ReadState`] when any byte of it cannot be read.
    fn read_bytes(&mut self, addr: Addr, out: &mut [u8]) -> Result<(), Fault>;

    /// Fills every read that can be filled, and marks it done.
    fn read_many(&mut self, reads: &mut [Read<'_>]) {
        for read in reads {
            read.done = self.read_bytes(read.addr, read.out).is_ok();
        }
    }

    /// Whether blocks around what is asked for may be read in its place.
    ///
    /// A recording says no, so that it holds what was asked for and nothing else.
    fn has_neighbours(&self) -> bool {
        true
    }
}

/// `Memory::read` by way of `Bytes::read_bytes`.
fn words<const N: usize>(memory: &mut impl Bytes, addr: Addr, out: &mut [u64; N]) -> Result<(), Fault> {
    memory.read_bytes(addr, bytemuck::cast_slice_mut(out.as_mut_slice()))
}
