//! Where containerd of each generation says its host folder is.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::*;

const V2: &str = r#"plugins."io.containerd.grpc.v1.cri".registry"#;
const V3: &str = r#"plugins."io.containerd.cri.v1.images".registry"#;

impl Files for BTreeMap<PathBuf, String> {
    fn read(&self, path: &Path) -> Result<Option<String>, String> {
        Ok(self.get(path).cloned())
    }

    fn list(&self, folder: &Path) -> Vec<String> {
        let below = self
            .keys()
            .filter_map(|path| path.strip_prefix(folder).ok());
        let names: BTreeSet<&str> = below
            .filter_map(|path| path.iter().next()?.to_str())
            .collect();
        names.into_iter().map(str::to_owned).collect()
    }
}

/// Searches while the agent may write to this folder below `/etc/containerd`.
fn find_folder(files: &[(&str, String)], version: &str, hosts: &str) -> Result<(), String> {
    let files: BTreeMap<PathBuf, String> = files
        .iter()
        .map(|(path, text)| (PathBuf::from(path), text.clone()))
        .collect();
    let etc = Path::new("/etc/containerd");
    let hosts = etc.join(hosts);
    let found = find(&files, etc, &hosts, Some(version)).map_err(|e| e.to_string())?;
    assert_eq!(found.path, hosts);
    Ok(())
}

/// `config.toml` alone; `expect` is the folder that is mounted and found, or words of the message
/// where `certs.d` is mounted.
fn check(config: &str, version: &str, expect: Result<&str, &[&str]>) {
    let outcome = find_folder(
        &[("/etc/containerd/config.toml", config.to_owned())],
        version,
        expect.unwrap_or("certs.d"),
    );
    match (&outcome, expect) {
        (Ok(()), Ok(_)) => {}
        (Err(text), Err(words)) => {
            for word in words {
                assert!(
                    text.contains(word),
                    "{config}: {text:?} does not say {word:?}"
                );
            }
        }
        _ => panic!("{config} on {version}: {outcome:?}, expected {expect:?}"),
    }
}

#[test]
fn each_format_has_its_own_key_for_the_folder() {
    let path = r#"config_path = "/etc/containerd/certs.d""#;
    check(
        &format!("version = 2\n[{V2}]\n{path}"),
        "1.7.24",
        Ok("certs.d"),
    );
    check(
        &format!("version = 2\n[{V2}]\n{path}"),
        "v2.1.4",
        Ok("certs.d"),
    );
    check(
        &format!("version = 3\n[{V3}]\n{path}"),
        "v2.1.4",
        Ok("certs.d"),
    );
    check(
        &format!("[plugins.cri.registry]\n{path}"),
        "1.6.0",
        Ok("certs.d"),
    );
    check(
        &format!("version = 3\n[{V3}]\nconfig_path = '/etc/containerd/hosts/'"),
        "v2.0.0",
        Ok("hosts"),
    );
}

