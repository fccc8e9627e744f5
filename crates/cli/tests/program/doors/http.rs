//! The routes of HTTP.

use std::collections::BTreeSet;
use std::io::{Read, Write};

use super::sources::routes;
use super::{CALLERS, Caller, Setting};
use crate::running::{gf, text};

/// What a door asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Needs {
    /// Nothing: it says nothing of anybody's.
    Nothing,
    /// A credential that is good, or none.
    NoBadCredential,
    /// The identity of another issuer, of which none is trusted here.
    Identity,
    /// To operate the server.
    Operate,
    /// To administer something, if only one's own: who does may write there, too.
    AdministerSomething,
    /// To administer everything.
    AdministerAll,
    /// To read what `default` has.
    Read,
    /// To write to it.
    Write,
    /// To read what an instance of `default` has; others do not learn that there is one.
    ReadInstance,
    /// To write to it.
    WriteInstance,
}

/// One door: how it is mounted, and how it is tried.
struct Door {
    route: (&'static str, &'static str),
    verb: &'static str,
    path: &'static str,
    body: &'static str,
    needs: Needs,
}

const fn door(route: (&'static str, &'static str), path: &'static str, body: &'static str, needs: Needs) -> Door {
    Door { route, verb: route.0, path, body, needs }
}

const fn any(pattern: &'static str, verb: &'static str, path: &'static str, body: &'static str, needs: Needs) -> Door {
    Door { route: ("ANY", pattern), verb, path, body, needs }
}

