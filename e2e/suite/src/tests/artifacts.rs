//! Clients of OCI artifacts against two registries that run alone. What a client pushes to the
//! first, it gets again through the second, which copies from the first: manifests, blobs, tags and
//! referrers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use holdfast_cluster::Program;
use serde_json::{Value, json};

use super::clients::free_ports;
use crate::command;
use crate::http;
use crate::images;
use crate::tools::{self, Tools};
use crate::upstream::spawn;
use crate::wait::eventually;
use crate::world::World;

/// The name of the first registry in the second one.
const FIRST: &str = "first.example";

/// `holdfast registry`, alone on this machine.
struct Server {
    address: String,
    child: Child,
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Server {
    fn start(tools: &Tools, folder: &Path, port: u16, settings: &Value) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        let configuration = folder.join("holdfast.yaml");
        fs::write(&configuration, settings.to_string()).context("write the configuration")?;
        let address = format!("127.0.0.1:{port}");
        let log = folder.join("holdfast.log");
        let mut serve = tools::on_this_machine()(&tools.holdfast);
        serve.args(["registry", "--listen", &address, "--data"]);
        serve.arg(folder.join("store"));
        serve.arg("--config").arg(&configuration);
        let server = Self {
            child: spawn(serve, &log)?,
            address,
        };
        eventually(Duration::from_secs(20), || server.get("").map(drop)).with_context(|| {
            format!(
                "a registry alone: {}",
                fs::read_to_string(&log).unwrap_or_default()
            )
        })?;
        Ok(server)
    }

    fn get(&self, path: &str) -> Result<String> {
        http::request("GET", &format!("http://{}/v2/{path}", self.address), "")
    }
}

/// Two registries, and a folder for what a client reads and writes.
struct Pair {
    first: Server,
    second: Server,
    folder: PathBuf,
}

impl Pair {
    fn start(world: &World, client: &str) -> Result<Self> {
        let folder = world.tools.folder.join(client);
        let port = free_ports(2)?;
        // How full the disk of this machine is, is not what is tested.
        let limits = json!({"reservePercent": 0});
        let none = json!({"upstreams": [], "limits": limits});
        let first = Server::start(&world.tools, &folder.join("first"), port, &none)?;
        let endpoint = format!("http://{}", first.address);
        let upstream = json!({"host": FIRST, "endpoint": endpoint});
        let upstreams = json!({"upstreams": [upstream], "limits": limits});
        let second = Server::start(&world.tools, &folder.join("second"), port + 1, &upstreams)?;
        Ok(Self {
            first,
            second,
            folder,
        })
    }

    /// A reference to the first registry.
    fn at_first(&self, name: &str) -> String {
        format!("{}/{name}", self.first.address)
    }

    /// The reference by which the second registry copies it.
    fn through_second(&self, name: &str) -> String {
        format!("{}/{FIRST}/{name}", self.second.address)
    }

    /// Runs a client in the pair's folder, with a home of its own: no credentials, no
    /// configuration, no cache of the user.
    fn run(&self, client: &Path, arguments: &[&str]) -> Result<String> {
        command::run(self.command(client, arguments))
    }

    fn command(&self, client: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(client);
        command
            .args(arguments)
            .current_dir(&self.folder)
            .env("HOME", &self.folder)
            .env("DOCKER_CONFIG", self.folder.join("docker"));
        for variable in ["XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"] {
            command.env(variable, self.folder.join(variable.to_ascii_lowercase()));
        }
        command
    }

    /// Makes a file in the pair's folder and returns its bytes.
    fn file(&self, name: &str, bytes: usize) -> Result<Vec<u8>> {
        let content = images::random(bytes)?;
        fs::write(self.folder.join(name), &content).with_context(|| format!("write {name}"))?;
        Ok(content)
    }

    fn read(&self, name: &str) -> Result<Vec<u8>> {
        fs::read(self.folder.join(name)).with_context(|| format!("read {name}"))
    }

    /// An OCI layout of an image with two random layers, and the image's digest.
    fn layout(&self, name: &str) -> Result<String> {
        let image = images::workload(&tools::program(Program::Workload)?, 2, 1 << 16)?;
        images::layout(&image, &self.folder.join(name))?;
        Ok(image.digest)
    }

    /// Digests of the referrers that a registry lists, sorted.
    fn referrers(server: &Server, repository: &str, digest: &str) -> Result<Vec<String>> {
        let list = server.get(&format!("{repository}/referrers/{digest}"))?;
        let list: Value = serde_json::from_str(&list).context("a list of referrers")?;
        let mut found: Vec<String> = list["manifests"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|descriptor| Some(descriptor["digest"].as_str()?.to_owned()))
            .collect();
        found.sort();
        Ok(found)
    }

