//! The distribution API of the registry, as far as deletions need it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context as _, bail};
use holdfast_core::Tag;
use holdfast_core::digest::Digest;
use holdfast_core::oci::{ACCEPT, Manifest};
use holdfast_core::reference::RepositoryName;
use reqwest::{Method, Response, StatusCode, header};
use serde_json::Value;

use super::plan::{Repository, Stored};

/// How long one answer may take.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Characters of an error's body that are shown.
const SHOWN_BODY: usize = 300;

/// A registry and a credential for it.
pub(super) struct Registry {
    http: reqwest::Client,
    /// `https://10.96.0.50`
    url: String,
    login: Option<(String, String)>,
}

impl Registry {
    /// A client that trusts the CAs in `ca` (PEM) only.
    pub(super) fn new(
        url: &str,
        ca: Option<&[u8]>,
        login: Option<(String, String)>,
    ) -> anyhow::Result<Self> {
        let mut builder = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(TIMEOUT);
        if let Some(pem) = ca {
            let roots = reqwest::Certificate::from_pem_bundle(pem)
                .context("the CA of the registry is not PEM")?;
            builder = builder.tls_certs_only(roots);
        }
        Ok(Self {
            http: builder.build()?,
            url: url.trim_end_matches('/').to_owned(),
            login,
        })
    }

    async fn send(&self, method: Method, path: &str) -> anyhow::Result<Option<Response>> {
        let url = format!("{}{path}", self.url);
        let mut request = self.http.request(method.clone(), &url);
        request = request.header(header::ACCEPT, ACCEPT);
        if let Some((username, password)) = &self.login {
            request = request.basic_auth(username, Some(password));
        }
        let response = request
            .send()
            .await
            .with_context(|| format!("{} cannot be reached", self.url))?;
        let status = response.status();
        if status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        if status.is_success() {
            return Ok(Some(response));
        }
        let body: String = response.text().await.unwrap_or_default();
        let body: String = body.chars().take(SHOWN_BODY).collect();
        match status {
            StatusCode::UNAUTHORIZED => bail!(
                "{} refuses the credential (401); give --username and --password-stdin, or run \
                 docker login",
                self.url
            ),
            StatusCode::FORBIDDEN => bail!(
                "{method} {path}: {status}: {body}; the user needs the actions pull and delete \
                 (registry.access.rules)"
            ),
            _ => bail!("{method} {path}: {status}: {body}"),
        }
    }

    /// Every element of a list of names, page by page.
    async fn list(&self, path: &str, key: &str) -> anyhow::Result<Vec<String>> {
        let mut found = Vec::new();
        let mut next = Some(path.to_owned());
        while let Some(path) = next {
            let Some(response) = self.send(Method::GET, &path).await? else {
                break;
            };
            next = next_page(response.headers());
            let page: Value = response.json().await?;
            let names = page.get(key).and_then(Value::as_array);
            let names = names.into_iter().flatten().filter_map(Value::as_str);
            found.extend(names.map(str::to_owned));
        }
        Ok(found)
    }

    /// The names of all repositories.
    pub(super) async fn repositories(&self) -> anyhow::Result<Vec<RepositoryName>> {
        let names = self.list("/v2/_catalog", "repositories").await?;
        Ok(names
            .iter()
            .filter_map(|name| RepositoryName::parse(name).ok())
            .collect())
    }

    /// The tags of a repository with their manifests.
    pub(super) async fn repository(&self, name: &RepositoryName) -> anyhow::Result<Repository> {
        let mut tags = BTreeMap::new();
        for text in self.list(&format!("/v2/{name}/tags/list"), "tags").await? {
            let Ok(tag) = Tag::parse(&text) else { continue };
            if let Some(stored) = self.manifest(name, &text).await? {
                tags.insert(tag, stored);
            }
        }
        Ok(Repository {
            name: name.clone(),
            tags,
            by_digest: BTreeMap::new(),
        })
    }

    /// A manifest by tag or digest; `None` if there is none.
    pub(super) async fn manifest(
        &self,
        repository: &RepositoryName,
        target: &str,
    ) -> anyhow::Result<Option<Stored>> {
        let path = format!("/v2/{repository}/manifests/{target}");
        let Some(response) = self.send(Method::GET, &path).await? else {
            return Ok(None);
        };
        let digest = response.headers().get("docker-content-digest");
        let digest = digest
            .and_then(|digest| Digest::parse(digest.to_str().ok()?).ok())
            .with_context(|| format!("{path}: the answer has no digest"))?;
        let bytes = response.bytes().await?;
        let children: BTreeSet<Digest> = Manifest::parse(&bytes)
            .map(|manifest| manifest.manifests)
            .unwrap_or_default()
            .into_iter()
            .map(|child| child.digest)
            .collect();
        Ok(Some(Stored { digest, children }))
    }

    /// Deletes a tag, or a manifest with its tags. One that does not exist counts as deleted.
    pub(super) async fn delete(
        &self,
        repository: &RepositoryName,
        target: &str,
    ) -> anyhow::Result<()> {
        let path = format!("/v2/{repository}/manifests/{target}");
        self.send(Method::DELETE, &path).await.map(drop)
    }
}

/// The path of the next page: `Link: </v2/_catalog?last=b&n=2>; rel="next"`.
fn next_page(headers: &header::HeaderMap) -> Option<String> {
    let link = headers.get(header::LINK)?.to_str().ok()?;
    let (path, rest) = link.strip_prefix('<')?.split_once('>')?;
    (rest.contains("next") && path.starts_with('/')).then(|| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_names_the_next_one() {
        let next = |link: &str| {
            let mut headers = header::HeaderMap::new();
            headers.insert(header::LINK, link.parse().unwrap());
            next_page(&headers)
        };
        let path = Some("/v2/_catalog?n=2&last=b".to_owned());
        assert_eq!(next("</v2/_catalog?n=2&last=b>; rel=\"next\""), path);
        assert_eq!(next("<https://other.example/>; rel=\"next\""), None);
        assert_eq!(next("nonsense"), None);
        assert_eq!(next_page(&header::HeaderMap::new()), None);
    }
}
