//! The memory of a running process, read without stopping it.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use profiler_common::{address::Addr, fault::Fault, memory::Memory};

use super::{
    Bytes, Read,
    reader::{Pulse, apart},
    words,
};

/// Places read by one system call (`UIO_MAXIOV` is 1024).
const BATCH: usize = 512;

/// How long a read may take. A page that comes from a disk needs thousandths of it.
const PATIENCE: Duration = Duration::from_secs(2);

/// The memory of a running process.
///
/// It is named by its pid: after the process has ended, reads fail until the pid is
/// reused, and that is for `target::alive` to notice.
///
/// A read may take for ever, so that each is done on a thread of its own, or many in a row
/// ([`Self::apart`]). Once one did not answer, every read fails at once.
#[derive(Clone, Debug)]
pub struct LiveProcess {
    pid: libc::pid_t,
    /// Whether a read did not answer; of all clones.
    silent: Arc<AtomicBool>,
    /// Of the work on a thread of its own that this is a part of.
    pulse: Option<Pulse>,
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
            Ok(()) | Err(_) => Ok(Self { pid, silent: Arc::default(), pulse: None }),
        }
    }

    /// A process that is gone: every read fails.
    #[must_use]
    pub fn gone() -> Self {
        // The number of no process.
        Self { pid: 0, silent: Arc::default(), pulse: None }
    }

    /// Whether a read did not answer: nothing is read any more.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        self.silent.load(Ordering::Relaxed)
    }

    /// Does work of many reads on a thread of its own, where each costs no more than it must;
    /// none if one did not answer.
    pub fn apart<R: Send + 'static>(&self, work: impl FnOnce(Self) -> R + Send + 'static) -> Option<R> {
        self.patiently(PATIENCE, work)
    }

    /// The same of work that does more than read, and may take so long without.
    pub fn patiently<R: Send + 'static>(
        &self,
        patience: Duration,
        work: impl FnOnce(Self) -> R + Send + 'static,
    ) -> Option<R> {
        if self.is_silent() {
            return None;
        }
        if self.pulse.is_some() {
            return Some(work(self.clone()));
        }
        let pulse = Pulse::default();
        let there = Self { pulse: Some(pulse.clone()), ..self.clone() };
        let done = apart(&pulse, patience, move || work(there));
        if done.is_none() {
            self.silent.store(true, Ordering::Relaxed);
        }
        done
    }

    /// Reads `out.len()` bytes, with the operating system's own reason for a failure.
    ///
    /// # Errors
    ///
    /// `EPERM` when this process may not be read, `ESRCH` when it is gone, `EFAULT`
    /// when the address is not mapped, `ETIMEDOUT` when it does not answer.
    pub fn try_read(&self, addr: Addr, out: &mut [u8]) -> io::Result<()> {
        let read = self.readv(&mut [Read::new(addr, out)])?;
        if read == out.len() { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EFAULT)) }
    }

    /// One `process_vm_readv`; the bytes read, which end at the first that cannot be.
    fn readv(&self, reads: &mut [Read<'_>]) -> io::Result<usize> {
        if self.is_silent() {
            return Err(io::Error::from_raw_os_error(libc::ETIMEDOUT));
        }
        if let Some(pulse) = &self.pulse {
            pulse.beat();
            let mut places: Vec<(Addr, &mut [u8])> =
                reads.iter_mut().map(|read| (read.addr, &mut *read.out)).collect();
            return readv(self.pid, &mut places);
        }
        // The thread may be left behind: it gets memory of its own to read into.
        let places: Vec<(Addr, usize)> = reads.iter().map(|read| (read.addr, read.out.len())).collect();
        let done = self.apart(move |there| {
            let mut bytes = vec![0; places.iter().map(|(_, len)| len).sum()];
            let mut rest = bytes.as_mut_slice();
            let mut into = Vec::with_capacity(places.len());
            for (addr, len) in places {
                let (own, tail) = std::mem::take(&mut rest).split_at_mut_checked(len)?;
                into.push((addr, own));
                rest = tail;
            }
            let read = readv(there.pid, &mut into);
            Some((bytes, read))
        });
        let (bytes, read) = done.flatten().ok_or_else(|| io::Error::from_raw_os_error(libc::ETIMEDOUT))?;
        let read = read?;
        let mut rest = bytes.get(..read).unwrap_or_default();
        for place in reads {
            let Some((own, tail)) = rest.split_at_checked(place.out.len()) else {
                break;
            };
            place.out.copy_from_slice(own);
            rest = tail;
        }
        Ok(read)
    }
}

/// The system call. What it writes it writes while it runs.
fn readv(pid: libc::pid_t, places: &mut [(Addr, &mut [u8])]) -> io::Result<usize> {
    let local: Vec<libc::iovec> = places
        .iter_mut()
        .map(|(_, out)| libc::iovec { iov_base: out.as_mut_ptr().cast(), iov_len: out.len() })
        .collect();
    let remote: Vec<libc::iovec> = places
        .iter()
        .map(|(addr, out)| libc::iovec {
            // A number to the kernel: it is another process's address.
            iov_base: std::ptr::without_provenance_mut(addr.0 as usize),
            iov_len: out.len(),
        })
        .collect();
    // SAFETY: `local` describes memory that is borrowed here by `&mut [u8]`, and the
    // lengths are those of the vectors.
    let read = unsafe {
        libc::process_vm_readv(
            pid,
            local.as_ptr(),
            local.len() as libc::c_ulong,
            remote.as_ptr(),
            remote.len() as libc::c_ulong,
            0,
        )
    };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
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
                let mut bytes = match self.readv(rest) {
                    Ok(bytes) => bytes,
                    Err(error) if error.raw_os_error() == Some(libc::ETIMEDOUT) => return,
                    Err(_) => 0,
                };
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
