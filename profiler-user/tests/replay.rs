//! Recorded memory, read again without a process and without root.

#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test's own support code")]

#[expect(dead_code, reason = "shared with the live tests, which start processes")]
mod books;

use std::{fs, path::Path};

use books::{Books, compare, compare_threads, ours};
use greenscope::{
    memory::{Cached, Recorded},
    target::{
        Greenlet, Incarnation, MappedFile, Namespaces, Python, PythonSites, Sites, Target, Version,
        enumerate, layouts, python_threads,
    },
};
use profiler_common::address::Addr;

/// The target that a snapshot's notes describe.
fn target(recorded: &Recorded) -> Target {
    let note = |name: &str| recorded.notes[name].clone();
    let number = |name: &str| note(name).parse::<u64>().unwrap();
    let version = Version::parse(&note("python")).unwrap();
    let row = layouts::python(version).unwrap();
    let greenlet = Version::parse(&note("greenlet")).unwrap();
    let file = MappedFile {
        path: "recorded".into(),
        open: "recorded".into(),
        device: (0, 0),
        inode: 0,
        replaced: false,
        bias: 0,
    };
    let pid = u32::try_from(number("pid")).unwrap();
    Target {
        pid,
        incarnation: Incarnation { start_ticks: 0, start_code: 0, start_stack: number("start_stack") },
        exe: "python".into(),
        program: None,
        command: Vec::new(),
        namespaces: Namespaces { pid_namespace: None, pids: vec![pid] },
        threads: Vec::new(),
        python: Python {
            version,
            file: file.clone(),
            runtime: Addr::NULL,
            interp: Addr(number("interp")),
            gil: profiler_common::clock::Gil::default(),
            holder: Addr(number("holder")),
            layout: row.layout,
            objects: row.objects,
            sites: PythonSites::default(),
            source: String::new(),
        },
        greenlet: Some(Greenlet {
            version: Some(greenlet),
            file,
            module: 0..0,
            greenlet_type: Addr(number("greenlet_type")),
            layout: layouts::greenlet(version, greenlet).unwrap().layout,
            sites: Sites::default(),
            made: None,
            source: String::new(),
        }),
        loops: Vec::new(),
        warnings: Vec::new(),
    }
}

#[test]
fn recorded_targets_give_the_same_answers() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/recorded");
    let mut seen = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "gsmem") {
            continue;
        }
        let context = path.display().to_string();
        assert!(fs::metadata(&path).unwrap().len() < 256 << 10, "{context} is too large");
        let recorded = Recorded::load(&path).unwrap();
        let target = target(&recorded);
        let books: Books = serde_json::from_str(&recorded.notes["books"]).unwrap();
        let mut memory = Cached::new(recorded);
        let (found, faults) = enumerate(&mut memory, &target);
        assert!(faults.is_empty(), "{context}: {faults:?}");
        let entries = ours(&mut memory, &target.python.objects, &found);
        compare(entries, &books, &context);
        compare_threads(&python_threads(&mut memory, &target).0, &books, &context);
        seen += 1;
    }
    assert!(seen >= 3, "a Python has no snapshot");
}
