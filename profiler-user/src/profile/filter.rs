//! A profile of some requests only.

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

impl Filter {
    /// Whether everything is wanted.
    #[must_use]
    pub const fn is_none(&self) -> bool {
        self.trace.is_none() && self.endpoint.is_none()
    }

    /// Leaves of the stacks, the blocks and the requests those that are wanted. What was
    /// counted over all stays.
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
        profile.stacks.retain(|row| keeps(row.label));
        profile.blocks.retain(|row| keeps(row.label));
        profile.requests.retain(|row| {
            endpoint(row.endpoint.as_deref()) && trace([row.trace_id.as_deref(), row.segment_id.as_deref()])
        });
    }
}
