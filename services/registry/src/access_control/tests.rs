//! The table: every endpoint by every role in every mode.

use holdfast_config::{AccessAction, AccessRule};

use super::*;
use crate::route::route;

const DIGEST: &str = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
const ID: &str = "018f4d0c-0000-7000-8000-000000000001";

/// Kinds of endpoints that are decided alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Base,
    Catalog,
    Pull,
    Push,
    Delete,
}

use Kind::{Base, Catalog, Delete, Pull, Push};

/// Every endpoint on `repo`.
fn endpoints(repo: &str) -> Vec<(Endpoint, Kind)> {
    [
        ("GET /v2/", Base),
        ("GET /v2/_catalog", Catalog),
        ("GET /v2/{R}/blobs/{D}", Pull),
        ("HEAD /v2/{R}/blobs/{D}", Pull),
        ("GET /v2/{R}/manifests/t", Pull),
        ("HEAD /v2/{R}/manifests/{D}", Pull),
        ("GET /v2/{R}/tags/list", Pull),
        ("GET /v2/{R}/referrers/{D}", Pull),
        ("POST /v2/{R}/blobs/uploads/", Push),
        ("POST /v2/{R}/blobs/uploads/?digest={D}", Push),
        ("POST /v2/{R}/blobs/uploads/?digest-algorithm=sha512", Push),
        ("POST /v2/{R}/blobs/uploads/?mount={D}&from={R}", Push),
        ("POST /v2/{R}/blobs/uploads/?mount={D}", Push),
        ("PATCH /v2/{R}/blobs/uploads/{I}", Push),
        ("PUT /v2/{R}/blobs/uploads/{I}?digest={D}", Push),
        ("GET /v2/{R}/blobs/uploads/{I}", Push),
        ("DELETE /v2/{R}/blobs/uploads/{I}", Push),
        ("PUT /v2/{R}/manifests/t", Push),
        ("PUT /v2/{R}/manifests/{D}?tag=t", Push),
        ("DELETE /v2/{R}/manifests/t", Delete),
        ("DELETE /v2/{R}/manifests/{D}", Delete),
        ("DELETE /v2/{R}/blobs/{D}", Delete),
    ]
    .into_iter()
    .map(|(request, kind)| (endpoint(request, repo), kind))
    .collect()
}

fn endpoint(request: &str, repo: &str) -> Endpoint {
    let request = request
        .replace("{R}", repo)
        .replace("{D}", DIGEST)
        .replace("{I}", ID);
    let (method, target) = request.split_once(' ').unwrap();
    let (path, query) = target
        .split_once('?')
        .map_or((target, None), |(path, query)| (path, Some(query)));
    route(&method.parse().unwrap(), path, query)
        .unwrap_or_else(|error| panic!("{request}: {error:?}"))
}

fn check(
    access_control: &AccessControl,
    principal: &Principal,
    repo: &str,
    expect: impl Fn(Kind) -> u16,
) {
    for (endpoint, kind) in endpoints(repo) {
        let status = access_control
            .check(principal, &endpoint)
            .map_or_else(|error| error.status().as_u16(), |()| 200);
        assert_eq!(
            status,
            expect(kind),
            "{access_control:?} {principal:?} {endpoint:?}"
        );
    }
}

fn guarded(access: AccessSettings) -> AccessControl {
    AccessControl::empty(policy(false, &access), None, access)
}

fn with_everything(anonymous_pull: bool, rules: Vec<AccessRule>) -> AccessControl {
    guarded(AccessSettings {
        anonymous_pull,
        htpasswd: Some("users".into()),
        client_ca: Some("ca".into()),
        token: Some(TokenSettings {
            keys: "keys".into(),
            realm: "https://auth.example/token".to_owned(),
            service: "registry.example".to_owned(),
            issuer: "auth".to_owned(),
            rsa_algorithm: holdfast_config::RsaAlgorithm::RS256,
        }),
        rules,
    })
}

fn rule(user: &str, repositories: &[&str], actions: &[AccessAction]) -> AccessRule {
    AccessRule {
        users: vec![user.to_owned()],
        certificates: vec![format!("CN={user}")],
        repositories: repositories.iter().map(|name| (*name).to_owned()).collect(),
        actions: actions.to_vec(),
    }
}

fn user(name: &str) -> Principal {
    Principal::User(name.into())
}

fn certificate(name: &str) -> Principal {
    Principal::Certificate(Arc::new(PeerIdentity {
        common_name: name.to_owned(),
        ..PeerIdentity::default()
    }))
}

