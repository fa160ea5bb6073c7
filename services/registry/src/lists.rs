//! Lists of tags and repositories, page by page. Pages are cut from what is there, never allocated by what the client asks for.

use holdfast_core::reference::RepositoryName;
use http::{Response, header};

use crate::{
    api::{Inner, json, value},
    body::Body,
    error::{Code, Error, Result},
    limits,
    route::Page,
};

/// end-8a, end-8b
pub(crate) async fn tags(api: &Inner, repo: &RepositoryName, page: Page) -> Result<Response<Body>> {
    let Some(tags) = api.store.tags(repo).await? else {
        return Err(Error::unknown(
            Code::NameUnknown,
            "the repository is not known here",
        ));
    };
    let (tags, more) = cut(tags.iter().map(AsRef::as_ref), &page, limits::TAGS_PAGE);
    let mut response = json(
        serde_json::json!({ "name": repo.as_str(), "tags": tags }).to_string(),
        "application/json",
    );
    link(
        &mut response,
        &format!("/v2/{repo}/tags/list"),
        &page,
        more.then(|| tags.last()).flatten(),
        limits::TAGS_PAGE,
    );
    Ok(response)
}

/// `/v2/_catalog`
pub(crate) async fn catalog(api: &Inner, page: Page) -> Result<Response<Body>> {
    if page.limit.is_some_and(|limit| limit > limits::CATALOG_PAGE) {
        return Err(Error::invalid(
            Code::PaginationNumberInvalid,
            format!("a page has at most {} repositories", limits::CATALOG_PAGE),
        ));
    }
    let repositories = api.store.repositories().await?;
    let (names, more) = cut(
        repositories.iter().map(AsRef::as_ref),
        &page,
        limits::CATALOG_PAGE,
    );
    let mut response = json(
        serde_json::json!({ "repositories": names }).to_string(),
        "application/json",
    );
    link(
        &mut response,
        "/v2/_catalog",
        &page,
        more.then(|| names.last()).flatten(),
        limits::CATALOG_PAGE,
    );
    Ok(response)
}

/// The page of a sorted list, and whether there is more.
fn cut<'a>(names: impl Iterator<Item = &'a str>, page: &Page, most: usize) -> (Vec<&'a str>, bool) {
    let limit = page.limit.unwrap_or(most).min(most);
    let mut rest = names.skip_while(|name| page.last.as_deref().is_some_and(|last| *name <= last));
    let names: Vec<_> = rest.by_ref().take(limit).collect();
    let more = limit > 0 && rest.next().is_some();
    (names, more)
}

fn link(response: &mut Response<Body>, path: &str, page: &Page, last: Option<&&str>, most: usize) {
    if let Some(last) = last {
        let query = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("n", &page.limit.unwrap_or(most).min(most).to_string())
            .append_pair("last", last)
            .finish();
        response.headers_mut().insert(
            header::LINK,
            value(&format!("<{path}?{query}>; rel=\"next\"")),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(limit: Option<usize>, last: Option<&str>, expect: &[&str], more: bool) {
        let page = Page {
            limit,
            last: last.map(ToOwned::to_owned),
        };
        assert_eq!(
            cut(["a", "b", "d"].into_iter(), &page, 100),
            (expect.to_vec(), more),
            "{page:?}"
        );
    }

    #[test]
    fn pages_are_cut_as_the_specification_says() {
        check(None, None, &["a", "b", "d"], false);
        check(Some(0), None, &[], false);
        check(Some(2), None, &["a", "b"], true);
        check(Some(3), None, &["a", "b", "d"], false);
        check(Some(usize::MAX), None, &["a", "b", "d"], false);
        check(Some(2), Some("b"), &["d"], false);
        check(Some(1), Some("aa"), &["b"], true);
        check(Some(1), Some("z"), &[], false);
    }
}
