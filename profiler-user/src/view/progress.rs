//! The line that moves while a recording runs.

use std::fmt::Display;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::session::Progress;

/// The progress line; nothing where no terminal is.
#[derive(Debug)]
pub struct Line(Option<ProgressBar>);

impl Line {
    /// Drawn on stderr if that is a terminal.
    #[must_use]
    pub fn new(terminal: bool) -> Self {
        Self(terminal.then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(5));
            // The template is a constant; without it the line is plainer.
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
                bar.set_style(style);
            }
            bar
        }))
    }

    /// Shows how far it is, and how serving `served` stands.
    pub fn show(&self, progress: Progress<'_>, served: Option<&impl Display>) {
        let Some(bar) = &self.0 else {
            return;
        };
        match progress {
            Progress::Recording { .. }
            | Progress::NoClocks(_)
            | Progress::NoTicks(_)
            | Progress::NoWire(_)
            | Progress::NoAnswer(_)
            | Progress::Spanless { .. }
            | Progress::Block { .. } => {}
            Progress::Turn { elapsed, switches, stacks } => {
                let seconds = elapsed.as_secs_f64();
                let rate = if seconds > 0.0 { switches as f64 / seconds } else { 0.0 };
                let served = served.map(|served| format!("{served}; ")).unwrap_or_default();
                bar.set_message(format!(
                    "{seconds:.1} s, {switches} switches ({rate:.0}/s), {stacks} stacks; {served}Ctrl-C ends"
                ));
                bar.tick();
            }
        }
    }

    /// Takes the line away.
    pub fn clear(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
