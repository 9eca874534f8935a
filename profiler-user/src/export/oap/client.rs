//! The backend: every call that we make to it, over whichever of its addresses answers.
//!
//! A [`Backend`] is cheap to clone, and its calls may be under way at the same time. It connects
//! when it is called, and goes on to the next address when one fails. After a failure it leaves
//! the backend alone for a while: a call in that pause fails at once ([`Kind::Paused`]).

use std::{
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use proto::skywalking::{
    Commands, ContinuousProfilingPolicyQuery, ContinuousProfilingReport, EbpfProcessPingPkgList,
    EbpfProcessReportList, EbpfProfilingData, EbpfProfilingTaskQuery, EbpfReportProcessDownstream,
    InstancePingPkg, InstanceProperties, ProfileTaskCommandQuery, ProfileTaskFinishReport, SpanAttachedEvent,
    ThreadSnapshot, continuous_profiling_service_client::ContinuousProfilingServiceClient,
    ebpf_process_service_client::EbpfProcessServiceClient,
    ebpf_profiling_service_client::EbpfProfilingServiceClient,
    management_service_client::ManagementServiceClient, profile_task_client::ProfileTaskClient,
    span_attached_event_report_service_client::SpanAttachedEventReportServiceClient,
};
use tokio::time::{Instant, sleep_until, timeout};
use tonic::{Response, Status};

use super::{
    backoff::Backoff,
    config::{Config, ConfigError},
    failure::{Failure, Fate, Kind},
    tls,
    wire::Link,
};

/// A service and an agent that nobody has: what is asked about them is empty.
pub(super) const NOBODY: &str = "greenscope-check";

/// The trace tasks of that service.
pub(super) fn nobodys_trace_tasks() -> ProfileTaskCommandQuery {
    let nobody = || NOBODY.to_owned();
    ProfileTaskCommandQuery { service: nobody(), service_instance: nobody(), last_command_time: 0 }
}

/// The eBPF tasks of that agent.
pub(super) fn nobodys_ebpf_tasks() -> EbpfProfilingTaskQuery {
    EbpfProfilingTaskQuery { rover_instance_id: NOBODY.to_owned(), latest_update_time: 0 }
}

/// The backend.
#[derive(Clone, Debug)]
pub struct Backend(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: Config,
    state: Mutex<State>,
    /// One connects, the others wait for it.
    connecting: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct State {
    link: Option<(u64, Link)>,
    /// Which address is next.
    next: usize,
    /// Calls that failed since the last that worked.
    failures: usize,
    backoff: Backoff,
    pause_ends: Option<Instant>,
    /// The connection over which OAP answered, and nothing failed since.
    proven: Option<u64>,
    health: Health,
}

/// How it stands, for who looks on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Where we are connected.
    pub connected: Option<String>,
    /// Connections made so far. When it grows, whoever is there now may not know us: register
    /// again.
    pub connections: u64,
    /// Calls that worked.
    pub answered: u64,
    /// Calls that did not, but for those in a pause.
    pub failed: u64,
    /// Why the last did not; None when it worked.
    pub failure: Option<Failure>,
}

impl Backend {
    /// Not connected yet. `seed` is for the pauses: any number that others have not.
    ///
    /// # Errors
    ///
    /// A file of TLS that can't be used.
    pub fn new(config: Config, seed: u64) -> Result<Self, ConfigError> {
        if let Some(tls) = &config.tls {
            let _usable = tls::client(tls)?;
        }
        let state = State {
            link: None,
            next: 0,
            failures: 0,
            backoff: Backoff::new(seed),
            pause_ends: None,
            proven: None,
            health: Health::default(),
        };
        let connecting = tokio::sync::Mutex::new(());
        Ok(Self(Arc::new(Inner { config, state: Mutex::new(state), connecting })))
    }

    /// What it was made of.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.0.config
    }

    /// How it stands.
    #[must_use]
    pub fn health(&self) -> Health {
        let state = self.state();
        let open = state.link.as_ref().filter(|(_, link)| link.is_open());
        Health { connected: open.map(|(_, link)| link.address.clone()), ..state.health.clone() }
    }

    /// How long the pause after the last failure still is.
    #[must_use]
    pub fn pause(&self) -> Option<Duration> {
        let left = self.state().pause_ends?.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }

    /// Waits until that is over.
    pub async fn paused(&self) {
        // It may have been made longer meanwhile.
        while self.pause().is_some() {
            let ends = self.state().pause_ends;
            if let Some(ends) = ends {
                sleep_until(ends).await;
            }
        }
    }

    /// Connects, if we are not connected.
    ///
    /// # Errors
    ///
    /// When no address can be connected to, or the pause is not over.
    pub async fn connect(&self) -> Result<(), Failure> {
        self.link().await.map(drop)
    }

    /// Connects, and has OAP answer something that changes nothing, if it has not yet over this
    /// connection: before that, who is there may be a proxy, or another service, and would spend
    /// what is sent.
    ///
    /// # Errors
    ///
    /// When it does not answer.
    pub async fn prove(&self) -> Result<(), Failure> {
        let (number, _) = self.link().await?;
        if self.state().proven == Some(number) {
            return Ok(());
        }
        match self.trace_tasks(nobodys_trace_tasks()).await {
            Err(failure) if failure.kind == Kind::Unimplemented => {
                self.ebpf_tasks(nobodys_ebpf_tasks()).await.map(drop)
            }
            answer => answer.map(drop),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self) -> Option<(u64, Link)> {
        self.state().link.clone().filter(|(_, link)| link.is_open())
    }

    async fn link(&self) -> Result<(u64, Link), Failure> {
        let refused = |left: Duration, last: Option<Failure>| {
            let why = last.map_or_else(String::new, |last| format!(" after: {last}"));
            let seconds = left.as_secs_f64();
            Failure::new(Fate::Retry, Kind::Paused, format!("tried again in {seconds:.1} s{why}"))
        };
        let paused = || self.pause().map(|left| refused(left, self.state().health.failure.clone()));
        if let Some(failure) = paused() {
            return Err(failure);
        }
        if let Some(open) = self.open() {
            return Ok(open);
        }
        let _one = self.0.connecting.lock().await;
        if let Some(failure) = paused() {
            return Err(failure);
        }
        if let Some(open) = self.open() {
            return Ok(open);
        }
        self.dial().await
    }

    /// Tries each address once.
    async fn dial(&self) -> Result<(u64, Link), Failure> {
        let addresses = &self.0.config.addresses;
        let first = self.state().next;
        let mut failures: Vec<Failure> = Vec::new();
        for at in (0..addresses.len()).map(|step| first.wrapping_add(step) % addresses.len()) {
            let Some(address) = addresses.get(at) else { continue };
            match Link::dial(&self.0.config, address).await {
                Ok(link) => {
                    let mut state = self.state();
                    state.next = at;
                    state.health.connections += 1;
                    let open = (state.health.connections, link);
                    state.link = Some(open.clone());
                    return Ok(open);
                }
                Err(failure) => failures.push(failure),
            }
        }
        let text: Vec<&str> = failures.iter().map(|failure| failure.text.as_str()).collect();
        let kind = failures.first().map_or(Kind::Unreachable, |failure| failure.kind);
        let failure = Failure::new(Fate::Retry, kind, text.join("; "));
        let mut state = self.state();
        state.note(&failure);
        state.rest(false);
        Err(failure)
    }

    /// Makes a call.
    async fn call<A, F>(
        &self,
        name: &str,
        deadline: Duration,
        call: impl FnOnce(Link) -> F,
    ) -> Result<A, Failure>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let (number, link) = self.link().await?;
        let (address, seen) = (link.address.clone(), link.seen.clone());
        let failure = match timeout(deadline, call(link)).await {
            Ok(Ok(answer)) => {
                self.state().worked(number);
                return Ok(answer.into_inner());
            }
            Ok(Err(status)) => Failure::of(name, &address, &status, &seen),
            Err(_) => Failure::late(name, &address, deadline.as_secs_f64(), &seen),
        };
        self.state().failed(number, &failure, self.0.config.addresses.len());
        Err(failure)
    }
}

