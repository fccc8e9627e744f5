//! Tokens from their making to their end, on SQLite and on PostgreSQL.

use std::time::Instant;

use gf_digest::InstanceName;

use super::*;
use crate::testing::Place;
use crate::{
    Access, AccessConfig, CasRead, CasWrite, CertificateName, CertificateNames, CertificateRule, Pattern, TenantConfig,
    TenantName,
};

const HOUR: Duration = Duration::from_secs(3600);

async fn open(place: &Place) -> Arc<Tokens> {
    Arc::new(Tokens::open(place.open().await).await.unwrap())
}

fn instance(name: &str) -> InstanceName {
    InstanceName::new(name).unwrap()
}

/// Two tenants, and no other credential than tokens.
fn access(tokens: &Arc<Tokens>) -> Access {
    let tenant = |name: &str| TenantConfig { name: TenantName::new(name).unwrap(), instances: vec![instance(name)] };
    let tenants = vec![tenant("default"), tenant("org-acme")];
    let config = AccessConfig { tenants, token: None, anonymous_read: false };
    Access::new(config).unwrap().closed().with_tokens(Arc::clone(tokens))
}

fn admin(access: &Access) -> Authorized<Administer> {
    access.authorize(Principal::Server, &instance("default")).unwrap()
}

fn new(grants: &[&str]) -> NewToken {
    let grants = grants.iter().map(|grant| grant.parse().unwrap()).collect();
    NewToken { name: "a test".to_owned(), grants, lifetime: HOUR }
}

async fn issue(tokens: &Tokens, admin: &Authorized<Administer>, grants: &[&str]) -> IssuedToken {
    tokens.issue(admin, new(grants), &Origin::default()).await.unwrap()
}

#[tokio::test]
async fn a_token_is_good_until_it_is_revoked() {
    for place in [Place::sqlite(), Place::postgres()] {
        let tokens = open(&place).await;
        let access = access(&tokens);
        let admin = admin(&access);
        let issued = issue(&tokens, &admin, &["operator@org-acme"]).await;
        let text = issued.secret.expose();
        assert!(text.starts_with("gf-token-") && !format!("{issued:?} {tokens:?}").contains(text));
        let who = access.authenticate(Some(text)).unwrap();
        assert_eq!(who.to_string(), format!("token:{}", issued.report.token.id()));
        assert!(access.authorize::<CasWrite>(&who, &instance("org-acme")).is_ok());
        let elsewhere = access.authorize::<CasWrite>(&who, &instance("default")).unwrap_err();
        assert_eq!(elsewhere, Denied::UnknownInstance(instance("default")));
        assert!(matches!(access.authorize::<Administer>(&who, &instance("org-acme")), Err(Denied::Forbidden(_))));
        assert!(matches!(access.check(Principal::Anonymous, PermissionName::CasRead), Err(Denied::Unauthenticated(_))));

        // Another process, and this one after it began anew.
        let other = open(&place).await;
        assert!(other.find(issued.secret.fingerprint(), now_s()).is_ok());
        tokens.revoke(&admin, issued.report.token.id(), &Origin::default()).await.unwrap();
        assert_eq!(access.authenticate(Some(text)), Err(Denied::BadCredential));
        tokens.reload().await.unwrap();
        assert_eq!(access.authenticate(Some(text)), Err(Denied::BadCredential));
        other.reload().await.unwrap();
        assert_eq!(other.find(issued.secret.fingerprint(), now_s()), Err(Denied::BadCredential));
        let again = tokens.revoke(&admin, issued.report.token.id(), &Origin::default()).await.unwrap_err();
        assert!(matches!(again, TokenError::Unknown(_)), "{again:?}");
        let listed = tokens.list(&admin, Which::All, None, 10).await.unwrap();
        assert_eq!(listed.len(), 1);
        assert!(listed[0].revoked_s.is_some() && listed[0].token == issued.report.token);

        let log = AuditLog::new(tokens.database.clone());
        let records = log.search(&audit::Search::default()).await.unwrap();
        let records: Vec<_> = records.iter().map(|record| &record.event).collect();
        let id = issued.report.token.id().to_string();
        assert!(records.iter().all(|event| event.who == "server" && event.subject == id), "{records:?}");
        let actions: Vec<&str> = records.iter().map(|event| event.action.as_str()).collect();
        assert_eq!(actions, ["token.revoke", "token.revoke", "token.issue"], "a second time it is refused");
        assert_eq!([records[0].outcome, records[1].outcome], [Outcome::Denied, Outcome::Done]);
        assert_eq!(records[2].detail, "a test: operator@org-acme");
    }
}

