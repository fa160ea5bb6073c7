//! Lists, page by page: what is read of them, and where the next page is.

use holdfast_core::{Digest, Tag};
use http::{Method, header};
use reqwest::Response;
use serde::{Deserialize, de::IgnoredAny};
use url::Url;

use super::{Endpoint, ask::Call};
use crate::upstream::{
    Error, Result, Source,
    lists::{MAX_BYTES, MAX_PAGES, MAX_REFERRERS, MAX_TAGS, Pages, Referrer},
};

/// Tags that a page is asked for: what every registry gives.
const PAGE: &str = "n=1000";

#[derive(Deserialize)]
struct TagPage {
    /// `null` where there are none.
    tags: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    #[serde(rename = "schemaVersion")]
    _schema_version: IgnoredAny,
    manifests: Option<Vec<serde_json::Value>>,
}

impl Endpoint {
    /// All tags of a repository. Names that no tag can have are left out.
    pub(in crate::upstream) async fn tags(&self, source: &Source) -> Result<Pages<Tag>> {
        let take = |bytes: &[u8], found: &mut Vec<Tag>| {
            let page: TagPage = serde_json::from_slice(bytes).map_err(|_| no_list())?;
            let tags = page.tags.unwrap_or_default();
            found.extend(tags.iter().filter_map(|tag| Tag::parse(tag).ok()));
            Ok(())
        };
        self.pages(source, "tags/list", Some(PAGE), MAX_TAGS, take)
            .await
    }

    /// Who refers to a manifest, by the API, or by the tag that clients keep where a registry has none (the referrers tag
    /// schema of the OCI specification).
    pub(in crate::upstream) async fn referrers(
        &self,
        source: &Source,
        subject: &Digest,
    ) -> Result<Pages<Referrer>> {
        let take = |bytes: &[u8], found: &mut Vec<Referrer>| {
            let index: Index = serde_json::from_slice(bytes).map_err(|_| no_list())?;
            let entries = index.manifests.ok_or_else(no_list)?.into_iter();
            found.extend(entries.filter_map(|entry| serde_json::from_value(entry).ok()));
            Ok(())
        };
        let path = format!("referrers/{subject}");
        let found = self.pages(source, &path, None, MAX_REFERRERS, take).await;
        // Registries without this API say so in many ways.
        if !matches!(found, Err(Error::NotFound | Error::Invalid(_))) {
            return found;
        }
        let hex: String = subject.hex().chars().take(64).collect();
        let path = format!("manifests/{}-{hex}", subject.algorithm());
        match self.pages(source, &path, None, MAX_REFERRERS, take).await {
            Err(Error::NotFound) => Ok(Pages::default()),
            found => found,
        }
    }

    /// Reads the pages of a list until there is no next one, or a bound is reached.
    async fn pages<T>(
        &self,
        source: &Source,
        path: &str,
        query: Option<&str>,
        most: usize,
        take: impl Fn(&[u8], &mut Vec<T>) -> Result<()>,
    ) -> Result<Pages<T>> {
        let (mut entries, mut bytes) = (Vec::new(), 0);
        let mut query = query.map(str::to_owned);
        for _ in 0..MAX_PAGES {
            let call = Call {
                query: query.as_deref(),
                ..Call::new(source, Method::GET, path)
            };
            let mut response = self.ask(&call).await?;
            let next = next_query(&response);
            let page = self
                .read(&call, &mut response, MAX_BYTES.saturating_sub(bytes))
                .await?;
            bytes += page.len();
            take(&page, &mut entries)?;
            let complete = next.is_none() && entries.len() <= most;
            if complete || entries.len() >= most || next == query {
                entries.truncate(most);
                return Ok(Pages { entries, complete });
            }
            query = next;
        }
        let complete = false;
        Ok(Pages { entries, complete })
    }
}

fn no_list() -> Error {
    Error::Invalid("what came as a list is none".to_owned())
}

/// The query of the page that the answer's `Link` calls the next one. Only the query: a page of the same list is at the same
/// place, whatever else the link says.
fn next_query(response: &Response) -> Option<String> {
    let links = response.headers().get_all(header::LINK);
    links
        .iter()
        .filter_map(|value| value.to_str().ok())
        .find_map(|value| next_of(value, response.url()))
}

fn next_of(value: &str, base: &Url) -> Option<String> {
    value.split('<').skip(1).find_map(|link| {
        let (target, parameters) = link.split_once('>')?;
        let is_next = parameters
            .split([';', ','])
            .any(|part| matches!(part.trim(), "rel=\"next\"" | "rel=next"));
        let url = base.join(target).ok().filter(|_| is_next)?;
        url.query().map(str::to_owned)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_read_for_its_query() {
        let base: Url = "https://a.example/v2/team/app/tags/list?n=2"
            .parse()
            .unwrap();
        for (value, expect) in [
            (
                "</v2/team/app/tags/list?n=2&last=b>; rel=\"next\"",
                Some("n=2&last=b"),
            ),
            ("<?last=b>; rel=next", Some("last=b")),
            (
                "<https://other.example/v2/x?last=b>; rel=\"next\"",
                Some("last=b"),
            ),
            (
                "</first>; rel=\"first\", </v2/team/app/tags/list?last=c>; rel=\"next\"",
                Some("last=c"),
            ),
            ("</v2/team/app/tags/list?last=b>; rel=\"prev\"", None),
            ("</v2/team/app/tags/list>; rel=\"next\"", None),
            ("nonsense", None),
            ("", None),
        ] {
            assert_eq!(next_of(value, &base).as_deref(), expect, "{value}");
        }
    }
}
