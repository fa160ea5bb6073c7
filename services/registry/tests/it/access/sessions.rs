//! An upload belongs to the client that began it.

use super::users::{basic, start};
use crate::harness::{Registry, code, header, sha256};

async fn send(
    registry: &Registry,
    user: &str,
    method: &str,
    target: &str,
    body: &str,
) -> reqwest::Response {
    let authorization = basic(user);
    registry
        .send(
            method,
            target,
            &[("authorization", &authorization)],
            body.to_owned(),
        )
        .await
}

#[tokio::test]
async fn an_upload_goes_on_for_its_owner_only() {
    let registry = start().await;
    let begun = send(&registry, "ci", "POST", "/v2/team/app/blobs/uploads/", "").await;
    assert_eq!(begun.status(), 202);
    let location = header(begun.headers(), "location").to_owned();
    for (method, target) in [
        ("PATCH", location.clone()),
        ("GET", location.clone()),
        ("PUT", format!("{location}&digest={}", sha256(b"x"))),
        ("DELETE", location.clone()),
    ] {
        let answer = send(&registry, "ci2", method, &target, "x").await;
        assert_eq!(code(answer).await, (403, "DENIED".into()), "{method}");
        let answer = send(&registry, "reader", method, &target, "x").await;
        assert_eq!(code(answer).await, (403, "DENIED".into()), "{method}");
    }
    let patched = send(&registry, "ci", "PATCH", &location, "abc").await;
    assert_eq!(patched.status(), 202);
    let location = header(patched.headers(), "location").to_owned();
    let stolen = send(&registry, "ci2", "PATCH", &location, "x").await;
    assert_eq!(stolen.status(), 403, "the next state has the same owner");
    let target = format!("{location}&digest={}", sha256(b"abc"));
    let finished = send(&registry, "ci", "PUT", &target, "").await;
    assert_eq!(finished.status(), 201);
}

#[tokio::test]
async fn a_sessions_name_alone_opens_nothing_where_there_are_users() {
    let registry = start().await;
    let begun = send(&registry, "ci", "POST", "/v2/team/app/blobs/uploads/", "").await;
    let location = header(begun.headers(), "location").to_owned();
    let (bare, _) = location.split_once('?').unwrap();
    for user in ["ci", "ci2", "admin"] {
        for method in ["PATCH", "GET", "DELETE"] {
            let answer = send(&registry, user, method, bare, "x").await;
            assert_eq!(
                code(answer).await,
                (400, "BLOB_UPLOAD_INVALID".into()),
                "{user} {method}"
            );
        }
    }
    let cancelled = send(&registry, "ci", "DELETE", &location, "").await;
    assert_eq!(cancelled.status(), 204);
}
