//! Code objects that are freed, and the texts of those that are met.

use aya_ebpf::programs::ProbeContext;
use profiler_common::{
    address::Addr,
    code::{BY_TEXT, Codes, LINES_WORDS, NO_TEXT, TEXT_FIXED_WORDS, place},
    record::{Kind, VERSION},
};

use crate::{emit, maps, slot::Scratch, thread};

/// A code object is freed: what lies at its address from now on is known by its text.
#[inline(always)]
pub fn on_freed(ctx: &ProbeContext, code: Addr) {
    let target = thread::target(ctx);
    if maps::config(target).is_some()
        && let Some(codes) = maps::codes(target)
    {
        codes.free(code);
    }
}

/// Sends the text that is in the window, of what is known as `code`.
#[inline(never)]
pub fn tell(scratch: &mut Scratch, codes: &mut Codes, code: Addr) -> u32 {
    // Without a text user space reads the names of what is known by its address.
    if scratch.walk.text == NO_TEXT || send(scratch, code) {
        if code.0 & BY_TEXT == 0 {
            codes.tell(code);
        }
    } else {
        scratch.about.texts_lost = 1;
    }
    0
}

#[inline(always)]
fn send(scratch: &mut Scratch, code: Addr) -> bool {
    let about = &scratch.about;
    let words = scratch.window.words();
    let [kind, target, time_ns, stands, ..] = words;
    // A `RecordHead`.
    *kind = Kind::Code as u64 | u64::from(VERSION) << 32;
    *target = about.target;
    *time_ns = about.time_ns;
    const { assert!(place::CODE == 3) };
    *stands = code.0;
    let table = words.get(place::TABLE).copied().unwrap_or_default();
    let most = (LINES_WORDS * 8) as u64;
    let table = if table < most { table } else { most };
    emit::send(words, (TEXT_FIXED_WORDS * 8) as u64 + ((table + 7) & !7), false)
}
