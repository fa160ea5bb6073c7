//! The client against an upstream with faults.

use std::time::Duration;

use holdfast_testkit::{Auth, Fault, ImageBuilder, Upstream, faults::Kind};

use super::*;

mod access;
mod failures;
mod hostile;
mod inside;
mod logins;
pub(super) mod names;
mod registries;

fn quick() -> Timeouts {
    Timeouts {
        headers: Duration::from_millis(400),
        stall: Duration::from_millis(400),
        crawl: Duration::from_millis(600),
        revalidate: Duration::from_millis(200),
        list: Duration::from_secs(30),
        breaker_min: Duration::from_millis(200),
        ..Timeouts::default()
    }
}

fn upstreams(host: &str, endpoints: &[String]) -> Upstreams {
    holdfast_testkit::tls::install_crypto_provider();
    Upstreams::new(
        &[UpstreamSettings::anonymous(host, endpoints)],
        &Proxy::default(),
        &Uplink {
            negative_seconds: 0,
            ..Uplink::default()
        },
        quick(),
    )
    .unwrap()
}

fn source(host: &str, logins: &[(&str, &str)]) -> UpstreamRepository {
    UpstreamRepository {
        host: Host::parse(host).unwrap(),
        repository: RepositoryName::parse("team/app").unwrap(),
        logins: logins
            .iter()
            .map(|(user, password)| Login::new(user, password))
            .collect(),
        priority: SharedPriority::default(),
    }
}

fn got_no_login(server: &Upstream) -> bool {
    let requests = server.requests().all();
    requests.iter().all(|one| one.authorization.is_none())
}

fn whole(digest: &Digest) -> BlobRequest<'_> {
    BlobRequest {
        digest,
        size: None,
        offset: 0,
        whole: false,
        avoid: &[],
        yielded: 0,
    }
}

