//! The controller at the size of a large site: it starts beside existing workloads, idles, and then
//! pods are replaced.
//!
//! A real API server without nodes, the real chart, and the real controller and registry as
//! processes of their own; this program reports what kubelets and Kubernetes'
//! own controllers would report. The controller is measured from outside.

pub(crate) mod api;
mod audit;
mod measure;
pub(crate) mod release;
mod report;
mod site;

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use futures::{
    StreamExt as _, TryStreamExt as _,
    stream::{self, FuturesUnordered},
};
use holdfast_cluster::ApiServer;
use tokio::time::MissedTickBehavior;

use crate::{
    cases::say,
    content,
    controller::{
        api::Api,
        audit::Audit,
        measure::{Meter, Snapshot},
        release::Release,
        report::Figures,
        site::{Place, Site},
    },
    document::{self, Section},
    process::Process,
    report::Machine,
    scratch::Scratch,
    upstream::{Served, Upstream},
};

/// Requests of this program at a time while it fills the cluster.
const AT_ONCE: usize = 16;
/// Pods that are replaced in a minute.
const PER_MINUTE: u32 = 1000;
/// The least pods of a site: between two turns of one of them it runs.
const FEWEST: usize = 100;
/// How long a pod that was replaced takes to run.
const STARTS: Duration = Duration::from_millis(1200);
/// How long the controller is left to itself after the last copy, before what it did is counted.
const SETTLED: Duration = Duration::from_secs(5);
/// How long it is watched while nothing happens: it looks after its certificates every half a
/// minute.
const IDLE_TIME: Duration = Duration::from_secs(30);
/// How long all copies may take.
const COPY_TIMEOUT: Duration = Duration::from_secs(900);
/// Bytes of an image's layer.
const LAYER: usize = 4096;
/// The defaults: only runs with them are written to the document.
const DEFAULTS: (usize, usize) = (5000, 500);

/// Arguments of `controller`.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Pods that are there before the controller comes
    #[arg(long, value_name = "N", default_value_t = DEFAULTS.0)]
    pods: usize,
    /// Images of these pods; each is a Deployment's
    #[arg(long, value_name = "N", default_value_t = DEFAULTS.1)]
    images: usize,
    /// Minutes in which pods come and go, a thousand a minute
    #[arg(long, value_name = "MINUTES", default_value_t = 1.0)]
    minutes: f64,
    /// Writes everything measured as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where files lie while it runs; removed at the end
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
    /// Writes the document here, after a run of at least the default size and length
    #[arg(long, value_name = "FILE")]
    document: Option<PathBuf>,
}

/// Measures the controller; a bar that is missed is an error, after everything was written.
pub(crate) async fn run(arguments: &Arguments) -> Result<()> {
    let site = asked_for(arguments)?;
    let scratch = Scratch::make(arguments.scratch.as_deref())?;
    let mut audit = Audit::of(release::CONTROLLER, &scratch.0)?;
    say("starting etcd and kube-apiserver");
    let server = ApiServer::start_with(&audit.arguments())?;
    let api = Api::new(&server)?;
    let upstream = upstream(site)?;
    let sets = fill(&api, site).await?;
    say("installing the chart");
    release::install(&server, &scratch.0)?;
    release::silence_webhook(&api).await?;
    release::agents(&api).await?;
    let release = Release::prepare(&api, &server, &scratch.0).await?;

    let begun = Snapshot::start();
    let mut controller = release.controller()?;
    let _registry = release.registry(&api, upstream.address).await?;
    let registry_seconds = begun.seconds();
    say(&format!(
        "the controller runs; after {registry_seconds:.1} s it had made the registry's certificate, and the registry runs"
    ));
    wait_for_copies(&api, site, &begun, &mut controller, &release).await?;
    let adopted_seconds = begun.seconds();
    tokio::time::sleep(SETTLED).await;
    let mut meter = Meter {
        controller: &controller,
        admin: release.admin,
        upstream: &upstream,
        audit: &mut audit,
    };
    let adoption = meter.since(&begun).await?;
    let most_asked = upstream.asked().values().copied().max().unwrap_or(0);
    say(&format!(
        "{} images of {} pods copied in {adopted_seconds:.1} s; {} requests to the API server, at most {:.1} MB",
        site.images,
        site.pods,
        adoption.calls.total(),
        adoption.peak_megabytes()
    ));

    let address = release.address(&api).await?;
    let mark = meter.snapshot().await?;
    tokio::time::sleep(IDLE_TIME).await;
    let rest = meter.since(&mark).await?;
    say(&format!(
        "at rest: {:.2} requests/s, {:.2} % of a processor, {:.1} MB",
        rest.calls_per_second(),
        rest.cpu_percent(),
        rest.peak_megabytes()
    ));

    let mark = meter.snapshot().await?;
    let replaced = churn(&api, site, &sets, &address, arguments.minutes).await?;
    let churn = meter.since(&mark).await?;
    say(&format!(
        "{replaced} pods replaced in {:.1} s: {:.2} requests/s, {:.1} % of a processor, at most {:.1} MB",
        churn.seconds,
        churn.calls_per_second(),
        churn.cpu_percent(),
        churn.peak_megabytes()
    ));

    let figures = Figures {
        machine: Machine::this(&scratch.0),
        pods: site.pods,
        images: site.images,
        nodes: site::NODES,
        registry_seconds,
        adopted_seconds,
        most_asked,
        replaced,
        adoption,
        rest,
        churn,
    };
    conclude(&figures, arguments)
}

