//! What the container runtime's host configuration is to hold: pure text from a [`NodeState`],
//! nothing about disks.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use holdfast_api::state::NodeState;

/// The first line of every file that the agent writes: an operator reads whose it is, and an agent
/// that lost its journal recognises its own work.
pub const MARKER: &str =
    "# Written by the node agent of Holdfast, which repairs it and takes it away again.";

/// How long the runtime may wait for a connection before it tries the next way to the registry.
/// Known to containerd from 2.1 on; an older one reads the file and ignores the key.
const DIAL_TIMEOUT: &str = "1s";

/// Longest name of a host; longer ones are no folder's name either.
const MAX_ADDRESS_BYTES: usize = 253;

/// A file as the agent wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// All bytes of the file.
    pub bytes: Vec<u8>,
    /// Permission bits: the host configuration holds a credential, the CA does not.
    pub mode: u32,
}

/// Why a state cannot be written to a host.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// An address would leave the folder, or is no registry host at all.
    #[error(
        "{0:?} is not the address of a registry: a host name or an IP address, IPv6 in brackets, with an optional port"
    )]
    Address(String),
    /// An endpoint that the runtime could not use.
    #[error("the endpoint {0:?} does not begin with https:// or http://")]
    Endpoint(String),
    /// A state that says nothing to write.
    #[error("the shared state names no address of the registry")]
    NoHosts,
}

/// The files below the runtime's folder of host configurations (`certs.d`), by path relative to it;
/// `folder_on_host` is where the runtime itself finds the folder.
pub fn wanted(state: &NodeState, folder_on_host: &Path) -> Result<BTreeMap<String, Wanted>, Error> {
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
            Wanted {
                bytes: text.into_bytes(),
                mode: 0o600,
            },
        );
        // A PEM reader skips what stands before the first BEGIN line.
        let bytes = format!("{MARKER}\n{}", state.ca).into_bytes();
        files.insert(format!("{name}/ca.crt"), Wanted { bytes, mode: 0o644 });
    }
    Ok(files)
}

/// The directory in which containerd looks for an address: the host as it stands in the reference,
/// IPv6 in its brackets. (It looks for `host_port_` first when the text has a colon, then for
/// this.)
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
    // The runtime tries the hosts in order and `server` last: the same registry, with the same
    // trust, so that no try goes out without them.
    let mut parts = vec![format!(
        "{MARKER}\nserver = {}\n{}",
        quote(first),
        section(None)
    )];
    let mut seen = BTreeSet::new();
    for endpoint in endpoints {
        // A table that is there twice makes the whole file unreadable.
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
