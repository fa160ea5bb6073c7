//! The mapping between an upstream's name and its name in the cluster's registry:
//! `registry.example:5000/team/app:1` is `<address>/registry.example_5000/team/app:1` (SPEC 5). The
//! mapping is invertible.

use std::net::Ipv6Addr;

use crate::reference::{Host, Reference, RepositoryName};

/// Suffix of the first component of a local name whose upstream is an IPv6 address, because
/// brackets and colons are not legal there. The notation of UNC paths, with all eight groups
/// written out.
const IPV6_SUFFIX: &str = ".ipv6-literal.net";

/// The repository in the cluster's registry for an upstream's repository. `None` if the name would
/// have more than 255 characters or could not be mapped back.
pub fn local_repository(host: &Host, repository: &RepositoryName) -> Option<RepositoryName> {
    let local = RepositoryName::parse(&format!("{}/{repository}", local_host(host)?)).ok()?;
    Some(local)
}

/// The upstream of a local repository. `None` for repositories that clients pushed.
pub fn upstream_of(local: &RepositoryName) -> Option<(Host, RepositoryName)> {
    let (first, rest) = local.as_str().split_once('/')?;
    let host = upstream_host(first)?;
    // Other spellings of a host (a port with zeros, a short IPv6 address) are not local names.
    if local_host(&host)? != first {
        return None;
    }
    Some((host, RepositoryName::parse(rest).ok()?))
}

/// The canonical name of a repository of Docker Hub, if `local` is another spelling of it:
/// `docker.io/nginx` means `docker.io/library/nginx`, and `index.docker.io` is `docker.io`.
pub fn canonical(local: &RepositoryName) -> Option<RepositoryName> {
    let (first, rest) = local.as_str().split_once('/')?;
    let host = Host::parse(first).ok().filter(Host::is_docker_hub)?;
    let library = if rest.contains('/') { "" } else { "library/" };
    let name = RepositoryName::parse(&format!("{host}/{library}{rest}")).ok()?;
    (name != *local).then_some(name)
}

/// Whether only fills may write to a repository: its first component is a host (it contains `.`,
/// ends with `_<port>`, or is `localhost`).
pub fn is_upstream_namespace(repository: &RepositoryName) -> bool {
    let first = repository.components().next().unwrap_or_default();
    first.contains('.') || first == "localhost" || split_port(first).is_some()
}

/// The reference by which pods pull an image from the cluster's registry at `address` (an IP
/// address, IPv6 in brackets, or `host[:port]`). `None` if the name would be too long.
pub fn rewrite(reference: &Reference, address: &str) -> Option<String> {
    let local = local_repository(reference.host(), reference.repository())?;
    Some(format!("{address}/{local}{}", reference.suffix()))
}

/// The upstream reference behind the text of a rewritten one, see [`upstream_reference`].
pub fn original(text: &str, addresses: &[String]) -> Option<Reference> {
    upstream_reference(&Reference::parse(text).ok()?, addresses)
}

/// The upstream reference behind a rewritten one. `None` unless `local` names one of `addresses`
/// and an upstream. An address without a port matches every port.
pub fn upstream_reference(local: &Reference, addresses: &[String]) -> Option<Reference> {
    if !is_at_any(local.host(), addresses) {
        return None;
    }
    Some(of_upstream(local, upstream_of(local.repository())?))
}

/// The upstream reference of the content that the registry serves for `local`. Like
/// [`upstream_reference`], but also accepts the other spellings of repositories of Docker Hub that
/// the registry accepts.
pub fn served(local: &Reference, addresses: &[String]) -> Option<Reference> {
    if !is_at_any(local.host(), addresses) {
        return None;
    }
    let repository = local.repository();
    let canonical = canonical(repository);
    let upstream = upstream_of(canonical.as_ref().unwrap_or(repository))?;
    Some(of_upstream(local, upstream))
}

fn of_upstream(local: &Reference, (host, repository): (Host, RepositoryName)) -> Reference {
    let (tag, digest) = (local.tag().cloned(), local.digest().cloned());
    Reference::new(host, repository, tag, digest)
}

/// Whether a host is the registry at `address`. An address without a port matches every port.
pub fn is_at(host: &Host, address: &str) -> bool {
    let parsed = Host::parse(address).or_else(|_| Host::parse(&format!("[{address}]")));
    match parsed {
        Ok(own) if own.port().is_none() => host.with_port(None) == own,
        Ok(own) => *host == own,
        Err(_) => false,
    }
}

/// Whether a host is the registry at one of its `addresses`.
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
        // Such a DNS name could not be distinguished from an IPv6 address.
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

/// Splits `name_5000`. `None` without the digits of a port after the last underscore.
fn split_port(first: &str) -> Option<(&str, Option<u16>)> {
    let (name, port) = first.rsplit_once('_')?;
    if port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    port.parse().ok().map(|port| (name, Some(port)))
}

/// The prefix of references of an image's upstream in this cluster: `ADDRESS/HOST/`. A policy
/// should not allow a shorter prefix, because the address alone covers every upstream.
pub fn upstream_prefix(source: &Reference, address: &str) -> Option<String> {
    let local = local_repository(source.host(), source.repository())?;
    let host = local.components().next()?;
    Some(format!("{address}/{host}/"))
}

#[cfg(test)]
mod tests;
