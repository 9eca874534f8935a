//! Whose work it is where a label is not the greenlet's own, or not for long: tasks of an event
//! loop, what outlives its request, tracers that make few spans or none.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use serde_json::Value;
use tests::book::Time;
use tests::http;
use tests::kind;
use tests::label::Source;
use tests::place::{PYTHONS, Python};
use tests::profile::{Profile, Stack, State};
use tests::recording::Recording;
use tests::runner::Cases;
use tests::target::Target;

/// What a wait may be longer than its line in the book, and shorter.
const NEAR: f64 = 0.05;
/// Ticks are samples.
const TICK_NS: u64 = 1_000_000_000 / 97;

pub(crate) fn cases(cases: &mut Cases) {
    for python in PYTHONS {
        let environment = format!("otel-1.45.1-{python}");
        cases.once(format!("tasks_of_an_event_loop_are_told_apart/{environment}"), move || {
            bridge(&Python::find(&environment)?, "thread")
        });
    }
    cases.once("tasks_of_a_loop_inside_of_gevent_are_told_apart/otel-1.45.1-py3.12", || {
        bridge(&Python::find("otel-1.45.1-py3.12")?, "gevent")
    });
    for (environment, labels) in [
        ("otel-1.45.1-py3.13", "otel"),
        ("agent-1.2.0-py3.11", "agent"),
        ("agent-1.2.0-py3.12", "plugless"),
        ("agent-1.2.0-py3.13", "plugless"),
    ] {
        cases.once(format!("requests_without_a_span_have_their_endpoint/{environment}"), move || {
            sampled(&Python::find(environment)?, labels)
        });
    }
    cases.once("a_span_after_the_answer_is_not_the_requests/otel-1.45.1-py3.13", || {
        after_the_answer(&Python::find("otel-1.45.1-py3.13")?)
    });
    for (environment, source, labels) in [
        ("otel-1.45.1-py3.12", Source::Otel, "otel"),
        ("agent-1.2.0-py3.11", Source::Agent, "agent"),
        ("py3.13", Source::Wire, "wire"),
    ] {
        cases.once(format!("what_outlives_its_request_is_nobodys/{environment}"), move || {
            outlived(&Python::find(environment)?, source, labels)
        });
    }
}

/// A span that begins after the answer is not the request's, and gives it no trace.
fn after_the_answer(python: &Python) -> Result<()> {
    let mut target = Target::start(python, "after.py", &[])?;
    let port = target.facts.get("port").and_then(Value::as_u64).context("a port")?;
    let port = u16::try_from(port)?;
    target.go()?;
    let recording = Recording::start(target.pid(), &[])?;
    for _ in 0..ROUNDS {
        http::ask(port, "/answer", "")?;
    }
    http::ask(port, "/finish", "")?;
    target.hear("done")?;
    let profile = recording.stop()?;
    target.finish()?;
    let of_wire = profile.requests.iter().filter(|row| row.endpoint.as_deref() == Some("GET /answer"));
    let (requests, traced) =
        of_wire.fold((0, 0), |(all, traced), row| (all + 1, traced + u64::from(row.trace_id.is_some())));
    kind::row("requests", ROUNDS, requests);
    kind::row("with the trace of what came after", 0, traced);
    ensure!(requests == ROUNDS && traced == 0, "{requests} requests, {traced} with a trace");
    let looks = profile.totals.labels.as_ref().context("no looks")?;
    let unready = looks.blank.get("UNREADY").copied().unwrap_or_default();
    for (function, source) in [("request_wait", Source::Wire), ("after_wait", Source::Otel)] {
        let waits =
            profile.stacks.iter().filter(|stack| stack.state == State::Wait && stack.contains(function));
        let (mut right, mut all) = (0, 0);
        for stack in waits {
            all += stack.count;
            if let Some(seen) = stack.label.source {
                ensure!(seen == source, "{function}: {:?}", stack.label);
                right += stack.count;
            }
        }
        // Those before greenscope has looked at the spans' classes.
        let known = right + unready >= all && right * 2 > all;
        ensure!(known && all >= ROUNDS, "{function}: {right} of {all} have a label: {looks:?}");
    }
    Ok(())
}

/// Requests of each endpoint over each kind of connection.
const ROUNDS: u64 = 60;

/// Asks over a connection that stays open; `last` ends the answer.
fn keep_asking(stream: &mut TcpStream, path: &str, last: &str) -> Result<()> {
    // In one piece.
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    let mut more = [0; 4096];
    while !answer.ends_with(last.as_bytes()) {
        let length = stream.read(&mut more)?;
        ensure!(length > 0, "{path}: {}", String::from_utf8_lossy(&answer));
        answer.extend(more.iter().take(length));
    }
    Ok(())
}

