//! Whole rounds: a host folder, a fake runtime, and what the agent says of both.

use holdfast_api::state::Host;
use holdfast_runtime::health::Health;
use prometheus_client::registry::Registry;

use std::path::PathBuf;

use super::*;
use crate::cri::tests::{CODE_UNKNOWN, serve};
use crate::host::Folders;
use crate::plan::MARKER;
use crate::runtimes::containerd::Containerd;

struct Node {
    agent: Agent<Containerd>,
    status: Status,
    health: Health,
    queued: tokio::sync::mpsc::Receiver<crate::node_events::NodeEvent>,
    folder: tempfile::TempDir,
}

impl Node {
    fn reported(&mut self) -> Vec<&'static str> {
        std::iter::from_fn(|| self.queued.try_recv().ok())
            .map(|event| event.reason)
            .collect()
    }
}

fn node(config: &str) -> Node {
    let folder = tempfile::tempdir().unwrap();
    let (etc, run) = (folder.path().join("etc"), folder.path().join("run"));
    // The kubelet makes the mounted folder where the host has none.
    let hosts = etc.join("certs.d");
    for path in [&etc, &hosts, &run] {
        std::fs::create_dir(path).unwrap();
    }
    std::fs::write(etc.join("config.toml"), config).unwrap();
    let (health, status) = (Health::default(), Status::default());
    let ready = health.ready_flag("node", "starting");
    let metrics = Arc::new(Metrics::register(&mut Registry::default()));
    let folders = Folders {
        etc,
        hosts,
        run,
        etc_on_host: PathBuf::from("/etc/containerd"),
        hosts_on_host: PathBuf::from("/etc/containerd/certs.d"),
        ..Folders::default()
    };
    let (events, queued) = NodeEvents::new();
    let config = AgentConfig {
        pin: true,
        pod: AgentPod {
            namespace: "sys".to_owned(),
            name: "agent-1".to_owned(),
            release: "sys.holdfast".to_owned(),
        },
    };
    let disk = Disk::new(&folders, &config.pod.release);
    Node {
        agent: Agent::new(
            Containerd::new(folders),
            disk,
            config,
            status.clone(),
            ready,
            metrics,
            events,
        ),
        status,
        health,
        queued,
        folder,
    }
}

fn state(desired: Desired) -> NodeState {
    let endpoints = vec![
        "https://10.96.0.50".to_owned(),
        "https://10.96.0.50:5000".to_owned(),
    ];
    NodeState {
        desired,
        hosts: vec![Host {
            address: "10.96.0.50".to_owned(),
            endpoints,
        }],
        ca: "PEM".to_owned(),
        username: "node".to_owned(),
        password: "secret".into(),
        probe: "10.96.0.50/holdfast/probe:1".to_owned(),
    }
}

