//! Background processes that outlive the program that started them.
//!
//! A process is recorded with its start time: a number that the kernel has given to another
//! process since is never signalled.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

/// One process, told apart from any later one with the same number.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub(crate) struct Process {
    id: i32,
    start_time: u64,
}

impl Process {
    /// The process that has this number now.
    pub(crate) fn of(id: i32) -> Option<Self> {
        Some(Self {
            id,
            start_time: start_time(id)?,
        })
    }

    /// Starts a command in a process group of its own, its output going to `log`.
    pub(crate) fn spawn(command: &mut Command, log: &Path) -> Result<Self> {
        let output = File::options().create(true).append(true).open(log)?;
        let mut child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        let process = Self::of(i32::try_from(child.id())?).context("ended at once")?;
        // Waiting reaps the process; without this a process that ended would seem alive.
        std::thread::spawn(move || child.wait());
        Ok(process)
    }

    /// Reads a record that [`Self::record`] wrote.
    pub(crate) fn recorded(path: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }

    /// Writes down which process this is.
    pub(crate) fn record(self, path: &Path) -> Result<()> {
        fs::write(path, serde_json::to_vec(&self)?)
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Whether it still runs.
    pub(crate) fn is_alive(self) -> bool {
        start_time(self.id) == Some(self.start_time)
    }

    /// Ends it: politely, then after `patience` for good.
    pub(crate) fn stop(self, patience: Duration) -> Result<()> {
        self.signal(Signal::TERM);
        if self.wait_until_gone(patience) {
            return Ok(());
        }
        self.kill();
        if !self.wait_until_gone(Duration::from_secs(10)) {
            bail!("process {} does not end", self.id);
        }
        Ok(())
    }

    /// Ends it at once.
    pub(crate) fn kill(self) {
        self.signal(Signal::KILL);
    }

    fn wait_until_gone(self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while self.is_alive() {
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        true
    }

    fn signal(self, signal: Signal) {
        if let Some(id) = Pid::from_raw(self.id)
            && self.is_alive()
        {
            // It may have ended in between, which is what was wanted.
            kill_process(id, signal).ok();
        }
    }
}

/// Field 22 of the process's `stat`; none if it has ended, a zombie included.
fn start_time(id: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name in parentheses may hold anything, so count from its end.
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split_whitespace();
    if fields.next()? == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_start_time_is_another_process() {
        let own = Process::of(std::process::id().try_into().unwrap()).unwrap();
        assert!(own.is_alive());
        assert!(
            !Process {
                start_time: own.start_time + 1,
                ..own
            }
            .is_alive()
        );
    }
}
