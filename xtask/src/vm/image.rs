//! The contents of the test machine: what is needed of this one, at the same paths.

use std::collections::BTreeMap;
use std::fs;
use std::io::BufWriter;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

use super::cpio::Archive;
use super::python::Python;

/// Parts of a Python that no test machine needs; most of its size.
const LEFT_OUT: &[&str] = &[
    "test",
    "tests",
    "idlelib",
    "tkinter",
    "turtledemo",
    "ensurepip",
    "lib2to3",
    "pip",
    "setuptools",
    "pydoc_data",
];

/// A file system by path. Sorted, so that parents precede their children and
/// the same contents give the same image.
#[derive(Default)]
pub(super) struct Image {
    nodes: BTreeMap<String, Node>,
}

enum Node {
    Directory,
    /// A copy of a file of this machine.
    Copy(PathBuf),
    /// A file made here.
    Text {
        permissions: u32,
        text: String,
    },
    Symlink(String),
    CharacterDevice(u32, u32),
}

impl Image {
    /// An image with the mount points, the first console and `/init`.
    pub(super) fn new(init: &Path, busybox: &Path) -> anyhow::Result<Self> {
        let mut image = Self::default();
        for folder in ["/proc", "/sys", "/tmp", "/run", "/root", "/etc"] {
            image.insert(folder, Node::Directory);
        }
        image.insert("/dev/console", Node::CharacterDevice(5, 1));
        image.insert("/dev/null", Node::CharacterDevice(1, 3));
        let script = fs::read_to_string(init)
            .with_context(|| format!("{} is missing from the source tree", init.display()))?;
        image.text("/init", 0o755, script);
        image.insert("/bin/busybox", Node::Copy(busybox.to_owned()));
        image.text("/etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\n".to_owned());
        Ok(image)
    }

    pub(super) fn text(&mut self, path: &str, permissions: u32, text: String) {
        self.insert(path, Node::Text { permissions, text });
    }

    /// Takes a file of this machine to `path`, with the libraries it is linked to.
    pub(super) fn program(&mut self, path: &str, source: &Path) -> anyhow::Result<()> {
        self.insert(path, Node::Copy(source.to_owned()));
        self.libraries(&[source.to_owned()])
    }

    /// Takes an interpreter with its standard library to the same paths, and its
    /// site-packages to `/site`, with every library that any of it is linked to.
    pub(super) fn python(&mut self, python: &Python) -> anyhow::Result<()> {
        let executable = python.executable.display().to_string();
        self.insert(&executable, Node::Copy(python.executable.clone()));
        let mut linked = vec![python.executable.clone()];
        linked.extend(self.tree(&python.stdlib.display().to_string(), &python.stdlib)?);
        linked.extend(self.tree("/site", &python.site_packages)?);
        self.libraries(&linked)
    }

