//! What the terminal says after a recording.

use std::{fmt::Write as _, time::Duration};

use crate::profile::{
    BlockKind, Clocked, Frame, Holder, Profile, Queued, StackRow, State, Victims, endpoints,
};

/// Stacks and runs shown.
const SHOWN: usize = 10;
/// Frames shown of one stack, leaf first.
const FRAMES: usize = 4;

/// The summary.
#[must_use]
pub fn text(profile: &Profile) -> String {
    let mut out = String::new();
    // Writing to a String does not fail.
    let _ = write(profile, &mut out);
    out
}

fn write(profile: &Profile, out: &mut String) -> std::fmt::Result {
    let seconds = profile.duration_ns as f64 / 1e9;
    let totals = &profile.totals;
    let rate = if seconds > 0.0 { totals.switches as f64 / seconds } else { 0.0 };
    let threads = profile.threads.len();
    if profile.targets.iter().all(|target| target.greenlet.is_none()) {
        writeln!(out, "{seconds:.2} s: no greenlets, {threads} threads")?;
    } else {
        writeln!(
            out,
            "{seconds:.2} s: {} switches ({rate:.0}/s), {} greenlets seen on {threads} threads",
            totals.switches, totals.greenlets_seen,
        )?;
    }
    clocks(profile, out)?;
    programs(profile, out)?;
    top(profile, State::Cpu, "most time on the CPU", "ticks", out)?;
    top(profile, State::Blocked, "most blocked time", "times", out)?;
    top(profile, State::Wait, "most waiting time", "waits", out)?;
    requests(profile, out)?;
    blocks(profile, out)?;
    if !profile.runs.is_empty() {
        writeln!(out, "\nlongest runs without a switch:")?;
        for run in profile.runs.iter().take(SHOWN) {
            let name = run.name.as_deref().unwrap_or("greenlet");
            let id = run.greenlet.map(|id| format!(" #{id}")).unwrap_or_default();
            let at = if run.frames.is_empty() {
                "until its end".to_owned()
            } else {
                format!("until {}", leaf(&run.frames))
            };
            writeln!(out, "  {:>9}  {name}{id}, {at}", time(run.ns))?;
        }
    }
    writeln!(out)?;
    losses(profile, out)?;
    if let Some(cost) = profile.cost {
        let ns = cost.ns_per_hit * totals.probe_hits;
        let share =
            if profile.duration_ns > 0 { ns as f64 / profile.duration_ns as f64 * 100.0 } else { 0.0 };
        writeln!(
            out,
            "cost: {} probe hits at {} ns each, {} ({share:.2} % of one CPU)",
            totals.probe_hits,
            cost.ns_per_hit,
            time(ns)
        )?;
    }
    Ok(())
}

/// What is said of a block when it ends.
#[must_use]
pub fn warning(
    pid: u32,
    name: Option<&str>,
    length: Duration,
    frames: &[Frame],
    met: Option<&[Frame]>,
) -> String {
    let length = time(u64::try_from(length.as_nanos()).unwrap_or(u64::MAX));
    let name = name.unwrap_or("a greenlet");
    format!("block: pid {pid}: {name} held its thread for {length}: {}", leaf(met.unwrap_or(frames)))
}

