//! A figure of several rounds: its median and what it was spread over.

use std::fmt;

/// The rounds of one figure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

/// The upper bound that a figure should keep.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Goal(pub(crate) f64);

/// How a figure stands to its goal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The median keeps it.
    Met,
    /// The median does not, a round does.
    Unsure,
    /// No round does.
    Missed,
}

impl Spread {
    /// Of at least one round; without any, no number.
    pub(crate) fn of(rounds: &[f64]) -> Self {
        Self {
            median: median(rounds),
            least: rounds.iter().copied().fold(f64::NAN, f64::min),
            most: rounds.iter().copied().fold(f64::NAN, f64::max),
        }
    }

    pub(crate) fn against(&self, goal: Goal) -> Verdict {
        if self.median <= goal.0 {
            Verdict::Met
        } else if self.least <= goal.0 {
            Verdict::Unsure
        } else {
            Verdict::Missed
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Met => "met",
            Self::Unsure => "not sure: the spread reaches below the goal",
            Self::Missed => "**missed**",
        })
    }
}

/// The middle one, or between the two that are; no number of none.
pub(crate) fn median(numbers: &[f64]) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN);
    if sorted.len() % 2 == 1 {
        return upper;
    }
    let lower = (sorted.len() / 2).checked_sub(1).and_then(|at| sorted.get(at)).copied();
    lower.map_or(f64::NAN, |lower| f64::midpoint(lower, upper))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn missed_is_what_no_round_kept() {
        let spread = Spread::of(&[1.2, 1.5, 1.4]);
        assert_eq!(spread, Spread { median: 1.4, least: 1.2, most: 1.5 });
        assert_eq!(spread.against(Goal(1.4)), Verdict::Met);
        assert_eq!(spread.against(Goal(1.3)), Verdict::Unsure);
        assert_eq!(spread.against(Goal(1.1)), Verdict::Missed);
    }
}
