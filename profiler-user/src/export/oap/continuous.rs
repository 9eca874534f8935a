//! Continuous profiling: what OAP wants watched, and what crossed its thresholds.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use proto::skywalking::{
    ContinuousOffCpuProfilingTask, ContinuousOnCpuProfilingTask, ContinuousProfilingCause,
    ContinuousProfilingPolicyQuery, ContinuousProfilingReport, ContinuousProfilingServicePolicyQuery,
    ContinuousProfilingSingleValueCause, ContinuousProfilingTriggeredMonitorType as Monitor,
    continuous_profiling_cause::Cause, continuous_profiling_report::TargetTask,
};
use rustc_hash::{FxHashMap, FxHashSet};

use super::{
    commands::{Looks, Policy, ServicePolicies},
    identity::Identity,
    wall_clock::{NS_PER_S, nanoseconds},
};

/// How long a task lasts that we ask for: as long as the shortest that a user can.
pub const TASK: Duration = Duration::from_secs(60);
/// After the begin of one no other of its kind is asked for, for that process: Rover's
/// `ROVER_CONTINUOUS_PROFILING_TRIGGER_SILENCE_DURATION`.
const SILENCE: Duration = Duration::from_secs(20 * 60);
/// By OAP's name: ms that a request takes, on average.
const RESPONSE_TIME: &str = "HTTP_AVG_RESPONSE_TIME";
/// Seconds that are looked back at most.
const MOST_PERIOD: u64 = 3_600;

/// What a process, or its system, is at.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Gauges {
    /// Of one CPU, percent.
    pub cpu_percent: Option<f64>,
    /// Threads.
    pub threads: Option<f64>,
    /// Of the system, over the last minute.
    pub load: Option<f64>,
    /// Of the requests that ended since the last look, ms on average.
    pub response_ms: Option<f64>,
}

/// The policies of all services, and how the processes stand to them.
#[derive(Debug, Default)]
pub struct Continuous {
    services: BTreeMap<String, ServicePolicies>,
    /// By process and what is watched: when it was looked at, and what it was.
    seen: FxHashMap<(u32, String), VecDeque<(u64, f64)>>,
    silent_until_ns: FxHashMap<(u32, Looks), u64>,
    /// What was said to be left out.
    refused: FxHashSet<String>,
}

impl Continuous {
    /// The question for the policies of these services.
    #[must_use]
    pub fn question(&self, services: &[&str]) -> ContinuousProfilingPolicyQuery {
        let of = |service: &&str| ContinuousProfilingServicePolicyQuery {
            service_name: (*service).to_owned(),
            uuid: self.services.get(*service).map(|known| known.uuid.clone()).unwrap_or_default(),
        };
        ContinuousProfilingPolicyQuery { policies: services.iter().map(of).collect() }
    }

    /// Takes what OAP answered: services whose policies are others than we said. Returns
    /// what of it is left out, each once.
    pub fn take(&mut self, answered: Vec<ServicePolicies>) -> Vec<String> {
        let mut left_out = Vec::new();
        for service in answered {
            for policy in &service.policies {
                let unknown = monitor(&policy.item).is_none() || policy.looks == Looks::Network;
                if unknown && self.refused.insert(policy.item.clone()) {
                    left_out.push(format!(
                        "OAP's continuous profiling by {} is left out: greenscope watches PROCESS_CPU, \
                         PROCESS_THREAD_COUNT, SYSTEM_LOAD and HTTP_AVG_RESPONSE_TIME, and profiles ON_CPU \
                         and OFF_CPU",
                        policy.item
                    ));
                }
            }
            self.services.insert(service.service.clone(), service);
        }
        self.seen.retain(|(_, item), _| {
            let mut policies = self.services.values().flat_map(|service| &service.policies);
            policies.any(|policy| policy.item == *item)
        });
        left_out
    }

    /// Whether processes of a service are to be looked at.
    #[must_use]
    pub fn watches(&self, service: &str) -> bool {
        self.services.get(service).is_some_and(|known| !known.policies.is_empty())
    }

    /// Whether how long requests take is to be looked at.
    #[must_use]
    pub fn watches_responses(&self, service: &str) -> bool {
        let policies = self.services.get(service).into_iter().flat_map(|known| &known.policies);
        policies.into_iter().any(|policy| policy.item == RESPONSE_TIME)
    }

    /// A process is gone.
    pub fn remove(&mut self, pid: u32) {
        self.seen.retain(|(of, _), _| *of != pid);
        self.silent_until_ns.retain(|(of, _), _| *of != pid);
    }

