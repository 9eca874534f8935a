//! From the recording's times, ns of `CLOCK_MONOTONIC`, to those since 1970 that OAP has.

use std::time::Duration;

pub(super) const NS_PER_MS: u64 = 1_000_000;
pub(super) const NS_PER_S: u64 = 1_000_000_000;

/// How far the time since 1970 is ahead of the recording's, as it was when it was asked for: a
/// clock that is set later changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WallClock {
    /// ns.
    pub ahead_ns: i64,
}

impl WallClock {
    /// ns since 1970 at a time of the recording.
    pub(super) const fn ns(self, time_ns: u64) -> u64 {
        time_ns.saturating_add_signed(self.ahead_ns)
    }

    /// ms since 1970 at a time of the recording.
    pub(super) const fn ms(self, time_ns: u64) -> u64 {
        self.ns(time_ns) / NS_PER_MS
    }

    /// The recording's time, in ns, at ms since 1970.
    pub(super) const fn time_ns(self, unix_ms: u64) -> u64 {
        unix_ms.saturating_mul(NS_PER_MS).saturating_add_signed(-self.ahead_ns)
    }
}

/// A duration in ns.
pub(super) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
