//! What `bench` and `accuracy` share: lines of a child, deadlines, rounds, surroundings.

pub(crate) mod deadline;
pub(crate) mod lines;
pub(crate) mod spread;
pub(crate) mod surroundings;
