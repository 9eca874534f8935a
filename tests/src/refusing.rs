//! greenscope where the kernel refuses it something that it can do without.

use std::process::Command;

use anyhow::Result;

use crate::place::{Python, as_root, greenscope};
use crate::runner::skip;

/// Which calls of `perf_event_open` are refused.
///
/// By seccomp, as container runtimes do it: the kernel's own refusals (`CAP_PERFMON`,
/// `kernel.perf_event_paranoid`) can't be had without that of every BPF program.
/// <https://github.com/torvalds/linux/blob/v6.18/include/linux/capability.h> (`perfmon_capable`)
#[derive(Clone, Copy, Debug)]
pub enum Refused {
    /// All, those that set uprobes among them.
    All,
    /// Those of no particular process: with `--no-children` that is the CPU clock.
    EveryProcess,
    /// Those on the second CPU: the CPU clock's, which has the first one by then.
    SecondCpu,
}

/// Has the filter set, and becomes another program: `HOW PROGRAM [ARGUMENT..]`.
const FILTER: &str = "
import ctypes, errno, os, struct, sys
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
LOAD, IF_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, ERRNO, PERF_EVENT_OPEN = 0x7fff0000, 0x00050000, 298
# struct seccomp_data: the call's number at 0, its arguments from 16 on; of an argument
# the lower half.
pid, cpu = 16 + 8, 16 + 16
argument = {'All': None, 'EveryProcess': (pid, 0xffffffff), 'SecondCpu': (cpu, 1)}[sys.argv[1]]
code = [(LOAD, 0, 0, 0), (IF_EQUAL, 0, 3 if argument else 1, PERF_EVENT_OPEN)]
if argument:
    place, value = argument
    code += [(LOAD, 0, 0, place), (IF_EQUAL, 0, 1, value)]
code += [(RETURN, 0, 0, ERRNO | errno.EACCES), (RETURN, 0, 0, ALLOW)]
lines = ctypes.create_string_buffer(b''.join(struct.pack('HBBI', *line) for line in code))
program = ctypes.create_string_buffer(struct.pack('HP', len(code), ctypes.addressof(lines)))
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program):
    sys.exit(f'seccomp: {os.strerror(ctypes.get_errno())}')
os.execv(sys.argv[2], sys.argv[2:])
";

/// The profiler under such a filter, for its arguments to be added.
///
/// # Errors
///
/// A skip where it can't be tried.
pub fn greenscope_refused(python: &Python, what: Refused) -> Result<Command> {
    as_root()?;
    if std::env::consts::ARCH != "x86_64" {
        return Err(skip("the filter knows the numbers of x86-64 calls"));
    }
    if matches!(what, Refused::SecondCpu) && std::thread::available_parallelism()?.get() < 2 {
        return Err(skip("one CPU"));
    }
    let mut command = Command::new(&python.exe);
    command.args(["-c", FILTER, &format!("{what:?}")]).arg(greenscope()?);
    Ok(command)
}
