//! The server and the clients of the process shell, over real sockets.

use holdfast_runtime::health::Health;
use holdfast_runtime::server::{self, Counts, Limits};
use holdfast_runtime::tls::{
    ClientAuth, ClientTls, PeerIdentity, ServerTls, TlsFiles, install_crypto_provider,
};
use holdfast_runtime::{CancellationToken, admin, metrics};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

fn authority() -> Authority {
    install_crypto_provider();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let pem = params.self_signed(&key).unwrap().pem();
    Authority {
        pem,
        issuer: Issuer::new(params, key),
    }
}

impl Authority {
    fn issue(&self, common_name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params
            .distinguished_name
            .push(DnType::CommonName, common_name);
        (
            params.signed_by(&key, &self.issuer).unwrap().pem(),
            key.serialize_pem(),
        )
    }

    fn write(&self, folder: &Path, common_name: &str) {
        let (certificate, key) = self.issue(common_name);
        std::fs::write(folder.join("tls.crt"), certificate).unwrap();
        std::fs::write(folder.join("tls.key"), key).unwrap();
        std::fs::write(folder.join("ca.crt"), &self.pem).unwrap();
    }

    fn client(&self, common_name: &str) -> ClientTls {
        let (certificate, key) = self.issue(common_name);
        ClientTls::from_pem(
            self.pem.as_bytes(),
            Some((certificate.as_bytes(), key.as_bytes())),
        )
        .unwrap()
    }
}

/// Answers with the client's common name.
async fn serve(tls: Option<ServerTls>, limits: Limits, stop: CancellationToken) -> u16 {
    serve_counted(tls, limits, Counts::default(), stop).await
}

async fn serve_counted(
    tls: Option<ServerTls>,
    limits: Limits,
    counts: Counts,
    stop: CancellationToken,
) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let service = server::service_fn(|request: http::Request<server::RequestBody>| async move {
        if request.uri().path() == "/slow" {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        let name = request
            .extensions()
            .get::<PeerIdentity>()
            .map_or("nobody", |peer| &peer.common_name)
            .to_owned();
        Ok::<_, std::convert::Infallible>(http::Response::new(name))
    });
    let serve = server::serve_counted(listener, tls, service, limits, counts, stop);
    tokio::spawn(serve);
    port
}

fn http(tls: &ClientTls) -> reqwest::Client {
    reqwest::Client::builder()
        .no_proxy()
        .pool_max_idle_per_host(0)
        .tls_backend_preconfigured(tls.config().unwrap())
        .build()
        .unwrap()
}

async fn get(client: &reqwest::Client, url: &str) -> Option<String> {
    client.get(url).send().await.ok()?.text().await.ok()
}

#[tokio::test]
async fn a_handler_sees_the_client_and_unknown_certificates_are_refused() {
    let (ca, stranger) = (authority(), authority());
    let folder = tempfile::tempdir().unwrap();
    ca.write(folder.path(), "server");
    for (auth, known, nobody, unknown) in [
        (ClientAuth::Required, Some("controller"), None, None),
        (
            ClientAuth::Optional,
            Some("controller"),
            Some("nobody"),
            None,
        ),
        (
            ClientAuth::None,
            Some("nobody"),
            Some("nobody"),
            Some("nobody"),
        ),
    ] {
        let tls = ServerTls::from_files(TlsFiles::in_folder(folder.path(), auth)).unwrap();
        let url = format!(
            "https://localhost:{}/",
            serve(Some(tls), Limits::default(), CancellationToken::new()).await
        );
        let anonymous = ClientTls::from_pem(ca.pem.as_bytes(), None).unwrap();
        let (certificate, key) = stranger.issue("controller");
        let forged = ClientTls::from_pem(
            ca.pem.as_bytes(),
            Some((certificate.as_bytes(), key.as_bytes())),
        )
        .unwrap();
        assert_eq!(
            get(&http(&ca.client("controller")), &url).await.as_deref(),
            known,
            "{auth:?}"
        );
        assert_eq!(
            get(&http(&anonymous), &url).await.as_deref(),
            nobody,
            "{auth:?}"
        );
        assert_eq!(
            get(&http(&forged), &url).await.as_deref(),
            unknown,
            "{auth:?}"
        );
    }
}

