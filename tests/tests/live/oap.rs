//! What a user of SkyWalking sees of a service that greenscope records, by a real OAP's answers,
//! against the service's own books.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use tempfile::TempDir;
use tests::deadline::Deadline;
use tests::graphql::{Graphql, Schedule, Segment};
use tests::oap::{Oap, Options};
use tests::place::{Python, as_root, greenscope};
use tests::recording::Recording;
use tests::runner::{Cases, skip};
use tests::shop::{Call, Load, Shop, between, by_segment};
use tests::target::Target;

/// The environment of tests/traced whose agent works under gevent and in threads.
const ENVIRONMENT: &str = "agent-1.2.0-py3.11";
/// Functions of the service whose time is in its books.
const BOOKED: [&str; 3] = ["burn_a", "wait_a", "wait_b"];
/// Functions that belong to no tree of `/slow`'s segments.
const FOREIGN: [&str; 2] = ["foreign_wait", "child_work"];
/// A task's minute, with what OAP takes to tell of it, and what a loaded machine takes.
const TASK: Duration = Duration::from_secs(180);
const MINUTE: Duration = Duration::from_secs(60);
/// When a task of a minute is over, from its making on: what it shows comes every 5 s, or sooner at
/// its end.
const LAST_MS: u64 = 59_000;
/// The same of one that greenscope asked for, from its first look on.
const TRIGGERED_MS: u64 = 55_000;
/// How long OAP is away: longer than any restart of it, and shorter than its task.
const AWAY: Duration = Duration::from_secs(600);
/// What greenscope may take meanwhile: its queue, what it records, and the allocator.
const AWAY_QUEUE: &str = "64MiB";
const AWAY_KIB: u64 = 128 << 10;
/// A function of 100 ms is within this share of its time,
const OF_A_FUNCTION: f64 = 0.05;
/// but for a slice of the scheduler's at an end of it: somebody else runs, and no tick tells
/// where. (`base_slice_ns`, 2.8 ms with two CPUs.)
const SLICE_MS: f64 = 3.0;
/// Sums are within this share.
const OF_A_SUM: f64 = 0.02;
/// A wait that becomes an event on its span.
const EVENT: &str = "--span-events=50ms";

pub(crate) fn cases(cases: &mut Cases) {
    cases.each("oap_is_absent", absent);
    cases.once(format!("oap/guarded/{ENVIRONMENT}"), guarded);
    cases.once(format!("oap/gevent/{ENVIRONMENT}"), || tasks("gevent"));
    cases.once(format!("oap/threads/{ENVIRONMENT}"), || tasks("threads"));
    cases.once(format!("oap/gunicorn/{ENVIRONMENT}"), || tasks("gunicorn"));
    cases.once(format!("oap/frozen/{ENVIRONMENT}"), frozen);
    cases.once(format!("oap/killed/{ENVIRONMENT}"), killed);
    cases.once(format!("oap/spooled/{ENVIRONMENT}"), spooled);
    cases.once(format!("oap/away/{ENVIRONMENT}"), away);
}

/// OAP is not there: the recording is what it is without, and one line says so.
fn absent(python: &Python) -> Result<()> {
    as_root()?;
    let target = Target::start(python, "idle.py", &[])?;
    // A port that is nobody's while the test holds it.
    let held = std::net::TcpListener::bind("127.0.0.1:0")?;
    let address = held.local_addr()?.to_string();
    drop(held);
    let recording = Recording::start(target.pid(), &["--oap", &address])?;
    let says = |line: &str| line.starts_with("greenscope: ") && line.contains(&address);
    recording.process.stderr.line(0, Deadline::usual(), "a line on OAP", says)?;
    let second = Recording::start(target.pid(), &["--oap", &address])?;
    let serves = |line: &str| line.contains("another greenscope serves it");
    second.process.stderr.line(0, Deadline::usual(), "a line on the other one", serves)?;
    for recording in [second, recording] {
        let said = end(recording)?;
        ensure!(said.contains("OAP: not connected"), "{said}");
    }
    target.finish()
}

