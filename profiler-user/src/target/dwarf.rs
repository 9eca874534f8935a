//! Member offsets out of an ELF file's debug information, by names.
//!
//! Only the named roots are looked up, and only their members are read: a scan of
//! the top level of each unit, with the bodies of functions skipped. `xtask`
//! compiles this very file for the generated tables.

use std::collections::HashMap;

use gimli::{
    AttributeValue, DebuggingInformationEntry, EndianSlice, LittleEndian, SectionId, Unit, UnitOffset,
};
use object::{Object as _, ObjectSection as _, ReadRef};

/// Typedefs, qualifiers and nested members followed for one member.
const MAX_DEPTH: u32 = 16;
/// Units looked at in one file (libpython has about 170).
const MAX_UNITS: usize = 4_096;

type Slice<'d> = EndianSlice<'d, LittleEndian>;
type Entry<'d> = DebuggingInformationEntry<Slice<'d>>;

/// Why a file's debug information gives no answer.
#[derive(Debug, thiserror::Error)]
pub enum DwarfError {
    /// The debug information is damaged or of an unknown kind.
    #[error("the debug information cannot be read: {0}")]
    Dwarf(#[from] gimli::Error),
    /// The file is damaged.
    #[error("the ELF file cannot be read: {0}")]
    Object(#[from] object::Error),
    /// A debug section is compressed.
    #[error("the section {0} is compressed")]
    Compressed(&'static str),
    /// There is none.
    #[error("there is no debug information")]
    Absent,
}

/// Where a member lies in its structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// In bytes from the structure's start.
    pub offset: u32,
    /// The lowest bit within the word at `offset`, for a bit field.
    pub bit: Option<u32>,
    /// How many bits a bit field has.
    pub bits: Option<u32>,
}

/// The named types of one file.
pub struct Types<'d> {
    dwarf: gimli::Dwarf<Slice<'d>>,
    units: Vec<Unit<Slice<'d>>>,
    roots: HashMap<String, (usize, UnitOffset)>,
}

impl<'d> Types<'d> {
    /// Finds `roots` (`name`, or `namespace::name`; a structure, an enumeration or
    /// a typedef) in the debug information of `file`.
    ///
    /// # Errors
    ///
    /// [`DwarfError`]; a root that is not there is no error.
    pub fn find<R: ReadRef<'d>>(file: &object::File<'d, R>, roots: &[&str]) -> Result<Self, DwarfError> {
        if file.section_by_name(".debug_info").is_none() {
            return Err(DwarfError::Absent);
        }
        let load = |id: SectionId| -> Result<Slice<'d>, DwarfError> {
            let needed = matches!(
                id,
                SectionId::DebugInfo
                    | SectionId::DebugAbbrev
                    | SectionId::DebugStr
                    | SectionId::DebugStrOffsets
                    | SectionId::DebugLine
                    | SectionId::DebugLineStr
            );
            let data = match file.section_by_name(id.name()) {
                Some(section) if needed => {
                    let compressed =
                        section.compressed_file_range()?.format != object::CompressionFormat::None;
                    if compressed {
                        return Err(DwarfError::Compressed(id.name()));
                    }
                    section.data()?
                }
                _ => &[],
            };
            Ok(EndianSlice::new(data, LittleEndian))
        };
        let mut types = Self { dwarf: gimli::Dwarf::load(load)?, units: Vec::new(), roots: HashMap::new() };
        types.scan(roots)?;
        Ok(types)
    }

    fn scan(&mut self, wanted: &[&str]) -> Result<(), DwarfError> {
        let mut headers = self.dwarf.units();
        while let Some(header) = headers.next()? {
            if self.roots.len() == wanted.len() || self.units.len() == MAX_UNITS {
                break;
            }
            let unit = self.dwarf.unit(header)?;
            let number = self.units.len();
            let mut found = Vec::new();
            let mut namespaces = Vec::new();
            let root = unit.header.root_offset();
            each_child(&unit, root, |entry| {
                self.consider(&unit, entry, "", wanted, &mut found, &mut namespaces);
            })?;
            for (offset, prefix) in std::mem::take(&mut namespaces) {
                each_child(&unit, offset, |entry| {
                    self.consider(&unit, entry, &prefix, wanted, &mut found, &mut namespaces);
                })?;
            }
            for (name, offset) in found {
                self.roots.entry(name).or_insert((number, offset));
            }
            self.units.push(unit);
        }
        Ok(())
    }

    fn consider(
        &self,
        unit: &Unit<Slice<'d>>,
        entry: &Entry<'d>,
        prefix: &str,
        wanted: &[&str],
        found: &mut Vec<(String, UnitOffset)>,
        namespaces: &mut Vec<(UnitOffset, String)>,
    ) {
        match entry.tag() {
            gimli::DW_TAG_structure_type
            | gimli::DW_TAG_class_type
            | gimli::DW_TAG_union_type
            | gimli::DW_TAG_enumeration_type
            | gimli::DW_TAG_typedef => {
                if entry.has_attr(gimli::DW_AT_declaration) {
                    return;
                }
                // `typedef struct name name` adds nothing; the structure itself is
                // met too, unless it is nameless.
                let Some(name) = self.name(unit, entry) else {
                    return;
                };
                let full = format!("{prefix}{name}");
                if wanted.contains(&full.as_str()) && self.leads_to_body(unit, entry) {
                    found.push((full, entry.offset()));
                }
            }
            gimli::DW_TAG_namespace => {
                let Some(name) = self.name(unit, entry) else {
                    return;
                };
                let inner = format!("{prefix}{name}::");
                if wanted.iter().any(|root| root.starts_with(&inner)) {
                    namespaces.push((entry.offset(), inner));
                }
            }
            _ => {}
        }
    }

    /// Whether a typedef's target has members here, and is not a mere declaration.
    fn leads_to_body(&self, unit: &Unit<Slice<'d>>, entry: &Entry<'d>) -> bool {
        if entry.tag() != gimli::DW_TAG_typedef {
            return true;
        }
        peel(unit, entry.offset())
            .and_then(|offset| unit.entry(offset).ok())
            .is_some_and(|body| !body.has_attr(gimli::DW_AT_declaration))
    }

    fn name(&self, unit: &Unit<Slice<'d>>, entry: &Entry<'d>) -> Option<String> {
        let value = entry.attr_value(gimli::DW_AT_name)?;
        let text = self.dwarf.attr_string(unit, value).ok()?;
        Some(text.to_string_lossy().into_owned())
    }

    /// The size of the structure `root` in bytes.
    #[must_use]
    pub fn size(&self, root: &str) -> Option<u32> {
        let &(number, offset) = self.roots.get(root)?;
        let unit = self.units.get(number)?;
        let body = unit.entry(peel(unit, offset)?).ok()?;
        u32::try_from(body.attr_value(gimli::DW_AT_byte_size)?.udata_value()?).ok()
    }

    /// Where `path` (`member.member`) lies in the structure `root`.
    ///
    /// Base classes and nameless members are looked through.
    #[must_use]
    pub fn member(&self, root: &str, path: &str) -> Option<Member> {
        let &(number, offset) = self.roots.get(root)?;
        let unit = self.units.get(number)?;
        let mut at = Member { offset: 0, bit: None, bits: None };
        let mut holder = offset;
        for name in path.split('.') {
            let (member, kind) = self.child(unit, peel(unit, holder)?, name, MAX_DEPTH)?;
            at = Member { offset: at.offset.checked_add(member.offset)?, bit: member.bit, bits: member.bits };
            holder = kind;
        }
        Some(at)
    }

    /// The offset of [`Self::member`].
    #[must_use]
    pub fn offset(&self, root: &str, path: &str) -> Option<u32> {
        Some(self.member(root, path)?.offset)
    }

    /// The value of an enumerator of the enumeration `root`.
    #[must_use]
    pub fn enumerator(&self, root: &str, wanted: &str) -> Option<u64> {
        let &(number, offset) = self.roots.get(root)?;
        let unit = self.units.get(number)?;
        let mut value = None;
        each_child(unit, peel(unit, offset)?, |entry| {
            if value.is_none() && self.name(unit, entry).as_deref() == Some(wanted) {
                value = entry.attr_value(gimli::DW_AT_const_value).and_then(|v| v.udata_value());
            }
        })
        .ok()?;
        value
    }

    fn child(
        &self,
        unit: &Unit<Slice<'d>>,
        holder: UnitOffset,
        wanted: &str,
        depth: u32,
    ) -> Option<(Member, UnitOffset)> {
        let mut found = None;
        let mut inside = Vec::new();
        each_child(unit, holder, |entry| {
            let transparent = match entry.tag() {
                gimli::DW_TAG_inheritance => true,
                gimli::DW_TAG_member => !entry.has_attr(gimli::DW_AT_name),
                _ => return,
            };
            let (Some(member), Some(kind)) = (place(entry), kind(entry)) else {
                return;
            };
            if transparent {
                inside.push((member, kind));
            } else if found.is_none() && self.name(unit, entry).as_deref() == Some(wanted) {
                found = Some((member, kind));
            }
        })
        .ok()?;
        if found.is_some() || depth == 0 {
            return found;
        }
        inside.into_iter().find_map(|(outer, kind)| {
            let (inner, kind) = self.child(unit, peel(unit, kind)?, wanted, depth - 1)?;
            let offset = outer.offset.checked_add(inner.offset)?;
            Some((Member { offset, ..inner }, kind))
        })
    }
}

