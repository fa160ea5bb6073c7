//! Plans carried out on a folder, and the folder compared byte for byte, mode for mode.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use super::*;
use crate::host::Disk;
use crate::host::Folders;

const HOSTS: &str = "certs.d/10.96.0.50/hosts.toml";
const CA: &str = "certs.d/10.96.0.50/ca.crt";

fn wanted(content: &str) -> BTreeMap<String, HostFile> {
    let file = |mode| HostFile {
        bytes: format!("{MARKER}\n{content}").into_bytes(),
        mode,
    };
    BTreeMap::from([
        (HOSTS.to_owned(), file(0o600)),
        (CA.to_owned(), file(0o644)),
    ])
}

/// Every path below a folder, with its mode and its bytes or link.
fn snapshot(folder: &Path) -> BTreeMap<String, (u32, Vec<u8>)> {
    fn walk(base: &Path, folder: &Path, found: &mut BTreeMap<String, (u32, Vec<u8>)>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let metadata = path.symlink_metadata().unwrap();
            let content = if metadata.is_dir() {
                walk(base, &path, found);
                Vec::new()
            } else if metadata.is_symlink() {
                path.read_link()
                    .unwrap()
                    .into_os_string()
                    .into_encoded_bytes()
            } else {
                std::fs::read(&path).unwrap()
            };
            let name = path.strip_prefix(base).unwrap().display().to_string();
            found.insert(name, (metadata.mode(), content));
        }
    }
    let mut found = BTreeMap::new();
    walk(folder, folder, &mut found);
    found
}

/// A folder of the host that holds everything; the agent may write to all of it.
fn disk(folder: &Path) -> Disk {
    let folders = Folders {
        etc: folder.to_owned(),
        hosts: folder.to_owned(),
        run: folder.to_owned(),
        etc_on_host: "/etc/containerd".into(),
        hosts_on_host: "/etc/containerd/certs.d".into(),
        ..Folders::default()
    };
    Disk::new(&folders, "sys.holdfast")
}

/// One round on a folder: look, plan, apply.
fn round(folder: &Path, wanted: &BTreeMap<String, HostFile>, exhausted: &BTreeSet<String>) -> Plan {
    let disk = disk(folder);
    let journal = disk.journal().unwrap();
    let paths = Disk::paths(&journal, wanted.keys());
    let plan = plan(&disk.inspect(paths.iter()), &journal, wanted, exhausted);
    disk.apply(&plan).unwrap();
    if plan.journal_last.is_empty() {
        disk.remove_own_folder().unwrap();
    }
    plan
}

/// Prepares a host, lets the agent write twice (a credential rotates), undoes, and compares with
/// the beginning.
fn check(prepare: impl Fn(&Path)) {
    let host = tempfile::tempdir().unwrap();
    prepare(host.path());
    let before = snapshot(host.path());
    for content in ["one", "two"] {
        let plan = round(host.path(), &wanted(content), &BTreeSet::new());
        assert_eq!(
            plan.repaired, [""; 0],
            "what the agent wrote itself is no repair"
        );
        let now = snapshot(host.path());
        assert_eq!(now[HOSTS].1, wanted(content)[HOSTS].bytes);
        assert_eq!(now[HOSTS].0 & 0o7777, 0o600);
        let again = round(host.path(), &wanted(content), &BTreeSet::new());
        assert_eq!(again.actions, [], "a host that is as wanted is left alone");
    }
    let plan = round(host.path(), &BTreeMap::new(), &BTreeSet::new());
    assert_eq!(plan.left, [""; 0]);
    assert_eq!(snapshot(host.path()), before);
    assert_eq!(
        round(host.path(), &BTreeMap::new(), &BTreeSet::new()).actions,
        [],
        "undoing twice is undoing once"
    );
}

fn write(folder: &Path, name: &str, content: &str, mode: u32) {
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, content).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
}

// SPEC 80
#[test]
fn a_bare_host_is_bare_again() {
    check(|_| {});
    check(|host| write(host, "config.toml", "version = 2\n", 0o644));
}

