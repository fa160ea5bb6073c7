//! Lists of tags and repositories, page by page. The store cuts the pages; nothing is allocated by
//! what the client asks for.

use bytes::Bytes;
use holdfast_core::{
    Host, Tag,
    reference::RepositoryName,
    rewrite::{local_repository, upstream_of},
};
use holdfast_store::Store;
use http::{Response, header};

use crate::{
    call::ListCall,
    error::{Code, Error, Result},
    limits,
    response::{json, value, warning},
    route::Page,
};

/// Tags of a page at most.
pub(crate) fn tags_limit(page: &Page) -> usize {
    page.limit
        .unwrap_or(limits::TAGS_PAGE)
        .min(limits::TAGS_PAGE)
}

/// Repositories of a page at most.
///
/// # Errors
/// When the client asks for more than a page may have.
pub(crate) fn catalog_limit(page: &Page) -> Result<usize> {
    if page.limit.is_some_and(|limit| limit > limits::CATALOG_PAGE) {
        return Err(Error::invalid(
            Code::PaginationNumberInvalid,
            format!("a page has at most {} repositories", limits::CATALOG_PAGE),
        ));
    }
    Ok(page.limit.unwrap_or(limits::CATALOG_PAGE))
}

/// Bytes that a list of this many names of this many bytes takes at most while it is made: the
/// names, and the text.
pub(crate) fn most(names: usize, bytes: usize) -> u64 {
    const MARKS: usize = 3;
    2 * names as u64 * (bytes + MARKS) as u64
}

/// end-8a, end-8b. Of a repository that is copied from an upstream, the upstream's tags are among
/// them.
pub(crate) async fn tags(list: ListCall<'_>) -> Result<Response<Bytes>> {
    let (repo, page) = (list.call.repo, list.page);
    let limit = tags_limit(page);
    let listed = match list.call.source() {
        Some(source) => Some(source.tags(repo).await),
        None => None,
    };
    let found = list.store.tags_page(repo, page.last.clone(), limit).await?;
    let (local, more) = match (found, &listed) {
        (Some(found), _) => found,
        // What is not here may be there.
        (None, Some(listed)) if !listed.known || !listed.entries.is_empty() => (Vec::new(), false),
        (None, _) => {
            return Err(Error::unknown(
                Code::NameUnknown,
                "the repository is not known here",
            ));
        }
    };
    let why = listed.as_ref().and_then(|listed| listed.warning.clone());
    let known = listed.as_ref().is_none_or(|listed| listed.known);
    let theirs = listed.map(|listed| listed.entries).unwrap_or_default();
    let (tags, more) = merge(local, more, &theirs, page.last.as_deref(), limit);
    if tags.is_empty() && limit > 0 && !known && page.last.is_none() {
        // The repository is here, and none of its tags yet.
        return Err(Error::later(why.unwrap_or_default()));
    }
    let tags: Vec<&str> = tags.iter().map(AsRef::as_ref).collect();
    let mut response = json(
        serde_json::json!({ "name": list.name.as_str(), "tags": tags }).to_string(),
        "application/json",
    );
    link(
        &mut response,
        &format!("/v2/{}/tags/list", list.name),
        list.namespace.as_deref(),
        limit,
        more.then(|| tags.last()).flatten(),
    );
    if let Some(why) = why {
        response
            .headers_mut()
            .append(header::WARNING, warning(&why));
    }
    Ok(response)
}

/// One page of two lists in order: `local` is a page already, `theirs` is everything.
fn merge(
    local: Vec<Tag>,
    more: bool,
    theirs: &[Tag],
    last: Option<&str>,
    limit: usize,
) -> (Vec<Tag>, bool) {
    let is_behind = |tag: &Tag| last.is_none_or(|last| tag.as_str() > last);
    // Behind the last local tag of a page that is not the end there may be further ones of ours.
    let end = more.then(|| local.last().cloned()).flatten();
    let fits = |tag: &Tag| end.as_ref().is_none_or(|end| tag.as_str() <= end.as_str());
    let theirs = theirs.iter().filter(|tag| is_behind(tag));
    let (theirs, beyond): (Vec<&Tag>, Vec<&Tag>) = theirs.partition(|tag| fits(tag));
    let mut all: Vec<&Tag> = theirs.into_iter().chain(&local).collect();
    all.sort_by(|one, other| one.as_str().cmp(other.as_str()));
    all.dedup();
    let more = more || !beyond.is_empty() || all.len() > limit;
    all.truncate(limit);
    (all.into_iter().cloned().collect(), more)
}

