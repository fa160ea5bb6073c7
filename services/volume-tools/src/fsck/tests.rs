//! Damages on a real volume, as a table: what is found, and what is repaired.

use std::{collections::BTreeMap, fs, path::Path, time::SystemTime};

use bytes::Bytes;
use holdfast_core::{
    digest::{Algorithm, Digest},
    reference::{RepositoryName, Tag},
};

use holdfast_store::{
    Hasher, Layout, Options, Store,
    survey::{Depth, survey},
    volume::Disk,
};

use super::*;

/// A volume with `team/app:1`, one image of one layer, and `team/app:2` beside it.
struct Volume {
    folder: tempfile::TempDir,
    layout: Layout,
    repo: RepositoryName,
    layer: Digest,
    manifest: Digest,
}

fn sha256(bytes: &[u8]) -> Digest {
    Hasher::digest(Algorithm::Sha256, bytes)
}

fn image(config: &Digest, layer: &Digest, size: usize, extra: &str) -> String {
    format!(
        r#"{{"schemaVersion":2,"config":{{"digest":"{config}","size":2}},"layers":[{{"digest":"{layer}","size":{size}}}]{extra}}}"#
    )
}

async fn volume() -> Volume {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), Options::unlimited())
        .await
        .unwrap();
    let repo: RepositoryName = "team/app".parse().unwrap();
    let (config, layer) = (sha256(b"{}"), sha256(b"layer"));
    for (digest, bytes) in [(&config, "{}"), (&layer, "layer")] {
        store.put_blob(digest, Bytes::from(bytes)).await.unwrap();
        store.link_blob(&repo, digest).await.unwrap();
    }
    let mut digests = Vec::new();
    for (tag, extra) in [("2", r#","annotations":{"n":"2"}"#), ("1", "")] {
        let bytes = image(&config, &layer, 5, extra);
        let digest = sha256(bytes.as_bytes());
        store
            .put_manifest(&repo, &digest, bytes.into())
            .await
            .unwrap();
        store
            .set_tag(&repo, &Tag::parse(tag).unwrap(), &digest)
            .await
            .unwrap();
        digests.push(digest);
    }
    Volume {
        layout: Layout::new(folder.path()),
        manifest: digests.pop().unwrap(),
        folder,
        repo,
        layer,
    }
}

impl Volume {
    fn root(&self) -> &Path {
        self.folder.path()
    }

    fn one() -> Tag {
        Tag::parse("1").unwrap()
    }

    /// Checks it as if this time had passed.
    fn check(&self, later: Duration, depth: &Depth) -> Vec<Finding> {
        let disk = Disk::at(self.root());
        let found = survey(
            &disk,
            self.root(),
            SystemTime::now() + later,
            depth,
            &mut |_| (),
        )
        .unwrap();
        plan(&found, &Policy::default())
    }

    /// Every file with its content.
    fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut found = BTreeMap::new();
        let mut pending = vec![self.root().to_owned()];
        while let Some(folder) = pending.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_symlink() {
                    found.insert(path, b"symlink".to_vec());
                } else if path.is_dir() {
                    pending.push(path);
                } else {
                    found.insert(path.clone(), fs::read(path).unwrap());
                }
            }
        }
        found
    }
}