// SPEC 80
#[test]
fn an_original_is_restored_with_its_mode() {
    check(|host| {
        write(host, HOSTS, "server = \"https://other\"\r\n\u{1}", 0o640);
        write(
            host,
            "certs.d/docker.io/hosts.toml",
            "server = \"https://docker.io\"",
            0o644,
        );
    });
    check(|host| {
        std::fs::create_dir_all(host.join("certs.d/10.96.0.50")).unwrap();
        std::fs::set_permissions(host.join("certs.d"), std::fs::Permissions::from_mode(0o700))
            .unwrap();
        std::os::unix::fs::symlink("/elsewhere", host.join(CA)).unwrap();
    });
}

#[test]
fn an_agent_without_its_journal_recognizes_its_own_files() {
    let host = tempfile::tempdir().unwrap();
    round(host.path(), &wanted("one"), &BTreeSet::new());
    std::fs::remove_dir_all(host.path().join(crate::host::OWN)).unwrap();
    round(host.path(), &wanted("two"), &BTreeSet::new());
    round(host.path(), &BTreeMap::new(), &BTreeSet::new());
    let left = snapshot(host.path());
    assert!(
        !left.contains_key(HOSTS) && !left.contains_key(CA),
        "{left:?}"
    );
}

#[test]
fn a_crash_before_any_action_can_be_undone() {
    let steps = {
        let host = tempfile::tempdir().unwrap();
        round(host.path(), &wanted("one"), &BTreeSet::new())
            .actions
            .len()
    };
    assert_eq!(steps, 4, "two folders and two files");
    for done in 0..=steps {
        let host = tempfile::tempdir().unwrap();
        write(host.path(), HOSTS, "before", 0o644);
        let before = snapshot(host.path());
        let disk = disk(host.path());
        let wanted = wanted("one");
        let mut plan = plan(
            &disk.inspect(wanted.keys()),
            &Journal::default(),
            &wanted,
            &BTreeSet::new(),
        );
        plan.actions.truncate(done);
        plan.journal_last = plan.journal_first.clone();
        disk.apply(&plan).unwrap();
        round(host.path(), &BTreeMap::new(), &BTreeSet::new());
        assert_eq!(snapshot(host.path()), before, "after {done} actions");
    }
}

#[test]
fn files_of_the_agent_are_repaired_until_repairs_are_exhausted() {
    let host = tempfile::tempdir().unwrap();
    let nobody = BTreeSet::new();
    round(host.path(), &wanted("one"), &nobody);
    write(host.path(), HOSTS, "theirs", 0o600);
    assert_eq!(
        round(host.path(), &wanted("one"), &nobody).repaired,
        [HOSTS]
    );
    std::fs::remove_file(host.path().join(CA)).unwrap();
    assert_eq!(round(host.path(), &wanted("one"), &nobody).repaired, [CA]);

    write(host.path(), HOSTS, "theirs again", 0o600);
    let exhausted = BTreeSet::from([HOSTS.to_owned()]);
    let plan = round(host.path(), &wanted("one"), &exhausted);
    assert!(
        plan.actions.is_empty() && plan.left[0].contains(HOSTS),
        "{plan:?}"
    );
    let plan = round(host.path(), &BTreeMap::new(), &nobody);
    assert!(
        plan.left[0].contains("another program changed it"),
        "{plan:?}"
    );
    assert_eq!(snapshot(host.path())[HOSTS].1, b"theirs again");
}

#[test]
fn only_an_address_that_is_no_longer_wanted_is_undone() {
    let host = tempfile::tempdir().unwrap();
    let mut both = wanted("one");
    both.insert(
        "certs.d/10.96.0.9/hosts.toml".to_owned(),
        both[HOSTS].clone(),
    );
    round(host.path(), &both, &BTreeSet::new());
    round(host.path(), &wanted("one"), &BTreeSet::new());
    let now = snapshot(host.path());
    assert!(
        now.contains_key(HOSTS) && !now.contains_key("certs.d/10.96.0.9"),
        "{now:?}"
    );
}

#[test]
fn links_and_folders_at_a_path_are_not_changed() {
    let host = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(elsewhere.path(), host.path().join("certs.d")).unwrap();
    let plan = round(host.path(), &wanted("one"), &BTreeSet::new());
    assert!(
        plan.actions.is_empty() && plan.left[0].contains("not a directory"),
        "{plan:?}"
    );
    assert!(snapshot(elsewhere.path()).is_empty());

    let host = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(host.path().join(HOSTS)).unwrap();
    let plan = round(host.path(), &wanted("one"), &BTreeSet::new());
    assert!(plan.left[0].contains("not a regular file"), "{plan:?}");
}
