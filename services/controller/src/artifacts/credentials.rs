//! The credentials that the pods of an image bring: their pull secrets and those of their service
//! accounts (SPEC 35); without running pods, those of the workloads' templates.
//!
//! Read by name when they are needed, never listed, never kept. Only running pods and workloads
//! count: any client of the webhook can announce an Artifact with the name of any pull secret, but
//! only a user who may create pods or workloads may use the pull secrets of the namespace.

use holdfast_api::ArtifactSpec;
use holdfast_api::fill::Credential;
use holdfast_cluster_model::Demand;
use holdfast_core::Reference;
use holdfast_core::credentials::{Candidates, MAX_CANDIDATES, PullSecret};
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use kube::api::Api;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Pull secrets that are read for one image.
const MAX_SECRETS: usize = 64;
/// Service accounts that are read for one image.
const MAX_SERVICE_ACCOUNTS: usize = 64;
/// Secrets and service accounts that are in memory at a time, for all images together. Each may
/// have 1.5 MiB.
pub const READ_AT_ONCE: usize = 2;

/// How long an announced Artifact waits for its pod, which the watch usually shows within a second.
pub const POD_WAIT: Duration = Duration::from_secs(10);

/// Whose credentials are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice<'a> {
    /// Those of the running pods, or else of the templates.
    Pods(&'a Demand),
    /// None yet: the pod is expected within this time.
    Wait(Duration),
    /// None: no pod or workload needs the image.
    NoDemand {
        /// Whether the Artifact names pull secrets that no running pod or workload uses.
        unproven: bool,
    },
}

/// Whose credentials are used for an Artifact that has been known for `known`. Pull secrets in its
/// spec announce a pod; they are no permission.
pub fn choose<'a>(spec: &ArtifactSpec, demand: Option<&'a Demand>, known: Duration) -> Choice<'a> {
    let same_image = |demand: &Demand| {
        Reference::parse(&spec.source_artifact)
            .is_ok_and(|reference| reference.to_string() == demand.source)
    };
    // The demand was found by the Artifact's name, which a user may have given to another image.
    if let Some(demand) = demand.filter(|demand| demand.asks_for_copy() && same_image(demand)) {
        return Choice::Pods(demand);
    }
    let announced = spec.service_account_name.is_some()
        || spec
            .pull_secrets
            .as_ref()
            .is_some_and(|names| !names.is_empty());
    match POD_WAIT.saturating_sub(known) {
        rest if announced && !rest.is_zero() => Choice::Wait(rest),
        _ => Choice::NoDemand {
            unproven: announced,
        },
    }
}

/// The credentials that were found, and the problems.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// The credentials, in the order to try.
    pub credentials: Vec<Credential>,
    /// Why some are missing, for people. Only names of objects, no content.
    pub problems: Vec<String>,
}

/// Reads the pull secrets that `demand` names, directly or by service accounts, and picks what is
/// for `reference`. Each object is read in its turn of `turns`, and of each only what is for
/// `reference` is kept.
pub async fn find(
    client: &kube::Client,
    turns: &Semaphore,
    namespace: &str,
    demand: &Demand,
    reference: &Reference,
) -> Result<Found, kube::Error> {
    let mut found = Found::default();
    let names = secret_names(client, turns, namespace, demand, &mut found.problems).await?;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let mut candidates = Candidates::new(reference);
    for name in &names {
        let _turn = turns.acquire().await.ok();
        match secrets.get_opt(name).await {
            Ok(None) => found
                .problems
                .push(format!("pull secret {name} does not exist")),
            Ok(Some(secret)) => match parse(&secret) {
                Ok(secret) => {
                    let problem = candidates.add(secret).map(|problem| {
                        format!("an entry of pull secret {name} cannot be used: {problem}")
                    });
                    found.problems.extend(problem);
                }
                Err(problem) => found.problems.push(format!("pull secret {name} {problem}")),
            },
            Err(kube::Error::Api(status)) if status.code == 403 => {
                found
                    .problems
                    .push(format!("reading pull secret {name} is forbidden"));
            }
            Err(error) => return Err(error),
        }
    }
    found.credentials = candidates
        .into_credentials()
        .into_iter()
        .map(|credential| {
            // As in docker, an identity token takes precedence over the password.
            let token = credential.identity_token;
            Credential {
                identity_token: token.is_some(),
                password: token.unwrap_or(credential.password).into(),
                username: credential.username,
            }
        })
        .collect();
    if found.credentials.len() == MAX_CANDIDATES {
        found
            .problems
            .push(format!("at most {MAX_CANDIDATES} credentials are tried"));
    }
    Ok(found)
}

