//! `run`: build greenscope and start it, on a process, on the demo, or as asked.

use std::{
    ffi::{OsStr, OsString},
    io::{BufRead as _, BufReader},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, ExitCode, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, sync_channel},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    build_ebpf, process,
    python::{self, Environment, Python},
    workspace,
};

/// The program that the demo profiles, and what it needs from PyPI.
const SERVICE: &str = "xtask/demo/service.py";
const REQUIREMENTS: &str = "xtask/demo/requirements.txt";

/// How long the demo may take to come up; an import of gevent is most of it.
const START: Duration = Duration::from_secs(30);

/// How long the demo may take to end once it is told to.
const END: Duration = Duration::from_secs(5);

/// Options of `run`.
#[derive(clap::Args)]
#[command(override_usage = "cargo xtask run [--kernel-log] [--pid PID] [record's options]\n       \
                            cargo xtask run [--kernel-log] -- COMMAND [options]")]
pub(crate) struct Arguments {
    /// With a kernel part that logs, whose lines go to standard error (stands first).
    #[arg(long)]
    kernel_log: bool,
    /// Options of `greenscope record`, or after `--` any command of greenscope.
    ///
    /// Without `--pid`, a demo service is started, profiled for five seconds and ended.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// Whether `run` and its own option were followed by `--`: then its arguments are a command.
pub(crate) fn is_escaped(arguments: &[OsString]) -> bool {
    arguments.iter().skip(2).find(|argument| *argument != "--kernel-log").is_some_and(|next| next == "--")
}

/// What the arguments ask for.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    /// Any command, as it stands.
    Command,
    /// `record` with these options on a process that the user named.
    Record,
    /// `record` with these options on the demo.
    Demo,
}

fn wanted(arguments: &[OsString], escaped: bool) -> Wanted {
    let is_option = |argument: &OsString| argument.as_encoded_bytes().starts_with(b"-");
    if escaped || arguments.first().is_some_and(|first| !is_option(first)) {
        Wanted::Command
    } else if has(arguments, &["--pid"]) {
        Wanted::Record
    } else {
        Wanted::Demo
    }
}

/// Whether one of the options is given, as `--name value` or `--name=value`.
fn has(arguments: &[OsString], names: &[&str]) -> bool {
    arguments.iter().any(|argument| {
        let text = argument.to_string_lossy();
        names
            .iter()
            .any(|name| text == *name || text.strip_prefix(name).is_some_and(|rest| rest.starts_with('=')))
    })
}

/// Build and start; greenscope's exit code is ours.
///
/// # Errors
///
/// When greenscope cannot be built or started, or the demo cannot.
pub(crate) fn run(arguments: &Arguments, escaped: bool) -> Result<ExitCode> {
    let Arguments { kernel_log, arguments } = arguments;
    let wanted = wanted(arguments, escaped);
    // The demo is prepared first: without a Python there is nothing to build for.
    let demo = match wanted {
        Wanted::Demo => Some(prepare_demo()?),
        Wanted::Command | Wanted::Record => None,
    };
    let greenscope = if *kernel_log {
        build_ebpf::build_log()?
    } else {
        build()?;
        workspace::greenscope()
    };
    let mut command = as_root(&greenscope);
    match demo {
        Some(environment) => show_demo(&environment, command, arguments),
        None => {
            if wanted == Wanted::Record {
                command.arg("record");
            }
            command.args(arguments);
            // Takes our place: signals, terminal and exit code are greenscope's.
            let error = command.exec();
            Err(error).with_context(|| format!("cannot start `{}`", process::line(&command)))
        }
    }
}

/// Build greenscope with stable Rust; the kernel part's object is embedded.
pub(crate) fn build() -> Result<()> {
    let mut cargo = process::cargo();
    cargo.args(["build", "--release", "--locked", "--package", "profiler-user"]);
    process::run(&mut cargo)
}

/// greenscope as root: by sudo when we are not.
fn as_root(greenscope: &Path) -> Command {
    match (process::is_root(), process::find("sudo")) {
        (false, Some(sudo)) => {
            let mut command = Command::new(sudo);
            command.arg("--").arg(greenscope);
            command
        }
        // Without sudo greenscope itself says what it lacks, and how to get it.
        _ => Command::new(greenscope),
    }
}

