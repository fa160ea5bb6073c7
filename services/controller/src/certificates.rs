//! The internal CA and every certificate and secret of the release (SPEC 32), without cert-manager
//! and without touching any object of it (SPEC 33).
//!
//! `plan` decides, `issue` generates keys and certificates, this file reads and writes. Valid
//! certificates stay, so restarts and upgrades change nothing.

pub mod auth;
pub mod inspect;
pub mod issue;
pub mod model;
pub mod mounts;
pub mod plan;
#[cfg(test)]
mod tests;

use crate::Context;
use futures::{StreamExt as _, TryStreamExt as _};
use holdfast_api::{labels, report};
use holdfast_cluster_index::apply;
use holdfast_cluster_model::cluster_ips;
use holdfast_runtime::supervise::Heartbeat;
use holdfast_runtime::tls::{ClientTls, ServerTls};
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::{Secret, Service};
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use model::{Ca, Leaf, Wanted};
use parking_lot::Mutex;
use plan::{Action, Existing};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// Interval of rounds without a change. Deleted Secrets are recreated within it.
const RESYNC_INTERVAL: Duration = Duration::from_secs(30);
/// Pause before pods are notified of a changed Secret again.
const NOTIFY_RETRY_PAUSE: Duration = Duration::from_secs(5);

/// Why a round failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused or could not be reached.
    #[error("the API server: {0}")]
    Api(#[from] kube::Error),
    /// A key or certificate cannot be made.
    #[error(transparent)]
    Issue(#[from] issue::Error),
    /// A generated certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] holdfast_runtime::tls::Error),
    /// The watch ended.
    #[error("the watch: {0}")]
    Watch(#[from] watcher::Error),
}

/// The certificates that were issued last, for users in this process.
#[derive(Debug)]
pub struct Issued {
    /// The CA bundle, PEM; empty before the first round.
    pub bundle: watch::Sender<String>,
    client: Mutex<Option<ClientTls>>,
    server: Mutex<Option<Serving>>,
    /// Wakes the loop.
    pub wake: Notify,
    /// Parts whose pods must be notified of changed Secrets.
    pub mounts: mounts::Changed,
}

/// The controller's serving certificate, and what it was made of: certificate, key and bundle.
#[derive(Clone)]
struct Serving {
    tls: ServerTls,
    made_of: [Vec<u8>; 3],
}

impl std::fmt::Debug for Serving {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Serving").finish_non_exhaustive()
    }
}

impl Default for Issued {
    fn default() -> Self {
        Self {
            bundle: watch::Sender::new(String::new()),
            client: Mutex::default(),
            server: Mutex::default(),
            wake: Notify::new(),
            mounts: mounts::Changed::default(),
        }
    }
}

impl Issued {
    /// The controller's client certificate and trust, once they exist. Renewals replace them in
    /// place.
    pub fn client(&self) -> Option<ClientTls> {
        self.client.lock().clone()
    }

    /// The controller's serving certificate, which requires client certificates, once it exists.
    /// Renewals replace it in place.
    pub fn server(&self) -> Option<ServerTls> {
        self.server
            .lock()
            .as_ref()
            .map(|serving| serving.tls.clone())
    }

    /// A replacement ends connections, so equal material replaces nothing.
    fn serve(&self, bundle: &str, certificate: &[u8], key: &[u8]) -> Result<(), Error> {
        let made_of = [certificate, key, bundle.as_bytes()].map(<[u8]>::to_vec);
        let mut server = self.server.lock();
        let tls = match &*server {
            Some(serving) if serving.made_of == made_of => return Ok(()),
            Some(serving) => {
                serving.tls.replace(certificate, key, bundle.as_bytes())?;
                serving.tls.clone()
            }
            None => ServerTls::from_pem(certificate, key, bundle.as_bytes())?,
        };
        *server = Some(Serving { tls, made_of });
        Ok(())
    }

    fn publish(&self, bundle: &str, certificate: &[u8], key: &[u8]) -> Result<(), Error> {
        self.serve(bundle, certificate, key)?;
        let identity = Some((certificate, key));
        if let Some(client) = self.client() {
            client.replace(bundle.as_bytes(), identity)?;
        } else {
            let client = ClientTls::from_pem(bundle.as_bytes(), identity)?;
            *self.client.lock() = Some(client);
        }
        self.bundle.send_if_modified(|current| {
            let differs = current != bundle;
            if differs {
                bundle.clone_into(current);
            }
            differs
        });
        Ok(())
    }
}

/// Keeps certificates and secrets valid. Runs for ever.
pub async fn run(context: Context, heart: Heartbeat) -> Result<(), Error> {
    loop {
        round(&context).await?;
        heart.success();
        // Errors end the loop and the supervisor starts it again, with growing pauses.
        tokio::select! {
            () = context.issued.wake.notified() => {}
            () = tokio::time::sleep(pause(&context)) => {}
        }
    }
}

fn pause(context: &Context) -> Duration {
    if context.issued.mounts.any() {
        NOTIFY_RETRY_PAUSE
    } else {
        RESYNC_INTERVAL
    }
}

/// Wakes the loop after each write of the webhook's configuration, so that a reset `caBundle` is
/// patched at once.
pub async fn watch_webhook(context: Context, heart: Heartbeat) -> Result<(), Error> {
    let api: Api<MutatingWebhookConfiguration> = Api::all(context.client.clone());
    let config =
        watcher::Config::default().fields(&format!("metadata.name={}", context.names.webhook()));
    let mut stream = watcher(api, config)
        .default_backoff()
        .touched_objects()
        .boxed();
    let mut tick = tokio::time::interval(RESYNC_INTERVAL);
    loop {
        tokio::select! {
            next = stream.try_next() => match next {
                Ok(Some(_)) => {
                    heart.success();
                    context.issued.wake.notify_one();
                }
                Ok(None) => return Ok(()),
                Err(error) => tracing::debug!(
                    %error,
                    "the watch of the webhook configuration failed; retrying"
                ),
            },
            _ = tick.tick() => heart.beat(),
        }
    }
}

/// The Secrets as they are, and what is wanted.
struct Observed {
    wanted: Vec<Wanted>,
    ca_secret: Option<Secret>,
    leaf_secrets: BTreeMap<Leaf, Option<Secret>>,
    existing: Existing,
    /// Seconds since 1970.
    now: i64,
}

/// The failures of one round. A Secret that cannot be read or written must not hold up the others.
#[derive(Default)]
struct Failures(Option<Error>);

impl Failures {
    /// The result, or nothing after a failure, which is logged.
    fn note<T>(&mut self, object: &str, result: Result<T, Error>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                tracing::warn!(object, %error, "cannot keep a certificate or Secret valid; retrying");
                self.0.get_or_insert(error);
                None
            }
        }
    }

    /// The first failure, if there is one.
    fn outcome(self) -> Result<(), Error> {
        self.0.map_or(Ok(()), Err)
    }
}

