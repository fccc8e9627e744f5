//! Whether a rule names an owner: on a forge where anybody can register one, what an identity says of a branch, of an
//! event or of half a name is what anybody can have it say.
//!
//! What always holds: on a public forge, a rule has a claim that only the workloads of a closed set of owners get. A
//! pattern is closed when no `*` stands in the owner's name.
//!
//! Deliberately absent: whether that owner is the right one; forges of one's own, whose owners are known people, beyond
//! names that end in the middle.

use gf_tenancy::Pattern;

/// Issuers that sign for whoever registers. GitHub signs for an enterprise under a name of its own, with a path.
const PUBLIC: [&str; 4] = [
    "https://token.actions.githubusercontent.com",
    "https://gitlab.com",
    "https://codeberg.org/api/actions",
    "https://agent.buildkite.com",
];

/// Claims that begin with an owner and a slash, and of which only that owner decides who gets them.
const OWNED: [&str; 4] = ["repository", "project_path", "namespace_path", "workflow_ref"];

/// Claims that begin with the owner of a workflow that others may call: closed, they still name nobody.
const CALLED: [&str; 2] = ["job_workflow_ref", "ci_config_ref_uri"];

/// Claims that are an owner, or a thing of one, by a name or a number that nothing else has.
const WHOLE: [&str; 10] = [
    "repository_owner",
    "repository_owner_id",
    "repository_id",
    "enterprise",
    "enterprise_id",
    "namespace_id",
    "project_id",
    "organization_slug",
    "organization_id",
    "pipeline_id",
];

/// What a pattern for a claim says of owners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    /// It is one of few.
    Closed,
    /// Anybody can register one that fits.
    Open,
    /// Nothing.
    NotSaid,
}

/// Refuses what ends in the middle of an owner's name, which is a mistake on any forge. Subjects have no form that all
/// issuers share.
pub(super) fn check_claim(claim: &str, pattern: &Pattern) -> Result<(), String> {
    if claim == "sub" || is_any(pattern) || owner(claim, pattern) != Owner::Open {
        return Ok(());
    }
    let advice =
        if is_whole(claim) { "write it without a star" } else { "end the owner with a slash, as in \"acme/*\"" };
    Err(format!("{claim} = {:?} also fits owners that anybody can register: {advice}", pattern.as_str()))
}

/// Why claims let in people whom nobody chose, if they do.
pub(super) fn names_nobody(issuer: &str, claims: &[(String, Pattern)]) -> Option<String> {
    if claims.iter().all(|(_, pattern)| is_any(pattern)) {
        let why = "names nobody: without a claim such as repository or project_path everybody for whom the issuer signs \
                   would be let in";
        return Some(why.to_owned());
    }
    if !is_public(issuer) {
        return None;
    }
    if let Some((claim, pattern)) = claims.iter().find(|(claim, pattern)| owner(claim, pattern) == Owner::Open) {
        return Some(format!("{claim} = {:?} fits all owners, and anybody can register one", pattern.as_str()));
    }
    if claims.iter().any(|(claim, pattern)| !is_called(claim) && owner(claim, pattern) == Owner::Closed) {
        return None;
    }
    let why = "names no owner, and anybody can register at this forge: add a claim such as repository = \"acme/*\" or \
               project_path = \"acme/*\"";
    Some(why.to_owned())
}

fn owner(claim: &str, pattern: &Pattern) -> Owner {
    let pattern = pattern.as_str();
    if claim == "sub" {
        return of_subject(pattern);
    }
    match part_before_star(pattern) {
        _ if !is_whole(claim) && !is_called(claim) && !OWNED.contains(&plain(claim)) => Owner::NotSaid,
        None => Owner::Closed,
        // The host stands first: `gitlab.com/acme/...`.
        Some(before) if plain(claim) == "ci_config_ref_uri" => closed_when(before.matches('/').count() >= 2),
        Some(before) => closed_when(!is_whole(claim) && before.contains('/')),
    }
}

/// Subjects are `CLAIM:VALUE`, and more of that: `repo:acme/app:ref:refs/heads/main`. Their template can be changed by
/// whoever owns a repository, so that one which begins with another claim can be had by anybody.
fn of_subject(pattern: &str) -> Owner {
    let (key, rest) = pattern.split_once(':').unwrap_or((pattern, ""));
    if key.contains('*') {
        return Owner::Open;
    }
    let claim = match key {
        "repo" => "repository",
        "organization" => "organization_slug",
        key => key,
    };
    let value = rest.split(':').next().unwrap_or_default();
    match claim {
        "sub" | "" => Owner::NotSaid,
        claim if value.is_empty() || is_called(claim) => Owner::NotSaid,
        claim => owner(claim, &Pattern::new(value)),
    }
}

