//! The other replicas: the blobs that they fill are streamed from them over the internal API.

use std::{collections::HashMap, net::SocketAddr, time::Duration};

use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};
use holdfast_api::fill::FillRequest;
use holdfast_core::{Digest, ManifestRef, RepositoryName, oci::MANIFEST_BYTES};
use holdfast_runtime::tls::ClientTls;
use parking_lot::Mutex;

use holdfast_runtime::time_limit::within;
use holdfast_upstream::{Memory, Reserved};

/// Until a replica answers, a whole connection included.
const ANSWER: Duration = Duration::from_secs(3);

/// What another replica says of a blob.
pub(crate) enum Answer {
    /// Its bytes, as they reach it.
    Stream(BoxStream<'static, Result<Bytes, reqwest::Error>>),
    /// It copies it, and has no bytes of it so far.
    NotYet,
    /// It has it, and not for this repository.
    NotThisRepository,
    /// It has nothing of it, or does not answer.
    Nothing,
}

/// How replicas reach each other.
pub struct Peers {
    settings: Option<ClientSettings>,
    clients: Mutex<HashMap<SocketAddr, reqwest::Client>>,
}

struct ClientSettings {
    /// Name in the replicas' certificates; connections go to the address in the lock.
    name: String,
    tls: Option<ClientTls>,
}

impl Peers {
    /// There are none: the registry is standalone.
    pub fn none() -> Self {
        Self {
            settings: None,
            clients: Mutex::default(),
        }
    }

    /// Replicas that show a certificate for `name` (the internal Service) and want one.
    pub fn mutual(name: &str, tls: ClientTls) -> Self {
        Self {
            settings: Some(ClientSettings {
                name: name.to_owned(),
                tls: Some(tls),
            }),
            clients: Mutex::default(),
        }
    }

    /// Replicas over plain HTTP, for tests.
    #[cfg(test)]
    pub(crate) fn plain() -> Self {
        Self {
            settings: Some(ClientSettings {
                name: "replica.test".to_owned(),
                tls: None,
            }),
            clients: Mutex::default(),
        }
    }

    fn client(&self, address: &str) -> Option<(String, reqwest::Client)> {
        let settings = self.settings.as_ref()?;
        let address: SocketAddr = address.parse().ok()?;
        let scheme = if settings.tls.is_some() {
            "https"
        } else {
            "http"
        };
        let base = format!("{scheme}://{}:{}", settings.name, address.port());
        let mut clients = self.clients.lock();
        if let Some(client) = clients.get(&address) {
            return Some((base, client.clone()));
        }
        let mut builder = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .tcp_nodelay(true)
            // A connection a stream: over one connection of HTTP/2 a client that stands still would
            // stop all the others.
            .http1_only()
            .resolve(&settings.name, address);
        builder = match &settings.tls {
            Some(tls) => builder.tls_backend_preconfigured(tls.config().ok()?),
            None => builder.tls_certs_only([]),
        };
        let client = builder.build().ok()?;
        // Addresses of pods that are gone are never asked for again.
        if clients.len() > 64 {
            clients.clear();
        }
        clients.insert(address, client.clone());
        Some((base, client))
    }

    /// The bytes of a blob from `offset` on, as they reach the replica at `address`; with `repo`,
    /// only if they are its. With `size`, which a manifest claims, the last byte comes only
    /// when that is right.
    pub(crate) async fn blob(
        &self,
        address: &str,
        digest: &Digest,
        offset: u64,
        size: Option<u64>,
        repo: Option<&RepositoryName>,
    ) -> Answer {
        let Some((base, client)) = self.client(address) else {
            return Answer::Nothing;
        };
        let repository = repo.map(|repo| format!("repository={repo}"));
        let size = size.map(|size| format!("size={size}"));
        let query: Vec<String> = repository.into_iter().chain(size).collect();
        let query = query.join("&");
        let request = client
            .get(format!("{base}/internal/v1/blobs/{digest}?{query}"))
            .header(http::header::RANGE, format!("bytes={offset}-"));
        let Some(Ok(response)) = within(ANSWER, request.send()).await else {
            return Answer::Nothing;
        };
        match response.status().as_u16() {
            206 => Answer::Stream(response.bytes_stream().boxed()),
            200 if offset == 0 => Answer::Stream(response.bytes_stream().boxed()),
            202 => Answer::NotYet,
            409 => Answer::NotThisRepository,
            _ => Answer::Nothing,
        }
    }

    /// Offers a source for the copy that the replica at `address` makes. Whether it was taken.
    pub(crate) async fn offer(
        &self,
        address: &str,
        digest: &Digest,
        claim: Option<u64>,
        request: &FillRequest,
    ) -> bool {
        let Some((base, client)) = self.client(address) else {
            return false;
        };
        let size = claim.map_or_else(String::new, |size| format!("?size={size}"));
        let url = format!("{base}/internal/v1/blobs/{digest}/sources{size}");
        let asked = client.post(url).json(request).send();
        let answer = within(ANSWER, asked).await;
        answer.is_some_and(|answer| answer.is_ok_and(|answer| answer.status().is_success()))
    }

    /// The sizes that manifests on their way at the replica at `address` claim for a blob; none
    /// when no manifest there names it.
    pub(crate) async fn named(
        &self,
        address: &str,
        repo: &RepositoryName,
        digest: &Digest,
    ) -> Vec<u64> {
        let Some((base, client)) = self.client(address) else {
            return Vec::new();
        };
        let url = format!("{base}/internal/v1/named/{digest}?repository={repo}");
        let asked = async {
            let response = client.get(url).send().await.ok()?;
            let response = response.error_for_status().ok()?;
            response.text().await.ok()
        };
        let text = within(ANSWER, asked).await.flatten();
        let sizes = text.iter().flat_map(|text| text.split_whitespace());
        sizes.filter_map(|size| size.parse().ok()).collect()
    }

    /// A manifest that the replica at `address` has verified but not stored yet, its digest
    /// unchecked, with what it takes of the memory of manifests.
    pub(crate) async fn manifest(
        &self,
        address: &str,
        repo: &RepositoryName,
        reference: &ManifestRef,
        memory: &Memory,
    ) -> Option<(Bytes, Reserved)> {
        let (base, client) = self.client(address)?;
        let request = client.get(format!(
            "{base}/internal/v1/manifests/{reference}?repository={repo}"
        ));
        let mut response = within(ANSWER, request.send()).await?.ok()?;
        if !response.status().is_success() {
            return None;
        }
        let length = response.content_length().unwrap_or(MANIFEST_BYTES);
        if length > MANIFEST_BYTES {
            return None;
        }
        let read = async {
            let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
            loop {
                match within(ANSWER, response.chunk()).await {
                    Some(Ok(Some(chunk))) if (bytes.len() + chunk.len()) as u64 <= length => {
                        bytes.extend_from_slice(&chunk);
                    }
                    Some(Ok(None)) => return Ok(Bytes::from(bytes)),
                    _ => return Err(()),
                }
            }
        };
        memory.hold(address, length, || (), read).await.ok()
    }
}
