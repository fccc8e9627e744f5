//! The program is killed between the two halves of a push, and started again.

use std::{fs, path::Path};

use gf_tests::{GfServer, Nix};

use super::{PLACES, archives_put, hash_of, http, main_cache, public_key, pull};

/// A push as Nix would do it, as files: a folder that is a binary cache.
fn push_to_folder(nix: &Nix<'_>, path: &str) -> std::path::PathBuf {
    let folder = nix.path("folder");
    nix.output("nix", &["copy", "--to", &format!("file://{}", folder.display()), path]).unwrap();
    nix.on_host("folder")
}

/// The path under which a folder has the archive of a narinfo.
fn url_of(narinfo: &str) -> &str {
    narinfo.lines().find_map(|line| line.strip_prefix("URL: ")).unwrap()
}

fn narinfo(folder: &Path, path: &str) -> String {
    fs::read_to_string(folder.join(format!("{}.narinfo", hash_of(path)))).unwrap()
}

#[test]
fn an_archive_survives_a_kill_before_its_narinfo_comes() {
    let data = tempfile::tempdir().unwrap();
    for (number, place) in PLACES.iter().enumerate() {
        let place = place();
        let builder = Nix::machine(&place, "builder").unwrap();
        let path = builder.build_closure(1, &number.to_string()).unwrap();
        let folder = push_to_folder(&builder, &path);
        let url = url_of(&narinfo(&folder, &path)).to_owned();
        let archive = fs::read(folder.join(&url)).unwrap();

        let server = GfServer::start(data.path()).unwrap();
        let put = http::put(server.address(), &format!("/nix/main/{url}"), &archive);
        assert_eq!(put.status / 100, 2, "{}", put.text());
        // Dropping it kills it.
        drop(server);

        let server = GfServer::start(data.path()).unwrap();
        let narinfo_url = format!("/nix/main/{}.narinfo", hash_of(&path));
        assert_eq!(http::get(server.address(), &narinfo_url, &[]).status, 404);
        builder.output("nix", &["copy", "--to", &main_cache(&server), &path]).unwrap();
        assert_eq!(archives_put(server.address()), 0.0, "the archive was sent again");

        let key = public_key(&server);
        drop(server);
        let server = GfServer::start(data.path()).unwrap();
        assert_eq!(public_key(&server), key);
        let user = Nix::machine(&place, "user").unwrap();
        pull(&user, &server, &key, &path).success().unwrap();
        assert!(server.stop().unwrap().success());
    }
}

#[test]
fn a_path_is_refused_while_what_it_refers_to_is_missing() {
    let data = tempfile::tempdir().unwrap();
    let server = GfServer::start(data.path()).unwrap();
    let place = PLACES[0]();
    let builder = Nix::machine(&place, "builder").unwrap();
    let path = builder.build_closure(2, "references").unwrap();
    let closure = builder.closure(&path).unwrap();
    let folder = push_to_folder(&builder, &path);
    let send = |path: &str| {
        let text = narinfo(&folder, path);
        let archive = fs::read(folder.join(url_of(&text))).unwrap();
        let put = http::put(server.address(), &format!("/nix/main/{}", url_of(&text)), &archive);
        assert_eq!(put.status / 100, 2, "{}", put.text());
        http::put(server.address(), &format!("/nix/main/{}.narinfo", hash_of(path)), text.as_bytes())
    };
    let refused = send(&path);
    assert_eq!(refused.status / 100, 4, "{}", refused.text());
    assert!(refused.text().contains(hash_of(&closure[0])), "it names what is missing: {}", refused.text());
    let narinfo_url = format!("/nix/main/{}.narinfo", hash_of(&path));
    assert_eq!(http::get(server.address(), &narinfo_url, &[]).status, 404);
    for path in &closure {
        assert_eq!(send(path).status / 100, 2);
    }
    assert_eq!(http::get(server.address(), &narinfo_url, &[]).status, 200);
    assert!(server.stop().unwrap().success());
}
