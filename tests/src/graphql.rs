//! What a user sees of an OAP: its answers to the queries of its pages.
//!
//! The queries are those of <https://github.com/apache/skywalking-query-protocol>.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// OAP's endpoint for queries.
#[derive(Clone, Debug)]
pub struct Graphql {
    url: String,
    agent: ureq::Agent,
}

/// A task of trace profiling.
#[derive(Clone, Debug, Deserialize)]
pub struct TraceTask {
    /// Its id.
    pub id: String,
    /// What instances said of it.
    pub logs: Vec<TaskLog>,
}

/// What an instance said of a task.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct TaskLog {
    /// Which.
    pub instance_name: String,
    /// `NOTIFIED` or `EXECUTION_FINISHED`.
    pub operation_type: String,
}

/// A segment that was profiled.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Segment {
    /// Of which instance.
    pub instance_name: String,
    /// What it served.
    pub endpoint_names: Vec<String>,
    /// Its spans.
    pub spans: Vec<Span>,
}

/// A span.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Span {
    /// Its segment.
    pub segment_id: String,
    /// ms since 1970.
    pub start_time: u64,
    /// ms since 1970.
    pub end_time: u64,
    /// Snapshots were taken in it.
    #[serde(default)]
    pub profiled: bool,
    /// Its number in the segment.
    pub span_id: i64,
    /// What it served.
    pub endpoint_name: Option<String>,
    /// What was attached to it.
    #[serde(default)]
    pub attached_events: Vec<Attached>,
}

/// What was attached to a span.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attached {
    /// What happened.
    pub event: String,
    /// From when on.
    pub start_time: Moment,
    /// Until when.
    pub end_time: Moment,
    /// What is known of it.
    pub tags: Vec<Tag>,
}

/// A moment.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Moment {
    seconds: u64,
    nanos: u64,
}

impl Moment {
    /// ns since 1970.
    pub fn ns(self) -> u64 {
        self.seconds * 1_000_000_000 + self.nanos
    }
}

/// A name and its text.
#[derive(Clone, Debug, Deserialize)]
pub struct Tag {
    /// The name.
    pub key: String,
    /// The text.
    pub value: String,
}

/// A line of a tree of a segment.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Line {
    /// `FILE.FUNCTION: LINE`.
    pub code_signature: String,
    /// ms.
    pub duration: u64,
}

/// A schedule of an eBPF task: what one process did for it.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Schedule {
    /// Its id.
    pub schedule_id: String,
    /// ms since 1970.
    pub start_time: u64,
    /// ms since 1970.
    pub end_time: u64,
    /// By whom.
    pub process: Process,
}

/// A process.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Process {
    /// Its name.
    pub name: String,
    /// Its instance.
    pub instance_name: String,
}

/// A line of a tree of an eBPF task.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Element {
    /// Its number.
    pub id: String,
    /// That of the line above.
    pub parent_id: String,
    /// The function.
    pub symbol: String,
    /// Counts, or ns.
    pub dump_count: u64,
}

