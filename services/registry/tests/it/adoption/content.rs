//! A client that pushes as docker does, the content of a volume, and what a registry answers about
//! it.

use std::collections::BTreeMap;

use holdfast_testkit::image::{self, Image, ImageBuilder};
use reqwest::{Method, Response, StatusCode};

/// A client of one registry.
#[derive(Clone)]
pub(crate) struct Client {
    url: String,
    http: reqwest::Client,
}

const ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json";

impl Client {
    pub(crate) fn new(url: &str) -> Self {
        Self {
            url: url.to_owned(),
            http: reqwest::Client::builder().no_proxy().build().unwrap(),
        }
    }

    /// Sends a request; `target` is a path, or what any registry said as `Location`.
    pub(crate) async fn send(
        &self,
        method: Method,
        target: &str,
        content_type: &str,
        body: impl Into<reqwest::Body>,
    ) -> Response {
        self.http
            .request(method, format!("{}{}", self.url, path_of(target)))
            .header("accept", ACCEPT)
            .header("content-type", content_type)
            .body(body)
            .send()
            .await
            .unwrap()
    }

    pub(crate) async fn get(&self, target: &str) -> Response {
        self.send(Method::GET, target, "", "").await
    }

    /// Begins an upload and returns where it goes on.
    pub(crate) async fn begin(&self, repo: &str) -> String {
        let target = format!("/v2/{repo}/blobs/uploads/");
        let answer = self.send(Method::POST, &target, "", "").await;
        assert_eq!(answer.status(), StatusCode::ACCEPTED);
        location(&answer)
    }

    /// Sends the next piece of an upload and returns where it goes on.
    pub(crate) async fn go_on(&self, location_before: &str, bytes: &[u8]) -> String {
        let answer = self
            .send(
                Method::PATCH,
                location_before,
                "application/octet-stream",
                bytes.to_vec(),
            )
            .await;
        let status = answer.status();
        let at = location(&answer);
        assert_eq!(
            status,
            StatusCode::ACCEPTED,
            "{}",
            answer.text().await.unwrap()
        );
        at
    }

    /// Ends an upload.
    pub(crate) async fn finish(&self, location: &str, digest: &str, bytes: &[u8]) -> Response {
        let join = if location.contains('?') { '&' } else { '?' };
        let target = format!("{location}{join}digest={digest}");
        self.send(
            Method::PUT,
            &target,
            "application/octet-stream",
            bytes.to_vec(),
        )
        .await
    }

    /// Pushes a blob as docker does: begin, one piece, end.
    pub(crate) async fn push_blob(&self, repo: &str, bytes: &[u8]) -> String {
        let digest = image::digest_of(bytes);
        let at = self.begin(repo).await;
        let at = self.go_on(&at, bytes).await;
        let answer = self.finish(&at, &digest, b"").await;
        assert_eq!(
            answer.status(),
            StatusCode::CREATED,
            "{}",
            answer.text().await.unwrap()
        );
        digest
    }

    /// Takes a blob from another repository.
    pub(crate) async fn mount(&self, repo: &str, from: &str, digest: &str) {
        let target = format!("/v2/{repo}/blobs/uploads/?mount={digest}&from={from}");
        let answer = self.send(Method::POST, &target, "", "").await;
        assert_eq!(answer.status(), StatusCode::CREATED);
    }

    pub(crate) async fn put_manifest(
        &self,
        repo: &str,
        reference: &str,
        media_type: &str,
        bytes: &[u8],
    ) {
        let target = format!("/v2/{repo}/manifests/{reference}");
        let answer = self
            .send(Method::PUT, &target, media_type, bytes.to_vec())
            .await;
        let status = answer.status();
        assert_eq!(
            status,
            StatusCode::CREATED,
            "{target}: {}",
            answer.text().await.unwrap()
        );
    }