/// One round: observe, decide (`plan`), apply and record. After a failure with one Secret it goes
/// on with the others, and returns the first failure at the end.
pub async fn round(context: &Context) -> Result<(), Error> {
    let (names, mut failures) = (&context.names, Failures::default());
    let now = jiff::Timestamp::now().as_second();
    certify(context, now, &mut failures).await;
    let ensured = auth::ensure(context, now).await;
    if failures.note(&names.registry_auth(), ensured) == Some(true) {
        context.issued.mounts.note(labels::COMPONENT_REGISTRY);
    }
    // A failure is no error: without the annotation, pods receive the change later.
    if let Err(error) = mounts::notify(context).await {
        tracing::warn!(%error, "cannot annotate pods after a change of their Secrets; retrying");
    }
    failures.outcome()
}

/// The part of a round that is about the CA and its certificates. Without the CA there is none.
async fn certify(context: &Context, now: i64, failures: &mut Failures) {
    let names = &context.names;
    let observed = observe(context, now, failures).await;
    let Some(observed) = failures.note(&names.ca(), observed) else {
        return;
    };
    let actions = plan::plan(&observed.existing, now, &observed.wanted);
    let applied = apply_authority(context, &observed, &actions).await;
    if let Some(Some(ca)) = failures.note(&names.ca(), applied) {
        // The API server trusts an authority before one of its certificates is in use.
        let patched = patch_webhook(context, &ca.bundle).await;
        let is_trusted = failures.note(&names.webhook(), patched).is_some();
        apply_leaves(context, &observed, &actions, &ca, is_trusted, failures).await;
        let secrets = Api::namespaced(context.client.clone(), &names.namespace);
        let published = publish(context, &secrets, &ca.bundle).await;
        failures.note(&names.controller_tls(), published);
    }
    record(context, &observed.existing);
}

