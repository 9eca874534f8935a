//! Whose work it is: every label against the books of a service that knows.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use tests::compare;
use tests::deadline::Deadline;
use tests::judge::Verdict;
use tests::kind;
use tests::label::Source;
use tests::place::{PYTHONS, Python, as_root, greenscope};
use tests::profile::Profile;
use tests::reader;
use tests::recording::{Recording, parse, run};
use tests::runner::Cases;
use tests::spans::Spans;
use tests::target::Target;
use tests::traced::{SECRET, Service};

/// The tracers of tests/traced, and the Pythons that they work on.
const TRACERS: [(&str, Source, &[&str]); 7] = [
    ("agent-1.2.0", Source::Agent, &PYTHONS),
    ("agent-0.8.0", Source::Agent, &PYTHONS),
    ("agent-1.0.1", Source::Agent, &["py3.11"]),
    ("agent-1.1.0", Source::Agent, &["py3.11"]),
    ("agent-1.3.0", Source::Agent, &PYTHONS),
    ("otel-1.45.1", Source::Otel, &PYTHONS),
    ("otel-1.20.0", Source::Otel, &PYTHONS),
];
/// Those that get a longer run than the rest.
const LONGER: [&str; 2] = ["agent-1.2.0", "otel-1.45.1"];

pub(crate) fn cases(cases: &mut Cases) {
    for (tracer, source, pythons) in TRACERS {
        for python in pythons {
            let environment = format!("{tracer}-{python}");
            let named = environment.clone();
            cases.once(format!("labels_are_those_of_the_tracer/{environment}"), move || {
                let seconds = if LONGER.contains(&tracer) { 4 } else { 2 };
                of_tracer(&named, source, seconds)
            });
            let named = environment.clone();
            cases.once(format!("labels_of_spans_in_every_form/{environment}"), move || spans(&named, source));
        }
    }
    cases.each("labels_are_those_on_the_wire", of_wire);
    for (environment, source) in [("agent-1.2.0-py3.13", Source::Agent), ("otel-1.45.1-py3.12", Source::Otel)]
    {
        cases.once(format!("labels_begin_with_the_first_requests/{environment}"), move || {
            cold(environment, source)
        });
    }
    cases.once("labels_of_one_endpoint_or_trace_alone/agent-1.3.0-py3.13", || {
        filtered(&Python::find("agent-1.3.0-py3.13")?, Source::Agent)
    });
    cases.once("labels_of_one_endpoint_or_trace_alone/py3.12", || {
        filtered(&Python::find("py3.12")?, Source::Wire)
    });
    cases.once("labels_are_not_inherited_when_that_is_not_wanted/agent-1.2.0-py3.12", not_inherited);
    cases.once("labels_are_not_read_from_the_wire_when_that_is_not_wanted/py3.13", no_wire);
    cases.once("labels_of_heads_in_pieces_are_right/py3.13", pieces);
    cases.once("labels_of_requests_that_come_together_are_right_or_missing/py3.13", together);
    cases.once("labels_without_plain_http_are_missing_and_counted/py3.13", unreadable);
    for (environment, source, says) in [
        (
            "agent-1.2.0-py3.13",
            Source::Agent,
            "by SkyWalking's agent: service traced, instance traced-instance, its own profiler is off",
        ),
        ("otel-1.45.1-py3.13", Source::Otel, "by OpenTelemetry: service traced, instance traced-instance"),
        ("py3.13", Source::Wire, "by their heads on the wire: no tracer in the process"),
    ] {
        cases.once(format!("labels_are_announced_by_doctor/{environment}"), move || {
            doctor(environment, source, says)
        });
    }
}

/// Records the service while it is asked, and holds the labels against its books.
fn judged(
    python: &Python,
    source: Source,
    seconds: u32,
    load: &[&str],
    options: &[&str],
) -> Result<(String, Profile, Verdict)> {
    let service = Service::start(python, source)?;
    service.warm_up()?;
    let options = [&["--intervals"], options].concat();
    let recording = Recording::start(service.pid(), &options)?;
    service.load(seconds, load)?;
    let text = recording.stop_with(Signal::TERM)?;
    let ledger = service.finish()?;
    let profile = parse(&text)?;
    let inherits = !options.contains(&"--no-inherit");
    let verdict = ledger.judge_with(&profile, inherits, load.contains(&"--pieces"))?;
    Ok((text, profile, verdict))
}

