//! The threads of an interpreter, with the names that Python gave them.

use profiler_common::{address::Addr, fault::Fault};

use rustc_hash::FxHashMap;

use super::{Faults, Target, Thread};
use crate::{
    memory::Bytes,
    python::{class, dict, field, instance, number, objects::ObjectLayout, text},
};

/// Threads followed.
const MAX_THREADS: usize = 8_192;

/// A thread state of the main interpreter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PythonThread {
    /// Its `PyThreadState`.
    pub tstate: Addr,
    /// Its `pthread_self()`, which `threading.get_ident()` gives too.
    pub thread_id: u64,
    /// Its thread id in the target's own pid namespace.
    pub native_id: u64,
    /// Its thread id in ours, when it is there.
    pub tid: Option<u32>,
    /// `threading.Thread.name`, else its name to the kernel.
    pub name: Option<String>,
}

/// Walks over the list of threads until one meets no thread that is just ending.
const MAX_WALKS: u32 = 4;

/// The threads of the main interpreter.
pub fn python_threads(memory: &mut impl Bytes, target: &Target) -> (Vec<PythonThread>, Faults) {
    let mut walked = walk(memory, target);
    for _ in 1..MAX_WALKS {
        if walked.1.is_empty() {
            break;
        }
        walked = walk(memory, target);
    }
    walked
}

/// What may be the thread states of these threads, by their ids in their own pid namespace. The
/// kernel part, which is told, proves each before it uses it.
///
/// Of a process that was forked in C the thread state of its leader has another id: then it is
/// the oldest that is nobody else's.
pub fn own_states(memory: &mut impl Bytes, target: &Target, threads: &[Thread]) -> FxHashMap<u32, Addr> {
    let (python, objects) = (&target.python.layout, &target.python.objects);
    let mut states = FxHashMap::default();
    let mut oldest = Addr::NULL;
    let mut next = memory.pointer(field(target.python.interp, objects.interp_threads));
    for _ in 0..MAX_THREADS {
        let Ok(tstate) = next else {
            break;
        };
        if tstate.is_null() {
            break;
        }
        let id = memory.word(tstate.at(python.tstate_native_id)).ok().and_then(|id| u32::try_from(id).ok());
        match id.filter(|id| threads.iter().any(|thread| thread.own_tid == *id)) {
            Some(id) => drop(states.insert(id, tstate)),
            None => oldest = tstate,
        }
        next = memory.pointer(field(tstate, objects.tstate_next));
    }
    if let Some(leader) = threads.iter().find(|thread| thread.tid == target.pid)
        && !oldest.is_null()
    {
        states.entry(leader.own_tid).or_insert(oldest);
    }
    states
}

fn walk(memory: &mut impl Bytes, target: &Target) -> (Vec<PythonThread>, Faults) {
    let mut faults = Faults::default();
    let (python, objects) = (&target.python.layout, &target.python.objects);
    let mut threads = Vec::new();
    let names = thread_names(memory, target).unwrap_or_default();
    let mut next = memory.pointer(field(target.python.interp, objects.interp_threads));
    loop {
        let tstate = match next {
            Ok(tstate) if tstate.is_null() || threads.len() == MAX_THREADS => break,
            Ok(tstate) => tstate,
            Err(fault) => {
                faults.count(fault);
                break;
            }
        };
        let ids = (
            memory.word(tstate.at(python.tstate_thread_id)),
            memory.word(tstate.at(python.tstate_native_id)),
        );
        if let (Ok(thread_id), Ok(native_id)) = ids {
            let kernel = target.threads.iter().find(|thread| u64::from(thread.own_tid) == native_id);
            let named = names.iter().find(|(ident, _)| *ident == thread_id);
            let name = named.map(|(_, name)| name).or(kernel.map(|thread| &thread.name));
            threads.push(PythonThread {
                tstate,
                thread_id,
                native_id,
                tid: kernel.map(|thread| thread.tid),
                name: name.cloned(),
            });
        } else {
            faults.count(Fault::ReadState);
        }
        next = memory.pointer(field(tstate, objects.tstate_next));
    }
    (threads, faults)
}

/// `sys.modules['threading']._active`: each thread's ident and name.
///
/// <https://github.com/python/cpython/blob/v3.13.0/Lib/threading.py#L851>
fn thread_names(memory: &mut impl Bytes, target: &Target) -> Result<Vec<(u64, String)>, Fault> {
    let objects = &target.python.objects;
    let modules = memory.pointer(field(target.python.interp, objects.interp_modules))?;
    let Some(module) = dict::get(memory, objects, modules, "threading")? else {
        return Ok(Vec::new());
    };
    let globals = memory.pointer(field(module, objects.module_dict))?;
    let Some(active) = dict::get(memory, objects, globals, "_active")? else {
        return Ok(Vec::new());
    };
    let mut names = Vec::new();
    for entry in dict::entries(memory, objects, active)? {
        if let Ok(Some(name)) = thread_name(memory, objects, entry) {
            names.push(name);
        }
    }
    Ok(names)
}

fn thread_name(
    memory: &mut impl Bytes,
    objects: &ObjectLayout,
    entry: dict::Entry,
) -> Result<Option<(u64, String)>, Fault> {
    let ident = number::integer(memory, objects, entry.key)?;
    let name = instance::attribute(memory, objects, entry.value, "_name")?;
    let (Some(ident), Some(name)) = (ident, name) else {
        return Ok(None);
    };
    if !class::is_string(memory, objects, name)? {
        return Ok(None);
    }
    Ok(Some((ident.cast_unsigned(), text::string(memory, objects, name)?)))
}
