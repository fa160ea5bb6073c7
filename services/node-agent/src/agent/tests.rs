//! Whole rounds: a host folder, a fake runtime, and what the agent says of both.

use holdfast_api::state::Host;
use holdfast_runtime::health::Health;
use prometheus_client::registry::Registry;

use super::*;
use crate::cri::tests::serve;

struct Node {
    agent: Agent,
    status: Status,
    health: Health,
    folder: tempfile::TempDir,
}

fn node(config: &str) -> Node {
    let folder = tempfile::tempdir().unwrap();
    let (etc, run) = (folder.path().join("etc"), folder.path().join("run"));
    for path in [&etc, &run] {
        std::fs::create_dir(path).unwrap();
    }
    std::fs::write(etc.join("config.toml"), config).unwrap();
    let (health, status) = (Health::default(), Status::default());
    let ready = health.ready_flag("node", "starting");
    let metrics = Arc::new(Metrics::register(&mut Registry::default()));
    let folders = Folders {
        etc,
        run,
        etc_on_host: PathBuf::from("/etc/containerd"),
        hosts_on_host: None,
    };
    Node {
        agent: Agent::new(folders, status.clone(), ready, metrics),
        status,
        health,
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

fn files(node: &Node) -> Vec<String> {
    let etc = node.folder.path().join("etc");
    let names = std::fs::read_dir(etc)
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
    assert_eq!(files(&node), ["certs.d", "config.toml", "holdfast"]);

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
    assert_eq!(files(&node), ["config.toml"]);
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
    fake.lock().unwrap().refuse = Some("connection refused".to_owned());
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
async fn a_runtime_without_config_path_is_told_in_full_and_tried_again() {
    let mut node = node("version = 3\n");
    let _fake = serve(&node.folder.path().join("run/containerd.sock"));
    let pause = node.agent.round(&state(Desired::Present)).await;
    let ready = node.health.readyz().text;
    for words in [
        "containerd v2.1.4 has no registry config_path",
        "io.containerd.cri.v1.images",
        "config_path = \"/etc/containerd/certs.d\"",
    ] {
        assert!(ready.contains(words), "{ready}");
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
    let kept: Option<NodeState> = Disk::new(node.folder.path().join("etc"))
        .load("state.json")
        .unwrap();
    assert_eq!(kept, Some(state(Desired::Present)));
}
