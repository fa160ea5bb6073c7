//! What the facts mean: pure.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_api::Artifact;
use holdfast_api::state::{ClusterState, EVERY_SOURCE};
use holdfast_cli_kit::artifact_status::{copy_status, is_on_its_way};
use holdfast_cli_kit::exit_status::Answer;
use holdfast_cli_kit::finding::{Code, Finding};
use holdfast_cluster_model::advice::ENLARGE;
use serde::Serialize;

/// The fix of a problem that `status` only counts.
const SEE_DOCTOR: &str = "holdfast doctor names the cause and the fix";

/// What was found out. What could not be found out carries the reason.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    pub(crate) release: String,
    pub(crate) namespace: String,
    pub(crate) version: String,
    pub(crate) state: Result<Option<ClusterState>, String>,
    pub(crate) parts: Vec<Part>,
    pub(crate) volume: Result<Volume, String>,
    pub(crate) artifacts: Result<Vec<Artifact>, String>,
}

/// One part's pods; `nodes` are those of the node agent, which are ready after a real pull on their
/// node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Part {
    pub(crate) name: &'static str,
    pub(crate) wanted: Option<u64>,
    pub(crate) ready: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) problem: Option<String>,
}

/// The registry's volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Volume {
    /// `enough`, `filling` (writers are warned), `full` (writes are refused).
    pub(crate) level: &'static str,
    pub(crate) available_bytes: u64,
    pub(crate) total_bytes: u64,
}

impl Volume {
    /// Reads the gauges of a registry replica. Nothing where it has not measured yet, and where
    /// the volume does not answer: the gauges then hold what was true before.
    pub(super) fn of_metrics(text: &str) -> Option<Self> {
        let gauge = |name: &str| {
            let line = text
                .lines()
                .find(|line| line.split_whitespace().next() == Some(name))?;
            // Gauges may be written as floats.
            line.split_whitespace()
                .nth(1)?
                .split('.')
                .next()?
                .parse::<u64>()
                .ok()
        };
        if gauge("holdfast_registry_volume_up") == Some(0) {
            return None;
        }
        let total_bytes = gauge("holdfast_registry_volume_size_bytes").filter(|size| *size > 0)?;
        Some(Self {
            level: match gauge("holdfast_registry_volume_level")? {
                0 => "enough",
                1 => "filling",
                _ => "full",
            },
            available_bytes: gauge("holdfast_registry_volume_available_bytes")?,
            total_bytes,
        })
    }
}

/// What is printed.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Status {
    pub(super) release: String,
    pub(super) namespace: String,
    pub(super) version: String,
    pub(super) registry_address: Option<String>,
    pub(super) rewriting: bool,
    pub(super) rewriting_reason: String,
    pub(super) parts: Vec<Part>,
    pub(super) volume: Option<Volume>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) volume_problem: Option<String>,
    pub(super) images: Images,
    /// Images that are not local, those that fail before those that are on their way.
    pub(super) absent: Vec<Absent>,
    /// What is missing beside images.
    pub(super) problems: Vec<Finding>,
    /// What will be missing without an action; it does not change the answer.
    pub(super) warnings: Vec<Finding>,
    /// What could not be found out.
    pub(super) unknown: Vec<String>,
}

/// Artifacts in numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Images {
    pub(super) wanted: u64,
    pub(super) local: u64,
    /// Each image once, though several namespaces want it; layers that images share count for each
    /// of them.
    pub(super) local_bytes: u64,
    /// Why the others are not local: how many by reason.
    pub(super) by_reason: BTreeMap<String, u64>,
}

/// An image that is not local.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Absent {
    pub(super) namespace: String,
    /// The name of the Artifact.
    pub(super) artifact: String,
    pub(super) source: String,
    pub(super) reason: String,
    pub(super) message: String,
    /// Since when, RFC 3339; empty before the controller's first look.
    pub(super) since: String,
    pub(super) attempts: i64,
}

