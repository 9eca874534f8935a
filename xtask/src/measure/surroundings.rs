//! Where and with what the figures were taken.

use std::{fs, process::Command};

use crate::process;

/// What stands at the top of the document at that path, as name and value.
pub(crate) fn describe(document: &str, target: &str, load: &str) -> Vec<(&'static str, String)> {
    vec![
        ("date", said("date", &["-u", "+%Y-%m-%d %H:%M UTC"])),
        ("greenscope", commit(document)),
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

fn commit(document: &str) -> String {
    let root = crate::workspace::root();
    let git = |arguments: &[&str]| process::output(Command::new("git").current_dir(&root).args(arguments));
    let Ok(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else {
        return "not of a git tree".to_owned();
    };
    // The document itself is what the command writes.
    let changed = git(&["status", "--porcelain", "--", ".", &format!(":!{document}")]);
    let clean = changed.is_ok_and(|changed| changed.trim().is_empty());
    format!("{}{}", commit.trim(), if clean { "" } else { ", with changes" })
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
