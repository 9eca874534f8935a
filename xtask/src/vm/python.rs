//! A Python with gevent to take into the test machine: the tests' own environment.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};
use serde::Deserialize;

use crate::{
    process,
    python::{self, Environment},
};

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
}

/// What to ask an interpreter; it fails where gevent cannot be imported.
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
}))
"#;

/// The environment of `version` (`3.13`) with what the tests' targets need.
///
/// # Errors
///
/// When there is none and none may be made.
pub(super) fn find(version: &str, requirements: &Path, install: bool) -> anyhow::Result<Python> {
    let wanted = version
        .split_once('.')
        .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)))
        .with_context(|| format!("`{version}` is no version of Python: --python takes 3.13"))?;
    let pythons = python::interpreters();
    let base = python::of_version(&pythons, wanted).with_context(|| {
        format!("no Python {version} with venv on this machine: install one, or name another by --python")
    })?;
    let packages = fs::read_to_string(requirements)
        .with_context(|| format!("cannot read {}", requirements.display()))?;
    let environment = Environment::new(&format!("py{version}"), base, &packages);
    if !install && !environment.is_ready() {
        bail!("target/venvs/py{version} is not made: leave out --no-install");
    }
    environment.make(base, requirements)?;
    let answer = process::output(Command::new(environment.python()).args(["-c", QUESTION]))?;
    serde_json::from_str(&answer)
        .with_context(|| format!("{} said what is not expected", environment.python().display()))
}
