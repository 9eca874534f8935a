//! `doctor`: what is missing here to run, to build the kernel part, to test.

use std::{
    fs,
    path::Path,
    process::{Command, ExitCode},
};

use anyhow::Result;

use crate::{
    build_ebpf::toolchain::{self, Found},
    process, python,
};

/// Options of `doctor`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Run the commands that mend what is missing, saying each first.
    #[arg(long)]
    fix: bool,
}

/// What a thing is needed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Running,
    Building,
    Testing,
}

impl Purpose {
    const ALL: [Self; 3] = [Self::Running, Self::Building, Self::Testing];

    fn title(self) -> &'static str {
        match self {
            Self::Running => "running (cargo xtask run)",
            Self::Building => "building the kernel part (cargo xtask build-ebpf)",
            Self::Testing => "testing (cargo xtask test)",
        }
    }
}

/// How a thing was found.
#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// There; what exactly.
    There(String),
    /// Missing, and needed; how to mend it.
    Missing(Mend),
    /// Missing; what needs it is skipped by name.
    Skipped(Mend),
}

/// How to mend what is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Mend {
    /// A command line for a shell, which `--fix` runs.
    Command(String),
    /// What a person has to do.
    Person(String),
}

/// One thing looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Check {
    purpose: Purpose,
    name: String,
    state: State,
}

/// Capabilities that replace root, by the number of their bit.
const CAPABILITIES: [(&str, u32); 4] =
    [("CAP_SYS_PTRACE", 19), ("CAP_SYS_ADMIN", 21), ("CAP_PERFMON", 38), ("CAP_BPF", 39)];

/// The kernel that first has `bpf_loop`.
const OLDEST_KERNEL: (u32, u32) = (5, 17);

/// Print what was found; with `--fix`, mend and look again.
///
/// # Errors
///
/// When a tool that is there does not tell its version.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let Arguments { fix } = *arguments;
    let mut checks = look()?;
    if fix && mend(&checks) {
        checks = look()?;
    }
    let mut missing = 0;
    for purpose in Purpose::ALL {
        println!("{}", purpose.title());
        for check in checks.iter().filter(|check| check.purpose == purpose) {
            println!("{}", line(check));
            missing += usize::from(matches!(check.state, State::Missing(_)));
        }
    }
    Ok(if missing == 0 {
        ExitCode::SUCCESS
    } else {
        println!("{missing} missing; `cargo xtask doctor --fix` runs the commands above");
        ExitCode::FAILURE
    })
}

/// Install what the tests need and this system's packages have, saying so first.
pub(crate) fn install_for_tests() {
    mend(&testing());
}

fn line(check: &Check) -> String {
    let Check { purpose: _, name, state } = check;
    match state {
        State::There(what) => format!("  ok       {name}: {what}"),
        State::Missing(mend) => format!("  missing  {name}\n           {}", mend.text()),
        State::Skipped(mend) => format!("  without  {name}\n           {}", mend.text()),
    }
}

impl Mend {
    fn text(&self) -> &str {
        match self {
            Self::Command(text) | Self::Person(text) => text,
        }
    }
}

/// Run every command that mends something; whether there was one.
fn mend(checks: &[Check]) -> bool {
    let mut commands: Vec<&str> = Vec::new();
    for check in checks {
        if let State::Missing(Mend::Command(command)) | State::Skipped(Mend::Command(command)) = &check.state
            && !commands.contains(&command.as_str())
        {
            commands.push(command);
        }
    }
    let mut updated = false;
    for command in &commands {
        if command.contains("apt-get install") && !updated {
            updated = true;
            let update = format!("{}apt-get update", sudo());
            println!("running: {update}");
            // Old lists are better than none, and the install says what it lacks.
            if let Err(error) = process::run(Command::new("sh").args(["-c", &update])) {
                println!("going on with the package lists that are here: {error:#}");
            }
        }
        println!("running: {command}");
        // The others may mend what they can; what stays missing is named afterwards.
        if let Err(error) = process::run(Command::new("sh").args(["-c", command])) {
            println!("not mended: {error:#}");
        }
    }
    !commands.is_empty()
}

