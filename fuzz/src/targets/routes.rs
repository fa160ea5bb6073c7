//! Requests: which endpoint they mean, and which paths on the volume follow.

use std::path::{Component, Path, PathBuf};

use holdfast_core::ManifestRef;
use holdfast_registry::route::{Endpoint, RouteError, route};
use holdfast_store::Layout;
use http::Method;

use super::text;
use crate::{Shape, Target, ensure, shape};

/// Routes.
pub(super) const ROUTE: Target = Target {
    name: "route",
    promise: "what is wanted says what the path says, its method fits, and no path on the volume leaves the root",
    check,
    dictionary: &[
        "GET ",
        "HEAD ",
        "PUT ",
        "POST ",
        "PATCH ",
        "DELETE ",
        "/v2/",
        "/blobs/",
        "/blobs/uploads/",
        "/manifests/",
        "/tags/list",
        "/referrers/",
        "_catalog",
        "?digest=",
        "&mount=",
        "&from=",
        "?n=",
        "&last=",
        "?_state=",
        "?digest-algorithm=sha512",
        "?tag=",
        "?ns=",
        "sha256:",
        "sha512:",
        "%3A",
        "%2F",
        "..",
        "018f4d0c-0000-7000-8000-000000000001",
        "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
        "docker.io/library/nginx",
        "blobs",
        "manifests",
        "uploads",
        "tags",
    ],
    max_bytes: 2_000,
};

const ROOT: &str = "/srv/root";

fn check(input: &[u8]) -> Result<Shape, String> {
    let text = text(input);
    let (method, target) = text.split_once(' ').unwrap_or(("GET", &text));
    let Ok(method) = method.parse::<Method>() else {
        return Ok(0);
    };
    let (path, query) = target
        .split_once('?')
        .map_or((target, None), |(path, query)| (path, Some(query)));
    let endpoint = match route(&method, path, query) {
        Ok(endpoint) => endpoint,
        Err(error) => {
            return Ok(shape((
                std::mem::discriminant(&error),
                matches!(error, RouteError::Method(_)),
            )));
        }
    };
    let paths = paths(&endpoint);
    for path in &paths {
        stays_below(Path::new(ROOT), path)?;
    }
    let (methods, ends): (&[&str], Vec<String>) = expectation(&endpoint);
    ensure(methods.contains(&method.as_str()), || {
        format!("{method} became {endpoint:?}")
    })?;
    let plain = path.replacen("%3A", ":", 1).replacen("%3a", ":", 1);
    ensure(ends.is_empty() || ends.contains(&plain), || {
        format!("{plain:?} became {endpoint:?}")
    })?;
    Ok(shape((
        std::mem::discriminant(&endpoint),
        query.is_some(),
        paths.len(),
    )))
}

/// No path on the volume is anything but names below the root.
pub(super) fn stays_below(root: &Path, path: &Path) -> Result<(), String> {
    let inside = path.strip_prefix(root).is_ok_and(|rest| {
        let normal =
            |part: Component<'_>| matches!(part, Component::Normal(name) if name.len() <= 255);
        rest.components().all(normal) && !rest.to_string_lossy().contains('\0')
    });
    ensure(inside, || {
        format!("path leaves the root: {}", path.display())
    })
}

