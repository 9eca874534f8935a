//! What a switch or a life costs: bare, with an empty probe, with greenscope, inside.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::Duration,
};

use anyhow::Result;

use super::{
    recording::Recording,
    target::{Inside, Target, Versions},
};
use crate::measure::spread::Spread;

/// One sample; a batch is a few milliseconds.
const SAMPLE: Duration = Duration::from_millis(300);

/// The same where a batch is a hundred thousand switches.
const LONG_SAMPLE: Duration = Duration::from_millis(700);

/// From so many greenlets on, a pass around the ring takes long.
const MANY: u32 = 10_000;

/// What is in g_switchstack's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Mode {
    /// A probe that does nothing.
    Empty,
    /// Times by greenlet, without stacks.
    Accounting,
    /// The default: times by greenlet and by stack.
    Aggregated,
    /// The same, and a record of each switch.
    Recorded,
    /// The default, but of another process with the same library.
    Bystander,
    /// The default without labels.
    Unlabelled,
    /// The default without a look at sockets.
    Unwired,
}

/// What a target does over and over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Workload {
    /// Greenlets that hand the switch on.
    Ring { greenlets: u32, depth: u32, shims: u32 },
    /// Greenlets that are born and die.
    Lives,
    /// A thread that burns.
    Burn,
    /// Two processes that wake each other.
    Pipes,
    /// A ring of ten, five deep, each greenlet with a span among so many variables.
    Spans { variables: u32 },
    /// A greenlet that receives: so many bytes, or (0) the head of a request.
    Sockets { bytes: u32 },
}

/// A target and what was measured on it.
pub(super) struct Bench {
    workload: Workload,
    modes: Vec<Mode>,
    inside: Vec<Inside>,
    target: Target,
    /// Who is recorded when the target is not.
    other: Option<Target>,
    pub(super) rounds: Vec<Round>,
    /// What recordings lost or miscounted.
    pub(super) notes: BTreeSet<String>,
}

/// What a unit took in one round, in ns.
#[derive(Clone, Debug, Default)]
pub(super) struct Round {
    /// Without anything; the mean of before and after.
    bare: f64,
    modes: BTreeMap<Mode, f64>,
    inside: BTreeMap<Inside, f64>,
}

impl Mode {
    fn options(self) -> &'static [&'static str] {
        match self {
            Self::Empty => &["--no-hit-cost", "--empty-probe"],
            Self::Accounting => &["--no-hit-cost", "--accounting-only"],
            Self::Aggregated | Self::Bystander => &["--no-hit-cost"],
            Self::Recorded => &["--no-hit-cost", "--intervals"],
            Self::Unlabelled => &["--no-hit-cost", "--no-labels"],
            Self::Unwired => &["--no-hit-cost", "--no-wire"],
        }
    }
}

impl Workload {
    /// Starts the program.
    pub(super) fn start(self, python: &Path) -> Result<Target> {
        match self {
            Self::Ring { greenlets, depth, shims } => {
                Target::start(python, "ring.py", &[greenlets, depth, shims].map(|number| number.to_string()))
            }
            Self::Lives => Target::start(python, "lives.py", &[]),
            Self::Burn => Target::start(python, "burn.py", &[]),
            Self::Pipes => Target::start(python, "pipes.py", &[]),
            Self::Spans { variables } => {
                Target::start(python, "ring.py", &[10, 5, 0, variables].map(|number| number.to_string()))
            }
            Self::Sockets { bytes: 0 } => Target::start(python, "sockets.py", &["head".to_owned()]),
            Self::Sockets { bytes } => Target::start(python, "sockets.py", &[bytes.to_string()]),
        }
    }

    const fn switches_per_unit(self) -> u64 {
        match self {
            Self::Ring { .. } | Self::Spans { .. } => 1,
            // In, and out at its end.
            Self::Lives => 2,
            Self::Burn | Self::Pipes | Self::Sockets { .. } => 0,
        }
    }

    const fn sample(self) -> Duration {
        match self {
            Self::Ring { greenlets: MANY.., .. } => LONG_SAMPLE,
            // Three batches are longer.
            Self::Ring { .. }
            | Self::Lives
            | Self::Burn
            | Self::Pipes
            | Self::Spans { .. }
            | Self::Sockets { .. } => SAMPLE,
        }
    }
}

impl Bench {
    /// Starts the target; each round will measure it with all of `modes` and `inside`.
    pub(super) fn start(
        python: &Path,
        workload: Workload,
        modes: &[Mode],
        inside: &[Inside],
    ) -> Result<Self> {
        Ok(Self {
            workload,
            modes: modes.to_vec(),
            inside: inside.to_vec(),
            target: workload.start(python)?,
            other: match modes.contains(&Mode::Bystander) {
                true => Some(Workload::Lives.start(python)?),
                false => None,
            },
            rounds: Vec::new(),
            notes: BTreeSet::new(),
        })
    }