const HASH: &str = "/cas/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const RESULT: &str = "/ac/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const NAMED: &str = "/webdav/a/3/9/a39b";
const CACHE: &str = "/api/v1/nix/caches/{cache}";
const PIN: &str = "/api/v1/nix/caches/{cache}/pins/{pin}";
const PIN_PATH: &str = "/api/v1/nix/caches/secret/pins/p";
const PIN_BODY: &str = r#"{"path":"/nix/store/s66mzxpvicwk07gjbjfw9izjfa797vsw-hello-2.12.1"}"#;
const TOKEN_BODY: &str = r#"{"name":"x","grants":["viewer@default"],"lifetime_seconds":60}"#;
const ACTION: &str =
    "/api/v1/action-results?instance=default&action=aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const REMOVE_BODY: &str = r#"{"instance":"default","action":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","reason":"a test","quarantine_seconds":60,"dry_run":true}"#;

/// Every door. The cache `secret` is a private one of `default`.
fn doors() -> Vec<Door> {
    use Needs::{
        AdministerAll, AdministerSomething, Identity, NoBadCredential, Nothing, Operate, Read, ReadInstance, Write,
        WriteInstance,
    };
    vec![
        door(("GET", "/healthz"), "/healthz", "", Nothing),
        door(("GET", "/readyz"), "/readyz", "", Nothing),
        door(("GET", "/metrics"), "/metrics", "", Nothing),
        door(("POST", "/v1/token/exchange"), "/v1/token/exchange", "", Identity),
        door(("GET", "/api/v1/status"), "/api/v1/status", "", Operate),
        door(("GET", "/api/v1/execution"), "/api/v1/execution", "", Operate),
        door(("GET", "/api/v1/operations/{*name}"), "/api/v1/operations/operations/x", "", Operate),
        door(("GET", "/api/v1/store/stats"), "/api/v1/store/stats", "", Operate),
        door(("POST", "/api/v1/store/verify"), "/api/v1/store/verify", r#"{"repair":false}"#, Operate),
        door(("POST", "/api/v1/store/gc"), "/api/v1/store/gc", r#"{"free_bytes":0,"dry_run":true}"#, Operate),
        door(("GET", "/api/v1/action-results"), ACTION, "", Read),
        door(("POST", "/api/v1/action-results/remove"), "/api/v1/action-results/remove", REMOVE_BODY, Operate),
        door(("GET", "/api/v1/access/whoami"), "/api/v1/access/whoami", "", NoBadCredential),
        door(
            ("GET", "/api/v1/access/why"),
            "/api/v1/access/why?principal=anonymous&permission=cas:read&instance=default",
            "",
            AdministerSomething,
        ),
        door(("GET", "/api/v1/access/tokens"), "/api/v1/access/tokens", "", AdministerSomething),
        door(("POST", "/api/v1/access/tokens"), "/api/v1/access/tokens", TOKEN_BODY, Operate),
        door(
            ("DELETE", "/api/v1/access/tokens"),
            "/api/v1/access/tokens?issued_by=certificate:nobody",
            "",
            AdministerSomething,
        ),
        door(("DELETE", "/api/v1/access/tokens/{id}"), "/api/v1/access/tokens/0123456789", "", AdministerSomething),
        door(
            ("DELETE", "/api/v1/access/exchanged"),
            // Of which nothing is known: it may hold what others administer.
            "/api/v1/access/exchanged?issuer=https://a.example&subject=b",
            "",
            AdministerAll,
        ),
        door(("POST", "/api/v1/access/attic/revoke"), "/api/v1/access/attic/revoke", "{}", AdministerAll),
        door(("GET", "/api/v1/access/audit"), "/api/v1/access/audit", "", AdministerSomething),
        door(("POST", "/api/v1/access/audit/verify"), "/api/v1/access/audit/verify", "{}", AdministerAll),
        door(("GET", "/api/v1/access/audit/export"), "/api/v1/access/audit/export", "", AdministerAll),
        door(("GET", "/api/v1/nix/caches"), "/api/v1/nix/caches", "", Nothing),
        door(("GET", CACHE), "/api/v1/nix/caches/secret", "", Read),
        door(("PATCH", CACHE), "/api/v1/nix/caches/secret", r#"{"priority":40}"#, Write),
        door(
            ("GET", "/api/v1/nix/caches/{cache}/paths/{hash}"),
            "/api/v1/nix/caches/secret/paths/s66mzxpvicwk07gjbjfw9izjfa797vsw",
            "",
            Read,
        ),
        door(("POST", "/api/v1/nix/caches/{cache}/verify"), "/api/v1/nix/caches/secret/verify", "{}", Write),
        door(
            ("POST", "/api/v1/nix/caches/{cache}/collect"),
            "/api/v1/nix/caches/secret/collect",
            r#"{"dry_run":true}"#,
            Write,
        ),
        door(("GET", "/api/v1/nix/caches/{cache}/pins"), "/api/v1/nix/caches/secret/pins", "", Read),
        door(("PUT", PIN), PIN_PATH, PIN_BODY, Write),
        door(("DELETE", PIN), PIN_PATH, "", Write),
        any("/nix/{*path}", "GET", "/nix/secret/nix-cache-info", "", Read),
        any("/nix/{*path}", "HEAD", "/nix/secret/s66mzxpvicwk07gjbjfw9izjfa797vsw.narinfo", "", Read),
        any("/nix/{*path}", "PUT", "/nix/secret/nix-cache-info", "StoreDir: /nix/store\n", Write),
        any("/nix/{*path}", "GET", "/nix/_api/v1/cache-config/secret", "", Read),
        any("/nix/{*path}", "PATCH", "/nix/_api/v1/cache-config/secret", r#"{"priority":41}"#, Write),
        any("/nix/{*path}", "POST", "/nix/_api/v1/cache-config/new", r#"{"is_public":false}"#, AdministerSomething),
        any("/nix/{*path}", "DELETE", "/nix/_api/v1/cache-config/secret", "", Write),
        any(
            "/nix/{*path}",
            "POST",
            "/nix/_api/v1/get-missing-paths",
            r#"{"cache":"secret","store_path_hashes":[]}"#,
            Write,
        ),
        // Which cache is meant would be said in a header.
        any("/nix/{*path}", "PUT", "/nix/_api/v1/upload-path", "", AdministerSomething),
        any("/{*path}", "GET", HASH, "", ReadInstance),
        any("/{*path}", "HEAD", HASH, "", ReadInstance),
        any("/{*path}", "PUT", HASH, "x", WriteInstance),
        any("/{*path}", "GET", RESULT, "", ReadInstance),
        any("/{*path}", "HEAD", RESULT, "", ReadInstance),
        any("/{*path}", "PUT", RESULT, "x", WriteInstance),
        any("/{*path}", "GET", NAMED, "", ReadInstance),
        any("/{*path}", "HEAD", NAMED, "", ReadInstance),
        any("/{*path}", "PROPFIND", NAMED, "", ReadInstance),
        any("/{*path}", "PROPFIND", "/webdav/a/", "", ReadInstance),
        any("/{*path}", "PUT", NAMED, "x", WriteInstance),
    ]
}

/// What may be answered: a status that must be, or one of refusal that must not.
#[derive(Clone, Copy, Debug)]
enum Expected {
    Is(u16),
    LetIn,
}

/// How a door answers whom. Of what is another tenant's, the answer is that of what is not there.
const fn expected(needs: Needs, caller: Caller) -> Expected {
    use Expected::{Is, LetIn};
    match (needs, caller) {
        (Needs::Nothing, _) | (_, Caller::Operator) => LetIn,
        // Nobody is trusted here, whatever is presented.
        (Needs::Identity, _) => Is(404),
        (_, Caller::Late) => Is(401),
        (Needs::NoBadCredential, _) => LetIn,
        (_, Caller::Nobody) => Is(401),
        (Needs::Read | Needs::ReadInstance, Caller::Reader) => LetIn,
        (Needs::ReadInstance | Needs::WriteInstance, Caller::Foreigner) => Is(404),
        (Needs::AdministerSomething, Caller::Foreigner) => LetIn,
        (_, Caller::Reader | Caller::Foreigner) => Is(403),
    }
}

pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: String,
}

/// Sends one request and reads the answer.
pub(super) fn call(setting: &Setting, caller: Caller, verb: &str, path: &str, body: &str) -> Answer {
    let credential = setting.token(caller).map(|token| format!("Authorization: Bearer {token}\r\n"));
    let head = format!(
        "{verb} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nDepth: 0\r\nContent-Type: \
         application/json\r\nContent-Length: {}\r\n{}\r\n{body}",
        body.len(),
        credential.unwrap_or_default()
    );
    let mut stream = setting.server.connect();
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = Vec::new();
    // Who refuses may close before it has read everything.
    let _cut_off = stream.read_to_end(&mut answer);
    let answer = text(&answer);
    let status = answer.split(' ').nth(1).unwrap_or_else(|| panic!("{verb} {path}: no answer")).parse().unwrap();
    Answer { status, body: answer.split_once("\r\n\r\n").unwrap().1.to_owned() }
}

fn make_private_cache(setting: &Setting) {
    let path = "/nix/_api/v1/cache-config/secret";
    let made = call(setting, Caller::Operator, "POST", path, r#"{"is_public":false}"#);
    assert_eq!(made.status, 200, "{}", made.body);
}

#[test]
fn every_route_has_a_case() {
    let tried: BTreeSet<(String, String)> =
        doors().iter().map(|door| (door.route.0.to_owned(), door.route.1.to_owned())).collect();
    let mounted = routes();
    let (untried, gone) =
        (mounted.difference(&tried).collect::<Vec<_>>(), tried.difference(&mounted).collect::<Vec<_>>());
    assert!(untried.is_empty() && gone.is_empty(), "without a case: {untried:?}; not mounted: {gone:?}");
}

#[test]
fn every_route_lets_in_whom_it_should() {
    let setting = Setting::start();
    make_private_cache(&setting);
    // The operator last: what they do may change what is there.
    for caller in CALLERS {
        for door in doors() {
            let answer = call(&setting, caller, door.verb, door.path, door.body);
            let shown = format!("{caller:?}: {} {}: {} {}", door.verb, door.path, answer.status, answer.body);
            match expected(door.needs, caller) {
                Expected::Is(status) => assert_eq!(answer.status, status, "{shown}"),
                Expected::LetIn => assert!(!matches!(answer.status, 401 | 403), "{shown}"),
            }
        }
    }
}

#[test]
fn what_is_anothers_looks_like_what_is_not_there() {
    let setting = Setting::start();
    make_private_cache(&setting);
    for caller in [Caller::Nobody, Caller::Late, Caller::Foreigner] {
        for door in doors().iter().filter(|door| door.path.contains("secret") || door.body.contains("secret")) {
            let [there, not_there] = ["secret", "absent"].map(|name| {
                let (path, body) = (door.path.replace("secret", name), door.body.replace("secret", name));
                let answer = call(&setting, caller, door.verb, &path, &body);
                (answer.status, answer.body.replace(name, "NAME"))
            });
            assert_eq!(there, not_there, "{caller:?}: {} {}", door.verb, door.path);
        }
        for verb in ["GET", "HEAD", "PUT", "PROPFIND"] {
            for path in [HASH, RESULT, NAMED] {
                let [there, not_there] = ["default", "nowhere"].map(|instance| {
                    let answer = call(&setting, caller, verb, &format!("/{instance}{path}"), "");
                    (answer.status, answer.body.replace(instance, "NAME"))
                });
                assert_eq!(there, not_there, "{caller:?}: {verb} {path}");
            }
        }
    }
    // Nor does a list tell, nor an explanation.
    let listed = call(&setting, Caller::Foreigner, "GET", "/api/v1/nix/caches", "").body;
    assert!(!listed.contains("secret"), "{listed}");
    let tokens = call(&setting, Caller::Foreigner, "GET", "/api/v1/access/tokens?all=true", "").body;
    assert!(tokens.contains("admin@org-acme") && !tokens.contains("viewer@default"), "{tokens}");
    for thing in ["cache=secret", "instance=default"] {
        let why = |thing: &str| {
            let path = format!("/api/v1/access/why?principal=anonymous&permission=nix:pull&{thing}");
            call(&setting, Caller::Foreigner, "GET", &path, "").body
        };
        let (name, other) = (thing.split_once('=').unwrap().1, "absent");
        let absent = thing.replace(name, other);
        assert_eq!(why(thing).replace(name, "NAME"), why(&absent).replace(other, "NAME"));
    }
}

#[test]
fn a_cache_is_made_for_the_tenant_that_is_named() {
    let setting = Setting::start();
    let make = |caller, query: &str| {
        let path = format!("/nix/_api/v1/cache-config/named{query}");
        let made = call(&setting, caller, "POST", &path, r#"{"is_public":false}"#);
        (made.status, made.body)
    };
    // Whose another tenant is, or whether there is one, is not told.
    for caller in [Caller::Foreigner, Caller::Reader, Caller::Nobody] {
        let refused = make(caller, "?tenant=default");
        assert_eq!(refused.0, if caller == Caller::Nobody { 401 } else { 403 }, "{caller:?}: {}", refused.1);
        assert_eq!(make(caller, "?tenant=org-nobody"), refused, "{caller:?}");
    }
    let (status, said) = make(Caller::Operator, "?tenant=org-nobody");
    assert_eq!((status, said.contains("there is no tenant org-nobody here")), (404, true), "{said}");
    let (status, said) = make(Caller::Operator, "?tenant=Acme");
    assert_eq!((status, said.contains("is not a tenant name")), (400, true), "{said}");

    let listed = |caller| call(&setting, caller, "GET", "/api/v1/nix/caches", "").body;
    assert!(!listed(Caller::Operator).contains("named"), "nothing was made by those who were refused");
    assert_eq!(make(Caller::Operator, "?tenant=org-acme").0, 200);
    assert!(listed(Caller::Foreigner).contains("\"named\"") && !listed(Caller::Reader).contains("\"named\""));

    let mut command = gf(setting.home());
    command.args(["nix", "cache", "create", "own", "--tenant", "org-acme", "--server", &setting.server.url]);
    let made = command.env("GF_TOKEN", setting.token(Caller::Foreigner).unwrap()).output().unwrap();
    assert_eq!(made.status.code(), Some(0), "{}", text(&made.stderr));
    let refused = gf(setting.home())
        .args(["nix", "cache", "create", "own", "--tenant", "default", "--server", &setting.server.url])
        .env("GF_TOKEN", setting.token(Caller::Foreigner).unwrap())
        .output()
        .unwrap();
    assert_eq!(refused.status.code(), Some(1), "{}", text(&refused.stderr));
}