#[tokio::test]
async fn what_others_issue_is_known_after_reading_anew() {
    let place = Place::sqlite();
    let (ours, theirs) = (open(&place).await, open(&place).await);
    let issued = issue(&theirs, &admin(&access(&theirs)), &["viewer"]).await;
    let fingerprint = issued.secret.fingerprint();
    assert!(ours.find(fingerprint, now_s()).is_err());
    ours.reload().await.unwrap();
    assert_eq!(ours.find(fingerprint, now_s()).unwrap(), issued.report.token);
}

#[tokio::test]
async fn a_token_ends_by_itself() {
    let place = Place::sqlite();
    let tokens = open(&place).await;
    let issued = issue(&tokens, &admin(&access(&tokens)), &["viewer"]).await;
    let at = |time_s| tokens.find(issued.secret.fingerprint(), time_s).map(drop);
    assert_eq!(issued.report.expires_s, issued.report.issued_s + 3600);
    assert_eq!(at(issued.report.expires_s - 1), Ok(()));
    assert_eq!(at(issued.report.expires_s), Err(Denied::Expired));
}

#[tokio::test]
async fn the_last_use_is_shown_and_kept() {
    let place = Place::sqlite();
    let tokens = open(&place).await;
    let access = access(&tokens);
    let admin = admin(&access);
    let issued = issue(&tokens, &admin, &["viewer"]).await;
    let used = async |tokens: &Tokens| tokens.list(&admin, Which::All, None, 10).await.unwrap()[0].used_s;
    assert_eq!(used(&tokens).await, None);
    let time_s = issued.report.issued_s + 7;
    tokens.find(issued.secret.fingerprint(), time_s).unwrap();
    assert_eq!(used(&tokens).await, Some(time_s));
    tokens.reload().await.unwrap();
    assert_eq!(used(&tokens).await, Some(time_s), "reading anew forgets no use");
    assert_eq!(used(&*open(&place).await).await, None);
    tokens.save_uses().await.unwrap();
    assert_eq!(used(&*open(&place).await).await, Some(time_s));
    assert!(tokens.read().good.all().all(|entry| !entry.is_unsaved()));
}

