//! What is written, in which form, where and when.

use std::os::unix::fs::FileTypeExt;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use tests::compare;
use tests::deadline::Deadline;
use tests::place::{Python, as_root, greenscope, tool};
use tests::process::{Process, descendants};
use tests::reader;
use tests::recording::{Recording, parse, run};
use tests::runner::{Cases, skip};
use tests::target::Target;

use crate::service;

pub(crate) fn cases(cases: &mut Cases) {
    for (program, argument) in [("open_waits.py", "gevent"), ("ends.py", "kill"), ("stacks.py", "unusual")] {
        cases.each(format!("json_follows_its_schema/{program}/{argument}"), move |python| {
            follows_the_schema(python, program, argument)
        });
    }
    cases.each("json_names_its_target", names_its_target);
    cases.each("svg_is_xml_with_the_services_functions", svg);
    cases.each("folded_holds_the_same_sums_as_json", folded);
    cases.each("without_an_output_json_goes_to_stdout", to_stdout);
    cases.each("without_options_an_svg_is_written_beside", default_svg);
    for (name, signal) in [("term", Signal::TERM), ("int", Signal::INT)] {
        cases.each(format!("a_signal_ends_the_recording_well/{name}"), move |python| {
            let target = Target::start(python, "open_waits.py", &["greenlet"])?;
            let recording = Recording::start(target.pid(), &[])?;
            parse(&recording.stop_with(signal)?)?;
            Ok(())
        });
    }
    cases.each("a_stderr_that_nobody_reads_loses_nothing", unread);
    cases.each("a_duration_is_kept", duration);
    cases.each("a_device_as_output_stays_a_device", device);
    cases.each("a_full_disk_leaves_nothing_half_written", full_disk);
    cases.each("an_interrupted_recording_leaves_no_temporary_file", no_leftovers);
    cases.each("doctor_says_what_it_found", doctor);
}

fn follows_the_schema(python: &Python, program: &str, argument: &str) -> Result<()> {
    let mut target = Target::start(python, program, &[argument])?;
    let recording = Recording::start(target.pid(), &[])?;
    target.go()?;
    target.books()?;
    let json = recording.stop_with(Signal::TERM)?;
    reader::validate(python, &json)?;
    target.finish()
}

fn names_its_target(python: &Python) -> Result<()> {
    let target = Target::start(python, "open_waits.py", &["greenlet"])?;
    let pid = target.pid();
    let profile = Recording::start(pid, &[])?.stop()?;
    let [named] = profile.targets.as_slice() else { anyhow::bail!("{:?}", profile.targets) };
    ensure!(named.pid == pid, "{named:?}");
    ensure!(named.python.starts_with(&format!("{}.", python.version())), "{named:?}");
    ensure!(named.greenlet.as_deref().is_some_and(|version| version.starts_with("3.")), "{named:?}");
    ensure!(named.command.contains("open_waits.py greenlet"), "{named:?}");
    Ok(())
}

/// Records the Flask service under load; returns the text and the books.
fn recorded_service(python: &Python, options: &[&str]) -> Result<(String, tests::book::Books)> {
    let mut target = Target::start(python, "service.py", &[])?;
    let recording = Recording::start(target.pid(), options)?;
    target.go()?;
    service::load(python, &target)?;
    let books = target.books()?;
    let text = recording.stop_with(Signal::TERM)?;
    target.finish()?;
    Ok((text, books))
}

fn svg(python: &Python) -> Result<()> {
    let (svg, books) = recorded_service(python, &["--format", "svg", "--view", "wait"])?;
    let titles = reader::titles(python, &svg)?;
    for function in books.times.keys() {
        let named = titles.iter().any(|title| title.starts_with(function.as_str()));
        ensure!(named, "no {function} in {titles:?}");
    }
    ensure!(titles.iter().any(|title| title.contains("service.py")), "no file: {titles:?}");
    let hub = titles.iter().find(|title| title.contains("Hub.run"));
    ensure!(hub.is_none(), "the hub's idle time is not left out: {hub:?}");
    Ok(())
}

fn folded(python: &Python) -> Result<()> {
    let mut target = Target::start(python, "waits.py", &["gevent"])?;
    let text = Recording::start(target.pid(), &["--format", "folded", "--view", "wait"])?;
    let json = Recording::start(target.pid(), &[])?;
    target.go()?;
    let books = target.books()?;
    let profile = json.stop()?;
    let stacks = reader::folded(&text.stop_with(Signal::TERM)?)?;
    let folded_ns = |function: &str| -> u64 {
        let of = |name: &String| {
            let rest = name.strip_prefix(function);
            rest.is_some_and(|rest| !rest.starts_with(|next: char| next.is_alphanumeric()))
        };
        stacks.iter().filter(|(names, _)| names.iter().any(of)).map(|(_, ns)| ns).sum()
    };
    // Two recordings of the same waits: each is right by the books.
    compare::function_times(folded_ns, &books.times)?;
    compare::function_times(|function| profile.waiting_ns(function), &books.times)?;
    ensure!(!stacks.keys().flatten().any(|name| name.contains("Hub.run")), "{stacks:?}");
    target.finish()
}

fn to_stdout(python: &Python) -> Result<()> {
    as_root()?;
    let target = Target::start(python, "open_waits.py", &["greenlet"])?;
    let pid = target.pid().to_string();
    for output in [[].as_slice(), &["-o", "-"]] {
        let output = run(Command::new(greenscope()?)
            .args(["record", "--pid", &pid, "--duration", "200ms", "--format", "json"])
            .args(output))?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        parse(&String::from_utf8(output.stdout)?)?;
    }
    Ok(())
}

