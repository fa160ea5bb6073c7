//! Which addresses an answer of an upstream may send us to: never to this machine or its link, unless the upstream lives there.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::Url;

/// What kind of address it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Public,
    Private,
    Loopback,
    LinkLocal,
    /// Unspecified, multicast, broadcast: nothing to connect to.
    Never,
}

/// Metadata services of clouds that are not on the link: they hand out credentials to whoever asks from this machine.
const METADATA: [IpAddr; 3] = [
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
];

fn kind(address: IpAddr) -> Kind {
    let address = address.to_canonical();
    if address.is_unspecified() || address.is_multicast() || METADATA.contains(&address) {
        return Kind::Never;
    }
    if address.is_loopback() {
        return Kind::Loopback;
    }
    match address {
        IpAddr::V4(v4) if v4.is_link_local() => Kind::LinkLocal,
        IpAddr::V4(v4) if v4.is_broadcast() => Kind::Never,
        // 100.64.0.0/10 is the shared space of carriers and of some clouds' metadata services.
        IpAddr::V4(v4)
            if v4.is_private() || (v4.octets()[0] == 100 && v4.octets()[1] & 0xC0 == 64) =>
        {
            Kind::Private
        }
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Kind::LinkLocal,
        IpAddr::V6(v6) if v6.is_unique_local() => Kind::Private,
        _ => Kind::Public,
    }
}

/// The kinds of address that may be reached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Reach {
    private: bool,
    loopback: bool,
    link_local: bool,
}

impl Reach {
    /// What an upstream at these addresses may send us to; `configured` upstreams may use private addresses.
    pub(super) fn of(upstream: impl IntoIterator<Item = IpAddr>, configured: bool) -> Self {
        let mut reach = Self {
            private: configured,
            ..Self::default()
        };
        for address in upstream {
            match kind(address) {
                Kind::Private => reach.private = true,
                Kind::Loopback => reach.loopback = true,
                Kind::LinkLocal => reach.link_local = true,
                Kind::Public | Kind::Never => {}
            }
        }
        reach
    }

    /// What a host may be that nobody configured, only an image's name: a registry beside us, but not this machine.
    pub(super) fn of_anybody() -> Self {
        Self {
            private: true,
            ..Self::default()
        }
    }

    /// What both allow.
    pub(super) fn within(self, other: Self) -> Self {
        Self {
            private: self.private && other.private,
            loopback: self.loopback && other.loopback,
            link_local: self.link_local && other.link_local,
        }
    }

    /// Whether an address may be connected to.
    pub(super) fn allows(self, address: IpAddr) -> bool {
        match kind(address) {
            Kind::Public => true,
            Kind::Private => self.private,
            Kind::Loopback => self.loopback,
            Kind::LinkLocal => self.link_local,
            Kind::Never => false,
        }
    }

    /// Whether a URL may be asked, as far as its text says; names are judged when they are resolved ([`Guard`]).
    pub(super) fn allows_url(self, url: &Url) -> bool {
        let literal = match url.host() {
            None => return false,
            Some(url::Host::Domain(name)) => {
                let name = name.trim_end_matches('.');
                return self.loopback || !(name == "localhost" || name.ends_with(".localhost"));
            }
            Some(url::Host::Ipv4(address)) => IpAddr::V4(address),
            Some(url::Host::Ipv6(address)) => IpAddr::V6(address),
        };
        matches!(url.scheme(), "http" | "https") && self.allows(literal)
    }
}

/// Resolves names and drops the addresses that may not be reached, so that no name leads around the rule: the connection
/// goes to an address that was judged here. The proxies' own names are the operator's.
pub(super) struct Guard {
    reach: Reach,
    proxies: Vec<String>,
}

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let reach = self.reach;
        let is_proxy = self
            .proxies
            .iter()
            .any(|proxy| proxy.eq_ignore_ascii_case(name.as_str()));
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0))
                .await?
                .filter(|address| is_proxy || reach.allows(address.ip()))
                .collect();
            if found.is_empty() {
                return Err("no address of the redirect's target may be reached".into());
            }
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

/// The addresses behind a URL's host, for [`Reach::of`].
pub(super) async fn addresses(url: &Url) -> Vec<IpAddr> {
    match url.host() {
        Some(url::Host::Ipv4(address)) => vec![IpAddr::V4(address)],
        Some(url::Host::Ipv6(address)) => vec![IpAddr::V6(address)],
        Some(url::Host::Domain(name)) => match tokio::net::lookup_host((name, 0)).await {
            Ok(found) => found.map(|address| address.ip()).collect(),
            Err(_) => Vec::new(),
        },
        None => Vec::new(),
    }
}

/// A guard that a client can share; `proxies` are host names.
pub(super) fn guard(reach: Reach, proxies: Vec<String>) -> Arc<Guard> {
    Arc::new(Guard { reach, proxies })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(upstream: &str, configured: bool, target: &str, expect: bool) {
        let reach = Reach::of([upstream.parse().unwrap()], configured);
        let url: Url = target.parse().unwrap();
        assert_eq!(
            reach.allows_url(&url),
            expect,
            "{upstream} (configured: {configured}) to {target}"
        );
    }

    #[test]
    fn redirects_reach_only_what_the_upstream_could_mean() {
        check("198.51.100.1", false, "https://203.0.113.5/a", true);
        check("198.51.100.1", false, "https://cdn.example/a", true);
        check(
            "198.51.100.1",
            false,
            "http://169.254.169.254/latest",
            false,
        );
        check("198.51.100.1", true, "http://169.254.169.254/latest", false);
        check("198.51.100.1", false, "http://127.0.0.1/", false);
        check("198.51.100.1", false, "http://localhost/", false);
        check("198.51.100.1", false, "http://[::1]/", false);
        check("198.51.100.1", false, "http://[::ffff:127.0.0.1]/", false);
        check("198.51.100.1", false, "http://[fe80::1]/", false);
        check("198.51.100.1", false, "http://0.0.0.0/", false);
        check("198.51.100.1", false, "http://10.0.0.1/", false);
        check("198.51.100.1", true, "http://10.0.0.1/", true);
        check("10.0.0.9", false, "http://10.0.0.1/", true);
        check("127.0.0.1", false, "http://127.0.0.1:9/", true);
        check("127.0.0.1", false, "http://169.254.169.254/", false);
        check("198.51.100.1", false, "file:///etc/passwd", false);
        check("198.51.100.1", true, "http://[fd00:ec2::254]/", false);
        check("198.51.100.1", true, "http://100.100.100.200/", false);
        check("10.0.0.9", false, "http://168.63.129.16/", false);
        check("198.51.100.1", false, "http://[fd00::1]/", false);
    }

    #[test]
    fn a_host_that_only_an_image_names_is_not_this_machine() {
        let check = |target: &str, expect: bool| {
            let url: Url = target.parse().unwrap();
            assert_eq!(Reach::of_anybody().allows_url(&url), expect, "{target}");
        };
        check("https://203.0.113.5/", true);
        check("https://10.0.0.1:5000/", true);
        check("https://registry.example/", true);
        check("https://169.254.169.254/", false);
        check("https://127.0.0.1/", false);
        check("https://localhost/", false);
    }
}
