//! Programs that took the place of others: looked at until they are a Python that is up.
//!
//! The kernel part tells when one begins. Its interpreter comes up some milliseconds later,
//! which the kernel part tells as well if it is the Python of another target, and the program
//! a usual one.

use std::{
    collections::HashSet,
    os::fd::{AsFd as _, OwnedFd},
    time::Duration,
};

use profiler_common::{
    fault::Fault,
    record::{ExecRecord, Kin, NO_TARGET, UpRecord},
};
use rustix::event::{
    PollFd, PollFlags, Timespec,
    epoll::{self, EventData, EventFlags},
    poll,
};

use super::{
    Options, Session, SessionError,
    children::{self, Armed, Wanted},
    monotonic_ns, pidfd,
    recorded::Recorded,
    watch,
};
use crate::target::{self, Target, TargetError};

/// From a program's begin to the first look at it.
const FIRST_LOOK_NS: u64 = 1_000_000;
/// Looks at one program, each half as late again as the one before: twelve seconds.
const MAX_LOOKS: u32 = 24;
/// Programs that are looked at.
const MAX_IMAGES: usize = 1_024;

/// A program that may be, or become, a Python that is up.
pub(super) struct Image {
    pid: u32,
    first_pid: Option<u32>,
    pidfd: OwnedFd,
    kin: Kin,
    /// The pid of the target that it is a child of.
    parent: Option<u32>,
    /// When it took another's place, if that was while this one was recorded.
    exec_ns: Option<u64>,
    /// Whether its file is a Python's.
    is_python: bool,
    since_ns: u64,
    looks: u32,
    due_ns: u64,
}

impl Image {
    /// A child that was there when its parent was first looked at; none if it is gone.
    pub(super) fn of_child(pid: u32, parent: &Recorded) -> Option<Self> {
        let now = monotonic_ns();
        Some(Self {
            pid,
            first_pid: None,
            pidfd: pidfd(pid).ok()?,
            kin: parent.kin(),
            parent: Some(parent.target.pid),
            exec_ns: None,
            is_python: false,
            since_ns: now,
            looks: 0,
            due_ns: now + FIRST_LOOK_NS,
        })
    }

    fn has_ended(&self) -> bool {
        let mut on = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut on, Some(&now)).is_ok_and(|ready| ready > 0)
    }

    /// Puts off the next look; false if there was the last one.
    fn look_again(&mut self) -> bool {
        self.looks += 1;
        let waited_ns = self.due_ns.saturating_sub(self.since_ns);
        self.due_ns = self.since_ns + waited_ns + waited_ns / 2;
        self.looks < MAX_LOOKS
    }
}

impl Session {
    /// A target, or what descends from one, is another program now.
    pub(super) fn replaced(&mut self, exec: &ExecRecord, recorded: &mut [Recorded], options: &Options) {
        let file = Some((exec.device, exec.inode));
        let is_python = recorded.iter().any(|known| known.target.program == file);
        let Some(origin) = recorded.iter_mut().rev().find(|target| target.kin() == exec.kin) else {
            return;
        };
        let own = exec.head.target != NO_TARGET;
        if own {
            origin.gone_ns.get_or_insert(exec.head.time_ns);
        }
        if !options.children {
            return;
        }
        let parent = if own { origin.parent } else { Some(origin.target.pid) };
        // What it was for a moment is gone as well.
        if let Some(place) = self.images.iter().position(|image| image.pid == exec.pid)
            && self.images.swap_remove(place).is_python
        {
            origin.fault(Fault::ExecLeftOut);
        }
        let room = self.images.len() < MAX_IMAGES;
        let pidfd = pidfd(exec.pid).ok().filter(|pidfd| {
            // Else the pid is another's by now.
            room && self.engine.kin(pidfd.as_fd()).is_ok_and(|kin| kin == Some(exec.kin))
        });
        let Some(pidfd) = pidfd else {
            if is_python || !room {
                origin.fault(Fault::ExecLeftOut);
            }
            return;
        };
        self.images.push(Image {
            pid: exec.pid,
            first_pid: Some(exec.first_pid),
            pidfd,
            kin: exec.kin,
            parent,
            exec_ns: Some(exec.head.time_ns),
            is_python,
            since_ns: exec.head.time_ns,
            looks: 0,
            due_ns: exec.head.time_ns + FIRST_LOOK_NS,
        });
    }

    /// A program's interpreter is up: it is looked at now.
    pub(super) fn up(&mut self, up: &UpRecord) {
        for image in self.images.iter_mut().filter(|image| image.pid == up.pid) {
            image.due_ns = up.head.time_ns;
        }
    }

    /// How long until a program is to be looked at.
    pub(super) fn until_next_look(&self) -> Option<Duration> {
        let next = self.images.iter().map(|image| image.due_ns).min()?;
        Some(Duration::from_nanos(next.saturating_sub(monotonic_ns())))
    }

