//! Logs copies that fail. Any client may ask for content that an upstream lacks, as often as it
//! likes, so the log is limited; the metrics count all failures.

use std::time::Instant;

use holdfast_core::{Digest, ManifestRef, RepositoryName};
use holdfast_upstream::Upstreams;

use super::Error;

/// A blob was not copied.
pub(super) fn log_blob(upstreams: &Upstreams, digest: &Digest, error: &Error) {
    let kind = format!("blob {}", error.label());
    let throttle = upstreams.throttle();
    if throttle.passes(&kind, digest.as_str(), Instant::now()) {
        tracing::warn!(image.digest = %digest, %error, "blob was not copied");
    } else {
        tracing::debug!(image.digest = %digest, %error, "blob was not copied");
    }
}

/// An image was not copied.
pub(super) fn log_image(
    upstreams: &Upstreams,
    repo: &RepositoryName,
    target: &ManifestRef,
    error: &Error,
) {
    let (kind, about) = (
        format!("image {}", error.label()),
        format!("{repo} {target}"),
    );
    let throttle = upstreams.throttle();
    if throttle.passes(&kind, &about, Instant::now()) {
        tracing::warn!(
            image.repository = %repo, image.reference = %target, %error, "image was not copied"
        );
    } else {
        tracing::debug!(
            image.repository = %repo, image.reference = %target, %error, "image was not copied"
        );
    }
}
