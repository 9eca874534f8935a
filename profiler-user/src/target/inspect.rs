//! From a pid to everything that a recording needs to know of it.

use std::{fs, ops::Range, path::Path, time::Duration};

use profiler_common::{address::Addr, clock::Gil, memory::Memory as _};

use super::{
    Greenlet, Loop, MappedFile, Python, Target, TargetError, Version, Warning,
    debug_offsets::DebugOffsets,
    elf::{self, Elf, HowFound, Source},
    extract, layouts,
    maps::Mapping,
    polls,
    process::Facts,
    site::{PythonSites, Site, Sites},
};
use crate::{
    memory::LiveProcess,
    python::{field, objects::NONE},
};

/// The oldest greenlet that is covered.
const FIRST_GREENLET: Version = Version::new(3, 0, 0);

/// How long a step of the look may take: opening a library, say, and parsing it.
const PATIENCE: Duration = Duration::from_secs(5);

/// Interpreters that are counted.
const MAX_INTERPRETERS: usize = 1_000;

/// Looks at a process.
///
/// # Errors
///
/// [`TargetError`]; a Python that has loaded no greenlet is no error here.
pub fn inspect(pid: u32) -> Result<Target, TargetError> {
    let memory = LiveProcess::open(pid).map_err(|error| match Facts::read(pid) {
        Err(why) => why,
        Ok(_) => TargetError::io(pid, "find it", error),
    })?;
    // The kernel may have to read its memory for what /proc tells, and its files may be anybody's.
    memory.patiently(PATIENCE, move |memory| look(pid, memory)).unwrap_or(Err(TargetError::NoAnswer { pid }))
}

fn look(pid: u32, memory: LiveProcess) -> Result<Target, TargetError> {
    let facts = Facts::read(pid)?;
    let mut look = Look { pid, facts: &facts, memory, warnings: Vec::new() };
    let python = look.python()?;
    let greenlet = look.greenlet(&python)?;
    let loops = if greenlet.is_some() { look.loops(&python) } else { Vec::new() };
    let Look { warnings, .. } = look;
    let Facts { incarnation, exe, program, command, namespaces, threads, maps: _ } = facts;
    Ok(Target {
        pid,
        incarnation,
        exe,
        program,
        command,
        namespaces,
        threads,
        python,
        greenlet,
        loops,
        warnings,
    })
}

struct Look<'f> {
    pid: u32,
    facts: &'f Facts,
    memory: LiveProcess,
    warnings: Vec<Warning>,
}

