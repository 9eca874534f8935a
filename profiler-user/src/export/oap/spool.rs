//! What has no room in memory, or is left at the end, on a disk.
//!
//! A directory of one writer (`lock`, held by flock(2)) with a file for each batch. Its name is a
//! number of 16 hexadecimal digits, the oldest has the lowest; its text is
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `gscopeB1` |
//! | 8 | the length of the batch, little-endian |
//! | 8 | the first ones of the batch's SHA-256 |
//! | the rest | the batch ([`super::batch::Batch::encode`]) |
//!
//! A file is written under another name and renamed when it is whole; nothing is synced, so that
//! a machine that dies may leave torn ones. What is not whole, or not what its sum says, is
//! removed and counted. A batch is removed before it is sent: nobody sends it a second time.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};
use sha2::{Digest as _, Sha256};

const MAGIC: &[u8; 8] = b"gscopeB1";
const HEAD: usize = 24;
const LOCK: &str = "lock";
const PART: &str = "part";
/// The first number: there is room for older ones before it.
const FIRST: u64 = 1 << 40;

/// Batches on a disk.
#[derive(Debug)]
pub struct Spool {
    folder: PathBuf,
    // Held while it is open.
    _lock: File,
    /// The oldest first: number and bytes.
    files: VecDeque<(u64, u64)>,
    bytes: u64,
    room: u64,
    /// The oldest ones, for want of room.
    evicted: u64,
    /// That could not be written.
    failed: u64,
    torn: u64,
}

/// Why there is no spool.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// Somebody else's.
    #[error(
        "the spool {0} is another greenscope's just now: this one goes on without, name another by --spool"
    )]
    Taken(PathBuf),
    /// Can't be used.
    #[error("the spool {folder} can't be used: {source}; name a directory that can be written by --spool")]
    Io {
        /// Where.
        folder: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Spool {
    /// Opens the directory, which is made if it is not there, with what was left in it.
    ///
    /// # Errors
    ///
    /// When it is another's, or can't be used.
    pub fn open(folder: &Path, room: u64) -> Result<Self, SpoolError> {
        let failed = |source| SpoolError::Io { folder: folder.to_owned(), source };
        fs::create_dir_all(folder).map_err(failed)?;
        let options = File::options().create(true).write(true).truncate(false).open(folder.join(LOCK));
        let lock = options.map_err(failed)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(SpoolError::Taken(folder.to_owned())),
            Err(error) => return Err(failed(error.into())),
        }
        let mut files = Vec::new();
        for entry in fs::read_dir(folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            let number =
                name.to_str().filter(|name| name.len() == 16).map(|name| u64::from_str_radix(name, 16));
            if let Some(Ok(number)) = number {
                files.push((number, entry.metadata().map_err(failed)?.len()));
            }
        }
        files.sort_unstable();
        let bytes = files.iter().map(|(_, bytes)| bytes).sum();
        let mut spool = Self {
            folder: folder.to_owned(),
            _lock: lock,
            files: files.into(),
            bytes,
            room,
            evicted: 0,
            failed: 0,
            torn: 0,
        };
        // It may have had more room before.
        spool.make_room(0);
        Ok(spool)
    }

    /// How many batches there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Batches that are lost: the oldest for want of room, and those that could not be written.
    #[must_use]
    pub const fn dropped(&self) -> u64 {
        self.evicted + self.failed
    }

    /// The oldest ones, for want of room.
    #[must_use]
    pub const fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Batches that were not whole.
    #[must_use]
    pub const fn torn(&self) -> u64 {
        self.torn
    }

    /// Adds the newest one.
    ///
    /// # Errors
    ///
    /// When it can't be written: it is dropped, and counted.
    pub fn push(&mut self, batch: &[u8]) -> io::Result<()> {
        let number = self.files.back().map_or(FIRST, |(number, _)| number + 1);
        let bytes = self.write(number, batch)?;
        self.files.push_back((number, bytes));
        Ok(())
    }

    /// Puts the oldest one back.
    ///
    /// # Errors
    ///
    /// When it can't be written: it is dropped, and counted.
    pub fn put_back(&mut self, batch: &[u8]) -> io::Result<()> {
        let number = self.files.front().map_or(FIRST, |(number, _)| number.saturating_sub(1));
        let bytes = self.write(number, batch)?;
        self.files.push_front((number, bytes));
        Ok(())
    }

    /// Takes the oldest one that is whole.
    pub fn pop(&mut self) -> Option<Vec<u8>> {
        loop {
            let (number, bytes) = self.files.pop_front()?;
            self.bytes -= bytes;
            let path = self.path(number);
            let read = fs::read(&path);
            // If it stays, it would be sent twice.
            if fs::remove_file(&path).is_err() {
                self.torn += 1;
                continue;
            }
            match read.ok().and_then(whole) {
                Some(batch) => return Some(batch),
                None => self.torn += 1,
            }
        }
    }

    fn write(&mut self, number: u64, batch: &[u8]) -> io::Result<u64> {
        let written = self.try_write(number, batch);
        if written.is_err() {
            self.failed += 1;
        }
        written
    }

    fn try_write(&mut self, number: u64, batch: &[u8]) -> io::Result<u64> {
        let bytes = (HEAD + batch.len()) as u64;
        if bytes > self.room {
            return Err(io::Error::other("a batch is larger than the spool may be"));
        }
        self.make_room(bytes);
        let mut text = Vec::with_capacity(HEAD + batch.len());
        text.extend_from_slice(MAGIC);
        text.extend_from_slice(&(batch.len() as u64).to_le_bytes());
        text.extend_from_slice(&sum(batch));
        text.extend_from_slice(batch);
        let part = self.folder.join(PART);
        fs::write(&part, text)?;
        fs::rename(&part, self.path(number))?;
        self.bytes += bytes;
        Ok(bytes)
    }

    fn make_room(&mut self, bytes: u64) {
        while self.bytes + bytes > self.room {
            let Some((number, oldest)) = self.files.pop_front() else {
                return;
            };
            // One that can't be removed is in nobody's way but the disk's.
            let _gone = fs::remove_file(self.path(number));
            self.bytes -= oldest;
            self.evicted += 1;
        }
    }

    fn path(&self, number: u64) -> PathBuf {
        self.folder.join(format!("{number:016x}"))
    }
}

