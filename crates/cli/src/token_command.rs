//! `gf token issue|list|revoke`.

use std::time::{SystemTime, UNIX_EPOCH};

use gf_server::access_api::report::{
    AtticRevocation, AtticRevokedReport, IssuedReport, RevokedReport, TokenPage, TokenReport, TokenRequest,
};
use hyper::Method;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use crate::access_command::query;
use crate::args::{TokenCommand, TokenIssueArgs, TokenListArgs, TokenRevokeArgs};
use crate::client::Client;
use crate::failure::{Failure, FailureKind};
use crate::login_command::ask_for_token;
use crate::output::{Format, plain, print, say, show_age};
use crate::table::table;

const TOKENS: &str = "/api/v1/access/tokens";
const EXCHANGED: &str = "/api/v1/access/exchanged";
const ATTIC: &str = "/api/v1/access/attic/revoke";

pub(crate) fn run(command: TokenCommand) -> Result<(), Failure> {
    match command {
        TokenCommand::Issue(args) => issue(args),
        TokenCommand::List(args) => list(args),
        TokenCommand::Revoke(args) => revoke(args),
    }
}

/// The text alone is on standard output, so that it can go where it is needed and nowhere else.
fn issue(args: TokenIssueArgs) -> Result<(), Failure> {
    let client = Client::new(args.server)?;
    let request = TokenRequest { name: args.name, grants: args.grants, lifetime_seconds: args.lifetime.as_secs() };
    let issued: IssuedReport = client.post(TOKENS, &request)?;
    let TokenReport { id, grants, expires, .. } = &issued.report;
    let (grants, left) = (grants.join(" "), show_age(expires.saturating_sub(now_s())));
    say(format_args!("token {id} grants {grants} and is good for {left}. Its text is shown once:"));
    print(Format::from(args.json), &issued, |issued| issued.token.clone())
}

fn list(args: TokenListArgs) -> Result<(), Failure> {
    let client = Client::new(args.question.server)?;
    let mut tokens = Vec::new();
    let mut after = String::new();
    loop {
        let page: TokenPage = client.get(&format!("{TOKENS}?all={}{after}", args.all))?;
        tokens.extend(page.tokens);
        match page.next {
            Some(next) => after = format!("&after={next}"),
            None => break,
        }
    }
    print(Format::from(args.question.json), &tokens, |tokens| {
        let rows: Vec<[String; 6]> = tokens.iter().map(row).collect();
        table(["ID", "NAME", "USED", "ENDS", "BY", "GRANTS"], &rows)
    })
}

fn row(token: &TokenReport) -> [String; 6] {
    let now_s = now_s();
    let used = token.last_used.map_or_else(|| "never".to_owned(), |used| ago(now_s, used));
    let ends = match (token.revoked, token.expires > now_s) {
        (Some(revoked), _) => format!("revoked {}", ago(now_s, revoked)),
        (None, true) => format!("in {}", show_age(token.expires - now_s)),
        (None, false) => format!("ended {}", ago(now_s, token.expires)),
    };
    let grants: Vec<String> = token.grants.iter().chain(&token.unknown_grants).map(|grant| plain(grant)).collect();
    [token.id.clone(), plain(&token.name), used, ends, plain(&token.issued_by), grants.join(" ")]
}

fn revoke(args: TokenRevokeArgs) -> Result<(), Failure> {
    let TokenRevokeArgs { id, cut_off, attic, made_by, issuer, subject, rule, server } = args;
    let client = Client::new(server)?;
    if attic {
        return revoke_attic(&client, id);
    }
    if let Some(maker) = made_by {
        let question = query(&[("issued_by", &maker)]);
        let RevokedReport { revoked } = client.delete(&format!("{TOKENS}?{question}"))?;
        say(format_args!("{revoked} tokens are revoked that {} made, with what those made", plain(&maker)));
        return Ok(());
    }
    let Some(id) = id else {
        return revoke_exchanged(&client, [("issuer", issuer), ("subject", subject), ("rule", rule)]);
    };
    if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        let message = "this is no id of a token: `gf token list` shows them";
        return Err(Failure::new(FailureKind::Usage, message));
    }
    if cut_off {
        return revoke_exchanged(&client, [("of", Some(id)), ("", None), ("", None)]);
    }
    client.call_empty(Method::DELETE, &format!("{TOKENS}/{id}"))?;
    say(format_args!("token {id} is revoked"));
    Ok(())
}

/// The text of a token stands in no argument, which others on the machine can see.
fn revoke_attic(client: &Client, fingerprint: Option<String>) -> Result<(), Failure> {
    if fingerprint.as_ref().is_some_and(|text| text.contains('.')) {
        let message = "a token is read from standard input, where nobody else sees it: gf token revoke --attic < FILE";
        return Err(Failure::new(FailureKind::Usage, message));
    }
    let token = if fingerprint.is_some() { None } else { Some(ask_for_token()?) };
    let report: AtticRevokedReport = client.post(ATTIC, &AtticRevocation { token, fingerprint })?;
    let whose = report.subject.filter(|subject| !subject.is_empty());
    let whose = whose.map(|subject| format!(" of {}", plain(&subject))).unwrap_or_default();
    say(format_args!("the token {}{whose} is revoked", plain(&report.fingerprint)));
    Ok(())
}

fn revoke_exchanged(client: &Client, origin: [(&str, Option<String>); 3]) -> Result<(), Failure> {
    let field = |name, value: &str| format!("{name}={}", utf8_percent_encode(value, NON_ALPHANUMERIC));
    let given = origin.into_iter().filter_map(|(name, value)| Some(field(name, &value?)));
    let question = given.collect::<Vec<_>>().join("&");
    let RevokedReport { revoked } = client.delete(&format!("{EXCHANGED}?{question}"))?;
    say(format_args!("{revoked} tokens are revoked, and what was signed until now is exchanged no more"));
    Ok(())
}

/// How long ago, of seconds since 1970.
pub(crate) fn ago(now_s: u64, then_s: u64) -> String {
    format!("{} ago", show_age(now_s.saturating_sub(then_s)))
}

pub(crate) fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
