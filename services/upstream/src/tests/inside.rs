//! Hosts of this network and names that lead into it: which are asked, and what clients learn about
//! them.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use holdfast_testkit::{
    image::{OCI_MANIFEST, digest_of},
    raw::{Raw, Reply},
};
use tokio::{io::AsyncWriteExt as _, net::TcpListener};

use super::{
    failures::through,
    registries::{MANIFEST, at, good, header, is_head, target},
    *,
};

const DIGEST: &str = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";

/// What is behind a port.
#[derive(Debug, Clone, Copy)]
enum Port {
    Closed,
    Silent,
    Cut,
    /// Something else than TLS.
    Speaks,
    /// TLS with a certificate that nobody trusts.
    Untrusted,
}

/// Opens a port, and counts its connections.
async fn open(port: Port) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let number = listener.local_addr().unwrap().port();
    let count = Arc::new(AtomicUsize::new(0));
    if matches!(port, Port::Closed) {
        return (number, count);
    }
    let counted = Arc::clone(&count);
    let names = ["other.example".to_owned()];
    let (acceptor, _) = holdfast_testkit::tls::self_signed(&names).unwrap();
    tokio::spawn(async move {
        let mut held = Vec::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            counted.fetch_add(1, Ordering::Relaxed);
            match port {
                Port::Closed | Port::Cut => drop(stream),
                Port::Silent => held.push(stream),
                Port::Speaks => {
                    stream.write_all(b"SSH-2.0-x\r\n").await.ok();
                    held.push(stream);
                }
                Port::Untrusted => drop(acceptor.accept(stream).await),
            }
        }
    });
    (number, count)
}

/// Upstreams of which none is listed.
fn unlisted() -> Upstreams {
    holdfast_testkit::tls::install_crypto_provider();
    let uplink = Uplink {
        negative_seconds: 0,
        ..Uplink::default()
    };
    let timeouts = Timeouts {
        connect: Duration::from_millis(300),
        list: Duration::from_millis(200),
        ..quick()
    };
    Upstreams::new(&[], &Proxy::default(), &uplink, timeouts).unwrap()
}

/// The same, where one host that nobody listed is asked over plain HTTP: no test has a certificate
/// that everybody trusts.
fn unlisted_without_tls(host: &str) -> Upstreams {
    let client = unlisted();
    let inner = &client.inner;
    let endpoint = Endpoint::new(Parts {
        url: &format!("http://{host}"),
        is_own: true,
        credentials: Credentials::Anonymous,
        settings: None,
        proxies: Arc::clone(&inner.proxies),
        timeouts: inner.timeouts,
        pace: client.pace(&format!("http://{host}")),
        memory: Arc::clone(&inner.memory),
        tokens: Arc::clone(&inner.tokens),
        known: Arc::clone(&inner.known),
        throttle: Arc::clone(&inner.throttle),
        metrics: inner.metrics.clone(),
        label: "other".to_owned(),
    });
    let endpoint = Arc::new(endpoint.unwrap());
    lock(&inner.endpoints).insert(host.to_owned(), vec![endpoint]);
    client
}

/// What is told of a host, whatever it is asked for: by clients that ask for the first time, and by
/// one that knows of failures.
async fn told(make: impl Fn() -> Upstreams, host: &str) -> BTreeSet<String> {
    let source = source(host, &[]);
    let digest = Digest::parse(DIGEST).unwrap();
    let known = make();
    let mut told = BTreeSet::new();
    for is_first in [true, false] {
        let client = || if is_first { make() } else { known.clone() };
        let failures = [
            client().manifest(&source, "1").await.unwrap_err(),
            client().resolve(&source, "1").await.unwrap_err(),
            client().has_blob(&source, &digest).await.unwrap_err(),
            client().blob(&source, whole(&digest)).await.unwrap_err(),
            client().tags(&source).await.unwrap_err(),
            client().referrers(&source, &digest).await.unwrap_err(),
        ];
        told.extend(failures.iter().map(ToString::to_string));
    }
    told
}

#[track_caller]
fn check_nothing_is_told(all: &BTreeSet<String>) {
    assert_eq!(all.len(), 1, "whatever its ports do: {all:?}");
    let text = all.first().unwrap();
    assert!(text.contains("no registry answers there"), "{text}");
}

#[tokio::test]
async fn no_name_leads_to_this_machine_or_to_metadata() {
    let proxy = Raw::start(|_| good()).await;
    let client = through(&proxy);
    for host in [
        "127-0-0-1.test",
        "169-254-169-254.test",
        "169-254-1-1.test",
        "10-0-0-5.127-0-0-1.test",
        "203-0-113-5.169-254-169-254.test",
    ] {
        let refused = client.manifest(&source(host, &[]), "1").await;
        assert!(refused.is_err(), "{host}");
        assert!(proxy.requests().is_empty(), "{host} by a proxy");
        let (port, connections) = open(Port::Cut).await;
        if !host.starts_with("10-") && !host.starts_with("203-") {
            let host = format!("{host}:{port}");
            assert!(unlisted().manifest(&source(&host, &[]), "1").await.is_err());
            assert_eq!(connections.load(Ordering::Relaxed), 0, "{host}");
        }
    }
    // A registry beside us may be asked.
    drop(client.manifest(&source("10-0-0-5.test", &[]), "1").await);
    assert!(!proxy.requests().is_empty());
    let (port, connections) = open(Port::Cut).await;
    let beside = source(&format!("10-0-0-5.test:{port}"), &[]);
    assert!(unlisted().manifest(&beside, "1").await.is_err());
    assert_ne!(connections.load(Ordering::Relaxed), 0);
}