/// The runs that were too long, and whom they held up.
fn blocks(profile: &Profile, out: &mut String) -> std::fmt::Result {
    if profile.blocks.is_empty() {
        return Ok(());
    }
    writeln!(out, "\nblocks, {} in all, the longest:", profile.blocks.len())?;
    let mut longest: Vec<_> = profile.blocks.iter().collect();
    longest.sort_by_key(|block| std::cmp::Reverse(block.ns));
    for block in longest.into_iter().take(SHOWN) {
        let name = block.name.as_deref().unwrap_or("greenlet");
        let id = block.greenlet.map(|id| format!(" #{id}")).unwrap_or_default();
        let parts = block.clock.map(|clock| {
            let Clocked { on_cpu_ns, blocked_ns, preempted_ns, gil_wait_ns, idle_ns: _ } = clock;
            let mut parts = format!("{} on CPU, {} blocked", time(on_cpu_ns), time(blocked_ns));
            for (ns, what) in [(gil_wait_ns, "waiting for the GIL"), (preempted_ns, "preempted")] {
                // What can't be seen in the digits that are shown is left out.
                if ns >= block.ns / 1_000 {
                    parts += &format!(", {} {what}", time(ns));
                }
            }
            format!(" ({parts})")
        });
        let stack = block.ticks.first().map_or(&*block.frames, |(frames, _)| frames);
        let victims = match block.victims {
            None => "whom is not known yet".to_owned(),
            Some(Victims { count: 0, .. }) => "nobody".to_owned(),
            Some(Victims { count: 1, held_most_ns, .. }) => {
                format!("1 greenlet for at most {}", time(held_most_ns))
            }
            Some(Victims { count, held_most_ns, .. }) => {
                format!("{count} greenlets for at most {} each", time(held_most_ns))
            }
        };
        let parts = parts.unwrap_or_default();
        let why = match block.clock.and_then(|clock| clock.kind()) {
            Some(BlockKind::Starved) => ", starved".to_owned(),
            Some(BlockKind::Gil) => match &block.gil_holder {
                Some(Holder { tid, name: None }) => format!(", the GIL held by thread {tid}"),
                Some(Holder { tid, name: Some(name) }) => format!(", the GIL held by {name} ({tid})"),
                None => ", the GIL held by another thread".to_owned(),
            },
            Some(_) | None => String::new(),
        };
        writeln!(out, "  {:>9}{parts}  {name}{id}, {}{why}; held up {victims}", time(block.ns), leaf(stack))?;
    }
    Ok(())
}

/// Where the threads' time went.
fn clocks(profile: &Profile, out: &mut String) -> std::fmt::Result {
    let all = profile.threads.iter().filter_map(|thread| thread.clock).reduce(Clocked::plus);
    let Some(Clocked { on_cpu_ns, blocked_ns, preempted_ns, gil_wait_ns, idle_ns }) = all else {
        return Ok(());
    };
    writeln!(
        out,
        "threads: {} on CPU, {} blocked, {} idle, {} waiting for the GIL, {} preempted",
        time(on_cpu_ns),
        time(blocked_ns),
        time(idle_ns),
        time(gil_wait_ns),
        time(preempted_ns)
    )
}

/// What was missed of programs that took others' places.
fn programs(profile: &Profile, out: &mut String) -> std::fmt::Result {
    let unseen: Vec<u64> = profile.targets.iter().filter_map(|target| target.unseen_ns).collect();
    let Some(longest) = unseen.iter().max() else {
        return Ok(());
    };
    let (count, longest) = (unseen.len(), time(*longest));
    writeln!(out, "new programs: {count}, recorded from at most {longest} after their begin on")
}

/// The stacks with the most time in a state.
fn top(profile: &Profile, state: State, title: &str, unit: &str, out: &mut String) -> std::fmt::Result {
    let rows: Vec<&StackRow> = profile.stacks.iter().filter(|row| row.state == state).collect();
    if rows.is_empty() {
        return Ok(());
    }
    let total: u64 = rows.iter().map(|row| row.ns).sum();
    writeln!(out, "\n{title}, of {} in all:", time(total))?;
    for row in merged(&rows).into_iter().take(SHOWN) {
        let Merged { ns, count, open, queued, frames } = row;
        let open = if open > 0 { format!(", {open} open") } else { String::new() };
        // What can't be seen in the digits that are shown is left out.
        let queued =
            if queued.least_ns > ns / 1_000 { format!(", {} queued", bounds(queued)) } else { String::new() };
        writeln!(out, "  {:>9}  {count:>7} {unit}{open}{queued}  {}", time(ns), leaf(frames))?;
    }
    Ok(())
}

/// Why each endpoint takes the time that it takes.
fn requests(profile: &Profile, out: &mut String) -> std::fmt::Result {
    let rows = endpoints(profile);
    if rows.is_empty() {
        return match &profile.only {
            Some(only) => writeln!(out, "\nno request matched: {only}"),
            None => Ok(()),
        };
    }
    writeln!(
        out,
        "\nrequests by endpoint, of {} seen (wall of those wholly inside; the rest sums):",
        profile.requests.len()
    )?;
    writeln!(
        out,
        "  {:>8} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>20}  endpoint, and where it waited most",
        "requests", "p50", "p95", "on CPU", "blocked", "GIL wait", "preempted", "waiting", "of it queued"
    )?;
    let or = |ns: Option<u64>| ns.map_or_else(|| "-".to_owned(), time);
    for row in rows.iter().take(SHOWN) {
        let endpoint = row.endpoint.as_deref().unwrap_or("(unknown)");
        let waited =
            row.top_wait.as_ref().map_or_else(String::new, |(frames, _)| format!(": {}", leaf(frames)));
        writeln!(
            out,
            "  {:>8} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>20}  {endpoint}{waited}",
            row.requests,
            or(row.wall_p50_ns),
            or(row.wall_p95_ns),
            or(row.clock.map(|clock| clock.on_cpu_ns)),
            or(row.clock.map(|clock| clock.blocked_ns)),
            or(row.clock.map(|clock| clock.gil_wait_ns)),
            or(row.clock.map(|clock| clock.preempted_ns)),
            or(row.waiting_ns),
            row.queued.map_or_else(|| "-".to_owned(), bounds),
        )?;
    }
    Ok(())
}

