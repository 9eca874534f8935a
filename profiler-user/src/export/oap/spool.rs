//! What waits on disk: bounded, the oldest goes first, and nothing half-written is believed.
//!
//! A directory with a file for each entry, named by its number in 20 decimal digits:
//!
//! - `NNNNNNNNNNNNNNNNNNNN.batch` waits; the lowest number is the oldest;
//! - `NNNNNNNNNNNNNNNNNNNN.sent` is being sent. One that a former run left may have arrived: it is
//!   counted as such and removed, for to send it again could count it twice;
//! - `lock` is held (flock) by the one greenscope that writes there.
//!
//! Other names are left alone. A file is, with numbers as 64 bits, little-endian:
//!
//! | bytes | what |
//! |---|---|
//! | 0 to 8 | `GSSPOOL1` |
//! | 8 to 16 | the number of its name: a copy under another name is not believed |
//! | 16 to 24 | how many bytes the entry has |
//! | 24 to 32 | the first 8 bytes of the SHA-256 of what is before and of the entry |
//! | 32 to the end | the entry |
//!
//! Nothing is synced: what was written survives greenscope's end however it comes, and what the
//! machine's end tears is found by the checksum.

use std::{
    collections::VecDeque,
    fs::{self, DirBuilder, DirEntry, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Access, FlockOperation, OFlags, access, flock},
    io::Errno,
};
use sha2::{Digest as _, Sha256};

const MAGIC: &[u8; 8] = b"GSSPOOL1";
/// Bytes before the entry, of which the last 8 are the checksum.
const HEAD: usize = 32;
/// What a file takes is a multiple of this.
const BLOCK: u64 = 4_096;
/// What an entry may have.
const MOST_BYTES: u64 = 64 << 20;
/// Entries that may wait.
const MOST_ENTRIES: usize = 1 << 18;
/// Files that are looked at when it is opened.
const MOST_FILES: usize = 1 << 20;
/// Far from both ends: what is put back goes before it.
const FIRST: u64 = 1 << 62;

/// Where it is, and its bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Made if it is not there.
    pub directory: PathBuf,
    /// Room for files.
    pub bytes: u64,
}

/// Why there is no spool: one line.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// One writes there already.
    #[error(
        "--spool {}: another greenscope writes there; give this one a directory of its own", .0.display()
    )]
    Taken(PathBuf),
    /// It has files of something else.
    #[error("--spool {}: too many files to look at; give a directory of its own", .0.display())]
    Crowded(PathBuf),
    /// The system refused.
    #[error("--spool {}: {error}; give a directory that can be written", directory.display())]
    System {
        /// Where.
        directory: PathBuf,
        /// What it said.
        error: io::Error,
    },
}

/// Whether there can be a spool in that directory, as far as can be seen without making it.
///
/// # Errors
///
/// Why not.
pub fn can_be(directory: &Path) -> Result<(), SpoolError> {
    let failed = |error| SpoolError::System { directory: directory.to_owned(), error };
    let parent = directory.parent().filter(|parent| !parent.as_os_str().is_empty());
    let place = if directory.exists() { directory } else { parent.unwrap_or(Path::new(".")) };
    if !fs::metadata(place).map_err(failed)?.is_dir() {
        return Err(failed(io::ErrorKind::NotADirectory.into()));
    }
    access(place, Access::WRITE_OK | Access::EXEC_OK).map_err(|errno| failed(errno.into()))
}

/// What was lost so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// Entries that there was no room for, or that could not be written.
    pub dropped: u64,
    /// That were torn or can't be read.
    pub torn: u64,
    /// That a former run was sending when it ended.
    pub unknown: u64,
}

/// The oldest entry.
#[derive(Debug, PartialEq, Eq)]
pub enum Taken {
    /// As it was put there. [`Spool::done`], [`Spool::put_back`] or [`Spool::reject`] follows.
    Whole(Vec<u8>),
    /// It can't be read, was counted and is gone.
    Torn,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    number: u64,
    /// With what the file's last block has too much.
    bytes: u64,
}

/// Entries on disk.
#[derive(Debug)]
pub struct Spool {
    place: Place,
    waiting: VecDeque<Entry>,
    sending: Option<Entry>,
    bytes: u64,
    lost: Lost,
    /// Held while it is open.
    _lock: File,
}

