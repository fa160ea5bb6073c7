//! A client that is not ours, the crate `oci-client`: it pushes, pulls, lists, mounts and finds
//! referrers, and verifies every digest itself.

use std::collections::BTreeMap;

use futures::TryStreamExt as _;
use oci_client::{
    Client, Reference,
    client::{BlobResponse, ClientConfig, ClientProtocol, Config, ImageLayer},
    manifest::{
        IMAGE_LAYER_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE, ImageIndexEntry, OCI_IMAGE_MEDIA_TYPE,
        OciDescriptor, OciImageIndex, OciImageManifest, OciManifest,
    },
    secrets::RegistryAuth,
};

use crate::harness::{OCI_INDEX, OCI_MANIFEST, Registry, noise};

const ANONYMOUS: RegistryAuth = RegistryAuth::Anonymous;

/// A client that sends blobs in chunks of PATCH, or each whole in one PUT.
fn client(whole_blobs: bool) -> Client {
    Client::new(ClientConfig {
        protocol: ClientProtocol::Http,
        use_monolithic_push: whole_blobs,
        ..ClientConfig::default()
    })
}

/// A tag or a digest of a repository of the registry.
fn reference(registry: &Registry, repository: &str, name: &str) -> Reference {
    let host = registry.url.strip_prefix("http://").unwrap();
    let separator = if name.contains(':') { '@' } else { ':' };
    format!("{host}/{repository}{separator}{name}")
        .parse()
        .unwrap()
}

