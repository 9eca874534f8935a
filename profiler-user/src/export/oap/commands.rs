//! What OAP asks for: its commands, parsed and bounded.
//!
//! A command is a name and texts. What OAP checks when a task is made is checked again: the
//! task may come from a later OAP, or from something that is none.

use std::{fmt, ops::RangeInclusive, time::Duration};

use proto::skywalking::Command as Sent;
use serde::Deserialize;

/// <https://github.com/apache/skywalking/blob/v10.1.0/apm-protocol/apm-network/src/main/java/org/apache/skywalking/oap/server/network/trace/component/command/ProfileTaskCommand.java>
const TRACE: &str = "ProfileTaskQuery";
const EBPF: &str = "EBPFProfilingTaskQuery";
const POLICIES: &str = "ContinuousProfilingPolicyQuery";
const REPORTED: &str = "ContinuousProfilingReportTask";

/// Minutes that a trace task lasts (`ProfileConstants`).
const TRACE_MINUTES: RangeInclusive<u64> = 1..=15;
/// ms between two snapshots; OAP has no maximum.
const DUMP_PERIOD_MS: RangeInclusive<u64> = 10..=60_000;
/// Segments of a trace task.
const SAMPLING: RangeInclusive<u64> = 1..=9;
/// ms that a segment lasts before it is of interest: no longer than a task.
const THRESHOLD_MS: RangeInclusive<u64> = 0..=15 * 60_000;
/// Seconds of an eBPF task: OAP has no maximum; a day is more than anybody looks at.
const EBPF_SECONDS: RangeInclusive<u64> = 60..=86_400;
/// ms since 1970: 2001 to 2286, thirteen digits.
const MOMENT_MS: RangeInclusive<u64> = 1_000_000_000_000..=9_999_999_999_999;
/// Characters of a name or an id that are taken.
const MOST_TEXT: usize = 1_000;
/// Policies of a service.
const MOST_POLICIES: usize = 64;

/// A command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Profile segments.
    Trace(TraceTask),
    /// Profile a process.
    Ebpf(EbpfTask),
    /// Watch processes.
    Policies(Vec<ServicePolicies>),
    /// The task that a report of ours made.
    Reported {
        /// Its id.
        task: String,
    },
}

/// A trace profiling task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceTask {
    /// Its id.
    pub id: String,
    /// The operation of a segment's first span.
    pub endpoint: String,
    /// ms since 1970; it comes up to five minutes before.
    pub start_ms: u64,
    /// ms since 1970.
    pub created_ms: u64,
    /// How long segments are taken.
    pub duration: Duration,
    /// How long a segment lasts before it is of interest.
    pub threshold: Duration,
    /// Between two snapshots of what runs.
    pub dump_period: Duration,
    /// Segments at most, of each instance.
    pub segments: usize,
}

/// What an eBPF task looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Looks {
    /// Stacks on a CPU.
    OnCpu,
    /// Stacks off a CPU.
    OffCpu,
    /// The network.
    Network,
}

/// As OAP's users know it.
impl fmt::Display for Looks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OnCpu => "ON_CPU",
            Self::OffCpu => "OFF_CPU",
            Self::Network => "NETWORK",
        })
    }
}

/// An eBPF profiling task of one process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EbpfTask {
    /// Its id.
    pub id: String,
    /// The process.
    pub process: String,
    /// ms since 1970: of the newest the next question is asked.
    pub updated_ms: u64,
    /// At what.
    pub looks: Looks,
    /// ms since 1970.
    pub start_ms: u64,
    /// How long.
    pub duration: Duration,
}

/// What a service's processes are watched for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePolicies {
    /// The service.
    pub service: String,
    /// Of these policies; empty for none.
    pub uuid: String,
    /// They.
    pub policies: Vec<Policy>,
}

/// A threshold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// What is profiled when it is crossed.
    pub looks: Looks,
    /// What is watched, by OAP's name: `PROCESS_CPU`, `PROCESS_THREAD_COUNT`, `SYSTEM_LOAD`,
    /// `HTTP_ERROR_RATE`, `HTTP_AVG_RESPONSE_TIME`.
    pub item: String,
    /// The threshold, in the item's unit.
    pub threshold: u64,
    /// Seconds that are looked back.
    pub period: u64,
    /// How many of these it is crossed in.
    pub count: u64,
}

