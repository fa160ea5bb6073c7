//! The control API of a fault upstream, JSON on a port of its own:
//! `GET /requests` → `{"GET /v2/…": n}`, `DELETE /requests`, `GET /fault`, `POST /fault {"kind":
//! …}`, `DELETE /fault`. The same paths work below `/_control`.

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::{
    faults::{Body, Fault, Faults, full},
    requests::Requests,
    server::Cut,
};

/// Answers one request of the control API.
///
/// # Errors
/// Never; the type fits [`crate::server::serve`].
pub async fn handle(
    faults: Faults,
    requests: Requests,
    request: Request<Incoming>,
) -> Result<Response<Body>, Cut> {
    let (head, body) = request.into_parts();
    let body = body
        .collect()
        .await
        .map(http_body_util::Collected::to_bytes)
        .unwrap_or_default();
    let path = head.uri.path();
    let (status, text) = answer(
        &faults,
        &requests,
        &head.method,
        path.strip_prefix("/_control").unwrap_or(path),
        &body,
    );
    let mut answer = Response::new(full(text));
    *answer.status_mut() = status;
    answer.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("application/json"),
    );
    Ok(answer)
}

fn answer(
    faults: &Faults,
    requests: &Requests,
    method: &Method,
    path: &str,
    body: &Bytes,
) -> (StatusCode, String) {
    let json = |value: serde_json::Value| (StatusCode::OK, value.to_string());
    match (method.as_str(), path) {
        ("GET", "/requests") => json(serde_json::json!(requests.counts())),
        ("DELETE", "/requests") => {
            requests.clear();
            json(serde_json::json!({}))
        }
        ("GET", "/fault") => json(serde_json::json!(faults.list())),
        ("DELETE", "/fault") => {
            faults.clear();
            json(serde_json::json!({}))
        }
        ("POST", "/fault") => match serde_json::from_slice::<Fault>(body) {
            Ok(fault) => {
                faults.set(fault);
                json(serde_json::json!({}))
            }
            Err(e) => (
                StatusCode::BAD_REQUEST,
                serde_json::json!({"error": e.to_string()}).to_string(),
            ),
        },
        _ => (
            StatusCode::NOT_FOUND,
            serde_json::json!({"error": "GET|DELETE /requests, GET|POST|DELETE /fault"})
                .to_string(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(method: &str, path: &str, body: &str, expect: (u16, &str)) {
        let (status, text) = answer(
            &Faults::default(),
            &Requests::default(),
            &method.parse().unwrap(),
            path,
            &Bytes::copy_from_slice(body.as_bytes()),
        );
        assert_eq!(
            (status.as_u16(), text.as_str()),
            expect,
            "{method} {path} {body}"
        );
    }

    #[test]
    fn control_answers_json() {
        check("GET", "/requests", "", (200, "{}"));
        check("POST", "/fault", r#"{"kind":"down"}"#, (200, "{}"));
        check("DELETE", "/fault", "", (200, "{}"));
        check("GET", "/fault", "", (200, "[]"));
        let (status, _) = answer(
            &Faults::default(),
            &Requests::default(),
            &Method::POST,
            "/fault",
            &Bytes::from_static(b"{\"kind\":\"rain\"}"),
        );
        assert_eq!(status, 400);
    }
}
