//! Who refers to a manifest: our index, and what clients of registries without this API kept under a fallback tag.

use std::collections::BTreeMap;

use holdfast_core::{
    digest::Digest,
    reference::{RepositoryName, Tag},
};
use http::{HeaderValue, Response, header};

use crate::{
    api::{Inner, json, value},
    body::Body,
    content::{self, Descriptor, OCI_INDEX},
    error::Result,
    limits,
    route::Page,
};

/// end-12a, end-12b: never "not found", whatever the repository.
pub(crate) async fn list(
    api: &Inner,
    repo: &RepositoryName,
    subject: &Digest,
    kind: Option<&str>,
    page: Page,
) -> Result<Response<Body>> {
    let mut found = BTreeMap::new();
    for digest in api.store.referrers(repo, subject).await? {
        found.insert(digest.to_string(), digest);
    }
    for digest in fallback(api, repo, subject).await? {
        found.insert(digest.to_string(), digest);
    }
    let limit = page
        .limit
        .filter(|limit| *limit > 0)
        .unwrap_or(limits::REFERRERS_PAGE)
        .min(limits::REFERRERS_PAGE);
    let mut manifests: Vec<String> = Vec::new();
    let mut bytes = 0;
    let mut last = None;
    let mut more = None;
    for (name, digest) in found {
        if page.last.as_ref().is_some_and(|last| name <= *last) {
            continue;
        }
        let Some(descriptor) = describe(api, repo, subject, &digest).await else {
            continue;
        };
        if kind.is_some_and(|kind| descriptor.artifact_type.as_deref() != Some(kind)) {
            continue;
        }
        let Ok(entry) = serde_json::to_string(&descriptor) else {
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
    let index = format!(
        r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[{}]}}"#,
        manifests.join(",")
    );
    let mut response = json(index, OCI_INDEX);
    if kind.is_some() {
        response.headers_mut().insert(
            "oci-filters-applied",
            HeaderValue::from_static("artifactType"),
        );
    }
    if let Some(last) = more {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        if let Some(kind) = kind {
            query.append_pair("artifactType", kind);
        }
        if page.limit.is_some() {
            query.append_pair("n", &limit.to_string());
        }
        let query = query.append_pair("last", &last).finish();
        response.headers_mut().insert(
            header::LINK,
            value(&format!(
                "</v2/{repo}/referrers/{subject}?{query}>; rel=\"next\""
            )),
        );
    }
    Ok(response)
}

/// The entry of one referrer, from the manifest itself; the index may be out of date.
async fn describe(
    api: &Inner,
    repo: &RepositoryName,
    subject: &Digest,
    digest: &Digest,
) -> Option<Descriptor> {
    let bytes = api.store.manifest(repo, digest).await.ok().flatten()?;
    let content = content::parse(&bytes, None).ok()?;
    (content.subject.as_ref() == Some(subject)).then(|| Descriptor {
        media_type: content.media_type,
        digest: digest.clone(),
        size: bytes.len() as u64,
        urls: Vec::new(),
        artifact_type: content.artifact_type,
        annotations: content.annotations,
    })
}

/// The manifests listed under `<algorithm>-<hex>`, as clients keep them where there is no referrers API.
async fn fallback(api: &Inner, repo: &RepositoryName, subject: &Digest) -> Result<Vec<Digest>> {
    let Some(tag) = fallback_tag(subject) else {
        return Ok(Vec::new());
    };
    let Ok(Some((_, bytes))) = api.store.tagged_manifest(repo, &tag).await else {
        return Ok(Vec::new());
    };
    Ok(content::parse(&bytes, None)
        .map(|content| content.manifests)
        .unwrap_or_default())
}

fn fallback_tag(subject: &Digest) -> Option<Tag> {
    let hex: String = subject.hex().chars().take(64).collect();
    Tag::parse(&format!("{}-{hex}", subject.algorithm())).ok()
}
