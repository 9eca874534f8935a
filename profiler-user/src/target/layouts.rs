//! The known layouts as data: which row serves which Python and greenlet.

use profiler_common::layout::{GreenletLayout, PythonLayout};

use super::{layouts_generated, version::Version};
use crate::python::objects::{DebugTable, ObjectLayout};

/// The layouts of one minor version of CPython.
#[derive(Debug)]
pub struct PythonRow {
    /// The minor version served: `(3, 12)`.
    pub minor: (u8, u8),
    /// The version whose debug information was read.
    pub read_from: &'static str,
    /// What the kernel part needs.
    pub layout: PythonLayout,
    /// What user space needs beside it.
    pub objects: ObjectLayout,
    /// Where the process itself says the same, from 3.13 on.
    pub debug: Option<DebugTable>,
}

/// The layout of a range of greenlet's versions for one minor version of CPython.
#[derive(Debug)]
pub struct GreenletRow {
    /// The minor version of CPython.
    pub minor: (u8, u8),
    /// The first version of greenlet with this layout.
    pub first: Version,
    /// The last version of greenlet that was read and has this layout.
    pub last: Version,
    /// The layout.
    pub layout: GreenletLayout,
}

/// The row for a version of CPython.
#[must_use]
pub fn python(version: Version) -> Option<&'static PythonRow> {
    let minor = (version.major, version.minor);
    layouts_generated::PYTHON.iter().find(|row| row.minor == minor)
}

/// The row for a version of greenlet on a version of CPython.
#[must_use]
pub fn greenlet(python: Version, greenlet: Version) -> Option<&'static GreenletRow> {
    let minor = (python.major, python.minor);
    layouts_generated::GREENLET
        .iter()
        .find(|row| row.minor == minor && row.first <= greenlet && greenlet <= row.last)
}

/// The minor versions of CPython that the tables know, in words.
#[must_use]
pub fn known_pythons() -> String {
    let known = layouts_generated::PYTHON.iter().map(|row| {
        let (major, minor) = row.minor;
        format!("{major}.{minor}")
    });
    known.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use profiler_common::{
        greenlet::HEAD_WORDS,
        layout::ABSENT,
        limits::{OLD_STATE_WORDS, OWN_STATE_WORDS, THREAD_STATE_WORDS},
    };

    use super::*;
    use crate::python::objects::NONE;

    #[test]
    fn ranges_of_one_python_do_not_overlap() {
        for (at, row) in layouts_generated::GREENLET.iter().enumerate() {
            assert!(row.first <= row.last, "{row:?}");
            for other in &layouts_generated::GREENLET[at + 1..] {
                let apart = row.last < other.first || other.last < row.first;
                assert!(row.minor != other.minor || apart, "{row:?} {other:?}");
            }
        }
    }

    #[test]
    fn bulk_reads_reach_every_field() {
        for row in layouts_generated::PYTHON {
            let PythonLayout { tstate_interp, tstate_status, tstate_frame, tstate_native_id, .. } =
                row.layout;
            for field in [tstate_interp, tstate_status, tstate_frame] {
                let reached = usize::from(field) + 8 <= THREAD_STATE_WORDS * 8;
                assert!(field == ABSENT || reached, "{row:?}");
            }
            let new = row.objects.tstate_cleared_bit != NONE;
            let words = if new { OWN_STATE_WORDS } else { OLD_STATE_WORDS };
            for field in [u32::from(tstate_native_id), row.objects.tstate_top] {
                assert!(field as usize + 8 <= words * 8, "{row:?}");
            }
        }
        for row in layouts_generated::GREENLET {
            let GreenletLayout { stack_start, stack_stop, .. } = row.layout;
            for field in [stack_start, stack_stop] {
                assert!(usize::from(field) + 8 <= HEAD_WORDS * 8, "{row:?}");
            }
        }
    }

    #[test]
    fn only_the_three_that_cut_the_chain_are_marked() {
        for row in layouts_generated::GREENLET {
            let cut = row.minor == (3, 12) && row.last <= Version::new(3, 0, 2);
            assert_eq!(row.layout.top_frame_only, u16::from(cut), "{row:?}");
        }
    }
}
