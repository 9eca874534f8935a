//! Debian's kernels for cloud machines, fetched without touching the system's own apt.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::process;

const MIRROR: &str = "http://deb.debian.org/debian";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const META_PACKAGE: &str = "linux-image-cloud-amd64";

/// A kernel series that the tests know, as data.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Series {
    /// What `--kernel` calls it.
    pub(super) name: &'static str,
    /// The Debian suite that ships it.
    suite: &'static str,
    /// The preemption in which an unsafe program shows itself soonest.
    pub(super) preempt: &'static str,
    /// What `preempt=` on its command line may say.
    pub(super) preempt_modes: &'static [&'static str],
    /// Whether its probes let another process run the same program in between.
    /// On 6.1 a mutex per processor is held around it (`uprobe_dispatcher` in
    /// <https://github.com/torvalds/linux/blob/v6.1/kernel/trace/trace_uprobe.c>).
    pub(super) preempts_programs: bool,
}

const CLASSIC_MODES: &[&str] = &["none", "voluntary", "full"];

pub(super) const SERIES: &[Series] = &[
    Series {
        name: "6.1",
        suite: "bookworm",
        preempt: "full",
        preempt_modes: CLASSIC_MODES,
        preempts_programs: false,
    },
    Series {
        name: "6.12",
        suite: "trixie",
        preempt: "full",
        preempt_modes: CLASSIC_MODES,
        preempts_programs: true,
    },
    Series {
        name: "7.2",
        suite: "sid",
        preempt: "lazy",
        preempt_modes: &["lazy", "full"],
        preempts_programs: true,
    },
];

impl Series {
    pub(super) fn named(name: &str) -> anyhow::Result<&'static Self> {
        SERIES.iter().find(|series| series.name == name).with_context(|| {
            let known: Vec<&str> = SERIES.iter().map(|series| series.name).collect();
            format!("no kernel `{name}` here: --kernel takes {}", known.join(", "))
        })
    }
}

/// A kernel that can be booted.
pub(super) struct Kernel {
    pub(super) image: PathBuf,
    /// Its full release, as `uname -r` will say it.
    pub(super) release: String,
}

/// Takes the kernel from `cache`, or downloads it into it.
///
/// # Errors
///
/// When Debian's archive cannot be reached, or the suite has moved on to
/// another series.
pub(super) fn fetch(series: &Series, cache: &Path) -> anyhow::Result<Kernel> {
    let folder = cache.join("kernels").join(series.name);
    let image = folder.join("vmlinuz");
    let release_file = folder.join("release");
    if image.is_file() {
        let release = fs::read_to_string(&release_file)?.trim().to_owned();
        return Ok(Kernel { image, release });
    }
    if !Path::new(KEYRING).is_file() {
        bail!("{KEYRING} is missing, so Debian's kernels can't be trusted: install debian-archive-keyring");
    }
    eprintln!("vm: fetching {META_PACKAGE} of {} ({}) from {MIRROR}", series.suite, series.name);
    let work = folder.join("work");
    if work.exists() {
        fs::remove_dir_all(&work)?;
    }
    let apt = Apt::new(&work, series.suite)?;
    let found = apt.download_kernel()?;
    let name = found.file_name().unwrap_or_default().to_string_lossy().into_owned();
    // boot/vmlinuz-RELEASE, or usr/lib/modules/RELEASE/vmlinuz from 7.2 on.
    let release = match name.strip_prefix("vmlinuz-") {
        Some(release) => release.to_owned(),
        None => found
            .parent()
            .and_then(Path::file_name)
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default(),
    };
    if !release.strip_prefix(series.name).is_some_and(|rest| rest.starts_with(['.', '-', '+'])) {
        bail!(
            "{} ships kernel {release} now, not {}: change the series in xtask/src/vm/kernel.rs",
            series.suite,
            series.name
        );
    }
    fs::write(&release_file, format!("{release}\n"))?;
    fs::rename(&found, &image)?;
    fs::remove_dir_all(&work)?;
    Ok(Kernel { image, release })
}

/// apt with its sources, lists and caches in a folder of its own.
struct Apt {
    folder: PathBuf,
    options: Vec<String>,
}