/// A command that is not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("OAP's command {command} is left out: {argument} is {found}, and has to be {wanted}")]
pub struct Refused {
    command: &'static str,
    argument: &'static str,
    found: String,
    wanted: String,
}

/// Reads a command; none if its name is not known.
///
/// # Errors
///
/// When an argument is missing or absurd.
pub fn parse(sent: &Sent) -> Result<Option<Command>, Refused> {
    let of = |command| Arguments { command, sent };
    match sent.command.as_str() {
        TRACE => trace(&of(TRACE)).map(|task| Some(Command::Trace(task))),
        EBPF => ebpf(&of(EBPF)).map(|task| Some(Command::Ebpf(task))),
        POLICIES => policies(&of(POLICIES)).map(|policies| Some(Command::Policies(policies))),
        REPORTED => of(REPORTED).text("TaskId").map(|task| Some(Command::Reported { task })),
        _ => Ok(None),
    }
}

struct Arguments<'a> {
    command: &'static str,
    sent: &'a Sent,
}

impl Arguments<'_> {
    fn refuse(&self, argument: &'static str, found: Option<&str>, wanted: String) -> Refused {
        let found = found.map_or_else(
            || "missing".to_owned(),
            |found| {
                let found: String = found.chars().take(40).collect();
                format!("{found:?}")
            },
        );
        Refused { command: self.command, argument, found, wanted }
    }

    fn find(&self, argument: &'static str) -> Option<&str> {
        let found = self.sent.args.iter().find(|pair| pair.key == argument);
        found.map(|pair| pair.value.as_str())
    }

    fn text(&self, argument: &'static str) -> Result<String, Refused> {
        match self.find(argument) {
            Some(text) if !text.is_empty() && text.chars().nth(MOST_TEXT).is_none() => Ok(text.to_owned()),
            found => Err(self.refuse(argument, found, format!("a text of 1 to {MOST_TEXT} characters"))),
        }
    }

    fn number(&self, argument: &'static str, range: &RangeInclusive<u64>) -> Result<u64, Refused> {
        let found = self.find(argument);
        found.and_then(|text| text.parse().ok()).filter(|number| range.contains(number)).ok_or_else(|| {
            self.refuse(argument, found, format!("a number from {} to {}", range.start(), range.end()))
        })
    }
}

fn trace(arguments: &Arguments<'_>) -> Result<TraceTask, Refused> {
    Ok(TraceTask {
        id: arguments.text("TaskId")?,
        endpoint: arguments.text("EndpointName")?,
        start_ms: arguments.number("StartTime", &MOMENT_MS)?,
        created_ms: arguments.number("CreateTime", &MOMENT_MS)?,
        duration: Duration::from_secs(arguments.number("Duration", &TRACE_MINUTES)? * 60),
        threshold: Duration::from_millis(arguments.number("MinDurationThreshold", &THRESHOLD_MS)?),
        dump_period: Duration::from_millis(arguments.number("DumpPeriod", &DUMP_PERIOD_MS)?),
        segments: usize::try_from(arguments.number("MaxSamplingCount", &SAMPLING)?).unwrap_or(usize::MAX),
    })
}

fn ebpf(arguments: &Arguments<'_>) -> Result<EbpfTask, Refused> {
    let target = arguments.find("TargetType");
    let looks = target
        .and_then(looks)
        .ok_or_else(|| arguments.refuse("TargetType", target, "ON_CPU, OFF_CPU or NETWORK".to_owned()))?;
    let trigger = arguments.find("TriggerType");
    if trigger != Some("FIXED_TIME") {
        return Err(arguments.refuse("TriggerType", trigger, "FIXED_TIME".to_owned()));
    }
    Ok(EbpfTask {
        id: arguments.text("TaskId")?,
        process: arguments.text("ProcessId")?,
        updated_ms: arguments.number("TaskUpdateTime", &MOMENT_MS)?,
        looks,
        start_ms: arguments.number("TaskStartTime", &MOMENT_MS)?,
        duration: Duration::from_secs(arguments.number("FixedTriggerDuration", &EBPF_SECONDS)?),
    })
}