/// What the facts mean.
pub(super) fn diagnose(facts: &Facts) -> (Answer, Status) {
    let (mut problems, mut warnings, mut unknown) = (Vec::new(), Vec::new(), Vec::new());
    let state = match &facts.state {
        Ok(state) => state.clone(),
        Err(why) => {
            unknown.push(why.clone());
            None
        }
    };
    let rewriting = state.as_ref().is_some_and(|state| state.rewrite);
    let rewriting_reason = match &state {
        Some(state) => state.reason.clone(),
        None if facts.state.is_ok() => "the controller has not said anything yet".to_owned(),
        None => "not known".to_owned(),
    };
    if !rewriting && facts.state.is_ok() {
        problems.push(Finding::new(
            Code::RewritingOff,
            format!(
                "new pods are not rewritten, they pull from their upstreams: {rewriting_reason}"
            ),
            SEE_DOCTOR,
        ));
    }
    for entry in state.iter().flat_map(|state| &state.excluded) {
        if entry.source == EVERY_SOURCE {
            problems.push(Finding::new(
                Code::PolicyRefuses,
                format!(
                    "pods of namespace {} keep their images: {} refuses the registry's references; \
                     holdfast doctor names the fix",
                    entry.namespace, entry.reason
                ),
                SEE_DOCTOR,
            ));
        }
    }
    warnings.extend(state.iter().flat_map(excluded_owners));
    for part in &facts.parts {
        match (part.wanted, part.ready) {
            (Some(wanted), Some(ready)) if ready < wanted => {
                problems.push(Finding::new(
                    Code::PodsNotReady,
                    format!("{}: {ready} of {wanted} ready", part.name),
                    SEE_DOCTOR,
                ));
            }
            (Some(_), Some(_)) => {}
            _ => unknown.push(format!(
                "{}: {}",
                part.name,
                part.problem.clone().unwrap_or_default()
            )),
        }
    }
    match facts.volume.as_ref().map(|volume| volume.level) {
        Ok("full") => problems.push(Finding::new(
            Code::VolumeFull,
            format!("the registry's volume is full: nothing is copied any more; {ENLARGE}"),
            ENLARGE,
        )),
        Ok("filling") => warnings.push(Finding::new(
            Code::VolumeFilling,
            format!("the registry's volume is filling; {ENLARGE}"),
            ENLARGE,
        )),
        _ => {}
    }
    let (mut images, mut absent) = (Images::default(), Vec::new());
    match &facts.artifacts {
        Ok(artifacts) => count(artifacts, &mut images, &mut absent),
        Err(why) => unknown.push(why.clone()),
    }
    let answer = if !problems.is_empty() || !absent.is_empty() {
        Answer::No
    } else if !unknown.is_empty() {
        Answer::Unknown
    } else {
        Answer::Yes
    };
    let status = Status {
        release: facts.release.clone(),
        namespace: facts.namespace.clone(),
        version: facts.version.clone(),
        registry_address: state
            .map(|state| state.registry_address)
            .filter(|address| !address.is_empty()),
        rewriting,
        rewriting_reason,
        parts: facts.parts.clone(),
        volume: facts.volume.clone().ok(),
        volume_problem: facts.volume.clone().err(),
        images,
        absent,
        problems,
        warnings,
        unknown,
    };
    (answer, status)
}

/// The owners whose pods keep their images.
fn excluded_owners(state: &ClusterState) -> impl Iterator<Item = Finding> {
    let owners = state.excluded_owners.iter().filter(|owner| !owner.ended);
    owners.map(|owner| {
        let (kind, namespace, name) = (&owner.kind, &owner.namespace, &owner.name);
        Finding::new(
            Code::OwnerExcluded,
            format!(
                "pods of {kind} {namespace}/{name} keep their images: it deletes pods with other \
                 images"
            ),
            SEE_DOCTOR,
        )
    })
}

