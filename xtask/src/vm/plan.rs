//! What tests/vm/drive.py is to do inside the test machine.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::Args;
use super::python::Python;

/// Seconds for anything but a recording. Without KVM the verifier alone takes a
/// minute and more for what a real machine verifies in two seconds.
const PATIENCE_S: u64 = 300;

/// The whole of it, as `/test/plan.json` says it.
#[derive(Serialize)]
pub(super) struct Plan {
    results: &'static str,
    target: &'static str,
    greenscope: &'static str,
    greenscope_options: Vec<String>,
    /// The greenlet extension that the targets load.
    extension: PathBuf,
    greenlets: u32,
    depth: u32,
    /// Seconds for anything but the recording itself.
    patience: u64,
    /// The processor that all targets share.
    cpu: u32,
    /// The scheduler's time slice, or 0 for the kernel's own.
    slice_us: u32,
    pub(super) phases: Vec<Phase>,
}

/// Some targets, recorded by some greenscopes.
#[derive(Serialize)]
pub(super) struct Phase {
    pub(super) name: &'static str,
    /// What each target runs: `raw` or `gevent`.
    variants: Vec<&'static str>,
    greenscopes: u32,
    seconds: u64,
    /// Count where processes are scheduled away.
    trace: bool,
    /// Count the switches by a probe that is not greenscope's.
    count: bool,
    /// Attach a program that is known to be wrong.
    canary: bool,
    /// Only try whether the programs load.
    load: bool,
}

impl Plan {
    pub(super) fn new(args: &Args, python: &Python) -> Self {
        let all = |variants: [&'static str; 2]| -> Vec<&'static str> {
            let count = usize::try_from(args.processes).unwrap_or(1);
            variants.into_iter().cycle().take(count).collect()
        };
        let phase = |name, variants, greenscopes| Phase {
            name,
            variants,
            greenscopes,
            seconds: args.seconds,
            trace: true,
            count: args.rehearse,
            canary: false,
            load: false,
        };
        let canary = || Phase { canary: true, count: false, ..phase("canary", all(["raw", "raw"]), 0) };
        let phases = if args.load_only {
            let seconds = 1;
            vec![Phase { seconds, trace: false, load: true, ..phase("load", vec!["raw"], 1) }]
        } else if args.rehearse {
            vec![
                canary(),
                phase("raw", all(["raw", "raw"]), 0),
                phase("gevent", all(["gevent", "gevent"]), 0),
            ]
        } else {
            vec![
                canary(),
                phase("raw", all(["raw", "raw"]), 1),
                phase("gevent", all(["gevent", "gevent"]), 1),
                phase("several-greenscopes", all(["gevent", "raw"]), 3),
            ]
        };
        Self {
            results: "/results",
            target: "/test/preemption.py",
            greenscope: "/bin/greenscope",
            greenscope_options: args.option.clone(),
            extension: Path::new("/site").join(&python.extension),
            greenlets: args.greenlets,
            depth: args.depth,
            patience: PATIENCE_S,
            cpu: 0,
            slice_us: args.slice_us,
            phases,
        }
    }
}
