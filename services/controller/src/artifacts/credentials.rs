//! The credentials that the pods of an image bring: their pull secrets and those of their service accounts (SPEC 35); where
//! no pod lives, those of the templates that pods would be made of.
//!
//! Read by name when they are needed, never listed, never kept. Only the word of a living pod or of a workload counts:
//! whoever reaches the webhook can have an Artifact made that names any pull secret of any namespace, but a pod in a
//! namespace may use its pull secrets anyway, and who may make a workload may make pods.

use super::demand::Demand;
use holdfast_api::ArtifactSpec;
use holdfast_api::fill::Credential;
use holdfast_core::Reference;
use holdfast_core::credentials::{PullSecret, candidates};
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use kube::api::Api;
use std::collections::BTreeSet;
use std::time::Duration;

/// The most pull secrets that are looked at for one image.
const MAX_SECRETS: usize = 64;

/// How long an announced Artifact waits for its pod to be seen; the watch usually shows it within a second.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Whose credentials are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice<'a> {
    /// Those that the living pods, or else the templates, bring.
    Pods(&'a Demand),
    /// Nobody's yet: for at most this long the pod is waited for.
    Wait(Duration),
    /// Nobody's.
    Nobody {
        /// The Artifact names some, and neither a living pod nor a workload vouches for them.
        unproven: bool,
    },
}

/// Whose credentials are used for an Artifact that is known since `known`. What it names itself is a hint that a pod comes,
/// never a permission.
pub fn choose<'a>(spec: &ArtifactSpec, demand: Option<&'a Demand>, known: Duration) -> Choice<'a> {
    let same_image = |demand: &Demand| {
        Reference::parse(&spec.source_artifact)
            .is_ok_and(|reference| reference.to_string() == demand.source)
    };
    // The demand was found by the Artifact's name, and anybody may give an Artifact a name that is another image's.
    if let Some(demand) = demand.filter(|demand| demand.asks_for_copy() && same_image(demand)) {
        return Choice::Pods(demand);
    }
    let announced = spec.service_account_name.is_some()
        || spec
            .pull_secrets
            .as_ref()
            .is_some_and(|names| !names.is_empty());
    match PATIENCE.saturating_sub(known) {
        rest if announced && !rest.is_zero() => Choice::Wait(rest),
        _ => Choice::Nobody {
            unproven: announced,
        },
    }
}

/// What was found, and what was not.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// To be tried in turn.
    pub credentials: Vec<Credential>,
    /// Why some are missing, for people; names only.
    pub problems: Vec<String>,
}

/// Reads every pull secret that `demand` names, directly or by service accounts, and picks what is for `reference`.
pub async fn find(
    client: &kube::Client,
    namespace: &str,
    demand: &Demand,
    reference: &Reference,
) -> Result<Found, kube::Error> {
    let mut found = Found::default();
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let mut names: Vec<String> = demand.pull_secrets.iter().cloned().collect();
    let mut seen: BTreeSet<String> = demand.pull_secrets.clone();
    for account in &demand.service_accounts {
        let found_account = match accounts.get_opt(account).await {
            Err(kube::Error::Api(status)) if status.code == 403 => {
                found
                    .problems
                    .push(format!("service account {account} may not be read"));
                None
            }
            other => other?,
        };
        for secret in found_account
            .and_then(|account| account.image_pull_secrets)
            .unwrap_or_default()
        {
            if !secret.name.is_empty() && seen.insert(secret.name.clone()) {
                names.push(secret.name);
            }
        }
    }
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let mut parsed = Vec::new();
    for name in names.iter().take(MAX_SECRETS) {
        match secrets.get_opt(name).await {
            Ok(None) => found
                .problems
                .push(format!("pull secret {name} does not exist")),
            Ok(Some(secret)) => match parse(&secret) {
                Ok(secret) => parsed.push(secret),
                Err(problem) => found.problems.push(format!("pull secret {name} {problem}")),
            },
            Err(kube::Error::Api(status)) if status.code == 403 => {
                found
                    .problems
                    .push(format!("pull secret {name} may not be read"));
            }
            Err(error) => return Err(error),
        }
    }
    found.credentials = candidates(&parsed, reference)
        .into_iter()
        .map(|credential| {
            // Like docker: where there is a token, it is what logs in.
            let token = credential.identity_token;
            Credential {
                identity_token: token.is_some(),
                password: token.unwrap_or(credential.password).into(),
                username: credential.username,
            }
        })
        .collect();
    Ok(found)
}