#[tokio::test]
async fn nobody_hands_out_or_revokes_more_than_what_they_hold() {
    let place = Place::sqlite();
    let tokens = open(&place).await;
    let access = access(&tokens);
    let root = admin(&access);
    let everything = issue(&tokens, &root, &["admin"]).await;
    let acme = issue(&tokens, &root, &["admin@org-acme", "cas:read@default"]).await;
    let who = access.authenticate(Some(acme.secret.expose())).unwrap();
    let of_acme = access.authorize::<Administer>(&who, &instance("org-acme")).unwrap();
    assert!(access.authorize::<Administer>(&who, &instance("default")).is_err());

    let own = issue(&tokens, &of_acme, &["operator@org-acme", "nix:push@org-acme/ci-*"]).await;
    assert_eq!(own.report.issued_by, who.to_string());
    // What is held without the right to administer it is not handed on.
    for more in ["admin", "viewer@*", "operator@default", "cas:read@default", "workers:attach@org-acme"] {
        let error = tokens.issue(&of_acme, new(&[more]), &Origin::default()).await.unwrap_err();
        assert!(matches!(error, TokenError::Exceeds(_)), "{more}: {error:?}");
    }
    let denied = audit::Search { outcome: Some(Outcome::Denied), ..audit::Search::default() };
    let denied = AuditLog::new(tokens.database.clone()).search(&denied).await.unwrap();
    assert_eq!(denied.len(), 5);
    assert!(denied.iter().all(|record| record.event.who == who.to_string()), "{denied:?}");
    let error = tokens.revoke(&of_acme, everything.report.token.id(), &Origin::default()).await.unwrap_err();
    assert!(matches!(error, TokenError::Unknown(_)), "{error:?}");
    let denied = audit::Search { action: Some("token.revoke".to_owned()), ..audit::Search::default() };
    let denied = AuditLog::new(tokens.database.clone()).search(&denied).await.unwrap();
    assert_eq!(denied.iter().map(|record| record.event.outcome).collect::<Vec<_>>(), [Outcome::Denied]);
    let mut seen: Vec<String> = tokens
        .list(&of_acme, Which::All, None, 10)
        .await
        .unwrap()
        .iter()
        .map(|report| report.token.id().to_string())
        .collect();
    seen.sort();
    let mut expected = [acme.report.token.id().to_string(), own.report.token.id().to_string()];
    expected.sort();
    assert_eq!(seen, expected);
    tokens.revoke(&of_acme, own.report.token.id(), &Origin::default()).await.unwrap();
    tokens.revoke(&root, everything.report.token.id(), &Origin::default()).await.unwrap();
}

#[tokio::test]
async fn a_grant_of_a_newer_program_shuts_nobody_else_out() {
    let place = Place::sqlite();
    let tokens = open(&place).await;
    let admin = admin(&access(&tokens));
    let (newer, ours) = (issue(&tokens, &admin, &["viewer"]).await, issue(&tokens, &admin, &["viewer"]).await);
    let change = sql("UPDATE tenancy_token SET grants = 'runners:pause' WHERE id = $1");
    let change = change.bind(newer.report.token.id().to_string());
    assert_eq!(tokens.database.execute(change).await.unwrap(), 1);
    let after = open(&place).await;
    let access = access(&after);
    let who = access.authenticate(Some(newer.secret.expose())).unwrap();
    assert!(PermissionName::ALL.into_iter().all(|permission| !access.allows(&who, permission)));
    assert!(after.find(ours.secret.fingerprint(), now_s()).is_ok());
    // It is listed with what it says, and can be revoked by whoever holds everything.
    let root = crate::tokens::tests::admin(&access);
    let listed = after.list(&root, Which::Good, None, 10).await.unwrap();
    let shown = listed.iter().find(|report| report.token.id() == newer.report.token.id()).unwrap();
    assert_eq!(shown.token.unknown_grants(), ["runners:pause"]);
    let lesser = issue(&after, &root, &["admin@default"]).await;
    let lesser = access.authenticate(Some(lesser.secret.expose())).unwrap();
    let lesser = access.authorize::<Administer>(&lesser, &instance("default")).unwrap();
    let hidden = after.revoke(&lesser, newer.report.token.id(), &Origin::default()).await.unwrap_err();
    assert!(matches!(hidden, TokenError::Unknown(_)), "{hidden:?}");
    after.revoke(&root, newer.report.token.id(), &Origin::default()).await.unwrap();
    assert_eq!(access.authenticate(Some(newer.secret.expose())), Err(Denied::BadCredential));
}

