//! Which pods are touched: kube-system, match conditions, sources.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::images::unique;
use crate::kube::images;
use crate::objects::Pod;
use crate::site::{PRIVATE, Site};
use crate::wait::eventually;
use crate::world::World;

/// What the API server would store for a pod, without creating it.
fn admitted(site: &Site, namespace: &str, pod: &Pod) -> Result<String> {
    let pod = site.kube.dry_run(&pod.build(namespace))?;
    Ok(images(&pod, "containers").join(" "))
}

fn condition(expression: &str) -> Value {
    json!({"global": {"networkfunctionextension": {"webhook": {"pod": {"mutation": {"matchConditionExpression": expression}}}}}})
}

// SPEC 9
pub(super) fn kube_system_is_left_alone_but_for_three_labels(world: &mut World) -> Result<()> {
    let site = world.site()?;
    site.installed()?;
    let image = format!("{PRIVATE}/team/system:1");
    let local = site.local(&image)?;
    let pod = || Ok::<_, anyhow::Error>(Pod::new(&format!("e2e-{}", unique()?), &image));
    for (pod, expected) in [
        (pod()?, &image),
        (pod()?.label("app", "commissioning"), &local),
        (pod()?.label("app", "descheduler"), &local),
        (pod()?.label("name", "cert-exporter"), &local),
        (pod()?.label("app", "other").label("name", "other"), &image),
    ] {
        let found = admitted(site, "kube-system", &pod)?;
        ensure!(
            found == *expected,
            "in kube-system {} became {found}, expected {expected}",
            pod.build("kube-system")["metadata"]["labels"]
        );
    }
    ensure!(
        admitted(site, "default", &pod()?)? == local,
        "a pod elsewhere was not rewritten"
    );
    Ok(())
}

// SPEC 10
pub(super) fn the_match_condition_can_be_changed(world: &mut World) -> Result<()> {
    let site = world.site()?;
    site.installed()?;
    site.install(&condition(
        "has(object.metadata.labels) && 'chosen' in object.metadata.labels",
    ))?;
    let image = format!("{PRIVATE}/team/chosen:1");
    let local = site.local(&image)?;
    let changed = eventually(Duration::from_secs(30), || {
        ensure!(
            admitted(site, "default", &Pod::new("other", &image))? == image,
            "a pod that the condition leaves out was rewritten"
        );
        ensure!(
            admitted(
                site,
                "default",
                &Pod::new("app", &image).label("chosen", "yes")
            )? == local,
            "a pod that the condition selects was not rewritten"
        );
        Ok(())
    });
    site.installed()?;
    changed?;
    eventually(Duration::from_secs(30), || {
        ensure!(
            admitted(site, "default", &Pod::new("other", &image))? == local,
            "the default condition is not back"
        );
        Ok(())
    })
}

// SPEC 11
pub(super) fn narrowed_sources_leave_other_registries_alone(world: &mut World) -> Result<()> {
    let site = world.site()?;
    site.installed()?;
    site.install(&json!({"sources": [PRIVATE]}))?;
    let (inside, outside) = (
        format!("{PRIVATE}/team/app:1"),
        "registry.elsewhere.test/team/app:1".to_owned(),
    );
    let local = site.local(&inside)?;
    let narrowed = eventually(Duration::from_secs(60), || {
        ensure!(
            admitted(site, "default", &Pod::new("in", &inside))? == local,
            "an image of a source was not rewritten"
        );
        ensure!(
            admitted(site, "default", &Pod::new("out", &outside))? == outside,
            "an image of another registry was rewritten"
        );
        Ok(())
    });
    site.installed()?;
    narrowed
}