impl Graphql {
    pub(crate) fn new(port: u16) -> Self {
        let config = ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).build();
        Self { url: format!("http://127.0.0.1:{port}/graphql"), agent: config.into() }
    }

    /// Asks, and takes the field of that name.
    fn ask<T: DeserializeOwned>(&self, field: &str, query: &str, variables: &Value) -> Result<T> {
        let body = json!({"query": query, "variables": variables}).to_string();
        let mut answer =
            self.agent.post(&self.url).content_type("application/json").send(body).context("asking OAP")?;
        let text = answer.body_mut().read_to_string()?;
        let mut answer: Value = serde_json::from_str(&text)?;
        if let Some(errors) = answer.get("errors").filter(|errors| !errors.is_null()) {
            bail!("OAP can't answer {query}: {errors}");
        }
        let data = answer.get_mut("data").and_then(|data| data.get_mut(field)).map(Value::take);
        serde_json::from_value(data.context("no data")?).with_context(|| format!("{query}: {text}"))
    }

    /// OAP's version.
    ///
    /// # Errors
    ///
    /// When it does not answer.
    pub fn version(&self) -> Result<String> {
        self.ask("version", "{version}", &json!({}))
    }

    /// The services' names.
    ///
    /// # Errors
    ///
    /// When it does not answer.
    pub fn services(&self) -> Result<Vec<String>> {
        let services: Vec<Value> =
            self.ask("listServices", "{ listServices(layer:\"GENERAL\"){ name } }", &json!({}))?;
        Ok(services.iter().filter_map(|service| Some(service.get("name")?.as_str()?.to_owned())).collect())
    }

    /// Makes a task of trace profiling.
    ///
    /// # Errors
    ///
    /// OAP's reason why not.
    pub fn create_trace_task(&self, service: &str, endpoint: &str, segments: u32) -> Result<String> {
        let query = "mutation($c:ProfileTaskCreationRequest){ \
                     createProfileTask(creationRequest:$c){ id errorReason } }";
        let request = json!({"c": {
            "serviceId": service_id(service), "endpointName": endpoint, "duration": 1,
            "minDurationThreshold": 0, "dumpPeriod": 10, "maxSamplingCount": segments,
        }});
        let made: Value = self.ask("createProfileTask", query, &request)?;
        let id = made.get("id").and_then(Value::as_str);
        Ok(id.with_context(|| format!("no task: {made}"))?.to_owned())
    }

    /// A service's tasks of trace profiling.
    ///
    /// # Errors
    ///
    /// When it does not answer.
    pub fn trace_tasks(&self, service: &str) -> Result<Vec<TraceTask>> {
        let query =
            "query($s:ID){ getProfileTaskList(serviceId:$s){ id logs{ instanceName operationType } } }";
        self.ask("getProfileTaskList", query, &json!({"s": service_id(service)}))
    }

    /// The segments of a task.
    ///
    /// # Errors
    ///
    /// When it does not answer.
    pub fn segments(&self, task: &str) -> Result<Vec<Segment>> {
        let query = "query($t:ID!){ getProfileTaskSegments(taskID:$t){ instanceName endpointNames \
                     spans{ spanId segmentId startTime endTime endpointName profiled } } }";
        self.ask("getProfileTaskSegments", query, &json!({"t": task}))
    }

    /// A segment by itself: the lines of its trees.
    ///
    /// # Errors
    ///
    /// When it does not answer, or has a reservation.
    pub fn analyse(&self, span: &Span) -> Result<Vec<Line>> {
        let query = "query($q:[SegmentProfileAnalyzeQuery!]!){ getSegmentsProfileAnalyze(queries:$q){ \
                     tip trees{ elements{ codeSignature duration } } } }";
        let range = json!({"start": span.start_time, "end": span.end_time});
        let variables = json!({"q": [{"segmentId": span.segment_id, "timeRange": range}]});
        self.trees("getSegmentsProfileAnalyze", query, &variables)
    }

    fn trees<T: DeserializeOwned>(&self, field: &str, query: &str, variables: &Value) -> Result<Vec<T>> {
        #[derive(Deserialize)]
        struct Analysis<T> {
            tip: Option<String>,
            trees: Vec<Tree<T>>,
        }
        #[derive(Deserialize)]
        struct Tree<T> {
            elements: Vec<T>,
        }
        let Analysis { tip, trees } = self.ask::<Analysis<T>>(field, query, variables)?;
        if let Some(tip) = tip {
            bail!("OAP has a reservation: {tip}");
        }
        Ok(trees.into_iter().flat_map(|tree| tree.elements).collect())
    }

    /// Whether an eBPF task can be made for a service.
    ///
    /// # Errors
    ///
    /// When it does not answer.
    pub fn can_profile(&self, service: &str) -> Result<bool> {
        let query =
            "query($s:ID!){ queryPrepareCreateEBPFProfilingTaskData(serviceId:$s){ couldProfiling } }";
        let found: Value =
            self.ask("queryPrepareCreateEBPFProfilingTaskData", query, &json!({"s": service_id(service)}))?;
        Ok(found.get("couldProfiling") == Some(&Value::Bool(true)))
    }

    /// Makes an eBPF task that lasts so long, a minute at least.
    ///
    /// # Errors
    ///
    /// OAP's reason why not.
    pub fn create_ebpf_task(&self, service: &str, target: &str, duration: Duration) -> Result<String> {
        let query = "mutation($r:EBPFProfilingTaskFixedTimeCreationRequest!){ \
                     createEBPFProfilingFixedTimeTask(request:$r){ status errorReason id } }";
        let request = json!({"r": {
            "serviceId": service_id(service), "processLabels": [], "startTime": 0,
            "duration": duration.as_secs(), "targetType": target,
        }});
        let made: Value = self.ask("createEBPFProfilingFixedTimeTask", query, &request)?;
        let id = made.get("id").and_then(Value::as_str);
        Ok(id.with_context(|| format!("no task: {made}"))?.to_owned())
    }

    /// The ids of a service's eBPF tasks that a policy triggered, and what for.
    ///
    /// # Errors
    ///
    /// When it does not answer.
    pub fn triggered_tasks(&self, service: &str) -> Result<Vec<(String, String)>> {
        let query = "query($s:ID){ queryEBPFProfilingTasks(serviceId:$s,targets:[ON_CPU,OFF_CPU],\
                     triggerType:CONTINUOUS_PROFILING){ taskId continuousProfilingCauses{ type message } } }";
        let found: Vec<Value> =
            self.ask("queryEBPFProfilingTasks", query, &json!({"s": service_id(service)}))?;
        let of = |task: &Value| {
            let causes = task.get("continuousProfilingCauses")?.to_string();
            Some((task.get("taskId")?.as_str()?.to_owned(), causes))
        };
        Ok(found.iter().filter_map(of).collect())
    }

    /// The schedules of an eBPF task.
    ///
    /// # Errors
    ///
    /// When it does not answer.
    pub fn schedules(&self, task: &str) -> Result<Vec<Schedule>> {
        let query = "query($t:ID!){ queryEBPFProfilingSchedules(taskId:$t){ scheduleId startTime endTime \
                     process{ name instanceName } } }";
        self.ask("queryEBPFProfilingSchedules", query, &json!({"t": task}))
    }

    /// The trees of a schedule, by `COUNT` or `DURATION`.
    ///
    /// # Errors
    ///
    /// When it does not answer, or has a reservation.
    pub fn analyse_schedule(&self, schedule: &Schedule, by: &str) -> Result<Vec<Element>> {
        let query = "query($s:[ID!]!,$r:[EBPFProfilingAnalyzeTimeRange!]!,\
                     $a:EBPFProfilingAnalyzeAggregateType){ \
                     analysisEBPFProfilingResult(scheduleIdList:$s,timeRanges:$r,aggregateType:$a){ \
                     tip trees{ elements{ id parentId symbol dumpCount } } } }";
        // No upload that came after the schedule was read.
        let range = json!({"start": schedule.start_time, "end": schedule.end_time + 1});
        let variables = json!({"s": [schedule.schedule_id], "r": [range], "a": by});
        self.trees("analysisEBPFProfilingResult", query, &variables)
    }

    /// Has a service's processes watched: a task for each target when its item is over a threshold
    /// in 3 of 10 seconds.
    ///
    /// # Errors
    ///
    /// OAP's reason why not.
    pub fn set_policies(&self, service: &str, policies: &[(&str, &str, u32)]) -> Result<()> {
        let query = "mutation($r:ContinuousProfilingPolicyCreation!){ \
                     setContinuousProfilingPolicy(request:$r){ status errorReason } }";
        let target = |(target, item, threshold): &(&str, &str, u32)| {
            let item = json!({"type": item, "threshold": threshold.to_string(), "period": 10, "count": 3});
            json!({"targetType": target, "checkItems": [item]})
        };
        let targets: Vec<Value> = policies.iter().map(target).collect();
        let request = json!({"r": {"serviceId": service_id(service), "targets": targets}});
        let set: Value = self.ask("setContinuousProfilingPolicy", query, &request)?;
        if set.get("status") != Some(&Value::Bool(true)) {
            bail!("no policy: {set}");
        }
        Ok(())
    }

    /// The spans of a trace, with what is attached to them.
    ///
    /// # Errors
    ///
    /// When it does not answer.
    pub fn trace(&self, trace: &str) -> Result<Vec<Span>> {
        let query = "query($t:ID!){ queryTrace(traceId:$t){ spans{ spanId segmentId startTime endTime \
                     endpointName attachedEvents{ event startTime{seconds nanos} endTime{seconds nanos} \
                     tags{key value} } } } }";
        #[derive(Deserialize)]
        struct Trace {
            spans: Vec<Span>,
        }
        Ok(self.ask::<Trace>("queryTrace", query, &json!({"t": trace}))?.spans)
    }
}

/// As OAP makes it (`IDManager.ServiceID`).
fn service_id(service: &str) -> String {
    format!("{}.1", STANDARD.encode(service))
}
