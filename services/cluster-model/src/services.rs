//! The addresses of Services.

use k8s_openapi::api::core::v1::Service;
use std::collections::BTreeSet;

/// The addresses of a Service; none for a headless one.
pub fn cluster_ips(service: &Service) -> Vec<String> {
    let Some(spec) = &service.spec else {
        return Vec::new();
    };
    let mut addresses: Vec<String> = spec.cluster_ips.clone().unwrap_or_default();
    addresses.extend(spec.cluster_ip.clone());
    addresses.retain(|address| !address.is_empty() && address != "None");
    let mut seen = BTreeSet::new();
    addresses.retain(|address| seen.insert(address.clone()));
    addresses
}
