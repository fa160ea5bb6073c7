//! The host configuration of containerd (`certs.d/ADDRESS/hosts.toml` and `ca.crt`), generated from
//! a [`NodeState`]. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use holdfast_api::state::NodeState;

use crate::plan::{HostFile, MARKER};

/// Time for a connection before containerd tries the next endpoint. containerd older than 2.1
/// ignores the key.
const DIAL_TIMEOUT: &str = "1s";

/// Longest name of a host, also as the name of a folder.
const MAX_ADDRESS_BYTES: usize = 253;

/// Why a state cannot be expressed as host configuration.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// An address is not a registry host. It could lead out of the folder.
    #[error(
        "{0:?} is not the address of a registry: a host name or an IP address, IPv6 in brackets, with an optional port"
    )]
    Address(String),
    /// An endpoint has no scheme that containerd can use.
    #[error("the endpoint {0:?} does not begin with https:// or http://")]
    Endpoint(String),
    /// The state has no host, or a host has no endpoint.
    #[error("the shared state names no address of the registry")]
    NoHosts,
}

/// The files in the folder of registry hosts (`certs.d`), by path relative to it. `folder_on_host`
/// is the path of the folder as containerd sees it.
pub fn files(
    state: &NodeState,
    folder_on_host: &Path,
) -> Result<BTreeMap<String, HostFile>, Error> {
    if state.hosts.is_empty() {
        return Err(Error::NoHosts);
    }
    let authorization = format!(
        "Basic {}",
        STANDARD.encode(format!("{}:{}", state.username, state.password.expose()))
    );
    let mut files = BTreeMap::new();
    for host in &state.hosts {
        let name = directory(&host.address)?;
        let ca = folder_on_host.join(name).join("ca.crt");
        let text = hosts_toml(&host.endpoints, &ca.to_string_lossy(), &authorization)?;
        files.insert(
            format!("{name}/hosts.toml"),
            HostFile {
                bytes: text.into_bytes(),
                // It holds a credential.
                mode: 0o600,
            },
        );
        // PEM readers skip text before the first BEGIN line.
        let bytes = format!("{MARKER}\n{}", state.ca).into_bytes();
        files.insert(format!("{name}/ca.crt"), HostFile { bytes, mode: 0o644 });
    }
    Ok(files)
}

/// The directory in which containerd looks up an address: the host as written in the reference,
/// IPv6 in brackets. (If the host has a port, containerd looks for `host_port_` first.)
fn directory(address: &str) -> Result<&str, Error> {
    let host = match address.strip_prefix('[') {
        Some(rest) => rest
            .split_once(']')
            .map(|(ip, port)| (ip, port.strip_prefix(':').unwrap_or(port))),
        None => Some(address.split_once(':').unwrap_or((address, ""))),
    };
    let sound = host.is_some_and(|(host, port)| {
        let ipv6 = address.starts_with('[');
        let letters = |c: char| {
            c.is_ascii_alphanumeric() || if ipv6 { c == ':' } else { c == '.' || c == '-' }
        };
        host.starts_with(|c: char| c.is_ascii_alphanumeric() || (ipv6 && c == ':'))
            && host.chars().all(letters)
            && port.chars().all(|c| c.is_ascii_digit())
            && address.len() <= MAX_ADDRESS_BYTES
    });
    if sound {
        Ok(address)
    } else {
        Err(Error::Address(address.to_owned()))
    }
}

fn hosts_toml(endpoints: &[String], ca: &str, authorization: &str) -> Result<String, Error> {
    let Some(first) = endpoints.first() else {
        return Err(Error::NoHosts);
    };
    let section = |table: Option<&str>| {
        let (ca, authorization) = (quote(ca), quote(authorization));
        let header = table.map_or_else(|| "[header]".to_owned(), |t| format!("[host.{t}.header]"));
        format!(
            "capabilities = [\"pull\", \"resolve\"]\nca = {ca}\ndial_timeout = \"{DIAL_TIMEOUT}\"\n\n{header}\nAuthorization = {authorization}\n"
        )
    };
    // containerd tries the hosts in order and `server` last. `server` is the same registry with the
    // same CA and credential, so no attempt lacks them.
    let mut parts = vec![format!(
        "{MARKER}\nserver = {}\n{}",
        quote(first),
        section(None)
    )];
    let mut seen = BTreeSet::new();
    for endpoint in endpoints {
        // A duplicate table makes the whole file unreadable.
        if !seen.insert(endpoint) {
            continue;
        }
        if !endpoint.starts_with("https://") && !endpoint.starts_with("http://") {
            return Err(Error::Endpoint(endpoint.clone()));
        }
        let table = quote(endpoint);
        parts.push(format!("\n[host.{table}]\n{}", section(Some(&table))));
    }
    Ok(parts.concat())
}

/// A TOML basic string.
fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                quoted.push('\\');
                quoted.push(c);
            }
            c if c.is_control() => quoted.extend(format!("\\u{:04X}", u32::from(c)).chars()),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests;
