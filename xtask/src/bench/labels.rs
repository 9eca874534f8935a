//! What labels cost: at a switch, at a receipt.

use std::fmt::Write as _;

use super::{
    Results,
    document::{RING_5, Unit, row},
    switches::{Mode, Workload},
};
use crate::measure::spread::Goal;

/// What a target with spans needs from PyPI.
pub(super) const REQUIREMENTS: &str = "xtask/bench/labelled.txt";

const SPAN: Workload = Workload::Spans { variables: 1 };
const SPAN_OF_MANY: Workload = Workload::Spans { variables: 46 };
const BYTES: Workload = Workload::Sockets { bytes: 64 };
const HEADS: Workload = Workload::Sockets { bytes: 0 };

/// What is measured of what.
pub(super) const PLAN: &[(Workload, &[Mode])] = &[
    (RING_5, &[Mode::Empty, Mode::Unwired, Mode::Unlabelled]),
    (SPAN, &[Mode::Empty, Mode::Aggregated, Mode::Unlabelled]),
    (SPAN_OF_MANY, &[Mode::Empty, Mode::Aggregated, Mode::Unlabelled]),
    (BYTES, &[Mode::Aggregated, Mode::Unwired, Mode::Bystander]),
    (HEADS, &[Mode::Aggregated, Mode::Unwired, Mode::Bystander]),
];

/// Empty uprobes.
const LABEL: Goal = Goal(1.5);

const LABELS: &str = "\
What a label adds to a switch, in what an empty uprobe adds: (with labels - without) / (with an
empty uprobe - bare), of greenlets that each have a context with a live span of SkyWalking's agent
(`xtask/bench/ring.py`). And what greenscope adds to one send and one receipt over a pair of
connected sockets (`xtask/bench/sockets.py`), of 64 bytes and of the head of a request with
eight headers: to a target, and to another process on the machine.
";

pub(super) fn write(results: &Results, out: &mut String) -> std::fmt::Result {
    let (Some(ring), Some(span), Some(many), Some(bytes), Some(heads)) = (
        results.bench(RING_5),
        results.bench(SPAN),
        results.bench(SPAN_OF_MANY),
        results.bench(BYTES),
        results.bench(HEADS),
    ) else {
        return Ok(());
    };
    writeln!(out, "## Labels\n\n{LABELS}")?;
    writeln!(out, "| | goal | measured | spread | |\n|---|---|---|---|---|")?;
    let more = span.spread(|round| round.more(Mode::Aggregated, Mode::Unlabelled));
    row(out, "a switch with a label, one variable", Some(LABEL), &more, Unit::Times)?;
    let more = many.spread(|round| round.more(Mode::Aggregated, Mode::Unlabelled));
    row(out, "a switch with a label, 46 variables", Some(LABEL), &more, Unit::Times)?;
    let more = ring.spread(|round| round.more(Mode::Unwired, Mode::Unlabelled));
    row(out, "a switch in a process without a tracer, `--no-wire`", None, &more, Unit::Times)?;
    let more = span.spread(|round| Some(round.added(Mode::Aggregated)? - round.added(Mode::Unlabelled)?));
    row(out, "the first, in nanoseconds", None, &more, Unit::Nanoseconds)?;
    for (name, bench) in [("64 bytes", bytes), ("a request's head", heads)] {
        let more = bench.spread(|round| Some(round.added(Mode::Aggregated)? - round.added(Mode::Unwired)?));
        row(out, &format!("sent and received by a target, {name}"), None, &more, Unit::Nanoseconds)?;
        let more = bench.spread(|round| round.added(Mode::Bystander));
        row(out, &format!("by another process, {name}"), None, &more, Unit::Nanoseconds)?;
        let bare = bench.spread(super::switches::Round::bare);
        row(out, &format!("bare, {name}"), None, &bare, Unit::Nanoseconds)?;
    }
    writeln!(out)
}
