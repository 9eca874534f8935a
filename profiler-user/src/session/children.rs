//! The targets' children: those that are there, and those that come.

use std::collections::HashSet;

use profiler_common::{
    fault::Fault,
    record::{ARMED, ForkRecord},
};
use rustix::event::epoll::{self, EventData, EventFlags};

use super::{Options, Session, SessionError, monotonic_ns, pidfd, recorded::Recorded, watch};
use crate::{
    kernel::Engine,
    target::{self, Target, TargetError},
};

/// Makes the targets known to the kernel part and has them watched; with their children,
/// and theirs, if those are followed.
///
/// A target is watched before one looks for its children: those that it makes from then
/// on the kernel part tells of.
pub(super) fn arm(
    targets: Vec<Target>,
    options: &Options,
    engine: &mut Engine,
) -> Result<Vec<Recorded>, SessionError> {
    let follows = options.children && engine.follows();
    let mut seen: HashSet<u32> = targets.iter().map(|target| target.pid).collect();
    let mut wanted: Vec<(Target, Option<u32>)> =
        targets.into_iter().rev().map(|target| (target, None)).collect();
    let mut armed: Vec<Recorded> = Vec::new();
    while let Some((target, parent)) = wanted.pop() {
        let pid = target.pid;
        let Some(cookie) = engine.take_number() else {
            let parent = armed.iter_mut().find(|target| Some(target.target.pid) == parent);
            match parent {
                Some(parent) => parent.fault(Fault::ChildLeftOut),
                None => return Err(SessionError::TooMany { given: armed.len() + wanted.len() + 1 }),
            }
            continue;
        };
        let recorded = match Recorded::arm(target, cookie, parent, options, engine) {
            Ok(recorded) => recorded,
            // A child may go away at any time.
            Err(_) if parent.is_some() => {
                engine.release(cookie, None)?;
                continue;
            }
            Err(error) => return Err(error),
        };
        // Before the probes: a hit would begin the thread's clock without its past.
        if !watch::watch(&recorded.target, cookie, monotonic_ns(), engine) {
            // Its parent was watched when it was made: the kernel part tells of it.
            engine.release(cookie, recorded.first_pid)?;
            continue;
        }
        armed.push(recorded);
        if follows {
            for child in descendants(pid, &mut seen) {
                wanted.push((child, Some(pid)));
            }
        }
    }
    Ok(armed)
}

/// The children of `pid` that run Python, and of those that don't the children.
fn descendants(pid: u32, seen: &mut HashSet<u32>) -> Vec<Target> {
    let mut found = Vec::new();
    let mut parents = vec![pid];
    while let Some(parent) = parents.pop() {
        for child in target::children(parent) {
            if !seen.insert(child) {
                continue;
            }
            match target::inspect(child) {
                Ok(target) => found.push(target),
                Err(TargetError::NotPython { .. }) => parents.push(child),
                // Gone, not ready, or not to be read: as if it came later and was none.
                Err(_) => {}
            }
        }
    }
    found
}

impl Session {
    /// Takes a process that a target forked among the recorded ones.
    pub(super) fn follow(
        &mut self,
        fork: &ForkRecord,
        recorded: &mut Vec<Recorded>,
        options: &Options,
    ) -> Result<(), SessionError> {
        let Some(parent) = self.places.get(&fork.parent).and_then(|place| recorded.get(*place)) else {
            return Ok(());
        };
        let Ok(cookie) = u32::try_from(fork.head.target) else {
            return Ok(());
        };
        let mut child = Recorded::forked(parent, cookie, fork);
        let place = recorded.len();
        let there = target::alive(&child.target);
        let pidfd = if there { pidfd(fork.pid).ok() } else { None };
        match &pidfd {
            Some(pidfd) => {
                let data = EventData::new_u64(place as u64);
                epoll::add(&self.epoll, pidfd, data, EventFlags::IN)
                    .map_err(|error| SessionError::Wait(error.into()))?;
                if self.engine.config(child.cookie)?.started_ns == ARMED {
                    child.start(monotonic_ns(), options, &mut self.engine)?;
                }
            }
            None => {
                let totals = self.engine.totals(child.cookie)?;
                child.notice_exec(&totals);
                child.exited(&totals, monotonic_ns());
            }
        }
        self.places.insert(fork.head.target, place);
        self.pidfds.push(pidfd);
        recorded.push(child);
        Ok(())
    }

    /// Closes the kernel part's books of those that are gone, so that there is room for
    /// others.
    pub(super) fn retire(
        &mut self,
        recorded: &mut Vec<Recorded>,
        options: &Options,
    ) -> Result<(), SessionError> {
        let is_new = |target: &Recorded| target.gone_ns.is_some() && target.kept.is_none();
        if !recorded.iter().any(is_new) {
            return Ok(());
        }
        let gone: Vec<usize> =
            (0..).zip(recorded.iter()).filter(|(_, target)| is_new(target)).map(|(place, _)| place).collect();
        for target in recorded.iter_mut().filter(|target| is_new(target)) {
            target.stop(&mut self.engine)?;
        }
        self.drain(recorded, options)?;
        // Their numbers are others' soon.
        self.turn_pairs(recorded)?;
        self.turn_pairs(recorded)?;
        let cookies: Vec<u32> =
            gone.iter().filter_map(|place| recorded.get(*place)).map(|target| target.cookie).collect();
        let mut kept = self.engine.kept(&cookies)?;
        for place in gone {
            let Some(target) = recorded.get_mut(place) else {
                continue;
            };
            let Some(kept) = kept.remove(&target.cookie) else {
                continue;
            };
            self.engine.retire(target.cookie, target.first_pid, &kept)?;
            target.kept = Some(kept);
            self.places.remove(&u64::from(target.cookie));
            if let Some(pidfd) = self.pidfds.get_mut(place) {
                *pidfd = None;
            }
        }
        Ok(())
    }
}
