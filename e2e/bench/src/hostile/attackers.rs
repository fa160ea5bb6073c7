//! The thread of the attackers. It has the lowest priority: attackers on other machines take no
//! processor time of this one.

use std::{
    fs,
    sync::mpsc,
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result};
use tokio::sync::oneshot;

use crate::process;

/// The lowest priority of a thread.
const NICE: i32 = 19;

/// Attackers that wait for a signal to begin; dropping this value ends them.
pub(super) struct Attackers<Ready, Order> {
    /// What they said when they were ready.
    pub(super) ready: Ready,
    begin: Option<oneshot::Sender<Order>>,
    stop: Option<oneshot::Sender<()>>,
    /// The thread below `/proc`.
    task: String,
    thread: Option<JoinHandle<()>>,
}

impl<Ready: Send + 'static, Order: Send + 'static> Attackers<Ready, Order> {
    /// Starts the thread. `work` prepares itself, sends what it has to say, waits for the order,
    /// and attacks until it is dropped.
    pub(super) fn prepare<Work>(
        work: impl FnOnce(mpsc::Sender<Ready>, oneshot::Receiver<Order>) -> Work + Send + 'static,
    ) -> Result<Self>
    where
        Work: Future<Output = Result<()>>,
    {
        let (tell_task, task) = mpsc::channel();
        let (tell, told) = mpsc::channel();
        let (begin, begun) = oneshot::channel();
        let (stop, stopped) = oneshot::channel();
        let thread = thread::spawn(move || {
            let outcome = attack(&tell_task, async move {
                tokio::select! {
                    outcome = work(tell, begun) => outcome,
                    _ = stopped => Ok(()),
                }
            });
            if let Err(error) = outcome {
                eprintln!("the attackers: {error:#}");
            }
        });
        let task = task.recv().context("the attackers' thread")?;
        let ready = told.recv().context("the attackers do not start")?;
        Ok(Self {
            ready,
            begin: Some(begin),
            stop: Some(stop),
            task,
            thread: Some(thread),
        })
    }

    /// Lets them begin.
    pub(super) fn begin(&mut self, order: Order) {
        if let Some(begin) = self.begin.take() {
            begin.send(order).ok();
        }
    }

    /// CPU seconds of the thread so far.
    pub(super) fn cpu_seconds(&self) -> f64 {
        process::cpu_seconds(&self.task).unwrap_or(0.0)
    }
}

impl<Ready, Order> Drop for Attackers<Ready, Order> {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

fn attack(tell: &mpsc::Sender<String>, work: impl Future<Output = Result<()>>) -> Result<()> {
    let task = fs::read_link("/proc/thread-self").context("read /proc/thread-self")?;
    tell.send(task.to_string_lossy().into_owned()).ok();
    // Of this thread alone: Linux keeps priorities by thread.
    rustix::process::nice(NICE).context("lower the attackers' priority")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(work)
}