    /// A look at a process, about once a second; what OAP is to be asked for, if a threshold
    /// was crossed often enough.
    pub fn look(
        &mut self,
        pid: u32,
        identity: &Identity,
        gauges: &Gauges,
        now_ns: u64,
    ) -> Option<ContinuousProfilingReport> {
        let policies = self.services.get(&identity.service)?.policies.clone();
        let longest = |item: &str| {
            let periods = policies.iter().filter(|policy| policy.item == item).map(|policy| policy.period);
            periods.max().unwrap_or(0).min(MOST_PERIOD)
        };
        let mut report = None;
        for policy in &policies {
            let Some((monitor, current)) = monitor(&policy.item).zip(gauge(&policy.item, gauges)) else {
                continue;
            };
            let threshold = policy.threshold as f64;
            if !self.is_crossed(pid, policy, longest(&policy.item), current, now_ns) || report.is_some() {
                continue;
            }
            let target_task = match policy.looks {
                Looks::OnCpu => TargetTask::OnCpu(ContinuousOnCpuProfilingTask {}),
                Looks::OffCpu => TargetTask::OffCpu(ContinuousOffCpuProfilingTask {}),
                Looks::Network => continue,
            };
            let silent_until_ns = self.silent_until_ns.entry((pid, policy.looks)).or_default();
            if now_ns < *silent_until_ns {
                continue;
            }
            *silent_until_ns = now_ns.saturating_add(nanoseconds(SILENCE));
            let Identity { layer, service, instance, process, rule: _ } = identity;
            report = Some(ContinuousProfilingReport {
                layer: layer.clone(),
                service_name: service.clone(),
                instance_name: instance.clone(),
                process_name: process.clone(),
                causes: vec![ContinuousProfilingCause {
                    r#type: monitor.into(),
                    cause: Some(Cause::SingleValue(ContinuousProfilingSingleValueCause {
                        threshold,
                        current,
                    })),
                }],
                duration: i32::try_from(TASK.as_secs()).unwrap_or(i32::MAX),
                target_task: Some(target_task),
            });
        }
        report
    }

    /// OAP was not reached.
    pub fn not_heard(&mut self, pid: u32, looks: Looks) {
        self.silent_until_ns.remove(&(pid, looks));
    }

    /// Whether it was too much `count` times in the last `period` seconds.
    fn is_crossed(&mut self, pid: u32, policy: &Policy, longest: u64, current: f64, now_ns: u64) -> bool {
        let before = |seconds: u64| now_ns.saturating_sub(seconds * NS_PER_S);
        let seen = self.seen.entry((pid, policy.item.clone())).or_default();
        // Policies of one item for two targets look at the same numbers.
        if seen.back().is_none_or(|(at, _)| *at < now_ns) {
            seen.push_back((now_ns, current));
        }
        while seen.front().is_some_and(|(at, _)| *at < before(longest)) || seen.len() as u64 > MOST_PERIOD {
            seen.pop_front();
        }
        let from_ns = before(policy.period.min(MOST_PERIOD));
        let crossed = |(at, value): &&(u64, f64)| *at >= from_ns && *value >= policy.threshold as f64;
        seen.iter().filter(crossed).count() as u64 >= policy.count
    }
}

fn monitor(item: &str) -> Option<Monitor> {
    match item {
        "PROCESS_CPU" => Some(Monitor::ProcessCpu),
        "PROCESS_THREAD_COUNT" => Some(Monitor::ProcessThreadCount),
        "SYSTEM_LOAD" => Some(Monitor::SystemLoad),
        RESPONSE_TIME => Some(Monitor::HttpAvgResponseTime),
        _ => None,
    }
}

fn gauge(item: &str, gauges: &Gauges) -> Option<f64> {
    match item {
        "PROCESS_CPU" => gauges.cpu_percent,
        "PROCESS_THREAD_COUNT" => gauges.threads,
        "SYSTEM_LOAD" => gauges.load,
        RESPONSE_TIME => gauges.response_ms,
        _ => None,
    }
}

