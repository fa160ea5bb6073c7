//! Archives that are broken or meant to harm: refused, and nothing of them is visible.

use super::*;

/// A tar file of these files.
fn tar_of(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, content) in files {
        bytes.extend(tar::file(name, content.len() as u64).unwrap());
        bytes.extend(content);
        bytes.resize(bytes.len() + tar::padding(content.len() as u64), 0);
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

/// The files of a sound layout with one image, `team/app:1`.
fn layout() -> Vec<(String, Vec<u8>)> {
    let parts = image(b"layer", "amd64");
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{}","size":{},"annotations":{{"io.containerd.image.name":"team/app:1"}}}}]}}"#,
        parts[0].0,
        parts[0].1.len()
    );
    let mut files = vec![
        (
            "oci-layout".to_owned(),
            br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
        ),
        ("index.json".to_owned(), index.into_bytes()),
    ];
    files.extend(
        parts
            .into_iter()
            .map(|(digest, bytes)| (path_of(&digest), bytes)),
    );
    files
}

/// A sound layout in which the first of these texts became the second.
fn with(from: &str, to: &str) -> Vec<u8> {
    let mut files = layout();
    for (_, content) in &mut files {
        *content = String::from_utf8(content.clone())
            .unwrap()
            .replace(from, to)
            .into_bytes();
    }
    tar_of(&files)
}

fn without(name: &str) -> Vec<u8> {
    let mut files = layout();
    files.retain(|(found, _)| !found.contains(name));
    tar_of(&files)
}

/// A sound layout with one more header before it, whose bytes at an offset are these.
fn header_with(name: &str, patches: &[(usize, &[u8])]) -> Vec<u8> {
    let mut block = tar::file("x", 0).unwrap();
    block[..100].fill(0);
    block[..name.len()].copy_from_slice(name.as_bytes());
    for (at, bytes) in patches {
        block[*at..at + bytes.len()].copy_from_slice(bytes);
    }
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block.extend(tar_of(&layout()));
    block
}

/// What is wrong with an archive, the archive, and a part of the refusal.
type Case = (&'static str, Vec<u8>, &'static str);

/// Archives with a header that is hostile or wrong.
fn hostile_headers() -> Vec<Case> {
    vec![
        (
            "a name that leads out",
            header_with("../../etc/passwd", &[]),
            "leads out",
        ),
        (
            "a name from the root",
            header_with("/etc/passwd", &[]),
            "leads out",
        ),
        (
            "a name with a way out in it",
            header_with("blobs/../../x", &[]),
            "leads out",
        ),
        (
            "a symbolic link",
            header_with("blobs/sha256/x", &[(156, b"2")]),
            "a link",
        ),
        (
            "a hard link",
            header_with("blobs/sha256/x", &[(156, b"1")]),
            "a link",
        ),
        (
            "a device",
            header_with("blobs/sha256/x", &[(156, b"3")]),
            "special file",
        ),
        (
            "a sparse file",
            header_with("blobs/sha256/x", &[(156, b"S")]),
            "special file",
        ),
        (
            "a size beyond the end",
            header_with("x", &[(124, b"77777777777\0")]),
            "truncated",
        ),
        (
            "a size beyond everything",
            header_with("x", &[(124, &[0xff; 12])]),
            "no tar file",
        ),
        (
            "a name of a terabyte",
            header_with(
                "x",
                &[
                    (156, b"L"),
                    (124, b"20000000000000"[..11].try_into().unwrap()),
                ],
            ),
            "longer than any name",
        ),
        (
            "a wrong sum",
            {
                let mut bytes = tar_of(&layout());
                bytes[0] ^= 1;
                bytes
            },
            "no tar file",
        ),
    ]
}

/// Files that are no archives of images, and an archive with a file twice.
fn other_files() -> Vec<Case> {
    let layer = path_of(&image(b"layer", "amd64")[2].0);
    let twice = {
        let mut files = layout();
        files.push((layer.clone(), b"other".to_vec()));
        tar_of(&files)
    };
    vec![
        ("one name twice", twice, "twice"),
        ("no tar file", b"hello".repeat(1000), "no tar file"),
        ("nothing", Vec::new(), "no tar file"),
        (
            "gzip",
            {
                let mut bytes = vec![0x1f, 0x8b];
                bytes.resize(2048, 1);
                bytes
            },
            "gunzip",
        ),
        (
            "zstd",
            {
                let mut bytes = vec![0x28, 0xb5, 0x2f, 0xfd];
                bytes.resize(2048, 1);
                bytes
            },
            "unzstd",
        ),
        (
            "docker save's old format",
            tar_of(&[("manifest.json".to_owned(), b"[]".to_vec())]),
            "skopeo copy docker-archive",
        ),
    ]
}

