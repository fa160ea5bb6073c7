//! Pins on a real containerd, started for the test in a folder of its own, which needs root; and
//! what a real containerd reads from its configuration files.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests")]

use holdfast_cluster::oci::ImageBuilder;
use holdfast_cluster::programs::{self, Program};
use holdfast_node_agent::host::Folders;
use holdfast_node_agent::runtimes::{self, AgentPod, HostRuntime as _};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const IMAGE: &str = "holdfast.test/own:1";
const OTHER: &str = "holdfast.test/other:1";

struct Containerd {
    process: Child,
    program: PathBuf,
    ctr: PathBuf,
    folder: tempfile::TempDir,
}

impl Drop for Containerd {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Containerd {
    /// Starts one; nothing when the test may not.
    async fn start() -> Option<Self> {
        if std::fs::metadata("/proc/self").unwrap().uid() != 0 {
            println!("skipped: containerd needs root");
            return None;
        }
        let programs = programs::ensure(&[Program::Containerd, Program::Ctr]).unwrap();
        let program = programs.path(Program::Containerd).unwrap().to_path_buf();
        let ctr = programs.path(Program::Ctr).unwrap().to_path_buf();
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().display();
        let config = format!(
            "version = 3\nroot = '{at}/root'\nstate = '{at}/state'\n[grpc]\naddress = '{at}/containerd.sock'\n[ttrpc]\naddress = '{at}/ttrpc.sock'\n\
             [plugins.'io.containerd.cri.v1.images']\nsnapshotter = 'native'\n"
        );
        std::fs::write(folder.path().join("config.toml"), config).unwrap();
        let process = spawn(&program, folder.path());
        let this = Self {
            process,
            program,
            ctr,
            folder,
        };
        this.answers().await;
        Some(this)
    }

    fn runtime(&self) -> runtimes::containerd::Containerd {
        runtimes::containerd::Containerd::new(Folders {
            run: self.folder.path().to_owned(),
            ..Folders::default()
        })
    }

    async fn answers(&self) {
        let end = Instant::now() + Duration::from_secs(60);
        while self.runtime().cri().version().await.is_err() {
            assert!(Instant::now() < end, "containerd does not answer");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn stop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }

    async fn restart(&mut self) {
        self.stop();
        self.process = spawn(&self.program, self.folder.path());
        self.answers().await;
    }

    fn ctr(&self, arguments: &[&str]) -> String {
        let output = Command::new(&self.ctr)
            .arg("--address")
            .arg(self.folder.path().join("containerd.sock"))
            .args(["--namespace", "k8s.io"])
            .args(arguments)
            .output()
            .unwrap();
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {complaint}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn import(&self, reference: &str) {
        let archive = self.folder.path().join("image.tar");
        let image = ImageBuilder::of_program("/program", reference).tag(reference);
        image.write(&archive).unwrap();
        let archive = archive.display().to_string();
        self.ctr(&["images", "import", "--no-unpack", "--local", &archive]);
    }

    /// The labels of an image's record, as `ctr` prints them.
    fn labels(&self, reference: &str) -> String {
        let list = self.ctr(&["images", "ls", &format!("name=={reference}")]);
        let line = list.lines().nth(1).unwrap();
        line.split_whitespace().next_back().unwrap().to_owned()
    }
}

fn spawn(program: &Path, folder: &Path) -> Child {
    let log = std::fs::File::create(folder.join("log")).unwrap();
    Command::new(program)
        .arg("--config")
        .arg(folder.join("config.toml"))
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}

#[tokio::test]
async fn own_images_are_pinned_and_released_and_containerd_lives_on() {
    let Some(mut containerd) = Containerd::start().await else {
        return;
    };
    let pod = AgentPod {
        namespace: "sys".to_owned(),
        name: "agent-1".to_owned(),
        release: "sys.holdfast".to_owned(),
    };
    for reference in [IMAGE, OTHER] {
        containerd.import(reference);
    }
    containerd.ctr(&[
        "containers",
        "create",
        "--snapshotter=native",
        "--label=io.kubernetes.pod.namespace=sys",
        "--label=io.kubernetes.pod.name=agent-1",
        IMAGE,
        "agent",
    ]);
    let runtime = containerd.runtime();
    let before = containerd.labels(IMAGE);
    let identity = runtime.identity().await;
    assert!(identity.data.is_some() && identity.process.is_some());
    let pinned = runtime.pin(&pod).await.unwrap();
    assert_eq!(pinned, BTreeSet::from([IMAGE.to_owned()]));
    assert_eq!(runtime.cri().is_pinned(IMAGE).await.unwrap(), Some(true));
    assert_eq!(runtime.cri().is_pinned(OTHER).await.unwrap(), Some(false));
    assert_eq!(
        runtime.identity().await,
        identity,
        "the process is still the same"
    );

    containerd.ctr(&["images", "label", IMAGE, "io.cri-containerd.pinned="]);
    runtime.pin(&pod).await.unwrap();
    assert_eq!(runtime.cri().is_pinned(IMAGE).await.unwrap(), Some(true));

    containerd.restart().await;
    assert_eq!(runtime.cri().is_pinned(IMAGE).await.unwrap(), Some(true));
    let again = runtime.identity().await;
    assert!(
        again.data == identity.data && again.process != identity.process,
        "{again:?}"
    );

    assert_eq!(runtime.unpin(&pod).await.unwrap(), 1);
    assert_eq!(containerd.labels(IMAGE), before, "no trace is left");
    let end = Instant::now() + Duration::from_secs(5);
    while runtime.cri().is_pinned(IMAGE).await.unwrap() != Some(false) {
        assert!(Instant::now() < end, "the CRI still calls it pinned");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[derive(serde::Deserialize)]
struct Case {
    name: String,
    containerd: String,
    #[serde(default)]
    expect: String,
    files: BTreeMap<String, String>,
}

/// The expectations that the agent's reading of configurations is tested against are what
/// containerd itself prints.
#[test]
fn containerd_reads_its_configuration_as_expected() {
    #[derive(serde::Deserialize)]
    struct Cases {
        case: Vec<Case>,
    }
    let cases = include_str!("data/containerd-configurations.toml");
    let cases: Cases = toml::from_str(cases).unwrap();
    let programs = programs::ensure(&[Program::Containerd]).unwrap();
    let program = programs.path(Program::Containerd).unwrap();
    let version = Command::new(program).arg("--version").output().unwrap();
    let version = String::from_utf8(version.stdout).unwrap();
    let version = version.split_whitespace().nth(2).unwrap();
    let version = version.split('+').next().unwrap().trim_start_matches('v');
    let mut compared = 0;
    for case in cases.case.iter().filter(|case| case.containerd == version) {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in &case.files {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let output = Command::new(program)
            .arg("--config")
            .arg(folder.path().join("config.toml"))
            .args(["config", "dump"])
            .output()
            .unwrap();
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {complaint}", case.name);
        let dump: toml::Table = String::from_utf8(output.stdout).unwrap().parse().unwrap();
        let images = &dump["plugins"]["io.containerd.cri.v1.images"];
        let path = images["registry"]["config_path"].as_str();
        assert_eq!(path, Some(case.expect.as_str()), "{}", case.name);
        compared += 1;
    }
    assert!(compared >= 18, "{compared} cases for containerd {version}");
}