    /// Takes a folder, but for what a test machine does not need; gives its
    /// shared libraries.
    fn tree(&mut self, path: &str, source: &Path) -> anyhow::Result<Vec<PathBuf>> {
        let mut linked = Vec::new();
        let entries =
            fs::read_dir(source).with_context(|| format!("cannot read the folder {}", source.display()))?;
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let inner = format!("{path}/{name}");
            let kind = entry.file_type()?;
            if kind.is_dir() {
                let site = name == "site-packages" || name == "dist-packages";
                let left_out = site || LEFT_OUT.contains(&name.as_str());
                if !left_out && !name.starts_with("config-") {
                    linked.extend(self.tree(&inner, &entry.path())?);
                }
            } else if kind.is_symlink() {
                let target = fs::read_link(entry.path())?;
                self.insert(&inner, Node::Symlink(target.display().to_string()));
            } else if kind.is_file() && is_needed(&name) {
                if name.ends_with(".so") || name.contains(".so.") {
                    linked.push(entry.path());
                }
                self.insert(&inner, Node::Copy(entry.path()));
            }
        }
        Ok(linked)
    }

    /// Adds what `ldd` names for these files, at the same paths.
    fn libraries(&mut self, linked: &[PathBuf]) -> anyhow::Result<()> {
        // ldd fails when one of many files is static, so its exit code says nothing.
        let output = Command::new("ldd").args(linked).stdin(Stdio::null()).output();
        let output = output.context("ldd cannot be started: install libc-bin")?;
        for path in libraries_named(&String::from_utf8_lossy(&output.stdout)) {
            if self.nodes.contains_key(&path) {
                continue;
            }
            let source = PathBuf::from(&path);
            if !source.is_file() {
                bail!("ldd names {path}, which is no file: a library is missing");
            }
            self.insert(&path, Node::Copy(source));
        }
        Ok(())
    }

    /// Adds a node and the folders above it.
    fn insert(&mut self, path: &str, node: Node) {
        for (at, _) in path.match_indices('/').skip(1) {
            if let Some(folder) = path.get(..at) {
                self.nodes.entry(folder.to_owned()).or_insert(Node::Directory);
            }
        }
        self.nodes.insert(path.to_owned(), node);
    }

    /// Writes the image as an uncompressed archive; gives its size in bytes.
    pub(super) fn write(&self, path: &Path) -> anyhow::Result<u64> {
        let file = fs::File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        let mut archive = Archive::new(BufWriter::new(file));
        for (name, node) in &self.nodes {
            match node {
                Node::Directory => archive.directory(name)?,
                Node::Text { permissions, text } => {
                    archive.file(name, *permissions, 0, text.as_bytes())?;
                }
                Node::Symlink(target) => archive.symlink(name, target)?,
                Node::CharacterDevice(major, minor) => {
                    archive.character_device(name, *major, *minor)?;
                }
                Node::Copy(source) => {
                    let bytes =
                        fs::read(source).with_context(|| format!("cannot read {}", source.display()))?;
                    let metadata = fs::metadata(source)?;
                    // Python checks a .pyc against its source's time, cut to 32 bits.
                    let mtime = u32::try_from(metadata.mtime()).unwrap_or(0);
                    archive.file(name, metadata.permissions().mode(), mtime, &bytes)?;
                }
            }
        }
        archive.finish()?;
        Ok(fs::metadata(path)?.len())
    }
}

fn is_needed(name: &str) -> bool {
    let optimised = name.ends_with(".opt-1.pyc") || name.ends_with(".opt-2.pyc");
    let source_of_c =
        [".pyx", ".pxd", ".c", ".h", ".cpp", ".hpp", ".a", ".o"].iter().any(|ending| name.ends_with(ending));
    !optimised && !source_of_c && !name.starts_with("_tkinter.") && !name.starts_with("_test")
}

/// The paths in `ldd`'s output; what it does not find is left to the loader.
fn libraries_named(output: &str) -> Vec<String> {
    let mut paths: Vec<String> = output
        .lines()
        .filter_map(|line| {
            let line = line.trim();
            let (before, _) = line.split_once(" (0x")?;
            let path = before.split_once(" => ").map_or(before, |(_, path)| path).trim();
            path.starts_with('/').then(|| path.to_owned())
        })
        .collect();
    paths.sort();
    paths.dedup();
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ldd_output_gives_paths_once() {
        let output = "/a/python3:\n\tlinux-vdso.so.1 (0x00007ffe)\n\tlibm.so.6 => /lib/x/libm.so.6 (0x00007f)\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n/b.so:\n\tlibm.so.6 => /lib/x/libm.so.6 (0x00007e)\n\tlibtk8.6.so => not found\n\tstatically linked\n";
        assert_eq!(libraries_named(output), ["/lib/x/libm.so.6", "/lib64/ld-linux-x86-64.so.2"]);
    }

    #[test]
    fn parents_come_before_their_children() {
        let mut image = Image::default();
        image.text("/a/b/c", 0o644, String::new());
        image.text("/a-x", 0o644, String::new());
        let names: Vec<&str> = image.nodes.keys().map(String::as_str).collect();
        assert_eq!(names, ["/a", "/a-x", "/a/b", "/a/b/c"]);
    }

    #[test]
    fn the_image_is_the_same_every_time() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("source");
        fs::create_dir_all(source.join("package/tests")).unwrap();
        fs::write(source.join("package/tests/big.py"), "left out").unwrap();
        for name in ["z.py", "a.py", "m.pyx"] {
            fs::write(source.join("package").join(name), name).unwrap();
        }
        let mut written = Vec::new();
        for round in ["one", "two"] {
            let mut image = Image::default();
            image.tree("/site", &source).unwrap();
            let names: Vec<&str> = image.nodes.keys().map(String::as_str).collect();
            assert_eq!(names, ["/site", "/site/package", "/site/package/a.py", "/site/package/z.py"]);
            let path = folder.path().join(round);
            image.write(&path).unwrap();
            written.push(fs::read(&path).unwrap());
        }
        assert_eq!(written[0], written[1]);
    }
}