#[tokio::test]
async fn what_another_process_issued_can_be_revoked_at_once() {
    for place in [Place::sqlite(), Place::postgres()] {
        let (ours, theirs) = (open(&place).await, open(&place).await);
        let issued = issue(&theirs, &admin(&access(&theirs)), &["viewer"]).await;
        let access = access(&ours);
        ours.revoke(&admin(&access), issued.report.token.id(), &Origin::default()).await.unwrap();
        ours.reload().await.unwrap();
        assert_eq!(access.authenticate(Some(issued.secret.expose())), Err(Denied::BadCredential));
        theirs.follow().await.unwrap();
        assert_eq!(theirs.find(issued.secret.fingerprint(), now_s()), Err(Denied::BadCredential));
        for none in ["0123456789", "0123\0", "' OR 1", ""] {
            let unknown = ours.revoke(&admin(&access), &TokenId::new(none), &Origin::default()).await.unwrap_err();
            assert!(matches!(unknown, TokenError::Unknown(_)), "{unknown:?}");
        }
    }
}

#[tokio::test]
async fn following_reads_only_what_changed() {
    for place in [Place::sqlite(), Place::postgres()] {
        let (ours, theirs) = (open(&place).await, open(&place).await);
        ours.follow().await.unwrap();
        let reads = || ours.changes.load(Ordering::Relaxed);
        let before = reads();
        let log = AuditLog::new(ours.database.clone());
        log.append(&[Event::new(&Principal::Server, "cache.create", "ci", Outcome::Done)]).await.unwrap();
        ours.follow().await.unwrap();
        assert_eq!(reads(), before, "another record is no reason to read all tokens");
        let issued = issue(&theirs, &admin(&access(&theirs)), &["viewer"]).await;
        // One that nobody says anything of is found by reading all: the sign that only the new one was read.
        let unsaid = issue(&theirs, &admin(&access(&theirs)), &["viewer"]).await;
        let forget = sql("UPDATE tenancy_audit SET subject = 'x' WHERE subject = $1");
        ours.database.execute(forget.bind(unsaid.report.token.id().as_str())).await.unwrap();
        ours.follow().await.unwrap();
        let is_known = |issued: &IssuedToken| ours.find(issued.secret.fingerprint(), now_s()).is_ok();
        assert!(is_known(&issued) && !is_known(&unsaid));
        theirs.revoke(&admin(&access(&theirs)), issued.report.token.id(), &Origin::default()).await.unwrap();
        ours.follow().await.unwrap();
        assert!(!is_known(&issued) && is_known(&unsaid), "a revocation has all read again");
        let after = reads();
        ours.follow().await.unwrap();
        assert_eq!(reads(), after);
    }
}

#[tokio::test]
async fn one_tenant_leaves_room_for_others_and_all_for_the_operator() {
    let place = Place::sqlite();
    let tokens = open(&place).await;
    let access = access(&tokens);
    let root = admin(&access);
    let of = async |grant: &str, name: &str| {
        let made = issue(&tokens, &root, &[grant]).await;
        let who = access.authenticate(Some(made.secret.expose())).unwrap();
        (access.authorize::<Administer>(&who, &instance(name)).unwrap(), made.report)
    };
    let (acme, report) = of("admin@org-acme", "org-acme").await;
    let (default, _) = of("admin@default", "default").await;
    let fill = |number: usize| {
        let mut table = tokens.write();
        while table.good.len() < number {
            let fingerprint = Fingerprint::of(&table.good.len().to_string());
            table.keep(fingerprint, Entry::of(&report, 0));
        }
    };
    let refused = async |admin: &Authorized<Administer>, grant: &str| {
        let made = tokens.issue(admin, new(&[grant]), &Origin::default()).await;
        matches!(made, Err(TokenError::TooMany(_)))
    };
    fill(room::MAX_WITHIN_REACH + 1);
    assert!(refused(&acme, "viewer@org-acme").await && !refused(&default, "viewer@default").await);
    fill(MAX_TOKENS - room::RESERVED);
    assert!(refused(&default, "viewer@default").await && !refused(&root, "viewer").await);
    fill(MAX_TOKENS);
    assert!(refused(&root, "viewer").await);
}

