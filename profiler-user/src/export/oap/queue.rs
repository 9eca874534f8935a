//! What waits in memory: bounded in bytes, the oldest goes first, and is what has to go.

use std::collections::VecDeque;

/// What is waited with by default.
pub const DEFAULT_BYTES: usize = 16 << 20;

/// Something that takes room.
pub trait Weighed {
    /// Bytes, about.
    fn bytes(&self) -> usize;
}

/// A queue of batches that takes no more room than it was given.
#[derive(Debug)]
pub struct Queue<T> {
    waiting: VecDeque<T>,
    bytes: usize,
    room: usize,
}

impl<T: Weighed> Queue<T> {
    /// An empty one with room for `room` bytes.
    #[must_use]
    pub const fn new(room: usize) -> Self {
        Self { waiting: VecDeque::new(), bytes: 0, room }
    }

    /// Adds a batch; what has no room beside it any more is returned, the oldest first. One that
    /// is larger than the queue is returned itself.
    pub fn push(&mut self, batch: T) -> Vec<T> {
        let bytes = batch.bytes();
        let mut gone = Vec::new();
        if bytes > self.room {
            gone.push(batch);
            return gone;
        }
        while self.bytes + bytes > self.room {
            let Some(oldest) = self.pop() else {
                break;
            };
            gone.push(oldest);
        }
        self.bytes += bytes;
        self.waiting.push_back(batch);
        gone
    }

    /// The oldest.
    pub fn pop(&mut self) -> Option<T> {
        let oldest = self.waiting.pop_front()?;
        self.bytes = self.bytes.saturating_sub(oldest.bytes());
        Some(oldest)
    }

    /// Puts one back that did surely not arrive: it is the oldest again. Without room it is
    /// returned.
    pub fn put_back(&mut self, batch: T) -> Option<T> {
        let bytes = batch.bytes();
        if self.bytes + bytes > self.room {
            return Some(batch);
        }
        self.bytes += bytes;
        self.waiting.push_front(batch);
        None
    }

    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether none does.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// How much room they take.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// How much room there is in all.
    #[must_use]
    pub const fn room(&self) -> usize {
        self.room
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug, PartialEq)]
    struct Batch(u32, usize);

    impl Weighed for Batch {
        fn bytes(&self) -> usize {
            self.1
        }
    }

    #[test]
    fn the_oldest_has_to_go() {
        let mut queue = Queue::new(10);
        for number in 0..3 {
            assert!(queue.push(Batch(number, 3)).is_empty());
        }
        assert_eq!(queue.push(Batch(3, 5)), [Batch(0, 3), Batch(1, 3)]);
        assert_eq!(queue.push(Batch(4, 11)), [Batch(4, 11)]);
        assert_eq!((queue.pop(), queue.len(), queue.bytes()), (Some(Batch(2, 3)), 1, 5));
    }

    #[test]
    fn what_did_not_arrive_is_the_next_again() {
        let mut queue = Queue::new(10);
        let _none = queue.push(Batch(1, 4));
        let _none = queue.push(Batch(2, 4));
        let first = queue.pop().unwrap();
        assert_eq!(queue.put_back(first), None);
        assert_eq!(queue.pop(), Some(Batch(1, 4)));
        let _none = queue.push(Batch(3, 6));
        assert_eq!(queue.put_back(Batch(1, 4)), Some(Batch(1, 4)));
    }

    proptest! {
        #[test]
        fn it_keeps_its_bound_and_the_order(
            sizes in prop::collection::vec((0_usize..40, any::<bool>()), 0..200),
        ) {
            let mut queue = Queue::new(100);
            let (mut last, mut out, mut dropped) = (None, 0, 0);
            for (number, (size, takes)) in (0..).zip(sizes.clone()) {
                dropped += queue.push(Batch(number, size)).len();
                prop_assert!(queue.bytes() <= 100);
                if takes && let Some(Batch(number, _)) = queue.pop() {
                    prop_assert!(last.is_none_or(|last| last < number));
                    last = Some(number);
                    out += 1;
                }
            }
            prop_assert_eq!(out + dropped + queue.len(), sizes.len());
        }
    }
}
