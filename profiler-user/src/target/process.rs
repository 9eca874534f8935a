//! What the kernel says of a process: its start, its threads, its namespaces.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use procfs::{
    ProcError,
    process::{Process, Stat},
};
use profiler_common::clock::{Gil, ON_CPU, Off};

use rustix::fs::{major, minor};

use super::{TargetError, maps, maps::Mapping};

/// A thread of the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thread {
    /// Its id in our pid namespace.
    pub tid: u32,
    /// Its id in the target's own pid namespace.
    pub own_tid: u32,
    /// Its name to the kernel (15 bytes at most).
    pub name: String,
}

/// The target's pid namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespaces {
    /// The inode of its pid namespace; `None` when it may not be seen.
    pub pid_namespace: Option<u64>,
    /// Its pid in each namespace, ours first, its own last.
    pub pids: Vec<u32>,
}

/// What tells one run of one program from the next under the same pid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Incarnation {
    /// When the process started, in clock ticks since boot.
    pub start_ticks: u64,
    /// Where its program's code begins: another after an exec.
    pub start_code: u64,
    /// Where its stack begins: another after an exec.
    pub start_stack: u64,
}

impl Incarnation {
    pub(super) fn read(pid: u32) -> Result<Self, TargetError> {
        let stat = stat(pid)?;
        // A zombie has no program any more.
        if matches!(stat.state, 'Z' | 'X' | 'x') {
            return Err(TargetError::Gone { pid });
        }
        Ok(Self { start_ticks: stat.starttime, start_code: stat.startcode, start_stack: stat.startstack })
    }
}

/// A process as the kernel describes it.
pub(super) struct Facts {
    pub(super) incarnation: Incarnation,
    pub(super) exe: PathBuf,
    pub(super) program: Option<(u64, u64)>,
    pub(super) command: Vec<String>,
    pub(super) namespaces: Namespaces,
    pub(super) threads: Vec<Thread>,
    pub(super) maps: Vec<Mapping>,
}

impl Facts {
    pub(super) fn read(pid: u32) -> Result<Self, TargetError> {
        let incarnation = Incarnation::read(pid)?;
        let process = process(pid)?;
        let maps = maps::parse(
            &fs::read_to_string(format!("/proc/{pid}/maps"))
                .map_err(|error| TargetError::io(pid, "read the mappings", error))?,
        );
        let exe = process.exe().unwrap_or_default();
        let program = file(&format!("/proc/{pid}/exe"));
        let command = process.cmdline().unwrap_or_default();
        let link = fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let pid_namespace = link
            .as_deref()
            .and_then(|link| link.to_str()?.strip_prefix("pid:[")?.strip_suffix(']')?.parse().ok());
        let status = process.status().ok();
        let pids = status.and_then(|status| status.nspid).unwrap_or_default();
        let pids: Vec<u32> = pids.into_iter().filter_map(|pid| u32::try_from(pid).ok()).collect();
        let threads = threads(pid, pids.len() > 1);
        let namespaces = Namespaces { pid_namespace, pids };
        Ok(Self { incarnation, exe, program, command, namespaces, threads, maps })
    }
}

/// The threads of a process that are there now; `nested` when its pid namespace is
/// another than ours.
pub(super) fn threads(pid: u32, nested: bool) -> Vec<Thread> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    let mut threads: Vec<Thread> = tasks
        .filter_map(|task| {
            let task = task.ok()?;
            let tid = task.file_name().to_str()?.parse().ok()?;
            let name = fs::read(task.path().join("comm")).ok()?;
            let name = String::from_utf8_lossy(&name).trim_end_matches('\n').to_owned();
            let own_tid = if nested { own_tid(&task.path())? } else { tid };
            Some(Thread { tid, own_tid, name })
        })
        .collect();
    threads.sort_by_key(|thread| thread.tid);
    threads
}

/// The ids of a process's threads, in our pid namespace.
pub(super) fn thread_ids(pid: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks.filter_map(|task| task.file_name().to_str()?.parse().ok()).collect()
}

