//! Who may do what, through [`Access`].

use super::*;
use crate::{
    ActionCacheRead, ActionCacheWrite, Administer, CasRead, CasWrite, CertificateName, Grant, JwtKey, NixCreateCache,
    NixPull, NixPush, Operate, Pattern, Token, Work,
};

fn access(token: Option<&str>, anonymous_read: bool) -> Access {
    let tenant = |name: &str, instances: &[&str]| TenantConfig {
        name: TenantName::new(name).unwrap(),
        instances: instances.iter().map(|name| InstanceName::new(name).unwrap()).collect(),
    };
    Access::new(AccessConfig {
        tenants: vec![tenant("default", &["", "default"]), tenant("org-acme", &["org-acme"])],
        token: token.map(|token| Secret::new(token.to_owned())),
        anonymous_read,
    })
    .unwrap()
}

fn instance(name: &str) -> InstanceName {
    InstanceName::new(name).unwrap()
}

#[test]
fn an_open_server_grants_everything_in_known_instances() {
    let access = access(None, false);
    let who = access.authenticate(None).unwrap();
    let granted = access.authorize::<ActionCacheWrite>(&who, &instance("org-acme")).unwrap();
    assert_eq!(granted.tenant().name().as_str(), "org-acme");
    assert_eq!(
        access.authorize::<CasRead>(&who, &instance("nope")).unwrap_err(),
        Denied::UnknownInstance(instance("nope"))
    );
}

#[test]
fn a_token_guards_writes_and_reads() {
    let closed = access(Some("s3cret"), false);
    let who = closed.authenticate(None).unwrap();
    assert!(matches!(closed.authorize::<CasRead>(&who, &instance("")), Err(Denied::Unauthenticated(_))));
    assert_eq!(closed.authenticate(Some("wrong")), Err(Denied::BadCredential));
    let holder = closed.authenticate(Some("s3cret")).unwrap();
    assert!(closed.authorize::<CasWrite>(&holder, &instance("")).is_ok());

    let public = access(Some("s3cret"), true);
    let who = public.authenticate(None).unwrap();
    assert!(public.authorize::<ActionCacheRead>(&who, &instance("")).is_ok());
    assert!(public.authorize::<ActionCacheWrite>(&who, &instance("")).is_err());
}

#[test]
fn one_tenant_is_public_and_the_others_are_not() {
    let closed = || access(Some("s3cret"), false);
    let public = closed().with_public_tenants([tenant_name("default")]);
    let [token, certificate] = holders(&["viewer@default"]);
    for who in [&Principal::Anonymous, &token, &certificate] {
        assert!(public.authorize::<CasRead>(who, &instance("default")).is_ok(), "{who}");
        assert!(public.authorize::<ActionCacheRead>(who, &instance("")).is_ok(), "{who}");
        // Another tenant's is as one that is not there, and writing is not reading.
        for name in ["org-acme", "nowhere"] {
            let refused = public.authorize::<CasRead>(who, &instance(name)).unwrap_err();
            assert_eq!(refused, Denied::UnknownInstance(instance(name)), "{who}");
            assert!(!public.explain(who, PermissionName::CasRead, &instance(name)).allowed, "{who}");
        }
        assert!(public.authorize::<CasWrite>(who, &instance("default")).is_err(), "{who}");
        assert!(public.authorize_everywhere::<CasRead>(who).is_err(), "{who}");
    }
    let nobody = closed().with_public_tenants([tenant_name("org-gone")]);
    assert!(matches!(nobody.check(Principal::Anonymous, PermissionName::CasRead), Err(Denied::Unauthenticated(_))));
    let all = closed().with_public_tenants(["default", "org-acme"].map(tenant_name));
    assert!(all.authorize_everywhere::<CasRead>(Principal::Anonymous).is_ok());
}

fn check_grants(access: &Access, principal: &Principal, expected: &str) {
    let granted = PermissionName::ALL.into_iter().filter(|permission| access.allows(principal, *permission));
    let granted: Vec<&str> = granted.map(PermissionName::as_str).collect();
    assert_eq!(granted.join(" "), expected, "{principal:?}");
}