async fn collect(mut body: Body) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    while let Some(chunk) = body.chunk().await? {
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

fn users(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter()
        .map(|(user, password)| ((*user).to_owned(), (*password).to_owned()))
        .collect()
}

// SPEC 35
#[tokio::test]
async fn each_credential_is_tried_until_one_works() {
    for auth in [
        Auth::Basic(users(&[("right", "pw")])),
        Auth::Bearer {
            users: users(&[("right", "pw")]),
            realm: None,
        },
    ] {
        let upstream = Upstream::start_with(auth).await;
        let image = ImageBuilder::new(1).layer(5000).build();
        upstream.push("team/app", "1", &image);
        let client = upstreams(&upstream.host(), &[upstream.url()]);
        let bad = source(&upstream.host(), &[("wrong", "pw"), ("other", "pw")]);
        assert_eq!(client.manifest(&bad, "1").await, Err(Error::Unauthorized));
        let good = source(
            &upstream.host(),
            &[("wrong", "pw"), ("right", "pw"), ("never", "asked")],
        );
        assert_eq!(
            client.manifest(&good, "1").await.unwrap().bytes,
            image.bytes()
        );
        let layer = Digest::parse(&image.layers[0]).unwrap();
        let body = client.blob(&good, whole(&layer)).await.unwrap();
        assert_eq!(collect(body).await.unwrap(), image.blobs[&image.layers[0]]);
        assert_eq!(
            upstream.gets(&image.layers[0]),
            1,
            "the credential that worked is remembered"
        );
    }
}

// SPEC 35
#[tokio::test]
async fn a_blob_without_a_manifest_before_costs_one_get() {
    let upstream = Upstream::start_with(Auth::Basic(users(&[("right", "pw")]))).await;
    let image = ImageBuilder::new(1).layer(5000).build();
    upstream.push("team/app", "1", &image);
    let client = upstreams(&upstream.host(), &[upstream.url()]);
    let source = source(&upstream.host(), &[("wrong", "pw"), ("right", "pw")]);
    let layer = Digest::parse(&image.layers[0]).unwrap();
    collect(client.blob(&source, whole(&layer)).await.unwrap())
        .await
        .unwrap();
    assert_eq!(upstream.gets(&image.layers[0]), 1);
}

#[tokio::test]
async fn credentials_never_go_to_another_host() {
    // A realm at a name that is not the upstream's, and a redirect to another port.
    let thief = Upstream::start().await;
    let port = thief.host().rsplit(':').next().unwrap().to_owned();
    let realm = format!("http://localhost:{port}/token");
    let upstream = Upstream::start_with(Auth::Bearer {
        users: users(&[("u", "secret")]),
        realm: Some(realm),
    })
    .await;
    let client = upstreams(&upstream.host(), &[upstream.url()]);
    let with_login = source(&upstream.host(), &[("u", "secret")]);
    assert_eq!(
        client.manifest(&with_login, "1").await,
        Err(Error::Unauthorized)
    );
    assert!(thief.requests().is_empty(), "{:?}", thief.requests().all());

    let upstream = Upstream::start_with(Auth::Basic(users(&[("u", "secret")]))).await;
    let image = ImageBuilder::new(1).layer(50).build();
    upstream.push("team/app", "1", &image);
    thief.push("team/app", "1", &image);
    let client = upstreams(&upstream.host(), &[upstream.url()]);
    let with_login = source(&upstream.host(), &[("u", "secret")]);
    client.manifest(&with_login, "1").await.unwrap();
    upstream
        .faults()
        .set(Fault::new(Kind::Redirect { to: thief.url() }));
    client.manifest(&with_login, "1").await.unwrap();
    assert!(!thief.requests().is_empty());
    assert!(got_no_login(&thief));
}

#[tokio::test]
async fn a_redirect_to_the_link_is_refused() {
    let upstream = Upstream::start().await;
    let client = upstreams(&upstream.host(), &[upstream.url()]);
    upstream.faults().set(Fault::new(Kind::Redirect {
        to: "http://169.254.169.254".to_owned(),
    }));
    let refused = client.manifest(&source(&upstream.host(), &[]), "1").await;
    assert!(matches!(refused, Err(Error::Invalid(_))), "{refused:?}");
}

#[tokio::test]
async fn the_breaker_opens_and_is_closed_by_a_probe() {
    let upstream = Upstream::start().await;
    let image = ImageBuilder::new(1).layer(50).build();
    upstream.push("team/app", "1", &image);
    let client = upstreams(&upstream.host(), &[upstream.url()]);
    let source = source(&upstream.host(), &[]);
    upstream
        .faults()
        .set(Fault::new(Kind::Error { status: 500 }));
    for _ in 0..5 {
        assert!(matches!(
            client.manifest(&source, "1").await,
            Err(Error::Unavailable(_))
        ));
    }
    let asked = upstream.requests().count(&http::Method::GET, "manifests/1");
    assert_eq!(asked, 3, "after three failures nobody asks");
    let reachable = || client.is_reachable(&source.host);
    holdfast_testkit::eventually(
        "a probe that fails opens the breaker",
        Duration::from_secs(5),
        || !reachable(),
    )
    .await;
    upstream.faults().clear();
    holdfast_testkit::eventually(
        "the probe closes the breaker",
        Duration::from_secs(5),
        reachable,
    )
    .await;
    client.manifest(&source, "1").await.unwrap();
}

#[tokio::test]
async fn a_429_is_left_alone_for_as_long_as_it_asks() {
    let upstream = Upstream::start().await;
    let client = upstreams(&upstream.host(), &[upstream.url()]);
    let source = source(&upstream.host(), &[]);
    upstream
        .faults()
        .set(Fault::new(Kind::TooMany { retry_after: 60 }).times(1));
    assert!(matches!(
        client.manifest(&source, "1").await,
        Err(Error::TooMany(pause)) if pause == Duration::from_secs(60)
    ));
    assert!(matches!(
        client.manifest(&source, "1").await,
        Err(Error::TooMany(left)) if left > Duration::from_secs(50)
    ));
    assert_eq!(upstream.requests().len(), 1);
}

#[tokio::test]
async fn the_next_mirror_is_asked_and_pull_secrets_stay_away_from_mirrors() {
    let mirror = Upstream::start_with(Auth::Basic(users(&[("u", "p")]))).await;
    let upstream = Upstream::start_with(Auth::Basic(users(&[("u", "p")]))).await;
    let image = ImageBuilder::new(1).layer(50).build();
    upstream.push("team/app", "1", &image);
    mirror.push("team/app", "1", &image);
    let client = upstreams(&upstream.host(), &[mirror.url(), upstream.url()]);
    client
        .manifest(&source(&upstream.host(), &[("u", "p")]), "1")
        .await
        .unwrap();
    assert_eq!(mirror.requests().len(), 1);
    assert!(got_no_login(&mirror));
}

#[tokio::test]
async fn a_manifest_with_wrong_bytes_or_of_wrong_size_is_refused() {
    let upstream = Upstream::start().await;
    let image = ImageBuilder::new(1).layer(50).build();
    upstream.push("team/app", "1", &image);
    let client = upstreams(&upstream.host(), &[upstream.url()]);
    let source = source(&upstream.host(), &[]);
    upstream
        .faults()
        .set(Fault::new(Kind::WrongBytes).on("manifests"));
    assert!(matches!(
        client.manifest(&source, &image.digest).await,
        Err(Error::Invalid(_))
    ));
}

#[tokio::test]
async fn a_hanging_upstream_costs_a_revalidation_its_deadline() {
    let upstream = Upstream::start().await;
    let client = upstreams(&upstream.host(), &[upstream.url()]);
    upstream
        .faults()
        .set(Fault::new(Kind::Hang { after: None }));
    let begun = Instant::now();
    let answer = client.revalidate(&source(&upstream.host(), &[]), "1").await;
    assert!(matches!(answer, Err(Error::Unavailable(_))));
    assert!(begun.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn a_body_is_resumed_in_the_middle() {
    let upstream = Upstream::start().await;
    let image = ImageBuilder::new(1).layer(5000).build();
    upstream.push("team/app", "1", &image);
    let client = upstreams(&upstream.host(), &[upstream.url()]);
    let layer = Digest::parse(&image.layers[0]).unwrap();
    let body = client
        .blob(
            &source(&upstream.host(), &[]),
            BlobRequest {
                offset: 4000,
                ..whole(&layer)
            },
        )
        .await
        .unwrap();
    assert_eq!(
        collect(body).await.unwrap(),
        image.blobs[&image.layers[0]][4000..]
    );
}
