//! Kinds of programs that were told wrong once: live tests, under greenscope and the one before.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use super::bounds::Verdict;
use crate::{process, python, test, workspace};

/// The last commit without any of what was mended: the parent of each branch that began to
/// (19ec065 probes, 1daa98a clocks, 03ebb41 queues).
pub(super) const BEFORE: &str = "b96e6830d007c7225adcd0397f751aa416043f6d";

/// Each kind's live test.
const KINDS: [(&str, &str); 34] = [
    ("containers of one image", "containers_of_one_image_are_each_counted_once/py3.13"),
    ("twenty of them", "twenty_containers_of_one_image_are_exact"),
    ("starvation", "a_starved_service_is_ready_and_does_not_idle/napping/py3.13"),
    ("quota", "a_service_that_used_up_its_quota_is_ready/napping/py3.13"),
    ("GIL held by another thread", "a_block_says_who_held_the_gil/py3.13"),
    ("queue time", "the_time_queued_lies_between_its_bounds/busy/py3.13"),
    ("500 threads", "the_oldest_thread_has_its_stacks/beside_500_threads/py3.13"),
    ("forked by C", "a_process_that_c_forked_has_its_stacks/py3.13"),
    ("uWSGI", "recycled_uwsgi_workers_are_counted_whole"),
    ("eventlet", "what_waits_for_events_idles_and_what_blocks_is_a_block/eventlet/py3.13"),
    ("asyncio bridge", "what_waits_for_events_idles_and_what_blocks_is_a_block/asyncio/py3.13"),
    ("gevent's thread pool", "what_waits_for_events_idles_and_what_blocks_is_a_block/pool/py3.13"),
    ("celery", "what_waits_for_events_idles_and_what_blocks_is_a_block/celery/py3.13"),
    ("threads that wait for tasks", "what_waits_for_events_idles_and_what_blocks_is_a_block/futures/py3.13"),
    ("subinterpreters", "a_thread_in_another_interpreter_is_counted_and_told/py3.13"),
    ("CPU of two targets", "cpu_of_two_targets_beyond_the_limit_is_counted_once/py3.13"),
    ("short-lived code", "codes_that_live_as_long_as_a_job_keep_their_names/jobs/py3.13"),
    ("the same, labels on the wire", "codes_that_live_as_long_as_a_job_keep_their_names/wire/py3.13"),
    (
        "the same, labels of a tracer",
        "codes_that_live_as_long_as_a_job_keep_their_names/spans/otel-1.45.1-py3.13",
    ),
    ("event loop on the wire", "requests_under_an_event_loop_are_counted/py3.13"),
    ("ASGI: uvicorn", "requests_to_uvicorn_are_counted/asyncio/py3.13"),
    ("the same under uvloop", "requests_to_uvicorn_are_counted/uvloop/py3.13"),
    ("readers and responders", "requests_that_others_answer_are_counted/py3.13"),
    ("one greenlet reads for all", "requests_that_one_greenlet_reads_for_all_are_counted/py3.13"),
    ("bytes that are no request", "requests_are_none_that_only_begin_like_one/py3.13"),
    ("heads in every form", "requests_in_every_form_are_counted_and_labelled/py3.12"),
    ("heads in pieces", "labels_of_heads_in_pieces_are_right/py3.13"),
    ("tasks of a loop", "tasks_of_an_event_loop_are_told_apart/otel-1.45.1-py3.13"),
    ("inherited labels", "what_outlives_its_request_is_nobodys/otel-1.45.1-py3.12"),
    ("the same on the wire", "what_outlives_its_request_is_nobodys/py3.13"),
    ("a tracer that samples", "requests_without_a_span_have_their_endpoint/otel-1.45.1-py3.13"),
    ("a tracer without spans", "requests_without_a_span_have_their_endpoint/agent-1.2.0-py3.13"),
    ("a span after the answer", "a_span_after_the_answer_is_not_the_requests/otel-1.45.1-py3.13"),
    ("memory that never answers", "memory_that_never_answers_stops_nothing/py3.13"),
];

