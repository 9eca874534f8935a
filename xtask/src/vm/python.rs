//! A Python with gevent to take into the test machine, found or made.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};
use serde::Deserialize;

use super::tool;

/// Where an interpreter and its libraries lie on this machine.
#[derive(Debug, Deserialize)]
pub(super) struct Python {
    /// The interpreter itself, no link.
    pub(super) executable: PathBuf,
    pub(super) stdlib: PathBuf,
    pub(super) site_packages: PathBuf,
    pub(super) greenlet: String,
    pub(super) gevent: String,
    /// The greenlet extension, relative to `site_packages`.
    pub(super) extension: PathBuf,
    version: String,
}

/// Says everything about an interpreter, or fails where gevent cannot be imported.
const QUESTION: &str = r#"
import json, os, sys, sysconfig, greenlet, gevent, greenlet._greenlet as extension
site = os.path.dirname(os.path.dirname(greenlet.__file__))
print(json.dumps({
    "executable": os.path.realpath(sys.executable),
    "stdlib": sysconfig.get_path("stdlib", vars={"installed_base": sys.base_prefix}),
    "site_packages": site,
    "greenlet": greenlet.__version__,
    "gevent": gevent.__version__,
    "extension": os.path.relpath(extension.__file__, site),
    "version": "%d.%d" % sys.version_info[:2],
}))
"#;

/// Finds a Python of `version` (`3.13`) that has gevent, or makes a venv under `cache`.
///
/// # Errors
///
/// When there is none and none may be made.
pub(super) fn find(version: &str, target: &Path, install: bool) -> anyhow::Result<Python> {
    let own = target.join("vm").join(format!("venv-{version}"));
    let ready = [target.join(format!("venvs/py{version}")), own.clone()];
    for venv in &ready {
        if let Some(python) = ask(&venv.join("bin/python"), version) {
            return Ok(python);
        }
    }
    if !install {
        bail!(
            "no venv of Python {version} with gevent under {}: leave out --no-install, or make one",
            target.display()
        );
    }
    let base = interpreter(version).with_context(|| {
        format!("Python {version} is not here: install it (pyenv install {version}) and run again")
    })?;
    eprintln!("vm: making a venv of {} with greenlet and gevent from PyPI", base.display());
    if own.exists() {
        fs::remove_dir_all(&own)?;
    }
    tool::output(Command::new(&base).args(["-m", "venv"]).arg(&own))?;
    let pip = ["-m", "pip", "install", "--quiet", "greenlet", "gevent"];
    tool::output(Command::new(own.join("bin/python")).args(pip))?;
    ask(&own.join("bin/python"), version)
        .with_context(|| format!("the venv at {} has no gevent that imports", own.display()))
}

fn ask(python: &Path, version: &str) -> Option<Python> {
    if !python.is_file() {
        return None;
    }
    let answer = tool::output(Command::new(python).args(["-c", QUESTION])).ok()?;
    let found: Python = serde_json::from_str(&answer).ok()?;
    (found.version == version).then_some(found)
}

/// An interpreter of that version: pyenv's newest, else the one in PATH.
fn interpreter(version: &str) -> Option<PathBuf> {
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let mut candidates: Vec<PathBuf> = fs::read_dir(home.join(".pyenv/versions"))
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(&format!("{version}."))
        })
        .map(|path| path.join("bin/python3"))
        .collect();
    candidates.sort();
    candidates.reverse();
    candidates.push(PathBuf::from(format!("python{version}")));
    candidates.into_iter().find(|python| {
        let print = "import sys; print('%d.%d' % sys.version_info[:2])";
        tool::output(Command::new(python).args(["-c", print])).is_ok_and(|answer| answer.trim() == version)
    })
}
