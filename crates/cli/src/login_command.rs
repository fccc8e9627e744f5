//! `gf login`: the token or the certificate for a server, tried out and stored for every other command.

use std::io::{self, BufRead, IsTerminal, Read};

use gf_server::access_api::report::WhoAmI;
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

use crate::args::LoginArgs;
use crate::client::Client;
use crate::failure::{Failure, FailureKind};
use crate::logins::{self, Login};
use crate::output::{plain, say};

/// The longest text that is taken for a token.
const MAX_TOKEN_BYTES: u64 = 16 << 10;

pub(crate) fn run(args: LoginArgs) -> Result<(), Failure> {
    let client = Client::without_token(args.server)?;
    let server = client.url();
    if args.forget {
        logins::store(&server, None)?;
        say(format_args!("nothing is stored for {server} any more"));
        return Ok(());
    }
    let (client, login, what) = match client.named_certificate().cloned() {
        Some(certificate) => {
            let certificate = Some(certificate.resolved()?);
            (client, Login { token: None, certificate }, "certificate")
        }
        None => {
            let token = read_token()?;
            (client.with_token(token.clone()), Login { token: Some(token), certificate: None }, "token")
        }
    };
    let who: WhoAmI = client.get("/api/v1/access/whoami")?;
    logins::store(&server, Some(login))?;
    let name = who.name.map(|name| format!(" ({})", plain(&name))).unwrap_or_default();
    say(format_args!(
        "you are {}{name} at {server}; gf commands present this {what} there from now on",
        plain(&who.principal)
    ));
    Ok(())
}

fn read_token() -> Result<String, Failure> {
    let given = std::env::var("GF_TOKEN").unwrap_or_default();
    if given.trim().is_empty() { ask_for_token() } else { checked(&given) }
}

/// A token from standard input.
pub(crate) fn ask_for_token() -> Result<String, Failure> {
    checked(&ask()?)
}

fn checked(text: &str) -> Result<String, Failure> {
    let token = text.trim();
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Failure::new(FailureKind::Usage, "a token is one line of visible characters: paste it here"));
    }
    Ok(token.to_owned())
}

/// From standard input. A terminal does not show it.
fn ask() -> Result<String, Failure> {
    let input = io::stdin();
    let failed = |error: io::Error| Failure::failed(format!("standard input cannot be read: {error}"));
    let mut text = String::new();
    if !input.is_terminal() {
        input.lock().take(MAX_TOKEN_BYTES).read_to_string(&mut text).map_err(failed)?;
        return Ok(text);
    }
    say("Paste the token; it is not shown:");
    let before = tcgetattr(&input).map_err(|error| failed(error.into()))?;
    let mut silent = before.clone();
    silent.local_modes.remove(LocalModes::ECHO);
    tcsetattr(&input, OptionalActions::Flush, &silent).map_err(|error| failed(error.into()))?;
    let read = input.lock().take(MAX_TOKEN_BYTES).read_line(&mut text);
    // Whatever was read, the terminal shows again what is typed.
    let restored = tcsetattr(&input, OptionalActions::Now, &before);
    read.map_err(failed)?;
    restored.map_err(|error| failed(error.into()))?;
    Ok(text)
}
