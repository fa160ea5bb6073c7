//! One run: starts volume, replicas, clients and faults, waits, checks everything, and takes it
//! down.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use fastrand::Rng;
use holdfast_testkit::Upstream;
use tokio::task::JoinSet;

use crate::{
    Cli,
    client::Client,
    content::Blob,
    faults::FaultInjector,
    pull_through::PullThrough,
    reader::Shared,
    replicas::{self, Replica, Site},
    report::Report,
    verdict,
    volume::Volume,
    windows::{self, Windows},
    writer::Writer,
};

/// After so long nothing that a client gave up can happen any more, unless a replica stands still.
const SETTLED: Duration = Duration::from_secs(12);
/// How often memory and open files are measured.
const MEASURE_EVERY: Duration = Duration::from_secs(3);

/// Runs; true when no promise was broken.
///
/// # Errors
/// When the run cannot begin or its report not be written.
pub(crate) async fn run(cli: &Cli) -> anyhow::Result<bool> {
    let seed = cli.seed.unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(1, |now| now.as_secs())
    });
    println!(
        "soak: {} replicas for {} min, seed {seed}",
        cli.replicas, cli.minutes
    );
    let folder = tempfile::Builder::new()
        .prefix("holdfast-soak-")
        .tempdir()?;
    let place = folder.path().to_owned();
    let volume = Arc::new(Volume::mount(folder, cli.volume_mib)?);
    let report = Arc::new(Report::new(seed, cli.replicas.into()));
    let outcome = {
        let run = Run {
            cli,
            seed,
            folder: &place,
            volume: volume.clone(),
            report: report.clone(),
        };
        tokio::select! {
            outcome = run.perform() => outcome,
            () = ended_by_signal() => Err(anyhow::anyhow!("interrupted, everything is taken down")),
        }
    };
    if let Some(logs) = &cli.logs {
        keep_logs(&place, logs)?;
    }
    drop(volume);
    outcome?;
    let document = Arc::try_unwrap(report)
        .map_err(|_| anyhow::anyhow!("a task of the run still works"))?
        .finish();
    document.print();
    if let Some(file) = &cli.json {
        let text = serde_json::to_string_pretty(&document)?;
        std::fs::write(file, text + "\n").with_context(|| format!("write {}", file.display()))?;
    }
    Ok(document.violations.is_empty())
}

async fn ended_by_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

fn keep_logs(from: &Path, to: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let path = entry?.path();
        let kept = path
            .extension()
            .is_some_and(|extension| extension == "log" || extension == "yaml");
        if let (true, Some(name)) = (kept, path.file_name()) {
            std::fs::copy(&path, to.join(name))?;
        }
    }
    Ok(())
}

struct Run<'a> {
    cli: &'a Cli,
    seed: u64,
    folder: &'a Path,
    volume: Arc<Volume>,
    report: Arc<Report>,
}

