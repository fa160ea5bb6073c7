//! A client that pushes with a user's password, through whichever replica its connections meet.

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::images::unique;
use crate::kube;
use crate::objects;
use crate::site::{START, Site};
use crate::wait::eventually;
use crate::world::World;

/// Name of the Secret with the users.
pub(super) const USERS: &str = "pushers";
/// User and password of the client.
pub(super) const LOGIN: &str = "ci:battery-staple";
/// The same as a line of htpasswd.
const HTPASSWD: &str = "ci:$2b$05$abcdefghijklmnopqrstuu07962fR81FOryI7nDcKN7/fBiLL7tZ6\n";

/// Bytes of one piece of the upload.
const PIECE: usize = 1 << 20;

/// Where the node keeps what was fetched.
const FETCHED: &str = "/tmp/fetched";

/// Installs Holdfast so that a user may push below `uploads/`.
pub(super) fn with_pusher(site: &mut Site) -> Result<()> {
    let namespace = site.release.namespace();
    site.kube.apply(&[
        objects::namespace(namespace, &json!({})),
        json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": USERS, "namespace": namespace},
            "stringData": {"htpasswd": HTPASSWD},
        }),
    ])?;
    let rule = json!({"users": ["ci"], "repositories": ["uploads"], "actions": ["pull", "push", "delete"]});
    site.install(&json!({"registry": {"access": {"htpasswdSecret": USERS, "rules": [rule]}}}))
}

/// A client on a node.
struct Client<'a> {
    site: &'a Site,
    node: String,
    address: String,
}

/// Where a request goes.
enum To<'a> {
    /// Any replica, as the Service likes.
    Service,
    /// This one.
    Replica(&'a Value),
}

impl Client<'_> {
    /// Sends a request; returns the status and the answer's `Location` as a URL.
    fn send(&self, to: &To, method: &str, url: &str, more: &[&str]) -> Result<(u16, String)> {
        let other = url.contains(&format!("{}:5000", self.address));
        let port = if other { 5000 } else { 443 };
        let detour = match to {
            To::Service => String::new(),
            To::Replica(pod) => {
                let ip = pod["status"]["podIP"].as_str().context("no pod IP")?;
                format!("{}:{port}:{ip}:5000", self.address)
            }
        };
        let mut arguments = vec!["--user", LOGIN, "--dump-header", "-", "--request", method];
        if !detour.is_empty() {
            arguments.extend(["--connect-to", &detour]);
        }
        arguments.extend(more);
        arguments.push(url);
        let (status, text) = self.site.curl(&self.node, &arguments)?;
        let location = text.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("location").then(|| value.trim())
        });
        let location = match location {
            Some(path) if path.starts_with('/') => format!("https://{}{path}", self.address),
            Some(url) => url.to_owned(),
            None => String::new(),
        };
        Ok((status, location))
    }

    fn piece(number: usize) -> String {
        format!("/tmp/piece-{number}")
    }

    fn shell(&self, script: &str) -> Result<String> {
        let text = self
            .site
            .cluster
            .node_exec(&self.node, &["sh", "-c", script])?;
        Ok(text.trim().to_owned())
    }

    fn patch(&self, to: &To, url: &str, number: usize) -> Result<String> {
        let range = format!(
            "Content-Range: {}-{}",
            number * PIECE,
            (number + 1) * PIECE - 1
        );
        let data = format!("@{}", Self::piece(number));
        let kind = "Content-Type: application/octet-stream";
        let more = ["--header", &range, "--header", kind, "--data-binary", &data];
        let (status, location) = self.send(to, "PATCH", url, &more)?;
        ensure!(status == 202, "piece {number} was answered with {status}");
        Ok(location)
    }
}

