//! The serving certificate, and certificates of clients.

use std::time::Duration;

use holdfast_config::Values;
use holdfast_runtime::files;

use super::{
    admission_review, create, eventually, rewriting, start, start_with, trusting, write_certificate,
};

// SPEC 27, SPEC 32
#[tokio::test]
async fn it_is_unready_until_the_certificate_is_there() {
    let webhook = start(Some(rewriting()), false).await;
    let url = format!("http://{}/readyz", webhook.admin);
    eventually("the admin port", || async {
        reqwest::get(&url).await.is_ok()
    })
    .await;
    assert!(!webhook.ready().await);
    let pem = write_certificate(&webhook.folder.path().join("tls"));
    eventually("ready", || webhook.ready()).await;
    let client = trusting(&pem, webhook.address);
    let answer = client
        .post(format!(
            "https://localhost:{}/mutate",
            webhook.address.port()
        ))
        .body("{")
        .send()
        .await;
    assert_eq!(answer.unwrap().status(), 400);
}

/// A CA and a client certificate of it, with its key.
fn client_authority() -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let pem = params.self_signed(&key).unwrap().pem();
    let issuer = rcgen::Issuer::new(params, key);
    let client_key = rcgen::KeyPair::generate().unwrap();
    let client = rcgen::CertificateParams::new(vec!["kube-apiserver".to_owned()]).unwrap();
    let client = client.signed_by(&client_key, &issuer).unwrap().pem();
    (pem, format!("{client}{}", client_key.serialize_pem()))
}

#[tokio::test]
async fn with_a_client_ca_only_its_certificates_may_ask() {
    let mut values = Values::default();
    values.webhook.client_ca_secret = "api-servers".to_owned();
    let webhook = start_with(Some(rewriting()), false, values).await;
    let (ca, identity) = client_authority();
    let (_, other) = client_authority();
    let certificate = write_certificate(&webhook.folder.path().join("tls"));
    let url = format!("http://{}/readyz", webhook.admin);
    eventually("the admin port", || async {
        reqwest::get(&url).await.is_ok()
    })
    .await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(!webhook.ready().await, "not without the CA of the clients");
    let folder = webhook.folder.path().join("client-ca");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("ca.crt"), ca).unwrap();
    eventually("ready", || webhook.ready()).await;
    let ask = async |identity: Option<&str>| {
        let client = reqwest::Client::builder()
            .tls_certs_only([reqwest::Certificate::from_pem(certificate.as_bytes()).unwrap()])
            .resolve("localhost", webhook.address);
        let client = match identity {
            Some(pem) => client.identity(reqwest::Identity::from_pem(pem.as_bytes()).unwrap()),
            None => client,
        };
        let url = format!("https://localhost:{}/mutate", webhook.address.port());
        let review = admission_review(&create(false));
        let request = client.build().unwrap().post(url).body(review.to_string());
        request.send().await.map(|answer| answer.status().as_u16())
    };
    assert!(ask(None).await.is_err());
    assert!(ask(Some(&other)).await.is_err());
    assert_eq!(ask(Some(&identity)).await.unwrap(), 200);
    eventually("both are counted", || async {
        let line = r#"holdfast_connections_cut_total{reason="handshake_failed"} 2"#;
        webhook.metrics().await.contains(line)
    })
    .await;
    eventually("the Artifact", || async {
        webhook.api.sources().len() == 1
    })
    .await;
}

// SPEC 32
#[tokio::test]
async fn reloads_of_the_certificate_are_counted_and_a_bad_one_shows() {
    let webhook = start(Some(rewriting()), true).await;
    eventually("ready", || webhook.ready()).await;
    let folder = webhook.folder.path().join("tls");
    let reloaded = async |lines: [&str; 2]| {
        let is_counted = async {
            loop {
                let metrics = webhook.metrics().await;
                if lines.iter().all(|line| metrics.contains(line)) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let limit = files::POLL_INTERVAL * 4;
        let outcome = tokio::time::timeout(limit, is_counted).await;
        assert!(outcome.is_ok(), "{lines:?} in {}", webhook.metrics().await);
    };
    std::fs::write(folder.join("tls.crt"), "broken").unwrap();
    reloaded([
        r#"holdfast_file_reloads_total{what="tls",outcome="failed"} 1"#,
        r#"holdfast_file_reload_failing{what="tls"} 1"#,
    ])
    .await;
    webhook.review(create(true)).await;
    let pem = write_certificate(&folder);
    reloaded([
        r#"holdfast_file_reloads_total{what="tls",outcome="ok"} 1"#,
        r#"holdfast_file_reload_failing{what="tls"} 0"#,
    ])
    .await;
    let client = trusting(&pem, webhook.address);
    let url = format!("https://localhost:{}/mutate", webhook.address.port());
    let answer = client.post(url).body("{").send().await;
    assert_eq!(answer.unwrap().status(), 400);
}
