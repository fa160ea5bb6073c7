//! Decides which upstreams are rewritten, by the value `sources`.

use crate::Host;

/// Decides which upstreams are rewritten (SPEC 11).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UpstreamFilter {
    /// The value `sources`; `None` means every upstream.
    sources: Option<Vec<Source>>,
    /// The hosts in the value `upstreams`.
    configured: Vec<Host>,
    /// Whether other hosts are excluded.
    only_configured: bool,
}

/// One entry of `sources`.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    Host(Host),
    /// `*.example[:port]`: all names with this suffix.
    Below {
        suffix: String,
        port: Option<u16>,
    },
}

impl UpstreamFilter {
    /// A filter of `sources` (empty: every upstream) and the hosts of `upstreams`. An entry that
    /// does not name a host matches nothing.
    pub fn new(sources: &[String], configured: Vec<Host>) -> Self {
        let parsed = sources
            .iter()
            .filter_map(|source| Source::parse(source))
            .collect();
        Self {
            sources: (!sources.is_empty()).then_some(parsed),
            configured,
            only_configured: false,
        }
    }

    /// If `only`, also excludes all hosts that are not in `upstreams`.
    #[must_use]
    pub fn only_configured(mut self, only: bool) -> Self {
        self.only_configured = only;
        self
    }

    /// Whether any upstream is excluded.
    pub fn is_restricted(&self) -> bool {
        self.sources.is_some() || self.only_configured
    }

    /// Whether images of a host are rewritten.
    ///
    /// A host that means the node itself (`localhost`, a loopback address) is rewritten only if the
    /// configuration names it, because it means another machine to the registry.
    pub fn include(&self, host: &Host) -> bool {
        let same = |own: &Host| own.name() == host.name() && web_port(own) == web_port(host);
        if self.only_configured && !self.configured.iter().any(same) {
            return false;
        }
        match &self.sources {
            Some(sources) => sources.iter().any(|source| source.matches(host)),
            None => !is_loopback(host) || self.configured.contains(host),
        }
    }
}

impl Source {
    fn parse(text: &str) -> Option<Self> {
        match text.strip_prefix('*') {
            Some(below) => {
                let below = Host::parse(&format!("x{below}")).ok()?;
                let suffix = below.name().strip_prefix('x')?.to_owned();
                Some(Self::Below {
                    suffix,
                    port: web_port(&below),
                })
            }
            None => Host::parse(text).ok().map(Self::Host),
        }
    }

    fn matches(&self, host: &Host) -> bool {
        match self {
            Self::Host(own) => own.name() == host.name() && web_port(own) == web_port(host),
            Self::Below { suffix, port } => {
                host.name().ends_with(suffix) && web_port(host) == *port
            }
        }
    }
}

/// The port, without the default 443.
fn web_port(host: &Host) -> Option<u16> {
    host.port().filter(|port| *port != 443)
}

fn is_loopback(host: &Host) -> bool {
    let name = host.name();
    name == "localhost"
        || name.ends_with(".localhost")
        || host.ipv6().is_some_and(|address| address.is_loopback())
        || name
            .parse::<std::net::Ipv4Addr>()
            .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(sources: &[&str], host: &str, expect: bool) {
        let sources: Vec<String> = sources.iter().map(|source| (*source).to_owned()).collect();
        let upstreams = UpstreamFilter::new(&sources, vec![Host::parse("localhost:5001").unwrap()]);
        let host = Host::parse(host).unwrap();
        assert_eq!(upstreams.include(&host), expect, "{host} of {sources:?}");
    }

    // SPEC 11
    #[test]
    fn sources_narrow_what_is_rewritten() {
        check(&[], "docker.io", true);
        check(&[], "registry.example:5000", true);
        check(&["registry.example"], "registry.example", true);
        check(&["registry.example"], "Registry.EXAMPLE:443", true);
        check(&["registry.example"], "registry.example:5000", false);
        check(&["registry.example"], "docker.io", false);
        check(&["registry.example:5000"], "registry.example:5000", true);
        check(&["registry.example:5000"], "registry.example", false);
        check(&["*.example"], "registry.example", true);
        check(&["*.example"], "a.b.example", true);
        check(&["*.example"], "notexample.org", false);
        check(&["*.azurecr.io"], "evilazurecr.io", false);
        check(&["*.example:5000"], "a.example:5000", true);
        check(&["*.example:5000"], "a.example", false);
        check(&["docker.io"], "index.docker.io", true);
        check(&["docker.io", "quay.io"], "quay.io", true);
    }

    #[test]
    fn an_entry_that_names_no_host_matches_nothing() {
        check(&["registry"], "registry.example", false);
    }

    #[test]
    fn only_configured_hosts_narrow_whatever_sources_say() {
        let configured = ["registry.example", "quay.io"].map(|host| Host::parse(host).unwrap());
        for (sources, host, expect) in [
            (&[][..], "registry.example", true),
            (&[], "registry.example:443", true),
            (&[], "registry.example:5000", false),
            (&[], "docker.io", false),
            (&["*.example", "docker.io"], "registry.example", true),
            (&["*.example", "docker.io"], "docker.io", false),
            (&["*.example", "docker.io"], "quay.io", false),
        ] {
            let sources: Vec<String> = sources.iter().map(|&host| host.to_owned()).collect();
            let upstreams =
                UpstreamFilter::new(&sources, configured.to_vec()).only_configured(true);
            assert!(upstreams.is_restricted());
            let found = upstreams.include(&Host::parse(host).unwrap());
            assert_eq!(found, expect, "{host} of {sources:?}");
        }
        assert!(!UpstreamFilter::new(&[], configured.to_vec()).is_restricted());
    }

    #[test]
    fn the_node_itself_is_no_upstream_unless_configured() {
        check(&[], "localhost", false);
        check(&[], "localhost:5000", false);
        check(&[], "127.0.0.1:5000", false);
        check(&[], "[::1]:5000", false);
        check(&[], "localhost:5001", true);
        check(&["localhost:5000"], "localhost:5000", true);
    }
}
