//! Writes a cpio archive in the `newc` format, as the kernel wants its initramfs.
//!
//! The format: <https://docs.kernel.org/driver-api/early-userspace/buffer-format.html>.
//! The same entries in the same order give the same bytes: inode numbers count
//! up, owners are root, and the times are the caller's.

use std::io::{self, Write};

use anyhow::Context as _;

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER: u32 = 0o020_000;

/// An archive being written to `out`.
pub(super) struct Archive<W: Write> {
    out: W,
    written: u64,
    entries: u32,
}

/// The header fields that differ between entries.
#[derive(Default)]
struct Header {
    mode: u32,
    links: u32,
    mtime: u32,
    device: (u32, u32),
}

impl<W: Write> Archive<W> {
    pub(super) fn new(out: W) -> Self {
        Self { out, written: 0, entries: 0 }
    }

    /// Adds a directory; parents come before their children.
    pub(super) fn directory(&mut self, path: &str) -> anyhow::Result<()> {
        let header = Header { mode: DIRECTORY | 0o755, links: 2, ..Header::default() };
        self.entry(path, &header, &[])
    }

    /// Adds a file; `mtime` matters because Python checks its caches by it.
    pub(super) fn file(
        &mut self,
        path: &str,
        permissions: u32,
        mtime: u32,
        bytes: &[u8],
    ) -> anyhow::Result<()> {
        let mode = REGULAR | (permissions & 0o7777);
        self.entry(path, &Header { mode, links: 1, mtime, ..Header::default() }, bytes)
    }

    /// Adds a symbolic link to `target`.
    pub(super) fn symlink(&mut self, path: &str, target: &str) -> anyhow::Result<()> {
        let header = Header { mode: SYMLINK | 0o777, links: 1, ..Header::default() };
        self.entry(path, &header, target.as_bytes())
    }

    /// Adds a character device node, which needs no privilege in an archive.
    pub(super) fn character_device(&mut self, path: &str, major: u32, minor: u32) -> anyhow::Result<()> {
        let mode = CHARACTER | 0o600;
        let header = Header { mode, links: 1, device: (major, minor), ..Header::default() };
        self.entry(path, &header, &[])
    }

    /// Writes the end mark and gives the output back.
    pub(super) fn finish(mut self) -> anyhow::Result<W> {
        self.entries = 0;
        self.entry("TRAILER!!!", &Header { links: 1, ..Header::default() }, &[])?;
        self.pad_to(512)?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn entry(&mut self, path: &str, header: &Header, bytes: &[u8]) -> anyhow::Result<()> {
        let Header { mode, links, mtime, device } = header;
        let name = path.trim_start_matches('/');
        let size = u32::try_from(bytes.len())
            .with_context(|| format!("{path} is too large for a cpio archive (4 GiB)"))?;
        let name_size = u32::try_from(name.len() + 1)
            .with_context(|| format!("a path of {} bytes is too long", name.len()))?;
        // inode, mode, uid, gid, links, mtime, size, device of the file system
        // (two), device of the node (two), name's size, checksum
        let fields =
            [self.entries, *mode, 0, 0, *links, *mtime, size, 0, 0, device.0, device.1, name_size, 0];
        self.entries += 1;
        self.put(b"070701")?;
        for field in fields {
            self.put(format!("{field:08X}").as_bytes())?;
        }
        self.put(name.as_bytes())?;
        self.put(b"\0")?;
        self.pad_to(4)?;
        self.put(bytes)?;
        self.pad_to(4)?;
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    fn pad_to(&mut self, alignment: u64) -> io::Result<()> {
        while !self.written.is_multiple_of(alignment) {
            self.put(b"\0")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let mut archive = Archive::new(Vec::new());
        archive.directory("/dev").unwrap();
        archive.character_device("/dev/console", 5, 1).unwrap();
        archive.file("/init", 0o755, 7, b"#!/bin/sh\n").unwrap();
        archive.symlink("/sh", "init").unwrap();
        archive.finish().unwrap()
    }

    #[test]
    fn the_same_entries_give_the_same_bytes() {
        assert_eq!(sample(), sample());
    }

    #[test]
    fn headers_names_and_contents_are_aligned() {
        let bytes = sample();
        assert_eq!(bytes.len() % 512, 0);
        let text = String::from_utf8_lossy(&bytes);
        let starts: Vec<usize> = text.match_indices("070701").map(|(at, _)| at).collect();
        assert_eq!(starts.len(), 5, "four entries and the end mark");
        assert!(starts.iter().all(|at| at % 4 == 0), "{starts:?}");
        assert!(text.contains("TRAILER!!!\0"));
    }

    #[test]
    fn a_file_says_its_mode_time_and_size() {
        let mut archive = Archive::new(Vec::new());
        archive.file("/a", 0o755, 0x1234, b"xyz").unwrap();
        let bytes = archive.finish().unwrap();
        let text = String::from_utf8_lossy(&bytes);
        let fields: Vec<&str> = (0..13).map(|field| &text[6 + field * 8..14 + field * 8]).collect();
        assert_eq!(fields[1], "000081ED");
        assert_eq!(fields[5], "00001234");
        assert_eq!(fields[6], "00000003");
        assert_eq!(fields[11], "00000002");
        assert_eq!(&bytes[110..112], b"a\0");
        assert_eq!(&bytes[112..115], b"xyz");
    }

    /// The system's own cpio reader must agree, where there is one.
    #[test]
    fn busybox_lists_what_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("archive.cpio");
        std::fs::write(&path, sample()).unwrap();
        let input = std::fs::File::open(&path).unwrap();
        let listing = std::process::Command::new("busybox").args(["cpio", "-t"]).stdin(input).output();
        match listing {
            Ok(output) => {
                let names = String::from_utf8_lossy(&output.stdout).into_owned();
                assert_eq!(names, "dev\ndev/console\ninit\nsh\n");
            }
            Err(error) => eprintln!("skipped: no busybox to read the archive: {error}"),
        }
    }
}
