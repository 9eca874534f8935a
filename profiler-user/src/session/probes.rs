//! Which instructions are probed, and in which processes.

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
};

use bytemuck::Zeroable as _;
use profiler_common::record::Probed;

use super::{Labels, Options, SessionError, Sites, recorded::Recorded};
use crate::{
    kernel::{Engine, Identity, Probe, Scope, Site},
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
    set: HashSet<(Probe, Identity, u64)>,
    /// The targets of whose code objects it is told when they are freed.
    codes_of: HashSet<u32>,
    /// The libraries that are probed in every process. A library's number is its place here,
    /// from 1.
    libraries: Vec<Library>,
    /// Which of them each target has, by the target's number.
    numbers: HashMap<u32, u32>,
    /// By which paths Pythons are reached that tell of modules.
    telling: HashSet<PathBuf>,
}

/// A greenlet library, as it was found in one process.
struct Library {
    /// To a uprobe it is this file, whatever it is called and wherever it is mounted.
    identity: Identity,
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
            numbers: HashMap::new(),
            telling: HashSet::new(),
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
        self.attach_loops(target, cookie, engine);
        if !self.every {
            let scope = Scope::Process { pid: target.pid, target: cookie };
            return sites.iter().try_for_each(|site| Ok(engine.attach(scope, site)?));
        }
        self.numbers.remove(&cookie);
        let Some(greenlet) = target.greenlet.as_ref().filter(|_| !sites.is_empty()) else {
            return Ok(());
        };
        let identity = identity(target, greenlet, engine)?;
        let number = match self.number(identity) {
            0 => {
                let python = (target.python.version.major, target.python.version.minor);
                self.libraries.push(Library { identity, python, greenlet: greenlet.clone() });
                self.libraries.len() as u32
            }
            known => known,
        };
        self.numbers.insert(cookie, number);
        sites.retain(|site| !self.set.contains(&(site.probe, identity, site.offset)));
        for site in &mut sites {
            site.probed.library = number.into();
            engine.attach(Scope::Every, site)?;
            self.set.insert((site.probe, identity, site.offset));
        }
        Ok(())
    }

    /// Sets the probes in CPython that tell of new programs and of greenlet. Without them both
    /// are found by looks.
    fn attach_python(&mut self, target: &Target, cookie: u32, engine: &mut Engine) {
        let choice = self.choice;
        let PythonSites { module, up, code_freed, code_type: _ } = &target.python.sites;
        let up = up.as_ref().filter(|_| self.every);
        let wanted =
            [(Probe::CodeFreed, code_freed.as_ref()), (Probe::Module, module.as_ref()), (Probe::Up, up)];
        let path = &target.python.file.open;
        // Of another process before, perhaps.
        self.telling.remove(path);
        self.codes_of.remove(&cookie);
        for (probe, found) in wanted.into_iter().filter(|_| choice != Sites::Empty) {
            let Some(found) = found else {
                continue;
            };
            if !self.attach_one(target, cookie, probe, path, found, engine) {
                continue;
            }
            if probe == Probe::CodeFreed {
                self.codes_of.insert(cookie);
            } else if probe == Probe::Module && self.every {
                self.telling.insert(path.clone());
            }
        }
    }

    /// Sets a probe that can be done without; true if it is set.
    fn attach_one(
        &mut self,
        target: &Target,
        cookie: u32,
        probe: Probe,
        path: &Path,
        found: &target::Site,
        engine: &mut Engine,
    ) -> bool {
        let Ok(identity) = engine.identity(path) else {
            return false;
        };
        let site = Site { probe, path: path.to_owned(), offset: found.file_offset, probed: Probed::zeroed() };
        let scope =
            if self.every { Scope::Every } else { Scope::Process { pid: target.pid, target: cookie } };
        let key = (probe, identity, site.offset);
        if self.set.contains(&key) {
            return true;
        }
        let set = engine.attach(scope, &site).is_ok();
        if set && self.every {
            self.set.insert(key);
        }
        set
    }

    /// Sets the probes where event loops poll. Without them less is known of how long greenlets
    /// were queued.
    fn attach_loops(&mut self, target: &Target, cookie: u32, engine: &mut Engine) {
        let choice = self.choice;
        let sites = target.loops.iter().flat_map(|found| found.sites.iter().map(|site| (&found.file, site)));
        for (file, found) in sites.filter(|_| choice != Sites::Empty) {
            let _set = self.attach_one(target, cookie, Probe::Poll, &file.open, found, engine);
        }
    }

    /// Whether the kernel part tells when that process loads greenlet.
    pub(super) fn tell_modules_of(&self, target: &Target) -> bool {
        self.telling.contains(&target.python.file.open)
    }

    /// Tells targets of whose code objects it is told when they are freed.
    pub(super) fn tell_codes(&self, recorded: &mut [Recorded]) {
        for target in recorded.iter_mut().filter(|target| self.codes_of.contains(&target.cookie)) {
            target.expect_texts();
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
                Some(_) => self.numbers.get(&target.cookie).copied(),
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

    /// Whether a target's library is the one with that number. `None` when its file can't be
    /// looked at: the target has ended.
    pub(super) fn is(
        &self,
        number: u32,
        target: &Target,
        greenlet: &Greenlet,
        engine: &mut Engine,
    ) -> Option<bool> {
        let own = identity(target, greenlet, engine).ok();
        // A process that ends loses its memory first, then its files.
        if own.is_none() && target::greenlet_file(target.pid).is_none() {
            return None;
        }
        Some(own.is_some() && own == self.known(number).map(|known| known.identity))
    }

    /// The number of a library; 0 if it is not probed in every process.
    fn number(&self, identity: Identity) -> u32 {
        let mut numbered = self.libraries.iter().zip(1..);
        numbered.find(|(known, _)| known.identity == identity).map_or(0, |(_, number)| number)
    }

    /// A library by its number, as it is mapped in some process.
    pub(super) fn library(&self, number: u32) -> Option<&Greenlet> {
        self.known(number).map(|known| &known.greenlet)
    }

    fn known(&self, number: u32) -> Option<&Library> {
        self.libraries.get(usize::try_from(number).ok()?.checked_sub(1)?)
    }
}

fn identity(target: &Target, greenlet: &Greenlet, engine: &mut Engine) -> Result<Identity, SessionError> {
    let path = &greenlet.file.open;
    engine.identity(path).map_err(|source| SessionError::Library {
        pid: target.pid,
        path: path.clone(),
        source,
    })
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
