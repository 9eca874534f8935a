//! A finished profile in the formats that people and programs read.

pub mod folded;
pub mod json;
pub mod svg;

use std::io::{self, Write};

use crate::profile::{Frame, Profile, StackRow, State};

/// One destination's format.
pub trait Exporter {
    /// Writes the whole profile.
    ///
    /// # Errors
    ///
    /// When `out` can't be written.
    fn export(&self, profile: &Profile, out: &mut dyn Write) -> io::Result<()>;
}

/// A frame as one label: `function (file:line)`.
pub(crate) fn label(frame: &Frame) -> String {
    let Frame { function, file, line } = frame;
    let function = function.as_deref().unwrap_or("[unknown]");
    match (file, line) {
        (Some(file), Some(line)) => format!("{function} ({file}:{line})"),
        (Some(file), None) => format!("{function} ({file})"),
        (None, _) => function.to_owned(),
    }
}

/// The stacks of the default view: what waited, without idle hubs.
pub(crate) fn waiting(profile: &Profile) -> impl Iterator<Item = &StackRow> {
    profile.stacks.iter().filter(|row| row.state == State::Wait)
}
