//! Where a result goes: whole or not at all.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use super::Failure;

/// An output that was found to be writable before anything was recorded.
pub(super) enum Output {
    /// Standard output.
    Stdout,
    /// A file, written beside its name at the end, and renamed when it is whole.
    File { path: PathBuf, partial: PathBuf },
    /// Something that can't be renamed to: a device or a pipe.
    Special { path: PathBuf, file: File },
}

impl Output {
    /// Opens `path` (`-` for standard output).
    pub(super) fn open(path: &Path) -> Result<Self, Failure> {
        if path == Path::new("-") {
            return Ok(Self::Stdout);
        }
        let refused = |error: &io::Error| {
            Failure::failed(format!("{} can't be written: {error}; choose another -o", path.display()))
        };
        match fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => {
                return Err(Failure::failed(format!("{} is a directory; name a file", path.display())));
            }
            Ok(metadata) if !metadata.is_file() => {
                let file = OpenOptions::new().write(true).open(path).map_err(|error| refused(&error))?;
                return Ok(Self::Special { path: path.to_owned(), file });
            }
            Ok(_) => {
                // What may not be written must not be replaced either.
                let _writable = OpenOptions::new().write(true).open(path).map_err(|error| refused(&error))?;
            }
            Err(_) => {}
        }
        let name = path.file_name().ok_or_else(|| {
            Failure::failed(format!("{} is no file name; choose another -o", path.display()))
        })?;
        let partial = path.with_file_name(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
        // That it can be made is known now; killed meanwhile, nothing of it stays.
        create(&partial).and_then(|_| fs::remove_file(&partial)).map_err(|error| refused(&error))?;
        Ok(Self::File { path: path.to_owned(), partial })
    }

    /// Writes everything that `write` gives.
    pub(super) fn write(self, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), Failure> {
        match self {
            Self::Stdout => {
                let mut out = BufWriter::new(io::stdout().lock());
                match write(&mut out).and_then(|()| out.flush()) {
                    // The reader has enough: its right.
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
                    result => result.map_err(|error| {
                        Failure::failed(format!("standard output can't be written: {error}"))
                    }),
                }
            }
            Self::File { ref path, ref partial } => {
                let written = create(partial).and_then(|file| {
                    let mut out = BufWriter::new(file);
                    write(&mut out)?;
                    out.flush()
                });
                written
                    .and_then(|()| fs::rename(partial, path))
                    .map_err(|error| Failure::failed(format!("{} can't be written: {error}", path.display())))
            }
            Self::Special { ref path, ref file } => {
                let mut out = BufWriter::new(file);
                write(&mut out)
                    .and_then(|()| out.flush())
                    .map_err(|error| Failure::failed(format!("{} can't be written: {error}", path.display())))
            }
        }
    }
}

/// Makes a file that nobody else made: root follows no link that was laid for it.
fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).open(path)
}

impl Drop for Output {
    fn drop(&mut self) {
        if let Self::File { partial, .. } = self {
            // Renamed when it was written; else nothing half-written stays.
            let _removed = fs::remove_file(partial);
        }
    }
}
