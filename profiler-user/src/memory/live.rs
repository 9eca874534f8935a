//! The memory of a running process, read without stopping it.

use std::io;

use profiler_common::{address::Addr, fault::Fault, memory::Memory};

use super::{Bytes, Read, words};

/// Places read by one system call (`UIO_MAXIOV` is 1024).
const BATCH: usize = 512;

/// The memory of a running process.
///
/// It is named by its pid: after the process has ended, reads fail until the pid is
/// reused, and that is for `target::alive` to notice.
#[derive(Clone, Debug)]
pub struct LiveProcess {
    pid: libc::pid_t,
}

impl LiveProcess {
    /// Takes the process, without reading it yet.
    ///
    /// # Errors
    ///
    /// When there is no process of this pid.
    pub fn open(pid: u32) -> io::Result<Self> {
        let pid = libc::pid_t::try_from(pid).map_err(|_| io::Error::from_raw_os_error(libc::ESRCH))?;
        let raw =
            rustix::process::Pid::from_raw(pid).ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))?;
        match rustix::process::test_kill_process(raw) {
            Err(rustix::io::Errno::SRCH) => Err(io::Error::from_raw_os_error(libc::ESRCH)),
            // Not permitted to signal it: it is there all the same.
            Ok(()) | Err(_) => Ok(Self { pid }),
        }
    }

    /// A process that is gone: every read fails.
    #[must_use]
    pub const fn gone() -> Self {
        // The number of no process.
        Self { pid: 0 }
    }

    /// Reads `out.len()` bytes, with the operating system's own reason for a failure.
    ///
    /// # Errors
    ///
    /// `EPERM` when this process may not be read, `ESRCH` when it is gone, `EFAULT`
    /// when the address is not mapped.
    pub fn try_read(&self, addr: Addr, out: &mut [u8]) -> io::Result<()> {
        let read = self.readv(&[(addr, out.as_mut_ptr(), out.len())])?;
        if read == out.len() { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EFAULT)) }
    }

    /// One `process_vm_readv`; the bytes read, which end at the first that cannot be.
    ///
    /// Each pointer must be valid for writes of its length while this runs; the two
    /// callers pass those of slices that they hold mutably.
    fn readv(&self, places: &[(Addr, *mut u8, usize)]) -> io::Result<usize> {
        let local: Vec<libc::iovec> =
            places.iter().map(|&(_, out, len)| libc::iovec { iov_base: out.cast(), iov_len: len }).collect();
        let remote: Vec<libc::iovec> = places
            .iter()
            .map(|&(addr, _, len)| libc::iovec {
                // A number to the kernel: it is another process's address.
                iov_base: std::ptr::without_provenance_mut(addr.0 as usize),
                iov_len: len,
            })
            .collect();
        // SAFETY: `local` describes memory that the callers hold by `&mut [u8]`, and
        // the lengths are those of the vectors.
        let read = unsafe {
            libc::process_vm_readv(
                self.pid,
                local.as_ptr(),
                local.len() as libc::c_ulong,
                remote.as_ptr(),
                remote.len() as libc::c_ulong,
                0,
            )
        };
        usize::try_from(read).map_err(|_| io::Error::last_os_error())
    }
}

impl Memory for LiveProcess {
    fn read<const N: usize>(&mut self, addr: Addr, out: &mut [u64; N]) -> Result<(), Fault> {
        words(self, addr, out)
    }
}

impl Bytes for LiveProcess {
    fn read_bytes(&mut self, addr: Addr, out: &mut [u8]) -> Result<(), Fault> {
        self.try_read(addr, out).map_err(|_| Fault::ReadState)
    }

    fn read_many(&mut self, reads: &mut [Read<'_>]) {
        for batch in reads.chunks_mut(BATCH) {
            let mut rest = batch;
            // Each turn ends at the first place that cannot be read; it is passed over.
            while !rest.is_empty() {
                let places: Vec<_> =
                    rest.iter_mut().map(|read| (read.addr, read.out.as_mut_ptr(), read.out.len())).collect();
                let mut bytes = self.readv(&places).unwrap_or(0);
                let mut filled = 0;
                for read in rest.iter_mut() {
                    let Some(left) = bytes.checked_sub(read.out.len()) else {
                        break;
                    };
                    bytes = left;
                    read.done = true;
                    filled += 1;
                }
                let next = (filled + 1).min(rest.len());
                rest = rest.split_at_mut_checked(next).map_or(&mut [], |(_, tail)| tail);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn me() -> LiveProcess {
        LiveProcess::open(std::process::id()).unwrap()
    }

    fn addr<T>(of: &T) -> Addr {
        Addr(std::ptr::from_ref(of).addr() as u64)
    }

    #[test]
    fn reads_words_and_bytes_of_a_process() {
        let secret = [0x0102_0304_0506_0708_u64, 42];
        assert_eq!(me().word(addr(&secret)), Ok(0x0102_0304_0506_0708));
        let mut out = [0_u8; 3];
        assert_eq!(me().read_bytes(Addr(addr(&secret).0 + 1), &mut out), Ok(()));
        assert_eq!(out, [7, 6, 5]);
        assert_eq!(me().word(Addr(8)), Err(Fault::ReadState));
        assert_eq!(LiveProcess::gone().word(addr(&secret)), Err(Fault::ReadState));
    }

    #[test]
    fn one_bad_place_fails_alone() {
        let there: Vec<u64> = (0..2000).collect();
        let mut outs = vec![[0_u8; 8]; there.len()];
        let mut reads: Vec<Read<'_>> = outs
            .iter_mut()
            .enumerate()
            .map(|(i, out)| {
                let bad = i % 701 == 3;
                Read::new(if bad { Addr(16) } else { addr(&there[i]) }, out.as_mut_slice())
            })
            .collect();
        me().read_many(&mut reads);
        for (i, read) in reads.iter().enumerate() {
            assert_eq!(read.done, i % 701 != 3, "{i}");
        }
        drop(reads);
        for (i, out) in outs.iter().enumerate().filter(|(i, _)| i % 701 != 3) {
            assert_eq!(u64::from_le_bytes(*out), i as u64);
        }
    }

    #[test]
    fn a_pid_that_is_not_there_is_told() {
        assert_eq!(LiveProcess::open(0).unwrap_err().raw_os_error(), Some(libc::ESRCH));
        assert_eq!(LiveProcess::open(u32::MAX).unwrap_err().raw_os_error(), Some(libc::ESRCH));
        assert_eq!(LiveProcess::open(0x3fff_ffff).unwrap_err().raw_os_error(), Some(libc::ESRCH));
    }
}
