//! `status --watch`, and which Artifacts `status` prints in what order.

use std::fs::File;
use std::process::Child;

use super::*;

/// A command that runs until this is dropped.
struct Running {
    child: Child,
    folder: tempfile::TempDir,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Running {
    fn start(site: &Site, arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = |name| File::create(folder.path().join(name)).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_holdfast"))
            .args(arguments)
            .env("KUBECONFIG", &site.kubeconfig)
            .stdin(Stdio::null())
            .stdout(file("stdout"))
            .stderr(file("stderr"))
            .spawn()
            .unwrap();
        Self { child, folder }
    }

    /// Waits until this file of its output has a text.
    async fn prints(&self, file: &str, part: &str) {
        let path = self.folder.path().join(file);
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            let text = std::fs::read_to_string(&path).unwrap();
            if text.contains(part) {
                return;
            }
            assert!(Instant::now() < end, "{part:?} is not in:\n{text}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Requests of one verb for Artifacts that the API server has answered.
async fn requests(site: &Site, verb: &str) -> f64 {
    let request = http::Request::get("/metrics").body(Vec::new()).unwrap();
    let metrics = site.client.request_text(request).await.unwrap();
    let lines = metrics.lines().filter(|line| {
        line.starts_with("apiserver_request_total{")
            && line.contains("resource=\"artifacts\"")
            && line.contains(&format!("verb=\"{verb}\""))
    });
    let values = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    values.sum()
}

#[tokio::test]
async fn status_watches_artifacts_and_outlives_an_outage_of_the_api_server() {
    let mut site = Site::start().await;
    let source = "registry.example/web:1";
    site.stands("shop", source, "NotFound").await;
    let before = requests(&site, "LIST").await;
    let status = ["status", "-w", "--interval", "100ms", "-o", "jsonl"];
    let mut running = Running::start(&site, &status);
    running.prints("stdout", "\"NotFound\":1").await;
    site.stands("shop", source, "Copied").await;
    running.prints("stdout", "\"local\":1").await;
    site.stands("shop", "registry.example/later:1", "NotFound")
        .await;
    running.prints("stdout", "registry.example/later:1").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let lists = requests(&site, "LIST").await - before;
    assert!((1.0..2.0).contains(&lists), "{lists} lists of Artifacts");

    site.server.kill().unwrap();
    running.prints("stderr", "cannot tell for").await;
    running
        .prints("stderr", "the API server cannot be reached")
        .await;
    assert!(running.child.try_wait().unwrap().is_none(), "it ended");
}

#[tokio::test]
async fn status_prints_the_selected_artifacts_in_the_order_asked_for() {
    let site = Site::start().await;
    for (source, reason, team) in [
        ("registry.example/a:1", "Unauthorized", "web"),
        ("registry.example/b:1", "NotFound", "data base"),
        ("registry.example/c:1", "Copied", "web"),
    ] {
        site.stands("shop", source, reason).await;
        let name = artifact_name(source);
        let path = format!("{ARTIFACTS}/namespaces/shop/artifacts/{name}");
        let team = team.replace(' ', "_");
        site.merge(&path, &json!({"metadata": {"labels": {"team": team}}}))
            .await;
    }
    let (a, b) = ("registry.example/a:1", "registry.example/b:1");
    for (sort_by, expect) in [
        (".source", format!("{a} {b}\n")),
        (".reason", format!("{b} {a}\n")),
    ] {
        let sorted = [
            "status",
            "--sort-by",
            sort_by,
            "-o",
            "jsonpath={.absent[*].source}",
        ];
        site.run(&sorted).await.check(1, &[&expect]);
    }
    for (selector, wanted) in [("team=web", "2\n"), ("team in (data_base, x)", "1\n")] {
        let selected = ["status", "-l", selector, "-o", "jsonpath={.images.wanted}"];
        let ended = site.run(&selected).await;
        assert_eq!(ended.text, wanted, "{selector}");
    }
    let nothing = site.run(&["status", "-l", "team=none"]).await;
    nothing.check(1, &["the selector \"team=none\" selects no Artifact"]);
    let unknown = site.run(&["status", "--sort-by", ".name"]).await;
    unknown.check(1, &["--sort-by: no item has this field"]);
}

#[tokio::test]
async fn a_wrong_selector_is_a_wrong_command_line_also_while_watching() {
    let site = Site::start().await;
    let status = ["status", "-l", "team in ("];
    for arguments in [&status[..], &[&status[..], &["-w"]].concat()] {
        let told = ["wrong label selector \"team in (\"", "unable to parse"];
        site.run(arguments).await.check(64, &told);
    }
}
