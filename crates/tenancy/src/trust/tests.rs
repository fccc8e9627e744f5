//! An issuer whose keys change, and tokens of it that are right and wrong.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use serde_json::{Value, json};

use super::*;
use crate::jwt::tests::{encode, hs256};
use crate::testing::Place;
use crate::{Access, AccessConfig, Administer, Authorized, Exchanged, NewToken, Principal, TenantConfig};

const ISSUER: &str = "https://forge.example";
const NOW_S: u64 = 4_000_000_000;

/// What an issuer does when it is asked.
#[derive(Clone)]
enum Answer {
    Keys(Vec<(&'static str, Arc<EcdsaKeyPair>)>),
    Text(&'static str),
    Refuse,
    Hang,
}

/// An issuer with keys that change.
struct Forge {
    answer: Mutex<Answer>,
    asked: AtomicUsize,
}

#[async_trait]
impl KeySource for Forge {
    async fn fetch(&self, issuer: &str) -> Result<Vec<u8>, String> {
        assert_eq!(issuer, ISSUER);
        self.asked.fetch_add(1, Ordering::Relaxed);
        let answer = self.answer.lock().unwrap().clone();
        tokio::task::yield_now().await;
        match answer {
            Answer::Keys(keys) => Ok(key_set(&keys)),
            Answer::Text(text) => Ok(text.as_bytes().to_vec()),
            Answer::Refuse => Err("connection refused".to_owned()),
            Answer::Hang => std::future::pending().await,
        }
    }
}

fn key_set(keys: &[(&str, Arc<EcdsaKeyPair>)]) -> Vec<u8> {
    let key = |(id, pair): &(&str, Arc<EcdsaKeyPair>)| {
        let (x, y) = pair.public_key().as_ref()[1..].split_at(32);
        json!({"kty": "EC", "crv": "P-256", "kid": id, "x": encode(x), "y": encode(y)})
    };
    json!({"keys": keys.iter().map(key).collect::<Vec<_>>()}).to_string().into_bytes()
}

fn new_key() -> Arc<EcdsaKeyPair> {
    let random = SystemRandom::new();
    let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
    Arc::new(EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, document.as_ref(), &random).unwrap())
}

fn sign(id: &str, pair: &EcdsaKeyPair, claims: &Value) -> String {
    let header = json!({"alg": "ES256", "kid": id}).to_string();
    let signed = format!("{}.{}", encode(header.as_bytes()), encode(claims.to_string().as_bytes()));
    let signature = pair.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
    format!("{signed}.{}", encode(signature.as_ref()))
}

/// Claims as a forge makes them for a job on its main branch.
fn claims() -> Value {
    json!({
        "iss": ISSUER, "aud": "gf", "sub": "repo:acme/app", "exp": NOW_S + 300, "nbf": NOW_S - 10,
        "repository": "acme/app", "ref": "refs/heads/main", "ref_protected": true, "run_attempt": 1,
        "groups": ["builders", "acme"], "kubernetes.io": {"namespace": "ci"},
    })
}

fn with(changes: Value) -> Value {
    let mut claims = claims();
    for (name, value) in changes.as_object().unwrap() {
        claims[name] = value.clone();
    }
    claims
}

fn rule(name: &str, claims: &[(&str, &str)], grants: &[&str]) -> TrustRule {
    TrustRule {
        name: name.to_owned(),
        issuer: ISSUER.to_owned(),
        audience: "gf".to_owned(),
        claims: claims.iter().map(|(name, pattern)| ((*name).to_owned(), Pattern::new(pattern))).collect(),
        tenant: TenantName::new("org-acme").unwrap(),
        instance: InstanceName::new("org-acme").unwrap(),
        grants: grants.iter().map(|grant| grant.parse().unwrap()).collect(),
        lifetime: Duration::from_secs(900),
    }
}

fn rules() -> Vec<TrustRule> {
    let main = [("repository", "acme/*"), ("ref", "refs/heads/main")];
    vec![rule("main", &main, &["operator@org-acme"]), rule("all", &[("repository", "acme/*")], &["viewer@org-acme"])]
}

struct Setting {
    exchange: Exchange,
    forge: Arc<Forge>,
    key: Arc<EcdsaKeyPair>,
    _place: Place,
}

impl Setting {
    async fn new() -> Self {
        Self::at(Place::sqlite()).await
    }

    async fn at(place: Place) -> Self {
        let tokens = Arc::new(Tokens::open(place.open().await).await.unwrap());
        let key = new_key();
        let answer = Mutex::new(Answer::Keys(vec![("one", Arc::clone(&key))]));
        let forge = Arc::new(Forge { answer, asked: AtomicUsize::new(0) });
        let source: Arc<dyn KeySource> = Arc::clone(&forge) as Arc<dyn KeySource>;
        Self { exchange: Exchange::new(rules(), source, tokens), forge, key, _place: place }
    }

    fn answer(&self, answer: Answer) {
        *self.forge.answer.lock().unwrap() = answer;
    }

    async fn present(&self, claims: &Value) -> Result<IssuedToken, TrustFault> {
        self.exchange(&sign("one", &self.key, claims), NOW_S).await
    }

    async fn exchange(&self, token: &str, now_s: u64) -> Result<IssuedToken, TrustFault> {
        let since = Duration::from_secs(now_s);
        self.exchange.exchange_at(token, &Origin::default(), now_s, since).await.map(|admission| admission.issued)
    }

    fn tokens(&self) -> &Tokens {
        &self.exchange.tokens
    }

    fn is_good(&self, issued: &IssuedToken) -> bool {
        self.tokens().principal(issued.report.token.id()).is_some()
    }
}

/// Who may revoke anything.
fn admin() -> Authorized<Administer> {
    let (name, instance) = (TenantName::new("default").unwrap(), InstanceName::new("").unwrap());
    let tenants = vec![TenantConfig { name, instances: vec![instance.clone()] }];
    let access = Access::new(AccessConfig { tenants, token: None, anonymous_read: false }).unwrap();
    access.authorize(Principal::Server, &instance).unwrap()
}

fn grants(issued: &IssuedToken) -> String {
    issued.report.token.grants().iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

#[tokio::test]
async fn rules_give_what_they_say() {
    let setting = Setting::new().await;
    let on_main = setting.present(&claims()).await.unwrap();
    assert_eq!(grants(&on_main), "operator@org-acme viewer@org-acme");
    assert_eq!(on_main.report.expires_s - on_main.report.issued_s, 900);
    assert_eq!(on_main.report.issued_by, "oidc:repo:acme/app");
    assert!(setting.is_good(&on_main));
    let request = setting.present(&with(json!({"ref": "refs/pull/7/merge"}))).await.unwrap();
    assert_eq!(grants(&request), "viewer@org-acme");
    assert_eq!(setting.forge.asked.load(Ordering::Relaxed), 1, "keys are remembered");
    let stranger = setting.present(&with(json!({"repository": "evil/acme"}))).await.unwrap_err();
    assert_eq!(stranger.denial(), Denied::BadCredential);
    let told = stranger.to_string();
    assert!(told.contains("closest is main, where repository is \"evil/acme\""), "{told}");
}

#[tokio::test]
async fn what_is_wrong_is_refused() {
    let setting = Setting::new().await;
    let check = async |token: &str, expected: &str, denial: Denied| {
        let fault = setting.exchange(token, NOW_S).await.unwrap_err();
        assert!(format!("{fault:?}").starts_with(expected), "{fault:?}");
        assert_eq!(fault.denial(), denial);
    };
    let signed = |changes: Value| sign("one", &setting.key, &with(changes));
    let bad = Denied::BadCredential;
    check(&signed(json!({"iss": "https://other.example"})), "Issuer", bad.clone()).await;
    check(&signed(json!({"aud": "other"})), "Audience", bad.clone()).await;
    check(&signed(json!({"aud": ["a", "b"]})), "Audience", bad.clone()).await;
    check(&signed(json!({"exp": NOW_S - LEEWAY_S - 1})), "Expired", Denied::Expired).await;
    check(&signed(json!({"nbf": NOW_S + LEEWAY_S + 1})), "NotYetValid", Denied::NotYetValid).await;
    check(&signed(json!({"exp": null})), "Claims", bad.clone()).await;
    check(&sign("one", &new_key(), &claims()), "Token(Signature", bad.clone()).await;
    check(&sign("other", &setting.key, &claims()), "Token(UnknownKey", bad.clone()).await;
    let text = claims().to_string();
    let none = format!("{}.{}.", encode(br#"{"alg":"none","kid":"one"}"#), encode(text.as_bytes()));
    check(&none, "Token(Algorithm", bad.clone()).await;
    let public = setting.key.public_key().as_ref().to_vec();
    check(&hs256(&public, r#"{"alg":"HS256","kid":"one"}"#, &text), "Token(Algorithm", bad.clone()).await;
    check(&hs256(&public, r#"{"alg":"ES256","kid":"one"}"#, &text), "Token(Signature", bad.clone()).await;
    check("gf-token-x", "Token(Form", bad.clone()).await;
    assert!(setting.present(&with(json!({"exp": NOW_S - LEEWAY_S, "nbf": NOW_S + LEEWAY_S}))).await.is_ok());
}

#[tokio::test]
async fn new_keys_are_found_and_made_up_ones_ask_nobody() {
    let setting = Setting::new().await;
    setting.present(&claims()).await.unwrap();
    let second = new_key();
    setting.answer(Answer::Keys(vec![("two", Arc::clone(&second))]));
    let token = sign("two", &second, &claims());
    // Asked a moment ago: a while passes first.
    assert!(setting.exchange(&token, NOW_S + 1).await.is_err());
    assert!(setting.exchange(&token, NOW_S + 31).await.is_ok());
    assert_eq!(setting.forge.asked.load(Ordering::Relaxed), 2);
    for _ in 0..10 {
        assert!(setting.exchange(&sign("made-up", &second, &claims()), NOW_S + 32).await.is_err());
    }
    assert_eq!(setting.forge.asked.load(Ordering::Relaxed), 2);
    // The first key is not published any more.
    let old = setting.exchange(&sign("one", &setting.key, &claims()), NOW_S + 33).await.unwrap_err();
    assert!(matches!(old, TrustFault::Token(JwtFault::UnknownKey)), "{old:?}");
}

#[tokio::test]
async fn jobs_that_begin_at_once_ask_once() {
    let setting = Arc::new(Setting::new().await);
    let jobs = (0..8).map(|_| {
        let setting = Arc::clone(&setting);
        tokio::spawn(async move { setting.present(&claims()).await.map(drop) })
    });
    for job in jobs.collect::<Vec<_>>() {
        job.await.unwrap().unwrap();
    }
    assert_eq!(setting.forge.asked.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn made_up_keys_leave_room_while_an_issuer_is_slow() {
    let mut setting = Setting::new().await;
    setting.exchange.fetch_timeout = Duration::from_secs(3600);
    setting.present(&claims()).await.unwrap();
    setting.answer(Answer::Hang);
    let setting = Arc::new(setting);
    let mut waiting = tokio::task::JoinSet::new();
    for number in 0..20 {
        let (setting, token) = (Arc::clone(&setting), sign(&format!("k{number}"), &setting.key, &claims()));
        waiting.spawn(async move { setting.exchange(&token, NOW_S + 31).await.map(drop) });
    }
    let mut told = Vec::new();
    while told.len() < 16 {
        told.push(waiting.join_next().await.unwrap().unwrap().unwrap_err());
    }
    // They may come again, since nobody knows yet.
    assert!(told.iter().all(TrustFault::is_unavailable), "{told:?}");
    setting.exchange(&sign("one", &setting.key, &claims()), NOW_S + 31).await.unwrap();
}

#[tokio::test]
async fn an_issuer_that_does_not_answer() {
    for (answer, reason) in [
        (Answer::Refuse, "connection refused"),
        (Answer::Hang, "no answer in 50ms"),
        (Answer::Text("<html>"), "it is not a set of keys"),
        (Answer::Text(r#"{"keys":[]}"#), "it has no key"),
    ] {
        let mut setting = Setting::new().await;
        setting.exchange.fetch_timeout = Duration::from_millis(50);
        let working = setting.forge.answer.lock().unwrap().clone();
        setting.answer(answer.clone());
        let fault = setting.present(&claims()).await.unwrap_err();
        assert!(fault.is_unavailable() && fault.to_string().contains(reason), "{fault}");
        // It answers, and then no longer: what is known is believed until the next morning.
        setting.answer(working);
        let token = sign("one", &setting.key, &with(json!({"exp": NOW_S + 100_000})));
        setting.exchange(&token, NOW_S + 60).await.unwrap();
        setting.answer(answer);
        let late = NOW_S + 60 + 12 * 3600;
        setting.exchange(&token, late - 1).await.unwrap();
        let fault = setting.exchange(&token, late + 60).await.unwrap_err();
        assert!(matches!(fault, TrustFault::Keys { .. }), "{fault:?}");
    }
}

#[tokio::test]
async fn what_was_revoked_is_not_exchanged_again() {
    for place in [Place::sqlite(), Place::postgres()] {
        let setting = Setting::at(place).await;
        let (first, second) = (with(json!({"jti": "1"})), with(json!({"jti": "2"})));
        let issued = setting.present(&first).await.unwrap();
        // Within its life a job may exchange its identity again.
        setting.present(&first).await.unwrap();
        setting.tokens().revoke(&admin(), issued.report.token.id(), &Origin::default()).await.unwrap();
        let replayed = setting.present(&first).await.unwrap_err();
        assert!(matches!(replayed, TrustFault::Revoked { .. }), "{replayed:?}");
        assert_eq!(replayed.denial(), Denied::BadCredential);
        assert!(setting.present(&second).await.is_ok(), "another identity of the same job");
    }
}

#[tokio::test]
async fn all_that_came_from_somewhere_can_be_revoked() {
    for place in [Place::sqlite(), Place::postgres()] {
        let check = async |setting: &Setting, which: Exchanged, ended: usize, left: &[&str]| {
            let of = |subject: &str, jti: u32| {
                let reference = if subject == "other" { "refs/heads/x" } else { "refs/heads/main" };
                with(json!({"sub": subject, "jti": jti, "ref": reference, "iat": now_s()}))
            };
            let mut issued = Vec::new();
            for (jti, subject) in [(1, "one"), (2, "two"), (3, "two"), (4, "other")] {
                issued.push((subject, setting.present(&of(subject, jti)).await.unwrap()));
            }
            let number = setting.tokens().revoke_exchanged(&admin(), &which, &Origin::default()).await.unwrap();
            let good: Vec<&str> =
                issued.iter().filter(|(_, issued)| setting.is_good(issued)).map(|(subject, _)| *subject).collect();
            assert_eq!((number, good.as_slice()), (ended, left), "{which:?}");
            for subject in ["one", "two", "other"] {
                let again = setting.present(&of(subject, 9)).await;
                assert_eq!(again.is_ok(), left.contains(&subject), "{which:?} {subject} {again:?}");
            }
            // What the issuer signs from now on counts again.
            let later = with(json!({"sub": "two", "iat": now_s() + LEEWAY_S + 1}));
            assert!(setting.present(&later).await.is_ok());
        };
        let setting = Setting::at(place).await;
        let subject = Exchanged { subject: Some("two".to_owned()), ..Exchanged::default() };
        check(&setting, subject, 2, &["one", "other"]).await;
        for (which, left) in [
            (Exchanged { rule: Some("main".to_owned()), ..Exchanged::default() }, vec!["other"]),
            (
                Exchanged { issuer: Some("https://other.example".to_owned()), ..Exchanged::default() },
                vec!["one", "two", "two", "other"],
            ),
            (Exchanged { issuer: Some(ISSUER.to_owned()), ..Exchanged::default() }, vec![]),
        ] {
            let setting = Setting::new().await;
            check(&setting, which, 4 - left.len(), &left).await;
        }
    }
}

#[tokio::test]
async fn only_who_administers_everything_revokes_by_origin() {
    let setting = Setting::new().await;
    let grants = vec!["admin@org-acme".parse().unwrap()];
    let new = crate::NewToken { name: "a".to_owned(), grants, lifetime: Duration::from_secs(60) };
    let limited = setting.tokens().issue(&admin(), new, &Origin::default()).await.unwrap();
    let name = TenantName::new("org-acme").unwrap();
    let tenants = vec![TenantConfig { name, instances: vec![InstanceName::new("org-acme").unwrap()] }];
    let access = Access::new(AccessConfig { tenants, token: None, anonymous_read: false }).unwrap();
    let who = setting.tokens().principal(limited.report.token.id()).unwrap();
    let limited = access.authorize::<Administer>(who, &InstanceName::new("org-acme").unwrap()).unwrap();
    let refused = setting.tokens().revoke_exchanged(&limited, &Exchanged::default(), &Origin::default()).await;
    assert!(matches!(refused, Err(TokenError::BeyondReach)), "{refused:?}");
}

#[tokio::test]
async fn who_administers_a_tenant_cuts_off_an_identity_that_holds_nothing_else() {
    let setting = Setting::new().await;
    let new = |grant: &str| NewToken {
        name: "limited".to_owned(),
        grants: vec![grant.parse().unwrap()],
        lifetime: Duration::from_secs(60),
    };
    let tenant = |name: &str| TenantConfig {
        name: TenantName::new(name).unwrap(),
        instances: vec![InstanceName::new(name).unwrap()],
    };
    let tenants = vec![tenant("org-acme"), tenant("default")];
    let access = Access::new(AccessConfig { tenants, token: None, anonymous_read: false }).unwrap().closed();
    let mut admins = Vec::new();
    for name in ["org-acme", "default"] {
        let issued = setting.tokens().issue(&admin(), new(&format!("admin@{name}")), &Origin::default()).await.unwrap();
        let who = setting.tokens().principal(issued.report.token.id()).unwrap();
        admins.push(access.authorize::<Administer>(who, &InstanceName::new(name).unwrap()).unwrap());
    }
    let (good, other) =
        (setting.present(&claims()).await.unwrap(), setting.present(&with(json!({"sub": "b"}))).await.unwrap());
    let named = |subject: &str| Exchanged {
        issuer: Some(ISSUER.to_owned()),
        subject: Some(subject.to_owned()),
        ..Exchanged::default()
    };
    let of_issuer = Exchanged { subject: None, ..named("") };
    for (admin, which) in [(&admins[1], named("repo:acme/app")), (&admins[0], named("nobody")), (&admins[0], of_issuer)]
    {
        let refused = setting.tokens().revoke_exchanged(admin, &which, &Origin::default()).await;
        assert!(matches!(refused, Err(TokenError::BeyondReach)), "{which:?} {refused:?}");
    }
    let denied = crate::audit::Search { outcome: Some(crate::audit::Outcome::Denied), ..Default::default() };
    let denied = crate::AuditLog::new(setting.tokens().database().clone()).search(&denied).await.unwrap();
    assert_eq!(denied.len(), 3);
    let ended = setting.tokens().revoke_exchanged(&admins[0], &named("repo:acme/app"), &Origin::default()).await;
    assert_eq!(ended.unwrap(), 1);
    assert!(!setting.is_good(&good) && setting.is_good(&other));
    assert!(matches!(setting.present(&claims()).await, Err(TrustFault::Revoked { .. })));
}

#[tokio::test]
async fn what_was_exchanged_makes_no_tokens() {
    let setting = Setting::new().await;
    let rules = vec![rule("main", &[("repository", "acme/*")], &["admin@org-acme"])];
    let source: Arc<dyn KeySource> = Arc::clone(&setting.forge) as Arc<dyn KeySource>;
    let exchange = Exchange::new(rules, source, Arc::clone(&setting.exchange.tokens));
    let setting = Setting { exchange, ..setting };
    let issued = setting.present(&claims()).await.unwrap();
    let name = InstanceName::new("org-acme").unwrap();
    let tenants = vec![TenantConfig { name: TenantName::new("org-acme").unwrap(), instances: vec![name.clone()] }];
    let access = Access::new(AccessConfig { tenants, token: None, anonymous_read: false }).unwrap().closed();
    let who = setting.tokens().principal(issued.report.token.id()).unwrap();
    let administers = access.authorize::<Administer>(who, &name).unwrap();
    let grants = vec!["viewer@org-acme".parse().unwrap()];
    let new = NewToken { name: "another".to_owned(), grants, lifetime: Duration::from_secs(60) };
    let refused = setting.tokens().issue(&administers, new, &Origin::default()).await.unwrap_err();
    assert!(matches!(refused, TokenError::Exchanged), "{refused:?}");
}

#[tokio::test]
async fn revoking_one_ends_all_that_its_identity_was_exchanged_for() {
    for place in [Place::sqlite(), Place::postgres()] {
        let setting = Setting::at(place).await;
        let identity = sign("one", &setting.key, &claims());
        let ended = setting.exchange(&identity, NOW_S).await.unwrap();
        let sibling = setting.exchange(&identity, NOW_S).await.unwrap();
        let other = setting.present(&with(json!({"jti": "another"}))).await.unwrap();
        let end = gf_database::sql("UPDATE tenancy_token SET expires_s = 1 WHERE id = $1");
        let end = end.bind(ended.report.token.id().as_str());
        assert_eq!(setting.tokens().database().execute(end).await.unwrap(), 1);
        setting.tokens().reload().await.unwrap();

        setting.tokens().revoke(&admin(), ended.report.token.id(), &Origin::default()).await.unwrap();
        assert!(!setting.is_good(&sibling), "of the same identity");
        assert!(setting.is_good(&other), "of another");
        let again = setting.exchange(&identity, NOW_S).await;
        assert!(matches!(again, Err(TrustFault::Revoked { .. })), "{again:?}");
    }
}

#[tokio::test]
async fn an_identity_is_cut_off_by_one_of_its_tokens() {
    for place in [Place::sqlite(), Place::postgres()] {
        let setting = Setting::at(place).await;
        // What is listed of it is cut; what it is revoked by is not.
        let branch = format!("repo:acme/app:ref:refs/heads/{}", "x".repeat(900));
        let of = |subject: &str, jti: u32| with(json!({"sub": subject, "jti": jti, "iat": now_s()}));
        let stolen = setting.present(&of(&branch, 1)).await.unwrap();
        let (again, other) =
            (setting.present(&of(&branch, 2)).await.unwrap(), setting.present(&of("b", 3)).await.unwrap());
        let (tokens, none) = (setting.tokens(), crate::TokenId::new("0123456789"));
        let unknown = tokens.revoke_identity_of(&admin(), &none, &Origin::default()).await.unwrap_err();
        assert!(matches!(unknown, TokenError::Unknown(_)), "{unknown:?}");
        let id = stolen.report.token.id();
        assert_eq!(tokens.revoke_identity_of(&admin(), id, &Origin::default()).await.unwrap(), 2);
        assert_eq!([&stolen, &again, &other].map(|issued| setting.is_good(issued)), [false, false, true]);
        // Not even with another identity of the same job.
        let anew = setting.present(&of(&branch, 4)).await.unwrap_err();
        assert!(matches!(anew, TrustFault::Revoked { .. }), "{anew:?}");
    }
}

#[tokio::test]
async fn one_tenant_leaves_room_for_the_others() {
    let setting = Setting::new().await;
    setting.present(&claims()).await.unwrap();
    let fill = |number: i64| {
        gf_database::sql(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < $1) \
             INSERT INTO tenancy_exchanged (id, issuer, subject, rules, tenant, source, ends_s) \
             SELECT 'copy-' || i, issuer, subject || i, 'rules' || i, tenant, source, ends_s FROM tenancy_exchanged, n",
        )
        .bind(number)
    };
    // Whatever the rules are called that fitted.
    setting.tokens().database().execute(fill(24_999)).await.unwrap();
    let more = setting.present(&with(json!({"sub": "another"}))).await.unwrap_err();
    assert!(matches!(&more, TrustFault::TooMany { holder, .. } if holder == "the tenant org-acme"), "{more:?}");
    let others = "UPDATE tenancy_exchanged SET tenant = 'org-other' WHERE id LIKE 'copy-%'";
    setting.tokens().database().execute(gf_database::sql(others)).await.unwrap();
    setting.present(&with(json!({"sub": "another"}))).await.unwrap();
}

#[tokio::test]
async fn one_subject_does_not_fill_the_table() {
    let setting = Setting::new().await;
    setting.present(&claims()).await.unwrap();
    let copies = |number: u64| {
        gf_database::sql(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < $1) \
             INSERT INTO tenancy_token (id, fingerprint, name, grants, issued_by, issued_s, expires_s) \
             SELECT 'copy-' || i, CAST('copy-' || i AS BLOB), name, grants, issued_by, issued_s, expires_s \
             FROM tenancy_token, n",
        )
        .bind(i64::try_from(number).unwrap())
    };
    let database = setting.tokens().database();
    database.execute(copies(998)).await.unwrap();
    let origins = "INSERT INTO tenancy_exchanged (id, issuer, subject, rules, source, ends_s) \
         SELECT token.id, issuer, subject, rules, source, ends_s FROM tenancy_exchanged, tenancy_token token \
         WHERE token.id LIKE 'copy-%'";
    database.execute(gf_database::sql(origins)).await.unwrap();
    setting.present(&claims()).await.unwrap();
    let more = setting.present(&claims()).await.unwrap_err();
    assert!(matches!(more, TrustFault::TooMany { limit: 1000, .. }), "{more:?}");
    assert!(!more.is_unavailable());
    assert!(setting.present(&with(json!({"sub": "another"}))).await.is_ok(), "others have room");

    // What has ended is forgotten, and leaves room.
    let end = "UPDATE tenancy_exchanged SET ends_s = 1 WHERE id LIKE 'copy-%'";
    database.execute(gf_database::sql(end)).await.unwrap();
    for _ in 0..5 {
        setting.present(&with(json!({"sub": "another"}))).await.unwrap();
    }
    let left = gf_database::sql("SELECT COUNT(*) AS number FROM tenancy_token WHERE id LIKE 'copy-%'");
    assert_eq!(database.first(left).await.unwrap().unwrap().get::<i64>("number").unwrap(), 0);
    setting.present(&claims()).await.unwrap();
}
