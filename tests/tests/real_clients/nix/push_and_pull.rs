//! `nix copy --to`, and what other machines make of it.

use gf_tests::Nix;

use super::{PLACES, archives_put, hash_of, http, main_cache, public_key, pull};
use crate::Fixture;

const COMPRESSIONS: [&str; 3] = ["none", "xz", "zstd"];

#[test]
fn a_closure_travels_to_another_machine() {
    let fixture = Fixture::start();
    let key = public_key(&fixture.server);
    for (number, place) in PLACES.iter().enumerate() {
        let place = place();
        let builder = Nix::machine(&place, "builder").unwrap();
        for compression in COMPRESSIONS {
            let path = builder.build_closure(6, &format!("{compression}-{number}")).unwrap();
            let target = format!("{}?compression={compression}", main_cache(&fixture.server));
            builder.output("nix", &["copy", "--to", &target, &path]).unwrap();

            let user = Nix::machine(&place, &format!("user-{compression}")).unwrap();
            pull(&user, &fixture.server, &key, &path).success().unwrap();
            let closure = builder.closure(&path).unwrap();
            assert_eq!(closure.len(), 6);
            assert_eq!(user.closure(&path).unwrap(), closure, "{compression}");
            for path in &closure {
                assert_eq!(user.archive(path).unwrap(), builder.archive(path).unwrap(), "{compression}: {path}");
            }
            user.output("nix-store", &["--verify-path", &path]).unwrap();
        }
    }
    fixture.stop();
}

#[test]
fn what_one_version_pushes_the_other_pulls() {
    let fixture = Fixture::start();
    let key = public_key(&fixture.server);
    let [old, new] = PLACES.map(|place| place());
    for (from, to, salt) in [(&old, &new, "old"), (&new, &old, "new")] {
        let builder = Nix::machine(from, &format!("builder-{salt}")).unwrap();
        let path = builder.build_closure(3, salt).unwrap();
        builder.output("nix", &["copy", "--to", &main_cache(&fixture.server), &path]).unwrap();
        let user = Nix::machine(to, &format!("user-{salt}")).unwrap();
        pull(&user, &fixture.server, &key, &path).success().unwrap();
        assert_eq!(user.archive(&path).unwrap(), builder.archive(&path).unwrap());
    }
    fixture.stop();
}

#[test]
fn without_the_key_nothing_is_taken() {
    let fixture = Fixture::start();
    let other_key = "main:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    for (number, place) in PLACES.iter().enumerate() {
        let place = place();
        let builder = Nix::machine(&place, "builder").unwrap();
        let path = builder.build_closure(1, &number.to_string()).unwrap();
        builder.output("nix", &["copy", "--to", &main_cache(&fixture.server), &path]).unwrap();
        let user = Nix::machine(&place, "user").unwrap();
        let refused = pull(&user, &fixture.server, other_key, &path);
        assert!(!refused.status.success());
        assert!(refused.stderr.contains("not signed") || refused.stderr.contains("signature"), "{}", refused.stderr);
        assert!(!user.on_host(&path[1..]).exists());
        // `copy` too, which asks for signatures by itself.
        let arguments = ["copy", "--from", &main_cache(&fixture.server), &path];
        let refused = user.run("nix", &arguments).unwrap();
        assert!(!refused.status.success() && refused.stderr.contains("signature"), "{}", refused.stderr);
    }
    fixture.stop();
}

#[test]
fn a_second_push_sends_nothing() {
    let fixture = Fixture::start();
    for (number, place) in PLACES.iter().enumerate() {
        let place = place();
        let builder = Nix::machine(&place, "builder").unwrap();
        let path = builder.build_closure(4, &number.to_string()).unwrap();
        let target = format!("{}?compression=zstd", main_cache(&fixture.server));
        builder.output("nix", &["copy", "--to", &target, &path]).unwrap();
        let before = archives_put(fixture.server.address());
        assert_eq!(before, 4.0 * (number as f64 + 1.0));
        // Once with what the client remembers, once without.
        builder.output("nix", &["copy", "--to", &target, &path]).unwrap();
        std::fs::remove_dir_all(builder.on_host("home/.cache")).unwrap();
        builder.output("nix", &["copy", "--to", &target, &path]).unwrap();
        assert_eq!(archives_put(fixture.server.address()), before);
    }
    fixture.stop();
}

