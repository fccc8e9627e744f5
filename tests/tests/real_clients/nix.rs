//! Nix, of Debian 12 (2.8) and of sid, which pushes closures to a server and pulls them on another machine.
//!
//! Nix goes on without a cache that fails, and builds by itself; here nothing may be built twice, so whatever a second
//! machine has it has from the server.

mod access;
mod command;
mod crash;
mod crash_loop;
mod http;
mod push_and_pull;
mod sharing;
mod upstreams;

use std::path::Path;

use gf_tests::{Finished, GfServer, Metrics, Nix, Place};

use crate::chroot;

/// The places with Nix: its version of Debian 12, and today's.
const PLACES: [fn() -> Place; 2] = [|| Place::host().unwrap(), chroot];

/// The cache of a server without configuration.
fn main_cache(server: &GfServer) -> String {
    format!("{}/nix/main", server.url())
}

/// The key that clients trust the cache `main` by.
fn public_key(server: &GfServer) -> String {
    let facts = http::get(server.address(), "/nix/main/attic-cache-info", &[]);
    let facts: serde_json::Value = serde_json::from_slice(&facts.body).unwrap();
    facts["public_key"].as_str().unwrap().to_owned()
}

/// A command of `gf nix` about the cache `main` of a server, on a machine.
fn gf_nix(nix: &Nix<'_>, server: &GfServer, arguments: &[&str]) -> Finished {
    let program = GfServer::binary().unwrap().display().to_string();
    let arguments = [&["nix"], arguments, &["--server", server.url()]].concat();
    nix.run(&program, &arguments).unwrap()
}

/// Has a machine fetch a path with everything that it refers to, trusting `key`.
fn pull(nix: &Nix<'_>, server: &GfServer, key: &str, path: &str) -> Finished {
    let cache = main_cache(server);
    let options = ["--realise", path, "--option", "substituters", &cache, "--option", "trusted-public-keys", key];
    nix.run("nix-store", &options).unwrap()
}

/// How many archives were put.
fn archives_put(address: &str) -> f64 {
    Metrics::read(address).unwrap().sum("gf_requests_total", &["method=\"NarPut\""])
}

/// The text before the first `-` of the base name.
fn hash_of(path: &str) -> &str {
    Path::new(path).file_name().and_then(|name| name.to_str()).and_then(|name| name.split('-').next()).unwrap()
}
