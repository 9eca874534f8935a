//! Python interpreters on this machine, and virtual environments under target/.

use std::{
    collections::BTreeSet,
    fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};

use crate::{process, workspace};

/// The versions of Python that greenscope covers.
pub(crate) const COVERED: [(u32, u32); 3] = [(3, 11), (3, 12), (3, 13)];

/// Written into an environment when it is complete: what it was made of.
const STAMP: &str = "made-of.sha256";

/// An interpreter that can make virtual environments.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Python {
    /// `(3, 12, 1)`.
    pub(crate) version: (u32, u32, u32),
    /// The interpreter itself, not pyenv's shim of it.
    pub(crate) path: PathBuf,
}

impl fmt::Display for Python {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { version: (major, minor, micro), path } = self;
        write!(f, "Python {major}.{minor}.{micro} ({})", path.display())
    }
}

/// Every interpreter of a covered version: pyenv's, then those in `PATH`.
pub(crate) fn interpreters() -> Vec<Python> {
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for candidate in candidates() {
        let Some(python) = ask(&candidate) else {
            continue;
        };
        let (major, minor, _) = python.version;
        if COVERED.contains(&(major, minor)) && seen.insert(python.path.clone()) {
            found.push(python);
        }
    }
    found
}

/// The interpreter for one version: the newest of pyenv's, else the first in `PATH`.
pub(crate) fn of_version(pythons: &[Python], wanted: (u32, u32)) -> Option<&Python> {
    pythons.iter().find(|python| (python.version.0, python.version.1) == wanted)
}

/// `3.13`, if it is one that greenscope covers; for command lines.
pub(crate) fn covered(text: &str) -> Result<(u32, u32), String> {
    let numbers =
        text.split_once('.').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    match numbers {
        Some(version) if COVERED.contains(&version) => Ok(version),
        _ => Err(format!("'{text}' is none of 3.11, 3.12 and 3.13")),
    }
}

/// Where interpreters may be, the best first.
fn candidates() -> Vec<PathBuf> {
    let mut versions: Vec<PathBuf> = pyenv_roots()
        .iter()
        .filter_map(|root| fs::read_dir(root.join("versions")).ok())
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path().join("bin/python3")))
        .collect();
    versions.sort();
    versions.reverse();
    let names =
        COVERED.iter().map(|(major, minor)| format!("python{major}.{minor}")).chain(["python3".to_owned()]);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    for name in names {
        versions.extend(folders.iter().map(|folder| folder.join(&name)));
    }
    versions.retain(|path| process::is_executable(path));
    versions
}

/// pyenv's folder by its variable and by its custom.
fn pyenv_roots() -> Vec<PathBuf> {
    let root = std::env::var_os("PYENV_ROOT").map(PathBuf::from);
    let custom = process::home().map(|home| home.join(".pyenv"));
    let mut roots: Vec<PathBuf> = root.into_iter().chain(custom).collect();
    roots.dedup();
    roots
}

/// Ask an interpreter who it is; one that cannot make environments is none.
fn ask(candidate: &Path) -> Option<Python> {
    let program = "import ensurepip, os, sys, venv; \
                   print(*sys.version_info[:3], os.path.realpath(sys.executable))";
    let text = process::output(Command::new(candidate).args(["-c", program])).ok()?;
    let mut words = text.trim().splitn(4, ' ');
    let mut number = || words.next()?.parse::<u32>().ok();
    let version = (number()?, number()?, number()?);
    let path = PathBuf::from(words.next()?);
    // A shim names itself; the interpreter of a virtual environment names its base.
    Some(Python { version, path })
}

/// A virtual environment under target/venvs.
pub(crate) struct Environment {
    folder: PathBuf,
    stamp: String,
}

impl Environment {
    /// The environment `name` of an interpreter with packages as pip takes them.
    pub(crate) fn new(name: &str, python: &Python, requirements: &str) -> Self {
        let made_of = format!("{python}\n{requirements}");
        Self { folder: folder().join(name), stamp: format!("{:x?}", Sha256::digest(made_of.as_bytes())) }
    }

    /// Its interpreter.
    pub(crate) fn python(&self) -> PathBuf {
        self.folder.join("bin/python")
    }

    /// Whether it is there, made of what it should be made of.
    pub(crate) fn is_ready(&self) -> bool {
        fs::read_to_string(self.folder.join(STAMP)).is_ok_and(|stamp| stamp == self.stamp)
    }

    /// Make it anew, saying so; does nothing when it is ready.
    ///
    /// # Errors
    ///
    /// When venv or pip fails.
    pub(crate) fn make(&self, python: &Python, requirements: &Path) -> Result<()> {
        if self.is_ready() {
            return Ok(());
        }
        let text = fs::read_to_string(requirements)
            .with_context(|| format!("cannot read {}", requirements.display()))?;
        let packages: Vec<&str> =
            text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
        println!("installing {} into {} with {python}", packages.join(", "), self.folder.display());
        let mut venv = Command::new(&python.path);
        venv.args(["-m", "venv", "--clear"]).arg(&self.folder);
        process::run(&mut venv)?;
        let mut pip = Command::new(self.python());
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
            .arg("--requirement")
            .arg(requirements);
        process::run(&mut pip)?;
        let stamp = self.folder.join(STAMP);
        fs::write(&stamp, &self.stamp).with_context(|| format!("cannot write {}", stamp.display()))
    }
}

/// Where the environments are.
pub(crate) fn folder() -> PathBuf {
    workspace::target().join("venvs")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn python(minor: u32, path: &str) -> Python {
        Python { version: (3, minor, 1), path: path.into() }
    }

    #[test]
    fn the_first_of_a_version_is_taken() {
        let pythons = [python(11, "/a"), python(12, "/b"), python(12, "/c")];
        assert_eq!(of_version(&pythons, (3, 12)), pythons.get(1));
        assert_eq!(of_version(&pythons, (3, 13)), None);
    }

    #[test]
    fn versions_that_are_covered() {
        assert_eq!(covered("3.12"), Ok((3, 12)));
        for wrong in ["3", "3.10", "4.0", "3.x"] {
            assert!(covered(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_environment_is_remade_when_anything_changed() {
        let stamp = |python: &Python, packages| Environment::new("x", python, packages).stamp;
        let one = stamp(&python(12, "/b"), "gevent\n");
        assert_eq!(one, stamp(&python(12, "/b"), "gevent\n"));
        assert_ne!(one, stamp(&python(12, "/c"), "gevent\n"));
        assert_ne!(one, stamp(&python(12, "/b"), "gevent\nflask\n"));
    }
}
