//! Checks whether a local tag still has the upstream's digest. The settings say how often; no pull
//! waits for the check, and one tag has one check at a time.

use std::{collections::HashMap, time::Duration};

use holdfast_core::{Digest, ManifestRef, RepositoryName, Tag};
use tokio::{sync::watch, time::Instant};

use super::Fills;
use crate::pull_through::Freshness;
use holdfast_upstream::UpstreamRepository;

/// For how long an upstream that did not tell is not asked about this tag again.
const FAILURE_TTL: Duration = Duration::from_secs(5);
/// Most tags whose comparison is remembered; above, the memory starts over.
const MAX_TAGS: usize = 20_000;

/// A comparison, under way or done.
#[derive(Debug, Clone)]
pub(super) struct Check {
    begun: Instant,
    outcome: watch::Receiver<Option<Freshness>>,
}

impl Check {
    /// Whether it still counts.
    fn stands(&self, fresh: Duration, now: Instant) -> bool {
        let age = now.duration_since(self.begun);
        match &*self.outcome.borrow() {
            // The asking client ends within the time limits of a request.
            None => self.outcome.has_changed().is_ok(),
            Some(Freshness::Current) => age < fresh,
            Some(_) => age < fresh.min(FAILURE_TTL),
        }
    }
}

/// Comparisons by repository, tag and what is local.
pub(super) type Checks = HashMap<(RepositoryName, Tag, Digest), Check>;

impl Fills {
    /// Compares a tag with its upstream. Answers within the deadline of a revalidation; the
    /// question goes on behind it.
    pub(super) async fn revalidate_tag(
        &self,
        repo: &RepositoryName,
        tag: &Tag,
        local: &Digest,
    ) -> Freshness {
        let settings = &self.inner.settings;
        if !settings.revalidate_pulls {
            return Freshness::Current;
        }
        let reference = ManifestRef::Tag(tag.clone());
        let Some(source) = self.inner.sources.of_manifest(repo, &reference).await else {
            return Freshness::Current;
        };
        let now = Instant::now();
        let mut check = {
            let mut checks = self.inner.checks.lock();
            let key = (repo.clone(), tag.clone(), local.clone());
            match checks.get(&key) {
                Some(known) if known.stands(settings.tag_fresh, now) => known.clone(),
                _ => {
                    if checks.len() >= MAX_TAGS {
                        checks.clear();
                    }
                    let check = self.ask(source, &key);
                    checks.insert(key, check.clone());
                    check
                }
            }
        };
        let deadline = check.begun + self.inner.upstreams.revalidate_deadline();
        let told = tokio::time::timeout_at(deadline, check.outcome.wait_for(Option::is_some)).await;
        match told {
            Ok(Ok(outcome)) => outcome.clone().unwrap_or(Freshness::Current),
            _ => Freshness::Unknown {
                reason: "not revalidated: the upstream did not answer in time".to_owned(),
            },
        }
    }

    fn ask(&self, source: UpstreamRepository, key: &(RepositoryName, Tag, Digest)) -> Check {
        let (tell, outcome) = watch::channel(None);
        let (fills, (repo, tag, local)) = (self.clone(), key.clone());
        tokio::spawn(async move {
            let answer = fills.inner.upstreams.resolve(&source, tag.as_str()).await;
            let metrics = &fills.inner.metrics;
            let outcome = match answer {
                Ok(current) if current != local => {
                    metrics.compared("moved");
                    let copier = fills.clone();
                    // What is local is served now; the next pull gets the new one.
                    tokio::spawn(async move {
                        let (reference, platforms) =
                            (ManifestRef::Tag(tag), &copier.inner.settings.platforms);
                        drop(copier.image(&source, &repo, &reference, platforms).await);
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
        Check {
            begun: Instant::now(),
            outcome,
        }
    }

    /// A tag that was copied a moment ago is fresh.
    pub(super) fn mark_fresh(&self, repo: &RepositoryName, tag: &Tag, digest: &Digest) {
        let mut checks = self.inner.checks.lock();
        if checks.len() >= MAX_TAGS {
            checks.clear();
        }
        let check = Check {
            begun: Instant::now(),
            outcome: watch::channel(Some(Freshness::Current)).1,
        };
        checks.insert((repo.clone(), tag.clone(), digest.clone()), check);
    }
}

fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() || c == '"' { ' ' } else { c })
        .take(200)
        .collect()
}
