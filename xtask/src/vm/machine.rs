//! Boots a kernel with an image in qemu, with a deadline, and brings back its results.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use super::kernel::Kernel;
use crate::process;

/// How to boot.
pub(super) struct Machine<'a> {
    pub(super) kernel: &'a Kernel,
    pub(super) image: &'a Path,
    pub(super) preempt: &'a str,
    pub(super) deadline: Duration,
    /// Where the console and the results go.
    pub(super) folder: &'a Path,
}

/// What came back from a machine.
pub(super) struct Outcome {
    /// The machine's `/results`, unpacked.
    pub(super) results: PathBuf,
    pub(super) took: Duration,
}

/// Ends qemu when nobody waits for it any more.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail when it has ended already, which is what is wanted.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Machine<'_> {
    /// Boots, waits for power-off, unpacks the results.
    ///
    /// # Errors
    ///
    /// When the deadline passes, the machine ends without results, or boots
    /// with another preemption mode than it was asked for.
    pub(super) fn run(&self) -> anyhow::Result<Outcome> {
        if self.folder.exists() {
            fs::remove_dir_all(self.folder)?;
        }
        let results = self.folder.join("results");
        fs::create_dir_all(&results)?;
        let archive = self.folder.join("results.tar.gz");
        let started = Instant::now();
        self.boot(&archive, started)?;
        let took = started.elapsed();
        let size = fs::metadata(&archive).map_or(0, |metadata| metadata.len());
        if size == 0 {
            bail!("the machine ended without results: {}", self.last_words());
        }
        let mut unpack = Command::new("tar");
        unpack.arg("-xzf").arg(&archive).arg("-C").arg(&results);
        process::output(&mut unpack).context("the machine's results are damaged")?;
        let outcome = Outcome { results, took };
        self.check(&outcome)?;
        Ok(outcome)
    }

    fn boot(&self, archive: &Path, started: Instant) -> anyhow::Result<()> {
        let append = format!("rdinit=/init quiet console=ttyS0 panic=-1 preempt={}", self.preempt);
        // One processor: the targets must contend for it (and with two, 6.12 hung).
        // No cmpxchg16b on 6.x: qemu 7.2's leaves garbage in the flags when an interrupt
        // follows it, which ends in a double fault in the kernel's allocator. From 7.0
        // on task storage comes from kmalloc_nolock, which does nothing without it.
        let cpu = if self.kernel.release.starts_with("6.") { "max,-cx16" } else { "max" };
        let child = Command::new("qemu-system-x86_64")
            .args(["-M", "q35", "-cpu", cpu, "-m", "2048", "-smp", "1"])
            .args(["-accel", "tcg", "-display", "none", "-no-reboot", "-nodefaults"])
            .args(["-serial", "stdio", "-serial"])
            .arg(format!("file:{}", archive.display()))
            .arg("-kernel")
            .arg(&self.kernel.image)
            .arg("-initrd")
            .arg(self.image)
            .args(["-append", &append])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("qemu-system-x86_64 cannot be started: install qemu-system-x86")?;
        let mut running = Running(child);
        let console = running.0.stdout.take().context("qemu has no console")?;
        let complaints = running.0.stderr.take().context("qemu has no error stream")?;
        let mut log = fs::File::create(self.folder.join("console.log"))?;
        let (sender, lines) = sync_channel(64);
        let reader = thread::Builder::new().name("console".to_owned()).spawn(move || {
            for line in BufReader::new(console).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                if sender.send(line).is_err() {
                    return;
                }
            }
        })?;
        let ended = loop {
            let left = self.deadline.saturating_sub(started.elapsed());
            match lines.recv_timeout(left) {
                Ok(line) => {
                    writeln!(log, "{line}")?;
                    if line.starts_with("vm: ") {
                        eprintln!("{line}");
                    }
                }
                Err(RecvTimeoutError::Disconnected) => break true,
                Err(RecvTimeoutError::Timeout) => break false,
            }
        };
        if !ended {
            bail!(
                "kernel {} did not finish within {} s (--deadline): {}",
                self.kernel.release,
                self.deadline.as_secs(),
                self.last_words()
            );
        }
        // The console is closed, so qemu is at its end and so is its reader.
        let status = running.0.wait()?;
        drop(reader.join());
        if !status.success() {
            let complaint = BufReader::new(complaints).lines().map_while(Result::ok).last();
            bail!("qemu failed ({status}): {}", complaint.unwrap_or_else(|| "no word".to_owned()));
        }
        Ok(())
    }

    fn check(&self, outcome: &Outcome) -> anyhow::Result<()> {
        let Outcome { results, took: _ } = outcome;
        let release = fs::read_to_string(results.join("release"))?;
        if release.trim() != self.kernel.release {
            bail!("kernel {} was asked for, {} ran", self.kernel.release, release.trim());
        }
        let preempt = fs::read_to_string(results.join("preempt"))?;
        if !preempt.contains(&format!("({})", self.preempt)) {
            bail!(
                "preempt={} was asked for, the kernel says `{}`: choose one that it offers",
                self.preempt,
                preempt.trim()
            );
        }
        let exit = fs::read_to_string(results.join("exit")).unwrap_or_default();
        if exit.trim() != "0" {
            let log = fs::read_to_string(results.join("drive.log")).unwrap_or_default();
            let last = log.lines().last().unwrap_or("no word");
            bail!("the driver inside the machine failed ({}): {last}", exit.trim());
        }
        Ok(())
    }

    fn last_words(&self) -> String {
        let log = fs::read_to_string(self.folder.join("console.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
        let last = lines.get(lines.len().saturating_sub(3)..).unwrap_or_default();
        format!("the console ends with `{}`", last.join(" | "))
    }
}
