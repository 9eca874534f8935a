//! What is probed, and in which processes.

use std::path::PathBuf;

use profiler_common::record::Probed;

/// A program that fires at an instruction of the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Probe {
    /// At `g_switchstack`.
    Switchstack,
    /// At both `g_switch`.
    Switch,
    /// At `g_initialstub`.
    Initialstub,
    /// At the deleting destructors.
    Freed,
    /// At the function that makes a greenlet ready to start.
    Made,
    /// Where an event loop polls.
    Poll,
    /// At the function that frees a code object.
    CodeFreed,
    /// At `PyModule_Create2`.
    Module,
    /// At `Py_RunMain`.
    Up,
    /// At a function of greenscope's own, which asks for the inode behind a mapping.
    Mapped,
    /// Does nothing: what a probe alone costs.
    Empty,
}

impl Probe {
    pub(super) const ALL: [Self; 11] = [
        Self::Switchstack,
        Self::Switch,
        Self::Initialstub,
        Self::Freed,
        Self::Made,
        Self::Poll,
        Self::CodeFreed,
        Self::Module,
        Self::Up,
        Self::Mapped,
        Self::Empty,
    ];

    pub(super) const fn program(self) -> &'static str {
        match self {
            Self::Switchstack => "g_switchstack",
            Self::Switch => "g_switch",
            Self::Initialstub => "g_initialstub",
            Self::Freed => "greenlet_freed",
            Self::Made => "greenlet_made",
            Self::Poll => "loop_polls",
            Self::CodeFreed => "code_freed",
            Self::Module => "module_made",
            Self::Up => "python_up",
            Self::Mapped => "mapped",
            Self::Empty => "empty",
        }
    }
}

/// An instruction of a file.
#[derive(Clone, Debug)]
pub struct Site {
    /// Which program.
    pub probe: Probe,
    /// The file, by a path that leads to the inode that the target maps.
    pub path: PathBuf,
    /// The instruction's offset in the file.
    pub offset: u64,
    /// What is known of it wherever the file is mapped; its library is 0 if it is in none of
    /// greenlet's.
    pub probed: Probed,
}

/// In which processes a probe fires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// In one.
    Process {
        /// Which.
        pid: u32,
        /// Its number as a target.
        target: u32,
    },
    /// In every one that maps the file; only targets' hits count.
    Every,
}