/// OAP speaks TLS and wants a token: what is missing is named, and nothing else of it is.
fn guarded() -> Result<()> {
    as_root()?;
    let python = Python::find(ENVIRONMENT)?;
    let oap = Oap::start(Options { token: Some("secret"), tls: true, ..Options::default() })?;
    let (address, ca) = (oap.address(), oap.ca().to_string_lossy().into_owned());
    let to = ["--oap", &address];
    let check = |more: &[&str]| -> Result<(bool, String)> {
        let mut command = Command::new(greenscope()?);
        let output = command.args(["oap", "check"]).args(to).args(more).output()?;
        let said = [output.stdout, output.stderr].concat();
        Ok((output.status.success(), String::from_utf8(said)?))
    };
    let by_tls = ["--oap-ca", &ca];
    let with_token = ["--oap-ca", &ca, "--oap-token", "secret"];
    for (more, says) in [
        (&[][..], "does it want TLS (--oap-tls)"),
        (&["--oap-tls"], "certificate"),
        (&by_tls, "token"),
        (&["--oap-ca", &ca, "--oap-token", "wrong"], "token"),
    ] {
        let (works, said) = check(more)?;
        ensure!(!works && said.contains(says), "{more:?}: {said}");
    }
    let (works, said) = check(&[&with_token[..], &["--oap-rest", &oap.rest()]].concat())?;
    ensure!(works && said.contains("10.1.0"), "{said}");
    let target = Target::start(&python, "idle.py", &[])?;
    let options = [&to[..], &with_token, &["--service", "guarded"]].concat();
    let recording = Recording::start(target.pid(), &options)?;
    registered(&oap.graphql(), "guarded")?;
    let said = end(recording)?;
    ensure!(said.contains("OAP: connected") && said.contains("0 queued, 0 dropped"), "{said}");
    target.finish()?;
    oap.blames_nobody()
}

/// Every kind of task at once, under a hundred clients.
fn tasks(mode: &str) -> Result<()> {
    as_root()?;
    let python = Python::find(ENVIRONMENT)?;
    let oap = Oap::start(Options::default())?;
    let graphql = oap.graphql();
    let shop = Shop::start(&python, mode, &oap)?;
    let service = shop.service.clone();
    // Each item of OAP's that is watched, in one of the services.
    let (item, threshold) = match mode {
        "gevent" => ("HTTP_AVG_RESPONSE_TIME", 100),
        "threads" => ("PROCESS_THREAD_COUNT", 3),
        _ => ("SYSTEM_LOAD", 1),
    };
    graphql.set_policies(&service, &[("ON_CPU", "PROCESS_CPU", 5), ("OFF_CPU", item, threshold)])?;
    let load = shop.load();
    let recording = Recording::start(shop.target.pid(), &["--oap", &oap.address(), EVENT])?;
    registered(&graphql, &service)?;

    let trace = graphql.create_trace_task(&service, "/slow", 9)?;
    let on = graphql.create_ebpf_task(&service, "ON_CPU", MINUTE)?;
    let off = graphql.create_ebpf_task(&service, "OFF_CPU", MINUTE)?;
    let created_ms = unix_ms();
    let until = Deadline::after(TASK);
    let shown = || {
        until.until("the trace task's end", || {
            let tasks = graphql.trace_tasks(&service)?;
            let logs = tasks.iter().find(|task| task.id == trace).map(|task| &task.logs);
            let said = |what| logs.is_some_and(|logs| logs.iter().any(|log| log.operation_type == what));
            Ok((said("NOTIFIED") && said("EXECUTION_FINISHED")).then_some(()))
        })?;
        let over = |task| over(&graphql, task, created_ms + LAST_MS);
        let triggered = |item| triggered(&graphql, &service, item);
        let on = until.until("the end of the ON_CPU task", || over(&on))?;
        let off = until.until("the end of the OFF_CPU task", || over(&off))?;
        let by_cpu = until.until("a task by the CPU time", || triggered("PROCESS_CPU"))?;
        let by_item = until.until("a task by the other policy", || triggered(item))?;
        Ok((on, off, by_cpu, by_item))
    };
    let shown: Result<_> = shown();
    let (on, off, by_cpu, by_item) =
        shown.with_context(|| format!("greenscope said meanwhile: {}", recording.process.stderr.text()))?;
    let segments = graphql.segments(&trace)?;
    load.end()?;
    let said = end(recording)?;
    ensure!(said.contains("0 queued, 0 dropped"), "{said}");
    let calls = shop.books()?;

    trees(&graphql, &segments, &calls)?;
    sums(&graphql, &on, "COUNT", &calls)?;
    sums(&graphql, &off, "DURATION", &calls)?;
    sums(&graphql, &by_cpu, "COUNT", &calls)?;
    sums(&graphql, &by_item, "DURATION", &calls)?;
    events(&graphql, mode, &calls, &segments)?;
    ensure!(graphql.services()? == [service.as_str()], "{:?}", graphql.services()?);
    oap.blames_nobody()
}