#[test]
fn a_key_of_another_format_does_not_count() {
    let path = r#"config_path = "/etc/containerd/certs.d""#;
    check(
        &format!("[{V2}]\n{path}"),
        "1.7.24",
        Err(&["no registry config_path", "version = 2"]),
    );
    check(
        &format!("version = 3\n[{V2}]\n{path}"),
        "v2.0.0",
        Err(&[r#"plugins."io.containerd.cri.v1.images""#]),
    );
}

#[test]
fn only_versions_from_2_2_on_have_a_default() {
    check("version = 3\n", "v2.2.0", Ok("certs.d"));
    check("version = 3\n", "v2.3.0-rc.1", Ok("certs.d"));
    check(
        "version = 3\n",
        "v2.1.4",
        Err(&[
            "containerd v2.1.4",
            "read /etc/containerd/config.toml",
            "certs.d",
        ]),
    );
    check(
        &format!("version = 3\n[{V3}]\nconfig_path = ''"),
        "v2.2.0",
        Err(&["no registry config_path"]),
    );
    find_folder(&[], "v2.2.1", "certs.d").unwrap();
    assert!(
        find_folder(&[], "1.7.0", "certs.d")
            .unwrap_err()
            .contains("no /etc/containerd/config.toml")
    );
}

#[test]
fn the_folder_that_can_be_written_must_be_one_that_is_read() {
    let list = |value: &str| format!("version = 2\n[{V2}]\nconfig_path = {value:?}");
    check(
        &list("/etc/containerd/certs.d:/etc/docker/certs.d"),
        "1.7.0",
        Ok("certs.d"),
    );
    check(
        &list("/etc/docker/certs.d:/etc/containerd/certs.d"),
        "1.7.0",
        Ok("certs.d"),
    );
    check(
        &list("/etc/docker/certs.d"),
        "1.7.0",
        Err(&[
            "/etc/docker/certs.d",
            "/etc/containerd/config.toml",
            "may write to /etc/containerd/certs.d only",
            "nodeAgent.containerdConfigPath",
        ]),
    );
    for elsewhere in [
        "/etc/containerd/hosts.d",
        "/etc/containerd/../docker",
        "/etc/containerd/certs.d/../certs.d",
        "etc/containerd/certs.d",
        "/etc/containerd",
        ":",
    ] {
        check(&list(elsewhere), "1.7.0", Err(&["only; set the value"]));
    }
}

#[test]
fn imports_are_followed_and_win() {
    let folder =
        |name: &str| format!("version = 2\n[{V2}]\nconfig_path = \"/etc/containerd/{name}\"");
    let main = |imports: &str| format!("imports = {imports}\n{}", folder("main"));
    let config = "/etc/containerd/config.toml";
    let drop_ins = [
        ("/etc/containerd/conf.d/10-a.toml", folder("a")),
        ("/etc/containerd/conf.d/20-b.toml", folder("b")),
    ];
    let with = |main: String| {
        let mut files = drop_ins.to_vec();
        files.push((config, main));
        let found = |name: &&str| find_folder(&files, "1.7.0", name).is_ok();
        ["a", "b", "main"].into_iter().find(found).unwrap()
    };
    assert_eq!(with(main(r#"["/etc/containerd/conf.d/*.toml"]"#)), "b");
    assert_eq!(with(main(r#"["conf.d/10-a.toml"]"#)), "a");
    assert_eq!(
        with(main(
            r#"["/etc/containerd/config.toml", "/elsewhere/x.toml"]"#
        )),
        "main",
        "circles end"
    );
}

#[test]
fn a_wrong_configuration_is_reported() {
    let inline = format!("version = 2\n[{V2}.mirrors.\"docker.io\"]\nendpoint = [\"https://m\"]");
    check(
        &inline,
        "1.7.0",
        Err(&["registry.mirrors", "exclude config_path"]),
    );
    check(
        "version = ",
        "1.7.0",
        Err(&["/etc/containerd/config.toml cannot be read"]),
    );
}

#[derive(serde::Deserialize)]
struct Case {
    name: String,
    containerd: String,
    #[serde(default)]
    expect: String,
    files: BTreeMap<String, String>,
}

#[test]
fn files_are_merged_as_containerd_of_each_generation_merges_them() {
    #[derive(serde::Deserialize)]
    struct Cases {
        case: Vec<Case>,
    }
    let cases = include_str!("../../../../tests/data/containerd-configurations.toml");
    let cases: Cases = toml::from_str(cases).unwrap();
    for case in &cases.case {
        let etc = Path::new("/etc/containerd");
        let files: BTreeMap<PathBuf, String> = case
            .files
            .iter()
            .map(|(path, text)| (etc.join(path), text.clone()))
            .collect();
        // Without a setting, the default of newer versions, or none.
        let hosts = match case.expect.as_str() {
            "" => "/etc/containerd/certs.d",
            set => set,
        };
        let found = find(&files, etc, Path::new(hosts), Some(&case.containerd));
        let note = found.map_or_else(|e| e.to_string(), |found| found.note);
        let set = format!("config_path {:?} from /etc/containerd/", case.expect);
        let fits = if case.expect.is_empty() {
            note.contains("no registry config_path") || note.contains("the default of this version")
        } else {
            note.starts_with(&set)
        };
        assert!(fits, "{}: {note}", case.name);
    }
}

#[test]
fn a_list_of_folders_is_a_fault_with_the_transfer_service() {
    let fault = |version: &str, config: &str| {
        let etc = Path::new("/etc/containerd");
        let files = BTreeMap::from([(etc.join("config.toml"), config.to_owned())]);
        let found = find(&files, etc, &etc.join("certs.d"), Some(version));
        found.unwrap().fault
    };
    let list = "config_path = '/etc/containerd/certs.d:/etc/docker/certs.d'";
    let one = "config_path = '/etc/containerd/certs.d'";
    let with = |images: &str, registry: &str| {
        let images = format!("version = 3\n[plugins.'io.containerd.cri.v1.images']\n{images}\n");
        format!("{images}[plugins.'io.containerd.cri.v1.images'.registry]\n{registry}\n")
    };
    let text = fault("2.4.2", "version = 3\n").unwrap();
    for words in [
        "containerd with the transfer service",
        "config_path = \"/etc/containerd/certs.d\"",
        "use_local_image_pull = true",
    ] {
        assert!(text.contains(words), "{text}");
    }
    assert!(fault("2.1.4", &with("", list)).is_some());
    assert!(fault("2.4.2", &with("use_local_image_pull = false", list)).is_some());
    assert!(fault("2.4.2", &with("max_concurrent_downloads = 3", list)).is_some());
    for local in [
        "use_local_image_pull = true",
        "discard_unpacked_layers = true",
        "disable_snapshot_annotations = false",
        "image_pull_with_sync_fs = true",
        "max_concurrent_downloads = 5",
    ] {
        assert_eq!(fault("2.4.2", &with(local, list)), None, "{local}");
    }
    assert_eq!(fault("2.4.2", &with("", one)), None);
    assert_eq!(fault("2.0.5", &with("", list)), None);
    let kind = format!(
        "version = 2\n[{V2}]\n{list}\n[plugins.'io.containerd.grpc.v1.cri'.containerd]\n\
         discard_unpacked_layers = true\n\
         [plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc]\n"
    );
    assert_eq!(fault("2.4.2", &kind), None, "kind's own configuration");
    assert_eq!(fault("1.7.27", &kind), None);
}