fn bearer(access: &[(&str, &str, &[&str])]) -> Principal {
    Principal::Bearer(Arc::new(Claims::of("ci", access)))
}

#[test]
fn in_a_cluster_only_nodes_pull_and_nobody_pushes() {
    let access_control = AccessControl::nodes("node", "secret");
    for repo in ["team/app", "docker.io/library/nginx"] {
        for nobody in [Principal::Anonymous, Principal::InvalidCredentials] {
            check(&access_control, &nobody, repo, |_| 401);
        }
        check(&access_control, &Principal::Node, repo, |kind| match kind {
            Base | Catalog | Pull => 200,
            Push | Delete => 403,
        });
    }
}

#[test]
fn alone_everybody_does_everything_but_push_under_an_upstreams_name() {
    let access_control = AccessControl::open();
    check(&access_control, &Principal::Anonymous, "team/app", |_| 200);
    for repo in [
        "docker.io/library/nginx",
        "registry.example_5000/a",
        "localhost/a",
    ] {
        check(&access_control, &Principal::Anonymous, repo, |kind| {
            if kind == Push { 403 } else { 200 }
        });
    }
}

#[test]
fn with_access_configured_anonymous_clients_do_nothing() {
    let access_control = with_everything(false, Vec::new());
    for nobody in [Principal::Anonymous, Principal::InvalidCredentials] {
        check(&access_control, &nobody, "team/app", |_| 401);
        assert_eq!(
            access_control
                .check_unknown(&nobody)
                .unwrap_err()
                .status()
                .as_u16(),
            401
        );
    }
}

#[test]
fn anonymous_pull_is_a_policy_and_the_base_still_says_how_to_log_in() {
    check(
        &with_everything(true, Vec::new()),
        &Principal::Anonymous,
        "team/app",
        |kind| match kind {
            Catalog | Pull => 200,
            Base | Push | Delete => 401,
        },
    );
    let read_only = guarded(AccessSettings {
        anonymous_pull: true,
        ..AccessSettings::default()
    });
    check(
        &read_only,
        &Principal::Anonymous,
        "team/app",
        |kind| match kind {
            Base | Catalog | Pull => 200,
            Push | Delete => 403,
        },
    );
    assert!(read_only.check_unknown(&Principal::Anonymous).is_ok());
}

#[test]
fn without_anything_configured_but_the_section_nobody_does_anything() {
    check(
        &guarded(AccessSettings::default()),
        &Principal::Anonymous,
        "team/app",
        |_| 403,
    );
}

#[test]
fn users_and_certificates_do_what_rules_say() {
    use AccessAction::{Delete as Deletes, Pull as Pulls, Push as Pushes};
    let without = with_everything(false, Vec::new());
    let access_control = with_everything(
        false,
        vec![
            rule("reader", &[], &[Pulls]),
            rule("ci", &["team"], &[Pulls, Pushes]),
            rule("admin", &[], &[Pulls, Pushes, Deletes]),
        ],
    );
    for role in [user, certificate] {
        check(&without, &role("ci"), "team/app", |kind| match kind {
            Base | Catalog | Pull => 200,
            Push | Delete => 403,
        });
        check(
            &access_control,
            &role("nobody"),
            "team/app",
            |kind| match kind {
                Base => 200,
                _ => 403,
            },
        );
        check(
            &access_control,
            &role("reader"),
            "team/app",
            |kind| match kind {
                Base | Catalog | Pull => 200,
                Push | Delete => 403,
            },
        );
        check(
            &access_control,
            &role("ci"),
            "team/app",
            |kind| match kind {
                Base | Pull | Push => 200,
                Catalog | Delete => 403,
            },
        );
        check(
            &access_control,
            &role("ci"),
            "other/app",
            |kind| match kind {
                Base => 200,
                _ => 403,
            },
        );
        check(&access_control, &role("admin"), "team/app", |_| 200);
        check(
            &access_control,
            &role("admin"),
            "docker.io/library/nginx",
            |kind| {
                if kind == Push { 403 } else { 200 }
            },
        );
    }
}