fn files(node: &Node, folder: &str) -> Vec<String> {
    let names = std::fs::read_dir(node.folder.path().join(folder))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

const CONFIG: &str = "version = 3\n[plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = '/etc/containerd/certs.d'\n";

// SPEC 80
#[tokio::test]
async fn a_node_is_ready_after_a_real_pull_and_bare_after_removal() {
    let mut node = node(CONFIG);
    let fake = serve(&node.folder.path().join("run/containerd.sock"));
    node.agent.round(&state(Desired::Present)).await;
    assert!(node.health.readyz().ok, "{}", node.health.readyz().text);
    assert!(node.status.json().contains(r#""state":"present""#));
    assert_eq!(files(&node, "etc"), ["certs.d", "config.toml"]);
    assert_eq!(files(&node, "etc/certs.d"), [".holdfast", "10.96.0.50"]);
    assert_eq!(files(&node, "etc/certs.d/.holdfast"), ["sys.holdfast"]);

    node.agent.round(&state(Desired::Present)).await;
    let pulls = fake
        .lock()
        .unwrap()
        .calls
        .iter()
        .filter(|call| call.starts_with("pull"))
        .count();
    assert_eq!(pulls, 1, "the next pull is due in minutes");

    node.agent.round(&state(Desired::Removed)).await;
    assert_eq!(files(&node, "etc"), ["certs.d", "config.toml"]);
    assert_eq!(files(&node, "etc/certs.d"), [""; 0]);
    assert!(
        node.status.json().contains(r#""state":"removed""#),
        "{}",
        node.status.json()
    );
    assert!(!node.health.readyz().ok);
    assert!(fake.lock().unwrap().images.is_empty());
}

#[tokio::test]
async fn a_new_state_is_proven_at_once() {
    let mut node = node(CONFIG);
    let fake = serve(&node.folder.path().join("run/containerd.sock"));
    node.agent.round(&state(Desired::Present)).await;
    let mut rotated = state(Desired::Present);
    rotated.password = "other".into();
    node.agent.round(&rotated).await;
    let pulls = fake
        .lock()
        .unwrap()
        .calls
        .iter()
        .filter(|call| call.starts_with("pull"))
        .count();
    assert_eq!(pulls, 2);
}

#[tokio::test]
async fn a_registry_that_goes_down_later_leaves_the_node_ready() {
    let mut node = node(CONFIG);
    let fake = serve(&node.folder.path().join("run/containerd.sock"));
    node.agent.round(&state(Desired::Present)).await;
    fake.lock().unwrap().refuse = Some((CODE_UNKNOWN, "connection refused".to_owned()));
    node.agent.pull_at = Instant::now();
    node.agent.round(&state(Desired::Present)).await;
    assert!(node.health.readyz().ok && node.health.readyz().text.contains("connection refused"));
    assert!(
        node.folder
            .path()
            .join("etc/certs.d/10.96.0.50/hosts.toml")
            .exists(),
        "what is there stays"
    );
}

#[tokio::test]
async fn without_a_socket_the_host_is_written_and_the_node_not_ready() {
    let mut node = node(CONFIG);
    node.agent.round(&state(Desired::Present)).await;
    let ready = node.health.readyz();
    assert!(
        !ready.ok && ready.text.contains("containerd.sock"),
        "{}",
        ready.text
    );
    assert!(node.status.json().contains("present"));
}

#[tokio::test]
async fn a_runtime_without_config_path_is_reported_in_full_and_retried() {
    let mut node = node("version = 3\n");
    let _fake = serve(&node.folder.path().join("run/containerd.sock"));
    let pause = node.agent.round(&state(Desired::Present)).await;
    let ready = node.health.readyz().text;
    for text in [
        "containerd v2.1.4 has no registry config_path",
        "io.containerd.cri.v1.images",
        "config_path = \"/etc/containerd/certs.d\"",
    ] {
        assert!(ready.contains(text), "{ready}");
    }
    assert!(pause <= Duration::from_secs(10));
    std::fs::write(node.folder.path().join("etc/config.toml"), CONFIG).unwrap();
    node.agent.round(&state(Desired::Present)).await;
    assert!(node.health.readyz().ok);
}

#[tokio::test]
async fn the_state_is_kept_for_a_boot_without_the_api_server() {
    let mut node = node(CONFIG);
    node.agent.round(&state(Desired::Present)).await;
    let kept: Option<NodeState> = node.agent.disk.load("state.json").unwrap();
    assert_eq!(kept, Some(state(Desired::Present)));
}

const IMAGE: &str = "ghcr.io/holdfast/holdfast:1";

#[tokio::test]
async fn a_prepared_node_keeps_its_own_image_and_a_removed_one_does_not() {
    let (mut node, fake) = prepared().await;
    assert!(node.status.json().contains(&format!(r#""pins":"{IMAGE}""#)));
    assert_eq!(fake.lock().unwrap().records[IMAGE].len(), 2);
    assert_eq!(node.reported(), [""; 0]);
    node.agent.round(&state(Desired::Removed)).await;
    assert!(fake.lock().unwrap().records[IMAGE].is_empty());
    assert!(node.status.json().contains(r#""state":"removed""#));
}

#[tokio::test]
async fn a_runtime_that_cannot_pin_is_prepared_and_reported_once() {
    let mut node = node(CONFIG);
    let fake = serve(&node.folder.path().join("run/containerd.sock"));
    fake.lock().unwrap().cri_only = true;
    for _ in 0..2 {
        node.agent.pin_at = Instant::now();
        node.agent.round(&state(Desired::Present)).await;
    }
    assert!(node.health.readyz().ok);
    assert!(node.status.json().contains("not pinned"));
    assert_eq!(node.reported(), ["ImagesNotPinned"]);
    node.agent.round(&state(Desired::Removed)).await;
    assert!(node.status.json().contains(r#""state":"removed""#));
}

/// A node whose agent has made its first round.
async fn prepared() -> (Node, Arc<std::sync::Mutex<crate::cri::tests::Fake>>) {
    let mut node = node(CONFIG);
    let fake = serve(&node.folder.path().join("run/containerd.sock"));
    fake.lock().unwrap().own = vec![IMAGE.to_owned()];
    fake.lock()
        .unwrap()
        .records
        .insert(IMAGE.to_owned(), BTreeMap::new());
    node.agent.round(&state(Desired::Present)).await;
    assert!(node.health.readyz().ok, "{}", node.health.readyz().text);
    (node, fake)
}

fn pulls(fake: &std::sync::Mutex<crate::cri::tests::Fake>) -> usize {
    let fake = fake.lock().unwrap();
    let pulls = fake.calls.iter().filter(|call| call.starts_with("pull"));
    pulls.count()
}

#[tokio::test]
async fn changed_files_are_repaired_and_proven_until_repairs_are_exhausted() {
    let (mut node, fake) = prepared().await;
    let hosts = node.folder.path().join("etc/certs.d/10.96.0.50/hosts.toml");
    let ours = std::fs::read(&hosts).unwrap();
    for round in 1..=5 {
        std::fs::write(&hosts, "theirs").unwrap();
        node.agent.round(&state(Desired::Present)).await;
        assert_eq!(std::fs::read(&hosts).unwrap(), ours, "round {round}");
        assert_eq!(node.reported(), ["HostFilesRepaired"]);
        assert_eq!(pulls(&fake), 1 + round, "proven again at once");
    }
    std::fs::write(&hosts, "theirs").unwrap();
    for _ in 0..3 {
        node.agent.round(&state(Desired::Present)).await;
        assert_eq!(
            std::fs::read(&hosts).unwrap(),
            b"theirs",
            "no longer repaired"
        );
    }
    assert_eq!(node.reported(), ["HostFilesLeft"]);
    assert!(node.status.json().contains("repeatedly"));
    fake.lock().unwrap().refuse = Some((CODE_UNKNOWN, "x509: unknown authority".to_owned()));
    node.agent.pull_at = Instant::now();
    node.agent.round(&state(Desired::Present)).await;
    let ready = node.health.readyz();
    assert!(
        !ready.ok && ready.text.contains("repeatedly"),
        "{}",
        ready.text
    );
}

#[tokio::test]
async fn another_runtime_must_prove_itself_while_the_registry_is_down() {
    let (mut node, fake) = prepared().await;
    fake.lock().unwrap().refuse = Some((CODE_UNKNOWN, "connection refused".to_owned()));
    node.agent.pull_at = Instant::now();
    node.agent.round(&state(Desired::Present)).await;
    assert!(node.health.readyz().ok, "proven before");
    fake.lock().unwrap().uuid = "another".to_owned();
    node.agent.round(&state(Desired::Present)).await;
    assert!(
        !node.health.readyz().ok,
        "never proven: {}",
        node.health.readyz().text
    );
    assert_eq!(node.reported(), ["RuntimeReplaced"]);
    fake.lock().unwrap().refuse = None;
    node.agent.pull_at = Instant::now();
    node.agent.round(&state(Desired::Present)).await;
    assert!(node.health.readyz().ok);
}

#[tokio::test]
async fn a_configuration_without_the_folder_is_reported_once_and_recovers() {
    let (mut node, _fake) = prepared().await;
    let config = node.folder.path().join("etc/config.toml");
    std::fs::write(&config, "version = 3\n").unwrap();
    for _ in 0..3 {
        node.agent.round(&state(Desired::Present)).await;
        assert!(!node.health.readyz().ok);
    }
    assert_eq!(node.reported(), ["HostNotPrepared"]);
    std::fs::write(&config, CONFIG).unwrap();
    node.agent.round(&state(Desired::Present)).await;
    assert!(node.health.readyz().ok, "{}", node.health.readyz().text);
    let moved = CONFIG.replace("certs.d", "hosts.d");
    std::fs::write(&config, moved).unwrap();
    node.agent.round(&state(Desired::Present)).await;
    let ready = node.health.readyz();
    assert!(
        !ready.ok && ready.text.contains("nodeAgent.containerdConfigPath"),
        "{}",
        ready.text
    );
    assert_eq!(node.reported(), ["HostNotPrepared"]);
    assert_eq!(files(&node, "etc"), ["certs.d", "config.toml"]);
}

#[tokio::test]
async fn a_damaged_journal_is_set_aside_and_the_host_can_still_be_undone() {
    for damage in ["", "{", "[1]"] {
        let (mut node, _fake) = prepared().await;
        let journal = node
            .folder
            .path()
            .join("etc/certs.d/.holdfast/sys.holdfast/journal.json");
        std::fs::write(&journal, damage).unwrap();
        node.agent.round(&state(Desired::Present)).await;
        assert!(node.health.readyz().ok, "{}", node.health.readyz().text);
        assert_eq!(node.reported(), ["JournalDamaged"]);
        assert!(journal.with_file_name("journal.json.damaged").exists());
        node.agent.round(&state(Desired::Present)).await;
        assert_eq!(node.reported(), [""; 0]);
        std::fs::write(&journal, damage).unwrap();
        node.agent.round(&state(Desired::Removed)).await;
        assert!(node.status.json().contains(r#""state":"removed""#));
        let left = node.folder.path().join("etc/certs.d/10.96.0.50");
        assert!(!left.exists() && !journal.exists());
    }
}

#[tokio::test]
async fn a_new_address_removes_the_probe_of_the_former_one() {
    let (mut node, fake) = prepared().await;
    let mut moved = state(Desired::Present);
    moved.hosts[0].address = "10.96.0.60".to_owned();
    moved.hosts.push(Host {
        address: "10.96.0.50".to_owned(),
        endpoints: moved.hosts[0].endpoints.clone(),
    });
    moved.probe = "10.96.0.60/holdfast/probe:1".to_owned();
    node.agent.round(&moved).await;
    let images = fake.lock().unwrap().images.clone();
    assert_eq!(images, BTreeSet::from([moved.probe.clone()]));
    let folder = node.folder.path().join("etc/certs.d");
    assert!(folder.join("10.96.0.50/hosts.toml").exists());
    moved.hosts.pop();
    fake.lock().unwrap().refuse = Some((CODE_UNKNOWN, "connection refused".to_owned()));
    node.agent.round(&moved).await;
    assert!(!folder.join("10.96.0.50").exists(), "no longer an alias");
    assert!(
        node.health.readyz().ok,
        "the address that counts is the one proven"
    );
}

#[tokio::test]
async fn a_runtime_that_crashes_on_a_pin_is_not_asked_again_soon() {
    let mut node = node(CONFIG);
    let fake = serve(&node.folder.path().join("run/containerd.sock"));
    {
        let mut fake = fake.lock().unwrap();
        fake.own = vec![IMAGE.to_owned()];
        fake.records.insert(IMAGE.to_owned(), BTreeMap::new());
        fake.crashes_on_update = true;
    }
    for process in 0..5 {
        fake.lock().unwrap().process = process;
        node.agent.round(&state(Desired::Present)).await;
    }
    let asked = fake.lock().unwrap().calls.clone();
    let updates = asked.iter().filter(|call| *call == "update").count();
    assert_eq!(updates, 1, "{asked:?}");
    assert_eq!(node.reported(), ["ImagesNotPinned"]);
    assert!(node.health.readyz().ok, "{}", node.health.readyz().text);
}

/// The journal of a former version, beside the configuration: what it wrote where, over what.
fn former_journal(node: &Node, written: &[u8], before: &[u8]) -> PathBuf {
    use base64::Engine as _;
    use sha2::Digest as _;
    let folder = node.folder.path().join("etc/holdfast");
    std::fs::create_dir(&folder).unwrap();
    let written = hex::encode(sha2::Sha256::digest(written));
    let before = base64::engine::general_purpose::STANDARD.encode(before);
    let file = serde_json::json!({
        "original": {"kind": "file", "content": before, "mode": 0o640, "uid": 0, "gid": 0},
        "written": [written],
    });
    let journal = serde_json::json!({
        "files": {"certs.d/10.96.0.50/hosts.toml": file, "certs.d/10.96.0.60/hosts.toml": file},
        "directories": ["certs.d", "certs.d/10.96.0.60"],
    });
    std::fs::write(folder.join("journal.json"), journal.to_string()).unwrap();
    folder
}

#[tokio::test]
async fn a_former_versions_journal_is_continued_and_only_read() {
    let mut node = node(CONFIG);
    let _fake = serve(&node.folder.path().join("run/containerd.sock"));
    let hosts = node.folder.path().join("etc/certs.d");
    let write = |address: &str, content: &str| {
        std::fs::create_dir(hosts.join(address)).unwrap();
        std::fs::write(hosts.join(address).join("hosts.toml"), content).unwrap();
    };
    write("10.96.0.50", "of the former version");
    // Since then somebody else has written here: what was before counts no more.
    write("10.96.0.60", "theirs");
    let folder = former_journal(&node, b"of the former version", b"before Holdfast");
    let former = std::fs::read(folder.join("journal.json")).unwrap();
    node.agent.round(&state(Desired::Present)).await;
    let queued = node.reported();
    assert!(
        !queued.contains(&"HostFilesRepaired"),
        "its own file: {queued:?}"
    );
    let read = |address: &str| std::fs::read(hosts.join(address).join("hosts.toml")).unwrap();
    assert!(read("10.96.0.50").starts_with(MARKER.as_bytes()));
    for _ in 0..2 {
        node.agent.round(&state(Desired::Removed)).await;
        assert_eq!(read("10.96.0.50"), b"before Holdfast");
        assert_eq!(read("10.96.0.60"), b"theirs");
        assert_eq!(files(&node, "etc/certs.d"), ["10.96.0.50", "10.96.0.60"]);
        let state = node.status.json();
        assert!(
            state.contains("/etc/containerd/holdfast is left"),
            "{state}"
        );
    }
    let now = std::fs::read(folder.join("journal.json")).unwrap();
    assert_eq!(now, former, "the agent may not write there");
}

#[tokio::test]
async fn the_agents_of_two_releases_on_a_node_keep_their_journals_apart() {
    let mut first = node(CONFIG);
    let _fake = serve(&first.folder.path().join("run/containerd.sock"));
    let mut folders = first.agent.runtime.folders.clone();
    folders.hosts = first.folder.path().join("etc/certs.d");
    let other = Disk::new(&folders, "sys.other");
    other.store("state.json", &state(Desired::Present)).unwrap();
    first.agent.round(&state(Desired::Present)).await;
    first.agent.round(&state(Desired::Removed)).await;
    assert_eq!(files(&first, "etc/certs.d"), [".holdfast"]);
    assert!(other.load::<NodeState>("state.json").unwrap().is_some());
    other.remove_own_folder().unwrap();
    assert_eq!(files(&first, "etc/certs.d"), [""; 0]);
}
