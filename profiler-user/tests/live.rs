//! Real processes, compared with what they say of themselves.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test's own support code")]

mod books;

use books::{Books, Running, compare, compare_threads, ours, pythons};
use greenscope::{
    memory::{Cached, LiveProcess, Recorder},
    python::lines,
    target::{self, TargetError, alive, enumerate, inspect, python_threads, same_image},
};
use profiler_common::fault::Fault;
use serde::Deserialize;

#[test]
fn greenlets_are_those_that_the_target_knows() {
    for python in pythons() {
        for words in [&["plain"][..], &["gevent"]] {
            let running = Running::start(&python, words);
            let books: Books = serde_json::from_str(&running.json).unwrap();
            let context = format!("{} {words:?}", python.display());
            let target = inspect(running.pid()).unwrap_or_else(|error| panic!("{context}: {error}"));
            assert_eq!(target.warnings, [], "{context}");
            let mut memory = Cached::new(LiveProcess::open(running.pid()).unwrap());
            let (found, faults) = enumerate(&mut memory, &target);
            assert!(faults.is_empty(), "{context}: {faults:?}");
            // One stack of 601 frames is there to be cut.
            let doubts: Vec<Fault> = found.iter().filter_map(|found| found.doubt).collect();
            assert_eq!(doubts, [Fault::StackTruncated], "{context}");
            let entries = ours(&mut memory, &target.python.objects, &found);
            compare(entries, &books, &context);
            let (threads, faults) = python_threads(&mut memory, &target);
            assert!(faults.is_empty(), "{context}: {faults:?}");
            compare_threads(&threads, &books, &context);
            let hubs = found.iter().filter(|found| found.kind.is_hub).count();
            assert_eq!(hubs, usize::from(words == ["gevent"]), "{context}");
            // Each thread has its own stacks, and is told apart by them.
            for found in found.iter().filter(|found| !found.main_object.is_null()) {
                assert!(found.thread.is_some(), "{context}: {found:?}");
            }
            let second = books.threads.iter().find(|thread| thread.2 == "second thread").unwrap();
            let there =
                found.iter().filter(|found| found.thread.is_some_and(|thread| thread.native_id == second.1));
            assert_eq!(there.count(), 2, "{context}: its main greenlet and its own");
            assert!(alive(&target) && same_image(&target), "{context}");
        }
    }
}

#[derive(Deserialize)]
struct CodeLines {
    first: u32,
    table: String,
    lines: Vec<Option<u32>>,
}

#[test]
fn lines_are_those_of_co_lines() {
    for python in pythons() {
        let running = Running::start(&python, &["lines"]);
        let codes: Vec<CodeLines> = serde_json::from_str(&running.json).unwrap();
        assert!(codes.len() > 50);
        for CodeLines { first, table, lines } in codes {
            let bytes: Vec<u8> = (0..table.len())
                .step_by(2)
                .map(|at| u8::from_str_radix(&table[at..at + 2], 16).unwrap())
                .collect();
            for (unit, line) in lines.iter().enumerate() {
                let ours = lines::line(first, &bytes, unit as u32 * 2);
                assert_eq!(ours, *line, "{} {table} {unit}", python.display());
            }
        }
    }
}

#[test]
fn a_target_that_ends_is_noticed() {
    for python in pythons().into_iter().take(1) {
        let running = Running::start(&python, &["plain"]);
        let pid = running.pid();
        let found = inspect(pid).unwrap();
        assert!(alive(&found) && same_image(&found));
        drop(running);
        assert!(!alive(&found) && !same_image(&found));
        assert!(matches!(inspect(pid), Err(TargetError::NoSuchProcess { .. })));
    }
}

#[test]
fn what_is_no_target_is_named() {
    let sleeper = std::process::Command::new("sleep").arg("1000").spawn();
    let mut sleeper = sleeper.unwrap();
    let error = inspect(sleeper.id()).unwrap_err();
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    // Between fork and exec it may still be this very test.
    assert!(matches!(error, TargetError::NotPython { .. }), "{error}");
    assert!(matches!(inspect(0), Err(TargetError::NoSuchProcess { .. })));
    assert!(matches!(inspect(u32::MAX), Err(TargetError::NoSuchProcess { .. })));
}

#[test]
fn snapshots_are_recorded_on_request() {
    let Some(folder) = std::env::var_os("GREENSCOPE_RECORD") else {
        eprintln!("skipped: GREENSCOPE_RECORD names no folder for new snapshots");
        return;
    };
    for python in pythons() {
        let running = Running::start(&python, &["small"]);
        let target = inspect(running.pid()).unwrap();
        let live = LiveProcess::open(running.pid()).unwrap();
        let mut memory = Cached::new(Recorder::new(live));
        let (found, _) = enumerate(&mut memory, &target);
        drop(ours(&mut memory, &target.python.objects, &found));
        let recorded = &mut memory.below().recorded;
        let greenlet = target.greenlet().unwrap();
        let target::Version { major, minor, .. } = target.python.version;
        for (note, value) in [
            ("python", target.python.version.to_string()),
            ("greenlet", greenlet.version.unwrap().to_string()),
            ("interp", target.python.interp.0.to_string()),
            ("holder", target.python.holder.0.to_string()),
            ("greenlet_type", greenlet.greenlet_type.0.to_string()),
            ("pid", target.pid.to_string()),
            ("start_stack", target.incarnation.start_stack.to_string()),
            ("books", running.json.trim().to_owned()),
        ] {
            recorded.notes.insert(note.to_owned(), value);
        }
        let name = format!("books-{major}.{minor}.gsmem");
        recorded.save(&std::path::Path::new(&folder).join(name)).unwrap();
    }
}
