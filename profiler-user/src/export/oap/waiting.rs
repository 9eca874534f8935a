//! What waits to be sent: in memory, and on disk what has no room there; the oldest first overall.

use super::{
    batch::Batch,
    failure::Fate,
    queue::{Queue, Weighed as _},
    spool::{Lost, Spool, Taken},
};

/// Lines that are remembered until they are fetched.
const MOST_LINES: usize = 16;

/// What is to be sent now.
#[derive(Debug, PartialEq)]
pub enum Next {
    /// This; [`Waiting::became`] follows.
    Batch(Batch),
    /// What was next can't be read; look again.
    Skipped,
    /// Nothing waits.
    Nothing,
}

/// Where what is being sent came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Memory,
    Disk,
}

/// What waits. Whatever is on disk is older than everything in memory.
#[derive(Debug)]
pub struct Waiting {
    queue: Queue<Batch>,
    spool: Option<Spool>,
    sending: Option<Origin>,
    /// In memory alone.
    dropped: u64,
    lines: Vec<String>,
}

impl Waiting {
    /// With room for so many bytes in memory.
    #[must_use]
    pub fn new(queue_bytes: usize, spool: Option<Spool>) -> Self {
        let mut waiting =
            Self { queue: Queue::new(queue_bytes), spool, sending: None, dropped: 0, lines: Vec::new() };
        if let Some(spool) = &waiting.spool {
            let (at, left, lost) = (spool.directory().display().to_string(), spool.len(), spool.lost());
            if left > 0 {
                waiting.say(format!("{left} batches that a former run left in {at} are sent first"));
            }
            if lost.unknown > 0 {
                waiting.say(format!(
                    "a former run was sending from {at} when it ended; whether OAP got it is not known, and \
                     it is not sent again"
                ));
            }
            waiting.tell(Lost::default());
        }
        waiting
    }

    /// Adds a batch. What has no room in memory any more goes to disk.
    pub fn push(&mut self, batch: Batch) {
        if self.spool.is_some() && batch.bytes() > self.queue.room() {
            // It goes to disk itself: so does what is older.
            self.spill();
        }
        for gone in self.queue.push(batch) {
            self.spool(&gone, Spool::push);
        }
    }

    /// The oldest.
    pub fn take(&mut self) -> Next {
        let Some(spool) = &mut self.spool else {
            return self.take_in_memory();
        };
        let before = spool.lost();
        let batch = match spool.take() {
            None => return self.take_in_memory(),
            Some(Taken::Torn) => None,
            Some(Taken::Whole(bytes)) => Batch::decode(&bytes),
        };
        if let Some(batch) = batch {
            self.sending = Some(Origin::Disk);
            return Next::Batch(batch);
        }
        if spool.lost() == before {
            spool.reject();
        }
        self.tell(before);
        Next::Skipped
    }

    fn take_in_memory(&mut self) -> Next {
        let Some(batch) = self.queue.pop() else {
            return Next::Nothing;
        };
        self.sending = Some(Origin::Memory);
        Next::Batch(batch)
    }

    /// What became of the one that was next. What did surely not arrive is next again; what else
    /// became of it, it is gone.
    pub fn became(&mut self, batch: Batch, failed: Option<Fate>) {
        let is_back = failed == Some(Fate::Retry);
        match (self.sending.take(), &mut self.spool) {
            (Some(Origin::Disk), Some(spool)) => {
                let before = spool.lost();
                if is_back {
                    spool.put_back();
                } else {
                    spool.done();
                }
                self.tell(before);
            }
            (Some(Origin::Memory), _) if is_back => {
                // What went to disk meanwhile is younger.
                let is_youngest = self.spool.as_ref().is_some_and(|spool| !spool.is_empty());
                let homeless = if is_youngest { Some(batch) } else { self.queue.put_back(batch) };
                if let Some(batch) = homeless {
                    self.spool(&batch, Spool::push_oldest);
                }
            }
            _ => {}
        }
    }

    /// The recording is over: what is left goes to disk, and is dropped where there is none.
    /// Whether something was being sent, of which it is not known whether it arrived.
    pub fn end(&mut self) -> bool {
        let is_unknown = self.sending.take().is_some();
        if let Some(spool) = &mut self.spool {
            spool.done();
            self.spill();
        } else if !self.queue.is_empty() {
            let left = self.queue.len();
            while self.queue.pop().is_some() {
                self.dropped += 1;
            }
            self.say(format!(
                "OAP did not take {left} batches in time: they are dropped (--spool DIR keeps them)"
            ));
        }
        let left = self.spool.as_ref().filter(|spool| !spool.is_empty());
        if let Some(spool) = left {
            let line = format!(
                "{} batches are left in {}; the next run with this --spool sends them",
                spool.len(),
                spool.directory().display()
            );
            self.say(line);
        }
        is_unknown
    }

