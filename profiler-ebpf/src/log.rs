//! Lines for whoever debugs the kernel part: only with the feature `log`.

/// Says a line: `log!("thread {}: left {:x}", object = object.0)`.
///
/// Its first `{}` is the current thread, the others are the values, each a `u64`. It
/// goes into a ring of its own, where one that finds no room is lost.
#[cfg(feature = "log")]
macro_rules! log {
    ($text:literal $(, $name:ident = $value:expr)*) => {{
        // Out of line: a line's parts lie on the stack, of which the caller has little left.
        #[inline(never)]
        fn line($($name: u64),*) -> u32 {
            let thread = aya_ebpf::helpers::bpf_get_current_pid_tgid() as u32;
            aya_log_ebpf::info!((), $text, thread $(, $name)*);
            0
        }
        let _said = line($($value),*);
    }};
}

/// Without the feature a line is nothing.
#[cfg(not(feature = "log"))]
macro_rules! log {
    ($($line:tt)*) => {};
}

pub(crate) use log;
