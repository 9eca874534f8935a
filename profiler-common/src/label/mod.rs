//! Whose work a greenlet does: the trace that it belongs to, read from the process.
//!
//! The label is in a variable of the greenlet's context (`contextvars`): a list of spans
//! (SkyWalking's agent) or a dictionary with the current span (OpenTelemetry). Both ways
//! are bounded chains of reads. Every object on them must be of a class that user space
//! named, attributes are taken by their place among the class's shared keys, and the
//! identity is the id's own bytes: addresses are used again.
//!
//! What a chain needs to know is data ([`LabelConfig`]); the kernel runs it at a switch,
//! user space for greenlets that never switch.

mod about;
mod chain;
mod hex;
mod instance;
mod spans;
mod state;

pub use chain::{Chain, MAX_CHAIN, run};
pub use hex::hex;

use crate::address::Addr;

/// Where an instance stands in a chain; the attributes that are asked for are in [`agent`] and
/// [`otel`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum PlaceOf {
    /// A span.
    Span = 0,
    /// SkyWalking's `SpanContext`.
    Context = 1,
    /// SkyWalking's `Segment`.
    Segment = 2,
    /// SkyWalking's `ID`.
    Identity = 3,
    /// SkyWalking's `PrimaryEndpoint`.
    Endpoint = 4,
}

/// How many places there are.
pub const PLACES: usize = 5;

/// Classes that may stand at one place of a chain.
pub const SHAPES: usize = 4;
/// Attributes of an instance that a chain asks for.
pub const ATTRIBUTES: usize = 8;
/// [`Shape::at`]: the class has no such attribute (yet).
pub const NO_ATTRIBUTE: u8 = u8::MAX;
/// Words of an instance's values that are read at most.
pub const VALUE_WORDS: usize = 24;
/// Words of a text that are kept: longer ones are cut.
pub const TEXT_WORDS: usize = 14;

/// Where a label comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum Source {
    /// SkyWalking's agent in the process.
    Agent = 1,
    /// OpenTelemetry's SDK in the process.
    Otel = 2,
    /// The request's own headers, where no tracer tells of it.
    Wire = 3,
}

/// [`Label::kind`]: the source.
pub const KIND_SOURCE: u32 = 0xff;
/// [`Label::kind`]: the label is the one that the greenlet's maker had.
pub const KIND_INHERITED: u32 = 1 << 8;
/// [`Label::kind`] of what a greenlet was given: the request is answered, and only what it runs
/// until it waits again is still of it.
pub const KIND_ANSWERED: u32 = 1 << 9;
/// [`Label::kind`], of a wait: another greenlet of the same request ran meanwhile.
pub const KIND_HANDED: u32 = 1 << 10;

