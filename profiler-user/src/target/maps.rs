//! The mappings of a process: `/proc/PID/maps`, parsed.

/// One line of `/proc/PID/maps`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The first address.
    pub start: u64,
    /// The address behind the last.
    pub end: u64,
    /// Whether code may run there.
    pub executable: bool,
    /// Whether it may be written.
    pub writable: bool,
    /// The offset in the file.
    pub offset: u64,
    /// Major and minor number of the file's device.
    pub device: (u32, u32),
    /// The file's inode; 0 for none.
    pub inode: u64,
    /// The path, in the process's own root; empty for none.
    pub path: String,
    /// Whether the file was removed since.
    pub deleted: bool,
}

impl Mapping {
    /// Whether it maps a file.
    #[must_use]
    pub fn is_file(&self) -> bool {
        self.inode != 0 && self.path.starts_with('/')
    }

    /// Whether both map the same file.
    #[must_use]
    pub fn same_file(&self, other: &Self) -> bool {
        self.inode == other.inode && self.device == other.device
    }

    /// Whether it maps a greenlet library.
    #[must_use]
    pub fn is_greenlet(&self) -> bool {
        let name = self.file_name();
        self.is_file() && name.starts_with("_greenlet.") && name.ends_with(".so")
    }

    /// The last part of the path.
    #[must_use]
    pub fn file_name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }
}

/// Every line that can be understood.
///
/// <https://github.com/torvalds/linux/blob/v6.18/fs/proc/task_mmu.c> (`show_map_vma`)
#[must_use]
pub fn parse(text: &str) -> Vec<Mapping> {
    text.lines().filter_map(line).collect()
}

fn line(text: &str) -> Option<Mapping> {
    let (range, rest) = text.split_once(' ')?;
    let (perms, rest) = rest.split_once(' ')?;
    let (offset, rest) = rest.split_once(' ')?;
    let (device, rest) = rest.split_once(' ')?;
    let (inode, path) = rest.split_once(' ').unwrap_or((rest, ""));
    let (start, end) = range.split_once('-')?;
    let (major, minor) = device.split_once(':')?;
    let hex = |digits: &str| u64::from_str_radix(digits, 16).ok();
    let path = path.trim_start_matches(' ');
    let (path, deleted) = match path.strip_suffix(" (deleted)") {
        Some(path) => (path, true),
        None => (path, false),
    };
    let mapping = Mapping {
        start: hex(start)?,
        end: hex(end)?,
        executable: perms.as_bytes().get(2) == Some(&b'x'),
        writable: perms.as_bytes().get(1) == Some(&b'w'),
        offset: hex(offset)?,
        device: (u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?),
        inode: inode.parse().ok()?,
        // The kernel escapes the newline alone.
        path: path.replace("\\012", "\n"),
        deleted,
    };
    (mapping.start < mapping.end).then_some(mapping)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_a_line_of_the_kernel() {
        let text = "7f5e3c000000-7f5e3c021000 r-xp 00002000 fe:01 1234   \
                    /srv/my app/_greenlet.so (deleted)\n\
                    7ffd000-7ffe000 rw-p 00000000 00:00 0          [stack]\n\
                    5000-6000 rw-p 00000000 00:00 0 \n";
        let maps = parse(text);
        assert_eq!(maps.len(), 3);
        assert_eq!(maps[0].path, "/srv/my app/_greenlet.so");
        assert_eq!(maps[0].file_name(), "_greenlet.so");
        assert!(maps[0].deleted && maps[0].executable && maps[0].is_file());
        assert_eq!(maps[0].device, (0xfe, 1));
        assert!(!maps[1].is_file() && maps[1].writable);
        assert_eq!(maps[2].path, "");
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(
            start in 1_u64..u64::MAX / 2, len in 1_u64..1 << 40, offset in any::<u64>(),
            device in any::<(u16, u16)>(), inode in any::<u64>(),
            path in "(/[a-zA-Z0-9 .é\n-]{1,12}){1,4}[a-z]", deleted in any::<bool>(),
        ) {
            let mapping = Mapping {
                start, end: start + len, executable: deleted, writable: !deleted, offset,
                device: (device.0.into(), device.1.into()), inode, path, deleted,
            };
            let perms = if deleted { "r-xp" } else { "rw-p" };
            let text = format!(
                "{:x}-{:x} {perms} {:08x} {:02x}:{:02x} {} {:10}{}{}",
                mapping.start, mapping.end, mapping.offset, mapping.device.0, mapping.device.1,
                mapping.inode, "", mapping.path.replace('\n', "\\012"),
                if deleted { " (deleted)" } else { "" },
            );
            prop_assert_eq!(parse(&text), vec![mapping]);
        }

        #[test]
        fn foreign_text_does_no_harm(text in "[0-9a-f :x/\\-\n]{0,200}") {
            let count = parse(&text).len();
            prop_assert!(count <= text.lines().count());
        }
    }
}
