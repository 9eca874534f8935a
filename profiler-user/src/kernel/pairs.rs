//! Time by stack and label: two maps in turn, so that what is read is not added to.

use std::thread::{self, JoinHandle};

use aya::{
    Ebpf,
    maps::{Array, MapData},
};
use profiler_common::label::{PairKey, PairTotals};

use rustix::thread::{MembarrierCommand, membarrier};

use super::{KernelError, map::Table};

const PHASE: &str = "PHASE";

type Map = Table<PairKey, PairTotals, { size_of::<PairKey>() }, { size_of::<PairTotals>() }>;

/// Both maps.
pub(super) struct Pairs {
    maps: [Map; 2],
    phase: Array<MapData, u32>,
    /// Which of them the kernel part adds to.
    now: u32,
    /// Ends once no program runs that began before that.
    apart: Option<JoinHandle<()>>,
}

impl Pairs {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        let maps = [Table::take(ebpf, "PAIRS_0")?, Table::take(ebpf, "PAIRS_1")?];
        let phase = ebpf.take_map(PHASE).ok_or(KernelError::Missing(PHASE))?;
        let phase = Array::try_from(phase).map_err(|source| KernelError::Map { map: PHASE, source })?;
        Ok(Self { maps, phase, now: 0, apart: None })
    }

    /// Empties the map that nobody adds to, and has the kernel part add to that one.
    ///
    /// A program that was preempted in the middle since the last turn may still have an entry of
    /// the other in its hand, and that be another key's once it is removed. So nothing is removed
    /// before every program has ended that began before the last turn (`synchronize_rcu`, by
    /// `membarrier`: BPF programs that do not sleep are readers to RCU). A thread waits for that
    /// from the turn on, and is most often done long before the next. Where CPUs run without a
    /// tick, and where there is but one, the kernel does not wait: there a program that was
    /// preempted for the whole time between two turns may add to another pair.
    /// <https://github.com/torvalds/linux/blob/v6.12/kernel/sched/membarrier.c> (`MEMBARRIER_CMD_GLOBAL`)
    pub(super) fn turn(&mut self) -> Result<Vec<(PairKey, PairTotals)>, KernelError> {
        if let Some(apart) = self.apart.take() {
            // It does not panic.
            let _ended = apart.join();
        }
        let resting = self.now ^ 1;
        let [first, second] = &mut self.maps;
        let map = if resting == 0 { first } else { second };
        let entries = map.entries()?;
        for (key, _) in &entries {
            map.remove(key)?;
        }
        self.phase.set(0, resting, 0).map_err(|source| KernelError::Map { map: PHASE, source })?;
        self.now = resting;
        let wait = || {
            let _refused = membarrier(MembarrierCommand::Global);
        };
        match thread::Builder::new().name("apart".to_owned()).spawn(wait) {
            Ok(apart) => self.apart = Some(apart),
            Err(_) => wait(),
        }
        Ok(entries)
    }
}