#[test]
fn tokens_give_what_they_list_and_another_may_be_asked_for() {
    let access_control = with_everything(false, Vec::new());
    let team = |actions: &'static [&'static str]| bearer(&[("repository", "team/app", actions)]);
    check(
        &access_control,
        &bearer(&[]),
        "team/app",
        |kind| match kind {
            Base => 200,
            _ => 401,
        },
    );
    check(
        &access_control,
        &team(&["pull"]),
        "team/app",
        |kind| match kind {
            Base | Pull => 200,
            _ => 401,
        },
    );
    check(
        &access_control,
        &team(&["pull", "push"]),
        "team/app",
        |kind| match kind {
            Base | Pull | Push => 200,
            _ => 401,
        },
    );
    check(
        &access_control,
        &team(&["delete"]),
        "team/app",
        |kind| match kind {
            Base | Delete => 200,
            _ => 401,
        },
    );
    check(
        &access_control,
        &team(&["*"]),
        "team/other",
        |kind| match kind {
            Base => 200,
            _ => 401,
        },
    );
    check(
        &access_control,
        &bearer(&[("registry", "catalog", &["*"])]),
        "team/app",
        |kind| match kind {
            Base | Catalog => 200,
            _ => 401,
        },
    );
    check(
        &access_control,
        &bearer(&[("repository", "quay.io/app", &["*"])]),
        "quay.io/app",
        |kind| match kind {
            Base | Pull | Delete => 200,
            Push => 403,
            Catalog => 401,
        },
    );
}

fn challenges(access_control: &AccessControl, principal: &Principal, request: &str) -> Vec<String> {
    let refusal = access_control
        .check(principal, &endpoint(request, "team/app"))
        .unwrap_err();
    refusal
        .into_response()
        .headers()
        .get_all(header::WWW_AUTHENTICATE)
        .iter()
        .map(|value| value.to_str().unwrap().to_owned())
        .collect()
}

#[test]
fn a_challenge_names_the_scope() {
    let access_control = with_everything(false, Vec::new());
    let base = r#"Bearer realm="https://auth.example/token",service="registry.example""#;
    let basic = r#"Basic realm="holdfast""#;
    for (request, principal, expect) in [
        ("GET /v2/", Principal::Anonymous, ""),
        (
            "GET /v2/_catalog",
            Principal::Anonymous,
            r#",scope="registry:catalog:*""#,
        ),
        (
            "GET /v2/{R}/manifests/1",
            Principal::Anonymous,
            r#",scope="repository:team/app:pull""#,
        ),
        (
            "POST /v2/{R}/blobs/uploads/",
            Principal::InvalidCredentials,
            r#",scope="repository:team/app:pull,push",error="invalid_token""#,
        ),
        (
            "DELETE /v2/{R}/manifests/1",
            bearer(&[]),
            r#",scope="repository:team/app:delete",error="insufficient_scope""#,
        ),
        (
            "POST /v2/{R}/blobs/uploads/?mount={D}&from=other",
            Principal::Anonymous,
            r#",scope="repository:team/app:pull,push repository:other:pull""#,
        ),
    ] {
        assert_eq!(
            challenges(&access_control, &principal, request),
            [format!("{base}{expect}"), basic.to_owned()],
            "{request}"
        );
    }
    let nodes = AccessControl::nodes("node", "secret");
    assert_eq!(
        challenges(&nodes, &Principal::Anonymous, "GET /v2/"),
        [basic]
    );
}

fn head(values: &[&str], peer: Option<&str>) -> request::Parts {
    let mut builder = http::Request::builder();
    for value in values {
        builder = builder.header(header::AUTHORIZATION, *value);
    }
    let mut request = builder.body(()).unwrap();
    if let Some(name) = peer {
        request.extensions_mut().insert(PeerIdentity {
            common_name: name.to_owned(),
            ..PeerIdentity::default()
        });
    }
    request.into_parts().0
}

fn encoded(text: &str) -> String {
    format!("Basic {}", STANDARD.encode(text))
}

#[tokio::test]
async fn credentials_are_told_apart() {
    let access_control = AccessControl::nodes("node", "s3cret");
    let right = encoded("node:s3cret");
    for (values, expect) in [
        (vec![], Principal::Anonymous),
        (vec![right.clone()], Principal::Node),
        (vec![right.replace("Basic", "basic")], Principal::Node),
        (vec![encoded(":")], Principal::Anonymous),
        (vec![encoded("node:s3cre")], Principal::InvalidCredentials),
        (vec![encoded("node:")], Principal::InvalidCredentials),
        (vec![encoded("nod:s3cret")], Principal::InvalidCredentials),
        (vec![encoded("node:s3cret ")], Principal::InvalidCredentials),
        (vec![encoded("nodes3cret")], Principal::InvalidCredentials),
        (vec![right.clone(), right], Principal::InvalidCredentials),
        (vec!["Bearer x".to_owned()], Principal::InvalidCredentials),
        (vec!["Basic %%%".to_owned()], Principal::InvalidCredentials),
        (vec!["Basic".to_owned()], Principal::InvalidCredentials),
    ] {
        let values: Vec<&str> = values.iter().map(String::as_str).collect();
        assert_eq!(
            access_control.identify(&head(&values, None)).await.unwrap(),
            expect,
            "{values:?}"
        );
    }
}

