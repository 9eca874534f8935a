//! A real OAP of SkyWalking's, of a test's own: see tests/oap/README.md.

use std::env;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::deadline::Deadline;
use crate::graphql::Graphql;
use crate::place::{tool, workspace};
use crate::process::Process;
use crate::runner::skip;

const MAIN: &str = "org.apache.skywalking.oap.server.starter.OAPServerStartUp";
/// Ten seconds on two idle cores.
const START: Duration = Duration::from_secs(120);
/// Lines of its log that say that somebody sent what it can't take.
const OUR_FAULT: [&str; 4] = [
    "SEVERE: Exception while executing runnable",
    "Unique index or primary key violation",
    "_19700101\" not found",
    "Value too long for column",
];

/// A running OAP; killed when dropped.
#[derive(Debug)]
pub struct Oap {
    process: Process,
    port: u16,
    rest_port: u16,
    /// Where its database is, if it survives a restart.
    database: Option<TempDir>,
    /// What the ones before said.
    said: String,
}

/// How an OAP is started.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// With a database that survives a restart.
    pub on_file: bool,
    /// With that token (`SW_AUTHENTICATION`).
    pub token: Option<&'static str>,
}

impl Oap {
    /// Starts one on free ports, and waits until it answers.
    ///
    /// # Errors
    ///
    /// A skip without Java or the jars; else when it does not get there.
    pub fn start(options: Options) -> Result<Self> {
        let database = if options.on_file { Some(TempDir::new()?) } else { None };
        // Held until it is started: two tests may look at the same time.
        let free = [TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?];
        let [port, rest_port] = [free[0].local_addr()?.port(), free[1].local_addr()?.port()];
        drop(free);
        let process = launch(port, rest_port, database.as_ref(), options.token)?;
        let mut oap = Self { process, port, rest_port, database, said: String::new() };
        oap.wait()?;
        Ok(oap)
    }

    /// `HOST:PORT` for agents.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// What a user sees.
    pub fn graphql(&self) -> Graphql {
        Graphql::new(self.rest_port)
    }

    /// Lets it stand still, or go on.
    ///
    /// # Errors
    ///
    /// When it is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }

    /// Kills it.
    ///
    /// # Errors
    ///
    /// When it is gone already.
    pub fn kill(&mut self) -> Result<()> {
        self.process.signal(Signal::KILL)?;
        self.process.wait(Deadline::usual())?;
        self.said.push_str(&self.process.stdout.text());
        Ok(())
    }

    /// Starts it again, on the same ports and the same database.
    ///
    /// # Errors
    ///
    /// When it does not get there.
    pub fn restart(&mut self) -> Result<()> {
        self.process = launch(self.port, self.rest_port, self.database.as_ref(), None)?;
        self.wait()
    }

    fn wait(&mut self) -> Result<()> {
        let graphql = self.graphql();
        let up = Deadline::after(START).until("OAP's answer", || {
            ensure!(!self.process.ended(Deadline::after(Duration::ZERO))?, "it ended");
            Ok(graphql.version().ok())
        });
        up.with_context(|| format!("OAP said: {}", self.process.stdout.text())).map(drop)
    }

    /// Fails if its log says that it was sent what it can't take.
    ///
    /// # Errors
    ///
    /// The lines.
    pub fn blames_nobody(&self) -> Result<()> {
        let said = [self.said.clone(), self.process.stdout.text(), self.process.stderr.text()].concat();
        let lines: Vec<&str> =
            said.lines().filter(|line| OUR_FAULT.iter().any(|fault| line.contains(fault))).collect();
        ensure!(lines.is_empty(), "OAP was sent what it can't take: {lines:#?}");
        Ok(())
    }
}

fn launch(port: u16, rest_port: u16, database: Option<&TempDir>, token: Option<&str>) -> Result<Process> {
    let java = tool("java")?;
    let jars =
        env::var_os("GREENSCOPE_OAP_JARS").map_or_else(|| workspace().join("target/oap/lib"), PathBuf::from);
    if !jars.join("made-of.sha256").exists() {
        return Err(skip("no OAP (cargo xtask oap --prepare gets it)"));
    }
    let class_path = format!("{}:{}/*", workspace().join("tests/oap/conf").display(), jars.display());
    let mut command = Command::new(java);
    command.args(["-Xms256m", "-Xmx1g", "-XX:ActiveProcessorCount=2", "-cp", &class_path, MAIN]);
    command.env("OAP_GRPC_PORT", port.to_string()).env("OAP_REST_PORT", rest_port.to_string());
    if let Some(database) = database {
        let file = database.path().join("oap");
        let url = format!("jdbc:h2:file:{};DATABASE_TO_UPPER=FALSE", file.display());
        command.env("OAP_H2_URL", url);
    }
    if let Some(token) = token {
        command.env("OAP_TOKEN", token);
    }
    Process::start(&mut command)
}