// SPEC 32
#[tokio::test]
async fn certificates_rotate_without_a_restart_and_a_bad_file_changes_nothing() {
    let (old, new) = (authority(), authority());
    let folder = tempfile::tempdir().unwrap();
    old.write(folder.path(), "server");
    let tls = ServerTls::from_files(TlsFiles::in_folder(folder.path(), ClientAuth::None)).unwrap();
    let stop = CancellationToken::new();
    tokio::spawn(tls.clone().follow(Duration::from_millis(20), stop.clone()));
    let url = format!(
        "https://localhost:{}/",
        serve(Some(tls.clone()), Limits::default(), stop.clone()).await
    );
    let trust = old.client("c");
    let client = http(&trust);
    assert!(get(&client, &url).await.is_some());

    std::fs::write(folder.path().join("tls.crt"), "broken").unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(tls.reload().is_err());
    assert!(
        get(&client, &url).await.is_some(),
        "the last good one stays"
    );

    new.write(folder.path(), "server");
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(
        get(&client, &url).await.is_none(),
        "the new one is not trusted yet"
    );
    trust
        .replace(format!("{}{}", new.pem, old.pem).as_bytes(), None)
        .unwrap();
    assert!(
        get(&client, &url).await.is_some(),
        "the same client trusts it now"
    );
    assert!(trust.replace(b"broken", None).is_err());
    assert!(get(&client, &url).await.is_some());
}

#[tokio::test]
async fn requests_under_way_finish_and_new_ones_are_refused_at_shutdown() {
    let stop = CancellationToken::new();
    let port = serve(None, Limits::default(), stop.clone()).await;
    install_crypto_provider();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let slow = tokio::spawn({
        let client = client.clone();
        async move { get(&client, &format!("http://127.0.0.1:{port}/slow")).await }
    });
    tokio::time::sleep(Duration::from_millis(150)).await;
    stop.cancel();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let fresh = reqwest::Client::builder().no_proxy().build().unwrap();
    assert_eq!(
        get(&fresh, &format!("http://127.0.0.1:{port}/")).await,
        None
    );
    assert_eq!(slow.await.unwrap().as_deref(), Some("nobody"));
}

#[tokio::test]
async fn a_request_that_panics_ends_alone() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let service = server::service_fn(|request: http::Request<server::RequestBody>| async move {
        assert_ne!(request.uri().path(), "/mistake");
        Ok::<_, std::convert::Infallible>(http::Response::new(String::from("well")))
    });
    let stop = CancellationToken::new();
    tokio::spawn(server::serve(
        listener,
        None,
        service,
        Limits::default(),
        stop,
    ));
    install_crypto_provider();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = |path: &str| format!("http://127.0.0.1:{port}/{path}");
    assert_eq!(get(&client, &url("mistake")).await, None);
    assert_eq!(get(&client, &url("")).await.as_deref(), Some("well"));
}

#[tokio::test]
async fn both_ip_families_are_served_and_a_taken_port_is_an_error() {
    let everywhere = |port| std::net::SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, port));
    let listener = server::bind(everywhere(0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    assert!(
        tokio::net::TcpStream::connect(("127.0.0.1", port))
            .await
            .is_ok()
    );
    assert!(server::bind(everywhere(port)).is_err());
}

#[tokio::test]
async fn headers_beyond_the_limit_are_refused() {
    let port = serve(None, Limits::default(), CancellationToken::new()).await;
    install_crypto_provider();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = format!("http://127.0.0.1:{port}/");
    let response = client
        .get(&url)
        .header("x-long", "x".repeat(100 * 1024))
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 431);
}

// SPEC 27
#[tokio::test]
async fn the_admin_endpoints_answer_what_the_checks_say() {
    install_crypto_provider();
    let health = Health::default();
    let flag = health.ready_flag("store", "not open");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let admin = admin::Admin {
        health,
        registry: Arc::new(metrics::registry("registry")),
        level: None,
    };
    tokio::spawn(admin.serve(listener, CancellationToken::new()));
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let status = async |path: &str| {
        let response = client.get(format!("{base}{path}")).send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    };
    assert_eq!(status("/livez").await, (200, "ok\n".to_owned()));
    assert_eq!(
        status("/readyz").await,
        (503, "[-] store: not open\n".to_owned())
    );
    flag.ok("open");
    assert_eq!(
        status("/readyz").await,
        (200, "[+] store: open\n".to_owned())
    );
    assert!(status("/metrics").await.1.contains("holdfast_build_info"));
    assert_eq!(status("/nothing").await.0, 404);
    assert_eq!(
        client
            .put(format!("{base}/log-level"))
            .body("debug")
            .send()
            .await
            .unwrap()
            .status(),
        404
    );
}

