//! Requests that are seen on sockets, however they are served: wired.py and asgi.py.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::kind;
use tests::label::Source;
use tests::place::Python;
use tests::profile::{Profile, State};
use tests::recording::Recording;
use tests::runner::Cases;
use tests::target::Target;

/// What is done for nobody.
const BETWEEN: &str = "between";
const HANDLERS: [(&str, &str); 3] =
    [("handle_alpha", "/alpha"), ("handle_beta", "/beta"), ("handle_gamma", "/gamma")];
/// Of a hundredth of the time that is a request's, so many have its label. The first request of
/// each of three connections has none where its greenlet first did something else.
const MOST: u64 = 95;

pub(crate) fn cases(cases: &mut Cases) {
    cases.each("requests_have_their_time_whoever_polls_before_the_read", |python| owned(python, "own"));
    cases.once("requests_over_connections_from_before_are_seen/py3.11", || {
        owned(&Python::find("py3.11")?, "older")
    });
    cases.once("requests_in_every_form_are_counted_and_labelled/py3.12", || {
        owned(&Python::find("py3.12")?, "forms")
    });
    cases.once("requests_that_others_answer_are_counted/py3.13", || shared("wired.py", "readers"));
    cases.once("requests_that_one_greenlet_reads_for_all_are_counted/py3.13", || {
        shared("wired.py", "dispatcher")
    });
    cases.once("requests_beside_a_tracer_that_samples_are_counted/otel-1.45.1-py3.13", sampled);
    cases.once("requests_under_an_event_loop_are_counted/py3.13", || shared("wired.py", "loop"));
    for event_loop in ["asyncio", "uvloop"] {
        cases.once(format!("requests_to_uvicorn_are_counted/{event_loop}/py3.13"), || {
            shared("asgi.py", event_loop)
        });
    }
    cases.once("requests_are_none_that_only_begin_like_one/py3.13", nothing);
}

/// How the time of the handlers was labelled, and of each endpoint how many requests there were.
struct Seen {
    right_ns: u64,
    blank_ns: u64,
    profile: Profile,
    requests: BTreeMap<String, u64>,
}

fn seen(python: &Python, program: &str, mode: &str) -> Result<Seen> {
    let mut target = Target::start(python, program, &[mode])?;
    let recording = Recording::start(target.pid(), &["--intervals"])?;
    target.go()?;
    let done = target.hear("done")?;
    let profile = recording.stop()?;
    target.finish()?;
    let requests: BTreeMap<String, u64> = done
        .pointer("/books/requests")
        .and_then(Value::as_object)
        .context("no requests")?
        .iter()
        .map(|(endpoint, count)| (endpoint.clone(), count.as_u64().unwrap_or_default()))
        .collect();
    let (mut right_ns, mut blank_ns, mut wrong_ns, mut wrong) = (0, 0, 0, None);
    for stack in &profile.stacks {
        let endpoint = stack.label.endpoint.as_deref();
        let named = |name: &str| stack.frames.iter().any(|frame| frame.function.as_deref() == Some(name));
        // What a greenlet runs after the answer until it waits may be the request's.
        let is_nobodys = (named(BETWEEN) || named("Hub.run")) && stack.state != State::Cpu;
        let path = HANDLERS.iter().find(|(function, _)| named(function)).map(|(_, path)| *path);
        let others = |endpoint: &str| is_nobodys || path.is_some_and(|path| !endpoint.ends_with(path));
        if endpoint.is_some_and(others) {
            wrong_ns += stack.ns;
            wrong = Some(format!("{stack:?}"));
        } else if path.is_some() {
            *(if endpoint.is_some() { &mut right_ns } else { &mut blank_ns }) += stack.ns;
        }
    }
    let counted: u64 = profile.endpoints.iter().map(|row| row.requests).sum();
    kind::row("requests", requests.values().sum::<u64>(), counted);
    kind::row("time under another's endpoint", kind::ms(0), kind::ms(wrong_ns));
    ensure!(wrong.is_none(), "under another's endpoint, or nobody's under any: {wrong:?}");
    Ok(Seen { right_ns, blank_ns, profile, requests })
}

