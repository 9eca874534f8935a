//! Threads in other interpreters than the main one.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::kind;
use tests::place::Python;
use tests::recording::Recording;
use tests::runner::Cases;
use tests::target::Target;

pub(crate) fn cases(cases: &mut Cases) {
    cases.each("a_thread_in_another_interpreter_is_counted_and_told", elsewhere);
}

fn elsewhere(python: &Python) -> Result<()> {
    let mut target = Target::start(python, "subinterpreters.py", &[])?;
    let recording = Recording::start(target.pid(), &["--rate", "499"])?;
    let said = recording.process.stderr.text();
    target.go()?;
    let done = target.hear("done")?;
    let profile = recording.stop()?;
    let count = |name| done.pointer(name).and_then(Value::as_u64).context(name);
    let truth = count("/books/elsewhere")? + count("/books/here")?;
    kind::row("switches", truth, profile.totals.switches);
    let told = said.contains("beside the main interpreter there are others, 1 by now");
    kind::row("other interpreters, told at the attach", 1, u8::from(told));
    ensure!(told, "it said: {said}");
    ensure!(profile.totals.switches == truth, "{} instead of {truth}", profile.totals.switches);
    ensure!(profile.switches_in() == truth, "{} by greenlet", profile.switches_in());
    // Its waits are under its name.
    let waited = profile.waiting_ns("elsewhere");
    ensure!(waited >= 200 * 100_000, "{waited} ns in the other interpreter's greenlets");
    // 0.4 s of a thread that the main interpreter does not know: no stack, and not in silence.
    let untold = profile.totals.faults.get("SUBINTERPRETER").copied().unwrap_or(0);
    ensure!(untold >= 100, "SUBINTERPRETER {untold}: {:?}", profile.totals.faults);
    for fault in ["OUT_OF_STEP", "THREAD_STATE"] {
        ensure!(!profile.totals.faults.contains_key(fault), "{fault}: {:?}", profile.totals.faults);
    }
    target.finish()
}
