//! What the flags of a greenlet's entry say.

/// [`crate::record::Greenlet::flags`]: its birth was seen.
pub const GREENLET_BORN: u32 = 1;
/// [`crate::record::Greenlet::flags`]: current on its thread.
pub const GREENLET_RUNNING: u32 = 2;
/// [`crate::record::Greenlet::flags`]: a thread's main greenlet.
pub const GREENLET_MAIN: u32 = 4;
/// [`crate::record::Greenlet::flags`]: it was the current greenlet when its thread was first seen.
pub const GREENLET_FIRST: u32 = 16;

/// [`crate::record::Greenlet::flags`]: what its label says could not be sent.
pub const GREENLET_UNTOLD: u32 = 32;
/// [`crate::record::Greenlet::flags`]: nothing was known of its own label when it left last
/// ([`crate::label::Blank::is_unknown`]).
pub const GREENLET_UNKNOWN: u32 = 1 << 18;
/// [`crate::record::Greenlet::flags`]: its object was freed by another thread than the one that runs it, which
/// is about to exit. Whatever has its address now is another one.
pub const GREENLET_FREED: u32 = 1 << 17;

/// [`crate::record::Greenlet::flags`]: it found nothing in a socket, and has not been suspended
/// and gone on since ([`crate::record::Greenlet::awaits`]).
pub const GREENLET_AWAITS: u32 = 1 << 19;
/// [`crate::record::Greenlet::flags`]: it has tried to receive from a socket.
pub const GREENLET_RECEIVED: u32 = 64;
/// [`crate::record::Greenlet::flags`]: it has read requests of more than one connection.
pub const GREENLET_SEVERAL: u32 = 128;
/// [`crate::record::Greenlet::flags`]: one greenlet switched to it and it switched to another one that was
/// suspended: it passes control on, as hubs do.
pub const GREENLET_PASSES: u32 = 1 << 16;
/// [`crate::record::Greenlet::flags`]: how far up is the number among those of its thread whose sleeps are
/// kept apart, from 1 on; 0 for none.
pub const GREENLET_PLACE: u32 = 8;
/// How many greenlets of a thread get such a number.
pub const MAX_PLACES: u32 = 32;
/// In what a thread's slot has of that: a hub of a known type has polled.
pub const PLACES_HUB: u32 = 1 << 31;