#[tokio::test]
async fn what_ended_takes_no_place() {
    for place in [Place::sqlite(), Place::postgres()] {
        let tokens = open(&place).await;
        let admin = admin(&access(&tokens));
        let kept = issue(&tokens, &admin, &["viewer"]).await;
        let week_s = KEPT_AFTER_END.as_secs();
        for (number, expires_s) in [(0_u64, now_s() - 1), (1, now_s() - week_s - 60), (2, now_s() - week_s - 60)] {
            let entry = Entry::of(&TokenReport { expires_s, ..kept.report.clone() }, number);
            tokens.write().keep(Fingerprint::of(&number.to_string()), entry);
            let change = sql("UPDATE tenancy_token SET expires_s = $1 WHERE id = $2").bind(stored(expires_s));
            let ended = issue(&tokens, &admin, &["viewer"]).await;
            tokens.database.execute(change.bind(ended.report.token.id().as_str())).await.unwrap();
        }
        tokens.reload().await.unwrap();
        tokens.sweep().await.unwrap();
        assert_eq!(tokens.read().len(), 1, "only the good one is in memory");
        assert!(tokens.find(kept.secret.fingerprint(), now_s()).is_ok());
        let count = async |which| tokens.list(&admin, which, None, 10).await.unwrap().len();
        assert_eq!((count(Which::Good).await, count(Which::All).await), (1, 2), "what just ended is still shown");
        // A revoked one is kept out until it would have ended.
        tokens.revoke(&admin, kept.report.token.id(), &Origin::default()).await.unwrap();
        assert_eq!(tokens.read().len(), 1);
        tokens.write().sweep(kept.report.expires_s);
        assert_eq!(tokens.read().len(), 0);
    }
}

#[tokio::test]
async fn pages_follow_one_another() {
    for place in [Place::sqlite(), Place::postgres()] {
        let tokens = open(&place).await;
        let access = access(&tokens);
        let admin = admin(&access);
        for _ in 0..5 {
            issue(&tokens, &admin, &["viewer"]).await;
            issue(&tokens, &admin, &["viewer@org-acme"]).await;
        }
        let acme = issue(&tokens, &admin, &["admin@org-acme"]).await;
        let who = access.authenticate(Some(acme.secret.expose())).unwrap();
        let of_acme = access.authorize::<Administer>(&who, &instance("org-acme")).unwrap();
        for (caller, all) in [(&admin, 11), (&of_acme, 6)] {
            let mut seen = Vec::new();
            loop {
                let page = tokens.list(caller, Which::Good, seen.last(), 2).await.unwrap();
                if page.is_empty() {
                    break;
                }
                seen.extend(page.iter().map(|report| report.token.id().clone()));
            }
            let count = seen.len();
            seen.sort();
            seen.dedup();
            assert_eq!((count, seen.len()), (all, all));
        }
        let others = tokens.list(&admin, Which::Good, None, 20).await.unwrap();
        let other = others.iter().find(|report| report.token.grants()[0].to_string() == "viewer").unwrap();
        let hidden = tokens.list(&of_acme, Which::Good, Some(other.token.id()), 2).await.unwrap_err();
        assert!(matches!(hidden, TokenError::Unknown(_)), "{hidden:?}");
    }
}

