//! How far a principal reaches who administers: which tokens it may make, and which it may know of.

use super::Token;
use crate::{Grant, PermissionName, Principal};

/// Whether the caller may make a token with this grant. Whoever holds a token or a certificate holds what it says, and may
/// hand out what it also lets them administer. Others who were allowed to administer hold everything but attaching workers, which run
/// other people's code: neither the static token nor an open server hands that on.
pub(super) fn may_hand_out(principal: &Principal, grant: &Grant) -> bool {
    if let Some(held) = principal.grants() {
        return administers(held, grant) && held.iter().any(|own| own.covers(grant));
    }
    match principal {
        Principal::TokenHolder | Principal::Anonymous => !grant.has(PermissionName::Work),
        Principal::Server => true,
        // Their grants were looked at, or they administer nothing.
        Principal::Token(_)
        | Principal::Certificate(_)
        | Principal::Attic(_)
        | Principal::Worker(_)
        | Principal::WorkerHost => false,
    }
}

/// Whether somebody administers wherever a grant holds.
fn administers(held: &[Grant], grant: &Grant) -> bool {
    held.iter().any(|own| own.has(PermissionName::Administer) && own.spans(grant))
}

/// Whether the caller may know of a token, and revoke it: of those that it could have made, of its own, and of those that
/// attach workers where it administers. What a newer program granted, only those could have made who hold everything.
pub(super) fn sees(principal: &Principal, token: &Token) -> bool {
    match principal {
        Principal::Token(own) if own.id == token.id => true,
        Principal::Token(_) | Principal::Certificate(_) => {
            let attaches = |grant: &Grant| {
                grant.has(PermissionName::Work) && principal.grants().is_some_and(|held| administers(held, grant))
            };
            let may = |grant: &Grant| may_hand_out(principal, grant) || attaches(grant);
            token.unknown.is_empty() && token.grants.iter().all(may)
        }
        // Whoever holds the static token is the operator, and may revoke also what it could not have made.
        Principal::TokenHolder | Principal::Anonymous | Principal::Server => true,
        Principal::Attic(_) | Principal::Worker(_) | Principal::WorkerHost => false,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{CertificateName, CertificateNames, CertificateRule, Certified, Pattern, TokenId};

    #[test]
    fn a_certificate_reaches_as_far_as_a_token_of_its_grants() {
        let token = |id: &str, grants: &[&str]| {
            let grants = grants.iter().map(|grant| grant.parse().unwrap()).collect();
            Token { id: TokenId::new(id), name: id.to_owned(), grants, unknown: Vec::new() }
        };
        let certified = |grants: &[&str]| {
            let pattern = CertificateName::CommonName(Pattern::new("ann"));
            let grants = grants.iter().map(|grant| grant.parse().unwrap()).collect();
            let names = CertificateNames { common_names: vec!["ann".to_owned()], ..CertificateNames::default() };
            Certified::new(&[CertificateRule { name: "ann".to_owned(), pattern, grants }], &names, u64::MAX)
        };
        for (grants, may, may_not) in [
            (["admin@org-acme"], "operator@org-acme", "viewer@org-other"),
            (["operator@org-acme"], "", "viewer@org-acme"),
            (["admin"], "admin@org-acme", "workers:attach"),
        ] {
            for who in
                [Principal::Token(Arc::new(token("a", &grants))), Principal::Certificate(Arc::new(certified(&grants)))]
            {
                for (grant, expected) in [(may, true), (may_not, false)] {
                    if grant.is_empty() {
                        continue;
                    }
                    assert_eq!(may_hand_out(&who, &grant.parse().unwrap()), expected, "{who} {grants:?} {grant}");
                    let is_seen = expected || (grant == "workers:attach" && grants == ["admin"]);
                    assert_eq!(sees(&who, &token("b", &[grant])), is_seen, "{who} {grants:?} {grant}");
                }
                // A token that lets a machine in can be taken back where it counts, and nowhere else.
                let own = token("b", &["workers:attach@org-acme"]);
                assert_eq!(sees(&who, &own), grants != ["operator@org-acme"], "{who} {grants:?}");
                assert!(
                    !sees(&who, &token("b", &["workers:attach@org-acme", "viewer@org-other"])) || grants == ["admin"]
                );
            }
        }
    }
}
