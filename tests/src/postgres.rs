//! A PostgreSQL of a test's own, in a directory of its own.

use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::deadline::Deadline;
use crate::place::{as_root, tool};
use crate::process::Process;
use crate::recording::run;
use crate::runner::skip;

/// Nobody: PostgreSQL refuses to be root's.
const NOBODY: u32 = 65_534;
/// Where Debian keeps its programs, by version.
const DEBIAN: &str = "/usr/lib/postgresql";

/// A running server on a unix socket, with user `postgres` and nothing to prove; ended when
/// dropped.
#[derive(Debug)]
pub struct Postgres {
    server: Process,
    directory: TempDir,
}

impl Postgres {
    /// Makes a cluster, and starts it.
    ///
    /// # Errors
    ///
    /// A skip where there is no PostgreSQL; else when it does not come up.
    pub fn start() -> Result<Self> {
        as_root()?;
        let (initdb, server) = (program("initdb")?, program("postgres")?);
        let directory = TempDir::new()?;
        chown(directory.path(), Some(NOBODY), Some(NOBODY))?;
        let data = directory.path().join("data");
        let made = run(as_nobody(&initdb)?
            .arg("-D")
            .arg(&data)
            .args(["-U", "postgres", "--auth=trust", "--no-sync"])
            .current_dir(&directory))?;
        ensure!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        let server = Process::start(
            as_nobody(&server)?
                .arg("-D")
                .arg(&data)
                .args(["-h", "", "-F", "-k"])
                .arg(directory.path())
                .current_dir(&directory),
        )?;
        let ready = |line: &str| line.contains("ready to accept connections");
        server.stderr.line(0, Deadline::usual(), "PostgreSQL's readiness", ready)?;
        Ok(Self { server, directory })
    }

    /// How libpq finds it.
    pub fn address(&self) -> String {
        format!("host={} user=postgres dbname=postgres", self.directory.path().display())
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // At once, but with its shared memory given back; if it does not obey it is killed.
        let _gone = self.server.signal(Signal::QUIT);
        let _ended = self.server.ended(Deadline::after(Duration::from_secs(10)));
    }
}

fn as_nobody(program: &Path) -> Result<Command> {
    let mut command = Command::new(tool("setpriv")?);
    command.arg(format!("--reuid={NOBODY}")).arg(format!("--regid={NOBODY}")).arg("--clear-groups");
    // Messages in English: one is waited for.
    command.env("LC_ALL", "C").arg(program);
    Ok(command)
}

/// The newest of Debian's, else one on the `PATH`.
fn program(name: &str) -> Result<PathBuf> {
    let versions = std::fs::read_dir(DEBIAN).into_iter().flatten().flatten();
    let newest = versions
        .filter_map(|entry| {
            let version: u32 = entry.file_name().to_str()?.parse().ok()?;
            Some((version, entry.path().join("bin").join(name)))
        })
        .filter(|(_, path)| path.is_file())
        .max();
    match newest {
        Some((_, path)) => Ok(path),
        None => tool(name).map_err(|_| skip("no PostgreSQL (cargo xtask test installs it)")),
    }
}
