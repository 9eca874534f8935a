//! The compiler and linker of the kernel part: Debian's, else rustup's nightly.
//!
//! `core` is built for the bpf target from source, which stable Rust from rustup
//! cannot do. Debian packages the source with its compiler, and
//! `RUSTC_BOOTSTRAP=1` opens what is needed of it; rustup has it for nightly.

use std::{
    fmt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, bail};

use crate::{process, workspace};

/// The target of the kernel part.
pub(super) const TARGET: &str = "bpfel-unknown-none";

/// Oldest compiler, from `rust-version` in Cargo.toml.
const OLDEST: (u32, u32) = (1, 95);

/// The LLVM of Debian's compiler, which bpf-linker must be built with.
pub(crate) const LLVM_PACKAGE: &str = "llvm-22-dev";

/// The release of bpf-linker that the committed object is built with.
pub(crate) const LINKER: &str = "0.13.0";

/// Compiler flags; each reaches `core` and every dependency.
///
/// Debug information must come from here: BTF's function records are made of it,
/// and with them missing for one function of `.text` the kernel refuses all
/// (aya-rs/aya#521, aya-rs/aya#1649).
const FLAGS: [&str; 4] = [
    "--cfg=bpf_target_arch=\"x86_64\"",
    "-Cdebuginfo=2",
    "-Clink-arg=--btf",
    // With it every memset, of 16 bytes too, is a call of a loop over single bytes.
    "-Clink-arg=--disable-expand-memcpy-in-order",
];

/// Cargo's part of the flags.
const CARGO_FLAGS: [&str; 8] =
    ["--package", "profiler-ebpf", "--target", TARGET, "--release", "--locked", "-Z", "build-std=core"];

/// A toolchain that can build the kernel part.
pub(crate) struct Toolchain {
    cargo: PathBuf,
    rustc: PathBuf,
    cargo_clippy: Option<PathBuf>,
    linker: PathBuf,
    /// Folder that holds `library/core`.
    rust_src: PathBuf,
    /// For the record: `rustc 1.96.0 (…)`, its LLVM, bpf-linker, its LLVM.
    pub(super) versions: Versions,
}

/// What the bytes of the object depend on beside its sources.
#[derive(Debug, PartialEq, Eq, Clone)]
pub(super) struct Versions {
    pub(super) rustc: String,
    pub(super) rustc_llvm: String,
    pub(super) linker: String,
    pub(super) linker_llvm: String,
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.versions.fmt(f)
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rustc, rustc_llvm, linker, linker_llvm } = self;
        write!(f, "{rustc} (LLVM {rustc_llvm}), {linker} (LLVM {linker_llvm})")
    }
}

/// One thing that is missing, with the command that mends it.
#[derive(Debug, Clone)]
pub(crate) struct Missing {
    /// What is missing, in a few words.
    pub(crate) what: String,
    /// The command line that mends it.
    pub(crate) fix: String,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (mend it: {})", self.what, self.fix)
    }
}

/// What was looked for: the toolchain, or what it lacks.
pub(crate) enum Found {
    /// It can build.
    Complete(Box<Toolchain>),
    /// It cannot, for these reasons.
    Lacking(Vec<Missing>),
}

