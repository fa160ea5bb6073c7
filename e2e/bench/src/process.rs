//! Processes that are measured: started, asked for CPU time and memory by `/proc`, and ended by
//! their number.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

/// Ticks a second in `/proc/<pid>/stat`; Linux shows this number to user space on every machine.
const TICKS: f64 = 100.0;

/// What a process and its children have used.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// CPU seconds, user and system.
    pub(crate) cpu_seconds: f64,
    /// Highest resident memory, bytes.
    pub(crate) peak_rss_bytes: u64,
    /// Resident memory now, bytes.
    pub(crate) rss_bytes: u64,
}

/// A process that ends with its owner.
pub(crate) struct Process {
    child: Child,
}

impl Process {
    /// Starts a command; what it prints goes to `log`.
    pub(crate) fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let file = fs::File::options().create(true).append(true).open(log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("start {}", command.get_program().display()))?;
        Ok(Self { child })
    }

    /// What it and its children have used so far.
    pub(crate) fn usage(&self) -> Result<Usage> {
        let mut sum = Usage::default();
        for id in self.family() {
            let Some((cpu, (peak, now))) = cpu_seconds(&id.to_string()).zip(memory(id)) else {
                continue;
            };
            sum.cpu_seconds += cpu;
            sum.peak_rss_bytes += peak;
            sum.rss_bytes += now;
        }
        if sum.peak_rss_bytes == 0 {
            bail!("the process has ended");
        }
        Ok(sum)
    }

    /// Forgets the highest memory so far.
    pub(crate) fn reset_peak(&self) -> Result<()> {
        for id in self.family() {
            fs::write(format!("/proc/{id}/clear_refs"), "5").context("reset the peak of memory")?;
        }
        Ok(())
    }

    fn family(&self) -> Vec<u32> {
        let own = self.child.id();
        let children = fs::read_to_string(format!("/proc/{own}/task/{own}/children"));
        let children = children.unwrap_or_default();
        std::iter::once(own)
            .chain(children.split_whitespace().filter_map(|id| id.parse().ok()))
            .collect()
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(id) = i32::try_from(self.child.id())
            .ok()
            .and_then(rustix::process::Pid::from_raw)
            && !self.has_ended()
        {
            rustix::process::kill_process(id, rustix::process::Signal::TERM).ok();
        }
        let deadline = Instant::now() + Duration::from_secs(3);
        while !self.has_ended() {
            if Instant::now() > deadline {
                self.child.kill().ok();
                self.child.wait().ok();
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// CPU seconds, user and system, of a process or thread by its folder below `/proc`.
pub(crate) fn cpu_seconds(task: &str) -> Option<f64> {
    let text = fs::read_to_string(format!("/proc/{task}/stat")).ok()?;
    // The name in parentheses may hold anything, so count from its end.
    let (_, rest) = text.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at)?.parse::<f64>().ok();
    Some((ticks(11)? + ticks(12)?) / TICKS)
}

/// Highest and present resident memory, bytes.
fn memory(id: u32) -> Option<(u64, u64)> {
    let text = fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let bytes = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key))?;
        let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
        Some(kib << 10)
    };
    Some((bytes("VmHWM:")?, bytes("VmRSS:")?))
}
