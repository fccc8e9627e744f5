//! `gf whoami` and `gf access why`.

use gf_server::access_api::report::{WhoAmI, WhyReport};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use crate::args::{AccessCommand, AccessWhyArgs, QuestionArgs};
use crate::client::Client;
use crate::failure::{Failure, FailureKind};
use crate::output::{Format, plain, print};

pub(crate) fn who_am_i(args: QuestionArgs) -> Result<(), Failure> {
    let who: WhoAmI = Client::new(args.server)?.get("/api/v1/access/whoami")?;
    print(Format::from(args.json), &who, show)
}

fn show(who: &WhoAmI) -> String {
    let WhoAmI { principal, name, grants, permissions, is_open } = who;
    let name = name.as_ref().map(|name| format!(" ({})", plain(name))).unwrap_or_default();
    let grants = match grants.is_empty() {
        true => String::new(),
        false => format!("\ngrants    {}", plain(&grants.join(" "))),
    };
    let open = if *is_open { "\nThe server is open: everybody may do everything." } else { "" };
    let may = if permissions.is_empty() { "nothing".to_owned() } else { permissions.join(" ") };
    format!("you are   {}{name}{grants}\nyou may   {may}{open}", plain(principal))
}

pub(crate) fn run(command: AccessCommand) -> Result<(), Failure> {
    match command {
        AccessCommand::Why(args) => why(args),
    }
}

fn why(args: AccessWhyArgs) -> Result<(), Failure> {
    let (kind, name) = thing(&args.permission, &args.thing);
    let question = [("principal", args.principal.as_str()), ("permission", args.permission.as_str()), (kind, name)];
    let answer: WhyReport =
        Client::new(args.question.server)?.get(&format!("/api/v1/access/why?{}", query(&question)))?;
    print(Format::from(args.question.json), &answer, |answer| {
        let WhyReport { principal, permission, thing, allowed, rule } = answer;
        let verb = if *allowed { "may" } else { "may not" };
        format!("{} {verb} {permission} on {}: {}", plain(principal), plain(thing), plain(rule))
    })?;
    match answer.allowed {
        true => Ok(()),
        false => Err(Failure::new(FailureKind::NotSo, "")),
    }
}

/// What kind of thing it is, and its name: the permissions of Nix are on caches.
fn thing<'a>(permission: &str, thing: &'a str) -> (&'static str, &'a str) {
    match thing.split_once(':') {
        Some(("instance", name)) => ("instance", name),
        Some(("cache", name)) => ("cache", name),
        _ if permission.starts_with("nix:") => ("cache", thing),
        _ => ("instance", thing),
    }
}

/// Fields of a query, with everything in them written out.
pub(crate) fn query(fields: &[(&str, &str)]) -> String {
    let field = |(name, value): &(&str, &str)| format!("{name}={}", utf8_percent_encode(value, NON_ALPHANUMERIC));
    fields.iter().map(field).collect::<Vec<_>>().join("&")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn things_are_of_the_kind_that_the_permission_says() {
        assert_eq!(thing("cas:read", "acme/ci"), ("instance", "acme/ci"));
        assert_eq!(thing("nix:push", "main"), ("cache", "main"));
        assert_eq!(thing("nix:push", "instance:main"), ("instance", "main"));
        assert_eq!(thing("cas:read", "cache:main"), ("cache", "main"));
    }

    #[test]
    fn queries_hold_any_text() {
        assert_eq!(
            query(&[("principal", "token:a&b"), ("instance", "a/b c")]),
            "principal=token%3Aa%26b&instance=a%2Fb%20c"
        );
    }
}