    /// How many wait in memory.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// How many wait on disk.
    #[must_use]
    pub fn spooled(&self) -> usize {
        self.spool.as_ref().map_or(0, Spool::len)
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.queued() == 0 && self.spooled() == 0
    }

    /// What was lost so far.
    #[must_use]
    pub fn lost(&self) -> Lost {
        let lost = self.spool.as_ref().map(Spool::lost).unwrap_or_default();
        Lost { dropped: lost.dropped + self.dropped, ..lost }
    }

    /// Takes what the user is to see.
    pub fn lines(&mut self) -> Vec<String> {
        std::mem::take(&mut self.lines)
    }

    fn spill(&mut self) {
        while let Some(batch) = self.queue.pop() {
            self.spool(&batch, Spool::push);
        }
    }

    fn spool(&mut self, batch: &Batch, push: impl FnOnce(&mut Spool, &[u8]) -> std::io::Result<()>) {
        let Some(spool) = &mut self.spool else {
            self.dropped += 1;
            self.say(
                "no room in memory for what waits for OAP: the oldest is dropped (--oap-queue, --spool)",
            );
            return;
        };
        let before = spool.lost();
        if let Err(error) = push(spool, &batch.encode()) {
            let line =
                format!("--spool {}: {error}; what can't be written is dropped", spool.directory().display());
            self.say(line);
        } else {
            self.tell(before);
        }
    }

    /// Says what was lost since.
    fn tell(&mut self, before: Lost) {
        let Some(spool) = &self.spool else {
            return;
        };
        let (now, at) = (spool.lost(), spool.directory().display().to_string());
        if now.dropped > before.dropped {
            self.say(format!("no room in {at} for what waits for OAP: the oldest is dropped (--spool-size)"));
        }
        if now.torn > before.torn {
            self.say(format!("{at} has entries that are torn or can't be read: they are skipped"));
        }
    }