fn looks(name: &str) -> Option<Looks> {
    match name {
        "ON_CPU" => Some(Looks::OnCpu),
        "OFF_CPU" => Some(Looks::OffCpu),
        "NETWORK" => Some(Looks::Network),
        _ => None,
    }
}

#[derive(Deserialize)]
struct PoliciesOf {
    #[serde(rename = "ServiceName")]
    service: String,
    #[serde(rename = "UUID", default)]
    uuid: String,
    #[serde(rename = "Profiling", default)]
    profiling: std::collections::BTreeMap<String, std::collections::BTreeMap<String, Limit>>,
}

#[derive(Deserialize)]
struct Limit {
    #[serde(rename = "Threshold")]
    threshold: String,
    #[serde(rename = "Period")]
    period: u64,
    #[serde(rename = "Count")]
    count: u64,
}

fn policies(arguments: &Arguments<'_>) -> Result<Vec<ServicePolicies>, Refused> {
    const ARGUMENT: &str = "ServiceWithPolicyJSON";
    let text = arguments.find(ARGUMENT);
    let parsed: Vec<PoliciesOf> = text.and_then(|text| serde_json::from_str(text).ok()).ok_or_else(|| {
        arguments.refuse(ARGUMENT, text, "a list of services with their policies".to_owned())
    })?;
    let services = parsed.into_iter().map(|PoliciesOf { service, uuid, profiling }| {
        let mut policies = Vec::new();
        for (target, items) in profiling {
            let looks = looks(&target).ok_or_else(|| {
                arguments.refuse(ARGUMENT, Some(&target), "of ON_CPU, OFF_CPU or NETWORK".to_owned())
            })?;
            for (item, Limit { threshold, period, count }) in items {
                let threshold = threshold.parse().map_err(|_| {
                    arguments.refuse(ARGUMENT, Some(&threshold), "of whole thresholds".to_owned())
                })?;
                if period == 0 || count == 0 || count > period || policies.len() >= MOST_POLICIES {
                    let found = format!("{item}: {count} of {period} s");
                    let wanted =
                        format!("of at most {MOST_POLICIES} policies, each 1 to its period's seconds");
                    return Err(arguments.refuse(ARGUMENT, Some(&found), wanted));
                }
                policies.push(Policy { looks, item, threshold, period, count });
            }
        }
        Ok(ServicePolicies { service, uuid, policies })
    });
    services.collect()
}

#[cfg(test)]
mod tests {
    use proto::skywalking::KeyStringValuePair;

    use super::*;

    fn command(name: &str, arguments: &[(&str, &str)]) -> Sent {
        let pair = |(key, value): &(&str, &str)| KeyStringValuePair {
            key: (*key).to_owned(),
            value: (*value).to_owned(),
        };
        Sent { command: name.to_owned(), args: arguments.iter().map(pair).collect() }
    }

    /// As OAP 10.1.0 sent them.
    const TRACE_TASK: [(&str, &str); 9] = [
        ("SerialNumber", "00c5b1f8-4b5b-4c36-8c28-54a0d0f64a4f"),
        ("TaskId", "1795366184393_c3ZjMg==.1"),
        ("EndpointName", "/slow"),
        ("Duration", "1"),
        ("MinDurationThreshold", "0"),
        ("DumpPeriod", "10"),
        ("MaxSamplingCount", "5"),
        ("StartTime", "1795366184393"),
        ("CreateTime", "1795366184393"),
    ];
    const EBPF_TASK: [(&str, &str); 9] = [
        ("SerialNumber", "00c5b1f8-4b5b-4c36-8c28-54a0d0f64a4f"),
        ("TaskId", "ab12"),
        ("ProcessId", "cd34"),
        ("TaskUpdateTime", "1795366630378"),
        ("TriggerType", "FIXED_TIME"),
        ("TargetType", "OFF_CPU"),
        ("TaskStartTime", "1795366630378"),
        ("ExtensionConfigJSON", "null"),
        ("FixedTriggerDuration", "60"),
    ];