const ALL_BUT_WORK: &str = "cas:read cas:write actioncache:read actioncache:write execute admin:operate admin:access \
                            nix:pull nix:push nix:delete nix:create nix:configure nix:retention nix:destroy";

#[test]
fn who_may_do_what() {
    let worker_token = [Secret::new("w0rker".to_owned())];
    let open = access(None, false);
    let with_workers = access(None, false).with_worker_tokens(&worker_token);
    let public = access(Some("s3cret"), true);
    let closed = access(Some("s3cret"), false).with_worker_tokens(&worker_token);
    check_grants(&open, &Principal::Anonymous, &ALL_BUT_WORK.replace("execute", "execute workers:attach"));
    check_grants(&with_workers, &Principal::Anonymous, ALL_BUT_WORK);
    check_grants(&public, &Principal::Anonymous, "cas:read actioncache:read");
    check_grants(&closed, &Principal::Anonymous, "");
    for access in [&open, &with_workers, &public, &closed] {
        let loan = access.lend(&execute(access, "org-acme")).unwrap();
        let worker = access.authenticate(Some(loan.credential().expose())).unwrap();
        check_grants(access, &worker, "cas:read cas:write");
        check_grants(access, &Principal::WorkerHost, "workers:attach");
        check_grants(access, &Principal::TokenHolder, ALL_BUT_WORK);
    }
    for access in [&with_workers, &closed] {
        assert_eq!(access.authenticate(Some("w0rker")), Ok(Principal::WorkerHost));
    }
    assert_eq!(public.authenticate(Some("w0rker")), Err(Denied::BadCredential));
    let anonymous = public.authorize::<Work>(Principal::Anonymous, &instance(""));
    assert!(matches!(anonymous, Err(Denied::Unauthenticated(_))), "{anonymous:?}");
    let holder = public.authorize::<Work>(Principal::TokenHolder, &instance(""));
    assert!(matches!(holder, Err(Denied::Forbidden(_))), "{holder:?}");
}

fn execute(access: &Access, name: &str) -> Authorized<Execute> {
    access.authorize(Principal::Server, &instance(name)).unwrap()
}

#[test]
fn what_is_lent_opens_one_instance_until_it_ends() {
    for access in [access(None, false), access(Some("s3cret"), true)] {
        let loan = access.lend(&execute(&access, "default")).unwrap();
        let other = access.lend(&execute(&access, "org-acme")).unwrap();
        let credential = loan.credential().expose().to_owned();
        let worker = access.authenticate(Some(&credential)).unwrap();
        assert_ne!(worker, access.authenticate(Some(other.credential().expose())).unwrap());

        for name in ["", "default", "org-acme", "nope"] {
            let read = access.authorize::<CasRead>(&worker, &instance(name)).map(drop);
            let write = access.authorize::<CasWrite>(&worker, &instance(name)).map(drop);
            let expected = if name == "default" { Ok(()) } else { Err(Denied::UnknownInstance(instance(name))) };
            assert_eq!((&read, &write), (&expected, &expected), "{name:?}");
            let result = access.authorize::<ActionCacheWrite>(&worker, &instance(name)).unwrap_err();
            assert_eq!(result, Denied::Forbidden(PermissionName::ActionCacheWrite), "{name:?}");
        }

        drop(loan);
        let late = access.authorize::<CasWrite>(&worker, &instance("default")).unwrap_err();
        assert_eq!(late, Denied::UnknownInstance(instance("default")));
        // On an open server too: what was lent once never counts as no credential.
        assert_eq!(access.authenticate(Some(&credential)), Err(Denied::BadCredential));
        assert!(access.authenticate(Some(other.credential().expose())).is_ok());
        drop(other);
        assert_eq!(access.loans.len(), 0);
    }
}

#[test]
fn the_right_to_attach_is_lent_too() {
    for access in [access(None, false), access(Some("s3cret"), false)] {
        let loan = access.lend_attachment().unwrap();
        let credential = loan.credential().expose().to_owned();
        assert_eq!(access.authenticate(Some(&credential)), Ok(Principal::WorkerHost));
        drop(loan);
        assert_eq!(access.authenticate(Some(&credential)), Err(Denied::BadCredential));
        assert_eq!(access.loans.len(), 0);
    }
}

