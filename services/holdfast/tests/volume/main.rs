//! The operator's commands on a volume, as an operator runs them: `fsck`, `ls`, `export`, `import`.
//!
//! `HOLDFAST_SKOPEO` names a skopeo that reads the archives (and `HOLDFAST_SKOPEO_LIBRARIES` where
//! its libraries lie, if it is not installed); `cargo xtask test` sets both.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests stand outside of test functions"
)]

mod skopeo;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use bytes::Bytes;
use holdfast_core::{
    digest::{Algorithm, Digest},
    reference::{RepositoryName, Tag},
};
use holdfast_store::{Hasher, Options, Store};
use serde_json::{Value, json};

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// The test machine's own disk is not what is tested.
const RESERVE: &str = "--reserve-percent=0";

fn holdfast(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_holdfast"))
        .args(arguments)
        .output()
        .unwrap()
}

/// Runs a command that must end with this status, and returns what it printed on both ways.
#[track_caller]
fn ends(status: i32, arguments: &[&str]) -> String {
    let output = holdfast(arguments);
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(output.status.code(), Some(status), "{arguments:?}: {text}");
    text
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

struct Volume {
    root: tempfile::TempDir,
    store: Store,
}

impl Volume {
    async fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(root.path(), Options::unlimited())
            .await
            .unwrap();
        Self { root, store }
    }

    /// With `team/app:1` of one platform, and `docker.io/library/nginx:1.27` of two.
    async fn filled() -> Self {
        let volume = Self::new().await;
        let (digest, _) = volume.image("team/app", "amd64", &[1; 3000]).await;
        volume.tag("team/app", "1", &digest).await;
        let repo = "docker.io/library/nginx";
        let mut children = Vec::new();
        for (platform, layer) in [("amd64", [2; 4000]), ("arm64", [3; 4000])] {
            let (digest, size) = volume.image(repo, platform, &layer).await;
            children.push(json!({
                "mediaType": OCI_MANIFEST, "digest": digest, "size": size,
                "platform": {"os": "linux", "architecture": platform},
            }));
        }
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": children});
        let digest = volume.manifest(repo, index.to_string()).await;
        volume.tag(repo, "1.27", &digest).await;
        volume
    }

    fn path(&self) -> &str {
        self.root.path().to_str().unwrap()
    }

    async fn blob(&self, repo: &str, bytes: Vec<u8>) -> Digest {
        let digest = Hasher::digest(Algorithm::Sha256, &bytes);
        let repo: RepositoryName = repo.parse().unwrap();
        self.store
            .put_blob(&digest, Bytes::from(bytes))
            .await
            .unwrap();
        self.store.link_blob(&repo, &digest).await.unwrap();
        digest
    }

    async fn manifest(&self, repo: &str, text: String) -> Digest {
        let digest = Hasher::digest(Algorithm::Sha256, text.as_bytes());
        let repo: RepositoryName = repo.parse().unwrap();
        self.store
            .put_manifest(&repo, &digest, text.into())
            .await
            .unwrap();
        digest
    }

    async fn image(&self, repo: &str, platform: &str, layer: &[u8]) -> (Digest, usize) {
        let layer_digest = self.blob(repo, layer.to_vec()).await;
        let config = json!({
            "os": "linux", "architecture": platform,
            "rootfs": {"type": "layers", "diff_ids": [layer_digest]},
        })
        .to_string();
        let size = config.len();
        let config = self.blob(repo, config.into_bytes()).await;
        let manifest = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": size},
            "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer_digest, "size": layer.len()}],
        })
        .to_string();
        let size = manifest.len();
        (self.manifest(repo, manifest).await, size)
    }

    async fn tag(&self, repo: &str, tag: &str, digest: &Digest) {
        let (repo, tag) = (repo.parse().unwrap(), Tag::parse(tag).unwrap());
        self.store.set_tag(&repo, &tag, digest).await.unwrap();
    }
}

