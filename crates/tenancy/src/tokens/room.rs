//! How many tokens may be good at one time, and of whom.
//!
//! What always holds: whoever administers everything can make a token, whatever tenants and exchanges did; what one
//! tenant makes leaves room for the others. The bounds are checked before a token is made, so that many that are made at
//! once may go beyond them by their number.

use std::sync::Arc;

use super::reach::{may_hand_out, sees};
use super::{MAX_TOKENS, Token, TokenError, Tokens};
use crate::access::now_s;
use crate::{Grant, Principal, Role};

/// Of those, the ones that only who administers everything can make.
pub(super) const RESERVED: usize = 1000;
/// The most that whoever administers less can have revoked.
pub(super) const MAX_WITHIN_REACH: usize = 20_000;

impl Tokens {
    /// Refuses when there are too many for this maker.
    pub(super) fn check_room_for(&self, maker: &Principal) -> Result<(), TokenError> {
        if may_hand_out(maker, &Grant::everywhere(Role::Admin)) {
            return self.check_room_below(MAX_TOKENS);
        }
        let good: Vec<Arc<Token>> = self.read().good.all().map(|entry| Arc::clone(&entry.token)).collect();
        if good.iter().filter(|token| sees(maker, token)).count() >= MAX_WITHIN_REACH {
            return Err(TokenError::TooMany(MAX_WITHIN_REACH));
        }
        self.check_room()
    }

    /// Refuses when there are too many for whoever does not administer everything.
    pub(super) fn check_room(&self) -> Result<(), TokenError> {
        self.check_room_below(MAX_TOKENS - RESERVED)
    }

    /// Those that ended do not count.
    fn check_room_below(&self, limit: usize) -> Result<(), TokenError> {
        if self.read().good.len() < limit {
            return Ok(());
        }
        let mut table = self.write();
        table.sweep(now_s());
        if table.good.len() < limit { Ok(()) } else { Err(TokenError::TooMany(limit)) }
    }
}
