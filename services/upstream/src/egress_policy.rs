//! Which addresses an answer of an upstream may lead to: never this machine or its link, unless the
//! upstream is there.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU8, Ordering},
    },
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
    /// Unspecified, multicast, broadcast: nothing to connect to. And metadata services of clouds,
    /// wherever they are: they hand out credentials to anyone who asks from this machine.
    Never,
}

/// Metadata services by address: of most clouds, of containers and pods on AWS, of Alibaba, Azure
/// and Oracle.
const METADATA_V4: [Ipv4Addr; 5] = [
    Ipv4Addr::new(169, 254, 169, 254),
    Ipv4Addr::new(169, 254, 170, 2),
    Ipv4Addr::new(169, 254, 170, 23),
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(168, 63, 129, 16),
];

/// The same over IPv6: of `OpenStack`, Google, Oracle and Scaleway. Those of AWS are a network.
const METADATA_V6: [Ipv6Addr; 4] = [
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0xa9fe, 0xa9fe),
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe),
    Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42),
];

fn kind(address: IpAddr) -> Kind {
    match address {
        IpAddr::V4(v4) => kind_v4(v4),
        IpAddr::V6(v6) => match embedded(v6) {
            Some(v4) => kind_v4(v4),
            None => kind_v6(v6),
        },
    }
}

fn kind_v4(v4: Ipv4Addr) -> Kind {
    match v4.octets() {
        _ if METADATA_V4.contains(&v4) => Kind::Never,
        // This network, special registrations of the IETF (a metadata service of Oracle is there),
        // multicast and reserved.
        [0 | 224..=255, ..] | [192, 0, 0, _] => Kind::Never,
        [127, ..] => Kind::Loopback,
        [169, 254, ..] => Kind::LinkLocal,
        // 100.64.0.0/10 is the shared space of carriers.
        [100, 64..=127, ..] => Kind::Private,
        _ if v4.is_private() => Kind::Private,
        _ => Kind::Public,
    }
}

fn kind_v6(v6: Ipv6Addr) -> Kind {
    match v6.segments() {
        _ if METADATA_V6.contains(&v6) => Kind::Never,
        _ if v6.is_unspecified() || v6.is_multicast() => Kind::Never,
        _ if v6.is_loopback() => Kind::Loopback,
        // fd00:ec2::/32: the services of AWS.
        [0xfd00, 0xec2, ..] => Kind::Never,
        _ if v6.is_unicast_link_local() => Kind::LinkLocal,
        // Site-local addresses, deprecated and still routed; local translations (RFC 8215).
        [0xfec0..=0xfeff, ..] | [0x64, 0xff9b, 1, ..] => Kind::Private,
        _ if v6.is_unique_local() => Kind::Private,
        _ => Kind::Public,
    }
}

/// The IPv4 address that an IPv6 address leads to: mapped and compatible ones, NAT64 (RFC 6052),
/// 6to4 (RFC 3056), Teredo (RFC 4380) and ISATAP (RFC 5214).
fn embedded(v6: Ipv6Addr) -> Option<Ipv4Addr> {
    let of = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Ipv4Addr::new(a, b, c, d)
    };
    match v6.segments() {
        // `::` and `::1` are addresses of their own.
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => None,
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] | [0, 0, 0, 0, 0xffff, 0, high, low] => {
            Some(of(high, low))
        }
        [0x2001, 0, _, _, _, _, high, low] => Some(of(!high, !low)),
        [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [0x2002, high, low, ..]
        | [_, _, _, _, 0 | 0x200, 0x5efe, high, low] => Some(of(high, low)),
        _ => None,
    }
}

/// The kinds of address that may be reached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct EgressPolicy {
    private: bool,
    loopback: bool,
    link_local: bool,
}

/// The kinds of address that a name was resolved to, ever, and whether it was more than one
/// address. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct SeenAddresses(Arc<(AtomicU8, OnceLock<IpAddr>)>);

impl SeenAddresses {
    /// Beside the bits of the kinds: there were several addresses.
    const SEVERAL: u8 = 1 << 7;

    fn bit(kind: Kind) -> u8 {
        match kind {
            Kind::Public => 1,
            Kind::Private => 2,
            Kind::Loopback => 4,
            Kind::LinkLocal => 8,
            Kind::Never => 16,
        }
    }

    /// Adds an address that is connected to.
    pub(super) fn add(&self, address: IpAddr) {
        let (bits, first) = &*self.0;
        let is_first = *first.get_or_init(|| address) == address;
        let several = if is_first { 0 } else { Self::SEVERAL };
        bits.fetch_or(Self::bit(kind(address)) | several, Ordering::Relaxed);
    }

    fn bits(&self) -> u8 {
        self.0.0.load(Ordering::Relaxed)
    }

    /// Whether any of them is not public: details about it would reveal this network.
    pub(super) fn is_inside(&self) -> bool {
        self.bits() & !Self::SEVERAL & !Self::bit(Kind::Public) != 0
    }

