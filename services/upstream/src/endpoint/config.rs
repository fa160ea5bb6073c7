//! The fixed facts about an endpoint: its URL, whose it is, and what the settings say about it.

use holdfast_config::UpstreamSettings;
use holdfast_core::RepositoryName;
use url::Url;

use super::call::Call;
use crate::{Error, Result, Timeouts};

/// The fixed facts about an endpoint.
pub(super) struct EndpointConfig {
    pub(super) url: Url,
    /// Where its API begins: ends in `/v2/`.
    pub(super) root: Url,
    /// The prefix of the names of its repositories: empty, or with a slash at its end.
    prefix: String,
    /// Whether it is the upstream itself: credentials of pull secrets are never for its mirrors.
    pub(super) is_own: bool,
    /// The settings of its upstream; `None` where only an image names it.
    pub(super) settings: Option<UpstreamSettings>,
    pub(super) timeouts: Timeouts,
    /// The upstream's name in metrics.
    pub(super) label: String,
}

impl EndpointConfig {
    /// The facts about the endpoint at `url`.
    ///
    /// # Errors
    /// [`Error::Settings`] when the URL does not parse.
    pub(super) fn new(
        url: &str,
        is_own: bool,
        settings: Option<UpstreamSettings>,
        timeouts: Timeouts,
        label: String,
    ) -> Result<Self> {
        let parsed = Url::parse(url).map_err(|error| Error::Settings(format!("{url}: {error}")))?;
        let (root, prefix) = api_root(&parsed);
        Ok(Self {
            url: parsed,
            root,
            prefix,
            is_own,
            settings,
            timeouts,
            label,
        })
    }

    /// Whether the settings list its upstream.
    pub(super) fn is_listed(&self) -> bool {
        self.settings.is_some()
    }

    /// The name of a repository at the endpoint.
    pub(super) fn path_of(&self, repository: &RepositoryName) -> String {
        format!("{}{repository}", self.prefix)
    }

    /// The URL of a request.
    pub(super) fn url_of(&self, call: &Call<'_>) -> Url {
        let repository = self.path_of(&call.source.repository);
        let mut url = self.root.clone();
        url.set_path(&format!("{}{repository}/{}", self.root.path(), call.path));
        url.set_query(call.query);
        url
    }
}

/// Where an endpoint's API begins, and what stands before the names of its repositories. An
/// endpoint's path lies before `/v2/` (Artifactory), unless it holds that part itself
/// (`https://harbor.example/v2/hub-cache`, a proxy project of Harbor).
fn api_root(endpoint: &Url) -> (Url, String) {
    let path = endpoint.path().trim_end_matches('/');
    let parts: Vec<&str> = path.split('/').collect();
    let (before, behind) = match parts.iter().position(|part| *part == "v2") {
        Some(at) => (&parts[..at], &parts[at + 1..]),
        None => (&parts[..], &[][..]),
    };
    let mut root = endpoint.clone();
    root.set_path(&format!("{}/v2/", before.join("/")));
    let mut prefix = behind.join("/");
    if !prefix.is_empty() {
        prefix.push('/');
    }
    (root, prefix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoints_path_holds_the_version_once() {
        for (endpoint, root, prefix) in [
            ("https://a.example", "https://a.example/v2/", ""),
            ("https://a.example/", "https://a.example/v2/", ""),
            ("https://a.example/v2", "https://a.example/v2/", ""),
            ("https://a.example/v2/", "https://a.example/v2/", ""),
            (
                "https://harbor.example/v2/hub-cache",
                "https://harbor.example/v2/",
                "hub-cache/",
            ),
            (
                "https://harbor.example:8443/v2/cache/hub/",
                "https://harbor.example:8443/v2/",
                "cache/hub/",
            ),
            (
                "https://a.example/artifactory/api/docker/hub",
                "https://a.example/artifactory/api/docker/hub/v2/",
                "",
            ),
            (
                "https://a.example/artifactory/v2/hub",
                "https://a.example/artifactory/v2/",
                "hub/",
            ),
        ] {
            let (found, before) = api_root(&endpoint.parse().unwrap());
            assert_eq!(
                (found.as_str(), before.as_str()),
                (root, prefix),
                "{endpoint}"
            );
        }
    }
}
