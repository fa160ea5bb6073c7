//! Lists of tags and repositories, page by page. The store cuts the pages; nothing is allocated by what the client asks for.

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
    let limit = page
        .limit
        .unwrap_or(limits::TAGS_PAGE)
        .min(limits::TAGS_PAGE);
    let found = api.store.tags_page(repo, page.last, limit).await?;
    let Some((tags, more)) = found else {
        return Err(Error::unknown(
            Code::NameUnknown,
            "the repository is not known here",
        ));
    };
    let tags: Vec<&str> = tags.iter().map(AsRef::as_ref).collect();
    let mut response = json(
        serde_json::json!({ "name": repo.as_str(), "tags": tags }).to_string(),
        "application/json",
    );
    link(
        &mut response,
        &format!("/v2/{repo}/tags/list"),
        limit,
        more.then(|| tags.last()).flatten(),
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
    let limit = page.limit.unwrap_or(limits::CATALOG_PAGE);
    let (names, more) = api.store.repositories_page(page.last, limit).await?;
    let names: Vec<&str> = names.iter().map(AsRef::as_ref).collect();
    let mut response = json(
        serde_json::json!({ "repositories": names }).to_string(),
        "application/json",
    );
    link(
        &mut response,
        "/v2/_catalog",
        limit,
        more.then(|| names.last()).flatten(),
    );
    Ok(response)
}

fn link(response: &mut Response<Body>, path: &str, limit: usize, last: Option<&&str>) {
    if let Some(last) = last {
        let query = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("n", &limit.to_string())
            .append_pair("last", last)
            .finish();
        response.headers_mut().insert(
            header::LINK,
            value(&format!("<{path}?{query}>; rel=\"next\"")),
        );
    }
}
