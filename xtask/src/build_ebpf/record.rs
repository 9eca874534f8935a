//! The record beside the object: its hash, its sources' hash, its toolchain.

use std::{fmt::Write as _, fs, path::PathBuf};

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};

use super::toolchain::{self, Toolchain, Versions};
use crate::workspace;

/// The committed object.
pub(super) const OBJECT: &str = "profiler-ebpf/greenscope.bpf.o";

/// The record of it.
pub(super) const RECORD: &str = "profiler-ebpf/greenscope.bpf.o.toml";

/// Crates whose every file is a source of the object.
const CRATES: [&str; 2] = ["profiler-common", "profiler-ebpf"];

/// What the committed object was made of and by.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// SHA-256 of the object.
    pub(super) object: String,
    /// SHA-256 over its sources and the flags.
    pub(super) sources: String,
    /// The toolchain.
    versions: Versions,
}

/// Where the record lies.
pub(super) fn path() -> PathBuf {
    workspace::root().join(RECORD)
}

/// SHA-256 in hexadecimal.
pub(super) fn hash(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in Sha256::digest(bytes) {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// SHA-256 over the names and hashes of everything that the object is made of.
pub(super) fn sources_hash() -> Result<String> {
    let root = workspace::root();
    let mut list = format!("flags {}\n", toolchain::flags());
    let manifest = fs::read_to_string(root.join("Cargo.toml")).context("cannot read Cargo.toml")?;
    list.push_str(&profiles(&manifest));
    let mut files = vec![root.join("Cargo.lock")];
    for folder in CRATES {
        files.extend(workspace::files_below(&root.join(folder))?);
    }
    for file in files {
        let name = workspace::relative(&root, &file);
        if name == OBJECT || name == RECORD {
            continue;
        }
        let text = fs::read(&file).with_context(|| format!("cannot read {name}"))?;
        // Writing to a String cannot fail.
        let _ = writeln!(list, "{} {name}", hash(&text));
    }
    Ok(hash(list.as_bytes()))
}

/// The profiles' part of the workspace's manifest, without comments: flags too.
fn profiles(manifest: &str) -> String {
    let mut inside = false;
    let mut kept = String::new();
    for line in manifest.lines().map(str::trim) {
        if line.starts_with('[') {
            inside = line.starts_with("[profile.release");
        }
        if inside && !line.is_empty() && !line.starts_with('#') {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    kept
}

impl Record {
    /// The record of an object that was just built.
    pub(super) fn new(object: &[u8], toolchain: &Toolchain) -> Result<Self> {
        Ok(Self { object: hash(object), sources: sources_hash()?, versions: toolchain.versions.clone() })
    }

    /// As it is committed.
    pub(super) fn text(&self) -> String {
        let Self { object, sources, versions: Versions { rustc, rustc_llvm, linker, linker_llvm } } = self;
        format!(
            "# Written by `cargo xtask build-ebpf`; `cargo xtask build-ebpf --check` compares.\n\
             object_sha256 = \"{object}\"\n\
             sources_sha256 = \"{sources}\"\n\
             rustc = \"{rustc}\"\n\
             rustc_llvm = \"{rustc_llvm}\"\n\
             linker = \"{linker}\"\n\
             linker_llvm = \"{linker_llvm}\"\n"
        )
    }

    /// The committed record.
    pub(super) fn read() -> Result<Self> {
        let text = fs::read_to_string(path())
            .with_context(|| format!("cannot read {RECORD}: run cargo xtask build-ebpf"))?;
        Self::parse(&text)
    }

    fn parse(text: &str) -> Result<Self> {
        let value = |key: &str| -> Result<String> {
            let found = text.lines().find_map(|line| {
                let (name, value) = line.split_once('=')?;
                let value = value.trim().strip_prefix('"')?.strip_suffix('"')?;
                (name.trim() == key).then(|| value.to_owned())
            });
            match found {
                Some(value) => Ok(value),
                None => bail!("{RECORD} has no `{key}`: run cargo xtask build-ebpf"),
            }
        };
        Ok(Self {
            object: value("object_sha256")?,
            sources: value("sources_sha256")?,
            versions: Versions {
                rustc: value("rustc")?,
                rustc_llvm: value("rustc_llvm")?,
                linker: value("linker")?,
                linker_llvm: value("linker_llvm")?,
            },
        })
    }

    /// Why a rebuild cannot be compared, when this is not the toolchain on record.
    pub(super) fn other_toolchain(&self, toolchain: &Toolchain) -> Option<String> {
        (self.versions != toolchain.versions)
            .then(|| format!("on record is {}, here is {}", self.versions, toolchain.versions))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            object: hash(b"object"),
            sources: hash(b"sources"),
            versions: Versions {
                rustc: "rustc 1.96.0 (ac68faa20 2026-05-25)".to_owned(),
                rustc_llvm: "22.1.8".to_owned(),
                linker: "bpf-linker 0.13.0".to_owned(),
                linker_llvm: "22.1.8".to_owned(),
            },
        }
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        assert_eq!(Record::parse(&record().text()).unwrap(), record());
    }

    #[test]
    fn a_record_without_a_key_is_refused_by_name() {
        let text = record().text().replace("rustc_llvm", "other");
        let error = Record::parse(&text).unwrap_err().to_string();
        assert!(error.contains("`rustc_llvm`"), "{error}");
    }

    #[test]
    fn only_the_release_profiles_are_flags() {
        let manifest =
            "[workspace]\nx = 1\n[profile.release]\n# why\ndebug = 2\n\n[profile.dev]\ndebug = 0\n";
        assert_eq!(profiles(manifest), "[profile.release]\ndebug = 2\n");
    }

    #[test]
    fn the_sources_are_hashed_the_same_twice() {
        assert_eq!(sources_hash().unwrap(), sources_hash().unwrap());
    }
}