/// `/v2/_catalog`. In a mirror of one upstream a name means that upstream's repository, and names
/// are listed so.
pub(crate) async fn catalog(
    store: &Store,
    mirror_of: Option<&Host>,
    page: &Page,
) -> Result<Response<Bytes>> {
    let limit = catalog_limit(page)?;
    let last = page.last.clone();
    let (names, more) = match mirror_of {
        None => {
            let (names, more) = store.repositories_page(last, limit).await?;
            (names.iter().map(ToString::to_string).collect(), more)
        }
        Some(host) => mirrored(store, host, last, limit).await?,
    };
    let mut response = json(
        serde_json::json!({ "repositories": names }).to_string(),
        "application/json",
    );
    let last = more.then(|| names.last()).flatten();
    link(
        &mut response,
        "/v2/_catalog",
        None,
        limit,
        last.map(String::as_str).as_ref(),
    );
    Ok(response)
}

/// The repositories of one upstream, by their names there.
async fn mirrored(
    store: &Store,
    host: &Host,
    last: Option<String>,
    limit: usize,
) -> Result<(Vec<String>, bool)> {
    // Any repository's local name begins with the upstream's.
    let Some(some) = RepositoryName::parse("a")
        .ok()
        .and_then(|name| local_repository(host, &name))
    else {
        return Ok((Vec::new(), false));
    };
    let prefix = some.as_str().trim_end_matches('a').to_owned();
    let from = format!("{prefix}{}", last.unwrap_or_default());
    let (names, more) = store.repositories_page(Some(from), limit).await?;
    let of_host = |name: &&RepositoryName| name.as_str().starts_with(&prefix);
    let found: Vec<String> = names
        .iter()
        .take_while(of_host)
        .filter_map(|name| upstream_of(name).map(|(_, name)| name.to_string()))
        .collect();
    let more = more && names.iter().all(|name| of_host(&name));
    Ok((found, more))
}

fn link(
    response: &mut Response<Bytes>,
    path: &str,
    namespace: Option<&str>,
    limit: usize,
    last: Option<&&str>,
) {
    if let Some(last) = last {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        query
            .append_pair("n", &limit.to_string())
            .append_pair("last", last);
        if let Some(namespace) = namespace {
            query.append_pair("ns", namespace);
        }
        let query = query.finish();
        response.headers_mut().insert(
            header::LINK,
            value(&format!("<{path}?{query}>; rel=\"next\"")),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_two_lists_come_in_order_and_miss_nothing() {
        let tags = |names: &[&str]| -> Vec<Tag> {
            names.iter().map(|name| Tag::parse(name).unwrap()).collect()
        };
        for (local, theirs) in [
            (&["a", "c", "e", "g"][..], &["b", "c", "f", "h"][..]),
            (&["a", "b"], &[]),
            (&[], &["b", "a", "B"]),
            (&["x", "y", "z"], &["a", "b", "c"]),
            (&["a", "b", "c"], &["x", "y", "z"]),
        ] {
            let mut all: Vec<&str> = local.iter().chain(theirs).copied().collect();
            all.sort_unstable();
            all.dedup();
            for limit in 1..=9 {
                let (mut found, mut last): (Vec<String>, Option<String>) = (Vec::new(), None);
                loop {
                    let behind = |name: &&str| last.as_deref().is_none_or(|last| *name > last);
                    let ours: Vec<&str> = local.iter().copied().filter(behind).collect();
                    let page = tags(&ours[..ours.len().min(limit)]);
                    let more = ours.len() > limit;
                    let (page, more) = merge(page, more, &tags(theirs), last.as_deref(), limit);
                    assert!(page.len() <= limit && (!page.is_empty() || !more));
                    found.extend(page.iter().map(ToString::to_string));
                    last = found.last().cloned();
                    if !more {
                        break;
                    }
                }
                assert_eq!(found, all, "{local:?} {theirs:?} by {limit}");
            }
        }
    }
}
