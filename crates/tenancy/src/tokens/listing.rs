//! Which tokens there are, for whoever administers some of them.

use gf_database::{Statement, sql};

use super::reach::sees;
use super::rows::{one_or_nothing, report, report_if_any, stored};
use super::{BATCH, TokenError, TokenId, TokenReport, Tokens, Which};
use crate::access::now_s;
use crate::{Administer, Authorized};

impl Tokens {
    /// The tokens that the caller may know of, the newest first, at most `limit`, after the one of this id.
    ///
    /// # Errors
    /// [`TokenError::Database`].
    pub async fn list(
        &self,
        admin: &Authorized<Administer>,
        which: Which,
        after: Option<&TokenId>,
        limit: usize,
    ) -> Result<Vec<TokenReport>, TokenError> {
        let mut listed = Vec::new();
        let mut place = match after {
            Some(id) => self.place_of(admin, id).await?,
            None => (i64::MAX, String::new()),
        };
        loop {
            let page = self.database.all(self.page(which, &place)).await?;
            for row in &page {
                let report = report(row)?;
                place = (stored(report.issued_s), report.token.id.to_string());
                if listed.len() < limit && sees(admin.principal(), &report.token) {
                    listed.push(report);
                }
            }
            if listed.len() >= limit || page.len() < BATCH as usize {
                break;
            }
        }
        self.add_uses(&mut listed);
        Ok(listed)
    }

    fn page(&self, which: Which, (issued_s, id): &(i64, String)) -> Statement {
        // Of ended ones, none ends after the end of time.
        let ending_after_s = if which == Which::Good { stored(now_s()) } else { i64::MIN };
        sql("SELECT * FROM tenancy_token \
             WHERE issued_s <= $1 AND (issued_s < $1 OR id > $2) AND expires_s > $3 \
             AND (revoked_s IS NULL OR $3 < 0) \
             ORDER BY issued_s DESC, id LIMIT $4")
        .bind(*issued_s)
        .bind(id.as_str())
        .bind(ending_after_s)
        .bind(BATCH)
    }

    /// Where a token stands among all. One that the caller may not know of stands where none does.
    async fn place_of(&self, admin: &Authorized<Administer>, id: &TokenId) -> Result<(i64, String), TokenError> {
        let unknown = || TokenError::Unknown(id.clone());
        if !id.is_formed() {
            return Err(unknown());
        }
        let row = self.database.first(one_or_nothing("").bind(id.as_str())).await?;
        let report = row.as_ref().map(report_if_any).transpose()?.flatten();
        let seen = report.filter(|report| sees(admin.principal(), &report.token));
        seen.map(|report| (stored(report.issued_s), id.to_string())).ok_or_else(unknown)
    }

    /// What was used since it was last written down.
    fn add_uses(&self, reports: &mut [TokenReport]) {
        let table = self.read();
        for report in reports {
            let used = table.good.of_id(report.token.id()).map(|(_, entry)| entry.used_s()).filter(|used| *used > 0);
            report.used_s = report.used_s.max(used);
        }
    }
}
