//! What a process is: mappings, Python, greenlet, layouts, probe sites.

mod debug_offsets;
pub mod dwarf;
mod elf;
mod enumerate;
mod error;
pub mod extract;
mod faults;
mod gc_lists;
mod inspect;
mod kinds;
pub mod layouts;
pub mod layouts_generated;
pub mod maps;
mod natives;
mod polls;
mod process;
mod python_threads;
mod site;
mod sleeping;
mod suspended;
mod version;

use std::{fmt, ops::Range, path::PathBuf};

use profiler_common::{
    address::Addr,
    clock::Gil,
    layout::{GreenletLayout, Layout, PythonLayout},
};

pub use elf::{HowFound, MappedFile};
pub use enumerate::{FoundGreenlet, GreenletState, GreenletThread, enumerate, greenlet_name};
pub use error::TargetError;
pub use faults::Faults;
pub use inspect::inspect;
pub use kinds::{Kinds, TypeInfo, type_info};
pub use natives::{Natives, natives};
pub use process::{Incarnation, Namespaces, Thread};
pub use python_threads::{PythonThread, own_states, python_threads};
pub use site::{PythonSites, Site, Sites};
pub use sleeping::{Asleep, sleeping_stack};
pub use version::Version;

use crate::python::objects::{self, ObjectLayout};

/// A process, as far as it was looked at.
#[derive(Clone, Debug)]
pub struct Target {
    /// Its pid in our namespace.
    pub pid: u32,
    /// Which run of which program it is.
    pub incarnation: Incarnation,
    /// Its program.
    pub exe: PathBuf,
    /// That program's file: its device as the kernel numbers it, and its inode.
    pub program: Option<(u64, u64)>,
    /// Its command line.
    pub command: Vec<String>,
    /// Its pid namespace.
    pub namespaces: Namespaces,
    /// Its threads at that moment.
    pub threads: Vec<Thread>,
    /// Its CPython.
    pub python: Python,
    /// Its greenlet library, if it has loaded one.
    pub greenlet: Option<Greenlet>,
    /// The libraries with an event loop that it has loaded, and where they poll.
    pub loops: Vec<Loop>,
    /// What is odd about it.
    pub warnings: Vec<Warning>,
}

/// A library with an event loop.
#[derive(Clone, Debug)]
pub struct Loop {
    /// The library.
    pub file: MappedFile,
    /// Where it calls a poll.
    pub sites: Vec<Site>,
}

/// The CPython of a target.
#[derive(Clone, Debug)]
pub struct Python {
    /// Its version.
    pub version: Version,
    /// The library or program that holds it.
    pub file: MappedFile,
    /// `_PyRuntime`.
    pub runtime: Addr,
    /// The main interpreter.
    pub interp: Addr,
    /// Its GIL.
    pub gil: Gil,
    /// Where the current thread state's address lies while the GIL is held.
    pub holder: Addr,
    /// What the kernel part needs.
    pub layout: PythonLayout,
    /// What user space needs beside it.
    pub objects: ObjectLayout,
    /// Where to probe it.
    pub sites: PythonSites,
    /// Where both come from, in words.
    pub source: String,
}

/// The greenlet library of a target.
#[derive(Clone, Debug)]
pub struct Greenlet {
    /// Its version, when its package says so.
    pub version: Option<Version>,
    /// The library.
    pub file: MappedFile,
    /// Its mapped range, with the vtables in it.
    pub module: Range<u64>,
    /// `PyGreenlet_Type`.
    pub greenlet_type: Addr,
    /// Where its fields lie.
    pub layout: GreenletLayout,
    /// Where to probe it.
    pub sites: Sites,
    /// The function that makes a greenlet ready to start, by its type's `tp_init`.
    pub made: Option<Site>,
    /// Where the layout comes from, in words.
    pub source: String,
}

impl Greenlet {
    /// The same library where another process has mapped it, by the begin of its module.
    #[must_use]
    pub fn mapped_at(&self, start: u64) -> Self {
        let by = start.wrapping_sub(self.module.start);
        let mut moved = self.clone();
        moved.module = start..self.module.end.wrapping_add(by);
        moved.greenlet_type = Addr(self.greenlet_type.0.wrapping_add(by));
        moved.file.bias = self.file.bias.wrapping_add(by);
        moved
    }
}