/// A service under load that is recorded for an OAP, which knows it.
struct Scene {
    oap: Oap,
    graphql: Graphql,
    shop: Shop,
    load: Load,
    recording: Recording,
}

impl Scene {
    fn start(options: Options, more: &[&str]) -> Result<Self> {
        as_root()?;
        let python = Python::find(ENVIRONMENT)?;
        let oap = Oap::start(options)?;
        let graphql = oap.graphql();
        let shop = Shop::start(&python, "gevent", &oap)?;
        let load = shop.load();
        let recording = Recording::start(shop.target.pid(), &[&["--oap", &oap.address()], more].concat())?;
        registered(&graphql, &shop.service)?;
        Ok(Self { oap, graphql, shop, load, recording })
    }
}

/// OAP stands still for a minute, in the middle of both tasks.
fn frozen() -> Result<()> {
    let Scene { oap, graphql, shop, load, recording } = Scene::start(Options::default(), &[])?;
    let on = graphql.create_ebpf_task(&shop.service, "ON_CPU", MINUTE)?;
    let off = graphql.create_ebpf_task(&shop.service, "OFF_CPU", MINUTE)?;
    let created_ms = unix_ms();
    let until = Deadline::after(TASK);
    for task in [&on, &off] {
        until.until("a task's begin", || Ok(graphql.schedules(task)?.pop()))?;
    }
    oap.signal(Signal::STOP)?;
    let still = Deadline::after(Duration::from_secs(60));
    ensure!(!recording.process.ended(still)?, "greenscope ended when OAP stood still");
    oap.signal(Signal::CONT)?;
    let on = until.until("the end of the ON_CPU task", || over(&graphql, &on, created_ms + LAST_MS))?;
    let off = until.until("the end of the OFF_CPU task", || over(&graphql, &off, created_ms + LAST_MS))?;
    load.end()?;
    let said = end(recording)?;
    ensure!(said.contains("0 queued, 0 dropped"), "{said}");
    let calls = shop.books()?;
    ensure!(!said.contains("unknown fate"), "{said}");
    sums(&graphql, &on, "COUNT", &calls)?;
    sums(&graphql, &off, "DURATION", &calls)?;
    oap.blames_nobody()
}

/// OAP is killed in the middle of a task, and comes back with what it had stored.
fn killed() -> Result<()> {
    let Scene { mut oap, graphql, shop, load, recording } =
        Scene::start(Options { on_file: true, ..Options::default() }, &[])?;
    let off = graphql.create_ebpf_task(&shop.service, "OFF_CPU", MINUTE)?;
    let created_ms = unix_ms();
    let until = Deadline::after(TASK);
    until.until("the task's begin", || Ok(graphql.schedules(&off)?.pop()))?;
    oap.kill()?;
    oap.restart()?;
    let off = until.until("the end of the task", || over(&graphql, &off, created_ms + LAST_MS))?;
    ensure!(graphql.can_profile(&shop.service)?, "the process is not registered again");
    load.end()?;
    let said = end(recording)?;
    let calls = shop.books()?;
    let unknown = said.contains("1 of unknown fate");
    ensure!(said.contains("0 queued, 0 dropped") && (unknown || !said.contains("fate")), "{said}");
    // What was under way when it was killed is a flush of 5 s at most, and counted; and what OAP had
    // taken and not written: it writes every 2 s.
    let off = off.first().context("a schedule")?;
    let (seen, booked) = seen(&graphql, off, "DURATION", &calls)?;
    for function in ["wait_a", "wait_b"] {
        let (seen, booked) = (of(&seen, function), of(&booked, function));
        ensure!(
            seen <= booked * (1.0 + OF_A_SUM) && seen >= booked * (1.0 - 14.0 / 60.0),
            "{function}: {seen} of {booked}"
        );
    }
    oap.blames_nobody()
}

