//! Which file a path leads to, as a uprobe tells it from all others.
//!
//! A uprobe is set at an inode, and of a stack of file systems at the lowest one's: each
//! container of an image sees the same library through an overlay mount of its own, with a
//! device number of its own, and all of them hit one probe. A copied-up file (`touch` is
//! enough) keeps both of its numbers and is another one. The kernel keeps that inode with each
//! mapping, so greenscope maps the file into itself and has its kernel part tell.
//! <https://github.com/torvalds/linux/blob/v6.18/kernel/events/uprobes.c> (`uprobe_register`,
//! `build_map_info`), <https://github.com/torvalds/linux/blob/v6.18/fs/backing-file.c>
//! (`backing_file_mmap`: the mapping has the lower file), since 4.19 in overlayfs itself.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::Path,
    ptr,
};

use rustix::{
    fs::OFlags,
    mm::{MapFlags, ProtFlags, mmap, munmap},
};

use super::{
    Engine, KernelError,
    site::{Probe, Scope},
    trap,
};

/// The bytes that are mapped; never read.
const PAGE: usize = 4_096;

/// A file, as far as it is known which it is: if two are different they may be one file all the
/// same, but if they are equal they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Identity {
    /// The address of the kernel's own inode.
    Inode(u64),
    /// What `stat` tells, where the kernel doesn't tell more: the numbers of its device and
    /// inode, its size, and when it was last changed (a file that is copied up is changed).
    Seen {
        /// Its device.
        device: u64,
        /// Its inode there.
        inode: u64,
        /// Its bytes.
        size: u64,
        /// The seconds and nanoseconds of its last change.
        changed: (i64, i64),
    },
}

impl Engine {
    /// Which file is at `path` now.
    ///
    /// # Errors
    ///
    /// When it can't be opened or is no regular file.
    pub fn identity(&mut self, path: &Path) -> io::Result<Identity> {
        // Opening a pipe would wait for its other end.
        let file =
            OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(path)?;
        let about = file.metadata()?;
        if !about.is_file() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if let Some(inode) = self.inode_behind(&file) {
            return Ok(Identity::Inode(inode));
        }
        let changed = (about.ctime(), about.ctime_nsec());
        Ok(Identity::Seen { device: about.dev(), inode: about.ino(), size: about.len(), changed })
    }

    /// The kernel's inode behind a mapping of the file.
    fn inode_behind(&mut self, file: &File) -> Option<u64> {
        if !self.asks {
            self.start_asking().ok()?;
            self.asks = true;
        }
        self.mapped.set(0, &0).ok()?;
        // SAFETY: a new mapping, wherever there is room, which nobody reads.
        let mapping =
            unsafe { mmap(ptr::null_mut(), PAGE, ProtFlags::READ, MapFlags::PRIVATE, file, 0).ok()? };
        trap::ask(mapping.addr());
        // SAFETY: the mapping from above.
        let _unmapped = unsafe { munmap(mapping, PAGE) };
        self.mapped.get(0).ok().filter(|inode| *inode != 0)
    }

    fn start_asking(&mut self) -> Result<(), KernelError> {
        let site = trap::asking_site().ok_or(KernelError::Missing("greenscope_ask"))?;
        super::engine::uprobe(&mut self.ebpf, Probe::Mapped)?
            .load()
            .map_err(|source| KernelError::Program { program: Probe::Mapped.program(), source })?;
        self.attach(Scope::Process { pid: std::process::id(), target: 0 }, &site)
    }
}
