//! `gf credential-helper`: what Bazel asks for the credentials of a server, and where they come from.
//!
//! Bazel runs the helper with the word `get`, writes `{"uri": "…"}` to its standard input and reads
//! `{"headers": {…}, "expires": "…"}` from its standard output. A path without arguments is all that it can be told, so the
//! program also answers to the name `gf-credential-helper`, and takes what it needs to know from the environment.
//!
//! What always holds: a credential goes to the server that it is for, and to no other. Bazel may ask for every host that it
//! downloads from, so what stands in the environment is for the server that `GF_SERVER` names, what a login got is for the
//! server of that login, and other hosts get nothing. What is kept is kept in a file of its user alone, for the identity
//! that it was exchanged for; nothing but the answer is written to standard output.
//!
//! Deliberately absent: storing and erasing, which Bazel does not ask for.

mod cache;
mod identity;

use std::io::{self, Read};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use gf_server::operator::report::Problem;
use hyper::header::AUTHORIZATION;
use hyper::{Method, StatusCode, Uri};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::args::{CredentialHelperArgs, CredentialHelperCommand, ServerArgs};
use crate::client::{Client, Patience, whole};
use crate::failure::{Failure, FailureKind};
use crate::output::{Format, print};
use cache::{Cache, Kept};
use identity::Identity;

/// The longest question; Bazel's has a URL in it.
const MAX_QUESTION_BYTES: u64 = 64 << 10;
/// What is good for less than this is exchanged anew: a build goes on for a while after its question.
const MARGIN_S: u64 = 120;
/// Bazel asks again so long before the end, so that no call is made with what ends under way.
const EARLIER_S: u64 = 30;

#[derive(Deserialize)]
struct Question {
    uri: String,
}

#[derive(Default, Serialize)]
struct Answer {
    headers: Headers,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires: Option<String>,
}

#[derive(Default, Serialize)]
struct Headers {
    #[serde(rename = "Authorization", skip_serializing_if = "Option::is_none")]
    authorization: Option<[String; 1]>,
}

/// What the server answers to an exchange.
#[derive(Deserialize)]
struct Exchanged {
    token: String,
    expires_at: String,
}

pub(crate) fn run(command: CredentialHelperCommand) -> Result<(), Failure> {
    let CredentialHelperCommand::Get(args) = command;
    let question = read_question()?;
    let answer = answer(&question, args).map_err(|failure| failure.about(&"no credential"))?;
    print(Format::Json, &answer, |_| String::new())
}

fn read_question() -> Result<Question, Failure> {
    let mut text = String::new();
    io::stdin().take(MAX_QUESTION_BYTES).read_to_string(&mut text).map_err(Failure::failed)?;
    serde_json::from_str(&text).map_err(|error| {
        let message = format!(
            "the question on standard input is not {{\"uri\": \"…\"}} ({error}): this is for Bazel, with \
             --credential_helper=HOST=PATH"
        );
        Failure::new(FailureKind::Usage, message)
    })
}

fn answer(question: &Question, args: CredentialHelperArgs) -> Result<Answer, Failure> {
    let named = args.server.as_deref().filter(|named| !named.is_empty());
    let server = match server_for(&question.uri, named)? {
        Asked::Named(server) => server,
        Asked::Unnamed(server) => return answer_of_login(&server),
        Asked::Another => return Ok(Answer::default()),
    };
    let whom = ServerArgs { server: Some(server.clone()), ca: args.ca.clone(), ..ServerArgs::default() };
    let client = Client::without_token(whom)?;
    if let Some(token) = own_token()? {
        return Ok(present(&token, None));
    }
    let audience = args.audience.clone().unwrap_or_else(|| server.clone());
    let identity = Identity::find(&args, &audience)?;
    if let Some(identity) = identity {
        let kept = token_for(&client, &server, identity)?;
        return Ok(present(&kept.token, Some(kept.expires_s.saturating_sub(EARLIER_S))));
    }
    answer_of_login(&server)
}

/// What `gf login` kept for this server.
fn answer_of_login(server: &str) -> Result<Answer, Failure> {
    if let Some(token) = crate::logins::login_for(server)?.token {
        return Ok(present(&token, None));
    }
    Err(Failure::failed(format!(
        "there is nothing to present to {server}: on your machine run `gf login --server {server}`; in CI set \
         GF_SERVER={server}, and give the job an identity token (GitHub: `permissions: id-token: write`; GitLab: \
         `id_tokens: GF_ID_TOKEN: aud: {server}`; elsewhere GF_ID_TOKEN_FILE), or put a token into GF_TOKEN. If that is \
         not your server, name the helper for yours only, with --credential_helper=HOST=PATH"
    )))
}

/// The token that somebody put into the environment.
fn own_token() -> Result<Option<String>, Failure> {
    let Some(token) = std::env::var_os("GF_TOKEN") else { return Ok(None) };
    let token = token.to_string_lossy().trim().to_owned();
    if token.is_empty() {
        return Ok(None);
    }
    match token.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Ok(Some(token)),
        false => Err(Failure::new(FailureKind::Usage, "GF_TOKEN holds characters that no token has")),
    }
}

/// Which server a question is about.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    /// The one that was named, as it was named.
    Named(String),
    /// One of many that it may be: none was named.
    Unnamed(String),
    /// Another one than was named.
    Another,
}

