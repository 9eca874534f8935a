//! What is served to one OAP: it is told of processes, asked for tasks, and sent what came of
//! them. Who does that, and when, is another's: here is no network and no clock.

use std::{collections::BTreeMap, time::Duration};

use proto::skywalking::{
    Command as Sent, Commands, ContinuousProfilingPolicyQuery, ContinuousProfilingReport,
    EbpfProfilingTaskQuery, EbpfReportProcessDownstream, ProfileTaskCommandQuery, ProfileTaskFinishReport,
    SpanAttachedEvent,
};
use rustc_hash::FxHashSet;

use super::{
    batch::Batch,
    commands::{self, Command, EbpfTask, Looks},
    continuous::{self, Continuous, Gauges},
    ebpf_tasks::{EbpfTasks, Flush},
    failure::line,
    identity::{self, Facts, Given, Identity, Rule, Surroundings, UnknownLayer},
    registry::{self, Registry},
    span_events::SpanEvents,
    trace_tasks::{Due, Finished, TraceTasks},
    wall_clock::{NS_PER_MS, NS_PER_S, WallClock, nanoseconds},
};
use crate::{
    profile::{
        TracerRow,
        event::{Event, Process, Wants},
    },
    trace::Source,
};

/// Lines that are remembered so that none is said twice.
const MOST_LINES: usize = 256;
/// How far the clock may be away before it is asked again: less than OAP's millisecond.
const CLOCK_NS: u64 = NS_PER_MS / 2;
/// How often OAP is asked for all eBPF tasks, and not for newer ones only: its clock may have been
/// set back.
const ALL: Duration = Duration::from_secs(60);
/// Span events that wait for the next batch.
const MOST_EVENTS: usize = 16_384;
/// How long they wait: each batch takes room of its own where many wait.
const EVENTS: Duration = Duration::from_secs(1);
/// How long an agent may take to be found in one of the processes.
const AGENT: Duration = Duration::from_secs(5);

/// What a user chose.
#[derive(Clone, Debug, Default)]
pub struct Choice {
    /// Names.
    pub given: Given,
    /// Waits and blocks that last so long become events on their spans.
    pub span_events: Option<Duration>,
    /// Of the recording's CPU clock.
    pub tick_ns: u64,
}

/// A service's instance, by the agent's names.
pub type Instance = (String, String);

/// What is served, and to whom it belongs.
#[derive(Debug)]
pub struct Service {
    agent: String,
    choice: Choice,
    wall: WallClock,
    registry: Registry,
    processes: BTreeMap<u32, Served>,
    traced: BTreeMap<Instance, TraceTasks>,
    ebpf: EbpfTasks,
    /// When it is asked for all of them again.
    next_all_ns: u64,
    continuous: Continuous,
    span_events: Option<SpanEvents>,
    events: Vec<SpanAttachedEvent>,
    next_events_ns: u64,
    events_dropped: u64,
    /// When the first process was there.
    first_ns: Option<u64>,
    /// An agent was found in one.
    agent_seen: bool,
    /// Tasks that are over.
    served: u64,
    ended: bool,
    said: FxHashSet<String>,
    lines: Vec<String>,
}

#[derive(Debug)]
struct Served {
    process: Process,
    identity: Identity,
    /// Whose trace tasks are served.
    instance: Option<Instance>,
    /// Requests that ended since the last look, and how many ns they took.
    responses: (u64, u64),
}

impl Service {
    /// Of nothing yet. `agent` is a UUID, the same while greenscope runs.
    #[must_use]
    pub fn new(agent: &str, choice: Choice, wall: WallClock) -> Self {
        Self {
            agent: agent.to_owned(),
            registry: Registry::new(agent),
            processes: BTreeMap::new(),
            traced: BTreeMap::new(),
            ebpf: EbpfTasks::new(wall, choice.tick_ns),
            next_all_ns: 0,
            continuous: Continuous::default(),
            span_events: choice.span_events.map(|longer_than| SpanEvents::new(longer_than, wall)),
            events: Vec::new(),
            next_events_ns: 0,
            events_dropped: 0,
            first_ns: None,
            agent_seen: false,
            served: 0,
            ended: false,
            said: FxHashSet::default(),
            lines: Vec::new(),
            choice,
            wall,
        }
    }

