//! The mapping between an upstream's name and its name in the cluster's registry:
//! `registry.example:5000/team/app:1` is `<address>/registry.example_5000/team/app:1` (SPEC 5).
//! Invertible, and never applied twice.

use std::net::Ipv6Addr;

use crate::reference::{Host, Reference, RepositoryName};

/// Ends the first part of a local name whose upstream is an IPv6 address: brackets and colons are
/// not legal there. The notation is the one that UNC paths use, with all eight groups written.
const IPV6_SUFFIX: &str = ".ipv6-literal.net";

/// The repository under which the cluster's registry keeps an upstream's repository; nothing where
/// that name would be longer than 255 characters or could not be read back.
pub fn local_repository(host: &Host, repository: &RepositoryName) -> Option<RepositoryName> {
    let local = RepositoryName::parse(&format!("{}/{repository}", local_host(host)?)).ok()?;
    Some(local)
}

/// The upstream that a local repository comes from; nothing for repositories that clients pushed.
pub fn upstream_of(local: &RepositoryName) -> Option<(Host, RepositoryName)> {
    let (first, rest) = local.as_str().split_once('/')?;
    let host = upstream_host(first)?;
    // Other spellings of a host (a port with zeros, a short IPv6 address) are nobody's local name.
    if local_host(&host)? != first {
        return None;
    }
    Some((host, RepositoryName::parse(rest).ok()?))
}

/// The one name of a repository of Docker Hub, where `local` is another way to write it:
/// `docker.io/nginx` means `docker.io/library/nginx`, and `index.docker.io` is `docker.io`.
pub fn canonical(local: &RepositoryName) -> Option<RepositoryName> {
    let (first, rest) = local.as_str().split_once('/')?;
    let host = Host::parse(first).ok().filter(Host::is_docker_hub)?;
    let library = if rest.contains('/') { "" } else { "library/" };
    let name = RepositoryName::parse(&format!("{host}/{library}{rest}")).ok()?;
    (name != *local).then_some(name)
}

/// Whether a repository lies where only fills may write: its first part is a host (`.`, `_<port>`
/// or `localhost`).
pub fn is_upstream_namespace(repository: &RepositoryName) -> bool {
    let first = repository.components().next().unwrap_or_default();
    first.contains('.') || first == "localhost" || split_port(first).is_some()
}

/// The reference by which pods pull an image from the cluster's registry at `address` (an IP
/// address, IPv6 in brackets, or `host[:port]`); nothing where the name would be too long.
pub fn rewrite(reference: &Reference, address: &str) -> Option<String> {
    let local = local_repository(reference.host(), reference.repository())?;
    Some(format!("{address}/{local}{}", reference.suffix()))
}

/// The upstream reference behind a rewritten one; nothing unless `text` names one of `addresses`
/// and an upstream. An address without a port stands for every port of it.
pub fn original(text: &str, addresses: &[String]) -> Option<Reference> {
    let local = Reference::parse(text).ok()?;
    if !is_at_any(local.host(), addresses) {
        return None;
    }
    let (host, repository) = upstream_of(local.repository())?;
    Some(Reference::new(
        host,
        repository,
        local.tag().cloned(),
        local.digest().cloned(),
    ))
}

/// The upstream reference of the content that the registry serves under `text`. Beside
/// [`original`], it knows the other ways to write a repository of Docker Hub, which the registry
/// takes for the same one.
pub fn served(text: &str, addresses: &[String]) -> Option<Reference> {
    let local = Reference::parse(text).ok()?;
    if !is_at_any(local.host(), addresses) {
        return None;
    }
    let repository = local.repository();
    let (host, repository) =
        upstream_of(&canonical(repository).unwrap_or_else(|| repository.clone()))?;
    let (tag, digest) = (local.tag().cloned(), local.digest().cloned());
    Some(Reference::new(host, repository, tag, digest))
}

/// Whether a host is the registry's own `address`; an address without a port stands for every port
/// of it.
pub fn is_at(host: &Host, address: &str) -> bool {
    let parsed = Host::parse(address).or_else(|_| Host::parse(&format!("[{address}]")));
    match parsed {
        Ok(own) if own.port().is_none() => host.with_port(None) == own,
        Ok(own) => *host == own,
        Err(_) => false,
    }
}

/// Whether a host is the registry under one of its `addresses`.
pub fn is_at_any(host: &Host, addresses: &[String]) -> bool {
    addresses.iter().any(|address| is_at(host, address))
}

fn local_host(host: &Host) -> Option<String> {
    let name = match host.ipv6() {
        Some(address) => {
            let groups: Vec<String> = address
                .segments()
                .iter()
                .map(|group| format!("{group:x}"))
                .collect();
            format!("{}{IPV6_SUFFIX}", groups.join("-"))
        }
        // A DNS name that reads as an IPv6 address could not be told from one.
        None if host.name().ends_with(IPV6_SUFFIX) => return None,
        None => host.name(),
    };
    Some(match host.port() {
        Some(port) => format!("{name}_{port}"),
        None => name,
    })
}

fn upstream_host(first: &str) -> Option<Host> {
    let (name, port) = split_port(first).unwrap_or((first, None));
    if let Some(groups) = name.strip_suffix(IPV6_SUFFIX) {
        let address: Ipv6Addr = groups.replace('-', ":").parse().ok()?;
        return Some(Host::from_ipv6(address, port));
    }
    let text = match port {
        Some(port) => format!("{name}:{port}"),
        None => name.to_owned(),
    };
    Host::parse(&text).ok()
}

/// Splits `name_5000`; nothing without digits of a port behind a last underscore.
fn split_port(first: &str) -> Option<(&str, Option<u16>)> {
    let (name, port) = first.rsplit_once('_')?;
    if port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    port.parse().ok().map(|port| (name, Some(port)))
}

/// The prefix that references of an image's upstream have in this cluster: `ADDRESS/HOST/`. Nothing
/// shorter is safe for a policy to allow: below the address alone lies every upstream.
pub fn upstream_prefix(source: &Reference, address: &str) -> Option<String> {
    let local = local_repository(source.host(), source.repository())?;
    let host = local.components().next()?;
    Some(format!("{address}/{host}/"))
}

#[cfg(test)]
mod tests;