#[test]
fn files_and_logs_are_shown_without_being_fetched() {
    let fixture = Fixture::start();
    let cache = main_cache(&fixture.server);
    for (number, place) in PLACES.iter().enumerate() {
        let place = place();
        let builder = Nix::machine(&place, "builder").unwrap();
        let path = builder.build_closure(2, &number.to_string()).unwrap();
        builder.output("nix", &["copy", "--to", &format!("{cache}?compression=none"), &path]).unwrap();
        let derivation = builder.output("nix-store", &["--query", "--deriver", &path]).unwrap();
        builder.output("nix", &["store", "copy-log", "--to", &cache, &derivation]).unwrap();

        let user = Nix::machine(&place, "user").unwrap();
        let listed = user.output("nix", &["store", "ls", "--store", &cache, "--recursive", &path]).unwrap();
        assert!(listed.contains("./bin/run") && listed.contains("./own"), "{listed}");
        let own = user.output("nix", &["store", "cat", "--store", &cache, &format!("{path}/own")]).unwrap();
        assert_eq!(own, format!("{number} 1"));
        let log = user.output("nix", &["log", "--store", &cache, &path]).unwrap();
        assert_eq!(log, "building part 1");
    }
    fixture.stop();
}

/// Some clients put listings, and compress what they put; the server gives them what it makes itself.
#[test]
fn listings_and_compressed_documents_are_taken() {
    let fixture = Fixture::start();
    let place = PLACES[1]();
    let builder = Nix::machine(&place, "builder").unwrap();
    let path = builder.build_closure(2, "documents").unwrap();
    let documents = "write-nar-listing=true&narinfo-compression=br&ls-compression=gzip&log-compression=zstd";
    let target = format!("{}?compression=zstd&{documents}", main_cache(&fixture.server));
    builder.output("nix", &["copy", "--to", &target, &path]).unwrap();
    let derivation = builder.output("nix-store", &["--query", "--deriver", &path]).unwrap();
    builder.output("nix", &["store", "copy-log", "--to", &target, &derivation]).unwrap();

    let listing = http::get(fixture.server.address(), &format!("/nix/main/{}.ls", hash_of(&path)), &[]);
    assert!(listing.text().contains(r#""narOffset""#), "{}", listing.text());
    for place in PLACES.map(|place| place()) {
        let user = Nix::machine(&place, "user").unwrap();
        pull(&user, &fixture.server, &public_key(&fixture.server), &path).success().unwrap();
        let log = user.output("nix", &["log", "--store", &main_cache(&fixture.server), &path]).unwrap();
        assert_eq!(log, "building part 1");
    }
    fixture.stop();
}

/// Whoever pushed remembers for a month under which name and how compressed it sent an archive.
#[test]
fn who_pushed_can_pull_by_what_it_remembers() {
    let fixture = Fixture::start();
    for (number, place) in PLACES.iter().enumerate() {
        let place = place();
        for compression in COMPRESSIONS {
            let builder = Nix::machine(&place, &format!("builder-{compression}")).unwrap();
            let path = builder.build_closure(1, &format!("{number}-{compression}")).unwrap();
            let before = builder.archive(&path).unwrap();
            let cache = main_cache(&fixture.server);
            builder.output("nix", &["copy", "--to", &format!("{cache}?compression={compression}"), &path]).unwrap();
            builder.output("nix-store", &["--delete", &path]).unwrap();
            // The narinfo that it remembers is its own, which nobody signed.
            let options = ["--option", "substituters", &cache, "--option", "require-sigs", "false"];
            builder.output("nix-store", &[&["--realise", path.as_str()], &options[..]].concat()).unwrap();
            assert_eq!(builder.archive(&path).unwrap(), before, "{compression}");
        }
    }
    fixture.stop();
}
