//! The processes that OAP knows of us: reported, kept alive, and reported again after it forgot.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use proto::skywalking::{
    EbpfHostProcessMetadata, EbpfProcessEntityMetadata, EbpfProcessPingPkg, EbpfProcessPingPkgList,
    EbpfProcessProperties, EbpfProcessReportList, EbpfReportProcessDownstream, KeyStringValuePair,
    ebpf_process_downstream::Process, ebpf_process_properties::Metadata,
};
use sha2::{Digest as _, Sha256};

use super::{identity::Identity, symbols::clean, wall_clock::nanoseconds};

/// Between two keep-alives, and how many of them go with one full report: as Rover has it.
const ALIVE: Duration = Duration::from_secs(20);
const REPORT_EVERY: u32 = 10;
/// When a process that was reported is in OAP's storage: it writes every 25 s
/// (`persistentPeriod`). Data of a process that is not there yet hides all of its task.
const STORED: Duration = Duration::from_secs(30);
/// How long a process whose service is guessed is held back: OAP keeps a name that was reported,
/// and those that it made may tell a better one.
const GUESSED: Duration = Duration::from_secs(5);

/// The processes of one agent.
#[derive(Debug)]
pub struct Registry {
    agent: String,
    processes: BTreeMap<u32, Entry>,
    /// When the next keep-alive is due.
    next_ns: u64,
    alive: u32,
    /// All are to be reported.
    report: bool,
}

#[derive(Debug)]
struct Entry {
    entity: EbpfProcessEntityMetadata,
    properties: Vec<KeyStringValuePair>,
    id: String,
    /// It may be reported.
    ready: bool,
    /// Since when it is held back.
    held_ns: Option<u64>,
    /// When OAP said that it took the report.
    known_ns: Option<u64>,
}

/// What is to be said to OAP; the report first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Due {
    /// Every process, with all that is known of it.
    pub report: Option<EbpfProcessReportList>,
    /// That they are there still.
    pub alive: Option<EbpfProcessPingPkgList>,
}

impl Registry {
    /// None yet. `agent` is a UUID, the same while greenscope runs.
    #[must_use]
    pub fn new(agent: &str) -> Self {
        Self { agent: agent.to_owned(), processes: BTreeMap::new(), next_ns: 0, alive: 0, report: false }
    }

    /// A process is recorded, or is called something else by now.
    pub fn add(&mut self, pid: u32, identity: &Identity, labels: &[&str], properties: &[(&str, &str)]) {
        let Identity { layer, service, instance, process, rule } = identity;
        let entity = EbpfProcessEntityMetadata {
            layer: layer.clone(),
            service_name: service.clone(),
            instance_name: instance.clone(),
            process_name: process.clone(),
            labels: labels.iter().map(|label| (*label).to_owned()).collect(),
        };
        let pair = |(key, value): (&str, &str)| KeyStringValuePair {
            key: key.to_owned(),
            value: clean(value).into_owned(),
        };
        // A process that was once stored without it can't be profiled any more.
        let supported = std::iter::once(("support_ebpf_profiling", "true"));
        let properties = supported.chain(properties.iter().copied()).map(pair).collect();
        let known = self.processes.get(&pid);
        if known.is_some_and(|known| known.entity == entity) {
            return;
        }
        let ready = !rule.is_guess();
        let held_ns = known.and_then(|known| known.held_ns);
        let id = id(service, instance, process);
        self.report |= ready;
        self.processes.insert(pid, Entry { entity, properties, id, ready, held_ns, known_ns: None });
    }

    /// Those that OAP is told of.
    fn ready(&self) -> impl Iterator<Item = (&u32, &Entry)> {
        self.processes.iter().filter(|(_, entry)| entry.ready)
    }

    /// A process is gone.
    pub fn remove(&mut self, pid: u32) {
        self.processes.remove(&pid);
    }

    /// OAP may have forgotten everything: it was away.
    pub fn forget(&mut self) {
        self.report = true;
        for entry in self.processes.values_mut() {
            entry.known_ns = None;
        }
    }

    /// The process with that id.
    #[must_use]
    pub fn pid(&self, id: &str) -> Option<u32> {
        self.processes.iter().find(|(_, entry)| entry.id == id).map(|(pid, _)| *pid)
    }

