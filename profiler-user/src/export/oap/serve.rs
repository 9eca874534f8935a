//! Serves one OAP while a recording runs: asks for tasks, sends what came of them.
//!
//! A thread of its own with one async loop of three parts: events come in and batches are made
//! of them; questions go out; batches are sent, one after the other. The recording never waits
//! for any of it.

use std::{
    cell::{Cell, RefCell},
    fmt,
    rc::Rc,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use tokio::{
    runtime,
    sync::{Notify, mpsc, oneshot},
    task::{LocalSet, yield_now},
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};

use super::{
    batch::Batch,
    client::{Backend, Health},
    continuous::Gauges,
    failure::{Failure, Fate, Kind},
    identity::{Surroundings, UnknownLayer},
    registry::Due,
    service::{Choice, Service},
    spool::{Lost, Spool},
    tap::{Tap, Wanted, tap},
    waiting::{Next, Waiting},
    wall_clock::WallClock,
};
use crate::{
    clocks::{monotonic_ns as now_ns, unix_ahead_ns},
    profile::event::{Event, Process},
};

/// How often batches are made.
const TURN: Duration = Duration::from_millis(100);
/// How often OAP is asked for tasks: Rover asks every 10 s, the agents every 20 s.
const ASK: Duration = Duration::from_secs(5);
/// How often it is asked for policies, of which it keeps its answer for a minute.
const ASK_POLICIES: Duration = Duration::from_secs(10);
/// How often processes are looked at that have a policy.
const LOOK: Duration = Duration::from_secs(1);
/// How long what is left is sent when the recording is over.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// How it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// OAP answered the last question.
    pub connected: bool,
    /// Under way.
    pub tasks: usize,
    /// Over.
    pub served: u64,
    /// Batches that OAP took.
    pub sent: u64,
    /// That wait in memory.
    pub queued: usize,
    /// That wait on disk.
    pub spooled: usize,
    /// That there was no room for, with events that there was none for.
    pub dropped: u64,
    /// Of which it is not known whether they arrived; they are not sent again.
    pub unknown: u64,
    /// That OAP refused.
    pub refused: u64,
    /// That could not be read from disk again.
    pub torn: u64,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { connected, tasks, served, sent, queued, spooled, dropped, unknown, refused, torn } = self;
        let connected = if *connected { "connected" } else { "not connected" };
        let s = if *tasks == 1 { "" } else { "s" };
        write!(
            f,
            "OAP: {connected}, {tasks} task{s} running, {served} served, {sent} sent, {queued} queued"
        )?;
        if *spooled > 0 {
            write!(f, ", {spooled} spooled")?;
        }
        write!(f, ", {dropped} dropped")?;
        if *unknown > 0 {
            write!(f, ", {unknown} of unknown fate")?;
        }
        if *refused > 0 {
            write!(f, ", {refused} refused")?;
        }
        if *torn > 0 {
            write!(f, ", {torn} torn")?;
        }
        Ok(())
    }
}

/// What the system tells of processes.
pub trait Around: Send {
    /// What is around a process.
    fn surroundings(&mut self, pid: u32) -> Surroundings;
    /// Whether it is ours to serve: two of us would send OAP the same twice.
    fn claim(&mut self, pid: u32) -> bool;
    /// It is gone.
    fn release(&mut self, pid: u32);
    /// What it is at.
    fn gauges(&mut self, pid: u32) -> Gauges;
}

/// What serving takes.
pub struct Serve {
    /// The connection.
    pub backend: Backend,
    /// What the user chose.
    pub choice: Choice,
    /// A UUID.
    pub agent: String,
    /// Room for batches that wait.
    pub queue_bytes: usize,
    /// Where those wait that have none.
    pub spool: Option<Spool>,
    /// How long what is left is sent at the end: [`PATIENCE`].
    pub patience: Duration,
    /// What the system tells.
    pub around: Box<dyn Around>,
    /// Is given lines for the user.
    pub say: Box<dyn Fn(&str) + Send>,
}

impl fmt::Debug for Serve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serve").field("choice", &self.choice).finish_non_exhaustive()
    }
}

/// Serving, under way.
#[derive(Debug)]
pub struct Serving {
    thread: thread::JoinHandle<()>,
    status: Arc<Mutex<Status>>,
    hurry: Arc<Notify>,
}

/// How often it is looked whether what is left is sent.
const LEFT: Duration = Duration::from_millis(50);

