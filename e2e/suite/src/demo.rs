//! The demo: from nothing to a pod that survives the loss of its upstream and of its node, with
//! numbers.

mod show;
mod steps;

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::json;

use crate::diagnostics;
use crate::tools::Tools;
use show::Show;
use steps::Demo;

/// Runs the demo.
///
/// # Errors
/// When a step fails; what was learnt until then is reported all the same.
pub(crate) fn run(tools: &Tools, keep: bool, json: Option<&Path>) -> Result<()> {
    let mut show = Show::new();
    let mut demo = None;
    let result = play(tools, keep, &mut show, &mut demo);
    if let (Err(_), Some(demo)) = (&result, &demo) {
        let folder = Tools::failures()?.join("demo");
        if diagnostics::write(demo.site(), &folder).is_ok() {
            println!("diagnostics: {}", folder.display());
        }
    }
    show.finish(&result);
    if let Some(file) = json {
        let error = result.as_ref().err().map(|error| format!("{error:#}"));
        let report = json!({"ok": error.is_none(), "error": error, "steps": show.steps(), "facts": show.facts()});
        std::fs::write(file, format!("{report:#}\n"))
            .with_context(|| format!("write {}", file.display()))?;
    }
    let ended = demo.map_or(Ok(()), Demo::end);
    result.and(ended)
}

fn play(tools: &Tools, keep: bool, show: &mut Show, slot: &mut Option<Demo>) -> Result<()> {
    let demo = show.step(
        "cluster: one control plane, three workers; a private upstream registry",
        |_| Demo::create(tools, keep),
    )?;
    let demo = slot.insert(demo);
    show.step("Holdfast installed in high availability", |show| {
        demo.install(show)
    })?;
    show.step(
        "workload with init container and image volume on two of three nodes",
        |show| demo.roll_out(show),
    )?;
    show.step("what is stored: kubectl get artifacts -A", |show| {
        demo.list(show)
    })?;
    show.step(
        "one upstream request per blob for the whole cluster",
        |show| demo.count(show),
    )?;
    show.step("the upstream is taken away", |show| demo.cut_uplink(show))?;
    show.step(
        "a node is killed: workload pod, registry replica and leader with it",
        |show| demo.kill_node(show),
    )?;
    show.step(
        "the replacement runs on the third node, which never had the image",
        |show| demo.replaced(show),
    )?;
    show.step(
        "the whole site loses power and boots without its upstream",
        |show| demo.cold_boot(show),
    )?;
    Ok(())
}
