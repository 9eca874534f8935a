//! `test`: prepare what the tests need, run all that this machine can, sum up.
//!
//! A live test that can't run is skipped, and says why. `.ci/run` takes no other skips than those
//! that are listed.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs,
    path::PathBuf,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result};

use crate::{
    doctor, oap, process,
    python::{self, Environment},
    run, workspace,
};

/// What the test targets need from PyPI.
const REQUIREMENTS: &str = "tests/requirements.txt";
/// What one of them needs that is built from source.
const UWSGI: &str = "tests/requirements-uwsgi.txt";
/// The Python that is done with.
const UWSGI_PYTHON: (u32, u32) = (3, 12);

/// What the services with a tracer need, a file for each tracer's version.
const TRACED: &str = "tests/traced";

/// The last Python that pip takes a tracer's version for, where that is not the next one to
/// come (tests/traced/README.md).
const LAST: [(&str, (u32, u32, u32)); 1] = [("agent-1.2.0", (3, 13, 0))];

/// What may be skipped in `.ci/run`: a line each, as the skip begins.
const ALLOWED: &str = "tests/allowed-skips.txt";

/// Options of `test`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Install nothing; what is missing is skipped by name.
    #[arg(long)]
    no_install: bool,
    /// Fail if no live test ran, or if one was skipped that tests/allowed-skips.txt does not list.
    #[arg(long)]
    strict: bool,
    /// Only tests whose name contains this.
    filter: Option<String>,
}

/// What the runners counted.
#[derive(Debug, Default, PartialEq, Eq)]
struct Count {
    passed: u64,
    failed: u64,
    skipped: u64,
    /// A runner that did not end well without having counted a failure: a test
    /// that did not compile, or a crash.
    broken: u64,
    /// Live tests that passed.
    live: u64,
    /// What was skipped, and why.
    skips: Vec<String>,
}

impl Count {
    /// Add what a line says of results; most say nothing.
    fn add_line(&mut self, line: &str) {
        if let Some(skip) = line.strip_prefix("skipped: ") {
            self.skips.push(skip.to_owned());
        } else if line.starts_with("ok    ") {
            self.live += 1;
        }
        let Some(rest) = line.trim_start().strip_prefix("test result: ") else {
            return;
        };
        let words: Vec<&str> = rest.split([' ', ';']).filter(|word| !word.is_empty()).collect();
        for pair in words.windows(2) {
            let &[number, what] = pair else { continue };
            let Ok(number) = number.parse::<u64>() else {
                continue;
            };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.skipped += number,
                _ => {}
            }
        }
    }
}

/// Prepare, run, sum up.
///
/// # Errors
///
/// When preparing fails; failing tests are told by the exit code.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let Arguments { no_install, strict, filter } = arguments;
    let mut skips = Vec::new();
    if !*no_install {
        doctor::install_for_tests();
    }
    prepare_environments(*no_install, &mut skips)?;
    prepare_traced(filter.as_deref(), *no_install, &mut skips)?;
    prepare_oap(filter.as_deref(), *no_install, &mut skips);

    let mut count = Count::default();
    let built = run::build();
    let mut unit = cargo_test();
    unit.args(["--workspace", "--exclude", "profiler-ebpf", "--exclude", "tests"]);
    unit.args(filter);
    count_tests(&mut unit, &mut count)?;

    match (built, privilege()) {
        (Ok(()), Some(runner)) => live(filter.as_deref(), runner, &mut count)?,
        (Ok(()), None) => skips.push("live tests: need root, and sudo gives none without a password".into()),
        (Err(error), _) => {
            println!("failed: {error:#}");
            count.broken += 1;
            skips.push("live tests: there is no greenscope to run".into());
        }
    }

    for skip in &skips {
        println!("skipped: {skip}");
    }
    let Count { passed, failed, skipped, broken, live, skips: skipped_live } = count;
    let skipped = skipped + u64::try_from(skips.len())?;
    let mut failed = failed + broken;
    if *strict {
        let path = workspace::root().join(ALLOWED);
        let allowed = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        for skip in skips.iter().chain(&skipped_live).filter(|skip| !is_allowed(&allowed, skip)) {
            println!("failed: skipped, and not listed in {ALLOWED}: {skip}");
            failed += 1;
        }
        if live == 0 {
            println!("failed: no live test ran");
            failed += 1;
        }
    }
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether that list has it: a line that it begins with.
fn is_allowed(allowed: &str, skip: &str) -> bool {
    let mut lines = allowed.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.any(|line| skip.starts_with(line))
}

