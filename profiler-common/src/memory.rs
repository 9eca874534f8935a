//! Reading the memory of the profiled process.

use crate::{
    address::Addr,
    code::{self, Room},
    fault::Fault,
};

/// A source of a process's memory: the kernel's, a live process, a recording.
///
/// What is read is never trusted. A read fails as a whole: there are no short reads.
pub trait Memory {
    /// Copies `N` words from `addr` into the first `N` words of `out`.
    ///
    /// # Errors
    ///
    /// [`Fault::ReadState`] when any byte of it cannot be read. Callers that read
    /// frames turn it into [`Fault::ReadFrame`].
    fn read<const N: usize>(&mut self, addr: Addr, out: &mut [u64; N]) -> Result<(), Fault>;

    /// Copies the words that hold the first `bytes` bytes from `addr`, which lies on a word,
    /// into `out`; what is beyond is anything.
    ///
    /// # Errors
    ///
    /// As [`Memory::read`], and when `bytes` is more than `out` holds.
    #[inline(always)]
    fn read_part<const N: usize>(&mut self, addr: Addr, out: &mut [u64; N], bytes: u32) -> Result<(), Fault> {
        if bytes as usize > N * 8 {
            return Err(Fault::ReadState);
        }
        let mut at = addr;
        for word in out.iter_mut().take((bytes as usize).div_ceil(8)) {
            *word = self.word(at)?;
            at = at.at(8);
        }
        Ok(())
    }

    /// Hashes a text, word by word: [`code::hash_word`]. The kernel's verifier wants such a loop
    /// in a way of its own.
    #[inline(always)]
    fn hash_text(&mut self, room: &mut Room) {
        while code::hash_word(room) {}
    }

    /// One word.
    ///
    /// # Errors
    ///
    /// As [`Memory::read`].
    #[inline(always)]
    fn word(&mut self, addr: Addr) -> Result<u64, Fault> {
        let mut word = [0_u64; 1];
        self.read(addr, &mut word)?;
        let [word] = word;
        Ok(word)
    }

    /// One pointer.
    ///
    /// # Errors
    ///
    /// As [`Memory::read`].
    #[inline(always)]
    fn pointer(&mut self, addr: Addr) -> Result<Addr, Fault> {
        Ok(Addr(self.word(addr)?))
    }
}
