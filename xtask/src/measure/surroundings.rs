//! Where and with what the figures were taken.

use std::{fs, process::Command};

use crate::process;

/// What the commands that measure write: all else is what is measured, or measures.
const WRITTEN: [&str; 2] = [":!docs/performance.md", ":!docs/accuracy.md"];

/// What stands at the top of a document, as name and value.
pub(crate) fn describe(target: &str, load: &str) -> Vec<(&'static str, String)> {
    vec![
        ("date", said("date", &["-u", "+%Y-%m-%d %H:%M UTC"])),
        ("greenscope", commit()),
        ("machine", machine(&read("/proc/cpuinfo"))),
        ("load before", load.to_owned()),
        ("kernel", format!("{}, {}", read("/proc/sys/kernel/osrelease"), preemption())),
        ("target", target.to_owned()),
        ("built by", said("rustc", &["--version"])),
    ]
}

/// Processes that ran or wanted to, on average of the last minute.
pub(crate) fn load() -> String {
    read("/proc/loadavg").split(' ').next().unwrap_or_default().to_owned()
}

fn read(path: &str) -> String {
    fs::read_to_string(path).map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}

fn said(program: &str, arguments: &[&str]) -> String {
    let said = process::output(Command::new(program).args(arguments));
    said.map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}

/// Why what is measured of this tree would be no figure that anyone else can get: it is not all
/// committed.
pub(crate) fn not_clean() -> Option<&'static str> {
    let changed = git(&[&["status", "--porcelain", "--", "."], WRITTEN.as_slice()].concat());
    match changed {
        Ok(changed) if changed.trim().is_empty() => None,
        Ok(_) => Some("the tree has changes that are not committed"),
        Err(_) => Some("the tree is none of git's"),
    }
}

fn git(arguments: &[&str]) -> anyhow::Result<String> {
    process::output(Command::new("git").current_dir(crate::workspace::root()).args(arguments))
}

fn commit() -> String {
    let Ok(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else {
        return "not of a git tree".to_owned();
    };
    format!("{}{}", commit.trim(), if not_clean().is_none() { "" } else { ", with changes" })
}

fn preemption() -> String {
    let version = read("/proc/sys/kernel/version");
    let preempt = version.split(' ').find(|word| word.starts_with("PREEMPT"));
    preempt.unwrap_or("no PREEMPT").to_owned()
}

fn machine(cpuinfo: &str) -> String {
    let value = |name: &str| {
        let line = cpuinfo.lines().find(|line| line.starts_with(name))?;
        line.split_once(':').map(|(_, value)| value.trim())
    };
    let count = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    let model = value("model name").unwrap_or("unknown processor");
    let flags = value("flags").unwrap_or_default();
    let is_virtual = flags.split(' ').any(|flag| flag == "hypervisor");
    let kind = if is_virtual { ", virtual" } else { "" };
    format!("{model}, {count} processors{kind}, {}", std::env::consts::ARCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_described() {
        let one = "processor\t: 0\nmodel name\t: Fast\nflags\t\t: fpu hypervisor\n";
        let arch = std::env::consts::ARCH;
        assert_eq!(machine(&format!("{one}\n{one}")), format!("Fast, 2 processors, virtual, {arch}"));
        assert_eq!(machine(""), format!("unknown processor, 0 processors, {arch}"));
    }
}