    /// Whether they are of several kinds.
    pub(super) fn is_mixed(&self) -> bool {
        (self.bits() & !Self::SEVERAL).count_ones() > 1
    }

    /// Whether there were several: what one of them answered says nothing of the others.
    pub(super) fn is_several(&self) -> bool {
        self.bits() & Self::SEVERAL != 0
    }

    /// The addresses that this host may redirect to: those of the one kind that all of its own are
    /// of. A name with a public and a private address could belong to anyone.
    fn policy(&self) -> EgressPolicy {
        let all = self.bits() & !Self::SEVERAL;
        EgressPolicy {
            private: all == Self::bit(Kind::Private),
            loopback: all == Self::bit(Kind::Loopback),
            link_local: all == Self::bit(Kind::LinkLocal),
        }
    }
}

impl EgressPolicy {
    /// The addresses that an upstream at these addresses may redirect to; `configured` upstreams
    /// may use private addresses.
    pub(super) fn of(upstream: impl IntoIterator<Item = IpAddr>, configured: bool) -> Self {
        let seen = SeenAddresses::default();
        for address in upstream {
            seen.add(address);
        }
        Self::of_seen(&seen, configured)
    }

    /// The same for addresses that were seen.
    pub(super) fn of_seen(seen: &SeenAddresses, configured: bool) -> Self {
        let policy = seen.policy();
        Self {
            private: policy.private || configured,
            ..policy
        }
    }

    /// The addresses that an unconfigured host may have, which only an image names: a registry in
    /// this network, but not this machine.
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

