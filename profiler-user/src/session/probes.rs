//! Which instructions are probed, and in which processes.

use std::collections::HashSet;

use bytemuck::Zeroable as _;
use profiler_common::record::Probed;

use super::{Labels, Options, SessionError, Sites, recorded::Recorded};
use crate::{
    kernel::{Engine, Probe, Scope, Site},
    target::{self, Greenlet, PythonSites, Target, Version},
};

/// The probes that are set.
pub(super) struct Probes {
    choice: Sites,
    /// Whether they fire in every process: where children are followed, for these have none
    /// of the probes that were set for their parent alone.
    every: bool,
    /// Whether greenlets inherit labels.
    inherit: bool,
    set: HashSet<(Probe, File, u64)>,
    /// Where they fire in one process: the targets of whose code objects it is told when they are
    /// freed.
    codes_of: HashSet<u32>,
    /// The libraries that are probed in every process. A library's number is its place here,
    /// from 1.
    libraries: Vec<Library>,
}

/// A file's device and inode.
type File = ((u32, u32), u64);

/// A greenlet library, as it was found in one process.
struct Library {
    /// The Python that can load it.
    python: (u8, u8),
    greenlet: Greenlet,
}

impl Probes {
    pub(super) fn new(options: &Options, every: bool) -> Self {
        let inherit = options.inherit && options.labels != Labels::None;
        Self {
            choice: options.sites,
            every,
            inherit,
            set: HashSet::new(),
            codes_of: HashSet::new(),
            libraries: Vec::new(),
        }
    }

    /// Sets those of a target.
    pub(super) fn attach(
        &mut self,
        target: &Target,
        cookie: u32,
        engine: &mut Engine,
    ) -> Result<(), SessionError> {
        let mut sites = sites(target, self.choice, self.inherit, engine.has_clocks())?;
        self.attach_python(target, cookie, engine);
        if !self.every {
            let scope = Scope::Process { pid: target.pid, target: cookie };
            return sites.iter().try_for_each(|site| Ok(engine.attach(scope, site)?));
        }
        let fresh = self.libraries.len() as u64 + 1;
        sites.retain(|site| !self.set.contains(&(site.probe, site.file, site.offset)));
        // Before them: should one fail, the number is used.
        if let Some(greenlet) = &target.greenlet
            && !sites.is_empty()
        {
            let python = (target.python.version.major, target.python.version.minor);
            self.libraries.push(Library { python, greenlet: greenlet.clone() });
        }
        for site in &mut sites {
            site.probed.library = fresh;
            engine.attach(Scope::Every, site)?;
            self.set.insert((site.probe, site.file, site.offset));
        }
        Ok(())
    }

    /// Sets the probes in CPython that tell of new programs and of greenlet. Without them both
    /// are found by looks.
    fn attach_python(&mut self, target: &Target, cookie: u32, engine: &mut Engine) {
        self.codes_of.remove(&cookie);
        let PythonSites { module, up, code_freed, code_type: _ } = &target.python.sites;
        let up = up.as_ref().filter(|_| self.every);
        let wanted =
            [(Probe::CodeFreed, code_freed.as_ref()), (Probe::Module, module.as_ref()), (Probe::Up, up)];
        for (probe, found) in wanted.into_iter().filter(|_| self.choice != Sites::Empty) {
            let Some(found) = found else {
                continue;
            };
            let site = Site {
                probe,
                path: target.python.file.open.clone(),
                file: target.python.file.id(),
                offset: found.file_offset,
                probed: Probed::zeroed(),
            };
            let scope =
                if self.every { Scope::Every } else { Scope::Process { pid: target.pid, target: cookie } };
            let key = (probe, site.file, site.offset);
            if self.set.contains(&key) || engine.attach(scope, &site).is_err() {
                continue;
            }
            if self.every {
                self.set.insert(key);
            } else if probe == Probe::CodeFreed {
                self.codes_of.insert(cookie);
            }
        }
    }