/// The server that the question is about. What it is asked over, the question does not say: Bazel names every server
/// with https, so plain http is for a server that was named with it.
fn server_for(uri: &str, named: Option<&str>) -> Result<Asked, Failure> {
    let wrong = |what: &str| Failure::new(FailureKind::Usage, format!("{what:?} is no URL with a host"));
    let asked: Uri = uri.parse().map_err(|_| wrong(uri))?;
    let asked_host = asked.host().ok_or_else(|| wrong(uri))?;
    let authority = asked.authority().map(|authority| authority.as_str()).unwrap_or_default();
    if authority.contains('@') {
        return Err(wrong(uri));
    }
    let Some(named) = named else { return Ok(Asked::Unnamed(format!("https://{authority}"))) };
    let known: Uri = named.parse().map_err(|_| wrong(named))?;
    let known_host = known.host().ok_or_else(|| wrong(named))?;
    let default_port = if known.scheme_str() == Some("http") { 80 } else { 443 };
    let is_same = known_host.eq_ignore_ascii_case(asked_host)
        && known.port_u16().unwrap_or(default_port) == asked.port_u16().unwrap_or(443);
    Ok(if is_same { Asked::Named(named.trim_end_matches('/').to_owned()) } else { Asked::Another })
}

/// A token that is kept for this identity, or a new one.
fn token_for(client: &Client, server: &str, identity: Identity) -> Result<Kept, Failure> {
    let cache = Cache::open(server, &identity);
    // One at a time: those who wait find what the first got.
    let _turn = cache.as_ref().map(Cache::lock).transpose()?;
    if let Some(kept) = cache.as_ref().and_then(Cache::read).filter(|kept| kept.expires_s > now_s() + MARGIN_S) {
        return Ok(kept);
    }
    let kept = exchange(client, server, identity)?;
    if let Some(cache) = &cache {
        cache.write(&kept)?;
    }
    Ok(kept)
}

fn exchange(client: &Client, server: &str, identity: Identity) -> Result<Kept, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::failed)?;
    let (status, answer) = runtime.block_on(async {
        let token = identity.token().await?;
        let bearer = format!("Bearer {token}").try_into();
        let bearer = bearer.map_err(|_| Failure::failed("the identity token holds characters that none has"))?;
        let headers = [(AUTHORIZATION, bearer)];
        client.exchange(Method::POST, "/v1/token/exchange", &headers, whole(Bytes::new()), Patience::Short).await
    })?;
    if !status.is_success() {
        return Err(refused(client, server, status, &answer));
    }
    let Exchanged { token, expires_at } = serde_json::from_slice(&answer)
        .map_err(|error| client.not_ours(format!("its answer to an exchange: {error}")))?;
    let expires = OffsetDateTime::parse(&expires_at, &Rfc3339);
    let expires = expires.map_err(|error| client.not_ours(format!("the end of the token: {error}")))?;
    let expires_s = u64::try_from(expires.unix_timestamp()).unwrap_or_default();
    Ok(Kept { token, expires_s })
}

fn refused(client: &Client, server: &str, status: StatusCode, answer: &[u8]) -> Failure {
    let Ok(Problem { error }) = serde_json::from_slice(answer) else { return client.not_ours(status) };
    let failure = Failure::failed(format!("{server} does not take the identity of this job: {error}"));
    if status != StatusCode::UNAUTHORIZED {
        return failure;
    }
    failure.and(format!(
        "if the job should have access, an [[access.trust]] of {server} must name its repository and branch, and its \
         identity token must be for the audience of that rule (GF_AUDIENCE)"
    ))
}

fn present(token: &str, expires_s: Option<u64>) -> Answer {
    let expires = expires_s.and_then(|seconds| {
        let time = OffsetDateTime::from_unix_timestamp(i64::try_from(seconds).ok()?).ok()?;
        time.format(&Rfc3339).ok()
    });
    Answer { headers: Headers { authorization: Some([format!("Bearer {token}")]) }, expires }
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_is_for_one_server() {
        let check = |uri: &str, named: Option<&str>, expected: Option<Asked>| {
            assert_eq!(server_for(uri, named).ok(), expected, "{uri} {named:?}");
        };
        let the_named = |server: &str| Some(Asked::Named(server.to_owned()));
        let unnamed = |server: &str| Some(Asked::Unnamed(server.to_owned()));
        let method = "https://build.example/build.bazel.remote.execution.v2.Capabilities";
        check(method, None, unnamed("https://build.example"));
        check("https://build.example:8980/x", None, unnamed("https://build.example:8980"));
        check(method, Some("https://build.example"), the_named("https://build.example"));
        check(method, Some("https://BUILD.example:443/"), the_named("https://BUILD.example:443"));
        check("https://127.0.0.1:8980/x", Some("http://127.0.0.1:8980"), the_named("http://127.0.0.1:8980"));
        check("https://[::1]:8980/x", Some("http://[::1]:8980"), the_named("http://[::1]:8980"));
        check(method, Some("https://evil.example"), Some(Asked::Another));
        check("https://build.example:444/x", Some("https://build.example"), Some(Asked::Another));
        check("https://build.example@evil.example/", None, None);
        check("build.example", None, unnamed("https://build.example"));
        check("/x", None, None);
        check("", None, None);
    }
}