impl Found {
    /// The toolchain, or the reasons in one line.
    pub(crate) fn into_complete(self) -> Result<Toolchain, String> {
        match self {
            Self::Complete(toolchain) => Ok(*toolchain),
            Self::Lacking(missing) => {
                Err(missing.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
            }
        }
    }

    /// The toolchain, or an error that names what is missing.
    ///
    /// # Errors
    ///
    /// When something is missing.
    pub(crate) fn complete(self) -> Result<Toolchain> {
        match self.into_complete() {
            Ok(toolchain) => Ok(toolchain),
            Err(missing) => bail!("the kernel part cannot be built: missing {missing}"),
        }
    }
}

/// Cargo, rustc and the library's source, before the linker is looked for.
struct Compiler {
    cargo: PathBuf,
    rustc: PathBuf,
    cargo_clippy: Option<PathBuf>,
    rust_src: PathBuf,
}

/// Look for a toolchain on this machine; install nothing.
///
/// # Errors
///
/// When a tool that is there does not tell its version.
pub(crate) fn find() -> Result<Found> {
    let debian = debian();
    let compiler = match debian {
        Ok(compiler) => Ok(compiler),
        Err(missing) => nightly().ok_or(missing),
    };
    let linker = process::find("bpf-linker");
    let (compiler, linker) = match (compiler, linker) {
        (Ok(compiler), Some(linker)) => (compiler, linker),
        (compiler, linker) => {
            let mut missing = compiler.err().unwrap_or_default();
            if linker.is_none() {
                missing.extend(lacking_linker());
            }
            return Ok(Found::Lacking(missing));
        }
    };
    let Compiler { cargo, rustc, cargo_clippy, rust_src } = compiler;
    let versions = Versions {
        rustc: process::output(clean(&rustc).arg("--version"))?.trim().to_owned(),
        rustc_llvm: llvm_of_rustc(&rustc)?,
        linker: process::output(clean(&linker).arg("--version"))?.trim().to_owned(),
        linker_llvm: llvm_of_linker(&linker),
    };
    Ok(Found::Complete(Box::new(Toolchain { cargo, rustc, cargo_clippy, linker, rust_src, versions })))
}

/// The command that builds bpf-linker, and the library that it needs.
fn lacking_linker() -> Vec<Missing> {
    let mut missing = Vec::new();
    let llvm = Path::new("/usr/lib/llvm-22");
    if is_debian() && !llvm.join("include/llvm").exists() {
        missing.push(Missing {
            what: format!("{LLVM_PACKAGE}, which bpf-linker is built with"),
            fix: apt(&[LLVM_PACKAGE]),
        });
    }
    let fix = if is_debian() {
        format!(
            "LLVM_PREFIX={} cargo install bpf-linker --version {LINKER} --locked \
             --no-default-features --features llvm-22",
            llvm.display()
        )
    } else {
        format!("cargo install bpf-linker --version {LINKER} --locked")
    };
    missing.push(Missing { what: "bpf-linker".to_owned(), fix });
    missing
}

/// The command line that installs Debian packages.
pub(crate) fn apt(packages: &[&str]) -> String {
    let sudo = if process::is_root() { "" } else { "sudo " };
    format!("{sudo}apt-get install --yes --no-install-recommends {}", packages.join(" "))
}

/// Whether packages come by apt here.
pub(crate) fn has_apt() -> bool {
    process::find("apt-get").is_some()
}

/// Whether this is Debian: others have apt as well, and not this compiler in it.
fn is_debian() -> bool {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    has_apt() && release.lines().any(|line| line.trim() == "ID=debian")
}

/// The compiler in /usr/bin with its source, or what is missing of it.
fn debian() -> Result<Compiler, Vec<Missing>> {
    let bin = Path::new("/usr/bin");
    let (rustc, cargo) = (bin.join("rustc"), bin.join("cargo"));
    let lack = |what: String, packages: &[&str]| {
        let fix = if is_debian() {
            apt(packages)
        } else {
            "rustup toolchain install nightly --component rust-src".to_owned()
        };
        Missing { what, fix }
    };
    let too_old = |program: &Path| {
        process::output(clean(program).arg("--version"))
            .ok()
            .and_then(|text| version(&text))
            .is_none_or(|version| version < OLDEST)
    };
    let mut missing = Vec::new();
    for (program, packages) in [(&rustc, &["rustc-web"][..]), (&cargo, &["cargo-web", "rust-web-clippy"])] {
        if too_old(program) {
            let (major, minor) = OLDEST;
            let what = format!("{} of {major}.{minor} or later", program.display());
            missing.push(lack(what, packages));
        }
    }
    let sysroot = process::output(clean(&rustc).args(["--print", "sysroot"]))
        .map_or_else(|_| PathBuf::from("/usr"), |text| PathBuf::from(text.trim()));
    let rust_src = sysroot.join("lib/rustlib/src/rust");
    if !rust_src.join("library/core").exists() {
        missing.push(lack("Rust's library source (rust-src)".to_owned(), &["rust-web-src"]));
    }
    if !missing.is_empty() {
        return Err(missing);
    }
    Ok(Compiler {
        cargo,
        rustc,
        cargo_clippy: Some(bin.join("cargo-clippy")).filter(|path| process::is_executable(path)),
        rust_src,
    })
}

/// rustup's nightly with its source, if it is installed.
fn nightly() -> Option<Compiler> {
    let rustup = process::find("rustup")?;
    let which = |program: &str| {
        process::output(Command::new(&rustup).args(["which", "--toolchain", "nightly", program]))
            .ok()
            .map(|text| PathBuf::from(text.trim()))
    };
    let (rustc, cargo) = (which("rustc")?, which("cargo")?);
    let sysroot = process::output(clean(&rustc).args(["--print", "sysroot"])).ok()?;
    let rust_src = Path::new(sysroot.trim()).join("lib/rustlib/src/rust");
    rust_src.join("library/core").exists().then_some(Compiler {
        cargo,
        rustc,
        cargo_clippy: which("cargo-clippy"),
        rust_src,
    })
}

/// `(major, minor)` of `rustc 1.96.0 (…)`.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split_whitespace().nth(1)?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// The LLVM that a compiler names in its verbose version.
fn llvm_of_rustc(rustc: &Path) -> Result<String> {
    let text = process::output(clean(rustc).args(["--version", "--verbose"]))?;
    Ok(text.lines().find_map(|line| line.strip_prefix("LLVM version: ")).unwrap_or("unknown").to_owned())
}

/// The LLVM that bpf-linker loads, by the configuration tool beside the library.
fn llvm_of_linker(linker: &Path) -> String {
    let libraries = process::output(clean(Path::new("ldd")).arg(linker)).unwrap_or_default();
    let library = libraries
        .lines()
        .filter(|line| line.trim_start().starts_with("libLLVM"))
        .find_map(|line| line.split_whitespace().nth(2))
        .map(Path::new);
    let Some(library) = library else {
        return "linked in".to_owned();
    };
    let config = library.parent().map(|folder| folder.with_file_name("bin").join("llvm-config"));
    config
        .and_then(|config| process::output(clean(&config).arg("--version")).ok())
        .map_or_else(|| library.display().to_string(), |version| version.trim().to_owned())
}

/// A command without what the cargo and the rustup that run us have set.
fn clean(program: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let of_cargo = text.starts_with("CARGO")
            && text != "CARGO_HOME"
            && !text.starts_with("CARGO_NET")
            && !text.starts_with("CARGO_HTTP")
            && !text.starts_with("CARGO_REGISTR");
        let of_rust = matches!(
            &*text,
            "RUSTC"
                | "RUSTDOC"
                | "RUSTFLAGS"
                | "RUSTC_WRAPPER"
                | "RUSTC_WORKSPACE_WRAPPER"
                | "RUSTUP_TOOLCHAIN"
                | "RUST_RECURSION_COUNT"
                | "LD_LIBRARY_PATH"
        );
        if of_cargo || of_rust {
            command.env_remove(&name);
        }
    }
    command
}

