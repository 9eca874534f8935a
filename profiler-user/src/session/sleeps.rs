//! Threads that sleep when their recording begins: with what stack.
//!
//! The kernel part takes a stack when a thread goes to sleep. These did before, and some
//! never wake.

use std::{
    os::fd::{AsFd as _, BorrowedFd},
    sync::Arc,
};

use profiler_common::{
    clock::{Clock, Off},
    label::Label,
    record::CONFIG_STACKS,
    walk::{self, SCRATCH_WORDS, code_check},
};

use super::{recorded::Recorded, watch};
use crate::{
    kernel::Engine,
    profile::Frame,
    target::{self, Asleep},
};

/// The sleep in which a thread's recording began.
#[derive(Clone, Debug)]
pub(super) struct Sleep {
    /// Root first.
    pub(super) frames: Arc<[Frame]>,
    /// Whose work it is.
    pub(super) label: Label,
    /// Why it sleeps: an [`Off`].
    pub(super) why: u32,
    /// [`Clock::version`] while it does.
    pub(super) version: u64,
}

impl Recorded {
    /// Why a thread sleeps that has done so since before the recording began, and its clock's
    /// version. One that came onto a CPU unseen is not in the state that its clock says.
    fn sleeps_since(&self, engine: &Engine, pidfd: BorrowedFd<'_>, tid: u32) -> Option<(u32, u64)> {
        let Clock { version, state, since_ns, .. } = engine.clock_of(pidfd).ok()??;
        let asleep = state < Off::Preempted as u32 && since_ns <= self.began_ns;
        let there = target::thread_state(&self.target, tid) == Some(state);
        (version != 0 && asleep && there).then_some((state, version))
    }

    /// Takes the stacks of the threads that have slept since before the recording began.
    pub(super) fn take_sleeps(&mut self, engine: &Engine) {
        if !engine.has_clocks() || self.flags() & CONFIG_STACKS == 0 {
            return;
        }
        for thread in target::threads(&self.target) {
            let Some(pidfd) = watch::open(self.target.pid, thread.tid) else {
                continue;
            };
            let Some((why, version)) = self.sleeps_since(engine, pidfd.as_fd(), thread.tid) else {
                continue;
            };
            let mut memory = self.memory.clone();
            let found = target::sleeping_stack(&mut memory, &self.target, self.config(), thread.own_tid);
            let Ok(Some(Asleep { tstate, frames })) = found else {
                continue;
            };
            let label = self.label_of_thread(tstate);
            let python = self.target.python.layout;
            let mut words = [0; SCRATCH_WORDS];
            let checked: Vec<walk::Frame> = frames
                .into_iter()
                .map(|frame| walk::Frame {
                    check: code_check(&python, frame.code, &mut memory, &mut words).unwrap_or(0),
                    ..frame
                })
                .collect();
            // After the reading: it did not run meanwhile, so that its frames stood still.
            if self.sleeps_since(engine, pidfd.as_fd(), thread.tid) != Some((why, version)) {
                continue;
            }
            let frames = self.stacks.resolve(&checked, &mut memory);
            self.sleeps.insert(thread.tid, Sleep { frames, label, why, version });
        }
    }
}
