//! Asks the registry whether it still holds what Artifacts say. A status may be older than the loss
//! of a volume.
//!
//! The images of Ready Artifacts take turns, [`ROUND_IMAGES`] a minute. What the registry does not
//! hold counts as lost at once (`healing::Healing::record_lost`), so no pod is given its local
//! name, and its Artifact is reconciled, which copies it again.

use crate::Context;
use crate::artifacts::reconcile::wanted_platforms;
use crate::artifacts::{fill, platforms_of_nodes};
use holdfast_api::questions::{Answer, MAX_QUESTIONS, held::Image};
use holdfast_cluster_index::{ClusterIndex, Key};
use holdfast_runtime::supervise::Heartbeat;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::Duration;

/// Images of a round.
const ROUND_IMAGES: usize = MAX_QUESTIONS;
/// Interval of rounds.
const INTERVAL: Duration = Duration::from_secs(60);
/// Interval of rounds while images are found lost: others are, too, then.
const LOSS_INTERVAL: Duration = Duration::from_secs(2);

/// Images and the Artifacts that name them.
type Ready = BTreeMap<Image, BTreeSet<Key>>;

/// Asks for ever. Requests go to the release's registry, or to the one of `client`.
pub async fn run(
    context: Context,
    client: Option<fill::Client>,
    heart: Heartbeat,
) -> Result<(), fill::Error> {
    context.healing.known(&context.index, &heart).await;
    let client = match client {
        Some(client) => client,
        None => fill::Client::for_release(&context)?,
    };
    let mut last = None;
    loop {
        let ready = ready(&context);
        let images = next(&ready, last.as_ref());
        let answers = client.held(&images).await;
        let lost = lost(&ready, &images, &answers);
        if let Some(image) = images.last() {
            last = Some(image.clone());
        }
        heart.success();
        let pause = if lost.is_empty() {
            INTERVAL
        } else {
            tracing::warn!(
                artifacts = lost.len(),
                "the registry lost images of Ready Artifacts; they are copied again"
            );
            context.healing.record_lost(lost);
            context.index.notify();
            LOSS_INTERVAL
        };
        let end = tokio::time::Instant::now() + pause;
        while tokio::time::Instant::now() < end {
            heart.beat();
            let step = tokio::time::Instant::now() + Duration::from_secs(20);
            tokio::time::sleep_until(end.min(step)).await;
        }
    }
}

/// The images of the Artifacts that are Ready, but not of those that are known to be lost.
fn ready(context: &Context) -> Ready {
    let of_nodes = platforms_of_nodes(&context.index);
    ClusterIndex::read(&context.index.artifacts, |artifacts| {
        let mut ready = Ready::new();
        for (key, artifact) in artifacts.iter() {
            if artifact.is_ready() && !context.healing.is_lost(key) {
                let image = Image {
                    source: artifact.spec.source_artifact.clone(),
                    platforms: wanted_platforms(artifact, &of_nodes),
                };
                ready.entry(image).or_default().insert(key.clone());
            }
        }
        ready
    })
}

/// The images of a round: those after the last one of the round before, then the first ones.
fn next(ready: &Ready, last: Option<&Image>) -> Vec<Image> {
    let after = last.map_or(Bound::Unbounded, Bound::Excluded);
    let rest = ready.range::<Image, _>((after, Bound::Unbounded));
    rest.chain(ready.iter())
        .take(ready.len().min(ROUND_IMAGES))
        .map(|(image, _)| image.clone())
        .collect()
}

/// The Artifacts whose image is not held.
fn lost(ready: &Ready, images: &[Image], answers: &[Answer]) -> BTreeSet<Key> {
    let asked = images.iter().zip(answers);
    asked
        .filter(|(_, answer)| **answer == Answer::No)
        .filter_map(|(image, _)| ready.get(image))
        .flatten()
        .cloned()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(number: usize) -> Image {
        Image {
            source: format!("r.io/app:{number:05}"),
            ..Image::default()
        }
    }

    fn key(number: usize) -> Key {
        ("apps".to_owned(), format!("app-{number}"))
    }

    fn ready(count: usize) -> Ready {
        let of = |number| (image(number), BTreeSet::from([key(number)]));
        (0..count).map(of).collect()
    }

    #[test]
    fn all_images_take_turns_and_a_round_is_bounded() {
        let many = ready(ROUND_IMAGES + 500);
        let first = next(&many, None);
        assert_eq!(first.len(), ROUND_IMAGES);
        assert_eq!(first.first(), Some(&image(0)));
        let second = next(&many, first.last());
        assert_eq!(second.len(), ROUND_IMAGES);
        assert_eq!(second.first(), Some(&image(ROUND_IMAGES)));
        assert_eq!(second.get(500), Some(&image(0)), "then the first ones");
        let few = ready(3);
        for last in [0, 1, 2, 3] {
            let asked = next(&few, Some(&image(last)));
            let asked: BTreeSet<Image> = asked.into_iter().collect();
            assert_eq!(asked.len(), 3, "each once after {last}");
        }
        assert_eq!(next(&Ready::new(), Some(&image(1))), []);
    }

    #[test]
    fn only_a_no_is_a_loss() {
        let (known, images) = (ready(3), [image(0), image(1), image(2)]);
        let answers = [Answer::Yes, Answer::No, Answer::Unknown];
        assert_eq!(lost(&known, &images, &answers), BTreeSet::from([key(1)]));
        assert_eq!(lost(&known, &images, &[]), BTreeSet::new());
    }
}