    /// Pushes an image or index: blobs, then what an index lists, then itself under each tag.
    pub(crate) async fn push(&self, repo: &str, tags: &[&str], image: &Image) {
        for bytes in image.blobs.values() {
            self.push_blob(repo, bytes).await;
        }
        for child in &image.children {
            let (media_type, bytes) = &image.manifests[child];
            self.put_manifest(repo, child, media_type, bytes).await;
        }
        for tag in tags {
            self.put_manifest(repo, tag, &image.media_type, &image.bytes())
                .await;
        }
    }

    pub(crate) async fn delete_manifest(&self, repo: &str, digest: &str) {
        let target = format!("/v2/{repo}/manifests/{digest}");
        let answer = self.send(Method::DELETE, &target, "", "").await;
        assert_eq!(answer.status(), StatusCode::ACCEPTED, "{target}");
    }
}

/// A path and query, whatever host an earlier registry put before it.
fn path_of(target: &str) -> &str {
    match target.split_once("://") {
        Some((_, rest)) => rest.split_at(rest.find('/').unwrap()).1,
        None => target,
    }
}

pub(crate) fn location(answer: &Response) -> String {
    let value = answer
        .headers()
        .get("location")
        .map(|value| value.to_str().unwrap());
    path_of(value.unwrap_or_default()).to_owned()
}

/// What is asked of a registry to know all that a volume holds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Content {
    /// Paths, those of deleted content too.
    paths: Vec<String>,
}

impl Content {
    pub(crate) fn image(&mut self, repo: &str, tags: &[&str], image: &Image) {
        self.paths.push(format!("/v2/{repo}/tags/list"));
        for reference in tags
            .iter()
            .copied()
            .chain(image.manifests.keys().map(String::as_str))
        {
            self.paths.push(format!("/v2/{repo}/manifests/{reference}"));
        }
        for digest in image.blobs.keys() {
            self.paths.push(format!("/v2/{repo}/blobs/{digest}"));
        }
    }

    /// What the registry answers to each path, and to a walk over its catalog.
    pub(crate) async fn seen(&self, client: &Client) -> BTreeMap<String, Answer> {
        let mut seen = BTreeMap::new();
        for path in self
            .paths
            .iter()
            .map(String::as_str)
            .chain(["/v2/_catalog"])
        {
            let answer = client.get(path).await;
            let status = answer.status().as_u16();
            let header = |name: &str| {
                answer
                    .headers()
                    .get(name)
                    .map(|value| value.to_str().unwrap().to_owned())
                    .unwrap_or_default()
            };
            let is_list = path.ends_with("/_catalog") || path.ends_with("/list");
            let mut found = Answer {
                status,
                digest: header("docker-content-digest"),
                content_type: if is_list {
                    String::new()
                } else {
                    header("content-type")
                },
                body: answer.bytes().await.unwrap().to_vec(),
            };
            if is_list {
                found.body = sorted(&found.body);
            }
            if status != 200 {
                // Errors may be worded as each likes.
                (found.body, found.content_type, found.digest) = Default::default();
            }
            seen.insert(path.to_owned(), found);
        }
        seen
    }
}

/// A list of names in order: version 2 gives tags in the order of the folder, and `null` for none.
fn sorted(list: &[u8]) -> Vec<u8> {
    let list: serde_json::Value = serde_json::from_slice(list).unwrap();
    let names = list
        .get("repositories")
        .or_else(|| list.get("tags"))
        .and_then(|names| names.as_array());
    let mut names: Vec<&str> = names
        .into_iter()
        .flatten()
        .map(|name| name.as_str().unwrap())
        .collect();
    names.sort_unstable();
    names.join("\n").into_bytes()
}

/// Fails with the paths whose answers differ, and only those.
#[track_caller]
pub(crate) fn assert_same(
    now: &BTreeMap<String, Answer>,
    before: &BTreeMap<String, Answer>,
    what: &str,
) {
    let paths = now.keys().chain(before.keys());
    let differ: std::collections::BTreeSet<_> = paths
        .filter(|path| now.get(*path) != before.get(*path))
        .collect();
    let told: Vec<_> = differ
        .iter()
        .map(|path| {
            format!(
                "{path}\n  now    {:?}\n  before {:?}",
                now.get(*path),
                before.get(*path)
            )
        })
        .collect();
    assert!(told.is_empty(), "{what}:\n{}", told.join("\n"));
}

