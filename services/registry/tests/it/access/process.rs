//! The whole process from its file of configuration: TLS, client certificates, and every file of
//! access changed under way.

use std::{path::Path, time::Duration};

use holdfast_config::Standalone;
use holdfast_runtime::{
    CancellationToken,
    tls::{ClientTls, install_crypto_provider},
};
use holdfast_testkit::server::free_address;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use super::{
    tokens::Service,
    users::{basic, htpasswd},
};
use crate::harness::sha256;

struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            pem,
            issuer: Issuer::new(params, key),
        }
    }

    fn issue(&self, common_name: &str, dns: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![dns.to_owned()]).unwrap();
        params
            .distinguished_name
            .push(DnType::CommonName, common_name);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    /// A serving certificate in the folder.
    fn serve(&self, folder: &Path) {
        let (certificate, key) = self.issue("registry", "localhost");
        std::fs::write(folder.join("tls.key"), key).unwrap();
        std::fs::write(folder.join("tls.crt"), certificate).unwrap();
    }
}

fn client(trusted: &str, identity: Option<(String, String)>) -> reqwest::Client {
    let identity = identity
        .as_ref()
        .map(|(certificate, key)| (certificate.as_bytes(), key.as_bytes()));
    let tls = ClientTls::from_pem(trusted.as_bytes(), identity).unwrap();
    reqwest::Client::builder()
        .no_proxy()
        .pool_max_idle_per_host(0)
        .tls_backend_preconfigured(tls.config().unwrap())
        .build()
        .unwrap()
}

struct Process {
    url: String,
    metrics: String,
    _stop: Stop,
}

struct Stop(CancellationToken);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// Runs the registry with everything configured, files in `folder`.
async fn start(folder: &Path) -> Process {
    let (port, admin) = (
        free_address().unwrap().port(),
        free_address().unwrap().port(),
    );
    let text = format!(
        r#"
listen: 127.0.0.1:{port}
adminListen: 127.0.0.1:{admin}
data: {folder}/data
tls: {{certificate: {folder}/tls.crt, key: {folder}/tls.key}}
upstreams: []
limits: {{reservePercent: 0}}
access:
  htpasswd: {folder}/htpasswd
  clientCa: {folder}/clients.crt
  token: {{keys: {folder}/keys, realm: "https://auth.example/token", service: registry.example, issuer: auth}}
  rules:
    - {{users: ["*"], actions: [pull]}}
    - {{certificates: ["CN=ci", "DNS=builder.example"], repositories: [team], actions: [pull, push]}}
"#,
        folder = folder.display()
    );
    let settings = Standalone::parse(&text).unwrap().settings();
    let stop = CancellationToken::new();
    let run = holdfast_registry::run_until(settings, None, stop.clone());
    tokio::spawn(async move { run.await.unwrap() });
    for _ in 0..200 {
        if tokio::net::TcpStream::connect(("127.0.0.1", port))
            .await
            .is_ok()
        {
            return Process {
                url: format!("https://localhost:{port}"),
                metrics: format!("http://127.0.0.1:{admin}/metrics"),
                _stop: Stop(stop),
            };
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("the registry does not listen");
}

/// Tries until it is so, for as long as files may take to be seen.
async fn eventually(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    for _ in 0..150 {
        if is_so().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_have_roles_and_every_file_is_read_again() {
    install_crypto_provider();
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let write = |name: &str, text: &str| std::fs::write(file(name), text).unwrap();
    let (servers, clients, strangers) = (Authority::new(), Authority::new(), Authority::new());
    let (service, next) = (Service::new(), Service::new());
    servers.serve(folder.path());
    write("clients.crt", &clients.pem);
    write("htpasswd", &htpasswd(&["alice"]));
    write("keys", &service.jwks());
    let registry = start(folder.path()).await;

    let url = registry.url.clone();
    let post = async |client: &reqwest::Client, repo: &str| {
        let digest = sha256(b"x");
        client
            .post(format!("{url}/v2/{repo}/blobs/uploads/?digest={digest}"))
            .body("x")
            .send()
            .await
            .map(|answer| answer.status().as_u16())
    };
    let base = async |client: &reqwest::Client, authorization: &str| {
        let mut request = client.get(format!("{url}/v2/"));
        if !authorization.is_empty() {
            request = request.header("authorization", authorization);
        }
        request.send().await.map(|answer| answer.status().as_u16())
    };

    let anonymous = client(&servers.pem, None);
    assert_eq!(base(&anonymous, "").await.unwrap(), 401);
    assert_eq!(base(&anonymous, &basic("alice")).await.unwrap(), 200);
    for (name, dns, repo, expect) in [
        ("ci", "x.example", "team/app", 201),
        ("other", "builder.example", "team/app", 201),
        ("ci", "x.example", "other/app", 403),
        ("other", "x.example", "team/app", 403),
    ] {
        let client = client(&servers.pem, Some(clients.issue(name, dns)));
        assert_eq!(
            post(&client, repo).await.unwrap(),
            expect,
            "{name} {dns} {repo}"
        );
    }
    let stranger = client(&servers.pem, Some(strangers.issue("ci", "x.example")));
    assert!(
        post(&stranger, "team/app").await.is_err(),
        "another CA's certificate ends the handshake"
    );

    // Everything at once: a bad file of users, other keys, another CA of servers and of clients.
    let others = Authority::new();
    others.serve(folder.path());
    write("clients.crt", &strangers.pem);
    write("htpasswd", "alice:$apr1$x$y\n");
    write("keys", &next.jwks());
    let anonymous = client(&others.pem, None);
    eventually("the new certificate serves", async || {
        base(&anonymous, "").await.is_ok()
    })
    .await;
    let stranger = client(&others.pem, Some(strangers.issue("ci", "x.example")));
    assert_eq!(post(&stranger, "team/app").await.unwrap(), 201);
    eventually("the new keys verify", async || {
        base(&anonymous, &next.token("repository:a:pull"))
            .await
            .unwrap()
            == 200
    })
    .await;
    assert_eq!(
        base(&anonymous, &service.token("repository:a:pull"))
            .await
            .unwrap(),
        401,
        "the old ones do not"
    );
    let metrics = registry.metrics.clone();
    let failing = async |value: u8| {
        let text = reqwest::get(&metrics).await.unwrap().text().await.unwrap();
        text.contains(&format!(
            r#"holdfast_file_reload_failing{{what="htpasswd"}} {value}"#
        ))
    };
    eventually("the bad file shows", async || failing(1).await).await;
    assert_eq!(
        base(&anonymous, &basic("alice")).await.unwrap(),
        200,
        "the last good file stays"
    );
    write("htpasswd", &htpasswd(&["bob"]));
    eventually("the good file shows", async || failing(0).await).await;
    assert_eq!(base(&anonymous, &basic("bob")).await.unwrap(), 200);
    assert_eq!(base(&anonymous, &basic("alice")).await.unwrap(), 401);
}