/// One environment a covered Python; what is missing is a skip with its reason.
fn prepare_environments(no_install: bool, skips: &mut Vec<String>) -> Result<()> {
    let requirements = workspace::root().join(REQUIREMENTS);
    let packages = fs::read_to_string(&requirements)
        .with_context(|| format!("cannot read {}", requirements.display()))?;
    let pythons = python::interpreters();
    for (major, minor) in python::COVERED {
        let name = format!("py{major}.{minor}");
        let Some(python) = python::of_version(&pythons, (major, minor)) else {
            skips.push(format!("tests on Python {major}.{minor}: none with venv on this machine"));
            continue;
        };
        let environment = Environment::new(&name, python, &packages);
        if no_install && !environment.is_ready() {
            skips.push(format!("tests on Python {major}.{minor}: target/venvs/{name} is not made"));
            continue;
        }
        environment.make(python, &requirements)?;
    }
    if let Some(python) = python::of_version(&pythons, UWSGI_PYTHON) {
        prepare_uwsgi(python, no_install, skips)?;
    }
    Ok(())
}

/// An environment with uWSGI; where that can't be built is a skip.
fn prepare_uwsgi(python: &python::Python, no_install: bool, skips: &mut Vec<String>) -> Result<()> {
    let requirements = workspace::root().join(UWSGI);
    let packages = fs::read_to_string(&requirements)
        .with_context(|| format!("cannot read {}", requirements.display()))?;
    let environment = Environment::new("uwsgi", python, &packages);
    if no_install && !environment.is_ready() {
        skips.push("tests on uWSGI: target/venvs/uwsgi is not made".into());
    } else if let Err(error) = environment.make(python, &requirements) {
        skips.push(format!("tests on uWSGI: it can't be built here: {error:#}"));
    }
    Ok(())
}

/// The environments of the services with a tracer, as far as a live test names one: at the
/// end of its own name.
fn prepare_traced(filter: Option<&str>, no_install: bool, skips: &mut Vec<String>) -> Result<()> {
    let mut command = cargo_test();
    command.args(["--package", "tests", "--test", "live", "--", "--list"]).args(filter);
    let Ok(list) = process::output(&mut command) else {
        // It does not compile, which the run of the tests will say.
        return Ok(());
    };
    make_traced(&named_environments(&list), no_install, skips)
}

/// Makes what these live tests need, and says what can't be had.
///
/// # Errors
///
/// When preparing fails.
pub(crate) fn prepare(cases: impl Iterator<Item = &'static str>) -> Result<()> {
    let mut skips = Vec::new();
    prepare_environments(false, &mut skips)?;
    make_traced(&cases.filter_map(environment).collect(), false, &mut skips)?;
    for skip in skips {
        println!("skipped: {skip}");
    }
    Ok(())
}

fn make_traced(wanted: &BTreeSet<String>, no_install: bool, skips: &mut Vec<String>) -> Result<()> {
    let pythons = python::interpreters();
    for file in workspace::files_below(&workspace::root().join(TRACED))? {
        let tracer =
            file.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".txt"));
        let Some(tracer) = tracer else { continue };
        let packages =
            fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        for (major, minor) in python::COVERED {
            let name = format!("{tracer}-py{major}.{minor}");
            // That there is no such Python was said already.
            let (true, Some(python)) = (wanted.contains(&name), python::of_version(&pythons, (major, minor)))
            else {
                continue;
            };
            if LAST.iter().any(|(of, last)| *of == tracer && python.version > *last) {
                skips.push(format!("tests with {name}: pip does not take it for {python}"));
                continue;
            }
            let environment = Environment::new(&name, python, &packages);
            if no_install && !environment.is_ready() {
                skips.push(format!("tests with {name}: target/venvs/{name} is not made"));
                continue;
            }
            environment.make(python, &file)?;
        }
    }
    Ok(())
}

/// The jars of a real OAP, if a live test is to run that needs one; without them these skip.
fn prepare_oap(filter: Option<&str>, no_install: bool, skips: &mut Vec<String>) {
    let mut command = cargo_test();
    command.args(["--package", "tests", "--test", "live", "--", "--list"]).args(filter);
    let wanted =
        process::output(&mut command).is_ok_and(|list| list.lines().any(|name| name.starts_with("oap/")));
    if !wanted || oap::is_ready() {
        return;
    }
    let prepared = if no_install { Err(anyhow::anyhow!("nothing is installed")) } else { oap::prepare() };
    if let Err(error) = prepared {
        skips.push(format!("tests with OAP: {error:#}"));
    }
}

