//! The faults of the replicas, of the volume and of the upstream.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use fastrand::Rng;
use rustix::process::Signal;

use crate::{
    replicas::Replica,
    report::Report,
    volume::Volume,
    windows::{Kind, Windows},
};

/// How long a replica stands still: longer than the 15 s after which its locks count as abandoned.
const STOPPED: (u64, u64) = (17_000, 21_000);

/// Injects faults into the replicas, the volume and the upstream.
pub(crate) struct FaultInjector {
    /// The processes.
    pub(crate) replicas: Arc<Vec<Replica>>,
    /// Their volume.
    pub(crate) volume: Arc<Volume>,
    /// The upstream's faults.
    pub(crate) upstream: holdfast_testkit::Faults,
    /// The record.
    pub(crate) windows: Arc<Windows>,
    /// Where broken expectations go.
    pub(crate) report: Arc<Report>,
    /// When it all ends.
    pub(crate) end: Instant,
    /// The replica that is neither killed nor restarted, so that its memory can be measured.
    pub(crate) long_lived: usize,
    /// Replicas that run and are not stopped; a fault takes one only while another one serves.
    pub(crate) busy: tokio::sync::Mutex<Vec<usize>>,
}

impl FaultInjector {
    /// Runs the faults of these kinds until the end.
    pub(crate) async fn run(self: Arc<Self>, kinds: Vec<Kind>, seed: u64) {
        let mut tasks = tokio::task::JoinSet::new();
        for kind in kinds {
            let (injector, random) = (self.clone(), Rng::with_seed(seed ^ kind as u64));
            tasks.spawn(async move { injector.repeat(kind, random).await });
        }
        while let Some(ended) = tasks.join_next().await {
            if let Err(error) = ended {
                self.report
                    .violation("soak", format!("a fault's task failed: {error}"));
            }
        }
    }

    async fn repeat(&self, kind: Kind, mut random: Rng) {
        let pause = match kind {
            Kind::Kill => (3_000, 9_000),
            Kind::Stop => (8_000, 25_000),
            Kind::Full => (15_000, 35_000),
            Kind::Term => (20_000, 40_000),
            Kind::Upstream => (6_000, 14_000),
        };
        loop {
            let wait = Duration::from_millis(random.u64(pause.0..pause.1));
            if Instant::now() + wait + Duration::from_secs(3) >= self.end {
                return;
            }
            tokio::time::sleep(wait).await;
            self.report.fault(kind);
            match kind {
                Kind::Kill | Kind::Term => self.restart(kind, &mut random).await,
                Kind::Stop => self.stop(&mut random).await,
                Kind::Full => self.fill(&mut random).await,
                Kind::Upstream => self.spoil(&mut random).await,
            }
        }
    }

    /// Takes a replica out of service, if two others stay.
    async fn take(&self, random: &mut Rng, spare: Option<usize>) -> Option<usize> {
        let mut busy = self.busy.lock().await;
        let free: Vec<usize> = (0..self.replicas.len())
            .filter(|at| !busy.contains(at) && Some(*at) != spare)
            .collect();
        if free.is_empty() || busy.len() + 1 >= self.replicas.len() {
            return None;
        }
        let at = free[random.usize(..free.len())];
        busy.push(at);
        Some(at)
    }

    async fn give_back(&self, at: usize) {
        self.busy.lock().await.retain(|other| *other != at);
    }

    async fn restart(&self, kind: Kind, random: &mut Rng) {
        let Some(at) = self.take(random, Some(self.long_lived)).await else {
            return;
        };
        let replica = &self.replicas[at];
        let window = self.windows.open(kind);
        let (signal, limit) = match kind {
            Kind::Term => (Signal::TERM, Duration::from_secs(40)),
            _ => (Signal::KILL, Duration::from_secs(5)),
        };
        replica.signal(signal);
        match replica.ended(limit).await {
            Ok(status) if kind == Kind::Term && !status.success() => {
                let text = format!("replica {at} got SIGTERM and ended with {status}");
                self.report.violation("process", text);
            }
            Ok(_) => {}
            Err(error) => self.report.violation("process", error.to_string()),
        }
        tokio::time::sleep(Duration::from_millis(random.u64(..1_500))).await;
        let started = async {
            replica.start()?;
            replica.ready().await
        };
        if let Err(error) = started.await {
            self.report.violation("process", format!("{error:#}"));
        }
        self.windows.close(window);
        self.give_back(at).await;
    }

    async fn stop(&self, random: &mut Rng) {
        let Some(at) = self.take(random, None).await else {
            return;
        };
        let window = self.windows.open(Kind::Stop);
        self.replicas[at].signal(Signal::STOP);
        let pause = Duration::from_millis(random.u64(STOPPED.0..STOPPED.1));
        tokio::time::sleep(pause).await;
        self.replicas[at].signal(Signal::CONT);
        // What it had taken before comes to pass now.
        tokio::time::sleep(Duration::from_secs(3)).await;
        self.windows.close(window);
        self.give_back(at).await;
    }

    async fn fill(&self, random: &mut Rng) {
        let window = self.windows.open(Kind::Full);
        let (volume, leave) = (self.volume.clone(), random.u64(..4) * (128 << 10));
        let end = Instant::now() + Duration::from_millis(random.u64(3_000..7_000));
        while Instant::now() < end {
            let volume = volume.clone();
            match tokio::task::spawn_blocking(move || volume.fill(leave)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => self.report.note(format!("the filler failed: {error}")),
                Err(error) => self.report.note(format!("the filler failed: {error}")),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        volume.clear();
        // Free room is looked at once a second.
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        self.windows.close(window);
    }

    async fn spoil(&self, random: &mut Rng) {
        use holdfast_testkit::{Fault, faults::Kind as Spoilt};
        let window = self.windows.open(Kind::Upstream);
        let fault = match random.u64(..4) {
            0 => Fault::new(Spoilt::Truncate {
                after: random.u64(..200_000),
            })
            .on("/blobs/")
            .times(3),
            1 => Fault::new(Spoilt::WrongBytes).on("/blobs/").times(1),
            2 => Fault::new(Spoilt::Error { status: 503 }).times(4),
            _ => Fault::new(Spoilt::Slow {
                bytes_per_second: 300_000,
            })
            .on("/blobs/"),
        };
        self.upstream.set(fault);
        let pause = Duration::from_millis(random.u64(1_500..4_000));
        tokio::time::sleep(pause).await;
        self.upstream.clear();
        self.windows.close(window);
    }
}