/// Every request is there once and has its endpoint, whether the tracer made a span of it or not.
fn sampled(python: &Python, labels: &str) -> Result<()> {
    let mut target = Target::start(python, "sampled.py", &["--labels", labels])?;
    let port = target.facts.get("port").and_then(Value::as_u64).context("a port")?;
    let port = u16::try_from(port)?;
    target.go()?;
    let recording = Recording::start(target.pid(), &[])?;
    let mut stream = http::connect(port)?;
    for _ in 0..ROUNDS {
        for (path, last) in [("/again", "again"), ("/once", "once")] {
            http::ask(port, path, "")?;
            keep_asking(&mut stream, path, last)?;
        }
    }
    let said = recording.process.stderr.text();
    drop(stream);
    http::ask(port, "/static-ignored", "")?;
    let done = target.hear("done")?;
    let profile = recording.stop()?;
    target.finish()?;
    let (mut all_ns, mut right_ns, mut wrong_ns) = (0, 0, 0);
    let waits = |stack: &&Stack| stack.state == State::Wait;
    for stack in profile.stacks.iter().filter(waits) {
        let of = |name: &str| {
            stack.contains(&format!("{name}_wait")) || stack.contains(&format!("{name}_child_wait"))
        };
        let Some(name) = ["again", "once", "nobodys"].into_iter().find(|name| of(name)) else { continue };
        let right = stack.label.endpoint.as_ref().map(|endpoint| endpoint.ends_with(&format!("/{name}")));
        all_ns += if name == "nobodys" { 0 } else { stack.ns };
        *(if right == Some(true) { &mut right_ns } else { &mut wrong_ns }) += right.map_or(0, |_| stack.ns);
    }
    let counted = profile.endpoints.iter().filter(|row| {
        row.endpoint
            .as_ref()
            .is_some_and(|endpoint| ["/again", "/once"].iter().any(|path| endpoint.ends_with(path)))
    });
    kind::row("requests", 4 * ROUNDS, counted.map(|row| row.requests).sum::<u64>());
    kind::row("waiting under its endpoint", kind::ms(all_ns), kind::ms(right_ns));
    kind::row("waiting under another's", kind::ms(0), kind::ms(wrong_ns));
    let spanless = said.contains("made no span of its requests");
    ensure!(spanless || labels != "plugless", "greenscope does not say that there is no plugin: {said}");
    let times: BTreeMap<String, Time> =
        serde_json::from_value(done.pointer("/books/times").cloned().context("no times")?)?;
    let (mut all, mut unclocked) = (0, 0);
    for (endpoint, functions) in [
        ("/again", ["again_wait", "again_burn", "again_child_wait"]),
        ("/once", ["once_wait", "once_burn", ""]),
    ] {
        let is_its = |seen: &Option<String>| {
            seen.as_deref()
                .is_some_and(|seen| seen == endpoint || seen.strip_prefix("GET ") == Some(endpoint))
        };
        let rows = profile.endpoints.iter().filter(|row| is_its(&row.endpoint));
        let requests: u64 = rows.map(|row| row.requests).sum();
        ensure!(requests == 2 * ROUNDS, "{endpoint}: {requests} requests of {}", 2 * ROUNDS);
        all += requests;
        for function in functions.iter().filter(|function| !function.is_empty()) {
            let own = || profile.stacks.iter().filter(|stack| stack.contains(function));
            let wrong = own().find(|stack| stack.label.source.is_some() && !is_its(&stack.label.endpoint));
            ensure!(wrong.is_none(), "{function}: {wrong:?}");
            let (labelled, blank) = split(&profile, function, State::Wait);
            ensure!(
                blank * 20 <= labelled + blank,
                "{function}: {blank} ns without a label, {labelled} with"
            );
        }
        let burns = times.get(&format!("{}_burn", endpoint.trim_start_matches('/'))).context("not booked")?;
        let own = || profile.requests.iter().filter(|request| is_its(&request.endpoint));
        let on_cpu: u64 = own().filter_map(|request| request.clock.on_cpu_ns).sum();
        println!("      {endpoint}: {} ms on the CPU, {} burnt", on_cpu / 1_000_000, burns.ns / 1_000_000);
        // The first spans, until greenscope has looked at their classes.
        unclocked += own().filter(|request| request.clock.on_cpu_ns.is_none()).count();
    }
    let looks = profile.totals.labels.as_ref().context("no looks")?;
    let unready = looks.blank.get("UNREADY").copied().unwrap_or_default();
    ensure!(unclocked as u64 <= unready, "{unclocked} requests without a clock: {looks:?}");
    let seen: u64 = profile.endpoints.iter().map(|row| row.requests).sum();
    ensure!((all..=all + 1).contains(&seen), "{seen} requests of {all}");
    let nobodys = profile.stacks.iter().find(|stack| {
        stack.label.source.is_some() && (stack.contains("nobodys_wait") || stack.contains("nobodys_burn"))
    });
    ensure!(nobodys.is_none(), "{nobodys:?}");
    Ok(())
}

