//! The real `greenscope record` on a target, and what it takes of the machine.

use std::{
    collections::BTreeMap,
    fs,
    io::Read as _,
    process::{Child, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

use crate::{
    measure::{deadline::until, lines::Lines},
    process, workspace,
};

/// Start and end, with a hundred thousand greenlets on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// greenscope has settled when it takes less than a fiftieth of a processor for that long.
const SETTLED: Duration = Duration::from_millis(250);

/// What the kernel counts processes' time in, on every architecture that we know.
const TICKS_PER_SECOND: f64 = 100.0;

/// A recording while it runs; killed when dropped.
pub(super) struct Recording {
    child: Child,
    said: Lines,
    pid: u32,
}

/// What a recording says at its end, on the terminal.
#[derive(Debug, Default)]
pub(super) struct Summary {
    pub(super) switches: u64,
    /// What was lost, in greenscope's words.
    pub(super) losses: Option<String>,
}

/// What the json says that the bench needs.
#[derive(Debug, Deserialize)]
pub(super) struct Json {
    pub(super) totals: Totals,
    pub(super) first_stack_ns: Option<u64>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Totals {
    pub(super) switches: u64,
    pub(super) records_lost: u64,
    pub(super) faults: BTreeMap<String, u64>,
}

/// What a recording took.
#[derive(Clone, Copy, Debug)]
pub(super) struct Usage {
    /// User and system time, from its start to its end.
    pub(super) cpu: Duration,
    /// The most memory that it ever had.
    pub(super) resident_bytes: u64,
    /// The same until it was told to end.
    pub(super) resident_before_bytes: u64,
    /// What its maps and programs hold in the kernel.
    pub(super) kernel_bytes: u64,
}

impl Recording {
    /// Starts it, and returns when every probe is in place. Its result goes nowhere.
    pub(super) fn start(pid: u32, options: &[&str]) -> Result<Self> {
        let nowhere = ["--format", "folded", "-o", "/dev/null"];
        Self::launch(pid, &[&nowhere, options].concat(), Stdio::null())
    }

    /// The same, with json on a pipe that is read at the end.
    pub(super) fn start_json(pid: u32, options: &[&str]) -> Result<Self> {
        Self::launch(pid, &[&["--format", "json", "-o", "-"], options].concat(), Stdio::piped())
    }

    fn launch(pid: u32, options: &[&str], stdout: Stdio) -> Result<Self> {
        let mut child = Command::new(workspace::greenscope())
            .args(["record", "--pid", &pid.to_string()])
            .args(options)
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start greenscope")?;
        let stderr = child.stderr.take().context("greenscope has no stderr")?;
        let recording = Self { pid: child.id(), said: Lines::of("greenscope", stderr), child };
        let mut before = Vec::new();
        loop {
            match recording.said.next(PATIENCE) {
                Ok(line) if line.starts_with("recording") => return Ok(recording),
                Ok(line) => before.push(line),
                Err(error) => bail!("{error}; it said: {}", before.join("; ")),
            }
        }
    }

    /// Waits until it has done what a start brings with it: enumerating, first stacks.
    pub(super) fn settle(&self) -> Result<()> {
        let mut since = (Instant::now(), self.on_cpu()?);
        until("greenscope still works on its start", PATIENCE, || {
            let (now, on_cpu) = (Instant::now(), self.on_cpu()?);
            if on_cpu - since.1 > SETTLED / 50 {
                since = (now, on_cpu);
            }
            Ok((now - since.0 > SETTLED).then_some(()))
        })
    }

    /// Time on a processor, to the nanosecond; greenscope has one thread.
    fn on_cpu(&self) -> Result<Duration> {
        let path = format!("/proc/{}/schedstat", self.pid);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let ns = text.split(' ').next().and_then(|word| word.parse().ok());
        Ok(Duration::from_nanos(ns.with_context(|| format!("{path} says `{text}`"))?))
    }

    /// What its maps and programs hold in the kernel now.
    fn kernel_bytes(&self) -> Result<u64> {
        let path = format!("/proc/{}/fdinfo", self.pid);
        let mut objects = BTreeMap::new();
        for entry in fs::read_dir(&path).with_context(|| format!("cannot list {path}"))? {
            // Another descriptor may be closed meanwhile.
            if let Ok(text) = fs::read_to_string(entry?.path()) {
                objects.extend(locked(&text));
            }
        }
        Ok(objects.values().sum())
    }

    /// The most memory that it had so far.
    fn resident_bytes(&self) -> Option<u64> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        Some(field(&text, "VmHWM")? * 1024)
    }

    /// Ends it, and reads what it printed.
    pub(super) fn stop(mut self) -> Result<Summary> {
        self.terminate()?;
        self.finish()
    }

    /// Ends it, reads its json, and sees what it took.
    pub(super) fn stop_json(self) -> Result<(Json, Usage)> {
        let kernel_bytes = self.kernel_bytes()?;
        let resident_before_bytes = self.resident_bytes().context("/proc/PID/status has no VmHWM")?;
        self.terminate()?;
        let (json, usage) = self.end_json()?;
        Ok((json, Usage { kernel_bytes, resident_before_bytes, ..usage }))
    }

    /// Waits until it ends by itself, reads its json, and sees what it took; what its
    /// maps held is gone by then.
    pub(super) fn end_json(mut self) -> Result<(Json, Usage)> {
        let mut stdout = self.child.stdout.take().context("greenscope writes no json")?;
        let (json, resident_bytes) = self.read(&mut stdout)?;
        let ticks = until("greenscope does not end", PATIENCE, || {
            let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid))?;
            zombie_ticks(&stat)
        })?;
        self.finish()?;
        let json = serde_json::from_slice(&json).context("greenscope's json")?;
        let cpu = Duration::from_secs_f64(ticks / TICKS_PER_SECOND);
        Ok((json, Usage { cpu, resident_bytes, resident_before_bytes: 0, kernel_bytes: 0 }))
    }

    /// Reads all, and the memory behind each piece: the pipe is small, so that what is
    /// seen at the last piece is what there was.
    fn read(&self, stdout: &mut ChildStdout) -> Result<(Vec<u8>, u64)> {
        let mut json = Vec::new();
        let mut resident = self.resident_bytes().unwrap_or(0);
        let mut piece = vec![0; 1 << 16];
        loop {
            let length = stdout.read(&mut piece).context("cannot read greenscope's json")?;
            let Some(read) = piece.get(..length).filter(|read| !read.is_empty()) else {
                return Ok((json, resident));
            };
            json.extend_from_slice(read);
            // Its memory is given back at its end, before its last word is read.
            resident = self.resident_bytes().unwrap_or(0).max(resident);
        }
    }

    fn terminate(&self) -> Result<()> {
        process::run(Command::new("kill").args(["-TERM", &self.pid.to_string()]))
    }

    fn finish(&mut self) -> Result<Summary> {
        let said = self.said.rest(PATIENCE)?;
        let status = self.child.wait().context("cannot wait for greenscope")?;
        ensure!(status.success(), "greenscope ended with {status}: {}", said.join("; "));
        summary(&said).with_context(|| format!("greenscope's summary: {}", said.join("; ")))
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to kill.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The map or program of a descriptor, and what it holds.
fn locked(fdinfo: &str) -> Option<((bool, u64), u64)> {
    let bytes = field(fdinfo, "memlock")?;
    let map = field(fdinfo, "map_id").map(|id| (true, id));
    Some((map.or_else(|| field(fdinfo, "prog_id").map(|id| (false, id)))?, bytes))
}

/// The number behind `name:`.
fn field(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    value.split_whitespace().next()?.parse().ok()
}

/// User and system time of a process that ended; `None` while it has not.
fn zombie_ticks(stat: &str) -> Result<Option<f64>> {
    // The name may hold anything, brackets too; behind the last one stands the state.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    if fields.first() != Some(&"Z") {
        return Ok(None);
    }
    let ticks = |at: usize| fields.get(at).and_then(|ticks| ticks.parse::<f64>().ok());
    match (ticks(11), ticks(12)) {
        (Some(user), Some(system)) => Ok(Some(user + system)),
        _ => bail!("/proc/PID/stat says `{stat}`"),
    }
}

/// What the terminal was told.
fn summary(said: &[String]) -> Option<Summary> {
    let switches = said.iter().find_map(|line| {
        let (_, rest) = line.split_once(" s: ")?;
        rest.split_once(" switches (")?.0.parse().ok()
    })?;
    let losses = said.iter().find_map(|line| line.strip_prefix("losses"))?;
    let losses = losses.split_once(": ").map(|(_, losses)| losses).filter(|losses| *losses != "none");
    Some(Summary { switches, losses: losses.map(str::to_owned) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_of_the_kernel_part_is_told_from_others() {
        assert_eq!(locked("pos:\t0\nmap_type:\t1\nmemlock:\t4096\nmap_id:\t7\n"), Some(((true, 7), 4096)));
        assert_eq!(locked("prog_type:\t2\nmemlock:\t8192\nprog_id:\t7\n"), Some(((false, 7), 8192)));
        assert_eq!(locked("pos:\t0\nflags:\t02\n"), None);
    }

    #[test]
    fn a_process_that_ended_tells_its_time() {
        let stat = |state| format!("12 (green) scope) {state} 1 2 3 4 5 6 7 8 9 10 150 30 0 0 20");
        assert_eq!(zombie_ticks(&stat("S")).unwrap(), None);
        assert_eq!(zombie_ticks(&stat("Z")).unwrap(), Some(180.0));
        assert!(zombie_ticks("1 (x) Z 1").is_err());
    }

    #[test]
    fn the_summary_is_read() {
        let said = |losses: &str| {
            ["2.10 s: 4000 switches (1904/s), 3 greenlets seen on 1 threads", "", losses].map(str::to_owned)
        };
        let lossless = summary(&said("losses: none")).unwrap();
        assert_eq!((lossless.switches, lossless.losses), (4000, None));
        let lost = summary(&said("losses (docs/faults.md): ring_full 3")).unwrap();
        assert_eq!(lost.losses.as_deref(), Some("ring_full 3"));
        assert!(summary(&["nothing".to_owned()]).is_none());
    }
}
