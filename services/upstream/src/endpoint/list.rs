//! Lists, page by page: what is read of a page, and where the next one is.

use bytes::Bytes;
use holdfast_core::{Digest, Tag};
use http::{Method, header};
use reqwest::Response;
use url::Url;

use super::{Endpoint, call::Call, headers::text, too_slow};
use crate::{
    Error, Result, UpstreamRepository,
    entries::{Collected, Entry},
    limits::UPSTREAM_LIST_BYTES,
    lists::{MAX_BYTES, MAX_PAGES, Pages, Referrer},
};

/// Tags that are requested per page: a number that every registry accepts.
const PAGE: &str = "n=1000";

impl Endpoint {
    /// All tags of a repository. Names that no tag can have are left out.
    pub(crate) async fn tags(&self, source: &UpstreamRepository) -> Result<Pages<Tag>> {
        let call = Call {
            query: Some(PAGE),
            ..Call::new(source, Method::GET, "tags/list")
        };
        let first = self.api.request(&call).await?;
        Box::pin(self.pages(&call, first)).await
    }

    /// Who refers to a manifest, by the API, or by the tag that clients keep where a registry has
    /// none (the referrers tag schema of the OCI specification).
    pub(crate) async fn referrers(
        &self,
        source: &UpstreamRepository,
        subject: &Digest,
    ) -> Result<Pages<Referrer>> {
        let path = format!("referrers/{subject}");
        let call = Call::new(source, Method::GET, &path);
        let mut unread = None;
        match self.api.request(&call).await {
            Ok(first) => {
                let is_json = text(&first, header::CONTENT_TYPE)
                    .is_some_and(|text| text.to_ascii_lowercase().contains("json"));
                match Box::pin(self.pages(&call, first)).await {
                    // A page of something else, from a registry without this API.
                    Err(Error::Invalid(what)) if !is_json => unread = Some(Error::Invalid(what)),
                    found => return found,
                }
            }
            // Registries without this API say so by many statuses.
            Err(Error::NotFound | Error::Invalid(_)) => {}
            Err(error) => return Err(error),
        }
        let hex: String = subject.hex().chars().take(64).collect();
        let path = format!("manifests/{}-{hex}", subject.algorithm());
        let call = Call::new(source, Method::GET, &path);
        match (self.api.request(&call).await, unread) {
            (Ok(first), _) => Box::pin(self.pages(&call, first)).await,
            // A list that cannot be read is not an empty list.
            (Err(Error::NotFound), Some(unread)) => Err(unread),
            // Any web server answers so, and the requester is not to learn that there is one.
            (Err(Error::NotFound), None) if !self.disclosure.is_confidential() => {
                Ok(Pages::default())
            }
            (Err(error), _) => Err(error),
        }
    }

    /// Reads a list that begins with the answer to `call` within the memory of manifests: one page
    /// at a time, and what is kept of all.
    async fn pages<T: Entry>(&self, call: &Call<'_>, response: Response) -> Result<Pages<T>> {
        let is_last = next_query(&response).is_none();
        let length = response.content_length().filter(|_| is_last);
        let page = length.map_or(MAX_BYTES as u64, |length| length.min(MAX_BYTES as u64));
        let most = page + UPSTREAM_LIST_BYTES as u64;
        let mut taken = Collected::default();
        let read = async {
            self.read_pages(call, response, &mut taken).await?;
            Ok::<_, Error>(Bytes::new())
        };
        let host = call.source.host.to_string();
        Box::pin(self.memory.hold(&host, most, too_slow, read)).await?;
        Ok(taken.into())
    }

    /// Reads the pages of a list until there is no next one, or a bound is reached.
    async fn read_pages<T: Entry>(
        &self,
        first: &Call<'_>,
        mut response: Response,
        taken: &mut Collected<T>,
    ) -> Result<()> {
        let mut query = first.query.map(str::to_owned);
        let mut bytes = 0;
        for number in 1..=MAX_PAGES {
            let next = next_query(&response);
            let call = Call {
                query: query.as_deref(),
                ..Call::new(first.source, Method::GET, first.path)
            };
            let left = MAX_BYTES.saturating_sub(bytes);
            let page = match self.transport.read(&call, &mut response, left).await {
                // More than all pages together may have.
                Err(Error::Invalid(_)) if number > 1 => {
                    taken.cut();
                    break;
                }
                page => page?,
            };
            bytes += page.len();
            taken.read(&page)?;
            drop(page);
            if next.is_none() {
                break;
            }
            if number == MAX_PAGES || taken.is_full() || next == query {
                taken.cut();
                break;
            }
            query = next;
            let call = Call {
                query: query.as_deref(),
                ..Call::new(first.source, Method::GET, first.path)
            };
            response = self.api.request(&call).await?;
        }
        Ok(())
    }
}

/// The query of the page that the answer's `Link` calls the next one. Only the query: a page of the
/// same list is at the same place, whatever else the link says.
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
