//! Reports of a fake runtime and of folders of a host.

use std::collections::BTreeMap;
use std::path::Path;

use holdfast_api::report::Users;

use super::*;
use crate::cri;
use crate::host::Folders;
use crate::runtimes::containerd::Containerd;

const ID: &str = "testimageref";

fn write(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

/// A file of the kubelet.
fn file(kind: &str, rest: &str) -> String {
    format!(r#"{{"kind":"{kind}","apiVersion":"kubelet.config.k8s.io/v1beta1",{rest}}}"#)
}

#[tokio::test]
async fn a_report_joins_images_records_and_foreign_hosts() {
    let host = tempfile::tempdir().unwrap();
    let at = host.path();
    let runtime = cri::tests::serve(&at.join("containerd.sock"));
    let image = |id: &str, tag: &str| Image {
        id: id.to_owned(),
        repo_tags: vec![tag.to_owned()],
        repo_digests: vec!["docker.io/library/nginx@sha256:aa".to_owned()],
        ..Image::default()
    };
    runtime.lock().unwrap().listed = vec![
        image(ID, "docker.io/library/nginx:1"),
        image("preloaded", "docker.io/library/busybox:1"),
        image("cut off", "docker.io/library/redis:latest"),
    ];
    let records = at.join("image_manager");
    // The kubelet's names of files, by image ID and by name.
    write(
        &records
            .join("pulled/sha256-b3c0cc4278800b03a308ceb2611161430df571ca733122f0a40ac8b9792a9064"),
        &file(
            "ImagePulledRecord",
            r#""imageRef":"testimageref","credentialMapping":{"nginx":{"nodePodsAccessible":true}}"#,
        ),
    );
    let intent = file("ImagePullIntent", r#""image":"redis:latest""#);
    write(&records.join("pulling/sha256-aa"), &intent);
    let hosts = at.join("certs.d");
    write(&hosts.join("registry.local_5000_/hosts.toml"), "");
    write(&hosts.join("[fd00::1]_443_/hosts.toml"), "");
    write(&hosts.join("_default/hosts.toml"), "");
    write(&hosts.join("quay.io/ca.crt"), "");
    std::fs::create_dir(hosts.join("empty.example")).unwrap();
    write(&hosts.join(".holdfast/x/journal.json"), "{}");
    let own = format!("{}\n", crate::plan::MARKER);
    write(&hosts.join("10.96.0.50/hosts.toml"), &own);
    write(&hosts.join("no folder"), "");

    let folders = Folders {
        run: at.to_owned(),
        hosts,
        ..Folders::default()
    };
    let disk = Disk::new(&folders, "sys.holdfast");
    let (sender, _) = watch::channel(None);
    let mut reporter = Reporter::new(
        "n1".to_owned(),
        Containerd::new(folders),
        disk,
        records,
        sender,
    );
    let report = reporter.read().await.unwrap();
    assert_eq!(report.node, "n1");
    assert_eq!(report.runtime, "containerd v2.1.4");
    assert!(report.gate && !report.truncated);
    let record = BTreeMap::from([("nginx".to_owned(), Users::Any)]);
    let facts: Vec<_> = report
        .image_ids
        .iter()
        .map(|image| (image.id.as_str(), image.record.clone(), image.intent))
        .collect();
    assert_eq!(
        facts,
        [
            ("cut off", None, true),
            ("preloaded", None, false),
            (ID, Some(record), false),
        ]
    );
    let pulled = report.image_ids.last().unwrap();
    assert_eq!(pulled.names, ["docker.io/library/nginx:1"]);
    assert_eq!(pulled.manifests, ["docker.io/library/nginx@sha256:aa"]);
    assert_eq!(
        report.foreign_hosts,
        [
            "[fd00::1]:443",
            "_default",
            "empty.example",
            "quay.io",
            "registry.local:5000",
        ]
    );
    assert_eq!(
        describe(&report),
        "3 images, pull records of 1, 5 registry hosts configured by others"
    );
}

#[test]
fn names_are_bounded() {
    let image = Image {
        id: "id".to_owned(),
        repo_tags: (0..=MAX_NAMES).map(|tag| format!("r.io/a:{tag}")).collect(),
        repo_digests: vec!["n".repeat(MAX_NAME_BYTES + 1)],
        ..Image::default()
    };
    let build = |image| {
        let records = Records::default();
        build("n", String::new(), vec![image], &records, BTreeSet::new())
    };
    let report = build(image);
    assert!(report.truncated);
    assert_eq!(report.image_ids[0].names.len(), MAX_NAMES);
    assert!(report.image_ids[0].manifests.is_empty());
    assert!(!build(Image::default()).truncated);
}
