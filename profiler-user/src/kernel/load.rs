//! Programs on their way through the verifier, which takes its time for each.

use std::{collections::HashMap, panic, thread};

use aya::{
    Btf, Ebpf,
    programs::{Program, ProgramError},
};

use super::KernelError;

/// Loads some lots of programs, all of them at once. What became of each lot: without an error,
/// or its first one.
pub(super) fn load<const LOTS: usize>(
    ebpf: &mut Ebpf,
    lots: [&[&'static str]; LOTS],
    btf: Option<&Btf>,
) -> [Result<(), KernelError>; LOTS] {
    let mut programs: HashMap<&str, &mut Program> = ebpf.programs_mut().collect();
    thread::scope(|scope| {
        let mut spawn = |name: &&'static str| {
            let (name, program) = (*name, programs.remove(name));
            scope.spawn(move || load_one(name, program.ok_or(KernelError::Missing(name))?, btf))
        };
        let loading = lots.map(|names| names.iter().map(&mut spawn).collect::<Vec<_>>());
        loading.map(|lot| {
            let mut loaded =
                lot.into_iter().map(|one| one.join().unwrap_or_else(|why| panic::resume_unwind(why)));
            loaded.by_ref().collect()
        })
    })
}

fn load_one(name: &'static str, program: &mut Program, btf: Option<&Btf>) -> Result<(), KernelError> {
    let loaded = match (program, btf) {
        (Program::UProbe(program), _) => program.load(),
        (Program::RawTracePoint(program), _) => program.load(),
        (Program::PerfEvent(program), _) => program.load(),
        (Program::BtfTracePoint(program), Some(btf)) => program.load(name, btf),
        _ => Err(ProgramError::UnexpectedProgramType),
    };
    loaded.map_err(|source| KernelError::Program { program: name, source })
}
