//! Which requests go through a proxy: `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY`, read as Go reads them
//! (`golang.org/x/net/http/httpproxy`), and so as containerd and kubelet do on the same node.
//!
//! Others, curl among them, read more into them: `ALL_PROXY`, domains with a dot in front that match themselves. What is
//! meant for containerd must mean the same here, or a node pulls by ways it was not given.

use std::net::IpAddr;

use reqwest::Url;

/// The proxies of this process, and what goes past them.
#[derive(Clone, Default)]
pub(super) struct Proxies {
    http: Option<Url>,
    https: Option<Url>,
    exceptions: Vec<Exception>,
}

/// An entry of `NO_PROXY`; a port of its own makes it hold for that port alone.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Exception {
    /// `*`
    All,
    /// `10.0.0.0/8`
    Network(IpAddr, u8),
    /// `10.0.0.1`, `[::1]:5000`
    Address(IpAddr, Option<u16>),
    /// `example.com`: the domain, with a dot in front, and all below it; itself only if it was written without one.
    Domain {
        dotted: String,
        itself: bool,
        port: Option<u16>,
    },
}

impl Proxies {
    /// From the variables of this process; the upper case wins.
    pub(super) fn from_env() -> Self {
        let value = |upper: &str, lower: &str| {
            [upper, lower]
                .into_iter()
                .filter_map(|name| std::env::var(name).ok())
                .find(|value| !value.is_empty())
                .unwrap_or_default()
        };
        Self::new(
            &value("HTTP_PROXY", "http_proxy"),
            &value("HTTPS_PROXY", "https_proxy"),
            &value("NO_PROXY", "no_proxy"),
        )
    }

    /// From the values of the variables.
    pub(super) fn new(http: &str, https: &str, no_proxy: &str) -> Self {
        let proxy = |variable: &str, value: &str| {
            let proxy = proxy_url(value);
            if proxy.is_none() && !value.is_empty() {
                // The value may hold a password.
                tracing::warn!("{variable} is no address of an HTTP proxy, and is not used");
            }
            proxy
        };
        Self {
            http: proxy("HTTP_PROXY", http),
            https: proxy("HTTPS_PROXY", https),
            exceptions: no_proxy.split(',').filter_map(exception).collect(),
        }
    }

    /// The proxy for a request; `None` when it goes straight to the server.
    pub(super) fn of(&self, url: &Url) -> Option<Url> {
        let proxy = match url.scheme() {
            "https" => self.https.as_ref()?,
            "http" => self.http.as_ref()?,
            _ => return None,
        };
        let (name, port) = (url.host_str()?, url.port_or_known_default()?);
        let address = name.trim_matches(['[', ']']).parse::<IpAddr>().ok();
        let address = address.map(|address| address.to_canonical());
        if name == "localhost" || address.is_some_and(|address| address.is_loopback()) {
            return None;
        }
        let is_exception = |exception: &Exception| exception.holds_for(name, address, port);
        (!self.exceptions.iter().any(is_exception)).then(|| proxy.clone())
    }
}

impl Exception {
    fn holds_for(&self, name: &str, address: Option<IpAddr>, port: u16) -> bool {
        let port_fits = |wanted: &Option<u16>| wanted.is_none_or(|wanted| wanted == port);
        match self {
            Self::All => true,
            Self::Network(network, length) => {
                address.is_some_and(|address| is_within(address, *network, *length))
            }
            Self::Address(wanted, port) => address == Some(*wanted) && port_fits(port),
            Self::Domain {
                dotted,
                itself,
                port,
            } => {
                let fits = name.ends_with(dotted.as_str()) || (*itself && name == &dotted[1..]);
                fits && port_fits(port)
            }
        }
    }
}

fn proxy_url(value: &str) -> Option<Url> {
    let parsed = Url::parse(value).ok().filter(Url::has_host);
    let url = parsed.or_else(|| Url::parse(&format!("http://{value}")).ok())?;
    matches!(url.scheme(), "http" | "https").then_some(url)
}

fn exception(entry: &str) -> Option<Exception> {
    let entry = entry.trim().to_ascii_lowercase();
    if entry == "*" {
        return Some(Exception::All);
    }
    if let Some((network, length)) = entry.split_once('/')
        && let (Ok(network), Ok(length)) = (network.parse::<IpAddr>(), length.parse::<u8>())
        && length <= bits(network)
    {
        return Some(Exception::Network(network, length));
    }
    let unbracketed = entry.trim_matches(['[', ']']);
    if let Ok(address) = unbracketed.parse::<IpAddr>() {
        return Some(Exception::Address(address.to_canonical(), None));
    }
    let (host, port) = match entry.rsplit_once(':') {
        Some((host, port)) => (host, Some(port.parse().ok()?)),
        None => (entry.as_str(), None),
    };
    if let Ok(address) = host.trim_matches(['[', ']']).parse::<IpAddr>() {
        return Some(Exception::Address(address.to_canonical(), port));
    }
    let host = match host.strip_prefix('*') {
        Some(rest) if rest.starts_with('.') => rest,
        _ => host,
    };
    // Requests name a host in ASCII.
    let host = match host.is_ascii() {
        true => host.to_owned(),
        false => {
            let undotted = Url::parse(&format!("http://{}", host.trim_start_matches('.'))).ok()?;
            let dots = host.len() - host.trim_start_matches('.').len();
            format!("{}{}", ".".repeat(dots), undotted.host_str()?)
        }
    };
    if host.is_empty() {
        return None;
    }
    let itself = !host.starts_with('.');
    let dotted = match itself {
        true => format!(".{host}"),
        false => host,
    };
    Some(Exception::Domain {
        dotted,
        itself,
        port,
    })
}