/// Something odd about a target that does not keep it from being profiled.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Warning {
    /// The table of CPython's layout was corrected by the process's own.
    PythonLayoutDiffers {
        /// The fields that differed.
        fields: Vec<&'static str>,
    },
    /// The process's own table of offsets is missing or of another version.
    NoDebugOffsets,
    /// The library's own debug information differs from the table of its version.
    GreenletLayoutDiffers,
    /// `g_switchstack` was inlined: a probe on it misses switches.
    SwitchstackInlined {
        /// How many functions swap stacks.
        callers: usize,
    },
    /// It has other interpreters than the main one.
    Subinterpreters {
        /// How many.
        count: usize,
    },
    /// More than one greenlet library is mapped; the first is used.
    SeveralGreenlets {
        /// How many.
        count: usize,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PythonLayoutDiffers { fields } => {
                write!(f, "CPython's layout was corrected by its own: {}", fields.join(" "))
            }
            Self::NoDebugOffsets => f.write_str("CPython's own table of offsets was not found"),
            Self::GreenletLayoutDiffers => {
                f.write_str("greenlet's debug information differs from the table; it was believed")
            }
            Self::SwitchstackInlined { callers } => {
                write!(f, "g_switchstack was inlined ({callers} functions swap stacks): use --probe pair")
            }
            Self::Subinterpreters { count } => write!(
                f,
                "beside the main interpreter there are others, {count} by now: their threads' switches are \
                 recorded, but no stacks on the CPU, no tracer and no greenlets that never switch"
            ),
            Self::SeveralGreenlets { count } => {
                write!(f, "{count} greenlet libraries are mapped; only the first is profiled")
            }
        }
    }
}

impl Target {
    /// The greenlet library.
    ///
    /// # Errors
    ///
    /// [`TargetError::NoGreenlet`] when none is loaded.
    pub fn greenlet(&self) -> Result<&Greenlet, TargetError> {
        let missing = TargetError::NoGreenlet { pid: self.pid, python: self.python.version };
        self.greenlet.as_ref().ok_or(missing)
    }

    /// Both layouts, as the kernel part gets them.
    #[must_use]
    pub fn layout(&self) -> Layout {
        let greenlet = self.greenlet.as_ref().map(|greenlet| greenlet.layout).unwrap_or_default();
        Layout { python: self.python.layout, greenlet }
    }
}

/// Whether the process is still there, and still the same.
#[must_use]
pub fn alive(target: &Target) -> bool {
    let now = Incarnation::read(target.pid);
    now.is_ok_and(|now| now.start_ticks == target.incarnation.start_ticks)
}

/// Whether it is still there and still runs the same program: no exec since.
#[must_use]
pub fn same_image(target: &Target) -> bool {
    Incarnation::read(target.pid).is_ok_and(|now| now == target.incarnation)
}

/// What a thread is in now, as its [`Clock::state`](profiler_common::clock::Clock::state)
/// says it; `None` when it ended.
#[must_use]
pub fn thread_state(target: &Target, tid: u32) -> Option<u32> {
    process::state(target.pid, tid, target.python.gil)
}

/// The file of its pid namespace: the device as the kernel numbers it, and the inode.
#[must_use]
pub fn namespace(target: &Target) -> Option<(u64, u64)> {
    process::namespace(target.pid)
}

/// Whether our pids are the kernel's own: we are in its first pid namespace.
#[must_use]
pub fn in_first_namespace() -> bool {
    process::in_first_namespace()
}

/// The processes that have `pid` as their parent now.
#[must_use]
pub fn children(pid: u32) -> Vec<u32> {
    process::children(pid)
}

/// The process `pid`, which `parent` forked: its memory is a copy, so that all that was
/// found in the parent holds. If it is gone, or runs another program by now, it is one
/// that is not [`alive`].
#[must_use]
pub fn forked(parent: &Target, pid: u32) -> Target {
    let mut child = Target { pid, threads: Vec::new(), warnings: Vec::new(), ..parent.clone() };
    child.incarnation.start_ticks = u64::MAX;
    if let Ok(now) = Incarnation::read(pid)
        && (now.start_code, now.start_stack) == (child.incarnation.start_code, child.incarnation.start_stack)
    {
        child.incarnation = now;
        // It begins with one thread; others come later.
        child.threads = threads(&child).into_iter().filter(|thread| thread.tid == pid).collect();
    }
    child
}

/// The device and the inode of the greenlet library that a process has mapped now, if it
/// has one.
#[must_use]
pub fn greenlet_file(pid: u32) -> Option<((u32, u32), u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/maps")).ok()?;
    let mapping = maps::parse(&text).into_iter().find(maps::Mapping::is_greenlet)?;
    Some((mapping.device, mapping.inode))
}

/// The ids of a process's threads, in our pid namespace.
#[must_use]
pub fn thread_ids(pid: u32) -> Vec<u32> {
    process::thread_ids(pid)
}

/// The threads that are there now.
#[must_use]
pub fn threads(target: &Target) -> Vec<Thread> {
    process::threads(target.pid, target.namespaces.pids.len() > 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_elsewhere_has_all_its_addresses_moved() {
        let file = MappedFile {
            path: "a".into(),
            open: "b".into(),
            device: (1, 2),
            inode: 3,
            replaced: false,
            bias: 0x7000,
        };
        let here = Greenlet {
            version: None,
            file,
            module: 0x7000..0x9000,
            greenlet_type: Addr(0x8010),
            layout: GreenletLayout::default(),
            sites: Sites::default(),
            made: None,
            source: String::new(),
        };
        for start in [0x1000, 0x7000, 0xf000] {
            let there = here.mapped_at(start);
            assert_eq!(there.module, start..start + 0x2000);
            assert_eq!(there.greenlet_type, Addr(start + 0x1010));
            assert_eq!(there.file.address(0x1010), there.greenlet_type);
            assert_eq!(there.file.id(), here.file.id());
        }
    }
}
