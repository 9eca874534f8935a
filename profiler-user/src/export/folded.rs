//! Folded stacks: a line a stack, root first, separated by `;`, and its time in ns. In
//! the view of several states the state comes first.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use super::{Exporter, View, labelled, named};
use crate::profile::{Profile, State};

/// Folded stacks.
#[derive(Clone, Copy, Debug)]
pub struct Folded {
    /// Which.
    pub view: View,
}

/// The frame of what a wait was queued for certain: it says nothing of what was waited for.
const QUEUED: &str = "(queued: ready, and the hub busy)";

/// The lines, one for each different stack, with files as `show` shows them. Each label
/// of a state ends in what `mark` gives for it.
pub(super) fn lines(
    profile: &Profile,
    view: View,
    show: impl Fn(&str) -> &str,
    mark: impl Fn(State) -> &'static str,
) -> BTreeMap<String, u64> {
    let mut lines = BTreeMap::new();
    for row in view.rows(profile) {
        // `;` separates frames and a line break stacks; neither is in a name that
        // a compiler made, but `exec` and `compile` take any file name.
        let mut frames: Vec<String> =
            row.frames.iter().map(|frame| labelled(frame, &show).replace([';', '\n', '\r'], "_")).collect();
        if frames.is_empty() {
            frames.push("[no Python frame]".to_owned());
        }
        if view == View::Wall {
            frames.insert(0, named(row.state).to_owned());
        }
        let mark = mark(row.state);
        let marked: Vec<String> = frames.into_iter().map(|frame| frame + mark).collect();
        let line = marked.join(";");
        let queued_ns = row.queued.map_or(0, |queued| queued.least_ns.min(row.ns));
        if queued_ns > 0 {
            *lines.entry(format!("{line};{QUEUED}")).or_default() += queued_ns;
        }
        *lines.entry(line).or_default() += row.ns - queued_ns;
    }
    lines
}

impl Exporter for Folded {
    fn export(&self, profile: &Profile, out: &mut dyn Write) -> io::Result<()> {
        for (line, ns) in lines(profile, self.view, |file| file, |_| "") {
            writeln!(out, "{line} {ns}")?;
        }
        Ok(())
    }
}