impl Run<'_> {
    async fn perform(&self) -> anyhow::Result<()> {
        let upstream = Upstream::start().await;
        let data = self.volume.path().join("data");
        std::fs::create_dir_all(&data)?;
        let site = Site {
            binary: &self.cli.binary,
            folder: self.folder,
            data: &data,
            upstream: &upstream.host(),
        };
        let replicas = Arc::new(replicas::prepare(&site, self.cli.replicas.into())?);
        for replica in replicas.iter() {
            replica.start()?;
        }
        for replica in replicas.iter() {
            replica.ready().await?;
        }
        let windows = Arc::new(Windows::default());
        let urls = replicas.iter().map(|replica| replica.url.clone()).collect();
        let shared = Shared {
            client: Client::new(urls, self.report.clone(), windows.clone())?,
            ledger: Arc::default(),
            library: Arc::default(),
        };
        let mut random = Rng::with_seed(self.seed);
        let long_lived = random.usize(..replicas.len());
        let began = Instant::now();
        let end = began + Duration::from_secs_f64(self.cli.minutes * 60.0);
        let injector = Arc::new(FaultInjector {
            replicas: replicas.clone(),
            volume: self.volume.clone(),
            upstream: upstream.faults().clone(),
            windows: windows.clone(),
            report: self.report.clone(),
            end,
            long_lived,
            busy: tokio::sync::Mutex::default(),
        });
        let kinds = self
            .cli
            .faults
            .clone()
            .unwrap_or_else(|| windows::ALL.to_vec());
        let pull_through = PullThrough {
            client: shared.client.clone(),
            upstream,
            seed: self.seed,
        };
        let budget = Arc::new(AtomicU64::new((self.cli.volume_mib << 20) * 45 / 100));

        let mut tasks = JoinSet::new();
        self.clients(&mut tasks, &shared, &mut random, &budget, end);
        tasks.spawn(injector.run(kinds, random.u64(..)));
        let observer = observe(
            shared.clone(),
            replicas.clone(),
            self.report.clone(),
            self.volume.clone(),
            began,
            end,
        );
        tasks.spawn(observer);
        let pulled = pull_through.work(Rng::with_seed(random.u64(..)), end).await;
        while let Some(ended) = tasks.join_next().await {
            ended.context("a task of the soak failed")?;
        }
        let load = began.elapsed().as_secs_f64();
        self.report.lock().seconds = load;
        self.report.figure(
            "MiB of new content pushed",
            ((self.cli.volume_mib << 20) * 45 / 100 - budget.load(Ordering::Relaxed)) >> 20,
        );
        println!("load has ended after {load:.0} s, everything is read again");
        verdict::of(
            &shared,
            &pull_through,
            &pulled,
            &replicas,
            &self.volume,
            long_lived,
        )
        .await
    }

    fn clients(
        &self,
        tasks: &mut JoinSet<()>,
        shared: &Shared,
        random: &mut Rng,
        budget: &Arc<AtomicU64>,
        end: Instant,
    ) {
        let bases = (0..8_u64).map(|number| {
            let size = 20_000 + usize::try_from(number).unwrap_or(0) * 45_000;
            Blob::new(self.seed.wrapping_add(number), size)
        });
        let bases: Arc<Vec<Blob>> = Arc::new(bases.collect());
        for number in 0..self.cli.writers {
            let writer = Writer {
                shared: shared.clone(),
                random: Rng::with_seed(random.u64(..)),
                number,
                repos: vec![format!("soak/writer{number}"), "soak/shared".to_owned()],
                bases: bases.clone(),
                budget: budget.clone(),
                count: 0,
                images: Vec::new(),
            };
            tasks.spawn(writer.work(end));
        }
        for _ in 0..self.cli.readers {
            let random = Rng::with_seed(random.u64(..));
            tasks.spawn(shared.clone().read_on(random, end));
        }
    }
}

/// Measures, tells the progress, and lets lost requests rest when nobody can carry them out any
/// more.
async fn observe(
    shared: Shared,
    replicas: Arc<Vec<Replica>>,
    report: Arc<Report>,
    volume: Arc<Volume>,
    began: Instant,
    end: Instant,
) {
    let mut reported = began;
    while Instant::now() < end {
        tokio::time::sleep(MEASURE_EVERY).await;
        for (number, replica) in replicas.iter().enumerate() {
            if let Some(cost) = replica.cost(began) {
                report.cost(number, cost);
            }
        }
        let stopped = shared.client.windows().stopped_since();
        let settled = report.began().elapsed().saturating_sub(SETTLED);
        let stopped = stopped.map(|since| since.saturating_duration_since(report.began()));
        let rested = settled.min(stopped.unwrap_or(settled)).as_millis();
        let rested = u64::try_from(rested).unwrap_or(0);
        shared.ledger().close_late(rested);
        if reported.elapsed() >= Duration::from_secs(20) {
            reported = Instant::now();
            let (there, gone, open) = shared.ledger().counts();
            println!(
                "{:5.0} s: {there} keys present, {gone} absent, {open} open; {} MiB free; {} violations",
                began.elapsed().as_secs_f64(),
                volume.free() >> 20,
                report.broken()
            );
        }
    }
}