/// What is in the hash of the sources beside the files.
pub(super) fn flags() -> String {
    let compiler = FLAGS.join(" ");
    let cargo = CARGO_FLAGS.join(" ");
    format!("{cargo} {compiler}")
}

/// What cargo and the linker leave.
pub(super) fn output() -> PathBuf {
    folder().join(TARGET).join("release").join("greenscope-ebpf")
}

/// The target folder of its own: two toolchains in one would rebuild each other's.
fn folder() -> PathBuf {
    workspace::target().join("ebpf")
}

impl Toolchain {
    /// Whether the kernel part can be linted.
    pub(crate) fn has_clippy(&self) -> bool {
        self.cargo_clippy.is_some()
    }

    /// `cargo SUBCOMMAND` on the kernel part; `clippy` takes the toolchain's own.
    pub(crate) fn cargo(&self, subcommand: &str) -> Command {
        // /usr/bin/cargo looks for subcommands in cargo's home first, where rustup's
        // clippy lies: that one has no source of core. So the right one is called.
        let program = match (&self.cargo_clippy, subcommand) {
            (Some(clippy), "clippy") => clippy,
            _ => &self.cargo,
        };
        let mut command = clean(program);
        command
            .arg(subcommand)
            .args(CARGO_FLAGS)
            .arg("--target-dir")
            .arg(folder())
            .current_dir(workspace::root())
            .env("CARGO", &self.cargo)
            .env("RUSTC", &self.rustc)
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_ENCODED_RUSTFLAGS", self.encoded_flags())
            .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &self.linker)
            .env("PATH", self.path());
        command
    }

    /// Our `PATH` with the toolchain's folder first.
    fn path(&self) -> std::ffi::OsString {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = self.cargo.parent().map(Path::to_owned).into_iter().chain(std::env::split_paths(&path));
        std::env::join_paths(folders).unwrap_or(path)
    }

    /// The flags with the paths of this machine mapped to fixed names, so that the
    /// object's bytes depend neither on the folder nor on who built it.
    fn encoded_flags(&self) -> String {
        let mut flags: Vec<String> = FLAGS.iter().map(ToString::to_string).collect();
        let mut map = |from: &Path, to: &str| {
            flags.push(format!("--remap-path-prefix={}={to}", from.display()));
        };
        map(&workspace::root(), "/greenscope");
        if let Some(home) = process::cargo_home() {
            map(&home, "/cargo");
        }
        map(&self.rust_src, "/rust");
        if let Ok(real) = self.rust_src.canonicalize() {
            map(&real, "/rust");
        }
        flags.join("\x1f")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_read() {
        assert_eq!(version("rustc 1.96.0 (ac68faa20 2026-05-25)"), Some((1, 96)));
        assert_eq!(version("rustc 1.98.0-nightly (0 2026-01-01)"), Some((1, 98)));
        assert_eq!(version("cargo"), None);
    }
}
