//! A registry replica under all attacks at once.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use holdfast_testkit::{Image, ImageBuilder, Upstream, server::free_address};
use serde::Serialize;

use super::{
    attackers::Attackers,
    attacks::{self, Counts, SLOW_BLOBS, Victim},
    honest::{Clients, Fresh, Noticed},
};
use crate::{
    certificates::Authority,
    content::{self, Tree},
    http::{self, Target},
    process::Process,
};

/// The login of the honest clients, and its line of the file of users: bcrypt of cost 10.
const LOGIN: &str = "ci:right";
const USERS: &str = "ci:$2b$10$abcdefghijklmnopqrstuu1VS0P7v3ZJmd2gzBFIzgfN7OOl6Rl52\n";

/// The local image and the images of the healthy upstream.
const LOCAL: &str = "team/app";
const HEALTHY: &str = "good/app";
const LAYER: usize = 64 << 10;

/// What the streams that are never read ask for: a blob, and a list of tags of about half a MiB.
const BLOB: usize = 4 << 20;
const TAGS: usize = 5000;

/// One round.
#[derive(Debug, Serialize)]
pub(super) struct Round {
    /// Seconds of the attacks.
    pub(super) seconds: f64,
    /// Resident memory before them, bytes.
    pub(super) idle_bytes: u64,
    /// Highest resident memory during them, bytes.
    pub(super) peak_bytes: u64,
    /// What honest clients notice without attacks.
    pub(super) alone: Noticed,
    /// What they notice beside them.
    pub(super) beside: Noticed,
    /// CPU seconds of the attackers, and of the registry.
    pub(super) attackers_cpu_seconds: f64,
    pub(super) cpu_seconds: f64,
    /// How often each attack was made.
    pub(super) attacks: [u64; 8],
    /// Whether the process had ended at the end.
    pub(super) ended: bool,
}

/// Measures for so long without and with attacks.
pub(super) async fn round(scratch: &Path, alone: Duration, beside: Duration) -> Result<Round> {
    let folder = scratch.join("registry");
    let local = ImageBuilder::new(600).layer(LAYER).build();
    let (blob, list) = lay_out(&folder.join("data"), &local)?;
    let healthy = Upstream::start().await;
    let count = |length: Duration| usize::try_from(length.as_secs() + 1).unwrap_or(1);
    let images: Vec<Image> = (0..count(alone) + count(beside))
        .map(|number| ImageBuilder::new(610 + number as u64).layer(LAYER).build())
        .collect();
    let fresh: Vec<Fresh<'_>> = images
        .iter()
        .enumerate()
        .map(|(number, image)| (format!("fresh{number}"), image))
        .collect();
    for (tag, image) in &fresh {
        healthy.push(HEALTHY, tag, image);
    }
    let (before, during) = fresh.split_at(count(alone));
    // The first ones are pulled before the strangers' copies of these layers run.
    let public = during.iter().skip(3).take(SLOW_BLOBS);
    let public = public.map(|(_, image)| (*image).clone()).collect();
    let counts = Counts::default();
    let counted = counts.clone();
    let mut attackers =
        Attackers::prepare(move |tell, begin| attacks::run(public, counted, tell, begin))?;

    let hosts = attackers.ready.iter().cloned();
    let hosts: Vec<String> = hosts.chain([healthy.host()]).collect();
    let (mut process, target, admin) = start(&folder, &hosts).await?;
    let login = format!("Basic {}", STANDARD.encode(LOGIN));
    let path = format!("/v2/{}/{HEALTHY}", healthy.host().replace(':', "_"));
    let clients = Clients {
        target: &target,
        admin,
        login: &login,
        local: (&format!("/v2/{LOCAL}"), &local),
        healthy: &path,
    };
    let alone = clients.pull(alone, before).await;
    ensure!(
        alone.failed.is_empty(),
        "without attacks: {:?}",
        alone.failed
    );

    process.reset_peak()?;
    let idle = process.usage()?;
    let begun = Instant::now();
    attackers.begin(Victim {
        target: target.clone(),
        admin,
        blob,
        list,
        healthy: path.clone(),
    });
    let beside = clients.pull(beside, during).await;
    let seconds = begun.elapsed().as_secs_f64();
    let attackers_cpu_seconds = attackers.cpu_seconds();
    let after = process.usage();
    let ended = process.has_ended();
    let after = if ended { idle } else { after? };
    let round = Round {
        seconds,
        idle_bytes: idle.rss_bytes,
        peak_bytes: after.peak_rss_bytes,
        alone,
        beside,
        attackers_cpu_seconds,
        cpu_seconds: after.cpu_seconds - idle.cpu_seconds,
        attacks: counts.get(),
        ended,
    };
    drop((attackers, process));
    fs::remove_dir_all(&folder).context("remove the registry's content")?;
    Ok(round)
}

/// Writes what is local; the paths of a large blob and of a long list of tags.
fn lay_out(data: &Path, local: &Image) -> Result<(String, String)> {
    let tree = Tree::new(data);
    for bytes in local.blobs.values() {
        let digest = tree.blob(bytes)?;
        tree.layer(LOCAL, &digest)?;
    }
    let digest = tree.revision(LOCAL, &local.bytes())?;
    tree.tag(LOCAL, "1", &digest)?;
    let large = tree.blob(&content::bytes(601, BLOB))?;
    tree.layer("strange/blob", &large)?;
    let digest = tree.revision("strange/list", &local.bytes())?;
    for number in 0..TAGS {
        tree.tag("strange/list", &format!("{number:0100}"), &digest)?;
    }
    let blob = format!("/v2/strange/blob/blobs/sha256:{large}");
    Ok((blob, "/v2/strange/list/tags/list".to_owned()))
}

/// Starts the registry with TLS, users, an admin port and these upstreams.
async fn start(folder: &Path, hosts: &[String]) -> Result<(Process, Target, SocketAddr)> {
    let authority = Authority::new()?;
    authority.write(&folder.join("tls"))?;
    fs::write(folder.join("users"), USERS)?;
    let (listen, admin) = (free_address()?, free_address()?);
    let upstreams: Vec<String> = hosts
        .iter()
        .map(|host| format!("{{host: '{host}', plainHttp: true}}"))
        .collect();
    let folder_text = folder.display();
    // Whether the disk of the machine that measures is nearly full is no figure of the registry.
    let text = format!(
        "logging: {{format: text, level: error}}\nlimits: {{reservePercent: 0}}\nadminListen: '{admin}'\n\
         tls: {{certificate: {folder_text}/tls/tls.crt, key: {folder_text}/tls/tls.key}}\n\
         access: {{htpasswd: {folder_text}/users, anonymousPull: true, rules: [{{users: ['*'], actions: [pull, push]}}]}}\n\
         upstreams: [{}]\n",
        upstreams.join(", ")
    );
    let config = folder.join("registry.yaml");
    fs::write(&config, text)?;
    let mut command = Command::new(crate::holdfast()?);
    command
        .arg("registry")
        .arg("--config")
        .arg(config)
        .arg("--data")
        .arg(folder.join("data"))
        .args(["--listen", &listen.to_string()]);
    let log = folder.join("registry.log");
    let mut process = Process::start(&mut command, &log)?;
    let target = Target {
        address: listen,
        tls: Some(authority.client()?),
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match http::get(&target, "/v2/").await {
            Ok((head, _)) if matches!(head.status, 200 | 401) => {
                return Ok((process, target, admin));
            }
            _ if process.has_ended() || Instant::now() > deadline => {
                let said = fs::read_to_string(&log).unwrap_or_default();
                bail!("the registry does not serve: {}", said.trim());
            }
            _ => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}