/// What nobody should read is not there.
fn keeps_secrets(text: &str) -> Result<()> {
    ensure!(!text.contains(SECRET) && !text.contains("secret="), "the query is in the json");
    Ok(())
}

fn of_tracer(environment: &str, source: Source, seconds: u32) -> Result<()> {
    let python = Python::find(environment)?;
    let header = if source == Source::Agent { "sw8" } else { "traceparent" };
    let (text, profile, verdict) = judged(&python, source, seconds, &["--headers", header], &[])?;
    println!("      {verdict}");
    verdict.accept()?;
    verdict.named()?;
    keeps_secrets(&text)?;
    compare::complete(&profile)?;
    let tracer = profile.targets.first().and_then(|target| target.tracer.as_ref()).context("no tracer")?;
    ensure!(tracer.source == source && tracer.service.as_deref() == Some("traced"), "{tracer:?}");
    ensure!(tracer.instance.as_deref() == Some("traced-instance"), "{tracer:?}");
    if source == Source::Agent {
        ensure!(tracer.profiler == Some(false), "{tracer:?}");
    }
    Ok(())
}

fn of_wire(python: &Python) -> Result<()> {
    let load = ["--headers", "both-kinds"];
    let (text, profile, verdict) = judged(python, Source::Wire, 3, &load, &[])?;
    println!("      {verdict}");
    verdict.accept()?;
    verdict.named()?;
    keeps_secrets(&text)?;
    compare::complete(&profile)?;
    reader::validate(python, &text)?;
    ensure!(profile.targets.iter().all(|target| target.tracer.is_none()), "{:?}", profile.targets);
    Ok(())
}

/// Recorded before its first request, whose spans are the first of their classes.
fn cold(environment: &str, source: Source) -> Result<()> {
    let service = Service::start(&Python::find(environment)?, source)?;
    let recording = Recording::start(service.pid(), &["--intervals"])?;
    service.load(3, &["--headers", "both-kinds"])?;
    let profile = recording.stop()?;
    let verdict = service.finish()?.judge(&profile)?;
    let all = verdict.all();
    ensure!(all.wrong == 0 && verdict.wrong_sums == 0, "{verdict}");
    // Until greenscope looked again, a fraction of a second later.
    ensure!(all.blank * 10 < all.labelled(), "{verdict}");
    verdict.explained()
}

fn filtered(python: &Python, source: Source) -> Result<()> {
    const TRACE: &str = "a.trace.of-the-test";
    const PATTERN: &str = "/slow*";
    let service = Service::start(python, source)?;
    service.warm_up()?;
    let by_endpoint = Recording::start(service.pid(), &["--endpoint", PATTERN])?;
    let by_trace = Recording::start(service.pid(), &["--trace", TRACE])?;
    let all = Recording::start(service.pid(), &[])?;
    // TRACE, a segment, a span, and who asks.
    let sw8 =
        "sw8: 1-YS50cmFjZS5vZi10aGUtdGVzdA==-c2VnbWVudA==-3-c2VydmljZQ==-aW5zdGFuY2U=-L2Fzaw==-Yzo4MA==\r\n";
    service.ask("/slow", sw8)?;
    service.load(2, &["--concurrency", "50", "--headers", "sw8"])?;
    let (by_endpoint, by_trace, all) = (by_endpoint.stop()?, by_trace.stop()?, all.stop()?);
    service.finish()?;
    let prefix = if source == Source::Wire { "GET /slow" } else { "/slow" };
    let endpoint = |endpoint: &Option<String>| endpoint.as_deref() == Some(prefix);
    let trace = |trace: &Option<String>| trace.as_deref() == Some(TRACE);
    let left = |profile: &Profile, what: &dyn Fn(&Option<String>, &Option<String>) -> bool| {
        let stacks = profile.stacks.iter().all(|stack| what(&stack.label.trace_id, &stack.label.endpoint));
        let requests = profile.requests.iter().all(|row| what(&row.trace_id, &row.endpoint));
        stacks && requests && !profile.stacks.is_empty()
    };
    ensure!(left(&by_endpoint, &|_, seen| endpoint(seen)), "{:?}", by_endpoint.endpoints);
    ensure!(left(&by_trace, &|seen, _| trace(seen)), "{:?}", by_trace.requests);
    ensure!(by_trace.requests.len() == 1, "{:?}", by_trace.requests);
    // All of them are left, and they are those of a recording without a filter.
    let count = |profile: &Profile| profile.requests.iter().filter(|row| endpoint(&row.endpoint)).count();
    ensure!(count(&by_endpoint) == count(&all) && count(&all) > 1, "{} {}", count(&by_endpoint), count(&all));
    let waited = |profile: &Profile| profile.waiting_ns("slow_first_wait");
    let (seen, whole) = (waited(&by_endpoint), waited(&all));
    ensure!(seen > 0 && seen.abs_diff(whole) < whole / 20, "{seen} and {whole} ns");
    let [row] = by_endpoint.endpoints.as_slice() else { anyhow::bail!("{:?}", by_endpoint.endpoints) };
    ensure!(endpoint(&row.endpoint), "{row:?}");
    let waits = row.top_wait.as_ref().is_some_and(|wait| {
        let mut names = wait.frames.iter().filter_map(|frame| frame.function.as_deref());
        names.any(|name| name == "slow_first_wait" || name == "slow_second_wait")
    });
    ensure!(waits, "{row:?}");
    // What was counted over everything stays.
    ensure!(by_trace.totals.switches > 100, "{:?}", by_trace.totals);
    Ok(())
}