/// What is logged while a test runs.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn failed_handshakes_are_counted_and_logged_if_certificates_are_required() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_writer(move || writer.clone())
        .finish();
    let _logs = tracing::subscriber::set_default(subscriber);
    let (ca, stranger) = (authority(), authority());
    let folder = tempfile::tempdir().unwrap();
    ca.write(folder.path(), "server");
    let nobody = ClientTls::from_pem(ca.pem.as_bytes(), None).unwrap();
    let (certificate, key) = stranger.issue("controller");
    let identity = Some((certificate.as_bytes(), key.as_bytes()));
    let unknown = ClientTls::from_pem(ca.pem.as_bytes(), identity).unwrap();
    for (auth, clients, warnings) in [
        (ClientAuth::Optional, vec![&unknown], 0),
        (ClientAuth::Required, vec![&nobody, &unknown], 1),
    ] {
        let mut numbers = prometheus_client::registry::Registry::default();
        let counts = Counts::register(&mut numbers);
        let files = TlsFiles::in_folder(folder.path(), auth);
        let tls = ServerTls::from_files(files).unwrap();
        let stop = CancellationToken::new();
        let port = serve_counted(Some(tls), Limits::default(), counts, stop).await;
        for client in &clients {
            let answer = get(&http(client), &format!("https://localhost:{port}/")).await;
            assert_eq!(answer, None);
        }
        // One that speaks no TLS.
        let mut plain = tokio::net::TcpStream::connect(("127.0.0.1", port))
            .await
            .unwrap();
        plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        plain.read_to_end(&mut Vec::new()).await.ok();
        let failed = clients.len() + 1;
        let line =
            format!(r#"holdfast_connections_cut_total{{reason="handshake_failed"}} {failed}"#);
        // The clients may hear of it before it is counted.
        let is_counted = async {
            while !metrics::encode(&numbers).lines().any(|found| found == line) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let is_counted = tokio::time::timeout(Duration::from_secs(10), is_counted).await;
        assert!(is_counted.is_ok(), "{}", metrics::encode(&numbers));
        let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.matches("WARN").count(), warnings, "{text}");
        let names_the_ca = text.contains(&folder.path().join("ca.crt").display().to_string());
        assert_eq!(names_the_ca, warnings == 1, "{text}");
    }
}

#[tokio::test]
async fn a_connection_does_not_outlive_the_ca_of_its_client_certificate() {
    let (old, new) = (authority(), authority());
    let folder = tempfile::tempdir().unwrap();
    old.write(folder.path(), "server");
    let files = TlsFiles::in_folder(folder.path(), ClientAuth::Required);
    let tls = ServerTls::from_files(files).unwrap();
    let limits = Limits {
        header_timeout: Duration::from_secs(2),
        ..Limits::default()
    };
    let port = serve(Some(tls.clone()), limits, CancellationToken::new()).await;
    let (certificate, key) = old.issue("replica");
    let both = format!("{}{}", old.pem, new.pem);
    let identity = Some((certificate.as_bytes(), key.as_bytes()));
    let trust = ClientTls::from_pem(both.as_bytes(), identity).unwrap();
    // One that keeps its connection, as replicas do.
    let client = reqwest::Client::builder()
        .no_proxy()
        .tls_backend_preconfigured(trust.config().unwrap())
        .build()
        .unwrap();
    let url = format!("https://localhost:{port}/");
    assert_eq!(get(&client, &url).await.as_deref(), Some("replica"));

    let slow = tokio::spawn({
        let (client, url) = (client.clone(), format!("{url}slow"));
        async move { get(&client, &url).await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    new.write(folder.path(), "server");
    tls.reload().unwrap();
    let slow = slow.await.unwrap();
    assert_eq!(slow.as_deref(), Some("replica"), "what is under way ends");

    let end = std::time::Instant::now() + Duration::from_secs(20);
    while get(&client, &url).await.is_some() {
        let now = std::time::Instant::now();
        assert!(now < end, "the old certificate is still served");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (certificate, key) = new.issue("replica");
    let identity = Some((certificate.as_bytes(), key.as_bytes()));
    trust.replace(both.as_bytes(), identity).unwrap();
    assert_eq!(get(&client, &url).await.as_deref(), Some("replica"));
}
