//! Which addresses questions may go to.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use http::Uri;
use thiserror::Error;

use super::address;

/// The addresses that questions may go to: those of the Internet, and those of the networks that are named.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks {
    named: Vec<Network>,
}

/// The addresses that begin alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix_bits: u32,
}

/// Why text is no network.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{0}` is no network: write an address, or the beginning of addresses with its length, such as 10.0.0.0/8")]
pub struct NetworkError(String);

impl Networks {
    /// The Internet, and these.
    #[must_use]
    pub const fn with(named: Vec<Network>) -> Self {
        Self { named }
    }

    /// The Internet, and this machine.
    #[must_use]
    pub fn with_this_machine() -> Self {
        let loopback = |address, prefix_bits| Network { address, prefix_bits };
        Self::with(vec![
            loopback(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), 8),
            loopback(IpAddr::V6(Ipv6Addr::LOCALHOST), 128),
        ])
    }

    /// Whether questions may go to an address.
    #[must_use]
    pub fn admit(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        is_global(address) || self.named.iter().any(|network| network.contains(address))
    }

    /// Whether questions may go where a URL says, as far as it says so: a name can be anywhere.
    pub(super) fn check(&self, uri: &Uri) -> Result<(), String> {
        match address(uri) {
            Some(address) if !self.admit(address) => Err(refusal(&address)),
            _ => Ok(()),
        }
    }

    /// As when a question is asked, for whoever is about to write a URL down.
    ///
    /// # Errors
    /// Why no question may go there.
    pub fn check_url(&self, url: &str) -> Result<(), String> {
        self.check(&super::parse(url)?)
    }
}

/// What is said of an address that is refused. The name behind it says no more than that.
pub(super) fn refusal(address: &dyn fmt::Display) -> String {
    format!("{address} is neither on the Internet nor in a network that the operator named for this")
}

impl Network {
    fn contains(&self, address: IpAddr) -> bool {
        let begins_alike = |ours: u128, theirs: u128, bits: u32| {
            let rest = bits - self.prefix_bits;
            rest == 128 || ours >> rest == theirs >> rest
        };
        match (self.address, address) {
            (IpAddr::V4(ours), IpAddr::V4(theirs)) => {
                begins_alike(u32::from(ours).into(), u32::from(theirs).into(), 32)
            }
            (IpAddr::V6(ours), IpAddr::V6(theirs)) => begins_alike(ours.into(), theirs.into(), 128),
            _ => false,
        }
    }
}

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let wrong = || NetworkError(text.chars().take(80).collect());
        let (address, length) = text.split_once('/').map_or((text, None), |(address, length)| (address, Some(length)));
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix_bits = length.map_or(Ok(bits), str::parse).map_err(|_| wrong())?;
        if prefix_bits > bits {
            return Err(wrong());
        }
        Ok(Self { address, prefix_bits })
    }
}

/// Whether an address is one of the Internet, and means the same everywhere.
fn is_global(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_global_v4(address),
        IpAddr::V6(address) => is_global_v6(address),
    }
}

/// What the registry of special addresses (RFC 6890) does not take out.
fn is_global_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let is_special = address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_multicast()
        || address.is_documentation()
        || a == 0
        || a >= 240
        || (a == 100 && (64..128).contains(&b))
        || (a == 192 && b == 0 && c == 0)
        || (a == 198 && (18..20).contains(&b));
    !is_special
}

/// Only 2000::/3 is given to anybody. Within it, some addresses hold one of the other kind, which may be anything.
fn is_global_v6(address: Ipv6Addr) -> bool {
    let [first, second, ..] = address.segments();
    let is_given = first & 0xe000 == 0x2000;
    let holds_another = first == 0x2002 || (first == 0x2001 && second == 0);
    let is_documentation = (first == 0x2001 && second == 0xdb8) || first == 0x3fff;
    is_given && !holds_another && !is_documentation
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks(named: &[&str]) -> Networks {
        Networks::with(named.iter().map(|network| network.parse().unwrap()).collect())
    }

    #[test]
    fn the_internet_is_admitted_and_what_is_named() {
        let check = |named: &[&str], admitted: &[&str], refused: &[&str]| {
            let networks = networks(named);
            for (addresses, expected) in [(admitted, true), (refused, false)] {
                for address in addresses {
                    assert_eq!(networks.admit(address.parse().unwrap()), expected, "{named:?} {address}");
                }
            }
        };
        let special = [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "127.0.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "192.0.0.1",
            "192.168.1.1",
            "198.18.0.1",
            "203.0.113.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "fd00::1",
            "ff02::1",
            "64:ff9b::a00:1",
            "2002:a00:1::",
            "2001::1",
            "2001:db8::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::10.0.0.1",
        ];
        check(&[], &["1.1.1.1", "151.101.2.217", "2a04:4e42::729", "::ffff:1.1.1.1"], &special);
        check(
            &["10.0.0.0/8", "fd00::/8"],
            &["10.255.0.1", "::ffff:10.0.0.1", "fd12::1", "1.1.1.1"],
            &["11.0.0.1".replace("11", "127").as_str(), "fc00::1"],
        );
        check(&["192.168.1.7"], &["192.168.1.7"], &["192.168.1.8"]);
        check(&["0.0.0.0/0", "::/0"], &special, &[]);
    }

    #[test]
    fn this_machine_is_admitted_where_it_is_asked_for() {
        let networks = Networks::with_this_machine();
        for (address, expected) in [("127.0.0.1", true), ("127.3.4.5", true), ("::1", true), ("10.0.0.1", false)] {
            assert_eq!(networks.admit(address.parse().unwrap()), expected, "{address}");
        }
    }

    #[test]
    fn networks_are_read() {
        for wrong in ["", "10.0.0.0/33", "::/129", "10.0.0/8", "localhost", "10.0.0.0/-1", "10.0.0.0/"] {
            assert!(wrong.parse::<Network>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn addresses_in_urls_are_checked_at_once() {
        let networks = networks(&[]);
        for (url, expected) in [
            ("http://127.0.0.1:80/x", false),
            ("https://[::1]/", false),
            ("http://169.254.169.254/latest", false),
            ("https://[2a04:4e42::729]/", true),
            // It is looked up when it is asked.
            ("http://localhost/", true),
        ] {
            assert_eq!(networks.check_url(url).is_ok(), expected, "{url}");
        }
    }
}
