//! Access to private parsers of untrusted text, for fuzz targets only. Each calls the parser and
//! nothing else.

use holdfast_core::Digest;

use crate::{authn, put_manifest, range};

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
    let manifest = put_manifest::read(bytes, content_type)?;
    let children = manifest.manifests.iter().map(|child| child.digest.clone());
    Ok((
        manifest.media_type.as_str().to_owned(),
        put_manifest::needed(&manifest),
        children.collect(),
        manifest.subject,
    ))
}

/// Reads a file of keys, checks a bearer token with them, and returns its subject.
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
    let keys = authn::keys::parse(keys, rsa).map_err(|_| None)?;
    let expected = authn::token::Expected { issuer, service };
    authn::token::verify(text, &keys, expected, now)
        .map(|claims| claims.subject().to_owned())
        .map_err(|error| Some(error.to_string()))
}
