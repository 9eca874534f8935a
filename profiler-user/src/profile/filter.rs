//! A profile of some requests only.

use std::fmt;

use wildmatch::WildMatch;

use super::{Labelled, Profile};
use crate::trace::Called;

/// Which requests are wanted.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Those of that trace, or that segment.
    pub trace: Option<String>,
    /// Those whose endpoint matches the pattern: `*` is any text, `?` any character.
    pub endpoint: Option<String>,
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.endpoint, &self.trace) {
            (Some(endpoint), Some(trace)) => write!(f, "requests to {endpoint} of trace {trace}"),
            (Some(endpoint), None) => write!(f, "requests to {endpoint}"),
            (None, Some(trace)) => write!(f, "trace {trace}"),
            (None, None) => f.write_str("everything"),
        }
    }
}

impl Filter {
    /// Whether everything is wanted.
    #[must_use]
    pub const fn is_none(&self) -> bool {
        self.trace.is_none() && self.endpoint.is_none()
    }

    /// Leaves of the stacks, the blocks and the requests those that are wanted, and none of the
    /// runs, which have no label. What was counted over all stays.
    pub fn apply(&self, profile: &mut Profile) {
        if self.is_none() {
            return;
        }
        let pattern = self.endpoint.as_deref().map(WildMatch::new);
        let endpoint = |endpoint: Option<&str>| {
            pattern.as_ref().is_none_or(|pattern| {
                endpoint.is_some_and(|endpoint| {
                    // From the wire the method stands before the path.
                    let path = endpoint.split_once(' ').map_or(endpoint, |(_, path)| path);
                    pattern.matches(endpoint) || pattern.matches(path)
                })
            })
        };
        let trace =
            |ids: [Option<&str>; 2]| self.trace.as_deref().is_none_or(|wanted| ids.contains(&Some(wanted)));
        let wanted: Vec<bool> = profile
            .labels
            .iter()
            .map(|Called { trace_id, segment_id, endpoint: asked, .. }| {
                endpoint(asked.as_deref()) && trace([trace_id.as_deref(), segment_id.as_deref()])
            })
            .collect();
        let keeps = |label: Labelled| {
            label.and_then(|label| wanted.get(usize::try_from(label).ok()?)).is_some_and(|wanted| *wanted)
        };
        profile.only = Some(self.to_string());
        profile.runs.clear();
        profile.stacks.retain(|row| keeps(row.label));
        profile.blocks.retain(|row| keeps(row.label));
        profile.requests.retain(|row| {
            endpoint(row.endpoint.as_deref()) && trace([row.trace_id.as_deref(), row.segment_id.as_deref()])
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::tests::{profile, request, stack};

    fn left(filter: &Filter) -> (Vec<u64>, usize) {
        let labels = ["/slow/1", "/fast", "GET /slow/2"].map(|endpoint| Called {
            endpoint: Some(endpoint.into()),
            trace_id: Some(format!("trace of {endpoint}").as_str().into()),
            ..Called::NONE
        });
        let mut profile = profile();
        profile.stacks = [Some(0), Some(1), Some(2), None].into_iter().zip(1..).map(stack).collect();
        profile.requests = labels.iter().map(request).collect();
        profile.labels = labels.to_vec();
        filter.apply(&mut profile);
        (profile.stacks.iter().map(|row| row.ns).collect(), profile.requests.len())
    }

    #[test]
    fn only_what_matches_is_left() {
        let endpoint = |pattern: &str| Filter { endpoint: Some(pattern.to_owned()), trace: None };
        assert_eq!(left(&Filter::default()), (vec![1, 2, 3, 4], 3));
        assert_eq!(left(&endpoint("/slow*")), (vec![1, 3], 2));
        assert_eq!(left(&endpoint("GET /slow*")), (vec![3], 1));
        assert_eq!(left(&endpoint("*fast")), (vec![2], 1));
        assert_eq!(left(&endpoint("/none")), (vec![], 0));
        let trace = Filter { trace: Some("trace of /fast".to_owned()), endpoint: None };
        assert_eq!(left(&trace), (vec![2], 1));
        let both = Filter { trace: Some("trace of /fast".to_owned()), ..endpoint("/slow*") };
        assert_eq!(left(&both), (vec![], 0));
    }
}