fn sum(batch: &[u8]) -> [u8; 8] {
    let digest = Sha256::digest(batch);
    let mut sum = [0; 8];
    for (to, from) in sum.iter_mut().zip(digest) {
        *to = from;
    }
    sum
}

/// The batch of a file, if it is whole.
fn whole(mut text: Vec<u8>) -> Option<Vec<u8>> {
    let (head, batch) = text.split_at_checked(HEAD)?;
    let is_whole = head.starts_with(MAGIC)
        && head.get(8..16)? == (batch.len() as u64).to_le_bytes()
        && head.get(16..24)? == sum(batch);
    is_whole.then(|| text.split_off(HEAD))
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    const ROOM: u64 = 1 << 20;

    fn all(spool: &mut Spool) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| spool.pop()).collect()
    }

    #[test]
    fn the_oldest_comes_first_also_after_a_restart() {
        let folder = TempDir::new().unwrap();
        let mut spool = Spool::open(folder.path(), ROOM).unwrap();
        for batch in [b"one", b"two", b"six"] {
            spool.push(batch).unwrap();
        }
        assert_eq!(spool.pop().unwrap(), b"one");
        spool.put_back(b"one").unwrap();
        drop(spool);
        let mut spool = Spool::open(folder.path(), ROOM).unwrap();
        spool.push(b"new").unwrap();
        assert_eq!(all(&mut spool), [b"one", b"two", b"six", b"new"]);
        assert_eq!((spool.dropped(), spool.torn(), spool.len()), (0, 0, 0));
        drop(spool);
        assert!(Spool::open(folder.path(), ROOM).unwrap().is_empty());
    }

    #[test]
    fn what_was_torn_anywhere_or_changed_is_left_out_and_the_rest_is_there() {
        let folder = TempDir::new().unwrap();
        let file = folder.path().join(format!("{FIRST:016x}"));
        let write = || {
            let mut spool = Spool::open(folder.path(), ROOM).unwrap();
            spool.push(b"a batch").unwrap();
            spool.push(b"another").unwrap();
            drop(spool);
            fs::read(&file).unwrap()
        };
        for cut in 0..HEAD + 7 {
            let text = write();
            fs::write(&file, &text[..cut]).unwrap();
            let mut spool = Spool::open(folder.path(), ROOM).unwrap();
            assert_eq!(all(&mut spool), [b"another"], "cut at {cut}");
            assert_eq!(spool.torn(), 1);
            drop(spool);
            let mut text = write();
            text[cut] ^= 1;
            fs::write(&file, &text).unwrap();
            let mut spool = Spool::open(folder.path(), ROOM).unwrap();
            assert_eq!(all(&mut spool), [b"another"], "changed at {cut}");
        }
        // A writer that died in the middle leaves a part, which is nobody's.
        fs::write(folder.path().join(PART), b"gscope").unwrap();
        assert!(Spool::open(folder.path(), ROOM).unwrap().is_empty());
    }

    #[test]
    fn the_oldest_is_dropped_when_there_is_no_room() {
        let folder = TempDir::new().unwrap();
        let room = 3 * (HEAD as u64 + 4);
        let mut spool = Spool::open(folder.path(), room).unwrap();
        for number in 0..5_u32 {
            spool.push(&number.to_le_bytes()).unwrap();
        }
        assert_eq!((spool.len(), spool.dropped()), (3, 2));
        assert!(spool.push(&[0; 100]).is_err());
        assert_eq!((spool.len(), spool.dropped()), (3, 3));
        drop(spool);
        let mut spool = Spool::open(folder.path(), room - 1).unwrap();
        assert_eq!(all(&mut spool), [3_u32.to_le_bytes(), 4_u32.to_le_bytes()]);
    }

    #[test]
    fn it_has_one_writer() {
        let folder = TempDir::new().unwrap();
        let first = Spool::open(folder.path(), ROOM).unwrap();
        assert!(matches!(Spool::open(folder.path(), ROOM), Err(SpoolError::Taken(_))));
        drop(first);
        assert!(Spool::open(folder.path(), ROOM).is_ok());
        let file = folder.path().join("file");
        fs::write(&file, b"").unwrap();
        assert!(matches!(Spool::open(&file, ROOM), Err(SpoolError::Io { .. })));
    }
}
