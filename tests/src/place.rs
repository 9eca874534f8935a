//! Where the binary, the Pythons and the target programs are.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::runner::skip;

/// The versions that the profiler claims, each of which every case runs on.
pub const PYTHONS: [&str; 3] = ["py3.11", "py3.12", "py3.13"];

/// A Python environment by the name of its directory, such as `py3.12`.
#[derive(Clone, Debug)]
pub struct Python {
    /// The directory's name.
    pub name: String,
    /// The interpreter in it.
    pub exe: PathBuf,
}

impl Python {
    /// The environment of that name under `GREENSCOPE_VENVS`.
    ///
    /// # Errors
    ///
    /// A skip when there is none.
    pub fn find(name: &str) -> Result<Self> {
        let exe = environments().join(name).join("bin/python");
        if !exe.exists() {
            return Err(skip(format!("no {name} environment (cargo xtask test makes it)")));
        }
        Ok(Self { name: name.to_owned(), exe })
    }

    /// An interpreter of that name with nothing installed: on the `PATH`, or pyenv's.
    ///
    /// # Errors
    ///
    /// A skip when there is none.
    pub fn bare(name: &str) -> Result<Self> {
        let version = name.trim_start_matches("py");
        let exe = match tool(&format!("python{version}")) {
            Ok(exe) if !exe.components().any(|part| part.as_os_str() == "shims") => exe,
            _ => pyenv(version).ok_or_else(|| skip(format!("no Python {version}")))?,
        };
        Ok(Self { name: name.to_owned(), exe })
    }

    /// `3.12` of `py3.12`.
    pub fn version(&self) -> &str {
        self.name.trim_start_matches("py")
    }
}

/// The interpreter of pyenv's that begins with that version.
fn pyenv(version: &str) -> Option<PathBuf> {
    let root = env::var_os("PYENV_ROOT")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".pyenv")))?;
    let wanted = format!("{version}.");
    let installed = std::fs::read_dir(root.join("versions")).ok()?;
    installed
        .filter_map(Result::ok)
        .find(|entry| entry.file_name().to_string_lossy().starts_with(&wanted))
        .map(|entry| entry.path().join("bin/python"))
        .filter(|exe| exe.exists())
}

fn environments() -> PathBuf {
    env::var_os("GREENSCOPE_VENVS").map_or_else(|| workspace().join("target/venvs"), PathBuf::from)
}

/// The profiler under test: `GREENSCOPE_BIN`, else the release build.
///
/// # Errors
///
/// When there is none: that is a failure, not a skip.
pub fn greenscope() -> Result<PathBuf> {
    let path = env::var_os("GREENSCOPE_BIN")
        .map_or_else(|| workspace().join("target/release/greenscope"), PathBuf::from);
    if !path.exists() {
        bail!("no greenscope at {}: cargo build --release", path.display());
    }
    Ok(path)
}

/// The directory of the whole source.
pub fn workspace() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests).to_owned()
}

/// A program of `tests/targets`.
pub fn target_program(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("targets").join(name)
}

/// A program of `tests/readers`, which reads what greenscope wrote.
pub fn reader_program(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("readers").join(name)
}

/// What only root can try.
///
/// # Errors
///
/// A skip for everybody else.
pub fn as_root() -> Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(skip("needs root: uprobes and BPF"))
}

/// A program on the `PATH`.
///
/// # Errors
///
/// A skip when there is none.
pub fn tool(name: &str) -> Result<PathBuf> {
    let paths = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&paths)
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
        .ok_or_else(|| skip(format!("no {name} on the PATH")))
}
