//! Faults collected beside a result.

use std::collections::BTreeMap;

use profiler_common::fault::Fault;

/// How often each fault was met.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults(BTreeMap<Fault, u64>);

impl Faults {
    /// Counts one.
    pub fn count(&mut self, fault: Fault) {
        *self.0.entry(fault).or_insert(0) += 1;
    }

    /// Counts those of another.
    pub fn add(&mut self, other: &Self) {
        for (fault, count) in other.iter() {
            *self.0.entry(fault).or_insert(0) += count;
        }
    }

    /// How often this one was met.
    #[must_use]
    pub fn of(&self, fault: Fault) -> u64 {
        self.0.get(&fault).copied().unwrap_or(0)
    }

    /// Whether none was met.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Each fault that was met, and how often.
    pub fn iter(&self) -> impl Iterator<Item = (Fault, u64)> {
        self.0.iter().map(|(fault, count)| (*fault, *count))
    }
}
