//! What the next step of a chain reads, and what for.

/// Nothing: it is over.
pub(super) const OVER: u32 = 0;
/// A `Context`.
pub(super) const CONTEXT: u32 = 1;
/// Its variables.
pub(super) const ROOT: u32 = 2;
/// A node of a HAMT.
pub(super) const NODE: u32 = 3;
/// A key and its value in one.
pub(super) const PAIR: u32 = 4;
/// A pointer to the next node.
pub(super) const CHILD: u32 = 5;
/// A key of many with one hash, and its value.
pub(super) const COLLISION: u32 = 6;
/// SkyWalking's list of spans.
pub(super) const SPANS: u32 = 7;
/// A pointer to one of them.
pub(super) const LISTED_SPAN: u32 = 8;
/// An instance.
pub(super) const INSTANCE: u32 = 9;
/// Its dictionary.
pub(super) const OWN_DICT: u32 = 10;
/// Its values.
pub(super) const VALUES: u32 = 11;
/// The text of a segment's id.
pub(super) const ID: u32 = 12;
/// OpenTelemetry's dictionary.
pub(super) const DICT: u32 = 13;
/// Its keys object.
pub(super) const KEYS: u32 = 14;
/// Some of its entries.
pub(super) const ENTRIES: u32 = 15;
/// A span's context.
pub(super) const SPAN_CONTEXT: u32 = 16;
/// A trace's id.
pub(super) const TRACE_INT: u32 = 17;
/// A span's id.
pub(super) const SPAN_INT: u32 = 18;
/// The text of an operation.
pub(super) const OPERATION: u32 = 19;
/// When a segment began.
pub(super) const BEGAN: u32 = 20;
/// A segment's list of traces.
pub(super) const TRACES: u32 = 21;
/// A pointer to its first one.
pub(super) const FIRST_TRACE: u32 = 22;
/// The text of a trace's id.
pub(super) const TRACE: u32 = 23;
/// The text of an endpoint.
pub(super) const ENDPOINT: u32 = 24;
/// A span's parent.
pub(super) const PARENT: u32 = 25;

/// [`super::Chain::purpose`]: a label.
pub(super) const FOR_LABEL: u32 = 0;
/// [`super::Chain::purpose`]: what it is called.
pub(super) const FOR_ABOUT: u32 = 1;