/// As many requests as there were, each whole.
fn counted(seen: &Seen) -> Result<()> {
    let Seen { profile, requests, .. } = seen;
    let mut found: BTreeMap<String, u64> = BTreeMap::new();
    for row in &profile.endpoints {
        let endpoint = row.endpoint.clone().context("a request without an endpoint")?;
        ensure!(row.whole == row.requests, "{row:?}");
        found.insert(endpoint, row.requests);
    }
    ensure!(found == *requests, "{found:?} instead of {requests:?}: {:?}", profile.totals.faults);
    // None is shorter than its work, less what a timer of libev may be early.
    let shortest = profile.requests.iter().filter_map(|request| request.wall_ns).min();
    ensure!(shortest >= Some(3_000_000), "{shortest:?}");
    Ok(())
}

fn owned(python: &Python, mode: &str) -> Result<()> {
    let seen = seen(python, "wired.py", mode)?;
    let Seen { right_ns, blank_ns, profile, .. } = &seen;
    println!("      {right_ns} ns right, {blank_ns} blank, {:?}", profile.totals.faults);
    counted(&seen)?;
    ensure!(right_ns * 100 >= (right_ns + blank_ns) * MOST, "{:?}", profile.totals.faults);
    let known = profile.requests.iter().filter(|request| request.waiting_ns.is_some()).count();
    ensure!(known * 100 >= profile.requests.len() * 95, "{known} of {} are known", profile.requests.len());
    Ok(())
}

/// Nobody's time is theirs for sure, but all are counted.
fn shared(program: &str, mode: &str) -> Result<()> {
    let seen = seen(&Python::find("py3.13")?, program, mode)?;
    let Seen { right_ns, blank_ns, profile, .. } = &seen;
    println!("      {right_ns} ns right, {blank_ns} blank, {:?}", profile.totals.faults);
    counted(&seen)?;
    let unowned = profile.totals.faults.get("WIRE_UNOWNED").copied().unwrap_or_default();
    ensure!(unowned * 10 >= u64::try_from(profile.requests.len())? * 9, "{:?}", profile.totals.faults);
    for request in &profile.requests {
        ensure!(request.waiting_ns != Some(0), "0 for what is not known: {request:?}");
    }
    Ok(())
}

/// Beside a tracer that tells of some: each has a row, or is counted as one that has none.
fn sampled() -> Result<()> {
    let seen = seen(&Python::find("otel-1.45.1-py3.13")?, "wired.py", "sampled")?;
    let Seen { profile, requests, .. } = &seen;
    let asked: u64 = requests.values().sum();
    let rows = u64::try_from(profile.requests.len())?;
    let unpaired = profile.totals.faults.get("WIRE_UNPAIRED").copied().unwrap_or_default();
    println!("      {rows} rows of {asked} requests, {:?}", profile.totals.faults);
    ensure!(rows + unpaired == asked, "{rows} rows and {unpaired} without one of {asked} requests");
    let traced = profile.requests.iter().filter(|request| request.source == Some(Source::Otel)).count();
    ensure!(traced >= 20 && unpaired >= 40, "{traced} with a span, {unpaired} without a row");
    Ok(())
}

fn nothing() -> Result<()> {
    let seen = seen(&Python::find("py3.13")?, "wired.py", "nothing")?;
    let Seen { profile, requests, .. } = &seen;
    let found: Vec<_> = profile.endpoints.iter().map(|row| (row.endpoint.clone(), row.requests)).collect();
    let booked: Vec<_> = requests.iter().map(|(endpoint, count)| (Some(endpoint.clone()), *count)).collect();
    ensure!(found == booked, "{found:?} instead of {booked:?}");
    let cut = profile.totals.faults.get("WIRE_CUT").copied().unwrap_or_default();
    ensure!(cut > 0, "{:?}", profile.totals.faults);
    Ok(())
}