    /// Whether a URL may be asked, as far as its text says; names are judged when they are resolved
    /// ([`Guard`]).
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

/// Resolves names and drops the addresses that may not be reached, so that no name leads around the
/// rule: the connection goes to an address that was judged here. The proxies' own names are the
/// operator's.
pub(super) struct Guard {
    allowed: Allowed,
    proxies: Vec<String>,
    /// What was handed out.
    seen: SeenAddresses,
}

/// What a guard hands out.
#[derive(Debug, Clone)]
pub(super) enum Allowed {
    /// These kinds.
    Kinds(EgressPolicy),
    /// What who lives at the addresses that were seen by now may send us to: a name that is
    /// resolved to something else each time gets no further than the least of it.
    Of(SeenAddresses),
}

impl Allowed {
    /// The kinds as of now.
    pub(super) fn policy(&self) -> EgressPolicy {
        match self {
            Self::Kinds(policy) => *policy,
            Self::Of(seen) => EgressPolicy::of_seen(seen, false).within(EgressPolicy::of_anybody()),
        }
    }
}

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let (policy, seen) = (self.allowed.policy(), self.seen.clone());
        let is_proxy = self
            .proxies
            .iter()
            .any(|proxy| proxy.eq_ignore_ascii_case(name.as_str()));
        Box::pin(async move {
            let mut found = lookup(name.as_str()).await?;
            found.retain(|address| is_proxy || policy.allows(address.ip()));
            if found.is_empty() {
                return Err("no address of the redirect's target may be reached".into());
            }
            if !is_proxy {
                for address in &found {
                    seen.add(address.ip());
                }
            }
            #[cfg(test)]
            for address in &mut found {
                *address = super::tests::names::route(name.as_str(), *address);
            }
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

/// The addresses of a name.
async fn lookup(name: &str) -> std::io::Result<Vec<SocketAddr>> {
    #[cfg(test)]
    if let Some(found) = super::tests::names::addresses(name) {
        return Ok(found);
    }
    Ok(tokio::net::lookup_host((name, 0)).await?.collect())
}

/// The address that a URL's host is, where it is one.
pub(super) fn literal(url: &Url) -> Option<IpAddr> {
    match url.host() {
        Some(url::Host::Ipv4(address)) => Some(IpAddr::V4(address)),
        Some(url::Host::Ipv6(address)) => Some(IpAddr::V6(address)),
        _ => None,
    }
}

/// The addresses behind a URL's host, for [`EgressPolicy::of`].
pub(super) async fn addresses(url: &Url) -> Vec<IpAddr> {
    match url.host() {
        Some(url::Host::Ipv4(address)) => vec![IpAddr::V4(address)],
        Some(url::Host::Ipv6(address)) => vec![IpAddr::V6(address)],
        Some(url::Host::Domain(name)) => {
            let found = lookup(name).await.unwrap_or_default();
            found.iter().map(SocketAddr::ip).collect()
        }
        None => Vec::new(),
    }
}

/// A guard that a client can share; `proxies` are host names, and `seen` learns what is handed out.
pub(super) fn guard(allowed: Allowed, proxies: Vec<String>, seen: SeenAddresses) -> Arc<Guard> {
    Arc::new(Guard {
        allowed,
        proxies,
        seen,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(upstream: &str, configured: bool, target: &str, expect: bool) {
        let policy = EgressPolicy::of([upstream.parse().unwrap()], configured);
        let url: Url = target.parse().unwrap();
        assert_eq!(
            policy.allows_url(&url),
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
    fn forbidden_addresses_are_known_in_every_form() {
        for (address, expect) in [
            ("64:ff9b::7f00:1", Kind::Loopback),
            ("64:ff9b::a9fe:a9fe", Kind::Never),
            ("64:ff9b::a00:1", Kind::Private),
            ("64:ff9b::a83f:8110", Kind::Never),
            ("64:ff9b::cb00:7105", Kind::Public),
            ("64:ff9b:1::1", Kind::Private),
            ("2002:7f00:1::", Kind::Loopback),
            ("2002:a9fe:a9fe::1", Kind::Never),
            ("2002:c0a8:101::1", Kind::Private),
            ("2002:cb00:7105::1", Kind::Public),
            ("2001:0:1:2:3:4:80ff:fffe", Kind::Loopback),
            ("::ffff:127.0.0.1", Kind::Loopback),
            ("::ffff:169.254.169.254", Kind::Never),
            ("::ffff:0:127.0.0.1", Kind::Loopback),
            ("::127.0.0.1", Kind::Loopback),
            ("fe80::5efe:7f00:1", Kind::Loopback),
            ("2001:db8::200:5efe:10.0.0.1", Kind::Private),
            ("::1", Kind::Loopback),
            ("::", Kind::Never),
            ("0.0.0.0", Kind::Never),
            ("0.1.2.3", Kind::Never),
            ("255.255.255.255", Kind::Never),
            ("240.0.0.1", Kind::Never),
            ("224.0.0.1", Kind::Never),
            ("ff02::1", Kind::Never),
            ("169.254.169.254", Kind::Never),
            ("169.254.170.2", Kind::Never),
            ("169.254.170.23", Kind::Never),
            ("169.254.1.1", Kind::LinkLocal),
            ("100.100.100.200", Kind::Never),
            ("100.64.0.1", Kind::Private),
            ("100.128.0.1", Kind::Public),
            ("168.63.129.16", Kind::Never),
            ("192.0.0.192", Kind::Never),
            ("fd00:ec2::254", Kind::Never),
            ("fd00:ec2::23", Kind::Never),
            ("fd20:ce::254", Kind::Never),
            ("fd00:c1::a9fe:a9fe", Kind::Never),
            ("fd00:42::42", Kind::Never),
            ("fe80::a9fe:a9fe", Kind::Never),
            ("fd12::1", Kind::Private),
            ("fec0::1", Kind::Private),
            ("2001:db8::1", Kind::Public),
        ] {
            assert_eq!(kind(address.parse().unwrap()), expect, "{address}");
        }
    }

    #[test]
    fn a_name_with_addresses_of_two_kinds_opens_neither() {
        for (addresses, target, expect) in [
            (&["10.0.0.9", "10.0.0.8"][..], "http://10.0.0.1/", true),
            (&["10.0.0.9", "198.51.100.1"], "http://10.0.0.1/", false),
            (&["127.0.0.1", "::1"], "http://127.0.0.1:9/", true),
            (&["127.0.0.1", "198.51.100.1"], "http://127.0.0.1:9/", false),
            (&["127.0.0.1", "10.0.0.1"], "http://127.0.0.1:9/", false),
            (
                &["169.254.1.1", "198.51.100.1"],
                "http://169.254.1.2/",
                false,
            ),
            (&["169.254.1.1"], "http://169.254.169.254/", false),
            (&[], "http://10.0.0.1/", false),
            (&[], "http://198.51.100.1/", true),
        ] {
            let parsed = addresses.iter().map(|address| address.parse().unwrap());
            let policy = EgressPolicy::of(parsed, false);
            let url: Url = target.parse().unwrap();
            assert_eq!(policy.allows_url(&url), expect, "{addresses:?} {target}");
        }
    }

    #[test]
    fn a_name_that_changes_gets_no_further_than_the_least_of_it() {
        let seen = SeenAddresses::default();
        let allowed = Allowed::Of(seen.clone());
        let private: IpAddr = "10.0.0.1".parse().unwrap();
        assert!(!allowed.policy().allows(private));
        seen.add(private);
        assert!(seen.is_inside() && allowed.policy().allows(private));
        seen.add("198.51.100.1".parse().unwrap());
        assert!(seen.is_inside() && !allowed.policy().allows(private));
    }

    #[test]
    fn a_host_that_only_an_image_names_is_not_this_machine() {
        let check = |target: &str, expect: bool| {
            let url: Url = target.parse().unwrap();
            assert_eq!(
                EgressPolicy::of_anybody().allows_url(&url),
                expect,
                "{target}"
            );
        };
        check("https://203.0.113.5/", true);
        check("https://10.0.0.1:5000/", true);
        check("https://registry.example/", true);
        check("https://169.254.169.254/", false);
        check("https://127.0.0.1/", false);
        check("https://localhost/", false);
    }
}