/// The names of the pull secrets, those that `demand` names directly first, [`MAX_SECRETS`] at
/// most.
async fn secret_names(
    client: &kube::Client,
    turns: &Semaphore,
    namespace: &str,
    demand: &Demand,
    problems: &mut Vec<String>,
) -> Result<Vec<String>, kube::Error> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let mut names: Vec<String> = Vec::new();
    let mut more = demand.pull_secrets.len() > MAX_SECRETS;
    names.extend(demand.pull_secrets.iter().take(MAX_SECRETS).cloned());
    let mut seen: BTreeSet<String> = names.iter().cloned().collect();
    for account in demand.service_accounts.iter().take(MAX_SERVICE_ACCOUNTS) {
        let _turn = turns.acquire().await.ok();
        let found = match accounts.get_opt(account).await {
            Err(kube::Error::Api(status)) if status.code == 403 => {
                problems.push(format!("reading service account {account} is forbidden"));
                None
            }
            other => other?,
        };
        let listed = found.and_then(|account| account.image_pull_secrets);
        for secret in listed.unwrap_or_default() {
            if secret.name.is_empty() || seen.contains(&secret.name) {
                continue;
            }
            if names.len() == MAX_SECRETS {
                more = true;
                break;
            }
            seen.insert(secret.name.clone());
            names.push(secret.name);
        }
    }
    if more {
        problems.push(format!(
            "at most {MAX_SECRETS} pull secrets are read for one image"
        ));
    }
    if demand.service_accounts.len() > MAX_SERVICE_ACCOUNTS {
        problems.push(format!(
            "at most {MAX_SERVICE_ACCOUNTS} service accounts are read for one image"
        ));
    }
    Ok(names)
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
        (None, None) => return Err("has no key .dockerconfigjson".to_owned()),
    };
    parsed.map_err(|error| format!("cannot be read: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{Request, Response};
    use k8s_openapi::ByteString;
    use kube::client::Body;
    use serde_json::json;

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

    /// Answers every request for a service account or a secret; what was asked for, and what `find`
    /// found.
    async fn found(demand: &Demand) -> (Vec<String>, Found) {
        let (service, mut server) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
        let client = kube::Client::new(service, "apps");
        let answer = async {
            let mut asked = Vec::new();
            while let Some((request, reply)) = server.next_request().await {
                let (_, name) = request.uri().path().rsplit_once('/').unwrap();
                let number: usize = name.rsplit_once('-').unwrap().1.parse().unwrap();
                let object = if request.uri().path().contains("serviceaccounts") {
                    let names =
                        (0..40).map(|index| json!({"name": format!("a-{}", number * 40 + index)}));
                    json!({"metadata": {"name": name}, "imagePullSecrets": names.collect::<Vec<_>>()})
                } else {
                    let auth = json!({"auths": {
                        "registry.example": {"username": format!("{name}-1"), "password": "p"},
                        "*.example": {"username": format!("{name}-2"), "password": "p"},
                    }});
                    let payload = ByteString(auth.to_string().into_bytes());
                    json!({"metadata": {"name": name}, "data": {".dockerconfigjson": payload}})
                };
                asked.push(name.to_owned());
                reply.send_response(Response::new(Body::from(object.to_string().into_bytes())));
            }
            asked
        };
        let turns = Semaphore::new(READ_AT_ONCE);
        let reference = Reference::parse(IMAGE).unwrap();
        let ask = async move { find(&client, &turns, "apps", demand, &reference).await };
        let (asked, found) = tokio::join!(answer, ask);
        (asked, found.unwrap())
    }

    #[tokio::test]
    async fn the_pull_secrets_and_accounts_of_an_image_are_bounded() {
        let names = |prefix: &str, count: usize| -> BTreeSet<String> {
            (0..count)
                .map(|index| format!("{prefix}-{index}"))
                .collect()
        };
        for (secrets, accounts, asked, problems) in [
            (3, 1, 44, 1),
            (64, 0, 64, 1),
            (65, 0, 64, 2),
            (0, 2, 66, 2),
            (64, 64, 128, 2),
            (64, 65, 128, 3),
        ] {
            let mut demand = demand(IMAGE, Some("pod"));
            (demand.pull_secrets, demand.service_accounts) =
                (names("s", secrets), names("robot", accounts));
            let (all, found) = found(&demand).await;
            assert_eq!(all.len(), asked, "{secrets}, {accounts}: {all:?}");
            assert_eq!(found.problems.len(), problems, "{:?}", found.problems);
            assert_eq!(found.credentials.len(), MAX_CANDIDATES);
            let first = &found.credentials.first().unwrap().username;
            assert!(first.ends_with("-1"), "{first}");
        }
    }

    #[tokio::test]
    async fn an_entry_that_cannot_be_used_is_a_problem_and_the_others_are_tried() {
        let (service, mut server) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
        let client = kube::Client::new(service, "apps");
        let answer = async {
            let (_, reply) = server.next_request().await.unwrap();
            let auth = json!({"auths": {
                "registry.example": {"auth": "hunter2"},
                "*.example": {"auth": "dXNl\ncjpw\r\n"},
                "other.example": 7,
            }});
            let payload = ByteString(auth.to_string().into_bytes());
            let secret =
                json!({"metadata": {"name": "own"}, "data": {".dockerconfigjson": payload}});
            reply.send_response(Response::new(Body::from(secret.to_string().into_bytes())));
        };
        let turns = Semaphore::new(READ_AT_ONCE);
        let (reference, demand) = (Reference::parse(IMAGE).unwrap(), demand(IMAGE, Some("pod")));
        let ask = find(&client, &turns, "apps", &demand, &reference);
        let (found, ()) = tokio::join!(ask, answer);
        let found = found.unwrap();
        let users: Vec<_> = found.credentials.iter().map(|it| &it.username).collect();
        assert_eq!(users, ["user"]);
        assert_eq!(
            found.problems,
            [
                "an entry of pull secret own cannot be used: its `auth` is not the base64 of \
                 USER:PASSWORD"
            ]
        );
    }

    #[tokio::test]
    async fn the_number_of_concurrent_secret_reads_is_bounded() {
        let (service, mut server) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
        let client = kube::Client::new(service, "apps");
        let turns = Semaphore::new(READ_AT_ONCE);
        let (reference, demand) = (Reference::parse(IMAGE).unwrap(), demand(IMAGE, Some("pod")));
        let ask = || find(&client, &turns, "apps", &demand, &reference);
        let all = futures::future::join_all((0..READ_AT_ONCE + 2).map(|_| ask()));
        let answer = async {
            let mut replies = Vec::new();
            for _ in 0..READ_AT_ONCE {
                replies.push(server.next_request().await.unwrap().1);
            }
            let further = server.next_request();
            let early = tokio::time::timeout(Duration::from_millis(200), further).await;
            assert!(early.is_err(), "one more is read at a time");
            let not_found = json!({"kind": "Status", "status": "Failure", "code": 404, "message": "", "reason": "NotFound"});
            let not_found = || {
                let answer = Response::builder().status(404);
                answer
                    .body(Body::from(not_found.to_string().into_bytes()))
                    .unwrap()
            };
            for reply in replies {
                reply.send_response(not_found());
            }
            for _ in 0..2 {
                let (_, reply) = server.next_request().await.unwrap();
                reply.send_response(not_found());
            }
        };
        let (all, ()) = tokio::join!(all, answer);
        assert!(
            all.iter()
                .all(|found| found.as_ref().unwrap().problems.len() == 1)
        );
    }

    #[test]
    fn only_a_living_pod_of_that_image_proves_a_right_to_pull_secrets() {
        let wait = |seconds| Choice::Wait(Duration::from_secs(seconds));
        let (unproven, nobody) = (
            Choice::NoDemand { unproven: true },
            Choice::NoDemand { unproven: false },
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