    /// Whether OAP has the process in its storage, so that a task can be made for it.
    #[must_use]
    pub fn is_stored(&self, pid: u32, now_ns: u64) -> bool {
        let known_ns = self.processes.get(&pid).and_then(|entry| entry.known_ns);
        known_ns.is_some_and(|known_ns| now_ns >= known_ns.saturating_add(nanoseconds(STORED)))
    }

    /// Whether OAP may have come to have a process only just now, or has it not yet.
    #[must_use]
    pub fn is_any_new(&self, now_ns: u64) -> bool {
        let before_ns = now_ns.checked_sub(nanoseconds(STORED));
        self.processes.keys().any(|pid| before_ns.is_none_or(|before_ns| !self.is_stored(*pid, before_ns)))
    }

    /// What is to be said by now; what is given here counts as said.
    pub fn due(&mut self, now_ns: u64) -> Due {
        for entry in self.processes.values_mut().filter(|entry| !entry.ready) {
            let held_ns = *entry.held_ns.get_or_insert(now_ns);
            entry.ready = now_ns >= held_ns.saturating_add(nanoseconds(GUESSED));
            self.report |= entry.ready;
        }
        if self.ready().next().is_none() || !self.report && now_ns < self.next_ns {
            return Due::default();
        }
        let full = self.report || self.alive.is_multiple_of(REPORT_EVERY);
        self.report = false;
        self.alive = self.alive.wrapping_add(1);
        self.next_ns = now_ns.saturating_add(nanoseconds(ALIVE));
        let report = full.then(|| EbpfProcessReportList {
            processes: self.ready().map(|(pid, entry)| entry.properties_of(*pid)).collect(),
            ebpf_agent_id: self.agent.clone(),
        });
        // Only this makes the service and the instance known.
        let alive = EbpfProcessPingPkgList {
            processes: self
                .ready()
                .map(|(_, entry)| EbpfProcessPingPkg {
                    entity_metadata: Some(entry.entity.clone()),
                    properties: entry.properties.clone(),
                })
                .collect(),
            ebpf_agent_id: self.agent.clone(),
        };
        Due { report, alive: Some(alive) }
    }

    /// OAP took a report; returns the pids whose ids are others than they should be, which it
    /// knows by those.
    pub fn reported(&mut self, answer: &EbpfReportProcessDownstream, now_ns: u64) -> Vec<u32> {
        let mut others = Vec::new();
        for process in &answer.processes {
            let pid = match &process.process {
                Some(Process::HostProcess(host)) => host.pid,
                Some(Process::K8sProcess(host)) => host.pid,
                None => continue,
            };
            let Ok(pid) = u32::try_from(pid) else {
                continue;
            };
            if let Some(entry) = self.processes.get_mut(&pid) {
                entry.known_ns.get_or_insert(now_ns);
                if entry.id != process.process_id {
                    entry.id.clone_from(&process.process_id);
                    others.push(pid);
                }
            }
        }
        others
    }
}

impl Entry {
    fn properties_of(&self, pid: u32) -> EbpfProcessProperties {
        EbpfProcessProperties {
            metadata: Some(Metadata::HostProcess(EbpfHostProcessMetadata {
                entity: Some(self.entity.clone()),
                pid: i32::try_from(pid).unwrap_or_default(),
                properties: self.properties.clone(),
            })),
        }
    }
}

/// OAP's id of a process (`IDManager.ProcessID`).
/// <https://github.com/apache/skywalking/blob/v10.1.0/oap-server/server-core/src/main/java/org/apache/skywalking/oap/server/core/analysis/IDManager.java>
#[must_use]
pub fn id(service: &str, instance: &str, process: &str) -> String {
    let instance_id = format!("{}.1_{}", STANDARD.encode(service), STANDARD.encode(instance));
    let digest = Sha256::digest(format!("{process}_{instance_id}"));
    digest.iter().fold(String::new(), |mut hex, byte| {
        let _infallible = write!(hex, "{byte:02x}");
        hex
    })
}

#[cfg(test)]
mod tests {
    use proto::skywalking::{EbpfHostProcessDownstream, EbpfProcessDownstream};

    use super::*;
    use crate::export::oap::identity::Rule;

    const SECOND: u64 = 1_000_000_000;

    fn identity(process: &str) -> Identity {
        Identity {
            layer: "GENERAL".to_owned(),
            service: "svc".to_owned(),
            instance: "inst-a".to_owned(),
            process: process.to_owned(),
            rule: Rule::Agent,
        }
    }

