//! Pushes of manifests: stored byte for byte, and only if everything that they refer to is there.

use holdfast_core::{
    ManifestRef,
    digest::{Algorithm, Digest},
    oci::{Manifest, ManifestType},
    reference::{RepositoryName, Tag},
};
use holdfast_store::Hasher;
use http::{Response, StatusCode, header};

use crate::{
    body::{self, Body},
    call::Call,
    error::{Code, Error, Result},
    received::{self, Received},
    response::value,
};

/// end-7a, end-7b
pub(crate) async fn put(
    Call {
        api, head, repo, ..
    }: Call<'_>,
    reference: &ManifestRef,
    tags: &[Tag],
    body: Received,
) -> Result<Response<Body>> {
    let limit = api.limits.manifest_bytes;
    let announced = head
        .headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|announced| announced > limit) {
        return Err(received::too_large(limit));
    }
    api.store.check_write(announced.unwrap_or(0)).await?;
    // Held to the end: what is read of the manifest takes memory, too.
    let (bytes, _reserved) = api
        .push_memory
        .receive(head, announced, limit, body)
        .await?;
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
    let manifest = read(&bytes, content_type)
        .map_err(|reason| Error::invalid(Code::ManifestInvalid, reason))?;
    let needed = needed(&manifest);
    if let Some(missing) = api.store.first_missing(repo, needed, Vec::new()).await? {
        return Err(Error::invalid(
            Code::ManifestBlobUnknown,
            format!("the manifest refers to {missing}, which this repository does not have"),
        ));
    }
    // An index may be sparse: a mirror of one platform pushes the index as it is.
    let listed = manifest.manifests.iter().map(|child| child.digest.clone());
    api.store.touch_present(listed.collect()).await?;
    api.store.put_manifest(repo, &digest, bytes).await?;
    if let Some(subject) = &manifest.subject {
        api.store.add_referrer(repo, subject, &digest).await?;
    }
    for tag in own_tag.into_iter().chain(tags) {
        api.store.set_tag(repo, tag, &digest).await?;
    }
    Ok(created(repo, &digest, tags, manifest.subject.as_ref()))
}

/// Parses a manifest that a client pushes. The parameters of its `Content-Type` are ignored, and so
/// are types that are not types of manifests.
///
/// # Errors
/// Why the manifest is refused.
pub(crate) fn read(bytes: &[u8], content_type: Option<&str>) -> Result<Manifest, String> {
    let manifest = Manifest::parse(bytes).map_err(|error| error.to_string())?;
    let own = manifest.media_type;
    match content_type.and_then(ManifestType::of_header) {
        Some(header) if manifest.is_typed && header != own => Err(format!(
            "Content-Type is {}, the manifest says {}",
            header.as_str(),
            own.as_str()
        )),
        Some(header) if header.is_index() != own.is_index() => Err(format!(
            "the content does not have the shape of {}",
            header.as_str()
        )),
        _ => Ok(manifest),
    }
}

/// What a repository must have before the manifest.
pub(crate) fn needed(manifest: &Manifest) -> Vec<Digest> {
    let mut needed: Vec<_> = manifest
        .parts()
        .filter(|part| !part.is_foreign())
        .map(|part| part.digest.clone())
        .collect();
    needed.sort();
    needed.dedup();
    needed
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_agrees_with_the_manifest_or_says_nothing() {
        let [oci, index, docker, list] = ManifestType::ALL.map(ManifestType::as_str);
        let digest = format!("sha256:{}", "a".repeat(64));
        let image = |own: &str| {
            let config = format!(r#"{{"mediaType":"c","digest":"{digest}","size":1}}"#);
            format!(r#"{{"schemaVersion":2{own},"config":{config}}}"#)
        };
        let typed = image(&format!(r#","mediaType":"{docker}""#));
        for (bytes, header, expect) in [
            (image(""), None, ""),
            (image(""), Some(docker), ""),
            (image(""), Some("application/json"), ""),
            (image(""), Some(list), "shape"),
            (typed.clone(), Some(docker), ""),
            (typed.clone(), Some("application/json"), ""),
            (typed, Some(oci), "Content-Type is"),
            (r#"{"manifests":[]}"#.to_owned(), Some(oci), "shape"),
            (r#"{"manifests":[]}"#.to_owned(), Some(index), ""),
        ] {
            let error = read(bytes.as_bytes(), header).err().unwrap_or_default();
            let is_right = error.is_empty() == expect.is_empty() && error.contains(expect);
            assert!(is_right, "{header:?} {bytes}: {error}");
        }
    }
}