/// As after a Ctrl-C in `greenscope record … 2>&1 | tee log`, which ends tee as well.
fn unread(python: &Python) -> Result<()> {
    as_root()?;
    let target = Target::start(python, "open_waits.py", &["greenlet"])?;
    let pid = target.pid().to_string();
    let directory = tempfile::tempdir()?;
    let output = directory.path().join("recording");
    let (reader, writer) = std::io::pipe()?;
    drop(reader);
    let status = Command::new(greenscope()?)
        .args(["record", "--pid", &pid, "--duration", "200ms", "--format", "json", "-o"])
        .arg(&output)
        .stderr(writer)
        .status()?;
    ensure!(status.success(), "{status}");
    parse(&std::fs::read_to_string(&output)?)?;
    Ok(())
}

fn default_svg(python: &Python) -> Result<()> {
    as_root()?;
    let target = Target::start(python, "open_waits.py", &["gevent"])?;
    let pid = target.pid().to_string();
    let directory = tempfile::tempdir()?;
    let output = run(Command::new(greenscope()?)
        .args(["record", "--pid", &pid, "--duration", "200ms"])
        .current_dir(&directory))?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let names: Vec<_> = std::fs::read_dir(&directory)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    let [name] = names.as_slice() else { anyhow::bail!("not one file: {names:?}") };
    let named = name.starts_with(&format!("greenscope-{pid}-")) && name.ends_with(".svg");
    ensure!(named, "{name}");
    reader::titles(python, &std::fs::read_to_string(directory.path().join(name))?)?;
    Ok(())
}

fn duration(python: &Python) -> Result<()> {
    let target = Target::start(python, "open_waits.py", &["greenlet"])?;
    let profile = parse(&Recording::start(target.pid(), &["--duration", "500ms"])?.finish()?)?;
    let kept = (500_000_000..1_000_000_000).contains(&profile.duration_ns);
    ensure!(kept, "{} ns", profile.duration_ns);
    Ok(())
}

/// Written to a temporary file and renamed, /dev/null would become a plain file.
fn device(python: &Python) -> Result<()> {
    as_root()?;
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("null");
    let made = Command::new(tool("mknod")?).arg(&path).args(["c", "1", "3"]).status()?;
    if !made.success() || std::fs::write(&path, "").is_err() {
        return Err(skip("no devices in the temporary directory"));
    }
    let target = Target::start(python, "open_waits.py", &["greenlet"])?;
    let output = run(Command::new(greenscope()?)
        .args(["record", "--pid", &target.pid().to_string(), "--duration", "200ms"])
        .args(["--format", "json", "-o"])
        .arg(&path))?;
    let kind = std::fs::symlink_metadata(&path)?.file_type();
    ensure!(kind.is_char_device(), "it was replaced");
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn full_disk(python: &Python) -> Result<()> {
    as_root()?;
    let mut target = Target::start(python, "stacks.py", &["deep"])?;
    let directory = tempfile::tempdir()?;
    let script = "mount -t tmpfs -o size=4k none \"$1\" || exit 77
        \"$2\" record --pid \"$3\" --format json -o \"$1/out.json\"
        code=$?; ls -A \"$1\"; exit $code";
    let mut process = Process::start(
        Command::new(tool("unshare")?)
            .args(["--mount", "sh", "-c", script, "sh"])
            .arg(directory.path())
            .arg(greenscope()?)
            .arg(target.pid().to_string()),
    )?;
    let says = |line: &str| line.starts_with("recording");
    process.stderr.line(0, Deadline::usual(), "the line `recording`", says)?;
    target.go()?;
    target.books()?;
    let inner = descendants(process.pid())?;
    let inner = i32::try_from(*inner.last().context("no greenscope below the shell")?)?;
    let inner = rustix::process::Pid::from_raw(inner).context("a pid")?;
    rustix::process::kill_process(inner, Signal::TERM)?;
    let status = process.wait(Deadline::usual())?;
    let said = String::from_utf8(process.stderr.whole(Deadline::usual())?)?;
    ensure!(status.code() == Some(1), "{status}: {said}");
    ensure!(said.lines().last().is_some_and(|line| line.starts_with("greenscope: ")), "{said}");
    let left = process.stdout.whole(Deadline::usual())?;
    ensure!(left.is_empty(), "left behind: {}", String::from_utf8_lossy(&left));
    target.finish()
}

fn no_leftovers(python: &Python) -> Result<()> {
    let mut target = Target::start(python, "switches.py", &["greenlet"])?;
    let recording = Recording::start(target.pid(), &[])?;
    target.go()?;
    target.books()?;
    let directory = recording.output().parent().context("a directory")?.to_owned();
    // Nothing is there before the end ...
    ensure!(std::fs::read_dir(&directory)?.count() == 0, "written too early");
    recording.process.signal(Signal::INT)?;
    let ended = recording.process.ended(Deadline::after(Duration::from_secs(30)))?;
    ensure!(ended, "it did not end");
    // ... and nothing but the file after it.
    ensure!(std::fs::read_dir(&directory)?.count() == 1, "left behind");
    target.finish()
}

fn doctor(python: &Python) -> Result<()> {
    as_root()?;
    let target = Target::start(python, "open_waits.py", &["gevent"])?;
    let output = run(Command::new(greenscope()?).args(["doctor", "--pid", &target.pid().to_string()]))?;
    let said = String::from_utf8(output.stdout)?;
    ensure!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    for fact in [python.version(), "greenlet 3.", "g_switchstack", "emulated"] {
        ensure!(said.contains(fact), "no {fact}: {said}");
    }
    Ok(())
}
