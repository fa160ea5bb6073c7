//! Whether the registry's volume has room: pure.

use holdfast_cli_kit::finding::Code;
use holdfast_cli_kit::terminal;
use holdfast_cluster_model::advice::ENLARGE;

use super::api::Fetched;
use super::report::Report;
use crate::status::diagnose::Volume;

/// Judges the volume as a replica of the registry measured it.
pub(super) fn diagnose(volume: &Fetched<Volume>, report: &mut Report) {
    let volume = match volume {
        Ok(volume) => volume,
        Err(why) => return report.unknown.push(format!("the volume: {why}")),
    };
    let free = terminal::size(volume.available_bytes);
    match volume.level {
        "full" => report.find(
            Code::VolumeFull,
            "the registry's volume is full: nothing is copied any more",
            ENLARGE,
        ),
        // Above registry.limits.warnUsedPercent, while there still is time.
        "filling" => report.find(
            Code::VolumeFilling,
            format!(
                "the registry's volume is filling: {free} of {} free; nothing is copied once it \
                 is full",
                terminal::size(volume.total_bytes)
            ),
            ENLARGE,
        ),
        _ => report.ok.push(format!("volume: {free} free")),
    }
}
