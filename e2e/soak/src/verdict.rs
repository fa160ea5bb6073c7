//! After the load: every key through every replica, every file on the volume, and what the
//! processes cost.

use std::{
    fs,
    io::Read as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use holdfast_testkit::Image;
use rustix::process::Signal;
use sha2::{Digest as _, Sha256, Sha512};

use crate::{
    pull_through::PullThrough,
    reader::Shared,
    replicas::Replica,
    report::{Report, slope},
    volume::Volume,
};

/// Growth of memory per minute that counts as a leak, when it also adds up to [`RSS_TOTAL`].
const RSS_SLOPE: f64 = (2 << 20) as f64;
const RSS_TOTAL: f64 = (24 << 20) as f64;
/// Files that an idle replica may have open beyond those of a fresh one.
const FILES_OVER: u64 = 24;
/// The first part of a run, in which caches and pools grow to their size, says nothing of leaks.
const WARM_SECONDS: f64 = 60.0;

/// Looks at everything; findings go to the report.
///
/// # Errors
/// When the look itself fails.
pub(crate) async fn of(
    shared: &Shared,
    pull_through: &PullThrough,
    pulled: &[(String, Image)],
    replicas: &[Replica],
    volume: &Volume,
    long_lived: usize,
) -> anyhow::Result<()> {
    let report = shared.client.report();
    // The faults have ended; what a replica took before it stood still has come to pass.
    tokio::time::sleep(Duration::from_secs(5)).await;
    for replica in replicas {
        replica.ready().await?;
    }
    // The other replicas have just started: they show how many files an idle process has open.
    shared.ledger().close_late(u64::MAX);
    let reads = shared.check_all().await;
    report.figure("final reads", reads);
    let repos: std::collections::BTreeSet<String> = shared
        .ledger()
        .keys()
        .into_iter()
        .map(|key| key.repo)
        .collect();
    for repo in &repos {
        for replica in 0..replicas.len() {
            shared.check_list(replica, repo, |_| true).await;
        }
    }
    pull_through.check(pulled).await;
    let (there, gone, open) = shared.ledger().counts();
    report.figure("keys present", there);
    report.figure("keys deleted or never written", gone);
    if open > 0 {
        report.note(format!(
            "{open} keys could not be settled by the final reads"
        ));
    }
    {
        let ledger = shared.ledger();
        report.figure("acknowledged writes", ledger.acknowledged);
        report.figure("writes without an answer", ledger.unknown);
    }
    costs(report, replicas, long_lived).await;
    for replica in replicas {
        replica.signal(Signal::TERM);
    }
    for (number, replica) in replicas.iter().enumerate() {
        match replica.ended(Duration::from_secs(40)).await {
            Ok(status) if status.success() => {}
            Ok(status) => {
                report.violation("process", format!("replica {number} ended with {status}"));
            }
            Err(error) => {
                report.violation("process", error.to_string());
            }
        }
        let (panics, errors) = replica.complaints();
        for panic in panics {
            report.violation("no panic", format!("replica {number}: {panic}"));
        }
        report.figure(
            &format!("replica {number}: lines of errors in its log"),
            errors,
        );
        let starts = *replica.starts.lock();
        report.figure(&format!("replica {number}: starts"), starts);
    }
    files(report, &volume.path().join("data/docker/registry/v2"))
}

/// Memory and open files of the replica that lived all the time, and of all when idle.
async fn costs(report: &Report, replicas: &[Replica], long_lived: usize) {
    // Idle connections and caches are given the time to go.
    tokio::time::sleep(Duration::from_secs(6)).await;
    let now = Instant::now();
    let idle: Vec<_> = replicas.iter().map(|replica| replica.cost(now)).collect();
    let series: Vec<(f64, f64)> = report
        .lock()
        .costs
        .get(long_lived)
        .into_iter()
        .flatten()
        .filter(|cost| cost.at > WARM_SECONDS)
        .map(|cost| (cost.at, cost.rss_bytes as f64))
        .collect();
    let (minute, total) = slope(&series);
    report.figure(
        "long-lived replica: growth of memory in KiB a minute",
        (minute / 1024.0).round(),
    );
    if minute > RSS_SLOPE && total > RSS_TOTAL {
        report.violation(
            "memory does not climb",
            format!(
                "replica {long_lived}: {:.1} MiB a minute",
                minute / f64::from(1 << 20)
            ),
        );
    }
    let peak = report
        .lock()
        .costs
        .iter()
        .flatten()
        .map(|cost| cost.rss_bytes)
        .max();
    report.figure("peak memory of a replica in MiB", peak.unwrap_or(0) >> 20);
    for (number, cost) in idle.iter().enumerate() {
        if let Some(cost) = cost {
            report.figure(
                &format!("replica {number}: open files when idle"),
                cost.open_files,
            );
            report.figure(
                &format!("replica {number}: memory when idle in MiB"),
                cost.rss_bytes >> 20,
            );
        }
    }
    let least = idle.iter().flatten().map(|cost| cost.open_files).min();
    if let (Some(Some(old)), Some(least)) = (idle.get(long_lived), least)
        && old.open_files > least + FILES_OVER
    {
        report.violation(
            "open files do not climb",
            format!(
                "replica {long_lived} has {} open when idle, a restarted one {least}",
                old.open_files
            ),
        );
    }
}

/// Every blob on the volume hashes to its name; what is left over is counted.
fn files(report: &Report, root: &Path) -> anyhow::Result<()> {
    let (mut blobs, mut leftovers) = (0_u64, 0_u64);
    let mut pending: Vec<PathBuf> = vec![root.to_owned()];
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            let path = entry.path();
            if entry.file_type()?.is_dir() {
                pending.push(path);
                continue;
            }
            if path.extension().is_some_and(|extension| extension == "tmp") {
                leftovers += 1;
            }
            let text = path
                .strip_prefix(root)
                .unwrap_or(&path)
                .to_string_lossy()
                .into_owned();
            let parts: Vec<&str> = text.split('/').collect();
            if let ["blobs", algorithm, _, hex, "data"] = parts.as_slice() {
                blobs += 1;
                let found = hash(&path, algorithm)?;
                if found != *hex {
                    report.violation(
                        "nothing half-written is visible",
                        format!(
                            "{text} hashes to {found}, {} bytes",
                            entry.metadata()?.len()
                        ),
                    );
                }
            }
        }
    }
    report.figure("blobs on the volume, all hashed", blobs);
    report.figure("temporary files left behind by kills", leftovers);
    Ok(())
}

fn hash(path: &Path, algorithm: &str) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.read_to_end(&mut bytes)?;
    Ok(match algorithm {
        "sha512" => hex::encode(Sha512::digest(&bytes)),
        _ => hex::encode(Sha256::digest(&bytes)),
    })
}
