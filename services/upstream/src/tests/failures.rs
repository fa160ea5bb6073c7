//! What clients learn about a failing upstream, and which requests its failures stop.

use std::sync::atomic::{AtomicUsize, Ordering};

use holdfast_testkit::raw::{Raw, Reply};

use super::{
    registries::{asks, at, good, header, target},
    *,
};

// osism/testbed#2357
#[tokio::test]
async fn an_image_that_fails_stops_no_other_image() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let raw = Raw::start(move |request| {
        if target(request).contains("/broken/") {
            counted.fetch_add(1, Ordering::Relaxed);
            return Reply::http("500 No", &[], b"");
        }
        good()
    })
    .await;
    let (client, good) = at(&raw.url());
    let broken = UpstreamRepository {
        repository: RepositoryName::parse("team/broken").unwrap(),
        ..good.clone()
    };
    for _ in 0..5 {
        let failed = client.manifest(&broken, "1").await;
        assert!(matches!(failed, Err(Error::Unavailable(_))), "{failed:?}");
        assert!(client.manifest(&good, "1").await.is_ok());
        assert!(client.is_reachable(&good.host));
    }
    assert_eq!(asked.load(Ordering::Relaxed), 3, "it is left alone itself");
    let told = client.manifest(&broken, "1").await.unwrap_err().to_string();
    assert!(
        told.contains("it answers 500") && told.contains("failing since 20"),
        "{told}"
    );
}

#[tokio::test]
async fn an_open_breaker_tells_the_last_cause_and_since_when() {
    for (endpoint, expect) in [
        ("http://127.0.0.1:1", "connection refused"),
        ("http://name.invalid", "no such host"),
    ] {
        let (client, source) = at(endpoint);
        for _ in 0..3 {
            let told = client.manifest(&source, "1").await.unwrap_err().to_string();
            assert!(told.contains(expect), "{told}");
        }
        assert!(!client.is_reachable(&source.host), "{endpoint}");
        let told = client.manifest(&source, "1").await.unwrap_err().to_string();
        for part in [expect, "failing since 20", "next probe in"] {
            assert!(told.contains(part), "no {part} in {told}");
        }
    }
}

#[tokio::test]
async fn a_certificate_that_is_not_trusted_is_named_as_the_cause() {
    holdfast_testkit::tls::install_crypto_provider();
    let (acceptor, _) = holdfast_testkit::tls::self_signed(&["127.0.0.1".to_owned()]).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("https://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            drop(acceptor.accept(stream).await);
        }
    });
    let unrelated = holdfast_testkit::tls::self_signed(&["other.example".to_owned()]);
    let mut settings = UpstreamSettings::anonymous("up.example", &[endpoint]);
    settings.ca = Some(unrelated.unwrap().1);
    let (proxy, uplink) = (Proxy::default(), Uplink::default());
    let client = Upstreams::new(&[settings], &proxy, &uplink, quick()).unwrap();
    let told = client.manifest(&source("up.example", &[]), "1").await;
    let told = told.unwrap_err().to_string();
    for part in ["certificate is not trusted", "upstreams[].ca"] {
        assert!(told.contains(part), "no {part} in {told}");
    }
}

/// Hosts that nobody listed, asked for through a proxy that answers `reply`.
pub(super) fn through(proxy: &Raw) -> Upstreams {
    holdfast_testkit::tls::install_crypto_provider();
    let proxy = Proxy {
        http: proxy.host(),
        https: proxy.host(),
        no_proxy: Vec::new(),
    };
    let uplink = Uplink {
        negative_seconds: 0,
        ..Uplink::default()
    };
    Upstreams::new(&[], &proxy, &uplink, quick()).unwrap()
}

#[tokio::test]
async fn a_host_of_this_network_that_nobody_listed_is_told_nothing_of() {
    let mut told = Vec::new();
    for reply in [
        Reply::http("502 Bad Gateway", &[], b"connection refused"),
        Reply::http("503 Away", &[], b""),
        Reply::http("503 Away", &[("retry-after", "60")], b""),
        Reply::http("200 OK", &[], b""),
        Reply::Silence,
    ] {
        let proxy = Raw::start(move |_| reply.clone()).await;
        let client = through(&proxy);
        for _ in 0..4 {
            let inside = client.manifest(&source("10.0.0.5", &[]), "1").await;
            let inside = inside.unwrap_err();
            assert!(matches!(inside, Error::Unavailable(_)), "{inside:?}");
            told.push(inside.to_string());
        }
        assert!(!proxy.requests().is_empty());
    }
    told.dedup();
    assert_eq!(told.len(), 1, "whatever its ports do: {told:?}");
    assert!(told[0].contains("no registry answers there"), "{told:?}");
    let proxy = Raw::start(|_| Reply::Silence).await;
    let client = through(&proxy);
    let outside = client.manifest(&source("203.0.113.5", &[]), "1").await;
    let outside = outside.unwrap_err().to_string();
    assert!(outside.contains("no answer in time"), "{outside}");
}