/// The site that the arguments ask for.
fn asked_for(arguments: &Arguments) -> Result<Site> {
    let site = Site {
        pods: arguments.pods,
        images: arguments.images,
    };
    ensure!(
        site.images > 0 && site.pods >= site.images,
        "--images: at least one, and at most as many as --pods"
    );
    ensure!(
        site.pods >= FEWEST,
        "--pods: at least {FEWEST}, or a pod would be replaced before it runs"
    );
    ensure!(
        arguments.minutes.is_finite() && arguments.minutes > 0.0,
        "--minutes: more than none"
    );
    Ok(site)
}

/// Waits until every image is copied.
async fn wait_for_copies(
    api: &Api,
    site: Site,
    begun: &Snapshot,
    controller: &mut Process,
    release: &Release,
) -> Result<()> {
    let mut last = Instant::now();
    loop {
        let copied = copied(api).await?;
        if copied >= site.images {
            return Ok(());
        }
        ensure!(
            !controller.has_ended(),
            "the controller has ended:\n{}",
            release.said()
        );
        ensure!(
            begun.seconds() < COPY_TIMEOUT.as_secs_f64(),
            "only {copied} of {} images were copied in {} s:\n{}",
            site.images,
            COPY_TIMEOUT.as_secs(),
            release.said()
        );
        if last.elapsed() > Duration::from_secs(2) {
            say(&format!(
                "{copied} of {} images copied after {:.0} s",
                site.images,
                begun.seconds()
            ));
            last = Instant::now();
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

/// Prints the bars, writes what the arguments ask for, and fails when a bar is missed.
fn conclude(figures: &Figures, arguments: &Arguments) -> Result<()> {
    println!("{}", figures.bars_table());
    if let Some(path) = &arguments.json {
        let text = serde_json::to_string_pretty(&figures.with_bars())? + "\n";
        fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    }
    let whole = (figures.pods, figures.images) == DEFAULTS && arguments.minutes >= 1.0;
    if let Some(path) = arguments.document.as_deref().filter(|_| whole) {
        document::rewrite(path, Section::Controller, |_| figures.section())?;
    }
    let missed = figures.missed();
    ensure!(missed.is_empty(), "missed: {}", missed.join("; "));
    Ok(())
}

/// An upstream with all images: each has a layer of its own and is sent as fast as it is read.
fn upstream(site: Site) -> Result<Upstream> {
    let images = (0..site.images).map(|image| {
        let (manifest, blobs) = content::image((image as u64 + 1) * 10, &[64, LAYER]);
        Served {
            repository: site::repository(image),
            tag: "1".to_owned(),
            manifest,
            blobs,
        }
    });
    Upstream::start(images.collect(), 1e9)
}

/// Makes nodes, owners and running pods; the UIDs of the ReplicaSets.
async fn fill(api: &Api, site: Site) -> Result<Vec<String>> {
    for (path, object) in site::namespaces() {
        api.post(&path, &object).await?;
    }
    for number in 0..site::NODES {
        api.post("/api/v1/nodes", &site::node(number)).await?;
    }
    say(&format!(
        "making {} Deployments and ReplicaSets",
        site.images
    ));
    let uid = |object: &serde_json::Value| object["metadata"]["uid"].as_str().map(str::to_owned);
    let mut sets = Vec::new();
    for image in 0..site.images {
        let (path, replicas) = (apps(image), site.replicas(image));
        let deployment = api
            .post(
                &format!("{path}/deployments"),
                &site::deployment(image, replicas),
            )
            .await?;
        let deployment = uid(&deployment).context("a Deployment without a UID")?;
        let set = site::replica_set(image, replicas, &deployment);
        let set = api.post(&format!("{path}/replicasets"), &set).await?;
        sets.push(uid(&set).context("a ReplicaSet without a UID")?);
        counted(api, site, image, 0).await?;
    }
    for first in (0..site.pods).step_by(1000) {
        let to = (first + 1000).min(site.pods);
        say(&format!("making pods {first} to {to}"));
        let sets = &sets;
        let made = stream::iter(first..to)
            .map(|number| async move {
                let place = Place { number, age: 0 };
                create(api, site, sets, place, None).await?;
                runs(api, site, place, None).await
            })
            .buffer_unordered(AT_ONCE);
        made.try_collect::<Vec<()>>().await?;
    }
    Ok(sets)
}

fn apps(image: usize) -> String {
    format!("/apis/apps/v1/namespaces/{}", site::namespace(image))
}

async fn create(
    api: &Api,
    site: Site,
    sets: &[String],
    place: Place,
    address: Option<&str>,
) -> Result<()> {
    let set = sets.get(site.image(place)).context("no ReplicaSet")?;
    api.post(&site.pods_path(place), &site.pod(place, set, address))
        .await?;
    Ok(())
}

/// The kubelet says that a pod runs.
async fn runs(api: &Api, site: Site, place: Place, address: Option<&str>) -> Result<()> {
    let path = format!("{}/{}/status", site.pods_path(place), site.pod_name(place));
    let image = site::reference(site.image(place), address);
    api.merge(&path, &site::running("app", &image)).await?;
    Ok(())
}

/// The controllers of a Deployment and its ReplicaSet say how many pods are ready.
async fn counted(api: &Api, site: Site, image: usize, missing: usize) -> Result<()> {
    let replicas = site.replicas(image);
    let ready = site::ready(replicas, replicas.saturating_sub(missing));
    let apps = apps(image);
    for path in [
        format!("{apps}/replicasets/{}/status", site::set(image)),
        format!("{apps}/deployments/{}/status", site::app(image)),
    ] {
        api.merge(&path, &ready).await?;
    }
    Ok(())
}

/// How many Artifacts say that their image is local.
async fn copied(api: &Api) -> Result<usize> {
    let path = "/apis/holdfast.dev/v1alpha1/artifacts?resourceVersion=0";
    let list = api.get(path).await?.context("no Artifacts are served")?;
    let artifacts = list["items"].as_array().map_or(&[][..], Vec::as_slice);
    let is_copied = |artifact: &&serde_json::Value| {
        let conditions = artifact["status"]["conditions"].as_array();
        conditions
            .into_iter()
            .flatten()
            .any(|condition| condition["reason"] == "Copied")
    };
    Ok(artifacts.iter().filter(is_copied).count())
}

/// Replaces pods at an even pace, and as many of them at a time as it takes. How many.
async fn churn(
    api: &Api,
    site: Site,
    sets: &[String],
    address: &str,
    minutes: f64,
) -> Result<usize> {
    let (begun, wanted) = (Instant::now(), Duration::from_secs_f64(minutes * 60.0));
    let mut tick = tokio::time::interval(Duration::from_secs(60) / PER_MINUTE);
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut under_way = FuturesUnordered::new();
    let (mut started, mut replaced, mut reported) = (0, 0, Instant::now());
    while begun.elapsed() < wanted {
        tokio::select! {
            _ = tick.tick() => {
                let old = Place {
                    number: started % site.pods,
                    age: started / site.pods,
                };
                under_way.push(replace(api, site, sets, old, address));
                started += 1;
            }
            Some(outcome) = under_way.next() => {
                outcome?;
                replaced += 1;
            }
        }
        if reported.elapsed() > Duration::from_secs(15) {
            say(&format!(
                "{replaced} pods replaced in {:.0} s",
                begun.elapsed().as_secs_f64()
            ));
            reported = Instant::now();
        }
    }
    while let Some(outcome) = under_way.next().await {
        outcome?;
        replaced += 1;
    }
    let rate = replaced as f64 / begun.elapsed().saturating_sub(STARTS).as_secs_f64() * 60.0;
    ensure!(
        rate > 0.95 * f64::from(PER_MINUTE),
        "this machine replaces only {rate:.0} pods a minute at the moment; {PER_MINUTE} were to be"
    );
    Ok(replaced)
}

/// The old pod goes, a new one comes and runs a moment later.
async fn replace(api: &Api, site: Site, sets: &[String], old: Place, address: &str) -> Result<()> {
    let new = Place {
        age: old.age + 1,
        ..old
    };
    api.delete(&format!("{}/{}", site.pods_path(old), site.pod_name(old)))
        .await?;
    create(api, site, sets, new, Some(address)).await?;
    counted(api, site, site.image(new), 1).await?;
    tokio::time::sleep(STARTS).await;
    runs(api, site, new, Some(address)).await?;
    counted(api, site, site.image(new), 0).await
}
