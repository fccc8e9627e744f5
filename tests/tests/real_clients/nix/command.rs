//! `gf nix`, on machines with Nix.

use gf_tests::{Nix, Place};

use super::{archives_put, gf_nix, public_key, pull};
use crate::Fixture;

#[test]
fn a_closure_is_pushed_explained_and_carried_in_a_folder() {
    let (first, second) = (Fixture::start(), Fixture::start());
    let place = Place::host().unwrap();
    let builder = Nix::machine(&place, "builder").unwrap();
    let path = builder.build_closure(5, "gf").unwrap();

    let missing = gf_nix(&builder, &first.server, &["why", &path]);
    assert_eq!(missing.status.code(), Some(3), "{}", missing.stderr);
    assert!(missing.stdout.contains("nobody pushed it"), "{}", missing.stdout);
    let pushed = gf_nix(&builder, &first.server, &["push", "main", &path]).success().unwrap();
    assert!(pushed.stderr.contains("main: 5 paths pushed"), "{}", pushed.stderr);
    let again = gf_nix(&builder, &first.server, &["push", "main", &path]).success().unwrap();
    assert!(again.stderr.contains("main: 0 paths pushed") && again.stderr.contains("5 were there"), "{}", again.stderr);
    assert!(archives_put(first.server.address()).abs() < 0.5, "it has an interface of its own");
    let unasked = gf_nix(&builder, &first.server, &["why", &path]);
    assert_eq!(unasked.status.code(), Some(3));
    assert!(unasked.stdout.contains("does not ask"), "{}", unasked.stdout);

    let user = Nix::machine(&place, "user").unwrap();
    pull(&user, &first.server, &public_key(&first.server), &path).success().unwrap();
    assert_eq!(user.archive(&path).unwrap(), builder.archive(&path).unwrap());
    let conf = user.path("conf").display().to_string();
    gf_nix(&user, &first.server, &["cache", "use", "main", "--yes", "--conf-dir", &conf]).success().unwrap();
    let found = gf_nix(&user, &first.server, &["why", &path]).success().unwrap();
    assert!(found.stdout.contains("can be substituted from main"), "{}", found.stdout);

    gf_nix(&builder, &first.server, &["pin", "set", "main", "release", &path]).success().unwrap();
    let pins = gf_nix(&builder, &first.server, &["pin", "list", "main"]).success().unwrap();
    assert!(pins.stdout.contains("release"), "{}", pins.stdout);
    let shown = gf_nix(&builder, &first.server, &["cache", "show"]).success().unwrap();
    assert!(shown.stdout.contains("5 paths") && shown.stdout.contains("1 pins"), "{}", shown.stdout);
    let verified = gf_nix(&builder, &first.server, &["verify"]).success().unwrap();
    assert!(verified.stdout.contains("5 paths verified"), "{}", verified.stdout);

    let folder = builder.path("export").display().to_string();
    gf_nix(&builder, &first.server, &["export", "main", &folder, &path]).success().unwrap();
    let imported = gf_nix(&builder, &second.server, &["import", "main", &folder]).success().unwrap();
    assert!(imported.stderr.contains("5 paths imported"), "{}", imported.stderr);
    let other = Nix::machine(&place, "other").unwrap();
    pull(&other, &second.server, &public_key(&second.server), &path).success().unwrap();
    assert_eq!(other.closure(&path).unwrap(), builder.closure(&path).unwrap());
    first.stop();
    second.stop();
}