/// What exists, and what is wanted. A certificate whose Secret cannot be read is not wanted in this
/// round: it may be valid.
async fn observe(context: &Context, now: i64, failures: &mut Failures) -> Result<Observed, Error> {
    let names = &context.names;
    let secrets: Api<Secret> = Api::namespaced(context.client.clone(), &names.namespace);
    let services: Api<Service> = Api::namespaced(context.client.clone(), &names.namespace);
    let addresses = services
        .get_opt(&names.registry())
        .await?
        .map(|service| cluster_ips(&service))
        .unwrap_or_default();
    let mut wanted = wanted(context, &addresses);
    let ca_secret = secrets.get_opt(&names.ca()).await?;
    let mut leaf_secrets = BTreeMap::new();
    for want in &wanted {
        let name = secret_name(context, want.leaf);
        let read = secrets.get_opt(&name).await.map_err(Error::from);
        if let Some(secret) = failures.note(&name, read) {
            leaf_secrets.insert(want.leaf, secret);
        }
    }
    wanted.retain(|want| leaf_secrets.contains_key(&want.leaf));
    let existing = Existing {
        ca: inspect::ca(ca_secret.as_ref()),
        leaves: leaf_secrets
            .iter()
            .filter_map(|(leaf, secret)| Some((*leaf, inspect::leaf(secret.as_ref())?)))
            .collect(),
    };
    Ok(Observed {
        wanted,
        ca_secret,
        leaf_secrets,
        existing,
        now,
    })
}

/// Makes a new authority or writes its bundle. Returns the authority in use.
async fn apply_authority(
    context: &Context,
    observed: &Observed,
    actions: &[Action],
) -> Result<Option<Ca>, Error> {
    let existing = observed.existing.ca.as_ref();
    let mut ca = existing.map(|facts| facts.material.clone());
    for action in actions {
        match action {
            Action::MakeCa { keep, reason } => {
                tracing::info!(reason, "issued a new certificate authority");
                let made = issue::ca(observed.now, &context.names.release, keep)?;
                write_ca(context, observed.ca_secret.clone(), &made).await?;
                ca = Some(made);
            }
            Action::WriteBundle { bundle } => {
                if let Some(current) = &mut ca {
                    current.bundle.clone_from(bundle);
                    write_ca(context, observed.ca_secret.clone(), current).await?;
                }
            }
            Action::Issue { .. } | Action::RefreshBundle { .. } => {}
        }
    }
    Ok(ca)
}

/// Issues certificates of `ca`, and renews the bundle beside those that stay. Without `is_trusted`,
/// the API server does not trust `ca` yet, and the webhook keeps its certificate.
async fn apply_leaves(
    context: &Context,
    observed: &Observed,
    actions: &[Action],
    ca: &Ca,
    is_trusted: bool,
    failures: &mut Failures,
) {
    for action in actions {
        let leaf = match action {
            Action::MakeCa { .. } | Action::WriteBundle { .. } => continue,
            Action::Issue { want, .. } => want.leaf,
            Action::RefreshBundle { leaf } => *leaf,
        };
        if is_trusted || leaf != Leaf::Webhook {
            let applied = apply_leaf(context, observed, action, ca).await;
            failures.note(&secret_name(context, leaf), applied);
        }
    }
}

async fn apply_leaf(
    context: &Context,
    observed: &Observed,
    action: &Action,
    ca: &Ca,
) -> Result<(), Error> {
    let (leaf, existing, certificate, key) = match action {
        Action::MakeCa { .. } | Action::WriteBundle { .. } => return Ok(()),
        Action::Issue { want, reason } => {
            tracing::info!(
                certificate = want.leaf.as_str(),
                reason,
                "issued a certificate"
            );
            let (certificate, key) = issue::leaf(observed.now, ca, want)?;
            let existing = observed.leaf_secrets.get(&want.leaf).cloned().flatten();
            (want.leaf, existing, certificate, key)
        }
        Action::RefreshBundle { leaf } => {
            let Some(Some(existing)) = observed.leaf_secrets.get(leaf) else {
                return Ok(());
            };
            let (Some(certificate), Some(key)) = (
                apply::text(Some(existing), "tls.crt"),
                apply::text(Some(existing), "tls.key"),
            ) else {
                return Ok(());
            };
            (*leaf, Some(existing.clone()), certificate, key)
        }
    };
    let (certificate, key) = (certificate.into_bytes(), key.into_bytes());
    write_leaf(context, leaf, existing, certificate, key, &ca.bundle).await
}

/// Metrics of the certificates at the beginning of the round.
fn record(context: &Context, existing: &Existing) {
    for (leaf, facts) in &existing.leaves {
        context.metrics.expires(leaf.as_str(), facts.not_after);
    }
    if let Some(ca) = &existing.ca {
        context.metrics.expires("ca", ca.not_after);
    }
}

