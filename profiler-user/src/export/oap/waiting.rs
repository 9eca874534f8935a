//! Batches that wait to be sent: in memory, and older ones on a disk.

use super::{batch::Batch, queue::Queue, spool::Spool};

/// What waits, the oldest first.
#[derive(Debug)]
pub struct Waiting {
    memory: Queue<Batch>,
    disk: Option<Spool>,
    /// Batches that memory had no room for and the disk had.
    saved: u64,
    /// Batches from the disk that were of no kind that is known, or could not be put back.
    lost: u64,
}

/// Where a batch was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In memory.
    Memory,
    /// On the disk.
    Disk,
}

impl Waiting {
    /// What a former run left, with so much room in memory.
    #[must_use]
    pub const fn new(room: usize, disk: Option<Spool>) -> Self {
        Self { memory: Queue::new(room), disk, saved: 0, lost: 0 }
    }

    /// Adds the newest one. A line if something could not be kept.
    pub fn push(&mut self, batch: Batch) -> Option<String> {
        let gone = self.memory.push(batch);
        let mut line = None;
        for batch in gone {
            line = self.save(&batch).or(line);
        }
        line
    }

    fn save(&mut self, batch: &Batch) -> Option<String> {
        let Some(disk) = &mut self.disk else {
            return Some(
                "OAP takes less than there is, and memory for what waits is full: the oldest is dropped \
                 (--oap-queue for more, --spool for a disk)"
                    .to_owned(),
            );
        };
        let before = disk.dropped();
        match disk.push(&batch.encode()) {
            Ok(()) => {
                self.saved += 1;
                (disk.dropped() > before).then(|| {
                    "OAP takes less than there is, and the spool is full: the oldest is dropped \
                     (--spool-size for more)"
                        .to_owned()
                })
            }
            Err(error) => Some(format!("the spool takes nothing more, and the oldest is dropped: {error}")),
        }
    }

    /// Takes the oldest one, and where it was.
    pub fn pop(&mut self) -> Option<(Batch, Place)> {
        while let Some(bytes) = self.disk.as_mut().and_then(Spool::pop) {
            match Batch::decode(&bytes) {
                Some(batch) => return Some((batch, Place::Disk)),
                // Of another version.
                None => self.lost += 1,
            }
        }
        self.memory.pop().map(|batch| (batch, Place::Memory))
    }

    /// Puts one back that did surely not arrive: it is the oldest again. A line if it could not
    /// be kept.
    pub fn put_back(&mut self, batch: Batch, place: Place) -> Option<String> {
        if let (Place::Disk, Some(disk)) = (place, &mut self.disk) {
            let error = disk.put_back(&batch.encode()).err()?;
            self.lost += 1;
            return Some(format!("the spool takes nothing back, and a batch is dropped: {error}"));
        }
        let gone = self.memory.put_back(batch)?;
        self.save(&gone)
    }

    /// The end: what is in memory goes to the disk, or is dropped.
    pub fn keep(&mut self) {
        while let Some(batch) = self.memory.pop() {
            self.memory.count_dropped(&batch);
            let _said = self.save(&batch);
        }
    }

    /// How many wait in memory.
    #[must_use]
    pub fn in_memory(&self) -> usize {
        self.memory.len()
    }

    /// How many wait on the disk.
    #[must_use]
    pub fn on_disk(&self) -> usize {
        self.disk.as_ref().map_or(0, Spool::len)
    }

    /// Batches that are lost: there was no room for them, or they were not whole.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        let memory = self.memory.dropped().batches.saturating_sub(self.saved);
        // One that the disk could not take is among memory's already.
        let disk = self.disk.as_ref().map_or(0, |disk| disk.evicted() + disk.torn());
        memory + disk + self.lost
    }
}

#[cfg(test)]
mod tests {
    use proto::skywalking::ProfileTaskFinishReport;
    use tempfile::TempDir;

    use super::{super::queue::Weighed as _, *};

    fn batch(id: &str) -> Batch {
        Batch::Finished(ProfileTaskFinishReport { task_id: id.to_owned(), ..Default::default() })
    }

    fn all(waiting: &mut Waiting) -> Vec<Batch> {
        std::iter::from_fn(|| Some(waiting.pop()?.0)).collect()
    }

    #[test]
    fn the_order_is_kept_over_memory_and_disk() {
        let folder = TempDir::new().unwrap();
        let room = 2 * batch("0").bytes();
        let open = || Spool::open(folder.path(), 1 << 20).unwrap();
        let batches: Vec<Batch> = (0..6).map(|number| batch(&number.to_string())).collect();
        let mut waiting = Waiting::new(room, Some(open()));
        for batch in &batches[..5] {
            assert_eq!(waiting.push(batch.clone()), None);
        }
        assert_eq!((waiting.in_memory(), waiting.on_disk()), (2, 3));
        let (oldest, place) = waiting.pop().unwrap();
        assert_eq!((&oldest, place), (&batches[0], Place::Disk));
        assert_eq!(waiting.put_back(oldest, place), None);
        waiting.keep();
        assert_eq!((waiting.in_memory(), waiting.on_disk(), waiting.dropped()), (0, 5, 0));
        drop(waiting);
        let mut waiting = Waiting::new(room, Some(open()));
        assert_eq!(waiting.push(batches[5].clone()), None);
        assert_eq!(all(&mut waiting), batches);
        assert_eq!(waiting.dropped(), 0);
    }

    #[test]
    fn without_a_disk_the_oldest_is_dropped_counted_and_said() {
        let mut waiting = Waiting::new(2 * batch("0").bytes(), None);
        assert_eq!(waiting.push(batch("0")), None);
        assert_eq!(waiting.push(batch("1")), None);
        assert!(waiting.push(batch("2")).is_some_and(|line| line.contains("--spool")));
        assert_eq!(waiting.dropped(), 1);
        let (oldest, place) = waiting.pop().unwrap();
        assert_eq!((&oldest, place), (&batch("1"), Place::Memory));
        assert_eq!(waiting.put_back(oldest, place), None);
        waiting.keep();
        assert_eq!((waiting.in_memory(), waiting.dropped()), (0, 3));
    }

    #[test]
    fn a_full_disk_drops_its_oldest() {
        let folder = TempDir::new().unwrap();
        let bytes = batch("0").encode().len() as u64 + 24;
        let disk = Spool::open(folder.path(), 2 * bytes).unwrap();
        let mut waiting = Waiting::new(batch("0").bytes(), Some(disk));
        let lines: Vec<Option<String>> =
            (0..5).map(|number| waiting.push(batch(&number.to_string()))).collect();
        assert_eq!(lines.iter().flatten().count(), 2);
        assert_eq!((waiting.in_memory(), waiting.on_disk(), waiting.dropped()), (1, 2, 2));
        assert_eq!(all(&mut waiting), ["2", "3", "4"].map(batch));
    }
}