#[tokio::test]
async fn attaching_workers_is_not_handed_on() {
    let place = Place::sqlite();
    let tokens = open(&place).await;
    let tenants =
        vec![TenantConfig { name: TenantName::new("default").unwrap(), instances: vec![instance("default")] }];
    let with = |token: Option<&str>| {
        let token = token.map(|token| Secret::new(token.to_owned()));
        let config = AccessConfig { tenants: tenants.clone(), token, anonymous_read: false };
        Access::new(config).unwrap().with_tokens(Arc::clone(&tokens))
    };
    let (open, closed) = (with(None), with(Some("s3cret")));
    let holder = closed.authenticate(Some("s3cret")).unwrap();
    let admin = closed.authorize::<Administer>(&holder, &instance("default")).unwrap();
    let refused = tokens.issue(&admin, new(&["workers:attach"]), &Origin::default()).await.unwrap_err();
    assert!(matches!(refused, TokenError::Exceeds(_)), "{refused:?}");
    issue(&tokens, &admin, &["admin"]).await;
    // What anybody made while the server was open would open it again when it is not.
    let nobody = open.authorize::<Administer>(Principal::Anonymous, &instance("default")).unwrap();
    for grant in ["workers:attach", "admin", "viewer@default"] {
        let refused = tokens.issue(&nobody, new(&[grant]), &Origin::default()).await.unwrap_err();
        assert!(matches!(refused, TokenError::OpenServer), "{grant}: {refused:?}");
    }
    assert_eq!(tokens.list(&admin, Which::All, None, 10).await.unwrap().len(), 1);
    // Only the server itself begins such a line, and who holds both may go on with it.
    let server = closed.authorize::<Administer>(Principal::Server, &instance("default")).unwrap();
    let both = issue(&tokens, &server, &["admin@default", "workers:attach@default"]).await;
    let both = closed.authenticate(Some(both.secret.expose())).unwrap();
    let both = closed.authorize::<Administer>(&both, &instance("default")).unwrap();
    issue(&tokens, &both, &["workers:attach@default"]).await;
    let wider = tokens.issue(&both, new(&["workers:attach"]), &Origin::default()).await.unwrap_err();
    assert!(matches!(wider, TokenError::Exceeds(_)), "{wider:?}");
}

#[tokio::test]
async fn what_is_no_token() {
    let place = Place::sqlite();
    let tokens = open(&place).await;
    let access = access(&tokens);
    let admin = admin(&access);
    let check = async |new: NewToken, expected: &str| {
        let error = tokens.issue(&admin, new, &Origin::default()).await.unwrap_err();
        assert!(format!("{error:?}").starts_with(expected), "{error:?}");
    };
    for name in ["", "a\nb", &"x".repeat(MAX_NAME + 1)] {
        check(NewToken { name: name.to_owned(), ..new(&["viewer"]) }, "Name").await;
    }
    check(new(&[]), "Grants").await;
    check(new(&["viewer"; MAX_GRANTS + 1]), "Grants").await;
    for lifetime in [Duration::ZERO, MAX_LIFETIME + Duration::from_secs(1)] {
        check(NewToken { lifetime, ..new(&["viewer"]) }, "Lifetime").await;
    }
    for text in ["gf-token-", "gf-token-0123456789-00", "gf-tokenx"] {
        assert_eq!(access.authenticate(Some(text)), Err(Denied::BadCredential), "{text}");
    }
}

#[tokio::test]
async fn a_token_can_be_revoked_by_its_text_which_is_nowhere_then() {
    for place in [Place::sqlite(), Place::postgres()] {
        let tokens = open(&place).await;
        let access = access(&tokens);
        let admin = admin(&access);
        let issued = issue(&tokens, &admin, &["viewer"]).await;
        let text = issued.secret.expose();
        tokens.revoke(&admin, &TokenId::new(text), &Origin::default()).await.unwrap();
        assert_eq!(access.authenticate(Some(text)), Err(Denied::BadCredential));
        let secret = text.rsplit('-').next().unwrap();
        for pasted in [text, secret, &text[2..]] {
            let refused = tokens.revoke(&admin, &TokenId::new(pasted), &Origin::default()).await.unwrap_err();
            assert!(!refused.to_string().contains(secret), "{refused}");
        }
        let log = AuditLog::new(tokens.database.clone());
        for record in log.search(&audit::Search::default()).await.unwrap() {
            assert!(!format!("{record:?}").contains(secret), "{record:?}");
        }
    }
}

