//! Damaged trees are served as far as they are whole, and distribution's collector runs again over
//! what `fsck --repair` repaired.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    time::{Duration, SystemTime},
};

use holdfast_core::{
    digest::Digest,
    reference::{RepositoryName, Tag},
};
use holdfast_store::{
    Layout,
    survey::{Depth, survey},
    volume::Disk,
};
use holdfast_testkit::image::Image;
use holdfast_volume_tools::fsck::{self, Policy};

use super::{
    content::{Client, image_of},
    ours,
    theirs::{GENERATIONS, Generation},
};

/// What a damage acts on: `team/app:1` (image 1), `team/app:2` (image 2) and `other:1` (image 3).
struct Scene {
    root: tempfile::TempDir,
    layout: Layout,
    repo: RepositoryName,
    one: Image,
}

impl Scene {
    async fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let ours = ours::serve(root.path()).await;
        let client = Client::new(&ours.url);
        client.push("team/app", &["1"], &image_of(1)).await;
        client.push("team/app", &["2"], &image_of(2)).await;
        client.push("other", &["1"], &image_of(3)).await;
        Self {
            layout: Layout::new(root.path()),
            root,
            repo: "team/app".parse().unwrap(),
            one: image_of(1),
        }
    }

    fn layer(&self) -> Digest {
        self.one.layers[0].parse().unwrap()
    }

    fn manifest(&self) -> Digest {
        self.one.digest.parse().unwrap()
    }

    fn tag_link(&self) -> std::path::PathBuf {
        self.layout.tag_link(&self.repo, &Tag::parse("1").unwrap())
    }

    /// What `names` mean in this scene.
    fn paths(&self, names: &[(&'static str, u16)]) -> BTreeMap<String, u16> {
        names
            .iter()
            .map(|(name, status)| {
                let path = match *name {
                    "tag 1" => "/v2/team/app/manifests/1".to_owned(),
                    "manifest 1" => format!("/v2/team/app/manifests/{}", self.one.digest),
                    "layer 1" => format!("/v2/team/app/blobs/{}", self.one.layers[0]),
                    "other layer 1" => format!("/v2/team/app/blobs/{}", self.one.layers[1]),
                    "tag 2" => "/v2/team/app/manifests/2".to_owned(),
                    "other" => "/v2/other/manifests/1".to_owned(),
                    "tags" => "/v2/team/app/tags/list".to_owned(),
                    "catalog" => "/v2/_catalog".to_owned(),
                    name => panic!("{name} is no name of a scene"),
                };
                (path, *status)
            })
            .collect()
    }
}

fn write(path: &Path, bytes: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// All that is there, and answers 200 unless a case says otherwise.
const WHOLE: &[(&str, u16)] = &[
    ("tag 1", 200),
    ("manifest 1", 200),
    ("layer 1", 200),
    ("other layer 1", 200),
    ("tag 2", 200),
    ("other", 200),
    ("tags", 200),
    ("catalog", 200),
];

/// A damage, what it takes away, and what `fsck --repair` brings back.
type Case = (
    &'static str,
    fn(&Scene),
    &'static [(&'static str, u16)],
    &'static [(&'static str, u16)],
);