    pub(super) fn versions(&self) -> &Versions {
        &self.target.versions
    }

    /// One round over everything, each round in another order.
    pub(super) fn round(&mut self) -> Result<()> {
        let time = self.workload.sample();
        let before = self.target.sample(time)?.ns_per_unit();
        let mut round = Round::default();
        let mut modes = self.modes.clone();
        if !modes.is_empty() {
            let first = self.rounds.len() % modes.len();
            modes.rotate_left(first);
        }
        for mode in modes {
            let ns = self.recorded(mode)?;
            round.modes.insert(mode, ns);
        }
        for way in self.inside.clone() {
            round.inside.insert(way, self.target.sample_inside(way, time)?.ns_per_unit());
        }
        let after = self.target.sample(time)?.ns_per_unit();
        round.bare = f64::midpoint(before, after);
        self.rounds.push(round);
        Ok(())
    }

    /// What a unit takes while it is recorded.
    fn recorded(&mut self, mode: Mode) -> Result<f64> {
        let other = self.other.as_ref().filter(|_| mode == Mode::Bystander);
        let recorded = other.unwrap_or(&self.target).pid();
        let recording = Recording::start(recorded, mode.options())?;
        // The first hit of each stack is dearer; what users wait for is the rest.
        let first = self.target.work(Duration::ZERO)?;
        recording.settle()?;
        let sample = self.target.sample(self.workload.sample())?;
        let summary = recording.stop()?;
        let did = (first + sample.units) * self.workload.switches_per_unit();
        let did = if mode == Mode::Bystander { 0 } else { did };
        let counts = mode != Mode::Empty && !matches!(self.workload, Workload::Sockets { .. });
        if counts && summary.switches != did {
            let counted = summary.switches;
            self.notes.insert(format!("{:?}, {mode:?}: {counted} of {did} switches counted", self.workload));
        }
        if let Some(losses) = summary.losses {
            self.notes.insert(format!("{:?}, {mode:?}: {losses}", self.workload));
        }
        Ok(sample.ns_per_unit())
    }

    /// A figure of each round, of those that have what it needs.
    pub(super) fn figure(&self, figure: impl Fn(&Round) -> Option<f64>) -> Vec<f64> {
        self.rounds.iter().filter_map(figure).collect()
    }

    pub(super) fn spread(&self, figure: impl Fn(&Round) -> Option<f64>) -> Spread {
        Spread::of(&self.figure(figure))
    }
}

impl Round {
    pub(super) fn bare(&self) -> Option<f64> {
        Some(self.bare)
    }

    /// What a mode adds to a unit.
    pub(super) fn added(&self, mode: Mode) -> Option<f64> {
        Some(self.modes.get(&mode)? - self.bare)
    }

    /// What a mode adds, in what the empty probe adds.
    pub(super) fn ratio(&self, mode: Mode) -> Option<f64> {
        Some(self.added(mode)? / self.added(Mode::Empty)?)
    }

    /// What a mode adds, in percent of a unit.
    pub(super) fn percent(&self, mode: Mode) -> Option<f64> {
        Some(self.added(mode)? / self.bare * 100.0)
    }

    /// What a mode adds more than another does, in what the empty probe adds.
    pub(super) fn more(&self, mode: Mode, than: Mode) -> Option<f64> {
        Some((self.added(mode)? - self.added(than)?) / self.added(Mode::Empty)?)
    }

    /// A whole unit with a mode, in whole units with the empty probe.
    pub(super) fn whole(&self, mode: Mode) -> Option<f64> {
        Some(self.modes.get(&mode)? / self.modes.get(&Mode::Empty)?)
    }

    /// What an in-process way adds.
    pub(super) fn added_inside(&self, way: Inside) -> Option<f64> {
        Some(self.inside.get(&way)? - self.bare)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_of_what_is_added() {
        let modes = BTreeMap::from([(Mode::Empty, 900.0), (Mode::Aggregated, 1600.0)]);
        let round = Round { bare: 400.0, modes, inside: BTreeMap::from([(Inside::Settrace, 2400.0)]) };
        assert_eq!(round.added(Mode::Aggregated), Some(1200.0));
        assert_eq!(round.ratio(Mode::Aggregated), Some(2.4));
        assert_eq!(round.ratio(Mode::Accounting), None);
        assert_eq!(round.added_inside(Inside::Settrace), Some(2000.0));
        assert_eq!(round.added_inside(Inside::Snapshot), None);
    }
}