/// Archives whose layout is incomplete, or contradicts itself.
fn broken_layouts() -> Vec<Case> {
    let parts = image(b"layer", "amd64");
    let (manifest, layer) = (path_of(&parts[0].0), path_of(&parts[2].0));
    let edited = |name: &str, content: &[u8]| {
        let mut files = layout();
        files.iter_mut().find(|(found, _)| found == name).unwrap().1 = content.to_vec();
        tar_of(&files)
    };
    let oversized = {
        let mut files = layout();
        let most = usize::try_from(MANIFEST_BYTES).unwrap();
        let size = |bytes: usize| format!(r#""size":{bytes}"#);
        for (name, content) in &mut files {
            if *name == manifest {
                *content = vec![b' '; most + 1];
            } else if name == "index.json" {
                let text = String::from_utf8(content.clone()).unwrap();
                *content = text
                    .replace(&size(parts[0].1.len()), &size(most + 1))
                    .into_bytes();
            }
        }
        tar_of(&files)
    };
    vec![
        (
            "another layout",
            edited("oci-layout", br#"{"imageLayoutVersion":"2.0.0"}"#),
            "version 2.0.0",
        ),
        ("no list of images", without("index.json"), "no index.json"),
        (
            "an empty list of images",
            edited("index.json", br#"{"manifests":[]}"#),
            "lists no image",
        ),
        (
            "a list that is none",
            edited("index.json", b"{"),
            "does not parse",
        ),
        (
            "a digest that is a path",
            with("sha256:", "sha256:../"),
            "does not parse",
        ),
        ("an oversized manifest", oversized, "at most"),
        (
            "a manifest with other bytes",
            edited(&manifest, b"{}"),
            "bytes, its index.json says",
        ),
        (
            "a manifest that hashes wrong",
            edited(&manifest, &vec![b'x'; parts[0].1.len()]),
            "damaged",
        ),
        (
            "a layer with other bytes",
            edited(&layer, b"LAYER"),
            "damaged",
        ),
        (
            "a layer that is longer",
            edited(&layer, b"layer and more"),
            "damaged",
        ),
        ("a layer that is missing", without(&layer), "missing"),
        ("a manifest that is missing", without(&manifest), "missing"),
        (
            "an image with only a tag",
            with(
                r#""io.containerd.image.name":"team/app:1""#,
                r#""org.opencontainers.image.ref.name":"1""#,
            ),
            "--name",
        ),
        (
            "an image without a name",
            with(r#""io.containerd.image.name":"team/app:1""#, ""),
            "--name",
        ),
        (
            "a name that is none",
            with("team/app:1", "../UPPER"),
            "no name of an image",
        ),
    ]
}

#[tokio::test]
async fn hostile_and_broken_archives_are_refused_and_leave_nothing() {
    let cases = [hostile_headers(), other_files(), broken_layouts()];
    for (name, bytes, expect) in cases.into_iter().flatten() {
        let (dir, store) = store().await;
        let error = match import_tar(&store, &bytes).await {
            Ok(_) => panic!("{name}: was taken"),
            Err(error) => error.to_string(),
        };
        assert!(error.contains(expect), "{name}: {error}");
        let repositories = store.layout().repositories();
        let visible = View::open(dir.path()).unwrap().repositories().unwrap();
        assert_eq!(visible, [], "{name}: {}", repositories.display());
    }
}

#[tokio::test]
async fn a_truncated_archive_is_refused_wherever_it_ends() {
    let whole = tar_of(&layout());
    let mut refused = 0;
    for end in (0..whole.len()).step_by(256) {
        let (dir, store) = store().await;
        let taken = import_tar(&store, &whole[..end]).await.is_ok();
        // What is cut off may be nothing but zeros behind the last file.
        let complete = whole[end..].iter().all(|byte| *byte == 0);
        assert!(!taken || complete, "cut at {end} of {}", whole.len());
        refused += usize::from(!taken);
        let visible = View::open(dir.path()).unwrap().repositories().unwrap();
        assert_eq!(visible.is_empty(), !taken, "cut at {end}");
    }
    assert!(refused > 10, "{refused}");
    assert!(import_tar(&store().await.1, &whole).await.is_ok());
}