const CASES: &[Case] = &[
    ("nothing", |_| (), &[], &[]),
    (
        "empty link of a layer",
        |s| write(&s.layout.layer_link(&s.repo, &s.layer()), ""),
        &[("layer 1", 404)],
        &[],
    ),
    (
        "garbage in the link of a manifest",
        |s| write(&s.layout.revision_link(&s.repo, &s.manifest()), "garbage"),
        &[("tag 1", 404), ("manifest 1", 404)],
        &[],
    ),
    // Its history settles it at the first pull.
    ("empty tag", |s| write(&s.tag_link(), ""), &[], &[]),
    (
        "empty tag without history",
        |s| {
            write(&s.tag_link(), "");
            fs::remove_dir_all(s.layout.tag_index(&s.repo, &Tag::parse("1").unwrap())).unwrap();
        },
        &[("tag 1", 404)],
        &[("tag 1", 404)],
    ),
    (
        "leftovers of writes and of NFS",
        |s| {
            write(&s.tag_link().with_file_name("link.1.tmp"), "half");
            write(&s.layout.tags(&s.repo).join(".nfs0001"), "");
            write(&s.layout.repositories().join(".nfs0002"), "");
            write(
                &s.layout.blob(&s.layer()).with_file_name("data.1.tmp"),
                "half",
            );
        },
        &[],
        &[],
    ),
    (
        "repository without _layers",
        |s| fs::remove_dir_all(s.layout.repository(&s.repo).join("_layers")).unwrap(),
        &[("layer 1", 404), ("other layer 1", 404)],
        &[],
    ),
    (
        "manifest with other bytes",
        |s| write(&s.layout.blob(&s.manifest()), "{}"),
        &[("tag 1", 404), ("manifest 1", 404)],
        &[("tag 1", 404), ("manifest 1", 404)],
    ),
    (
        "bytes of a layer gone",
        |s| fs::remove_file(s.layout.blob(&s.layer())).unwrap(),
        &[("layer 1", 404)],
        &[("layer 1", 404)],
    ),
    (
        "symbolic links in the place of a blob and of a repository",
        |s| {
            let path = s.layout.blob(&s.layer());
            fs::remove_file(&path).unwrap();
            std::os::unix::fs::symlink("/etc/hostname", path).unwrap();
            let link = s.layout.repositories().join("linked");
            std::os::unix::fs::symlink(s.layout.repository(&s.repo), link).unwrap();
        },
        &[("layer 1", 404)],
        &[("layer 1", 404)],
    ),
    (
        "uploads without startedat, with names that are none, and as files",
        |s| {
            let uploads = s.layout.repository(&s.repo).join("_uploads");
            write(
                &uploads.join("018f4d0c-0000-7000-8000-000000000001/data"),
                "x",
            );
            write(&uploads.join("no-session/data"), "x");
            write(&uploads.join("file"), "x");
        },
        &[],
        &[],
    ),
];

async fn statuses(client: &Client, paths: &BTreeMap<String, u16>) -> BTreeMap<String, u16> {
    let mut found = BTreeMap::new();
    for path in paths.keys() {
        found.insert(path.clone(), client.get(path).await.status().as_u16());
    }
    found
}

/// What `holdfast fsck --deep --repair` does, a month later.
fn repair(root: &Path) {
    let disk = Disk::at(root);
    let later = SystemTime::now() + Duration::from_secs(30 * 86_400);
    let found = survey(&disk, root, later, &Depth::Deep, &mut |_| ()).unwrap();
    for finding in fsck::plan(&found, &Policy::default()) {
        if let Some(mend) = &finding.repair {
            fsck::repair(&disk, root, mend).unwrap();
        }
    }
}

// SPEC 37
#[tokio::test(flavor = "multi_thread")]
async fn damaged_trees_are_served_as_far_as_they_are_whole() {
    for (name, damage, lost, still_lost) in CASES {
        let scene = Scene::new().await;
        damage(&scene);
        let mut expect = scene.paths(WHOLE);
        expect.extend(scene.paths(lost));
        let ours = ours::serve(scene.root.path()).await;
        let client = Client::new(&ours.url);
        assert_eq!(statuses(&client, &expect).await, expect, "{name}");
        let list: serde_json::Value = client.get("/v2/_catalog").await.json().await.unwrap();
        assert_eq!(
            list["repositories"],
            serde_json::json!(["other", "team/app"]),
            "{name}"
        );
        let mut expect = scene.paths(WHOLE);
        expect.extend(scene.paths(still_lost));
        repair(scene.root.path());
        assert_eq!(statuses(&client, &expect).await, expect, "{name}, repaired");
    }
}

