//! The doors that names of others can be tried at, and what somebody finds who tries.

use std::sync::Arc;

use anyhow::{Context, ensure};
use bazel_remote_apis::build::bazel::remote::execution::v2 as rex;
use bazel_remote_apis::google::longrunning::Operation;
use prost::Message;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::connection::{Connection, Connections, Side};

const EXECUTE: &str = "/build.bazel.remote.execution.v2.Execution/Execute";
/// Of an action that was never uploaded.
const HASH: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

/// How a name is tried.
enum Way {
    /// By the first field of a message of gRPC.
    Grpc(&'static str),
    /// In the place of `NAME` in the request line of HTTP.
    Http(String),
    /// As the token of a request.
    Token,
}

/// A name that is there and one that is not, and how somebody asks about them who may not know.
pub(super) struct Door {
    /// What it is called in the report.
    pub(super) name: &'static str,
    /// What is there.
    pub(super) there: String,
    /// What is not.
    pub(super) absent: String,
    way: Way,
    /// Of whoever asks.
    token: Option<String>,
    /// How the answer begins.
    denial: &'static str,
}

impl Door {
    /// Whether an answer is the denial that is expected here.
    pub(super) fn denies(&self, answer: &str) -> bool {
        answer.starts_with(self.denial)
    }
}

/// A message that begins with a name, as those of all methods here do.
#[derive(Clone, PartialEq, Message)]
struct Named {
    #[prost(string, tag = "1")]
    name: String,
}

/// Somebody with two connections, since both protocols are asked.
pub(super) struct Visitor {
    http: TcpStream,
    grpc: Connection,
}

impl Visitor {
    pub(super) async fn of(url: &str) -> anyhow::Result<Self> {
        let http = TcpStream::connect(url.trim_start_matches("http://")).await?;
        http.set_nodelay(true)?;
        Ok(Self { http, grpc: Connections::open(Side::Product, url).await?.of_caller(0) })
    }

    /// The status and the text that a name is answered with, without what every answer has of its own.
    pub(super) async fn ask(&mut self, door: &Door, name: &str) -> anyhow::Result<String> {
        let token = door.token.as_deref();
        match &door.way {
            Way::Http(line) => Ok(comparable(&self.send(&line.replace("NAME", name), token, None).await?)),
            Way::Token => Ok(comparable(&self.send("GET /api/v1/access/whoami", Some(name), None).await?)),
            Way::Grpc(path) => {
                let request = Arc::new(Named { name: name.to_owned() });
                match self.grpc.answers::<_, ()>(path, token.unwrap_or_default(), request).await {
                    Ok(_) => Ok("it was let in".to_owned()),
                    Err(status) => Ok(format!("{:?}: {}", status.code(), status.message())),
                }
            }
        }
    }

