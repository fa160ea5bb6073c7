//! Deletes of blobs, manifests and tags. A deleted item is unknown to the next request; its bytes
//! stay on the volume.

use holdfast_core::{ManifestRef, digest::Digest, oci::Manifest};
use http::{Response, StatusCode};

use crate::{
    body::{self, Body},
    call::Call,
    error::{Code, Error, Result},
};

/// end-9. A damaged manifest can be deleted, too (SPEC 37).
pub(crate) async fn manifest(
    Call { api, repo, .. }: Call<'_>,
    reference: &ManifestRef,
) -> Result<Response<Body>> {
    let deleted = match reference {
        ManifestRef::Tag(tag) => api.store.delete_tag(repo, tag).await?,
        ManifestRef::Digest(digest) => {
            let bytes = api.store.manifest(repo, digest).await.ok().flatten();
            let deleted = api.store.delete_manifest(repo, digest).await?;
            if let Some(subject) = bytes.and_then(|bytes| Manifest::parse(&bytes).ok()?.subject) {
                api.store.remove_referrer(repo, &subject, digest).await?;
            }
            deleted
        }
    };
    answer(deleted, Code::ManifestUnknown)
}

/// end-10
pub(crate) async fn blob(
    Call { api, repo, .. }: Call<'_>,
    digest: &Digest,
) -> Result<Response<Body>> {
    answer(
        api.store.unlink_blob(repo, digest).await?,
        Code::BlobUnknown,
    )
}

fn answer(deleted: bool, unknown: Code) -> Result<Response<Body>> {
    if !deleted {
        return Err(Error::unknown(unknown, "there is nothing to delete"));
    }
    let mut response = Response::new(body::empty());
    *response.status_mut() = StatusCode::ACCEPTED;
    Ok(response)
}