/// OAP is away for ten minutes of a task, under load: what happened meanwhile waits in memory, and comes.
fn away() -> Result<()> {
    if std::env::var_os("GREENSCOPE_LONG_TESTS").is_none() {
        return Err(skip("it takes 15 minutes (GREENSCOPE_LONG_TESTS=1 runs it)"));
    }
    let options = Options { on_file: true, ..Options::default() };
    let Scene { mut oap, graphql, shop, load, recording } =
        Scene::start(options, &[EVENT, "--oap-queue", AWAY_QUEUE])?;
    let duration = AWAY + 2 * MINUTE;
    let off = graphql.create_ebpf_task(&shop.service, "OFF_CPU", duration)?;
    let end_ms = unix_ms() + u64::try_from(duration.as_millis())?;
    let until = Deadline::after(duration + TASK);
    until.until("the task's begin", || Ok(graphql.schedules(&off)?.pop()))?;
    let before = resident_kib(recording.process.pid())?;
    oap.kill()?;
    let away = Deadline::after(AWAY);
    ensure!(!recording.process.ended(away)?, "greenscope ended when OAP was away");
    let after = resident_kib(recording.process.pid())?;
    oap.restart()?;
    let off = until.until("the end of the task", || over(&graphql, &off, end_ms - 2_000))?;
    load.end()?;
    let said = end(recording)?;
    let calls = shop.books()?;
    ensure!(said.contains("0 queued, 0 dropped"), "{said}");
    ensure!(after < before + AWAY_KIB, "{before} KiB before, {after} KiB after");
    // But for what OAP had taken and not written, or was just being sent: some seconds of all.
    sums(&graphql, &off, "DURATION", &calls)?;
    oap.blames_nobody()
}