/// The environments that tests in a list of libtest's are named after.
fn named_environments(list: &str) -> BTreeSet<String> {
    let names = list.lines().filter_map(|line| line.strip_suffix(": test"));
    names.filter_map(environment).collect()
}

/// What stands behind the last stroke of a test's name.
fn environment(name: &str) -> Option<String> {
    Some(name.rsplit_once('/')?.1.to_owned())
}

/// `cargo test` with what every runner gets: one failing crate hides no other's
/// results.
pub(crate) fn cargo_test() -> Command {
    let mut command = process::cargo();
    command.args(["test", "--locked", "--no-fail-fast"]);
    command
}

/// How live tests get to be root's.
enum Runner {
    /// We are root.
    Ourselves,
    /// By sudo, which asks nothing.
    Sudo(PathBuf),
}

fn privilege() -> Option<Runner> {
    if process::is_root() {
        return Some(Runner::Ourselves);
    }
    let sudo = process::find("sudo")?;
    process::output(Command::new(&sudo).args(["-n", "true"])).ok()?;
    Some(Runner::Sudo(sudo))
}

/// The live tests, one at a time: they compare times, and the machine may be small.
fn live(filter: Option<&str>, runner: Runner, count: &mut Count) -> Result<()> {
    let variables: [(&str, OsString); 3] = [
        ("GREENSCOPE_BIN", workspace::greenscope().into()),
        ("GREENSCOPE_VENVS", python::folder().into()),
        ("GREENSCOPE_OAP_JARS", oap::jars().into()),
    ];
    let mut command = cargo_test();
    command.args(["--package", "tests"]);
    command.args(filter);
    command.args(["--", "--test-threads=1"]);
    command.envs(variables.iter().map(|(name, value)| (*name, value)));
    if let Runner::Sudo(sudo) = runner {
        let mut line = sudo.into_os_string();
        line.push(" -n env");
        for (name, value) in &variables {
            line.push(format!(" {name}="));
            line.push(value);
        }
        let variable =
            format!("CARGO_TARGET_{}_UNKNOWN_LINUX_GNU_RUNNER", std::env::consts::ARCH.to_uppercase());
        command.env(variable, line);
    }
    count_tests(&mut command, count)
}

/// Run one `cargo test`, its output passed on and counted.
fn count_tests(command: &mut Command, count: &mut Count) -> Result<()> {
    let failed_before = count.failed;
    let status = process::lines(command, |line| count.add_line(&line))?;
    if !status.success() && count.failed == failed_before {
        println!("failed: `{}`: {status}", process::line(command));
        count.broken += 1;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_summed_over_runners() {
        let mut count = Count::default();
        for line in [
            "running 3 tests",
            "test result: ok. 7 passed; 0 failed; 1 ignored; 0 measured; 4 filtered out; finished in 0.01s",
            "test result: FAILED. 2 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "9 passed by a test's own words",
            "ok    waits/py3.11 (0.3 s)",
            "skipped: waits/py3.12: no root",
        ] {
            count.add_line(line);
        }
        let skips = vec!["waits/py3.12: no root".to_owned()];
        let expected = Count { passed: 9, failed: 3, skipped: 1, broken: 0, live: 1, skips };
        assert_eq!(count, expected);
    }

    #[test]
    fn a_test_names_its_environment_at_its_end() {
        let list = "labels/agent-1.2.0-py3.13: test\nwaits/gevent/py3.11: test\nplain: test\n2 tests, 0 benchmarks\n";
        let names = named_environments(list);
        assert_eq!(names.into_iter().collect::<Vec<_>>(), ["agent-1.2.0-py3.13", "py3.11"]);
    }

    #[test]
    fn a_skip_is_allowed_by_how_it_begins() {
        let allowed = "# why\nwaits/py3.14: no Python\n\n";
        assert!(is_allowed(allowed, "waits/py3.14: no Python 3.14"));
        assert!(!is_allowed(allowed, "waits/py3.13: no Python 3.13"));
        assert!(!is_allowed(allowed, "# why"));
    }
}
