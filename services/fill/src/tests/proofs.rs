//! Access to an image is checked at its upstream, over the internal API, and grants nothing.

use holdfast_api::access::{Access, AccessRequest, AccessResult, PATH};
use holdfast_core::{ManifestRef, UpstreamFilter as Permitted};
use holdfast_testkit::server;

use super::*;

fn team(password: &str) -> Vec<Credential> {
    vec![Credential {
        username: "team".to_owned(),
        password: password.into(),
        identity_token: false,
    }]
}

/// Asks a registry's internal API; the status and, of an answer, what it says.
async fn ask(registry: &Fills, body: String) -> (u16, Option<Access>) {
    let (listener, address) = server::bind("127.0.0.1:0").await.unwrap();
    let shutdown = CancellationToken::new();
    let serve = internal::serve(listener, None, registry.clone(), shutdown.clone());
    let task = tokio::spawn(serve);
    let post = reqwest::Client::new().post(format!("http://{address}{PATH}"));
    let answer = post.body(body).send().await.unwrap();
    let status = answer.status().as_u16();
    let bytes = answer.bytes().await.unwrap();
    shutdown.cancel();
    task.await.unwrap();
    let result = serde_json::from_slice::<AccessResult>(&bytes).ok();
    (status, result.filter(|_| status == 200).map(|it| it.access))
}

async fn access(registry: &Fills, upstream: &Upstream, credentials: Vec<Credential>) -> Access {
    let request = AccessRequest {
        source: format!("{}/{REPO}:1", upstream.host()),
        credentials,
    };
    let (status, answer) = ask(registry, serde_json::to_string(&request).unwrap()).await;
    assert_eq!(status, 200);
    answer.unwrap()
}

#[tokio::test]
async fn what_is_stored_proves_nothing_and_a_question_opens_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let users = vec![("team".to_owned(), "pw".to_owned())];
    let upstream = Upstream::start_with(Auth::Basic(users)).await;
    let image = ImageBuilder::new(80)
        .layer(100)
        .index(&["linux/amd64", "linux/arm64"]);
    upstream.push(REPO, "1", &image);
    let settings = Settings {
        grant: Duration::from_millis(1),
        ..quick()
    };
    let registry = fills_with(folder.path(), &upstream, false, uplink(), settings).await;
    let mut wanted = request(&upstream, ":1", &["linux/amd64"]);
    wanted.credentials = team("pw");
    registry.fill(&wanted).await.unwrap();
    // It is local, for anyone who asks for a copy; who may have it says the upstream.
    wanted.credentials = team("wrong");
    assert!(registry.fill(&wanted).await.unwrap().already_local);
    for (credentials, expect) in [
        (Vec::new(), Access::Denied),
        (team("wrong"), Access::Denied),
        (team("pw"), Access::Proved),
    ] {
        let found = access(&registry, &upstream, credentials).await;
        assert_eq!(found, expect);
    }
    let child = ManifestRef::Digest(digest(&image.children[1]));
    let refused = registry.manifest(&repo(&upstream), &child).await;
    assert!(matches!(refused, Err(Error::NotAllowed)), "{refused:?}");
    upstream.faults().set(Fault::new(Kind::Down));
    let away = access(&registry, &upstream, team("pw")).await;
    assert_eq!(away, Access::Unknown);
}

#[tokio::test]
async fn an_upstream_that_is_ruled_out_is_not_asked_who_may_read() {
    let folder = tempfile::tempdir().unwrap();
    let upstream = Upstream::start().await;
    upstream.push(REPO, "1", &ImageBuilder::new(81).layer(10).build());
    let settings = Settings {
        permitted: Some(Permitted::new(&["r.example".to_owned()], Vec::new())),
        ..quick()
    };
    let registry = fills_with(folder.path(), &upstream, true, uplink(), settings).await;
    let found = access(&registry, &upstream, Vec::new()).await;
    assert_eq!((found, upstream.requests().len()), (Access::Unknown, 0));
    for body in [
        "{}",
        r#"{"source":"not an image"}"#,
        r#"{"source":"a/b:1","x":1}"#,
    ] {
        assert_eq!(ask(&registry, body.to_owned()).await.0, 400, "{body}");
    }
}
