//! What the webhook needs to choose the name of an image: ConfigMap `F-delivery`.
//!
//! The loop observes Artifacts, nodes and their agents' reports, computes the sets and the hosts,
//! and writes them if they differ, at most once in [`WRITE_INTERVAL`]. Pods come and go without an
//! effect on it.
//! `docs/design/delivery.md` has the rules, `api::delivery` the format.

mod hosts;
mod protect;
mod reported;
mod unprepared;

use crate::Context;
use holdfast_api::delivery::{Delivery, DeliveryState, SourceSet};
use holdfast_cluster_index::ClusterIndex;
use holdfast_cluster_index::apply;
use holdfast_runtime::supervise::Heartbeat;
use hosts::Hosts;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::Api;
use protect::Protected;
use reported::Reported;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use unprepared::PreparedNodes;

/// Interval of rounds without a change. Each reads the object again.
const RESYNC_INTERVAL: Duration = Duration::from_secs(30);
/// Changes within this time are one write.
const WRITE_INTERVAL: Duration = Duration::from_secs(2);

/// Why a round failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused or could not be reached.
    #[error("the API server: {0}")]
    Api(#[from] kube::Error),
    /// The state cannot be written as JSON.
    #[error("cannot write what is known of images")]
    Json(#[from] serde_json::Error),
}

/// Keeps the ConfigMap up to date. Runs for ever.
pub async fn run(context: Context, heart: Heartbeat) -> Result<(), Error> {
    let mut version = context.index.version.subscribe();
    let mut reports = context.reports.version();
    context.healing.known(&context.index, &heart).await;
    let mut written = read(&context).await?.map(|object| Delivery::of(&object));
    let earlier = written.as_ref().map(|known| known.state.hosts.as_slice());
    let mut observed = Observed {
        hosts: Hosts::resume(earlier.unwrap_or_default()),
        nodes: PreparedNodes::default(),
        reported: Reported::default(),
        protected: Protected::default(),
    };
    let mut resync = Instant::now();
    loop {
        version.borrow_and_update();
        reports.borrow_and_update();
        let earlier = written.as_ref().map(|known| &known.state);
        let next = observed.look(&context, earlier);
        if written.as_ref() != Some(&next) || Instant::now() >= resync {
            let (names, existing) = (&context.names, read(&context).await?);
            let name = names.delivery();
            apply::config_map(&context.client, names, &name, existing, next.data()?).await?;
            context
                .healing
                .delivery
                .send_replace(Arc::new(next.clone()));
            written = Some(next);
            resync = Instant::now() + RESYNC_INTERVAL;
        }
        heart.success();
        tokio::time::sleep(WRITE_INTERVAL).await;
        tokio::select! {
            _ = version.changed() => {}
            _ = reports.changed() => {}
            () = tokio::time::sleep_until(resync) => {}
        }
    }
}

async fn read(context: &Context) -> Result<Option<ConfigMap>, kube::Error> {
    let maps: Api<ConfigMap> = Api::namespaced(context.client.clone(), &context.names.namespace);
    maps.get_opt(&context.names.delivery()).await
}

/// What the loop remembers of earlier looks.
struct Observed {
    hosts: Hosts,
    nodes: PreparedNodes,
    reported: Reported,
    protected: Protected,
}

impl Observed {
    /// What is known now; `earlier` is what was written last.
    fn look(&mut self, context: &Context, earlier: Option<&DeliveryState>) -> Delivery {
        let now = jiff::Timestamp::now();
        let nodes = crate::nodes::survey(context, now);
        let unprepared = earlier.map(|state| state.unprepared.as_slice());
        let unprepared = self.nodes.observe(&nodes, unprepared);
        let on_nodes = self.reported.observe(&context.reports, &nodes);
        let set = |names: &[String]| names.iter().map(String::as_str).collect();
        let (on_all_nodes, on_some_nodes) = (set(&on_nodes.all), set(&on_nodes.some));
        let nodes_known = on_nodes.complete;
        let instant = std::time::Instant::now();
        let protect = self.protected.observe(context, &on_nodes.all, instant);
        let foreign = reported::foreign(
            context.reports.foreign_hosts(instant),
            &context.config.values,
        );
        let (now, hosts) = (now.as_second(), &mut self.hosts);
        ClusterIndex::read(&context.index.artifacts, |artifacts| {
            hosts.observe(artifacts.iter().map(|(key, it)| (key, it.as_ref())), now);
            let held: SourceSet = artifacts
                .iter()
                .filter(|(key, artifact)| artifact.is_held() && !context.healing.is_lost(key))
                .map(|(_, artifact)| artifact.spec.source_artifact.as_str())
                .collect();
            Delivery {
                state: DeliveryState {
                    hosts: hosts.states(now),
                    foreign,
                    unprepared,
                    nodes_known,
                },
                held,
                on_all_nodes,
                on_some_nodes,
                protect,
            }
        })
    }
}