    async fn send(&mut self, line: &str, token: Option<&str>, body: Option<&Value>) -> anyhow::Result<String> {
        let credential = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
        let body = body.map(ToString::to_string).unwrap_or_default();
        let head = format!(
            "{line} HTTP/1.1\r\nHost: b\r\n{credential}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        exchange(&mut self.http, &format!("{head}{body}")).await
    }

    /// What an answer of the operator's says as JSON.
    async fn told(&mut self, line: &str, token: &str, body: &Value) -> anyhow::Result<Value> {
        let answer = self.send(line, Some(token), Some(body)).await?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no body")?;
        ensure!(head.starts_with("HTTP/1.1 2"), "{line} was answered with {answer}");
        Ok(if body.is_empty() { Value::Null } else { serde_json::from_str(body)? })
    }

    /// The text and the id of a new token.
    async fn issue(&mut self, operator: &str, grant: &str) -> anyhow::Result<(String, String)> {
        let new = json!({ "name": "bench", "grants": [grant], "lifetime_seconds": 3600 });
        let made = self.told("POST /api/v1/access/tokens", operator, &new).await?;
        let text = |key: &str| made[key].as_str().map(str::to_owned).with_context(|| format!("no {key} in {made}"));
        Ok((text("token")?, text("id")?))
    }

    /// The name of an operation that ended.
    async fn operation(&self, operator: &str) -> anyhow::Result<String> {
        let digest = rex::Digest { hash: HASH.to_owned(), size_bytes: 142 };
        let request =
            rex::ExecuteRequest { instance_name: "org-a".into(), action_digest: Some(digest), ..Default::default() };
        let said: Vec<Operation> = self.grpc.answers(EXECUTE, operator, Arc::new(request)).await?;
        let last = said.into_iter().next_back().filter(|operation| operation.done);
        Ok(last.context("the operation has no end")?.name)
    }
}

/// All of them, with what is there made by the operator, for somebody who administers the tenant beside.
pub(super) async fn doors(visitor: &mut Visitor, operator: &str) -> anyhow::Result<Vec<Door>> {
    visitor.told("POST /nix/_api/v1/cache-config/there", operator, &json!({ "is_public": false })).await?;
    let (stranger, _) = visitor.issue(operator, "admin@org-b").await?;
    let (_, token_of_other) = visitor.issue(operator, "admin@org-a").await?;
    let (revoked, its_id) = visitor.issue(operator, "viewer").await?;
    let deleted = visitor.send(&format!("DELETE /api/v1/access/tokens/{its_id}"), Some(operator), None).await?;
    ensure!(deleted.starts_with("HTTP/1.1 204"), "the token was not revoked: {deleted}");
    let operation = visitor.operation(operator).await?;

    let (http, denied) = (|line: &str| Way::Http(line.to_owned()), "HTTP/1.1 403");
    let door = |name, there: &str, absent: &str, way, denial| {
        let [there, absent] = [there, absent].map(str::to_owned);
        Door { name, there, absent, way, denial, token: Some(stranger.clone()) }
    };
    let cache = "GET /nix/NAME/nix-cache-info";
    let result = format!("GET /NAME/ac/{HASH}");
    let asked = format!("GET /api/v1/action-results?instance=NAME&action={HASH}");
    let why = "GET /api/v1/access/why?permission=cas:read&instance=org-b&principal=token:NAME";
    let (get, wait) = ("/google.longrunning.Operations/GetOperation", WAIT);
    let (unknown, elsewhere) = (other_than(&operation), operation.replacen("org-a", "org-x", 1));
    let no_token = other_than(&token_of_other);
    Ok(vec![
        Door { token: None, ..door("cache, nobody", "there", "awayy", http(cache), "HTTP/1.1 401") },
        door("cache", "there", "awayy", http(cache), denied),
        door("instance, gRPC", "org-a", "org-x", Way::Grpc(GET_ACTION_RESULT), INVALID),
        door("instance, HTTP", "org-a", "org-x", http(&result), "HTTP/1.1 404"),
        door("instance, action results", "org-a", "org-x", http(&asked), denied),
        door("operation, GetOperation", &operation, &unknown, Way::Grpc(get), INVALID),
        door("operation, WaitExecution", &operation, &elsewhere, Way::Grpc(wait), INVALID),
        door("operation, REST", &operation, &unknown, http("GET /api/v1/operations/NAME"), denied),
        door("token, presented", &revoked, &other_than(&revoked), Way::Token, "HTTP/1.1 401"),
        door("token, asked about", &token_of_other, &no_token, http(why), "HTTP/1.1 404"),
        door(
            "token, listed after",
            &token_of_other,
            &no_token,
            http("GET /api/v1/access/tokens?after=NAME"),
            "HTTP/1.1 404",
        ),
        door("token, revoked", &token_of_other, &no_token, http("DELETE /api/v1/access/tokens/NAME"), "HTTP/1.1 404"),
    ])
}

const GET_ACTION_RESULT: &str = "/build.bazel.remote.execution.v2.ActionCache/GetActionResult";
const WAIT: &str = "/build.bazel.remote.execution.v2.Execution/WaitExecution";
/// The instance is not known, for all that this caller may know.
const INVALID: &str = "InvalidArgument";

/// A name of the same form that nothing has: its last digit is another.
fn other_than(name: &str) -> String {
    let (rest, last) = name.split_at(name.len().saturating_sub(1));
    format!("{rest}{}", if last == "0" { "1" } else { "0" })
}

/// An answer of HTTP without its time and its trace.
fn comparable(answer: &str) -> String {
    let own = |line: &&str| ["date:", "traceparent:"].iter().any(|name| line.to_ascii_lowercase().starts_with(name));
    answer.lines().filter(|line| !own(line)).collect::<Vec<_>>().join("\n")
}

/// The answer to one request, whose body has a length.
async fn exchange(connection: &mut TcpStream, request: &str) -> anyhow::Result<String> {
    connection.write_all(request.as_bytes()).await?;
    let mut answer = Vec::with_capacity(1024);
    let head = loop {
        ensure!(connection.read_buf(&mut answer).await? > 0, "the connection ended");
        if let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
    };
    let text = String::from_utf8_lossy(&answer[..head]).to_lowercase();
    let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap_or("0");
    let whole = head + length.trim().parse::<usize>()?;
    while answer.len() < whole {
        ensure!(connection.read_buf(&mut answer).await? > 0, "the connection ended");
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_an_answers_own_is_left_out() {
        let answer =
            |second: u32| format!("HTTP/1.1 401 U\r\nDate: 22:54:0{second} GMT\r\ntraceparent: {second}\r\n\r\nno");
        assert_eq!(comparable(&answer(1)), comparable(&answer(2)));
        assert_eq!(comparable(&answer(1)), "HTTP/1.1 401 U\n\nno");
    }

    #[test]
    fn another_name_of_the_same_form() {
        for (name, other) in [("org-a/operations/00", "org-a/operations/01"), ("ab", "a0"), ("", "0")] {
            assert_eq!(other_than(name), other);
        }
    }
}