/// What bridge.py booked of an endpoint.
#[derive(Deserialize)]
struct Spent {
    requests: u64,
    cpu_ns: u64,
    inside_cpu_ns: u64,
    waiting_ns: u64,
    wall_ns: u64,
}

fn bridge(python: &Python, of: &str) -> Result<()> {
    let mut target = Target::start(python, "bridge.py", &["--of", of])?;
    let recording = Recording::start(target.pid(), &[])?;
    target.go()?;
    let done = target.hear("done")?;
    let profile = recording.stop()?;
    target.finish()?;
    let books: BTreeMap<String, Spent> =
        serde_json::from_value(done.pointer("/books/endpoints").cloned().context("no endpoints")?)?;
    let cpu_ns = done.pointer("/books/cpu_ns").and_then(Value::as_u64).context("no CPU time")?;
    let mut seen = Vec::new();
    for (endpoint, spent) in &books {
        let own = profile.requests.iter().filter(|request| request.endpoint.as_ref() == Some(endpoint));
        let on_cpu = own.map(|request| request.clock.on_cpu_ns).sum::<Option<u64>>();
        let row = profile.endpoints.iter().find(|row| row.endpoint.as_ref() == Some(endpoint));
        let most = kind::ms(spent.cpu_ns);
        let truth = format!("{} in greenlets, {most} in all", kind::ms(spent.inside_cpu_ns));
        kind::row(&format!("CPU time of `{endpoint}`"), truth, kind::ms_if_told(on_cpu));
        let waiting = row.and_then(|row| row.waiting_ns);
        kind::row(&format!("waiting of `{endpoint}`"), kind::ms(spent.waiting_ns), kind::ms_if_told(waiting));
        seen.push((endpoint, spent, on_cpu, row));
    }
    let mut sum_ns = 0;
    for (endpoint, spent, on_cpu, row) in seen {
        let row = row.with_context(|| format!("no {endpoint}: {:?}", profile.endpoints))?;
        ensure!(row.requests == spent.requests, "{endpoint}: {} of {}", row.requests, spent.requests);
        let on_cpu_ns = on_cpu.context("no clock")?;
        sum_ns += on_cpu_ns;
        let waiting_ns = row.waiting_ns.context("no waiting time")?;
        println!(
            "      {endpoint}: {} ms on the CPU of {} ({} of it in greenlets), {} ms waiting of {}",
            on_cpu_ns / 1_000_000,
            spent.cpu_ns / 1_000_000,
            spent.inside_cpu_ns / 1_000_000,
            waiting_ns / 1_000_000,
            spent.waiting_ns / 1_000_000
        );
        // What is not known is nobody's; the books' own work is in it.
        let most_ns = spent.cpu_ns as f64 * (1.0 + NEAR);
        ensure!(on_cpu_ns as f64 <= most_ns, "{endpoint}: {on_cpu_ns} of {}", spent.cpu_ns);
        let least_ns = spent.inside_cpu_ns as f64 * (1.0 - NEAR);
        ensure!(on_cpu_ns as f64 >= least_ns, "{endpoint}: {on_cpu_ns} of {}", spent.inside_cpu_ns);
        // A task that sleeps itself waits in no greenlet.
        let (seen, booked) = (waiting_ns as f64, spent.waiting_ns as f64);
        ensure!((seen - booked).abs() <= booked * NEAR, "{endpoint}: {seen} of {booked} ns");
        ensure!(waiting_ns <= spent.wall_ns, "{endpoint}: {seen} of {} ns", spent.wall_ns);
        // In its own functions, and in no other's.
        let name = endpoint.trim_start_matches('/');
        for stack in profile.stacks.iter().filter(|stack| is_of(stack, name)) {
            let label = stack.label.endpoint.as_ref();
            let right = label == Some(endpoint) || label.is_none() && stack.state == State::Cpu;
            ensure!(right, "{label:?} in {name}: {stack:?}");
        }
        let ticks = profile.stacks.iter().filter(|stack| is_of(stack, name) && stack.state == State::Cpu);
        let (labelled, all) = ticks.fold((0, 0), |(labelled, all), stack| {
            (labelled + if stack.label.source.is_some() { stack.count } else { 0 }, all + stack.count)
        });
        ensure!(labelled * 100 >= all * 95, "{endpoint}: {labelled} of {all} ticks have a label");
    }
    ensure!(sum_ns <= cpu_ns, "{sum_ns} ns on the CPU of {cpu_ns}");
    Ok(())
}

