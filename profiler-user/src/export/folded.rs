//! Folded stacks: a line a stack, root first, separated by `;`, and its time in ns.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use super::{Exporter, labelled, waiting};
use crate::profile::Profile;

/// Folded stacks of waiting time.
#[derive(Clone, Copy, Debug)]
pub struct Folded;

/// The lines, one for each different stack, with files as `show` shows them.
pub(super) fn lines(profile: &Profile, show: impl Fn(&str) -> &str) -> BTreeMap<String, u64> {
    let mut lines = BTreeMap::new();
    for row in waiting(profile) {
        // `;` separates frames and a line break stacks; neither is in a name that
        // a compiler made, but `exec` and `compile` take any file name.
        let frames: Vec<String> =
            row.frames.iter().map(|frame| labelled(frame, &show).replace([';', '\n', '\r'], "_")).collect();
        let line = if frames.is_empty() { "[no Python frame]".to_owned() } else { frames.join(";") };
        *lines.entry(line).or_default() += row.ns;
    }
    lines
}

impl Exporter for Folded {
    fn export(&self, profile: &Profile, out: &mut dyn Write) -> io::Result<()> {
        for (line, ns) in lines(profile, |file| file) {
            writeln!(out, "{line} {ns}")?;
        }
        Ok(())
    }
}
