//! Doorways to the parsers of hostile text, for the fuzz targets alone. Each calls the parser and nothing else.

use holdfast_core::Digest;

use crate::{access, content, range};

/// The answer to a `Range` header, as first and last byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Range {
    /// Everything.
    Whole,
    /// First and last byte.
    Part(u64, u64),
    /// Nothing of the content.
    Unsatisfiable,
}

/// `Range` of a request for `size` bytes.
pub fn range(header: &str, size: u64) -> Range {
    match range::parse(Some(header), size) {
        range::Answer::Whole => Range::Whole,
        range::Answer::Part { first, last } => Range::Part(first, last),
        range::Answer::Unsatisfiable => Range::Unsatisfiable,
    }
}

/// `Content-Range` of a chunk.
pub fn chunk(header: &str) -> Option<(u64, u64)> {
    range::parse_chunk(header)
}

/// What a pushed manifest says: media type, blobs, children, subject.
pub type Manifest = (String, Vec<Digest>, Vec<Digest>, Option<Digest>);

/// A pushed manifest.
///
/// # Errors
/// Why it is not taken.
pub fn manifest(bytes: &[u8], content_type: Option<&str>) -> Result<Manifest, String> {
    let content = content::parse(bytes, content_type).map_err(|error| error.to_string())?;
    Ok((
        content.media_type,
        content.blobs,
        content.manifests,
        content.subject,
    ))
}

/// A manifest of an upstream: what it refers to.
///
/// # Errors
/// Why it is not taken.
pub fn upstream_manifest(bytes: &[u8]) -> Result<Vec<Digest>, String> {
    crate::fill::references(bytes)
}

/// The realm of an upstream's challenge, when it asks for a token.
pub fn realm(value: &str) -> Option<url::Url> {
    crate::upstream::auth::realm(value)
}

/// The keys of a file, and whom a bearer token checked with them was issued to.
///
/// # Errors
/// `Err(None)` when the file has no usable keys, else why the token is not taken.
pub fn token(
    text: &str,
    keys: &[u8],
    issuer: &str,
    service: &str,
    now: f64,
) -> Result<String, Option<String>> {
    let rsa = holdfast_config::RsaAlgorithm::default();
    let keys = access::keys::parse(keys, rsa).map_err(|_| None)?;
    let expected = access::token::Expected { issuer, service };
    access::token::verify(text, &keys, expected, now)
        .map(|claims| claims.subject().to_owned())
        .map_err(|error| Some(error.to_string()))
}