/// The demo's virtual environment, made on the first call.
fn prepare_demo() -> Result<Environment> {
    let pythons = python::interpreters();
    let Some(python): Option<&Python> = pythons.iter().max_by_key(|python| python.version) else {
        bail!(
            "no Python 3.11 to 3.13 with venv found for the demo; install one (Debian: \
             apt install python3-venv) or name your own service: cargo xtask run --pid PID"
        );
    };
    let requirements = workspace::root().join(REQUIREMENTS);
    let packages = std::fs::read_to_string(&requirements)
        .with_context(|| format!("cannot read {}", requirements.display()))?;
    let environment = Environment::new("demo", python, &packages);
    environment.make(python, &requirements)?;
    Ok(environment)
}

/// Start the service, record it, say where the result is, end the service.
fn show_demo(environment: &Environment, mut command: Command, options: &[OsString]) -> Result<ExitCode> {
    let demo = Demo::start(environment)?;
    let pid = demo.child.id().to_string();
    println!("demo: {SERVICE} runs as pid {pid}");
    command.args(["record", "--pid", &pid]);
    if !has(options, &["--duration"]) {
        command.args(["--duration", "5s"]);
    }
    let picture = workspace::target().join("greenscope-demo.svg");
    let to_picture = !has(options, &["-o", "--output", "--format"]);
    if to_picture {
        if picture.exists() {
            // So that an older picture is never taken for this one's.
            std::fs::remove_file(&picture).with_context(|| format!("cannot remove {}", picture.display()))?;
        }
        command.args([OsStr::new("-o"), picture.as_os_str()]);
    }
    let status = command
        .args(options)
        .status()
        .with_context(|| format!("cannot start `{}`", process::line(&command)))?;
    demo.end()?;
    if status.success() && to_picture {
        println!("the flame graph of its time: {}", picture.display());
    }
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

/// The demo service while it runs; it ends when its input is closed, so that it
/// cannot outlive us however we end.
struct Demo {
    child: Child,
    /// Says the service's first line, and is cut off when its output is closed.
    said: Receiver<String>,
}

impl Demo {
    fn start(environment: &Environment) -> Result<Self> {
        let service = workspace::root().join(SERVICE);
        let mut child = Command::new(environment.python())
            .arg(&service)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", service.display()))?;
        let (sender, said) = sync_channel(1);
        if let Some(output) = child.stdout.take() {
            thread::spawn(move || {
                let mut lines = BufReader::new(output).lines().map_while(Result::ok);
                if let Some(first) = lines.next() {
                    // Nobody listens any more once the deadline has passed.
                    drop(sender.send(first));
                }
                // Read on, so that the service never waits for a reader.
                lines.for_each(drop);
            });
        }
        let demo = Self { child, said };
        match demo.said.recv_timeout(START) {
            Ok(line) if line.starts_with("ready") => Ok(demo),
            Ok(line) => bail!("the demo said `{line}` where `ready` was expected"),
            Err(RecvTimeoutError::Disconnected) => {
                bail!("the demo ended before it was ready; its own message is above")
            }
            Err(RecvTimeoutError::Timeout) => {
                bail!("the demo was not ready within {} s", START.as_secs())
            }
        }
    }

    /// Close its input and see it end.
    fn end(mut self) -> Result<()> {
        drop(self.child.stdin.take());
        match self.said.recv_timeout(END) {
            Err(RecvTimeoutError::Disconnected) => {
                self.child.wait().context("cannot wait for the demo")?;
                Ok(())
            }
            _ => bail!("the demo did not end within {} s; it was killed", END.as_secs()),
        }
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to kill.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str, escaped: bool, expected: &Wanted) {
        let arguments: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
        assert_eq!(wanted(&arguments, escaped), *expected, "{line}");
    }

    #[test]
    fn a_command_a_record_or_the_demo() {
        check("", false, &Wanted::Demo);
        check("--duration 2s", false, &Wanted::Demo);
        check("--pid 12 --duration 2s", false, &Wanted::Record);
        check("--duration 2s --pid=12", false, &Wanted::Record);
        check("doctor --pid 12", true, &Wanted::Command);
        check("--version", true, &Wanted::Command);
        check("doctor", false, &Wanted::Command);
    }

    #[test]
    fn two_dashes_right_after_run_escape() {
        let arguments = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
        assert!(is_escaped(&arguments("xtask run -- doctor")));
        assert!(is_escaped(&arguments("xtask run --kernel-log -- doctor")));
        assert!(!is_escaped(&arguments("xtask run --pid 1")));
        assert!(!is_escaped(&arguments("xtask run")));
    }

    #[test]
    fn the_demo_is_in_the_tree() {
        for file in [SERVICE, REQUIREMENTS] {
            assert!(workspace::root().join(file).exists(), "{file}");
        }
    }
}