fn not_inherited() -> Result<()> {
    let python = Python::find("agent-1.2.0-py3.12")?;
    let load = ["--headers", "sw8", "--only", "/spawn,/orphan,/slow"];
    let (_, profile, verdict) = judged(&python, Source::Agent, 2, &load, &["--no-inherit"])?;
    verdict.accept()?;
    let inherited = profile.stacks.iter().find(|stack| stack.label.is_inherited());
    ensure!(inherited.is_none(), "{inherited:?}");
    ensure!(profile.waiting_ns("early_wait") > 0, "no child waited");
    Ok(())
}

fn no_wire() -> Result<()> {
    let service = Service::start(&Python::find("py3.13")?, Source::Wire)?;
    let recording = Recording::start(service.pid(), &["--no-wire"])?;
    service.load(1, &["--headers", "both-kinds"])?;
    let profile = recording.stop()?;
    service.finish()?;
    let labelled = profile.stacks.iter().find(|stack| stack.label.source.is_some());
    ensure!(labelled.is_none(), "{labelled:?}");
    ensure!(profile.requests.is_empty() && profile.endpoints.is_empty(), "{:?}", profile.requests);
    ensure!(profile.totals.labels.is_none(), "{:?}", profile.totals.labels);
    ensure!(profile.waiting_ns("slow_first_wait") > 0, "nothing was recorded");
    Ok(())
}

/// A part of a path is another path, and a part of an id another id.
fn pieces() -> Result<()> {
    // What stands before the cut and behind it: in the method, the path, a header before the
    // one that counts, its name, its value (base64 with a whole number of groups, and without).
    const CUTS: [(&str, &str); 9] = [
        ("GE", "T /mixed HTTP/1.1\r\n"),
        ("GET /mi", "xed HTTP/1.1\r\n"),
        ("GET /static-ign", "ored HTTP/1.1\r\n"),
        ("GET /mixed?secret=ne", "ver-to-be-read HTTP/1.1\r\n"),
        (
            "GET /mixed HTTP/1.1\r\nHost: loc",
            "alhost\r\nsw8: 1-YWJjZGVmZ2hp-c2Vn-3-cw==-aQ==-L2E=-Yzo4MA==\r\n",
        ),
        ("GET /mixed HTTP/1.1\r\nsw8: 1-YWJj", "ZGVmZ2hp-c2Vn-3-cw==-aQ==-L2E=-Yzo4MA==\r\n"),
        ("GET /mixed HTTP/1.1\r\nsw8: 1-YWJjZ", "GVmZ2hp-c2Vn-3-cw==-aQ==-L2E=-Yzo4MA==\r\n"),
        ("GET /mixed HTTP/1.1\r\nsw", "8: 1-YWJjZGVmZ2hp-c2Vn-3-cw==-aQ==-L2E=-Yzo4MA==\r\n"),
        (
            "GET /mixed HTTP/1.1\r\ntraceparent: 00-0af7651916cd43dd",
            "8448eb211c80319c-b7ad6b7169203331-01\r\n",
        ),
    ];
    let service = Service::start(&Python::find("py3.13")?, Source::Wire)?;
    service.warm_up()?;
    let recording = Recording::start(service.pid(), &["--intervals"])?;
    for (first, second) in CUTS {
        let rest = format!("{second}Host: localhost\r\nConnection: close\r\n\r\n");
        service.ask_in_pieces(first, &rest).with_context(|| format!("{first:?}"))?;
    }
    service.load(1, &["--headers", "both-kinds", "--pieces", "0.5"])?;
    let text = recording.stop_with(Signal::TERM)?;
    let profile = parse(&text)?;
    let verdict = service.finish()?.judge_with(&profile, true, false)?;
    println!("      {verdict}");
    keeps_secrets(&text)?;
    let all = verdict.all();
    kind::row("labels right", all.labelled(), all.right);
    kind::row("labels wrong", 0, all.wrong);
    ensure!(all.wrong == 0 && all.blank * 1_000 < all.labelled(), "{verdict}");
    let cut = profile.totals.faults.get("WIRE_CUT");
    ensure!(cut.is_none(), "{:?}", profile.totals.faults);
    Ok(())
}

