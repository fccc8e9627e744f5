//! Unmodified clients against the real `gf` binary.
//!
//! Bazel never fails because of its cache, so its tests assert on its execution log and on the server's own counters.
//! Each test has a server, a data folder and clients of its own; nextest runs them one at a time.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on ends here")]

mod bazel;
mod bazel4;
mod buildbox;
mod ccache;
mod eviction;
mod identities;
mod nix;
mod persistent;
mod readme;
mod remote_execution;
mod sccache;
mod secured;
mod store_paths;

use std::time::Duration;

use gf_tests::{Chroot, GfServer, Metrics, Place};
use tempfile::TempDir;

/// Enough for a cold Java machine on a busy computer; a client that needs more hangs.
const CLIENT_LIMIT: Duration = Duration::from_secs(600);

/// A server without configuration.
struct Fixture {
    server: GfServer,
    _data: TempDir,
}

impl Fixture {
    fn start() -> Self {
        Self::start_with(&[])
    }

    fn start_with(arguments: &[&str]) -> Self {
        let data = tempfile::tempdir().unwrap();
        let server =
            GfServer::start_with(&GfServer::binary().unwrap(), ([127, 0, 0, 1], 0).into(), data.path(), arguments);
        Self { server: server.unwrap(), _data: data }
    }

    fn metrics(&self) -> Metrics {
        Metrics::read(self.server.address()).unwrap()
    }

    /// How often a look-up of this kind was a hit: `ac` for the action cache over gRPC, `http` for plain HTTP.
    fn hits(&self, kind: &str) -> f64 {
        let kind = format!("kind=\"{kind}\"");
        self.metrics().sum("gf_cache_lookups_total", &[&kind, "result=\"hit\""])
    }

    /// Ends the test: a server that served its clients also stops well.
    fn stop(self) {
        assert!(self.server.stop().unwrap().success(), "the server did not stop well");
    }
}

/// A session in the chroot.
fn chroot() -> Place {
    Place::Chroot(Chroot::find().unwrap().enter().unwrap())
}