/// Pushes an image of two layers as `NAME`; its layers and its manifest's descriptor.
async fn push(
    client: &Client,
    registry: &Registry,
    name: &str,
    size: usize,
) -> (Vec<ImageLayer>, OciDescriptor) {
    let layers = [size, size + 1].map(|size| ImageLayer::oci_v1(noise(size), None));
    let config = Config::oci_v1(format!(r#"{{"size":{size}}}"#), None);
    let at = reference(registry, "team/app", name);
    client
        .push(&at, &layers, config, &ANONYMOUS, None)
        .await
        .unwrap();
    let (bytes, digest) = client
        .pull_manifest_raw(&at, &ANONYMOUS, &[OCI_MANIFEST])
        .await
        .unwrap();
    let descriptor = OciDescriptor {
        media_type: OCI_MANIFEST.to_owned(),
        digest,
        size: i64::try_from(bytes.len()).unwrap(),
        ..OciDescriptor::default()
    };
    (layers.to_vec(), descriptor)
}

// SPEC 16
#[tokio::test]
async fn oci_client_pulls_what_it_pushed() {
    let registry = Registry::start().await;
    for (name, whole_blobs) in [("chunks", false), ("whole", true)] {
        let client = client(whole_blobs);
        let (layers, descriptor) = push(&client, &registry, name, 9_000).await;
        for place in [name, &descriptor.digest] {
            let image = client
                .pull(
                    &reference(&registry, "team/app", place),
                    &ANONYMOUS,
                    vec![IMAGE_LAYER_MEDIA_TYPE],
                )
                .await
                .unwrap();
            assert_eq!(image.digest.as_ref(), Some(&descriptor.digest));
            let mut pulled: Vec<_> = image.layers.into_iter().map(|layer| layer.data).collect();
            pulled.sort_by_key(bytes::Bytes::len);
            let pushed: Vec<_> = layers.iter().map(|layer| layer.data.clone()).collect();
            assert_eq!(pulled, pushed, "{place}");
        }
    }
    let any = reference(&registry, "team/app", "chunks");
    let client = client(false);
    let tags = client.list_tags(&any, &ANONYMOUS, None, None).await;
    assert_eq!(tags.unwrap().tags, ["chunks", "whole"]);
    let first = client.list_tags(&any, &ANONYMOUS, Some(1), None).await;
    assert_eq!(first.unwrap().tags, ["chunks"]);
    let catalog = client.catalog(&any, &ANONYMOUS, None, None).await;
    assert_eq!(catalog.unwrap().repositories, ["team/app"]);
    let missing = reference(&registry, "team/app", "missing");
    assert!(client.pull_manifest(&missing, &ANONYMOUS).await.is_err());
}

// SPEC 16
#[tokio::test]
async fn oci_client_reads_parts_of_blobs_and_mounts_them() {
    let registry = Registry::start().await;
    let client = client(false);
    let (layers, _) = push(&client, &registry, "1", 9_000).await;
    let source = reference(&registry, "team/app", "1");
    let layer = OciDescriptor {
        digest: layers[0].sha256_digest(),
        ..OciDescriptor::default()
    };
    let part = client
        .pull_blob_stream_partial(&source, &layer, 100, Some(50))
        .await
        .unwrap();
    let BlobResponse::Partial(part) = part else {
        panic!("the whole blob came");
    };
    let part: Vec<bytes::Bytes> = part.stream.try_collect().await.unwrap();
    assert_eq!(part.concat(), layers[0].data[100..150]);

    let target = reference(&registry, "team/other", "1");
    assert!(!client.blob_exists(&target, &layer.digest).await.unwrap());
    client
        .mount_blob(&target, &source, &layer.digest)
        .await
        .unwrap();
    assert!(client.blob_exists(&target, &layer.digest).await.unwrap());
    let mut mounted = Vec::new();
    client
        .pull_blob(&target, &layer, &mut mounted)
        .await
        .unwrap();
    assert_eq!(mounted, layers[0].data);
}

// SPEC 16
#[tokio::test]
async fn oci_client_finds_an_index_and_its_referrers() {
    let registry = Registry::start().await;
    let client = client(false);
    let mut entries = Vec::new();
    for (size, architecture) in [(500, "amd64"), (700, "arm64")] {
        let (_, descriptor) = push(&client, &registry, architecture, size).await;
        entries.push(ImageIndexEntry {
            media_type: descriptor.media_type,
            digest: descriptor.digest,
            size: descriptor.size,
            platform: Some(
                serde_json::from_value(
                    serde_json::json!({ "os": "linux", "architecture": architecture }),
                )
                .unwrap(),
            ),
            annotations: None,
            artifact_type: None,
        });
    }
    let index = OciImageIndex {
        schema_version: 2,
        media_type: Some(OCI_INDEX.to_owned()),
        manifests: entries.clone(),
        artifact_type: None,
        annotations: None,
    };
    let at = reference(&registry, "team/app", "index");
    client
        .push_manifest_list(&at, &ANONYMOUS, index)
        .await
        .unwrap();
    let (manifest, digest) = client.pull_manifest(&at, &ANONYMOUS).await.unwrap();
    let OciManifest::ImageIndex(found) = manifest else {
        panic!("an index was pushed");
    };
    let digests = |entries: &[ImageIndexEntry]| -> Vec<String> {
        entries.iter().map(|entry| entry.digest.clone()).collect()
    };
    assert_eq!(digests(&found.manifests), digests(&entries));
    // By the index, the client takes the image of its own platform.
    let (image, of_platform) = client.pull_image_manifest(&at, &ANONYMOUS).await.unwrap();
    assert_eq!(image.layers.len(), 2);
    assert!(digests(&entries).contains(&of_platform));

    for kind in ["a/signature", "a/bill-of-materials"] {
        let config = Config::new("{}", IMAGE_MANIFEST_MEDIA_TYPE.to_owned(), None);
        let layers = [ImageLayer::new(kind, kind.to_owned(), None)];
        let mut manifest = OciImageManifest::build(&layers, &config, None);
        manifest.media_type = Some(OCI_IMAGE_MEDIA_TYPE.to_owned());
        manifest.artifact_type = Some(kind.to_owned());
        manifest.annotations = Some(BTreeMap::from([("kind".to_owned(), kind.to_owned())]));
        manifest.subject = Some(OciDescriptor {
            media_type: OCI_INDEX.to_owned(),
            digest: digest.clone(),
            ..OciDescriptor::default()
        });
        let name = kind.replace('/', "-");
        let artifact = reference(&registry, "team/app", &name);
        client
            .push(&artifact, &layers, config, &ANONYMOUS, Some(manifest))
            .await
            .unwrap();
    }
    let subject = reference(&registry, "team/app", &digest);
    let kinds = async |filter| {
        let index = client.pull_referrers(&subject, filter).await.unwrap();
        let mut kinds: Vec<_> = index
            .manifests
            .into_iter()
            .map(|entry| entry.artifact_type.unwrap())
            .collect();
        kinds.sort();
        kinds
    };
    assert_eq!(kinds(None).await, ["a/bill-of-materials", "a/signature"]);
    assert_eq!(kinds(Some("a/signature")).await, ["a/signature"]);
}
