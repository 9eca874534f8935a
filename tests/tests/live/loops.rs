//! Loops that wait for events and pools that wait for tasks are idle, and what blocks them is a
//! block, against the targets' own books.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use tests::compare;
use tests::kind;
use tests::place::Python;
use tests::profile::{Block, Clock, Profile, Stack, State};
use tests::recording::Recording;
use tests::runner::Cases;
use tests::target::Target;

use crate::clocks::near;

/// What a thread does besides, in two seconds, on a busy machine.
const SLACK_NS: u64 = 30_000_000;

pub(crate) fn cases(cases: &mut Cases) {
    for kind in ["eventlet", "asyncio", "uvloop", "dispatcher", "beside", "pool", "celery", "futures"] {
        cases.each(format!("what_waits_for_events_idles_and_what_blocks_is_a_block/{kind}"), move |python| {
            judge(Target::start(python, "loops.py", &[kind])?).map(drop)
        });
    }
    for hub in ["libuv-cffi", "libev-cext"] {
        cases.each(format!("what_waits_for_events_idles_and_what_blocks_is_a_block/{hub}"), move |python| {
            let mut command = Command::new(&python.exe);
            command.env("GEVENT_LOOP", hub);
            judge(Target::start_by(&mut command, "loops.py", &["gevent"])?).map(drop)
        });
    }
    cases.each("a_block_says_who_held_the_gil", |python| {
        let block = one_block(python, "gil")?;
        let holder = block.gil_holder.as_ref().and_then(|holder| holder.name.as_deref());
        kind::row("thread that had the GIL", "hog", holder.unwrap_or("not told"));
        ensure!(block.kind.as_deref() == Some("gil"), "{block:?}");
        ensure!(holder == Some("hog"), "{block:?}");
        Ok(())
    });
    cases.each("a_block_says_that_it_was_starved", |python| {
        let block = one_block(python, "starved")?;
        ensure!(block.kind.as_deref() == Some("starved") && block.gil_holder.is_none(), "{block:?}");
        Ok(())
    });
}

/// What loops.py books.
#[derive(Debug, Deserialize)]
struct Done {
    spans: Vec<Span>,
    blocks: usize,
}

#[derive(Debug, Deserialize)]
struct Span {
    function: String,
    state: State,
    ns: u64,
}

fn one_block(python: &Python, kind: &str) -> Result<Block> {
    let (profile, _) = record(Target::start(python, "loops.py", &[kind])?)?;
    profile.blocks.into_iter().next().context("no block")
}

/// Records it, and holds against its books which of its time is idle and which blocked.
fn judge(target: Target) -> Result<Profile> {
    let (profile, done) = record(target)?;
    let unknown = unbooked(&profile, &done);
    ensure!(unknown.is_empty(), "blocked, but not by its books: {unknown:?}");
    Ok(profile)
}

/// What is blocked for long, and not by its books.
fn unbooked<'a>(profile: &'a Profile, done: &Done) -> Vec<&'a Stack> {
    // It reads the pipe to the test, before and after.
    let booked = |stack: &Stack| {
        // Where it runs no Python it waits for us: for its memory's lock, while probes are set.
        stack.frames.is_empty()
            || stack.contains("wait_for_go")
            || done.spans.iter().any(|span| span.state == State::Blocked && stack.contains(&span.function))
    };
    let long = |stack: &&Stack| stack.state == State::Blocked && stack.ns > SLACK_NS && !booked(stack);
    profile.stacks.iter().filter(long).collect()
}

/// Records it, and holds its calls and the number of blocks against its books.
fn record(mut target: Target) -> Result<(Profile, Done)> {
    let recording = Recording::start(target.pid(), &[])?;
    target.go()?;
    let done = target.hear("done")?;
    let profile = recording.stop()?;
    target.finish()?;
    let done: Done = serde_json::from_value(done.get("books").cloned().context("no books")?)?;
    let seen = |span: &Span| {
        let of_span = |stack: &&Stack| stack.state == span.state && stack.contains(&span.function);
        profile.stacks.iter().filter(of_span).map(|stack| stack.ns).sum()
    };
    kind::row("blocks", done.blocks, profile.blocks.len());
    for (what, state) in [("idle in its polls", State::Idle), ("blocked in its calls", State::Blocked)] {
        let of = || done.spans.iter().filter(|span| span.state == state);
        if of().next().is_some() {
            kind::row(what, kind::ms(of().map(|span| span.ns).sum()), kind::ms(of().map(seen).sum()));
        }
    }
    let unknown = unbooked(&profile, &done).iter().map(|stack| stack.ns).sum();
    kind::row("blocked, and not by its calls", kind::ms(0), kind::ms(unknown));
    compare::complete(&profile)?;
    ensure!(profile.blocks.len() == done.blocks, "{} blocks: {:?}", done.blocks, profile.blocks);
    for span in &done.spans {
        let seen = seen(span);
        near(&format!("{} {:?}", span.function, span.state), Some(seen), span.ns, 0.05, SLACK_NS)?;
    }
    sums(&profile)?;
    Ok((profile, done))
}

/// The stacks of a state, the threads' clocks and the greenlets' are the same time.
fn sums(profile: &Profile) -> Result<()> {
    let of_threads = |part: fn(&Clock) -> Option<u64>| {
        profile.threads.iter().map(|thread| part(&thread.clock)).sum::<Option<u64>>()
    };
    let of_greenlets = |part: fn(&Clock) -> Option<u64>| {
        profile.greenlets.iter().map(|greenlet| part(&greenlet.clock)).sum::<Option<u64>>()
    };
    let stacks: u64 =
        profile.stacks.iter().filter(|stack| stack.state == State::Blocked).map(|stack| stack.ns).sum();
    let blocked = of_threads(|clock| clock.blocked_ns);
    near("blocked stacks", Some(stacks), blocked.context("clocks")?, 0.001, 1_000)?;
    if !profile.greenlets.is_empty() {
        let plain: u64 = profile
            .threads
            .iter()
            .filter(|thread| profile.greenlets.iter().all(|greenlet| greenlet.tid != thread.tid))
            .filter_map(|thread| thread.clock.idle_ns)
            .sum();
        let idle = of_threads(|clock| clock.idle_ns).context("clocks")? - plain;
        near("idle greenlets", of_greenlets(|clock| clock.idle_ns), idle, 0.01, 2_000_000)?;
    }
    for thread in &profile.threads {
        let sum = thread.clock.sum_ns().context("a clock")?;
        ensure!(sum <= profile.duration_ns + 1_000_000, "{thread:?}: {sum} of {}", profile.duration_ns);
    }
    Ok(())
}
