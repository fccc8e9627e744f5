//! A server that asks for a token, which Nix sends as the password of its netrc.

use std::{fs, path::Path};

use gf_tests::{GfServer, Nix};

use super::{PLACES, main_cache};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

fn start(folder: &Path) -> GfServer {
    fs::write(folder.join("token"), TOKEN).unwrap();
    let configuration = folder.join("gf.toml");
    fs::write(&configuration, "[access]\ntoken_file = \"token\"\n").unwrap();
    let arguments = ["--config", configuration.to_str().unwrap()];
    let address = ([127, 0, 0, 1], 0).into();
    GfServer::start_with(&GfServer::binary().unwrap(), address, &folder.join("data"), &arguments).unwrap()
}

/// Writes a netrc, and gives its path.
fn netrc(nix: &Nix<'_>, name: &str, token: &str) -> String {
    fs::write(nix.on_host(name), format!("machine 127.0.0.1 login anybody password {token}\n")).unwrap();
    nix.path(name).display().to_string()
}

#[test]
fn the_token_comes_from_the_netrc() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(folder.path());
    let cache = main_cache(&server);
    for (number, place) in PLACES.iter().enumerate() {
        let place = place();
        let builder = Nix::machine(&place, "builder").unwrap();
        let path = builder.build_closure(2, &number.to_string()).unwrap();
        let (right, wrong) = (netrc(&builder, "right", TOKEN), netrc(&builder, "wrong", "not-the-token"));
        let push = |netrc: &[&str]| {
            let _fresh = fs::remove_dir_all(builder.on_host("home/.cache"));
            let arguments = [&["copy", "--to", &cache, &path], netrc].concat();
            builder.run("nix", &arguments).unwrap()
        };
        for (given, told) in [
            (
                &[][..],
                "nix:push needs a credential: send `Authorization: Bearer <token>`, or the token as the password",
            ),
            (&["--option", "netrc-file", &wrong], "the credential is not valid: it is not known here"),
        ] {
            let refused = push(given);
            assert!(!refused.status.success() && refused.stderr.contains(told), "{given:?}: {}", refused.tail());
        }
        push(&["--option", "netrc-file", &right]).success().unwrap();

        let user = Nix::machine(&place, "user").unwrap();
        let token = netrc(&user, "netrc", TOKEN);
        let copy = ["copy", "--no-check-sigs", "--from", &cache, &path, "--option", "netrc-file", &token];
        user.output("nix", &copy).unwrap();
        assert_eq!(user.archive(&path).unwrap(), builder.archive(&path).unwrap());
    }
    assert!(server.stop().unwrap().success());
}
