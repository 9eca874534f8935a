//! A finished profile in the formats that people and programs read.

pub mod folded;
pub mod json;
mod json_labels;
pub mod oap;
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

/// A frame as one label, `function (file:line)`, with its file as `show` shows it.
fn labelled(frame: &Frame, show: impl Fn(&str) -> &str) -> String {
    let Frame { function, file, line } = frame;
    let file = file.as_deref().map(show);
    let function = function.as_deref().unwrap_or("[unknown]");
    match (file, line) {
        (Some(file), Some(line)) => format!("{function} ({file}:{line})"),
        (Some(file), None) => format!("{function} ({file})"),
        (None, _) => function.to_owned(),
    }
}

/// A file's name as far as it tells one from another: what follows the directory of
/// the libraries, else its last two parts.
pub(crate) fn short(file: &str) -> &str {
    for libraries in ["/site-packages/", "/dist-packages/"] {
        if let Some((_, rest)) = file.rsplit_once(libraries) {
            return rest;
        }
    }
    let mut parts = file.rmatch_indices('/');
    let second = parts.nth(1).map(|(at, _)| at + 1);
    second.and_then(|at| file.get(at..)).unwrap_or(file)
}

/// Which of the stacks are shown. Idle hubs are in none of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// Everything that is in one of the others.
    Wall,
    /// On a CPU.
    Cpu,
    /// Suspended.
    Wait,
    /// Asleep in a call that did not yield.
    Blocked,
}

impl View {
    /// Whether it shows a state.
    #[must_use]
    pub const fn shows(self, state: State) -> bool {
        match self {
            Self::Wall => !matches!(state, State::Idle),
            Self::Cpu => matches!(state, State::Cpu),
            Self::Wait => matches!(state, State::Wait),
            Self::Blocked => matches!(state, State::Blocked),
        }
    }

    /// The stacks that it shows.
    fn rows(self, profile: &Profile) -> impl Iterator<Item = &StackRow> {
        profile.stacks.iter().filter(move |row| self.shows(row.state))
    }
}

/// What a state is called in a graph of several.
const fn named(state: State) -> &'static str {
    match state {
        State::Cpu => "[on CPU]",
        State::Wait => "[waiting]",
        State::Blocked => "[blocked]",
        State::Gil => "[waiting for the GIL]",
        State::Preempted => "[preempted]",
        State::Idle => "[idle]",
    }
}

#[cfg(test)]
mod tests {
    use super::short;

    #[test]
    fn a_file_is_named_by_what_tells_it_apart() {
        assert_eq!(short("/v/lib/python3.13/site-packages/gevent/hub.py"), "gevent/hub.py");
        assert_eq!(short("/srv/shop/orders/views.py"), "orders/views.py");
        assert_eq!(short("/app.py"), "/app.py");
        assert_eq!(short("<string>"), "<string>");
    }
}