    /// A process is recorded, or its tracer is known by now.
    ///
    /// # Errors
    ///
    /// When the layer that the user gave is none of OAP's.
    pub fn begin(&mut self, process: Process, around: &Surroundings) -> Result<(), UnknownLayer> {
        let facts = Facts {
            pid: process.pid,
            is_child: process.parent.is_some() || around.is_child,
            command: &process.command,
            environment: &around.environment,
            cgroup: &around.cgroup,
            host: &around.host,
            tracer: process.tracer.as_ref(),
        };
        let mut identity = identity::name(&facts, &self.choice.given)?;
        if identity.rule.is_guess()
            && let Some(worker) = self
                .processes
                .values()
                .find(|other| other.process.parent == Some(process.pid) && other.identity.rule == Rule::Agent)
        {
            identity.join(&worker.identity);
        }
        self.register(&process, &identity, &around.host);
        if identity.rule == Rule::Agent {
            self.adopt(process.parent, &identity, &around.host);
        }
        // By the names that OAP has them by: it cuts them, and keeps its tasks so.
        let instance = self
            .is_traced(process.pid, process.tracer.as_ref())
            .then(|| (identity.service.clone(), identity.instance.clone()));
        if let Some(instance) = &instance {
            let new = || TraceTasks::new(self.wall, self.choice.tick_ns);
            self.traced.entry(instance.clone()).or_insert_with(new);
        }
        self.processes.insert(process.pid, Served { process, identity, instance, responses: (0, 0) });
        Ok(())
    }

    fn register(&mut self, process: &Process, identity: &Identity, host: &str) {
        let greenlets = if process.greenlets { &["python", "greenlet"][..] } else { &["python"][..] };
        let pid = process.pid.to_string();
        let command = process.command.join(" ");
        let properties = [("host_name", host), ("pid", &pid), ("command_line", &command)];
        self.registry.add(process.pid, identity, greenlets, &properties);
    }

    /// What made a process that has an agent belongs to its service, if nothing else says where.
    fn adopt(&mut self, parent: Option<u32>, worker: &Identity, host: &str) {
        let Some(served) = parent.and_then(|parent| self.processes.get_mut(&parent)) else {
            return;
        };
        if served.identity.rule.is_guess() {
            served.identity.join(worker);
            let (process, identity) = (served.process.clone(), served.identity.clone());
            self.register(&process, &identity, host);
        }
    }

    /// Whether trace tasks are served in a process.
    fn is_traced(&mut self, pid: u32, tracer: Option<&TracerRow>) -> bool {
        let Some(tracer) = tracer.filter(|tracer| {
            tracer.source == Source::Agent && tracer.service.is_some() && tracer.instance.is_some()
        }) else {
            return false;
        };
        match tracer.profiler {
            Some(false) => true,
            Some(true) => {
                self.say(format!(
                    "pid {pid}: SkyWalking's agent has its own profiler on, so trace profiling is left to it \
                     (start the service with SW_AGENT_PROFILE_ACTIVE=False to have greenscope do it); eBPF \
                     tasks are served"
                ));
                false
            }
            None => {
                self.say(format!(
                    "pid {pid}: whether SkyWalking's agent has its own profiler on is not known, so trace \
                     profiling is left out; eBPF tasks are served"
                ));
                false
            }
        }
    }

    /// It is so much o'clock: where it was set since the last time, tasks and segments that begin
    /// from now on go by it.
    pub fn clock(&mut self, wall: WallClock) {
        let moved_ns = self.wall.ahead_ns.abs_diff(wall.ahead_ns);
        if moved_ns < CLOCK_NS {
            return;
        }
        if moved_ns >= NS_PER_S {
            self.say(format!(
                "the clock was set by {} s; tasks that run go by what it was",
                moved_ns / NS_PER_S
            ));
        }
        self.wall = wall;
        self.ebpf.set_clock(wall);
        self.traced.values_mut().for_each(|tasks| tasks.set_clock(wall));
        if let Some(events) = &mut self.span_events {
            events.set_clock(wall);
        }
    }

    /// What a process was when it began.
    #[must_use]
    pub fn process(&self, pid: u32) -> Option<&Process> {
        self.processes.get(&pid).map(|served| &served.process)
    }

