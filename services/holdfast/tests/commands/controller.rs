//! `diff offline` beside a leading controller, as far as the command asks it.

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::{Site, cron_job, workload};

/// A controller that gives an answer to each question. The arguments that make a command ask it.
pub(crate) async fn controller(
    answer: impl Fn(&str, &Value) -> &'static str + Clone + Send + Sync + 'static,
) -> [String; 2] {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move { while exchange(&mut stream, &answer).await.is_some() {} });
        }
    });
    ["--controller".to_owned(), address.to_string()]
}

async fn exchange(
    stream: &mut TcpStream,
    answer: &impl Fn(&str, &Value) -> &'static str,
) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap();
    let path = head.split(' ').nth(1).unwrap().to_owned();
    let mut lines = head.lines();
    let length = lines
        .find_map(|line| line.strip_prefix("content-length: "))
        .unwrap();
    let mut body = vec![0; length.parse().unwrap()];
    stream.read_exact(&mut body).await.ok()?;
    let asked: Value = serde_json::from_slice(&body).unwrap();
    let questions = asked["containers"]
        .as_array()
        .or_else(|| asked["sources"].as_array());
    let answers: Vec<_> = questions
        .unwrap()
        .iter()
        .map(|it| answer(&path, it))
        .collect();
    let body = json!({"answers": answers}).to_string();
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all((head + &body).as_bytes()).await.ok()
}

impl Site {
    /// Pods of the registry and the controller on a node.
    pub(crate) async fn holdfast_runs(&self) {
        for component in ["registry", "controller"] {
            let pod = json!({
                "metadata": {"name": component, "labels": {
                    "app.kubernetes.io/name": "holdfast", "app.kubernetes.io/instance": "holdfast",
                    "app.kubernetes.io/component": component,
                }},
                "spec": {"nodeName": "one", "containers": [
                    {"name": "c", "image": "registry.example/holdfast:1"},
                ]},
            });
            self.post("/api/v1/namespaces/holdfast-system/pods", &pod)
                .await;
        }
    }
}

// SPEC 12
#[tokio::test]
async fn diff_offline_asks_the_controller_what_the_registry_holds_now() {
    let site = Site::start().await;
    site.holdfast_runs().await;
    let source = "registry.example/web:1";
    site.post(
        "/apis/apps/v1/namespaces/shop/deployments",
        &workload("web", source),
    )
    .await;
    site.stands("shop", source, "Copied").await;
    let diff = |controller: &[String; 2]| {
        let mut arguments = ["diff", "offline", "-n", "shop"]
            .map(str::to_owned)
            .to_vec();
        arguments.extend_from_slice(controller);
        arguments
    };
    let run = async |controller: &[String; 2]| {
        let arguments = diff(controller);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        site.run(&arguments).await
    };
    let yes = controller(|_, _| "yes").await;
    run(&yes)
        .await
        .check(0, &["basis: what the registry and the nodes hold now"]);
    // The Artifact is Ready, and the registry lost the copy since.
    let lost = controller(|path, _| if path == "/v1/held" { "no" } else { "yes" }).await;
    run(&lost)
        .await
        .check(1, &["MISSING", "does not hold it any more"]);
    let silent = controller(|path, _| if path == "/v1/held" { "unknown" } else { "yes" }).await;
    run(&silent)
        .await
        .check(2, &["not judged", "did not say whether it holds it"]);
    // The nodes of the registry lack its own image.
    let bare = controller(|path, _| if path == "/v1/held" { "yes" } else { "no" }).await;
    run(&bare)
        .await
        .check(1, &["no pod of the registry starts", "would not start"]);
    let away = ["--controller".to_owned(), "127.0.0.1:1".to_owned()];
    run(&away).await.check(
        2,
        &["not judged: what the registry and the nodes hold now: 127.0.0.1:1"],
    );
}

#[tokio::test]
async fn diff_offline_names_the_right_or_the_state_that_it_lacks() {
    let site = Site::start().await;
    let diff = ["diff", "offline", "-n", "shop"];
    let line = "not judged: what the registry and the nodes hold now: no controller leads";
    site.run(&diff).await.check(2, &[line]);
    let limited = site.limited_user().await;
    let line = "hold now: leases in holdfast-system may not be read";
    site.run_as(&limited, &diff).await.check(2, &[line]);
    let lease =
        json!({"metadata": {"name": "holdfast-controller"}, "spec": {"holderIdentity": "gone"}});
    let leases = "/apis/coordination.k8s.io/v1/namespaces/holdfast-system/leases";
    site.post(leases, &lease).await;
    site.run(&diff)
        .await
        .check(2, &["hold now: the controller that led is gone"]);
}

// SPEC 12
#[tokio::test]
async fn diff_offline_names_what_would_not_start_and_what_it_may_not_see() {
    let site = Site::start().await;
    site.holdfast_runs().await;
    let yes = controller(|_, _| "yes").await;
    let [flag, address] = &yes;
    let diff = ["diff", "offline", "-n", "shop", flag, address];
    site.run(&diff)
        .await
        .check(0, &["0 owners: every one would start offline"]);
    site.post(
        "/apis/apps/v1/namespaces/shop/deployments",
        &workload("web", "registry.example/web:1"),
    )
    .await;
    site.post(
        "/apis/batch/v1/namespaces/shop/cronjobs",
        &cron_job("night", "registry.example/night:1"),
    )
    .await;
    site.stands("shop", "registry.example/web:1", "Copied")
        .await;
    site.stands("shop", "registry.example/night:1", "Unauthorized")
        .await;
    let [flag, address] = &controller(|_, asked| {
        let is_night = asked.as_str().is_some_and(|it| it.contains("night"));
        if is_night { "no" } else { "yes" }
    })
    .await;
    let before = ["diff", "offline", "-n", "shop", flag, address];
    site.run(&before).await.check(
        1,
        &[
            "CronJob/night",
            "MISSING",
            "Unauthorized: so says the test",
            "1 would not start offline",
        ],
    );
    let limited = site.limited_user().await;
    site.run_as(&limited, &diff)
        .await
        .check(2, &["not judged: cronjobs may not be listed"]);

    site.stands("shop", "registry.example/night:1", "Copied")
        .await;
    let json_file = site.folder.path().join("diff.json");
    let file = ["--show-local", "--json", json_file.to_str().unwrap()];
    site.run(&[&diff[..], &file].concat()).await.check(
        0,
        &["Deployment/web", "2 owners: every one would start offline"],
    );
    let verdicts: Vec<_> = site.json("diff.json")["owners"]
        .as_array()
        .unwrap()
        .iter()
        .map(|owner| owner["images"][0]["verdict"].clone())
        .collect();
    assert_eq!(verdicts, ["local", "local"]);

    site.merge(
        "/api/v1/namespaces/shop",
        &json!({"metadata": {"labels": {"holdfast.dev/rewrite": "disabled"}}}),
    )
    .await;
    site.run(&diff)
        .await
        .check(1, &["its namespace is left out"]);
    site.run(&[&diff[..], &["--ignore-uncovered"]].concat())
        .await
        .check(0, &["2 would not start offline"]);
}