// SPEC 55
pub(super) fn an_upload_goes_on_at_another_replica(world: &mut World) -> Result<()> {
    let site = world.site()?;
    site.needs_own_cluster()?;
    with_pusher(site)?;
    let replicas = site.kube.wait_ready(
        site.release.namespace(),
        &site.release.part("registry"),
        3,
        START,
    )?;
    let [first, second, third, ..] = replicas.as_slice() else {
        bail!("three replicas are needed");
    };
    let client = Client {
        site,
        node: site.workers()?.into_iter().next().context("no worker")?,
        address: site.address()?,
    };
    let pieces = 8;
    for number in 0..pieces {
        let file = Client::piece(number);
        client.shell(&format!("head -c {PIECE} /dev/urandom > {file}"))?;
    }
    let files: Vec<_> = (0..pieces).map(Client::piece).collect();
    let sum = client.shell(&format!("cat {} | sha256sum", files.join(" ")))?;
    let digest = format!(
        "sha256:{}",
        sum.split_whitespace().next().unwrap_or_default()
    );
    let blobs = format!(
        "https://{}/v2/uploads/app-{}/blobs",
        client.address,
        unique()?
    );
    let start = format!("{blobs}/uploads/");
    let (status, mut url) = client.send(&To::Replica(first), "POST", &start, &["--data", ""])?;
    ensure!(status == 202, "the upload was answered with {status}");
    url = client.patch(&To::Replica(first), &url, 0)?;
    // The replica that began it does not live to see its end.
    site.kill_process(kube::node(first), kube::name(first))?;
    url = client.patch(&To::Replica(second), &url, 1)?;
    url = client.patch(&To::Replica(third), &url, 2)?;
    url = client.patch(&To::Replica(second), &url, 3)?;
    // Until the kubelet notices, the dead one is Ready and the Service sends connections to it.
    eventually(START, || {
        let replicas = site.kube.wait_ready(
            site.release.namespace(),
            &site.release.part("registry"),
            3,
            START,
        )?;
        let killed = replicas
            .iter()
            .find(|pod| kube::name(pod) == kube::name(first))
            .context("the killed replica's pod is gone")?;
        ensure!(
            restarts(killed) > restarts(first),
            "the kubelet has not noticed yet that the replica was killed"
        );
        Ok(())
    })?;
    for number in 4..pieces {
        url = client.patch(&To::Service, &url, number)?;
    }
    let separator = if url.contains('?') { '&' } else { '?' };
    let finish = format!("{url}{separator}digest={digest}");
    let (status, _) = client.send(&To::Service, "PUT", &finish, &["--data", ""])?;
    ensure!(
        status == 201,
        "the end of the upload was answered with {status}"
    );
    client.shell(&format!(
        "curl --silent --show-error --fail --insecure --user {LOGIN} --output {FETCHED} {blobs}/{digest}"
    ))?;
    let fetched = client.shell(&format!(
        "sha256sum {FETCHED}; rm -f {FETCHED} {}",
        files.join(" ")
    ))?;
    ensure!(
        fetched.starts_with(digest.trim_start_matches("sha256:")),
        "the blob has {fetched}, pushed was {digest}"
    );
    Ok(())
}

/// The configuration of an image that no pod runs, and its digest.
const CONFIG: (&str, &str) = (
    "{}",
    "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
);

impl Client<'_> {
    /// Pushes an image that has nothing but a configuration.
    fn push(&self, repository: &str, tag: &str) -> Result<()> {
        let base = format!("https://{}/v2/{repository}", self.address);
        let start = format!("{base}/blobs/uploads/");
        let (status, url) = self.send(&To::Service, "POST", &start, &["--data", ""])?;
        ensure!(status == 202, "the upload was answered with {status}");
        let separator = if url.contains('?') { '&' } else { '?' };
        let (config, digest) = CONFIG;
        let url = format!("{url}{separator}digest={digest}");
        let (status, _) = self.send(&To::Service, "PUT", &url, &["--data-binary", config])?;
        ensure!(
            status == 201,
            "the configuration was answered with {status}"
        );
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": kind,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": digest,
                "size": config.len(),
            },
            "layers": [],
            "annotations": {"of": format!("{repository}:{tag}")},
        });
        let (kind, manifest) = (format!("Content-Type: {kind}"), manifest.to_string());
        let more = ["--header", &kind, "--data-binary", &manifest];
        let url = format!("{base}/manifests/{tag}");
        let (status, _) = self.send(&To::Service, "PUT", &url, &more)?;
        ensure!(status == 201, "the manifest was answered with {status}");
        Ok(())
    }

    fn has(&self, repository: &str, tag: &str) -> Result<bool> {
        let url = format!("https://{}/v2/{repository}/manifests/{tag}", self.address);
        let (status, _) = self.send(&To::Service, "GET", &url, &[])?;
        match status {
            200 => Ok(true),
            404 => Ok(false),
            _ => bail!("{repository}:{tag} was answered with {status}"),
        }
    }
}