fn sudo() -> &'static str {
    if process::is_root() { "" } else { "sudo " }
}

fn look() -> Result<Vec<Check>> {
    let mut checks = running();
    checks.extend(building()?);
    checks.extend(testing());
    Ok(checks)
}

fn running() -> Vec<Check> {
    let check = |name: &str, state| Check { purpose: Purpose::Running, name: name.to_owned(), state };
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let lockdown = fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default();
    let btf = Path::new("/sys/kernel/btf/vmlinux");
    let uprobes = Path::new("/sys/bus/event_source/devices/uprobe/type");
    let python = python::interpreters().into_iter().max_by_key(|python| python.version);
    vec![
        check("root", privilege(process::is_root(), &status)),
        check("Linux 5.17 or later", kernel(release.trim())),
        check("reading by BPF allowed", reading(&lockdown)),
        check("the kernel's types", file(btf, "boot a kernel built with CONFIG_DEBUG_INFO_BTF=y")),
        check("uprobes", file(uprobes, "boot a kernel built with CONFIG_UPROBE_EVENTS=y")),
        check(
            "Python for the demo",
            match python {
                Some(python) => State::There(python.to_string()),
                None => State::Skipped(install_python()),
            },
        ),
    ]
}

/// Whether this process may load BPF, or sudo can make one that may.
fn privilege(is_root: bool, status: &str) -> State {
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0);
    if !is_root {
        return match process::find("sudo") {
            Some(sudo) => State::There(format!("by {}", sudo.display())),
            None => State::Missing(Mend::Person("run as root, or install sudo".to_owned())),
        };
    }
    let lacking: Vec<&str> =
        CAPABILITIES.iter().filter(|(_, bit)| effective >> bit & 1 == 0).map(|(name, _)| *name).collect();
    if lacking.is_empty() {
        State::There("yes".to_owned())
    } else {
        State::Missing(Mend::Person(format!(
            "this root lacks {}: start the container with --privileged, or --cap-add each",
            lacking.join(", ")
        )))
    }
}

fn kernel(release: &str) -> State {
    let mut numbers =
        release.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse::<u32>().ok());
    let version = numbers.next().zip(numbers.next());
    match version {
        Some(version) if version >= OLDEST_KERNEL => State::There(release.to_owned()),
        _ => {
            State::Missing(Mend::Person(format!("this is {release}, without bpf_loop: boot a later kernel")))
        }
    }
}

/// Lockdown's strictest level forbids BPF to read user memory.
fn reading(lockdown: &str) -> State {
    if lockdown.contains("[confidentiality]") {
        State::Missing(Mend::Person(
            "the kernel is locked down: boot with lockdown=integrity or none".to_owned(),
        ))
    } else {
        State::There("yes".to_owned())
    }
}

fn file(path: &Path, mend: &str) -> State {
    if path.exists() {
        State::There(path.display().to_string())
    } else {
        State::Missing(Mend::Person(format!("no {}: {mend}", path.display())))
    }
}

fn building() -> Result<Vec<Check>> {
    let check = |name: String, state| Check { purpose: Purpose::Building, name, state };
    Ok(match toolchain::find()? {
        Found::Complete(toolchain) => {
            let mut checks = vec![check("toolchain".to_owned(), State::There(toolchain.to_string()))];
            if !toolchain.has_clippy() {
                let mend = Mend::Command(toolchain::apt(&["rust-web-clippy"]));
                checks.push(check("its clippy".to_owned(), State::Skipped(mend)));
            }
            checks
        }
        Found::Lacking(missing) => missing
            .into_iter()
            .map(|missing| check(missing.what, State::Missing(Mend::Command(missing.fix))))
            .collect(),
    })
}

