//! Which requests go through a proxy: the forms of `HTTP(S)_PROXY` and `NO_PROXY`, pure.
//!
//! The matcher of hyper-util is not used because in `NO_PROXY` it knows no ports, no `*.example`
//! and no address in brackets.

use std::net::IpAddr;

use holdfast_config::Proxy;
use url::Url;

/// The proxies, and the hosts that are reached without them.
#[derive(Debug, Clone, Default)]
pub(super) struct Proxies {
    http: Option<Url>,
    https: Option<Url>,
    direct: Vec<Rule>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    hosts: Hosts,
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Hosts {
    All,
    /// A domain with all below it.
    Domain(String),
    /// Addresses that share the first bits.
    Network(IpAddr, u8),
}

impl Proxies {
    /// Reads the settings.
    ///
    /// # Errors
    /// A proxy that is no URL, with what is wrong.
    pub(super) fn new(settings: &Proxy) -> Result<Self, String> {
        let address = |text: &str| match text {
            "" => Ok(None),
            text => {
                let full = if text.contains("://") {
                    text.to_owned()
                } else {
                    format!("http://{text}")
                };
                Url::parse(&full)
                    .map(Some)
                    .map_err(|error| format!("proxy {text}: {error}"))
            }
        };
        let rules = settings.no_proxy.iter().flat_map(|text| text.split(','));
        Ok(Self {
            http: address(&settings.http)?,
            https: address(&settings.https)?,
            direct: rules.filter_map(Rule::parse).collect(),
        })
    }

    /// The proxy that a request to `url` goes through.
    pub(super) fn of(&self, url: &Url) -> Option<&Url> {
        let proxy = match url.scheme() {
            "https" => self.https.as_ref(),
            _ => self.http.as_ref(),
        }?;
        (!self.direct.iter().any(|rule| rule.fits(url))).then_some(proxy)
    }

    /// The names of the proxies' hosts.
    pub(super) fn hosts(&self) -> Vec<String> {
        [&self.http, &self.https]
            .into_iter()
            .flatten()
            .filter_map(|url| url.host_str().map(str::to_owned))
            .collect()
    }

    /// Whether there is no proxy.
    pub(super) fn is_empty(&self) -> bool {
        self.http.is_none() && self.https.is_none()
    }
}

impl Rule {
    fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        if text.is_empty() {
            return None;
        }
        let bare = |text: &str| {
            text.trim_start_matches('[')
                .trim_end_matches(']')
                .parse::<IpAddr>()
                .ok()
        };
        let all = |address: IpAddr| if address.is_ipv4() { 32 } else { 128 };
        if text == "*" {
            return Some(Self {
                hosts: Hosts::All,
                port: None,
            });
        }
        if let Some(address) = bare(text) {
            return Some(Self {
                hosts: Hosts::Network(address, all(address)),
                port: None,
            });
        }
        if let Some((address, bits)) = text.split_once('/') {
            let (address, bits) = (bare(address)?, bits.parse().ok()?);
            return (bits <= all(address)).then_some(Self {
                hosts: Hosts::Network(address, bits),
                port: None,
            });
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => (host, Some(port.parse().ok()?)),
            None => (text, None),
        };
        let hosts = if let Some(address) = bare(host) {
            Hosts::Network(address, all(address))
        } else {
            let name = host.trim_start_matches("*.").trim_matches('.');
            Hosts::Domain(name.to_ascii_lowercase())
        };
        Some(Self { hosts, port })
    }

    fn fits(&self, url: &Url) -> bool {
        if self.port.is_some() && self.port != url.port_or_known_default() {
            return false;
        }
        match (&self.hosts, url.host()) {
            (Hosts::All, _) => true,
            (Hosts::Domain(domain), Some(url::Host::Domain(name))) => {
                let name = name.trim_end_matches('.').to_ascii_lowercase();
                name == *domain
                    || name
                        .strip_suffix(domain.as_str())
                        .is_some_and(|head| head.ends_with('.'))
            }
            (Hosts::Network(network, bits), Some(url::Host::Ipv4(address))) => {
                within(*network, *bits, address.into())
            }
            (Hosts::Network(network, bits), Some(url::Host::Ipv6(address))) => {
                within(*network, *bits, address.into())
            }
            _ => false,
        }
    }
}

fn within(network: IpAddr, bits: u8, address: IpAddr) -> bool {
    let (network, address, width) = match (network, address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => (
            u128::from(u32::from(network)),
            u128::from(u32::from(address)),
            32,
        ),
        (IpAddr::V6(network), IpAddr::V6(address)) => {
            (u128::from(network), u128::from(address), 128)
        }
        _ => return false,
    };
    let rest = u32::from(width - bits.min(width));
    network.checked_shr(rest).unwrap_or(0) == address.checked_shr(rest).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(no_proxy: &str, url: &str, expect: bool) {
        let proxies = Proxies::new(&Proxy {
            http: "proxy.example:3128".to_owned(),
            https: "http://proxy.example:3129/".to_owned(),
            no_proxy: vec![no_proxy.to_owned()],
        })
        .unwrap();
        let url: Url = url.parse().unwrap();
        assert_eq!(proxies.of(&url).is_some(), expect, "{no_proxy} {url}");
    }

    #[test]
    fn what_is_reached_directly() {
        check("", "https://registry.example/", true);
        check("example", "https://registry.example/", false);
        check(".example", "https://registry.example/", false);
        check("*.example", "https://registry.example/", false);
        check("ample", "https://registry.example/", true);
        check("REGISTRY.example", "https://registry.Example./", false);
        check("registry.example:5000", "https://registry.example/", true);
        check(
            "registry.example:5000",
            "https://registry.example:5000/",
            false,
        );
        check("registry.example:443", "https://registry.example/", false);
        check("10.0.0.0/8", "http://10.9.8.7:5000/", false);
        check("10.0.0.0/8", "http://11.9.8.7/", true);
        check("10.0.0.0/8", "http://ten.example/", true);
        check("10.0.0.1", "http://10.0.0.1/", false);
        check("10.0.0.1:80", "http://10.0.0.1:81/", true);
        check("0.0.0.0/0", "http://203.0.113.5/", false);
        check("fd00::/8", "http://[fd12::1]/", false);
        check("fd00::/8", "http://[fe80::1]/", true);
        check("[fd12::1]", "http://[fd12::1]/", false);
        check("other, 10.0.0.0/8", "http://10.1.1.1/", false);
        check("*", "https://registry.example/", false);
        check("10.0.0.0/99", "http://10.1.1.1/", true);
    }

    #[test]
    fn each_scheme_has_its_proxy() {
        let proxies = Proxies::new(&Proxy {
            http: "proxy.example:3128".to_owned(),
            https: String::new(),
            no_proxy: Vec::new(),
        })
        .unwrap();
        let of = |url: &str| proxies.of(&url.parse().unwrap()).map(Url::as_str);
        assert_eq!(of("http://a/"), Some("http://proxy.example:3128/"));
        assert_eq!(of("https://a/"), None);
        assert_eq!(proxies.hosts(), ["proxy.example"]);
    }
}
