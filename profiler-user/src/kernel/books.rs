//! Reading what the kernel part keeps.

use profiler_common::{
    label::Lent,
    record::{Greenlet, GreenletKey, LentKey, StackTotals, Thread, Totals},
    walk::StackKey,
};
use rustc_hash::FxHashMap;

use super::{Engine, KernelError, Part, Place};

/// What the kernel part kept of a target.
#[derive(Debug)]
pub struct Kept {
    /// What is exact whatever else is lost.
    pub totals: Totals,
    /// The greenlets alive.
    pub greenlets: Vec<(GreenletKey, Greenlet)>,
    /// The completed waits of every stack.
    pub stacks: FxHashMap<StackKey, StackTotals>,
    /// The threads that were watched, by `bpf_get_current_pid_tgid`.
    pub threads: Vec<(u64, Thread)>,
    /// Requests that made greenlets, by [`profiler_common::label::Label::request`].
    pub lent: FxHashMap<u64, Lent>,
}

impl Engine {
    /// What was kept of each of `targets`.
    ///
    /// # Errors
    ///
    /// When a map can't be read.
    pub fn kept(&self, targets: &[u32]) -> Result<FxHashMap<u32, Kept>, KernelError> {
        let stacks = self.stacks()?;
        let mut all = self.alive(targets)?;
        add_stacks(&mut all, stacks);
        Ok(all)
    }

    /// The same without the stacks, which are the most of it.
    ///
    /// # Errors
    ///
    /// When a map can't be read.
    pub fn alive(&self, targets: &[u32]) -> Result<FxHashMap<u32, Kept>, KernelError> {
        let mut all = FxHashMap::default();
        for target in targets {
            let kept = Kept {
                totals: self.totals.get(*target)?,
                greenlets: Vec::new(),
                stacks: FxHashMap::default(),
                threads: Vec::new(),
                lent: FxHashMap::default(),
            };
            all.insert(*target, kept);
        }
        let of = |target: u64| u32::try_from(target).ok();
        for (key, greenlet) in self.greenlets.entries()? {
            if let Some(kept) = of(key.target).and_then(|target| all.get_mut(&target)) {
                kept.greenlets.push((key, greenlet));
            }
        }
        for (LentKey { target, request }, lent) in self.lent.entries()? {
            if let Some(kept) = of(target).and_then(|target| all.get_mut(&target)) {
                kept.lent.insert(request, lent);
            }
        }
        for (key, thread) in self.threads.entries()? {
            if let Some(kept) = of(thread.target).and_then(|target| all.get_mut(&target)) {
                kept.threads.push((key, thread));
            }
        }
        Ok(all)
    }

    /// A greenlet, while it lives.
    ///
    /// # Errors
    ///
    /// When the map can't be read.
    pub fn greenlet(&self, key: &GreenletKey) -> Result<Option<Greenlet>, KernelError> {
        self.greenlets.get(key)
    }

    /// Some greenlets alive, of any target, from that place on, or from the beginning.
    ///
    /// # Errors
    ///
    /// When the map can't be read.
    pub fn some_greenlets(&self, place: Option<Place>) -> Result<Part<GreenletKey, Greenlet>, KernelError> {
        self.greenlets.part(place)
    }

    /// The completed waits of every stack.
    ///
    /// # Errors
    ///
    /// When the map can't be read.
    pub fn stacks(&self) -> Result<Vec<(StackKey, StackTotals)>, KernelError> {
        self.stacks.entries()
    }

    /// The completed waits of one stack.
    ///
    /// # Errors
    ///
    /// When the map can't be read.
    pub fn stack(&self, key: &StackKey) -> Result<Option<StackTotals>, KernelError> {
        self.stacks.get(key)
    }
}

/// Adds the stacks of each target to the rest of it.
pub fn add_stacks(all: &mut FxHashMap<u32, Kept>, stacks: Vec<(StackKey, StackTotals)>) {
    for (key, stack) in stacks {
        if let Some(kept) = all.get_mut(&stack.target) {
            kept.stacks.insert(key, stack);
        }
    }
}
