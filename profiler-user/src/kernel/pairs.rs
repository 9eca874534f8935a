//! Time by stack and label: two maps in turn, so that what is read is not added to.

use std::time::{Duration, Instant};

use aya::{
    Ebpf,
    maps::{Array, MapData},
};
use profiler_common::label::{PairKey, PairTotals};

use rustix::thread::{MembarrierCommand, membarrier};

use super::{KernelError, map::Table};

/// A program is over by then.
const APART: Duration = Duration::from_millis(500);
const PHASE: &str = "PHASE";

type Map = Table<PairKey, PairTotals, { size_of::<PairKey>() }, { size_of::<PairTotals>() }>;

/// Both maps.
pub(super) struct Pairs {
    maps: [Map; 2],
    phase: Array<MapData, u32>,
    /// Which of them the kernel part adds to.
    now: u32,
    /// When that began.
    turned: Option<Instant>,
}

impl Pairs {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        let maps = [Table::take(ebpf, "PAIRS_0")?, Table::take(ebpf, "PAIRS_1")?];
        let phase = ebpf.take_map(PHASE).ok_or(KernelError::Missing(PHASE))?;
        let phase = Array::try_from(phase).map_err(|source| KernelError::Map { map: PHASE, source })?;
        Ok(Self { maps, phase, now: 0, turned: None })
    }

    /// Empties the map that nobody adds to, and has the kernel part add to that one.
    ///
    /// A program that was preempted in the middle since the last turn would still add to the
    /// other: what it adds is then told with what comes later, or, should the entry be taken
    /// just in between, is time without a label. Turns are most often a second apart; where one
    /// follows another it waits until no program runs that began before
    /// (`synchronize_rcu`, by `membarrier`; refused where CPUs run without a tick).
    pub(super) fn turn(&mut self) -> Result<Vec<(PairKey, PairTotals)>, KernelError> {
        if self.turned.is_some_and(|turned| turned.elapsed() < APART) {
            let _refused = membarrier(MembarrierCommand::Global);
        }
        self.turned = Some(Instant::now());
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
