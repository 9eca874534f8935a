//! Bad input: one line that says what, why and what to do, and the right exit code.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use anyhow::{Result, ensure};
use tests::deadline::Deadline;
use tests::place::{Python, as_root, greenscope, tool};
use tests::process::Process;
use tests::recording::refused;
use tests::runner::Cases;
use tests::target::Target;

const FAILED: i32 = 1;
const USAGE: i32 = 2;
const NOT_PERMITTED: i32 = 3;
const NO_TARGET: i32 = 4;

pub(crate) fn cases(cases: &mut Cases) {
    for command in [
        "record",
        "record --pid",
        "record --pid gevent",
        "record --pid -5",
        "record --pid 1 --format bmp",
        "record --pid 1 --duration 5parsecs",
        "record --pid 1 --duration -1s",
        "record --pid 1 --probe main",
        "record --pid 1 --rate 10000",
        "record --pid 1 --rate -1",
        "record --pid 1 --rate 97.5",
        "record --pid 1 --rate often",
        "record --pid 1 --block-threshold 5",
        "record --pid 1 --nope",
        "record --pid 1 --span-events",
        "record --pid 1 --span-events=soon --oap localhost",
        "record --pid 1 --service shop",
        "record --pid 1 --oap-token secret",
        "record --pid 1 --spool /nowhere",
        "record --pid 1 --oap localhost --layer NOPE",
        "record --pid 1 --oap localhost:port",
        "record --pid 1 --oap http://localhost:11800",
        "record --pid 1 --oap localhost --oap-ca /nowhere.pem",
        "record --pid 1 --oap localhost --oap-cert /nowhere.pem",
        "record --pid 1 --oap localhost --oap-queue tiny",
        "oap",
        "oap check",
        "dance",
        "",
    ] {
        cases.once(format!("wrong_usage_is_refused/{command:?}"), move || {
            let refusal = refused(Command::new(greenscope()?).args(command.split_whitespace()))?;
            ensure!(refusal.code == USAGE, "{refusal:?}");
            Ok(())
        });
    }
    cases.once("a_pid_that_does_not_exist_is_refused", || {
        as_root()?;
        let mut gone = Process::start(&mut Command::new("true"))?;
        gone.wait(Deadline::usual())?;
        expect(gone.pid(), NO_TARGET, &gone.pid().to_string())
    });
    cases.once("a_zombie_is_refused", || {
        as_root()?;
        let dead = Process::start(&mut Command::new("true"))?;
        ensure!(dead.ended(Deadline::usual())?, "true did not end");
        expect(dead.pid(), NO_TARGET, &dead.pid().to_string())
    });
    cases.each("a_process_whose_first_thread_has_ended_is_refused", |python| {
        as_root()?;
        // A zombie that leads living threads: nothing of it can be read by its pid.
        let target = Target::start(python, "headless.py", &[])?;
        Deadline::usual().until("the first thread's end", || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", target.pid()))?;
            Ok(stat.contains(") Z ").then_some(()))
        })?;
        expect(target.pid(), NO_TARGET, &target.pid().to_string())
    });
    cases.once("a_kernel_thread_is_refused", || {
        as_root()?;
        expect(2, NO_TARGET, "2")
    });
    cases.once("a_process_that_is_not_python_is_refused", || {
        as_root()?;
        let other = Process::start(&mut Command::new("cat"))?;
        expect(other.pid(), NO_TARGET, "Python")
    });
    for old in ["py3.8", "py3.10", "py3.14"] {
        cases.once(format!("a_version_not_covered_is_named/{old}"), move || {
            as_root()?;
            // With greenlet where there is such an environment; the version is first
            // to be named in any case.
            let (python, modules) = Python::find(old)
                .map(|python| (python, ["greenlet"].as_slice()))
                .or_else(|_| Python::bare(old).map(|python| (python, [].as_slice())))?;
            let target = Target::start(&python, "idle.py", modules)?;
            expect(target.pid(), NO_TARGET, python.version())
        });
    }
    cases.each("without_privilege_it_is_not_permitted", no_privilege);
    for (name, output) in
        [("in_no_directory", "missing/out.json"), ("a_directory", "."), ("below_a_file", "f/out")]
    {
        cases.each(format!("an_unwritable_output_is_refused_at_once/{name}"), move |python| {
            as_root()?;
            let target = Target::start(python, "idle.py", &["greenlet"])?;
            let directory = tempfile::tempdir()?;
            std::fs::write(directory.path().join("f"), "")?;
            let refusal = refused(
                Command::new(greenscope()?)
                    .args(["record", "--pid", &target.pid().to_string(), "--duration", "300ms"])
                    .args(["--format", "json", "-o"])
                    .arg(directory.path().join(output)),
            )?;
            ensure!(refusal.code == FAILED, "{refusal:?}");
            let left = std::fs::read_dir(directory.path())?.count();
            ensure!(left == 1, "{left} files");
            Ok(())
        });
    }
}

/// Recording that pid is refused with the code, in a line that holds the word.
fn expect(pid: u32, code: i32, word: &str) -> Result<()> {
    let refusal = refused(Command::new(greenscope()?).args([
        "record",
        "--pid",
        &pid.to_string(),
        "--duration",
        "300ms",
        "--format",
        "json",
    ]))?;
    ensure!(refusal.code == code && refusal.line.contains(word), "{refusal:?}");
    Ok(())
}

fn no_privilege(python: &Python) -> Result<()> {
    as_root()?;
    let setpriv = tool("setpriv")?;
    let target = Target::start(python, "idle.py", &["greenlet"])?;
    // Where nobody can reach it, whatever the modes above the build are.
    let directory = tempfile::Builder::new().permissions(Permissions::from_mode(0o755)).tempdir()?;
    let binary = directory.path().join("greenscope");
    std::fs::copy(greenscope()?, &binary)?;
    std::fs::set_permissions(&binary, Permissions::from_mode(0o755))?;
    let refusal = refused(
        Command::new(setpriv)
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(&binary)
            .args(["record", "--pid", &target.pid().to_string(), "--duration", "300ms"])
            .args(["--format", "json"]),
    )?;
    ensure!(refusal.code == NOT_PERMITTED, "{refusal:?}");
    Ok(())
}