impl State {
    fn worked(&mut self, number: u64) {
        self.proven = Some(number);
        self.health.answered += 1;
        self.health.failure = None;
        self.alive();
    }

    fn alive(&mut self) {
        self.failures = 0;
        self.backoff.succeeded();
        self.pause_ends = None;
    }

    fn note(&mut self, failure: &Failure) {
        self.health.failed += 1;
        self.health.failure = Some(failure.clone());
    }

    fn rest(&mut self, busy: bool) {
        let pause = self.backoff.failed(busy);
        self.pause_ends = Instant::now().checked_add(pause);
    }

    /// A call over connection `number` failed.
    fn failed(&mut self, number: u64, failure: &Failure, addresses: usize) {
        self.note(failure);
        if !failure.is_the_backends() {
            // It heard us and has said so.
            self.alive();
            return;
        }
        let current = self.link.as_ref().is_some_and(|(now, _)| *now == number);
        if !current && self.link.is_some() {
            // Of a connection that is not used any more: it tells nothing of the one that is.
            return;
        }
        self.proven = None;
        if failure.kind != Kind::Token {
            // What is under way over it goes on; new calls go to the next address.
            self.link = None;
            self.next = self.next.wrapping_add(1);
        }
        self.failures += 1;
        if self.failures >= addresses {
            self.rest(failure.kind == Kind::Busy);
        }
    }
}

