//! What greenscope's json says of time (docs/json-format.md); null is not measured.

use std::{
    fs,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use super::{outside::Outside, subject::Weighted};
use crate::workspace;

/// A recording, as far as accuracy is about it; times in nanoseconds.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Profile {
    pub(super) duration_ns: u64,
    pub(super) threads: Vec<Thread>,
    pub(super) greenlets: Vec<Greenlet>,
    stacks: Vec<Stack>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Thread {
    pub(super) tid: Option<u32>,
    pub(super) on_cpu_ns: Option<u64>,
    pub(super) preempted_ns: Option<u64>,
    pub(super) gil_wait_ns: Option<u64>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Greenlet {
    pub(super) tid: Option<u32>,
    pub(super) name: Option<String>,
    pub(super) on_cpu_ns: Option<u64>,
    pub(super) blocked_ns: Option<u64>,
}

#[derive(Clone, Debug, Deserialize)]
struct Stack {
    frames: Vec<Frame>,
    state: String,
    ns: f64,
}

#[derive(Clone, Debug, Deserialize)]
struct Frame {
    function: Option<String>,
}

impl Profile {
    /// The CPU view: its stacks with their time.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub(super) fn cpu_stacks(&self) -> Result<Vec<Weighted>> {
        let cpu: Vec<Weighted> =
            self.stacks.iter().filter(|stack| stack.state == "cpu").map(weighted).collect();
        if cpu.is_empty() {
            bail!("its json has no stack in the state cpu");
        }
        Ok(cpu)
    }

    /// The thread of that id.
    pub(super) fn thread(&self, tid: u32) -> Option<&Thread> {
        self.threads.iter().find(|thread| thread.tid == Some(tid))
    }

    /// On the CPU, over all greenlets of a thread; `None` when one is not measured.
    pub(super) fn greenlets_on_cpu_ns(&self, tid: u32) -> Option<u64> {
        let mut of_thread = self.greenlets.iter().filter(|greenlet| greenlet.tid == Some(tid)).peekable();
        of_thread.peek()?;
        of_thread.map(|greenlet| greenlet.on_cpu_ns).sum()
    }

    /// The only greenlet of that name.
    pub(super) fn greenlet(&self, name: &str) -> Option<&Greenlet> {
        let mut named = self.greenlets.iter().filter(|greenlet| greenlet.name.as_deref() == Some(name));
        named.next().filter(|_| named.next().is_none())
    }
}

fn weighted(stack: &Stack) -> Weighted {
    let name = |frame: &Frame| frame.function.clone().unwrap_or_default();
    Weighted { functions: stack.frames.iter().map(name).collect(), weight: stack.ns }
}

/// Records a process while `work` is done.
///
/// # Errors
///
/// When greenscope or the work fails.
pub(super) fn record<T>(pid: u32, work: impl FnOnce() -> Result<T>) -> Result<(T, Profile)> {
    let output = workspace::target().join("accuracy.json");
    let mut command = Command::new(workspace::greenscope());
    command.args(["record", "--pid", &pid.to_string(), "--format", "json", "-o"]).arg(&output);
    let greenscope = Outside::start(command.stderr(Stdio::piped()), "recording")?;
    let worked = work()?;
    greenscope.stop("-TERM")?;
    let json = fs::read(&output).with_context(|| format!("cannot read {}", output.display()))?;
    Ok((worked, serde_json::from_slice(&json).context("greenscope's json")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(greenlets: &str) -> Profile {
        let text = format!(r#"{{"duration_ns": 9, "threads": [], "greenlets": {greenlets}, "stacks": []}}"#);
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn what_is_not_measured_is_no_zero() {
        let whole = r#"[{"tid": 1, "name": "a", "on_cpu_ns": 3}, {"tid": 1, "name": "b", "on_cpu_ns": 4}]"#;
        assert_eq!(profile(whole).greenlets_on_cpu_ns(1), Some(7));
        assert_eq!(profile(whole).greenlets_on_cpu_ns(2), None);
        assert_eq!(profile(&whole.replace('3', "null")).greenlets_on_cpu_ns(1), None);
        assert!(profile(whole).cpu_stacks().is_err());
    }

    #[test]
    fn a_name_that_two_have_is_nobodys() {
        let two = r#"[{"tid": 1, "name": "a"}, {"tid": 1, "name": "a"}, {"tid": 1, "name": "b"}]"#;
        assert!(profile(two).greenlet("a").is_none());
        assert!(profile(two).greenlet("b").is_some());
    }
}