// SPEC 37
#[tokio::test(flavor = "multi_thread")]
async fn truncated_and_wrong_content_never_ends_cleanly() {
    for (name, bytes) in [
        (
            "truncated",
            image_of(1).blobs[&image_of(1).layers[0]][..1000].to_vec(),
        ),
        ("of no bytes", Vec::new()),
        ("other bytes", vec![7; 3000]),
    ] {
        let scene = Scene::new().await;
        let path = scene.layout.blob(&scene.layer());
        fs::write(&path, bytes).unwrap();
        let ours = ours::serve(scene.root.path()).await;
        let client = Client::new(&ours.url);
        let blob = format!("/v2/team/app/blobs/{}", scene.layer());
        let answer = client.get(&blob).await;
        let clean = answer.status() == 200 && answer.bytes().await.is_ok();
        assert!(!clean, "{name}: wrong bytes were given out as right");
        assert_eq!(
            client.get(&blob).await.status(),
            404,
            "{name}: and never again"
        );
        let whole = scene.paths(&[("tag 1", 200), ("other layer 1", 200), ("tag 2", 200)]);
        assert_eq!(
            statuses(&client, &whole).await,
            whole,
            "{name}: the rest is served"
        );
        client.push("team/app", &["1"], &scene.one).await;
        assert_eq!(
            client.get(&blob).await.status(),
            200,
            "{name}: a push heals"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_show_the_tags_that_can_be_pulled_and_no_others() {
    let scene = Scene::new().await;
    let tags = scene.layout.tags(&scene.repo);
    // Mendable by its history; garbage without one; a folder without the tag.
    write(&scene.tag_link(), "");
    write(&tags.join("garbage/current/link"), "sha256:what");
    fs::create_dir_all(tags.join("unfinished/index")).unwrap();
    let ours = ours::serve(scene.root.path()).await;
    let client = Client::new(&ours.url);
    let list: serde_json::Value = client
        .get("/v2/team/app/tags/list")
        .await
        .json()
        .await
        .unwrap();
    assert_eq!(list["tags"], serde_json::json!(["1", "2"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_brings_back_what_no_repair_can() {
    for (name, damage, ..) in CASES {
        let scene = Scene::new().await;
        damage(&scene);
        let ours = ours::serve(scene.root.path()).await;
        let client = Client::new(&ours.url);
        // Where a symbolic link sits in the place of a blob, nothing can be written until it is
        // taken away by hand.
        if name.starts_with("symbolic links") {
            fs::remove_file(scene.layout.blob(&scene.layer())).unwrap();
        }
        client.push("team/app", &["1"], &scene.one).await;
        let expect = scene.paths(WHOLE);
        assert_eq!(statuses(&client, &expect).await, expect, "{name}");
        let layer = client
            .get(&format!("/v2/team/app/blobs/{}", scene.one.layers[0]))
            .await;
        assert_eq!(
            layer.bytes().await.unwrap(),
            scene.one.blobs[&scene.one.layers[0]],
            "{name}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn collector_of_distribution_runs_again_over_a_repaired_tree() {
    for generation in GENERATIONS {
        let scene = Scene::new().await;
        write(
            &scene.layout.revision_link(&scene.repo, &scene.manifest()),
            "",
        );
        write(&scene.tag_link(), "");
        fs::remove_dir_all(scene.layout.repository(&scene.repo).join("_layers")).unwrap();
        repair(scene.root.path());
        generation.collect(scene.root.path(), false);
        let expect: BTreeMap<_, _> = scene.paths(WHOLE);
        let theirs = generation.serve(scene.root.path());
        assert_eq!(
            statuses(&Client::new(&theirs.url), &expect).await,
            expect,
            "{generation:?}"
        );
    }
}

/// Distribution 2.8 and 3 themselves stop at such a tree: this is what the repair is for.
#[tokio::test(flavor = "multi_thread")]
async fn distribution_does_not_serve_an_empty_tag_and_holdfast_does() {
    let scene = Scene::new().await;
    write(&scene.tag_link(), "");
    {
        let theirs = Generation::Two.serve(scene.root.path());
        let answer = Client::new(&theirs.url)
            .get("/v2/team/app/manifests/1")
            .await;
        assert_ne!(answer.status(), 200);
    }
    let ours = ours::serve(scene.root.path()).await;
    let answer = Client::new(&ours.url).get("/v2/team/app/manifests/1").await;
    assert_eq!(answer.status(), 200);
}
