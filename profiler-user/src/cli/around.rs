//! What the system tells of a recorded process, for its names in OAP and for OAP's thresholds.

use std::{
    collections::HashMap,
    fs,
    io::ErrorKind,
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixDatagram},
    },
    time::Instant,
};

use procfs::{
    Current as _, LoadAverage,
    process::{Process, Stat},
};
use rustix::system::uname;

use crate::export::oap::{continuous::Gauges, identity::Surroundings};

/// The system.
#[derive(Debug, Default)]
pub(super) struct Around {
    /// By pid: the time on CPUs at the last look, in ticks, and when that was.
    looked: HashMap<u32, (u64, Instant)>,
    /// Of which OAP.
    oap: String,
    /// By pid: what nobody else has while we do.
    claims: HashMap<u32, UnixDatagram>,
}

impl Around {
    /// As it is for that OAP.
    pub(super) fn of_oap(oap: &str) -> Self {
        Self { oap: oap.to_owned(), ..Self::default() }
    }

    /// Whether nobody else on this host serves the process to this OAP: a name that goes with
    /// its process (`unix(7)`, abstract).
    pub(super) fn claim(&mut self, pid: u32) -> bool {
        if self.claims.contains_key(&pid) {
            return true;
        }
        // No longer than such a name may be.
        let oap: String = self.oap.chars().filter(char::is_ascii).take(60).collect();
        let name = format!("greenscope-oap-{pid}-{oap}");
        let claimed = SocketAddr::from_abstract_name(name).and_then(|name| UnixDatagram::bind_addr(&name));
        match claimed {
            Ok(socket) => {
                self.claims.insert(pid, socket);
                true
            }
            // Without such names nobody can be told from us.
            Err(error) => error.kind() != ErrorKind::AddrInUse,
        }
    }

    /// Forgets a process that is gone: a server may make many.
    pub(super) fn release(&mut self, pid: u32) {
        self.claims.remove(&pid);
        self.looked.remove(&pid);
    }

    /// What is around a process; of what can't be read, nothing.
    pub(super) fn of(pid: u32) -> Surroundings {
        let read = |name: &str| fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
        let environment: Vec<String> = read("environ")
            .split(|byte| *byte == 0)
            .filter(|pair| !pair.is_empty())
            .map(|pair| String::from_utf8_lossy(pair).into_owned())
            .collect();
        // A container's, and a pod's, is its own.
        let own = environment.iter().find_map(|pair| pair.strip_prefix("HOSTNAME="));
        let host = own
            .filter(|name| !name.is_empty())
            .map_or_else(|| uname().nodename().to_string_lossy().into_owned(), str::to_owned);
        let cgroup = String::from_utf8_lossy(&read("cgroup")).into_owned();
        let program = |pid: i32| fs::read_link(format!("/proc/{pid}/exe")).ok();
        let is_child = stat(pid).is_some_and(|stat| {
            let own = program(stat.pid);
            own.is_some() && own == program(stat.ppid)
        });
        Surroundings { environment, cgroup, host, is_child }
    }

    /// What a process is at; nothing of one that is gone.
    pub(super) fn look(&mut self, pid: u32) -> Gauges {
        let load = LoadAverage::current().ok().map(|load| f64::from(load.one));
        let Some(stat) = stat(pid) else {
            self.looked.remove(&pid);
            return Gauges { load, ..Gauges::default() };
        };
        let now = Instant::now();
        let ticks = stat.utime + stat.stime;
        let before = self.looked.insert(pid, (ticks, now));
        let cpu_percent = before.and_then(|(before, at)| {
            let seconds = ticks.saturating_sub(before) as f64 / procfs::ticks_per_second() as f64;
            let elapsed = (now - at).as_secs_f64();
            (elapsed > 0.0).then(|| 100.0 * seconds / elapsed)
        });
        Gauges { cpu_percent, threads: Some(stat.num_threads as f64), load, response_ms: None }
    }
}

fn stat(pid: u32) -> Option<Stat> {
    Process::new(i32::try_from(pid).ok()?).ok()?.stat().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_served_by_one_at_a_time() {
        let pid = std::process::id();
        let (mut first, mut second) = (Around::of_oap("one:11800"), Around::of_oap("one:11800"));
        assert!(first.claim(pid) && first.claim(pid));
        assert!(!second.claim(pid));
        assert!(Around::of_oap("another:11800").claim(pid));
        first.release(pid);
        assert!(second.claim(pid) && !first.claim(pid));
        drop(second);
        assert!(first.claim(pid));
    }
}