fn write(path: &Path, bytes: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// Moves content to the quarantine, as a registry does that is killed before it moves it back.
fn move_aside(v: &Volume, digest: &Digest) {
    let aside = v.layout.quarantine(digest, "unique");
    fs::create_dir_all(aside.parent().unwrap()).unwrap();
    fs::rename(v.layout.blob(digest), aside).unwrap();
}

/// Empties a tag whose history holds two manifests.
fn tag_with_two(v: &Volume) {
    write(&v.layout.tag_link(&v.repo, &Volume::one()), " ");
    let other = v.layout.tags(&v.repo).join("2/index");
    let index = v.layout.tag_index(&v.repo, &Volume::one());
    for entry in fs::read_dir(other.join("sha256")).unwrap() {
        let hex = entry.unwrap().file_name();
        let link = Path::new("sha256").join(hex).join("link");
        write(
            &index.join(&link),
            &fs::read_to_string(other.join(&link)).unwrap(),
        );
    }
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// What a damage is called, whether it needs `--deep`, and whether one answer is certain.
type Case = (&'static str, fn(&Volume), &'static [(Kind, bool)], bool);

const CASES: &[Case] = &[
    ("nothing", |_| (), &[], false),
    (
        "empty link of a layer",
        |v| write(&v.layout.layer_link(&v.repo, &v.layer), ""),
        &[(Kind::DamagedLink, true)],
        false,
    ),
    (
        "garbage in the link of a manifest",
        |v| {
            write(
                &v.layout.revision_link(&v.repo, &v.manifest),
                "sha256:nonsense",
            );
        },
        &[(Kind::DamagedLink, true)],
        false,
    ),
    (
        "empty link whose bytes are gone",
        |v| {
            write(&v.layout.layer_link(&v.repo, &v.layer), "");
            fs::remove_file(v.layout.blob(&v.layer)).unwrap();
        },
        &[(Kind::DamagedLink, false)],
        false,
    ),
    (
        "link of a layer that names the manifest",
        |v| write(&v.layout.layer_link(&v.repo, &v.layer), v.manifest.as_str()),
        &[(Kind::LinkElsewhere, true)],
        false,
    ),
    (
        "bytes of a layer gone",
        |v| fs::remove_file(v.layout.blob(&v.layer)).unwrap(),
        &[(Kind::MissingContent, false)],
        false,
    ),
    (
        "sound bytes of a layer in the quarantine",
        |v| move_aside(v, &v.layer),
        &[(Kind::SoundInQuarantine, true)],
        false,
    ),
    (
        "sound bytes in the quarantine that nothing links",
        |v| {
            let digest = sha256(b"other");
            write(&v.layout.quarantine(&digest, "unique"), "other");
        },
        &[],
        false,
    ),
    (
        "damaged bytes of a layer in the quarantine",
        |v| {
            write(&v.layout.blob(&v.layer), "LAYER");
            move_aside(v, &v.layer);
        },
        &[(Kind::MissingContent, false)],
        false,
    ),
    (
        "sound bytes in the quarantine and in their place",
        |v| {
            move_aside(v, &v.layer);
            write(&v.layout.blob(&v.layer), "layer");
        },
        &[],
        false,
    ),
    (
        "bytes of a manifest gone",
        |v| fs::remove_file(v.layout.blob(&v.manifest)).unwrap(),
        &[(Kind::MissingContent, false), (Kind::DanglingTag, false)],
        false,
    ),
    (
        "truncated layer",
        |v| write(&v.layout.blob(&v.layer), "lay"),
        &[(Kind::WrongContent, true)],
        false,
    ),
    (
        "layer of no bytes",
        |v| write(&v.layout.blob(&v.layer), ""),
        &[(Kind::WrongContent, true)],
        false,
    ),
    (
        "layer of the right size with other bytes",
        |v| write(&v.layout.blob(&v.layer), "LAYER"),
        &[(Kind::WrongContent, true)],
        true,
    ),
    (
        "manifest with other bytes",
        |v| write(&v.layout.blob(&v.manifest), "{}"),
        &[(Kind::WrongContent, true), (Kind::DanglingTag, false)],
        false,
    ),
    (
        "empty tag with one manifest in its history",
        |v| write(&v.layout.tag_link(&v.repo, &Volume::one()), ""),
        &[(Kind::DamagedTag, true)],
        false,
    ),
    (
        "empty tag with two manifests in its history, one of them in the quarantine",
        |v| {
            tag_with_two(v);
            move_aside(v, &v.manifest);
        },
        &[(Kind::SoundInQuarantine, true), (Kind::DamagedTag, false)],
        false,
    ),
    (
        "empty tag with two manifests in its history",
        tag_with_two,
        &[(Kind::DamagedTag, false)],
        false,
    ),
    (
        "tag without history",
        |v| fs::remove_dir_all(v.layout.tag_index(&v.repo, &Volume::one())).unwrap(),
        &[(Kind::TagHistory, true)],
        false,
    ),
    (
        "tag of a manifest that was unlinked",
        |v| fs::remove_file(v.layout.revision_link(&v.repo, &v.manifest)).unwrap(),
        &[(Kind::DanglingTag, false)],
        false,
    ),
    (
        "manifest that was deleted, with a tag that is not removed yet",
        |v| {
            let link = v.layout.revision_link(&v.repo, &v.manifest);
            fs::rename(link, tombstone(v).join("team+app")).unwrap();
        },
        &[(Kind::UnfinishedDelete, false)],
        false,
    ),
    (
        "folder of a tag without the tag",
        |v| fs::remove_dir_all(v.layout.tag(&v.repo, &Volume::one()).join("current")).unwrap(),
        &[(Kind::UnfinishedTag, true)],
        false,
    ),
    (
        "repository without its links to blobs",
        |v| fs::remove_dir_all(v.layout.repository(&v.repo).join("_layers")).unwrap(),
        // Two images of two blobs: the same two links.
        &[(Kind::Unlinked, true), (Kind::Unlinked, true)],
        false,
    ),
    (
        "one blob deleted from the repository",
        |v| fs::remove_file(v.layout.layer_link(&v.repo, &v.layer)).unwrap(),
        &[(Kind::Unlinked, false)],
        false,
    ),
    (
        "temporary file",
        |v| {
            write(
                &v.layout
                    .tag_link(&v.repo, &Volume::one())
                    .with_file_name("link.1.tmp"),
                "x",
            );
        },
        &[(Kind::Leftover, true)],
        false,
    ),
    (
        "temporary file beside a blob",
        |v| write(&v.layout.blob(&v.layer).with_file_name(".data.1.tmp"), "x"),
        &[(Kind::Leftover, true)],
        false,
    ),
    (
        "file that NFS kept",
        |v| write(&v.layout.tags(&v.repo).join(".nfs0001"), "x"),
        &[(Kind::Leftover, true)],
        false,
    ),
    (
        "symbolic link in the place of a blob",
        |v| {
            let path = v.layout.blob(&v.layer);
            fs::remove_file(&path).unwrap();
            std::os::unix::fs::symlink("/etc/hostname", path).unwrap();
        },
        &[(Kind::MissingContent, false), (Kind::Symlink, false)],
        false,
    ),
    (
        "folder that is no repository, file that is no folder",
        |v| {
            write(&v.layout.repositories().join("UPPER/_manifests/x"), "");
            write(&v.layout.repositories().join("file"), "");
        },
        &[(Kind::Foreign, false), (Kind::Foreign, false)],
        false,
    ),
    (
        "upload without startedat",
        |v| {
            write(
                &v.layout
                    .upload(&v.repo, "018f4d0c-0000-7000-8000-000000000001")
                    .join("data"),
                "x",
            );
        },
        // After eight days it is abandoned.
        &[(Kind::Abandoned, true)],
        false,
    ),
    (
        "partial copy",
        |v| write(&v.layout.incoming(&v.manifest), "x"),
        &[(Kind::Abandoned, true)],
        false,
    ),
    (
        "partial copy whose writer stopped",
        |v| {
            let name = format!(".{}.1.tmp", v.manifest.hex());
            write(&v.layout.incoming(&v.manifest).with_file_name(name), "x");
        },
        &[(Kind::Abandoned, true)],
        false,
    ),
    (
        "upload whose writer stopped",
        |v| {
            let id = "018f4d0c-0000-7000-8000-000000000001";
            write(&v.layout.upload(&v.repo, id).join("startedat"), "x");
            write(&v.layout.upload(&v.repo, id).join(".data.1.tmp"), "x");
        },
        &[(Kind::Abandoned, true)],
        false,
    ),
    (
        "manifest that lies about a size",
        |v| {
            let bytes = image(&sha256(b"{}"), &v.layer, 7, "");
            let digest = sha256(bytes.as_bytes());
            write(&v.layout.blob(&digest), &bytes);
            write(&v.layout.revision_link(&v.repo, &digest), digest.as_str());
        },
        &[(Kind::WrongSize, false)],
        false,
    ),
    (
        "layer that is linked as a manifest",
        |v| write(&v.layout.revision_link(&v.repo, &v.layer), v.layer.as_str()),
        &[(Kind::NotAManifest, false)],
        false,
    ),
    (
        "attached manifest that no list shows",
        |v| {
            let subject = format!(r#","subject":{{"digest":"{}","size":1}}"#, v.manifest);
            let bytes = image(&sha256(b"{}"), &v.layer, 5, &subject);
            let digest = sha256(bytes.as_bytes());
            write(&v.layout.blob(&digest), &bytes);
            write(&v.layout.revision_link(&v.repo, &digest), digest.as_str());
        },
        &[(Kind::UnlistedReferrer, true)],
        false,
    ),
    (
        "list of attached manifests that names one that is gone",
        |v| {
            let gone = sha256(b"gone");
            write(
                &v.layout.referrer_link(&v.repo, &v.manifest, &gone),
                gone.as_str(),
            );
        },
        &[(Kind::StaleReferrer, true)],
        false,
    ),
];

#[tokio::test]
async fn every_damage_is_found_and_repaired_where_one_repair_is_certain() {
    for (name, damage, expect, deep) in CASES {
        let volume = volume().await;
        let disk = Disk::at(volume.root());
        damage(&volume);
        let later = DAY * 8;
        let quick = volume.check(later, &Depth::Quick);
        if *deep {
            assert_eq!(quick, [], "{name}: only the bytes tell");
        }
        let before = volume.files();
        let depth = if *deep { Depth::Deep } else { Depth::Quick };
        let findings = volume.check(later, &depth);
        let found: Vec<_> = findings
            .iter()
            .map(|finding| (finding.kind, finding.repair.is_some()))
            .collect();
        assert_eq!(found, *expect, "{name}: {findings:#?}");
        assert_eq!(volume.files(), before, "{name}: a survey changes nothing");
        for needed in findings
            .iter()
            .filter_map(|finding| finding.repair.as_ref())
        {
            assert_eq!(
                repair(&disk, volume.root(), needed).unwrap(),
                Outcome::Repaired,
                "{name}: {needed}"
            );
            assert_eq!(
                repair(&disk, volume.root(), needed).unwrap(),
                Outcome::Resolved,
                "{name}: {needed}"
            );
        }
        let left = volume.check(later, &Depth::Deep);
        assert!(
            left.iter().all(|finding| finding.repair.is_none()),
            "{name}: a second run has nothing to repair: {left:#?}"
        );
    }
}

#[tokio::test]
async fn sound_content_is_given_back_from_the_quarantine() {
    let volume = volume().await;
    for digest in [&volume.layer, &volume.manifest] {
        move_aside(&volume, digest);
    }
    let findings = volume.check(DAY, &Depth::Quick);
    let disk = Disk::at(volume.root());
    for needed in findings.iter().filter_map(|it| it.repair.as_ref()) {
        repair(&disk, volume.root(), needed).unwrap();
    }
    assert_eq!(volume.check(DAY, &Depth::Deep), []);
    assert!(!volume.layout.quarantine(&volume.layer, "unique").exists());
}

// Between survey and repair a client deletes the manifest, or the tag. The folder of the
// delete is there a moment before the link is in it.
#[tokio::test]
async fn a_repair_brings_nothing_back_that_was_deleted_meanwhile() {
    type Path = fn(&Volume) -> PathBuf;
    let tag: Path = |v| v.layout.tag_link(&v.repo, &Volume::one());
    let revision: Path = |v| v.layout.revision_link(&v.repo, &v.manifest);
    let history: Path = |v| {
        v.layout
            .tag_index_link(&v.repo, &Volume::one(), &v.manifest)
    };
    let delete_manifest = |v: &Volume| {
        let folder = tombstone(v);
        fs::rename(revision(v), folder.join("team+app")).unwrap();
    };
    let begin = |v: &Volume| drop(tombstone(v));
    let delete_tag =
        |v: &Volume| fs::remove_dir_all(v.layout.tag(&v.repo, &Volume::one())).unwrap();
    let delete_manifest: &dyn Fn(&Volume) = &delete_manifest;
    for (damaged, what, deleted) in [
        (tag, "manifest", delete_manifest),
        (revision, "manifest", delete_manifest),
        (revision, "manifest, in a moment", &begin),
        (history, "manifest", delete_manifest),
        (tag, "tag", &delete_tag),
        (history, "tag", &delete_tag),
    ] {
        let volume = volume().await;
        write(&damaged(&volume), "");
        let findings = volume.check(DAY * 8, &Depth::Quick);
        let repairs: Vec<_> = findings
            .iter()
            .filter_map(|it| it.repair.as_ref())
            .collect();
        assert_eq!(repairs.len(), 1, "{findings:#?}");
        deleted(&volume);
        let before = volume.files();
        let outcome = repair(&Disk::at(volume.root()), volume.root(), repairs[0]).unwrap();
        assert_eq!(outcome, Outcome::Resolved, "{what}: {}", repairs[0]);
        assert_eq!(volume.files(), before, "{what}: {}", repairs[0]);
    }
}

/// The folder of a delete of the manifest.
fn tombstone(v: &Volume) -> PathBuf {
    let name = format!("key.sha256-{}.chance", v.manifest.hex());
    let folder = v.layout.deletes().join(name);
    fs::create_dir_all(&folder).unwrap();
    folder
}

#[tokio::test]
async fn names_that_end_like_temporary_files_are_no_findings() {
    let v = volume().await;
    let store = Store::open(v.root(), Options::unlimited()).await.unwrap();
    let repo: RepositoryName = "team/app.tmp".parse().unwrap();
    let tag = Tag::parse("v1.tmp").unwrap();
    store.set_tag(&v.repo, &tag, &v.manifest).await.unwrap();
    let (digest, bytes) = (sha256(b"{}"), Bytes::from("{}"));
    store.put_manifest(&repo, &digest, bytes).await.unwrap();
    store.set_tag(&repo, &tag, &digest).await.unwrap();
    let disk = Disk::at(v.root());
    let now = SystemTime::now() + 8 * DAY;
    let found = survey(&disk, v.root(), now, &Depth::Deep, &mut |_| ()).unwrap();
    for repo in [&v.repo, &repo] {
        assert!(found.repositories[repo].tags.contains_key(&tag), "{repo}");
    }
    let findings = plan(&found, &Policy::default());
    let tagged = findings
        .iter()
        .filter(|finding| !matches!(finding.kind, Kind::NotAManifest))
        .count();
    assert_eq!(tagged, 0, "{findings:#?}");
}
