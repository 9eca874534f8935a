//! Time by stack and label: two maps in turn, so that what is read is not added to.

use aya::{
    Ebpf,
    maps::{Array, MapData},
};
use profiler_common::label::{PairKey, PairTotals};

use super::{KernelError, map::Table};

const PHASE: &str = "PHASE";

type Map = Table<PairKey, PairTotals, { size_of::<PairKey>() }, { size_of::<PairTotals>() }>;

/// Both maps.
pub(super) struct Pairs {
    maps: [Map; 2],
    phase: Array<MapData, u32>,
    /// Which of them the kernel part adds to.
    now: u32,
}

impl Pairs {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        let maps = [Table::take(ebpf, "PAIRS_0")?, Table::take(ebpf, "PAIRS_1")?];
        let phase = ebpf.take_map(PHASE).ok_or(KernelError::Missing(PHASE))?;
        let phase = Array::try_from(phase).map_err(|source| KernelError::Map { map: PHASE, source })?;
        Ok(Self { maps, phase, now: 0 })
    }

    /// Empties the map that nobody adds to, and has the kernel part add to that one.
    ///
    /// A program that was preempted in the middle since the last turn would still add to the
    /// other: what it adds is then told with what comes later, or, should the entry be taken
    /// just in between, is time without a label. Turns are a second apart.
    pub(super) fn turn(&mut self) -> Result<Vec<(PairKey, PairTotals)>, KernelError> {
        let resting = self.now ^ 1;
        let [first, second] = &mut self.maps;
        let map = if resting == 0 { first } else { second };
        let entries = map.entries()?;
        for (key, _) in &entries {
            map.remove(key)?;
        }
        self.phase.set(0, resting, 0).map_err(|source| KernelError::Map { map: PHASE, source })?;
        self.now = resting;
        Ok(entries)
    }
}