#[tokio::test]
async fn a_proxy_is_no_way_to_this_machine_and_its_metadata() {
    let proxy = Raw::start(|_| good()).await;
    let client = through(&proxy);
    for host in [
        "127.0.0.1",
        "169.254.169.254",
        "[::ffff:127.0.0.1]",
        "[64:ff9b::a9fe:a9fe]",
        "[2002:7f00:1::1]",
        "[fd20:ce::254]",
        "localhost",
    ] {
        let refused = client.manifest(&source(host, &[]), "1").await;
        assert!(refused.is_err(), "{host}");
    }
    assert!(proxy.requests().is_empty(), "{:?}", proxy.requests());
}

#[tokio::test]
async fn a_pause_may_be_told_as_a_date() {
    let date = date_in(120);
    let raw = Raw::start(move |_| Reply::http("429 Slow", &[("retry-after", &date)], b"")).await;
    let (client, source) = at(&raw.url());
    for _ in 0..2 {
        let told = client.manifest(&source, "1").await;
        assert!(
            matches!(told, Err(Error::TooMany(left)) if (100..=120).contains(&left.as_secs())),
            "{told:?}"
        );
    }
    assert_eq!(raw.requests().len(), 1);
}

/// A time from now as `Retry-After` has it.
fn date_in(seconds: u64) -> String {
    let until = std::time::SystemTime::now() + Duration::from_secs(seconds);
    let date = jiff::Timestamp::try_from(until).unwrap();
    date.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
}

#[tokio::test]
async fn a_failure_may_tell_when_to_ask_again() {
    holdfast_testkit::tls::install_crypto_provider();
    let date = date_in(120);
    for (status, told, expect) in [
        ("500", "120", 100..=120),
        ("502", "120", 100..=120),
        ("503", "120", 100..=120),
        ("504", "120", 100..=120),
        ("503", date.as_str(), 100..=120),
        ("503", "100000", 280..=300),
        ("503", date_in(100_000).as_str(), 280..=300),
    ] {
        let pause = told.to_owned();
        let raw = Raw::start(move |request| {
            if target(request) == "/v2/" {
                return Reply::http("200 OK", &[], b"");
            }
            let answer = format!("{status} No");
            Reply::http(&answer, &[("retry-after", &pause)], b"")
        })
        .await;
        let settings = UpstreamSettings::anonymous("up.example", &[raw.url()]);
        let (proxy, uplink) = (Proxy::default(), Uplink::default());
        let limits = Timeouts {
            breaker_min: Duration::from_secs(60),
            ..quick()
        };
        let client = Upstreams::new(&[settings], &proxy, &uplink, limits).unwrap();
        let source = source("up.example", &[]);
        // The breaker does as ever, and what was told counts while nobody is asked.
        for _ in 0..5 {
            let failed = client.manifest(&source, "1").await;
            let Err(Error::Later(what, left)) = &failed else {
                panic!("{status} {told}: {failed:?}");
            };
            assert!(what.contains(&format!("it answers {status}")), "{what}");
            assert!(
                expect.contains(&left.as_secs()),
                "{status} {told}: {left:?}"
            );
        }
        let asked = raw.requests();
        let asked = asked.iter().filter(|request| target(request) != "/v2/");
        assert_eq!(asked.count(), 3, "{status} {told}");
    }
}

#[tokio::test]
async fn a_failure_that_tells_no_time_is_told_without_one() {
    for value in ["", "soon", "-1"] {
        let raw = Raw::start(move |_| Reply::http("503 No", &[("retry-after", value)], b"")).await;
        let (client, source) = at(&raw.url());
        let failed = client.manifest(&source, "1").await;
        assert!(matches!(failed, Err(Error::Unavailable(_))), "{failed:?}");
    }
}

#[tokio::test]
async fn what_a_token_server_asks_for_is_told() {
    let raw = Raw::start(|request| {
        let host = header(request, "host").to_owned();
        if target(request).starts_with("/token") {
            return Reply::http("503 Away", &[("retry-after", "77")], b"");
        }
        asks(&format!("Bearer realm=\"http://{host}/token\""))
    })
    .await;
    let (client, source) = at(&raw.url());
    let failed = client.manifest(&source, "1").await;
    assert!(
        matches!(&failed, Err(Error::Later(_, left)) if *left == Duration::from_secs(77)),
        "{failed:?}"
    );
}

#[tokio::test]
async fn of_two_failures_the_one_that_tells_a_time_is_told() {
    let away = |headers: &'static [(&'static str, &'static str)]| {
        Raw::start(move |_| Reply::http("503 Away", headers, b""))
    };
    let (tells, other) = (away(&[("retry-after", "77")]).await, away(&[]).await);
    for endpoints in [[tells.url(), other.url()], [other.url(), tells.url()]] {
        let client = upstreams("up.example", &endpoints);
        let failed = client.manifest(&source("up.example", &[]), "1").await;
        assert!(matches!(failed, Err(Error::Later(..))), "{failed:?}");
    }
}
