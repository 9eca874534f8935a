//! `cargo xtask vm`: greenscope on other kernels, where it is preempted inside its programs.
//!
//! The development machine's kernel never preempts a uprobe program, so it cannot
//! show what goes wrong there. Here a kernel of Debian's boots in qemu with one
//! processor, several Python processes switch greenlets on it as fast as they can,
//! greenscope records them, and every stack and every clock that it reports is compared
//! with what the processes and the scheduler know to be true.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail};

use crate::{build_ebpf::toolchain, process, run, workspace};
use kernel::Series;

use machine::{Machine, Outcome};
use plan::Plan;
use python::Python;

mod cpio;
mod image;
mod judge;
mod kernel;
mod machine;
mod plan;
mod python;
mod verdict;

/// What the targets need from PyPI.
const REQUIREMENTS: &str = "tests/requirements.txt";

/// Boot other kernels in qemu and compare greenscope with the truth there
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Kernel series, may be repeated: 6.1, 6.12, 7.2 [default: those that preempt programs; all with --load-only]
    #[arg(long)]
    kernel: Vec<String>,
    /// Preemption mode [default: lazy on 7.2, full on 6.1 and 6.12]
    #[arg(long, value_parser = ["lazy", "full", "voluntary", "none"])]
    preempt: Option<String>,
    /// Python's version inside the machine
    #[arg(long, default_value = "3.13")]
    python: String,
    /// Only see whether the kernel takes the programs: doctor, and one second of record
    #[arg(long, conflicts_with = "rehearse")]
    load_only: bool,
    /// Without greenscope: check the targets' own books against a count in the kernel
    #[arg(long)]
    rehearse: bool,
    /// The greenscope to try [default: built from this tree]
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
    /// Refuse to install qemu, busybox-static, greenlet or gevent
    #[arg(long)]
    no_install: bool,
    /// Target processes that share the processor
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    processes: u32,
    /// Greenlets in each of them
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=64))]
    greenlets: u32,
    /// Depth of their deepest stacks
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u32).range(1..=64))]
    depth: u32,
    /// The scheduler's time slice, down to 100; 0 leaves it to the kernel
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 200)]
    slice_us: u32,
    /// Seconds of each recording
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Seconds until a machine that has not powered off is ended
    #[arg(long, default_value_t = 900)]
    deadline: u64,
    /// A fault that may be counted without failing the test, may be repeated
    #[arg(long, value_name = "NAME")]
    allow_fault: Vec<String>,
    /// Another option for `greenscope record`, may be repeated
    #[arg(long, value_name = "OPTION", allow_hyphen_values = true)]
    option: Vec<String>,
}

/// Runs the command.
///
/// # Errors
///
/// When something is missing, a machine does not come up, or anything that
/// greenscope reported there is wrong.
#[expect(clippy::needless_pass_by_value, reason = "every command takes its arguments this way")]
pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        bail!("the test machines are x86-64 Linux: run this there");
    }
    let root = workspace::root();
    let series: Vec<&Series> = if args.kernel.is_empty() {
        kernel::SERIES.iter().filter(|series| args.load_only || series.preempts_programs).collect()
    } else {
        args.kernel.iter().map(|name| Series::named(name)).collect::<Result<_, _>>()?
    };
    for one in &series {
        check_preempt(one, args.preempt.as_deref())?;
    }
    install_programs(!args.no_install)?;
    let greenscope = if args.rehearse { None } else { Some(greenscope(&args)?) };
    let python = python::find(&args.python, &root.join(REQUIREMENTS), !args.no_install)?;
    let mut bad = Vec::new();
    for one in series {
        let run = Run { args: &args, series: one };
        // A kernel that fails must not hide what the next one says.
        if let Err(error) = run.run(&python, greenscope.as_deref()) {
            println!("{}: {error:#}", one.name);
            bad.push(one.name);
        }
    }
    if !bad.is_empty() {
        bail!("failed on kernel {}: the lines above say why", bad.join(", "));
    }
    Ok(())
}

fn check_preempt(series: &Series, asked: Option<&str>) -> anyhow::Result<()> {
    match asked {
        Some(mode) if !series.preempt_modes.contains(&mode) => bail!(
            "kernel {} has no preempt={mode}: --preempt takes {} there",
            series.name,
            series.preempt_modes.join(", ")
        ),
        _ => Ok(()),
    }
}