/// A listed upstream on this machine sends on to a name: whether that is followed.
async fn check_redirect(name: &str, allow_private: bool, expect: bool) {
    holdfast_testkit::tls::install_crypto_provider();
    let inside = Raw::start(|_| good()).await;
    let port = inside.host().rsplit(':').next().unwrap().to_owned();
    let to = format!("http://{name}:{port}/v2/team/app/manifests/1");
    let raw = Raw::start(move |_| Reply::http("307 Go", &[("location", &to)], b"")).await;
    let mut settings = UpstreamSettings::anonymous("up.example", &[raw.url()]);
    settings.allow_private_redirects = allow_private;
    let (proxy, uplink) = (Proxy::default(), Uplink::default());
    let client = Upstreams::new(&[settings], &proxy, &uplink, quick()).unwrap();
    let found = client.manifest(&source("up.example", &[]), "1").await;
    assert_eq!(found.is_ok(), expect, "{name}: {found:?}");
    assert_eq!(!inside.requests().is_empty(), expect, "{name}");
}

#[tokio::test]
async fn a_redirect_to_a_name_goes_where_its_addresses_may_be_reached() {
    check_redirect("127-0-0-1.test", false, true).await;
    check_redirect("203-0-113-5.test", false, true).await;
    check_redirect("10-0-0-5.test", false, false).await;
    check_redirect("10-0-0-5.test", true, true).await;
    check_redirect("169-254-169-254.test", true, false).await;
    check_redirect("169-254-1-1.test", true, false).await;
}

#[tokio::test]
async fn a_redirect_behind_a_proxy_is_judged_by_the_addresses_of_its_name() {
    holdfast_testkit::tls::install_crypto_provider();
    for (name, expect) in [
        ("203-0-113-9.test", true),
        ("10-0-0-5.test", false),
        ("127-0-0-1.test", false),
        ("203-0-113-9.10-0-0-5.test", false),
        ("169-254-169-254.test", false),
    ] {
        let to = format!("http://{name}/v2/team/app/manifests/1");
        let proxy = Raw::start(move |request| {
            if header(request, "host") == "203-0-113-7.test" {
                Reply::http("307 Go", &[("location", &to)], b"")
            } else {
                good()
            }
        })
        .await;
        let endpoints = ["http://203-0-113-7.test".to_owned()];
        let settings = UpstreamSettings::anonymous("up.example", &endpoints);
        let http = Proxy {
            http: proxy.host(),
            ..Proxy::default()
        };
        let client = Upstreams::new(&[settings], &http, &Uplink::default(), quick()).unwrap();
        let found = client.manifest(&source("up.example", &[]), "1").await;
        assert_eq!(found.is_ok(), expect, "{name}: {found:?}");
        let asked = proxy.requests().len();
        assert_eq!(asked, 1 + usize::from(expect), "{name}");
    }
}

#[tokio::test]
async fn a_name_inside_that_nobody_listed_is_told_nothing_of() {
    let mut all = BTreeSet::new();
    for name in ["10-0-0-5.test", "10-0-0-5.203-0-113-5.test"] {
        for port in [
            Port::Closed,
            Port::Silent,
            Port::Cut,
            Port::Speaks,
            Port::Untrusted,
        ] {
            let (number, connections) = open(port).await;
            all.extend(told(unlisted, &format!("{name}:{number}")).await);
            let is_closed = matches!(port, Port::Closed);
            assert_eq!(connections.load(Ordering::Relaxed) == 0, is_closed);
        }
    }
    check_nothing_is_told(&all);
    // Of a host outside, the cause.
    let (number, _) = open(Port::Closed).await;
    let outside = told(unlisted, &format!("203-0-113-5.test:{number}")).await;
    let says = |part: &str| outside.iter().any(|text| text.contains(part));
    assert!(says("connection refused"), "{outside:?}");
}