    /// Something happened that is no begin.
    pub fn take(&mut self, event: &Event) {
        if let Event::Off(off) = event
            && let Some(attached) = self.span_events.as_mut().and_then(|events| events.of(off))
        {
            if self.events.len() < MOST_EVENTS {
                self.events.push(attached);
            } else {
                self.events_dropped += 1;
            }
        }
        let pid = match event {
            Event::Tick(tick) => tick.pid,
            Event::Off(off) => off.pid,
            Event::LaneEnded { pid, .. }
            | Event::Telling { pid, .. }
            | Event::Sums { pid, .. }
            | Event::Ended { pid, .. } => *pid,
            Event::Responses { pid, count, sum_ns } => {
                if let Some(served) = self.processes.get_mut(pid) {
                    served.responses.0 += count;
                    served.responses.1 += sum_ns;
                }
                return;
            }
            Event::Began(_) | Event::Traced { .. } => return,
        };
        if let Some(tasks) = self.tasks_of(pid) {
            tasks.take(event);
        }
        self.ebpf.take(event);
        if let Event::Ended { pid, .. } = event {
            self.registry.remove(*pid);
            self.continuous.remove(*pid);
            self.processes.remove(pid);
        }
    }

    fn tasks_of(&mut self, pid: u32) -> Option<&mut TraceTasks> {
        let instance = self.processes.get(&pid)?.instance.as_ref()?;
        self.traced.get_mut(instance)
    }

    /// What is wanted of each process now.
    #[must_use]
    pub fn wants(&self, now_ns: u64) -> BTreeMap<u32, Wants> {
        let of = |(pid, served): (&u32, &Served)| {
            let tasks = served.instance.as_ref().and_then(|instance| self.traced.get(instance));
            let traced = tasks.is_some_and(|tasks| tasks.is_busy(now_ns));
            let is_agent =
                served.process.tracer.as_ref().is_some_and(|tracer| tracer.source == Source::Agent);
            let events = self.choice.span_events.filter(|_| is_agent);
            let wants = Wants {
                ticks: traced || self.ebpf.wants_ticks(*pid),
                off_from_ns: if traced { Some(0) } else { events.map(nanoseconds) },
                responses: self.continuous.watches_responses(&served.identity.service),
                sums_at_ns: self.ebpf.wants_sums_at(*pid),
            };
            (*pid, wants)
        };
        self.processes.iter().map(of).collect()
    }

    /// What of the processes OAP is to be told by now; what is given here counts as said.
    pub fn registration(&mut self, now_ns: u64) -> registry::Due {
        self.registry.due(now_ns)
    }

    /// OAP took a report.
    pub fn registered(&mut self, answer: &EbpfReportProcessDownstream, now_ns: u64) {
        for pid in self.registry.reported(answer, now_ns) {
            self.say(format!("pid {pid}: OAP calls the process by an id of its own"));
        }
    }

    /// OAP was away, and may have forgotten the processes.
    pub fn reconnected(&mut self) {
        self.registry.forget();
    }

    /// The questions for trace tasks, of each instance.
    #[must_use]
    pub fn trace_questions(&self) -> Vec<ProfileTaskCommandQuery> {
        let mut asked = FxHashSet::default();
        let instances = self.processes.values().filter_map(|served| served.instance.as_ref());
        let question = |instance: &Instance| {
            let tasks = self.traced.get(instance).filter(|_| asked.insert(instance.clone()))?;
            Some(ProfileTaskCommandQuery {
                service: instance.0.clone(),
                service_instance: instance.1.clone(),
                last_command_time: i64::try_from(tasks.newest_ms()).unwrap_or_default(),
            })
        };
        instances.filter_map(question).collect()
    }

    /// The question for eBPF tasks; none without processes.
    #[must_use]
    pub fn ebpf_question(&mut self, now_ns: u64) -> Option<EbpfProfilingTaskQuery> {
        if self.processes.is_empty() {
            return None;
        }
        // OAP tells of tasks that are newer than what we know, for processes that it has by then:
        // of one that comes later it would not tell any more.
        let all = self.registry.is_any_new(now_ns) || now_ns >= self.next_all_ns;
        if all {
            self.next_all_ns = now_ns.saturating_add(nanoseconds(ALL));
        }
        let newest_ms = if all { 0 } else { i64::try_from(self.ebpf.newest_ms()).unwrap_or_default() };
        Some(EbpfProfilingTaskQuery { rover_instance_id: self.agent.clone(), latest_update_time: newest_ms })
    }

    /// The question for policies; none without processes.
    #[must_use]
    pub fn policy_question(&self) -> Option<ContinuousProfilingPolicyQuery> {
        let mut services: Vec<&str> =
            self.processes.values().map(|served| served.identity.service.as_str()).collect();
        services.sort_unstable();
        services.dedup();
        (!services.is_empty()).then(|| self.continuous.question(&services))
    }

