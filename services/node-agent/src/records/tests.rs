//! Records as kubelets write them; most are examples of its own tests.

use super::*;

const BETA: &str = r#"{"kind":"ImagePulledRecord","apiVersion":"kubelet.config.k8s.io/v1beta1","lastUpdatedTime":"2024-10-21T12:26:40Z","imageRef":"testimageref","credentialMapping":{"docker.io/testing/test":{"kubernetesSecrets":[{"uid":"testsecretuid","namespace":"default","name":"pull-secret","credentialHash":"testsecrethash"}]}}}"#;

fn only(secrets: &[&str], service_accounts: &[&str]) -> Users {
    let owned = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect();
    Users::Only {
        secrets: owned(secrets),
        service_accounts: owned(service_accounts),
    }
}

#[test]
fn records_of_all_versions_are_read() {
    let record = |version: &str, rest: &str| {
        let text = format!(
            r#"{{"kind":"ImagePulledRecord","apiVersion":"kubelet.config.k8s.io/{version}","lastUpdatedTime":"2025-06-21T12:26:40Z","imageRef":"id"{rest}}}"#
        );
        parse_record(text.as_bytes()).map(|(id, record)| {
            assert_eq!(id, "id");
            record.into_iter().collect::<Vec<_>>()
        })
    };
    let name = "docker.io/testing/test".to_owned();
    let mapping =
        |users: &str| format!(r#","credentialMapping":{{"docker.io/testing/test":{users}}}"#);
    for (version, rest, expect) in [
        ("v1alpha1", String::new(), Some(vec![])),
        (
            "v1beta1",
            r#","credentialMapping":null"#.to_owned(),
            Some(vec![]),
        ),
        (
            "v1alpha1",
            mapping(r#"{"nodePodsAccessible":true}"#),
            Some(vec![(name.clone(), Users::Any)]),
        ),
        (
            "v1beta1",
            mapping(
                r#"{"kubernetesServiceAccounts":[{"uid":"u","namespace":"a","name":"sa"}],"later":1}"#,
            ),
            Some(vec![(name.clone(), only(&[], &["a/sa"]))]),
        ),
        (
            "v1beta1",
            mapping("{}"),
            Some(vec![(name.clone(), only(&[], &[]))]),
        ),
        ("v2", mapping(r#"{"nodePodsAccessible":true}"#), None),
        ("v1beta1", mapping("7"), None),
    ] {
        assert_eq!(record(version, &rest), expect, "{version} {rest}");
    }
    assert_eq!(parse_record(b"{"), None);
    assert_eq!(parse_record(&BETA.as_bytes()[..BETA.len() - 1]), None);
    let intent = r#"{"kind":"ImagePullIntent","apiVersion":"kubelet.config.k8s.io/v1alpha1","image":"repo.repo/test/alphatest:v1"}"#;
    let name = parse_intent(intent.as_bytes());
    assert_eq!(name.as_deref(), Some("repo.repo/test/alphatest:v1"));
    assert_eq!(parse_intent(BETA.as_bytes()), None);
    assert_eq!(parse_record(intent.as_bytes()), None);
}

#[test]
fn hashes_of_credentials_are_dropped() {
    let (id, record) = parse_record(BETA.as_bytes()).unwrap();
    assert_eq!(id, "testimageref");
    let users = only(&["default/pull-secret"], &[]);
    assert_eq!(record.get("docker.io/testing/test"), Some(&users));
    assert!(!format!("{record:?}").contains("testsecrethash"));
}

/// A folder of the kubelet.
struct Root(tempfile::TempDir);

impl Root {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, folder: &str, key: &str, text: &str) -> std::path::PathBuf {
        let folder = self.0.path().join(folder);
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join(file_name(key));
        fs::write(&path, text).unwrap();
        path
    }

    fn read(&self) -> Records {
        let mut records = Records::default();
        self.refresh(&mut records);
        records
    }

    fn refresh(&self, records: &mut Records) {
        let ids = ["testimageref", "another", "broken", "large", "absent"];
        records.refresh(self.0.path(), ids.into_iter());
    }
}

#[test]
fn the_folders_tell_whether_there_are_records() {
    let root = Root::new();
    assert!(!root.read().gate, "the agent's mount creates image_manager");
    fs::create_dir(root.0.path().join("pulled")).unwrap();
    let empty = root.read();
    assert!(empty.gate && !empty.truncated);
    assert_eq!(empty.record("testimageref"), None);
}

#[test]
fn a_record_is_found_by_its_image_as_the_kubelet_finds_it() {
    let root = Root::new();
    // The name is that of the kubelet's own example.
    let path = root.write("pulled", "testimageref", BETA);
    let name = path.file_name().unwrap().to_str().unwrap();
    assert_eq!(
        name,
        "sha256-b3c0cc4278800b03a308ceb2611161430df571ca733122f0a40ac8b9792a9064"
    );
    root.write("pulled", "another", BETA);
    root.write("pulled", "broken", "{");
    root.write(
        "pulled",
        "large",
        &format!("{BETA}{}", " ".repeat(64 << 10)),
    );
    let records = root.read();
    assert_eq!(records.record("testimageref").map(|r| r.len()), Some(1));
    assert_eq!(records.record("another"), None, "of another image ID");
    // Unreadable: opens the image to nobody.
    assert_eq!(records.record("broken"), Some(BTreeMap::new()));
    assert_eq!(records.record("large"), Some(BTreeMap::new()));
    assert_eq!(records.record("absent"), None);
}

#[test]
fn changes_are_read_and_what_is_gone_is_forgotten() {
    let root = Root::new();
    let path = root.write("pulled", "testimageref", BETA);
    let intent = r#"{"kind":"ImagePullIntent","apiVersion":"kubelet.config.k8s.io/v1beta1","image":"nginx:1"}"#;
    let pulling = root.write("pulling", "nginx:1", intent);
    let mut records = root.read();
    assert_eq!(records.intents(), BTreeSet::from(["nginx:1"]));
    let open = BETA.replace(
        r#""docker.io/testing/test":{"#,
        r#""docker.io/testing/test":{"nodePodsAccessible":true,"#,
    );
    fs::write(&path, open).unwrap();
    fs::write(pulling.with_extension("tmp"), intent).unwrap();
    fs::remove_file(&pulling).unwrap();
    root.refresh(&mut records);
    let record = records.record("testimageref").unwrap();
    assert_eq!(record.get("docker.io/testing/test"), Some(&Users::Any));
    assert!(records.intents().is_empty());
    fs::remove_dir_all(root.0.path().join("pulled")).unwrap();
    root.refresh(&mut records);
    assert!(!records.gate);
    assert_eq!(records.record("testimageref"), None);
}

#[test]
fn the_number_of_files_and_entries_is_bounded() {
    let root = Root::new();
    let intent =
        r#"{"kind":"ImagePullIntent","apiVersion":"kubelet.config.k8s.io/v1beta1","image":"a"}"#;
    for number in 0..=MAX_INTENTS {
        root.write("pulling", &number.to_string(), intent);
    }
    let records = root.read();
    assert!(records.truncated);
    assert_eq!(records.pulling.files.len(), MAX_INTENTS);
    let names: BTreeMap<String, serde_json::Value> = (0..=MAX_RECORD_ENTRIES)
        .map(|number| (number.to_string(), serde_json::json!({})))
        .collect();
    let text = serde_json::json!({
        "kind": "ImagePulledRecord",
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "imageRef": "id",
        "credentialMapping": names,
    });
    let (_, record) = parse_record(text.to_string().as_bytes()).unwrap();
    assert_eq!(record.len(), MAX_RECORD_ENTRIES);
}
