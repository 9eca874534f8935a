//! A real Flask service under gevent.pywsgi, with load from another process.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::compare;
use tests::deadline::Deadline;
use tests::place::{Python, target_program};
use tests::process::Process;
use tests::recording::Recording;
use tests::runner::Cases;
use tests::target::Target;

const CLIENTS: &str = "8";
const ROUNDS: &str = "10";

pub(crate) fn cases(cases: &mut Cases) {
    cases.each("a_flask_services_waits_are_its_own_functions", flask);
}

/// Lets load.py ask a service that was let go, until it has said goodbye.
pub(crate) fn load(python: &Python, target: &Target) -> Result<()> {
    let port = target.facts.get("port").and_then(Value::as_u64).context("a port")?;
    let mut load = Process::start(
        Command::new(&python.exe)
            .arg(target_program("load.py"))
            .args([&port.to_string(), CLIENTS, ROUNDS])
            .env("PYTHONDONTWRITEBYTECODE", "1"),
    )?;
    let (said, _) = load.stdout.line(0, Deadline::usual(), "done", |_| true)?;
    let said: Value = serde_json::from_str(&said)?;
    let count = |name| said.pointer(name).and_then(Value::as_u64);
    let asked = count("/books/asked").context("asked")?;
    ensure!(asked > 0 && count("/books/answered") == Some(asked), "{said}");
    load.wait(Deadline::usual())?;
    Ok(())
}

fn flask(python: &Python) -> Result<()> {
    let mut target = Target::start(python, "service.py", &[])?;
    let recording = Recording::start(target.pid(), &[])?;
    target.go()?;
    load(python, &target)?;
    let books = target.books()?;
    let profile = recording.stop()?;
    compare::function_times(|function| profile.waiting_ns(function), &books.times)?;
    compare::waits(&profile, &books.book)?;
    compare::switches(&profile, &books.book)?;
    compare::greenlets(&profile, &books)?;
    compare::complete(&profile)?;
    // Flask's own frames lie between the server's and the handler's.
    let stacks = &profile.stacks;
    let order = ["Flask.wsgi_app", "Flask.dispatch_request", "page", "render", "query"];
    let found = stacks.iter().any(|stack| {
        let mut names = stack.frames.iter().filter_map(|frame| frame.function.as_deref());
        order.iter().all(|wanted| names.any(|name| name == *wanted))
    });
    ensure!(found, "no stack in the order {order:?}");
    target.finish()
}
