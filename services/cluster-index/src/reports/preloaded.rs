//! Images that no kubelet pulled.

use super::Reports;
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Instant;

impl Reports {
    /// All names of the preloaded images that have one of these names: images without a pull record
    /// on a node whose kubelet keeps records.
    pub fn names_of_preloaded(&self, named: &HashSet<String>, now: Instant) -> BTreeSet<String> {
        let (mut names, mut seen) = (BTreeSet::new(), HashSet::new());
        let kept = self.kept.read();
        let reports = kept.nodes.values();
        for report in reports.filter(|report| report.gate && report.is_current(now)) {
            for image in &report.images {
                // Nodes share what they report alike.
                let is_preloaded = image.record.is_none() && !image.intent;
                if !is_preloaded || !seen.insert(Arc::as_ptr(image)) {
                    continue;
                }
                if image.names.iter().any(|name| named.contains(name)) {
                    names.extend(image.names.iter().cloned());
                }
            }
        }
        names
    }
}