/// Installs what boots the machines, after saying so.
fn install_programs(install: bool) -> anyhow::Result<()> {
    let missing: Vec<&str> = [("qemu-system-x86_64", "qemu-system-x86"), ("busybox", "busybox-static")]
        .into_iter()
        .filter(|(program, _)| process::find(program).is_none())
        .map(|(_, package)| package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let command = toolchain::apt(&missing);
    if !install {
        bail!("{} not installed: leave out --no-install, or `{command}`", missing.join(" "));
    }
    println!("running: apt-get update, {command} (--no-install refuses)");
    let update = if process::is_root() { "apt-get update" } else { "sudo apt-get update" };
    process::run(Command::new("sh").args(["-c", &format!("{update} --quiet && {command}")]))
}

/// The greenscope to try: the one named, else this tree's, built.
fn greenscope(args: &Args) -> anyhow::Result<PathBuf> {
    let path = match &args.binary {
        Some(path) => path.clone(),
        None => {
            run::build()?;
            workspace::greenscope()
        }
    };
    if !path.is_file() {
        bail!("{} does not exist: build it, or name another by --binary", path.display());
    }
    Ok(path)
}

/// One kernel's turn.
struct Run<'a> {
    args: &'a Args,
    series: &'static Series,
}

impl Run<'_> {
    fn run(&self, python: &Python, greenscope: Option<&Path>) -> anyhow::Result<()> {
        let Self { args, series } = self;
        let cache = workspace::target().join("vm");
        let kernel = kernel::fetch(series, &cache)?;
        let preempt = args.preempt.as_deref().unwrap_or(series.preempt);
        let name = format!("{}-{preempt}", series.name);
        let folder = cache.join("runs").join(&name);
        fs::create_dir_all(&folder)?;
        let archive = cache.join("runs").join(format!("{name}.cpio"));
        let plan = Plan::new(args, python);
        let size = contents(&workspace::root(), python, greenscope, &plan)?.write(&archive)?;
        eprintln!(
            "vm: booting {} with preempt={preempt}, an image of {} MiB, greenlet {}, gevent {}",
            kernel.release,
            size >> 20,
            python.greenlet,
            python.gevent
        );
        let machine = Machine {
            kernel: &kernel,
            image: &archive,
            preempt,
            deadline: Duration::from_secs(args.deadline),
            folder: &folder,
        };
        let Outcome { results, took } = machine.run()?;
        println!("kernel {}, preempt={preempt}: ran for {:.0} s", kernel.release, took.as_secs_f64());
        let programs_are_preempted = series.preempts_programs && ["full", "lazy"].contains(&preempt);
        let mut wrong = 0;
        for phase in &plan.phases {
            let folder = results.join(phase.name);
            wrong += if args.load_only {
                judge::load(&folder)?
            } else {
                judge::recording(phase.name, &folder, programs_are_preempted, &args.allow_fault)?
            };
        }
        if wrong > 0 {
            bail!("{wrong} found wrong; everything is kept in {}", folder.display());
        }
        Ok(())
    }
}

/// All that the machine has: a Python, the tests, what they are to do, greenscope.
fn contents(
    root: &Path,
    python: &Python,
    greenscope: Option<&Path>,
    plan: &Plan,
) -> anyhow::Result<image::Image> {
    let busybox = process::find("busybox").context("busybox is not here: install busybox-static")?;
    let mut image = image::Image::new(&root.join("tests/vm/init.sh"), &busybox)?;
    image.python(python)?;
    for (path, source) in [
        ("/test/drive.py", "tests/vm/drive.py"),
        ("/test/canary.py", "tests/vm/canary.py"),
        ("/test/preemption.py", "tests/targets/preemption.py"),
    ] {
        let source = root.join(source);
        let text = fs::read_to_string(&source)
            .with_context(|| format!("{} is missing from the source tree", source.display()))?;
        image.text(path, 0o644, text);
    }
    image.text("/test/plan.json", 0o644, serde_json::to_string_pretty(plan)?);
    let command = format!(
        "exec env HOME=/root PYTHONPATH=/site PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 {} /test/drive.py\n",
        python.executable.display()
    );
    image.text("/test/run", 0o755, command);
    if let Some(greenscope) = greenscope {
        image.program("/bin/greenscope", greenscope)?;
    }
    Ok(image)
}