/// So much of a failure is a reason in a cell.
const REASON: usize = 70;

/// The table.
pub(super) struct Kinds {
    pub(super) rows: Vec<Row>,
}

/// A line of it.
#[derive(Debug, PartialEq)]
pub(super) struct Row {
    pub(super) kind: &'static str,
    pub(super) what: String,
    pub(super) truth: String,
    pub(super) found: String,
    pub(super) before: String,
    pub(super) case: &'static str,
    pub(super) verdict: Verdict,
}

impl Kinds {
    /// Whether each test passed.
    pub(super) fn are_good(&self) -> bool {
        self.rows.iter().all(|row| row.verdict == Verdict::Inside)
    }
}

/// What a live test said of its kind (tests/src/kind.rs), and how it ended.
struct Outcome {
    figures: Vec<Figure>,
    verdict: Verdict,
    /// What it said first where it did not pass, for a cell.
    reason: String,
}

struct Figure {
    what: String,
    truth: String,
    found: String,
}

/// Runs the live tests with the greenscope of today and with the one before.
///
/// # Errors
///
/// When one of both can't be built, or the tests can't be run at all.
pub(super) fn measure() -> Result<Kinds> {
    test::prepare(KINDS.iter().map(|(_, case)| *case))?;
    let before = build_before()?;
    let now = run(&workspace::greenscope(), "the greenscope of today")?;
    let missing = KINDS.iter().find(|(_, case)| !now.contains_key(*case)).map(|(_, case)| case);
    ensure!(missing.is_none(), "the live tests ended early: {missing:?} did not run");
    let before = run(&before, "the greenscope before, under which most of them fail")?;
    Ok(Kinds { rows: rows(&KINDS, &now, &before) })
}

/// The greenscope before, built once in a work tree of its own. Its kernel part is committed.
fn build_before() -> Result<PathBuf> {
    let folder = workspace::target().join("before").join(BEFORE);
    let (tree, target) = (folder.join("tree"), folder.join("target"));
    let greenscope = target.join("release/greenscope");
    if greenscope.exists() {
        return Ok(greenscope);
    }
    println!("building the greenscope of {BEFORE} in {}", folder.display());
    // What an interrupted run left is made again.
    let is_whole = tree.join("Cargo.lock").exists()
        && process::output(Command::new("git").current_dir(&tree).args(["status", "--porcelain"]))
            .is_ok_and(|changes| changes.trim().is_empty());
    if !is_whole {
        if tree.exists() {
            fs::remove_dir_all(&tree)?;
        }
        let mut git = Command::new("git");
        // By force: of a folder that was deleted git still believes that it is there. By force once
        // more: and that it is being made, if git was killed meanwhile.
        git.current_dir(workspace::root()).args(["worktree", "add", "--force", "--force", "--detach"]);
        process::run(git.arg(&tree).arg(BEFORE)).context("the history before is needed here")?;
    }
    let mut cargo = process::cargo();
    cargo.current_dir(&tree).args(["build", "--release", "--locked", "--package", "profiler-user"]);
    process::run(cargo.arg("--target-dir").arg(&target))?;
    Ok(greenscope)
}

/// Every test once under that greenscope; that one fails is no error here.
fn run(greenscope: &Path, which: &str) -> Result<BTreeMap<String, Outcome>> {
    println!("kinds, with {which}: {}", greenscope.display());
    let mut command = test::cargo_test();
    command.args(["--package", "tests", "--test", "live", "--", "--exact"]);
    command.args(KINDS.map(|(_, case)| case));
    command.env("GREENSCOPE_BIN", greenscope).env("GREENSCOPE_VENVS", python::folder());
    let mut lines = Vec::new();
    process::lines(&mut command, |line| lines.push(line))?;
    Ok(outcomes(&lines))
}