fn paths(endpoint: &Endpoint) -> Vec<PathBuf> {
    let layout = Layout::new(Path::new(ROOT));
    match endpoint {
        Endpoint::GetBlob(repo, digest)
        | Endpoint::DeleteBlob(repo, digest)
        | Endpoint::PushBlob(repo, digest) => {
            vec![
                layout.blob(digest),
                layout.layer_link(repo, digest),
                layout.incoming(digest),
            ]
        }
        Endpoint::MountBlob(repo, digest, from) => {
            let mut paths = vec![layout.layer_link(repo, digest)];
            paths.extend(from.as_ref().map(|from| layout.layer_link(from, digest)));
            paths
        }
        Endpoint::GetManifest(repo, reference) | Endpoint::DeleteManifest(repo, reference) => {
            vec![manifest(&layout, repo, reference)]
        }
        Endpoint::PutManifest(repo, reference, tags) => {
            let mut paths = vec![manifest(&layout, repo, reference)];
            paths.extend(tags.iter().map(|tag| layout.tag_link(repo, tag)));
            paths
        }
        Endpoint::PatchUpload(repo, id, _)
        | Endpoint::FinishUpload(repo, id, ..)
        | Endpoint::UploadStatus(repo, id, _)
        | Endpoint::CancelUpload(repo, id, ..) => {
            vec![
                layout.upload(repo, id.as_str()).join("data"),
                layout.lock(&format!("upload-{}", id.as_str())),
            ]
        }
        Endpoint::Tags(repo, _) => vec![layout.tags(repo)],
        Endpoint::Referrers(repo, digest, ..) => vec![layout.referrers(repo, digest)],
        Endpoint::StartUpload(repo, _) => vec![layout.repository(repo)],
        _ => Vec::new(),
    }
}

fn manifest(
    layout: &Layout,
    repo: &holdfast_core::RepositoryName,
    reference: &ManifestRef,
) -> PathBuf {
    match reference {
        ManifestRef::Digest(digest) => layout.revision_link(repo, digest),
        ManifestRef::Tag(tag) => layout.tag_link(repo, tag),
    }
}

/// The methods that may lead to an endpoint, and the paths that may; no paths: any.
fn expectation(endpoint: &Endpoint) -> (&'static [&'static str], Vec<String>) {
    const READ: &[&str] = &["GET", "HEAD"];
    match endpoint {
        Endpoint::Base => (READ, vec!["/v2".into(), "/v2/".into()]),
        Endpoint::Catalog(_) => (READ, vec!["/v2/_catalog".into()]),
        Endpoint::GetBlob(repo, digest) => (READ, vec![format!("/v2/{repo}/blobs/{digest}")]),
        Endpoint::GetManifest(repo, reference) => {
            (READ, vec![format!("/v2/{repo}/manifests/{reference}")])
        }
        Endpoint::Tags(repo, _) => (READ, vec![format!("/v2/{repo}/tags/list")]),
        Endpoint::Referrers(repo, digest, ..) => {
            (READ, vec![format!("/v2/{repo}/referrers/{digest}")])
        }
        Endpoint::StartUpload(repo, _)
        | Endpoint::PushBlob(repo, _)
        | Endpoint::MountBlob(repo, ..) => (
            &["POST"],
            vec![
                format!("/v2/{repo}/blobs/uploads"),
                format!("/v2/{repo}/blobs/uploads/"),
            ],
        ),
        Endpoint::PatchUpload(repo, id, _) => (
            &["PATCH"],
            vec![format!("/v2/{repo}/blobs/uploads/{}", id.as_str())],
        ),
        Endpoint::FinishUpload(repo, id, ..) => (
            &["PUT"],
            vec![format!("/v2/{repo}/blobs/uploads/{}", id.as_str())],
        ),
        Endpoint::UploadStatus(repo, id, _) => (
            READ,
            vec![format!("/v2/{repo}/blobs/uploads/{}", id.as_str())],
        ),
        Endpoint::CancelUpload(repo, id, ..) => (
            &["DELETE"],
            vec![format!("/v2/{repo}/blobs/uploads/{}", id.as_str())],
        ),
        Endpoint::PutManifest(repo, reference, _) => {
            (&["PUT"], vec![format!("/v2/{repo}/manifests/{reference}")])
        }
        Endpoint::DeleteManifest(repo, reference) => (
            &["DELETE"],
            vec![format!("/v2/{repo}/manifests/{reference}")],
        ),
        Endpoint::DeleteBlob(repo, digest) => {
            (&["DELETE"], vec![format!("/v2/{repo}/blobs/{digest}")])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_leaves_the_root_is_found() {
        let root = Path::new(ROOT);
        for (path, expect) in [
            ("/srv/root/a/b", true),
            ("/srv/root/a/../../x", false),
            ("/srv/rootless", false),
            ("/etc/passwd", false),
        ] {
            assert_eq!(stays_below(root, Path::new(path)).is_ok(), expect, "{path}");
        }
    }
}
