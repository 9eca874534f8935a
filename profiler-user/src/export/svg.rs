//! A flame graph: a state a colour.

use std::io::{self, Write};

use inferno::flamegraph::{self, Options, Palette, color::MultiPalette};

use super::{Exporter, View, folded, short};
use crate::profile::{Profile, State};

/// A flame graph, drawn by inferno.
#[derive(Clone, Copy, Debug)]
pub struct Svg {
    /// Of what.
    pub view: View,
}

impl Exporter for Svg {
    fn export(&self, profile: &Profile, out: &mut dyn Write) -> io::Result<()> {
        let lines: Vec<String> = folded::lines(profile, self.view, short, colour)
            .into_iter()
            .map(|(line, ns)| format!("{line} {}", ns / 1_000))
            .filter(|line| !line.ends_with(" 0"))
            .collect();
        if lines.is_empty() {
            return empty(profile, self.view, out);
        }
        let mut options = Options::default();
        options.title = title(profile, self.view);
        options.subtitle = Some(subtitle(profile, self.view));
        "us".clone_into(&mut options.count_name);
        "Frame:".clone_into(&mut options.name_type);
        options.colors = Palette::Multi(MultiPalette::Java);
        options.hash = true;
        options.font_type = "monospace".to_owned();
        options.min_width = 0.05;
        flamegraph::from_lines(&mut options, lines.iter().map(String::as_str), out).map_err(io::Error::other)
    }
}

/// The mark of a colour in inferno's palette: green, orange, blue. Without one the colour would
/// go by what is in a frame's name.
const fn colour(state: State) -> &'static str {
    match state {
        State::Cpu => "_[j]",
        State::Blocked | State::Gil | State::Preempted => "_[k]",
        State::Wait | State::Idle => "_[i]",
    }
}

/// What the colours of the view with several states are.
const COLOURS: &str = "green: CPU, orange: blocked, preempted, GIL, blue: waiting, red: queued";

fn title(profile: &Profile, view: View) -> String {
    let pids: Vec<String> = profile.targets.iter().map(|target| target.pid.to_string()).collect();
    let what = match view {
        View::Wall => "Where the time goes",
        View::Cpu => "What is on the CPU",
        View::Wait => "Where greenlets wait",
        View::Blocked => "Where calls block their thread",
    };
    let only = profile.only.as_ref().map(|only| format!(", {only}")).unwrap_or_default();
    format!("{what}: pid {}{only}", pids.join(", "))
}

fn subtitle(profile: &Profile, view: View) -> String {
    let colours = if view == View::Wall { format!("; {COLOURS}") } else { String::new() };
    let width = match view {
        View::Wall => "all time",
        View::Cpu => "time on the CPU",
        View::Wait => "waiting time",
        View::Blocked => "blocked time",
    };
    if profile.only.is_some() {
        let requests = profile.requests.len();
        let seconds = profile.duration_ns as f64 / 1e9;
        return format!("width: {width} of {requests} requests in {seconds:.1} s{colours}");
    }
    format!(
        "width: {width} of {} greenlets on {} threads in {:.1} s, without idle hubs{colours}",
        profile.totals.greenlets_seen,
        profile.threads.len(),
        profile.duration_ns as f64 / 1e9
    )
}

/// inferno refuses an empty graph; a page that says so is an answer too.
fn empty(profile: &Profile, view: View, out: &mut dyn Write) -> io::Result<()> {
    writeln!(
        out,
        r#"<?xml version="1.0" encoding="UTF-8"?>
<svg xmlns="http://www.w3.org/2000/svg" width="1200" height="80" viewBox="0 0 1200 80">
<rect width="1200" height="80" fill="white"/>
<text x="600" y="32" text-anchor="middle" font-family="monospace" font-size="17">{}</text>
<text x="600" y="58" text-anchor="middle" font-family="monospace" font-size="12">nothing was there to show</text>
</svg>"#,
        escaped(&title(profile, view))
    )
}

/// Text of a page: a pattern of an endpoint may have anything.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