#[tokio::test]
async fn an_open_server_knows_its_tokens_and_passes_over_others() {
    let place = Place::sqlite();
    let tokens = open(&place).await;
    let config = AccessConfig {
        tenants: vec![TenantConfig { name: TenantName::new("default").unwrap(), instances: vec![instance("")] }],
        token: None,
        anonymous_read: false,
    };
    let open = Access::new(config).unwrap().with_tokens(Arc::clone(&tokens));
    let admin = open.authorize(Principal::Server, &instance("")).unwrap();
    let issued = issue(&tokens, &admin, &["viewer"]).await;
    let who = open.authenticate(Some(issued.secret.expose())).unwrap();
    assert!(matches!(who, Principal::Token(_)));
    assert!(open.authorize::<CasWrite>(&who, &instance("")).is_ok());
    assert_eq!(open.authenticate(Some("gf-token-of-another-server")), Ok(Principal::Anonymous));
}

/// Time per request of finding out who asks, in nanoseconds: the best of many short rounds, since others compute too.
fn measure(access: &Access, text: &str) -> u128 {
    const REQUESTS: u32 = 50;
    let round = || {
        let begin = Instant::now();
        for _ in 0..REQUESTS {
            let who = access.authenticate(Some(text)).unwrap();
            assert!(access.authorize::<CasRead>(&who, &instance("default")).is_ok());
        }
        begin.elapsed().as_nanos() / u128::from(REQUESTS)
    };
    (0..200).map(|_| round()).min().unwrap_or_default()
}

#[tokio::test]
async fn finding_a_token_takes_no_longer_among_many() {
    let place = Place::sqlite();
    let tokens = open(&place).await;
    let access = access(&tokens);
    let issued = issue(&tokens, &admin(&access), &["viewer"]).await;
    let alone = measure(&access, issued.secret.expose());
    for number in 0..10_000_u64 {
        let entry = Entry::of(&issued.report, number);
        tokens.write().keep(Fingerprint::of(&number.to_string()), entry);
    }
    let among_many = measure(&access, issued.secret.expose());
    assert!(among_many < 4 * alone + 5000, "{alone} ns alone, {among_many} ns among 10,000");
}

#[tokio::test]
async fn what_a_token_made_does_not_outlive_it() {
    for place in [Place::sqlite(), Place::postgres()] {
        let (tokens, others) = (open(&place).await, open(&place).await);
        let access = access(&tokens);
        let root = admin(&access);
        let holder = |issued: &IssuedToken| {
            let who = access.authenticate(Some(issued.secret.expose())).unwrap();
            access.authorize::<Administer>(who, &instance("org-acme")).unwrap()
        };
        let parent = issue(&tokens, &root, &["admin@org-acme"]).await;
        let longer = NewToken { lifetime: 24 * HOUR, ..new(&["admin@org-acme"]) };
        let child = tokens.issue(&holder(&parent), longer, &Origin::default()).await.unwrap();
        assert_eq!(child.report.expires_s, parent.report.expires_s, "it ends with the one that made it");
        let of_child = holder(&child);
        let grandchild = issue(&tokens, &of_child, &["viewer@org-acme"]).await;
        let bystander = issue(&tokens, &root, &["viewer@org-acme"]).await;
        others.reload().await.unwrap();

        tokens.revoke(&root, parent.report.token.id(), &Origin::default()).await.unwrap();
        others.follow().await.unwrap();
        for tokens in [&tokens, &others] {
            for ended in [&parent, &child, &grandchild] {
                assert_eq!(tokens.find(ended.secret.fingerprint(), now_s()), Err(Denied::BadCredential));
            }
            assert!(tokens.find(bystander.secret.fingerprint(), now_s()).is_ok());
        }
        let late = tokens.issue(&of_child, new(&["viewer@org-acme"]), &Origin::default()).await.unwrap_err();
        assert!(matches!(late, TokenError::Unknown(_)), "who was let in just before makes none: {late:?}");
        let search =
            audit::Search { subject: Some(grandchild.report.token.id().to_string()), ..audit::Search::default() };
        let records = AuditLog::new(tokens.database.clone()).search(&search).await.unwrap();
        assert_eq!(records[0].event.action, "token.revoke");
        assert_eq!(records[0].event.detail, format!("with the token {}", parent.report.token.id()));
    }
}