fn is_of(stack: &Stack, name: &str) -> bool {
    let burns = [format!("{name}_burn"), format!("{name}_inside"), format!("{name}_wait")];
    burns.iter().any(|function| stack.contains(function))
}

/// The time in a function in that state, with a label and without.
fn split(profile: &Profile, function: &str, state: State) -> (u64, u64) {
    let own = profile.stacks.iter().filter(|stack| stack.state == state && stack.contains(function));
    own.fold((0, 0), |(labelled, blank), stack| match stack.label.source {
        Some(_) => (labelled + stack.ns, blank),
        None => (labelled, blank + stack.ns),
    })
}

fn outlived(python: &Python, source: Source, labels: &str) -> Result<()> {
    let mut target = Target::start(python, "flusher.py", &["--labels", labels])?;
    let port = target.facts.get("port").and_then(Value::as_u64).context("a port")?;
    let port = u16::try_from(port)?;
    target.go()?;
    if source != Source::Wire {
        // The first spans of their classes.
        http::ask(port, "/inside", "")?;
    }
    let recording = Recording::start(target.pid(), &[])?;
    http::ask(port, "/first", "")?;
    for _ in 0..40 {
        http::ask(port, "/later", "")?;
    }
    for _ in 0..5 {
        http::ask(port, "/inside", "")?;
    }
    http::ask(port, "/static-ignored", "")?;
    let done = target.hear("done")?;
    let profile = recording.stop()?;
    target.finish()?;
    let times: BTreeMap<String, Time> =
        serde_json::from_value(done.pointer("/books/times").cloned().context("no times")?)?;
    let wall = |path: &str| done.pointer(&format!("/books/walls/~1{path}")).and_then(Value::as_u64);
    let first_ns = wall("first").context("no first")?;
    let looks = profile.totals.labels.as_ref().context("no labels")?;
    println!("      first took {} ms; {looks:?}", first_ns / 1_000_000);
    // Four of them, each no longer than the request that made it; and the request's own end.
    let most_ns = first_ns + first_ns / 10;
    let outliving = [("flush_wait", 4), ("first_work_wait", 1)]
        .map(|(function, greenlets)| (function, greenlets, split(&profile, function, State::Wait)));
    for (function, greenlets, (labelled, _)) in outliving {
        let truth = format!("at most {}", kind::ms(greenlets * most_ns));
        kind::row(&format!("`{function}` under the first request"), truth, kind::ms(labelled));
    }
    for (function, greenlets, (labelled, blank)) in outliving {
        let booked = times.get(function).context("not booked")?.ns;
        println!("      {function}: {labelled} ns with a label, {blank} without, of {booked}");
        ensure!(labelled <= greenlets * most_ns, "{function}: {labelled} ns have a label");
        ensure!(labelled + blank >= booked - booked / 20, "{function}: {labelled} and {blank} of {booked}");
        ensure!(blank > first_ns, "{function}: {blank} ns are nobody's");
    }
    // Something of it was inside of the request.
    ensure!(split(&profile, "flush_wait", State::Wait).0 > first_ns, "no flusher had its maker's label");
    let (labelled, _) = split(&profile, "flush_burn", State::Cpu);
    ensure!(labelled <= 3 * most_ns / 10 + 4 * TICK_NS, "flush_burn: {labelled} ns have a label");
    let elsewhere = profile.stacks.iter().find(|stack| {
        let flushes = ["flush_wait", "flush_burn", "first_work_wait"];
        let other = stack.label.endpoint.as_deref().is_some_and(|endpoint| !endpoint.ends_with("/first"));
        other && flushes.iter().any(|function| stack.contains(function))
    });
    ensure!(elsewhere.is_none(), "{elsewhere:?}");
    // What works inside of a request keeps its label.
    let (labelled, blank) = split(&profile, "inside_wait", State::Wait);
    ensure!(labelled > 20 * blank, "inside_wait: {labelled} ns with a label, {blank} without");
    ensure!(looks.outlived > 0, "{looks:?}");
    let inherited = |row: &tests::label::Request| Some(row.waiting_ns? + row.inherited.waiting_ns?);
    let first =
        profile.requests.iter().filter(|row| row.endpoint.as_deref().is_some_and(|e| e.ends_with("/first")));
    let rows: Vec<_> = first.collect();
    let [row] = rows.as_slice() else { anyhow::bail!("{rows:?}") };
    ensure!(inherited(row).is_some_and(|ns| ns <= 6 * most_ns), "{row:?}");
    let later =
        profile.endpoints.iter().filter(|row| row.endpoint.as_deref().is_some_and(|e| e.ends_with("/later")));
    let later: u64 = later.map(|row| row.requests).sum();
    ensure!(later == 40, "{later} requests");
    Ok(())
}
