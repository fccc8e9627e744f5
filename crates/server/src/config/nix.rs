//! `[nix]`: what is true for every Nix cache, whoever sets it up.

use gf_fetch::{Network, Networks};

use super::reader::Section;

/// The networks that upstreams may be in, if they are named.
pub(super) fn read(nix: &mut Section<'_, '_>) -> Option<Networks> {
    let network = |text: &str| text.parse::<Network>().map_err(|error| error.to_string());
    let named = nix.texts("upstream_networks", network)?;
    Some(Networks::with(named.value.into_iter().map(|network| network.value).collect()))
}

/// Where upstreams may be when nothing is said: on the Internet, and on this machine where whoever may set up a cache is on it
/// already, since nothing tells callers apart.
pub(super) fn default_networks(tells_apart: bool) -> Networks {
    if tells_apart { Networks::default() } else { Networks::with_this_machine() }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::path::Path;

    use super::super::{Config, Environment, Overrides};

    #[test]
    fn networks_of_upstreams() {
        let parse = |text: &str| {
            let environment = Environment { state_dir: Some("/state".into()), ..Environment::default() };
            Config::parse(Some(Path::new("gf.toml")), text, Overrides::default(), &environment)
        };
        let check = |text: &str, address: &str, expected: bool| {
            let address: IpAddr = address.parse().unwrap();
            assert_eq!(parse(text).unwrap().upstream_networks.admit(address), expected, "{text} {address}");
        };
        let closed = "[access]\nrequire_token = true\n";
        let named = "[nix]\nupstream_networks = [\"10.1.0.0/16\", \"::1\"]\n";
        check("", "127.0.0.1", true);
        check("", "10.1.2.3", false);
        check(closed, "127.0.0.1", false);
        check(closed, "1.1.1.1", true);
        for text in [named.to_owned(), format!("{closed}{named}")] {
            check(&text, "10.1.2.3", true);
            check(&text, "::1", true);
            check(&text, "127.0.0.1", false);
        }
        let wrong =
            parse("[nix]\nupstream_networks = [\"10.1.0.0/16\", \"here\", \"10.0.0.0/40\"]\n").unwrap_err().to_string();
        assert!(wrong.contains("`here` is no network") && wrong.contains("gf.toml:2"), "{wrong}");
    }
}