    /// Checks that both registries list the same referrers, `count` of them.
    fn same_referrers(&self, repository: &str, digest: &str, count: usize) -> Result<()> {
        let first = Self::referrers(&self.first, repository, digest)?;
        ensure!(
            first.len() == count,
            "{count} referrers were pushed to {repository}, listed are {first:?}"
        );
        let second = Self::referrers(&self.second, &format!("{FIRST}/{repository}"), digest)?;
        ensure!(
            first == second,
            "the second registry lists {second:?} for {repository}, the first {first:?}"
        );
        Ok(())
    }
}

/// Every `digest` below a key of a JSON document that a client printed.
fn digests(document: &Value, key: &str) -> Vec<String> {
    document[key]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry["digest"].as_str()?.to_owned()))
        .collect()
}

// SPEC 16
pub(super) fn oras_attaches_discovers_and_copies_with_referrers(world: &mut World) -> Result<()> {
    let oras = tools::program(Program::Oras)?;
    let pair = Pair::start(world, "oras")?;
    let run = |arguments: &[&str]| pair.run(&oras, arguments);
    let model = pair.file("model.bin", 3 << 20)?;
    pair.file("bill.json", 2000)?;
    pair.file("signature.bin", 300)?;
    let name = pair.at_first("tools/model:1");
    let push = [
        "push",
        "--plain-http",
        "--artifact-type",
        "application/vnd.test.model",
    ];
    run(&[&push[..], &[&name, "model.bin:application/octet-stream"]].concat())?;
    let digest = run(&["resolve", "--plain-http", &name])?.trim().to_owned();
    // A referrer, and a referrer of that one.
    let attach = |subject: &str, kind: &str, file: &str| {
        let text = run(&[
            "attach",
            "--plain-http",
            "--format",
            "json",
            "--artifact-type",
            kind,
            subject,
            file,
        ])?;
        let answer: Value = serde_json::from_str(&text).context("oras attach")?;
        anyhow::Ok(answer["digest"].as_str().context("a digest")?.to_owned())
    };
    let bill = attach(
        &name,
        "application/vnd.test.bill",
        "bill.json:application/json",
    )?;
    let of_bill = pair.at_first(&format!("tools/model@{bill}"));
    let signature = attach(&of_bill, "application/vnd.test.signature", "signature.bin")?;
    pair.same_referrers("tools/model", &digest, 1)?;
    pair.same_referrers("tools/model", &bill, 1)?;

    let discovered = |name: &str| {
        let text = run(&["discover", "--plain-http", "--format", "json", name])?;
        let tree: Value = serde_json::from_str(&text).context("oras discover")?;
        let below = tree["referrers"].get(0).cloned().unwrap_or_default();
        anyhow::Ok([digests(&tree, "referrers"), digests(&below, "referrers")].concat())
    };
    let through = pair.through_second("tools/model:1");
    for name in [&name, &through] {
        let found = discovered(name)?;
        ensure!(
            found == [bill.clone(), signature.clone()],
            "{name}: {found:?}"
        );
    }
    // `oras cp -r` checks the digest of everything that it copies.
    let copy = pair.at_first("copies/model:1");
    run(&[
        "cp",
        "-r",
        "--from-plain-http",
        "--to-plain-http",
        &name,
        &copy,
    ])?;
    ensure!(discovered(&copy)?.len() == 2, "referrers were not copied");
    oras_pulls_and_lists(&pair, &run, &name, &model)?;
    // A blob on its own, and the end of a manifest.
    run(&[
        "blob",
        "push",
        "--plain-http",
        &pair.at_first("tools/model"),
        "bill.json",
    ])?;
    run(&["manifest", "delete", "--plain-http", "--force", &of_bill])?;
    ensure!(
        Pair::referrers(&pair.first, "tools/model", &digest)?.is_empty(),
        "a deleted referrer is listed"
    );
    Ok(())
}

/// The second half of the test of oras: copies to a layout, pulls, tags and lists.
fn oras_pulls_and_lists(
    pair: &Pair,
    run: &dyn Fn(&[&str]) -> Result<String>,
    name: &str,
    model: &[u8],
) -> Result<()> {
    let through = pair.through_second("tools/model:1");
    run(&[
        "cp",
        "-r",
        "--from-plain-http",
        &through,
        "--to-oci-layout",
        "layout:1",
    ])?;
    run(&["pull", "--plain-http", &through, "-o", "pulled"])?;
    ensure!(
        pair.read("pulled/model.bin")? == model,
        "other bytes came back"
    );
    run(&["tag", "--plain-http", name, "2", "latest"])?;
    for repository in [
        pair.at_first("tools/model"),
        pair.through_second("tools/model"),
    ] {
        let tags = run(&["repo", "tags", "--plain-http", &repository])?;
        let tags: Vec<_> = tags.lines().collect();
        ensure!(tags == ["1", "2", "latest"], "{repository}: {tags:?}");
    }
    let repositories = run(&["repo", "ls", "--plain-http", &pair.first.address])?;
    for repository in ["copies/model", "tools/model"] {
        ensure!(
            repositories.lines().any(|line| line == repository),
            "{repository} is not listed: {repositories}"
        );
    }
    Ok(())
}

