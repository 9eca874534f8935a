//! A flame graph of waiting time.

use std::io::{self, Write};

use inferno::flamegraph::{self, Options, Palette, color::BasicPalette};

use super::{Exporter, folded, short};
use crate::profile::Profile;

/// A flame graph, drawn by inferno.
#[derive(Clone, Copy, Debug)]
pub struct Svg;

impl Exporter for Svg {
    fn export(&self, profile: &Profile, out: &mut dyn Write) -> io::Result<()> {
        let lines: Vec<String> = folded::lines(profile, short)
            .into_iter()
            .map(|(line, ns)| format!("{line} {}", ns / 1_000))
            .filter(|line| !line.ends_with(" 0"))
            .collect();
        if lines.is_empty() {
            return empty(profile, out);
        }
        let mut options = Options::default();
        options.title = title(profile);
        options.subtitle = Some(subtitle(profile));
        "us waited".clone_into(&mut options.count_name);
        "Frame:".clone_into(&mut options.name_type);
        options.colors = Palette::Basic(BasicPalette::Aqua);
        options.hash = true;
        options.font_type = "monospace".to_owned();
        options.min_width = 0.05;
        flamegraph::from_lines(&mut options, lines.iter().map(String::as_str), out).map_err(io::Error::other)
    }
}

fn title(profile: &Profile) -> String {
    let pids: Vec<String> = profile.targets.iter().map(|target| target.pid.to_string()).collect();
    format!("Where greenlets wait: pid {}", pids.join(", "))
}

fn subtitle(profile: &Profile) -> String {
    format!(
        "width: waiting time, summed over {} greenlets in {:.1} s (hubs' idle time left out)",
        profile.totals.greenlets_seen,
        profile.duration_ns as f64 / 1e9
    )
}

/// inferno refuses an empty graph; a page that says so is an answer too.
fn empty(profile: &Profile, out: &mut dyn Write) -> io::Result<()> {
    writeln!(
        out,
        r#"<?xml version="1.0" encoding="UTF-8"?>
<svg xmlns="http://www.w3.org/2000/svg" width="1200" height="80" viewBox="0 0 1200 80">
<rect width="1200" height="80" fill="white"/>
<text x="600" y="32" text-anchor="middle" font-family="monospace" font-size="17">{}</text>
<text x="600" y="58" text-anchor="middle" font-family="monospace" font-size="12">no greenlet waited</text>
</svg>"#,
        title(profile)
    )
}
