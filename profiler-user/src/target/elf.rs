//! A mapped ELF file: opened as the target sees it, its symbols and addresses.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use object::{Object as _, ObjectSegment as _, ObjectSymbol as _, ReadCache};
use profiler_common::address::Addr;
use rustix::fs::OFlags;

use super::maps::Mapping;

/// The largest file that is looked at: uWSGI with all that it can have is a tenth of it.
const MAX_FILE: u64 = 1 << 30;

/// A file that the target maps.
#[derive(Clone, Debug)]
pub struct MappedFile {
    /// Its path in the target's own root.
    pub path: PathBuf,
    /// The path by which this process opens the very same file.
    pub open: PathBuf,
    /// Major and minor number of its device.
    pub device: (u32, u32),
    /// Its inode.
    pub inode: u64,
    /// Whether it was removed since, or another file stands at its path.
    pub replaced: bool,
    /// What to add to an address in the file to get the address in the target.
    pub bias: u64,
}

impl MappedFile {
    /// What tells it from all other files: its device and its inode.
    #[must_use]
    pub const fn id(&self) -> ((u32, u32), u64) {
        (self.device, self.inode)
    }

    /// The address in the target of an address in the file.
    #[must_use]
    pub const fn address(&self, vaddr: u64) -> Addr {
        Addr(vaddr.wrapping_add(self.bias))
    }
}

/// An opened file, read piece by piece.
pub(super) struct Source {
    cache: ReadCache<File>,
    /// The path by which it was opened.
    pub(super) open: PathBuf,
    /// Whether the file at the mapping's path is another one by now.
    pub(super) replaced: bool,
}

/// The parsed file.
pub(super) type Elf<'s> = object::File<'s, &'s ReadCache<File>>;

impl Source {
    /// Opens the file of a mapping: through `map_files`, which finds it whatever was
    /// mounted or replaced; else by its path in the target's root, if that is the same.
    pub(super) fn open(pid: u32, mapping: &Mapping) -> io::Result<Self> {
        let exact = PathBuf::from(format!("/proc/{pid}/map_files/{:x}-{:x}", mapping.start, mapping.end));
        let named = in_root(pid, Path::new(&mapping.path));
        let inode = fs::metadata(&named).map(|meta| meta.ino()).ok();
        let replaced = mapping.deleted || inode != Some(mapping.inode);
        let (file, open) = match open_file(&exact) {
            Ok(file) => (file, exact),
            Err(error) if replaced => return Err(error),
            Err(_) => (open_file(&named)?, named),
        };
        Ok(Self { cache: ReadCache::new(file), open, replaced })
    }

    pub(super) fn parse(&self) -> Result<Elf<'_>, object::Error> {
        Elf::parse(&self.cache)
    }
}

/// Opens what may be anything: a pipe would wait for its other end, and a file that is larger
/// than any library is none.
pub(super) fn open_file(path: &Path) -> io::Result<File> {
    let nonblocking = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(nonblocking).open(path)?;
    let about = file.metadata()?;
    if !about.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
    }
    if about.len() > MAX_FILE {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is larger than any library"));
    }
    Ok(file)
}

/// A path of the target's root, as this process reaches it.
pub(super) fn in_root(pid: u32, path: &Path) -> PathBuf {
    let relative = path.strip_prefix("/").unwrap_or(path);
    Path::new(&format!("/proc/{pid}/root")).join(relative)
}

/// What lies between the addresses in the file and those of the mapping.
pub(super) fn bias(elf: &Elf<'_>, mapping: &Mapping) -> Option<u64> {
    let vaddr = elf.segments().find_map(|segment| {
        let (offset, size) = segment.file_range();
        // The mapping begins at the page that holds the segment's first byte.
        let page = offset & !0xfff;
        let inside = (page..offset.checked_add(size)?).contains(&mapping.offset);
        inside.then(|| segment.address().wrapping_add(mapping.offset).wrapping_sub(offset))
    })?;
    Some(mapping.start.wrapping_sub(vaddr))
}

/// The offset in the file of an address of it.
pub(super) fn file_offset(elf: &Elf<'_>, vaddr: u64) -> Option<u64> {
    elf.segments().find_map(|segment| {
        let (offset, size) = segment.file_range();
        let within = vaddr.checked_sub(segment.address())?;
        (within < size).then(|| offset.wrapping_add(within))
    })
}

/// The bytes of the file at an address of it.
pub(super) fn bytes_at<'s, const N: usize>(elf: &Elf<'s>, vaddr: u64) -> Option<&'s [u8; N]> {
    elf.segments()
        .find_map(|segment| segment.data_range(vaddr, N as u64).ok().flatten())
        .and_then(|bytes| bytes.first_chunk())
}

/// Where a symbol was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HowFound {
    /// In `.dynsym`, which no `strip` removes.
    Dynsym,
    /// In `.symtab`.
    Symtab,
    /// In a slot of a type object in the process.
    Slot,
    /// A call of a function that another library has.
    Call,
}

/// The defined symbols of these names, in their order.
pub(super) fn symbols<const N: usize>(elf: &Elf<'_>, names: [&str; N]) -> [Option<(u64, HowFound)>; N] {
    let mut found = [None; N];
    let mut missing = N;
    let mut take = |name: Result<&str, object::Error>, address: u64, how: HowFound| {
        let place = names.iter().position(|wanted| name.as_ref().is_ok_and(|name| name == wanted));
        if let Some(slot @ None) = place.and_then(|place| found.get_mut(place)) {
            *slot = Some((address, how));
            missing -= 1;
        }
        missing == 0
    };
    // The large table is looked at only for what the small one lacks.
    let mut dynamic = elf.dynamic_symbols().filter(|symbol| !symbol.is_undefined());
    if !dynamic.any(|symbol| take(symbol.name(), symbol.address(), HowFound::Dynsym)) {
        let mut all = elf.symbols().filter(|symbol| !symbol.is_undefined());
        all.any(|symbol| take(symbol.name(), symbol.address(), HowFound::Symtab));
    }
    found
}
