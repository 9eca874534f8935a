//! The table by endpoint: why is this one slow.

use std::{collections::BTreeMap, sync::Arc};

use rustc_hash::FxHashMap;

use super::{Clocked, Frame, Profile, Queued, State};

/// The requests to one endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointRow {
    /// Which. None for requests whose endpoint is not known.
    pub endpoint: Option<Arc<str>>,
    /// How many were seen.
    pub requests: u64,
    /// Of these, wholly inside of the recording.
    pub whole: u64,
    /// Half of the whole ones took at most that long.
    pub wall_p50_ns: Option<u64>,
    /// 95 of a hundred did.
    pub wall_p95_ns: Option<u64>,
    /// Where the time of their own greenlets went.
    pub clock: Option<Clocked>,
    /// Their own greenlets were suspended. None if of none of them it is known.
    pub waiting_ns: Option<u64>,
    /// Of this, ready.
    pub queued: Option<Queued>,
    /// The same of greenlets that they made.
    pub inherited_clock: Option<Clocked>,
    /// The same of greenlets that they made.
    pub inherited_waiting_ns: Option<u64>,
    /// The stack that they waited in most, and how long. What they were queued for certain is no
    /// part of it: it says nothing of what they waited for.
    pub top_wait: Option<(Arc<[Frame]>, u64)>,
}

impl EndpointRow {
    const fn new(endpoint: Option<Arc<str>>) -> Self {
        Self {
            endpoint,
            requests: 0,
            whole: 0,
            wall_p50_ns: None,
            wall_p95_ns: None,
            clock: None,
            waiting_ns: None,
            queued: None,
            inherited_clock: None,
            inherited_waiting_ns: None,
            top_wait: None,
        }
    }
}

/// An endpoint, and a stack that its requests waited in.
type Wait<'p> = (Option<&'p Arc<str>>, &'p Arc<[Frame]>);

/// The rows, those with the most time first.
#[must_use]
pub fn endpoints(profile: &Profile) -> Vec<EndpointRow> {
    let mut rows: BTreeMap<Option<&Arc<str>>, (EndpointRow, Vec<u64>)> = BTreeMap::new();
    let plus = |sum: Option<Clocked>, more: Option<Clocked>| match (sum, more) {
        (Some(sum), Some(more)) => Some(sum.plus(more)),
        (sum, more) => sum.or(more),
    };
    for request in &profile.requests {
        let (row, walls) = rows
            .entry(request.endpoint.as_ref())
            .or_insert_with(|| (EndpointRow::new(request.endpoint.clone()), Vec::new()));
        row.requests += 1;
        walls.extend(request.wall_ns);
        row.clock = plus(row.clock, request.clock);
        if let Some(ns) = request.waiting_ns {
            *row.waiting_ns.get_or_insert_default() += ns;
        }
        if let Some(queued) = request.queued {
            row.queued.get_or_insert_default().add(queued);
        }
        row.inherited_clock = plus(row.inherited_clock, request.inherited_clock);
        if let Some(ns) = request.inherited_waiting_ns {
            *row.inherited_waiting_ns.get_or_insert_default() += ns;
        }
    }
    let mut waits: FxHashMap<Wait<'_>, u64> = FxHashMap::default();
    for row in profile.stacks.iter().filter(|row| row.state == State::Wait) {
        let label = row.label.and_then(|label| profile.labels.get(usize::try_from(label).ok()?));
        if let Some(label) = label.filter(|label| !label.inherited) {
            *waits.entry((label.endpoint.as_ref(), &row.frames)).or_default() +=
                row.ns.saturating_sub(row.queued.map_or(0, |queued| queued.least_ns));
        }
    }
    for ((endpoint, frames), ns) in waits {
        if let Some((row, _)) = rows.get_mut(&endpoint)
            && row.top_wait.as_ref().is_none_or(|(known, most)| (ns, frames) > (*most, known))
        {
            row.top_wait = Some((Arc::clone(frames), ns));
        }
    }
    let mut rows: Vec<EndpointRow> = rows
        .into_values()
        .map(|(mut row, mut walls)| {
            walls.sort_unstable();
            row.whole = walls.len() as u64;
            row.wall_p50_ns = quantile(&walls, 50);
            row.wall_p95_ns = quantile(&walls, 95);
            row
        })
        .collect();
    rows.sort_by_key(|row| {
        let running = row.clock.map_or(0, |clock| clock.on_cpu_ns + clock.blocked_ns);
        std::cmp::Reverse(running + row.waiting_ns.unwrap_or_default())
    });
    rows
}

/// The least value that at least `percent` of a hundred are not above, of sorted ones.
fn quantile(sorted: &[u64], percent: usize) -> Option<u64> {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

#[cfg(test)]
mod tests {
    use super::{endpoints, quantile};
    use crate::{
        profile::tests::{profile, request, stack},
        trace::Called,
    };

    #[test]
    fn an_endpoints_requests_are_summed() {
        let called = |endpoint: &str| Called { endpoint: Some(endpoint.into()), ..Called::NONE };
        let mut profile = profile();
        profile.labels = vec![called("/a"), called("/b"), Called { inherited: true, ..called("/b") }];
        profile.requests = ["/a", "/b", "/b"].map(|endpoint| request(&called(endpoint))).to_vec();
        profile.stacks = vec![stack((Some(0), 7)), stack((Some(1), 5)), stack((Some(2), 100))];
        let rows = endpoints(&profile);
        let [b, a] = rows.as_slice() else { panic!("{rows:?}") };
        assert_eq!((b.endpoint.as_deref(), b.requests, b.waiting_ns), (Some("/b"), 2, Some(12)));
        assert_eq!((b.wall_p50_ns, b.clock.map(|clock| clock.on_cpu_ns)), (Some(10), Some(8)));
        // What a greenlet waited that a request made is not the request's own.
        assert_eq!(b.top_wait.as_ref().map(|(_, ns)| *ns), Some(5));
        assert_eq!((a.endpoint.as_deref(), a.requests), (Some("/a"), 1));
    }

    #[test]
    fn quantiles_are_values_that_were_there() {
        assert_eq!(quantile(&[], 50), None);
        assert_eq!((quantile(&[7], 50), quantile(&[7], 95)), (Some(7), Some(7)));
        let hundred: Vec<u64> = (1..=100).collect();
        assert_eq!((quantile(&hundred, 50), quantile(&hundred, 95)), (Some(50), Some(95)));
        assert_eq!(quantile(&[1, 2, 3], 95), Some(3));
    }
}
