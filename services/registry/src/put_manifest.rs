//! Pushes of manifests: the exact bytes, and nothing that refers to what is not there.

use holdfast_core::{
    digest::{Algorithm, Digest},
    reference::{RepositoryName, Tag},
};
use holdfast_store::Hasher;
use http::{Response, StatusCode, header, request::Parts};

use crate::{
    api::{Inner, value},
    body::{self, Body, Received},
    content,
    error::{Code, Error, Result},
    source::ManifestRef,
};

/// end-7a, end-7b
pub(crate) async fn put(
    api: &Inner,
    head: &Parts,
    repo: &RepositoryName,
    reference: &ManifestRef,
    tags: Vec<Tag>,
    body: Received,
) -> Result<Response<Body>> {
    let limit = api.limits.manifest_bytes;
    let announced = head
        .headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|announced| announced > limit) {
        return Err(body::too_large(limit));
    }
    api.store.check_write(announced.unwrap_or(0)).await?;
    let bytes = body.collect(limit).await?;
    api.metrics.received.inc_by(bytes.len() as u64);
    let algorithm = match reference {
        ManifestRef::Digest(digest) => digest.algorithm(),
        ManifestRef::Tag(_) => Algorithm::Sha256,
    };
    let digest = Hasher::digest(algorithm, &bytes);
    let own_tag = match reference {
        ManifestRef::Digest(named) if *named != digest => {
            return Err(Error::invalid(
                Code::DigestInvalid,
                format!("the manifest's digest is {digest}, not {named}"),
            ));
        }
        ManifestRef::Digest(_) => None,
        ManifestRef::Tag(tag) => Some(tag),
    };
    let content_type = head
        .headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    crate::json::check(&bytes).map_err(|reason| {
        Error::invalid(
            Code::ManifestInvalid,
            format!("the manifest does not parse: {reason}"),
        )
    })?;
    let content = content::parse(&bytes, content_type)
        .map_err(|error| Error::invalid(Code::ManifestInvalid, error.to_string()))?;
    if let Some(missing) = api
        .store
        .first_missing(repo, content.blobs, Vec::new())
        .await?
    {
        return Err(Error::invalid(
            Code::ManifestBlobUnknown,
            format!("the manifest refers to {missing}, which this repository does not have"),
        ));
    }
    // An index may be sparse: whoever mirrors one platform pushes the index as it is.
    api.store.touch_present(content.manifests).await?;
    api.store.put_manifest(repo, &digest, bytes).await?;
    if let Some(subject) = &content.subject {
        api.store.add_referrer(repo, subject, &digest).await?;
    }
    for tag in own_tag.into_iter().chain(&tags) {
        api.store.set_tag(repo, tag, &digest).await?;
    }
    Ok(created(repo, &digest, &tags, content.subject.as_ref()))
}

fn created(
    repo: &RepositoryName,
    digest: &Digest,
    tags: &[Tag],
    subject: Option<&Digest>,
) -> Response<Body> {
    let mut response = Response::new(body::empty());
    *response.status_mut() = StatusCode::CREATED;
    let headers = response.headers_mut();
    headers.insert(
        header::LOCATION,
        value(&format!("/v2/{repo}/manifests/{digest}")),
    );
    headers.insert("docker-content-digest", value(digest.as_str()));
    if let Some(subject) = subject {
        headers.insert("oci-subject", value(subject.as_str()));
    }
    for tag in tags {
        headers.append("oci-tag", value(tag.as_str()));
    }
    response
}
