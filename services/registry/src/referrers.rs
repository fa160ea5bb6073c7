//! The referrers of a manifest: the index of the store, what clients of registries without this API
//! keep under a fallback tag, and the upstream's list if the manifest comes from an upstream. A
//! list that could not be learned is never reported as an empty one: a verifier of signatures would
//! read it as "unsigned".

use std::{borrow::Cow, collections::BTreeMap};

use bytes::Bytes;
use holdfast_core::{
    digest::Digest,
    oci::{self, Manifest, ManifestType},
    reference::Tag,
};
use http::{HeaderValue, Response, header};

use crate::{
    call::{Call, ListCall},
    error::{Error, Result},
    limits,
    response::{json, value, warning},
};
use holdfast_fill::pull_through::{Listed, Referrer};

const OCI_INDEX: &str = ManifestType::OciIndex.as_str();

/// The kind that lists of some registries give to everything with an empty configuration, whatever
/// it is.
const EMPTY: &str = "application/vnd.oci.empty.v1+json";

/// What a manifest counts at least of the bytes that are read for a page.
const LEAST_READ: u64 = 8 << 10;

/// Where an entry comes from.
enum Source<'a> {
    /// The manifest is local.
    Local(Digest),
    /// The upstream lists it.
    Upstream(&'a Referrer),
}

/// end-12a, end-12b: never "not found", whatever the repository.
pub(crate) async fn list(
    list: ListCall<'_>,
    subject: &Digest,
    kind: Option<&str>,
) -> Result<Response<Bytes>> {
    let ListCall { call, page, .. } = list;
    let listed = match call.source() {
        Some(source) => source.referrers(call.repo, subject).await,
        None => Listed::default(),
    };
    let mut local = list.store.referrers(call.repo, subject).await?;
    local.extend(fallback(call, subject).await);
    let entries = merge(&listed, local);
    let limit = page
        .limit
        .filter(|limit| *limit > 0)
        .unwrap_or(limits::REFERRERS_PAGE)
        .min(limits::REFERRERS_PAGE);
    let mut manifests: Vec<String> = Vec::new();
    let mut bytes = 0;
    let mut last = None;
    let mut more = None;
    // What was read for this page: a filter may fit none of many.
    let (mut read, mut looked_at) = (0, None);
    let mut filtered = kind.is_some();
    for (name, entry) in entries {
        if page.last.as_ref().is_some_and(|last| name <= *last) {
            continue;
        }
        let is_of_upstream = matches!(entry, Source::Upstream(_));
        if read >= limits::REFERRERS_PAGE_READ_BYTES {
            more = looked_at;
            break;
        }
        looked_at = Some(name.clone());
        let referrer = match entry {
            Source::Upstream(listed) => Some(Cow::Borrowed(listed)),
            Source::Local(digest) => {
                let (bytes, found) = describe(call, subject, &digest).await;
                read += bytes.max(LEAST_READ);
                found.map(Cow::Owned)
            }
        };
        let Some(referrer) = referrer else {
            continue;
        };
        let is_of_unknown_kind = match referrer.artifact_type.as_deref() {
            None | Some(EMPTY) => is_of_upstream,
            Some(_) => false,
        };
        if is_of_unknown_kind {
            filtered = false;
        } else if kind.is_some_and(|kind| referrer.artifact_type.as_deref() != Some(kind)) {
            continue;
        }
        let Ok(entry) = serde_json::to_string(&referrer) else {
            continue;
        };
        let full = manifests.len() >= limit || bytes + entry.len() > limits::REFERRERS_PAGE_BYTES;
        if full && !manifests.is_empty() {
            more = last;
            break;
        }
        bytes += entry.len();
        manifests.push(entry);
        last = Some(name);
    }
    if manifests.is_empty() && more.is_none() && !listed.known {
        let why = listed.warning.unwrap_or_default();
        return Err(Error::later(format!("the referrers are not known: {why}")));
    }
    let index = format!(
        r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[{}]}}"#,
        manifests.join(",")
    );
    let mut response = json(index, OCI_INDEX);
    if filtered {
        response.headers_mut().insert(
            "oci-filters-applied",
            HeaderValue::from_static("artifactType"),
        );
    }
    if let Some(why) = listed.warning {
        response
            .headers_mut()
            .append(header::WARNING, warning(&why));
    }
    if let Some(last) = more {
        let n = page.limit.map(|_| limit);
        let link = next_link(&list, subject, kind, n, &last);
        response.headers_mut().insert(header::LINK, value(&link));
    }
    Ok(response)
}

/// All entries by digest; a local manifest replaces the upstream's entry for it.
fn merge(listed: &Listed<Referrer>, local: Vec<Digest>) -> BTreeMap<String, Source<'_>> {
    let listed = listed.entries.iter();
    let listed = listed.map(|entry| (entry.digest.to_string(), Source::Upstream(entry)));
    let local = local.into_iter();
    let local = local.map(|digest| (digest.to_string(), Source::Local(digest)));
    listed.chain(local).collect()
}

/// Where the next page is, as a `Link` header says it.
fn next_link(
    list: &ListCall<'_>,
    subject: &Digest,
    kind: Option<&str>,
    limit: Option<usize>,
    last: &str,
) -> String {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    if let Some(kind) = kind {
        query.append_pair("artifactType", kind);
    }
    if let Some(limit) = limit {
        query.append_pair("n", &limit.to_string());
    }
    if let Some(namespace) = &list.namespace {
        query.append_pair("ns", namespace);
    }
    let query = query.append_pair("last", last).finish();
    let name = list.name;
    format!("</v2/{name}/referrers/{subject}?{query}>; rel=\"next\"")
}

/// The entry of one referrer, from the manifest itself, and the bytes that were read for it; the
/// index may be out of date.
async fn describe(call: Call<'_>, subject: &Digest, digest: &Digest) -> (u64, Option<Referrer>) {
    let Some(bytes) = call
        .api
        .store
        .manifest(call.repo, digest)
        .await
        .ok()
        .flatten()
    else {
        return (0, None);
    };
    let size = bytes.len() as u64;
    let manifest = Manifest::parse(&bytes).ok();
    let manifest = manifest.filter(|manifest| manifest.subject.as_ref() == Some(subject));
    let referrer = manifest.map(|manifest| Referrer {
        media_type: manifest.media_type.as_str().to_owned(),
        digest: digest.clone(),
        size,
        artifact_type: manifest.artifact_type,
        annotations: oci::annotations(&bytes),
    });
    (size, referrer)
}

/// The manifests listed under `<algorithm>-<hex>`, as clients keep them where there is no referrers
/// API.
async fn fallback(call: Call<'_>, subject: &Digest) -> Vec<Digest> {
    let Some(tag) = fallback_tag(subject) else {
        return Vec::new();
    };
    let Ok(Some((_, bytes))) = call.api.store.tagged_manifest(call.repo, &tag).await else {
        return Vec::new();
    };
    let listed = Manifest::parse(&bytes).map(|manifest| manifest.manifests);
    let listed = listed.unwrap_or_default().into_iter();
    listed.map(|child| child.digest).collect()
}

fn fallback_tag(subject: &Digest) -> Option<Tag> {
    let hex: String = subject.hex().chars().take(64).collect();
    Tag::parse(&format!("{}-{hex}", subject.algorithm())).ok()
}