    /// Whether the kernel part tells when that process loads greenlet.
    pub(super) fn tell_modules_of(&self, target: &Target) -> bool {
        let site = target.python.sites.module.as_ref();
        site.is_some_and(|site| {
            self.set.contains(&(Probe::Module, target.python.file.id(), site.file_offset))
        })
    }

    /// Tells targets of whose code objects it is told when they are freed.
    pub(super) fn tell_codes(&self, recorded: &mut [Recorded]) {
        for target in recorded {
            let python = &target.target.python;
            let told = python.sites.code_freed.as_ref().is_some_and(|site| {
                self.set.contains(&(Probe::CodeFreed, python.file.id(), site.file_offset))
            });
            if told || self.codes_of.contains(&target.cookie) {
                target.expect_texts();
            }
        }
    }

    /// Tells targets the number of their library. One without greenlet is told which it will
    /// load if it loads one that is known: of those for its Python that with the number
    /// `near`, else the first.
    pub(super) fn tell(&self, recorded: &mut [Recorded], near: u32) {
        let fits = |number: &u32, version: Version| {
            self.known(*number).is_some_and(|known| known.python == (version.major, version.minor))
        };
        for target in recorded.iter_mut().filter(|target| target.library() == 0) {
            let version = target.target.python.version;
            let number = match &target.target.greenlet {
                Some(own) => Some(self.number(own)),
                None => {
                    let mut numbers = std::iter::once(near).chain(1..).take(self.libraries.len() + 1);
                    numbers.find(|number| fits(number, version))
                }
            };
            if let Some(number) = number
                && let Some(library) = self.library(number)
            {
                target.expect(number, library);
            }
        }
    }

    /// The number of a library; 0 if it is not probed in every process.
    pub(super) fn number(&self, greenlet: &Greenlet) -> u32 {
        let mut numbered = self.libraries.iter().zip(1..);
        let same = numbered.find(|(known, _)| known.greenlet.file.id() == greenlet.file.id());
        same.map_or(0, |(_, number)| number)
    }

    /// A library by its number, as it is mapped in some process.
    pub(super) fn library(&self, number: u32) -> Option<&Greenlet> {
        self.known(number).map(|known| &known.greenlet)
    }

    fn known(&self, number: u32) -> Option<&Library> {
        self.libraries.get(usize::try_from(number).ok()?.checked_sub(1)?)
    }
}

fn sites(target: &Target, choice: Sites, inherit: bool, has_clocks: bool) -> Result<Vec<Site>, SessionError> {
    if target.greenlet.is_none() && has_clocks {
        // Its threads are recorded.
        return Ok(Vec::new());
    }
    let found = target.greenlet()?;
    let site = |probe, site: &target::Site| Site {
        probe,
        path: found.file.open.clone(),
        file: found.file.id(),
        offset: site.file_offset,
        probed: Probed {
            from_start: found.file.address(site.vaddr).0.wrapping_sub(found.module.start),
            module_bytes: found.module.end.wrapping_sub(found.module.start),
            library: 0,
        },
    };
    let switchstack = |probe| match &found.sites.switchstack {
        Some(switchstack) => Ok(site(probe, switchstack)),
        None => Err(SessionError::NoSite { pid: target.pid, function: "g_switchstack" }),
    };
    let mut sites: Vec<Site> = match choice {
        Sites::Switchstack => vec![switchstack(Probe::Switchstack)?],
        Sites::Empty => return Ok(vec![switchstack(Probe::Empty)?]),
        Sites::Pair => {
            let [user, main, stub] = found.sites.pair.as_slice() else {
                return Err(SessionError::NoSite { pid: target.pid, function: "g_switch" });
            };
            vec![site(Probe::Switch, user), site(Probe::Switch, main), site(Probe::Initialstub, stub)]
        }
    };
    sites.extend(found.sites.freed.iter().map(|found| site(Probe::Freed, found)));
    if inherit {
        sites.extend(found.made.iter().map(|found| site(Probe::Made, found)));
    }
    Ok(sites)
}
