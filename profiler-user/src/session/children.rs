//! Making processes targets: those that were given, their children that are there, and
//! those that are forked.

use std::collections::HashSet;

use profiler_common::{
    fault::Fault,
    record::{ARMED, ForkRecord},
};
use rustix::event::epoll::{self, EventData, EventFlags};

use super::{Options, Session, SessionError, images::Image, monotonic_ns, pidfd, recorded::Recorded, watch};
use crate::{
    kernel::Engine,
    target::{self, Target, TargetError},
};

/// A process that is to be recorded.
pub(super) struct Wanted {
    pub(super) target: Target,
    /// The pid of the target that it is a child of.
    pub(super) parent: Option<u32>,
    /// Its pid in the kernel's first pid namespace, if it is known.
    pub(super) first_pid: Option<u32>,
    /// When it replaced another program, if it did.
    pub(super) exec_ns: Option<u64>,
    /// Whether its threads may be known for what the process was before.
    pub(super) again: bool,
}

impl Wanted {
    /// One that the user asked for.
    pub(super) const fn given(target: Target) -> Self {
        Self { target, parent: None, first_pid: None, exec_ns: None, again: false }
    }
}

/// What is known of them now.
pub(super) struct Armed {
    pub(super) recorded: Vec<Recorded>,
    /// Their children that run no Python that is up.
    pub(super) images: Vec<Image>,
}

/// Makes processes known to the kernel part and has them watched; with their children, and
/// theirs, if those are followed, but for those `seen`.
///
/// A target is watched before one looks for its children: those that it makes from then
/// on the kernel part tells of.
pub(super) fn arm(
    mut wanted: Vec<Wanted>,
    seen: &mut HashSet<u32>,
    options: &Options,
    engine: &mut Engine,
) -> Result<Armed, SessionError> {
    let follows = options.children && engine.follows();
    wanted.reverse();
    let mut armed = Armed { recorded: Vec::new(), images: Vec::new() };
    while let Some(next) = wanted.pop() {
        let Wanted { parent, first_pid, again, .. } = next;
        let pid = next.target.pid;
        // Not one that the user asked for just now: its end is not the end of the recording.
        let optional = parent.is_some() || again;
        let Some(cookie) = engine.take_number() else {
            if !optional {
                return Err(SessionError::TooMany { given: armed.recorded.len() + wanted.len() + 1 });
            }
            let parent = armed.recorded.iter_mut().find(|target| Some(target.target.pid) == parent);
            if let Some(parent) = parent {
                parent.fault(Fault::ChildLeftOut);
            }
            continue;
        };
        let mut recorded = match Recorded::arm(next, cookie, options, engine) {
            Ok(recorded) => recorded,
            // A child may go away at any time.
            Err(_) if optional => {
                engine.release(cookie, None)?;
                continue;
            }
            Err(error) => return Err(error),
        };
        // Before the probes: a hit would begin the thread's clock without its past.
        if !watch::watch(&mut recorded, monotonic_ns(), again, engine) {
            // Its parent was watched when it was made: the kernel part tells of it.
            engine.release(cookie, first_pid)?;
            continue;
        }
        recorded.know(engine)?;
        if again && !target::same_image(&recorded.target) {
            watch::forget(pid, engine);
            recorded.gone_ns = Some(monotonic_ns());
        }
        if follows {
            let (children, images) = descendants(&mut recorded, seen, engine);
            wanted.extend(
                children.into_iter().map(|target| Wanted { parent: Some(pid), ..Wanted::given(target) }),
            );
            armed.images.extend(images);
        }
        armed.recorded.push(recorded);
    }
    Ok(armed)
}

/// The children of a target that run Python, and of those that don't the children. These
/// others may become a Python yet.
fn descendants(
    recorded: &mut Recorded,
    seen: &mut HashSet<u32>,
    engine: &mut Engine,
) -> (Vec<Target>, Vec<Image>) {
    let mut found = Vec::new();
    let mut images = Vec::new();
    let mut parents = vec![recorded.target.pid];
    while let Some(parent) = parents.pop() {
        for child in target::children(parent) {
            if !seen.insert(child) {
                continue;
            }
            match target::inspect(child) {
                Ok(target) => found.push(target),
                Err(error @ (TargetError::NotPython { .. } | TargetError::NotReady { .. })) => {
                    // Before one looks for its children, as above.
                    watch::keep_kin(child, &recorded.kin(), engine);
                    images.extend(Image::of_child(child, recorded));
                    if matches!(error, TargetError::NotPython { .. }) {
                        parents.push(child);
                    }
                }
                Err(TargetError::NoAnswer { .. }) => {
                    recorded.fault(Fault::NoAnswer);
                    recorded.fault(Fault::ChildLeftOut);
                }
                // Gone, or not to be read.
                Err(_) => {}
            }
        }
    }
    (found, images)
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