macro_rules! pod {
    ($($(#[$meta:meta])* pub struct $name:ident { $($(#[$fmeta:meta])* pub $field:ident : $ty:ty,)* })*) => {$(
        $(#[$meta])*
        #[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
        #[derive(Clone, Copy, Debug)]
        #[repr(C)]
        pub struct $name { $($(#[$fmeta])* pub $field: $ty,)* }
    )*};
}

pod! {
    /// A trace, and the span in it. All zero for none.
    #[derive(Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
    pub struct Label {
        /// SkyWalking: the segment's id. OpenTelemetry: the trace's id. Wire: a number of
        /// ours, one a request. The first half is the upper one.
        pub id: [u64; 2],
        /// SkyWalking: 1 + the span's number in its segment, 0 if that is not known.
        /// OpenTelemetry: the span's id.
        pub span: u64,
        /// [`Source`] and `KIND_*`; 0 for no label.
        pub kind: u32,
        /// The target.
        pub target: u32,
    }

    /// A class at one place of a chain, and where its instances have what is asked for.
    #[derive(Default, PartialEq, Eq)]
    pub struct Shape {
        /// The type object; null for none.
        pub class: Addr,
        /// The places of the attributes among the values, or [`NO_ATTRIBUTE`].
        pub at: [u8; ATTRIBUTES],
    }

    /// One place of a chain.
    #[derive(Default, PartialEq, Eq)]
    pub struct Place {
        /// The classes that may stand there.
        pub shapes: [Shape; SHAPES],
        /// `tp_basicsize`: where inline values begin (3.13 on).
        pub inline_values: u16,
        /// How many words reach the last attribute asked for, from where the values (3.13 on:
        /// the object) begin; [`VALUE_WORDS`] at most.
        pub words: u16,
        /// None.
        pub padding: u32,
    }

    /// Where the fields lie that a chain reads; bytes.
    #[derive(Default, PartialEq, Eq)]
    pub struct LabelLayout {
        /// `PyContext.ctx_vars`.
        pub context_vars: u16,
        /// `PyHamtObject.h_root`.
        pub hamt_root: u16,
        /// `PyHamtNode_Bitmap.b_bitmap` (u32).
        pub bitmap_bits: u16,
        /// `PyHamtNode_Bitmap.b_array`.
        pub bitmap_items: u16,
        /// `PyHamtNode_Array.a_array`.
        pub array_items: u16,
        /// `PyHamtNode_Collision.c_array`.
        pub collision_items: u16,
        /// `PyObject.ob_type`.
        pub object_type: u16,
        /// `PyVarObject.ob_size`.
        pub object_size: u16,
        /// `PyListObject.ob_item`.
        pub list_items: u16,
        /// `PyTupleObject.ob_item`.
        pub tuple_items: u16,
        /// `PyLongObject.long_value.lv_tag`, or `ob_size` (3.11).
        pub int_tag: u16,
        /// Its lowest bit that counts digits.
        pub int_tag_shift: u16,
        /// The digits.
        pub int_digits: u16,
        /// `PyASCIIObject.length`.
        pub str_length: u16,
        /// `PyASCIIObject.state` (u32).
        pub str_state: u16,
        /// The lowest bit of `state.kind`, which has three.
        pub str_kind_bit: u16,
        /// The bit `state.compact`.
        pub str_compact_bit: u16,
        /// The bit `state.ascii`.
        pub str_ascii_bit: u16,
        /// `sizeof(PyASCIIObject)`.
        pub str_ascii_data: u16,
        /// `sizeof(PyCompactUnicodeObject)`.
        pub str_compact_data: u16,
        /// `PyDictObject.ma_keys`.
        pub dict_keys: u16,
        /// `PyDictObject.ma_values`.
        pub dict_values: u16,
        /// `PyDictKeysObject.dk_log2_index_bytes` (u8).
        pub keys_log2_index_bytes: u16,
        /// `PyDictKeysObject.dk_kind` (u8).
        pub keys_kind: u16,
        /// The value of `dk_kind` for entries with a hash.
        pub keys_kind_general: u16,
        /// `PyDictKeysObject.dk_nentries`.
        pub keys_nentries: u16,
        /// `PyDictKeysObject.dk_indices`.
        pub keys_indices: u16,
        /// Bytes before an instance at which its dictionary's pointer lies.
        pub managed_dict: u16,
        /// The same of its values' pointer (3.11), else 0.
        pub managed_values: u16,
        /// `PyDictValues.values`.
        pub values_items: u16,
        /// `PyDictValues.valid` (3.13 on), else [`crate::layout::ABSENT`].
        pub values_valid: u16,
        /// `PyThreadState.context_ver`: counts what enters and leaves contexts.
        pub tstate_context_ver: u16,
    }

    /// What the chain of a target needs to know.
    #[derive(Default, PartialEq, Eq)]
    pub struct LabelConfig {
        /// [`Source::Agent`] or [`Source::Otel`], 0 for none.
        pub source: u32,
        /// The context variable's hash as the HAMT folds it.
        pub hash: u32,
        /// The context variable.
        pub variable: Addr,
        /// `None`.
        pub none: Addr,
        /// `True`.
        pub truth: Addr,
        /// The `int` 0: small ones are one object each, in a row.
        pub zero: Addr,
        /// From one to the next.
        pub int_size: u64,
        /// The key of the current span (OpenTelemetry).
        pub key: Addr,
        /// `Context`, of `contextvars`.
        pub context_class: Addr,
        /// The classes of a HAMT's nodes.
        pub bitmap_class: Addr,
        /// The same.
        pub array_class: Addr,
        /// The same.
        pub collision_class: Addr,
        /// `list`.
        pub list_class: Addr,
        /// `str`.
        pub str_class: Addr,
        /// The class of the variable's value (OpenTelemetry): a dictionary.
        pub dict_class: Addr,
        /// The class of a span's context (OpenTelemetry): a tuple.
        pub tuple_class: Addr,
        /// By [`PlaceOf`].
        pub places: [Place; PLACES],
        /// Where the fields lie.
        pub layout: LabelLayout,
    }

    /// A text of the target.
    #[derive(Default, PartialEq, Eq)]
    pub struct Text {
        /// Characters; what is beyond `words` is cut.
        pub length: u32,
        /// Bytes of each, 0 for no text. Of bytes from the wire: 1.
        pub width: u32,
        /// The characters.
        pub words: [u64; TEXT_WORDS],
    }

    /// What is said of a label when it is first seen.
    #[derive(Default, PartialEq, Eq)]
    pub struct About {
        /// SkyWalking: the trace's id. Wire: the header's value.
        pub trace: Text,
        /// SkyWalking: the operation of the segment's first entry span. Wire: method and path.
        pub endpoint: Text,
        /// The span's operation.
        pub operation: Text,
        /// SkyWalking: when the segment began, ms since 1970; else 0.
        pub began_ms: u64,
        /// `ABOUT_*`.
        pub flags: u64,
        /// Of a tracer's label: the id of the request from the wire that its greenlet works on,
        /// else 0.
        pub request: [u64; 2],
    }

    /// What greenlets have from their makers: a request that made some. Key:
    /// [`crate::record::LentKey`].
    #[derive(Default, PartialEq, Eq)]
    pub struct Lent {
        /// Greenlets that work on it themselves, and made some. Below none where one ends that was
        /// counted in a row that was pushed out.
        pub makers: u64,
        /// Until when it was seen to go on, once none of them works on it any more; else 0.
        pub over_ns: u64,
        /// When it was answered on the wire, which ends it whoever works on; else 0.
        pub answered_ns: u64,
    }

    /// Where time is counted that has a label: in a stack, or (no stack) as a run.
    #[derive(Default, PartialEq, Eq, Hash)]
    pub struct PairKey {
        /// The stack, or none.
        pub stack: crate::walk::StackKey,
        /// The label.
        pub label: Label,
    }

    /// The time of a label: in a stack, or current on its thread.
    #[derive(Default, PartialEq, Eq)]
    pub struct PairTotals {
        /// Time.
        pub ns: u64,
        /// Waits, sleeps, or runs.
        pub count: u64,
        /// When the first of it began.
        pub first_ns: u64,
        /// When the last of it ended.
        pub last_ns: u64,
        /// Of a run, off the CPU: by [`crate::clock::Off`].
        pub off_ns: [u64; crate::clock::OFF_KINDS],
        /// Of a wait: how much of it the greenlet was ready.
        pub queued: crate::queue::Queued,
    }
}

/// [`About::flags`]: the trace has no span above this one in this process.
pub const ABOUT_ROOT: u64 = 1;
/// [`About::flags`]: `trace` is the value of `sw8`.
pub const ABOUT_SW8: u64 = 2;
/// [`About::flags`]: `trace` is the value of `traceparent`.
pub const ABOUT_TRACEPARENT: u64 = 4;
/// [`About::flags`]: the label is no greenlet's: who works for the request is not known.
pub const ABOUT_UNOWNED: u64 = 8;

impl Lent {
    /// Until when the request went on, if it is over.
    #[inline(always)]
    #[must_use]
    pub const fn until_ns(&self) -> Option<u64> {
        let Self { makers, over_ns, answered_ns } = *self;
        // Below none where one of them was counted before the row was pushed out.
        let is_over = makers.cast_signed() <= 0;
        if answered_ns != 0 && (!is_over || answered_ns < over_ns) {
            return Some(answered_ns);
        }
        if is_over { Some(over_ns) } else { None }
    }
}

impl Label {
    /// No label.
    pub const NONE: Self = Self { id: [0; 2], span: 0, kind: 0, target: 0 };

    /// Whether there is none.
    #[inline(always)]
    #[must_use]
    pub const fn is_none(&self) -> bool {
        self.kind == 0
    }

    /// Of nobody, for it changed since the last look and nobody saw when.
    pub const DISPUTED: Self = Self { id: [0; 2], span: 1, kind: 0, target: 0 };

    /// Whether it is the maker's.
    #[inline(always)]
    #[must_use]
    pub const fn is_inherited(&self) -> bool {
        self.kind & KIND_INHERITED != 0
    }

    /// Whether it is the request's own from the wire, answered or not.
    #[inline(always)]
    #[must_use]
    pub const fn is_wire(&self) -> bool {
        self.kind & !KIND_ANSWERED == Source::Wire as u32
    }

    /// A number for its request, whatever the span and whoever has it; 0 for no label.
    #[inline(always)]
    #[must_use]
    pub const fn request(&self) -> u64 {
        if self.is_none() {
            return 0;
        }
        let [high, low] = self.id;
        // 2^64 by the golden ratio: ids of ours differ in few bits.
        high.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29) ^ low | 1
    }

    /// Whether both are the same.
    #[inline(always)]
    #[must_use]
    pub const fn is(&self, other: &Self) -> bool {
        let [high, low] = self.id;
        let [other_high, other_low] = other.id;
        high == other_high
            && low == other_low
            && self.span == other.span
            && self.kind == other.kind
            && self.target == other.target
    }
}

/// Why an observation has no label. The names are part of the json format: append, never
/// renumber.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum Blank {
    /// The greenlet has no context.
    NoContext = 0,
    /// The variable is not set in it.
    NotSet = 1,
    /// There is no span in it: no request is worked on.
    NoSpan = 2,
    /// The span is none that is reported (ignored, not sampled), or of an unknown class.
    Unreported = 3,
    /// The span has ended already.
    Finished = 4,
    /// Something on the way could not be read, or is not what it should be.
    Unreadable = 5,
    /// An object on the way has a dictionary of its own.
    OwnDictionary = 6,
    /// No instance of its class was there when user space looked last: it looks again.
    Unready = 7,
    /// No request was seen on a socket (processes without a tracer).
    NoRequest = 8,
}

impl Blank {
    /// How many reasons there are.
    pub const COUNT: usize = 9;

    /// Every reason, in the order of their numbers.
    pub const ALL: [Self; Self::COUNT] = [
        Self::NoContext,
        Self::NotSet,
        Self::NoSpan,
        Self::Unreported,
        Self::Finished,
        Self::Unreadable,
        Self::OwnDictionary,
        Self::Unready,
        Self::NoRequest,
    ];

    /// Whether nothing is known of a label, by 1 + the reason why there is none, or 0. There may
    /// be one then. Whatever else its greenlet was given stands back: that trace need not be the
    /// tracer's.
    #[inline(always)]
    #[must_use]
    pub fn is_unknown(reason: u32) -> bool {
        Self::UNKNOWN.iter().any(|blank| *blank as u32 + 1 == reason)
    }

    /// The reasons of which that is so.
    pub const UNKNOWN: [Self; 3] = [Self::Unreadable, Self::OwnDictionary, Self::Unready];

    /// The name in the json format.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoContext => "NO_CONTEXT",
            Self::NotSet => "NOT_SET",
            Self::NoSpan => "NO_SPAN",
            Self::Unreported => "UNREPORTED",
            Self::Finished => "FINISHED",
            Self::Unreadable => "UNREADABLE",
            Self::OwnDictionary => "OWN_DICTIONARY",
            Self::Unready => "UNREADY",
            Self::NoRequest => "NO_REQUEST",
        }
    }
}

/// A span of SkyWalking: its attributes by number.
pub mod agent {
    /// Of a span.
    pub const DEPTH: usize = 0;
    /// Of a span.
    pub const CONTEXT: usize = 1;
    /// Of a span.
    pub const END_TIME: usize = 2;
    /// Of a span.
    pub const SID: usize = 3;
    /// Of a span.
    pub const OP: usize = 4;
    /// Of a `SpanContext`.
    pub const SEGMENT: usize = 0;
    /// Of a `SpanContext`.
    pub const PRIMARY_ENDPOINT: usize = 1;
    /// Of a `Segment`.
    pub const SEGMENT_ID: usize = 0;
    /// Of a `Segment`.
    pub const RELATED_TRACES: usize = 1;
    /// Of a `Segment`.
    pub const TIMESTAMP: usize = 2;
    /// Of an `ID`.
    pub const VALUE: usize = 0;
    /// Of a `PrimaryEndpoint`.
    pub const SPAN: usize = 0;
}

/// A span of OpenTelemetry: its attributes by number.
pub mod otel {
    /// Of a span.
    pub const CONTEXT: usize = 0;
    /// Of a span.
    pub const END_TIME: usize = 1;
    /// Of a span.
    pub const NAME: usize = 2;
    /// Of a span.
    pub const PARENT: usize = 3;
}

#[cfg(test)]
mod tests {
    use super::Blank;

    #[test]
    fn reasons_are_in_order() {
        for (number, blank) in Blank::ALL.iter().enumerate() {
            assert_eq!(*blank as usize, number);
        }
    }
}