#[tokio::test]
async fn fsck_says_what_is_wrong_and_mends_it_only_when_told() {
    let volume = Volume::filled().await;
    let report = volume.root.path().join("report.json");
    let report_path = report.to_str().unwrap();
    let text = ends(0, &["fsck", "--data", volume.path(), "--deep"]);
    assert!(text.contains("nothing is wrong"), "{text}");
    assert!(
        text.contains("2 repositories, 2 tags, 4 manifests"),
        "{text}"
    );

    let repo: RepositoryName = "team/app".parse().unwrap();
    let link = volume
        .store
        .layout()
        .tag_link(&repo, &Tag::parse("1").unwrap());
    fs::write(&link, "").unwrap();
    let text = ends(1, &["fsck", "--data", volume.path(), "--json", report_path]);
    assert!(
        text.contains("damaged-tag") && text.contains("--repair"),
        "{text}"
    );
    let refused = ends(64, &["fsck", "--data", volume.path(), "--repair"]);
    assert!(refused.contains("confirm with --yes"), "{refused}");
    assert_eq!(fs::read(&link).unwrap(), b"", "a dry run by default");
    let found = json_of(&report);
    assert_eq!(found["findings"][0]["kind"], "damaged-tag");
    assert_eq!(found["findings"][0]["outcome"], Value::Null);

    // Only the bytes tell: found with --deep.
    let layer = Hasher::digest(Algorithm::Sha256, &[2; 4000]);
    fs::write(volume.store.layout().blob(&layer), [9; 4000]).unwrap();
    let text = ends(
        0,
        &[
            "fsck",
            "--data",
            volume.path(),
            "--repair",
            "--yes",
            "--json",
            report_path,
        ],
    );
    assert!(text.contains("1 finding, 1 repaired"), "{text}");
    assert_eq!(json_of(&report)["findings"][0]["outcome"], "repaired");
    assert_ne!(fs::read(&link).unwrap(), b"");
    let text = ends(1, &["fsck", "--data", volume.path(), "--deep"]);
    assert!(text.contains("wrong-content"), "{text}");
    // Content that was moved to the quarantine is missing now, and no repair can replace it. The
    // run that moves it says so, and so does the next one.
    for moves in [true, false] {
        let text = ends(
            1,
            &[
                "fsck",
                "--data",
                volume.path(),
                "--deep",
                "--repair",
                "--yes",
            ],
        );
        for part in ["missing-content", "1 damaged blob in the quarantine"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert_eq!(text.contains("wrong-content"), moves, "{text}");
    }
}

#[tokio::test]
async fn fsck_judges_what_lies_behind_content_that_it_gave_back() {
    let volume = Volume::filled().await;
    let layout = volume.store.layout();
    let repo: RepositoryName = "team/app".parse().unwrap();
    let layer = Hasher::digest(Algorithm::Sha256, &[1; 3000]);
    fs::remove_file(layout.layer_link(&repo, &layer)).unwrap();
    // All manifests, so also the one that names the layer.
    let link = layout.revision_link(&repo, &layer);
    for entry in fs::read_dir(link.ancestors().nth(2).unwrap()).unwrap() {
        let hex = entry.unwrap().file_name().into_string().unwrap();
        let manifest = Digest::parse(&format!("sha256:{hex}")).unwrap();
        let aside = layout.quarantine(&manifest, "unique");
        fs::create_dir_all(aside.parent().unwrap()).unwrap();
        fs::rename(layout.blob(&manifest), aside).unwrap();
    }
    let text = ends(1, &["fsck", "--data", volume.path(), "--repair", "--yes"]);
    for part in ["sound-in-quarantine", "unlinked"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn fsck_of_what_is_no_volume_cannot_run() {
    let empty = tempfile::tempdir().unwrap();
    let text = ends(2, &["fsck", "--data", empty.path().to_str().unwrap()]);
    assert!(text.contains("holds no registry"), "{text}");
    assert_eq!(
        fs::read_dir(empty.path()).unwrap().count(),
        0,
        "a check makes nothing"
    );
    ends(64, &["fsck"]);
    for command in [["ls"].as_slice(), &["export", "a", "-o", "x.tar"]] {
        let arguments = [command, &["--data", empty.path().to_str().unwrap()]].concat();
        assert!(ends(2, &arguments).contains("holds no registry"));
    }
}

#[test]
fn data_and_errors_go_different_ways() {
    let empty = tempfile::tempdir().unwrap();
    let data = empty.path().to_str().unwrap();
    let output = holdfast(&["ls", "--data", data, "-o", "json"]);
    assert_eq!(output.status.code(), Some(2));
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["kind"], "Error");
    assert_eq!(document["error"]["code"], "CouldNotRun");
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.starts_with("error: "), "{text}");
    let output = holdfast(&["ls", "--data", data, "--exit-zero", "-q"]);
    assert_eq!(output.status.code(), Some(0));
    ends(64, &["ls", "--data", data, "--no-such-flag"]);
}

#[tokio::test]
async fn ls_shows_repositories_and_their_images() {
    let volume = Volume::filled().await;
    let list = volume.root.path().join("list.json");
    let names = holdfast(&["ls", "--data", volume.path(), "-o", "name"]).stdout;
    assert_eq!(names, b"docker.io/library/nginx\nteam/app\n");
    let text = ends(0, &["ls", "--data", volume.path()]);
    assert!(
        text.contains("docker.io/library/nginx") && text.contains("team/app"),
        "{text}"
    );
    let text = ends(
        0,
        &[
            "ls",
            "--data",
            volume.path(),
            "nginx",
            "--json",
            list.to_str().unwrap(),
        ],
    );
    assert!(
        text.contains("docker.io/library/nginx:1.27") && text.contains("linux/amd64, linux/arm64"),
        "{text}"
    );
    let found = json_of(&list);
    assert_eq!(
        found["items"][0]["tags"][0]["platforms"],
        json!(["linux/amd64", "linux/arm64"])
    );
    let text = ends(0, &["ls", "--data", volume.path(), "--tags"]);
    assert!(text.contains("team/app:1"), "{text}");
    assert!(ends(2, &["ls", "--data", volume.path(), "absent"]).contains("no repository absent"));
}

#[tokio::test]
async fn images_go_out_and_in_again() {
    let volume = Volume::filled().await;
    let folder = tempfile::tempdir().unwrap();
    let tar = folder.path().join("images.tar");
    let tar = tar.to_str().unwrap();
    let text = ends(
        0,
        &[
            "export",
            "--data",
            volume.path(),
            "team/app:1",
            "nginx:1.27",
            "-o",
            tar,
        ],
    );
    assert!(text.contains("2 images"), "{text}");

    let other = Volume::new().await;
    let text = ends(0, &["import", "--data", other.path(), "--dry-run", tar]);
    assert!(
        text.contains("2 images verified") && text.contains("docker.io/library/nginx:1.27"),
        "{text}"
    );
    assert!(!ends(0, &["ls", "--data", other.path()]).contains("nginx"));
    let text = ends(64, &["import", "--reserve-percent=51", "--data", "/", tar]);
    assert!(text.contains("51 is not in 0..=50"), "{text}");
    let text = ends(0, &["import", RESERVE, "--data", other.path(), tar]);
    assert!(text.contains("6 blobs of"), "{text}");
    let text = ends(0, &["import", RESERVE, "--data", other.path(), tar]);
    assert!(text.contains("0 blobs of 0 B went in, 6 blobs"), "{text}");
    let listed = |volume: &Volume| ends(0, &["ls", "--data", volume.path(), "--tags"]);
    assert_eq!(listed(&other), listed(&volume));
    ends(0, &["fsck", "--data", other.path(), "--deep"]);

    // Through a pipe, as through `kubectl exec`.
    let piped = Volume::new().await;
    let mut export = Command::new(env!("CARGO_BIN_EXE_holdfast"))
        .args(["export", "--data", volume.path(), "--all", "-o", "-"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let import = Command::new(env!("CARGO_BIN_EXE_holdfast"))
        .args(["import", RESERVE, "--data", piped.path(), "-"])
        .stdin(export.stdout.take().unwrap())
        .output()
        .unwrap();
    assert!(export.wait().unwrap().success());
    assert!(
        import.status.success(),
        "{}",
        String::from_utf8_lossy(&import.stderr)
    );
    assert_eq!(listed(&piped), listed(&volume));
    let left: Vec<_> = fs::read_dir(piped.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["docker"], "nothing of the pipe stays");

    // As a folder, and under another name.
    let layout = folder.path().join("layout");
    let layout = layout.to_str().unwrap();
    ends(
        0,
        &[
            "export",
            "--data",
            volume.path(),
            "team/app:1",
            "-o",
            layout,
        ],
    );
    ends(
        0,
        &[
            "import",
            RESERVE,
            "--data",
            other.path(),
            layout,
            "--name",
            "registry.example:5000/copy:2",
        ],
    );
    assert!(listed(&other).contains("registry.example:5000/copy:2"));

    assert!(
        ends(
            2,
            &[
                "export",
                "--data",
                volume.path(),
                "absent",
                "--yes",
                "-o",
                tar
            ]
        )
        .contains("not on the volume")
    );
    fs::write(folder.path().join("not.tar"), "nonsense").unwrap();
    let bad = folder.path().join("not.tar");
    assert!(
        ends(
            2,
            &["import", "--data", other.path(), bad.to_str().unwrap()]
        )
        .contains("no tar file")
    );
    let leftovers: Vec<_> = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name.to_string_lossy().ends_with(".part"))
        .collect();
    assert!(leftovers.is_empty(), "{leftovers:?}");
}

#[tokio::test]
async fn names_that_end_like_temporary_files_are_listed_and_go_out_and_in() {
    let volume = Volume::new().await;
    let names = [
        ("team/app", "1.tmp"),
        ("team/app.tmp", "1"),
        ("team.tmp/app", "link.tmp"),
        ("docker.io/library/nginx.tmp", "1.27.tmp"),
    ];
    for ((repo, tag), layer) in names.iter().zip(1..) {
        let (digest, _) = volume.image(repo, "amd64", &[layer; 3000]).await;
        volume.tag(repo, tag, &digest).await;
    }
    let lines = |text: &str| -> Vec<String> {
        let first = |line: &str| line.split_whitespace().next().map(str::to_owned);
        text.lines().filter_map(first).collect()
    };
    let listed = |volume: &Volume| ends(0, &["ls", "--data", volume.path(), "--tags"]);
    let repositories = ends(0, &["ls", "--data", volume.path()]);
    for (repo, tag) in names {
        let found = lines(&repositories);
        assert!(found.contains(&repo.to_owned()), "{repo}: {repositories}");
        let text = listed(&volume);
        let name = format!("{repo}:{tag}");
        assert!(lines(&text).contains(&name), "{name}: {text}");
        let text = ends(0, &["ls", "--data", volume.path(), repo]);
        assert!(lines(&text).contains(&name), "{name}: {text}");
    }
    let folder = tempfile::tempdir().unwrap();
    let tar = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let export = |what: &[&str], tar: &str| {
        let to = ["export", "--data", volume.path(), "-o", tar];
        ends(0, &[&to, what].concat())
    };
    let import = |volume: &Volume, tar: &str| {
        ends(0, &["import", RESERVE, "--data", volume.path(), tar]);
        ends(0, &["fsck", "--data", volume.path(), "--deep"]);
    };
    // Each by its name, then everything.
    for (number, (repo, tag)) in names.iter().enumerate() {
        let (name, tar) = (format!("{repo}:{tag}"), tar(&format!("{number}.tar")));
        assert!(export(&[&name], &tar).contains("1 image"), "{name}");
        let other = Volume::new().await;
        import(&other, &tar);
        let text = listed(&other);
        assert!(lines(&text).contains(&name), "{name}: {text}");
    }
    let all = tar("all.tar");
    let text = export(&["--all"], &all);
    assert!(text.contains("4 images"), "{text}");
    let other = Volume::new().await;
    import(&other, &all);
    assert_eq!(listed(&other), listed(&volume));
}

#[tokio::test]
async fn a_damaged_image_leaves_no_archive() {
    let volume = Volume::filled().await;
    let layer = Hasher::digest(Algorithm::Sha256, &[1; 3000]);
    fs::write(volume.store.layout().blob(&layer), [9; 3000]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let tar = folder.path().join("images.tar");
    let text = ends(
        2,
        &[
            "export",
            "--data",
            volume.path(),
            "--all",
            "-o",
            tar.to_str().unwrap(),
        ],
    );
    assert!(text.contains("fsck --deep --repair"), "{text}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}
