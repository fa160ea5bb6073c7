//! Which host gets which credential, when it does not challenge and when the wrong host challenges.

use holdfast_config::Credentials;
use holdfast_testkit::{
    image::OCI_MANIFEST,
    raw::{Raw, Reply},
    upstream::basic,
};

use super::*;

const MANIFEST: &str = r#"{"schemaVersion":2,"manifests":[]}"#;

fn good() -> Reply {
    Reply::http(
        "200 OK",
        &[("content-type", OCI_MANIFEST)],
        MANIFEST.as_bytes(),
    )
}

fn header<'a>(request: &'a str, name: &str) -> &'a str {
    request
        .lines()
        .find_map(|line| line.strip_prefix(&format!("{name}: ")))
        .unwrap_or_default()
}

fn made_of(settings: UpstreamSettings) -> Upstreams {
    holdfast_testkit::tls::install_crypto_provider();
    let uplink = Uplink {
        negative_seconds: 60,
        ..Uplink::default()
    };
    Upstreams::new(&[settings], &Proxy::default(), &uplink, quick()).unwrap()
}

#[tokio::test]
async fn an_upstream_that_hides_instead_of_asking_gets_the_credential_once() {
    for refusal in ["401 No", "403 Forbidden", "404 Not Found"] {
        let raw = Raw::start(move |request| {
            if header(request, "authorization") == basic("u", "p") {
                good()
            } else {
                Reply::http(refusal, &[], b"")
            }
        })
        .await;
        let client = upstreams(&raw.host(), &[raw.url()]);
        let anonymous = client.manifest(&source(&raw.host(), &[]), "1").await;
        assert!(anonymous.is_err(), "{refusal}");
        let asked = raw.requests().len();
        assert_eq!(asked, 1, "{refusal}: nobody to try it with");
        let found = client
            .manifest(&source(&raw.host(), &[("u", "p")]), "1")
            .await;
        assert!(found.is_ok(), "{refusal}: {found:?}");
        let wrong = source(&raw.host(), &[("u", "wrong")]);
        assert!(client.manifest(&wrong, "2").await.is_err());
        let with_wrong = raw
            .requests()
            .iter()
            .filter(|request| header(request, "authorization") == basic("u", "wrong"))
            .count();
        assert_eq!(with_wrong, 1, "{refusal}");
    }
}

#[tokio::test]
async fn a_hiding_upstream_with_a_token_server_is_asked_for_its_challenge() {
    let raw = Raw::start(|request| {
        let realm = format!(
            "Bearer realm=\"http://{}/token\",service=\"s\"",
            header(request, "host")
        );
        if request.contains(" /token") {
            let right = header(request, "authorization") == basic("u", "p");
            return Reply::http(
                if right { "200 OK" } else { "401 No" },
                &[],
                br#"{"token":"t"}"#,
            );
        }
        match header(request, "authorization") {
            "Bearer t" => good(),
            _ if request.starts_with("GET /v2/ ") => {
                Reply::http("401 No", &[("www-authenticate", &realm)], b"")
            }
            _ => Reply::http("404 Not Found", &[], b""),
        }
    })
    .await;
    let client = upstreams(&raw.host(), &[raw.url()]);
    let found = client
        .manifest(&source(&raw.host(), &[("u", "p")]), "1")
        .await;
    assert!(found.is_ok(), "{found:?}");
}

#[tokio::test]
async fn a_mirror_gets_its_own_credentials_and_no_others() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    std::fs::write(&file, "mirrors\n").unwrap();
    let mirror = Upstream::start_with(Auth::Basic(users(&[("m", "mirrors")]))).await;
    let upstream = Upstream::start_with(Auth::Basic(users(&[("u", "p")]))).await;
    let image = ImageBuilder::new(1).layer(50).build();
    mirror.push("team/app", "1", &image);
    let mut settings =
        UpstreamSettings::anonymous(&upstream.host(), &[mirror.url(), upstream.url()]);
    settings.mirror_credentials = vec![(
        mirror.url(),
        Credentials::Password {
            username: "m".to_owned(),
            password_file: file,
        },
    )];
    let client = made_of(settings);
    client
        .manifest(&source(&upstream.host(), &[("u", "p")]), "1")
        .await
        .unwrap();
    assert!(upstream.requests().is_empty());
    let seen: Vec<_> = mirror
        .requests()
        .all()
        .into_iter()
        .filter_map(|request| request.authorization)
        .collect();
    assert_eq!(seen, [basic("m", "mirrors")]);
}

#[tokio::test]
async fn an_identity_token_is_exchanged_and_never_sent_as_a_password() {
    let raw = Raw::start(|request| {
        if request.contains(" /token") {
            let is_post = request.starts_with("POST /token");
            return Reply::http(
                if is_post { "200 OK" } else { "401 No" },
                &[],
                br#"{"access_token":"a","refresh_token":"r"}"#,
            );
        }
        if header(request, "authorization") == "Bearer a" {
            return good();
        }
        let realm = format!(
            "Bearer realm=\"http://{}/token\",service=\"s\"",
            header(request, "host")
        );
        Reply::http("401 No", &[("www-authenticate", &realm)], b"")
    })
    .await;
    let client = upstreams(&raw.host(), &[raw.url()]);
    let mut by_token = source(&raw.host(), &[]);
    by_token.logins = vec![Login::identity("", "the/token+")];
    client.manifest(&by_token, "1").await.unwrap();
    let requests = raw.requests();
    let form = requests
        .iter()
        .find(|request| request.starts_with("POST"))
        .unwrap();
    assert!(form.contains("application/x-www-form-urlencoded"), "{form}");
    let sent: Vec<_> = requests
        .iter()
        .map(|request| header(request, "authorization"))
        .filter(|value| !value.is_empty())
        .collect();
    assert_eq!(sent, ["Bearer a"]);
}

