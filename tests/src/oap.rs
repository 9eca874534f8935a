//! A real OAP of SkyWalking's, of a test's own: see tests/oap/README.md.

use std::env;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::deadline::Deadline;
use crate::graphql::Graphql;
use crate::place::{tool, workspace};
use crate::process::Process;
use crate::runner::skip;

const MAIN: &str = "org.apache.skywalking.oap.server.starter.OAPServerStartUp";
/// Files of its folder.
const CA: &str = "ca.pem";
const CERTIFICATE: &str = "certificate.pem";
const KEY: &str = "key.pem";
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
    options: Options,
    /// Where its database is, if it survives a restart, and its certificates.
    folder: TempDir,
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
    /// By TLS, with a certificate of a CA of its own.
    pub tls: bool,
}

impl Oap {
    /// Starts one on free ports, and waits until it answers.
    ///
    /// # Errors
    ///
    /// A skip without Java or the jars; else when it does not get there.
    pub fn start(options: Options) -> Result<Self> {
        let folder = TempDir::new()?;
        if options.tls {
            certify(&folder)?;
        }
        // Held until it is started: two tests may look at the same time.
        let free = [TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?];
        let [port, rest_port] = [free[0].local_addr()?.port(), free[1].local_addr()?.port()];
        drop(free);
        let process = launch(port, rest_port, options, &folder)?;
        let mut oap = Self { process, port, rest_port, options, folder, said: String::new() };
        oap.wait()?;
        Ok(oap)
    }

    /// `HOST:PORT` for agents.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Where its REST is.
    pub fn rest(&self) -> String {
        format!("http://127.0.0.1:{}", self.rest_port)
    }

    /// The CA that signed its certificate.
    pub fn ca(&self) -> PathBuf {
        self.folder.path().join(CA)
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
        self.process = launch(self.port, self.rest_port, self.options, &self.folder)?;
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

/// A CA, and a certificate that it signed.
fn certify(folder: &TempDir) -> Result<()> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "greenscope's tests");
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new(["127.0.0.1".to_owned()])?.signed_by(&key, &ca)?;
    for (name, pem) in [(CA, ca.pem()), (CERTIFICATE, certificate.pem()), (KEY, key.serialize_pem())] {
        std::fs::write(folder.path().join(name), pem)?;
    }
    Ok(())
}

fn launch(port: u16, rest_port: u16, options: Options, folder: &TempDir) -> Result<Process> {
    let Options { on_file, token, tls } = options;
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
    if on_file {
        let file = folder.path().join("oap");
        let url = format!("jdbc:h2:file:{};DATABASE_TO_UPPER=FALSE", file.display());
        command.env("OAP_H2_URL", url);
    }
    if let Some(token) = token {
        command.env("OAP_TOKEN", token);
    }
    if tls {
        command.env("OAP_TLS", "true");
        command.env("OAP_TLS_CERT", folder.path().join(CERTIFICATE));
        command.env("OAP_TLS_KEY", folder.path().join(KEY));
        command.env("OAP_TLS_CA", folder.path().join(CA));
    }
    Process::start(&mut command)
}