impl Look<'_> {
    /// The mapping of each file that has the file's beginning, or its first one.
    fn files(&self, wanted: impl Fn(&Mapping) -> bool) -> Vec<&Mapping> {
        let mut files: Vec<&Mapping> = Vec::new();
        for mapping in self.facts.maps.iter().filter(|mapping| mapping.is_file()) {
            if wanted(mapping) && !files.iter().any(|known| known.same_file(mapping)) {
                files.push(mapping);
            }
        }
        files
    }

    fn elf_error(&self, mapping: &Mapping, source: object::Error) -> TargetError {
        TargetError::Elf { pid: self.pid, path: mapping.path.clone().into(), source }
    }

    fn mapped_file(&self, source: &Source, elf: &Elf<'_>, mapping: &Mapping) -> Option<MappedFile> {
        Some(MappedFile {
            path: mapping.path.clone().into(),
            open: source.open.clone(),
            device: mapping.device,
            inode: mapping.inode,
            replaced: source.replaced,
            bias: elf::bias(elf, mapping)?,
        })
    }

    fn read_error(&self, what: &'static str, addr: Addr) -> TargetError {
        match self.memory.try_read(addr, &mut [0; 8]) {
            Err(error) => TargetError::io(self.pid, what, error),
            Ok(()) => TargetError::NotReady { pid: self.pid },
        }
    }

    fn word(&mut self, what: &'static str, addr: Addr) -> Result<u64, TargetError> {
        self.memory.word(addr).map_err(|_| self.read_error(what, addr))
    }

    fn python(&mut self) -> Result<Python, TargetError> {
        let exe = self.facts.exe.to_string_lossy().into_owned();
        // A library first: a program that uses one exports nothing itself.
        let mut candidates = self.files(|mapping| mapping.file_name().starts_with("libpython"));
        candidates.extend(self.files(|mapping| mapping.path == exe));
        let mut last_error = None;
        for mapping in candidates {
            let source = match Source::open(self.pid, mapping) {
                Ok(source) => source,
                Err(error) => {
                    last_error = Some(TargetError::io(self.pid, "open the program or its libpython", error));
                    continue;
                }
            };
            let elf = source.parse().map_err(|error| self.elf_error(mapping, error))?;
            let names = ["_PyRuntime", "Py_Version", "Py_GetVersion"];
            let [runtime, version_vaddr, any] = elf::symbols(&elf, names).map(|found| found.map(|f| f.0));
            if runtime.is_none() && any.is_none() {
                continue;
            }
            let by_name = version_in_name(mapping.file_name());
            let file = self.mapped_file(&source, &elf, mapping);
            let (Some(runtime), Some(file)) = (runtime, file) else {
                return Err(self.unsupported(by_name.as_deref()));
            };
            let version = match version_vaddr {
                Some(symbol) => {
                    let hex = self.word("read the memory", file.address(symbol))?;
                    u32::try_from(hex).ok().map(Version::from_hex)
                }
                None => by_name.as_deref().and_then(Version::parse),
            };
            let version = version.ok_or_else(|| self.unsupported(by_name.as_deref()))?;
            if layouts::python(version).is_none() {
                // Before 3.11 only the file's name tells, and not the third number.
                let exact = Some(version.to_string()).filter(|_| version_vaddr.is_some());
                return Err(self.unsupported(exact.or(by_name).as_deref()));
            }
            let mut python = self.interpreter(version, file, runtime, PythonSites::find(&elf))?;
            self.find_codes(&mut python, &elf);
            return Ok(python);
        }
        let (pid, exe) = (self.pid, self.facts.exe.clone());
        Err(last_error.unwrap_or(TargetError::NotPython { pid, exe }))
    }

    /// `code_dealloc`, which has no name in a stripped program, by the type's `tp_dealloc`.
    fn find_codes(&mut self, python: &mut Python, elf: &Elf<'_>) {
        let [Some((class, _))] = elf::symbols(elf, ["PyCode_Type"]) else {
            return;
        };
        let class = python.file.address(class);
        // `tp_itemsize` and `tp_dealloc` follow `tp_basicsize`.
        // https://github.com/python/cpython/blob/v3.13.0/Include/cpython/object.h#L147
        let slot = field(class, python.objects.type_basicsize.saturating_add(16));
        let Ok(dealloc) = self.memory.word(slot) else {
            return;
        };
        let site = Site::at(elf, "code_dealloc", dealloc.wrapping_sub(python.file.bias), HowFound::Slot);
        python.sites.code_freed = site;
        python.sites.code_type = class;
    }

    fn unsupported(&self, found: Option<&str>) -> TargetError {
        let found = found.unwrap_or("of an unknown version").to_owned();
        TargetError::UnsupportedPython { pid: self.pid, found }
    }

    fn interpreter(
        &mut self,
        version: Version,
        file: MappedFile,
        runtime_vaddr: u64,
        sites: PythonSites,
    ) -> Result<Python, TargetError> {
        let runtime = file.address(runtime_vaddr);
        let row = layouts::python(version).ok_or_else(|| self.unsupported(Some(&version.to_string())))?;
        let (mut layout, mut objects) = (row.layout, row.objects);
        let mut source = format!("table of {}", row.read_from);
        if let Some(table) = row.debug {
            let own = DebugOffsets::read(&mut self.memory, runtime, table)
                .map_err(|_| self.read_error("read the memory", runtime))?;
            match own {
                Some(own) if own.free_threaded() => {
                    return Err(TargetError::FreeThreaded { pid: self.pid, python: version });
                }
                Some(own) if own.version_hex().map(Version::from_hex) == Some(version) => {
                    let differing = own.correct(&mut layout, &mut objects);
                    if differing.is_empty() {
                        source.push_str(", confirmed by _Py_DebugOffsets");
                    } else {
                        source.push_str(&format!(", corrected by _Py_DebugOffsets: {}", differing.join(" ")));
                        self.warnings.push(Warning::PythonLayoutDiffers { fields: differing });
                    }
                }
                Some(_) | None => self.warnings.push(Warning::NoDebugOffsets),
            }
        }
        let at = |base: Addr, offset: u32| Addr(base.0.wrapping_add(u64::from(offset)));
        let what = "read the interpreter";
        let interp = Addr(self.word(what, at(runtime, objects.runtime_main))?);
        if interp.is_null() {
            return Err(TargetError::NotReady { pid: self.pid });
        }
        let subinterpreters =
            self.subinterpreters(at(runtime, objects.runtime_interpreters), objects.interp_next);
        if subinterpreters > 0 {
            self.warnings.push(Warning::Subinterpreters { count: subinterpreters });
        }
        let start = if objects.runtime_gil == NONE {
            Addr(self.word(what, at(interp, objects.interp_gil))?)
        } else {
            at(runtime, objects.runtime_gil)
        };
        if start.is_null() {
            return Err(TargetError::NotReady { pid: self.pid });
        }
        let holder = if objects.runtime_tstate_current == NONE {
            at(start, objects.gil_last_holder)
        } else {
            at(runtime, objects.runtime_tstate_current)
        };
        let gil = Gil { start, end: at(start, objects.gil_size) };
        Ok(Python { version, file, runtime, interp, gil, holder, layout, objects, sites, source })
    }

    /// How many interpreters there are beside the main one, which is the last in the list at
    /// `head`; what can't be read is not counted.
    fn subinterpreters(&mut self, head: Addr, next: u32) -> usize {
        let mut interpreter = self.memory.pointer(head).unwrap_or(Addr::NULL);
        let mut count: usize = 0;
        while !interpreter.is_null() && count <= MAX_INTERPRETERS {
            count += 1;
            interpreter = self.memory.pointer(field(interpreter, next)).unwrap_or(Addr::NULL);
        }
        count.saturating_sub(1)
    }

    fn greenlet(&mut self, python: &Python) -> Result<Option<Greenlet>, TargetError> {
        let files: Vec<Mapping> = self.files(Mapping::is_greenlet).into_iter().cloned().collect();
        if files.len() > 1 {
            self.warnings.push(Warning::SeveralGreenlets { count: files.len() });
        }
        let Some(mapping) = files.first() else {
            return Ok(None);
        };
        let source = Source::open(self.pid, mapping)
            .map_err(|error| TargetError::io(self.pid, "open the greenlet library", error))?;
        let elf = source.parse().map_err(|error| self.elf_error(mapping, error))?;
        let version = self.greenlet_version(mapping, source.replaced);
        let unsupported = |why: String| TargetError::UnsupportedGreenlet {
            pid: self.pid,
            found: version.map_or_else(|| "of an unknown version".to_owned(), |v| v.to_string()),
            why,
        };
        if version.is_some_and(|version| version < FIRST_GREENLET) {
            return Err(unsupported(format!("{FIRST_GREENLET} is the first that it covers")));
        }
        let row = version.and_then(|version| layouts::greenlet(python.version, version));
        let (layout, layout_source) = match (extract::greenlet(&elf), row) {
            (Ok(own), row) => {
                if row.is_some_and(|row| row.layout != own) {
                    self.warnings.push(Warning::GreenletLayoutDiffers);
                }
                (own, "DWARF of the mapped library".to_owned())
            }
            (Err(why), Some(row)) => {
                (row.layout, format!("table of {} to {} ({why} in the library)", row.first, row.last))
            }
            (Err(why), None) => return Err(unsupported(format!("not in the table, and {why}"))),
        };
        let file = self
            .mapped_file(&source, &elf, mapping)
            .ok_or_else(|| unsupported("its mapping fits none of its segments".to_owned()))?;
        let [type_symbol] = elf::symbols(&elf, ["PyGreenlet_Type"]);
        let (type_vaddr, _) =
            type_symbol.ok_or_else(|| unsupported("it has no PyGreenlet_Type".to_owned()))?;
        let sites = Sites::find(&elf);
        if sites.switchstack.is_none() && sites.pair.is_empty() {
            return Err(unsupported("it has neither g_switchstack nor g_switch".to_owned()));
        }
        if let Some(callers) = sites.swap_callers
            && callers != 1
        {
            self.warnings.push(Warning::SwitchstackInlined { callers });
        }
        Ok(Some(Greenlet {
            version,
            module: self.extent(mapping),
            greenlet_type: file.address(type_vaddr),
            made: self.made(python, &elf, &file, type_vaddr),
            file,
            layout,
            sites,
            source: layout_source,
        }))
    }

    /// `green_init`, which has no name in a stripped library, by the type's `tp_init`.
    fn made(&mut self, python: &Python, elf: &Elf<'_>, file: &MappedFile, type_vaddr: u64) -> Option<Site> {
        let class = file.address(type_vaddr);
        let init = self.memory.word(field(class, python.objects.type_init)).ok()?;
        Site::at(elf, "green_init", init.wrapping_sub(file.bias), HowFound::Slot)
    }

    /// The libraries with an event loop. One that can't be read is left out: then its polls are
    /// seen only where they sleep.
    fn loops(&self, python: &Python) -> Vec<Loop> {
        let is_python = |mapping: &Mapping| (mapping.device, mapping.inode) == python.file.id();
        let mut loops = Vec::new();
        for mapping in self.files(|mapping| polls::is_loop(mapping) || is_python(mapping)) {
            let Ok(source) = Source::open(self.pid, mapping) else {
                continue;
            };
            let Ok(elf) = source.parse() else {
                continue;
            };
            let sites = polls::find(&elf);
            if let Some(file) = self.mapped_file(&source, &elf, mapping).filter(|_| !sites.is_empty()) {
                loops.push(Loop { file, sites });
            }
        }
        loops
    }

    /// From the first to the last mapping of a file.
    fn extent(&self, of: &Mapping) -> Range<u64> {
        let same = self.facts.maps.iter().filter(|mapping| mapping.same_file(of));
        same.fold(of.start..of.end, |range, mapping| {
            range.start.min(mapping.start)..range.end.max(mapping.end)
        })
    }

    /// The version in the name of the one `greenlet-*.dist-info` beside the package.
    ///
    /// A library that was replaced since tells nothing: what stands there now is the
    /// version of the new one.
    fn greenlet_version(&self, mapping: &Mapping, replaced: bool) -> Option<Version> {
        if replaced {
            return None;
        }
        let packages = Path::new(&mapping.path).parent()?.parent()?;
        let mut versions: Vec<Version> = fs::read_dir(elf::in_root(self.pid, packages))
            .ok()?
            .filter_map(|entry| {
                let name = entry.ok()?.file_name();
                let rest = name.to_str()?.strip_prefix("greenlet-")?;
                let version = rest.strip_suffix(".dist-info").or_else(|| rest.strip_suffix(".egg-info"))?;
                Version::parse(version)
            })
            .collect();
        versions.dedup();
        let version = versions.pop()?;
        versions.is_empty().then_some(version)
    }
}

/// `3.8` out of `libpython3.8.so.1.0`, `python3.8` or `libpython2.7m.so`.
fn version_in_name(name: &str) -> Option<String> {
    let (_, rest) = name.split_once("python")?;
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
    let version = rest.get(..end)?.trim_end_matches('.');
    version.contains('.').then(|| version.to_owned())
}

#[cfg(test)]
mod tests {
    use super::version_in_name;

    #[test]
    fn versions_in_file_names() {
        for (name, expect) in [
            ("libpython3.8.so.1.0", Some("3.8")),
            ("libpython3.13t.so.1.0", Some("3.13")),
            ("python3.10", Some("3.10")),
            ("libpython2.7.so", Some("2.7")),
            ("python", None),
            ("uwsgi", None),
        ] {
            assert_eq!(version_in_name(name).as_deref(), expect, "{name}");
        }
    }
}