fn part_before_star(pattern: &str) -> Option<&str> {
    pattern.split_once('*').map(|(before, _)| before)
}

const fn closed_when(closed: bool) -> Owner {
    if closed { Owner::Closed } else { Owner::Open }
}

/// `/a` is the claim `a`, as `a` is.
fn plain(claim: &str) -> &str {
    claim.strip_prefix('/').unwrap_or(claim)
}

fn is_whole(claim: &str) -> bool {
    WHOLE.contains(&plain(claim))
}

fn is_called(claim: &str) -> bool {
    CALLED.contains(&plain(claim))
}

fn is_public(issuer: &str) -> bool {
    PUBLIC.iter().any(|public| issuer.trim_end_matches('/').eq_ignore_ascii_case(public))
}

/// Whether it fits everything.
pub(super) fn is_any(pattern: &Pattern) -> bool {
    pattern.as_str().bytes().all(|byte| byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    const GITHUB: &str = PUBLIC[0];

    fn claims(claims: &[(&str, &str)]) -> Vec<(String, Pattern)> {
        claims.iter().map(|(claim, pattern)| ((*claim).to_owned(), Pattern::new(pattern))).collect()
    }

    #[test]
    fn rules_about_public_forges_name_an_owner() {
        let check = |given: &[(&str, &str)], expected: bool| {
            let why = names_nobody(GITHUB, &claims(given));
            assert_eq!(why.is_none(), expected, "{given:?}: {why:?}");
        };
        for closed in [
            ("repository", "acme/*"),
            ("/repository", "acme/app"),
            ("repository_owner", "acme"),
            ("repository_owner_id", "42"),
            ("project_path", "acme/tools/*"),
            ("namespace_path", "acme"),
            ("workflow_ref", "acme/app/*"),
            ("sub", "repo:acme/app:ref:refs/heads/main"),
            ("sub", "repo:acme/*"),
            ("sub", "project_path:acme/app:*"),
            ("sub", "repository_owner:acme:*"),
            ("sub", "organization:acme:pipeline:*"),
        ] {
            check(&[closed], true);
            check(&[closed, ("ref", "refs/heads/main"), ("environment", "*")], true);
        }
        for open in [
            ("ref", "refs/heads/main"),
            ("environment", "production"),
            ("runner_environment", "github-hosted"),
            ("repository", "*"),
            ("repository", "*/app"),
            ("/repository", "acme*"),
            ("repository_owner", "*"),
            ("repository_owner_id", "4*"),
            ("repository_visibility", "private"),
            // Everybody may call a public workflow.
            ("job_workflow_ref", "acme/workflows/.github/workflows/build.yml@refs/heads/main"),
            ("workflow_ref", "*/app/.github/workflows/ci.yml@refs/heads/main"),
            ("sub", "*"),
            ("sub", "repo:*"),
            ("sub", "repo:*:ref:refs/heads/main"),
            ("sub", "repo:acme*"),
            ("sub", "repo*:acme/app"),
            ("sub", "*:ref:refs/heads/main"),
            ("sub", "environment:production"),
            ("sub", "job_workflow_ref:acme/app/x.yml@refs/heads/main"),
            ("sub", "repository_owner:acme*"),
            ("sub", "sub:x"),
            ("sub", ""),
        ] {
            check(&[open], false);
            check(&[open, ("ref", "refs/heads/main")], false);
        }
        check(&[("repository", "acme/*"), ("sub", "repo:*")], false);
        check(&[("repository", "acme/*"), ("job_workflow_ref", "*/build.yml@refs/heads/main")], false);
        check(&[("repository", "acme/*"), ("job_workflow_ref", "other/workflows/*")], true);
        check(&[("project_path", "acme/*"), ("ci_config_ref_uri", "gitlab.com/*")], false);
        check(&[("project_path", "acme/*"), ("ci_config_ref_uri", "gitlab.com/acme/*")], true);
    }

    #[test]
    fn owners_of_a_forge_of_ones_own_are_known_people() {
        let own = |given: &[(&str, &str)]| names_nobody("https://forge.example", &claims(given)).is_none();
        assert!(own(&[("ref", "refs/heads/main")]) && own(&[("repository", "*"), ("ref", "x")]));
        assert!(!own(&[("repository", "*")]) && !own(&[]) && !own(&[("sub", "**")]));
        for (issuer, public) in [
            ("https://gitlab.com/", true),
            ("https://GitLab.com", true),
            ("https://gitlab.com.example", false),
            ("https://token.actions.githubusercontent.com/acme", false),
        ] {
            assert_eq!(names_nobody(issuer, &claims(&[("ref", "x")])).is_some(), public, "{issuer}");
        }
    }
}