fn wanted(context: &Context, addresses: &[String]) -> Vec<Wanted> {
    let names = &context.names;
    let service = |name: String| -> Vec<String> {
        vec![
            names.dns(&name),
            format!("{}.cluster.local", names.dns(&name)),
            format!("{name}.{}", names.namespace),
            name,
        ]
    };
    let mut registry: BTreeSet<String> = service(names.registry()).into_iter().collect();
    registry.extend(service(names.registry_internal()));
    registry.extend(addresses.iter().cloned());
    let mut wanted = Vec::new();
    // Nodes connect by address, so a certificate without one is useless.
    if !addresses.is_empty() {
        wanted.push(Wanted {
            leaf: Leaf::Registry,
            common_name: "holdfast-registry",
            names: registry,
        });
    }
    wanted.push(Wanted {
        leaf: Leaf::Webhook,
        common_name: "holdfast-webhook",
        names: service(names.webhook()).into_iter().collect(),
    });
    wanted.push(Wanted {
        leaf: Leaf::Controller,
        common_name: "holdfast-controller",
        names: service(names.controller_internal()).into_iter().collect(),
    });
    wanted.push(Wanted {
        leaf: Leaf::NodeAgent,
        common_name: report::COMMON_NAME,
        names: BTreeSet::from([names.node_agent_identity()]),
    });
    wanted
}

fn secret_name(context: &Context, leaf: Leaf) -> String {
    match leaf {
        Leaf::Registry => context.names.registry_tls(),
        Leaf::Webhook => context.names.webhook_tls(),
        Leaf::Controller => context.names.controller_tls(),
        Leaf::NodeAgent => context.names.node_agent_tls(),
    }
}

async fn write_ca(context: &Context, existing: Option<Secret>, ca: &Ca) -> Result<(), Error> {
    let data = [
        ("ca.crt".to_owned(), ca.certificate.clone().into_bytes()),
        ("ca.key".to_owned(), ca.key.clone().into_bytes()),
        ("ca-bundle.crt".to_owned(), ca.bundle.clone().into_bytes()),
    ];
    apply::secret(
        &context.client,
        &context.names,
        &context.names.ca(),
        existing,
        data.into(),
    )
    .await?;
    Ok(())
}

async fn write_leaf(
    context: &Context,
    leaf: Leaf,
    existing: Option<Secret>,
    certificate: Vec<u8>,
    key: Vec<u8>,
    bundle: &str,
) -> Result<(), Error> {
    let data = [
        ("tls.crt".to_owned(), certificate),
        ("tls.key".to_owned(), key),
        ("ca.crt".to_owned(), bundle.as_bytes().to_vec()),
    ];
    let written = apply::secret(
        &context.client,
        &context.names,
        &secret_name(context, leaf),
        existing,
        data.into(),
    )
    .await?;
    if let (true, Some(component)) = (written, leaf.mounted_by()) {
        context.issued.mounts.note(component);
    }
    Ok(())
}

async fn publish(context: &Context, secrets: &Api<Secret>, bundle: &str) -> Result<(), Error> {
    let secret = secrets.get_opt(&context.names.controller_tls()).await?;
    if let (Some(certificate), Some(key)) = (
        apply::text(secret.as_ref(), "tls.crt"),
        apply::text(secret.as_ref(), "tls.key"),
    ) {
        context
            .issued
            .publish(bundle, certificate.as_bytes(), key.as_bytes())?;
    }
    Ok(())
}

/// Writes the bundle into every webhook of the configuration. Without it, the API server trusts no
/// certificate of the webhook, and the webhook fails open.
async fn patch_webhook(context: &Context, bundle: &str) -> Result<(), Error> {
    let api: Api<MutatingWebhookConfiguration> = Api::all(context.client.clone());
    let name = context.names.webhook();
    let Some(configuration) = api.get_opt(&name).await? else {
        return Ok(());
    };
    let Some(patch) = webhook_patch(&configuration, bundle) else {
        return Ok(());
    };
    api.patch(&name, &PatchParams::default(), &Patch::Strategic(patch))
        .await?;
    tracing::info!(
        webhook = name,
        "updated caBundle of the webhook configuration"
    );
    Ok(())
}

/// The patch of outdated bundles. Webhooks are merged by name, so their other fields stay.
fn webhook_patch(
    configuration: &MutatingWebhookConfiguration,
    bundle: &str,
) -> Option<serde_json::Value> {
    let webhooks = configuration.webhooks.as_deref().unwrap_or_default();
    let right = |webhook: &k8s_openapi::api::admissionregistration::v1::MutatingWebhook| {
        webhook
            .client_config
            .ca_bundle
            .as_ref()
            .is_some_and(|bytes| bytes.0 == bundle.as_bytes())
    };
    if webhooks.iter().all(right) {
        return None;
    }
    let bytes = k8s_openapi::ByteString(bundle.as_bytes().to_vec());
    let webhooks: Vec<_> = webhooks
        .iter()
        .map(|webhook| json!({"name": webhook.name, "clientConfig": {"caBundle": bytes}}))
        .collect();
    // The resource version makes a concurrent write a conflict.
    Some(
        json!({"metadata": {"resourceVersion": configuration.metadata.resource_version}, "webhooks": webhooks}),
    )
}