#[tokio::test]
async fn a_record_shows_all_grants_and_the_widest_first() {
    let place = Place::sqlite();
    let tokens = open(&place).await;
    let narrow: Vec<String> = (0..63).map(|number| format!("nix:push@org-acme/{number}-{}", "x".repeat(400))).collect();
    let grants: Vec<&str> = narrow.iter().map(String::as_str).chain(["admin"]).collect();
    issue(&tokens, &admin(&access(&tokens)), &grants).await;
    let log = AuditLog::new(tokens.database.clone());
    let records = log.search(&audit::Search::default()).await.unwrap();
    let detail = &records[0].event.detail;
    assert!(detail.starts_with("a test: admin nix:push@"), "{}", &detail[..100]);
    assert!(narrow.iter().all(|grant| detail.contains(grant.as_str())));
    assert!(matches!(log.verify().await.unwrap(), audit::Verdict::Whole(1, _)));
}

#[tokio::test]
async fn what_a_certificate_made_does_not_outlive_it_and_is_revoked_by_its_name() {
    for place in [Place::sqlite(), Place::postgres()] {
        let (tokens, others) = (open(&place).await, open(&place).await);
        let root = admin(&access(&tokens));
        let pattern = CertificateName::CommonName(Pattern::new("ann"));
        let grants = vec!["admin@org-acme".parse().unwrap()];
        let rule = CertificateRule { name: "ann".to_owned(), pattern, grants };
        let access = access(&tokens).with_certificates(vec![rule]);
        let names = CertificateNames { common_names: vec!["ann".to_owned()], ..CertificateNames::default() };
        let ends_s = now_s() + 600;
        let loan = access.lend_certificate(&names, ends_s).unwrap();
        let ann = access.authenticate(Some(loan.credential().expose())).unwrap();
        let name = ann.to_string();
        let ann = access.authorize::<Administer>(ann, &instance("org-acme")).unwrap();
        let made = issue(&tokens, &ann, &["admin@org-acme"]).await;
        assert_eq!((made.report.expires_s, made.report.issued_by.as_str()), (ends_s, name.as_str()));
        let who = access.authenticate(Some(made.secret.expose())).unwrap();
        let of_made = access.authorize::<Administer>(who, &instance("org-acme")).unwrap();
        let child = issue(&tokens, &of_made, &["viewer@org-acme"]).await;
        assert!(child.report.expires_s <= ends_s);
        let kept = issue(&tokens, &root, &["admin@default"]).await;
        others.reload().await.unwrap();

        // Who may not know of them ends none.
        let who = access.authenticate(Some(kept.secret.expose())).unwrap();
        let elsewhere = access.authorize::<Administer>(who, &instance("default")).unwrap();
        assert_eq!(tokens.revoke_made_by(&elsewhere, &name, &Origin::default()).await.unwrap(), 0);
        assert!(tokens.find(made.secret.fingerprint(), now_s()).is_ok());
        assert_eq!(tokens.revoke_made_by(&root, &name, &Origin::default()).await.unwrap(), 2);
        others.follow().await.unwrap();
        for tokens in [&tokens, &others] {
            for ended in [&made, &child] {
                assert_eq!(tokens.find(ended.secret.fingerprint(), now_s()), Err(Denied::BadCredential));
            }
            assert!(tokens.find(kept.secret.fingerprint(), now_s()).is_ok());
        }
        tokens.revoke_made_by(&root, kept.secret.expose(), &Origin::default()).await.unwrap();
        let log = AuditLog::new(tokens.database.clone());
        let records = log.search(&audit::Search::default()).await.unwrap();
        assert_eq!(records[0].event.subject, format!("made by token:{}", kept.report.token.id()));
    }
}