#[tokio::test]
async fn answers_of_a_host_inside_that_is_no_registry_are_not_told() {
    let mut all = BTreeSet::new();
    for reply in [
        Reply::http("200 OK", &[("content-type", "text/html")], b"<html>"),
        Reply::http("200 OK", &[("content-encoding", "gzip")], b"x"),
        Reply::http("401 No", &[("www-authenticate", "Basic")], b""),
        Reply::http("403 No", &[], b""),
        Reply::http("404 No", &[], b""),
        Reply::http("418 No", &[], b""),
        Reply::http("429 No", &[], b""),
        Reply::http("500 No", &[], b""),
        Reply::http(
            "307 Go",
            &[("location", "http://169-254-169-254.test/")],
            b"",
        ),
        Reply::http("307 Go", &[], b""),
        Reply::Silence,
    ] {
        let raw = Raw::start(move |request| {
            // Nobody asks for a blob where no manifest came from.
            let is_blob = target(request).contains("/blobs/");
            match &reply {
                Reply::Bytes(bytes) if is_blob && bytes.starts_with(b"HTTP/1.1 200") => {
                    Reply::http("404 No", &[], b"")
                }
                reply => reply.clone(),
            }
        })
        .await;
        let host = raw.host().replace("127.0.0.1", "10-0-0-5.test");
        all.extend(told(|| unlisted_without_tls(&host), &host).await);
        assert!(!raw.requests().is_empty());
    }
    let raw = Raw::start(|request| {
        if is_head(request) {
            return Reply::http("200 OK", &[], b"");
        }
        let range = [("content-range", "bytes 5-9/10")];
        Reply::http("206 Part", &range, b"bytes")
    })
    .await;
    let host = raw.host().replace("127.0.0.1", "10-0-0-5.test");
    let digest = Digest::parse(DIGEST).unwrap();
    let client = unlisted_without_tls(&host);
    let odd = client.blob(&source(&host, &[]), whole(&digest)).await;
    all.insert(odd.unwrap_err().to_string());
    check_nothing_is_told(&all);
    let (listed, source) = at(&raw.url());
    let odd = listed.blob(&source, whole(&digest)).await.unwrap_err();
    assert!(odd.to_string().contains("asked for bytes"), "{odd}");
}

// What a registry's answers mean is decided before anything of its host is kept from who names it.
#[tokio::test]
async fn a_registry_inside_that_nobody_listed_is_understood_as_any_other() {
    let digest = Digest::parse(DIGEST).unwrap();
    let fallback = format!("/manifests/sha256-{}", digest.hex());
    let list = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{OCI_MANIFEST}","digest":"{DIGEST}","size":2}}]}}"#
    );
    let raw = Raw::start(move |request| match target(request) {
        path if path.ends_with(&fallback) => Reply::http("200 OK", &[], list.as_bytes()),
        path if path.contains("/blobs/") && !is_head(request) => {
            let range = [("content-range", "bytes 0-0/10")];
            Reply::http("206 Part", &range, b"b")
        }
        path if path.ends_with("/manifests/1") && !is_head(request) => good(),
        path if path.ends_with("/manifests/1") => Reply::http("405 No", &[], b""),
        _ => Reply::http("404 No", &[], b""),
    })
    .await;
    let host = raw.host().replace("127.0.0.1", "10-0-0-5.test");
    let source = source(&host, &[]);
    let size = unlisted_without_tls(&host).has_blob(&source, &digest).await;
    assert_eq!(size.unwrap(), Some(10));
    let client = unlisted_without_tls(&host);
    let body = client.blob(&source, whole(&digest)).await;
    assert_eq!(body.unwrap().identity().0, Some(10));
    let client = unlisted_without_tls(&host);
    let referrers = client.referrers(&source, &digest).await;
    assert_eq!(referrers.unwrap().entries.len(), 1);
    let client = unlisted_without_tls(&host);
    let named = client.resolve(&source, "1").await;
    assert_eq!(named.unwrap().to_string(), digest_of(MANIFEST.as_bytes()));
}

// The answer comes too late when the host's endpoint is forgotten because many others were named.
#[tokio::test]
async fn a_late_list_of_a_forgotten_host_is_told_nothing_of() {
    let raw = Raw::start(|_| Reply::Silence).await;
    let host = raw.host().replace("127.0.0.1", "10-0-0-5.test");
    let client = unlisted_without_tls(&host);
    let source = source(&host, &[]);
    let forget = async {
        while raw.requests().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        lock(&client.inner.endpoints).clear();
    };
    let (late, ()) = tokio::join!(client.tags(&source), forget);
    check_nothing_is_told(&BTreeSet::from([late.unwrap_err().to_string()]));
}

// The first of its addresses is a registry of the one who named it, the second one any host's.
#[tokio::test]
async fn a_name_of_several_hosts_inside_is_told_no_causes() {
    for (name, tells) in [("10-0-0-5.test", true), ("10-0-0-5.10-0-0-6.test", false)] {
        let asked = AtomicUsize::new(0);
        let raw = Raw::start(move |_| {
            let shows = [("docker-distribution-api-version", "registry/2.0")];
            if asked.fetch_add(1, Ordering::Relaxed) == 0 {
                Reply::http("404 No", &shows, b"")
            } else {
                Reply::Silence
            }
        })
        .await;
        let host = raw.host().replace("127.0.0.1", name);
        let client = unlisted_without_tls(&host);
        let source = source(&host, &[]);
        // What a registry answers is told, and decided by.
        let absent = client.manifest(&source, "1").await;
        assert!(matches!(absent, Err(Error::NotFound)), "{absent:?}");
        let cause = client.manifest(&source, "1").await.unwrap_err().to_string();
        assert_eq!(
            !cause.contains("no registry answers there"),
            tells,
            "{cause}"
        );
    }
}
