//! When tokens were last presented: noted in memory with each request, and written down once in a while.

use std::sync::Arc;

use gf_database::{DatabaseError, sql, work};

use super::rows::stored;
use super::table::Entry;
use super::{BATCH, TokenError, Tokens};

impl Tokens {
    /// Writes down when tokens were last presented.
    ///
    /// # Errors
    /// [`TokenError::Database`]; the next call tries again.
    pub async fn save_uses(&self) -> Result<(), TokenError> {
        let unsaved: Vec<Arc<Entry>> = self.read().good.all().filter(|entry| entry.is_unsaved()).cloned().collect();
        for batch in unsaved.chunks(BATCH as usize) {
            self.save_batch(batch).await?;
        }
        Ok(())
    }

    async fn save_batch(&self, entries: &[Arc<Entry>]) -> Result<(), DatabaseError> {
        let uses: Vec<(u64, &Entry)> = entries.iter().map(|entry| (entry.used_s(), &**entry)).collect();
        let uses = &uses;
        let written = self.database.write(|transaction| {
            work(async move {
                for (used_s, entry) in uses {
                    let update = sql("UPDATE tenancy_token SET used_s = $1 WHERE id = $2");
                    transaction.execute(update.bind(stored(*used_s)).bind(entry.token.id.as_str())).await?;
                }
                Ok::<_, DatabaseError>(())
            })
        });
        written.await?;
        uses.iter().for_each(|(used_s, entry)| entry.saved(*used_s));
        Ok(())
    }
}