#[tokio::test]
async fn a_realm_elsewhere_sees_credentials_only_when_the_settings_say_so() {
    let realm = Raw::start(|_| Reply::http("200 OK", &[], br#"{"token":"t"}"#)).await;
    let port = realm.host().rsplit(':').next().unwrap().to_owned();
    let url = format!("http://localhost:{port}/token");
    let upstream = Raw::start(move |request| {
        if header(request, "authorization") == "Bearer t" {
            good()
        } else {
            let challenge = format!("Bearer realm=\"{url}\"");
            Reply::http("401 No", &[("www-authenticate", &challenge)], b"")
        }
    })
    .await;
    let login = source(&upstream.host(), &[("u", "p")]);
    let mut settings = UpstreamSettings::anonymous(&upstream.host(), &[upstream.url()]);
    let refused = made_of(settings.clone()).manifest(&login, "1").await;
    assert_eq!(refused, Err(Error::Unauthorized));
    assert!(realm.requests().is_empty());
    settings.realms = vec![format!("localhost:{port}")];
    made_of(settings).manifest(&login, "1").await.unwrap();
    assert_eq!(
        header(&realm.requests()[0], "authorization"),
        basic("u", "p")
    );
}

#[tokio::test]
async fn a_no_is_remembered_by_credential() {
    let upstream = Upstream::start_with(Auth::Basic(users(&[("right", "pw")]))).await;
    let image = ImageBuilder::new(1).layer(50).build();
    upstream.push("team/app", "1", &image);
    let client = made_of(UpstreamSettings::anonymous(
        &upstream.host(),
        &[upstream.url()],
    ));
    let (wrong, right) = (
        source(&upstream.host(), &[("wrong", "pw")]),
        source(&upstream.host(), &[("right", "pw")]),
    );
    assert_eq!(client.manifest(&wrong, "1").await, Err(Error::Unauthorized));
    assert_eq!(client.manifest(&right, "2").await, Err(Error::NotFound));
    let asked = upstream.requests().len();
    for _ in 0..20 {
        assert_eq!(client.manifest(&wrong, "1").await, Err(Error::Unauthorized));
        assert_eq!(client.manifest(&right, "2").await, Err(Error::NotFound));
    }
    assert_eq!(upstream.requests().len(), asked);
    client.manifest(&right, "1").await.unwrap();
    upstream.push("team/app", "2", &image);
    client.ask_again(&right, "2");
    client.manifest(&right, "2").await.unwrap();
}

#[tokio::test]
async fn an_unlisted_host_may_not_be_this_machine() {
    let upstream = Upstream::start().await;
    let client = upstreams("somewhere.example", &["http://127.0.0.1:1".to_owned()]);
    for host in [
        upstream.host(),
        "localhost:1".to_owned(),
        "169.254.169.254".to_owned(),
    ] {
        let refused = client.manifest(&source(&host, &[]), "1").await;
        assert!(
            matches!(refused, Err(Error::Invalid(_) | Error::Unavailable(_))),
            "{host}: {refused:?}"
        );
    }
    assert!(upstream.requests().is_empty());
}

#[tokio::test]
async fn requests_to_a_host_keep_their_pace() {
    let upstream = Upstream::start().await;
    let image = ImageBuilder::new(1).layer(50).build();
    upstream.push("team/app", "1", &image);
    holdfast_testkit::tls::install_crypto_provider();
    let uplink = Uplink {
        requests_per_second_per_host: 20,
        ..Uplink::default()
    };
    let settings = UpstreamSettings::anonymous(&upstream.host(), &[upstream.url()]);
    let client = Upstreams::new(&[settings], &Proxy::default(), &uplink, quick()).unwrap();
    let begun = Instant::now();
    for _ in 0..30 {
        client
            .manifest(&source(&upstream.host(), &[]), "1")
            .await
            .unwrap();
    }
    let took = begun.elapsed();
    assert!(
        took >= Duration::from_millis(450),
        "a second's worth at once, then twenty a second: {took:?}"
    );
}

#[tokio::test]
async fn a_proxy_is_used_and_passed_by() {
    let proxy = Raw::start(|_| good()).await;
    let check = async |no_proxy: &str, expect: bool| {
        holdfast_testkit::tls::install_crypto_provider();
        let settings = UpstreamSettings::anonymous("up.example", &["http://up.example".to_owned()]);
        let through = Proxy {
            http: proxy.host(),
            https: String::new(),
            no_proxy: vec![no_proxy.to_owned()],
        };
        let client = Upstreams::new(&[settings], &through, &Uplink::default(), quick()).unwrap();
        let before = proxy.requests().len();
        drop(client.manifest(&source("up.example", &[]), "1").await);
        let asked = proxy.requests().len() > before;
        assert_eq!(asked, expect, "{no_proxy}");
    };
    check("", true).await;
    check("other.example,10.0.0.0/8", true).await;
    check(".example", false).await;
    assert!(
        proxy.requests()[0].starts_with("GET http://up.example/v2/team/app/manifests/1 "),
        "{:?}",
        proxy.requests()
    );
}
