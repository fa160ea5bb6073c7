//! The status of an Artifact: built by a pure function, written by server-side apply, and retried
//! on conflicts.

use super::fill::Failure;
use holdfast_api::Artifact;
use holdfast_api::artifact::{ArtifactStatus, MAX_LISTED_REFERENCES, READY, Reason, short_digest};
use holdfast_api::fill::FillResult;
use holdfast_cluster_index::apply::FIELD_MANAGER;
use holdfast_cluster_model::Demand;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::api::{Api, Patch, PatchParams};
use kube::{Resource as _, ResourceExt as _};
use serde_json::json;
use std::time::Duration;

/// Attempts to write one status.
const ATTEMPTS: u32 = 6;
/// The longest message of a condition.
const MAX_MESSAGE: usize = 1024;

/// Precedes, in a message, what the registry lacks of an index.
const LACKS: &str = "; not held: ";

/// The result of a run for the status.
#[derive(Clone, Debug)]
pub enum News {
    /// Nothing new about the copy; references may have changed.
    Unchanged,
    /// The registry holds the image.
    Copied(FillResult),
    /// It does not.
    Failed {
        /// Why.
        failure: Failure,
        /// Failures in a row, this one included.
        attempts: u32,
    },
}

/// The status that follows from the one before, at `now`.
pub fn build(
    artifact: &Artifact,
    demand: Option<&Demand>,
    news: &News,
    now: jiff::Timestamp,
) -> ArtifactStatus {
    let mut status = artifact.status.clone().unwrap_or_default();
    let owners = demand.map(|demand| &demand.owners);
    status.reference_count =
        Some(owners.map_or(0, |owners| i64::try_from(owners.len()).unwrap_or(i64::MAX)));
    status.references = owners
        .into_iter()
        .flatten()
        .take(MAX_LISTED_REFERENCES)
        .cloned()
        .collect();
    let (reason, message) = match news {
        News::Unchanged => return status,
        News::Copied(result) => (Reason::Copied, set_copied(&mut status, result, demand, now)),
        News::Failed { failure, attempts } => {
            // Digest and size stay, because a copy is served even if a later request fails.
            status.attempts = Some(i64::from(*attempts));
            let ahead = ahead_of(demand).map_or_else(String::new, |owner| {
                format!("; no pod uses it yet, it is prefetched for {owner}")
            });
            (failure.reason, format!("{}{ahead}", failure.message))
        }
    };
    set_ready(
        &mut status,
        artifact.metadata.generation,
        reason,
        &message,
        now,
    );
    status
}

/// Takes over the result of a copy. Returns the message of the condition.
fn set_copied(
    status: &mut ArtifactStatus,
    result: &FillResult,
    demand: Option<&Demand>,
    now: jiff::Timestamp,
) -> String {
    let same = status.digest.as_deref() == Some(&result.digest) && status.is_ready();
    if !same {
        status.last_copy_time = Some(Time(now));
    }
    status.digest = Some(result.digest.clone());
    status.short_digest = Some(short_digest(&result.digest));
    status.media_type = Some(result.media_type.clone());
    status.size_bytes = i64::try_from(result.size_bytes).ok();
    status.attempts = Some(0);
    // The message of the first copy stays, also for later pods.
    let mut message = match status.ready().filter(|_| same) {
        Some(condition) => {
            let message = condition.message.split(LACKS).next();
            message.unwrap_or_default().to_owned()
        }
        None => format!(
            "the registry holds {}{}",
            result.digest,
            ahead_of(demand).map_or_else(String::new, |owner| format!(", prefetched for {owner}"))
        ),
    };
    if !result.missing.is_empty() {
        message = format!("{message}{LACKS}{}", result.missing.join(", "));
    }
    message
}