    fn with(
        arguments: &[(&'static str, &'static str)],
        key: &str,
        value: Option<&'static str>,
    ) -> Vec<(&'static str, &'static str)> {
        let others = arguments.iter().filter(|(name, _)| *name != key).copied();
        let changed = arguments.iter().filter(|(name, _)| *name == key);
        others.chain(changed.filter_map(|(name, _)| Some((*name, value?)))).collect()
    }

    #[test]
    fn a_trace_task() {
        let Ok(Some(Command::Trace(task))) = parse(&command(TRACE, &TRACE_TASK)) else {
            panic!("no task");
        };
        assert_eq!((task.endpoint.as_str(), task.segments), ("/slow", 5));
        assert_eq!(task.duration, Duration::from_secs(60));
        assert_eq!((task.dump_period, task.threshold), (Duration::from_millis(10), Duration::ZERO));
        assert_eq!(task.start_ms, 1_795_366_184_393);
    }

    #[test]
    fn an_ebpf_task() {
        let Ok(Some(Command::Ebpf(task))) = parse(&command(EBPF, &EBPF_TASK)) else {
            panic!("no task");
        };
        assert_eq!((task.looks, task.process.as_str()), (Looks::OffCpu, "cd34"));
        assert_eq!(task.duration, Duration::from_secs(60));
    }

    #[test]
    fn a_command_that_is_not_known_is_none() {
        assert_eq!(parse(&command("AsyncProfilerTaskQuery", &[])), Ok(None));
    }

    #[test]
    fn what_is_missing_or_absurd_is_refused_in_one_line() {
        let absurd = [
            ("Duration", Some("1000000000")),
            ("Duration", Some("-1")),
            ("DumpPeriod", Some("0")),
            ("EndpointName", Some("")),
            ("EndpointName", None),
            ("MaxSamplingCount", Some("10")),
            ("StartTime", Some("0")),
            ("StartTime", Some("99999999999999999999")),
            ("MinDurationThreshold", Some("x")),
        ];
        for (key, value) in absurd {
            let refused = parse(&command(TRACE, &with(&TRACE_TASK, key, value))).unwrap_err().to_string();
            assert!(refused.contains(key) && !refused.contains('\n'), "{refused}");
        }
        for (key, value) in [
            ("TargetType", Some("GPU")),
            ("TriggerType", Some("CONTINUOUS_PROFILING")),
            ("FixedTriggerDuration", Some("1000000000")),
            ("ProcessId", None),
        ] {
            let refused = parse(&command(EBPF, &with(&EBPF_TASK, key, value))).unwrap_err().to_string();
            assert!(refused.contains(key), "{refused}");
        }
    }

    #[test]
    fn policies_of_services() {
        let text = r#"[{"ServiceName":"svc","UUID":"ab","Profiling":{"ON_CPU":{"PROCESS_CPU":{"Threshold":"50","Period":10,"Count":3}}}},{"ServiceName":"none","UUID":""}]"#;
        let Ok(Some(Command::Policies(services))) =
            parse(&command(POLICIES, &[("ServiceWithPolicyJSON", text)]))
        else {
            panic!("no policies");
        };
        let cpu = Policy {
            looks: Looks::OnCpu,
            item: "PROCESS_CPU".to_owned(),
            threshold: 50,
            period: 10,
            count: 3,
        };
        let of = |name: &str, uuid: &str, policies| ServicePolicies {
            service: name.to_owned(),
            uuid: uuid.to_owned(),
            policies,
        };
        assert_eq!(services, [of("svc", "ab", vec![cpu]), of("none", "", Vec::new())]);
        for broken in [
            "",
            "{}",
            r#"[{"ServiceName":"s","Profiling":{"ON_CPU":{"X":{"Threshold":"5","Period":1,"Count":9}}}}]"#,
        ] {
            assert!(parse(&command(POLICIES, &[("ServiceWithPolicyJSON", broken)])).is_err());
        }
    }
}