    /// Looks at the programs whose time has come, and makes those targets that are up.
    pub(super) fn look(
        &mut self,
        recorded: &mut Vec<Recorded>,
        options: &Options,
    ) -> Result<(), SessionError> {
        let now = monotonic_ns();
        let (due, later) = std::mem::take(&mut self.images).into_iter().partition(|image: &Image| {
            // Where the books of the program before are open, its thread's would be lost.
            let open = |known: &Recorded| known.target.pid == image.pid && known.kept.is_none();
            image.due_ns <= now && !recorded.iter().any(open)
        });
        self.images = later;
        for mut image in due {
            let found = target::inspect(image.pid);
            let missed = match found {
                _ if image.has_ended() => image.is_python,
                Ok(target) => !self.take_image(&image, target, recorded, options)?,
                Err(
                    error @ (TargetError::NotPython { .. }
                    | TargetError::NotReady { .. }
                    | TargetError::NoSuchProcess { .. }
                    | TargetError::Gone { .. }
                    | TargetError::Elf { .. }
                    | TargetError::Io { .. }),
                ) => {
                    if image.look_again() {
                        self.images.push(image);
                        continue;
                    }
                    image.is_python || !matches!(error, TargetError::NotPython { .. })
                }
                Err(
                    TargetError::NoGreenlet { .. }
                    | TargetError::UnsupportedPython { .. }
                    | TargetError::UnsupportedGreenlet { .. }
                    | TargetError::FreeThreaded { .. }
                    | TargetError::NoAnswer { .. }
                    | TargetError::NotPermitted { .. },
                ) => true,
            };
            if missed {
                left_out(image.kin, recorded);
            }
        }
        Ok(())
    }

    /// The recording ends: those that began and were not up by now are left out.
    pub(super) fn give_up(&mut self, recorded: &mut [Recorded]) {
        for image in std::mem::take(&mut self.images).into_iter().filter(|image| image.is_python) {
            left_out(image.kin, recorded);
        }
    }

    /// Makes a program that is up a target; false if that could not be.
    fn take_image(
        &mut self,
        image: &Image,
        target: Target,
        recorded: &mut Vec<Recorded>,
        options: &Options,
    ) -> Result<bool, SessionError> {
        let Image { parent, first_pid, exec_ns, .. } = *image;
        let again = exec_ns.is_some();
        let origin = recorded.iter().rev().find(|target| target.kin() == image.kin);
        let near = origin.map_or(0, Recorded::library);
        self.add(Wanted { target, parent, first_pid, exec_ns, again }, near, recorded, options)
    }

    /// Records another process from now on; false if that could not be. If it loads
    /// greenlet, it will be the library `near`, if that can be.
    pub(super) fn add(
        &mut self,
        wanted: Wanted,
        near: u32,
        recorded: &mut Vec<Recorded>,
        options: &Options,
    ) -> Result<bool, SessionError> {
        let alive = recorded.iter().filter(|target| target.gone_ns.is_none()).map(|target| target.target.pid);
        let mut seen: HashSet<u32> = alive.chain(self.images.iter().map(|image| image.pid)).collect();
        seen.insert(wanted.target.pid);
        let Armed { recorded: mut armed, images } =
            children::arm(vec![wanted], &mut seen, options, &mut self.engine)?;
        self.images.extend(images);
        let added = !armed.is_empty();
        let mut attached = Vec::new();
        for target in &armed {
            attached.push(self.probes.attach(&target.target, target.cookie, &mut self.engine));
        }
        self.probes.tell(&mut armed, near);
        self.probes.tell_codes(&mut armed);
        // There may be a library more than before.
        self.probes.tell(recorded, 0);
        for (mut target, attached) in armed.into_iter().zip(attached) {
            let place = recorded.len();
            let pidfd = pidfd(target.target.pid).ok();
            let now = monotonic_ns();
            target.start(now, options, &mut self.engine)?;
            if attached.is_err() {
                // Its switches would go unseen.
                watch::forget(target.target.pid, &mut self.engine);
                target.fault(Fault::ExecLeftOut);
                target.gone_ns = Some(now);
            }
            match &pidfd {
                Some(pidfd) => {
                    let data = EventData::new_u64(place as u64);
                    epoll::add(&self.epoll, pidfd, data, EventFlags::IN)
                        .map_err(|error| SessionError::Wait(error.into()))?;
                }
                None => target.gone_ns = Some(now),
            }
            self.places.insert(u64::from(target.cookie), place);
            self.pidfds.push(pidfd);
            recorded.push(target);
        }
        Ok(added)
    }
}

/// Counts a Python that is not recorded, for the target that it descends from.
fn left_out(kin: Kin, recorded: &mut [Recorded]) {
    if let Some(origin) = recorded.iter_mut().rev().find(|target| target.kin() == kin) {
        origin.fault(Fault::ExecLeftOut);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_are_bounded_in_number_and_time() {
        let pidfd = pidfd(std::process::id()).unwrap();
        let kin = Kin { target: 0, made_ns: 0 };
        let (since_ns, due_ns) = (1_000, 1_000 + FIRST_LOOK_NS);
        let mut image = Image {
            pid: 1,
            first_pid: None,
            pidfd,
            kin,
            parent: None,
            exec_ns: None,
            is_python: false,
            since_ns,
            looks: 0,
            due_ns,
        };
        assert!(!image.has_ended());
        let mut looks = 1;
        let mut before = image.due_ns;
        while image.look_again() {
            assert!(image.due_ns > before);
            before = image.due_ns;
            looks += 1;
        }
        assert_eq!(looks, MAX_LOOKS);
        assert!((10..15).contains(&((before - since_ns) / 1_000_000_000)), "{before}");
    }
}
