//! `oap`: a real OAP of SkyWalking's, for the tests and for trying things.

use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};

use crate::{process, workspace};

/// What Maven is told.
const POM: &str = "tests/oap/pom.xml";
/// OAP's configuration: the first in the class path.
const CONFIGURATION: &str = "tests/oap/conf";
/// Written beside the jars when all are there: what they were asked for by.
const STAMP: &str = "made-of.sha256";
/// <https://github.com/apache/skywalking/blob/v10.1.0/oap-server/server-starter/src/main/java/org/apache/skywalking/oap/server/starter/OAPServerStartUp.java>
const MAIN: &str = "org.apache.skywalking.oap.server.starter.OAPServerStartUp";

/// Options of `oap`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Only get what it takes.
    #[arg(long)]
    prepare: bool,
    /// Of gRPC
    #[arg(long, value_name = "PORT", default_value_t = 11_800)]
    port: u16,
    /// Of GraphQL
    #[arg(long, value_name = "PORT", default_value_t = 12_800)]
    rest_port: u16,
}

/// Gets the jars and runs it in the foreground.
///
/// # Errors
///
/// When they can't be had, or it can't be started.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let Arguments { prepare: only, port, rest_port } = *arguments;
    prepare()?;
    if only {
        return Ok(ExitCode::SUCCESS);
    }
    let java = process::find("java").context("no java in PATH: install Java 11 or later")?;
    println!("OAP takes gRPC at 127.0.0.1:{port} and GraphQL at http://127.0.0.1:{rest_port}/graphql");
    println!("it is up in about ten seconds; Ctrl-C ends it, and all that it knows");
    let class_path = format!("{}:{}/*", workspace::root().join(CONFIGURATION).display(), jars().display());
    let mut command = Command::new(java);
    command.args(["-Xms256m", "-Xmx1g", "-XX:ActiveProcessorCount=2", "-cp", &class_path, MAIN]);
    command.env("OAP_GRPC_PORT", port.to_string()).env("OAP_REST_PORT", rest_port.to_string());
    // Signals are its own.
    let error = command.exec();
    bail!("cannot start `{}`: {error}", process::line(&command))
}

/// Where the jars are.
pub(crate) fn jars() -> PathBuf {
    workspace::target().join("oap/lib")
}

/// Whether the jars are there that the pom asks for.
pub(crate) fn is_ready() -> bool {
    stamp().is_ok_and(|stamp| fs::read_to_string(jars().join(STAMP)).is_ok_and(|made_of| made_of == stamp))
}

/// Has Maven get the jars, if they are not there.
///
/// # Errors
///
/// When there is no Maven, or it fails.
pub(crate) fn prepare() -> Result<()> {
    if is_ready() {
        return Ok(());
    }
    let maven = process::find("mvn").context("no mvn in PATH: install Maven, by apt-get install maven")?;
    let folder = jars();
    println!("getting OAP's jars into {} with Maven", folder.display());
    // What another pom asked for must not be in the class path.
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("cannot empty {}", folder.display()))?;
    }
    let mut command = Command::new(maven);
    command.args(["--quiet", "--batch-mode", "--file"]).arg(workspace::root().join(POM));
    command.args(["dependency:copy-dependencies", "-DincludeScope=runtime"]);
    command.arg(format!("-DoutputDirectory={}", folder.display()));
    process::run(&mut command)?;
    let stamp_file = folder.join(STAMP);
    fs::write(&stamp_file, stamp()?).with_context(|| format!("cannot write {}", stamp_file.display()))
}

fn stamp() -> Result<String> {
    let pom = workspace::root().join(POM);
    let text = fs::read(&pom).with_context(|| format!("cannot read {}", pom.display()))?;
    Ok(format!("{:x?}", Sha256::digest(text)))
}