/// What a thread is in now, as its [`Clock::state`](profiler_common::clock::Clock::state)
/// says it; `None` when it ended.
pub(super) fn state(pid: u32, tid: u32, gil: Gil) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/task/{tid}/stat")).ok()?;
    // The name before it may have any character.
    let (_, rest) = stat.rsplit_once(") ")?;
    match rest.as_bytes().first()? {
        b'R' => Some(ON_CPU),
        b'Z' | b'X' | b'x' => None,
        b'T' | b't' => Some(Off::Preempted as u32),
        _ => {
            let call = fs::read_to_string(format!("/proc/{pid}/task/{tid}/syscall")).unwrap_or_default();
            let mut fields = call.split_ascii_whitespace();
            let number = fields.next().and_then(|number| number.parse().ok()).unwrap_or(-1);
            let first = fields
                .next()
                .and_then(|first| u64::from_str_radix(first.strip_prefix("0x")?, 16).ok())
                .unwrap_or_default();
            Some(of_call(number, first, gil) as u32)
        }
    }
}

#[cfg(target_arch = "x86_64")]
const fn of_call(number: i64, first: u64, gil: Gil) -> Off {
    Off::of_x86_64_call(number, first, gil)
}

#[cfg(target_arch = "aarch64")]
const fn of_call(number: i64, first: u64, gil: Gil) -> Off {
    Off::of_aarch64_call(number, first, gil)
}

/// The file of a process's pid namespace: its device as the kernel numbers it, and its
/// inode.
pub(super) fn namespace(pid: u32) -> Option<(u64, u64)> {
    file(&format!("/proc/{pid}/ns/pid"))
}

/// A file's device as the kernel numbers it, and its inode.
fn file(path: &str) -> Option<(u64, u64)> {
    let file = fs::metadata(path).ok()?;
    let device = file.dev();
    // `dev_t` inside of the kernel: MKDEV.
    // https://github.com/torvalds/linux/blob/v6.12/include/linux/kdev_t.h
    let device = u64::from(major(device)) << 20 | u64::from(minor(device));
    Some((device, file.ino()))
}

/// Whether our pids are the kernel's own: we are in its first pid namespace.
///
/// <https://github.com/torvalds/linux/blob/v6.12/include/linux/proc_ns.h> (`PROC_PID_INIT_INO`)
pub(super) fn in_first_namespace() -> bool {
    fs::read_link("/proc/self/ns/pid").is_ok_and(|link| link.as_os_str() == "pid:[4026531836]")
}

/// The last number in the line `NSpid` of a thread's status.
fn own_tid(task: &Path) -> Option<u32> {
    let status = fs::read_to_string(task.join("status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    line.split_whitespace().next_back()?.parse().ok()
}

fn process(pid: u32) -> Result<Process, TargetError> {
    let number = i32::try_from(pid).map_err(|_| TargetError::NoSuchProcess { pid })?;
    if number == 0 {
        return Err(TargetError::NoSuchProcess { pid });
    }
    Process::new(number).map_err(|error| refused(pid, "look at the directory", error))
}

fn stat(pid: u32) -> Result<Stat, TargetError> {
    process(pid)?.stat().map_err(|error| refused(pid, "read the state", error))
}

fn refused(pid: u32, what: &'static str, error: ProcError) -> TargetError {
    match error {
        ProcError::NotFound(_) => TargetError::NoSuchProcess { pid },
        ProcError::PermissionDenied(_) => TargetError::NotPermitted { pid, what },
        ProcError::Io(source, _) => TargetError::io(pid, what, source),
        other => TargetError::io(pid, what, io::Error::other(other.to_string())),
    }
}

/// The processes that have `pid` as their parent.
pub(super) fn children(pid: u32) -> Vec<u32> {
    // CONFIG_PROC_CHILDREN; without it, or if the process is gone: none are known.
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let each = threads.map(|thread| fs::read_to_string(thread.path().join("children")).unwrap_or_default());
    let mut children: Vec<u32> = Vec::new();
    for pids in each {
        children.extend(pids.split_ascii_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
    }
    children
}
