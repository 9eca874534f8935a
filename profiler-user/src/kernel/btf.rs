//! Where a field of one of the kernel's structures lies, from its own type information.
//!
//! aya keeps its reader of this format to itself, and the one other crate for it is
//! under a licence that does not go with ours.
//! <https://github.com/torvalds/linux/blob/v6.12/Documentation/bpf/btf.rst>

const MAGIC: u16 = 0xeb9f;
const STRUCT: u32 = 4;
const MEMBER_BYTES: usize = 12;
const TYPE_BYTES: usize = 12;

/// The kernel's type information.
pub(super) struct Types<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Where each begins, by number; 0 is void.
    places: Vec<usize>,
}

/// A type's first three words.
#[derive(Clone, Copy)]
struct Head {
    name: u32,
    info: u32,
}

impl<'a> Types<'a> {
    /// Reads the header; `None` if it makes no sense.
    pub(super) fn parse(data: &'a [u8]) -> Option<Self> {
        if u16::from_ne_bytes(data.get(..2)?.try_into().ok()?) != MAGIC {
            return None;
        }
        let header = usize::try_from(word(data, 4)?).ok()?;
        let section = |at: usize| {
            let offset = header.checked_add(usize::try_from(word(data, at)?).ok()?)?;
            let bytes = usize::try_from(word(data, at + 4)?).ok()?;
            data.get(offset..offset.checked_add(bytes)?)
        };
        let mut types = Self { types: section(8)?, strings: section(16)?, places: vec![0] };
        let mut at = 0;
        while at < types.types.len() {
            let head = types.head(at)?;
            types.places.push(at);
            at += TYPE_BYTES + extra(head.info)?;
        }
        Some(types)
    }

    /// The offset in bytes of a field of `structure`, by the members that lead to it.
    pub(super) fn offset(&self, structure: &str, path: &[&str]) -> Option<u32> {
        let mut at = self.structure(structure)?;
        let mut bits = 0;
        for member in path {
            let (more, kind) = self.member(at, member)?;
            bits += more;
            at = *self.places.get(usize::try_from(kind).ok()?)?;
        }
        Some(bits / 8)
    }

    /// The size of `structure` in bytes.
    pub(super) fn size(&self, structure: &str) -> Option<u32> {
        word(self.types, self.structure(structure)? + 8)
    }

    fn structure(&self, name: &str) -> Option<usize> {
        self.places.iter().skip(1).copied().find(|at| {
            self.head(*at).is_some_and(|head| head.info >> 24 & 31 == STRUCT && self.is(head.name, name))
        })
    }

    fn head(&self, at: usize) -> Option<Head> {
        Some(Head { name: word(self.types, at)?, info: word(self.types, at + 4)? })
    }

    /// The offset of a member in bits, and its type.
    fn member(&self, at: usize, name: &str) -> Option<(u32, u32)> {
        let head = self.head(at)?;
        let members = usize::try_from(head.info & 0xffff).ok()?;
        (0..members).map(|index| at + TYPE_BYTES + index * MEMBER_BYTES).find_map(|at| {
            let offset = word(self.types, at + 8)?;
            // With bit fields among the members the upper byte is a size.
            let offset = if head.info >> 31 == 1 { offset & 0x00ff_ffff } else { offset };
            self.is(word(self.types, at)?, name).then_some((offset, word(self.types, at + 4)?))
        })
    }

    fn is(&self, offset: u32, name: &str) -> bool {
        let text = usize::try_from(offset).ok().and_then(|offset| self.strings.get(offset..));
        text.and_then(|text| text.strip_prefix(name.as_bytes())).is_some_and(|rest| rest.first() == Some(&0))
    }
}

/// Bytes that follow a type's first three words.
fn extra(info: u32) -> Option<usize> {
    let count = usize::try_from(info & 0xffff).ok()?;
    Some(match info >> 24 & 31 {
        // int, var, decl tag
        1 | 14 | 17 => 4,
        // array
        3 => 12,
        // struct, union, datasec, enum64
        4 | 5 | 15 | 19 => count * 12,
        // enum, function prototype
        6 | 13 => count * 8,
        // pointer, forward, typedef, volatile, const, restrict, function, float, type tag
        2 | 7..=12 | 16 | 18 => 0,
        _ => return None,
    })
}

fn word(data: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(data.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `struct b { int x; int y; }` and `struct a { int x; struct b b; }`.
    fn sample() -> Vec<u8> {
        let strings = b"\0a\0b\0x\0y\0";
        let (a, b, x, y) = (1, 3, 5, 7);
        let types: Vec<u32> = [
            vec![0, 1 << 24, 4, 32],
            vec![b, STRUCT << 24 | 2, 8, x, 1, 0, y, 1, 32],
            vec![a, STRUCT << 24 | 2, 12, x, 1, 0, b, 2, 32],
        ]
        .concat();
        let types: Vec<u8> = types.into_iter().flat_map(u32::to_ne_bytes).collect();
        let (len, text) = (u32::try_from(types.len()).unwrap(), u32::try_from(strings.len()).unwrap());
        let mut data = Vec::from(MAGIC.to_ne_bytes());
        data.extend([1, 0]);
        data.extend([24, 0, len, len, text].into_iter().flat_map(u32::to_ne_bytes));
        data.extend(types);
        data.extend(strings);
        data
    }

    #[test]
    fn a_field_of_a_field_is_found() {
        let data = sample();
        let types = Types::parse(&data).unwrap();
        assert_eq!(types.offset("a", &["b", "y"]), Some(8));
        assert_eq!(types.offset("a", &["b"]), Some(4));
        assert_eq!(types.offset("a", &["b", "z"]), None);
        assert_eq!(types.offset("c", &["b", "y"]), None);
        assert_eq!((types.size("a"), types.size("b"), types.size("c")), (Some(12), Some(8), None));
    }

    #[test]
    fn broken_data_gives_nothing() {
        let data = sample();
        for cut in 0..data.len() {
            let types = Types::parse(data.get(..cut).unwrap());
            assert_eq!(types.and_then(|types| types.offset("a", &["b", "y"])), None, "{cut}");
        }
    }
}
