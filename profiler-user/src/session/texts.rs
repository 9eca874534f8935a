//! What the kernel part tells of code objects: their texts, as they were when it met them.

use profiler_common::{
    address::Addr,
    code::{FILE_WORDS, LINES_WORDS, NAME_WORDS, TEXT_FIXED_WORDS, TEXT_HEAD_WORDS, TextLayout, place},
};

use crate::python::{
    code::{self, Code},
    objects::ObjectLayout,
    text,
};

/// A code object as the kernel part told of it.
#[derive(Debug)]
pub(super) struct Text {
    /// What stands for it in stacks.
    pub(super) stands: Addr,
    /// What it shows.
    pub(super) code: Code,
    /// Its table of lines had room.
    pub(super) is_whole: bool,
}

/// `None` if the record is none of a text.
pub(super) fn parse(record: &[u8]) -> Option<Text> {
    let word = |at: usize| Some(u64::from_le_bytes(*record.get(at * 8..)?.first_chunk()?));
    let string = |described: usize, at: usize, words: usize| {
        let described = word(described)?;
        let (bytes, width) = (described as u32, (described >> 32) as u32);
        let bytes = usize::try_from(bytes).ok().filter(|bytes| *bytes <= words * 8)?;
        text::decode(record.get(at * 8..)?.get(..bytes)?, width, false)
    };
    let lines = word(place::LINES)?;
    let bytes = usize::try_from(word(place::TABLE)?).ok()?;
    let table = bytes.min(LINES_WORDS * 8);
    let name = TEXT_HEAD_WORDS;
    let code = Code {
        qualname: string(place::NAME, name, NAME_WORDS)?,
        filename: string(place::FILE, name + NAME_WORDS, FILE_WORDS)?,
        firstlineno: code::first_line(lines as u32),
        linetable: record.get(TEXT_FIXED_WORDS * 8..)?.get(..table)?.to_vec(),
        first_traceable: code::first_traceable_at((lines >> 32) as u32),
    };
    Some(Text { stands: Addr(word(place::CODE)?), code, is_whole: bytes <= LINES_WORDS * 8 })
}

/// Where the kernel part finds what code objects show.
pub(super) const fn texts_of(objects: &ObjectLayout, code_type: Addr) -> TextLayout {
    TextLayout {
        code_type,
        code_firstlineno: objects.code_firstlineno,
        code_firsttraceable: objects.code_firsttraceable,
        code_filename: objects.code_filename,
        str_length: objects.str_length,
        str_state: objects.str_state,
        str_kind_bit: objects.str_kind_bit,
        str_kind_bits: objects.str_kind_bits,
        str_compact_bit: objects.str_compact_bit,
        str_ascii_bit: objects.str_ascii_bit,
        str_ascii_data: objects.str_ascii_data,
        str_compact_data: objects.str_compact_data,
        object_size: objects.object_size,
        bytes_data: objects.bytes_data,
        padding: 0,
    }
}

#[cfg(test)]
mod tests {
    use profiler_common::{
        code::{BY_TEXT, NO_TEXT, Room, text},
        limits::{WINDOW_SLACK_WORDS, WINDOW_WORDS},
        record::RecordHead,
    };
    use proptest::prelude::*;

    use super::*;
    use crate::{memory::Recorded, target::layouts_generated::PYTHON};

    const CODE_TYPE: Addr = Addr(0x9_0000);

    fn layout(objects: &ObjectLayout) -> TextLayout {
        texts_of(objects, CODE_TYPE)
    }

    /// A code object as CPython lays it out, with all that belongs to it from `at` on.
    fn lay(code: &Code, objects: &ObjectLayout, at: u64) -> Recorded {
        let mut memory = Recorded::default();
        let mut bytes = vec![0xab_u8; 256];
        let mut put = |offset: u32, value: &[u8]| {
            bytes[offset as usize..][..value.len()].copy_from_slice(value);
        };
        put(objects.object_type, &CODE_TYPE.0.to_le_bytes());
        put(objects.code_firstlineno, &code.firstlineno.to_le_bytes());
        put(objects.code_firsttraceable, &(code.first_traceable / 2).to_le_bytes());
        put(objects.code_filename, &(at + 0x1000).to_le_bytes());
        put(objects.code_qualname, &(at + 0x3000).to_le_bytes());
        put(objects.code_linetable, &(at + 0x5000).to_le_bytes());
        memory.add(Addr(at), &bytes);
        for (at, text) in [(at + 0x1000, &code.filename), (at + 0x3000, &code.qualname)] {
            let widest = text.chars().map(u32::from).max().unwrap_or(0);
            let width = if widest < 0x100 {
                1_usize
            } else if widest < 0x1_0000 {
                2
            } else {
                4
            };
            let ascii = text.is_ascii();
            let state = (width as u32) << objects.str_kind_bit
                | 1 << objects.str_compact_bit
                | u32::from(ascii) << objects.str_ascii_bit;
            let data = if ascii { objects.str_ascii_data } else { objects.str_compact_data } as usize;
            let mut string = vec![0xcd_u8; data];
            string[objects.str_length as usize..][..8]
                .copy_from_slice(&(text.chars().count() as u64).to_le_bytes());
            string[objects.str_state as usize..][..4].copy_from_slice(&state.to_le_bytes());
            for point in text.chars().map(u32::from) {
                string.extend_from_slice(&point.to_le_bytes()[..width]);
            }
            // What lies behind it is anything.
            string.extend_from_slice(&[at as u8; 8]);
            memory.add(Addr(at), &string);
        }
        let mut table = vec![0_u8; objects.bytes_data as usize];
        table[objects.object_size as usize..][..8]
            .copy_from_slice(&(code.linetable.len() as u64).to_le_bytes());
        table.extend_from_slice(&code.linetable);
        table.extend_from_slice(&[at as u8; 8]);
        memory.add(Addr(at + 0x5000), &table);
        memory
    }