/// By the tests' names.
fn outcomes(lines: &[String]) -> BTreeMap<String, Outcome> {
    let mut outcomes = BTreeMap::new();
    let mut figures = Vec::new();
    for line in lines {
        if let Some(figure) = line.strip_prefix("kind\t") {
            let mut fields = figure.split('\t').map(str::to_owned);
            let mut field = || fields.next().unwrap_or_default();
            figures.push(Figure { what: field(), truth: field(), found: field() });
            continue;
        }
        let Some((end, rest)) = line.split_once(' ') else { continue };
        let verdict = match end {
            "ok" => Verdict::Inside,
            "FAIL" => Verdict::Outside,
            "SKIP" => Verdict::NotMeasured,
            _ => continue,
        };
        let (name, said) = rest.trim_start().split_once([' ', ':']).unwrap_or((rest, ""));
        // Behind the time that it took, what it says first.
        let said = said.split_once("): ").map_or(said, |(_, said)| said).trim();
        let said = said.split([':', ';']).next().unwrap_or_default();
        let reason = said.chars().take(REASON).collect::<String>().replace('|', "/");
        outcomes.insert(name.to_owned(), Outcome { figures: std::mem::take(&mut figures), verdict, reason });
    }
    outcomes
}

/// A line for each figure of today, and one at least for each kind.
fn rows(
    kinds: &[(&'static str, &'static str)],
    now: &BTreeMap<String, Outcome>,
    before: &BTreeMap<String, Outcome>,
) -> Vec<Row> {
    let mut rows = Vec::new();
    for (kind, case) in kinds {
        let (now, before) = (now.get(*case), before.get(*case));
        let reason = |outcome: Option<&Outcome>| {
            outcome.map_or_else(|| "did not run".to_owned(), |outcome| outcome.reason.clone())
        };
        let row = |what: &str, truth: &str, found: String, before| Row {
            kind,
            what: what.to_owned(),
            truth: truth.to_owned(),
            found,
            before,
            case,
            verdict: now.map_or(Verdict::NotMeasured, |now| now.verdict),
        };
        let figures = now.map_or(&[][..], |now| &now.figures);
        if figures.is_empty() {
            rows.push(row("", "-", reason(now), reason(before)));
        }
        for Figure { what, truth, found } in figures {
            let then = before.and_then(|before| before.figures.iter().find(|then| then.what == *what));
            let then = match then {
                None => reason(before),
                Some(then) if then.truth == *truth => then.found.clone(),
                Some(then) => format!("{} (truth {})", then.found, then.truth),
            };
            rows.push(row(what, truth, found.clone(), then));
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcomes_of(text: &str) -> BTreeMap<String, Outcome> {
        outcomes(&text.lines().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn figures_are_of_the_test_that_ends_next() {
        let now = outcomes_of(
            "kind\tswitches\t7\t7\n      a word\nkind\tslept\t8 ms\t9 ms\nok    waits/py3.13 (0.5 s)\n\
             kind\ttold\t1\t1\nFAIL  sleeps (61.0 s): no line in time; it said: \"x\"\n\
             SKIP  uwsgi: uWSGI could not be built\nfailed: sleeps\n",
        );
        let before =
            outcomes_of("kind\tslept\t6 ms\t1 ms\nFAIL  waits/py3.13 (2.0 s): a wait | less: of 7\n");
        let kinds = [("w", "waits/py3.13"), ("s", "sleeps"), ("u", "uwsgi"), ("gone", "gone")];
        let rows = rows(&kinds, &now, &before);
        let cells: Vec<_> = rows
            .iter()
            .map(|row| {
                let Row { kind, what, truth, found, before, case: _, verdict } = row;
                format!("{kind}, {what}, {truth}, {found}, {before}, {verdict}")
            })
            .collect();
        assert_eq!(
            cells,
            [
                "w, switches, 7, 7, a wait / less, inside",
                "w, slept, 8 ms, 9 ms, 1 ms (truth 6 ms), inside",
                "s, told, 1, 1, did not run, **outside**",
                "u, , -, uWSGI could not be built, did not run, not measured",
                "gone, , -, did not run, did not run, not measured",
            ]
        );
        assert!(!Kinds { rows }.are_good());
    }
}
