//! Suspended stacks, frame by frame, against the target's own view of them.

use anyhow::{Result, ensure};
use tests::compare;
use tests::place::Python;
use tests::profile::{Frame, Stack, State};
use tests::recording::record;
use tests::runner::Cases;
use tests::target::Target;

/// The shapes of tests/targets/stacks.py whose every frame must be right.
const SHAPES: [&str; 9] = [
    "deep",
    "recursion",
    "mutual",
    "generators",
    "coroutines",
    "c_calls",
    "constructors",
    "lines",
    "unusual",
];

pub(crate) fn cases(cases: &mut Cases) {
    for shape in SHAPES {
        for kind in ["greenlet", "gevent"] {
            let name = format!("suspended_stacks_are_exact/{shape}/{kind}");
            cases.each(name, move |python| {
                let target = Target::start(python, "stacks.py", &[shape, kind])?;
                let (profile, books) = record(target, &[])?;
                compare::waits(&profile, &books.book)?;
                compare::switches(&profile, &books.book)?;
                compare::greenlets(&profile, &books)?;
                compare::complete(&profile)
            });
        }
    }
    cases.each("stacks_beyond_the_limit_keep_their_inner_end_and_are_counted", too_deep);
    cases.each("reused_code_objects_never_lend_their_names", reused_code);
}

fn too_deep(python: &Python) -> Result<()> {
    const LEAST: usize = 200;
    let target = Target::start(python, "stacks.py", &["too_deep"])?;
    let (profile, books) = record(target, &["--rate", "0"])?;
    compare::switches(&profile, &books.book)?;
    let mut cut = 0;
    for stack in profile.stacks.iter().filter(|stack| stack.state == State::Wait) {
        // A cut stack may begin with a frame that says so.
        let known: &[Frame] = match stack.frames.split_first() {
            Some((first, rest)) if first.line.is_none() => rest,
            _ => &stack.frames,
        };
        let whole = books.book.waits.iter().any(|wait| wait.frames == known);
        let inner = books.book.waits.iter().any(|wait| wait.frames.ends_with(known));
        ensure!(whole || inner && known.len() >= LEAST, "{} frames: no tail", known.len());
        cut += if whole { 0 } else { stack.count };
    }
    let suspended = |stack: &&Stack| matches!(stack.state, State::Wait | State::Idle);
    let waits: Vec<&Stack> = profile.stacks.iter().filter(suspended).collect();
    ensure!(cut == profile.totals.stacks_truncated, "{cut} {:?}", profile.totals);
    let (seen, truth): (u64, u64) =
        (waits.iter().map(|stack| stack.count).sum(), books.book.waits.iter().map(|wait| wait.count).sum());
    ensure!(seen == truth, "{seen} instead of {truth} waits");
    Ok(())
}

fn reused_code(python: &Python) -> Result<()> {
    let target = Target::start(python, "reuse.py", &["5000"])?;
    let (profile, books) = record(target, &[])?;
    ensure!(books.addresses_reused > 1000, "only {} reused", books.addresses_reused);
    compare::switches(&profile, &books.book)?;
    let (mut named, mut blank, mut truth) = (0, 0, 0);
    for wait in &books.book.waits {
        truth += wait.count;
    }
    let waits = profile.stacks.iter().filter(|stack| matches!(stack.state, State::Wait | State::Idle));
    for stack in waits {
        let known = books.book.waits.iter().find(|wait| wait.frames == stack.frames);
        match known {
            // Counted twice means that another one's wait got this name.
            Some(wait) => {
                ensure!(stack.count <= wait.count, "{} x {:?}", stack.count, stack.frames);
                named += stack.count;
            }
            None => {
                let admitted = stack.frames.iter().any(Frame::is_blank);
                ensure!(admitted, "a wrong stack: {:?}", stack.frames);
                blank += stack.count;
            }
        }
    }
    ensure!(named + blank == truth, "{named} named, {blank} blank, of {truth}");
    // What lives when it is looked up has no excuse: main's own stack is half of all.
    ensure!(named >= truth / 2, "{named} named, {blank} blank");
    Ok(())
}
