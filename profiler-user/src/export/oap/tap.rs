//! Where a recording's events go, and what is wanted of it comes from: between its thread and
//! the one that serves. Neither waits for the other.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::mpsc::{self, error::TrySendError};

use crate::profile::event::{Event, Feed, Wants};

/// Events that wait to be served.
const MOST_EVENTS: usize = 1 << 16;
/// Begins, ends and sums that there was no room for at once.
const MOST_LATE: usize = 1 << 12;

/// The recording's end of it.
#[derive(Debug)]
pub struct Tap {
    events: mpsc::Sender<Event>,
    wants: Arc<Wanted>,
    /// What must not be lost, in its order.
    late: VecDeque<Event>,
}

/// What is wanted, as it was said last.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    wants: Mutex<BTreeMap<u32, Wants>>,
    lost: AtomicU64,
}

impl Wanted {
    pub(super) fn say(&self, wants: BTreeMap<u32, Wants>) {
        *self.wants.lock().unwrap_or_else(PoisonError::into_inner) = wants;
    }

    /// Events that there was no room for.
    pub(super) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

/// Both ends.
pub(super) fn tap() -> (Tap, mpsc::Receiver<Event>, Arc<Wanted>) {
    let (sender, receiver) = mpsc::channel(MOST_EVENTS);
    let wants = Arc::new(Wanted::default());
    (Tap { events: sender, wants: Arc::clone(&wants), late: VecDeque::new() }, receiver, wants)
}

impl Tap {
    fn lose(&self) {
        self.wants.lost.fetch_add(1, Ordering::Relaxed);
    }

    fn send_late(&mut self) {
        while let Some(event) = self.late.pop_front() {
            if let Err(TrySendError::Full(event)) = self.events.try_send(event) {
                self.late.push_front(event);
                return;
            }
        }
    }
}

impl Feed for Tap {
    fn wants(&mut self, pid: u32) -> Wants {
        self.send_late();
        let wants = self.wants.wants.lock().unwrap_or_else(PoisonError::into_inner);
        wants.get(&pid).copied().unwrap_or_default()
    }

    fn take(&mut self, event: Event) {
        self.send_late();
        let kept = !matches!(event, Event::Tick(_) | Event::Off(_) | Event::LaneEnded { .. });
        if self.late.is_empty() {
            match self.events.try_send(event) {
                Ok(()) => {}
                Err(TrySendError::Full(event)) if kept && self.late.len() < MOST_LATE => {
                    self.late.push_back(event);
                }
                // Nobody serves any more, which is said elsewhere.
                Err(TrySendError::Closed(_)) => {}
                Err(TrySendError::Full(_)) => self.lose(),
            }
        } else if kept && self.late.len() < MOST_LATE {
            self.late.push_back(event);
        } else {
            self.lose();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(pid: u32) -> Event {
        Event::Ended { pid, time_ns: 0 }
    }

    #[test]
    fn an_end_is_not_lost_when_there_is_no_room() {
        let (mut tap, mut events, wanted) = tap();
        let most = u32::try_from(MOST_EVENTS).unwrap();
        for pid in 0..most + 2 {
            tap.take(ended(pid));
        }
        assert_eq!(wanted.lost(), 0);
        for pid in 0..most {
            assert!(matches!(events.try_recv(), Ok(Event::Ended { pid: of, .. }) if of == pid));
        }
        assert_eq!(tap.wants(1), Wants::default());
        assert!(matches!(events.try_recv(), Ok(Event::Ended { pid, .. }) if pid == most));
        assert!(matches!(events.try_recv(), Ok(Event::Ended { pid, .. }) if pid == most + 1));
    }

    #[test]
    fn what_is_wanted_is_what_was_said_last() {
        let (mut tap, _events, wanted) = tap();
        let wants = Wants { ticks: true, ..Wants::default() };
        wanted.say(BTreeMap::from([(7, wants)]));
        assert_eq!((tap.wants(7), tap.wants(8)), (wants, Wants::default()));
    }
}
