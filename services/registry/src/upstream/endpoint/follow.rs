//! Requests with their redirects by hand: who sees the authorisation, and where an answer may send us.

use http::{Method, header};
use reqwest::{Client, Response};
use url::Url;

use super::{Endpoint, text};
use crate::upstream::{
    Error, Result,
    client::{Use, cause, client},
    reach::{self, Reach},
    settings::MAX_REDIRECTS,
};

const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json, */*;q=0.1";

impl Endpoint {
    /// Sends a request and follows its redirects; only requests to this endpoint's own origin carry authorisation.
    pub(super) async fn follow(
        &self,
        method: &Method,
        url: &Url,
        authorisation: Option<String>,
        offset: Option<u64>,
    ) -> Result<Response> {
        // A name is judged when it is resolved, an address here.
        if self.settings.is_none() && !Reach::of_anybody().allows_url(url) {
            return Err(Error::Invalid(
                "an image's host may not be this machine or its link".to_owned(),
            ));
        }
        let mut url = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let own = url.origin() == self.url.origin();
            let client = if own {
                &self.client
            } else {
                &self.guarded_for(&url).await?.1
            };
            let mut request = client
                .request(method.clone(), url.clone())
                .header(header::ACCEPT, ACCEPT)
                .header(header::ACCEPT_ENCODING, "identity");
            if let Some(value) = authorisation.as_ref().filter(|_| own) {
                request = request.header(header::AUTHORIZATION, value);
            }
            if let Some(offset) = offset {
                request = request.header(header::RANGE, format!("bytes={offset}-"));
            }
            let response = self.send(request).await?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(response);
            }
            let location = text(&response, header::LOCATION)
                .ok_or_else(|| Error::Invalid("a redirect without a location".to_owned()))?;
            let next = url
                .join(&location)
                .map_err(|_| Error::Invalid("a redirect to no URL".to_owned()))?;
            if url.scheme() == "https" && next.scheme() != "https" {
                return Err(Error::Invalid("a redirect away from TLS".to_owned()));
            }
            url = next;
        }
        Err(Error::Invalid("too many redirects".to_owned()))
    }

    pub(super) async fn send(&self, request: reqwest::RequestBuilder) -> Result<Response> {
        match tokio::time::timeout(self.timeouts.headers, request.send()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(self.broke(&cause(&error))),
            Err(_) => Err(self.broke("no answer in time")),
        }
    }

    /// The client for other origins, when `url` may be reached at all.
    pub(super) async fn guarded_for(&self, url: &Url) -> Result<&(Reach, Client)> {
        let guarded = self
            .guarded
            .get_or_try_init(|| async {
                let private = self
                    .settings
                    .as_ref()
                    .is_some_and(|settings| settings.allow_private_redirects);
                let mut reach = Reach::of(reach::addresses(&self.url).await, private);
                if self.settings.is_none() {
                    reach = reach.within(Reach::of_anybody());
                }
                let client = client(
                    &self.url,
                    self.settings.as_ref(),
                    &self.proxies,
                    self.timeouts,
                    Use::Elsewhere(reach),
                );
                Ok::<_, Error>((reach, client.map_err(Error::Settings)?))
            })
            .await?;
        let refused = || {
            Err(Error::Invalid(
                "a redirect to an address that may not be reached".to_owned(),
            ))
        };
        if !guarded.0.allows_url(url) {
            return refused();
        }
        // Behind a proxy the proxy resolves the name: what we can resolve ourselves is judged beforehand.
        if self.proxies.of(url).is_some() {
            let found = reach::addresses(url).await;
            if found.iter().any(|address| !guarded.0.allows(*address)) {
                return refused();
            }
        }
        Ok(guarded)
    }
}