    /// OAP's commands; of a question for trace tasks, whose it was.
    pub fn answered(&mut self, commands: Commands, asked: Option<&Instance>, now_ns: u64) {
        for sent in commands.commands {
            self.obey(&sent, asked, now_ns);
        }
    }

    fn obey(&mut self, sent: &Sent, asked: Option<&Instance>, now_ns: u64) {
        match commands::parse(sent) {
            Ok(Some(Command::Trace(task))) => {
                if let Some((instance, tasks)) =
                    asked.and_then(|instance| Some((instance, self.traced.get_mut(instance)?)))
                {
                    let (endpoint, seconds) = (line(&task.endpoint), task.duration.as_secs());
                    if tasks.begin(task, now_ns) {
                        let of = &instance.1;
                        self.tell(format!("OAP's trace task of {endpoint} runs for {seconds} s in {of}"));
                    }
                }
            }
            Ok(Some(Command::Ebpf(task))) if task.looks == Looks::Network => {
                self.say(
                    "OAP's eBPF task on the network is left out: greenscope profiles ON_CPU and OFF_CPU",
                );
            }
            Ok(Some(Command::Ebpf(task))) => match self.registry.pid(&task.process) {
                Some(pid) => {
                    let (looks, seconds) = (task.looks, task.duration.as_secs());
                    if self.ebpf.begin(task, pid, now_ns) {
                        self.tell(format!("OAP's {looks} task of pid {pid} runs for {seconds} s"));
                    } else if self.ebpf.is_full() {
                        self.say("OAP has more eBPF tasks than can run at once: some are left out");
                    }
                }
                // One that was known comes again and again.
                None if task.updated_ms <= self.ebpf.newest_ms() => {}
                None => self.say("an eBPF task of OAP's is of a process that is not recorded any more"),
            },
            Ok(Some(Command::Policies(policies))) => {
                for line in self.continuous.take(policies) {
                    self.say(line);
                }
            }
            Ok(Some(Command::Reported { .. })) => {}
            Ok(None) => {
                let name: String = sent.command.chars().take(80).collect();
                self.say(format!("OAP's command {name:?} is not known, and left out"));
            }
            Err(refused) => self.say(refused.to_string()),
        }
    }

    /// Processes that are to be looked at for OAP's policies.
    #[must_use]
    pub fn watched(&self) -> Vec<u32> {
        let watched =
            self.processes.iter().filter(|(_, served)| self.continuous.watches(&served.identity.service));
        watched.map(|(pid, _)| *pid).collect()
    }

    /// A process was looked at; what OAP is to be asked for, if a threshold was crossed.
    pub fn look(&mut self, pid: u32, gauges: &Gauges, now_ns: u64) -> Option<ContinuousProfilingReport> {
        if !self.registry.is_stored(pid, now_ns) {
            return None;
        }
        let served = self.processes.get_mut(&pid)?;
        let (count, sum_ns) = std::mem::take(&mut served.responses);
        let response_ms = (count > 0).then(|| sum_ns as f64 / count as f64 / 1e6);
        let gauges = Gauges { response_ms, ..*gauges };
        self.continuous.look(pid, &served.identity, &gauges, now_ns)
    }

    /// OAP made the task that `report` asked for.
    pub fn triggered(
        &mut self,
        pid: u32,
        report: &ContinuousProfilingReport,
        answer: &Commands,
        now_ns: u64,
    ) {
        if !self.processes.contains_key(&pid) {
            // It ended while OAP was asked.
            return;
        }
        for sent in &answer.commands {
            let Ok(Some(Command::Reported { task })) = commands::parse(sent) else {
                continue;
            };
            let process = registry::id(&report.service_name, &report.instance_name, &report.process_name);
            let task = EbpfTask {
                id: task,
                process,
                updated_ms: 0,
                looks: continuous::looks(report),
                start_ms: self.wall.ms(now_ns),
                duration: continuous::TASK,
            };
            let (looks, seconds) = (task.looks, task.duration.as_secs());
            if self.ebpf.begin(task, pid, now_ns) {
                self.tell(format!(
                    "a threshold was crossed: an {looks} task of pid {pid} runs for {seconds} s"
                ));
            }
        }
    }

    /// OAP did not hear what `report` asked for: it is asked again.
    pub fn not_triggered(&mut self, pid: u32, report: &ContinuousProfilingReport) {
        self.continuous.not_heard(pid, continuous::looks(report));
    }

