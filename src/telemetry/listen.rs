//! Where a role takes connections.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::net::TcpListener;

/// Takes an address. `[::]` is every address of the system, of both families: IPv4 comes by it, too, as Linux does it unless
/// `net.ipv6.bindv6only` says otherwise. A system that was started without IPv6 has no such address; every one of IPv4 is
/// what is meant there.
///
/// # Errors
/// The address is taken, or not ours.
pub async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(error) => match without_ipv6(address, &error) {
            Some(address) => TcpListener::bind(address).await,
            None => Err(error),
        },
        listener => listener,
    }
}

/// What to take in the place of `address`, if the system knows nothing of its family.
fn without_ipv6(address: SocketAddr, error: &io::Error) -> Option<SocketAddr> {
    let unknown = error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error());
    let everywhere = address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    (unknown && everywhere).then(|| SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port())))
}

/// `address:port`, `[address]:port`, or `:port` for every address.
#[must_use]
pub fn parse(text: &str) -> Option<SocketAddr> {
    match text.strip_prefix(':') {
        Some(port) => Some(SocketAddr::from((
            Ipv6Addr::UNSPECIFIED,
            port.parse().ok()?,
        ))),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_address_is_one_of_both_families() {
        let listener = listen(parse(":0").unwrap()).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        for address in ["127.0.0.1", "::1"] {
            let address: IpAddr = address.parse().unwrap();
            let client = tokio::net::TcpStream::connect((address, port));
            let (client, accepted) = tokio::join!(client, listener.accept());
            client.unwrap_or_else(|error| panic!("{address}: {error}"));
            accepted.unwrap();
        }
    }

    #[test]
    fn without_ipv6_every_address_is_one_of_ipv4_and_no_other_error_is_hidden() {
        let unknown = || io::Error::from_raw_os_error(97);
        let everywhere = parse("[::]:9090").unwrap();
        let instead = without_ipv6(everywhere, &unknown());
        assert_eq!(instead, parse("0.0.0.0:9090"));
        assert_eq!(without_ipv6(parse("[::1]:9090").unwrap(), &unknown()), None);
        let taken = io::Error::from(io::ErrorKind::AddrInUse);
        assert_eq!(without_ipv6(everywhere, &taken), None);
    }

    #[test]
    fn an_address_has_a_port() {
        for text in ["9090", "localhost:9090", ":port", "::", ""] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