    fn answer(pid: i32, id: &str) -> EbpfReportProcessDownstream {
        let host = EbpfHostProcessDownstream { pid, entity_metadata: None };
        let process =
            EbpfProcessDownstream { process_id: id.to_owned(), process: Some(Process::HostProcess(host)) };
        EbpfReportProcessDownstream { processes: vec![process] }
    }

    #[test]
    fn an_id_is_that_of_oap() {
        // shared/docs/skywalking.md, 9.2, begins with these digits.
        assert!(id("svc", "inst-a", "greenscope-4242").starts_with("944edd12"));
    }

    #[test]
    fn a_new_process_is_reported_at_once_and_kept_alive() {
        let mut registry = Registry::new("agent");
        assert_eq!(registry.due(0), Due::default());
        registry.add(1, &identity("worker-1"), &["python"], &[("pid", "1")]);
        let due = registry.due(0);
        let report = due.report.unwrap();
        assert_eq!((report.processes.len(), report.ebpf_agent_id.as_str()), (1, "agent"));
        let alive = due.alive.unwrap();
        let keys: Vec<&str> = alive.processes[0].properties.iter().map(|pair| pair.key.as_str()).collect();
        assert_eq!(keys, ["support_ebpf_profiling", "pid"]);
        assert_eq!(registry.due(19 * SECOND), Due::default());
        let due = registry.due(20 * SECOND);
        assert!(due.report.is_none() && due.alive.is_some());
        // Every tenth is a full one.
        let full = (2..=10).filter(|number| registry.due(number * 20 * SECOND).report.is_some()).count();
        assert_eq!(full, 1);
    }

    #[test]
    fn the_same_again_is_nothing_new() {
        let mut registry = Registry::new("agent");
        registry.add(1, &identity("worker-1"), &[], &[]);
        assert!(registry.due(0).report.is_some());
        registry.add(1, &identity("worker-1"), &[], &[]);
        assert_eq!(registry.due(1), Due::default());
        registry.add(1, &identity("master-1"), &[], &[]);
        assert!(registry.due(2).report.is_some());
    }

    #[test]
    fn a_guess_is_held_back_for_a_better_name() {
        let mut registry = Registry::new("agent");
        let guess = Identity { rule: Rule::Command, ..identity("python-1") };
        registry.add(1, &guess, &[], &[]);
        registry.add(2, &Identity { process: "python-2".to_owned(), ..guess.clone() }, &[], &[]);
        assert_eq!(registry.due(SECOND), Due::default());
        registry.add(1, &identity("python-1"), &[], &[]);
        // The same names as before: only the rule is another.
        assert_eq!(registry.due(2 * SECOND), Due::default());
        let better = Identity { service: "shop".to_owned(), rule: Rule::Workers, ..guess };
        registry.add(1, &better, &[], &[]);
        assert_eq!(registry.due(2 * SECOND).report.unwrap().processes.len(), 1);
        assert_eq!(registry.due(5 * SECOND), Due::default());
        assert_eq!(registry.due(6 * SECOND).report.unwrap().processes.len(), 2);
    }

    #[test]
    fn a_process_is_stored_some_time_after_its_report() {
        let mut registry = Registry::new("agent");
        registry.add(1, &identity("worker-1"), &[], &[]);
        assert!(!registry.is_stored(1, 100 * SECOND));
        let known = id("svc", "inst-a", "worker-1");
        assert!(registry.reported(&answer(1, &known), SECOND).is_empty());
        assert!(!registry.is_stored(1, 30 * SECOND) && registry.is_stored(1, 31 * SECOND));
        assert_eq!(registry.pid(&known), Some(1));
        registry.forget();
        assert!(!registry.is_stored(1, 100 * SECOND) && registry.due(100 * SECOND).report.is_some());
        registry.remove(1);
        assert_eq!(registry.pid(&known), None);
    }

    #[test]
    fn another_id_of_oaps_goes_before_ours() {
        let mut registry = Registry::new("agent");
        registry.add(1, &identity("worker-1"), &[], &[]);
        assert_eq!(registry.reported(&answer(1, "other"), 0), [1]);
        assert_eq!(registry.pid("other"), Some(1));
        assert!(registry.reported(&answer(2, "nobody"), 0).is_empty());
    }
}