/// Calls `visit` for each direct child of the entry at `parent`.
fn each_child<'d>(
    unit: &Unit<Slice<'d>>,
    parent: UnitOffset,
    mut visit: impl FnMut(&Entry<'d>),
) -> Result<(), gimli::Error> {
    let mut cursor = unit.entries_at_offset(parent)?;
    if !cursor.next_entry()? || !cursor.current().is_some_and(Entry::has_children) {
        return Ok(());
    }
    cursor.next_entry()?;
    let mut current = cursor.current();
    while let Some(entry) = current {
        visit(entry);
        current = cursor.next_sibling()?;
    }
    Ok(())
}

/// Follows typedefs and qualifiers to the type itself.
fn peel(unit: &Unit<Slice<'_>>, from: UnitOffset) -> Option<UnitOffset> {
    let mut offset = from;
    for _ in 0..MAX_DEPTH {
        let entry = unit.entry(offset).ok()?;
        match entry.tag() {
            gimli::DW_TAG_typedef
            | gimli::DW_TAG_const_type
            | gimli::DW_TAG_volatile_type
            | gimli::DW_TAG_atomic_type => offset = kind(&entry)?,
            _ => return Some(offset),
        }
    }
    None
}

fn kind(entry: &Entry<'_>) -> Option<UnitOffset> {
    match entry.attr_value(gimli::DW_AT_type)? {
        AttributeValue::UnitRef(offset) => Some(offset),
        _ => None,
    }
}

fn number(entry: &Entry<'_>, name: gimli::DwAt) -> Option<u32> {
    u32::try_from(entry.attr_value(name)?.udata_value()?).ok()
}

/// The place of a member, for the ways of DWARF 2 to 5 to describe bit fields.
fn place(entry: &Entry<'_>) -> Option<Member> {
    let bits = number(entry, gimli::DW_AT_bit_size);
    let start = number(entry, gimli::DW_AT_data_member_location).unwrap_or(0);
    if let Some(bit) = number(entry, gimli::DW_AT_data_bit_offset) {
        // DWARF 5: counted from the structure's start; kept within a 32-bit word.
        let offset = start.checked_add(bit / 32 * 4)?;
        return Some(Member { offset, bit: Some(bit % 32), bits });
    }
    if let (Some(from_top), Some(width)) = (number(entry, gimli::DW_AT_bit_offset), bits) {
        // DWARF 3: counted from the top of a storage unit of `byte_size`.
        let size = number(entry, gimli::DW_AT_byte_size).unwrap_or(4);
        let bit = size.checked_mul(8)?.checked_sub(from_top)?.checked_sub(width)?;
        return Some(Member { offset: start, bit: Some(bit), bits });
    }
    Some(Member { offset: start, bit: None, bits })
}