impl Spool {
    /// Opens a directory, and finds what a former run left.
    ///
    /// # Errors
    ///
    /// When another writes there, or it can't be used.
    pub fn open(place: Place) -> Result<Self, SpoolError> {
        let directory = place.directory.clone();
        let failed = |error| SpoolError::System { directory: directory.clone(), error };
        match DirBuilder::new().mode(0o700).create(&directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
            _ => {}
        }
        let lock = options().create(true).write(true).open(directory.join("lock")).map_err(failed)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(SpoolError::Taken(directory)),
            Err(errno) => return Err(failed(errno.into())),
        }
        let lost = Lost::default();
        let mut spool = Self { place, waiting: VecDeque::new(), sending: None, bytes: 0, lost, _lock: lock };
        let mut files = fs::read_dir(&directory).map_err(failed)?;
        for file in files.by_ref().take(MOST_FILES) {
            spool.find(&file.map_err(failed)?);
        }
        if files.next().is_some() {
            return Err(SpoolError::Crowded(directory));
        }
        spool.waiting.make_contiguous().sort_unstable_by_key(|entry| entry.number);
        let _fits = spool.make_room(0, 0);
        Ok(spool)
    }

    /// A file is there.
    fn find(&mut self, file: &DirEntry) {
        let name = file.file_name();
        let Some((number, is_sent)) = name.to_str().and_then(number) else {
            return;
        };
        let Ok(about) = file.metadata() else {
            return;
        };
        if is_sent {
            self.lost.unknown += 1;
            let _gone = fs::remove_file(file.path());
        } else if !about.is_file() || about.len() > MOST_BYTES + HEAD as u64 {
            self.lost.torn += 1;
            let _gone = fs::remove_file(file.path());
        } else {
            let bytes = blocks(about.len());
            self.bytes += bytes;
            self.waiting.push_back(Entry { number, bytes });
        }
    }

    /// Adds an entry, the youngest. What has no room beside it any more is dropped, the oldest
    /// first.
    ///
    /// # Errors
    ///
    /// When it can't be written; it is counted as dropped.
    pub fn push(&mut self, entry: &[u8]) -> io::Result<()> {
        let bytes = blocks(entry.len() as u64 + HEAD as u64);
        if entry.len() as u64 > MOST_BYTES || bytes > self.place.bytes || !self.make_room(bytes, 1) {
            self.lost.dropped += 1;
            return Ok(());
        }
        let last = self.waiting.back().or(self.sending.as_ref());
        let number = last.map_or(Some(FIRST), |last| last.number.checked_add(1));
        let written = self.write(number, entry, bytes)?;
        self.waiting.push_back(written);
        Ok(())
    }

    /// Adds an entry that is older than all others. Without room it is dropped.
    ///
    /// # Errors
    ///
    /// When it can't be written; it is counted as dropped.
    pub fn push_oldest(&mut self, entry: &[u8]) -> io::Result<()> {
        let bytes = blocks(entry.len() as u64 + HEAD as u64);
        if entry.len() as u64 > MOST_BYTES || !self.has_room(bytes, 1) {
            self.lost.dropped += 1;
            return Ok(());
        }
        let first = self.sending.as_ref().or(self.waiting.front());
        let number = first.map_or(Some(FIRST), |first| first.number.checked_sub(1));
        let written = self.write(number, entry, bytes)?;
        self.waiting.push_front(written);
        Ok(())
    }

    /// Takes the oldest, to be sent; it stays on disk, marked, until what became of it is known.
    pub fn take(&mut self) -> Option<Taken> {
        let entry = self.waiting.pop_front()?;
        let (batch, sent) = (self.batch(entry.number), self.sent(entry.number));
        // What can't be marked could be sent twice.
        let read = fs::rename(&batch, &sent).and_then(|()| read(&sent, entry.number));
        if let Ok(Some(bytes)) = read {
            self.sending = Some(entry);
            return Some(Taken::Whole(bytes));
        }
        self.lost.torn += 1;
        self.bytes = self.bytes.saturating_sub(entry.bytes);
        let _gone = (fs::remove_file(sent), fs::remove_file(batch));
        Some(Taken::Torn)
    }

    /// What was taken is dealt with.
    pub fn done(&mut self) {
        if let Some(entry) = self.sending.take() {
            self.bytes = self.bytes.saturating_sub(entry.bytes);
            let _gone = fs::remove_file(self.sent(entry.number));
        }
    }

    /// What was taken makes no sense: another version wrote it.
    pub fn reject(&mut self) {
        self.lost.torn += 1;
        self.done();
    }

    /// What was taken did surely not arrive: it is the oldest again.
    pub fn put_back(&mut self) {
        let Some(entry) = self.sending else {
            return;
        };
        if fs::rename(self.sent(entry.number), self.batch(entry.number)).is_err() {
            self.lost.dropped += 1;
            self.done();
            return;
        }
        self.sending = None;
        self.waiting.push_front(entry);
    }

    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether none does.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// What its files take.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What was lost so far.
    #[must_use]
    pub const fn lost(&self) -> Lost {
        self.lost
    }

    /// Where it is.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.place.directory
    }

    fn has_room(&self, bytes: u64, entries: usize) -> bool {
        self.bytes.saturating_add(bytes) <= self.place.bytes && self.waiting.len() + entries <= MOST_ENTRIES
    }

    /// Drops the oldest until there is room, if there can be.
    fn make_room(&mut self, bytes: u64, entries: usize) -> bool {
        while !self.has_room(bytes, entries) {
            let Some(oldest) = self.waiting.pop_front() else {
                return false;
            };
            self.lost.dropped += 1;
            self.bytes = self.bytes.saturating_sub(oldest.bytes);
            let _gone = fs::remove_file(self.batch(oldest.number));
        }
        true
    }

    fn write(&mut self, number: Option<u64>, entry: &[u8], bytes: u64) -> io::Result<Entry> {
        let written = number
            .ok_or_else(|| io::Error::other("its numbers are at their end"))
            .and_then(|number| write(&self.batch(number), number, entry).map(|()| number));
        match written {
            Ok(number) => {
                self.bytes += bytes;
                Ok(Entry { number, bytes })
            }
            Err(error) => {
                self.lost.dropped += 1;
                Err(error)
            }
        }
    }

    fn batch(&self, number: u64) -> PathBuf {
        self.place.directory.join(format!("{number:020}.batch"))
    }

    fn sent(&self, number: u64) -> PathBuf {
        self.place.directory.join(format!("{number:020}.sent"))
    }
}

