//! Of what is served to one OAP.

use std::sync::Arc;

use proto::skywalking::{
    EbpfHostProcessDownstream, EbpfProcessDownstream, KeyStringValuePair,
    ebpf_process_downstream::Process as DownstreamProcess, ebpf_process_properties::Metadata,
};

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
        queued: None,
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
    let wants = Wants { ticks: true, off_from_ns: Some(0), ..Wants::default() };
    assert_eq!(service.wants(1), BTreeMap::from([(7, wants)]));
    service.take(&Event::Telling { pid: 7, wants, from_ns: 1 });
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
    assert_eq!(service.served(), 1);
    let lines = service.lines();
    let [begins, ends] = &lines[..] else { panic!("{lines:?}") };
    assert_eq!(begins, "OAP's trace task of /slow runs for 60 s in one");
    assert_eq!(ends, "OAP's trace task of /slow is over in one: 1 segment");
}

#[test]
fn span_events_without_an_agent_are_said_to_be_none() {
    for tracer in [None, Some(tracer(Some(false)))] {
        let is_agent = tracer.is_some();
        let mut service = service(Some(Duration::from_millis(10)));
        service.begin(process(7, tracer), &Surroundings::default()).unwrap();
        service.due(0);
        assert_eq!(service.lines(), Vec::<String>::new());
        service.due(6 * S);
        let lines = service.lines();
        assert!(is_agent == lines.is_empty() && lines.iter().all(|line| line.contains("--span-events")));
    }
}

#[test]
fn beside_the_agents_own_profiler_only_ebpf_tasks_are_served() {
    for profiler in [Some(true), None] {
        let mut service = begun(Some(tracer(profiler)));
        assert_eq!(service.trace_questions(), Vec::new());
        assert!(service.ebpf_question(0).is_some());
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
    service.answered(ebpf_task("another", "OFF_CPU"), None, S);
    service.answered(ebpf_task(&id, "OFF_CPU"), None, S);
    assert_eq!(service.wants(S).get(&7).and_then(|wants| wants.sums_at_ns), Some(S));
    service.answered(ebpf_task(&id, "NETWORK"), None, S);
    service.answered(command("Reboot", &[]), None, S);
    service.answered(command("ProfileTaskQuery", &[]), None, S);
    let lines = service.lines();
    for (line, said) in
        lines.iter().zip(["not recorded", "OFF_CPU task of pid 7 runs", "network", "Reboot", "TaskId"])
    {
        assert!(line.contains(said), "{line}");
    }
    assert_eq!((lines.len(), service.tasks(S)), (5, 1));
    // Each is said once.
    service.answered(command("Reboot", &[]), None, S);
    assert_eq!(service.lines(), Vec::<String>::new());
}

#[test]
fn all_ebpf_tasks_are_asked_for_while_a_process_is_new_and_now_and_then() {
    let mut service = begun(Some(tracer(Some(false))));
    let id = registry::id("shop", "one", "python-7");
    let host = EbpfHostProcessDownstream { pid: 7, entity_metadata: None };
    let known =
        EbpfProcessDownstream { process_id: id.clone(), process: Some(DownstreamProcess::HostProcess(host)) };
    service.registered(&EbpfReportProcessDownstream { processes: vec![known] }, 0);
    service.answered(ebpf_task(&id, "ON_CPU"), None, 0);
    let mut asked = |at: u64| service.ebpf_question(at * S).map(|question| question.latest_update_time);
    let newest = i64::try_from(UNIX_MS).unwrap();
    assert_eq!([0, 5, 55, 65, 70].map(&mut asked), [0, 0, 0, newest, newest].map(Some));
    assert_eq!([115, 120].map(&mut asked), [0, newest].map(Some));
    // A worker comes.
    service.begin(process(8, None), &Surroundings::default()).unwrap();
    assert_eq!(service.ebpf_question(121 * S).map(|question| question.latest_update_time), Some(0));
}

#[test]
fn a_long_name_is_asked_for_as_oap_has_it() {
    let long = TracerRow { service: Some("s".repeat(99)), ..tracer(Some(false)) };
    let service = begun(Some(long));
    let asked: Vec<String> = service.trace_questions().into_iter().map(|question| question.service).collect();
    assert_eq!(asked, ["s".repeat(70)]);
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
    assert_eq!((service.ebpf_question(0), service.policy_question()), (None, None));
}

#[test]
fn a_master_is_of_its_workers_service() {
    let worker = || Process { parent: Some(7), ..process(8, Some(tracer(Some(false)))) };
    for master_first in [true, false] {
        let mut service = service(None);
        let around = Surroundings { host: "host".to_owned(), ..Surroundings::default() };
        let mut processes = vec![process(7, None), worker()];
        if !master_first {
            processes.reverse();
        }
        for process in processes {
            service.begin(process, &around).unwrap();
        }
        let report = service.registration(0).report.unwrap();
        let names = report.processes.iter().filter_map(|process| match process.metadata.clone()? {
            Metadata::HostProcess(host) => {
                host.entity.map(|entity| (entity.service_name, entity.instance_name))
            }
            Metadata::K8sProcess(_) => None,
        });
        let shop = "shop".to_owned();
        assert_eq!(names.collect::<Vec<_>>(), [(shop.clone(), "host".to_owned()), (shop, "one".to_owned())]);
    }
}

#[test]
fn an_instance_that_is_gone_is_forgotten_after_its_tasks() {
    let mut service = begun(Some(tracer(Some(false))));
    let one = ("shop".to_owned(), "one".to_owned());
    service.answered(trace_task(), Some(&one), 0);
    service.take(&Event::Ended { pid: 7, time_ns: S / 2 });
    assert!(service.due(S / 2).is_empty() && service.traced.len() == 1);
    assert!(matches!(service.due(70 * S)[..], [Batch::Finished(_)]) && service.traced.is_empty());
}
