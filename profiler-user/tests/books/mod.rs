//! Targets that keep their own books, and the comparison with ours.

use std::{
    collections::BTreeMap,
    env, fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use greenscope::{
    memory::Bytes,
    python::{code, objects::ObjectLayout},
    target::{FoundGreenlet, PythonThread},
};
use serde::{Deserialize, Serialize};

/// What a target says of one greenlet of its own.
#[derive(Debug, Deserialize, Serialize, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) object: u64,
    pub(crate) r#type: String,
    pub(crate) module: String,
    pub(crate) name: Option<String>,
    pub(crate) main: bool,
    pub(crate) state: String,
    /// Qualified name, file and line, leaf first.
    pub(crate) frames: Vec<(String, String, Option<u32>)>,
}

/// What a target says of itself.
#[derive(Debug, Deserialize)]
pub(crate) struct Books {
    pub(crate) greenlets: Vec<Entry>,
    /// Ident, native id, name.
    pub(crate) threads: Vec<(u64, u64, String)>,
}

/// A running target; it ends with this.
pub(crate) struct Running {
    child: Child,
    pub(crate) json: String,
}

impl Running {
    pub(crate) fn start(python: &Path, words: &[&str]) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/books/books.py");
        // The file's name in the books is not that of this directory.
        let run = "import sys; source = open(sys.argv.pop(1)).read(); \
                   exec(compile(source, 'books.py', 'exec'))";
        let mut child = Command::new(python)
            .args(["-c", run])
            .arg(script)
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut json = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut json).unwrap();
        assert!(!json.is_empty(), "{python:?} printed nothing");
        Self { child, json }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The Pythons with greenlet: `GREENSCOPE_VENVS`, else `target/venvs`.
pub(crate) fn pythons() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/venvs");
    let venvs = env::var_os("GREENSCOPE_VENVS").map_or(root, PathBuf::from);
    let mut found = Vec::new();
    for entry in fs::read_dir(&venvs).into_iter().flatten().flatten() {
        let python = entry.path().join("bin/python");
        let covered = "import sys, greenlet; sys.exit(sys.version_info[:2] not in \
                       ((3, 11), (3, 12), (3, 13)) or greenlet.__version__ < '3')";
        let output = Command::new(&python).args(["-c", covered]).output();
        match output {
            Ok(output) if output.status.success() => found.push(python),
            Ok(_) | Err(_) => eprintln!("skipped: {} has no covered greenlet", python.display()),
        }
    }
    if found.is_empty() {
        eprintln!(
            "skipped: no Python with greenlet under {} (`cargo xtask test` makes some, \
             or set GREENSCOPE_VENVS)",
            venvs.display()
        );
    }
    found.sort();
    found
}

/// Our answer in the words of the books.
pub(crate) fn ours(memory: &mut impl Bytes, objects: &ObjectLayout, found: &[FoundGreenlet]) -> Vec<Entry> {
    let mut codes = BTreeMap::new();
    let mut entry = |found: &FoundGreenlet| Entry {
        object: found.object.0,
        r#type: found.kind.name.clone(),
        module: found.kind.module.clone(),
        name: found.name.clone(),
        main: found.main,
        state: format!("{:?}", found.state),
        frames: found
            .frames
            .iter()
            .map(|frame| {
                let at = frame.code;
                let code = codes.entry(at).or_insert_with(|| code::read(memory, objects, at).unwrap());
                let line = code.line(frame.instr.cast_unsigned());
                (code.qualname.clone(), code.filename.clone(), line)
            })
            .collect(),
    };
    found.iter().map(&mut entry).collect()
}

/// Compares greenlet by greenlet; `main` and other greenlets that the target's own
/// frozen lists hide from it may be ours alone.
pub(crate) fn compare(mut ours: Vec<Entry>, books: &Books, context: &str) {
    let max = profiler_common::limits::MAX_FRAMES as usize;
    for theirs in &books.greenlets {
        let at = ours.iter().position(|ours| ours.object == theirs.object);
        let ours = ours.swap_remove(at.unwrap_or_else(|| panic!("{context}: missing {theirs:?}")));
        assert_eq!(ours.frames.len(), theirs.frames.len().min(max), "{context}: {}", theirs.r#type);
        for (ours, theirs) in ours.frames.iter().zip(&theirs.frames) {
            assert_eq!(ours, theirs, "{context}");
        }
        let Entry { object: _, r#type, module, name, main, state, frames: _ } = &ours;
        let expect = (&theirs.r#type, &theirs.module, &theirs.name, &theirs.main, &theirs.state);
        assert_eq!((r#type, module, name, main, state), expect, "{context}");
    }
    let others: Vec<_> = ours.iter().filter(|ours| !ours.main).collect();
    assert!(others.is_empty(), "{context}: not in the books: {others:#?}");
}

pub(crate) fn compare_threads(ours: &[PythonThread], books: &Books, context: &str) {
    let name = |thread: &PythonThread| thread.name.clone().unwrap_or_default();
    let mut ours: Vec<_> =
        ours.iter().map(|thread| (thread.thread_id, thread.native_id, name(thread))).collect();
    let mut theirs = books.threads.clone();
    ours.sort();
    theirs.sort();
    assert_eq!(ours, theirs, "{context}");
}