fn losses(profile: &Profile, out: &mut String) -> std::fmt::Result {
    let totals = &profile.totals;
    if totals.faults.is_empty() && totals.greenlets_unlisted == 0 {
        return writeln!(out, "losses: none");
    }
    let mut words: Vec<String> =
        totals.faults.iter().map(|(name, count)| format!("{name} {count}")).collect();
    if totals.greenlets_unlisted > 0 {
        words.push(format!("{} greenlets not listed one by one", totals.greenlets_unlisted));
    }
    writeln!(out, "losses (docs/faults.md): {}", words.join(", "))
}

struct Merged<'a> {
    ns: u64,
    count: u64,
    open: u64,
    queued: Queued,
    frames: &'a [Frame],
}

/// Open and completed waits of the same stack in one row.
fn merged<'a>(rows: &[&'a StackRow]) -> Vec<Merged<'a>> {
    let mut by_frames: std::collections::HashMap<&'a [Frame], Merged<'a>> = std::collections::HashMap::new();
    for row in rows {
        let new = Merged { ns: 0, count: 0, open: 0, queued: Queued::default(), frames: &row.frames };
        let merged = by_frames.entry(&row.frames).or_insert(new);
        merged.queued.add(row.queued.unwrap_or_default());
        merged.ns += row.ns;
        if row.open.is_some() {
            merged.open += row.count;
        } else {
            merged.count += row.count;
        }
    }
    let mut merged: Vec<Merged<'a>> = by_frames.into_values().collect();
    merged.sort_by(|a, b| b.ns.cmp(&a.ns).then_with(|| a.frames.cmp(b.frames)));
    merged
}

/// The innermost frames that are the service's own tell more than the library's.
fn leaf(frames: &[Frame]) -> String {
    let own = frames.iter().rev().filter(|frame| !is_library(frame));
    let own: Vec<&Frame> = own.take(FRAMES).collect();
    // A server's script is the root of all that the server does.
    let only_script = own.iter().all(|frame| frame.function.as_deref() == Some("<module>"));
    let mut names: Vec<String> = own.into_iter().map(name).collect();
    if only_script {
        names = frames.iter().rev().take(FRAMES).map(name).collect();
    }
    if names.is_empty() { "(no Python frame)".to_owned() } else { names.join(" < ") }
}

fn is_library(frame: &Frame) -> bool {
    frame.file.as_deref().is_none_or(|file| {
        ["/site-packages/", "/dist-packages/", "/lib/python3.", "src/gevent/"]
            .iter()
            .any(|part| file.contains(part))
    })
}

fn name(frame: &Frame) -> String {
    let function = frame.function.as_deref().unwrap_or("[unknown]");
    let file = frame.file.as_deref().and_then(|file| file.rsplit('/').next());
    match (file, frame.line) {
        (Some(file), Some(line)) => format!("{function} {file}:{line}"),
        _ => function.to_owned(),
    }
}

/// Between what and what.
fn bounds(Queued { least_ns, most_ns }: Queued) -> String {
    if most_ns == 0 { time(0) } else { format!("{} to {}", time(least_ns), time(most_ns)) }
}

/// Three digits that matter.
fn time(ns: u64) -> String {
    let ns = ns as f64;
    if ns >= 1e9 {
        format!("{:.2} s", ns / 1e9)
    } else if ns >= 1e6 {
        format!("{:.2} ms", ns / 1e6)
    } else {
        format!("{:.1} us", ns / 1e3)
    }
}

#[cfg(test)]
mod tests {
    use super::time;

    #[test]
    fn times_have_a_unit() {
        assert_eq!(time(1_500_000_000), "1.50 s");
        assert_eq!(time(2_340_000), "2.34 ms");
        assert_eq!(time(900), "0.9 us");
    }
}
