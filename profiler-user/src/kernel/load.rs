//! Programs on their way through the verifier, which takes its time for each.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    thread,
};

use aya::{
    Btf, Ebpf,
    programs::{Program, ProgramError},
};

use super::KernelError;

/// Loads some lots of programs, as many at once as there are processors. What became of each lot:
/// no error, or one of its programs'.
pub(super) fn load<const LOTS: usize>(
    ebpf: &mut Ebpf,
    lots: [&[&'static str]; LOTS],
    btf: Option<&Btf>,
) -> [Result<(), KernelError>; LOTS] {
    let mut programs: HashMap<&str, &mut Program> = ebpf.programs_mut().collect();
    let mut waiting = Vec::new();
    for (lot, names) in lots.into_iter().enumerate().rev() {
        waiting.extend(names.iter().rev().map(|name| (lot, *name, programs.remove(name))));
    }
    let waiting = Mutex::new(waiting);
    let loaded = Mutex::new([const { Ok(()) }; LOTS]);
    let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let work = || {
        while let Some((lot, name, program)) = next() {
            let done = program.ok_or(KernelError::Missing(name)).and_then(|one| load_one(name, one, btf));
            if done.is_err()
                && let Some(of_lot) = loaded.lock().unwrap_or_else(PoisonError::into_inner).get_mut(lot)
            {
                *of_lot = done;
            }
        }
    };
    thread::scope(|scope| {
        for _ in 1..thread::available_parallelism().map_or(1, usize::from) {
            // Where no thread can be had, this one does it all.
            let _refused = thread::Builder::new().spawn_scoped(scope, work);
        }
        work();
    });
    loaded.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn load_one(name: &'static str, program: &mut Program, btf: Option<&Btf>) -> Result<(), KernelError> {
    let loaded = match (program, btf) {
        (Program::UProbe(program), _) => program.load(),
        (Program::RawTracePoint(program), _) => program.load(),
        (Program::PerfEvent(program), _) => program.load(),
        (Program::BtfTracePoint(program), Some(btf)) => program.load(name, btf),
        // Why there is none.
        (Program::BtfTracePoint(_), None) => {
            return Err(Btf::from_sys_fs().err().map_or(KernelError::Missing(name), KernelError::Btf));
        }
        _ => Err(ProgramError::UnexpectedProgramType),
    };
    loaded.map_err(|source| KernelError::Program { program: name, source })
}
