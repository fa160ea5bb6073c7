//! What a configuration of distribution makes of the registry.

use holdfast_config::Distribution;
use holdfast_testkit::{ImageBuilder, Upstream};

use super::harness::Process;

fn started(text: &str) -> Process {
    let text = format!("version: 0.1\nstorage: {{filesystem: }}\n{text}");
    let told = Distribution::parse(&text, []).unwrap();
    Process::with(false, |settings| {
        let (listen, admin, data) = (
            settings.listen,
            settings.admin_listen,
            settings.data.clone(),
        );
        *settings = told.settings;
        // The test machine's own disk is not what is tested.
        settings.limits.reserve_percent = 0;
        (settings.listen, settings.admin_listen, settings.data) = (listen, admin, data);
    })
}

async fn send(process: &Process, method: &str, path: &str) -> u16 {
    let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
    let request = process
        .client
        .request(method, format!("{}{path}", process.api));
    request.send().await.unwrap().status().as_u16()
}

const DIGEST: &str = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";

#[tokio::test(flavor = "multi_thread")]
async fn deletes_are_off_until_they_are_enabled() {
    let blob = format!("/v2/a/blobs/{DIGEST}");
    for (text, delete, push) in [("", 405, 202), ("http: {relativeurls: true}", 405, 202)] {
        let process = started(text);
        process.until("/readyz", 200).await;
        assert_eq!(send(&process, "DELETE", &blob).await, delete);
        assert_eq!(send(&process, "POST", "/v2/a/blobs/uploads/").await, push);
        process.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_serves_its_upstream_under_plain_names_and_takes_no_pushes() {
    let upstream = Upstream::start().await;
    let image = ImageBuilder::new(1).layer(1000).build();
    upstream.push("team/app", "1", &image);
    let process = started(&format!("proxy: {{remoteurl: '{}'}}", upstream.url()));
    process.until("/readyz", 200).await;
    let (status, text) = process.api("/v2/team/app/manifests/1").await;
    assert_eq!(status, 200, "{text}");
    assert_eq!(process.api("/v2/team/none/manifests/1").await.0, 404);
    assert_eq!(send(&process, "POST", "/v2/a/blobs/uploads/").await, 405);
    process.end().await;
}