fn count(artifacts: &[Artifact], images: &mut Images, absent: &mut Vec<Absent>) {
    let mut counted = BTreeSet::new();
    for artifact in artifacts {
        images.wanted += 1;
        let source = &artifact.spec.source_artifact;
        let status = copy_status(artifact);
        if status.local {
            images.local += 1;
            if counted.insert(source) {
                images.local_bytes += status.size_bytes;
            }
            continue;
        }
        let attempts = artifact.status.as_ref().and_then(|it| it.attempts);
        *images.by_reason.entry(status.reason.clone()).or_default() += 1;
        absent.push(Absent {
            namespace: artifact.metadata.namespace.clone().unwrap_or_default(),
            artifact: artifact.metadata.name.clone().unwrap_or_default(),
            source: source.clone(),
            reason: status.reason,
            message: status.message,
            since: status.since,
            attempts: attempts.unwrap_or(0),
        });
    }
    let on_its_way = |absent: &Absent| is_on_its_way(&absent.reason);
    absent.sort_by_cached_key(|absent| {
        let Absent {
            namespace,
            source,
            artifact,
            ..
        } = absent.clone();
        (on_its_way(absent), namespace, source, artifact)
    });
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::json;

    fn artifact(namespace: &str, source: &str, reason: Option<&str>) -> Artifact {
        let conditions: Vec<_> = reason
            .into_iter()
            .map(|reason| {
                json!({
                    "type": "Ready", "status": if reason == "Copied" { "True" } else { "False" },
                    "reason": reason, "message": "so it is", "observedGeneration": 1,
                    "lastTransitionTime": "2026-01-01T00:00:00Z",
                })
            })
            .collect();
        serde_json::from_value(json!({
            "apiVersion": "holdfast.dev/v1alpha1", "kind": "Artifact",
            "metadata": {"name": "a", "namespace": namespace, "generation": 1},
            "spec": {"sourceArtifact": source},
            "status": {"conditions": conditions, "sizeBytes": 1000},
        }))
        .unwrap()
    }

    /// A part that should have three pods.
    pub(crate) fn part(name: &'static str, ready: u64) -> Part {
        Part {
            name,
            wanted: Some(3),
            ready: Some(ready),
            problem: None,
        }
    }

    fn healthy() -> Facts {
        Facts {
            release: "holdfast".to_owned(),
            namespace: "sys".to_owned(),
            version: "0.1.0".to_owned(),
            state: Ok(Some(ClusterState {
                registry_address: "10.96.0.50".to_owned(),
                rewrite: true,
                reason: "every node is prepared".to_owned(),
                ..ClusterState::default()
            })),
            parts: vec![part("registry", 3), part("nodes", 3)],
            volume: Ok(Volume {
                level: "enough",
                available_bytes: 1,
                total_bytes: 2,
            }),
            artifacts: Ok(vec![
                artifact("a", "r.io/a:1", Some("Copied")),
                artifact("b", "r.io/a:1", Some("Copied")),
            ]),
        }
    }

    fn check(what: &str, change: impl FnOnce(&mut Facts), expect: Answer, part: &str) {
        let mut facts = healthy();
        change(&mut facts);
        let (answer, status) = diagnose(&facts);
        assert_eq!(answer, expect, "{what}: {status:?}");
        let text = serde_json::to_string(&status).unwrap();
        assert!(text.contains(part), "{what}: {part} is not in {text}");
    }

    #[test]
    fn one_thing_that_is_missing_is_enough() {
        check("ok", |_| {}, Answer::Yes, "every node is prepared");
        check(
            "no state",
            |facts| facts.state = Ok(None),
            Answer::No,
            "has not said anything yet",
        );
        check(
            "a policy refuses the registry",
            |facts| {
                let entry = json!({"namespace": "a", "source": "*", "reason": "admission webhook w", "since": "2026-01-01T00:00:00Z"});
                if let Ok(Some(state)) = &mut facts.state {
                    state.excluded = vec![serde_json::from_value(entry).unwrap()];
                }
            },
            Answer::No,
            "admission webhook w refuses",
        );
        check(
            "an owner compares images",
            |facts| {
                let owner = json!({
                    "namespace": "a", "kind": "PodSet", "name": "db", "ended": false,
                    "since": "2026-01-01T00:00:00Z", "until": "2026-01-02T00:00:00Z",
                });
                if let Ok(Some(state)) = &mut facts.state {
                    state.excluded_owners = vec![serde_json::from_value(owner).unwrap()];
                }
            },
            Answer::Yes,
            "pods of PodSet a/db keep their images",
        );
        check(
            "a part is not ready",
            |facts| facts.parts[0].ready = Some(2),
            Answer::No,
            "registry: 2 of 3 ready",
        );
        check(
            "the volume is full",
            |facts| facts.volume.as_mut().unwrap().level = "full",
            Answer::No,
            "nothing is copied any more; enlarge",
        );
        check(
            "the volume is filling",
            |facts| facts.volume.as_mut().unwrap().level = "filling",
            Answer::Yes,
            "volume is filling; enlarge",
        );
        check(
            "the volume is not known",
            |facts| facts.volume = Err("no way".to_owned()),
            Answer::Yes,
            "no way",
        );
        check(
            "an image fails",
            |facts| facts.artifacts = Ok(vec![artifact("a", "r.io/b:1", Some("NotFound"))]),
            Answer::No,
            "NotFound",
        );
        check(
            "an image is new",
            |facts| facts.artifacts = Ok(vec![artifact("a", "r.io/b:1", None)]),
            Answer::No,
            "Waiting",
        );
        check(
            "Artifacts are forbidden",
            |facts| facts.artifacts = Err("forbidden".to_owned()),
            Answer::Unknown,
            "forbidden",
        );
        check(
            "the state is forbidden",
            |facts| facts.state = Err("forbidden".to_owned()),
            Answer::Unknown,
            "forbidden",
        );
        check(
            "what is missing counts more than what is unknown",
            |facts| {
                facts.state = Err("forbidden".to_owned());
                facts.parts[0].ready = Some(0);
            },
            Answer::No,
            "0 of 3",
        );
    }

    #[test]
    fn an_image_of_two_namespaces_fills_the_volume_once() {
        let (_, status) = diagnose(&healthy());
        assert_eq!((status.images.wanted, status.images.local), (2, 2));
        assert_eq!(status.images.local_bytes, 1000);
    }

    #[test]
    fn what_fails_comes_before_what_is_on_its_way() {
        let mut facts = healthy();
        facts.artifacts = Ok(vec![
            artifact("a", "r.io/a:1", Some("Copying")),
            artifact("b", "r.io/b:1", Some("Unauthorized")),
            artifact("a", "r.io/c:1", None),
        ]);
        let (_, status) = diagnose(&facts);
        let order: Vec<_> = status
            .absent
            .iter()
            .map(|absent| absent.reason.as_str())
            .collect();
        assert_eq!(order, ["Unauthorized", "Copying", "Waiting"]);
    }

    #[test]
    fn the_volume_is_read_from_a_replicas_metrics() {
        let metrics = "# HELP x\nholdfast_registry_volume_available_bytes 10\nholdfast_registry_volume_size_bytes 40\n\
                       holdfast_registry_volume_level 1\nholdfast_registry_volume_up 1\n";
        let volume = Volume::of_metrics(metrics).unwrap();
        assert_eq!((volume.level, volume.available_bytes), ("filling", 10));
        let not_measured = metrics.replace("size_bytes 40", "size_bytes 0");
        assert_eq!(Volume::of_metrics(&not_measured), None);
        assert_eq!(Volume::of_metrics(""), None);
        let hangs = metrics.replace("volume_up 1", "volume_up 0");
        assert_eq!(Volume::of_metrics(&hangs), None);
    }
}