impl Apt {
    fn new(folder: &Path, suite: &str) -> anyhow::Result<Self> {
        for part in ["sources", "state/lists/partial", "cache/archives/partial", "download"] {
            let path = folder.join(part);
            fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        }
        fs::write(
            folder.join("sources/kernel.sources"),
            format!("Types: deb\nURIs: {MIRROR}\nSuites: {suite}\nComponents: main\nSigned-By: {KEYRING}\n"),
        )?;
        fs::write(folder.join("state/status"), "")?;
        let at = |part: &str| folder.join(part).display().to_string();
        let options = [
            "Dir::Etc::SourceList=/dev/null".to_owned(),
            format!("Dir::Etc::SourceParts={}", at("sources")),
            format!("Dir::State={}", at("state")),
            format!("Dir::State::Lists={}", at("state/lists")),
            format!("Dir::State::status={}", at("state/status")),
            format!("Dir::Cache={}", at("cache")),
            "APT::Architecture=amd64".to_owned(),
            "APT::Architectures=amd64".to_owned(),
            "APT::Sandbox::User=".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
            "Acquire::Retries=3".to_owned(),
        ];
        Ok(Self {
            folder: folder.to_owned(),
            options: options.into_iter().flat_map(|option| ["-o".to_owned(), option]).collect(),
        })
    }

    fn run(&self, program: &str, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new(program);
        command.args(arguments).args(&self.options).current_dir(self.folder.join("download"));
        process::output(&mut command)
    }

    /// Follows the meta package to the one that holds the kernel, and unpacks it.
    fn download_kernel(&self) -> anyhow::Result<PathBuf> {
        self.run("apt-get", &["update"])?;
        let mut package = META_PACKAGE.to_owned();
        // The meta package names the image; up to trixie that is the kernel, in
        // sid it names a package of binaries in its turn.
        for _ in 0..3 {
            let depends = self.run("apt-cache", &["depends", &package])?;
            package = kernel_dependency(&depends)
                .with_context(|| format!("Debian's {package} names no kernel package"))?;
            self.run("apt-get", &["download", &package])?;
            let tree = self.folder.join("tree");
            let archive = first_with_suffix(&self.folder.join("download"), ".deb", &package)?;
            let mut unpack = Command::new("dpkg-deb");
            process::output(unpack.arg("-x").arg(&archive).arg(&tree))?;
            if let Some(image) = find_kernel(&tree)? {
                return Ok(image);
            }
        }
        bail!("no vmlinuz in {package} nor in what led to it: Debian changed its kernel packages")
    }
}

/// The first dependency, in `apt-cache depends`, on a package of one kernel release.
fn kernel_dependency(depends: &str) -> Option<String> {
    depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| {
            ["linux-image-", "linux-binary-"].iter().any(|start| {
                name.strip_prefix(start).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
            })
        })
        .map(str::to_owned)
}

fn first_with_suffix(folder: &Path, suffix: &str, start: &str) -> anyhow::Result<PathBuf> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with(start) && name.ends_with(suffix) {
            return Ok(path);
        }
    }
    bail!("apt-get said it downloaded {start}, but {} has no such file", folder.display())
}

fn find_kernel(tree: &Path) -> anyhow::Result<Option<PathBuf>> {
    let mut folders = vec![tree.join("boot")];
    let modules = tree.join("usr/lib/modules");
    if modules.is_dir() {
        for entry in fs::read_dir(modules)? {
            folders.push(entry?.path());
        }
    }
    for folder in folders.into_iter().filter(|folder| folder.is_dir()) {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with("vmlinuz") {
                return Ok(Some(entry.path()));
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_meta_package_leads_to_the_kernel() {
        let check = |depends: &str, expect: Option<&str>| {
            assert_eq!(kernel_dependency(depends).as_deref(), expect);
        };
        check(
            "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-50-cloud-amd64\n",
            Some("linux-image-6.1.0-50-cloud-amd64"),
        );
        check(
            "linux-image-7.2.13+deb14-cloud-amd64\n |Depends: dracut\n  Depends: linux-base-7.2.13+deb14-cloud-amd64\n  Depends: linux-binary-7.2.13+deb14-cloud-amd64\n",
            Some("linux-binary-7.2.13+deb14-cloud-amd64"),
        );
        check("linux-image-cloud-amd64\n  Suggests: linux-image-6.1\n", None);
        check("x\n  Depends: linux-image-cloud-amd64\n", None);
    }

    #[test]
    fn an_unknown_series_names_the_known_ones() {
        let error = Series::named("5.4").unwrap_err().to_string();
        assert_eq!(error, "no kernel `5.4` here: --kernel takes 6.1, 6.12, 7.2");
        assert_eq!(Series::named("7.2").unwrap().preempt, "lazy");
    }

    #[test]
    fn a_kernel_is_found_in_both_layouts() {
        for path in ["boot/vmlinuz-6.1.0-50-cloud-amd64", "usr/lib/modules/7.2.13/vmlinuz"] {
            let tree = tempfile::tempdir().unwrap();
            let image = tree.path().join(path);
            assert_eq!(find_kernel(tree.path()).unwrap(), None);
            fs::create_dir_all(image.parent().unwrap()).unwrap();
            fs::write(&image, "").unwrap();
            assert_eq!(find_kernel(tree.path()).unwrap(), Some(image));
        }
    }
}