/// Sets the Ready condition.
fn set_ready(
    status: &mut ArtifactStatus,
    generation: Option<i64>,
    reason: Reason,
    message: &str,
    now: jiff::Timestamp,
) {
    status.observed_generation = generation;
    let ready = if reason == Reason::Copied {
        "True"
    } else {
        "False"
    };
    let transition = status
        .ready()
        .filter(|condition| condition.status == ready)
        .map_or(Time(now), |condition| {
            condition.last_transition_time.clone()
        });
    let condition = Condition {
        type_: READY.to_owned(),
        status: ready.to_owned(),
        reason: reason.as_str().to_owned(),
        message: message.chars().take(MAX_MESSAGE).collect(),
        observed_generation: generation,
        last_transition_time: transition,
    };
    status
        .conditions
        .retain(|condition| condition.type_ != READY);
    status.conditions.push(condition);
}

/// The owner for which an image is prefetched, `Deployment web`.
fn ahead_of(demand: Option<&Demand>) -> Option<String> {
    let owner = &demand?.ahead.as_ref()?.reference;
    Some(format!("{} {}", owner.kind, owner.name))
}

/// Writes the status. Conflicts and temporary failures of the API server are retried (SPEC 36). An
/// Artifact that is gone is no error.
pub async fn write(
    client: &kube::Client,
    artifact: &Artifact,
    status: &ArtifactStatus,
) -> Result<(), kube::Error> {
    let api: Api<Artifact> =
        Api::namespaced(client.clone(), &artifact.namespace().unwrap_or_default());
    let name = artifact.name_any();
    let patch = json!({
        "apiVersion": Artifact::api_version(&()),
        "kind": Artifact::kind(&()),
        // The UID keeps the status from an object that was recreated under the same name.
        "metadata": {"name": name, "uid": artifact.metadata.uid},
        "status": status,
    });
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let mut attempt = 1;
    loop {
        match api
            .patch_status(&name, &params, &Patch::Apply(&patch))
            .await
        {
            Ok(_) => return Ok(()),
            Err(kube::Error::Api(error)) if error.code == 404 => return Ok(()),
            Err(kube::Error::Api(error)) if error.code == 409 && error.message.contains("uid") => {
                return Ok(());
            }
            Err(error) if attempt >= ATTEMPTS || !is_temporary(&error) => return Err(error),
            Err(error) => {
                tracing::debug!(
                    artifact.name = name, %error, attempt,
                    "retrying a status update after a conflict"
                );
                tokio::time::sleep(Duration::from_millis(100 << attempt)).await;
                attempt += 1;
            }
        }
    }
}