/// What of an answer must be the same on every registry.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) digest: String,
    pub(crate) content_type: String,
    pub(crate) body: Vec<u8>,
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text: String = String::from_utf8_lossy(&self.body)
            .chars()
            .filter(|c| !c.is_control())
            .take(80)
            .collect();
        write!(
            f,
            "{} {} {} {} bytes {text:?}",
            self.status,
            self.content_type,
            self.digest,
            self.body.len()
        )
    }
}

/// An image of a known seed.
pub(crate) fn image_of(seed: u64) -> Image {
    ImageBuilder::new(seed).layer(3000).layer(70_000).build()
}

/// A manifest attached to `subject`, of kind `kind`, with the subject's own configuration and
/// layers.
pub(crate) fn attached(image: &Image, kind: &str) -> (String, Vec<u8>) {
    let mut manifest: serde_json::Value = serde_json::from_slice(&image.bytes()).unwrap();
    manifest["artifactType"] = kind.into();
    manifest["subject"] = serde_json::json!({
        "mediaType": image.media_type, "digest": image.digest, "size": image.bytes().len(),
    });
    let bytes = manifest.to_string().into_bytes();
    (image::digest_of(&bytes), bytes)
}

/// Fills a registry with everything that a volume can hold, and says what must be found there.
pub(crate) async fn fill(client: &Client) -> Content {
    let mut content = Content::default();
    let base = ImageBuilder::new(1).layer(50_000).docker().build();
    client
        .push("library/base", &["1", "1.0", "stable"], &base)
        .await;
    content.image("library/base", &["1", "1.0", "stable", "absent"], &base);

    let index = ImageBuilder::new(2)
        .layer(20_000)
        .index(&["linux/amd64", "linux/arm64/v8"]);
    client.push("team/app", &["latest"], &index).await;
    content.image("team/app", &["latest"], &index);

    // A tag that moved: what it named before stays under its digest.
    let (before, after) = (image_of(3), image_of(4));
    client.push("team/app", &["moving"], &before).await;
    client.push("team/app", &["moving"], &after).await;
    content.image("team/app", &["moving"], &before);
    content.image("team/app", &["moving"], &after);

    // Taken from another repository without being sent.
    for digest in base.blobs.keys() {
        client
            .mount("team/deep/er/app", "library/base", digest)
            .await;
    }
    client
        .put_manifest(
            "team/deep/er/app",
            "mounted",
            &base.media_type,
            &base.bytes(),
        )
        .await;
    content.image("team/deep/er/app", &["mounted"], &base);

    // Deleted again: its blobs stay, its manifest and its tag do not.
    let gone = image_of(5);
    client.push("team/app", &["gone"], &gone).await;
    client.delete_manifest("team/app", &gone.digest).await;
    content.image("team/app", &["gone"], &gone);

    // An attached manifest, kept under a tag as clients do where there is no list of referrers.
    let (digest, bytes) = attached(&after, "application/x.signature");
    client
        .put_manifest("team/app", &digest, image::OCI_MANIFEST, &bytes)
        .await;
    let list = serde_json::json!({
        "schemaVersion": 2, "mediaType": image::OCI_INDEX,
        "manifests": [{"mediaType": image::OCI_MANIFEST, "digest": digest, "size": bytes.len(), "artifactType": "application/x.signature"}],
    });
    let tag = after.digest.replace(':', "-");
    client
        .put_manifest(
            "team/app",
            &tag,
            image::OCI_INDEX,
            list.to_string().as_bytes(),
        )
        .await;
    content.paths.push(format!("/v2/team/app/manifests/{tag}"));
    content
        .paths
        .push(format!("/v2/team/app/manifests/{digest}"));
    content
}