/// No link is followed: where others may write, it could lead anywhere.
fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600).custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed());
    options
}

/// The number in a name, and whether the file was being sent.
fn number(name: &str) -> Option<(u64, bool)> {
    let (digits, is_sent) = match name.split_once('.')? {
        (digits, "batch") => (digits, false),
        (digits, "sent") => (digits, true),
        _ => return None,
    };
    let number = digits.parse().ok()?;
    (digits == format!("{number:020}")).then_some((number, is_sent))
}

const fn blocks(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK) * BLOCK
}

fn head(number: u64, entry: &[u8]) -> Vec<u8> {
    let mut head = Vec::with_capacity(HEAD + entry.len());
    head.extend_from_slice(MAGIC);
    head.extend_from_slice(&number.to_le_bytes());
    head.extend_from_slice(&(entry.len() as u64).to_le_bytes());
    let digest = Sha256::new().chain_update(&head).chain_update(entry).finalize();
    head.extend(digest.iter().take(8));
    head
}

fn write(path: &Path, number: u64, entry: &[u8]) -> io::Result<()> {
    let mut bytes = head(number, entry);
    bytes.extend_from_slice(entry);
    let mut file = options().create_new(true).write(true).open(path)?;
    file.write_all(&bytes).inspect_err(|_| {
        let _gone = fs::remove_file(path);
    })
}

/// None: it is not whole.
fn read(path: &Path, number: u64) -> io::Result<Option<Vec<u8>>> {
    let file = options().read(true).open(path)?;
    let mut bytes = Vec::new();
    file.take(MOST_BYTES + HEAD as u64 + 1).read_to_end(&mut bytes)?;
    Ok(whole(number, bytes))
}

fn whole(number: u64, mut bytes: Vec<u8>) -> Option<Vec<u8>> {
    let (before, entry) = bytes.split_at_checked(HEAD)?;
    if before != head(number, entry) {
        return None;
    }
    bytes.drain(..HEAD);
    Some(bytes)
}

#[cfg(test)]
mod tests;