fn testing() -> Vec<Check> {
    let check = |name: String, state| Check { purpose: Purpose::Testing, name, state };
    let pythons = python::interpreters();
    let mut checks: Vec<Check> = python::COVERED
        .iter()
        .map(|(major, minor)| {
            let state = match python::of_version(&pythons, (*major, *minor)) {
                Some(python) => State::There(python.to_string()),
                None => State::Skipped(Mend::Person(format!(
                    "install Python {major}.{minor} with venv, for instance by `pyenv install \
                     {major}.{minor}`"
                ))),
            };
            check(format!("Python {major}.{minor}"), state)
        })
        .collect();
    if pythons.is_empty() {
        checks.push(check("any Python".to_owned(), State::Missing(install_python())));
    }
    // It lists the links that a killed greenscope must not leave behind.
    let bpftool = match process::find("bpftool").or_else(|| sbin("bpftool")) {
        Some(path) => State::There(path.display().to_string()),
        None => State::Skipped(by_apt("bpftool")),
    };
    checks.push(check("bpftool".to_owned(), bpftool));
    // A real OAP takes what greenscope sends.
    for (program, package) in [("java", "default-jre-headless"), ("mvn", "maven")] {
        let state = match process::find(program) {
            Some(path) => State::There(path.display().to_string()),
            None => State::Skipped(by_apt(package)),
        };
        checks.push(check(format!("{program}, for a real OAP"), state));
    }
    // A C driver's calls block until it answers.
    let postgres = match postgres() {
        Some(path) => State::There(path.display().to_string()),
        None => State::Skipped(by_apt("postgresql")),
    };
    checks.push(check("PostgreSQL".to_owned(), postgres));
    checks
}

/// Debian keeps its programs by version, in nobody's `PATH`.
fn postgres() -> Option<std::path::PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let servers = versions.map(|version| version.path().join("bin/postgres"));
    servers.filter(|path| process::is_executable(path)).max().or_else(|| process::find("postgres"))
}

/// Root's programs, which are not in everybody's `PATH`.
fn sbin(program: &str) -> Option<std::path::PathBuf> {
    ["/usr/sbin", "/sbin", "/usr/local/sbin"]
        .iter()
        .map(|folder| Path::new(folder).join(program))
        .find(|path| process::is_executable(path))
}

fn install_python() -> Mend {
    by_apt("python3-venv")
}

fn by_apt(package: &str) -> Mend {
    if toolchain::has_apt() {
        Mend::Command(toolchain::apt(&[package]))
    } else {
        Mend::Person(format!("install {package} by this system's packages"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_before_bpf_loop_are_refused() {
        for fine in ["5.17.0", "6.1.0-37-amd64", "7.2.1"] {
            assert!(matches!(kernel(fine), State::There(_)), "{fine}");
        }
        for old in ["5.16.20", "4.19.0-27-cloud", "", "rolling"] {
            assert!(matches!(kernel(old), State::Missing(_)), "{old}");
        }
    }

    #[test]
    fn a_root_without_capabilities_is_told_which() {
        let all = "Name:\tx\nCapEff:\t000001ffffffffff\n";
        assert!(matches!(privilege(true, all), State::There(_)));
        let docker = "CapEff:\t00000000a80425fb\n";
        let State::Missing(Mend::Person(text)) = privilege(true, docker) else {
            panic!("taken for enough");
        };
        assert!(text.contains("CAP_SYS_PTRACE, CAP_SYS_ADMIN, CAP_PERFMON, CAP_BPF"), "{text}");
    }

    #[test]
    fn only_the_strictest_lockdown_is_in_the_way() {
        assert!(matches!(reading("none integrity [confidentiality]\n"), State::Missing(_)));
        assert!(matches!(reading("[none] integrity confidentiality\n"), State::There(_)));
        assert!(matches!(reading(""), State::There(_)));
    }
}