/// Runs `holdfast rm` on a node of the control plane, where the registry's address leads to it.
/// Returns how it ended and what it printed.
fn remove(site: &Site, arguments: &str) -> Result<(i32, String)> {
    let nodes = site.cluster.nodes()?;
    let workers = site.cluster.workers()?;
    let node = nodes.iter().find(|node| !workers.contains(node));
    let (_, password) = LOGIN.split_once(':').context("user and password")?;
    let script = format!(
        "printf {password} | KUBECONFIG=/etc/kubernetes/admin.conf \
         /var/holdfast-shared/{PROGRAM} rm {arguments} --username ci --password-stdin 2>&1; \
         echo \"ended $?\""
    );
    let node = node.context("no control plane")?;
    let text = site.cluster.node_exec(node, &["sh", "-c", &script])?;
    let (printed, code) = text.rsplit_once("ended ").context("no end")?;
    Ok((
        code.trim().parse().context(code.to_owned())?,
        printed.to_owned(),
    ))
}

/// The command's file in the folder that all nodes share.
const PROGRAM: &str = "holdfast-command";

pub(super) fn unused_images_are_removed_and_used_ones_stay(world: &mut World) -> Result<()> {
    let program = world.tools.holdfast.clone();
    let site = world.site()?;
    site.needs_own_cluster()?;
    with_pusher(site)?;
    let shared = site.cluster.shared_folder().join(PROGRAM);
    std::fs::copy(&program, &shared).context("copy the command")?;
    let result = removed(site);
    std::fs::remove_file(&shared).context("remove the command")?;
    result
}

fn removed(site: &Site) -> Result<()> {
    let client = Client {
        site,
        node: site.workers()?.into_iter().next().context("no worker")?,
        address: site.address()?,
    };
    let unique = unique()?;
    let [used, unused, named] =
        ["used", "unused", "named"].map(|name| format!("uploads/{name}-{unique}"));
    for repository in [&used, &unused, &named] {
        client.push(repository, "1")?;
    }
    let test = site.namespace()?;
    let image = format!("{}/{used}:1", client.address);
    site.kube
        .apply(&[objects::Pod::new("used", &image).deployment(&test.name, 0)])?;
    let (code, text) = remove(site, &format!("{used}:1 --yes"))?;
    ensure!(code == 1 && text.contains("used"), "{code}: {text}");
    let (code, text) = remove(site, "--unused --dry-run")?;
    ensure!(code == 0 && text.contains(&unused), "{code}: {text}");
    ensure!(client.has(&unused, "1")?, "a dry run deleted something");
    let (code, text) = remove(site, &format!("{named}:1 --yes"))?;
    ensure!(code == 0, "{code}: {text}");
    ensure!(!client.has(&named, "1")?, "it is still there: {text}");
    let (code, text) = remove(site, "--unused --yes")?;
    ensure!(code == 0, "{code}: {text}");
    let left = (client.has(&used, "1")?, client.has(&unused, "1")?);
    ensure!(left == (true, false), "used, unused: {left:?}: {text}");
    Ok(())
}

/// How often a pod's container was started again.
fn restarts(pod: &Value) -> u64 {
    let restarts = &pod["status"]["containerStatuses"][0]["restartCount"];
    restarts.as_u64().unwrap_or_default()
}

/// Begins an upload, as clients do before they send anything; returns the status and the answer.
pub(super) fn begin(site: &Site) -> Result<(u16, String)> {
    let node = site.workers()?.into_iter().next().context("no worker")?;
    let url = format!(
        "https://{}/v2/uploads/refused/blobs/uploads/",
        site.address()?
    );
    site.curl(
        &node,
        &["--user", LOGIN, "--request", "POST", "--data", "", &url],
    )
}
