//! The host of a registry: a name, an IPv4 address or an IPv6 address in brackets, with an optional
//! port.

use std::fmt;
use std::net::Ipv6Addr;

use serde::{Deserialize, Serialize};

use super::{DEFAULT_HOST, Error};

/// Longest host name, in characters (DNS).
const MAX_HOST_LENGTH: usize = 253;

/// A registry's host and port, canonical: lower case, no leading zeros in the port,
/// `index.docker.io` as `docker.io`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Host {
    name: Name,
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Name {
    Dns(String),
    V6(Ipv6Addr),
}

impl Host {
    /// Parses `name[:port]` or `[IPv6][:port]`. A single label without a port is a host only if it
    /// is `localhost`, because `team/app` is a repository of Docker Hub.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let (name, port) = split_port(text)?;
        let port = port.map(parse_port).transpose()?;
        if let Some(inner) = name.strip_prefix('[') {
            let address = inner.strip_suffix(']').ok_or(Error::Host)?;
            let address = address.parse().map_err(|_| Error::Host)?;
            return Ok(Self {
                name: Name::V6(address),
                port,
            });
        }
        let name = name.to_ascii_lowercase();
        if name.len() > MAX_HOST_LENGTH || !name.split('.').all(is_label) {
            return Err(Error::Host);
        }
        let named = name.contains('.') || name == "localhost" || port.is_some();
        if !named {
            return Err(Error::Host);
        }
        let name = if name == "index.docker.io" && port.is_none() {
            DEFAULT_HOST.to_owned()
        } else {
            name
        };
        Ok(Self {
            name: Name::Dns(name),
            port,
        })
    }

    /// `docker.io`.
    pub fn docker_hub() -> Self {
        Self {
            name: Name::Dns(DEFAULT_HOST.to_owned()),
            port: None,
        }
    }

    /// Whether this is Docker Hub, whose official images live under `library/`.
    pub fn is_docker_hub(&self) -> bool {
        matches!(&self.name, Name::Dns(name) if name == DEFAULT_HOST) && self.port.is_none()
    }

    /// The host without its port; an IPv6 address in brackets.
    pub fn name(&self) -> String {
        match &self.name {
            Name::Dns(name) => name.clone(),
            Name::V6(address) => format!("[{address}]"),
        }
    }

    /// The port, if one is written.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// The address, if the host is an IPv6 address.
    pub fn ipv6(&self) -> Option<Ipv6Addr> {
        match self.name {
            Name::Dns(_) => None,
            Name::V6(address) => Some(address),
        }
    }

    /// The same host with another port, or without one.
    #[must_use]
    pub fn with_port(&self, port: Option<u16>) -> Self {
        Self {
            name: self.name.clone(),
            port,
        }
    }

    pub(crate) fn from_ipv6(address: Ipv6Addr, port: Option<u16>) -> Self {
        Self {
            name: Name::V6(address),
            port,
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Name::Dns(name) => f.write_str(name)?,
            Name::V6(address) => write!(f, "[{address}]")?,
        }
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

/// Whether the first component of a reference is a host and not part of the repository, by the rule
/// of container runtimes.
pub(super) fn looks_like_host(first: &str) -> bool {
    first.contains(['.', ':'])
        || first == "localhost"
        || first.bytes().any(|b| b.is_ascii_uppercase())
}

fn split_port(text: &str) -> Result<(&str, Option<&str>), Error> {
    match text.rsplit_once(']') {
        Some((_, "")) => Ok((text, None)),
        Some((inner, after)) => {
            let port = after.strip_prefix(':').ok_or(Error::Host)?;
            let name = text.get(..=inner.len()).ok_or(Error::Host)?;
            Ok((name, Some(port)))
        }
        None if text.starts_with('[') => Err(Error::Host),
        None => Ok(match text.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (text, None),
        }),
    }
}

fn parse_port(text: &str) -> Result<u16, Error> {
    if !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(Error::Port);
    }
    text.parse()
        .ok()
        .filter(|port| *port != 0)
        .ok_or(Error::Port)
}

fn is_label(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}