const fn bits(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

fn is_within(address: IpAddr, network: IpAddr, length: u8) -> bool {
    let (address, network, width) = match (address, network) {
        (IpAddr::V4(a), IpAddr::V4(n)) => (u128::from(a.to_bits()), u128::from(n.to_bits()), 32),
        (IpAddr::V6(a), IpAddr::V6(n)) => (a.to_bits(), n.to_bits(), 128),
        _ => return false,
    };
    let host_bits = u32::from(width - length);
    // All 128 bits at once are more than a shift can do.
    (address ^ network).checked_shr(host_bits).unwrap_or(0) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxied(no_proxy: &str, url: &str) -> bool {
        let proxies = Proxies::new("http://p:1", "http://s:2", no_proxy);
        proxies.of(&url.parse().unwrap()).is_some()
    }

    #[test]
    fn the_scheme_chooses_the_proxy_and_this_machine_has_none() {
        let of = |http, https, url: &str| {
            let proxies = Proxies::new(http, https, "");
            proxies.of(&url.parse().unwrap()).map(String::from)
        };
        for (http, https, url, proxy) in [
            ("http://p:1", "", "http://a.io/", Some("http://p:1/")),
            ("http://p:1", "", "https://a.io/", None),
            ("", "http://s:2", "https://a.io/", Some("http://s:2/")),
            ("", "http://s:2", "http://a.io/", None),
            ("p.io:3128", "", "http://a.io/", Some("http://p.io:3128/")),
            (
                "10.0.0.1:3128",
                "",
                "http://a.io/",
                Some("http://10.0.0.1:3128/"),
            ),
            ("p", "", "http://a.io/", Some("http://p/")),
            (
                "",
                "https://u:p%40@s:2",
                "https://a.io/",
                Some("https://u:p%40@s:2/"),
            ),
            ("socks5://p:1", "", "http://a.io/", None),
            ("http://p:1", "", "http://localhost:5000/", None),
            ("http://p:1", "", "http://127.1.2.3/", None),
            ("http://p:1", "", "http://[::1]:80/", None),
            (
                "http://p:1",
                "",
                "http://localhost.io/",
                Some("http://p:1/"),
            ),
        ] {
            let got = of(http, https, url);
            assert_eq!(got.as_deref(), proxy, "{http} {https} {url}");
        }
    }

    /// What `TestUseProxy` and `TestProxyForURL` of `golang.org/x/net/http/httpproxy` expect, and some more.
    #[test]
    fn exceptions_are_those_of_go() {
        let go = "foobar.com, .barbaz.net, *.wildcard.io, 192.168.1.1, 192.168.1.2:81, 192.168.1.3:80, 10.0.0.0/30, 2001:db8::52:0:1, [2001:db8::52:0:2]:443, [2001:db8::52:0:3]:80, 2002:db8:a::45/64, Upper.IO:5000,, .示例.com, 示例.net, :80, :,";
        for (url, expected) in [
            ("http://barbaz.net", true),
            ("http://www.barbaz.net", false),
            ("http://foobar.com", false),
            ("http://www.foobar.com", false),
            ("http://foofoobar.com", true),
            ("http://baz.com", true),
            ("http://localhost.net", true),
            ("http://local.localhost", true),
            ("http://192.168.1.1", false),
            ("http://192.168.1.2", true),
            ("http://192.168.1.2:81", false),
            ("http://192.168.1.3", false),
            ("http://192.168.1.4", true),
            ("http://10.0.0.2", false),
            ("http://10.0.0.4", true),
            ("http://[2001:db8::52:0:1]", false),
            ("http://[2001:db8::52:0:2]", true),
            ("https://[2001:db8::52:0:2]", false),
            ("http://[2001:db8::52:0:3]", false),
            ("http://[2002:db8:a::123]", false),
            ("http://[2002:db8:a:1::123]", true),
            ("http://[fe80::424b:c8be:1643:a1b6]", true),
            ("http://wildcard.io", true),
            ("http://a.b.wildcard.io", false),
            ("http://awildcard.io", true),
            ("http://[::2]", true),
            ("http://www.示例.com", false),
            ("http://示例.com", true),
            ("http://xn--fsq092h.net", false),
            ("http://upper.io:5000", false),
            ("http://UPPER.io", true),
        ] {
            assert_eq!(proxied(go, url), expected, "{url}");
        }
    }

    #[test]
    fn a_star_is_everything_and_a_network_of_no_bits_its_family() {
        assert!(!proxied("a.io, *", "http://b.io"));
        assert!(!proxied("0.0.0.0/0", "http://10.0.0.1"));
        assert!(!proxied("::/0", "http://[fe80::1]"));
        assert!(proxied("0.0.0.0/0", "http://b.io"));
        assert!(proxied("10.0.0.0/33", "http://10.0.0.1"));
        assert!(proxied("", "http://b.io"));
    }
}
