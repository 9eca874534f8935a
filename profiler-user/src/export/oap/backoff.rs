//! How long to wait after a failure: longer each time, and not all at once.
//!
//! Pure: the seed is handed in.

use std::time::Duration;

/// After the first failure.
const FIRST: Duration = Duration::from_millis(500);
/// The longest.
const LONGEST: Duration = Duration::from_secs(30);
/// The same for one who said that it has too much to do.
const FIRST_BUSY: Duration = Duration::from_secs(5);
const LONGEST_BUSY: Duration = Duration::from_secs(120);

/// Pauses that double, each between half of itself and the whole by chance.
#[derive(Clone, Debug)]
pub struct Backoff {
    failures: u32,
    state: u64,
}

impl Backoff {
    /// None yet; seeds that differ keep many of us from coming back at the same moment.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self { failures: 0, state: seed }
    }

    /// It failed (`busy`: there is too much to do over there): wait that long.
    pub fn failed(&mut self, busy: bool) -> Duration {
        let (first, longest) = if busy { (FIRST_BUSY, LONGEST_BUSY) } else { (FIRST, LONGEST) };
        let whole = first.saturating_mul(1_u32.checked_shl(self.failures).unwrap_or(u32::MAX)).min(longest);
        self.failures = (self.failures + 1).min(31);
        let half = whole / 2;
        let parts = u32::try_from(self.chance() >> 48).unwrap_or(0);
        half + half * parts / 0xffff
    }

    /// It worked.
    pub const fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// <https://prng.di.unimi.it/splitmix64.c>
    const fn chance(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn it_doubles_up_to_a_bound_and_begins_anew() {
        let mut backoff = Backoff::new(7);
        let pauses: Vec<u128> = (0..40).map(|_| backoff.failed(false).as_millis()).collect();
        for (at, whole) in [500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000].iter().enumerate() {
            assert!((whole / 2..=*whole).contains(&pauses[at]), "{pauses:?}");
        }
        assert!(pauses.iter().all(|pause| *pause <= 30_000));
        backoff.succeeded();
        assert!(backoff.failed(false).as_millis() <= 500);
    }

    #[test]
    fn who_is_busy_is_left_alone_longer() {
        assert!(Backoff::new(1).failed(true) >= Duration::from_millis(2_500));
        let mut backoff = Backoff::new(1);
        let last = (0..50).map(|_| backoff.failed(true)).last().unwrap();
        assert!((60..=120).contains(&last.as_secs()));
    }

    proptest! {
        #[test]
        fn pauses_are_within_their_bounds(seed: u64, busy: Vec<bool>) {
            let mut backoff = Backoff::new(seed);
            for busy in busy {
                let pause = backoff.failed(busy);
                prop_assert!(pause >= FIRST / 2 && pause <= LONGEST_BUSY);
            }
        }

        #[test]
        fn seeds_keep_apart(seed: u64) {
            let pauses = |seed| {
                let mut backoff = Backoff::new(seed);
                [backoff.failed(false), backoff.failed(false), backoff.failed(false)]
            };
            prop_assert_ne!(pauses(seed), pauses(seed.wrapping_add(1)));
        }
    }
}