    fn say(&mut self, line: impl Into<String>) {
        if self.lines.len() < MOST_LINES {
            self.lines.push(line.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;
    use proto::skywalking::SpanAttachedEvent;

    use super::{super::spool::Place, *};

    fn batch(number: usize, size: usize) -> Batch {
        let event = format!("{number:06}{}", "x".repeat(size));
        Batch::Events(vec![SpanAttachedEvent { event, ..SpanAttachedEvent::default() }])
    }

    fn number(batch: &Batch) -> usize {
        let Batch::Events(events) = batch else { panic!("{batch:?}") };
        events[0].event[..6].parse().unwrap()
    }

    fn spool(directory: &Path, bytes: u64) -> Spool {
        Spool::open(Place { directory: directory.to_owned(), bytes }).unwrap()
    }

    fn drain(waiting: &mut Waiting) -> Vec<usize> {
        let mut numbers = Vec::new();
        while let Next::Batch(batch) = waiting.take() {
            numbers.push(number(&batch));
            waiting.became(batch, None);
        }
        numbers
    }

    #[test]
    fn what_has_no_room_in_memory_goes_to_disk_and_comes_first() {
        let directory = tempfile::tempdir().unwrap();
        let mut waiting = Waiting::new(1_000, Some(spool(directory.path(), 1 << 20)));
        for number in 0..10 {
            waiting.push(batch(number, 300));
        }
        assert_eq!((waiting.queued(), waiting.spooled()), (3, 7));
        // One that is larger than the memory's room keeps its place too.
        waiting.push(batch(10, 2_000));
        waiting.push(batch(11, 0));
        assert_eq!((waiting.queued(), waiting.spooled()), (1, 11));
        assert_eq!(drain(&mut waiting), (0..12).collect::<Vec<_>>());
        assert_eq!((waiting.lost(), waiting.lines()), (Lost::default(), vec![]));
    }

    #[test]
    fn what_did_not_arrive_keeps_its_place_before_what_went_to_disk_meanwhile() {
        let directory = tempfile::tempdir().unwrap();
        let mut waiting = Waiting::new(1_000, Some(spool(directory.path(), 1 << 20)));
        waiting.push(batch(0, 300));
        let Next::Batch(first) = waiting.take() else { panic!() };
        for number in 1..6 {
            waiting.push(batch(number, 300));
        }
        waiting.became(first, Some(Fate::Retry));
        assert_eq!((waiting.queued(), waiting.spooled()), (3, 3));
        assert_eq!(drain(&mut waiting), [0, 1, 2, 3, 4, 5]);
        // The same when memory is full and the disk is not used yet.
        waiting.push(batch(6, 300));
        let Next::Batch(first) = waiting.take() else { panic!() };
        for number in 7..10 {
            waiting.push(batch(number, 300));
        }
        waiting.became(first, Some(Fate::Retry));
        assert_eq!((waiting.queued(), waiting.spooled()), (3, 1));
        assert_eq!(drain(&mut waiting), [6, 7, 8, 9]);
    }

    #[test]
    fn what_is_left_at_the_end_is_first_in_the_next_run() {
        let directory = tempfile::tempdir().unwrap();
        let mut waiting = Waiting::new(1_000, Some(spool(directory.path(), 1 << 20)));
        for number in 0..6 {
            waiting.push(batch(number, 300));
        }
        assert!(!waiting.end());
        assert_eq!((waiting.queued(), waiting.spooled()), (0, 6));
        assert!(waiting.lines()[0].starts_with("6 batches are left in "));
        drop(waiting);
        let mut waiting = Waiting::new(1_000, Some(spool(directory.path(), 1 << 20)));
        assert!(waiting.lines()[0].starts_with("6 batches that a former run left in "));
        waiting.push(batch(6, 0));
        assert_eq!(drain(&mut waiting), [0, 1, 2, 3, 4, 5, 6]);
        // What was being sent is of unknown fate, from wherever it came.
        waiting.push(batch(7, 0));
        assert!(matches!(waiting.take(), Next::Batch(_)) && waiting.end() && waiting.is_empty());
        waiting.push(batch(8, 0));
        assert!(!waiting.end());
        assert!(matches!(waiting.take(), Next::Batch(_)) && waiting.end() && waiting.is_empty());
    }

    #[test]
    fn without_a_spool_the_oldest_is_dropped_and_so_is_what_is_left() {
        let mut waiting = Waiting::new(1_000, None);
        for number in 0..10 {
            waiting.push(batch(number, 300));
        }
        assert_eq!((waiting.queued(), waiting.lost().dropped), (3, 7));
        assert!(waiting.lines()[0].contains("--oap-queue"));
        assert!(!waiting.end());
        assert_eq!((waiting.is_empty(), waiting.lost().dropped), (true, 10));
    }

    #[test]
    fn what_is_lost_on_disk_is_counted_and_said() {
        let directory = tempfile::tempdir().unwrap();
        let mut raw = spool(directory.path(), 2 * 4_096);
        raw.push(b"no batch").unwrap();
        drop(raw);
        let mut waiting = Waiting::new(1_000, Some(spool(directory.path(), 2 * 4_096)));
        let _left = waiting.lines();
        assert_eq!(waiting.take(), Next::Skipped);
        assert!(waiting.lines()[0].contains("are skipped"));
        for number in 0..6 {
            waiting.push(batch(number, 300));
        }
        assert_eq!(waiting.lost(), Lost { dropped: 1, torn: 1, unknown: 0 });
        assert!(waiting.lines()[0].contains("--spool-size"));
        assert_eq!(drain(&mut waiting), [1, 2, 3, 4, 5]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn it_keeps_the_order_and_loses_nothing_uncounted(
            steps in prop::collection::vec((0_usize..1_500, 0_u8..8), 0..80),
            has_disk in any::<bool>(),
        ) {
            let directory = tempfile::tempdir().unwrap();
            let spool = has_disk.then(|| spool(directory.path(), 12 * 4_096));
            let mut waiting = Waiting::new(1_000, spool);
            let (mut last, mut out, mut pushed) = (None, 0, 0);
            let mut sending: Option<Batch> = None;
            for (size, what) in steps {
                match (what, sending.take()) {
                    (0 | 1, None) => {
                        if let Next::Batch(batch) = waiting.take() {
                            prop_assert!(last.is_none_or(|last| last < number(&batch)));
                            sending = Some(batch);
                        }
                    }
                    (0, Some(batch)) => {
                        last = Some(number(&batch));
                        out += 1;
                        waiting.became(batch, None);
                    }
                    (1, Some(batch)) => waiting.became(batch, Some(Fate::Retry)),
                    (_, back) => {
                        sending = back;
                        waiting.push(batch(pushed, size));
                        pushed += 1;
                    }
                }
            }
            out += usize::from(sending.is_some());
            let here = out + waiting.queued() + waiting.spooled();
            prop_assert_eq!(here as u64 + waiting.lost().dropped, pushed as u64);
            prop_assert_eq!(waiting.lost().torn, 0);
        }
    }
}