/// A call of one message.
macro_rules! unary {
    ($(#[$what:meta])* $name:ident, $client:ident :: $method:ident, $called:literal, $request:ty => $answer:ty) => {
        $(#[$what])*
        ///
        /// # Errors
        ///
        /// Why not, and whether it may have arrived.
        pub async fn $name(&self, request: $request) -> Result<$answer, Failure> {
            let call = |link| async move { $client::new(link).$method(request).await };
            self.call($called, self.0.config.deadlines.call, call).await
        }
    };
}

/// A call of many messages, which are sent whole.
macro_rules! upload {
    ($(#[$what:meta])* $name:ident, $client:ident :: $method:ident, $called:literal, $request:ty) => {
        $(#[$what])*
        ///
        /// # Errors
        ///
        /// Why not, and whether it may have arrived.
        pub async fn $name(&self, messages: Vec<$request>) -> Result<Commands, Failure> {
            let call = |link| async move { $client::new(link).$method(tokio_stream::iter(messages)).await };
            self.call($called, self.0.config.deadlines.upload, call).await
        }
    };
}

impl Backend {
    unary! {
        /// Asks for trace tasks.
        trace_tasks, ProfileTaskClient::get_profile_task_commands, "getProfileTaskCommands",
        ProfileTaskCommandQuery => Commands
    }
    unary! {
        /// Says that a trace task is over.
        trace_task_finished, ProfileTaskClient::report_task_finish, "reportTaskFinish",
        ProfileTaskFinishReport => Commands
    }
    upload! {
        /// Sends snapshots of trace tasks.
        upload_snapshots, ProfileTaskClient::collect_snapshot, "collectSnapshot", ThreadSnapshot
    }
    unary! {
        /// Registers processes.
        report_processes, EbpfProcessServiceClient::report_processes, "reportProcesses",
        EbpfProcessReportList => EbpfReportProcessDownstream
    }
    unary! {
        /// Says that processes are still there.
        keep_processes_alive, EbpfProcessServiceClient::keep_alive, "EBPFProcessService/keepAlive",
        EbpfProcessPingPkgList => Commands
    }
    unary! {
        /// Asks for eBPF tasks.
        ebpf_tasks, EbpfProfilingServiceClient::query_tasks, "queryTasks", EbpfProfilingTaskQuery => Commands
    }
    upload! {
        /// Sends what eBPF tasks found.
        upload_profiling_data, EbpfProfilingServiceClient::collect_profiling_data, "collectProfilingData",
        EbpfProfilingData
    }
    unary! {
        /// Asks what to watch.
        policies, ContinuousProfilingServiceClient::query_policies, "queryPolicies",
        ContinuousProfilingPolicyQuery => Commands
    }
    unary! {
        /// Asks for a task because something that is watched was exceeded. Twice makes two.
        report_profiling_task, ContinuousProfilingServiceClient::report_profiling_task,
        "reportProfilingTask", ContinuousProfilingReport => Commands
    }
    unary! {
        /// Says what an instance is.
        report_instance, ManagementServiceClient::report_instance_properties, "reportInstanceProperties",
        InstanceProperties => Commands
    }
    unary! {
        /// Says that an instance is still there.
        keep_instance_alive, ManagementServiceClient::keep_alive, "ManagementService/keepAlive",
        InstancePingPkg => Commands
    }
    upload! {
        /// Sends events of spans.
        upload_span_events, SpanAttachedEventReportServiceClient::collect, "SpanAttachedEventReportService/collect",
        SpanAttachedEvent
    }
}