/// What of a process is in memory.
fn resident_kib(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// OAP is away, under load and for longer than memory lasts: the rest waits on the disk, over the
/// end of greenscope, and is sent by the next one.
fn spooled() -> Result<()> {
    as_root()?;
    let python = Python::find(ENVIRONMENT)?;
    let mut oap = Oap::start(Options { on_file: true, ..Options::default() })?;
    let shop = Shop::start(&python, "gevent", &oap)?;
    let load = shop.load();
    oap.kill()?;
    let folder = TempDir::new()?;
    let spool = folder.path().join("spool");
    let spool_option = spool.to_string_lossy();
    let address = oap.address();
    let options = ["--oap", &address, "--span-events", "--spool", &spool_option, "--oap-queue", "64KiB"];
    let recording = Recording::start(shop.target.pid(), &options)?;
    Deadline::usual().until("batches on the disk", || Ok((batches(&spool)? >= 5).then_some(())))?;
    let said = end(recording)?;
    let left = batches(&spool)?;
    let stands = format!(" 0 sent, 0 queued, {left} spooled, 0 dropped");
    ensure!(said.contains("OAP: not connected") && said.contains(&stands), "{left}: {said}");
    ensure!(!said.contains("fate"), "{said}");
    oap.restart()?;
    let recording = Recording::start(shop.target.pid(), &options)?;
    Deadline::usual().until("an empty disk", || Ok((batches(&spool)? == 0).then_some(())))?;
    let said = end(recording)?;
    ensure!(said.contains("OAP: connected") && said.contains(" 0 queued, 0 dropped"), "{said}");
    ensure!(!said.contains("spooled,") && !said.contains("fate") && !said.contains("refused"), "{said}");
    drop(load);
    oap.blames_nobody()
}

/// How many batches are in a spool.
fn batches(spool: &Path) -> Result<usize> {
    let mut count = 0;
    for entry in std::fs::read_dir(spool)? {
        count += usize::from(entry?.file_name().to_string_lossy().ends_with(".batch"));
    }
    Ok(count)
}

/// Waits until a task can be made.
fn registered(graphql: &Graphql, service: &str) -> Result<()> {
    Deadline::usual().until("a process to profile", || Ok(graphql.can_profile(service)?.then_some(())))
}

/// The schedules of a task, one for each process, once it has lasted until then.
fn over(graphql: &Graphql, task: &str, until_ms: u64) -> Result<Option<Vec<Schedule>>> {
    let schedules = graphql.schedules(task)?;
    let mut processes: Vec<&str> = schedules.iter().map(|schedule| schedule.process.name.as_str()).collect();
    processes.sort_unstable();
    processes.dedup();
    ensure!(processes.len() == schedules.len(), "a process has several: {schedules:?}");
    let over = |schedule: &Schedule| schedule.end_time >= until_ms;
    // An idle process has nothing on the CPU to tell of at the end.
    let mut workers = schedules.iter().filter(|schedule| !is_masters(schedule)).peekable();
    let whole = workers.peek().is_some() && workers.all(over);
    Ok(whole.then_some(schedules))
}

/// Whether it is of gunicorn's master.
fn is_masters(schedule: &Schedule) -> bool {
    schedule.process.name.starts_with("master")
}

/// The schedule of a worker's task that a policy for `item` triggered, once it is over.
fn triggered(graphql: &Graphql, service: &str, item: &str) -> Result<Option<Vec<Schedule>>> {
    for (task, cause) in graphql.triggered_tasks(service)? {
        let over = |schedule: &Schedule| {
            !is_masters(schedule) && schedule.end_time >= schedule.start_time + TRIGGERED_MS
        };
        let schedules = graphql.schedules(&task)?;
        if cause.contains(item) && !schedules.is_empty() && schedules.iter().all(over) {
            return Ok(Some(schedules));
        }
    }
    Ok(None)
}

/// Ends the recording; what it said.
fn end(mut recording: Recording) -> Result<String> {
    recording.process.signal(Signal::TERM)?;
    let status = recording.process.wait(Deadline::usual())?;
    let said = String::from_utf8(recording.process.stderr.whole(Deadline::usual())?)?;
    ensure!(status.success(), "{status}: {said}");
    Ok(said)
}

/// Every segment by itself: the right functions, as long as the books say.
fn trees(graphql: &Graphql, segments: &[Segment], calls: &[Call]) -> Result<()> {
    // Each instance takes as many as were asked for.
    let instances: BTreeSet<&str> = segments.iter().map(|segment| segment.instance_name.as_str()).collect();
    ensure!(segments.len() == 9 * instances.len() && !segments.is_empty(), "{} segments", segments.len());
    let booked = by_segment(calls);
    let mut ids = BTreeSet::new();
    for segment in segments {
        ensure!(segment.instance_name.starts_with("the-instance"), "{segment:?}");
        let span = segment.spans.first().context("a span")?;
        ensure!(span.profiled && span.endpoint_name.as_deref() == Some("/slow"), "{span:?}");
        ensure!(ids.insert(&span.segment_id), "{} is there twice", span.segment_id);
        let books = booked.get(span.segment_id.as_str()).context("a segment that the service knows")?;
        let lines = graphql.analyse(span)?;
        for line in &lines {
            ensure!(
                !FOREIGN.iter().any(|foreign| line.code_signature.contains(foreign)),
                "a foreign function: {line:?}"
            );
        }
        for (function, ms) in books {
            let name = format!(".{function}: ");
            let seen: u64 = lines
                .iter()
                .filter(|line| line.code_signature.contains(&name))
                .map(|line| line.duration)
                .sum();
            let wrong = (seen as f64 - ms).abs();
            ensure!(
                wrong <= ms * OF_A_FUNCTION + SLICE_MS,
                "{function} in {}: {seen} ms of {ms} ms; {lines:#?}",
                span.segment_id
            );
        }
    }
    Ok(())
}

/// What a schedule shows of each booked function, and the books, both in ns.
type Seen = BTreeMap<&'static str, f64>;

fn seen(graphql: &Graphql, schedule: &Schedule, by: &str, calls: &[Call]) -> Result<(Seen, Seen)> {
    let elements = graphql.analyse_schedule(schedule, by)?;
    let (begin_ns, end_ns) = (schedule.start_time * 1_000_000, schedule.end_time * 1_000_000);
    let (mut seen, mut booked) = (Seen::new(), Seen::new());
    // `worker-PID`
    let pid = schedule.process.name.rsplit_once('-').and_then(|(_, pid)| pid.parse().ok());
    let pid: u32 = pid.with_context(|| format!("{schedule:?}"))?;
    let calls: Vec<Call> = calls.iter().filter(|call| call.pid == pid).cloned().collect();
    // A count is 1/499 s.
    let unit = if by == "COUNT" { 1e9 / 499.0 } else { 1.0 };
    for function in BOOKED {
        let name = format!("{function} (");
        let sum: u64 = elements
            .iter()
            .filter(|element| element.symbol.starts_with(&name))
            .map(|element| element.dump_count)
            .sum();
        let (wall, cpu) = between(&calls, function, begin_ns, end_ns);
        seen.insert(function, sum as f64 * unit);
        booked.insert(function, if by == "COUNT" { cpu } else { wall });
    }
    Ok((seen, booked))
}

fn of(seen: &Seen, function: &str) -> f64 {
    seen.get(function).copied().unwrap_or_default()
}

/// The burning function on the CPU, the waiting ones off it.
fn sums(graphql: &Graphql, schedules: &[Schedule], by: &str, calls: &[Call]) -> Result<()> {
    let mut total = (Seen::new(), Seen::new());
    let functions: &[&'static str] = if by == "COUNT" { &["burn_a"] } else { &["wait_a", "wait_b"] };
    for schedule in schedules {
        let (seen, booked) = seen(graphql, schedule, by, calls)?;
        // gunicorn's master serves nobody.
        ensure!(of(&booked, "burn_a") > 0.0 || is_masters(schedule), "{schedule:?}");
        for function in functions {
            *total.0.entry(function).or_default() += of(&seen, function);
            *total.1.entry(function).or_default() += of(&booked, function);
        }
    }
    for function in functions {
        let (seen, booked) = (of(&total.0, function), of(&total.1, function));
        ensure!(booked > 1e9, "{function}: there is too little of it, {booked} ns");
        ensure!(
            (seen - booked).abs() <= booked * OF_A_SUM,
            "{function} by {by}: {:.3} s of {:.3} s in {schedules:?}",
            seen / 1e9,
            booked / 1e9
        );
    }
    Ok(())
}

/// The waits of some requests stand on their spans.
fn events(graphql: &Graphql, mode: &str, calls: &[Call], profiled: &[Segment]) -> Result<()> {
    let called = if mode == "threads" { "thread blocked" } else { "greenlet waited" };
    for segment in profiled.iter().take(3) {
        let id = &segment.spans.first().context("a span")?.segment_id;
        let waits: Vec<&Call> =
            calls.iter().filter(|call| call.segment == *id && call.function.starts_with("wait")).collect();
        let trace = &waits.first().context("waits in the books")?.trace;
        let spans = graphql.trace(trace)?;
        let span = spans.iter().find(|span| span.segment_id == *id).context("its span")?;
        for wait in waits {
            let frame = format!("{} (", wait.function);
            let event = span.attached_events.iter().find(|event| {
                event.event == called && event.tags.iter().any(|tag| tag.value.starts_with(&frame))
            });
            let event = event.with_context(|| format!("no event of {} on {span:?}", wait.function))?;
            let (begin, end) = (event.start_time.ns(), event.end_time.ns());
            // The rest is how long it takes to get there, and back onto a busy thread.
            let inside = begin + 1_000_000 >= wait.begin_ns && end <= wait.end_ns + 1_000_000;
            let missing = (wait.end_ns - wait.begin_ns).saturating_sub(end - begin);
            ensure!(inside && missing < 100_000_000, "{event:?} of {wait:?}");
        }
    }
    Ok(())
}

fn unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(0)
}
