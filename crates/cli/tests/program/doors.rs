//! Every door of a real server, and who gets through: for each route and each method, nobody, a token that ended, one
//! that may only read, and one of another tenant.
//!
//! What always holds: the routes are read from the sources that mount them, and the methods from the table that serves
//! them, so that one without a case here fails.

mod grpc;
mod http;
mod sources;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::running::{DEADLINE, Server, gf, text};

/// The static token: whatever it is refused is refused to everybody.
const STATIC: &str = "opensesame";

/// Who stands in front of a door.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Caller {
    /// Without a credential.
    Nobody,
    /// With a token that ended.
    Late,
    /// May read all that `default` has.
    Reader,
    /// Administers `org-acme`, and nothing of `default`.
    Foreigner,
    /// Holds the static token.
    Operator,
}

const CALLERS: [Caller; 5] = [Caller::Nobody, Caller::Late, Caller::Reader, Caller::Foreigner, Caller::Operator];

/// A server of two tenants, and everybody's tokens.
struct Setting {
    server: Server,
    late: String,
    reader: String,
    foreigner: String,
    home: tempfile::TempDir,
}

impl Setting {
    fn start() -> Self {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("gf.toml");
        let config = "[access]\ntoken_file = \"token\"\n[workers]\ntoken_file = \"workers\"\n[worker]\nenabled = false\n\
                      [[tenant]]\nname = \"default\"\ninstances = [\"\", \"default\"]\n\
                      [[tenant]]\nname = \"org-acme\"\ninstances = [\"acme\"]\n";
        fs::write(&file, config).unwrap();
        fs::write(home.path().join("token"), STATIC).unwrap();
        fs::write(home.path().join("workers"), "of-workers").unwrap();
        let server = Server::start(home.path(), &["--config", file.to_str().unwrap()]);
        let issue = |grant: &str, lifetime: &str| {
            let mut command = gf(home.path());
            command.args(["token", "issue", "a test", "--json", "--grant", grant, "--lifetime", lifetime]);
            let issued = command.args(["--server", &server.url]).env("GF_TOKEN", STATIC).output().unwrap();
            assert_eq!(issued.status.code(), Some(0), "{}", text(&issued.stderr));
            let issued: Value = serde_json::from_slice(&issued.stdout).unwrap();
            issued["token"].as_str().unwrap().to_owned()
        };
        let (late, reader) = (issue("admin", "1s"), issue("viewer@default", "1h"));
        let foreigner = issue("admin@org-acme", "1h");
        let setting = Self { server, late, reader, foreigner, home };
        setting.wait_until_it_ended();
        setting
    }

    fn wait_until_it_ended(&self) {
        let until = Instant::now() + DEADLINE;
        while http::call(self, Caller::Late, "GET", "/api/v1/access/whoami", "").status != 401 {
            assert!(Instant::now() < until, "a token of a second does not end");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn home(&self) -> &Path {
        self.home.path()
    }

    fn token(&self, caller: Caller) -> Option<&str> {
        match caller {
            Caller::Nobody => None,
            Caller::Late => Some(&self.late),
            Caller::Reader => Some(&self.reader),
            Caller::Foreigner => Some(&self.foreigner),
            Caller::Operator => Some(STATIC),
        }
    }
}