    /// How many tasks are under way.
    #[must_use]
    pub fn tasks(&self, now_ns: u64) -> usize {
        self.ebpf.count() + self.traced.values().map(|tasks| tasks.count(now_ns)).sum::<usize>()
    }

    /// How many are over.
    #[must_use]
    pub const fn served(&self) -> u64 {
        self.served
    }

    /// Span events that there was no room for.
    #[must_use]
    pub const fn events_dropped(&self) -> u64 {
        self.events_dropped
    }

    /// The recording is over: so are the trace tasks.
    pub fn end(&mut self, now_ns: u64) {
        self.ended = true;
        for tasks in self.traced.values_mut() {
            tasks.end(now_ns);
        }
    }

    /// What is to be sent by now.
    pub fn due(&mut self, now_ns: u64) -> Vec<Batch> {
        let mut due = Vec::new();
        let mut over = Vec::new();
        for ((service, instance), tasks) in &mut self.traced {
            let Due { snapshots, finished } = tasks.due(now_ns);
            if !snapshots.is_empty() {
                due.push(Batch::Snapshots(snapshots));
            }
            for Finished { id, endpoint, segments } in finished {
                let s = if segments == 1 { "" } else { "s" };
                let endpoint = line(&endpoint);
                over.push(format!(
                    "OAP's trace task of {endpoint} is over in {instance}: {segments} segment{s}"
                ));
                due.push(Batch::Finished(ProfileTaskFinishReport {
                    service: service.clone(),
                    service_instance: instance.clone(),
                    task_id: id,
                }));
            }
        }
        for Flush { looks, pid, messages, last, .. } in self.ebpf.due(now_ns) {
            if !messages.is_empty() {
                due.push(Batch::Ebpf(messages));
            }
            if last {
                over.push(format!("OAP's {looks} task of pid {pid} is over"));
            }
        }
        self.served += over.len() as u64;
        over.into_iter().for_each(|line| self.tell(line));
        let many = self.events.len() >= MOST_EVENTS / 4;
        if !self.events.is_empty() && (many || now_ns >= self.next_events_ns || self.ended) {
            self.next_events_ns = now_ns.saturating_add(nanoseconds(EVENTS));
            due.push(Batch::Events(std::mem::take(&mut self.events)));
        }
        self.look_for_agents(now_ns);
        if self.traced.values().any(|tasks| tasks.counts().left_out > 0) {
            self.say(
                "a trace task's endpoint has more requests at once than can be followed: some are left out",
            );
        }
        // Each worker is an instance of its own, and a server may make many.
        let used: FxHashSet<&Instance> =
            self.processes.values().filter_map(|served| served.instance.as_ref()).collect();
        self.traced.retain(|instance, tasks| used.contains(instance) || tasks.is_busy(now_ns));
        due
    }

    /// Says that there are no spans, where events were asked for.
    fn look_for_agents(&mut self, now_ns: u64) {
        if self.choice.span_events.is_none() || self.processes.is_empty() {
            return;
        }
        let is_agent = |tracer: &TracerRow| tracer.source == Source::Agent;
        let any = self.processes.values().any(|served| served.process.tracer.as_ref().is_some_and(is_agent));
        self.agent_seen |= any;
        let first_ns = *self.first_ns.get_or_insert(now_ns);
        if !self.agent_seen && !self.ended && now_ns >= first_ns.saturating_add(nanoseconds(AGENT)) {
            self.say(
                "no SkyWalking agent (0.8 to 1.3) is found in any process, so --span-events has no spans to \
                 attach to, and trace tasks have no segments; eBPF tasks are served",
            );
        }
    }

    /// Remembers a line that the user is to see; each once.
    pub fn say(&mut self, line: impl Into<String>) {
        self.say_first(line);
    }

    /// The same; false if it was said before.
    pub fn say_first(&mut self, line: impl Into<String>) -> bool {
        let line = line.into();
        let new = self.said.len() < MOST_LINES && self.said.insert(line.clone());
        if new {
            self.lines.push(line);
        }
        new
    }

    /// The same each time.
    pub fn tell(&mut self, line: String) {
        if self.lines.len() < MOST_LINES {
            self.lines.push(line);
        }
    }

    /// Takes what the user is to see.
    pub fn lines(&mut self) -> Vec<String> {
        std::mem::take(&mut self.lines)
    }
}

#[cfg(test)]
mod tests;