fn is_temporary(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) => matches!(status.code, 409 | 429 | 500..=599),
        kube::Error::HyperError(_) | kube::Error::Service(_) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_api::ArtifactSpec;
    use holdfast_api::artifact::Reference;
    use holdfast_cluster_model::Owner;

    fn at(second: i64) -> jiff::Timestamp {
        jiff::Timestamp::from_second(second).unwrap()
    }

    fn artifact(status: Option<ArtifactStatus>) -> Artifact {
        let mut artifact = Artifact::new("app", ArtifactSpec::default());
        artifact.metadata.generation = Some(3);
        artifact.status = status;
        artifact
    }

    fn copied(digest: &str) -> News {
        News::Copied(FillResult {
            digest: digest.to_owned(),
            size_bytes: 7,
            ..FillResult::default()
        })
    }

    fn failed(reason: Reason) -> News {
        News::Failed {
            failure: Failure {
                reason,
                message: "m".to_owned(),
                retry_after: None,
            },
            attempts: 2,
        }
    }

    // SPEC 14
    #[test]
    fn a_copy_confirmed_again_changes_nothing() {
        let first = build(&artifact(None), None, &copied("sha256:aabb"), at(10));
        assert_eq!(first.short_digest.as_deref(), Some("aabb"));
        assert_eq!(first.conditions[0].status, "True");
        assert_eq!(first.observed_generation, Some(3));
        let again = build(
            &artifact(Some(first.clone())),
            None,
            &copied("sha256:aabb"),
            at(99),
        );
        assert_eq!(again, first, "an equal status is not written");
    }

    #[test]
    fn what_is_copied_ahead_says_for_whom() {
        let ahead = Demand {
            ahead: Some(Owner {
                reference: Reference {
                    kind: "CronJob".to_owned(),
                    name: "nightly".to_owned(),
                },
                uid: "u".to_owned(),
            }),
            ..Demand::default()
        };
        let message = |status: &ArtifactStatus| status.conditions[0].message.clone();
        let failing = build(
            &artifact(None),
            Some(&ahead),
            &failed(Reason::NotFound),
            at(9),
        );
        assert_eq!(
            message(&failing),
            "m; no pod uses it yet, it is prefetched for CronJob nightly"
        );
        let first = build(
            &artifact(Some(failing)),
            Some(&ahead),
            &copied("sha256:aa"),
            at(10),
        );
        assert_eq!(
            message(&first),
            "the registry holds sha256:aa, prefetched for CronJob nightly"
        );
        let with_a_pod = build(
            &artifact(Some(first.clone())),
            None,
            &copied("sha256:aa"),
            at(20),
        );
        assert_eq!(
            message(&with_a_pod),
            message(&first),
            "it was, and that costs no write"
        );
        let moved = build(&artifact(Some(first)), None, &copied("sha256:bb"), at(30));
        assert_eq!(message(&moved), "the registry holds sha256:bb");
    }

    #[test]
    fn what_the_registry_lacks_of_an_index_is_reported() {
        let lacking = |missing: &[&str]| {
            News::Copied(FillResult {
                digest: "sha256:aa".to_owned(),
                missing: missing.iter().map(|text| (*text).to_owned()).collect(),
                ..FillResult::default()
            })
        };
        let mut status = None;
        for (missing, expect) in [
            (
                &["linux/arm64: the index has none"][..],
                "; not held: linux/arm64: the index has none",
            ),
            (&["a: x", "b: y"], "; not held: a: x, b: y"),
            (&[], ""),
        ] {
            let next = build(&artifact(status), None, &lacking(missing), at(1));
            assert_eq!(
                next.conditions[0].message,
                format!("the registry holds sha256:aa{expect}")
            );
            assert_eq!(next.conditions[0].status, "True");
            status = Some(next);
        }
    }

    #[test]
    fn the_transition_is_the_time_of_the_change() {
        let failed_once = build(&artifact(None), None, &failed(Reason::NotFound), at(10));
        let failed_twice = build(
            &artifact(Some(failed_once.clone())),
            None,
            &failed(Reason::Unauthorized),
            at(20),
        );
        let condition = &failed_twice.conditions[0];
        assert_eq!(
            (condition.reason.as_str(), &condition.last_transition_time),
            ("Unauthorized", &Time(at(10)))
        );
        assert_eq!(failed_twice.attempts, Some(2));
        let good = build(
            &artifact(Some(failed_twice)),
            None,
            &copied("sha256:aa"),
            at(30),
        );
        assert_eq!(good.conditions[0].last_transition_time, Time(at(30)));
        assert_eq!((good.attempts, good.conditions.len()), (Some(0), 1));
    }

    #[test]
    fn references_are_counted_in_full_and_listed_in_part() {
        let owners = (0..25)
            .map(|n| Reference {
                kind: "ReplicaSet".to_owned(),
                name: format!("rs-{n:02}"),
            })
            .collect();
        let demand = Demand {
            owners,
            ..Demand::default()
        };
        let status = build(&artifact(None), Some(&demand), &News::Unchanged, at(1));
        assert_eq!(
            (status.reference_count, status.references.len()),
            (Some(25), 10)
        );
        let none = build(&artifact(Some(status)), None, &News::Unchanged, at(2));
        assert_eq!((none.reference_count, none.references.len()), (Some(0), 0));
    }
}
