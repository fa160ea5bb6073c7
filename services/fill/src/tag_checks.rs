//! Checks whether a local tag still has the upstream's digest. The settings say how often. A pull
//! waits for a check until its deadline at most, and is answered with what is local in every case.
//! One tag has one check at a time.

use std::{sync::Arc, time::Duration};

use holdfast_core::{Digest, ManifestRef, RepositoryName, Tag};
use holdfast_upstream::{UpstreamRepository, Upstreams};
use tokio::sync::watch;

use super::{
    compared_tags::{Check, ComparedTags, LocalTag},
    image_fills::ImageFills,
    metrics::Metrics,
    settings::Settings,
    sources::Sources,
};
use crate::pull_through::Freshness;

/// The checks of local tags.
pub(super) struct TagChecks {
    upstreams: Upstreams,
    sources: Arc<Sources>,
    images: Arc<ImageFills>,
    compared: Arc<ComparedTags>,
    metrics: Metrics,
    /// Whether tags are checked at all.
    is_on: bool,
    /// How long a check counts.
    fresh: Duration,
    /// The platforms that are copied of an index to which a tag moved.
    platforms: Vec<String>,
}

impl TagChecks {
    pub(super) fn new(
        upstreams: Upstreams,
        metrics: Metrics,
        sources: Arc<Sources>,
        images: Arc<ImageFills>,
        compared: Arc<ComparedTags>,
        settings: &Settings,
    ) -> Self {
        Self {
            upstreams,
            sources,
            images,
            compared,
            metrics,
            is_on: settings.revalidate_pulls,
            fresh: settings.tag_fresh,
            platforms: settings.platforms.clone(),
        }
    }

    /// Compares a tag with its upstream. Answers within the deadline of a revalidation; the
    /// question goes on behind it.
    pub(super) async fn revalidate(
        self: &Arc<Self>,
        repo: &RepositoryName,
        tag: &Tag,
        local: &Digest,
    ) -> Freshness {
        if !self.is_on {
            return Freshness::Current;
        }
        let reference = ManifestRef::Tag(tag.clone());
        let Some(source) = self.sources.of_manifest(repo, &reference).await else {
            return Freshness::Current;
        };
        let key = (repo.clone(), tag.clone(), local.clone());
        let begin = |key: &LocalTag| self.ask(source, key);
        let mut check = self.compared.check(key, self.fresh, begin);
        let deadline = check.begun + self.upstreams.revalidate_deadline();
        let told = tokio::time::timeout_at(deadline, check.outcome.wait_for(Option::is_some)).await;
        match told {
            Ok(Ok(outcome)) => outcome.clone().unwrap_or(Freshness::Current),
            _ => Freshness::Unknown {
                reason: "not revalidated: the upstream did not answer in time".to_owned(),
            },
        }
    }

    fn ask(self: &Arc<Self>, source: UpstreamRepository, key: &LocalTag) -> Check {
        let (tell, outcome) = watch::channel(None);
        let (checks, (repo, tag, local)) = (Arc::clone(self), key.clone());
        tokio::spawn(async move {
            let answer = checks.upstreams.resolve(&source, tag.as_str()).await;
            let metrics = &checks.metrics;
            let outcome = match answer {
                Ok(current) if current != local => {
                    metrics.compared("moved");
                    let checks = Arc::clone(&checks);
                    // What is local is served now; the next pull gets the new one.
                    tokio::spawn(async move {
                        let (reference, platforms) = (ManifestRef::Tag(tag), &checks.platforms);
                        let images = &checks.images;
                        drop(images.fill(&source, &repo, &reference, platforms).await);
                    });
                    Freshness::Unknown {
                        reason: "the tag moved upstream, the new image is being copied".to_owned(),
                    }
                }
                Ok(_) => {
                    metrics.compared("current");
                    Freshness::Current
                }
                Err(error) => {
                    metrics.compared(error.label());
                    Freshness::Unknown {
                        reason: format!("not revalidated: {}", one_line(&error.to_string())),
                    }
                }
            };
            tell.send_replace(Some(outcome));
        });
        Check::begin(outcome)
    }
}

fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() || c == '"' { ' ' } else { c })
        .take(200)
        .collect()
}