#[test]
fn a_secret_is_not_printed() {
    let access = access(Some("s3cret"), false);
    let loan = access.lend(&execute(&access, "")).unwrap();
    let printed = format!("{access:?} {loan:?}");
    assert!(!printed.contains("s3cret") && !printed.contains(loan.credential().expose()), "{printed}");
}

/// An Attic token of `{"sub": "ci"}` and these caches, signed with a secret of 32 zeros.
fn attic_token(caches: &str) -> String {
    crate::attic::tests::signed(&format!(r#"{{"sub": "ci", "https://jwt.attic.rs/v1": {{"caches": {caches}}}}}"#))
}

fn with_attic(token: Option<&str>, anonymous_read: bool) -> Access {
    let key = JwtKey::hs256(crate::attic::tests::SECRET).unwrap();
    access(token, anonymous_read).with_attic_tokens(AtticConfig { key, issuer: None, audiences: Vec::new() })
}

fn tenant_name(name: &str) -> TenantName {
    TenantName::new(name).unwrap()
}

/// Every way in which the name of a cache can be: with whom it is, and whether everybody may read it.
fn scopes<'a>(name: &'a str, tenant: &'a TenantName) -> [NixScope<'a>; 3] {
    let existing = |visibility| NixScope::Existing { name, tenant, visibility };
    [existing(Visibility::Public), existing(Visibility::Private), NixScope::Absent { name }]
}

/// What pulling and pushing come to for a public cache, a private one, and one that is not there.
fn check_nix(access: &Access, credential: Option<&str>, pull: [&str; 3], push: [&str; 3]) {
    let tenant = tenant_name("org-acme");
    let told = |result: Result<(), Denied>| match result {
        Ok(()) => "yes",
        Err(Denied::Unauthenticated(_)) => "who?",
        Err(Denied::Forbidden(_)) => "no",
        Err(Denied::UnknownCache(_)) => "unknown",
        Err(_) => "bad",
    };
    let scopes = scopes("ci-main", &tenant);
    let pulled = scopes.map(|scope| told(access.admit_nix::<NixPull>(credential, scope).map(drop)));
    let pushed = scopes.map(|scope| told(access.admit_nix::<NixPush>(credential, scope).map(drop)));
    assert_eq!((pulled, pushed), (pull, push), "{credential:?} on {access:?}");
}

#[test]
fn who_may_do_what_with_nix_caches() {
    let all = ["yes", "yes", "unknown"];
    check_nix(&access(None, false), None, all, all);
    check_nix(&access(None, false), Some("ignored"), all, all);
    for closed in [with_attic(Some("s3cret"), false), with_attic(Some("s3cret"), true), with_attic(None, false)] {
        // What is not there looks like what is private.
        check_nix(&closed, None, ["yes", "who?", "who?"], ["who?"; 3]);
        check_nix(&closed, Some("wrong"), ["yes", "bad", "bad"], ["bad"; 3]);
        for none in ["{}", r#"{"other": {"r": 1, "w": 1}}"#, r#"{"ci-*": {}}"#, r#"{"ci-*": {"d": 1}}"#] {
            check_nix(&closed, Some(&attic_token(none)), ["yes", "no", "no"], ["no"; 3]);
        }
        let reads = attic_token(r#"{"ci-*": {"r": 1}}"#);
        check_nix(&closed, Some(&reads), all, ["no"; 3]);
        check_nix(&closed, Some(&attic_token(r#"{"*": {"r": 1, "w": 1}}"#)), all, all);
    }
    check_nix(&access(Some("s3cret"), false), Some("s3cret"), all, all);
}

#[test]
fn a_cache_is_made_by_whom_its_name_is_granted() {
    let access = with_attic(Some("s3cret"), false);
    let tenant = tenant_name("default");
    let new = |name| NixScope::New { name, tenant: &tenant };
    let token = attic_token(r#"{"ci-*": {"cc": 1}}"#);
    let granted = access.admit_nix::<NixCreateCache>(Some(&token), new("ci-7")).unwrap();
    assert_eq!((granted.cache(), granted.tenant().name()), ("ci-7", &tenant));
    assert_eq!(granted.principal().to_string(), "attic:ci");
    let denied = access.admit_nix::<NixCreateCache>(Some(&token), new("main")).unwrap_err();
    assert_eq!(denied, Denied::Forbidden(PermissionName::NixCreateCache));
}

#[test]
fn a_tenant_that_is_served_no_longer_has_no_caches() {
    let access = access(Some("s3cret"), false);
    let gone = tenant_name("org-gone");
    for scope in scopes("main", &gone) {
        let denied = access.admit_nix::<NixPull>(Some("s3cret"), scope).unwrap_err();
        assert_eq!(denied, Denied::UnknownCache("main".to_owned()));
    }
}

#[test]
fn an_attic_token_opens_no_instance() {
    let token = attic_token(r#"{"*": {"r": 1, "w": 1, "d": 1, "cc": 1, "cr": 1, "cq": 1, "cd": 1}}"#);
    let nix = "nix:pull nix:push nix:delete nix:create nix:configure nix:retention nix:destroy";
    let closed = with_attic(None, false);
    check_grants(&closed, &closed.authenticate(Some(&token)).unwrap(), nix);
    // What everybody may, a holder of a token may too.
    let public = with_attic(None, true);
    let who = public.authenticate(Some(&token)).unwrap();
    check_grants(&public, &who, &format!("cas:read actioncache:read {nix}"));
    assert!(public.authorize::<CasRead>(&who, &instance("")).is_ok());
}

/// Whoever holds these grants, by a token and by a certificate: no rule may tell the two apart.
fn holders(grants: &[&str]) -> [Principal; 2] {
    let grants: Vec<Grant> = grants.iter().map(|grant| grant.parse().unwrap()).collect();
    let pattern = CertificateName::CommonName(Pattern::new("ann"));
    let rule = CertificateRule { name: "ann".to_owned(), pattern, grants: grants.clone() };
    let names = CertificateNames { common_names: vec!["ann".to_owned()], ..CertificateNames::default() };
    [
        Principal::Token(Arc::new(Token::of("0123456789", grants))),
        Principal::Certificate(Arc::new(Certified::new(&[rule], &names, u64::MAX))),
    ]
}

#[test]
fn what_is_of_all_tenants_is_for_whoever_holds_it_in_all() {
    let (open, closed, public) = (access(None, false), access(Some("s3cret"), false), access(Some("s3cret"), true));
    let [default, acme] = ["default", "org-acme"].map(tenant_name);
    let check = |grants: &[&str], operates: bool, administers: [bool; 2]| {
        for who in holders(grants) {
            let denied = closed.authorize_everywhere::<Operate>(&who).map(drop);
            assert_eq!(denied.is_ok(), operates, "{who} {grants:?}: {denied:?}");
            let owns = [&default, &acme].map(|tenant| closed.administers(&who, tenant));
            assert_eq!(owns, administers, "{who} {grants:?}");
            assert!(open.authorize_everywhere::<Operate>(&who).is_ok() && open.administers(&who, &acme));
            assert!(public.authorize_everywhere::<ActionCacheRead>(&who).is_ok(), "what everybody may read");
        }
    };
    check(&["admin"], true, [true, true]);
    check(&["admin@org-acme"], false, [false, true]);
    check(&["admin:operate"], true, [false, false]);
    check(&["admin:operate@default", "admin:operate@org-acme"], false, [false, false]);
    check(&["admin:access@*/default", "admin:access@default/x"], false, [false, false]);
    check(&["viewer"], false, [false, false]);
    for who in [Principal::TokenHolder, Principal::Server] {
        assert!(closed.authorize_everywhere::<Operate>(&who).is_ok() && closed.administers(&who, &acme), "{who}");
    }
    assert!(closed.authorize_everywhere::<Operate>(Principal::Anonymous).is_err());
    let [token, _] = holders(&["admin@org-acme"]);
    let denied = closed.authorize_everywhere::<Administer>(&token).unwrap_err();
    assert_eq!(denied, Denied::NotEverywhere(PermissionName::Administer));
    let loan = open.lend(&execute(&open, "default")).unwrap();
    let borrower = open.authenticate(Some(loan.credential().expose())).unwrap();
    assert!(open.authorize_everywhere::<CasRead>(&borrower).is_err(), "it is lent one instance");
}