    /// What stands for it, and the code of its record.
    fn told(code: &Code, objects: &ObjectLayout, at: u64) -> (u64, Option<(Addr, Code)>) {
        let mut room: Room = [0xee; WINDOW_WORDS + WINDOW_SLACK_WORDS];
        let stands = text(&layout(objects), Addr(at), &mut room, &mut lay(code, objects, at));
        room[place::CODE] = stands;
        const { assert!(size_of::<RecordHead>() == place::CODE * 8) };
        let taken = code.linetable.len().min(LINES_WORDS * 8).next_multiple_of(8);
        let bytes: Vec<u8> = room.iter().flat_map(|word| word.to_le_bytes()).collect();
        (stands, parse(&bytes[..TEXT_FIXED_WORDS * 8 + taken]).map(|text| (text.stands, text.code)))
    }

    fn codes() -> impl Strategy<Value = Code> {
        let text = || prop_oneof!["[ -~]{1,60}", "[a-zÀ-ÿ]{1,40}", "[a-zЀ-џ]{1,40}", "\\PC{1,20}"];
        let table = prop::collection::vec(any::<u8>(), 0..300);
        (text(), text(), 0..1_000_000_u32, table, 0..100_u32).prop_map(
            |(qualname, filename, firstlineno, linetable, first)| Code {
                qualname,
                filename,
                firstlineno,
                linetable,
                first_traceable: 2 * first,
            },
        )
    }

    proptest! {
        #[test]
        fn a_text_is_the_code_wherever_it_lies(code in codes()) {
            for row in PYTHON {
                let (here, told_here) = told(&code, &row.objects, 0x10_0000);
                let (there, _) = told(&code, &row.objects, 0x7f12_3456_0000);
                prop_assert_eq!(here, there);
                prop_assert!(here & BY_TEXT != 0 && here != NO_TEXT);
                prop_assert_eq!(told_here, Some((Addr(here), code.clone())));
            }
        }

        #[test]
        fn another_code_is_another_text(code in codes(), other in codes(), which in 0..5) {
            let mut changed = code.clone();
            match which {
                0 => changed.qualname = other.qualname,
                1 => changed.filename = other.filename,
                2 => changed.firstlineno = other.firstlineno,
                3 => changed.linetable = other.linetable,
                _ => changed.first_traceable = other.first_traceable,
            }
            for row in PYTHON {
                let [a, b] = [&code, &changed].map(|code| told(code, &row.objects, 0x10_0000).0);
                prop_assert_eq!(a == b, code == changed);
            }
        }

        #[test]
        fn foreign_bytes_do_no_harm(noise in prop::collection::vec(any::<u8>(), 0..4_000)) {
            drop(parse(&noise));
        }
    }

    #[test]
    fn what_is_too_long_has_no_text_and_a_long_table_is_cut() {
        let code = |name: usize, file: usize, table: usize| Code {
            qualname: "n".repeat(name),
            filename: "f".repeat(file),
            firstlineno: 1,
            linetable: vec![7; table],
            first_traceable: 0,
        };
        for row in PYTHON {
            let told = |code: &Code| told(code, &row.objects, 0x10_0000);
            assert!(told(&code(256, 512, 2_048)).1.is_some_and(|(_, told)| told == code(256, 512, 2_048)));
            assert_eq!(told(&code(257, 1, 1)).0, NO_TEXT);
            assert_eq!(told(&code(1, 513, 1)).0, NO_TEXT);
            let (long, cut) = told(&code(1, 1, 5_000));
            assert_eq!(cut, Some((Addr(long), code(1, 1, 2_048))));
            assert_ne!(long, told(&code(1, 1, 4_999)).0);
        }
    }

    #[test]
    fn what_is_no_code_has_no_text() {
        let row = &PYTHON[0].objects;
        let mut memory = Recorded::default();
        memory.add(Addr(0x10_0000), &[1; 256]);
        let mut room: Room = [0; WINDOW_WORDS + WINDOW_SLACK_WORDS];
        assert_eq!(text(&layout(row), Addr(0x10_0000), &mut room, &mut memory), NO_TEXT);
        assert_eq!(text(&layout(row), Addr(0x20_0000), &mut room, &mut memory), NO_TEXT);
    }
}
