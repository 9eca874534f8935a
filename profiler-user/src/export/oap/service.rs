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
    identity::{self, Facts, Given, Identity, Surroundings, UnknownLayer},
    registry::{self, Registry},
    span_events::SpanEvents,
    trace_tasks::{Due, TraceTasks},
    wall_clock::WallClock,
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
/// Span events that wait for the next batch.
const MOST_EVENTS: usize = 16_384;

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
    continuous: Continuous,
    span_events: Option<SpanEvents>,
    events: Vec<SpanAttachedEvent>,
    events_dropped: u64,
    said: FxHashSet<String>,
    lines: Vec<String>,
}

#[derive(Debug)]
struct Served {
    process: Process,
    identity: Identity,
    /// Whose trace tasks are served.
    instance: Option<Instance>,
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
            continuous: Continuous::default(),
            span_events: choice.span_events.map(|longer_than| SpanEvents::new(longer_than, wall)),
            events: Vec::new(),
            events_dropped: 0,
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
        let identity = identity::name(&facts, &self.choice.given)?;
        let greenlets = if process.greenlets { &["python", "greenlet"][..] } else { &["python"][..] };
        let pid = process.pid.to_string();
        let command = process.command.join(" ");
        let properties = [("host_name", around.host.as_str()), ("pid", &pid), ("command_line", &command)];
        self.registry.add(process.pid, &identity, greenlets, &properties);
        let instance = self.instance(process.pid, process.tracer.as_ref());
        if let Some(instance) = &instance {
            let new = || TraceTasks::new(self.wall, self.choice.tick_ns);
            self.traced.entry(instance.clone()).or_insert_with(new);
        }
        self.processes.insert(process.pid, Served { process, identity, instance });
        Ok(())
    }

    /// Whose trace tasks are served in a process.
    fn instance(&mut self, pid: u32, tracer: Option<&TracerRow>) -> Option<Instance> {
        let tracer = tracer.filter(|tracer| tracer.source == Source::Agent)?;
        let instance = tracer.service.clone().zip(tracer.instance.clone())?;
        match tracer.profiler {
            Some(false) => Some(instance),
            Some(true) => {
                self.say(format!(
                    "pid {pid}: SkyWalking's agent has its own profiler on, so trace profiling is left to it \
                     (start the service with SW_AGENT_PROFILE_ACTIVE=False to have greenscope do it); eBPF \
                     tasks are served"
                ));
                None
            }
            None => {
                self.say(format!(
                    "pid {pid}: whether SkyWalking's agent has its own profiler on is not known, so trace \
                     profiling is left out; eBPF tasks are served"
                ));
                None
            }
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
            Event::OffSums { pid, .. } | Event::Ended { pid, .. } => *pid,
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
                off_from_ns: if traced { Some(0) } else { events.map(super::wall_clock::nanoseconds) },
                off_sums: self.ebpf.wants_sums(*pid, now_ns),
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
    pub fn ebpf_question(&self) -> Option<EbpfProfilingTaskQuery> {
        (!self.processes.is_empty()).then(|| EbpfProfilingTaskQuery {
            rover_instance_id: self.agent.clone(),
            latest_update_time: i64::try_from(self.ebpf.newest_ms()).unwrap_or_default(),
        })
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
                if let Some(tasks) = asked.and_then(|instance| self.traced.get_mut(instance)) {
                    tasks.begin(task, now_ns);
                }
            }
            Ok(Some(Command::Ebpf(task))) if task.looks == Looks::Network => {
                self.say(
                    "OAP's eBPF task on the network is left out: greenscope profiles ON_CPU and OFF_CPU",
                );
            }
            Ok(Some(Command::Ebpf(task))) => match self.registry.pid(&task.process) {
                Some(pid) => {
                    self.ebpf.begin(task, pid, now_ns);
                }
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
        let served = self.processes.get(&pid)?;
        self.continuous.look(pid, &served.identity, gauges, now_ns)
    }

    /// OAP made the task that `report` asked for.
    pub fn triggered(
        &mut self,
        pid: u32,
        report: &ContinuousProfilingReport,
        answer: &Commands,
        now_ns: u64,
    ) {
        for sent in &answer.commands {
            let Ok(Some(Command::Reported { task })) = commands::parse(sent) else {
                continue;
            };
            let looks = match report.target_task {
                Some(proto::skywalking::continuous_profiling_report::TargetTask::OffCpu(_)) => Looks::OffCpu,
                _ => Looks::OnCpu,
            };
            let process = registry::id(&report.service_name, &report.instance_name, &report.process_name);
            let task = EbpfTask {
                id: task,
                process,
                updated_ms: 0,
                looks,
                start_ms: self.wall.ms(now_ns),
                duration: continuous::TASK,
            };
            self.ebpf.begin(task, pid, now_ns);
        }
    }

    /// How many tasks are under way.
    #[must_use]
    pub fn tasks(&self, now_ns: u64) -> usize {
        self.ebpf.count() + self.traced.values().filter(|tasks| tasks.is_busy(now_ns)).count()
    }

    /// Span events that there was no room for.
    #[must_use]
    pub const fn events_dropped(&self) -> u64 {
        self.events_dropped
    }

    /// The recording is over: so are the trace tasks.
    pub fn end(&mut self, now_ns: u64) {
        for tasks in self.traced.values_mut() {
            tasks.end(now_ns);
        }
    }

    /// What is to be sent by now.
    pub fn due(&mut self, now_ns: u64) -> Vec<Batch> {
        let mut due = Vec::new();
        for ((service, instance), tasks) in &mut self.traced {
            let Due { snapshots, finished } = tasks.due(now_ns);
            if !snapshots.is_empty() {
                due.push(Batch::Snapshots(snapshots));
            }
            due.extend(finished.into_iter().map(|task_id| {
                Batch::Finished(ProfileTaskFinishReport {
                    service: service.clone(),
                    service_instance: instance.clone(),
                    task_id,
                })
            }));
        }
        for Flush { messages, .. } in self.ebpf.due(now_ns) {
            if !messages.is_empty() {
                due.push(Batch::Ebpf(messages));
            }
        }
        if !self.events.is_empty() {
            due.push(Batch::Events(std::mem::take(&mut self.events)));
        }
        due
    }

    /// Remembers a line that the user is to see; each once.
    pub fn say(&mut self, line: impl Into<String>) {
        let line = line.into();
        if self.said.len() < MOST_LINES && self.said.insert(line.clone()) {
            self.lines.push(line);
        }
    }

    /// Takes what the user is to see.
    pub fn lines(&mut self) -> Vec<String> {
        std::mem::take(&mut self.lines)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proto::skywalking::KeyStringValuePair;

    use super::*;
    use crate::{
        profile::{
            Frame, State,
            event::{Lane, Off, Work},
        },
        trace::Called,
    };

    const S: u64 = 1_000_000_000;
    const UNIX_MS: u64 = 1_795_366_000_000;
    const WALL: WallClock = WallClock { ahead_ns: 1_795_366_000_000_000_000 };

    fn tracer(profiler: Option<bool>) -> TracerRow {
        TracerRow {
            source: Source::Agent,
            service: Some("shop".to_owned()),
            instance: Some("one".to_owned()),
            profiler,
        }
    }

    fn process(pid: u32, tracer: Option<TracerRow>) -> Process {
        let command = vec!["python".to_owned(), "shop.py".to_owned()];
        Process { pid, parent: None, command, greenlets: true, tracer }
    }

    fn service(span_events: Option<Duration>) -> Service {
        Service::new("agent", Choice { span_events, tick_ns: 2_000_000, ..Choice::default() }, WALL)
    }

    fn begun(tracer: Option<TracerRow>) -> Service {
        let mut service = service(None);
        service.begin(process(7, tracer), &Surroundings::default()).unwrap();
        service
    }

    fn command(name: &str, args: &[(&str, &str)]) -> Commands {
        let args = args
            .iter()
            .map(|(key, value)| KeyStringValuePair { key: (*key).to_owned(), value: (*value).to_owned() })
            .collect();
        Commands { commands: vec![Sent { command: name.to_owned(), args }] }
    }

    fn trace_task() -> Commands {
        let now = UNIX_MS.to_string();
        command(
            "ProfileTaskQuery",
            &[
                ("TaskId", "t"),
                ("EndpointName", "/slow"),
                ("Duration", "1"),
                ("MinDurationThreshold", "0"),
                ("DumpPeriod", "10"),
                ("MaxSamplingCount", "5"),
                ("StartTime", &now),
                ("CreateTime", &now),
            ],
        )
    }

    fn ebpf_task(process: &str, target: &str) -> Commands {
        let now = UNIX_MS.to_string();
        command(
            "EBPFProfilingTaskQuery",
            &[
                ("TaskId", "e"),
                ("ProcessId", process),
                ("TaskUpdateTime", &now),
                ("TriggerType", "FIXED_TIME"),
                ("TargetType", target),
                ("TaskStartTime", &now),
                ("FixedTriggerDuration", "60"),
            ],
        )
    }

    fn off(begin_ns: u64, end_ns: u64) -> Event {
        let frame = Frame { function: Some("wait".into()), file: Some("/app.py".into()), line: Some(3) };
        Event::Off(Off {
            pid: 7,
            lane: Lane::Greenlet(1),
            begin_ns,
            end_ns,
            state: State::Wait,
            frames: Arc::new([frame]),
            work: Work {
                called: Called {
                    source: Some(Source::Agent),
                    trace_id: Some("trace".into()),
                    segment_id: Some("segment".into()),
                    span: Some("0".to_owned()),
                    endpoint: Some("/slow".into()),
                    ..Called::NONE
                },
                began_unix_ms: Some(UNIX_MS + 1_000),
            },
        })
    }

    #[test]
    fn without_tasks_nothing_is_wanted_and_nothing_sent() {
        let mut service = begun(Some(tracer(Some(false))));
        assert_eq!(service.wants(0), BTreeMap::from([(7, Wants::default())]));
        service.take(&off(S, 2 * S));
        assert_eq!(service.due(3 * S), Vec::new());
        assert_eq!(service.tasks(3 * S), 0);
    }

    #[test]
    fn a_trace_task_is_asked_for_by_the_agents_names_and_served() {
        let mut service = begun(Some(tracer(Some(false))));
        let [question] = &service.trace_questions()[..] else { panic!("one question") };
        assert_eq!((question.service.as_str(), question.service_instance.as_str()), ("shop", "one"));
        let instance = ("shop".to_owned(), "one".to_owned());
        service.answered(trace_task(), Some(&instance), 0);
        let wants = Wants { ticks: true, off_from_ns: Some(0), off_sums: false };
        assert_eq!(service.wants(1), BTreeMap::from([(7, wants)]));
        service.take(&off(S, 2 * S));
        let [Batch::Snapshots(snapshots)] = &service.due(3 * S)[..] else { panic!("snapshots") };
        assert_eq!(snapshots.len(), 2);
        // The next question is for later ones.
        let newest = service.trace_questions().first().map(|question| question.last_command_time);
        assert_eq!(newest, i64::try_from(UNIX_MS).ok());
        service.end(4 * S);
        let [Batch::Finished(finished)] = &service.due(4 * S)[..] else { panic!("a finish") };
        assert_eq!(finished.task_id, "t");
        assert_eq!(service.due(5 * S), Vec::new());
    }

    #[test]
    fn beside_the_agents_own_profiler_only_ebpf_tasks_are_served() {
        for profiler in [Some(true), None] {
            let mut service = begun(Some(tracer(profiler)));
            assert_eq!(service.trace_questions(), Vec::new());
            assert!(service.ebpf_question().is_some());
            let lines = service.lines();
            assert!(lines.len() == 1 && lines[0].contains("own profiler"), "{lines:?}");
            // When it is known later it is served.
            service.begin(process(7, Some(tracer(Some(false)))), &Surroundings::default()).unwrap();
            assert_eq!(service.trace_questions().len(), 1);
        }
    }

    #[test]
    fn an_ebpf_task_is_of_the_process_that_oap_names() {
        let mut service = begun(Some(tracer(Some(false))));
        let id = registry::id("shop", "one", "python-7");
        service.answered(ebpf_task(&id, "OFF_CPU"), None, S);
        assert_eq!(service.wants(S).get(&7).map(|wants| wants.off_sums), Some(true));
        service.answered(ebpf_task("another", "OFF_CPU"), None, S);
        service.answered(ebpf_task(&id, "NETWORK"), None, S);
        service.answered(command("Reboot", &[]), None, S);
        service.answered(command("ProfileTaskQuery", &[]), None, S);
        let lines = service.lines();
        for (line, said) in lines.iter().zip(["not recorded", "network", "Reboot", "TaskId"]) {
            assert!(line.contains(said), "{line}");
        }
        assert_eq!((lines.len(), service.tasks(S)), (4, 1));
        // Each is said once.
        service.answered(command("Reboot", &[]), None, S);
        assert_eq!(service.lines(), Vec::<String>::new());
    }

    #[test]
    fn long_waits_become_events_without_a_task() {
        let mut service = service(Some(Duration::from_millis(10)));
        service.begin(process(7, Some(tracer(Some(true)))), &Surroundings::default()).unwrap();
        let wants = Wants { off_from_ns: Some(10_000_000), ..Wants::default() };
        assert_eq!(service.wants(0), BTreeMap::from([(7, wants)]));
        service.take(&off(S, 2 * S));
        service.take(&off(3 * S, 3 * S + 1));
        let [Batch::Events(events)] = &service.due(4 * S)[..] else { panic!("events") };
        assert_eq!(events.len(), 1);
    }

    #[test]
    fn a_process_that_is_gone_is_nobodys() {
        let mut service = begun(Some(tracer(Some(false))));
        service.take(&Event::Ended { pid: 7, time_ns: S });
        assert!(service.wants(S).is_empty() && service.trace_questions().is_empty());
        assert_eq!((service.ebpf_question(), service.policy_question()), (None, None));
    }
}
