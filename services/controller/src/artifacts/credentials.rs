//! The credentials that the pods of an image bring: their pull secrets and those of their service accounts (SPEC 35).
//!
//! Read by name when they are needed, never listed, never kept.

use super::demand::Demand;
use holdfast_api::fill::Credential;
use holdfast_core::Reference;
use holdfast_core::credentials::{PullSecret, candidates};
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use kube::api::Api;
use std::collections::BTreeSet;

/// The most pull secrets that are looked at for one image.
const MAX_SECRETS: usize = 64;

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
        let account = accounts.get_opt(account).await?;
        for secret in account
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
        // An identity token goes where user name and password go: the empty user says so.
        .map(|credential| Credential {
            password: credential
                .identity_token
                .filter(|_| credential.password.is_empty())
                .unwrap_or(credential.password)
                .into(),
            username: credential.username,
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
