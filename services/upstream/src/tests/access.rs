//! Which credentials may pull an image, by the answers of the upstream.

use holdfast_api::access::Access;
use holdfast_config::{Credentials, SecretString};
use holdfast_testkit::{
    image::OCI_MANIFEST,
    raw::{Raw, Reply},
    upstream::basic,
};

use super::*;

const MANIFEST: &str = r#"{"schemaVersion":2,"manifests":[]}"#;

fn field<'a>(request: &'a str, name: &str) -> &'a str {
    request
        .lines()
        .find_map(|line| line.strip_prefix(&format!("{name}: ")))
        .unwrap_or_default()
}

fn status(status: &str, challenge: &str) -> Reply {
    let headers = [("www-authenticate", challenge)];
    let count = usize::from(!challenge.is_empty());
    Reply::http(status, &headers[..count], b"")
}

fn page(content_type: &str, text: &str) -> Reply {
    Reply::http("200 OK", &[("content-type", content_type)], text.as_bytes())
}

/// A registry with one repository. `operator` and `team` may read it where it is not public.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    /// Everybody may read, without being asked.
    Open,
    /// Asks for Basic.
    Basic,
    /// Gives everybody a token, and refuses those of strangers (Docker Hub).
    TokensForAll,
    /// As before, and the repository is public.
    TokensForAllPublic,
    /// Refuses strangers a token (ghcr.io).
    TokensForUsers,
    /// Says 404 where a stranger asks, and never challenges.
    Hides,
    /// Has no HEAD.
    NoHead,
    /// Answers strangers with a page where they log in.
    LoginPage,
    /// Fails.
    Broken,
}

fn answer(style: Style, request: &str) -> Reply {
    let sent = field(request, "authorization");
    let is_user = sent == basic("operator", "pw") || sent == basic("team", "pw");
    let bearer = format!(
        "Bearer realm=\"http://{}/token\",service=\"s\"",
        field(request, "host")
    );
    let good = || page(OCI_MANIFEST, MANIFEST);
    let is_token = request.contains(" /token");
    let token = |name: &str| page("application/json", &format!(r#"{{"token":"{name}"}}"#));
    match style {
        Style::Open => good(),
        Style::Broken => status("503 No", ""),
        Style::TokensForUsers if is_token && !is_user => status("403 No", ""),
        _ if is_token => token(if is_user { "user" } else { "nobody" }),
        Style::TokensForAll | Style::TokensForUsers => match sent {
            "Bearer user" => good(),
            _ => status("401 No", &bearer),
        },
        Style::TokensForAllPublic => match sent {
            "Bearer user" | "Bearer nobody" => good(),
            _ => status("401 No", &bearer),
        },
        Style::NoHead if request.starts_with("HEAD") => status("405 No", ""),
        Style::Basic | Style::NoHead if !is_user => status("401 No", "Basic realm=\"r\""),
        Style::Hides if !is_user => status("404 No", ""),
        Style::LoginPage if !is_user => page("text/html", "<html>Log in</html>"),
        _ => good(),
    }
}

async fn access(style: Style, operator: Option<&str>, logins: &[(&str, &str)]) -> Access {
    holdfast_testkit::tls::install_crypto_provider();
    let raw = Raw::start(move |request| answer(style, request)).await;
    let mut settings = UpstreamSettings::anonymous(&raw.host(), &[raw.url()]);
    if let Some(password) = operator {
        settings.credentials = Credentials::Given {
            username: "operator".to_owned(),
            password: SecretString::from(password),
        };
    }
    let uplink = Uplink::default();
    let client = Upstreams::new(&[settings], &Proxy::default(), &uplink, quick()).unwrap();
    client.access(&source(&raw.host(), logins), "1").await
}

#[tokio::test]
async fn an_upstreams_answer_tells_who_may_have_an_image() {
    use Style::{
        Basic, Broken, Hides, LoginPage, NoHead, Open, TokensForAll, TokensForAllPublic,
        TokensForUsers,
    };
    let (right, wrong) = (("team", "pw"), ("team", "wrong"));
    for style in [Open, TokensForAllPublic] {
        for logins in [&[][..], &[right], &[wrong]] {
            let found = access(style, Some("wrong"), logins).await;
            assert_eq!(found, Access::Public, "{style:?} {logins:?}");
        }
    }
    for style in [Basic, TokensForAll, TokensForUsers, Hides, NoHead] {
        for (operator, logins, expect) in [
            (None, &[][..], Access::Denied),
            (None, &[wrong], Access::Denied),
            (None, &[right], Access::Proved),
            (None, &[wrong, right], Access::Proved),
            (Some("wrong"), &[right], Access::Proved),
            (Some("pw"), &[], Access::Configured),
            (Some("pw"), &[wrong], Access::Configured),
        ] {
            let found = access(style, operator, logins).await;
            assert_eq!(found, expect, "{style:?} {operator:?} {logins:?}");
        }
    }
    // A page is no manifest, whatever its status: it says nothing of who may have the image.
    assert_eq!(access(LoginPage, None, &[]).await, Access::Unknown);
    assert_eq!(access(Broken, None, &[right]).await, Access::Unknown);
}

#[tokio::test]
async fn a_question_of_access_leaves_copies_their_login() {
    let upstream = Upstream::start_with(Auth::Bearer {
        users: Vec::new(),
        realm: None,
    })
    .await;
    let image = ImageBuilder::new(1).layer(50).build();
    upstream.push("team/app", "1", &image);
    let client = upstreams(&upstream.host(), &[upstream.url()]);
    let with_login = source(&upstream.host(), &[("team", "pw")]);
    client.manifest(&with_login, "1").await.unwrap();
    assert_eq!(client.access(&with_login, "1").await, Access::Public);
    let sent = || {
        let requests = upstream.requests().all().into_iter();
        requests
            .filter(|request| request.path == "/token")
            .map(|request| request.authorization)
            .collect::<Vec<_>>()
    };
    assert_eq!(sent(), [Some(basic("team", "pw")), None]);
    // Docker Hub counts pulls of nobody by address, and those of a user by name.
    let layer = Digest::parse(&image.layers[0]).unwrap();
    client.blob(&with_login, whole(&layer)).await.unwrap();
    assert_eq!(sent().len(), 2, "the copy's own token is used");
    let last = upstream.requests().all().pop().unwrap();
    assert!(last.authorization.is_some());
}

#[tokio::test]
async fn a_mirror_is_the_operators_and_sees_no_login_of_a_namespace() {
    let mirror = Upstream::start().await;
    let upstream = Upstream::start_with(Auth::Basic(users(&[("team", "pw")]))).await;
    let image = ImageBuilder::new(1).layer(50).build();
    upstream.push("team/app", "1", &image);
    let client = upstreams(&upstream.host(), &[mirror.url(), upstream.url()]);
    let check = async |logins: &[(&str, &str)], expect: Access| {
        let found = client.access(&source(&upstream.host(), logins), "1").await;
        assert_eq!(found, expect, "{logins:?}");
    };
    check(&[("team", "pw")], Access::Proved).await;
    check(&[("team", "wrong")], Access::Denied).await;
    mirror.push("team/app", "1", &image);
    check(&[("team", "wrong")], Access::Configured).await;
    // A mirror that fails may be the one that would open it: nothing is known.
    mirror.faults().set(Fault::new(Kind::Error { status: 503 }));
    check(&[("team", "wrong")], Access::Unknown).await;
    check(&[("team", "pw")], Access::Proved).await;
    assert!(got_no_login(&mirror));
}