fn parse(secret: &Secret) -> Result<PullSecret, String> {
    let data = secret.data.as_ref();
    let payload = |key: &str| {
        data.and_then(|data| data.get(key))
            .map(|bytes| bytes.0.as_slice())
    };
    let parsed = match (payload(".dockerconfigjson"), payload(".dockercfg")) {
        (Some(bytes), _) => PullSecret::from_dockerconfigjson(bytes),
        (None, Some(bytes)) => PullSecret::from_dockercfg(bytes),
        (None, None) => return Err("holds no .dockerconfigjson".to_owned()),
    };
    parsed.map_err(|error| format!("cannot be read: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGE: &str = "registry.example/team/app:1";

    fn spec(secrets: &[&str], account: Option<&str>) -> ArtifactSpec {
        ArtifactSpec {
            source_artifact: IMAGE.to_owned(),
            pull_secrets: Some(secrets.iter().map(|&name| name.to_owned()).collect()),
            service_account_name: account.map(str::to_owned),
            ..ArtifactSpec::default()
        }
    }

    fn demand(source: &str, pod: Option<&str>) -> Demand {
        Demand {
            source: source.to_owned(),
            pod: pod.map(|name| (name.to_owned(), "uid".to_owned())),
            pull_secrets: ["own".to_owned()].into(),
            ..Demand::default()
        }
    }

    fn check(spec: &ArtifactSpec, demand: Option<&Demand>, seconds: u64, expect: Choice<'_>) {
        let choice = choose(spec, demand, Duration::from_secs(seconds));
        assert_eq!(choice, expect, "{spec:?}, {demand:?}, {seconds} s");
    }

    #[test]
    fn only_a_living_pod_of_that_image_proves_a_right_to_pull_secrets() {
        let wait = |seconds| Choice::Wait(Duration::from_secs(seconds));
        let (unproven, nobody) = (
            Choice::Nobody { unproven: true },
            Choice::Nobody { unproven: false },
        );
        let (by_hand, announced) = (spec(&[], None), spec(&["theirs"], Some("robot")));
        let by_account = spec(&[], Some("robot"));
        let (living, finished) = (demand(IMAGE, Some("pod")), demand(IMAGE, None));
        let other = demand("registry.example/team/other:1", Some("pod"));

        check(&by_hand, None, 0, nobody);
        check(&by_hand, Some(&living), 0, Choice::Pods(&living));
        check(&by_hand, Some(&finished), 0, nobody);
        check(&by_hand, Some(&other), 0, nobody);

        for spec in [&announced, &by_account] {
            check(spec, Some(&living), 0, Choice::Pods(&living));
            check(spec, Some(&living), 99, Choice::Pods(&living));
            for nothing in [None, Some(&finished), Some(&other)] {
                check(spec, nothing, 0, wait(10));
                check(spec, nothing, 4, wait(6));
                check(spec, nothing, 10, unproven);
                check(spec, nothing, 99, unproven);
            }
        }
    }

    #[test]
    fn an_image_is_the_same_however_it_is_written() {
        let mut short = spec(&[], None);
        short.source_artifact = "nginx".to_owned();
        let living = demand("docker.io/library/nginx:latest", Some("pod"));
        check(&short, Some(&living), 0, Choice::Pods(&living));
    }
}
