//! The linked object: debug sections out, and what no kernel would take refused.

use anyhow::{Context as _, Result, bail};
use object::{
    Object as _, ObjectSection as _, ObjectSymbol as _, SectionKind, SymbolKind,
    build::elf::{Builder, SectionData},
};

/// Bytes of one BPF instruction.
pub(super) const INSTRUCTION: usize = 8;

/// `goto` with a 16-bit and with a 32-bit distance.
const JUMP: u8 = 0x05;
const JUMP_LONG: u8 = 0x06;

/// Sections that hold variables which a program could write.
const VARIABLES: [&str; 2] = [".bss", ".data"];

/// The object without DWARF; `.BTF` and `.BTF.ext` stay, the kernel reads those.
///
/// # Errors
///
/// When it is no ELF object.
pub(super) fn strip(linked: &[u8]) -> Result<Vec<u8>> {
    let mut builder = Builder::read(linked).context("bpf-linker left no ELF object")?;
    for section in &mut builder.sections {
        let name = section.name.to_string();
        let name = name.strip_prefix(".rel").unwrap_or(&name);
        section.delete = name.starts_with(".debug_");
    }
    // LLVM keeps the names of sections and symbols in one table; the writer wants
    // the sections' apart.
    let apart = builder.sections.iter().any(|section| matches!(section.data, SectionData::SectionString));
    if !apart {
        let names = builder.sections.add();
        names.name = ".shstrtab".into();
        names.sh_type = object::elf::SHT_STRTAB;
        names.sh_addralign = 1;
        names.data = SectionData::SectionString;
    }
    builder.delete_orphans();
    let mut stripped = Vec::new();
    builder.write(&mut stripped).context("cannot write the object without its debug sections")?;
    Ok(stripped)
}

/// Refuse what would fail in a kernel with a message that says nothing.
///
/// A panic is an endless loop to the verifier ("last insn is not an exit or jmp",
/// aya-rs/aya#1056); a variable in `.bss` or `.data` is shared by every CPU and
/// every probe, which nothing of ours stands.
///
/// # Errors
///
/// When the object holds either, no program, or no BTF.
pub(super) fn inspect(bytes: &[u8]) -> Result<()> {
    let file = object::File::parse(bytes).context("the kernel part's object is no ELF object")?;
    let panics: Vec<&str> = file
        .symbols()
        .filter(|symbol| symbol.kind() == SymbolKind::Text)
        .filter_map(|symbol| symbol.name().ok())
        .filter(|name| name.contains("panic") || name.contains("rust_begin_unwind"))
        .collect();
    if !panics.is_empty() {
        bail!(
            "the kernel part can panic, which no verifier takes: {} is called; look for indexing, \
             slicing, division, unwrap and checked arithmetic",
            panics.join(", ")
        );
    }
    let mut programs = 0;
    for section in file.sections() {
        let name = section.name().unwrap_or_default();
        let variable = VARIABLES.iter().any(|kind| name == *kind || name.starts_with(&format!("{kind}.")));
        if variable && section.size() > 0 {
            bail!("the kernel part has {} bytes of variables in {name}: keep state in maps", section.size());
        }
        if section.kind() != SectionKind::Text {
            continue;
        }
        let code = section.data().context("a section of code has no bytes")?;
        if let Some(at) = endless_loop(code) {
            bail!(
                "the kernel part loops for ever at instruction {at} of {name}: a panic handler that \
                 was inlined, most likely"
            );
        }
        programs += usize::from(name != ".text" && !code.is_empty());
    }
    if programs == 0 {
        bail!("the kernel part's object holds no program");
    }
    if file.section_by_name(".BTF").is_none() || file.section_by_name(".BTF.ext").is_none() {
        bail!("the kernel part's object has no BTF: was it linked with --btf?");
    }
    Ok(())
}

/// The first instruction that jumps to itself.
fn endless_loop(code: &[u8]) -> Option<usize> {
    code.chunks_exact(INSTRUCTION).position(|instruction| {
        let [operation, _, low, high, immediate @ ..] = instruction else {
            return false;
        };
        let short = i16::from_le_bytes([*low, *high]);
        match *operation {
            JUMP => short == -1,
            JUMP_LONG => immediate == (-1_i32).to_le_bytes(),
            _ => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use object::{
        Architecture, BinaryFormat, Endianness, SymbolFlags, SymbolScope,
        write::{Object, Symbol, SymbolSection},
    };

    use super::*;

    /// `r0 = 0; exit`.
    const FINE: [u8; 16] = [0xb7, 0, 0, 0, 0, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0];

    /// An object of one program and one function, as bpf-linker would leave it.
    fn sample(code: &[u8], function: &str, variables: Option<&str>) -> Vec<u8> {
        let mut object = Object::new(BinaryFormat::Elf, Architecture::Bpf, Endianness::Little);
        let program = object.add_section(Vec::new(), b"uprobe".to_vec(), SectionKind::Text);
        object.append_section_data(program, code, 8);
        object.add_symbol(Symbol {
            name: function.as_bytes().to_vec(),
            value: 0,
            size: code.len() as u64,
            kind: SymbolKind::Text,
            scope: SymbolScope::Linkage,
            weak: false,
            section: SymbolSection::Section(program),
            flags: SymbolFlags::None,
        });
        for name in [".BTF", ".BTF.ext", ".debug_info"] {
            let section = object.add_section(Vec::new(), name.into(), SectionKind::Other);
            object.append_section_data(section, b"some bytes of it", 4);
        }
        if let Some(name) = variables {
            let section = object.add_section(Vec::new(), name.into(), SectionKind::Data);
            object.append_section_data(section, &[0; 8], 8);
        }
        object.write().unwrap()
    }

    fn refusal(object: &[u8]) -> String {
        inspect(object).unwrap_err().to_string()
    }

    #[test]
    fn a_plain_program_is_taken() {
        inspect(&sample(&FINE, "switch", None)).unwrap();
    }

    #[test]
    fn a_function_that_panics_is_refused_by_name() {
        let error = refusal(&sample(&FINE, "_RNvNtC4core9panicking9panic_fmt", None));
        assert!(error.contains("panic_fmt is called"), "{error}");
        let error = refusal(&sample(&FINE, "rust_begin_unwind", None));
        assert!(error.contains("rust_begin_unwind is called"), "{error}");
    }

    #[test]
    fn a_jump_to_itself_is_refused() {
        for jump in [[JUMP, 0, 0xff, 0xff, 0, 0, 0, 0], [JUMP_LONG, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]] {
            let code = [&FINE[..], &jump].concat();
            let error = refusal(&sample(&code, "switch", None));
            assert!(error.contains("at instruction 2 of uprobe"), "{error}");
        }
    }

    #[test]
    fn variables_are_refused() {
        for name in [".data", ".data.rel", ".bss"] {
            let error = refusal(&sample(&FINE, "switch", Some(name)));
            assert!(error.contains(&format!("variables in {name}:")), "{error}");
        }
    }

    #[test]
    fn debug_sections_go_and_btf_stays() {
        let linked = sample(&FINE, "switch", None);
        let stripped = strip(&linked).unwrap();
        let file = object::File::parse(&*stripped).unwrap();
        assert!(file.section_by_name(".debug_info").is_none());
        let btf = file.section_by_name(".BTF").unwrap();
        assert_eq!(btf.data().unwrap(), b"some bytes of it");
        inspect(&stripped).unwrap();
    }
}