/// What the task looks at that a report asks for.
pub(super) fn looks(report: &ContinuousProfilingReport) -> Looks {
    match report.target_task {
        Some(TargetTask::OffCpu(_)) => Looks::OffCpu,
        _ => Looks::OnCpu,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::oap::identity::Rule;

    fn identity() -> Identity {
        Identity {
            layer: "GENERAL".to_owned(),
            service: "svc".to_owned(),
            instance: "inst".to_owned(),
            process: "worker-1".to_owned(),
            rule: Rule::Agent,
        }
    }

    fn policy(item: &str, looks: Looks, threshold: u64) -> Policy {
        Policy { looks, item: item.to_owned(), threshold, period: 10, count: 3 }
    }

    fn with(policies: Vec<Policy>) -> (Continuous, Vec<String>) {
        let mut continuous = Continuous::default();
        let service = ServicePolicies { service: "svc".to_owned(), uuid: "u1".to_owned(), policies };
        let left_out = continuous.take(vec![service]);
        (continuous, left_out)
    }

    fn cpu(percent: f64) -> Gauges {
        Gauges { cpu_percent: Some(percent), ..Gauges::default() }
    }

    #[test]
    fn policies_are_asked_for_by_what_is_known() {
        let (continuous, left_out) = with(vec![policy("PROCESS_CPU", Looks::OnCpu, 50)]);
        assert!(left_out.is_empty() && continuous.watches("svc") && !continuous.watches("other"));
        let question = continuous.question(&["svc", "other"]);
        let asked: Vec<(&str, &str)> = question
            .policies
            .iter()
            .map(|policy| (policy.service_name.as_str(), policy.uuid.as_str()))
            .collect();
        assert_eq!(asked, [("svc", "u1"), ("other", "")]);
    }

    #[test]
    fn three_of_the_last_ten_seconds_make_a_task_once() {
        let (mut continuous, _) = with(vec![policy("PROCESS_CPU", Looks::OnCpu, 50)]);
        let mut reports = Vec::new();
        for (second, percent) in (1..).zip([60.0, 10.0, 70.0, 20.0, 73.25, 90.0, 90.0, 90.0]) {
            if let Some(report) = continuous.look(1, &identity(), &cpu(percent), second * NS_PER_S) {
                reports.push((second, report));
            }
        }
        let [(second, report)] = reports.as_slice() else { panic!("{reports:?}") };
        assert_eq!((*second, report.duration, report.process_name.as_str()), (5, 60, "worker-1"));
        let Some(Cause::SingleValue(cause)) = report.causes[0].cause else { panic!("{report:?}") };
        assert_eq!((cause.threshold, cause.current), (50.0, 73.25));
        assert_eq!(report.target_task, Some(TargetTask::OnCpu(ContinuousOnCpuProfilingTask {})));
    }

    #[test]
    fn what_was_too_long_ago_does_not_count() {
        let (mut continuous, _) = with(vec![policy("PROCESS_CPU", Looks::OffCpu, 50)]);
        for second in [1, 7, 13, 19, 25] {
            assert_eq!(continuous.look(1, &identity(), &cpu(99.0), second * NS_PER_S), None);
        }
        // Two processes are two.
        for second in 26..28 {
            assert_eq!(continuous.look(2, &identity(), &cpu(99.0), second * NS_PER_S), None);
        }
        assert!(continuous.look(2, &identity(), &cpu(99.0), 28 * NS_PER_S).is_some());
        continuous.remove(2);
        assert_eq!(continuous.look(2, &identity(), &cpu(99.0), 29 * NS_PER_S), None);
    }

    #[test]
    fn two_thresholds_of_one_number_are_two() {
        let low = policy("PROCESS_CPU", Looks::OffCpu, 20);
        let (mut continuous, _) = with(vec![policy("PROCESS_CPU", Looks::OnCpu, 50), low]);
        let reports: Vec<_> = (1..=3)
            .filter_map(|second| continuous.look(1, &identity(), &cpu(30.0), second * NS_PER_S))
            .collect();
        let [report] = reports.as_slice() else { panic!("{reports:?}") };
        assert!(matches!(report.target_task, Some(TargetTask::OffCpu(_))));
    }

    #[test]
    fn each_policy_looks_back_as_long_as_it_says() {
        let long = Policy { period: 60, count: 20, ..policy("PROCESS_CPU", Looks::OffCpu, 50) };
        let (mut continuous, _) = with(vec![policy("PROCESS_CPU", Looks::OnCpu, 99), long]);
        let mut look = |second: u64| continuous.look(1, &identity(), &cpu(60.0), second * NS_PER_S);
        assert!((1..20).all(|second| look(second).is_none()));
        assert!(matches!(look(20).unwrap().target_task, Some(TargetTask::OffCpu(_))));
        assert_eq!(look(21), None);
        // OAP was not reached.
        continuous.not_heard(1, Looks::OffCpu);
        assert!(continuous.look(1, &identity(), &cpu(60.0), 22 * NS_PER_S).is_some());
    }

    #[test]
    fn what_is_not_measured_makes_none() {
        let (mut continuous, _) = with(vec![policy("SYSTEM_LOAD", Looks::OnCpu, 1)]);
        for second in 0..20 {
            assert_eq!(continuous.look(1, &identity(), &cpu(99.0), second * NS_PER_S), None);
        }
    }

    #[test]
    fn what_is_not_watched_is_named_once_and_cleared_policies_are_gone() {
        let policies =
            vec![policy("HTTP_ERROR_RATE", Looks::OnCpu, 5), policy("PROCESS_CPU", Looks::Network, 5)];
        let (mut continuous, left_out) = with(policies.clone());
        assert_eq!(left_out.len(), 2);
        assert!(left_out[0].contains("HTTP_ERROR_RATE"));
        let again = ServicePolicies { service: "svc".to_owned(), uuid: "u2".to_owned(), policies };
        assert!(continuous.take(vec![again]).is_empty());
        let cleared =
            ServicePolicies { service: "svc".to_owned(), uuid: String::new(), policies: Vec::new() };
        assert!(continuous.take(vec![cleared]).is_empty() && !continuous.watches("svc"));
    }
}