#[tokio::test]
async fn a_certificate_counts_with_its_ca_configured_and_no_other_credential() {
    let access_control = guarded(AccessSettings {
        client_ca: Some("ca".into()),
        ..AccessSettings::default()
    });
    let who = async |access_control: &AccessControl, values: &[&str]| {
        access_control
            .identify(&head(values, Some("ci")))
            .await
            .unwrap()
    };
    assert_eq!(who(&access_control, &[]).await, certificate("ci"));
    assert_eq!(
        who(&access_control, &[&encoded("a:b")]).await,
        Principal::InvalidCredentials,
        "wrong credentials are wrong"
    );
    let nodes = AccessControl::nodes("node", "secret");
    assert_eq!(who(&nodes, &[]).await, Principal::Anonymous);
}

#[tokio::test]
async fn changed_files_are_read_again_and_bad_ones_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    let auth = AuthFiles {
        upload_secret: file("s"),
        node_username: file("u"),
        node_password: file("p"),
    };
    let access = AccessSettings {
        htpasswd: Some(file("htpasswd")),
        ..AccessSettings::default()
    };
    let write = |name: &str, text: &str| std::fs::write(file(name), text).unwrap();
    write("u", "node\n");
    write("p", "one\n");
    let refused = AccessControl::from_settings(Some(&auth), Some(&access)).unwrap_err();
    assert!(refused.to_string().contains("htpasswd"), "{refused}");
    write(
        "htpasswd",
        &format!("ci:{}\n", bcrypt::hash("x", 4).unwrap()),
    );
    let access_control = AccessControl::from_settings(Some(&auth), Some(&access)).unwrap();
    let who = async |text: &str| {
        access_control
            .identify(&head(&[&encoded(text)], None))
            .await
            .unwrap()
    };
    assert_eq!(who("node:one").await, Principal::Node);
    assert_eq!(who("ci:x").await, user("ci"));

    // While it is rotated, both are accepted, whichever comes first.
    for both in ["one\ntwo\n", "two\none"] {
        write("p", both);
        access_control.reload(NODE).unwrap();
        assert_eq!(who("node:one").await, Principal::Node);
        assert_eq!(who("node:two").await, Principal::Node);
        assert_eq!(who("node:one\ntwo").await, Principal::InvalidCredentials);
        assert_eq!(who("node:").await, Principal::InvalidCredentials);
    }
    write("p", "two");
    access_control.reload(NODE).unwrap();
    assert_eq!(who("node:two").await, Principal::Node);
    assert_eq!(who("node:one").await, Principal::InvalidCredentials);
    write("p", "");
    assert!(access_control.reload(NODE).is_err());
    assert_eq!(who("node:two").await, Principal::Node);

    write("htpasswd", "ci:{SHA}x");
    assert!(access_control.reload(USERS).is_err());
    assert_eq!(who("ci:x").await, user("ci"));
    write("htpasswd", "# nobody any more\n");
    access_control.reload(USERS).unwrap();
    assert_eq!(who("ci:x").await, Principal::InvalidCredentials);
}

#[test]
fn an_upload_session_has_an_owner() {
    for (principal, expect) in [
        (Principal::Anonymous, ""),
        (Principal::Node, "node"),
        (user("ci"), "user:ci"),
        (certificate("ci"), "certificate:CN=ci"),
        (bearer(&[]), "token:ci"),
    ] {
        assert_eq!(principal.subject(), expect);
    }
}

#[test]
fn names_of_different_kinds_in_certificates_are_different_owners() {
    let name = "ci.example";
    let of = |peer: PeerIdentity| Principal::Certificate(Arc::new(peer)).subject();
    let common = of(PeerIdentity {
        common_name: name.to_owned(),
        ..PeerIdentity::default()
    });
    let uri = of(PeerIdentity {
        uris: vec![name.to_owned()],
        ..PeerIdentity::default()
    });
    let dns = of(PeerIdentity {
        dns: vec![name.to_owned()],
        ..PeerIdentity::default()
    });
    assert_eq!(common, "certificate:CN=ci.example");
    assert_eq!(uri, "certificate:URI=ci.example");
    assert_eq!(dns, "certificate:DNS=ci.example");
}
