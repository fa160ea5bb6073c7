//! Random images of random upstreams that lie about sizes, lack blobs or send wrong bytes, and a
//! model of what must hold all the same. Every seed is one run: `HOLDFAST_SEED=N` runs one alone.

use std::collections::BTreeMap;

use holdfast_simfs::Rng;

use super::*;

const SEEDS: u64 = 40;
const ROUNDS: usize = 5;

/// What one repository of one upstream has under a tag.
#[derive(Debug, Clone)]
struct Published {
    upstream: usize,
    name: String,
    /// Whether a fill of it must succeed; `None`: it serves wrong bytes, and succeeds where others
    /// sent the right ones.
    is_right: Option<bool>,
}

/// Layers that all images share, so that claims meet.
fn contents() -> Vec<Bytes> {
    [1, 400, 70_000]
        .into_iter()
        .map(|size| holdfast_testkit::image::random_bytes(size, usize::try_from(size).unwrap()))
        .collect()
}

/// An image of some of the layers, by somebody who may lie about one.
fn image(rng: &mut Rng, layers: &[Bytes], salt: String) -> (Image, Option<bool>) {
    let mut blobs = BTreeMap::new();
    let config = Bytes::from(format!("{{\"salt\":\"{salt}\"}}"));
    let config_digest = holdfast_testkit::image::digest_of(&config);
    let mut descriptors = Vec::new();
    let (mut is_right, mut sends_right) = (true, true);
    for bytes in layers {
        if rng.chance(3_000) {
            continue;
        }
        let digest = holdfast_testkit::image::digest_of(bytes);
        let mut size = bytes.len() as u64;
        let mut served = bytes.clone();
        match rng.below(10) {
            0 => size = 0,
            1 => size += 1,
            2 => size = 1_000_000_000_000_000,
            3 => size = 1 + rng.below(80_000) as u64,
            4 => served = vec![7; bytes.len()].into(),
            _ => {}
        }
        let lacks = rng.chance(1_000);
        is_right &= size == bytes.len() as u64 && !lacks;
        sends_right &= served == *bytes;
        descriptors.push(serde_json::json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": size,
        }));
        if !lacks {
            blobs.insert(digest, served);
        }
    }
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": holdfast_testkit::image::OCI_MANIFEST,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": config_digest, "size": config.len(),
        },
        "layers": descriptors,
    });
    blobs.insert(config_digest, config);
    let bytes = Bytes::from(manifest.to_string());
    let digest = holdfast_testkit::image::digest_of(&bytes);
    let media_type = holdfast_testkit::image::OCI_MANIFEST.to_owned();
    let image = Image {
        manifests: [(digest.clone(), (media_type.clone(), bytes))].into(),
        digest,
        media_type,
        blobs,
        layers: Vec::new(),
        children: Vec::new(),
    };
    (image, (!is_right || sends_right).then_some(is_right))
}

/// What a run did wrong; empty when nothing.
async fn run(seed: u64) -> Vec<String> {
    let mut rng = Rng::new(seed);
    let layers = contents();
    let folder = tempfile::tempdir().unwrap();
    let mut violations = Vec::new();
    // An upstream a repository: what each serves for a digest is its own.
    let mut all = Vec::new();
    let mut published = Vec::new();
    for upstream in 0..4 {
        let (image, is_right) = image(&mut rng, &layers, format!("{seed}-{upstream}"));
        let one = Upstream::start().await;
        let name = format!("r{upstream}/app");
        one.push(&name, "1", &image);
        all.push(one);
        published.push(Published {
            upstream,
            name,
            is_right,
        });
    }
    let upstreams: Vec<&Upstream> = all.iter().collect();
    let registry = fills_within(folder.path(), &upstreams, uplink(), timeouts()).await;
    let store = registry.store();
    let team = RepositoryName::parse("team/app").unwrap();
    let mut pushed: Vec<usize> = Vec::new();
    for round in 0..ROUNDS {
        if rng.chance(5_000) {
            let layer = rng.below(layers.len());
            let name = digest(&holdfast_testkit::image::digest_of(&layers[layer]));
            store.put_blob(&name, layers[layer].clone()).await.unwrap();
            store.link_blob(&team, &name).await.unwrap();
            pushed.push(layer);
        }
        let chosen: Vec<Published> = (0..=rng.below(3))
            .map(|_| published[rng.below(published.len())].clone())
            .collect();
        let fills = chosen.iter().map(|one| {
            let source = format!("{}/{}:1", all[one.upstream].host(), one.name);
            let wanted = FillRequest {
                source,
                ..FillRequest::default()
            };
            let registry = registry.clone();
            async move { tokio::time::timeout(LIMIT, registry.fill(&wanted)).await }
        });
        let results = futures::future::join_all(fills).await;
        for (one, result) in chosen.iter().zip(results) {
            let is_ok = matches!(result, Ok(Ok(_)));
            if one.is_right.is_some_and(|right| right != is_ok) {
                violations.push(format!("round {round}: {one:?} ended with {result:?}"));
            }
        }
        for layer in &pushed {
            let name = digest(&holdfast_testkit::image::digest_of(&layers[*layer]));
            let found = match store.open_repo_blob(&team, &name).await.unwrap() {
                Some(file) => read(PulledBlob::Stored(file)).await,
                None => Err("gone".to_owned()),
            };
            if found.as_deref() != Ok(&layers[*layer][..]) {
                violations.push(format!(
                    "round {round}: pushed layer {layer}: {:?}",
                    found.err()
                ));
            }
        }
    }
    let aside = store.layout().own().join("quarantine");
    if std::fs::read_dir(aside).is_ok_and(|mut files| files.next().is_some()) {
        violations.push("sound content was moved aside".to_owned());
    }
    violations
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_upstreams_claim_harms_their_own_images_only() {
    let only: Option<u64> = std::env::var("HOLDFAST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let seeds = only.map_or(0..SEEDS, |seed| seed..seed + 1);
    for seed in seeds {
        let violations = run(seed).await;
        assert!(violations.is_empty(), "seed {seed}: {violations:#?}");
    }
}
