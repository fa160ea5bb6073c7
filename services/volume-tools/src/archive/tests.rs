//! Out and in again, between real volumes.

use std::{
    collections::BTreeMap,
    io::{Cursor, Write as _},
    path::Path,
};

use bytes::Bytes;
use holdfast_core::{
    digest::{Algorithm, Digest},
    oci::{MANIFEST_BYTES, Platform},
    reference::{RepositoryName, Tag},
};
use holdfast_store::{
    Hasher, LockHolder, Options, Store, View,
    survey::{Depth, survey},
    volume::Disk,
};

mod hostile;

use super::*;

fn sha256(bytes: &[u8]) -> Digest {
    Hasher::digest(Algorithm::Sha256, bytes)
}

async fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let options = Options::unlimited();
    let store = Store::open(dir.path(), options).await.unwrap();
    (dir, store)
}

fn owner() -> LockHolder {
    LockHolder {
        address: String::new(),
        id: "test".to_owned(),
    }
}

/// The contents of an image of one layer: manifest, configuration, layer.
fn image(layer: &[u8], platform: &str) -> [(Digest, Vec<u8>); 3] {
    let config = format!(r#"{{"os":"linux","architecture":"{platform}"}}"#).into_bytes();
    let (config_digest, layer_digest) = (sha256(&config), sha256(layer));
    let manifest = format!(
        r#"{{"schemaVersion":2, "config":{{"digest":"{config_digest}","size":{}}},"layers":[{{"digest":"{layer_digest}","size":{}}}]}}"#,
        config.len(),
        layer.len()
    )
    .into_bytes();
    [
        (sha256(&manifest), manifest),
        (config_digest, config),
        (layer_digest, layer.to_vec()),
    ]
}

fn index(children: &[(&str, &(Digest, Vec<u8>))]) -> (Digest, Vec<u8>) {
    let children: Vec<_> = children
        .iter()
        .map(|(platform, (digest, bytes))| {
            format!(
                r#"{{"digest":"{digest}","size":{},"platform":{{"os":"linux","architecture":"{platform}"}}}}"#,
                bytes.len()
            )
        })
        .collect();
    let bytes = format!(
        r#"{{"schemaVersion":2, "manifests":[{}]}}"#,
        children.join(",")
    )
    .into_bytes();
    (sha256(&bytes), bytes)
}

async fn put(store: &Store, repo: &str, tag: Option<&str>, image: &[(Digest, Vec<u8>); 3]) {
    let repo: RepositoryName = repo.parse().unwrap();
    let [(manifest, bytes), parts @ ..] = image;
    for (digest, bytes) in parts {
        store
            .put_blob(digest, Bytes::from(bytes.clone()))
            .await
            .unwrap();
        store.link_blob(&repo, digest).await.unwrap();
    }
    store
        .put_manifest(&repo, manifest, Bytes::from(bytes.clone()))
        .await
        .unwrap();
    if let Some(tag) = tag {
        store
            .set_tag(&repo, &Tag::parse(tag).unwrap(), manifest)
            .await
            .unwrap();
    }
}

/// A volume with `team/app:1` and, from an upstream, `docker.io/library/multi:1`: an index of three
/// platforms, two of which were copied.
async fn volume() -> (tempfile::TempDir, Store, Digest) {
    let (dir, store) = store().await;
    put(&store, "team/app", Some("1"), &image(&[7; 5000], "amd64")).await;
    let repo = "docker.io/library/multi";
    let (amd, arm, other) = (
        image(b"amd", "amd64"),
        image(&[7; 5000], "arm64"),
        image(b"s390", "s390x"),
    );
    put(&store, repo, None, &amd).await;
    put(&store, repo, None, &arm).await;
    let (digest, bytes) = index(&[("amd64", &amd[0]), ("arm64", &arm[0]), ("s390x", &other[0])]);
    let repo: RepositoryName = repo.parse().unwrap();
    store
        .put_manifest(&repo, &digest, bytes.into())
        .await
        .unwrap();
    store
        .set_tag(&repo, &Tag::parse("1").unwrap(), &digest)
        .await
        .unwrap();
    (dir, store, digest)
}

fn bundles(root: &Path, names: &[&str], platforms: &[&str]) -> Result<Vec<(Name, Bundle)>> {
    let view = View::open(root)?;
    let platforms: Vec<_> = platforms
        .iter()
        .map(|text| Platform::parse(text).unwrap())
        .collect();
    names
        .iter()
        .map(|text| {
            let (name, digest) = resolve(&view, text)?;
            let bundle = Bundle::collect(
                &mut in_repository(&view, &name.repository),
                &digest,
                &platforms,
            )?;
            Ok((name, bundle))
        })
        .collect()
}

fn export_tar(root: &Path, names: &[&str], platforms: &[&str]) -> Result<Vec<u8>> {
    let images = bundles(root, names, platforms)?;
    let mut tar = TarWriter::new(Vec::new());
    export(&View::open(root)?, &images, &mut tar, &mut |_| ())?;
    Ok(tar.into_inner())
}

async fn import_into(store: &Store, source: &mut dyn ArchiveReader) -> Result<Counts> {
    let plan = plan(source, None, &[])?;
    import(source, &plan, store, &owner(), &mut |_| ()).await
}

async fn import_tar(store: &Store, tar: &[u8]) -> Result<Counts> {
    let mut source = TarReader::open(Cursor::new(tar.to_vec()))?;
    import_into(store, &mut source).await
}

/// What a volume answers for these names, from the top down.
fn shown(root: &Path, names: &[&str]) -> BTreeMap<String, Bundle> {
    let bundles = bundles(root, names, &[]).unwrap();
    bundles
        .into_iter()
        .map(|(name, bundle)| (name.to_string(), bundle))
        .collect()
}

const NAMES: [&str; 2] = ["team/app:1", "multi:1"];

#[tokio::test]
async fn images_come_back_byte_for_byte_through_a_tar_file_and_through_a_folder() {
    let (from, _, digest) = volume().await;
    let tar = export_tar(from.path(), &NAMES, &[]).unwrap();
    assert!(
        tar == export_tar(from.path(), &NAMES, &[]).unwrap(),
        "the same images give the same file"
    );
    let folder = tempfile::tempdir().unwrap();
    for run in ["first", "again"] {
        let images = bundles(from.path(), &NAMES, &[]).unwrap();
        let mut target = FolderWriter::new(&folder.path().join("new")).unwrap();
        export(
            &View::open(from.path()).unwrap(),
            &images,
            &mut target,
            &mut |_| (),
        )
        .unwrap_or_else(|error| panic!("{run}: {error}"));
    }
    let before = shown(from.path(), &NAMES);
    assert!(before.contains_key("docker.io/library/multi:1"));
    for way in ["tar", "folder"] {
        let (to, store) = store().await;
        for run in [true, false] {
            let counts = if way == "tar" {
                import_tar(&store, &tar).await.unwrap()
            } else {
                let mut source = FolderReader::open(&folder.path().join("new"));
                import_into(&store, &mut source).await.unwrap()
            };
            // The layer of 5000 bytes is in two images, and goes once.
            let expect = if run { (4, 0) } else { (0, 4) };
            assert_eq!(
                (counts.blobs, counts.present),
                expect,
                "{way}, first: {run}"
            );
        }
        assert_eq!(shown(to.path(), &NAMES), before, "{way}");
        let repo: RepositoryName = "docker.io/library/multi".parse().unwrap();
        assert!(store.has_manifest(&repo, &digest).await.unwrap());
        let findings = {
            let disk = Disk::at(to.path());
            let later = std::time::SystemTime::now() + std::time::Duration::from_secs(30 * 86_400);
            let found = survey(&disk, to.path(), later, &Depth::Deep, &mut |_| ()).unwrap();
            crate::fsck::plan(&found, &crate::fsck::Policy::default())
        };
        assert_eq!(findings, [], "{way}: a clean volume");
    }
}

#[tokio::test]
async fn of_an_index_only_the_platforms_that_were_asked_for_go_out() {
    let (from, ..) = volume().await;
    let taken = |platforms: &[&str]| {
        bundles(from.path(), &["multi:1"], platforms).map(|bundles| {
            let bundle = &bundles[0].1;
            (bundle.manifests.len(), bundle.left_out.len())
        })
    };
    // The index itself counts.
    assert_eq!(taken(&[]).unwrap(), (3, 1));
    assert_eq!(taken(&["linux/amd64"]).unwrap(), (2, 2));
    assert_eq!(taken(&["linux/amd64", "linux/arm64"]).unwrap(), (3, 1));
    assert!(
        matches!(taken(&["linux/s390x"]), Err(Error::Incomplete { .. })),
        "listed, and not copied"
    );
    let error = taken(&["windows/amd64"]).unwrap_err().to_string();
    assert!(error.contains("linux/amd64, linux/arm64"), "{error}");
}

#[tokio::test]
async fn what_is_not_there_or_damaged_does_not_go_out() {
    let (from, store, _) = volume().await;
    let error = export_tar(from.path(), &["absent:1"], &[]).unwrap_err();
    assert!(matches!(error, Error::Unknown(_)), "{error}");
    let layer = store.layout().blob(&sha256(&[7; 5000]));
    std::fs::write(&layer, [8; 5000]).unwrap();
    assert!(matches!(
        export_tar(from.path(), &NAMES, &[]),
        Err(Error::Damaged { .. })
    ));
    assert!(layer.exists(), "an export moves nothing aside");
    std::fs::write(&layer, "short").unwrap();
    assert!(matches!(
        export_tar(from.path(), &NAMES, &[]),
        Err(Error::Damaged { .. })
    ));
    std::fs::remove_file(&layer).unwrap();
    assert!(matches!(
        export_tar(from.path(), &NAMES, &[]),
        Err(Error::Incomplete { .. })
    ));
}

/// An archive of the image `team/app:1`.
async fn exported(parts: &[(Digest, Vec<u8>); 3]) -> Vec<u8> {
    let from = tempfile::tempdir().unwrap();
    let origin = Store::open(from.path(), Options::unlimited())
        .await
        .unwrap();
    put(&origin, "team/app", Some("1"), parts).await;
    export_tar(from.path(), &["team/app:1"], &[]).unwrap()
}

#[tokio::test]
async fn an_import_continues_where_another_ended_and_replaces_what_is_damaged() {
    let (_dir, store) = store().await;
    let parts = image(&vec![9; 700_000], "amd64");
    let tar = exported(&parts).await;
    // A run that ended within the layer.
    let (layer, bytes) = &parts[2];
    let mut half = store.ingest_blob(layer).await.unwrap();
    half.append(Bytes::copy_from_slice(&bytes[..300_000]))
        .await
        .unwrap();
    drop(half);
    assert_eq!(import_tar(&store, &tar).await.unwrap().blobs, 2);
    // Damaged since: the next run puts it right.
    let path = store.layout().blob(layer);
    std::fs::write(&path, vec![1; bytes.len()]).unwrap();
    let counts = import_tar(&store, &tar).await.unwrap();
    assert_eq!((counts.blobs, counts.present), (1, 1));
    assert_eq!(std::fs::read(&path).unwrap(), *bytes);
}

#[tokio::test]
async fn an_import_needs_nothing_of_what_others_left() {
    let parts = image(&vec![9; 700_000], "amd64");
    let tar = exported(&parts).await;
    // Wrong bytes of another attempt, fewer and more than the content has.
    for left in [300_000, 900_000] {
        let (_dir, store) = store().await;
        let mut wrong = store.ingest_blob(&parts[2].0).await.unwrap();
        wrong.append(vec![1; left].into()).await.unwrap();
        drop(wrong);
        assert_eq!(import_tar(&store, &tar).await.unwrap().blobs, 2, "{left}");
        let path = store.layout().blob(&parts[2].0);
        assert_eq!(std::fs::read(&path).unwrap(), parts[2].1);
    }
}

#[test]
fn headers_carry_long_names_and_large_sizes() {
    let sha512 = format!("blobs/sha512/{}", "a".repeat(128));
    let endless = format!("{}/{}", "b".repeat(90), "c".repeat(160));
    for (name, size) in [
        ("index.json", 10),
        (sha512.as_str(), 10),
        ("blobs/sha256/x", 9 << 30),
        (endless.as_str(), 10),
    ] {
        let bytes = tar::file(name, size).unwrap();
        assert_eq!(bytes.len() % 512, 0);
        let mut found = (None, None);
        let mut blocks = bytes.chunks(512);
        while let Some(block) = blocks.next() {
            match tar::header(block.try_into().unwrap()).unwrap() {
                tar::Header::Records(length) => {
                    let records = blocks.next().unwrap();
                    found = tar::records(&records[..usize::try_from(length).unwrap()]).unwrap();
                }
                tar::Header::Entry { name, size, .. } => {
                    found = (found.0.or(Some(name)), found.1.or(Some(size)));
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(found, (Some(name.to_owned()), Some(size)));
    }
}

#[test]
fn archives_of_other_tools_are_read() {
    // GNU tar with names that are long and sizes in base 256, as its man page says; folders before
    // files, names from `./`.
    let dir = tempfile::tempdir().unwrap();
    let deep = format!("{}/{}", "d".repeat(120), "e".repeat(120));
    std::fs::create_dir_all(dir.path().join(&deep)).unwrap();
    for format in ["gnu", "pax", "ustar"] {
        let name = if format == "ustar" {
            "short".to_owned()
        } else {
            format!("{deep}/file")
        };
        let mut file = std::fs::File::create(dir.path().join(&name)).unwrap();
        file.write_all(b"content").unwrap();
        let output = std::process::Command::new("tar")
            .args(["--format", format, "-C"])
            .arg(dir.path())
            .args(["-cf", "-", &format!("./{name}")])
            .output()
            .unwrap();
        assert!(output.status.success());
        let mut source = TarReader::open(Cursor::new(output.stdout)).unwrap();
        assert_eq!(
            source.read(&name, 100).unwrap().unwrap(),
            b"content",
            "{format}"
        );
    }
}
