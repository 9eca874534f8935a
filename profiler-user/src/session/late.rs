//! Targets that load greenlet while they are recorded.
//!
//! A library that another target has is probed in every process: the kernel part finds it
//! in a target at its first hit, and nothing is missed. Of any other it tells when it makes
//! its module, and its target is recorded anew some milliseconds later.

use profiler_common::{fault::Fault, record::LoadedRecord};

use super::{Options, Session, SessionError, children::Wanted, monotonic_ns, recorded::Recorded, watch};
use crate::target;

impl Session {
    /// The kernel part was hit in a library that was not there when its target was looked at.
    pub(super) fn loaded(&self, loaded: &LoadedRecord, recorded: &mut [Recorded]) {
        let target = self.places.get(&loaded.head.target).and_then(|place| recorded.get_mut(*place));
        let Some(target) = target.filter(|target| target.target.greenlet.is_none()) else {
            return;
        };
        let number = u32::try_from(loaded.library).unwrap_or(0);
        match self.probes.library(number).filter(|_| number == target.library()) {
            Some(library) => target.load(library.mapped_at(loaded.start.0)),
            None => target.reload = true,
        }
    }

    /// Looks for greenlet libraries that nothing tells of.
    pub(super) fn look_for_greenlet(&self, recorded: &mut [Recorded]) {
        let without = |target: &&mut Recorded| {
            target.gone_ns.is_none()
                && target.target.greenlet.is_none()
                && !self.probes.tell_modules_of(&target.target)
        };
        for target in recorded.iter_mut().filter(without) {
            if let Some(file) = target::greenlet_file(target.target.pid) {
                // Of the expected one the first hit tells.
                let expected = self.probes.library(target.library()).map(|known| known.file.id());
                target.reload |= expected != Some(file);
            }
        }
    }

    /// Records those anew that have a library by now whose layout they were not given.
    pub(super) fn reload(
        &mut self,
        recorded: &mut Vec<Recorded>,
        options: &Options,
    ) -> Result<(), SessionError> {
        for place in 0..recorded.len() {
            let Some(old) = recorded.get_mut(place) else {
                continue;
            };
            if !std::mem::take(&mut old.reload) || old.stays || old.target.greenlet.is_some() {
                continue;
            }
            let pid = old.target.pid;
            if target::greenlet_file(pid).is_none() && target::same_image(&old.target) {
                // It was another extension: of one that has ended, or is about to, there is no file
                // either, nor a program.
                continue;
            }
            let found =
                target::inspect(pid).ok().filter(|target| target.incarnation == old.target.incarnation);
            let is_expected = found.as_ref().and_then(|target| match &target.greenlet {
                Some(greenlet) => self.probes.is(old.library(), target, greenlet, &mut self.engine),
                None => Some(true),
            });
            let (Some(target), Some(is_expected)) = (found, is_expected) else {
                // It is gone, with what it did, but for what the expected library's probes took.
                if !self.engine.has_module(old.cookie)? {
                    old.fault(Fault::GreenletLate);
                }
                continue;
            };
            if is_expected {
                // Of that one the first hit tells.
                continue;
            }
            old.fault(Fault::GreenletLate);
            old.stays = true;
            if !watch::can_forget(pid) {
                continue;
            }
            old.name_threads();
            old.stop(&mut self.engine)?;
            if let Some(first_pid) = old.first_pid {
                self.engine.unknow(first_pid, old.cookie)?;
            }
            watch::forget(pid, &mut self.engine);
            old.gone_ns = Some(monotonic_ns());
            let wanted =
                Wanted { target, parent: old.parent, first_pid: old.first_pid, exec_ns: None, again: true };
            self.retire(recorded, options)?;
            let _added = self.add(wanted, 0, recorded, options)?;
        }
        Ok(())
    }
}