/// What follows a request in what is received at once is a body or the next one, and a body may
/// look like a request.
fn together() -> Result<()> {
    let head = |path: &str, trace: u32, lines: &str| {
        format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\ntraceparent: 00-{trace:032x}-{trace:016x}-01\r\n{lines}\r\n"
        )
    };
    let service = Service::start(&Python::find("py3.13")?, Source::Wire)?;
    service.warm_up()?;
    let recording = Recording::start(service.pid(), &["--intervals"])?;
    for number in 1..=8 {
        let last = head("/mixed", 3 * number, "Connection: close\r\n");
        let pipelined = head("/slow", 3 * number + 1, "") + &head("/slow", 3 * number + 2, "") + &last;
        service.ask_in_pieces(&pipelined, "")?;
        let body = head("/mixed", 1_000 + number, "");
        let whole = format!("Content-Length: {}\r\nConnection: close\r\n", body.len());
        service.ask_in_pieces(&head("/slow", 2_000 + number, &whole), &body)?;
        let asking =
            format!("Content-Length: {}\r\nExpect: 100-continue\r\nConnection: close\r\n", body.len());
        service.ask_in_pieces(&head("/slow", 3_000 + number, &asking), &body)?;
    }
    let profile = parse(&recording.stop_with(Signal::TERM)?)?;
    let verdict = service.finish()?.judge_with(&profile, true, true)?;
    println!("      {verdict}");
    ensure!(verdict.all().wrong == 0, "{verdict}");
    let unsure = profile.totals.faults.get("WIRE_UNSURE").copied().unwrap_or_default();
    ensure!(unsure >= 16, "{:?}", profile.totals.faults);
    Ok(())
}

fn unreadable() -> Result<()> {
    let python = Python::find("py3.13")?;
    let mut target = Target::start(&python, "unreadable.py", &[])?;
    let recording = Recording::start(target.pid(), &[])?;
    target.go()?;
    target.hear("done")?;
    let profile = recording.stop()?;
    target.finish()?;
    let labelled = profile.stacks.iter().find(|stack| stack.label.source.is_some());
    ensure!(labelled.is_none(), "{labelled:?}");
    let counted = profile.totals.faults.get("WIRE_UNREADABLE").copied().unwrap_or_default();
    ensure!(counted == 8, "{counted} of 8 requests: {:?}", profile.totals.faults);
    Ok(())
}

fn doctor(environment: &str, source: Source, says: &str) -> Result<()> {
    as_root()?;
    let service = Service::start(&Python::find(environment)?, source)?;
    let output = run(Command::new(greenscope()?).args(["doctor", "--pid", &service.pid().to_string()]))?;
    let said = String::from_utf8(output.stdout)?;
    ensure!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    ensure!(said.contains(says), "no `{says}`: {said}");
    service.finish()?;
    Ok(())
}

fn spans(environment: &str, source: Source) -> Result<()> {
    let labels = if source == Source::Agent { "agent" } else { "otel" };
    let python = Python::find(environment)?;
    let mut target = Target::start(&python, "spans.py", &["--labels", labels])?;
    let spans = Spans::of(&target.facts)?;
    // Each that switches does so every 10 ms.
    let recording = Recording::start(target.pid(), &["--intervals", "--duration", "1s"])?;
    let profile = parse(&recording.finish()?)?;
    target.process.close_stdin();
    let done = target.hear("done")?;
    let status = target.process.wait(Deadline::after(Duration::from_secs(30)))?;
    ensure!(status.success(), "{status}: {}", target.process.stderr.text());
    spans.hold(&profile, &done)
}