// SPEC 16
pub(super) fn regctl_copies_images_with_their_referrers(world: &mut World) -> Result<()> {
    let regctl = tools::program(Program::Regctl)?;
    let pair = Pair::start(world, "regctl")?;
    let hosts =
        [&pair.first, &pair.second].map(|server| format!("reg={},tls=disabled", server.address));
    let run = |arguments: &[&str]| {
        let [first, second] = &hosts;
        let hosts = ["--host", first, "--host", second];
        pair.run(&regctl, &[&hosts[..], arguments].concat())
    };
    let digest = pair.layout("image")?;
    let name = pair.at_first("team/app:1");
    run(&["image", "copy", &format!("ocidir://image@{digest}"), &name])?;
    ensure!(
        run(&["image", "digest", &name])?.trim() == digest,
        "another digest"
    );
    let scan = pair.file("scan.txt", 5000)?;
    for kind in ["application/vnd.test.scan", "application/vnd.test.note"] {
        run(&[
            "artifact",
            "put",
            "--artifact-type",
            kind,
            "--subject",
            &name,
            "--file-title",
            "--file",
            "scan.txt",
        ])?;
    }
    pair.same_referrers("team/app", &digest, 2)?;
    let through = pair.through_second("team/app:1");
    fs::create_dir(pair.folder.join("got")).context("make a folder")?;
    for name in [&name, &through] {
        let list = run(&["artifact", "list", name, "--format", "{{jsonPretty .}}"])?;
        let list: Value = serde_json::from_str(&list).context("regctl artifact list")?;
        ensure!(digests(&list, "descriptors").len() == 2, "{name}: {list}");
        let kind = ["--filter-artifact-type", "application/vnd.test.scan"];
        run(&[
            &["artifact", "get", "--subject", name, "--output", "got"][..],
            &kind,
        ]
        .concat())?;
        ensure!(pair.read("got/scan.txt")? == scan, "other bytes came back");
    }
    // Within a registry blobs are mounted, through the second one they are fetched.
    let copy = ["image", "copy", "--referrers", "--digest-tags"];
    let other = pair.at_first("copies/app:1");
    run(&[&copy[..], &[&name, &other]].concat())?;
    ensure!(
        Pair::referrers(&pair.first, "copies/app", &digest)?.len() == 2,
        "referrers were not copied"
    );
    run(&[&copy[..], &[&through, "ocidir://again:1"]].concat())?;
    run(&["image", "export", &through, "app.tar"])?;
    let back = pair.at_first("back/app:1");
    run(&["image", "import", &back, "app.tar"])?;
    ensure!(
        run(&["image", "digest", &back])?.trim() == digest,
        "another digest after export and import"
    );
    // A blob in chunks of its own choice, tags, and their end.
    pair.file("blob.bin", 3 << 20)?;
    let repository = pair.at_first("team/app");
    let mut put = pair.command(&regctl, &["--host", &hosts[0], "blob", "put", &repository]);
    put.stdin(fs::File::open(pair.folder.join("blob.bin")).context("open a blob")?);
    let output = put.output().context("regctl blob put")?;
    ensure!(
        output.status.success(),
        "regctl blob put: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let blob = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    run(&["blob", "head", &repository, &blob])?;
    run(&["tag", "delete", &back])?;
    ensure!(
        run(&["manifest", "head", &back]).is_err(),
        "a deleted tag is still there"
    );
    run(&[
        "manifest",
        "delete",
        &format!("{}@{digest}", pair.at_first("copies/app")),
    ])?;
    ensure!(
        run(&["manifest", "head", &other]).is_err(),
        "a deleted image is still there"
    );
    Ok(())
}

// SPEC 16
pub(super) fn helm_pushes_and_pulls_charts(world: &mut World) -> Result<()> {
    let pair = Pair::start(world, "helm")?;
    for (program, chart) in [(Program::Helm, "four"), (Program::Helm3, "three")] {
        let helm = tools::program(program)?;
        let run = |arguments: &[&str]| pair.run(&helm, arguments);
        let folder = pair.folder.join(chart);
        fs::create_dir_all(folder.join("templates")).context("make a chart")?;
        let about = json!({"apiVersion": "v2", "name": chart, "version": "1.2.3+build.4"});
        fs::write(folder.join("Chart.yaml"), about.to_string()).context("write a chart")?;
        fs::write(folder.join("templates/NOTES.txt"), "installed").context("write a chart")?;
        run(&["package", chart])?;
        let package = format!("{chart}-1.2.3+build.4.tgz");
        let bytes = pair.read(&package)?;
        run(&[
            "push",
            "--plain-http",
            &package,
            &format!("oci://{}", pair.at_first("charts")),
        ])?;
        for (name, into) in [
            (pair.at_first(&format!("charts/{chart}")), "from-first"),
            (
                pair.through_second(&format!("charts/{chart}")),
                "from-second",
            ),
        ] {
            let name = format!("oci://{name}");
            let into = format!("{chart}-{into}");
            fs::create_dir_all(pair.folder.join(&into)).context("make a folder")?;
            let version = ["--plain-http", "--version", "1.2.3+build.4"];
            run(&[&["pull", &name, "--destination", &into][..], &version].concat())?;
            ensure!(
                pair.read(&format!("{into}/{package}"))? == bytes,
                "{name}: another chart came back"
            );
            let shown = run(&[&["show", "chart", &name][..], &version].concat())?;
            ensure!(shown.contains(&format!("name: {chart}")), "{name}: {shown}");
            // Without a version Helm lists the tags and picks the newest.
            run(&["show", "chart", "--plain-http", &name])?;
        }
    }
    Ok(())
}

// SPEC 16
pub(super) fn cosign_signs_and_verifies_with_a_local_key(world: &mut World) -> Result<()> {
    let cosign = tools::program(Program::Cosign)?;
    let crane = tools::program(Program::Crane)?;
    let pair = Pair::start(world, "cosign")?;
    let run = |arguments: &[&str]| {
        let mut command = pair.command(&cosign, arguments);
        // Whatever would be asked for over a network fails at once.
        command
            .env("COSIGN_PASSWORD", "")
            .env("HTTPS_PROXY", "http://127.0.0.1:1");
        command::run(command)
    };
    let push = |layout: &str, name: &str| {
        let layout = pair.folder.join(layout);
        let layout = layout.to_str().context("path")?;
        pair.run(
            &crane,
            &["push", "--insecure", layout, &pair.at_first(name)],
        )
    };
    fs::write(pair.folder.join("predicate.json"), r#"{"tested":true}"#).context("write")?;
    run(&["generate-key-pair"])?;
    let digest = pair.layout("image")?;
    // No service: neither a certificate authority nor a transparency log.
    let sign = [
        "--key",
        "cosign.key",
        "--yes",
        "--allow-http-registry",
        "--use-signing-config=false",
        "--tlog-upload=false",
    ];
    let verify = [
        "--key",
        "cosign.pub",
        "--insecure-ignore-tlog=true",
        "--allow-http-registry",
    ];
    // The present format makes signatures referrers; the one before makes tags of them.
    for (repository, is_referrer) in [("team/app", true), ("team/old", false)] {
        push("image", &format!("{repository}:1"))?;
        let name = pair.at_first(&format!("{repository}@{digest}"));
        let format = format!("--new-bundle-format={is_referrer}");
        run(&[&["sign", &format][..], &sign, &[&name]].concat())?;
        let about = ["--type", "custom", "--predicate", "predicate.json"];
        run(&[&["attest", &format][..], &sign, &about, &[&name]].concat())?;
        if is_referrer {
            pair.same_referrers(repository, &digest, 2)?;
        }
        let through = pair.through_second(&format!("{repository}@{digest}"));
        for name in [&name, &through] {
            run(&[&["verify", &format][..], &verify, &[name]].concat())?;
            let attestation = ["verify-attestation", "--type", "custom", &format];
            run(&[&attestation[..], &verify, &[name]].concat())?;
            run(&["tree", "--allow-http-registry", name])?;
        }
    }
    // Nobody signed this one.
    let other = pair.layout("other")?;
    push("other", "team/app:2")?;
    let unsigned = pair.at_first(&format!("team/app@{other}"));
    ensure!(
        run(&[&["verify"][..], &verify, &[&unsigned]].concat()).is_err(),
        "an image without a signature was verified"
    );
    // `cosign copy` takes signatures along that are tags.
    let copy = pair.at_first("copies/app:1");
    let signed = pair.at_first("team/old:1");
    run(&["copy", "--allow-http-registry", &signed, &copy])?;
    let copied = pair.at_first(&format!("copies/app@{digest}"));
    run(&[
        &["verify", "--new-bundle-format=false"][..],
        &verify,
        &[&copied],
    ]
    .concat())
    .map(drop)
}