impl Serving {
    /// Begins to serve.
    ///
    /// # Errors
    ///
    /// When there can be no thread for it, or no clock.
    pub fn begin(serve: Serve) -> std::io::Result<(Self, Tap)> {
        let (tap, events, wanted) = tap();
        let status = Arc::new(Mutex::new(Status::default()));
        let shown = Arc::clone(&status);
        let hurry = Arc::new(Notify::new());
        let hurried = Arc::clone(&hurry);
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = thread::Builder::new().name("oap".to_owned()).spawn(move || {
            LocalSet::new().block_on(&runtime, run(serve, events, wanted, shown, hurried));
            // A name may still be looked up, for minutes where no server answers.
            runtime.shutdown_background();
        })?;
        Ok((Self { thread, status, hurry }, tap))
    }

    /// How it stands.
    #[must_use]
    pub fn status(&self) -> Status {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sends what is left, when the recording is over and its [`Tap`] is gone; for some seconds
    /// at most, and no longer than until `hurry`, which waits for so long, says so.
    #[must_use]
    pub fn finish(self, mut hurry: impl FnMut(Duration) -> bool) -> Status {
        while !self.thread.is_finished() {
            if hurry(LEFT) {
                self.hurry.notify_one();
                break;
            }
        }
        let _panicked = self.thread.join();
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What the three parts share; never borrowed while one of them waits.
struct Shared {
    service: RefCell<Service>,
    waiting: RefCell<Waiting>,
    /// A process is recorded: before that nothing is sent, for it may not come to that.
    began: Cell<bool>,
    /// Something waits.
    more: Notify,
    /// The questions are due now.
    ask: Notify,
    status: RefCell<Status>,
    wanted: Arc<Wanted>,
}

async fn run(
    serve: Serve,
    events: mpsc::Receiver<Event>,
    wanted: Arc<Wanted>,
    shown: Arc<Mutex<Status>>,
    hurry: Arc<Notify>,
) {
    let Serve { backend, choice, agent, queue_bytes, spool, patience, around, say } = serve;
    let waiting = Waiting::new(queue_bytes, spool);
    let status = Status { unknown: waiting.lost().unknown, ..Status::default() };
    let shared = Rc::new(Shared {
        service: RefCell::new(Service::new(&agent, choice, wall_clock())),
        waiting: RefCell::new(waiting),
        began: Cell::new(false),
        more: Notify::new(),
        ask: Notify::new(),
        status: RefCell::new(status),
        wanted,
    });
    let backend = Rc::new(backend);
    let around = Rc::new(RefCell::new(around));
    let (over, is_over) = oneshot::channel::<()>();
    let sender = tokio::task::spawn_local(send(Rc::clone(&shared), Rc::clone(&backend), is_over));
    let asker = tokio::task::spawn_local(ask(Rc::clone(&shared), backend, Rc::clone(&around)));
    take(&shared, events, &around, &say, &shown).await;
    asker.abort();
    drop(over);
    // What OAP does not take by then waits on disk for the next time, or is lost, and counted.
    tokio::select! {
        _late = timeout(patience, sender) => {}
        () = hurry.notified() => {}
    }
    if shared.waiting.borrow_mut().end() {
        shared.status.borrow_mut().unknown += 1;
    }
    count(&shared);
    show(&shared, &say, &shown);
}

/// Takes events and makes batches of them, until the recording is over.
async fn take(
    shared: &Shared,
    mut events: mpsc::Receiver<Event>,
    around: &RefCell<Box<dyn Around>>,
    say: &(dyn Fn(&str) + Send),
    shown: &Mutex<Status>,
) {
    let mut turns = interval(TURN);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut batch = Vec::new();
    loop {
        tokio::select! {
            count = events.recv_many(&mut batch, 1_024) => {
                if count == 0 {
                    break;
                }
                for event in batch.drain(..) {
                    take_one(shared, event, around);
                }
            }
            _ = turns.tick() => {}
        }
        turn(shared, now_ns());
        show(shared, say, shown);
    }
    let now_ns = now_ns();
    shared.service.borrow_mut().end(now_ns);
    turn(shared, now_ns);
    show(shared, say, shown);
}

fn take_one(shared: &Shared, event: Event, around: &RefCell<Box<dyn Around>>) {
    let mut service = shared.service.borrow_mut();
    let begun: Option<Process> = match event {
        Event::Began(process) => Some(process),
        Event::Traced { pid, tracer } => {
            service.process(pid).map(|process| Process { tracer: Some(tracer), ..process.clone() })
        }
        event => {
            service.take(&event);
            if let Event::Ended { pid, .. } = event {
                around.borrow_mut().release(pid);
            }
            None
        }
    };
    let Some(process) = begun else {
        return;
    };
    shared.began.set(true);
    shared.more.notify_one();
    if !around.borrow_mut().claim(process.pid) {
        service.say(format!(
            "pid {}: another greenscope serves it to this OAP already, so this one only records it",
            process.pid
        ));
        return;
    }
    let surroundings = around.borrow_mut().surroundings(process.pid);
    if let Err(UnknownLayer { .. }) = service.begin(process, &surroundings) {
        // It was refused before the recording began.
        return;
    }
    shared.ask.notify_one();
}

fn turn(shared: &Shared, now_ns: u64) {
    let mut service = shared.service.borrow_mut();
    service.clock(wall_clock());
    for batch in service.due(now_ns).into_iter().flat_map(Batch::cut) {
        shared.waiting.borrow_mut().push(batch);
        shared.more.notify_one();
    }
    shared.wanted.say(service.wants(now_ns));
    let mut status = shared.status.borrow_mut();
    (status.tasks, status.served) = (service.tasks(now_ns), service.served());
    drop(status);
    drop(service);
    count(shared);
}

/// Brings the status up to what waits and what was lost.
fn count(shared: &Shared) {
    let mut service = shared.service.borrow_mut();
    let mut waiting = shared.waiting.borrow_mut();
    for line in waiting.lines() {
        service.say(line);
    }
    let Lost { dropped, torn, unknown: _ } = waiting.lost();
    let mut status = shared.status.borrow_mut();
    status.queued = waiting.queued();
    status.spooled = waiting.spooled();
    status.dropped = dropped + service.events_dropped() + shared.wanted.lost();
    status.torn = torn;
}

fn show(shared: &Shared, say: &(dyn Fn(&str) + Send), shown: &Mutex<Status>) {
    for line in shared.service.borrow_mut().lines() {
        say(&line);
    }
    shown.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&shared.status.borrow());
}

/// Sends one batch after the other, until nothing more will come.
async fn send(shared: Rc<Shared>, backend: Rc<Backend>, mut is_over: oneshot::Receiver<()>) {
    let mut over = false;
    loop {
        if !shared.began.get() || shared.waiting.borrow().is_empty() {
            if over {
                return;
            }
            tokio::select! {
                () = shared.more.notified() => {}
                _ = &mut is_over => over = true,
            }
            continue;
        }
        // In a pause nothing is tried. A batch is taken only when OAP has answered over the
        // connection: of one that was taken it may not be known any more whether it arrived.
        backend.paused().await;
        if let Err(failure) = backend.prove().await {
            let waits = failure.kind != Kind::Paused && !failure.is_the_backends();
            stands(&shared, Err(failure), backend.health());
            if waits {
                sleep(ASK).await;
            }
            continue;
        }
        let next = shared.waiting.borrow_mut().take();
        let Next::Batch(batch) = next else {
            // The others have their turn, however many can't be read.
            yield_now().await;
            continue;
        };
        let outcome = deliver(&backend, &batch).await;
        let fate = outcome.as_ref().err().map(|failure| failure.fate);
        shared.waiting.borrow_mut().became(batch, fate);
        let mut status = shared.status.borrow_mut();
        match outcome {
            Ok(()) => status.sent += 1,
            Err(Failure { fate: Fate::Retry, .. }) => {}
            Err(Failure { fate: Fate::Unknown, text, .. }) => {
                status.unknown += 1;
                shared.service.borrow_mut().say(format!(
                    "{text}; whether OAP got what was being sent is not known, and it is not sent again"
                ));
            }
            Err(Failure { fate: Fate::Permanent, text, .. }) => {
                status.refused += 1;
                shared.service.borrow_mut().say(text);
            }
        }
        drop(status);
        count(&shared);
    }
}

async fn deliver(backend: &Backend, batch: &Batch) -> Result<(), Failure> {
    match batch.clone() {
        Batch::Snapshots(messages) => backend.upload_snapshots(messages).await,
        Batch::Finished(message) => backend.trace_task_finished(message).await,
        Batch::Ebpf(messages) => backend.upload_profiling_data(messages).await,
        Batch::Events(messages) => backend.upload_span_events(messages).await,
    }
    .map(drop)
}

/// Asks OAP for tasks and tells it of the processes, for ever.
async fn ask(shared: Rc<Shared>, backend: Rc<Backend>, around: Rc<RefCell<Box<dyn Around>>>) {
    let mut connections = 0;
    let mut next_policies = Instant::now();
    let mut next_questions = Instant::now();
    loop {
        backend.paused().await;
        let now = Instant::now();
        if now >= next_questions {
            next_questions = now + ASK;
            let policies = now >= next_policies;
            if policies {
                next_policies = now + ASK_POLICIES;
            }
            let outcome = questions(&shared, &backend, policies, &mut connections).await;
            if outcome.as_ref().is_err_and(Failure::is_the_backends) {
                // There is a pause first.
                next_questions = Instant::now();
            }
            stands(&shared, outcome, backend.health());
        }
        watch(&shared, &backend, &around).await;
        tokio::select! {
            () = sleep(LOOK) => {}
            () = shared.ask.notified() => next_questions = Instant::now(),
        }
    }
}

/// How it is after OAP was asked: said when it changes.
fn stands(shared: &Shared, outcome: Result<(), Failure>, health: Health) {
    let mut service = shared.service.borrow_mut();
    let mut status = shared.status.borrow_mut();
    let was = status.connected;
    let failure = match outcome {
        Ok(()) => None,
        // Nothing was tried: it is as another call found it.
        Err(failure) if failure.kind == Kind::Paused => health.failure.filter(Failure::is_the_backends),
        Err(failure) => Some(failure),
    };
    // One that has refused a question is there all the same.
    let lost = failure.as_ref().is_some_and(Failure::is_the_backends);
    status.connected = health.connected.is_some() && !lost;
    if let Some(address) = health.connected.filter(|_| status.connected && !was)
        && !service.say_first(format!("serving OAP at {address}"))
    {
        service.tell(format!("serving OAP at {address} again"));
    }
    if let Some(Failure { text, .. }) = failure
        && !service.say_first(text.clone())
        && was
        && lost
    {
        service.tell(text);
    }
}

/// One round: the processes, then the questions for tasks. One that OAP can't take does not stop the
/// others.
async fn questions(
    shared: &Shared,
    backend: &Backend,
    policies: bool,
    connections: &mut u64,
) -> Result<(), Failure> {
    backend.connect().await?;
    let now = backend.health().connections;
    if *connections != now {
        // Whoever is there now may not know the processes.
        *connections = now;
        shared.service.borrow_mut().reconnected();
    }
    let mut first = Ok(());
    let due = shared.service.borrow_mut().registration(now_ns());
    if let Err(failure) = register(shared, backend, due).await {
        shared.service.borrow_mut().reconnected();
        goes_on(&mut first, failure)?;
    }
    let questions = shared.service.borrow().trace_questions();
    for question in questions {
        let instance = (question.service.clone(), question.service_instance.clone());
        match backend.trace_tasks(question).await {
            Ok(commands) => shared.service.borrow_mut().answered(commands, Some(&instance), now_ns()),
            Err(failure) => goes_on(&mut first, failure)?,
        }
    }
    let question = shared.service.borrow_mut().ebpf_question(now_ns());
    if let Some(question) = question {
        match backend.ebpf_tasks(question).await {
            Ok(commands) => shared.service.borrow_mut().answered(commands, None, now_ns()),
            Err(failure) => goes_on(&mut first, failure)?,
        }
    }
    let question = if policies { shared.service.borrow().policy_question() } else { None };
    if let Some(question) = question {
        match backend.policies(question).await {
            Ok(commands) => shared.service.borrow_mut().answered(commands, None, now_ns()),
            Err(failure) => goes_on(&mut first, failure)?,
        }
    }
    first
}

/// Keeps the first failure, and ends the round with one that the other calls would meet too.
fn goes_on(first: &mut Result<(), Failure>, failure: Failure) -> Result<(), Failure> {
    let ends = failure.is_the_backends() || failure.kind == Kind::Paused;
    if first.is_ok() {
        *first = Err(failure);
    }
    if ends { std::mem::replace(first, Ok(())) } else { Ok(()) }
}

async fn register(shared: &Shared, backend: &Backend, due: Due) -> Result<(), Failure> {
    if let Some(report) = due.report {
        let answer = backend.report_processes(report).await?;
        shared.service.borrow_mut().registered(&answer, now_ns());
    }
    if let Some(alive) = due.alive {
        backend.keep_processes_alive(alive).await?;
    }
    Ok(())
}

/// Looks at the processes that have a policy, and asks for the tasks of what was crossed.
async fn watch(shared: &Shared, backend: &Backend, around: &RefCell<Box<dyn Around>>) {
    let watched = shared.service.borrow().watched();
    for pid in watched {
        let gauges = around.borrow_mut().gauges(pid);
        let report = shared.service.borrow_mut().look(pid, &gauges, now_ns());
        let Some(report) = report else {
            continue;
        };
        match backend.report_profiling_task(report.clone()).await {
            Ok(answer) => shared.service.borrow_mut().triggered(pid, &report, &answer, now_ns()),
            Err(failure) => {
                let mut service = shared.service.borrow_mut();
                if failure.fate == Fate::Retry {
                    service.not_triggered(pid, &report);
                }
                service.say(failure.text);
            }
        }
    }
}

fn wall_clock() -> WallClock {
    WallClock { ahead_ns: unix_ahead_ns() }
}
